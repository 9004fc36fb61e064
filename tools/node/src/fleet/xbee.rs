//! An XBee in API mode as a value, with nodes in its air: it answers AT commands, delivers what it is asked to transmit, says what became
//! of that, and hands over what it receives.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::xbee::{
    BROADCAST, DELIVERED, Decoder, Frame, Mode, NO_NETWORK_ACKNOWLEDGEMENT, RECEIVED_BROADCAST,
    SHORT_UNKNOWN, TOO_LARGE,
};

use super::radio::Heard;

/// 64-bit addresses of the nodes begin here, with Digi's block.
const FIRST_NODE: u64 = 0x0013_A200_4200_0000;

/// 64-bit address of the radio itself: `SH` and `SL`.
const OWN: u64 = 0x0013_A200_41AB_CDEF;

/// What a received frame says about its strength, in -dBm.
const RSSI: u8 = 0x2C;

/// Frames after which a node has another 16-bit address, as after joining the network again.
const SHORT_FRAMES: u32 = 16;

/// How long a transmission takes until its status is known, and how much longer it may take.
const FLIGHT: Duration = Duration::from_millis(4);
const DETOUR: Duration = Duration::from_millis(20);

const ADDRESS_NOT_FOUND: u8 = 0x24;
const SELF_ADDRESSED: u8 = 0x23;

/// Status of an AT command.
const AT_OK: u8 = 0;
const AT_INVALID_COMMAND: u8 = 2;
const AT_INVALID_PARAMETER: u8 = 3;

/// How the module is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    /// `NP`: octets in the largest payload.
    pub(crate) payload_max: u16,
    /// `AO`: 0 hands over 90, 1 hands over 91, 2 hands over 80.
    pub(crate) output: u8,
    /// Share of the transmissions that fail, 0 to 1; half of them arrive, and only their acknowledgement does not.
    pub(crate) failures: f64,
}

#[derive(Debug)]
pub(super) struct Xbee {
    options: Options,
    decoder: Decoder,
    random: fastrand::Rng,
    parameters: BTreeMap<[u8; 2], Vec<u8>>,
    /// Frames sent by each node.
    nodes: Vec<u32>,
    /// Statuses under way, by the time they are known, then in their order.
    flying: BTreeMap<(Instant, u64), Frame>,
    launched: u64,
    heard: VecDeque<Heard>,
    pub(super) tally: Tally,
}

/// What the module has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// AT commands answered.
    pub(super) commands: u64,
    /// Transmissions asked for.
    pub(super) transmissions: u64,
    /// Of those, failed in the air.
    pub(super) failed: u64,
    /// Of those, refused as too large.
    pub(super) oversized: u64,
    /// Frames of nodes that are too large for the air.
    pub(super) unsendable: u64,
    /// Frames of the gateway that a radio has no use for.
    pub(super) strays: u64,
}

impl Xbee {
    pub(super) fn new(options: Options, nodes: u32, seed: u64) -> Self {
        let mode = match options.mode {
            Mode::Plain => 1,
            Mode::Escaped => 2,
        };
        let [sh, sl] = [(OWN >> 32) as u32, OWN as u32].map(|half| half.to_be_bytes().to_vec());
        let parameters = [
            (*b"AP", vec![mode]),
            (*b"AO", vec![options.output]),
            (*b"NP", options.payload_max.to_be_bytes().to_vec()),
            (*b"EE", vec![0]),
            (*b"SH", sh),
            (*b"SL", sl),
            (*b"MY", vec![0, 0]),
            (*b"ID", 0x1234_u64.to_be_bytes().to_vec()),
            (*b"CH", vec![0x0F]),
            (*b"VR", vec![0x40, 0x61]),
            (*b"HV", vec![0x1E, 0x43]),
            (*b"NI", b"GATEWAY".to_vec()),
            (*b"AI", vec![0]),
            (*b"DB", vec![RSSI]),
        ];
        Self {
            options,
            decoder: Decoder::new(options.mode),
            random: fastrand::Rng::with_seed(seed),
            parameters: parameters.into(),
            nodes: vec![0; nodes as usize],
            flying: BTreeMap::new(),
            launched: 0,
            heard: VecDeque::new(),
            tally: Tally::default(),
        }
    }

    /// It gets power: a hardware reset, and the network is there.
    pub(super) fn start(&mut self, out: &mut BytesMut) {
        for status in [0x00, 0x06] {
            self.write(&Frame::ModemStatus { status }, out);
        }
    }

    /// A node sends a frame to the gateway, or to everybody.
    pub(super) fn handle_frame(&mut self, node: u32, frame: &[u8], out: &mut BytesMut) {
        let Some(sent) = self.nodes.get_mut(node as usize) else { return };
        if frame.len() > self.options.payload_max.into() {
            self.tally.unsendable += 1;
            return;
        }
        *sent += 1;
        let (from, from_short) = (FIRST_NODE + u64::from(node), short(node, *sent));
        let (options, payload) = (0x01, Bytes::copy_from_slice(frame));
        let frame = match self.options.output {
            0 => Frame::Receive { from, from_short, options, payload },
            1 => Frame::ExplicitReceive {
                from,
                from_short,
                source_endpoint: 0xE8,
                destination_endpoint: 0xE8,
                cluster: 0x0011,
                profile: 0xC105,
                options,
                payload,
            },
            _ => Frame::Rx64 { from, rssi: RSSI, options: options & RECEIVED_BROADCAST, payload },
        };
        self.write(&frame, out);
    }

    pub(super) fn handle_octets(&mut self, now: Instant, octets: &[u8], out: &mut BytesMut) {
        self.decoder.push(octets);
        while let Some(frame) = self.decoder.poll_frame() {
            match frame {
                Frame::AtCommand { frame_id, command, value } => self.answer(frame_id, command, value, out),
                Frame::TransmitRequest { frame_id, to, payload, .. } => {
                    let delivery = self.transmit(to, payload);
                    let short = if delivery == DELIVERED { 0x1000 } else { 0xFFFD };
                    let status =
                        Frame::TransmitStatus { frame_id, short, retries: 0, delivery, discovery: 0 };
                    self.launch(now, frame_id, status);
                }
                Frame::Tx64 { frame_id, to, payload, .. } => {
                    let status = legacy(self.transmit(to, payload));
                    self.launch(now, frame_id, Frame::TxStatus { frame_id, status });
                }
                _ => self.tally.strays += 1,
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, out: &mut BytesMut) {
        while let Some(first) = self.flying.first_entry().filter(|first| first.key().0 <= now) {
            let status = first.remove();
            self.write(&status, out);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.flying.keys().next().map(|(at, _)| *at)
    }

    pub(super) fn poll_heard(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    /// Frames lost on the way here.
    pub(super) fn lost(&self) -> u64 {
        self.decoder.counters().lost()
    }

    fn answer(&mut self, frame_id: u8, command: [u8; 2], value: Bytes, out: &mut BytesMut) {
        self.tally.commands += 1;
        let (status, answer) = match self.parameters.get_mut(&command) {
            None => (AT_INVALID_COMMAND, Bytes::new()),
            Some(parameter) if value.is_empty() => (AT_OK, Bytes::from(parameter.clone())),
            Some(parameter) if command == *b"AO" && value.len() == 1 && value[0] <= 2 => {
                self.options.output = value[0];
                *parameter = value.to_vec();
                (AT_OK, Bytes::new())
            }
            // The rest is for a configuration program, not for a gateway.
            Some(_) => (AT_INVALID_PARAMETER, Bytes::new()),
        };
        if frame_id != 0 {
            self.write(&Frame::AtResponse { frame_id, command, status, value: answer }, out);
        }
    }

    /// Sends into the air; the delivery status.
    fn transmit(&mut self, to: u64, payload: Bytes) -> u8 {
        self.tally.transmissions += 1;
        if payload.len() > self.options.payload_max.into() {
            self.tally.oversized += 1;
            return TOO_LARGE;
        }
        if to == BROADCAST {
            self.heard.push_back(Heard::All(payload));
            return DELIVERED;
        }
        if to == OWN {
            return SELF_ADDRESSED;
        }
        let Some(node) = to.checked_sub(FIRST_NODE).filter(|node| *node < self.nodes.len() as u64) else {
            return ADDRESS_NOT_FOUND;
        };
        let (fails, arrives) = (self.random.f64() < self.options.failures, self.random.bool());
        if !fails || arrives {
            self.heard.push_back(Heard::One(node as u32, payload));
        }
        self.tally.failed += u64::from(fails);
        if fails { NO_NETWORK_ACKNOWLEDGEMENT } else { DELIVERED }
    }

    fn launch(&mut self, now: Instant, frame_id: u8, status: Frame) {
        let at = now + FLIGHT + DETOUR.mul_f64(self.random.f64());
        if frame_id != 0 {
            self.launched += 1;
            self.flying.insert((at, self.launched), status);
        }
    }

    fn write(&self, frame: &Frame, out: &mut BytesMut) {
        // What a module writes is never too long: payloads were measured.
        let _ = frame.encode(self.options.mode, out);
    }
}

/// The 16-bit address of a node after so many frames.
fn short(node: u32, sent: u32) -> u16 {
    let short = (node.wrapping_mul(40_503) ^ (sent / SHORT_FRAMES).wrapping_mul(7919)) as u16;
    if short >= 0xFFFD { SHORT_UNKNOWN } else { short }
}

/// A delivery status as 89 says it.
fn legacy(delivery: u8) -> u8 {
    match delivery {
        DELIVERED | TOO_LARGE => delivery,
        _ => 0x01,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options { mode: Mode::Escaped, payload_max: 84, output: 0, failures: 0.0 };

    fn transmit(frame_id: u8, to: u64, len: usize) -> Frame {
        let payload = Bytes::from(vec![0x7E; len]);
        Frame::TransmitRequest { frame_id, to, to_short: SHORT_UNKNOWN, radius: 0, options: 0, payload }
    }

    /// What the module writes and delivers for what it is told, until nothing is under way.
    fn told(xbee: &mut Xbee, frames: &[Frame]) -> (Vec<Frame>, Vec<Heard>) {
        let (now, mode) = (Instant::now(), xbee.options.mode);
        let (mut line, mut out) = (BytesMut::new(), BytesMut::new());
        frames.iter().for_each(|frame| frame.encode(mode, &mut line).unwrap());
        xbee.handle_octets(now, &line, &mut out);
        while let Some(at) = xbee.poll_timeout() {
            assert!(at <= now + FLIGHT + DETOUR);
            xbee.handle_timeout(at, &mut out);
        }
        (read(mode, &out), std::iter::from_fn(|| xbee.poll_heard()).collect())
    }

    fn read(mode: Mode, octets: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::new(mode);
        decoder.push(octets);
        std::iter::from_fn(|| decoder.poll_frame()).collect()
    }

    fn ask(command: &[u8; 2], value: &'static [u8]) -> Frame {
        Frame::AtCommand { frame_id: 9, command: *command, value: Bytes::from_static(value) }
    }

    fn status(frame_id: u8, delivery: u8) -> Frame {
        let short = if delivery == DELIVERED { 0x1000 } else { 0xFFFD };
        Frame::TransmitStatus { frame_id, short, retries: 0, delivery, discovery: 0 }
    }

    #[test]
    fn a_start_is_told_by_modem_status() {
        let mut out = BytesMut::new();
        Xbee::new(OPTIONS, 1, 0).start(&mut out);
        let said = [Frame::ModemStatus { status: 0 }, Frame::ModemStatus { status: 6 }];
        assert_eq!(read(Mode::Escaped, &out), said);
    }

    #[test]
    fn at_commands_are_answered_and_unknown_ones_refused() {
        let mut xbee = Xbee::new(OPTIONS, 1, 0);
        for (command, value) in [
            (b"AP", vec![2]),
            (b"NP", vec![0, 84]),
            (b"EE", vec![0]),
            (b"SH", vec![0x00, 0x13, 0xA2, 0x00]),
            (b"SL", vec![0x41, 0xAB, 0xCD, 0xEF]),
            (b"ID", vec![0, 0, 0, 0, 0, 0, 0x12, 0x34]),
            (b"CH", vec![0x0F]),
            (b"VR", vec![0x40, 0x61]),
        ] {
            let (frame_id, command, value) = (9, *command, Bytes::from(value));
            let answer = Frame::AtResponse { frame_id, command, status: AT_OK, value };
            assert_eq!(told(&mut xbee, &[ask(&command, &[])]).0, [answer]);
        }
        let refused = |command: &[u8; 2], status| Frame::AtResponse {
            frame_id: 9,
            command: *command,
            status,
            value: Bytes::new(),
        };
        assert_eq!(told(&mut xbee, &[ask(b"QQ", &[])]).0, [refused(b"QQ", AT_INVALID_COMMAND)]);
        assert_eq!(told(&mut xbee, &[ask(b"NP", &[1])]).0, [refused(b"NP", AT_INVALID_PARAMETER)]);
        let silent = Frame::AtCommand { frame_id: 0, command: *b"NP", value: Bytes::new() };
        assert_eq!(told(&mut xbee, &[silent]).0, []);
        assert_eq!(xbee.tally.commands, 11);
    }

    #[test]
    fn a_transmission_arrives_and_its_status_says_so() {
        let mut xbee = Xbee::new(OPTIONS, 3, 0);
        let (said, heard) = told(&mut xbee, &[transmit(7, FIRST_NODE + 2, 84)]);
        assert_eq!(said, [status(7, DELIVERED)]);
        assert_eq!(heard, [Heard::One(2, vec![0x7E; 84].into())]);
        assert_eq!(told(&mut xbee, &[transmit(0, FIRST_NODE, 1)]).0, [], "frame id 0 asks for no status");
    }

    #[test]
    fn everybody_hears_a_broadcast() {
        let (said, heard) = told(&mut Xbee::new(OPTIONS, 3, 0), &[transmit(7, BROADCAST, 3)]);
        assert_eq!(said, [status(7, DELIVERED)]);
        assert_eq!(heard, [Heard::All(vec![0x7E; 3].into())]);
    }

    #[test]
    fn what_cannot_be_sent_is_refused_by_its_status() {
        let mut xbee = Xbee::new(OPTIONS, 3, 0);
        for (frame, delivery) in [
            (transmit(7, FIRST_NODE, 85), TOO_LARGE),
            (transmit(7, FIRST_NODE + 3, 1), ADDRESS_NOT_FOUND),
            (transmit(7, 0, 1), ADDRESS_NOT_FOUND),
            (transmit(7, OWN, 1), SELF_ADDRESSED),
        ] {
            assert_eq!(told(&mut xbee, &[frame]), (vec![status(7, delivery)], vec![]));
        }
        assert_eq!((xbee.tally.transmissions, xbee.tally.oversized), (4, 1));
    }

    #[test]
    fn transmissions_fail_as_often_as_asked_for_and_half_of_those_arrive() {
        let mut xbee = Xbee::new(Options { failures: 0.2, ..OPTIONS }, 1, 1);
        let (mut failed, mut arrived) = (0, 0);
        for _ in 0..2000 {
            let (said, heard) = told(&mut xbee, &[transmit(7, FIRST_NODE, 1)]);
            let failure = said == [status(7, NO_NETWORK_ACKNOWLEDGEMENT)];
            assert!(failure || said == [status(7, DELIVERED)]);
            assert!(failure || heard.len() == 1);
            failed += u64::from(failure);
            arrived += u64::from(failure && heard.len() == 1);
        }
        assert!((320..480).contains(&failed) && (150..250).contains(&arrived), "{failed}, {arrived}");
        assert_eq!(xbee.tally.failed, failed);
    }

    #[test]
    fn legacy_requests_get_legacy_statuses() {
        let request = |to| Frame::Tx64 { frame_id: 3, to, options: 0, payload: Bytes::from_static(&[1]) };
        let mut xbee = Xbee::new(OPTIONS, 1, 0);
        let (said, heard) = told(&mut xbee, &[request(FIRST_NODE)]);
        assert_eq!(said, [Frame::TxStatus { frame_id: 3, status: 0 }]);
        assert_eq!(heard.len(), 1);
        assert_eq!(told(&mut xbee, &[request(1)]).0, [Frame::TxStatus { frame_id: 3, status: 1 }]);
    }

    #[test]
    fn a_frame_of_a_node_is_handed_over_as_asked_for() {
        for output in 0..3 {
            for mode in [Mode::Plain, Mode::Escaped] {
                let mut xbee = Xbee::new(Options { mode, output, ..OPTIONS }, 5, 0);
                let mut out = BytesMut::new();
                xbee.handle_frame(4, &[2, 0x17], &mut out);
                let (from, payload) = (FIRST_NODE + 4, Bytes::from_static(&[2, 0x17]));
                let frames = read(mode, &out);
                let [frame] = &frames[..] else { panic!("{frames:?}") };
                match (output, frame) {
                    (0, Frame::Receive { from: f, payload: p, .. })
                    | (1, Frame::ExplicitReceive { from: f, payload: p, .. })
                    | (2, Frame::Rx64 { from: f, payload: p, .. }) => {
                        assert_eq!((*f, p), (from, &payload));
                    }
                    _ => panic!("AO={output} {mode:?}: {frame:?}"),
                }
            }
        }
    }

    #[test]
    fn how_frames_are_handed_over_can_be_set() {
        let mut xbee = Xbee::new(OPTIONS, 1, 0);
        let done = Frame::AtResponse { frame_id: 9, command: *b"AO", status: AT_OK, value: Bytes::new() };
        assert_eq!(told(&mut xbee, &[ask(b"AO", &[1])]).0, [done]);
        let mut out = BytesMut::new();
        xbee.handle_frame(0, &[2, 0x17], &mut out);
        assert!(matches!(read(Mode::Escaped, &out)[..], [Frame::ExplicitReceive { .. }]));
    }

    #[test]
    fn what_a_node_says_must_fit_into_the_air() {
        let mut xbee = Xbee::new(OPTIONS, 1, 0);
        let mut out = BytesMut::new();
        xbee.handle_frame(0, &[0; 85], &mut out);
        assert!(out.is_empty());
        assert_eq!(xbee.tally.unsendable, 1);
    }

    #[test]
    fn the_short_address_of_a_node_changes_and_the_long_one_does_not() {
        let mut xbee = Xbee::new(OPTIONS, 2, 0);
        let mut shorts = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut out = BytesMut::new();
            xbee.handle_frame(1, &[2, 0x17], &mut out);
            let Frame::Receive { from, from_short, .. } = &read(Mode::Escaped, &out)[0] else { panic!() };
            assert_eq!(*from, FIRST_NODE + 1);
            shorts.insert(*from_short);
        }
        assert_eq!(shorts.len(), 7);
    }

    #[test]
    fn a_damaged_frame_is_lost_and_nothing_else() {
        let mut xbee = Xbee::new(OPTIONS, 1, 0);
        let mut line = BytesMut::new();
        transmit(1, FIRST_NODE, 5).encode(Mode::Escaped, &mut line).unwrap();
        line[9] ^= 1;
        transmit(2, FIRST_NODE, 5).encode(Mode::Escaped, &mut line).unwrap();
        let (now, mut out) = (Instant::now(), BytesMut::new());
        xbee.handle_octets(now, &line, &mut out);
        xbee.handle_timeout(now + FLIGHT + DETOUR, &mut out);
        assert_eq!(read(Mode::Escaped, &out), [status(2, DELIVERED)]);
        assert_eq!(xbee.lost(), 1);
    }
}
