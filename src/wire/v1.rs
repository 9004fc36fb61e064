//! The messages of MQTT-SN 1.2 in the order of §5.4: what they carry, how they are parsed and how they are emitted.
//!
//! Parsers see the octets between the message type and the end of the message; what they leave over is an error of the
//! caller's. A trailing comment gives a field's type on the wire.

use bytes::{BufMut, BytesMut};
use nom::Parser;
use nom::combinator::rest;
use nom::number::complete::{be_u8, be_u16};

use super::field::{FilterRef, Flags, Qos, ReturnCode, TopicRef};

/// The field that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadField(pub(super) &'static str);

impl<I> nom::error::ParseError<I> for BadField {
    fn from_error_kind(_: I, _: nom::error::ErrorKind) -> Self {
        Self("")
    }

    fn append(_: I, _: nom::error::ErrorKind, other: Self) -> Self {
        other
    }
}

pub(super) type Parsed<'a, T> = nom::IResult<&'a [u8], T, BadField>;

fn named<'a, T>(
    name: &'static str,
    mut parser: impl Parser<&'a [u8], Output = T, Error = BadField>,
) -> impl FnMut(&'a [u8]) -> Parsed<'a, T> {
    move |input| parser.parse(input).map_err(|_| nom::Err::Error(BadField(name)))
}

fn octet<'a>(name: &'static str) -> impl FnMut(&'a [u8]) -> Parsed<'a, u8> {
    named(name, be_u8)
}

fn word<'a>(name: &'static str) -> impl FnMut(&'a [u8]) -> Parsed<'a, u16> {
    named(name, be_u16)
}

fn flags(input: &[u8]) -> Parsed<'_, Flags> {
    octet("Flags")(input).map(|(input, flags)| (input, Flags(flags)))
}

fn return_code(input: &[u8]) -> Parsed<'_, ReturnCode> {
    octet("ReturnCode")(input).map(|(input, code)| (input, code.into()))
}

/// Broadcast by a gateway: it is here, and will say so again (§5.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertise {
    /// Of the sender.
    pub gw_id: u8, // u8
    /// Seconds to the next one.
    pub duration: u16, // u16
}

impl Advertise {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        let (input, gw_id) = octet("GwId")(input)?;
        let (input, duration) = word("Duration")(input)?;
        Ok((input, Self { gw_id, duration }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(self.gw_id);
        out.put_u16(self.duration);
    }
}

/// Broadcast by a client that looks for a gateway (§5.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchGw {
    /// Hops it may travel; 0: the whole network.
    pub radius: u8, // u8
}

impl SearchGw {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        octet("Radius")(input).map(|(input, radius)| (input, Self { radius }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(self.radius);
    }
}

/// The answer to SEARCHGW (§5.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GwInfo<'a> {
    /// Of the gateway that was found.
    pub gw_id: u8, // u8
    /// Its address, when a client answers for it; empty from a gateway.
    pub gw_add: &'a [u8], // rest
}

impl<'a> GwInfo<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (input, gw_id) = octet("GwId")(input)?;
        let (input, gw_add) = named("GwAdd", rest)(input)?;
        Ok((input, Self { gw_id, gw_add }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(self.gw_id);
        out.put_slice(self.gw_add);
    }
}

/// A client sets up a connection (§5.4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Whether the gateway shall prompt for a Will.
    pub will: bool, // flag
    /// Whether the session begins and ends with this connection (§6.3).
    pub clean_session: bool, // flag
    /// `01`; everything else is reserved (§5.3.8).
    pub protocol_id: u8, // u8
    /// Keep-alive in seconds; 0: none.
    pub duration: u16, // u16
    /// Not yet validated; may be empty.
    pub client_id: &'a [u8], // rest
}

impl<'a> Connect<'a> {
    /// The ProtocolId of MQTT-SN 1.2.
    pub const PROTOCOL_ID: u8 = 1;

    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (input, flags) = flags(input)?;
        let (input, protocol_id) = octet("ProtocolId")(input)?;
        let (input, duration) = word("Duration")(input)?;
        let (input, client_id) = named("ClientId", rest)(input)?;
        let (will, clean_session) = (flags.will(), flags.clean_session());
        Ok((input, Self { will, clean_session, protocol_id, duration, client_id }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        let flags = Flags::default().with_will(self.will).with_clean_session(self.clean_session);
        out.put_u8(flags.0);
        out.put_u8(self.protocol_id);
        out.put_u16(self.duration);
        out.put_slice(self.client_id);
    }
}

/// CONNACK, WILLTOPICRESP or WILLMSGRESP: a return code alone (§5.4.5, §5.4.24, §5.4.25).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// What became of the request.
    pub code: ReturnCode, // u8
}

impl Response {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        return_code(input).map(|(input, code)| (input, Self { code }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(self.code.code());
    }
}

/// WILLTOPIC or WILLTOPICUPD (§5.4.7, §5.4.22). With an empty topic both delete the Will; that form is sent with no
/// fields at all. Interpretation: flags without a topic, which some clients send, are the empty form too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WillTopic<'a> {
    /// Of the Will.
    pub qos: Qos, // flag
    /// Of the Will.
    pub retain: bool, // flag
    /// A name in full, not yet validated.
    pub topic: &'a [u8], // rest
}

impl<'a> WillTopic<'a> {
    /// The form that deletes the Will.
    pub const EMPTY: WillTopic<'static> = WillTopic { qos: Qos::AtMostOnce, retain: false, topic: &[] };

    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        if input.is_empty() {
            return Ok((input, WillTopic::EMPTY));
        }
        let (input, flags) = flags(input)?;
        let (input, topic) = named("WillTopic", rest)(input)?;
        if topic.is_empty() {
            return Ok((input, WillTopic::EMPTY));
        }
        Ok((input, Self { qos: flags.qos(), retain: flags.retain(), topic }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        if !self.topic.is_empty() {
            out.put_u8(Flags::default().with_qos(self.qos).with_retain(self.retain).0);
            out.put_slice(self.topic);
        }
    }
}

/// WILLMSG or WILLMSGUPD (§5.4.9, §5.4.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WillMsg<'a> {
    /// May be empty.
    pub message: &'a [u8], // rest
}

impl<'a> WillMsg<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        named("WillMsg", rest)(input).map(|(input, message)| (input, Self { message }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_slice(self.message);
    }
}

/// One side gives a topic name a number (§5.4.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register<'a> {
    /// The id a gateway assigns; from a client `0000` and not relevant.
    pub topic_id: u16, // u16
    /// Of this exchange.
    pub msg_id: u16, // u16
    /// Not yet validated; may be empty.
    pub topic_name: &'a [u8], // rest
}

impl<'a> Register<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (input, topic_id) = word("TopicId")(input)?;
        let (input, msg_id) = word("MsgId")(input)?;
        let (input, topic_name) = named("TopicName", rest)(input)?;
        Ok((input, Self { topic_id, msg_id, topic_name }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u16(self.topic_id);
        out.put_u16(self.msg_id);
        out.put_slice(self.topic_name);
    }
}

/// REGACK or PUBACK: the answer to a message about one topic (§5.4.11, §5.4.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicAck {
    /// The two topic octets: of a REGACK the id assigned, of a PUBACK those of the PUBLISH.
    pub topic_id: u16, // u16
    /// As in the request.
    pub msg_id: u16, // u16
    /// What became of the request.
    pub code: ReturnCode, // u8
}

impl TopicAck {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        let (input, topic_id) = word("TopicId")(input)?;
        let (input, msg_id) = word("MsgId")(input)?;
        let (input, code) = return_code(input)?;
        Ok((input, Self { topic_id, msg_id, code }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u16(self.topic_id);
        out.put_u16(self.msg_id);
        out.put_u8(self.code.code());
    }
}

/// A message on a topic, in either direction (§5.4.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Sent before.
    pub dup: bool, // flag
    /// −1 only from a client (§6.8).
    pub qos: Qos, // flag
    /// As in MQTT.
    pub retain: bool, // flag
    /// On what.
    pub topic: TopicRef, // flag and u16
    /// 0 for QoS 0 and −1.
    pub msg_id: u16, // u16
    /// The payload; may be empty.
    pub data: &'a [u8], // rest
}

impl<'a> Publish<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (input, flags) = flags(input)?;
        let (input, topic) = word("TopicId")(input)?;
        let (input, msg_id) = word("MsgId")(input)?;
        let (input, data) = named("Data", rest)(input)?;
        let topic = TopicRef::new(flags.topic_id_type(), topic);
        Ok((input, Self { dup: flags.dup(), qos: flags.qos(), retain: flags.retain(), topic, msg_id, data }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        let flags = Flags::default().with_dup(self.dup).with_qos(self.qos).with_retain(self.retain);
        out.put_u8(flags.with_topic_id_type(self.topic.kind()).0);
        out.put_u16(self.topic.raw());
        out.put_u16(self.msg_id);
        out.put_slice(self.data);
    }
}

/// PUBREC, PUBREL, PUBCOMP or UNSUBACK: a message id alone (§5.4.14, §5.4.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsgIdOnly {
    /// Of the exchange.
    pub msg_id: u16, // u16
}

impl MsgIdOnly {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        word("MsgId")(input).map(|(input, msg_id)| (input, Self { msg_id }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u16(self.msg_id);
    }
}

/// A client wants what is published on a topic (§5.4.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Sent before.
    pub dup: bool, // flag
    /// Asked for.
    pub qos: Qos, // flag
    /// Of this exchange.
    pub msg_id: u16, // u16
    /// On what.
    pub topic: FilterRef<'a>, // flag, and rest or u16
}

impl<'a> Subscribe<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (input, flags) = flags(input)?;
        let (input, msg_id) = word("MsgId")(input)?;
        let (input, topic) = filter(flags)(input)?;
        Ok((input, Self { dup: flags.dup(), qos: flags.qos(), msg_id, topic }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        let flags = Flags::default().with_dup(self.dup).with_qos(self.qos);
        out.put_u8(flags.with_topic_id_type(self.topic.kind()).0);
        out.put_u16(self.msg_id);
        emit_filter(self.topic, out);
    }
}

fn filter<'a>(flags: Flags) -> impl FnMut(&'a [u8]) -> Parsed<'a, FilterRef<'a>> {
    move |input| match flags.topic_id_type() {
        0 | 3 if input.is_empty() => Err(nom::Err::Error(BadField("TopicName"))),
        0 => rest.map(FilterRef::Name).parse(input),
        1 => word("TopicId")(input).map(|(input, id)| (input, FilterRef::Predefined(id))),
        2 => word("TopicName")(input).map(|(input, name)| (input, FilterRef::Short(name.to_be_bytes()))),
        _ => rest.map(FilterRef::Reserved).parse(input),
    }
}

fn emit_filter(topic: FilterRef<'_>, out: &mut BytesMut) {
    match topic {
        FilterRef::Name(octets) | FilterRef::Reserved(octets) => out.put_slice(octets),
        FilterRef::Predefined(id) => out.put_u16(id),
        FilterRef::Short(name) => out.put_slice(&name),
    }
}

/// The answer to SUBSCRIBE (§5.4.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubAck {
    /// Granted.
    pub qos: Qos, // flag
    /// The id under which messages will come; 0 for a filter with wildcards.
    pub topic_id: u16, // u16
    /// As in the request.
    pub msg_id: u16, // u16
    /// What became of the request.
    pub code: ReturnCode, // u8
}

impl SubAck {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        let (input, flags) = flags(input)?;
        let (input, topic_id) = word("TopicId")(input)?;
        let (input, msg_id) = word("MsgId")(input)?;
        let (input, code) = return_code(input)?;
        Ok((input, Self { qos: flags.qos(), topic_id, msg_id, code }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(Flags::default().with_qos(self.qos).0);
        out.put_u16(self.topic_id);
        out.put_u16(self.msg_id);
        out.put_u8(self.code.code());
    }
}

/// A client no longer wants what is published on a topic (§5.4.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Of this exchange.
    pub msg_id: u16, // u16
    /// As in the SUBSCRIBE.
    pub topic: FilterRef<'a>, // flag, and rest or u16
}

impl<'a> Unsubscribe<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        let (input, flags) = flags(input)?;
        let (input, msg_id) = word("MsgId")(input)?;
        let (input, topic) = filter(flags)(input)?;
        Ok((input, Self { msg_id, topic }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_u8(Flags::default().with_topic_id_type(self.topic.kind()).0);
        out.put_u16(self.msg_id);
        emit_filter(self.topic, out);
    }
}

/// "Are you there?", and from a sleeping client "what have you for me?" (§5.4.19, §6.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReq<'a> {
    /// Of a client that wakes up; else empty.
    pub client_id: &'a [u8], // rest
}

impl<'a> PingReq<'a> {
    pub(super) fn parse(input: &'a [u8]) -> Parsed<'a, Self> {
        named("ClientId", rest)(input).map(|(input, client_id)| (input, Self { client_id }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        out.put_slice(self.client_id);
    }
}

/// The end of a connection, or the beginning of sleep (§5.4.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnect {
    /// Seconds the client means to sleep; never from a gateway.
    pub duration: Option<u16>, // nothing or u16
}

impl Disconnect {
    pub(super) fn parse(input: &[u8]) -> Parsed<'_, Self> {
        if input.is_empty() {
            return Ok((input, Self { duration: None }));
        }
        word("Duration")(input).map(|(input, duration)| (input, Self { duration: Some(duration) }))
    }

    pub(super) fn emit(&self, out: &mut BytesMut) {
        if let Some(duration) = self.duration {
            out.put_u16(duration);
        }
    }
}
