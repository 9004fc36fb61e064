//! What the broker says to the gateway, and what it is told of it.

use std::time::Instant;

use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::Qos;

use super::carriers::is_at;
use super::session::{Kind, Session};
use super::{Air, Arrival, sheds};
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::link::Lane;

impl Air {
    /// The broker's PUBLISH reached the gateway on this link.
    pub(crate) fn message_in(&mut self, lane: Lane, message: &Arrival, ledger: &Ledger) {
        let &Arrival { no, qos, retain, fresh, dup } = message;
        if let Lane::Client(who) = lane {
            return self.own_message_in(who, message, ledger);
        }
        let seen = self.arrived.contains_key(&(no, retain, lane));
        self.arrived.entry((no, retain, lane)).or_insert(self.now);
        if retain {
            return;
        }
        // One of QoS 1 that was settled and could not be acknowledged is handed out again.
        if fresh || qos == Qos::AtLeastOnce {
            let copies = self.copies.entry(no).or_default();
            copies.since.get_or_insert(self.now);
            let (new, again) = copies.on.entry(lane).or_default();
            *(if dup { again } else { new }) += 1;
        }
        if seen && !fresh {
            return;
        }
        let (topic, down) = (&ledger.entry(no).topic, &self.down);
        for (who, session) in self.sessions.iter_mut().filter(|(_, session)| !session.dedicated) {
            let Some(granted) = session.due(topic, lane, self.has_lanes) else { continue };
            let qos = qos.min(granted);
            if session.is_there() {
                // Not to be told from outside: whether QoS 0 leaves at once, if it may not wait.
                if qos > Qos::AtMostOnce || self.settings.sessions.queue.qos0 {
                    session.queue.push_back((no, qos));
                }
                // The broker does not wait for one that has left a request unanswered, nor for a sleeper.
                let prompt = session.exchange.as_ref().is_none_or(|open| open.sent <= 1);
                let prompt = prompt && !session.resting.contains(topic);
                if session.is_active() && !session.silent && prompt && !is_at(session, down) {
                    self.blocks.entry((lane, no)).or_default().insert(*who);
                }
            } else if qos > Qos::AtMostOnce && !session.clean {
                session.queue.push_back((no, qos));
            }
        }
    }

    /// The broker said that it has this filter, or has it no more.
    pub(crate) fn filter_at_broker(&mut self, lane: Lane, filter: &TopicFilter, has: bool) {
        for (_, session) in self.sessions.iter_mut().filter(|(who, session)| session.is_on(lane, **who)) {
            let Some(sub) = session.subs.get_mut(filter) else { continue };
            if has {
                sub.at_broker = Some(lane);
            } else {
                sub.at_broker.take_if(|at| *at == lane);
            }
            session.changed.insert(filter.clone(), self.now);
        }
    }

    /// Whether what a client subscribes to changed since the message first came.
    pub(crate) fn is_split(&self, who: Who, no: No, ledger: &Ledger) -> bool {
        let Some(copies) = self.copies.get(&no).filter(|_| self.has_lanes) else { return false };
        let session = self.sessions.get(&who);
        let topic = &ledger.entry(no).topic;
        // As long as the broker has yet to answer for a filter, it may have it from before on another link.
        let open = |session: &Session| session.matching(topic).any(|(.., on)| on.is_none());
        session.is_none_or(|session| session.has_changed(topic, copies.since) || open(session))
    }

    /// When a live message first came.
    pub(crate) fn came_at(&self, no: No) -> Option<Instant> {
        self.copies.get(&no)?.since
    }

    /// Whether a client has a filter on this link.
    pub(crate) fn uses(&self, lane: Lane) -> bool {
        self.sessions.values().any(|session| session.subs.values().any(|sub| sub.at_broker == Some(lane)))
    }

    /// A link connects.
    pub(crate) fn lane(&mut self, lane: Lane) {
        self.has_lanes |= matches!(lane, Lane::Gateway(1..));
    }

    /// The broker forgot the session, and what it was owed.
    pub(crate) fn broker_forgot(&mut self, lane: Lane) {
        if let Lane::Client(who) = lane {
            self.own_forgotten(who);
        }
        self.blocks.retain(|(other, _), _| *other != lane);
        let on = |(who, session): &(&Who, &mut Session)| session.is_on(lane, **who);
        for (_, Session { subs, changed, .. }) in self.sessions.iter_mut().filter(on) {
            for (filter, sub) in subs.iter_mut().filter(|(_, sub)| sub.at_broker == Some(lane)) {
                sub.at_broker = None;
                changed.insert(filter.clone(), self.now);
            }
        }
        let sessions = self.sessions.iter_mut().filter(on).map(|(_, session)| session);
        sessions.filter_map(|session| session.exchange.as_mut()).for_each(|open| open.stray = true);
    }

    /// The gateway acknowledged a message to the broker (G2), and if it is the `last` copy of it, nobody has yet to settle it.
    pub(crate) fn ack_out(
        &mut self,
        lane: Lane,
        no: No,
        retain: bool,
        last: bool,
        counters: &Counters,
        ledger: &Ledger,
    ) -> Checked {
        let aggregated = |session: &Session| session.is_active() && !session.dedicated && last;
        for (who, session) in self.sessions.iter().filter(|(_, session)| aggregated(session)) {
            let Some(open) = session.exchange.as_ref().filter(|open| !open.stray) else { continue };
            // The broker does not wait for who was away when the message came.
            if self.arrived.get(&(no, retain, lane)).is_none_or(|at| *at < session.since) {
                continue;
            }
            // Nor for who had left a request unanswered when it came, or does now.
            let waits = self.blocks.get(&(lane, no)).is_some_and(|whom| whom.contains(who));
            // And of two copies, as there may be while its filters change, another one may be open than the one that is over.
            let one = self.copies.get(&no).is_none_or(|copies| !copies.are_several());
            let live = !retain && waits && one && !self.is_split(*who, no, ledger);
            let same = matches!(open.kind, Kind::Publish { no: n, retain: false, .. } if n == no && live);
            Law::SettledBeforeAck.check(!same, || {
                format!("m{no} was acknowledged to the broker while its PUBLISH to s{who} is open")
            })?;
        }
        if !last || (retain && matches!(lane, Lane::Gateway(_))) {
            return Ok(());
        }
        for who in self.blocks.remove(&(lane, no)).unwrap_or_default() {
            self.settled(who, no, false);
            self.vanished += 1;
            Law::SettledBeforeAck.check(self.vanished <= sheds(counters), || {
                format!("m{no} was acknowledged to the broker and s{who} has not settled it")
            })?;
        }
        Ok(())
    }
}

impl Session {
    /// Whether what is said on this link is about the filters of this client.
    fn is_on(&self, lane: Lane, who: Who) -> bool {
        match lane {
            Lane::Gateway(_) => !self.dedicated,
            Lane::Client(whose) => self.dedicated && whose == who,
        }
    }
}
