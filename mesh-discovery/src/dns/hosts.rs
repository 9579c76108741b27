//! The hosts file: what it says of a name is all there is to say. hickory looks at it for one family and one complete name
//! at a time, so that an entry with one family, or of a short name, would be mixed with what DNS has; and it passes over names
//! that are none of a host.
//!
//! Refuses to know of search domains: names are looked up as they are written, as getaddrinfo does.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_resolver::proto::rr::Name;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

/// The file is looked at no more often; its entries hold as long. The kubelet and people change it under a running process.
pub(super) const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// A file of hosts, as it was when it was last looked at.
pub(super) struct HostsFile {
    path: PathBuf,
    held: Mutex<Held>,
}

/// The addresses of each complete name, IPv6 first.
type Hosts = HashMap<Name, Vec<IpAddr>>;

struct Held {
    hosts: Arc<Hosts>,
    /// Of the file that was read; none if there was none.
    version: Option<Version>,
    looked_at: Instant,
}

/// What tells two contents of one file apart.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: Option<SystemTime>,
    length: u64,
}

impl HostsFile {
    /// Reads the file. One that cannot be read has no entries.
    pub(super) fn open(path: PathBuf) -> Self {
        // Before it is read: what changes in between is seen as a change later.
        let version = Version::of(&path).ok().flatten();
        let hosts = std::fs::read(&path).map(|bytes| parse(&bytes)).unwrap_or_default();
        Self { path, held: Mutex::new(Held { hosts, version, looked_at: Instant::now() }) }
    }

    /// Where the system has it.
    pub(super) fn of_the_system() -> PathBuf {
        match std::env::var_os("SystemRoot") {
            Some(root) if cfg!(windows) => PathBuf::from(root).join(r"System32\drivers\etc\hosts"),
            _ => PathBuf::from("/etc/hosts"),
        }
    }

    /// The addresses of `name`, IPv6 first (RFC 6724); none if the file does not name it.
    pub(super) async fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        self.look().await;
        let mut name = name.clone();
        name.set_fqdn(true);
        self.held.lock().hosts.get(&name).cloned().unwrap_or_default()
    }

    /// Reads the file again if it is another one than before. One that cannot be read for the moment, or is being written, is left
    /// as it was until the next look.
    async fn look(&self) {
        let before = {
            let mut held = self.held.lock();
            if held.looked_at.elapsed() < LOOKED_AT_EVERY {
                return;
            }
            held.looked_at = Instant::now();
            held.version
        };
        let path = self.path.clone();
        let read = spawn_blocking(move || read_again(&path, before, |path| std::fs::read(path))).await;
        if let Ok(Some((hosts, version))) = read {
            let mut held = self.held.lock();
            (held.hosts, held.version) = (hosts, version);
        }
    }
}

impl Version {
    /// That of the file there; none if there is none.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some(Self { modified: metadata.modified().ok(), length: metadata.len() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is there now; none if that is what was there before, or cannot be told.
fn read_again(
    path: &Path,
    before: Option<Version>,
    read: impl FnOnce(&Path) -> io::Result<Vec<u8>>,
) -> Option<(Arc<Hosts>, Option<Version>)> {
    let version = Version::of(path).ok().filter(|version| *version != before)?;
    if version.is_none() {
        return Some((Arc::default(), None));
    }
    let bytes = read(path).ok()?;
    // Who writes it in place begins with an empty one.
    let is_whole = Version::of(path).is_ok_and(|after| after == version);
    is_whole.then(|| (parse(&bytes), version))
}

/// Lines that say nothing are passed over, as the system does.
fn parse(bytes: &[u8]) -> Arc<Hosts> {
    let mut hosts = Hosts::default();
    // What is not UTF-8 is a comment in somebody's language, mostly.
    let text = String::from_utf8_lossy(bytes);
    for line in text.trim_start_matches('\u{feff}').lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for mut name in words.filter_map(|name| super::name(name).ok()) {
            name.set_fqdn(true);
            hosts.entry(name).or_default().push(ip);
        }
    }
    // RFC 6724.
    hosts.values_mut().for_each(|ips| ips.sort_by_key(IpAddr::is_ipv4));
    Arc::new(hosts)
}

#[cfg(test)]
mod tests {
    use mesh_testkit::clock;

    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "10.0.0.1 db\n").unwrap();
        let before = Version::of(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        let while_written = |path: &Path| {
            let read = std::fs::read(path);
            std::fs::write(path, "10.0.0.2 db\n10.0.0.3 db\n")?;
            read
        };
        assert!(read_again(&path, before, while_written).is_none());
        let (hosts, version) = read_again(&path, before, |path| std::fs::read(path)).unwrap();
        assert_eq!(hosts[&Name::from_ascii("db.").unwrap()].len(), 2);
        // Control: what has not changed is not read.
        assert!(read_again(&path, version, |_| panic!("it is read")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_read_again_within_seconds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let file = HostsFile::open(path.clone());
        let db = Name::from_ascii("db").unwrap();
        let expect = async |want: &[&str]| {
            let found = file.addresses(&db).await;
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), want);
        };
        expect(&[]).await;
        std::fs::write(&path, b"# \xe9crit\n10.0.0.1 other db # ours\nfd00::1 DB\n10.0.0.2 db\nnonsense db\n").unwrap();
        // Control: it is not looked at each time.
        expect(&[]).await;
        clock::pass(LOOKED_AT_EVERY).await;
        expect(&["fd00::1", "10.0.0.1", "10.0.0.2"]).await;
        std::fs::write(&path, "10.0.0.30 db\n").unwrap();
        clock::pass(LOOKED_AT_EVERY).await;
        expect(&["10.0.0.30"]).await;
        std::fs::remove_file(&path).unwrap();
        clock::pass(LOOKED_AT_EVERY).await;
        expect(&[]).await;
    }
}
