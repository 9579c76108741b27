//! The task that keeps an announcement alive.
//!
//! ```text
//! connecting ──▶ announced ──(stream ends, refused)──▶ waiting ──▶ connecting …
//!      any state ──withdraw──▶ told the control plane, if connected ──▶ end
//! ```
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::pin::pin;
use std::time::Duration;

use mesh_core::source::{Publisher, Watched};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Registration, RegistrationState};
use crate::backoff::Backoff;
use crate::connect::{AbortOnDrop, Connection, Connector, status_text};
use crate::proto::registry::{AnnounceRequest, AnnounceResponse, Announcement, RegistryServiceClient};

/// Waits between connections.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Longest wait for the confirmation of a withdrawal.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Announces an endpoint on `runtime` until the answer is dropped or withdrawn.
pub fn announce(announcement: Announcement, connector: Connector, runtime: &Handle) -> Registration {
    let (publisher, state) = Watched::channel(RegistrationState::Pending);
    let (withdraw, withdrawn) = oneshot::channel();
    let worker = AbortOnDrop(runtime.spawn(run(announcement, connector, publisher, withdrawn)));
    Registration { state, withdraw, _worker: worker }
}

/// Tells when to withdraw, and whom to tell that it is done.
type Withdrawn = oneshot::Receiver<oneshot::Sender<()>>;
/// What a [`Withdrawn`] gave.
type Farewell = Result<oneshot::Sender<()>, oneshot::error::RecvError>;

async fn run(
    announcement: Announcement,
    connector: Connector,
    publisher: Publisher<RegistrationState>,
    mut withdrawn: Withdrawn,
) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut random = fastrand::Rng::new();
    loop {
        let connected = tokio::select! {
            connected = connector.connect() => connected.map_err(|e| e.to_string()),
            // Announced nowhere: there is nothing to take back.
            _ = &mut withdrawn => return,
        };
        let ended = match connected {
            Ok(connection) => attend(connection, &announcement, &publisher, &mut withdrawn, &mut backoff).await,
            Err(error) => Some(error),
        };
        let Some(why) = ended else { return };
        tracing::warn!(service = %announcement.service, error = %why, "not registered with the control plane");
        if *publisher.load_full() == RegistrationState::Accepted {
            publisher.publish(RegistrationState::Pending);
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(random.f64())) => {}
            _ = &mut withdrawn => return,
        }
    }
}

/// Announces on a connection and stays until the stream ends (gives why) or the withdrawal is done (gives
/// nothing).
async fn attend(
    connection: Connection,
    announcement: &Announcement,
    publisher: &Publisher<RegistrationState>,
    withdrawn: &mut Withdrawn,
    backoff: &mut Backoff,
) -> Option<String> {
    let mut opening = pin!(Open::begin(connection, announcement));
    // From here on the control plane may know of us, answered or not: a withdrawal has to reach it.
    let (opened, farewell) = tokio::select! {
        opened = &mut opening => (opened, None),
        farewell = &mut *withdrawn => {
            (timeout(WITHDRAWAL_TIMEOUT, opening).await.unwrap_or_else(|late| Err(late.to_string())), Some(farewell))
        }
    };
    let stream = match (opened, farewell) {
        (Ok(stream), None) => stream,
        (Ok(stream), Some(farewell)) => {
            stream.withdraw(farewell).await;
            return None;
        }
        (Err(_), Some(_)) => return None,
        (Err(error), None) => return Some(error),
    };
    stream.hold(publisher, withdrawn, backoff).await
}

/// An announcing stream; the connection closes with it.
struct Open {
    requests: mpsc::Sender<AnnounceRequest>,
    answers: Streaming<AnnounceResponse>,
    /// Requests not answered yet; each gets one answer, in order.
    unanswered: usize,
    _connection: Connection,
}

impl Open {
    async fn begin(connection: Connection, announcement: &Announcement) -> Result<Self, String> {
        let mut client = RegistryServiceClient::with_origin(connection.clone(), connection.origin());
        let (requests, outgoing) = mpsc::channel(2);
        requests.try_send(AnnounceRequest::announce(announcement.clone())).expect("the channel is new and empty");
        let answers = client.announce(ReceiverStream::new(outgoing)).await.map_err(|status| status_text(&status))?;
        Ok(Self { requests, answers: answers.into_inner(), unanswered: 1, _connection: connection })
    }

    async fn hold(
        mut self,
        publisher: &Publisher<RegistrationState>,
        withdrawn: &mut Withdrawn,
        backoff: &mut Backoff,
    ) -> Option<String> {
        loop {
            tokio::select! {
                answer = self.answers.message() => match answer {
                    Ok(Some(AnnounceResponse { accepted: true, reason })) => {
                        if !reason.is_empty() {
                            tracing::warn!(?reason, "registered, and the control plane has something to say of it");
                        }
                        self.unanswered = self.unanswered.saturating_sub(1);
                        backoff.reset();
                        publisher.publish(RegistrationState::Accepted);
                    }
                    Ok(Some(AnnounceResponse { reason, .. })) => {
                        publisher.publish(RegistrationState::Refused(reason.as_str().into()));
                        return Some(format!("refused: {reason}"));
                    }
                    Ok(None) => return Some("the control plane closed the stream".to_owned()),
                    Err(status) => return Some(status_text(&status)),
                },
                farewell = &mut *withdrawn => {
                    self.withdraw(farewell).await;
                    return None;
                }
            }
        }
    }

    /// Takes the announcement back and waits for the answer to that, or for the end of the stream.
    async fn withdraw(mut self, farewell: Farewell) {
        let confirmation = async {
            if self.requests.send(AnnounceRequest::withdraw()).await.is_err() {
                return;
            }
            self.unanswered += 1;
            while self.unanswered > 0 && matches!(self.answers.message().await, Ok(Some(_))) {
                self.unanswered -= 1;
            }
        };
        // Late or not, the process goes.
        let _ = timeout(WITHDRAWAL_TIMEOUT, confirmation).await;
        if let Ok(done) = farewell {
            let _ = done.send(());
        }
    }
}
