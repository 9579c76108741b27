//! Request bodies: what is kept of them, and who was given what.

use std::convert::Infallible;

use futures_util::stream;
use http_body_util::StreamBody;

use super::*;

#[test]
fn a_body_of_endless_empty_chunks_is_not_read_ahead_for_ever() {
    let empty = stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::new())));
    let payload = Payload::new(StreamBody::new(empty), 1024);
    payload.read_ahead();
    assert!(!payload.is_at_hand());
    // The control: what ends is at hand then, and what is larger than the limit is not copied.
    let chunks = stream::iter((0..4).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 300])))));
    let payload = Payload::new(StreamBody::new(chunks), 1200);
    payload.read_ahead();
    assert_eq!((payload.copy(1200).is_some(), payload.copy(1199).is_some()), (true, false));
}

#[tokio::test]
async fn a_message_is_at_hand_with_its_end_and_one_beyond_the_limit_is_not_kept() {
    let payload = |bytes: usize, frames: usize| {
        let frame = move |_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; bytes])));
        Payload::new(StreamBody::new(stream::iter((0..frames).map(frame))), 1024)
    };
    // Bytes of a frame, frames; whether the last comes with the end, and whether it can be sent again afterwards.
    for (bytes, frames, ends, again) in
        [(100, 1, true, true), (100, 5, false, true), (1024, 1, true, true), (1025, 1, false, false)]
    {
        let payload = payload(bytes, frames);
        let mut body = payload.body();
        body.look_ahead();
        let mut sent = 0;
        while let Some(frame) = body.frame().await {
            sent += frame.unwrap().into_data().unwrap().len();
            assert_eq!(body.is_end_stream(), ends, "{frames} of {bytes}");
        }
        assert_eq!((sent, payload.can_be_sent_again()), (bytes * frames, again), "{frames} of {bytes}");
    }
}

/// A body that says with its last chunk that it was the last.
fn chunks(sizes: &'static [usize]) -> Payload {
    struct Chunks(&'static [usize]);

    impl HttpBody for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let Some((first, rest)) = self.0.split_first() else { return Poll::Ready(None) };
            self.0 = rest;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; *first])))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    Payload::new(Chunks(sizes), 1024)
}

fn kept(payload: &Payload) -> usize {
    let Payload::Stream(stream) = payload else { unreachable!("it is one") };
    stream.body.lock().sent.iter().map(Bytes::len).sum()
}

#[tokio::test]
async fn what_is_read_ahead_beyond_the_limit_is_not_at_hand_and_goes_out_once() {
    for (sizes, at_hand) in [(&[1000, 4096][..], false), (&[1000, 24], true)] {
        let payload = chunks(sizes);
        payload.read_ahead();
        assert_eq!(payload.is_at_hand(), at_hand, "{sizes:?}: nobody is to read it side by side");
        // An earlier try has not gone as far as that; the next one takes over.
        let mut earlier = payload.body();
        assert_eq!(earlier.frame().await.unwrap().unwrap().into_data().unwrap().len(), 1000);
        assert!(payload.rewind());
        assert_eq!(earlier.frame().await.unwrap().is_ok(), at_hand, "{sizes:?}");
        let mut later = payload.body();
        let mut sent = 0;
        while let Some(frame) = later.frame().await {
            sent += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!((sent, kept(&payload)), (sizes.iter().sum(), if at_hand { 1024 } else { 0 }));
        assert_eq!((payload.rewind(), payload.can_be_sent_again()), (at_hand, at_hand));
    }
}

#[tokio::test]
async fn what_was_read_ahead_is_sent_when_it_has_been_given() {
    let trailing = StreamBody::new(stream::iter([
        Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"a"))),
        Ok(Frame::trailers(HeaderMap::new())),
    ]));
    for (payload, frames) in [
        (chunks(&[1000, 24]), 2),
        (chunks(&[1000, 4096]), 2),
        (chunks(&[2000]), 1),
        (Payload::new(trailing, 1024), 2),
        (chunks(&[]), 0),
    ] {
        payload.read_ahead();
        for _ in 0..if payload.is_at_hand() { 2 } else { 1 } {
            let (receipt, mut body) = (payload.receipt(), payload.body());
            for frame in 0..frames {
                assert!(!receipt.is_sent() && !body.is_end_stream(), "{frame} of {frames} were given");
                body.frame().await.unwrap().unwrap();
            }
            assert!(receipt.is_sent() && body.is_end_stream() && body.frame().await.is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_in_memory_move_slice_by_slice_where_somebody_looks() {
    let bytes = Bytes::from(vec![b'x'; 2 * SLICE + 1]);
    let payload = Payload::new(Full::new(bytes.clone()), 1024);
    // Without, they go as they are.
    assert_eq!(payload.body().frame().await.unwrap().unwrap().into_data().unwrap(), bytes);
    payload.watch();
    let (mut body, receipt) = (payload.body(), payload.receipt());
    assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
    let mut sent = Vec::new();
    while let Some(frame) = {
        assert_eq!(receipt.is_sent(), sent.len() == bytes.len());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        body.frame().await
    } {
        sent.extend_from_slice(&frame.unwrap().into_data().unwrap());
        assert_eq!((payload.moved(), receipt.moved()), (Some(Instant::now()), Some(Instant::now())));
    }
    assert_eq!((sent.len(), body.is_end_stream()), (bytes.len(), true));
}

#[tokio::test]
async fn of_a_body_without_an_end_of_empty_chunks_nothing_is_kept() {
    let chunks = |data: &'static [u8]| {
        let frame = move || Ok::<_, Infallible>(Frame::data(Bytes::from_static(data)));
        Payload::new(StreamBody::new(stream::repeat_with(frame)), usize::MAX)
    };
    let pieces = |payload: &Payload| {
        let Payload::Stream(stream) = payload else { unreachable!("it is one") };
        stream.body.lock().sent.len()
    };
    let (empty, full) = (chunks(b""), chunks(b"x"));
    let mut bodies = (empty.body(), full.body());
    for _ in 0..100_000 {
        bodies.0.frame().await.unwrap().unwrap();
        bodies.1.frame().await.unwrap().unwrap();
    }
    assert_eq!((pieces(&empty), pieces(&full)), (0, 100_000), "the control: what has bytes is kept");
}

#[tokio::test]
async fn what_was_kept_for_another_try_is_let_go_once_there_is_none() {
    // Given before it stands; then, whether that was all.
    for (given, all) in [(0, false), (1, false), (2, false), (3, true)] {
        for ahead in [false, true] {
            let payload = chunks(&[500, 300, 200]);
            if ahead {
                payload.read_ahead();
            }
            let (receipt, mut body) = (payload.receipt(), payload.body());
            let mut sent = 0;
            for _ in 0..given {
                sent += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            assert_eq!((receipt.is_sent(), kept(&payload)), (all, if ahead { 1000 } else { sent }), "the control");
            receipt.stands();
            if all {
                assert_eq!(kept(&payload), 0, "at once, for nobody comes back to it");
            }
            while let Some(frame) = body.frame().await {
                sent += frame.unwrap().into_data().unwrap().len();
            }
            assert_eq!((sent, receipt.is_sent(), body.is_end_stream()), (1000, true, true), "it goes on as it was");
            assert_eq!((kept(&payload), payload.rewind()), (0, false));
        }
    }
}

#[tokio::test]
async fn who_is_cut_off_by_what_was_let_go_is_told_so() {
    let payload = chunks(&[500, 300, 200]);
    payload.read_ahead();
    let mut other = payload.body();
    let (receipt, mut body) = (payload.receipt(), payload.body());
    other.frame().await.unwrap().unwrap();
    for _ in 0..3 {
        body.frame().await.unwrap().unwrap();
    }
    receipt.stands();
    assert!(!other.is_end_stream() && other.frame().await.unwrap().is_err(), "that is not the end");
    assert!(body.is_end_stream() && body.frame().await.is_none());
}

/// They are side by side where all of it is kept: who is done with it does not take it from who is answered.
#[tokio::test]
async fn a_try_that_is_given_all_leaves_what_is_kept_to_the_one_that_stands() {
    let payload = chunks(&[500, 300]);
    payload.read_ahead();
    let mut other = payload.body();
    let (receipt, mut body) = (payload.receipt(), payload.body());
    receipt.stands();
    while other.frame().await.is_some() {}
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, 800);
    assert_eq!((kept(&payload), receipt.is_sent()), (0, true), "the control: it was the last");
}

#[tokio::test]
async fn of_tries_side_by_side_each_knows_whether_it_was_given_all() {
    let payload = chunks(&[500, 300]);
    payload.read_ahead();
    let mut tries = Vec::new();
    for _ in 0..200 {
        tries.push((payload.receipt(), payload.body()));
    }
    // Those that are told apart: more are not under way at once.
    let mut tries = tries.split_off(200 - usize::from(TRIES));
    for odd in tries.iter_mut().skip(1).step_by(2) {
        odd.1.frame().await.unwrap().unwrap();
        odd.1.frame().await.unwrap().unwrap();
    }
    for (number, (receipt, _)) in tries.iter().enumerate() {
        assert_eq!(receipt.is_sent(), number % 2 == 1, "{number}");
    }
    // A copy is another request's.
    let copy = payload.copy(1024).unwrap();
    let (receipt, mut body) = (copy.receipt(), copy.body());
    assert_eq!((receipt.is_sent(), tries[0].0.is_sent()), (false, false));
    while body.frame().await.is_some() {}
    assert_eq!((receipt.is_sent(), tries[0].0.is_sent()), (true, false));
}

/// Otherwise a body that has its own answer would hold itself: what waits for the answer's end holds what it asks.
#[tokio::test]
async fn a_body_that_nobody_reads_any_more_is_dropped_though_its_receipt_is_not() {
    let payload = |held: Arc<()>| {
        let frames = stream::repeat_with(move || {
            let _ = &held;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
        });
        Payload::new(StreamBody::new(frames), 1024)
    };
    for answered_first in [true, false] {
        let held = Arc::new(());
        let payload = payload(held.clone());
        // Of a try before it the end may be late.
        let earlier = payload.body();
        assert!(payload.rewind());
        let (receipt, mut body) = (payload.receipt(), payload.body());
        body.frame().await.unwrap().unwrap();
        if answered_first {
            receipt.stands();
            drop(earlier);
            assert_eq!(Arc::strong_count(&held), 2, "the control: it is read");
            body.frame().await.unwrap().unwrap();
            drop(body);
        } else {
            drop((earlier, body));
            assert_eq!(Arc::strong_count(&held), 2, "the control: there may be another try");
            receipt.stands();
        }
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(!receipt.is_sent());
    }
}
