//! How endpoints are connected to: protocol, timeouts, keep-alive.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::{self as xds, UpstreamConnectionOptions};
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, KeepaliveSettings,
    TcpKeepalive as TcpProto, UpstreamHttpProtocolOptions,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    },
};
use envoy_types::pb::google::protobuf::UInt32Value;
use mesh_core::policy::{ConnectionOptions, Keepalive, TcpKeepalive, UpstreamProtocol};

use super::common;
use super::extension::{self, url};
use super::report::{At, Report, consider};
use crate::proto::policy::{ClusterPolicy, Http2Settings};

/// Key of the options in `typed_extension_protocol_options`.
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Writes the options into the cluster; HTTP/2 settings of an HTTP/1 cluster go into `ours`.
/// `auto_sni`: the SNI is the dialled host.
pub(super) fn encode(options: &ConnectionOptions, auto_sni: bool, proto: &mut xds::Cluster, ours: &mut ClusterPolicy) {
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: options.max_concurrent_streams.and_then(common::uint32),
        initial_stream_window_size: options.initial_stream_window.and_then(common::uint32),
        initial_connection_window_size: options.initial_connection_window.and_then(common::uint32),
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
                initial_stream_window: options.initial_stream_window,
                initial_connection_window: options.initial_connection_window,
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
        upstream_http_protocol_options: auto_sni
            .then(|| UpstreamHttpProtocolOptions { auto_sni: true, ..Default::default() }),
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
) -> (ConnectionOptions, UpstreamHttpProtocolOptions) {
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
    let mut auto = proto.upstream_http_protocol_options.clone().unwrap_or_default();
    if let Some(http1) = &proto.http_protocol_options {
        note_http1(http1, &at.field("http_protocol_options"), report);
    }
    if let Some(http2) = &proto.http2_protocol_options {
        options.protocol = UpstreamProtocol::Http2;
        read_http2(http2, &mut options, &at.field("http2_protocol_options"), report);
    }
    if let Some(any) = proto.typed_extension_protocol_options.get(OPTIONS) {
        let at = at.key("typed_extension_protocol_options", OPTIONS);
        if let Some(typed) = extension::unpack::<HttpProtocolOptions>(any, &at, report) {
            read_typed(&typed, &mut options, &at, report);
            common_options = typed.common_http_protocol_options;
            auto = typed.upstream_http_protocol_options.unwrap_or_default();
        }
    }
    let other = proto.typed_extension_protocol_options.keys().any(|key| key != OPTIONS);
    report.unenforced_if(other, at, "typed_extension_protocol_options", "only HTTP options are known");
    // 0 is Envoy's word for any number.
    options.max_requests_per_connection = proto.max_requests_per_connection.map(|n| n.value).filter(|n| *n > 0);
    if let Some(common) = &common_options {
        let at = at.field("common_http_protocol_options");
        options.idle_timeout = match &common.idle_timeout {
            Some(_) => common::nonzero_duration(common.idle_timeout.as_ref(), &at, "idle_timeout", report),
            None => defaults.idle_timeout,
        };
        let age = common.max_connection_duration.as_ref();
        options.max_age = common::nonzero_duration(age, &at, "max_connection_duration", report);
        let requests = common.max_requests_per_connection.map(|n| n.value).filter(|n| *n > 0);
        options.max_requests_per_connection = requests.or(options.max_requests_per_connection);
        consider!(common, &at, report, CommonOptions {
            read: [idle_timeout, max_connection_duration, max_requests_per_connection],
            idle: [],
            max_connection_duration_jitter => "the age at which connections are drained varies by a tenth",
            max_headers_count => "the number of an answer's headers has the HTTP library's limit",
            max_response_headers_kb => "the size of an answer's headers has the HTTP library's limit",
            max_stream_duration => "routes and the listener limit streams",
            headers_with_underscores_action => "headers with underscores are passed on",
        });
    }
    if let Some(settings) = &ours.http2 {
        options.max_concurrent_streams = settings.max_concurrent_streams;
        options.initial_stream_window = settings.initial_stream_window;
        options.initial_connection_window = settings.initial_connection_window;
        let (every, wait) = (settings.keepalive_interval.as_ref(), settings.keepalive_timeout.as_ref());
        options.http2_keepalive = read_keepalive(every, wait, at, report);
    }
    options.tcp_keepalive = read_tcp_keepalive(proto, at, report);
    (options, auto)
}

fn read_tcp_keepalive(proto: &xds::Cluster, at: &At<'_>, report: &mut Report) -> Option<TcpKeepalive> {
    let connection = proto.upstream_connection_options.as_ref()?;
    consider!(connection, &at.field("upstream_connection_options"), report, UpstreamConnectionOptions {
        read: [tcp_keepalive],
        idle: [set_local_interface_name_on_upstream_connections],
        happy_eyeballs_config => "addresses of both families take turns (gRFC A61)",
    });
    let keepalive = connection.tcp_keepalive.as_ref()?;
    let at = at.field("upstream_connection_options");
    let at = at.field("tcp_keepalive");
    // Beyond these the operating system refuses the option, and with it every connection would fail. 0 is the system's
    // own setting.
    let mut read = |value: Option<UInt32Value>, name: &str, most: u32| {
        let value = value.map(|n| n.value).filter(|n| *n > 0)?;
        if value > most {
            report.problem(&at.field(name), format!("{value} is more than {most}"));
        }
        Some(value)
    };
    let probes = read(keepalive.keepalive_probes, "keepalive_probes", 127);
    let time = read(keepalive.keepalive_time, "keepalive_time", 32_767);
    let interval = read(keepalive.keepalive_interval, "keepalive_interval", 32_767);
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Some(TcpKeepalive { probes, time: time.map(seconds), interval: interval.map(seconds) })
}

fn read_typed(typed: &HttpProtocolOptions, options: &mut ConnectionOptions, at: &At<'_>, report: &mut Report) {
    consider!(typed, at, report, HttpProtocolOptions {
        read: [common_http_protocol_options, upstream_http_protocol_options, upstream_protocol_options],
        idle: [],
        http_filters => "clusters have no filters of their own",
        header_validation_config => "headers are checked by the HTTP library",
        outlier_detection => "5xx answers are failures, whatever else is said",
        request_mirror_policies => "mirroring is a matter of routes",
        hash_policy => "hashing is a matter of routes",
        retry_policy => "retries are a matter of routes",
    });
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
            Some(ProtocolConfig::HttpProtocolOptions(settings)) => {
                options.protocol = UpstreamProtocol::Http1;
                note_http1(settings, &at.field("http_protocol_options"), report);
            }
            None => options.protocol = UpstreamProtocol::Http1,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                options.protocol = UpstreamProtocol::Alpn;
                report.unenforced(&at.field("http3_protocol_options"), "HTTP/3 is not spoken; ALPN decides");
            }
        },
        Some(UpstreamProtocolOptions::AutoConfig(config)) => {
            options.protocol = UpstreamProtocol::Alpn;
            http2(config.http2_protocol_options.as_ref(), options);
            let AutoHttpConfig {
                http_protocol_options: _,
                http2_protocol_options: _,
                // HTTP/3 is not spoken, which ALPN tells the endpoint.
                http3_protocol_options: _,
                alternate_protocols_cache_options: _,
            } = config;
            if let Some(http1) = &config.http_protocol_options {
                note_http1(http1, &at.field("http_protocol_options"), report);
            }
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
    consider!(proto, at, report, Http2ProtocolOptions {
        read: [
            max_concurrent_streams, initial_stream_window_size, initial_connection_window_size, connection_keepalive,
        ],
        // Bounds and habits of Envoy's own codec; the HTTP library has its own.
        idle: [
            hpack_table_size, max_outbound_frames, max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent, stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message, use_oghttp2_codec, max_metadata_size,
            enable_huffman_encoding, max_header_field_size_kb, disallow_obs_text, stream_reset_burst,
            stream_reset_rate, allow_connect,
        ],
        allow_metadata => "METADATA frames are ignored",
        custom_settings_parameters => "only known settings are sent",
    });
    options.max_concurrent_streams = proto.max_concurrent_streams.map(|n| n.value);
    if options.max_concurrent_streams == Some(0) {
        report.problem(&at.field("max_concurrent_streams"), "0 lets no request through; give at least 1");
    }
    options.initial_stream_window =
        read_window(proto.initial_stream_window_size, "initial_stream_window_size", at, report);
    options.initial_connection_window =
        read_window(proto.initial_connection_window_size, "initial_connection_window_size", at, report);
    if let Some(keepalive) = &proto.connection_keepalive {
        let at = at.field("connection_keepalive");
        consider!(keepalive, &at, report, KeepaliveSettings {
            read: [interval, timeout],
            // A spread so that pings do not meet; ours begin with each connection.
            idle: [interval_jitter],
            connection_idle_interval => "idle connections are pinged like busy ones",
        });
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

/// HTTP/2's bound on windows.
const MAX_WINDOW: u32 = i32::MAX as u32;

fn read_window(
    proto: Option<envoy_types::pb::google::protobuf::UInt32Value>,
    name: &str,
    at: &At<'_>,
    report: &mut Report,
) -> Option<u32> {
    let size = proto?.value;
    if size > MAX_WINDOW {
        report.problem(&at.field(name), format!("{size} is more than {MAX_WINDOW}"));
    }
    Some(size)
}

fn note_http1(proto: &Http1ProtocolOptions, at: &At<'_>, report: &mut Report) {
    consider!(proto, at, report, Http1ProtocolOptions {
        read: [],
        // What a proxy takes from its callers, and habits of Envoy's own codec.
        idle: [
            allow_absolute_url, accept_http_10, default_host_for_http_10, allow_chunked_length,
            override_stream_error_on_invalid_http_message, use_balsa_parser, allow_custom_methods,
        ],
        header_key_format => "HTTP/1 header names are sent in lower case",
        enable_trailers => "HTTP/1 trailers are passed on only where both sides say so",
        send_fully_qualified_url => "HTTP/1 requests carry the path alone",
        ignore_http_11_upgrade => "upgrades follow the client's own rules",
    });
}
