//! A plain serial line: every frame of MQTT-SN is a frame of the line, and whoever is at the other end has sent it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Count;
use super::fault::Fault;
use super::line::{Line, Pacer};
use super::speech::Event;
use crate::framing::{Decoder, FRAME_LEN_MAX, Framing, xbee};
use crate::gateway::io::Address;
use crate::wire;

/// How much may wait for a line, in time of that line: more than this is better said again later, for the node does not know
/// that its answer is only late. At least one frame may wait, however slow the line is.
pub const QUEUE_TIME_MAX: Duration = Duration::from_secs(2);

/// The least silence that ends a frame: USB adapters hand octets over in pieces, FTDI's up to 16 ms apart.
const GAP_MIN: Duration = Duration::from_millis(50);

/// The same for slow lines, in octets.
const GAP_OCTETS: usize = 20;

/// Octets without a message, and silences between them, that are no beginning in the middle of a frame, but a line on which
/// nothing can be understood.
const GARBAGE_MIN: (u64, u32) = (64, 3);

/// How long a line may be open before it is strange that nothing was heard on it.
const UNHEARD_MINUTES: u64 = 5;

/// The conversation on a plain line.
#[derive(Debug)]
pub(super) struct Framed {
    line: Line,
    framing: Framing,
    decoder: Decoder,
    pacer: Pacer,
    /// What waits, as it goes on the line, and its octets.
    queue: VecDeque<Bytes>,
    queued: usize,
    events: VecDeque<Event>,
    /// When the line has been silent long enough.
    idle_at: Option<Instant>,
    ear: Ear,
}

/// What was heard since the device was opened, and what is to be thought of it.
#[derive(Debug)]
struct Ear {
    /// A message was understood. From then on what is not is noise.
    understood: bool,
    /// Octets, and silences after them.
    octets: u64,
    bursts: u32,
    /// The same octets as an XBee writes them, plain and escaped.
    apis: [xbee::Decoder; 2],
    told: bool,
    unheard_at: Option<Instant>,
}

impl Ear {
    fn new(unheard_at: Option<Instant>) -> Self {
        let apis = [xbee::Mode::Plain, xbee::Mode::Escaped].map(xbee::Decoder::new);
        Self { understood: false, octets: 0, bursts: 0, apis, told: false, unheard_at }
    }
}

/// How long a line is silent after a frame, at least: [`GAP_MIN`], longer on a slow one.
pub(super) fn gap(line: &Line) -> Duration {
    GAP_MIN.max(line.time_of(GAP_OCTETS))
}

impl Framed {
    pub(super) fn new(line: Line, framing: Framing) -> Self {
        Self {
            pacer: Pacer::new(line.clone()),
            line,
            framing,
            decoder: Decoder::new(framing),
            queue: VecDeque::new(),
            queued: 0,
            events: VecDeque::new(),
            idle_at: None,
            ear: Ear::new(None),
        }
    }

    pub(super) fn handle_open(&mut self, now: Instant) {
        self.decoder = Decoder::new(self.framing);
        self.pacer.reset();
        self.idle_at = None;
        self.ear = Ear::new(Some(now + Duration::from_secs(60 * UNHEARD_MINUTES)));
        self.events.push_back(Event::Up);
    }

    pub(super) fn handle_gone(&mut self) {
        self.drop_queue(Count::NotUp);
    }

    pub(super) fn drop_queue(&mut self, count: Count) {
        if !self.queue.is_empty() {
            self.events.push_back(Event::Count(count, self.queue.len()));
        }
        self.queue.clear();
        self.queued = 0;
    }

    pub(super) fn handle_octets(&mut self, now: Instant, octets: &[u8]) {
        self.ear.unheard_at = None;
        self.idle_at = Some(now + gap(&self.line));
        if !self.ear.understood {
            self.ear.octets += octets.len() as u64;
            self.listen_for_api(octets);
        }
        let before = *self.decoder.counters();
        self.decoder.push(octets);
        self.take_frames(before);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.idle_at.is_some_and(|at| at <= now) {
            self.idle_at = None;
            let before = *self.decoder.counters();
            self.decoder.idle();
            self.take_frames(before);
            self.ear.bursts += 1;
            self.judge();
        }
        if self.ear.unheard_at.is_some_and(|at| at <= now) {
            self.ear.unheard_at = None;
            self.tell(Fault::Unheard {
                device: self.line.device.clone(),
                spoken: self.line.spoken(),
                minutes: UNHEARD_MINUTES,
            });
        }
    }

    pub(super) fn handle_send(&mut self, frame: &[u8]) {
        if frame.len() > FRAME_LEN_MAX {
            return self.events.push_back(Event::Count(Count::TooLong, 1));
        }
        let mut octets = BytesMut::new();
        self.framing.encode(frame, &mut octets);
        if !self.queue.is_empty() && self.line.time_of(self.queued + octets.len()) > QUEUE_TIME_MAX {
            return self.events.push_back(Event::Count(Count::QueueFull, 1));
        }
        self.queued += octets.len();
        self.queue.push_back(octets.freeze());
    }

    pub(super) fn poll_octets(&mut self, now: Instant) -> Option<Bytes> {
        if self.pacer.busy_until(now).is_some() {
            return None;
        }
        let octets = self.queue.pop_front()?;
        self.queued -= octets.len();
        self.pacer.write(now, octets.len());
        self.events.push_back(Event::Count(Count::Sent, 1));
        Some(octets)
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let room = self.pacer.busy_until(now).filter(|_| !self.queue.is_empty());
        [self.idle_at, self.ear.unheard_at, room].into_iter().flatten().min()
    }

    pub(super) fn out_at(&self, now: Instant) -> Option<Instant> {
        match self.queue.is_empty() {
            true => self.pacer.out_at(now),
            false => Some(self.pacer.out_at(now).unwrap_or(now) + self.line.time_of(self.queued)),
        }
    }

    /// Gives on what the decoder has made of the octets, and counts what it has not.
    fn take_frames(&mut self, before: crate::framing::Counters) {
        while let Some(frame) = self.decoder.poll_frame() {
            if wire::decode(&frame).is_ok() {
                self.understand();
            }
            self.events.push_back(Event::Frame(Address::Serial, frame));
        }
        let after = self.decoder.counters();
        let losses = [
            (Count::Damaged, after.lost() - before.lost()),
            (Count::GarbageOctets, after.octets_dropped - before.octets_dropped),
        ];
        for (count, more) in losses.into_iter().filter(|(_, more)| *more > 0) {
            self.events.push_back(Event::Count(count, usize::try_from(more).unwrap_or(usize::MAX)));
        }
    }

    fn understand(&mut self) {
        self.ear.understood = true;
        if std::mem::take(&mut self.ear.told) {
            self.events.push_back(Event::Well);
        }
    }

    fn listen_for_api(&mut self, octets: &[u8]) {
        let modes = [xbee::Mode::Plain, xbee::Mode::Escaped];
        let mut heard = None;
        for (mode, decoder) in modes.into_iter().zip(&mut self.ear.apis) {
            decoder.push(octets);
            while let Some(frame) = decoder.poll_frame() {
                // An escaped frame with nothing to escape in it is a plain one too.
                if !matches!(frame, xbee::Frame::Unknown { .. }) {
                    heard = heard.or(Some(mode));
                }
            }
        }
        if let Some(mode) = heard {
            self.tell(Fault::ApiFrames { device: self.line.device.clone(), mode });
        }
    }

    /// A line that has never made sense makes none.
    fn judge(&mut self) {
        let ear = &self.ear;
        let (octets, bursts) = GARBAGE_MIN;
        if !ear.understood && ear.octets >= octets && ear.bursts >= bursts {
            self.tell(Fault::Garbage {
                device: self.line.device.clone(),
                spoken: self.line.spoken(),
                framing: Some(self.framing.name()),
                octets: ear.octets,
            });
        }
    }

    fn tell(&mut self, fault: Fault) {
        if !std::mem::replace(&mut self.ear.told, true) {
            self.events.push_back(Event::Fault(fault));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::line::{Flow, Parity};

    const PINGREQ: &[u8] = &[2, 0x16];

    struct Talk {
        now: Instant,
        framed: Framed,
    }

    impl Talk {
        fn new(baud: u32, framing: Framing) -> Self {
            let device = "/dev/ttyUSB0".into();
            let line =
                Line { device, baud, data_bits: 8, parity: Parity::None, stop_bits: 1, flow: Flow::None };
            let mut talk = Self { now: Instant::now(), framed: Framed::new(line, framing) };
            talk.framed.handle_open(talk.now);
            assert_eq!(talk.events(), [Event::Up]);
            talk
        }

        fn events(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.framed.poll_event()).collect()
        }

        /// Passes time, with what is due on the way; the octets that were written meanwhile.
        fn pass(&mut self, time: Duration) -> usize {
            let (end, mut written) = (self.now + time, 0);
            loop {
                while let Some(octets) = self.framed.poll_octets(self.now) {
                    written += octets.len();
                }
                match self.framed.poll_timeout(self.now).filter(|at| *at <= end) {
                    Some(at) => self.now = self.now.max(at),
                    None => break,
                }
                self.framed.handle_timeout(self.now);
            }
            self.now = end;
            written
        }

        fn hear(&mut self, octets: &[u8]) -> Vec<Event> {
            self.framed.handle_octets(self.now, octets);
            self.events()
        }

        /// Hears something, and silence; the faults that are told.
        fn faults(&mut self, octets: &[u8]) -> Vec<Fault> {
            self.framed.handle_octets(self.now, octets);
            self.pass(Duration::from_secs(1));
            let faults = |event| if let Event::Fault(fault) = event { Some(fault) } else { None };
            self.events().into_iter().filter_map(faults).collect()
        }
    }

    fn encoded(framing: Framing, frame: &[u8]) -> Vec<u8> {
        let mut octets = BytesMut::new();
        framing.encode(frame, &mut octets);
        octets.to_vec()
    }

    #[test]
    fn what_is_sent_takes_the_time_it_takes_on_the_line() {
        let mut talk = Talk::new(9600, Framing::Length);
        for _ in 0..10 {
            talk.framed.handle_send(&[96; 96]);
        }
        assert_eq!(talk.pass(Duration::ZERO), 96, "and no more at once");
        assert_eq!(talk.pass(Duration::from_millis(79)), 0);
        assert_eq!(talk.pass(Duration::from_millis(1)), 96, "20 ms before the first is out");
        assert_eq!(talk.pass(Duration::from_millis(800)), 8 * 96, "without a pause between");
        assert_eq!(talk.framed.out_at(talk.now), Some(talk.now + Duration::from_millis(120)));
        talk.pass(Duration::from_secs(1));
        assert_eq!(talk.framed.out_at(talk.now), None);
        assert_eq!(talk.events(), vec![Event::Count(Count::Sent, 1); 10]);
    }

    #[test]
    fn no_more_waits_than_the_line_sends_in_two_seconds() {
        let mut talk = Talk::new(9600, Framing::Length);
        for _ in 0..30 {
            talk.framed.handle_send(&[96; 96]);
        }
        assert_eq!(talk.events(), vec![Event::Count(Count::QueueFull, 1); 10]);
        assert_eq!(talk.pass(Duration::from_secs(9)), 20 * 96);
        // A slow line has room for one frame.
        let mut talk = Talk::new(300, Framing::Length);
        talk.framed.handle_send(&[250; 250]);
        talk.framed.handle_send(PINGREQ);
        assert_eq!(talk.events(), [Event::Count(Count::QueueFull, 1)]);
        assert_eq!(talk.pass(Duration::ZERO), 250);
    }

    #[test]
    fn what_waits_when_the_device_goes_is_counted_and_not_sent_when_it_is_back() {
        let mut talk = Talk::new(9600, Framing::Slip);
        talk.framed.handle_send(PINGREQ);
        talk.framed.handle_send(PINGREQ);
        talk.framed.handle_gone();
        assert_eq!(talk.events(), [Event::Count(Count::NotUp, 2)]);
        talk.framed.handle_open(talk.now);
        assert_eq!(talk.pass(Duration::from_secs(1)), 0);
    }

    #[test]
    fn a_frame_longer_than_any_is_not_sent() {
        let mut talk = Talk::new(9600, Framing::Cobs);
        talk.framed.handle_send(&[1; FRAME_LEN_MAX + 1]);
        assert_eq!(talk.events(), [Event::Count(Count::TooLong, 1)]);
        assert_eq!(talk.pass(Duration::from_secs(9)), 0);
    }

    #[test]
    fn silence_ends_a_frame_of_the_length_framing_and_damage_is_counted() {
        let mut talk = Talk::new(115_200, Framing::Length);
        assert_eq!(talk.hear(&[9, 0x0C, 1]), []);
        talk.pass(Duration::from_millis(49));
        assert_eq!(talk.events(), []);
        talk.pass(Duration::from_millis(1));
        assert_eq!(talk.events(), [Event::Count(Count::Damaged, 1), Event::Count(Count::GarbageOctets, 3)]);
        let frame = Event::Frame(Address::Serial, Bytes::from_static(PINGREQ));
        assert_eq!(talk.hear(PINGREQ), [frame]);
        // 20 octets at 300 baud.
        let mut talk = Talk::new(300, Framing::Length);
        talk.hear(&[2]);
        talk.pass(Duration::from_millis(600));
        assert_eq!(talk.hear(&[0x16]).len(), 1, "a slow line pauses for longer");
    }

    #[test]
    fn a_line_of_garbage_is_told_once_until_it_makes_sense() {
        for framing in Framing::ALL {
            let mut talk = Talk::new(9600, framing);
            // As a line at another rate sounds: much of it breaks and high bits.
            let noise: Vec<u8> = (0..30u8).map(|i| i.wrapping_mul(37) | 0x80).collect();
            assert_eq!(talk.faults(&noise), []);
            assert_eq!(talk.faults(&noise), [], "it may have begun in the middle of a frame");
            let told = talk.faults(&noise);
            let [Fault::Garbage { octets: 90, framing: Some(name), .. }] = told.as_slice() else {
                panic!("{told:?}")
            };
            assert_eq!(*name, framing.name());
            assert_eq!(talk.faults(&noise), []);
            // Also when a SLIP without a CRC has made a frame of it.
            talk.pass(Duration::from_secs(1));
            let sense = encoded(framing, PINGREQ);
            assert!(talk.hear(&sense).contains(&Event::Well), "{framing}");
            for _ in 0..9 {
                assert_eq!(talk.faults(&noise), [], "a line that made sense has noise");
            }
        }
    }

    #[test]
    fn an_xbee_in_api_mode_is_recognised() {
        let payload = Bytes::from_static(PINGREQ);
        let frame = xbee::Frame::Receive { from: 0x0013_A200_40B1_1122, from_short: 7, options: 1, payload };
        for mode in [xbee::Mode::Plain, xbee::Mode::Escaped] {
            for framing in Framing::ALL {
                let mut talk = Talk::new(9600, framing);
                let mut octets = BytesMut::new();
                frame.encode(mode, &mut octets).unwrap();
                let expected = Fault::ApiFrames { device: "/dev/ttyUSB0".into(), mode };
                assert_eq!(talk.faults(&octets), [expected], "{framing}");
                assert_eq!(talk.faults(&octets), []);
            }
        }
    }

    #[test]
    fn a_line_on_which_nothing_is_heard_is_told_once() {
        let mut talk = Talk::new(9600, Framing::Slip);
        talk.pass(Duration::from_secs(299));
        assert_eq!(talk.events(), []);
        talk.pass(Duration::from_secs(1));
        assert!(matches!(talk.events()[..], [Event::Fault(Fault::Unheard { minutes: 5, .. })]));
        talk.pass(Duration::from_secs(900));
        assert_eq!(talk.events(), []);
        let mut talk = Talk::new(9600, Framing::Slip);
        talk.hear(&[1]);
        talk.pass(Duration::from_secs(900));
        assert!(!talk.events().iter().any(|event| matches!(event, Event::Fault(_))));
    }

    #[test]
    fn whatever_is_heard_does_no_harm() {
        let mut rng = fastrand::Rng::with_seed(7);
        for framing in Framing::ALL {
            let mut talk = Talk::new(9600, framing);
            for _ in 0..2000 {
                let octets: Vec<u8> = (0..rng.usize(0..60)).map(|_| rng.u8(..)).collect();
                talk.hear(&octets);
                talk.pass(Duration::from_millis(rng.u64(0..80)));
            }
            talk.pass(Duration::from_secs(1));
            let frames = talk.hear(&encoded(framing, PINGREQ));
            assert!(
                frames.contains(&Event::Frame(Address::Serial, Bytes::from_static(PINGREQ))),
                "{framing}"
            );
        }
    }
}
