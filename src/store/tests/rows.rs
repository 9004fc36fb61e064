//! Rows and keys to octets and back.

use std::time::Duration;

use proptest::prelude::*;

use super::arbitrary::row;
use crate::gateway::io::{Address, Mode, WirelessNodeId};
use crate::gateway::record::{
    ClientKey, ExchangeRow, ExchangeState, FilterRow, GatewayRow, Key, MessageId, PeerRow, Row, SessionRow,
    Standing, SubscriptionRow, TopicRow, TopicStanding, UplinkRow, WaitingRow, WillRow,
};
use crate::mqtt::{Message, QoS, Received};
use crate::store::row::{Kind, RowError, decode_key, decode_row, encode_key, encode_row};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::TopicRef;

const RECEIVED: Received = Received { packet: 258, digest: 256 };

proptest! {
    #[test]
    fn a_row_of_every_kind_comes_back_as_it_was(row in row()) {
        let (key, value) = encode(&row);
        prop_assert_eq!(decode_key(&key, &mut None).unwrap(), row.key());
        prop_assert_eq!(decode_row(&key, &value, &mut None).unwrap(), row.clone());
        // Whoever came before.
        let mut client = Some(ClientId::new("n").unwrap());
        for _ in 0..2 {
            prop_assert_eq!(decode_row(&key, &value, &mut client).unwrap(), row.clone());
        }
    }

    #[test]
    fn keys_as_octets_sort_as_keys(a in row(), b in row()) {
        let (a, b) = (a.key(), b.key());
        prop_assert_eq!(encode_key(&a).cmp(&encode_key(&b)), a.cmp(&b));
    }

    #[test]
    fn what_is_of_a_client_begins_alike_and_nothing_else_does(a in row(), b in row()) {
        let (Key::Client(id, _), other) = (a.key(), b.key()) else { return Ok(()) };
        let own = encode_key(&Key::Client(id.clone(), ClientKey::Session));
        let prefix = &own[..own.len() - 1];
        let same = matches!(&other, Key::Client(other, _) if *other == id);
        prop_assert_eq!(encode_key(&other).starts_with(prefix), same);
    }

    #[test]
    fn a_bit_that_flips_in_a_key_or_a_value_is_found(row in row(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let (mut key, mut value) = encode(&row);
        let at = at.index(key.len() + value.len());
        let len = key.len();
        *if at < len { &mut key[at] } else { &mut value[at - len] } ^= 1u8 << bit;
        prop_assert_eq!(decode_row(&key, &value, &mut None), Err(RowError::Checksum));
    }

    #[test]
    fn a_row_under_the_key_of_another_is_found(a in row(), b in row()) {
        let (key, _) = encode(&a);
        let (other, value) = encode(&b);
        if key != other {
            prop_assert_eq!(decode_row(&key, &value, &mut None), Err(RowError::Checksum));
        }
    }

    #[test]
    fn a_row_that_was_cut_is_found(row in row(), at in any::<prop::sample::Index>()) {
        let (key, value) = encode(&row);
        prop_assert_eq!(decode_row(&key, &value[..at.index(value.len())], &mut None), Err(RowError::Checksum));
    }

    /// What has a right checksum was written by somebody; even so it is a row or an error.
    #[test]
    fn no_octets_make_it_panic(
        key in prop::collection::vec(prop_oneof![0..5u8, 0x40..0x4Bu8, any::<u8>()], 0..12),
        body in prop::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..40),
    ) {
        let _ = decode_row(&key, &sealed(&key, &body), &mut None);
    }
}

#[test]
fn kinds_and_versions_that_are_not_known_are_named() {
    let id = ClientId::new("n1").unwrap();
    let (key, value) = encode(&Row::Releasing(id, 7));
    let newer = sealed(&key, &[2, 1, 2, 3]);
    assert_eq!(
        decode_row(&key, &newer, &mut None),
        Err(RowError::UnknownVersion { kind: Kind::Releasing, version: 2 })
    );
    let trailing = sealed(&key, &[1, 0]);
    assert_eq!(decode_row(&key, &trailing, &mut None), Err(RowError::Nonsense(Kind::Releasing)));
    let mut strange = key.clone();
    strange[4] = 0x5A;
    assert_eq!(decode_row(&strange, &value, &mut None), Err(RowError::Checksum));
    assert_eq!(decode_row(&strange, &sealed(&strange, &[1]), &mut None), Err(RowError::UnknownKind(0x5A)));
    assert_eq!(decode_row(&[9], &sealed(&[9], &[1]), &mut None), Err(RowError::UnknownKind(9)));
}

/// The format, as octets: whoever changes it changes the version too.
#[test]
fn octets_are_what_they_were() {
    let mut wrong = Vec::new();
    for (row, expected) in every_kind() {
        let (key, value) = encode(&row);
        let found = format!("{} = {}", hex(&key), hex(&value[..value.len() - 4]));
        if found != expected {
            wrong.push(found);
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let (key, value) = encode(&Row::Releasing(ClientId::new("n1").unwrap(), 7));
    let crc = [hex(&key), hex(&value)];
    assert_eq!(crc, ["40 6e 31 00 46 00 07", "01 cd 33 49 aa"]);
}

/// Every kind, with every variant of every field.
fn every_kind() -> Vec<(Row, &'static str)> {
    let id = || ClientId::new("n1").unwrap();
    let name = || TopicName::new("a/b").unwrap();
    let filter = || TopicFilter::new("a/+").unwrap();
    let message = |qos, retain| Message { topic: name(), payload: "hi".into(), qos, retain };
    let session = |standing, mode, peer| SessionRow {
        standing,
        clean: true,
        mode,
        inherited: false,
        keep_alive: Duration::from_secs(60),
        sleep: Duration::from_millis(1500),
        connections: 300,
        peer,
    };
    let peer =
        |addr: &str, node| PeerRow { port: "lan".into(), addr: Address::Udp(addr.parse().unwrap()), node };
    let radio = |addr| PeerRow { port: "r".into(), addr, node: None };
    let node = Some(WirelessNodeId((*b"xy").into()));
    let topic = |standing| Row::Topic(id(), 3, TopicRow { name: name(), nth: 4, standing });
    let subscription = |topic| {
        Row::Subscription(id(), filter(), SubscriptionRow { topic, qos: QoS::ExactlyOnce, since: 300 })
    };
    let exchange =
        |state| Row::Exchange(id(), 5, ExchangeRow { digest: 200, topic: TopicRef::Predefined(6), state });
    let uplink = |qos, packet, released| {
        let message = message(qos, false);
        Row::Uplink(id(), 258, UplinkRow { message, dedicated: false, packet, released, promised: true })
    };
    vec![
        (Row::Gateway(GatewayRow { client_id: "gw".into() }), "01 = 01 02 67 77"),
        (
            Row::Message(MessageId(258), message(QoS::AtMostOnce, true).into()),
            "02 00 00 00 00 00 00 01 02 = 01 03 61 2f 62 02 68 69 00 01",
        ),
        (Row::Received(1, RECEIVED), "03 00 01 01 02 = 01 80 02"),
        (
            Row::Filter(
                2,
                filter(),
                FilterRow { qos: QoS::AtLeastOnce, subscription: Some(7), granted: true },
            ),
            "04 00 02 61 2f 2b = 01 01 01 07 01",
        ),
        (
            Row::Session(id(), session(Standing::Active, Mode::Aggregating, None)),
            "40 6e 31 00 41 = 01 00 01 00 00 3c 00 01 80 ca b5 ee 01 ac 02 00",
        ),
        (
            Row::Session(id(), session(Standing::Asleep, Mode::Transparent, Some(peer("1.2.3.4:5", node)))),
            "40 6e 31 00 41 = 01 01 01 01 00 3c 00 01 80 ca b5 ee 01 ac 02 01 03 6c 61 6e 00 01 02 03 04 05 01 02 78 79",
        ),
        (
            Row::Session(
                id(),
                session(Standing::Disconnected, Mode::Aggregating, Some(peer("[fe80::1%3]:5", None))),
            ),
            "40 6e 31 00 41 = 01 02 01 00 00 3c 00 01 80 ca b5 ee 01 ac 02 01 03 6c 61 6e 01 fe 80 00 00 00 00 00 00 00 00 00 00 00 00 00 01 05 00 03 00",
        ),
        (
            Row::Session(id(), session(Standing::Active, Mode::Aggregating, Some(radio(Address::Serial)))),
            "40 6e 31 00 41 = 01 00 01 00 00 3c 00 01 80 ca b5 ee 01 ac 02 01 01 72 02 00",
        ),
        (
            Row::Session(
                id(),
                session(Standing::Active, Mode::Aggregating, Some(radio(Address::Xbee(0x13A2)))),
            ),
            "40 6e 31 00 41 = 01 00 01 00 00 3c 00 01 80 ca b5 ee 01 ac 02 01 01 72 03 a2 27 00",
        ),
        (
            Row::Session(id(), session(Standing::Lost, Mode::Aggregating, None)),
            "40 6e 31 00 41 = 01 03 01 00 00 3c 00 01 80 ca b5 ee 01 ac 02 00",
        ),
        (
            Row::Session(id(), session(Standing::Leaving, Mode::Aggregating, None)),
            "40 6e 31 00 41 = 01 04 01 00 00 3c 00 01 80 ca b5 ee 01 ac 02 00",
        ),
        (
            Row::Will(id(), WillRow { topic: Some((name(), QoS::ExactlyOnce, true)), message: "bye".into() }),
            "40 6e 31 00 42 = 01 01 03 61 2f 62 02 01 03 62 79 65",
        ),
        (
            Row::Will(id(), WillRow { topic: None, message: "bye".into() }),
            "40 6e 31 00 42 = 01 00 03 62 79 65",
        ),
        (topic(TopicStanding::Unconfirmed), "40 6e 31 00 43 00 03 = 01 03 61 2f 62 04 00"),
        (topic(TopicStanding::Known(300)), "40 6e 31 00 43 00 03 = 01 03 61 2f 62 04 01 ac 02"),
        (topic(TopicStanding::Rejected), "40 6e 31 00 43 00 03 = 01 03 61 2f 62 04 02"),
        (subscription(TopicRef::Normal(1)), "40 6e 31 00 44 61 2f 2b = 01 00 01 02 ac 02"),
        (subscription(TopicRef::Predefined(1)), "40 6e 31 00 44 61 2f 2b = 01 01 01 02 ac 02"),
        (subscription(TopicRef::Short(*b"ab")), "40 6e 31 00 44 61 2f 2b = 01 02 61 62 02 ac 02"),
        (subscription(TopicRef::Reserved(1)), "40 6e 31 00 44 61 2f 2b = 01 03 01 02 ac 02"),
        (
            Row::Waiting(
                id(),
                258,
                WaitingRow {
                    message: MessageId(9),
                    qos: QoS::AtLeastOnce,
                    sent_as: Some(10),
                    sent_on: Some(TopicRef::Short(*b"ab")),
                    expiry: Some(Duration::from_secs(3)),
                },
            ),
            "40 6e 31 00 45 00 00 00 00 00 00 01 02 = 01 09 01 01 0a 01 02 61 62 01 03 00",
        ),
        (Row::Releasing(id(), 258), "40 6e 31 00 46 01 02 = 01"),
        (exchange(ExchangeState::Open(1)), "40 6e 31 00 47 00 05 = 01 c8 01 01 06 00 01"),
        (exchange(ExchangeState::Received), "40 6e 31 00 47 00 05 = 01 c8 01 01 06 01"),
        (exchange(ExchangeState::Finished), "40 6e 31 00 47 00 05 = 01 c8 01 01 06 02"),
        (
            uplink(QoS::AtLeastOnce, None, false),
            "40 6e 31 00 48 00 00 00 00 00 00 01 02 = 01 03 61 2f 62 02 68 69 01 00 00 00 00 01",
        ),
        (
            uplink(QoS::ExactlyOnce, Some(300), true),
            "40 6e 31 00 48 00 00 00 00 00 00 01 02 = 01 03 61 2f 62 02 68 69 02 00 00 01 ac 02 01 01",
        ),
        (Row::ClientReceived(id(), RECEIVED), "40 6e 31 00 49 01 02 = 01 80 02"),
    ]
}

fn encode(row: &Row) -> (Vec<u8>, Vec<u8>) {
    let key = encode_key(&row.key());
    let value = encode_row(&key, row).unwrap();
    (key, value)
}

/// A value with the right checksum.
fn sealed(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    crc.update(body);
    [body, &crc.finalize().to_le_bytes()].concat()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(" ")
}
