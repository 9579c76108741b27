//! Live reload: a directory of manifests, watched, published as a validated [`Model`].
//!
//! The directory is watched rather than its files, so an editor's rename and a ConfigMap's swapped
//! symbolic link are both seen. Subdirectories are not entered. If the directory itself is removed the
//! last model stays, and the directory must be watched anew. Work happens on the watcher's own
//! thread, one reload at a time, 100 ms after the last change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::source::{Publisher, Watched};
use notify::{RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use parking_lot::Mutex;

use super::files::REST;
use super::kept::Kept;
use super::{FileSet, Limits};
use crate::model::Model;

/// How long a change waits for others to follow it.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// How long a reading waits at most for files that are being written.
const PATIENCE: Duration = Duration::from_secs(1);

/// A watched directory. Dropping it ends the watching; the last model stays readable.
#[derive(Debug)]
pub struct Directory {
    model: Watched<Model>,
    _watcher: Debouncer<RecommendedWatcher, RecommendedCache>,
}

impl Directory {
    /// The newest model; objects and files that stopped being valid keep their last good version in it
    /// and have a finding.
    pub fn model(&self) -> Watched<Model> {
        self.model.clone()
    }
}

/// A directory that cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot watch {path:?} for manifests: {source}; check that the directory exists and that inotify watches are left"
)]
pub struct WatchError {
    path: PathBuf,
    source: notify::Error,
}

/// Reads `path` (a directory, or one file) and keeps reading it as it changes.
///
/// # Errors
/// The path does not exist or the operating system refuses to watch it. A manifest that is wrong is a
/// finding of the model, not an error.
pub fn watch(path: &Path, limits: Limits) -> Result<Directory, WatchError> {
    watch_files(path, FileSet::new([path.to_owned()], limits))
}

/// The same, taking up what an earlier process kept of the files and keeping what is read.
pub(crate) fn watch_and_keep(path: &Path, limits: Limits, kept: Kept) -> Result<Directory, WatchError> {
    watch_files(path, FileSet::new([path.to_owned()], limits).kept_in(kept))
}

fn watch_files(path: &Path, files: FileSet) -> Result<Directory, WatchError> {
    let failed = |source| WatchError { path: path.to_owned(), source };
    // A file is watched through its directory: a rename replaces the file and with it the watch on it.
    let watched = if path.is_file() { path.parent().unwrap_or(path) } else { path };
    let watched = if watched.as_os_str().is_empty() { Path::new(".") } else { watched };

    let (publisher, model) = Watched::channel(Model::default());
    let reload = Arc::new(Mutex::new(Reload { files, publisher, started: false }));
    let on_change = reload.clone();
    let mut watcher = new_debouncer(DEBOUNCE, None, move |result: DebounceEventResult| match result {
        Ok(events) if events.iter().all(|event| event.kind.is_access()) => {}
        Ok(_) => on_change.lock().run_at_rest(),
        Err(errors) => {
            for error in errors {
                tracing::warn!(%error, "watching manifests: an error; reading them all again");
            }
            on_change.lock().run_at_rest();
        }
    })
    .map_err(failed)?;
    watcher.watch(watched, RecursiveMode::NonRecursive).map_err(failed)?;
    // Watching has begun, so no change falls between this first reading and the events.
    reload.lock().run();
    Ok(Directory { model, _watcher: watcher })
}

#[derive(Debug)]
struct Reload {
    files: FileSet,
    publisher: Publisher<Model>,
    started: bool,
}

impl Reload {
    /// The same once nobody writes: the event of one file comes while another is half written. Time is waited for on
    /// the watcher's thread, where events gather meanwhile.
    fn run_at_rest(&mut self) {
        let begun = Instant::now();
        while self.files.is_being_written() && begun.elapsed() < PATIENCE {
            std::thread::sleep(REST);
        }
        self.run();
    }

    fn run(&mut self) {
        let manifests = self.files.read();
        let previous = match std::mem::replace(&mut self.started, true) {
            true => self.publisher.load_full(),
            false => Arc::new(Model::build(&self.files.before(), None)),
        };
        let model = Model::build(&manifests, Some(&previous));
        tracing::info!(objects = manifests.len(), findings = model.findings().len(), "manifests read");
        self.publisher.publish(model);
        // Nobody waits for the disk.
        self.files.keep(self.publisher.load_full().stale());
    }
}
