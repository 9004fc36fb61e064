//! What became of every message.

use std::fmt::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::mqtt::Message as BrokerMessage;
use mqtt_sn_gateway::node::{Counters, Outcome};
use mqtt_sn_gateway::wire::Qos;

use super::sensor::Note;
use super::{Plan, Template};

/// Octets of the shortest payload: eight hex digits, two numbers, spaces.
pub(crate) const PAYLOAD_MIN: usize = 8 + 1 + 5 + 1 + 10 + 1;

/// Octets of the longest: what a datagram of IPv4 leaves a PUBLISH.
pub(crate) const PAYLOAD_MAX: usize = 65_498;

/// Offences that are named; the others are counted.
const NAMED_MAX: usize = 10;

/// The payload of a message: which run, sensor and message it is, filled up to `size` octets.
pub(super) fn payload(run: u32, node: u32, sequence: u32, size: usize) -> Bytes {
    let mut text = format!("{run:08x} {node} {sequence} ");
    let fill = size.saturating_sub(text.len());
    text.extend(std::iter::repeat_n('.', fill));
    text.into()
}

/// Which sensor and message of this run a payload says it is.
pub(super) fn parse(payload: &[u8], run: u32) -> Option<(u32, u32)> {
    let mut words = payload.splitn(4, |octet| *octet == b' ').map(|word| std::str::from_utf8(word).ok());
    let named = u32::from_str_radix(words.next()??, 16).ok()?;
    let (node, sequence) = (words.next()??.parse().ok()?, words.next()??.parse().ok()?);
    (named == run).then_some((node, sequence))
}

#[derive(Debug)]
pub(super) struct Ledger {
    run: u32,
    qos: Qos,
    payload_size: usize,
    /// By sensor and sequence.
    messages: Vec<Vec<Entry>>,
    /// Acknowledged messages that the broker has not delivered.
    missing: u64,
    last_seen: Option<Instant>,
    pub(super) tally: Tally,
    pub(super) counters: Counters,
    pub(super) ack_latency: Vec<Duration>,
    pub(super) broker_latency: Vec<Duration>,
    strange: Offences,
}

/// Facts, each counted where it is established.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) acked: u64,
    pub(super) uncertain: u64,
    pub(super) refused: u64,
    pub(super) gave_up: u64,
    pub(super) unanswered_qos0: u64,
    pub(super) shed: u64,
    pub(super) connections: u64,
    pub(super) naps: u64,
    pub(super) connects_refused: u64,
    pub(super) subscribes_refused: u64,
    pub(super) connections_lost: u64,
    pub(super) restarts: u64,
    pub(super) radio_lost: u64,
    pub(super) unreachable: u64,
    pub(super) seen: u64,
    pub(super) foreign: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    sent: Option<Instant>,
    outcome: Option<Outcome>,
    seen: u32,
}

/// Messages that break a promise: how many, and the first of them.
#[derive(Debug, Default)]
pub(super) struct Offences {
    pub(super) count: u64,
    pub(super) named: Vec<String>,
}

impl Offences {
    pub(super) fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(text());
        }
    }
}

/// What deliveries say about the promises.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Acknowledged, and never delivered.
    pub(super) lost: Offences,
    /// QoS 2 acknowledged, and delivered more than once.
    pub(super) repeated: Offences,
    /// Never sent, altered, or on a wrong topic.
    pub(super) strange: Offences,
    /// Second and further deliveries where they are allowed.
    pub(super) duplicates: u64,
    /// Not acknowledged (given up, refused, uncertain, QoS 0), and not delivered.
    pub(super) unacked_missing: u64,
}

impl Ledger {
    pub(super) fn new(plan: &Plan, run: u32) -> Self {
        Self {
            run,
            qos: plan.qos,
            payload_size: plan.payload_size,
            messages: vec![Vec::new(); plan.nodes as usize],
            missing: 0,
            last_seen: None,
            tally: Tally::default(),
            counters: Counters::default(),
            ack_latency: Vec::new(),
            broker_latency: Vec::new(),
            strange: Offences::default(),
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        match note {
            Note::Sent { node, sequence, at } => {
                self.tally.sent += 1;
                if let Some(entry) = self.entry(node, sequence) {
                    entry.sent = Some(at);
                }
            }
            Note::Settled { node, sequence, outcome, at } => self.settled(node, sequence, outcome, at),
            Note::Shed => self.tally.shed += 1,
            Note::Refused => self.tally.refused += 1,
            Note::SubscribeRefused => self.tally.subscribes_refused += 1,
            Note::Asleep => self.tally.naps += 1,
            Note::Connected => self.tally.connections += 1,
            Note::ConnectRefused => self.tally.connects_refused += 1,
            Note::ConnectionLost => self.tally.connections_lost += 1,
            Note::Restarted => self.tally.restarts += 1,
            // Of messages to the sensors.
            Note::Hears { .. } | Note::Forgets { .. } | Note::Got { .. } => {}
            Note::Done { counters, lost, unreachable } => {
                self.counters.frames_sent += counters.frames_sent;
                self.counters.frames_received += counters.frames_received;
                self.counters.retransmissions += counters.retransmissions;
                self.counters.noise += counters.noise;
                self.tally.radio_lost += lost;
                self.tally.unreachable += unreachable;
            }
        }
    }

    fn settled(&mut self, node: u32, sequence: u32, outcome: Outcome, at: Instant) {
        let Some(entry) = self.entry(node, sequence) else { return };
        entry.outcome = Some(outcome);
        let Entry { sent, seen, .. } = *entry;
        match outcome {
            Outcome::Acknowledged => {
                self.tally.acked += 1;
                self.missing += u64::from(seen == 0);
                self.ack_latency.extend(sent.map(|sent| at.saturating_duration_since(sent)));
            }
            Outcome::Uncertain => self.tally.uncertain += 1,
            Outcome::Refused(_) => self.tally.refused += 1,
            Outcome::GaveUp => self.tally.gave_up += 1,
            Outcome::Sent => self.tally.unanswered_qos0 += 1,
        }
    }

    /// The broker delivered a message.
    pub(super) fn seen(&mut self, message: &BrokerMessage, at: Instant, template: &Template) {
        let Some((node, sequence)) = parse(&message.payload, self.run) else {
            self.tally.foreign += 1;
            return;
        };
        self.tally.seen += 1;
        self.last_seen = Some(at);
        let expected = payload(self.run, node, sequence, self.payload_size);
        let on_topic = template.topic(node).is_ok_and(|topic| topic == message.topic);
        let Some(entry) = self.entry(node, sequence) else {
            return self.strange.add(|| format!("sensor {node} does not exist"));
        };
        entry.seen += 1;
        let Entry { sent, outcome, seen } = *entry;
        if seen == 1 {
            self.missing -= u64::from(outcome == Some(Outcome::Acknowledged));
            self.broker_latency.extend(sent.map(|sent| at.saturating_duration_since(sent)));
        }
        if !on_topic {
            self.strange.add(|| format!("{node}:{sequence} came on topic {}", message.topic));
        } else if message.payload != expected {
            self.strange.add(|| format!("{node}:{sequence} was altered on its way"));
        }
    }

    /// The place of a message, made if need be: the broker may be quicker than the sensor's note. A message that is far
    /// ahead of everything sent is none of ours.
    fn entry(&mut self, node: u32, sequence: u32) -> Option<&mut Entry> {
        const AHEAD_MAX: usize = 100_000;
        let messages = self.messages.get_mut(node as usize)?;
        let sequence = sequence as usize;
        if sequence > messages.len() + AHEAD_MAX {
            return None;
        }
        if sequence >= messages.len() {
            messages.resize(sequence + 1, Entry::default());
        }
        messages.get_mut(sequence)
    }

    /// When the count may be taken: nothing is missing, and nothing has come for `quiet`. `None`: something is missing.
    pub(super) fn ripe_at(&self, quiet: Duration) -> Option<Instant> {
        (self.missing == 0).then(|| self.last_seen.map_or_else(Instant::now, |at| at + quiet))
    }

    /// Where the run stands.
    pub(super) fn line(&self) -> String {
        let Tally { sent, acked, seen, uncertain, refused, connections_lost, .. } = self.tally;
        let mut line = format!("{sent} sent");
        if self.qos != Qos::AtMostOnce {
            let _ = write!(line, ", {acked} acknowledged");
        }
        for (count, what) in [
            (seen, "at the broker"),
            (uncertain, "uncertain"),
            (refused, "refused"),
            (connections_lost, "connections lost"),
        ] {
            if count > 0 {
                let _ = write!(line, ", {count} {what}");
            }
        }
        line
    }

    /// Messages that were never settled.
    pub(super) fn unfinished(&self) -> u64 {
        let Tally { sent, acked, uncertain, refused, gave_up, unanswered_qos0, .. } = self.tally;
        sent - acked - uncertain - refused - gave_up - unanswered_qos0
    }

    pub(super) fn verdict(self) -> Verdict {
        let mut verdict = Verdict { strange: self.strange, ..Verdict::default() };
        for (node, messages) in self.messages.iter().enumerate() {
            for (sequence, entry) in messages.iter().enumerate() {
                judge(&mut verdict, entry, self.qos, || format!("{node}:{sequence}"));
            }
        }
        verdict
    }
}

fn judge(verdict: &mut Verdict, entry: &Entry, qos: Qos, name: impl Fn() -> String) {
    let acked = entry.outcome == Some(Outcome::Acknowledged);
    match entry.seen {
        0 if acked => verdict.lost.add(name),
        0 => verdict.unacked_missing += u64::from(entry.sent.is_some()),
        _ if entry.sent.is_none() => verdict.strange.add(|| format!("{} was never sent", name())),
        1 => {}
        seen if acked && qos == Qos::ExactlyOnce => {
            verdict.repeated.add(|| format!("{} came {seen} times", name()))
        }
        seen => verdict.duplicates += u64::from(seen - 1),
    }
}
