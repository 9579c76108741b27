//! What a test's thread logs.

use mesh_testkit::Log;
use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, NoSubscriber};

/// Listens as long as it is held.
pub(crate) struct Listening {
    log: Log,
    /// Where there is but one subscriber, a place in the code that another test's thread comes by first counts as unheard.
    _second: Dispatch,
    _listens: DefaultGuard,
}

impl Listening {
    pub(crate) fn begin() -> Self {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _second = Dispatch::new(NoSubscriber::default());
        Self { log, _second, _listens: tracing::subscriber::set_default(subscriber) }
    }

    /// All of it so far.
    pub(crate) fn text(&self) -> String {
        self.log.text()
    }

    /// Lines that have all of `parts`.
    pub(crate) fn lines(&self, parts: &[&str]) -> usize {
        self.text().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}
