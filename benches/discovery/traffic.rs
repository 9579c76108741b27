//! What requests feel: their latency while configuration changes, and how soon a change reaches them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh::Client;
use mesh_discovery::xds::Variant;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinSet;

use crate::load::{self, Worker, Workers};
use crate::median;
use crate::plane::{Book, MOVES, Size, World, address};
use crate::rows::Row;
use crate::runtime::ServerThread;
use crate::{Error, Scale, control};

/// Changes a second.
const CHURN: u64 = 500;

/// 99th percentile of requests while endpoints change, against that of the same requests in quiet.
pub(crate) fn latency(runtime: &Runtime, scale: &Scale) -> Result<Row, Error> {
    let (server, control) = (ServerThread::start()?, ServerThread::start()?);
    for edition in 0..MOVES {
        serve(server.handle(), bind(address(0, 0, edition))?, "");
    }
    for endpoint in 1..10 {
        serve(server.handle(), bind(address(0, endpoint, 0))?, "");
    }

    let size = Size { clusters: scale.clusters, endpoints: 10 };
    let book = Book::of(Variant::Delta, size)?;
    let world = runtime.block_on(control.handle().spawn(World::load(Variant::Delta, size, book)))??;
    let client = Client::builder(world.client.clone())
        .max_destinations(scale.clusters)
        .runtime(control.handle().clone())
        .build();
    let churn = Arc::<Churn>::default();
    control.handle().spawn(churn.clone().run(world));

    // The 99th percentile of half a second is that of few requests.
    let pairs = 3 * scale.pairs;
    let ratios = runtime.block_on(async {
        let mut workers: Workers = (0..16).map(|_| Box::new(Http1(client.clone())) as Box<dyn Worker>).collect();
        let time = Duration::from_secs_f64(scale.seconds);
        load::run(&mut workers, time).await?;
        let mut ratios = Vec::new();
        for pair in 0..pairs {
            let mut p99 = [0.0; 2];
            // In turn: quiet first, changes first.
            for at in [pair % 2, 1 - pair % 2] {
                churn.on.store(at == 1, Ordering::Relaxed);
                p99[at] = load::run(&mut workers, time).await?.p99;
            }
            ratios.push(p99[1] / p99[0]);
        }
        Ok::<_, Error>(ratios)
    })?;
    let (done, wanted) = (churn.done.load(Ordering::Relaxed), CHURN as f64 * scale.seconds * pairs as f64);
    // A short run on a busy machine may fall behind; it measures nothing anyway.
    let least = if scale.pairs > 1 { 0.8 * wanted } else { 1.0 };
    if (done as f64) < least {
        return Err(format!("the configuration changed {done} times instead of {wanted}").into());
    }
    Ok(Row::new("p99_under_500_changes_a_second", "ratio", median(ratios), 1.2))
}

/// Changes while it is on.
#[derive(Default)]
struct Churn {
    on: AtomicBool,
    done: AtomicUsize,
}

impl Churn {
    /// Changes one endpoint after the other; each tenth is of the destination that is in use.
    async fn run(self: Arc<Self>, mut world: World) -> Result<(), Error> {
        let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 / CHURN));
        loop {
            pace.tick().await;
            if self.on.load(Ordering::Relaxed) {
                let i = self.done.fetch_add(1, Ordering::Relaxed);
                let n = if i.is_multiple_of(10) { 0 } else { i * 7919 % world.clusters() };
                let bytes = world.change(n)?;
                world.push([bytes]).await?;
            }
        }
    }
}

/// Milliseconds from a change at the control plane to the first answer that shows it, over loopback.
pub(crate) fn effect(runtime: &Runtime, scale: &Scale) -> Result<Vec<Row>, Error> {
    let (server, plane) = (ServerThread::start()?, ServerThread::start()?);
    let mut backends = Vec::new();
    for answer in ["even", "odd"] {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        backends.push((answer, control::registration(0, listener.local_addr()?, "")));
        serve(server.handle(), listener, answer);
    }
    let (plane, _state) = runtime.block_on(control::start(plane.handle()))?;
    plane.hold(vec![backends[1].1.clone()]);
    runtime.block_on(async {
        let xds = Arc::new(control::client(&plane, Variant::Delta)?);
        let client = Client::builder(xds).build();
        while !matches!(get(&client, &control::url(0)).await, Ok(answer) if answer == "odd") {
            // A failure may come without a wait: what would end it has its turn.
            tokio::task::yield_now().await;
        }
        let mut times = Vec::new();
        at_rest().await;
        for i in 0..scale.pushes {
            let ((answer, new), (_, old)) = (&backends[i % 2], &backends[1 - i % 2]);
            let pushed = Instant::now();
            plane.hold(vec![new.clone()]);
            while get(&client, &control::url(0)).await? != *answer {}
            times.push(pushed.elapsed().as_secs_f64() * 1e3);
            plane.let_go(std::slice::from_ref(old));
            // The next measurement begins when the old one is out of use.
            let mut in_a_row = 0;
            while in_a_row < 20 {
                in_a_row = if get(&client, &control::url(0)).await? == *answer { in_a_row + 1 } else { 0 };
            }
            at_rest().await;
        }
        times.sort_by(f64::total_cmp);
        // The smallest that 99 of 100 do not exceed.
        let worst = times[(times.len() * 99).div_ceil(100) - 1];
        Ok(vec![
            Row::new("push_to_effect_median", "ms", median(times), 2.0),
            Row::new("push_to_effect_p99", "ms", worst, 10.0),
        ])
    })
}

/// Waits until the control plane is at rest: it gathers changes that follow a revision within 10 ms, and those beyond 16
/// a second.
async fn at_rest() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

async fn get(client: &Client, url: &str) -> Result<Bytes, Error> {
    let response = client.send(Request::get(url).body(Full::<Bytes>::default())?).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

struct Http1(Client);

impl Worker for Http1 {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let request = Request::post("http://s0:80/").body(Full::new(body))?;
            self.0.send(request).await?.into_body().collect().await?;
            Ok(())
        })
    }
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers every request of HTTP/1.1 with this text, until the runtime ends.
fn serve(on: &Handle, listener: std::net::TcpListener, answer: &'static str) {
    on.spawn(accept(listener, answer));
}

async fn accept(listener: std::net::TcpListener, answer: &'static str) -> Result<(), Error> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let respond = move |request: Request<hyper::body::Incoming>| async move {
            // A body that cannot be read is the client's affair.
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(answer.as_bytes()))))
        };
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond)));
    }
}
