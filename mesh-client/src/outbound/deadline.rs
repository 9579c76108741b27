//! When a request must be over, and whose limit that is: the earliest limit counts, and silence may end it
//! before.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::context::{self, TimeoutHeader};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::Payload;
use crate::error::Cause;

/// The end of a request's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    of: Limit,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    /// The caller's own deadline.
    Caller,
    /// What the request itself says, by `grpc-timeout` or Envoy's header of the time that is expected.
    Header(Duration),
    /// The route's.
    Route(Duration),
}

impl Deadline {
    pub(crate) fn none() -> Self {
        Self { at: None, of: Limit::Caller }
    }

    /// The earlier of this and the caller's deadline.
    pub(crate) fn caller(self, at: Option<Instant>) -> Self {
        self.earlier(at, Limit::Caller)
    }

    /// The earlier of this and the timeout that the request's headers say, which begins at `start`.
    pub(crate) fn header(self, start: Instant, timeout: Option<Duration>) -> Self {
        match timeout {
            Some(timeout) => self.earlier(start.checked_add(timeout), Limit::Header(timeout)),
            None => self,
        }
    }

    /// The earlier of this and a limit of the route, which begins at `start`.
    pub(crate) fn route(self, start: Instant, timeout: Duration) -> Self {
        self.earlier(start.checked_add(timeout), Limit::Route(timeout))
    }

    fn earlier(self, at: Option<Instant>, of: Limit) -> Self {
        match (self.at, at) {
            (Some(mine), Some(other)) if mine <= other => self,
            (_, Some(_)) => Self { at, of },
            (_, None) => self,
        }
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// When it ends, if the limit is the route's: whoever has not answered by then is slow. A caller's own limit says
    /// nothing of that.
    pub(crate) fn of_route(&self) -> Option<Instant> {
        self.at.filter(|_| matches!(self.of, Limit::Route(_)))
    }

    /// What is told to a caller when the time is over.
    pub(crate) fn cause(&self) -> Cause {
        match self.of {
            Limit::Caller | Limit::Header(_) => Cause::Deadline,
            Limit::Route(timeout) => Cause::Timeout(timeout),
        }
    }

    /// Whether there is time left. Work that ends at once would be done by [`bound`](Self::bound) though it came too late.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Cause> {
        if self.at.is_some_and(|at| at <= now) { Err(self.cause()) } else { Ok(()) }
    }

    /// Runs `work` up to the deadline.
    pub(crate) async fn bound<T>(&self, work: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
        match self.at {
            None => work.await,
            Some(at) => tokio::time::timeout_at(at, work).await.unwrap_or_else(|_| Err(self.cause())),
        }
    }
}

/// Notices that for some time no byte moved in either direction.
pub(crate) struct Silence {
    period: Duration,
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Silence {
    /// Listens from now on.
    pub(crate) fn from_now(period: Duration) -> Option<Self> {
        let since = Instant::now();
        Some(Self { period, since, sleep: Box::pin(sleep_until(since.checked_add(period)?)) })
    }

    /// A byte came.
    pub(crate) fn broken(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when it has lasted too long; `sent` tells when last a byte of the request went out.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, sent: impl Fn() -> Option<Instant>) -> Poll<Cause> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let end = sent().map_or(self.since, |sent| sent.max(self.since)).checked_add(self.period);
            match end.filter(|end| *end > Instant::now()) {
                None => return Poll::Ready(Cause::IdleTimeout(self.period)),
                Some(end) => self.sleep.as_mut().reset(end),
            }
        }
    }
}

/// Runs `work` until it ends, or until it was silent for `period`.
pub(crate) async fn unless_silent<T>(
    period: Option<Duration>,
    payload: &Payload,
    mut work: Pin<&mut impl Future<Output = Result<T, Cause>>>,
) -> Result<T, Cause> {
    let silence = period.and_then(Silence::from_now);
    let Some(mut silence) = silence else { return work.await };
    payload.watch();
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Pending => silence.poll(cx, || payload.moved()).map(Err),
        ended => ended,
    })
    .await
}

/// A timeout of policy, with the headers that say it to an endpoint: made once, for every request has the same. HPACK sends
/// each as a number after the first.
pub(crate) struct Told {
    timeout: Duration,
    grpc: TimeoutHeader,
    http: TimeoutHeader,
}

impl Told {
    /// `None`: zero is no limit.
    pub(crate) fn new(timeout: Duration) -> Option<Self> {
        let made = || Self { timeout, grpc: TimeoutHeader::of_grpc(timeout), http: TimeoutHeader::of_http(timeout) };
        (!timeout.is_zero()).then(made)
    }
}

/// Whether that header says so, whatever became of it on its way.
fn says(headers: &HeaderMap, grpc: bool, timeout: Duration) -> bool {
    let (name, read): (_, fn(&HeaderValue) -> Option<Duration>) = match grpc {
        true => (&context::GRPC_TIMEOUT, context::grpc_timeout),
        false => (&context::EXPECTED_TIMEOUT, context::expected_timeout),
    };
    let mut values = headers.get_all(name).iter();
    values.next().is_some_and(|value| read(value) == Some(timeout)) && values.next().is_none()
}

/// Less than this of a timeout has gone, and less than a 64th, when an endpoint is told the whole of it: whoever sends the
/// request ends it in time whatever the endpoint was told.
const UNSPENT: Duration = Duration::from_millis(1);

/// What tells the endpoint how much time is left, so that deadlines shrink hop by hop: `grpc-timeout`, or for
/// plain HTTP the header that Envoy uses, in place of what the request's own `headers` say. `None` = they say it already, or
/// there is no limit. `told` are those that the limit may be.
pub(crate) fn timeout_header(
    deadline: &Deadline,
    now: Instant,
    grpc: bool,
    told: [Option<&Told>; 2],
    headers: &HeaderMap,
) -> Option<(&'static HeaderName, HeaderValue)> {
    let at = deadline.at?;
    let left = at.saturating_duration_since(now);
    let whole = |timeout: Duration| timeout.saturating_sub(left) < UNSPENT.min(timeout / 64);
    let header = match deadline.of {
        Limit::Header(timeout) if whole(timeout) && says(headers, grpc, timeout) => return None,
        Limit::Route(timeout) if whole(timeout) => {
            let told = told.into_iter().flatten().find(|told| told.timeout == timeout);
            told.map(|told| if grpc { &told.grpc } else { &told.http })
        }
        _ => None,
    };
    let made = || if grpc { TimeoutHeader::of_grpc(left) } else { TimeoutHeader::of_http(left) }.once();
    Some(header.cloned().unwrap_or_else(made).into_parts())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_timeout(deadline: &Deadline, grpc: bool, told: [Option<&Told>; 2], headers: &mut HeaderMap) {
        if let Some((name, value)) = timeout_header(deadline, Instant::now(), grpc, told, headers) {
            headers.insert(name, value);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_limit_counts_and_says_whose_it_is() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let deadline = Deadline::none().caller(Some(now + 2 * second)).route(now, second);
        assert_eq!(deadline.at(), Some(now + second));
        assert!(matches!(deadline.cause(), Cause::Timeout(_)));
        let deadline = Deadline::none().route(now, 3 * second).caller(Some(now + second)).caller(None);
        assert!(matches!(deadline.cause(), Cause::Deadline));

        let mut headers = HeaderMap::new();
        write_timeout(&deadline, true, [None; 2], &mut headers);
        assert_eq!(context::grpc_timeout(&headers[&context::GRPC_TIMEOUT]), Some(second));
        write_timeout(&deadline, false, [None; 2], &mut headers);
        assert_eq!(headers[&context::EXPECTED_TIMEOUT], "1000");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_is_told_the_whole_timeout_while_next_to_nothing_of_it_is_gone() {
        let (begun, timeout) = (Instant::now(), Duration::from_secs(2));
        let told = Told::new(timeout).unwrap();
        assert!(Told::new(Duration::ZERO).is_none());
        let of_route = Deadline::none().route(begun, timeout);
        let of_header = Deadline::none().header(begun, Some(timeout));
        // What is said, and whether HPACK may remember it. A header of the application's stays as it is.
        let own = |grpc: bool| if grpc { ("grpc-timeout", "2S") } else { ("x-envoy-expected-rq-timeout-ms", "2000") };
        let said = |deadline: &Deadline, grpc: bool, told: Option<&Told>| {
            let mut headers = HeaderMap::new();
            if told.is_none() {
                headers.insert(own(grpc).0, own(grpc).1.parse().unwrap());
            }
            write_timeout(deadline, grpc, [None, told], &mut headers);
            let value = headers.values().next().cloned();
            value.map(|value| (value.to_str().unwrap().to_owned(), !value.is_sensitive()))
        };
        let is = |text: &str, kept| Some((text.to_owned(), kept));
        assert_eq!(said(&of_route, true, Some(&told)), is("2000000u", true));
        assert_eq!(said(&of_route, false, Some(&told)), is("2000", true));
        assert_eq!((said(&of_header, true, None), said(&of_header, false, None)), (is("2S", true), is("2000", true)));
        // What a route's header operations have made of it is no limit.
        for value in ["60000", "", "2000, 2000"] {
            let mut headers = HeaderMap::new();
            headers.insert("x-envoy-expected-rq-timeout-ms", value.parse().unwrap());
            write_timeout(&of_header, false, [None; 2], &mut headers);
            assert_eq!(headers["x-envoy-expected-rq-timeout-ms"], "2000");
        }
        // The controls: another limit than the one that was told, and time that has gone.
        let shorter = of_route.route(begun, Duration::from_secs(1));
        assert_eq!(said(&shorter, false, Some(&told)), is("1000", false));
        mesh_testkit::clock::pass(Duration::from_millis(2)).await;
        assert_eq!(said(&of_route, true, Some(&told)), is("1998000u", false));
        assert_eq!(said(&of_route, false, Some(&told)), is("1998", false));
        assert_eq!(said(&of_header, false, None), is("1998", false));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_work_and_a_body_that_moves_is_no_silence() {
        use std::pin::pin;

        use futures_util::stream;
        use http_body::Frame;
        use http_body_util::{BodyExt, StreamBody};
        use mesh_core::error::BoxError;

        let (start, period) = (Instant::now(), Duration::from_secs(10));
        let never = pin!(std::future::pending::<Result<(), Cause>>());
        let ended = unless_silent(Some(period), &Payload::Empty, never).await;
        assert!(matches!(ended, Err(Cause::IdleTimeout(p)) if p == period));
        assert_eq!(start.elapsed(), period);

        // Control: five chunks, six seconds apart, and then nothing.
        let chunks = stream::unfold(0, |sent| async move {
            if sent == 5 {
                return None;
            }
            mesh_testkit::clock::pass(Duration::from_secs(6)).await;
            Some((Ok::<_, BoxError>(Frame::data(bytes::Bytes::from_static(b"x"))), sent + 1))
        });
        let (start, payload) = (Instant::now(), Payload::new(StreamBody::new(chunks), 1024));
        let sending = pin!(async {
            let mut body = payload.body();
            while body.frame().await.is_some() {}
            std::future::pending::<Result<(), Cause>>().await
        });
        assert!(unless_silent(Some(period), &payload, sending).await.is_err());
        assert_eq!(start.elapsed(), Duration::from_secs(5 * 6) + period);
    }
}
