//! The body of a stream of reports (`xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`): the first at once, the
//! others at the interval that was asked for, until the peer goes or the server drains.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::{Sleep, sleep};

use mesh_core::drain::DrainWatch;
use mesh_core::orca::{self, Frames};

use super::LoadReports;

/// Reports one after the other.
pub(crate) struct ReportStream {
    reports: Arc<LoadReports>,
    drained: Pin<Box<dyn Future<Output = ()> + Send>>,
    wait: Wait,
}

enum Wait {
    /// For the request.
    Asked(Pin<Box<dyn Future<Output = Duration> + Send>>),
    /// For the next report.
    Next(Pin<Box<Sleep>>, Duration),
    /// For nothing: it has ended.
    Ended,
}

impl ReportStream {
    pub(super) fn new<B>(reports: Arc<LoadReports>, body: B, drain: &DrainWatch) -> Self
    where
        B: Body<Data: Buf> + Send + 'static,
    {
        Self { reports, drained: Box::pin(drain.drained()), wait: Wait::Asked(Box::pin(asked(body))) }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.wait, Wait::Ended)
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if self.has_ended() {
            return Poll::Ready(None);
        }
        if self.drained.as_mut().poll(cx).is_ready() {
            self.wait = Wait::Ended;
            return Poll::Ready(Some(Frame::trailers(unavailable())));
        }
        let interval = match &mut self.wait {
            Wait::Asked(asked) => match asked.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(interval) => interval.max(self.reports.floor),
            },
            Wait::Next(due, interval) => match due.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => *interval,
            },
            Wait::Ended => return Poll::Ready(None),
        };
        self.wait = Wait::Next(Box::pin(sleep(interval)), interval);
        let message = orca::encode(&self.reports.report(0));
        Poll::Ready(Some(Frame::data(orca::frame(&message))))
    }
}

/// The interval that the request asks for; 0 if it cannot be read.
async fn asked<B>(body: B) -> Duration
where
    B: Body<Data: Buf>,
{
    let mut body = pin!(body);
    let mut frames = Frames::default();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(mut data) = frame.into_data() {
            frames.push(&data.copy_to_bytes(data.remaining()));
        }
        match frames.next_message() {
            Ok(Some(message)) => return orca::decode_request(&message).unwrap_or_default(),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    Duration::ZERO
}

/// The server leaves: gRPC status 14.
fn unavailable() -> HeaderMap {
    [
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static("14")),
        (HeaderName::from_static("grpc-message"), HeaderValue::from_static("the server is draining")),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body_util::Full;
    use mesh_core::drain;
    use mesh_testkit::clock::pass;

    use super::super::LoadReporter;
    use super::*;

    fn has_report(stream: &mut ReportStream) -> bool {
        let frame = stream.poll_frame(&mut Context::from_waker(Waker::noop()));
        matches!(frame, Poll::Ready(Some(frame)) if frame.is_data())
    }

    /// gRFC A51.
    #[tokio::test(start_paused = true)]
    async fn reports_come_at_the_interval_that_is_asked_for_but_not_below_the_servers() {
        let tick = Duration::from_millis(2);
        for (asked, floor, want) in [(30, 10, 30), (1, 10, 10), (0, 10, 10)] {
            let [asked, floor, want] = [asked, floor, want].map(Duration::from_secs);
            let reports = Arc::new(LoadReports::new(LoadReporter::new(), floor));
            let (_trigger, watch) = drain::channel();
            let message = orca::frame(&orca::encode_request(asked));
            let mut stream = ReportStream::new(reports, Full::new(message), &watch);
            assert!(has_report(&mut stream), "the first at once");
            for _ in 0..3 {
                pass(want - tick).await;
                assert!(!has_report(&mut stream), "{asked:?}");
                pass(2 * tick).await;
                assert!(has_report(&mut stream), "{asked:?}");
            }
        }
    }
}
