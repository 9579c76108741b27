//! Which session affinity requests have in one place (gRFC A55): the same for all, or what a composite filter finds for
//! each (gRFC A103).

use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::matcher::RequestView;
use mesh_core::policy::{FilterOverride, HttpFilter, HttpFilterKind, StatefulSession};

use super::composite::{Composite, Draws};
use super::filters::{Compiler, Place};

/// The session affinity of a place.
pub(crate) enum Affinity {
    /// The same for every request.
    All(Option<StatefulSession>),
    /// The first that one of these gives.
    Each(Box<[Step]>),
}

/// One filter that may give it.
pub(crate) enum Step {
    Session(StatefulSession),
    /// The same that requests pass.
    Composite(Arc<Composite>),
}

impl Affinity {
    /// What the filters give in the place that `overridden` looks at, for requests to `cluster`: as they are compiled there.
    pub(crate) fn new<'p>(
        filters: &'p [HttpFilter],
        cluster: Option<&ClusterName>,
        overridden: impl Fn(&str) -> Option<(&'p FilterOverride, Place)>,
        compiler: &mut Compiler<'_>,
    ) -> Self {
        let steps = filters.iter().filter_map(|filter| match &filter.kind {
            HttpFilterKind::Session(session) => match overridden(&filter.name) {
                Some((FilterOverride::Disabled, _)) => None,
                Some((FilterOverride::Session(session), _)) => Some(Step::Session(session.clone())),
                _ => session.clone().map(Step::Session),
            },
            HttpFilterKind::Composite(composite) => {
                let made = match overridden(&filter.name) {
                    Some((FilterOverride::Disabled, _)) => None,
                    Some((FilterOverride::Composite(own), place)) => {
                        compiler.composite(own, &filter.name, place, cluster)
                    }
                    _ => compiler.composite(composite, &filter.name, None, cluster),
                };
                made.filter(|made| made.has_sessions()).map(Step::Composite)
            }
            _ => None,
        });
        let steps: Vec<Step> = steps.collect();
        match <[Step; 1]>::try_from(steps) {
            Ok([Step::Session(session)]) => Self::All(Some(session)),
            Ok(one) => Self::Each(Box::new(one)),
            Err(steps) if steps.is_empty() => Self::All(None),
            Err(steps) => Self::Each(steps.into()),
        }
    }

    /// That of a request, as it came. What finds nothing fails the request, later.
    pub(crate) fn of<'q>(
        &self,
        request: impl FnOnce() -> RequestView<'q>,
        draws: &Draws<'_>,
    ) -> Option<&StatefulSession> {
        match self {
            Self::All(session) => session.as_ref(),
            Self::Each(steps) => {
                let request = request();
                steps.iter().find_map(|step| match step {
                    Step::Session(session) => Some(session),
                    Step::Composite(composite) => composite.session(&request, draws),
                })
            }
        }
    }
}
