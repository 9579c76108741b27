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

use super::generate::{
    duration, header_write, instance, instances, name, share, some_share, string_matcher, text, time,
};

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
    let other = || option::of((0..3_u8, 1..100_u16).prop_map(|(kind, place)| address(kind, place)));
    let check = (any::<bool>(), option::of(1..=u16::MAX), option::of(text()), other())
        .prop_map(|(disabled, port, host, address)| HealthCheckTarget { disabled, port, host, address });
    let tls = (any::<bool>(), any::<bool>());
    (tls, option::of(text()), option::of(workload), btree_map(text(), text(), 0..3), other(), check).prop_map(
        |((mesh_tls, plaintext_refused), hostname, workload, lb, proxy, health_check)| EndpointMetadata {
            mesh_tls,
            plaintext_refused,
            hostname,
            workload,
            lb,
            proxy,
            health_check,
        },
    )
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
    let factor = option::of(1..1000_u32);
    (text(), vec(group, 0..5), drops, factor).prop_map(|(cluster, groups, drops, overprovisioning_factor)| {
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
                if next {
                    endpoint.additional_addresses = [address(kind, place), address((kind + 1) % 4, place + 1)].into();
                    place += 2;
                }
                endpoints.push(endpoint);
            }
            let locality = Locality { region: "eu".into(), zone: format!("z{i}"), sub_zone: String::new() };
            localities.push(LocalityEndpoints { locality, priority, weight, endpoints });
        }
        Endpoints { cluster, localities, drops, overprovisioning_factor }
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
        Arc::new(Endpoints { cluster: "c".into(), localities: vec![group], ..Endpoints::default() })
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
    let names = vec(text(), 0..2);
    let weighted =
        (any::<bool>(), times, any::<u32>(), names).prop_map(|(out_of_band, (a, b, c, d), error_penalty, m)| {
            Balancer::WeightedRoundRobin(WeightedRoundRobin {
                out_of_band,
                out_of_band_period: a,
                blackout_period: b,
                weight_expiration: c,
                weight_update: d,
                error_penalty,
                metric_names: m,
            })
        });
    let leaf = prop_oneof![
        Just(Balancer::RoundRobin),
        (2..=10_u8, any::<u32>()).prop_map(|(choices, bias)| Balancer::LeastRequest { choices, bias }),
        Just(Balancer::Random),
        Just(Balancer::PeakEwma),
        (any::<u32>(), duration(), share()).prop_map(|(probes_per_request, max_age, hot_quantile)| {
            Balancer::Prequal(Prequal { probes_per_request, max_age, hot_quantile })
        }),
        weighted,
        (0..1_024_u64, 1_024..=8_388_608_u64)
            .prop_map(|(min_size, max_size)| Balancer::RingHash { min_size, max_size }),
        select(vec![2_u64, 65_537, 5_000_011]).prop_map(|table_size| Balancer::Maglev { table_size }),
        any::<bool>().prop_map(|shuffle| Balancer::PickFirst { shuffle }),
        Just(Balancer::Passthrough),
    ];
    // Boxed: whole clusters are drawn on the stack of a test.
    leaf.boxed().prop_recursive(2, 3, 1, |child| {
        (1..100_u32, any::<bool>(), child.prop_map(Box::new), any::<bool>()).prop_map(
            |(size, of_each, child, random)| match random {
                true => Balancer::RandomSubsetting { size, of_each, child },
                false => Balancer::DeterministicSubsetting { size, of_each, child },
            },
        )
    })
}

fn breaker() -> impl Strategy<Value = CircuitBreakers> {
    let limit = || option::of(0..u32::MAX);
    let budget =
        (share(), any::<u32>()).prop_map(|(share, min_concurrency)| RetryConcurrency { share, min_concurrency });
    (limit(), limit(), limit(), limit(), option::of(budget), option::of(1..u32::MAX)).prop_map(
        |(max_connections, max_pending, max_requests, max_retries, retry_budget, per_host)| CircuitBreakers {
            max_connections,
            max_pending,
            max_requests,
            max_retries,
            retry_budget,
            max_connections_per_host: per_host,
        },
    )
}

fn outlier() -> impl Strategy<Value = OutlierDetection> {
    let limit = || option::of(1..100_u32);
    let success = (any::<u32>(), some_share(), share(), any::<u32>(), any::<u32>()).prop_map(
        |(stdev_factor, enforcing, enforcing_local_origin, minimum_hosts, request_volume)| SuccessRateEjection {
            stdev_factor,
            enforcing,
            enforcing_local_origin,
            minimum_hosts,
            request_volume,
        },
    );
    let failure = (share(), some_share(), share(), any::<u32>(), any::<u32>()).prop_map(
        |(threshold, enforcing, enforcing_local_origin, minimum_hosts, request_volume)| FailurePercentageEjection {
            threshold,
            enforcing,
            enforcing_local_origin,
            minimum_hosts,
            request_volume,
        },
    );
    (
        (limit(), limit(), limit(), some_share(), some_share(), some_share()),
        (duration(), duration(), duration(), duration()),
        (share(), any::<(bool, bool)>()),
        option::of(success),
        option::of(failure),
    )
        .prop_map(|(consecutive, times, (max_ejected, (split, unejects)), success_rate, failure_percentage)| {
            let local = consecutive.2.filter(|_| split);
            // The share of what is off is all.
            let share = |limit: Option<u32>, share| if limit.is_some() { share } else { PerMillion::ALL };
            OutlierDetection {
                consecutive_5xx: consecutive.0,
                consecutive_gateway: consecutive.1,
                consecutive_local_origin: local,
                split_local_origin: split,
                enforcing: ConsecutiveShares {
                    server_error: share(consecutive.0, consecutive.3),
                    gateway: share(consecutive.1, consecutive.4),
                    local_origin: share(local, consecutive.5),
                },
                interval: times.0,
                base_ejection: times.1,
                max_ejection: times.2,
                max_ejection_jitter: times.3,
                max_ejected,
                health_check_unejects: unejects,
                success_rate,
                failure_percentage,
            }
        })
}

fn accrual() -> impl Strategy<Value = FailureAccrual> {
    (1..=u32::MAX, duration(), duration(), share()).prop_map(|(max_failures, min_penalty, max_penalty, jitter)| {
        FailureAccrual { max_failures, min_penalty, max_penalty, jitter }
    })
}

fn http_probe() -> impl Strategy<Value = HttpProbe> {
    let range = (100..600_u16, 100..600_u16).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let method = select(vec!["GET", "HEAD", "POST", "PATCH"]).prop_map(str::to_owned);
    let texts = ("/[a-z]{0,4}", "[a-z]{0,4}");
    (texts, method, any::<bool>(), vec(header_write(), 0..2), vec(range.clone(), 0..2), vec(range, 0..2)).prop_map(
        |((path, host), method, http2, headers, expected, retriable)| HttpProbe {
            path,
            host,
            method,
            http2,
            headers,
            expected,
            retriable,
        },
    )
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let probe = prop_oneof![
        (vec(any::<u8>(), 0..3), vec(vec(any::<u8>(), 1..3), 0..3))
            .prop_map(|(send, receive)| HealthProbe::Tcp(TcpProbe { send, receive })),
        http_probe().prop_map(HealthProbe::Http),
        ("[a-z]{0,4}", "[a-z]{0,4}").prop_map(|(service, authority)| HealthProbe::Grpc { service, authority }),
    ];
    let maybe = || option::of(time());
    let pace = (duration(), duration(), any::<u32>(), (maybe(), maybe(), maybe(), maybe(), maybe())).prop_map(
        |(initial_jitter, jitter, jitter_percent, (no_traffic, no_traffic_healthy, unhealthy, edge, healthy_edge))| {
            HealthCheckPace {
                initial_jitter,
                jitter,
                jitter_percent,
                no_traffic,
                no_traffic_healthy,
                unhealthy,
                unhealthy_edge: edge,
                healthy_edge,
            }
        },
    );
    let more = (pace, option::of(1..=u16::MAX), any::<bool>());
    (probe, time(), time(), any::<u32>(), any::<u32>(), more).prop_map(
        |(probe, interval, timeout, unhealthy_threshold, healthy_threshold, more)| HealthCheck {
            probe,
            interval,
            timeout,
            unhealthy_threshold,
            healthy_threshold,
            pace: more.0,
            port: more.1,
            reuse_connection: more.2,
        },
    )
}

fn tls() -> impl Strategy<Value = UpstreamTls> {
    let mesh =
        |instances| {
            (vec(string_matcher(), 0..3), option::of(text()), instances)
                .prop_map(|(peer_ids, sni, instances)| MeshTls { peer_ids, sni, instances })
        };
    let roots = (vec(string_matcher(), 0..3), option::of(text()), instance())
        .prop_map(|(names, sni, instance)| RootsTls { names, sni, instance });
    let originated = || {
        (option::of(text()), vec(string_matcher(), 0..3), option::of(text()), any::<(bool, bool)>()).prop_map(
            |(sni, subject_alt_names, ca_file, (insecure_skip_verify, auto_host_sni))| OriginatedTls {
                sni,
                auto_host_sni,
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
        mesh(Just(Instances::default()).boxed()).prop_map(UpstreamTls::Auto),
        mesh(instances().boxed()).prop_map(UpstreamTls::Mesh),
        roots.prop_map(UpstreamTls::Roots),
        originated().prop_map(UpstreamTls::Simple),
        (originated(), certificate).prop_map(|(tls, certificate)| UpstreamTls::Mutual(tls, certificate)),
    ]
}

fn connection() -> impl Strategy<Value = ConnectionOptions> {
    let seconds = || option::of((1..=32_767_u64).prop_map(Duration::from_secs));
    let tcp = (option::of(1..=127_u32), seconds(), seconds()).prop_map(|(probes, time, interval)| TcpKeepalive {
        probes,
        time,
        interval,
    });
    let window = 0..=i32::MAX as u32;
    let ping = (time(), time()).prop_map(|(interval, timeout)| Keepalive { interval, timeout });
    let protocol = select(vec![UpstreamProtocol::Http1, UpstreamProtocol::Http2, UpstreamProtocol::Alpn]);
    (
        protocol,
        time(),
        option::of(time()),
        option::of(time()),
        option::of(1..=u32::MAX),
        (option::of(1..=u32::MAX), option::of(window), option::of(0..=i32::MAX as u32)),
        option::of(ping),
        option::of(tcp),
    )
        .prop_map(|(protocol, connect_timeout, idle_timeout, max_age, requests, http2, ping, tcp_keepalive)| {
            ConnectionOptions {
                protocol,
                connect_timeout,
                idle_timeout,
                max_age,
                max_requests_per_connection: requests,
                max_concurrent_streams: http2.0,
                initial_stream_window: http2.1,
                initial_connection_window: http2.2,
                http2_keepalive: ping,
                tcp_keepalive,
            }
        })
}

fn hashing() -> impl Strategy<Value = Hashing> {
    (any::<bool>(), option::of(100..1000_u32))
        .prop_map(|(use_hostname, balance_factor)| Hashing { use_hostname, balance_factor })
}

fn subsets() -> impl Strategy<Value = Subsets> {
    let fallback = prop_oneof![
        Just(SubsetFallback::Fail),
        Just(SubsetFallback::Any),
        btree_map(text(), text(), 0..3).prop_map(SubsetFallback::Default),
    ];
    let keys = proptest::collection::btree_set(text(), 1..3).prop_map(|keys| keys.into_iter().collect());
    (fallback, vec(keys, 0..3)).prop_map(|(fallback, selectors)| Subsets { fallback, selectors })
}

fn override_host() -> impl Strategy<Value = Vec<Health>> {
    proptest::sample::subsequence(vec![Health::Healthy, Health::Unknown, Health::Draining], 0..=3)
}

fn proxy() -> impl Strategy<Value = Option<HttpProxy>> {
    let default = option::of((0..3_u8, 1..100_u16).prop_map(|(kind, place)| address(kind, place)));
    option::of(default.prop_map(|default| HttpProxy { default }))
}

fn dns() -> impl Strategy<Value = DnsOptions> {
    let family =
        select(vec![DnsFamily::Auto, DnsFamily::V4Only, DnsFamily::V6Only, DnsFamily::V4Preferred, DnsFamily::All]);
    let failure = (time(), time()).prop_map(|(a, b)| DnsBackoff { base: a.min(b), max: a.max(b) });
    (family, option::of(time()), option::of(failure), any::<bool>(), duration()).prop_map(
        |(family, refresh, failure_refresh, respect_ttl, jitter)| DnsOptions {
            family,
            refresh,
            failure_refresh,
            respect_ttl,
            jitter,
        },
    )
}

fn load_report() -> impl Strategy<Value = Option<LoadReport>> {
    option::of(vec(text(), 0..3).prop_map(|metrics| LoadReport { metrics }))
}

/// Without what nothing can say of such a balancer.
fn said_of(balancer: &Balancer, mut locality: LocalityBalancing) -> LocalityBalancing {
    locality.weighted &= *balancer.leaf() != Balancer::Passthrough;
    locality
}

pub(super) fn cluster() -> impl Strategy<Value = Cluster> {
    let zone_aware = (share(), any::<u64>(), any::<bool>())
        .prop_map(|(share, min_cluster_size, fail_on_panic)| ZoneAware { share, min_cluster_size, fail_on_panic });
    let spill = (any::<u32>(), any::<u32>()).prop_map(|(low, high)| LoadSpill { low, high });
    let locality = (any::<bool>(), option::of(share()), option::of(zone_aware), option::of(spill))
        .prop_map(|(weighted, panic_threshold, zone_aware, spill)| LocalityBalancing {
            weighted,
            panic_threshold,
            zone_aware,
            spill,
        })
        .boxed();
    let slow_start = (duration(), any::<u32>(), share()).prop_map(|(window, aggression, min_share)| SlowStart {
        window,
        aggression,
        min_share,
    });
    let telemetry =
        ("[a-z]{0,3}", "[a-z]{0,3}", "[a-z]{0,3}").prop_map(|(service, service_name, service_namespace)| {
            ClusterTelemetry { service, service_name, service_namespace }
        });
    // Boxed: unboxed parts of a policy this large overflow the stack of a test.
    (
        name(),
        discovery().boxed(),
        balancer().boxed(),
        (locality, hashing(), option::of(subsets())),
        option::of(slow_start),
        (breaker(), option::of(breaker())),
        (option::of(outlier()), option::of(accrual())).boxed(),
        vec(health_check(), 0..3).boxed(),
        (tls(), proxy(), override_host()).boxed(),
        (connection(), dns(), load_report()).boxed(),
        telemetry,
    )
        .prop_map(|(name, discovery, balancer, lb, slow_start, breakers, outlier, checks, tls, net, t)| Cluster {
            name,
            discovery,
            locality: said_of(&balancer, lb.0),
            balancer,
            slow_start,
            hashing: lb.1,
            subsets: lb.2,
            override_host: tls.2,
            breaker: breakers.0,
            breaker_high: breakers.1,
            outlier: outlier.0,
            accrual: outlier.1,
            health_checks: checks,
            tls: tls.0,
            connection: net.0,
            proxy: tls.1,
            dns: net.1,
            load_report: net.2,
            telemetry: t,
        })
}
