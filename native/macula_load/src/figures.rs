//! What was found: figures with their units, as text for people and as JSON.

use std::fmt::Write;
use std::time::Duration;

use crate::latency::Latencies;

/// Figures of a scenario, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    rows: Vec<(String, Value)>,
}

#[derive(Clone, Debug)]
enum Value {
    Number(f64, &'static str),
    Text(String),
}

impl Figures {
    /// Adds a number with its unit; empty: a count.
    pub fn number(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.rows.push((name.into(), Value::Number(value, unit)));
    }

    /// Adds a time.
    pub fn time(&mut self, name: impl Into<String>, time: Duration) {
        self.number(name, time.as_secs_f64() * 1e3, "ms");
    }

    /// Adds what a series of times comes to.
    pub fn latencies(&mut self, name: &str, times: &Latencies) {
        for (share, text) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
            self.time(format!("{name} {text}"), times.quantile(share));
        }
    }

    /// Adds words.
    pub fn text(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.rows.push((name.into(), Value::Text(text.into())));
    }

    /// Adds all of `other`, under a name.
    pub fn part(&mut self, name: &str, other: Figures) {
        self.rows
            .extend(other.rows.into_iter().map(|(row, value)| (format!("{name}: {row}"), value)));
    }

    /// The number called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.rows.iter().find_map(|(row, value)| match value {
            Value::Number(number, _) if row == name => Some(*number),
            _ => None,
        })
    }

    /// A line for each.
    pub fn to_text(&self) -> String {
        let width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.rows {
            let shown = match value {
                Value::Number(number, unit) => format!("{} {unit}", decimal(*number)),
                Value::Text(text) => text.clone(),
            };
            // Writing to a String does not fail.
            let _ = writeln!(text, "{name:width$}  {}", shown.trim_end());
        }
        text
    }

    /// An object of `{"name": {"value": number, "unit": "..."}}`, or of texts.
    pub fn to_json(&self) -> String {
        let row = |(name, value): &(String, Value)| match value {
            Value::Number(number, unit) => {
                let (name, unit) = (quoted(name), quoted(unit));
                format!("{name}:{{\"value\":{},\"unit\":{unit}}}", decimal(*number))
            }
            Value::Text(text) => format!("{}:{}", quoted(name), quoted(text)),
        };
        format!("{{{}}}", self.rows.iter().map(row).collect::<Vec<_>>().join(","))
    }
}

/// As many digits as mean anything.
fn decimal(number: f64) -> String {
    if !number.is_finite() {
        return "0".into();
    }
    let digits = if number == number.trunc() || number.abs() >= 100.0 { 0 } else { 3 };
    format!("{number:.digits$}")
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            char if u32::from(char) < 0x20 => quoted.push(' '),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_twice() {
        let mut part = Figures::default();
        part.time("join", Duration::from_micros(1500));
        let mut figures = Figures::default();
        figures.number("nodes", 1000.0, "");
        figures.part("burst", part);
        figures.text("cpu", "of \"its\" own");
        assert_eq!(
            figures.to_text(),
            "nodes        1000\nburst: join  1.500 ms\ncpu          of \"its\" own\n"
        );
        let json = "{\"nodes\":{\"value\":1000,\"unit\":\"\"},\
                    \"burst: join\":{\"value\":1.500,\"unit\":\"ms\"},\"cpu\":\"of \\\"its\\\" own\"}";
        assert_eq!(figures.to_json(), json);
        assert_eq!(figures.get("burst: join"), Some(1.5));
    }
}
