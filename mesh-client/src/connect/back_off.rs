//! How long an endpoint to which no connection came about is left alone. Requests that want one meanwhile fail at once
//! with what happened, as in gRPC: an endpoint that is away is not dialled for each of them.
//!
//! ```text
//! clear ─ failure ─▶ closed for a time ─▶ one may ask, and closed for a longer one ─▶ ...
//!   ▲                                         └ it connects
//!   └─────────────────────────────────────────┘
//! ```
//!
//! Pure: time and randomness are arguments. gRPC's connection back-off, but for its first and its longest time: here a
//! server that returns has 95 % of its clients back within five seconds.

use std::time::Duration;

use tokio::time::Instant;

use crate::env::Random;
use crate::error::Cause;

/// First time, one fifth more or less.
const FIRST: Duration = Duration::from_millis(500);
/// Longest one, before that fifth.
const LONGEST: Duration = Duration::from_secs(4);
/// Each is so much longer than the one before, in tenths.
const FACTOR: u32 = 16;

/// What is known of the attempts to connect to one endpoint. Nothing while they work.
#[derive(Default)]
pub(super) struct BackOff(Option<Box<Failing>>);

struct Failing {
    last: Cause,
    at: Instant,
    wait: Duration,
    until: Instant,
}

impl BackOff {
    /// Leave to connect now. After a failure one gets it when its time is over, and the others when that one's is.
    ///
    /// # Errors
    /// It is too early: what happened last.
    pub(super) fn leave(&mut self, now: Instant, random: &Random) -> Result<(), Cause> {
        let Some(failing) = &mut self.0 else { return Ok(()) };
        if now < failing.until {
            let (ago, left) = (now.saturating_duration_since(failing.at), failing.until - now);
            return Err(Cause::BackingOff { last: Box::new(failing.last.clone()), ago, left });
        }
        failing.wait = (failing.wait * FACTOR / 10).min(LONGEST);
        failing.until = now + around(failing.wait, random);
        Ok(())
    }

    /// A connection did not come about. Several that were begun together meet the same outage: it counts once.
    pub(super) fn failed(&mut self, last: &Cause, now: Instant, random: &Random) {
        let last = last.clone();
        match &mut self.0 {
            Some(failing) => {
                (failing.last, failing.at) = (last, now);
                if now >= failing.until {
                    failing.until = now + around(failing.wait, random);
                }
            }
            None => {
                let until = now + around(FIRST, random);
                self.0 = Some(Box::new(Failing { last, at: now, wait: FIRST, until }));
            }
        }
    }

    /// A connection came about.
    pub(super) fn worked(&mut self) {
        self.0 = None;
    }
}

/// A fifth more or less, so that the clients of a server that went away do not come back in step.
fn around(wait: Duration, random: &Random) -> Duration {
    let fifth = u64::try_from(wait.as_micros() / 5).unwrap_or(u64::MAX / 2).max(1);
    wait + Duration::from_micros(random(2 * fifth)) - Duration::from_micros(fifth)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn cause() -> Cause {
        let address = mesh_core::policy::Address::Socket(([127, 0, 0, 1], 80).into());
        Cause::ConnectTimeout { address, after: Duration::from_secs(1) }
    }

    #[test]
    fn one_asks_at_a_time_and_less_and_less_often() {
        let middle: Random = Arc::new(|below: u64| below / 2);
        let (begin, mut back_off) = (Instant::now(), BackOff::default());
        assert!(back_off.leave(begin, &middle).is_ok(), "nothing is known");
        back_off.failed(&cause(), begin, &middle);
        back_off.failed(&cause(), begin, &middle);
        let mut asked = Vec::new();
        for millis in 0..12_000 {
            let now = begin + Duration::from_millis(millis);
            if back_off.leave(now, &middle).is_ok() {
                assert!(back_off.leave(now, &middle).is_err(), "one at a time");
                asked.push(millis);
                back_off.failed(&cause(), now, &middle);
            }
        }
        assert_eq!(asked, [500, 1300, 2580, 4628, 7905, 11_905]);
        back_off.worked();
        assert!(back_off.leave(begin, &middle).is_ok());
        let error = {
            back_off.failed(&cause(), begin, &middle);
            back_off.leave(begin + Duration::from_millis(120), &middle).unwrap_err()
        };
        let text = "127.0.0.1:80: no connection within 1s, 120ms ago; the next attempt is due in 380ms";
        assert_eq!((error.to_string().as_str(), error.code()), (text, cause().code()));
    }

    #[test]
    fn an_attempt_that_takes_long_keeps_nobody_away_for_ever() {
        let (low, high): (Random, Random) = (Arc::new(|_: u64| 0), Arc::new(|below: u64| below - 1));
        let (begin, mut back_off) = (Instant::now(), BackOff::default());
        back_off.failed(&cause(), begin, &low);
        let at = |millis| begin + Duration::from_millis(millis);
        assert!(back_off.leave(at(399), &low).is_err() && back_off.leave(at(400), &high).is_ok());
        // 800 ms and a fifth: whoever asked first has not come back.
        assert!(back_off.leave(at(1359), &low).is_err() && back_off.leave(at(1360), &low).is_ok());
    }
}
