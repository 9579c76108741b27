//! A server of the kind that gRPC's interop cases play with, for HTTP/1.1 and gRPC on one port: it says its name, and
//! does as the header `rpc-behavior` of a request asks. A process of its own, which is told over its standard input. No
//! part of the mesh takes part.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::grpc;
use crate::world::{PATIENCE, eventually};

/// Serves until dropped, which kills it (SIGKILL).
pub(crate) struct Actor {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    line: Mutex<Line>,
}

/// To the process and back.
struct Line {
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

/// What a process is told at its start: name and place.
const TOLD: &str = "PSM_ACTOR";
/// What its words begin with; the test runner has others on the same line.
const SAYS: &str = "the actor says ";

#[derive(Default)]
struct Role {
    /// Answers 503, or UNAVAILABLE.
    failing: AtomicBool,
    /// Requests that are kept open.
    kept: AtomicUsize,
    release: Notify,
    /// Tries of each request that heals, by its id.
    tries: parking_lot::Mutex<HashMap<String, u32>>,
}

impl Actor {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::start_at(name, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// The same at a place where one was before.
    pub(crate) async fn start_at(name: &'static str, place: SocketAddr) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "actor::an_actor_of_its_own", "--nocapture"])
            .env(TOLD, format!("{name} {place}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = Line { orders: process.stdin.take().unwrap(), said, _process: process };
        let address = line.hear().await.parse().unwrap();
        Self { name, address, line: Mutex::new(line) }
    }

    /// Fails every request from now on, or no more.
    pub(crate) async fn fail(&self, failing: bool) {
        self.tell(if failing { "fail" } else { "heal" }).await;
    }

    /// Requests kept open now.
    pub(crate) async fn kept(&self) -> usize {
        self.tell("count").await.parse().unwrap()
    }

    /// Answers those that are kept open.
    pub(crate) async fn release(&self) {
        self.tell("release").await;
    }

    /// Gives an order, and returns what it says when it has obeyed.
    async fn tell(&self, order: &str) -> String {
        let mut line = self.line.lock().await;
        line.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        line.hear().await
    }
}

impl Line {
    async fn hear(&mut self) -> String {
        let word = async {
            loop {
                let line = self.said.next_line().await.unwrap().expect("it is there");
                if let Some((_, word)) = line.split_once(SAYS) {
                    return word.to_owned();
                }
            }
        };
        tokio::time::timeout(PATIENCE, word).await.expect("it answers")
    }
}

/// What an [`Actor`]'s process runs, until it is killed or whoever began it has gone. By itself it has nothing to do.
#[tokio::test]
async fn an_actor_of_its_own() {
    let Ok(told) = std::env::var(TOLD) else { return };
    let (name, place) = told.split_once(' ').unwrap();
    let place: SocketAddr = place.parse().unwrap();
    let listener = eventually("the port is free", async || TcpListener::bind(place).await.ok()).await;
    println!("{SAYS}{}", listener.local_addr().unwrap());
    let (role, mut tasks) = (Arc::<Role>::default(), JoinSet::new());
    tasks.spawn(accept(listener, name.to_owned().leak(), role.clone()));
    let mut orders = BufReader::new(stdin()).lines();
    while let Ok(Some(order)) = orders.next_line().await {
        match &*order {
            "fail" => role.failing.store(true, Relaxed),
            "heal" => role.failing.store(false, Relaxed),
            "release" => role.release.notify_waiters(),
            _ => {}
        }
        println!("{SAYS}{}", role.kept.load(Relaxed));
    }
}

async fn accept(listener: TcpListener, name: &'static str, role: Arc<Role>) {
    // Owned by this task, so that connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let role = role.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| role.clone().answer(name, request));
            // A client that goes away is none of the server's business.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

struct Kept<'r>(&'r AtomicUsize);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Role {
    async fn answer(self: Arc<Self>, name: &'static str, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let grpc = header("content-type").is_some_and(|of| of.starts_with("application/grpc"));
        let (behavior, id) = (header("rpc-behavior").unwrap_or_default(), header("x-id").unwrap_or_default());
        let _ = request.into_body().collect().await;
        if behavior == "keep-open" {
            self.kept.fetch_add(1, Relaxed);
            let _kept = Kept(&self.kept);
            self.release.notified().await;
        }
        let heals_at = behavior.strip_prefix("succeed-on-retry-attempt-").map(|number| number.parse().unwrap());
        let ill = heals_at.is_some_and(|heals_at: u32| {
            let mut tries = self.tries.lock();
            let retries = tries.entry(id).or_default();
            *retries += 1;
            *retries - 1 < heals_at
        });
        Ok(match (ill || self.failing.load(Relaxed), grpc) {
            (false, true) => grpc::answer(name).map(BodyExt::boxed_unsync),
            (false, false) => Response::new(Full::from(name).boxed_unsync()),
            (true, true) => {
                let mut response = Response::new(Empty::new().boxed_unsync());
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
                response
            }
            (true, false) => {
                let mut response = Response::new(Empty::new().boxed_unsync());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            }
        })
    }
}
