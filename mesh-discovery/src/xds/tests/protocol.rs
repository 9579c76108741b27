//! The protocol alone, with resources that are plain text `name=value`.

use std::cell::Cell;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, ResourceError, ResourceName};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use tokio::time::Instant;

use super::super::ads::{Ads, Codec};
use super::super::entry::{Known, Standing};
use super::super::kind::{Key, Kind};
use super::{as_strs, response};

const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Text {
    decoded: Cell<usize>,
}

impl Codec for &Text {
    type Value = String;

    fn open(&self, _: Kind, resource: Any) -> Result<(String, Any), String> {
        let text = String::from_utf8(resource.value.clone()).map_err(|_| "its name cannot be read")?;
        let (name, _) = text.split_once('=').ok_or("its name cannot be read")?;
        Ok((name.to_owned(), resource))
    }

    fn decode(&self, _: Kind, resource: &Any) -> Result<String, String> {
        self.decoded.set(self.decoded.get() + 1);
        let text = String::from_utf8_lossy(&resource.value).into_owned();
        let (name, value) = text.split_once('=').expect("open has seen it");
        match value {
            "bad" => Err(format!("{name}: field: bad")),
            "panic" => panic!("on purpose"),
            good => Ok(good.to_owned()),
        }
    }
}

fn ads(codec: &Text) -> Ads<&Text> {
    let node = Node { id: "me".to_owned(), ..Default::default() };
    Ads::new(codec, node, TIMEOUT)
}

fn text(resource: &str) -> Any {
    Any { type_url: String::new(), value: resource.as_bytes().to_vec() }
}

fn texts(resources: &[&str]) -> Vec<Any> {
    resources.iter().map(|resource| text(resource)).collect()
}

fn listener(name: &str) -> Key {
    Key::new(Kind::Listener, name)
}

fn request(ads: &mut Ads<&Text>) -> DiscoveryRequest {
    assert!(ads.has_request());
    ads.take_request().unwrap().1
}

fn value(ads: &Ads<&Text>, key: &Key) -> Option<String> {
    match ads.known(key) {
        Known::Value(value) => Some(value.clone()),
        _ => None,
    }
}

#[test]
fn an_ack_repeats_version_and_nonce_and_the_node_is_sent_once_a_stream() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    assert!(!ads.has_request(), "not connected");

    ads.opened();
    let first = request(&mut ads);
    assert_eq!(first.node.unwrap().id, "me");
    assert_eq!((first.version_info.as_str(), first.response_nonce.as_str()), ("", ""));
    assert_eq!(as_strs(&first.resource_names), ["a"]);
    assert!(!ads.has_request());

    let taken = ads.response(response(Kind::Listener, "v1", "n1", texts(&["a=1"])));
    assert_eq!((taken.changed, taken.refused), (vec![listener("a")], false));
    let ack = request(&mut ads);
    assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("v1", "n1"));
    assert!(ack.node.is_none() && ack.error_detail.is_none());
    assert_eq!(value(&ads, &listener("a")).unwrap(), "1");
}

#[test]
fn a_nack_names_every_bad_resource_and_uses_the_good_ones() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    for name in ["a", "b", "c", "d"] {
        ads.subscribe(&listener(name));
    }
    ads.opened();
    request(&mut ads);
    ads.response(response(Kind::Listener, "v1", "n1", texts(&["a=1", "b=1"])));
    request(&mut ads);

    let taken =
        ads.response(response(Kind::Listener, "v2", "n2", texts(&["a=bad", "nameless", "b=2", "c=bad", "d=panic"])));
    assert!(taken.refused);
    let nack = request(&mut ads);
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("v1", "n2"));
    let error = nack.error_detail.unwrap().message;
    for part in ["a: field: bad", "c: field: bad", "resource 1: its name cannot be read", "panicked"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(value(&ads, &listener("a")).unwrap(), "1", "the last good stays");
    assert_eq!(value(&ads, &listener("b")).unwrap(), "2", "a good sibling is used");
    assert_eq!(ads.known(&listener("c")), Known::Missing("c: field: bad"));
    let entry = ads.entry(&listener("a")).unwrap();
    assert_eq!((entry.standing, entry.version.as_str()), (Standing::Nacked, "v1"));

    // A further request of the type goes on from the accepted version and carries no old complaint.
    ads.unsubscribe(&listener("d"));
    let next = request(&mut ads);
    assert_eq!((next.version_info.as_str(), next.response_nonce.as_str()), ("v1", "n2"));
    assert!(next.error_detail.is_none());
}

#[test]
fn equal_bytes_are_not_decoded_again() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    ads.opened();
    for (version, resource, decoded, standing) in [
        ("v1", "a=1", 1, Standing::Acked),
        ("v2", "a=1", 1, Standing::Acked),
        ("v3", "a=bad", 2, Standing::Nacked),
        ("v4", "a=bad", 2, Standing::Nacked),
        ("v5", "a=1", 2, Standing::Acked),
        ("v6", "a=2", 3, Standing::Acked),
    ] {
        let taken = ads.response(response(Kind::Listener, version, version, texts(&[resource])));
        assert_eq!(codec.decoded.get(), decoded, "{version}");
        assert_eq!(ads.entry(&listener("a")).unwrap().standing, standing, "{version}");
        assert_eq!(taken.refused, standing == Standing::Nacked);
    }
}

#[test]
fn the_last_unsubscription_sends_an_empty_list_but_never_as_the_first_word() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.opened();
    ads.subscribe(&listener("a"));
    ads.unsubscribe(&listener("a"));
    assert!(!ads.has_request(), "an empty list as first word would mean everything");

    ads.subscribe(&listener("b"));
    assert_eq!(as_strs(&request(&mut ads).resource_names), ["b"]);
    ads.unsubscribe(&listener("b"));
    assert!(request(&mut ads).resource_names.is_empty());
    assert!(ads.entry(&listener("b")).is_none());

    // A response that was under way is acknowledged without bringing anything back.
    ads.response(response(Kind::Listener, "v1", "n1", texts(&["b=1"])));
    assert_eq!(request(&mut ads).response_nonce, "n1");
    assert_eq!(ads.known(&listener("b")), Known::Pending);
}

#[test]
fn a_wish_renewed_before_the_control_plane_heard_of_its_end_keeps_the_value() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    ads.opened();
    request(&mut ads);
    ads.response(response(Kind::Listener, "v1", "n1", texts(&["a=1"])));
    request(&mut ads);

    ads.unsubscribe(&listener("a"));
    ads.subscribe(&listener("a"));
    assert!(!ads.has_request(), "nothing changed for the control plane");
    assert_eq!(value(&ads, &listener("a")).unwrap(), "1");
}

#[test]
fn absence_deletes_listeners_and_clusters_only_and_the_last_good_stays() {
    for (kind, standing) in [
        (Kind::Listener, Standing::DoesNotExist),
        (Kind::Routes, Standing::Acked),
        (Kind::Cluster, Standing::DoesNotExist),
        (Kind::Endpoints, Standing::Acked),
    ] {
        let codec = Text::default();
        let mut ads = ads(&codec);
        let key = Key::new(kind, "a");
        ads.subscribe(&key);
        ads.subscribe(&Key::new(kind, "never"));
        ads.opened();
        ads.response(response(kind, "v1", "n1", texts(&["a=1"])));
        ads.response(response(kind, "v2", "n2", texts(&[])));
        assert_eq!(ads.entry(&key).unwrap().standing, standing);
        assert_eq!(value(&ads, &key).unwrap(), "1");
        assert_eq!(ads.known(&Key::new(kind, "never")), Known::Pending, "it may be on its way");
        ads.response(response(kind, "v3", "n3", texts(&["a=3"])));
        assert_eq!(value(&ads, &key).unwrap(), "3", "it came back");
    }
}

#[tokio::test(start_paused = true)]
async fn the_does_not_exist_timer_runs_only_while_connected_and_asked() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    ads.subscribe(&listener("cached"));
    assert_eq!(ads.next_deadline(), None, "not connected");
    ads.opened();
    assert_eq!(ads.next_deadline(), None, "not asked");
    let (kind, _) = ads.take_request().unwrap();
    let asked = Instant::now();
    ads.written(kind, asked);
    assert_eq!(ads.next_deadline(), Some(asked + TIMEOUT));

    ads.response(response(Kind::Listener, "v1", "n1", texts(&["cached=1"])));
    tokio::time::advance(Duration::from_secs(10)).await;
    ads.closed();
    assert_eq!(ads.next_deadline(), None, "no timer without a stream");

    ads.opened();
    let (kind, _) = ads.take_request().unwrap();
    let again = Instant::now();
    ads.written(kind, again);
    assert_eq!(ads.next_deadline(), Some(again + TIMEOUT), "the whole time again on the new stream");
    assert!(ads.expire(again + TIMEOUT - Duration::from_millis(1)).is_empty());
    assert_eq!(ads.expire(again + TIMEOUT), [listener("a")], "what is cached never expires");
    assert!(matches!(ads.known(&listener("a")), Known::Missing(_)));
    assert_eq!(ads.next_deadline(), None);

    ads.response(response(Kind::Listener, "v2", "n2", texts(&["cached=1", "a=1"])));
    assert_eq!(value(&ads, &listener("a")).unwrap(), "1", "late is better than never");
}

#[test]
fn a_new_stream_asks_with_versions_and_without_old_nonces() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    ads.subscribe(&Key::new(Kind::Routes, "gone"));
    ads.opened();
    ads.response(response(Kind::Listener, "v1", "n1", texts(&["a=1"])));
    ads.unsubscribe(&Key::new(Kind::Routes, "gone"));
    ads.closed();
    assert!(!ads.has_request());
    assert_eq!(value(&ads, &listener("a")).unwrap(), "1");

    ads.opened();
    let first = request(&mut ads);
    assert_eq!((first.version_info.as_str(), first.response_nonce.as_str()), ("v1", ""));
    assert!(first.node.is_some() && first.error_detail.is_none());
    assert!(!ads.has_request(), "a type without names is not mentioned");
}

#[test]
fn dependants_are_asked_for_before_the_answer_goes_out() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&Key::new(Kind::Routes, "r"));
    ads.opened();
    request(&mut ads);
    ads.response(response(Kind::Routes, "v1", "n1", texts(&["r=1"])));
    ads.subscribe(&Key::new(Kind::Cluster, "c"));
    assert_eq!(request(&mut ads).type_url, Kind::Cluster.type_url());
    assert_eq!(request(&mut ads).type_url, Kind::Routes.type_url());
}

#[test]
fn a_resource_error_is_known_at_once() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    ads.opened();
    request(&mut ads);
    let mut answer = response(Kind::Listener, "v1", "n1", texts(&[]));
    answer.resource_errors = vec![ResourceError {
        resource_name: Some(ResourceName { name: "a".to_owned(), ..Default::default() }),
        error_detail: Some(rpc::Status { code: 5, message: "no Service a".to_owned(), ..Default::default() }),
    }];
    assert_eq!(ads.response(answer).changed, [listener("a")]);
    assert_eq!(ads.known(&listener("a")), Known::Missing("no Service a"));
}

#[test]
fn unrequested_names_and_types_are_tolerated() {
    let codec = Text::default();
    let mut ads = ads(&codec);
    ads.subscribe(&listener("a"));
    ads.opened();
    request(&mut ads);
    let taken = ads.response(response(Kind::Listener, "v1", "n1", texts(&["stranger=bad", "a=1"])));
    assert!(!taken.refused, "nobody reads the stranger, so nobody judges it");
    request(&mut ads);

    let mut unknown = response(Kind::Listener, "v1", "n2", texts(&["a=2"]));
    unknown.type_url = "type.googleapis.com/unknown".to_owned();
    assert!(ads.response(unknown).changed.is_empty());
    assert!(!ads.has_request());
}
