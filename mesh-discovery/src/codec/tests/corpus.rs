//! The corpora of the fuzzer, replayed. `UPDATE_CORPUS=1` writes them anew: resources of our own encoder, and
//! the same cut off and bent. What a fuzzer finds is added by hand and stays.

use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    Composite, FilterOverride, HttpFilter, HttpFilterKind, InboundListener, InboundTls, Listener, RouteConfiguration,
    RouteSource,
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::generate::{listener, routes};
use super::generate_cluster::{cluster, endpoints};
use super::generate_composite::{of_client, of_server};
use super::generate_inbound::inbound;
use crate::bootstrap::Bootstrap;
use crate::codec::{self, fuzzing};

/// Resources of each kind.
const SAMPLES: usize = 4;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn write<T>(target: &str, name: &str, policies: impl Strategy<Value = T>, encode: impl Fn(&T) -> Any) {
    let mut runner = TestRunner::deterministic();
    std::fs::create_dir_all(folder(target)).unwrap();
    for i in 0..SAMPLES {
        let mut bytes = encode(&policies.new_tree(&mut runner).unwrap().current()).value;
        let file = |kind: &str| folder(target).join(format!("{name}-{i}{kind}"));
        std::fs::write(file(""), &bytes).unwrap();
        std::fs::write(file("-cut"), &bytes[..bytes.len() * 2 / 3]).unwrap();
        let at = bytes.len() * (i + 1) / (SAMPLES + 1);
        bytes[at] ^= 0x55;
        std::fs::write(file("-bent"), &bytes).unwrap();
    }
}

fn replay(target: &str, play: impl Fn(&[u8])) {
    let files = std::fs::read_dir(folder(target)).unwrap();
    let played = files.map(|file| play(&std::fs::read(file.unwrap().path()).unwrap())).count();
    assert!(played >= SAMPLES, "{played} files of {target}");
}

fn composite(composite: Composite) -> Vec<HttpFilter> {
    vec![HttpFilter { name: "composite".to_owned(), kind: HttpFilterKind::Composite(composite) }]
}

fn client_with(own: Composite) -> Listener {
    Listener { filters: composite(own), ..Listener::new("reviews:9080", RouteSource::Named("routes".to_owned())) }
}

fn server_with(own: Composite) -> InboundListener {
    let address = ([127, 0, 0, 1], 8080).into();
    InboundListener { filters: composite(own), ..InboundListener::new("inbound", address, InboundTls::Permissive) }
}

/// With its routes beside it.
fn apart(listener: InboundListener) -> Option<Any> {
    let (listener, routes) = mesh_testkit::xds::apart(&codec::encode_inbound(&listener).value, "r")?;
    Some(Any { type_url: String::new(), value: fuzzing::framed(&listener, &routes) })
}

fn routes_with(own: Composite) -> RouteConfiguration {
    let mut table = super::refusals::routes();
    let own = FilterOverride::Composite(own);
    table.virtual_hosts[0].routes[0].filters = Arc::new([("composite".to_owned(), own.into())].into());
    table
}

#[test]
fn corpora_are_replayed() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        write("listener", "client", listener(), codec::encode_listener);
        write("listener", "server", inbound(), codec::encode_inbound);
        write("routes", "routes", routes(), codec::encode_routes);
        write("listener", "composite-client", of_client().prop_map(client_with), codec::encode_listener);
        write("routes", "composite", of_server().prop_map(routes_with), codec::encode_routes);
        write("listener", "composite-server", of_server().prop_map(server_with), codec::encode_inbound);
        write("joined", "apart", inbound().prop_filter_map("its routes are inline", apart), Any::clone);
        write("cluster", "cluster", cluster(), codec::encode_cluster);
        write("endpoints", "endpoints", endpoints(), codec::encode_endpoints);
    }
    replay("listener", fuzzing::listener);
    replay("routes", fuzzing::routes);
    replay("joined", fuzzing::joined);
    replay("cluster", fuzzing::cluster);
    replay("endpoints", fuzzing::endpoints);
    replay("bootstrap", |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let _ = Bootstrap::from_json(text);
        }
    });
}
