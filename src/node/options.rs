//! What a node is made with.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::topic::{ClientId, TopicName};
use crate::wire::Qos;

/// What a [`Node`](super::Node) is made with.
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
    /// How long to sleep between two wakings, at most what [`Node::sleep`](super::Node::sleep) tells the gateway. `None`: the
    /// application wakes the node.
    pub wake_every: Option<Duration>,
    /// Messages that may wait, the one on its way included; [`Node::publish`](super::Node::publish) answers `Full` beyond.
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
    /// Keep-alive 60 s, clean session, no will, T_RETRY 10 s, N_RETRY 3 (§7.2), no reconnection, no waking by itself, a
    /// queue of 100.
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
            wake_every: None,
            queue_max: 100,
            predefined: BTreeMap::new(),
            node_id: None,
            seed: 0,
        }
    }
}

/// The Will of a node (§6.2). Topic and message are to fit into one frame of the carrier.
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
