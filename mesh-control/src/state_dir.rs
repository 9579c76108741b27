//! The control plane's state directory: a place of its own (mode 0700) for the CA key, the root
//! certificate, spent join tokens, the last registrations and the last good manifests.
//!
//! Refuses to know what the files mean. A secret is opened once, its mode and owner are checked on the open file,
//! and it is written whole or not at all: on disk with its name when the call returns, unless it can be lost. In a
//! directory that others may change they could put their own in its place, so such a one is not used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Larger files are not ours, unless their reader knows better.
const MAX_FILE: u64 = 16 << 20;

/// The state directory, created on first use.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// The user as whom this process makes files; without users 0.
    user: u32,
    /// For what must not be lost.
    sync: HowToSync,
}

/// How a directory's entries are brought to disk.
type HowToSync = fn(&Path) -> io::Result<()>;

/// Why the state directory or a file in it cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The operating system refused.
    #[error("state: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A secret that others than its owner can read.
    #[error(
        "state: {} has mode {mode:03o} and can be read by others; make it yours alone with: chmod 600 {}",
        path.display(), path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory that others may change, or a file or directory of somebody else.
    #[error("state: {} {reason}", path.display())]
    NotOurs {
        /// The file or directory.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A file that does not hold what it should.
    #[error("state: {} cannot be used: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

impl StateDir {
    /// Opens the directory, creating it (mode 0700) and its parents where missing. One that is there must be of this
    /// user or of root, and nobody else may write to it.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { action: "create", path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        create_private_dir(path).map_err(failed)?;
        let user = refuse_shared(path)?;
        Ok(Self { path: path.to_owned(), user, sync: sync_dir })
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A directory inside, created (mode 0700) where missing.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, StateError> {
        let path = self.path(name);
        let created = create_private_dir(&path).and_then(|()| (self.sync)(&self.path));
        created.map_err(|source| StateError::Io { action: "create", path: path.clone(), source })?;
        Ok(path)
    }

    /// Reads a file; `None` if it does not exist.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        self.read_within(name, MAX_FILE)
    }

    /// The same of one that may have so many bytes.
    pub(crate) fn read_within(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, StateError> {
        self.read_checked(name, most, |_, _| Ok(()))
    }

    /// Reads a secret, which is wiped when it is dropped; `None` if it does not exist. Refuses one that group or others can
    /// read.
    pub(crate) fn read_secret(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        Ok(self
            .read_checked(name, MAX_FILE, |path, metadata| refuse_too_open(path, metadata, self.user))?
            .map(Zeroizing::new))
    }

    fn read_checked(
        &self,
        name: &str,
        most: u64,
        check: impl FnOnce(&Path, &fs::Metadata) -> Result<(), StateError>,
    ) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(name);
        let failed = |source| StateError::Io { action: "read", path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        // On the open file: what is checked is what is read.
        let metadata = file.metadata().map_err(failed)?;
        check(&path, &metadata)?;
        // With room for all of it, and for the look at its end: a buffer that grows leaves copies behind.
        let mut content = Vec::with_capacity(usize::try_from(metadata.len().min(most)).unwrap_or_default() + 64);
        file.take(most + 1).read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > most {
            return Err(StateError::Content { path, reason: format!("it is larger than {} MiB", most >> 20) });
        }
        Ok(Some(content))
    }

    /// Writes a secret unless there is one already (another process may have been faster) and gives
    /// the one that is there now; on disk when it returns.
    pub(crate) fn write_once(&self, name: &str, content: &[u8]) -> Result<Zeroizing<Vec<u8>>, StateError> {
        let path = self.path(name);
        let failed = |source| StateError::Io { action: "write", path: path.clone(), source };
        match write_first(&path, &self.path(&format!(".{name}.{}", unique())), content) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        // Also that of a faster one, who may not be done: it counts from here on.
        (self.sync)(&self.path).map_err(failed)?;
        Ok(self.read_secret(name)?.unwrap_or_else(|| Zeroizing::new(content.to_vec())))
    }

    /// Writes a file whole or not at all, readable by its owner only; on disk when it returns.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        self.replace(name, content, true)
    }

    /// The same for what can be lost: the system brings it to disk in its own time, so many files are written fast.
    pub(crate) fn write_in_time(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        self.replace(name, content, false)
    }

    /// Puts one file in the place of another; on disk when it returns.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), StateError> {
        let path = self.path(to);
        let renamed = fs::rename(self.path(from), &path).and_then(|()| (self.sync)(&self.path));
        renamed.map_err(|source| StateError::Io { action: "replace", path, source })
    }

    /// Removes a file, if it is there; gone from the disk when it returns.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StateError> {
        let removed = match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.and_then(|()| (self.sync)(&self.path)),
        };
        removed.map_err(|source| StateError::Io { action: "remove", path: self.path(name), source })
    }

    fn replace(&self, name: &str, content: &[u8], now: bool) -> Result<(), StateError> {
        let path = self.path(name);
        let temporary = self.path(&format!(".{name}.new"));
        let write = || -> io::Result<()> {
            // A leftover of a crash must not lend its mode to the new file.
            match fs::remove_file(&temporary) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut file = private_file().create_new(true).write(true).open(&temporary)?;
            file.write_all(content)?;
            if now {
                file.sync_all()?;
            }
            fs::rename(&temporary, &path)?;
            // Else a power cut may bring back the file of before, though what came after it is on disk.
            if now { (self.sync)(&self.path) } else { Ok(()) }
        };
        write().map_err(|source| StateError::Io { action: "write", path: path.clone(), source })
    }
}

/// Writes a file, readable by its owner only, unless there is one: that is the error `AlreadyExists`. `beside` is where it is
/// until it is whole.
pub(crate) fn write_first(path: &Path, beside: &Path, content: &[u8]) -> io::Result<()> {
    // A hard link fails where a rename would replace.
    write_first_by(|from, to| fs::hard_link(from, to), path, beside, content)
}

fn write_first_by(
    link: impl Fn(&Path, &Path) -> io::Result<()>,
    path: &Path,
    beside: &Path,
    content: &[u8],
) -> io::Result<()> {
    write_new(beside, content)?;
    let linked = match link(beside, path) {
        // No links on SMB, exFAT and what some programs serve: it is written in its place, where a crash may leave a part.
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => write_new(path, content),
        linked => linked,
    };
    let removed = fs::remove_file(beside);
    linked.and(removed)
}

/// One that could not be written whole is not left there.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = private_file().create_new(true).write(true).open(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// A part of a name that nobody else gives, in this process or in another one.
pub(crate) fn unique() -> String {
    format!("{}.{:016x}", std::process::id(), fastrand::Rng::new().u64(..))
}

/// Options that create a file with mode 0600.
pub(crate) fn private_file() -> OpenOptions {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "the mode is Unix'"))]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Brings a directory's entries to disk.
#[cfg(unix)]
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Brings a directory's entries to disk; elsewhere than on Unix the system does so on its own terms.
#[cfg(not(unix))]
pub(crate) fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "the mode is Unix'"))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

#[cfg(unix)]
fn refuse_too_open(path: &Path, metadata: &fs::Metadata, user: u32) -> Result<(), StateError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::TooOpen { path: path.to_owned(), mode });
    }
    refuse_foreign(path, metadata.uid(), user)
}

#[cfg(not(unix))]
fn refuse_too_open(_: &Path, _: &fs::Metadata, _: u32) -> Result<(), StateError> {
    Ok(())
}

/// Refuses a directory that others may change; gives the user as whom this process makes files.
#[cfg(unix)]
fn refuse_shared(path: &Path) -> Result<u32, StateError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let failed = |action| move |source| StateError::Io { action, path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(failed("read"))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        let shown = path.display();
        let reason = format!(
            "has mode {mode:03o} and others can put files there; make it yours alone with: chmod go-w {shown}; or name a \
             directory inside of it, which is made as it must be"
        );
        return Err(StateError::NotOurs { path: path.to_owned(), reason });
    }
    // Whose files this process makes only a file tells.
    let probe = path.join(format!(".owner.{}", unique()));
    let made = private_file().create_new(true).write(true).open(&probe).and_then(|file| file.metadata());
    let user = made.map_err(failed("write to"))?.uid();
    fs::remove_file(&probe).map_err(failed("write to"))?;
    refuse_foreign(path, metadata.uid(), user)?;
    Ok(user)
}

#[cfg(not(unix))]
fn refuse_shared(_: &Path) -> Result<u32, StateError> {
    Ok(0)
}

/// Refuses what is neither this user's nor root's.
#[cfg(unix)]
fn refuse_foreign(path: &Path, owner: u32, user: u32) -> Result<(), StateError> {
    if owner == user || owner == 0 {
        return Ok(());
    }
    let reason = format!(
        "belongs to the user {owner} and this process is {user}; run it as that user, or give it away with: chown {user} {}",
        path.display()
    );
    Err(StateError::NotOurs { path: path.to_owned(), reason })
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn directory_and_files_are_made_for_their_owner_only() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&home.path().join("a/state")).unwrap();
        dir.write("key", b"secret").unwrap();
        assert_eq!((mode(&dir.path), mode(&dir.path("key"))), (0o700, 0o600));
        assert_eq!(dir.read_secret("key").unwrap().unwrap().as_slice(), b"secret");
        assert!(dir.read_secret("none").unwrap().is_none());
    }

    /// That a power cut leaves it there no test can tell: here it is that the directory is asked for.
    #[test]
    fn what_must_be_on_disk_fails_where_the_directory_cannot_be_brought_there() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        let broken = StateDir { sync: |_| Err(io::Error::other("no")), ..dir.clone() };
        let all = |dir: &StateDir| {
            [
                dir.write("a", b"1"),
                dir.rename("a", "b"),
                dir.write_once("c", b"1").map(drop),
                dir.directory("d").map(drop),
                dir.remove("b"),
            ]
        };
        for tried in all(&broken) {
            assert!(matches!(&tried, Err(StateError::Io { source, .. }) if source.to_string() == "no"), "{tried:?}");
        }
        broken.write_in_time("e", b"1").unwrap();
        broken.remove("none").unwrap();
        for tried in all(&dir) {
            tried.unwrap();
        }
        assert!(sync_dir(&home.path().join("none")).is_err());
    }

    #[test]
    fn what_is_written_once_is_there_whole_also_where_there_are_no_hard_links() {
        let none = |_: &Path, _: &Path| Err(io::Error::from(io::ErrorKind::Unsupported));
        let links = |from: &Path, to: &Path| fs::hard_link(from, to);
        for has_links in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let (path, beside) = (home.path().join("a"), home.path().join(".a"));
            let write = |content: &[u8]| match has_links {
                true => write_first_by(links, &path, &beside, content),
                false => write_first_by(none, &path, &beside, content),
            };
            write(b"one").unwrap();
            assert_eq!(mode(&path), 0o600);
            assert_eq!(write(b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).unwrap(), b"one");
            assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside it");
        }
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        for content in [b"one", b"two"] {
            assert_eq!(dir.write_once("key", content).unwrap().as_slice(), b"one");
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn s94_a_directory_that_others_can_change_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state");
        StateDir::open(&path).unwrap();
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for shared in [0o770, 0o707, 0o720, 0o702, 0o777] {
            set(shared);
            let refused = StateDir::open(&path).unwrap_err();
            assert!(matches!(refused, StateError::NotOurs { .. }), "{refused}");
            assert!(refused.to_string().contains(&format!("mode {shared:03o}")), "{refused}");
        }
        // The control: others may look, for the secrets in it have modes of their own.
        for mode in [0o700, 0o750, 0o755] {
            set(mode);
            assert!(StateDir::open(&path).is_ok(), "{mode:o}");
        }
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing is left there");
        // A directory inside of one that is shared is made as it must be.
        set(0o777);
        assert!(StateDir::open(&path.join("own")).is_ok());
    }

    #[test]
    fn s94_what_belongs_to_somebody_else_is_refused() {
        let home = tempfile::tempdir().unwrap();
        for (owner, good) in [(1_000, true), (0, true), (1_001, false)] {
            assert_eq!(refuse_foreign(home.path(), owner, 1_000).is_ok(), good, "{owner}");
        }
        // A file's owner is looked at as well as its mode: the same directory, as if it were opened by another user.
        let dir = StateDir::open(home.path()).unwrap();
        dir.write("key", b"secret").unwrap();
        assert!(dir.read_secret("key").is_ok(), "the control");
        let metadata = fs::metadata(dir.path("key")).unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid(&metadata);
        assert_eq!(refuse_too_open(&dir.path("key"), &metadata, owner + 1).is_ok(), owner == 0);
    }

    #[test]
    fn s94_a_secret_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateDir::open(home.path()).unwrap();
        dir.write("key", b"secret").unwrap();
        for open in [0o640, 0o604, 0o660, 0o644] {
            fs::set_permissions(dir.path("key"), fs::Permissions::from_mode(open)).unwrap();
            assert!(matches!(dir.read_secret("key"), Err(StateError::TooOpen { mode, .. }) if mode == open));
            // The control: without the check the same file is read.
            assert!(dir.read("key").unwrap().is_some());
        }
    }
}
