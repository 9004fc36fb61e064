//! Client to broker (§6.6, §6.8): the topic is looked up, the message goes to the link, and the client is answered when
//! the broker has answered.
//!
//! ```text
//! QoS 1   C> PUBLISH   broker: PUBLISH, PUBACK    G> PUBACK
//! QoS 2   C> PUBLISH   broker: PUBLISH, PUBREC    G> PUBREC    C> PUBREL   (broker: PUBREL, PUBCOMP)   G> PUBCOMP
//! ```
//!
//! A repetition of a message that is on its way is not sent on again. Interpretation (R-063, R-064): what marks a
//! repetition is the MsgId together with the content, because clients reuse ids: of an exchange that is over, with DUP for
//! as long as a client repeats; of a QoS 2 exchange also without, for T_RETRY, so that a copy which the radio delayed is
//! not a new message.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, info, warn};

use super::few::{FewMap, Vacant};
use super::links::{Publishing, Sender, TakenBack, UplinkId, code_of, code_of_full};
use super::record::{ClientKey, ExchangeRow, ExchangeState, Lsn, Row};
use super::session::{Cx, Session};
use super::timer::{ClientTimer, Timer};
use crate::mqtt::{Full, Message, QoS, Refused, digest};
use crate::topic::TopicName;
use crate::wire::{MsgIdOnly, Packet, Publish, Qos, ReturnCode, TopicAck, TopicRef};

/// QoS 1 and 2 messages of one client under way at a time. §6.6 allows one; clients that do not wait are served within
/// reason (Interpretation: R-074).
const OPEN_MAX: usize = 16;

/// Exchanges remembered after their end.
const FINISHED_MAX: usize = 16;

/// Between two answers `congestion` to messages of QoS 0, which ask for none (Interpretation: R-073).
const CONGESTION_INTERVAL: Duration = Duration::from_secs(1);

/// The QoS 1 and 2 messages of one client.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    /// By MsgId.
    open: FewMap<u16, Open>,
    finished: VecDeque<Finished>,
    /// When a message of QoS 0 was last answered with `congestion`.
    told_congestion: Option<Instant>,
    /// How the broker refused the last message that it refused: a client that goes on like that fills no log.
    refused_as: Option<Refused>,
    /// Why the last message that was not even sent to the broker was not.
    untaken_as: Option<Full>,
    /// MsgIds of exchanges that have rows; of QoS 2 only.
    stored: BTreeSet<u16>,
}

/// A message for which the client has not had its last answer.
#[derive(Debug)]
struct Open {
    /// None that is in use once the message is kept for the broker.
    id: UplinkId,
    digest: u64,
    qos: QoS,
    topic: TopicRef,
    /// What the broker has said.
    broker: Broker,
    /// It has not, but the message is kept for it.
    kept: Option<Kept>,
    /// The client's PUBREL came before the broker's PUBCOMP.
    released: bool,
    /// The client was told `congestion`; what the broker says is for a repetition (Interpretation: A-34).
    late: bool,
    /// When the client will be told so.
    answer_by: Instant,
}

impl Open {
    /// Whether the client waits for the broker: for its first word, and if messages are kept, for the last too.
    fn is_awaited(&self, keeps: bool) -> bool {
        match self.broker {
            Broker::Silent => !self.late,
            Broker::Received => keeps && self.released,
            Broker::Done(_) => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broker {
    Silent,
    /// PUBREC.
    Received,
    /// PUBACK or PUBCOMP.
    Done(ReturnCode),
}

/// How a message is kept for the broker.
#[derive(Debug, Clone, Copy)]
struct Kept {
    id: UplinkId,
    /// The batch with which it is durable, and the client may be told so.
    lsn: Lsn,
}

/// An exchange that is over.
#[derive(Debug)]
struct Finished {
    msg_id: u16,
    digest: u64,
    code: ReturnCode,
    /// The client was told so because the message is stored. Seldom there.
    kept: Option<Box<Kept>>,
    at: Instant,
}

impl Vacant for Uplink {
    const VACANT: &'static Self = &Self {
        open: FewMap::NONE,
        finished: VecDeque::new(),
        told_congestion: None,
        refused_as: None,
        untaken_as: None,
        stored: BTreeSet::new(),
    };

    fn is_vacant(&self) -> bool {
        self.open.is_empty()
            && self.finished.is_empty()
            && self.told_congestion.is_none()
            && (self.refused_as, self.untaken_as) == (None, None)
            && self.stored.is_empty()
    }
}

/// Under which nothing is on its way.
const NOWHERE: UplinkId = UplinkId(0);

impl Uplink {
    /// Remembers an exchange. Returns the MsgId of one that is forgotten for it.
    fn finish(
        &mut self,
        msg_id: u16,
        digest: u64,
        code: ReturnCode,
        kept: Option<Kept>,
        now: Instant,
    ) -> Option<u16> {
        let full = self.finished.len() >= FINISHED_MAX;
        let forgotten = if full { self.finished.pop_front() } else { None };
        if self.finished.len() == self.finished.capacity() {
            let more = (self.finished.len() / 2).max(1);
            self.finished.reserve_exact(more.min(FINISHED_MAX.saturating_sub(self.finished.len())));
        }
        self.finished.push_back(Finished { msg_id, digest, code, kept: kept.map(Box::new), at: now });
        let forgotten = forgotten?.msg_id;
        let is_used = self.open.contains_key(&forgotten)
            || self.finished.iter().any(|finished| finished.msg_id == forgotten);
        (!is_used).then_some(forgotten)
    }

    /// Messages of this QoS that have not had their last answer.
    pub(super) fn open_at(&self, qos: QoS) -> usize {
        self.open.values().filter(|open| open.qos == qos).count()
    }

    fn find(&mut self, id: UplinkId) -> Option<(u16, &mut Open)> {
        self.open.iter_mut().find(|(_, open)| open.id == id).map(|(msg_id, open)| (*msg_id, open))
    }
}

impl Session {
    /// PUBLISH of QoS 0, 1 or 2 (§5.4.12). `frame` holds the payload.
    pub(super) fn handle_publish(&mut self, publish: &Publish<'_>, frame: &Bytes, cx: &mut Cx<'_>) {
        let qos = match publish.qos {
            Qos::MinusOne => return,
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        };
        // At QoS 0 nothing is a repetition.
        let digest = if qos == QoS::AtMostOnce { 0 } else { digest_of(publish) };
        if qos != QoS::AtMostOnce && self.is_repetition(publish, digest, cx) {
            cx.counters.uplink_duplicates += 1;
            return;
        }
        let topic = match self.registry.resolve(publish.topic, cx.scope(&self.id)) {
            Ok(topic) => topic,
            Err(code) => {
                match code {
                    ReturnCode::InvalidTopicId => cx.counters.uplink_invalid_topic += 1,
                    _ => cx.counters.uplink_unsupported += 1,
                }
                return self.refuse(publish, code, cx);
            }
        };
        if qos == QoS::ExactlyOnce && cx.is_unstored() {
            return self.refuse_for_now(publish, cx);
        }
        match self.forward(publish, topic, qos, frame, cx) {
            Ok(Publishing::Forgotten) => cx.counters.uplink_messages += 1,
            Ok(Publishing::Awaited(id)) => {
                cx.counters.uplink_messages += 1;
                self.begin(publish, digest, qos, id, Broker::Silent, cx);
                self.await_broker(cx);
            }
            Ok(Publishing::Kept(id)) => {
                (cx.counters.uplink_messages, cx.counters.uplink_kept) =
                    (cx.counters.uplink_messages + 1, cx.counters.uplink_kept + 1);
                if qos != QoS::AtMostOnce {
                    self.begin(publish, digest, qos, NOWHERE, Broker::Silent, cx);
                    self.accept_kept(publish.msg_id, id, cx);
                }
            }
            Err(full) if full.is_final() => {
                self.warn_untaken(publish.topic, full, cx);
                cx.counters.uplink_refused += 1;
                self.refuse(publish, code_of_full(full), cx);
            }
            Err(_) => self.refuse_for_now(publish, cx),
        }
    }

    /// An exchange begins.
    fn begin(
        &mut self,
        publish: &Publish<'_>,
        digest: u64,
        qos: QoS,
        id: UplinkId,
        broker: Broker,
        cx: &mut Cx<'_>,
    ) {
        let answer_by = cx.now + cx.settings.broker.ack_timeout;
        let topic = publish.topic;
        let open =
            Open { id, digest, qos, topic, broker, kept: None, released: false, late: false, answer_by };
        self.uplink.open.insert(publish.msg_id, open);
        if qos == QoS::ExactlyOnce {
            self.put_down_exchange(publish.msg_id, cx);
        }
    }

    /// The message is kept for the broker: the client has what it waits for (design promise G1).
    fn accept_kept(&mut self, msg_id: u16, id: UplinkId, cx: &mut Cx<'_>) {
        let Some(open) = self.uplink.open.get_mut(&msg_id) else { return };
        let kept = Some(Kept { id, lsn: cx.journal.next() });
        if open.qos != QoS::ExactlyOnce {
            return self.close_uplink(msg_id, ReturnCode::Accepted, kept, cx);
        }
        (open.id, open.broker, open.kept) = (NOWHERE, Broker::Done(ReturnCode::Accepted), kept);
        let released = open.released;
        self.put_down_exchange(msg_id, cx);
        if released {
            self.complete(msg_id, cx);
        } else {
            self.send(Packet::PubRec(MsgIdOnly { msg_id }), cx);
        }
    }

    /// Puts down how far an exchange of QoS 2 has come: a repetition after a restart is not to be another message.
    fn put_down_exchange(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        let open = self.uplink.open.get(&msg_id).map(|open| {
            let state = match open.broker {
                Broker::Done(_) => ExchangeState::Received,
                Broker::Silent | Broker::Received => ExchangeState::Open(open.id.0),
            };
            ExchangeRow { digest: open.digest, topic: open.topic, state }
        });
        let row = open.or_else(|| {
            let finished = self.uplink.finished.iter().rev().find(|finished| finished.msg_id == msg_id)?;
            let (digest, topic) = (finished.digest, TopicRef::Normal(0));
            Some(ExchangeRow { digest, topic, state: ExchangeState::Finished })
        });
        match row {
            Some(row) => {
                let row = Row::Exchange(self.id.clone(), msg_id, row);
                if self.uplink.stored.insert(msg_id) {
                    cx.journal.insert(self.whose(), row);
                } else {
                    cx.journal.update(self.whose(), row);
                }
            }
            None => self.forget_exchange(msg_id, cx),
        }
    }

    fn forget_exchange(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        if self.uplink.stored.remove(&msg_id) {
            cx.journal.delete_in_time(self.key_of(ClientKey::Exchange(msg_id)));
        }
    }

    /// Forgets everything that was under way, for a session that ends.
    pub(super) fn clear_uplink(&mut self, cx: &mut Cx<'_>) {
        for msg_id in self.uplink.take().stored {
            cx.journal.delete_in_time(self.key_of(ClientKey::Exchange(msg_id)));
        }
    }

    /// An exchange of QoS 2 from before a restart; `released` says whether the broker has taken over the message that is on its
    /// way, `None` that none is.
    pub(super) fn restore_exchange(
        &mut self,
        msg_id: u16,
        row: ExchangeRow,
        released: Option<bool>,
        answer_by: Instant,
        now: Instant,
    ) {
        let ExchangeRow { digest, topic, state } = row;
        self.uplink.stored.insert(msg_id);
        let (id, broker) = match (state, released) {
            (ExchangeState::Finished, _) => {
                let code = ReturnCode::Accepted;
                return self.uplink.finished.push_back(Finished {
                    msg_id,
                    digest,
                    code,
                    kept: None,
                    at: now,
                });
            }
            (ExchangeState::Open(id), Some(true)) => (UplinkId(id), Broker::Received),
            (ExchangeState::Open(id), Some(false)) => (UplinkId(id), Broker::Silent),
            (ExchangeState::Open(_), None) => return,
            (ExchangeState::Received, _) => (NOWHERE, Broker::Done(ReturnCode::Accepted)),
        };
        let qos = QoS::ExactlyOnce;
        let open =
            Open { id, digest, qos, topic, broker, kept: None, released: false, late: false, answer_by };
        self.uplink.open.insert(msg_id, open);
    }

    fn refuse_for_now(&mut self, publish: &Publish<'_>, cx: &mut Cx<'_>) {
        cx.counters.uplink_congestion += 1;
        if publish.qos == Qos::AtMostOnce {
            let told = self.uplink.told_congestion;
            if told.is_some_and(|told| cx.now.saturating_duration_since(told) < CONGESTION_INTERVAL) {
                return;
            }
            self.uplink.told_congestion = Some(cx.now);
        }
        self.refuse(publish, ReturnCode::Congestion, cx);
    }

    fn forward(
        &mut self,
        publish: &Publish<'_>,
        topic: TopicName,
        qos: QoS,
        frame: &Bytes,
        cx: &mut Cx<'_>,
    ) -> Result<Publishing, Full> {
        if qos != QoS::AtMostOnce && !self.uplink.open.contains_key(&publish.msg_id) {
            self.make_room(cx)?;
        }
        let payload = frame.slice_ref(publish.data);
        let message = Message { topic, payload, qos, retain: publish.retain };
        cx.links.publish(self.sender(), message, cx.now, cx.journal)
    }

    /// Whose messages these are.
    pub(super) fn sender(&self) -> Sender {
        Sender { key: self.key, id: self.id.clone() }
    }

    /// A client may leave exchanges behind that the broker is done with; the others are limited.
    fn make_room(&mut self, cx: &mut Cx<'_>) -> Result<(), Full> {
        if self.uplink.open.len() < OPEN_MAX {
            return Ok(());
        }
        let abandoned = |open: &Open| matches!(open.broker, Broker::Done(_));
        let first = self.uplink.open.iter().find(|(_, open)| abandoned(open)).map(|(msg_id, _)| *msg_id);
        let msg_id = first.ok_or(Full::Queue)?;
        self.uplink.open.remove(&msg_id);
        self.forget_exchange(msg_id, cx);
        Ok(())
    }

    /// Whether the message is or was on its way; the client then gets the answer it is due, if there is one.
    fn is_repetition(&mut self, publish: &Publish<'_>, digest: u64, cx: &mut Cx<'_>) -> bool {
        let msg_id = publish.msg_id;
        if self.take_back_open(publish, digest, cx) {
            return true;
        }
        if let Some(open) = self.uplink.open.get_mut(&msg_id)
            && open.digest == digest
        {
            let answer_by = cx.now + cx.settings.broker.ack_timeout;
            match open.broker {
                Broker::Silent if open.late => {
                    (open.late, open.answer_by) = (false, answer_by);
                }
                Broker::Silent => {}
                Broker::Received => open.late = false,
                Broker::Done(_) if open.qos == QoS::ExactlyOnce => open.late = false,
                Broker::Done(_) => {}
            }
            let kept = open.kept;
            match (open.broker, open.qos) {
                (Broker::Silent, _) => self.await_broker(cx),
                (Broker::Received, _) => self.send(Packet::PubRec(MsgIdOnly { msg_id }), cx),
                (Broker::Done(code), QoS::AtLeastOnce) => self.close_uplink(msg_id, code, None, cx),
                (Broker::Done(_), _) => {
                    self.send(Packet::PubRec(MsgIdOnly { msg_id }), cx);
                    if self.peer.is_some() && kept.is_none_or(|kept| cx.journal.is_durable(kept.lsn)) {
                        // It is in good hands already.
                        cx.air.promise_nothing();
                    }
                }
            }
            return true;
        }
        // As long as a client repeats, and for copies that the radio delayed as long as it waits before it does.
        let port = self.port(cx.settings);
        let repeats = port.retry_interval.saturating_mul(port.retry_limit.saturating_add(1));
        let window = if publish.dup { repeats } else { port.retry_interval };
        let finished = self.uplink.finished.iter().find(|finished| {
            finished.msg_id == msg_id
                && finished.digest == digest
                && cx.now.saturating_duration_since(finished.at) < window
                && (publish.dup || publish.qos == Qos::ExactlyOnce)
        });
        let Some(Finished { code, kept, .. }) = finished else { return false };
        match (publish.qos, *code, kept.as_deref().copied()) {
            (Qos::ExactlyOnce, ReturnCode::Accepted, _) => {
                self.send(Packet::PubRec(MsgIdOnly { msg_id }), cx);
            }
            (_, code, Some(kept)) if cx.journal.has_failed_at(kept.lsn) => {
                self.answer_unstored(publish, code, kept, cx);
            }
            (_, code, kept) => {
                let promises = kept.is_some_and(|kept| !cx.journal.is_durable(kept.lsn));
                self.send_puback(publish.topic, msg_id, code, promises, cx);
            }
        }
        true
    }

    /// A QoS 1 message that could not be stored is asked about. The client is told to send it again later, unless the broker is
    /// done with it.
    fn answer_unstored(&mut self, publish: &Publish<'_>, code: ReturnCode, kept: Kept, cx: &mut Cx<'_>) {
        match cx.links.take_back(kept.id, cx.journal) {
            TakenBack::Gone => return self.send_puback(publish.topic, publish.msg_id, code, false, cx),
            TakenBack::Withdrawn => {
                let is_it =
                    |finished: &Finished| finished.kept.as_ref().is_some_and(|other| other.id == kept.id);
                self.uplink.finished.retain(|finished| !is_it(finished));
            }
            // It is accepted when the broker has acknowledged it, or the store has it after all.
            TakenBack::UnderWay { .. } => {}
        }
        self.refuse_for_now(publish, cx);
    }

    /// A QoS 2 message is asked about that could not be stored: what was to be said of it will not be. If it has not left it is
    /// nothing any more, and the client is told to send it again later, which this returns; else it goes on as one that the
    /// broker has to answer.
    fn take_back_open(&mut self, publish: &Publish<'_>, digest: u64, cx: &mut Cx<'_>) -> bool {
        let msg_id = publish.msg_id;
        let Some(open) = self.uplink.open.get_mut(&msg_id).filter(|open| open.digest == digest) else {
            return false;
        };
        let Some(kept) = open.kept.filter(|kept| cx.journal.has_failed_at(kept.lsn)) else { return false };
        open.kept = None;
        match cx.links.take_back(kept.id, cx.journal) {
            TakenBack::Gone => {}
            TakenBack::Withdrawn => {
                self.uplink.open.remove(&msg_id);
                self.forget_exchange(msg_id, cx);
                self.refuse_for_now(publish, cx);
                return true;
            }
            TakenBack::UnderWay { released } => {
                (open.id, open.late) = (kept.id, false);
                open.broker = if released { Broker::Received } else { Broker::Silent };
                open.answer_by = cx.now + cx.settings.broker.ack_timeout;
                self.put_down_exchange(msg_id, cx);
            }
        }
        false
    }

    /// The broker said PUBREC.
    pub(super) fn handle_broker_received(&mut self, id: UplinkId, cx: &mut Cx<'_>) {
        let Some((msg_id, open)) = self.uplink.find(id) else { return };
        if open.broker == Broker::Silent {
            open.broker = Broker::Received;
            if !open.late {
                self.send(Packet::PubRec(MsgIdOnly { msg_id }), cx);
            }
        }
    }

    /// Says which message the broker refused.
    fn log_refused(&mut self, id: UplinkId, refused: Refused, cx: &Cx<'_>) {
        let Some(topic) = self.uplink.find(id).map(|(_, open)| open.topic) else { return };
        let topic = self.registry.resolve(topic, cx.scope(&self.id));
        let topic = topic.as_ref().map_or("(unknown)", |topic| topic.as_str());
        if self.uplink.refused_as.replace(refused) == Some(refused) {
            debug!(client = %self.id, %topic, "message {refused}");
        } else {
            info!(client = %self.id, %topic, "message {refused}");
        }
    }

    /// Says which message the broker would not take, once for each reason.
    fn warn_untaken(&mut self, topic: TopicRef, full: Full, cx: &Cx<'_>) {
        let topic = self.registry.resolve(topic, cx.scope(&self.id));
        let topic = topic.as_ref().map_or("(unknown)", |topic| topic.as_str());
        if self.uplink.untaken_as.replace(full) == Some(full) {
            debug!(client = %self.id, %topic, "message refused: {full}");
        } else {
            warn!(client = %self.id, %topic, "message refused: {full}");
        }
    }

    /// The broker said PUBACK or PUBCOMP, or refused.
    pub(super) fn handle_broker_completed(
        &mut self,
        id: UplinkId,
        result: Result<(), Refused>,
        cx: &mut Cx<'_>,
    ) {
        if let Err(refused) = result {
            self.log_refused(id, refused, cx);
        }
        let Some((msg_id, open)) = self.uplink.find(id) else { return };
        cx.counters.uplink_refused += u64::from(result.is_err());
        let code = result.map_or_else(code_of, |()| ReturnCode::Accepted);
        let was_silent = open.broker == Broker::Silent;
        open.broker = Broker::Done(code);
        let (late, released) = (open.late, open.released);
        if open.qos == QoS::ExactlyOnce && code == ReturnCode::Accepted && !released {
            self.put_down_exchange(msg_id, cx);
        }
        let Some(open) = self.uplink.open.get(&msg_id) else { return };
        match (open.qos, code) {
            (QoS::ExactlyOnce, ReturnCode::Accepted) if released => self.complete(msg_id, cx),
            (QoS::ExactlyOnce, ReturnCode::Accepted) => {
                if was_silent && !late {
                    self.send(Packet::PubRec(MsgIdOnly { msg_id }), cx);
                }
            }
            _ if late => {}
            (_, code) => self.close_uplink(msg_id, code, None, cx),
        }
    }

    /// PUBREL (§5.4.14). For what is not open PUBCOMP is the answer: it was, and the PUBCOMP got lost (§6.6).
    pub(super) fn handle_pubrel(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        match self.uplink.open.get_mut(&msg_id) {
            Some(open) if open.qos == QoS::ExactlyOnce => match open.broker {
                Broker::Silent => {}
                Broker::Received => {
                    if !std::mem::replace(&mut open.released, true) {
                        open.answer_by = cx.now + cx.settings.broker.ack_timeout;
                        self.await_broker(cx);
                    }
                }
                Broker::Done(_) => self.complete(msg_id, cx),
            },
            _ => self.send(Packet::PubComp(MsgIdOnly { msg_id }), cx),
        }
    }

    fn complete(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        if let Some(open) = self.uplink.open.remove(&msg_id) {
            self.finish_exchange(msg_id, &open, ReturnCode::Accepted, None, cx);
        }
        self.send(Packet::PubComp(MsgIdOnly { msg_id }), cx);
    }

    fn finish_exchange(
        &mut self,
        msg_id: u16,
        open: &Open,
        code: ReturnCode,
        kept: Option<Kept>,
        cx: &mut Cx<'_>,
    ) {
        self.stop_awaiting_broker(cx);
        let forgotten = self.uplink.finish(msg_id, open.digest, code, kept, cx.now);
        if let Some(forgotten) = forgotten {
            self.forget_exchange(forgotten, cx);
        }
        if open.qos == QoS::ExactlyOnce && code == ReturnCode::Accepted {
            self.put_down_exchange(msg_id, cx);
        } else {
            self.forget_exchange(msg_id, cx);
        }
    }

    /// PUBACK ends the exchange of a QoS 1 message, and of any that is refused.
    fn close_uplink(&mut self, msg_id: u16, code: ReturnCode, kept: Option<Kept>, cx: &mut Cx<'_>) {
        let Some(open) = self.uplink.open.remove(&msg_id) else { return };
        self.finish_exchange(msg_id, &open, code, kept, cx);
        self.send_puback(open.topic, msg_id, code, kept.is_some(), cx);
    }

    /// PUBACK; `promises` if it relies on what is not durable yet.
    fn send_puback(&self, topic: TopicRef, msg_id: u16, code: ReturnCode, promises: bool, cx: &mut Cx<'_>) {
        self.send(Packet::PubAck(TopicAck { topic_id: topic.raw(), msg_id, code }), cx);
        if promises && self.peer.is_some() {
            cx.air.promise();
        }
    }

    /// PUBACK with a refusal, whatever the QoS (§6.6, Interpretation: A-07).
    fn refuse(&self, publish: &Publish<'_>, code: ReturnCode, cx: &mut Cx<'_>) {
        let msg_id = if publish.qos == Qos::AtMostOnce { 0 } else { publish.msg_id };
        self.send(Packet::PubAck(TopicAck { topic_id: publish.topic.raw(), msg_id, code }), cx);
    }

    /// The broker has had its time: the client is told `congestion` before it takes the gateway for dead.
    pub(super) fn handle_broker_late(&mut self, cx: &mut Cx<'_>) {
        let keeps = cx.links.keeps();
        let late = |open: &Open| open.is_awaited(keeps) && open.answer_by <= cx.now;
        let due = self.uplink.open.iter().filter(|(_, open)| late(open));
        let due: Vec<_> = due.map(|(msg_id, open)| (*msg_id, open.id, open.topic.raw())).collect();
        for (msg_id, id, topic_id) in due {
            if cx.links.promise(id, cx.journal) {
                cx.counters.uplink_kept += 1;
                self.accept_kept(msg_id, id, cx);
                continue;
            }
            let Some(open) = self.uplink.open.get_mut(&msg_id) else { continue };
            if open.broker != Broker::Silent {
                // There is no refusal of PUBREL: it is repeated.
                open.answer_by = cx.now + cx.settings.broker.ack_timeout;
                continue;
            }
            open.late = true;
            cx.counters.uplink_late += 1;
            self.send(Packet::PubAck(TopicAck { topic_id, msg_id, code: ReturnCode::Congestion }), cx);
        }
        self.expire_requests(cx);
        self.await_broker(cx);
    }

    /// The client is back: the broker's time begins again for what it still owes.
    pub(super) fn resume_uplink(&mut self, cx: &mut Cx<'_>) {
        let answer_by = cx.now + cx.settings.broker.ack_timeout;
        for open in self.uplink.open.values_mut() {
            open.answer_by = open.answer_by.max(answer_by);
        }
        self.await_broker(cx);
    }

    /// Sets the timer for the first thing the broker owes this client.
    pub(super) fn await_broker(&mut self, cx: &mut Cx<'_>) {
        if let Some(at) = self.broker_answers_by(cx) {
            self.set_timer(ClientTimer::BrokerAnswer, at, cx);
        }
    }

    /// The broker has answered something: if that was the last thing, it is not to be looked at any more.
    pub(super) fn stop_awaiting_broker(&self, cx: &mut Cx<'_>) {
        if self.broker_answers_by(cx).is_none() {
            cx.timers.cancel(&Timer::Client(self.key, ClientTimer::BrokerAnswer));
        }
    }

    /// By when the first thing is due that the broker owes this client.
    fn broker_answers_by(&self, cx: &Cx<'_>) -> Option<Instant> {
        let keeps = cx.links.keeps();
        let awaited = self.uplink.open.values().filter(|open| open.is_awaited(keeps));
        let requests = self.requests.iter().map(|request| request.answer_by);
        awaited.map(|open| open.answer_by).chain(requests).min()
    }
}

/// What tells a repetition from another message under the same MsgId: everything but DUP.
fn digest_of(publish: &Publish<'_>) -> u64 {
    let kind = match publish.topic {
        TopicRef::Normal(_) => 0,
        TopicRef::Predefined(_) => 1,
        TopicRef::Short(_) => 2,
        TopicRef::Reserved(_) => 3,
    };
    let topic = publish.topic.raw().to_be_bytes();
    let head = [publish.qos as u8, u8::from(publish.retain), kind, topic[0], topic[1]];
    digest(head.into_iter().chain(publish.data.iter().copied()))
}
