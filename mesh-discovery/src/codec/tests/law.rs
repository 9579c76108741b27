//! `decode(encode(p)) == p` for every kind of resource, with nothing lost on the way.

use mesh_core::policy::{DirectResponse, RouteAction, Unenforced, unenforced};
use proptest::prelude::*;

use super::conformance_inbound_routes::joined;
use super::generate::{listener, routes};
use super::generate_cluster::{cluster, endpoints};
use super::generate_inbound::inbound;
use crate::codec::{self, AnyListener, DecodeError, Decoded};

/// What comes back: the policy, and of it nothing lost; only what the policy itself says is not enforced. The
/// certificate providers it names are the encoder's choice.
fn parts<T>(decoded: Result<Decoded<T>, DecodeError>) -> Result<(T, Vec<Unenforced>), DecodeError> {
    decoded.map(|decoded| (decoded.value, decoded.unenforced))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn routes_come_back_as_they_were(mut policy in routes()) {
        // Routes that serve are a server's, which have a law of their own.
        for route in policy.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if matches!(route.action, RouteAction::NonForwarding) {
                route.action = RouteAction::DirectResponse(DirectResponse { status: 503, body: Vec::new() });
            }
        }
        let decoded = codec::decode_routes(&codec::encode_routes(&policy));
        let said = unenforced(&policy);
        prop_assert_eq!(parts(decoded), Ok((policy, said)));
    }

    #[test]
    fn clusters_come_back_as_they_were(policy in cluster()) {
        let decoded = codec::decode_cluster(&codec::encode_cluster(&policy));
        let said = unenforced(&policy);
        prop_assert_eq!(parts(decoded), Ok((policy, said)));
    }

    #[test]
    fn endpoints_come_back_as_they_were(policy in endpoints()) {
        let decoded = codec::decode_endpoints(&codec::encode_endpoints(&policy));
        let said = unenforced(&policy);
        prop_assert_eq!(parts(decoded), Ok((policy, said)));
    }

    #[test]
    fn inbound_listeners_come_back_as_they_were(policy in inbound()) {
        let decoded = codec::decode_listener(&codec::encode_inbound(&policy));
        let said = unenforced(&policy);
        prop_assert_eq!(parts(decoded), Ok((AnyListener::Inbound(policy), said)));
    }

    #[test]
    fn inbound_listeners_are_the_same_with_their_routes_apart(policy in inbound()) {
        if let Some(joined) = joined(&codec::encode_inbound(&policy)) {
            prop_assert_eq!(joined, Ok(policy));
        }
    }

    #[test]
    fn listeners_come_back_as_they_were(policy in listener()) {
        let decoded = codec::decode_listener(&codec::encode_listener(&policy));
        let said = unenforced(&policy);
        prop_assert_eq!(parts(decoded), Ok((AnyListener::Outbound(policy), said)));
    }
}
