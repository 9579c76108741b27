//! The seam between the protocol and the network: a transport opens streams of requests and responses.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use super::message::{Request, Response, StreamError, Variant};

/// Opens streams to one control plane.
pub trait Transport: Send + 'static {
    /// Opens a stream. It counts as open when requests can be written, not when the server has
    /// answered: many servers say nothing before they are asked.
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>>;

    /// Whether a stream that is being opened waits for something of this process, as for its first certificate: that says
    /// nothing of the server. Default: no.
    fn is_held_up(&self) -> bool {
        false
    }
}

/// One stream. It is closed by dropping it.
pub struct AdsStream {
    /// Takes requests, in order, no faster than the network does.
    pub requests: mpsc::Sender<Request>,
    /// Responses; ends with the stream, after an error if there was one.
    pub responses: BoxStream<'static, Result<Response, StreamError>>,
}
