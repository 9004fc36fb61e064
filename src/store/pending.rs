//! What is still to be written. Batches that follow each other become one change for each key, so it is bounded by what
//! there is to store, not by how long the disk is away.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::gateway::record::{Key, Record, Row};

/// Changes that have not been written, one for each key.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: BTreeMap<Key, Change>,
}

/// The state that a key is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// This row.
    Put {
        /// What it is to hold.
        row: Row,
        /// The file has no row under this key, whatever became of earlier commits.
        fresh: bool,
    },
    /// No row.
    Delete,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// The changes in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Change)> {
        self.changes.iter()
    }

    /// Adds a batch. Returns how many of its records need not be written because of what came after them, or their
    /// predecessors because of them.
    pub(super) fn add(&mut self, records: Vec<Record>) -> u64 {
        let mut settled = 0;
        for record in records {
            settled += match record {
                Record::Insert(row) => self.put(row, true),
                Record::Update(row) => self.put(row, false),
                Record::Delete(key) => self.delete(key),
            };
        }
        settled
    }

    fn put(&mut self, row: Row, inserted: bool) -> u64 {
        match self.changes.entry(row.key()) {
            Entry::Vacant(entry) => {
                entry.insert(Change::Put { row, fresh: inserted });
                0
            }
            Entry::Occupied(mut entry) => {
                // What was to be deleted may be in the file.
                let fresh = matches!(entry.get(), Change::Put { fresh: true, .. });
                entry.insert(Change::Put { row, fresh });
                1
            }
        }
    }

    fn delete(&mut self, key: Key) -> u64 {
        match self.changes.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Change::Delete);
                0
            }
            Entry::Occupied(entry) if matches!(entry.get(), Change::Put { fresh: true, .. }) => {
                entry.remove();
                2
            }
            Entry::Occupied(mut entry) => {
                entry.insert(Change::Delete);
                1
            }
        }
    }

    /// Puts back what could not be written, below what has come since. Nobody knows what of it is in the file, so nothing
    /// of it is fresh any more.
    pub(super) fn put_back(&mut self, failed: Self) {
        for (key, older) in failed.changes {
            match self.changes.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(match older {
                        Change::Put { row, .. } => Change::Put { row, fresh: false },
                        Change::Delete => Change::Delete,
                    });
                }
                Entry::Occupied(mut entry) => {
                    if let Change::Put { fresh, .. } = entry.get_mut() {
                        *fresh = false;
                    }
                }
            }
        }
    }
}
