//! Long sequences of events, drawn from seeds, and those that once failed.

use super::super::fuzzing::{Book, play_from};

/// R05: orderings, duplicates, delays and losses of two generations of two control planes. A seed that fails is
/// printed; its bytes belong into `corpus/state_machine`.
#[test]
fn no_sequence_of_events_tears_configuration() {
    let book = Book::new();
    for seed in 0..10_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let length = random.usize(20..160);
        let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        let played = std::panic::catch_unwind(|| play_from(&book, &data));
        assert!(played.is_ok(), "seed {seed}: {data:?}");
    }
}

#[test]
fn sequences_that_once_failed_are_replayed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/state_machine");
    let mut played = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        super::super::fuzzing::state_machine(&std::fs::read(file.unwrap().path()).unwrap());
        played += 1;
    }
    assert!(played > 0);
}
