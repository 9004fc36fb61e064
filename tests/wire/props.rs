//! What holds for all frames, and for all octets.

use bytes::BytesMut;
use mqtt_sn_gateway::wire::{DecodeError, MESSAGE_LEN_MAX, NODE_ID_LEN_MAX, TooLong, TopicRef, decode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::frames::*;
use crate::fuzz::any_octets;

fn any_frame() -> impl Strategy<Value = Parts> {
    parts(tails(), vec(any::<u8>(), 0..=NODE_ID_LEN_MAX))
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(1_000))]

    #[test]
    fn what_was_encoded_is_decoded(parts in any_frame()) {
        let frame = parts.frame();
        let octets = encoded(&frame);
        prop_assert_eq!(decode(&octets), Ok(frame));
        prop_assert_eq!(encoded(&decode(&octets).expect("just decoded")), octets.clone());
        prop_assert_eq!(any_octets(&octets), Ok(()));
    }

    #[test]
    fn the_form_of_length_makes_no_difference(parts in any_frame()) {
        let frame = parts.frame();
        if let Some(octets) = long_form(&encoded(&frame)) {
            prop_assert_eq!(decode(&octets), Ok(frame));
        }
    }

    #[test]
    fn what_is_cut_or_followed_by_something_is_no_frame(parts in any_frame(), at: Index, more: u8) {
        let octets = encoded(&parts.frame());
        prop_assert!(any_octets(&octets[..at.index(octets.len())]).is_err());
        prop_assert!(any_octets(&[&octets[..], &[more]].concat()).is_err());
    }

    #[test]
    fn what_is_in_the_buffer_stays(parts in any_frame(), before in vec(any::<u8>(), 0..20)) {
        let mut out = BytesMut::from(&before[..]);
        parts.frame().encode(&mut out).expect("fits");
        prop_assert_eq!(&out[..before.len()], &before[..]);
        prop_assert_eq!(&out[before.len()..], &encoded(&parts.frame())[..]);
    }

    #[test]
    fn any_octets_decode_or_do_not(octets in vec(any::<u8>(), 0..300)) {
        let _ = any_octets(&octets);
    }

    #[test]
    fn any_body_with_a_right_length_decodes_or_does_not(
        msg_type in prop_oneof![9 => 0_u8..0x20, 1 => any::<u8>()],
        body in vec(any::<u8>(), 0..250),
        node_id in proptest::option::of(vec(any::<u8>(), 0..=NODE_ID_LEN_MAX)),
    ) {
        let length = |octets: usize| u8::try_from(octets).expect("short");
        let mut octets = Vec::new();
        if let Some(node_id) = node_id {
            octets.extend([length(node_id.len() + 3), 0xFE, 0x03]);
            octets.extend(node_id);
        }
        octets.extend([length(body.len() + 2), msg_type]);
        octets.extend(body);
        let _ = any_octets(&octets);
        let _ = long_form(&octets).map(|octets| any_octets(&octets));
    }

    #[test]
    fn a_frame_with_a_few_octets_changed_decodes_or_does_not(
        parts in any_frame(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
        keep in proptest::option::of(any::<Index>()),
    ) {
        let mut octets = encoded(&parts.frame());
        for (at, value) in changes {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        octets.truncate(keep.map_or(usize::MAX, |keep| keep.index(octets.len())));
        let _ = any_octets(&octets);
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn long_messages_are_decoded_too(parts in parts(vec(any::<u8>(), 60_000..65_520), vec(any::<u8>(), 0..9))) {
        let frame = parts.frame();
        let octets = encoded(&frame);
        prop_assert_eq!(decode(&octets), Ok(frame));
        prop_assert_eq!(any_octets(&octets), Ok(()));
    }

    #[test]
    fn what_is_too_long_leaves_the_buffer_as_it_was(
        parts in parts(vec(any::<u8>(), 65_520..65_560), vec(any::<u8>(), 250..256)),
        before in vec(any::<u8>(), 0..20),
    ) {
        let frame = parts.frame();
        let node_id_len = frame.encapsulation.map_or(0, |encapsulation| encapsulation.node_id.len());
        let fits = frame.packet.encoded_len() <= MESSAGE_LEN_MAX && node_id_len <= NODE_ID_LEN_MAX;
        let mut out = BytesMut::from(&before[..]);
        prop_assert_eq!(frame.encode(&mut out).is_ok(), fits);
        if !fits {
            prop_assert_eq!(&out[..], &before[..]);
        }
    }
}

#[test]
fn what_is_too_long_is_refused_with_its_size() {
    let mut out = BytesMut::from(&b"before"[..]);
    let payload = vec![0; 1 << 20];
    let too_long = publish(Q0, FIRST, LIVE, TopicRef::Normal(1), 0, &payload);
    assert_eq!(too_long.encode(&mut out), Err(TooLong(payload.len() + 9)));
    assert_eq!(via(0, &[0; 253], disconnect(None)).encode(&mut out), Err(TooLong(256)));
    assert_eq!(via(0, b"n", too_long).encode(&mut out), Err(TooLong(payload.len() + 9)));
    assert_eq!(out[..], *b"before");
    assert!(out.capacity() < payload.len(), "nothing was copied before the refusal");
}

#[test]
fn a_radius_above_three_is_sent_as_three() {
    assert_eq!(encoded(&via(4, b"n", disconnect(None))), hex("04 FE 03 6E 02 18"));
}

#[test]
fn every_short_string_of_octets_decodes_or_does_not() {
    let mut frames = 0;
    for octets in (0..=u16::MAX).map(u16::to_be_bytes) {
        frames += usize::from(any_octets(&octets).is_ok());
        let [length, msg_type] = octets;
        let _ = any_octets(&[length, msg_type, 1]);
        let _ = any_octets(&[1, 0, length, msg_type]);
        let _ = any_octets(&[4, 0xFE, 0, 7, length, msg_type]);
    }
    // WILLTOPICREQ, WILLTOPIC, WILLMSGREQ, WILLMSG, PINGREQ, PINGRESP, DISCONNECT, WILLTOPICUPD, WILLMSGUPD.
    assert_eq!(frames, 9);
    assert_eq!(any_octets(&[]), Err(DecodeError::TooShort(0)));
}
