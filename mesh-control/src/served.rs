//! [`Served`]: what is served right now. Manifests and registrations go in, revisions come out.
//!
//! Refuses to know clients.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::source::{Publisher, Watched};
use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use crate::finding::{Finding, Severity};
use crate::model::Model;
use crate::registry::Registration;
use crate::translate::{Options, World};
use crate::xds::{Cache, Resources, Touched};

/// A change after this long a quiet is served at once. Changes that follow a revision sooner are
/// gathered until it has been quiet for as long.
const QUIET: Duration = Duration::from_millis(10);
/// However busy it is, a change is served after this time.
const PATIENCE: Duration = Duration::from_millis(100);

/// Turns changes into revisions.
pub(crate) struct Served {
    model: Watched<Model>,
    registrations: Watched<Vec<Registration>>,
    options: Options,
    findings: Publisher<Vec<Finding>>,
    cache: Arc<Cache>,
    /// Tells the revisions of one run of the control plane from those of another.
    started: u64,
    revision: u64,
}

impl Served {
    /// Builds the first revision.
    pub(crate) fn new(
        model: Watched<Model>,
        registrations: Watched<Vec<Registration>>,
        options: Options,
        clock: &Clock,
    ) -> Self {
        let started = clock.unix_seconds();
        let world = World::build_with(&model.load(), &registrations.load(), options.clone());
        report(&[], world.findings());
        let (findings, _) = Watched::channel(world.findings().to_vec());
        let cache = Cache::new(version(started, 1), Arc::new(world));
        Self { model, registrations, options, findings, cache, started, revision: 1 }
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
            if Instant::now() < fresh_until {
                self.gather().await;
            }
            self.publish();
            fresh_until = Instant::now() + QUIET;
        }
    }

    async fn gather(&mut self) {
        let latest = Instant::now() + PATIENCE;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            tokio::select! {
                biased;
                () = sleep_until(quiet) => break,
                () = self.changed() => {}
            }
        }
    }

    fn publish(&mut self) {
        self.revision += 1;
        let world = World::build_with(&self.model.load(), &self.registrations.load(), self.options.clone());
        report(&self.findings.load_full(), world.findings());
        self.findings.publish(world.findings().to_vec());
        let world: Arc<dyn Resources> = Arc::new(world);
        self.cache.publish(version(self.started, self.revision), &world, &Touched::All);
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.model.changed() => {}
            () = self.registrations.changed() => {}
        }
    }
}

fn version(started: u64, revision: u64) -> String {
    format!("{started}/{revision}")
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
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn registration(port: u16) -> Registration {
        Registration {
            service: "reviews".into(),
            namespace: "default".into(),
            service_port: 9080,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            labels: Default::default(),
            locality: Default::default(),
            mesh_tls: false,
            port_protocol: "http".into(),
            workload: String::new(),
            service_account: "reviews".into(),
        }
    }

    /// A served revision that runs, and the time at which each later one came.
    async fn watch(cache: &Cache, mut until: impl FnMut(&str) -> bool) {
        while !until(&cache.version()) {
            mesh_testkit::clock::pass(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_change_is_served_at_once_those_that_follow_together_and_none_waits_for_ever() {
        let (publisher, registrations) = Watched::channel(Vec::new());
        let model = Watched::fixed(Model::default());
        let clock = Clock::new(|| std::time::UNIX_EPOCH + Duration::from_secs(7));
        let served = Served::new(model, registrations, Options::default(), &clock);
        let cache = served.cache();
        assert_eq!(&*cache.version(), "7/1");
        tokio::select! {
            () = served.run() => unreachable!("it runs for ever"),
            () = async {
                mesh_testkit::clock::pass(QUIET).await;
                let begin = Instant::now();
                publisher.publish(vec![registration(1)]);
                watch(&cache, |version| version == "7/2").await;
                assert!(begin.elapsed() < QUIET / 2, "{:?}", begin.elapsed());
                for port in 2..=4 {
                    publisher.publish(vec![registration(port)]);
                    mesh_testkit::clock::pass(QUIET / 2).await;
                }
                assert_eq!(&*cache.version(), "7/2", "gathered");
                watch(&cache, |version| version == "7/3").await;
                let busy = Instant::now();
                while &*cache.version() == "7/3" {
                    publisher.publish(Vec::new());
                    mesh_testkit::clock::pass(QUIET / 2).await;
                }
                assert!(busy.elapsed() >= PATIENCE && busy.elapsed() < 2 * PATIENCE, "{:?}", busy.elapsed());
            } => {}
        }
    }
}
