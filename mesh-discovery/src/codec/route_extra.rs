//! What routes carry beside their own fields: our typed metadata and per-filter overrides (gRFC A39).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    PerRouteConfig, per_route_config::RequirementSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as RbacProto, RbacPerRoute};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    Composite, Cors, FilterOverride, FilterOverrides, LocalRateLimit, ResponseClass, ResponseMatch,
};

use super::composite::{self, Side};
use super::extension::{self, url};
use super::report::{At, Report};
use super::{cors, fault, rate_limit, session};
use crate::proto::policy::{self as extra, response_match};

/// Instance name under which CORS policies travel; the filter's usual name.
const CORS_FILTER: &str = "envoy.filters.http.cors";

/// Filter configurations of one level of a route configuration.
#[derive(Default)]
pub(super) struct Overrides {
    pub(super) filters: Arc<FilterOverrides>,
    /// How those of them are configured that are off: what holds once one is on further in.
    put_away: FilterOverrides,
    /// Of a server's filters, by instance name, of this level alone: they are applied where they are read.
    pub(super) guards: BTreeMap<String, Guard>,
    /// CORS, if anything is said of it: `Some(None)` = it is off.
    pub(super) cors: Option<Option<Arc<Cors>>>,
    /// How it is configured, whether it is on or not.
    cors_config: Option<Option<Arc<Cors>>>,
    // The instance name of its filter.
    cors_key: Option<String>,
    /// The older form, of a virtual host: it counts where no filter configuration says anything, nor a route's own field.
    pub(super) cors_field: Option<Arc<Cors>>,
}

/// How a filter that guards a server differs in one place.
pub(super) enum Guard {
    /// It is off, whatever it is.
    Off,
    /// It demands nothing here, if it is of this type.
    Idle(&'static str),
    /// It is on, as it is configured, or as further out.
    On,
    /// Another limit.
    RateLimit(Box<LocalRateLimit>),
    /// Other authorization rules.
    Rbac(Box<RbacProto>),
    /// The requirement of this name.
    Requirement(String),
    /// Another tree.
    Composite(Box<Composite>),
}

impl Overrides {
    /// What holds one level further in: the more specific configuration replaces the other. A level without any of its
    /// own, as nearly every route is, shares the other's.
    pub(super) fn inside(mut self, outer: &Self) -> Self {
        let cors = self.cors_inside(outer);
        if self.filters.is_empty() {
            (self.filters, self.put_away) = (outer.filters.clone(), outer.put_away.clone());
        } else if !outer.filters.is_empty() {
            self.filters_inside(outer);
        }
        Self {
            filters: self.filters,
            put_away: self.put_away,
            guards: BTreeMap::new(),
            cors,
            cors_config: self.cors_config.or_else(|| outer.cors_config.clone()),
            cors_key: self.cors_key.or_else(|| outer.cors_key.clone()),
            cors_field: outer.cors_field.clone(),
        }
    }

    fn filters_inside(&mut self, outer: &Self) {
        let (mut filters, mut put_away) = (FilterOverrides::clone(&outer.filters), outer.put_away.clone());
        for (name, own) in Arc::unwrap_or_clone(std::mem::take(&mut self.filters)) {
            let before = filters.get(&name).filter(|before| !is_switch(before)).cloned();
            let config = self.put_away.remove(&name).or(before).or_else(|| put_away.remove(&name));
            // That it is on says nothing of how: the innermost configuration there is holds, also one that is off in
            // between (Envoy).
            let holds = match &*own {
                FilterOverride::Enabled => config.clone().unwrap_or(own),
                _ => own,
            };
            if matches!(*holds, FilterOverride::Disabled) {
                put_away.extend(config.map(|config| (name.clone(), config)));
            }
            filters.insert(name, holds);
        }
        (self.filters, self.put_away) = (filters.into(), put_away);
    }

    /// CORS one level further in.
    fn cors_inside(&self, outer: &Self) -> Option<Option<Arc<Cors>>> {
        // Where the kind of the filter is not said here: it is that of the name further out.
        let key = outer.cors_key.as_deref().unwrap_or(CORS_FILTER);
        match self.filters.get(key).map(|own| &**own) {
            _ if self.cors.is_some() => self.cors.clone(),
            Some(FilterOverride::Disabled) => Some(None),
            Some(FilterOverride::Enabled) => outer.cors_config.clone(),
            _ => outer.cors.clone(),
        }
    }

    /// Of an entry of a split, in a route: what is on there as it is configured outside a route that has it off. What the
    /// route itself says stays the route's, which shares it out among its entries.
    pub(super) fn of_entry(self, route: &Self) -> FilterOverrides {
        let mut filters = Arc::unwrap_or_clone(self.filters);
        for (name, own) in &mut filters {
            if let (FilterOverride::Enabled, Some(config)) = (&**own, route.put_away.get(name)) {
                *own = config.clone();
            }
        }
        filters
    }
}

/// Whether it says that a filter is on or off, and nothing else.
fn is_switch(own: &FilterOverride) -> bool {
    matches!(own, FilterOverride::Enabled | FilterOverride::Disabled)
}

/// A filter is on, as it is configured, or off.
pub(super) fn encode_switch(on: bool) -> Any {
    let config = on.then(Any::default);
    extension::pack(url::FILTER_CONFIG, &FilterConfig { config, is_optional: true, disabled: !on })
}

/// Writes overrides. What gRPC clients don't know is wrapped as optional: they refuse what is neither
/// known nor optional.
pub(super) fn encode_overrides(filters: &FilterOverrides, cors: Option<&Cors>) -> HashMap<String, Any> {
    let wrap = |config: Any| {
        let config = FilterConfig { config: Some(config), is_optional: true, disabled: false };
        extension::pack(url::FILTER_CONFIG, &config)
    };
    let mut configs = HashMap::new();
    for (name, filter) in filters {
        let config = match &**filter {
            FilterOverride::Disabled => encode_switch(false),
            FilterOverride::Enabled => encode_switch(true),
            FilterOverride::Fault(fault) => extension::pack(url::FAULT, &fault::encode(fault)),
            FilterOverride::RateLimit(limit) => wrap(extension::pack(url::RATE_LIMIT, &rate_limit::encode(limit))),
            FilterOverride::Session(session) => {
                wrap(extension::pack(url::SESSION_PER_ROUTE, &session::encode_per_route(session)))
            }
            FilterOverride::Composite(composite) if composite.judges() => composite::encode_per_route(composite),
            FilterOverride::Composite(composite) => wrap(composite::encode_per_route(composite)),
            // A kind that this codec does not know cannot be sent.
            _ => continue,
        };
        configs.insert(name.clone(), config);
    }
    if let Some(cors) = cors {
        let config = extension::pack(url::CORS_POLICY, &cors::encode(cors));
        configs.insert(CORS_FILTER.to_owned(), wrap(config));
    }
    configs
}

/// Reads `typed_per_filter_config`: a key that names no filter is no error, an unknown type is one
/// unless it is optional.
pub(super) fn decode_overrides(
    configs: &HashMap<String, Any>,
    side: Side,
    at: &At<'_>,
    report: &mut Report,
) -> Overrides {
    let (mut overrides, mut filters) = (Overrides::default(), FilterOverrides::new());
    // In the order of the keys, so that reports don't change from one decoding to the next.
    for (key, any) in configs.iter().collect::<BTreeMap<_, _>>() {
        let at = at.key("typed_per_filter_config", key);
        let filter = read_override((key, any), side, &mut overrides, &at, report);
        filters.extend(filter.map(|filter| (key.to_owned(), filter.into())));
    }
    if !filters.is_empty() {
        overrides.filters = filters.into();
    }
    overrides
}

fn read_override(
    (key, any): (&str, &Any),
    side: Side,
    overrides: &mut Overrides,
    at: &At<'_>,
    report: &mut Report,
) -> Option<FilterOverride> {
    let mut wrapper = FilterConfig { config: Some(any.clone()), ..Default::default() };
    let wrapped = any.type_url == url::FILTER_CONFIG;
    if wrapped {
        match extension::unpack(any, at, report) {
            Some(inner) => wrapper = inner,
            None => return None,
        }
    }
    let kind = wrapper.config.as_ref().map(extension::type_of).unwrap_or_default();
    if wrapper.disabled {
        if kind == url::CORS_POLICY || key == CORS_FILTER {
            overrides.cors = Some(None);
            return None;
        }
        overrides.guards.insert(key.to_owned(), Guard::Off);
        return Some(FilterOverride::Disabled);
    }
    let Some(config) = &wrapper.config else {
        if !wrapper.is_optional {
            report.problem(at, "a configuration is required");
        }
        return None;
    };
    match kind.as_str() {
        url::FAULT => extension::unpack::<HttpFault>(config, at, report)
            .map(|fault| FilterOverride::Fault(fault::decode(&fault, at, report))),
        url::RATE_LIMIT => extension::unpack(config, at, report)
            .and_then(|limit| rate_limit::decode(&limit, at, report))
            .map(FilterOverride::RateLimit),
        url::SESSION_PER_ROUTE => {
            let session = extension::unpack(config, at, report).and_then(|s| session::decode_per_route(&s, at, report));
            // To do nothing is a configuration too: that the filter is on further in does not change it.
            if session == Some(FilterOverride::Disabled) {
                overrides.put_away.insert(key.to_owned(), FilterOverride::Disabled.into());
            }
            session
        }
        url::WITH_MATCHER_PER_ROUTE => {
            composite::decode_per_route(config, side, at, report).map(FilterOverride::Composite)
        }
        url::CORS_POLICY => {
            let policy = extension::unpack::<CorsPolicy>(config, at, report);
            overrides.cors = Some(policy.and_then(|policy| cors::decode(&policy, at, report)).map(Arc::new));
            overrides.cors_config.clone_from(&overrides.cors);
            overrides.cors_key = Some(key.to_owned());
            None
        }
        url::RBAC_PER_ROUTE => {
            let guard = extension::unpack::<RbacPerRoute>(config, at, report);
            let guard = guard.map(|g| g.rbac.map_or(Guard::Idle(url::RBAC), |rbac| Guard::Rbac(rbac.into())));
            overrides.guards.extend(guard.map(|guard| (key.to_owned(), guard)));
            None
        }
        url::JWT_PER_ROUTE => {
            overrides.guards.extend(read_jwt(config, at, report).map(|guard| (key.to_owned(), guard)));
            None
        }
        // Nothing but the word that it is on (Envoy `FilterConfig` with `config: {}`).
        "" if wrapped && *config == Any::default() => {
            overrides.guards.insert(key.to_owned(), Guard::On);
            Some(FilterOverride::Enabled)
        }
        _ if wrapper.is_optional => {
            report.unenforced(at, "the configuration of an unknown filter has no effect");
            None
        }
        _ => {
            report.problem(at, format!("the filter type {kind:?} is not supported and not optional"));
            None
        }
    }
}

fn read_jwt(config: &Any, at: &At<'_>, report: &mut Report) -> Option<Guard> {
    let config: PerRouteConfig = extension::unpack(config, at, report)?;
    match config.requirement_specifier {
        Some(RequirementSpecifier::Disabled(true)) => Some(Guard::Idle(url::JWT)),
        Some(RequirementSpecifier::RequirementName(name)) => Some(Guard::Requirement(name)),
        Some(RequirementSpecifier::Disabled(false)) | None => {
            report.problem(at, "a requirement's name, or disabled: true, is required");
            None
        }
    }
}

/// Our part of a route's response classes.
pub(super) fn encode_class(class: &ResponseClass) -> extra::ResponseClass {
    extra::ResponseClass { matcher: Some(encode_match(&class.matcher)), is_failure: class.is_failure }
}

fn encode_match(matcher: &ResponseMatch) -> extra::ResponseMatch {
    use response_match::{Rule, Set, StatusRange};
    let set = |list: &[ResponseMatch]| Set { rules: list.iter().map(encode_match).collect() };
    let rule = match matcher {
        ResponseMatch::Status { min, max } => Rule::Status(StatusRange { min: (*min).into(), max: (*max).into() }),
        ResponseMatch::All(list) => Rule::All(set(list)),
        ResponseMatch::Any(list) => Rule::Any(set(list)),
        ResponseMatch::Not(inner) => Rule::Not(Box::new(encode_match(inner))),
    };
    extra::ResponseMatch { rule: Some(rule) }
}

/// Reads a response class. Depth is bounded by protobuf's own limit on nesting.
pub(super) fn decode_class(proto: &extra::ResponseClass, at: &At<'_>, report: &mut Report) -> Option<ResponseClass> {
    let Some(matcher) = &proto.matcher else {
        report.problem(at, "a condition is required");
        return None;
    };
    Some(ResponseClass { matcher: decode_match(matcher, &at.field("matcher"), report)?, is_failure: proto.is_failure })
}

fn decode_match(proto: &extra::ResponseMatch, at: &At<'_>, report: &mut Report) -> Option<ResponseMatch> {
    use response_match::Rule;
    let set = |list: &[extra::ResponseMatch], report: &mut Report| {
        list.iter().enumerate().map(|(i, m)| decode_match(m, &at.item("rules", i), report)).collect::<Option<Vec<_>>>()
    };
    match &proto.rule {
        Some(Rule::Status(range)) => match (u16::try_from(range.min), u16::try_from(range.max)) {
            (Ok(min), Ok(max)) => Some(ResponseMatch::Status { min, max }),
            _ => {
                report.problem(at, format!("{} to {} are not statuses", range.min, range.max));
                None
            }
        },
        Some(Rule::All(list)) => set(&list.rules, report).map(ResponseMatch::All),
        Some(Rule::Any(list)) => set(&list.rules, report).map(ResponseMatch::Any),
        Some(Rule::Not(inner)) => Some(ResponseMatch::Not(Box::new(decode_match(inner, &at.field("not"), report)?))),
        None => {
            report.problem(at, "a condition is required");
            None
        }
    }
}
