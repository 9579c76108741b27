//! The body of a request, as it comes from its stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};

/// What is still to come of a body that has begun to.
#[derive(Debug)]
pub(crate) struct Upload {
    stream: RecvStream,
    // Bytes, if the peer said how many.
    left: Option<u64>,
    // All its data was read: trailers may follow.
    ended: bool,
}

/// How long a body is to be, if that is said, and with one voice.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    // Digits alone: a number that is read may begin with a sign.
    let read = |length: &HeaderValue| length.to_str().ok().filter(|text| !text.starts_with('+'))?.parse().ok();
    let mut all = headers.get_all(CONTENT_LENGTH).iter().map(read);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)?
}

impl Upload {
    /// `None` = there is no body.
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap) -> Option<Self> {
        (!stream.is_end_stream()).then(|| Self { stream, left: length(headers), ended: false })
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Of a stream that is over nothing is to be given back.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // Whatever it gives for a reason, NO_ERROR too: it is not all of it.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_what_all_say() {
        for (said, want) in [
            (&[][..], None),
            (&["0"], Some(0)),
            (&["18446744073709551615"], Some(u64::MAX)),
            (&["18446744073709551616"], None),
            (&["5", "5"], Some(5)),
            (&["5", "6"], None),
            (&["5", "x"], None),
            (&["x", "x"], None),
            (&["5, 5"], None),
            (&["+5"], None),
        ] {
            let mut headers = HeaderMap::new();
            for length in said {
                headers.append(CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            assert_eq!(length(&headers), want, "{said:?}");
        }
    }
}
