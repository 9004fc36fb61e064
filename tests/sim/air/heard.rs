//! What clients say to the gateway.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Address, Mode, Peer, Rebind, WirelessNodeId};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::{
    Connect, MsgIdOnly, Packet, Publish, Qos, ReturnCode, Subscribe, TopicAck, TopicRef, Unsubscribe,
    WillTopic, decode,
};

use super::session::{Asked, Exchange, Kind, Session, State, Sub};
use super::{Air, Cause, GUARD, Goodbye, Handshake, SURPLUS, Setup, WillChange, client};
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};

/// What the gateway is told.
impl Air {
    /// Before the gateway is told of anything but a frame.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.now = now;
        self.cause = Cause::default();
        self.due.clear();
    }

    /// Before the gateway gets a frame.
    pub(crate) fn frame_in(&mut self, now: Instant, from: &Peer, frame: &Bytes, ledger: &Ledger) -> Checked {
        self.begin(now);
        if self.blind {
            return Ok(());
        }
        let Ok(decoded) = decode(frame) else {
            self.cause.silence = true;
            return Ok(());
        };
        let mut from = from.clone();
        from.node = decoded.encapsulation.map(|e| WirelessNodeId(e.node_id.into()));
        self.cause.from = Some(from.clone());
        self.cause.name = decoded.packet.name();
        match decoded.packet {
            Packet::Publish(publish) if publish.qos == Qos::MinusOne => {
                self.cause.silence = true;
                self.heard(&from);
            }
            Packet::Advertise(_)
            | Packet::GwInfo(_)
            | Packet::ConnAck(_)
            | Packet::WillTopicReq
            | Packet::WillMsgReq
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::WillTopicResp(_)
            | Packet::WillMsgResp(_) => self.cause.silence = true,
            // In transparent mode nobody is served while the broker is away.
            Packet::SearchGw(_) if self.has_port_with_links(&from) => {}
            Packet::SearchGw(_) => self.cause.answer = Some(&["GWINFO"]),
            Packet::Connect(connect) => self.connect_in(&from, &connect, frame, ledger),
            Packet::WillTopic(will) => self.will_topic_in(&from, &will),
            Packet::WillMsg(will) => self.will_msg_in(&from, will.message, ledger),
            packet if self.asking.contains_key(&from) && !matches!(packet, Packet::Disconnect(_)) => {
                // It waits for the broker (Interpretation: R-027).
                self.cause.silence = true;
            }
            packet => {
                let answers = matches!(
                    packet,
                    Packet::RegAck(_)
                        | Packet::PubAck(_)
                        | Packet::PubComp(_)
                        | Packet::PubRec(_)
                        | Packet::PubRel(_)
                        | Packet::PingResp
                );
                if !answers {
                    self.abandon(&from, ledger);
                }
                let known = self.bound.get(&from).copied().or_else(|| self.woken_elsewhere(&from, &packet));
                let Some(who) = known else {
                    if matches!(packet, Packet::Disconnect(_)) {
                        self.handshakes.remove(&from);
                    }
                    self.cause.silence = answers;
                    return Ok(());
                };
                // What wakes a sleeper elsewhere says nothing about a handshake there.
                if !answers && !self.cause.rebound {
                    self.handshakes.remove(&from);
                }
                self.heard(&from);
                if let Some(session) = self.sessions.get_mut(&who) {
                    (session.connect, session.prompted) = (None, false);
                }
                self.session_in(who, &packet, ledger)?;
            }
        }
        Ok(())
    }

    /// PINGREQ of a sleeper may come from elsewhere, as far as the settings have it.
    pub(super) fn woken_elsewhere(&mut self, from: &Peer, packet: &Packet<'_>) -> Option<Who> {
        let Packet::PingReq(ping) = packet else { return None };
        let who = client(ping.client_id)?;
        let session = self.sessions.get_mut(&who)?;
        let old = session.peer.clone().filter(|_| matches!(session.state, State::Asleep | State::Awake))?;
        let same_ip = old.port == from.port
            && match (old.addr, from.addr) {
                (Address::Udp(a), Address::Udp(b)) => match (a.ip(), b.ip()) {
                    (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
                    (a, b) => a == b,
                },
                (a, b) => a == b,
            };
        let allowed = match self.settings.sessions.rebind {
            Rebind::None => false,
            Rebind::SameIp => same_ip,
            Rebind::Any => true,
        };
        if !allowed {
            return None;
        }
        session.peer = Some(from.clone());
        self.bound.remove(&old);
        self.bound.insert(from.clone(), who);
        self.cause.rebound = true;
        Some(who)
    }

    pub(super) fn heard(&mut self, from: &Peer) {
        if let Some(session) = self.bound.get(from).and_then(|who| self.sessions.get_mut(who)) {
            session.last_heard = self.now;
        }
    }

    fn has_port_with_links(&self, from: &Peer) -> bool {
        self.settings.ports[usize::from(from.port.0)].mode == Mode::Transparent
    }

    fn connect_in(&mut self, from: &Peer, connect: &Connect<'_>, frame: &Bytes, ledger: &Ledger) {
        self.cause.answer = Some(&["CONNACK", "WILLTOPICREQ"]);
        let Some(who) = client(connect.client_id) else { return };
        if self.bound.get(from) == Some(&who) {
            self.heard(from);
            if self.sessions.get(&who).is_some_and(|session| session.connect.as_ref() == Some(frame)) {
                return;
            }
        }
        if let Some(session) = self.bound.get(from).and_then(|who| self.sessions.get_mut(who)) {
            session.prompted = false;
        }
        if self.asking.get(from).is_some_and(|asking| asking.setup.frame.as_ref() == Some(frame)) {
            // It waits, as it did.
            self.cause.answer = None;
            return;
        }
        let (clean, keep_alive) = (connect.clean_session, Duration::from_secs(connect.duration.into()));
        if connect.will {
            self.abandon(from, ledger);
            let port = &self.settings.ports[usize::from(from.port.0)];
            let until = self.now + port.retry_interval * (port.retry_limit + 1);
            self.handshakes.insert(from.clone(), Handshake { who, clean, keep_alive, asked: false, until });
        } else {
            let will = if clean { WillChange::Delete } else { WillChange::Keep };
            let frame = Some(frame.clone());
            self.admit(from, Setup { who, dedicated: false, clean, keep_alive, will, frame });
        }
    }

    pub(super) fn will_topic_in(&mut self, from: &Peer, will: &WillTopic<'_>) {
        let who = self.handshakes.get(from).map(|handshake| handshake.who);
        if self.bound.get(from).copied() == who {
            self.heard(from);
        }
        let Some(handshake) = self.handshakes.get_mut(from) else { return };
        if will.topic.is_empty() {
            let &mut Handshake { who, clean, keep_alive, .. } = handshake;
            self.cause.answer = Some(&["CONNACK"]);
            let will = WillChange::Delete;
            self.admit(from, Setup { who, dedicated: false, clean, keep_alive, will, frame: None });
        } else {
            handshake.asked = true;
            self.cause.answer = Some(&["WILLMSGREQ", "CONNACK"]);
        }
    }

    pub(super) fn will_msg_in(&mut self, from: &Peer, message: &[u8], ledger: &Ledger) {
        let Some(handshake) = self.handshakes.get(from).filter(|handshake| handshake.asked) else {
            // A repetition, or nothing at all.
            let who = self.bound.get(from);
            if who.and_then(|who| self.sessions.get(who)).is_some_and(|session| session.prompted) {
                self.heard(from);
            }
            return;
        };
        let &Handshake { who, clean, keep_alive, .. } = handshake;
        let Some(no) = ledger.find(message) else { return };
        self.cause.answer = Some(&["CONNACK"]);
        let will = WillChange::Set(no);
        self.admit(from, Setup { who, dedicated: false, clean, keep_alive, will, frame: None });
    }

    /// All is said that a connection needs.
    fn admit(&mut self, from: &Peer, setup: Setup) {
        let dedicated = self.is_dedicated(setup.who, setup.clean, from.port);
        let setup = Setup { dedicated, ..setup };
        self.end_in_other_mode(&setup);
        self.cause.setup = Some(setup);
    }

    /// A frame from a client with a session.
    pub(super) fn session_in(&mut self, who: Who, packet: &Packet<'_>, ledger: &Ledger) -> Checked {
        if let Some(session) = self.sessions.get_mut(&who) {
            session.took_leave = false;
        }
        match packet {
            Packet::Register(register) => {
                self.cause.answer = Some(&["REGACK"]);
                self.cause.register = TopicName::new(register.topic_name).ok();
            }
            Packet::PingReq(ping) => self.pingreq_in(who, ping.client_id),
            Packet::Publish(publish) => self.publish_in(who, publish, ledger),
            Packet::Subscribe(subscribe) => self.subscribe_in(who, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe_in(who, unsubscribe, ledger),
            Packet::RegAck(ack) => self.regack_in(who, *ack, ledger),
            Packet::PubAck(ack) => self.puback_in(who, *ack, ledger)?,
            Packet::PubRec(MsgIdOnly { msg_id }) => self.pubrec_in(who, *msg_id, ledger)?,
            Packet::PubComp(MsgIdOnly { msg_id }) => {
                if let Some(session) = self.sessions.get_mut(&who) {
                    session.exchange.take_if(|open| open.msg_id == *msg_id && open.kind == Kind::Release);
                }
            }
            Packet::Disconnect(disconnect) => self.disconnect_in(who, disconnect.duration, ledger),
            Packet::WillTopicUpd(_) => self.cause.answer = Some(&["WILLTOPICRESP"]),
            Packet::WillMsgUpd(_) => self.cause.answer = Some(&["WILLMSGRESP"]),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn pingreq_in(&mut self, who: Who, id: &[u8]) {
        if !id.is_empty() && client(id) != Some(who) {
            self.cause.goodbye = Goodbye::Foreign;
            return;
        }
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        if session.overdue && session.state != State::Active {
            // Now it can be told.
            self.cause.dismissed.insert(who);
            self.cause.answer = Some(&["DISCONNECT"]);
            return;
        }
        match session.state {
            State::Active => self.cause.answer = Some(&["PINGRESP"]),
            // It goes on.
            State::Awake | State::Away => {}
            State::Asleep => {
                (session.state, session.watch) = (State::Awake, None);
                session.owed = session.queue.len();
                session.drain = session.queue.len() + SURPLUS;
                session.begin_anew(now);
                if !session.awaits_suback() && session.missed.is_none_or(|by| by < now) {
                    self.cause.answer = Some(&["PINGRESP", "REGISTER", "PUBLISH", "PUBREL"]);
                }
            }
        }
    }

    pub(super) fn disconnect_in(&mut self, who: Who, duration: Option<u16>, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let sleeps = duration.is_some_and(|seconds| seconds > 0);
        if duration.is_none() && session.told.is_some_and(|at| self.now < at + GUARD) {
            session.took_leave = true;
            return;
        }
        self.cause.goodbye = Goodbye::Answer;
        self.cause.answer = Some(&["DISCONNECT"]);
        if sleeps {
            session.sleep = Duration::from_secs(duration.unwrap_or(0).into());
            self.fall_asleep(who, ledger);
        } else {
            self.leave(who, ledger);
        }
    }

    /// nothing is sent, nothing is lost, and the broker waits for nothing.
    pub(super) fn fall_asleep(&mut self, who: Who, ledger: &Ledger) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        session.state = State::Asleep;
        session.owed = 0;
        session.watch = session.supervision();
        session.freeze(now, ledger);
        if session.dedicated {
            return;
        }
        for whom in self.blocks.values_mut() {
            whom.remove(&who);
        }
    }

    pub(super) fn publish_in(&mut self, who: Who, publish: &Publish<'_>, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        if publish.qos == Qos::AtMostOnce {
            return;
        }
        if let Some(no) = ledger.find(publish.data) {
            session.up.insert(publish.msg_id, (no, publish.qos));
        }
        let by = self.now + self.settings.broker.ack_timeout;
        session.unanswered.entry(("PUBLISH", publish.msg_id)).or_insert(by);
    }

    pub(super) fn subscribe_in(&mut self, who: Who, subscribe: &Subscribe<'_>) {
        let (filter, topic_id) = self.filter(who, subscribe.topic);
        let Some(session) = self.sessions.get_mut(&who) else { return };
        self.subscribed += 1;
        let by = self.now + self.settings.broker.ack_timeout;
        session.unanswered.entry(("SUBSCRIBE", subscribe.msg_id)).or_insert(by);
        if let Some(filter) = &filter {
            let (qos, since) = (subscribe.qos, self.subscribed);
            let new = Sub { qos, since, held: false, at_broker: None, doubtful: false, missed: false };
            let sub = session.subs.entry(filter.clone()).or_insert(new);
            sub.qos = subscribe.qos;
            session.changed.insert(filter.clone(), self.now);
            session.gone.remove(filter);
            *session.subscribes.entry(filter.clone()).or_default() += 1;
        }
        session.asked.insert(subscribe.msg_id, Asked { filter, topic_id, qos: subscribe.qos });
    }

    pub(super) fn unsubscribe_in(&mut self, who: Who, unsubscribe: &Unsubscribe<'_>, ledger: &Ledger) {
        self.cause.answer = Some(&["UNSUBACK"]);
        self.cause.msg_id = unsubscribe.msg_id;
        let (filter, _) = self.filter(who, unsubscribe.topic);
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let Some(filter) = filter else { return };
        session.subs.remove(&filter);
        session.gone.insert(filter.clone());
        session.changed.insert(filter.clone(), self.now);
        let Session { asked, unanswered, .. } = session;
        let same =
            |msg_id: u16| asked.get(&msg_id).is_some_and(|asked| asked.filter.as_ref() == Some(&filter));
        unanswered.retain(|(name, msg_id), _| *name != "SUBSCRIBE" || !same(*msg_id));
        self.drop_unwanted(who, ledger);
    }

    /// What waits and nobody wants any more may go, but not what is under way.
    pub(super) fn drop_unwanted(&mut self, who: Who, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        // Which message a REGISTER is for cannot be seen: none is held to be, and none will be missed.
        let open = match &session.exchange {
            Some(Exchange { kind: Kind::Publish { no, retain, .. }, .. }) => {
                (session.dedicated || !retain).then_some(*no)
            }
            _ => None,
        };
        let Session { subs, queue, .. } = session;
        let wanted = |no: No| subs.keys().any(|filter| filter.matches(&ledger.entry(no).topic));
        let mut dropped: Vec<No> = queue.iter().map(|(no, _)| *no).filter(|no| !wanted(*no)).collect();
        // The broker may have taken a message twice, and one copy of it wait behind the other.
        if let Some(at) = dropped.iter().position(|no| Some(*no) == open) {
            dropped.remove(at);
        }
        for no in dropped {
            self.settled(who, no, false);
        }
    }

    fn regack_in(&mut self, who: Who, ack: TopicAck, ledger: &Ledger) {
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let matches = |open: &mut Exchange| {
            open.msg_id == ack.msg_id && matches!(open.kind, Kind::Register(id, _) if id == ack.topic_id)
        };
        if let Some(Exchange { kind: Kind::Register(id, name), .. }) = session.exchange.take_if(matches)
            && ack.code == ReturnCode::Accepted
        {
            session.offered.remove(&name);
            session.interrupted.remove(&name);
            session.rounds.retain(|no, _| ledger.entry(*no).topic != name);
            session.known.insert(id);
            session.under_way = Some(name);
        }
    }

    pub(super) fn puback_in(&mut self, who: Who, ack: TopicAck, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let accepted = ack.code == ReturnCode::Accepted;
        let matches = |open: &mut Exchange| match open.kind {
            Kind::Publish { topic, qos, .. } => {
                let fits = open.msg_id == ack.msg_id && topic.raw() == ack.topic_id;
                // The first refusal may come twice.
                let late = open.repaired && open.sent < 2 && ack.code == ReturnCode::InvalidTopicId;
                fits && !late && (qos == Qos::AtLeastOnce || !accepted)
            }
            _ => false,
        };
        let Some(Exchange { kind: Kind::Publish { no, topic, qos, retain }, .. }) =
            session.exchange.take_if(matches)
        else {
            if ack.msg_id == 0 && ack.code == ReturnCode::InvalidTopicId {
                session.known.remove(&ack.topic_id);
            } else if accepted {
                self.cause.claimed = Some((who, ack.msg_id, Qos::AtLeastOnce));
            }
            return Ok(());
        };
        match ack.code {
            ReturnCode::Accepted => {
                Law::SensorHasIt.check(ledger.has(who, no), || format!("s{who} acknowledged m{no}"))?;
                self.settled(who, no, retain);
            }
            ReturnCode::InvalidTopicId => {
                session.under_way = Some(ledger.entry(no).topic.clone());
                if qos == Qos::ExactlyOnce {
                    session.resumable.push((ack.msg_id, no, qos, retain, None));
                }
                session.repairing.insert(no);
                if let TopicRef::Normal(id) = topic {
                    session.known.remove(&id);
                }
                if !session.wants(&ledger.entry(no).topic) {
                    // It unsubscribed while that was under way, and need not get it again.
                    self.settled(who, no, retain);
                }
            }
            _ => self.settled(who, no, retain),
        }
        Ok(())
    }

    pub(super) fn pubrec_in(&mut self, who: Who, msg_id: u16, ledger: &Ledger) -> Checked {
        let now = self.now;
        self.cause.msg_id = msg_id;
        self.cause.answer = Some(&["PUBREL"]);
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let matches = |open: &mut Exchange| {
            open.msg_id == msg_id && matches!(open.kind, Kind::Publish { qos: Qos::ExactlyOnce, .. })
        };
        let had = match session.exchange.take_if(matches) {
            Some(Exchange { kind: Kind::Publish { no, retain, .. }, .. }) => Some((no, retain)),
            _ => {
                self.cause.claimed = Some((who, msg_id, Qos::ExactlyOnce));
                None
            }
        };
        if let Some((no, retain)) = had {
            session.exchange = Some(Exchange::release(msg_id, now));
            Law::SensorHasIt.check(ledger.has(who, no), || format!("s{who} acknowledged m{no}"))?;
            self.settled(who, no, retain);
        }
        Ok(())
    }

    /// The client has what was to be sent to it again.
    pub(super) fn claim(&mut self, who: Who, msg_id: u16, qos: Qos) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&who) else { return };
        let Some((no, retain)) = session.take_resumable(msg_id, qos) else { return };
        if qos == Qos::ExactlyOnce {
            session.exchange = Some(Exchange::release(msg_id, now));
        }
        self.settled(who, no, retain);
    }
}
