//! A control plane that is away while endpoints die and return (R09): what was last said serves, and the client finds out
//! by itself who is there.

use std::sync::Arc;
use std::time::Duration;

use mesh_client::Client;
use mesh_core::policy::{Cluster, DestinationState, OutlierDetection, PerMillion};
use mesh_core::source::DestinationSource;
use mesh_discovery::xds::Variant;
use mesh_testkit::clock;

use crate::each_seed;
use crate::fleet::{Door, Fleet, Manner};
use crate::load::{TARGET, get, run};
use crate::plane::{BOTH, Mood, Plane, becomes, client, cluster_of, destination, endpoints_at};

const SERVERS: usize = 10;
const SECOND: Duration = Duration::from_secs(1);

fn fleet_of(plane: &Plane) -> Fleet {
    let fleet = Fleet::new(SERVERS, 8, &Manner { time: Duration::from_millis(5), ..Manner::default() });
    let outlier = OutlierDetection {
        consecutive_5xx: Some(2),
        interval: SECOND,
        base_ejection: 20 * SECOND,
        max_ejection: 20 * SECOND,
        max_ejected: PerMillion::new(500_000),
        ..OutlierDetection::default()
    };
    let cluster = Cluster { outlier: Some(outlier), ..Cluster::new("x".into()) };
    plane.put_all([destination(TARGET, "r"), cluster_of(&cluster), endpoints_at("x", fleet.endpoints())]);
    fleet
}

/// Requests by what a new client of this control plane knows.
fn requests(fleet: &Fleet, variant: Variant, plane: &Plane) -> (Client, Arc<mesh_discovery::xds::XdsClient>) {
    let discovery = Arc::new(client(variant, &[plane]));
    let fleet = fleet.clone();
    (Client::builder(discovery.clone()).connector(move |address| fleet.connect(&address)).build(), discovery)
}

#[test]
fn an_outage_in_which_half_of_the_endpoints_die_and_return_is_no_outage_of_requests_r09() {
    each_seed(1, || async {
        for variant in BOTH {
            let plane = Plane::with("x", 1);
            let fleet = fleet_of(&plane);
            let (requests, discovery) = requests(&fleet, variant, &plane);
            let mut state = discovery.destination(&TARGET.parse().unwrap());
            becomes(&mut state, "it is known", |state| matches!(state, DestinationState::Ready(_))).await;
            assert_eq!(get(&requests).await.unwrap().status(), 200);
            plane.is(Mood::Down);
            clock::pass(Duration::from_secs(12 * 3600)).await;
            let dying = async {
                clock::pass(10 * SECOND).await;
                for server in fleet.iter().take(SERVERS / 2) {
                    server.change(|manner| manner.door = Door::Shut);
                    server.recycle();
                }
                clock::pass(20 * SECOND).await;
                fleet.iter().for_each(|server| server.change(|manner| manner.door = Door::Open));
                clock::pass(60 * SECOND).await;
                fleet.seen()
            };
            let (records, seen) = tokio::join!(run(&requests, 100.0, 120 * SECOND), dying);
            // Those that die are found out within ten seconds; nothing else is felt.
            let found_out = 10 * SECOND..20 * SECOND;
            let felt = records.iter().filter(|record| record.outcome.is_err() && !found_out.contains(&record.at));
            assert_eq!(felt.map(|record| format!("{record:?}")).collect::<Vec<_>>(), Vec::<String>::new());
            for (server, before) in seen.into_iter().enumerate() {
                assert!(fleet.seen()[server] > before, "{server} is back, and nobody looks");
            }
            clock::pass(Duration::from_secs(12 * 3600)).await;
            assert_eq!(get(&requests).await.unwrap().status(), 200);

            // Control run: who has nothing from before the outage has nothing.
            let (without, _discovery) = self::requests(&fleet, variant, &plane);
            assert!(get(&without).await.is_err());
        }
    });
}
