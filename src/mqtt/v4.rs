//! MQTT 3.1.1 on rumqttc's codec.
//!
//! What the codec leaves to its user is checked here and in `codec.rs`: types that a broker does not send, the flags of the
//! first octet, the exact length of the acknowledgements, texts longer than their two-octet length can say, passwords that
//! are not UTF-8. PUBLISH and what acknowledges it are read here too: the codec would copy the frame, count its references and
//! make a `String` of the topic, four allocations where topic and payload need two; and a payload that waits for a sleeper would
//! keep the frame.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{Error, FixedHeader};
use rumqttc::{
    ConnAck, Connect, LastWill, Login, Publish, QoS, SubAck, Subscribe, SubscribeFilter, SubscribeReasonCode,
    Unsubscribe,
};

use super::codec::{
    CONNACK, ConnectParts, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Reader, SUBACK, UNSUBACK,
    header_len, publish_flags, written,
};
use super::packet::{Extras, Packet, Terms};
use super::{ConnectRefusal, Failure, Malformed, Message, PacketType, Refused};
use crate::topic::{TopicFilter, TopicName};

/// Writes what is written often.
pub(super) struct Codec {
    /// The codec wants a PUBLISH that owns its topic: this one is used again and again.
    publish: Publish,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("v4::Codec")
    }
}

impl Codec {
    pub(super) fn new() -> Self {
        Self { publish: Publish::from_bytes(String::new(), QoS::AtMostOnce, Bytes::new()) }
    }

    pub(super) fn publish(&mut self, message: &Message, id: u16, dup: bool, out: &mut BytesMut) {
        self.publish.topic.clear();
        self.publish.topic.push_str(message.topic.as_str());
        self.publish.payload = message.payload.clone();
        self.publish.qos = message.qos;
        self.publish.retain = message.retain;
        self.publish.dup = dup;
        self.publish.pkid = id;
        written(self.publish.write(out));
        self.publish.payload = Bytes::new();
    }
}

/// MQTT 3.1.1 §3.1.
pub(super) fn connect(parts: &ConnectParts<'_>, out: &mut BytesMut) {
    let mut connect = Connect::new(parts.options.client_id.as_str());
    connect.keep_alive = parts.options.keep_alive_seconds();
    connect.clean_session = parts.clean;
    connect.last_will = parts.will.map(|will| {
        let mut last_will = LastWill::new(will.topic.as_str(), Vec::new(), will.qos, will.retain);
        last_will.message = will.payload.clone();
        last_will
    });
    connect.login = parts.login.as_ref().map(|(username, password)| Login::new(*username, password.as_str()));
    written(connect.write(out));
}

/// MQTT 3.1.1 §3.8.
pub(super) fn subscribe(id: u16, filters: &[(TopicFilter, QoS)], out: &mut BytesMut) {
    let filters = filters.iter().map(|(filter, qos)| SubscribeFilter::new(filter.as_str().to_owned(), *qos));
    let mut subscribe = Subscribe::new_many(filters);
    subscribe.pkid = id;
    written(subscribe.write(out));
}

/// MQTT 3.1.1 §3.10.
pub(super) fn unsubscribe(id: u16, filters: &[TopicFilter], out: &mut BytesMut) {
    let topics = filters.iter().map(|filter| filter.as_str().to_owned()).collect();
    written(Unsubscribe { pkid: id, topics }.write(out));
}

/// Reads one whole frame of a type that a broker sends.
pub(super) fn read(packet: PacketType, header: FixedHeader, frame: &[u8]) -> Result<Packet, Failure> {
    let remaining = frame.len() - header_len(frame);
    let fits = match packet {
        PUBLISH => remaining >= 2,
        SUBACK => remaining >= 3,
        PINGRESP => remaining == 0,
        _ => remaining == 2,
    };
    if !fits {
        return Err(Failure::Malformed { packet, what: Malformed::Size });
    }
    let mut reader = Reader { packet, rest: &frame[header_len(frame)..] };
    let octets = || Bytes::copy_from_slice(frame);
    let read = match packet {
        PUBLISH => return publish(frame[0] & 0x0F, reader),
        PUBACK => return Ok(Packet::PubAck(reader.u16()?, Ok(()))),
        PUBREC => return Ok(Packet::PubRec(reader.u16()?, Ok(()))),
        PUBREL => return Ok(Packet::PubRel(reader.u16()?)),
        PUBCOMP => return Ok(Packet::PubComp(reader.u16()?, Ok(()))),
        UNSUBACK => return Ok(Packet::UnsubAck(reader.u16()?)),
        CONNACK => connack(ConnAck::read(header, octets())),
        SUBACK => SubAck::read(header, octets()).map(|ack| Packet::SubAck(ack.pkid, granted(&ack))),
        _ => Ok(Packet::PingResp),
    };
    read.map_err(|error| malformed(packet, &error))
}

fn connack(read: Result<ConnAck, Error>) -> Result<Packet, Error> {
    match read {
        Ok(ack) => {
            let code = ack.code as u8;
            let result = if code == 0 { Ok(Terms::default()) } else { Err(ConnectRefusal(code)) };
            Ok(Packet::ConnAck { session_present: ack.session_present, result })
        }
        Err(Error::InvalidConnectReturnCode(code)) => {
            Ok(Packet::ConnAck { session_present: false, result: Err(ConnectRefusal(code)) })
        }
        Err(error) => Err(error),
    }
}

fn granted(ack: &SubAck) -> Vec<Result<QoS, Refused>> {
    let granted = |code: &SubscribeReasonCode| match code {
        SubscribeReasonCode::Success(qos) => Ok(*qos),
        SubscribeReasonCode::Failure => Err(Refused(0x80)),
    };
    ack.return_codes.iter().map(granted).collect()
}

/// MQTT 3.1.1 §3.3.
fn publish(flags: u8, mut reader: Reader<'_>) -> Result<Packet, Failure> {
    let (dup, qos) = publish_flags(flags);
    let topic = reader.octets()?;
    let topic = std::str::from_utf8(topic).map_err(|_| reader.is(Malformed::Utf8))?;
    let id = if qos == QoS::AtMostOnce { 0 } else { reader.id()? };
    let Ok(topic) = TopicName::new(topic) else { return Ok(Packet::Misnamed { id, dup, qos }) };
    let payload = Bytes::copy_from_slice(reader.rest);
    let message = Message { topic, payload, qos, retain: flags & 1 != 0 };
    Ok(Packet::Publish { id, dup, message, extras: Extras::default() })
}

fn malformed(packet: PacketType, error: &Error) -> Failure {
    let what = match error {
        Error::InvalidSubscribeReasonCode(_) => Malformed::ReturnCodes,
        _ => Malformed::Size,
    };
    Failure::Malformed { packet, what }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::codec::Codec;
    use super::super::packet::Frame;
    use super::super::{Options, Protocol};
    use super::*;

    const LEN_MAX: usize = 4096;

    fn codec() -> Codec {
        Codec::new(Protocol::V4)
    }

    fn decode(input: &[u8]) -> Result<Option<Frame>, Failure> {
        codec().decode(input, LEN_MAX)
    }

    fn message(topic: &str, payload: &[u8], qos: QoS) -> Message {
        Message {
            topic: TopicName::new(topic).unwrap(),
            payload: Bytes::copy_from_slice(payload),
            qos,
            retain: false,
        }
    }

    #[test]
    fn a_packet_is_read_once_all_of_it_is_there() {
        let frame = [0x32, 7, 0, 1, b'a', 0, 9, b'h', b'i'];
        for len in 0..frame.len() {
            assert_eq!(decode(&frame[..len]), Ok(None), "{len}");
        }
        let packet = Packet::Publish {
            id: 9,
            dup: false,
            message: message("a", b"hi", QoS::AtLeastOnce),
            extras: Extras::default(),
        };
        assert_eq!(decode(&frame), Ok(Some(Frame { packet, len: 9 })));
        let mut more = frame.to_vec();
        more.extend([0xD0, 0]);
        assert_eq!(decode(&more).unwrap().unwrap().len, 9);
    }

    #[test]
    fn a_malformed_packet_is_named_with_its_fault() {
        let malformed = |packet, what| Err(Failure::Malformed { packet, what });
        for (input, expected) in [
            (vec![0x00, 0], Err(Failure::Unexpected(PacketType(0)))),
            (vec![0x10, 0], Err(Failure::Unexpected(PacketType(1)))),
            (vec![0x82], Err(Failure::Unexpected(PacketType(8)))),
            (vec![0xA2, 0], Err(Failure::Unexpected(PacketType(10)))),
            (vec![0xE0, 0], Err(Failure::Unexpected(PacketType(14)))),
            (vec![0xF0, 0], Err(Failure::Unexpected(PacketType(15)))),
            (vec![0x60, 2, 0, 1], malformed(PUBREL, Malformed::Flags)),
            (vec![0x41, 2, 0, 1], malformed(PUBACK, Malformed::Flags)),
            (vec![0x36, 2, 0, 1], malformed(PUBLISH, Malformed::QoS)),
            (vec![0x40, 0], malformed(PUBACK, Malformed::Size)),
            (vec![0x40, 3, 0, 1, 0], malformed(PUBACK, Malformed::Size)),
            (vec![0xB0, 1, 0], malformed(UNSUBACK, Malformed::Size)),
            (vec![0xD0, 1, 0], malformed(PINGRESP, Malformed::Size)),
            (vec![0x90, 2, 0, 1], malformed(SUBACK, Malformed::Size)),
            (vec![0x90, 3, 0, 1, 3], malformed(SUBACK, Malformed::ReturnCodes)),
            (vec![0x30, 0], malformed(PUBLISH, Malformed::Size)),
            (vec![0x30, 3, 0, 9, b'a'], malformed(PUBLISH, Malformed::Size)),
            (vec![0x32, 4, 0, 1, b'a', 0], malformed(PUBLISH, Malformed::Size)),
            (vec![0x32, 5, 0, 1, b'a', 0, 0], malformed(PUBLISH, Malformed::PacketId)),
            (vec![0x30, 4, 0, 2, 0xC3, 0x28], malformed(PUBLISH, Malformed::Utf8)),
            (vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF], malformed(PUBLISH, Malformed::Length)),
            (vec![0x40, 0xFF, 0x7F], Err(Failure::TooLarge { packet: PUBACK, len: 16383 })),
        ] {
            assert_eq!(decode(&input), expected, "{input:02x?}");
        }
        let said = Failure::Malformed { packet: PUBLISH, what: Malformed::PacketId }.to_string();
        assert_eq!(said, "the broker sent a PUBLISH that has packet id 0");
    }

    #[test]
    fn a_refused_connection_keeps_its_return_code_whatever_it_is() {
        for code in 1..=255 {
            let packet = decode(&[0x20, 2, 0, code]).unwrap().unwrap().packet;
            assert_eq!(packet, Packet::ConnAck { session_present: false, result: Err(ConnectRefusal(code)) });
        }
    }

    #[test]
    fn of_a_publish_too_large_the_beginning_is_read() {
        let mut frame = vec![0x3A, 0xFF, 0xFF, 0x03, 0, 1, b'a', 0, 9];
        for len in 0..frame.len() {
            assert_eq!(decode(&frame[..len]), Ok(None), "{len}");
        }
        let expected =
            Frame { packet: Packet::Oversized { id: 9, dup: true, qos: QoS::AtLeastOnce }, len: 4 + 65_535 };
        assert_eq!(decode(&frame), Ok(Some(expected)));
        frame.truncate(4);
        frame.extend([0xFF, 0xFF]);
        assert_eq!(decode(&frame), Err(Failure::Malformed { packet: PUBLISH, what: Malformed::Size }));
    }

    #[test]
    fn a_small_payload_keeps_neither_a_read_buffer_nor_a_long_topic_alive() {
        let mut out = BytesMut::new();
        codec().publish(&message(&"t".repeat(2000), b"21.5", QoS::AtMostOnce), 0, false, &mut out);
        let Packet::Publish { message, .. } = decode(&out).unwrap().unwrap().packet else { panic!() };
        let mut payload = message.payload.try_into_mut().expect("nobody else holds it");
        assert!(!payload.try_reclaim(100), "its memory has room for more than itself");
    }

    #[test]
    fn a_password_is_octets() {
        let mut options = Options::new("c");
        let password = Bytes::from_static(&[0xFF, 0, 0xC3, 0x28]);
        options.credentials = Some(super::super::Credentials { username: "u".into(), password });
        let mut out = BytesMut::new();
        codec().connect(&options, false, true, &mut out).unwrap();
        let expected = [
            &[0x10, 22, 0, 4, b'M', b'Q', b'T', b'T', 4, 0b1100_0010, 0, 60, 0, 1, b'c', 0, 1, b'u', 0, 4][..],
            &[0xFF, 0, 0xC3, 0x28],
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn options_that_a_connect_has_no_room_for_are_refused() {
        let long = || "x".repeat(65_536);
        let with = |change: fn(&mut Options, String)| {
            let mut options = Options::new("c");
            change(&mut options, long());
            codec().connect(&options, false, true, &mut BytesMut::new())
        };
        assert!(with(|options, long| options.client_id = long).is_err());
        assert!(
            with(|options, long| options.will = Some(message("w", long.as_bytes(), QoS::AtMostOnce)))
                .is_err()
        );
        for (username, password) in [("x".repeat(65_536), ""), ("u".into(), "long"), (String::new(), "p")] {
            let mut options = Options::new("c");
            let password = if password == "long" { long() } else { password.into() };
            options.credentials = Some(super::super::Credentials { username, password: password.into() });
            assert!(codec().connect(&options, false, true, &mut BytesMut::new()).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic(input in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&input);
        }

        #[test]
        fn arbitrary_bodies_of_every_type_never_panic(
            first: u8,
            body in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..40),
        ) {
            let mut input = vec![first, u8::try_from(body.len()).unwrap()];
            input.extend(body);
            if let Ok(Some(frame)) = decode(&input) {
                prop_assert_eq!(frame.len, input.len());
            }
        }

        #[test]
        fn what_is_written_is_read_again(
            topic in "[a-z/]{1,40}", payload: Vec<u8>, qos in 0..3u8, retain: bool, dup: bool, id in 1..=u16::MAX,
        ) {
            let qos = rumqttc::mqttbytes::qos(qos).unwrap();
            let id = if qos == QoS::AtMostOnce { 0 } else { id };
            let mut message = message(&topic, &payload, qos);
            message.retain = retain;
            let mut out = BytesMut::new();
            codec().publish(&message, id, dup, &mut out);
            let len = out.len();
            prop_assert!(header_len(&out) + codec().publish_len(&message) >= len);
            prop_assert_eq!(decode(&out), Ok(Some(Frame { packet: Packet::Publish { id, dup, message, extras: Extras::default() }, len })));
        }
    }
}
