//! Until when leaves of a root may live: what a rollover must know before it takes a root out, restarts and other
//! processes that sign with the same state directory included.
//!
//! ```text
//! live-leaves/<root, 16 hexadecimal digits>-<seconds since the Unix epoch>
//! ```
//!
//! A record says a little more than is true, so that one is written once in a while and not with every leaf. The
//! latest of a root counts; nothing is ever lost by two writers.

use std::fs;
use std::io;
use std::path::PathBuf;

use mesh_core::identity::root_name as name;
use parking_lot::Mutex;

use crate::state_dir::{StateDir, StateError, private_file, sync_dir};

const DIRECTORY: &str = "live-leaves";

/// The records of a state directory.
pub(super) struct LiveLeaves {
    directory: PathBuf,
    /// What this process has recorded last.
    recorded: Mutex<Option<(String, u64)>>,
}

impl LiveLeaves {
    /// Opens them; whether they are new, so that older leaves are not in them.
    pub(super) fn open(dir: &StateDir) -> Result<(Self, bool), StateError> {
        let fresh = !dir.path(DIRECTORY).exists();
        let directory = dir.directory(DIRECTORY)?;
        Ok((Self { directory, recorded: Mutex::default() }, fresh))
    }

    /// Notes that a leaf of `root` lives until `not_after`; on disk when it returns. `spare` seconds are added, so
    /// that leaves up to there need no record.
    pub(super) fn note(&self, root: &[u8], not_after: u64, spare: u64) -> io::Result<()> {
        let root = name(root);
        let mut recorded = self.recorded.lock();
        if recorded.as_ref().is_some_and(|(of, until)| *of == root && *until >= not_after) {
            return Ok(());
        }
        let until = not_after.saturating_add(spare);
        private_file().create(true).truncate(true).write(true).open(self.directory.join(format!("{root}-{until}")))?;
        sync_dir(&self.directory)?;
        for (of, earlier) in self.records()? {
            if of == root && earlier < until {
                // Somebody else may have removed it.
                let _ = fs::remove_file(self.directory.join(format!("{of}-{earlier}")));
            }
        }
        *recorded = Some((root, until));
        Ok(())
    }

    /// Until when leaves of `root` may live; 0 = there were none.
    pub(super) fn until(&self, root: &[u8]) -> io::Result<u64> {
        let root = name(root);
        Ok(self.records()?.into_iter().filter(|(of, _)| *of == root).map(|(_, until)| until).max().unwrap_or_default())
    }

    /// Forgets the leaves of `root`: they are to be cut off.
    pub(super) fn forget(&self, root: &[u8]) -> io::Result<()> {
        let root = name(root);
        for (of, until) in self.records()? {
            if of == root {
                fs::remove_file(self.directory.join(format!("{of}-{until}")))?;
            }
        }
        sync_dir(&self.directory)
    }

    /// Where the records of `root` are, as a pattern.
    pub(super) fn records_of(&self, root: &[u8]) -> PathBuf {
        self.directory.join(format!("{}-*", name(root)))
    }

    /// An error of the records as one of the state directory.
    pub(super) fn failed(&self, action: &'static str, source: io::Error) -> StateError {
        StateError::Io { action, path: self.directory.clone(), source }
    }

    fn records(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let file = entry?.file_name();
            let parts = file.to_str().and_then(|name| name.split_once('-'));
            if let Some((root, until)) = parts
                && let Ok(until) = until.parse()
            {
                found.push((root.to_owned(), until));
            }
        }
        Ok(found)
    }
}
