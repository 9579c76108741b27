//! reqwest's requests and answers over the mesh: what reqwest builds the client sends, and its answer is reqwest's again.

use http::{Request, Response};
use mesh_client::Client;
use mesh_core::error::BoxError;
use mesh_core::policy::RetryOn;
use mesh_testkit::{Behaviour, EchoServer};
use reqwest::ResponseBuilderExt as _;

use super::{TARGET, client_of, cluster, forward_with, retrying, snapshot_with};

/// Sends what reqwest has built. Its own settings of connections, redirects and timeouts have no part in it.
async fn execute(client: &Client, request: reqwest::Request) -> Result<reqwest::Response, BoxError> {
    let url = request.url().clone();
    let request = Request::<reqwest::Body>::try_from(request)?;
    let (head, body) = client.send(request).await?.into_parts();
    let mut answer = Response::builder().status(head.status).version(head.version).url(url).body(())?;
    *answer.headers_mut() = head.headers;
    Ok(answer.map(|()| reqwest::Body::wrap(body)).into())
}

#[tokio::test]
async fn what_reqwest_builds_goes_over_the_mesh_and_comes_back_as_its_answer() {
    let server = EchoServer::start("one").await;
    let on = RetryOn { gateway_error: true, ..RetryOn::default() };
    let (client, _) = client_of(snapshot_with(forward_with(Some(retrying(1, on))), cluster("test"), &[&server]));
    let builder = reqwest::Client::new();
    let url = format!("http://{TARGET}/cart?item=1");
    // The mesh's retry, which sends reqwest's body twice.
    server.script([Behaviour::Status(503)]);
    let request = builder.put(&url).header("x-user", "jo").body("two tickets").build().unwrap();
    let answer = execute(&client, request).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.url().as_str()), (200, url.as_str()));
    assert_eq!(answer.headers()["x-echo-server"], "one");
    assert_eq!(answer.text().await.unwrap(), "two tickets");
    let seen = server.received();
    assert_eq!(
        (seen.len(), &seen[1].headers["x-user"], seen[1].uri.query()),
        (2, &"jo".parse().unwrap(), Some("item=1"))
    );

    // An answer that breaks off is an error of reqwest's.
    server.script([Behaviour::Stall]);
    let answer = execute(&client, builder.get(&url).build().unwrap()).await.unwrap();
    drop(server);
    assert!(answer.bytes().await.is_err());
}
