//! A radio at the far end of a serial line, as a value: whatever kind of radio, the line between it and the gateway, and what that
//! does to octets.

use std::fmt;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::Framing;
use serde::Serialize;

use super::line::{Line, Noise};
use super::modem::Modem;
use super::xbee::{self, Xbee};

/// Octets from the nodes that wait for the line; a radio has little memory, and what does not fit is lost in the air.
const BACKLOG_MAX: usize = 4096;

/// Octets from the gateway that are in the line at one time: the buffer of a UART. The gateway has to wait for more.
const UART: usize = 64;

/// The same for a line on which nothing takes time.
const UNPACED: usize = 4096;

/// Which radio, and at what line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) kind: Kind,
    pub(crate) noise: Noise,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Messages in frames of the line; more than one node is behind a forwarder.
    Modem(Framing),
    /// Digi's API.
    Xbee(xbee::Options),
}

/// Who hears a frame of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    One(u32, Bytes),
    All(Bytes),
}

#[derive(Debug)]
pub(super) struct Radio {
    far: Far,
    /// To the gateway.
    up: Line,
    /// From the gateway.
    down: Line,
    room: usize,
    out: BytesMut,
    shed: u64,
}

#[derive(Debug)]
enum Far {
    Modem(Box<Modem>),
    Xbee(Box<Xbee>),
}

impl Radio {
    pub(super) fn new(options: Options, nodes: u32, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let far = match options.kind {
            Kind::Modem(framing) => Far::Modem(Box::new(Modem::new(framing, nodes))),
            Kind::Xbee(options) => Far::Xbee(Box::new(Xbee::new(options, nodes, random.u64(..)))),
        };
        let up = Line::new(options.noise, random.u64(..));
        let by_pauses = matches!(options.kind, Kind::Modem(Framing::Length));
        Self {
            far,
            up: if by_pauses { up.in_one_go() } else { up },
            down: Line::new(options.noise, random.u64(..)),
            room: if options.noise.baud == 0 { UNPACED } else { UART },
            out: BytesMut::new(),
            shed: 0,
        }
    }

    /// The gateway is there for the first time.
    pub(super) fn start(&mut self, now: Instant) {
        if let Far::Xbee(xbee) = &mut self.far {
            xbee.start(&mut self.out);
        }
        self.transmit(now);
    }

    /// A node sends.
    pub(super) fn handle_frame(&mut self, now: Instant, node: u32, frame: &[u8]) {
        if self.up.len() > BACKLOG_MAX {
            self.shed += 1;
            return;
        }
        match &mut self.far {
            Far::Modem(modem) => modem.handle_frame(node, frame, &mut self.out),
            Far::Xbee(xbee) => xbee.handle_frame(node, frame, &mut self.out),
        }
        self.transmit(now);
    }

    /// Octets the gateway may write at this moment.
    pub(super) fn room(&self) -> usize {
        self.room.saturating_sub(self.down.len())
    }

    /// The gateway writes, no more than [`Self::room`].
    pub(super) fn handle_octets(&mut self, now: Instant, octets: &[u8]) {
        self.down.offer(now, octets);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let octets = self.down.poll(now);
        match &mut self.far {
            Far::Modem(modem) => {
                if !octets.is_empty() {
                    modem.handle_octets(now, &octets);
                }
                // A line on which there is something is not silent, however long nobody has looked.
                if self.down.len() == 0 {
                    modem.handle_timeout(now);
                }
            }
            Far::Xbee(xbee) => {
                xbee.handle_octets(now, &octets, &mut self.out);
                xbee.handle_timeout(now, &mut self.out);
            }
        }
        self.transmit(now);
    }

    /// What comes out of the line at the gateway.
    pub(super) fn poll_octets(&mut self, now: Instant) -> Vec<u8> {
        self.up.poll(now)
    }

    pub(super) fn poll_heard(&mut self) -> Option<Heard> {
        match &mut self.far {
            Far::Modem(modem) => modem.poll_heard(),
            Far::Xbee(xbee) => xbee.poll_heard(),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let far = match &self.far {
            Far::Modem(modem) => modem.poll_timeout().filter(|_| self.down.len() == 0),
            Far::Xbee(xbee) => xbee.poll_timeout(),
        };
        [far, self.up.poll_timeout(), self.down.poll_timeout()].into_iter().flatten().min()
    }

    /// The gateway has gone: what is in the line is lost.
    pub(super) fn hang_up(&mut self) {
        self.up.clear();
        self.down.clear();
    }

    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally {
            octets_corrupted: self.up.corrupted + self.down.corrupted,
            octets_lost: self.up.lost + self.down.lost,
            frames_shed: self.shed,
            ..Tally::default()
        };
        match &self.far {
            Far::Modem(modem) => {
                tally.frames_lost_on_line = modem.lost();
                tally.frames_for_nobody = modem.strays;
            }
            Far::Xbee(xbee) => {
                tally.frames_lost_on_line = xbee.lost();
                tally.frames_for_nobody = xbee.tally.strays;
                tally.at_commands = xbee.tally.commands;
                tally.transmissions = xbee.tally.transmissions;
                tally.transmissions_failed = xbee.tally.failed;
                tally.oversized = xbee.tally.oversized + xbee.tally.unsendable;
            }
        }
        tally
    }

    fn transmit(&mut self, now: Instant) {
        if !self.out.is_empty() {
            self.up.offer(now, &self.out.split());
        }
    }
}

/// What a radio and its line have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    octets_corrupted: u64,
    octets_lost: u64,
    /// Frames of the gateway that were damaged when they came.
    frames_lost_on_line: u64,
    frames_for_nobody: u64,
    /// Frames of nodes for which the radio had no room.
    frames_shed: u64,
    at_commands: u64,
    transmissions: u64,
    transmissions_failed: u64,
    /// Frames too large for the air, of both directions.
    oversized: u64,
}

impl Tally {
    /// What is worth a row.
    pub(super) fn rows(&self, row: &mut dyn FnMut(&str, &dyn fmt::Display) -> fmt::Result) -> fmt::Result {
        for (name, value) in [
            ("octets corrupted", self.octets_corrupted),
            ("octets lost", self.octets_lost),
            ("frames lost on the line", self.frames_lost_on_line),
            ("frames for nobody", self.frames_for_nobody),
            ("frames shed by the radio", self.frames_shed),
            ("AT commands", self.at_commands),
            ("transmissions", self.transmissions),
            ("  failed", self.transmissions_failed),
            ("too large for the air", self.oversized),
        ] {
            if value > 0 {
                row(name, &value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mqtt_sn_gateway::framing::xbee::Mode;

    use super::*;

    const QUIET: Noise = Noise { baud: 1000, corrupt: 0.0, byte_loss: 0.0 };

    #[test]
    fn a_frame_takes_its_time_and_the_gateway_has_to_wait_for_room() {
        let start = Instant::now();
        let mut radio = Radio::new(Options { kind: Kind::Modem(Framing::Slip), noise: QUIET }, 1, 0);
        radio.handle_octets(start, &[0xC0, 2, 0x17, 0xC0]);
        assert_eq!(radio.room(), UART - 4);
        radio.handle_timeout(start + Duration::from_millis(39));
        assert_eq!(radio.poll_heard(), None);
        radio.handle_timeout(start + Duration::from_millis(40));
        assert_eq!(radio.poll_heard(), Some(Heard::One(0, Bytes::from_static(&[2, 0x17]))));
        assert_eq!(radio.room(), UART);

        radio.handle_frame(start, 0, &[2, 0x17]);
        assert_eq!(radio.poll_octets(start + Duration::from_millis(30)), [0xC0, 2, 0x17]);
        radio.hang_up();
        assert!(radio.poll_octets(start + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn what_a_radio_cannot_keep_is_shed_and_counted() {
        let now = Instant::now();
        let mut radio = Radio::new(Options { kind: Kind::Modem(Framing::Length), noise: QUIET }, 2, 0);
        (0..100).for_each(|_| radio.handle_frame(now, 1, &[100; 100]));
        let kept = 4096 / 107 + 1;
        assert_eq!(radio.tally(), Tally { frames_shed: 100 - kept, ..Tally::default() });
    }

    #[test]
    fn an_xbee_starts_with_its_status() {
        let options = xbee::Options { mode: Mode::Plain, payload_max: 84, output: 0, failures: 0.0 };
        let noise = Noise { baud: 0, ..QUIET };
        let mut radio = Radio::new(Options { kind: Kind::Xbee(options), noise }, 2, 0);
        let now = Instant::now();
        radio.start(now);
        assert_eq!(radio.poll_octets(now)[..6], [0x7E, 0, 2, 0x8A, 0, 0x75]);
    }
}
