//! gRPC's rules for filters that differ from place to place: which of several configurations holds (gRFC A39).

use envoy_types::pb::envoy::config::route::v3::{
    self as rds, RouteConfiguration as RoutesProto, route_action::ClusterSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSessionPerRoute, stateful_session_per_route::Override,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_core::policy::*;

use super::conformance::{decoded_forward, decoded_route};
use super::refusals::{changed, number, routes};
use crate::codec::{self, extension, extension::url};

/// What one filter is at table, virtual host, route and entry of a split, and what it is for the entry then.
#[test]
fn l3_the_innermost_configuration_holds_wherever_the_filter_was_turned_off_a39() {
    let abort = |status| {
        let abort = Some(FaultAbort::with(AbortStatus::Http(status), PerMillion::ALL));
        Fault { abort, ..Fault::default() }
    };
    let fault = |status| Some(extension::pack(url::FAULT, &codec::fault::encode(&abort(status))));
    let switch = |config, disabled| {
        let switch = rds::FilterConfig { config, disabled, ..Default::default() };
        Some(extension::pack(url::FILTER_CONFIG, &switch))
    };
    let (on, off) = (|| switch(Some(Any::default()), false), || switch(None, true));
    let idle = StatefulSessionPerRoute { r#override: Some(Override::Disabled(true)) };
    let idle = || Some(extension::pack(url::SESSION_PER_ROUTE, &idle));
    let is = |status| FilterOverride::Fault(abort(status));
    for (places, want_of_route, want_of_entry) in [
        ([fault(501), off(), None, on()], Some(FilterOverride::Disabled), is(501)),
        ([fault(501), fault(502), off(), on()], Some(FilterOverride::Disabled), is(502)),
        ([fault(501), off(), off(), on()], Some(FilterOverride::Disabled), is(501)),
        ([fault(501), off(), fault(503), off()], Some(is(503)), FilterOverride::Disabled),
        // The route's own stays the route's.
        ([None, off(), fault(503), on()], Some(is(503)), FilterOverride::Enabled),
        ([fault(501), off(), on(), on()], Some(is(501)), FilterOverride::Enabled),
        // A session filter that is to do nothing is configured so.
        ([None, idle(), on(), on()], Some(FilterOverride::Disabled), FilterOverride::Disabled),
        // The controls: nothing is configured anywhere.
        ([None, off(), None, on()], Some(FilterOverride::Disabled), FilterOverride::Enabled),
        ([None, None, None, on()], None, FilterOverride::Enabled),
    ] {
        let case = format!("{places:?}");
        let [table, host, route, entry] = places.map(|any| any.map(|any| ("f".to_owned(), any)));
        let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
            proto.typed_per_filter_config.extend(table);
            let first = &mut proto.virtual_hosts[0];
            first.typed_per_filter_config.extend(host);
            first.routes[0].typed_per_filter_config = route.into_iter().collect();
            let Some(rds::route::Action::Route(action)) = &mut first.routes[0].action else { panic!("a route") };
            let part = rds::weighted_cluster::ClusterWeight {
                name: "v1".into(),
                weight: number(1),
                typed_per_filter_config: entry.into_iter().collect(),
                ..Default::default()
            };
            let split = rds::WeightedCluster { clusters: vec![part], ..Default::default() };
            action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(split));
        });
        let of_route = decoded_route(&resource).filters.get("f").map(|own| FilterOverride::clone(own));
        assert_eq!(of_route, want_of_route, "{case}");
        let ClusterChoice::Weighted(split) = decoded_forward(&resource).to else { panic!("a split") };
        assert_eq!(*split.entries()[0].filters["f"], want_of_entry, "{case}");
    }
}
