//! Authorization: the policy in force, compiled when its first request comes, and what is told of its decisions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use http::{Request, header};

use mesh_core::authz::{Attributes, Authorizer, Denial, DenialReason, Observation};
use mesh_core::error::Code;
use mesh_core::identity::PeerIdentity;
use mesh_core::matcher::RequestView;
use mesh_core::policy::{InboundListener, InboundState};

/// The compiled policy of a listener, kept as long as the listener's configuration stays.
#[derive(Default)]
pub(crate) struct Gate {
    current: ArcSwapOption<Compiled>,
    // Whether there is one: asked where there is no policy.
    compiled: AtomicBool,
}

struct Compiled {
    listener: Arc<InboundListener>,
    authorizer: Authorizer,
}

/// A request that policy does not let through.
pub(super) struct Closed {
    pub(super) code: Code,
    /// For the access log, in Envoy's words; the caller is not told.
    pub(super) details: Box<str>,
}

impl Gate {
    /// Decides about a request whose target is settled. Costs nothing where there is no policy.
    pub(super) fn judge<B>(
        &self,
        state: &InboundState,
        request: &Request<B>,
        peer: Option<&PeerIdentity>,
        server_name: Option<&str>,
    ) -> Result<(), Closed> {
        // Without word from the control plane what was enforced last still is: connections outlive their policy.
        let last;
        let listener = match state {
            InboundState::Ready(listener) => listener,
            InboundState::Pending | InboundState::Failed(_) => match self.current.load_full() {
                Some(compiled) => {
                    last = compiled;
                    &last.listener
                }
                None => return Ok(()),
            },
        };
        if demands_tokens(listener) {
            let details = "jwt_authn_access_denied{not checked by this version}".into();
            return Err(Closed { code: Code::AUTHORIZATION_UNENFORCED, details });
        }
        if listener.authorization.is_empty() {
            if self.compiled.load(Ordering::Relaxed) {
                self.forget();
            }
            return Ok(());
        }
        let current = self.current.load();
        let compiled = match current.as_ref().filter(|compiled| Arc::ptr_eq(&compiled.listener, listener)) {
            Some(compiled) => compiled,
            None => &self.compile(listener),
        };
        let uri = request.uri();
        let view = RequestView {
            authority: authority(request),
            method: request.method(),
            path_and_query: uri.path_and_query().map_or("", |path| path.as_str()),
            scheme: uri.scheme_str().unwrap_or_default(),
            headers: request.headers(),
            draw: &|| 0,
        };
        let attributes = Attributes { request: view, peer, destination: listener.address, server_name };
        let verdict = compiled.authorizer.decide(&attributes, |seen| observed(&seen, &attributes));
        verdict.map_err(|denial| closed(&denial, &attributes))
    }

    // Two requests may do this at once; both get the same.
    #[cold]
    fn compile(&self, listener: &Arc<InboundListener>) -> Arc<Compiled> {
        let authorizer = Authorizer::new(&listener.authorization);
        let compiled = Arc::new(Compiled { listener: listener.clone(), authorizer });
        self.current.store(Some(compiled.clone()));
        self.compiled.store(true, Ordering::Relaxed);
        compiled
    }

    #[cold]
    fn forget(&self) {
        self.compiled.store(false, Ordering::Relaxed);
        self.current.store(None);
    }
}

/// Whether a listener has demands on tokens. They are not checked by this version: such a port denies everything,
/// rather than let through what a policy was written to stop.
pub(crate) fn demands_tokens(listener: &InboundListener) -> bool {
    !listener.jwt.is_empty()
}

/// The authority of a request whose target is settled: the URI's, else the only `Host`.
fn authority<B>(request: &Request<B>) -> &str {
    let host = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default()
}

#[cold]
fn closed(denial: &Denial<'_>, of: &Attributes<'_>) -> Closed {
    let code = match denial.reason {
        DenialReason::NoAuthorizer => Code::AUTHORIZATION_UNENFORCED,
        DenialReason::Denied | DenialReason::NotAllowed => Code::ACCESS_DENIED,
    };
    let reason = match denial.reason {
        DenialReason::Denied => "a rule of a DENY policy matches",
        DenialReason::NotAllowed => "no rule of the ALLOW policies matches",
        DenialReason::NoAuthorizer => "a rule of a CUSTOM policy matches, and external authorizers are not asked",
    };
    tracing::info!(
        target: "mesh::audit",
        decision = "denied",
        policy = denial.policy,
        rule = denial.rule,
        reason,
        principal = principal(of),
        peer = peer(of),
        method = %of.request.method,
        path = of.request.path(),
        "RBAC: access denied"
    );
    let details = format!("rbac_access_denied_matched_policy[{}]", denial.rule.unwrap_or("none"));
    Closed { code, details: details.into() }
}

#[cold]
fn observed(seen: &Observation<'_>, of: &Attributes<'_>) {
    tracing::info!(
        target: "mesh::audit",
        decision = if seen.allowed { "allowed" } else { "denied" },
        kind = ?seen.kind,
        policy = seen.policy,
        rule = seen.rule,
        principal = principal(of),
        peer = peer(of),
        method = %of.request.method,
        path = of.request.path(),
        "RBAC: decision recorded"
    );
}

fn principal<'a>(of: &Attributes<'a>) -> Option<tracing::field::DisplayValue<impl fmt::Display + use<'a>>> {
    of.peer.and_then(|peer| peer.spiffe_id.as_ref()).map(tracing::field::display)
}

fn peer<'a>(of: &Attributes<'a>) -> Option<tracing::field::DisplayValue<impl fmt::Display + use<'a>>> {
    of.peer.map(|peer| tracing::field::display(peer.address))
}
