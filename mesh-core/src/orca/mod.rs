//! Load reports of endpoints as they are on the wire (ORCA: gRFC A51, `xds.data.orca.v3.OrcaLoadReport`): with an
//! answer, in its headers or trailers, and on a stream of their own.
//!
//! Client and server both speak it and share no other crate, so it is here, the one message of this crate. Any bytes
//! are taken: what cannot be read as a whole is no report, and a value that makes no sense (not a number, infinite,
//! negative) counts as not there. Refuses to know what a report is good for.

mod frames;
mod text;
mod wire;

#[cfg(test)]
mod tests;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName, HeaderValue};

pub use self::frames::{Frames, frame};
pub use self::wire::{decode, decode_request, encode, encode_request};
use crate::balance::EndpointReport;

/// Header or trailer with a report in protobuf's form, base64 (gRFC A51).
pub static BINARY: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");
/// Header or trailer with a report as text, JSON, or base64 again: its first word says which (Envoy).
pub static TEXT: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// Where reports are streamed: gRPC's full name of the method.
pub const STREAM_PATH: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
/// Where a server of this mesh answers a GET with its report in the header [`BINARY`] and no body: over any version
/// of HTTP, for less than a stream costs. What Prequal probes.
pub const PROBE_PATH: &str = "/.well-known/mesh-load";
/// Requests in flight at the server, for Prequal: the name of the report's metric.
pub const IN_FLIGHT: &str = "named_metrics.mesh.in_flight";
/// Latency that the server expects at its load, in seconds, for Prequal: the name of the report's metric.
pub const LATENCY: &str = "named_metrics.mesh.latency";

/// Metrics kept of one report; further ones are not read.
pub(crate) const MOST_METRICS: usize = 128;

/// gRPC sends no padding and takes it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The report in an answer's headers or trailers.
pub fn read(headers: &HeaderMap) -> Option<EndpointReport> {
    if let Some(value) = headers.get(&BINARY) {
        return unpack(value.as_bytes());
    }
    let text = headers.get(&TEXT)?.to_str().ok()?;
    let (form, rest) = text.split_once(' ')?;
    match form {
        "TEXT" => text::pairs(rest),
        "JSON" => text::json(rest),
        "BIN" => unpack(rest.trim().as_bytes()),
        _ => None,
    }
}

/// The value of [`BINARY`].
pub fn value(report: &EndpointReport) -> HeaderValue {
    let text = BASE64.encode(encode(report));
    HeaderValue::from_str(&text).expect("base64 is visible ASCII")
}

fn unpack(value: &[u8]) -> Option<EndpointReport> {
    // gRPC may join several values of a name.
    let first = value.split(|byte| *byte == b',').next()?;
    decode(&BASE64.decode(first).ok()?)
}
