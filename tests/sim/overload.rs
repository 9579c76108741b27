//! Overload that must not outlive its cause (R01), and the herd that returns to a server that was away (R04).

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use mesh_client::Client;
use mesh_core::context::RETRIED;
use mesh_core::policy::{Balancer, PerMillionRatio, RetryBudget};
use mesh_server::Server;
use mesh_testkit::{FixedSource, clock};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

use crate::brief::one_of;
use crate::fleet::{Door, Fleet, Handler, Manner, Wire};
use crate::load::{self, Policy, TARGET, client, client_from, either, goodput, run};
use crate::{Verdict, each_seed, ensure, fails_for_some_seed, holds_for_each_seed};

fn budget() -> RetryBudget {
    RetryBudget { retry_ratio: PerMillionRatio(200_000), min_retries_per_second: 0, ttl: Duration::from_secs(10) }
}

const BEFORE: Duration = Duration::from_secs(3);
/// In which all must be well again.
const RECOVERY: Duration = Duration::from_secs(10);
const AFTER: Duration = Duration::from_secs(5);

/// How large a storm is. What is asked of the servers is 70 % of what they can do, 50 ms a request.
#[derive(Clone, Copy)]
struct Scale {
    servers: usize,
    places: usize,
    per_try: Duration,
    trouble: Duration,
    even: bool,
    /// Who waits so long is answered 504.
    patience: Option<Duration>,
    /// Requests in hand of a server, beyond which it refuses: 0.8 s of work, or more.
    most: usize,
}

impl Scale {
    /// Soon over.
    const SMALL: Self = Self {
        servers: 3,
        places: 2,
        per_try: Duration::from_millis(500),
        trouble: Duration::from_secs(10),
        even: false,
        patience: None,
        most: 40,
    };
    /// As R01 has it.
    const WHOLE: Self = Self {
        servers: 20,
        places: 1,
        per_try: Duration::from_millis(200),
        trouble: Duration::from_secs(30),
        even: true,
        patience: None,
        most: 16,
    };

    fn rate(self) -> f64 {
        (self.servers * self.places) as f64 * 20.0 * 0.7
    }
}

/// What came of a time in which servers could do 40 % of what they can: the share of good answers before it and
/// after the time for recovery, and the most requests that servers saw for each that was asked, in any ten seconds.
struct Storm {
    before: f64,
    after: f64,
    amplification: f64,
}

async fn storm(scale: Scale, budget: Option<RetryBudget>, balancer: Balancer) -> Storm {
    let Scale { servers, places, per_try, trouble: lasts, even, patience, most } = scale;
    let manner = Manner { time: Duration::from_millis(50), even, patience, most, ..Manner::default() };
    let fleet = Fleet::new(servers, places, &manner);
    let mut policy = Policy::default().retrying(2, Some(per_try));
    policy.budget = budget;
    policy.cluster.balancer = balancer;
    let (client, _source) = client(&fleet, &policy);
    let slower = |times: u32| fleet.iter().for_each(|server| server.change(|m| m.time = manner.time * times / 2));
    let mut seen = Vec::new();
    let trouble = async {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        for second in 0..(BEFORE + lasts + RECOVERY + AFTER).as_secs() {
            seconds.tick().await;
            seen.push(fleet.seen().iter().sum::<u64>());
            match Duration::from_secs(second) {
                BEFORE => slower(5),
                at if at == BEFORE + lasts => slower(2),
                _ => {}
            }
        }
    };
    let (records, ()) = tokio::join!(run(&client, scale.rate(), BEFORE + lasts + RECOVERY + AFTER), trouble);
    let amplification = (10..seen.len()).map(|end| {
        let within = Duration::from_secs(end as u64 - 10)..Duration::from_secs(end as u64);
        let asked = records.iter().filter(|record| within.contains(&record.at)).count();
        (seen[end] - seen[end - 10]) as f64 / asked as f64
    });
    let end = BEFORE + lasts + RECOVERY;
    Storm {
        before: goodput(&records, Duration::ZERO, BEFORE),
        after: goodput(&records, end, end + AFTER),
        amplification: amplification.fold(0.0, f64::max),
    }
}

async fn ends_with_its_cause(scale: Scale, balancer: Balancer) {
    let storm = storm(scale, Some(budget()), balancer).await;
    assert!(storm.before > 0.97, "{}", storm.before);
    assert!(storm.after >= 0.99, "{:.1} % answered ten seconds later", storm.after * 100.0);
    assert!(storm.amplification <= 1.25, "{} tries for a request", storm.amplification);
}

#[test]
fn a_storm_of_retries_ends_with_its_cause_r01() {
    each_seed(1, || ends_with_its_cause(Scale::WHOLE, Balancer::least_request()));
    each_seed(4, || ends_with_its_cause(Scale::SMALL, Balancer::least_request()));
}

/// Of two servers either is needed: a picker that goes by load may not keep to one of them because the other was too slow,
/// whether that one says so or says nothing.
#[test]
fn a_storm_of_two_servers_ends_whoever_is_passed_over_r01() {
    let silent = Scale { servers: 2, places: 1, even: true, most: 16, ..Scale::SMALL };
    let telling = Scale { patience: Some(Duration::from_millis(400)), ..silent };
    for balancer in [Balancer::least_request(), Balancer::PeakEwma] {
        each_seed(10, || ends_with_its_cause(silent, balancer.clone()));
        each_seed(10, || ends_with_its_cause(telling, balancer.clone()));
    }
}

/// Control run: what the servers can do is enough again, and they do nothing but what nobody waits for any more.
#[test]
fn without_a_budget_a_storm_outlives_its_cause_r01() {
    each_seed(1, || async {
        // Of the large one a third of the time will do: it does not end.
        let whole = Scale { trouble: Duration::from_secs(10), ..Scale::WHOLE };
        for scale in [Scale::SMALL, whole] {
            let storm = storm(scale, None, Balancer::least_request()).await;
            assert!(storm.before > 0.97, "{}", storm.before);
            assert!(storm.after < 0.5, "{:.1} % answered ten seconds later", storm.after * 100.0);
            assert!(storm.amplification > 1.8, "{} tries for a request", storm.amplification);
        }
    });
}

/// Requests that come as evenly as 70 % of what servers can do, each a little early or late.
struct Even {
    client: Client,
    random: fastrand::Rng,
    /// Whether those that were asked were answered well, in the order in which they came. False: not yet, too.
    asked: Arc<Mutex<Vec<bool>>>,
}

/// Requests in a second.
const RATE: usize = 14;

impl Even {
    async fn ask(&mut self, times: usize) {
        for _ in 0..times {
            let (client, asked, early) = (self.client.clone(), self.asked.clone(), self.random.u64(..20));
            clock::pass(Duration::from_millis(early)).await;
            asked.lock().push(false);
            let number = self.all() - 1;
            tokio::spawn(async move {
                let well = load::get(&client).await.is_ok_and(|answer| answer.status() == 200);
                asked.lock()[number] = well;
            });
            clock::pass(Duration::from_millis(71 - early)).await;
        }
    }

    fn all(&self) -> usize {
        self.asked.lock().len()
    }

    /// What share of those that were asked from one to another is answered well by now.
    fn goodput(&self, of: Range<usize>) -> f64 {
        let all = of.len() as f64;
        self.asked.lock()[of].iter().filter(|well| **well).count() as f64 / all
    }

    /// The load goes on until 95 % of what was asked in three seconds is answered a second later; gives what was at last.
    /// Those three seconds begin within ten from now.
    async fn recover(&mut self) -> f64 {
        let over = self.all();
        self.ask(4 * RATE).await;
        loop {
            let begin = self.all() - 4 * RATE;
            let goodput = self.goodput(begin..begin + 3 * RATE);
            if goodput >= 0.95 || begin >= over + 10 * RATE {
                return goodput;
            }
            self.ask(1).await;
        }
    }
}

/// What is to be drawn for a short storm.
#[derive(Clone)]
struct Brewing {
    balancer: Balancer,
    budget: Option<RetryBudget>,
    servers: usize,
    /// Who waits so long is answered 504, and so long is the time of a try; in times of a request.
    patience: Option<f64>,
    per_try: f64,
}

/// What came of it: tries for a request, and the share of what was asked that was answered well in the end.
struct Blown {
    what: String,
    tries: f64,
    later: f64,
}

impl Blown {
    fn ends(&self) -> Verdict {
        ensure(self.later >= 0.95, || format!("{:.0} % answered ten seconds later: {}", self.later * 100.0, self.what))
    }
}

/// Servers that can do twenty requests in a second together, and for a second or so can do 40 % of them, or refuse all.
async fn short_storm(brewing: Brewing) -> Result<Blown, String> {
    let Brewing { balancer, budget, servers, patience, per_try } = brewing;
    let (mut policy, wire) = either(fastrand::bool());
    let time = Duration::from_millis(50) * servers as u32;
    let what = format!("{servers} servers, {balancer:?}, {wire:?}, patience: {patience:?} of {per_try}");
    policy.cluster.balancer = balancer;
    let patience = patience.map(|times| time.mul_f64(times));
    let manner = Manner { time, even: true, most: 5, patience, ..Manner::default() };
    let fleet = Fleet::of(servers, 1, &manner, wire, None);
    let policy = Policy { budget, ..policy.retrying(fastrand::u32(1..=2), Some(time.mul_f64(per_try))) };
    let (client, _source) = client(&fleet, &policy);
    let mut load = Even { client, random: fastrand::Rng::with_seed(fastrand::u64(..)), asked: Arc::default() };
    load.ask(RATE).await;
    ensure(load.goodput(0..4) == 1.0, || format!("not well before: {what}"))?;
    let refuses = fastrand::usize(..3) == 0;
    fleet.iter().for_each(|server| server.change(|m| (m.time, m.most) = (time * 5 / 2, if refuses { 0 } else { 5 })));
    load.ask(fastrand::usize(8..=12)).await;
    fleet.iter().for_each(|server| server.change(|m| (m.time, m.most) = (time, 5)));
    let later = load.recover().await;
    let tries = fleet.seen().iter().sum::<u64>() as f64 / load.all() as f64;
    Ok(Blown { what: format!("{what}, refuses: {refuses}, {tries:.2} tries for a request"), tries, later })
}

fn pickers() -> [Balancer; 3] {
    [Balancer::RoundRobin, Balancer::least_request(), Balancer::PeakEwma]
}

/// One to four servers, which say nothing to who waits too long, or that it did. They see a quarter more tries than requests at
/// most, and when it is over all is well within ten seconds.
#[test]
fn whatever_its_cause_a_storm_ends_with_it_r01() {
    holds_for_each_seed(|| async {
        let (balancer, servers) = (one_of(&pickers()), fastrand::usize(1..=4));
        let patience = fastrand::bool().then(|| 2.75 + fastrand::f64() / 4.0);
        let brewing = Brewing { balancer, budget: Some(budget()), servers, patience, per_try: 3.0 };
        let blown = short_storm(brewing).await?;
        ensure(blown.tries <= 1.25, || blown.what.clone())?;
        blown.ends()
    });
}

/// Control run: tries of which nothing comes are enough for it to go on, whoever picks.
#[test]
fn whatever_its_cause_without_a_budget_a_storm_goes_on_r01() {
    for balancer in pickers() {
        fails_for_some_seed(|| async {
            let (balancer, servers) = (balancer.clone(), fastrand::usize(1..=4));
            let brewing = Brewing { balancer, budget: None, servers, patience: None, per_try: 3.0 };
            short_storm(brewing).await?.ends()
        });
    }
}

/// Control run: two servers that say early on that it is too late count as failing. Who goes by load passes them over in turn
/// for longer than the other can bear, and who does not is well.
#[test]
fn whatever_its_cause_where_who_was_late_has_failed_a_storm_goes_on_r01() {
    let early = |balancer: &Balancer| {
        let (balancer, budget) = (balancer.clone(), Some(budget()));
        let brewing = Brewing { balancer, budget, servers: 2, patience: Some(2.0), per_try: 6.0 };
        async { short_storm(brewing).await?.ends() }
    };
    each_seed(20, || async { early(&Balancer::RoundRobin).await.unwrap() });
    for balancer in [Balancer::least_request(), Balancer::PeakEwma] {
        fails_for_some_seed(|| early(&balancer));
    }
}

/// A tier that answers by asking the next one. Whether a request is a retry, and an answer one after retries, is
/// `marked` or not.
fn middle(next: Client, marked: bool) -> Handler {
    let inner = tower::service_fn(move |_: Request<Incoming>| {
        let next = next.clone();
        async move {
            let status = load::get(&next).await.map_or(StatusCode::BAD_GATEWAY, |answer| answer.status());
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    let service = Server::builder().build().inbound_layer().layer(inner);
    Arc::new(move |mut request| {
        if !marked {
            request.headers_mut().remove(&RETRIED);
        }
        let service = service.clone();
        async move {
            let mut response = service.oneshot(request).await.unwrap();
            if !marked {
                response.headers_mut().remove(&RETRIED);
            }
            response.map(|body| body.map_err(|error| -> Infallible { panic!("{error}") }).boxed_unsync())
        }
        .boxed()
    })
}

/// Three tiers of so many servers each, of which the last fails; and who asks the first.
fn chain(servers: [usize; 3], wire: Wire, policy: &Policy, marked: bool) -> (Fleet, Client) {
    let leaf = Fleet::of(servers[2], 4, &Manner { failing: 1.0, ..Manner::default() }, wire, None);
    let mut fleet = leaf.clone();
    for servers in [servers[1], servers[0]] {
        let (next, _source) = client(&fleet, policy);
        fleet = Fleet::with(servers, wire, middle(next, marked));
    }
    (leaf, client(&fleet, policy).0)
}

/// Requests at the last of three tiers for each that the first is asked.
async fn leaf_load(marked: bool, budget: Option<RetryBudget>) -> f64 {
    let policy = Policy { budget, ..Policy::default().retrying(2, None) };
    let (leaf, first) = chain([2; 3], Wire::Http1, &policy, marked);
    let records = run(&first, 50.0, Duration::from_secs(6)).await;
    assert!(records.iter().all(|record| record.outcome.is_err()));
    leaf.seen().iter().sum::<u64>() as f64 / records.len() as f64
}

/// Three requests to three tiers. With the mark those of the last caller are the only tries but the first.
async fn short_chain(marked: bool) -> Verdict {
    let (policy, wire) = either(fastrand::bool());
    let attempts = fastrand::u32(1..=2);
    let servers = [(); 3].map(|()| fastrand::usize(1..=2));
    let (leaf, first) = chain(servers, wire, &policy.retrying(attempts, None), marked);
    for _ in 0..3 {
        let answer = load::get(&first).await.map_err(|error| error.to_string())?;
        ensure(answer.status() == 503, || format!("{}, and the last tier fails", answer.status()))?;
    }
    let seen = leaf.seen().iter().sum::<u64>();
    ensure(seen == 3 * (1 + u64::from(attempts)), || format!("{seen} for three requests, of {attempts} retries each"))
}

#[test]
fn whatever_the_chain_its_tries_do_not_multiply_r01() {
    holds_for_each_seed(|| short_chain(true));
}

/// Control run.
#[test]
fn whatever_the_chain_without_the_mark_tries_multiply_r01() {
    fails_for_some_seed(|| short_chain(false));
}

#[test]
fn tries_of_a_chain_add_up_and_do_not_multiply_r01() {
    each_seed(1, || async {
        let (both, mark) = (leaf_load(true, Some(budget())).await, leaf_load(true, None).await);
        let (budget, neither) = (leaf_load(false, Some(budget())).await, leaf_load(false, None).await);
        println!("{both:.2} with mark and budgets, {mark:.2} with the mark, {budget:.2} with budgets, {neither:.2}");
        // The last caller's, and nobody's further up: a fifth more, or two more.
        assert!(both <= 1.25, "{both}");
        assert!(mark <= 3.1, "{mark}");
        // Control: each caller's, and they multiply.
        assert!((1.6..=1.75).contains(&budget), "{budget}");
        assert!(neither > 20.0, "{neither}");
    });
}

const HERD: usize = 1000;
const AWAY: Duration = Duration::from_secs(5);

/// What a server sees of its clients, each of which asks ten times a second, when it is gone for five.
struct Return {
    /// Attempts while it was away, for each client.
    in_vain: f64,
    /// When 95 % of the clients were back.
    back: Duration,
    /// Connections made in the fullest tenth of a second.
    peak: u64,
}

async fn herd(in_step: bool) -> Return {
    let manner = Manner { time: Duration::from_millis(1), ..Manner::default() };
    let fleet = Fleet::of(1, 64, &manner, Wire::Http2(100), None);
    let server = fleet.server(0).clone();
    let source = FixedSource::of(TARGET, Policy::http2().snapshot(fleet.endpoints()));
    let alike = |fleet: Fleet| {
        let builder = Client::builder(source.clone()).random(|below| below / 2);
        builder.connector(move |address| fleet.connect(&address)).build()
    };
    let one = |_| if in_step { alike(fleet.clone()) } else { client_from(&fleet, &source) };
    let clients: Vec<_> = (0..HERD).map(one).collect();
    let asking = clients.iter().map(|client| async move {
        let phase = if in_step { 0 } else { fastrand::u64(..100) };
        clock::pass(Duration::from_millis(phase)).await;
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        loop {
            pace.tick().await;
            let _ = load::get(client).await;
        }
    });
    let outage = async {
        // Between requests: what is cut off in the middle of one is not sent again, and would fall out of step.
        clock::pass(Duration::from_millis(2_550)).await;
        assert_eq!(server.open(), HERD, "each has its one connection");
        server.change(|manner| manner.door = Door::Shut);
        server.cut();
        let before = server.connects();
        clock::pass(AWAY).await;
        let in_vain = (server.connects() - before) as f64 / HERD as f64;
        server.change(|manner| manner.door = Door::Open);
        let (back, mut peak) = (Instant::now(), 0);
        while server.open() < HERD * 95 / 100 {
            let before = server.connects();
            clock::pass(Duration::from_millis(100)).await;
            peak = peak.max(server.connects() - before);
        }
        Return { in_vain, back: back.elapsed(), peak }
    };
    tokio::select! {
        _ = futures_util::future::join_all(asking) => unreachable!("they ask for ever"),
        back = outage => back,
    }
}

#[test]
fn a_herd_returns_to_a_restarted_server_spread_out_and_asks_seldom_while_it_is_away_r04() {
    each_seed(1, || async {
        let Return { in_vain, back, peak } = herd(false).await;
        println!("{in_vain:.2} attempts in vain for a client, 95 % back after {back:?}, {peak} in the fullest 100 ms");
        // Of fifty requests each.
        assert!(in_vain <= 5.5, "{in_vain}");
        assert!(back <= Duration::from_secs(5), "{back:?}");
        assert!(peak <= HERD as u64 / 5, "{peak} at once");
    });
}

/// Control run: requests that all come at the same moment, of clients that wait equally long, bring their connections
/// with them.
#[test]
fn a_herd_in_step_comes_all_at_once_r04() {
    each_seed(1, || async {
        let Return { peak, .. } = herd(true).await;
        assert!(peak >= HERD as u64 * 9 / 10, "{peak} at once");
    });
}

/// The waits between the attempts of one client to connect to a server that is away for so long, while it is asked four
/// times a second, and how long after its return it is served again.
async fn waits_of_one(away: Duration) -> (Vec<Duration>, Duration) {
    let fleet = Fleet::of(1, 64, &Manner::default(), Wire::Http2(100), None);
    let source = FixedSource::of(TARGET, Policy::http2().snapshot(fleet.endpoints()));
    let client = client_from(&fleet, &source);
    let server = fleet.server(0).clone();
    load::get(&client).await.unwrap();
    server.change(|manner| manner.door = Door::Shut);
    server.cut();
    let (left, mut attempts) = (Instant::now(), Vec::new());
    while left.elapsed() < away {
        let before = server.connects();
        assert!(load::get(&client).await.is_err());
        attempts.extend((server.connects() > before).then(Instant::now));
        clock::pass(PACE).await;
    }
    server.change(|manner| manner.door = Door::Open);
    let back = Instant::now();
    while load::get(&client).await.is_err() {
        clock::pass(PACE).await;
    }
    (attempts.windows(2).map(|two| two[1] - two[0]).collect(), back.elapsed())
}

const PACE: Duration = Duration::from_millis(250);

#[test]
fn who_connects_in_vain_waits_longer_each_time_up_to_a_bound_r04() {
    each_seed(1000, || async {
        let (waits, back) = waits_of_one(Duration::from_secs(12)).await;
        // Half a second, and each time 1.6 times as long up to four seconds; a fifth more or less, and then somebody asks.
        let (mut next, slack) = (Duration::from_millis(500), PACE + Duration::from_millis(1));
        for wait in &waits {
            assert!(
                (next.mul_f64(0.8)..=next.mul_f64(1.2) + slack).contains(wait),
                "{wait:?}, not {next:?}: {waits:?}"
            );
            next = next.mul_f64(1.6).min(Duration::from_secs(4));
        }
        assert!((4..=8).contains(&waits.len()), "{waits:?}");
        assert!(back <= Duration::from_secs(5), "{back:?}");
    });
}
