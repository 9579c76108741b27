//! Filters whose configuration comes as JSON in a `TypedStruct`, as Istio's documents have it. See `conformance.rs`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::{LoadBalancingPolicy, load_balancing_policy::Policy};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, FaultRateLimit, fault_delay};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LimitProto;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, regex_matcher, string_matcher};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, HttpStatus, Int64Range, TokenBucket};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, ListValue, Struct, Value, value::Kind};
use mesh_core::policy::{Balancer, Cluster, FilterOverride, HttpFilterKind, Listener};
use prost::Message;
use serde_json::json;

use super::conformance::{Says, says};
use super::refusals::{number, with_manager, with_route};
use super::{conformance_server, refusals, refusals_cluster};
use crate::codec::typed_struct::{TypedStruct, WRAPPERS};
use crate::codec::{self, AnyListener, At, Report, extension, extension::url};

fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(is) => Kind::BoolValue(is),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(list) => Kind::ListValue(ListValue { values: list.into_iter().map(value).collect() }),
        serde_json::Value::Object(_) => Kind::StructValue(as_struct(json)),
    };
    Value { kind: Some(kind) }
}

fn as_struct(json: serde_json::Value) -> Struct {
    let serde_json::Value::Object(fields) = json else { panic!("an object") };
    Struct { fields: fields.into_iter().map(|(key, json)| (key, value(json))).collect() }
}

fn wrapped_in(wrapper: &str, type_url: &str, json: serde_json::Value) -> Any {
    let message = TypedStruct { type_url: type_url.to_owned(), value: vec![as_struct(json).encode_to_vec()] };
    extension::pack(wrapper, &message)
}

fn wrapped(type_url: &str, json: serde_json::Value) -> Any {
    wrapped_in(WRAPPERS[1], type_url, json)
}

fn listener_with(config: Any, is_optional: bool) -> Any {
    with_manager(|m| m.http_filters.insert(0, codec::filter::encode("some", config, is_optional)))
}

fn server_with(config: Any) -> Any {
    conformance_server::with_manager(|m| m.http_filters.insert(0, codec::filter::encode("some", config, false)))
}

/// As the task "Enabling Rate Limits using Envoy" has it.
fn documented() -> serde_json::Value {
    json!({
        "stat_prefix": "http_local_rate_limiter",
        "token_bucket": {"max_tokens": 4, "tokens_per_fill": 4, "fill_interval": "60s"},
        "filter_enabled": {
            "runtime_key": "local_rate_limit_enabled",
            "default_value": {"numerator": 100, "denominator": "HUNDRED"},
        },
        "filter_enforced": {
            "runtime_key": "local_rate_limit_enforced",
            "default_value": {"numerator": 100, "denominator": "HUNDRED"},
        },
        "response_headers_to_add": [{"append": false, "header": {"key": "x-local-rate-limit", "value": "true"}}],
    })
}

fn documented_proto() -> LimitProto {
    let share = |key: &str| {
        Some(core::RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 100, denominator: 0 }),
            runtime_key: key.into(),
        })
    };
    LimitProto {
        stat_prefix: "http_local_rate_limiter".into(),
        token_bucket: Some(TokenBucket { max_tokens: 4, tokens_per_fill: number(4), fill_interval: seconds(60) }),
        filter_enabled: share("local_rate_limit_enabled"),
        filter_enforced: share("local_rate_limit_enforced"),
        response_headers_to_add: vec![core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: "x-local-rate-limit".into(),
                value: "true".into(),
                raw_value: Vec::new(),
            }),
            append: Some(BoolValue { value: false }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn client(resource: &Any) -> Listener {
    match codec::decode_listener(resource).unwrap().value {
        AnyListener::Outbound(listener) => listener,
        other => panic!("{other:?}"),
    }
}

#[test]
fn l2_a_rate_limit_or_a_fault_as_a_typed_struct_is_that_filter_a39() {
    let plain = extension::pack(url::RATE_LIMIT, &documented_proto());
    let fault = json!({"abort": {"http_status": 503, "percentage": {"numerator": 5, "denominator": "MILLION"}}});
    let abort = FaultAbort {
        percentage: Some(FractionalPercent { numerator: 5, denominator: 2 }),
        error_type: Some(fault_abort::ErrorType::HttpStatus(503)),
        ..Default::default()
    };
    let plain_fault = extension::pack(url::FAULT, &HttpFault { abort: Some(abort), ..Default::default() });
    for wrapper in WRAPPERS {
        for (type_url, json, plain) in
            [(url::RATE_LIMIT, documented(), &plain), (url::FAULT, fault.clone(), &plain_fault)]
        {
            let config = wrapped_in(wrapper, type_url, json);
            // Of a listener, as it would be without the wrapper.
            let read = client(&listener_with(config.clone(), false));
            assert_eq!(read, client(&listener_with(plain.clone(), false)), "{wrapper} {type_url}");
            assert!(!matches!(read.filters[0].kind, HttpFilterKind::Fault(None) | HttpFilterKind::Skipped { .. }));
            // Of a route, alone and in Envoy's wrapper.
            let own = rds::FilterConfig { config: Some(config.clone()), ..Default::default() };
            for config in [config.clone(), extension::pack(url::FILTER_CONFIG, &own)] {
                let with = |any: &Any| {
                    let resource = with_route(|r| _ = r.typed_per_filter_config.insert("f".into(), any.clone()));
                    codec::decode_routes(&resource).unwrap().value.virtual_hosts[0].routes[0].filters.clone()
                };
                assert_eq!(with(&config), with(plain), "{wrapper} {type_url}");
                assert!(matches!(*with(&config)["f"], FilterOverride::RateLimit(_) | FilterOverride::Fault(_)));
            }
        }
        // Of a server. What stands before the last slash says nothing.
        let name = url::RATE_LIMIT.rsplit('/').next().unwrap();
        for type_url in [url::RATE_LIMIT.to_owned(), name.to_owned(), format!("any.host/of/{name}")] {
            let config = wrapped_in(wrapper, &type_url, documented());
            let read = conformance_server::decoded(&server_with(config));
            assert_eq!(read, conformance_server::decoded(&server_with(plain.clone())), "{type_url}");
        }
    }
}

#[test]
fn l2_what_is_wrong_in_a_typed_struct_is_refused_by_its_path_a39() {
    let at = "api_listener.api_listener.http_filters[0]";
    let with = |change: serde_json::Value| {
        let mut json = documented();
        let serde_json::Value::Object(change) = change else { panic!("an object") };
        json.as_object_mut().unwrap().extend(change);
        json
    };
    let bucket = |interval: serde_json::Value| json!({"token_bucket": {"max_tokens": 4, "fill_interval": interval}});
    let cases = [
        (json!({"status": {"code": "Teapot"}}), vec!["status.code"]),
        (json!({"status": {"code": 4.5}}), vec!["status.code"]),
        (json!({"status": 429}), vec!["status"]),
        (bucket(json!(60)), vec!["token_bucket.fill_interval"]),
        (bucket(json!("60")), vec!["token_bucket.fill_interval"]),
        (bucket(json!("-60s")), vec!["token_bucket.fill_interval"]),
        (bucket(json!("1.s")), vec!["token_bucket.fill_interval"]),
        (json!({"stage": -1}), vec!["stage"]),
        (json!({"stage": 4_294_967_296_u64}), vec!["stage"]),
        (json!({"statPrefix": "a"}), vec!["stat_prefix"]),
        (json!({"response_headers_to_add": {}}), vec!["response_headers_to_add"]),
        (
            json!({"response_headers_to_add": [{"header": {"key": "a", "value": 1}}, {"header": 1}]}),
            vec!["response_headers_to_add[0].header.value", "response_headers_to_add[1].header"],
        ),
        (
            json!({"request_headers_to_add_when_not_enforced": [{"header": {"raw_value": "?"}}]}),
            vec!["request_headers_to_add_when_not_enforced[0].header.raw_value"],
        ),
        (json!({"enable_retry_after_header": "true"}), vec!["enable_retry_after_header"]),
        // What the filter itself refuses, where it is.
        (bucket(json!("0.01s")), vec!["token_bucket.fill_interval"]),
    ];
    for (change, wrong) in cases {
        let case = change.to_string();
        let want: Vec<_> = wrong.iter().map(|field| format!("{at}.{field}")).collect();
        let want: Vec<_> = want.iter().map(String::as_str).collect();
        // An optional filter is one that may be unknown, not wrong.
        for is_optional in [false, true] {
            let resource = listener_with(wrapped(url::RATE_LIMIT, with(change.clone())), is_optional);
            let mut found = refusals::fields(codec::decode_listener(&resource));
            // The key of a field that is given twice is either of its two.
            found.iter_mut().for_each(|field| *field = field.replace("statPrefix", "stat_prefix"));
            assert_eq!(found, want, "{case}");
        }
    }
    let two = json!({"abort": {"http_status": 503, "grpc_status": 14, "percentage": {"numerator": 5}}});
    let at = "virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"]";
    let resource = with_route(|r| _ = r.typed_per_filter_config.insert("f".into(), wrapped(url::FAULT, two)));
    says("two statuses", codec::decode_routes(&resource), &Says::Refused(&[&format!("{at}.abort.grpc_status")]));
    // What is there and has no effect is listed as without the wrapper.
    let listed = json!({"descriptors": [{"entries": [{"key": "a", "value": "b"}]}]});
    let said = format!("{at}.descriptors");
    let config = wrapped(url::RATE_LIMIT, with(listed));
    let resource = with_route(|r| _ = r.typed_per_filter_config.insert("f".into(), config));
    says("descriptors", codec::decode_routes(&resource), &Says::Reported(&[&said]));
    // Control: none of another type, nor where another type is read.
    let other = listener_with(wrapped(url::SESSION, json!({"strict": true})), false);
    let at = "api_listener.api_listener.http_filters[0]";
    says("another type", codec::decode_listener(&other), &Says::Refused(&[at]));
    let refused = codec::decode_listener(&other).unwrap_err().to_string();
    assert!(refused.contains("StatefulSession\" as JSON"), "{refused}");
    let mut report = Report::new("cluster", "c");
    let any = wrapped(url::RATE_LIMIT, documented());
    assert_eq!(extension::unpack::<HttpFault>(&any, &At::ROOT, &mut report), None);
    assert!(!report.is_clean());
    for wrapper in WRAPPERS {
        let broken = Any { type_url: wrapper.into(), value: vec![7] };
        let resource = listener_with(broken.clone(), false);
        says("broken", codec::decode_listener(&resource), &Says::Refused(&[at]));
        let mut report = Report::new("cluster", "c");
        assert_eq!(extension::unpack::<HttpFault>(&broken, &At::ROOT, &mut report), None);
        assert!(!report.is_clean());
    }
}

#[test]
fn l2_a_field_of_a_newer_version_is_passed_over_and_listed_as_in_binary_a39() {
    let mut json = documented();
    json["tokens"] = json!({"of": [4]});
    json["token_bucket"]["maxToken"] = json!(4);
    json["response_headers_to_add"][0]["headers"] = json!(null);
    let resource = listener_with(wrapped(url::RATE_LIMIT, json), false);
    let plain = listener_with(wrapped(url::RATE_LIMIT, documented()), false);
    let read = codec::decode_listener(&resource).unwrap();
    assert_eq!(client(&resource), client(&plain));
    let known = codec::decode_listener(&plain).unwrap().unenforced;
    let mut listed: Vec<_> = read.unenforced.iter().filter(|one| !known.contains(one)).map(|one| &*one.field).collect();
    listed.sort_unstable();
    let at = |field: &str| format!("api_listener.api_listener.http_filters[0].{field}");
    assert_eq!(listed, [at("response_headers_to_add[0].headers"), at("token_bucket.maxToken"), at("tokens")]);
}

/// The table is what says which number a field has.
fn read<M: Message + Default + 'static>(type_url: &str, json: serde_json::Value) -> M {
    let mut report = Report::new("listener", "l");
    let read = extension::unpack(&wrapped(type_url, json), &At::ROOT, &mut report);
    read.unwrap_or_else(|| panic!("{:?}", report.finish(Some(())).map(|_| ())))
}

#[test]
fn l2_each_field_of_a_typed_struct_is_the_one_of_its_name_a39() {
    let mut want = LimitProto {
        status: Some(HttpStatus { code: 503 }),
        request_headers_to_add_when_not_enforced: vec![core::HeaderValueOption {
            header: Some(core::HeaderValue { key: "a".into(), value: String::new(), raw_value: b"raw".to_vec() }),
            append: None,
            append_action: 2,
            keep_empty_value: true,
        }],
        descriptors: vec![LocalRateLimitDescriptor::default(), LocalRateLimitDescriptor::default()],
        stage: 3,
        local_rate_limit_per_downstream_connection: true,
        local_cluster_rate_limit: Some(Default::default()),
        enable_x_ratelimit_headers: 1,
        vh_rate_limits: 2,
        always_consume_default_token_bucket: Some(BoolValue { value: true }),
        rate_limited_as_resource_exhausted: true,
        rate_limits: vec![rds::RateLimit::default()],
        max_dynamic_descriptors: number(7),
        enable_retry_after_header: true,
        ..documented_proto()
    };
    let mut json = documented();
    json.as_object_mut().unwrap().extend(
        json!({
            "status": {"code": "ServiceUnavailable"},
            "requestHeadersToAddWhenNotEnforced": [{
                "header": {"key": "a", "value": null, "rawValue": "cmF3"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "keepEmptyValue": true,
            }],
            "descriptors": [{"entries": []}, {}], "stage": "3", "localRateLimitPerDownstreamConnection": true,
            "local_cluster_rate_limit": {}, "enable_x_ratelimit_headers": "DRAFT_VERSION_03", "vh_rate_limits": 2,
            "alwaysConsumeDefaultTokenBucket": true, "rate_limited_as_resource_exhausted": true,
            "rate_limits": [{"actions": []}], "max_dynamic_descriptors": 7, "enable_retry_after_header": true,
        })
        .as_object()
        .unwrap()
        .clone(),
    );
    assert_eq!(read::<LimitProto>(url::RATE_LIMIT, json.clone()), want);
    json["token_bucket"]["fill_interval"] = json!("0.05s");
    want.token_bucket.as_mut().unwrap().fill_interval = Some(Duration { seconds: 0, nanos: 50_000_000 });
    assert_eq!(read::<LimitProto>(url::RATE_LIMIT, json), want);

    use rds::header_matcher::HeaderMatchSpecifier as Specifier;
    use string_matcher::MatchPattern;
    let text = |pattern| {
        let matcher = StringMatcher { match_pattern: Some(pattern), ignore_case: true };
        Specifier::StringMatch(matcher)
    };
    let engine = || regex_matcher::EngineType::GoogleRe2(Default::default());
    let regex = || RegexMatcher { regex: "r".into(), engine_type: Some(engine()) };
    let range = Int64Range { start: -5, end: 5 };
    let conditions = [
        (json!({"exact_match": "a"}), Specifier::ExactMatch("a".into())),
        (json!({"rangeMatch": {"start": "-5", "end": 5}}), Specifier::RangeMatch(range)),
        (json!({"present_match": true}), Specifier::PresentMatch(true)),
        (json!({"prefix_match": "a"}), Specifier::PrefixMatch("a".into())),
        (json!({"suffix_match": "a"}), Specifier::SuffixMatch("a".into())),
        (json!({"safe_regex_match": {"google_re2": {}, "regex": "r"}}), Specifier::SafeRegexMatch(regex())),
        (json!({"contains_match": "a"}), Specifier::ContainsMatch("a".into())),
        (json!({"string_match": {"exact": "a", "ignoreCase": true}}), text(MatchPattern::Exact("a".into()))),
        (json!({"string_match": {"prefix": "a", "ignore_case": true}}), text(MatchPattern::Prefix("a".into()))),
        (json!({"string_match": {"suffix": "a", "ignore_case": true}}), text(MatchPattern::Suffix("a".into()))),
        (json!({"string_match": {"contains": "a", "ignore_case": true}}), text(MatchPattern::Contains("a".into()))),
        (
            json!({"string_match": {"safeRegex": {"googleRe2": {}, "regex": "r"}, "ignore_case": true}}),
            text(MatchPattern::SafeRegex(regex())),
        ),
        (
            json!({"string_match": {"custom": {"name": "x"}, "ignore_case": true}}),
            text(MatchPattern::Custom(Default::default())),
        ),
    ];
    let (headers, specifiers): (Vec<_>, Vec<_>) = conditions.into_iter().unzip();
    let headers: Vec<_> = headers
        .into_iter()
        .map(|mut header| {
            let rest = json!({"name": "n", "invert_match": true, "treatMissingHeaderAsEmpty": true});
            header.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            header
        })
        .collect();
    let fault = json!({
        "delay": {"fixed_delay": "1.5s", "percentage": {"numerator": 1, "denominator": "TEN_THOUSAND"}},
        "abort": {"grpc_status": 14, "percentage": {"numerator": 2}, "response_body": "b"},
        "upstream_cluster": "c", "headers": headers, "downstream_nodes": ["n"], "max_active_faults": 0,
        "response_rate_limit": {"header_limit": {}}, "delay_percent_runtime": "1", "abort_percent_runtime": "2",
        "delay_duration_runtime": "3", "abort_http_status_runtime": "4", "max_active_faults_runtime": "5",
        "response_rate_limit_percent_runtime": "6", "abort_grpc_status_runtime": "7",
        "disable_downstream_cluster_stats": true, "filter_metadata": {"a": 1},
    });
    let delay = |specifier| FaultDelay {
        percentage: Some(FractionalPercent { numerator: 1, denominator: 1 }),
        fault_delay_secifier: Some(specifier),
    };
    let abort = |error| FaultAbort {
        percentage: Some(FractionalPercent { numerator: 2, denominator: 0 }),
        response_body: "b".into(),
        error_type: Some(error),
    };
    let fixed = fault_delay::FaultDelaySecifier::FixedDelay(Duration { seconds: 1, nanos: 500_000_000 });
    let header = |specifier| rds::HeaderMatcher {
        name: "n".into(),
        invert_match: true,
        treat_missing_header_as_empty: true,
        header_match_specifier: Some(specifier),
    };
    let mut want = HttpFault {
        delay: Some(delay(fixed)),
        abort: Some(abort(fault_abort::ErrorType::GrpcStatus(14))),
        upstream_cluster: "c".into(),
        headers: specifiers.into_iter().map(header).collect(),
        downstream_nodes: vec!["n".into()],
        max_active_faults: number(0),
        response_rate_limit: Some(FaultRateLimit::default()),
        delay_percent_runtime: "1".into(),
        abort_percent_runtime: "2".into(),
        delay_duration_runtime: "3".into(),
        abort_http_status_runtime: "4".into(),
        max_active_faults_runtime: "5".into(),
        response_rate_limit_percent_runtime: "6".into(),
        abort_grpc_status_runtime: "7".into(),
        disable_downstream_cluster_stats: true,
        filter_metadata: Some(Struct { fields: HashMap::new() }),
    };
    assert_eq!(read::<HttpFault>(url::FAULT, fault.clone()), want);
    let mut fault = fault;
    fault["delay"] = json!({"header_delay": {}, "percentage": {"numerator": 1, "denominator": 1}});
    fault["abort"] = json!({"header_abort": {}, "percentage": {"numerator": 2}, "responseBody": "b"});
    want.delay = Some(delay(fault_delay::FaultDelaySecifier::HeaderDelay(Default::default())));
    want.abort = Some(abort(fault_abort::ErrorType::HeaderAbort(Default::default())));
    assert_eq!(read::<HttpFault>(url::FAULT, fault.clone()), want);
    fault["abort"] = json!({"http_status": 503, "percentage": {"numerator": 2}, "responseBody": "b"});
    want.abort = Some(abort(fault_abort::ErrorType::HttpStatus(503)));
    assert_eq!(read::<HttpFault>(url::FAULT, fault), want);
}

#[test]
fn c12_a_policy_of_the_applications_own_is_named_by_a_typed_struct_a52() {
    let ours: Arc<BTreeSet<String>> = BTreeSet::from(["test.Ours".to_owned(), "bare".to_owned()]).into();
    let nobodys = Arc::default();
    let list = |policies: Vec<Any>| {
        let entry = |any| Policy {
            typed_extension_config: Some(core::TypedExtensionConfig { name: "x".into(), typed_config: Some(any) }),
        };
        let list = LoadBalancingPolicy { policies: policies.into_iter().map(entry).collect() };
        refusals_cluster::with_cluster(|c| c.load_balancing_policy = Some(list))
    };
    let balancer = |resource: &Any, ours| codec::decode_cluster_for(resource.into(), ours).map(|c| c.value.balancer);
    let config = json!({"b": [1, 2.5, null, true], "a": {"z": "text", "y": -3}});
    let custom = |type_url: &str, json| wrapped(type_url, json);
    let pick_first = || {
        let url = "type.googleapis.com/envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst";
        Any { type_url: url.into(), value: Vec::new() }
    };
    let named = |name: &str, config: &str| Balancer::Custom { name: name.into(), config: config.into() };
    let text = r#"{"a":{"y":-3,"z":"text"},"b":[1,2.5,null,true]}"#;
    for (type_url, json, want) in [
        ("type.googleapis.com/test.Ours", config, named("test.Ours", text)),
        ("any.host/of/test.Ours", json!({}), named("test.Ours", "{}")),
        ("bare", json!({"a": 0.25}), named("bare", r#"{"a":0.25}"#)),
    ] {
        let resource = list(vec![custom("test.Another", json!({"a": 1})), custom(type_url, json), pick_first()]);
        assert_eq!(balancer(&resource, &ours), Ok(want.clone()), "{type_url}");
        // As we would say it: who has none of that name takes what is next.
        for weighted in [false, true] {
            let mut cluster = Cluster { balancer: want.clone(), ..Cluster::new("c".into()) };
            cluster.locality.weighted = weighted;
            let again = codec::encode_cluster(&cluster);
            assert_eq!(balancer(&again, &ours), Ok(want.clone()), "{weighted}");
            assert_eq!(balancer(&again, &nobodys), Ok(Balancer::RoundRobin), "{weighted}");
        }
        // Control: one that the application does not have is passed over.
        assert_eq!(balancer(&resource, &nobodys), Ok(Balancer::PickFirst { shuffle: false }));
    }
    let alone = list(vec![custom("test.Ours", json!({"a": 1}))]);
    says("nobody has it", codec::decode_cluster(&alone), &Says::Refused(&["load_balancing_policy"]));
    let refused = codec::decode_cluster(&alone).unwrap_err().to_string();
    assert!(refused.contains("\"test.Ours\" as JSON"), "{refused}");
    let broken = TypedStruct { type_url: "test.Ours".into(), value: vec![vec![7]] };
    let broken = list(vec![extension::pack(WRAPPERS[0], &broken), pick_first()]);
    let at = "load_balancing_policy.policies[0]";
    says("broken", codec::decode_cluster_for((&broken).into(), &ours), &Says::Refused(&[at]));
}
