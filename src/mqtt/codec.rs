//! What the versions of MQTT have in common in their octets: where a packet begins and ends, and the acknowledgements.
//! Nothing above this file knows octets.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::{Error, check};
use rumqttc::{PubAck, PubComp, PubRec, PubRel, QoS};

use super::packet::{Frame, Packet};
use super::{Failure, Malformed, Message, Options, PacketType, Protocol, SubscriptionId, v4, v5};
use crate::topic::TopicFilter;

/// Octets in the longest remaining length that MQTT can say (MQTT 3.1.1 §2.2.3).
pub(super) const REMAINING_LEN_MAX: usize = 268_435_455;

/// Octets of a subscription identifier and its name, at most (MQTT 5 §3.8.2.1.2).
const SUBSCRIPTION_LEN_MAX: usize = 5;

pub(super) const CONNACK: PacketType = PacketType(2);
pub(super) const PUBLISH: PacketType = PacketType(3);
pub(super) const PUBACK: PacketType = PacketType(4);
pub(super) const PUBREC: PacketType = PacketType(5);
pub(super) const PUBREL: PacketType = PacketType(6);
pub(super) const PUBCOMP: PacketType = PacketType(7);
pub(super) const SUBACK: PacketType = PacketType(9);
pub(super) const UNSUBACK: PacketType = PacketType(11);
pub(super) const PINGRESP: PacketType = PacketType(13);
pub(super) const DISCONNECT: PacketType = PacketType(14);

/// Writes packets of one version, and reads those of a broker.
#[derive(Debug)]
pub(super) enum Codec {
    V4(v4::Codec),
    V5(v5::Codec),
}

impl Codec {
    pub(super) fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::V4 => Self::V4(v4::Codec::new()),
            Protocol::V5 => Self::V5(v5::Codec::default()),
        }
    }

    /// MQTT 3.1.1 §3.1. With `purge` it only asks for the end of the session: without a will.
    pub(super) fn connect(
        &self,
        options: &Options,
        purge: bool,
        clean: bool,
        out: &mut BytesMut,
    ) -> Result<(), Failure> {
        let parts = ConnectParts::new(options, purge, clean)?;
        // The codec finds the place of the flags from the beginning of the buffer: it gets one of its own.
        let mut connect = BytesMut::new();
        match self {
            Self::V4(_) => v4::connect(&parts, &mut connect),
            Self::V5(_) => v5::connect(&parts, &mut connect),
        }
        // The codec takes a password only as text. It is the last field: text of its length was written and is replaced.
        let end = connect.len();
        connect[end - parts.password.len()..].copy_from_slice(&parts.password);
        out.extend_from_slice(&connect);
        Ok(())
    }

    /// MQTT 3.1.1 §3.3; `id` is 0 for QoS 0.
    pub(super) fn publish(&mut self, message: &Message, id: u16, dup: bool, out: &mut BytesMut) {
        match self {
            Self::V4(codec) => codec.publish(message, id, dup, out),
            Self::V5(codec) => codec.publish(message, id, dup, out),
        }
    }

    /// Octets after the fixed header.
    pub(super) fn publish_len(&self, message: &Message) -> usize {
        2 + message.topic.as_str().len() + 2 + self.properties_len() + message.payload.len()
    }

    /// A success is the same in all versions (MQTT 5 §3.4.2.1), here and below.
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

    /// MQTT 3.1.1 §3.8; `subscription` is left out where the version has no such thing.
    pub(super) fn subscribe(
        &self,
        id: u16,
        filters: &[(TopicFilter, QoS)],
        subscription: Option<SubscriptionId>,
        out: &mut BytesMut,
    ) {
        match self {
            Self::V4(_) => v4::subscribe(id, filters, out),
            Self::V5(_) => v5::subscribe(id, filters, subscription, out),
        }
    }

    /// Octets after the fixed header, at most.
    pub(super) fn subscribe_len(
        &self,
        filters: &[(TopicFilter, QoS)],
        subscription: Option<SubscriptionId>,
    ) -> usize {
        let filters = filters.iter().map(|(filter, _)| 2 + filter.as_str().len() + 1).sum::<usize>();
        2 + self.properties_len() + subscription.map_or(0, |_| SUBSCRIPTION_LEN_MAX) + filters
    }

    pub(super) fn unsubscribe(&self, id: u16, filters: &[TopicFilter], out: &mut BytesMut) {
        match self {
            Self::V4(_) => v4::unsubscribe(id, filters, out),
            Self::V5(_) => v5::unsubscribe(id, filters, out),
        }
    }

    /// Octets after the fixed header.
    pub(super) fn unsubscribe_len(&self, filters: &[TopicFilter]) -> usize {
        let filters = filters.iter().map(|filter| 2 + filter.as_str().len()).sum::<usize>();
        2 + self.properties_len() + filters
    }

    pub(super) fn pingreq(out: &mut BytesMut) {
        written(rumqttc::PingReq.write(out));
    }

    pub(super) fn disconnect(out: &mut BytesMut) {
        written(rumqttc::Disconnect.write(out));
    }

    /// DISCONNECT that ends the session too, where the version has such a thing. Whether it has.
    pub(super) fn disconnect_for_good(&self, out: &mut BytesMut) -> bool {
        match self {
            Self::V4(_) => false,
            Self::V5(_) => {
                v5::disconnect_for_good(out);
                true
            }
        }
    }

    /// The packet that `input` begins with, if all of it is there. A packet that no broker sends is refused at its
    /// first octet, one that is too large at its length; of a PUBLISH that is too large only the beginning is read.
    pub(super) fn decode(&self, input: &[u8], len_max: usize) -> Result<Option<Frame>, Failure> {
        let Some(&first) = input.first() else { return Ok(None) };
        let packet = PacketType(first >> 4);
        self.check_first(packet, first & 0x0F)?;

        let header = match check(input.iter(), len_max) {
            Ok(header) => header,
            Err(Error::InsufficientBytes(_)) => return Ok(None),
            Err(Error::PayloadSizeLimitExceeded(len)) if packet == PUBLISH => return oversized(input, len),
            Err(Error::PayloadSizeLimitExceeded(len)) => return Err(Failure::TooLarge { packet, len }),
            Err(_) => return Err(Failure::Malformed { packet, what: Malformed::Length }),
        };
        let len = header.frame_length();
        let frame = &input[..len];
        let packet = match self {
            Self::V4(_) => v4::read(packet, header, frame),
            Self::V5(_) => v5::read(packet, first & 0x0F, &frame[header_len(frame)..]),
        };
        Ok(Some(Frame { packet: packet?, len }))
    }

    /// Refuses what only a client sends, and flags that are not those of MQTT 3.1.1 §2.2.2.
    fn check_first(&self, packet: PacketType, flags: u8) -> Result<(), Failure> {
        let right = match packet {
            PUBLISH => flags & 0b0110 != 0b0110,
            PUBREL => flags == 0b0010,
            CONNACK | PUBACK | PUBREC | PUBCOMP | SUBACK | UNSUBACK | PINGRESP => flags == 0,
            DISCONNECT if matches!(self, Self::V5(_)) => flags == 0,
            _ => return Err(Failure::Unexpected(packet)),
        };
        let what = if packet == PUBLISH { Malformed::QoS } else { Malformed::Flags };
        if right { Ok(()) } else { Err(Failure::Malformed { packet, what }) }
    }

    /// Octets of the length of properties, of which there are none.
    fn properties_len(&self) -> usize {
        usize::from(matches!(self, Self::V5(_)))
    }
}

/// The octets of one packet that have not been read.
pub(super) struct Reader<'a> {
    pub(super) packet: PacketType,
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn is(&self, what: Malformed) -> Failure {
        Failure::Malformed { packet: self.packet, what }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.is(Malformed::Size))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Failure> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Failure> {
        let octets = self.take(2)?;
        Ok(u16::from_be_bytes([octets[0], octets[1]]))
    }

    /// A packet id, which is not 0.
    pub(super) fn id(&mut self) -> Result<u16, Failure> {
        match self.u16()? {
            0 => Err(self.is(Malformed::PacketId)),
            id => Ok(id),
        }
    }

    /// Octets behind their length.
    pub(super) fn octets(&mut self) -> Result<&'a [u8], Failure> {
        let len = self.u16()?;
        self.take(len.into())
    }
}

/// What a CONNECT is made of, checked: everything fits into its field.
pub(super) struct ConnectParts<'a> {
    pub(super) options: &'a Options,
    pub(super) will: Option<&'a Message>,
    /// User name, and text in place of the password.
    pub(super) login: Option<(&'a str, String)>,
    pub(super) clean: bool,
    pub(super) purge: bool,
    password: Bytes,
}

impl<'a> ConnectParts<'a> {
    fn new(options: &'a Options, purge: bool, clean: bool) -> Result<Self, Failure> {
        let fits = |len: usize, name| {
            if len > usize::from(u16::MAX) { Err(Failure::Options(name)) } else { Ok(()) }
        };
        fits(options.client_id.len(), "the client id")?;
        let will = options.will.as_ref().filter(|_| !purge);
        fits(will.map_or(0, |will| will.payload.len()), "the payload of the will")?;
        let (mut login, mut password) = (None, Bytes::new());
        if let Some(credentials) = &options.credentials {
            if credentials.username.is_empty() || credentials.password.len() > usize::from(u16::MAX) {
                return Err(Failure::Options("an empty user name, or the password,"));
            }
            fits(credentials.username.len(), "the user name")?;
            password = credentials.password.clone();
            login = Some((credentials.username.as_str(), " ".repeat(password.len())));
        }
        Ok(Self { options, will, login, clean, purge, password })
    }
}

/// Reads the packet id of a PUBLISH that is not read to its end, so that it can be acknowledged.
fn oversized(input: &[u8], remaining: usize) -> Result<Option<Frame>, Failure> {
    let begin = header_len(input);
    let Some(&[high, low]) = input.get(begin..begin + 2) else { return Ok(None) };
    let end = begin + 2 + usize::from(u16::from_be_bytes([high, low])) + 2;
    if end > begin + remaining {
        return Err(Failure::Malformed { packet: PUBLISH, what: Malformed::Size });
    }
    let Some(&[high, low]) = input.get(end - 2..end) else { return Ok(None) };
    let (dup, qos) = publish_flags(input[0]);
    let id = if qos == QoS::AtMostOnce { 0 } else { u16::from_be_bytes([high, low]) };
    if id == 0 && qos != QoS::AtMostOnce {
        return Err(Failure::Malformed { packet: PUBLISH, what: Malformed::PacketId });
    }
    Ok(Some(Frame { packet: Packet::Oversized { id, dup, qos }, len: begin + remaining }))
}

/// DUP and QoS in the first octet of a PUBLISH that [`Codec::check_first`] let through.
pub(super) fn publish_flags(first: u8) -> (bool, QoS) {
    let qos = match (first >> 1) & 0b11 {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    };
    (first & 0b1000 != 0, qos)
}

/// Octets of the fixed header that `input` begins with.
pub(super) fn header_len(input: &[u8]) -> usize {
    2 + input.iter().skip(1).take_while(|octet| **octet & 0x80 != 0).count()
}

/// Octets of a packet with so many after its fixed header.
pub(super) fn frame_len(remaining: usize) -> usize {
    let length = match remaining {
        0..128 => 1,
        128..16_384 => 2,
        16_384..2_097_152 => 3,
        _ => 4,
    };
    1 + length + remaining
}

/// The codec refuses to write only packet id 0 and lengths beyond [`REMAINING_LEN_MAX`]; both were ruled out before.
pub(super) fn written<E: std::fmt::Debug>(result: Result<usize, E>) {
    debug_assert!(result.is_ok(), "{result:?}");
}
