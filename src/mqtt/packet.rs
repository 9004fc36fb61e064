use rumqttc::QoS;

use super::{ConnectRefusal, Message, PacketType, Refused};

/// What a broker sends, whatever the version of the protocol: what the state of a connection is written against.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    ConnAck {
        session_present: bool,
        result: Result<(), ConnectRefusal>,
    },
    Publish {
        id: u16,
        dup: bool,
        message: Message,
    }, // id 0: QoS 0
    /// The beginning of a PUBLISH whose payload is too large to be kept.
    Oversized {
        id: u16,
        dup: bool,
        qos: QoS,
    },
    PubAck(u16, Result<(), Refused>),
    PubRec(u16, Result<(), Refused>),
    PubRel(u16),
    PubComp(u16, Result<(), Refused>),
    SubAck(u16, Vec<Result<QoS, Refused>>),
    UnsubAck(u16),
    PingResp,
}

impl Packet {
    pub(super) fn kind(&self) -> PacketType {
        PacketType(match self {
            Self::ConnAck { .. } => 2,
            Self::Publish { .. } | Self::Oversized { .. } => 3,
            Self::PubAck(..) => 4,
            Self::PubRec(..) => 5,
            Self::PubRel(_) => 6,
            Self::PubComp(..) => 7,
            Self::SubAck(..) => 9,
            Self::UnsubAck(_) => 11,
            Self::PingResp => 13,
        })
    }
}

/// A packet and the octets of its frame, which for [`Packet::Oversized`] are more than there are yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) packet: Packet,
    pub(super) len: usize,
}
