//! A process that writes and is killed: whatever it has said to be durable is there, and nothing is there by half.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mqtt_sn_gateway::gateway::record::{Lsn, Outcome, Record, Row};
use mqtt_sn_gateway::store::{Options, Store, StoreError};
use tempfile::TempDir;

use crate::files::modes;
use crate::{by_key, message, topic};

/// Where the child has its store.
const DIR: &str = "MQTT_SN_TEST_STORE";

/// How often a child is killed.
const KILLS: u64 = 60;

/// Of what a batch inserts, the one so many batches later takes it away.
const KEPT: u64 = 10;

#[test]
fn what_a_killed_process_called_durable_is_there() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut dir, mut said_in_all, mut created) = (TempDir::new().unwrap(), 0, 0);
    for kill in 0..KILLS {
        // Now and then from nothing, to be killed while the store is made.
        if kill % 4 == 0 {
            dir = TempDir::new().unwrap();
        }
        let place = dir.path().join("store");
        let mut child = start(&place);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = if kill % 4 == 0 { 0 } else { rng.usize(1..40) };
        let mut said = 0;
        for line in lines.by_ref().take(wanted) {
            said = line.unwrap().parse().unwrap();
        }
        std::thread::sleep(Duration::from_micros(rng.u64(..30_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            // The last line may be cut.
            said = line.parse().unwrap_or(said).max(said);
        }
        created += u64::from(place.join("store.redb").exists());
        let (store, rows) = Store::open(&Options::new(&place)).unwrap();
        drop(store);
        let last = check(rows);
        assert!(last >= said, "{kill}: {said} was durable, {last} is there");
        assert!(
            last <= said + 2,
            "{kill}: one commit at most was under way, with one batch each: {said}, {last}"
        );
        said_in_all += said;
    }
    println!("{KILLS} kills, {created} with a file, {said_in_all} batches said to be durable");
    assert!(said_in_all > KILLS);
}

#[test]
fn a_second_process_is_told_who_has_the_store() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("store");
    let mut child = start(&place);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let refused = Store::open(&Options::new(&place)).unwrap_err();
    assert!(matches!(refused, StoreError::InUse { pid: Some(pid), .. } if pid == child.id()), "{refused}");
    // It was made under umask 0.
    assert_eq!(modes(&place), [0o700, 0o600, 0o600]);
    child.kill().unwrap();
    child.wait().unwrap();
    Store::open(&Options::new(&place)).unwrap();
}

/// Not a test by itself: what the child does.
#[tokio::test]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let options = Options { commit: Duration::ZERO, ..Options::new(dir) };
    let (store, rows) = Store::open(&options).unwrap();
    let first = check(rows) + 1;
    // Bounded, should nobody kill it.
    for (lsn, number) in (first..first + 100_000).enumerate().map(|(at, number)| (Lsn(at as u64 + 1), number))
    {
        store.submit(lsn, batch(number));
        assert_eq!(store.stored().await, (lsn, Outcome::Durable));
        let mut out = std::io::stderr();
        // One write each, so that it is there or not.
        let _ = out.write_all(format!("{number}\n").as_bytes());
    }
}

/// A message of some pages, what says how far it has come, and the end of an older message.
fn batch(number: u64) -> Vec<Record> {
    let head = |number: u64| topic("head", 1, &number.to_string());
    let new = message(number, number as usize * 131 % 9_000);
    let mut records = vec![Record::Insert(new)];
    records.push(if number == 1 { Record::Insert(head(1)) } else { Record::Update(head(number)) });
    if let Some(old @ 1..) = number.checked_sub(KEPT) {
        records.push(Record::Delete(message(old, 0).key()));
    }
    records
}

/// How many batches have made these rows: exactly.
fn check(rows: Vec<Row>) -> u64 {
    let head = rows.iter().find_map(|row| match row {
        Row::Topic(_, _, row) => row.name.as_str().parse().ok(),
        _ => None,
    });
    let last = head.unwrap_or(0);
    let mut expected = std::collections::BTreeMap::new();
    for number in 1..=last {
        for record in batch(number) {
            match record {
                Record::Insert(row) | Record::Update(row) => expected.insert(row.key(), row),
                Record::Delete(key) => expected.remove(&key),
            };
        }
    }
    assert_eq!(by_key(rows), expected);
    last
}

/// This program once more, as the child, under umask 0.
fn start(dir: &Path) -> Child {
    // The test harness has stdout to itself.
    Command::new("sh")
        .args(["-c", "umask 0; exec \"$0\" --exact child::child --nocapture 2>&1 >/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}
