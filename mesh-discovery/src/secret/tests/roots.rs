//! Roots and revocation lists that come between two certificates.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::{Identity, TrustBundle, TrustBundles};
use mesh_core::telemetry::Renewals;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::issue::RootsEnded;
use super::{
    Ca, CertificateAuthorityClient, CertificateRefused, Clock, DAY, FakeCa, JoinToken, REVIEWS, fake, now, start,
    worker,
};

/// Signs once, and tells of other roots when told to.
struct Failing {
    ca: Ca,
    asked: Arc<Mutex<u64>>,
    told: Arc<Notify>,
}

impl worker::Authority for Failing {
    async fn next(&mut self, current: Option<&Identity>, _: u64) -> Result<Identity, CertificateRefused> {
        *self.asked.lock() += 1;
        match current {
            None => Ok(self.ca.identity(REVIEWS, 0)),
            Some(_) => Err(CertificateRefused::Status("not now".to_owned())),
        }
    }

    fn other_roots(&self, current: Arc<Identity>) -> impl Future<Output = Identity> + Send + 'static {
        let (told, bundles) = (self.told.clone(), with_list(&self.ca, &current));
        async move {
            told.notified().await;
            current.trusting(bundles)
        }
    }
}

/// The roots of an identity with a list of who was taken back.
fn with_list(ca: &Ca, identity: &Identity) -> TrustBundles {
    let bundle = TrustBundle::new([ca.root.der().clone()]).unwrap();
    let bundle = bundle.with_revocation_lists(vec![ca.revocation_list()]).unwrap();
    TrustBundles::single(identity.id().trust_domain(), bundle)
}

#[tokio::test(start_paused = true)]
async fn s67_who_cannot_renew_hears_of_revocation_lists_all_the_same() {
    let (asked, told) = (Arc::new(Mutex::new(0)), Arc::new(Notify::new()));
    let failing = Failing { ca: Ca::new(), asked: asked.clone(), told: told.clone() };
    let (begun, base) = (Instant::now(), now());
    let clock: Clock = Arc::new(move || base + begun.elapsed().as_secs());
    let (mut identity, mut refusal) =
        worker::spawn_with(failing, clock, Arc::<Renewals>::default(), &Handle::current());
    identity.wait_for(Option::is_some).await;
    refusal.wait_for(Option::is_some).await;
    assert!(begun.elapsed() > DAY * 2 / 5, "half of its life is over");
    told.notify_one();
    let heard = tokio::time::timeout(Duration::from_secs(60), identity.changed()).await;
    heard.expect("it hears while renewal fails");
    let identity = Option::clone(&identity.load_full()).unwrap();
    let domain = identity.id().trust_domain();
    assert_eq!(identity.bundles().get(&domain).unwrap().revocation_lists().len(), 1);
    assert!(refusal.load_full().is_some() && *asked.lock() > 1, "the control: nothing was renewed");
}

/// Signs, and tells of one more root or one less whenever it is asked, as replicas in turn would that disagree.
struct Disputed {
    ca: Ca,
    other: Ca,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl worker::Authority for Disputed {
    async fn next(&mut self, _: Option<&Identity>, _: u64) -> Result<Identity, CertificateRefused> {
        Ok(self.ca.identity(REVIEWS, 0))
    }

    fn other_roots(&self, current: Arc<Identity>) -> impl Future<Output = Identity> + Send + 'static {
        let (asked, domain) = (self.asked.clone(), current.id().trust_domain());
        let (own, other) = (self.ca.root.der().clone(), self.other.root.der().clone());
        let both = current.bundles().get(&domain).unwrap().roots().len() == 1;
        let roots = TrustBundle::new(std::iter::once(own).chain(both.then_some(other))).unwrap();
        async move {
            asked.lock().push(Instant::now());
            // A round trip.
            tokio::task::yield_now().await;
            let quiet = asked.lock().len() == 12;
            if quiet {
                mesh_testkit::clock::pass(DAY / 100).await;
            }
            current.trusting(TrustBundles::single(domain, roots))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn roots_that_keep_changing_are_taken_up_at_a_pace() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let disputed = Disputed { ca: Ca::new(), other: Ca::new(), asked: asked.clone() };
    let (begun, base) = (Instant::now(), now());
    let clock: Clock = Arc::new(move || base + begun.elapsed().as_secs());
    let (mut identity, _) = worker::spawn_with(disputed, clock, Arc::<Renewals>::default(), &Handle::current());
    identity.wait_for(Option::is_some).await;
    while asked.lock().len() < 14 {
        identity.changed().await;
    }
    let gaps: Vec<_> = asked.lock().windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert_eq!(asked.lock()[0], begun, "the first ones are taken up at once");
    assert!(gaps.iter().all(|gap| *gap >= 1.0) && gaps[0] <= 2.1, "{gaps:?}");
    assert!(gaps[..11].iter().any(|gap| *gap > 2.1), "ever later: {gaps:?}");
    // After some quiet the pace begins anew.
    assert!(gaps[12] <= 3.1, "{gaps:?}");
}

/// With a renewal, too: what comes with the certificate stands in for what was there only if it can.
#[tokio::test]
async fn s68_lists_of_no_use_that_come_with_a_renewal_leave_the_last_good_ones() {
    let plain = fake();
    let good = FakeCa { lists: vec![plain.ca.revocation_list()], ..plain.clone() };
    let newer = FakeCa { lists: vec![plain.ca.revoking(&[7], now() + 7_200)], ..plain.clone() };
    let ended = FakeCa { lists: vec![plain.ca.revoking(&[7], now())], ..plain.clone() };
    let foreign = FakeCa { lists: vec![Ca::new().revocation_list()], ..plain.clone() };
    let unreadable = FakeCa { lists: vec![vec![1, 2, 3]], ..plain.clone() };
    let ask = async |fake: &FakeCa, current: Option<&Identity>| {
        let (_serving, connector, _root) = start(fake).await;
        let client = CertificateAuthorityClient::new(connector, DAY, None);
        match current {
            Some(current) => client.renew(current, now()).await,
            None => client.first(Some(&JoinToken::Text("secret".to_owned())), now()).await,
        }
        .unwrap()
    };
    let lists = |identity: &Identity| {
        identity.bundles().get(&identity.id().trust_domain()).unwrap().revocation_lists().to_vec()
    };
    let current = ask(&good, None).await;
    for of_no_use in [&ended, &foreign, &unreadable] {
        assert_eq!(lists(&ask(of_no_use, Some(&current)).await), good.lists);
    }
    assert_eq!(lists(&ask(&newer, Some(&current)).await), newer.lists, "the control");
    assert_eq!(lists(&ask(&ended, None).await), ended.lists, "the first one: there is nothing better");
}

/// A replica that is older than the others, say.
#[tokio::test(start_paused = true)]
async fn an_authority_that_told_nothing_of_roots_is_asked_again_after_minutes() {
    let (ca, asked, begun) = (Ca::new(), Mutex::new(0), Instant::now());
    let ask = async || {
        *asked.lock() += 1;
        if *asked.lock() < 11 { Err(RootsEnded::Unsupported) } else { Ok(ca.identity(REVIEWS, 1)) }
    };
    let told = tokio::time::timeout(DAY, worker::until_told(ask)).await;
    assert_eq!(told.expect("it is asked again").generation(), 1);
    // Each wait is drawn from nothing up to 2, 4, 8 and then 10 minutes: that ten come to less than five is one in 10^8.
    assert!((5..=84).contains(&(begun.elapsed().as_secs() / 60)), "{:?}", begun.elapsed());
}
