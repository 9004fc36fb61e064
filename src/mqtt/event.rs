//! What goes into a [`Connection`] and comes out of it: messages, their names, events and counts.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::QoS;

use super::{ConnectRefusal, Refused};
#[cfg(doc)]
use super::{Connection, Full, Options};
use crate::topic::TopicName;

/// An application message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: TopicName,
    /// What.
    pub payload: Bytes,
    /// How surely.
    pub qos: QoS,
    /// To the broker: keep it for subscribers to come. From the broker: it was kept.
    pub retain: bool,
}

/// Names one publish, subscribe or unsubscribe of ours until its end; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub(super) NonZeroU64);

/// Whose publish it is. What was restored, and what is published without, is of one origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Origin(pub u64);

/// Names one QoS 1 or 2 message of the broker until it is settled; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub(super) u64);

/// Names a SUBSCRIBE in the messages that it brings (MQTT 5 §3.8.2.1.2): 1 to 268,435,455.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(NonZeroU32);

impl SubscriptionId {
    /// `None` beyond the bounds.
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).filter(|id| id.get() <= 268_435_455).map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// What a [`Connection`] has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The broker accepted the connection.
    Connected {
        /// The broker surely still has the subscriptions of this value. If not, its owner issues them again.
        session_present: bool,
    },
    /// The broker accepted the TCP connection but not us: close, and try again later.
    Refused(ConnectRefusal),
    /// Write what [`Connection::take_output`] gives, close, and connect again at once, without backoff.
    Reconnect,
    /// The session was removed as [`Connection::purge`] asked: write what [`Connection::take_output`] gives and close.
    Purged,
    /// The broker has taken over a QoS 2 publish (PUBREC). Comes again if the broker lost its session after that.
    Received(Token),
    /// The broker is done with a publish (PUBACK, PUBCOMP), or refuses it (also PUBREC), or does not take it, see
    /// [`Connection::publish`]. MQTT 3.1.1 knows no refusal. At QoS 2 without [`Event::Received`] before it, the broker
    /// treated it as QoS 1.
    Completed(Token, Result<(), Refused>),
    /// The broker's answer to each filter, in their order (SUBACK).
    Subscribed(Token, Vec<Result<QoS, Refused>>),
    /// The broker has forgotten the filters (UNSUBACK).
    Unsubscribed(Token),
    /// A message of the broker.
    Message {
        /// The message; its payload shares no memory with the octets handed in.
        message: Message,
        /// The broker says that it may have sent it before.
        dup: bool,
        /// To be settled; `None` for QoS 0.
        delivery: Option<DeliveryId>,
        /// How long it is still worth to be delivered, from now on (MQTT 5 §3.3.2.3.3); whole seconds.
        expiry: Option<Duration>,
        /// The subscriptions that it matches, of those that have an identifier (MQTT 5 §3.3.2.3.8).
        subscriptions: Vec<SubscriptionId>,
    },
}

/// What a [`Connection`] counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands refused with [`Full`].
    pub refused: u64,
    /// Packets of the broker that belong to nothing.
    pub strays: u64,
    /// Messages that the broker repeated and that were not handed on again.
    pub duplicates: u64,
    /// Messages of the broker larger than [`Options::packet_len_max`].
    pub oversized: u64,
    /// Messages of the broker on something that is not a topic: RabbitMQ makes a `+` of every `*`.
    pub misnamed: u64,
    /// PUBLISH and PUBREL packets that were repeated in the same session.
    pub resent: u64,
    /// Settlements of deliveries that are not open.
    pub stale_settles: u64,
    /// PINGREQ packets.
    pub pings: u64,
    /// QoS 2 publishes that the broker acknowledged as if they had QoS 1: it may have published them more than once.
    pub lowered: u64,
    /// Accepted connections to a broker that had lost our session.
    pub sessions_lost: u64,
    /// Sessions that were removed from the broker.
    pub purges: u64,
}
