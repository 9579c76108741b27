//! Linkerd's failure accrual: annotations `balancer.linkerd.io/failure-accrual…` of a Service. As in Linkerd they hold
//! together or not at all.

use std::time::Duration;

use mesh_core::policy::{FailureAccrual, PerMillion};

use super::check::Check;

const KIND: &str = "balancer.linkerd.io/failure-accrual";
const MAX_FAILURES: &str = "balancer.linkerd.io/failure-accrual-consecutive-max-failures";
const MIN_PENALTY: &str = "balancer.linkerd.io/failure-accrual-consecutive-min-penalty";
const MAX_PENALTY: &str = "balancer.linkerd.io/failure-accrual-consecutive-max-penalty";
const JITTER: &str = "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio";

/// The annotations that [`of_service`] reads.
pub(super) const KEYS: [&str; 5] = [KIND, MAX_FAILURES, MIN_PENALTY, MAX_PENALTY, JITTER];

/// What the annotations of a Service ask for. A mistake in one of them is told and costs them all, and not the
/// Service.
pub(super) fn of_service(check: &mut Check<'_>) -> Option<FailureAccrual> {
    let document = check.document();
    let read = |key: &'static str| document.annotations.get(key).map(|text| (key, text.trim()));
    let Some((_, kind)) = read(KIND) else {
        for key in KEYS.iter().filter(|key| document.annotations.contains_key(**key)) {
            check.warn(&path(key), format!("without {KIND}: consecutive it has no effect"));
        }
        return None;
    };
    if kind != "consecutive" {
        check.unenforced(&path(KIND), "the only kind that is known is \"consecutive\"");
        return None;
    }
    match consecutive(read) {
        Ok(accrual) => Some(accrual),
        Err((key, message)) => {
            check.warn(&path(key), format!("{message}; the Service has no failure accrual"));
            None
        }
    }
}

type Read<'r> = Option<(&'static str, &'r str)>;
type Wrong = (&'static str, String);

fn consecutive<'r>(read: impl Fn(&'static str) -> Read<'r>) -> Result<FailureAccrual, Wrong> {
    let mut accrual = FailureAccrual::default();
    if let Some((key, text)) = read(MAX_FAILURES) {
        let failures = text.parse().ok().filter(|failures| *failures > 0);
        accrual.max_failures = failures.ok_or_else(|| (key, format!("{text:?} is not a number above 0")))?;
    }
    if let Some((key, text)) = read(MIN_PENALTY) {
        accrual.min_penalty = time(key, text)?;
    }
    if let Some((key, text)) = read(MAX_PENALTY) {
        accrual.max_penalty = time(key, text)?;
    }
    if accrual.min_penalty.is_zero() || accrual.min_penalty > accrual.max_penalty {
        let (min, max) = (accrual.min_penalty, accrual.max_penalty);
        return Err((MIN_PENALTY, format!("{min:?} is not above 0 and at most the longest penalty, {max:?}")));
    }
    if let Some((key, text)) = read(JITTER) {
        let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        let ratio = ratio.ok_or_else(|| (key, format!("{text:?} is not a ratio from 0.0 to 1.0")))?;
        accrual.jitter = PerMillion::new((ratio * 1e6).round() as u32);
    }
    Ok(accrual)
}

/// Linkerd's grammar: a whole number and one unit.
fn time(key: &'static str, text: &str) -> Result<Duration, Wrong> {
    let wrong = || (key, format!("{text:?} is not a duration; write it like 500ms, 10s, 1m, 1h or 1d"));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

fn path(key: &str) -> String {
    format!("metadata.annotations.{key}")
}
