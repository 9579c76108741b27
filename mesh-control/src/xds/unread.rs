//! [`Unread`]: the bytes of a stream's requests that have come and are not taken in yet, kept for its identity. Without it an
//! identity could have a request on each of its streams that never becomes whole.
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

/// One stream's.
#[derive(Clone, Debug)]
pub(super) struct Unread {
    charge: Arc<Mutex<Charge>>,
    /// Bytes of the identity in all.
    most: usize,
}

/// A body whose bytes count as unread.
pub(super) struct Metered<D> {
    body: UnsyncBoxBody<D, StdError>,
    unread: Unread,
}

impl Unread {
    pub(super) fn new(account: &Arc<Account>, most: usize) -> Self {
        Self { charge: Arc::new(Mutex::new(Charge::new(account, 0))), most }
    }

    /// Everything that has come so far was taken in.
    pub(super) fn taken(&self) {
        self.charge.lock().clear();
    }

    pub(super) fn body<B>(&self, body: B) -> Metered<B::Data>
    where
        B: Body + Send + 'static,
        B::Error: Into<StdError>,
    {
        Metered { body: body.map_err(Into::into).boxed_unsync(), unread: self.clone() }
    }

    fn add(&self, bytes: usize) -> Result<(), Refused> {
        let mut charge = self.charge.lock();
        charge.add(bytes);
        let (kept, most) = (charge.account().bytes(), self.most);
        if kept > most { Err(Refused::TooMuch { kept, most }) } else { Ok(()) }
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
            Err(refused) if bytes > 0 => Poll::Ready(Some(Err(Status::resource_exhausted(refused.to_string()).into()))),
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

    /// Whether `count` bytes are let through.
    fn comes(unread: &Unread, count: usize) -> bool {
        let mut body = unread.body(Full::new(Bytes::from(vec![0; count])));
        match body.frame().now_or_never().unwrap().unwrap() {
            Ok(frame) => frame.into_data().unwrap().len() == count,
            Err(error) => {
                let status = Status::try_from_error(error).unwrap();
                assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                assert!(status.message().contains("of this identity; at most 100"), "{status}");
                false
            }
        }
    }

    #[test]
    fn what_one_identity_begins_to_say_on_all_of_its_streams_is_bounded() {
        let (account, other) = (Arc::default(), Arc::default());
        let [one, two] = [Unread::new(&account, 100), Unread::new(&account, 100)];
        assert!(comes(&one, 60) && comes(&two, 40));
        assert!(!comes(&two, 1));
        // The control: another identity, and what was taken in.
        assert!(comes(&Unread::new(&other, 100), 60));
        one.taken();
        assert!(comes(&two, 50));
        drop((one, two));
        assert_eq!((account.bytes(), other.bytes()), (0, 0));
    }
}
