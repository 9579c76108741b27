//! Fault injection (gRFC A33).

use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{
    FaultDelay as DelayProto,
    fault_delay::{FaultDelaySecifier, HeaderDelay},
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{
    FaultAbort as AbortProto, HttpFault,
    fault_abort::{ErrorType, HeaderAbort},
};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use mesh_core::id::ClusterName;
use mesh_core::policy::{AbortStatus, Fault, FaultAbort, FaultDelay, PerMillion, ShareUnit};

use super::report::{At, Report, consider};
use super::{common, matcher};

pub(super) fn encode(fault: &Fault) -> HttpFault {
    HttpFault {
        delay: fault.delay.as_ref().map(|delay| DelayProto {
            percentage: Some(match delay.duration {
                Some(_) => common::fraction(delay.share),
                None => common::fraction_in(delay.share, delay.unit),
            }),
            fault_delay_secifier: Some(match delay.duration {
                Some(duration) => FaultDelaySecifier::FixedDelay(common::duration(duration)),
                None => FaultDelaySecifier::HeaderDelay(HeaderDelay {}),
            }),
        }),
        abort: fault.abort.as_ref().map(|abort| AbortProto {
            percentage: Some(match abort.status {
                Some(_) => common::fraction(abort.share),
                None => common::fraction_in(abort.share, abort.unit),
            }),
            error_type: Some(match abort.status {
                Some(AbortStatus::Http(status)) => ErrorType::HttpStatus(status.into()),
                Some(AbortStatus::Grpc(status)) => ErrorType::GrpcStatus(status),
                None => ErrorType::HeaderAbort(HeaderAbort {}),
            }),
            ..Default::default()
        }),
        headers: fault.headers.iter().map(matcher::header).collect(),
        upstream_cluster: fault.cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
        max_active_faults: fault.max_active.and_then(common::uint32),
        ..Default::default()
    }
}

pub(super) fn decode(proto: &HttpFault, at: &At<'_>, report: &mut Report) -> Fault {
    consider!(proto, at, report, HttpFault {
        read: [delay, abort, upstream_cluster, headers, max_active_faults],
        // Runtime keys that override the fields, and statistics.
        idle: [
            delay_percent_runtime, abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime,
            max_active_faults_runtime, response_rate_limit_percent_runtime, abort_grpc_status_runtime,
            disable_downstream_cluster_stats, filter_metadata,
        ],
        downstream_nodes => "faults are for these nodes alone, and who this one is the decoder does not know: none is injected",
        response_rate_limit => "answers are not slowed down",
    });
    let delay = proto.delay.as_ref().and_then(|d| read_delay(d, &at.field("delay"), report));
    let abort = proto.abort.as_ref().and_then(|a| read_abort(a, &at.field("abort"), report));
    // What is meant for one node must not hit all.
    let is_ours = proto.downstream_nodes.is_empty();
    Fault {
        delay: delay.filter(|_| is_ours),
        abort: abort.filter(|_| is_ours),
        headers: matcher::read_headers(&proto.headers, at, "headers", report),
        cluster: common::non_empty(&proto.upstream_cluster).map(|name| ClusterName::from(name.as_str())),
        max_active: proto.max_active_faults.map(|n| n.value),
    }
}

fn read_delay(proto: &DelayProto, at: &At<'_>, report: &mut Report) -> Option<FaultDelay> {
    let (share, unit) = read_share(proto.percentage.as_ref(), at, report).unzip();
    match &proto.fault_delay_secifier {
        Some(FaultDelaySecifier::FixedDelay(fixed)) => {
            let duration = common::read_duration(fixed, &at.field("fixed_delay"), report)?;
            Some(FaultDelay::of(duration, share?))
        }
        Some(FaultDelaySecifier::HeaderDelay(_)) => Some(FaultDelay { duration: None, share: share?, unit: unit? }),
        None => {
            report.problem(at, "a fixed delay is required");
            None
        }
    }
}

fn read_abort(proto: &AbortProto, at: &At<'_>, report: &mut Report) -> Option<FaultAbort> {
    consider!(proto, at, report, AbortProto {
        read: [percentage, error_type],
        idle: [],
        response_body => "the body says that a fault was injected",
    });
    let (share, unit) = read_share(proto.percentage.as_ref(), at, report).unzip();
    let status = match proto.error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status) if (200..600).contains(&status) => Some(AbortStatus::Http(status)),
            _ => {
                report.problem(&at.field("http_status"), format!("{status} is not between 200 and 599"));
                return None;
            }
        },
        Some(ErrorType::GrpcStatus(status)) if (1..=16).contains(&status) => Some(AbortStatus::Grpc(status)),
        Some(ErrorType::GrpcStatus(status)) => {
            report.problem(&at.field("grpc_status"), format!("{status} is not between 1 and 16"));
            return None;
        }
        Some(ErrorType::HeaderAbort(_)) => None,
        None => {
            report.problem(at, "a status is required");
            return None;
        }
    };
    // A fixed status does without: nobody asks for a share of it.
    let unit = if status.is_none() { unit? } else { ShareUnit::default() };
    Some(FaultAbort { status, share: share?, unit })
}

/// An unset share is none, as in Envoy.
fn read_share(proto: Option<&FractionalPercent>, at: &At<'_>, report: &mut Report) -> Option<(PerMillion, ShareUnit)> {
    let Some(proto) = proto else { return Some((PerMillion::NONE, ShareUnit::default())) };
    let unit = common::read_unit(proto, &at.field("percentage"), report)?;
    Some((unit.share(proto.numerator), unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_is_meant_for_some_nodes_hits_none() {
        let share = PerMillion::ALL;
        let fault = Fault {
            delay: Some(FaultDelay::of(std::time::Duration::from_secs(1), share)),
            abort: Some(FaultAbort::with(AbortStatus::Http(503), share)),
            ..Fault::default()
        };
        for nodes in [vec![], vec!["another".to_owned()]] {
            let mut report = Report::new("listener", "a");
            let proto = HttpFault { downstream_nodes: nodes.clone(), ..encode(&fault) };
            let read = decode(&proto, &At::ROOT, &mut report);
            let fields: Vec<_> = report.finish(Some(())).unwrap().unenforced.into_iter().map(|u| u.field).collect();
            // The control: one that is meant for everybody is injected.
            let (injected, listed) =
                if nodes.is_empty() { (fault.clone(), vec![]) } else { (Fault::default(), vec!["downstream_nodes"]) };
            assert_eq!((read, fields), (injected, listed.into_iter().map(str::to_owned).collect()));
        }
    }

    #[test]
    fn a_share_that_the_request_may_lower_is_never_lost_for_its_unit() {
        let half_a_per_cent = PerMillion::new(5_000);
        for (share, unit, sent) in [
            (half_a_per_cent, ShareUnit::Hundred, ShareUnit::TenThousand),
            (PerMillion::new(7), ShareUnit::Hundred, ShareUnit::Million),
            (PerMillion::new(7), ShareUnit::TenThousand, ShareUnit::Million),
            // The control: what its unit holds stays in it.
            (PerMillion::new(20_000), ShareUnit::Hundred, ShareUnit::Hundred),
            (half_a_per_cent, ShareUnit::TenThousand, ShareUnit::TenThousand),
        ] {
            let fault = encode(&Fault {
                delay: Some(FaultDelay { duration: None, share, unit }),
                abort: Some(FaultAbort { status: None, share, unit }),
                ..Fault::default()
            });
            let mut report = Report::new("listener", "a");
            let read = decode(&fault, &At::ROOT, &mut report);
            assert_eq!(read.delay, Some(FaultDelay { duration: None, share, unit: sent }));
            assert_eq!(read.abort, Some(FaultAbort { status: None, share, unit: sent }));
        }
    }
}
