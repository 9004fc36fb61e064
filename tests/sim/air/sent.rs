//! What the gateway says to clients.

use bytes::Bytes;
use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::io::{Peer, WirelessNodeId};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{
    FilterRef, MsgIdOnly, Packet, Publish, Qos, Register, ReturnCode, SubAck, TopicAck, TopicRef, decode,
};

use super::session::{Exchange, Kind, Session, State};
use super::{Air, GUARD, Goodbye, TOLD_EVERY, client_id, sheds};
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};

/// What the gateway sends.
impl Air {
    /// A frame leaves for `to`, which does not say the node yet.
    pub(crate) fn frame_out(
        &mut self,
        to: &Peer,
        frame: &Bytes,
        counters: &Counters,
        ledger: &Ledger,
    ) -> Checked {
        if self.blind {
            return Ok(());
        }
        self.shed = sheds(counters);
        let decoded = decode(frame);
        let decoded = decoded.map_err(|error| Law::Manners.broken(format!("a frame that {error}")))?;
        let mut to = to.clone();
        to.node = decoded.encapsulation.map(|e| WirelessNodeId(e.node_id.into()));
        self.cause.len = frame.len();
        let name = decoded.packet.name();
        let cause = self.cause.name;
        let answers = self.cause.from.as_ref() == Some(&to);
        Law::Silence.check(!self.cause.silence, || format!("{name} in answer to {cause}"))?;
        if answers && self.cause.answer.is_some_and(|answer| answer.contains(&name)) {
            self.cause.answer = None;
        }
        let who = self.bound.get(&to).copied();
        let mannered = match decoded.packet {
            Packet::Advertise(_) => true,
            Packet::GwInfo(_) => answers && cause == "SEARCHGW",
            Packet::ConnAck(ack) if !answers || !matches!(cause, "CONNECT" | "WILLTOPIC" | "WILLMSG") => {
                return self.connack_out(&to, ack.code, ledger);
            }
            Packet::ConnAck(_) => true,
            Packet::WillTopicReq => answers && cause == "CONNECT",
            Packet::WillMsgReq => answers && cause == "WILLTOPIC",
            Packet::PingResp => who.is_some(),
            Packet::UnsubAck(_) => answers && cause == "UNSUBSCRIBE",
            Packet::Disconnect(disconnect) => {
                disconnect.duration.is_none() && self.is_disconnect_due(&to, who, answers)
            }
            _ => who.is_some(),
        };
        Law::Manners
            .check(mannered, || format!("{name} to {to:?} after {cause} (session: {:?})", who.is_some()))?;
        let Some(who) = who else { return Ok(()) };
        self.cause.resumes.remove(&who);
        self.check_asleep(who, &decoded.packet, answers)?;
        match decoded.packet {
            Packet::PingResp => self.pingresp_out(who, answers),
            Packet::RegAck(ack) => self.regack_out(who, ack),
            Packet::SubAck(ack) => self.suback_out(who, ack, ledger),
            Packet::Register(register) => self.register_out(who, &register, ledger),
            Packet::Publish(publish) => self.publish_out(who, &publish, ledger),
            Packet::PubAck(ack) => self.puback_out(who, ack, ledger),
            Packet::PubRec(MsgIdOnly { msg_id }) => self.pubrec_out(who, msg_id, ledger),
            Packet::PubRel(MsgIdOnly { msg_id }) => self.pubrel_out(who, msg_id),
            Packet::PubComp(MsgIdOnly { msg_id }) => self.pubcomp_out(who, msg_id, ledger),
            _ => Ok(()),
        }
    }

    /// Whether this peer is to be told that its session, if it has one, is over.
    pub(super) fn is_disconnect_due(&mut self, to: &Peer, who: Option<Who>, answers: bool) -> bool {
        if let Some(told) = &mut self.leaving {
            let active = who.and_then(|who| self.sessions.get(&who)).is_some_and(Session::is_active);
            if let Some(who) = who
                && active
            {
                return told.insert(who);
            }
        }
        if self.cause.farewells.remove(to) {
            self.told.insert(to.clone(), self.now);
            return true;
        }
        if !answers {
            let due = self.cause.superseded.take_if(|old| old == to).is_some();
            self.told.insert(to.clone(), self.now);
            return due;
        }
        let guard = if self.cause.name == "DISCONNECT" { GUARD } else { TOLD_EVERY };
        match self.cause.goodbye {
            Goodbye::Answer => return true,
            Goodbye::Foreign if who.is_none() => return false,
            Goodbye::Stranger if who.is_some() => return false,
            Goodbye::Foreign | Goodbye::Stranger => {}
        }
        if let Some(session) = who.and_then(|who| self.sessions.get_mut(&who)) {
            session.told = Some(self.now);
        }
        let before = self.told.insert(to.clone(), self.now);
        before.is_none_or(|at| at + guard <= self.now)
    }

    /// G4: what is asleep is sent nothing but answers.
    pub(super) fn check_asleep(&self, who: Who, packet: &Packet<'_>, answers: bool) -> Checked {
        if self.sessions.get(&who).is_none_or(|session| session.state != State::Asleep) {
            return Ok(());
        }
        let unsolicited = match packet {
            Packet::Publish(_) | Packet::Register(_) | Packet::PingReq(_) | Packet::PingResp => true,
            Packet::PubRel(_) => !(answers && self.cause.name == "PUBREC"),
            _ => false,
        };
        Law::QuietSleep
            .check(!unsolicited, || format!("s{who} is asleep and is sent {} unasked", packet.name()))
    }

    /// PINGRESP answers at once, or ends a drain in which everything left that waited when it began (G4, R-133).
    pub(super) fn pingresp_out(&mut self, who: Who, answers: bool) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        if session.state == State::Active {
            return Law::Manners.check(answers && self.cause.name == "PINGREQ", || {
                format!("PINGRESP to s{who} after {}", self.cause.name)
            });
        }
        Law::DrainComplete.check(session.exchange.is_none() && !session.awaits_suback(), || {
            format!("PINGRESP to s{who} before everything was answered")
        })?;
        session.state = State::Asleep;
        session.last_heard = self.now;
        session.watch = session.supervision();
        let shed: Vec<No> = (0..session.owed).filter_map(|_| session.take(0)).collect();
        self.vanished += shed.len() as u64;
        shed.into_iter().for_each(|no| self.unblock(who, no));
        Law::DrainComplete
            .check(self.vanished <= self.shed, || format!("PINGRESP to s{who} before everything was sent"))
    }

    /// After all outputs of one event.
    pub(crate) fn end(&mut self, ledger: &Ledger) -> Checked {
        if self.blind {
            return Ok(());
        }
        self.refuse_unheard(ledger);
        if let Some(who) = self.cause.resumes.first() {
            return Err(
                Law::CutOff.broken(format!("s{who} can be reached again, and what waited does not go on"))
            );
        }
        if let Some(old) = self.cause.superseded.take() {
            return Err(Law::Manners.broken(format!("{old:?} was not told that its session is elsewhere")));
        }
        if let Some(untold) = self.cause.farewells.first() {
            return Err(Law::Grace.broken(format!("{untold:?} was not told that its link is lost")));
        }
        if let Some(peer) = &self.cause.connack {
            return Err(Law::BrokerDecides.broken(format!("{peer:?} was accepted and has no CONNACK")));
        }
        self.check_asking()?;
        if let Some(answer) = self.cause.answer.take() {
            let name = self.cause.name;
            return Err(Law::Answered.broken(format!("{name} was not answered by any of {answer:?}")));
        }
        for (who, session) in &self.sessions {
            let drained = session.exchange.is_none()
                && !session.awaits_suback()
                && session.missed.is_none_or(|by| by < self.now);
            Law::Answered.check(session.state != State::Awake || !drained, || {
                format!("s{who} is awake for nothing and has no PINGRESP")
            })?;
            if let Some(((name, msg_id), _)) = session.unanswered.iter().find(|(_, by)| **by < self.now) {
                return Err(Law::Answered.broken(format!("{name} {msg_id:#06x} of s{who} waits too long")));
            }
        }
        Ok(())
    }

    pub(super) fn regack_out(&mut self, who: Who, ack: TopicAck) -> Checked {
        if ack.code != ReturnCode::Accepted {
            return Ok(());
        }
        let Some(name) = self.cause.register.take() else {
            return Err(Law::Manners.broken("REGACK without REGISTER"));
        };
        self.assigned(who, ack.topic_id, &name)
    }

    /// The client is told that `id` stands for `name`.
    pub(super) fn assigned(&mut self, who: Who, id: u16, name: &TopicName) -> Checked {
        self.stable(who, id, name)?;
        if let Some(session) = self.sessions.get_mut(&who) {
            session.known.insert(id);
        }
        Ok(())
    }

    pub(super) fn stable(&mut self, who: Who, id: u16, name: &TopicName) -> Checked {
        let own = self.settings.client_predefined.get(&client_id(who));
        let predefined =
            self.settings.predefined.contains_key(&id) || own.is_some_and(|own| own.contains_key(&id));
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let before = session.ids.insert(id, name.clone());
        let others = session.ids.iter().any(|(other, named)| *other != id && named == name);
        let fair =
            id != 0 && id != 0xFFFF && !predefined && !others && before.as_ref().is_none_or(|b| b == name);
        Law::IdsStable.check(fair, || format!("s{who} is given {id:#06x} for {name}, which was {before:?}"))
    }

    pub(super) fn suback_out(&mut self, who: Who, ack: SubAck, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.unanswered.remove(&("SUBSCRIBE", ack.msg_id));
        let Some(asked) = session.asked.get(&ack.msg_id).cloned() else {
            return Err(Law::Manners.broken(format!("SUBACK {:#06x} to s{who} answers nothing", ack.msg_id)));
        };
        let Some(filter) = asked.filter else {
            return Law::Manners.check(ack.code != ReturnCode::Accepted, || {
                format!("s{who} is granted a subscription to nothing")
            });
        };
        if ack.code != ReturnCode::Accepted {
            let Session { subs, asked, unanswered, .. } = session;
            let same = |id: u16| asked.get(&id).is_some_and(|asked| asked.filter.as_ref() == Some(&filter));
            let again = unanswered.keys().any(|(name, id)| *name == "SUBSCRIBE" && same(*id));
            match subs.get_mut(&filter) {
                Some(sub) if sub.held || sub.doubtful || again => sub.doubtful = true,
                _ => {
                    session.subs.remove(&filter);
                    self.drop_unwanted(who, ledger);
                }
            }
            return Ok(());
        }
        Law::Manners.check(ack.qos <= asked.qos, || format!("s{who} is granted more than it asked for"))?;
        if let Some(sub) = session.subs.get_mut(&filter) {
            (sub.qos, sub.held, sub.doubtful, sub.missed) = (ack.qos, true, false, false);
        }
        match (asked.topic_id, filter.as_topic()) {
            (Some(id), _) => Law::IdsStable.check(ack.topic_id == id, || {
                format!("SUBACK to s{who} says {:#06x} and not {id:#06x}", ack.topic_id)
            }),
            (None, Some(name)) => self.assigned(who, ack.topic_id, &name),
            (None, None) => Ok(()),
        }
    }

    fn register_out(&mut self, who: Who, register: &Register<'_>, ledger: &Ledger) -> Checked {
        let name = TopicName::new(register.topic_name);
        let name = name.map_err(|_| Law::IdsStable.broken("REGISTER of something that is no topic"))?;
        let Register { topic_id, msg_id, .. } = *register;
        Law::MsgIds.check(msg_id != 0, || format!("REGISTER to s{who} has MsgId 0"))?;
        self.stable(who, topic_id, &name)?;
        let Some(session) = self.sessions.get(&who) else { return Ok(()) };
        let needless = session.known.contains(&topic_id) && !self.is_open(who, msg_id);
        Law::IdsStable.check(!needless, || format!("s{who} knows {topic_id:#06x} and is told of it"))?;
        // What it may have had already is finished, also after its name has rested.
        let begun = session.resumable.iter().any(|(_, no, ..)| ledger.entry(*no).topic == name);
        let wanted =
            begun || session.wants(&name) || session.inherited || session.under_way.as_ref() == Some(&name);
        let wanted = wanted || session.interrupted.contains(&name);
        Law::DownlinkWanted.check(wanted || self.is_open(who, msg_id), || {
            format!("{name} is registered at s{who}, which does not want it")
        })?;
        if let Some(session) = self.sessions.get_mut(&who) {
            session.offered.entry(name.clone()).or_insert(self.now);
            session.resting.remove(&name);
            session.silent = false;
        }
        self.sent(who, msg_id, Kind::Register(topic_id, name), false)
    }

    pub(super) fn is_open(&self, who: Who, msg_id: u16) -> bool {
        let session = self.sessions.get(&who);
        session.and_then(|session| session.exchange.as_ref()).is_some_and(|open| open.msg_id == msg_id)
    }

    pub(super) fn publish_out(&mut self, who: Who, publish: &Publish<'_>, ledger: &Ledger) -> Checked {
        let &Publish { qos, retain, topic, msg_id, data, .. } = publish;
        let Some(no) = ledger.find(data) else {
            return Err(Law::DownlinkFaithful.broken(format!("s{who} is sent {data:?} that nobody sent")));
        };
        let entry = ledger.entry(no);
        Law::MsgIds.check((msg_id == 0) == (qos == Qos::AtMostOnce), || {
            format!("PUBLISH of QoS {qos:?} to s{who} has MsgId {msg_id:#06x}")
        })?;
        let most = entry.qos.max(Qos::AtMostOnce);
        let repeated = self.is_open(who, msg_id) && qos != Qos::AtMostOnce;
        let name = self.resolve(who, topic, repeated)?;
        let faithful =
            name == entry.topic && qos != Qos::MinusOne && qos <= most && (!retain || entry.retain);
        Law::DownlinkFaithful
            .check(faithful, || format!("m{no} on {} is sent as {publish:?}", entry.topic))?;
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let at = session.resumable.iter().position(|(id, sent, ..)| (*id, *sent) == (msg_id, no));
        let before = at.map(|at| session.resumable.remove(at));
        let resumed = before.is_some();
        let named = before.and_then(|(.., named)| named);
        Law::Retransmission.check(named.is_none_or(|named| named == topic), || {
            format!("m{no} is sent again to s{who} on {topic:?} and was on {named:?}")
        })?;
        let repaired = session.repairing.contains(&no);
        if !repeated && !resumed {
            self.check_new(who, publish, no, ledger)?;
        }
        self.publish_leaves(who, publish, no, resumed, repaired)
    }

    /// A message leaves for a client for the first time.
    fn check_new(&mut self, who: Who, publish: &Publish<'_>, no: No, ledger: &Ledger) -> Checked {
        let &Publish { dup, retain, .. } = publish;
        let entry = ledger.entry(no);
        let on_own = self.came_on_own(who, no);
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        Law::Retransmission.check(!dup, || format!("m{no} is new to s{who} and has DUP"))?;
        let wanted = session.wants(&entry.topic)
            || session.inherited
            || session.under_way.take() == Some(entry.topic.clone());
        Law::DownlinkWanted.check(wanted, || format!("s{who} is sent m{no} and does not want it"))?;
        if session.repairing.contains(&no) {
            return Ok(());
        }
        if retain && !session.dedicated {
            let subscribes = session.subscribes.iter().filter(|(f, _)| f.matches(&entry.topic));
            let due: u32 = subscribes.map(|(_, count)| count).sum();
            let count = session.hand_outs.entry(no).or_default();
            *count += 1;
            return Law::OneHandOut.check(*count <= due, || {
                format!("s{who} subscribed {due} times and is sent the retained m{no} {count} times")
            });
        }
        let copies = self.copies.get(&no);
        // As long as the broker has yet to answer for one of its filters, it may have it from before on another link.
        let changed = copies.is_some_and(|copies| session.has_changed(&entry.topic, copies.since));
        let changed =
            changed || (self.has_lanes && session.matching(&entry.topic).any(|(.., on)| on.is_none()));
        let came = copies.map_or(0, |copies| copies.due(entry.at_broker, changed));
        let came = if session.dedicated { on_own } else { came };
        let count = session.copies.entry(no).or_default();
        *count += 1;
        Law::OneCopy.check(*count <= came, || {
            format!("m{no} came {came} times and is sent to s{who} {count} times")
        })?;
        // Of what came twice nobody can tell which copy this is.
        if came == 1 { self.overtaken(who, no, ledger) } else { Ok(()) }
    }

    /// The PUBLISH is what it should be: from now on it is open.
    fn publish_leaves(
        &mut self,
        who: Who,
        publish: &Publish<'_>,
        no: No,
        resumed: bool,
        repaired: bool,
    ) -> Checked {
        let &Publish { dup, qos, retain, topic, msg_id, .. } = publish;
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.repairing.remove(&no);
        session.under_way = None;
        if qos == Qos::AtMostOnce {
            self.settled(who, no, retain);
            return Ok(());
        }
        Law::Retransmission
            .check(dup || !resumed || repaired, || format!("m{no} is sent again to s{who} without DUP"))?;
        self.sent(who, msg_id, Kind::Publish { no, topic, qos, retain }, dup)?;
        if resumed
            && repaired
            && let Some(open) = self.sessions.get_mut(&who).and_then(|session| session.exchange.as_mut())
        {
            open.repaired = true;
        }
        Ok(())
    }

    /// Messages leave in the order in which they came (G4); what is passed over was shed by a limit. A drain has an end.
    pub(super) fn overtaken(&mut self, who: Who, no: No, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let Some(at) = session.queue.iter().position(|(waiting, _)| *waiting == no) else { return Ok(()) };
        if session.state == State::Awake {
            Law::DrainComplete.check(session.drain > 0, || format!("the drain of s{who} has no end"))?;
            session.drain -= 1;
        }
        let topic = &ledger.entry(no).topic;
        let mut passed = Vec::new();
        for at in (0..at).rev() {
            let (before, _) = session.queue[at];
            if !session.overtaking || ledger.entry(before).topic == *topic {
                passed.extend(session.take(at));
            }
        }
        for &no in &passed {
            self.unblock(who, no);
        }
        self.vanished += passed.len() as u64;
        Law::InOrder.check(self.vanished <= self.shed, || {
            format!("s{who} is sent m{no} before {passed:?}, {} vanished, {} shed", self.vanished, self.shed)
        })
    }

    /// What a PUBLISH to this client is on. One that is `repeated` stays what it was.
    pub(super) fn resolve(&self, who: Who, topic: TopicRef, repeated: bool) -> Checked<TopicName> {
        let Some(session) = self.sessions.get(&who) else {
            return Err(Law::Manners.broken(format!("PUBLISH to s{who}, which has no session")));
        };
        let name = match topic {
            TopicRef::Normal(id) => {
                Law::IdsAnnounced.check(repeated || session.known.contains(&id), || {
                    format!("PUBLISH to s{who} on {id:#06x}, which it was not told of in this connection")
                })?;
                session.ids.get(&id).cloned()
            }
            TopicRef::Predefined(id) => self.predefined(who, id),
            TopicRef::Short(name) => TopicName::new(name).ok(),
            TopicRef::Reserved(_) => None,
        };
        name.ok_or_else(|| Law::DownlinkFaithful.broken(format!("PUBLISH to s{who} on nothing: {topic:?}")))
    }

    pub(super) fn predefined(&self, who: Who, id: u16) -> Option<TopicName> {
        let own = self.settings.client_predefined.get(&client_id(who)).and_then(|own| own.get(&id));
        own.or_else(|| self.settings.predefined.get(&id)).cloned()
    }

    /// A request left for a client: a new one, or a repetition of the one that is open.
    pub(super) fn sent(&mut self, who: Who, msg_id: u16, kind: Kind, dup: bool) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let port = session.peer.as_ref().map_or(0, |peer| usize::from(peer.port.0));
        let port = &self.settings.ports[port];
        let (now, len) = (self.now, self.cause.len);
        let Some(open) = &mut session.exchange else {
            session.exchange = Some(Exchange { len, ..Exchange::new(kind, msg_id, now) });
            return Ok(());
        };
        open.len = len;
        Law::OneExchange.check(open.msg_id == msg_id && open.kind == kind, || {
            format!("s{who} is sent {kind:?} while {:?} ({:#06x}) is open", open.kind, open.msg_id)
        })?;
        let marked = dup || !matches!(kind, Kind::Publish { .. });
        if session.state == State::Awake && self.cause.name == "PINGREQ" && open.sent > 0 {
            // asked again, it gets it again, once.
            let first = !std::mem::replace(&mut self.cause.repeated, true);
            return Law::Retransmission
                .check(first && marked, || format!("s{who} is sent {kind:?} again, DUP {dup}"));
        }
        let paced = open.sent == 0 || open.last + port.retry_interval <= now;
        open.sent += 1;
        open.last = now;
        if open.sent == 1 {
            open.first = now;
        }
        if open.sent == 2 && !session.dedicated {
            // From here on the broker does not wait for what this client has yet to take, but for the open message.
            let open_no = match kind {
                // Unless another copy of it waits behind: the broker had sent it again.
                Kind::Publish { no, retain: false, .. }
                    if self.copies.get(&no).is_none_or(|copies| !copies.are_several()) =>
                {
                    Some(no)
                }
                _ => None,
            };
            for ((_, no), whom) in &mut self.blocks {
                if Some(*no) != open_no {
                    whom.remove(&who);
                }
            }
        }
        Law::Retransmission.check(marked && paced && open.sent <= port.retry_limit + 1, || {
            format!("s{who} is sent {kind:?} for time {}, DUP {dup}, in time {paced}", open.sent)
        })
    }

    pub(super) fn puback_out(&mut self, who: Who, ack: TopicAck, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.unanswered.remove(&("PUBLISH", ack.msg_id));
        if ack.code != ReturnCode::Accepted {
            return Ok(());
        }
        let acked = match session.up.get(&ack.msg_id) {
            Some((no, Qos::AtLeastOnce)) => ledger.entry(*no).acked,
            _ => false,
        };
        Law::AckedByBroker.check(acked, || format!("PUBACK {:#06x} to s{who} comes of nothing", ack.msg_id))
    }

    pub(super) fn pubrec_out(&mut self, who: Who, msg_id: u16, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        session.unanswered.remove(&("PUBLISH", msg_id));
        let received = match session.up.get(&msg_id) {
            Some((no, Qos::ExactlyOnce)) => ledger.entry(*no).received || ledger.entry(*no).acked,
            _ => false,
        };
        Law::AckedByBroker.check(received, || format!("PUBREC {msg_id:#06x} to s{who} comes of nothing"))
    }

    /// PUBCOMP for an unknown MsgId is the right answer.
    pub(super) fn pubcomp_out(&mut self, who: Who, msg_id: u16, ledger: &Ledger) -> Checked {
        let Some(session) = self.sessions.get_mut(&who) else { return Ok(()) };
        let acked = match session.up.get(&msg_id) {
            Some((no, Qos::ExactlyOnce)) => ledger.entry(*no).acked,
            _ => true,
        };
        Law::AckedByBroker.check(acked, || format!("PUBCOMP {msg_id:#06x} to s{who} comes of nothing"))
    }

    /// A repetition of ours, or the answer to a PUBREC, however late.
    pub(super) fn pubrel_out(&mut self, who: Who, msg_id: u16) -> Checked {
        let asked = self.cause.name == "PUBREC" && self.cause.msg_id == msg_id;
        if asked {
            if let Some(open) = self.sessions.get_mut(&who).and_then(|session| session.exchange.as_mut())
                && open.msg_id == msg_id
                && open.kind == Kind::Release
                && open.sent == 0
            {
                open.sent = 1;
            }
            return Ok(());
        }
        Law::OneExchange
            .check(self.is_open(who, msg_id), || format!("PUBREL {msg_id:#06x} comes of nothing"))?;
        self.sent(who, msg_id, Kind::Release, false)
    }

    /// What a client subscribes to, and the topic id its SUBACK must have unless that is the id of a name.
    pub(super) fn filter(&self, who: Who, topic: FilterRef<'_>) -> (Option<TopicFilter>, Option<u16>) {
        match topic {
            FilterRef::Name(name) => {
                let filter = TopicFilter::new(name).ok();
                let id = filter.as_ref().and_then(|filter| filter.has_wildcard().then_some(0));
                (filter, id)
            }
            FilterRef::Short(name) => (TopicFilter::new(name).ok(), Some(u16::from_be_bytes(name))),
            FilterRef::Predefined(id) => {
                let name = self.predefined(who, id);
                (name.and_then(|name| TopicFilter::new(name.as_str()).ok()), Some(id))
            }
            FilterRef::Reserved(_) => (None, None),
        }
    }
}
