//! A file of the system that changes under a running process: the hosts file, by the kubelet and by people, and `resolv.conf`, by
//! DHCP and VPNs. It is looked at again now and then, and read where it is another one than before.
//!
//! One that cannot be read for the moment, is being written, is too large or hangs is left as it was until the next look.
//!
//! Refuses to know what it says.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::secret::Reading;

/// No file is looked at more often.
pub(super) const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);
/// A file has no more bytes: a hundred thousand entries are a tenth of that.
const MOST: u64 = 32 << 20;

/// Who writes a file goes on within this once it is empty.
const A_MOMENT: Duration = Duration::from_millis(20);

/// A file, and which version of it was read last.
pub(super) struct SystemFile<T> {
    path: PathBuf,
    seen: Mutex<Seen>,
    reading: Reading<Option<Changed<T>>>,
    read: HowToRead,
}

struct Seen {
    /// Of what was read; none if there was none.
    version: Option<Version>,
    looked_at: Instant,
}

/// What a file has come to say, if it is one still, and its version.
type Changed<T> = (Option<T>, Option<Version>);

/// How a file is read.
type HowToRead = fn(&Path) -> io::Result<Vec<u8>>;

/// What tells two contents of one file apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: Option<SystemTime>,
    length: u64,
    node: Node,
}

/// Its place, and when that changed last: one that is put in another's place may be as old and as long.
#[cfg(unix)]
type Node = (u64, u64, i64, i64);
#[cfg(not(unix))]
type Node = ();

impl<T: Send + 'static> SystemFile<T> {
    /// Reads the file for the first time, on the caller's thread.
    pub(super) fn open(path: PathBuf) -> (Self, io::Result<Vec<u8>>) {
        // Before it is read: what changes in between is seen as a change later.
        let version = Version::of(&path).ok().flatten();
        let content = read(&path);
        let seen = Seen { version: version.filter(|_| content.is_ok()), looked_at: Instant::now() };
        (Self { path, seen: Mutex::new(seen), reading: Reading::default(), read }, content)
    }

    /// Whether it is time for another look, which is the caller's then.
    pub(super) fn is_due(&self) -> bool {
        let mut seen = self.seen.lock();
        let is_due = seen.looked_at.elapsed() >= LOOKED_AT_EVERY;
        if is_due {
            seen.looked_at = Instant::now();
        }
        is_due
    }

    /// What it says now, if it is another one than before: what `parse` makes of it, or nothing if it is gone. Takes seconds at most.
    pub(super) async fn changed(&self, parse: impl FnOnce(&[u8]) -> T + Send + 'static) -> Option<Option<T>> {
        let (path, read, before) = (self.path.clone(), self.read, self.seen.lock().version);
        // It may be long.
        let parse = |(content, version): Changed<Vec<u8>>| (content.map(|content| parse(&content)), version);
        let read = move || Ok(read_again(&path, before, read).map(parse));
        let (content, version) = self.reading.of(read).await.ok().flatten()?;
        self.seen.lock().version = version;
        Some(content)
    }
}

impl Version {
    /// That of the file there; none if there is none.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(metadata) => {
                let (modified, length) = (metadata.modified().ok(), metadata.len());
                Ok(Some(Self { modified, length, node: node(&metadata) }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(unix)]
fn node(file: &std::fs::Metadata) -> Node {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino(), file.ctime(), file.ctime_nsec())
}

#[cfg(not(unix))]
fn node(_: &std::fs::Metadata) -> Node {}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut content)?;
    match content.len() as u64 > MOST {
        true => Err(io::Error::other("it is larger than 32 MiB")),
        false => Ok(content),
    }
}

/// What is there now; none if that is what was there before, or cannot be told.
fn read_again(
    path: &Path,
    before: Option<Version>,
    read: impl FnOnce(&Path) -> io::Result<Vec<u8>>,
) -> Option<Changed<Vec<u8>>> {
    let version = Version::of(path).ok().filter(|version| *version != before)?;
    if version.is_none() {
        return Some((None, None));
    }
    let content = read(path).ok()?;
    // Who writes it in place begins with an empty one.
    if content.is_empty() {
        std::thread::sleep(A_MOMENT);
    }
    let is_whole = Version::of(path).is_ok_and(|after| after == version);
    is_whole.then_some((Some(content), version))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::advance;

    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "10.0.0.1 db\n").unwrap();
        let before = Version::of(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        let while_written = |path: &Path| {
            let read = read(path);
            std::fs::write(path, "10.0.0.2 db\n10.0.0.3 db\n")?;
            read
        };
        assert!(read_again(&path, before, while_written).is_none());
        let (content, version) = read_again(&path, before, read).unwrap();
        assert_eq!(content.unwrap(), b"10.0.0.2 db\n10.0.0.3 db\n");
        // Control: what has not changed is not read.
        assert!(read_again(&path, version, |_| panic!("it is read")).is_none());
    }

    #[test]
    fn a_file_in_another_ones_place_is_another_one_as_old_and_as_long_as_it_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("hosts"), folder.path().join("other"));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        for (path, content) in [(&path, "10.0.0.1 db\n"), (&other, "10.0.0.2 db\n")] {
            std::fs::write(path, content).unwrap();
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
        let before = Version::of(&path).unwrap();
        assert!(before == Version::of(&path).unwrap());
        std::fs::rename(&other, &path).unwrap();
        let (content, _) = read_again(&path, before, read).unwrap();
        assert_eq!(content.unwrap(), b"10.0.0.2 db\n");
    }

    #[test]
    fn a_file_that_is_too_large_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        for (length, is_read) in [(MOST, true), (MOST + 1, false)] {
            std::fs::File::create(&path).unwrap().set_len(length).unwrap();
            assert_eq!(read_again(&path, None, read).is_some(), is_read, "{length}");
        }
    }

    /// A file system that is away: each look would leave a thread behind.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_hangs_costs_one_thread_and_seconds() {
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let (mut file, content) = SystemFile::open(path.clone());
        assert!(content.is_err());
        std::fs::write(&path, "10.0.0.1 db\n").unwrap();
        file.read = |path| {
            BEGUN.fetch_add(1, Ordering::Relaxed);
            // A pipe that is opened by nobody else.
            read(&path.with_extension("pipe"))
        };
        let pipe = path.with_extension("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // Within the time after which another read begins beside the first.
        for _ in 0..3 {
            advance(LOOKED_AT_EVERY).await;
            assert!(file.is_due() && !file.is_due());
            let (changed, ()) = tokio::join!(file.changed(<[u8]>::to_vec), advance(LOOKED_AT_EVERY));
            assert!(changed.is_none());
        }
        // Ends what reads it, which may begin only now.
        std::fs::write(&pipe, "").unwrap();
        assert_eq!(BEGUN.load(Ordering::Relaxed), 1);
    }
}
