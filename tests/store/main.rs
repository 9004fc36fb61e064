//! The store on real files, with real processes that are killed and real disks that are full.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../shell/apart.rs"]
#[allow(dead_code, unreachable_pub, reason = "made for another binary")]
mod apart;
mod bench;
mod child;
mod disk;
mod files;

use std::collections::BTreeMap;

use mqtt_sn_gateway::gateway::record::{
    Key, Lsn, MessageId, Record, Row, TopicRow, TopicStanding, WaitingRow,
};
use mqtt_sn_gateway::mqtt::{Message, QoS};
use mqtt_sn_gateway::store::Store;
use mqtt_sn_gateway::topic::{ClientId, TopicName};

fn id(text: &str) -> ClientId {
    ClientId::new(text).unwrap()
}

fn topic(client: &str, id_of: u16, name: &str) -> Row {
    let name = TopicName::new(name).unwrap();
    Row::Topic(id(client), id_of, TopicRow { name, nth: 1, standing: TopicStanding::Known(1) })
}

fn message(number: u64, octets: usize) -> Row {
    let topic = TopicName::new("some/topic").unwrap();
    let payload = vec![number as u8; octets].into();
    Row::Message(MessageId(number), Message { topic, payload, qos: QoS::AtLeastOnce, retain: false }.into())
}

fn waiting(client: &str, number: u64, message: u64) -> Row {
    let row = WaitingRow {
        message: MessageId(message),
        qos: QoS::AtLeastOnce,
        sent_as: None,
        sent_on: None,
        expiry: None,
    };
    Row::Waiting(id(client), number, row)
}

/// Hands a batch over and waits until it is durable.
async fn write(store: &Store, lsn: u64, records: Vec<Record>) {
    store.submit(Lsn(lsn), records);
    while store.stored().await.0 < Lsn(lsn) {}
}

fn by_key(rows: impl IntoIterator<Item = Row>) -> BTreeMap<Key, Row> {
    rows.into_iter().map(|row| (row.key(), row)).collect()
}
