//! The last good configuration on disk, for a start while no control plane can be reached.
//!
//! ```text
//! "mesh xDS snapshot 4\n" | written, seconds | of whom | count | records … | HMAC-SHA256 of all before
//! record: type | whose | confirmed, seconds | name | version | resource
//! ```
//! Numbers are little endian, texts and resources have their length before them. Opt-in. Each resource
//! serves until its own control plane has spoken of it, and grows old by itself, from when that one last vouched for it: one
//! control plane that stays away costs those of the others nothing. A file that is damaged, too old or somebody else's is refused
//! with its reason. The key of the HMAC is this node's own and lies in a file beside ([`key`]): who can write the snapshot
//! alone, or brings one from another node, has nothing obeyed. Refuses to know when to write: that is [`worker`]'s business.

mod key;
mod worker;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::hmac;
use serde::Serialize;
use tokio::time::Instant;
use twox_hash::XxHash3_128;

pub(super) use self::worker::{Saver, wall_clock};
use super::kind::{Key, Kind};
use super::message::{Body, Name};
use crate::bootstrap::{Bootstrap, XdsServer};

const MAGIC: &[u8] = b"mesh xDS snapshot 4\n";

/// Bytes of the HMAC.
const TAG: usize = 32;
/// Larger files are not ours.
const MAX_BYTES: u64 = 256 << 20;
/// What lies beside a file for so long was left by a process that was killed while it wrote.
const LEFT: Duration = Duration::from_secs(3600);
/// How far the clock may have been ahead when the file was written.
const SKEW: Duration = Duration::from_secs(300);

/// Where the last good configuration is kept and how long it counts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SnapshotConfig {
    /// The file; its directory must exist. It holds the addresses and policy of every destination in use,
    /// and is readable for its owner only. One that somebody else could have written is refused, as is one above 256 MiB.
    pub path: PathBuf,
    /// The file with the key that marks it as this node's own: 32 bytes at random, made where there are none, for its owner
    /// only. Default: beside the file, with `.key` at the end of its name. Where others may write in that directory, name one
    /// elsewhere.
    pub key: PathBuf,
    /// Age from which a resource is refused: since its control plane last vouched for it. Default 24 h.
    pub max_age: Duration,
    /// How long after a change it is written. Default 10 s: changes seldom come alone.
    pub delay: Duration,
}

impl SnapshotConfig {
    /// The defaults with this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let mut key = path.as_os_str().to_owned();
        key.push(".key");
        Self { path, key: key.into(), max_age: Duration::from_secs(24 * 3600), delay: Duration::from_secs(10) }
    }
}

/// How it stands with the snapshot on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// The file.
    pub path: PathBuf,
    /// Age in seconds of the oldest of what was read from it at the start; none if nothing was.
    pub age_seconds: Option<u64>,
    /// Resources in use that come from it. 0 once the control plane has answered for all of them.
    pub in_use: usize,
    /// How often it has been written.
    pub writes: u64,
    /// Why it was refused or could not be written last.
    pub error: Option<String>,
}

/// What was read.
pub(super) type Saved = HashMap<Key, Record>;

/// A resource as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The [mark] of the control plane that gave it.
    pub(super) giver: u64,
    pub(super) version: Name,
    pub(super) body: Body,
    /// When its control plane last vouched for it, in seconds since the Unix epoch.
    pub(super) confirmed: u64,
    /// The same by the clock of this run; none = before it can tell.
    pub(super) since: Option<Instant>,
    /// When it is too old to serve whoever comes then; none = never.
    pub(super) until: Option<Instant>,
}

/// What is known of the file, for reports.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) config: SnapshotConfig,
    /// Without it nothing is read or written.
    pub(super) key: Option<hmac::Key>,
    /// When the file was read, and how old the oldest of it was.
    read: Option<(Instant, Duration)>,
    pub(super) writes: u64,
    pub(super) error: Option<String>,
}

impl Account {
    /// Reads the file, if it is there and good.
    pub(super) fn open(config: SnapshotConfig, bootstrap: &Bootstrap, now: Instant) -> (Self, Option<Saved>) {
        let mut account = Self { config, key: None, read: None, writes: 0, error: None };
        let (path, us) = (&account.config.path, own_user());
        let key = match key::open(&account.config.key, us) {
            Ok(key) => account.key.insert(key),
            Err(reason) => {
                let of = account.config.key.display();
                tracing::warn!(path = %of, %reason, "no snapshot of the last good configuration is read or kept without its key");
                account.error = Some(format!("its key {of}: {reason}"));
                return (account, None);
            }
        };
        let bytes = match read(path, us) {
            Ok(None) => return (account, None),
            Ok(Some((bytes, _))) => Ok(bytes),
            Err(reason) => Err(reason),
        };
        let read =
            bytes.and_then(|bytes| decode(&bytes, key, owner(bootstrap), (now, wall_clock()), account.config.max_age));
        match read {
            Ok((age, saved)) => {
                tracing::info!(path = %path.display(), resources = saved.len(), ?age, "configuration of an earlier run serves until the control plane answers");
                account.read = Some((now, age));
                (account, Some(saved))
            }
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "the snapshot of the last good configuration is refused; it will be written anew");
                account.error = Some(format!("refused: {reason}"));
                (account, None)
            }
        }
    }

    /// How old the oldest of what was read is now; nothing was = no age.
    fn read_age(&self, now: Instant) -> Duration {
        self.read.map_or(Duration::ZERO, |(read, age)| now.saturating_duration_since(read) + age)
    }

    pub(super) fn status(&self, in_use: usize, now: Instant) -> SnapshotStatus {
        SnapshotStatus {
            path: self.config.path.clone(),
            age_seconds: self.read.map(|_| self.read_age(now).as_secs()),
            in_use,
            writes: self.writes,
            error: self.error.clone(),
        }
    }
}

/// Whose configuration it is: another node, or the same with other control planes, would be told something
/// else. A Pod that comes back elsewhere is the same.
pub(super) fn owner(bootstrap: &Bootstrap) -> u128 {
    let (before, after) = without_address(&bootstrap.node.id);
    let uris = |servers: &[XdsServer]| servers.iter().map(|server| server.uri.to_string()).collect::<Vec<_>>();
    let authorities: Vec<_> = bootstrap.authorities.iter().map(|(name, a)| (name, uris(&a.servers))).collect();
    // As it is written there every text has its bounds, and so has each authority.
    let text = format!("{:?}", (before, after, &bootstrap.node.cluster, uris(&bootstrap.servers), authorities));
    XxHash3_128::oneshot(text.as_bytes())
}

/// A node's id without the address in it, if it is one of Istio's, `sidecar~<ip>~<pod>.<ns>~<domain>`.
fn without_address(id: &str) -> (&str, &str) {
    let parts = id.split_once('~').zip(id.splitn(3, '~').nth(2));
    match parts {
        Some(((kind, rest), after))
            if id.matches('~').count() == 3
                && rest.split('~').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok()) =>
        {
            (kind, after)
        }
        _ => (id, ""),
    }
}

/// What stands for a control plane, by its address: two of one authority may say different things under one name.
pub(super) fn mark(server: &str) -> u64 {
    XxHash3_128::oneshot(server.as_bytes()) as u64
}

/// The file's bytes. Of each resource type, giver, when it was confirmed, name, version and content.
pub(super) fn encode<'a>(
    resources: impl Iterator<Item = (Kind, u64, u64, &'a str, &'a str, &'a [u8])>,
    key: &hmac::Key,
    owner: u128,
    written: u64,
) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(written.to_le_bytes());
    out.extend(owner.to_le_bytes());
    let count = out.len();
    out.extend([0; 4]);
    let mut records = 0u32;
    for (kind, giver, confirmed, name, version, bytes) in resources {
        out.push(kind.index() as u8);
        out.extend(giver.to_le_bytes());
        out.extend(confirmed.to_le_bytes());
        for part in [name.as_bytes(), version.as_bytes(), bytes] {
            out.extend((part.len() as u32).to_le_bytes());
            out.extend(part);
        }
        records += 1;
    }
    out[count..count + 4].copy_from_slice(&records.to_le_bytes());
    let tag = hmac::sign(key, &out);
    out.extend(tag.as_ref());
    out
}

/// The bytes of the file, if there is one. `us` is the user that may have written it, besides root.
fn read(path: &Path, us: Option<u32>) -> Result<Option<(Vec<u8>, fs::Metadata)>, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    // Opening a pipe would wait for its writer.
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err("it is not a file; name one, or remove what is there".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(error)),
    }
    let file = fs::File::open(path).map_err(cannot)?;
    // On the open file: what is checked is what is read.
    let metadata = file.metadata().map_err(cannot)?;
    refuse_foreign(&metadata, us)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes; remove it"));
    }
    Ok(Some((bytes, metadata)))
}

/// What it says would be obeyed, so nobody else may have written it.
#[cfg(unix)]
fn refuse_foreign(found: &fs::Metadata, us: Option<u32>) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let (mode, owner) = (found.mode() & 0o777, found.uid());
    if !found.is_file() {
        return Err("it is not a file; name one, or remove what is there".to_owned());
    }
    if mode & 0o022 != 0 {
        return Err(format!("others than its owner may write it (mode {mode:03o}): chmod go-w, or remove it"));
    }
    if owner != 0 && us.is_some_and(|us| us != owner) {
        return Err(format!("it belongs to user {owner}, not to this process' user: remove it, or name another file"));
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_foreign(_: &fs::Metadata, _: Option<u32>) -> Result<(), String> {
    Ok(())
}

/// The effective user of this process, where `/proc` tells; elsewhere nobody is refused for whose the file is.
fn own_user() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// Reads the file's bytes: resources and the age of the oldest, or why they are refused. Those that are too old are left
/// out. `now` by both clocks.
fn decode(
    bytes: &[u8],
    key: &hmac::Key,
    owner: u128,
    (now, seconds): (Instant, u64),
    max_age: Duration,
) -> Result<(Duration, Saved), String> {
    let damaged = || "it is damaged".to_owned();
    let (content, tag) = bytes.split_last_chunk::<TAG>().ok_or_else(damaged)?;
    let mut rest = content.strip_prefix(MAGIC).ok_or("it is not a snapshot of this version of mesh")?;
    if hmac::verify(key, content, tag).is_err() {
        return Err("it is damaged, or was not written with this node's key".to_owned());
    }
    let written = u64::from_le_bytes(*take(&mut rest).ok_or_else(damaged)?);
    let ahead = Duration::from_secs(written.saturating_sub(seconds));
    if ahead > SKEW {
        return Err(format!("it was written {ahead:?} in the future: check the clock, or remove the file"));
    }
    let age = |since: u64| Duration::from_secs(seconds.saturating_sub(since.min(written)));
    let too_old = |age: Duration| format!("it is {age:?} old, {max_age:?} is allowed");
    if age(written) > max_age {
        return Err(too_old(age(written)));
    }
    if u128::from_le_bytes(*take(&mut rest).ok_or_else(damaged)?) != owner {
        return Err("it was written for another node or other control planes".to_owned());
    }
    let records = u32::from_le_bytes(*take(&mut rest).ok_or_else(damaged)?);
    let (mut saved, mut oldest, mut left_out) = (Saved::new(), Duration::ZERO, None);
    for _ in 0..records {
        let [kind] = *take(&mut rest).ok_or_else(damaged)?;
        let kind = *Kind::ALL.get(usize::from(kind)).ok_or_else(damaged)?;
        let giver = u64::from_le_bytes(*take(&mut rest).ok_or_else(damaged)?);
        let confirmed = u64::from_le_bytes(*take(&mut rest).ok_or_else(damaged)?);
        let name = text(&mut rest).ok_or_else(damaged)?;
        let version = text(&mut rest).ok_or_else(damaged)?;
        let bytes = part(&mut rest).ok_or_else(damaged)?.to_vec();
        let age = age(confirmed);
        if age > max_age {
            left_out = left_out.max(Some(age));
            continue;
        }
        oldest = oldest.max(age);
        let until = now.checked_add(max_age.saturating_sub(age));
        let record = Record {
            giver,
            version,
            body: Body::new(kind.type_url(), bytes),
            confirmed,
            since: now.checked_sub(age),
            until,
        };
        saved.insert(Key::new(kind, name), record);
    }
    match left_out {
        _ if !rest.is_empty() => Err(damaged()),
        Some(age) if saved.is_empty() => Err(too_old(age)),
        _ => Ok((oldest, saved)),
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(first)
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(*take(rest)?) as usize;
    let (part, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(part)
}

fn text(rest: &mut &[u8]) -> Option<Name> {
    std::str::from_utf8(part(rest)?).ok().map(Name::from)
}

/// Puts the bytes in the place of the file, all or nothing, for the owner's eyes only. The folder is brought to disk in the
/// system's own time: after a power cut there is this one or that of before, and either serves.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_by(path, bytes, |from, to| fs::rename(from, to))
}

fn replace_by(path: &Path, bytes: &[u8], put: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    if bytes.len() as u64 > MAX_BYTES {
        // The next start would refuse it.
        return Err(io::Error::other(format!("{} bytes are more than the {MAX_BYTES} that are read", bytes.len())));
    }
    sweep(path);
    let beside = key::beside(path)?;
    key::write_new(&beside, bytes)?;
    put(&beside, path).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Removes what processes that were killed left beside the file. Nobody writes for so long.
fn sweep(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let is_left = |entry: &fs::DirEntry| {
        let beside = entry.file_name();
        let beside = beside.to_str().and_then(|beside| beside.strip_prefix(name)?.strip_suffix(".new"));
        let since = entry.metadata().and_then(|found| found.modified()).ok().and_then(|when| when.elapsed().ok());
        beside.is_some() && since.is_some_and(|since| since >= LEFT)
    };
    for left in fs::read_dir(folder).into_iter().flatten().flatten().filter(is_left) {
        let _ = fs::remove_file(left.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{Authority, ChannelCredentials, Node};

    const DAY: Duration = Duration::from_secs(86_400);

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[7; 32])
    }

    fn decode(bytes: &[u8], owner: u128, now: u64, max_age: Duration) -> Result<(Duration, Saved), String> {
        super::decode(bytes, &key(), owner, (Instant::now(), now), max_age)
    }

    fn sample() -> Vec<u8> {
        let records = [(Kind::Cluster, 5, 1_000, "x", "v1", &b"one"[..]), (Kind::Endpoints, 6, 1_000, "x", "", b"")];
        encode(records.into_iter(), &key(), 7, 1_000)
    }

    #[test]
    fn what_the_next_start_would_refuse_for_its_size_is_not_written() {
        let path = std::env::temp_dir().join(format!("mesh-snapshot-size-{}", std::process::id()));
        replace(&path, b"good").unwrap();
        let refused = replace(&path, &vec![0; MAX_BYTES as usize + 1]).unwrap_err().to_string();
        assert!(refused.contains("268435457 bytes"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"good", "the last one stays");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_written_is_read_until_it_is_too_old() {
        let (age, saved) = decode(&sample(), 7, 1_060, DAY).unwrap();
        assert_eq!((age, saved.len()), (Duration::from_secs(60), 2));
        let Record { giver, version, body, .. } = &saved[&Key::new(Kind::Cluster, "x")];
        assert_eq!(*giver, 5);
        assert_eq!((&**version, &*body.type_url, &body.bytes[..]), ("v1", Kind::Cluster.type_url(), &b"one"[..]));
        let error = decode(&sample(), 7, 1_001 + 86_400, DAY).unwrap_err();
        assert!(error.contains("old"), "{error}");
        assert!(decode(&sample(), 8, 1_000, DAY).unwrap_err().contains("another node"));
        // A clock that was a little ahead is no reason; one that was far ahead would keep it young for ever.
        assert!(decode(&sample(), 7, 700, DAY).is_ok());
        assert!(decode(&sample(), 7, 699, DAY).unwrap_err().contains("in the future"));
    }

    #[test]
    fn a_pod_that_comes_back_at_another_address_is_the_owner_still() {
        let of = |id: &str| {
            let server = XdsServer::new("127.0.0.1:1".parse().unwrap(), ChannelCredentials::Insecure);
            owner(&Bootstrap::new(server, Node { id: id.to_owned(), ..Node::default() }))
        };
        let own = of("sidecar~10.0.0.1~shop-0.default~default.svc.cluster.local");
        for ip in ["10.9.9.9", "fd00::1"] {
            assert_eq!(of(&format!("sidecar~{ip}~shop-0.default~default.svc.cluster.local")), own, "{ip}");
        }
        // The controls: another Pod, another namespace, another kind of node, and ids of which nothing is known.
        for other in [
            "sidecar~10.0.0.1~shop-1.default~default.svc.cluster.local",
            "sidecar~10.0.0.1~shop-0.other~other.svc.cluster.local",
            "router~10.0.0.1~shop-0.default~default.svc.cluster.local",
            "sidecar~here~shop-0.default~default.svc.cluster.local",
            "sidecar~shop-0.default~default.svc.cluster.local",
        ] {
            assert_ne!(of(other), own, "{other}");
        }
        assert_ne!(of("10.0.0.1~a"), of("10.0.0.2~a"));
    }

    #[test]
    fn which_servers_are_whose_belongs_to_the_owner() {
        let server = |uri: &str| XdsServer::new(uri.parse().unwrap(), ChannelCredentials::Insecure);
        let of = |top: &[&str], authorities: &[(&str, &[&str])]| {
            let mut bootstrap = Bootstrap::new(server(top[0]), Node::default());
            bootstrap.servers = top.iter().copied().map(server).collect();
            for (name, servers) in authorities {
                let (servers, template) = (servers.iter().copied().map(server).collect(), "%s".to_owned());
                let authority =
                    Authority { client_listener_template: template, servers, fallback_on_reachability_only: false };
                bootstrap.authorities.insert((*name).to_owned(), authority);
            }
            owner(&bootstrap)
        };
        let own = of(&["a:1", "b:1"], &[("n", &["c:1"])]);
        assert_eq!(of(&["a:1", "b:1"], &[("n", &["c:1"])]), own, "the control");
        for (top, authorities) in [
            (&["a:1"][..], &[("n", &["b:1", "c:1"][..])][..]),
            (&["a:1", "b:1"], &[("m", &["c:1"])]),
            (&["a:1", "b:1", "c:1"], &[("n", &[])]),
            (&["a:1", "b:1"], &[("m", &["c:1"]), ("n", &[])]),
            (&["a:1", "b:1"], &[("m", &[]), ("n", &["c:1"])]),
        ] {
            assert_ne!(of(top, authorities), own, "{top:?} {authorities:?}");
        }
    }

    #[test]
    fn each_resource_grows_old_by_itself() {
        let record = |name: &'static str, confirmed| (Kind::Cluster, 5, confirmed, name, "v1", &b"one"[..]);
        let mixed = [record("fresh", 100_000), record("old", 40_000), record("ahead", 200_000)];
        let file = encode(mixed.into_iter(), &key(), 7, 100_000);
        let now = Instant::now();
        for (later, held) in [(0, 3), (86_400 - 60_000, 3), (86_401 - 60_000, 2), (86_400, 2)] {
            let (age, saved) = super::decode(&file, &key(), 7, (now, 100_000 + later), DAY).unwrap();
            assert_eq!(saved.len(), held, "{later}");
            assert_eq!(age, Duration::from_secs(if held == 3 { 60_000 + later } else { later }));
            // What is said to have been confirmed after the file was written is no younger than the file.
            let end = now + DAY - Duration::from_secs(later);
            assert!(["fresh", "ahead"].iter().all(|name| saved[&Key::new(Kind::Cluster, *name)].until == Some(end)));
        }
        let alone = encode([record("old", 40_000)].into_iter(), &key(), 7, 100_000);
        assert!(decode(&alone, 7, 100_000, DAY).is_ok(), "control");
        assert!(decode(&alone, 7, 150_000, DAY).unwrap_err().contains("old"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_somebody_else_could_have_written_is_refused() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert!(read(&path, own_user()).unwrap().is_none());
        replace(&path, b"x").unwrap();
        for (mode, fine) in [(0o600, true), (0o644, true), (0o620, false), (0o602, false), (0o666, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            match read(&path, own_user()) {
                Ok(found) => assert!(fine && found.unwrap().0 == b"x", "{mode:o}"),
                Err(reason) => assert!(!fine && reason.contains("chmod go-w"), "{mode:o}: {reason}"),
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let owner = fs::metadata(&path).unwrap().uid();
        // Root's files are taken by everybody.
        assert_eq!(read(&path, Some(owner + 1)).is_ok(), owner == 0);
        if owner == 0 {
            std::os::unix::fs::chown(&path, Some(7), None).unwrap();
            assert!(read(&path, own_user()).unwrap_err().contains("belongs to user 7"));
            assert!(read(&path, Some(7)).is_ok(), "control");
        }
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        for other in [&link, &folder.path().to_owned()] {
            assert!(read(other, own_user()).unwrap_err().contains("not a file"));
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        // A hole costs nothing on disk.
        replace(&path, b"").unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(read(&path, own_user()).unwrap_err().contains("more than"));
    }

    #[test]
    fn every_damage_is_noticed() {
        let good = sample();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(decode(&bad, 7, 1_000, DAY).is_err(), "byte {at}");
            assert!(decode(&good[..at], 7, 1_000, DAY).is_err(), "cut at {at}");
        }
        // A tag that fits does not make the content good.
        let mut content = good[..good.len() - TAG - 4].to_vec();
        let tag = hmac::sign(&key(), &content);
        content.extend(tag.as_ref());
        assert!(decode(&content, 7, 1_000, DAY).unwrap_err().contains("damaged"));
    }

    #[test]
    fn what_another_node_wrote_or_somebody_without_the_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let server = XdsServer::new("127.0.0.1:1".parse().unwrap(), ChannelCredentials::Insecure);
        let bootstrap = Bootstrap::new(server, Node::default());
        let config = |key: &str| SnapshotConfig {
            key: folder.path().join(key),
            ..SnapshotConfig::new(folder.path().join("snapshot"))
        };
        let open = |key: &str| Account::open(config(key), &bootstrap, Instant::now());
        let (account, none) = open("a");
        assert!(none.is_none() && account.error.is_none(), "there is none yet");
        let (key, us) = (account.key.unwrap(), owner(&bootstrap));
        let written = |key: &hmac::Key| {
            encode([(Kind::Cluster, 1, wall_clock(), "x", "v1", &b"one"[..])].into_iter(), key, us, wall_clock())
        };
        replace(&config("a").path, &written(&key)).unwrap();
        assert!(open("a").1.is_some_and(|saved| saved.len() == 1), "control: who wrote it reads it after a restart");
        // Another node, which has a key of its own, and somebody who can write the file and not read the key.
        let (account, none) = open("b");
        assert!(none.is_none() && account.error.unwrap().contains("not written with this node's key"));
        replace(&config("a").path, &written(&hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]))).unwrap();
        assert!(open("a").1.is_none());
        // Without a key nothing is obeyed and nothing is written.
        fs::write(folder.path().join("a"), [7; 31]).unwrap();
        let (account, none) = open("a");
        assert!(none.is_none() && account.key.is_none());
        assert!(account.error.unwrap().contains("31 bytes"));
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_replaced_whole_and_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        for left in ["snapshot.new", "snapshot.0123456789abcdef.new"] {
            let file = fs::File::create(folder.path().join(left)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        for content in ["first", "second"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(replace(&folder.path().join("no/such/folder"), b"").is_err());
        // Nor is anything left of what cannot be put there.
        let refused = |_: &Path, _: &Path| Err(io::Error::other("no"));
        assert!(replace_by(&path, b"third", refused).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    }

    #[test]
    fn processes_that_share_the_folder_write_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        // Another one comes between what the first writes and where it puts it.
        let written = replace_by(&path, b"first", |from, to| {
            replace(&path, b"second").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"second");
            fs::rename(from, to)
        });
        written.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
