//! Many clients at once, over loopback.

use std::collections::BTreeMap;
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::{Extension, Node};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use futures_util::future::join_all;
use mesh_discovery::proto::registry::AnnounceRequest;

use super::*;
use crate::registry::Registration;

const SERVICES: usize = 400;
const STREAMS: usize = 500;
const EACH: usize = 20;

fn registration(service: usize, zone: &str) -> Registration {
    Registration {
        service: format!("s{service}"),
        namespace: "default".into(),
        service_port: 80,
        address: SocketAddr::from(([10, 0, (service / 250) as u8, (service % 250) as u8], 80)),
        labels: BTreeMap::new(),
        locality: mesh_core::id::Locality { zone: zone.into(), ..Default::default() },
        mesh_tls: true,
        port_protocol: "http".into(),
        workload: String::new(),
        service_account: "default".into(),
    }
}

fn eds(service: usize) -> String {
    format!("outbound|80||s{service}.default.svc.cluster.local")
}

/// Names of what the stream was sent; takes as many responses as it needs to see `wanted` of them.
async fn take(ads: &mut Ads, names: &[&str], wanted: usize) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < wanted {
        let response = ads.expect(Kind::Endpoints).await;
        ads.acknowledge(&response, names, None).await;
        seen.extend(response.resources.iter().map(|any| codec::resource_name(codec::ENDPOINTS, any).unwrap()));
    }
    seen
}

/// The value of a metric without labels.
async fn metric(plane: &ControlPlane, name: &str) -> u64 {
    let (_, text) = page(plane, "localhost", "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    line.parse().unwrap()
}

#[tokio::test]
async fn one_change_reaches_those_who_subscribe_among_five_hundred_and_costs_one_look() {
    let setup = Setup::new();
    let free = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let plane = setup.builder().insecure_xds(free).start().await.unwrap();
    plane.hold((0..SERVICES).map(|service| registration(service, "a")).collect());
    // A hundred streams a connection, as many as the server takes.
    let connections =
        join_all((0..STREAMS.div_ceil(100)).map(|_| Connection::plaintext(plane.insecure_address().unwrap()))).await;
    // Everybody uses service 0, and some others.
    let services =
        |stream: usize| (0..EACH).map(move |n| if n == 0 { 0 } else { 1 + (stream * 7 + n) % (SERVICES - 1) });
    let names: Vec<Vec<String>> = (0..STREAMS).map(|stream| services(stream).map(eds).collect()).collect();
    let names: Vec<Vec<&str>> = names.iter().map(|names| names.iter().map(String::as_str).collect()).collect();
    let opened = Instant::now();
    let mut streams = join_all(names.iter().enumerate().map(|(at, names)| {
        let connection = &connections[at / 100];
        async move {
            let mut ads = connection.ads().await.unwrap();
            ads.ask(Kind::Endpoints, names, None).await;
            assert_eq!(take(&mut ads, names, EACH).await.len(), EACH);
            ads
        }
    }))
    .await;
    tracing::info!(elapsed = ?opened.elapsed(), "all are connected");
    assert_eq!(metric(&plane, "mesh_control_resources").await, SERVICES as u64, "each once, whoever uses it");

    let (looks, pushes) =
        (metric(&plane, "mesh_control_evaluations_total").await, metric(&plane, "mesh_control_pushes_total").await);
    plane.hold(vec![registration(0, "b")]);
    let all = join_all(streams.iter_mut().zip(&names).map(|(ads, names)| take(ads, names, 1))).await;
    assert!(all.iter().all(|seen| *seen == [eds(0)]), "nothing else was sent");
    assert_eq!(metric(&plane, "mesh_control_evaluations_total").await - looks, 1);
    assert_eq!(metric(&plane, "mesh_control_pushes_total").await - pushes, STREAMS as u64);

    // And a change that some subscribe to is sent to them alone: the next thing that all see is the one after.
    let some: Vec<usize> = (0..STREAMS).filter(|stream| services(*stream).any(|service| service == 9)).collect();
    assert!(some.len() > 10 && some.len() < 100);
    let pushes = metric(&plane, "mesh_control_pushes_total").await;
    plane.hold(vec![registration(9, "b")]);
    for at in &some {
        assert_eq!(take(&mut streams[*at], &names[*at], 1).await, [eds(9)]);
    }
    plane.hold(vec![registration(0, "c")]);
    let all = join_all(streams.iter_mut().zip(&names).map(|(ads, names)| take(ads, names, 1))).await;
    assert!(all.iter().all(|seen| *seen == [eds(0)]));
    assert_eq!(metric(&plane, "mesh_control_pushes_total").await - pushes, (some.len() + STREAMS) as u64);

    drop((streams, connections));
    while metric(&plane, "mesh_control_streams").await > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(metric(&plane, "mesh_control_resources").await, 0, "nothing is left of them");
}

#[tokio::test]
async fn a_client_that_does_not_answer_or_read_delays_nobody() {
    let setup = Setup::new();
    let free = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let plane = setup.builder().insecure_xds(free).start().await.unwrap();
    plane.hold(vec![registration(0, "a")]);
    let name = eds(0);
    let hung = Connection::plaintext(plane.insecure_address().unwrap()).await;
    let request = DeltaDiscoveryRequest {
        type_url: codec::ENDPOINTS.to_owned(),
        resource_names_subscribe: vec![name.clone()],
        ..DeltaDiscoveryRequest::default()
    };
    let hung = hung.delta(request).await.unwrap();
    let mut ads = Connection::plaintext(plane.insecure_address().unwrap()).await.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[&name], None).await;
    take(&mut ads, &[&name], 1).await;
    let pushes = metric(&plane, "mesh_control_pushes_total").await;
    for edition in 0..50 {
        plane.hold(vec![registration(0, &edition.to_string())]);
        take(&mut ads, &[&name], 1).await;
    }
    // One response for each change to the one, and none but its first to the other.
    assert_eq!(metric(&plane, "mesh_control_pushes_total").await - pushes, 50);
    drop(hung);
}

#[tokio::test]
async fn a_client_that_comes_back_may_say_everything_that_it_may_have_and_not_more() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let member = join(&plane, "default", "edge").await;
    let request = |count: usize, name_bytes: usize| {
        let names: Vec<String> = (0..count).map(|n| format!("{n:0>name_bytes$}")).collect();
        DeltaDiscoveryRequest {
            type_url: codec::ENDPOINTS.to_owned(),
            initial_resource_versions: names.iter().map(|name| (name.clone(), "0123456789abcdef".to_owned())).collect(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        }
    };
    // As many bytes of names as there may be; more than 4 MiB, and of each name more than it takes to decode it.
    let large = request(2_560, 4_096);
    assert!(prost::Message::encoded_len(&large) > 20 << 20);
    let mut all = member.delta(large).await.unwrap();
    let answer = all.message().await.unwrap().unwrap();
    assert_eq!(answer.type_url, codec::ENDPOINTS);
    assert_eq!(metric(&plane, "mesh_control_refused_total").await, 0);
    // The control: beyond that the client hears why, and it counts.
    let refused = match member.delta(request(3_100, 4_096)).await {
        Ok(mut answers) => answers.message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("too large") && refused.message().contains("fewer names"), "{refused}");
    assert_eq!(metric(&plane, "mesh_control_refused_total").await, 1);
    assert_eq!(metric(&plane, "mesh_control_refusals_total{reason=\"stream\"}").await, 1);
    // And what would become far larger than it came is not read at all.
    let node = Some(Node { extensions: vec![Extension::default(); 200_000], ..Node::default() });
    let mut answers = member.delta(DeltaDiscoveryRequest { node, ..request(1, 1) }).await.unwrap();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("fewer extensions"), "{refused}");
    assert_eq!(metric(&plane, "mesh_control_refused_total").await, 2);
    assert_eq!(metric(&plane, "mesh_control_refusals_total{reason=\"stream\"}").await, 2);
}

#[tokio::test]
async fn an_endpoint_that_is_not_taken_in_is_counted_and_not_called_announced() {
    let (log, setup) = (Listening::begin(), Setup::new());
    let plane = setup.start().await;
    let mut announcer = join(&plane, "default", "reviews").await.announce().await.unwrap();
    announcer.reviews(4001).await;
    let stolen = Announcement {
        service: "reviews".into(),
        service_port: 9080,
        address: "127.0.0.1:4001".into(),
        ..Announcement::default()
    };
    let mut thief = join(&plane, "default", "thief").await.announce().await.unwrap();
    assert!(!thief.send(AnnounceRequest::announce(stolen)).await.accepted);
    assert_eq!(log.lines(&["sa/thief", "an announcement is refused"]), 1, "{}", log.text());
    assert_eq!(log.lines(&["sa/thief", "endpoint announced"]), 0, "{}", log.text());
    let refused =
        async |reason: &str| metric(&plane, &format!("mesh_control_refusals_total{{reason=\"{reason}\"}}")).await;
    assert_eq!((refused("announcement").await, refused("stream").await), (1, 0));
    // A stream counts as those of the other services.
    let denied = Connection::anonymous(&plane).await.announce().await.err().unwrap();
    assert_eq!(denied.code(), tonic::Code::Unauthenticated);
    assert_eq!((refused("announcement").await, refused("stream").await), (1, 1));
    assert_eq!(log.lines(&["mesh::audit", "announcement stream denied"]), 1, "{}", log.text());
    // The control: what was taken in.
    assert_eq!(log.lines(&["sa/reviews", "endpoint announced", "127.0.0.1:4001"]), 1, "{}", log.text());
}

/// Whoever is told that it is withdrawn may be gone before the control plane is killed.
#[tokio::test]
async fn a_withdrawal_is_answered_when_a_restart_would_not_bring_the_endpoint_back() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let reviews = join(&plane, "default", "reviews").await;
    for port in 4001..4011 {
        let mut announcer = reviews.announce().await.unwrap();
        announcer.reviews(port).await;
        assert!(announcer.send(AnnounceRequest::withdraw()).await.accepted);
        assert_eq!(registry::load(&plane.state).0, []);
    }
}

#[tokio::test]
async fn registrations_survive_a_reconnect_and_a_restart_without_flapping() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let reviews = join(&plane, "default", "reviews").await;
    let mut announcer = reviews.announce().await.unwrap();
    announcer.reviews(4001).await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    endpoints_become(&mut ads, &["127.0.0.1:4001"]).await;
    let pushes = metric(&plane, "mesh_control_pushes_total").await;
    for _ in 0..3 {
        drop(announcer);
        announcer = reviews.announce().await.unwrap();
        announcer.reviews(4001).await;
    }
    // Another identity of the namespace cannot take it over, nor withdraw it.
    let mut thief = join(&plane, "default", "thief").await.announce().await.unwrap();
    let stolen = Announcement {
        service: "reviews".into(),
        service_port: 9080,
        address: "127.0.0.1:4001".into(),
        ..Announcement::default()
    };
    let answer = thief.send(AnnounceRequest::announce(stolen)).await;
    assert!(!answer.accepted && answer.reason.contains("reviews"), "{}", answer.reason);
    thief.send(AnnounceRequest::withdraw()).await;
    // The control is a real change: it is the next thing that is pushed.
    let mut second = join(&plane, "default", "reviews").await.announce().await.unwrap();
    second.reviews(4002).await;
    endpoints_become(&mut ads, &["127.0.0.1:4001", "127.0.0.1:4002"]).await;
    assert_eq!(metric(&plane, "mesh_control_pushes_total").await - pushes, 1);
    plane.shutdown().await;

    let plane = setup.start().await;
    let mut ads = join(&plane, "default", "productpage").await.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    endpoints_become(&mut ads, &["127.0.0.1:4001", "127.0.0.1:4002"]).await;
    let mut announcer = join(&plane, "default", "reviews").await.announce().await.unwrap();
    announcer.reviews(4001).await;
    assert!(announcer.send(AnnounceRequest::withdraw()).await.accepted);
    endpoints_become(&mut ads, &["127.0.0.1:4002"]).await;
    assert_eq!(metric(&plane, "mesh_control_pushes_total").await, 2, "the whole state, and the withdrawal");
}
