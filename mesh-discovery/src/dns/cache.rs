//! What name servers answered, by the name and the kind of records that were asked for, for as long as it holds.
//!
//! hickory's own cache is not used: to what an alias stands for it gives an entry of its own, which it goes on answering with when
//! the name that was asked for is forgotten. What is kept here is the whole answer, under that name alone.
//!
//! Refuses to know how name servers are asked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_resolver::lookup::Lookup;
use hickory_resolver::proto::rr::{Name, RecordType};
use mesh_core::source::ResolveError;
use parking_lot::Mutex;

/// Answers that are kept. Where there are more that all hold they begin anew: which of them is asked for next nobody knows.
const MOST: usize = 8192;

/// The answers of one resolver.
pub(super) struct Cache {
    kept: Mutex<Table>,
    negative_ttl: Duration,
}

struct Kept {
    answer: Answer,
    asked: Instant,
    until: Instant,
}

type Answer = Result<Lookup, ResolveError>;

type Table = HashMap<(Name, RecordType), Kept>;

fn put(table: &mut Table, key: (Name, RecordType), kept: Kept, now: Instant) {
    if table.len() >= MOST {
        table.retain(|_, kept| now < kept.until);
    }
    if table.len() >= MOST {
        table.clear();
    }
    table.insert(key, kept);
}

impl Cache {
    /// That there is no such name, or no record of the kind, is kept for `negative_ttl`.
    pub(super) fn new(negative_ttl: Duration) -> Self {
        Self { kept: Mutex::default(), negative_ttl }
    }

    /// The last answer, if it still holds.
    pub(super) fn holding(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let kept = self.kept.lock();
        kept.get(&(name.clone(), kind)).filter(|kept| Instant::now() < kept.until).map(|kept| kept.answer.clone())
    }

    /// Keeps what was answered to a query of the time `asked`; a failure is no answer, and one that took its time comes after none to
    /// a later query, nor after what was forgotten meanwhile.
    pub(super) fn keep(&self, name: Name, kind: RecordType, answer: &Answer, asked: Instant) {
        let now = Instant::now();
        let until = match answer {
            Ok(lookup) => lookup.valid_until(),
            Err(ResolveError::NotFound | ResolveError::NoRecords) => now + self.negative_ttl,
            Err(_) => return,
        };
        let mut kept = self.kept.lock();
        let key = (name, kind);
        if kept.get(&key).is_some_and(|newer| newer.asked > asked) {
            return;
        }
        put(&mut kept, key, Kept { answer: answer.clone(), asked, until }, now);
    }

    /// Whoever asks next is not answered from here, nor with what was asked before.
    pub(super) fn forget(&self, name: Name, kind: RecordType) {
        let now = Instant::now();
        let nothing = Kept { answer: Err(ResolveError::NotFound), asked: now, until: now };
        put(&mut self.kept.lock(), (name, kind), nothing, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_what_has_ended_goes_first() {
        let name = |i: usize| Name::from_ascii(format!("{i}.test.")).unwrap();
        let keep =
            |cache: &Cache, i: usize| cache.keep(name(i), RecordType::A, &Err(ResolveError::NotFound), Instant::now());
        let len = |cache: &Cache| cache.kept.lock().len();
        let cache = Cache::new(Duration::from_secs(3600));
        (0..MOST).for_each(|i| keep(&cache, i));
        assert_eq!((len(&cache), cache.holding(&name(0), RecordType::A).is_some()), (MOST, true));
        keep(&cache, MOST);
        assert_eq!((len(&cache), cache.holding(&name(MOST), RecordType::A).is_some()), (1, true));
        let brief = Cache::new(Duration::ZERO);
        brief.kept.lock().insert(
            (name(MOST), RecordType::A),
            Kept {
                answer: Err(ResolveError::NotFound),
                asked: Instant::now(),
                until: Instant::now() + Duration::from_secs(3600),
            },
        );
        (0..MOST).for_each(|i| keep(&brief, i));
        assert!(brief.holding(&name(MOST), RecordType::A).is_some(), "it has not ended");
        assert!(brief.holding(&name(1), RecordType::A).is_none());
        // A failure is no answer.
        cache.keep(name(1), RecordType::A, &Err(ResolveError::Timeout), Instant::now());
        assert!(cache.holding(&name(1), RecordType::A).is_none());
    }

    #[test]
    fn an_answer_that_comes_late_hides_no_newer_one() {
        let name = || Name::from_ascii("a.test.").unwrap();
        let cache = Cache::new(Duration::from_secs(3600));
        let (before, now) = (Instant::now(), Instant::now() + Duration::from_nanos(1));
        let keep = |answer: ResolveError, asked| cache.keep(name(), RecordType::A, &Err(answer), asked);
        for (answer, asked, want) in [
            (ResolveError::NotFound, now, ResolveError::NotFound),
            (ResolveError::NoRecords, before, ResolveError::NotFound),
            // Control.
            (ResolveError::NoRecords, now, ResolveError::NoRecords),
        ] {
            keep(answer, asked);
            assert_eq!(cache.holding(&name(), RecordType::A).unwrap().unwrap_err(), want);
        }
        // Nor one that was asked for before it was forgotten.
        cache.forget(name(), RecordType::A);
        keep(ResolveError::NotFound, before);
        assert!(cache.holding(&name(), RecordType::A).is_none());
        keep(ResolveError::NotFound, Instant::now());
        assert!(cache.holding(&name(), RecordType::A).is_some(), "the control");
        // And none beside a newer one that has ended.
        let brief = Cache::new(Duration::ZERO);
        brief.keep(name(), RecordType::A, &Err(ResolveError::NotFound), now);
        let brief = Cache { negative_ttl: Duration::from_secs(3600), ..brief };
        brief.keep(name(), RecordType::A, &Err(ResolveError::NoRecords), before);
        assert!(brief.holding(&name(), RecordType::A).is_none());
    }
}
