//! Listeners of servers with the routes that they name: whether they fit, and what of them is not enforced. Each of the two is
//! good by itself and acknowledged, and says nothing of that; whoever tells of resources asks here.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::policy::Unenforced;

use super::SubscriptionId;
use crate::xds::Key;

/// What one look made of a listener and the routes that it names.
pub(super) struct Join {
    pub(super) listener: Key,
    pub(super) routes: Key,
    /// What of both is not enforced, or why they do not fit.
    pub(super) made: Result<Vec<Unenforced>, String>,
}

/// A listener and the routes that it names.
pub(crate) struct Joined {
    pub(crate) listener: Key,
    pub(crate) routes: Key,
    /// What is not enforced of those in force.
    pub(crate) unenforced: Arc<[Unenforced]>,
    /// Why these are not in force.
    pub(crate) misfit: Option<String>,
}

/// By subscription; none of which there is nothing to tell.
#[derive(Default)]
pub(super) struct Joins(BTreeMap<SubscriptionId, Joined>);

impl Joins {
    /// Notes what the latest look came to; what was in force before it may `stay`.
    pub(super) fn note(&mut self, id: SubscriptionId, join: Option<Join>, stays: bool) {
        let before = self.0.remove(&id);
        let told = before.as_ref().and_then(|before| before.misfit.clone());
        let before = before.filter(|_| stays);
        let Some(Join { listener, routes, made }) = join else {
            // There is nothing to fit, as where a listener came without its routes: those in force are told of as before.
            let in_force = before.filter(|before| !before.unenforced.is_empty());
            self.0.extend(in_force.map(|before| (id, Joined { misfit: None, ..before })));
            return;
        };
        let in_force = before.map(|before| before.unenforced).unwrap_or_default();
        let (unenforced, misfit) = match made {
            Ok(unenforced) => (unenforced.into(), None),
            Err(why) => {
                let effect = if stays { "what was in force before stays" } else { "nothing is served" };
                (in_force, Some(format!("it does not fit its routes {:?}: {why}; {effect}", &*routes.name)))
            }
        };
        if let Some(reason) = misfit.as_ref().filter(|reason| told.as_ref() != Some(reason)) {
            tracing::warn!(listener = &*listener.name, reason, "a listener that names its routes is not in force");
        }
        if misfit.is_some() || !unenforced.is_empty() {
            self.0.insert(id, Joined { listener, routes, unenforced, misfit });
        }
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        self.0.remove(&id);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Joined> {
        self.0.values()
    }
}
