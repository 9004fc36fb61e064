//! The store as one more peripheral: batches are handed to it, are written some time later, and reported durable later
//! still. A crash keeps the batches that were reported, and of the others as many, in their order, as chance will have it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use mqtt_sn_gateway::gateway::io::Mode;
use mqtt_sn_gateway::gateway::record::{ClientKey, Key, Lsn, Record, Row, SessionRow, Standing};

use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use crate::air::client_id;
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::link::{self, Lane};

/// What it holds.
#[derive(Default)]
pub(crate) struct Store {
    /// What was reported durable.
    rows: BTreeMap<Key, Row>,
    /// And what there is once everything is written.
    head: BTreeMap<Key, Row>,
    /// Batches that were not reported.
    waiting: VecDeque<(Lsn, Vec<Record>)>,
    last: Lsn,
    reported: Lsn,
    /// Where something of a client was deleted last.
    deleted: BTreeMap<Who, Lsn>,
    /// When rows that are no more were last durable.
    gone: BTreeMap<Key, Instant>,
    /// Counts processes: what an earlier one waited for is of no account.
    pub(crate) process: u32,
    /// When the last batch is reported.
    pub(crate) at: Option<Instant>,
    /// It cannot write.
    pub(crate) fails: bool,
    pub(crate) batches: u64,
    pub(crate) records: u64,
}

impl Store {
    /// A batch is handed out. Returns the clients whose session ends with it, or is another one from here on.
    pub(crate) fn take(&mut self, lsn: Lsn, records: Vec<Record>) -> Checked<Vec<Who>> {
        Law::Rows.check(lsn.0 == self.last.0 + 1 && !records.is_empty(), || {
            format!("batch {lsn:?} of {} records after {:?}", records.len(), self.last)
        })?;
        self.last = lsn;
        (self.batches, self.records) = (self.batches + 1, self.records + records.len() as u64);
        let mut ended = Vec::new();
        for record in &records {
            let ends = match record {
                Record::Insert(row) => {
                    let before = self.head.insert(row.key(), row.clone());
                    Law::Rows
                        .check(before.is_none(), || format!("{row:?} is inserted where {before:?} is"))?;
                    None
                }
                Record::Update(row) => {
                    let before = self.head.insert(row.key(), row.clone());
                    // A message may leave under the packet id that it had in a session which is no more.
                    let same = before.as_ref() == Some(row) && !matches!(row, Row::Uplink(..));
                    let fair = before.is_some() && !same;
                    Law::Rows.check(fair, || format!("{row:?} takes the place of {before:?}"))?;
                    before.filter(|before| begins_anew(before, row))
                }
                Record::Delete(key) => {
                    self.deleted.extend(client(key).map(|who| (who, lsn)));
                    let before = self.head.remove(key);
                    Law::Rows.check(before.is_some(), || format!("{key:?} is deleted and is not there"))?;
                    before.filter(|before| matches!(before, Row::Session(..)))
                }
            };
            ended.extend(ends.as_ref().and_then(|row| client(&row.key())));
        }
        self.waiting.push_back((lsn, records));
        Ok(ended)
    }

    /// Whether there is something to report of this batch.
    pub(crate) fn is_open(&self, lsn: Lsn) -> bool {
        lsn > self.reported && lsn <= self.last
    }

    /// The last batch that was handed out, and whether it waits.
    pub(crate) fn last(&self) -> Option<Lsn> {
        self.waiting.back().map(|(lsn, _)| *lsn)
    }

    /// Everything up to this batch is durable, and the gateway is about to hear that.
    pub(crate) fn durable(&mut self, lsn: Lsn, now: Instant) {
        while self.waiting.front().is_some_and(|(waiting, _)| *waiting <= lsn) {
            let records = self.waiting.pop_front().map_or_else(Vec::new, |(_, records)| records);
            self.apply(records, now);
        }
        self.reported = lsn;
    }

    /// The process dies; so many of the batches that were not reported are there nevertheless.
    pub(crate) fn crash(&mut self, more: usize, now: Instant) {
        for _ in 0..more {
            if let Some((_, records)) = self.waiting.pop_front() {
                self.apply(records, now);
            }
        }
        self.waiting.clear();
        self.head = self.rows.clone();
        (self.last, self.reported, self.at) = (Lsn(0), Lsn(0), None);
        self.deleted.clear();
        self.process += 1;
    }

    fn apply(&mut self, records: Vec<Record>, now: Instant) {
        for record in records {
            match record {
                Record::Insert(row) | Record::Update(row) => _ = self.rows.insert(row.key(), row),
                Record::Delete(key) => {
                    self.rows.remove(&key);
                    self.gone.insert(key, now);
                }
            }
        }
    }

    /// Batches that were not reported.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The last batch in which something of a client was deleted.
    pub(crate) fn last_deleted(&self, who: Who) -> Lsn {
        self.deleted.get(&who).copied().unwrap_or_default()
    }

    /// The last that was reported durable.
    pub(crate) fn reported(&self) -> Lsn {
        self.reported
    }

    /// What there is of a client, as it will be.
    pub(crate) fn rows_of(&self, who: Who) -> Vec<&Row> {
        self.head.values().filter(|row| client(&row.key()) == Some(who)).collect()
    }

    /// What is durable.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// Whether a row is durable, or was at some time since.
    pub(crate) fn has_had(&self, key: &Key, since: Instant) -> bool {
        self.rows.contains_key(key) || self.gone.get(key).is_some_and(|at| *at >= since)
    }

    /// Whether a row is there, or will be.
    pub(crate) fn will_have(&self, key: &Key) -> bool {
        self.head.contains_key(key)
    }

    /// Whether several filters on one of the gateway's own links match.
    pub(crate) fn has_crowded(&self, topic: &TopicName) -> bool {
        let mut links = BTreeSet::new();
        let matching = self.rows.values().filter_map(|row| match row {
            Row::Filter(number, filter, _) if filter.matches(topic) => Some(*number),
            _ => None,
        });
        matching.into_iter().any(|number| !links.insert(number))
    }

    /// What a client has subscribed to, as it will be.
    pub(crate) fn subscriptions(&self, who: Who) -> impl Iterator<Item = (TopicFilter, Qos)> {
        let id = client_id(who);
        let first = Key::Client(id.clone(), ClientKey::Session);
        let theirs = self.head.range(first..).map(|(_, row)| row);
        let theirs = theirs.take_while(move |row| matches!(row.key(), Key::Client(other, _) if other == id));
        theirs.filter_map(|row| match row {
            Row::Subscription(_, filter, row) => Some((filter.clone(), link::qos(row.qos))),
            _ => None,
        })
    }

    /// G2: what the broker is told on this link is taken care of is on disk for those who have not settled it.
    pub(crate) fn check_acked(&self, no: No, lane: Lane, ledger: &Ledger) -> Checked {
        let is_served = |who: Who| match lane {
            Lane::Client(client) => who == client,
            Lane::Gateway(_) => !self.is_dedicated(who),
        };
        for row in self.head.values() {
            let Row::Waiting(_, _, waiting) = row else { continue };
            let key = Key::Message(waiting.message);
            let Some(Row::Message(_, message)) = self.head.get(&key) else { continue };
            if !client(&row.key()).is_some_and(is_served) || ledger.find(&message.payload) != Some(no) {
                continue;
            }
            let stored = [row.key(), key].iter().all(|key| self.rows.contains_key(key));
            Law::SettledBeforeAck.check(stored, || {
                format!("m{no} is acknowledged to the broker, and {:?} is not stored", row.key())
            })?;
        }
        Ok(())
    }

    /// The row of a message on the way to the broker, as it will be.
    pub(crate) fn row(&self, key: &Key) -> Option<&Row> {
        self.head.get(key)
    }

    /// The message that waits for a client under this key, as it will be.
    pub(crate) fn message_of(&self, key: &Key, ledger: &Ledger) -> Option<No> {
        let Some(Row::Waiting(_, _, waiting)) = self.head.get(key) else { return None };
        let Some(Row::Message(_, message)) = self.head.get(&Key::Message(waiting.message)) else {
            return None;
        };
        ledger.find(&message.payload)
    }

    /// The row of a session, as it will be.
    pub(crate) fn session(&self, who: Who) -> Option<&SessionRow> {
        match self.head.get(&Key::Client(client_id(who), ClientKey::Session)) {
            Some(Row::Session(_, row)) => Some(row),
            _ => None,
        }
    }

    /// Whether a client is connected and does not sleep.
    pub(crate) fn is_active(&self, who: Who) -> bool {
        let standing = self.session(who).map(|row| row.standing);
        standing.is_some_and(|standing| matches!(standing, Standing::Active | Standing::Leaving))
    }

    /// Whether a client has a link of its own.
    pub(crate) fn is_dedicated(&self, who: Who) -> bool {
        let key = Key::Client(client_id(who), ClientKey::Session);
        matches!(self.head.get(&key), Some(Row::Session(_, row)) if row.mode == Mode::Transparent)
    }

    /// What the broker has on the gateway's own links, as it will be.
    pub(crate) fn filters(&self) -> BTreeSet<TopicFilter> {
        let filters = self.head.values().filter_map(|row| match row {
            Row::Filter(_, filter, _) => Some(filter.clone()),
            _ => None,
        });
        filters.collect()
    }

    pub(crate) fn has_gateway(&self) -> bool {
        self.rows.contains_key(&Key::Gateway)
    }
}

/// Whether the row of a session stands for another one than the row before.
fn begins_anew(before: &Row, after: &Row) -> bool {
    match (before, after) {
        (Row::Session(_, before), Row::Session(_, after)) => {
            before.mode != after.mode
                || ((before.clean || after.clean) && before.connections != after.connections)
        }
        _ => false,
    }
}

/// Whose row this is.
pub(crate) fn client(key: &Key) -> Option<Who> {
    match key {
        Key::Client(id, _) => id.as_str().strip_prefix('s')?.parse().ok(),
        Key::Gateway | Key::Message(_) | Key::Received(..) | Key::Filter(..) => None,
    }
}

/// Whether a row is there only as long as something is under way.
pub(crate) fn is_passing(row: &Row) -> bool {
    match row.key() {
        Key::Gateway | Key::Filter(..) | Key::Received(..) => false,
        Key::Message(_) => true,
        Key::Client(_, key) => match key {
            ClientKey::Session
            | ClientKey::Will
            | ClientKey::Topic(_)
            | ClientKey::Subscription(_)
            | ClientKey::Exchange(_)
            | ClientKey::Received(_) => false,
            ClientKey::Waiting(_) | ClientKey::Releasing(_) | ClientKey::Uplink(_) => true,
        },
    }
}
