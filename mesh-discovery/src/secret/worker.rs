//! The tasks that keep an identity fresh: one asks a CA, the other one reads files.
#![allow(clippy::disallowed_methods, reason = "the spawns of this module, through owned handles")]

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{EndingLeaf, EndingLists, EndingRoots, Identity, LifeLeft, TrustBundles};
use mesh_core::source::{Publisher, Watched, WatchedIdentity, WatchedRoots};
use mesh_core::telemetry::{Life, Renewals};
use rcgen::KeyPair;
use rustls::crypto::CryptoProvider;
use tokio::runtime::Handle;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::files::{Files, Refreshed};
use super::issue::{CertificateAuthorityClient, CertificateRefused, Proof, RootsEnded, new_key};
use super::workload::{Agent, WorkloadApi};
use super::{Clock, JoinToken, Refusal, SecretConfig, lists, schedule};
use crate::backoff::Backoff;
use crate::bootstrap::FileWatcher;
use crate::clock;
use crate::connect::{AbortOnDrop, Connector};

/// Waits between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Waits before an authority that tells nothing of roots is asked again: while it is updated, one of its replicas may know
/// how and another may not.
const UNSUPPORTED: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(600));

/// How often the root file is looked at that says what such an authority does not.
const LOOK: Duration = Duration::from_secs(30);

/// Waits after other roots have come before any are taken up again, beside what the first of the two adds at least: replicas of
/// an authority that disagree take turns.
const SETTLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Fetches and renews this process's identity on `runtime` until the last reader of the answer is
/// dropped. `connector` leads to the CA; it must not carry an identity of its own. The second answer is why there
/// is none yet.
pub fn spawn(config: SecretConfig, connector: Connector, runtime: &Handle) -> (WatchedIdentity, Refusal) {
    let connector = connector.with_clock(config.clock.clone());
    let client = CertificateAuthorityClient::new(connector, config.validity, config.trust_domain)
        .trust_domain_aliases(config.trust_domain_aliases);
    let proved = Proved { client, token: config.token, key: None, clock: config.clock.clone() };
    spawn_with(proved, config.clock, config.renewals, runtime)
}

/// The same over any source of certificates.
pub(super) fn spawn_with(
    authority: impl Authority,
    clock: Clock,
    renewals: Arc<Renewals>,
    runtime: &Handle,
) -> (WatchedIdentity, Refusal) {
    let (publisher, watched) = Watched::channel(None);
    let (refused, refusal) = Watched::channel(None);
    let task = runtime.spawn(run(authority, clock, publisher, refused, renewals));
    (watched.with_guard(Arc::new(AbortOnDrop(task))), refusal)
}

/// What the files of a certificate provider give. It ends with the last reader of identity and roots.
#[derive(Clone, Debug)]
pub struct FromFiles {
    /// Certificate and key, with the roots that are beside them, if any are.
    pub identity: WatchedIdentity,
    /// Roots that are alone.
    pub roots: WatchedRoots,
    /// Why there is nothing yet.
    pub refusal: Refusal,
}

/// Follows the files of a certificate provider on `runtime`.
/// They are read again every `refresh_interval`, sooner after a failure; what is bad leaves the last good
/// identity in force (gRFC A29, A87). `renewals` counts the failures.
pub fn spawn_files(
    watcher: FileWatcher,
    crypto: Arc<CryptoProvider>,
    renewals: Arc<Renewals>,
    runtime: &Handle,
) -> FromFiles {
    follow_files(watcher, crypto, clock::system(), renewals, runtime)
}

pub(super) fn follow_files(
    watcher: FileWatcher,
    crypto: Arc<CryptoProvider>,
    clock: Clock,
    renewals: Arc<Renewals>,
    runtime: &Handle,
) -> FromFiles {
    let (publisher, identity) = Watched::channel(None);
    let (trusted, roots) = Watched::channel(None);
    let (refused, refusal) = Watched::channel(None);
    let task =
        Arc::new(AbortOnDrop(runtime.spawn(follow(watcher, crypto, clock, (publisher, trusted), (refused, renewals)))));
    FromFiles { identity: identity.with_guard(task.clone()), roots: roots.with_guard(task), refusal }
}

/// Follows the SPIFFE Workload API on `runtime` until the last reader of the answer is dropped. The second answer is
/// why there is no identity yet. What an agent says counts whole; what cannot be used leaves what it said before.
/// `renewals` counts the failures.
pub fn spawn_workload_api(
    api: WorkloadApi,
    crypto: Arc<CryptoProvider>,
    renewals: Arc<Renewals>,
    runtime: &Handle,
) -> (WatchedIdentity, Refusal) {
    let (publisher, watched) = Watched::channel(None);
    let (refused, refusal) = Watched::channel(None);
    let task = runtime.spawn(listen(Agent::new(api, crypto, clock::system()), publisher, refused, renewals));
    (watched.with_guard(Arc::new(AbortOnDrop(task))), refusal)
}

async fn listen(
    mut agent: Agent,
    publisher: Publisher<Option<Arc<Identity>>>,
    refused: Publisher<Option<Arc<str>>>,
    renewals: Arc<Renewals>,
) {
    let (mut ending, clock) = (Ending::default(), clock::system());
    let mut leaf = Leaf::renewed_by_others(&renewals);
    let mut random = fastrand::Rng::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        let error = loop {
            let next = {
                let mut next = pin!(agent.next());
                loop {
                    if let Some(identity) = &*publisher.load_full() {
                        leaf.look(identity, clock());
                        ending.look(&[identity.bundles()], clock());
                    }
                    tokio::select! {
                        next = next.as_mut() => break next,
                        () = tokio::time::sleep(schedule::LONGEST_NAP) => {}
                    }
                }
            };
            match next {
                Ok(identity) => {
                    backoff.reset();
                    tracing::info!(id = %identity.id(), not_after = identity.not_after(), "new identity from the agent");
                    publisher.publish(Some(Arc::new(identity)));
                    refused.publish(None);
                }
                Err(error) => break error,
            }
        };
        let wait = backoff.next(random.f64());
        renewals.failed(clock());
        let has_identity = publisher.load_full().is_some();
        tracing::warn!(%error, retry_in = ?wait, has_identity, "SPIFFE Workload API: what it said last stays in use");
        refused.publish(Some(error.to_string().into()));
        tokio::time::sleep(wait).await;
    }
}

/// Where the next certificate comes from.
pub(super) trait Authority: Send + Sync + 'static {
    /// The identity to follow `current`.
    fn next(
        &mut self,
        current: Option<&Identity>,
        now: u64,
    ) -> impl Future<Output = Result<Identity, CertificateRefused>> + Send;

    /// Waits for other roots than those of `current`, and gives it with them. Default: they come with the next
    /// certificate.
    fn other_roots(&self, _current: Arc<Identity>) -> impl Future<Output = Identity> + Send + 'static {
        std::future::pending()
    }

    /// Whether a root that it trusts vouches for the certificate itself: asked once about each pair of the two. Default: yes,
    /// for roots come with certificates.
    fn vouches_for(&self, _identity: &Identity, _now: u64) -> bool {
        true
    }
}

/// The CA, with the proof that fits the moment.
pub(super) struct Proved {
    pub(super) client: CertificateAuthorityClient,
    pub(super) token: Option<JoinToken>,
    /// What a token was shown for, until there is a certificate: if the answer is lost, a join token is good for no other key.
    pub(super) key: Option<Zeroizing<KeyPair>>,
    pub(super) clock: Clock,
}

impl Authority for Proved {
    /// The certificate of the moment proves its renewal; once it has ended or its root is gone, only a token can. Before it
    /// has begun, a token that is good more than once does.
    async fn next(&mut self, current: Option<&Identity>, now: u64) -> Result<Identity, CertificateRefused> {
        let orphaned = current.is_some_and(|current| !self.client.vouches_for(current, now));
        match current {
            Some(current) if !orphaned && now < current.not_after() => {
                return self.client.renew_with(current, self.token.as_ref(), now).await;
            }
            _ => {}
        }
        let generation = current.map_or(0, |ended| ended.generation() + 1);
        let key = match &mut self.key {
            Some(key) => key,
            none => none.insert(new_key()?),
        };
        let proof = Proof::Token(self.token.as_ref(), current);
        let next = self.client.issue_for(key, proof, generation, now).await.and_then(|next| in_force(next, now));
        let next = next.map_err(|e| if orphaned { CertificateRefused::RootGone(Box::new(e)) } else { e })?;
        self.key = None;
        Ok(next)
    }

    fn vouches_for(&self, identity: &Identity, now: u64) -> bool {
        self.client.vouches_for(identity, now)
    }

    fn other_roots(&self, current: Arc<Identity>) -> impl Future<Output = Identity> + Send + 'static {
        let (client, clock) = (self.client.clone(), self.clock.clone());
        async move {
            let mounted = async {
                loop {
                    tokio::time::sleep(LOOK).await;
                    if let Some(identity) = client.mounted_roots(&current).await {
                        return identity;
                    }
                }
            };
            tokio::select! {
                identity = until_told(|| client.other_roots(&current, &*clock)) => identity,
                identity = mounted => identity,
            }
        }
    }
}

/// Asks for other roots until there are some.
pub(super) async fn until_told<F>(ask: impl Fn() -> F) -> Identity
where
    F: Future<Output = Result<Identity, RootsEnded>>,
{
    let mut random = fastrand::Rng::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut unsupported = Backoff::new(UNSUPPORTED.0, UNSUPPORTED.1);
    loop {
        let wait = match ask().await {
            Ok(identity) => return identity,
            Err(RootsEnded::Unsupported) => unsupported.next(random.f64()),
            Err(RootsEnded::Untold(reason) | RootsEnded::Broken(reason)) => {
                tracing::debug!(%reason, "no word of the roots; asking again");
                backoff.next(random.f64())
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// How soon other roots are taken up again: at once where it was calm, and ever later where they keep changing.
struct Settling {
    backoff: Backoff,
    until: Option<Instant>,
    random: fastrand::Rng,
}

impl Settling {
    fn new() -> Self {
        Self { backoff: Backoff::new(SETTLE.0, SETTLE.1), until: None, random: fastrand::Rng::new() }
    }

    /// Others have come now.
    fn changed(&mut self) {
        let now = Instant::now();
        if self.until.is_none_or(|until| now >= until + SETTLE.1) {
            self.backoff.reset();
        }
        self.until = Some(now + SETTLE.0 + self.backoff.next(self.random.f64()));
    }
}

/// The identity in force, and whoever waits for other roots than its own.
struct Held {
    identity: Arc<Identity>,
    /// Whether a root that it trusts vouches for the certificate itself.
    vouched: bool,
    other: Pin<Box<dyn Future<Output = Identity> + Send>>,
}

impl Held {
    fn new(authority: &impl Authority, identity: Identity, now: u64, settling: &Settling) -> Self {
        let identity = Arc::new(identity);
        let (other, until) = (authority.other_roots(identity.clone()), settling.until);
        let other = async move {
            if let Some(until) = until {
                tokio::time::sleep_until(until).await;
            }
            other.await
        };
        Self { vouched: authority.vouches_for(&identity, now), other: Box::pin(other), identity }
    }

    /// Sleeps, and takes up other roots meanwhile; not on, once they do not vouch for the certificate itself.
    async fn nap(
        &mut self,
        authority: &impl Authority,
        clock: &Clock,
        (publisher, renewals): (&Publisher<Option<Arc<Identity>>>, &Renewals),
        settling: &mut Settling,
        nap: Duration,
    ) {
        let mut nap = pin!(tokio::time::sleep(nap));
        loop {
            let other = tokio::select! {
                () = nap.as_mut() => return,
                other = self.other.as_mut() => other,
            };
            let (domain, trusted) = (other.id().trust_domain(), other.bundles());
            let (roots, federated) =
                (trusted.get(&domain).map(|own| own.roots().len()), trusted.iter().count().saturating_sub(1));
            tracing::info!(%domain, roots, federated, "other roots to trust");
            settling.changed();
            *self = Self::new(authority, other, clock(), settling);
            publisher.publish(Some(self.identity.clone()));
            if told_of_root(self, renewals) {
                return;
            }
        }
    }
}

async fn run(
    mut authority: impl Authority,
    clock: Clock,
    publisher: Publisher<Option<Arc<Identity>>>,
    refused: Publisher<Option<Arc<str>>>,
    renewals: Arc<Renewals>,
) {
    let mut random = fastrand::Rng::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let (mut ending, mut leaf) = (Ending::default(), Leaf::renewed_here(&renewals));
    let (mut held, mut settling): (Option<Held>, _) = (None, Settling::new());
    loop {
        let current = held.as_ref().map(|held| &*held.identity);
        match authority.next(current, clock()).await.and_then(|next| in_force(next, clock())) {
            Ok(identity) => {
                backoff.reset();
                let renew_at = schedule::renew_at(clock(), identity.not_after(), random.f64());
                tracing::info!(id = %identity.id(), not_after = identity.not_after(), renew_at, "new certificate");
                refused.publish(None);
                renewals.root_gone(false);
                leaf.renewed();
                let held = held.insert(Held::new(&authority, identity, clock(), &settling));
                publisher.publish(Some(held.identity.clone()));
                while held.vouched {
                    ending.look(&[held.identity.bundles()], clock());
                    let nap = schedule::nap(clock(), held.identity.not_before(), renew_at);
                    let Some(nap) = nap else { break };
                    held.nap(&authority, &clock, (&publisher, &renewals), &mut settling, nap).await;
                }
            }
            Err(error) => {
                let ends = current.map(Identity::not_after);
                let wait = schedule::wait_in_time(backoff.next(random.f64()), clock(), ends);
                refused.publish(Some(error.to_string().into()));
                let now = clock();
                renewals.failed(now);
                let left = current.map(|c| schedule::percent_left(now, c.not_before(), c.not_after()));
                tracing::warn!(%error, retry_in = ?wait, life_left_percent = left, "no new certificate");
                match &mut held {
                    // Who cannot renew has to hear of what was taken back all the same.
                    Some(held) => {
                        leaf.look(&held.identity, now);
                        ending.look(&[held.identity.bundles()], now);
                        held.nap(&authority, &clock, (&publisher, &renewals), &mut settling, wait).await;
                    }
                    None => tokio::time::sleep(wait).await,
                }
            }
        }
    }
}

/// Takes no certificate whose time is not now: it helps as little as none, and what follows it waits as after a failure.
fn in_force(identity: Identity, now: u64) -> Result<Identity, CertificateRefused> {
    let (begins, ends) = (identity.not_before(), identity.not_after());
    if (begins..ends).contains(&now) {
        return Ok(identity);
    }
    Err(CertificateRefused::Chain(format!(
        "it is good from {begins} to {ends} and here it is {now} (seconds since 1970): check the clocks of both ends"
    )))
}

/// Tells that the root of the certificate of the moment is gone, or that it is back; whether it has just gone.
fn told_of_root(held: &Held, renewals: &Renewals) -> bool {
    let gone = !held.vouched;
    let news = renewals.root_gone(gone) != gone && gone;
    if news {
        tracing::error!(
            id = %held.identity.id(),
            "the root of this process's certificate is trusted no more: peers refuse it; a new one is asked for with the \
             token, as at first"
        );
    }
    news
}

/// The certificate of the moment, and the marks of its life that it passes without being renewed.
struct Leaf {
    ending: EndingLeaf,
    life: Life,
    /// Whether half of a life is enough to have it renewed: not where somebody else does that, in their own time.
    due_at_half: bool,
}

impl Leaf {
    /// One that this process renews; it is looked at when that has failed.
    fn renewed_here(renewals: &Renewals) -> Self {
        Self { ending: EndingLeaf::default(), life: renewals.life(), due_at_half: true }
    }

    fn renewed_by_others(renewals: &Renewals) -> Self {
        Self { due_at_half: false, ..Self::renewed_here(renewals) }
    }

    /// There is a new one.
    fn renewed(&self) {
        self.life.passed(LifeLeft::Ample);
    }

    /// Once for each mark of each certificate.
    fn look(&mut self, identity: &Identity, now: u64) {
        let (passed, not_after) = (self.ending.look(identity, now), identity.not_after());
        self.life.passed(self.ending.said());
        let Some(mark) = passed else { return };
        let (id, percent) = (identity.id(), mark.percent());
        match mark {
            LifeLeft::Ample => {}
            LifeLeft::Half if !self.due_at_half => {
                tracing::info!(%id, not_after, "a certificate has half of its life left and was not renewed yet");
            }
            LifeLeft::Half | LifeLeft::Quarter => {
                tracing::warn!(%id, not_after, "a certificate has {percent} percent of its life left and was not renewed");
            }
            LifeLeft::Tenth => {
                tracing::error!(%id, not_after, "a certificate has {percent} percent of its life left and was not renewed");
            }
            LifeLeft::Nothing => {
                tracing::error!(%id, not_after, "a certificate has ended and was not renewed: peers refuse it");
            }
        }
    }
}

/// What peers are judged by that ends.
#[derive(Default)]
struct Ending {
    roots: EndingRoots,
    lists: EndingLists,
}

impl Ending {
    /// Once for each root, for it takes months to change one everywhere, and for each mark of each revocation list.
    fn look(&mut self, trusted: &[&TrustBundles], now: u64) {
        for not_after in trusted.iter().filter_map(|trusted| self.roots.look(trusted, now)) {
            tracing::warn!(not_after, "a trusted root ends soon: have its authority change it before then");
        }
        for (list, mark) in self.lists.look(trusted.iter().copied(), now) {
            lists::tell(&list, mark);
        }
    }
}

async fn follow(
    watcher: FileWatcher,
    crypto: Arc<CryptoProvider>,
    clock: Clock,
    (publisher, trusted): (Publisher<Option<Arc<Identity>>>, Publisher<Option<TrustBundles>>),
    (refused_now, renewals): (Publisher<Option<Arc<str>>>, Arc<Renewals>),
) {
    let interval = watcher.refresh_interval;
    let mut files = Files::new(watcher, crypto);
    let mut random = fastrand::Rng::new();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let (mut said, mut ending) = (Vec::new(), Ending::default());
    let mut leaf = Leaf::renewed_by_others(&renewals);
    loop {
        let Refreshed { identity, roots, refused } = files.refresh(clock()).await;
        if let Some(roots) = roots {
            tracing::info!(not_after = roots.not_after(), "new roots from files");
            trusted.publish(Some(roots));
        }
        if let Some(identity) = identity {
            tracing::info!(id = %identity.id(), not_after = identity.not_after(), "new identity from files");
            publisher.publish(Some(Arc::new(identity)));
        }
        let wait = if refused.is_empty() {
            backoff.reset();
            interval
        } else {
            renewals.failed(clock());
            // A rotation in two steps shows a certificate without its key for a moment: look again soon.
            backoff.next(random.f64()).min(interval)
        };
        let (identity, roots) = (publisher.load_full(), trusted.load_full());
        if let Some(identity) = &*identity {
            leaf.look(identity, clock());
        }
        let of_identity = identity.iter().map(|identity| identity.bundles());
        ending.look(&of_identity.chain(&*roots).collect::<Vec<_>>(), clock());
        if refused != said {
            for problem in &refused {
                let in_use = publisher.load_full().is_some() || trusted.load_full().is_some();
                tracing::warn!(%problem, in_use, "certificate provider: what was read last stays in use");
            }
            let all = refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            refused_now.publish(Some(all).filter(|all| !all.is_empty()).map(Into::into));
            said = refused;
        }
        tokio::time::sleep(wait).await;
    }
}
