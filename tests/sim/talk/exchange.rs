//! The one request to a client that may be open (§6.6, §6.13).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mqtt_sn_gateway::gateway::io::PortSettings;
use mqtt_sn_gateway::gateway::record::{ClientKey, Key, Row};
use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::wire::{MsgIdOnly, Packet, Publish, Qos, Register, ReturnCode, TopicRef};

use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::store::{Store, client};

/// How often a message goes through all its repetitions with a client that is heard (Interpretation: R-113).
const ROUNDS: u32 = 3;

/// What is under way with a client.
#[derive(Default)]
pub(super) struct Talking {
    open: Option<Open>,
    /// What is open may be put back, because the connection changed: what leaves next decides.
    pub(super) loose: bool,
    /// What left may not have been seen, because the store failed.
    pub(super) murky: bool,
    /// The session is over. What has waited for the store may still leave, until the client is told that it has another one.
    ended: bool,
    /// Messages by the MsgIds under which they left, or may have, and are to be repeated.
    resumable: BTreeMap<u16, (No, Qos)>,
    /// MsgIds of which the client did not know the topic id.
    refused: BTreeSet<u16>,
    /// PUBRECs that are to be answered.
    received: BTreeMap<u16, u32>,
    /// PUBRELs that were without an answer when the process died.
    releasing: BTreeSet<u16>,
    /// Messages that left in this session, and the last MsgIds of those of QoS 2.
    left: BTreeSet<(No, bool)>,
    exact: BTreeMap<No, u16>,
    by_id: BTreeMap<u16, No>,
    /// What the client has said that it has, or does not want.
    has: BTreeSet<No>,
    /// What was open last, and when that was over: a repetition that was made before may leave after that.
    closed: Option<(Kind, u16, Instant)>,
    /// PINGREQs that may have brought a repetition.
    asked: u32,
    /// What had waited for the store when its transport went down was never sent, and may be marked as a repetition.
    cut_off: bool,
    /// Octets of the PUBLISH or REGISTER that leaves.
    pub(super) len: usize,
}

struct Open {
    kind: Kind,
    msg_id: u16,
    /// How often it was sent: since it may have begun anew, and at most.
    sent: u32,
    most: u32,
    rounds: u32,
    /// When it first left, and when it was last made, at the earliest.
    first: Instant,
    last: Instant,
    /// Octets of the frame.
    len: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Register(u16),
    Publish(No, TopicRef, Qos),
    Release,
}

/// When a frame was made, at the earliest, and when it leaves.
type Times = (Instant, Instant);

impl Open {
    fn new(kind: Kind, msg_id: u16, (made, now): Times) -> Self {
        Self { kind, msg_id, sent: 1, most: 1, rounds: 0, first: now, last: made, len: 0 }
    }

    /// Whether all repetitions are over.
    fn is_exhausted(&self, port: &PortSettings, now: Instant) -> bool {
        self.most > port.retry_limit && self.last + port.retry_interval <= now
    }
}

impl Talking {
    /// The session is over.
    pub(super) fn end_session(&mut self) {
        self.ended = true;
    }

    /// The client is told that it is connected. It may be about the session that is over, which it `has` no more.
    pub(super) fn connected(&mut self, has: bool) {
        if self.ended && has {
            *self = Self::default();
        }
        self.loose = true;
    }

    /// Whether nobody can tell what has left before.
    fn is_dim(&self) -> bool {
        self.murky || self.ended
    }

    /// The process dies.
    pub(super) fn died(&mut self, who: Who, store: &Store, ledger: &Ledger) {
        if store.session(who).is_none() {
            *self = Self::default();
        }
        (self.open, self.loose, self.murky, self.ended, self.asked) = (None, true, false, false, 0);
        self.cut_off = false;
        self.received.clear();
        self.releasing.clear();
        self.resumable.clear();
        for row in store.rows().filter(|row| client(&row.key()) == Some(who)) {
            match row {
                Row::Releasing(_, msg_id) => _ = self.releasing.insert(*msg_id),
                Row::Waiting(id, number, waiting) if waiting.qos == QoS::ExactlyOnce => {
                    let key = Key::Client(id.clone(), ClientKey::Waiting(*number));
                    if let (Some(msg_id), Some(no)) = (waiting.sent_as, store.message_of(&key, ledger)) {
                        self.resumable.insert(msg_id, (no, Qos::ExactlyOnce));
                    }
                }
                _ => {}
            }
        }
    }

    /// Its transport is down.
    pub(super) fn cut_off(&mut self) {
        self.cut_off = true;
    }

    /// It can be reached again: what is open begins anew.
    pub(super) fn is_back(&mut self) {
        self.open.take_if(|open| open.kind != Kind::Release);
        if let Some(open) = &mut self.open {
            (open.sent, open.most, open.rounds) = (0, 0, 0);
        }
        self.loose = true;
    }

    /// A PINGREQ: what is open may be repeated at once (Interpretation: R-135), or begins anew.
    pub(super) fn asked_again(&mut self) {
        self.asked += 1;
        self.loose = true;
    }

    /// Whether the client has said that it has a message.
    pub(super) fn has(&self, no: No) -> bool {
        self.has.contains(&no)
    }

    /// Whether a message leaves for the client for the first time in this session.
    pub(super) fn is_new(&self, no: No, publish: &Publish<'_>) -> bool {
        !self.left.contains(&(no, publish.retain))
    }

    /// Whether the client was not heard for all repetitions of what is open.
    pub(super) fn is_deaf(&self, heard: Instant, port: &PortSettings, now: Instant) -> bool {
        let open = self.open.as_ref();
        self.is_dim() || open.is_some_and(|open| open.is_exhausted(port, now) && heard <= open.first)
    }

    /// The client says something.
    pub(super) fn hear(&mut self, packet: &Packet<'_>, now: Instant) {
        let before = self.open.as_ref().map(|open| (open.kind.clone(), open.msg_id));
        self.follow(packet);
        let after = self.open.as_ref().map(|open| (open.kind.clone(), open.msg_id));
        if let Some((kind, msg_id)) = before.filter(|before| Some(before) != after.as_ref()) {
            self.closed = Some((kind, msg_id, now));
        }
    }

    /// Whether what leaves was made when it was open, and that is over.
    fn is_late(&self, kind: &Kind, msg_id: u16, made: Instant) -> bool {
        let closed = self.closed.as_ref();
        closed.is_some_and(|(was, id, at)| was == kind && *id == msg_id && made <= *at)
    }

    fn follow(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::RegAck(ack) => {
                self.open
                    .take_if(|open| open.msg_id == ack.msg_id && open.kind == Kind::Register(ack.topic_id));
            }
            Packet::PubAck(ack) => {
                if ack.code == ReturnCode::InvalidTopicId {
                    self.refused.insert(ack.msg_id);
                    // It may be a copy of the refusal before.
                    self.loose |= self.open.as_ref().is_some_and(|open| open.msg_id == ack.msg_id);
                    return;
                }
                let accepted = ack.code == ReturnCode::Accepted;
                self.has.extend(self.by_id.get(&ack.msg_id));
                let resumed = self.resumable.get(&ack.msg_id);
                let resumed = resumed.is_some_and(|(_, qos)| *qos == Qos::AtLeastOnce || !accepted);
                let ends = |open: &mut Open| match open.kind {
                    Kind::Publish(_, topic, qos) => {
                        open.msg_id == ack.msg_id
                            && topic.raw() == ack.topic_id
                            && (qos == Qos::AtLeastOnce || !accepted)
                    }
                    // It answers the PUBLISH of an earlier connection.
                    Kind::Register(id) => resumed && id == ack.topic_id,
                    Kind::Release => false,
                };
                self.open.take_if(ends);
                self.resumable
                    .retain(|id, (_, qos)| *id != ack.msg_id || (accepted && *qos > Qos::AtLeastOnce));
            }
            Packet::PubRec(MsgIdOnly { msg_id }) => {
                *self.received.entry(*msg_id).or_default() += 1;
                self.has.extend(self.by_id.get(msg_id));
                let resumed = self.resumable.remove(msg_id).is_some();
                let is_it = |open: &mut Open| match open.kind {
                    Kind::Publish(.., qos) => open.msg_id == *msg_id && qos == Qos::ExactlyOnce,
                    // It answers the PUBLISH of an earlier connection.
                    Kind::Register(_) => resumed,
                    Kind::Release => false,
                };
                if let Some(open) = self.open.take_if(is_it) {
                    self.open = Some(Open { kind: Kind::Release, msg_id: *msg_id, sent: 0, most: 0, ..open });
                } else if self.open.is_none() && resumed {
                    self.releasing.insert(*msg_id);
                }
            }
            Packet::PubComp(MsgIdOnly { msg_id }) => {
                self.open.take_if(|open| open.msg_id == *msg_id && open.kind == Kind::Release);
                self.releasing.remove(msg_id);
            }
            _ => {}
        }
    }

    pub(super) fn register(
        &mut self,
        who: Who,
        register: &Register<'_>,
        port: &PortSettings,
        times: Times,
    ) -> Checked {
        self.request(who, Kind::Register(register.topic_id), register.msg_id, port, times)
    }

    /// A PUBLISH leaves; `one`: of its message there is one copy.
    pub(super) fn publish(
        &mut self,
        who: Who,
        no: No,
        publish: &Publish<'_>,
        one: bool,
        port: &PortSettings,
        times: Times,
    ) -> Checked {
        let &Publish { dup, qos, retain, topic, msg_id, .. } = publish;
        self.left.insert((no, retain));
        if qos == Qos::AtMostOnce {
            return Ok(());
        }
        if self.is_late(&Kind::Publish(no, topic, qos), msg_id, times.0) {
            return Ok(());
        }
        let again = self.resumable.get(&msg_id) == Some(&(no, qos));
        let refused = self.refused.contains(&msg_id);
        let cut_off = std::mem::take(&mut self.cut_off) && dup;
        Law::Retransmission.check(dup == again || refused || cut_off || self.is_dim(), || {
            format!("m{no} is sent to s{who} as {msg_id:#06x}, DUP {dup}, it left before: {again}")
        })?;
        if qos == Qos::ExactlyOnce {
            let before = self.exact.insert(no, msg_id);
            // One of several copies is another message.
            let same = !one || again || self.is_dim() || before.is_none_or(|before| before == msg_id);
            Law::Retransmission
                .check(same, || format!("m{no} is sent to s{who} as {msg_id:#06x} and was as {before:?}"))?;
        }
        if !again {
            self.refused.remove(&msg_id);
        }
        self.resumable.insert(msg_id, (no, qos));
        self.by_id.insert(msg_id, no);
        self.request(who, Kind::Publish(no, topic, qos), msg_id, port, times)
    }

    pub(super) fn pubrel(&mut self, who: Who, msg_id: u16, port: &PortSettings, times: Times) -> Checked {
        let asked = self.received.get_mut(&msg_id).filter(|count| **count > 0);
        let is_asked = asked.is_some();
        asked.into_iter().for_each(|count| *count -= 1);
        let is_open = |open: &Open| open.msg_id == msg_id && open.kind == Kind::Release;
        match self.open.as_mut().filter(|open| is_open(open)) {
            Some(open) if open.sent == 0 => {
                *open = Open::new(Kind::Release, msg_id, times);
                return Ok(());
            }
            Some(_) if is_asked => return Ok(()),
            Some(_) => {}
            None if self.releasing.remove(&msg_id) => {
                // It goes on behind the one that left before the crash.
                self.request(who, Kind::Release, msg_id, port, times)?;
                self.open.iter_mut().for_each(|open| open.most += 1);
                return Ok(());
            }
            None if is_asked => return Ok(()),
            None => {
                let fair = self.loose || self.is_dim();
                Law::OneExchange
                    .check(fair, || format!("PUBREL {msg_id:#06x} to s{who} comes of nothing"))?;
            }
        }
        self.request(who, Kind::Release, msg_id, port, times)
    }

    /// A request leaves: a new one, or a repetition of the one that is open.
    fn request(&mut self, who: Who, kind: Kind, msg_id: u16, port: &PortSettings, times: Times) -> Checked {
        let (made, now) = times;
        if self.is_late(&kind, msg_id, made) {
            return Ok(());
        }
        let (free, dim) = (std::mem::take(&mut self.loose), self.is_dim());
        let len = if kind == Kind::Release { 0 } else { self.len };
        let Some(open) = &mut self.open else {
            self.open = Some(Open { len, ..Open::new(kind, msg_id, times) });
            return Ok(());
        };
        let exhausted = open.is_exhausted(port, now);
        // What is too long for what its transport takes by now is dropped instead of sent again.
        let outgrown = open.len > port.mtu;
        open.len = len;
        if open.msg_id != msg_id || open.kind != kind {
            Law::OneExchange.check(free || dim || exhausted || outgrown, || {
                format!(
                    "s{who} is sent {kind:?} ({msg_id:#06x}) while {:?} ({:#06x}) is open",
                    open.kind, open.msg_id
                )
            })?;
            self.open = Some(Open { len, ..Open::new(kind, msg_id, times) });
            return Ok(());
        }
        if free {
            // It goes on, or begins anew.
            *open = Open { most: open.most + 1, len, ..Open::new(kind, msg_id, times) };
            return Ok(());
        }
        if exhausted && open.sent <= port.retry_limit {
            // Either it begins its next round, or it had begun anew and goes on.
            (open.most, open.sent) = (open.sent + 1, 1);
            (open.first, open.last) = (now, made);
        } else if exhausted {
            (open.sent, open.most, open.rounds) = (1, 1, open.rounds + 1);
            (open.first, open.last) = (now, made);
        } else {
            let paced = open.last + port.retry_interval <= now;
            if !paced && self.asked > 0 {
                self.asked -= 1;
                return Ok(());
            }
            (open.sent, open.most, open.last) = (open.sent + 1, open.most + 1, made);
            Law::Retransmission
                .check(paced || dim, || format!("s{who} is sent {kind:?} ({msg_id:#06x}) again too soon"))?;
        }
        let fair = open.sent <= port.retry_limit + 1 && open.rounds < ROUNDS;
        Law::Retransmission.check(fair || dim, || {
            format!("s{who} is sent {kind:?} for time {} of round {}", open.sent, open.rounds)
        })
    }
}
