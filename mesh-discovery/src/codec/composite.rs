//! Composite filters (gRFC A103): `ExtensionWithMatcher` ⇄ [`Composite`]. What decides in them is a tree of conditions
//! (gRFC A106), which is next door, in `matcher_tree`.
//!
//! What a composite holds is packed, part within part: each is counted before it is unfolded, all of a resource together,
//! and as deep as gRPC goes no further one is looked at.

use std::collections::HashSet;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::common::matching::v3::{
    ExtensionWithMatcher as Proto, ExtensionWithMatcherPerRoute as PerRoute,
};
use envoy_types::pb::envoy::extensions::filters::common::matcher::action::v3::SkipFilter;
use envoy_types::pb::envoy::extensions::filters::http::composite::v3::{
    Composite as CompositeProto, ExecuteFilterAction, FilterChainConfiguration,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{
    AuthorizationPolicy, Composite, ExecuteFilters, HttpFilter, HttpFilterKind, OnMatch, PerMillion,
};

use super::extension::{self, url};
use super::report::{At, Report, consider};
use super::{authorization, common, jwt, listener, matcher_tree, rate_limit};

/// Which side a filter is read for. What the other side alone has is refused on this one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// A client.
    Client,
    /// A server.
    Server,
    /// Not known: routes may be either's. What does not belong fails the requests that get it (gRFC A103).
    Either,
}

/// Where filters are being read.
#[derive(Clone, Copy)]
pub(super) struct Within {
    pub(super) side: Side,
    /// Composites around them.
    depth: usize,
}

/// Encodes a composite.
pub(super) fn encode(composite: &Composite) -> Any {
    let plain = extension::pack(url::COMPOSITE, &CompositeProto::default());
    let proto = Proto {
        extension_config: Some(TypedExtensionConfig { name: "composite".to_owned(), typed_config: Some(plain) }),
        xds_matcher: composite.matcher.as_deref().map(matcher_tree::encode),
        ..Default::default()
    };
    extension::pack(url::WITH_MATCHER, &proto)
}

/// Encodes the tree that a route has instead.
pub(super) fn encode_per_route(composite: &Composite) -> Any {
    let xds_matcher = composite.matcher.as_deref().map(matcher_tree::encode);
    extension::pack(url::WITH_MATCHER_PER_ROUTE, &PerRoute { xds_matcher })
}

/// Encodes an end of a tree.
pub(super) fn encode_action(filters: Option<&ExecuteFilters>) -> Any {
    // A chain has a filter at least.
    let chain = filters.map(|filters| (filters, encode_chain(filters))).filter(|(_, chain)| !chain.is_empty());
    let Some((filters, mut chain)) = chain else { return extension::pack(url::SKIP_FILTER, &SkipFilter {}) };
    let mut action = ExecuteFilterAction {
        sample_percent: (filters.share != PerMillion::ALL).then(|| common::runtime_fraction(filters.share)),
        ..Default::default()
    };
    if chain.len() == 1 {
        action.typed_config = chain.pop();
    } else {
        action.filter_chain = Some(FilterChainConfiguration { typed_config: chain });
    }
    extension::pack(url::EXECUTE_FILTERS, &action)
}

fn encode_chain(filters: &ExecuteFilters) -> Vec<TypedExtensionConfig> {
    let named = |name: &str, config: Any| TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) };
    let jwt = filters.jwt.iter().map(|policy| named(&policy.name, extension::pack(url::JWT, &jwt::encode(policy))));
    let mut chain: Vec<_> = jwt.collect();
    // One filter may be two policies: one that is enforced, and one that only observes.
    let pairs = filters.authorization.chunk_by(|a, b| a.name == b.name && !a.dry_run && b.dry_run);
    chain.extend(pairs.map(|pair| named(&pair[0].name, extension::pack(url::RBAC, &encode_rbac(pair)))));
    let others = filters.filters.iter();
    chain.extend(others.filter_map(|filter| Some(named(&filter.name, listener::encode_kind(&filter.kind)?.0))));
    chain
}

fn encode_rbac(policies: &[AuthorizationPolicy]) -> Rbac {
    let encoded = policies.iter().map(|policy| authorization::encode([policy], HashSet::new()));
    encoded.flatten().fold(Rbac::default(), |whole, part| Rbac {
        rules: whole.rules.or(part.filter.rules),
        shadow_rules: whole.shadow_rules.or(part.filter.shadow_rules),
        ..Default::default()
    })
}

/// Decodes a composite of a listener.
pub(super) fn decode(config: &Any, side: Side, at: &At<'_>, report: &mut Report) -> Option<Composite> {
    decode_within(config, Within { side, depth: 0 }, at, report)
}

/// Decodes the tree that a route has instead.
pub(super) fn decode_per_route(config: &Any, side: Side, at: &At<'_>, report: &mut Report) -> Option<Composite> {
    let proto: PerRoute = unpack(config, at, report)?;
    let within = Within { side, depth: 1 };
    read_matcher(proto.xds_matcher.as_ref(), within, at, report)
}

fn decode_within(config: &Any, outside: Within, at: &At<'_>, report: &mut Report) -> Option<Composite> {
    let within = Within { depth: outside.depth + 1, ..outside };
    if within.depth > Composite::MAX_DEPTH {
        let most = Composite::MAX_DEPTH;
        report.problem(at, format!("composites are nested more than {most} deep (gRFC A103)"));
        return None;
    }
    let proto: Proto = unpack(config, at, report)?;
    let Proto { matcher, xds_matcher, extension_config } = &proto;
    if matcher.is_some() {
        // It would decide who may pass, and nothing would.
        if xds_matcher.is_none() {
            report.problem(&at.field("matcher"), "it is deprecated and not read (gRFC A103): use xds_matcher");
            return None;
        }
        report.unenforced(&at.field("matcher"), "xds_matcher decides");
    }
    check_extension(extension_config.as_ref(), &at.field("extension_config"), report)?;
    read_matcher(xds_matcher.as_ref(), within, at, report)
}

/// The filter must be a composite, and say nothing itself.
fn check_extension(proto: Option<&TypedExtensionConfig>, at: &At<'_>, report: &mut Report) -> Option<()> {
    let at = at.field("typed_config");
    let config = proto.and_then(|proto| proto.typed_config.as_ref());
    let Some(config) = config.filter(|config| extension::type_of(config) == url::COMPOSITE) else {
        let kind = config.map(extension::type_of).unwrap_or_default();
        report.problem(&at, format!("{kind:?} may not be chosen by a matcher: a composite filter may (gRFC A103)"));
        return None;
    };
    let CompositeProto { named_filter_chains, matcher } = unpack(config, &at, report)?;
    if !named_filter_chains.is_empty() {
        report.problem(&at.field("named_filter_chains"), "chains are not known by names");
    }
    if matcher.is_some() {
        report.problem(&at.field("matcher"), "the matcher stands beside it (gRFC A103)");
    }
    Some(())
}

fn read_matcher(
    proto: Option<&matcher_tree::Proto>,
    within: Within,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Composite> {
    let Some(proto) = proto else { return Some(Composite::default()) };
    Some(Composite::of(matcher_tree::decode(proto, within, &at.field("xds_matcher"), report)?))
}

/// Decodes an end of a tree.
pub(super) fn decode_action(config: &Any, within: Within, at: &At<'_>, report: &mut Report) -> Option<OnMatch> {
    match extension::type_of(config).as_str() {
        url::SKIP_FILTER => unpack::<SkipFilter>(config, at, report).map(|_| OnMatch::Skip),
        url::EXECUTE_FILTERS => {
            let action: ExecuteFilterAction = unpack(config, at, report)?;
            let filters = read_filters(&action, within, at, report)?;
            Some(OnMatch::Execute(filters.into()))
        }
        other => {
            report.problem(at, format!("{other:?} is not SkipFilter or ExecuteFilterAction (gRFC A103)"));
            None
        }
    }
}

fn read_filters(
    proto: &ExecuteFilterAction,
    within: Within,
    at: &At<'_>,
    report: &mut Report,
) -> Option<ExecuteFilters> {
    consider!(proto, at, report, ExecuteFilterAction {
        read: [typed_config, filter_chain, sample_percent],
        idle: [],
        dynamic_config => "filters are not discovered on their own (gRFC A103)",
        filter_chain_name => "chains are not known by names",
    });
    let mut filters = ExecuteFilters::all(Vec::new());
    filters.share = match &proto.sample_percent {
        None => PerMillion::ALL,
        Some(share) => {
            let at = at.field("sample_percent");
            let at = at.field("default_value");
            let Some(share) = &share.default_value else {
                report.problem(&at, "it is required (gRFC A103)");
                return None;
            };
            common::read_fraction(share, &at, report)?
        }
    };
    let (mut names, mut stage) = (HashSet::new(), 0);
    match (&proto.filter_chain, &proto.typed_config) {
        (Some(chain), single) => {
            report.unenforced_if(single.is_some(), at, "typed_config", "filter_chain counts (gRFC A103)");
            let at = at.field("filter_chain");
            if chain.typed_config.is_empty() {
                report.problem(&at.field("typed_config"), "at least one is required");
                return None;
            }
            for (i, config) in chain.typed_config.iter().enumerate() {
                let at = at.item("typed_config", i);
                if !names.insert(config.name.as_str()) {
                    report.problem(&at.field("name"), format!("{:?} is used twice", config.name));
                }
                check_order(config, &mut stage, &at, report);
                read_filter(config, within, &mut filters, &at, report);
            }
        }
        (None, Some(single)) => read_filter(single, within, &mut filters, &at.field("typed_config"), report),
        (None, None) => {
            report.problem(&at.field("typed_config"), "it is required, or filter_chain is (gRFC A103)");
            return None;
        }
    }
    Some(filters)
}

/// In another order than the one in which a server asks them, a token that one of them takes away would not be seen by the next.
fn check_order(proto: &TypedExtensionConfig, stage: &mut usize, at: &At<'_>, report: &mut Report) {
    let kind = proto.typed_config.as_ref().map(extension::type_of).unwrap_or_default();
    let Some(own) = [url::JWT, url::RBAC, url::WITH_MATCHER].iter().position(|asked| *asked == kind) else { return };
    if own < *stage {
        let reason = "a server asks for tokens first, then RBAC, then the composites of a chain: list them so, or put the chain into \
                      a composite of its own";
        report.problem(at, reason);
    }
    *stage = own.max(*stage);
}

fn read_filter(
    proto: &TypedExtensionConfig,
    within: Within,
    filters: &mut ExecuteFilters,
    at: &At<'_>,
    report: &mut Report,
) {
    if proto.name.is_empty() {
        report.problem(&at.field("name"), "a name is required");
    }
    let at = at.field("typed_config");
    let Some(config) = &proto.typed_config else {
        report.problem(&at, "a configuration is required");
        return;
    };
    let kind = extension::type_of(config);
    // It is unfolded by who reads it; a composite counts itself.
    if kind != url::WITH_MATCHER && !report.unfold(&config.value, &at) {
        return;
    }
    let refused = match (kind.as_str(), within.side) {
        (url::ROUTER, _) => Some("what ends all filters may not be in a composite (gRFC A103)"),
        (url::CORS, _) => Some("its settings are those of the routes: take it out of the composite"),
        (url::EXT_AUTHZ, _) => {
            Some("external authorizers are asked for CUSTOM policies of the mesh's own control plane")
        }
        (url::RBAC | url::JWT | url::CALLER_RATE_LIMIT, Side::Client) => Some("a client has no such filter (gRFC A39)"),
        (url::FAULT | url::ADMISSION | url::SESSION, Side::Server) => Some("a server has no such filter (gRFC A39)"),
        _ => None,
    };
    if let Some(reason) = refused {
        return report.problem(&at, reason);
    }
    let name = proto.name.clone();
    let kind = match kind.as_str() {
        url::RBAC => {
            if let Some(rbac) = extension::unpack(config, &at, report) {
                filters.authorization.extend(authorization::decode(&name, &rbac, None, &at, report));
            }
            return;
        }
        url::JWT => {
            if let Some(proto) = extension::unpack(config, &at, report) {
                jwt::check_route(&proto, &at, report);
                filters.jwt.extend(jwt::decode(&name, &proto, None, &at, report));
            }
            return;
        }
        url::CALLER_RATE_LIMIT => extension::unpack(config, &at, report)
            .and_then(|limit| rate_limit::decode_callers(&limit, &at, report))
            .map(HttpFilterKind::CallerRateLimit),
        url::WITH_MATCHER => decode_within(config, within, &at, report).map(HttpFilterKind::Composite),
        other => match listener::decode_kind(other, config, &at, report) {
            Some(kind) => kind,
            None => {
                let kind = extension::name_of(config);
                return report.problem(&at, format!("the filter type {kind} is not supported here (gRFC A103)"));
            }
        },
    };
    filters.filters.extend(kind.map(|kind| HttpFilter { name, kind }));
}

/// Decodes what is packed in a composite, if there is room for it.
pub(super) fn unpack<M: prost::Message + Default + 'static>(
    config: &Any,
    at: &At<'_>,
    report: &mut Report,
) -> Option<M> {
    if !report.unfold(&config.value, at) {
        return None;
    }
    extension::unpack(config, at, report)
}
