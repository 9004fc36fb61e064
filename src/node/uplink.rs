//! Messages from the node to the gateway (§6.5, §6.6).
//!
//! 1. REGISTER, if the topic is a name without an id; REGACK
//! 2. PUBLISH; QoS 1: PUBACK; QoS 2: PUBREC
//! 3. QoS 2: PUBREL; PUBCOMP
//!
//! One message at a time: what waits behind keeps its order, and at most one REGISTER and one PUBLISH are open (§6.6).

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::air::{Cx, NoAnswer, Retry};
use super::topics::Topics;
use super::{Event, Options, Outcome, PublishId, Topic};
use crate::topic::TopicName;
use crate::wire::{MsgIdOnly, Packet, Publish, Qos, Register, ReturnCode, TopicAck, TopicRef};

/// How often one message may find its topic id unknown (`02`) and register it again, before it counts as refused.
const REGISTRATIONS_MAX: u32 = 3;

/// The queue of messages, and how far the first of them has got.
#[derive(Debug, Default)]
pub(super) struct Uplink {
    queue: VecDeque<Pending>,
    phase: Phase,
}

/// A message and what of its exchange outlives a connection.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: PublishId,
    pub(super) topic: Topic,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    progress: Progress,
}

#[derive(Debug, Default)]
struct Progress {
    /// Of the PUBLISH, from its first transmission on.
    msg_id: Option<u16>,
    /// PUBREC has come.
    received: bool,
    /// The gateway forgot the exchange in the middle of it.
    uncertain: bool,
    /// How often the gateway did not know the topic id.
    unknown_ids: u32,
}

/// What the first message waits for in this connection.
#[derive(Debug, Default)]
enum Phase {
    /// Nothing: it may go on, or there is no connection.
    #[default]
    Ready,
    /// The end of the silence that `congestion` demands (§6.6).
    Paused(Instant),
    /// REGACK.
    Register { name: TopicName, msg_id: u16, retry: Retry },
    /// PUBACK or PUBREC.
    Publish { topic: TopicRef, msg_id: u16, retry: Retry },
    /// PUBCOMP.
    Release { msg_id: u16, retry: Retry },
}

impl Pending {
    pub(super) fn new(id: PublishId, topic: Topic, payload: Bytes, qos: Qos, retain: bool) -> Self {
        Self { id, topic, payload, qos, retain, progress: Progress::default() }
    }

    /// The PUBLISH of this message.
    pub(super) fn packet(&self, topic: TopicRef, msg_id: u16, dup: bool) -> Packet<'_> {
        let Self { qos, retain, .. } = *self;
        Packet::Publish(Publish { dup, qos, retain, topic, msg_id, data: &self.payload })
    }
}

impl Uplink {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn push(&mut self, message: Pending) {
        self.queue.push_back(message);
    }

    /// Does what can be done without an answer. Called only while there is a connection.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>) {
        while let (Phase::Ready, Some(head)) = (&self.phase, self.queue.front_mut()) {
            if let (true, Some(msg_id)) = (head.progress.received, head.progress.msg_id) {
                self.phase = release(msg_id, cx);
                return;
            }
            let topic = match &head.topic {
                Topic::Predefined(id) => TopicRef::Predefined(*id),
                Topic::Short(name) => TopicRef::Short(*name),
                Topic::Name(name) => match cx.topics.confirmed_id(name) {
                    Some(id) => TopicRef::Normal(id),
                    None => {
                        self.phase = register(name.clone(), cx);
                        return;
                    }
                },
            };
            if head.qos == Qos::AtMostOnce {
                cx.air.send(head.packet(topic, 0, false));
                self.finish(Outcome::Sent, cx);
                continue;
            }
            let dup = head.progress.msg_id.is_some();
            let msg_id = *head.progress.msg_id.get_or_insert_with(|| cx.air.open_msg_id());
            cx.air.send(head.packet(topic, msg_id, dup));
            self.phase = Phase::Publish { topic, msg_id, retry: cx.retry() };
        }
    }

    pub(super) fn handle_regack(&mut self, ack: TopicAck, cx: &mut Cx<'_>) {
        let Phase::Register { name, msg_id, retry } = &self.phase else { return cx.air.stale() };
        if *msg_id != ack.msg_id {
            return cx.air.stale();
        }
        cx.air.heard(retry.sent);
        let name = name.clone();
        self.suspend(cx);
        match ack.code {
            ReturnCode::Accepted if Topics::is_valid(ack.topic_id) => cx.topics.confirm(ack.topic_id, name),
            ReturnCode::Accepted => self.finish(Outcome::Refused(ReturnCode::InvalidTopicId), cx),
            code => self.refuse(code, cx),
        }
        self.advance(cx);
    }

    /// Whether the gateway turned out to have forgotten a topic id that it gave in this connection.
    pub(super) fn handle_puback(&mut self, ack: TopicAck, cx: &mut Cx<'_>) -> bool {
        if ack.msg_id == 0 {
            return handle_refusal(ack, cx);
        }
        let mut forgotten = false;
        let (Phase::Publish { topic, msg_id, retry }, Some(head)) = (&self.phase, self.queue.front_mut())
        else {
            cx.air.stale();
            return forgotten;
        };
        if *msg_id != ack.msg_id || (ack.code == ReturnCode::Accepted && head.qos == Qos::ExactlyOnce) {
            cx.air.stale();
            return forgotten;
        }
        let other = ack.topic_id != 0 && ack.topic_id != topic.raw();
        if ack.code == ReturnCode::InvalidTopicId && other {
            // It refuses a late copy, with the id that this message had in an earlier connection.
            cx.air.stale();
            return forgotten;
        }
        cx.air.heard(retry.sent);
        let (topic, msg_id) = (*topic, *msg_id);
        self.phase = Phase::Ready;
        match (ack.code, topic) {
            (ReturnCode::Accepted, _) => self.finish(Outcome::Acknowledged, cx),
            (ReturnCode::InvalidTopicId, TopicRef::Normal(id))
                if head.progress.unknown_ids < REGISTRATIONS_MAX =>
            {
                // The refusal closed the exchange; a new MsgId keeps a second copy of it from refusing the repetition.
                forgotten = cx.topics.forget(id);
                // An id forgotten in a clean session is a session begun anew. Had an earlier copy of the message got through
                // before that, nobody would know.
                head.progress.uncertain |= cx.options.clean_session && head.qos == Qos::ExactlyOnce;
                cx.air.close_msg_id(msg_id);
                head.progress.msg_id = None;
                head.progress.unknown_ids += 1;
            }
            (code, _) => self.refuse(code, cx),
        }
        self.advance(cx);
        forgotten
    }

    pub(super) fn handle_pubrec(&mut self, MsgIdOnly { msg_id: id }: MsgIdOnly, cx: &mut Cx<'_>) {
        match (&self.phase, self.queue.front_mut()) {
            (Phase::Publish { msg_id, retry, .. }, Some(head))
                if *msg_id == id && head.qos == Qos::ExactlyOnce =>
            {
                cx.air.heard(retry.sent);
                head.progress.received = true;
                self.phase = release(id, cx);
            }
            (Phase::Release { msg_id, .. }, _) if *msg_id == id => {
                cx.air.send(Packet::PubRel(MsgIdOnly { msg_id: id }));
            }
            // Not answered by PUBREL: it may come of a late copy of a PUBLISH that is through, and a gateway that
            // publishes at PUBREL would publish that copy.
            _ => cx.air.stale(),
        }
    }

    pub(super) fn handle_pubcomp(&mut self, MsgIdOnly { msg_id: id }: MsgIdOnly, cx: &mut Cx<'_>) {
        let Phase::Release { msg_id, retry } = &self.phase else { return cx.air.stale() };
        if *msg_id != id {
            return cx.air.stale();
        }
        cx.air.heard(retry.sent);
        self.finish(Outcome::Acknowledged, cx);
        self.advance(cx);
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut Cx<'_>) -> Result<(), NoAnswer> {
        let (now, interval) = (cx.now, cx.options.retry_interval);
        match &mut self.phase {
            Phase::Ready => {}
            Phase::Paused(until) => {
                if *until <= now {
                    self.phase = Phase::Ready;
                    self.advance(cx);
                }
            }
            Phase::Register { name, msg_id, retry } => {
                if retry.due(now, interval)? {
                    cx.air.send_again(register_packet(name, *msg_id));
                }
            }
            Phase::Publish { topic, msg_id, retry } => {
                if retry.due(now, interval)?
                    && let Some(head) = self.queue.front()
                {
                    cx.air.send_again(head.packet(*topic, *msg_id, true));
                }
            }
            Phase::Release { msg_id, retry } => {
                if retry.due(now, interval)? {
                    cx.air.send_again(Packet::PubRel(MsgIdOnly { msg_id: *msg_id }));
                }
            }
        }
        Ok(())
    }

    pub(super) fn deadline(&self, options: &Options) -> Option<Instant> {
        match &self.phase {
            Phase::Ready => None,
            Phase::Paused(until) => Some(*until),
            Phase::Register { retry, .. } | Phase::Publish { retry, .. } | Phase::Release { retry, .. } => {
                Some(retry.deadline(options.retry_interval))
            }
        }
    }

    /// The first message went without an answer too often, and there will be no reconnection.
    pub(super) fn give_up(&mut self, cx: &mut Cx<'_>) {
        self.suspend(cx);
        self.finish(Outcome::GaveUp, cx);
    }

    /// No connection for a while. A pause goes on; a REGISTER begins anew, with a new MsgId: a late REGACK would tell the id
    /// of another session.
    pub(super) fn suspend(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Register { msg_id, .. } = &self.phase {
            cx.air.close_msg_id(*msg_id);
        }
        if !matches!(self.phase, Phase::Paused(_)) {
            self.phase = Phase::Ready;
        }
    }

    /// A connection begins, or began again without our doing. An open exchange goes on with its MsgId and DUP: that is
    /// right if the gateway still knows it, and after a clean session the best there is.
    pub(super) fn restart(&mut self, clean: bool, cx: &mut Cx<'_>) {
        self.suspend(cx);
        if let (true, Some(head)) = (clean, self.queue.front_mut()) {
            head.progress.uncertain |= head.progress.msg_id.is_some() && head.qos == Qos::ExactlyOnce;
        }
        self.advance(cx);
    }

    fn refuse(&mut self, code: ReturnCode, cx: &mut Cx<'_>) {
        match (code, cx.options.congestion_wait) {
            // The MsgId stays: the gateway may have taken the message after all, and shall know it again.
            (ReturnCode::Congestion, Some(wait)) => self.phase = Phase::Paused(cx.now + wait),
            _ => self.finish(Outcome::Refused(code), cx),
        }
    }

    /// Reports the first message and makes room for the next.
    fn finish(&mut self, outcome: Outcome, cx: &mut Cx<'_>) {
        self.phase = Phase::Ready;
        let Some(head) = self.queue.pop_front() else { return };
        if let Some(msg_id) = head.progress.msg_id {
            cx.air.close_msg_id(msg_id);
        }
        let uncertain = outcome == Outcome::Acknowledged && head.progress.uncertain;
        cx.tell(Event::Published(head.id, if uncertain { Outcome::Uncertain } else { outcome }));
    }
}

/// A message with QoS 0 was not wanted (§6.6). Of an id the gateway does not know, the next one on this topic shall fare
/// better.
fn handle_refusal(ack: TopicAck, cx: &mut Cx<'_>) -> bool {
    if ack.code == ReturnCode::Accepted {
        cx.air.stale();
        return false;
    }
    if cx.has_room() {
        cx.tell(Event::Refused(ack.code));
    }
    ack.code == ReturnCode::InvalidTopicId && cx.topics.forget(ack.topic_id)
}

fn register(name: TopicName, cx: &mut Cx<'_>) -> Phase {
    let msg_id = cx.air.open_msg_id();
    cx.air.send(register_packet(&name, msg_id));
    Phase::Register { name, msg_id, retry: cx.retry() }
}

fn register_packet(name: &TopicName, msg_id: u16) -> Packet<'_> {
    Packet::Register(Register { topic_id: 0, msg_id, topic_name: name.as_str().as_bytes() })
}

fn release(msg_id: u16, cx: &mut Cx<'_>) -> Phase {
    cx.air.send(Packet::PubRel(MsgIdOnly { msg_id }));
    Phase::Release { msg_id, retry: cx.retry() }
}
