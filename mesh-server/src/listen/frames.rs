//! Counts the control frames of an HTTP/2 connection as its bytes come in: PING, SETTINGS, PRIORITY, WINDOW_UPDATE and what
//! is unknown cost their sender nothing, carry no request, and nothing else bounds their number. RST_STREAM is one of them: it
//! makes room for another request whose work is thrown away.
//!
//! A peer that downloads opens windows, and may ping with every round trip to measure the way (gRPC does), so frames count
//! only while this side writes hardly more than the answers to them.
//!
//! And it knows when a head has begun and is not whole: nothing else can come meanwhile, an answer to a ping neither, so
//! its time is limited. And where a frame of this side's ends, so that a flood can be answered with a last one (GOAWAY).
//! Refuses to know what frames say.

use std::fmt;
use std::io;
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use super::head::HeadTime;

/// What has been seen of the frames of one connection. Begins after the preface.
pub(crate) struct Frames {
    limit: Option<u32>,
    time: HeadTime,
    // Further frames of a header block must come.
    open: bool,
    read: Place,
    sent: Place,
    // The highest stream that has had a head: trailers of one before it may come after.
    last: [u8; 4],
    counted: u32,
    written: u64,
    since: Instant,
    told: Option<Box<dyn FnOnce() + Send>>,
}

/// Where one direction is among its frames.
#[derive(Default)]
struct Place {
    head: [u8; HEAD],
    // Bytes of the head that are there; none = it is whole.
    filled: usize,
    // Bytes of a payload that are still to come.
    rest: usize,
}

/// Length of a frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// The time in which frames are counted.
const WINDOW: Duration = Duration::from_secs(1);
/// Bytes that the answer to a frame takes at most, and a little more: that to a PING has 17.
const ANSWER: u64 = 20;

/// More control frames than allowed.
#[derive(Debug)]
struct Flood;

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many control frames")
    }
}

impl std::error::Error for Flood {}

impl Frames {
    /// At most `limit` control frames a second, `told` is called for the first one beyond; and `head_limit` for a head.
    pub(crate) fn new(limit: Option<u32>, head_limit: Duration, told: Box<dyn FnOnce() + Send>) -> Self {
        Self {
            limit,
            time: HeadTime::new(head_limit, None),
            open: false,
            read: Place::default(),
            sent: Place::default(),
            last: [0; 4],
            counted: 0,
            written: 0,
            since: Instant::now(),
            told: Some(told),
        }
    }

    /// More bytes are waited for.
    ///
    /// # Errors
    /// A head is not whole, and its time is over.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.time.wait(cx)
    }

    /// Bytes that were written.
    pub(super) fn wrote(&mut self, mut bytes: &[u8]) {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            self.sent.step(&mut bytes);
        }
    }

    /// A last word to who sent a flood: GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, section 6.8). `None` in the middle of
    /// another frame, which whoever does not read leaves unwritten.
    pub(super) fn farewell(&self) -> Option<[u8; HEAD + 8]> {
        let mut goaway = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ENHANCE_YOUR_CALM];
        goaway[HEAD..HEAD + 4].copy_from_slice(&self.last);
        (self.sent.filled == 0 && self.sent.rest == 0).then_some(goaway)
    }

    /// Bytes that have come.
    ///
    /// # Errors
    /// There are more control frames in them than allowed.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.read.step(&mut bytes) {
                let [_, _, _, kind, flags, mut stream @ ..] = self.read.head;
                if is_control(kind) {
                    self.count()?;
                }
                if is_head(kind) {
                    self.open = flags & END_HEADERS == 0;
                    stream[0] &= 0x7f;
                    self.last = self.last.max(stream);
                }
            }
            if self.read.filled == 0 {
                self.moves();
            }
        }
        let Place { head, filled, rest } = self.read;
        let in_head = self.open || filled > 0 || rest > 0 && is_head(head[3]);
        self.time.set(in_head);
        Ok(())
    }

    /// A head that came to its end has no time any more: what begins after it has its own.
    fn moves(&mut self) {
        if !self.open && (self.read.rest == 0 || !is_head(self.read.head[3])) {
            self.time.end();
        }
    }

    fn count(&mut self) -> io::Result<()> {
        self.counted = self.counted.saturating_add(1);
        if self.limit.is_none_or(|limit| self.counted <= limit) {
            return Ok(());
        }
        let now = Instant::now();
        let quick = now.saturating_duration_since(self.since) < WINDOW;
        if quick && self.written < u64::from(self.counted) * ANSWER {
            if let Some(told) = self.told.take() {
                told();
            }
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, Flood));
        }
        (self.counted, self.written, self.since) = (1, 0, now);
        Ok(())
    }
}

impl Place {
    /// Goes on by the rest of a payload or of a head, as far as it is there; whether a head has become whole.
    fn step(&mut self, bytes: &mut &[u8]) -> bool {
        if self.rest > 0 {
            let (_, more) = bytes.split_at(self.rest.min(bytes.len()));
            self.rest -= bytes.len() - more.len();
            *bytes = more;
            return false;
        }
        match bytes.split_first_chunk() {
            // Nearly always it is there as a whole.
            Some((head, more)) if self.filled == 0 => (self.head, *bytes) = (*head, more),
            _ => {
                let (now, more) = bytes.split_at((HEAD - self.filled).min(bytes.len()));
                self.head[self.filled..self.filled + now.len()].copy_from_slice(now);
                self.filled = (self.filled + now.len()) % HEAD;
                *bytes = more;
                if self.filled > 0 {
                    return false;
                }
            }
        }
        self.rest = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
        true
    }
}

/// The type and the code of the last frame.
const GOAWAY: u8 = 7;
const ENHANCE_YOUR_CALM: u8 = 11;
/// The flag of a block's last frame.
const END_HEADERS: u8 = 4;

/// HEADERS and CONTINUATION.
fn is_head(kind: u8) -> bool {
    matches!(kind, 1 | 9)
}

/// All but DATA, HEADERS and CONTINUATION, which have limits of their own. That of RST_STREAM knows no stream that was accepted
/// before it was reset.
fn is_control(kind: u8) -> bool {
    !matches!(kind, 0 | 1 | 9)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use mesh_testkit::clock;

    use super::*;

    fn frames(kind: u8, length: u8, times: usize) -> Vec<u8> {
        let one = [&[0, 0, length, kind, 0, 0, 0, 0, 0][..], &vec![PING; length.into()]].concat();
        one.repeat(times)
    }

    const PING: u8 = 6;
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_more_than_the_limit_in_a_second_however_its_bytes_come() {
        for piece in [1, 7, 9, 17, 1 << 20] {
            let told = Arc::new(AtomicUsize::new(0));
            let tell = told.clone();
            let mut seen = Frames::new(
                Some(100),
                LONG,
                Box::new(move || {
                    tell.fetch_add(1, Ordering::Relaxed);
                }),
            );
            let mut see = |bytes: &[u8]| bytes.chunks(piece).try_for_each(|piece| seen.see(piece));
            assert!(see(&frames(PING, 8, 100)).is_ok(), "{piece}");
            // Frames with which requests are made count for nothing, nor does what is in them.
            for kind in [0, 1, 9] {
                assert!(see(&frames(kind, 200, 1000)).is_ok(), "{piece}");
            }
            assert_eq!(told.load(Ordering::Relaxed), 0);
            assert!(see(&frames(PING, 8, 1)).is_err(), "{piece}");
            assert_eq!(told.load(Ordering::Relaxed), 1);
        }
        for kind in [2, 3, 4, 5, 7, 8, 16, 99] {
            assert!(Frames::new(Some(10), LONG, Box::new(|| {})).see(&frames(kind, 0, 11)).is_err(), "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_its_time_or_comes_with_a_download_is_no_flood() {
        let mut slow = Frames::new(Some(10), LONG, Box::new(|| {}));
        for _ in 0..100 {
            assert!(slow.see(&frames(PING, 8, 10)).is_ok());
            clock::pass(WINDOW).await;
        }
        let mut downloading = Frames::new(Some(10), LONG, Box::new(|| {}));
        for _ in 0..1000 {
            assert!(downloading.see(&frames(PING, 8, 1)).is_ok());
            downloading.wrote(&[frames(PING, 8, 1), frames(0, 30, 1)].concat());
        }
        let mut answered = Frames::new(Some(10), LONG, Box::new(|| {}));
        let all = (0..1000).try_for_each(|_| {
            answered.wrote(&frames(PING, 8, 1));
            answered.see(&frames(PING, 8, 1))
        });
        assert!(all.is_err(), "answers alone are no download");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_word_names_the_last_request_and_comes_between_two_frames_only() {
        let said = frames(0, 30, 2);
        for piece in [1, 8, 9, 10, 39, 78] {
            let mut seen = Frames::new(Some(3), LONG, Box::new(|| {}));
            for stream in [1, 5, 3] {
                // The last is the trailers of a request that began before.
                seen.see(&[0, 0, 0, 1, END_HEADERS, 0x80, 0, 0, stream, 0, 0, 0, 3, 0, 0, 0, 0, 7]).unwrap();
            }
            let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 11];
            let mut sent = 0;
            for piece in said.chunks(piece) {
                assert_eq!(seen.farewell(), (sent % 39 == 0).then_some(goaway), "{sent}");
                seen.wrote(piece);
                sent += piece.len();
            }
            assert_eq!(seen.farewell(), Some(goaway));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_limit_may_live_for_as_many_frames_as_it_likes() {
        let mut seen = Frames::new(None, LONG, Box::new(|| {}));
        seen.counted = u32::MAX - 1;
        assert!(seen.see(&frames(PING, 8, 3)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_not_whole_has_its_time_and_what_is_whole_waits_as_long_as_it_likes() {
        let limit = Duration::from_secs(10);
        let head = |kind: u8, flags: u8| [0, 0, 2, kind, flags, 0, 0, 0, 1, b'a', b'b'];
        let (headers, whole, last) = (head(1, 0), head(1, END_HEADERS), head(9, END_HEADERS));
        for (bytes, limited) in [
            (headers.to_vec(), true),
            ([headers, head(9, 0)].concat(), true),
            (whole[..10].to_vec(), true),
            (whole[..3].to_vec(), true),
            (whole.to_vec(), false),
            ([headers, last].concat(), false),
            // A body has a limit of its own.
            (head(0, 0)[..10].to_vec(), false),
        ] {
            let mut frames = Frames::new(None, limit, Box::new(|| {}));
            frames.see(&bytes).unwrap();
            let mut waits = async || std::future::poll_fn(|cx| Poll::Ready(frames.wait(cx))).await.is_ok();
            assert!(waits().await, "{bytes:?}");
            clock::pass(limit / 2).await;
            assert!(waits().await, "{bytes:?}");
            clock::pass(limit).await;
            assert_eq!(waits().await, !limited, "{bytes:?}");
        }
        // Each head has its own time, though what comes always ends within one.
        let mut frames = Frames::new(None, limit, Box::new(|| {}));
        for piece in whole.repeat(8).chunks(8) {
            frames.see(piece).unwrap();
            clock::pass(limit / 4).await;
            assert!(std::future::poll_fn(|cx| Poll::Ready(frames.wait(cx))).await.is_ok());
        }
        // Drop by drop is not in time either.
        let mut frames = Frames::new(None, limit, Box::new(|| {}));
        frames.see(&headers).unwrap();
        clock::pass(limit - Duration::from_secs(1)).await;
        frames.see(&head(9, 0)).unwrap();
        clock::pass(Duration::from_secs(1)).await;
        assert!(std::future::poll_fn(|cx| Poll::Ready(frames.wait(cx))).await.is_err());
    }
}
