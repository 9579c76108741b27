//! What an endpoint says of its own load: ORCA reports (gRFC A51) and Prequal's probes.

use std::time::Duration;

use crate::orca::{IN_FLIGHT, LATENCY, MOST_METRICS};
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
    /// Use of memory, 0 to 1 (ORCA `mem_utilization`).
    pub memory: f64,
    /// Other metrics by the names that gRFC A114 gives them: `named_metrics.queue`, `utilization.disk`,
    /// `request_cost.db`.
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
        let named = settings.metric_names.iter().filter_map(|name| self.metric(name)).fold(0.0, f64::max);
        let used = [self.utilization, named].into_iter().find(|used| *used > 0.0).unwrap_or(self.cpu);
        let requests = self.requests_per_second;
        let errors = if self.errors_per_second > 0.0 { self.errors_per_second / requests } else { 0.0 };
        let weight = requests / (used + errors * f64::from(settings.error_penalty) / 1e6);
        // Numbers from the wire: anything but a positive finite weight is no weight.
        let weight = weight as f32;
        (used > 0.0 && requests > 0.0 && weight.is_finite() && weight > 0.0).then_some(weight)
    }

    /// A value by the name of its field in `OrcaLoadReport`, such as `cpu_utilization` or `named_metrics.queue`. A
    /// number that was not said is 0.
    pub fn metric(&self, name: &str) -> Option<f64> {
        match name {
            "rps_fractional" => Some(self.requests_per_second),
            "eps" => Some(self.errors_per_second),
            "application_utilization" => Some(self.utilization),
            "cpu_utilization" => Some(self.cpu),
            "mem_utilization" => Some(self.memory),
            _ => self.metrics.iter().find(|(known, _)| known == name).map(|(_, value)| *value),
        }
    }

    /// Sets a value by the name of its field: `rps_fractional`, `eps`, `application_utilization`, `cpu_utilization`,
    /// `mem_utilization`, or one of your own that begins with `named_metrics.`, `utilization.` or `request_cost.`.
    /// False, and nothing is set, if there is no such field, if the value is negative, infinite or not a number, or if
    /// there are 128 metrics already.
    pub fn set(&mut self, name: &str, value: f64) -> bool {
        if !value.is_finite() || value < 0.0 {
            return false;
        }
        match name {
            "rps_fractional" => self.requests_per_second = value,
            "eps" => self.errors_per_second = value,
            "application_utilization" => self.utilization = value,
            "cpu_utilization" => self.cpu = value,
            "mem_utilization" => self.memory = value,
            // Too large a number is the largest.
            IN_FLIGHT => self.in_flight = Some(value as u32),
            LATENCY => self.latency = Duration::try_from_secs_f64(value).ok(),
            _ => return self.set_own(name, value),
        }
        true
    }

    fn set_own(&mut self, name: &str, value: f64) -> bool {
        let key = ["named_metrics.", "utilization.", "request_cost."].iter().find_map(|map| name.strip_prefix(map));
        if key.is_none_or(str::is_empty) {
            return false;
        }
        let full = self.metrics.len() >= MOST_METRICS;
        match self.metrics.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None if full => return false,
            None => self.metrics.push((name.to_owned(), value)),
        }
        true
    }

    /// Takes over what `other` says; what it does not say stays.
    pub fn merge(&mut self, other: &Self) {
        for name in ["rps_fractional", "eps", "application_utilization", "cpu_utilization", "mem_utilization"] {
            if let Some(value) = other.metric(name).filter(|value| *value != 0.0) {
                self.set(name, value);
            }
        }
        for (name, value) in &other.metrics {
            self.set(name, *value);
        }
        self.in_flight = other.in_flight.or(self.in_flight);
        self.latency = other.latency.or(self.latency);
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
