//! A disk that fails: nothing is lost that was handed over, and nothing is said to be durable that is not.

use std::time::{Duration, Instant};

use super::medium::{Fault, Medium};
use super::world::{World, empty, restore};
use crate::gateway::record::{Lsn, Outcome, Record, Row};
use crate::store::base::Base;
use crate::store::{COMMIT, Pace, Store};
use crate::topic::ClientId;

const BATCHES: u64 = 6;

const PACE: Pace =
    Pace { interval: Duration::ZERO, retry: Duration::from_millis(1), retry_max: Duration::from_millis(1) };

#[tokio::test]
async fn whichever_write_or_sync_fails_everything_is_durable_in_the_end() {
    let all = run(None).await.ops;
    let mut failed = 0;
    for at in 0..all {
        let end = run(Some(Fault::Once(at))).await;
        failed += u64::from(end.failures > 0);
    }
    println!("{failed} of {all} operations failed a commit");
    assert!(failed as usize > all / 2, "{failed} of {all}");
}

#[tokio::test]
async fn an_outage_is_reported_once_and_nothing_is_lost_in_it() {
    let all = run(None).await.ops;
    for at in (0..all - 20).step_by(7) {
        let medium = Medium::of(empty());
        let store = open(&medium, PACE);
        medium.fail(Some(Fault::From(medium.ops() + at)));
        let mut world = World::new(11);
        let (mut last, mut durable) = (0, 0);
        let unavailable = loop {
            last += 1;
            assert!(last < 1000, "{at}: the disk fails");
            store.submit(Lsn(last), world.batch());
            match store.stored().await {
                (lsn, Outcome::Durable) => durable = lsn.0,
                (lsn, outcome) => break (lsn.0, outcome),
            }
        };
        assert_eq!(unavailable, (durable + 1, Outcome::Unavailable), "{at}");
        for failures in 2..=4 {
            for _ in 0..3 {
                last += 1;
                store.submit(Lsn(last), world.batch());
            }
            while store.counters().failures < failures {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let counters = store.counters();
            assert!(counters.unavailable && counters.records_pending > 0, "{at}: {counters:?}");
        }
        medium.fail(None);
        loop {
            let (lsn, outcome) = store.stored().await;
            assert_eq!(outcome, Outcome::Durable, "{at}: said once");
            if lsn == Lsn(last) {
                break;
            }
        }
        assert_eq!(restore(medium.stable()).unwrap(), world.sorted(), "{at}");
        assert!(!store.counters().unavailable);
    }
}

/// What failed is perhaps in the file: not even its opposite comes to nothing.
#[tokio::test]
async fn what_is_taken_back_while_the_disk_fails_still_waits_for_it() {
    let row = |n| Row::Releasing(ClientId::new("n1").unwrap(), n);
    for attempts in [1, 3] {
        let medium = Medium::of(empty());
        let store = open(&medium, PACE);
        medium.fail(Some(Fault::From(medium.ops())));
        store.submit(Lsn(1), vec![Record::Insert(row(1))]);
        assert_eq!(store.stored().await, (Lsn(1), Outcome::Unavailable));
        store.submit(Lsn(2), vec![Record::Delete(row(1).key())]);
        store.submit(Lsn(3), vec![Record::Insert(row(2)), Record::Delete(row(2).key())]);
        while store.counters().failures < attempts {
            tokio::task::yield_now().await;
        }
        let counters = store.counters();
        assert!(counters.unavailable && counters.records_pending > 0, "{counters:?}");
        assert!(store.shared.state().report().is_none());
        medium.fail(None);
        while store.stored().await != (Lsn(3), Outcome::Durable) {}
        let counters = store.counters();
        assert_eq!((counters.unavailable, counters.records_pending), (false, 0));
        assert!(restore(medium.stable()).unwrap().is_empty());
    }
}

#[test]
fn the_pause_between_attempts_doubles_up_to_half_a_minute() {
    let pace = Pace::new(COMMIT);
    let pauses: Vec<_> = (1..=8).map(|failures| pace.pause(failures).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    assert_eq!(pace.pause(u32::MAX), Duration::from_secs(30));
}

/// Of the pauses only the shortest is certain.
#[tokio::test]
async fn the_pause_is_waited_for() {
    let pace = Pace { retry: Duration::from_millis(20), retry_max: Duration::from_millis(40), ..PACE };
    let medium = Medium::of(empty());
    let store = open(&medium, pace);
    medium.fail(Some(Fault::From(medium.ops())));
    let begun = Instant::now();
    store.submit(Lsn(1), vec![Record::Insert(Row::Releasing(ClientId::new("n1").unwrap(), 1))]);
    while store.counters().failures < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(20 + 40 + 40));
}

struct Run {
    ops: usize,
    failures: u64,
}

/// A few batches, each awaited, on a disk that fails so. With each report, what a power loss would leave is looked at.
async fn run(fault: Option<Fault>) -> Run {
    let medium = Medium::of(empty());
    let store = open(&medium, PACE);
    let before = medium.ops();
    medium.fail(fault.map(|fault| match fault {
        Fault::Once(at) => Fault::Once(before + at),
        Fault::From(at) => Fault::From(before + at),
    }));
    let mut world = World::new(11);
    let mut last = 0;
    for _ in 0..BATCHES {
        last += 1;
        store.submit(Lsn(last), world.batch());
        let unavailable = Lsn(last);
        loop {
            match store.stored().await {
                (durable, Outcome::Durable) if durable == Lsn(last) => break,
                (durable, Outcome::Durable) => assert!(durable >= unavailable),
                (at, outcome) => {
                    assert_eq!((at, outcome), (unavailable, Outcome::Unavailable));
                    // Others come while nobody knows what of it is in the file.
                    for _ in 0..3 {
                        last += 1;
                        store.submit(Lsn(last), world.batch());
                    }
                }
            }
        }
        assert_eq!(restore(medium.stable()).unwrap(), world.sorted(), "{fault:?}, batch {last}");
    }
    let counters = store.counters();
    assert_eq!(counters.misplaced, 0);
    store.close().await.unwrap();
    Run { ops: medium.ops() - before, failures: counters.failures }
}

pub(super) fn open(medium: &Medium, pace: Pace) -> Store {
    let base = Base::open(medium.boxed()).unwrap();
    let medium = medium.clone();
    Store::start(base, pace, || Ok(()), move || Base::open(medium.boxed())).unwrap()
}
