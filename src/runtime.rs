//! The control runtime: one thread of our own for xDS, certificates and other background work, so that an
//! application that blocks its runtime keeps its identity and its configuration. And whoever notices that from there.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::identity::Identity;
use mesh_core::source::{Watched, WatchedIdentity};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

/// The thread; dropping it stops everything that runs there.
#[derive(Debug)]
pub(crate) struct ControlRuntime {
    handle: Handle,
    // Dropping the sender ends the thread's `block_on`, which drops the runtime and its tasks.
    _stop: oneshot::Sender<()>,
}

impl ControlRuntime {
    /// Starts the thread `mesh-control`.
    ///
    /// # Errors
    /// The operating system gives no thread or no event queue.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name("mesh-control".to_owned()).spawn(move || {
            // The sender is only ever dropped, never used.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, _stop: stop })
    }

    /// Runs a fallible task on the thread and waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        self.handle.spawn(task).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The identities of `source`, in whose bundles each of `aliases` is a further name of their own trust domain.
    pub(crate) fn aliased(&self, mut source: WatchedIdentity, aliases: &[TrustDomain]) -> WatchedIdentity {
        if aliases.is_empty() {
            return source;
        }
        // Looked at first: one that comes in between is the last. Who waits for a first identity has to know that none will come.
        if source.is_final() {
            return Watched::fixed(with_aliases(&source.load(), aliases));
        }
        let aliases = aliases.to_vec();
        let (publisher, watched) = Watched::channel(with_aliases(&source.load(), &aliases));
        let (stop, mut stopped) = oneshot::channel::<()>();
        self.handle.spawn(async move {
            loop {
                tokio::select! {
                    _ = &mut stopped => return,
                    () = source.changed() => publisher.publish(with_aliases(&source.load(), &aliases)),
                }
            }
        });
        // The task, and with it the source, ends with the last reader.
        watched.with_guard(Arc::new(stop))
    }

    /// Watches from the thread whether another runtime runs tasks, until either ends.
    pub(crate) fn watch(&self, other: Handle) -> Arc<Pulse> {
        let pulse = Arc::<Pulse>::default();
        self.handle.spawn(pulse.clone().take(other));
        pulse
    }
}

fn with_aliases(identity: &Option<Arc<Identity>>, aliases: &[TrustDomain]) -> Option<Arc<Identity>> {
    let identity = identity.as_ref()?;
    let mut bundles = identity.bundles().clone();
    for alias in aliases {
        if bundles.iter().any(|(domain, _)| domain == alias) {
            tracing::warn!(
                target: "mesh::audit",
                %alias,
                "an alias of the trust domain has roots of its own: who they vouch for is let in by rules for our names",
            );
        }
        bundles.alias(alias.clone(), identity.id().trust_domain());
    }
    Some(Arc::new(identity.trusting(bundles)))
}

/// Whether a runtime runs its tasks: it is given one twice a second, and has a second for it. One worker that is free is
/// enough.
#[derive(Debug)]
pub(crate) struct Pulse {
    begun: Instant,
    // Milliseconds from then to the task that has not run yet, and one; 0 = there is none.
    waits: AtomicU64,
    stalls: AtomicU64,
}

/// Time between two tasks.
const PAUSE: Duration = Duration::from_millis(500);
/// A runtime that runs nothing for this long stands still.
const STALL: Duration = Duration::from_secs(1);

impl Default for Pulse {
    fn default() -> Self {
        Self { begun: Instant::now(), waits: AtomicU64::new(0), stalls: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// For how long the runtime has run nothing now; zero below a second.
    pub(crate) fn stalled(&self) -> Duration {
        let Some(since) = self.waits.load(Ordering::Relaxed).checked_sub(1) else { return Duration::ZERO };
        let stalled = self.begun.elapsed().saturating_sub(Duration::from_millis(since));
        if stalled < STALL { Duration::ZERO } else { stalled }
    }

    /// How often it did so for a second or longer.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    async fn take(self: Arc<Self>, runtime: Handle) {
        loop {
            let given = Instant::now();
            let mut task = runtime.spawn(async {});
            let since = given.duration_since(self.begun).as_millis() as u64;
            self.waits.store(since + 1, Ordering::Relaxed);
            let ran = match timeout_at(given + STALL, &mut task).await {
                Ok(ran) => ran,
                Err(_) => {
                    self.stalls.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(
                        target: "mesh::lifecycle",
                        "the application's runtime has run no task for a second: what blocks its threads belongs into \
                         spawn_blocking; requests stand still meanwhile, identity and configuration do not"
                    );
                    let ran = task.await;
                    let stalled = given.elapsed();
                    tracing::warn!(target: "mesh::lifecycle", ?stalled, "the application's runtime runs tasks again");
                    ran
                }
            };
            self.waits.store(0, Ordering::Relaxed);
            if ran.is_err() {
                // The runtime has ended.
                return;
            }
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_testkit::{TestCa, clock};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        Builder::new_current_thread().build().unwrap()
    }

    #[tokio::test]
    async fn identities_of_any_source_know_the_former_names_of_their_trust_domain() {
        let (ca, control) = (TestCa::new(), ControlRuntime::start().unwrap());
        let former = "spiffe://old.test/ns/default/sa/web".parse().unwrap();
        let aliased = |identity: &Option<Arc<Identity>>| {
            let identity = identity.as_ref().unwrap();
            (identity.generation(), identity.bundles().aliased(&former).map(|id| id.to_string()))
        };
        let present = Some(ca.id("default", "web").to_string());
        let (publisher, source) = Watched::channel(Some(ca.identity("default", "reviews")));
        let (generation, _) = aliased(&source.load());
        let mut named = control.aliased(source.clone(), &[TrustDomain::new("old.test").unwrap()]);
        assert_eq!(aliased(&named.load()), (generation + 1, present.clone()), "at once");
        assert_eq!(aliased(&control.aliased(source, &[]).load()), (generation, None), "the control");
        assert!(!named.is_final());
        publisher.publish(None);
        named.wait_for(Option::is_none).await;
        let renewed = ca.identity("default", "reviews");
        publisher.publish(Some(renewed.clone()));
        let identity = named.wait_for(Option::is_some).await;
        assert_eq!(aliased(&identity), (renewed.generation() + 1, present));
        drop(named);
        while publisher.readers() > 0 {
            tokio::task::yield_now().await;
        }
        // What will not change does not with them either.
        let fixed = control.aliased(Watched::fixed(Some(renewed)), &[TrustDomain::new("old.test").unwrap()]);
        assert!(fixed.is_final() && aliased(&fixed.load()).1.is_some());
        assert!(control.aliased(Watched::fixed(None), &[TrustDomain::new("old.test").unwrap()]).is_final());
    }

    /// R36: within two seconds. Only time that is told to passes.
    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_runs_nothing_is_noticed_within_two_seconds_and_one_that_does_is_not_r36() {
        let (standing, control) = (runtime(), runtime());
        let [mut watched, mut beside] = [&standing, &control].map(|runtime| {
            let pulse = Arc::<Pulse>::default();
            (pulse.clone(), Handle::current().spawn(pulse.take(runtime.handle().clone())))
        });
        let run = |runtime: &tokio::runtime::Runtime| {
            std::thread::scope(|scope| {
                let some = async {
                    for _ in 0..5 {
                        tokio::task::yield_now().await;
                    }
                };
                scope.spawn(|| runtime.block_on(some)).join().unwrap();
            });
        };
        let mut noticed = None;
        for tenth in 0..100_u32 {
            if tenth < 10 {
                run(&standing);
            }
            run(&control);
            clock::pass(Duration::from_millis(100)).await;
            if noticed.is_none() && watched.0.stalled() > Duration::ZERO {
                noticed = Some(tenth - 9);
            }
            assert_eq!((beside.0.stalled(), beside.0.stalls()), (Duration::ZERO, 0));
        }
        assert!(noticed.is_some_and(|tenths| (10..=20).contains(&tenths)), "{noticed:?}");
        assert!(watched.0.stalled() >= Duration::from_secs(8), "{:?}", watched.0);
        assert_eq!(watched.0.stalls(), 1);

        run(&standing);
        clock::pass(Duration::from_millis(1)).await;
        assert_eq!((watched.0.stalled(), watched.0.stalls()), (Duration::ZERO, 1), "it goes on");
        // Whoever watches does not outlive what is watched.
        standing.shutdown_background();
        control.shutdown_background();
        clock::pass(Duration::from_secs(2)).await;
        for (_, task) in [&mut watched, &mut beside] {
            task.await.unwrap();
        }
        assert_eq!(watched.0.stalled(), Duration::ZERO);
    }
}
