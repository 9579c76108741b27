use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn full() -> EndpointReport {
    EndpointReport {
        requests_per_second: 100.5,
        errors_per_second: 1.25,
        utilization: 1.5,
        cpu: 0.5,
        memory: 0.25,
        metrics: vec![
            ("request_cost.db".into(), 3.0),
            ("utilization.disk".into(), 0.75),
            ("named_metrics.queue".into(), 7.0),
        ],
        in_flight: Some(12),
        latency: Some(Duration::from_millis(20)),
    }
}

fn headers(name: &HeaderName, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(name.clone(), HeaderValue::from_str(value).unwrap())])
}

/// gRFC A51: what `OrcaLoadReport{cpu_utilization: 0.5, rps_fractional: 2, named_metrics: {"q": 1}}` is in protobuf.
#[test]
fn the_message_is_that_of_the_specification() {
    let bytes = [
        0x09, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f, // 1: 0.5
        0x31, 0, 0, 0, 0, 0, 0, 0x00, 0x40, // 6: 2.0
        0x42, 12, 0x0a, 1, b'q', 0x11, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, // 8: {"q": 1.0}
    ];
    let metrics = vec![("named_metrics.q".to_owned(), 1.0)];
    let report = EndpointReport { cpu: 0.5, requests_per_second: 2.0, metrics, ..EndpointReport::default() };
    assert_eq!(decode(&bytes), Some(report.clone()));
    assert_eq!(encode(&report), bytes);
}

#[test]
fn what_is_encoded_decodes_to_the_same() {
    for report in [EndpointReport::default(), full()] {
        assert_eq!(decode(&encode(&report)), Some(report.clone()));
        assert_eq!(read(&HeaderMap::from_iter([(BINARY.clone(), value(&report))])), Some(report));
    }
    for interval in [Duration::ZERO, Duration::from_millis(1500), Duration::from_secs(30)] {
        assert_eq!(decode_request(&encode_request(interval)), Some(interval));
    }
    assert_eq!(decode_request(&[]), Some(Duration::ZERO), "no interval is asked for");
    let negative = [0x0a, 11, 0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(decode_request(&negative), Some(Duration::ZERO));
}

#[test]
fn unknown_fields_are_passed_over_and_broken_ones_are_no_report() {
    let mut known = encode(&full());
    known.extend([0x18, 0x96, 0x01]); // 3: rps, which is deprecated
    known.extend([0xfd, 0x01, 1, 2, 3, 4]); // 31: four bytes
    known.extend([0xfa, 0x01, 2, 9, 9]); // 31: bytes
    assert_eq!(decode(&known), Some(full()));
    for (broken, why) in [
        (&[0x09, 0, 0][..], "a double that is cut off"),
        (&[0x42, 5, 0x0a][..], "an entry that is cut off"),
        (&[0x0b][..], "a group"),
        (&[0x80; 11][..], "a number without an end"),
        (&[0x42, 3, 0x0a, 1, 0xff][..], "a key that is no text"),
    ] {
        assert_eq!(decode(broken), None, "{why}");
    }
}

#[test]
fn values_without_sense_count_as_not_there() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5] {
        let report = EndpointReport {
            requests_per_second: bad,
            errors_per_second: bad,
            utilization: bad,
            cpu: bad,
            memory: bad,
            metrics: vec![("named_metrics.queue".into(), bad), ("utilization.disk".into(), 0.5)],
            ..EndpointReport::default()
        };
        let metrics = vec![("utilization.disk".to_owned(), 0.5)];
        let want = EndpointReport { metrics, ..EndpointReport::default() };
        assert_eq!(decode(&encode(&report)), Some(want), "{bad}");
        let own = [(IN_FLIGHT.to_owned(), bad), (LATENCY.to_owned(), bad)];
        let report = EndpointReport { metrics: own.to_vec(), ..EndpointReport::default() };
        assert_eq!(decode(&encode(&report)), Some(EndpointReport::default()), "{bad}");
    }
    let huge = [(IN_FLIGHT.to_owned(), 1e300), (LATENCY.to_owned(), 1e300)];
    let report = EndpointReport { metrics: huge.to_vec(), ..EndpointReport::default() };
    let read = decode(&encode(&report)).unwrap();
    assert_eq!((read.in_flight, read.latency), (Some(u32::MAX), None));
}

#[test]
fn a_report_has_a_bounded_number_of_metrics() {
    let metrics = (0..1000).map(|n| (format!("named_metrics.{n}"), 1.0)).collect();
    let report = EndpointReport { metrics, ..EndpointReport::default() };
    assert_eq!(decode(&encode(&report)).unwrap().metrics.len(), MOST_METRICS);
}

/// The forms that Envoy reads.
#[test]
fn text_json_and_binary_headers_say_the_same() {
    let want = EndpointReport {
        requests_per_second: 100.0,
        cpu: 0.5,
        metrics: vec![("named_metrics.queue".into(), 7.0)],
        ..EndpointReport::default()
    };
    let binary = value(&want);
    let binary = binary.to_str().unwrap();
    for (name, value) in [
        (&BINARY, binary.to_owned()),
        (&BINARY, format!("{binary}{}", ["", "===", "==", "="][binary.len() % 4])),
        (&BINARY, format!("{binary},AAAA")),
        (&TEXT, format!("BIN {binary}")),
        (&TEXT, "TEXT cpu_utilization=0.5, rps_fractional=100,named_metrics.queue = 7".to_owned()),
        (
            &TEXT,
            "TEXT cpu_utilization:0.5,rps_fractional:100,named_metrics.queue:7,eps=-1,mem_utilization=x,y".to_owned(),
        ),
        (
            &TEXT,
            r#"JSON {"cpu_utilization": 0.5, "rpsFractional": "100", "namedMetrics": {"queue": 7}, "eps": "NaN"}"#
                .to_owned(),
        ),
    ] {
        assert_eq!(read(&headers(name, &value)), Some(want.clone()), "{name}: {value}");
    }
    for (name, value) in [
        (&BINARY, "%%%"),
        (&BINARY, "CQ"),
        (&TEXT, ""),
        (&TEXT, "TEXT"),
        (&TEXT, "TEXT nothing"),
        (&TEXT, "YAML a: 1"),
        (&TEXT, "JSON [1]"),
        (&TEXT, "JSON {"),
        (&TEXT, "BIN ?"),
    ] {
        assert_eq!(read(&headers(name, value)), None, "{name}: {value}");
    }
    assert_eq!(read(&HeaderMap::new()), None);
}

#[test]
fn messages_are_found_however_the_bytes_are_cut() {
    let bytes = [&frame(b"one")[..], &frame(b""), &frame(b"three")].concat();
    for cut in 0..=bytes.len() {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for part in [&bytes[..cut], &bytes[cut..]] {
            frames.push(part);
            while let Some(message) = frames.next_message().unwrap() {
                seen.push(message);
            }
        }
        assert_eq!(seen, [&b"one"[..], b"", b"three"]);
    }
    for bad in [[1, 0, 0, 0, 0], [0, 0, 1, 0, 1]] {
        let mut frames = Frames::default();
        frames.push(&bad);
        assert!(frames.next_message().is_err(), "{bad:?}");
    }
}

/// Nothing of it may be what it must not.
fn makes_sense(report: &EndpointReport) -> bool {
    let numbers = [report.requests_per_second, report.errors_per_second, report.utilization, report.cpu, report.memory];
    let all = numbers.iter().chain(report.metrics.iter().map(|(_, value)| value));
    all.clone().all(|value| value.is_finite() && *value >= 0.0) && report.metrics.len() <= MOST_METRICS
}

proptest! {
    #[test]
    fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(report) = decode(&bytes) {
            prop_assert!(makes_sense(&report));
            prop_assert_eq!(decode(&encode(&report)), Some(report));
        }
        decode_request(&bytes);
        let mut frames = Frames::default();
        frames.push(&bytes);
        while let Ok(Some(_)) = frames.next_message() {}
        for (name, form) in [(&BINARY, ""), (&TEXT, ""), (&TEXT, "TEXT "), (&TEXT, "JSON "), (&TEXT, "BIN ")] {
            if let Ok(value) = HeaderValue::from_bytes(&[form.as_bytes(), &bytes].concat()) {
                let report = read(&HeaderMap::from_iter([(name.clone(), value)]));
                prop_assert!(report.is_none_or(|report| makes_sense(&report)));
            }
        }
    }

    /// Bytes that are nearly right: a good message with a few of them changed.
    #[test]
    fn a_report_may_be_damaged(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = encode(&full());
        for (index, byte) in at {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        prop_assert!(decode(&bytes).is_none_or(|report| makes_sense(&report)));
    }
}
