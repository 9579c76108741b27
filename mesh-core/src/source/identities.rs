//! The identities of one process, by the names that its control plane has for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Watched, WatchedIdentity};

/// Who this process is: as a rule one identity, and beside it those that policy asks for by name (gRPC's certificate
/// provider instances, gRFC A29). An instance gives the certificate that is shown and the roots that are trusted.
#[derive(Clone, Debug)]
pub struct Identities {
    own: WatchedIdentity,
    named: Arc<BTreeMap<Box<str>, WatchedIdentity>>,
}

impl Identities {
    /// `own`, and others by the name of their instance.
    pub fn new(own: WatchedIdentity, named: impl IntoIterator<Item = (Box<str>, WatchedIdentity)>) -> Self {
        Self { own, named: Arc::new(named.into_iter().collect()) }
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

    /// Those with a name.
    pub fn named(&self) -> impl Iterator<Item = (&str, &WatchedIdentity)> {
        self.named.iter().map(|(name, identity)| (&**name, identity))
    }
}

impl From<WatchedIdentity> for Identities {
    fn from(own: WatchedIdentity) -> Self {
        Self::new(own, [])
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
}
