//! A control plane that pushes a thousand times a second (R41): the reader never runs ahead of applying, what is
//! published is the newest, memory is flat, and who does not read our answers is not read either, until it dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use mesh_client::Client;
use mesh_core::policy::{Address, DestinationState, Endpoint};
use mesh_core::source::{DestinationSource, Watched};
use mesh_discovery::codec;
use mesh_discovery::xds::{AdsStream, Body, RawResource, Response, StreamError, Transport, Variant, XdsClient};
use mesh_testkit::clock;
use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::fleet::{Fleet, Manner};
use crate::load::{TARGET, failures, quantile, run};
use crate::plane::{
    BOTH, Plane, Wire, client, client_over, cluster_named, destination, endpoints_at, endpoints_of, goes_to, ports,
    route_to,
};
use crate::seeded;

/// Between two pushes.
const PACE: Duration = Duration::from_millis(1);
/// R41 says five minutes; what would grow, grows with every push.
const STORM: Duration = Duration::from_secs(10);
/// What a consumer takes for a change. One that takes longer than the pace of the pushes gets the newest, not all.
const REBUILD: Duration = Duration::from_millis(51);
/// Requests a second of those who call meanwhile.
const CALLS: f64 = 100.0;

type Responses = BoxStream<'static, Result<Response, StreamError>>;

/// The port of the endpoint that is pushed with this revision.
fn port_of(revision: u64) -> u16 {
    1000 + (revision % 50_000) as u16
}

fn push(plane: &Plane) {
    plane.put(endpoints_of("x", port_of(plane.revision() + 1)));
}

/// A wire with a look at every response: when the next is asked for, what the last said must be published.
#[derive(Clone)]
struct Inspected {
    plane: Plane,
    /// Reads ahead, as a client without flow control would.
    eager: bool,
    inspector: Inspector,
}

#[derive(Clone, Default)]
struct Inspector {
    published: Arc<Mutex<Option<Watched<DestinationState>>>>,
    /// Port of the endpoint that was handed over last.
    handed: Arc<Mutex<Option<u16>>>,
    pushes: Arc<AtomicUsize>,
    /// How often more was asked for than applied.
    ahead: Arc<AtomicUsize>,
}

impl Inspector {
    fn asked(&self) {
        let (published, handed) = (self.published.lock(), *self.handed.lock());
        let (Some(published), Some(handed)) = (published.as_ref(), handed) else { return };
        if !matches!(&**published.load(), DestinationState::Ready(s) if ports(s) == [handed]) {
            self.ahead.fetch_add(1, Relaxed);
        }
    }

    fn handed_over(&self, response: &Response) {
        if response.type_url == codec::ENDPOINTS {
            self.pushes.fetch_add(1, Relaxed);
            let revision = response.resources[0].version.parse().unwrap();
            *self.handed.lock() = Some(port_of(revision));
        }
    }
}

impl Transport for Inspected {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let (opening, eager) = (Wire(self.plane.clone()).open(variant), self.eager);
        let inspector = self.inspector.clone();
        Box::pin(async move {
            let AdsStream { requests, responses } = opening.await?;
            let next = |(inspector, mut responses): (Inspector, Responses)| async move {
                inspector.asked();
                let response = responses.next().await?;
                if let Ok(response) = &response {
                    inspector.handed_over(response);
                }
                Some((response, (inspector, responses)))
            };
            let responses = stream::unfold((inspector, responses), next).boxed();
            Ok(AdsStream { requests, responses: if eager { ahead_of(responses) } else { responses } })
        })
    }
}

/// The same stream, read as fast as it comes.
fn ahead_of(mut responses: Responses) -> Responses {
    let (queue, queued) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(response) = responses.next().await {
            if queue.send(response).is_err() {
                return;
            }
        }
    });
    stream::unfold(queued, |mut queued| async { Some((queued.recv().await?, queued)) }).boxed()
}

struct Storm {
    plane: Plane,
    inspector: Inspector,
    _client: XdsClient,
    state: Watched<DestinationState>,
}

impl Storm {
    async fn new(variant: Variant, eager: bool) -> Self {
        seeded();
        let plane = Plane::with("x", port_of(4));
        let inspector = Inspector::default();
        let client = client_over(Inspected { plane: plane.clone(), eager, inspector: inspector.clone() }, variant);
        let mut state = client.destination(&"a:80".parse().unwrap());
        goes_to(&mut state, port_of(4)).await;
        *inspector.published.lock() = Some(state.clone());
        Self { plane, inspector, _client: client, state }
    }

    /// Pushes for a while, with a consumer that takes its time; gives how often that was woken.
    async fn rage(&self, time: Duration) -> usize {
        let (plane, mut state, end) = (self.plane.clone(), self.state.clone(), Instant::now() + time);
        let consumer = async {
            let mut wakes = 0;
            while tokio::time::timeout_at(end, state.changed()).await.is_ok() {
                wakes += 1;
                let newest = port_of(plane.revision());
                assert!(matches!(&**state.load(), DestinationState::Ready(s) if ports(s) == [newest]), "the newest");
                clock::pass(REBUILD).await;
            }
            wakes
        };
        let pusher = async {
            let mut pace = tokio::time::interval(PACE);
            while Instant::now() < end {
                pace.tick().await;
                push(&self.plane);
            }
        };
        // What was pushed at an earlier moment is looked at before the next push.
        tokio::join!(biased; consumer, pusher).0
    }
}

#[test]
fn a_storm_of_pushes_is_applied_one_by_one_in_flat_memory_r41() {
    for variant in BOTH {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let storm = runtime.block_on(Storm::new(variant, false));
        // Buffers grow to their size.
        runtime.block_on(storm.rage(Duration::from_secs(2)));
        let pushes = storm.inspector.pushes.load(Relaxed);
        let mut wakes = 0;
        let memory = allocation_counter::measure(|| wakes = runtime.block_on(storm.rage(STORM)));
        let pushes = storm.inspector.pushes.load(Relaxed) - pushes;
        println!("{variant:?}: {pushes} pushes, {wakes} wake-ups, {} bytes more", memory.bytes_current);
        assert!(pushes as u128 >= STORM.as_millis() * 99 / 100, "every push came: {pushes}");
        assert_eq!(storm.inspector.ahead.load(Relaxed), 0, "read before the last was applied");
        // Each time it looked at what it had: the newest.
        assert!(wakes as u128 >= STORM.as_millis() / REBUILD.as_millis() / 2, "it was woken {wakes} times");
        assert!(memory.bytes_current < 16 * 1024, "{} bytes more", memory.bytes_current);
    }
}

/// Control run: a client that reads as fast as it can runs ahead, and is noticed.
#[tokio::test(start_paused = true)]
async fn reading_ahead_of_applying_is_noticed_r41() {
    for variant in BOTH {
        let storm = Storm::new(variant, true).await;
        storm.rage(Duration::from_secs(1)).await;
        assert!(storm.inspector.ahead.load(Relaxed) > 0);
    }
}

/// What callers feel of a storm.
struct Felt {
    /// 99th percentile of their requests without it and with it.
    p99: [Duration; 2],
    failures: Vec<String>,
    /// Connections to each of those that stay where they are.
    connects: Vec<u64>,
}

/// Calls four servers through quiet and through a storm. Each push has another address for the first, which perhaps `dies`
/// where it was with what it has in hand.
async fn felt(variant: Variant, dies: bool) -> Felt {
    seeded();
    let manner = Manner { time: Duration::from_millis(20), even: true, ..Manner::default() };
    let fleet = Fleet::new(4, 8, &manner);
    let listed = |alias: usize| {
        let mut all = fleet.endpoints();
        all[0] = Endpoint::new(Address::Socket(fleet.address(0, alias)));
        endpoints_at("x", all)
    };
    let plane = Plane::new();
    plane.put_all([destination(TARGET, "r"), route_to("r", "x"), cluster_named("x"), listed(0)]);
    let (source, way) = (Arc::new(client(variant, &[&plane])), fleet.clone());
    let caller = Client::builder(source).connector(move |address| way.connect(&address)).build();
    let quiet = run(&caller, CALLS, STORM).await;
    let end = Instant::now() + STORM;
    let push = async {
        let mut pace = tokio::time::interval(PACE);
        for alias in 1.. {
            pace.tick().await;
            if Instant::now() >= end {
                break;
            }
            plane.put(listed(alias % 1000));
            if dies {
                fleet.server(0).cut();
            }
        }
    };
    let (storm, ()) = tokio::join!(run(&caller, CALLS, STORM), push);
    let failures = failures(&quiet).into_iter().chain(failures(&storm)).map(str::to_owned).collect();
    let p99 = [quantile(&quiet, 0.99), quantile(&storm, 0.99)];
    Felt { p99, failures, connects: fleet.iter().skip(1).map(|server| server.connects()).collect() }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_pushes_costs_callers_no_request_and_no_time_r41() {
    for variant in BOTH {
        let Felt { p99: [quiet, storm], failures, connects } = felt(variant, false).await;
        println!("{variant:?}: {quiet:?} in quiet, {storm:?} in the storm, {connects:?} connections");
        assert_eq!(failures, [""; 0]);
        assert!(storm.as_secs_f64() <= quiet.as_secs_f64() * 1.1, "{quiet:?} in quiet, {storm:?} in the storm");
        // As many as there are requests at once, whatever is pushed.
        assert!(connects.iter().all(|connects| *connects <= 8), "{connects:?}");
    }
}

/// Control run: where the endpoint that is pushed away takes its requests with it, the storm is felt.
#[tokio::test(start_paused = true)]
async fn a_storm_whose_endpoints_die_costs_callers_requests_r41() {
    for variant in BOTH {
        assert!(!felt(variant, true).await.failures.is_empty());
    }
}

/// A control plane that sends a thousand responses as fast as they are taken, and perhaps `reads` what it gets.
#[derive(Clone)]
struct Talker {
    reads: bool,
    /// When a stream breaks; none = never.
    dies: Option<Duration>,
    sent: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
}

impl Talker {
    fn new(reads: bool, dies: Option<Duration>) -> Self {
        Self { reads, dies, sent: Arc::default(), opened: Arc::default() }
    }
}

const TALK: usize = 1000;

impl Transport for Talker {
    fn open(&mut self, _: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let (requests, mut received) = mpsc::channel(1);
        let (reads, dies, sent) = (self.reads, self.dies, self.sent.clone());
        self.opened.fetch_add(1, Relaxed);
        let (started, begun) = tokio::sync::oneshot::channel();
        let death = async move {
            match dies {
                Some(after) => tokio::time::sleep_until(Instant::now() + after).await,
                None => std::future::pending().await,
            }
        };
        let (died, broken) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            received.recv().await;
            let _ = started.send(());
            let read = async {
                while reads && received.recv().await.is_some() {}
                // Held, not closed: the client's answers find nobody.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = read => {}
                () = death => {}
            }
            let _ = died.send(());
        });
        let talk = move |number: usize| {
            sent.fetch_add(1, Relaxed);
            let ((type_url, name), bytes) = destination("a:80", &format!("r{}", number % 2));
            let body = Some(Body::new(&type_url, bytes));
            let resources = vec![RawResource { name, version: number.to_string(), ttl: None, body }];
            Ok(Response { type_url, nonce: number.to_string(), resources, ..Default::default() })
        };
        let end = stream::once(broken).map(|_| Err(StreamError::new("it went away")));
        let responses = stream::once(begun).flat_map(|_| stream::iter(0..TALK)).map(talk).chain(end);
        Box::pin(async move { Ok(AdsStream { requests, responses: responses.boxed() }) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_does_not_read_its_answers_is_not_read_either_r41() {
    for (reads, fits) in [(false, 1..300), (true, TALK..TALK + 1)] {
        let talker = Talker::new(reads, None);
        let client = client_over(talker.clone(), Variant::Delta);
        let _state = client.destination(&"a:80".parse().unwrap());
        clock::pass(Duration::from_secs(1)).await;
        let sent = talker.sent.load(Relaxed);
        assert!(fits.contains(&sent), "{sent} of {TALK} responses were read");
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_dies_while_it_is_not_read_is_noticed_and_asked_anew_r41() {
    // The control: one that is read all the time.
    for reads in [false, true] {
        let talker = Talker::new(reads, Some(Duration::from_secs(1)));
        let client = client_over(talker.clone(), Variant::Delta);
        let _state = client.destination(&"a:80".parse().unwrap());
        for _ in 0..100 {
            clock::pass(Duration::from_secs(1)).await;
        }
        let opened = talker.opened.load(Relaxed);
        assert!(opened > 10, "{opened} streams, read {reads}: {:?}", client.status());
    }
}
