//! What the broker remembers of a client: its filters, what waits for it, and the packet ids in use both ways.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rumqttc::{Packet, PubRel, Publish, QoS};

use super::io::{ConnectionId, Limits, Message, SessionInfo};
use crate::topic::TopicFilter;

/// One session (MQTT 3.1.1 §4.1).
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) connection: Option<ConnectionId>,
    /// Ends with its connection.
    pub(super) clean: bool,
    pub(super) subscriptions: BTreeMap<TopicFilter, QoS>,
    /// QoS 1 and 2 messages that have not been sent.
    pub(super) waiting: Queue,
    /// QoS 2 ids taken from the client and not yet released by it.
    pub(super) received: BTreeSet<u16>,
    /// PUBLISH packets sent, until PUBACK or PUBREC, in order of sending.
    sent: VecDeque<(u16, Delivery)>,
    /// PUBREL packets sent, until PUBCOMP, in order of sending.
    releasing: VecDeque<u16>,
    /// The ids of `sent` and `releasing`.
    ids: BTreeSet<u16>,
    last_id: u16,
}

/// What a PUBREC asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// The first for this message.
    Expected,
    /// It had come before, or nobody knows the id.
    Stray,
    /// The id belongs to a QoS 1 message.
    Wrong,
}

impl Session {
    /// Takes the next message that the window has room for, as the packet to send.
    pub(super) fn next(&mut self, limits: &Limits, queued_total: &mut usize) -> Option<Publish> {
        if self.ids.len() >= usize::from(limits.window.max(1)) {
            return None;
        }
        let delivery = self.waiting.pop(queued_total)?;
        let id = self.free_id();
        let publish = delivery.publish(id, false);
        self.sent.push_back((id, delivery));
        self.ids.insert(id);
        Some(publish)
    }

    /// PUBACK; whether something waited for it.
    pub(super) fn puback(&mut self, id: u16) -> bool {
        let Some(at) = self.position(id, QoS::AtLeastOnce) else { return false };
        self.sent.remove(at);
        self.ids.remove(&id)
    }

    /// PUBREC: the message need not be sent again, its id stays in use (MQTT 3.1.1 §4.3.3).
    pub(super) fn pubrec(&mut self, id: u16) -> Received {
        let Some(at) = self.position(id, QoS::ExactlyOnce) else {
            let qos1 = self.position(id, QoS::AtLeastOnce).is_some();
            return if qos1 { Received::Wrong } else { Received::Stray };
        };
        self.sent.remove(at);
        self.releasing.push_back(id);
        Received::Expected
    }

    /// PUBCOMP; whether something waited for it.
    pub(super) fn pubcomp(&mut self, id: u16) -> bool {
        let Some(at) = self.releasing.iter().position(|releasing| *releasing == id) else { return false };
        self.releasing.remove(at);
        self.ids.remove(&id)
    }

    /// What to send again on a new connection, each kind in its order (MQTT 3.1.1 §4.4, §4.6).
    pub(super) fn resume(&self) -> Vec<Packet> {
        let releases = self.releasing.iter().map(|id| Packet::PubRel(PubRel::new(*id)));
        let publishes = self.sent.iter().map(|(id, delivery)| Packet::Publish(delivery.publish(*id, true)));
        releases.chain(publishes).collect()
    }

    pub(super) fn info(&self) -> SessionInfo {
        SessionInfo {
            connection: self.connection,
            clean: self.clean,
            subscriptions: self.subscriptions.iter().map(|(filter, qos)| (filter.clone(), *qos)).collect(),
            queued: self.waiting.entries.len(),
            unacknowledged: self.sent.iter().map(|(id, _)| *id).collect(),
            releasing: self.releasing.iter().copied().collect(),
            received: self.received.iter().copied().collect(),
        }
    }

    fn position(&self, id: u16, qos: QoS) -> Option<usize> {
        self.sent.iter().position(|(sent, delivery)| *sent == id && delivery.qos == qos)
    }

    /// The window is at most 65,535 and not full, so one of the 65,535 ids is free.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.ids.contains(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// A message on its way to one client.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) message: Arc<Message>,
    pub(super) qos: QoS,
    /// It answers a SUBSCRIBE (MQTT 3.1.1 §3.3.1.3).
    pub(super) retain: bool,
}

impl Delivery {
    pub(super) fn publish(&self, pkid: u16, dup: bool) -> Publish {
        let Message { topic, payload, .. } = &*self.message;
        let (topic, payload) = (topic.as_str().into(), payload.clone());
        Publish { dup, qos: self.qos, retain: self.retain, topic, pkid, payload }
    }
}

/// Why a message does not enter a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Messages,
    Bytes,
    Total,
}

/// Messages that wait, oldest first, and their octets.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Delivery>,
    pub(super) bytes: usize,
}

impl Queue {
    pub(super) fn push(
        &mut self,
        delivery: Delivery,
        limits: &Limits,
        queued_total: &mut usize,
    ) -> Result<(), Full> {
        let bytes = delivery.message.bytes();
        if self.entries.len() >= limits.queue_messages {
            return Err(Full::Messages);
        }
        if self.bytes + bytes > limits.queue_bytes {
            return Err(Full::Bytes);
        }
        if *queued_total + bytes > limits.queue_bytes_total {
            return Err(Full::Total);
        }
        self.bytes += bytes;
        *queued_total += bytes;
        self.entries.push_back(delivery);
        Ok(())
    }

    pub(super) fn pop(&mut self, queued_total: &mut usize) -> Option<Delivery> {
        let delivery = self.entries.pop_front()?;
        let bytes = delivery.message.bytes();
        self.bytes -= bytes;
        *queued_total -= bytes;
        Some(delivery)
    }

    pub(super) fn clear(&mut self, queued_total: &mut usize) {
        *queued_total -= self.bytes;
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::topic::TopicName;

    fn filled(qos: QoS, messages: usize) -> (Session, usize) {
        let message =
            Message { topic: TopicName::new("t").unwrap(), qos, payload: Bytes::from_static(b"abc") };
        let (mut session, mut total) = (Session::default(), 0);
        for _ in 0..messages {
            let delivery = Delivery { message: Arc::new(message.clone()), qos, retain: false };
            session.waiting.push(delivery, &Limits::default(), &mut total).unwrap();
        }
        (session, total)
    }

    #[test]
    fn ids_in_use_are_skipped_and_zero_is_none() {
        let (mut session, mut total) = filled(QoS::ExactlyOnce, 4);
        let limits = Limits::default();
        assert_eq!(total, 16);
        session.last_id = 65_534;
        let mut ids = || session.next(&limits, &mut total).map(|publish| publish.pkid);
        assert_eq!((ids(), ids(), ids()), (Some(65_535), Some(1), Some(2)));
        session.last_id = 65_534;
        session.pubrec(1);
        assert_eq!(session.next(&limits, &mut total).map(|publish| publish.pkid), Some(3));
        assert_eq!(total, 0);
    }

    #[test]
    fn the_window_opens_with_pubcomp_and_not_with_pubrec() {
        let (mut session, mut total) = filled(QoS::ExactlyOnce, 3);
        let limits = Limits { window: 2, ..Limits::default() };
        assert!(session.next(&limits, &mut total).is_some() && session.next(&limits, &mut total).is_some());
        assert_eq!(session.pubrec(1), Received::Expected);
        assert_eq!(session.pubrec(1), Received::Stray);
        assert!(session.next(&limits, &mut total).is_none());
        assert!(session.pubcomp(1) && !session.pubcomp(1));
        assert_eq!(session.next(&limits, &mut total).map(|publish| publish.pkid), Some(3));
    }

    #[test]
    fn an_acknowledgement_of_the_other_kind_settles_nothing() {
        let (mut session, mut total) = filled(QoS::AtLeastOnce, 1);
        session.next(&Limits::default(), &mut total);
        assert_eq!(session.pubrec(1), Received::Wrong);
        assert!(!session.pubcomp(1) && session.puback(1) && !session.puback(1));
    }
}
