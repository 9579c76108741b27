//! What routes carry beside their own fields: our typed metadata and per-filter overrides (gRFC A39).

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Cors, Fault, ResponseClass, ResponseMatch};

use super::FAULT_FILTER;
use super::extension::{self, url};
use super::report::{At, Report};
use super::{cors, fault};
use crate::proto::policy::{self as extra, response_match};

/// Instance name under which CORS policies travel; the filter's usual name.
const CORS_FILTER: &str = "envoy.filters.http.cors";

/// Filter configurations of one level of a route configuration.
#[derive(Clone, Default)]
pub(super) struct Overrides {
    pub(super) fault: Option<Fault>,
    pub(super) cors: Option<Cors>,
}

impl Overrides {
    /// What holds one level further in: the more specific configuration replaces the other.
    pub(super) fn inside(&self, outer: &Self) -> Self {
        Self {
            fault: self.fault.clone().or_else(|| outer.fault.clone()),
            cors: self.cors.clone().or_else(|| outer.cors.clone()),
        }
    }
}

/// Writes the overrides of a route. CORS is wrapped as optional: gRPC clients don't know it and refuse
/// what is neither known nor optional.
pub(super) fn encode_overrides(fault: Option<&Fault>, cors: Option<&Cors>) -> HashMap<String, Any> {
    let mut configs = HashMap::new();
    if let Some(fault) = fault {
        configs.insert(FAULT_FILTER.to_owned(), extension::pack(url::FAULT, &fault::encode(fault)));
    }
    if let Some(cors) = cors {
        let config = extension::pack(url::CORS_POLICY, &cors::encode(cors));
        let wrapped = FilterConfig { config: Some(config), is_optional: true, disabled: false };
        configs.insert(CORS_FILTER.to_owned(), extension::pack(url::FILTER_CONFIG, &wrapped));
    }
    configs
}

/// Reads `typed_per_filter_config`: a key that names no filter is no error, an unknown type is one
/// unless it is optional.
pub(super) fn decode_overrides(configs: &HashMap<String, Any>, at: &At<'_>, report: &mut Report) -> Overrides {
    let mut overrides = Overrides::default();
    // In the order of the keys, so that reports don't change from one decoding to the next.
    for (key, any) in configs.iter().collect::<BTreeMap<_, _>>() {
        read_override(key, any, &mut overrides, &at.key("typed_per_filter_config", key), report);
    }
    overrides
}

fn read_override(key: &str, any: &Any, overrides: &mut Overrides, at: &At<'_>, report: &mut Report) {
    let mut wrapper = FilterConfig { config: Some(any.clone()), ..Default::default() };
    if any.type_url == url::FILTER_CONFIG {
        match extension::unpack(any, at, report) {
            Some(inner) => wrapper = inner,
            None => return,
        }
    }
    let kind = wrapper.config.as_ref().map(extension::type_of).unwrap_or_default();
    match (kind.as_str(), &wrapper.config) {
        (url::FAULT | "", _) if wrapper.disabled && (key == FAULT_FILTER || kind == url::FAULT) => {
            overrides.fault = Some(Fault::default());
        }
        (url::FAULT, Some(config)) => {
            // The usual instance name wins over others.
            if overrides.fault.is_none() || key == FAULT_FILTER {
                overrides.fault =
                    extension::unpack::<HttpFault>(config, at, report).map(|f| fault::decode(&f, at, report));
            }
        }
        (url::CORS_POLICY, Some(config)) if !wrapper.disabled => {
            overrides.cors =
                extension::unpack::<CorsPolicy>(config, at, report).and_then(|c| cors::decode(&c, at, report));
        }
        (url::CORS_POLICY, _) => overrides.cors = None,
        (url::RBAC_PER_ROUTE, _) => report.unenforced(at, "authorization is a matter of the server"),
        _ if wrapper.is_optional || wrapper.disabled => {
            report.unenforced(at, "the configuration of an unknown filter has no effect");
        }
        _ => report.problem(at, format!("the filter type {kind:?} is not supported and not optional")),
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
