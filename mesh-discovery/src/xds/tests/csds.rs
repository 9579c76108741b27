//! What tools are told of the client's state (row X16; gRFC A40, A88).

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::service::status::v3::ClientStatusRequest;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Listener, RouteSource};
use mesh_core::source::DestinationSource;
use mesh_testkit::clock::pass;
use tokio::runtime::Handle;

use super::super::csds::StatusService;
use super::super::kind::Kind;
use super::super::message::{Cause, ResourceError};
use super::super::{Variant, XdsClient, XdsConfig};
use super::{Server, network, response};
use crate::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use crate::codec;

fn client(transient: bool) -> (StatusService, Server) {
    let (transport, server) = network();
    let mut memory = XdsServer::new("memory:1".parse().unwrap(), ChannelCredentials::Insecure);
    memory.features.resource_timer_is_transient_error = transient;
    let mut config = XdsConfig::new(Bootstrap::new(memory, Node { id: "me".to_owned(), ..Default::default() }));
    config.variant = Some(Variant::StateOfTheWorld);
    let client = XdsClient::spawn(config, move |_: &XdsServer| transport.clone(), &Handle::current());
    (StatusService { client: Arc::new(client) }, server)
}

fn listener(name: &str) -> Any {
    codec::encode_listener(&Listener::new(name, RouteSource::Named("r".to_owned())))
}

/// The listener of that name, as a tool sees it.
fn told(service: &StatusService, name: &str) -> GenericXdsConfig {
    let answer = service.answer(&ClientStatusRequest::default()).unwrap();
    let rows = answer.config.into_iter().flat_map(|config| config.generic_xds_configs);
    rows.into_iter().find(|row| row.name == name && row.type_url == codec::LISTENER).unwrap()
}

/// Takes requests until the listeners of these names have been asked for, and the client has had its turn.
async fn asked_for(stream: &mut super::Stream, names: &[&str]) {
    while super::asked(&stream.request().await) != names {}
}

#[tokio::test(start_paused = true)]
async fn x16_every_state_of_a_resource_has_its_status() {
    use ClientResourceStatus::{Acked, Nacked, ReceivedError, Requested};

    let (service, mut server) = client(false);
    let names = ["bad:1", "gone:1", "good:1", "late:1"];
    let _watched = names.map(|name| service.client.destination(&name.parse().unwrap()));
    let mut stream = server.accept().await;
    asked_for(&mut stream, &names).await;
    for name in names {
        let row = told(&service, name);
        assert_eq!(
            (row.client_status(), row.xds_config, row.error_state, row.last_updated),
            (Requested, None, None, None)
        );
    }

    let mut first = response(Kind::Listener, "7", "n", vec![listener("good:1"), listener("bad:1")]);
    first.resources[1].body.as_mut().unwrap().bytes.truncate(20);
    first.resources[1].name = "bad:1".to_owned();
    first.errors.push(ResourceError {
        name: "gone:1".to_owned(),
        cause: Cause::NotFound,
        message: "no such".to_owned(),
    });
    stream.responses.send(Ok(first)).unwrap();
    // Answered: the response has been taken in.
    stream.request().await;

    let good = told(&service, "good:1");
    assert_eq!((good.client_status(), good.version_info.as_str(), good.error_state), (Acked, "7", None));
    assert_eq!(good.xds_config, Some(listener("good:1")));
    assert!(good.last_updated.unwrap().seconds > 1_600_000_000, "the time of the world");
    let bad = told(&service, "bad:1");
    let failure = bad.error_state.clone().unwrap();
    assert_eq!((bad.client_status(), bad.version_info.as_str(), failure.version_info.as_str()), (Nacked, "", "7"));
    assert!(!failure.details.is_empty() && failure.last_update_attempt.is_some(), "{failure:?}");
    let gone = told(&service, "gone:1");
    assert_eq!((gone.client_status(), gone.error_state.unwrap().details.as_str()), (ReceivedError, "no such"));
    assert_eq!(told(&service, "late:1").client_status(), Requested);
}

#[tokio::test(start_paused = true)]
async fn x16_what_was_refused_is_shown_beside_the_last_good_one_a40() {
    let (service, mut server) = client(false);
    let _watched = service.client.destination(&"a:1".parse().unwrap());
    let mut stream = server.accept().await;
    asked_for(&mut stream, &["a:1"]).await;
    stream.responses.send(Ok(response(Kind::Listener, "1", "n1", vec![listener("a:1")]))).unwrap();
    stream.request().await;
    stream.request().await;
    let broken = |version: &str, nonce: &str| {
        let mut broken = response(Kind::Listener, version, nonce, vec![listener("a:1")]);
        broken.resources[0].body.as_mut().unwrap().bytes.truncate(20);
        broken.resources[0].name = "a:1".to_owned();
        broken
    };
    let refused = broken("", "").resources[0].body.clone().unwrap();
    let mut attempts = Vec::new();
    for (version, nonce) in [("2", "n2"), ("3", "n3")] {
        stream.responses.send(Ok(broken(version, nonce))).unwrap();
        assert!(stream.request().await.error.is_some());
        let row = told(&service, "a:1");
        let failure = row.error_state.clone().unwrap();
        assert_eq!((row.client_status(), row.version_info.as_str()), (ClientResourceStatus::Nacked, "1"));
        assert_eq!(row.xds_config, Some(listener("a:1")), "the last good one");
        assert_eq!(failure.version_info, version, "of the latest attempt, the same bytes or not");
        let shown = failure.failed_configuration.unwrap();
        assert_eq!((shown.type_url.as_str(), &shown.value[..]), (codec::LISTENER, &refused.bytes[..]));
        assert!(!failure.details.is_empty());
        attempts.push(failure.last_update_attempt.unwrap().seconds);
        pass(Duration::from_secs(60)).await;
    }
    assert_eq!(attempts[1] - attempts[0], 60);

    let request = ClientStatusRequest { exclude_resource_contents: true, ..Default::default() };
    let config = service.answer(&request).unwrap().config.remove(0).generic_xds_configs.remove(0);
    assert_eq!((config.xds_config, config.error_state.unwrap().failed_configuration), (None, None));

    // The control run: what is good again has no error.
    stream.responses.send(Ok(response(Kind::Listener, "4", "n4", vec![listener("a:1")]))).unwrap();
    assert!(stream.request().await.error.is_none());
    let row = told(&service, "a:1");
    assert_eq!((row.client_status(), row.error_state), (ClientResourceStatus::Acked, None));
}

#[tokio::test(start_paused = true)]
async fn x16_what_did_not_come_in_time_does_not_exist_or_timed_out_as_the_server_has_it() {
    for (transient, after, want) in
        [(false, 15, ClientResourceStatus::DoesNotExist), (true, 30, ClientResourceStatus::Timeout)]
    {
        let (service, mut server) = client(transient);
        let _state = service.client.destination(&"late:1".parse().unwrap());
        let mut stream = server.accept().await;
        asked_for(&mut stream, &["late:1"]).await;
        // Control: not before its time.
        pass(Duration::from_secs(after - 1)).await;
        assert_eq!(told(&service, "late:1").client_status(), ClientResourceStatus::Requested);
        pass(Duration::from_secs(2)).await;
        let row = told(&service, "late:1");
        assert_eq!(row.client_status(), want);
        assert!(row.error_state.unwrap().version_info.is_empty(), "nothing was refused");
    }
}

#[tokio::test]
async fn x16_authorities_are_scopes_and_the_node_is_told() {
    let (service, _server) = client(false);
    let elsewhere = "b:1".parse::<mesh_core::id::Target>().unwrap().with_authority("other").unwrap();
    let _watched = (service.client.destination(&"a:1".parse().unwrap()), service.client.destination(&elsewhere));
    let config = loop {
        let config = service.answer(&ClientStatusRequest::default()).unwrap().config;
        if config.len() == 2 {
            break config;
        }
        tokio::task::yield_now().await;
    };
    let scopes: Vec<_> = config.iter().map(|config| config.client_scope.as_str()).collect();
    assert_eq!(scopes, ["xds:///", "xds://other/"]);
    assert!(config.iter().all(|config| config.node.as_ref().unwrap().id == "me"));
    assert_eq!(config[0].generic_xds_configs[0].name, "a:1");
    assert!(config[1].generic_xds_configs[0].name.starts_with("xdstp://other/"));
}
