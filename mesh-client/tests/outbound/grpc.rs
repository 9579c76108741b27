//! A generated client's calls over a [`mesh_client::Channel`].

use std::pin::pin;
use std::time::Duration;

use http::uri::PathAndQuery;
use mesh_client::{Channel, Client};
use mesh_core::policy::{AbortStatus, Fault, FaultAbort, Forward, PerMillion, RetryOn, RetryPolicy};
use mesh_testkit::{Behaviour, EchoServer, FixedSource, policy};
use tonic::client::Grpc;
use tonic::{Code, Response, Status};
use tonic_prost::ProstCodec;

use super::{TARGET, client_of, cluster, forward_with, retrying, snapshot_with};

async fn say(channel: Channel, text: &str) -> Result<Response<String>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|never| Status::unknown(never.to_string()))?;
    let path = PathAndQuery::from_static("/echo.Echo/Say");
    grpc.unary(tonic::Request::new(text.to_owned()), path, ProstCodec::<String, String>::default()).await
}

#[tokio::test]
async fn a_unary_call_goes_over_http2_whatever_the_cluster_says() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    let channel = client.channel(TARGET).unwrap();
    let answer = say(channel.clone(), "hello").await.unwrap();
    assert_eq!(answer.get_ref(), "hello");
    assert_eq!(answer.metadata().get("x-echo-version").unwrap(), "HTTP/2.0");
    assert_eq!(answer.metadata().get("x-echo-authority").unwrap(), TARGET);
    say(channel, "again").await.unwrap();
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn failures_arrive_as_a_status_with_our_code() {
    let (client, _) = client_of(policy::snapshot_of(cluster("test"), []));
    let status = say(client.channel(TARGET).unwrap(), "hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("MESH-1101 no healthy endpoint for reviews:9080"), "{}", status.message());
    assert!(client.channel("no port").is_err());
}

#[tokio::test]
async fn a_broken_connection_is_unavailable_with_our_code() {
    let server = EchoServer::start("one").await;
    server.behave(Behaviour::CloseConnection);
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    let status = say(client.channel(TARGET).unwrap(), "hello").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("MESH-1107"), "{}", status.message());
}

#[tokio::test]
async fn an_unavailable_answer_is_retried() {
    let server = EchoServer::start("one").await;
    server.script([Behaviour::Grpc(14)]);
    let on = RetryOn { unavailable: true, ..RetryOn::default() };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on))), cluster("test"), &[&server]));
    assert_eq!(say(client.channel(TARGET).unwrap(), "hello").await.unwrap().get_ref(), "hello");
    assert_eq!(server.requests(), 2);
    // A POST to HTTP: of gRPC it is the status that counts, under the policy that nobody wrote as well.
    server.script([Behaviour::Grpc(14)]);
    let retry = Some(RetryPolicy::istio_default());
    let (client, _) = client_of(snapshot_with(forward_with(retry), cluster("test"), &[&server]));
    assert_eq!(say(client.channel(TARGET).unwrap(), "hello").await.unwrap().get_ref(), "hello");
    // Control: the same answer under a policy that does not name it.
    server.script([Behaviour::Grpc(14)]);
    let on = RetryOn { internal: true, ..RetryOn::default() };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on))), cluster("test"), &[&server]));
    assert_eq!(say(client.channel(TARGET).unwrap(), "hello").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_injected_abort_is_a_grpc_status() {
    let abort = FaultAbort::with(AbortStatus::Http(503), PerMillion::ALL);
    let route = policy::route_to("test".into()).with_fault(Fault { abort: Some(abort), ..Fault::default() });
    let snapshot = policy::snapshot(policy::routes([route]), [(cluster("test"), vec![])]);
    let client = Client::builder(FixedSource::of(TARGET, snapshot)).build();
    let status = say(client.channel(TARGET).unwrap(), "hello").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "fault filter abort"));
}

#[tokio::test]
async fn the_callers_timeout_is_passed_on_and_kept() {
    let server = EchoServer::start("slow").await;
    server.behave(Behaviour::Hold);
    let (client, _) = client_of(policy::snapshot_to(&[server.address()]));
    let mut grpc = Grpc::new(client.channel(TARGET).unwrap());
    let mut request = tonic::Request::new("hello".to_owned());
    request.set_timeout(Duration::from_secs(10));
    let path = PathAndQuery::from_static("/echo.Echo/Say");
    let call = grpc.unary(request, path, ProstCodec::<String, String>::default());
    let advance = async {
        server.wait_for_requests(1).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(10)).await;
        tokio::time::resume();
    };
    let (result, ()) = tokio::join!(call, advance);
    let status: Status = result.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(status.message().starts_with("MESH-1202"), "{}", status.message());
    assert!(server.received()[0].headers.contains_key("grpc-timeout"));
}

/// Control: `streams_have_the_time_that_the_most_specific_limit_gives_them`, where it leaves HTTP requests alone.
#[tokio::test]
async fn a_routes_ceiling_for_grpc_cuts_the_call_a31() {
    let server = EchoServer::start("slow").await;
    server.behave(Behaviour::Hold);
    let ceiling = Duration::from_secs(10);
    for (grpc_timeout_max, cut) in [(Some(ceiling), true), (None, false)] {
        let forward = Forward { grpc_timeout_max, ..forward_with(None) };
        let (client, _) = client_of(snapshot_with(forward, cluster("test"), &[&server]));
        let mut call = pin!(say(client.channel(TARGET).unwrap(), "hello"));
        let requests = server.requests() + 1;
        tokio::select! {
            biased;
            ended = &mut call => panic!("it ended: {ended:?}"),
            () = server.wait_for_requests(requests) => {}
        }
        assert_eq!(server.received().pop().unwrap().headers.contains_key("grpc-timeout"), cut);
        tokio::time::pause();
        tokio::time::advance(ceiling).await;
        tokio::time::resume();
        if cut {
            let status = call.await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded);
            assert!(status.message().starts_with("MESH-12"), "{}", status.message());
        } else {
            assert!(futures_util::poll!(&mut call).is_pending(), "control: without one it goes on");
        }
    }
}
