//! [`ReportCodec`]: reads load reports, once it is known that they do not become much larger than they came. An empty entry of
//! a list takes two bytes on the wire and two hundred where it is kept, so entries are counted before they are read.
//!
//! Refuses to know what reports say.

use bytes::Buf as _;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Entries of all lists of a report together, each of which may become 700 bytes with what is in it. Mesh clients say 256 KiB at once,
/// in which there are fewer.
const ENTRIES: usize = 40_000;
/// Bytes of who reports, which nobody reads but for its name.
const NODE: usize = 256 << 10;
/// The field with who reports.
const NODE_FIELD: u32 = 1;
/// What says anything of an endpoint, in as many messages within each other as it likes. Nobody reads it, and each byte counts.
const METADATA: (usize, u32) = (3, 6);
/// Lists by depth: clusters; their localities and reasons for drops; metrics and endpoints of these; metrics of those.
const LISTS: [&[u32]; 4] = [&[2], &[2, 5], &[5, 7], &[5]];

/// The codec of a reporting stream.
#[derive(Default)]
pub(super) struct ReportCodec(ProstCodec<LoadStatsResponse, LoadStatsRequest>);

pub(super) struct ReportDecoder(ProstDecoder<LoadStatsRequest>);

impl Codec for ReportCodec {
    type Encode = LoadStatsResponse;
    type Decode = LoadStatsRequest;
    type Encoder = ProstEncoder<LoadStatsResponse>;
    type Decoder = ReportDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ReportDecoder(self.0.decoder())
    }
}

impl Decoder for ReportDecoder {
    type Item = LoadStatsRequest;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<LoadStatsRequest>, Status> {
        look(src.chunk())?;
        self.0.decode(src)
    }
}

/// Whether a report may be read. What is wrong with its bytes is left to whoever reads it, who stops at the same byte.
fn look(report: &[u8]) -> Result<(), Status> {
    let (mut node, mut rest) = (0, report);
    while let Some((tag, content)) = field(&mut rest) {
        if tag == NODE_FIELD {
            node += content.map_or(0, <[u8]>::len);
        }
    }
    if node > NODE {
        return Err(Status::out_of_range(format!("its node has {node} bytes; at most {NODE} are taken")));
    }
    let entries = entries(report, 0);
    if entries > ENTRIES {
        return Err(Status::out_of_range(format!("its lists have {entries} entries; at most {ENTRIES} are taken")));
    }
    Ok(())
}

/// Counts the entries of all lists in a message of this depth.
fn entries(mut message: &[u8], depth: usize) -> usize {
    let Some(lists) = LISTS.get(depth) else { return 0 };
    let mut seen = 0;
    while let Some((tag, content)) = field(&mut message) {
        let Some(content) = content else { continue };
        if lists.contains(&tag) {
            seen += 1 + entries(content, depth + 1);
        } else if METADATA == (depth, tag) {
            seen += content.len();
        }
    }
    seen
}

/// The next field, and what is in it if it has a length. Of what is cut off the beginning is read, too.
fn field<'b>(rest: &mut &'b [u8]) -> Option<(u32, Option<&'b [u8]>)> {
    if rest.is_empty() {
        return None;
    }
    let (tag, wire) = decode_key(rest).ok()?;
    if wire != WireType::LengthDelimited {
        skip_field(wire, tag, rest, DecodeContext::default()).ok()?;
        return Some((tag, None));
    }
    let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (content, after) = rest.split_at(len.min(rest.len()));
    *rest = after;
    Some((tag, Some(content)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::envoy::config::core::v3::Node;
    use envoy_types::pb::envoy::config::endpoint::v3::{
        ClusterStats, EndpointLoadMetricStats, UpstreamEndpointStats, UpstreamLocalityStats,
        cluster_stats::DroppedRequests,
    };
    use envoy_types::pb::google::protobuf::{Struct, Value};
    use prost::Message as _;

    use super::*;

    fn entries_of(stats: ClusterStats) -> usize {
        entries(&LoadStatsRequest { node: None, cluster_stats: vec![stats] }.encode_to_vec(), 0)
    }

    #[test]
    fn the_entries_of_every_list_are_counted_and_too_many_are_refused() {
        let locality = |load_metric_stats, upstream_endpoint_stats| UpstreamLocalityStats {
            load_metric_stats,
            upstream_endpoint_stats,
            ..UpstreamLocalityStats::default()
        };
        let of = |upstream_locality_stats| ClusterStats { upstream_locality_stats, ..ClusterStats::default() };
        let metrics = |count| vec![EndpointLoadMetricStats::default(); count];
        let said = Struct { fields: HashMap::from([("k".to_owned(), Value::default())]) };
        let bytes = said.encoded_len();
        let endpoint = UpstreamEndpointStats {
            load_metric_stats: metrics(4),
            metadata: Some(said),
            ..UpstreamEndpointStats::default()
        };
        assert_eq!(entries_of(of(vec![UpstreamLocalityStats::default(); 7])), 8);
        assert_eq!(entries_of(of(vec![locality(metrics(3), vec![endpoint])])), 2 + 3 + 5 + bytes);
        let dropped_requests = vec![DroppedRequests::default(); 5];
        assert_eq!(entries_of(ClusterStats { dropped_requests, ..ClusterStats::default() }), 6);
        // One cluster, and nothing of each locality: two bytes each.
        for (count, is_taken) in [(ENTRIES - 1, true), (ENTRIES, false)] {
            let report =
                LoadStatsRequest { node: None, cluster_stats: vec![of(vec![UpstreamLocalityStats::default(); count])] };
            assert_eq!(look(&report.encode_to_vec()).is_ok(), is_taken, "{count}");
        }
    }

    #[test]
    fn a_node_without_end_is_refused_and_bytes_that_are_no_report_are_left_to_the_reader() {
        for (bytes, is_taken) in [(NODE / 2, true), (NODE, false)] {
            let node = Node { id: "n".repeat(bytes), ..Node::default() };
            let report = LoadStatsRequest { node: Some(node), cluster_stats: Vec::new() };
            assert_eq!(look(&report.encode_to_vec()).is_ok(), is_taken, "{bytes}");
        }
        for bytes in [&b""[..], b"\x12", b"\x12\xff", b"\x12\x04\x12", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert!(look(bytes).is_ok(), "{bytes:?}");
        }
    }
}
