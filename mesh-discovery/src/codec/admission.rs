//! Client-side throttling (`envoy.extensions.filters.http.admission_control.v3`).

use std::ops::Range;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{RuntimeDouble, RuntimeFeatureFlag, RuntimePercent, RuntimeUInt32};
use envoy_types::pb::envoy::extensions::filters::http::admission_control::v3::{
    AdmissionControl as Proto,
    admission_control::{
        EvaluationCriteria, SuccessCriteria,
        success_criteria::{GrpcCriteria, HttpCriteria},
    },
};
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use mesh_core::policy::{AdmissionControl, PerMillion};

use super::common;
use super::report::{At, Report, consider};
use super::weighting::millionths;

/// What the growth is at least.
const LINEAR: u32 = 1_000_000;
const SHORTEST_WINDOW: Duration = Duration::from_secs(1);

pub(super) fn encode(policy: Option<&AdmissionControl>) -> Proto {
    let Some(policy) = policy else {
        return Proto {
            enabled: off(),
            evaluation_criteria: criteria(&AdmissionControl::default()),
            ..Proto::default()
        };
    };
    // Envoy demands keys; these are never set.
    let percent = |share, key: &str| {
        Some(RuntimePercent { default_value: Some(common::percent(share)), runtime_key: key.to_owned() })
    };
    Proto {
        enabled: None,
        sampling_window: Some(common::duration(policy.window)),
        aggression: Some(RuntimeDouble {
            default_value: f64::from(policy.aggression) / 1e6,
            runtime_key: "mesh.admission_control.aggression".to_owned(),
        }),
        sr_threshold: percent(policy.threshold, "mesh.admission_control.sr_threshold"),
        rps_threshold: Some(RuntimeUInt32 {
            default_value: policy.min_rps,
            runtime_key: "mesh.admission_control.rps_threshold".to_owned(),
        }),
        max_rejection_probability: percent(policy.max_rejection, "mesh.admission_control.max_rejection_probability"),
        evaluation_criteria: criteria(policy),
    }
}

fn criteria(policy: &AdmissionControl) -> Option<EvaluationCriteria> {
    let range = |range: &Range<u16>| Int32Range { start: range.start.into(), end: range.end.into() };
    let http = policy.http_success.iter().map(range).collect::<Vec<_>>();
    let grpc = policy.grpc_success.clone();
    Some(EvaluationCriteria::SuccessCriteria(SuccessCriteria {
        http_criteria: (!http.is_empty()).then_some(HttpCriteria { http_success_status: http }),
        grpc_criteria: (!grpc.is_empty()).then_some(GrpcCriteria { grpc_success_status: grpc }),
    }))
}

/// Reads the filter's settings; `Some(None)` if it is switched off.
pub(super) fn decode(proto: &Proto, at: &At<'_>, report: &mut Report) -> Option<Option<AdmissionControl>> {
    consider!(
        proto,
        at,
        report,
        Proto {
            read: [
                enabled,
                sampling_window,
                aggression,
                sr_threshold,
                rps_threshold,
                max_rejection_probability,
                evaluation_criteria,
            ],
            idle: [],
        }
    );
    let default = AdmissionControl::default();
    let aggression = proto.aggression.as_ref().map_or(1.0, |aggression| aggression.default_value);
    let aggression = millionths(aggression).or_else(|| {
        report.problem(&at.field("aggression"), format!("{aggression} is not usable"));
        None
    });
    let threshold = read_percent(proto.sr_threshold.as_ref(), default.threshold, at, "sr_threshold", report);
    if threshold.is_some_and(|threshold| threshold < PerMillion::new(10_000)) {
        report.problem(&at.field("sr_threshold"), "at least 1 % is required");
    }
    let most = proto.max_rejection_probability.as_ref();
    let most = read_percent(most, default.max_rejection, at, "max_rejection_probability", report);
    let window = common::opt_duration(proto.sampling_window.as_ref(), at, "sampling_window", report);
    let Some(EvaluationCriteria::SuccessCriteria(criteria)) = &proto.evaluation_criteria else {
        report.problem(&at.field("success_criteria"), "it is required");
        return None;
    };
    let at_criteria = at.field("success_criteria");
    let policy = AdmissionControl {
        window: window.unwrap_or(default.window).max(SHORTEST_WINDOW),
        threshold: threshold?,
        aggression: aggression?.max(LINEAR),
        min_rps: proto.rps_threshold.as_ref().map_or(0, |rps| rps.default_value),
        max_rejection: most?,
        http_success: read_http(criteria.http_criteria.as_ref(), &at_criteria, report),
        grpc_success: read_grpc(criteria.grpc_criteria.as_ref(), &at_criteria, report),
    };
    Some(is_on(proto.enabled.as_ref()).then_some(policy))
}

fn read_http(proto: Option<&HttpCriteria>, at: &At<'_>, report: &mut Report) -> Vec<Range<u16>> {
    let (at, all) = (at.field("http_criteria"), proto.map_or(&[][..], |criteria| &criteria.http_success_status));
    let read =
        all.iter().enumerate().filter_map(|(i, range)| match (u16::try_from(range.start), u16::try_from(range.end)) {
            (Ok(start), Ok(end)) if 100 <= start && start < end && end <= 600 => Some(start..end),
            _ => {
                let reason = format!("{} to {} is not a range of statuses below 600", range.start, range.end);
                report.problem(&at.item("http_success_status", i), reason);
                None
            }
        });
    read.collect()
}

fn read_grpc(proto: Option<&GrpcCriteria>, at: &At<'_>, report: &mut Report) -> Vec<u32> {
    let (at, all) = (at.field("grpc_criteria"), proto.map_or(&[][..], |criteria| &criteria.grpc_success_status));
    for (i, code) in all.iter().enumerate().filter(|(_, code)| **code > 16) {
        report.problem(&at.item("grpc_success_status", i), format!("{code} is not between 0 and 16"));
    }
    all.to_vec()
}

fn read_percent(
    proto: Option<&RuntimePercent>,
    default: PerMillion,
    at: &At<'_>,
    name: &str,
    report: &mut Report,
) -> Option<PerMillion> {
    match proto.and_then(|percent| percent.default_value.as_ref()) {
        Some(percent) => common::read_percent(percent, &at.field(name), report),
        None => Some(default),
    }
}

/// A flag that says no.
pub(super) fn off() -> Option<RuntimeFeatureFlag> {
    let runtime_key = "mesh.filter_enabled".to_owned();
    Some(RuntimeFeatureFlag { default_value: common::boolean(false), runtime_key })
}

/// A flag that is not given says yes.
pub(super) fn is_on(flag: Option<&RuntimeFeatureFlag>) -> bool {
    flag.and_then(|flag| flag.default_value.as_ref()).is_none_or(|flag| flag.value)
}
