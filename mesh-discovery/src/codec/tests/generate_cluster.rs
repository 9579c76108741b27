//! Generators of policy in normal form: clusters and endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::{Locality, Workload};
use mesh_core::policy::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::generate::{duration, name, share, some_share, string_matcher, text, time};

fn weight() -> impl Strategy<Value = NonZeroU32> {
    (1..1_000_u32).prop_map(|weight| NonZeroU32::new(weight).expect("above 0"))
}

fn metadata() -> impl Strategy<Value = EndpointMetadata> {
    let part = || "[a-z]{0,4}";
    let workload = (part(), part(), part(), part(), part()).prop_map(
        |(name, namespace, canonical_name, canonical_revision, cluster)| Workload {
            name,
            namespace,
            canonical_name,
            canonical_revision,
            cluster,
            labels: BTreeMap::new(),
        },
    );
    (any::<bool>(), option::of(text()), option::of(workload), btree_map(text(), text(), 0..3))
        .prop_map(|(mesh_tls, hostname, workload, lb)| EndpointMetadata { mesh_tls, hostname, workload, lb })
}

/// An endpoint whose address no other place has.
fn endpoint() -> impl Strategy<Value = (Endpoint, u8)> {
    let health = select(vec![Health::Healthy, Health::Unknown, Health::Draining, Health::Unhealthy, Health::Degraded]);
    let endpoint = (weight(), health, metadata()).prop_map(|(weight, health, metadata)| Endpoint {
        weight,
        health,
        metadata: Arc::new(metadata),
        ..Endpoint::new(Address::Unix("".into()))
    });
    (endpoint, 0..4_u8)
}

fn address(kind: u8, place: u16) -> Address {
    match kind {
        0 => Address::Socket(SocketAddr::new(IpAddr::from([10, 0, 0, 1]), place + 1)),
        1 => Address::Socket(SocketAddr::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, place]), 80)),
        2 => Address::Name { host: format!("h{place}.example.com").into(), port: 443 },
        _ => Address::Unix(format!("/run/{place}.sock").into()),
    }
}

pub(super) fn endpoints() -> impl Strategy<Value = Endpoints> {
    let group = (weight(), vec(endpoint(), 0..4), any::<bool>());
    let drops = vec((text(), share()).prop_map(|(category, share)| DropOverload { category, share }), 0..3);
    (text(), vec(group, 0..5), drops).prop_map(|(cluster, groups, drops)| {
        let mut priority = 0;
        let mut place = 0;
        let mut localities = Vec::new();
        for (i, (weight, members, next)) in groups.into_iter().enumerate() {
            // Priorities have no gaps, and the first is 0.
            priority += u32::from(next && i > 0);
            let mut endpoints = Vec::new();
            for (mut endpoint, kind) in members {
                endpoint.address = address(kind, place);
                place += 1;
                endpoints.push(endpoint);
            }
            let locality = Locality { region: "eu".into(), zone: format!("z{i}"), sub_zone: String::new() };
            localities.push(LocalityEndpoints { locality, priority, weight, endpoints });
        }
        Endpoints { cluster, localities, drops }
    })
}

fn discovery() -> impl Strategy<Value = Discovery> {
    let one = (endpoint(), 0..3_u8).prop_map(|((mut endpoint, _), kind)| {
        endpoint.address = address(kind, 7);
        let group = LocalityEndpoints {
            locality: Locality::default(),
            priority: 0,
            weight: NonZeroU32::MIN,
            endpoints: vec![endpoint],
        };
        Arc::new(Endpoints { cluster: "c".into(), localities: vec![group], drops: Vec::new() })
    });
    prop_oneof![
        option::of(text()).prop_map(|service_name| Discovery::Eds { service_name }),
        endpoints().prop_map(|e| Discovery::Static(Arc::new(e))),
        endpoints().prop_map(|e| Discovery::StrictDns(Arc::new(e))),
        one.prop_map(Discovery::LogicalDns),
        Just(Discovery::OriginalDestination),
        vec(name(), 1..4).prop_map(Discovery::Aggregate),
    ]
}

fn balancer() -> impl Strategy<Value = Balancer> {
    let times = (duration(), duration(), duration(), duration());
    let weighted = (any::<bool>(), times, any::<u32>()).prop_map(|(out_of_band, (a, b, c, d), error_penalty)| {
        Balancer::WeightedRoundRobin(WeightedRoundRobin {
            out_of_band,
            out_of_band_period: a,
            blackout_period: b,
            weight_expiration: c,
            weight_update: d,
            error_penalty,
        })
    });
    prop_oneof![
        Just(Balancer::RoundRobin),
        (2..=10_u8).prop_map(|choices| Balancer::LeastRequest { choices }),
        Just(Balancer::Random),
        Just(Balancer::PeakEwma),
        weighted,
        (0..1_024_u64, 1_024..=8_388_608_u64)
            .prop_map(|(min_size, max_size)| Balancer::RingHash { min_size, max_size }),
        select(vec![2_u64, 65_537, 5_000_011]).prop_map(|table_size| Balancer::Maglev { table_size }),
        any::<bool>().prop_map(|shuffle| Balancer::PickFirst { shuffle }),
        Just(Balancer::Passthrough),
    ]
}

fn breaker() -> impl Strategy<Value = CircuitBreakers> {
    let limit = || option::of(0..u32::MAX);
    let budget =
        (share(), any::<u32>()).prop_map(|(share, min_concurrency)| RetryConcurrency { share, min_concurrency });
    (limit(), limit(), limit(), limit(), option::of(budget)).prop_map(
        |(max_connections, max_pending, max_requests, max_retries, retry_budget)| CircuitBreakers {
            max_connections,
            max_pending,
            max_requests,
            max_retries,
            retry_budget,
        },
    )
}

fn outlier() -> impl Strategy<Value = OutlierDetection> {
    let limit = || option::of(1..100_u32);
    let success = (any::<u32>(), some_share(), any::<u32>(), any::<u32>()).prop_map(
        |(stdev_factor, enforcing, minimum_hosts, request_volume)| SuccessRateEjection {
            stdev_factor,
            enforcing,
            minimum_hosts,
            request_volume,
        },
    );
    let failure = (share(), some_share(), any::<u32>(), any::<u32>()).prop_map(
        |(threshold, enforcing, minimum_hosts, request_volume)| FailurePercentageEjection {
            threshold,
            enforcing,
            minimum_hosts,
            request_volume,
        },
    );
    (
        (limit(), limit(), limit()),
        (duration(), duration(), duration()),
        share(),
        option::of(success),
        option::of(failure),
    )
        .prop_map(|(consecutive, times, max_ejected, success_rate, failure_percentage)| OutlierDetection {
            consecutive_5xx: consecutive.0,
            consecutive_gateway: consecutive.1,
            consecutive_local_origin: consecutive.2,
            interval: times.0,
            base_ejection: times.1,
            max_ejection: times.2,
            max_ejected,
            success_rate,
            failure_percentage,
        })
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let probe = prop_oneof![
        Just(HealthProbe::Tcp),
        ("/[a-z]{0,4}", "[a-z]{0,4}").prop_map(|(path, host)| HealthProbe::Http { path, host }),
        "[a-z]{0,4}".prop_map(|service| HealthProbe::Grpc { service }),
    ];
    (probe, time(), time(), any::<u32>(), any::<u32>()).prop_map(
        |(probe, interval, timeout, unhealthy_threshold, healthy_threshold)| HealthCheck {
            probe,
            interval,
            timeout,
            unhealthy_threshold,
            healthy_threshold,
        },
    )
}

fn tls() -> impl Strategy<Value = UpstreamTls> {
    let mesh =
        || (vec(string_matcher(), 0..3), option::of(text())).prop_map(|(peer_ids, sni)| MeshTls { peer_ids, sni });
    let originated = || {
        (option::of(text()), vec(string_matcher(), 0..3), option::of(text()), any::<bool>()).prop_map(
            |(sni, subject_alt_names, ca_file, insecure_skip_verify)| OriginatedTls {
                sni,
                subject_alt_names,
                ca_file,
                insecure_skip_verify,
            },
        )
    };
    let certificate = (text(), text())
        .prop_map(|(certificate_file, private_key_file)| ClientCertificate { certificate_file, private_key_file });
    prop_oneof![
        Just(UpstreamTls::Disable),
        mesh().prop_map(UpstreamTls::Auto),
        mesh().prop_map(UpstreamTls::Mesh),
        originated().prop_map(UpstreamTls::Simple),
        (originated(), certificate).prop_map(|(tls, certificate)| UpstreamTls::Mutual(tls, certificate)),
    ]
}

fn connection() -> impl Strategy<Value = ConnectionOptions> {
    let seconds = || option::of(any::<u32>().prop_map(|s| Duration::from_secs(s.into())));
    let tcp = (option::of(any::<u32>()), seconds(), seconds()).prop_map(|(probes, time, interval)| TcpKeepalive {
        probes,
        time,
        interval,
    });
    let ping = (time(), time()).prop_map(|(interval, timeout)| Keepalive { interval, timeout });
    let protocol = select(vec![UpstreamProtocol::Http1, UpstreamProtocol::Http2, UpstreamProtocol::Alpn]);
    (
        protocol,
        time(),
        option::of(time()),
        option::of(time()),
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        option::of(ping),
        option::of(tcp),
    )
        .prop_map(|(protocol, connect_timeout, idle_timeout, max_age, requests, streams, ping, tcp_keepalive)| {
            ConnectionOptions {
                protocol,
                connect_timeout,
                idle_timeout,
                max_age,
                max_requests_per_connection: requests,
                max_concurrent_streams: streams,
                http2_keepalive: ping,
                tcp_keepalive,
            }
        })
}

pub(super) fn cluster() -> impl Strategy<Value = Cluster> {
    let locality = (any::<bool>(), option::of(share()))
        .prop_map(|(weighted, panic_threshold)| LocalityBalancing { weighted, panic_threshold });
    let slow_start = (duration(), any::<u32>(), share()).prop_map(|(window, aggression, min_share)| SlowStart {
        window,
        aggression,
        min_share,
    });
    let telemetry =
        ("[a-z]{0,3}", "[a-z]{0,3}", "[a-z]{0,3}").prop_map(|(service, service_name, service_namespace)| {
            ClusterTelemetry { service, service_name, service_namespace }
        });
    (
        name(),
        discovery(),
        balancer(),
        locality,
        option::of(slow_start),
        breaker(),
        option::of(outlier()),
        vec(health_check(), 0..3),
        tls(),
        connection(),
        telemetry,
    )
        .prop_map(
            |(name, discovery, balancer, locality, slow_start, breaker, outlier, checks, tls, connection, t)| Cluster {
                name,
                discovery,
                balancer,
                locality,
                slow_start,
                breaker,
                outlier,
                health_checks: checks,
                tls,
                connection,
                telemetry: t,
            },
        )
}
