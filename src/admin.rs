//! How an operator speaks with the running gateway: a Unix socket, with a line of JSON for each request and for each answer.
//!
//! ```text
//! {"ask":"health"}                      {"answer":"health","ok":true,"broker":{…},"store":{…},"sessions":12,…}
//! {"ask":"forget","client":"pump-7"}    {"answer":"forgotten","client":"pump-7","at_rest":false,"session":true,…}
//! anything else                         {"answer":"error","text":"…"}
//! ```
//!
//! [`Socket`] takes requests in for the loop around the core, which answers each on the channel that comes with it; [`ask`] is
//! the other end. Only this user may connect: the socket has mode 0600. What a request says beyond this version is ignored.

mod ask;
mod socket;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use self::ask::{AskError, ask};
pub use self::socket::{CONNECTIONS_MAX, LINE_MAX, OpenError, Options, PATIENCE, Socket};
use crate::gateway::io::Forgotten;
use crate::topic::ClientId;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The store of the gateway that is meant, or `none`; another gateway answers that it is another. Left out: whoever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// What.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What a gateway can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Ask {
    /// To forget a client.
    Forget {
        /// Its id.
        client: String,
    },
    /// How it is.
    Health,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Reply {
    /// The client is forgotten, and will be after a crash.
    Forgotten(Gone),
    /// How it is.
    Health(Health),
    /// It is not the gateway that was meant.
    Other {
        /// Its store, or `none`.
        store: String,
    },
    /// Nothing was done, or it is not known.
    Error {
        /// Why.
        text: String,
    },
}

impl Reply {
    /// A refusal.
    pub fn error(text: impl Into<String>) -> Self {
        Self::Error { text: text.into() }
    }
}

/// What there was of a client, as [`Forgotten`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Who.
    pub client: String,
    /// No gateway was running.
    pub at_rest: bool,
    /// A session, or a CONNECT under way.
    pub session: bool,
    /// A Will.
    pub will: bool,
    /// Topic ids.
    pub topics: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Messages that waited for the client.
    pub waiting: usize,
    /// Exchanges of QoS 2 that were not finished.
    pub exchanges: usize,
    /// Messages of the client that were kept for the broker.
    pub kept: usize,
    /// The broker may still have a session of the client: it could not be told.
    #[serde(default)]
    pub at_broker: bool,
}

impl Gone {
    /// In the words of the core.
    pub fn new(client: &ClientId, at_rest: bool, gone: Forgotten) -> Self {
        let Forgotten { session, will, topics, subscriptions, waiting, exchanges, kept, at_broker } = gone;
        let client = client.to_string();
        Self { client, at_rest, session, will, topics, subscriptions, waiting, exchanges, kept, at_broker }
    }
}

/// How a gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Nothing below is amiss.
    pub ok: bool,
    /// The connection of the gateway itself to the broker.
    pub broker: Broker,
    /// What outlives the process.
    pub store: Store,
    /// The transports, in the order of the configuration.
    #[serde(default)]
    pub transports: Vec<Transport>,
    /// Sessions, connected or not.
    pub sessions: usize,
    /// Messages that clients have yet to take.
    pub waiting: usize,
    /// Messages of clients that are kept for the broker.
    pub kept: usize,
}

/// A transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// Its name.
    pub name: String,
    /// It can send and receive.
    pub up: bool,
    /// For how many seconds this has been so.
    pub seconds: u64,
    /// What is wrong, if something is; one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// The broker accepted us and has not gone.
    pub connected: bool,
    /// For how many seconds this has been so.
    pub seconds: u64,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// What it does.
    pub state: StoreState,
    /// For how many seconds this has been so.
    pub seconds: u64,
}

/// What a store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreState {
    /// It keeps what it is given.
    Durable,
    /// It cannot be written at the moment, is much too slow, or hangs.
    Unavailable,
    /// There is none.
    None,
}

/// A request that came in.
#[derive(Debug)]
pub struct Asked {
    /// What is wanted.
    pub order: Order,
    /// For the answer.
    pub reply: oneshot::Sender<Reply>,
}

/// An [`Ask`] that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Forget this client.
    Forget(ClientId),
    /// Say how it is.
    Health,
}
