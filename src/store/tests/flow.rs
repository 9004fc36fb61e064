//! What is written, when, and what never is.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::fault::open;
use super::medium::{Fault, Medium};
use super::world::{World, empty, message, restore, topic, waiting};
use crate::gateway::record::{Key, Lsn, MessageId, Outcome, Record, Row};
use crate::mqtt::Received;
use crate::store::pending::{Change, Pending};
use crate::store::{CloseError, Pace, Store, of_client};
use crate::topic::ClientId;

/// No second commit within a test.
const SLOW: Pace = Pace {
    interval: Duration::from_secs(3600),
    retry: Duration::from_secs(3600),
    retry_max: Duration::from_secs(3600),
};

#[tokio::test]
async fn what_is_settled_before_its_commit_is_never_written_and_needs_none() {
    let medium = Medium::of(empty());
    let store = open(&medium, SLOW);
    store.submit(Lsn(1), vec![Record::Insert(row(1, "a"))]);
    assert_eq!(store.stored().await, (Lsn(1), Outcome::Durable));
    let ops = medium.ops();
    store.submit(Lsn(2), vec![Record::Insert(row(2, "a")), Record::Insert(row(3, "a"))]);
    store.submit(Lsn(3), vec![Record::Update(row(2, "b"))]);
    store.submit(Lsn(4), vec![Record::Delete(row(2, "b").key())]);
    assert_eq!(store.counters().records_pending, 1);
    store.submit(Lsn(5), vec![Record::Delete(row(3, "a").key())]);
    assert_eq!(store.stored().await, (Lsn(5), Outcome::Durable));
    let counters = store.counters();
    assert_eq!((counters.commits, counters.records_written, counters.records_settled), (1, 1, 5));
    assert_eq!(medium.ops(), ops);
}

#[tokio::test]
async fn what_comes_during_a_commit_goes_into_one_that_follows() {
    let medium = Medium::of(empty());
    let store = open(&medium, Pace { interval: Duration::ZERO, ..SLOW });
    medium.hold(true);
    store.submit(Lsn(1), vec![Record::Insert(row(1, "a"))]);
    while store.shared.state().writing == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.counters().records_pending, 1);
    // Of this nothing is left to write, but what was before it is not durable.
    store.submit(Lsn(2), vec![Record::Insert(row(2, "a")), Record::Delete(row(2, "a").key())]);
    assert!(store.shared.state().report().is_none());
    for n in 3..=1001 {
        store.submit(Lsn(n), vec![Record::Insert(row(n, "a"))]);
    }
    medium.hold(false);
    let mut last = store.stored().await;
    assert_eq!(last.1, Outcome::Durable);
    if last.0 == Lsn(1) {
        last = store.stored().await;
    }
    assert_eq!(last, (Lsn(1001), Outcome::Durable));
    let counters = store.counters();
    assert_eq!((counters.commits, counters.records_written), (2, 1000));
    assert_eq!(restore(medium.stable()).unwrap().len(), 1000);
}

#[tokio::test]
async fn closing_writes_what_waits() {
    let medium = Medium::of(empty());
    let store = open(&medium, SLOW);
    let mut world = World::new(5);
    for lsn in 1..=20 {
        store.submit(Lsn(lsn), world.batch());
    }
    store.close().await.unwrap();
    assert_eq!(restore(medium.stable()).unwrap(), world.sorted());
}

#[tokio::test]
async fn closing_tries_once_more_and_says_what_is_left() {
    for (faults, left) in [(Fault::Once(0), 0), (Fault::From(0), 2)] {
        let medium = Medium::of(empty());
        let store = open(&medium, SLOW);
        medium.fail(Some(match faults {
            Fault::Once(_) => Fault::Once(medium.ops()),
            Fault::From(_) => Fault::From(medium.ops()),
        }));
        store.submit(Lsn(1), vec![Record::Insert(row(1, "a"))]);
        assert_eq!(store.stored().await, (Lsn(1), Outcome::Unavailable));
        store.submit(Lsn(2), vec![Record::Insert(row(2, "a"))]);
        let closed = store.close().await;
        assert_eq!(closed, if left == 0 { Ok(()) } else { Err(CloseError::Unwritten { batches: left }) });
    }
}

#[tokio::test]
async fn in_memory_everything_is_durable_at_once() {
    let store = Store::memory();
    store.submit(Lsn(1), vec![Record::Insert(row(1, "a"))]);
    store.submit(Lsn(2), vec![]);
    assert_eq!(store.stored().await, (Lsn(2), Outcome::Durable));
    assert_eq!(store.counters(), crate::store::Counters::default());
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_row_that_is_inserted_where_one_is_counts_as_a_fault_of_the_core() {
    let medium = Medium::of(empty());
    let store = open(&medium, Pace { interval: Duration::ZERO, ..SLOW });
    for lsn in 1..=2 {
        store.submit(Lsn(lsn), vec![Record::Insert(row(1, "a"))]);
        assert_eq!(store.stored().await, (Lsn(lsn), Outcome::Durable));
    }
    assert_eq!(store.counters().misplaced, 1);
}

#[test]
fn a_client_takes_with_it_what_waits_for_nobody_else() {
    let id = |id: &str| ClientId::new(id).unwrap();
    let rows = [
        Row::Message(MessageId(1), message("of both").into()),
        Row::Message(MessageId(2), message("of n1").into()),
        Row::Message(MessageId(3), message("of n2").into()),
        Row::Message(MessageId(4), message("of nobody").into()),
        Row::Received(1, Received { packet: 1, digest: 2 }),
        Row::Releasing(id("n1"), 4),
        Row::Waiting(id("n1"), 1, waiting(1)),
        Row::Waiting(id("n1"), 2, waiting(2)),
        Row::Waiting(id("n1"), 3, waiting(2)),
        Row::Releasing(id("n10"), 4),
        Row::Waiting(id("n2"), 1, waiting(1)),
        Row::Waiting(id("n2"), 2, waiting(3)),
    ];
    let gone = of_client(&rows, &id("n1"));
    let expected: Vec<_> = [1, 5, 6, 7, 8].map(|at: usize| rows[at].key()).into();
    assert_eq!(gone, expected);
    assert!(of_client(&rows, &id("n")).is_empty());
}

proptest! {
    /// Whatever becomes of commits: once all is written, the file holds what it is to hold.
    #[test]
    fn changes_that_are_merged_and_put_back_come_to_the_same(
        seed in any::<u64>(),
        fates in prop::collection::vec(0..4u8, 1..30),
    ) {
        let mut world = World::new(seed);
        let mut file = BTreeMap::new();
        let mut pending = Pending::default();
        for fate in fates {
            pending.add(world.batch());
            if fate == 0 {
                continue;
            }
            let commit = std::mem::take(&mut pending);
            // It comes during the commit.
            pending.add(world.batch());
            match fate {
                1 => apply(&commit, &mut file),
                // It fails, and is in the file or not.
                2 => pending.put_back(commit),
                _ => {
                    apply(&commit, &mut file);
                    pending.put_back(commit);
                }
            }
        }
        apply(&pending, &mut file);
        prop_assert_eq!(file, world.rows);
    }
}

fn apply(changes: &Pending, file: &mut BTreeMap<Key, Row>) {
    for (key, change) in changes.iter() {
        let old = match change {
            Change::Put { row, .. } => file.insert(key.clone(), row.clone()),
            Change::Delete => file.remove(key),
        };
        assert!(!matches!(change, Change::Put { fresh: true, .. }) || old.is_none(), "{key:?} is not fresh");
    }
}

fn row(n: u64, name: &str) -> Row {
    Row::Topic(ClientId::new("n1").unwrap(), n as u16, topic(name))
}
