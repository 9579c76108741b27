//! The identities of one process, by the names that its control plane has for them.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use super::{Watched, WatchedIdentity, WatchedRoots};
use crate::identity::{Identity, TrustBundles};
use crate::policy::Instances;

/// The instance that stands for the process itself where it has no identity, but roots.
const OWN: &str = "default";

/// Who this process is: as a rule one identity, and beside it what policy asks for by name (gRPC's certificate
/// provider instances, gRFC A29). An instance gives a certificate to be shown, roots to be trusted, or both.
#[derive(Clone, Debug)]
pub struct Identities {
    own: WatchedIdentity,
    named: Arc<BTreeMap<Box<str>, WatchedIdentity>>,
    roots: Arc<BTreeMap<Box<str>, WatchedRoots>>,
}

impl Identities {
    /// `own`, and others by the name of their instance. One that has no roots trusts nobody.
    pub fn new(own: WatchedIdentity, named: impl IntoIterator<Item = (Box<str>, WatchedIdentity)>) -> Self {
        Self { own, named: Arc::new(named.into_iter().collect()), roots: Arc::default() }
    }

    /// Adds instances that have roots and no certificate. One of the name `default` has those of the process itself.
    #[must_use]
    pub fn with_roots(self, roots: impl IntoIterator<Item = (Box<str>, WatchedRoots)>) -> Self {
        Self { roots: Arc::new(roots.into_iter().collect()), ..self }
    }

    /// The identity that counts where policy names no instance.
    pub fn own(&self) -> &WatchedIdentity {
        &self.own
    }

    /// The identity of an instance; `None` stands for [`own`](Self::own). Of an instance that there is not the answer
    /// is none, now and for ever: no other identity stands in for it.
    pub fn of(&self, instance: Option<&str>) -> WatchedIdentity {
        match instance {
            None => self.own.clone(),
            Some(name) => self.named.get(name).cloned().unwrap_or_else(|| Watched::fixed(None)),
        }
    }

    /// Whom an instance trusts, as [`of`](Self::of) names it.
    pub fn trusted(&self, instance: Option<&str>) -> Trusted {
        match self.roots.get(instance.unwrap_or(OWN)) {
            Some(roots) => Trusted(Source::Roots(roots.clone())),
            None => Trusted(Source::Identity(self.of(instance))),
        }
    }

    /// The certificate of one instance with the roots of another or of the same.
    pub fn paired(&self, instances: &Instances) -> Paired {
        let Instances { certificate, roots } = instances;
        let apart = certificate != roots || certificate.is_none() && self.roots.contains_key(OWN);
        let trusted = apart.then(|| self.trusted(roots.as_deref()));
        Paired { identity: self.of(certificate.as_deref()), trusted }
    }

    /// Those with a name.
    pub fn named(&self) -> impl Iterator<Item = (&str, &WatchedIdentity)> {
        self.named.iter().map(|(name, identity)| (&**name, identity))
    }

    /// The instances that have roots alone.
    pub fn roots(&self) -> impl Iterator<Item = (&str, &WatchedRoots)> {
        self.roots.iter().map(|(name, roots)| (&**name, roots))
    }
}

impl From<WatchedIdentity> for Identities {
    fn from(own: WatchedIdentity) -> Self {
        Self::new(own, [])
    }
}

/// Whom an instance trusts, now and later.
#[derive(Clone, Debug)]
pub struct Trusted(Source);

#[derive(Clone, Debug)]
enum Source {
    Identity(WatchedIdentity),
    Roots(WatchedRoots),
}

impl Trusted {
    /// As it is now; `None` until it is known.
    pub fn load(&self) -> Option<TrustBundles> {
        match &self.0 {
            Source::Identity(identity) => Option::as_ref(&identity.load()).map(|identity| identity.bundles().clone()),
            Source::Roots(roots) => Option::clone(&roots.load()),
        }
    }

    /// Waits for a change.
    pub async fn changed(&mut self) {
        match &mut self.0 {
            Source::Identity(identity) => identity.changed().await,
            Source::Roots(roots) => roots.changed().await,
        }
    }
}

/// The certificate that is shown and the roots that are trusted, now and later; they may be of two instances.
#[derive(Clone, Debug)]
pub struct Paired {
    identity: WatchedIdentity,
    // None: whom the identity trusts.
    trusted: Option<Trusted>,
}

impl Paired {
    /// Both as they are now; `None` while one is missing: nothing stands in for it.
    pub fn load(&self) -> Option<(Arc<Identity>, TrustBundles)> {
        let identity = Option::clone(&self.identity.load())?;
        let bundles = match &self.trusted {
            None => identity.bundles().clone(),
            Some(trusted) => trusted.load()?,
        };
        Some((identity, bundles))
    }

    /// Whether there is no identity and none will come: nobody was told to get one.
    pub fn is_nobody(&self) -> bool {
        // In this order: one may come, and be the last, in between.
        self.identity.is_final() && self.identity.load().is_none()
    }

    /// Waits for a change of one of them.
    pub async fn changed(&mut self) {
        let Self { identity, trusted } = self;
        let Some(trusted) = trusted else { return identity.changed().await };
        let (mut identity, mut trusted) = (pin!(identity.changed()), pin!(trusted.changed()));
        poll_fn(|cx| match (identity.as_mut().poll(cx), trusted.as_mut().poll(cx)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_the_process_itself_and_an_unknown_one_is_nobody() {
        let (publisher, own) = Watched::channel(None);
        let (_other, named) = Watched::channel(None);
        let identities = Identities::new(own, [("outer".into(), named)]);
        let readers = publisher.readers();
        let _follows = identities.of(None);
        assert_eq!(publisher.readers(), readers + 1, "the control: no name is the process's own");
        let [_outer, _nobody] = [Some("outer"), Some("nobody")].map(|name| identities.of(name));
        assert_eq!(publisher.readers(), readers + 1);
        assert_eq!(identities.named().map(|(name, _)| name).collect::<Vec<_>>(), ["outer"]);
    }

    #[tokio::test]
    async fn b10_roots_of_another_instance_are_followed_and_nothing_stands_in_for_them_a29() {
        let (publisher, roots) = Watched::channel(None);
        let identities = Identities::new(Watched::fixed(None), []).with_roots([("ca".into(), roots)]);
        let mut trusted = identities.trusted(Some("ca"));
        assert_eq!(trusted.load(), None);
        publisher.publish(Some(TrustBundles::default()));
        trusted.changed().await;
        assert_eq!(trusted.load(), Some(TrustBundles::default()));
        for nobody in [None, Some("outer")] {
            assert_eq!(identities.trusted(nobody).load(), None, "{nobody:?}");
        }
    }
}
