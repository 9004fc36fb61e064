//! What holds for any octets on a serial line.

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::{Counters, Decoder, FRAME_LEN_MAX, Framing};

/// A message that a line carries whatever came before it.
const GOOD: [u8; 4] = [0x04, 0x0C, 0xC0, 0x00];

/// Decodes them with every framing, at once and octet by octet, then a good frame behind them.
#[track_caller]
pub(crate) fn any_octets(octets: &[u8]) {
    for framing in Framing::ALL {
        let mut decoder = Decoder::new(framing);
        decoder.push(octets);
        let frames = frames(&mut decoder);
        assert_eq!((frames.clone(), *decoder.counters()), octet_by_octet(framing, octets), "{framing}");
        let counters = *decoder.counters();
        assert_eq!(counters.frames, frames.len() as u64, "{framing}");
        assert!(counters.octets_dropped <= octets.len() as u64, "{framing}: {counters:?}");
        for frame in frames {
            assert!((1..=FRAME_LEN_MAX).contains(&frame.len()), "{framing}: {} octets", frame.len());
            assert_eq!(again(framing, &frame), [frame], "{framing}");
        }
        good_frame_arrives(framing, decoder);
    }
}

fn good_frame_arrives(framing: Framing, mut decoder: Decoder) {
    let mut line = BytesMut::new();
    framing.encode(&GOOD, &mut line);
    decoder.idle();
    decoder.push(&line);
    assert_eq!(frames(&mut decoder).pop().as_deref(), Some(&GOOD[..]), "{framing}");
}

fn octet_by_octet(framing: Framing, octets: &[u8]) -> (Vec<Bytes>, Counters) {
    let mut decoder = Decoder::new(framing);
    octets.iter().for_each(|octet| decoder.push(&[*octet]));
    (frames(&mut decoder), *decoder.counters())
}

/// What is given out for a frame that was given out, when it is sent.
fn again(framing: Framing, frame: &[u8]) -> Vec<Bytes> {
    let mut line = BytesMut::new();
    framing.encode(frame, &mut line);
    let mut decoder = Decoder::new(framing);
    decoder.push(&line);
    frames(&mut decoder)
}

fn frames(decoder: &mut Decoder) -> Vec<Bytes> {
    std::iter::from_fn(|| decoder.poll_frame()).collect()
}
