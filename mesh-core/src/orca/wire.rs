//! Protobuf's form of reports and of the request for a stream of them.

use std::time::Duration;

use super::{IN_FLIGHT, LATENCY};
use crate::balance::EndpointReport;
use crate::protobuf::{Value, field};

/// Field numbers of `xds.data.orca.v3.OrcaLoadReport`: numbers by name, and maps by the prefix of their keys' names.
const NUMBERS: [(u64, &str); 5] =
    [(1, "cpu_utilization"), (2, "mem_utilization"), (6, "rps_fractional"), (7, "eps"), (9, "application_utilization")];
const MAPS: [(u64, &str); 3] = [(4, "request_cost."), (5, "utilization."), (8, "named_metrics.")];

/// The report in a message; `None` if it is none.
pub fn decode(mut message: &[u8]) -> Option<EndpointReport> {
    let mut report = EndpointReport::default();
    while !message.is_empty() {
        match field(&mut message)? {
            (number, Value::Double(value)) => {
                if let Some((_, name)) = NUMBERS.iter().find(|(known, _)| *known == number) {
                    report.set(name, value);
                }
            }
            (number, Value::Bytes(entry)) => {
                if let Some((_, prefix)) = MAPS.iter().find(|(known, _)| *known == number) {
                    let (key, value) = map_entry(entry)?;
                    report.set(&[prefix, key].concat(), value);
                }
            }
            (_, Value::Number(_) | Value::Other) => {}
        }
    }
    Some(report)
}

/// The message of a report.
pub fn encode(report: &EndpointReport) -> Vec<u8> {
    let mut message = Vec::with_capacity(96);
    for (number, name) in NUMBERS {
        let value = report.metric(name).unwrap_or_default();
        if value != 0.0 {
            put_double(&mut message, number, value);
        }
    }
    for (name, value) in &report.metrics {
        put_metric(&mut message, name, *value);
    }
    if let Some(in_flight) = report.in_flight {
        put_metric(&mut message, IN_FLIGHT, f64::from(in_flight));
    }
    if let Some(latency) = report.latency {
        put_metric(&mut message, LATENCY, latency.as_secs_f64());
    }
    message
}

/// The interval that an `xds.service.orca.v3.OrcaLoadReportRequest` asks for; zero if it names none.
pub fn decode_request(mut message: &[u8]) -> Option<Duration> {
    let mut interval = Duration::ZERO;
    while !message.is_empty() {
        if let (1, Value::Bytes(mut duration)) = field(&mut message)? {
            let (mut seconds, mut nanos) = (0, 0);
            while !duration.is_empty() {
                match field(&mut duration)? {
                    (1, Value::Number(value)) => seconds = value,
                    (2, Value::Number(value)) => nanos = value,
                    _ => {}
                }
            }
            // Negative ones are longest of all here: they count as none.
            let part = |value: u64| u64::try_from(value.cast_signed()).unwrap_or(0);
            interval = Duration::from_secs(part(seconds)).saturating_add(Duration::from_nanos(part(nanos)));
        }
    }
    Some(interval)
}

/// A request for reports at this interval.
pub fn encode_request(interval: Duration) -> Vec<u8> {
    let mut duration = Vec::new();
    for (number, value) in [(1, interval.as_secs()), (2, u64::from(interval.subsec_nanos()))] {
        put_varint(&mut duration, number << 3);
        put_varint(&mut duration, value);
    }
    let mut message = Vec::new();
    put_bytes(&mut message, 1, &duration);
    message
}

fn map_entry(mut entry: &[u8]) -> Option<(&str, f64)> {
    let (mut key, mut value) = ("", 0.0);
    while !entry.is_empty() {
        match field(&mut entry)? {
            (1, Value::Bytes(bytes)) => key = std::str::from_utf8(bytes).ok()?,
            (2, Value::Double(double)) => value = double,
            _ => {}
        }
    }
    Some((key, value))
}

/// An entry of the map that the name's prefix stands for; other names have no place in a report.
fn put_metric(message: &mut Vec<u8>, name: &str, value: f64) {
    let found = MAPS.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(prefix)?)));
    let Some((number, key)) = found else { return };
    let mut entry = Vec::with_capacity(key.len() + 12);
    put_bytes(&mut entry, 1, key.as_bytes());
    put_double(&mut entry, 2, value);
    put_bytes(message, number, &entry);
}

fn put_double(message: &mut Vec<u8>, number: u64, value: f64) {
    put_varint(message, number << 3 | 1);
    message.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(message: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(message, number << 3 | 2);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn put_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}
