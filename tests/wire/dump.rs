//! The dump where vectors do not reach: hostile octets, long ones, precision.

use mqtt_sn_gateway::wire::{DecodeError, FilterRef, Flags, Frame, ReturnCode, TopicRef, decode};

use crate::frames::*;

#[track_caller]
fn data(octets: &[u8]) -> String {
    let dump = publish(Q0, FIRST, LIVE, TopicRef::Normal(1), 0, octets).to_string();
    dump.strip_prefix("PUBLISH qos=0 topic=0x0001 msg=0x0000 data=").expect("a PUBLISH").to_owned()
}

#[test]
fn payloads_are_text_if_they_are_text_and_hex_if_not() {
    assert_eq!(data(b""), "0");
    assert_eq!(data(b"hi"), r#"2 "hi""#);
    assert_eq!(data("22.5 °C 🦀".as_bytes()), r#"13 "22.5 °C 🦀""#);
    assert_eq!(data(br#"{"t": 1}\"#), r#"9 "{\"t\": 1}\\""#);
    assert_eq!(data(b"a\r\n\tb"), r#"6 "a\r\n\tb""#.replace('6', "5"));
    assert_eq!(data(b"\x00\x01\xFF"), "3 0x0001FF");
    assert_eq!(data(b"a\x1B[2Jb"), "6 0x611B5B324A62", "a terminal is not told to do anything");
    assert_eq!(data(b"\xC3"), "1 0xC3", "half a character at the end is not text");
}

#[test]
fn characters_that_do_not_show_are_escaped() {
    assert_eq!(data("a\u{202E}b".as_bytes()), r#"5 "a\u{202e}b""#, "nor is text turned around");
    assert_eq!(data("\u{2028}\u{FEFF}".as_bytes()), r#"6 "\u{2028}\u{feff}""#);
    assert_eq!(data("\u{85}".as_bytes()), "2 0xC285");
}

#[test]
fn what_is_long_is_cut_between_characters_and_says_so() {
    let a = "a".repeat(64);
    assert_eq!(data(&[b'a'; 64]), format!(r#"64 "{a}""#));
    assert_eq!(data(&[b'a'; 65]), format!(r#"65 "{a}"…"#));
    assert_eq!(data("é".repeat(100).as_bytes()), format!(r#"200 "{}"…"#, "é".repeat(32)));
    assert_eq!(data(format!("a{}", "é".repeat(99)).as_bytes()), format!(r#"199 "a{}"…"#, "é".repeat(31)));
    assert_eq!(data(&[0xFF; 300]), format!("300 0x{}…", "FF".repeat(64)));
    assert_eq!(pingreq(&[b'a'; 300]).to_string(), format!(r#"PINGREQ client="{a}"… 300 octets"#));
    assert_eq!(
        via(3, &[0xAB; 17], pingreq(b"")).to_string(),
        format!("[via node {}… 17 octets radius 3] PINGREQ", "AB".repeat(16))
    );
    assert_eq!(
        unsubscribe(1, FilterRef::Reserved(&[0; 65])).to_string(),
        format!("UNSUBSCRIBE msg=0x0001 topic=reserved:0x{}… 65 octets", "00".repeat(64))
    );
}

#[test]
fn the_precision_bounds_payloads_and_only_them() {
    let frame = publish(Q1, DUP, RETAIN, TopicRef::Short(*b"ab"), 16, b"secret");
    assert_eq!(format!("{frame:.0}"), r#"PUBLISH qos=1 dup retain topic=short:"ab" msg=0x0010 data=6"#);
    assert_eq!(
        format!("{frame:.3}"),
        r#"PUBLISH qos=1 dup retain topic=short:"ab" msg=0x0010 data=6 "sec"…"#
    );
    assert_eq!(
        format!("{:.0}", via(0, b"n", willmsg(b"secret"))),
        "[via node 6E radius 0] WILLMSG message=6"
    );
    assert_eq!(format!("{:.0}", willmsgupd(b"secret")), "WILLMSGUPD message=6");
    assert_eq!(format!("{:.0}", register(1, 2, b"a/b")), r#"REGISTER topic=0x0001 msg=0x0002 name="a/b""#);
    assert_eq!(
        format!("{:.100}", willmsg(&[b'a'; 90])),
        format!(r#"WILLMSG message=90 "{}""#, "a".repeat(90))
    );
}

#[test]
fn fields_show_by_themselves() {
    assert_eq!(Flags(0xFF).to_string(), "dup qos=-1 retain will clean type=3");
    assert_eq!(Flags(0x00).to_string(), "qos=0 type=0");
    assert_eq!(format!("{:?}", Flags(0x42)), "Flags(42)");
    assert_eq!([QM1, Q0, Q1, Q2].map(|qos| qos.to_string()), ["-1", "0", "1", "2"]);
    assert_eq!(ReturnCode::from(0x84).to_string(), "rejected: 0x84");
    assert_eq!(TopicRef::Reserved(0x0A0B).to_string(), "reserved:0x0A0B");
    assert_eq!(TopicRef::Short(*b"\x00\xFF").to_string(), "short:0x00FF");
    assert_eq!(FilterRef::Name(b"a/#").to_string(), r#""a/#""#);
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let says = |octets: &str, text: &str| {
        assert_eq!(decode(&hex(octets)).map_err(|error| error.to_string()), Err(text.to_owned()), "{octets}");
    };
    says("02", "1 octet is too few for a message");
    says("00 16", "Length 0 is impossible");
    says("09 04 04 01 003C 6331", "Length says 9 octets, received were 8");
    says("02 1E", "message type 1E is reserved");
    says("04 00 2A 03", "ADVERTISE is cut off in Duration");
    says("05 10 0001 00", "PUBREL has 1 octets too many");
    says("01 0006 FE 00 01 02 16", "an encapsulation has the long form of Length");
    says("04 FE 00 01 04 FE 00 02 02 16", "an encapsulated message is encapsulated again");
}

#[test]
fn frames_and_packets_are_dumped_alike() {
    let frame: Frame<'_> = disconnect(Some(60));
    assert_eq!(frame.to_string(), frame.packet.to_string());
    assert_eq!(frame.packet.name(), "DISCONNECT");
    assert!(matches!(decode(b""), Err(DecodeError::TooShort(0))));
}
