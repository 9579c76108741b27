//! The hosts file: what it says of a name is all there is to say. hickory looks at it for one family and one complete name
//! at a time, so that an entry with one family, or of a short name, would be mixed with what DNS has; and it passes over names
//! that are none of a host.
//!
//! Refuses to know of search domains: names are looked up as they are written, as getaddrinfo does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use parking_lot::Mutex;

use super::file::{LOOKED_AT_EVERY, SystemFile};

/// How long its entries hold.
pub(super) const HOLD_FOR: Duration = LOOKED_AT_EVERY;

/// A file of hosts, as it was when it was last looked at.
pub(super) struct HostsFile {
    file: SystemFile<Hosts>,
    hosts: Mutex<Arc<Hosts>>,
}

/// The addresses of each complete name, IPv6 first.
type Hosts = HashMap<Name, Vec<IpAddr>>;

impl HostsFile {
    /// Reads the file. One that cannot be read has no entries.
    pub(super) fn open(path: PathBuf) -> Self {
        let (file, content) = SystemFile::open(path);
        let hosts = content.map(|bytes| parse(&bytes)).unwrap_or_default();
        Self { file, hosts: Mutex::new(Arc::new(hosts)) }
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
        if self.file.is_due()
            && let Some(hosts) = self.file.changed(parse).await
        {
            *self.hosts.lock() = Arc::new(hosts.unwrap_or_default());
        }
        let mut name = name.clone();
        name.set_fqdn(true);
        let hosts = self.hosts.lock().clone();
        hosts.get(&name).cloned().unwrap_or_default()
    }
}

/// Lines that say nothing are passed over, as the system does.
fn parse(bytes: &[u8]) -> Hosts {
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
    hosts
}

#[cfg(test)]
mod tests {
    use mesh_testkit::clock;

    use super::*;

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
