//! The protocol rules of one stream, with resources written down by the test.

mod deaths;
mod delta;
mod envoy;
mod refused;
mod resumed;
mod state;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use mesh_discovery::codec;
use prost::Message;

use super::super::account::Account;
use super::super::cache::Cache;
use super::super::fake::Fake;
use super::*;
use crate::xds::nodes::TypeStatus;

const BOTH: [Form; 2] = [Form::State, Form::Delta];

/// A client that keeps the rules.
struct Client {
    session: Session,
    names: [Vec<String>; 4],
    nonce: [String; 4],
    now: Instant,
}

/// `(kind, resources, removed)`.
type Row = (Kind, Vec<String>, Vec<String>);

/// A response as the client reads it.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    kind: Kind,
    resources: Vec<String>,
    /// Their bytes.
    contents: Vec<bytes::Bytes>,
    removed: Vec<String>,
    errors: Vec<String>,
    version: String,
    nonce: String,
}

impl Client {
    fn new(cache: &Arc<Cache>, form: Form) -> Self {
        Self::with(cache, form, false, Limits::default())
    }

    fn with(cache: &Arc<Cache>, form: Form, explained: bool, limits: Limits) -> Self {
        Self::of(NodeScope::default(), cache, form, explained, limits)
    }

    fn of(scope: NodeScope, cache: &Arc<Cache>, form: Form, explained: bool, limits: Limits) -> Self {
        Self::for_account(scope, cache, form, explained, limits, &Arc::default())
    }

    fn for_account(
        scope: NodeScope,
        cache: &Arc<Cache>,
        form: Form,
        explained: bool,
        limits: Limits,
        account: &Arc<Account>,
    ) -> Self {
        let session = Session::new(cache.seat(scope, account), form, explained, limits);
        Self { session, names: Default::default(), nonce: Default::default(), now: Instant::now() }
    }

    /// Subscribes to these names and no others.
    fn ask(&mut self, kind: Kind, names: &[&str]) {
        self.try_ask(kind, names, None).unwrap();
    }

    fn try_ask(&mut self, kind: Kind, names: &[&str], error: Option<&str>) -> Result<Outcome, Refused> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let before = std::mem::replace(&mut self.names[kind.index()], names.clone());
        let missing = |of: &[String], other: &[String]| of.iter().filter(|n| !other.contains(n)).cloned().collect();
        let (type_url, response_nonce) = (kind.type_url().to_owned(), self.nonce[kind.index()].clone());
        let error_detail = error.map(|m| Status { code: 3, message: m.to_owned(), details: Vec::new() });
        match self.session.form() {
            Form::State => self.session.state_request(DiscoveryRequest {
                type_url,
                response_nonce,
                error_detail,
                resource_names: names,
                ..DiscoveryRequest::default()
            }),
            Form::Delta => self.session.delta_request(DeltaDiscoveryRequest {
                type_url,
                response_nonce,
                error_detail,
                resource_names_subscribe: missing(&names, &before),
                resource_names_unsubscribe: missing(&before, &names),
                ..DeltaDiscoveryRequest::default()
            }),
        }
    }

    /// The next response, not answered yet.
    fn next(&mut self) -> Option<Seen> {
        let seen = match self.session.next(self.now)? {
            Response::State(r) => {
                let name =
                    |any: &bytes::Bytes| codec::resource_name(&r.type_url, &Any::decode(any.clone()).unwrap()).unwrap();
                Seen {
                    kind: Kind::from_type_url(&r.type_url).unwrap(),
                    resources: r.resources.iter().map(name).collect(),
                    contents: r.resources,
                    removed: Vec::new(),
                    errors: r.resource_errors.into_iter().map(|e| e.resource_name.unwrap().name).collect(),
                    version: r.version_info,
                    nonce: r.nonce,
                }
            }
            Response::Delta(r) => Seen {
                kind: Kind::from_type_url(&r.type_url).unwrap(),
                resources: r.resources.iter().map(|r| r.name.clone()).collect(),
                contents: r.resources.into_iter().map(|r| r.resource).collect(),
                removed: r.removed_resources,
                errors: r.resource_errors.into_iter().map(|e| e.resource_name.unwrap().name).collect(),
                version: r.system_version_info,
                nonce: r.nonce,
            },
        };
        self.nonce[seen.kind.index()] = seen.nonce.clone();
        Some(seen)
    }

    fn answer(&mut self, kind: Kind, error: Option<&str>) -> Outcome {
        let names = self.names[kind.index()].clone();
        self.try_ask(kind, &names.iter().map(String::as_str).collect::<Vec<_>>(), error).unwrap()
    }

    /// Accepts everything until nothing more comes.
    fn settle(&mut self) -> Vec<Row> {
        let mut all = Vec::new();
        while let Some(seen) = self.next() {
            self.answer(seen.kind, None);
            all.push((seen.kind, seen.resources, seen.removed));
        }
        all
    }

    fn status(&self, kind: Kind) -> TypeStatus {
        self.session.status(true).into_iter().find(|status| status.type_url == kind.type_url()).unwrap()
    }

    fn states(&self, kind: Kind) -> Vec<(String, &'static str)> {
        self.status(kind).resources.unwrap().into_iter().map(|r| (r.name, r.state)).collect()
    }
}

fn row(kind: Kind, resources: &[&str], removed: &[&str]) -> Row {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    (kind, owned(resources), owned(removed))
}

fn all_kinds(names: &[&str], edition: u32) -> Fake {
    let pairs = Kind::ALL.into_iter().flat_map(|kind| names.iter().map(move |name| (kind, *name)));
    pairs.fold(Fake::default(), |fake, (kind, name)| fake.with(kind, name, edition))
}

#[test]
fn a_push_holds_changes_in_make_before_break_order() {
    for form in BOTH {
        let before = all_kinds(&["a", "b"], 1);
        let cache = before.cache();
        let mut client = Client::new(&cache, form);
        for kind in Kind::ALL {
            client.ask(kind, &["a", "b"]);
        }
        assert_eq!(client.settle().len(), 4);
        before.publish(&cache, "2");
        assert_eq!(client.settle(), [], "the same configuration");
        Kind::ALL.into_iter().fold(before, |fake, kind| fake.with(kind, "b", 2)).publish(&cache, "3");
        let whole: &[&str] = if form == Form::State { &["a", "b"] } else { &["b"] };
        let expected = [
            row(Kind::Cluster, whole, &[]),
            row(Kind::Endpoints, &["b"], &[]),
            row(Kind::Listener, whole, &[]),
            row(Kind::Routes, &["b"], &[]),
        ];
        assert_eq!(client.settle(), expected, "{form:?}");
    }
}

#[test]
fn a_vanished_cluster_goes_after_the_routes_that_named_it() {
    for form in BOTH {
        let before = Fake::default()
            .with(Kind::Cluster, "v1", 1)
            .with(Kind::Cluster, "v2", 1)
            .with(Kind::Endpoints, "v2", 1)
            .with(Kind::Routes, "reviews", 1);
        let cache = before.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Cluster, &["v1", "v2"]);
        client.ask(Kind::Endpoints, &["v2"]);
        client.ask(Kind::Routes, &["reviews"]);
        client.settle();
        let after = before
            .without(Kind::Cluster, "v2")
            .without(Kind::Endpoints, "v2")
            .with(Kind::Cluster, "v1", 2)
            .with(Kind::Routes, "reviews", 2);
        after.publish(&cache, "2");
        let expected = match form {
            Form::State => vec![
                row(Kind::Cluster, &["v1", "v2"], &[]),
                row(Kind::Routes, &["reviews"], &[]),
                row(Kind::Cluster, &["v1"], &[]),
            ],
            Form::Delta => vec![
                row(Kind::Cluster, &["v1"], &[]),
                row(Kind::Routes, &["reviews"], &[]),
                row(Kind::Cluster, &[], &["v2"]),
                row(Kind::Endpoints, &[], &["v2"]),
            ],
        };
        assert_eq!(client.settle(), expected);
        after.publish(&cache, "3");
        assert_eq!(client.settle(), [], "said once");
        after.with(Kind::Cluster, "v2", 1).publish(&cache, "4");
        assert_eq!(client.settle().len(), 1, "and it may come back");
    }
}

/// A client with a listener and routes to `v1` and `v2`, and the next revision, of which `v2` is gone and `also` changed.
fn about_to_lose_a_cluster(form: Form, also: &[Kind]) -> (Arc<Cache>, Client, Fake) {
    let before = Fake::default()
        .with(Kind::Cluster, "v1", 1)
        .with(Kind::Cluster, "v2", 1)
        .with(Kind::Endpoints, "v2", 1)
        .naming(Kind::Listener, "reviews", 1, &["v1", "v2"])
        .naming(Kind::Routes, "reviews", 1, &["v1", "v2"]);
    let cache = before.cache();
    let mut client = Client::new(&cache, form);
    client.ask(Kind::Cluster, &["v1", "v2"]);
    client.ask(Kind::Endpoints, &["v2"]);
    client.ask(Kind::Listener, &["reviews"]);
    client.ask(Kind::Routes, &["reviews"]);
    client.settle();
    let after = before.without(Kind::Cluster, "v2").without(Kind::Endpoints, "v2");
    let after = also.iter().fold(after, |fake, kind| fake.with(*kind, "reviews", 2));
    (cache, client, after)
}

/// What takes the cluster away.
fn taken_away(form: Form) -> Vec<Row> {
    match form {
        Form::State => vec![row(Kind::Cluster, &["v1"], &[])],
        Form::Delta => vec![row(Kind::Cluster, &[], &["v2"]), row(Kind::Endpoints, &[], &["v2"])],
    }
}

#[test]
fn a_vanished_cluster_stays_until_the_routes_without_it_are_accepted() {
    for form in BOTH {
        for also in [Kind::Listener, Kind::Routes] {
            let (cache, mut client, after) = about_to_lose_a_cluster(form, &[also]);
            after.publish(&cache, "2");
            assert_eq!(client.next().unwrap().kind, also);
            assert_eq!(client.next(), None, "{form:?}: the client may go on with the {also} that names it");
            client.answer(also, None);
            assert_eq!(client.settle(), taken_away(form));
        }
    }
}

#[test]
fn a_vanished_cluster_stays_while_the_client_refuses_the_routes_without_it() {
    for form in BOTH {
        for also in [Kind::Listener, Kind::Routes] {
            let (cache, mut client, after) = about_to_lose_a_cluster(form, &[also]);
            after.publish(&cache, "2");
            assert_eq!(client.next().unwrap().kind, also);
            client.answer(also, Some("no"));
            assert_eq!(client.next(), None, "{form:?}: it goes on with the {also} that names it");
            // What it accepts ends that.
            let better = after.with(also, "reviews", 3);
            better.publish(&cache, "3");
            assert_eq!(client.next().unwrap().kind, also);
            assert_eq!(client.next(), None);
            client.answer(also, None);
            assert_eq!(client.settle(), taken_away(form), "{form:?} {also}");
        }
    }
}

#[test]
fn a_vanished_cluster_stays_while_the_client_refuses_routes_of_before() {
    for form in BOTH {
        for also in [Kind::Listener, Kind::Routes] {
            // Refused while the cluster was there: what the client goes on with is older, and names it.
            let (cache, mut client, after) = about_to_lose_a_cluster(form, &[also]);
            let refused = after.clone().with(Kind::Cluster, "v2", 1).with(Kind::Endpoints, "v2", 1);
            refused.publish(&cache, "2");
            assert_eq!(client.next().unwrap().kind, also);
            client.answer(also, Some("no"));
            after.publish(&cache, "3");
            assert_eq!(client.settle(), [], "{form:?}: the {also} in use may name it");
            after.with(also, "reviews", 3).publish(&cache, "4");
            assert_eq!(client.next().unwrap().kind, also);
            assert_eq!(client.next(), None);
            client.answer(also, None);
            assert_eq!(client.settle(), taken_away(form), "{form:?} {also}");
        }
    }
}

#[test]
fn what_the_client_has_given_up_keeps_no_cluster() {
    for form in BOTH {
        let (cache, mut client, after) = about_to_lose_a_cluster(form, &[Kind::Routes]);
        after.publish(&cache, "2");
        client.next();
        client.answer(Kind::Routes, Some("no"));
        assert_eq!(client.next(), None);
        client.ask(Kind::Routes, &[]);
        assert_eq!(client.settle(), taken_away(form));
    }
}

#[test]
fn endpoints_that_vanish_alone_are_taken_away() {
    let before = Fake::default().with(Kind::Endpoints, "a", 1).with(Kind::Endpoints, "b", 1);
    let cache = before.cache();
    let mut client = Client::new(&cache, Form::Delta);
    client.ask(Kind::Endpoints, &["a", "b"]);
    client.settle();
    before.without(Kind::Endpoints, "b").publish(&cache, "2");
    assert_eq!(client.settle(), [row(Kind::Endpoints, &[], &["b"])]);
}

#[test]
fn what_vanishes_and_comes_back_before_it_was_taken_away_stays() {
    for form in BOTH {
        let fake = Fake::default().with(Kind::Cluster, "a", 1).with(Kind::Routes, "r", 1);
        let cache = fake.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Cluster, &["a"]);
        client.ask(Kind::Routes, &["r"]);
        client.settle();
        fake.clone().without(Kind::Cluster, "a").with(Kind::Routes, "r", 2).publish(&cache, "2");
        assert_eq!(client.next().unwrap().kind, Kind::Routes);
        fake.clone().with(Kind::Routes, "r", 2).publish(&cache, "3");
        client.answer(Kind::Routes, None);
        assert_eq!(client.settle(), [], "{form:?}");
    }
}

#[test]
fn nothing_is_pushed_before_the_last_response_is_answered_and_then_the_newest() {
    for form in BOTH {
        let fake = Fake::default().with(Kind::Endpoints, "a", 1);
        let cache = fake.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Endpoints, &["a"]);
        client.settle();
        for edition in 2..1_000 {
            fake.clone().with(Kind::Endpoints, "a", edition).publish(&cache, &edition.to_string());
            // The first goes out; a client that hangs gets no second.
            assert_eq!(client.next().is_some(), edition == 2, "{form:?}");
        }
        assert_eq!((client.status(Kind::Endpoints).due, client.status(Kind::Endpoints).waiting), (1, true));
        client.answer(Kind::Endpoints, None);
        let last = client.next().unwrap();
        assert_eq!((last.version.as_str(), last.resources.len()), ("999", 1));
        client.answer(Kind::Endpoints, None);
        assert_eq!(client.next(), None);
    }
}

#[test]
fn a_type_waits_for_the_changes_of_those_before_it() {
    for form in BOTH {
        let fake = all_kinds(&["a"], 1);
        let cache = fake.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Cluster, &["a"]);
        client.ask(Kind::Routes, &["a"]);
        client.settle();
        let second = fake.clone().with(Kind::Cluster, "a", 2);
        second.publish(&cache, "2");
        assert_eq!(client.next().unwrap().kind, Kind::Cluster);
        second.clone().with(Kind::Routes, "a", 2).publish(&cache, "3");
        assert_eq!(client.next().unwrap().kind, Kind::Routes, "the control: the clusters are sent");
        client.answer(Kind::Routes, None);
        fake.with(Kind::Cluster, "a", 4).with(Kind::Routes, "a", 4).publish(&cache, "4");
        assert_eq!(client.next(), None, "routes may need a cluster that cannot be sent yet");
        client.answer(Kind::Cluster, None);
        let kinds: Vec<_> = client.settle().into_iter().map(|(kind, ..)| kind).collect();
        assert_eq!(kinds, [Kind::Cluster, Kind::Routes], "{form:?}");
    }
}

#[test]
fn a_nack_is_recorded_and_nothing_is_sent_again_until_the_resource_changes() {
    for form in BOTH {
        let fake = Fake::default().with(Kind::Routes, "a", 1).with(Kind::Routes, "b", 1);
        let cache = fake.cache();
        let mut client = Client::new(&cache, form);
        client.ask(Kind::Routes, &["a", "b"]);
        let first = client.next().unwrap();
        assert_eq!(client.states(Kind::Routes), [("a".to_owned(), "sent"), ("b".to_owned(), "sent")]);
        let outcome = client.answer(Kind::Routes, Some("virtual_hosts[0]: bad\nregex"));
        assert_eq!(outcome.nacked.as_deref(), Some("virtual_hosts[0]: bad regex"));
        let recorded = client.status(Kind::Routes).nack.unwrap();
        assert_eq!((recorded.version.as_str(), recorded.nonce), ("1", first.nonce));
        // Said again, or followed by a request with the same nonce, it is the same event.
        assert_eq!(client.answer(Kind::Routes, Some("again")), Outcome::default());
        assert_eq!(client.answer(Kind::Routes, None), Outcome::default());
        assert!(client.status(Kind::Routes).nack.is_some());

        fake.publish(&cache, "2");
        assert_eq!(client.next(), None, "unchanged, so not sent");
        fake.with(Kind::Routes, "a", 2).publish(&cache, "3");
        assert_eq!(client.next().unwrap().resources, ["a"]);
        let sent = client.status(Kind::Routes);
        assert_eq!((sent.nack, sent.waiting), (None, true), "it was of a response that was overtaken");
        assert_eq!(client.states(Kind::Routes), [("a".to_owned(), "sent"), ("b".to_owned(), "refused")]);
        assert!(client.answer(Kind::Routes, None).acked);
        // What stood beside it goes once it is accepted: the client may have taken neither.
        assert_eq!(client.next().unwrap().resources, ["b"]);
        assert!(client.answer(Kind::Routes, None).acked);
        let accepted = client.status(Kind::Routes);
        assert_eq!((accepted.nack, accepted.version_acked.as_str()), (None, "3"));
        assert_eq!(client.states(Kind::Routes), [("a".to_owned(), "accepted"), ("b".to_owned(), "accepted")]);
    }
}

#[test]
fn what_was_dropped_and_is_asked_for_again_is_sent_again() {
    for form in BOTH {
        for kind in Kind::ALL {
            let cache = Fake::default().with(kind, "a", 1).cache();
            let mut client = Client::new(&cache, form);
            client.ask(kind, &["a"]);
            client.settle();
            client.ask(kind, &[]);
            assert_eq!(client.settle(), []);
            assert_eq!((client.status(kind).sent, cache.size().0), (0, 0), "the cache need not keep it");
            client.ask(kind, &["a"]);
            assert_eq!(client.settle(), [row(kind, &["a"], &[])], "{form:?}");
        }
    }
}

#[test]
fn too_many_and_too_long_names_are_refused() {
    let limits = Limits { names: 2, name_bytes: 3, ..Limits::default() };
    for form in BOTH {
        let mut client = Client::with(&Fake::default().cache(), form, false, limits);
        assert!(client.try_ask(Kind::Endpoints, &["a", "b"], None).is_ok());
        let refused = client.try_ask(Kind::Endpoints, &["a", "b", "c"], None).unwrap_err();
        assert!(
            matches!(refused, Refused::TooManyNames { asked, most, .. } if (asked.count, most.count) == (3, 2)),
            "{refused}"
        );
        let mut client = Client::with(&Fake::default().cache(), form, false, limits);
        let refused = client.try_ask(Kind::Endpoints, &["long"], None).unwrap_err();
        assert_eq!(refused, Refused::NameTooLong { bytes: 4, limit: 3 });
    }
}

#[test]
fn a47_a_stream_asks_as_a_few_authorities_and_the_names_of_others_do_not_exist() {
    let name = |authority: u32| format!("xdstp://{authority}/envoy.config.cluster.v3.Cluster/a");
    let names: Vec<String> = (0..5).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for form in BOTH {
        let fake = |edition| names.iter().fold(Fake::default(), |fake, name| fake.with(Kind::Cluster, name, edition));
        let cache = fake(1).cache();
        let mut client = Client::with(&cache, form, true, Limits::default());
        client.ask(Kind::Cluster, &names);
        let seen = client.next().unwrap();
        assert_eq!(seen.resources, names[..4], "{form:?}");
        assert_eq!(seen.errors, [names[4]], "{form:?}");
        assert_eq!(cache.size().0, 4, "{form:?}");
        client.answer(Kind::Cluster, None);
        // Another stream asks for it; the first one goes without nevertheless.
        let mut other = Client::new(&cache, form);
        other.ask(Kind::Cluster, &names[4..]);
        assert_eq!(other.settle(), [row(Kind::Cluster, &names[4..], &[])], "{form:?}");
        fake(2).publish(&cache, "2");
        assert_eq!(client.settle(), [row(Kind::Cluster, &names[..4], &[])], "{form:?}");
        // What is given up makes no room, or one could take turns.
        client.ask(Kind::Cluster, &[]);
        client.settle();
        client.ask(Kind::Cluster, &names[4..]);
        assert!(client.settle().iter().all(|(_, resources, _)| resources.is_empty()), "{form:?}");
        assert_eq!(cache.size().0, 1, "{form:?}");
        drop((client, other));
        assert_eq!(cache.size().0, 0, "nothing is left behind");
    }
}

#[test]
fn types_that_are_not_served_are_not_answered() {
    let cache = Fake::default().cache();
    let secret = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned();
    let mut client = Client::new(&cache, Form::State);
    client.session.state_request(DiscoveryRequest { type_url: secret.clone(), ..Default::default() }).unwrap();
    assert_eq!((client.next(), client.session.status(false).len()), (None, 0));
    let mut client = Client::new(&cache, Form::Delta);
    client.session.delta_request(DeltaDiscoveryRequest { type_url: secret, ..Default::default() }).unwrap();
    assert_eq!((client.next(), client.session.status(false).len()), (None, 0));
}

#[test]
fn a_wildcard_covers_what_there_is_now_and_later() {
    for form in BOTH {
        for asked in [&[][..], &["*"]] {
            let fake = Fake::default().with(Kind::Cluster, "a", 1).with(Kind::Cluster, "b", 1);
            let cache = fake.cache();
            let mut client = Client::new(&cache, form);
            client.ask(Kind::Cluster, asked);
            client.ask(Kind::Listener, asked);
            let empty = row(Kind::Listener, &[], &[]);
            assert_eq!(client.settle(), [row(Kind::Cluster, &["a", "b"], &[]), empty], "an answer even if empty");
            fake.with(Kind::Cluster, "c", 1).without(Kind::Cluster, "b").publish(&cache, "2");
            let expected = match form {
                // The vanished one is kept until nothing else is due.
                Form::State => [row(Kind::Cluster, &["a", "b", "c"], &[]), row(Kind::Cluster, &["a", "c"], &[])],
                Form::Delta => [row(Kind::Cluster, &["c"], &[]), row(Kind::Cluster, &[], &["b"])],
            };
            assert_eq!(client.settle(), expected);
            assert!(client.status(Kind::Cluster).wildcard);
            drop(client);
            assert_eq!(cache.size().0, 0, "nothing is left behind");
        }
    }
}

#[test]
fn a_large_answer_comes_in_parts_where_it_may() {
    let limits = Limits { response_bytes: 1, ..Limits::default() };
    for form in BOTH {
        let cache = all_kinds(&["a", "b", "c"], 1).cache();
        for kind in Kind::ALL {
            let mut client = Client::with(&cache, form, false, limits);
            client.ask(kind, &["a", "b", "c"]);
            let parts: Vec<_> = client.settle().into_iter().map(|(_, names, _)| names.len()).collect();
            let whole = form == Form::State && kind.is_full_state();
            assert_eq!(parts, if whole { vec![3] } else { vec![1, 1, 1] }, "{form:?} {kind:?}");
        }
    }
}

#[test]
fn what_no_client_takes_is_not_sent_and_the_operator_is_told() {
    let all = Limits { largest_response: 1 << 20, ..Limits::default() };
    for form in BOTH {
        for kind in Kind::ALL {
            let fake = all_kinds(&["a", "b"], 1);
            let cache = fake.cache();
            let mut seat = cache.seat(NodeScope::default(), &Arc::default());
            let [a, b] = ["a", "b"].map(|name| {
                let name = seat.subscribe(kind, name);
                seat.resource(kind, &name).unwrap().any.len()
            });
            drop(seat);
            let whole = form == Form::State && kind.is_full_state();
            // Where they come one by one only what is too large itself stays behind.
            let largest_response = if whole { a + b - 1 } else { a - 1 };
            let mut client = Client::with(&cache, form, false, Limits { largest_response, ..all });
            client.ask(kind, &["a", "b"]);
            assert_eq!(client.settle(), [], "{form:?} {kind:?}");
            let unsent = client.status(kind).unsent.unwrap();
            assert!(unsent.contains(&largest_response.to_string()) && unsent.contains("delta"), "{unsent}");
            // What fits is sent all the same, and says nothing of what does not.
            if !whole {
                assert!(unsent.contains("\"a\"") && unsent.contains("\"b\""), "one hides the other: {unsent}");
                let fake = fake.clone().with(kind, "c", 1);
                fake.publish(&cache, "1b");
                client.session.limits = all;
                client.ask(kind, &["a", "b", "c"]);
                assert_eq!(client.settle(), [row(kind, &["c"], &[])]);
                assert!(client.status(kind).unsent.is_some());
                client.ask(kind, &["a", "b"]);
            }
            // Other types go on, and the next state that fits is sent.
            let other = if kind == Kind::Cluster { Kind::Listener } else { Kind::Cluster };
            client.session.limits = all;
            client.ask(other, &["a"]);
            assert_eq!(client.settle().len(), 1);
            fake.clone().with(kind, "a", 2).with(kind, "b", 2).publish(&cache, "2");
            assert_eq!(client.settle(), [row(kind, &["a", "b"], &[])]);
            assert_eq!(client.status(kind).unsent, None);
        }
    }
}

#[test]
fn what_is_kept_for_one_identity_over_all_its_streams_is_bounded() {
    let names: Vec<String> = (0..30).map(|n| format!("name-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let scope = |app: &str| NodeScope { labels: [("app".to_owned(), app.to_owned())].into(), ..NodeScope::default() };
    for form in BOTH {
        // Of nothing that exists, of all that exists in scopes of its own, and of all by wildcard.
        for (asked, exist) in [(&names[..], false), (&names[..], true), (&["*"][..], true)] {
            let cache = if exist { all_kinds(&names, 1) } else { Fake::default() }.cache();
            let (one, other, alone) = (Arc::default(), Arc::default(), Arc::default());
            // As much as one stream takes, and a little.
            let mut client = Client::for_account(scope("a"), &cache, form, false, Limits::default(), &alone);
            client.try_ask(Kind::Cluster, asked, None).unwrap();
            let limits = Limits { bytes_of_one: alone.bytes() + 1_000, ..Limits::default() };
            drop(client);
            let client = |app: &str, account| Client::for_account(scope(app), &cache, form, false, limits, account);
            let mut first = client("a", &one);
            first.try_ask(Kind::Cluster, asked, None).unwrap();
            let mut second = client("b", &one);
            let refused = second.try_ask(Kind::Cluster, asked, None).unwrap_err();
            assert!(matches!(refused, Refused::TooMuch { .. }), "{form:?}: {refused}");
            // The control: another identity may, and what stands may be repeated and answered.
            client("b", &other).try_ask(Kind::Cluster, asked, None).unwrap();
            first.settle();
            first.try_ask(Kind::Cluster, asked, None).unwrap();
            // Everything is given back.
            drop(second);
            let mut third = client("c", &one);
            first.ask(Kind::Cluster, &[]);
            first.settle();
            third.ask(Kind::Cluster, &names[..10]);
            drop((first, third));
            assert_eq!((one.bytes(), other.bytes()), (0, 0), "{form:?}");
        }
    }
}

#[test]
fn a_large_request_is_taken_in_by_pieces_and_means_the_same() {
    let names: Vec<String> = (0..3 * PIECE).map(|n| format!("name-{n}")).collect();
    for form in BOTH {
        let cache = Fake::default().with(Kind::Endpoints, "name-0", 1).with(Kind::Endpoints, "name-700", 1).cache();
        let mut client = Client::new(&cache, form);
        // One that is named often is looked at once.
        let said = [&names[..], &names[..PIECE]].concat();
        let (kind, large) = client.session.is_large(Kind::Endpoints.type_url(), "", &said).unwrap();
        assert_eq!(large.len(), names.len());
        for piece in large.chunks(PIECE) {
            client.session.begin(kind, piece).unwrap();
        }
        let evaluated = cache.evaluated();
        assert_eq!((evaluated, client.next()), (names.len() as u64, None), "nothing is asked for yet");
        client.ask(Kind::Endpoints, &names.iter().map(String::as_str).collect::<Vec<_>>());
        client.session.begun(kind, &large);
        assert_eq!(cache.evaluated(), evaluated, "the request itself has nothing left to make");
        assert_eq!(client.settle()[0].1, ["name-0", "name-700"]);
        assert_eq!(cache.size().0, names.len(), "what is named stays");
        // What is refused or does not count is not begun with.
        let small = Limits { names: names.len() - 1, ..Limits::default() };
        let other = Client::with(&cache, form, false, small);
        assert_eq!(other.session.is_large(Kind::Endpoints.type_url(), "", &names), None);
        let fresh: Vec<String> = names.iter().map(|name| format!("other-{name}")).collect();
        let is_large = |nonce: &str, names| client.session.is_large(Kind::Endpoints.type_url(), nonce, names).is_some();
        assert_eq!([is_large("stale", &fresh), is_large("", &fresh)], [form == Form::Delta, true]);
        assert!(!is_large("", &names), "an answer repeats what is there");
        drop((client, other));
        assert_eq!(cache.size().0, 0, "nothing is left behind");
    }
}

#[test]
fn everything_is_taken_in_by_pieces_too_if_it_is_much() {
    let names: Vec<String> = (0..3 * PIECE).map(|n| format!("name-{n:03}")).collect();
    let fake = names.iter().fold(Fake::default(), |fake, name| fake.with(Kind::Cluster, name, 1));
    for form in BOTH {
        for asked in [&[][..], &["*"], &["*", "name-007", "nobody"]] {
            let (cache, account) = (fake.cache(), Arc::default());
            let limits = Limits::default();
            let mut client = Client::for_account(NodeScope::default(), &cache, form, false, limits, &account);
            let said: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
            let (kind, large) = client.session.is_large(Kind::Cluster.type_url(), "", &said).unwrap();
            let nothing = account.bytes();
            for piece in large.chunks(PIECE) {
                client.session.begin(kind, piece).unwrap();
            }
            assert!(account.bytes() - nothing >= large.len() * 64, "what has begun costs: {form:?} {asked:?}");
            let evaluated = cache.evaluated();
            client.ask(kind, asked);
            assert_eq!(cache.evaluated(), evaluated, "the request itself has nothing left to make");
            let at_most = account.bytes();
            client.session.begun(kind, &large);
            assert_eq!(account.bytes(), at_most, "no name is charged twice: {form:?} {asked:?}");
            assert_eq!(client.settle()[0].1, names, "{form:?} {asked:?}");
            // It costs what it would otherwise, and another one of its kind has nothing to make.
            let mut other = Client::for_account(NodeScope::default(), &cache, form, false, limits, &account);
            let before = account.bytes();
            assert_eq!(other.session.is_large(kind.type_url(), "", &said), None, "{form:?} {asked:?}");
            other.ask(kind, asked);
            drop(client);
            assert_eq!((account.bytes(), cache.evaluated()), (before, evaluated), "{form:?} {asked:?}");
            // What is still there follows changes, and nothing is left behind.
            other.settle();
            fake.clone().with(Kind::Cluster, "name-001", 2).publish(&cache, "2");
            assert_eq!(other.settle().len(), 1);
            drop(other);
            assert_eq!((cache.size().0, account.bytes()), (0, 0), "{form:?} {asked:?}");
        }
    }
}
