use std::time::Duration;

use rumqttc::QoS;

use super::codec::frame_len;
use super::{ConnectRefusal, Message, PacketType, Refused, SubscriptionId};

/// What a broker sends, whatever the version of the protocol: what the state of a connection is written against.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    ConnAck {
        session_present: bool,
        result: Result<Terms, ConnectRefusal>,
    },
    Publish {
        id: u16,
        dup: bool,
        message: Message,
        extras: Extras,
    }, // id 0: QoS 0
    /// The beginning of a PUBLISH whose payload is too large to be kept.
    Oversized {
        id: u16,
        dup: bool,
        qos: QoS,
    },
    /// A PUBLISH on something that is not a topic.
    Misnamed {
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
    /// With its reason code.
    Disconnect(u8),
}

impl Packet {
    pub(super) fn kind(&self) -> PacketType {
        PacketType(match self {
            Self::ConnAck { .. } => 2,
            Self::Publish { .. } | Self::Oversized { .. } | Self::Misnamed { .. } => 3,
            Self::PubAck(..) => 4,
            Self::PubRec(..) => 5,
            Self::PubRel(_) => 6,
            Self::PubComp(..) => 7,
            Self::SubAck(..) => 9,
            Self::UnsubAck(_) => 11,
            Self::PingResp => 13,
            Self::Disconnect(_) => 14,
        })
    }
}

/// A packet and the octets of its frame, which for [`Packet::Oversized`] are more than there are yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) packet: Packet,
    pub(super) len: usize,
}

/// What only MQTT 5 says of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    pub(super) expiry: Option<Duration>,
    pub(super) subscriptions: Vec<SubscriptionId>,
}

/// What the broker takes on this connection (MQTT 5 §3.2.2.3). In MQTT 3.1.1 it does not say: everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// Publishes of QoS 1 and 2 that are open at a time.
    pub(super) receive_max: u16,
    /// Octets of a whole packet.
    pub(super) frame_max: usize,
    pub(super) qos_max: QoS,
    pub(super) retain: bool,
    pub(super) subscription_ids: bool,
    /// In place of ours.
    pub(super) keep_alive: Option<Duration>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            receive_max: u16::MAX,
            frame_max: usize::MAX,
            qos_max: QoS::ExactlyOnce,
            retain: true,
            subscription_ids: false,
            keep_alive: None,
        }
    }
}

impl Terms {
    /// Why the broker would end the connection if it were sent a message of so many octets after the fixed header.
    pub(super) fn check_publish(&self, message: &Message, len: usize) -> Result<(), Refused> {
        if message.qos > self.qos_max {
            return Err(Refused::QOS_NOT_SUPPORTED);
        }
        if message.retain && !self.retain {
            return Err(Refused::RETAIN_NOT_SUPPORTED);
        }
        self.check_len(len)
    }

    pub(super) fn check_len(&self, len: usize) -> Result<(), Refused> {
        if frame_len(len) > self.frame_max { Err(Refused::PACKET_TOO_LARGE) } else { Ok(()) }
    }
}
