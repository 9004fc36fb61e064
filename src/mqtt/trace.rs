//! What of a connection has to outlive its process, said by the value that goes and taken back by the one that comes.

use std::collections::VecDeque;

use super::{Message, Token};

/// What the owner has to store before what [`Connection::take_output`](super::Connection::take_output) gives may leave.
/// Only QoS 2 needs it; there is none unless [`Options::traced`](super::Options::traced).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// A QoS 2 publish was given this packet id; it leaves with the next output, or has left under it.
    Sent(Token, u16),
    /// The broker has taken it over (PUBREC): only PUBREL is repeated from here on, as long as the broker has its session.
    Released(Token, u16),
    /// The publish has no packet id any more.
    Ended {
        /// Which publish.
        token: Token,
        /// The packet id that it had.
        packet: u16,
        /// It waits for another one, because the broker has lost the session; also if it was released. If not, it has
        /// completed, was refused or given up.
        waits: bool,
    },
    /// The broker has let go of a QoS 2 message of its own, and will not come back to it: it has PUBCOMP, or uses the packet id
    /// for something else, or it turns out to have lost it with a session, which was in doubt.
    Forgot(u16),
    /// The broker has lost the session, or never had one: of all its QoS 2 messages nothing is known any more.
    ForgotAll,
}

/// What was stored of a connection that has ended without a word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// QoS 1 and 2 publishes that are not finished, in their order.
    pub publishes: Vec<RestoredPublish>,
    /// QoS 2 messages of the broker that are taken care of: PUBREC is the answer to a repetition.
    pub received: Vec<Received>,
}

/// A QoS 2 message of the broker that is taken care of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Received {
    /// Its packet id.
    pub packet: u16,
    /// Tells it from another message under the same packet id.
    pub digest: u64,
}

/// A publish that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoredPublish {
    /// It has no packet id: it has not left, or has QoS 1.
    Waiting(Message),
    /// It may have left under this packet id ([`Trace::Sent`]).
    Sent(u16, Message),
    /// The broker has taken it over under this packet id ([`Trace::Released`]). Nobody needs the message any more, unless
    /// the broker loses the session.
    Released(u16, Message),
}

/// Traces that the owner has not taken.
///
/// They cannot pile up: while there are any no output is given, each belongs to a packet in that output or to an exchange that
/// is open, and both are bounded.
#[derive(Debug)]
pub(super) struct Traces {
    wanted: bool,
    queue: VecDeque<Trace>,
}

impl Traces {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, queue: VecDeque::new() }
    }

    pub(super) fn push(&mut self, trace: Trace) {
        if self.wanted {
            self.queue.push_back(trace);
        }
    }

    pub(super) fn poll(&mut self) -> Option<Trace> {
        self.queue.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
