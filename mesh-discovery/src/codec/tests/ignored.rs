//! What becomes of each field of the messages with the most fields that mean something to proxies alone: set to something else
//! than its default, it is obeyed, means nothing to requests, is listed, or is refused. None is passed over in silence that
//! an operator would miss.

use envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions;
use envoy_types::pb::envoy::config::route::v3::RouteAction;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use prost::encoding::{WireType, encode_key};

use super::{conformance_server, refusals};
use crate::codec::{self, DecodeError, Decoded};

use self::Outcome::{Listed, Refused, Silent};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// Obeyed, or it means nothing to requests.
    Silent,
    Listed,
    Refused,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A number, `true` or an enum's second value.
    Number,
    /// A message that says nothing, or a list of one such.
    Empty,
    Text,
}
use self::Kind::{Empty, Number, Text};

/// The message with one more field.
fn with<M: Message + Default>(message: &M, tag: u32, kind: Kind) -> M {
    let mut bytes = message.encode_to_vec();
    let (wire, value): (_, &[u8]) = match kind {
        Number => (WireType::Varint, &[1]),
        Empty => (WireType::LengthDelimited, &[0]),
        Text => (WireType::LengthDelimited, b"\x01x"),
    };
    encode_key(tag, wire, &mut bytes);
    bytes.extend(value);
    M::decode(&bytes[..]).unwrap()
}

fn outcome<T>(name: &str, decoded: Result<Decoded<T>, DecodeError>) -> Outcome {
    match decoded {
        Err(_) => Refused,
        Ok(decoded) if decoded.unenforced.iter().any(|line| line.field.rsplit('.').next() == Some(name)) => Listed,
        Ok(decoded) if decoded.unenforced.is_empty() => Silent,
        Ok(decoded) => panic!("{name}: something else is told of: {:?}", decoded.unenforced),
    }
}

fn of_listener(name: &str, resource: &Any) -> Outcome {
    outcome(name, codec::decode_listener(resource))
}

#[test]
fn each_field_of_a_connection_manager() {
    // The filters and the routes have rows of their own.
    for (name, tag, kind, client, server) in [
        ("codec_type", 1, Number, Silent, Listed),
        ("stat_prefix", 2, Text, Silent, Silent),
        ("add_user_agent", 6, Empty, Silent, Listed),
        ("tracing", 7, Empty, Listed, Listed),
        ("common_http_protocol_options", 35, Empty, Silent, Silent),
        ("http1_safe_max_connection_duration", 58, Number, Silent, Silent),
        ("http_protocol_options", 8, Empty, Silent, Listed),
        ("http2_protocol_options", 9, Empty, Silent, Silent),
        ("http3_protocol_options", 44, Empty, Silent, Silent),
        ("server_name", 10, Text, Silent, Listed),
        ("server_header_transformation", 34, Number, Silent, Listed),
        ("scheme_header_transformation", 48, Empty, Listed, Listed),
        ("max_request_headers_kb", 29, Empty, Silent, Listed),
        ("stream_idle_timeout", 24, Empty, Listed, Listed),
        ("stream_flush_timeout", 59, Empty, Silent, Listed),
        ("request_timeout", 28, Empty, Listed, Listed),
        ("request_headers_timeout", 41, Empty, Silent, Listed),
        ("drain_timeout", 12, Empty, Silent, Listed),
        ("drain_timeout_jitter", 62, Empty, Silent, Listed),
        ("delayed_close_timeout", 26, Empty, Silent, Listed),
        ("access_log", 13, Empty, Listed, Listed),
        ("access_log_flush_interval", 54, Empty, Silent, Silent),
        ("flush_access_log_on_new_request", 55, Number, Silent, Silent),
        ("access_log_options", 56, Empty, Silent, Silent),
        ("use_remote_address", 14, Empty, Silent, Listed),
        ("xff_num_trusted_hops", 19, Number, Refused, Refused),
        ("original_ip_detection_extensions", 46, Empty, Refused, Refused),
        ("early_header_mutation_extensions", 52, Empty, Listed, Listed),
        ("internal_address_config", 25, Empty, Silent, Silent),
        ("skip_xff_append", 21, Number, Silent, Silent),
        ("via", 22, Text, Silent, Listed),
        ("generate_request_id", 15, Empty, Silent, Listed),
        ("preserve_external_request_id", 32, Number, Silent, Silent),
        ("always_set_request_id_in_response", 37, Number, Silent, Listed),
        ("forward_client_cert_details", 16, Number, Silent, Listed),
        ("set_current_client_cert_details", 17, Empty, Silent, Listed),
        ("forward_client_cert_matcher", 60, Empty, Silent, Listed),
        ("proxy_100_continue", 18, Number, Silent, Listed),
        ("represent_ipv4_remote_address_as_ipv4_mapped_ipv6", 20, Number, Silent, Silent),
        ("upgrade_configs", 23, Empty, Listed, Listed),
        ("normalize_path", 30, Empty, Listed, Listed),
        // What a server does anyway.
        ("merge_slashes", 33, Number, Listed, Silent),
        ("path_with_escaped_slashes_action", 45, Number, Listed, Listed),
        ("request_id_extension", 36, Empty, Silent, Listed),
        ("local_reply_config", 38, Empty, Listed, Listed),
        ("strip_matching_host_port", 39, Number, Listed, Listed),
        ("stream_error_on_invalid_http_message", 40, Empty, Silent, Listed),
        ("path_normalization_options", 43, Empty, Listed, Listed),
        ("strip_trailing_host_dot", 47, Number, Listed, Silent),
        ("proxy_status_config", 49, Empty, Silent, Listed),
        ("typed_header_validation_config", 50, Empty, Silent, Listed),
        ("append_x_forwarded_port", 51, Number, Silent, Listed),
        ("append_local_overload", 57, Number, Silent, Listed),
        ("add_proxy_protocol_connection_state", 53, Empty, Silent, Silent),
        ("forward_proto_config", 61, Empty, Silent, Listed),
        ("strip_port_mode", 42, Number, Listed, Listed),
    ] {
        let change = |manager: &mut HttpConnectionManager| *manager = with(manager, tag, kind);
        let of_client = of_listener(name, &refusals::with_manager(change));
        let of_server = of_listener(name, &conformance_server::with_manager(change));
        assert_eq!((of_client, of_server), (client, server), "{name}");
    }
}

#[test]
fn each_field_of_a_servers_http2_options() {
    for (name, tag, kind, want) in [
        ("hpack_table_size", 1, Empty, Silent),
        ("max_concurrent_streams", 2, Empty, Silent),
        ("initial_stream_window_size", 3, Empty, Listed),
        ("initial_connection_window_size", 4, Empty, Listed),
        ("allow_connect", 5, Number, Listed),
        ("allow_metadata", 6, Number, Silent),
        ("max_outbound_frames", 7, Empty, Listed),
        ("max_outbound_control_frames", 8, Empty, Listed),
        ("max_consecutive_inbound_frames_with_empty_payload", 9, Empty, Listed),
        ("max_inbound_priority_frames_per_stream", 10, Empty, Listed),
        ("max_inbound_window_update_frames_per_data_frame_sent", 11, Empty, Listed),
        ("stream_error_on_invalid_http_messaging", 12, Number, Listed),
        ("custom_settings_parameters", 13, Empty, Silent),
        ("override_stream_error_on_invalid_http_message", 14, Empty, Listed),
        ("connection_keepalive", 15, Empty, Listed),
        ("use_oghttp2_codec", 16, Empty, Silent),
        ("max_metadata_size", 17, Empty, Silent),
        ("enable_huffman_encoding", 18, Empty, Silent),
        ("max_header_field_size_kb", 19, Empty, Listed),
    ] {
        let resource = conformance_server::with_manager(|manager| {
            manager.http2_protocol_options = Some(with(&Http2ProtocolOptions::default(), tag, kind));
        });
        assert_eq!(of_listener(name, &resource), want, "{name}");
    }
}

#[test]
fn each_field_of_a_route() {
    for (name, tag, kind, want) in [
        ("cluster_not_found_response_code", 20, Number, Listed),
        ("metadata_match", 4, Empty, Silent),
        ("prefix_rewrite", 5, Text, Silent),
        ("append_x_forwarded_host", 38, Number, Silent),
        ("timeout", 8, Empty, Silent),
        ("idle_timeout", 24, Empty, Silent),
        ("flush_timeout", 42, Empty, Listed),
        ("early_data_policy", 40, Empty, Listed),
        ("retry_policy_typed_config", 33, Empty, Listed),
        ("priority", 11, Number, Silent),
        ("rate_limits", 13, Empty, Listed),
        ("include_vh_rate_limits", 14, Empty, Silent),
        ("cors", 17, Empty, Silent),
        ("max_grpc_timeout", 23, Empty, Listed),
        ("grpc_timeout_offset", 28, Empty, Listed),
        ("upgrade_configs", 25, Empty, Listed),
        ("internal_redirect_policy", 34, Empty, Listed),
        ("internal_redirect_action", 26, Number, Listed),
        ("max_internal_redirects", 31, Empty, Silent),
        ("hedge_policy", 27, Empty, Silent),
        ("max_stream_duration", 36, Empty, Silent),
    ] {
        let resource = refusals::with_action(|action: &mut RouteAction| *action = with(action, tag, kind));
        assert_eq!(outcome(name, codec::decode_routes(&resource)), want, "{name}");
    }
}
