//! `trafficPolicy.loadBalancer`.

use std::collections::BTreeSet;
use std::time::Duration;

use http::HeaderName;
use mesh_core::policy::{Balancer, HashPolicy, HashSource, PerMillion, SlowStart};

use super::LoadBalancer;
use super::locality::locality;
use super::spec::{ConsistentHashSpec, CookieSpec, LoadBalancerSpec, WarmupSpec};
use crate::model::check::Check;
use crate::model::values::duration;

/// Envoy's bound on a Maglev table, and Istio's.
const MAX_MAGLEV: u64 = 5_000_011;
/// Envoy's bound on a ring.
const MAX_RING: u64 = 8_388_608;

/// Checks a `loadBalancer` block.
pub(super) fn load_balancer(spec: &LoadBalancerSpec, check: &mut Check<'_>, path: &str) -> LoadBalancer {
    let mut lb = LoadBalancer::default();
    if spec.simple.is_some() && spec.consistent_hash.is_some() {
        check.error(path, "only one of simple and consistentHash may be given");
    }
    if let Some(word) = &spec.simple {
        lb.balancer = simple(word, check, &format!("{path}.simple"));
    }
    if let Some(hash) = &spec.consistent_hash {
        let (balancer, policy) = consistent_hash(hash, check, &format!("{path}.consistentHash"));
        lb.balancer = Some(balancer);
        lb.hash = policy;
    }
    if spec.locality_lb_setting.is_some() && spec.zone_aware_lb_setting.is_some() {
        check.error(path, "only one of localityLbSetting and zoneAwareLbSetting may be given");
    }
    if spec.zone_aware_lb_setting.is_some() {
        check.unenforced(&format!("{path}.zoneAwareLbSetting"), "zones are not weighed against each other");
    }
    if let Some(setting) = &spec.locality_lb_setting {
        lb.locality = locality(setting, check, &format!("{path}.localityLbSetting"));
    }
    lb.slow_start = slow_start(spec, check, path);
    let ramped = matches!(lb.balancer, None | Some(Balancer::RoundRobin | Balancer::LeastRequest { .. }));
    if lb.slow_start.is_some() && !ramped {
        check.warn(&format!("{path}.warmup"), "only ROUND_ROBIN and LEAST_REQUEST warm up");
    }
    lb
}

fn simple(word: &str, check: &mut Check<'_>, path: &str) -> Option<Balancer> {
    Some(match word {
        "UNSPECIFIED" => return None,
        "LEAST_CONN" => {
            check.warn(path, "LEAST_CONN is deprecated; use LEAST_REQUEST");
            Balancer::least_request()
        }
        "LEAST_REQUEST" => Balancer::least_request(),
        "ROUND_ROBIN" => Balancer::RoundRobin,
        "RANDOM" => Balancer::Random,
        "PASSTHROUGH" => Balancer::Passthrough,
        other => {
            let known = "LEAST_REQUEST, ROUND_ROBIN, RANDOM, PASSTHROUGH";
            check.error(path, format!("{other:?} is not a load balancer; use one of {known}"));
            return None;
        }
    })
}

fn consistent_hash(spec: &ConsistentHashSpec, check: &mut Check<'_>, path: &str) -> (Balancer, Option<HashPolicy>) {
    let source_ip = spec.use_source_ip.unwrap_or(false);
    let keys = [
        spec.http_header_name.is_some(),
        spec.http_cookie.is_some(),
        source_ip,
        spec.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|given| **given).count() != 1 {
        let names = "httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
        check.error(path, format!("exactly one of {names} is needed"));
    }
    let source = if let Some(name) = &spec.http_header_name {
        let read = HeaderName::try_from(name.as_str()).map_err(|_| format!("{name:?} is not a header name"));
        check.take(&format!("{path}.httpHeaderName"), read).map(|name| HashSource::Header { name, rewrite: None })
    } else if let Some(spec) = &spec.http_cookie {
        cookie(spec, check, &format!("{path}.httpCookie"))
    } else if let Some(name) = &spec.http_query_parameter_name {
        Some(HashSource::Query(name.clone()))
    } else {
        if source_ip {
            let message = "inside the application the source of a request is whoever sent the one that is being served: \
                           those that are sent for none, and raw connections, all hash alike";
            check.warn(&format!("{path}.useSourceIp"), message);
        }
        Some(HashSource::SourceAddress)
    };
    let rings = [spec.minimum_ring_size.is_some(), spec.ring_hash.is_some(), spec.maglev.is_some()];
    if rings.iter().filter(|given| **given).count() > 1 {
        check.error(path, "only one of minimumRingSize, ringHash and maglev may be given");
    }
    let balancer = match &spec.maglev {
        Some(maglev) => {
            Balancer::Maglev { table_size: table_size(maglev.table_size, check, &format!("{path}.maglev.tableSize")) }
        }
        None => {
            let ring = spec.ring_hash.as_ref().and_then(|ring| ring.minimum_ring_size).or(spec.minimum_ring_size);
            let min_size = ring.filter(|size| *size > 0).unwrap_or(1024);
            if min_size > MAX_RING {
                check.error(path, format!("a ring of {min_size}; at most {MAX_RING}"));
            }
            Balancer::RingHash { min_size, max_size: MAX_RING }
        }
    };
    (balancer, source.map(|source| HashPolicy { source, terminal: false }))
}

fn table_size(size: Option<u64>, check: &mut Check<'_>, path: &str) -> u64 {
    let Some(size) = size else {
        check.error(path, "a table size is needed; Envoy's default is 65537");
        return 65537;
    };
    let is_prime = |size: u64| size > 1 && (2..).take_while(|d| d * d <= size).all(|d| !size.is_multiple_of(d));
    // The limit first: of a large number it takes minutes to tell.
    if size >= MAX_MAGLEV || !is_prime(size) {
        check.error(path, format!("{size} is not a prime below {MAX_MAGLEV}"));
        return 65537;
    }
    size
}

fn cookie(spec: &CookieSpec, check: &mut Check<'_>, path: &str) -> Option<HashSource> {
    if spec.name.is_empty() {
        check.error(&format!("{path}.name"), "a cookie needs a name");
        return None;
    }
    let mut seen = BTreeSet::new();
    for (i, attribute) in spec.attributes.iter().enumerate() {
        if !seen.insert(&attribute.name) {
            let message = format!("attribute {:?} is listed twice", attribute.name);
            check.error(&format!("{path}.attributes[{i}]"), message);
        }
    }
    if !spec.attributes.is_empty() {
        check.unenforced(&format!("{path}.attributes"), "a made cookie carries name, path and age only");
    }
    let ttl = spec.ttl.as_deref().and_then(|text| check.take(&format!("{path}.ttl"), duration(text)));
    Some(HashSource::Cookie { name: spec.name.clone(), path: spec.path.clone(), ttl })
}

fn slow_start(spec: &LoadBalancerSpec, check: &mut Check<'_>, path: &str) -> Option<SlowStart> {
    if let Some(text) = &spec.warmup_duration_secs {
        let path = format!("{path}.warmupDurationSecs");
        check.warn(&path, "deprecated; use warmup.duration");
        let window = check.take(&path, duration(text))?;
        return Some(SlowStart { window, aggression: 1_000_000, min_share: PerMillion::new(100_000) });
    }
    spec.warmup.as_ref().and_then(|warmup| warm_up(warmup, check, &format!("{path}.warmup")))
}

fn warm_up(spec: &WarmupSpec, check: &mut Check<'_>, path: &str) -> Option<SlowStart> {
    let Some(text) = &spec.duration else {
        check.error(&format!("{path}.duration"), "a duration is needed");
        return None;
    };
    let window = check.take(&format!("{path}.duration"), duration(text))?;
    let aggression = spec.aggression.as_ref().map_or(1.0, |value| value.0);
    if !(0.000_001..=4000.0).contains(&aggression) {
        check.error(&format!("{path}.aggression"), format!("{aggression} is not above 0 and at most 4000"));
        return None;
    }
    let minimum = spec.minimum_percent.as_ref().map_or(10.0, |value| value.0);
    let read = PerMillion::from_percent(minimum).map_err(|error| error.reason);
    let min_share = check.take(&format!("{path}.minimumPercent"), read)?;
    // In range by the check above.
    Some(SlowStart { window: window.max(Duration::from_millis(1)), aggression: (aggression * 1e6) as u32, min_share })
}
