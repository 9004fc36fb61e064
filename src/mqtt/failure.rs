use std::fmt;

use crate::topic::NameError;

/// The broker's refusal of one publish or filter: its reason code (in MQTT 3.1.1 only 0x80, of a SUBACK).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("refused by the broker with reason {0:#04x}")]
pub struct Refused(pub u8);

/// The broker's refusal of a connection: the return code of its CONNACK (MQTT 3.1.1 §3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRefusal(pub u8);

impl fmt::Display for ConnectRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.0 {
            1 => "unacceptable protocol version",
            2 => "client id rejected",
            3 => "server unavailable",
            4 => "bad user name or password",
            5 => "not authorized",
            _ => "unknown reason",
        };
        write!(f, "{reason} (CONNACK {})", self.0)
    }
}

/// Why a command was not taken. All but [`Full::TooLarge`] pass.
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
    /// A PUBLISH on something that is not a topic.
    #[error("the broker sent a PUBLISH whose topic {0}")]
    Topic(NameError),
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
