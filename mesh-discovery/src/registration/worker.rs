//! The task that keeps an announcement alive.
//!
//! ```text
//! connecting ──▶ announced ──(stream ends, refused)──▶ waiting ──▶ connecting …
//!      any state ──withdraw──▶ nobody can know of us ──▶ end
//!                          └──▶ connecting ──▶ announced ──▶ withdrawn ──▶ end
//!                                   └──(failed)──▶ again, until nobody waits any more
//! ```
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use mesh_core::source::{Publisher, Watched};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Registration, RegistrationState};
use crate::backoff::Backoff;
use crate::connect::{AbortOnDrop, Connection, Connector, status_text};
use crate::proto::registry::{AnnounceRequest, AnnounceResponse, Announcement, RegistryServiceClient};

/// Waits between connections.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The same of a process that leaves: a lame duck has seconds, and few leave at once.
const LEAVING_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(500));
/// Longest wait for each step of a withdrawal, before it is tried over another connection.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Announces an endpoint on `runtime` until the answer is dropped or withdrawn.
pub fn announce(announcement: Announcement, connector: Connector, runtime: &Handle) -> Registration {
    let (publisher, state) = Watched::channel(RegistrationState::Pending);
    let (withdraw, withdrawn) = oneshot::channel();
    let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let announcer =
        Announcer { announcement, connector, publisher, withdrawn, leaving: None, may_be_known: false, backoff };
    let worker = AbortOnDrop(runtime.spawn(announcer.run()));
    Registration { state, withdraw, _worker: worker }
}

struct Announcer {
    announcement: Announcement,
    connector: Connector,
    publisher: Publisher<RegistrationState>,
    /// Tells when to withdraw, and whom to tell that it is done.
    withdrawn: oneshot::Receiver<oneshot::Sender<()>>,
    /// What that gave.
    leaving: Option<oneshot::Sender<()>>,
    /// The control plane has heard of us and not refused us: the endpoint may be in its table and on its disk, whatever became of
    /// the connection. A refusal takes back the announcement that it answers, and none of an earlier connection: another one of
    /// several control planes may have heard that.
    may_be_known: bool,
    backoff: Backoff,
}

impl Announcer {
    async fn run(mut self) {
        let mut random = fastrand::Rng::new();
        loop {
            let Some(why) = self.once().await else { break };
            tracing::warn!(service = %self.announcement.service, error = %why, "not registered with the control plane");
            if *self.publisher.load_full() == RegistrationState::Accepted {
                self.publisher.publish(RegistrationState::Pending);
            }
            if self.leaving.is_some() && !self.may_be_known {
                break;
            }
            let wait = self.backoff.next(random.f64());
            let was_leaving = self.leaving.is_some();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.withdrawal(), if !was_leaving => {}
            }
        }
        if let Some(done) = self.leaving.take() {
            let _ = done.send(());
        }
    }

    /// Waits for the word to withdraw, which is kept.
    async fn withdrawal(&mut self) {
        if self.leaving.is_some() {
            return;
        }
        match (&mut self.withdrawn).await {
            Ok(done) => {
                self.leaving = Some(done);
                self.backoff = Backoff::new(LEAVING_BACKOFF.0, LEAVING_BACKOFF.1);
            }
            // Dropped: the task is about to be stopped.
            Err(_) => pending().await,
        }
    }

    /// One connection, from the first try to its end (gives why) or to the end of the withdrawal (gives nothing).
    async fn once(&mut self) -> Option<String> {
        let connected = loop {
            let connector = self.connector.clone();
            let connecting = connector.connect();
            if self.leaving.is_some() {
                // Known nowhere: there is nothing to take back.
                if !self.may_be_known {
                    return None;
                }
                break timeout(WITHDRAWAL_TIMEOUT, connecting)
                    .await
                    .map(|connected| connected.map_err(|e| e.to_string()));
            }
            tokio::select! {
                connected = connecting => break Ok(connected.map_err(|e| e.to_string())),
                () = self.withdrawal() => {}
            }
        };
        let connection = match connected {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Some(error),
            Err(late) => return Some(late.to_string()),
        };
        let mut opening = pin!(Open::begin(connection, self.announcement.clone()));
        // From here on the control plane may know of us, answered or not: a withdrawal has to reach it.
        let was_known = std::mem::replace(&mut self.may_be_known, true);
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = self.withdrawal() => {
                timeout(WITHDRAWAL_TIMEOUT, opening)
                    .await
                    .unwrap_or_else(|late| Err(Status::deadline_exceeded(late.to_string())))
            }
        };
        match opened {
            Ok(stream) => self.hold(stream, was_known).await,
            Err(status) => {
                self.may_be_known = was_known || !is_refusal(status.code());
                Some(status_text(&status))
            }
        }
    }

    async fn hold(&mut self, mut stream: Open, was_known: bool) -> Option<String> {
        loop {
            if self.leaving.is_some() {
                // Whatever the announcement is answered: one that is refused leaves nothing to take back there.
                return stream.withdraw().await;
            }
            tokio::select! {
                answer = stream.answers.message() => match answer {
                    Ok(Some(AnnounceResponse { accepted: true, reason })) => {
                        if !reason.is_empty() {
                            tracing::warn!(?reason, "registered, and the control plane has something to say of it");
                        }
                        stream.unanswered = stream.unanswered.saturating_sub(1);
                        self.backoff.reset();
                        self.publisher.publish(RegistrationState::Accepted);
                    }
                    Ok(Some(AnnounceResponse { reason, .. })) => {
                        self.may_be_known = was_known;
                        self.publisher.publish(RegistrationState::Refused(reason.as_str().into()));
                        return Some(format!("refused: {reason}"));
                    }
                    Ok(None) => return Some("the control plane closed the stream".to_owned()),
                    Err(status) => return Some(status_text(&status)),
                },
                () = self.withdrawal() => {}
            }
        }
    }
}

/// Whether who answers so has taken nothing in.
fn is_refusal(code: Code) -> bool {
    use Code::{InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unauthenticated, Unimplemented};
    matches!(code, InvalidArgument | NotFound | PermissionDenied | ResourceExhausted | Unauthenticated | Unimplemented)
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
    async fn begin(connection: Connection, announcement: Announcement) -> Result<Self, Status> {
        let mut client = RegistryServiceClient::with_origin(connection.clone(), connection.origin());
        let (requests, outgoing) = mpsc::channel(2);
        requests.try_send(AnnounceRequest::announce(announcement)).expect("the channel is new and empty");
        let answers = client.announce(ReceiverStream::new(outgoing)).await?;
        Ok(Self { requests, answers: answers.into_inner(), unanswered: 1, _connection: connection })
    }

    /// Takes the announcement back. Gives why that has not been confirmed.
    async fn withdraw(mut self) -> Option<String> {
        let confirmation = async {
            if self.requests.send(AnnounceRequest::withdraw()).await.is_err() {
                return false;
            }
            self.unanswered += 1;
            while self.unanswered > 0 && matches!(self.answers.message().await, Ok(Some(_))) {
                self.unanswered -= 1;
            }
            self.unanswered == 0
        };
        match timeout(WITHDRAWAL_TIMEOUT, confirmation).await {
            Ok(true) => None,
            Ok(false) => Some("the stream ended before the withdrawal was confirmed".to_owned()),
            Err(_) => Some("the withdrawal has not been confirmed in time".to_owned()),
        }
    }
}
