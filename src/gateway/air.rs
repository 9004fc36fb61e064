//! What leaves the core for the air: packets become frames here, encapsulated where a forwarder stands between (§5.5).

use std::collections::{BTreeSet, VecDeque};

use bytes::BytesMut;
use tracing::trace;

use super::counters::Counters;
use super::io::{Output, Peer, PortId, Route, Target};
use super::journal::{Leaving, Whose};
use crate::wire::{Encapsulation, Frame, Packet, Publish, Qos, Response, ReturnCode, SubAck, TopicAck};

/// Octets reserved at a time for frames to be cut from.
const SCRATCH_LEN: usize = 4096;

/// Outputs in the order they were made.
#[derive(Debug, Default)]
pub(super) struct Air {
    pub(super) outputs: VecDeque<Leaving>,
    scratch: BytesMut,
    /// Transports that said that they cannot send and receive.
    down: BTreeSet<PortId>,
    /// What was to be sent last was not, because of that.
    is_cut_off: bool,
}

/// To whom a frame goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addressee<'a> {
    /// Of whom the frame may say something that has to be stored first.
    pub(super) whose: Option<Whose>,
    pub(super) peer: &'a Peer,
    pub(super) route: Route,
}

impl<'a> Addressee<'a> {
    /// Somebody of whom nothing is stored.
    pub(super) fn stranger(peer: &'a Peer, route: Route) -> Self {
        Self { whose: None, peer, route }
    }
}

impl Air {
    /// A transport can send and receive, or cannot. Whether that is news; they are taken to be up.
    pub(super) fn set_port(&mut self, port: PortId, up: bool) -> bool {
        if up { self.down.remove(&port) } else { self.down.insert(port) }
    }

    /// Whether nothing reaches this peer, and nothing comes from it, whatever it does.
    pub(super) fn is_down(&self, peer: &Peer) -> bool {
        self.is_port_down(peer.port)
    }

    /// Whether a transport cannot send and receive.
    pub(super) fn is_port_down(&self, port: PortId) -> bool {
        self.down.contains(&port)
    }

    /// Takes out what has yet to leave on a transport.
    pub(super) fn cut_off(&mut self, port: PortId) -> Vec<Output> {
        let (cut, kept) = self.outputs.drain(..).partition::<Vec<_>, _>(|leaving| leaving.is_on(port));
        self.outputs.extend(kept);
        cut.into_iter().map(|leaving| leaving.output).collect()
    }

    pub(super) fn send(&mut self, to: Addressee<'_>, packet: Packet<'_>, counters: &mut Counters) {
        self.send_within(usize::MAX, 0, to, packet, counters);
    }

    /// Sends unless the frame has more than `mtu` octets; returns whether it has not. Towards a forwarder `radius` says
    /// how far a broadcast shall go, 0 for unicast.
    pub(super) fn send_within(
        &mut self,
        mtu: usize,
        radius: u8,
        to: Addressee<'_>,
        packet: Packet<'_>,
        counters: &mut Counters,
    ) -> bool {
        let Addressee { whose, peer, route } = to;
        let node = peer.node.as_ref();
        let encapsulation = node.map(|node| Encapsulation { radius, node_id: &node.0 });
        let to = Target::Unicast { port: peer.port, addr: peer.addr, route };
        self.put(whose, mtu, to, Frame { encapsulation, packet }, counters)
    }

    /// Who gets what was sent last relies on the gateway knowing of it after a restart.
    pub(super) fn promise(&mut self) {
        if let Some(leaving) = self.last() {
            leaving.promises = true;
        }
    }

    /// What was sent last holds whatever becomes of what is not durable yet.
    pub(super) fn promise_nothing(&mut self) {
        if let Some(leaving) = self.last() {
            leaving.promises = false;
        }
    }

    /// What was sent last is the answer to a client that falls asleep.
    pub(super) fn put_to_sleep(&mut self) {
        if let Some(leaving) = self.last() {
            leaving.puts_to_sleep = true;
        }
    }

    /// What was sent last, if it was.
    fn last(&mut self) -> Option<&mut Leaving> {
        self.outputs.back_mut().filter(|_| !self.is_cut_off)
    }

    pub(super) fn broadcast(
        &mut self,
        port: PortId,
        radius: u8,
        packet: Packet<'_>,
        counters: &mut Counters,
    ) {
        let frame = Frame { encapsulation: None, packet };
        self.put(None, usize::MAX, Target::Broadcast { port, radius }, frame, counters);
    }

    fn put(
        &mut self,
        whose: Option<Whose>,
        mtu: usize,
        to: Target,
        frame: Frame<'_>,
        counters: &mut Counters,
    ) -> bool {
        if self.scratch.capacity() < 64 {
            self.scratch.reserve(SCRATCH_LEN);
        }
        if frame.encode(&mut self.scratch).is_err() || self.scratch.len() > mtu {
            self.scratch.clear();
            return false;
        }
        let (Target::Unicast { port, .. } | Target::Broadcast { port, .. }) = to;
        self.is_cut_off = self.is_port_down(port);
        if self.is_cut_off {
            self.scratch.clear();
            counters.frames_cut_off += 1;
            return true;
        }
        trace!(?to, "sent {frame:.0}");
        let output = Output::Send { to, frame: self.scratch.split().freeze() };
        let promises = promises(&frame.packet);
        self.outputs.push_back(Leaving { output, whose, promises, puts_to_sleep: false });
        true
    }
}

/// Whether who gets this relies on the gateway knowing of it after a restart. A PUBACK for a message that is with the broker
/// does not; for one that is only stored see [`Air::promise`].
fn promises(packet: &Packet<'_>) -> bool {
    match packet {
        Packet::PingResp
        | Packet::PubAck(_)
        | Packet::Publish(Publish { qos: Qos::AtMostOnce | Qos::AtLeastOnce, .. }) => false,
        // A refusal leaves all as it was.
        Packet::ConnAck(Response { code })
        | Packet::RegAck(TopicAck { code, .. })
        | Packet::SubAck(SubAck { code, .. })
        | Packet::WillTopicResp(Response { code })
        | Packet::WillMsgResp(Response { code }) => *code == ReturnCode::Accepted,
        _ => true,
    }
}
