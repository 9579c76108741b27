//! Starting and stopping: whether the process is ready to take requests, and the signal that ends it.
//!
//! Refuses to know what a reason means: whoever holds readiness back names it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// Whether this process should get requests, and if not, why. Clones share one state; reading takes no
/// lock.
///
/// ```
/// let readiness = mesh_server::Readiness::default();
/// readiness.hold("certificate", "waiting for the first one");
/// assert!(!readiness.is_ready());
/// readiness.release("certificate");
/// assert!(readiness.is_ready());
/// ```
#[derive(Clone, Default)]
pub struct Readiness {
    state: Arc<ArcSwap<State>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    serving: usize,
    draining: bool,
    reasons: BTreeMap<String, String>,
}

impl Readiness {
    /// Whether nothing holds it back and no drain has begun.
    pub fn is_ready(&self) -> bool {
        let state = self.state.load();
        !state.draining && state.reasons.is_empty()
    }

    /// How many listeners are accepting connections.
    pub fn serving(&self) -> usize {
        self.state.load().serving
    }

    /// Whether a drain has begun; it never ends.
    pub fn draining(&self) -> bool {
        self.state.load().draining
    }

    /// What holds it back: name and explanation.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        self.state.load().reasons.clone()
    }

    /// Holds it back under a name until [`release`](Self::release); a second call replaces the
    /// explanation.
    pub fn hold(&self, name: &str, why: &str) {
        if self.state.load().reasons.get(name).is_none_or(|known| known != why) {
            self.change(|state| {
                state.reasons.insert(name.to_owned(), why.to_owned());
            });
        }
    }

    /// Takes back what was held under a name.
    pub fn release(&self, name: &str) {
        if self.state.load().reasons.contains_key(name) {
            self.change(|state| {
                state.reasons.remove(name);
            });
        }
    }

    /// Marks the beginning of the drain.
    pub fn drain(&self) {
        self.change(|state| state.draining = true);
    }

    /// Counts a listener for as long as the answer lives.
    pub(crate) fn listening(&self) -> Listening {
        self.change(|state| state.serving += 1);
        Listening { readiness: self.clone() }
    }

    fn change(&self, change: impl Fn(&mut State)) {
        self.state.rcu(|state| {
            let mut next = State::clone(state);
            change(&mut next);
            next
        });
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&**self.state.load()).finish()
    }
}

/// One accepting listener.
pub(crate) struct Listening {
    readiness: Readiness,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.readiness.change(|state| state.serving -= 1);
    }
}

/// Waits for SIGTERM or SIGINT (elsewhere than on Unix: Ctrl-C) and names it. The caller then triggers
/// the drain.
///
/// # Errors
/// The signal handlers cannot be installed.
pub async fn shutdown_signal() -> io::Result<&'static str> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok("SIGTERM"),
            _ = interrupt.recv() => Ok("SIGINT"),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await?;
        Ok("Ctrl-C")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_nothing_holds_it_and_never_again_after_a_drain() {
        let readiness = Readiness::default();
        let listening = readiness.listening();
        assert!(readiness.is_ready());
        assert_eq!(readiness.serving(), 1);

        readiness.hold("policy", "pending");
        readiness.hold("policy", "refused");
        assert_eq!(readiness.reasons(), BTreeMap::from([("policy".to_owned(), "refused".to_owned())]));
        assert!(!readiness.is_ready());
        readiness.release("policy");
        assert!(readiness.is_ready());

        readiness.drain();
        drop(listening);
        assert!(!readiness.is_ready());
        assert!(readiness.draining());
        assert_eq!(readiness.serving(), 0);
    }
}
