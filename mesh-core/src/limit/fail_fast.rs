//! [`FailFast`]: whether it is worth while to wait (Linkerd's fail-fast).

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// Knows whether a wait has been in vain while nobody found what it was for.
///
/// ```text
/// ready ──a wait is over, and nobody found it meanwhile──▶ failing
///   ▲                                                        │ one a period may wait
///   └────────────────────── somebody finds it ◀──────────────┘
/// ```
///
/// Times are those since its owner began.
#[derive(Debug)]
pub struct FailFast {
    patience: u64,
    // One word, so that who finds it and who gives up at that moment are one after the other: when it was found last,
    // or with `FAILING` when one may wait again. Milliseconds.
    state: AtomicU64,
}

const FAILING: u64 = 1 << 63;

impl FailFast {
    /// `patience` is the longest wait, and the period of those who look whether it is worth while again.
    pub fn new(patience: Duration) -> Self {
        Self { patience: millis(patience).max(1), state: AtomicU64::new(0) }
    }

    /// Whether one may wait: any, or while it fails one now and then.
    pub fn may_wait(&self, now: Duration) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        if state & FAILING == 0 {
            return true;
        }
        millis(now) >= state & !FAILING && self.fails(state, now)
    }

    /// Somebody found it.
    pub fn found(&self, now: Duration) {
        let now = millis(now);
        // Nearly everybody does: what is known already is not written again.
        if self.state.load(Ordering::Relaxed) != now {
            // In one step with what it replaces, whatever another has just written.
            self.state.swap(now, Ordering::Relaxed);
        }
    }

    /// A wait is over, and was in vain.
    pub fn missed(&self, now: Duration) {
        let state = self.state.load(Ordering::Relaxed);
        if state & FAILING != 0 || state + self.patience <= millis(now) {
            // Unless somebody has found it since.
            self.fails(state, now);
        }
    }

    fn fails(&self, state: u64, now: Duration) -> bool {
        let next = FAILING | millis(now).saturating_add(self.patience);
        self.state.compare_exchange(state, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Far below [`FAILING`], also when two are added.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(u64::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn it_fails_when_nobody_found_it_for_the_time_of_a_wait_and_lets_one_look_now_and_then() {
        let fast = FailFast::new(ms(100));
        assert!(fast.may_wait(ms(0)));
        fast.found(ms(50));
        fast.missed(ms(149));
        assert!(fast.may_wait(ms(149)), "it was found within the wait");
        fast.missed(ms(150));
        assert!(!fast.may_wait(ms(249)));
        assert!(fast.may_wait(ms(250)) && !fast.may_wait(ms(250)), "one");
        fast.missed(ms(350));
        assert!(!fast.may_wait(ms(449)) && fast.may_wait(ms(450)));
        fast.found(ms(451));
        assert!(fast.may_wait(ms(451)) && fast.may_wait(ms(451)));
        // Whatever the clock says.
        fast.missed(Duration::MAX);
        assert!(!fast.may_wait(ms(452)));
    }
}
