//! Messages that wait for one client: bounded, in order, and shed by name.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use super::counters::Counters;
use super::io::{QueueFull, QueueSettings, SessionSettings};
use super::links::Delivery;
use super::record::MessageId;
use crate::mqtt::{Message, QoS};
use crate::wire::TopicRef;

/// A message on its way to one client.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Shared with the other recipients.
    pub(super) message: Arc<Message>,
    /// Which message that is, for all recipients.
    pub(super) id: MessageId,
    /// The number of its row, if it is kept for this client.
    pub(super) kept: Option<NonZeroU64>,
    /// At which it is sent to this client.
    pub(super) qos: QoS,
    /// What the broker is owed once the message is settled.
    pub(super) delivery: Option<Delivery>,
    /// The MsgId under which it was sent before: it keeps it, and says DUP (§6.13).
    pub(super) sent_as: Option<u16>,
    /// How its topic was named then: under another name it would be another message to the client.
    pub(super) sent_on: Option<TopicRef>,
    /// What its row says of both.
    pub(super) stored_as: (Option<u16>, Option<TopicRef>),
    /// Since when the client, asked to learn its topic, may have been heard: when it was first asked in this connection, or
    /// the end of the last round in which it was.
    pub(super) offered: Option<Box<Instant>>,
    /// How often the client was heard and has not answered to all repetitions.
    pub(super) rounds: u8,
    /// Until when it is worth to be sent (MQTT 5 §3.3.2.3.3). Few messages have that.
    pub(super) expires: Option<Box<Instant>>,
}

impl Item {
    /// Whether it is worth nothing any more. What has been sent is finished.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.sent_as.is_none() && self.expires.as_deref().is_some_and(|expires| *expires < now)
    }

    /// Whether it may go through all its repetitions once more.
    pub(super) fn has_rounds_left(&self) -> bool {
        self.rounds + 1 < super::downlink::ROUNDS
    }

    fn is_qos_0(&self) -> bool {
        self.qos == QoS::AtMostOnce
    }

    fn len(&self) -> usize {
        self.message.topic.as_str().len() + self.message.payload.len()
    }
}

/// Messages for which an empty queue keeps places: an active client has one at a time, or two.
const PLACES_KEPT: usize = 2;

/// The queue of one client. Octets are those of topics and payloads.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    octets: usize,
}

/// What came of a message that was to join a queue. What is shed is to be settled by the caller.
#[must_use]
pub(super) struct Joined {
    pub(super) shed: Vec<Item>,
}

impl Outbox {
    /// Appends `item` within the bounds of one client and of all together, of which `total` is the sum of octets. What
    /// leaves `at_once` takes no room.
    pub(super) fn push(
        &mut self,
        item: Item,
        at_once: bool,
        now: Instant,
        settings: &SessionSettings,
        total: &mut usize,
        counters: &mut Counters,
    ) -> Joined {
        let mut shed = Vec::new();
        let limits = &settings.queue;
        let is_full =
            |queue: &Self| queue.items.len() >= limits.messages || queue.octets + item.len() > limits.bytes;
        if !at_once && (is_full(self) || *total + item.len() > settings.queue_total) {
            shed = self.remove_unless(total, |item| !item.has_expired(now));
            counters.downlink_expired += shed.len() as u64;
        }
        while !at_once && is_full(self) {
            counters.downlink_queue_full += 1;
            let oldest = match limits.full {
                QueueFull::DropOldest if self.has_room_at_all(&item, limits) => self.pop_least(&item, total),
                QueueFull::DropOldest | QueueFull::DropNewest => None,
            };
            let Some(oldest) = oldest else {
                shed.push(item);
                return Joined { shed };
            };
            shed.push(oldest);
        }
        if !at_once && *total + item.len() > settings.queue_total {
            counters.downlink_total_full += 1;
            shed.push(item);
            return Joined { shed };
        }
        self.push_back(item, total);
        Joined { shed }
    }

    /// Whether `item` fits once everything has gone that may go for it.
    fn has_room_at_all(&self, item: &Item, limits: &QueueSettings) -> bool {
        let stays = |other: &&Item| item.is_qos_0() && !other.is_qos_0();
        let (messages, octets) = self
            .items
            .iter()
            .filter(stays)
            .fold((0, 0), |(messages, octets), other| (messages + 1, octets + other.len()));
        messages < limits.messages && octets + item.len() <= limits.bytes
    }

    /// Takes out what is shed first for `item`: the oldest of QoS 0 (Interpretation: R-131), and if there is none the oldest;
    /// for QoS 0 nothing else goes.
    fn pop_least(&mut self, item: &Item, total: &mut usize) -> Option<Item> {
        let least = self.take_first(total, Item::is_qos_0);
        if least.is_some() || item.is_qos_0() { least } else { self.pop(total) }
    }

    /// Messages that wait.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Messages that wait.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Appends what waited before a restart; it was counted in once, so no bound applies.
    pub(super) fn push_back(&mut self, item: Item, total: &mut usize) {
        self.make_place();
        self.octets += item.len();
        *total += item.len();
        self.items.push_back(item);
    }

    /// Puts back what was taken out and not delivered; it was counted in once, so no bound applies.
    pub(super) fn push_front(&mut self, item: Item, total: &mut usize) {
        self.make_place();
        self.octets += item.len();
        *total += item.len();
        self.items.push_front(item);
    }

    pub(super) fn pop(&mut self, total: &mut usize) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.octets -= item.len();
        *total -= item.len();
        self.give_back_place();
        Some(item)
    }

    /// Takes out the first message that is `wanted`.
    pub(super) fn take_first(
        &mut self,
        total: &mut usize,
        wanted: impl FnMut(&Item) -> bool,
    ) -> Option<Item> {
        let at = self.items.iter().position(wanted)?;
        let item = self.items.remove(at)?;
        self.octets -= item.len();
        *total -= item.len();
        self.give_back_place();
        Some(item)
    }

    /// Most clients have no message waiting, or one.
    fn make_place(&mut self) {
        if self.items.len() == self.items.capacity() {
            self.items.reserve_exact((self.items.len() / 2).max(1));
        }
    }

    /// One long sleep is not paid for ever.
    fn give_back_place(&mut self) {
        if self.items.is_empty() && self.items.capacity() > PLACES_KEPT {
            self.items = VecDeque::new();
        }
    }

    /// What waits, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// What waits, in order; sizes may not be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Item> {
        self.items.iter_mut()
    }

    /// Takes out every message that does not pass `keep`, in order.
    pub(super) fn remove_unless(&mut self, total: &mut usize, keep: impl Fn(&Item) -> bool) -> Vec<Item> {
        let mut removed = Vec::new();
        for _ in 0..self.items.len() {
            let Some(item) = self.pop(total) else { break };
            if keep(&item) {
                self.push_back(item, total);
            } else {
                removed.push(item);
            }
        }
        removed
    }
}
