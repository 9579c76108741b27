//! The policy in force: the listener that was received last, whatever is said afterwards.
//!
//! Connections outlive the control plane's word about their listener, and may come before the first request: so what is
//! received is remembered when it is received, not when it is first judged by.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use mesh_core::policy::{InboundListener, InboundState};
use mesh_core::source::Watched;

/// Where policy comes from, and the last of it.
pub(crate) struct Policy {
    inbound: Watched<InboundState>,
    given: bool,
    last: ArcSwapOption<InboundListener>,
    // Where the last one is, so that a request sees at once that its own is no other. Only compared.
    heard: AtomicPtr<InboundListener>,
}

impl Policy {
    /// `None` = there is no policy, and there will be none.
    pub(crate) fn new(inbound: Option<Watched<InboundState>>) -> Self {
        let given = inbound.is_some();
        let inbound = inbound.unwrap_or_else(|| Watched::fixed(InboundState::Pending));
        let policy = Self { inbound, given, last: ArcSwapOption::empty(), heard: AtomicPtr::new(ptr::null_mut()) };
        policy.hear();
        policy
    }

    /// Whether there is a policy to wait for: without it nothing may pass.
    pub(super) fn is_given(&self) -> bool {
        self.given
    }

    /// What is said now.
    pub(super) fn state(&self) -> Guard<Arc<InboundState>> {
        self.inbound.load()
    }

    /// What is said now; a listener is remembered.
    pub(super) fn hear(&self) -> Arc<InboundState> {
        let mut heard = None;
        // What is remembered is looked at before what is said: so nothing older replaces it.
        self.last.rcu(|last| {
            let state = self.inbound.load_full();
            let listener = match &*state {
                InboundState::Ready(listener) => Some(listener.clone()),
                InboundState::Pending | InboundState::Failed(_) => last.clone(),
            };
            heard = Some(state);
            listener
        });
        let state = heard.expect("it was looked at");
        if let InboundState::Ready(listener) = &*state {
            self.heard.store(Arc::as_ptr(listener).cast_mut(), Ordering::Relaxed);
        }
        state
    }

    /// The listener to judge by: the one of `state`, else the last one, which `last` then holds.
    pub(super) fn in_force<'a>(
        &self,
        state: &'a InboundState,
        last: &'a mut Option<Arc<InboundListener>>,
    ) -> Option<&'a Arc<InboundListener>> {
        match state {
            InboundState::Ready(listener) => {
                if !ptr::eq(self.heard.load(Ordering::Relaxed), Arc::as_ptr(listener)) {
                    self.hear();
                }
                Some(listener)
            }
            InboundState::Pending | InboundState::Failed(_) => {
                *last = self.last.load_full();
                last.as_ref()
            }
        }
    }
}
