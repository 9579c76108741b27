//! The task that keeps an announcement alive.
//!
//! ```text
//! connecting ──▶ announced ──(stream ends, refused)──▶ waiting ──▶ connecting …
//!      any state ──withdraw──▶ told the control plane, if connected ──▶ end
//! ```
#![allow(clippy::disallowed_methods, reason = "the one spawn of this module, through an owned handle")]

use std::time::Duration;

use mesh_core::source::{Publisher, Watched};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
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

type Withdrawn = oneshot::Receiver<oneshot::Sender<()>>;

async fn run(
    announcement: Announcement,
    connector: Connector,
    publisher: Publisher<RegistrationState>,
    mut withdrawn: Withdrawn,
) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut random = fastrand::Rng::new();
    loop {
        let opened = tokio::select! {
            opened = open(&connector, &announcement) => opened,
            // Announced nowhere: there is nothing to take back.
            _ = &mut withdrawn => return,
        };
        let ended = match opened {
            Ok(stream) => hold(stream, &publisher, &mut withdrawn, &mut backoff).await,
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

/// An announcing stream; the connection closes with it.
struct Open {
    requests: mpsc::Sender<AnnounceRequest>,
    answers: Streaming<AnnounceResponse>,
    _connection: Connection,
}

/// Connects and announces.
async fn open(connector: &Connector, announcement: &Announcement) -> Result<Open, String> {
    let connection = connector.connect().await.map_err(|e| e.to_string())?;
    let mut client = RegistryServiceClient::with_origin(connection.clone(), connection.origin());
    let (requests, outgoing) = mpsc::channel(2);
    requests.try_send(AnnounceRequest::announce(announcement.clone())).expect("the channel is new and empty");
    let answers = client.announce(ReceiverStream::new(outgoing)).await.map_err(|status| status_text(&status))?;
    Ok(Open { requests, answers: answers.into_inner(), _connection: connection })
}

/// Stays until the stream ends (gives why) or the withdrawal is done (gives nothing).
async fn hold(
    mut stream: Open,
    publisher: &Publisher<RegistrationState>,
    withdrawn: &mut Withdrawn,
    backoff: &mut Backoff,
) -> Option<String> {
    loop {
        tokio::select! {
            answer = stream.answers.message() => match answer {
                Ok(Some(AnnounceResponse { accepted: true, .. })) => {
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
            done = &mut *withdrawn => {
                let confirmation = async {
                    if stream.requests.send(AnnounceRequest::withdraw()).await.is_ok() {
                        // Whatever comes, an answer or the end of the stream, settles it.
                        let _ = stream.answers.message().await;
                    }
                };
                let _ = tokio::time::timeout(WITHDRAWAL_TIMEOUT, confirmation).await;
                if let Ok(done) = done {
                    let _ = done.send(());
                }
                return None;
            }
        }
    }
}
