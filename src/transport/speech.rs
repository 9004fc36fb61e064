//! What is spoken on a serial line, as a value: octets, frames to send and the time go in; octets, frames and what there is to
//! tell come out. [`super::serial`] is the task around it.

use std::time::Instant;

use bytes::Bytes;

use super::Count;
use super::fault::Fault;
use super::framed::Framed;
use super::xbee::Radio;
use crate::gateway::io::Address;

/// One line's side of a conversation. `handle_…` takes in what happened, then `poll_octets` says what is to be written next, as
/// the line has room for it, and `poll_event` what is to be told; `poll_timeout` says when to come back if nothing happens.
#[derive(Debug)]
pub(super) enum Speech {
    /// One node, or a forwarder, at the other end.
    Framed(Framed),
    /// A radio with many nodes behind it.
    Xbee(Radio),
}

/// What there is to tell of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Frames can be sent.
    Up,
    /// They cannot, although the device is there.
    Down,
    /// A frame came.
    Frame(Address, Bytes),
    /// How much a frame may have from now on.
    Mtu(usize),
    /// Something is wrong.
    Fault(Fault),
    /// What was wrong is so no more.
    Well,
    /// Worth a line in the log.
    Told(String),
    /// To be counted.
    Count(Count, usize),
}

/// Whom a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// One address.
    One(Address),
    /// Everybody, so many hops far; 0: as far as it goes.
    All(u8),
}

impl Speech {
    /// The device was opened, for the first time or again: what was said before it nobody remembers.
    pub(super) fn handle_open(&mut self, now: Instant) {
        match self {
            Self::Framed(framed) => framed.handle_open(now),
            Self::Xbee(radio) => radio.handle_open(now),
        }
    }

    /// The device is gone. What waits is dropped and counted.
    pub(super) fn handle_gone(&mut self) {
        match self {
            Self::Framed(framed) => framed.handle_gone(),
            Self::Xbee(radio) => radio.handle_gone(),
        }
    }

    /// The port is closed. What waits is dropped and counted; what became of what is out nobody will know.
    pub(super) fn handle_closed(&mut self) {
        match self {
            Self::Framed(framed) => framed.handle_gone(),
            Self::Xbee(radio) => radio.handle_closed(),
        }
    }

    /// The device takes nothing: what waits has waited too long.
    pub(super) fn handle_held(&mut self) {
        match self {
            Self::Framed(framed) => framed.drop_queue(Count::QueueFull),
            Self::Xbee(radio) => radio.drop_queue(Count::QueueFull),
        }
    }

    /// Octets came.
    pub(super) fn handle_octets(&mut self, now: Instant, octets: &[u8]) {
        match self {
            Self::Framed(framed) => framed.handle_octets(now, octets),
            Self::Xbee(radio) => radio.handle_octets(now, octets),
        }
    }

    /// A frame is to be sent. It waits, is sent, or is dropped and counted.
    pub(super) fn handle_send(&mut self, now: Instant, to: To, frame: &Bytes) {
        match self {
            Self::Framed(framed) => framed.handle_send(frame),
            Self::Xbee(radio) => radio.handle_send(now, to, frame),
        }
    }

    /// It is this late.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Framed(framed) => framed.handle_timeout(now),
            Self::Xbee(radio) => radio.handle_timeout(now),
        }
    }

    /// What is to be written now, if there is something and the line has room.
    pub(super) fn poll_octets(&mut self, now: Instant) -> Option<Bytes> {
        match self {
            Self::Framed(framed) => framed.poll_octets(now),
            Self::Xbee(radio) => radio.poll_octets(now),
        }
    }

    /// What there is to tell.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        match self {
            Self::Framed(framed) => framed.poll_event(),
            Self::Xbee(radio) => radio.poll_event(),
        }
    }

    /// When [`Self::handle_timeout`] or [`Self::poll_octets`] has something to do next.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Framed(framed) => framed.poll_timeout(now),
            Self::Xbee(radio) => radio.poll_timeout(now),
        }
    }

    /// When everything is out; `None`: it is.
    pub(super) fn out_at(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Framed(framed) => framed.out_at(now),
            Self::Xbee(radio) => radio.out_at(now),
        }
    }
}
