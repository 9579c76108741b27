//! What is refused of listeners and routes, and that the refusal names every field.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction};
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener as ListenerProto};
use envoy_types::pb::envoy::config::route::v3::{
    self as rds, CorsPolicy as CorsField, FilterConfig, RouteConfiguration as RoutesProto, route::Action,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use mesh_core::policy::*;
use prost::Message;

use crate::codec::{self, AnyListener, DecodeError, Decoded, extension};

pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A policy's resource after `change`.
pub(super) fn changed<P: Message + Default>(any: Any, change: impl FnOnce(&mut P)) -> Any {
    let mut proto = P::decode(any.value.as_slice()).expect("our own encoding");
    change(&mut proto);
    Any { type_url: any.type_url, value: proto.encode_to_vec() }
}

pub(super) fn fields<T>(result: Result<Decoded<T>, DecodeError>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(e) => e.problems.into_iter().map(|p| p.field).collect(),
    }
}

fn listener() -> Listener {
    Listener::new("reviews:9080", RouteSource::Named("routes".into()))
}

pub(super) fn with_manager(change: impl FnOnce(&mut HttpConnectionManager)) -> Any {
    changed::<ListenerProto>(codec::encode_listener(&listener()), |proto| {
        let any = proto.api_listener.take().and_then(|l| l.api_listener).expect("our own encoding");
        proto.api_listener = Some(ApiListener { api_listener: Some(changed(any, change)) });
    })
}

pub(super) fn routes() -> RouteConfiguration {
    let route = Route::new(RouteMatch::any(), RouteAction::Forward(Box::new(Forward::to("c".into()))));
    let host = VirtualHost {
        name: "h".into(),
        domains: vec![Domain::new("*").expect("a domain")],
        routes: vec![route],
        headers: HeaderPolicy::default(),
        retry: None,
    };
    RouteConfiguration {
        name: "routes".into(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    }
}

pub(super) fn with_route(change: impl FnOnce(&mut rds::Route)) -> Any {
    changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        change(&mut proto.virtual_hosts[0].routes[0]);
    })
}

pub(super) fn with_action(change: impl FnOnce(&mut rds::RouteAction)) -> Any {
    with_route(|route| {
        let Some(rds::route::Action::Route(action)) = &mut route.action else { panic!("a forwarding route") };
        change(action);
    })
}

#[test]
fn every_problem_is_named_at_once() {
    let resource = with_manager(|m| {
        m.xff_num_trusted_hops = 1;
        m.route_specifier = None;
        m.http_filters.clear();
    });
    let error = codec::decode_listener(&resource).expect_err("a refusal");
    let at = |name: &str| format!("api_listener.api_listener{name}");
    let found: Vec<&str> = error.problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(found, [at(".xff_num_trusted_hops"), at(""), at(".http_filters")]);
    assert!(error.to_string().starts_with("listener reviews:9080 is refused: api_listener"), "{error}");
}

#[test]
fn an_unknown_filter_is_refused_unless_it_is_optional() {
    let unknown = |is_optional| {
        let config = Any { type_url: "type.googleapis.com/some.Filter".into(), value: Vec::new() };
        codec::decode_listener(&with_manager(|m| {
            m.http_filters.insert(0, codec::filter::encode("some", config, is_optional));
        }))
    };
    assert_eq!(fields(unknown(false)), ["api_listener.api_listener.http_filters[0]"]);
    let decoded = unknown(true).expect("accepted");
    assert_eq!(decoded.unenforced.len(), 1);
    let AnyListener::Outbound(listener) = decoded.value else { panic!("a client's listener") };
    let kind = HttpFilterKind::Skipped { type_url: "type.googleapis.com/some.Filter".into() };
    assert_eq!(listener.filters, [HttpFilter { name: "some".into(), kind }]);
}

#[test]
fn filters_need_names_of_their_own_and_the_router_last() {
    let resource = with_manager(|m| {
        let router = m.http_filters[0].clone();
        m.http_filters.push(router);
    });
    let at = |name: &str| format!("api_listener.api_listener.http_filters{name}");
    assert_eq!(fields(codec::decode_listener(&resource)), [at("[0]"), at("[1].name")]);
}

#[test]
fn an_authorization_filter_of_the_client_side_is_refused() {
    let resource = with_manager(|m| {
        let rbac = Any { type_url: extension::url::RBAC.into(), value: Vec::new() };
        m.http_filters.insert(0, codec::filter::encode("rbac", rbac, false));
    });
    assert_eq!(fields(codec::decode_listener(&resource)), ["api_listener.api_listener.http_filters[0]"]);
}

#[test]
fn format_operators_in_header_values_are_named() {
    let with_value = |value: &str| {
        let header = core::HeaderValue { key: "x-a".into(), value: value.into(), ..Default::default() };
        codec::decode_routes(&with_route(|route| {
            route.request_headers_to_add.push(core::HeaderValueOption {
                header: Some(header),
                append_action: HeaderAppendAction::AddIfAbsent.into(),
                ..Default::default()
            });
        }))
    };
    let error = with_value("%DOWNSTREAM_REMOTE_ADDRESS% x").expect_err("a refusal");
    assert_eq!(error.problems[0].field, "virtual_hosts[0].routes[0].request_headers_to_add[0].header.value");
    assert!(error.problems[0].reason.contains("%DOWNSTREAM_REMOTE_ADDRESS%"), "{error}");
    assert!(with_value("5%").is_err());
    let headers = with_value("100%%").expect("accepted").value.virtual_hosts[0].routes[0].headers.clone();
    assert_eq!(headers.request.write[0].value, "100%");
}

#[test]
fn matches_that_would_be_wider_than_meant_are_refused() {
    let at = "virtual_hosts[0].routes[0].match";
    let resource = with_route(|route| {
        let matcher = route.r#match.as_mut().expect("a match");
        matcher.path_specifier = None;
        matcher.dynamic_metadata.push(Default::default());
        matcher.headers.push(rds::HeaderMatcher { name: "bad name".into(), ..Default::default() });
    });
    let expected = [at.to_owned(), format!("{at}.dynamic_metadata"), format!("{at}.headers[0].name")];
    assert_eq!(fields(codec::decode_routes(&resource)), expected);
}

#[test]
fn a_route_without_a_known_cluster_is_skipped_and_reported() {
    let decoded = codec::decode_routes(&with_action(|a| a.cluster_specifier = None)).expect("accepted");
    assert_eq!(decoded.value.virtual_hosts[0].routes, []);
    assert_eq!(decoded.unenforced[0].field, "virtual_hosts[0].routes[0].route");
    assert_eq!(decoded.unenforced[0].resource, "routes routes");
}

#[test]
fn weights_must_sum_to_something() {
    let resource = with_action(|a| {
        let split = rds::WeightedCluster {
            clusters: vec![rds::weighted_cluster::ClusterWeight { name: "v1".into(), ..Default::default() }],
            ..Default::default()
        };
        a.cluster_specifier = Some(rds::route_action::ClusterSpecifier::WeightedClusters(split));
    });
    assert_eq!(fields(codec::decode_routes(&resource)), ["virtual_hosts[0].routes[0].route.weighted_clusters"]);
}

#[test]
fn retry_policies_follow_a44() {
    let resource = with_action(|a| {
        a.retry_policy = Some(rds::RetryPolicy { num_retries: number(0), ..Default::default() });
    });
    let at = "virtual_hosts[0].routes[0].route.retry_policy";
    assert_eq!(fields(codec::decode_routes(&resource)), [format!("{at}.num_retries")]);

    let resource = with_action(|a| {
        a.retry_policy = Some(rds::RetryPolicy {
            retry_on: "unavailable,no-such-token".into(),
            retry_back_off: Some(rds::retry_policy::RetryBackOff {
                base_interval: Some(Duration { seconds: 0, nanos: 400_000 }),
                max_interval: None,
            }),
            ..Default::default()
        });
    });
    let decoded = codec::decode_routes(&resource).expect("accepted");
    assert_eq!(decoded.unenforced[0].field, format!("{at}.retry_on[\"no-such-token\"]"));
    let RouteAction::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else {
        panic!("a forwarding route");
    };
    let retry = forward.retry.as_ref().expect("a policy");
    assert_eq!(retry.attempts, 1);
    assert_eq!(retry.backoff_base.as_millis(), 1);
    assert_eq!(retry.backoff_max.as_millis(), 10);
}

#[test]
fn domains_are_served_once() {
    let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        let mut second = proto.virtual_hosts[0].clone();
        second.domains = vec!["a*b".into(), "*".into()];
        proto.virtual_hosts.push(second);
    });
    let expected = ["virtual_hosts[1].domains[0]", "virtual_hosts[1].domains[1]"];
    assert_eq!(fields(codec::decode_routes(&resource)), expected);
}

#[test]
fn a_virtual_hosts_fault_holds_for_routes_without_their_own() {
    let fault = Fault { abort: Some(FaultAbort::with(AbortStatus::Http(503), PerMillion::ALL)), ..Default::default() };
    let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        let config = extension::pack(extension::url::FAULT, &codec::fault::encode(&fault));
        proto.virtual_hosts[0].typed_per_filter_config.insert(FAULT_FILTER.into(), config);
    });
    let decoded = codec::decode_routes(&resource).expect("accepted");
    let filters = &decoded.value.virtual_hosts[0].routes[0].filters;
    assert_eq!(*filters[FAULT_FILTER], FilterOverride::Fault(fault));
}

#[test]
fn routes_share_what_their_virtual_host_says_of_filters_and_cors() {
    let fault = |status| Fault {
        abort: Some(FaultAbort::with(AbortStatus::Http(status), PerMillion::ALL)),
        ..Default::default()
    };
    let pack = |status| extension::pack(extension::url::FAULT, &codec::fault::encode(&fault(status)));
    let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        let host = &mut proto.virtual_hosts[0];
        host.typed_per_filter_config.insert(FAULT_FILTER.into(), pack(503));
        let cors = CorsPolicy { allow_methods: "GET".into(), ..Default::default() };
        host.typed_per_filter_config.insert("cors".into(), extension::pack(extension::url::CORS_POLICY, &cors));
        host.routes = vec![host.routes[0].clone(); 3];
        host.routes[2].typed_per_filter_config.insert("own".into(), pack(504));
    });
    let decoded = codec::decode_routes(&resource).expect("accepted");
    let [a, b, own] = &decoded.value.virtual_hosts[0].routes[..] else { panic!("three routes") };
    assert!(Arc::ptr_eq(&a.filters, &b.filters));
    assert!(Arc::ptr_eq(&a.filters[FAULT_FILTER], &own.filters[FAULT_FILTER]), "beside one of its own too");
    assert_eq!(*own.filters["own"], FilterOverride::Fault(fault(504)), "control: what differs is its own");
    let cors = [a, b, own].map(|route| match &route.action {
        RouteAction::Forward(forward) => forward.cors.as_ref().unwrap(),
        other => panic!("{other:?}"),
    });
    assert!(cors.iter().all(|one| Arc::ptr_eq(one, cors[0])), "{cors:?}");
}

/// What a route says of CORS beats what its virtual host says, be it that there is none.
#[test]
fn a_route_without_cors_does_not_inherit_its_virtual_hosts() {
    let of = |methods: &str| CorsPolicy { allow_methods: methods.into(), ..Default::default() };
    let pack = |policy: &CorsPolicy| extension::pack(extension::url::CORS_POLICY, policy);
    let switch = |config: Option<Any>, disabled| {
        extension::pack(extension::url::FILTER_CONFIG, &FilterConfig { config, is_optional: true, disabled })
    };
    let none = CorsPolicy {
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: Some(Default::default()),
            ..Default::default()
        }),
        ..of("GET")
    };
    // The instance's name, what the host's field and filter configuration say, and the route's; what holds.
    let on = switch(Some(Any::default()), false);
    for (name, field, host, route, want) in [
        ("cors", None, Some("GET"), Some(on.clone()), Some("GET")),
        ("envoy.filters.http.cors", None, Some("GET"), Some(on), Some("GET")),
        ("cors", None, Some("GET"), None, Some("GET")),
        ("cors", None, Some("GET"), Some(pack(&of("PUT"))), Some("PUT")),
        ("cors", None, Some("GET"), Some(switch(Some(pack(&of("PUT"))), true)), None),
        ("cors", None, Some("GET"), Some(switch(None, true)), None),
        ("cors", None, Some("GET"), Some(pack(&none)), None),
        ("envoy.filters.http.cors", Some("GET"), None, None, Some("GET")),
        ("envoy.filters.http.cors", Some("GET"), None, Some(switch(None, true)), None),
        ("envoy.filters.http.cors", Some("GET"), Some("PUT"), None, Some("PUT")),
    ] {
        let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
            let proto = &mut proto.virtual_hosts[0];
            let older = |methods: &str| CorsField { allow_methods: methods.into(), ..Default::default() };
            proto.cors = field.map(older);
            let configs = &mut proto.typed_per_filter_config;
            configs.extend(host.map(|methods| (name.to_owned(), pack(&of(methods)))));
            proto.routes.truncate(1);
            proto.routes[0].typed_per_filter_config =
                route.clone().map(|any| (name.to_owned(), any)).into_iter().collect();
        });
        let decoded = codec::decode_routes(&resource).expect("accepted");
        let RouteAction::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else {
            panic!("it forwards")
        };
        let methods = forward.cors.as_ref().map(|cors| cors.allow_methods.join(","));
        assert_eq!(methods.as_deref(), want, "{name} {field:?} {host:?} {route:?}");
    }
}

/// A host that turns CORS off hides nothing from a route that turns it on.
#[test]
fn a_route_that_turns_cors_on_has_the_innermost_policy() {
    let policy = CorsPolicy { allow_methods: "GET".into(), ..Default::default() };
    let policy = extension::pack(extension::url::CORS_POLICY, &policy);
    let switch = |config: Option<Any>, disabled| {
        extension::pack(extension::url::FILTER_CONFIG, &FilterConfig { config, is_optional: true, disabled })
    };
    let (on, off) = (switch(Some(Any::default()), false), switch(None, true));
    for name in ["cors", "envoy.filters.http.cors"] {
        for (route, want) in [(Some(on.clone()), Some("GET")), (None, None)] {
            let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
                proto.typed_per_filter_config.insert(name.into(), policy.clone());
                let host = &mut proto.virtual_hosts[0];
                host.typed_per_filter_config.insert(name.into(), off.clone());
                host.routes[0].typed_per_filter_config =
                    route.clone().map(|any| (name.to_owned(), any)).into_iter().collect();
            });
            let decoded = codec::decode_routes(&resource).expect("accepted");
            let RouteAction::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else {
                panic!("it forwards")
            };
            let methods = forward.cors.as_ref().map(|cors| cors.allow_methods.join(","));
            assert_eq!(methods.as_deref(), want, "{name} {route:?}");
        }
    }
}

#[test]
fn a_routes_own_field_for_cors_beats_its_virtual_hosts() {
    let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        let older = |methods: &str| Some(CorsField { allow_methods: methods.into(), ..Default::default() });
        proto.virtual_hosts[0].cors = older("GET");
        let Some(Action::Route(action)) = &mut proto.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
        action.cors = older("PUT");
    });
    let decoded = codec::decode_routes(&resource).expect("accepted");
    let RouteAction::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    assert_eq!(forward.cors.as_ref().unwrap().allow_methods, ["PUT"]);
}

#[test]
fn grpc_clients_are_told_the_timeout_in_the_field_they_read() {
    let mut policy = routes();
    let RouteAction::Forward(forward) = &mut policy.virtual_hosts[0].routes[0].action else {
        panic!("a forwarding route");
    };
    forward.timeout = Some(std::time::Duration::from_secs(3));
    changed::<RoutesProto>(codec::encode_routes(&policy), |proto| {
        let Some(rds::route::Action::Route(action)) = &proto.virtual_hosts[0].routes[0].action else {
            panic!("a forwarding route");
        };
        let three = Some(Duration { seconds: 3, nanos: 0 });
        assert_eq!(action.timeout, three);
        let max = action.max_stream_duration.expect("set");
        assert_eq!((max.max_stream_duration, max.grpc_timeout_header_max), (None, three));
    });
    with_action(|action| {
        assert_eq!(action.timeout, Some(Duration::default()), "no timeout is an explicit 0");
        assert_eq!(action.max_stream_duration, None);
    });
}

#[test]
fn s81_a_resource_of_another_type_or_of_no_sense_is_refused_by_name() {
    let mut resource = codec::encode_cluster(&Cluster::new("c".into()));
    assert_eq!(codec::decode_cluster(&resource).expect("the control").value.name.as_str(), "c");
    let error = codec::decode_routes(&resource).expect_err("a refusal");
    assert!(error.to_string().contains("RouteConfiguration"), "{error}");
    resource.value.push(7);
    let error = codec::decode_cluster(&resource).expect_err("a refusal");
    assert!(error.to_string().contains("not a protobuf message"), "{error}");
}
