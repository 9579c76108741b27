//! The request body on its way out: what the application gave, and what one try sends of it.
//!
//! A [`Payload`] can be sent again as long as nothing of it was lost: bodies in memory always, streams
//! up to a limit. Refuses to know why something is sent again.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use mesh_core::error::BoxError;

use crate::error::Source;

/// Chunks taken from the application before anybody asks for them, at most.
const MAX_AHEAD: usize = 64;
/// Frames of a body that is one message: its bytes, and its end.
const MESSAGE: usize = 2;
/// What is given at once of bytes in memory, where somebody asks how far they are.
const SLICE: usize = 64 * 1024;
/// Bytes that go out at once: less than the window that a stream begins with (RFC 9113, section 6.9.2).
pub(crate) const AT_ONCE: usize = 16 * 1024;

/// What the application gave.
pub(crate) enum Payload {
    /// Nothing.
    Empty,
    /// Bytes in memory: sent again by cloning a pointer.
    Full(Bytes, OnceLock<Arc<Mutex<Progress>>>),
    /// Anything else, with a buffer of what was already sent.
    Stream(Arc<Mutex<Stream>>),
}

/// How far bytes in memory have gone, where somebody asks.
pub(crate) struct Progress {
    moved: Instant,
    sent: bool,
}

/// A streaming body and what a further try needs of its beginning.
pub(crate) struct Stream {
    body: Inner,
    hint: SizeHint,
    sent: SmallVec<[Bytes; 2]>,
    sent_len: usize,
    limit: usize,
    // Something went out that is not in `sent` any more.
    lost: bool,
    // The last of `sent` is beyond the limit: it was only looked at, and is not kept when it has gone out.
    excess: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
    // The try that began last was given all of it.
    given: bool,
    // More of it was asked for, and is not there yet.
    waits: bool,
    // Which try may read: an older one that still holds the body is cut off.
    turn: u32,
    failed: Option<Source>,
    // When last something moved; `None` = nobody asks.
    moved: Option<Instant>,
}

enum Inner {
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
    // Kept as they are: both are boxes or small already.
    Tonic(tonic::body::Body),
    Response(super::Body),
}

/// The body of one try.
pub(crate) enum Outgoing {
    /// Nothing.
    Empty,
    /// Bytes in memory; slice by slice if somebody asks how far they are.
    Full(Option<Bytes>, Option<Arc<Mutex<Progress>>>),
    /// One reading of a stream, from its beginning.
    Stream {
        /// The stream, shared with other tries.
        stream: Arc<Mutex<Stream>>,
        /// Whose turn this is.
        turn: u32,
        /// Chunks of `sent` already given.
        at: usize,
        /// Bytes given.
        given: u64,
        /// Trailers given.
        done: bool,
    },
}

impl Payload {
    /// Takes a body. `limit` bytes of a stream are kept for a further try; 0 keeps none.
    pub(crate) fn new<B>(body: B, limit: usize) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::Empty;
        }
        let hint = body.size_hint();
        // The bodies that nearly everybody uses need no box.
        let body = match downcast::<B, Full<Bytes>>(body) {
            Ok(full) => return Self::Full(in_memory(full), OnceLock::new()),
            Err(other) => other,
        };
        let body = match downcast::<B, Empty<Bytes>>(body) {
            Ok(_) => return Self::Empty,
            Err(other) => other,
        };
        let body = match downcast::<B, tonic::body::Body>(body) {
            Ok(tonic) => Inner::Tonic(tonic),
            Err(other) => match downcast::<B, super::Body>(other) {
                Ok(response) => Inner::Response(response),
                Err(other) => Inner::Boxed(other.map_err(Into::into).boxed_unsync()),
            },
        };
        // What cannot fit is not buffered in the first place.
        let limit = if hint.lower() > limit as u64 { 0 } else { limit };
        let (sent, sent_len, lost, ended) = (SmallVec::new(), 0, false, false);
        let (trailers, turn, failed, moved) = (None, 0, None, None);
        Self::Stream(Arc::new(Mutex::new(Stream {
            body,
            hint,
            sent,
            sent_len,
            limit,
            lost,
            excess: false,
            ended,
            trailers,
            given: false,
            waits: false,
            turn,
            failed,
            moved,
        })))
    }

    /// The body of one try, from its beginning. Every try but the first needs a [`rewind`](Self::rewind).
    pub(crate) fn body(&self) -> Outgoing {
        match self {
            Self::Empty => Outgoing::Empty,
            Self::Full(bytes, watched) => {
                let watched = watched.get().cloned();
                if let Some(watched) = &watched {
                    watched.lock().sent = false;
                }
                Outgoing::Full(Some(bytes.clone()), watched)
            }
            Self::Stream(stream) => {
                let mut state = stream.lock();
                // Nobody asks for what is not there.
                state.given = state.is_given(0, false);
                state.waits = false;
                Outgoing::Stream { stream: stream.clone(), turn: state.turn, at: 0, given: 0, done: false }
            }
        }
    }

    /// Goes back to the beginning: an earlier try can read no further. False, and nothing is changed, if
    /// the beginning is lost.
    pub(crate) fn rewind(&self) -> bool {
        match self {
            Self::Empty | Self::Full(..) => true,
            Self::Stream(stream) => {
                let mut state = stream.lock();
                // Once all of it is kept, readers do not come in each other's way.
                if !state.lost && !state.is_kept() {
                    state.turn += 1;
                }
                !state.lost
            }
        }
    }

    /// Whether it could be rewound now.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        match self {
            Self::Empty | Self::Full(..) => true,
            Self::Stream(stream) => !stream.lock().lost,
        }
    }

    /// Whether all of it is here: several may then read it at once.
    pub(crate) fn is_at_hand(&self) -> bool {
        match self {
            Self::Empty | Self::Full(..) => true,
            Self::Stream(stream) => stream.lock().is_kept(),
        }
    }

    /// Takes from the application what it has ready, up to the limit: nearly always a whole message.
    pub(crate) fn read_ahead(&self) {
        if let Self::Stream(stream) = self {
            stream.lock().read_ahead(MAX_AHEAD);
        }
    }

    /// The same body for another request, if all of it [is at hand](Self::is_at_hand) and that is at most `limit`
    /// bytes: the copy holds them as long as it takes.
    pub(crate) fn copy(&self, limit: usize) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes, _) => (bytes.len() <= limit).then(|| Self::Full(bytes.clone(), OnceLock::new())),
            Self::Stream(stream) => {
                let small = self.is_at_hand() && stream.lock().sent_len <= limit;
                small.then(|| Self::Stream(stream.clone()))
            }
        }
    }

    /// Notes from now on when something moves.
    pub(crate) fn watch(&self) {
        match self {
            Self::Empty => {}
            Self::Full(_, watched) => {
                watched.get_or_init(|| Arc::new(Mutex::new(Progress { moved: Instant::now(), sent: false })));
            }
            Self::Stream(stream) => {
                stream.lock().moved.get_or_insert_with(Instant::now);
            }
        }
    }

    /// When last something moved, since somebody [watches](Self::watch).
    pub(crate) fn moved(&self) -> Option<Instant> {
        match self {
            Self::Empty => None,
            Self::Full(_, watched) => watched.get().map(|watched| watched.lock().moved),
            Self::Stream(stream) => stream.lock().moved,
        }
    }

    /// The application's error, if its body failed.
    pub(crate) fn failure(&self) -> Option<Source> {
        match self {
            Self::Empty | Self::Full(..) => None,
            Self::Stream(stream) => stream.lock().failed.clone(),
        }
    }

    /// Tells later whether it was sent as a whole.
    pub(crate) fn receipt(&self) -> Receipt {
        match self {
            Self::Empty => Receipt::Whole,
            Self::Full(_, watched) => watched.get().map_or(Receipt::Whole, |watched| Receipt::Full(watched.clone())),
            Self::Stream(stream) => Receipt::Stream(stream.clone()),
        }
    }
}

impl Outgoing {
    /// Looks whether the end follows the first frame, as in a unary call: then both go out in one.
    pub(crate) fn look_ahead(&self) {
        if let Self::Stream { stream, .. } = self {
            stream.lock().read_ahead(MESSAGE);
        }
    }
}

/// Whether a request body was sent as a whole: a connection on which it was not cannot be used again.
pub(crate) enum Receipt {
    /// It was given away as a whole.
    Whole,
    /// In slices.
    Full(Arc<Mutex<Progress>>),
    /// As it comes.
    Stream(Arc<Mutex<Stream>>),
}

impl Receipt {
    pub(crate) fn is_sent(&self) -> bool {
        match self {
            Self::Whole => true,
            Self::Full(progress) => progress.lock().sent,
            // Who has it is reading it still, and may be the one that asks: a request may read its own answer.
            Self::Stream(stream) => stream.try_lock().is_some_and(|stream| stream.given),
        }
    }

    /// Whether what is missing of it is for the application to give: not where the peer takes no more.
    pub(crate) fn waits_for_caller(&self) -> bool {
        match self {
            Self::Whole | Self::Full(_) => false,
            Self::Stream(stream) => {
                let stream = stream.lock();
                stream.waits && !stream.given
            }
        }
    }

    /// The application's error, if its body failed.
    pub(crate) fn failure(&self) -> Option<Source> {
        match self {
            Self::Whole | Self::Full(_) => None,
            Self::Stream(stream) => stream.lock().failed.clone(),
        }
    }

    /// When last something of it moved, if somebody watches.
    pub(crate) fn moved(&self) -> Option<Instant> {
        match self {
            Self::Whole => None,
            Self::Full(progress) => Some(progress.lock().moved),
            Self::Stream(stream) => stream.lock().moved,
        }
    }
}

/// The application's request body failed, or a newer try has taken it over.
#[derive(Debug)]
pub(crate) struct RequestBodyError(Source);

impl fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for RequestBodyError {}

#[derive(Debug, thiserror::Error)]
#[error("another try took over the request body")]
struct Superseded;

impl Stream {
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = match &mut self.body {
            Inner::Boxed(body) => ready!(Pin::new(body).poll_frame(cx)),
            Inner::Tonic(body) => ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(Into::into)),
            Inner::Response(body) => ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(Into::into)),
        };
        Poll::Ready(frame.map(|frame| frame.map_err(|error: BoxError| RequestBodyError(error.into()))))
    }

    fn inner_ended(&self) -> bool {
        match &self.body {
            Inner::Boxed(body) => body.is_end_stream(),
            Inner::Tonic(body) => body.is_end_stream(),
            Inner::Response(body) => body.is_end_stream(),
        }
    }

    /// Whether all of it is here, and stays.
    fn is_kept(&self) -> bool {
        self.ended && !self.lost && !self.excess
    }

    /// Whether who was given `at` chunks, and the trailers if `done`, was given all.
    fn is_given(&self, at: usize, done: bool) -> bool {
        self.ended && (self.lost || at >= self.sent.len()) && (done || self.trailers.is_none())
    }

    /// Takes what is ready, up to `most` frames.
    fn read_ahead(&mut self, most: usize) {
        // Whoever reads on registers a waker of its own.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // Counted as well, for a body may have no end of empty chunks.
        for _ in 0..most {
            // At the limit the end may be next.
            if self.ended || self.lost || self.limit == 0 || self.sent_len > self.limit {
                return;
            }
            let Poll::Ready(frame) = self.poll_inner(&mut cx) else { return };
            match frame {
                None => self.ended = true,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if !data.is_empty() {
                            self.sent_len += data.len();
                            self.sent.push(data);
                            // However large it is: it is held until it has gone out, as by who gave it, and no longer.
                            self.excess = self.sent_len > self.limit;
                        }
                        self.ended = self.inner_ended();
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.ended = true;
                    }
                },
                Some(Err(error)) => {
                    self.lost = true;
                    self.failed = Some(error.0);
                }
            }
        }
    }

    fn moves(&mut self) {
        if let Some(moved) = &mut self.moved {
            *moved = Instant::now();
        }
    }

    /// Remembers a chunk that goes out, while there is room.
    fn keep(&mut self, data: &Bytes) {
        if !self.lost && self.sent_len + data.len() <= self.limit {
            self.sent_len += data.len();
            self.sent.push(data.clone());
        } else {
            self.lost = true;
            self.sent.clear();
        }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let (stream, turn, at, given, done) = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Full(left, watched) => {
                return Poll::Ready(next_of(left, watched.as_deref()).map(|data| Ok(Frame::data(data))));
            }
            Self::Stream { stream, turn, at, given, done } => (stream, turn, at, given, done),
        };
        let mut state = stream.lock();
        if state.turn != *turn {
            return Poll::Ready(Some(Err(RequestBodyError(Arc::new(Superseded)))));
        }
        if let Some(data) = state.sent.get(*at).filter(|_| !state.lost) {
            *at += 1;
            *given += data.len() as u64;
            let data = data.clone();
            if state.excess && *at == state.sent.len() {
                state.lost = true;
                state.sent.clear();
            }
            state.moves();
            state.waits = false;
            state.given = state.is_given(*at, *done);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(failed) = &state.failed {
            return Poll::Ready(Some(Err(RequestBodyError(failed.clone()))));
        }
        if state.ended {
            let trailers = if *done { None } else { state.trailers.clone() };
            (*done, state.given) = (true, true);
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        // Asked by who has room for it; a look ahead is nobody's wait.
        state.waits = true;
        let frame = ready!(state.poll_inner(cx));
        state.waits = false;
        state.moves();
        match frame {
            None => {
                (state.ended, state.given) = (true, true);
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    state.keep(data);
                    *at += 1;
                    *given += data.len() as u64;
                    state.ended = state.inner_ended();
                } else if let Some(trailers) = frame.trailers_ref() {
                    state.trailers = Some(trailers.clone());
                    state.ended = true;
                    *done = true;
                }
                state.given = state.is_given(*at, *done);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                // A failed body cannot be read again.
                state.lost = true;
                state.failed = Some(error.0.clone());
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(left, _) => left.is_none(),
            Self::Stream { stream, turn, at, done, .. } => {
                let state = stream.lock();
                state.turn == *turn && state.is_given(*at, *done)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(left, _) => SizeHint::with_exact(left.as_ref().map_or(0, |left| left.len() as u64)),
            Self::Stream { stream, given, .. } => {
                let whole = &stream.lock().hint;
                let mut left = SizeHint::new();
                left.set_lower(whole.lower().saturating_sub(*given));
                if let Some(upper) = whole.upper() {
                    left.set_upper(upper.saturating_sub(*given).max(left.lower()));
                }
                left
            }
        }
    }
}

/// What is given next of bytes in memory.
fn next_of(left: &mut Option<Bytes>, watched: Option<&Mutex<Progress>>) -> Option<Bytes> {
    let mut bytes = left.take()?;
    let Some(watched) = watched else { return Some(bytes) };
    let slice = bytes.split_to(bytes.len().min(SLICE));
    *left = Some(bytes).filter(|left| !left.is_empty());
    *watched.lock() = Progress { moved: Instant::now(), sent: left.is_none() };
    Some(slice)
}

fn downcast<B: 'static, T: 'static>(body: B) -> Result<T, B> {
    let mut slot = Some(body);
    match (&mut slot as &mut dyn Any).downcast_mut::<Option<T>>() {
        Some(found) => Ok(found.take().expect("just put there")),
        None => Err(slot.expect("not taken")),
    }
}

/// The bytes of a [`Full`], which has them at hand.
fn in_memory(mut full: Full<Bytes>) -> Bytes {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    match Pin::new(&mut full).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

#[cfg(test)]
mod tests {
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

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
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
        stream.lock().sent.iter().map(Bytes::len).sum()
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
                let (mut body, receipt) = (payload.body(), payload.receipt());
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
}
