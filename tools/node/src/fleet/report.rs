//! The result of a run, for people and for programs.

use std::fmt;
use std::time::Duration;

use mqtt_sn_gateway::wire::Qos;
use serde::Serialize;

use super::down::{Down, DownTally};
use super::ledger::{Ledger, Offences, Verdict};
use super::radio::Tally;
use super::{Plan, Weather};

/// Everything a run has shown.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    nodes: u32,
    qos: u8,
    period_ms: f64,
    duration_ms: u128,
    seed: u64,
    weather: Weather,
    pub(super) connections: u64,
    naps: u64,
    connects_refused: u64,
    subscribes_refused: u64,
    connections_lost: u64,
    session_restarts: u64,
    sent: u64,
    acked: u64,
    uncertain: u64,
    refused: u64,
    gave_up: u64,
    not_sent_queue_full: u64,
    frames_sent: u64,
    frames_received: u64,
    frames_retransmitted: u64,
    frames_lost_by_radio: u64,
    port_unreachable: u64,
    ack_latency: Latency,
    verified: Option<Verified>,
    to_sensors: Option<ToSensors>,
    radio: Option<Tally>,
}

/// What came of messages to the sensors.
#[derive(Debug, Serialize)]
struct ToSensors {
    ok: bool,
    period_ms: f64,
    sent: u64,
    /// Acknowledged by the broker.
    acked: u64,
    delivered: u64,
    fetched_by_sleepers: u64,
    lost: u64,
    duplicates: u64,
    duplicates_at_qos_2: u64,
    strange: u64,
    /// Given up before they came, because the sensor began a clean session anew.
    forgotten_with_clean_sessions: u64,
    unacknowledged_and_not_delivered: u64,
    first_lost: Vec<String>,
    first_duplicates_at_qos_2: Vec<String>,
    first_strange: Vec<String>,
    latency: Latency,
}

/// What was seen at the broker.
#[derive(Debug, Serialize)]
struct Verified {
    ok: bool,
    delivered: u64,
    lost: u64,
    duplicates: u64,
    duplicates_at_qos_2: u64,
    strange: u64,
    unacknowledged_and_not_delivered: u64,
    foreign: u64,
    /// How often the broker forgot the session of the verifier; messages that it then missed look lost.
    gaps: u64,
    first_lost: Vec<String>,
    first_duplicates_at_qos_2: Vec<String>,
    first_strange: Vec<String>,
    broker_latency: Latency,
}

/// Milliseconds; `None` if there is nothing to measure.
#[derive(Debug, Clone, Copy, Serialize)]
struct Latency {
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        mut ledger: Ledger,
        down: Option<Down>,
        gaps: Option<u64>,
        radio: Option<Tally>,
    ) -> Self {
        let ack_latency = Latency::new(std::mem::take(&mut ledger.ack_latency));
        let broker_latency = Latency::new(std::mem::take(&mut ledger.broker_latency));
        let unfinished = ledger.unfinished();
        let (tally, counters) = (std::mem::take(&mut ledger.tally), ledger.counters);
        let verified = gaps.map(|gaps| {
            let Verdict { lost, repeated, strange, duplicates, unacked_missing } = ledger.verdict();
            let ok = lost.count + repeated.count + strange.count == 0;
            let Offences { count: lost, named: first_lost } = lost;
            let Offences { count: duplicates_at_qos_2, named: first_duplicates_at_qos_2 } = repeated;
            let Offences { count: strange, named: first_strange } = strange;
            Verified {
                ok,
                delivered: tally.seen,
                lost,
                duplicates,
                duplicates_at_qos_2,
                strange,
                unacknowledged_and_not_delivered: unacked_missing,
                foreign: tally.foreign,
                gaps,
                first_lost,
                first_duplicates_at_qos_2,
                first_strange,
                broker_latency,
            }
        });
        Self {
            nodes: plan.nodes,
            qos: match plan.qos {
                Qos::AtLeastOnce => 1,
                Qos::ExactlyOnce => 2,
                Qos::AtMostOnce | Qos::MinusOne => 0,
            },
            period_ms: plan.period.as_secs_f64() * 1000.0,
            duration_ms: plan.duration.as_millis(),
            seed: plan.seed,
            weather: plan.weather,
            connections: tally.connections,
            naps: tally.naps,
            connects_refused: tally.connects_refused,
            subscribes_refused: tally.subscribes_refused,
            connections_lost: tally.connections_lost,
            session_restarts: tally.restarts,
            sent: tally.sent,
            acked: tally.acked,
            uncertain: tally.uncertain,
            refused: tally.refused,
            // A sensor that may reconnect never gives up of its own; the end of the run does it.
            gave_up: tally.gave_up + unfinished,
            not_sent_queue_full: tally.shed,
            frames_sent: counters.frames_sent,
            frames_received: counters.frames_received,
            frames_retransmitted: counters.retransmissions,
            frames_lost_by_radio: tally.radio_lost,
            port_unreachable: tally.unreachable,
            ack_latency,
            verified,
            to_sensors: plan.down.zip(down).map(|(period, down)| ToSensors::new(period, down)),
            radio,
        }
    }

    /// What is wrong, if something is.
    pub(super) fn verdict(&self) -> Option<String> {
        let mut parts = Vec::new();
        if let Some(verified) = &self.verified {
            let Verified { lost, duplicates_at_qos_2, strange, .. } = *verified;
            parts.extend([
                offence(lost, "acknowledged and not delivered", &verified.first_lost),
                offence(duplicates_at_qos_2, "delivered more than once", &verified.first_duplicates_at_qos_2),
                offence(strange, "not as sent", &verified.first_strange),
            ]);
        }
        if let Some(down) = &self.to_sensors {
            let ToSensors { lost, duplicates_at_qos_2, strange, .. } = *down;
            parts.extend([
                offence(lost, "not delivered to sensors", &down.first_lost),
                offence(
                    duplicates_at_qos_2,
                    "delivered to sensors more than once",
                    &down.first_duplicates_at_qos_2,
                ),
                offence(strange, "not delivered to sensors as sent", &down.first_strange),
            ]);
        }
        let mut parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            return None;
        }
        let gaps = self.verified.as_ref().map_or(0, |verified| verified.gaps);
        if gaps > 0 {
            parts.push(format!("the broker forgot our subscription {gaps} times, which may be the cause"));
        }
        Some(parts.join("; "))
    }
}

fn offence(count: u64, what: &str, named: &[String]) -> Option<String> {
    let more = if count > named.len() as u64 { ", …" } else { "" };
    (count > 0).then(|| format!("{count} {what} (sensor:message {}{more})", named.join(", ")))
}

impl ToSensors {
    fn new(period: Duration, mut down: Down) -> Self {
        let latency = Latency::new(std::mem::take(&mut down.latency));
        let DownTally { sent, taken, got, fetched, forgotten } = down.tally;
        let Verdict { lost, repeated, strange, duplicates, unacked_missing } = down.verdict();
        Self {
            ok: lost.count + repeated.count + strange.count == 0,
            period_ms: period.as_secs_f64() * 1000.0,
            sent,
            acked: taken,
            delivered: got,
            fetched_by_sleepers: fetched,
            lost: lost.count,
            duplicates,
            duplicates_at_qos_2: repeated.count,
            strange: strange.count,
            forgotten_with_clean_sessions: forgotten,
            unacknowledged_and_not_delivered: unacked_missing,
            first_lost: lost.named,
            first_duplicates_at_qos_2: repeated.named,
            first_strange: strange.named,
            latency,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<28}{value:>12}");
        row("sent", &self.sent)?;
        if self.qos > 0 {
            row("acked", &self.acked)?;
        }
        row("retransmitted (frames)", &self.frames_retransmitted)?;
        row("gave up", &self.gave_up)?;
        row("refused", &self.refused)?;
        row("uncertain", &self.uncertain)?;
        row("not sent (queue full)", &self.not_sent_queue_full)?;
        row("connections", &self.connections)?;
        if self.naps > 0 {
            row("times fallen asleep", &self.naps)?;
        }
        row("connections lost", &self.connections_lost)?;
        row("connections refused", &self.connects_refused)?;
        row("subscriptions refused", &self.subscribes_refused)?;
        row("session restarts", &self.session_restarts)?;
        if let Some(verified) = &self.verified {
            row("delivered at the broker", &verified.delivered)?;
            row("lost", &verified.lost)?;
            row("duplicates", &(verified.duplicates + verified.duplicates_at_qos_2))?;
            row("unacked, not delivered", &verified.unacknowledged_and_not_delivered)?;
            row("not as sent", &verified.strange)?;
        }
        if let Some(down) = &self.to_sensors {
            row("sent to sensors", &down.sent)?;
            row("acked by the broker", &down.acked)?;
            row("delivered to sensors", &down.delivered)?;
            row("  fetched by sleepers", &down.fetched_by_sleepers)?;
            row("lost on the way", &down.lost)?;
            row("duplicates at sensors", &(down.duplicates + down.duplicates_at_qos_2))?;
            row("gone with clean sessions", &down.forgotten_with_clean_sessions)?;
            row("unacked, not delivered", &down.unacknowledged_and_not_delivered)?;
            row("not as sent", &down.strange)?;
        }
        if let Some(radio) = &self.radio {
            radio.rows(&mut row)?;
        }
        if self.qos > 0 {
            writeln!(f, "publish to ack               {}", self.ack_latency)?;
        }
        if let Some(verified) = &self.verified {
            writeln!(f, "publish to broker            {}", verified.broker_latency)?;
            if let Some(down) = &self.to_sensors {
                writeln!(f, "broker to sensor             {}", down.latency)?;
            }
            let ok = verified.ok && self.to_sensors.as_ref().is_none_or(|down| down.ok);
            let result = if ok { "every promise kept" } else { "FAILED" };
            writeln!(f, "verification                 {result}")?;
        }
        Ok(())
    }
}

impl Latency {
    fn new(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let rank = |share: f64| {
            let rank = (samples.len() as f64 * share).ceil() as usize;
            samples.get(rank.saturating_sub(1)).map(|sample| sample.as_secs_f64() * 1000.0)
        };
        Self { p50_ms: rank(0.50), p95_ms: rank(0.95), p99_ms: rank(0.99), max_ms: rank(1.0) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_ms: Some(p50), p95_ms: Some(p95), p99_ms: Some(p99), max_ms: Some(max) } = self else {
            return f.write_str("nothing to measure");
        };
        write!(f, "p50 {p50:.1} ms, p95 {p95:.1} ms, p99 {p99:.1} ms, max {max:.1} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_smallest_sample_that_covers_its_share() {
        let latency = Latency::new((1..=200).rev().map(Duration::from_millis).collect());
        let Latency { p50_ms, p95_ms, p99_ms, max_ms } = latency;
        assert_eq!([p50_ms, p95_ms, p99_ms, max_ms], [Some(100.0), Some(190.0), Some(198.0), Some(200.0)]);
        assert_eq!(Latency::new(vec![]).p50_ms, None);
        assert_eq!(Latency::new(vec![Duration::from_millis(3)]).p99_ms, Some(3.0));
    }
}
