//! [`Served`]: what is served right now. Manifests, registrations and keys of issuers go in, revisions come out.
//!
//! Refuses to know clients.

mod audit;
mod held;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::limit::Pace;
use mesh_core::source::{Publisher, Watched};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

pub(crate) use self::held::Held;
use crate::clock::Clock;
use crate::finding::{Finding, Severity};
use crate::jwks::Keys;
use crate::model::Model;
use crate::registry::Registrations;
use crate::translate::{Changed, Options, World, kept, settle, with_kept};
use crate::xds::{Cache, HOSTS, Resources, Touched};

/// A change after this long a quiet is served at once. Changes that follow a revision sooner are
/// gathered until it has been quiet for as long.
const QUIET: Duration = Duration::from_millis(10);
/// However busy it is, a change is served after this time.
const PATIENCE: Duration = Duration::from_millis(100);
/// Revisions at once, and then each second: no stream of changes, however it is spaced, has the world rebuilt and the
/// clients told more often.
const RATE: (u32, u32) = (4, 16);

/// Turns changes into revisions.
pub(crate) struct Served {
    model: Watched<Model>,
    registrations: Watched<Registrations>,
    keys: Watched<Keys>,
    options: Options,
    findings: Publisher<Vec<Finding>>,
    cache: Arc<Cache>,
    world: Arc<World>,
    held: Held,
    /// Tells the revisions of one run of the control plane from those of another.
    run: String,
    revision: u64,
    pace: Pace,
    /// Of the revision that could not be made.
    failed: Option<Finding>,
    /// A bug, while it is set.
    #[cfg(test)]
    panics: Arc<std::sync::atomic::AtomicBool>,
}

impl Served {
    /// Builds the first revision. Edits that lead nowhere do not take effect in it either, if `held` knows what was
    /// in force before. `run` is this run's [name](run_name).
    pub(crate) fn new(
        model: Watched<Model>,
        registrations: Watched<Registrations>,
        keys: Watched<Keys>,
        options: Options,
        held: Held,
        run: impl Into<String>,
    ) -> Self {
        let run = run.into();
        let issuers = keys.load_full();
        let build =
            |model| World::of(model, (**registrations.load()).clone(), options.clone()).with_keys(issuers.clone());
        let read = model.load_full();
        let before = build(Arc::new(with_kept(&read, held.model())));
        let world = build(read);
        let world = Arc::new(settle(&before, &world).map_or(world, |kept| build(Arc::new(kept))));
        report(&[], world.findings());
        let (findings, _) = Watched::channel(world.findings().to_vec());
        let cache = Cache::new(version(&run, 1), world.clone());
        let pace = Pace::new(RATE, Instant::now());
        Self {
            model,
            registrations,
            keys,
            options,
            findings,
            cache,
            world,
            held,
            run,
            revision: 1,
            pace,
            failed: None,
            #[cfg(test)]
            panics: Arc::default(),
        }
    }

    /// Remembers what an earlier run of the control plane served, if manifests say something else now: a client of states of
    /// the world that comes back has what vanished still.
    pub(crate) fn after(self, former: Option<Model>) -> Self {
        if let Some(former) = former {
            let former = Arc::new(with_kept(&former, self.held.model()));
            let world = World::of(former, (**self.registrations.load()).clone(), self.options.clone());
            self.cache.remember(Arc::new(world.with_keys(self.keys.load_full())));
        }
        self
    }

    /// What is served, now and later.
    pub(crate) fn cache(&self) -> Arc<Cache> {
        self.cache.clone()
    }

    /// What is wrong with it, now and later.
    pub(crate) fn findings(&self) -> Watched<Vec<Finding>> {
        self.findings.watch()
    }

    /// Publishes a revision for every change. Runs for ever.
    pub(crate) async fn run(mut self) {
        let mut fresh_until = Instant::now();
        loop {
            self.changed().await;
            let (now, free) = (Instant::now(), self.pace.next());
            if now < fresh_until.max(free) {
                self.gather(free).await;
            }
            self.pace.take(Instant::now());
            // What is published last stays, as with a manifest that is wrong: the next change may be good.
            let published = catch_unwind(AssertUnwindSafe(|| self.publish()));
            self.failed = published.err().map(|_| unmade());
            fresh_until = Instant::now() + QUIET;
            // Served first: nobody waits for the analysis, not even on a runtime of one thread.
            yield_now().await;
            self.analyse();
            if self.failed.is_none() {
                self.held.store(&kept(&self.world, &self.model.load()));
            }
        }
    }

    /// Takes in what changes, until it has been quiet for a while and not before `earliest`.
    async fn gather(&mut self, earliest: Instant) {
        let latest = (Instant::now() + PATIENCE).max(earliest);
        loop {
            let quiet = (Instant::now() + QUIET).clamp(earliest, latest);
            tokio::select! {
                biased;
                () = sleep_until(quiet) => break,
                () = self.changed() => {}
            }
        }
    }

    fn publish(&mut self) {
        self.revision += 1;
        let (world, touched) = self.next();
        audit::record(self.world.model(), world.model());
        let world = Arc::new(world);
        let resources: Arc<dyn Resources> = world.clone();
        // Of one that came to nothing a part may be out, and what is different since then is not all that is.
        let touched = if self.failed.is_some() { Touched::All } else { touched };
        self.cache.publish(version(&self.run, self.revision), &resources, &touched);
        #[cfg(test)]
        assert!(!self.panics.load(std::sync::atomic::Ordering::Relaxed), "a test's bug, with all of it out");
        self.world = world;
    }

    /// Says what is wrong with what is served now.
    fn analyse(&self) {
        let findings: Vec<Finding> = self.failed.iter().chain(self.world.findings()).cloned().collect();
        let before = self.findings.load_full();
        if *before != findings {
            report(&before, &findings);
            self.findings.publish(findings);
        }
    }

    /// The next world, and what is different in it.
    fn next(&self) -> (World, Touched) {
        let (model, registrations) = (self.model.load_full(), (**self.registrations.load()).clone());
        let keys = self.keys.load_full();
        if let Some((world, changed)) = self.world.follow(&model, registrations.clone()) {
            return match self.world.has_keys(&keys) {
                true => (world, changed.map_or(Touched::All, touched)),
                false => (world.with_keys(keys), Touched::All),
            };
        }
        let build = |model| World::of(model, registrations.clone(), self.options.clone()).with_keys(keys.clone());
        let world = build(model);
        // Edits that lead nowhere do not take effect.
        let world = settle(&self.world, &world).map_or(world, |kept| build(Arc::new(kept)));
        (world, Touched::All)
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.model.changed() => {}
            () = self.registrations.changed() => {}
            () = self.keys.changed() => {}
        }
    }
}

fn touched(changed: Changed) -> Touched {
    let mut subjects = changed.hosts;
    subjects.extend(changed.addresses.iter().map(ToString::to_string));
    if changed.names {
        subjects.insert(HOSTS.to_owned());
    }
    Touched::Subjects(subjects)
}

/// What is said while the newest configuration is not served.
fn unmade() -> Finding {
    let text = "what changed last brings a bug of mesh to light, and what was served before it is served on: take the change back, \
                and report the bug with the panic that is in the log";
    Finding::about_file(Severity::Error, &Arc::from(""), 0, text)
}

/// A name that no other run of a control plane has, though it began in the same second: a client that comes from another one
/// says which versions it has, and these are not ours.
pub(crate) fn run_name(clock: &Clock) -> String {
    format!("{}-{:016x}", clock.unix_seconds(), fastrand::Rng::new().u64(..))
}

fn version(run: &str, revision: u64) -> String {
    format!("{run}/{revision}")
}

/// Logs what is newly wrong.
fn report(before: &[Finding], now: &[Finding]) {
    let before: HashSet<_> = before.iter().collect();
    for finding in now.iter().filter(|finding| !before.contains(finding)) {
        match finding.severity {
            Severity::Error => tracing::error!(target: "mesh::manifests", "{finding}"),
            Severity::Warning => tracing::warn!(target: "mesh::manifests", "{finding}"),
            Severity::Info => tracing::info!(target: "mesh::manifests", "{finding}"),
        }
    }
}

#[cfg(test)]
mod tests;
