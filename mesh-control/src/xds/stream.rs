//! One open stream: joins what the client says, what is due for it, and its [`Session`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_core::drain::DrainWatch;
use mesh_core::limit::Pace;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status, Streaming};

use super::cache::{Cache, Mailbox};
use super::decode::Fields;
use super::message::{DeltaResponse, StateResponse};
use super::nodes::NodeEntry;
use super::session::{Form, Outcome, PIECE, Refused, Response, Session};
use super::unread::Unread;
use super::{Kind, Limits, scope};
use crate::runtime::{Peer, Refusals};

/// Characters of a node's own words that are kept.
const MAX_HINT: usize = 256;
/// How this library's clients call themselves (`node.user_agent_name`).
const OWN_AGENT: &str = "mesh";

/// The requests of one form of the protocol.
pub(super) trait Asked: prost::Message + Default + Send + 'static {
    const FORM: Form;
    const FIELDS: Fields;
    /// What answers it.
    type Answer: prost::Message + Send + 'static;

    /// Takes out who asks.
    fn node(&mut self) -> Option<Node>;
    fn type_url(&self) -> &str;
    fn nonce(&self) -> &str;
    /// What it subscribes to.
    fn names(&self) -> &[String];
    fn take_in(self, session: &mut Session) -> Result<Outcome, Refused>;
    fn answer(response: Response) -> Option<Self::Answer>;
}

/// One open stream.
pub(super) struct AdsStream<R> {
    pub(super) requests: Streaming<R>,
    pub(super) unread: Unread,
    pub(super) cache: Arc<Cache>,
    pub(super) limits: Limits,
    pub(super) refusals: Arc<Refusals>,
    pub(super) drain: DrainWatch,
    pub(super) peer: Peer,
    pub(super) entry: NodeEntry,
    pub(super) pace: Pace,
    /// None until the first request has said who asks.
    pub(super) mailbox: Option<Arc<Mailbox>>,
}

impl<R: Asked> AdsStream<R> {
    /// The next response, with the stream to go on with; `None` as stream ends it.
    pub(super) async fn next(mut self) -> Option<(Result<R::Answer, Status>, Option<Self>)> {
        loop {
            let (response, late) = self.entry.due(&self.peer, Instant::now());
            if let Some(response) = response.and_then(R::answer) {
                self.entry.nodes.pushes.fetch_add(1, Ordering::Relaxed);
                return Some((Ok(response), Some(self)));
            }
            let woken = async {
                match &self.mailbox {
                    Some(mailbox) => mailbox.woken().await,
                    None => std::future::pending().await,
                }
            };
            let late = async {
                match late {
                    Some(late) => sleep_until(late).await,
                    None => std::future::pending().await,
                }
            };
            let request = async {
                sleep_until(self.pace.next()).await;
                self.requests.message().await
            };
            tokio::select! {
                () = self.drain.drained() => return None,
                () = woken => {}
                () = late => {}
                request = request => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.request(request).await {
                            self.refusals.stream("configuration", &self.peer, &status);
                            return Some((Err(status), None));
                        }
                        self.unread.taken();
                    }
                    Ok(None) => return None,
                    Err(status) => return self.broke(&status).map(|refusal| (Err(refusal), None)),
                },
            }
        }
    }

    /// What to say to a client whose request could not be read, if it hears it.
    fn broke(&self, status: &Status) -> Option<Status> {
        let Some(refusal) = refusal(&self.unread, status) else {
            tracing::debug!(peer = %self.peer, code = ?status.code(), "a configuration stream broke");
            return None;
        };
        self.entry.nodes.refused.fetch_add(1, Ordering::Relaxed);
        self.refusals.stream("configuration", &self.peer, &refusal);
        Some(refusal)
    }

    async fn request(&mut self, mut request: R) -> Result<(), Status> {
        self.pace.take(Instant::now());
        // Not kept while what it asks for is made.
        self.introduce(request.node().as_ref())?;
        let large = self.begin(&request).await?;
        self.take_in(request)?;
        let Some((kind, names)) = large else { return Ok(()) };
        for piece in names.chunks(PIECE) {
            if let Some(session) = &mut self.entry.node.lock().session {
                session.begun(kind, piece);
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn take_in(&self, request: R) -> Result<(), Status> {
        let type_url = request.type_url().to_owned();
        let nodes = &self.entry.nodes;
        let mut node = self.entry.node.lock();
        let Some(session) = &mut node.session else { return Ok(()) };
        let outcome = request.take_in(session).map_err(|refused| self.refuse(&refused))?;
        if outcome.acked {
            nodes.acks.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(reason) = outcome.nacked {
            self.entry.nacked(&self.peer, &node.id, &type_url, &reason);
        }
        Ok(())
    }

    /// The first request says who asks.
    fn introduce(&mut self, said: Option<&Node>) -> Result<(), Status> {
        let mut node = self.entry.node.lock();
        if node.session.is_some() {
            return Ok(());
        }
        let scope = scope::scope_of(&self.peer.caller, said)?;
        let claims = said.map(|node| scope::false_claims(&self.peer.caller, node)).unwrap_or_default();
        if !claims.is_empty() {
            self.entry.claims(&self.peer, &claims);
        }
        node.id = said.map(|node| hint(&node.id)).unwrap_or_default();
        node.user_agent = said.map(|node| hint(&node.user_agent_name)).unwrap_or_default();
        node.user_agent_version = match said.and_then(|node| node.user_agent_version_type.as_ref()) {
            Some(UserAgentVersionType::UserAgentVersion(version)) => hint(version),
            _ => String::new(),
        };
        if let Some(left_out) = self.entry.opens() {
            tracing::info!(
                peer = %self.peer, node = ?node.id, namespace = ?scope.namespace, form = ?R::FORM, left_out,
                "configuration stream opened"
            );
        }
        let explained = node.user_agent == OWN_AGENT;
        let seat = self.cache.seat(scope, &self.entry.account);
        let session = Session::new(seat, R::FORM, explained, self.limits);
        self.mailbox = Some(session.mailbox());
        node.session = Some(session);
        Ok(())
    }

    /// Has made what a large request asks for, piece by piece, so that others get their turn; gives the names.
    async fn begin(&self, request: &R) -> Result<Option<(Kind, Vec<String>)>, Status> {
        let large = |session: &Session| session.is_large(request.type_url(), request.nonce(), request.names());
        let Some((kind, names)) = self.entry.node.lock().session.as_ref().and_then(large) else { return Ok(None) };
        for piece in names.chunks(PIECE) {
            let begun = self.entry.node.lock().session.as_mut().map(|session| session.begin(kind, piece));
            begun.unwrap_or(Ok(())).map_err(|refused| self.refuse(&refused))?;
            tokio::task::yield_now().await;
        }
        Ok(Some((kind, names)))
    }

    fn refuse(&self, refused: &Refused) -> Status {
        self.entry.nodes.refused.fetch_add(1, Ordering::Relaxed);
        Status::resource_exhausted(refused.to_string())
    }
}

impl Asked for DiscoveryRequest {
    const FORM: Form = Form::State;
    const FIELDS: Fields = Fields { names: &[3], versions: None, messages: &[2, 6, 7], error: 6, type_url: 4 };
    type Answer = StateResponse;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn nonce(&self) -> &str {
        &self.response_nonce
    }

    fn names(&self) -> &[String] {
        &self.resource_names
    }

    fn take_in(self, session: &mut Session) -> Result<Outcome, Refused> {
        session.state_request(self)
    }

    fn answer(response: Response) -> Option<StateResponse> {
        match response {
            Response::State(response) => Some(response),
            Response::Delta(_) => None,
        }
    }
}

impl Asked for DeltaDiscoveryRequest {
    const FORM: Form = Form::Delta;
    const FIELDS: Fields = Fields { names: &[3, 4], versions: Some(5), messages: &[1, 7, 8, 9], error: 7, type_url: 2 };
    type Answer = DeltaResponse;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn nonce(&self) -> &str {
        &self.response_nonce
    }

    fn names(&self) -> &[String] {
        &self.resource_names_subscribe
    }

    fn take_in(self, session: &mut Session) -> Result<Outcome, Refused> {
        session.delta_request(self)
    }

    fn answer(response: Response) -> Option<DeltaResponse> {
        match response {
            Response::Delta(response) => Some(response),
            Response::State(_) => None,
        }
    }
}

/// Why requests are no longer read, if that was decided here. Another end has any code that the client likes: it is the
/// reason of its reset.
fn refusal(unread: &Unread, status: &Status) -> Option<Status> {
    let why = match unread.refused() {
        Some(refused) => refused.to_string(),
        // As the decoder says it, and nothing else.
        None if status.code() == Code::OutOfRange => {
            format!("{}; subscribe to fewer names, or with `*` to all", status.message())
        }
        None => return None,
    };
    Some(Status::resource_exhausted(why))
}

fn hint(text: &str) -> String {
    text.chars().take(MAX_HINT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_resets_its_stream_is_not_refused_whatever_reason_it_gives() {
        let unread = Unread::new(&Arc::default(), 100);
        // As tonic reads ENHANCE_YOUR_CALM, CANCEL and INADEQUATE_SECURITY.
        for reset in [Code::ResourceExhausted, Code::Cancelled, Code::PermissionDenied] {
            assert!(refusal(&unread, &Status::new(reset, "reset")).is_none(), "{reset:?}");
        }
        // The control: what is refused here.
        let too_long = refusal(&unread, &Status::out_of_range("too large")).unwrap();
        assert!(too_long.code() == Code::ResourceExhausted && too_long.message().contains("fewer names"), "{too_long}");
        let said = unread.refuse(Refused::TooMuch { kept: 2, most: 1 });
        assert_eq!(refusal(&unread, &said).unwrap().message(), said.message());
    }
}
