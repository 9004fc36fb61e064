//! Clients with links of their own to the broker (§4.1): a CONNECT waits for the broker's answer, a link that is lost is
//! put up with for a time, and what the broker sends on it is the client's as it is.

use std::time::{Duration, Instant};

use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::io::{Mode, Peer, PortId};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{Qos, ReturnCode};
use rumqttc::ConnectReturnCode;

use super::carriers::is_at;
use super::session::{Session, State};
use super::{Air, Arrival, Setup};
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::link::Lane;

/// How long after its filters were issued again a client is not handed the retained messages that this brought.
const REISSUED: Duration = Duration::from_secs(10);

/// A CONNECT that is with the broker.
pub(super) struct Asking {
    pub(super) setup: Setup,
    /// When the client is told that the broker does not answer.
    by: Instant,
}

/// What the broker has said of the link of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// CONNACK 0; whether it had a session.
    Accepted {
        present: bool,
    },
    Refused(ConnectReturnCode),
    /// Nothing: nobody there, or nobody any more.
    Gone,
}

impl Air {
    /// How a client that connects through this port is served: as its session is, if that lives on (design section 3).
    pub(super) fn is_dedicated(&self, who: Who, clean: bool, port: PortId) -> bool {
        let by_port = self.settings.ports[usize::from(port.0)].mode == Mode::Transparent;
        match self.sessions.get(&who) {
            Some(session) if !session.clean && !clean => session.dedicated,
            _ => by_port,
        }
    }

    /// What is to be served in the other way ends: a session, whose client is not told, and a CONNECT that waits.
    pub(super) fn end_in_other_mode(&mut self, setup: &Setup) {
        if !setup.dedicated {
            self.asking.retain(|_, asking| asking.setup.who != setup.who);
        }
        let other = self.sessions.get(&setup.who).is_some_and(|session| session.dedicated != setup.dedicated);
        if other && let Some(session) = self.sessions.remove(&setup.who) {
            self.own.remove(&setup.who);
            session.peer.iter().for_each(|peer| _ = self.bound.remove(peer));
            self.asking.retain(|_, asking| asking.setup.who != setup.who);
            self.blocks.values_mut().for_each(|whom| _ = whom.remove(&setup.who));
        }
    }

    /// Clients without a session whose CONNECT is with the broker.
    pub(super) fn newcomers(&self) -> usize {
        self.asking.values().filter(|asking| !self.sessions.contains_key(&asking.setup.who)).count()
    }

    pub(super) fn is_asking(&self, who: Who) -> bool {
        self.asking.values().any(|asking| asking.setup.who == who)
    }

    /// The broker is asked for this client.
    pub(super) fn ask(&mut self, setup: Setup, ledger: &Ledger) {
        let Some(from) = self.cause.from.clone() else { return };
        self.handshakes.remove(&from);
        let who = setup.who;
        if self.asking.get(&from).is_some_and(|asking| asking.setup.who != who) {
            self.abandon(&from, ledger);
        }
        // The later CONNECT is the one that counts (Interpretation: R-100).
        self.asking.retain(|_, asking| asking.setup.who != who);
        if setup.clean {
            self.own.remove(&who);
        }
        self.asking.insert(from, Asking { setup, by: self.now + self.settings.broker.ack_timeout });
    }

    /// Nobody waits for the broker any more: everything is as it was, but for a link that had to go for the CONNECT.
    pub(super) fn abandon(&mut self, peer: &Peer, ledger: &Ledger) {
        let Some(Asking { setup, .. }) = self.asking.remove(peer) else { return };
        let grace = self.now + self.settings.broker.grace;
        let Some(session) = self.sessions.get_mut(&setup.who) else { return };
        if session.peer.is_none() {
            return;
        }
        if setup.clean {
            // Who asked knows it from the answer.
            let told = session
                .peer
                .clone()
                .filter(|it| it != peer && matches!(session.state, State::Active | State::Awake));
            self.cause.farewells.extend(told);
            self.leave(setup.who, ledger);
        } else {
            session.grace.get_or_insert(grace);
        }
    }

    /// Whether a connection for this client may be asked for: nobody opens one for a client that has not asked.
    pub(crate) fn may_connect(&self, who: Who) -> bool {
        self.blind
            || self.is_asking(who)
            || self.expired.contains(&who)
            || self.sessions.get(&who).is_some_and(|session| session.dedicated)
    }

    /// Whether the session of this client is over, and to be removed from the broker.
    pub(crate) fn has_expired(&self, who: Who) -> bool {
        self.blind || self.expired.contains(&who)
    }

    /// Before the gateway hears of the link that a client has now.
    pub(crate) fn link_says(&mut self, who: Who, said: Said) {
        self.cause.said = Some((who, said));
        let grace = self.now + self.settings.broker.grace;
        let (asking, before) = (self.is_asking(who), self.own.contains(&who));
        let session = self.sessions.get_mut(&who).filter(|session| session.dedicated);
        match said {
            Said::Accepted { present } => {
                self.own.insert(who);
                if let Some(session) = session
                    && !asking
                {
                    (session.grace, session.overdue) = (None, false);
                }
                self.cause.inherits = present && !self.sessions.contains_key(&who);
            }
            Said::Gone | Said::Refused(_) => {
                self.own.remove(&who);
                let Some(session) = session.filter(|session| session.peer.is_some() && !asking) else {
                    return;
                };
                if before {
                    session.grace = Some(grace);
                }
                if matches!(said, Said::Refused(code) if code_of(code) == ReturnCode::NotSupported) {
                    self.overdue(who);
                }
            }
        }
    }

    /// The gateway has closed the link of a client; whether that had its time to come about, or the broker said something else than CONNACK.
    pub(crate) fn link_closed(&mut self, who: Who, in_vain: bool) {
        if in_vain {
            self.cause.said.get_or_insert((who, Said::Gone));
        }
        let grace = self.now + self.settings.broker.grace;
        let was_up = self.own.remove(&who);
        let asking = self.is_asking(who);
        if let Some(session) = self.sessions.get_mut(&who).filter(|session| session.peer.is_some())
            && was_up
            && !asking
        {
            session.grace = Some(grace);
        }
    }

    /// The time of the client's link is over: it is told, if it is awake.
    fn overdue(&mut self, who: Who) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        match session.state {
            State::Asleep => session.overdue = true,
            // It cannot be told.
            State::Active if is_at(session, &self.down) => session.overdue = true,
            State::Active | State::Awake => _ = self.cause.dismissed.insert(who),
            State::Away => {}
        }
    }

    /// What is due in time of a client with a link of its own. While it connects, from wherever, nothing of it ends.
    pub(super) fn grace_over(&mut self, who: Who) {
        let (now, asking) = (self.now, self.is_asking(who));
        let later = now + self.settings.broker.ack_timeout;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        if session.grace.is_none_or(|at| at > now) {
            return;
        }
        if asking {
            session.grace = Some(later);
        } else {
            session.grace = None;
            self.overdue(who);
        }
    }

    /// Whether the time by which a client was to be heard is over, and it is not about to be connected again.
    pub(super) fn is_unheard(&mut self, who: Who) -> bool {
        let (now, asking) = (self.now, self.is_asking(who));
        let later = now + self.settings.broker.ack_timeout;
        let Some(session) = self.sessions.get_mut(&who).filter(|session| !is_at(session, &self.down)) else {
            return false;
        };
        let until = session.supervision();
        let over = until.is_some_and(|at| at <= now);
        if !session.dedicated {
            return over;
        }
        if session.watch.is_none_or(|at| at > now) {
            return false;
        }
        session.watch = if asking { Some(later) } else { until };
        over && !asking
    }

    /// What the gateway has counted of all this.
    pub(super) fn counted_own(&mut self, before: &Counters, after: &Counters, ledger: &Ledger) -> Checked {
        let dismissed = after.clients_dismissed - before.clients_dismissed;
        Law::Grace.check(dismissed == self.cause.dismissed.len() as u64, || {
            format!(
                "the gateway dismissed {dismissed} clients, it should have dismissed {:?}",
                self.cause.dismissed
            )
        })?;
        for who in self.cause.dismissed.clone() {
            self.cause.farewells.extend(self.sessions.get(&who).and_then(|session| session.peer.clone()));
            self.leave(who, ledger);
        }
        Ok(())
    }

    /// The gateway has set up a connection, or has not, after a CONNECT that wants a link.
    pub(super) fn asked(&mut self, setup: Setup, accepted: u64, ledger: &Ledger) -> Checked {
        let who = setup.who;
        if accepted == 0 {
            self.cause.answer = None;
            self.ask(setup, ledger);
            return Ok(());
        }
        let goes_on = !setup.clean && self.own.contains(&who) && self.sessions.contains_key(&who);
        Law::BrokerDecides
            .check(goes_on, || format!("s{who} is connected and the broker was not asked for it"))?;
        let Some(peer) = self.cause.from.clone() else { return Ok(()) };
        self.asking.retain(|_, asking| asking.setup.who != who);
        self.set_up(peer, setup, ledger);
        Ok(())
    }

    /// Whether what the broker said ended the wait of a client.
    pub(super) fn answered_by_broker(&mut self, accepted: u64, ledger: &Ledger) -> Checked {
        let Some((who, Said::Accepted { .. })) = self.cause.said else {
            return Law::BrokerDecides
                .check(accepted == 0, || "the gateway set up a connection nobody asked for".into());
        };
        let peer =
            self.asking.iter().find(|(_, asking)| asking.setup.who == who).map(|(peer, _)| peer.clone());
        Law::BrokerDecides.check(accepted == u64::from(peer.is_some()), || {
            format!(
                "the broker accepted s{who}, which waits at {peer:?}, and {accepted} connections were set up"
            )
        })?;
        if let Some(peer) = peer
            && let Some(Asking { setup, .. }) = self.asking.remove(&peer)
        {
            self.cause.connack = Some(peer.clone()).filter(|peer| !self.down.contains(&peer.port));
            self.set_up(peer, setup, ledger);
        }
        for message in std::mem::take(&mut self.cause.early) {
            // Filters may have been issued again before a retained one, and nobody has seen that.
            let sure = !message.retain;
            self.take_own_message(who, &message, sure, ledger);
        }
        Ok(())
    }

    /// CONNACK to a client that has just been heard for another reason, or not at all.
    pub(super) fn connack_out(&mut self, to: &Peer, code: ReturnCode, ledger: &Ledger) -> Checked {
        if code == ReturnCode::Accepted {
            let due = self.cause.connack.take_if(|peer| peer == to).is_some();
            return Law::BrokerDecides
                .check(due, || format!("CONNACK 00 to {to:?} before the broker has accepted it"));
        }
        let Some(Asking { setup, by }) = self.asking.get(to) else {
            return Err(Law::Manners.broken(format!("CONNACK {code:?} to {to:?}, which waits for none")));
        };
        let due = match self.cause.said.filter(|(who, _)| *who == setup.who) {
            Some((_, Said::Refused(refusal))) => Some(code_of(refusal)),
            Some((_, Said::Gone)) => Some(ReturnCode::Congestion),
            Some((_, Said::Accepted { .. })) => None,
            None => {
                (*by <= self.now || self.cause.left.contains(&setup.who)).then_some(ReturnCode::Congestion)
            }
        };
        Law::BrokerDecides.check(due == Some(code), || {
            format!("CONNACK {code:?} to s{}, and not {due:?}; the broker: {:?}", setup.who, self.cause.said)
        })?;
        self.abandon(to, ledger);
        Ok(())
    }

    /// What the broker has said, or has not in time, cannot be told on a transport that is down.
    pub(super) fn refuse_unheard(&mut self, ledger: &Ledger) {
        let said = self.cause.said.filter(|(_, said)| !matches!(said, Said::Accepted { .. }));
        let over = |(peer, asking): &(&Peer, &Asking)| {
            let refused = said.is_some_and(|(who, _)| who == asking.setup.who);
            let is_over = refused || asking.by <= self.now || self.cause.left.contains(&asking.setup.who);
            self.down.contains(&peer.port) && is_over
        };
        let over: Vec<Peer> = self.asking.iter().filter(over).map(|(peer, _)| peer.clone()).collect();
        over.iter().for_each(|peer| self.abandon(peer, ledger));
    }

    /// the broker's silence is the client's to know.
    pub(super) fn check_asking(&self) -> Checked {
        let mut late = self.asking.values().filter(|asking| asking.by < self.now);
        match late.next() {
            Some(late) => Err(Law::Answered.broken(format!("CONNECT of s{} waits too long", late.setup.who))),
            None => Ok(()),
        }
    }

    /// The broker's PUBLISH reached the gateway on the link of this client.
    pub(super) fn own_message_in(&mut self, who: Who, message: &Arrival, ledger: &Ledger) {
        if matches!(self.cause.said, Some((said, Said::Accepted { .. })) if said == who)
            && self.is_asking(who)
        {
            // It came with CONNACK.
            self.cause.early.push(message.clone());
            return;
        }
        self.take_own_message(who, message, true, ledger);
    }

    /// The same, when it is known whose connection this is. `sure`: as far as is known here, the client is to get it.
    fn take_own_message(&mut self, who: Who, message: &Arrival, sure: bool, ledger: &Ledger) {
        let &Arrival { no, qos, retain, fresh, dup } = message;
        let now = self.now;
        let topic = &ledger.entry(no).topic;
        let Some(session) = self.sessions.get_mut(&who).filter(|session| session.dedicated) else { return };
        // What issuing filters again brings is none of the client's, what its own SUBSCRIBEs bring is; nobody can tell which.
        let reissued = session.reissued.filter(|at| retain && now < *at + REISSUED);
        // One of QoS 1 that was settled and could not be acknowledged is handed out again.
        if fresh || qos == Qos::AtLeastOnce {
            let copies = self.copies.entry(no).or_default();
            copies.since.get_or_insert(now);
            let (new, again) = copies.on.entry(Lane::Client(who)).or_default();
            *(if dup { again } else { new }) += 1;
        }
        if !sure || !fresh || reissued.is_some() || !session.due_on_own(topic) {
            return;
        }
        let may_wait = qos > Qos::AtMostOnce || (self.settings.sessions.queue.qos0 && session.is_there());
        if may_wait {
            session.queue.push_back((no, qos));
        }
        if qos > Qos::AtMostOnce {
            self.blocks.entry((Lane::Client(who), no)).or_default().insert(who);
        }
    }

    /// The broker has lost the session of a client: its filters are issued again.
    pub(super) fn own_forgotten(&mut self, who: Who) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who).filter(|session| session.dedicated) else { return };
        if !session.subs.is_empty() {
            session.reissued = Some(now);
        }
    }

    /// The gateway asks for a filter on the link of a client. If the client does not, that is done again, and nobody can tell
    /// whose the retained messages are that it brings.
    pub(crate) fn subscribe_out(&mut self, lane: Lane, filter: &TopicFilter) {
        let Lane::Client(who) = lane else { return };
        let at = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        if !session.is_asking_for(filter) {
            session.reissued = Some(at);
        }
    }

    /// How many copies of a message, live or retained, came for this client on its own link.
    pub(super) fn came_on_own(&self, who: Who, no: No) -> u32 {
        let copies = self.copies.get(&no).and_then(|copies| copies.on.get(&Lane::Client(who)));
        copies.map_or(0, |(new, again)| new + again)
    }

    pub(super) fn serves_own(&self, who: Who) -> bool {
        self.sessions.get(&who).is_some_and(|session| session.dedicated)
    }
}

impl Session {
    /// Whether what comes on the client's own link on this topic is for it, for certain.
    fn due_on_own(&self, topic: &TopicName) -> bool {
        let mut certain = self.subs.iter().filter(|(_, sub)| sub.at_broker.is_some() && !sub.doubtful);
        // What it has ended of what it inherited may still come, and goes nowhere.
        let ended = || self.gone.iter().any(|filter| filter.matches(topic));
        certain.any(|(filter, _)| filter.matches(topic)) || (self.inherited && !ended())
    }
}

/// What a client is told of a refusal of MQTT 3.1.1 (Interpretation: R-170).
fn code_of(refusal: ConnectReturnCode) -> ReturnCode {
    match refusal {
        ConnectReturnCode::ServiceUnavailable => ReturnCode::Congestion,
        _ => ReturnCode::NotSupported,
    }
}
