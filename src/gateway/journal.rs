//! What is to be stored, and what has to wait for it.
//!
//! Changes gather here as records until [`Journal::seal`] makes a batch of them. What leaves for a client or on a link for
//! which something changed stays here until the batch is durable, so that nobody is promised what a crash could take back
//! (design promises G1 to G3, G5); nobody else waits. Of what leaves for one client or on one link the order is kept.
//!
//! A store that hangs is treated as one that cannot be written as soon as too many records wait for it ([`UNWRITTEN_MAX`]), or one
//! for too long ([`UNWRITTEN_AGE_MAX`]), but for what waits already: that leaves when it is durable.
//!
//! While the store is unavailable its batches wait for it, and so do acknowledgements to the broker. Frames that promise
//! something are dropped and counted, for the client will ask again and is told `congestion`; what promises nothing goes on,
//! and so do the links: that QoS 2 comes once, and that the broker has no filter which nobody here knows, is then true only as long
//! as this process lives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tracing::{info, warn};

use super::ClientKey;
use super::counters::Counters;
use super::few::pop_spare;
use super::io::{Answer, LinkCommand, LinkId, Output, PortId, Target};
use super::links::Delivery;
use super::record::{Key, Lsn, MessageId, Outcome, Record, Row};
use crate::mqtt::Message;
use crate::topic::ClientId;

/// Frames that may wait for a store which neither writes nor says that it cannot: a few for each client of a large network.
const HELD_MAX: usize = 65_536;

/// Records in batches that are not durable, past which clients are refused what would make more: a store that is slow takes so
/// many in some seconds, and they are some ten megabytes. What still comes belongs to what there is, which has limits of its
/// own, and the store writes one change for each row.
const UNWRITTEN_MAX: usize = 65_536;

/// How old the oldest batch may become that is not durable, before clients are refused what would make more. Flash that tidies
/// up takes a second or two; a client asks again after 10 s or more (§7.2), and should then be told.
const UNWRITTEN_AGE_MAX: Duration = Duration::from_secs(5);

/// Batches whose sizes and ages are told apart: a second of a store that hangs.
const BATCHES_MAX: usize = 1024;

/// Marks that are forgotten together: few enough to cost nothing, enough for that to be rare.
const MARKED_IDLE_MAX: usize = 1024;

/// For whom something is: what leaves for it leaves in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Client(ClientKey),
    Link(LinkId),
    /// Somebody who may have had a session until a moment ago: it waits for everything.
    Anybody,
}

/// Something that is to leave.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) output: Output,
    /// For whom, if anything that is stored may matter to it.
    pub(super) whose: Option<Whose>,
    /// The receiver relies on it after a restart.
    pub(super) promises: bool,
    /// It is the answer to a client that falls asleep.
    pub(super) puts_to_sleep: bool,
}

impl Leaving {
    pub(super) fn on_link(id: LinkId, command: LinkCommand) -> Self {
        let waits = !matches!(command, LinkCommand::Connect { .. });
        let whose = waits.then_some(Whose::Link(id));
        Self { whose, ..Self::of_nobody(Output::Link(id, command)) }
    }

    /// What waits for nothing.
    pub(super) fn of_nobody(output: Output) -> Self {
        Self { output, whose: None, promises: false, puts_to_sleep: false }
    }

    /// Whether it is a frame for this transport.
    pub(super) fn is_on(&self, port: PortId) -> bool {
        is_on(&self.output, port)
    }
}

fn is_on(output: &Output, port: PortId) -> bool {
    let Output::Send { to: Target::Unicast { port: on, .. } | Target::Broadcast { port: on, .. }, .. } =
        output
    else {
        return false;
    };
    *on == port
}

#[derive(Debug)]
pub(super) struct Journal {
    records: Vec<Record>,
    /// Whom they concern.
    changed: Vec<Whose>,
    sealed: Lsn,
    durable: Lsn,
    available: bool,
    /// Batches that are not durable, in their order.
    batches: VecDeque<Batches>,
    /// Records in them.
    unwritten: usize,
    /// There were too many, and there still are more than half of that; or the oldest is too old.
    behind: bool,
    /// For whom something changed that is not durable, and in which batch last.
    marks: FxHashMap<Whose, Lsn>,
    marked: VecDeque<(Lsn, Whose)>,
    held: BTreeMap<Lsn, Vec<Leaving>>,
    held_len: usize,
    /// What was held and may leave now.
    released: VecDeque<Output>,
    /// What the broker is told when a batch is durable.
    settling: VecDeque<(Lsn, Delivery)>,
    /// What the operator is told when a batch is durable, however long that takes.
    answers: VecDeque<(Lsn, ClientId, Output)>,
    /// For how many clients messages are kept.
    messages: FxHashMap<MessageId, usize>,
    last_number: u64,
}

/// Batches in a row that are counted as one.
#[derive(Debug, Clone, Copy)]
struct Batches {
    last: Lsn,
    records: usize,
    /// When the first of them was handed out.
    since: Instant,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            changed: Vec::new(),
            sealed: Lsn(0),
            durable: Lsn(0),
            available: true,
            batches: VecDeque::new(),
            unwritten: 0,
            behind: false,
            marks: FxHashMap::default(),
            marked: VecDeque::new(),
            held: BTreeMap::new(),
            held_len: 0,
            released: VecDeque::new(),
            settling: VecDeque::new(),
            answers: VecDeque::new(),
            messages: FxHashMap::default(),
            last_number: 0,
        }
    }
}

impl Journal {
    /// A number that has not been used, nor will be: of messages, and of the order in which they came.
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A stored row has this number.
    pub(super) fn restore_number(&mut self, number: u64) {
        self.last_number = self.last_number.max(number);
    }

    /// Whether what is put here will be durable soon.
    pub(super) fn is_available(&self) -> bool {
        self.available && !self.behind
    }

    /// Whether the store has said that it cannot write: what would wait for it is dropped.
    pub(super) fn has_failed(&self) -> bool {
        !self.available
    }

    /// Whether this batch is not durable, and the store has said that it cannot write: who would be told of it is not.
    pub(super) fn has_failed_at(&self, lsn: Lsn) -> bool {
        !self.available && !self.is_durable(lsn)
    }

    pub(super) fn is_durable(&self, lsn: Lsn) -> bool {
        lsn <= self.durable
    }

    /// Whether what was made for it before this batch was handed out may not have left, because of the store.
    pub(super) fn is_waiting(&self, whose: Whose, lsn: Lsn) -> bool {
        lsn > self.durable && self.marks.contains_key(&whose)
    }

    /// The batch that has to be durable before what is made for it now leaves: one that is, if there is nothing to wait for.
    pub(super) fn batch_of(&self, whose: Whose) -> Lsn {
        if self.changed.contains(&whose) {
            return self.next();
        }
        self.marks.get(&whose).copied().unwrap_or_default()
    }

    /// Whether what waits for this batch is still here.
    pub(super) fn is_holding(&self, lsn: Lsn) -> bool {
        self.available && !self.is_durable(lsn)
    }

    pub(super) fn insert(&mut self, whose: Whose, row: Row) {
        self.put(whose, Record::Insert(row));
    }

    pub(super) fn update(&mut self, whose: Whose, row: Row) {
        self.put(whose, Record::Update(row));
    }

    pub(super) fn delete(&mut self, whose: Whose, key: Key) {
        self.put(whose, Record::Delete(key));
    }

    fn put(&mut self, whose: Whose, record: Record) {
        self.records.push(record);
        if self.changed.last() != Some(&whose) {
            self.changed.push(whose);
        }
    }

    /// Adds what nothing leaves for: who needs it waits by [`Journal::settle_when_durable`].
    pub(super) fn insert_in_time(&mut self, row: Row) {
        self.records.push(Record::Insert(row));
    }

    /// As [`Journal::insert_in_time`], of a row that there is.
    pub(super) fn update_in_time(&mut self, row: Row) {
        self.records.push(Record::Update(row));
    }

    /// Removes what need not be gone before anything leaves: if it is there again after a crash, it does no harm.
    pub(super) fn delete_in_time(&mut self, key: Key) {
        self.records.push(Record::Delete(key));
    }

    /// Keeps a message for one more client: the first time it is written.
    pub(super) fn keep_message(&mut self, id: MessageId, message: &Arc<Message>) {
        let clients = self.messages.entry(id).or_insert(0);
        *clients += 1;
        if *clients == 1 {
            self.records.push(Record::Insert(Row::Message(id, message.clone())));
        }
    }

    /// A message was found that is kept for so many clients.
    pub(super) fn restore_message(&mut self, id: MessageId, clients: usize) {
        self.messages.insert(id, clients);
        self.restore_number(id.0);
    }

    /// One of the clients for which a message is kept has no use for it any more.
    pub(super) fn drop_message(&mut self, id: MessageId) {
        let Some(clients) = self.messages.get_mut(&id) else { return };
        *clients -= 1;
        if *clients == 0 {
            self.messages.remove(&id);
            self.delete_in_time(Key::Message(id));
        }
    }

    /// Everything that was put here so far is about a message that the broker has sent: it is told when that is durable.
    pub(super) fn settle_when_durable(&mut self, delivery: Delivery) {
        let lsn = self.last();
        self.settling.push_back((lsn, delivery));
    }

    /// Lets an answer about this client out when everything that was put here so far is durable.
    pub(super) fn answer_when_durable(&mut self, id: &ClientId, answer: Output) {
        let lsn = self.last();
        if lsn <= self.durable {
            return self.released.push_back(answer);
        }
        self.answers.push_back((lsn, id.clone(), answer));
    }

    /// The session of a client that is forgotten could not be ended at the broker: who has yet to be answered is told.
    pub(super) fn leave_at_broker(&mut self, client: &ClientId) {
        for (_, id, answer) in &mut self.answers {
            if let Output::Answer(_, Answer::Forgotten(gone)) = answer
                && id == client
            {
                gone.at_broker |= gone.session;
            }
        }
    }

    /// Lets an answer out that waits for nothing.
    pub(super) fn answer_at_once(&mut self, answer: Output) {
        self.released.push_back(answer);
    }

    /// The batch with which everything that was put here so far is durable.
    fn last(&self) -> Lsn {
        if self.records.is_empty() { self.sealed } else { self.next() }
    }

    /// A message of the broker that is durable, for as many of its recipients as it comes out here.
    pub(super) fn pop_settled(&mut self) -> Option<Delivery> {
        if self.settling.front()?.0 > self.durable {
            return None;
        }
        self.settling.pop_front().map(|(_, delivery)| delivery)
    }

    /// What changed since the last time, to be stored.
    pub(super) fn seal(&mut self, now: Instant, counters: &mut Counters) -> Option<Output> {
        if self.records.is_empty() {
            return None;
        }
        self.sealed = self.next();
        let lsn = self.sealed;
        for whose in self.changed.drain(..) {
            if self.marks.insert(whose, lsn) != Some(lsn) {
                self.marked.push_back((lsn, whose));
            }
        }
        self.tidy_marks();
        self.count_in(self.records.len(), now, counters);
        Some(Output::Store { lsn, records: std::mem::take(&mut self.records) })
    }

    fn count_in(&mut self, records: usize, now: Instant, counters: &mut Counters) {
        self.unwritten += records;
        let is_full = self.batches.len() >= BATCHES_MAX;
        match self.batches.back_mut().filter(|_| is_full) {
            Some(before) => (before.last, before.records) = (self.sealed, before.records + records),
            None => self.batches.push_back(Batches { last: self.sealed, records, since: now }),
        }
        if self.unwritten > UNWRITTEN_MAX {
            self.fall_behind("the store is too slow: what would need it is refused", counters);
        }
    }

    fn count_out(&mut self, now: Instant) {
        while let Some(batches) = self.batches.front().copied()
            && batches.last <= self.durable
        {
            self.batches.pop_front();
            self.unwritten -= batches.records;
        }
        let is_late = self.late_at().is_some_and(|at| at <= now);
        if self.behind && self.unwritten <= UNWRITTEN_MAX / 2 && !is_late {
            self.behind = false;
            info!("the store has caught up");
        }
    }

    fn fall_behind(&mut self, what: &str, counters: &mut Counters) {
        if !self.behind {
            self.behind = true;
            counters.store_behind += 1;
            warn!(records = self.unwritten, "{what}");
        }
    }

    /// When the oldest batch has waited for too long.
    fn late_at(&self) -> Option<Instant> {
        self.batches.front().map(|oldest| oldest.since + UNWRITTEN_AGE_MAX)
    }

    /// When [`Journal::handle_timeout`] is due: not if it is known that what is put here is not durable soon.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.late_at().filter(|_| self.is_available())
    }

    /// Sees whether the store hangs.
    pub(super) fn handle_timeout(&mut self, now: Instant, counters: &mut Counters) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.fall_behind("the store does not answer: what would need it is refused", counters);
        }
    }

    /// Lets through what waits for nothing; else it comes out of [`Journal::pop_released`] in its time.
    pub(super) fn admit(&mut self, leaving: Leaving, counters: &mut Counters) -> Option<Output> {
        let mark = leaving.whose.and_then(|whose| match whose {
            Whose::Anybody => Some(self.sealed).filter(|sealed| *sealed > self.durable),
            whose => self.marks.get(&whose).copied(),
        });
        let Some(lsn) = mark else { return Some(leaving.output) };
        if self.available && self.held_len < HELD_MAX {
            self.held_len += 1;
            self.held.entry(lsn).or_default().push(leaving);
            return None;
        }
        self.let_go(leaving, counters)
    }

    /// What becomes of something whose batch is not durable in time.
    fn let_go(&mut self, leaving: Leaving, counters: &mut Counters) -> Option<Output> {
        if leaving.promises {
            let counter = if leaving.puts_to_sleep {
                &mut counters.sleeps_unstored
            } else {
                &mut counters.frames_unstored
            };
            *counter += 1;
            return None;
        }
        Some(leaving.output)
    }

    /// Takes out what is held for a transport, and what was and may leave now.
    pub(super) fn cut_off(&mut self, port: PortId) -> Vec<Output> {
        let (mut cut, kept) = self.released.drain(..).partition::<Vec<_>, _>(|output| is_on(output, port));
        self.released = kept.into();
        for held in self.held.values_mut() {
            cut.extend(held.extract_if(.., |leaving| leaving.is_on(port)).map(|leaving| leaving.output));
        }
        self.held_len = self.held.values().map(Vec::len).sum();
        cut
    }

    /// The next of what was held and may leave now.
    pub(super) fn pop_released(&mut self) -> Option<Output> {
        pop_spare(&mut self.released)
    }

    /// What has become of a batch and all before it.
    pub(super) fn handle(&mut self, now: Instant, lsn: Lsn, outcome: Outcome, counters: &mut Counters) {
        match outcome {
            Outcome::Durable => self.handle_durable(now, lsn),
            // Nothing leaves any more.
            Outcome::Fenced => {}
            Outcome::Unavailable => {
                self.available = false;
                for leaving in std::mem::take(&mut self.held).into_values().flatten() {
                    let output = self.let_go(leaving, counters);
                    self.released.extend(output);
                }
                self.held_len = 0;
            }
        }
    }

    /// Forgets what later marks have made idle, so that a store which hangs for long costs no more than there are clients.
    fn tidy_marks(&mut self) {
        if self.marked.len() >= 2 * self.marks.len() + MARKED_IDLE_MAX {
            self.marked.retain(|(lsn, whose)| self.marks.get(whose) == Some(lsn));
        }
    }

    fn handle_durable(&mut self, now: Instant, lsn: Lsn) {
        self.available = true;
        self.durable = self.durable.max(lsn);
        self.count_out(now);
        while let Some((lsn, whose)) = self.marked.front().copied()
            && lsn <= self.durable
        {
            pop_spare(&mut self.marked);
            if self.marks.get(&whose) == Some(&lsn) {
                self.marks.remove(&whose);
            }
        }
        if self.marks.is_empty() && self.marks.capacity() > MARKED_IDLE_MAX {
            self.marks = FxHashMap::default();
        }
        while let Some(held) = self.held.first_entry().filter(|held| *held.key() <= self.durable) {
            let held = held.remove();
            self.held_len -= held.len();
            self.released.extend(held.into_iter().map(|leaving| leaving.output));
        }
        let answers = self.answers.partition_point(|(lsn, ..)| *lsn <= self.durable);
        self.released.extend(self.answers.drain(..answers).map(|(.., answer)| answer));
    }

    /// What waited for one connection waits for the next: it is about the same session.
    pub(super) fn carry(&mut self, from: LinkId, to: LinkId) {
        if let Some(lsn) = self.marks.get(&Whose::Link(from)).copied() {
            self.marks.insert(Whose::Link(to), lsn);
            let at = self.marked.partition_point(|(marked, _)| *marked <= lsn);
            self.marked.insert(at, (lsn, Whose::Link(to)));
        }
        if self.changed.contains(&Whose::Link(from)) {
            self.changed.push(Whose::Link(to));
        }
    }

    /// The batch that is handed out next.
    pub(super) fn next(&self) -> Lsn {
        Lsn(self.sealed.0 + 1)
    }
}
