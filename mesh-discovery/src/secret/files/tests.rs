use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mesh_core::id::TrustDomain;
use mesh_core::identity::{PeerRefused, client_config, server_config};
use rustls::pki_types::ServerName;
use tokio::runtime::Handle;

use super::*;
use crate::secret::{Clock, FromFiles, worker};
use crate::test_plane::{Ca, crypto, now};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";
const GUEST: &str = "spiffe://elsewhere.test/ns/default/sa/guest";
const STRANGER: &str = "spiffe://nowhere.test/ns/default/sa/stranger";

/// A directory with `chain.pem`, `key.pem`, `root.pem` and, if it is used, `map.json`.
struct World {
    ca: Ca,
    directory: tempfile::TempDir,
    watcher: FileWatcher,
}

impl World {
    fn new() -> Self {
        let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
        let identity = ca.write_identity(directory.path(), REVIEWS);
        let watcher = FileWatcher {
            identity: Some(identity),
            ca_certificate_file: Some(path(directory.path(), "root.pem")),
            spiffe_trust_bundle_map_file: None,
            certificate_revocation_list_file: None,
            refresh_interval: Duration::from_secs(600),
        };
        let world = Self { ca, directory, watcher };
        world.write("root.pem", world.ca.root.pem());
        world
    }

    fn with_map(mut self, map: impl AsRef<[u8]>) -> Self {
        self.write("map.json", map);
        self.watcher.spiffe_trust_bundle_map_file = Some(path(self.directory.path(), "map.json"));
        self
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.directory.path().join(file), content).unwrap();
    }

    fn files(&self) -> Files {
        Files::new(self.watcher.clone(), crypto())
    }

    /// A new certificate in the files.
    fn rotate(&self, uri: &str) {
        self.ca.write_identity(self.directory.path(), uri);
    }

    async fn identity(&self) -> Identity {
        let refreshed = self.files().refresh(now()).await;
        assert_eq!(refreshed.refused, []);
        refreshed.identity.unwrap()
    }
}

fn path(directory: &Path, file: &str) -> String {
    directory.join(file).to_str().unwrap().to_owned()
}

/// A bundle map with these roots.
fn map(domains: &[(&str, &Ca)]) -> String {
    let domains: BTreeMap<_, _> = domains
        .iter()
        .map(|(domain, ca)| {
            let key = serde_json::json!({
                "kty": "EC", "use": "x509-svid", "x5c": [BASE64_STANDARD.encode(ca.root.der())],
            });
            (*domain, serde_json::json!({"spiffe_sequence": 1, "keys": [key]}))
        })
        .collect();
    serde_json::json!({"trust_domains": domains}).to_string()
}

fn roots_of(identity: &Identity, domain: &str) -> Option<usize> {
    identity.bundles().get(&TrustDomain::new(domain).unwrap()).map(|bundle| bundle.roots().len())
}

#[tokio::test(start_paused = true)]
async fn s12_an_identity_comes_from_files_and_follows_them_at_the_interval() {
    let world = World::new();
    let (start, base) = (tokio::time::Instant::now(), now());
    let clock: Clock = Arc::new(move || base + start.elapsed().as_secs());
    let FromFiles { identity: mut watched, .. } =
        worker::follow_files(world.watcher.clone(), crypto(), clock, Arc::default(), &Handle::current());
    let first = watched.wait_for(Option::is_some).await.as_ref().clone().unwrap();
    assert_eq!((first.id().as_str(), first.generation()), (REVIEWS, 0));
    assert_eq!(roots_of(&first, "cluster.local"), Some(1));

    world.rotate(RATINGS);
    watched.changed().await;
    let second = watched.load_full().as_ref().clone().unwrap();
    assert_eq!((second.id().as_str(), second.generation()), (RATINGS, 1));
    assert!(start.elapsed() >= Duration::from_secs(600), "not before the interval");

    world.write("root.pem", world.ca.root.pem() + &Ca::new().root.pem());
    watched.changed().await;
    let third = watched.load_full().as_ref().clone().unwrap();
    assert_eq!((third.id().as_str(), third.generation()), (RATINGS, 2));
    assert_eq!(roots_of(&third, "cluster.local"), Some(2));
    assert!(start.elapsed() < Duration::from_secs(1300), "unchanged files publish nothing");
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn s12_a_file_that_is_not_read_to_its_end_does_not_hold_up_the_others() {
    let world = World::new();
    let mut files = world.files();
    assert!(files.refresh(now()).await.identity.is_some());
    let (pipe, key) = (crate::test_plane::Pipe::new(), world.directory.path().join("key.pem"));
    std::fs::remove_file(&key).unwrap();
    std::os::unix::fs::symlink(&pipe.path, &key).unwrap();
    world.write("root.pem", world.ca.root.pem() + &Ca::new().root.pem());
    let (Refreshed { identity, refused, .. }, ()) =
        tokio::join!(files.refresh(now()), tokio::time::advance(Duration::from_secs(3)));
    assert_eq!(roots_of(&identity.unwrap(), "cluster.local"), Some(2));
    let refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
    assert!(refused.len() == 1 && refused[0].contains("key.pem: it is not read within 3s"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn s12_files_that_come_late_are_found_soon_and_the_task_ends_with_its_last_reader() {
    let world = World::new();
    let chain = std::fs::read(world.directory.path().join("chain.pem")).unwrap();
    std::fs::remove_file(world.directory.path().join("chain.pem")).unwrap();
    let start = tokio::time::Instant::now();
    let base = now();
    let asked = Arc::new(parking_lot::Mutex::new(0));
    let clock: Clock = {
        let asked = asked.clone();
        Arc::new(move || {
            *asked.lock() += 1;
            base
        })
    };
    let FromFiles { identity: mut watched, .. } =
        worker::follow_files(world.watcher.clone(), crypto(), clock, Arc::default(), &Handle::current());
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(watched.load().is_none());
    world.write("chain.pem", chain);
    watched.wait_for(Option::is_some).await;
    assert!(start.elapsed() < Duration::from_secs(60), "a failure is not followed by the whole interval");

    drop(watched);
    tokio::task::yield_now().await;
    let looks = *asked.lock();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::task::yield_now().await;
    assert_eq!(*asked.lock(), looks);
}

#[tokio::test]
async fn s8_a_bad_reload_keeps_the_old_and_names_the_file() {
    let world = World::new();
    let mut files = world.files();
    let first = files.refresh(now()).await.identity.unwrap();
    let (chain, key) = world.ca.pem(RATINGS);
    let nameless = world.ca.pem("https://example.com").0;
    let day_after_tomorrow = now() + 2 * 86_400;
    for (file, content, at) in [
        ("chain.pem", "", now()),
        ("chain.pem", "rubbish", now()),
        ("chain.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", now()),
        ("chain.pem", &chain, now()),
        ("chain.pem", &nameless, now()),
        ("key.pem", "", now()),
        ("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", now()),
        ("key.pem", &key, now()),
        ("root.pem", "rubbish", now()),
        ("root.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", now()),
    ] {
        let good = std::fs::read(world.directory.path().join(file)).unwrap();
        world.write(file, content);
        let Refreshed { identity, refused, .. } = files.refresh(at).await;
        assert!(identity.is_none(), "{file} {content}");
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].file.starts_with(world.directory.path().to_str().unwrap()) && !refused[0].reason.is_empty());
        world.write(file, good);
        let Refreshed { identity, refused, .. } = files.refresh(now()).await;
        assert!(identity.is_none() && refused.is_empty(), "the same as before: {refused:?}");
    }
    world.rotate(RATINGS);
    assert_eq!(files.refresh(day_after_tomorrow).await.refused.len(), 1, "a certificate that has ended");
    let next = files.refresh(now()).await.identity.expect("control: it is good today");
    assert!(next.generation() > first.generation());
}

/// As the kubelet projects a volume (Secrets, cert-manager's CSI driver, Pod Certificates): the files are links through
/// `..data`, which is swapped for another directory at once.
#[cfg(unix)]
#[tokio::test]
async fn s94_a_swapped_volume_is_taken_up_whole_and_half_a_swap_not_at_all() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let home = world.directory.path().to_owned();
    let generation = |name: &str, uri: &str| {
        std::fs::create_dir(home.join(name)).unwrap();
        world.ca.write_identity(&home.join(name), uri);
    };
    generation("..2026_1", REVIEWS);
    generation("..2026_2", RATINGS);
    symlink("..2026_1", home.join("..data")).unwrap();
    for file in ["chain.pem", "key.pem"] {
        std::fs::remove_file(home.join(file)).unwrap();
        symlink(format!("..data/{file}"), home.join(file)).unwrap();
    }
    let mut files = world.files();
    assert_eq!(files.refresh(now()).await.identity.unwrap().id().as_str(), REVIEWS);
    let swap = |to: &str| {
        symlink(to, home.join("..data_tmp")).unwrap();
        std::fs::rename(home.join("..data_tmp"), home.join("..data")).unwrap();
    };
    swap("..2026_2");
    assert_eq!(files.refresh(now()).await.identity.unwrap().id().as_str(), RATINGS);

    // One file of each generation, as somebody reads who opens them around the swap; and a file half written.
    generation("..2026_3", REVIEWS);
    std::fs::copy(home.join("..2026_2/key.pem"), home.join("..2026_3/key.pem")).unwrap();
    swap("..2026_3");
    let Refreshed { identity, refused, .. } = files.refresh(now()).await;
    assert!(identity.is_none() && refused.len() == 1, "{refused:?}");
    generation("..2026_4", REVIEWS);
    let chain = std::fs::read(home.join("..2026_4/chain.pem")).unwrap();
    std::fs::write(home.join("..2026_4/chain.pem"), &chain[..chain.len() / 2]).unwrap();
    swap("..2026_4");
    assert!(files.refresh(now()).await.identity.is_none());
    std::fs::write(home.join("..2026_4/chain.pem"), chain).unwrap();
    assert_eq!(files.refresh(now()).await.identity.unwrap().id().as_str(), REVIEWS, "control");
}

#[cfg(unix)]
#[tokio::test]
async fn s94_a_key_that_others_can_read_or_write_is_noticed_and_a_file_without_end_is_not_read() {
    use std::os::unix::fs::PermissionsExt;
    let log = mesh_testkit::Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Where there is but one subscriber, a place in the code that another test's thread comes by first counts as unheard.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _listens = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    let key = world.directory.path().join("key.pem");
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // It is no refusal: so are the files that Kubernetes projects.
    let noticed = async |mode, folder| {
        set(&key, mode);
        set(world.directory.path(), folder);
        let before = log.text().len();
        let Refreshed { identity, refused, .. } = world.files().refresh(now()).await;
        assert_eq!((identity.unwrap().id().as_str(), refused.len()), (REVIEWS, 0));
        let told = log.text()[before..].to_owned();
        let line = told.lines().find(|line| line.contains("the private key can be"))?;
        assert!(line.contains("WARN") && line.contains("chmod") && line.contains("key.pem"), "{line}");
        ["read by", "written by", "replaced by"].into_iter().find(|what| line.contains(what))
    };
    for (mode, folder, what) in [
        (0o644, 0o700, Some("read by")),
        (0o640, 0o700, Some("read by")),
        (0o604, 0o700, Some("read by")),
        (0o620, 0o700, Some("written by")),
        (0o602, 0o700, Some("written by")),
        (0o600, 0o770, Some("replaced by")),
        (0o600, 0o707, Some("replaced by")),
        // The controls; in the last one nobody takes away what is another's.
        (0o600, 0o755, None),
        (0o400, 0o700, None),
        (0o600, 0o1777, None),
    ] {
        assert_eq!(noticed(mode, folder).await, what, "{mode:o} in {folder:o}");
    }
    set(world.directory.path(), 0o700);
    std::fs::File::create(world.directory.path().join("chain.pem")).unwrap().set_len(MAX_FILE + 1).unwrap();
    let refused = world.files().refresh(now()).await.refused;
    assert!(refused[0].reason.contains("larger"), "{refused:?}");
}

#[tokio::test]
async fn s8_broken_roots_do_not_hold_up_a_new_certificate() {
    let world = World::new();
    let mut files = world.files();
    files.refresh(now()).await;
    world.write("root.pem", "rubbish");
    world.rotate(RATINGS);
    let Refreshed { identity, refused, .. } = files.refresh(now()).await;
    assert_eq!(refused.len(), 1);
    let identity = identity.unwrap();
    assert_eq!((identity.id().as_str(), roots_of(&identity, "cluster.local")), (RATINGS, Some(1)));
}

#[tokio::test]
async fn s6_a_bundle_map_wins_over_the_ca_file_and_a_bad_one_keeps_the_old() {
    let elsewhere = Ca::new();
    let world = World::new();
    let roots = map(&[("cluster.local", &world.ca), ("elsewhere.test", &elsewhere)]);
    let world = world.with_map(&roots);
    world.write("root.pem", "not even looked at");
    let mut files = world.files();
    let identity = files.refresh(now()).await.identity.unwrap();
    assert_eq!(identity.bundles().iter().count(), 2);

    for bad in ["", "{}", r#"{"trust_domains":{"elsewhere.test":{"keys":7}}}"#] {
        world.write("map.json", bad);
        let Refreshed { identity, refused, .. } = files.refresh(now()).await;
        assert!(identity.is_none() && refused.len() == 1, "{bad}: {refused:?}");
    }
    world.write("map.json", map(&[("cluster.local", &world.ca)]));
    let identity = files.refresh(now()).await.identity.unwrap();
    assert_eq!((roots_of(&identity, "cluster.local"), roots_of(&identity, "elsewhere.test")), (Some(1), None));
}

/// A list of revoked certificates as PEM.
fn revocation_list(ca: &Ca) -> String {
    pem_of(&ca.revocation_list())
}

fn pem_of(list: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(list);
    let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", lines.join("\n"))
}

/// Whether a peer of the same authority is let in.
async fn lets_in(identity: &Identity, ca: &Ca) -> bool {
    let peer = World { ca: ca.clone(), ..World::new() };
    peer.rotate(RATINGS);
    peer.write("root.pem", ca.root.pem());
    meet(&peer.identity().await, identity).await.1.is_none()
}

#[tokio::test]
async fn s67_revocation_lists_come_from_a_file_and_a_bad_one_keeps_the_old() {
    for with_map in [false, true] {
        let mut world = World::new();
        assert!(lets_in(&world.identity().await, &world.ca).await, "control: no lists");
        world.watcher.certificate_revocation_list_file = Some(path(world.directory.path(), "crl.pem"));
        if with_map {
            let map = map(&[("cluster.local", &world.ca), ("elsewhere.test", &Ca::new())]);
            world = world.with_map(map);
        }
        // One that says nothing of our authority's certificates, and one that does.
        world.write("crl.pem", revocation_list(&Ca::new()));
        assert!(!lets_in(&world.identity().await, &world.ca).await, "{with_map}");
        world.write("crl.pem", revocation_list(&world.ca));
        let mut files = world.files();
        let identity = files.refresh(now()).await.identity.unwrap();
        assert!(lets_in(&identity, &world.ca).await, "{with_map}");
        let elsewhere = identity.bundles().get(&TrustDomain::new("elsewhere.test").unwrap());
        assert_eq!(elsewhere.is_some(), with_map);

        for bad in ["", "rubbish", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
            world.write("crl.pem", bad);
            let Refreshed { identity, refused, .. } = files.refresh(now()).await;
            assert!(identity.is_none() && refused.len() == 1, "{bad}: {refused:?}");
            assert!(refused[0].file.ends_with("crl.pem"), "{refused:?}");
        }
        world.rotate(RATINGS);
        let Refreshed { identity, refused, .. } = files.refresh(now()).await;
        assert_eq!(refused.len(), 1);
        let identity = identity.expect("a new certificate does not wait for it");
        assert!(lets_in(&identity, &world.ca).await, "{with_map}: the good list stays");
        // Good in form, and everybody would be refused by it.
        for of_no_use in [revocation_list(&Ca::new()), pem_of(&world.ca.revoking(&[], now()))] {
            world.write("crl.pem", of_no_use);
            let Refreshed { identity, refused, .. } = files.refresh(now()).await;
            assert!(identity.is_none() && refused.len() == 1, "{with_map}: {refused:?}");
        }
        world.write("crl.pem", pem_of(&world.ca.revoking(&[7], now() + 7_200)));
        let Refreshed { identity, refused, .. } = files.refresh(now()).await;
        assert!(lets_in(&identity.expect("a list alone is a change"), &world.ca).await && refused.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn s68_a_revocation_list_that_none_follows_is_told_of_at_each_mark_of_its_life() {
    let log = mesh_testkit::Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Where there is but one subscriber, a place in the code that another test's thread comes by first counts as unheard.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _listens = tracing::subscriber::set_default(subscriber);
    for listed in [false, true] {
        let mut world = World::new();
        let base = now();
        if listed {
            world.watcher.certificate_revocation_list_file = Some(path(world.directory.path(), "crl.pem"));
            // An hour of two is over.
            world.write("crl.pem", pem_of(&world.ca.revoking(&[], base + 3_600)));
        }
        let start = tokio::time::Instant::now();
        let clock: Clock = Arc::new(move || base + start.elapsed().as_secs());
        let followed = worker::follow_files(world.watcher.clone(), crypto(), clock, Arc::default(), &Handle::current());
        followed.identity.clone().wait_for(Option::is_some).await;
        let told =
            |what: &str| log.text().lines().filter(|line| line.contains(what) && line.contains("issuer=CN=")).count();
        for (minutes, what) in [(0, "half of its life"), (35, "25 percent"), (50, "10 percent"), (61, "has ended")] {
            let passed = Duration::from_secs(60 * minutes).saturating_sub(start.elapsed());
            mesh_testkit::clock::pass(passed + Duration::from_secs(1)).await;
            assert_eq!(
                (told(what), told("a revocation list")),
                if listed { (1, told("a revocation list")) } else { (0, 0) }
            );
        }
        assert_eq!(told("a revocation list"), if listed { 4 } else { 0 }, "once each: {}", log.text());
        if listed {
            world.write("crl.pem", pem_of(&world.ca.revoking(&[7], base + 14_400)));
            mesh_testkit::clock::pass(Duration::from_secs(600)).await;
            assert_eq!(told("a revocation list"), 4, "one has followed: {}", log.text());
        }
    }
}

/// Roots alone: there is no certificate of ours that a list would have to tell of.
#[tokio::test]
async fn s68_lists_of_roots_alone_are_kept_too_where_the_new_ones_have_ended() {
    let mut world = World::new();
    world.watcher.identity = None;
    world.watcher.certificate_revocation_list_file = Some(path(world.directory.path(), "crl.pem"));
    world.write("crl.pem", pem_of(&world.ca.revoking(&[], now())));
    let at_the_start = world.files().refresh(now()).await;
    assert!(at_the_start.roots.is_some(), "there is nothing better yet: {:?}", at_the_start.refused);
    world.write("crl.pem", revocation_list(&world.ca));
    let mut files = world.files();
    assert!(files.refresh(now()).await.roots.is_some());
    for (list, taken) in [
        (world.ca.revoking(&[], now()), false),
        (Ca::new().revocation_list(), false),
        (world.ca.revoking(&[7], now() + 7_200), true),
        (world.ca.revoking(&[], now() + 7_100), false),
        (world.ca.revoking(&[], now() + 7_201), true),
    ] {
        world.write("crl.pem", pem_of(&list));
        let Refreshed { roots, refused, .. } = files.refresh(now()).await;
        assert_eq!((roots.is_some(), refused.is_empty()), (taken, taken), "{refused:?}");
    }
}

#[tokio::test]
async fn s67_lists_that_nobody_would_be_asked_about_by_are_refused() {
    let world = World::new();
    let elsewhere = map(&[("elsewhere.test", &Ca::new())]);
    let world = world.with_map(elsewhere);
    world.write("crl.pem", revocation_list(&world.ca));
    let listed = |identity: bool| {
        let mut watcher = world.watcher.clone();
        watcher.certificate_revocation_list_file = Some(path(world.directory.path(), "crl.pem"));
        watcher.identity = watcher.identity.filter(|_| identity);
        watcher
    };
    for identity in [true, false] {
        let mut watcher = listed(identity);
        let mut files = Files::new(watcher.clone(), crypto());
        // Each look complains: the files have not become good by being old.
        for look in 0..2 {
            let Refreshed { identity: ours, roots, refused } = files.refresh(now()).await;
            assert!(ours.is_none() && roots.is_none() && refused.len() == 1, "{identity} {look}: {refused:?}");
        }
        // Until one of them is.
        let own = map(&[("elsewhere.test", &Ca::new()), ("cluster.local", &world.ca)]);
        world.write("map.json", own);
        let refused = files.refresh(now()).await.refused;
        assert_eq!(refused.len(), usize::from(!identity), "lists need a certificate: {refused:?}");
        world.write("map.json", map(&[("elsewhere.test", &Ca::new())]));
        // The control.
        watcher.certificate_revocation_list_file = None;
        let Refreshed { identity: ours, roots, refused } = Files::new(watcher, crypto()).refresh(now()).await;
        assert_eq!((ours.is_some(), roots.is_some(), refused), (identity, !identity, vec![]));
    }
}

#[tokio::test]
async fn b10_one_instance_may_have_a_certificate_alone_and_another_one_roots_alone_a29() {
    let elsewhere = Ca::new();
    let world = World::new();
    let whole = world.watcher.clone();
    let refreshed = async |watcher: FileWatcher| Files::new(watcher, crypto()).refresh(now()).await;
    let shown = refreshed(FileWatcher { ca_certificate_file: None, ..whole.clone() }).await;
    let identity = shown.identity.expect("nobody is trusted, but it is somebody");
    assert_eq!((identity.bundles(), shown.roots, shown.refused), (&TrustBundles::default(), None, vec![]));
    let any = refreshed(FileWatcher { identity: None, ..whole.clone() }).await;
    let roots = any.roots.expect("roots alone");
    assert!(any.identity.is_none() && roots.any().is_some() && roots.iter().next().is_none());
    let world = world.with_map(map(&[("elsewhere.test", &elsewhere)]));
    let map = refreshed(FileWatcher { identity: None, ..world.watcher.clone() }).await.roots.unwrap();
    assert!(map.any().is_none() && map.get(&TrustDomain::new("elsewhere.test").unwrap()).is_some());

    // The control: roots that are configured and missing hold the identity back.
    std::fs::remove_file(world.directory.path().join("root.pem")).unwrap();
    let missing = refreshed(whole).await;
    assert!(missing.identity.is_none() && missing.roots.is_none() && missing.refused.len() == 1);
}

/// A handshake in memory; why the client refuses the server and the server the client.
async fn meet(client: &Identity, server: &Identity) -> (Option<PeerRefused>, Option<PeerRefused>) {
    let connect = tokio_rustls::TlsConnector::from(Arc::new(client_config(client, &[], &[], &crypto()).unwrap()));
    let accept = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(server, true, &[], &crypto()).unwrap()));
    let (one, other) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("ignored.test").unwrap();
    // A client is done before the server has judged it, so the server's word counts for that direction.
    let (connected, accepted) = tokio::join!(connect.connect(name, one), accept.accept(other));
    let refusal = |error: Option<std::io::Error>| {
        let error = error?.into_inner()?;
        PeerRefused::of(error.downcast_ref::<rustls::Error>()?).cloned()
    };
    (refusal(connected.err()), refusal(accepted.err()))
}

#[tokio::test]
async fn s6_peers_of_every_domain_of_the_map_are_verified_by_its_own_roots_on_both_sides() {
    let (elsewhere, nowhere) = (Ca::new(), Ca::new());
    let world = World::new();
    let ours = world.ca.root.der().clone();
    let federated = map(&[("cluster.local", &world.ca), ("elsewhere.test", &elsewhere)]);
    let world = world.with_map(&federated);
    let here = world.identity().await;
    let of = async |ca: Ca, uri: &str| {
        let guest = World { ca, ..World::new() };
        guest.rotate(uri);
        let map = map(&[("cluster.local", &world.ca), ("elsewhere.test", &elsewhere), ("nowhere.test", &nowhere)]);
        guest.with_map(map).identity().await
    };
    assert_eq!(here.bundles().get(&TrustDomain::new("cluster.local").unwrap()).unwrap().roots(), [ours]);

    let guest = of(elsewhere.clone(), GUEST).await;
    assert_eq!(meet(&here, &guest).await, (None, None));
    assert_eq!(meet(&guest, &here).await, (None, None));

    let stranger = of(nowhere.clone(), STRANGER).await;
    assert!(matches!(meet(&here, &stranger).await.0, Some(PeerRefused::UnknownDomain(_))));
    assert!(matches!(meet(&stranger, &here).await.1, Some(PeerRefused::UnknownDomain(_))));

    // Its name is of a domain that we know; the roots that signed it are another domain's.
    let impostor = of(elsewhere.clone(), RATINGS).await;
    assert!(matches!(meet(&here, &impostor).await.0, Some(PeerRefused::NotValid { .. })));
    assert!(matches!(meet(&impostor, &here).await.1, Some(PeerRefused::NotValid { .. })));
}
