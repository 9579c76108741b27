//! What the peer of an HTTP/2 connection says of it, read off the frames as they pass by: how many streams it takes at once,
//! and that it is leaving. The HTTP library keeps to both and tells neither before the next request.
//!
//! Refuses to know what else is in the stream: of other frames it reads the heads, to find their ends.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::IoStream;
use super::pool::{Counts, Stands};

/// Until the peer has spoken: what RFC 9113 recommends as the least (section 6.5.2), and h2 begins with.
const AT_FIRST: u32 = 100;
/// Length, type, flags and stream of a frame.
const HEAD: usize = 9;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const MAX_CONCURRENT_STREAMS: u16 = 3;
/// Settings beyond this are not looked into. Peers send some forty bytes.
const LONGEST: usize = 1024;

/// What is known of one connection.
#[derive(Debug)]
pub(super) struct Said {
    streams: AtomicU32,
    over: AtomicBool,
    // It has spoken HTTP/2.
    spoken: AtomicBool,
    // Who opens the connection and waits for that; afterwards one who waits for its end.
    waiter: AtomicWaker,
    // Why nothing came before that. h2 keeps but the text of such an error.
    failed: Mutex<Option<io::Error>>,
    began: Instant,
    // Milliseconds after that; for those who ask, as it takes a look at the clock.
    heard: Option<AtomicU64>,
}

impl Said {
    fn new(hears: bool) -> Self {
        let (streams, over, spoken) = (AtomicU32::new(AT_FIRST), AtomicBool::new(false), AtomicBool::new(false));
        let (waiter, failed) = (AtomicWaker::new(), Mutex::default());
        let (began, heard) = (Instant::now(), hears.then(AtomicU64::default));
        Self { streams, over, spoken, waiter, failed, began, heard }
    }

    /// Streams that it takes at once, as of the last frame that was read. Ordered with the count of those who wait: see
    /// [`Counts::made_room`].
    pub(super) fn streams(&self) -> u32 {
        self.streams.load(Ordering::SeqCst)
    }

    /// Whether it takes no further stream, whatever becomes of those open: it is gone, or the peer is leaving. Ordered with the
    /// count of those who wait, too.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// It takes no further stream.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.waiter.wake();
    }

    fn speaks(&self) {
        self.spoken.store(true, Ordering::Release);
        self.waiter.wake();
    }

    /// Waits until it takes no further stream. One may wait at a time, and nobody while it has not spoken.
    pub(super) async fn ends(&self) {
        poll_fn(|cx| {
            self.waiter.register(cx.waker());
            if self.is_over() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await
    }

    /// Waits until the peer has sent its SETTINGS.
    ///
    /// # Errors
    /// The connection is over, and it has not: why.
    pub(super) async fn has_spoken(&self) -> io::Result<()> {
        poll_fn(|cx| {
            self.waiter.register(cx.waker());
            // That it ended is looked at first: what came before the end counts.
            let over = self.is_over();
            match self.spoken.load(Ordering::Acquire) {
                true => Poll::Ready(Ok(())),
                false if over => Poll::Ready(Err(self.failed.lock().take().unwrap_or_else(|| {
                    io::Error::other("the connection was closed before the peer had spoken HTTP/2")
                }))),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// The same error twice: for who waits, with what it is made of, and for the HTTP library, which looks at its kind.
    fn fail(&self, error: io::Error) -> io::Error {
        if self.spoken.load(Ordering::Relaxed) {
            return error;
        }
        let same = io::Error::new(error.kind(), error.to_string());
        *self.failed.lock() = Some(error);
        same
    }

    /// When last something came, to the millisecond.
    pub(super) fn heard(&self) -> Instant {
        let after = self.heard.as_ref().map_or(0, |heard| heard.load(Ordering::Relaxed));
        self.began + Duration::from_millis(after)
    }

    fn hear(&self) {
        if let Some(heard) = &self.heard {
            let after = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            heard.store(after, Ordering::Relaxed);
        }
    }
}

/// A stream whose frames are looked at while it is read.
pub(super) struct Observed {
    io: IoStream,
    watch: Watch,
}

struct Watch {
    said: Arc<Said>,
    // Those who would like to have a stream.
    waiters: Arc<Counts>,
    head: [u8; HEAD],
    filled: usize,
    // Of the payload of the frame whose head came last.
    rest: usize,
    // That payload, if it is to be read.
    settings: Option<SmallVec<[u8; 48]>>,
    // Whether the peer has spoken, which makes the difference to a limit that it does not name.
    begun: bool,
    // It does not speak HTTP/2: whoever reads it finds out.
    lost: bool,
    // From its first word until it says that it is leaving.
    stands: Option<Stands>,
}

impl Observed {
    /// Looks at `io`, and what is said there as it becomes known; when, if `hears`. `waiters` are told of a higher limit.
    pub(super) fn new(io: IoStream, waiters: Arc<Counts>, hears: bool) -> (Self, Arc<Said>) {
        let said = Arc::new(Said::new(hears));
        (Self { io, watch: Watch::new(said.clone(), waiters) }, said)
    }
}

impl Watch {
    fn new(said: Arc<Said>, waiters: Arc<Counts>) -> Self {
        let (head, filled, rest, settings) = ([0; HEAD], 0, 0, None);
        Self { said, waiters, head, filled, rest, settings, begun: false, lost: false, stands: None }
    }

    /// It speaks HTTP/2.
    fn speaks(&mut self) {
        self.stands = Some(Stands::new(self.waiters.clone()));
        self.said.speaks();
    }

    /// Takes further bytes.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            let missing = if self.rest > 0 { self.rest } else { HEAD - self.filled };
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            if self.rest > 0 {
                self.rest -= now.len();
                self.settings.iter_mut().for_each(|settings| settings.extend_from_slice(now));
            } else {
                self.head[self.filled..self.filled + now.len()].copy_from_slice(now);
                self.filled += now.len();
                if self.filled < HEAD {
                    return;
                }
                self.begin();
            }
            if self.rest == 0
                && let Some(settings) = self.settings.take()
            {
                self.learn(&settings);
            }
        }
    }

    /// A head is whole.
    fn begin(&mut self) {
        self.filled = 0;
        self.rest = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
        let (kind, flags) = (self.head[3], self.head[4]);
        // The first frame is one of SETTINGS (RFC 9113, section 3.4).
        self.lost = !self.begun && (kind != SETTINGS || self.rest > LONGEST);
        if self.lost && kind == SETTINGS {
            // More than is looked into is HTTP/2 all the same, for all that is known here.
            self.speaks();
        }
        let acknowledges = flags & 1 == 1;
        if kind == GOAWAY && !self.lost {
            self.stands = None;
            self.said.end();
            // There will be no more room here, and may be for another connection.
            self.waiters.made_room();
        }
        if kind == SETTINGS && !acknowledges && self.rest <= LONGEST {
            self.settings = Some(SmallVec::new());
        }
    }

    /// The peer has set something.
    fn learn(&mut self, settings: &[u8]) {
        let first = !std::mem::replace(&mut self.begun, true);
        let limit = settings.chunks_exact(6).rfind(|entry| entry[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
        let limit = match limit.map(|entry| u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]])) {
            // A new connection that takes nothing would be made again and again; the HTTP library keeps to it.
            Some(0) if first => AT_FIRST,
            Some(limit) => limit,
            None if first => u32::MAX,
            None => return,
        };
        if limit > self.said.streams.swap(limit, Ordering::SeqCst) {
            self.waiters.made_room();
        }
        if first {
            self.speaks();
        }
    }
}

impl AsyncRead for Observed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        let bytes = &buf.filled()[before..];
        if !bytes.is_empty() {
            this.watch.said.hear();
            this.watch.take(bytes);
        }
        polled.map_err(|error| this.watch.said.fail(error))
    }
}

impl AsyncWrite for Observed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A frame of SETTINGS.
    fn frame(settings: &[(u16, u32)]) -> Vec<u8> {
        let length = u8::try_from(settings.len() * 6).unwrap();
        let entries = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        [0, 0, length, SETTINGS, 0, 0, 0, 0, 0].into_iter().chain(entries).collect()
    }

    fn streams(most: u32) -> Vec<u8> {
        frame(&[(MAX_CONCURRENT_STREAMS, most)])
    }

    /// The limit after these bytes, given piece by piece.
    fn learned(bytes: &[u8], piece: usize) -> u32 {
        watched(bytes, piece).streams()
    }

    fn watched(bytes: &[u8], piece: usize) -> Arc<Said> {
        let said = Arc::new(Said::new(false));
        let mut watch = Watch::new(said.clone(), Arc::default());
        bytes.chunks(piece).for_each(|piece| watch.take(piece));
        said
    }

    #[test]
    fn a_peer_has_spoken_with_its_settings_and_with_nothing_else() {
        let many = [&[0, 4, 2, SETTINGS, 0, 0, 0, 0, 0][..], &[0; 1026]].concat();
        let alert = vec![21, 3, 3, 0, 2, 2, 70, 21, 3, 3, 0, 2, 1, 0];
        for (bytes, spoken) in [
            (frame(&[]), true),
            (streams(3), true),
            (many, true),
            (streams(3)[..12].to_vec(), false),
            (vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0], false),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), false),
            (alert, false),
        ] {
            for piece in [1, 4096] {
                let said = watched(&bytes, piece);
                let heard = || said.has_spoken().now_or_never().map(|heard| heard.is_ok());
                assert_eq!(heard(), spoken.then_some(true), "{bytes:?}");
                // What came before the end counts.
                said.end();
                assert_eq!(heard(), Some(spoken), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_limit_is_the_last_that_was_set_however_the_bytes_are_cut() {
        let data = [&[0, 0, 40, 0, 0, 0, 0, 0, 1][..], &streams(1), &[0; 25]].concat();
        let acknowledged = [0, 0, 0, SETTINGS, 1, 0, 0, 0, 0];
        let first = frame(&[(1, 0), (MAX_CONCURRENT_STREAMS, 7), (4, 65_535)]);
        let bytes = [&first[..], &acknowledged, &data, &streams(3), &data, &frame(&[(4, 1)]), &frame(&[])].concat();
        for piece in 1..=bytes.len() {
            assert_eq!(learned(&bytes, piece), 3, "in pieces of {piece}");
        }
        assert_eq!(learned(&first, 5), 7);
        assert_eq!(learned(&first[..first.len() - 1], 5), AT_FIRST, "it is not complete");
        assert_eq!(learned(&[&first[..], &streams(200)].concat(), 64), 200, "it may rise as well");
    }

    #[test]
    fn at_first_a_missing_limit_is_none_and_zero_is_not_believed() {
        assert_eq!(learned(&frame(&[]), 64), u32::MAX);
        assert_eq!(learned(&streams(0), 64), AT_FIRST);
        assert_eq!(learned(&[streams(5), streams(0)].concat(), 64), 0, "later it is");
        let twice = frame(&[(MAX_CONCURRENT_STREAMS, 9), (MAX_CONCURRENT_STREAMS, 5)]);
        assert_eq!(learned(&twice, 64), 5, "the last one counts");
    }

    #[test]
    fn a_peer_that_is_leaving_is_known_by_its_goaway() {
        let goaway = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 127, 255, 255, 255, 0, 0, 0, 0];
        let within = [&[0, 0, 17, 0, 0, 0, 0, 0, 1][..], &goaway].concat();
        for piece in 1..30 {
            assert!(watched(&[&streams(3)[..], &within, &goaway].concat(), piece).is_over());
            assert!(!watched(&[&streams(3)[..], &within].concat(), piece).is_over(), "bytes of a body are none");
        }
        assert!(!watched(&goaway, 64).is_over(), "this is not HTTP/2");
    }

    #[test]
    fn what_does_not_begin_with_settings_is_not_looked_at() {
        assert_eq!(learned(b"HTTP/1.1 400 Bad Request\r\n", 64), AT_FIRST);
        assert_eq!(learned(&[&[0, 0, 0, 6, 0, 0, 0, 0, 0][..], &streams(7)].concat(), 64), AT_FIRST);
        let mut long = frame(&[]);
        long[0] = 1;
        assert_eq!(learned(&long, 64), AT_FIRST);
    }
}
