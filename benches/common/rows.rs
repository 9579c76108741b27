//! Rows with their goals, as a table or as JSON.

use serde_json::{Value, json};

/// One number.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    /// At most this. None = told for information.
    pub(crate) goal: Option<f64>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, value: f64, goal: impl Into<Option<f64>>) -> Self {
        Self { name: name.into(), unit, value, goal: goal.into() }
    }

    fn json(&self) -> Value {
        let mut row = json!({"name": self.name, "unit": self.unit, "value": rounded(self.value)});
        if let Some(goal) = self.goal {
            row["goal"] = json!({"at_most": goal, "met": self.value <= goal});
        }
        row
    }
}

/// Prints all rows.
pub(crate) fn print(rows: &[Row], json: bool) {
    if json {
        println!("{}", json!({"rows": rows.iter().map(Row::json).collect::<Vec<_>>()}));
        return;
    }
    println!("{:<56} {:>12} {:<8} {:>10}", "row", "value", "unit", "at most");
    for Row { name, unit, value, goal } in rows {
        let (goal, verdict) = match goal {
            None => (String::new(), ""),
            Some(goal) => (goal.to_string(), if value <= goal { "" } else { "  missed" }),
        };
        println!("{name:<56} {:>12} {unit:<8} {goal:>10}{verdict}", rounded(*value));
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
