//! What an endpoint says of its own load: ORCA reports (gRFC A51) and Prequal's probes.

use std::time::Duration;

use crate::policy::WeightedRoundRobin;

/// One report; what it does not say is zero or `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointReport {
    /// Requests a second (ORCA `rps_fractional`).
    pub requests_per_second: f64,
    /// Failed requests a second (ORCA `eps`).
    pub errors_per_second: f64,
    /// The application's own measure, 0 to 1 and beyond; beats `cpu` (ORCA `application_utilization`).
    pub utilization: f64,
    /// Use of the processor (ORCA `cpu_utilization`).
    pub cpu: f64,
    /// Other metrics by the names that gRFC A114 gives them, such as `named_metrics.queue`.
    pub metrics: Vec<(String, f64)>,
    /// Requests being served (Prequal).
    pub in_flight: Option<u32>,
    /// Latency at about that load (Prequal).
    pub latency: Option<Duration>,
}

impl EndpointReport {
    /// The weight this report asks for: requests for each unit of use, errors counted as use
    /// (gRFC A58). Use is the application's own measure, else the largest metric that the settings name
    /// (gRFC A114), else the processor's. `None` if the report says too little.
    pub fn weight(&self, settings: &WeightedRoundRobin) -> Option<f32> {
        let named = self.metrics.iter().filter(|(name, _)| settings.metric_names.contains(name));
        let named = named.map(|(_, value)| *value).fold(0.0, f64::max);
        let used = [self.utilization, named].into_iter().find(|used| *used > 0.0).unwrap_or(self.cpu);
        let requests = self.requests_per_second;
        let errors = if self.errors_per_second > 0.0 { self.errors_per_second / requests } else { 0.0 };
        let weight = requests / (used + errors * f64::from(settings.error_penalty) / 1e6);
        // Numbers from the wire: anything but a positive finite weight is no weight.
        let weight = weight as f32;
        (used > 0.0 && requests > 0.0 && weight.is_finite() && weight > 0.0).then_some(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_is_requests_for_each_unit_of_use() {
        let report = |requests_per_second, errors_per_second, utilization, cpu| EndpointReport {
            requests_per_second,
            errors_per_second,
            utilization,
            cpu,
            ..EndpointReport::default()
        };
        for (report, penalty, want) in [
            (report(100.0, 0.0, 0.0, 0.5), 1_000_000, Some(200.0)),
            (report(100.0, 0.0, 0.25, 0.5), 1_000_000, Some(400.0)),
            (report(100.0, 50.0, 0.5, 0.0), 1_000_000, Some(100.0)),
            (report(100.0, 50.0, 0.5, 0.0), 0, Some(200.0)),
            (report(0.0, 0.0, 0.5, 0.0), 0, None),
            (report(100.0, 0.0, 0.0, 0.0), 0, None),
            (report(f64::NAN, 0.0, 0.5, 0.0), 0, None),
            (report(f64::INFINITY, 0.0, 0.5, 0.0), 0, None),
            (report(100.0, f64::NAN, 0.5, 0.0), 0, Some(200.0)),
            (report(100.0, f64::INFINITY, 0.5, 0.0), 1, None),
        ] {
            let settings = WeightedRoundRobin { error_penalty: penalty, ..WeightedRoundRobin::default() };
            assert_eq!(report.weight(&settings), want, "{report:?}");
        }
    }

    #[test]
    fn named_metrics_stand_in_for_the_applications_own_measure() {
        let named =
            |name: &str| WeightedRoundRobin { metric_names: vec![name.into()], ..WeightedRoundRobin::default() };
        let metrics = vec![("named_metrics.queue".to_owned(), 0.5), ("named_metrics.other".to_owned(), 0.8)];
        let report = EndpointReport { requests_per_second: 100.0, cpu: 0.1, metrics, ..EndpointReport::default() };
        assert_eq!(report.weight(&named("named_metrics.queue")), Some(200.0));
        assert_eq!(report.weight(&named("named_metrics.none")), Some(1000.0));
        let own = EndpointReport { utilization: 0.25, ..report };
        assert_eq!(own.weight(&named("named_metrics.queue")), Some(400.0));
    }
}
