//! R25 at full scale: two processes whose certificates live for a quarter of an hour, and an authority that is away. Their
//! identities are those that the worker keeps, their TLS is the product's, and both go by the test's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_core::identity::{Identity, client_config, server_config};
use mesh_core::source::WatchedIdentity;
use mesh_core::telemetry::Renewals;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConnection, Connection, ServerConnection};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Ca, CertificateRefused, Clock, now, worker};
use crate::bootstrap::FileWatcher;
use crate::test_plane::crypto;

const QUARTER: Duration = Duration::from_secs(900);
const QUESTION: &[u8] = b"GET /secret HTTP/1.1\r\nhost: reviews\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Signs for a quarter of an hour of the test's clock, unless it is away.
struct Leaving {
    ca: Ca,
    name: &'static str,
    base: u64,
    away: Arc<AtomicBool>,
}

impl worker::Authority for Leaving {
    async fn next(&self, current: Option<&Identity>, now: u64) -> Result<Identity, CertificateRefused> {
        if self.away.load(Ordering::Relaxed) {
            return Err(CertificateRefused::Status("it is away".to_owned()));
        }
        let generation = current.map_or(0, |current| current.generation() + 1);
        Ok(self.ca.identity_for(self.name, generation, QUARTER + Duration::from_secs(now - self.base)))
    }
}

/// The test's clock as TLS asks for it.
#[derive(Clone, Copy, Debug)]
struct Simulated {
    start: Instant,
    base: u64,
}

impl Simulated {
    fn seconds(&self) -> u64 {
        self.base + self.start.elapsed().as_secs()
    }
}

impl TimeProvider for Simulated {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.seconds())))
    }
}

/// A connection between the two, and all that went over it from the client.
struct Line {
    client: Connection,
    server: Connection,
    sent: Vec<u8>,
}

impl Line {
    /// A handshake by the identities of the moment.
    fn open(client: &Identity, server: &Identity, clock: Simulated) -> Result<Self, rustls::Error> {
        let expected = [mesh_core::policy::StringMatcher::exact(server.id().as_str())];
        let mut ours = client_config(client, &expected, &[b"http/1.1"], &crypto()).unwrap();
        let mut theirs = server_config(server, true, &[b"http/1.1"], &crypto()).unwrap();
        (ours.time_provider, theirs.time_provider) = (Arc::new(clock), Arc::new(clock));
        let name = ServerName::try_from("reviews").unwrap();
        let client = ClientConnection::new(Arc::new(ours), name)?.into();
        let server = ServerConnection::new(Arc::new(theirs))?.into();
        let mut line = Self { client, server, sent: Vec::new() };
        while line.client.is_handshaking() || line.server.is_handshaking() {
            line.carry()?;
        }
        line.carry()?;
        Ok(line)
    }

    /// Brings what is written to the other end, in both directions.
    fn carry(&mut self) -> Result<(), rustls::Error> {
        let before = self.sent.len();
        deliver(&mut self.client, &mut self.server, &mut self.sent)?;
        assert!(self.sent.get(before).is_none_or(|first| (0x14..=0x17).contains(first)), "records of TLS alone");
        deliver(&mut self.server, &mut self.client, &mut Vec::new())
    }

    /// One request and its answer.
    fn ask(&mut self) -> Result<(), rustls::Error> {
        say(&mut self.client, QUESTION);
        self.carry()?;
        hear(&mut self.server, QUESTION);
        say(&mut self.server, ANSWER);
        self.carry()?;
        hear(&mut self.client, ANSWER);
        let plain = self.sent.windows(QUESTION.len()).any(|part| part == QUESTION);
        assert!(!plain, "the question was sent in plaintext");
        Ok(())
    }
}

fn deliver(from: &mut Connection, to: &mut Connection, sent: &mut Vec<u8>) -> Result<(), rustls::Error> {
    let before = sent.len();
    while from.wants_write() {
        from.write_tls(sent).unwrap();
    }
    let mut rest = &sent[before..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn say(at: &mut Connection, text: &[u8]) {
    std::io::Write::write_all(&mut at.writer(), text).unwrap();
}

fn hear(at: &mut Connection, text: &[u8]) {
    let mut heard = vec![0; text.len()];
    std::io::Read::read_exact(&mut at.reader(), &mut heard).unwrap();
    assert_eq!(heard, text);
}

/// What came of half an hour.
#[derive(Debug, Default)]
struct Tally {
    /// Over the connection that was open before the authority left.
    served: u64,
    /// Connections that were made, each with a request.
    made: u64,
    /// Second and reason of those that were refused.
    refused: Vec<(u64, String)>,
    generation: u64,
    /// The marks of a life that certificates of the server passed without being renewed, in percent; 100 = none.
    marks: Vec<u8>,
}

/// Half an hour of requests over a connection that stays open and over new ones, in which the authority is away for
/// `minutes` from the fourth one on.
async fn half_an_hour_without_the_authority(minutes: u64) -> Tally {
    let clock = Simulated { start: Instant::now(), base: now() };
    let (ca, away) = (Ca::new(), Arc::<AtomicBool>::default());
    let process = async |name, renewals: &Arc<Renewals>| {
        let authority = Leaving { ca: ca.clone(), name, base: clock.base, away: away.clone() };
        let told: Clock = Arc::new(move || clock.seconds());
        let (mut identity, _) = worker::spawn_with(authority, told, renewals.clone(), &Handle::current());
        identity.wait_for(Option::is_some).await;
        identity
    };
    let (renewals, others) = (Arc::<Renewals>::default(), Arc::default());
    let caller = process("spiffe://cluster.local/ns/default/sa/web", &others).await;
    let server = process(super::REVIEWS, &renewals).await;
    let of = |watched: &WatchedIdentity| Option::clone(&watched.load_full()).expect("nothing takes it away");
    let mut tally = Tally::default();
    let mut kept = Line::open(&of(&caller), &of(&server), clock).unwrap();
    for second in 0..1800 {
        away.store((240..240 + 60 * minutes).contains(&second), Ordering::Relaxed);
        kept.ask().unwrap();
        tally.served += 1;
        match Line::open(&of(&caller), &of(&server), clock).and_then(|mut line| line.ask()) {
            Ok(()) => tally.made += 1,
            Err(error) => tally.refused.push((second, error.to_string())),
        }
        let mark = renewals.life_left().percent();
        if tally.marks.last() != Some(&mark) {
            tally.marks.push(mark);
        }
        mesh_testkit::clock::pass(Duration::from_secs(1)).await;
    }
    tally.generation = of(&server).generation();
    tally
}

/// Nothing fails while the authority is away for ten minutes of the fifteen that a certificate lives: neither a request
/// over a connection that is open nor a new connection.
#[tokio::test(start_paused = true)]
async fn a_life_of_fifteen_minutes_bridges_ten_without_the_authority_r25() {
    let Tally { served, made, refused, generation, marks } = half_an_hour_without_the_authority(10).await;
    assert_eq!((served, made, refused), (1800, 1800, Vec::new()));
    assert!(generation >= 2, "it is renewed in time, and goes on to be: {generation}");
    assert_eq!(marks, [100, 50, 25, 10, 100], "each mark is told, and taken back with the renewal");
    let calm = half_an_hour_without_the_authority(0).await;
    assert_eq!((calm.made, calm.marks), (1800, vec![100]), "the control: who renews in time tells nothing");
}

/// The control: where an outage is longer than a life, new connections fail from the end of a certificate on, say so, and
/// send nothing in plaintext; once the authority is back they come about within the longest wait.
#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_a_life_is_refused_in_words_and_never_in_plaintext_r25() {
    let Tally { served, made, refused, marks, .. } = half_an_hour_without_the_authority(16).await;
    assert_eq!(served, 1800, "an open connection was proved when it was made");
    // Both were new when the outage began at second 240 or later, so the first ends at second 900.
    let (first, last) = (refused.first().unwrap().0, refused.last().unwrap().0);
    assert!((899..=901).contains(&first), "{first}");
    assert!((1199..1265).contains(&last), "{last}");
    assert_eq!(made + refused.len() as u64, 1800);
    assert_eq!(marks, [100, 50, 25, 10, 0, 100]);
    for (second, why) in &refused {
        assert!(why.contains("ended") && why.contains("was not renewed"), "{second}: {why}");
    }
}

/// Whoever renews by files does so in their own time: what they do not renew is told of all the same.
#[tokio::test(start_paused = true)]
async fn a_certificate_in_files_that_nobody_renews_is_told_of_at_each_mark() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().unwrap());
    let root = directory.path().join("root.pem");
    std::fs::write(&root, ca.root.pem()).unwrap();
    let watcher = FileWatcher {
        identity: Some(ca.write_identity(directory.path(), super::REVIEWS)),
        ca_certificate_file: Some(root.to_str().unwrap().to_owned()),
        spiffe_trust_bundle_map_file: None,
        certificate_revocation_list_file: None,
        refresh_interval: Duration::from_secs(60),
    };
    let clock = Simulated { start: Instant::now(), base: now() };
    let renewals = Arc::<Renewals>::default();
    let told: Clock = Arc::new(move || clock.seconds());
    let mut files = worker::follow_files(watcher, crypto(), told, renewals.clone(), &Handle::current());
    files.identity.wait_for(Option::is_some).await;
    let mut marks = vec![renewals.life_left().percent()];
    for _ in 0..25 * 60 {
        mesh_testkit::clock::pass(Duration::from_secs(60)).await;
        let mark = renewals.life_left().percent();
        if marks.last() != Some(&mark) {
            marks.push(mark);
        }
    }
    assert_eq!(marks, [100, 50, 25, 10, 0]);
}
