//! MQTT 3.1.1 on rumqttc's codec: the only file that knows the octets.
//!
//! What the codec leaves to its user is checked here: types that a broker does not send, the flags of the first octet,
//! the exact length of the acknowledgements, texts longer than their two-octet length can say, passwords that are not
//! UTF-8. A packet is read from a copy of exactly its own octets, so that a payload keeps nothing else alive.
//!
//! Costs, with rumqttc 0.25.1: sending a PUBLISH copies topic and payload once into the output and allocates nothing;
//! receiving one allocates four times (the frame, its reference count, the topic as the codec's `String`, the topic as
//! ours); an acknowledgement allocates its four octets for the moment of reading.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{Error, FixedHeader, check};
use rumqttc::{
    ConnAck, Connect, LastWill, Login, PubAck, PubComp, PubRec, PubRel, Publish, QoS, SubAck, Subscribe,
    SubscribeFilter, SubscribeReasonCode, UnsubAck, Unsubscribe,
};

use super::packet::{Frame, Packet};
use super::{ConnectRefusal, Failure, Malformed, Message, Options, PacketType, Refused};
use crate::topic::{TopicFilter, TopicName};

/// Octets of topic and header that a small payload may keep alive; beyond it is copied once more.
const PINNED_MAX: usize = 1024;

/// Octets in the longest remaining length that MQTT can say (MQTT 3.1.1 §2.2.3).
pub(super) const REMAINING_LEN_MAX: usize = 268_435_455;

/// Writes packets, and reads those of a broker.
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

    /// MQTT 3.1.1 §3.1. With `purge` it only asks for the end of the session: without a will.
    pub(super) fn connect(
        &self,
        options: &Options,
        purge: bool,
        clean: bool,
        out: &mut BytesMut,
    ) -> Result<(), Failure> {
        let mut connect = Connect::new(text(&options.client_id, "the client id")?);
        connect.keep_alive = options.keep_alive_seconds();
        connect.clean_session = clean;
        if let Some(will) = options.will.as_ref().filter(|_| !purge) {
            if will.payload.len() > usize::from(u16::MAX) {
                return Err(Failure::Options("the payload of the will"));
            }
            let mut last_will = LastWill::new(will.topic.as_str(), Vec::new(), will.qos, will.retain);
            last_will.message = will.payload.clone();
            connect.last_will = Some(last_will);
        }
        // The codec takes a password only as text. It is the last field: text of its length is written and replaced.
        let mut password = Bytes::new();
        if let Some(credentials) = &options.credentials {
            if credentials.username.is_empty() || credentials.password.len() > usize::from(u16::MAX) {
                return Err(Failure::Options("an empty user name, or the password,"));
            }
            password = credentials.password.clone();
            connect.login =
                Some(Login::new(text(&credentials.username, "the user name")?, " ".repeat(password.len())));
        }
        written(connect.write(out));
        let end = out.len();
        out[end - password.len()..].copy_from_slice(&password);
        Ok(())
    }

    /// MQTT 3.1.1 §3.3; `id` is 0 for QoS 0.
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

    /// Octets after the fixed header.
    pub(super) fn publish_len(message: &Message) -> usize {
        2 + message.topic.as_str().len() + 2 + message.payload.len()
    }

    pub(super) fn puback(id: u16, out: &mut BytesMut) {
        written(PubAck::new(id).write(out));
    }

    pub(super) fn pubrec(id: u16, out: &mut BytesMut) {
        written(PubRec::new(id).write(out));
    }

    pub(super) fn pubrel(id: u16, out: &mut BytesMut) {
        written(PubRel::new(id).write(out));
    }

    pub(super) fn pubcomp(id: u16, out: &mut BytesMut) {
        written(PubComp::new(id).write(out));
    }

    pub(super) fn subscribe(id: u16, filters: &[(TopicFilter, QoS)], out: &mut BytesMut) {
        let filters =
            filters.iter().map(|(filter, qos)| SubscribeFilter::new(filter.as_str().to_owned(), *qos));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = id;
        written(subscribe.write(out));
    }

    /// Octets after the fixed header.
    pub(super) fn subscribe_len(filters: &[(TopicFilter, QoS)]) -> usize {
        2 + filters.iter().map(|(filter, _)| 2 + filter.as_str().len() + 1).sum::<usize>()
    }

    pub(super) fn unsubscribe(id: u16, filters: &[TopicFilter], out: &mut BytesMut) {
        let topics = filters.iter().map(|filter| filter.as_str().to_owned()).collect();
        written(Unsubscribe { pkid: id, topics }.write(out));
    }

    /// Octets after the fixed header.
    pub(super) fn unsubscribe_len(filters: &[TopicFilter]) -> usize {
        2 + filters.iter().map(|filter| 2 + filter.as_str().len()).sum::<usize>()
    }

    pub(super) fn pingreq(out: &mut BytesMut) {
        written(rumqttc::PingReq.write(out));
    }

    pub(super) fn disconnect(out: &mut BytesMut) {
        written(rumqttc::Disconnect.write(out));
    }

    /// The packet that `input` begins with, if all of it is there. A packet that no broker sends is refused at its
    /// first octet, one that is too large at its length; of a PUBLISH that is too large only the beginning is read.
    pub(super) fn decode(input: &[u8], len_max: usize) -> Result<Option<Frame>, Failure> {
        let Some(&first) = input.first() else { return Ok(None) };
        let packet = PacketType(first >> 4);
        check_first(packet, first & 0x0F)?;

        let header = match check(input.iter(), len_max) {
            Ok(header) => header,
            Err(Error::InsufficientBytes(_)) => return Ok(None),
            Err(Error::PayloadSizeLimitExceeded(len)) if packet == PUBLISH => return oversized(input, len),
            Err(Error::PayloadSizeLimitExceeded(len)) => return Err(Failure::TooLarge { packet, len }),
            Err(_) => return Err(Failure::Malformed { packet, what: Malformed::Length }),
        };
        let len = header.frame_length();
        read(packet, header, &input[..len]).map(|packet| Some(Frame { packet, len }))
    }
}

const CONNACK: PacketType = PacketType(2);
const PUBLISH: PacketType = PacketType(3);
const PUBACK: PacketType = PacketType(4);
const PUBREC: PacketType = PacketType(5);
const PUBREL: PacketType = PacketType(6);
const PUBCOMP: PacketType = PacketType(7);
const SUBACK: PacketType = PacketType(9);
const UNSUBACK: PacketType = PacketType(11);
const PINGRESP: PacketType = PacketType(13);

/// Refuses what only a client sends, and flags that are not those of MQTT 3.1.1 §2.2.2.
fn check_first(packet: PacketType, flags: u8) -> Result<(), Failure> {
    let right = match packet {
        PUBLISH => flags & 0b0110 != 0b0110,
        PUBREL => flags == 0b0010,
        CONNACK | PUBACK | PUBREC | PUBCOMP | SUBACK | UNSUBACK | PINGRESP => flags == 0,
        _ => return Err(Failure::Unexpected(packet)),
    };
    let what = if packet == PUBLISH { Malformed::QoS } else { Malformed::Flags };
    if right { Ok(()) } else { Err(Failure::Malformed { packet, what }) }
}

/// Reads one whole frame of a type that [`check_first`] let through.
fn read(packet: PacketType, header: FixedHeader, frame: &[u8]) -> Result<Packet, Failure> {
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
    if packet == PUBLISH {
        return publish(header, frame);
    }
    let octets = Bytes::copy_from_slice(frame);
    let read = match packet {
        CONNACK => connack(ConnAck::read(header, octets)),
        PUBACK => PubAck::read(header, octets).map(|ack| Packet::PubAck(ack.pkid, Ok(()))),
        PUBREC => PubRec::read(header, octets).map(|ack| Packet::PubRec(ack.pkid, Ok(()))),
        PUBREL => PubRel::read(header, octets).map(|ack| Packet::PubRel(ack.pkid)),
        PUBCOMP => PubComp::read(header, octets).map(|ack| Packet::PubComp(ack.pkid, Ok(()))),
        SUBACK => SubAck::read(header, octets).map(|ack| Packet::SubAck(ack.pkid, granted(&ack))),
        UNSUBACK => UnsubAck::read(header, octets).map(|ack| Packet::UnsubAck(ack.pkid)),
        _ => Ok(Packet::PingResp),
    };
    read.map_err(|error| malformed(packet, &error))
}

fn connack(read: Result<ConnAck, Error>) -> Result<Packet, Error> {
    match read {
        Ok(ack) => {
            let code = ack.code as u8;
            let result = if code == 0 { Ok(()) } else { Err(ConnectRefusal(code)) };
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

fn publish(header: FixedHeader, frame: &[u8]) -> Result<Packet, Failure> {
    let publish =
        Publish::read(header, Bytes::copy_from_slice(frame)).map_err(|error| malformed(PUBLISH, &error))?;
    let mut payload = publish.payload;
    if frame.len() - payload.len() > PINNED_MAX {
        payload = Bytes::copy_from_slice(&payload);
    }
    let topic = TopicName::new(publish.topic).map_err(Failure::Topic)?;
    let message = Message { topic, payload, qos: publish.qos, retain: publish.retain };
    Ok(Packet::Publish { id: publish.pkid, dup: publish.dup, message })
}

/// Reads topic and packet id of a PUBLISH that is not read to its end, so that it can be acknowledged.
fn oversized(input: &[u8], remaining: usize) -> Result<Option<Frame>, Failure> {
    let begin = header_len(input);
    let Some(&[high, low]) = input.get(begin..begin + 2) else { return Ok(None) };
    let end = begin + 2 + usize::from(u16::from_be_bytes([high, low])) + 2;
    if end > begin + remaining {
        return Err(Failure::Malformed { packet: PUBLISH, what: Malformed::Size });
    }
    let Some(start) = input.get(..end) else { return Ok(None) };
    let header = FixedHeader::new(start[0], begin - 1, remaining);
    let Packet::Publish { id, dup, message } = publish(header, start)? else { return Ok(None) };
    Ok(Some(Frame { packet: Packet::Oversized { id, dup, qos: message.qos }, len: begin + remaining }))
}

/// Octets of the fixed header that `input` begins with.
fn header_len(input: &[u8]) -> usize {
    2 + input.iter().skip(1).take_while(|octet| **octet & 0x80 != 0).count()
}

fn malformed(packet: PacketType, error: &Error) -> Failure {
    let what = match error {
        Error::InvalidQoS(_) => Malformed::QoS,
        Error::PacketIdZero => Malformed::PacketId,
        Error::TopicNotUtf8 => Malformed::Utf8,
        Error::InvalidSubscribeReasonCode(_) => Malformed::ReturnCodes,
        _ => Malformed::Size,
    };
    Failure::Malformed { packet, what }
}

fn text<'a>(text: &'a str, name: &'static str) -> Result<&'a str, Failure> {
    if text.len() > usize::from(u16::MAX) { Err(Failure::Options(name)) } else { Ok(text) }
}

/// The codec refuses to write only packet id 0 and lengths beyond [`REMAINING_LEN_MAX`]; both were ruled out before.
fn written(result: Result<usize, Error>) {
    debug_assert!(result.is_ok(), "{result:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN_MAX: usize = 4096;

    fn decode(input: &[u8]) -> Result<Option<Frame>, Failure> {
        Codec::decode(input, LEN_MAX)
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
        let packet = Packet::Publish { id: 9, dup: false, message: message("a", b"hi", QoS::AtLeastOnce) };
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
            (vec![0x30, 3, 0, 1, b'#'], Err(Failure::Topic(crate::topic::NameError::Wildcard))),
            (vec![0x30, 2, 0, 0], Err(Failure::Topic(crate::topic::NameError::Empty))),
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
        Codec::new().publish(&message(&"t".repeat(2000), b"21.5", QoS::AtMostOnce), 0, false, &mut out);
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
        Codec::new().connect(&options, false, true, &mut out).unwrap();
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
            Codec::new().connect(&options, false, true, &mut BytesMut::new())
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
            assert!(Codec::new().connect(&options, false, true, &mut BytesMut::new()).is_err());
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
            Codec::new().publish(&message, id, dup, &mut out);
            let len = out.len();
            prop_assert!(header_len(&out) + Codec::publish_len(&message) >= len);
            prop_assert_eq!(decode(&out), Ok(Some(Frame { packet: Packet::Publish { id, dup, message }, len })));
        }
    }
}
