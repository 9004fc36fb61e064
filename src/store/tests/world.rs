//! What a core might store: batches, and what is there after each.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;

use super::medium::Medium;
use crate::gateway::record::{Key, MessageId, Record, Row, TopicRow, TopicStanding, WaitingRow};
use crate::mqtt::{Message, QoS};
use crate::store::base::{Base, Failure};
use crate::topic::{ClientId, TopicName};

/// The rows there are to be, and where the next batch comes from.
pub(super) struct World {
    rng: fastrand::Rng,
    pub(super) rows: BTreeMap<Key, Row>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), rows: BTreeMap::new() }
    }

    /// One to eight changes; inserts of what is not there, updates and deletes of what is.
    pub(super) fn batch(&mut self) -> Vec<Record> {
        (0..self.rng.usize(1..=8)).map(|_| self.record()).collect()
    }

    fn record(&mut self) -> Record {
        let row = self.row();
        match self.rows.entry(row.key()) {
            Entry::Vacant(entry) => {
                entry.insert(row.clone());
                Record::Insert(row)
            }
            Entry::Occupied(entry) if self.rng.bool() => Record::Delete(entry.remove_entry().0),
            Entry::Occupied(mut entry) => {
                entry.insert(row.clone());
                Record::Update(row)
            }
        }
    }

    fn row(&mut self) -> Row {
        let rng = &mut self.rng;
        let id = ClientId::new(format!("n{}", rng.u8(0..6))).unwrap();
        match rng.u8(0..4) {
            0 => Row::Topic(id, rng.u16(1..4), topic(&format!("t/{}", rng.u16(..)))),
            1 => Row::Waiting(id, rng.u64(0..4), waiting(rng.u64(0..8))),
            2 => Row::Releasing(id, rng.u16(0..3)),
            _ => {
                // Some are of many pages.
                let len = if rng.u8(0..8) == 0 { rng.usize(..40_000) } else { rng.usize(..300) };
                let payload: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
                Row::Message(MessageId(rng.u64(0..8)), message(payload).into())
            }
        }
    }

    pub(super) fn sorted(&self) -> Vec<Row> {
        self.rows.values().cloned().collect()
    }
}

pub(super) fn topic(name: &str) -> TopicRow {
    TopicRow { name: TopicName::new(name).unwrap(), nth: 1, standing: TopicStanding::Known(1) }
}

pub(super) fn waiting(message: u64) -> WaitingRow {
    WaitingRow {
        message: MessageId(message),
        qos: QoS::AtLeastOnce,
        sent_as: None,
        sent_on: None,
        expiry: None,
    }
}

pub(super) fn message(payload: impl Into<Bytes>) -> Message {
    let topic = TopicName::new("some/topic").unwrap();
    Message { topic, payload: payload.into(), qos: QoS::AtLeastOnce, retain: false }
}

/// The image of an empty store.
pub(super) fn empty() -> Vec<u8> {
    let medium = Medium::default();
    Base::create(medium.boxed()).unwrap();
    medium.image()
}

/// What a start finds in such an image.
pub(super) fn restore(image: Vec<u8>) -> Result<Vec<Row>, Failure> {
    Base::open(Medium::of(image).boxed())?.rows()
}
