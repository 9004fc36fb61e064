//! A small MQTT 3.1.1 broker in memory, as a value like the core, for first steps and for tests.
//!
//! [`Broker`] has no socket and no clock. Connections are numbers chosen by the caller, octets go in and come out:
//!
//! ```
//! # use std::time::Instant;
//! # use bytes::Bytes;
//! use mqtt_sn_gateway::broker::{Broker, ConnectionId, Input, Limits, Output};
//!
//! let mut broker = Broker::new(Limits::default());
//! let (now, link) = (Instant::now(), ConnectionId(1));
//! broker.handle(now, Input::Opened(link));
//! broker.handle(now, Input::Bytes(link, Bytes::from_static(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a")));
//! assert_eq!(broker.poll_output(), Some(Output::Write(link, Bytes::from_static(b"\x20\x02\0\0"))));
//! broker.handle(now, Input::Drained(link)); // until then it collects what comes next
//! ```
//!
//! It lets everybody in, has no `$SYS` topics, no shared subscriptions (`$share/…` is refused with 0x80) and keeps
//! nothing on disk. [`Fault`]s make it misbehave for tests; [`tcp`] puts it on a socket.

use std::time::Instant;

mod fault;
mod io;
pub mod tcp;

pub use fault::{Fault, Kind, Whom};
pub use io::{ConnectionId, Counters, Input, Limits, Memory, Message, Output, SessionInfo};

/// An MQTT 3.1.1 broker as a value.
///
/// Feed it with [`handle`](Self::handle) (a batch if there is one) and with [`handle_timeout`](Self::handle_timeout)
/// when [`poll_timeout`](Self::poll_timeout) is due, then take [`poll_output`](Self::poll_output) until `None`.
/// It does the same for the same inputs.
#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    counters: Counters,
}

impl Broker {
    /// A broker without sessions and retained messages.
    pub fn new(limits: Limits) -> Self {
        Self { limits, counters: Counters::default() }
    }

    /// Takes what happened to a connection.
    pub fn handle(&mut self, now: Instant, input: Input) {
        let (_, _) = (now, input);
    }

    /// Does what is due: closes silent connections, lets delayed output go. Early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next thing to do for the caller.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// Whether the connection should be read: not while its client leaves more than [`Limits::write_ahead`] unread.
    /// Bounds what the answers to a client that does not read can pile up to.
    pub fn wants_input(&self, connection: ConnectionId) -> bool {
        let _ = connection;
        true
    }

    /// Makes something go wrong, for tests.
    pub fn inject(&mut self, now: Instant, fault: Fault) {
        let (_, _) = (now, fault);
    }

    /// As if the process had been killed and started again: all connections are closed, no will is published.
    /// Faults stay.
    pub fn restart(&mut self, memory: Memory) {
        let _ = memory;
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The client ids of all sessions, in order.
    pub fn clients(&self) -> impl Iterator<Item = &crate::topic::ClientId> {
        [].into_iter()
    }

    /// The session of this client id.
    pub fn session(&self, client: &str) -> Option<SessionInfo> {
        let _ = client;
        None
    }

    /// The retained messages, in order of their topics.
    pub fn retained(&self) -> impl Iterator<Item = &Message> {
        [].into_iter()
    }
}
