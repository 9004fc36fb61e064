//! Figures to look at; none is asserted.
//!
//! `STORE_SESSIONS=100000 cargo test --release --test store bench -- --nocapture`

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::gateway::io::{Address, Mode};
use mqtt_sn_gateway::gateway::record::{Lsn, PeerRow, Record, Row, SessionRow, Standing, SubscriptionRow};
use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::store::{Options, Store};
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::TopicRef;
use tempfile::TempDir;

use crate::{id, message, topic, waiting, write};

/// Sessions unless the environment says more.
const SESSIONS: u64 = 500;

#[tokio::test]
async fn bench() {
    let sessions = std::env::var("STORE_SESSIONS").map_or(SESSIONS, |text| text.parse().unwrap());
    let dir = TempDir::new().unwrap();
    let options = Options { commit: Duration::ZERO, ..Options::new(dir.path()) };
    let (store, _) = Store::open(&options).unwrap();
    let begun = Instant::now();
    let mut lsn = 0;
    for first in (0..sessions).step_by(1000) {
        lsn += 1;
        let rows = (first..sessions.min(first + 1000)).flat_map(session);
        write(&store, lsn, rows.map(Record::Insert).collect()).await;
    }
    let (filled, counters) = (begun.elapsed(), store.counters());
    println!("{sessions} sessions, {} rows written in {filled:.1?}", counters.records_written);
    let begun = Instant::now();
    store.close().await.unwrap();
    let closed = begun.elapsed();
    let octets = std::fs::metadata(dir.path().join("store.redb")).unwrap().len();
    let (begun, busy) = (Instant::now(), cpu());
    let (store, rows) = Store::open(&options).unwrap();
    println!(
        "file {} KiB, closed in {closed:.1?}, opened with {} rows in {:.1?}, {:.1?} of it on a processor",
        octets >> 10,
        rows.len(),
        begun.elapsed(),
        cpu() - busy
    );
    drop(rows);
    for batch in [1, 10, 1000] {
        commits(&store, batch, sessions).await;
    }
    // As after kill -9.
    let copy = TempDir::new().unwrap();
    std::fs::copy(dir.path().join("store.redb"), copy.path().join("store.redb")).unwrap();
    let (begun, busy) = (Instant::now(), cpu());
    let (_store, rows) = Store::open(&Options::new(copy.path())).unwrap();
    let (took, busy) = (begun.elapsed(), cpu() - busy);
    println!("opened after a crash with {} rows in {took:.1?}, {busy:.1?} of it on a processor", rows.len());
}

/// What this thread has had of a processor: on a busy machine the only measure.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Messages that come and wait, `batch` of them to a commit.
async fn commits(store: &Store, batch: u64, sessions: u64) {
    let before = store.counters();
    let commits = (5000 / batch).clamp(5, 200);
    let mut number = 1 << 40 | batch << 20;
    let begun = Instant::now();
    for commit in 0..commits {
        let mut records = Vec::new();
        for _ in 0..batch {
            number += 1;
            let client = format!("sensor-{:06}", number.wrapping_mul(2_654_435_761) % sessions);
            records.push(Record::Insert(message(number, 64)));
            records.push(Record::Insert(waiting(&client, number, number)));
        }
        let lsn = Lsn((batch << 40) + commit + 1);
        store.submit(lsn, records);
        while store.stored().await.0 < lsn {}
    }
    let (took, after) = (begun.elapsed(), store.counters());
    let octets = after.octets_written - before.octets_written;
    println!(
        "{batch} messages a commit: {:.0} commits/s, {} octets a message, commit {:.2?} on average",
        commits as f64 / took.as_secs_f64(),
        octets / (commits * batch),
        (after.commit_time - before.commit_time) / commits as u32,
    );
}

fn session(number: u64) -> Vec<Row> {
    let client = format!("sensor-{number:06}");
    let addr: SocketAddr = ([10, (number >> 16) as u8, (number >> 8) as u8, number as u8], 1884).into();
    let mut rows = vec![Row::Session(
        id(&client),
        SessionRow {
            standing: Standing::Asleep,
            clean: false,
            mode: Mode::Aggregating,
            inherited: false,
            keep_alive: Duration::from_secs(60),
            sleep: Duration::from_secs(600),
            connections: 1,
            peer: Some(PeerRow { port: "lan".to_owned(), addr: Address::Udp(addr), node: None }),
        },
    )];
    rows.extend((1..=5).map(|at| topic(&client, at, &format!("site/{client}/value/{at}"))));
    rows.extend(["command", "config/#"].map(|name| {
        let filter = TopicFilter::new(format!("site/{client}/{name}")).unwrap();
        let row = SubscriptionRow { topic: TopicRef::Normal(1), qos: QoS::AtLeastOnce, since: number };
        Row::Subscription(id(&client), filter, row)
    }));
    rows.push(message(number, 64));
    rows.push(waiting(&client, number, number));
    rows
}
