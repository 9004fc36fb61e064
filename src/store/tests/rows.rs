//! Rows and keys to octets and back.

use proptest::prelude::*;

use super::arbitrary::row;
use crate::gateway::record::{ClientKey, Key, Row};
use crate::mqtt::Message;
use crate::store::row::{Kind, RowError, decode_key, decode_row, encode_key, encode_row};
use crate::topic::{ClientId, TopicName};

proptest! {
    #[test]
    fn a_row_of_every_kind_comes_back_as_it_was(row in row()) {
        let (key, value) = encode(&row);
        prop_assert_eq!(decode_key(&key).unwrap(), row.key());
        prop_assert_eq!(decode_row(&key, &value).unwrap(), row);
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
        prop_assert_eq!(decode_row(&key, &value), Err(RowError::Checksum));
    }

    #[test]
    fn a_row_under_the_key_of_another_is_found(a in row(), b in row()) {
        let (key, _) = encode(&a);
        let (other, value) = encode(&b);
        if key != other {
            prop_assert_eq!(decode_row(&key, &value), Err(RowError::Checksum));
        }
    }

    #[test]
    fn a_row_that_was_cut_is_found(row in row(), at in any::<prop::sample::Index>()) {
        let (key, value) = encode(&row);
        prop_assert_eq!(decode_row(&key, &value[..at.index(value.len())]), Err(RowError::Checksum));
    }

    /// What has a right checksum was written by somebody; even so it is a row or an error.
    #[test]
    fn no_octets_make_it_panic(
        key in prop::collection::vec(prop_oneof![0..5u8, 0x40..0x4Bu8, any::<u8>()], 0..12),
        body in prop::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..40),
    ) {
        let _ = decode_row(&key, &sealed(&key, &body));
    }
}

#[test]
fn kinds_and_versions_that_are_not_known_are_named() {
    let id = ClientId::new("n1").unwrap();
    let (key, value) = encode(&Row::Releasing(id, 7));
    let newer = sealed(&key, &[2, 1, 2, 3]);
    assert_eq!(decode_row(&key, &newer), Err(RowError::UnknownVersion { kind: Kind::Releasing, version: 2 }));
    let trailing = sealed(&key, &[1, 0]);
    assert_eq!(decode_row(&key, &trailing), Err(RowError::Nonsense(Kind::Releasing)));
    let mut strange = key.clone();
    strange[4] = 0x5A;
    assert_eq!(decode_row(&strange, &value), Err(RowError::Checksum));
    assert_eq!(decode_row(&strange, &sealed(&strange, &[1])), Err(RowError::UnknownKind(0x5A)));
    assert_eq!(decode_row(&[9], &sealed(&[9], &[1])), Err(RowError::UnknownKind(9)));
}

/// The format, as octets: whoever changes it changes the version too.
#[test]
fn octets_are_what_they_were() {
    let id = ClientId::new("n1").unwrap();
    let message = Message {
        topic: TopicName::new("a/b").unwrap(),
        payload: "hi".into(),
        qos: crate::mqtt::QoS::AtLeastOnce,
        retain: true,
    };
    let row = Row::Uplink(
        id,
        258,
        crate::gateway::record::UplinkRow {
            message: Some(message),
            dedicated: false,
            packet: Some(300),
            promised: true,
        },
    );
    let (key, value) = encode(&row);
    assert_eq!(hex(&key), "40 6e 31 00 48 00 00 00 00 00 00 01 02");
    assert_eq!(hex(&value), "01 01 03 61 2f 62 02 68 69 01 01 00 01 ac 02 01 81 61 4b a5");
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
