//! A number and the time it was set, in one atomic word: what a picker reads without a lock.

use std::f64::consts::LOG2_E;
use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// A number with the millisecond it was set; nothing until the first time.
#[derive(Debug, Default)]
pub(super) struct Stamped(AtomicU64);

/// Milliseconds of the caller's clock. They go round after 49 days, which differences survive.
#[inline]
pub(super) fn millis(now: Duration) -> u32 {
    (now.as_secs() as u32).wrapping_mul(1000).wrapping_add(now.subsec_millis())
}

/// What another thread's clock may be ahead by: it was read a moment before.
const AHEAD: u32 = 60_000;

/// Milliseconds from `then` to `now`; 0 if another thread's clock was ahead.
#[inline]
pub(super) fn since(now: u32, then: u32) -> u32 {
    let passed = now.wrapping_sub(then);
    if passed > u32::MAX - AHEAD { 0 } else { passed }
}

impl Stamped {
    /// The number and its age in milliseconds.
    #[inline]
    pub(super) fn read(&self, now: u32) -> Option<(f32, u32)> {
        unpack(self.0.load(Ordering::Relaxed), now)
    }

    pub(super) fn set(&self, value: f32, now: u32) {
        self.0.store(pack(value, now), Ordering::Relaxed);
    }

    /// Replaces the number by what `next` makes of it and its age; concurrent updates are all seen.
    pub(super) fn update(&self, now: u32, next: impl Fn(Option<(f32, u32)>) -> f32) {
        self.change(now, |old| Change::Renew(next(old)));
    }

    /// Does with the number what `next` makes of it and its age; concurrent changes are all seen. False: it was kept.
    #[inline]
    pub(super) fn change(&self, now: u32, next: impl Fn(Option<(f32, u32)>) -> Change) -> bool {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let new = match next(unpack(old, now)) {
                Change::Keep => return false,
                Change::Clear => 0,
                Change::Adjust(value) => pack(value, old as u32),
                Change::Renew(value) => pack(value, now),
            };
            match self.0.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => old = other,
            }
        }
    }
}

/// What becomes of a number.
pub(super) enum Change {
    /// Nothing.
    Keep,
    /// It is forgotten.
    Clear,
    /// Another one takes its place, as if set when it was.
    Adjust(f32),
    /// Another one takes its place, set now.
    Renew(f32),
}

fn pack(value: f32, now: u32) -> u64 {
    // The bit keeps a number of 0 at time 0 apart from nothing; the last bit of the fraction is spare.
    u64::from(value.to_bits() | 1) << 32 | u64::from(now)
}

#[inline]
fn unpack(word: u64, now: u32) -> Option<(f32, u32)> {
    (word != 0).then(|| (f32::from_bits((word >> 32) as u32), since(now, word as u32)))
}

/// What is left of 1 after `age` milliseconds of exponential decay, right to 1 in 50,000: every pick asks for it, and it
/// takes a fraction of what `exp` does.
#[inline]
pub(super) fn decay(age: u32, over: Duration) -> f32 {
    // With 40 bits behind the point; in floats it would take twice the steps.
    let one = (LOG2_E * (1_u64 << 40) as f64 / over.as_millis() as f64) as u64;
    let halvings = u64::from(age) * one;
    let whole = (halvings >> 40) as u32;
    if whole > 125 {
        return 0.0;
    }
    // 2 to the power of -x, for x from 0 to 1.
    let x = ((halvings >> 16) as u32 & 0xff_ffff) as f32 * (1.0 / (1 << 24) as f32);
    let part = 1.0 + x * (-0.693_138_9 + x * (0.239_959_7 + x * (-0.054_143_2 + x * 0.007_329_79)));
    // The whole halvings go into the exponent.
    f32::from_bits((127 - whole) << 23) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_is_the_exponential() {
        let over = Duration::from_secs(10);
        assert_eq!(decay(0, over), 1.0);
        for age in (1..400_000).step_by(7) {
            let want = (f64::from(age) / -10_000.0).exp();
            let off = f64::from(decay(age, over)) / want - 1.0;
            assert!(off.abs() < 2e-5, "{age}: off by {off}");
        }
        assert_eq!(decay(u32::MAX, over), 0.0);
    }

    #[test]
    fn a_number_keeps_its_age_over_a_wrap_of_the_clock() {
        let number = Stamped::default();
        assert_eq!(number.read(5), None);
        let before = Duration::from_secs(4_294_967).saturating_add(Duration::from_millis(290));
        let after = before + Duration::from_millis(1000);
        number.set(0.5, millis(before));
        let (value, age) = number.read(millis(after)).unwrap();
        assert!((value - 0.5).abs() < 1e-6 && age == 1000, "{value} {age}");
        assert_eq!(number.read(millis(before).wrapping_sub(3)).unwrap().1, 0, "a clock behind is no age");
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!(number.read(millis(after + month)).unwrap().1, 2_592_001_000, "half the way round is old, not new");
        number.set(0.0, 0);
        assert!(number.read(0).is_some(), "zero at time zero is something");
        number.update(9, |old| old.map_or(7.0, |(value, age)| value + age as f32));
        assert!((number.read(9).unwrap().0 - 9.0).abs() < 1e-5);
    }
}
