//! Conversations with a radio that says what the test tells it to, on a virtual clock.

use super::*;
use crate::transport::line::{Flow, Parity};

const N1: u64 = 0x0013_A200_40B1_0001;
const N2: u64 = 0x0013_A200_40B1_0002;

/// A radio's serial side, and the node behind it that the test plays.
struct Talk {
    now: Instant,
    radio: Radio,
    /// How the radio of the test writes.
    mode: Mode,
    decoder: Decoder,
    /// What the gateway wrote beside frames.
    raw: Vec<u8>,
    written: VecDeque<Frame>,
}

impl Talk {
    fn new(configured: Mode, mode: Mode) -> Self {
        Self::with_mtu(configured, mode, None)
    }

    fn with_mtu(configured: Mode, mode: Mode, mtu: Option<usize>) -> Self {
        let device = "/dev/ttyUSB0".into();
        let line = Line {
            device,
            baud: 115_200,
            data_bits: 8,
            parity: Parity::None,
            stop_bits: 1,
            flow: Flow::None,
        };
        let mut radio = Radio::new(line, configured, mtu);
        let now = Instant::now();
        radio.handle_open(now);
        let (decoder, raw, written) = (Decoder::new(mode), Vec::new(), VecDeque::new());
        Self { now, radio, mode, decoder, raw, written }
    }

    /// One that has said what it is.
    fn alive() -> Self {
        let mut talk = Self::new(Mode::Escaped, Mode::Escaped);
        talk.introduce(&zigbee());
        talk.events();
        talk
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.radio.poll_event()).collect()
    }

    /// Passes time, with what is due on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while let Some(octets) = self.radio.poll_octets(self.now) {
                // Both modes are read by what is written in them, and not by chance.
                self.decoder.push(&octets);
                let before = self.written.len();
                self.written.extend(std::iter::from_fn(|| self.decoder.poll_frame()));
                if before == self.written.len() {
                    self.raw.extend(&octets);
                }
            }
            match self.radio.poll_timeout(self.now).filter(|at| *at <= end) {
                Some(at) => self.now = self.now.max(at),
                None => break,
            }
            self.radio.handle_timeout(self.now);
        }
        self.now = end;
    }

    /// The next frame the gateway writes within a second.
    #[track_caller]
    fn next(&mut self) -> Frame {
        for _ in 0..1000 {
            self.pass(Duration::ZERO);
            if let Some(frame) = self.written.pop_front() {
                return frame;
            }
            self.pass(Duration::from_millis(1));
        }
        panic!("nothing is written");
    }

    #[track_caller]
    fn nothing_for(&mut self, time: Duration) {
        self.pass(time);
        assert_eq!((self.written.front(), self.raw.as_slice()), (None, &b""[..]));
    }

    fn say(&mut self, frame: &Frame) {
        let mut octets = BytesMut::new();
        frame.encode(self.mode, &mut octets).unwrap();
        self.radio.handle_octets(self.now, &octets);
    }

    /// Answers questions from a table until there are no more; what is not in it is no command.
    fn introduce(&mut self, answers: &[(&[u8; 2], &[u8])]) {
        for _ in 0..QUESTIONS.len() {
            let Frame::AtCommand { frame_id, command, value } = self.next() else { panic!("no question") };
            assert!(value.is_empty(), "it is asked and not set");
            let known = answers.iter().find(|(known, _)| **known == command);
            let (status, value) = known.map_or((2, &[][..]), |(_, value)| (0, *value));
            let value = Bytes::copy_from_slice(value);
            self.say(&Frame::AtResponse { frame_id, command, status, value });
        }
    }

    fn send(&mut self, node: u64, frame: &'static [u8]) {
        self.radio.handle_send(self.now, To::One(Address::Xbee(node)), &Bytes::from_static(frame));
    }

    /// The next transmission: its id, whom it is for, and its payload.
    #[track_caller]
    fn sent(&mut self) -> (u8, u64, Bytes) {
        match self.next() {
            Frame::TransmitRequest { frame_id, to, payload, .. } => (frame_id, to, payload),
            frame => panic!("{frame:?}"),
        }
    }

    fn status(&mut self, frame_id: u8, delivery: u8) {
        self.say(&Frame::TransmitStatus { frame_id, short: 0x1234, retries: 0, delivery, discovery: 0 });
    }
}

fn zigbee() -> [(&'static [u8; 2], &'static [u8]); 8] {
    [
        (b"AP", &[2]),
        (b"VR", &[0x40, 0x60]),
        (b"NP", &[0, 84]),
        (b"EE", &[0]),
        (b"SH", &[0, 0x13, 0xA2, 0]),
        (b"SL", &[0x40, 0xB1, 0x11, 0x22]),
        (b"ID", &[0, 0, 0, 0, 0, 0, 0x12, 0x34]),
        (b"CH", &[0x0F]),
    ]
}

fn receive(from: u64, payload: &'static [u8]) -> Frame {
    Frame::Receive { from, from_short: 0x1234, options: 1, payload: Bytes::from_static(payload) }
}

fn heard(from: u64, payload: &'static [u8]) -> Event {
    Event::Frame(Address::Xbee(from), Bytes::from_static(payload))
}

fn count(count: Count) -> Event {
    Event::Count(count, 1)
}

fn device() -> std::path::PathBuf {
    "/dev/ttyUSB0".into()
}

#[test]
fn a_radio_is_asked_what_it_is_and_one_line_tells_it() {
    for mode in [Mode::Plain, Mode::Escaped] {
        let mut talk = Talk::new(mode, mode);
        let mut answers = zigbee();
        answers[0].1 = if mode == Mode::Plain { &[1] } else { &[2] };
        talk.introduce(&answers);
        let ap = answers[0].1[0];
        assert_eq!(
            talk.events(),
            [
                Event::Up,
                Event::Mtu(84),
                Event::Told(format!(
                    "XBee 0013A20040B11122: AP {ap}, VR 4060, ID 1234, CH F, EE 0, NP 84 octets"
                )),
            ]
        );
        talk.nothing_for(Duration::from_secs(100));
    }
}

#[test]
fn what_a_radio_takes_is_in_a_table_if_it_does_not_say() {
    for (version, encrypts, mtu) in [
        (&[0x10, 0xEF][..], &[0][..], 100),
        (&[0x10, 0xEF], &[1], 95),
        (&[0x21, 0xA7], &[0], 84),
        (&[0x21, 0xA7], &[1], 66),
        (&[0x80, 0x73], &[0], 73),
        (&[0x90, 0x02], &[1], 73),
        (&[0xF0, 0], &[0], 72),
    ] {
        let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
        talk.introduce(&[(b"AP", &[2]), (b"VR", version), (b"EE", encrypts)]);
        assert!(talk.events().contains(&Event::Mtu(mtu)), "{version:X?}");
    }
    for np in [&[0, 3][..], &[], &[0xFF, 0xFF]] {
        let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
        talk.introduce(&[(b"AP", &[2]), (b"VR", &[0x40, 0]), (b"NP", np)]);
        assert!(talk.events().contains(&Event::Mtu(84)), "NP {np:?} is not believed");
    }
}

#[test]
fn a_question_is_put_three_times_and_then_the_next() {
    let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
    let Frame::AtCommand { frame_id, .. } = talk.next() else { panic!() };
    let value = Bytes::from_static(&[2]);
    talk.say(&Frame::AtResponse { frame_id, command: *b"AP", status: 0, value });
    let mut asked = Vec::new();
    talk.pass(Duration::from_secs(60));
    while let Some(frame) = talk.written.pop_front() {
        let Frame::AtCommand { command, .. } = frame else { panic!("{frame:?}") };
        asked.push(command);
    }
    let expected: Vec<_> = QUESTIONS[1..].iter().flat_map(|command| [*command; 3]).collect();
    assert_eq!(asked, expected);
    assert!(talk.events().contains(&Event::Mtu(72)));
}

#[test]
fn a_frame_before_the_answer_brings_the_port_up() {
    let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
    talk.say(&receive(N1, b"\x02\x16"));
    assert_eq!(talk.events(), [Event::Up, heard(N1, b"\x02\x16")]);
    talk.send(N1, b"\x02\x17");
    talk.introduce(&zigbee());
    assert_eq!(talk.sent().1, N1);
}

/// What is sent the moment the port is up is for everybody (§6.1), and not said again for a long time.
#[test]
fn nothing_is_sent_before_it_is_known_in_which_frames() {
    let advertise = Bytes::from_static(&[5, 0, 1, 4, 0xB0]);
    let to_all = |frame_id, payload: &Bytes| Frame::TransmitRequest {
        frame_id,
        to: BROADCAST,
        to_short: 0xFFFE,
        radius: 0,
        options: 0,
        payload: payload.clone(),
    };
    // 802.15.4, series 1: it knows frames of its own only.
    let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
    talk.say(&Frame::ModemStatus { status: 2 });
    assert_eq!(talk.events()[0], Event::Up);
    talk.radio.handle_send(talk.now, To::All(0), &advertise);
    talk.introduce(&[(b"AP", &[2]), (b"VR", &[0x10, 0xEF])]);
    talk.radio_wrote(Frame::Tx64 { frame_id: 9, to: BROADCAST, options: 0, payload: advertise.clone() });
    talk.nothing_for(Duration::from_secs(1));

    // One that answers nothing is given up after longer than a frame may wait: what is for one node is dropped meanwhile.
    let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
    talk.say(&receive(N1, b"\x02\x16"));
    talk.radio.handle_send(talk.now, To::All(0), &advertise);
    talk.send(N1, b"\x02\x17");
    let mut questions = 0;
    let frame = loop {
        match talk.next() {
            Frame::AtCommand { .. } => questions += 1,
            frame => break frame,
        }
        talk.say(&receive(N1, b"\x02\x16"));
    };
    assert_eq!((questions, &frame), (QUESTIONS.len() * 3, &to_all(25, &advertise)));
    assert_eq!(talk.events().into_iter().filter(|event| *event == count(Count::QueueFull)).count(), 1);

    // After a reset too, as it may be set otherwise.
    let mut talk = Talk::alive();
    talk.say(&Frame::ModemStatus { status: 0 });
    talk.send(N1, b"\x02\x17");
    talk.introduce(&zigbee());
    assert_eq!(talk.sent().1, N1);
}

#[test]
fn frames_of_every_kind_come_from_whom_they_say() {
    let payload = Bytes::from_static(b"\x02\x16");
    let explicit = |cluster| Frame::ExplicitReceive {
        from: N2,
        from_short: 0x22,
        source_endpoint: 0xE8,
        destination_endpoint: 0xE8,
        cluster,
        profile: 0xC105,
        options: 1,
        payload: payload.clone(),
    };
    let mut talk = Talk::alive();
    for (frame, event) in [
        (receive(N1, b"\x02\x16"), heard(N1, b"\x02\x16")),
        (explicit(0x11), heard(N2, b"\x02\x16")),
        (explicit(0x12), count(Count::Foreign)),
        (Frame::Rx64 { from: N1, rssi: 40, options: 0, payload: payload.clone() }, heard(N1, b"\x02\x16")),
        (Frame::Rx16 { from: 0, rssi: 40, options: 0, payload: payload.clone() }, heard(SHORT, b"\x02\x16")),
        // The radio does not know the long address: it is that of who had the short one.
        (receive(u64::MAX, b"\x02\x16"), heard(N1, b"\x02\x16")),
        (Frame::Unknown { kind: 0x95, body: Bytes::new() }, count(Count::Foreign)),
        (Frame::TxStatus { frame_id: 99, status: 0 }, count(Count::Foreign)),
        (
            Frame::AtResponse { frame_id: 99, command: *b"ZZ", status: 0, value: Bytes::new() },
            count(Count::Foreign),
        ),
        (
            Frame::TransmitStatus { frame_id: 99, short: 0, retries: 0, delivery: 0, discovery: 0 },
            count(Count::Foreign),
        ),
        (
            Frame::TransmitRequest {
                frame_id: 1,
                to: N1,
                to_short: 0,
                radius: 0,
                options: 0,
                payload: payload.clone(),
            },
            count(Count::Foreign),
        ),
        (Frame::ModemStatus { status: 2 }, Event::Told("the radio joined its network".into())),
        (Frame::ModemStatus { status: 0x3E }, Event::Told("the radio has status 3E".into())),
    ] {
        talk.say(&frame);
        assert_eq!(talk.events(), [event], "{frame:?}");
    }
    talk.say(&Frame::Receive { from: u64::MAX, from_short: 0x77, options: 0, payload });
    assert_eq!(talk.events(), [heard(SHORT | 0x77, b"\x02\x16")], "nobody had that short one");
}

#[test]
fn a_short_address_is_of_whom_it_was_heard_last() {
    let from = |from, from_short| Frame::Receive {
        from,
        from_short,
        options: 1,
        payload: Bytes::from_static(b"\x02\x16"),
    };
    let mut talk = Talk::alive();
    let mut is_of = |frames: &[(u64, u16)], node| {
        for (long, short) in frames {
            talk.say(&from(*long, *short));
        }
        talk.events();
        talk.say(&from(u64::MAX, 0x1111));
        assert_eq!(talk.events(), [heard(node, b"\x02\x16")]);
    };
    // Whoever comes first in the list of nodes has no right to it.
    is_of(&[(N1, 0x1111), (N2, 0x1111)], N2);
    is_of(&[(N1, 0x1111)], N1);
    is_of(&[(N2, 0x2222)], N1);
    is_of(&[(N1, 0x3333)], SHORT | 0x1111);
    // Where the radio sent to is as good.
    is_of(&[(N1, 0x1111)], N1);
    talk.nothing_but_questions();
    talk.send(N2, b"a");
    let (frame_id, ..) = talk.sent();
    let delivery = DELIVERED;
    talk.say(&Frame::TransmitStatus { frame_id, short: 0x1111, retries: 0, delivery, discovery: 0 });
    talk.events();
    talk.say(&from(u64::MAX, 0x1111));
    assert_eq!(talk.events(), [heard(N2, b"\x02\x16")]);
}

#[test]
fn answers_are_addressed_as_the_node_was_heard() {
    let mut talk = Talk::alive();
    let payload = Bytes::from_static(b"\x02\x17");
    talk.send(N1, b"\x02\x17");
    let request = |frame_id, to, to_short, radius| Frame::TransmitRequest {
        frame_id,
        to,
        to_short,
        radius,
        options: 0,
        payload: payload.clone(),
    };
    let Frame::TransmitRequest { frame_id: id, .. } = talk.radio_wrote(request(9, N1, 0xFFFE, 0)) else {
        panic!()
    };
    talk.status(id, DELIVERED);
    talk.say(&receive(N1, b"\x02\x16"));
    talk.next_question();
    talk.send(N1, b"\x02\x17");
    talk.radio_wrote(request(10, N1, 0x1234, 0));
    talk.radio.handle_send(talk.now, To::All(3), &payload);
    talk.radio_wrote(request(11, BROADCAST, 0xFFFE, 3));
    talk.send(SHORT | 0x77, b"\x02\x17");
    talk.radio_wrote(request(12, u64::MAX, 0x77, 0));
    (1..=talk.radio.last_id).for_each(|id| talk.status(id, DELIVERED));
    // An early module says who was heard how strongly, and is spoken to in its own frames.
    talk.say(&Frame::Rx64 { from: N1, rssi: 40, options: 0, payload: payload.clone() });
    talk.send(N1, b"\x02\x17");
    talk.radio_wrote(Frame::Tx64 { frame_id: 13, to: N1, options: 0, payload: payload.clone() });
    talk.say(&Frame::Rx16 { from: 5, rssi: 40, options: 0, payload: payload.clone() });
    talk.send(SHORT | 5, b"\x02\x17");
    talk.radio_wrote(Frame::Tx16 { frame_id: 14, to: 5, options: 0, payload: payload.clone() });
    talk.radio.handle_send(talk.now, To::All(0), &payload);
    talk.radio_wrote(Frame::Tx64 { frame_id: 15, to: BROADCAST, options: 0, payload });
}

impl Talk {
    /// The next frame is this one, but for its id.
    #[track_caller]
    fn radio_wrote(&mut self, expected: Frame) -> Frame {
        let mut frame = self.next();
        while matches!(frame, Frame::AtCommand { .. }) {
            frame = self.next();
        }
        let plain = |frame: &Frame| {
            let mut data = BytesMut::new();
            frame.encode(Mode::Plain, &mut data).unwrap();
            // Without start, length, id and checksum.
            let mut data = data.to_vec();
            data.truncate(data.len() - 1);
            data.remove(4);
            data
        };
        assert_eq!(plain(&frame), plain(&expected), "{frame:?}");
        frame
    }

    #[track_caller]
    fn nothing_but_questions(&mut self) {
        self.pass(Duration::from_secs(5));
        let mut written = std::mem::take(&mut self.written).into_iter();
        assert!(written.all(|frame| matches!(frame, Frame::AtCommand { .. })));
    }

    #[track_caller]
    fn next_question(&mut self) -> (u8, [u8; 2]) {
        match self.next() {
            Frame::AtCommand { frame_id, command, .. } => (frame_id, command),
            frame => panic!("{frame:?}"),
        }
    }
}

#[test]
fn one_frame_for_each_node_and_four_in_all_are_under_way() {
    let mut talk = Talk::alive();
    talk.send(N1, b"a1");
    talk.send(N1, b"a2");
    for node in 2..8 {
        talk.send(N1 + node, b"b");
    }
    let under_way: Vec<_> = (0..4).map(|_| talk.sent()).collect();
    assert_eq!(under_way.iter().map(|(_, to, _)| to - N1).collect::<Vec<_>>(), [0, 2, 3, 4]);
    talk.nothing_for(Duration::from_millis(100));
    talk.status(under_way[1].0, DELIVERED);
    assert_eq!(talk.sent().1, N1 + 5, "a2 waits for a1");
    talk.status(under_way[0].0, DELIVERED);
    assert_eq!(talk.sent(), (talk.radio.last_id, N1, Bytes::from_static(b"a2")));
    talk.nothing_for(Duration::from_millis(100));
}

#[test]
fn what_was_not_delivered_is_sent_twice_more_and_given_up() {
    let mut talk = Talk::alive();
    talk.send(N1, b"a");
    talk.send(N1, b"b");
    for pause in [0, 100, 200] {
        let before = talk.now;
        let (id, to, payload) = talk.sent();
        assert_eq!((to, &payload[..]), (N1, &b"a"[..]), "in order");
        assert!(talk.now - before >= Duration::from_millis(pause));
        talk.status(id, 0x21);
    }
    let (id, _, payload) = talk.sent();
    assert_eq!(payload, &b"b"[..]);
    talk.status(id, DELIVERED);
    let expected = [
        count(Count::Sent),
        count(Count::Retried),
        count(Count::Retried),
        count(Count::Undelivered),
        count(Count::Sent),
    ];
    assert_eq!(talk.events(), expected);
    assert_eq!(talk.radio.queued, 0);
}

#[test]
fn what_cannot_be_delivered_ever_and_what_is_for_everybody_is_not_sent_again() {
    let mut talk = Talk::alive();
    for status in [0x15, 0x23, 0x2E] {
        talk.send(N1, b"a");
        let (id, ..) = talk.sent();
        talk.status(id, status);
        assert_eq!(talk.events(), [count(Count::Sent), count(Count::Undelivered)]);
    }
    talk.radio.handle_send(talk.now, To::All(0), &Bytes::from_static(b"a"));
    let (id, ..) = talk.sent();
    talk.status(id, 0x02);
    assert_eq!(talk.events(), [count(Count::Sent), count(Count::Undelivered)]);
    talk.nothing_for(Duration::from_secs(1));
}

#[test]
fn a_payload_that_is_too_large_teaches_how_much_is_not() {
    let mut talk = Talk::alive();
    talk.send(N1, &[7; 85]);
    assert_eq!(talk.events(), [count(Count::TooLong)], "it has said 84");
    talk.send(N1, &[7; 80]);
    let (id, ..) = talk.sent();
    talk.status(id, TOO_LARGE);
    assert_eq!(talk.events(), [count(Count::Sent), count(Count::TooLong), Event::Mtu(79)]);
    talk.send(N1, &[7; 80]);
    assert_eq!(talk.events(), [count(Count::TooLong)]);
    talk.nothing_for(Duration::from_secs(1));
}

#[test]
fn an_mtu_that_is_set_is_told_as_the_lesser_of_it_and_what_the_radio_takes() {
    for (set, told) in [(100, 84), (84, 84), (50, 50)] {
        let mut talk = Talk::with_mtu(Mode::Escaped, Mode::Escaped, Some(set));
        talk.say(&receive(N1, b"\x02\x16"));
        // Before the radio has said it there may be more.
        talk.send(N1, &[7; 85]);
        talk.send(N1, &[7; 80]);
        talk.introduce(&zigbee());
        let events = talk.events();
        let mtus = events.iter().filter(|event| matches!(event, Event::Mtu(_)));
        assert_eq!(mtus.collect::<Vec<_>>(), [&Event::Mtu(told)]);
        assert!(events.contains(&count(Count::TooLong)), "{events:?}");
        let (id, _, payload) = talk.sent();
        assert_eq!(payload.len(), 80, "what is too long is not sent");
        talk.status(id, TOO_LARGE);
        assert_eq!(talk.events()[1..], [count(Count::TooLong), Event::Mtu(set.min(79))]);
        talk.nothing_for(Duration::from_secs(1));
        assert_eq!(talk.radio.queued, 0);
    }
}

#[test]
fn a_radio_that_owes_three_answers_is_asked_whether_it_is_there() {
    let mut talk = Talk::alive();
    for _ in 0..3 {
        talk.send(N1, b"a");
        talk.sent();
        talk.pass(Duration::from_secs(6));
    }
    let expected = [count(Count::Sent), count(Count::Unanswered)].into_iter();
    let expected: Vec<_> = expected.cycle().take(6).collect();
    assert_eq!(talk.events(), expected, "they may have arrived: none is sent again");
    assert_eq!(talk.next_question().1, *b"AP");
    talk.send(N2, b"a");
    // It says nothing to that either.
    talk.pass(Duration::from_secs(5));
    let events = talk.events();
    let silent = Fault::Silent { device: device(), spoken: "115200 baud 8N1".into() };
    assert!(events.contains(&Event::Down) && events.contains(&Event::Fault(silent)), "{events:?}");
    talk.written.clear();
    talk.send(N1, b"a");
    assert_eq!(talk.events(), [count(Count::NotUp)]);
    // Some time later it has power again.
    talk.pass(Duration::from_secs(6));
    talk.introduce(&zigbee());
    assert_eq!(talk.events()[..2], [Event::Up, Event::Mtu(84)]);
}

#[test]
fn a_radio_that_brings_frames_is_there_whatever_it_does_not_answer() {
    let mut talk = Talk::alive();
    for _ in 0..12 {
        talk.send(N1, b"a");
        talk.pass(Duration::from_secs(6));
        // Now and then, as sensors speak; also while it is asked.
        talk.say(&receive(N2, b"b"));
    }
    let events = talk.events();
    assert!(talk.written.iter().any(|frame| matches!(frame, Frame::AtCommand { command: [b'A', b'P'], .. })));
    assert!(!events.iter().any(|event| matches!(event, Event::Down | Event::Fault(_))), "{events:?}");
}

#[test]
fn a_frame_that_waited_for_five_seconds_is_dropped() {
    let mut talk = Talk::alive();
    for _ in 0..3 {
        talk.send(N1, b"a");
    }
    talk.sent();
    talk.pass(Duration::from_millis(4999));
    assert_eq!(talk.events(), [count(Count::Sent)]);
    talk.pass(Duration::from_millis(1));
    let events = talk.events();
    assert!(events.contains(&Event::Count(Count::QueueFull, 2)), "{events:?}");
    assert_eq!(talk.radio.queued, 0);
}

#[test]
fn no_more_waits_than_the_line_takes() {
    let mut talk = Talk::alive();
    for _ in 0..1000 {
        talk.send(N1, &[7; 84]);
    }
    let dropped = talk.events().into_iter().filter(|event| *event == count(Count::QueueFull)).count();
    // 98 octets each, of 23,040 in two seconds.
    assert_eq!(dropped, 1000 - 235);
}

#[test]
fn a_reset_brings_what_was_under_way_and_the_questions_again() {
    let mut talk = Talk::alive();
    talk.send(N1, b"a");
    talk.sent();
    talk.events();
    talk.say(&Frame::ModemStatus { status: 0 });
    assert_eq!(talk.events(), [count(Count::Retried), Event::Told("the radio was reset".into())]);
    talk.introduce(&zigbee());
    assert!(talk.events().contains(&Event::Mtu(84)));
    assert_eq!(talk.sent().2, &b"a"[..]);
}

#[test]
fn a_state_of_the_radio_is_told_when_it_is_another() {
    let mut talk = Talk::alive();
    let told = |text: &str| Event::Told(format!("the radio {text}"));
    for _ in 0..1500 {
        talk.say(&Frame::ModemStatus { status: 0x82 });
    }
    assert_eq!(talk.events(), [told("has status 82")]);
    // DigiMesh, which sleeps and wakes every few seconds.
    for status in [2, 0x0B, 0x0C].repeat(500) {
        talk.say(&Frame::ModemStatus { status });
    }
    assert_eq!(talk.events(), [told("joined its network")]);
    for status in [3, 2, 2, 3] {
        talk.say(&Frame::ModemStatus { status });
    }
    assert_eq!(
        talk.events(),
        [told("left its network"), told("joined its network"), told("left its network")]
    );
}

#[test]
fn a_silent_radio_is_probed_told_and_asked_again() {
    let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
    talk.pass(Duration::from_secs(2));
    assert_eq!(talk.written.len(), 3, "asked three times");
    talk.written.clear();
    assert_eq!(talk.raw, b"", "a second of silence");
    talk.pass(Duration::from_secs(1));
    assert_eq!(talk.raw, b"+++");
    assert_eq!(talk.events(), []);
    talk.pass(Duration::from_secs(3));
    let silent = Event::Fault(Fault::Silent { device: device(), spoken: "115200 baud 8N1".into() });
    assert_eq!(talk.events(), std::slice::from_ref(&silent));
    talk.raw.clear();
    talk.pass(Duration::from_secs(24));
    assert_eq!((talk.written.len(), talk.raw.len()), (6, 0), "and not probed any more");
    assert_eq!(talk.events(), [silent.clone(), silent]);
    talk.written.clear();
    talk.pass(Duration::from_secs(9));
    talk.introduce(&zigbee());
    assert_eq!(talk.events()[0], Event::Up);
}

#[test]
fn a_radio_in_transparent_mode_is_found_out() {
    let mut talk = Talk::new(Mode::Escaped, Mode::Escaped);
    talk.radio.handle_octets(talk.now, b"OK\r");
    assert!(!talk.events().iter().any(|event| matches!(event, Event::Fault(_))), "it was not asked for");
    talk.pass(Duration::from_secs(3));
    talk.radio.handle_octets(talk.now, b"O");
    talk.radio.handle_octets(talk.now, b"K\r");
    let fault = Event::Fault(Fault::Transparent { device: device() });
    assert!(talk.events().contains(&fault));
    talk.pass(Duration::from_secs(1));
    assert_eq!(talk.raw, b"+++ATCN\r", "and let go");
    talk.written.clear();
    talk.raw.clear();
    talk.nothing_for(Duration::from_secs(58));
    talk.pass(Duration::from_secs(3));
    assert_eq!((talk.written.len(), talk.raw.as_slice()), (0, &b"+++"[..]), "nothing goes on the air");
    // Somebody has set it right meanwhile.
    talk.raw.clear();
    talk.pass(Duration::from_secs(13));
    talk.introduce(&zigbee());
    assert!(talk.events().contains(&Event::Up));
}

#[test]
fn a_radio_at_another_rate_is_garbage() {
    let mut talk = Talk::new(Mode::Plain, Mode::Plain);
    for _ in 0..3 {
        talk.radio.handle_octets(talk.now, &[0xF8; 30]);
        talk.pass(Duration::from_secs(1));
    }
    talk.pass(Duration::from_secs(10));
    let faults = talk.events().into_iter().filter(|event| matches!(event, Event::Fault(_)));
    let expected =
        Fault::Garbage { device: device(), spoken: "115200 baud 8N1".into(), framing: None, octets: 90 };
    assert_eq!(faults.collect::<Vec<_>>(), [Event::Fault(expected)]);
}

#[test]
fn a_radio_that_writes_otherwise_than_configured_is_understood_and_told() {
    for (configured, mode, ap) in [(Mode::Plain, Mode::Escaped, &[2]), (Mode::Escaped, Mode::Plain, &[1])] {
        let mut talk = Talk::new(configured, mode);
        let mut answers = zigbee();
        answers[0].1 = ap;
        talk.introduce(&answers);
        let told = Event::Fault(Fault::OtherMode { device: device(), says: mode });
        assert!(talk.events().contains(&told));
        // With octets in it that are escaped.
        talk.say(&receive(N1, b"\x06\x0C\x11\x13\x7D\x7E"));
        assert!(talk.events().contains(&heard(N1, b"\x06\x0C\x11\x13\x7D\x7E")));
        talk.send(N2, b"\x06\x0C\x11\x13\x7D\x7E");
        talk.radio_wrote(Frame::TransmitRequest {
            frame_id: 0,
            to: N2,
            to_short: 0xFFFE,
            radius: 0,
            options: 0,
            payload: Bytes::from_static(b"\x06\x0C\x11\x13\x7D\x7E"),
        });
    }
}

#[test]
fn damage_costs_what_it_hits() {
    for mode in [Mode::Plain, Mode::Escaped] {
        let mut talk = Talk::new(mode, mode);
        let mut answers = zigbee();
        answers[0].1 = if mode == Mode::Plain { &[1] } else { &[2] };
        talk.introduce(&answers);
        talk.events();
        let mut whole = BytesMut::new();
        receive(N1, b"\x02\x16").encode(mode, &mut whole).unwrap();
        let mut bad_sum = whole.clone();
        bad_sum[9] ^= 0x40;
        for damaged in [&bad_sum[..], &whole[..whole.len() - 3], &[0x7E, 0xFF, 0xFF, 1], &[0x7E, 0, 0]] {
            talk.radio.handle_octets(talk.now, damaged);
            talk.pass(Duration::from_millis(200));
            talk.radio.handle_octets(talk.now, &whole);
            let events = talk.events();
            let frames = events.iter().filter(|event| matches!(event, Event::Frame(..))).count();
            let lost = events.iter().any(|event| matches!(event, Event::Count(Count::Damaged, _)));
            assert_eq!((frames, lost), (1, true), "{mode:?} {damaged:X?} {events:?}");
        }
    }
}

#[test]
fn the_strength_of_what_was_heard_is_asked_for_now_and_then() {
    let mut talk = Talk::alive();
    talk.say(&receive(N1, b"a"));
    let (frame_id, command) = talk.next_question();
    assert_eq!(command, *b"DB");
    let value = Bytes::from_static(&[0x2A]);
    talk.say(&Frame::AtResponse { frame_id, command, status: 0, value });
    assert_eq!(talk.radio.nodes.nodes[&N1].rssi, Some(42));
    talk.say(&receive(N2, b"a"));
    talk.nothing_for(Duration::from_secs(9));
    talk.pass(Duration::from_secs(1));
    // Another one is heard before the answer: it may be its strength.
    talk.say(&receive(N2, b"a"));
    let (frame_id, command) = talk.next_question();
    talk.say(&receive(N1, b"a"));
    let value = Bytes::from_static(&[0x50]);
    talk.say(&Frame::AtResponse { frame_id, command, status: 0, value });
    let rssi = |node| talk.radio.nodes.nodes[&node].rssi;
    assert_eq!((rssi(N1), rssi(N2)), (Some(42), None));
}

#[test]
fn what_is_kept_of_nodes_has_a_bound() {
    let mut nodes = Nodes::default();
    for node in 0..2 * NODES_MAX as u64 {
        nodes.heard(node, Some(node as u16), None);
        nodes.heard(0, None, Some(1));
    }
    assert_eq!(nodes.nodes.len(), NODES_MAX);
    assert_eq!(nodes.short(0), Some(0), "it was heard all the time");
    assert_eq!(nodes.short(1), None);
    nodes.status(0, Some(9), 0x24);
    assert_eq!(nodes.short(0), None, "it is looked for anew");
    nodes.status(0, Some(9), DELIVERED);
    assert_eq!((nodes.short(0), nodes.nodes[&0].status), (Some(9), Some(DELIVERED)));
}

#[test]
fn a_device_that_went_and_came_back_begins_anew() {
    let mut talk = Talk::alive();
    talk.say(&receive(N1, b"a"));
    talk.send(N1, b"a");
    talk.send(N1, b"b");
    talk.pass(Duration::ZERO);
    talk.events();
    talk.radio.handle_gone();
    assert_eq!(talk.events(), [Event::Count(Count::NotUp, 2)]);
    talk.radio.handle_open(talk.now);
    talk.written.clear();
    talk.introduce(&zigbee());
    assert_eq!(talk.events()[..2], [Event::Up, Event::Mtu(84)]);
    talk.send(N1, b"c");
    let Frame::TransmitRequest { to_short: 0x1234, .. } = talk.next() else { panic!("it was known") };
}

#[test]
fn when_the_port_is_closed_what_was_not_sent_is_counted_and_what_was_is_not() {
    let mut talk = Talk::alive();
    talk.send(N1, b"a");
    let Frame::TransmitRequest { .. } = talk.next() else { panic!("no transmission") };
    talk.send(N1, b"b");
    talk.events();
    talk.radio.handle_closed();
    assert_eq!(talk.events(), [Event::Count(Count::NotUp, 1)]);
}

#[test]
fn whatever_is_heard_does_no_harm() {
    let mut rng = fastrand::Rng::with_seed(11);
    for mode in [Mode::Plain, Mode::Escaped] {
        let mut talk = Talk::new(mode, mode);
        let mut events = 0;
        for round in 0..5000 {
            let mut octets: Vec<u8> = (0..rng.usize(0..40)).map(|_| rng.u8(..)).collect();
            if rng.bool() {
                let mut frame = BytesMut::new();
                let body = Bytes::from(octets.clone());
                let kinds = [0x00, 0x08, 0x10, 0x80, 0x81, 0x88, 0x89, 0x8A, 0x8B, 0x90, 0x91, 0x95];
                let kind = kinds[rng.usize(..kinds.len())];
                Frame::Unknown { kind, body }.encode(mode, &mut frame).unwrap();
                octets = frame.to_vec();
            }
            talk.radio.handle_octets(talk.now, &octets);
            talk.send(N1 + round % 7, b"abc");
            talk.pass(Duration::from_millis(rng.u64(0..300)));
            events += talk.events().len();
            assert!(talk.radio.in_flight.len() <= WINDOW && talk.radio.queue.len() < 1000);
            assert!(talk.radio.questions.len() < 20, "{:?}", talk.radio.questions);
        }
        assert!(events > 1000);
    }
}
