//! What is known of one endpoint's load: requests in flight, latency, failures, reports, and whether it
//! may be used. Atomics only; it outlives the sets the endpoint is in, so that an update forgets nothing.

use std::sync::Arc;
use std::time::Duration;

use super::report::EndpointReport;
use super::stamped::{Change, Stamped, decay, millis, since};
use crate::health::Standing;
use crate::policy::WeightedRoundRobin;
use crate::sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// The load of one endpoint.
///
/// The owner tells it what happens (`start`, `succeeded`, `failed`, `late`, `unreachable`); pickers read it.
#[derive(Debug, Default)]
// In this order: what a pick reads lies together.
#[repr(C)]
pub struct Load {
    in_flight: AtomicU32,
    // Milliseconds of the owner's clock, as all times here; 0 = not set.
    avoid_until: AtomicU32,
    // Microseconds.
    latency: Stamped,
    failures: Stamped,
    // Milliseconds for which it is passed over since it was too late.
    late: Stamped,
    // Of the endpoint's own reports (gRFC A58).
    weight: Stamped,
    // As the endpoint reports it (Prequal).
    reported_latency: Stamped,
    // The whole of the milliseconds, for it may be long ago.
    ramp_from: AtomicU64,
    // In ticks: they go round after a year, when weights are left out once more for the blackout period.
    weighted_since: AtomicU32,
    // The last success; 0 = none.
    answered: AtomicU32,
    reported_in_flight: AtomicU16,
    // Our own requests in flight when it was reported.
    own_when_reported: AtomicU16,
    // How often in a row.
    unreachable: AtomicU8,
    standing: AtomicU8,
    // Pick first stays with it.
    chosen: AtomicBool,
    // The last connection that was tried came about, and it was not idle without one since.
    stands: AtomicBool,
}

/// Time over which latency is forgotten (Linkerd `ewma.decay`).
const LATENCY_DECAY: Duration = Duration::from_secs(10);
/// Latency of an endpoint nothing is known of (Linkerd `ewma.default_rtt`), microseconds.
pub(super) const DEFAULT_LATENCY: f32 = 30_000.0;
/// Time over which failures are forgotten: a healed endpoint is back in about that time.
const FAILURE_DECAY: Duration = Duration::from_secs(5);
/// Failures beyond these count no more: they would only lengthen the way back.
const MOST_FAILURES: f32 = 3.0;
/// A score below this is as good as none.
const NO_FAILURES: f32 = 0.05;
/// Longest time for which an endpoint that was late is passed over, milliseconds: who has healed is back in about that
/// time, as after failures.
const LONGEST_LATE: f32 = 5_000.0;
/// What a success leaves of that time. With half of it one that answers every other request got up to fifteen times as many
/// in simulation; with seven eighths two servers may stay in trouble after an overload.
const UNFORGIVEN: f32 = 0.75;
/// Score of failures that an endpoint which was late has at least: idle, it counts as if it had one request in flight. Of two
/// servers at 70 % either can bear what the other does not get for that.
const LATE: f32 = 0.4;
/// To what power our own requests since a report count that raise the number in flight. One is what a line of waiting
/// requests says; but other clients have heard the same and choose likewise, and of them we see none.
const CROWD: i32 = 3;
/// First and longest time for which an endpoint that could not be connected to is passed over.
const COOL_DOWN: (u32, u32) = (500, 30_000);

impl Load {
    /// Counts a request until the answer is dropped.
    #[inline]
    pub fn start(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// Requests in flight now.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A request was answered after `took` and the answer is no failure.
    pub fn succeeded(&self, took: Duration, now: Duration) {
        let (now, took) = (millis(now), micros(took));
        self.latency.update(now, |old| peak(old, took));
        self.answered.store(now.max(1), Ordering::Relaxed);
        self.failures.change(now, |old| match old.map(|_| score(old)) {
            None => Change::Keep,
            Some(score) if score < NO_FAILURES => Change::Clear,
            Some(score) => Change::Renew(score / 2.0),
        });
        // In one step with the look at it: a try that is late at this moment would be forgotten.
        self.late.change(now, |old| match old {
            None => Change::Keep,
            Some((time, _)) if time < 2.0 => Change::Clear,
            Some((time, _)) => Change::Adjust(time * UNFORGIVEN),
        });
    }

    /// A request failed after `took` in a way that is the endpoint's fault. A fast failure does not
    /// count as low latency: that would attract more requests to fail.
    pub fn failed(&self, took: Duration, now: Duration) {
        let (now, took) = (millis(now), micros(took));
        // As if just measured; an endpoint that never answered stays one nothing is known of.
        if took > DEFAULT_LATENCY || self.latency.read(now).is_some() {
            self.latency.update(now, |old| old.map_or(took, |(value, _)| value.max(took)));
        }
        self.blame(now);
    }

    /// An answer whose head was counted with [`succeeded`](Self::succeeded) came to a bad end. When that was says how
    /// long the answer was, and nothing of the endpoint's latency.
    pub fn failed_late(&self, now: Duration) {
        self.blame(millis(now));
    }

    /// No answer came in time, `took` after the request, or one that says no more than that. Who has answered others
    /// meanwhile is as slow as its latency says, and it may have been the request. Who has not is passed over for as long as
    /// it kept us waiting, for most servers go on with what nobody waits for any more, and that takes about as long; twice as
    /// long each time that it is late again. Successes shorten that time.
    ///
    /// That is less than what a failure costs. Who fails looks fast and idle; who is late has looked busy all the time. And it
    /// may have been overload: then the others cannot bear for long what this one does not get. With five seconds for each try
    /// two servers would be late in turn, for ever.
    pub fn late(&self, took: Duration, now: Duration) {
        self.abandoned(took, now);
        if !self.has_answered_within(took, now) {
            self.pass_over(took.as_secs_f32() * 1e3, millis(now));
        }
    }

    /// An answer whose head was counted with [`succeeded`](Self::succeeded) at `head`, late, came to an end for lack of time, `took`
    /// after the request. The same as [`late`](Self::late) unless others were answered since that head: then it has failed.
    pub fn ended_late(&self, took: Duration, head: Duration, now: Duration) {
        let now = millis(now);
        if self.answered.load(Ordering::Relaxed) == millis(head).max(1) {
            self.pass_over(took.as_secs_f32() * 1e3, now);
        } else {
            self.blame(now);
        }
    }

    /// Passes it over for as long as it `took`, in milliseconds.
    fn pass_over(&self, took: f32, now: u32) {
        let begins = self.late.change(now, |old| match old {
            // Several that were under way meet the same trouble: it counts once.
            Some((time, age)) if is_within(time, age) => Change::Keep,
            before => {
                let twice = before.map_or(0.0, |(time, _)| time * 2.0);
                Change::Renew(took.max(twice).min(LONGEST_LATE))
            }
        });
        if begins {
            self.failures.update(now, |old| score(old).max(LATE));
        }
    }

    fn blame(&self, now: u32) {
        self.failures.update(now, |old| (score(old) + 1.0).min(MOST_FAILURES));
    }

    /// A request was given up by the caller after `took`: it would have taken at least that long, and from an endpoint
    /// that never answered as long as from one nothing is known of.
    pub fn abandoned(&self, took: Duration, now: Duration) {
        let (now, took) = (millis(now), micros(took));
        match self.measured(now) {
            None => self.latency.set(took.max(DEFAULT_LATENCY), now),
            Some(known) if took > known => self.latency.set(took, now),
            Some(_) => {}
        }
    }

    /// The latency as it was measured, if it was; see [`latency`](Self::latency).
    pub fn measured_latency(&self, now: Duration) -> Option<Duration> {
        Some(Duration::from_micros(self.measured(millis(now))? as u64))
    }

    /// Peak-sensitive moving average of the latency in microseconds. Unused, it fades, so that an
    /// endpoint once slow is asked again (Linkerd).
    pub fn latency(&self, now: Duration) -> f32 {
        self.measured(millis(now)).unwrap_or(DEFAULT_LATENCY)
    }

    #[inline]
    pub(super) fn measured(&self, now: u32) -> Option<f32> {
        self.latency.read(now).map(|(value, age)| value * decay(age, LATENCY_DECAY))
    }

    /// Factor from 1 (no failure lately) to 16, by which a picker that goes by load makes the load look
    /// larger. An endpoint that fails is fast and idle; without this it would attract everything. One that is passed over
    /// for being late has 16 ([`late_for`](Self::late_for)).
    pub fn failure_penalty(&self, now: Duration) -> f32 {
        self.penalty_at(millis(now))
    }

    #[inline]
    pub(super) fn penalty_at(&self, now: u32) -> f32 {
        let score = if self.is_late(now) { MOST_FAILURES } else { self.failure_score(now) };
        if score < NO_FAILURES { 1.0 } else { (1.0 + score) * (1.0 + score) }
    }

    /// For how long it is still passed over because it was [`late`](Self::late).
    pub fn late_for(&self, now: Duration) -> Option<Duration> {
        let (time, age) = self.late.read(millis(now)).filter(|(time, age)| is_within(*time, *age))?;
        Some(Duration::from_secs_f32((time - age as f32) / 1e3))
    }

    #[inline]
    fn is_late(&self, now: u32) -> bool {
        self.late.read(now).is_some_and(|(time, age)| is_within(time, age))
    }

    #[inline]
    fn failure_score(&self, now: u32) -> f32 {
        score(self.failures.read(now))
    }

    /// Takes over the weight that a report of the endpoint asks for, which came with an answer or on a stream of its own.
    pub fn report(&self, report: &EndpointReport, settings: &WeightedRoundRobin, at: Duration) {
        let now = millis(at);
        if let Some(weight) = report.weight(settings) {
            let expires = settings.weight_expiration.as_millis();
            let fresh = self.weight.read(now).is_some_and(|(_, age)| u128::from(age) < expires);
            if !fresh {
                self.weighted_since.store(ticks(at), Ordering::Relaxed);
            }
            self.weight.set(weight, now);
        }
    }

    /// Its first connection stands since there was none: who answers there may have begun anew, or be another one. The weight
    /// that was reported before is forgotten, and the blackout begins with the next report (gRFC A58).
    pub fn renewed(&self) {
        self.weight.change(0, |_| Change::Clear);
    }

    /// Takes over what the endpoint says for Prequal: how many requests it serves, and how long they take at about that
    /// number. Where it says no latency our own measure stands in, times our requests in flight and the next one, as it
    /// knows nothing of how many others a request met; one that nobody has measured counts as fast, so that it is tried.
    /// `ended` of our requests in flight are not in that number: the one with whose answer it came.
    pub fn report_load(&self, in_flight: u32, latency: Option<Duration>, ended: u32, now: Duration) {
        let (now, own) = (millis(now), self.in_flight().saturating_sub(ended));
        let measured = || self.measured(now).map_or(0.0, |latency| latency * (own as f32 + 1.0));
        self.reported_in_flight.store(small(in_flight), Ordering::Relaxed);
        self.own_when_reported.store(small(own), Ordering::Relaxed);
        self.reported_latency.set(latency.map_or_else(measured, micros), now);
    }

    /// The reported weight, unless it is too old or too new (gRFC A58).
    pub(super) fn reported_weight(&self, settings: &WeightedRoundRobin, now: Duration) -> Option<f32> {
        let (weight, age) = self.weight.read(millis(now))?;
        let known_for = TICK * u64::from(since(ticks(now), self.weighted_since.load(Ordering::Relaxed)));
        let usable = u128::from(age) < settings.weight_expiration.as_millis()
            && u128::from(known_for) >= settings.blackout_period.as_millis();
        usable.then_some(weight)
    }

    /// Requests in flight and latency in microseconds as reported, brought up to now by what became of our own requests
    /// since; the report's age in milliseconds.
    pub(super) fn reported_load(&self, now: u32) -> Option<(u32, f32, u32)> {
        let (latency, age) = self.reported_latency.read(now)?;
        let reported = u32::from(self.reported_in_flight.load(Ordering::Relaxed));
        let before = u32::from(self.own_when_reported.load(Ordering::Relaxed));
        let in_flight = (reported + u32::from(small(self.in_flight()))).saturating_sub(before);
        let growth = (in_flight as f32 + 1.0) / (reported as f32 + 1.0);
        Some((in_flight, latency * growth.powi(CROWD), age))
    }

    /// What health says of the endpoint.
    pub fn standing(&self) -> Standing {
        Standing::from_index(self.standing.load(Ordering::Relaxed))
    }

    /// Puts down what health says. Sets that are built from now on go by it; the owner builds one.
    pub fn set_standing(&self, standing: Standing) {
        self.standing.store(standing.index(), Ordering::Relaxed);
    }

    /// Begins a slow start: the endpoint is new, or healthy again. Sets that are built from now on go by it; the owner
    /// builds one.
    pub fn ramp_from(&self, now: Duration) {
        self.ramp_from.store(whole_millis(now).max(1), Ordering::Relaxed);
    }

    /// When the slow start began, in milliseconds; `None` if there was none.
    pub(super) fn ramps_since(&self) -> Option<u64> {
        Some(self.ramp_from.load(Ordering::Relaxed)).filter(|from| *from != 0)
    }

    /// No connection could be had: the endpoint is away, which means that it is passed over while there are others until a
    /// connection [stands](Self::reached). Another attempt is due after half a second, doubled with every further failure up to half a
    /// minute.
    pub fn unreachable(&self, now: Duration) {
        // Many requests may meet the same outage at once: it counts once.
        if !self.is_unreachable(now) {
            let failures = self.unreachable.load(Ordering::Relaxed).min(16);
            self.unreachable.store(failures + 1, Ordering::Relaxed);
            let wait = COOL_DOWN.0.saturating_mul(1 << failures).min(COOL_DOWN.1);
            self.avoid_until.store(millis(now).wrapping_add(wait).max(1), Ordering::Relaxed);
            self.stands.store(false, Ordering::Relaxed);
        }
    }

    /// Whoever asked for a connection gave up, having waited in vain for as long as it `took`: the endpoint is away, and another attempt
    /// is due at once. Who has answered others meanwhile is there: one further connection that is slow says nothing of it.
    pub fn suspected(&self, took: Duration, now: Duration) {
        // One that is away already stays so.
        if !self.has_answered_within(took, now)
            && self.avoid_until.compare_exchange(0, millis(now).max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.stands.store(false, Ordering::Relaxed);
        }
    }

    /// Whether it has answered a request since `took` ago.
    pub fn has_answered_within(&self, took: Duration, now: Duration) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        answered != 0 && is_within(took.as_secs_f32() * 1e3, since(millis(now), answered))
    }

    /// A connection was had, or an answer over one that was there.
    #[inline]
    pub fn reached(&self) {
        if self.avoid_until.load(Ordering::Relaxed) != 0 {
            self.unreachable.store(0, Ordering::Relaxed);
            self.avoid_until.store(0, Ordering::Relaxed);
        }
        // Asked first: writing would take the line from other processors.
        if !self.stands() {
            self.stands.store(true, Ordering::Relaxed);
        }
    }

    /// It has had no connection for so long that nobody knows whether another one can be had.
    pub fn unconnected(&self) {
        if self.stands() {
            self.stands.store(false, Ordering::Relaxed);
        }
    }

    /// Whether the last connection that was tried came about, and was not left [idle](Self::unconnected) without one since.
    #[inline]
    pub fn stands(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }

    /// Whether it is [away](Self::is_away), and another attempt is not due yet.
    #[inline]
    pub fn is_unreachable(&self, now: Duration) -> bool {
        let until = self.avoid_until.load(Ordering::Relaxed);
        until != 0 && is_to_come(until, millis(now))
    }

    /// Whether connecting failed when that was last tried, however long ago, or took longer than anybody waited.
    #[inline]
    pub fn is_away(&self) -> bool {
        self.avoid_until.load(Ordering::Relaxed) != 0
    }

    /// For how long another attempt at one that is [away](Self::is_away) has been due. `None` = it is not yet, or not away.
    pub fn overdue(&self, now: Duration) -> Option<Duration> {
        let (until, now) = (self.avoid_until.load(Ordering::Relaxed), millis(now));
        (until != 0 && !is_to_come(until, now)).then(|| Duration::from_millis(now.wrapping_sub(until).into()))
    }

    /// Whether pick first stays with this endpoint; see [`choose`](Self::choose).
    pub(super) fn is_chosen(&self) -> bool {
        self.chosen.load(Ordering::Relaxed)
    }

    /// Pick first stays with this endpoint, or no longer.
    pub(super) fn choose(&self, chosen: bool) {
        // Asked first: writing would take the line from other processors.
        if self.is_chosen() != chosen {
            self.chosen.store(chosen, Ordering::Relaxed);
        }
    }
}

/// A higher latency counts at once, a lower one by and by.
fn peak(old: Option<(f32, u32)>, took: f32) -> f32 {
    match old {
        Some((value, age)) if took < value => took + (value - took) * decay(age, LATENCY_DECAY),
        _ => took,
    }
}

#[inline]
fn score(failures: Option<(f32, u32)>) -> f32 {
    failures.map_or(0.0, |(value, age)| value * decay(age, FAILURE_DECAY))
}

#[inline]
fn is_within(time: f32, age: u32) -> bool {
    (age as f32) < time
}

/// Whether the end of a cool-down is to come. No end is farther than that: what is, is one of weeks ago.
#[inline]
fn is_to_come(until: u32, now: u32) -> bool {
    (1..=COOL_DOWN.1).contains(&until.wrapping_sub(now))
}

/// Milliseconds of a tick.
const TICK: u64 = 8;

/// Ticks of the owner's clock, which go round.
fn ticks(time: Duration) -> u32 {
    (whole_millis(time) / TICK) as u32
}

/// Of requests in flight: above 65,535 one number is as good as another.
fn small(requests: u32) -> u16 {
    u16::try_from(requests).unwrap_or(u16::MAX)
}

pub(super) fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> f32 {
    time.as_secs_f32() * 1e6
}

/// One request in flight; keep it until the response body has ended.
#[derive(Debug)]
pub struct InFlight(Arc<Load>);

impl InFlight {
    /// The load it is part of.
    pub fn load(&self) -> &Load {
        &self.0
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
