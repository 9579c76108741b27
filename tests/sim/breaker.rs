//! Linkerd's failure accrual on a clock that jumps (R18): one request at a time on probation, whatever becomes of it,
//! and no state from which there is no way back.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use mesh_core::policy::FailureAccrual;
use mesh_testkit::clock;
use parking_lot::Mutex;

use crate::each_seed;
use crate::fleet::{Fleet, Handler, Wire};
use crate::load::{Policy, client, get};

/// What a server that is out of order does.
#[derive(Default)]
struct Patient {
    well: Mutex<bool>,
    in_hand: AtomicUsize,
    most_in_hand: AtomicUsize,
}

impl Patient {
    /// Fails after a while, or not at all; answers at once when it is well.
    fn handler(self: &Arc<Self>) -> Handler {
        let patient = self.clone();
        Arc::new(move |_| {
            let patient = patient.clone();
            async move {
                let _in_hand = patient.clone().begin();
                let mut response = Response::new(Empty::new().boxed_unsync());
                if !*patient.well.lock() {
                    clock::pass(Duration::from_millis(fastrand::u64(..200))).await;
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                response
            }
            .boxed()
        })
    }

    fn begin(self: Arc<Self>) -> impl Drop {
        self.most_in_hand.fetch_max(self.in_hand.fetch_add(1, Relaxed) + 1, Relaxed);
        Busy(self)
    }
}

struct Busy(Arc<Patient>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_hand.fetch_sub(1, Relaxed);
    }
}

const PENALTY: Duration = Duration::from_secs(4);

/// So many callers with so many requests each at a server that fails, most of them given up at any moment; then it is
/// well. Gives the most that were in its hands at once after it had been taken out, and whether the first request two
/// longest penalties later was answered.
async fn on_probation(accrual: Option<FailureAccrual>, callers: usize, requests: usize) -> (usize, bool) {
    let patient = Arc::<Patient>::default();
    let fleet = Fleet::with(1, Wire::Http2(1000), patient.handler());
    let mut policy = Policy::http2();
    policy.cluster.accrual = accrual;
    let (client, _source) = client(&fleet, &policy);
    // The first failures take it out.
    for _ in 0..8 {
        let _ = get(&client).await;
    }
    patient.most_in_hand.store(0, Relaxed);
    let asking = (0..callers).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..requests {
                clock::pass(Duration::from_millis(fastrand::u64(..500))).await;
                let patience = Duration::from_millis(fastrand::u64(1..300));
                let _ = tokio::time::timeout(patience, get(&client)).await;
            }
        })
    });
    futures_util::future::join_all(asking).await;
    let most = patient.most_in_hand.load(Relaxed);
    *patient.well.lock() = true;
    clock::pass(2 * PENALTY).await;
    let first = get(&client).await.is_ok_and(|answer| answer.status() == 200);
    let second = get(&client).await.is_ok_and(|answer| answer.status() == 200);
    (most, first && second)
}

fn accrual() -> FailureAccrual {
    let min_penalty = Duration::from_millis(500);
    FailureAccrual { max_failures: 7, min_penalty, max_penalty: PENALTY, ..FailureAccrual::default() }
}

#[test]
fn on_probation_there_is_one_request_at_a_time_and_always_a_way_back_r18() {
    each_seed(4, || async {
        assert_eq!(on_probation(Some(accrual()), 60, 20).await, (1, true));
    });
    let probed = Cell::new(0);
    each_seed(1000, || async {
        let (most, well) = on_probation(Some(accrual()), 6, 6).await;
        assert!(most <= 1 && well, "{most} at once, well: {well}");
        probed.set(probed.get() + most);
    });
    assert!(probed.get() > 0, "control: there were some on probation");
}

/// Control run: without accrual they all go through.
#[test]
fn without_accrual_a_failing_endpoint_has_many_requests_at_once_r18() {
    each_seed(1, || async {
        assert!(on_probation(None, 60, 20).await.0 > 5);
    });
}
