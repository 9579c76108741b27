//! Which session affinity requests have in one place (gRFC A55): the same for all, or what a composite filter finds for
//! each (gRFC A103).

use mesh_core::matcher::{MatchTree, RequestView};
use mesh_core::policy::{
    Composite, ExecuteFilters, FilterOverride, HttpFilter, HttpFilterKind, PerMillion, StatefulSession,
};

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
    /// `None` = no filter.
    Composite(Box<MatchTree<Option<Chain>>>),
}

/// The filters of a chain that may give it.
pub(crate) struct Chain {
    share: PerMillion,
    steps: Box<[Step]>,
}

impl Affinity {
    /// What the filters give in the place that `overridden` looks at.
    pub(crate) fn new<'p>(filters: &'p [HttpFilter], overridden: impl Fn(&str) -> Option<&'p FilterOverride>) -> Self {
        let steps = filters.iter().filter_map(|filter| match (&filter.kind, overridden(&filter.name)) {
            (_, Some(FilterOverride::Disabled)) => None,
            (HttpFilterKind::Session(_), Some(FilterOverride::Session(session))) => {
                Some(Step::Session(session.clone()))
            }
            (HttpFilterKind::Composite(_), Some(FilterOverride::Composite(composite))) => Step::of_composite(composite),
            (kind, _) => Step::new(kind),
        });
        let steps: Vec<Step> = steps.collect();
        match <[Step; 1]>::try_from(steps) {
            Ok([Step::Session(session)]) => Self::All(Some(session)),
            Ok(one) => Self::Each(Box::new(one)),
            Err(steps) if steps.is_empty() => Self::All(None),
            Err(steps) => Self::Each(steps.into()),
        }
    }

    /// That of a request. `draw` gives the same each time it is asked about one: whose session is looked at twice has it or
    /// not.
    pub(crate) fn of<'q>(
        &self,
        request: impl FnOnce() -> RequestView<'q>,
        draw: impl Fn() -> u32,
    ) -> Option<&StatefulSession> {
        match self {
            Self::All(session) => session.as_ref(),
            Self::Each(steps) => first(steps, &request(), &draw),
        }
    }
}

impl Step {
    fn new(kind: &HttpFilterKind) -> Option<Self> {
        match kind {
            HttpFilterKind::Session(session) => session.clone().map(Self::Session),
            HttpFilterKind::Composite(composite) => Self::of_composite(composite),
            _ => None,
        }
    }

    fn of_composite(composite: &Composite) -> Option<Self> {
        if !composite.has(&|kind| matches!(kind, HttpFilterKind::Session(Some(_)))) {
            return None;
        }
        let mut chain = |chain: Option<&ExecuteFilters>| {
            let ExecuteFilters { filters, share, .. } = chain?;
            let steps = filters.iter().filter_map(|filter| Self::new(&filter.kind)).collect();
            Some(Chain { share: *share, steps })
        };
        Some(Self::Composite(Box::new(MatchTree::new(composite.matcher.as_deref()?, &mut chain))))
    }
}

fn first<'s>(steps: &'s [Step], request: &RequestView<'_>, draw: &dyn Fn() -> u32) -> Option<&'s StatefulSession> {
    steps.iter().find_map(|step| match step {
        Step::Session(session) => Some(session),
        Step::Composite(tree) => match tree.find(request) {
            Some(Some(chain)) if chain.share == PerMillion::ALL || chain.share.hit(draw()) => {
                first(&chain.steps, request, draw)
            }
            // What finds nothing fails the request, later.
            _ => None,
        },
    })
}
