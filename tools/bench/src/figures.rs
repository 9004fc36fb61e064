//! What a scenario found: a line of JSON, a line of the table, and whether the bars hold.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

/// The longest latency that is told apart from longer ones.
const LATENCY_MAX: u64 = 60_000_000_000;

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// Latencies, to a thousandth.
#[derive(Debug, Clone)]
pub(crate) struct Histogram(Option<hdrhistogram::Histogram<u64>>);

impl Default for Histogram {
    fn default() -> Self {
        Self(hdrhistogram::Histogram::new_with_max(LATENCY_MAX, 3).ok())
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, latency: Duration) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX));
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Both have the same range.
            let _ = histogram.add(other);
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.as_ref().map_or(0, hdrhistogram::Histogram::len)
    }

    /// `None` if there is none at all.
    pub(crate) fn latency(&self) -> Option<Latency> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999) })
    }
}

/// In microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// What was found in one case of a scenario.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) case: String,
    /// Delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) messages_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency_us: Option<Latency>,
    /// Of the process that is measured, for each message delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us_per_message: Option<f64>,
    /// Resident octets of the process that is measured, at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_octets: Option<u64>,
    /// What has no column of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ratios: Vec<Ratio>,
}

/// A figure beside what it is to be.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ratio {
    pub(crate) what: String,
    pub(crate) value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bar: Option<Bar>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AtLeast(bar) => write!(f, "at least {}", short(bar)),
            Self::AtMost(bar) => write!(f, "at most {}", short(bar)),
        }
    }
}

impl Row {
    pub(crate) fn new(scenario: &'static str, case: impl Into<String>) -> Self {
        Self {
            scenario,
            case: case.into(),
            messages_per_s: None,
            lost: None,
            latency_us: None,
            cpu_us_per_message: None,
            memory_octets: None,
            ratios: Vec::new(),
        }
    }

    /// Adds a figure without a bar.
    pub(crate) fn tell(&mut self, what: impl Into<String>, value: f64) {
        self.ratios.push(Ratio { what: what.into(), value, bar: None });
    }

    /// Adds one with a bar.
    pub(crate) fn hold(&mut self, what: impl Into<String>, value: f64, bar: Bar) {
        self.ratios.push(Ratio { what: what.into(), value, bar: Some(bar) });
    }

    /// The bars that do not hold.
    pub(crate) fn missed(&self) -> impl Iterator<Item = &Ratio> {
        self.ratios.iter().filter(|ratio| !ratio.holds())
    }
}

impl Ratio {
    fn holds(&self) -> bool {
        match self.bar {
            // What could not be measured is no success.
            Some(Bar::AtLeast(bar)) => self.value >= bar,
            Some(Bar::AtMost(bar)) => self.value <= bar,
            None => true,
        }
    }
}

/// The rows as a table in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| | | messages/s | lost | p50 / p99 / p99.9 µs | CPU µs a message | MiB | |\n\
         |---|---|--:|--:|--:|--:|--:|---|\n",
    );
    let mut scenario = "";
    for row in rows {
        let name = if row.scenario == scenario { "" } else { row.scenario };
        scenario = row.scenario;
        let latency =
            row.latency_us.map(|it| format!("{} / {} / {}", short(it.p50), short(it.p99), short(it.p999)));
        let notes: Vec<_> = row.ratios.iter().map(note).collect();
        let cells = [
            name.to_owned(),
            row.case.clone(),
            row.messages_per_s.map(thousands).unwrap_or_default(),
            row.lost.map(|it| it.to_string()).unwrap_or_default(),
            latency.unwrap_or_default(),
            row.cpu_us_per_message.map(short).unwrap_or_default(),
            row.memory_octets.map(|it| short(it as f64 / MIB)).unwrap_or_default(),
            notes.join("; "),
        ];
        // A String takes everything.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn note(ratio: &Ratio) -> String {
    let found = format!("{} {}", short(ratio.value), ratio.what);
    let verdict = if ratio.holds() { "" } else { ", **missed**" };
    ratio.bar.map_or(found.clone(), |bar| format!("{found} ({bar}{verdict})"))
}

/// What was found beside the bars, and nothing else, as a table in Markdown.
pub(crate) fn summary(rows: &[Row]) -> String {
    let mut text = String::from("| | found | bar |\n|---|---|---|\n");
    for row in rows {
        for ratio in &row.ratios {
            let Some(bar) = ratio.bar else { continue };
            let (Row { scenario, case, .. }, found) = (row, short(ratio.value));
            let verdict = if ratio.holds() { "" } else { ", **missed**" };
            // A String takes everything.
            let _ = writeln!(text, "| {scenario}: {case} | {found} {} | {bar}{verdict} |", ratio.what);
        }
    }
    text
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The middle one; no number if there is none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_that_is_missed_or_could_not_be_measured_is_named() {
        let mut row = Row::new("flood", "QoS 0");
        row.hold("a", 0.5, Bar::AtLeast(0.6));
        row.hold("b", 0.6, Bar::AtLeast(0.6));
        row.hold("c", 3.1, Bar::AtMost(3.0));
        row.hold("d", f64::NAN, Bar::AtMost(3.0));
        row.tell("e", 9.0);
        assert_eq!(row.missed().map(|ratio| ratio.what.as_str()).collect::<Vec<_>>(), ["a", "c", "d"]);
    }

    #[test]
    fn a_row_of_the_table_has_what_was_found_and_nothing_else() {
        let mut row = Row::new("flood", "QoS 0");
        row.messages_per_s = Some(304_845.2);
        row.lost = Some(0);
        row.latency_us = Some(Latency { p50: 1666.0, p99: 8270.4, p999: 0.25 });
        row.memory_octets = Some(9_122_611);
        row.tell("more than that", -500.0);
        row.hold("of the bare relay's", 0.5, Bar::AtLeast(0.6));
        let table = table(&[row.clone(), Row::new("flood", "QoS 1"), Row::new("idle", "")]);
        let rows: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| flood | QoS 0 | 304,845 | 0 | 1,666 / 8,270 / 0.25 |  | 8.70 | -500 more than that; 0.50 of the bare relay's (at least 0.60, **missed**) |",
                "|  | QoS 1 |  |  |  |  |  |  |",
                "| idle |  |  |  |  |  |  |  |",
            ]
        );
        assert_eq!(
            summary(&[row]).lines().skip(2).collect::<Vec<_>>(),
            ["| flood: QoS 0 | 0.50 of the bare relay's | at least 0.60, **missed** |"]
        );
    }

    #[test]
    fn latencies_are_told_in_microseconds() {
        let mut histogram = Histogram::default();
        assert!(histogram.latency().is_none());
        for millis in 1..=1000 {
            histogram.add(Duration::from_millis(millis));
        }
        let Some(latency) = histogram.latency() else { panic!("there are some") };
        assert!((latency.p50 - 500_000.0).abs() < 1_000.0, "{latency:?}");
        assert!((latency.p99 - 990_000.0).abs() < 2_000.0, "{latency:?}");
        assert_eq!(histogram.len(), 1000);
    }
}
