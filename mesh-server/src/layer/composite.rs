//! Composite filters of a server (gRFC A103): which filters a request passes is decided by its headers.
//!
//! ```text
//! request ─ tree ─┬─ skip, or not of the share: it goes on
//!                 ├─ a chain: its tokens, its policies, the composites in it; its limits are asked where the listener's are
//!                 └─ nothing found, or a client's filters: it is refused
//! ```
//!
//! What looks at callers is not stepped round by a header that is there twice: a request of which two readers would find
//! different chains is refused.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use rustls::time_provider::TimeProvider;
use smallvec::SmallVec;

use mesh_core::authz::{Attributes, Authorizer};
use mesh_core::error::Code;
use mesh_core::identity::PeerIdentity;
use mesh_core::jwt::Tokens;
use mesh_core::matcher::{MatchTree, RequestView, TwoReadings};
use mesh_core::policy::{Composite, ExecuteFilters, HttpFilter, HttpFilterKind, MatcherTree, PerMillion};
use mesh_core::telemetry::Decisions;

use super::gate::{self, Closed, view};
use super::token::Filters;

/// The composites of one place.
#[derive(Default)]
pub(super) struct Composites(Box<[Arc<Compiled>]>);

/// Trees by their policy's, for many routes may have one: those of a listener, while it is compiled.
pub(super) type Known = HashMap<*const MatcherTree, Arc<Compiled>>;

pub(super) struct Compiled {
    /// `None` = no filter.
    tree: MatchTree<Option<Chain>>,
    /// Whether some chain of it looks at callers.
    judges: bool,
}

struct Chain {
    id: ChainId,
    share: PerMillion,
    /// `None` = one of its filters is a client's.
    guards: Option<ChainGuards>,
}

struct ChainGuards {
    tokens: Filters,
    authorizer: Authorizer,
    composites: Composites,
}

/// A chain of a listener: whoever keeps something for each finds it by this, as long as the listener stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChainId(usize);

impl ChainId {
    pub(super) fn of(chain: &ExecuteFilters) -> Self {
        Self(std::ptr::from_ref(chain).addr())
    }
}

/// Chains that a request passes, in order.
pub(super) type Chains = SmallVec<[ChainId; 2]>;

/// What of a connection and its listener requests are judged by.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) peer: Option<&'a PeerIdentity>,
    pub(super) server_name: Option<&'a str>,
    pub(super) destination: SocketAddr,
    pub(super) trusted_proxies: u32,
    pub(super) clock: &'a dyn TimeProvider,
}

impl Composites {
    pub(super) fn new(filters: &[HttpFilter], decisions: &Decisions, known: &mut Known) -> Self {
        let each = filters.iter().filter_map(|filter| match &filter.kind {
            HttpFilterKind::Composite(composite) => Compiled::of(composite, decisions, known),
            _ => None,
        });
        Self(each.collect())
    }

    /// Lets a request pass the chains that its headers choose, limits excepted, and notes those in `chains`.
    pub(super) fn admit<B: Send + 'static>(
        &self,
        request: &mut Request<B>,
        caller: Caller<'_>,
        tokens: &mut Option<Arc<Tokens>>,
        chains: &mut Chains,
    ) -> Result<(), Closed> {
        for composite in &*self.0 {
            let Some(chain) = composite.choose(request, caller)? else { continue };
            let Some(guards) = &chain.guards else {
                return Err(undecided(&view(request), caller, "the filters chosen are a client's"));
            };
            let (id, Caller { peer, server_name, destination, trusted_proxies, clock }) = (chain.id, caller);
            guards.tokens.admit(request, peer, tokens, clock)?;
            let (judged, tokens_now) = (Some(view(request)), tokens.as_deref());
            let attributes =
                Attributes { request: judged, peer, destination, server_name, tokens: tokens_now, trusted_proxies };
            let decided = guards.authorizer.decide(&attributes, |seen| gate::observed(&seen, &attributes));
            decided.map_err(|denial| gate::closed(&denial, &attributes))?;
            chains.push(id);
            guards.composites.admit(request, caller, tokens, chains)?;
        }
        Ok(())
    }
}

impl Compiled {
    fn of(policy: &Composite, decisions: &Decisions, known: &mut Known) -> Option<Arc<Self>> {
        let tree = policy.matcher.as_ref()?;
        if let Some(compiled) = known.get(&Arc::as_ptr(tree)) {
            return Some(compiled.clone());
        }
        let mut chain = |chain: Option<&ExecuteFilters>| Some(Chain::new(chain?, decisions, known));
        let compiled = Arc::new(Self { tree: MatchTree::new(tree, &mut chain), judges: policy.judges() });
        known.insert(Arc::as_ptr(tree), compiled.clone());
        Some(compiled)
    }

    /// The chain of a request; none if it is to pass none, or is not one of the share that does.
    fn choose<B>(&self, request: &Request<B>, caller: Caller<'_>) -> Result<Option<&Chain>, Closed> {
        let view = view(request);
        let found = match self.judges {
            true => self.tree.find_alike(&view),
            false => Ok(self.tree.find(&view)),
        };
        match found {
            Ok(Some(Some(chain))) => {
                let passes = chain.share == PerMillion::ALL || chain.share.hit((view.draw)());
                Ok(passes.then_some(chain))
            }
            Ok(Some(None)) => Ok(None),
            Ok(None) => Err(undecided(&view, caller, "the matcher of a composite filter finds nothing")),
            Err(TwoReadings) => Err(ambiguous(&view, caller)),
        }
    }
}

impl Chain {
    fn new(policy: &ExecuteFilters, decisions: &Decisions, known: &mut Known) -> Self {
        let ours = policy.filters.iter().all(|filter| is_a_servers(&filter.kind));
        let guards = ours.then(|| ChainGuards {
            tokens: Filters::new(&policy.jwt, decisions),
            authorizer: Authorizer::counted(&policy.authorization, decisions),
            composites: Composites::new(&policy.filters, decisions, known),
        });
        Self { id: ChainId::of(policy), share: policy.share, guards }
    }
}

/// Whether a server knows what to do with it.
fn is_a_servers(kind: &HttpFilterKind) -> bool {
    matches!(
        kind,
        HttpFilterKind::RateLimit(_)
            | HttpFilterKind::CallerRateLimit(_)
            | HttpFilterKind::AdaptiveConcurrency(_)
            | HttpFilterKind::Composite(_)
    )
}

#[cold]
fn undecided(request: &RequestView<'_>, caller: Caller<'_>, reason: &'static str) -> Closed {
    gate::denied(&attributes(request, caller), None, None, reason);
    Closed { code: Code::NO_INBOUND_FILTERS, details: "composite_filter_undecided".into(), challenge: None }
}

#[cold]
fn ambiguous(request: &RequestView<'_>, caller: Caller<'_>) -> Closed {
    let reason = "a header that is there twice makes two chains of a composite filter possible";
    gate::denied(&attributes(request, caller), None, None, reason);
    Closed { code: Code::MALFORMED_REQUEST, details: "ambiguous_filters".into(), challenge: None }
}

fn attributes<'a>(request: &RequestView<'a>, caller: Caller<'a>) -> Attributes<'a> {
    let Caller { peer, server_name, destination, trusted_proxies, .. } = caller;
    Attributes { request: Some(*request), peer, destination, server_name, tokens: None, trusted_proxies }
}
