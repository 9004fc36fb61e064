//! What outlives the process: the rows that a store keeps for the core, and how both speak of them.
//!
//! A row is complete in itself. It has no index, handle, token or time of this process in it: a transport goes by its name,
//! a client by its id, a duration is one and nothing is a point in time. The core hands rows out in batches
//! ([`Output::Store`](super::io::Output::Store)), each atomic, and lets nothing leave that depends on one before it hears
//! that the batch is durable ([`Input::Stored`](super::io::Input::Stored)). [`Gateway::restore`](super::Gateway::restore)
//! takes the rows back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::io::{Address, Mode, WirelessNodeId};
use crate::mqtt::{Message, QoS, Received};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::TopicRef;

/// Numbers batches of records, from 1 and without a gap in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// What has become of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It and all before it will be there at the next start, whatever happens.
    Durable,
    /// It cannot be written at the moment, nor can what comes after it. It is tried again: `Durable` may still follow.
    Unavailable,
    /// Somebody else owns this state now: nothing may be done in its name any more.
    Fenced,
}

/// One change to what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The first row under its key. If it is deleted before it was written, it need not be written at all.
    Insert(Row),
    /// Another row under a key that has one.
    Update(Row),
    /// No row under this key any more.
    Delete(Key),
}

/// Under what a row is found. What belongs to a client begins with its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The gateway itself.
    Gateway,
    /// A message that waits for clients.
    Message(MessageId),
    /// A QoS 2 message of the broker on one of the gateway's own links, by packet id.
    Received(u16, u16),
    /// A filter that the broker has on one of the gateway's own links.
    Filter(u16, TopicFilter),
    /// Something of a client.
    Client(ClientId, ClientKey),
}

/// What of a client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKey {
    /// Its session.
    Session,
    /// Its Will.
    Will,
    /// A topic id.
    Topic(u16),
    /// A subscription.
    Subscription(TopicFilter),
    /// A message that waits for it, by the order in which it came.
    Waiting(u64),
    /// A QoS 2 message that it has and that was not finished, by MsgId.
    Releasing(u16),
    /// A QoS 2 exchange of its own, by MsgId.
    Exchange(u16),
    /// A message of it on the way to the broker, by the order in which it came.
    Uplink(u64),
    /// A QoS 2 message of the broker on its own link, by packet id.
    Received(u16),
}

/// Names a message that waits for one or many clients. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// The gateway itself.
    Gateway(GatewayRow),
    /// A message that waits for clients; there is a [`Row::Waiting`] for each.
    Message(MessageId, Arc<Message>),
    /// Under its packet id the broker has sent a QoS 2 message to the gateway, which is taken care of (MQTT 3.1.1 §4.3.3).
    /// Before it the number of the link: 1 is the gateway's own, the others are for filters that overlap.
    Received(u16, Received),
    /// On the link of this number the broker has this filter, or may have.
    Filter(u16, TopicFilter, FilterRow),
    /// A session.
    Session(ClientId, SessionRow),
    /// What the client wants said when it is lost.
    Will(ClientId, WillRow),
    /// A topic id that the client may have been told.
    Topic(ClientId, u16, TopicRow),
    /// A subscription that was granted.
    Subscription(ClientId, TopicFilter, SubscriptionRow),
    /// A message that waits for the client; those of one client in the order of their numbers.
    Waiting(ClientId, u64, WaitingRow),
    /// PUBREL of this MsgId is to be answered by the client (§6.6).
    Releasing(ClientId, u16),
    /// A QoS 2 message of the client under this MsgId was begun.
    Exchange(ClientId, u16, ExchangeRow),
    /// A message of the client which the broker has yet to finish; those of one client in the order of their numbers, which
    /// are counted over all clients.
    Uplink(ClientId, u64, UplinkRow),
    /// As [`Row::Received`], on the client's own link.
    ClientReceived(ClientId, Received),
}

/// The gateway itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRow {
    /// The client id that was made up for it at its first start.
    pub client_id: String,
}

/// A filter at the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterRow {
    /// At which it was asked for.
    pub qos: QoS,
    /// The subscription identifier, which the broker puts on what the filter brings (MQTT 5 §3.8.2.1.2).
    pub subscription: Option<u32>,
    /// The broker said that it has it.
    pub granted: bool,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// What the client was doing.
    pub standing: Standing,
    /// CleanSession 1.
    pub clean: bool,
    /// How it is served at the broker.
    pub mode: Mode,
    /// See `Session::inherited`: the broker may bring what nobody subscribed to here.
    pub inherited: bool,
    /// Zero: not supervised.
    pub keep_alive: Duration,
    /// How long it means to sleep between two signs of life.
    pub sleep: Duration,
    /// How often it has connected: what it learnt of topic ids in an earlier connection it may have forgotten.
    pub connections: u32,
    /// Where it is reached.
    pub peer: Option<PeerRow>,
}

/// What a client was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was connected.
    Active,
    /// It slept, or was awake for a moment.
    Asleep,
    /// It had taken leave.
    Disconnected,
    /// It had gone without a word.
    Lost,
    /// It was connected, and the last that was heard of it may have been its goodbye: then it is not lost.
    Leaving,
}

/// Where a client is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    /// The name of the transport.
    pub port: String,
    /// The address; a forwarder's, if there is one between.
    pub addr: Address,
    /// The node behind the forwarder.
    pub node: Option<WirelessNodeId>,
}

/// A Will (§6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WillRow {
    /// Where it is published, at which QoS, and whether the broker keeps it.
    pub topic: Option<(TopicName, QoS, bool)>,
    /// What it says.
    pub message: Bytes,
}

/// A topic id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRow {
    /// What it stands for.
    pub name: TopicName,
    /// The how-manieth id of the session it is: the run of ids goes on behind the last.
    pub nth: u16,
    /// What the client makes of it.
    pub standing: TopicStanding,
}

/// What a client makes of a topic id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicStanding {
    /// It may not know it.
    Unconfirmed,
    /// In its connection of this number it learnt it.
    Known(u32),
    /// It does not want it.
    Rejected,
}

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionRow {
    /// How the client named it: so are messages on it named to the client.
    pub topic: TopicRef,
    /// What was granted.
    pub qos: QoS,
    /// Grows from one subscription on the gateway's own links to the next: of several copies of a message the client gets the one
    /// for its older subscription, before a restart and after it. Zero on a link of the client's own.
    pub since: u64,
}

/// A message that waits for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRow {
    /// The message.
    pub message: MessageId,
    /// At which it is sent to this client.
    pub qos: QoS,
    /// The MsgId under which it was sent before; of QoS 2 only.
    pub sent_as: Option<u16>,
    /// How its topic was named then: under another name it would be another message to the client. `None` if the client did
    /// not know that name.
    pub sent_on: Option<TopicRef>,
    /// How long it is worth to be sent (MQTT 5 §3.3.2.3.3).
    pub expiry: Option<Duration>,
}

/// A QoS 2 exchange that a client began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeRow {
    /// The message, by which a repetition is known.
    pub digest: u64,
    /// How the client named its topic.
    pub topic: TopicRef,
    /// What has come of it.
    pub state: ExchangeState,
}

/// What has come of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeState {
    /// It is on its way under this number, see [`Row::Uplink`]. If there is none, it has not left, or the broker is done
    /// with it.
    Open(u64),
    /// The client may be told that it is taken care of (PUBREC).
    Received,
    /// The client was told the end of it.
    Finished,
}

/// A message on the way to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkRow {
    /// The message, to the end: a broker that loses its session may have lost the message too.
    pub message: Message,
    /// It goes by the client's own link, else by the gateway's.
    pub dedicated: bool,
    /// The packet id, if it may have left; of QoS 2 only.
    pub packet: Option<u16>,
    /// The broker has said PUBREC under that id, and needs only PUBREL as long as it has its session.
    pub released: bool,
    /// The client was told that it is taken care of: if the session ends, this does not.
    pub promised: bool,
}

impl Row {
    /// Under what it is found.
    pub fn key(&self) -> Key {
        let client = |id: &ClientId, key| Key::Client(id.clone(), key);
        match self {
            Self::Gateway(_) => Key::Gateway,
            Self::Message(id, _) => Key::Message(*id),
            Self::Received(link, received) => Key::Received(*link, received.packet),
            Self::Filter(link, filter, _) => Key::Filter(*link, filter.clone()),
            Self::Session(id, _) => client(id, ClientKey::Session),
            Self::Will(id, _) => client(id, ClientKey::Will),
            Self::Topic(id, topic, _) => client(id, ClientKey::Topic(*topic)),
            Self::Subscription(id, filter, _) => client(id, ClientKey::Subscription(filter.clone())),
            Self::Waiting(id, number, _) => client(id, ClientKey::Waiting(*number)),
            Self::Releasing(id, msg_id) => client(id, ClientKey::Releasing(*msg_id)),
            Self::Exchange(id, msg_id, _) => client(id, ClientKey::Exchange(*msg_id)),
            Self::Uplink(id, number, _) => client(id, ClientKey::Uplink(*number)),
            Self::ClientReceived(id, received) => client(id, ClientKey::Received(received.packet)),
        }
    }
}
