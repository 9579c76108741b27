//! The one task behind an [`XdsClient`](super::XdsClient): connects, talks, waits, and tries again.
//!
//! ```text
//! connecting ──▶ open ──(stream ends)──▶ waiting ──▶ connecting …
//! ```
//! Subscriptions are taken in every state. A response is worked off completely before the next one is
//! read, so a slow process slows its control plane down and not itself (xDS flow control).
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::ads::Ads;
use super::report::Report;
use super::resource::PolicyCodec;
use super::transport::{AdsStream, StreamError, Transport};
use crate::backoff::Backoff;
use crate::cascade::{Cascade, Root, SubscriptionId};
use crate::connect::AbortOnDrop;

/// What the handle asks of the worker.
pub(super) enum Command {
    /// Follow this.
    Subscribe(SubscriptionId, Root),
    /// Follow it no longer.
    Unsubscribe(SubscriptionId),
}

/// Waits between connections.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

pub(super) fn spawn<T: Transport>(
    ads: Ads<PolicyCodec>,
    transport: T,
    commands: mpsc::UnboundedReceiver<Command>,
    report: Arc<Report>,
    ready: watch::Sender<bool>,
    runtime: &Handle,
) -> AbortOnDrop {
    let core = Core { ads, cascade: Cascade::default(), commands, report, ready };
    AbortOnDrop(runtime.spawn(run(core, transport)))
}

async fn run<T: Transport>(mut core: Core, mut transport: T) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut random = fastrand::Rng::new();
    loop {
        let ended = match core.until(transport.open()).await {
            Ok(stream) => core.talk(stream, &mut backoff).await,
            Err(error) => Some(error),
        };
        core.closed(ended);
        let wait = backoff.next(random.f64());
        core.until(tokio::time::sleep(wait)).await;
    }
}

/// Everything the worker owns.
struct Core {
    ads: Ads<PolicyCodec>,
    cascade: Cascade,
    commands: mpsc::UnboundedReceiver<Command>,
    report: Arc<Report>,
    ready: watch::Sender<bool>,
}

impl Core {
    /// Waits for `work` while subscriptions go on being taken.
    async fn until<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                Some(command) = self.commands.recv() => self.command(command),
                output = &mut work => return output,
            }
        }
    }

    /// Talks on one stream until it ends; gives why, unless it ended in order.
    async fn talk(&mut self, stream: AdsStream, backoff: &mut Backoff) -> Option<StreamError> {
        let AdsStream { requests, mut responses } = stream;
        self.ads.opened();
        self.report.change_status(|status| {
            status.connected = true;
            status.streams_opened += 1;
        });
        self.ready.send_replace(true);
        let mut answered = false;
        let mut writable = true;
        loop {
            let deadline = self.ads.next_deadline();
            tokio::select! {
                biased;
                Some(command) = self.commands.recv() => self.command(command),
                permit = requests.reserve(), if writable && self.ads.has_request() => match permit {
                    Ok(permit) => {
                        if let Some((kind, request)) = self.ads.take_request() {
                            permit.send(request);
                            self.ads.written(kind, Instant::now());
                            self.publish_report();
                        }
                    }
                    // The reading side knows why.
                    Err(_) => writable = false,
                },
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        backoff.reset();
                        answered = true;
                        self.response(response);
                    }
                    Some(Err(error)) => return Some(error),
                    // Before a first response, even an orderly end is a failure (gRFC A57).
                    None if answered => return None,
                    None => return Some(StreamError::new("the control plane closed the stream without an answer")),
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    let expired = self.ads.expire(Instant::now());
                    self.cascade.changed(&expired, &mut self.ads);
                    self.publish_report();
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Subscribe(id, root) => self.cascade.add(id, root, &mut self.ads),
            Command::Unsubscribe(id) => self.cascade.remove(id, &mut self.ads),
        }
        self.publish_report();
    }

    fn response(&mut self, response: DiscoveryResponse) {
        let taken = self.ads.response(response);
        self.cascade.changed(&taken.changed, &mut self.ads);
        self.report.change_status(|status| {
            status.responses += 1;
            status.nacks += u64::from(taken.refused);
            status.last_error = None;
        });
        self.publish_report();
    }

    fn closed(&mut self, why: Option<StreamError>) {
        self.ads.closed();
        if let Some(error) = &why {
            tracing::warn!(%error, "no configuration from the control plane; what is known stays in use");
        } else {
            tracing::debug!("the control plane closed the xDS stream");
        }
        self.report.change_status(|status| {
            status.connected = false;
            if let Some(error) = why {
                status.last_error = Some(error.to_string());
            }
        });
        self.publish_report();
    }

    fn publish_report(&mut self) {
        for key in self.ads.take_touched() {
            let entry = self.ads.entry(&key);
            self.report.record(key.clone(), entry);
        }
    }
}
