//! The policy in force: the listener that was received last, whatever is said afterwards.
//!
//! Connections outlive the control plane's word about their listener, and may come before the first request: so what is
//! received is remembered when it is received, not when it is first judged by.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};

use mesh_core::policy::{InboundListener, InboundState};
use mesh_core::source::Watched;

/// Where policy comes from, and the last of it.
pub(crate) struct Policy {
    inbound: Watched<InboundState>,
    given: bool,
    last: ArcSwapOption<InboundListener>,
}

impl Policy {
    /// `None` = there is no policy, and there will be none.
    pub(crate) fn new(inbound: Option<Watched<InboundState>>) -> Self {
        let given = inbound.is_some();
        let inbound = inbound.unwrap_or_else(|| Watched::fixed(InboundState::Pending));
        let policy = Self { inbound, given, last: ArcSwapOption::empty() };
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
        heard.expect("it was looked at")
    }

    /// The listener to judge by: the one of `state`, else the last one, which `last` then holds.
    pub(super) fn in_force<'a>(
        &self,
        state: &'a InboundState,
        last: &'a mut Option<Arc<InboundListener>>,
    ) -> Option<&'a Arc<InboundListener>> {
        match state {
            InboundState::Ready(listener) => {
                if !self.last.load().as_ref().is_some_and(|last| Arc::ptr_eq(last, listener)) {
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
