//! A control plane newer than the library (R42): what it may not know is skipped and reported, what it must not
//! ignore is refused, and the last good stays.

use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, DestinationState, HttpFilter, HttpFilterKind,
    InboundListener, InboundState, InboundTls, Listener, Permission, Principal, RouteSource,
};
use mesh_core::source::{DestinationSource, InboundSource};
use mesh_discovery::codec;
use serde_json::Value;

use crate::plane::{BOTH, Named, Plane, client, cluster_named, destination, endpoints_of, goes_to, route_to};

const FUTURE: &str = "type.googleapis.com/some.v9.Filter";
/// As refusals name it.
const REFUSED: &str = "some.v9.Filter";
const ADDRESS: &str = "127.0.0.1:80";

/// `a:80` to the routes `r`, through a filter that does not exist yet.
fn through_an_unknown_filter(is_optional: bool) -> Named {
    let unknown =
        HttpFilter { name: "future".to_owned(), kind: HttpFilterKind::Skipped { type_url: FUTURE.to_owned() } };
    let routes = RouteSource::Named("r".to_owned());
    let listener = Listener { filters: vec![unknown], ..Listener::new("a:80", routes) };
    let mut bytes = codec::encode_listener(&listener).value;
    if !is_optional {
        // `HttpFilter.is_optional`: field 6, true.
        replace(&mut bytes, &[0x30, 1], &[0x30, 0]);
    }
    ((codec::LISTENER.to_owned(), "a:80".to_owned()), bytes)
}

/// The listening address.
fn listening() -> InboundListener {
    InboundListener::new(inbound_name(), ADDRESS.parse().unwrap(), InboundTls::Strict)
}

/// The same with a rule who is let in.
fn guarded() -> InboundListener {
    let rule = AuthorizationRule {
        name: "one".to_owned(),
        permissions: vec![Permission::Any],
        principals: vec![Principal::Any],
    };
    let policy = AuthorizationPolicy {
        rules: vec![rule],
        ..AuthorizationPolicy::new("default/one", AuthorizationAction::Allow)
    };
    InboundListener { authorization: vec![policy], ..listening() }
}

fn inbound_name() -> String {
    format!("xds.istio.io/grpc/lds/inbound/{ADDRESS}")
}

fn inbound(bytes: Vec<u8>) -> Named {
    ((codec::LISTENER.to_owned(), inbound_name()), bytes)
}

/// Puts bytes of the same length in the place of others, which are there once.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let places: Vec<usize> = (0..=bytes.len() - old.len()).filter(|at| bytes[*at..].starts_with(old)).collect();
    assert_eq!(places.len(), 1, "{old:?}");
    bytes[places[0]..places[0] + new.len()].copy_from_slice(new);
}

fn listener_row(dump: &Value, name: &str) -> Value {
    let rows = dump["resources"].as_array().unwrap();
    rows.iter().find(|row| row["type"] == "listener" && row["name"] == name).unwrap().clone()
}

/// The resource with a field that no version has yet: number 9999, a text.
fn with_a_field_of_the_future((name, mut bytes): Named) -> Named {
    bytes.extend([0xfa, 0xf0, 0x04, 3, b'n', b'e', b'w']);
    (name, bytes)
}

#[tokio::test(start_paused = true)]
async fn a_field_that_does_not_exist_yet_costs_nothing_in_any_type_r42() {
    for variant in BOTH {
        let plane = Plane::new();
        let parts = [destination("a:80", "r"), route_to("r", "x"), cluster_named("x"), endpoints_of("x", 1)];
        plane.put_all(parts.map(with_a_field_of_the_future));
        plane.put(with_a_field_of_the_future(inbound(codec::encode_inbound(&listening()).value)));
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        let mut address = client.inbound(ADDRESS.parse().unwrap());
        address.wait_for(|state| matches!(state, InboundState::Ready(_))).await;
        assert_eq!(plane.nacks(), [""; 0]);
        // The control: a field that is there already, with nonsense in it.
        plane.put(crate::plane::broken(codec::CLUSTER, "x"));
        plane.sees("a refusal", |plane| plane.nacks().len() == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_optional_filter_is_skipped_and_reported_r42() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        plane.put(through_an_unknown_filter(true));
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        assert_eq!(client.status().nacks, 0);
        let row = listener_row(&client.config_dump(), "a:80");
        assert_eq!(row["state"], "acked");
        assert!(row["unenforced"].to_string().contains("future"), "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_required_filter_is_refused_and_the_last_good_stays_r42() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, 1).await;
        let good = state.load_full();
        plane.put(through_an_unknown_filter(false));
        plane.sees("a refusal", |plane| plane.nacks().len() == 1).await;
        let nack = plane.nacks().remove(0);
        assert!(nack.contains("a:80") && nack.contains(REFUSED), "{nack}");
        assert_eq!(state.load_full(), good);
        let row = listener_row(&client.config_dump(), "a:80");
        assert_eq!(row["state"], "nacked");
        assert!(row["error"]["reason"].as_str().unwrap().contains(REFUSED), "{row}");
        // The refusal costs nothing else.
        plane.put(endpoints_of("x", 2));
        goes_to(&mut state, 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_listener_with_an_unknown_required_filter_fails_with_the_reason_r42() {
    for variant in BOTH {
        let plane = Plane::with("x", 1);
        plane.put(through_an_unknown_filter(false));
        let client = client(variant, &[&plane]);
        let mut state = client.destination(&"a:80".parse().unwrap());
        let failed = state.wait_for(|state| *state != DestinationState::Pending).await;
        assert!(format!("{failed:?}").contains(REFUSED), "nothing is dropped in silence: {failed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_security_filter_of_a_newer_version_is_refused_and_what_was_in_force_stays_r42() {
    for variant in BOTH {
        let plane = Plane::new();
        plane.put(inbound(codec::encode_inbound(&listening()).value));
        let client = client(variant, &[&plane]);
        let mut state = client.inbound(ADDRESS.parse().unwrap());
        let good = state.wait_for(|state| matches!(state, InboundState::Ready(_))).await;

        let mut newer = codec::encode_inbound(&guarded()).value;
        replace(&mut newer, b"http.rbac.v3.RBAC", b"http.rbac.v4.RBAC");
        plane.put(inbound(newer));
        plane.sees("a refusal", |plane| plane.nacks().len() == 1).await;
        let nack = plane.nacks().remove(0);
        assert!(nack.contains(ADDRESS) && nack.contains("rbac.v4.RBAC"), "{nack}");
        assert_eq!(state.load_full(), good, "what was understood is in force");
    }
}
