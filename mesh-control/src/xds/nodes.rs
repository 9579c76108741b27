//! [`Nodes`]: who is connected, what each was sent and accepted, and how many streams there may be.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::id::SpiffeId;
use mesh_core::limit::Seldom;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use super::Limits;
use super::account::Account;
use super::session::{Form, Response, Session};
use crate::runtime::{EVERY, Peer};

/// One connected client.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// What it calls itself (`node.id`): a hint.
    pub node: String,
    /// What software it says it is, such as `envoy`: a hint.
    pub user_agent: String,
    /// Of which version it says it is; of this library's clients that of the library: a hint.
    pub user_agent_version: String,
    /// Who it proved to be; none on the plaintext listener.
    pub identity: Option<SpiffeId>,
    /// Namespace whose configuration it gets.
    pub namespace: String,
    /// From where it is connected.
    pub address: SocketAddr,
    /// `state-of-the-world` or `delta`.
    pub protocol: &'static str,
    /// Whether it has accepted the newest of everything it asked for. A refusal counts until what was refused is other, or gone,
    /// also when later responses were accepted.
    pub in_sync: bool,
    /// Whether it is an Envoy that has not had all of its clusters in use for 15 s, so that its listeners and routes no
    /// longer wait for them.
    pub late: bool,
    /// What it asked for, by type.
    pub types: Vec<TypeStatus>,
}

/// One type of one client.
#[derive(Clone, Debug, Serialize)]
pub struct TypeStatus {
    /// xDS type URL.
    pub type_url: &'static str,
    /// Whether it asked for everything.
    pub wildcard: bool,
    /// Names asked for.
    pub subscribed: usize,
    /// Names it was sent.
    pub sent: usize,
    /// Some of the names that do not exist.
    pub missing: Vec<String>,
    /// Version of the last response.
    pub version_sent: String,
    /// Version it last accepted.
    pub version_acked: String,
    /// Whether the last response is not answered yet.
    pub waiting: bool,
    /// Resources that changed since the last response, to be sent once it is answered.
    pub due: usize,
    /// Its refusal of the last response; none of one before that.
    pub nack: Option<NackStatus>,
    /// Some of the names that were in a response which it refused, whichever that was, and that it was not sent again since:
    /// of these it may go on with older versions.
    pub refused: Vec<String>,
    /// What of the newest state was not sent because no client takes a message of that size, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsent: Option<String>,
    /// Each name, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<ResourceStatus>>,
}

/// One resource of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResourceStatus {
    /// Its name.
    pub name: String,
    /// The version last sent; empty = none.
    pub version: String,
    /// `requested`, `missing` (it does not exist), `sent`, `accepted`, or `refused` (it was in a response
    /// that the client refused; the reason names those that are bad).
    pub state: &'static str,
}

/// A refused response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NackStatus {
    /// Version of the refused response.
    pub version: String,
    /// Its nonce.
    pub nonce: String,
    /// The client's reason.
    pub reason: String,
}

/// Every open stream.
#[derive(Default)]
pub(crate) struct Nodes {
    open: Mutex<Open>,
    told: Mutex<HashMap<Option<SpiffeId>, Told>>,
    pub(crate) pushes: AtomicU64,
    pub(crate) acks: AtomicU64,
    pub(crate) nacks: AtomicU64,
    pub(crate) refused: AtomicU64,
}

#[derive(Default)]
struct Open {
    streams: BTreeMap<u64, Arc<Mutex<Node>>>,
    by_identity: HashMap<Option<SpiffeId>, Own>,
    last: u64,
}

/// What one identity has.
#[derive(Default)]
struct Own {
    streams: usize,
    account: Arc<Account>,
    coming: Arc<Account>,
}

/// When the log was told of what clients of one identity say. As often as they say it would be as often as they like. It
/// outlasts their streams, which they open and close as often.
#[derive(Default)]
struct Told {
    nacks: Seldom,
    claims: Seldom,
    late: Seldom,
    opened: Seldom,
    /// When they last said something.
    at: Option<Instant>,
}

/// Identities of which the log was told a while ago. Further ones share a line at times.
const TOLD: usize = 1_000;

/// One stream, shared by the task that serves it and whoever asks how it stands.
pub(crate) struct Node {
    pub(crate) peer: Peer,
    /// `node.id`.
    pub(crate) id: String,
    pub(crate) user_agent: String,
    pub(crate) user_agent_version: String,
    /// None until the first request has said who asks.
    pub(crate) session: Option<Session>,
}

impl Nodes {
    /// Takes a stream in, unless there are too many.
    pub(crate) fn enter(self: &Arc<Self>, peer: &Peer, limits: &Limits) -> Result<NodeEntry, Status> {
        let mut open = self.open.lock();
        let identity = peer.caller.identity().cloned();
        let own = open.by_identity.get(&identity).map(|own| own.streams).unwrap_or_default();
        let refusal = if open.streams.len() >= limits.streams {
            Some(format!("the control plane serves {} streams already; try again later", limits.streams))
        } else if own >= limits.streams_of_one {
            let whose = identity.as_ref().map_or("clients without a certificate".to_owned(), ToString::to_string);
            Some(format!("{whose} has {own} streams already; close some, or use one for each process"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            drop(open);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted(refusal));
        }
        open.last += 1;
        let id = open.last;
        let own = open.by_identity.entry(identity.clone()).or_default();
        own.streams += 1;
        let (account, coming) = (own.account.clone(), own.coming.clone());
        let (user_agent, user_agent_version) = (String::new(), String::new());
        let node = Node { peer: peer.clone(), id: String::new(), user_agent, user_agent_version, session: None };
        let node = Arc::new(Mutex::new(node));
        open.streams.insert(id, node.clone());
        drop(open);
        Ok(NodeEntry { nodes: self.clone(), id, identity, account, coming, node })
    }

    /// The clients that have said who they are, longest connected first; with `resources` of those whose
    /// `node.id` is `only`, each with every name.
    pub(crate) fn list(&self, only: Option<&str>, resources: bool) -> Vec<NodeStatus> {
        // Not under one lock: streams go on while others are written down.
        let streams: Vec<_> = self.open.lock().streams.values().cloned().collect();
        let wanted = |node: &Node| only.is_none_or(|only| node.id == only);
        streams.iter().filter_map(|node| Some(node.lock()).filter(|node| wanted(node))?.status(resources)).collect()
    }

    /// `Some` = the log is to be told of what this identity says, with how many were left out.
    fn tells(&self, identity: &Option<SpiffeId>, of: fn(&mut Told) -> &mut Seldom) -> Option<u64> {
        let (mut all, now) = (self.told.lock(), Instant::now());
        if all.len() >= TOLD && !all.contains_key(identity) {
            all.retain(|_, told| told.at.is_some_and(|at| now.saturating_duration_since(at) < EVERY));
        }
        // Those without an identity are one.
        let key = if all.len() >= TOLD && !all.contains_key(identity) { &None } else { identity };
        let told = all.entry(key.clone()).or_default();
        told.at = Some(now);
        of(told).tell(EVERY, now)
    }

    /// Streams open now.
    pub(crate) fn streams(&self) -> usize {
        self.open.lock().streams.len()
    }
}

impl Node {
    fn status(&self, resources: bool) -> Option<NodeStatus> {
        let session = self.session.as_ref()?;
        let types = session.status(resources);
        let lags = |ty: &TypeStatus| ty.waiting || ty.due > 0 || ty.unsent.is_some();
        let behind = |ty: &TypeStatus| lags(ty) || ty.nack.is_some() || !ty.refused.is_empty();
        Some(NodeStatus {
            node: self.id.clone(),
            user_agent: self.user_agent.clone(),
            user_agent_version: self.user_agent_version.clone(),
            identity: self.peer.caller.identity().cloned(),
            namespace: session.scope().namespace.clone(),
            address: self.peer.address,
            protocol: match session.form() {
                Form::State => "state-of-the-world",
                Form::Delta => "delta",
            },
            in_sync: !types.iter().any(behind),
            late: session.lacks_clusters(),
            types,
        })
    }
}

/// One stream's place in [`Nodes`]; dropping it takes the stream out.
pub(crate) struct NodeEntry {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) node: Arc<Mutex<Node>>,
    /// What is kept for its identity.
    pub(crate) account: Arc<Account>,
    /// What has come of it, for those who don't count that with what they keep.
    pub(crate) coming: Arc<Account>,
    identity: Option<SpiffeId>,
    id: u64,
}

impl NodeEntry {
    /// Counts a response that the client refused, and tells of it unless another one of this identity was told of a while ago.
    pub(crate) fn nacked(&self, peer: &Peer, node: &str, type_url: &str, reason: &str) {
        self.nodes.nacks.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.nodes.tells(&self.identity, |told| &mut told.nacks) {
            tracing::warn!(%peer, ?node, ?type_url, ?reason, left_out, "a client refused configuration; it keeps its last good one");
        }
    }

    /// `Some` = the log is to be told of this stream, with how many were left out. Of who proved who it is nothing is left out.
    pub(crate) fn opens(&self) -> Option<u64> {
        if self.identity.is_some() { Some(0) } else { self.nodes.tells(&None, |told| &mut told.opened) }
    }

    /// Tells what a node says of itself that its certificate contradicts, unless another one of this identity was told of a
    /// while ago.
    pub(crate) fn claims(&self, peer: &Peer, claims: &[String]) {
        if let Some(left_out) = self.nodes.tells(&self.identity, |told| &mut told.claims) {
            tracing::warn!(
                target: "mesh::audit", %peer, ?claims, left_out,
                "a node claims to be another one than its certificate says; the claim is ignored"
            );
        }
    }

    /// The response that may be sent, and when there may be another though nothing happens.
    pub(crate) fn due(&self, peer: &Peer, now: Instant) -> (Option<Response>, Option<Instant>) {
        let mut node = self.node.lock();
        let Node { session: Some(session), id, .. } = &mut *node else { return (None, None) };
        let lacked = session.lacks_clusters();
        let due = (session.next(now), session.late_at(now));
        if session.lacks_clusters() && !lacked {
            self.late(peer, id);
        }
        due
    }

    /// Tells that an Envoy does not take its clusters into use, unless another one of this identity was told of a while ago.
    fn late(&self, peer: &Peer, node: &str) {
        if let Some(left_out) = self.nodes.tells(&self.identity, |told| &mut told.late) {
            tracing::warn!(
                %peer, ?node, left_out,
                "an Envoy has not taken its clusters into use for 15 s; its listeners and routes no longer wait for them, and may \
                 name what it does not use yet: look for clusters without endpoints or certificates at its /clusters and /init_dump"
            );
        }
    }
}

impl Drop for NodeEntry {
    fn drop(&mut self) {
        let mut open = self.nodes.open.lock();
        open.streams.remove(&self.id);
        if let Some(own) = open.by_identity.get_mut(&self.identity) {
            own.streams -= 1;
            if own.streams == 0 {
                open.by_identity.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Caller;
    use crate::test_log::Listening;

    fn peer(account: &str) -> Peer {
        let id = format!("spiffe://cluster.local/ns/default/sa/{account}");
        Peer { address: ([127, 0, 0, 1], 1).into(), caller: Caller::Workload(id.parse().unwrap()), joined: false }
    }

    #[tokio::test(start_paused = true)]
    async fn what_clients_of_one_identity_say_makes_a_line_at_times_with_the_number_of_those_left_out() {
        let (log, nodes) = (Listening::begin(), Arc::new(Nodes::default()));
        let enter = |account: &str| nodes.enter(&peer(account), &Limits::default()).unwrap();
        let entries = [enter("a"), enter("a")];
        let say = |entry: &NodeEntry, account: &str| {
            entry.nacked(&peer(account), "n", "t", "no");
            entry.claims(&peer(account), &["namespace other".to_owned()]);
        };
        (0..50).for_each(|_| entries.iter().for_each(|entry| say(entry, "a")));
        let lines =
            |parts: &[&str]| (log.lines(&[parts, &["refused"]].concat()), log.lines(&[parts, &["claims"]].concat()));
        assert_eq!(lines(&["/sa/a"]), (1, 1), "{}", log.text());
        // The control: another identity, and after a time. All of them are counted.
        say(&enter("b"), "b");
        assert_eq!(lines(&["/sa/b"]), (1, 1), "{}", log.text());
        mesh_testkit::clock::pass(EVERY).await;
        say(&entries[0], "a");
        assert_eq!(lines(&["/sa/a", "left_out=99"]), (1, 1), "{}", log.text());
        assert_eq!(nodes.nacks.load(Ordering::Relaxed), 102);
    }

    #[tokio::test(start_paused = true)]
    async fn who_opens_a_stream_for_each_thing_it_says_makes_no_more_lines() {
        let (log, nodes) = (Listening::begin(), Arc::new(Nodes::default()));
        let say = |account: &str| {
            let entry = nodes.enter(&peer(account), &Limits::default()).unwrap();
            entry.nacked(&peer(account), "n", "t", "no");
            entry.claims(&peer(account), &["namespace other".to_owned()]);
            entry.late(&peer(account), "n");
        };
        (0..50).for_each(|_| say("a"));
        let lines = |parts: &[&str]| {
            let of = |part| log.lines(&[parts, &[part]].concat());
            (of("refused"), of("claims"), of("into use"))
        };
        assert_eq!(lines(&["/sa/a"]), (1, 1, 1), "{}", log.text());
        // The control: after a time.
        mesh_testkit::clock::pass(EVERY).await;
        say("a");
        assert_eq!(lines(&["/sa/a", "left_out=49"]), (1, 1, 1), "{}", log.text());
        // What is kept of those who left is bounded.
        (0..TOLD + 100).for_each(|n| say(&format!("b{n}")));
        assert!((TOLD..=TOLD + 1).contains(&nodes.told.lock().len()));
        assert_eq!(lines(&["/sa/b1099"]), (0, 0, 0), "it shares one with others");
        mesh_testkit::clock::pass(EVERY).await;
        say("c");
        assert_eq!((lines(&["/sa/c"]), nodes.told.lock().len()), ((1, 1, 1), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_those_without_a_certificate_make_a_line_at_times() {
        let nodes = Arc::new(Nodes::default());
        let open = |peer: &Peer| nodes.enter(peer, &Limits::default()).unwrap().opens();
        let stranger = Peer { caller: Caller::Anonymous, ..peer("a") };
        let told = [(); 50].map(|()| open(&stranger));
        assert!(told[0] == Some(0) && told[1..].iter().all(Option::is_none), "{told:?}");
        // The control: who proved who it is, and after a time.
        assert_eq!([(); 50].map(|()| open(&peer("a"))), [Some(0); 50]);
        mesh_testkit::clock::pass(EVERY).await;
        assert_eq!(open(&stranger), Some(49));
    }

    #[test]
    fn streams_are_bounded_in_total_and_for_each_identity() {
        let limits = Limits { streams: 3, streams_of_one: 2, ..Limits::default() };
        let nodes = Arc::new(Nodes::default());
        let enter = |account: &str| nodes.enter(&peer(account), &limits);
        let (first, _second) = (enter("a").unwrap(), enter("a").unwrap());
        let refused = enter("a").err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("/sa/a has 2 streams"), "{}", refused.message());
        let _other = enter("b").unwrap();
        let refused = enter("c").err().unwrap();
        assert!(refused.message().contains("serves 3 streams already"), "{}", refused.message());
        drop(first);
        assert!(enter("a").is_ok(), "the control: there is room again");
        assert_eq!((nodes.streams(), nodes.refused.load(Ordering::Relaxed)), (2, 2), "and that one is gone too");
    }
}
