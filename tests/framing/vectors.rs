//! Octets by hand and from the documents.

use mqtt_sn_gateway::framing::{Counters, Decoder, Framing, crc};

use super::{encoded, frames, hex};

/// The frame becomes the line, and the line the frame.
#[track_caller]
fn both_ways(framing: Framing, frame: &str, line: &str) {
    assert_eq!(encoded(framing, &hex(frame)), hex(line), "{framing} of {frame}");
    let mut decoder = Decoder::new(framing);
    decoder.push(&hex(line));
    assert_eq!(frames(&mut decoder), [hex(frame)], "{framing} from {line}");
    assert_eq!(*decoder.counters(), Counters { frames: 1, ..Counters::default() });
}

#[test]
fn a_message_is_its_own_frame_by_its_length() {
    both_ways(Framing::Length, "02 17", "02 17");
    both_ways(Framing::Length, "01 00 05 0C 61", "01 00 05 0C 61");
}

#[test]
fn an_encapsulation_and_its_message_are_one_frame() {
    both_ways(Framing::Length, "05 FE 00 0A 0B 02 17", "05 FE 00 0A 0B 02 17");
}

#[test]
fn slip_escapes_its_two_octets() {
    both_ways(Framing::Slip, "02 17", "C0 02 17 C0");
    both_ways(Framing::Slip, "C0 DB DC DD 00", "C0 DB DC DB DD DC DD 00 C0");
}

#[test]
fn the_crc_is_the_catalogued_one() {
    assert_eq!(crc(b"123456789"), 0x29B1);
    assert_eq!(crc(b""), 0xFFFF);
}

#[test]
fn the_crc_goes_high_octet_first_and_is_stuffed_with_the_frame() {
    both_ways(Framing::SlipCrc, "31 32 33 34 35 36 37 38 39", "C0 31 32 33 34 35 36 37 38 39 29 B1 C0");
    both_ways(Framing::CobsCrc, "31 32 33 34 35 36 37 38 39", "00 0C 31 32 33 34 35 36 37 38 39 29 B1 00");
}

#[test]
fn cobs_takes_the_zeros_out() {
    both_ways(Framing::Cobs, "00", "00 01 01 00");
    both_ways(Framing::Cobs, "00 00", "00 01 01 01 00");
    both_ways(Framing::Cobs, "11 22 00 33", "00 03 11 22 02 33 00");
    both_ways(Framing::Cobs, "11 00 00 00", "00 02 11 01 01 01 00");
}
