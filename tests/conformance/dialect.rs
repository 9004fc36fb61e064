//! The versions of MQTT in one's words: what the gateway sends is read, and what a broker sends is written, as packets of
//! MQTT 3.1.1, on rumqttc's codecs. What only MQTT 5 says and a row can see stands beside them.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{
    Connect, LastWill, Packet, PubAck, PubComp, PubRec, PubRel, Publish, Subscribe, SubscribeFilter,
    SubscribeReasonCode, Unsubscribe,
};
use rumqttc::mqttbytes::{Error, Protocol, QoS, check};
use rumqttc::v5::mqttbytes::v5;

use crate::script::Ack;

/// Octets in the largest packet: a PUBLISH of the largest datagram and its topic.
const PACKET_MAX: usize = 140_000;

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V5,
}

/// A packet of the gateway's.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) packet: Packet,
    /// CONNECT and DISCONNECT: the session is to outlive the connection. MQTT 5 says so apart from the clean start.
    pub(crate) kept: bool,
    /// SUBSCRIBE: the identifier that its messages are to carry (MQTT 5 §3.8.2.1.2).
    pub(crate) subscription: Option<usize>,
}

/// The next whole packet of a stream, octet by octet.
pub(crate) fn next(stream: &mut BytesMut) -> Result<Option<BytesMut>, Error> {
    match check(stream.iter(), PACKET_MAX) {
        Ok(header) => Ok(Some(stream.split_to(header.frame_length()))),
        Err(Error::InsufficientBytes(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Version {
    /// The version of the CONNECT that a connection begins with (MQTT 3.1.1 §3.1.2.2).
    pub(crate) fn of_connect(frame: &[u8]) -> Option<Self> {
        let body = &frame[header_len(frame)..];
        match (frame[0] >> 4, body.get(6)) {
            (1, Some(4)) => Some(Self::V4),
            (1, Some(5)) => Some(Self::V5),
            _ => None,
        }
    }

    /// Reads one packet of the gateway's.
    pub(crate) fn read(self, mut frame: BytesMut) -> Result<Heard, Error> {
        if self == Self::V5 {
            return read_v5(frame);
        }
        let packet = Packet::read(&mut frame, PACKET_MAX)?;
        let kept = !matches!(&packet, Packet::Connect(connect) if connect.clean_session);
        Ok(Heard { packet, kept, subscription: None })
    }

    /// Writes one packet of a broker's. A PUBLISH carries the identifiers of the subscriptions it is for.
    pub(crate) fn write(self, packet: &Packet, subscriptions: &[usize], out: &mut BytesMut) {
        if self == Self::V4 {
            packet.write(out, PACKET_MAX).unwrap();
            return;
        }
        match packet {
            Packet::ConnAck(ack) => {
                let code = [0, 0x84, 0x85, 0x88, 0x86, 0x87][ack.code as usize];
                out.extend_from_slice(&[0x20, 3, u8::from(ack.session_present), code, 0]);
            }
            Packet::SubAck(ack) => {
                let codes = ack.return_codes.iter().map(|code| match code {
                    SubscribeReasonCode::Success(qos) => *qos as u8,
                    SubscribeReasonCode::Failure => 0x80,
                });
                let codes: Vec<_> = codes.collect();
                let [high, low] = ack.pkid.to_be_bytes();
                out.extend_from_slice(&[0x90, u8::try_from(3 + codes.len()).unwrap(), high, low, 0]);
                out.extend_from_slice(&codes);
            }
            Packet::UnsubAck(ack) => {
                let [high, low] = ack.pkid.to_be_bytes();
                out.extend_from_slice(&[0xB0, 4, high, low, 0, 0]);
            }
            Packet::Publish(publish) => write_publish(publish, subscriptions, out),
            // The same in both.
            _ => drop(packet.write(out, PACKET_MAX).unwrap()),
        }
    }

    /// The packet id of a broker's answer to SUBSCRIBE or UNSUBSCRIBE, the same in both.
    pub(crate) fn settled(frame: &[u8]) -> Option<u16> {
        let body = &frame[header_len(frame)..];
        matches!(frame[0] >> 4, 9 | 11).then_some(u16::from_be_bytes([*body.first()?, *body.get(1)?]))
    }

    /// What a broker's packet answers, and how, if a row may ask for it.
    pub(crate) fn answer(self, frame: &[u8]) -> Option<(Ack, u8)> {
        let body = &frame[header_len(frame)..];
        match (frame[0] >> 4, self) {
            (4, _) => Some((Ack::Publish, body.get(2).copied().unwrap_or(0))),
            (9, Self::V4) => Some((Ack::Subscribe, *body.get(2)?)),
            (9, Self::V5) => {
                // Behind the properties, of which brokers send less than 128 octets here.
                let properties = usize::from(*body.get(2)?);
                Some((Ack::Subscribe, *body.get(3 + properties)?))
            }
            _ => None,
        }
    }
}

fn read_v5(mut frame: BytesMut) -> Result<Heard, Error> {
    let kind = frame[0] >> 4;
    let body = frame[header_len(&frame)..].to_vec();
    let id = || body.get(..2).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    let (mut kept, mut subscription) = (false, None);
    let packet = match kind {
        // A reason code may follow: none changes what a row sees.
        4 => Packet::PubAck(PubAck::new(id())),
        5 => Packet::PubRec(PubRec::new(id())),
        6 => Packet::PubRel(PubRel::new(id())),
        7 => Packet::PubComp(PubComp::new(id())),
        12 => Packet::PingReq,
        14 => {
            // Nothing, or an end of the session too: the gateway has nothing else to say (MQTT 5 §3.14.2.2.2).
            kept = body.len() < 2;
            Packet::Disconnect
        }
        1 | 3 | 8 | 10 => {
            let read = v5::Packet::read(&mut frame, None).map_err(|_| Error::PayloadTooLong)?;
            match read {
                v5::Packet::Connect(connect, will, _) => {
                    let expiry =
                        connect.properties.as_ref().and_then(|properties| properties.session_expiry_interval);
                    kept = expiry.is_some_and(|expiry| expiry > 0);
                    Packet::Connect(connect_of(connect, will))
                }
                v5::Packet::Publish(publish) => {
                    let topic = text(&publish.topic);
                    let mut plain = Publish::from_bytes(topic, quality(publish.qos as u8), publish.payload);
                    (plain.pkid, plain.dup, plain.retain) = (publish.pkid, publish.dup, publish.retain);
                    Packet::Publish(plain)
                }
                v5::Packet::Subscribe(subscribe) => {
                    subscription = subscribe.properties.and_then(|properties| properties.id);
                    let filters = subscribe.filters.into_iter();
                    let filters = filters.map(|f| SubscribeFilter::new(f.path, quality(f.qos as u8)));
                    let mut plain = Subscribe::new_many(filters);
                    plain.pkid = subscribe.pkid;
                    Packet::Subscribe(plain)
                }
                v5::Packet::Unsubscribe(unsubscribe) => {
                    Packet::Unsubscribe(Unsubscribe { pkid: unsubscribe.pkid, topics: unsubscribe.filters })
                }
                _ => return Err(Error::InvalidPacketType(kind)),
            }
        }
        _ => return Err(Error::InvalidPacketType(kind)),
    };
    Ok(Heard { packet, kept, subscription })
}

fn connect_of(connect: v5::Connect, will: Option<v5::LastWill>) -> Connect {
    let mut plain = Connect::new(connect.client_id);
    plain.protocol = Protocol::V5;
    (plain.keep_alive, plain.clean_session) = (connect.keep_alive, connect.clean_start);
    plain.last_will = will.map(|will| {
        LastWill::new(text(&will.topic), will.message.to_vec(), quality(will.qos as u8), will.retain)
    });
    plain
}

fn write_publish(plain: &Publish, subscriptions: &[usize], out: &mut BytesMut) {
    let qos = rumqttc::v5::mqttbytes::qos(plain.qos as u8).unwrap();
    let mut publish = v5::Publish::new(plain.topic.as_str(), qos, plain.payload.clone(), None);
    (publish.pkid, publish.dup, publish.retain) = (plain.pkid, plain.dup, plain.retain);
    if !subscriptions.is_empty() {
        publish.properties = Some(v5::PublishProperties {
            subscription_identifiers: subscriptions.to_vec(),
            ..v5::PublishProperties::default()
        });
    }
    publish.write(out).unwrap();
}

/// Octets of the fixed header.
fn header_len(frame: &[u8]) -> usize {
    2 + frame.iter().skip(1).take_while(|octet| **octet & 0x80 != 0).count()
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

pub(crate) fn quality(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}
