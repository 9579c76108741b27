//! HTTP/2 streams, on the library that hyper's own HTTP/2 is made of.
//!
//! hyper takes a request over a channel to a task that opens its stream, which makes a task that waits for the answer and
//! hands it back over another channel: a quarter of what a small request costs on both ends together. Here whoever sends a
//! request opens its stream, and waits for its answer; the connection's task moves bytes and nothing else.
//!
//! Refuses to know which connection a request goes over.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::ext::Protocol;
use mesh_core::policy::{ConnectionOptions, Keepalive};
use tokio::time::{Instant, sleep_until, timeout};

use super::settings::{Observed, Said};
use crate::body::{AT_ONCE, Broken, Incoming, Outgoing, Unanswered};

/// Bytes that the peer may send on a stream before they are read, where policy says nothing. The least that HTTP/2 begins
/// with would have a fast peer wait for us at each 64 KiB.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// The same for all streams of a connection together, Envoy's default. What nobody has read of a connection's answers takes
/// no more memory than this, and 2 MiB for each stream that nobody reads. One that a few streams fill has who reads slowly
/// hold up all the others: this takes 128 of them.
const CONNECTION_WINDOW: u32 = 256 * 1024 * 1024;
/// What DATA frames of less than 256 bytes that nobody has read may cost beside their bytes, for a frame 256 less these.
/// h2 would take half of the connection's window for that.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;
/// Bytes of a frame, and of an answer's headers.
const MAX_FRAME: u32 = 16 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// Bytes of a request body that wait to be written.
const MAX_BUFFERED: usize = 1024 * 1024;
/// Streams until the peer says how many it takes (RFC 9113, section 6.5.2).
const FIRST_STREAMS: usize = 100;
/// Resets of our own for what the peer does wrong, before it is taken for an attack.
const MAX_RESETS: usize = 1024;
/// Pieces of a request body in a row, before others have their turn: it may have no end of empty ones.
const PIECES: usize = 1024;

const HOP_BY_HOP: [HeaderName; 4] =
    [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), TRANSFER_ENCODING, UPGRADE];

/// Opens streams of one connection.
pub(super) struct Sender {
    requests: SendRequest<Bytes>,
    silent: Arc<AtomicBool>,
}

/// What moves the bytes of a connection, to its end.
pub(super) struct Driver {
    connection: Connection<Observed, Bytes>,
    keepalive: Option<(PingPong, Keepalive)>,
    silent: Arc<AtomicBool>,
    over: Over,
}

/// Says that a connection is over, whichever way.
struct Over(Arc<Said>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Speaks the preface. The returned driver is to be polled, or nothing goes over the connection.
pub(super) async fn handshake(
    io: Observed,
    said: Arc<Said>,
    options: &ConnectionOptions,
) -> Result<(Sender, Driver), h2::Error> {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(options.initial_stream_window.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(options.initial_connection_window.unwrap_or(CONNECTION_WINDOW))
        .data_frame_budget(SMALL_FRAMES)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(MAX_BUFFERED)
        .initial_max_send_streams(FIRST_STREAMS)
        .max_local_error_reset_streams(Some(MAX_RESETS))
        .enable_push(false);
    let (requests, mut connection) = builder.handshake(io).await?;
    let keepalive = options.http2_keepalive.clone();
    let keepalive = keepalive.and_then(|keepalive| Some((connection.ping_pong()?, keepalive)));
    let silent = Arc::<AtomicBool>::default();
    let driver = Driver { connection, keepalive, silent: silent.clone(), over: Over(said) };
    Ok((Sender { requests, silent }, driver))
}

impl Driver {
    pub(super) async fn run(self) {
        let Self { connection, keepalive, silent, over } = self;
        // Of an error those hear who wait for answers.
        match keepalive {
            None => drop(connection.await),
            Some((pings, keepalive)) => tokio::select! {
                biased;
                _ = connection => {}
                () = unanswered(pings, keepalive, &over.0) => silent.store(true, Ordering::Relaxed),
            },
        }
    }
}

/// Waits until the peer does not answer a ping. One is sent whenever nothing has come for as long as the policy says,
/// without requests too, as Envoy does: those to a peer that fell silent are soon given up, and its connection would be
/// found dead by later ones, at their cost.
async fn unanswered(mut pings: PingPong, keepalive: Keepalive, said: &Said) {
    loop {
        let quiet = said.heard() + keepalive.interval;
        if quiet > Instant::now() {
            sleep_until(quiet).await;
            continue;
        }
        match timeout(keepalive.timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection is over, and its own future says so.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

impl Sender {
    /// Opens a stream for a request, and sends what of it can go out at once.
    ///
    /// # Errors
    /// With the request, if nothing of it went out.
    pub(super) fn begin(&self, request: Request<Outgoing>) -> Result<Flight, Unanswered> {
        let mut requests = self.requests.clone();
        // A copy of its own waits for no other's stream: it is ready, or the connection is over.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(Err(error)) = requests.poll_ready(&mut cx) {
            return Err(Unanswered::with(self.broken(error), Some(request)));
        }
        let (mut head, body) = request.into_parts();
        body.look_ahead();
        strip(&mut head.headers);
        if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || has_content(&head.method)) {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        if let Some(protocol) = head.extensions.remove::<Protocol>() {
            head.extensions.insert(h2::ext::Protocol::from(protocol.as_str()));
        }
        let empty = body.is_end_stream();
        let sent = requests.send_request(Request::from_parts(head, ()), empty);
        let (answer, stream) = sent.map_err(|error| Unanswered::sent(self.broken(error)))?;
        let upload = (!empty).then(|| Upload { stream, body, waiting: None, begun: false });
        Ok(Flight { answer, upload, silent: self.silent.clone() })
    }

    fn broken(&self, error: h2::Error) -> Broken {
        Broken::of_stream(error, &self.silent)
    }
}

/// A request that went out, until the head of its answer.
pub(super) struct Flight {
    answer: ResponseFuture,
    upload: Option<Upload>,
    silent: Arc<AtomicBool>,
}

impl Flight {
    /// What is left to send once the head is there.
    pub(super) fn into_upload(self) -> Option<Upload> {
        self.upload
    }

    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Incoming>, Broken>> {
        if let Some(upload) = &mut self.upload
            && Pin::new(upload).poll(cx).is_ready()
        {
            self.upload = None;
        }
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(match answer {
            Ok(answer) => {
                let left = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
                Ok(answer.map(|stream| Incoming::Http2(Download { stream, left, ended: false })))
            }
            Err(error) => Err(Broken::of_stream(error, &self.silent)),
        })
    }
}

/// Sends a request body, as far and as fast as the peer takes it. What goes wrong is told with the answer; dropped, it resets
/// its stream unless all is sent.
pub(super) struct Upload {
    stream: SendStream<Bytes>,
    body: Outgoing,
    // What the peer has no room for yet, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
    // Something was given to the connection.
    begun: bool,
}

impl Upload {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        for _ in 0..PIECES {
            if let Some((data, last)) = self.waiting.take() {
                while self.stream.capacity() == 0 {
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(capacity)) => capacity?,
                        // It is no longer one to send on.
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => {
                            self.waiting = Some((data, last));
                            return Poll::Pending;
                        }
                    };
                }
                self.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(self.stream.send_data(Bytes::new(), true));
            };
            let frame = match frame {
                Ok(frame) => frame,
                // Whoever waits for the answer asks the body why.
                Err(_) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Ok(()));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    if data.is_empty() && !last {
                        // Says nothing, and however many there are, the peer need not have room for them.
                        continue;
                    }
                    // What is small goes out without being asked for room, if it is the first: it waits in the connection.
                    let small = !std::mem::replace(&mut self.begun, true) && data.len() <= AT_ONCE;
                    if small || data.is_empty() {
                        self.stream.send_data(data, last)?;
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        // One byte, and the rest as it is there: room that is reserved is taken from other streams, which may
                        // need it more.
                        self.stream.reserve_capacity(1);
                        self.waiting = Some((data, last));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        return Poll::Ready(self.stream.send_trailers(trailers));
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Future for Upload {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.poll_send(cx).is_ready() {
            return Poll::Ready(());
        }
        // Whatever it waits for: once the peer wants no more of it, it is over.
        this.stream.poll_reset(cx).map(|_| ())
    }
}

/// The body of an answer.
pub(crate) struct Download {
    stream: RecvStream,
    // Bytes, if the peer said how many.
    left: Option<u64>,
    // All its data was read: trailers may follow.
    ended: bool,
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.ended {
            match ready!(self.stream.poll_data(cx)).transpose()? {
                Some(data) => {
                    self.stream.flow_control().release_capacity(data.len())?;
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                None => self.ended = true,
            }
        }
        self.stream.poll_trailers(cx).map(|trailers| trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Takes out what is of one connection only (RFC 9113, section 8.2.2).
fn strip(headers: &mut HeaderMap) {
    let is_of_one = |(name, value): (&HeaderName, &HeaderValue)| {
        *name == CONNECTION || HOP_BY_HOP.contains(name) || (*name == TE && value != "trailers")
    };
    // Nearly always there is none: one look at all of them instead of one for each.
    if !headers.iter().any(is_of_one) {
        return;
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if headers.get_all(TE).iter().any(|value| value != "trailers") {
        headers.remove(TE);
    }
    let listed: Vec<_> = headers.get_all(CONNECTION).iter().cloned().collect();
    headers.remove(CONNECTION);
    for name in listed.iter().flat_map(|value| value.to_str().unwrap_or_default().split(',')) {
        headers.remove(name.trim());
    }
}

/// Methods whose content has a meaning, so that there being none is said.
fn has_content(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_one_connection_stays_behind_and_nothing_else_does() {
        let stays = [("te", "trailers"), ("content-type", "application/grpc"), ("x-upgrade", "1")];
        let goes = [
            ("connection", "x-first, X-Second"),
            ("connection", "x-third"),
            ("x-first", "1"),
            ("x-second", "1"),
            ("x-third", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
        ];
        let of = |headers: &[(&str, &str)]| {
            let header = |(name, value): &(&str, &str)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            };
            let mut all = HeaderMap::new();
            for (name, value) in headers.iter().map(header) {
                all.append(name, value);
            }
            all
        };
        let stripped = |headers: &[(&str, &str)]| {
            let mut headers = of(headers);
            strip(&mut headers);
            headers
        };
        assert_eq!(stripped(&stays), of(&stays));
        assert_eq!(stripped(&[&stays[..], &goes].concat()), of(&stays));
        for (name, value) in &goes[5..] {
            assert_eq!(stripped(&[(name, value)]), of(&[]), "{name} alone");
        }
        assert_eq!(stripped(&[("te", "gzip")]), of(&[]));
    }
}
