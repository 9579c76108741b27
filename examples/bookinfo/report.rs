//! What was seen, step by step, and the table or JSON at the end.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::apps::Result;

#[derive(Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    seconds: f64,
    observed: Map<String, Value>,
}

/// Collects steps; prints each as it ends unless the output is JSON.
pub(crate) struct Report {
    json: bool,
    steps: Vec<Step>,
}

/// What one step saw.
#[derive(Default)]
pub(crate) struct Observed {
    values: Map<String, Value>,
    failed: Vec<String>,
}

impl Observed {
    /// Notes a number or a text.
    pub(crate) fn note(&mut self, what: &str, value: impl Into<Value>) {
        self.values.insert(what.to_owned(), value.into());
    }

    /// Notes a condition that must hold.
    pub(crate) fn expect(&mut self, what: &str, holds: bool) {
        if !holds {
            self.failed.push(what.to_owned());
        }
    }
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, steps: Vec::new() }
    }

    /// A line of progress.
    pub(crate) fn say(&self, text: &str) {
        if !self.json {
            println!("{text}");
        }
    }

    /// Takes the result of a step.
    pub(crate) fn step(&mut self, name: &'static str, started: Instant, result: Result<Observed>) {
        let observed =
            result.unwrap_or_else(|error| Observed { failed: vec![error.to_string()], ..Observed::default() });
        let mut values = observed.values;
        let ok = observed.failed.is_empty();
        if !ok {
            values.insert("not_true".into(), observed.failed.into());
        }
        let seconds = round(started.elapsed());
        if !self.json {
            println!("{} {name} ({seconds} s)", if ok { "✔" } else { "✘" });
            for (what, value) in &values {
                println!("    {what}: {}", plain(value));
            }
        }
        self.steps.push(Step { name, ok, seconds, observed: values });
    }

    /// Whether everything was true.
    pub(crate) fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// The table, or one JSON object. `error` is what ended the walk early; of such a one there is no table.
    pub(crate) fn finish(&self, error: Option<&str>) -> Result<()> {
        if self.json {
            let mut object = json!({"ok": self.ok() && error.is_none(), "steps": self.steps});
            if let Some(error) = error {
                object["error"] = error.into();
            }
            println!("{object}");
            return Ok(());
        }
        if error.is_some() {
            return Ok(());
        }
        println!("\n{:<42} {:>8}  result", "step", "seconds");
        for step in &self.steps {
            println!("{:<42} {:>8}  {}", step.name, step.seconds, if step.ok { "ok" } else { "NOT TRUE" });
        }
        Ok(())
    }
}

fn round(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100.0).round() / 100.0
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    }
}
