//! API frames: Digi's layouts, and what damage does to them. The octets were made by an independent codec, and agree with the examples in
//! Digi's user guides.

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::xbee::{
    BROADCAST, Counters, CutShort, DATA_LEN_MAX, Decoder, Frame, Mode, SHORT_UNKNOWN, TOO_LARGE, TooLong,
    delivery,
};
use proptest::prelude::*;

use super::hex;
use super::line::{Damage, Rng, damaged};

/// A node of the vectors.
const NODE: u64 = 0x0013_A200_4052_2BAA;

/// Every frame type, and with it octets that escape.
#[test]
fn every_frame_type_is_laid_out_as_digi_says() {
    let payload = Bytes::from(hex("02 17 11 7E 7D 13"));
    let (to, from, options) = (NODE, NODE, 0);
    both_ways(
        Frame::Tx64 { frame_id: 1, to, options, payload: payload.clone() },
        "7E 0011 00 01 0013A20040522BAA 00 0217117E7D13 AA",
        "7E 007D31 00 01 007D33A20040522BAA 00 02177D317D5E7D5D7D33 AA",
    );
    both_ways(
        Frame::Tx16 { frame_id: 2, to: 0x7D84, options: 1, payload: payload.clone() },
        "7E 000B 01 02 7D84 01 0217117E7D13 C2",
        "7E 000B 01 02 7D5D84 01 02177D317D5E7D5D7D33 C2",
    );
    both_ways(
        Frame::AtCommand { frame_id: 0x52, command: *b"NP", value: Bytes::new() },
        "7E 0004 08 52 4E50 07",
        "7E 0004 08 52 4E50 07",
    );
    both_ways(
        Frame::AtCommand { frame_id: 0x53, command: *b"AP", value: Bytes::from_static(&[2]) },
        "7E 0005 08 53 4150 02 11",
        "7E 0005 08 53 4150 02 7D31",
    );
    both_ways(
        Frame::TransmitRequest {
            frame_id: 0x11,
            to,
            to_short: 0x7D84,
            radius: 5,
            options: 1,
            payload: payload.clone(),
        },
        "7E 0014 10 11 0013A20040522BAA 7D84 05 01 0217117E7D13 83",
        "7E 0014 10 7D31 007D33A20040522BAA 7D5D84 05 01 02177D317D5E7D5D7D33 83",
    );
    both_ways(
        Frame::Rx64 { from, rssi: 0x28, options: 2, payload: payload.clone() },
        "7E 0011 80 0013A20040522BAA 28 02 0217117E7D13 01",
        "7E 007D31 80 007D33A20040522BAA 28 02 02177D317D5E7D5D7D33 01",
    );
    both_ways(
        Frame::Rx16 { from: 0x7D84, rssi: 0x28, options, payload: payload.clone() },
        "7E 000B 81 7D84 28 00 0217117E7D13 1D",
        "7E 000B 81 7D5D84 28 00 02177D317D5E7D5D7D33 1D",
    );
    both_ways(
        Frame::AtResponse {
            frame_id: 0x52,
            command: *b"NP",
            status: 0,
            value: Bytes::from_static(&[0, 0x54]),
        },
        "7E 0007 88 52 4E50 00 0054 33",
        "7E 0007 88 52 4E50 00 0054 33",
    );
    both_ways(Frame::TxStatus { frame_id: 2, status: 1 }, "7E 0003 89 02 01 73", "7E 0003 89 02 01 73");
    both_ways(Frame::ModemStatus { status: 0 }, "7E 0002 8A 00 75", "7E 0002 8A 00 75");
    both_ways(
        Frame::TransmitStatus {
            frame_id: 0x47,
            short: 0x7D84,
            retries: 3,
            delivery: TOO_LARGE,
            discovery: 2,
        },
        "7E 0007 8B 47 7D84 03 74 02 B3",
        "7E 0007 8B 47 7D5D84 03 74 02 B3",
    );
    both_ways(
        Frame::Receive { from, from_short: 0x7D84, options: 1, payload: payload.clone() },
        "7E 0012 90 0013A20040522BAA 7D84 01 0217117E7D13 19",
        "7E 0012 90 007D33A20040522BAA 7D5D84 01 02177D317D5E7D5D7D33 19",
    );
    both_ways(
        Frame::ExplicitReceive {
            from,
            from_short: 0x7D84,
            source_endpoint: 0xE8,
            destination_endpoint: 0xE8,
            cluster: 0x0011,
            profile: 0xC105,
            options: 2,
            payload,
        },
        "7E 0018 91 0013A20040522BAA 7D84 E8 E8 0011 C105 02 0217117E7D13 70",
        "7E 0018 91 007D33A20040522BAA 7D5D84 E8 E8 007D31 C105 02 02177D317D5E7D5D7D33 70",
    );
}

#[test]
fn a_broadcast_goes_to_everybody_by_its_64_bits() {
    let payload = Bytes::from_static(&[3, 2, 1]);
    let everybody = Frame::TransmitRequest {
        frame_id: 0,
        to: BROADCAST,
        to_short: SHORT_UNKNOWN,
        radius: 0,
        options: 0,
        payload,
    };
    both_ways(
        everybody,
        "7E 0011 10 00 000000000000FFFF FFFE 00 00 030201 EE",
        "7E 007D31 10 00 000000000000FFFF FFFE 00 00 030201 EE",
    );
}

#[test]
fn a_frame_of_an_unknown_type_survives_and_is_counted() {
    let frame = Frame::Unknown { kind: 0xA1, body: Bytes::from_static(b"whatever") };
    let mut decoder = Decoder::new(Mode::Plain);
    decoder.push(&line(&frame, Mode::Plain));
    assert_eq!(frames(&mut decoder), [frame]);
    assert_eq!(*decoder.counters(), Counters { frames: 1, unknown_type: 1, ..Counters::default() });
}

#[test]
fn a_frame_of_a_known_type_that_ends_early_is_dropped() {
    assert_eq!(Frame::decode(Bytes::new()), Err(CutShort { kind: None }));
    assert_eq!(Frame::decode(hex("90 0013A200").into()), Err(CutShort { kind: Some(0x90) }));
    let mut decoder = Decoder::new(Mode::Plain);
    decoder.push(&hex("7E 0001 8A 75  7E 0002 8A 00 75"));
    assert_eq!(frames(&mut decoder), [Frame::ModemStatus { status: 0 }]);
    assert_eq!(
        *decoder.counters(),
        Counters { frames: 1, bad_length: 1, octets_dropped: 5, ..Counters::default() }
    );
}

#[test]
fn what_is_too_long_is_not_written() {
    let payload = Bytes::from(vec![0x55; DATA_LEN_MAX]);
    let frame = Frame::Tx16 { frame_id: 1, to: 1, options: 0, payload };
    let mut out = BytesMut::new();
    assert_eq!(frame.encode(Mode::Plain, &mut out), Err(TooLong(DATA_LEN_MAX + 5)));
    assert!(out.is_empty());
}

#[test]
fn a_wrong_checksum_costs_one_frame() {
    for mode in MODES {
        let mut decoder = Decoder::new(mode);
        decoder.push(&hex("7E 0002 8A 00 76  7E 0002 8A 06 6F"));
        assert_eq!(frames(&mut decoder), [Frame::ModemStatus { status: 6 }], "{mode:?}");
        assert_eq!(
            *decoder.counters(),
            Counters { frames: 1, bad_checksum: 1, octets_dropped: 6, ..Counters::default() }
        );
    }
}

#[test]
fn escaped_a_start_delimiter_cuts_an_unfinished_frame_short() {
    let mut decoder = Decoder::new(Mode::Escaped);
    decoder.push(&hex("7E 0009 8A 00  7E 0002 8A 06 6F"));
    assert_eq!(frames(&mut decoder), [Frame::ModemStatus { status: 6 }]);
    assert_eq!(
        *decoder.counters(),
        Counters { frames: 1, cut_short: 1, octets_dropped: 5, ..Counters::default() }
    );
}

#[test]
fn plain_a_length_that_waits_for_too_much_ends_with_silence() {
    let mut decoder = Decoder::new(Mode::Plain);
    decoder.push(&hex("7E 0109 8A 00 75  7E 0002 8A 06 6F  7E 0002"));
    assert_eq!(frames(&mut decoder), []);
    decoder.idle();
    assert_eq!(frames(&mut decoder), [Frame::ModemStatus { status: 6 }]);
    assert_eq!(decoder.counters().cut_short, 2);
    assert_eq!(decoder.counters().octets_dropped, 9);
}

#[test]
fn every_status_has_words() {
    assert_eq!(delivery(0), "delivered");
    assert_eq!(delivery(TOO_LARGE), "the payload is too large");
    assert!((0..=255).all(|status| !delivery(status).is_empty()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(sent in prop::collection::vec(frame(), 1..20), mode in mode()) {
        let octets: Vec<u8> = sent.iter().flat_map(|frame| line(frame, mode)).collect();
        let mut decoder = Decoder::new(mode);
        decoder.push(&octets);
        prop_assert_eq!(frames(&mut decoder), sent);
        prop_assert_eq!(decoder.counters().lost(), 0);
    }

    #[test]
    fn octet_by_octet_is_the_same_as_at_once(octets in noisy(), mode in mode()) {
        let mut one = Decoder::new(mode);
        one.push(&octets);
        let mut other = Decoder::new(mode);
        octets.iter().for_each(|octet| other.push(&[*octet]));
        prop_assert_eq!(frames(&mut one), frames(&mut other));
        prop_assert_eq!(one.counters(), other.counters());
    }

    #[test]
    fn no_start_delimiter_is_inside_an_escaped_frame(frame in frame()) {
        let line = line(&frame, Mode::Escaped);
        prop_assert!(line[1..].iter().all(|octet| ![0x7E, 0x11, 0x13].contains(octet)), "{line:02X?}");
    }

    /// Escaped at once, plain after a silence: garbage may end in what announces more than is there.
    #[test]
    fn a_good_frame_arrives_after_any_garbage(octets in noisy(), good in frame(), mode in mode()) {
        let mut decoder = Decoder::new(mode);
        decoder.push(&octets);
        decoder.idle();
        frames(&mut decoder);
        decoder.push(&line(&good, mode));
        prop_assert_eq!(frames(&mut decoder), [good]);
    }
}

/// 1 % of the octets changed, lost or doubled: whatever was not hit arrives, and nothing else.
#[test]
fn what_was_not_damaged_arrives() {
    for mode in MODES {
        let mut random = Rng::with_seed(mode as u64 + 1);
        let (mut arrived, mut false_ones, mut undamaged) = (0, 0, 0);
        for round in 0..200_u16 {
            let sent: Vec<_> = (0..50).map(|index| message(&mut random, round, index)).collect();
            let lines: Vec<_> = sent.iter().map(|frame| line(frame, mode)).collect();
            let mut decoder = Decoder::new(mode);
            let mut good = Vec::new();
            for (frame, octets) in sent.iter().zip(&lines) {
                let Damage { octets, hit } = damaged(octets, 0.01, &mut random);
                decoder.push(&octets);
                if !hit {
                    good.push(frame.clone());
                }
            }
            decoder.idle();
            let got = frames(&mut decoder);
            undamaged += good.len();
            arrived += good.iter().filter(|frame| got.contains(frame)).count();
            false_ones += got.iter().filter(|frame| !sent.contains(frame)).count();
        }
        assert!(undamaged > 5_000, "{mode:?}: {undamaged}");
        // A damaged frame passes its checksum once in 256 times, and may then have swallowed others with it.
        assert!(false_ones <= (10_000 - undamaged) / 40, "{mode:?}: {false_ones}");
        assert!(
            undamaged - arrived <= false_ones * 2,
            "{mode:?}: {arrived} of {undamaged}, {false_ones} false"
        );
    }
}

const MODES: [Mode; 2] = [Mode::Plain, Mode::Escaped];

pub(super) fn line(frame: &Frame, mode: Mode) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(mode, &mut out).expect("short enough");
    out.to_vec()
}

fn frames(decoder: &mut Decoder) -> Vec<Frame> {
    std::iter::from_fn(|| decoder.poll_frame()).collect()
}

#[track_caller]
fn both_ways(frame: Frame, plain: &str, escaped: &str) {
    for (mode, octets) in [(Mode::Plain, hex(plain)), (Mode::Escaped, hex(escaped))] {
        assert_eq!(line(&frame, mode), octets, "{mode:?} {frame:?}");
        let mut decoder = Decoder::new(mode);
        decoder.push(&octets);
        assert_eq!(frames(&mut decoder), std::slice::from_ref(&frame), "{mode:?}");
        assert_eq!(*decoder.counters(), Counters { frames: 1, ..Counters::default() });
    }
}

/// One that no other is equal to.
fn message(random: &mut Rng, round: u16, index: u16) -> Frame {
    let mut payload = [round.to_be_bytes(), index.to_be_bytes()].concat();
    payload.extend((0..random.usize(0..60)).map(|_| random.u8(..)));
    Frame::Receive { from: NODE, from_short: SHORT_UNKNOWN, options: 1, payload: payload.into() }
}

fn mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(&MODES[..])
}

fn payload() -> impl Strategy<Value = Bytes> {
    let octet = prop_oneof![3 => any::<u8>(), 1 => prop::sample::select(&[0x7E, 0x7D, 0x11, 0x13][..])];
    prop::collection::vec(octet, 0..100).prop_map(Bytes::from)
}

pub(super) fn frame() -> impl Strategy<Value = Frame> {
    let kinds =
        &[0x00, 0x01, 0x08, 0x10, 0x80, 0x81, 0x88, 0x89, 0x8A, 0x8B, 0x90, 0x91, 0x17, 0x97, 0xFF][..];
    (prop::sample::select(kinds), prop::collection::vec(any::<u8>(), 18), payload()).prop_map(
        |(kind, fields, payload)| {
            let body_len = match kind {
                0x89 => 2,
                0x8A => 1,
                0x8B => 6,
                _ => usize::MAX,
            };
            let body: Vec<u8> = fields.into_iter().chain(payload).take(body_len).collect();
            Frame::decode([&[kind][..], &body].concat().into()).expect("long enough for any type")
        },
    )
}

/// Frames, pieces of frames and anything.
pub(super) fn noisy() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (frame(), mode()).prop_map(|(frame, mode)| line(&frame, mode)),
        (frame(), mode(), any::<prop::sample::Index>()).prop_map(|(frame, mode, cut)| {
            let mut line = line(&frame, mode);
            line.truncate(cut.index(line.len()));
            line
        }),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}
