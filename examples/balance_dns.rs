//! A client that balances over the addresses of a DNS name and follows the name as it changes: no control plane.
//!
//! `cargo run --features dns --example balance_dns` starts servers and a small name server, and shows that every
//! address gets requests, that a new one is found, that a name server in trouble harms nobody, and that SRV
//! records work. It fails if any of it is not so; `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::dns::DnsResolver;
use mesh::{Channel, Mesh};
use mesh_testkit::{DnsFault, DnsServer};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

#[path = "grpc_greeter/hello.rs"]
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod hello;

use hello::greeter_client::GreeterClient;
use hello::greeter_server::{Greeter, GreeterServer};
use hello::{HelloReply, HelloRequest};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const NAME: &str = "greeter.example.com";
const SRV: &str = "_grpc._tcp.greeter.example.com";
/// A TTL of a second counts as the shortest time between two look-ups, 5 s; twice that is late.
const LATE: Duration = Duration::from_secs(15);

/// Answers with its address.
struct Named(String);

#[tonic::async_trait]
impl Greeter for Named {
    async fn say_hello(&self, _request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(HelloReply { message: self.0.clone(), caller: String::new() }))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let servers = Mesh::builder().standalone().build().await?;
    let port = serve(&servers).await?;
    let dns = DnsServer::start().await;
    dns.set(NAME, &["127.0.0.1", "127.0.0.2"], 1);
    dns.set_services(SRV, &[(0, 0, NAME, port)], 1);

    // The client: what you would write; without `server` it asks whom /etc/resolv.conf names.
    let resolver = DnsResolver::builder().server(dns.address()).build()?;
    let mesh = Mesh::builder().standalone().resolver(Arc::new(resolver)).build().await?;
    let mut client = GreeterClient::new(mesh.channel(&format!("dns:///{NAME}:{port}"))?);

    let answers = ask(&mut client).await?;
    println!("two addresses: {answers:?}");
    expect(&answers, &["127.0.0.1", "127.0.0.2"])?;

    dns.set(NAME, &["127.0.0.2", "127.0.0.3"], 1);
    let changed = Instant::now();
    let wanted = ["127.0.0.2", "127.0.0.3"].map(str::to_owned).into();
    while ask(&mut client).await? != wanted {
        if changed.elapsed() > LATE {
            return Err("the change was not seen".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("one replaced: seen after {:.1} s", changed.elapsed().as_secs_f32());

    dns.break_name(NAME, DnsFault::NotFound);
    let asked = dns.queries();
    dns.wait_for_queries(asked + 2).await;
    expect(&ask(&mut client).await?, &["127.0.0.2", "127.0.0.3"])?;
    println!("no such name any more: the last good addresses stay");

    dns.set(NAME, &["127.0.0.1"], 1);
    let mut client = GreeterClient::new(mesh.channel(&format!("dns:///{SRV}"))?);
    // The name did not exist a moment ago, which is remembered for a second.
    let begun = Instant::now();
    let answers = loop {
        match ask(&mut client).await {
            Ok(answers) => break answers,
            Err(error) if begun.elapsed() > LATE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    println!("dns:///{SRV}: {answers:?}");
    expect(&answers, &["127.0.0.1"])?;
    servers.shutdown().await;
    Ok(())
}

/// Serves at three loopback addresses with one port, which is given.
async fn serve(mesh: &Mesh) -> Result<u16> {
    let mut port = 0;
    for ip in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        let listener = TcpListener::bind((ip, port)).await?;
        port = listener.local_addr()?.port();
        let serving = mesh.serve(listener, GreeterServer::new(Named(ip.to_owned()))).without_signals();
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                println!("{error}");
            }
        });
    }
    Ok(port)
}

/// Who answers a hundred requests.
async fn ask(client: &mut GreeterClient<Channel>) -> Result<BTreeSet<String>> {
    let mut answers = BTreeSet::new();
    for _ in 0..100 {
        let request = Request::new(HelloRequest { name: "world".to_owned() });
        answers.insert(client.say_hello(request).await?.into_inner().message);
    }
    Ok(answers)
}

fn expect(answers: &BTreeSet<String>, wanted: &[&str]) -> Result<()> {
    let same = answers.iter().map(String::as_str).eq(wanted.iter().copied());
    if same { Ok(()) } else { Err(format!("answered by {answers:?}, not by {wanted:?}").into()) }
}
