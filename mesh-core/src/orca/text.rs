//! The forms of a report that a person can write: `name=value` pairs and JSON, as Envoy reads them.

use serde_json::Value;

use crate::balance::EndpointReport;

/// `cpu_utilization=0.3, named_metrics.queue=7`; a colon is as good as the equals sign. Pairs that cannot be read are
/// passed over.
pub(super) fn pairs(text: &str) -> Option<EndpointReport> {
    let mut report = EndpointReport::default();
    let mut any = false;
    for pair in text.split(',') {
        let Some((name, value)) = pair.split_once(['=', ':']) else { continue };
        if let Ok(value) = value.trim().parse() {
            any |= report.set(name.trim(), value);
        }
    }
    any.then_some(report)
}

/// Protobuf's JSON: names in either case style, numbers that may be written as strings.
pub(super) fn json(text: &str) -> Option<EndpointReport> {
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return None };
    let mut report = EndpointReport::default();
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
    for (name, value) in &fields {
        let name = snake_case(name);
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    if let Some(value) = number(value) {
                        report.set(&format!("{name}.{key}"), value);
                    }
                }
            }
            value => {
                if let Some(value) = number(value) {
                    report.set(&name, value);
                }
            }
        }
    }
    Some(report)
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
