//! Generators of policy in normal form: shared values, listeners and routes.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_core::id::ClusterName;
use mesh_core::policy::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::generate_composite::{of_client, of_server};

pub(super) fn text() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9.%-]{0,8}"
}

/// A certificate provider instance beside `default`.
pub(super) fn instance() -> impl Strategy<Value = Option<Arc<str>>> {
    option::of("other-[a-z]{1,4}".prop_map(Arc::from))
}

pub(super) fn instances() -> impl Strategy<Value = Instances> {
    (instance(), instance()).prop_map(|(certificate, roots)| Instances { certificate, roots })
}

pub(super) fn name() -> impl Strategy<Value = ClusterName> {
    "outbound\\|[0-9]{1,4}\\|[a-z]{0,3}\\|[a-z]{1,5}\\.svc".prop_map(|text| ClusterName::from(text.as_str()))
}

pub(super) fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..1_000_000_u64, 0..1_000_000_000_u32).prop_map(|(s, n)| Duration::new(s, n)),
        (1..10_u64).prop_map(Duration::from_secs),
    ]
}

pub(super) fn time() -> impl Strategy<Value = Duration> {
    duration().prop_map(|d| d.max(Duration::from_nanos(1)))
}

pub(super) fn share() -> impl Strategy<Value = PerMillion> {
    prop_oneof![
        Just(PerMillion::NONE),
        Just(PerMillion::ALL),
        (1..100_u32).prop_map(|p| PerMillion::new(p * 10_000)),
        (0..1_000_001_u32).prop_map(PerMillion::new),
    ]
}

pub(super) fn some_share() -> impl Strategy<Value = PerMillion> {
    share().prop_map(|share| if share == PerMillion::NONE { PerMillion::new(1) } else { share })
}

pub(super) fn pattern() -> impl Strategy<Value = Pattern> {
    select(vec!["a+", "/v[12]/.*", "(?i)foo|bar", r"x\.y", "[a-z]{1,3}"])
        .prop_map(|text| Pattern::new(text).expect("a valid pattern"))
}

pub(super) fn string_matcher() -> impl Strategy<Value = StringMatcher> {
    let pattern = prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        text().prop_map(StringMatch::Contains),
        pattern().prop_map(StringMatch::Regex),
    ];
    (pattern, any::<bool>()).prop_map(|(pattern, ignore_case)| StringMatcher { pattern, ignore_case })
}

pub(super) fn header_name() -> impl Strategy<Value = HeaderName> {
    select(vec!["x-user", "host", "content-type", "cookie", "x-a-bin"]).prop_map(HeaderName::from_static)
}

fn header_key() -> impl Strategy<Value = HeaderKey> {
    prop_oneof![
        header_name().prop_map(HeaderKey::Header),
        Just(HeaderKey::Method),
        Just(HeaderKey::Authority),
        Just(HeaderKey::Path),
    ]
}

/// A condition on any header that RBAC, too, may ask for.
pub(super) fn header_matcher() -> impl Strategy<Value = HeaderMatcher> {
    let value = prop_oneof![
        string_matcher().prop_map(HeaderMatch::Text),
        any::<(i64, i64)>().prop_map(|(start, end)| HeaderMatch::Range { start, end }),
        any::<bool>().prop_map(HeaderMatch::Present),
    ];
    (header_key(), value, any::<bool>(), any::<bool>()).prop_map(|(name, value, invert, treat_missing_as_empty)| {
        HeaderMatcher { name, value, invert, treat_missing_as_empty }
    })
}

fn any_header_matcher() -> impl Strategy<Value = HeaderMatcher> {
    (header_matcher(), any::<bool>()).prop_map(|(matcher, scheme)| match scheme {
        true => HeaderMatcher { name: HeaderKey::Scheme, ..matcher },
        false => matcher,
    })
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    let byte = prop_oneof![Just(b'%'), Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8];
    vec(byte, 0..6).prop_map(|bytes| HeaderValue::from_bytes(&bytes).expect("bytes that a value may hold"))
}

pub(super) fn header_write() -> impl Strategy<Value = HeaderWrite> {
    let action = select(vec![
        HeaderAction::Append,
        HeaderAction::Overwrite,
        HeaderAction::AddIfAbsent,
        HeaderAction::OverwriteIfPresent,
    ]);
    (header_name(), header_value(), action).prop_map(|(name, value, action)| HeaderWrite { name, value, action })
}

fn header_ops() -> impl Strategy<Value = HeaderOps> {
    (vec(header_write(), 0..3), vec(header_name(), 0..3)).prop_map(|(write, remove)| HeaderOps { write, remove })
}

fn headers() -> impl Strategy<Value = HeaderPolicy> {
    (header_ops(), header_ops()).prop_map(|(request, response)| HeaderPolicy { request, response })
}

pub(super) fn fault() -> impl Strategy<Value = Fault> {
    let unit = || prop_oneof![Just(ShareUnit::Hundred), Just(ShareUnit::TenThousand), Just(ShareUnit::Million)];
    let asked = || (unit(), 0..101_u32).prop_map(|(unit, count)| (unit.share(count), unit));
    let delay = prop_oneof![
        (duration(), share()).prop_map(|(duration, share)| FaultDelay::of(duration, share)),
        asked().prop_map(|(share, unit)| FaultDelay { duration: None, share, unit }),
    ]
    .boxed();
    let status = prop_oneof![(200..600_u16).prop_map(AbortStatus::Http), (1..17_u32).prop_map(AbortStatus::Grpc),];
    let abort = prop_oneof![
        (status, share()).prop_map(|(status, share)| FaultAbort::with(status, share)),
        asked().prop_map(|(share, unit)| FaultAbort { status: None, share, unit }),
    ]
    .boxed();
    (
        option::of(delay),
        option::of(abort),
        vec(any_header_matcher(), 0..2),
        option::of(name()),
        option::of(any::<u32>()),
    )
        .prop_map(|(delay, abort, headers, cluster, max_active)| Fault {
            delay,
            abort,
            headers,
            cluster,
            max_active,
        })
}

pub(super) fn rate_limit() -> impl Strategy<Value = LocalRateLimit> {
    let bucket = (1..1000_u32, 1..1000_u32, 50..100_000_u64).prop_map(|(max_tokens, tokens_per_fill, millis)| {
        TokenBucket { max_tokens, tokens_per_fill, fill_interval: Duration::from_millis(millis) }
    });
    let writes = || vec(header_write(), 0..2);
    (option::of(bucket), share(), share(), 400..600_u16, writes(), writes(), any::<[bool; 4]>()).prop_map(
        |(bucket, enabled, enforced, status, response_headers, request_headers, flags)| {
            let [resource_exhausted, per_connection, quota_headers, retry_after] = flags;
            LocalRateLimit {
                bucket,
                enabled,
                enforced,
                status,
                resource_exhausted,
                response_headers,
                request_headers,
                per_connection,
                quota_headers,
                retry_after,
            }
        },
    )
}

pub(super) fn admission() -> impl Strategy<Value = AdmissionControl> {
    let statuses = (100..599_u16, 1..100_u16).prop_map(|(start, length)| start..(start + length).min(600));
    let shares = ((10_000..=1_000_000_u32).prop_map(PerMillion::new), share());
    (1000..1_000_000_u64, shares, 1_000_000..u32::MAX, any::<u32>(), vec(statuses, 0..3), vec(0..=16_u32, 0..4))
        .prop_map(|(millis, (threshold, max_rejection), aggression, min_rps, http_success, grpc_success)| {
            AdmissionControl {
                window: Duration::from_millis(millis),
                threshold,
                aggression,
                min_rps,
                max_rejection,
                http_success,
                grpc_success,
            }
        })
}

pub(super) fn concurrency() -> impl Strategy<Value = AdaptiveConcurrency> {
    let measured = (time(), 1..u32::MAX, share(), 1..u32::MAX).prop_map(|(interval, requests, jitter, concurrency)| {
        MinRtt::Measured { interval, requests, jitter, concurrency }
    });
    let min_rtt = prop_oneof![time().prop_map(MinRtt::Fixed), measured];
    (400..600_u16, share(), time(), 1..u32::MAX, 1..u32::MAX, min_rtt, share()).prop_map(
        |(status, percentile, interval, min_limit, max_limit, min_rtt, buffer)| AdaptiveConcurrency {
            status,
            percentile,
            interval,
            min_limit,
            max_limit,
            min_rtt,
            buffer,
        },
    )
}

pub(super) fn session() -> impl Strategy<Value = StatefulSession> {
    let source = prop_oneof![
        (text(), "[a-z/]{0,3}", duration()).prop_map(|(name, path, ttl)| SessionSource::Cookie { name, path, ttl }),
        header_name().prop_map(SessionSource::Header),
    ];
    (source, any::<bool>()).prop_map(|(source, strict)| StatefulSession { source, strict })
}

fn overrides() -> impl Strategy<Value = FilterOverrides> {
    let one = prop_oneof![
        Just(FilterOverride::Disabled),
        Just(FilterOverride::Enabled),
        fault().prop_map(FilterOverride::Fault),
        rate_limit().prop_map(FilterOverride::RateLimit),
        session().prop_map(FilterOverride::Session),
        of_client().prop_map(FilterOverride::Composite),
        of_server().prop_map(FilterOverride::Composite),
    ];
    btree_map(text(), one.prop_map(Arc::new), 0..2)
}

fn labels() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    btree_map(text(), text(), 0..2)
}

fn retry_on() -> impl Strategy<Value = RetryOn> {
    (any::<u32>(), vec(100..600_u16, 0..3), vec(any_header_matcher(), 0..2)).prop_map(
        |(bits, status_codes, response_headers)| {
            let bit = |n: u32| bits >> n & 1 == 1;
            RetryOn {
                server_error: bit(0),
                gateway_error: bit(1),
                reset: bit(2),
                reset_before_request: bit(3),
                connect_failure: bit(4),
                refused_stream: bit(5),
                retriable_4xx: bit(6),
                envoy_ratelimited: bit(7),
                http3_post_connect_failure: bit(8),
                retriable_status_codes: bit(9),
                status_codes,
                response_headers,
                cancelled: bit(10),
                deadline_exceeded: bit(11),
                internal: bit(12),
                resource_exhausted: bit(13),
                unavailable: bit(14),
                classified_failure: bit(15),
            }
        },
    )
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    let backoff = (1..1_000_u64, 0..1_000_u64);
    let reset = (header_name(), any::<bool>()).prop_map(|(name, unix_timestamp)| ResetHeader { name, unix_timestamp });
    let rate_limited =
        (vec(reset, 1..3), time()).prop_map(|(headers, max_interval)| RateLimitedBackoff { headers, max_interval });
    let more = (option::of(rate_limited), vec(any_header_matcher(), 0..2), vec(labels(), 0..3));
    (0..4_u32, retry_on(), option::of(time()), option::of(time()), backoff, any::<(bool, bool)>(), more).prop_map(
        |(attempts, on, per_try_timeout, per_try_idle_timeout, (base, more), (avoid, next), other)| RetryPolicy {
            attempts,
            on,
            per_try_timeout,
            per_try_idle_timeout,
            backoff_base: Duration::from_millis(base),
            backoff_max: Duration::from_millis(base + more),
            rate_limited: other.0,
            request_headers: other.1,
            avoid_previous_hosts: avoid,
            avoid_metadata: other.2.into_iter().filter(|labels| !labels.is_empty()).collect(),
            next_locality: next,
        },
    )
}

/// A prefix of whole path elements, as Envoy accepts it.
fn separated_prefix() -> impl Strategy<Value = String> {
    "(/[a-z]{1,4}){1,3}"
}

pub(super) fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        text().prop_map(PathMatch::Exact),
        "/([a-z]{1,3}/){0,2}[a-z]{0,3}".prop_map(PathMatch::Prefix),
        separated_prefix().prop_map(PathMatch::PathSeparatedPrefix),
        pattern().prop_map(PathMatch::Regex),
    ]
}

pub(super) fn route_match() -> impl Strategy<Value = RouteMatch> {
    let value = prop_oneof![string_matcher().prop_map(QueryMatch::Text), any::<bool>().prop_map(QueryMatch::Present)];
    let query = (text(), value).prop_map(|(name, value)| QueryMatcher { name, value });
    let cookie = (text(), string_matcher(), any::<bool>()).prop_map(|(name, value, invert)| CookieMatcher {
        name,
        value,
        invert,
    });
    let methods = vec(select(vec!["GET".to_owned(), "POST".to_owned(), "M-SEARCH".to_owned()]), 0..3);
    let labels = btree_map(text(), text(), 0..2);
    (
        path_match(),
        any::<bool>(),
        methods,
        vec(any_header_matcher(), 0..3),
        (vec(query, 0..2), vec(cookie, 0..2)),
        option::of(share()),
        option::of(1..=u16::MAX),
        labels,
        option::of(text()),
    )
        .prop_map(
            |(path, case, methods, headers, (query, cookies), fraction, port, source_labels, source_namespace)| {
                RouteMatch {
                    path,
                    case_sensitive: case,
                    methods,
                    headers,
                    query,
                    cookies,
                    fraction,
                    port,
                    source_labels,
                    source_namespace,
                }
            },
        )
}

fn path_rewrite() -> impl Strategy<Value = PathRewrite> {
    prop_oneof![
        text().prop_map(PathRewrite::Prefix),
        text().prop_map(PathRewrite::Full),
        (pattern(), text()).prop_map(|(pattern, substitution)| PathRewrite::Regex { pattern, substitution }),
    ]
}

fn cluster_choice() -> impl Strategy<Value = ClusterChoice> {
    let entry = (name(), 0..100_u32, headers(), overrides(), option::of(text()), labels()).prop_map(
        |(name, weight, headers, filters, authority, metadata_match)| WeightedCluster {
            name,
            weight,
            headers,
            filters,
            authority,
            metadata_match,
        },
    );
    let split = (vec(entry, 1..4), 1..100_u32).prop_map(|(mut entries, weight)| {
        entries[0].weight = weight;
        WeightedClusters::new(entries).expect("the first weight is above 0")
    });
    prop_oneof![
        name().prop_map(ClusterChoice::Cluster),
        split.prop_map(ClusterChoice::Weighted),
        header_name().prop_map(ClusterChoice::Header),
    ]
}

fn hash() -> impl Strategy<Value = HashPolicy> {
    let source = prop_oneof![
        (header_name(), option::of((pattern(), text()))).prop_map(|(name, rewrite)| HashSource::Header {
            name,
            rewrite: rewrite.map(|(pattern, substitution)| RegexRewrite { pattern, substitution }),
        }),
        (text(), "[a-z/]{0,3}", option::of(duration())).prop_map(|(name, path, ttl)| HashSource::Cookie {
            name,
            path,
            ttl
        }),
        text().prop_map(HashSource::Query),
        Just(HashSource::SourceAddress),
        Just(HashSource::ChannelId),
    ];
    (source, any::<bool>()).prop_map(|(source, terminal)| HashPolicy { source, terminal })
}

fn cors() -> impl Strategy<Value = Cors> {
    let list = || vec(text(), 0..3);
    (
        vec(string_matcher(), 0..3),
        list(),
        list(),
        list(),
        option::of((0..100_000_u64).prop_map(Duration::from_secs)),
        any::<(bool, bool)>(),
    )
        .prop_map(
            |(allow_origins, allow_methods, allow_headers, expose_headers, max_age, (credentials, forward))| Cors {
                allow_origins,
                allow_methods,
                allow_headers,
                expose_headers,
                max_age,
                allow_credentials: credentials,
                forward_unmatched: forward,
            },
        )
}

fn forward() -> impl Strategy<Value = Forward> {
    let authority = prop_oneof![
        text().prop_map(AuthorityRewrite::Literal),
        Just(AuthorityRewrite::Endpoint),
        header_name().prop_map(AuthorityRewrite::Header),
        (pattern(), text()).prop_map(|(pattern, substitution)| AuthorityRewrite::Path { pattern, substitution }),
    ];
    let rewrite = (option::of(path_rewrite()), option::of(authority), any::<bool>())
        .prop_map(|(path, authority, forwarded_host)| Rewrite { path, authority, forwarded_host });
    let hedge =
        (1..4_u32, share(), any::<bool>()).prop_map(|(initial_requests, additional_request, on_per_try_timeout)| {
            HedgePolicy { initial_requests, additional_request, on_per_try_timeout }
        });
    let mirror = (name(), share(), any::<bool>()).prop_map(|(cluster, share, shadow_host)| Mirror {
        cluster,
        share,
        shadow_host,
    });
    // Equal timeouts and ceilings are a case of their own; a ceiling of 0 lifts the listener's.
    let ceiling = || option::of(prop_oneof![time(), Just(Duration::ZERO)]);
    let timeouts = prop_oneof![
        (option::of(time()), ceiling(), ceiling()),
        (time(), ceiling()).prop_map(|(time, stream)| (Some(time), stream, Some(time))),
    ];
    (
        cluster_choice(),
        timeouts,
        option::of(time()),
        (option::of(retry()), option::of(hedge), any::<bool>(), labels()),
        vec(mirror, 0..2),
        rewrite,
        vec(hash(), 0..3),
        option::of(cors().prop_map(Arc::new)),
    )
        .prop_map(
            |(
                to,
                (timeout, max_stream_duration, grpc_timeout_max),
                idle_timeout,
                more,
                mirrors,
                rewrite,
                hash,
                cors,
            )| Forward {
                to,
                timeout,
                idle_timeout,
                max_stream_duration,
                grpc_timeout_max,
                retry: more.0,
                hedge: more.1,
                high_priority: more.2,
                metadata_match: more.3,
                mirrors,
                rewrite,
                hash,
                cors,
            },
        )
}

fn action() -> impl Strategy<Value = RouteAction> {
    let redirect = (
        select(vec![301_u16, 302, 303, 307, 308]),
        option::of(text()),
        option::of(text()),
        option::of(1..=u16::MAX),
        option::of(path_rewrite()),
        any::<bool>(),
    )
        .prop_map(|(code, scheme, host, port, path, strip_query)| Redirect {
            code,
            scheme,
            host,
            port,
            path,
            strip_query,
        });
    let answer = (200..600_u16, vec(any::<u8>(), 0..8)).prop_map(|(status, body)| DirectResponse { status, body });
    prop_oneof![
        4 => forward().prop_map(|forward| RouteAction::Forward(Box::new(forward))),
        1 => redirect.prop_map(RouteAction::Redirect),
        1 => answer.prop_map(RouteAction::DirectResponse),
        1 => Just(RouteAction::NonForwarding),
    ]
}

fn response_class() -> impl Strategy<Value = ResponseClass> {
    let leaf = any::<(u16, u16)>().prop_map(|(min, max)| ResponseMatch::Status { min, max });
    let matcher = leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(ResponseMatch::All),
            vec(inner.clone(), 0..3).prop_map(ResponseMatch::Any),
            inner.prop_map(|inner| ResponseMatch::Not(Box::new(inner))),
        ]
    });
    (matcher, any::<bool>()).prop_map(|(matcher, is_failure)| ResponseClass { matcher, is_failure })
}

fn route() -> impl Strategy<Value = Route> {
    ("[a-z]{0,4}", route_match(), action(), headers(), overrides(), vec(response_class(), 0..2), "[a-z]{0,2}").prop_map(
        |(name, matcher, action, headers, filters, response_classes, stat_prefix)| Route {
            name,
            matcher,
            action,
            headers,
            filters: filters.into(),
            response_classes,
            stat_prefix,
        },
    )
}

fn virtual_host() -> impl Strategy<Value = VirtualHost> {
    (text(), 1..3_usize, vec(route(), 0..3), headers(), option::of(retry())).prop_map(
        |(name, domains, routes, headers, retry)| VirtualHost {
            domains: (0..domains).map(|i| domain(&format!("{name}{i}"))).collect(),
            name,
            routes,
            headers,
            retry,
        },
    )
}

fn domain(text: &str) -> Domain {
    Domain::new(text).expect("a name without a star")
}

pub(super) fn routes() -> impl Strategy<Value = RouteConfiguration> {
    let budget = (any::<u64>(), any::<u32>(), duration()).prop_map(|(ratio, min, ttl)| RetryBudget {
        retry_ratio: PerMillionRatio(ratio),
        min_retries_per_second: min,
        ttl,
    });
    (text(), vec(virtual_host(), 0..3), headers(), option::of(budget)).prop_map(
        |(name, mut virtual_hosts, headers, retry_budget)| {
            // No two hosts share a domain: the place makes the difference.
            for (i, host) in virtual_hosts.iter_mut().enumerate() {
                let own = host.domains.iter().map(|d| domain(&format!("{i}.{}", d.as_str()))).collect();
                host.domains = own;
            }
            if let Some(host) = virtual_hosts.first_mut() {
                host.domains.push(domain("*"));
            }
            RouteConfiguration { name, virtual_hosts, headers, retry_budget }
        },
    )
}

pub(super) fn listener() -> impl Strategy<Value = Listener> {
    let source = prop_oneof![
        text().prop_map(RouteSource::Named),
        routes().prop_map(|routes| RouteSource::Inline(Arc::new(routes))),
    ];
    let fault = option::of(fault()).prop_map(|f| HttpFilterKind::Fault(f.filter(|f| *f != Fault::default())));
    let kind = prop_oneof![
        fault,
        skipped(),
        rate_limit().prop_map(HttpFilterKind::RateLimit),
        option::of(admission()).prop_map(HttpFilterKind::AdmissionControl),
        option::of(concurrency()).prop_map(HttpFilterKind::AdaptiveConcurrency),
        option::of(session()).prop_map(HttpFilterKind::Session),
        of_client().prop_map(HttpFilterKind::Composite),
    ];
    (text(), source, vec(kind, 0..3), option::of(time()), option::of(tcp())).prop_map(
        |(name, routes, kinds, max_stream_duration, tcp)| {
            let filters = kinds.into_iter().enumerate();
            let filters = filters.map(|(i, kind)| HttpFilter { name: format!("filter-{i}"), kind }).collect();
            Listener { name, routes, filters, max_stream_duration, tcp }
        },
    )
}

fn tcp() -> impl Strategy<Value = TcpForward> {
    let number = || prop_oneof![Just(1), 1..1000_u32].prop_map(|n| NonZeroU32::new(n).expect("at least 1"));
    let share = (name(), number(), labels()).prop_map(|(name, weight, metadata_match)| TcpShare {
        name,
        weight,
        metadata_match,
    });
    let more = (any::<bool>(), labels());
    (vec(share, 1..4), number(), option::of(time()), more).prop_map(|(shares, max_connect_attempts, idle, more)| {
        let mut forward = TcpForward::split(shares).expect("at least one, and small weights");
        forward.idle_timeout = idle;
        forward.max_connect_attempts = max_connect_attempts;
        (forward.by_source, forward.metadata_match) = more;
        forward
    })
}

/// A filter that nobody knows.
pub(super) fn skipped() -> impl Strategy<Value = HttpFilterKind> {
    text().prop_map(|name| HttpFilterKind::Skipped { type_url: format!("type.googleapis.com/{name}") })
}
