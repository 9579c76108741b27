//! Active health checks.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    HealthCheck as Proto, RequestMethod,
    health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload},
};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use envoy_types::pb::google::protobuf::{Duration as DurationProto, UInt32Value};
use mesh_core::policy::{HealthCheck, HealthCheckPace, HealthProbe, HttpProbe, TcpProbe};

use super::report::{At, Report, consider};
use super::{common, header};

/// Methods that a check may use, with their names.
const METHODS: [(RequestMethod, &str); 9] = [
    (RequestMethod::MethodUnspecified, "GET"),
    (RequestMethod::Get, "GET"),
    (RequestMethod::Head, "HEAD"),
    (RequestMethod::Post, "POST"),
    (RequestMethod::Put, "PUT"),
    (RequestMethod::Delete, "DELETE"),
    (RequestMethod::Options, "OPTIONS"),
    (RequestMethod::Trace, "TRACE"),
    (RequestMethod::Patch, "PATCH"),
];

pub(super) fn encode(check: &HealthCheck) -> Proto {
    let checker = match &check.probe {
        HealthProbe::Tcp(probe) => HealthChecker::TcpHealthCheck(TcpHealthCheck {
            send: (!probe.send.is_empty()).then(|| encode_payload(&probe.send)),
            receive: probe.receive.iter().map(|block| encode_payload(block)).collect(),
            ..Default::default()
        }),
        HealthProbe::Http(probe) => HealthChecker::HttpHealthCheck(encode_http(probe)),
        HealthProbe::Grpc { service, authority } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.clone(),
            authority: authority.clone(),
            ..Default::default()
        }),
    };
    let pace = &check.pace;
    let jitter = |time: Duration| (!time.is_zero()).then(|| common::duration(time));
    Proto {
        timeout: Some(common::duration(check.timeout)),
        interval: Some(common::duration(check.interval)),
        unhealthy_threshold: common::uint32(check.unhealthy_threshold),
        healthy_threshold: common::uint32(check.healthy_threshold),
        initial_jitter: jitter(pace.initial_jitter),
        interval_jitter: jitter(pace.jitter),
        interval_jitter_percent: pace.jitter_percent,
        no_traffic_interval: pace.no_traffic.map(common::duration),
        no_traffic_healthy_interval: pace.no_traffic_healthy.map(common::duration),
        unhealthy_interval: pace.unhealthy.map(common::duration),
        unhealthy_edge_interval: pace.unhealthy_edge.map(common::duration),
        healthy_edge_interval: pace.healthy_edge.map(common::duration),
        alt_port: check.port.and_then(|port| common::uint32(port.into())),
        reuse_connection: common::boolean(check.reuse_connection),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn encode_http(probe: &HttpProbe) -> HttpHealthCheck {
    let method = METHODS.iter().skip(1).find(|(_, name)| *name == probe.method).map_or(RequestMethod::Get, |m| m.0);
    let codec = if probe.http2 { CodecClientType::Http2 } else { CodecClientType::Http1 };
    let ranges = |list: &[(u16, u16)]| {
        list.iter().map(|(first, last)| Int64Range { start: (*first).into(), end: i64::from(*last) + 1 }).collect()
    };
    HttpHealthCheck {
        path: probe.path.clone(),
        host: probe.host.clone(),
        method: method.into(),
        codec_client_type: codec.into(),
        request_headers_to_add: probe.headers.iter().map(header::write).collect(),
        expected_statuses: ranges(&probe.expected),
        retriable_statuses: ranges(&probe.retriable),
        ..Default::default()
    }
}

/// Decodes a health check; kinds that are not known are passed over and reported.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<HealthCheck> {
    consider!(proto, at, report, Proto {
        read: [
            timeout, interval, initial_jitter, interval_jitter, interval_jitter_percent, unhealthy_threshold,
            healthy_threshold, alt_port, reuse_connection, no_traffic_interval, no_traffic_healthy_interval,
            unhealthy_interval, unhealthy_edge_interval, healthy_edge_interval, health_checker,
        ],
        idle: [
            event_log_path, event_logger, event_service, always_log_health_check_failures,
            always_log_health_check_success,
        ],
        tls_options => "checks speak the protocols that requests speak",
        transport_socket_match_criteria => "checks use the endpoint's own transport security",
    });
    let probe = read_probe(proto, at, report);
    let mut time = |value, name| {
        let time = common::nonzero_duration(value, at, name, report);
        if time.is_none() {
            report.problem(&at.field(name), "a time above 0 is required");
        }
        time
    };
    let timeout = time(proto.timeout.as_ref(), "timeout");
    let interval = time(proto.interval.as_ref(), "interval");
    let mut threshold = |value: Option<UInt32Value>, name| {
        if value.is_none() {
            report.problem(&at.field(name), "a threshold is required");
        }
        value.map(|v| v.value)
    };
    let unhealthy = threshold(proto.unhealthy_threshold, "unhealthy_threshold");
    let healthy = threshold(proto.healthy_threshold, "healthy_threshold");
    let pace = read_pace(proto, at, report);
    let port = proto.alt_port.and_then(|port| common::read_port(port.value, &at.field("alt_port"), report));
    Some(HealthCheck {
        probe: probe?,
        interval: interval?,
        timeout: timeout?,
        unhealthy_threshold: unhealthy?,
        healthy_threshold: healthy?,
        pace,
        port,
        reuse_connection: proto.reuse_connection.is_none_or(|b| b.value),
    })
}

fn read_pace(proto: &Proto, at: &At<'_>, report: &mut Report) -> HealthCheckPace {
    let mut time = |value: &Option<DurationProto>, name| common::nonzero_duration(value.as_ref(), at, name, report);
    HealthCheckPace {
        initial_jitter: time(&proto.initial_jitter, "initial_jitter").unwrap_or_default(),
        jitter: time(&proto.interval_jitter, "interval_jitter").unwrap_or_default(),
        jitter_percent: proto.interval_jitter_percent,
        no_traffic: time(&proto.no_traffic_interval, "no_traffic_interval"),
        no_traffic_healthy: time(&proto.no_traffic_healthy_interval, "no_traffic_healthy_interval"),
        unhealthy: time(&proto.unhealthy_interval, "unhealthy_interval"),
        unhealthy_edge: time(&proto.unhealthy_edge_interval, "unhealthy_edge_interval"),
        healthy_edge: time(&proto.healthy_edge_interval, "healthy_edge_interval"),
    }
}

fn read_probe(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<HealthProbe> {
    match &proto.health_checker {
        Some(HealthChecker::TcpHealthCheck(tcp)) => {
            consider!(tcp, &at.field("tcp_health_check"), report, TcpHealthCheck {
                read: [send, receive],
                idle: [],
                proxy_protocol_config => "checks send no PROXY header",
            });
            let at = at.field("tcp_health_check");
            let send = tcp.send.as_ref().map(|payload| read_payload(payload, &at.field("send"), report));
            let blocks = tcp.receive.iter().enumerate();
            let receive = blocks.map(|(i, payload)| read_payload(payload, &at.item("receive", i), report)).collect();
            Some(HealthProbe::Tcp(TcpProbe { send: send.unwrap_or_default(), receive }))
        }
        Some(HealthChecker::HttpHealthCheck(http)) => {
            read_http(http, &at.field("http_health_check"), report).map(HealthProbe::Http)
        }
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            consider!(grpc, &at.field("grpc_health_check"), report, GrpcHealthCheck {
                read: [service_name, authority],
                idle: [],
                initial_metadata => "checks send no metadata",
            });
            Some(HealthProbe::Grpc { service: grpc.service_name.clone(), authority: grpc.authority.clone() })
        }
        Some(HealthChecker::CustomHealthCheck(_)) | None => {
            report.unenforced(at, "a health check of an unknown kind is not done");
            None
        }
    }
}

/// As hexadecimal text, which every Envoy takes.
fn encode_payload(bytes: &[u8]) -> Payload {
    Payload { payload: Some(payload::Payload::Text(bytes.iter().map(|byte| format!("{byte:02X}")).collect())) }
}

fn read_payload(proto: &Payload, at: &At<'_>, report: &mut Report) -> Vec<u8> {
    let bytes = match &proto.payload {
        Some(payload::Payload::Binary(bytes)) => Some(bytes.clone()),
        Some(payload::Payload::Text(text)) => read_hex(text),
        None => None,
    };
    let bytes = bytes.filter(|bytes| !bytes.is_empty());
    if bytes.is_none() {
        report.problem(at, "bytes in hexadecimal are required");
    }
    bytes.unwrap_or_default()
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::try_from(digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?).ok()).collect()
}

fn read_http(proto: &HttpHealthCheck, at: &At<'_>, report: &mut Report) -> Option<HttpProbe> {
    consider!(proto, at, report, HttpHealthCheck {
        read: [
            host, path, request_headers_to_add, expected_statuses, retriable_statuses, codec_client_type, method,
        ],
        idle: [response_buffer_size],
        send => "checks send no body",
        receive => "the status of an answer counts, not its body",
        request_headers_to_remove => "checks send few headers, and those stay",
        service_name_matcher => "the status of an answer counts, not who gave it",
    });
    let method = METHODS.iter().find(|(method, _)| i32::from(*method) == proto.method);
    if method.is_none() {
        report.problem(&at.field("method"), format!("{} is not a method for checks", proto.method));
    }
    let writes = proto.request_headers_to_add.iter().enumerate();
    let headers = writes.filter_map(|(i, w)| header::read_write(w, &at.item("request_headers_to_add", i), report));
    Some(HttpProbe {
        path: proto.path.clone(),
        host: proto.host.clone(),
        headers: headers.collect(),
        http2: proto.codec_client_type == i32::from(CodecClientType::Http2),
        expected: read_statuses(&proto.expected_statuses, "expected_statuses", at, report),
        retriable: read_statuses(&proto.retriable_statuses, "retriable_statuses", at, report),
        method: method?.1.to_owned(),
    })
}

fn read_statuses(ranges: &[Int64Range], name: &str, at: &At<'_>, report: &mut Report) -> Vec<(u16, u16)> {
    let mut read = |(i, range): (usize, &Int64Range)| {
        let bounds = u16::try_from(range.start).ok().zip(range.end.checked_sub(1).and_then(|e| u16::try_from(e).ok()));
        let bounds = bounds.filter(|(first, last)| *first >= 100 && *last < 600 && first <= last);
        if bounds.is_none() {
            report.problem(&at.item(name, i), format!("[{}, {}) is not a range of statuses", range.start, range.end));
        }
        bounds
    };
    ranges.iter().enumerate().filter_map(&mut read).collect()
}
