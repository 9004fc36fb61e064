//! What a node and its application tell each other.

use std::fmt;

use bytes::Bytes;

#[cfg(doc)]
use super::{Node, Options};
use crate::topic::{TopicFilter, TopicName};
use crate::wire::{Qos, ReturnCode};

/// What a message is published on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A name; the node registers it (§6.5).
    Name(TopicName),
    /// An id both sides know from their configuration (§6.7).
    Predefined(u16),
    /// A name of two octets (§6.7).
    Short([u8; 2]),
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Predefined(id) => write!(f, "predefined:{id}"),
            Self::Short(name) => write!(f, "{}", name.escape_ascii()),
        }
    }
}

/// What is subscribed to (§6.9).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// A name, or names by wildcards.
    Name(TopicFilter),
    /// An id both sides know from their configuration.
    Predefined(u16),
    /// A name of two octets.
    Short([u8; 2]),
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(filter) => filter.fmt(f),
            Self::Predefined(id) => write!(f, "predefined:{id}"),
            Self::Short(name) => write!(f, "{}", name.escape_ascii()),
        }
    }
}

/// A message given to [`Node::publish`]; never the same twice in a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub u64);

/// Why [`Node::publish`] does not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// [`Options::queue_max`] messages wait already.
    #[error("the queue is full")]
    Full,
    /// No PUBLISH holds the payload, or no REGISTER the topic.
    #[error("the topic or payload is too long for a message")]
    TooLong,
    /// QoS −1 knows only predefined and short topics (§6.8).
    #[error("QoS -1 needs a predefined or short topic")]
    NameAtMinusOne,
}

/// Why [`Node::subscribe`] or [`Node::unsubscribe`] does not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// [`REQUESTS_MAX`] subscriptions are held or wait already.
    #[error("too many subscriptions")]
    Full,
    /// No message of MQTT-SN holds the filter.
    #[error("the filter is too long for a message")]
    TooLong,
}

/// Subscriptions waiting to be made or ended, and subscriptions held: more than a sensor has, few enough to repeat.
pub const REQUESTS_MAX: usize = 1000;

/// What the application is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The gateway accepted the connection.
    Connected,
    /// The gateway refused it. The node tries again by itself only after `congestion` and with [`Options::reconnect`].
    ConnectRefused(ReturnCode),
    /// A connection, or the attempt at one, is lost.
    ConnectionLost(Loss),
    /// The gateway started the session afresh in the middle of a connection, because a late copy of our CONNECT reached
    /// it: a CONNACK tells, or a topic id it has forgotten. The node has begun to subscribe and register again.
    Restarted,
    /// [`Node::disconnect`] is done.
    Disconnected,
    /// [`Node::sleep`] is done: the gateway keeps what comes (§6.14).
    Asleep,
    /// The node was awake and is asleep again: everything the gateway had kept has been told before this (§6.14).
    Drained {
        /// How many messages that were, copies not counted.
        messages: u64,
    },
    /// A message is settled.
    Published(PublishId, Outcome),
    /// The gateway refused a message with QoS 0, after that had counted as [`Outcome::Sent`]. Which one, the answer does not
    /// say (§5.4.13: MsgId 0).
    Refused(ReturnCode),
    /// The gateway answered a SUBSCRIBE: the QoS it granted, or why not. A refusal may also come for a subscription
    /// that the node makes again after a reconnection; it has then ended.
    Subscribed {
        /// Which.
        filter: Filter,
        /// The gateway's answer.
        result: Result<Qos, ReturnCode>,
    },
    /// The gateway confirmed an UNSUBSCRIBE.
    Unsubscribed {
        /// Which.
        filter: Filter,
    },
    /// A message came.
    Message(Message),
    /// A gateway made itself known by ADVERTISE or GWINFO (§6.1).
    GatewayFound {
        /// Its GwId.
        gw_id: u8,
    },
}

/// A message for the application: QoS 1 and 2 are acknowledged by the node itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it was published on, as the gateway named it.
    pub topic: Topic,
    /// The content.
    pub payload: Bytes,
    /// The QoS it came with: 0, 1 or 2.
    pub qos: Qos,
    /// Whether the broker had kept it.
    pub retain: bool,
    /// Whether the gateway had sent it before.
    pub dup: bool,
}

/// Why a connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// A request went without an answer [`Options::retry_limit`] + 1 times (§6.13).
    #[error("the gateway does not answer")]
    NoAnswer,
    /// The gateway sent DISCONNECT: it does not know the node, or takes leave (§5.4.21).
    #[error("the gateway ended the connection")]
    Disconnected,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// QoS 0 or −1: it went out. QoS 0 may still meet [`Event::Refused`].
    Sent,
    /// PUBACK or PUBCOMP: the gateway has taken responsibility.
    Acknowledged,
    /// QoS 2, and the gateway started the session afresh before the exchange was through: the message was then sent
    /// again, and nobody can tell whether it was published once.
    Uncertain,
    /// The gateway does not want it.
    Refused(ReturnCode),
    /// [`Options::retry_limit`] repetitions went without an answer, and there is no [`Options::reconnect`]: the message
    /// may or may not have arrived.
    GaveUp,
}

/// What a node has counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames given out by [`Node::poll_transmit`] or waiting there.
    pub frames_sent: u64,
    /// Those of them that repeat an earlier one for want of an answer.
    pub retransmissions: u64,
    /// Frames that could be read.
    pub frames_received: u64,
    /// Frames that are no MQTT-SN, for another node, or that only a client may send.
    pub noise: u64,
    /// Acknowledgements that answer nothing (any more).
    pub stale: u64,
    /// Messages told to the application.
    pub messages: u64,
    /// PUBLISHes that had been delivered before.
    pub duplicates: u64,
    /// Frames that came while the node was asleep, and were not taken.
    pub slept_through: u64,
    /// PUBLISHes and REGISTERs not taken for want of room.
    pub shed: u64,
    /// CONNACKs, the first included.
    pub connections: u64,
}
