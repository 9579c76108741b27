//! No bytes make a decoder panic, and what is accepted is in normal form.

use envoy_types::pb::google::protobuf::Any;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::generate::{listener, routes};
use super::generate_cluster::{cluster, endpoints};
use super::generate_inbound::inbound;
use crate::codec::{self, fuzzing};

/// Decodes as every type; what is accepted must survive another round.
fn decode_all(any: &Any) {
    fuzzing::listener(&any.value);
    fuzzing::routes(&any.value);
    fuzzing::cluster(&any.value);
    fuzzing::endpoints(&any.value);
    fuzzing::joined(&any.value);
}

/// Changes a few bytes, and perhaps cuts the end off.
fn mutate(mut any: Any, edits: &[(Index, u8)], cut: Option<Index>) -> Any {
    if !any.value.is_empty() {
        for (index, byte) in edits {
            let at = index.index(any.value.len());
            any.value[at] = *byte;
        }
        if let Some(cut) = cut {
            any.value.truncate(cut.index(any.value.len()));
        }
    }
    any
}

/// Boxed, for the generators of all five side by side outgrow a test's stack.
fn valid() -> impl Strategy<Value = Any> {
    prop_oneof![
        listener().prop_map(|l| codec::encode_listener(&l)).boxed(),
        inbound().prop_map(|l| codec::encode_inbound(&l)).boxed(),
        routes().prop_map(|r| codec::encode_routes(&r)).boxed(),
        cluster().prop_map(|c| codec::encode_cluster(&c)).boxed(),
        endpoints().prop_map(|e| codec::encode_endpoints(&e)).boxed(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(value in vec(any::<u8>(), 0..256)) {
        decode_all(&Any { type_url: String::new(), value });
    }

    #[test]
    fn what_is_read_straight_from_the_bytes_is_what_the_whole_decoder_reads(
        policy in endpoints(),
        edits in vec(any::<(Index, u8)>(), 0..4),
        cut in proptest::option::weighted(0.2, any::<Index>()),
    ) {
        let resource = mutate(codec::encode_endpoints(&policy), &edits, cut);
        if let Some(value) = codec::plain::read(&resource.value, &Default::default()) {
            let (unenforced, providers) = (Vec::new(), Vec::new());
            let whole = codec::decode_all_endpoints((&resource).into());
            prop_assert_eq!(whole, Ok(codec::Decoded { value, unenforced, providers }));
        }
    }

    /// Control run of the one above: most assignments are read that way, and nearly all of them are plain.
    #[test]
    fn plain_endpoints_are_read_straight_from_the_bytes(mut policy in endpoints()) {
        policy.drops.clear();
        policy.overprovisioning_factor = None;
        policy.cluster = "c".to_owned();
        for endpoint in policy.localities.iter_mut().flat_map(|group| &mut group.endpoints) {
            endpoint.additional_addresses = Box::default();
            let metadata = std::sync::Arc::make_mut(&mut endpoint.metadata);
            (metadata.proxy, metadata.health_check) = (None, Default::default());
            if let mesh_core::policy::Address::Unix(path) = &endpoint.address {
                endpoint.address = mesh_core::policy::Address::Name { host: path.clone(), port: 1 };
            }
        }
        prop_assert_eq!(codec::plain::read(&codec::encode_endpoints(&policy).value, &Default::default()), Some(policy));
    }

    #[test]
    fn a_listener_and_its_routes_say_the_same_in_one_piece_whatever_they_say(
        policy in inbound(),
        edits in vec(any::<(bool, Index, u8)>(), 0..4),
    ) {
        let Some((listener, routes)) = mesh_testkit::xds::apart(&codec::encode_inbound(&policy).value, "r") else {
            return Ok(());
        };
        let mut halves = [listener, routes];
        for (half, index, byte) in edits {
            let half = &mut halves[usize::from(half)];
            let at = index.index(half.len());
            half[at] = byte;
        }
        fuzzing::joined(&fuzzing::framed(&halves[0], &halves[1]));
    }

    #[test]
    fn mutated_resources_never_panic(
        resource in valid(),
        edits in vec(any::<(Index, u8)>(), 0..4),
        cut in proptest::option::weighted(0.2, any::<Index>()),
    ) {
        decode_all(&mutate(resource, &edits, cut));
    }
}

/// The deepest message that protobuf's own limit lets through, and one far beyond.
#[test]
fn nesting_is_bounded() {
    use envoy_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy, load_balancing_policy::Policy};
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
    use mesh_core::policy::{
        AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundListener, InboundTls, Permission, Principal,
    };

    let mut accepted = Vec::new();
    for depth in [10, 60, 1000] {
        let mut permission = Permission::Any;
        for _ in 0..depth {
            permission = Permission::Not(Box::new(permission));
        }
        let rule =
            AuthorizationRule { name: "r".into(), permissions: vec![permission], principals: vec![Principal::Any] };
        let policy =
            AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("p", AuthorizationAction::Allow) };
        let mut listener = InboundListener::new("l", ([0, 0, 0, 0], 80).into(), InboundTls::Disable);
        listener.authorization.push(policy);
        accepted.push(codec::decode_listener(&codec::encode_inbound(&listener)).is_ok());
    }
    assert_eq!(accepted, [true, true, false]);

    // Every level is bytes of its own here, so protobuf counts from 0 again.
    let mut list = LoadBalancingPolicy::default();
    for _ in 0..200 {
        let wrapper = WrrLocality { endpoint_picking_policy: Some(list) };
        let url = "type.googleapis.com/envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality";
        let config =
            TypedExtensionConfig { name: "w".into(), typed_config: Some(codec::extension::pack(url, &wrapper)) };
        list = LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(config) }] };
    }
    let cluster = Cluster { name: "c".into(), load_balancing_policy: Some(list), ..Default::default() };
    let error = codec::decode_cluster(&codec::extension::pack(codec::CLUSTER, &cluster)).expect_err("a refusal");
    assert!(error.to_string().contains("nested deeper than 16"), "{error}");
}
