//! What a route does: forwarding, redirects, direct answers.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, RoutingPriority, data_source::Specifier};
use envoy_types::pb::envoy::config::route::v3::{
    self as xds, DirectResponseAction as AnswerProto, RouteAction as Proto, WeightedCluster as SplitProto,
    redirect_action, route,
    route_action::{
        ClusterSpecifier, HashPolicy as HashProto, HostRewriteSpecifier, MaxStreamDuration,
        RequestMirrorPolicy as MirrorProto, hash_policy,
    },
    weighted_cluster::{self, ClusterWeight},
};
use http::HeaderName;
use mesh_core::id::ClusterName;
use mesh_core::policy::{
    AuthorityRewrite, ClusterChoice, DirectResponse, Forward, HashPolicy, HashSource, Mirror, PathRewrite, PerMillion,
    Redirect, RegexRewrite, Rewrite, RouteAction, WeightedCluster, WeightedClusters,
};

use super::common::{self, non_empty};
use super::composite::Side;
use super::header::{self, read_policy};
use super::report::{At, Report, consider};
use super::route::Outer;
use super::route_extra::{self, Overrides};
use super::{cors, extension, matcher, retry};
use crate::proto::policy::{RetryExtra, RoutePolicy};

/// Largest body of a direct answer.
const MAX_BODY: usize = 1 << 20;
/// The filter state that gRPC hashes by: one value per channel (gRFC A42).
const CHANNEL_ID: &str = "io.grpc.channel_id";

/// Encodes an action; what xDS cannot say goes into `ours`.
pub(super) fn encode(action: &RouteAction, ours: &mut RoutePolicy) -> route::Action {
    match action {
        RouteAction::Forward(forward) => route::Action::Route(encode_forward(forward, ours)),
        RouteAction::Redirect(redirect) => route::Action::Redirect(encode_redirect(redirect)),
        RouteAction::DirectResponse(answer) => route::Action::DirectResponse(xds::DirectResponseAction {
            status: answer.status.into(),
            body: (!answer.body.is_empty()).then(|| DataSource {
                specifier: Some(Specifier::InlineBytes(answer.body.clone())),
                ..Default::default()
            }),
            ..Default::default()
        }),
        RouteAction::NonForwarding => route::Action::NonForwardingAction(Default::default()),
    }
}

/// Decodes an action; `None` without a problem is a route to be skipped.
pub(super) fn decode(
    proto: Option<&route::Action>,
    ours: &RoutePolicy,
    overrides: &Overrides,
    outer: &Outer,
    at: &At<'_>,
    report: &mut Report,
) -> Option<RouteAction> {
    let forwards = matches!(proto, Some(route::Action::Route(_)));
    // As in Envoy, whose filter passes over routes without a cluster.
    let effect = "answers that no endpoint gives get no CORS headers, as in Envoy";
    let wanted = overrides.cors.as_ref().unwrap_or(&outer.filters.cors_field).is_some();
    report.unenforced_if(wanted && !forwards, at, "cors", effect);
    match proto {
        Some(route::Action::Route(action)) => {
            let forward = decode_forward(action, ours, overrides, outer, &at.field("route"), report)?;
            Some(RouteAction::Forward(Box::new(forward)))
        }
        Some(route::Action::Redirect(redirect)) => {
            decode_redirect(redirect, &at.field("redirect"), report).map(RouteAction::Redirect)
        }
        Some(route::Action::DirectResponse(answer)) => {
            decode_answer(answer, &at.field("direct_response"), report).map(RouteAction::DirectResponse)
        }
        Some(route::Action::NonForwardingAction(_)) => Some(RouteAction::NonForwarding),
        Some(route::Action::FilterAction(_)) => {
            report.unenforced(&at.field("filter_action"), "matching requests are answered 501");
            Some(unsupported())
        }
        None => {
            report.unenforced(at, "the route has no action that is known: matching requests are answered 501");
            Some(unsupported())
        }
    }
}

/// An action that is inappropriate, unset, or newer than this codec, which is the same to protobuf: the route is taken, and
/// what matches fails (gRFC A28, A36).
fn unsupported() -> RouteAction {
    let body = b"the route's action is not supported".to_vec();
    RouteAction::DirectResponse(DirectResponse { status: 501, body })
}

fn encode_forward(forward: &Forward, ours: &mut RoutePolicy) -> xds::RouteAction {
    let retry = forward.retry.as_ref().map(retry::encode);
    ours.retry = retry.as_ref().map(|(_, extra)| extra.clone()).filter(|extra| *extra != RetryExtra::default());
    let specifier = match &forward.to {
        ClusterChoice::Cluster(name) => ClusterSpecifier::Cluster(name.to_string()),
        ClusterChoice::Header(name) => ClusterSpecifier::ClusterHeader(name.to_string()),
        ClusterChoice::Weighted(split) => ClusterSpecifier::WeightedClusters(xds::WeightedCluster {
            clusters: split.entries().iter().map(encode_weight).collect(),
            ..Default::default()
        }),
    };
    let mut action = xds::RouteAction {
        cluster_specifier: Some(specifier),
        idle_timeout: forward.idle_timeout.map(common::duration),
        retry_policy: retry.map(|(policy, _)| policy),
        request_mirror_policies: forward.mirrors.iter().map(encode_mirror).collect(),
        hash_policy: forward.hash.iter().map(encode_hash).collect(),
        hedge_policy: forward.hedge.as_ref().map(retry::encode_hedge),
        metadata_match: extension::lb_metadata(&forward.metadata_match),
        priority: if forward.high_priority { RoutingPriority::High } else { RoutingPriority::Default }.into(),
        ..Default::default()
    };
    encode_timeouts(forward, &mut action, ours);
    encode_rewrite(&forward.rewrite, &mut action);
    action
}

fn decode_forward(
    proto: &Proto,
    ours: &RoutePolicy,
    overrides: &Overrides,
    outer: &Outer,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Forward> {
    note_unenforced(proto, at, report);
    let Timeouts { timeout, max_stream_duration, grpc_timeout_max } = decode_timeouts(proto, ours, at, report);
    let own = proto.request_mirror_policies.iter().enumerate();
    let mut mirrors: Vec<Mirror> =
        own.filter_map(|(i, m)| decode_mirror(m, &at.item("request_mirror_policies", i), report)).collect();
    if proto.request_mirror_policies.is_empty() {
        mirrors.clone_from(&outer.mirrors);
    }
    let hedge = proto.hedge_policy.as_ref().map(|h| retry::decode_hedge(h, &at.field("hedge_policy"), report));
    let hash = proto.hash_policy.iter().enumerate();
    let hash = hash.filter_map(|(i, h)| decode_hash(h, &at.item("hash_policy", i), report)).collect();
    let extra = ours.retry.clone().unwrap_or_default();
    let retry = proto.retry_policy.as_ref();
    let retry = retry.and_then(|r| retry::decode(r, &extra, &at.field("retry_policy"), report));
    let cors = match (&overrides.cors, &proto.cors) {
        (Some(cors), _) => cors.clone(),
        (None, Some(field)) => cors::decode_field(field, &at.field("cors"), report).map(Arc::new),
        (None, None) => outer.filters.cors_field.clone(),
    };
    let rewrite = decode_rewrite(proto, at, report);
    Some(Forward {
        to: decode_choice(proto.cluster_specifier.as_ref(), overrides, &outer.plugins, at, report)?,
        timeout,
        idle_timeout: common::nonzero_duration(proto.idle_timeout.as_ref(), at, "idle_timeout", report),
        max_stream_duration,
        grpc_timeout_max,
        retry,
        hedge: hedge.or_else(|| outer.hedge.clone()),
        high_priority: proto.priority == i32::from(RoutingPriority::High),
        metadata_match: extension::read_lb_metadata(proto.metadata_match.as_ref()),
        mirrors,
        rewrite,
        hash,
        cors,
    })
}

fn note_unenforced(proto: &Proto, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Proto {
        read: [
            metadata_match, prefix_rewrite, regex_rewrite, path_rewrite_policy, path_rewrite, append_x_forwarded_host,
            timeout, idle_timeout, retry_policy, request_mirror_policies, priority, hash_policy, cors, hedge_policy,
            max_stream_duration, cluster_specifier, host_rewrite_specifier,
        ],
        // What only the fields beside them need.
        idle: [include_vh_rate_limits, max_internal_redirects],
        cluster_not_found_response_code => "for want of a cluster calls fail as unavailable (503)",
        flush_timeout => "the idle timeout covers flushing",
        early_data_policy => "requests are not sent in early data",
        retry_policy_typed_config => "retry extensions are not known",
        rate_limits => "requests are not rate limited",
        max_grpc_timeout => "max_stream_duration rules gRPC deadlines",
        grpc_timeout_offset => "gRPC deadlines are taken as they are",
        upgrade_configs => "upgrades follow the client's own rules",
        internal_redirect_policy => "redirects go back to the caller",
        internal_redirect_action => "redirects go back to the caller",
    });
    let set = proto.max_stream_duration.is_some_and(|m| m.grpc_timeout_header_offset.is_some());
    let name = "max_stream_duration.grpc_timeout_header_offset";
    report.unenforced_if(set, at, name, "gRPC deadlines are taken as they are");
}

/// Writes the timeouts so that Envoy and gRPC clients obey both: Envoy reads `timeout`, gRPC reads only
/// `max_stream_duration` (gRFC A31). No timeout is an explicit 0, for Envoy would take 15 s.
fn encode_timeouts(forward: &Forward, action: &mut xds::RouteAction, ours: &mut RoutePolicy) {
    let (timeout, stream, grpc) = (forward.timeout, forward.max_stream_duration, forward.grpc_timeout_max);
    action.timeout = Some(common::duration(timeout.unwrap_or_default()));
    let header_max = match timeout {
        None => grpc,
        Some(timeout) => match grpc {
            Some(grpc) => Some(if is_shorter(grpc, timeout) { grpc } else { timeout }),
            // What is said of all streams is shorter anyway.
            None => (!stream.is_some_and(|stream| is_shorter(stream, timeout))).then_some(timeout),
        },
    };
    if stream.is_some() || header_max.is_some() {
        action.max_stream_duration = Some(MaxStreamDuration {
            max_stream_duration: stream.map(common::duration),
            grpc_timeout_header_max: header_max.map(common::duration),
            grpc_timeout_header_offset: None,
        });
    }
    if timeout.is_some() {
        ours.grpc_timeout_max = grpc.map(common::duration);
    }
}

/// Whether a limit that is one leaves no more than another.
fn is_shorter(limit: Duration, than: Duration) -> bool {
    !limit.is_zero() && limit <= than
}

/// Times that a route limits.
struct Timeouts {
    timeout: Option<Duration>,
    max_stream_duration: Option<Duration>,
    grpc_timeout_max: Option<Duration>,
}

/// A control plane made for gRPC sends only `max_stream_duration`; an unset `timeout` is none, as for gRPC, and not
/// Envoy's 15 s.
fn decode_timeouts(proto: &xds::RouteAction, ours: &RoutePolicy, at: &At<'_>, report: &mut Report) -> Timeouts {
    let timeout = common::nonzero_duration(proto.timeout.as_ref(), at, "timeout", report);
    let at_max = at.field("max_stream_duration");
    let max = proto.max_stream_duration.unwrap_or_default();
    // Here 0 is a word of its own: no limit, whatever the listener says.
    let stream = max.max_stream_duration.as_ref();
    let max_stream_duration = common::opt_duration(stream, &at_max, "max_stream_duration", report);
    let header = common::opt_duration(max.grpc_timeout_header_max.as_ref(), &at_max, "grpc_timeout_header_max", report);
    let own = common::opt_duration(ours.grpc_timeout_max.as_ref(), at, "grpc_timeout_max", report);
    // A ceiling equal to the timeout is how a timeout is told to gRPC, and no ceiling of its own, unless it stands in the
    // place of a shorter life of all streams (gRFC A31).
    let stands_for_all = |header| max_stream_duration.is_some_and(|stream| is_shorter(stream, header));
    let is_own = |header: &Duration| Some(*header) != timeout || stands_for_all(*header);
    let grpc_timeout_max = own.or(header.filter(is_own));
    Timeouts { timeout, max_stream_duration, grpc_timeout_max }
}

fn encode_weight(entry: &WeightedCluster) -> ClusterWeight {
    let lists = header::encode(&entry.headers);
    ClusterWeight {
        name: entry.name.to_string(),
        weight: common::uint32(entry.weight),
        request_headers_to_add: lists.request_add,
        request_headers_to_remove: lists.request_remove,
        response_headers_to_add: lists.response_add,
        response_headers_to_remove: lists.response_remove,
        typed_per_filter_config: route_extra::encode_overrides(&entry.filters, None),
        metadata_match: extension::lb_metadata(&entry.metadata_match),
        host_rewrite_specifier: entry
            .authority
            .clone()
            .map(weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    }
}

fn decode_choice(
    proto: Option<&ClusterSpecifier>,
    overrides: &Overrides,
    plugins: &[String],
    at: &At<'_>,
    report: &mut Report,
) -> Option<ClusterChoice> {
    match proto {
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => {
            report.problem(&at.field("cluster"), "a name is required");
            None
        }
        Some(ClusterSpecifier::Cluster(name)) => Some(ClusterChoice::Cluster(ClusterName::from(name.as_str()))),
        Some(ClusterSpecifier::ClusterHeader(name)) => match HeaderName::try_from(name.as_str()) {
            Ok(name) => Some(ClusterChoice::Header(name)),
            Err(_) => {
                report.problem(&at.field("cluster_header"), format!("{name:?} is not a header name"));
                None
            }
        },
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            decode_weights(split, overrides, &at.field("weighted_clusters"), report).map(ClusterChoice::Weighted)
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(name)) if !plugins.contains(name) => {
            let reason = format!("cluster_specifier_plugins has no {name:?}");
            report.problem(&at.field("cluster_specifier_plugin"), reason);
            None
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_))
        | None => {
            // gRFC A28: such a route is passed over, the others hold.
            report.unenforced(at, "the route has no cluster that is known and is skipped");
            None
        }
    }
}

/// Decodes a split; `None` without a problem is one whose route is to be skipped (gRFC A28).
fn decode_weights(
    proto: &SplitProto,
    of_route: &Overrides,
    at: &At<'_>,
    report: &mut Report,
) -> Option<WeightedClusters> {
    let by_header = |entry: &ClusterWeight| entry.name.is_empty() && !entry.cluster_header.is_empty();
    let is_drawn = |entry: &ClusterWeight| entry.weight.is_some_and(|weight| weight.value > 0);
    if let Some(i) = proto.clusters.iter().position(|entry| by_header(entry) && is_drawn(entry)) {
        let effect = "parts of a split that a header names are not supported: the route is skipped";
        report.unenforced(&at.item("clusters", i).field("cluster_header"), effect);
        return None;
    }
    let mut entries = Vec::with_capacity(proto.clusters.len());
    for (i, entry) in proto.clusters.iter().enumerate() {
        let at = at.item("clusters", i);
        if by_header(entry) {
            continue;
        }
        if entry.name.is_empty() {
            report.problem(&at.field("name"), "a name is required");
        }
        report.unenforced_if(!entry.cluster_header.is_empty(), &at, "cluster_header", "the part goes by its name");
        let ClusterWeight {
            name: _,
            cluster_header: _,
            weight: _,
            metadata_match: _,
            request_headers_to_add: _,
            request_headers_to_remove: _,
            response_headers_to_add: _,
            response_headers_to_remove: _,
            typed_per_filter_config: _,
            host_rewrite_specifier: _,
        } = entry;
        let overrides = route_extra::decode_overrides(&entry.typed_per_filter_config, Side::Either, &at, report);
        let effect = "CORS is a matter of the route";
        report.unenforced_if(
            overrides.cors.as_ref().is_some_and(Option::is_some),
            &at,
            "typed_per_filter_config",
            effect,
        );
        use weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral;
        let authority = entry.host_rewrite_specifier.as_ref().and_then(|HostRewriteLiteral(host)| non_empty(host));
        entries.push(WeightedCluster {
            name: ClusterName::from(entry.name.as_str()),
            weight: entry.weight.map_or(0, |w| w.value),
            headers: read_policy!(entry, &at, report),
            filters: overrides.of_entry(of_route),
            authority,
            metadata_match: extension::read_lb_metadata(entry.metadata_match.as_ref()),
        });
    }
    consider!(proto, at, report, SplitProto {
        read: [clusters],
        // The sum of the weights is the total (gRFC A28).
        idle: [total_weight, runtime_key_prefix],
        random_value_specifier => "the draw is random for each request",
    });
    report.checked(at, WeightedClusters::new(entries))
}

fn encode_mirror(mirror: &Mirror) -> MirrorProto {
    MirrorProto {
        cluster: mirror.cluster.to_string(),
        runtime_fraction: Some(common::runtime_fraction(mirror.share)),
        disable_shadow_host_suffix_append: !mirror.shadow_host,
        ..Default::default()
    }
}

/// Decodes a mirror; `None` without a problem is one that sends nothing.
pub(super) fn decode_mirror(proto: &MirrorProto, at: &At<'_>, report: &mut Report) -> Option<Mirror> {
    consider!(proto, at, report, MirrorProto {
        read: [cluster, cluster_header, runtime_fraction, disable_shadow_host_suffix_append],
        // The copy belongs to the request's own trace, unsampled.
        idle: [trace_sampled],
        request_headers_mutations => "the copy has the request's headers",
        host_rewrite_literal => "the copy has the request's authority",
    });
    if proto.cluster.is_empty() {
        report.unenforced(at, "mirrors to a cluster named by a header send nothing");
        return None;
    }
    let share = common::read_runtime_fraction(proto.runtime_fraction.as_ref(), at, "runtime_fraction", report);
    Some(Mirror {
        cluster: ClusterName::from(proto.cluster.as_str()),
        share: share.unwrap_or(PerMillion::ALL),
        shadow_host: !proto.disable_shadow_host_suffix_append,
    })
}

fn encode_rewrite(rewrite: &Rewrite, action: &mut xds::RouteAction) {
    match &rewrite.path {
        Some(PathRewrite::Prefix(prefix)) => action.prefix_rewrite.clone_from(prefix),
        Some(PathRewrite::Full(path)) => action.path_rewrite = path.replace('%', "%%"),
        Some(PathRewrite::Regex { pattern, substitution }) => {
            action.regex_rewrite = Some(matcher::substitution(pattern, substitution));
        }
        None => {}
    }
    action.append_x_forwarded_host = rewrite.forwarded_host;
    action.host_rewrite_specifier = rewrite.authority.as_ref().map(|authority| match authority {
        AuthorityRewrite::Literal(host) => HostRewriteSpecifier::HostRewriteLiteral(host.clone()),
        AuthorityRewrite::Endpoint => HostRewriteSpecifier::AutoHostRewrite(common::boolean(true).unwrap_or_default()),
        AuthorityRewrite::Header(name) => HostRewriteSpecifier::HostRewriteHeader(name.as_str().to_owned()),
        AuthorityRewrite::Path { pattern, substitution } => {
            HostRewriteSpecifier::HostRewritePathRegex(matcher::substitution(pattern, substitution))
        }
    });
}

fn decode_rewrite(proto: &xds::RouteAction, at: &At<'_>, report: &mut Report) -> Rewrite {
    let set = [
        !proto.prefix_rewrite.is_empty(),
        !proto.path_rewrite.is_empty(),
        proto.regex_rewrite.is_some(),
        proto.path_rewrite_policy.is_some(),
    ];
    if set.iter().filter(|set| **set).count() > 1 {
        report.problem(at, "only one of prefix_rewrite, path_rewrite, regex_rewrite, path_rewrite_policy may be set");
    }
    if proto.path_rewrite_policy.is_some() {
        report.problem(&at.field("path_rewrite_policy"), "path rewrite extensions are not supported");
    }
    let path = if let Some(prefix) = non_empty(&proto.prefix_rewrite) {
        Some(PathRewrite::Prefix(prefix))
    } else if let Some(regex) = &proto.regex_rewrite {
        let read = matcher::read_substitution(regex, &at.field("regex_rewrite"), report);
        read.map(|(pattern, substitution)| PathRewrite::Regex { pattern, substitution })
    } else {
        read_literal(&proto.path_rewrite, &at.field("path_rewrite"), report).map(PathRewrite::Full)
    };
    let authority = match &proto.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => non_empty(host).map(AuthorityRewrite::Literal),
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => auto.value.then_some(AuthorityRewrite::Endpoint),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => match HeaderName::try_from(name.as_str()) {
            Ok(name) => Some(AuthorityRewrite::Header(name)),
            Err(_) => {
                report.problem(&at.field("host_rewrite_header"), format!("{name:?} is not a header name"));
                None
            }
        },
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            let read = matcher::read_substitution(regex, &at.field("host_rewrite_path_regex"), report);
            read.map(|(pattern, substitution)| AuthorityRewrite::Path { pattern, substitution })
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => {
            report.unenforced(&at.field("host_rewrite"), "the authority stays as it is");
            None
        }
        None => None,
    };
    Rewrite { path, authority, forwarded_host: proto.append_x_forwarded_host }
}

/// Reads a text in substitution format; empty is none.
fn read_literal(text: &str, at: &At<'_>, report: &mut Report) -> Option<String> {
    let literal = header::literal(text.as_bytes(), at, report)?;
    // Only whole percent signs were taken out, so it is text as before.
    String::from_utf8(literal).ok().filter(|text| !text.is_empty())
}

fn encode_hash(policy: &HashPolicy) -> HashProto {
    use hash_policy::PolicySpecifier;
    let specifier = match &policy.source {
        HashSource::Header { name, rewrite } => PolicySpecifier::Header(hash_policy::Header {
            header_name: name.to_string(),
            regex_rewrite: rewrite.as_ref().map(|r| matcher::substitution(&r.pattern, &r.substitution)),
        }),
        HashSource::Cookie { name, path, ttl } => PolicySpecifier::Cookie(hash_policy::Cookie {
            name: name.clone(),
            path: path.clone(),
            ttl: ttl.map(common::duration),
            ..Default::default()
        }),
        HashSource::Query(name) => PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: name.clone() }),
        HashSource::SourceAddress => {
            PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true })
        }
        HashSource::ChannelId => PolicySpecifier::FilterState(hash_policy::FilterState { key: CHANNEL_ID.to_owned() }),
    };
    HashProto { terminal: policy.terminal, policy_specifier: Some(specifier) }
}

/// Reads a hash policy; unknown sources are passed over (gRFC A42).
fn decode_hash(proto: &HashProto, at: &At<'_>, report: &mut Report) -> Option<HashPolicy> {
    use hash_policy::PolicySpecifier;
    let source = match &proto.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let rewrite = match &header.regex_rewrite {
                Some(regex) => Some(matcher::read_substitution(regex, &at.field("header.regex_rewrite"), report)?),
                None => None,
            };
            let rewrite = rewrite.map(|(pattern, substitution)| RegexRewrite { pattern, substitution });
            match HeaderName::try_from(header.header_name.as_str()) {
                Ok(name) => HashSource::Header { name, rewrite },
                Err(_) => {
                    report.problem(&at.field("header"), format!("{:?} is not a header name", header.header_name));
                    return None;
                }
            }
        }
        Some(PolicySpecifier::Cookie(cookie)) => {
            if cookie.name.is_empty() {
                report.problem(&at.field("cookie"), "a name is required");
            }
            let effect = "made cookies have no further attributes";
            report.unenforced_if(!cookie.attributes.is_empty(), at, "cookie.attributes", effect);
            let ttl = common::opt_duration(cookie.ttl.as_ref(), at, "cookie.ttl", report);
            HashSource::Cookie { name: cookie.name.clone(), path: cookie.path.clone(), ttl }
        }
        Some(PolicySpecifier::QueryParameter(query)) => HashSource::Query(query.name.clone()),
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => HashSource::SourceAddress,
        Some(PolicySpecifier::FilterState(state)) if state.key == CHANNEL_ID => HashSource::ChannelId,
        Some(PolicySpecifier::ConnectionProperties(_) | PolicySpecifier::FilterState(_)) | None => {
            report.unenforced(at, "the source is not known and is passed over");
            return None;
        }
    };
    Some(HashPolicy { source, terminal: proto.terminal })
}

fn encode_redirect(redirect: &Redirect) -> xds::RedirectAction {
    use redirect_action::{PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier};
    let code = match redirect.code {
        302 => Code::Found,
        303 => Code::SeeOther,
        307 => Code::TemporaryRedirect,
        308 => Code::PermanentRedirect,
        _ => Code::MovedPermanently,
    };
    xds::RedirectAction {
        response_code: code.into(),
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: redirect.port.map_or(0, u32::from),
        path_rewrite_specifier: redirect.path.as_ref().map(|path| match path {
            PathRewrite::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.clone()),
            PathRewrite::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
            PathRewrite::Regex { pattern, substitution } => {
                PathRewriteSpecifier::RegexRewrite(matcher::substitution(pattern, substitution))
            }
        }),
        strip_query: redirect.strip_query,
    }
}

fn decode_redirect(proto: &xds::RedirectAction, at: &At<'_>, report: &mut Report) -> Option<Redirect> {
    use redirect_action::{PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier};
    let code = match Code::try_from(proto.response_code) {
        Ok(Code::MovedPermanently) => 301,
        Ok(Code::Found) => 302,
        Ok(Code::SeeOther) => 303,
        Ok(Code::TemporaryRedirect) => 307,
        Ok(Code::PermanentRedirect) => 308,
        Err(_) => {
            report.problem(&at.field("response_code"), format!("{} is not known", proto.response_code));
            return None;
        }
    };
    let port = match proto.port_redirect {
        0 => None,
        port => Some(common::read_port(port, &at.field("port_redirect"), report)?),
    };
    let path = match &proto.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(path)) => non_empty(path).map(PathRewrite::Full),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => non_empty(prefix).map(PathRewrite::Prefix),
        Some(PathRewriteSpecifier::PathRewrite(path)) => {
            read_literal(path, &at.field("path_rewrite"), report).map(PathRewrite::Full)
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            let (pattern, substitution) = matcher::read_substitution(regex, &at.field("regex_rewrite"), report)?;
            Some(PathRewrite::Regex { pattern, substitution })
        }
        None => None,
    };
    let scheme = match &proto.scheme_rewrite_specifier {
        Some(SchemeRewriteSpecifier::HttpsRedirect(https)) => https.then(|| "https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => non_empty(scheme),
        None => None,
    };
    Some(Redirect { code, scheme, host: non_empty(&proto.host_redirect), port, path, strip_query: proto.strip_query })
}

fn decode_answer(proto: &AnswerProto, at: &At<'_>, report: &mut Report) -> Option<DirectResponse> {
    consider!(proto, at, report, AnswerProto {
        read: [status, body],
        idle: [],
        body_format => "the body is sent as it is",
    });
    let body = match proto.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
        Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            report
                .problem(&at.field("body"), "a control plane may not make this process read its files or environment");
            return None;
        }
        None => Vec::new(),
    };
    if body.len() > MAX_BODY {
        report.problem(&at.field("body"), format!("{} bytes are more than {MAX_BODY}", body.len()));
    }
    match u16::try_from(proto.status) {
        Ok(status) if (200..600).contains(&status) => Some(DirectResponse { status, body }),
        _ => {
            report.problem(&at.field("status"), format!("{} is not between 200 and 599", proto.status));
            None
        }
    }
}
