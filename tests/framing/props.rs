//! What holds for any frames and any octets.

use bytes::Bytes;
use mqtt_sn_gateway::framing::{Decoder, FRAME_LEN_MAX, Framing};
use proptest::prelude::*;

use super::{encoded, frames};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(sent in prop::collection::vec(frame(), 1..20), framing in framing()) {
        let octets: Vec<u8> = sent.iter().flat_map(|frame| encoded(framing, frame)).collect();
        let mut decoder = Decoder::new(framing);
        decoder.push(&octets);
        prop_assert_eq!(frames(&mut decoder), sent);
        prop_assert_eq!(decoder.counters().lost(), 0);
        prop_assert_eq!(decoder.counters().octets_dropped, 0);
    }

    /// Where the frame need not be a message, it may be anything.
    #[test]
    fn whatever_the_frame_holds_it_is_decoded(sent in octets(), framing in delimited()) {
        prop_assume!(!sent.is_empty());
        let mut decoder = Decoder::new(framing);
        decoder.push(&encoded(framing, &sent));
        prop_assert_eq!(frames(&mut decoder), [sent]);
    }

    #[test]
    fn delimiters_stand_at_the_ends_only(sent in octets(), framing in delimited()) {
        let line = encoded(framing, &sent);
        let delimiter = line[0];
        let delimiters: Vec<_> = (0..line.len()).filter(|at| line[*at] == delimiter).collect();
        prop_assert_eq!(delimiters, [0, line.len() - 1]);
    }

    #[test]
    fn octet_by_octet_is_the_same_as_at_once(octets in noisy(), framing in framing()) {
        let mut one = Decoder::new(framing);
        one.push(&octets);
        let mut other = Decoder::new(framing);
        octets.iter().for_each(|octet| other.push(&[*octet]));
        prop_assert_eq!(frames(&mut one), frames(&mut other));
        prop_assert_eq!(one.counters(), other.counters());
    }

    #[test]
    fn a_good_frame_arrives_after_any_garbage(octets in noisy(), good in frame(), framing in framing()) {
        let mut decoder = Decoder::new(framing);
        decoder.push(&octets);
        decoder.idle();
        frames(&mut decoder);
        decoder.push(&encoded(framing, &good));
        prop_assert_eq!(frames(&mut decoder).pop(), Some(good));
    }

    #[test]
    fn what_a_decoder_gives_out_is_never_empty_nor_too_long(octets in noisy(), framing in framing()) {
        let mut decoder = Decoder::new(framing);
        decoder.push(&octets);
        let got = frames(&mut decoder);
        prop_assert!(got.iter().all(|frame| (1..=FRAME_LEN_MAX).contains(&frame.len())), "{:?}", got);
        prop_assert_eq!(got.len() as u64, decoder.counters().frames);
    }
}

pub(super) fn framing() -> impl Strategy<Value = Framing> {
    prop::sample::select(&Framing::ALL[..])
}

/// All but `length`.
fn delimited() -> impl Strategy<Value = Framing> {
    prop::sample::select(&Framing::ALL[1..])
}

/// With many of those that mean something to a framing, and runs as long as the blocks of COBS.
pub(super) fn octets() -> impl Strategy<Value = Vec<u8>> {
    let special = prop::sample::select(&[0x00, 0x01, 0xC0, 0xDB, 0xDC, 0xDD, 0xFE, 0xFF][..]);
    let octet = prop_oneof![2 => any::<u8>(), 1 => special];
    prop_oneof![
        4 => prop::collection::vec(octet, 0..60),
        1 => (250..260_usize, 0..3_usize, any::<u8>()).prop_map(|(run, zeros, octet)| {
            [vec![octet; run], vec![0; zeros], vec![octet; run - 200]].concat()
        }),
    ]
}

/// A message of any type, short or long, encapsulated or not; what it says does not matter.
fn frame() -> impl Strategy<Value = Bytes> {
    let kind = prop::sample::select(&[0x00, 0x04, 0x05, 0x0C, 0x0D, 0x16, 0x18, 0x1D][..]);
    (kind, octets(), prop::option::of(prop::collection::vec(any::<u8>(), 0..30)))
        .prop_map(|(kind, body, node)| Bytes::from(message(kind, &body, node.as_deref())))
}

fn message(kind: u8, body: &[u8], node: Option<&[u8]>) -> Vec<u8> {
    let header = match u8::try_from(body.len() + 2) {
        Ok(len) => vec![len, kind],
        Err(_) => [&[1][..], &(body.len() as u16 + 4).to_be_bytes(), &[kind]].concat(),
    };
    let encapsulation = node.map(|node| [&[node.len() as u8 + 3, 0xFE, 0][..], node].concat());
    [encapsulation.unwrap_or_default(), header, body.to_vec()].concat()
}

/// Frames, pieces of frames and anything.
pub(super) fn noisy() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        octets(),
        (frame(), framing()).prop_map(|(frame, framing)| encoded(framing, &frame)),
        (frame(), framing(), any::<prop::sample::Index>()).prop_map(|(frame, framing, cut)| {
            let mut line = encoded(framing, &frame);
            line.truncate(cut.index(line.len()));
            line
        }),
        prop::collection::vec(any::<u8>(), 2000..2200),
        // About as long as a frame may be, and nothing that ends one.
        (FRAME_LEN_MAX - 8..FRAME_LEN_MAX + 8).prop_map(|len| vec![0x55; len]),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}
