//! Who waits for what until when: one ordered set of deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::ClientKey;
use super::io::Peer;

/// What is due when a deadline passes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// T_ADV: the next ADVERTISE (§6.1).
    Advertise,
    /// A half-open handshake is given up (§6.13).
    Handshake(Box<Peer>),
    /// Something of one client.
    Client(ClientKey, ClientTimer),
}

/// What is due for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientTimer {
    /// The client should have been heard (§6.14).
    Supervision,
    /// T_RETRY of the exchange towards the client (§6.13).
    Retry,
    /// The broker should have answered what the client waits for.
    BrokerAnswer,
    /// A pause after the client said `congestion` is over.
    Pause,
    /// A name that the client did not answer for has rested.
    Rest,
    /// The client's own link has been lost for as long as it may be.
    Grace,
    /// The session outlived its connection for long enough (§6.3).
    Expiry,
}

/// At most one deadline for each [`Timer`].
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Instant, Timer)>,
    set: BTreeMap<Timer, Instant>,
}

impl Timers {
    /// Sets the deadline of `timer`, in place of the one it had.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(before) = self.set.insert(timer.clone(), at) {
            self.due.remove(&(before, timer.clone()));
        }
        self.due.insert((at, timer));
    }

    /// Sets the deadline of `timer`, unless it has one.
    pub(super) fn set_unless_set(&mut self, timer: Timer, at: Instant) {
        if !self.set.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    pub(super) fn cancel(&mut self, timer: &Timer) {
        if let Some(before) = self.set.remove(timer) {
            self.due.remove(&(before, timer.clone()));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes out one timer that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.due.pop_first()?;
        self.set.remove(&timer);
        Some(timer)
    }
}
