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

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    message: Message,
    packet: Option<u16>,
    /// The broker has taken it over (PUBREC) under its packet id.
    released: bool,
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
    /// One that nobody was told of, and nothing is written of.
    fn new(sender: Sender, via: Via, message: Message, since: Instant) -> Self {
        let (packet, released, promised, stored, waits) = (None, false, false, false, false);
        Self { sender, via, message, packet, released, promised, stored, waits, since }
    }

    fn len(&self) -> usize {
        self.message.topic.as_str().len() + self.message.payload.len()
    }

    /// Whether what the client publishes after it leaves after it.
    fn has_an_order(&self) -> bool {
        self.message.qos != QoS::AtMostOnce
    }

    fn key(&self, id: UplinkId) -> Key {
        Key::Client(self.sender.id.clone(), ClientKey::Uplink(id.0))
    }

    fn row(&self, id: UplinkId) -> Row {
        let row = UplinkRow {
            message: self.message.clone(),
            dedicated: self.via != Via::Gateway,
            packet: self.packet,
            released: self.released,
            promised: self.promised,
        };
        Row::Uplink(self.sender.id.clone(), id.0, row)
    }

    /// Writes the row, for something of `whose` to wait for it.
    fn put_down(&mut self, id: UplinkId, whose: Whose, journal: &mut Journal) {
        let row = self.row(id);
        if std::mem::replace(&mut self.stored, true) {
            journal.update(whose, row);
        } else {
            journal.insert(whose, row);
        }
    }
}

/// What has become of a message that its client is not told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum TakenBack {
    /// The broker is done with it.
    Gone,
    /// It had not left, and never will.
    Withdrawn,
    /// The broker has it to answer, and has taken it over if `released` (PUBREC).
    UnderWay { released: bool },
}

/// All of them.
///
/// Numbers grow with time: of those that wait, the one with the lowest has waited longest.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: BTreeMap<UplinkId, Entry>,
    waiting: BTreeSet<(Via, UplinkId)>,
    /// The same by age.
    ages: BTreeSet<UplinkId>,
    /// Those of QoS 0.
    fleeting: BTreeSet<UplinkId>,
    /// What was given up of that.
    shed: u64,
    /// What goes by a client's own link, waiting or not.
    dedicated: BTreeSet<(SessionKey, UplinkId)>,
    /// How many messages of QoS 1 and 2 of a client wait. By id, for what a session has left behind goes before what the next
    /// one publishes.
    waiting_of: HashMap<ClientId, usize>,
    /// Messages that count for the limits, and their octets.
    kept: usize,
    octets: usize,
}

/// A message for the backlog, and by which link it goes.
pub(super) struct Keeping {
    pub(super) id: UplinkId,
    pub(super) sender: Sender,
    pub(super) via: Via,
    pub(super) message: Message,
}

impl Backlog {
    /// Messages that are kept for the broker.
    pub(super) fn len(&self) -> usize {
        self.kept
    }

    /// Whether anything waits for a link.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether what the client publishes now has to wait behind something.
    pub(super) fn has_waiting(&self, client: &ClientId) -> bool {
        self.waiting_of.contains_key(client)
    }

    /// Whether there is room for one more message of so many octets. QoS 1 and 2 have that of QoS 0, the oldest first.
    fn has_room(&mut self, qos: QoS, len: usize, limits: &OutageQueue, journal: &mut Journal) -> bool {
        loop {
            if self.kept < limits.messages && self.octets + len <= limits.bytes {
                return true;
            }
            let Some(id) = self.fleeting.first().copied().filter(|_| qos != QoS::AtMostOnce) else {
                return false;
            };
            self.finish(id, journal);
            self.shed += 1;
        }
    }

    /// How many messages were given up for others since the last time.
    pub(super) fn take_shed(&mut self) -> u64 {
        std::mem::take(&mut self.shed)
    }

    /// Takes a message that cannot leave now; if something of `whose` waits for it, it is written, else kept in memory only.
    ///
    /// # Errors
    /// [`Full::Queue`].
    pub(super) fn take(
        &mut self,
        keeping: Keeping,
        whose: Option<Whose>,
        limits: &OutageQueue,
        now: Instant,
        journal: &mut Journal,
    ) -> Result<(), Full> {
        let Keeping { id, sender, via, message } = keeping;
        let mut entry = Entry { promised: true, ..Entry::new(sender, via, message, now) };
        if !self.has_room(entry.message.qos, entry.len(), limits, journal) {
            return Err(Full::Queue);
        }
        self.count_in(&entry);
        if let Some(whose) = whose {
            entry.put_down(id, whose, journal);
        }
        self.insert(id, entry);
        self.wait(id);
        Ok(())
    }

    /// A message of QoS 1 or 2 that is under way. Nothing is written before it has QoS 2 and a packet id, or is promised.
    pub(super) fn follow(&mut self, id: UplinkId, sender: Sender, via: Via, message: Message, now: Instant) {
        self.insert(id, Entry::new(sender, via, message, now));
    }

    /// Keeps a message that is under way, because the client is to be told now that it is taken care of. Whether there is room.
    pub(super) fn promise(&mut self, id: UplinkId, limits: &OutageQueue, journal: &mut Journal) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        if entry.promised {
            return true;
        }
        let (qos, len) = (entry.message.qos, entry.len());
        if !self.has_room(qos, len, limits, journal) {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.promised = true;
        entry.put_down(id, Whose::Client(entry.sender.key), journal);
        (self.kept, self.octets) = (self.kept + 1, self.octets + entry.len());
        true
    }

    /// What [`Backlog::take`] or [`Backlog::promise`] began is undone, for it was not stored and the client was told nothing. Of what
    /// has left, only QoS 2 is left to the client again: at QoS 1 what is kept does no harm.
    pub(super) fn take_back(&mut self, id: UplinkId, journal: &mut Journal) -> TakenBack {
        let Some(entry) = self.entries.get_mut(&id) else { return TakenBack::Gone };
        if entry.waits {
            self.finish(id, journal);
            return TakenBack::Withdrawn;
        }
        let released = entry.released;
        if entry.message.qos == QoS::ExactlyOnce && std::mem::replace(&mut entry.promised, false) {
            entry.put_down(id, Whose::Client(entry.sender.key), journal);
            (self.kept, self.octets) = (self.kept - 1, self.octets - entry.len());
        }
        TakenBack::UnderWay { released }
    }

    /// A message of QoS 2 leaves under this packet id on this connection.
    pub(super) fn sent(&mut self, id: UplinkId, packet: u16, link: LinkId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.packet = Some(packet);
        entry.put_down(id, Whose::Link(link), journal);
    }

    /// The broker has taken it over.
    pub(super) fn released(&mut self, id: UplinkId, link: LinkId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.released = true;
        entry.put_down(id, Whose::Link(link), journal);
    }

    /// The broker has lost its session: the message will have another packet id.
    pub(super) fn unsent(&mut self, id: UplinkId, link: LinkId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        (entry.packet, entry.released) = (None, false);
        entry.put_down(id, Whose::Link(link), journal);
    }

    /// The broker is done with it, or it is given up. Whether its client was told before that all is well.
    pub(super) fn finish(&mut self, id: UplinkId, journal: &mut Journal) -> bool {
        self.stop_waiting(id);
        let Some(entry) = self.entries.remove(&id) else { return false };
        if let Via::Client(client) = entry.via {
            self.dedicated.remove(&(client, id));
        }
        if entry.stored {
            journal.delete_in_time(entry.key(id));
        }
        self.count_out(&entry);
        entry.promised
    }

    /// Removes every message of a client. Those that are under way come to their end, and nobody knows of them any more. How many
    /// were kept, and how many are under way at QoS 2.
    pub(super) fn erase(&mut self, client: &ClientId, journal: &mut Journal) -> (usize, usize) {
        let theirs = self.entries.iter().filter(|(_, entry)| entry.sender.id == *client);
        let theirs: Vec<_> = theirs.map(|(id, entry)| (*id, entry.waits, entry.message.qos)).collect();
        let (mut kept, mut under_way) = (0, 0);
        for (id, waits, qos) in theirs {
            let promised = self.finish(id, journal);
            let exactly_once = qos == QoS::ExactlyOnce && !waits;
            (kept, under_way) =
                (kept + usize::from(promised && !exactly_once), under_way + usize::from(exactly_once));
        }
        (kept, under_way)
    }

    /// The next message that waits for this link.
    pub(super) fn front(&self, via: Via) -> Option<(UplinkId, Sender, Message)> {
        let (_, id) = *self.waiting.range((via, UplinkId(0))..=(via, UplinkId(u64::MAX))).next()?;
        let entry = self.entries.get(&id)?;
        Some((id, entry.sender.clone(), entry.message.clone()))
    }

    /// What was at the front is under way.
    pub(super) fn pass(&mut self, id: UplinkId) {
        self.stop_waiting(id);
    }

    /// The client has no link of its own any more: what it was promised goes by the gateway's, the rest is nobody's. What the
    /// broker has taken over is over with it if that link is up: PUBREL has left on it. If not, the broker may never hear it,
    /// and some publish at PUBREL only.
    pub(super) fn hand_over(&mut self, client: SessionKey, is_up: bool, journal: &mut Journal) {
        let theirs = self.dedicated.range((client, UplinkId(0))..=(client, UplinkId(u64::MAX)));
        let theirs: Vec<_> = theirs.map(|(_, id)| *id).collect();
        for id in theirs {
            self.stop_waiting(id);
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if !entry.promised || (entry.released && is_up) {
                self.finish(id, journal);
                continue;
            }
            self.dedicated.remove(&(client, id));
            (entry.via, entry.packet, entry.released) = (Via::Gateway, None, false);
            if entry.stored {
                entry.put_down(id, Whose::Client(client), journal);
            }
            self.wait(id);
        }
    }

    /// Gives up what has waited for too long. How many.
    pub(super) fn expire(&mut self, limits: &OutageQueue, now: Instant, journal: &mut Journal) -> u64 {
        let mut expired = 0;
        while self.poll_timeout(limits).is_some_and(|at| at <= now)
            && let Some(id) = self.ages.first().copied()
        {
            self.finish(id, journal);
            expired += 1;
        }
        expired
    }

    /// When [`Backlog::expire`] has something to do.
    pub(super) fn poll_timeout(&self, limits: &OutageQueue) -> Option<Instant> {
        let oldest = self.entries.get(self.ages.first()?)?;
        oldest.since.checked_add(limits.age)
    }

    /// A message that was there before a restart, and whether it waits for its link or that goes on with it. `changed` says
    /// that its row is not as this one.
    pub(super) fn restore(
        &mut self,
        id: UplinkId,
        (sender, via): (Sender, Via),
        row: UplinkRow,
        (waits, changed): (bool, bool),
        now: Instant,
        journal: &mut Journal,
    ) {
        let UplinkRow { message, packet, released, promised, .. } = row;
        let new = Entry::new(sender, via, message, now);
        let entry = Entry { packet, released, promised, stored: true, ..new };
        if changed {
            journal.update_in_time(entry.row(id));
        }
        if entry.promised {
            self.count_in(&entry);
        }
        self.insert(id, entry);
        if waits {
            self.wait(id);
        }
    }

    /// Whether a message of this client is here, and whether the broker has taken it over.
    pub(super) fn is_released(&self, id: UplinkId, client: &ClientId) -> Option<bool> {
        let entry = self.entries.get(&id).filter(|entry| entry.sender.id == *client)?;
        Some(entry.released)
    }

    fn insert(&mut self, id: UplinkId, entry: Entry) {
        if let Via::Client(client) = entry.via {
            self.dedicated.insert((client, id));
        }
        self.entries.insert(id, entry);
    }

    fn wait(&mut self, id: UplinkId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.waits = true;
        self.waiting.insert((entry.via, id));
        self.ages.insert(id);
        if entry.has_an_order() {
            *self.waiting_of.entry(entry.sender.id.clone()).or_insert(0) += 1;
        } else {
            self.fleeting.insert(id);
        }
    }

    fn stop_waiting(&mut self, id: UplinkId) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.waits) else { return };
        entry.waits = false;
        self.waiting.remove(&(entry.via, id));
        self.ages.remove(&id);
        self.fleeting.remove(&id);
        if !entry.has_an_order() {
            return;
        }
        let Some(waiting) = self.waiting_of.get_mut(&entry.sender.id) else { return };
        *waiting -= 1;
        if *waiting == 0 {
            self.waiting_of.remove(&entry.sender.id);
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
