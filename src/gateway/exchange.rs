//! The one outstanding request to a client (§6.6, §6.13): what was asked, and how often.

use std::time::Instant;

use super::outbox::Item;
use super::record::Lsn;
use crate::mqtt::QoS;
use crate::wire::{MsgIdOnly, Packet, Publish, Qos, Register, TopicRef};

/// A request that the client has yet to answer.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) msg_id: u16,
    pub(super) request: Request,
    /// It had left before, in another connection or cycle.
    pub(super) again: bool,
    /// Repetitions so far.
    pub(super) repeated: u32,
    /// When the request left for the first time.
    pub(super) since: Instant,
    /// The batch before which it may not have left.
    pub(super) after: Lsn,
}

/// What is asked of the client.
#[derive(Debug)]
pub(super) enum Request {
    /// REGISTER, before the message can be sent; answered by REGACK.
    Register { topic_id: u16, item: Item, repair: Repair },
    /// PUBLISH of QoS 1 or 2; answered by PUBACK or PUBREC.
    Publish { topic: TopicRef, item: Item, repair: Repair },
    /// PUBREL; answered by PUBCOMP. The client has the message.
    Release,
}

/// Whether the client has refused this message already in a way that can be mended: it does not know the topic id
/// (§6.10), or DUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    /// It may: the topic is then registered again, or the message sent again as a new one.
    Possible,
    /// It has: the message is dropped if it is refused again.
    Tried,
}

impl Request {
    /// The request as a packet; `dup` only where the message has a place for it.
    pub(super) fn packet(&self, msg_id: u16, dup: bool) -> Packet<'_> {
        match self {
            Self::Register { topic_id, item, .. } => Packet::Register(Register {
                topic_id: *topic_id,
                msg_id,
                topic_name: item.message.topic.as_str().as_bytes(),
            }),
            Self::Publish { topic, item, .. } => publish(item, *topic, msg_id, dup),
            Self::Release => Packet::PubRel(MsgIdOnly { msg_id }),
        }
    }
}

/// A message as the client gets it (§5.4.12).
pub(super) fn publish(item: &Item, topic: TopicRef, msg_id: u16, dup: bool) -> Packet<'_> {
    let qos = match item.qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    };
    let data = &item.message.payload;
    Packet::Publish(Publish { dup, qos, retain: item.message.retain, topic, msg_id, data })
}
