//! What requests of many clients take at servers where they wait in line: the real pickers, simulated servers that
//! measure themselves with [`ServedLoad`], and a clock that is a number.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use tokio::time::Instant;

use super::*;

/// Requests that one server works on at once, where a scene says nothing else.
const PLACES: usize = 4;
/// What a request takes, on average.
const TIME: Duration = Duration::from_millis(5);
const WARM_UP: Duration = SECOND;

/// What a server says when it is asked for its load.
#[derive(Clone, Copy, PartialEq)]
enum Tells {
    /// What it measures.
    Load,
    /// Nothing: it knows no probes.
    Nothing,
    /// Its requests in flight, and a moving average of its latency whatever the load that requests met.
    Average,
}

/// A load on servers.
#[derive(Clone)]
struct Scene {
    balancer: Balancer,
    tells: Tells,
    /// How many times slower than usual each server is.
    servers: Vec<f64>,
    /// Requests that each works on at once.
    places: Vec<usize>,
    weights: Vec<u32>,
    clients: usize,
    /// To a server, and back again.
    way: Duration,
    /// Of what the servers can do together.
    load: f64,
    time: Duration,
    seed: u64,
}

/// Half of eight servers twice as slow, at 90 % of what all can do together, asked by twenty clients.
fn half_slow(balancer: Balancer) -> Scene {
    let (servers, places, weights) = ([[1.0; 4], [2.0; 4]].concat(), vec![PLACES; 8], vec![1; 8]);
    let (way, time) = (Duration::ZERO, Duration::from_secs(4));
    Scene { balancer, tells: Tells::Load, servers, places, weights, clients: 20, way, load: 0.9, time, seed: 1 }
}

fn prequal() -> Balancer {
    Balancer::Prequal(policy::Prequal::default())
}

/// A number, so that what happens at one time happens in the order in which it was foreseen.
type Foreseen = Reverse<(Duration, u64, Event)>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Asked,
    Came { request: usize },
    Done { request: usize },
    Answered { request: usize },
    Probed { client: usize, server: usize },
    Told { client: usize, server: usize, in_flight: u32, latency: Option<Duration> },
}

struct Request {
    server: usize,
    sent: Duration,
    came: Duration,
    work: Duration,
    // At the client and at the server.
    held: Option<InFlight>,
    serving: Option<Serving>,
}

struct Server {
    slower: f64,
    places: usize,
    busy: usize,
    waiting: VecDeque<usize>,
    load: Arc<ServedLoad>,
    average: f64,
}

/// One run of a scene.
struct Run {
    scene: Scene,
    epoch: Instant,
    now: Duration,
    random: fastrand::Rng,
    agenda: BinaryHeap<Foreseen>,
    foreseen: u64,
    servers: Vec<Server>,
    clients: Vec<ReadySet<()>>,
    requests: Vec<Request>,
    took: Vec<Duration>,
}

impl Scene {
    /// Latency below which 99 % of the answers stay, milliseconds.
    fn p99(&self) -> f64 {
        let mut took = Run::new(self.clone()).all().took;
        took.sort_unstable();
        took[took.len() * 99 / 100].as_secs_f64() * 1000.0
    }

    /// The same with another balancer, to this one.
    fn p99_to(&self, balancer: Balancer) -> f64 {
        self.p99() / Self { balancer, ..self.clone() }.p99()
    }

    /// Share of the requests that the second half of the servers got.
    fn share_of_second_half(&self) -> f64 {
        let run = Run::new(self.clone()).all();
        let (mut second, mut all) = (0, 0);
        for request in run.requests.iter().filter(|request| request.sent >= WARM_UP) {
            all += 1;
            second += u32::from(request.server >= run.servers.len() / 2);
        }
        f64::from(second) / f64::from(all)
    }
}

impl Run {
    fn new(scene: Scene) -> Self {
        let epoch = Instant::now();
        let load = || Arc::new(ServedLoad::new(epoch));
        let server = |(slower, places): (&f64, &usize)| {
            let (slower, places, waiting) = (*slower, *places, VecDeque::new());
            Server { slower, places, busy: 0, waiting, load: load(), average: 0.005 }
        };
        let list: Vec<_> = (1..).zip(&scene.weights).map(|(port, weight)| (port, *weight, Health::Healthy)).collect();
        let all = endpoints(vec![group(0, 1, &list)]);
        let cluster =
            Arc::new(policy::Cluster { balancer: scene.balancer.clone(), ..policy::Cluster::new("c".into()) });
        let client = |seed: usize| {
            let draw = &mut seeded(seed as u64);
            ReadySet::build(all.clone(), cluster.clone(), None, Duration::ZERO, draw, |_| ((), None))
        };
        Self {
            epoch,
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(scene.seed),
            agenda: BinaryHeap::new(),
            foreseen: 0,
            servers: scene.servers.iter().zip(&scene.places).map(server).collect(),
            clients: (0..scene.clients).map(client).collect(),
            requests: Vec::new(),
            took: Vec::new(),
            scene,
        }
    }

    /// The run to its end.
    fn all(mut self) -> Self {
        self.foresee(Duration::ZERO, Event::Asked);
        while let Some(Reverse((now, _, event))) = self.agenda.pop() {
            self.now = now;
            match event {
                Event::Asked if now < self.scene.time => self.ask(),
                Event::Asked => {}
                Event::Came { request } => self.come(request),
                Event::Done { request } => self.done(request),
                Event::Answered { request } => self.answered(request),
                Event::Probed { client, server } => self.probed(client, server),
                Event::Told { client, server, in_flight, latency } => self.told(client, server, in_flight, latency),
            }
        }
        self
    }

    fn foresee(&mut self, after: Duration, event: Event) {
        self.foreseen += 1;
        self.agenda.push(Reverse((self.now + after, self.foreseen, event)));
    }

    /// Exponential, as between unrelated requests.
    fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.random.f64()).ln())
    }

    /// A client sends a request, and probes after it.
    fn ask(&mut self) {
        let rate = |server: &Server| server.places as f64 / TIME.as_secs_f64() / server.slower;
        let rate = self.servers.iter().map(rate).sum::<f64>();
        let next = self.exponential(Duration::from_secs_f64(1.0 / (rate * self.scene.load)));
        self.foresee(next, Event::Asked);
        let (now, work) = (self.now, self.exponential(TIME));
        let client = self.random.usize(..self.clients.len());
        let (set, pick) = (&self.clients[client], Pick { now, ..Pick::default() });
        let (server, _) = set.pick(&pick, &mut |below| self.random.u64(..below)).unwrap();
        let held = Some(set.candidates()[server].load_or_new().start());
        let work = work.mul_f64(self.servers[server].slower);
        self.requests.push(Request { server, sent: now, came: now, work, held, serving: None });
        self.foresee(self.scene.way, Event::Came { request: self.requests.len() - 1 });
        if let Balancer::Prequal(settings) = &self.scene.balancer {
            for _ in 0..settings.probes_per_request / 1_000_000 {
                let server = self.clients[client].probe_target(&mut |below| self.random.u64(..below)).unwrap();
                self.foresee(self.scene.way, Event::Probed { client, server });
            }
        }
    }

    fn come(&mut self, request: usize) {
        let now = self.epoch + self.now;
        let own = &mut self.requests[request];
        let server = &mut self.servers[own.server];
        (own.came, own.serving) = (self.now, Some(server.load.begin(now)));
        if server.busy < server.places {
            server.busy += 1;
            self.foresee(self.requests[request].work, Event::Done { request });
        } else {
            server.waiting.push_back(request);
        }
    }

    fn done(&mut self, request: usize) {
        let own = &mut self.requests[request];
        let server = &mut self.servers[own.server];
        server.average = server.average * 0.9375 + (self.now - own.came).as_secs_f64() * 0.0625;
        if let Some(serving) = own.serving.take() {
            serving.answered(self.epoch + self.now);
        }
        self.foresee(self.scene.way, Event::Answered { request });
        let server = &mut self.servers[self.requests[request].server];
        match server.waiting.pop_front() {
            Some(request) => self.foresee(self.requests[request].work, Event::Done { request }),
            None => server.busy -= 1,
        }
    }

    fn answered(&mut self, request: usize) {
        let own = &mut self.requests[request];
        let took = self.now - own.sent;
        if let Some(held) = own.held.take() {
            held.load().succeeded(took, self.now);
        }
        if own.sent >= WARM_UP {
            self.took.push(took);
        }
    }

    fn probed(&mut self, client: usize, server: usize) {
        let own = &self.servers[server];
        let said = own.load.report(0, self.epoch + self.now);
        let latency = match self.scene.tells {
            Tells::Average => Some(Duration::from_secs_f64(own.average)),
            Tells::Load | Tells::Nothing => said.latency,
        };
        let in_flight = said.in_flight.unwrap();
        self.foresee(self.scene.way, Event::Told { client, server, in_flight, latency });
    }

    fn told(&mut self, client: usize, server: usize, in_flight: u32, latency: Option<Duration>) {
        let set = &self.clients[client];
        let load = set.candidates()[server].load_or_new();
        match self.scene.tells {
            Tells::Nothing => load.report_load(load.in_flight(), None, 0, self.now),
            Tells::Load | Tells::Average => load.report_load(in_flight, latency, 0, self.now),
        }
        set.reported(server, self.now);
    }
}

/// The paper's gain: whom others load is known by asking only. Control: where the latency says nothing of the load it
/// was met at, and does not fade, the lowest one is that of long ago, and everybody runs after it.
#[test]
fn prequal_finds_the_faster_half_and_does_not_run_after_it() {
    let near = half_slow(prequal());
    let far = Scene { way: Duration::from_millis(2), ..near.clone() };
    for (scene, what) in [(&near, "near"), (&far, "far")] {
        let ratio = scene.p99_to(Balancer::least_request());
        assert!(ratio < 0.75, "{what}: p99 {ratio:.2} of least request's");
    }
    let misled = Scene { tells: Tells::Average, ..near }.p99_to(Balancer::least_request());
    assert!(misled > 1.5, "p99 {misled:.2} of least request's");
}

#[test]
fn prequal_goes_by_its_own_measure_of_servers_that_know_no_probes() {
    let half = Scene { tells: Tells::Nothing, ..half_slow(prequal()) };
    let ratio = half.p99_to(Balancer::least_request());
    assert!(ratio < 0.75, "half of them slow: p99 {ratio:.2} of least request's");
    let mut one = half;
    one.servers = [vec![10.0], vec![1.0; 7]].concat();
    let ratio = one.p99_to(Balancer::least_request());
    assert!(ratio < 0.3, "one of them ten times as slow: p99 {ratio:.2} of least request's");
}

#[test]
fn prequal_keeps_away_from_one_slow_server_that_no_client_knows_much_of() {
    let mut scene = Scene { clients: 200, ..half_slow(prequal()) };
    scene.servers = [vec![10.0], vec![1.0; 7]].concat();
    let ratio = scene.p99_to(Balancer::least_request());
    assert!(ratio < 0.2, "p99 {ratio:.2} of least request's");
}

/// Eight servers, of which the second half works on three times as many requests at once.
fn half_large(weights: [u32; 2], load: f64) -> Scene {
    let places = [[4; 4], [12; 4]].concat();
    let weights = weights.map(|weight| [weight; 4]).concat();
    let (servers, way, time) = (vec![1.0; 8], Duration::from_millis(2), Duration::from_secs(2));
    Scene { servers, places, weights, way, time, load, ..half_slow(prequal()) }
}

/// Control: servers with as much to spare are as fast, so that without weights the large ones get about half.
#[test]
fn prequal_goes_by_weight_where_servers_are_as_fast() {
    for load in [0.3, 0.6] {
        let share = half_large([1, 3], load).share_of_second_half();
        assert!((0.70..=0.80).contains(&share), "weights 1 to 3 at {load} of what they can do: {share:.2}");
    }
    let share = half_large([1, 1], 0.3).share_of_second_half();
    assert!(share < 0.65, "equal weights: {share:.2}");
}
