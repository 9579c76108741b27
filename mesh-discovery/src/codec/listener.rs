//! `Listener` with an `api_listener` ⇄ [`Listener`]: the client side (gRFC A27, A39). Where raw connections go
//! stands beside it, in a `default_filter_chain`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::listener::v3::ApiListener;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    self as hcm, HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::{Fault, HttpFilter, HttpFilterKind, Listener, RouteSource};

use super::composite::{self, Side};
use super::extension::{self, url};
use super::report::{At, Report, consider};
use super::{admission, common, concurrency, fault, filter, rate_limit, route, session, tcp};

pub(super) use envoy_types::pb::envoy::config::listener::v3::Listener as Proto;

pub(super) fn encode(listener: &Listener) -> Proto {
    let specifier = match &listener.routes {
        RouteSource::Named(name) => {
            RouteSpecifier::Rds(hcm::Rds { config_source: Some(common::ads()), route_config_name: name.clone() })
        }
        RouteSource::Inline(routes) => RouteSpecifier::RouteConfig(route::encode(routes)),
    };
    let filters = listener.filters.iter().filter_map(encode_filter);
    let manager = HttpConnectionManager {
        stat_prefix: listener.name.clone(),
        route_specifier: Some(specifier),
        http_filters: filters.chain([filter::router()]).collect(),
        common_http_protocol_options: listener.max_stream_duration.map(|longest| HttpProtocolOptions {
            max_stream_duration: Some(common::duration(longest)),
            ..Default::default()
        }),
        ..Default::default()
    };
    Proto {
        name: listener.name.clone(),
        api_listener: Some(ApiListener { api_listener: Some(extension::pack(url::HCM, &manager)) }),
        default_filter_chain: listener.tcp.as_ref().map(|forward| tcp::encode(&listener.name, forward)),
        ..Default::default()
    }
}

/// Decodes a listener that has an `api_listener`. An ordinary address beside it has no meaning: istiod
/// sends one for the sake of gRPC C++.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Listener> {
    let tcp = tcp::decode(proto.default_filter_chain.as_ref(), &at.field("default_filter_chain"), report);
    let at = at.field("api_listener");
    let at = at.field("api_listener");
    let Some(any) = proto.api_listener.as_ref().and_then(|l| l.api_listener.as_ref()) else {
        report.problem(&at, "an HTTP connection manager is required");
        return None;
    };
    if extension::type_of(any) != url::HCM {
        report.problem(&at, format!("{:?} is not an HTTP connection manager", any.type_url));
        return None;
    }
    let manager: HttpConnectionManager = extension::unpack(any, &at, report)?;
    filter::check_addresses(&manager, &at, report);
    let routes = decode_routes(&manager, &at, report);
    let filters = filter::decode(&manager, &at, report);
    let filters = filters.iter().filter_map(|f| decode_filter(f, &at, report)).collect();
    note_unenforced(&manager, &at, report);
    let longest = manager.common_http_protocol_options.as_ref().and_then(|o| o.max_stream_duration.as_ref());
    Some(Listener {
        name: proto.name.clone(),
        routes: routes?,
        filters,
        max_stream_duration: common::nonzero_duration(
            longest,
            &at,
            "common_http_protocol_options.max_stream_duration",
            report,
        ),
        tcp,
    })
}

fn decode_routes(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) -> Option<RouteSource> {
    match &manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            let at = at.field("rds");
            common::check_source(rds.config_source.as_ref(), &at.field("config_source"), report);
            common::check_name(&rds.route_config_name, &at.field("route_config_name"), report);
            Some(RouteSource::Named(rds.route_config_name.clone()))
        }
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let routes = route::decode_outbound(routes, &at.field("route_config"), report)?;
            Some(RouteSource::Inline(Arc::new(routes)))
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            report.problem(&at.field("scoped_routes"), "scoped routes are not supported (gRFC A27)");
            None
        }
        None => {
            report.problem(at, "rds or route_config is required");
            None
        }
    }
}

fn note_unenforced(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    filter::note_client(manager, at, report);
    let as_they_are = [
        (manager.normalize_path.is_some(), "normalize_path"),
        (manager.merge_slashes, "merge_slashes"),
        (manager.path_with_escaped_slashes_action != 0, "path_with_escaped_slashes_action"),
        (manager.path_normalization_options.is_some(), "path_normalization_options"),
    ];
    for (is_set, name) in as_they_are {
        report.unenforced_if(is_set, at, name, "paths are matched as they are");
    }
    let effect = "the authority is matched with its last dot first";
    report.unenforced_if(manager.strip_trailing_host_dot, at, "strip_trailing_host_dot", effect);
    let Some(common) = &manager.common_http_protocol_options else { return };
    consider!(
        common,
        &at.field("common_http_protocol_options"),
        report,
        HttpProtocolOptions {
            read: [max_stream_duration],
            // Of the connections of callers; the caller is the application itself.
            idle: [
                idle_timeout,
                max_connection_duration,
                max_connection_duration_jitter,
                max_requests_per_connection,
                max_headers_count,
                max_response_headers_kb,
                headers_with_underscores_action,
            ],
        }
    );
}

/// Encodes a filter. What stock gRPC clients don't know is optional for them.
pub(super) fn encode_filter(http_filter: &HttpFilter) -> Option<hcm::HttpFilter> {
    let (config, is_optional) = encode_kind(&http_filter.kind)?;
    Some(filter::encode(&http_filter.name, config, is_optional))
}

/// Encodes what a filter does, and whether it is optional.
pub(super) fn encode_kind(kind: &HttpFilterKind) -> Option<(Any, bool)> {
    Some(match kind {
        HttpFilterKind::Fault(fault) => {
            let proto = fault.as_ref().map(fault::encode).unwrap_or_default();
            (extension::pack(url::FAULT, &proto), false)
        }
        HttpFilterKind::RateLimit(limit) => (extension::pack(url::RATE_LIMIT, &rate_limit::encode(limit)), true),
        HttpFilterKind::CallerRateLimit(limit) => {
            (extension::pack(url::CALLER_RATE_LIMIT, &rate_limit::encode_callers(limit)), true)
        }
        HttpFilterKind::AdmissionControl(policy) => {
            (extension::pack(url::ADMISSION, &admission::encode(policy.as_ref())), true)
        }
        HttpFilterKind::AdaptiveConcurrency(policy) => {
            (extension::pack(url::CONCURRENCY, &concurrency::encode(policy.as_ref())), true)
        }
        HttpFilterKind::Session(session) => {
            let proto = session.as_ref().map(session::encode).unwrap_or_default();
            (extension::pack(url::SESSION, &proto), true)
        }
        // Who looks at callers is not passed over.
        HttpFilterKind::Composite(composite) => (composite::encode(composite), !composite.judges()),
        HttpFilterKind::Skipped { type_url } => (Any { type_url: type_url.clone(), value: Vec::new() }, true),
        // A kind that this codec does not know cannot be sent.
        _ => return None,
    })
}

fn decode_filter(proto: &filter::Filter<'_>, at: &At<'_>, report: &mut Report) -> Option<HttpFilter> {
    if proto.disabled {
        let at = at.item("http_filters", proto.index);
        report.unenforced(&at.field("disabled"), "a disabled filter stays off on every route");
        return None;
    }
    let at_filter = at.item("http_filters", proto.index);
    let kind = match proto.type_url.as_str() {
        url::WITH_MATCHER => {
            HttpFilterKind::Composite(composite::decode(proto.config, Side::Client, &at_filter, report)?)
        }
        // Its settings are those of the routes.
        url::CORS => return None,
        type_url => match decode_kind(type_url, proto.config, &at_filter, report) {
            Some(kind) => kind?,
            None if filter::skip(proto, at, report) => HttpFilterKind::Skipped { type_url: proto.type_url.clone() },
            None => return None,
        },
    };
    Some(HttpFilter { name: proto.name.to_owned(), kind })
}

/// Decodes what a filter of a client does, which a server's may do as well; the outer `None` = it is not known.
pub(super) fn decode_kind(
    type_url: &str,
    config: &Any,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Option<HttpFilterKind>> {
    Some(match type_url {
        url::FAULT => extension::unpack::<HttpFault>(config, at, report).map(|fault| {
            let fault = fault::decode(&fault, at, report);
            HttpFilterKind::Fault((fault != Fault::default()).then_some(fault))
        }),
        url::RATE_LIMIT => extension::unpack(config, at, report)
            .and_then(|limit| rate_limit::decode(&limit, at, report))
            .map(HttpFilterKind::RateLimit),
        url::ADMISSION => extension::unpack(config, at, report)
            .and_then(|policy| admission::decode(&policy, at, report))
            .map(HttpFilterKind::AdmissionControl),
        url::CONCURRENCY => extension::unpack(config, at, report)
            .and_then(|policy| concurrency::decode(&policy, at, report))
            .map(HttpFilterKind::AdaptiveConcurrency),
        url::SESSION => extension::unpack(config, at, report)
            .map(|session| HttpFilterKind::Session(session::decode(&session, at, report))),
        _ => return None,
    })
}
