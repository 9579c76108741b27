//! A response body that tells its record when it has ended.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use mesh_core::error::BoxError;

use super::caught::caught;
use super::over::WORD;
use super::record::Record;
use crate::load::ReportStream;

pin_project! {
    /// The response body of [`InboundService`](super::InboundService): the application's, watched to its
    /// end, or a short text of the mesh's own. Where the application's panics it ends with an error.
    pub struct InboundBody<B>
    where
        B: Body,
    {
        #[pin]
        content: Content<B>,
        record: Option<Record>,
    }

    impl<B> PinnedDrop for InboundBody<B>
    where
        B: Body,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(record) = this.record {
                // Dropped without having been asked for its end, which hyper does when it knows that
                // nothing more can come. Otherwise the record's own drop says that the peer is gone.
                if record.is_whole() || this.content.is_end_stream() {
                    record.finish();
                }
            }
        }
    }
}

pin_project! {
    #[project = ContentProjection]
    pub(super) enum Content<B> {
        Application { #[pin] body: B },
        Text { text: Option<Bytes> },
        Reports { stream: Box<ReportStream> },
    }
}

impl<B: Body> InboundBody<B> {
    pub(super) fn new(content: Content<B>, record: Option<Record>) -> Self {
        Self { content, record }
    }
}

/// The end of a call that its server cannot wait for.
fn unavailable<D>() -> Frame<D> {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from_static("14"));
    trailers.insert("grpc-message", HeaderValue::from_static(WORD));
    Frame::trailers(trailers)
}

impl<B: Body> Content<B> {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Application { body } => body.is_end_stream(),
            Self::Text { text } => text.is_none(),
            Self::Reports { stream } => stream.has_ended(),
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Body for InboundBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let mut frame = match this.content.as_mut().project() {
            ContentProjection::Application { body } => match caught(|| body.poll_frame(cx)) {
                Ok(Poll::Pending) if this.record.as_mut().is_some_and(|record| record.is_answer_over(cx)) => {
                    this.content.set(Content::Text { text: None });
                    Some(Ok(unavailable()))
                }
                Ok(frame) => ready!(frame).map(|frame| frame.map_err(Into::into)),
                Err(panicked) => {
                    tracing::error!(error = %panicked, "the body of the application's answer failed: it breaks off");
                    Some(Err(panicked.into()))
                }
            },
            ContentProjection::Text { text } => text.take().map(|text| Ok(Frame::data(text))),
            ContentProjection::Reports { stream } => ready!(stream.poll_frame(cx)).map(Ok),
        };
        let Some(record) = this.record else { return Poll::Ready(frame) };
        let mut ended = false;
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    record.data(data.len());
                } else if let Some(trailers) = frame.trailers_mut() {
                    record.trailers(trailers);
                    ended = true;
                }
            }
            // An error of the application's body: the response has ended, if badly.
            Some(Err(_)) | None => ended = true,
        }
        if ended {
            record.finish();
            *this.record = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Application { body } => body.size_hint(),
            Content::Text { text } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Content::Reports { .. } => SizeHint::new(),
        }
    }
}
