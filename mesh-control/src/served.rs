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
use crate::translate::{Options, World, settle};
use crate::xds::Published;

/// Changes that follow each other this closely become one revision. Short, for the directory has waited
/// for its own quiet already; it gathers processes that start together.
const QUIET: Duration = Duration::from_millis(20);
/// However busy it is, a change is served after this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Turns changes into revisions.
pub(crate) struct Served {
    model: Watched<Model>,
    registrations: Watched<Vec<Registration>>,
    options: Options,
    findings: Publisher<Vec<Finding>>,
    published: Publisher<Published>,
    world: Arc<World>,
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
        let world = Arc::new(World::build_with(&model.load(), &registrations.load(), options.clone()));
        report(&[], world.findings());
        let (findings, _) = Watched::channel(world.findings().to_vec());
        let (published, _) = Watched::channel(Published::new(version(started, 1), world.clone()));
        Self { model, registrations, options, findings, published, world, started, revision: 1 }
    }

    /// What is served, now and later.
    pub(crate) fn published(&self) -> Watched<Published> {
        self.published.watch()
    }

    /// What is wrong with it, now and later.
    pub(crate) fn findings(&self) -> Watched<Vec<Finding>> {
        self.findings.watch()
    }

    /// Publishes a revision for every change. Runs for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.changed().await;
            let latest = Instant::now() + PATIENCE;
            loop {
                let quiet = (Instant::now() + QUIET).min(latest);
                tokio::select! {
                    biased;
                    () = sleep_until(quiet) => break,
                    () = self.changed() => {}
                }
            }
            self.revision += 1;
            let version = version(self.started, self.revision);
            self.world = Arc::new(self.next());
            report(&self.findings.load_full(), self.world.findings());
            self.findings.publish(self.world.findings().to_vec());
            self.published.publish(Published::new(version, self.world.clone()));
        }
    }

    /// The next world, in which edits that lead nowhere have not taken effect.
    fn next(&self) -> World {
        let build = |model: &Model| World::build_with(model, &self.registrations.load(), self.options.clone());
        let world = build(&self.model.load());
        settle(&self.world, &world).map_or(world, |kept| build(&kept))
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

    #[tokio::test(start_paused = true)]
    async fn changes_in_quick_succession_are_one_revision_and_none_waits_for_ever() {
        let (publisher, registrations) = Watched::channel(Vec::new());
        let model = Watched::fixed(Model::default());
        let clock = Clock::new(|| std::time::UNIX_EPOCH + Duration::from_secs(7));
        let served = Served::new(model, registrations, Options::default(), &clock);
        let mut published = served.published();
        assert_eq!(published.load().version(), "7/1");
        let begin = Instant::now();
        tokio::select! {
            () = served.run() => unreachable!("it runs for ever"),
            () = async {
                for port in 1..=3 {
                    publisher.publish(vec![registration(port)]);
                    mesh_testkit::clock::pass(QUIET / 2).await;
                }
                published.wait_for(|p| p.version() == "7/2").await;
                // The last change came after 20 ms and was followed by 20 ms of quiet.
                assert_eq!(begin.elapsed().as_millis() / 10, 4);
                let busy = Instant::now();
                while published.load().version() == "7/2" {
                    publisher.publish(Vec::new());
                    mesh_testkit::clock::pass(QUIET / 2).await;
                }
                assert_eq!(busy.elapsed().as_secs(), PATIENCE.as_secs());
            } => {}
        }
    }
}
