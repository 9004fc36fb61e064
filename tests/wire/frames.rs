//! Frames to test with: octets from hex, packets in one line, arbitrary ones from proptest.

use bytes::BytesMut;
use mqtt_sn_gateway::wire::{
    Advertise, Connect, Disconnect, Encapsulation, FilterRef, Frame, GwInfo, MsgIdOnly, Packet, PingReq,
    Publish, Qos, Register, Response, ReturnCode, SearchGw, SubAck, Subscribe, TopicAck, TopicRef,
    Unsubscribe, WillMsg, WillTopic,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Octets of hex digits with spaces anywhere; `41x300` is an octet 300 times.
#[track_caller]
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let octet = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).expect("ASCII");
        u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{digits:?} in {text:?}"))
    };
    let word = |word: &str| match word.split_once('x') {
        Some((digits, times)) => vec![octet(digits.as_bytes()); times.parse().expect("a number of times")],
        None => word.as_bytes().chunks(2).map(octet).collect(),
    };
    text.split_whitespace().flat_map(word).collect()
}

#[track_caller]
pub(crate) fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out).unwrap_or_else(|error| panic!("{frame}: {error}"));
    out.to_vec()
}

/// The same message in the long form of Length (§5.2.1), if it was in the short one.
pub(crate) fn long_form(frame: &[u8]) -> Option<Vec<u8>> {
    let (encapsulation, message) = match frame {
        [length, 0xFE, ..] if *length != 1 => frame.split_at(usize::from(*length)),
        _ => (&[][..], frame),
    };
    let [length @ (2..), rest @ ..] = message else { return None };
    let length = (u16::from(*length) + 2).to_be_bytes();
    Some([encapsulation, &[1], &length, rest].concat())
}

pub(crate) const Q0: Qos = Qos::AtMostOnce;
pub(crate) const Q1: Qos = Qos::AtLeastOnce;
pub(crate) const Q2: Qos = Qos::ExactlyOnce;
pub(crate) const QM1: Qos = Qos::MinusOne;
pub(crate) const FIRST: bool = false;
pub(crate) const DUP: bool = true;
pub(crate) const LIVE: bool = false;
pub(crate) const RETAIN: bool = true;
pub(crate) const KEEP: bool = false;
pub(crate) const CLEAN: bool = true;
pub(crate) const NO_WILL: bool = false;
pub(crate) const WILL: bool = true;

pub(crate) const fn bare(packet: Packet<'_>) -> Frame<'_> {
    Frame { encapsulation: None, packet }
}

pub(crate) const fn via<'a>(radius: u8, node_id: &'a [u8], frame: Frame<'a>) -> Frame<'a> {
    Frame { encapsulation: Some(Encapsulation { radius, node_id }), ..frame }
}

pub(crate) const fn advertise(gw_id: u8, duration: u16) -> Frame<'static> {
    bare(Packet::Advertise(Advertise { gw_id, duration }))
}

pub(crate) const fn searchgw(radius: u8) -> Frame<'static> {
    bare(Packet::SearchGw(SearchGw { radius }))
}

pub(crate) const fn gwinfo(gw_id: u8, gw_add: &[u8]) -> Frame<'_> {
    bare(Packet::GwInfo(GwInfo { gw_id, gw_add }))
}

pub(crate) const fn connect(clean_session: bool, will: bool, duration: u16, client_id: &[u8]) -> Frame<'_> {
    connect_as(Connect::PROTOCOL_ID, clean_session, will, duration, client_id)
}

pub(crate) const fn connect_as(
    protocol_id: u8,
    clean_session: bool,
    will: bool,
    duration: u16,
    client_id: &[u8],
) -> Frame<'_> {
    bare(Packet::Connect(Connect { will, clean_session, protocol_id, duration, client_id }))
}

pub(crate) const fn connack(code: ReturnCode) -> Frame<'static> {
    bare(Packet::ConnAck(Response { code }))
}

pub(crate) const fn willtopic(qos: Qos, retain: bool, topic: &[u8]) -> Frame<'_> {
    bare(Packet::WillTopic(WillTopic { qos, retain, topic }))
}

pub(crate) const fn willtopicupd(qos: Qos, retain: bool, topic: &[u8]) -> Frame<'_> {
    bare(Packet::WillTopicUpd(WillTopic { qos, retain, topic }))
}

pub(crate) const fn willtopicresp(code: ReturnCode) -> Frame<'static> {
    bare(Packet::WillTopicResp(Response { code }))
}

pub(crate) const fn willmsg(message: &[u8]) -> Frame<'_> {
    bare(Packet::WillMsg(WillMsg { message }))
}

pub(crate) const fn willmsgupd(message: &[u8]) -> Frame<'_> {
    bare(Packet::WillMsgUpd(WillMsg { message }))
}

pub(crate) const fn willmsgresp(code: ReturnCode) -> Frame<'static> {
    bare(Packet::WillMsgResp(Response { code }))
}

pub(crate) const fn register(topic_id: u16, msg_id: u16, topic_name: &[u8]) -> Frame<'_> {
    bare(Packet::Register(Register { topic_id, msg_id, topic_name }))
}

pub(crate) const fn regack(topic_id: u16, msg_id: u16, code: ReturnCode) -> Frame<'static> {
    bare(Packet::RegAck(TopicAck { topic_id, msg_id, code }))
}

pub(crate) const fn publish(
    qos: Qos,
    dup: bool,
    retain: bool,
    topic: TopicRef,
    msg_id: u16,
    data: &[u8],
) -> Frame<'_> {
    bare(Packet::Publish(Publish { dup, qos, retain, topic, msg_id, data }))
}

pub(crate) const fn puback(topic_id: u16, msg_id: u16, code: ReturnCode) -> Frame<'static> {
    bare(Packet::PubAck(TopicAck { topic_id, msg_id, code }))
}

pub(crate) const fn pubcomp(msg_id: u16) -> Frame<'static> {
    bare(Packet::PubComp(MsgIdOnly { msg_id }))
}

pub(crate) const fn pubrec(msg_id: u16) -> Frame<'static> {
    bare(Packet::PubRec(MsgIdOnly { msg_id }))
}

pub(crate) const fn pubrel(msg_id: u16) -> Frame<'static> {
    bare(Packet::PubRel(MsgIdOnly { msg_id }))
}

pub(crate) const fn subscribe(qos: Qos, dup: bool, msg_id: u16, topic: FilterRef<'_>) -> Frame<'_> {
    bare(Packet::Subscribe(Subscribe { dup, qos, msg_id, topic }))
}

pub(crate) const fn suback(qos: Qos, topic_id: u16, msg_id: u16, code: ReturnCode) -> Frame<'static> {
    bare(Packet::SubAck(SubAck { qos, topic_id, msg_id, code }))
}

pub(crate) const fn unsubscribe(msg_id: u16, topic: FilterRef<'_>) -> Frame<'_> {
    bare(Packet::Unsubscribe(Unsubscribe { msg_id, topic }))
}

pub(crate) const fn unsuback(msg_id: u16) -> Frame<'static> {
    bare(Packet::UnsubAck(MsgIdOnly { msg_id }))
}

pub(crate) const fn pingreq(client_id: &[u8]) -> Frame<'_> {
    bare(Packet::PingReq(PingReq { client_id }))
}

pub(crate) const fn disconnect(duration: Option<u16>) -> Frame<'static> {
    bare(Packet::Disconnect(Disconnect { duration }))
}

/// The ingredients of any well-formed frame, as owned values.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    kind: usize,
    qos: Qos,
    bits: [bool; 2],
    topic_kind: u8,
    words: [u16; 2],
    octets: [u8; 2],
    tail: Vec<u8>,
    via: Option<(u8, Vec<u8>)>,
}

impl Parts {
    /// How many messages there are.
    pub(crate) const KINDS: usize = 27;

    pub(crate) fn frame(&self) -> Frame<'_> {
        let (tail, [w, v], [o, p], [a, b], qos) =
            (&self.tail[..], self.words, self.octets, self.bits, self.qos);
        let code = ReturnCode::from(o);
        let frame = match self.kind {
            0 => advertise(o, w),
            1 => searchgw(o),
            2 => gwinfo(o, tail),
            3 => connect_as(p, a, b, w, tail),
            4 => connack(code),
            5 => bare(Packet::WillTopicReq),
            6 => self.will_topic(willtopic),
            7 => bare(Packet::WillMsgReq),
            8 => willmsg(tail),
            9 => register(w, v, tail),
            10 => regack(w, v, code),
            11 => publish(qos, a, b, self.topic(), v, tail),
            12 => puback(w, v, code),
            13 => pubcomp(w),
            14 => pubrec(w),
            15 => pubrel(w),
            16 => subscribe(qos, a, v, self.filter()),
            17 => suback(qos, w, v, code),
            18 => unsubscribe(v, self.filter()),
            19 => unsuback(w),
            20 => pingreq(tail),
            21 => bare(Packet::PingResp),
            22 => disconnect(a.then_some(w)),
            23 => self.will_topic(willtopicupd),
            24 => willtopicresp(code),
            25 => willmsgupd(tail),
            _ => willmsgresp(code),
        };
        match &self.via {
            Some((radius, node_id)) => via(*radius, node_id, frame),
            None => frame,
        }
    }

    /// Without a topic there is nothing to have a QoS (§5.4.7).
    fn will_topic<'a>(&'a self, frame: fn(Qos, bool, &'a [u8]) -> Frame<'a>) -> Frame<'a> {
        match &self.tail[..] {
            [] => frame(Q0, LIVE, &[]),
            topic => frame(self.qos, self.bits[0], topic),
        }
    }

    fn topic(&self) -> TopicRef {
        match self.topic_kind {
            0 => TopicRef::Normal(self.words[0]),
            1 => TopicRef::Predefined(self.words[0]),
            2 => TopicRef::Short(self.octets),
            _ => TopicRef::Reserved(self.words[0]),
        }
    }

    /// A filter has at least one octet.
    fn filter(&self) -> FilterRef<'_> {
        let octets = if self.tail.is_empty() { b"+" } else { &self.tail[..] };
        match self.topic_kind {
            0 => FilterRef::Name(octets),
            1 => FilterRef::Predefined(self.words[0]),
            2 => FilterRef::Short(self.octets),
            _ => FilterRef::Reserved(octets),
        }
    }
}

/// Any well-formed frame with names and payloads from `tail` and node ids from `node_id`.
pub(crate) fn parts(
    tail: impl Strategy<Value = Vec<u8>>,
    node_id: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Parts> {
    let qos = prop_oneof![Just(Q0), Just(Q1), Just(Q2), Just(QM1)];
    let octet = prop_oneof![0_u8..5, any::<u8>()];
    let via = proptest::option::weighted(0.25, (0_u8..4, node_id));
    let fixed =
        (0..Parts::KINDS, qos, any::<[bool; 2]>(), 0_u8..4, any::<[u16; 2]>(), [octet.clone(), octet]);
    (fixed, tail, via).prop_map(|((kind, qos, bits, topic_kind, words, octets), tail, via)| Parts {
        kind,
        qos,
        bits,
        topic_kind,
        words,
        octets,
        tail,
        via,
    })
}

/// Names and payloads: mostly short, text and not, and some around the end of the short form.
pub(crate) fn tails() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => vec(any::<u8>(), 0..40),
        3 => "[a-z/+#\"\\\\<>& é\u{202E}\u{1F980}\n]{0,90}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 240..265),
        1 => vec(any::<u8>(), 0..2_000),
    ]
}
