//! Transports that go down and come back: their clients wait, and what they missed nobody can tell.

use std::collections::BTreeSet;
use std::time::Instant;

use mqtt_sn_gateway::gateway::io::PortId;

use super::Air;
use super::session::{Exchange, Kind, ROUNDS, Session, State};
use crate::ledger::{Ledger, Who};

impl Air {
    /// Before the gateway is told that a transport can send and receive, or cannot.
    pub(crate) fn carrier(&mut self, now: Instant, port: PortId, up: bool, ledger: &Ledger) {
        self.begin(now);
        let is_news = !self.blind && if up { self.down.remove(&port) } else { self.down.insert(port) };
        let at = |session: &Session| session.peer.as_ref().is_some_and(|peer| peer.port == port);
        let there = self.sessions.iter().filter(|(_, session)| session.is_there() && at(session));
        let there: Vec<Who> = there.map(|(who, _)| *who).filter(|_| is_news).collect();
        for who in there {
            if up { self.is_back(who) } else { self.is_cut_off(who, ledger) }
        }
    }

    /// Before it is told how much a transport takes.
    pub(crate) fn resized(&mut self, now: Instant, port: PortId, mtu: usize) {
        self.begin(now);
        self.settings.ports[usize::from(port.0)].mtu = mtu;
    }

    /// Nothing reaches a client and nothing comes from it: what is open waits, and the broker does not. Whether it will have been
    /// granted what it asks for it is not told.
    fn is_cut_off(&mut self, who: Who, ledger: &Ledger) {
        match self.sessions.get(&who).map(|session| session.state) {
            Some(State::Awake) => self.fall_asleep(who, ledger),
            Some(State::Active) => self.freeze(who, ledger),
            _ => {}
        }
        let Some(session) = self.sessions.get_mut(&who) else { return };
        session.watch = None;
        for ((name, msg_id), by) in std::mem::take(&mut session.unanswered) {
            if name == "SUBSCRIBE" {
                session.missed = session.missed.max(Some(by));
                let filter = session.asked.get(&msg_id).and_then(|asked| asked.filter.as_ref());
                if let Some(sub) = filter.and_then(|filter| session.subs.get_mut(filter)) {
                    (sub.doubtful, sub.missed) = (true, true);
                }
            }
        }
    }

    fn freeze(&mut self, who: Who, ledger: &Ledger) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        session.freeze(now, ledger);
        if !session.dedicated {
            self.blocks.values_mut().for_each(|whom| _ = whom.remove(&who));
        }
    }

    /// All times begin anew, and what is open is asked again at once. If the client's link was lost meanwhile, it is told.
    fn is_back(&mut self, who: Who) {
        let now = self.now;
        let nothing_shed = self.vanished + self.shed == 0;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        session.last_heard = now;
        session.watch = session.supervision();
        if session.state != State::Active {
            return;
        }
        if session.overdue {
            self.cause.dismissed.insert(who);
            return;
        }
        session.begin_anew(now);
        let waits = session.missed.is_some_and(|by| by >= now);
        let resumable = !session.resumable.is_empty() && nothing_shed && !waits;
        if session.exchange.is_some() || resumable {
            self.cause.resumes.insert(who);
        }
    }

    /// Whether the broker is to wait for nobody: all who are there sleep or are cut off.
    pub(crate) fn frees_broker(&self) -> bool {
        let waits = |session: &Session| match session.state {
            State::Active => session.dedicated || !is_at(session, &self.down),
            State::Awake => true,
            State::Asleep | State::Away => session.dedicated,
        };
        !self.blind && !self.sessions.values().any(waits)
    }

    /// What is due to be sent again and is too long for what its transport takes by now is in a counter.
    pub(super) fn drop_outgrown(&mut self, who: Who, ledger: &Ledger) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who).filter(|session| session.is_there()) else { return };
        let port = session.peer.as_ref().map_or(0, |peer| usize::from(peer.port.0));
        let port = &self.settings.ports[port];
        let heard = session.last_heard;
        let is_outgrown = |open: &mut Exchange| {
            let next_round = matches!(open.kind, Kind::Publish { .. })
                && open.rounds + 1 < ROUNDS
                && heard > open.first
                && session.state == State::Active;
            open.len > port.mtu
                && open.sent > 0
                && open.last + port.retry_interval <= now
                && (open.sent <= port.retry_limit || next_round)
        };
        let Some(open) = session.exchange.take_if(is_outgrown) else { return };
        let dropped = match open.kind {
            Kind::Publish { no, retain, .. } => (!retain).then_some(no),
            Kind::Register(_, name) => {
                let mut queue = session.queue.iter();
                queue.find(|(no, _)| ledger.entry(*no).topic == name).map(|(no, _)| *no)
            }
            Kind::Release => None,
        };
        if let Some(no) = dropped {
            self.vanished += 1;
            self.settled(who, no, false);
        }
    }
}

/// Whether a client is on one of these transports.
pub(super) fn is_at(session: &Session, ports: &BTreeSet<PortId>) -> bool {
    session.peer.as_ref().is_some_and(|peer| ports.contains(&peer.port))
}
