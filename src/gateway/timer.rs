//! Who waits for what until when: one ordered set of deadlines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

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
#[derive(Debug)]
pub(super) struct Timers {
    /// Before anything can be due.
    origin: Instant,
    clients: Deadlines<Alarm>,
    /// [`Timer::Advertise`] and [`Timer::Handshake`], which come first of what is due at the same time.
    others: Deadlines<Timer>,
}

/// A timer of a client in eight octets: the key and, in the lowest bits, which of its timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Alarm(u64);

/// Nanoseconds from [`Timers::origin`] on, half as large as an [`Instant`]. They last for 584 years.
type Due = u64;

#[derive(Debug)]
struct Deadlines<T> {
    due: BTreeSet<(Due, T)>,
    set: BTreeMap<T, Due>,
}

impl Timers {
    /// None is set. Those that will be are due after `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { origin: now, clients: Deadlines::default(), others: Deadlines::default() }
    }

    /// Sets the deadline of `timer`, in place of the one it had.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        let due = at.saturating_duration_since(self.origin).as_nanos();
        let due = Due::try_from(due).unwrap_or(Due::MAX);
        match Alarm::of(&timer) {
            Some(alarm) => self.clients.set(alarm, due),
            None => self.others.set(timer, due),
        }
    }

    /// Sets the deadline of `timer`, unless it has one.
    pub(super) fn set_unless_set(&mut self, timer: Timer, at: Instant) {
        let is_set = match Alarm::of(&timer) {
            Some(alarm) => self.clients.set.contains_key(&alarm),
            None => self.others.set.contains_key(&timer),
        };
        if !is_set {
            self.set(timer, at);
        }
    }

    pub(super) fn cancel(&mut self, timer: &Timer) {
        match Alarm::of(timer) {
            Some(alarm) => self.clients.cancel(&alarm),
            None => self.others.cancel(timer),
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let next = [self.others.next(), self.clients.next()].into_iter().flatten().min()?;
        Some(self.origin + Duration::from_nanos(next))
    }

    /// Takes out one timer that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let clients = self.clients.next().unwrap_or(Due::MAX);
        if self.others.next().is_some_and(|at| at <= clients) {
            return self.others.pop();
        }
        self.clients.pop().map(Alarm::timer)
    }
}

impl Alarm {
    fn of(timer: &Timer) -> Option<Self> {
        match timer {
            Timer::Client(ClientKey(key), timer) => Some(Self(key << 3 | *timer as u64)),
            Timer::Advertise | Timer::Handshake(_) => None,
        }
    }

    fn timer(self) -> Timer {
        let timer = match self.0 & 0b111 {
            0 => ClientTimer::Supervision,
            1 => ClientTimer::Retry,
            2 => ClientTimer::BrokerAnswer,
            3 => ClientTimer::Pause,
            4 => ClientTimer::Rest,
            5 => ClientTimer::Grace,
            _ => ClientTimer::Expiry,
        };
        Timer::Client(ClientKey(self.0 >> 3), timer)
    }
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self { due: BTreeSet::new(), set: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Deadlines<T> {
    fn set(&mut self, timer: T, at: Due) {
        if let Some(before) = self.set.insert(timer.clone(), at) {
            self.due.remove(&(before, timer.clone()));
        }
        self.due.insert((at, timer));
    }

    fn cancel(&mut self, timer: &T) {
        if let Some(before) = self.set.remove(timer) {
            self.due.remove(&(before, timer.clone()));
        }
    }

    fn next(&self) -> Option<Due> {
        self.due.first().map(|(at, _)| *at)
    }

    fn pop(&mut self) -> Option<T> {
        let (_, timer) = self.due.pop_first()?;
        self.set.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_the_order_of_their_deadlines_and_of_their_kinds() {
        use ClientTimer::{BrokerAnswer, Expiry, Grace, Pause, Rest, Retry, Supervision};
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let kinds = [Supervision, Retry, BrokerAnswer, Pause, Rest, Grace, Expiry];
        let of = |key| kinds.map(|kind| Timer::Client(ClientKey(key), kind));
        let mut timers = Timers::new(now);
        for timer in of(2).into_iter().rev().chain(of(1)) {
            timers.set(timer, at(5));
        }
        timers.set(Timer::Advertise, at(5));
        timers.set(Timer::Client(ClientKey(3), Retry), at(4));
        timers.set(Timer::Client(ClientKey(3), Retry), at(6));
        timers.set_unless_set(Timer::Client(ClientKey(3), Retry), at(1));
        timers.set(Timer::Client(ClientKey(4), Retry), at(1));
        timers.cancel(&Timer::Client(ClientKey(4), Retry));
        assert_eq!(timers.next(), Some(at(5)));
        assert_eq!(timers.pop_due(at(4)), None);
        let due: Vec<_> = std::iter::from_fn(|| timers.pop_due(at(5))).collect();
        let expected: Vec<_> = [Timer::Advertise].into_iter().chain(of(1)).chain(of(2)).collect();
        assert_eq!(due, expected);
        assert_eq!(timers.pop_due(at(7)), Some(Timer::Client(ClientKey(3), Retry)));
        assert_eq!(timers.next(), None);
    }
}
