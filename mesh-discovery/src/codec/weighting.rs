//! Settings of weighted round robin (gRFC A58) and of slow start.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin, common::v3 as common_lb,
};
use envoy_types::pb::google::protobuf::FloatValue;
use mesh_core::policy::{PerMillion, SlowStart, WeightedRoundRobin};

use super::common;
use super::report::{At, Report, consider};

pub(super) fn encode_weighted(
    settings: &WeightedRoundRobin,
    slow_start_config: Option<common_lb::SlowStartConfig>,
) -> ClientSideWeightedRoundRobin {
    ClientSideWeightedRoundRobin {
        enable_oob_load_report: common::boolean(settings.out_of_band),
        oob_reporting_period: Some(common::duration(settings.out_of_band_period)),
        blackout_period: Some(common::duration(settings.blackout_period)),
        weight_expiration_period: Some(common::duration(settings.weight_expiration)),
        weight_update_period: Some(common::duration(settings.weight_update)),
        error_utilization_penalty: Some(FloatValue { value: penalty(settings.error_penalty) }),
        slow_start_config,
        metric_names_for_computing_utilization: settings.metric_names.clone(),
        oob_reporting_config: None,
    }
}

pub(super) fn read_weighted(
    proto: &ClientSideWeightedRoundRobin,
    at: &At<'_>,
    report: &mut Report,
) -> Option<WeightedRoundRobin> {
    let default = WeightedRoundRobin::default();
    consider!(proto, at, report, ClientSideWeightedRoundRobin {
        read: [
            enable_oob_load_report, oob_reporting_period, blackout_period, weight_expiration_period,
            weight_update_period, error_utilization_penalty, metric_names_for_computing_utilization, slow_start_config,
        ],
        idle: [],
        oob_reporting_config => "load reports come from the endpoint's own port",
    });
    let error_penalty = match &proto.error_utilization_penalty {
        None => default.error_penalty,
        Some(value) => match read_penalty(value.value) {
            Some(penalty) => penalty,
            None => {
                report.problem(&at.field("error_utilization_penalty"), format!("{} is not usable", value.value));
                return None;
            }
        },
    };
    let mut period = |proto, name, default: Duration| common::opt_duration(proto, at, name, report).unwrap_or(default);
    Some(WeightedRoundRobin {
        out_of_band: common::is_true(proto.enable_oob_load_report.as_ref()),
        out_of_band_period: period(
            proto.oob_reporting_period.as_ref(),
            "oob_reporting_period",
            default.out_of_band_period,
        ),
        blackout_period: period(proto.blackout_period.as_ref(), "blackout_period", default.blackout_period),
        weight_expiration: period(
            proto.weight_expiration_period.as_ref(),
            "weight_expiration_period",
            default.weight_expiration,
        ),
        weight_update: period(proto.weight_update_period.as_ref(), "weight_update_period", default.weight_update),
        error_penalty,
        metric_names: proto.metric_names_for_computing_utilization.clone(),
    })
}

/// Millionths as xDS's float.
pub(super) fn penalty(millionths: u32) -> f32 {
    (f64::from(millionths) / 1e6) as f32
}

pub(super) fn read_penalty(value: f32) -> Option<u32> {
    millionths(f64::from(value))
}

/// A number of 0 or more in millionths, if they fit.
pub(super) fn millionths(value: f64) -> Option<u32> {
    let scaled = (value * 1e6).round();
    // In range by the check, so the conversion keeps the value.
    (0.0..=f64::from(u32::MAX)).contains(&scaled).then_some(scaled as u32)
}

pub(super) fn encode_slow_start(slow_start: &SlowStart) -> common_lb::SlowStartConfig {
    common_lb::SlowStartConfig {
        slow_start_window: Some(common::duration(slow_start.window)),
        aggression: Some(RuntimeDouble {
            default_value: f64::from(slow_start.aggression) / 1e6,
            // Envoy demands a key; this one is never set.
            runtime_key: "mesh.slow_start.aggression".to_owned(),
        }),
        min_weight_percent: Some(common::percent(slow_start.min_share)),
    }
}

/// Unset: linear, from 10 % (Envoy).
pub(super) fn read_slow_start(
    proto: Option<&common_lb::SlowStartConfig>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<SlowStart> {
    let proto = proto?;
    let at = at.field("slow_start_config");
    let window = common::opt_duration(proto.slow_start_window.as_ref(), &at, "slow_start_window", report)?;
    let aggression = proto.aggression.as_ref().map_or(1.0, |a| a.default_value);
    let Some(aggression) = millionths(aggression) else {
        report.problem(&at.field("aggression"), format!("{aggression} is not usable"));
        return None;
    };
    let min_share = match &proto.min_weight_percent {
        Some(percent) => common::read_percent(percent, &at.field("min_weight_percent"), report)?,
        None => PerMillion::new(100_000),
    };
    Some(SlowStart { window, aggression, min_share })
}
