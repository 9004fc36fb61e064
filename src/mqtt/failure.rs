use std::fmt;

/// The broker's refusal of one publish or filter: its reason code (MQTT 5 §2.4; in MQTT 3.1.1 only 0x80, of a SUBACK).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("refused by the broker: {}", Reason(*.0))]
pub struct Refused(pub u8);

impl Refused {
    pub(super) const UNSPECIFIED: Self = Self(0x80);
    pub(super) const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    pub(super) const PACKET_TOO_LARGE: Self = Self(0x95);
    /// More than the broker allows at the moment, or to us.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    pub(super) const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);
    pub(super) const QOS_NOT_SUPPORTED: Self = Self(0x9B);
}

/// The broker's refusal of a connection: the code of its CONNACK (MQTT 3.1.1 §3.2.2.3, MQTT 5 §3.2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRefusal(pub u8);

impl ConnectRefusal {
    /// Whether the broker does not speak the version of MQTT that it was asked in.
    pub fn is_of_version(self) -> bool {
        matches!(self.0, 1 | 0x84)
    }
}

impl fmt::Display for ConnectRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.0 {
            1 => "unacceptable protocol version",
            2 => "client id rejected",
            3 => "server unavailable",
            4 => "bad user name or password",
            5 => "not authorized",
            code => Reason(code).words(),
        };
        write!(f, "{reason} (CONNACK {})", self.0)
    }
}

/// A reason code in words, as in "not authorized (0x87)".
struct Reason(u8);

impl Reason {
    /// MQTT 5 §2.4.
    fn words(&self) -> &'static str {
        match self.0 {
            0x00 => "normal disconnection",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x83 => "implementation specific error",
            0x84 => "unsupported protocol version",
            0x85 => "client id not valid",
            0x86 => "bad user name or password",
            0x87 => "not authorized",
            0x88 => "server unavailable",
            0x89 => "server busy",
            0x8A => "banned",
            0x8B => "server shutting down",
            0x8C => "bad authentication method",
            0x8D => "keep alive timeout",
            0x8E => "session taken over",
            0x8F => "topic filter invalid",
            0x90 => "topic name invalid",
            0x91 => "packet id in use",
            0x92 => "packet id not found",
            0x93 => "receive maximum exceeded",
            0x94 => "topic alias invalid",
            0x95 => "packet too large",
            0x96 => "message rate too high",
            0x97 => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format invalid",
            0x9A => "retain not supported",
            0x9B => "QoS not supported",
            0x9C => "use another server",
            0x9D => "server moved",
            0x9E => "shared subscriptions not supported",
            0x9F => "connection rate exceeded",
            0xA0 => "maximum connect time",
            0xA1 => "subscription identifiers not supported",
            0xA2 => "wildcard subscriptions not supported",
            _ => "unknown reason",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#04x})", self.words(), self.0)
    }
}

/// Why a command was not taken. All but [`Full::TooLarge`] and [`Full::Unsupported`] pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// QoS 0 while the broker is not connected.
    #[error("the broker is not connected")]
    Offline,
    /// [`Options::buffer`](super::Options::buffer) octets of output have not been taken yet.
    #[error("too many octets wait to be written")]
    Buffer,
    /// [`Options::queue`](super::Options::queue) messages or [`Options::queue_octets`](super::Options::queue_octets) octets are unfinished.
    #[error("too many messages wait for the broker")]
    Queue,
    /// [`REQUESTS_MAX`](super::REQUESTS_MAX) subscribes and unsubscribes are unanswered.
    #[error("too many subscriptions wait for the broker")]
    Requests,
    /// It would not fit into [`Options::packet_len_max`](super::Options::packet_len_max).
    #[error("the packet is too large")]
    TooLarge,
    /// The broker has said that it takes no such thing: a message of this QoS or size, or one to be retained.
    #[error("not sent, as it would be {0}")]
    Unsupported(Refused),
}

impl Full {
    /// Whether it is of no use to try again later.
    pub fn is_final(self) -> bool {
        matches!(self, Self::TooLarge | Self::Unsupported(_))
    }
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Ours: an option that has no room in a CONNECT.
    #[error("{0} has no room in a CONNECT")]
    Options(&'static str),
    /// No CONNACK within [`Options::connect_timeout`](super::Options::connect_timeout).
    #[error("the broker did not answer CONNECT")]
    NoConnAck,
    /// No PINGRESP in time: the broker, or the way to it, is gone.
    #[error("the broker did not answer PINGREQ")]
    NoPingResp,
    /// The broker goes on sending but does not read.
    #[error("the broker does not read its answers")]
    NotReading,
    /// The broker took leave, with its reason code (MQTT 5 §3.14).
    #[error("disconnected by the broker: {}", Reason(*.0))]
    Disconnected(u8),
    /// A packet that a broker does not send, or not at this time.
    #[error("the broker sent an unexpected {0}")]
    Unexpected(PacketType),
    /// A packet, other than PUBLISH, of more than [`Options::packet_len_max`](super::Options::packet_len_max) octets.
    #[error("the broker sent a {packet} of {len} octets")]
    TooLarge {
        /// Which packet.
        packet: PacketType,
        /// Its remaining length.
        len: usize,
    },
    /// A packet that is not what MQTT says.
    #[error("the broker sent a {packet} that {what}")]
    Malformed {
        /// Which packet.
        packet: PacketType,
        /// What is wrong with it.
        what: Malformed,
    },
}

/// What is wrong with a packet; reads on after "a PUBLISH that".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A remaining length of more than four octets.
    #[error("has no end to its length")]
    Length,
    /// The lower half of the first octet.
    #[error("has wrong flags")]
    Flags,
    /// Fewer or more octets than its fields need.
    #[error("is too short or too long")]
    Size,
    /// QoS 3.
    #[error("has QoS 3")]
    QoS,
    /// Packet id 0.
    #[error("has packet id 0")]
    PacketId,
    /// A text that is not UTF-8.
    #[error("is not UTF-8")]
    Utf8,
    /// A SUBACK with an unknown return code, or with fewer or more of them than filters were sent.
    #[error("has wrong return codes")]
    ReturnCodes,
    /// Properties that are not of this packet, or do not fit into their length, or are not what they may be.
    #[error("has wrong properties")]
    Properties,
    /// A topic alias, although none may be used.
    #[error("has a topic alias")]
    TopicAlias,
}

/// The type of a control packet: the upper half of its first octet (MQTT 3.1.1 §2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketType(pub u8);

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 16] = [
            "packet of type 0",
            "CONNECT",
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "PINGREQ",
            "PINGRESP",
            "DISCONNECT",
            "packet of type 15",
        ];
        f.write_str(NAMES[usize::from(self.0 & 0x0F)])
    }
}
