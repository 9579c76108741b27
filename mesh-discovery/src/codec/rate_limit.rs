//! Local rate limits.

use std::num::NonZeroU32;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as Proto;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, TokenBucket as BucketProto};
use mesh_core::policy::{CallerGroup, CallerRateLimit, HeaderWrite, LocalRateLimit, PerMillion, TokenBucket};

use super::report::{At, Report, consider};
use super::{common, header};
use crate::proto::policy::{CallerGroup as GroupProto, CallerRateLimit as CallersProto};

/// Of the RateLimit headers: the one version that there is (`XRateLimitHeadersRFCVersion.DRAFT_VERSION_03`).
const DRAFT_3: i32 = 1;
/// The answer when nothing is said.
const TOO_MANY: u16 = 429;
/// Envoy's floor on the time between fills.
const SHORTEST_FILL: Duration = Duration::from_millis(50);

pub(super) fn encode(limit: &LocalRateLimit) -> Proto {
    Proto {
        // Envoy demands one.
        stat_prefix: "local_rate_limit".to_owned(),
        status: (limit.status != TOO_MANY).then(|| HttpStatus { code: limit.status.into() }),
        token_bucket: limit.bucket.map(|bucket| BucketProto {
            max_tokens: bucket.max_tokens,
            tokens_per_fill: common::uint32(bucket.tokens_per_fill),
            fill_interval: Some(common::duration(bucket.fill_interval)),
        }),
        filter_enabled: Some(common::runtime_fraction(limit.enabled)),
        filter_enforced: Some(common::runtime_fraction(limit.enforced)),
        request_headers_to_add_when_not_enforced: limit.request_headers.iter().map(header::write).collect(),
        response_headers_to_add: limit.response_headers.iter().map(header::write).collect(),
        local_rate_limit_per_downstream_connection: limit.per_connection,
        rate_limited_as_resource_exhausted: limit.resource_exhausted,
        enable_x_ratelimit_headers: if limit.quota_headers { DRAFT_3 } else { 0 },
        enable_retry_after_header: limit.retry_after,
        ..Default::default()
    }
}

pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<LocalRateLimit> {
    consider!(proto, at, report, Proto {
        read: [
            status, token_bucket, filter_enabled, filter_enforced, request_headers_to_add_when_not_enforced,
            response_headers_to_add, local_rate_limit_per_downstream_connection, rate_limited_as_resource_exhausted,
            enable_x_ratelimit_headers, enable_retry_after_header,
        ],
        // A name in statistics; what only descriptors need.
        idle: [
            stat_prefix, stage, vh_rate_limits, always_consume_default_token_bucket, max_dynamic_descriptors,
        ],
        descriptors => "every request takes from the one bucket",
        rate_limits => "every request takes from the one bucket",
        local_cluster_rate_limit => "the bucket is the process's own, not a share of the cluster's",
    });
    let share = |proto, name, report: &mut Report| {
        common::read_runtime_fraction(proto, at, name, report).unwrap_or(PerMillion::NONE)
    };
    let writes = |list: &[HeaderValueOption], name: &str, report: &mut Report| -> Vec<HeaderWrite> {
        list.iter().enumerate().filter_map(|(i, w)| header::read_write(w, &at.item(name, i), report)).collect()
    };
    let bucket = match &proto.token_bucket {
        Some(bucket) => Some(read_bucket(bucket, &at.field("token_bucket"), report)?),
        None => None,
    };
    // Envoy takes the default instead of a status that is no error.
    let status = proto.status.as_ref().and_then(|s| u16::try_from(s.code).ok());
    let names = ["request_headers_to_add_when_not_enforced", "response_headers_to_add"];
    Some(LocalRateLimit {
        bucket,
        enabled: share(proto.filter_enabled.as_ref(), "filter_enabled", report),
        enforced: share(proto.filter_enforced.as_ref(), "filter_enforced", report),
        status: status.filter(|status| (400..600).contains(status)).unwrap_or(TOO_MANY),
        resource_exhausted: proto.rate_limited_as_resource_exhausted,
        response_headers: writes(&proto.response_headers_to_add, names[1], report),
        request_headers: writes(&proto.request_headers_to_add_when_not_enforced, names[0], report),
        per_connection: proto.local_rate_limit_per_downstream_connection,
        // As in Envoy, what is not this one is off.
        quota_headers: proto.enable_x_ratelimit_headers == DRAFT_3,
        retry_after: proto.enable_retry_after_header,
    })
}

pub(super) fn encode_callers(limit: &CallerRateLimit) -> CallersProto {
    let group = |group: &CallerGroup| GroupProto { callers: group.callers.clone(), per_second: group.per_second.get() };
    CallersProto { each: limit.each.map_or(0, NonZeroU32::get), groups: limit.groups.iter().map(group).collect() }
}

pub(super) fn decode_callers(proto: &CallersProto, at: &At<'_>, report: &mut Report) -> Option<CallerRateLimit> {
    let mut groups = Vec::with_capacity(proto.groups.len());
    for (i, group) in proto.groups.iter().enumerate() {
        let Some(per_second) = NonZeroU32::new(group.per_second) else {
            report.problem(&at.item("groups", i).field("per_second"), "it must be above 0");
            return None;
        };
        groups.push(CallerGroup { callers: group.callers.clone(), per_second });
    }
    Some(CallerRateLimit { each: NonZeroU32::new(proto.each), groups })
}

fn read_bucket(proto: &BucketProto, at: &At<'_>, report: &mut Report) -> Option<TokenBucket> {
    let tokens_per_fill = proto.tokens_per_fill.map_or(1, |n| n.value);
    for (name, tokens) in [("max_tokens", proto.max_tokens), ("tokens_per_fill", tokens_per_fill)] {
        if tokens == 0 {
            report.problem(&at.field(name), "it must be above 0");
        }
    }
    let interval = common::opt_duration(proto.fill_interval.as_ref(), at, "fill_interval", report);
    let Some(fill_interval) = interval.filter(|interval| *interval >= SHORTEST_FILL) else {
        report.problem(&at.field("fill_interval"), "at least 50 ms are required");
        return None;
    };
    Some(TokenBucket { max_tokens: proto.max_tokens, tokens_per_fill, fill_interval })
}
