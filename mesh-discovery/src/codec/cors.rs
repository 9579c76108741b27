//! CORS answers of a route.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{CorsPolicy as RouteProto, cors_policy::EnabledSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy as Proto;
use mesh_core::policy::{Cors, PerMillion};

use super::common;
use super::matcher;
use super::report::{At, Report, consider};

pub(super) fn encode(cors: &Cors) -> Proto {
    Proto {
        allow_origin_string_match: cors.allow_origins.iter().map(matcher::string).collect(),
        allow_methods: cors.allow_methods.join(","),
        allow_headers: cors.allow_headers.join(","),
        expose_headers: cors.expose_headers.join(","),
        max_age: cors.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: common::boolean(cors.allow_credentials),
        forward_not_matching_preflights: common::boolean(cors.forward_unmatched),
        ..Default::default()
    }
}

/// Decodes; `None` also when a share of 0 turns it off.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Cors> {
    let enabled = common::read_runtime_fraction(proto.filter_enabled.as_ref(), at, "filter_enabled", report);
    if enabled == Some(PerMillion::NONE) {
        return None;
    }
    let partly = enabled.is_some_and(|share| share != PerMillion::ALL);
    report.unenforced_if(partly, at, "filter_enabled", "CORS applies to all requests, not to a share");
    consider!(proto, at, report, Proto {
        read: [
            allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials,
            filter_enabled, allow_private_network_access, forward_not_matching_preflights,
        ],
        idle: [],
        shadow_enabled => "CORS is not evaluated in the shadow",
    });
    let set = common::is_true(proto.allow_private_network_access.as_ref());
    report.unenforced_if(set, at, "allow_private_network_access", "the answer never allows private networks");
    let max_age = match proto.max_age.as_str() {
        "" => None,
        text => match text.parse() {
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => {
                report.problem(&at.field("max_age"), format!("{text:?} is not a number of seconds"));
                None
            }
        },
    };
    Some(Cors {
        allow_origins: matcher::read_strings(&proto.allow_origin_string_match, at, "allow_origin_string_match", report),
        allow_methods: list(&proto.allow_methods),
        allow_headers: list(&proto.allow_headers),
        expose_headers: list(&proto.expose_headers),
        max_age,
        allow_credentials: common::is_true(proto.allow_credentials.as_ref()),
        forward_unmatched: proto.forward_not_matching_preflights.is_none_or(|b| b.value),
    })
}

/// Decodes the older form, a field of the route itself.
pub(super) fn decode_field(proto: &RouteProto, at: &At<'_>, report: &mut Report) -> Option<Cors> {
    let enabled = proto.enabled_specifier.clone().map(|EnabledSpecifier::FilterEnabled(share)| share);
    let proto = Proto {
        allow_origin_string_match: proto.allow_origin_string_match.clone(),
        allow_methods: proto.allow_methods.clone(),
        allow_headers: proto.allow_headers.clone(),
        expose_headers: proto.expose_headers.clone(),
        max_age: proto.max_age.clone(),
        allow_credentials: proto.allow_credentials,
        filter_enabled: enabled,
        shadow_enabled: proto.shadow_enabled.clone(),
        allow_private_network_access: proto.allow_private_network_access,
        forward_not_matching_preflights: proto.forward_not_matching_preflights,
    };
    decode(&proto, at, report)
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}
