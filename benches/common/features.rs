//! What a request of the benches has on its way: all that is per request and on in a mesh.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use mesh_core::context::{RequestContext, TRACEPARENT, scope};
use mesh_core::policy::{
    CircuitBreakers, Cluster, Endpoint, OutlierDetection, PerMillionRatio, RetryBudget, RetryPolicy, RouteAction,
    Snapshot,
};
use mesh_testkit::policy;

/// One endpoint, with the breaker, the ejection and the retry policy that Istio's defaults amount to, Linkerd's budget and a
/// timeout.
pub(crate) fn snapshot(mut cluster: Cluster, endpoint: Endpoint) -> Snapshot {
    cluster.breaker = CircuitBreakers { max_requests: Some(1024), max_retries: Some(64), ..CircuitBreakers::default() };
    cluster.outlier = Some(OutlierDetection::default());
    let mut snapshot = policy::snapshot_of(cluster, [endpoint]);
    let mut routes = (*snapshot.routes).clone();
    routes.retry_budget = Some(RetryBudget {
        retry_ratio: PerMillionRatio(200_000),
        min_retries_per_second: 10,
        ttl: Duration::from_secs(10),
    });
    let host = &mut routes.virtual_hosts[0];
    host.retry = Some(RetryPolicy::istio_default());
    for route in &mut host.routes {
        if let RouteAction::Forward(forward) = &mut route.action {
            forward.timeout = Some(Duration::from_secs(15));
        }
    }
    snapshot.routes = Arc::new(routes);
    snapshot
}

/// The trace of one request in a hundred.
#[derive(Default)]
pub(crate) struct Traces(u32);

impl Traces {
    /// Makes a request: one in a hundred for a request that is served and has a trace, which the mesh carries on.
    pub(crate) async fn request<F: Future>(&mut self, work: F) -> F::Output {
        self.0 += 1;
        if !self.0.is_multiple_of(100) {
            return work.await;
        }
        let trace = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let served = RequestContext::from_headers(&HeaderMap::from_iter([(TRACEPARENT.clone(), trace)]));
        scope(Arc::new(served), work).await
    }
}
