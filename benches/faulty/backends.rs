//! Simulated servers: each answers so many requests at once and lets the others wait in line. They speak HTTP/1.1
//! over pipes in memory, so that the client's whole way of a request is in the run, and time is the paused clock's:
//! a run is as long as its requests take to compute, and the same every time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh::parts::mesh_client::Io;
use mesh::parts::mesh_core::balance::ServedLoad;
use mesh::parts::mesh_core::orca;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Requests that one server works on at once.
const PLACES: usize = 4;
/// What a request takes, on average.
pub(crate) const TIME: Duration = Duration::from_millis(5);
/// Requests in a second that keep one server busy all the time.
pub(crate) const CAPACITY: f64 = PLACES as f64 / 0.005;

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Health {
    Well,
    /// So many times slower.
    Slow(f64),
    /// From this time of the run on it fails, at once.
    Failing(Duration),
    /// Ten times slower up to this time of the run.
    Healed(Duration),
    /// This share of its requests takes 400 ms.
    Stalling(f64),
}

/// One server.
pub(crate) struct Backend {
    health: Health,
    places: Semaphore,
    random: Mutex<fastrand::Rng>,
    begun: Instant,
    seen: AtomicU64,
    // For those who ask how busy it is, as a server of this mesh measures it.
    load: Arc<ServedLoad>,
}

impl Backend {
    fn new(health: Health, seed: u64) -> Self {
        let (places, random) = (Semaphore::new(PLACES), Mutex::new(fastrand::Rng::with_seed(seed)));
        let begun = Instant::now();
        let load = Arc::new(ServedLoad::new(begun));
        Self { health, places, random, begun, seen: AtomicU64::new(0), load }
    }

    /// Works on one request. `false` = it failed.
    pub(crate) async fn work(&self) -> bool {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let (drawn, stalls) = {
            let mut random = self.random.lock();
            (random.f64(), random.f64())
        };
        // Exponential, as between unrelated requests.
        let mut time = TIME.mul_f64(-(1.0 - drawn).ln());
        let mut serving = self.load.begin(Instant::now());
        match self.health {
            Health::Failing(from) if self.begun.elapsed() >= from => {
                serving.failed(Instant::now());
                return false;
            }
            Health::Slow(times) => time = time.mul_f64(times),
            Health::Stalling(share) if stalls < share => time = Duration::from_millis(400),
            Health::Healed(at) if self.begun.elapsed() < at => time = time.mul_f64(10.0),
            Health::Well | Health::Failing(_) | Health::Healed(_) | Health::Stalling(_) => {}
        }
        {
            let _place = self.places.acquire().await;
            sleep(time).await;
        }
        serving.answered(Instant::now());
        true
    }
}

/// All servers of a run.
#[derive(Clone)]
pub(crate) struct Fleet {
    backends: Arc<[Backend]>,
    // Connections end with the fleet.
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Fleet {
    pub(crate) fn new(health: &[Health]) -> Self {
        let backends = health.iter().zip(1..).map(|(health, seed)| Backend::new(*health, seed)).collect();
        Self { backends, connections: Arc::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.backends.len()
    }

    pub(crate) fn backend(&self, index: usize) -> &Backend {
        &self.backends[index]
    }

    /// The servers' addresses.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.len()).map(|index| SocketAddr::from(([10, 0, 0, index as u8], 80))).collect()
    }

    /// Requests that reached each server.
    pub(crate) fn seen(&self) -> Vec<u64> {
        self.backends.iter().map(|backend| backend.seen.load(Ordering::Relaxed)).collect()
    }

    /// A connection to the server of that address.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<Box<dyn Io>> {
        let index = self.addresses().iter().position(|of| *of == address);
        let index = index.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let fleet = Self { backends: self.backends.clone(), connections: Arc::default() };
        let service = service_fn(move |request: Request<Incoming>| {
            let fleet = fleet.clone();
            async move {
                let (backend, mut answer) = (fleet.backend(index), Response::new(Empty::<Bytes>::new()));
                if request.uri().path() == orca::PROBE_PATH {
                    answer.headers_mut().insert(&orca::BINARY, orca::value(&backend.load.report(0, Instant::now())));
                } else if !backend.work().await {
                    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok::<_, Infallible>(answer)
            }
        });
        self.connections.lock().spawn(async move {
            // A client that goes away is no news.
            drop(http1::Builder::new().serve_connection(TokioIo::new(theirs), service).await);
        });
        Ok(Box::new(ours))
    }
}
