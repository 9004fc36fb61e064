//! MQTT 5 on rumqttc's codec, which writes everything and reads properties.
//!
//! The rest of a packet is read here, because the codec (rumqttc 0.25.1) reads past the end of properties whose length
//! lies, into the payload or the reason codes; has no name for every reason code and fails on those; and takes a
//! DISCONNECT without properties, or the CONNACK of a broker that knows only MQTT 3.1.1, for the beginning of a longer one.
//! It is given exactly the octets of the properties, and what it finds in them is checked. Of several identifiers of
//! subscriptions it counts each twice, and stops before the end: it is given what is left again.
//!
//! Costs: sending a PUBLISH copies topic and payload once into the output and allocates nothing; receiving one allocates
//! its topic and its payload, and its properties if it has any; acknowledgements allocate nothing.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::QoS;
use rumqttc::v5::mqttbytes::Error;
use rumqttc::v5::mqttbytes::QoS as Qos5;
use rumqttc::v5::mqttbytes::v5::{
    ConnAckProperties, Connect, ConnectProperties, Disconnect, DisconnectProperties, DisconnectReasonCode,
    Filter, LastWill, Login, PubAckProperties, Publish, PublishProperties, Subscribe, SubscribeProperties,
    Unsubscribe,
};

use super::codec::{
    CONNACK, ConnectParts, DISCONNECT, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Reader, SUBACK,
    UNSUBACK, frame_len, publish_flags, written,
};
use super::packet::{Extras, Packet, Terms};
use super::{ConnectRefusal, Failure, Malformed, Message, PacketType, Refused, Session, SubscriptionId};
use crate::topic::{TopicFilter, TopicName};

/// Reason codes from here on are failures (MQTT 5 §2.4).
const FAILURE: u8 = 0x80;

/// The session expiry interval that never comes (MQTT 5 §3.1.2.11.2).
const NEVER: u32 = u32::MAX;

/// Writes what is written often.
#[derive(Debug, Default)]
pub(super) struct Codec {
    /// The codec wants a PUBLISH that owns its topic: its octets are here, again and again.
    topic: BytesMut,
}

impl Codec {
    pub(super) fn publish(&mut self, message: &Message, id: u16, dup: bool, out: &mut BytesMut) {
        self.topic.extend_from_slice(message.topic.as_str().as_bytes());
        let publish = Publish {
            dup,
            qos: qos(message.qos),
            retain: message.retain,
            topic: self.topic.split().freeze(),
            pkid: id,
            payload: message.payload.clone(),
            properties: None,
        };
        written(publish.write(out));
    }
}

/// MQTT 5 §3.1. Properties are asked for only where they tell more than a code does, and topic aliases not at all.
pub(super) fn connect(parts: &ConnectParts<'_>, out: &mut BytesMut) {
    let options = parts.options;
    let mut properties = ConnectProperties::new();
    if options.session != Session::Clean && !parts.purge {
        properties.session_expiry_interval = Some(seconds(options.session_expiry));
    }
    // What is larger would be dropped here: the broker keeps it to itself.
    properties.max_packet_size = u32::try_from(frame_len(options.packet_len_max)).ok();
    properties.receive_maximum = Some(options.receive_max).filter(|max| *max < u16::MAX);
    properties.request_problem_info = Some(0);
    let connect = Connect {
        keep_alive: options.keep_alive_seconds(),
        client_id: options.client_id.clone(),
        clean_start: parts.clean,
        properties: Some(properties),
    };
    let will = parts.will.map(|will| LastWill {
        topic: Bytes::copy_from_slice(will.topic.as_str().as_bytes()),
        message: will.payload.clone(),
        qos: qos(will.qos),
        retain: will.retain,
        properties: None,
    });
    let login = parts.login.as_ref().map(|(username, password)| Login::new(*username, password.as_str()));
    written(connect.write(&will, &login, out));
}

/// MQTT 5 §3.8.
pub(super) fn subscribe(
    id: u16,
    filters: &[(TopicFilter, QoS)],
    subscription: Option<SubscriptionId>,
    out: &mut BytesMut,
) {
    let properties = subscription.map(|subscription| SubscribeProperties {
        id: usize::try_from(subscription.get()).ok(),
        user_properties: Vec::new(),
    });
    let filters = filters.iter().map(|(filter, at)| Filter::new(filter.as_str(), qos(*at)));
    let mut subscribe = Subscribe::new_many(filters, properties);
    subscribe.pkid = id;
    written(subscribe.write(out));
}

/// MQTT 5 §3.10.
pub(super) fn unsubscribe(id: u16, filters: &[TopicFilter], out: &mut BytesMut) {
    let filters = filters.iter().map(|filter| filter.as_str().to_owned()).collect();
    written(Unsubscribe { pkid: id, filters, properties: None }.write(out));
}

/// DISCONNECT that ends the session too (MQTT 5 §3.14.2.2.2).
pub(super) fn disconnect_for_good(out: &mut BytesMut) {
    let mut disconnect = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
    disconnect.properties = Some(DisconnectProperties {
        session_expiry_interval: Some(0),
        reason_string: None,
        user_properties: Vec::new(),
        server_reference: None,
    });
    written(disconnect.write(out));
}

/// Reads what follows the fixed header of one whole packet of a type that a broker sends.
pub(super) fn read(packet: PacketType, flags: u8, body: &[u8]) -> Result<Packet, Failure> {
    let mut reader = Reader { packet, rest: body };
    match packet {
        CONNACK => connack(reader),
        PUBLISH => publish(flags, reader),
        PUBACK => acknowledgement(reader).map(|(id, result)| Packet::PubAck(id, result)),
        PUBREC => acknowledgement(reader).map(|(id, result)| Packet::PubRec(id, result)),
        PUBREL => acknowledgement(reader).map(|(id, _)| Packet::PubRel(id)),
        PUBCOMP => {
            // The broker has forgotten the id because it is done with the message: it took it over with PUBREC.
            let done = |result| if result == Err(Refused::PACKET_ID_NOT_FOUND) { Ok(()) } else { result };
            acknowledgement(reader).map(|(id, result)| Packet::PubComp(id, done(result)))
        }
        SUBACK => {
            let (id, codes) = reader.codes()?;
            let granted = codes.iter().map(|code| granted(*code)).collect::<Option<_>>();
            Ok(Packet::SubAck(id, granted.ok_or_else(|| reader.is(Malformed::ReturnCodes))?))
        }
        UNSUBACK => reader.codes().map(|(id, _)| Packet::UnsubAck(id)),
        DISCONNECT => {
            let code = if reader.rest.is_empty() { 0 } else { reader.u8()? };
            if !reader.rest.is_empty() {
                reader.properties(DisconnectProperties::extract)?;
            }
            reader.end(Packet::Disconnect(code))
        }
        PINGRESP => reader.end(Packet::PingResp),
        _ => Err(Failure::Unexpected(packet)),
    }
}

/// MQTT 5 §3.2. A broker that knows only MQTT 3.1.1 answers with two octets.
fn connack(mut reader: Reader<'_>) -> Result<Packet, Failure> {
    let session_present = match reader.u8()? {
        flag @ 0..=1 => flag == 1,
        _ => return Err(reader.is(Malformed::Flags)),
    };
    let code = reader.u8()?;
    if code != 0 && reader.rest.is_empty() {
        return Ok(Packet::ConnAck { session_present, result: Err(ConnectRefusal(code)) });
    }
    let properties = reader.properties(ConnAckProperties::read)?;
    if code != 0 {
        return reader.end(Packet::ConnAck { session_present, result: Err(ConnectRefusal(code)) });
    }
    let terms = match properties {
        Some(properties) => terms(&properties).ok_or_else(|| reader.is(Malformed::Properties))?,
        None => Terms { subscription_ids: true, ..Terms::default() },
    };
    reader.end(Packet::ConnAck { session_present, result: Ok(terms) })
}

/// What CONNACK says of the broker; `None` if it says what cannot be.
fn terms(properties: &ConnAckProperties) -> Option<Terms> {
    let flag = |flag: Option<u8>| match flag {
        None | Some(1) => Some(true),
        Some(0) => Some(false),
        Some(_) => None,
    };
    Some(Terms {
        receive_max: properties.receive_max.map_or(Some(u16::MAX), |max| (max > 0).then_some(max))?,
        frame_max: match properties.max_packet_size {
            None => usize::MAX,
            Some(0) => return None,
            Some(max) => usize::try_from(max).unwrap_or(usize::MAX),
        },
        qos_max: match properties.max_qos {
            None => QoS::ExactlyOnce,
            Some(0) => QoS::AtMostOnce,
            Some(1) => QoS::AtLeastOnce,
            Some(_) => return None,
        },
        retain: flag(properties.retain_available)?,
        subscription_ids: flag(properties.subscription_identifiers_available)?,
        keep_alive: properties.server_keep_alive.map(|seconds| Duration::from_secs(seconds.into())),
    })
}

/// The first of these properties, as far as the codec reads, and how many octets they are: at least one property.
fn some_properties(octets: &[u8]) -> Option<(PublishProperties, usize)> {
    let mut length = octets.len();
    let mut given = BytesMut::with_capacity(4 + length);
    while length >= 0x80 {
        given.extend_from_slice(&[(length & 0x7F) as u8 | 0x80]);
        length >>= 7;
    }
    given.extend_from_slice(&[length as u8]);
    given.extend_from_slice(octets);
    let mut left = given.freeze();
    let properties = PublishProperties::read(&mut left).ok()??;
    Some((properties, octets.len() - left.len()))
}

/// MQTT 5 §3.3.
fn publish(flags: u8, mut reader: Reader<'_>) -> Result<Packet, Failure> {
    let (dup, qos) = publish_flags(flags);
    let topic = reader.octets()?;
    let id = if qos == QoS::AtMostOnce { 0 } else { reader.id()? };
    let mut extras = Extras::default();
    let length = reader.length()?;
    let mut rest = reader.take(length)?;
    while !rest.is_empty() {
        let (properties, read) = some_properties(rest).ok_or_else(|| reader.is(Malformed::Properties))?;
        // None was offered.
        if properties.topic_alias.is_some() {
            return Err(reader.is(Malformed::TopicAlias));
        }
        for id in properties.subscription_identifiers {
            let id = u32::try_from(id).ok().and_then(SubscriptionId::new);
            extras.subscriptions.push(id.ok_or_else(|| reader.is(Malformed::Properties))?);
        }
        let expiry = properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into()));
        extras.expiry = expiry.or(extras.expiry);
        rest = &rest[read..];
    }
    let Ok(topic) = TopicName::new(topic) else { return Ok(Packet::Misnamed { id, dup, qos }) };
    let payload = Bytes::copy_from_slice(reader.rest);
    let message = Message { topic, payload, qos, retain: flags & 1 != 0 };
    Ok(Packet::Publish { id, dup, message, extras })
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (MQTT 5 §3.4 and the three after it): reason code and properties may be missing.
fn acknowledgement(mut reader: Reader<'_>) -> Result<(u16, Result<(), Refused>), Failure> {
    let id = reader.u16()?;
    let code = if reader.rest.is_empty() { 0 } else { reader.u8()? };
    if !reader.rest.is_empty() {
        reader.properties(PubAckProperties::read)?; // all four have these
    }
    let result = if code < FAILURE { Ok(()) } else { Err(Refused(code)) };
    reader.end((id, result))
}

/// What a reason code of SUBACK grants; `None` for a success that there is not (MQTT 5 §3.9.3).
fn granted(code: u8) -> Option<Result<QoS, Refused>> {
    match code {
        0 => Some(Ok(QoS::AtMostOnce)),
        1 => Some(Ok(QoS::AtLeastOnce)),
        2 => Some(Ok(QoS::ExactlyOnce)),
        FAILURE.. => Some(Err(Refused(code))),
        _ => None,
    }
}

impl<'a> Reader<'a> {
    /// A length of up to four octets (MQTT 5 §1.5.5).
    fn length(&mut self) -> Result<usize, Failure> {
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let octet = self.u8()?;
            length |= usize::from(octet & 0x7F) << shift;
            if octet & 0x80 == 0 {
                return Ok(length);
            }
        }
        Err(self.is(Malformed::Properties))
    }

    /// The properties that follow, read by the codec from their own octets and no others.
    fn properties<T>(
        &mut self,
        read: impl FnOnce(&mut Bytes) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Failure> {
        let before = self.rest;
        let length = self.length()?;
        if length == 0 {
            return Ok(None);
        }
        self.take(length)?;
        let mut octets = Bytes::copy_from_slice(&before[..before.len() - self.rest.len()]);
        match read(&mut octets) {
            Ok(properties) if octets.is_empty() => Ok(properties),
            _ => Err(self.is(Malformed::Properties)),
        }
    }

    /// Packet id, properties, and the reason codes to the end, of which there is one at least.
    fn codes(&mut self) -> Result<(u16, &'a [u8]), Failure> {
        let id = self.u16()?;
        self.properties(PubAckProperties::read)?; // these two have the same
        if self.rest.is_empty() {
            return Err(self.is(Malformed::Size));
        }
        Ok((id, self.take(self.rest.len())?))
    }

    /// `value`, if everything was read.
    fn end<T>(&self, value: T) -> Result<T, Failure> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.is(Malformed::Size)) }
    }
}

fn qos(qos: QoS) -> Qos5 {
    match qos {
        QoS::AtMostOnce => Qos5::AtMostOnce,
        QoS::AtLeastOnce => Qos5::AtLeastOnce,
        QoS::ExactlyOnce => Qos5::ExactlyOnce,
    }
}

/// Rounded up; what does not fit is for ever.
fn seconds(duration: Duration) -> u32 {
    let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    u32::try_from(seconds).unwrap_or(NEVER)
}
