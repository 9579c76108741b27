//! R24: machines that slept, and clocks that are set.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_core::source::WatchedIdentity;
use mesh_core::telemetry::Renewals;
use mesh_testkit::clock::pass;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{
    Ca, CertificateAuthorityClient, CertificateRefused, Clock, DAY, JoinToken, REVIEWS, connector, fake, now, start,
    worker,
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const A_DAY: i64 = 24 * HOUR;
/// How long a certificate is good before it is signed, as the mesh's own authority does it.
const BACK_DATED: u64 = 300;

/// A clock on the wall, which somebody may set.
#[derive(Clone)]
struct Wall {
    begun: Instant,
    base: u64,
    ahead: Arc<AtomicI64>,
}

impl Wall {
    fn new() -> Self {
        Self { begun: Instant::now(), base: now(), ahead: Arc::default() }
    }

    fn seconds(&self) -> u64 {
        (self.base + self.begun.elapsed().as_secs()).saturating_add_signed(self.ahead.load(Ordering::Relaxed))
    }

    /// So many seconds off what is right.
    fn set(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::Relaxed);
    }
}

/// Signs for a day by a clock of its own, and looks at nobody else's.
struct Signing {
    ca: Ca,
    wall: Wall,
    /// When it was asked, by that clock.
    asked: Arc<Mutex<Vec<u64>>>,
}

impl worker::Authority for Signing {
    async fn next(&mut self, current: Option<&Identity>, _: u64) -> Result<Identity, CertificateRefused> {
        let signed = self.wall.seconds();
        let mut asked = self.asked.lock();
        asked.push(signed);
        assert!(asked.len() < 20_000, "a loop");
        let generation = current.map_or(0, |current| current.generation() + 1);
        let life = (signed.saturating_sub(BACK_DATED), signed + DAY.as_secs());
        Ok(self.ca.identity_between(REVIEWS, generation, life))
    }
}

/// A process and the authority it asks, each with a clock; the authority's may be the same.
struct World {
    own: Wall,
    authoritys: Wall,
    asked: Arc<Mutex<Vec<u64>>>,
    identity: WatchedIdentity,
    renewals: Arc<Renewals>,
}

impl World {
    async fn begin(one_clock: bool) -> Self {
        let own = Wall::new();
        let authoritys = if one_clock { own.clone() } else { Wall::new() };
        let (asked, renewals) = (Arc::<Mutex<Vec<u64>>>::default(), Arc::<Renewals>::default());
        let authority = Signing { ca: Ca::new(), wall: authoritys.clone(), asked: asked.clone() };
        let told = own.clone();
        let clock: Clock = Arc::new(move || told.seconds());
        let (mut identity, _) = worker::spawn_with(authority, clock, renewals.clone(), &Handle::current());
        identity.wait_for(Option::is_some).await;
        Self { own, authoritys, asked, identity, renewals }
    }

    fn now_in_use(&self) -> Arc<Identity> {
        Option::clone(&self.identity.load_full()).expect("nothing takes it away")
    }

    /// How often the authority is asked in the next `minutes`.
    async fn asked_in(&self, minutes: u64) -> usize {
        let before = self.asked.lock().len();
        pass(Duration::from_secs(60 * minutes)).await;
        self.asked.lock().len() - before
    }
}

/// Set back before the begin of its certificate, or ahead past its end, a process asks for another at once. Within its life,
/// which begins five minutes before it is signed, the clock may be anywhere.
#[tokio::test(start_paused = true)]
async fn a_clock_that_leaves_the_life_of_a_certificate_brings_another_at_once_r24() {
    for ahead in [-A_DAY, -HOUR, -6 * MINUTE, A_DAY, 2 * A_DAY] {
        let mut world = World::begin(true).await;
        world.own.set(ahead);
        let set = Instant::now();
        world.identity.changed().await;
        assert!(set.elapsed() <= Duration::from_secs(5), "{ahead}: {:?}", set.elapsed());
        let identity = world.now_in_use();
        assert_eq!(identity.generation(), 1, "{ahead}");
        assert!((identity.not_before()..identity.not_after()).contains(&world.own.seconds()), "{ahead}");
        assert_eq!((world.asked_in(60).await, world.renewals.failures()), (0, 0), "{ahead}: once is enough");
    }
    for ahead in [-5 * MINUTE, -MINUTE, 0, MINUTE, HOUR] {
        let world = World::begin(true).await;
        world.own.set(ahead);
        assert_eq!(world.asked_in(60).await, 0, "the control: {ahead}");
    }
}

/// Where an authority's certificates do not fit this machine's clock, it is asked as often as after failures, the
/// certificate of before stays, and all is well soon after the clock is right.
#[tokio::test(start_paused = true)]
async fn a_clock_that_stays_wrong_makes_no_loop_of_renewals_r24() {
    for ahead in [-A_DAY, -HOUR, A_DAY] {
        let mut world = World::begin(false).await;
        world.own.set(ahead);
        let asked = world.asked_in(60).await;
        // Back-off is up to 30 s, half of that in the mean.
        assert!((120..400).contains(&asked), "{ahead}: {asked} times in an hour");
        assert!(world.renewals.failures() >= 120, "{ahead}: each is told of");
        assert_eq!(world.now_in_use().generation(), 0, "{ahead}");
        world.own.set(0);
        world.identity.changed().await;
        assert_eq!((world.now_in_use().generation(), world.asked_in(60).await), (1, 0), "{ahead}");
    }
    // The same when it is the authority's clock that is wrong, from the first certificate on.
    let wrong = World::begin(false).await;
    wrong.authoritys.set(HOUR);
    wrong.own.set(2 * A_DAY);
    assert!((120..400).contains(&wrong.asked_in(60).await));
    assert_eq!(wrong.now_in_use().generation(), 0);
    let right = World::begin(false).await;
    assert_eq!(right.asked_in(60).await, 0, "the control");
}

/// A clock that goes to and fro brings no more renewals than it is looked at, and no panic.
#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_to_and_fro_is_survived_r24() {
    let world = World::begin(true).await;
    for turn in 0..60 {
        world.own.set([-A_DAY, A_DAY, -HOUR, HOUR, 0][turn % 5]);
        pass(Duration::from_secs(10)).await;
    }
    let identity = world.now_in_use();
    assert!(identity.generation() <= 60, "{}", identity.generation());
    assert!((identity.not_before()..identity.not_after()).contains(&world.own.seconds()));
    world.own.set(i64::MIN);
    assert!(world.asked_in(1).await < 20, "before 1970 there is no time");
}

#[tokio::test]
async fn before_a_certificate_begins_a_lasting_token_proves_its_renewal_r24() {
    let fake = fake();
    let (serving, through, _root) = start(&fake).await;
    let client = CertificateAuthorityClient::new(through, DAY, None);
    let lasting = JoinToken::Text("a.b.c".to_owned());
    let life = |begins: u64| fake.ca.identity_between(REVIEWS, 0, (begins, now() + DAY.as_secs()));
    let mut seen = Vec::new();
    for (begins, token) in [
        (now() + 3_600, Some(&lasting)),
        // The controls: one that has begun, and one that nothing else proves.
        (now() - 60, Some(&lasting)),
        (now() - 60, None),
    ] {
        client.renew_with(&life(begins), token, now()).await.unwrap();
        seen.push(fake.seen.lock().pop().unwrap());
    }
    assert_eq!(seen[0], "Bearer a.b.c", "and no certificate");
    assert!(seen[1].contains("Bearer a.b.c") && seen[1].contains("Some(CertificateDer"), "{}", seen[1]);
    assert_eq!(seen[2], format!("certificate {REVIEWS}"));
    // What it trusts counts all the same: the file may be of before a change of roots.
    let stranger = Ca::new().root_file();
    let client = CertificateAuthorityClient::new(connector(serving.port, Some(&stranger)), DAY, None);
    client.renew_with(&life(now() + 3_600), Some(&lasting), now()).await.unwrap();
    assert_eq!(fake.seen.lock().pop().unwrap(), "Bearer a.b.c");
    assert!(client.first(Some(&lasting), now()).await.is_err(), "the control: by the file alone");
}
