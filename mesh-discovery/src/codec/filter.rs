//! The HTTP filters of a connection manager (gRFC A39): the rules that hold on both sides.

use std::collections::HashSet;

use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter::ConfigType,
};
use envoy_types::pb::google::protobuf::Any;

use super::extension::{self, url};
use super::report::{At, Report, consider};

/// Usual instance name of the router.
pub(super) const ROUTER_FILTER: &str = "envoy.filters.http.router";

/// A filter with its configuration.
pub(super) fn encode(name: &str, config: Any, is_optional: bool) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        is_optional,
        config_type: Some(ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// The router, which ends every list.
pub(super) fn router() -> HttpFilter {
    encode(ROUTER_FILTER, extension::pack(url::ROUTER, &Router::default()), false)
}

/// One filter before the router.
pub(super) struct Filter<'a> {
    pub(super) name: &'a str,
    pub(super) type_url: String,
    pub(super) config: &'a Any,
    pub(super) is_optional: bool,
    /// It is off where no route turns it on.
    pub(super) disabled: bool,
    pub(super) index: usize,
}

/// Checks the list: names unique and not empty, every filter with a configuration, exactly one router,
/// at the end. Gives the filters before it.
pub(super) fn decode<'a>(hcm: &'a HttpConnectionManager, at: &At<'_>, report: &mut Report) -> Vec<Filter<'a>> {
    let mut names = HashSet::new();
    let mut filters = Vec::with_capacity(hcm.http_filters.len());
    let mut routers = 0;
    for (index, proto) in hcm.http_filters.iter().enumerate() {
        let at = at.item("http_filters", index);
        let HttpFilter { name: _, is_optional: _, disabled: _, config_type: _ } = proto;
        if proto.name.is_empty() || !names.insert(proto.name.as_str()) {
            report.problem(&at.field("name"), format!("{:?} is empty or used twice", proto.name));
        }
        let Some(ConfigType::TypedConfig(config)) = &proto.config_type else {
            if proto.is_optional {
                report.unenforced(&at, "a filter without a configuration of its own is skipped");
            } else {
                report.problem(&at.field("typed_config"), "a configuration is required; ECDS is not supported");
            }
            continue;
        };
        let type_url = extension::type_of(config);
        if type_url == url::ROUTER {
            routers += 1;
            if let Some(router) = extension::unpack::<Router>(config, &at, report) {
                note_router(&router, &at, report);
            }
            if index + 1 != hcm.http_filters.len() {
                report.problem(&at, "the router must be the last filter");
            }
        } else {
            let HttpFilter { name, is_optional, disabled, .. } = proto;
            let (is_optional, disabled) = (*is_optional, *disabled);
            filters.push(Filter { name, type_url, config, is_optional, disabled, index });
        }
    }
    if routers == 0 {
        report.problem(&at.field("http_filters"), "the last filter must be the router");
    }
    filters
}

/// Refuses a filter that is not known on this side, unless it is optional. Gives whether it is skipped,
/// which the policy then says.
pub(super) fn skip(filter: &Filter<'_>, at: &At<'_>, report: &mut Report) -> bool {
    let at = at.item("http_filters", filter.index);
    if !filter.is_optional {
        let kind = extension::name_of(filter.config);
        let reason = format!("the filter type {kind} is not supported here and not optional");
        report.problem(&at, reason);
    }
    filter.is_optional
}

/// gRFC A41: settings that would change what the caller's address is.
pub(super) fn check_addresses(hcm: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    if hcm.xff_num_trusted_hops != 0 {
        report.problem(&at.field("xff_num_trusted_hops"), "only 0 is supported (gRFC A41)");
    }
    if !hcm.original_ip_detection_extensions.is_empty() {
        report.problem(&at.field("original_ip_detection_extensions"), "none is supported (gRFC A41)");
    }
}

fn note_router(proto: &Router, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Router {
        read: [],
        // Statistics, logs, and what a proxy takes from and tells its callers.
        idle: [
            dynamic_stats, upstream_log, upstream_log_options, suppress_envoy_headers, strict_check_headers,
            suppress_grpc_request_failure_code_stats, reject_connect_request_early_data,
        ],
        start_child_span => "spans are the tracer's own",
        respect_expected_rq_timeout => "x-envoy-expected-rq-timeout-ms does not set the timeout",
        upstream_http_filters => "clusters have no filters of their own",
    });
}

/// What of a connection manager a client does not obey. What it says of the forms of a request's target is told apart.
pub(super) fn note_client(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    consider!(manager, at, report, HttpConnectionManager {
        read: [
            http_filters, common_http_protocol_options, http2_protocol_options, xff_num_trusted_hops,
            original_ip_detection_extensions, route_specifier, normalize_path, merge_slashes,
            path_with_escaped_slashes_action, path_normalization_options, strip_trailing_host_dot,
        ],
        // Statistics and logs; limits and habits of connections from callers, of whom there are none: the caller is the
        // application itself; what a proxy tells its peers of itself, and what concerns other proxies.
        idle: [
            codec_type, stat_prefix, add_user_agent, http1_safe_max_connection_duration, http_protocol_options,
            http3_protocol_options, server_name, server_header_transformation, max_request_headers_kb,
            stream_flush_timeout, request_headers_timeout, drain_timeout, drain_timeout_jitter,
            delayed_close_timeout, access_log_flush_interval, flush_access_log_on_new_request, access_log_options,
            use_remote_address, internal_address_config, skip_xff_append, via, generate_request_id,
            preserve_external_request_id, always_set_request_id_in_response, forward_client_cert_details,
            set_current_client_cert_details, forward_client_cert_matcher, proxy_100_continue,
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6, request_id_extension,
            stream_error_on_invalid_http_message, proxy_status_config, typed_header_validation_config,
            append_x_forwarded_port, append_local_overload, add_proxy_protocol_connection_state,
            forward_proto_config,
        ],
        tracing => "sampling and tags are the tracer's own",
        scheme_header_transformation => "the scheme stays as it is",
        stream_idle_timeout => "only routes set idle timeouts",
        request_timeout => "requests have the time that routes give them",
        access_log => "access logs follow the process's own settings",
        early_header_mutation_extensions => "headers change by routes alone",
        upgrade_configs => "upgrades follow the process's own rules",
        local_reply_config => "local answers stay as they are",
        strip_matching_host_port => "the authority is matched with its port first, and without it only where no other domain than `*` fits",
        strip_port_mode => "the authority is matched with its port first, and without it only where no other domain than `*` fits",
    });
}

/// The same of a server, to which it is about its callers and its application.
pub(super) fn note_server(manager: &HttpConnectionManager, at: &At<'_>, report: &mut Report) {
    consider!(manager, at, report, HttpConnectionManager {
        read: [
            http_filters, common_http_protocol_options, http2_protocol_options, xff_num_trusted_hops,
            original_ip_detection_extensions, route_specifier, normalize_path, merge_slashes,
            path_with_escaped_slashes_action, path_normalization_options, strip_trailing_host_dot,
        ],
        // Statistics and logs; what is so anyway; and what is about other proxies, of whom there are none, or a protocol
        // that is not spoken.
        idle: [
            stat_prefix, access_log_flush_interval, flush_access_log_on_new_request, access_log_options,
            http1_safe_max_connection_duration, http3_protocol_options, preserve_external_request_id, skip_xff_append,
            internal_address_config, represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            add_proxy_protocol_connection_state,
        ],
        codec_type => "HTTP/1.1 and HTTP/2 are both taken",
        http_protocol_options => "HTTP/1.1 follows the server's own rules",
        max_request_headers_kb => "the size of a request's head has the server's own limit",
        request_headers_timeout => "the time of a request's head has the server's own limit",
        stream_flush_timeout => "streams have the server's own limits of time",
        stream_idle_timeout => "streams have the server's own limits of time",
        request_timeout => "requests have the time that their callers give them",
        drain_timeout => "draining follows the server's own settings",
        drain_timeout_jitter => "draining follows the server's own settings",
        delayed_close_timeout => "connections are closed by the server's own rules",
        stream_error_on_invalid_http_message => "what breaks the protocol's rules is met by the server's own",
        typed_header_validation_config => "headers are checked by the server's own rules",
        proxy_100_continue => "the server answers expectations itself",
        server_name => "the server header is the application's own",
        server_header_transformation => "the server header is the application's own",
        via => "no via header is added",
        add_user_agent => "the user-agent header stays as it is",
        use_remote_address => "x-forwarded-for stays as it is, and nothing is decided by it",
        append_x_forwarded_port => "no x-forwarded-port header is added",
        forward_proto_config => "x-forwarded-proto stays as it is",
        proxy_status_config => "no proxy-status header is added",
        append_local_overload => "no x-envoy-local-overloaded header is added",
        generate_request_id => "request ids are passed on as they come, and none is made",
        request_id_extension => "request ids are passed on as they come, and none is made",
        always_set_request_id_in_response => "request ids are not told in answers",
        forward_client_cert_details => "x-forwarded-client-cert is taken away: the library tells the application its caller",
        set_current_client_cert_details => "x-forwarded-client-cert is taken away: the library tells the application its caller",
        forward_client_cert_matcher => "x-forwarded-client-cert is taken away: the library tells the application its caller",
        tracing => "sampling and tags are the tracer's own",
        scheme_header_transformation => "the scheme stays as it is",
        access_log => "access logs follow the process's own settings",
        early_header_mutation_extensions => "headers change by routes alone",
        upgrade_configs => "upgrades follow the process's own rules",
        local_reply_config => "local answers stay as they are",
        strip_matching_host_port => "the authority is matched with its port first, and without it only where no other domain than `*` fits",
        strip_port_mode => "the authority is matched with its port first, and without it only where no other domain than `*` fits",
    });
}
