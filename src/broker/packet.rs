//! Octets of a client to packets: rumqttc's codec behind the checks that it leaves out.

use bytes::{Buf, BytesMut};
use rumqttc::mqttbytes::{self, Error};
use rumqttc::{Packet, QoS};

/// Why a client's octets are not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    /// A packet over the limit.
    #[error("packet too large")]
    TooLarge,
    /// A CONNECT of another MQTT than 3.1.1; it has an answer (MQTT 3.1.1 §3.1.2.2).
    #[error("unacceptable protocol version")]
    Version,
    /// What no client may send.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Takes the next packet out of `input`; `None` if it is not whole yet. `len_max` limits what follows the fixed header.
pub(super) fn next(input: &mut BytesMut, len_max: usize) -> Result<Option<Packet>, Bad> {
    let Some(&first) = input.first() else { return Ok(None) };
    check_first(first)?;
    let header = match mqttbytes::check(input.iter(), len_max) {
        Ok(header) => header,
        Err(Error::InsufficientBytes(_)) => return Ok(None),
        Err(Error::PayloadSizeLimitExceeded(_)) => return Err(Bad::TooLarge),
        Err(_) => return Err(Bad::Malformed("bad remaining length")),
    };
    let mut frame = input.split_to(header.frame_length());
    check_body(&frame)?;
    // The codec copies what it keeps as text and leaves `frame` to payloads alone.
    let packet = Packet::read(&mut frame, len_max).map_err(|_| Bad::Malformed("undecodable packet"))?;
    check_packet(&packet).map(|()| Some(packet))
}

/// The type and flags of a packet that clients send (MQTT 3.1.1 §2.2).
fn check_first(first: u8) -> Result<(), Bad> {
    match (first >> 4, first & 0x0F) {
        (1 | 4 | 5 | 7 | 12 | 14, 0) | (6 | 8 | 10, 2) => Ok(()),
        (3, flags) if flags & 0b0110 == 0b0110 => Err(Bad::Malformed("PUBLISH with QoS 3")),
        (3, flags) if flags & 0b1110 == 0b1000 => Err(Bad::Malformed("QoS 0 PUBLISH with DUP")),
        (3, _) => Ok(()),
        _ => Err(Bad::Malformed("packet type or flags that no client may send")),
    }
}

/// What the codec does not look at, in a whole frame.
fn check_body(frame: &[u8]) -> Result<(), Bad> {
    let header_len = 2 + frame.iter().skip(1).take_while(|octet| **octet & 0x80 != 0).count();
    let body = frame.get(header_len..).unwrap_or_default();
    let whole = match frame.first().map(|first| first >> 4) {
        Some(1) => return check_connect(body),
        Some(4..=7) => body.len() == 2,
        Some(8) => fills(body.get(2..).unwrap_or_default(), usize::MAX, 1),
        Some(10) => fills(body.get(2..).unwrap_or_default(), usize::MAX, 0),
        Some(12 | 14) => body.is_empty(),
        _ => true,
    };
    if whole { Ok(()) } else { Err(Bad::Malformed("wrong length or reserved bits")) }
}

/// MQTT 3.1.1 §3.1.2: name, level, flags, and exactly the fields that the flags announce.
fn check_connect(body: &[u8]) -> Result<(), Bad> {
    let (rest, level) = match body {
        [0, 4, b'M', b'Q', b'T', b'T', level, rest @ ..] => (rest, *level),
        [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => return Err(Bad::Version),
        _ => return Err(Bad::Malformed("not the name of the protocol")),
    };
    if level != 4 {
        return Err(Bad::Version);
    }
    let [flags, _, _, fields @ ..] = rest else { return Err(Bad::Malformed("short CONNECT")) };
    let has = |bit: u8| usize::from(flags & bit != 0);
    let (will, user, password) = (has(0x04), has(0x80), has(0x40));
    if flags & 0x01 != 0 || password > user {
        return Err(Bad::Malformed("CONNECT flags"));
    }
    if fills(fields, 1 + 2 * will + user + password, 0) {
        Ok(())
    } else {
        Err(Bad::Malformed("CONNECT with fields missing or to spare"))
    }
}

/// Whether `rest` is exactly `count` fields with a two-octet length (`usize::MAX`: one or more), each followed by
/// `options` octets with nothing but a QoS in them.
fn fills(mut rest: &[u8], count: usize, options: usize) -> bool {
    let mut found = 0;
    while rest.len() >= 2 && found < count {
        let len = usize::from(rest.get_u16());
        let Some((_, tail)) = rest.split_at_checked(len) else { return false };
        let Some((option, tail)) = tail.split_at_checked(options) else { return false };
        if option.iter().any(|octet| *octet > 2) {
            return false;
        }
        (rest, found) = (tail, found + 1);
    }
    rest.is_empty() && (found == count || (count == usize::MAX && found > 0))
}

/// Packet ids are not zero (MQTT 3.1.1 §2.3.1), text has no U+0000 (§1.5.3).
fn check_packet(packet: &Packet) -> Result<(), Bad> {
    let nul = |text: &str| text.contains('\0');
    let (id, has_nul) = match packet {
        Packet::PubAck(ack) => (ack.pkid, false),
        Packet::PubRec(ack) => (ack.pkid, false),
        Packet::PubRel(ack) => (ack.pkid, false),
        Packet::PubComp(ack) => (ack.pkid, false),
        Packet::Publish(publish) if publish.qos != QoS::AtMostOnce => (publish.pkid, nul(&publish.topic)),
        Packet::Publish(publish) => (1, nul(&publish.topic)),
        Packet::Subscribe(subscribe) => (subscribe.pkid, subscribe.filters.iter().any(|f| nul(&f.path))),
        Packet::Unsubscribe(unsubscribe) => (unsubscribe.pkid, unsubscribe.topics.iter().any(|t| nul(t))),
        Packet::Connect(connect) => (1, nul(&connect.client_id)),
        _ => (1, false),
    };
    match (id, has_nul) {
        (0, _) => Err(Bad::Malformed("packet id 0")),
        (_, true) => Err(Bad::Malformed("U+0000 in a text")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(octets: &[u8]) -> Result<Option<Packet>, Bad> {
        next(&mut BytesMut::from(octets), 1000)
    }

    #[test]
    fn what_the_codec_lets_pass_is_refused() {
        for (why, octets) in [
            ("type 0", &b"\x00\0"[..]),
            ("type 15", b"\xf0\0"),
            ("CONNACK", b"\x20\x02\0\0"),
            ("PINGRESP", b"\xd0\0"),
            ("SUBSCRIBE flags", b"\x80\x06\0\x01\0\x01a\0"),
            ("PUBREL flags", b"\x60\x02\0\x01"),
            ("PUBACK too long", b"\x40\x03\0\x01\0"),
            ("PUBACK id 0", b"\x40\x02\0\0"),
            ("PINGREQ with body", b"\xc0\x01\0"),
            ("DISCONNECT with body", b"\xe0\x01\0"),
            ("QoS 3", b"\x36\x05\0\x01a\0\x01"),
            ("DUP on QoS 0", b"\x38\x03\0\x01a"),
            ("PUBLISH id 0", b"\x32\x05\0\x01a\0\0"),
            ("PUBLISH short", b"\x30\x01\0"),
            ("NUL in a topic", b"\x30\x03\0\x01\0"),
            ("topic not UTF-8", b"\x30\x03\0\x01\xff"),
            ("SUBSCRIBE without filter", b"\x82\x02\0\x01"),
            ("SUBSCRIBE reserved bits", b"\x82\x06\0\x01\0\x01a\x04"),
            ("SUBSCRIBE QoS 3", b"\x82\x06\0\x01\0\x01a\x03"),
            ("SUBSCRIBE without QoS", b"\x82\x05\0\x01\0\x01a"),
            ("SUBSCRIBE id 0", b"\x82\x06\0\0\0\x01a\0"),
            ("UNSUBSCRIBE without filter", b"\xa2\x02\0\x01"),
            ("UNSUBSCRIBE short", b"\xa2\x01\0"),
            ("UNSUBSCRIBE to spare", b"\xa2\x06\0\x01\0\x01ab"),
            ("length of five octets", b"\x30\xff\xff\xff\xff\x01"),
            ("no CONNECT at all", b"\x10\x01\0"),
            ("protocol name", b"\x10\x0d\0\x04MQTX\x04\x02\0\x3c\0\x01a"),
            ("reserved CONNECT flag", b"\x10\x0d\0\x04MQTT\x04\x03\0\x3c\0\x01a"),
            ("password without user", b"\x10\x10\0\x04MQTT\x04\x42\0\x3c\0\x01a\0\x01p"),
            ("CONNECT to spare", b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x01ab"),
            ("will QoS without will", b"\x10\x0d\0\x04MQTT\x04\x0a\0\x3c\0\x01a"),
        ] {
            assert!(matches!(read(octets), Err(Bad::Malformed(_))), "{why}: {:?}", read(octets));
        }
    }

    #[test]
    fn other_versions_and_large_packets_have_their_own_refusal() {
        assert_eq!(read(b"\x10\x0d\0\x04MQTT\x05\x02\0\x3c\0\x01a"), Err(Bad::Version));
        assert_eq!(read(b"\x10\x0f\0\x06MQIsdp\x03\x02\0\x3c\0\x01a"), Err(Bad::Version));
        assert_eq!(read(b"\x30\xe9\x07"), Err(Bad::TooLarge));
        assert_eq!(read(b"\x30\xe8\x07"), Ok(None));
    }

    #[test]
    fn a_packet_is_taken_once_it_is_whole_and_the_rest_stays() {
        let mut input = BytesMut::new();
        for octet in b"\x82\x0a\0\x01\0\x01a\x02\0\x01b" {
            input.extend_from_slice(&[*octet]);
            assert_eq!(next(&mut input, 1000), Ok(None));
        }
        input.extend_from_slice(b"\0\xc0");
        assert!(matches!(next(&mut input, 1000), Ok(Some(Packet::Subscribe(s))) if s.filters.len() == 2));
        assert_eq!(&input[..], b"\xc0");
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic(octets in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut input = BytesMut::from(&octets[..]);
            while let Ok(Some(_)) = next(&mut input, 40) {}
        }

        #[test]
        fn arbitrary_bodies_of_every_type_never_panic(
            kind in prop::sample::select(vec![0x10, 0x30, 0x32, 0x3d, 0x40, 0x62, 0x82, 0xa2, 0xc0]),
            body in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(2), Just(4), any::<u8>()], 0..40),
        ) {
            let mut input = BytesMut::from(&[kind, body.len() as u8][..]);
            input.extend_from_slice(&body);
            if let Ok(Some(packet)) = next(&mut input, 40) {
                packet.write(&mut BytesMut::new(), 1000).unwrap();
            }
        }
    }
}
