//! Listeners of servers with the routes that they name: which do not fit, and what of the others is not enforced. Each of
//! the two is good by itself and says nothing of that; whoever tells of resources asks here.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::policy::Unenforced;
use smallvec::SmallVec;

use super::{Resources, SubscriptionId};
use crate::xds::{InForce, Key, Misfit};

/// What one look made of a listener and the routes that it names.
pub(super) struct Join {
    pub(super) listener: Key,
    pub(super) routes: Key,
    /// What of both is not enforced, or why they do not fit.
    pub(super) made: Result<Vec<Unenforced>, String>,
}

/// A listener and its routes, in force.
pub(crate) struct Joined {
    pub(crate) listener: Key,
    pub(crate) routes: Key,
    /// What of both is not enforced.
    pub(crate) unenforced: Arc<[Unenforced]>,
}

/// By subscription.
#[derive(Default)]
pub(super) struct Joins {
    /// Only those of which something is not enforced.
    in_force: BTreeMap<SubscriptionId, Joined>,
    refused: BTreeMap<SubscriptionId, Refused>,
}

/// Two that do not fit.
struct Refused {
    /// Those that came when the other was there.
    guilty: SmallVec<[Key; 2]>,
    misfit: Misfit,
}

impl Joins {
    /// Notes what the latest look came to; what was in force before it may `stay`.
    pub(super) fn note(&mut self, id: SubscriptionId, join: Option<Join>, stays: bool, resources: &impl Resources) {
        if !stays {
            self.in_force.remove(&id);
        }
        let before = self.refused.remove(&id);
        let Some(Join { listener, routes, made }) = join else { return };
        match made {
            Ok(unenforced) if unenforced.is_empty() => {}
            Ok(unenforced) => {
                let unenforced = unenforced.into();
                self.in_force.insert(id, Joined { listener, routes, unenforced });
            }
            Err(why) => {
                let was = |key: &Key| before.as_ref().is_some_and(|before| before.guilty.contains(key));
                let mut guilty: SmallVec<[Key; 2]> = [&routes, &listener]
                    .into_iter()
                    .filter(|key| was(key) || resources.has_just_come(key))
                    .cloned()
                    .collect();
                let (in_force, effect) = match stays {
                    true => (InForce::Before, "what was in force before stays"),
                    false => (InForce::Nothing, "nothing is served"),
                };
                let reason =
                    format!("listener {:?} and routes {:?} do not fit: {why}; {effect}", listener.name, routes.name);
                if guilty.is_empty() {
                    guilty.push(listener);
                }
                self.refused.insert(id, Refused { guilty, misfit: Misfit { reason: reason.into(), in_force } });
            }
        }
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        self.in_force.remove(&id);
        self.refused.remove(&id);
    }

    /// Every resource that does not fit what it is to be joined with. Of several reasons one is told.
    pub(super) fn misfits(&self) -> BTreeMap<Key, Misfit> {
        let all = self.refused.values().rev();
        all.flat_map(|refused| refused.guilty.iter().map(|key| (key.clone(), refused.misfit.clone()))).collect()
    }

    pub(super) fn in_force(&self) -> impl Iterator<Item = &Joined> {
        self.in_force.values()
    }
}
