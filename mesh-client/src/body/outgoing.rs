//! The request body on its way out: what the application gave, and what one try sends of it.
//!
//! A [`Payload`] can be sent again as long as nothing of it was lost: bodies in memory always, streams
//! up to a limit. Refuses to know why something is sent again.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

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
    Stream(Arc<Streamed>),
}

/// How far bytes in memory have gone, where somebody asks.
pub(crate) struct Progress {
    moved: Instant,
    sent: bool,
}

/// A streaming body, and what others than its reader ask of it: that without a lock, for the body is locked while the
/// application is asked for more, and who asks may be the application, whose request may read its own answer.
pub(crate) struct Streamed {
    told: Told,
    body: Mutex<Stream>,
}

/// What is known of a streaming body while it is being read.
#[derive(Default)]
struct Told {
    // Of the last tries, a bit each: it was given all of it.
    given: AtomicU64,
    // Number of the try that begins next.
    tries: AtomicU8,
    // More of it was asked for, and is not there yet.
    waits: AtomicBool,
    // Of these, which are not under way any more.
    left: AtomicU64,
    // The try that is the last, and one more; 0 = there may be another one.
    last: AtomicU8,
    failed: OnceLock<Source>,
    // Since when somebody asks when something moves, and nanoseconds from then to when last something did.
    watched: OnceLock<Instant>,
    moved: AtomicU64,
}

/// Tries that are told apart: those of a hedged request that are under way at once are fewer.
const TRIES: u8 = 64;

/// What a further try needs of a body's beginning, and the rest of it.
struct Stream {
    body: Inner,
    hint: SizeHint,
    sent: SmallVec<[Bytes; 2]>,
    sent_len: usize,
    limit: usize,
    // Something went out that is not in `sent` any more.
    lost: bool,
    // The last of `sent` is beyond the limit: it was only looked at, and is not kept when it has gone out.
    excess: bool,
    // Chunks that were in `sent` once: who has not been given them cannot go on.
    gone: usize,
    ended: bool,
    trailers: Option<HeaderMap>,
    // Which try may read: an older one that still holds the body is cut off.
    turn: u32,
}

enum Inner {
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
    // Kept as they are: both are boxes or small already.
    Tonic(tonic::body::Body),
    Response(super::Body),
    // All there was of it is kept, or nobody reads on.
    Nothing,
}

/// The body of one try.
pub(crate) enum Outgoing {
    /// Nothing.
    Empty,
    /// Bytes in memory; slice by slice if somebody asks how far they are.
    Full(Option<Bytes>, Option<Arc<Mutex<Progress>>>),
    /// One reading of a stream, from its beginning.
    Stream(Reading),
}

/// How far one try is with a stream that it shares with others.
pub(crate) struct Reading {
    stream: Arc<Streamed>,
    // Whose turn this is.
    turn: u32,
    place: Place,
}

struct Place {
    // Chunks of `sent` already given.
    at: usize,
    // Bytes given.
    given: u64,
    // Which try this is.
    number: u8,
    // Trailers given.
    done: bool,
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
        Self::Stream(Arc::new(Streamed::new(Stream::new(body, hint, limit))))
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
                let state = stream.body.lock();
                // Nobody asks for what is not there.
                let mut place = Place { at: 0, given: 0, number: 0, done: false };
                place.number = stream.told.begins(state.is_given(&place));
                Outgoing::Stream(Reading { stream: stream.clone(), turn: state.turn, place })
            }
        }
    }

    /// Goes back to the beginning: an earlier try can read no further. False, and nothing is changed, if
    /// the beginning is lost.
    pub(crate) fn rewind(&self) -> bool {
        match self {
            Self::Empty | Self::Full(..) => true,
            Self::Stream(stream) => {
                let mut state = stream.body.lock();
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
            Self::Stream(stream) => !stream.body.lock().lost,
        }
    }

    /// Whether all of it is here: several may then read it at once.
    pub(crate) fn is_at_hand(&self) -> bool {
        match self {
            Self::Empty | Self::Full(..) => true,
            Self::Stream(stream) => stream.body.lock().is_kept(),
        }
    }

    /// Takes from the application what it has ready, up to the limit: nearly always a whole message.
    pub(crate) fn read_ahead(&self) {
        if let Self::Stream(stream) = self {
            stream.read_ahead(MAX_AHEAD);
        }
    }

    /// The same body for another request, if all of it [is at hand](Self::is_at_hand) and that is at most `limit`
    /// bytes: the copy holds them as long as it takes, and shares nothing else.
    pub(crate) fn copy(&self, limit: usize) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes, _) => (bytes.len() <= limit).then(|| Self::Full(bytes.clone(), OnceLock::new())),
            Self::Stream(stream) => {
                let state = stream.body.lock();
                let small = state.is_kept() && state.sent_len <= limit;
                small.then(|| Self::Stream(Arc::new(Streamed::new(state.copy()))))
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
                stream.told.watched.get_or_init(Instant::now);
            }
        }
    }

    /// When last something moved, since somebody [watches](Self::watch).
    pub(crate) fn moved(&self) -> Option<Instant> {
        match self {
            Self::Empty => None,
            Self::Full(_, watched) => watched.get().map(|watched| watched.lock().moved),
            Self::Stream(stream) => stream.told.moved(),
        }
    }

    /// The application's error, if its body failed.
    pub(crate) fn failure(&self) -> Option<Source> {
        match self {
            Self::Empty | Self::Full(..) => None,
            Self::Stream(stream) => stream.told.failed.get().cloned(),
        }
    }

    /// Tells later whether the [body](Self::body) that is taken next was sent as a whole.
    pub(crate) fn receipt(&self) -> Receipt {
        match self {
            Self::Empty => Receipt::Whole,
            Self::Full(_, watched) => watched.get().map_or(Receipt::Whole, |watched| Receipt::Full(watched.clone())),
            Self::Stream(stream) => Receipt::Stream(stream.clone(), stream.told.tries.load(Ordering::Relaxed)),
        }
    }
}

impl Outgoing {
    /// Looks whether the end follows the first frame, as in a unary call: then both go out in one.
    pub(crate) fn look_ahead(&self) {
        if let Self::Stream(reading) = self {
            reading.stream.read_ahead(MESSAGE);
        }
    }
}

/// Whether a request body was sent as a whole: a connection on which it was not cannot be used again.
pub(crate) enum Receipt {
    /// It was given away as a whole.
    Whole,
    /// In slices.
    Full(Arc<Mutex<Progress>>),
    /// As it comes, by this try.
    Stream(Arc<Streamed>, u8),
}

impl Receipt {
    pub(crate) fn is_sent(&self) -> bool {
        match self {
            Self::Whole => true,
            Self::Full(progress) => progress.lock().sent,
            Self::Stream(stream, number) => stream.told.is_given(*number),
        }
    }

    /// Whether what is missing of it is for the application to give: not where the peer takes no more.
    pub(crate) fn waits_for_caller(&self) -> bool {
        match self {
            Self::Whole | Self::Full(_) => false,
            Self::Stream(stream, number) => stream.told.waits.load(Ordering::Relaxed) && !stream.told.is_given(*number),
        }
    }

    /// This try is the last: what was kept for another one is let go.
    pub(crate) fn stands(&self) {
        let Self::Stream(stream, number) = self else { return };
        // Before the look at who has left, which is noted before the look at this.
        stream.told.last.store(number + 1, Ordering::SeqCst);
        if stream.told.left.load(Ordering::SeqCst) & (1 << number) != 0 {
            stream.let_go();
        } else if stream.told.is_given(*number)
            && let Some(mut state) = stream.body.try_lock()
        {
            // Who reads it still does so himself, and is not waited for.
            state.forget();
        }
    }

    /// The application's error, if its body failed.
    pub(crate) fn failure(&self) -> Option<Source> {
        match self {
            Self::Whole | Self::Full(_) => None,
            Self::Stream(stream, _) => stream.told.failed.get().cloned(),
        }
    }

    /// When last something of it moved, if somebody watches.
    pub(crate) fn moved(&self) -> Option<Instant> {
        match self {
            Self::Whole => None,
            Self::Full(progress) => Some(progress.lock().moved),
            Self::Stream(stream, _) => stream.told.moved(),
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

impl Drop for Reading {
    fn drop(&mut self) {
        let (told, number) = (&self.stream.told, self.place.number);
        told.left.fetch_or(1 << number, Ordering::SeqCst);
        if told.last.load(Ordering::SeqCst) == number + 1 {
            self.stream.let_go();
        }
    }
}

impl Told {
    /// Another try begins; gives its number.
    fn begins(&self, is_given: bool) -> u8 {
        let number = self.tries.load(Ordering::Relaxed);
        self.tries.store((number + 1) % TRIES, Ordering::Relaxed);
        match is_given {
            true => self.gives(number),
            false if self.is_given(number) => drop(self.given.fetch_and(!(1 << number), Ordering::Release)),
            false => {}
        }
        if self.left.load(Ordering::Relaxed) & (1 << number) != 0 {
            self.left.fetch_and(!(1 << number), Ordering::Relaxed);
        }
        self.waits.store(false, Ordering::Relaxed);
        number
    }

    /// A try was given all of it.
    fn gives(&self, number: u8) {
        self.given.fetch_or(1 << number, Ordering::Release);
    }

    fn is_given(&self, number: u8) -> bool {
        self.given.load(Ordering::Acquire) & (1 << number) != 0
    }

    /// There is no further try, and this is the one that stands: others beside it may still read what it has not.
    fn is_last(&self, number: u8) -> bool {
        self.last.load(Ordering::Relaxed) == number + 1
    }

    fn moves(&self) {
        if let Some(watched) = self.watched.get() {
            let after = u64::try_from(watched.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.moved.store(after, Ordering::Relaxed);
        }
    }

    fn moved(&self) -> Option<Instant> {
        self.watched.get().map(|watched| *watched + Duration::from_nanos(self.moved.load(Ordering::Relaxed)))
    }
}

impl Place {
    fn pass(&mut self, data: &Bytes) {
        self.at += 1;
        self.given += data.len() as u64;
    }
}

impl Streamed {
    fn new(body: Stream) -> Self {
        Self { told: Told::default(), body: Mutex::new(body) }
    }

    /// Nobody reads any more: the application's body is dropped. What waits for the end of its answer holds this, and the
    /// body may be who has that.
    fn let_go(&self) {
        let Some(mut state) = self.body.try_lock() else { return };
        state.forget();
        state.gone = usize::MAX;
        let body = std::mem::replace(&mut state.body, Inner::Nothing);
        drop(state);
        drop(body);
    }

    /// Takes what is ready, up to `most` frames.
    fn read_ahead(&self, most: usize) {
        let mut state = self.body.lock();
        // Whoever reads on registers a waker of its own.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // Counted as well, for a body may have no end of empty chunks.
        for _ in 0..most {
            // At the limit the end may be next.
            if state.ended || state.lost || state.limit == 0 || state.sent_len > state.limit {
                return;
            }
            let Poll::Ready(frame) = state.poll_inner(&mut cx) else { return };
            match frame {
                None => state.ended = true,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if !data.is_empty() {
                            state.sent_len += data.len();
                            state.sent.push(data);
                            // However large it is: it is held until it has gone out, as by who gave it, and no longer.
                            state.excess = state.sent_len > state.limit;
                        }
                        state.ended = state.inner_ended();
                    }
                    Err(frame) => {
                        state.trailers = frame.into_trailers().ok();
                        state.ended = true;
                    }
                },
                Some(Err(error)) => {
                    state.lost = true;
                    let _ = self.told.failed.set(error.0);
                }
            }
        }
    }
}

impl Stream {
    fn new(body: Inner, hint: SizeHint, limit: usize) -> Self {
        let (sent, sent_len, gone, turn, trailers) = (SmallVec::new(), 0, 0, 0, None);
        let (lost, excess, ended) = (false, false, false);
        Self { body, hint, sent, sent_len, limit, lost, excess, gone, ended, trailers, turn }
    }

    /// One that has all of it, of one that [keeps](Self::is_kept) all.
    fn copy(&self) -> Self {
        let (sent, sent_len, trailers) = (self.sent.clone(), self.sent_len, self.trailers.clone());
        let new = Self::new(Inner::Nothing, self.hint, self.limit);
        Self { sent, sent_len, trailers, ended: true, ..new }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = match &mut self.body {
            Inner::Boxed(body) => ready!(Pin::new(body).poll_frame(cx)),
            Inner::Tonic(body) => ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(Into::into)),
            Inner::Response(body) => ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(Into::into)),
            Inner::Nothing => None,
        };
        Poll::Ready(frame.map(|frame| frame.map_err(|error: BoxError| RequestBodyError(error.into()))))
    }

    fn inner_ended(&self) -> bool {
        match &self.body {
            Inner::Boxed(body) => body.is_end_stream(),
            Inner::Tonic(body) => body.is_end_stream(),
            Inner::Response(body) => body.is_end_stream(),
            Inner::Nothing => true,
        }
    }

    /// Whether all of it is here, and stays.
    fn is_kept(&self) -> bool {
        self.ended && !self.lost && !self.excess
    }

    /// Whether who is there was given all.
    fn is_given(&self, place: &Place) -> bool {
        self.ended && place.at >= self.sent.len().max(self.gone) && (place.done || self.trailers.is_none())
    }

    /// What is there without asking the application; `None`: it is to be asked.
    fn at_hand(&mut self, told: &Told, place: &mut Place) -> Option<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(data) = self.sent.get(place.at).filter(|_| !self.lost) {
            let data = data.clone();
            place.pass(&data);
            if self.excess && place.at == self.sent.len() {
                self.forget();
            }
            told.moves();
            self.tell(told, place);
            return Some(Some(Ok(Frame::data(data))));
        }
        if let Some(failed) = told.failed.get() {
            return Some(Some(Err(RequestBodyError(failed.clone()))));
        }
        if self.ended {
            let trailers = if place.done { None } else { self.trailers.clone() };
            place.done = true;
            self.tell(told, place);
            return Some(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        None
    }

    /// Notes what the application gave.
    fn note(&mut self, told: &Told, place: &mut Place, frame: Option<&Result<Frame<Bytes>, RequestBodyError>>) {
        match frame {
            None => self.ended = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    // There may be no end of empty ones.
                    if !data.is_empty() {
                        self.keep(data);
                        place.pass(data);
                    }
                    self.ended = self.inner_ended();
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                    self.ended = true;
                    place.done = true;
                }
            }
            Some(Err(error)) => {
                // A failed body cannot be read again.
                self.lost = true;
                let _ = told.failed.set(error.0.clone());
            }
        }
        self.tell(told, place);
    }

    /// Tells who waits for it that all was given.
    fn tell(&mut self, told: &Told, place: &Place) {
        if self.is_given(place) {
            told.gives(place.number);
            if told.is_last(place.number) {
                self.forget();
            }
        }
    }

    /// Remembers a chunk that goes out, while there is room.
    fn keep(&mut self, data: &Bytes) {
        if !self.lost && self.sent_len + data.len() <= self.limit {
            self.sent_len += data.len();
            self.sent.push(data.clone());
        } else {
            self.forget();
        }
    }

    /// Nobody begins anew.
    fn forget(&mut self) {
        self.lost = true;
        self.gone = self.gone.max(self.sent.len());
        self.sent = SmallVec::new();
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Reading { stream, turn, place } = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Full(left, watched) => {
                return Poll::Ready(next_of(left, watched.as_deref()).map(|data| Ok(Frame::data(data))));
            }
            Self::Stream(reading) => reading,
        };
        let Streamed { told, body } = &**stream;
        let mut state = body.lock();
        if state.turn != *turn || place.at < state.gone {
            return Poll::Ready(Some(Err(RequestBodyError(Arc::new(Superseded)))));
        }
        if let Some(frame) = state.at_hand(told, place) {
            return Poll::Ready(frame);
        }
        if !state.lost && told.is_last(place.number) {
            state.forget();
        }
        // Asked by who has room for it; a look ahead is nobody's wait.
        told.waits.store(true, Ordering::Relaxed);
        let frame = ready!(state.poll_inner(cx));
        told.waits.store(false, Ordering::Relaxed);
        told.moves();
        state.note(told, place, frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(left, _) => left.is_none(),
            Self::Stream(Reading { stream, turn, place }) => {
                let state = stream.body.lock();
                state.turn == *turn && state.is_given(place)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(left, _) => SizeHint::with_exact(left.as_ref().map_or(0, |left| left.len() as u64)),
            Self::Stream(Reading { stream, place, .. }) => {
                let whole = &stream.body.lock().hint;
                let mut left = SizeHint::new();
                left.set_lower(whole.lower().saturating_sub(place.given));
                if let Some(upper) = whole.upper() {
                    left.set_upper(upper.saturating_sub(place.given).max(left.lower()));
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
mod tests;
