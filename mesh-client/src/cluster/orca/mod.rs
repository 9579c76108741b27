//! What endpoints say of their load (ORCA, gRFC A51), and who goes by it: weighted round robin (gRFC A58), Prequal, the
//! control plane (gRFC A85), pickers of the application's own.
//!
//! Reports come with answers and are read by the request; on streams of their own and as answers to probes they are
//! read by a task of the cluster. A cluster whose policy goes by none of it has no [`Listening`], and its requests look
//! at nothing.

mod ask;
mod probe;
mod stream;
mod worker;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderMap;
use mesh_core::balance::Load;
use mesh_core::orca;
use mesh_core::policy::{self, Balancer, LoadReport};
use mesh_core::telemetry::load::Issued;

pub(super) use self::worker::start;
use super::Members;
use crate::connect::worker::Wake;

/// What one cluster wants to hear.
pub(super) struct Listening {
    heed: Heed,
    // Metrics to pass on to the control plane, if it wants any.
    metrics: Option<LoadReport>,
    // Pickers are the application's own, and hear what comes with answers.
    own: bool,
    // The task's.
    wake: Wake,
    // Probes that requests have asked for, in millionths.
    owed: AtomicU64,
}

/// What the balancer goes by.
enum Heed {
    Nothing,
    Weights(policy::WeightedRoundRobin),
    Load(policy::Prequal),
}

const ONE_PROBE: u64 = 1_000_000;
/// How long an endpoint that does not say its load in the way it was asked is not asked again.
const MUTE: Duration = Duration::from_secs(30);

impl Listening {
    /// `None` if nobody wants to hear anything. `told` = somebody passes load on to the control plane; `own` = pickers are the
    /// application's.
    pub(super) fn new(policy: &policy::Cluster, told: bool, own: bool) -> Option<Arc<Self>> {
        let heed = match policy.balancer.leaf() {
            Balancer::WeightedRoundRobin(settings) => Heed::Weights(settings.clone()),
            Balancer::Prequal(settings) => Heed::Load(settings.clone()),
            _ => Heed::Nothing,
        };
        let metrics = policy.load_report.as_ref().filter(|report| told && !report.metrics.is_empty()).cloned();
        if matches!(heed, Heed::Nothing) && metrics.is_none() && !own {
            return None;
        }
        Some(Arc::new(Self { heed, metrics, own, wake: Wake::default(), owed: AtomicU64::new(0) }))
    }

    /// Whether endpoints are asked, beside what they say with answers.
    pub(super) fn asks(&self) -> bool {
        match &self.heed {
            Heed::Weights(settings) => settings.out_of_band,
            Heed::Load(_) => true,
            Heed::Nothing => false,
        }
    }

    /// A request goes to the endpoint of this index.
    pub(super) fn request(self: &Arc<Self>, members: &Arc<Members>, index: usize) -> Option<Ear> {
        match &self.heed {
            Heed::Load(settings) => self.owe(settings.probes_per_request),
            Heed::Weights(settings) if settings.out_of_band && self.metrics.is_none() && !self.own => return None,
            Heed::Weights(_) | Heed::Nothing => {}
        }
        Some(Ear { listening: self.clone(), members: Arc::downgrade(members), index })
    }

    fn owe(&self, millionths: u32) {
        let more = u64::from(millionths);
        if self.owed.fetch_add(more, Ordering::Relaxed) + more >= ONE_PROBE {
            self.wake.wake();
        }
    }

    /// Probes to be sent now; what is left of one stays.
    fn take_owed(&self) -> u64 {
        let owed = self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| Some(owed % ONE_PROBE));
        owed.unwrap_or_else(|owed| owed) / ONE_PROBE
    }

    /// Endpoints came, went, or had their first request.
    pub(super) fn changed(&self) {
        if matches!(&self.heed, Heed::Weights(settings) if settings.out_of_band) {
            self.wake.wake();
        }
    }
}

/// Hears what one answer says.
pub(crate) struct Ear {
    listening: Arc<Listening>,
    // Held until the answer's end, which may be hours away: no set of endpoints that has been replaced stays for it.
    members: Weak<Members>,
    index: usize,
}

impl Ear {
    /// Reads an answer's headers or trailers, of a request that was `issued` for the control plane.
    pub(super) fn hear(&self, headers: &HeaderMap, load: &Load, issued: Option<&Issued>, now: Duration) {
        let Some(report) = orca::read(headers) else { return };
        let Self { listening, members, index } = self;
        match &listening.heed {
            Heed::Weights(settings) if !settings.out_of_band => load.report(&report, settings, now),
            Heed::Load(_) => {
                if let Some(in_flight) = report.in_flight {
                    load.report_load(in_flight, report.latency, 1, now);
                    // What is chosen among now has been told by the load.
                    members.upgrade().iter().for_each(|members| members.ready.reported(*index, now));
                }
            }
            Heed::Weights(_) | Heed::Nothing => {}
        }
        if listening.own {
            members.upgrade().iter().for_each(|members| members.ready.hear(*index, &report, now));
        }
        if let (Some(metrics), Some(issued)) = (&listening.metrics, issued) {
            issued.report(&report, metrics);
        }
    }
}
