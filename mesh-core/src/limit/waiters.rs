//! [`Waiters`]: who waits for something to come free, so that nobody is forgotten.

use crate::sync::{AtomicU32, Ordering, fence};

/// How many wait. Who finds nothing is [counted in](Self::enter), looks once more, and only then waits; who gives something
/// back asks [after that](Self::any) whether somebody does, who is told then. One of the two sees the other.
///
/// Asking costs a load: most of the time nobody waits.
#[derive(Debug, Default)]
pub struct Waiters(AtomicU32);

impl Waiters {
    /// One more. What it looks at next is not read before.
    pub fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// One less.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many there are, for who gives nothing back.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether somebody is to be told of what has come free: given back under a lock that those who look take as well, or
    /// [fenced off](Self::given_back).
    pub fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    /// What was given back by an atomic of any order comes before who is asked for next.
    pub fn given_back() {
        fence(Ordering::SeqCst);
    }
}
