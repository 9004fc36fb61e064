//! A radio that speaks Digi's API: ZigBee, DigiMesh or 802.15.4, with as many nodes behind it as are in reach.
//!
//! What is done with a radio, in this order:
//! 1. It is asked `AP` until it answers or says anything else in frames; then the port is up. If it does not, `+++` with a
//!    silence before it finds out whether it is in transparent mode, and it is asked again now and then.
//! 2. It is asked for what it is, once, one question at a time. `NP` is how much a frame may have, and the first modules show by
//!    `VR` that they know other frames than all after them, so that nothing is sent before every question was put.
//! 3. Each frame for a node is sent with an id and waits for the radio's word of what became of it, [`WINDOW`] of them at a
//!    time and one for each node, so that what is sent to a node keeps its order. What was not delivered is sent again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Count;
use super::fault::Fault;
use super::framed::{QUEUE_TIME_MAX, gap};
use super::line::{Line, Pacer};
use super::speech::{Event, To};
use crate::framing::xbee::{
    BROADCAST, DATA_LEN_MAX, DELIVERED, Decoder, Frame, Mode, SHORT_UNKNOWN, TOO_LARGE, delivery,
};
use crate::gateway::io::Address;

/// Frames whose fate the radio has yet to tell: enough that one node that is away does not hold up the others, and few enough for
/// the buffers of every module.
const WINDOW: usize = 4;

/// How often a frame is sent again that was not delivered. The radio itself has tried several times by then.
const RETRIES_MAX: u32 = 2;

/// The pause before that: doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long the radio may take to tell the fate of a frame: three tries of ZigBee of 1.6 s each.
const STATUS_WAIT: Duration = Duration::from_secs(5);

/// Frames without an answer in a row after which the radio is asked whether it is there.
const UNANSWERED_MAX: u32 = 3;

/// How long a frame may wait for its turn: half of what a node waits before it repeats itself.
const QUEUE_AGE_MAX: Duration = Duration::from_secs(5);

/// How long the answer to a question may take, beside its time on the line.
const ASK_WAIT: Duration = Duration::from_millis(500);

/// How often a question is put.
const ASK_TRIES: u32 = 3;

/// How long a radio that does not answer is left alone.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The same for one in transparent mode, where whatever is asked goes on the air.
const TRANSPARENT_AGAIN: Duration = Duration::from_secs(60);

/// The silence around `+++` (`GT`, 1 s as it comes), and the wait for its OK.
const GUARD: Duration = Duration::from_millis(1100);
const PROBE_WAIT: Duration = Duration::from_millis(2500);

/// How often the strength of what was heard is asked for.
const RSSI_INTERVAL: Duration = Duration::from_secs(10);

/// How much it has to change before it is told, in dB: less comes and goes with people in the room.
const RSSI_STEP: u8 = 6;

/// Nodes of which is kept what the radio tells; beyond them the one that was heard longest ago is forgotten.
const NODES_MAX: usize = 1024;

/// Octets that are in no frame, after which the line is garbage and not silent.
const GARBAGE_MIN: u64 = 64;

/// The least that any module takes.
const PAYLOAD_LEAST: usize = 72;

/// No MQTT-SN goes through less, so that a module that says less is not believed.
const PAYLOAD_CREDIBLE: usize = 32;

/// Frame data of a transmission beside its payload.
const REQUEST_OVERHEAD: usize = 14;

/// The cluster of ZigBee on which modules send what comes in on their serial side.
const SERIAL_DATA: u16 = 0x0011;

/// Marks an address that is a short one, of a module that hides its long one. No module has such a long one.
const SHORT: u64 = 0x1_0000;

/// A long address that the radio does not know.
const LONG_UNKNOWN: u64 = u64::MAX;

/// What the radio is asked at the start, in this order.
const QUESTIONS: [[u8; 2]; 8] = [*b"AP", *b"VR", *b"NP", *b"EE", *b"SH", *b"SL", *b"ID", *b"CH"];

/// The conversation with one radio.
#[derive(Debug)]
pub(super) struct Radio {
    line: Line,
    configured: Mode,
    /// As the radio says it writes frames.
    mode: Mode,
    /// The most that the core may send, if that is set; the radio may take less.
    mtu: Option<usize>,
    decoder: Decoder,
    pacer: Pacer,
    standing: Standing,
    /// Frames of the radio so far.
    heard: u64,
    asked: Option<Asked>,
    questions: VecDeque<Question>,
    facts: BTreeMap<[u8; 2], Bytes>,
    /// What is to be written as it is.
    raw: VecDeque<Bytes>,
    queue: VecDeque<Waiting>,
    /// Octets of payload that wait.
    queued: usize,
    in_flight: BTreeMap<u8, InFlight>,
    last_id: u8,
    unanswered: u32,
    /// How much a frame may have, as far as it is known.
    payload_max: Option<usize>,
    /// It speaks the frames of early 802.15.4 modules.
    legacy: bool,
    nodes: Nodes,
    /// Whose frame the strength that was asked for is of.
    rssi_of: Option<u64>,
    rssi_next: Option<Instant>,
    idle_at: Option<Instant>,
    /// Octets in no frame since the device was opened.
    garbage: u64,
    /// The state of the radio that was told last.
    told: Option<u8>,
    /// The last octets, in case they are an answer in ASCII.
    tail: [u8; 3],
    events: VecDeque<Event>,
}

/// What is known of the radio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is asked whether it is there.
    Asking {
        /// Whether `+++` was tried.
        probed: bool,
    },
    /// It does not answer; silence before `+++`.
    Guard(Instant),
    /// `+++` was written.
    Probing(Instant),
    /// It is left alone for a time, and then asked, or probed first.
    Resting { until: Instant, probe: bool },
    /// It speaks.
    Alive,
}

/// What the radio is to be asked.
#[derive(Debug, Clone, Copy)]
struct Question {
    command: [u8; 2],
    /// How often it was asked.
    tries: u32,
    /// Frames of the radio when it was first asked.
    heard: u64,
}

/// A question whose answer is awaited.
#[derive(Debug)]
struct Asked {
    id: u8,
    question: Question,
    until: Instant,
}

/// A frame that waits for its turn.
#[derive(Debug)]
struct Waiting {
    to: Destination,
    payload: Bytes,
    tries: u32,
    since: Instant,
    /// After a failure.
    not_before: Option<Instant>,
}

impl Waiting {
    /// When it is of no use any more. What is for everybody waits until the radio is introduced, however long that takes: nobody
    /// repeats it soon.
    fn late_at(&self, introduced: bool) -> Option<Instant> {
        let waits = !introduced && matches!(self.to, Destination::All(_));
        (!waits).then(|| self.since + QUEUE_AGE_MAX)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    Node(u64),
    All(u8),
}

#[derive(Debug)]
struct InFlight {
    waiting: Waiting,
    until: Instant,
}

impl Radio {
    pub(super) fn new(line: Line, mode: Mode, mtu: Option<usize>) -> Self {
        Self {
            pacer: Pacer::new(line.clone()),
            line,
            configured: mode,
            mode,
            mtu,
            decoder: Decoder::new(mode),
            standing: Standing::Asking { probed: false },
            heard: 0,
            asked: None,
            questions: VecDeque::new(),
            facts: BTreeMap::new(),
            raw: VecDeque::new(),
            queue: VecDeque::new(),
            queued: 0,
            in_flight: BTreeMap::new(),
            last_id: 0,
            unanswered: 0,
            payload_max: None,
            legacy: false,
            nodes: Nodes::default(),
            rssi_of: None,
            rssi_next: None,
            idle_at: None,
            garbage: 0,
            told: None,
            tail: [0; 3],
            events: VecDeque::new(),
        }
    }

    pub(super) fn handle_open(&mut self, _now: Instant) {
        let nodes = std::mem::take(&mut self.nodes);
        let events = std::mem::take(&mut self.events);
        *self = Self::new(self.line.clone(), self.configured, self.mtu);
        (self.nodes, self.events) = (nodes, events);
        self.ask_everything();
    }

    pub(super) fn handle_gone(&mut self) {
        self.drop_queue(Count::NotUp);
    }

    pub(super) fn handle_closed(&mut self) {
        self.keep(Count::NotUp, |_| false);
    }

    /// Drops what waits and what is under way.
    pub(super) fn drop_queue(&mut self, count: Count) {
        let dropped = self.queue.len() + self.in_flight.len();
        if dropped > 0 {
            self.events.push_back(Event::Count(count, dropped));
        }
        self.queue.clear();
        self.in_flight.clear();
        self.queued = 0;
    }

    pub(super) fn handle_octets(&mut self, now: Instant, octets: &[u8]) {
        self.idle_at = Some(now + gap(&self.line));
        for octet in octets {
            self.tail = [self.tail[1], self.tail[2], *octet];
            if self.tail == *b"OK\r" && matches!(self.standing, Standing::Probing(_)) {
                self.is_transparent(now);
            }
        }
        let before = *self.decoder.counters();
        self.decoder.push(octets);
        self.take_frames(before, now);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.idle_at.is_some_and(|at| at <= now) {
            self.idle_at = None;
            let before = *self.decoder.counters();
            self.decoder.idle();
            self.take_frames(before, now);
        }
        if let Some(asked) = self.asked.take_if(|asked| asked.until <= now) {
            self.has_not_answered(asked.question, now);
        }
        match self.standing {
            Standing::Guard(until) if until <= now => {
                self.raw.push_back(Bytes::from_static(b"+++"));
                self.standing = Standing::Probing(now + PROBE_WAIT);
            }
            Standing::Probing(until) if until <= now => self.is_silent(now),
            Standing::Resting { until, probe: true } if until <= now => {
                self.standing = Standing::Guard(now + GUARD);
            }
            Standing::Resting { until, probe: false } if until <= now => {
                self.standing = Standing::Asking { probed: true };
                self.ask_everything();
            }
            _ => {}
        }
        self.give_up_waiting(now);
    }

    pub(super) fn handle_send(&mut self, now: Instant, to: To, frame: &Bytes) {
        let to = match to {
            To::One(Address::Xbee(node)) => Destination::Node(node),
            To::One(_) => return self.events.push_back(Event::Count(Count::NoRoute, 1)),
            To::All(radius) => Destination::All(radius),
        };
        if frame.len() > self.payload_max.unwrap_or(DATA_LEN_MAX - REQUEST_OVERHEAD) {
            tracing::debug!(?to, octets = frame.len(), max = self.payload_max, "longer than the radio sends");
            return self.events.push_back(Event::Count(Count::TooLong, 1));
        }
        if self.standing != Standing::Alive {
            return self.events.push_back(Event::Count(Count::NotUp, 1));
        }
        let octets = self.queued + frame.len() + (self.queue.len() + 1) * REQUEST_OVERHEAD;
        if !self.queue.is_empty() && self.line.time_of(octets) > QUEUE_TIME_MAX {
            return self.events.push_back(Event::Count(Count::QueueFull, 1));
        }
        self.queued += frame.len();
        self.queue.push_back(Waiting { to, payload: frame.clone(), tries: 0, since: now, not_before: None });
    }

    pub(super) fn poll_octets(&mut self, now: Instant) -> Option<Bytes> {
        if self.pacer.busy_until(now).is_some() {
            return None;
        }
        let octets =
            self.raw.pop_front().or_else(|| self.question(now)).or_else(|| self.transmission(now))?;
        self.pacer.write(now, octets.len());
        Some(octets)
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let standing = match self.standing {
            Standing::Guard(until) | Standing::Probing(until) | Standing::Resting { until, .. } => {
                Some(until)
            }
            Standing::Asking { .. } | Standing::Alive => None,
        };
        let asked = self.asked.as_ref().map(|asked| asked.until);
        let statuses = self.in_flight.values().map(|sent| sent.until).min();
        let introduced = self.payload_max.is_some();
        let ages = self.queue.iter().filter_map(|waiting| waiting.late_at(introduced)).min();
        let pauses = self.queue.iter().filter_map(|waiting| waiting.not_before).filter(|at| *at > now).min();
        let wants = !(self.queue.is_empty() && self.questions.is_empty() && self.raw.is_empty());
        let room = self.pacer.busy_until(now).filter(|_| wants);
        [self.idle_at, standing, asked, statuses, ages, pauses, room].into_iter().flatten().min()
    }

    pub(super) fn out_at(&self, now: Instant) -> Option<Instant> {
        match self.queue.is_empty() {
            true => self.pacer.out_at(now),
            false => Some(self.pacer.out_at(now).unwrap_or(now) + self.line.time_of(self.queued)),
        }
    }

    // Is it there?

    /// It said something in frames.
    fn is_alive(&mut self) {
        self.heard += 1;
        if self.standing == Standing::Alive {
            return;
        }
        self.standing = Standing::Alive;
        self.raw.clear();
        self.events.push_back(Event::Up);
    }

    fn ask_everything(&mut self) {
        (self.asked, self.payload_max) = (None, None);
        self.questions.clear();
        QUESTIONS.into_iter().for_each(|command| self.ask(command));
    }

    fn ask(&mut self, command: [u8; 2]) {
        self.questions.push_back(Question { command, tries: 0, heard: self.heard });
    }

    fn has_not_answered(&mut self, question: Question, now: Instant) {
        if question.tries < ASK_TRIES && question.command != *b"DB" {
            return self.questions.push_front(question);
        }
        match self.standing {
            Standing::Asking { probed: false } => self.standing = Standing::Guard(now + GUARD),
            Standing::Asking { probed: true } => self.is_silent(now),
            Standing::Alive if question.command == *b"AP" && question.heard == self.heard => {
                self.events.push_back(Event::Down);
                self.drop_queue(Count::NotUp);
                self.is_silent(now);
            }
            _ => self.conclude(now),
        }
    }

    fn is_silent(&mut self, now: Instant) {
        let (device, spoken) = (self.line.device.clone(), self.line.spoken());
        self.events.push_back(Event::Fault(match self.garbage {
            octets if octets >= GARBAGE_MIN => Fault::Garbage { device, spoken, framing: None, octets },
            _ => Fault::Silent { device, spoken },
        }));
        self.standing = Standing::Resting { until: now + ASK_AGAIN, probe: false };
    }

    fn is_transparent(&mut self, now: Instant) {
        self.events.push_back(Event::Fault(Fault::Transparent { device: self.line.device.clone() }));
        // It would listen for commands for ten more seconds.
        self.raw.push_back(Bytes::from_static(b"ATCN\r"));
        self.standing = Standing::Resting { until: now + TRANSPARENT_AGAIN, probe: true };
    }

    // What is it?

    /// The next question, or the same once more.
    fn question(&mut self, now: Instant) -> Option<Bytes> {
        if !matches!(self.standing, Standing::Asking { .. } | Standing::Alive) || self.asked.is_some() {
            return None;
        }
        let mut question = self.questions.pop_front()?;
        question.tries += 1;
        let id = self.next_id();
        let command = question.command;
        let octets = self.encode(&Frame::AtCommand { frame_id: id, command, value: Bytes::new() })?;
        let until = now + ASK_WAIT + self.line.time_of(8 * octets.len());
        self.asked = Some(Asked { id, question, until });
        Some(octets)
    }

    fn take_answer(&mut self, id: u8, command: [u8; 2], status: u8, value: Bytes, now: Instant) {
        if self.asked.take_if(|asked| (asked.id, asked.question.command) == (id, command)).is_none() {
            return self.events.push_back(Event::Count(Count::Foreign, 1));
        }
        if status == 0 {
            match &command {
                b"AP" => self.writes_as(value.last().copied()),
                b"DB" => self.take_rssi(value.last().copied()),
                _ => {}
            }
            self.facts.insert(command, value);
        }
        self.conclude(now);
    }

    fn writes_as(&mut self, ap: Option<u8>) {
        let says = match ap {
            Some(1) => Mode::Plain,
            Some(2) => Mode::Escaped,
            _ => return,
        };
        if says != self.mode {
            self.mode = says;
            self.decoder = Decoder::new(says);
        }
        if says != self.configured {
            self.events.push_back(Event::Fault(Fault::OtherMode { device: self.line.device.clone(), says }));
        }
    }

    /// When every question was put, it is known how much the radio takes, and in which frames.
    fn conclude(&mut self, now: Instant) {
        if !self.questions.is_empty() || self.asked.is_some() || self.payload_max.is_some() {
            return;
        }
        let number = |command: &[u8; 2]| self.facts.get(command).map(number_of);
        let says = number(b"NP").and_then(|np| usize::try_from(np).ok());
        let says = says.filter(|np| (PAYLOAD_CREDIBLE..=DATA_LEN_MAX - REQUEST_OVERHEAD).contains(np));
        let encrypts = number(b"EE").is_some_and(|ee| ee > 0);
        let (version, network) = (number(b"VR"), number(b"ID"));
        // Of those without NP, only the first 802.15.4 modules know no other frames.
        self.legacy |= says.is_none() && version.is_some_and(|version| version >> 12 == 1);
        let max = says.unwrap_or_else(|| payload_of(version, encrypts));
        let hex = |number: Option<u64>| number.map_or("unknown".to_owned(), |number| format!("{number:X}"));
        let address = number(b"SH").zip(number(b"SL")).map(|(high, low)| high << 32 | low);
        let address = address.map_or("unknown".to_owned(), |address| format!("{address:016X}"));
        let told = format!(
            "XBee {address}: AP {}, VR {}, ID {}, CH {}, EE {}, {} {max} octets",
            hex(number(b"AP")),
            hex(version),
            hex(network),
            hex(number(b"CH")),
            hex(number(b"EE")),
            if says.is_some() { "NP" } else { "no NP, so it is taken for" },
        );
        let waited = self.queue.iter_mut().filter(|waiting| matches!(waiting.to, Destination::All(_)));
        waited.for_each(|waiting| waiting.since = now);
        self.takes(max);
        self.events.push_back(Event::Told(told));
    }

    /// So much a frame may have from now on: the core is told, so that it tells of what does not fit and is not sent.
    fn takes(&mut self, max: usize) {
        self.payload_max = Some(max);
        self.events.push_back(Event::Mtu(self.mtu.map_or(max, |mtu| mtu.min(max))));
        self.keep(Count::TooLong, |waiting| waiting.payload.len() <= max);
    }

    // To nodes.

    fn transmission(&mut self, now: Instant) -> Option<Bytes> {
        let knows_how = self.standing == Standing::Alive && self.payload_max.is_some();
        if !knows_how || self.in_flight.len() >= WINDOW {
            return None;
        }
        let mut blocked: BTreeSet<_> = self.in_flight.values().map(|sent| sent.waiting.to).collect();
        let is_free = |waiting: &Waiting| {
            let pauses = waiting.not_before.is_some_and(|at| at > now);
            // Behind one that pauses its followers wait too.
            if pauses {
                blocked.insert(waiting.to);
            }
            !pauses && !blocked.contains(&waiting.to)
        };
        let index = self.queue.iter().position(is_free)?;
        let waiting = self.queue.remove(index)?;
        self.queued -= waiting.payload.len();
        let id = self.next_id();
        let Some(octets) = self.encode(&self.request(id, &waiting)) else {
            self.events.push_back(Event::Count(Count::TooLong, 1));
            return None;
        };
        if waiting.tries == 0 {
            self.events.push_back(Event::Count(Count::Sent, 1));
        }
        let until = now + STATUS_WAIT + self.line.time_of(octets.len());
        self.in_flight.insert(id, InFlight { waiting, until });
        Some(octets)
    }

    fn request(&self, frame_id: u8, waiting: &Waiting) -> Frame {
        let payload = waiting.payload.clone();
        let (to, radius) = match waiting.to {
            Destination::Node(node) => (node, 0),
            Destination::All(radius) => (BROADCAST, radius),
        };
        match (self.legacy, short_of(to)) {
            (true, None) => Frame::Tx64 { frame_id, to, options: 0, payload },
            (true, Some(to)) => Frame::Tx16 { frame_id, to, options: 0, payload },
            (false, None) => {
                let to_short = self.nodes.short(to).unwrap_or(SHORT_UNKNOWN);
                Frame::TransmitRequest { frame_id, to, to_short, radius, options: 0, payload }
            }
            (false, Some(to_short)) => {
                Frame::TransmitRequest { frame_id, to: LONG_UNKNOWN, to_short, radius, options: 0, payload }
            }
        }
    }

    /// The radio says what became of a frame.
    fn take_status(&mut self, id: u8, short: Option<u16>, status: u8, now: Instant) {
        let Some(InFlight { waiting, .. }) = self.in_flight.remove(&id) else {
            return self.events.push_back(Event::Count(Count::Foreign, 1));
        };
        self.unanswered = 0;
        if let Destination::Node(node) = waiting.to {
            self.nodes.status(node, short, status);
        }
        if status == DELIVERED {
            return;
        }
        let octets = waiting.payload.len();
        if status == TOO_LARGE {
            self.events.push_back(Event::Count(Count::TooLong, 1));
            // Encryption or a longer way take some of it.
            if self.payload_max.is_some_and(|max| octets <= max && octets > PAYLOAD_CREDIBLE) {
                self.takes(octets - 1);
            }
            return;
        }
        self.retry(waiting, status, now);
    }

    fn retry(&mut self, waiting: Waiting, status: u8, now: Instant) {
        let is_hopeless = matches!(status, 0x15 | 0x23 | 0x2B | 0x2D | 0x2E);
        if is_hopeless || waiting.tries >= RETRIES_MAX || matches!(waiting.to, Destination::All(_)) {
            return self.events.push_back(Event::Count(Count::Undelivered, 1));
        }
        self.events.push_back(Event::Count(Count::Retried, 1));
        let pause = RETRY_PAUSE * 2_u32.pow(waiting.tries);
        self.queued += waiting.payload.len();
        self.queue.push_front(Waiting { tries: waiting.tries + 1, not_before: Some(now + pause), ..waiting });
    }

    /// What has waited for too long is no use any more.
    fn give_up_waiting(&mut self, now: Instant) {
        let late: Vec<u8> =
            self.in_flight.iter().filter(|(_, sent)| sent.until <= now).map(|(id, _)| *id).collect();
        for id in late {
            // It may have arrived.
            self.in_flight.remove(&id);
            self.events.push_back(Event::Count(Count::Unanswered, 1));
            self.unanswered += 1;
            if self.unanswered == UNANSWERED_MAX {
                self.unanswered = 0;
                self.ask(*b"AP");
            }
        }
        let introduced = self.payload_max.is_some();
        self.keep(Count::QueueFull, |waiting| waiting.late_at(introduced).is_none_or(|at| at > now));
    }

    /// Of what waits keeps only this, and counts the rest.
    fn keep(&mut self, count: Count, stays: impl Fn(&Waiting) -> bool) {
        let before = self.queue.len();
        self.queue.retain(stays);
        self.queued = self.queue.iter().map(|waiting| waiting.payload.len()).sum();
        if before > self.queue.len() {
            self.events.push_back(Event::Count(count, before - self.queue.len()));
        }
    }

    // From nodes.

    fn take_frames(&mut self, before: crate::framing::xbee::Counters, now: Instant) {
        let mut before = before;
        loop {
            let after = *self.decoder.counters();
            let losses = [
                (Count::Damaged, after.lost() - before.lost()),
                (Count::GarbageOctets, after.octets_dropped - before.octets_dropped),
            ];
            self.garbage += after.octets_dropped - before.octets_dropped;
            for (count, more) in losses.into_iter().filter(|(_, more)| *more > 0) {
                self.events.push_back(Event::Count(count, usize::try_from(more).unwrap_or(usize::MAX)));
            }
            // The radio may say that it writes otherwise: the decoder is another then.
            let Some(frame) = self.decoder.poll_frame() else { return };
            before = after;
            let mode = self.mode;
            self.take(frame, now);
            if mode != self.mode {
                return;
            }
        }
    }

    fn take(&mut self, frame: Frame, now: Instant) {
        // Whoever repeats what we say is no radio, and a checksum of one octet may be right by chance.
        let proves_nothing = matches!(
            frame,
            Frame::Tx64 { .. }
                | Frame::Tx16 { .. }
                | Frame::AtCommand { .. }
                | Frame::TransmitRequest { .. }
                | Frame::Unknown { .. }
        );
        if !proves_nothing {
            self.is_alive();
        }
        match frame {
            Frame::Rx64 { from, rssi, payload, .. } => {
                self.legacy = true;
                self.hear(from, None, Some(rssi), payload, now);
            }
            Frame::Rx16 { from, rssi, payload, .. } => {
                self.legacy = true;
                self.hear(SHORT | u64::from(from), None, Some(rssi), payload, now);
            }
            Frame::Receive { from, from_short, payload, .. } => {
                self.legacy = false;
                self.hear(self.identity(from, from_short), Some(from_short), None, payload, now);
            }
            Frame::ExplicitReceive { from, from_short, cluster: SERIAL_DATA, payload, .. } => {
                self.legacy = false;
                self.hear(self.identity(from, from_short), Some(from_short), None, payload, now);
            }
            Frame::AtResponse { frame_id, command, status, value } => {
                self.take_answer(frame_id, command, status, value, now);
            }
            Frame::TxStatus { frame_id, status } => self.take_status(frame_id, None, status, now),
            Frame::TransmitStatus { frame_id, short, delivery, .. } => {
                self.take_status(frame_id, Some(short), delivery, now);
            }
            Frame::ModemStatus { status } => self.take_modem_status(status, now),
            _ => self.events.push_back(Event::Count(Count::Foreign, 1)),
        }
    }

    fn hear(&mut self, node: u64, short: Option<u16>, rssi: Option<u8>, payload: Bytes, now: Instant) {
        self.nodes.heard(node, short, rssi);
        // An early module says with each frame how strong it was.
        let asks = rssi.is_none() && self.payload_max.is_some();
        if asks && self.rssi_next.is_none_or(|at| at <= now) {
            self.rssi_next = Some(now + RSSI_INTERVAL);
            self.rssi_of = Some(node);
            self.ask(*b"DB");
        } else if self.rssi_of.is_some_and(|of| of != node) {
            // DB is of the last frame.
            self.rssi_of = None;
        }
        self.events.push_back(Event::Frame(Address::Xbee(node), payload));
    }

    fn take_rssi(&mut self, rssi: Option<u8>) {
        if let (Some(node), Some(rssi)) = (self.rssi_of.take(), rssi) {
            self.nodes.heard(node, None, Some(rssi));
        }
    }

    fn take_modem_status(&mut self, status: u8, now: Instant) {
        let text = match status {
            0x00 | 0x01 => {
                // It has forgotten what was under way, and may have been set otherwise.
                for (_, sent) in std::mem::take(&mut self.in_flight) {
                    self.retry(sent.waiting, 0, now);
                }
                self.ask_everything();
                "was reset".to_owned()
            }
            0x02 => "joined its network".to_owned(),
            0x03 => "left its network".to_owned(),
            0x06 => "formed a network as its coordinator".to_owned(),
            0x0B => "woke up with its network".to_owned(),
            0x0C => "sleeps with its network".to_owned(),
            status => format!("has status {status:02X}"),
        };
        match status {
            // A line that repeats itself hides others; a network that sleeps does so all the time.
            0x0B | 0x0C => tracing::debug!("the radio {text}"),
            status if self.told == Some(status) => tracing::debug!("the radio {text} once more"),
            status => {
                self.told = Some(status);
                self.events.push_back(Event::Told(format!("the radio {text}")));
            }
        }
    }

    /// Who a node is: by its long address, or if the radio does not know that, by who had this short one.
    fn identity(&self, long: u64, short: u16) -> u64 {
        match long {
            LONG_UNKNOWN => self.nodes.with_short(short).unwrap_or(SHORT | u64::from(short)),
            long => long,
        }
    }

    fn next_id(&mut self) -> u8 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let asked = self.asked.as_ref().map(|asked| asked.id);
            if !self.in_flight.contains_key(&self.last_id) && asked != Some(self.last_id) {
                return self.last_id;
            }
        }
    }

    fn encode(&self, frame: &Frame) -> Option<Bytes> {
        let mut octets = BytesMut::new();
        frame.encode(self.mode, &mut octets).ok()?;
        Some(octets.freeze())
    }
}

/// A number as modules write it, in as many octets as they like.
fn number_of(value: &Bytes) -> u64 {
    value.iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

/// The short address that this one stands for.
fn short_of(node: u64) -> Option<u16> {
    (node >> 16 == SHORT >> 16).then_some(node as u16)
}

/// How much a frame may have where the radio does not say, by its firmware (Digi's manuals). Encryption of ZigBee takes 18, that of
/// 802.15.4 five.
fn payload_of(version: Option<u64>, encrypts: bool) -> usize {
    match (version.map(|version| version >> 12), encrypts) {
        // 802.15.4, series 1.
        (Some(0x1), false) => 100,
        (Some(0x1), true) => 95,
        // ZigBee, series 2.
        (Some(0x2 | 0x4), false) => 84,
        (Some(0x2 | 0x4), true) => 66,
        // DigiMesh.
        (Some(0x8 | 0x9), _) => 73,
        _ => PAYLOAD_LEAST,
    }
}

/// What the radio has told of nodes.
#[derive(Debug, Default)]
struct Nodes {
    nodes: BTreeMap<u64, Node>,
    times: u64,
}

#[derive(Debug, Default)]
struct Node {
    short: Option<u16>,
    /// The last one that was worth telling, in -dBm.
    rssi: Option<u8>,
    /// What became of the last transmission.
    status: Option<u8>,
    heard: u64,
}

impl Nodes {
    fn heard(&mut self, node: u64, short: Option<u16>, rssi: Option<u8>) {
        self.times += 1;
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&node) {
            let oldest = self.nodes.iter().min_by_key(|(_, node)| node.heard).map(|(id, _)| *id);
            oldest.map(|id| self.nodes.remove(&id));
        }
        let (id, times) = (node, self.times);
        let node = self.nodes.entry(id).or_default();
        node.heard = times;
        self.has_short(id, short);
        let Some((rssi, node)) = rssi.zip(self.nodes.get_mut(&id)) else { return };
        if node.rssi.is_none_or(|before| before.abs_diff(rssi) >= RSSI_STEP) {
            tracing::debug!(node = format_args!("{id:016X}"), "heard with -{rssi} dBm");
            node.rssi = Some(rssi);
        }
    }

    fn status(&mut self, node: u64, short: Option<u16>, status: u8) {
        let id = node;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.status.replace(status) != Some(status) {
            tracing::debug!(node = format_args!("{id:016X}"), "transmissions: {}", delivery(status));
        }
        match status {
            DELIVERED => self.has_short(id, short),
            // It may have another one by now: the radio is to look for it.
            _ => node.short = None,
        }
    }

    /// A node has this short address, so that nobody else has it any more: networks give them out anew.
    fn has_short(&mut self, node: u64, short: Option<u16>) {
        let short = short.filter(|short| *short < SHORT_UNKNOWN);
        if short.is_none() || short == self.short(node) {
            return;
        }
        self.nodes.values_mut().filter(|other| other.short == short).for_each(|other| other.short = None);
        if let Some(node) = self.nodes.get_mut(&node) {
            node.short = short;
        }
    }

    fn short(&self, node: u64) -> Option<u16> {
        self.nodes.get(&node)?.short
    }

    /// Who has it: one at most.
    fn with_short(&self, short: u16) -> Option<u64> {
        self.nodes.iter().find(|(_, node)| node.short == Some(short)).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests;
