//! How many streams the peer of an HTTP/2 connection takes at once, read off the first frame that it sends, which
//! is a SETTINGS frame (RFC 9113, section 3.4): hyper keeps to the limit and does not tell it.
//!
//! Refuses to know what else is in the stream, and looks at nothing after that frame.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::IoStream;

/// Until the peer has spoken: what RFC 9113 recommends as the least (section 6.5.2), and h2 begins with.
const AT_FIRST: u32 = 100;
/// Length, type, flags and stream of a frame.
const HEAD: usize = 9;
const SETTINGS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
/// A first frame beyond this is not looked into. Peers send some forty bytes.
const LONGEST: usize = 1024;

/// Streams that one connection takes at once.
#[derive(Clone, Debug)]
pub(crate) struct StreamLimit(Arc<AtomicU32>);

impl StreamLimit {
    fn new() -> Self {
        Self(Arc::new(AtomicU32::new(AT_FIRST)))
    }

    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream whose first frame is looked at while it is read. A limit that the peer changes later is not noticed here: the
/// HTTP library keeps to it, and requests beyond a lowered one wait for a stream instead of for another connection.
pub(super) struct Observed {
    io: IoStream,
    // Gone once the frame has been seen.
    watch: Option<Box<Watch>>,
}

struct Watch {
    limit: StreamLimit,
    seen: SmallVec<[u8; 64]>,
}

impl Observed {
    /// Looks at `io`, and the limit as it becomes known.
    pub(super) fn new(io: IoStream) -> (Self, StreamLimit) {
        let limit = StreamLimit::new();
        let watch = Watch { limit: limit.clone(), seen: SmallVec::new() };
        (Self { io, watch: Some(Box::new(watch)) }, limit)
    }
}

impl Watch {
    /// Takes further bytes. True once there is nothing more to learn.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.seen.extend_from_slice(bytes);
        if self.seen.len() < HEAD {
            return false;
        }
        let length = u32::from_be_bytes([0, self.seen[0], self.seen[1], self.seen[2]]) as usize;
        // Not HTTP/2: whoever reads it finds out.
        if self.seen[3] != SETTINGS || length > LONGEST {
            return true;
        }
        let Some(settings) = self.seen.get(HEAD..HEAD + length) else { return false };
        let limit = settings.chunks_exact(6).rfind(|entry| entry[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
        // Without the setting there is no limit.
        let limit = limit.map_or(u32::MAX, |entry| u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]));
        // 0 is for moments (section 6.5.2): what follows is not seen here, and the HTTP library keeps to it.
        self.limit.0.store(if limit == 0 { AT_FIRST } else { limit }, Ordering::Relaxed);
        true
    }
}

impl AsyncRead for Observed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if let Some(watch) = &mut this.watch
            && watch.take(&buf.filled()[before..])
        {
            this.watch = None;
        }
        polled
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
    use super::*;

    /// A SETTINGS frame.
    fn frame(settings: &[(u16, u32)]) -> Vec<u8> {
        let length = u8::try_from(settings.len() * 6).unwrap();
        let entries = settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        [0, 0, length, SETTINGS, 0, 0, 0, 0, 0].into_iter().chain(entries).collect()
    }

    /// The limit after these bytes, given piece by piece, and whether the watch is over.
    fn learned(bytes: &[u8], piece: usize) -> (u32, bool) {
        let mut watch = Watch { limit: StreamLimit::new(), seen: SmallVec::new() };
        let done = bytes.chunks(piece).map(|piece| watch.take(piece)).collect::<Vec<_>>();
        (watch.limit.get(), done.contains(&true))
    }

    #[test]
    fn the_first_frame_tells_the_limit_however_it_is_cut() {
        let bytes = frame(&[(1, 0), (MAX_CONCURRENT_STREAMS, 7), (4, 65_535)]);
        for piece in 1..=bytes.len() {
            assert_eq!(learned(&bytes, piece), (7, true), "in pieces of {piece}");
        }
        assert_eq!(learned(&bytes[..bytes.len() - 1], 5), (AT_FIRST, false), "it is not complete");
    }

    #[test]
    fn without_the_setting_there_is_no_limit_and_zero_is_not_believed_for_long() {
        assert_eq!(learned(&frame(&[]), 64), (u32::MAX, true));
        assert_eq!(learned(&frame(&[(MAX_CONCURRENT_STREAMS, 0)]), 64), (AT_FIRST, true));
        let twice = frame(&[(MAX_CONCURRENT_STREAMS, 9), (MAX_CONCURRENT_STREAMS, 5)]);
        assert_eq!(learned(&twice, 64), (5, true), "the last one counts");
    }

    #[test]
    fn what_is_not_a_settings_frame_ends_the_watch() {
        assert_eq!(learned(b"HTTP/1.1 400 Bad Request\r\n", 64), (AT_FIRST, true));
        let mut long = frame(&[]);
        long[0] = 1;
        assert_eq!(learned(&long, 64), (AT_FIRST, true));
    }
}
