//! Digi's API frames, which XBee radios speak on their serial side: start delimiter, length, frame data, checksum.
//!
//! Layouts are those of Digi's user guides for XBee ZigBee, DigiMesh and 802.15.4. Both directions are here, for a gateway
//! and for a radio alike. Addresses of 64 bits are what nodes are known by; short ones change.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

/// Octets of frame data in the longest frame: the largest payload a radio takes is 256 octets, and no frame puts more than
/// 18 before it. Answers to AT commands are shorter.
pub const DATA_LEN_MAX: usize = 512;

/// 64-bit address of everybody.
pub const BROADCAST: u64 = 0xFFFF;

/// 64-bit address of the coordinator of the network.
pub const COORDINATOR: u64 = 0;

/// 16-bit address of who is known by 64 bits only, and of everybody.
pub const SHORT_UNKNOWN: u16 = 0xFFFE;

/// [`Frame::TransmitStatus::delivery`] and [`Frame::TxStatus::status`] of what was delivered.
pub const DELIVERED: u8 = 0x00;

/// [`Frame::TransmitStatus::delivery`] where no acknowledgement came from the next radio.
pub const NO_ACKNOWLEDGEMENT: u8 = 0x01;

/// [`Frame::TransmitStatus::delivery`] where none came from the destination.
pub const NO_NETWORK_ACKNOWLEDGEMENT: u8 = 0x21;

/// [`Frame::TransmitStatus::delivery`] of a payload larger than the radio sends.
pub const TOO_LARGE: u8 = 0x74;

/// Bit of the options of a received frame: it was sent to everybody.
pub const RECEIVED_BROADCAST: u8 = 0x02;

/// What a radio says about a transmission, in words, by [`Frame::TransmitStatus::delivery`]; for a status Digi does not list
/// "reason unknown".
pub fn delivery(status: u8) -> &'static str {
    match status {
        DELIVERED => "delivered",
        NO_ACKNOWLEDGEMENT => "no acknowledgement from the next radio",
        0x02 => "the channel was never clear",
        0x03 => "purged, or no spectrum",
        0x15 => "invalid destination endpoint",
        NO_NETWORK_ACKNOWLEDGEMENT => "no acknowledgement from the destination",
        0x22 => "the radio has not joined a network",
        0x23 => "addressed to itself",
        0x24 => "address not found",
        0x25 => "route not found",
        0x26 => "no neighbour relayed the broadcast",
        0x2B => "invalid binding table index",
        0x2C | 0x31 | 0x32 => "the radio is out of buffers",
        0x2D => "a broadcast cannot be acknowledged",
        0x2E => "encryption is not enabled",
        0x34 => "no secure session",
        0x35 => "encryption failed",
        TOO_LARGE => "the payload is too large",
        0x75 => "the sleeper did not fetch it",
        _ => "reason unknown",
    }
}

/// How frames are written, `AP` of the radio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `AP` 1: as they are.
    Plain,
    /// `AP` 2: start delimiter, escape, XON and XOFF do not occur inside.
    Escaped,
}

/// What one frame says. 16- and 64-bit numbers travel high octet first; `frame_id` 0 asks for no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are Digi's, by their names; what is not plain is said")]
pub enum Frame {
    /// 00: send to a 64-bit address (802.15.4, legacy).
    Tx64 { frame_id: u8, to: u64, options: u8, payload: Bytes },
    /// 01: send to a 16-bit address (802.15.4, legacy).
    Tx16 { frame_id: u8, to: u16, options: u8, payload: Bytes },
    /// 08: ask for a parameter, or set it; no value: ask.
    AtCommand { frame_id: u8, command: [u8; 2], value: Bytes },
    /// 10: send; radius 0 is as far as it goes.
    TransmitRequest { frame_id: u8, to: u64, to_short: u16, radius: u8, options: u8, payload: Bytes },
    /// 80: received from a 64-bit address (802.15.4, legacy); RSSI in -dBm.
    Rx64 { from: u64, rssi: u8, options: u8, payload: Bytes },
    /// 81: received from a 16-bit address (802.15.4, legacy); RSSI in -dBm.
    Rx16 { from: u16, rssi: u8, options: u8, payload: Bytes },
    /// 88: answer to [`Frame::AtCommand`]; status 0 is OK, 1 ERROR, 2 invalid command, 3 invalid parameter.
    AtResponse { frame_id: u8, command: [u8; 2], status: u8, value: Bytes },
    /// 89: what became of 00 or 01; see [`delivery`].
    TxStatus { frame_id: u8, status: u8 },
    /// 8A: something happened to the radio; 0 is a hardware reset.
    ModemStatus { status: u8 },
    /// 8B: what became of 10; see [`delivery`].
    TransmitStatus { frame_id: u8, short: u16, retries: u8, delivery: u8, discovery: u8 },
    /// 90: received (`AO` 0).
    Receive { from: u64, from_short: u16, options: u8, payload: Bytes },
    /// 91: received, with ZigBee's addressing (`AO` 1).
    ExplicitReceive {
        from: u64,
        from_short: u16,
        source_endpoint: u8,
        destination_endpoint: u8,
        cluster: u16,
        profile: u16,
        options: u8,
        payload: Bytes,
    },
    /// Any other.
    Unknown { kind: u8, body: Bytes },
}

impl Frame {
    /// Reads frame data, which is what stands between length and checksum. What a status frame has behind the fields it is known to
    /// have is ignored.
    ///
    /// # Errors
    /// [`CutShort`], if a frame of a known type ends before its last field.
    pub fn decode(data: Bytes) -> Result<Self, CutShort> {
        let Some(kind) = data.first().copied() else { return Err(CutShort { kind: None }) };
        Self::fields(kind, data.slice(1..)).map_err(|_| CutShort { kind: Some(kind) })
    }

    /// Appends what goes on the line.
    ///
    /// # Errors
    /// [`TooLong`], and `into` is as it was, if the frame data pass [`DATA_LEN_MAX`].
    pub fn encode(&self, mode: Mode, into: &mut BytesMut) -> Result<(), TooLong> {
        let mut data = Vec::new();
        self.put(&mut data);
        let Some(len) = u16::try_from(data.len()).ok().filter(|len| usize::from(*len) <= DATA_LEN_MAX) else {
            return Err(TooLong(data.len()));
        };
        let sum = 0xFF - sum(&data);
        into.put_u8(START);
        for octet in len.to_be_bytes().into_iter().chain(data).chain([sum]) {
            match (mode, octet) {
                (Mode::Escaped, START | ESCAPE | XON | XOFF) => {
                    into.extend_from_slice(&[ESCAPE, octet ^ ESCAPED]);
                }
                _ => into.put_u8(octet),
            }
        }
        Ok(())
    }

    fn fields(kind: u8, mut body: Bytes) -> Result<Self, TryGetError> {
        Ok(match kind {
            0x00 => Self::Tx64 {
                frame_id: body.try_get_u8()?,
                to: body.try_get_u64()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            0x01 => Self::Tx16 {
                frame_id: body.try_get_u8()?,
                to: body.try_get_u16()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            0x08 => Self::AtCommand {
                frame_id: body.try_get_u8()?,
                command: [body.try_get_u8()?, body.try_get_u8()?],
                value: body,
            },
            0x10 => Self::TransmitRequest {
                frame_id: body.try_get_u8()?,
                to: body.try_get_u64()?,
                to_short: body.try_get_u16()?,
                radius: body.try_get_u8()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            0x80 => Self::Rx64 {
                from: body.try_get_u64()?,
                rssi: body.try_get_u8()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            0x81 => Self::Rx16 {
                from: body.try_get_u16()?,
                rssi: body.try_get_u8()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            0x88 => Self::AtResponse {
                frame_id: body.try_get_u8()?,
                command: [body.try_get_u8()?, body.try_get_u8()?],
                status: body.try_get_u8()?,
                value: body,
            },
            0x89 => Self::TxStatus { frame_id: body.try_get_u8()?, status: body.try_get_u8()? },
            0x8A => Self::ModemStatus { status: body.try_get_u8()? },
            0x8B => Self::TransmitStatus {
                frame_id: body.try_get_u8()?,
                short: body.try_get_u16()?,
                retries: body.try_get_u8()?,
                delivery: body.try_get_u8()?,
                discovery: body.try_get_u8()?,
            },
            0x90 => Self::Receive {
                from: body.try_get_u64()?,
                from_short: body.try_get_u16()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            0x91 => Self::ExplicitReceive {
                from: body.try_get_u64()?,
                from_short: body.try_get_u16()?,
                source_endpoint: body.try_get_u8()?,
                destination_endpoint: body.try_get_u8()?,
                cluster: body.try_get_u16()?,
                profile: body.try_get_u16()?,
                options: body.try_get_u8()?,
                payload: body,
            },
            kind => Self::Unknown { kind, body },
        })
    }

    /// The frame data.
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Tx64 { frame_id, to, options, payload } => {
                out.extend_from_slice(&[0x00, *frame_id]);
                out.put_u64(*to);
                out.put_u8(*options);
                out.put_slice(payload);
            }
            Self::Tx16 { frame_id, to, options, payload } => {
                out.extend_from_slice(&[0x01, *frame_id]);
                out.put_u16(*to);
                out.put_u8(*options);
                out.put_slice(payload);
            }
            Self::AtCommand { frame_id, command, value } => {
                out.extend_from_slice(&[0x08, *frame_id]);
                out.put_slice(command);
                out.put_slice(value);
            }
            Self::TransmitRequest { frame_id, to, to_short, radius, options, payload } => {
                out.extend_from_slice(&[0x10, *frame_id]);
                out.put_u64(*to);
                out.put_u16(*to_short);
                out.extend_from_slice(&[*radius, *options]);
                out.put_slice(payload);
            }
            Self::Rx64 { from, rssi, options, payload } => {
                out.put_u8(0x80);
                out.put_u64(*from);
                out.extend_from_slice(&[*rssi, *options]);
                out.put_slice(payload);
            }
            Self::Rx16 { from, rssi, options, payload } => {
                out.put_u8(0x81);
                out.put_u16(*from);
                out.extend_from_slice(&[*rssi, *options]);
                out.put_slice(payload);
            }
            Self::AtResponse { frame_id, command, status, value } => {
                out.extend_from_slice(&[0x88, *frame_id]);
                out.put_slice(command);
                out.put_u8(*status);
                out.put_slice(value);
            }
            Self::TxStatus { frame_id, status } => out.extend_from_slice(&[0x89, *frame_id, *status]),
            Self::ModemStatus { status } => out.extend_from_slice(&[0x8A, *status]),
            Self::TransmitStatus { frame_id, short, retries, delivery, discovery } => {
                out.extend_from_slice(&[0x8B, *frame_id]);
                out.put_u16(*short);
                out.extend_from_slice(&[*retries, *delivery, *discovery]);
            }
            Self::Receive { from, from_short, options, payload } => {
                out.put_u8(0x90);
                out.put_u64(*from);
                out.put_u16(*from_short);
                out.put_u8(*options);
                out.put_slice(payload);
            }
            Self::ExplicitReceive {
                from,
                from_short,
                source_endpoint,
                destination_endpoint,
                cluster,
                profile,
                options,
                payload,
            } => {
                out.put_u8(0x91);
                out.put_u64(*from);
                out.put_u16(*from_short);
                out.extend_from_slice(&[*source_endpoint, *destination_endpoint]);
                out.put_u16(*cluster);
                out.put_u16(*profile);
                out.put_u8(*options);
                out.put_slice(payload);
            }
            Self::Unknown { kind, body } => {
                out.put_u8(*kind);
                out.put_slice(body);
            }
        }
    }
}

/// A frame that ends before its last field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", match kind {
    Some(kind) => format!("a frame of type {kind:02X} is cut short"),
    None => "a frame has no type".to_owned(),
})]
pub struct CutShort {
    /// Its type, if it has that.
    pub kind: Option<u8>,
}

/// Frame data longer than [`DATA_LEN_MAX`]; holds their octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} octets are more than an API frame takes")]
pub struct TooLong(pub usize);

/// Frames out of the octets of one line.
///
/// After each [`Self::push`], take frames with [`Self::poll_frame`] until `None`: it holds one unfinished frame of at most
/// [`DATA_LEN_MAX`] octets of data, and the finished ones that were not taken.
///
/// A damaged frame costs itself only. Escaped, a start delimiter begins a frame wherever it stands. Plain, it may
/// be a payload's, so what was taken for a frame and is none is searched for the next start delimiter; where damage to a
/// length makes it wait for more than comes, [`Self::idle`] ends that. One of 256 damaged frames has the right checksum.
#[derive(Debug)]
pub struct Decoder {
    mode: Mode,
    /// Begins with a start delimiter unless empty; not escaped.
    held: Vec<u8>,
    /// The last octet was the escape.
    escaped: bool,
    ready: VecDeque<Frame>,
    counters: Counters,
}

impl Decoder {
    /// Between frames.
    pub fn new(mode: Mode) -> Self {
        Self { mode, held: Vec::new(), escaped: false, ready: VecDeque::new(), counters: Counters::default() }
    }

    /// Takes in what has come, in whatever pieces it comes.
    pub fn push(&mut self, octets: &[u8]) {
        for octet in octets {
            match self.mode {
                Mode::Plain => self.held.push(*octet),
                Mode::Escaped => self.push_escaped(*octet),
            }
            self.settle();
        }
    }

    /// The next frame that is complete.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// The line was silent for much longer than any pause inside a frame. Plain, what is unfinished is dropped, and whole
    /// frames that were taken for a part of it come out; escaped, the next start delimiter does that, and nothing happens.
    pub fn idle(&mut self) {
        if self.mode == Mode::Escaped {
            return;
        }
        while !self.held.is_empty() {
            self.counters.cut_short += 1;
            self.drop_start();
            self.settle();
        }
    }

    /// What was given out, and what was lost and why.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn push_escaped(&mut self, octet: u8) {
        match octet {
            START => {
                self.escaped = false;
                if !self.held.is_empty() {
                    self.counters.cut_short += 1;
                    self.drop_start();
                }
                self.held.push(START);
            }
            ESCAPE if !self.escaped => self.escaped = true,
            octet => {
                let octet = if self.escaped { octet ^ ESCAPED } else { octet };
                self.escaped = false;
                if self.held.is_empty() {
                    self.counters.octets_dropped += 1; // Even if it is a start delimiter: that was escaped.
                } else {
                    self.held.push(octet);
                }
            }
        }
    }

    /// Takes out what is complete and throws away what is none.
    fn settle(&mut self) {
        loop {
            let noise = self.held.iter().position(|octet| *octet == START).unwrap_or(self.held.len());
            self.drop(noise);
            let [_, high, low, ref rest @ ..] = *self.held else { return };
            let len = usize::from(u16::from_be_bytes([high, low]));
            if len == 0 || len > DATA_LEN_MAX {
                self.counters.bad_length += 1;
                self.drop_start();
                continue;
            }
            let Some(data) = rest.get(..len) else { return };
            let Some(check) = rest.get(len) else { return };
            if sum(data).wrapping_add(*check) != 0xFF {
                self.counters.bad_checksum += 1;
                self.drop_start();
                continue;
            }
            match Frame::decode(Bytes::copy_from_slice(data)) {
                Ok(frame) => {
                    self.counters.frames += 1;
                    self.counters.unknown_type += u64::from(matches!(frame, Frame::Unknown { .. }));
                    self.ready.push_back(frame);
                    self.held.drain(..len + OVERHEAD);
                }
                Err(_) => {
                    self.counters.bad_length += 1;
                    self.drop(len + OVERHEAD);
                }
            }
        }
    }

    /// What begins here is no frame.
    fn drop_start(&mut self) {
        match self.mode {
            Mode::Plain => self.drop(1),
            Mode::Escaped => self.drop(self.held.len()),
        }
    }

    fn drop(&mut self, octets: usize) {
        self.counters.octets_dropped += octets as u64;
        self.held.drain(..octets);
    }
}

/// What a [`Decoder`] has counted since it was made.
///
/// A loss may be counted more than once: a damaged frame can hold what looks like the start of another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames given out.
    pub frames: u64,
    /// Of those, frames of a type that is not known.
    pub unknown_type: u64,
    /// Octets that are of no frame given out; escapes are not counted.
    pub octets_dropped: u64,
    /// Frames dropped: the checksum is another.
    pub bad_checksum: u64,
    /// Frames dropped: a length that no frame has, or not one of this type.
    pub bad_length: u64,
    /// Frames dropped: another began, or the line fell silent, before they were whole.
    pub cut_short: u64,
}

impl Counters {
    /// Every counter by name, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("frames", self.frames),
            ("unknown_type", self.unknown_type),
            ("octets_dropped", self.octets_dropped),
            ("bad_checksum", self.bad_checksum),
            ("bad_length", self.bad_length),
            ("cut_short", self.cut_short),
        ]
        .into_iter()
    }

    /// Frames dropped, for whatever reason.
    pub fn lost(&self) -> u64 {
        self.bad_checksum + self.bad_length + self.cut_short
    }
}

const START: u8 = 0x7E;
const ESCAPE: u8 = 0x7D;
const XON: u8 = 0x11;
const XOFF: u8 = 0x13;

/// What an escaped octet is combined with.
const ESCAPED: u8 = 0x20;

/// Start delimiter, length and checksum.
const OVERHEAD: usize = 4;

fn sum(data: &[u8]) -> u8 {
    data.iter().fold(0, |sum, octet| sum.wrapping_add(*octet))
}
