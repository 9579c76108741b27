//! `decode(encode(p)) == p`, with nothing left unenforced, for every kind of resource.

use mesh_core::policy::{HttpFilterKind, Unenforced};
use proptest::prelude::*;

use super::generate::{listener, routes};
use super::generate_cluster::{cluster, endpoints};
use super::generate_inbound::inbound;
use crate::codec::{self, AnyListener, Decoded};

fn whole<T>(value: T, unenforced: Vec<Unenforced>) -> Decoded<T> {
    Decoded { value, unenforced }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn routes_come_back_as_they_were(policy in routes()) {
        let decoded = codec::decode_routes(&codec::encode_routes(&policy));
        prop_assert_eq!(decoded, Ok(whole(policy, Vec::new())));
    }

    #[test]
    fn clusters_come_back_as_they_were(policy in cluster()) {
        let decoded = codec::decode_cluster(&codec::encode_cluster(&policy));
        prop_assert_eq!(decoded, Ok(whole(policy, Vec::new())));
    }

    #[test]
    fn endpoints_come_back_as_they_were(policy in endpoints()) {
        let decoded = codec::decode_endpoints(&codec::encode_endpoints(&policy));
        prop_assert_eq!(decoded, Ok(whole(policy, Vec::new())));
    }

    #[test]
    fn inbound_listeners_come_back_as_they_were(policy in inbound()) {
        let decoded = codec::decode_listener(&codec::encode_inbound(&policy));
        let decoded = decoded.expect("accepted");
        let skipped = policy.filters.iter().filter(|f| matches!(f.kind, HttpFilterKind::Skipped { .. })).count();
        prop_assert_eq!(decoded.value, AnyListener::Inbound(policy));
        // Only filters that the policy itself calls skipped are reported.
        prop_assert_eq!(decoded.unenforced.len(), skipped);
    }

    #[test]
    fn listeners_come_back_as_they_were(policy in listener()) {
        // Only filters that the policy itself calls skipped are reported.
        let decoded = codec::decode_listener(&codec::encode_listener(&policy)).expect("accepted");
        let skipped = decoded.unenforced.len();
        prop_assert_eq!(decoded.value, AnyListener::Outbound(policy.clone()));
        let expected = policy.filters.iter().filter(|f| matches!(f.kind, HttpFilterKind::Skipped { .. }));
        prop_assert_eq!(skipped, expected.count());
    }
}
