//! A client that balances over a list of addresses: no control plane, no DNS, nothing to set up.
//!
//! `cargo run --example balance_static` starts three servers, sends them requests, stops one, and goes on. It
//! fails if the share of any is too small or if a request is lost, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::collections::BTreeMap;

use mesh::{Channel, Mesh};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

#[path = "grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod hello;

use hello::greeter_client::GreeterClient;
use hello::greeter_server::{Greeter, GreeterServer};
use hello::{HelloReply, HelloRequest};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Answers with its name.
struct Named(String);

#[tonic::async_trait]
impl Greeter for Named {
    async fn say_hello(&self, _request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { message: self.0.clone(), caller: String::new() }))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        servers.push(serve(name).await?);
    }
    let list: Vec<_> = servers.iter().map(|(address, ..)| address.as_str()).collect();
    let target = format!("static:{}", list.join(","));

    // The client: what you would write.
    let mesh = Mesh::builder().standalone().build().await?;
    let mut client = GreeterClient::new(mesh.channel(&target)?);

    let answers = ask(&mut client, 300).await?;
    println!("{target}: {answers:?}");
    if answers.len() != 3 || answers.values().any(|count| *count < 60) {
        return Err(format!("three servers should have about 100 each: {answers:?}").into());
    }

    let (_, server, serving) = servers.remove(0);
    server.shutdown().await;
    serving.await?;
    let answers = ask(&mut client, 300).await?;
    println!("without the first: {answers:?}");
    if answers.len() != 2 || answers.values().any(|count| *count < 100) {
        return Err(format!("two servers should have about 150 each: {answers:?}").into());
    }
    Ok(())
}

/// A server: its address, its mesh, and the task that ends with it.
async fn serve(name: &str) -> Result<(String, Mesh, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mesh = Mesh::builder().standalone().build().await?;
    let serving = mesh.serve(listener, GreeterServer::new(Named(name.to_owned()))).without_signals();
    let serving = tokio::spawn(async move {
        if let Err(error) = serving.await {
            println!("{error}");
        }
    });
    Ok((address, mesh, serving))
}

/// Asks so often and counts the answers by server. Four at a time: balancing looks at what is in flight.
async fn ask(client: &mut GreeterClient<Channel>, times: usize) -> Result<BTreeMap<String, usize>> {
    let mut answers = BTreeMap::new();
    for _ in 0..times / 4 {
        let four = (0..4).map(|_| {
            let mut client = client.clone();
            async move { client.say_hello(Request::new(HelloRequest { name: "world".to_owned() })).await }
        });
        for answer in futures_util::future::try_join_all(four).await? {
            *answers.entry(answer.into_inner().message).or_default() += 1;
        }
    }
    Ok(answers)
}
