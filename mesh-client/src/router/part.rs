//! Which part of an aggregate serves a request, and which one the request goes on to if nothing of that can be reached.
//!
//! Refuses to know what a request is.

use std::sync::Arc;

use mesh_core::policy::PerMillion;
use smallvec::SmallVec;

use super::Slot;
use crate::cluster::Backend;
use crate::connect::Needs;
use crate::env::Env;

/// The cluster that a request goes to.
#[derive(Clone, Copy)]
pub(crate) struct Part<'r> {
    pub(crate) cluster: &'r Backend,
    // If it is a part of an aggregate, all of its parts, none of them an aggregate; else none.
    all: &'r [Slot],
    // Some of them would take requests, if only they could be connected to; no request finds out whether they can.
    passes: bool,
}

impl<'r> Part<'r> {
    /// It is all there is.
    pub(crate) fn only(cluster: &'r Backend) -> Self {
        Self { cluster, all: &[], passes: false }
    }

    /// The part of an aggregate that serves a request: drawn by what each can take of what those before it leave, as Envoy
    /// shares requests out among priorities; one whose endpoints are away can take nothing until a connection stands. If none
    /// can take any, the first that can be reached whatever the health of its endpoints, else one that has any.
    pub(super) fn of(all: &'r [Slot], env: &Env) -> Option<Self> {
        let ready = || ready(all);
        let mut passes = false;
        let cluster = draw(ready(), &mut passes, env).or_else(|| {
            let there = ready().find(|cluster| !cluster.is_away());
            // Where all are away a request finds out, of one of them: whether others are back it is not to tell.
            let reachable = there.or_else(|| ready().find(|cluster| cluster.is_reachable(env)));
            reachable.or_else(|| ready().find(|cluster| cluster.is_usable())).or_else(|| ready().next())
        })?;
        Some(Self { cluster, all, passes })
    }

    /// The part that a request goes on to which had nobody to take it here, nor in those that it `left` before. Where none can take
    /// it as far as is known one whose flag is old may.
    pub(crate) fn next(self, left: &[&Backend], env: &Env) -> Option<Self> {
        let reachable = || self.others(left).find(|cluster| cluster.is_reachable(env));
        Some(Self { cluster: self.there(left, env).or_else(reachable)?, ..self })
    }

    /// Whether there is one of them that can take it as far as is known.
    pub(crate) fn has_next(self, left: &[&Backend], env: &Env) -> bool {
        self.there(left, env).is_some()
    }

    fn there(self, left: &[&Backend], env: &Env) -> Option<&'r Backend> {
        draw(self.others(left), &mut false, env).or_else(|| self.others(left).find(|cluster| !cluster.is_away()))
    }

    fn others(self, left: &[&Backend]) -> impl Iterator<Item = &'r Backend> {
        ready(self.all).filter(move |cluster| {
            !std::ptr::eq(*cluster, self.cluster) && !left.iter().any(|left| std::ptr::eq(*cluster, *left))
        })
    }

    /// Sees to it that parts are back once they can be connected to. `needs` as in [`Cluster::look_again`].
    ///
    /// [`Cluster::look_again`]: crate::cluster::Cluster::look_again
    pub(crate) fn look_again(self, needs: Option<Needs>, env: &Arc<Env>) {
        if self.passes {
            let others = ready(self.all).filter(|cluster| !std::ptr::eq(*cluster, self.cluster));
            others.for_each(|cluster| cluster.look_again(&cluster.members(), needs, None, None, env));
        }
    }
}

fn ready(all: &[Slot]) -> impl Iterator<Item = &Backend> {
    all.iter().filter_map(|slot| if let Slot::Ready(cluster) = slot { Some(cluster) } else { None })
}

/// One of those that can take requests. `passes` = one before was passed over for being away.
fn draw<'r>(ready: impl Iterator<Item = &'r Backend>, passes: &mut bool, env: &Env) -> Option<&'r Backend> {
    let all = u64::from(PerMillion::ALL.get());
    // Each with the running sum.
    let (mut able, mut whole) = (SmallVec::<[(&Backend, u64); 4]>::new(), 0);
    for cluster in ready {
        let Some(takes) = cluster.availability() else {
            *passes = true;
            continue;
        };
        whole = all.min(whole + u64::from(takes.get()));
        able.push((cluster, whole));
        if whole == all {
            break;
        }
    }
    if whole == 0 {
        return None;
    }
    // Most of the time the first takes everything.
    let point = if able[0].1 == whole { 0 } else { env.draw(whole) };
    able.into_iter().find(|(_, until)| point < *until).map(|(cluster, _)| cluster)
}
