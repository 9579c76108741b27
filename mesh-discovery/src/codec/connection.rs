//! How endpoints are connected to: protocol, timeouts, keep-alive, health checks.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{self as xds, UpstreamConnectionOptions};
use envoy_types::pb::envoy::config::core::v3::{
    self as core, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
    TcpKeepalive as TcpProto,
    health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck},
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    },
};
use envoy_types::pb::envoy::r#type::v3::CodecClientType;
use mesh_core::policy::{ConnectionOptions, HealthCheck, HealthProbe, Keepalive, TcpKeepalive, UpstreamProtocol};

use super::common;
use super::extension::{self, url};
use super::report::{At, Report};
use crate::proto::policy::{ClusterPolicy, Http2Settings};

/// Key of the options in `typed_extension_protocol_options`.
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Writes the options into the cluster; HTTP/2 settings of an HTTP/1 cluster go into `ours`.
pub(super) fn encode(options: &ConnectionOptions, proto: &mut xds::Cluster, ours: &mut ClusterPolicy) {
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: options.max_concurrent_streams.and_then(common::uint32),
        connection_keepalive: options.http2_keepalive.as_ref().map(|k| KeepaliveSettings {
            interval: Some(common::duration(k.interval)),
            timeout: Some(common::duration(k.timeout)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let explicit =
        |config| UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let protocol = match options.protocol {
        UpstreamProtocol::Http1 => {
            let keepalive = options.http2_keepalive.as_ref();
            let settings = Http2Settings {
                max_concurrent_streams: options.max_concurrent_streams,
                keepalive_interval: keepalive.map(|k| common::duration(k.interval)),
                keepalive_timeout: keepalive.map(|k| common::duration(k.timeout)),
            };
            ours.http2 = (settings != Http2Settings::default()).then_some(settings);
            explicit(ProtocolConfig::HttpProtocolOptions(Default::default()))
        }
        UpstreamProtocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        UpstreamProtocol::Alpn => UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
            http2_protocol_options: Some(http2),
            ..Default::default()
        }),
    };
    let all = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions {
            // Unset is an hour; 0 is never.
            idle_timeout: Some(common::duration(options.idle_timeout.unwrap_or_default())),
            max_connection_duration: options.max_age.map(common::duration),
            max_requests_per_connection: options.max_requests_per_connection.and_then(common::uint32),
            ..Default::default()
        }),
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    };
    let packed = extension::pack(url::HTTP_OPTIONS, &all);
    proto.typed_extension_protocol_options.insert(OPTIONS.to_owned(), packed);
    proto.connect_timeout = Some(common::duration(options.connect_timeout));
    proto.upstream_connection_options = options.tcp_keepalive.as_ref().map(|k| UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpProto {
            keepalive_probes: k.probes.and_then(common::uint32),
            keepalive_time: k.time.and_then(seconds),
            keepalive_interval: k.interval.and_then(seconds),
        }),
        ..Default::default()
    });
}

/// Whole seconds; more than `u32` holds are cut.
fn seconds(time: Duration) -> Option<envoy_types::pb::google::protobuf::UInt32Value> {
    common::uint32(u32::try_from(time.as_secs()).unwrap_or(u32::MAX))
}

pub(super) fn decode(
    proto: &xds::Cluster,
    ours: &ClusterPolicy,
    at: &At<'_>,
    report: &mut Report,
) -> ConnectionOptions {
    let defaults = ConnectionOptions::default();
    let mut options = ConnectionOptions::default();
    if let Some(timeout) = &proto.connect_timeout {
        match common::read_duration(timeout, &at.field("connect_timeout"), report) {
            Some(timeout) if timeout.is_zero() => {
                report.problem(&at.field("connect_timeout"), "it must be above 0");
            }
            Some(timeout) => options.connect_timeout = timeout,
            None => {}
        }
    }
    // The fields that the typed options replaced.
    let mut common_options = proto.common_http_protocol_options;
    if let Some(http2) = &proto.http2_protocol_options {
        options.protocol = UpstreamProtocol::Http2;
        read_http2(http2, &mut options, &at.field("http2_protocol_options"), report);
    }
    if let Some(any) = proto.typed_extension_protocol_options.get(OPTIONS) {
        let at = at.key("typed_extension_protocol_options", OPTIONS);
        if let Some(typed) = extension::unpack::<HttpProtocolOptions>(any, &at, report) {
            read_typed(&typed, &mut options, &at, report);
            common_options = typed.common_http_protocol_options;
        }
    }
    let other = proto.typed_extension_protocol_options.keys().any(|key| key != OPTIONS);
    report.unenforced_if(other, at, "typed_extension_protocol_options", "only HTTP options are known");
    options.max_requests_per_connection = proto.max_requests_per_connection.map(|n| n.value);
    if let Some(common) = &common_options {
        let at = at.field("common_http_protocol_options");
        options.idle_timeout = match &common.idle_timeout {
            Some(_) => common::nonzero_duration(common.idle_timeout.as_ref(), &at, "idle_timeout", report),
            None => defaults.idle_timeout,
        };
        let age = common.max_connection_duration.as_ref();
        options.max_age = common::nonzero_duration(age, &at, "max_connection_duration", report);
        let requests = common.max_requests_per_connection.map(|n| n.value);
        options.max_requests_per_connection = requests.or(options.max_requests_per_connection);
        let set = common.max_stream_duration.is_some();
        report.unenforced_if(set, &at, "max_stream_duration", "routes and the listener limit streams");
    }
    if let Some(settings) = &ours.http2 {
        options.max_concurrent_streams = settings.max_concurrent_streams;
        let (every, wait) = (settings.keepalive_interval.as_ref(), settings.keepalive_timeout.as_ref());
        options.http2_keepalive = read_keepalive(every, wait, at, report);
    }
    let keepalive = proto.upstream_connection_options.as_ref().and_then(|o| o.tcp_keepalive.as_ref());
    options.tcp_keepalive = keepalive.map(|k| TcpKeepalive {
        probes: k.keepalive_probes.map(|n| n.value),
        time: k.keepalive_time.map(|n| Duration::from_secs(n.value.into())),
        interval: k.keepalive_interval.map(|n| Duration::from_secs(n.value.into())),
    });
    options
}

fn read_typed(typed: &HttpProtocolOptions, options: &mut ConnectionOptions, at: &At<'_>, report: &mut Report) {
    let set = !typed.http_filters.is_empty();
    report.unenforced_if(set, at, "http_filters", "clusters have no filters of their own");
    let set =
        typed.retry_policy.is_some() || !typed.hash_policy.is_empty() || !typed.request_mirror_policies.is_empty();
    report.unenforced_if(set, at, "retry_policy", "retries, hashing and mirroring are matters of routes");
    let mut http2 = |settings: Option<&Http2ProtocolOptions>, options: &mut ConnectionOptions| {
        if let Some(settings) = settings {
            read_http2(settings, options, &at.field("http2_protocol_options"), report);
        }
    };
    match &typed.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => match &config.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(settings)) => {
                options.protocol = UpstreamProtocol::Http2;
                http2(Some(settings), options);
            }
            Some(ProtocolConfig::HttpProtocolOptions(_)) | None => options.protocol = UpstreamProtocol::Http1,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                options.protocol = UpstreamProtocol::Alpn;
                report.unenforced(&at.field("http3_protocol_options"), "HTTP/3 is not spoken; ALPN decides");
            }
        },
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            options.protocol = UpstreamProtocol::Alpn;
            http2(config.http2_protocol_options.as_ref(), options);
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            options.protocol = UpstreamProtocol::Http1;
            http2(config.http2_protocol_options.as_ref(), options);
            report.unenforced(
                &at.field("use_downstream_protocol_config"),
                "gRPC requests use HTTP/2 and all others HTTP/1, whatever the caller spoke",
            );
        }
        None => {}
    }
}

fn read_http2(proto: &Http2ProtocolOptions, options: &mut ConnectionOptions, at: &At<'_>, report: &mut Report) {
    options.max_concurrent_streams = proto.max_concurrent_streams.map(|n| n.value);
    if let Some(keepalive) = &proto.connection_keepalive {
        let at = at.field("connection_keepalive");
        let set = keepalive.connection_idle_interval.is_some();
        report.unenforced_if(set, &at, "connection_idle_interval", "idle connections are pinged like busy ones");
        let (every, wait) = (keepalive.interval.as_ref(), keepalive.timeout.as_ref());
        options.http2_keepalive = read_keepalive(every, wait, &at, report);
    }
}

fn read_keepalive(
    interval: Option<&envoy_types::pb::google::protobuf::Duration>,
    timeout: Option<&envoy_types::pb::google::protobuf::Duration>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<Keepalive> {
    let interval = common::nonzero_duration(interval, at, "interval", report)?;
    match common::nonzero_duration(timeout, at, "timeout", report) {
        Some(timeout) => Some(Keepalive { interval, timeout }),
        None => {
            report.problem(&at.field("timeout"), "a timeout above 0 is required");
            None
        }
    }
}

pub(super) fn encode_health_check(check: &HealthCheck, protocol: UpstreamProtocol) -> core::HealthCheck {
    let codec = match protocol {
        UpstreamProtocol::Http2 => CodecClientType::Http2,
        UpstreamProtocol::Http1 | UpstreamProtocol::Alpn => CodecClientType::Http1,
    };
    let checker = match &check.probe {
        HealthProbe::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        HealthProbe::Http { path, host } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            path: path.clone(),
            host: host.clone(),
            codec_client_type: codec.into(),
            ..Default::default()
        }),
        HealthProbe::Grpc { service } => {
            HealthChecker::GrpcHealthCheck(GrpcHealthCheck { service_name: service.clone(), ..Default::default() })
        }
    };
    core::HealthCheck {
        timeout: Some(common::duration(check.timeout)),
        interval: Some(common::duration(check.interval)),
        unhealthy_threshold: common::uint32(check.unhealthy_threshold),
        healthy_threshold: common::uint32(check.healthy_threshold),
        health_checker: Some(checker),
        ..Default::default()
    }
}

/// Decodes a health check; kinds that are not known are passed over and reported.
pub(super) fn decode_health_check(proto: &core::HealthCheck, at: &At<'_>, report: &mut Report) -> Option<HealthCheck> {
    let probe = match &proto.health_checker {
        Some(HealthChecker::TcpHealthCheck(tcp)) => {
            let set = tcp.send.is_some() || !tcp.receive.is_empty();
            report.unenforced_if(set, at, "tcp_health_check", "only the connection is checked");
            HealthProbe::Tcp
        }
        Some(HealthChecker::HttpHealthCheck(http)) => {
            let set = !http.expected_statuses.is_empty() || http.service_name_matcher.is_some();
            report.unenforced_if(set, at, "http_health_check.expected_statuses", "200 is healthy, nothing else");
            let set = http.method != 0 || !http.request_headers_to_add.is_empty();
            report.unenforced_if(set, at, "http_health_check.method", "a plain GET is sent");
            HealthProbe::Http { path: http.path.clone(), host: http.host.clone() }
        }
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            let set = !grpc.authority.is_empty() || !grpc.initial_metadata.is_empty();
            report.unenforced_if(set, at, "grpc_health_check.authority", "the cluster's name is the authority");
            HealthProbe::Grpc { service: grpc.service_name.clone() }
        }
        Some(HealthChecker::CustomHealthCheck(_)) | None => {
            report.unenforced(at, "a health check of an unknown kind is not done");
            return None;
        }
    };
    let mut time = |value, name| {
        let time = common::nonzero_duration(value, at, name, report);
        if time.is_none() {
            report.problem(&at.field(name), "a time above 0 is required");
        }
        time
    };
    let timeout = time(proto.timeout.as_ref(), "timeout");
    let interval = time(proto.interval.as_ref(), "interval");
    let mut threshold = |value: Option<envoy_types::pb::google::protobuf::UInt32Value>, name| {
        if value.is_none() {
            report.problem(&at.field(name), "a threshold is required");
        }
        value.map(|v| v.value)
    };
    let unhealthy = threshold(proto.unhealthy_threshold, "unhealthy_threshold");
    let healthy = threshold(proto.healthy_threshold, "healthy_threshold");
    Some(HealthCheck {
        probe,
        interval: interval?,
        timeout: timeout?,
        unhealthy_threshold: unhealthy?,
        healthy_threshold: healthy?,
    })
}
