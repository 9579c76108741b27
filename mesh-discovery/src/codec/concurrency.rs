//! Limits on requests in flight that follow their latency (`envoy.extensions.filters.http.adaptive_concurrency.v3`).

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::{
    AdaptiveConcurrency as Proto, GradientControllerConfig,
    adaptive_concurrency::ConcurrencyControllerConfig,
    gradient_controller_config::{ConcurrencyLimitCalculationParams, MinimumRttCalculationParams},
};
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, Percent};
use envoy_types::pb::google::protobuf::UInt32Value;
use mesh_core::policy::{AdaptiveConcurrency, MinRtt, PerMillion};

use super::admission::{is_on, off};
use super::common;
use super::report::{At, Report, consider};

/// The answer when nothing is said.
const UNAVAILABLE: u16 = 503;
/// Envoy's floor of the limit when nothing is said, and the limit while the least latency is measured.
const FEW: u32 = 3;

pub(super) fn encode(policy: Option<&AdaptiveConcurrency>) -> Proto {
    let enabled = if policy.is_none() { off() } else { None };
    let policy = policy.cloned().unwrap_or_default();
    let mut limit = ConcurrencyLimitCalculationParams {
        max_concurrency_limit: common::uint32(policy.max_limit),
        concurrency_update_interval: Some(common::duration(policy.interval)),
        min_concurrency_limit: None,
    };
    let buffer = Some(common::percent(policy.buffer));
    let least = match policy.min_rtt {
        MinRtt::Fixed(fixed) => MinimumRttCalculationParams {
            fixed_value: Some(common::duration(fixed)),
            // It is the floor, too.
            min_concurrency: common::uint32(policy.min_limit),
            buffer,
            ..Default::default()
        },
        MinRtt::Measured { interval, requests, jitter, concurrency } => {
            if policy.min_limit != concurrency {
                limit.min_concurrency_limit = common::uint32(policy.min_limit);
            }
            MinimumRttCalculationParams {
                interval: Some(common::duration(interval)),
                fixed_value: None,
                request_count: common::uint32(requests),
                jitter: Some(common::percent(jitter)),
                min_concurrency: common::uint32(concurrency),
                buffer,
            }
        }
    };
    let gradient = GradientControllerConfig {
        sample_aggregate_percentile: Some(common::percent(policy.percentile)),
        concurrency_limit_params: Some(limit),
        min_rtt_calc_params: Some(least),
    };
    Proto {
        enabled,
        concurrency_limit_exceeded_status: (policy.status != UNAVAILABLE)
            .then(|| HttpStatus { code: policy.status.into() }),
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(gradient)),
    }
}

/// Reads the filter's settings; `Some(None)` if it is switched off.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Option<AdaptiveConcurrency>> {
    consider!(
        proto,
        at,
        report,
        Proto { read: [enabled, concurrency_limit_exceeded_status, concurrency_controller_config], idle: [] }
    );
    let at = at.field("gradient_controller_config");
    let Some(ConcurrencyControllerConfig::GradientControllerConfig(gradient)) = &proto.concurrency_controller_config
    else {
        report.problem(&at, "it is required");
        return None;
    };
    let (Some(limit), Some(least)) = (&gradient.concurrency_limit_params, &gradient.min_rtt_calc_params) else {
        report.problem(&at, "concurrency_limit_params and min_rtt_calc_params are required");
        return None;
    };
    let default = AdaptiveConcurrency::default();
    let percentile = gradient.sample_aggregate_percentile.as_ref();
    let percentile = read_percent(percentile, default.percentile, &at, "sample_aggregate_percentile", report);
    let at_limit = at.field("concurrency_limit_params");
    let interval = common::nonzero_duration(
        limit.concurrency_update_interval.as_ref(),
        &at_limit,
        "concurrency_update_interval",
        report,
    );
    if interval.is_none() {
        report.problem(&at_limit.field("concurrency_update_interval"), "a time above 0 is required");
    }
    let max_limit = limit.max_concurrency_limit.as_ref();
    let max_limit = above_zero(max_limit, default.max_limit, &at_limit, "max_concurrency_limit", report);
    let at_least = at.field("min_rtt_calc_params");
    let few = above_zero(least.min_concurrency.as_ref(), FEW, &at_least, "min_concurrency", report);
    let floor = limit.min_concurrency_limit.as_ref();
    let min_limit = above_zero(floor, few.unwrap_or(FEW), &at_limit, "min_concurrency_limit", report);
    let buffer = read_percent(least.buffer.as_ref(), default.buffer, &at_least, "buffer", report);
    let min_rtt = read_min_rtt(least, few, &at_least, report);
    // Envoy takes the default instead of a status that is no error.
    let status = proto.concurrency_limit_exceeded_status.as_ref().and_then(|s| u16::try_from(s.code).ok());
    let policy = AdaptiveConcurrency {
        status: status.filter(|status| (400..600).contains(status)).unwrap_or(UNAVAILABLE),
        percentile: percentile?,
        interval: interval?,
        min_limit: min_limit?,
        max_limit: max_limit?,
        min_rtt: min_rtt?,
        buffer: buffer?,
    };
    Some(is_on(proto.enabled.as_ref()).then_some(policy))
}

/// An interval says that it is measured, whatever the fixed value.
fn read_min_rtt(
    proto: &MinimumRttCalculationParams,
    concurrency: Option<u32>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<MinRtt> {
    let time =
        |proto, name, report: &mut Report| -> Option<Duration> { common::nonzero_duration(proto, at, name, report) };
    let Some(interval) = time(proto.interval.as_ref(), "interval", report) else {
        let fixed = time(proto.fixed_value.as_ref(), "fixed_value", report);
        if fixed.is_none() {
            report.problem(&at.field("interval"), "a time above 0 is required, or a fixed_value");
        }
        return fixed.map(MinRtt::Fixed);
    };
    let requests = above_zero(proto.request_count.as_ref(), 50, at, "request_count", report);
    let jitter = read_percent(proto.jitter.as_ref(), PerMillion::new(150_000), at, "jitter", report);
    Some(MinRtt::Measured { interval, requests: requests?, jitter: jitter?, concurrency: concurrency? })
}

fn above_zero(proto: Option<&UInt32Value>, default: u32, at: &At<'_>, name: &str, report: &mut Report) -> Option<u32> {
    let value = proto.map_or(default, |n| n.value);
    if value == 0 {
        report.problem(&at.field(name), "it must be above 0");
    }
    (value > 0).then_some(value)
}

fn read_percent(
    proto: Option<&Percent>,
    default: PerMillion,
    at: &At<'_>,
    name: &str,
    report: &mut Report,
) -> Option<PerMillion> {
    match proto {
        Some(percent) => common::read_percent(percent, &at.field(name), report),
        None => Some(default),
    }
}
