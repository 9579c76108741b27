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
        let (published, found) = build(&model, &registrations, &options, version(started, 1));
        report(&[], &found);
        let (findings, _) = Watched::channel(found);
        let (published, _) = Watched::channel(published);
        Self { model, registrations, options, findings, published, started, revision: 1 }
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
            let (published, findings) = build(&self.model, &self.registrations, &self.options, version);
            report(&self.findings.load_full(), &findings);
            self.findings.publish(findings);
            self.published.publish(published);
        }
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

fn build(
    model: &Watched<Model>,
    registrations: &Watched<Vec<Registration>>,
    options: &Options,
    version: String,
) -> (Published, Vec<Finding>) {
    let world = World::build_with(&model.load(), &registrations.load(), options.clone());
    let findings = world.findings().to_vec();
    (Published::new(version, Arc::new(world)), findings)
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
