//! Reports and orders as they are on the wire.

use std::collections::HashSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Locality as LocalityProto, Node};
use envoy_types::pb::envoy::config::endpoint::v3::cluster_stats::DroppedRequests;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats, UpstreamLocalityStats,
};
use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsResponse;
use envoy_types::pb::google::protobuf;
use mesh_core::id::ClusterName;
use mesh_core::telemetry::load::{ClusterReport, LocalityReport, Metric};

/// The shortest interval (as gRPC's) and the longest.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// What a control plane wants to hear, and how often.
#[derive(Debug, PartialEq)]
pub(super) struct Order {
    pub(super) interval: Duration,
    /// None = all.
    clusters: Option<HashSet<String>>,
}

impl Order {
    /// Reads an answer. An interval that is missing or makes no sense is the shortest.
    pub(super) fn of(answer: LoadStatsResponse) -> Self {
        let interval = answer.load_reporting_interval.unwrap_or_default();
        let seconds = Duration::from_secs(u64::try_from(interval.seconds).unwrap_or_default());
        let nanos = Duration::from_nanos(u64::try_from(interval.nanos).unwrap_or_default());
        let interval = seconds.saturating_add(nanos).clamp(INTERVALS.0, INTERVALS.1);
        let clusters = (!answer.send_all_clusters).then(|| answer.clusters.into_iter().collect());
        Self { interval, clusters }
    }

    pub(super) fn wants(&self, cluster: &ClusterName) -> bool {
        self.clusters.as_ref().is_none_or(|named| named.contains(cluster.as_str()))
    }
}

/// The node with what a reporter can do.
pub(super) fn reporting(mut node: Node) -> Node {
    node.client_features.push("envoy.lrs.supports_send_all_clusters".to_owned());
    node
}

pub(super) fn stats(report: ClusterReport) -> ClusterStats {
    let drops = report.drops.into_iter();
    ClusterStats {
        cluster_name: report.cluster.to_string(),
        cluster_service_name: report.service,
        upstream_locality_stats: report.localities.into_iter().map(locality).collect(),
        total_dropped_requests: report.dropped,
        dropped_requests: drops.map(|(category, dropped_count)| DroppedRequests { category, dropped_count }).collect(),
        load_report_interval: Some(protobuf::Duration {
            seconds: i64::try_from(report.interval.as_secs()).unwrap_or(i64::MAX),
            nanos: report.interval.subsec_nanos().cast_signed(),
        }),
    }
}

fn locality(mut report: LocalityReport) -> UpstreamLocalityStats {
    let locality = report.locality;
    let mut own = |name: &str| report.metrics.remove(name).map(unnamed);
    UpstreamLocalityStats {
        locality: Some(LocalityProto { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone }),
        total_issued_requests: report.issued,
        total_successful_requests: report.successful,
        total_error_requests: report.failed,
        total_requests_in_progress: report.in_progress,
        cpu_utilization: own("cpu_utilization"),
        mem_utilization: own("mem_utilization"),
        application_utilization: own("application_utilization"),
        load_metric_stats: report.metrics.into_iter().map(named).collect(),
        ..UpstreamLocalityStats::default()
    }
}

fn unnamed(metric: Metric) -> UnnamedEndpointLoadMetricStats {
    UnnamedEndpointLoadMetricStats {
        num_requests_finished_with_metric: metric.requests,
        total_metric_value: metric.sum,
    }
}

fn named((metric_name, metric): (String, Metric)) -> EndpointLoadMetricStats {
    EndpointLoadMetricStats {
        metric_name,
        num_requests_finished_with_metric: metric.requests,
        total_metric_value: metric.sum,
    }
}
