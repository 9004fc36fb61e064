//! The dump: a frame as one line for a human, in logs and from `decode`.
//!
//! Whatever is on the wire, a dump holds no control characters and has a bounded length. Texts are quoted and escaped,
//! octets that are no text are hex, and what was cut says how much there was.
//!
//! ```
//! use mqtt_sn_gateway::wire::decode;
//!
//! let frame = decode(b"\x09\x0C\x20\x00\x07\x00\x10hi")?;
//! assert_eq!(frame.to_string(), r#"PUBLISH qos=1 topic=0x0007 msg=0x0010 data=2 "hi""#);
//! assert_eq!(format!("{frame:.0}"), "PUBLISH qos=1 topic=0x0007 msg=0x0010 data=2");
//! # Ok::<(), mqtt_sn_gateway::wire::DecodeError>(())
//! ```

use std::fmt::{self, Display, Formatter};

use super::field::{FilterRef, Flags, Qos, ReturnCode, TopicRef};
use super::packet::{Encapsulation, Frame, Packet};
use super::v1::{
    Advertise, Connect, Disconnect, GwInfo, MsgIdOnly, PingReq, Publish, Register, Response, SearchGw,
    SubAck, Subscribe, TopicAck, Unsubscribe, WillMsg, WillTopic,
};

/// Octets shown of a name or payload: more than most of them have, and the line still fits a screen or two.
const OCTETS_SHOWN_MAX: usize = 64;

/// Octets shown of a Wireless Node Id: twice the longest radio address.
const NODE_ID_SHOWN_MAX: usize = 16;

/// The precision says how many octets of a payload are shown: `{:.0}` keeps payloads out of a log.
impl Display for Frame<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(encapsulation) = self.encapsulation {
            write!(f, "{encapsulation} ")?;
        }
        self.packet.fmt(f)
    }
}

impl Display for Encapsulation<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("[via node ")?;
        match self.node_id {
            [] => f.write_str("-")?,
            node_id => {
                let cut = hex(f, node_id, NODE_ID_SHOWN_MAX)?;
                octets_if(f, cut, node_id)?;
            }
        }
        write!(f, " radius {}]", self.radius)
    }
}

/// The precision says how many octets of a payload are shown: `{:.0}` keeps payloads out of a log.
impl Display for Packet<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::WillTopicReq | Self::WillMsgReq | Self::PingResp => Ok(()),
            Self::Advertise(m) => m.dump(f),
            Self::SearchGw(m) => m.dump(f),
            Self::GwInfo(m) => m.dump(f),
            Self::Connect(m) => m.dump(f),
            Self::ConnAck(m) | Self::WillTopicResp(m) | Self::WillMsgResp(m) => m.dump(f),
            Self::WillTopic(m) | Self::WillTopicUpd(m) => m.dump(f),
            Self::WillMsg(m) | Self::WillMsgUpd(m) => m.dump(f),
            Self::Register(m) => m.dump(f),
            Self::RegAck(m) | Self::PubAck(m) => m.dump(f),
            Self::Publish(m) => m.dump(f),
            Self::PubComp(m) | Self::PubRec(m) | Self::PubRel(m) | Self::UnsubAck(m) => m.dump(f),
            Self::Subscribe(m) => m.dump(f),
            Self::SubAck(m) => m.dump(f),
            Self::Unsubscribe(m) => m.dump(f),
            Self::PingReq(m) => m.dump(f),
            Self::Disconnect(m) => m.dump(f),
        }
    }
}

impl Packet<'_> {
    /// What the specification calls the message (§5.4).
    pub fn name(&self) -> &'static str {
        match self {
            Self::Advertise(_) => "ADVERTISE",
            Self::SearchGw(_) => "SEARCHGW",
            Self::GwInfo(_) => "GWINFO",
            Self::Connect(_) => "CONNECT",
            Self::ConnAck(_) => "CONNACK",
            Self::WillTopicReq => "WILLTOPICREQ",
            Self::WillTopic(_) => "WILLTOPIC",
            Self::WillMsgReq => "WILLMSGREQ",
            Self::WillMsg(_) => "WILLMSG",
            Self::Register(_) => "REGISTER",
            Self::RegAck(_) => "REGACK",
            Self::Publish(_) => "PUBLISH",
            Self::PubAck(_) => "PUBACK",
            Self::PubComp(_) => "PUBCOMP",
            Self::PubRec(_) => "PUBREC",
            Self::PubRel(_) => "PUBREL",
            Self::Subscribe(_) => "SUBSCRIBE",
            Self::SubAck(_) => "SUBACK",
            Self::Unsubscribe(_) => "UNSUBSCRIBE",
            Self::UnsubAck(_) => "UNSUBACK",
            Self::PingReq(_) => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect(_) => "DISCONNECT",
            Self::WillTopicUpd(_) => "WILLTOPICUPD",
            Self::WillTopicResp(_) => "WILLTOPICRESP",
            Self::WillMsgUpd(_) => "WILLMSGUPD",
            Self::WillMsgResp(_) => "WILLMSGRESP",
        }
    }
}

impl Advertise {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " gw={} duration={}s", self.gw_id, self.duration)
    }
}

impl SearchGw {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " radius={}", self.radius)
    }
}

impl GwInfo<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " gw={}", self.gw_id)?;
        match self.gw_add {
            [] => Ok(()),
            gw_add => write!(f, " addr={}", Name(gw_add)),
        }
    }
}

impl Connect<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " client={}", Name(self.client_id))?;
        flag(f, self.clean_session, " clean")?;
        flag(f, self.will, " will")?;
        write!(f, " duration={}s", self.duration)?;
        match self.protocol_id {
            Self::PROTOCOL_ID => Ok(()),
            reserved => write!(f, " protocol=0x{reserved:02X}"),
        }
    }
}

impl Response {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " {}", self.code)
    }
}

impl WillTopic<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.topic.is_empty() {
            return f.write_str(" empty");
        }
        write!(f, " qos={}", self.qos)?;
        flag(f, self.retain, " retain")?;
        write!(f, " topic={}", Name(self.topic))
    }
}

impl WillMsg<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        payload(f, " message=", self.message)
    }
}

impl Register<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " topic=0x{:04X} msg=0x{:04X} name={}", self.topic_id, self.msg_id, Name(self.topic_name))
    }
}

impl TopicAck {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " topic=0x{:04X} msg=0x{:04X} {}", self.topic_id, self.msg_id, self.code)
    }
}

impl Publish<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " qos={}", self.qos)?;
        flag(f, self.dup, " dup")?;
        flag(f, self.retain, " retain")?;
        write!(f, " topic={} msg=0x{:04X}", self.topic, self.msg_id)?;
        payload(f, " data=", self.data)
    }
}

impl MsgIdOnly {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " msg=0x{:04X}", self.msg_id)
    }
}

impl Subscribe<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " qos={}", self.qos)?;
        flag(f, self.dup, " dup")?;
        write!(f, " msg=0x{:04X} topic={}", self.msg_id, self.topic)
    }
}

impl SubAck {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { qos, topic_id, msg_id, code } = self;
        write!(f, " qos={qos} topic=0x{topic_id:04X} msg=0x{msg_id:04X} {code}")
    }
}

impl Unsubscribe<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, " msg=0x{:04X} topic={}", self.msg_id, self.topic)
    }
}

impl PingReq<'_> {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.client_id {
            [] => Ok(()),
            client_id => write!(f, " client={}", Name(client_id)),
        }
    }
}

impl Disconnect {
    fn dump(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.duration {
            None => Ok(()),
            Some(duration) => write!(f, " duration={duration}s"),
        }
    }
}

impl Display for Qos {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MinusOne => "-1",
            Self::AtMostOnce => "0",
            Self::AtLeastOnce => "1",
            Self::ExactlyOnce => "2",
        })
    }
}

/// All bits, whatever the message means by them: `dup qos=1 retain will clean type=0`.
impl Display for Flags {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        flag(f, self.dup(), "dup ")?;
        write!(f, "qos={}", self.qos())?;
        flag(f, self.retain(), " retain")?;
        flag(f, self.will(), " will")?;
        flag(f, self.clean_session(), " clean")?;
        write!(f, " type={}", self.topic_id_type())
    }
}

impl Display for ReturnCode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Congestion => f.write_str("rejected: congestion"),
            Self::InvalidTopicId => f.write_str("rejected: invalid topic id"),
            Self::NotSupported => f.write_str("rejected: not supported"),
            Self::Reserved(code) => write!(f, "rejected: 0x{code:02X}"),
        }
    }
}

impl Display for TopicRef {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal(id) => write!(f, "0x{id:04X}"),
            Self::Predefined(id) => write!(f, "predefined:0x{id:04X}"),
            Self::Short(name) => write!(f, "short:{}", Name(name)),
            Self::Reserved(raw) => write!(f, "reserved:0x{raw:04X}"),
        }
    }
}

impl Display for FilterRef<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => Name(name).fmt(f),
            Self::Predefined(id) => write!(f, "predefined:0x{id:04X}"),
            Self::Short(name) => write!(f, "short:{}", Name(name)),
            Self::Reserved(octets) => {
                f.write_str("reserved:0x")?;
                let cut = hex(f, octets, OCTETS_SHOWN_MAX)?;
                octets_if(f, cut, octets)
            }
        }
    }
}

/// A name, which should be text but need not: `"a/b"`, `0xFF00`, `"aaaa"… 300 octets`.
struct Name<'a>(&'a [u8]);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let cut = text_or_hex(f, self.0, OCTETS_SHOWN_MAX)?;
        octets_if(f, cut, self.0)
    }
}

/// A payload after its size: `2 "hi"`, `3 0x00FF01`, `300 "aaaa"…`.
fn payload(f: &mut Formatter<'_>, key: &str, octets: &[u8]) -> fmt::Result {
    write!(f, "{key}{}", octets.len())?;
    let limit = f.precision().unwrap_or(OCTETS_SHOWN_MAX);
    if octets.is_empty() || limit == 0 {
        return Ok(());
    }
    f.write_str(" ")?;
    text_or_hex(f, octets, limit).map(|_cut| ())
}

fn flag(f: &mut Formatter<'_>, set: bool, name: &str) -> fmt::Result {
    if set { f.write_str(name) } else { Ok(()) }
}

fn octets_if(f: &mut Formatter<'_>, cut: bool, octets: &[u8]) -> fmt::Result {
    if cut { write!(f, " {} octets", octets.len()) } else { Ok(()) }
}

/// Whether something was cut, here and in [`hex`].
fn text_or_hex(f: &mut Formatter<'_>, octets: &[u8], limit: usize) -> Result<bool, fmt::Error> {
    let Some(text) = text(octets, limit) else {
        f.write_str("0x")?;
        return hex(f, octets, limit);
    };
    write!(f, "{text:?}")?;
    let cut = text.len() < octets.len();
    flag(f, cut, "…")?;
    Ok(cut)
}

fn hex(f: &mut Formatter<'_>, octets: &[u8], limit: usize) -> Result<bool, fmt::Error> {
    for octet in octets.iter().take(limit) {
        write!(f, "{octet:02X}")?;
    }
    let cut = octets.len() > limit;
    flag(f, cut, "…")?;
    Ok(cut)
}

/// The first `limit` octets as far as they are whole characters, if they are text at all.
fn text(octets: &[u8], limit: usize) -> Option<&str> {
    let head = octets.get(..limit).unwrap_or(octets);
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The limit went through a character.
        Err(error) if error.error_len().is_none() && head.len() < octets.len() => {
            std::str::from_utf8(head.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let binary = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    (!text.contains(binary)).then_some(text)
}
