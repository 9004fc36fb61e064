//! Frames on serial lines: against the documents, against themselves, and against what a line does to them.
#![expect(clippy::expect_used, reason = "a test fails by panicking, and so do its helpers")]

mod damage;
mod firmware;
mod fuzz;
mod line;
mod props;
mod vectors;
mod xbee;

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::{Decoder, Framing};

/// Octets from hex; spaces are ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs.map(|pair| u8::from_str_radix(&pair, 16).expect("hex digits")).collect()
}

fn encoded(framing: Framing, frame: &[u8]) -> Vec<u8> {
    let mut line = BytesMut::new();
    framing.encode(frame, &mut line);
    line.to_vec()
}

fn frames(decoder: &mut Decoder) -> Vec<Bytes> {
    std::iter::from_fn(|| decoder.poll_frame()).collect()
}
