//! Fault injection (gRFC A33).

use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{
    FaultDelay as DelayProto, fault_delay::FaultDelaySecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{
    FaultAbort as AbortProto, HttpFault, fault_abort::ErrorType,
};
use mesh_core::policy::{AbortStatus, Fault, FaultAbort, FaultDelay, PerMillion};

use super::common;
use super::report::{At, Report};

pub(super) fn encode(fault: &Fault) -> HttpFault {
    HttpFault {
        delay: fault.delay.as_ref().map(|delay| DelayProto {
            percentage: Some(common::fraction(delay.share)),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(common::duration(delay.duration))),
        }),
        abort: fault.abort.as_ref().map(|abort| AbortProto {
            percentage: Some(common::fraction(abort.share)),
            error_type: Some(match abort.status {
                AbortStatus::Http(status) => ErrorType::HttpStatus(status.into()),
                AbortStatus::Grpc(status) => ErrorType::GrpcStatus(status),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn decode(proto: &HttpFault, at: &At<'_>, report: &mut Report) -> Fault {
    let effect = "faults apply to every caller, cluster and header";
    report.unenforced_if(!proto.upstream_cluster.is_empty(), at, "upstream_cluster", effect);
    report.unenforced_if(!proto.downstream_nodes.is_empty(), at, "downstream_nodes", effect);
    report.unenforced_if(!proto.headers.is_empty(), at, "headers", effect);
    let set = proto.max_active_faults.is_some();
    report.unenforced_if(set, at, "max_active_faults", "the number of faults at once is not limited");
    let set = proto.response_rate_limit.is_some();
    report.unenforced_if(set, at, "response_rate_limit", "answers are not slowed down");
    Fault {
        delay: proto.delay.as_ref().and_then(|d| read_delay(d, &at.field("delay"), report)),
        abort: proto.abort.as_ref().and_then(|a| read_abort(a, &at.field("abort"), report)),
    }
}

fn read_delay(proto: &DelayProto, at: &At<'_>, report: &mut Report) -> Option<FaultDelay> {
    let share = read_share(proto.percentage.as_ref(), at, report);
    match &proto.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            let duration = common::read_duration(fixed, &at.field("fixed_delay"), report)?;
            Some(FaultDelay { duration, share: share? })
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => {
            report.unenforced(&at.field("header_delay"), "callers cannot ask for a delay by header");
            None
        }
        None => {
            report.problem(at, "a fixed delay is required");
            None
        }
    }
}

fn read_abort(proto: &AbortProto, at: &At<'_>, report: &mut Report) -> Option<FaultAbort> {
    let share = read_share(proto.percentage.as_ref(), at, report);
    let status = match proto.error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status) if (200..600).contains(&status) => AbortStatus::Http(status),
            _ => {
                report.problem(&at.field("http_status"), format!("{status} is not between 200 and 599"));
                return None;
            }
        },
        Some(ErrorType::GrpcStatus(status)) if (1..=16).contains(&status) => AbortStatus::Grpc(status),
        Some(ErrorType::GrpcStatus(status)) => {
            report.problem(&at.field("grpc_status"), format!("{status} is not between 1 and 16"));
            return None;
        }
        Some(ErrorType::HeaderAbort(_)) => {
            report.unenforced(&at.field("header_abort"), "callers cannot ask for an abort by header");
            return None;
        }
        None => {
            report.problem(at, "a status is required");
            return None;
        }
    };
    Some(FaultAbort { status, share: share? })
}

/// An unset share is none, as in Envoy.
fn read_share(
    proto: Option<&envoy_types::pb::envoy::r#type::v3::FractionalPercent>,
    at: &At<'_>,
    report: &mut Report,
) -> Option<PerMillion> {
    match proto {
        Some(share) => common::read_fraction(share, &at.field("percentage"), report),
        None => Some(PerMillion::NONE),
    }
}
