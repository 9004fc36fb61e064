//! What happened, as a hash over everything and as lines for the last of it.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::wire::decode;
use rumqttc::Packet;

/// Lines kept for a failure.
const KEPT: usize = 20_000;

/// Everything that happens in a world goes through here.
pub(crate) struct Trace {
    base: Instant,
    hash: DefaultHasher,
    steps: u64,
    tail: VecDeque<(Duration, Step)>,
}

/// One thing that happened.
#[derive(Debug, Clone, Hash)]
pub(crate) enum Step {
    /// A frame reached the gateway, from this sender.
    FrameIn(String, Bytes),
    /// The gateway sent a frame.
    FrameOut(String, Bytes),
    /// A frame reached a sensor.
    Heard(usize, Bytes),
    /// Octets reached the broker on this connection.
    Up(u64, Bytes),
    /// Octets reached the gateway.
    Down(u64, Bytes),
    /// Anything else, in words.
    Note(String),
}

impl Trace {
    pub(crate) fn new(base: Instant) -> Self {
        Self { base, hash: DefaultHasher::new(), steps: 0, tail: VecDeque::new() }
    }

    pub(crate) fn add(&mut self, now: Instant, step: Step) {
        let at = now.saturating_duration_since(self.base);
        (at, &step).hash(&mut self.hash);
        self.steps += 1;
        if self.tail.len() == KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back((at, step));
    }

    pub(crate) fn note(&mut self, now: Instant, note: impl Into<String>) {
        self.add(now, Step::Note(note.into()));
    }

    /// Equal for equal runs.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// The last `lines` steps, one per line.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let skip = self.tail.len().saturating_sub(lines);
        let lines = self.tail.iter().skip(skip);
        lines.map(|(at, step)| format!("{:9.4} {step}\n", at.as_secs_f64())).collect()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FrameIn(from, frame) => write!(f, "{from:>6} > G      {}", dump(frame)),
            Self::FrameOut(to, frame) => write!(f, "{to:>6} < G      {}", dump(frame)),
            Self::Heard(sensor, frame) => write!(f, "{:>6} hears    {}", format!("s{sensor}"), dump(frame)),
            Self::Up(link, octets) => write!(f, "       G > B#{link:<2} {}", packets(octets)),
            Self::Down(link, octets) => write!(f, "       G < B#{link:<2} {}", packets(octets)),
            Self::Note(note) => write!(f, "       · {note}"),
        }
    }
}

fn dump(frame: &[u8]) -> String {
    match decode(frame) {
        Ok(frame) => format!("{frame:.12}"),
        Err(error) => format!("{frame:02X?} ({error})"),
    }
}

/// The packets in a piece of a stream; where it was cut, the octets.
fn packets(octets: &Bytes) -> String {
    let mut rest = BytesMut::from(&octets[..]);
    let mut text = format!("{} octets", octets.len());
    while !rest.is_empty() {
        let before = rest.clone();
        let Ok(packet) = Packet::read(&mut rest, usize::MAX) else {
            text += &format!(" | {} octets more", before.len());
            break;
        };
        text += &format!(" | {packet:?}");
    }
    text.chars().take(400).collect()
}
