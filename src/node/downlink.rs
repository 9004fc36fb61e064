//! Messages from the gateway to the node (§6.10): every message is delivered once, however often the radio brings it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::air::Cx;
use super::requests::Requests;
use super::topics::Topics;
use super::{Event, Message, Topic};
use crate::topic::TopicName;
use crate::wire::{MsgIdOnly, Packet, Publish, Qos, Register, ReturnCode, TopicAck, TopicRef};

/// How long the MsgId of a finished exchange is remembered. Longer than a frame can be late on any radio, and than a gateway
/// repeats with the values of §7.2; shorter than a gateway takes to come round to the same MsgId.
const FINISHED_FOR: Duration = Duration::from_secs(60);

/// MsgIds remembered, the oldest going first: a gateway has one message open at a time, so this is many minutes of traffic.
const RECEIVED_MAX: usize = 1024;

/// The MsgIds the gateway has used.
#[derive(Debug, Default)]
pub(super) struct Downlink {
    received: BTreeMap<u16, Received>,
}

#[derive(Debug)]
struct Received {
    /// Of topic and payload. A gateway that lost its memory may use a MsgId for another message; that is no duplicate.
    digest: u64,
    /// Of the last event of the exchange.
    at: Instant,
    /// QoS 2, PUBREL has not come: remembered without a limit of time.
    open: bool,
}

impl Downlink {
    pub(super) fn handle_register(register: Register<'_>, cx: &mut Cx<'_>) {
        let Register { topic_id, msg_id, topic_name } = register;
        let code = match TopicName::new(topic_name) {
            _ if !Topics::is_valid(topic_id) => ReturnCode::InvalidTopicId,
            Err(_) => ReturnCode::NotSupported,
            Ok(name) => {
                cx.topics.learn(topic_id, name);
                ReturnCode::Accepted
            }
        };
        cx.air.send(Packet::RegAck(TopicAck { topic_id, msg_id, code }));
    }

    pub(super) fn handle_publish(&mut self, publish: Publish<'_>, requests: &Requests, cx: &mut Cx<'_>) {
        let Publish { dup, qos, retain, msg_id, .. } = publish;
        if qos == Qos::MinusOne {
            cx.air.counters.noise += 1;
            return;
        }
        if !cx.has_room() {
            return;
        }
        let ack = |code| Packet::PubAck(TopicAck { topic_id: publish.topic.raw(), msg_id, code });
        let topic = match resolve(publish.topic, requests, cx) {
            Ok(topic) => topic,
            Err(code) => return cx.air.send(ack(code)),
        };
        if qos != Qos::AtMostOnce && self.is_duplicate(&topic, &publish, cx) {
            cx.air.counters.duplicates += 1;
        } else {
            let payload = Bytes::copy_from_slice(publish.data);
            cx.air.counters.messages += 1;
            cx.tell(Event::Message(Message { topic, payload, qos, retain, dup }));
        }
        match qos {
            Qos::AtLeastOnce => cx.air.send(ack(ReturnCode::Accepted)),
            Qos::ExactlyOnce => cx.air.send(Packet::PubRec(MsgIdOnly { msg_id })),
            Qos::AtMostOnce | Qos::MinusOne => {}
        }
    }

    /// PUBREL of an exchange that nobody remembers is answered like any other, or the gateway would repeat it (§6.6).
    pub(super) fn handle_pubrel(&mut self, release: MsgIdOnly, cx: &mut Cx<'_>) {
        if let Some(received) = self.received.get_mut(&release.msg_id) {
            received.open = false;
            received.at = cx.now;
        }
        cx.air.send(Packet::PubComp(release));
    }

    /// The gateway forgot the session, and with it its exchanges.
    pub(super) fn restart(&mut self) {
        self.received.clear();
    }

    /// Whether the message was delivered before; remembers it if not.
    fn is_duplicate(&mut self, topic: &Topic, publish: &Publish<'_>, cx: &mut Cx<'_>) -> bool {
        let now = cx.now;
        self.received.retain(|_, r| r.open || now.saturating_duration_since(r.at) < FINISHED_FOR);
        let mut hasher = DefaultHasher::new();
        (topic, publish.data).hash(&mut hasher);
        let digest = hasher.finish();
        if self.received.get(&publish.msg_id).is_some_and(|received| received.digest == digest) {
            return true;
        }
        if self.received.len() >= RECEIVED_MAX
            && let Some(oldest) = self.received.iter().min_by_key(|(_, r)| r.at).map(|(id, _)| *id)
        {
            self.received.remove(&oldest);
        }
        let open = publish.qos == Qos::ExactlyOnce;
        self.received.insert(publish.msg_id, Received { digest, at: now, open });
        false
    }
}

/// What a PUBLISH is on, or how to refuse it (§6.7, §6.10).
fn resolve(topic: TopicRef, requests: &Requests, cx: &Cx<'_>) -> Result<Topic, ReturnCode> {
    match topic {
        TopicRef::Normal(id) => {
            cx.topics.name(id).cloned().map(Topic::Name).ok_or(ReturnCode::InvalidTopicId)
        }
        TopicRef::Predefined(id) => {
            let known = cx.options.predefined.contains_key(&id) || requests.expects_predefined(id);
            known.then_some(Topic::Predefined(id)).ok_or(ReturnCode::InvalidTopicId)
        }
        TopicRef::Short(name) => Ok(Topic::Short(name)),
        TopicRef::Reserved(_) => Err(ReturnCode::NotSupported),
    }
}
