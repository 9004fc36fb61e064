//! The whole boundary of the broker: what goes in, what comes out, its limits and what it counts.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::QoS;

use crate::topic::{TopicFilter, TopicName};

/// A connection of a client, in the caller's numbering. A number is never used again, not even after
/// [`Broker::restart`](super::Broker::restart).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What happens to the broker. Anything but `Opened` about a connection that it does not know is counted and ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A client has connected.
    Opened(ConnectionId),
    /// The client has sent these octets, whole packets or not.
    Bytes(ConnectionId, Bytes),
    /// The last [`Output::Write`] is on its way and there is room for another.
    Drained(ConnectionId),
    /// The connection is gone, for whatever reason on the other side of the broker.
    Closed(ConnectionId),
}

/// What the broker wants done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Everything ready for this client. The next one comes after [`Input::Drained`].
    Write(ConnectionId, Bytes),
    /// Send what was written and close. The broker has forgotten the connection; no `Closed` is needed in return.
    Close(ConnectionId),
}

/// What the broker will not exceed. Every refusal and every message shed on their account has a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; one more is closed at once. 10,000: ten times the largest test fleet.
    pub connections: usize,
    /// Sessions at once, connected or kept; a CONNECT for one more gets return code 3. 10,000, as connections.
    pub sessions: usize,
    /// Octets of a packet after its fixed header; a client that announces more is closed. 1 MiB: sixteen times
    /// the largest MQTT-SN message.
    pub packet: usize,
    /// QoS 1 and 2 messages sent to a client and not yet settled, at least 1. 20, as Mosquitto has it.
    pub window: u16,
    /// Messages that wait for a session (QoS 1 and 2) and, counted apart, for its connection (QoS 0). What comes on
    /// top is shed. 10,000: all retained messages fit once.
    pub queue_messages: usize,
    /// Octets (topic and payload) of the messages that wait, as `queue_messages`. 4 MiB.
    pub queue_bytes: usize,
    /// Octets that wait in all queues together. 256 MiB, as the gateway's `queue_total`.
    pub queue_bytes_total: usize,
    /// Subscriptions of a session; one more gets 0x80. 1,000.
    pub subscriptions: usize,
    /// Retained messages; a new one on top is delivered and not kept. 10,000.
    pub retained: usize,
    /// Octets (topic and payload) of all retained messages, as `retained`. 64 MiB.
    pub retained_bytes: usize,
    /// Octets that are encoded for a connection ahead of the writing; at that mark messages wait in the queue and
    /// the client is not read ([`Broker::wants_input`](super::Broker::wants_input)). 64 KiB: a good write.
    pub write_ahead: usize,
    /// From the opening of a connection to its CONNECT. 5 s (MQTT 3.1.1 §3.1 asks for "a reasonable time").
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            sessions: 10_000,
            packet: 1 << 20,
            window: 20,
            queue_messages: 10_000,
            queue_bytes: 4 << 20,
            queue_bytes_total: 256 << 20,
            subscriptions: 1_000,
            retained: 10_000,
            retained_bytes: 64 << 20,
            write_ahead: 64 << 10,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// What happened since the broker was made; a restart does not reset it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// CONNECTs answered with return code 0.
    pub connects_accepted: u64,
    /// CONNECTs answered with another return code.
    pub connects_refused: u64,
    /// Connections closed because a newer one came with their client id.
    pub taken_over: u64,
    /// Connections ended by DISCONNECT.
    pub disconnects: u64,
    /// Connections that ended without DISCONNECT, from the other side.
    pub lost: u64,
    /// Connections closed over [`Limits::connections`].
    pub closed_over_limit: u64,
    /// Connections closed because no CONNECT came in time.
    pub closed_connect_timeout: u64,
    /// Connections closed because nothing came for one and a half keep-alive times.
    pub closed_keep_alive: u64,
    /// Connections closed for octets that are no packet, or no packet that a client may send there.
    pub closed_malformed: u64,
    /// Connections closed for a packet over [`Limits::packet`].
    pub closed_too_large: u64,
    /// Connections ended by a [`Fault`](super::Fault).
    pub closed_by_fault: u64,
    /// Connections ended by [`Broker::restart`](super::Broker::restart).
    pub closed_by_restart: u64,
    /// PUBLISH packets taken, repetitions of QoS 2 not counted.
    pub published: u64,
    /// QoS 2 PUBLISH packets recognised as repetitions and not delivered again.
    pub duplicates: u64,
    /// Wills published.
    pub wills: u64,
    /// PUBLISH packets sent for the first time.
    pub delivered: u64,
    /// PUBLISH and PUBREL packets sent again on the resumption of a session.
    pub redelivered: u64,
    /// QoS 0 messages for sessions without connection: never kept.
    pub shed_offline_qos0: u64,
    /// QoS 0 messages shed because their client reads too slowly.
    pub shed_slow_qos0: u64,
    /// QoS 1 and 2 messages shed over [`Limits::queue_messages`].
    pub shed_queue_messages: u64,
    /// QoS 1 and 2 messages shed over [`Limits::queue_bytes`].
    pub shed_queue_bytes: u64,
    /// Messages of any QoS shed over [`Limits::queue_bytes_total`].
    pub shed_queue_total: u64,
    /// Retained messages not kept over [`Limits::retained`] or [`Limits::retained_bytes`].
    pub retained_refused: u64,
    /// Filters answered with 0x80: bad ones, shared ones, and those over [`Limits::subscriptions`].
    pub filters_refused: u64,
    /// PUBACK, PUBREC, PUBREL and PUBCOMP with an id that nothing waits for.
    pub stray_acks: u64,
    /// Inputs about connections that the broker does not know (any more).
    pub late_inputs: u64,
}

/// What survives [`Broker::restart`](super::Broker::restart).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Sessions that are not clean, with their subscriptions, queues and packet ids, and retained messages.
    Kept,
    /// Nothing.
    Lost,
}

/// A message as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: TopicName,
    /// The QoS that its publisher chose; a subscription may lower it.
    pub qos: QoS,
    /// What it says.
    pub payload: Bytes,
}

impl Message {
    /// What it counts in queues.
    pub(super) fn bytes(&self) -> usize {
        self.topic.as_str().len() + self.payload.len()
    }
}

/// A look at a session, for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// The connection it is served on.
    pub connection: Option<ConnectionId>,
    /// Whether it ends with the connection.
    pub clean: bool,
    /// Its filters with the QoS granted, in order of the filters.
    pub subscriptions: Vec<(TopicFilter, QoS)>,
    /// QoS 1 and 2 messages that have not been sent.
    pub queued: usize,
    /// Ids of PUBLISH packets sent whose PUBACK or PUBREC has not come, in order of sending.
    pub unacknowledged: Vec<u16>,
    /// Ids of PUBREL packets sent whose PUBCOMP has not come, in order of sending.
    pub releasing: Vec<u16>,
    /// Ids of QoS 2 PUBLISH packets taken whose PUBREL has not come, in order of the ids.
    pub received: Vec<u16>,
}
