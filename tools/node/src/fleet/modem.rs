//! What stands at the far end of a serial line, as a value: one node, or a forwarder with many nodes behind it (§5.5).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use mqtt_sn_gateway::framing::{Decoder, Framing};

use super::radio::Heard;

/// A silence of the line that ends a message of `length`.
const SILENCE: Duration = Duration::from_millis(20);

const ENCAPSULATED: u8 = 0xFE;

/// Length, message type and Ctrl of an encapsulation, before the node id.
const HEADER_LEN: usize = 3;

/// Octets of a node id: the number of the node, high octet first.
const NODE_ID_LEN: usize = 4;

#[derive(Debug)]
pub(super) struct Modem {
    framing: Framing,
    decoder: Decoder,
    /// Nodes behind it; one needs no forwarder.
    nodes: u32,
    silence_at: Option<Instant>,
    heard: VecDeque<Heard>,
    /// Frames for a node that is not there.
    pub(super) strays: u64,
}

impl Modem {
    pub(super) fn new(framing: Framing, nodes: u32) -> Self {
        let decoder = Decoder::new(framing);
        Self { framing, decoder, nodes, silence_at: None, heard: VecDeque::new(), strays: 0 }
    }

    /// What goes to the gateway for a frame of a node.
    pub(super) fn handle_frame(&mut self, node: u32, frame: &[u8], out: &mut BytesMut) {
        if self.nodes == 1 {
            return self.framing.encode(frame, out);
        }
        let mut encapsulated = Vec::with_capacity(HEADER_LEN + NODE_ID_LEN + frame.len());
        encapsulated.put_slice(&[(HEADER_LEN + NODE_ID_LEN) as u8, ENCAPSULATED, 0]);
        encapsulated.put_u32(node);
        encapsulated.put_slice(frame);
        self.framing.encode(&encapsulated, out);
    }

    pub(super) fn handle_octets(&mut self, now: Instant, octets: &[u8]) {
        self.silence_at = Some(now + SILENCE);
        self.decoder.push(octets);
        while let Some(frame) = self.decoder.poll_frame() {
            self.take(frame);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.silence_at.is_some_and(|at| at <= now) {
            self.silence_at = None;
            self.decoder.idle();
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.silence_at
    }

    pub(super) fn poll_heard(&mut self) -> Option<Heard> {
        self.heard.pop_front()
    }

    /// Frames lost on the way here.
    pub(super) fn lost(&self) -> u64 {
        self.decoder.counters().lost()
    }

    fn take(&mut self, frame: Bytes) {
        let heard = match *frame {
            _ if self.nodes == 1 => Heard::One(0, frame),
            [len, ENCAPSULATED, ..] if usize::from(len) >= HEADER_LEN && usize::from(len) < frame.len() => {
                let (id, message) = (&frame[HEADER_LEN..len.into()], frame.slice(usize::from(len)..));
                match <[u8; NODE_ID_LEN]>::try_from(id).map(u32::from_be_bytes) {
                    Ok(node) if node < self.nodes => Heard::One(node, message),
                    _ => {
                        self.strays += 1;
                        return;
                    }
                }
            }
            _ => Heard::All(frame),
        };
        self.heard.push_back(heard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(modem: &mut Modem) -> Vec<Heard> {
        std::iter::from_fn(|| modem.poll_heard()).collect()
    }

    #[test]
    fn one_node_speaks_for_itself() {
        let mut modem = Modem::new(Framing::Length, 1);
        let mut out = BytesMut::new();
        modem.handle_frame(0, &[2, 0x17], &mut out);
        assert_eq!(out[..], [2, 0x17]);
        modem.handle_octets(Instant::now(), &[2, 0x17]);
        assert_eq!(heard(&mut modem), [Heard::One(0, Bytes::from_static(&[2, 0x17]))]);
    }

    #[test]
    fn many_nodes_are_told_apart_by_a_forwarder() {
        let mut modem = Modem::new(Framing::Slip, 3);
        let mut out = BytesMut::new();
        modem.handle_frame(2, &[2, 0x17], &mut out);
        assert_eq!(out[..], [0xC0, 7, 0xFE, 0, 0, 0, 0, 2, 2, 0x17, 0xC0]);
        let line = [&out[..], &[7, 0xFE, 0, 0, 0, 0, 3, 2, 0x17, 0xC0], &[2, 0x16, 0xC0]].concat();
        modem.handle_octets(Instant::now(), &line);
        let came =
            [Heard::One(2, Bytes::from_static(&[2, 0x17])), Heard::All(Bytes::from_static(&[2, 0x16]))];
        assert_eq!((heard(&mut modem), modem.strays), (came.to_vec(), 1));
    }

    #[test]
    fn silence_ends_what_a_lost_octet_left_open() {
        let now = Instant::now();
        let mut modem = Modem::new(Framing::Length, 1);
        modem.handle_octets(now, &[7, 0x0C, 0, 0]);
        assert_eq!(modem.poll_timeout(), Some(now + SILENCE));
        modem.handle_timeout(now + SILENCE);
        assert_eq!((modem.poll_timeout(), modem.lost()), (None, 1));
        modem.handle_octets(now + SILENCE, &[2, 0x17]);
        assert_eq!(heard(&mut modem), [Heard::One(0, Bytes::from_static(&[2, 0x17]))]);
    }
}
