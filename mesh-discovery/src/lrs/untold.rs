//! [`Untold`]: what was taken from the store and is not told yet, cut into messages by their bytes.
//!
//! Refuses to know whom it is told, and when.

use std::collections::VecDeque;
use std::mem;

use envoy_types::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use prost::Message as _;

/// Bytes of one message. gRPC servers take 4 MiB by default, but of all that one service account's processes send at once a
/// server may hold so much only.
pub(super) const BYTES: usize = 256 << 10;
/// What an entry of a list takes beside its own bytes at most: the key of its field, and how long it is.
const HEAD: usize = 1 + 5;

/// Reports in the order in which they are told. It outlives the stream: what that was not given is told on the next one.
#[derive(Default)]
pub(super) struct Untold {
    stats: VecDeque<ClusterStats>,
    /// Metrics were left out, and the log has it.
    is_short: bool,
}

impl Untold {
    pub(super) fn is_empty(&self) -> bool {
        self.stats.is_empty()
    }

    /// Forgets what nobody wants to hear any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.stats.retain(|stats| wanted(&stats.cluster_name));
    }

    /// Takes the report of one cluster in; what no message has room for comes in several parts, each with some localities.
    pub(super) fn add(&mut self, mut stats: ClusterStats) {
        if size(&stats) <= BYTES {
            self.stats.push_back(stats);
            return;
        }
        let localities = mem::take(&mut stats.upstream_locality_stats);
        // What was dropped is the cluster's, and is told once.
        let bare = ClusterStats { total_dropped_requests: 0, dropped_requests: Vec::new(), ..stats.clone() };
        let mut room = BYTES.saturating_sub(size(&stats));
        for mut locality in localities {
            self.shorten(&mut locality, BYTES.saturating_sub(size(&bare)), &bare.cluster_name);
            let bytes = size(&locality);
            if bytes > room {
                self.stats.push_back(mem::replace(&mut stats, bare.clone()));
                room = BYTES.saturating_sub(size(&bare));
            }
            room = room.saturating_sub(bytes);
            stats.upstream_locality_stats.push(locality);
        }
        self.stats.push_back(stats);
    }

    /// Leaves named metrics out until a locality has as many bytes as it may have.
    fn shorten(&mut self, locality: &mut UpstreamLocalityStats, most: usize, cluster: &str) {
        let mut over = size(locality).saturating_sub(most);
        if over == 0 {
            return;
        }
        while over > 0
            && let Some(metric) = locality.load_metric_stats.pop()
        {
            over = over.saturating_sub(metric.encoded_len());
        }
        if !mem::replace(&mut self.is_short, true) {
            tracing::warn!(
                cluster,
                limit = BYTES,
                "a load report lacks metrics: what the endpoints of one locality report by name is more than a message may have"
            );
        }
    }

    /// What the next message says; nothing = all of it is told.
    pub(super) fn message(&mut self) -> Vec<ClusterStats> {
        let (mut message, mut room) = (Vec::new(), BYTES);
        while let Some(next) = self.stats.front().map(size)
            && (message.is_empty() || next <= room)
        {
            room = room.saturating_sub(next);
            message.extend(self.stats.pop_front());
        }
        message
    }
}

fn size(entry: &impl prost::Message) -> usize {
    HEAD + entry.encoded_len()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::Locality;
    use envoy_types::pb::envoy::config::endpoint::v3::{EndpointLoadMetricStats, cluster_stats::DroppedRequests};
    use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;

    use super::*;

    /// A locality with so many metrics, each with a name of this length.
    fn locality(zone: usize, metrics: usize, name: usize) -> UpstreamLocalityStats {
        let metric = |n| EndpointLoadMetricStats {
            metric_name: format!("{n:0name$}"),
            num_requests_finished_with_metric: 1,
            total_metric_value: 0.5,
        };
        UpstreamLocalityStats {
            locality: Some(Locality { zone: zone.to_string(), ..Locality::default() }),
            total_issued_requests: 1,
            load_metric_stats: (0..metrics).map(metric).collect(),
            ..UpstreamLocalityStats::default()
        }
    }

    fn cluster(name: &str, localities: impl IntoIterator<Item = UpstreamLocalityStats>) -> ClusterStats {
        ClusterStats {
            cluster_name: name.to_owned(),
            upstream_locality_stats: localities.into_iter().collect(),
            total_dropped_requests: 3,
            dropped_requests: vec![DroppedRequests { category: "lb".to_owned(), dropped_count: 3 }],
            ..ClusterStats::default()
        }
    }

    /// All messages, none of which is too large.
    fn messages(untold: &mut Untold) -> Vec<Vec<ClusterStats>> {
        let mut messages = Vec::new();
        while !untold.is_empty() {
            let cluster_stats = untold.message();
            let request = LoadStatsRequest { node: None, cluster_stats };
            assert!(request.encoded_len() <= BYTES, "{}", request.encoded_len());
            messages.push(request.cluster_stats);
        }
        assert_eq!(untold.message(), []);
        messages
    }

    #[test]
    fn a_message_takes_as_many_reports_as_it_has_room_for() {
        let mut untold = Untold::default();
        let all: Vec<_> =
            (0..1000).map(|n| cluster(&n.to_string(), (0..10).map(|zone| locality(zone, 8, 40)))).collect();
        all.iter().cloned().for_each(|stats| untold.add(stats));
        let told = messages(&mut untold);
        assert_eq!(told.concat(), all);
        let bytes: usize = all.iter().map(size).sum();
        assert_eq!(told.len(), bytes.div_ceil(BYTES), "{bytes} bytes");
        // The control: little comes in one.
        untold.add(all[0].clone());
        untold.add(all[1].clone());
        assert_eq!(messages(&mut untold), [&all[..2]]);
    }

    #[test]
    fn a_cluster_that_no_message_has_room_for_comes_in_parts_with_some_localities_each() {
        let mut untold = Untold::default();
        let whole = cluster("a", (0..2_000).map(|zone| locality(zone, 32, 60)));
        assert!(size(&whole) > BYTES);
        untold.add(whole.clone());
        let parts = messages(&mut untold).concat();
        assert_eq!(parts.len(), size(&whole).div_ceil(BYTES));
        let localities: Vec<_> = parts.iter().flat_map(|part| part.upstream_locality_stats.clone()).collect();
        assert_eq!(localities, whole.upstream_locality_stats);
        let dropped: Vec<_> = parts.iter().map(|part| (part.total_dropped_requests, &part.dropped_requests)).collect();
        assert_eq!(dropped[0], (3, &whole.dropped_requests));
        assert!(dropped[1..].iter().all(|(total, by_category)| *total == 0 && by_category.is_empty()), "{dropped:?}");
        assert!(parts.iter().all(|part| part.cluster_name == "a"));
    }

    #[test]
    fn a_locality_that_no_message_has_room_for_lacks_metrics() {
        let mut untold = Untold::default();
        let (large, small) = (locality(0, 256, 16 << 10), locality(1, 8, 40));
        untold.add(cluster("a", [large, small.clone()]));
        let parts = messages(&mut untold).concat();
        assert!(untold.is_short);
        let localities: Vec<_> = parts.iter().flat_map(|part| &part.upstream_locality_stats).collect();
        let kept: Vec<_> = localities.iter().map(|told| told.load_metric_stats.len()).collect();
        assert!((10..16).contains(&kept[0]) && kept[1] == 8, "{kept:?}");
        assert_eq!(localities.iter().map(|told| told.total_issued_requests).sum::<u64>(), 2);
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_told() {
        let mut untold = Untold::default();
        ["a", "b"].into_iter().for_each(|name| untold.add(cluster(name, [locality(0, 1, 10)])));
        untold.retain(|name| name == "b");
        assert_eq!(messages(&mut untold), [vec![cluster("b", [locality(0, 1, 10)])]]);
    }
}
