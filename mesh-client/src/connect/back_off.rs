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

use mesh_core::policy::Address;
use tokio::time::Instant;

use super::tls::is_awaited;
use crate::env::Random;
use crate::error::{Cause, PeerMismatch, Source};

/// First time, one fifth more or less, in milliseconds like all times here.
const FIRST: u32 = 500;
/// Longest one, before that fifth.
const LONGEST: u32 = 4_000;
/// Each is so much longer than the one before, in tenths.
const FACTOR: u32 = 16;

/// What is known of the attempts to connect to one endpoint. Nothing while they work.
#[derive(Default)]
pub(super) struct BackOff(Option<Box<Failing>>);

// A server's whole fleet may be away, so this is kept small.
struct Failing {
    last: Unreached,
    at: Instant,
    // For how long since then nobody may ask.
    closed: u32,
    wait: u32,
}

/// Why there is no connection. The address is the endpoint's.
enum Unreached {
    Failed(Source),
    Late(Duration),
    Tls(Source),
    Stranger(Box<PeerMismatch>),
    // Ours: it is told as such, and left alone like the others, for a look at files is no cheaper than a dial; but never for longer
    // than the first time.
    Setup(Source),
}

impl BackOff {
    /// Leave to connect to `address` now. After a failure one gets it when its time is over, and the others when that
    /// one's is.
    ///
    /// # Errors
    /// It is too early: what happened last.
    pub(super) fn leave(&mut self, address: &Address, now: Instant, random: &Random) -> Result<(), Cause> {
        let Some(failing) = &mut self.0 else { return Ok(()) };
        let ago = now.saturating_duration_since(failing.at);
        let left = Duration::from_millis(failing.closed.into()).saturating_sub(ago);
        if !left.is_zero() {
            return Err(Cause::BackingOff { last: Box::new(failing.last.at(address)), ago, left });
        }
        failing.wait = match failing.last {
            // What is missing here may be there at any moment, and a look at files burdens nobody else.
            Unreached::Setup(_) => FIRST,
            _ => (failing.wait * FACTOR / 10).min(LONGEST),
        };
        failing.closed = millis(ago).saturating_add(around(failing.wait, random));
        Ok(())
    }

    /// A connection did not come about. Several that were begun together meet the same outage: it counts once. What is
    /// policy's doing is no failure. What cannot be set up here is none of the endpoint's, and has its time all the same.
    pub(super) fn failed(&mut self, cause: &Cause, now: Instant, random: &Random) {
        let Some(last) = Unreached::of(cause) else { return };
        match &mut self.0 {
            Some(failing) => {
                let since = millis(now.saturating_duration_since(failing.at));
                let left = failing.closed.saturating_sub(since);
                failing.closed = match (&last, left) {
                    (_, 0) => around(failing.wait, random),
                    (Unreached::Setup(_), _) => left.min(around(FIRST, random)),
                    _ => left,
                };
                (failing.last, failing.at) = (last, now);
            }
            None => self.0 = Some(Box::new(Failing { last, at: now, closed: around(FIRST, random), wait: FIRST })),
        }
    }

    /// A connection came about.
    pub(super) fn worked(&mut self) {
        self.0 = None;
    }
}

impl Unreached {
    fn of(cause: &Cause) -> Option<Self> {
        Some(match cause {
            Cause::ConnectFailed { source, .. } => Self::Failed(source.clone()),
            Cause::ConnectTimeout { after, .. } => Self::Late(*after),
            Cause::TlsHandshake { source, .. } => Self::Tls(source.clone()),
            Cause::WrongPeerIdentity { refused, .. } => Self::Stranger(Box::new(refused.clone())),
            Cause::TlsSetup { source, .. } if !is_awaited(source) => Self::Setup(source.clone()),
            _ => return None,
        })
    }

    fn at(&self, address: &Address) -> Cause {
        let address = address.clone();
        match self {
            Self::Failed(source) => Cause::ConnectFailed { address, source: source.clone() },
            Self::Late(after) => Cause::ConnectTimeout { address, after: *after },
            Self::Tls(source) => Cause::TlsHandshake { address, source: source.clone() },
            Self::Setup(source) => Cause::TlsSetup { address, source: source.clone() },
            Self::Stranger(refused) => Cause::WrongPeerIdentity { address, refused: PeerMismatch::clone(refused) },
        }
    }
}

/// A fifth more or less, so that the clients of a server that went away do not come back in step.
fn around(wait: u32, random: &Random) -> u32 {
    let fifth = wait / 5;
    wait - fifth + random(2 * u64::from(fifth)) as u32
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn address() -> Address {
        Address::Socket(([127, 0, 0, 1], 80).into())
    }

    fn cause() -> Cause {
        Cause::ConnectTimeout { address: address(), after: Duration::from_secs(1) }
    }

    #[test]
    fn one_asks_at_a_time_and_less_and_less_often() {
        let middle: Random = Arc::new(|below: u64| below / 2);
        let (begin, mut back_off) = (Instant::now(), BackOff::default());
        assert!(back_off.leave(&address(), begin, &middle).is_ok(), "nothing is known");
        back_off.failed(&cause(), begin, &middle);
        back_off.failed(&cause(), begin, &middle);
        let mut asked = Vec::new();
        for millis in 0..12_000 {
            let now = begin + Duration::from_millis(millis);
            if back_off.leave(&address(), now, &middle).is_ok() {
                assert!(back_off.leave(&address(), now, &middle).is_err(), "one at a time");
                asked.push(millis);
                back_off.failed(&cause(), now, &middle);
            }
        }
        assert_eq!(asked, [500, 1300, 2580, 4628, 7904, 11_904]);
        back_off.worked();
        assert!(back_off.leave(&address(), begin, &middle).is_ok());
        let error = {
            back_off.failed(&cause(), begin, &middle);
            back_off.leave(&address(), begin + Duration::from_millis(120), &middle).unwrap_err()
        };
        let text = "127.0.0.1:80: no connection within 1s, 120ms ago; the next attempt is due in 380ms";
        assert_eq!((error.to_string().as_str(), error.code()), (text, cause().code()));
    }

    #[test]
    fn what_is_missing_here_is_looked_for_as_often_as_at_first() {
        let middle: Random = Arc::new(|below: u64| below / 2);
        let missing = || Cause::TlsSetup { address: address(), source: Arc::new(std::io::Error::other("no file")) };
        let (begin, mut back_off) = (Instant::now(), BackOff::default());
        back_off.failed(&missing(), begin, &middle);
        let mut looked = Vec::new();
        for millis in 0..3_100 {
            let now = begin + Duration::from_millis(millis);
            if back_off.leave(&address(), now, &middle).is_ok() {
                looked.push(millis);
                back_off.failed(&missing(), now, &middle);
            }
        }
        assert_eq!(looked, [500, 1000, 1500, 2000, 2500, 3000]);
        // However long it was away before.
        let late = Cause::ConnectTimeout { address: address(), after: Duration::from_secs(1) };
        let (mut back_off, mut now) = (BackOff::default(), begin);
        back_off.failed(&late, now, &middle);
        for _ in 0..8 {
            now += Duration::from_secs(10);
            back_off.leave(&address(), now, &middle).unwrap();
            back_off.failed(&late, now, &middle);
        }
        for wait in [Duration::from_secs(10), Duration::from_millis(501), Duration::from_millis(501)] {
            now += wait;
            back_off.leave(&address(), now, &middle).unwrap();
            back_off.failed(&missing(), now, &middle);
        }
    }

    #[test]
    fn an_attempt_that_takes_long_keeps_nobody_away_for_ever() {
        let (low, high): (Random, Random) = (Arc::new(|_: u64| 0), Arc::new(|below: u64| below - 1));
        let (begin, mut back_off) = (Instant::now(), BackOff::default());
        back_off.failed(&cause(), begin, &low);
        let at = |millis| begin + Duration::from_millis(millis);
        assert!(
            back_off.leave(&address(), at(399), &low).is_err() && back_off.leave(&address(), at(400), &high).is_ok()
        );
        // 800 ms and a fifth: whoever asked first has not come back.
        assert!(
            back_off.leave(&address(), at(1358), &low).is_err() && back_off.leave(&address(), at(1359), &low).is_ok()
        );
    }
}
