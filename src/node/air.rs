//! What passes between a node and its gateway: frames on their way out, MsgIds, and the times of a request.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::{Counters, Event, Options, topics::Topics};
use crate::wire::{Encapsulation, Frame, Packet};

/// Frames that wait for [`super::Node::poll_transmit`]. A caller that drains after each call never gets near.
const FRAMES_MAX: usize = 4096;

/// Events that wait for [`super::Node::poll_event`] before the network may add no more. A PUBLISH that finds no room is not
/// acknowledged, so that it comes again.
const EVENTS_MAX: usize = 4096;

/// Where the parts of a node meet for the length of one call.
#[derive(Debug)]
pub(super) struct Cx<'a> {
    pub(super) now: Instant,
    pub(super) options: &'a Options,
    pub(super) air: &'a mut Air,
    pub(super) topics: &'a mut Topics,
    pub(super) events: &'a mut VecDeque<Event>,
}

impl Cx<'_> {
    pub(super) fn tell(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Whether the application keeps up; asked before anything the network can cause at will.
    pub(super) fn has_room(&mut self) -> bool {
        let room = self.events.len() < EVENTS_MAX;
        self.air.counters.shed += u64::from(!room);
        room
    }

    pub(super) fn retry(&self) -> Retry {
        Retry { sent: self.now, left: self.options.retry_limit }
    }
}

/// Frames on their way out.
#[derive(Debug)]
pub(super) struct Air {
    pub(super) counters: Counters,
    /// When the last frame left that the gateway is known to have heard.
    pub(super) heard: Option<Instant>,
    frames: VecDeque<Bytes>,
    node_id: Option<Bytes>,
    msg_id: u16,
    open: BTreeSet<u16>,
}

impl Air {
    pub(super) fn new(options: &Options, first_msg_id: u16) -> Self {
        Self {
            counters: Counters::default(),
            heard: None,
            frames: VecDeque::new(),
            node_id: options.node_id.clone(),
            msg_id: first_msg_id,
            open: BTreeSet::new(),
        }
    }

    pub(super) fn send(&mut self, packet: Packet<'_>) {
        match encode(packet, self.node_id.as_deref()) {
            Some(frame) => self.send_bytes(frame),
            None => self.counters.shed += 1,
        }
    }

    pub(super) fn send_bytes(&mut self, frame: Bytes) {
        if self.frames.len() == FRAMES_MAX {
            self.frames.pop_front();
            self.counters.shed += 1;
        }
        self.frames.push_back(frame);
        self.counters.frames_sent += 1;
    }

    pub(super) fn send_again(&mut self, packet: Packet<'_>) {
        self.counters.retransmissions += 1;
        self.send(packet);
    }

    pub(super) fn poll(&mut self) -> Option<Bytes> {
        self.frames.pop_front()
    }

    /// Whether a frame is meant for this node: a forwarder names the node, and nothing else may (§5.5).
    pub(super) fn is_ours(&self, frame: &Frame<'_>) -> bool {
        frame.encapsulation.map(|e| e.node_id) == self.node_id.as_deref()
    }

    /// The gateway answered what was sent at `sent`.
    pub(super) fn heard(&mut self, sent: Instant) {
        self.heard = self.heard.max(Some(sent));
    }

    pub(super) fn stale(&mut self) {
        self.counters.stale += 1;
    }

    /// A MsgId for a new exchange: not 0 (§5.3.7), and none that is open. There is always one: open exchanges are a
    /// handful.
    pub(super) fn open_msg_id(&mut self) -> u16 {
        loop {
            self.msg_id = self.msg_id.checked_add(1).unwrap_or(1);
            if self.open.insert(self.msg_id) {
                return self.msg_id;
            }
        }
    }

    pub(super) fn close_msg_id(&mut self, msg_id: u16) {
        self.open.remove(&msg_id);
    }
}

/// One frame, bare or encapsulated; `None` if no Length can say its size.
pub(super) fn encode(packet: Packet<'_>, node_id: Option<&[u8]>) -> Option<Bytes> {
    let encapsulation = node_id.map(|node_id| Encapsulation { radius: 0, node_id });
    let mut out = BytesMut::new();
    Frame { encapsulation, packet }.encode(&mut out).ok()?;
    Some(out.freeze())
}

/// The times of one request that waits for its answer (§6.13).
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    /// When it left last.
    pub(super) sent: Instant,
    /// How often it may be repeated.
    left: u32,
}

/// A request that was repeated [`Options::retry_limit`] times without an answer.
#[derive(Debug)]
pub(super) struct NoAnswer;

impl Retry {
    pub(super) fn deadline(&self, interval: Duration) -> Instant {
        self.sent + interval
    }

    /// Whether to repeat the request at `now`.
    pub(super) fn due(&mut self, now: Instant, interval: Duration) -> Result<bool, NoAnswer> {
        if now < self.deadline(interval) {
            return Ok(false);
        }
        self.left = self.left.checked_sub(1).ok_or(NoAnswer)?;
        self.sent = now;
        Ok(true)
    }
}
