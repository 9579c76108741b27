//! [`Unread`]: the bytes of a stream's requests, or reports, that have come and are not taken in yet, kept for its identity.
//! Without it an identity could have one on each of its streams that never becomes whole.
//!
//! Refuses to know what requests say.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tonic::Status;
use tonic::codegen::StdError;

use super::account::{Account, Charge};
use super::session::Refused;

/// What a stream may say though nothing more is to be kept for its identity: an answer to what it was sent, for which it
/// waits. Beyond that it may say what it has said before, for answers repeat names.
const FLOOR: usize = 64 << 10;

/// One stream's.
#[derive(Clone, Debug)]
pub(crate) struct Unread {
    said: Arc<Mutex<Said>>,
    /// Bytes of the identity in all.
    most: usize,
}

#[derive(Debug)]
struct Said {
    /// For the most that was unread at once: the buffer of the stream does not shrink.
    charge: Charge,
    /// Unread now.
    bytes: usize,
    /// The most that was unread while there was room.
    granted: usize,
    /// Why the stream is broken off.
    refused: Option<Refused>,
}

/// A body whose bytes count as unread.
pub(crate) struct Metered<D> {
    body: UnsyncBoxBody<D, StdError>,
    unread: Unread,
}

impl Unread {
    pub(crate) fn new(account: &Arc<Account>, most: usize) -> Self {
        let said = Said { charge: Charge::new(account, 0), bytes: 0, granted: 0, refused: None };
        Self { said: Arc::new(Mutex::new(said)), most }
    }

    /// Everything that has come so far was taken in.
    pub(crate) fn taken(&self) {
        self.said.lock().bytes = 0;
    }

    /// Breaks the stream off: what is to be said to tonic.
    pub(super) fn refuse(&self, refused: Refused) -> Status {
        let status = Status::resource_exhausted(refused.to_string());
        self.said.lock().refused = Some(refused);
        status
    }

    /// Why the stream is broken off, if that was decided here.
    pub(crate) fn refused(&self) -> Option<Refused> {
        self.said.lock().refused.clone()
    }

    pub(crate) fn body<B>(&self, body: B) -> Metered<B::Data>
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError>,
    {
        Metered { body: body.map_err(Into::into).boxed_unsync(), unread: self.clone() }
    }

    fn add(&self, bytes: usize) -> Result<(), Refused> {
        let mut said = self.said.lock();
        said.bytes += bytes;
        let grown = said.bytes.saturating_sub(said.charge.bytes());
        said.charge.add(grown);
        let (kept, most) = (said.charge.account().bytes(), self.most);
        if kept <= most {
            said.granted = said.granted.max(said.bytes);
            return Ok(());
        }
        if said.bytes > said.granted + FLOOR { Err(Refused::TooMuch { kept, most }) } else { Ok(()) }
    }
}

impl<D: Buf> Body for Metered<D> {
    type Data = D;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<D>, StdError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Buf::remaining),
            Some(Err(_)) | None => 0,
        };
        match self.unread.add(bytes) {
            Err(refused) if bytes > 0 => Poll::Ready(Some(Err(self.unread.refuse(refused).into()))),
            _ => Poll::Ready(frame),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use http_body_util::Full;

    use super::*;

    const MOST: usize = 4 * FLOOR;

    /// Whether `count` bytes are let through.
    fn comes(unread: &Unread, count: usize) -> bool {
        let mut body = unread.body(Full::new(Bytes::from(vec![0; count])));
        match body.frame().now_or_never().unwrap().unwrap() {
            Ok(frame) => frame.into_data().unwrap().len() == count,
            Err(error) => {
                let status = Status::try_from_error(error).unwrap();
                assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                assert!(status.message().contains(&format!("of this identity; at most {MOST}")), "{status}");
                assert!(matches!(unread.refused(), Some(Refused::TooMuch { .. })));
                false
            }
        }
    }

    #[test]
    fn what_one_identity_begins_to_say_on_all_of_its_streams_is_bounded() {
        let (account, other) = (Arc::default(), Arc::default());
        let [one, two, three] = [&account; 3].map(|account| Unread::new(account, MOST));
        assert!(comes(&one, 2 * FLOOR) && comes(&two, 2 * FLOOR));
        assert!(comes(&three, FLOOR) && !comes(&three, 1));
        // The control: another identity, and where there is room.
        assert!(comes(&Unread::new(&other, MOST), 2 * FLOOR));
        assert_eq!(one.refused(), None);
        drop(one);
        assert!(comes(&two, 1));
        drop((two, three));
        assert_eq!((account.bytes(), other.bytes()), (0, 0));
    }

    #[test]
    fn answers_are_heard_though_nothing_more_is_kept_for_an_identity() {
        let account = Arc::default();
        let stream = Unread::new(&account, MOST);
        assert!(comes(&stream, 2 * FLOOR));
        stream.taken();
        // Something else of it is large, such as what it is sent.
        let full = Charge::new(&account, MOST);
        let answer = 2 * FLOOR + 40;
        for _ in 0..10 {
            assert!(comes(&stream, answer), "it names what it named before, with a nonce");
            stream.taken();
        }
        assert!(comes(&Unread::new(&account, MOST), 100));
        // The control: what is new and large is not, and it does not get there by steps.
        assert!(comes(&stream, 3 * FLOOR));
        stream.taken();
        assert!(!comes(&stream, 3 * FLOOR + 1));
        drop(full);
    }

    #[test]
    fn what_a_stream_has_said_counts_as_long_as_its_buffer_lasts() {
        let account = Arc::default();
        let streams: Vec<_> = (0..10).map(|_| Unread::new(&account, MOST)).collect();
        let heard = |stream: &&Unread| {
            let heard = comes(stream, 2 * FLOOR);
            stream.taken();
            heard
        };
        assert_eq!(streams.iter().filter(heard).count(), 2);
        // The control: nothing is counted twice, and everything is given back.
        let before = account.bytes();
        assert!(heard(&&streams[0]));
        assert_eq!(account.bytes(), before);
        drop(streams);
        assert_eq!(account.bytes(), 0);
    }
}
