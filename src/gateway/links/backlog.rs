//! Messages of clients that the broker has yet to finish and that a crash must not lose or double (design promises G1, G3).
//!
//! ```text
//!            taken while the broker is away      the link has room      PUBACK, PUBCOMP
//!   (none) ─────────────────────────────► waiting ──────────► under way ───────────────► (none)
//!      │                                     ▲                    ▲  │
//!      │                                     └────────────────────│──┘ a restart
//!      └──────────────────────────────────────────────────────────┘
//!          QoS 2; the broker is slow, and the client was told that all is well
//! ```
//!
//! What was promised has a row from the promise on, what has QoS 2 from when it has a packet id. Of one client everything
//! of QoS 1 and 2 leaves in the order in which it came.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use super::UplinkId;
use crate::gateway::ClientKey as SessionKey;
use crate::gateway::io::{LinkId, OutageQueue};
use crate::gateway::journal::{Journal, Whose};
use crate::gateway::record::{ClientKey, Key, Row, UplinkRow};
use crate::mqtt::{Full, Message, QoS};
use crate::topic::ClientId;

/// By which link a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Via {
    /// The gateway's own.
    Gateway,
    /// One of this client's own.
    Client(SessionKey),
}

/// Whose message it is.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Sender {
    pub(in crate::gateway) key: SessionKey,
    pub(in crate::gateway) id: ClientId,
}

#[derive(Debug)]
struct Entry {
    sender: Sender,
    via: Via,
    /// `None` once the broker has taken it over (PUBREC).
    message: Option<Message>,
    packet: Option<u16>,
    /// The client was told that it is taken care of.
    promised: bool,
    /// It has a row.
    stored: bool,
    /// It is in `waiting`.
    waits: bool,
    /// When it began to be kept.
    since: Instant,
}

impl Entry {
    fn len(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.topic.as_str().len() + message.payload.len())
    }

    fn key(&self, id: UplinkId) -> Key {
        Key::Client(self.sender.id.clone(), ClientKey::Uplink(id.0))
    }

    /// Writes the row, for something of `whose` to wait for it.
    fn put_down(&mut self, id: UplinkId, whose: Whose, journal: &mut Journal) {
        let row = UplinkRow {
            message: self.message.clone(),
            dedicated: self.via != Via::Gateway,
            packet: self.packet,
            promised: self.promised,
        };
        let row = Row::Uplink(self.sender.id.clone(), id.0, row);
        if std::mem::replace(&mut self.stored, true) {
            journal.update(whose, row);
        } else {
            journal.insert(whose, row);
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: BTreeMap<UplinkId, Entry>,
    waiting: BTreeMap<Via, VecDeque<UplinkId>>,
    /// How many messages of QoS 1 and 2 of a client wait.
    waiting_of: HashMap<SessionKey, usize>,
    /// Messages that count for the limits, and their octets.
    kept: usize,
    octets: usize,
}

impl Backlog {
    /// Messages that are kept for the broker.
    pub(super) fn len(&self) -> usize {
        self.kept
    }

    /// Whether what the client publishes now has to wait behind something.
    pub(super) fn has_waiting(&self, client: SessionKey) -> bool {
        self.waiting_of.contains_key(&client)
    }

    /// Takes a message that cannot leave now; it is written if it `matters`, else kept in memory only.
    ///
    /// # Errors
    /// [`Full::Queue`].
    pub(super) fn take(
        &mut self,
        id: UplinkId,
        sender: Sender,
        via: Via,
        message: Message,
        matters: bool,
        limits: &OutageQueue,
        now: Instant,
        journal: &mut Journal,
    ) -> Result<(), Full> {
        let whose = Whose::Client(sender.key);
        let entry = Entry {
            sender,
            via,
            message: Some(message),
            packet: None,
            promised: true,
            stored: false,
            waits: false,
            since: now,
        };
        if self.kept >= limits.messages || self.octets + entry.len() > limits.bytes {
            return Err(Full::Queue);
        }
        self.count_in(&entry);
        self.entries.insert(id, entry);
        if matters && let Some(entry) = self.entries.get_mut(&id) {
            entry.put_down(id, whose, journal);
        }
        self.wait(id);
        Ok(())
    }

    /// A message of QoS 2 that is under way. Nothing is written before it has a packet id.
    pub(super) fn follow(&mut self, id: UplinkId, sender: Sender, via: Via, message: Message, now: Instant) {
        let entry = Entry {
            sender,
            via,
            message: Some(message),
            packet: None,
            promised: false,
            stored: false,
            waits: false,
            since: now,
        };
        self.entries.insert(id, entry);
    }

    /// Keeps a message that is under way, because the client is to be told now that it is taken care of.
    ///
    /// # Errors
    /// [`Full::Queue`].
    pub(super) fn promise(
        &mut self,
        id: UplinkId,
        sender: Sender,
        via: Via,
        message: Option<Message>,
        limits: &OutageQueue,
        now: Instant,
        journal: &mut Journal,
    ) -> Result<(), Full> {
        if self.kept >= limits.messages || self.octets >= limits.bytes {
            return Err(Full::Queue);
        }
        if !self.entries.contains_key(&id) {
            self.follow(id, sender, via, message.ok_or(Full::Queue)?, now);
        }
        let Some(entry) = self.entries.get_mut(&id) else { return Err(Full::Queue) };
        if std::mem::replace(&mut entry.promised, true) {
            return Ok(());
        }
        entry.put_down(id, Whose::Client(entry.sender.key), journal);
        (self.kept, self.octets) = (self.kept + 1, self.octets + entry.len());
        Ok(())
    }

    /// A message of QoS 2 leaves under this packet id on this connection.
    pub(super) fn sent(&mut self, id: UplinkId, packet: u16, link: LinkId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.packet = Some(packet);
        entry.put_down(id, Whose::Link(link), journal);
    }

    /// The broker has taken it over: the message itself is of no use any more.
    pub(super) fn released(&mut self, id: UplinkId, link: LinkId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        self.octets -= if entry.promised { entry.len() } else { 0 };
        entry.message = None;
        entry.put_down(id, Whose::Link(link), journal);
    }

    /// The broker has lost its session: the message will have another packet id.
    pub(super) fn unsent(
        &mut self,
        id: UplinkId,
        message: Option<Message>,
        link: LinkId,
        journal: &mut Journal,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.packet = None;
        if entry.message.is_none() {
            entry.message = message;
            self.octets += if entry.promised { entry.len() } else { 0 };
        }
        entry.put_down(id, Whose::Link(link), journal);
    }

    /// The broker is done with it, or it is given up. Whether its client was told before that all is well.
    pub(super) fn finish(&mut self, id: UplinkId, journal: &mut Journal) -> bool {
        let Some(entry) = self.entries.remove(&id) else { return false };
        if entry.stored {
            journal.delete_in_time(entry.key(id));
        }
        let promised = entry.promised;
        self.count_out(&entry);
        if entry.waits {
            self.stop_waiting(&entry);
            if let Some(waiting) = self.waiting.get_mut(&entry.via) {
                waiting.retain(|waiting| *waiting != id);
            }
        }
        promised
    }

    /// The next message that waits for this link.
    pub(super) fn front(&self, via: Via) -> Option<(UplinkId, SessionKey, Message)> {
        let id = *self.waiting.get(&via)?.front()?;
        let entry = self.entries.get(&id)?;
        Some((id, entry.sender.key, entry.message.clone()?))
    }

    /// Links for which something waits.
    pub(super) fn waiting_links(&self) -> Vec<Via> {
        self.waiting.keys().copied().collect()
    }

    /// What was at the front is under way.
    pub(super) fn pass(&mut self, via: Via) {
        let Some(waiting) = self.waiting.get_mut(&via) else { return };
        let id = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&via);
        }
        let Some(id) = id else { return };
        let Some(mut entry) = self.entries.remove(&id) else { return };
        self.stop_waiting(&entry);
        entry.waits = false;
        self.entries.insert(id, entry);
    }

    /// The client has no link of its own any more: what it was promised goes by the gateway's, the rest is nobody's.
    pub(super) fn hand_over(&mut self, client: SessionKey, journal: &mut Journal) {
        let via = Via::Client(client);
        let theirs = self.entries.iter().filter(|(_, entry)| entry.via == via);
        let theirs: Vec<_> = theirs.map(|(id, _)| *id).collect();
        self.waiting.remove(&via);
        self.waiting_of.remove(&client);
        for id in theirs {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.waits = false;
            // What the broker has taken over under its name needs no more.
            if !entry.promised || entry.message.is_none() {
                self.finish(id, journal);
                continue;
            }
            (entry.via, entry.packet) = (Via::Gateway, None);
            if entry.stored {
                entry.put_down(id, Whose::Client(client), journal);
            }
            self.wait(id);
        }
    }

    /// Gives up what has waited for too long. How many.
    pub(super) fn expire(&mut self, limits: &OutageQueue, now: Instant, journal: &mut Journal) -> u64 {
        let mut expired = 0;
        while let Some(id) = self.oldest().filter(|(since, _)| *since + limits.age <= now).map(|(_, id)| id) {
            self.finish(id, journal);
            expired += 1;
        }
        expired
    }

    /// When [`Backlog::expire`] has something to do.
    pub(super) fn poll_timeout(&self, limits: &OutageQueue) -> Option<Instant> {
        self.oldest().and_then(|(since, _)| since.checked_add(limits.age))
    }

    fn oldest(&self) -> Option<(Instant, UplinkId)> {
        let fronts = self.waiting.values().filter_map(|waiting| waiting.front());
        let oldest = fronts.filter_map(|id| self.entries.get(id).map(|entry| (entry.since, *id)));
        oldest.min()
    }

    /// A message that was there before a restart. What has a packet id is under way, the others wait.
    pub(super) fn restore(&mut self, id: UplinkId, sender: Sender, via: Via, row: UplinkRow, now: Instant) {
        let entry = Entry {
            sender,
            via,
            packet: row.packet,
            message: row.message,
            promised: row.promised,
            stored: true,
            waits: false,
            since: now,
        };
        let waits = entry.packet.is_none();
        if entry.promised {
            self.count_in(&entry);
        }
        self.entries.insert(id, entry);
        if waits {
            self.wait(id);
        }
    }

    /// Whether a message is here, and whether the broker has taken it over.
    pub(super) fn is_released(&self, id: UplinkId) -> Option<bool> {
        self.entries.get(&id).map(|entry| entry.message.is_none())
    }

    fn wait(&mut self, id: UplinkId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.waits = true;
        if entry.message.as_ref().is_some_and(|message| message.qos != QoS::AtMostOnce) {
            *self.waiting_of.entry(entry.sender.key).or_insert(0) += 1;
        }
        self.waiting.entry(entry.via).or_default().push_back(id);
    }

    fn stop_waiting(&mut self, entry: &Entry) {
        if entry.message.as_ref().is_some_and(|message| message.qos == QoS::AtMostOnce) {
            return;
        }
        let Some(waiting) = self.waiting_of.get_mut(&entry.sender.key) else { return };
        *waiting -= 1;
        if *waiting == 0 {
            self.waiting_of.remove(&entry.sender.key);
        }
    }

    fn count_in(&mut self, entry: &Entry) {
        (self.kept, self.octets) = (self.kept + 1, self.octets + entry.len());
    }

    fn count_out(&mut self, entry: &Entry) {
        if entry.promised {
            (self.kept, self.octets) = (self.kept - 1, self.octets - entry.len());
        }
    }
}
