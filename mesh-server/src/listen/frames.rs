//! Counts the control frames of an HTTP/2 connection as its bytes come in: PING, SETTINGS, PRIORITY and what is unknown
//! cost their sender nothing, carry no request, and nothing else bounds their number.
//!
//! A peer that downloads may ping with every round trip to measure the way (gRPC does), so frames count only while this
//! side writes hardly more than the answers to them. Refuses to know what frames say.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// What has been seen of the frames of one connection. Begins after the preface.
pub(crate) struct Frames {
    limit: u32,
    // Bytes of a payload that are still to come.
    rest: usize,
    head: [u8; HEAD],
    filled: usize,
    counted: u32,
    written: u64,
    since: Instant,
    told: Option<Box<dyn FnOnce() + Send>>,
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
    /// At most `limit` control frames a second; `told` is called for the first one beyond.
    pub(crate) fn new(limit: u32, told: Box<dyn FnOnce() + Send>) -> Self {
        let since = Instant::now();
        Self { limit, rest: 0, head: [0; HEAD], filled: 0, counted: 0, written: 0, since, told: Some(told) }
    }

    /// Bytes that were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Bytes that have come.
    ///
    /// # Errors
    /// There are more control frames in them than allowed.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let now = self.rest.min(bytes.len());
                self.rest -= now;
                bytes = &bytes[now..];
                continue;
            }
            let now = (HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + now].copy_from_slice(&bytes[..now]);
            self.filled += now;
            bytes = &bytes[now..];
            if self.filled == HEAD {
                self.filled = 0;
                self.rest = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                if is_control(self.head[3]) {
                    self.count()?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self) -> io::Result<()> {
        self.counted += 1;
        if self.counted <= self.limit {
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

/// All but DATA, HEADERS, RST_STREAM, WINDOW_UPDATE and CONTINUATION, which have limits of their own or carry what was
/// asked for.
fn is_control(kind: u8) -> bool {
    !matches!(kind, 0 | 1 | 3 | 8 | 9)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use mesh_testkit::clock;

    use super::*;

    fn frames(kind: u8, length: u8, times: usize) -> Vec<u8> {
        let one = [&[0, 0, length, kind, 0, 0, 0, 0, 0][..], &vec![PING; length.into()]].concat();
        one.repeat(times)
    }

    const PING: u8 = 6;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_more_than_the_limit_in_a_second_however_its_bytes_come() {
        for piece in [1, 7, 9, 17, 1 << 20] {
            let told = Arc::new(AtomicUsize::new(0));
            let tell = told.clone();
            let mut seen = Frames::new(
                100,
                Box::new(move || {
                    tell.fetch_add(1, Ordering::Relaxed);
                }),
            );
            let mut see = |bytes: &[u8]| bytes.chunks(piece).try_for_each(|piece| seen.see(piece));
            assert!(see(&frames(PING, 8, 100)).is_ok(), "{piece}");
            // Frames with which requests are made count for nothing, nor does what is in them.
            for kind in [0, 1, 3, 8, 9] {
                assert!(see(&frames(kind, 200, 1000)).is_ok(), "{piece}");
            }
            assert_eq!(told.load(Ordering::Relaxed), 0);
            assert!(see(&frames(PING, 8, 1)).is_err(), "{piece}");
            assert_eq!(told.load(Ordering::Relaxed), 1);
        }
        for kind in [2, 4, 5, 7, 16, 99] {
            assert!(Frames::new(10, Box::new(|| {})).see(&frames(kind, 0, 11)).is_err(), "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_its_time_or_comes_with_a_download_is_no_flood() {
        let mut slow = Frames::new(10, Box::new(|| {}));
        for _ in 0..100 {
            assert!(slow.see(&frames(PING, 8, 10)).is_ok());
            clock::pass(WINDOW).await;
        }
        let mut downloading = Frames::new(10, Box::new(|| {}));
        for _ in 0..1000 {
            assert!(downloading.see(&frames(PING, 8, 1)).is_ok());
            downloading.wrote(17 + 9 + 30);
        }
        let mut answered = Frames::new(10, Box::new(|| {}));
        let all = (0..1000).try_for_each(|_| {
            answered.wrote(17);
            answered.see(&frames(PING, 8, 1))
        });
        assert!(all.is_err(), "answers alone are no download");
    }
}
