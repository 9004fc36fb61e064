//! An MQTT-SN client as a value: the other end of the wire, for the demo, the tools and the tests.
//!
//! A [`Node`] is what a well-made sensor does, without its socket and its clock: the caller hands in frames and the time,
//! and takes frames, events and the next deadline. It keeps its connection with PINGREQ, registers names before it
//! publishes on them, repeats what is not answered, and delivers what the gateway sends once, however often the radio
//! brings it. Discovery and QoS −1 need no connection.
//!
//! ```
//! use std::time::Instant;
//!
//! use mqtt_sn_gateway::node::{Node, Options, Topic};
//! use mqtt_sn_gateway::topic::{ClientId, TopicName};
//! use mqtt_sn_gateway::wire::Qos;
//!
//! let mut node = Node::new(Options::new(ClientId::new("pump-7")?));
//! let now = Instant::now();
//! node.connect(now);
//! # let _ =
//! node.publish(now, Topic::Name(TopicName::new("pumps/7")?), "on".into(), Qos::AtLeastOnce, false);
//! while let Some(frame) = node.poll_transmit() { /* send it to the gateway */ }
//! while let Some(event) = node.poll_event() { /* Connected, Published … */ }
//! // then: handle_frame when one comes, handle_timeout at poll_timeout, and drain again
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::{Qos, ReturnCode};

/// What a [`Node`] is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who it is.
    pub client_id: ClientId,
    /// The gateway hears from it at least this often (§6.11): whole seconds up to 65,535; zero: no supervision.
    pub keep_alive: Duration,
    /// CleanSession (§6.3): the gateway forgets everything of the connections before.
    pub clean_session: bool,
    /// What the gateway publishes when it loses the node (§6.2).
    pub will: Option<Will>,
    /// T_RETRY (§6.13).
    pub retry_interval: Duration,
    /// N_RETRY (§6.13): repetitions, after which the connection counts as lost.
    pub retry_limit: u32,
    /// How long to pause after a PUBACK or REGACK `congestion` before the message is tried again (T_WAIT, §6.6).
    /// `None`: the message is refused.
    pub congestion_wait: Option<Duration>,
    /// Connect again by itself when the connection is lost. `None`: the application does that.
    pub reconnect: Option<Backoff>,
    /// Messages that may wait, the one on its way included; [`Node::publish`] answers [`PublishError::Full`] beyond.
    pub queue_max: usize,
    /// Predefined topics (§6.7): ids, beside those subscribed to, on which messages are accepted.
    pub predefined: BTreeMap<u16, TopicName>,
    /// Every frame is encapsulated for this Wireless Node Id, as if a forwarder stood between (§5.5); at most
    /// [`crate::wire::NODE_ID_LEN_MAX`] octets.
    pub node_id: Option<Bytes>,
    /// Where MsgIds start and how reconnections spread. Equal seeds behave equally.
    pub seed: u64,
}

impl Options {
    /// Keep-alive 60 s, clean session, no will, T_RETRY 10 s, N_RETRY 3 (§7.2), no reconnection, a queue of 100.
    pub fn new(client_id: ClientId) -> Self {
        Self {
            client_id,
            keep_alive: Duration::from_secs(60),
            clean_session: true,
            will: None,
            retry_interval: Duration::from_secs(10),
            retry_limit: 3,
            congestion_wait: None,
            reconnect: None,
            queue_max: 100,
            predefined: BTreeMap::new(),
            node_id: None,
            seed: 0,
        }
    }
}

/// The Will of a node (§6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where it is published.
    pub topic: TopicName,
    /// What is published.
    pub message: Bytes,
    /// 0, 1 or 2.
    pub qos: Qos,
    /// Whether the broker keeps it.
    pub retain: bool,
}

/// How long a node waits before it connects again: doubling from `min` to `max`, each time less up to a quarter, so that
/// a field of nodes does not come back in one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first loss.
    pub min: Duration,
    /// Never longer.
    pub max: Duration,
}

impl Default for Backoff {
    /// 1 s to 60 s.
    fn default() -> Self {
        Self { min: Duration::from_secs(1), max: Duration::from_secs(60) }
    }
}

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
            Self::Predefined(id) => write!(f, "predefined {id}"),
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
            Self::Predefined(id) => write!(f, "predefined {id}"),
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
    /// No message of MQTT-SN holds it.
    #[error("the message is longer than 65,535 octets")]
    TooLong,
    /// QoS −1 knows only predefined and short topics (§6.8).
    #[error("QoS -1 needs a predefined or short topic")]
    NameAtMinusOne,
}

/// More subscriptions than [`REQUESTS_MAX`] are waiting to be made or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many subscriptions are waiting")]
pub struct Full;

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
    /// it. The node has begun to subscribe and register again.
    Restarted,
    /// [`Node::disconnect`] is done.
    Disconnected,
    /// A message is settled.
    Published(PublishId, Outcome),
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
    /// QoS 0 or −1: it went out, nobody will ever tell.
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
    /// PUBLISHes that had been delivered before.
    pub duplicates: u64,
    /// PUBLISHes and REGISTERs not taken for want of room.
    pub shed: u64,
    /// CONNACKs, the first included.
    pub connections: u64,
}

/// An MQTT-SN client.
#[derive(Debug)]
pub struct Node {
    options: Options,
}

#[expect(unused_variables, reason = "the interface comes first, for those who build on it")]
impl Node {
    /// A node that does nothing before [`Node::connect`].
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Begins a connection (§6.2): later [`Event::Connected`], [`Event::ConnectRefused`] or [`Event::ConnectionLost`].
    /// No effect while there is one.
    pub fn connect(&mut self, now: Instant) {}

    /// Ends the connection, or the attempts at one (§6.12): later [`Event::Disconnected`]. What is queued stays queued.
    pub fn disconnect(&mut self, now: Instant) {}

    /// Queues a message; it goes out while there is a connection, in order, registered first where its topic needs that.
    /// [`Event::Published`] tells the end. QoS −1 goes out at once, connection or not (§6.8).
    pub fn publish(
        &mut self,
        now: Instant,
        topic: Topic,
        payload: Bytes,
        qos: Qos,
        retain: bool,
    ) -> Result<PublishId, PublishError> {
        Err(PublishError::Full)
    }

    /// Asks for the messages of `filter` (§6.9), `qos` 0 to 2 (−1 is taken as 0): later [`Event::Subscribed`]. Held
    /// over reconnections until [`Node::unsubscribe`].
    pub fn subscribe(&mut self, now: Instant, filter: Filter, qos: Qos) -> Result<(), Full> {
        Err(Full)
    }

    /// Takes a subscription back (§6.9): later [`Event::Unsubscribed`].
    pub fn unsubscribe(&mut self, now: Instant, filter: Filter) -> Result<(), Full> {
        Err(Full)
    }

    /// Takes a frame from the gateway.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {}

    /// Does what is due at `now`; early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {}

    /// When [`Node::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next frame for the gateway. To be drained after every call that takes `now`.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        None
    }

    /// The next thing to tell the application. To be drained after every call that takes `now`.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        false
    }

    /// Messages given to [`Node::publish`] that are not settled.
    pub fn pending(&self) -> usize {
        0
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
