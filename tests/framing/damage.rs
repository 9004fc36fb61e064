//! Frames behind damage of one kind or another.

use std::collections::BTreeSet;

use bytes::Bytes;
use mqtt_sn_gateway::framing::{Counters, Decoder, FRAME_LEN_MAX, Framing};

use super::line::{Damage, Rng, damaged};
use super::{encoded, frames, hex};

/// Pushes octets, and says what came out and what was counted.
fn decoded(framing: Framing, line: &str) -> (Vec<Bytes>, Counters) {
    let mut decoder = Decoder::new(framing);
    decoder.push(&hex(line));
    (frames(&mut decoder), *decoder.counters())
}

#[test]
fn delimiters_with_nothing_between_them_are_nothing() {
    assert_eq!(decoded(Framing::Slip, "C0 C0 C0"), (vec![], Counters::default()));
    assert_eq!(decoded(Framing::CobsCrc, "00 00 00"), (vec![], Counters::default()));
}

#[test]
fn a_sender_need_not_begin_with_a_delimiter() {
    assert_eq!(decoded(Framing::Slip, "02 17 C0 02 16 C0").0, [hex("02 17"), hex("02 16")]);
    assert_eq!(decoded(Framing::Cobs, "03 02 17 00 03 02 16 00").0, [hex("02 17"), hex("02 16")]);
}

#[test]
fn a_wrong_crc_costs_its_frame() {
    let (got, counters) = decoded(Framing::SlipCrc, "C0 31 32 33 34 35 36 37 38 39 29 B2 C0 02 17 19 BB C0");
    assert_eq!(got, [hex("02 17")]);
    assert_eq!(counters, Counters { frames: 1, bad_crc: 1, octets_dropped: 11, ..Counters::default() });
}

#[test]
fn a_frame_too_short_for_its_crc_is_cut_short() {
    let counted = Counters { cut_short: 2, octets_dropped: 3, ..Counters::default() };
    assert_eq!(decoded(Framing::SlipCrc, "C0 02 C0 02 17 C0"), (vec![], counted));
    let counted = Counters { cut_short: 1, octets_dropped: 1, ..Counters::default() };
    assert_eq!(decoded(Framing::Cobs, "00 01 00"), (vec![], counted), "a frame of nothing");
}

#[test]
fn what_slip_never_writes_costs_its_frame_and_no_more() {
    let (got, counters) = decoded(Framing::Slip, "C0 02 DB 00 17 C0 02 17 C0");
    assert_eq!(got, [hex("02 17")]);
    assert_eq!(counters, Counters { frames: 1, bad_stuffing: 1, octets_dropped: 4, ..Counters::default() });
    let (got, counters) = decoded(Framing::Slip, "C0 02 DB C0 02 17 C0");
    assert_eq!(got, [hex("02 17")]);
    assert_eq!(counters, Counters { frames: 1, bad_stuffing: 1, octets_dropped: 2, ..Counters::default() });
}

#[test]
fn a_cobs_block_that_a_delimiter_cuts_costs_its_frame_and_no_more() {
    let (got, counters) = decoded(Framing::Cobs, "00 05 02 17 00 03 02 17 00");
    assert_eq!(got, [hex("02 17")]);
    assert_eq!(counters, Counters { frames: 1, bad_stuffing: 1, octets_dropped: 3, ..Counters::default() });
}

#[test]
fn a_frame_without_an_end_is_dropped_as_too_long_and_the_next_one_arrives() {
    for framing in &Framing::ALL[1..] {
        let mut decoder = Decoder::new(*framing);
        (0..100).for_each(|_| decoder.push(&[0x55; 1000]));
        decoder.push(&encoded(*framing, &[0x02, 0x17]));
        assert_eq!(frames(&mut decoder), [hex("02 17")], "{framing}");
        let counted = Counters { frames: 1, too_long: 1, octets_dropped: 100_000, ..Counters::default() };
        assert_eq!(*decoder.counters(), counted, "{framing}");
    }
}

#[test]
fn the_longest_frame_arrives_and_one_octet_more_does_not() {
    for framing in Framing::ALL {
        let frame = |len: usize| {
            let mut frame = vec![0xC0; len];
            frame[..4].copy_from_slice(&[1, (len >> 8) as u8, len as u8, 0x0C]);
            frame
        };
        let mut decoder = Decoder::new(framing);
        decoder.push(&encoded(framing, &frame(FRAME_LEN_MAX)));
        decoder.push(&encoded(framing, &frame(FRAME_LEN_MAX + 1)));
        assert_eq!(frames(&mut decoder), [frame(FRAME_LEN_MAX)], "{framing}");
        assert_eq!(decoder.counters().too_long, 1, "{framing}");
    }
}

#[test]
fn one_lost_delimiter_costs_one_frame() {
    for framing in &Framing::ALL[1..] {
        let lines = [1, 2, 3].map(|id| encoded(*framing, &[4, 0x0B, 0, id]));
        let (first, last) = (lines[1].len() - 1, lines[0].len() - 1);
        for (damage, lost) in [(lines[0].len(), 2), (last, 1)] {
            assert_eq!(lines.concat()[damage], lines[0][0], "a delimiter");
            let mut line = lines.concat();
            line[damage] = 0x55;
            let mut decoder = Decoder::new(*framing);
            decoder.push(&line);
            let got: BTreeSet<_> = frames(&mut decoder).iter().map(|frame| frame[frame.len() - 1]).collect();
            let want: BTreeSet<_> = [1, 2, 3].into_iter().filter(|id| *id != lost).collect();
            assert!(got.is_superset(&want), "{framing}: {got:?} without {lost}");
        }
        assert_eq!(first, last);
    }
}

#[test]
fn after_a_length_that_cannot_be_all_is_dropped_until_the_line_is_silent() {
    let mut decoder = Decoder::new(Framing::Length);
    decoder.push(&hex("00 02 17"));
    decoder.push(&hex("02 17"));
    assert_eq!(frames(&mut decoder), Vec::<Bytes>::new());
    decoder.idle();
    decoder.push(&hex("02 17"));
    assert_eq!(frames(&mut decoder), [hex("02 17")]);
    let counted = Counters { frames: 1, bad_length: 1, octets_dropped: 5, ..Counters::default() };
    assert_eq!(*decoder.counters(), counted);
}

#[test]
fn a_length_that_cannot_be_is_told_from_one_that_can() {
    let lost = |line, counted| assert_eq!(decoded(Framing::Length, line), (vec![], counted), "{line}");
    let none = Counters::default();
    lost("01 00 03 0C", Counters { bad_length: 1, octets_dropped: 4, ..none });
    lost("01 08 01 0C", Counters { too_long: 1, octets_dropped: 4, ..none });
    lost("01 00 05 FE 00 02 17", Counters { bad_length: 1, octets_dropped: 7, ..none });
    lost("02 FE", Counters { bad_length: 1, octets_dropped: 2, ..none });
    lost("05 1E 00 00 00", Counters { bad_type: 1, octets_dropped: 5, ..none });
    lost("03 FE 00 03 FE 00 02 17", Counters { bad_type: 1, octets_dropped: 8, ..none });
    lost("04 FE 00 AA 01 08 00 0C", Counters { too_long: 1, octets_dropped: 8, ..none });
}

/// There are clients that send 03 and mean AUTH: it is not for the line to say that they may not.
#[test]
fn a_message_of_type_03_is_a_frame() {
    assert_eq!(decoded(Framing::Length, "04 03 00 00 02 17").0, [hex("04 03 00 00"), hex("02 17")]);
}

#[test]
fn silence_ends_an_unfinished_message_of_length_and_of_no_other() {
    for framing in Framing::ALL {
        let line = encoded(framing, &hex("05 0C 01 02 03"));
        let mut decoder = Decoder::new(framing);
        decoder.push(&line[..3]);
        decoder.idle();
        let rest = if framing == Framing::Length { &line[..] } else { &line[3..] };
        decoder.push(rest);
        assert_eq!(frames(&mut decoder), [hex("05 0C 01 02 03")], "{framing}");
        assert_eq!(decoder.counters().cut_short, u64::from(framing == Framing::Length), "{framing}");
    }
}

#[test]
fn silence_between_frames_is_nothing() {
    let mut decoder = Decoder::new(Framing::Length);
    decoder.idle();
    decoder.push(&hex("02 17"));
    decoder.idle();
    assert_eq!(*decoder.counters(), Counters { frames: 1, ..Counters::default() });
}

/// 1 % of the octets changed, lost or doubled, and not one moment of silence: what was not hit arrives.
#[test]
fn with_delimiters_whatever_was_not_damaged_arrives() {
    for framing in &Framing::ALL[1..] {
        let mut random = Rng::with_seed(1);
        let mut decoder = Decoder::new(*framing);
        let (mut good, mut hit) = (Vec::new(), 0);
        for id in 0..20_000 {
            let frame = message(id, &mut random);
            let line = damaged(&encoded(*framing, &frame), 0.01, &mut random);
            decoder.push(&line.octets);
            if line.hit { hit += 1 } else { good.push(frame) }
        }
        let got = frames(&mut decoder);
        let arrived: BTreeSet<_> = got.iter().map(|frame| &frame[..]).collect();
        let missing = good.iter().filter(|frame| !arrived.contains(&frame[..])).count();
        assert_eq!(missing, 0, "{framing}: of {} undamaged ones", good.len());
        assert!(hit > 3000, "{framing}: {hit}");
        if matches!(framing, Framing::SlipCrc | Framing::CobsCrc) {
            // A doubled or changed delimiter may leave its frame as it was.
            let sent: BTreeSet<_> = (0..20_000).map(u32::to_be_bytes).collect();
            assert!(got.iter().all(|frame| sent.contains(&frame[2..6])), "{framing}: nothing else comes out");
            assert!(
                got.len() < good.len() + hit / 3,
                "{framing}: {} came, {} were good",
                got.len(),
                good.len()
            );
        }
    }
}

/// The same for `length`, with a silence after every ten frames: what was not hit and came before anything was, arrives.
#[test]
fn with_lengths_whatever_begins_after_a_silence_and_before_damage_arrives() {
    let mut random = Rng::with_seed(2);
    let mut decoder = Decoder::new(Framing::Length);
    let (mut good, mut id) = (Vec::new(), 0);
    for _ in 0..2000 {
        let mut clean = true;
        for _ in 0..10 {
            let frame = message(id, &mut random);
            id += 1;
            let Damage { octets, hit } = damaged(&frame, 0.01, &mut random);
            decoder.push(&octets);
            clean &= !hit;
            if clean {
                good.push(frame);
            }
        }
        decoder.idle();
    }
    let got = frames(&mut decoder);
    let arrived: BTreeSet<_> = got.iter().map(|frame| &frame[..]).collect();
    let missing = good.iter().filter(|frame| !arrived.contains(&frame[..])).count();
    assert_eq!(missing, 0, "of {}", good.len());
    assert!((2000..19_000).contains(&good.len()), "{}", good.len());
    assert!(decoder.counters().lost() > 0);
}

/// Damage to what a message says leaves the line in step: the next message arrives without a silence.
#[test]
fn with_lengths_damage_behind_the_header_costs_its_frame_only() {
    let mut random = Rng::with_seed(3);
    let mut decoder = Decoder::new(Framing::Length);
    let mut good = Vec::new();
    for id in 0..2000 {
        let mut frame = message(id, &mut random);
        if random.bool() {
            frame[2] ^= random.u8(1..);
        } else {
            good.push(frame.clone());
        }
        decoder.push(&frame);
    }
    let got = frames(&mut decoder);
    assert_eq!(got.len(), 2000);
    let arrived: BTreeSet<_> = got.iter().map(|frame| &frame[..]).collect();
    assert!(good.iter().all(|frame| arrived.contains(&frame[..])));
}

/// One that no other is equal to.
fn message(id: u32, random: &mut Rng) -> Vec<u8> {
    let mut frame = vec![0, 0x0C];
    frame.extend(id.to_be_bytes());
    frame.extend((0..random.usize(0..40)).map(|_| random.u8(..)));
    frame[0] = frame.len() as u8;
    frame
}
