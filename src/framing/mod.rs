//! Serial octet streams to frames and back: no clock, no IO, no panic.
//!
//! A line has no datagrams: what is one frame has to be said in the stream itself, and [`Framing`] is how. A
//! [`Decoder`] takes whatever octets have come, in whatever pieces, and gives out frames; after damage it finds
//! the next one by itself and counts what it lost by name. [`xbee`] is the same for radios that speak Digi's API.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};

mod cobs;
mod length;
mod slip;
pub mod xbee;

/// Octets in the longest frame, checksum and stuffing not counted: the default `mtu` of 1,024 and an encapsulation of
/// 255 fit well. What claims to be longer is damage, and must not occupy a slow line for many seconds.
pub const FRAME_LEN_MAX: usize = 2048;

/// How frames are told apart on a serial line; both ends have to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing but the message: its own Length says where it ends (§5.2.1), and an encapsulation ends with the message
    /// in it (§5.5). What simple bridges between UARTs and UDP speak. Damage to one Length is mended by silence only.
    Length,
    /// SLIP (RFC 1055), an END before and after each frame.
    Slip,
    /// [`Framing::Slip`] around the frame and its [`crc`].
    SlipCrc,
    /// COBS (Cheshire and Baker, 1999), a 00 before and after each frame.
    Cobs,
    /// [`Framing::Cobs`] around the frame and its [`crc`].
    CobsCrc,
}

impl Framing {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Length, Self::Slip, Self::SlipCrc, Self::Cobs, Self::CobsCrc];

    /// Its name in gateway.yaml and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Slip => "slip",
            Self::SlipCrc => "slip+crc",
            Self::Cobs => "cobs",
            Self::CobsCrc => "cobs+crc",
        }
    }

    /// Appends what goes on the line for one frame, which is one message with or without its encapsulation; longer
    /// than [`FRAME_LEN_MAX`] it is encoded as well, but dropped by a [`Decoder`]. Delimiters stand on both sides, so
    /// that damage to one of them costs one frame and not two.
    pub fn encode(self, frame: &[u8], into: &mut BytesMut) {
        match self {
            Self::Length => into.extend_from_slice(frame),
            Self::Slip => slip::encode(frame, into),
            Self::SlipCrc => slip::encode(&with_crc(frame), into),
            Self::Cobs => cobs::encode(frame, into),
            Self::CobsCrc => cobs::encode(&with_crc(frame), into),
        }
    }

    /// Octets of a checksum behind the frame.
    fn crc_len(self) -> usize {
        match self {
            Self::Length | Self::Slip | Self::Cobs => 0,
            Self::SlipCrc | Self::CobsCrc => CRC_LEN,
        }
    }
}

impl fmt::Display for Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Framing {
    type Err = UnknownFraming;

    fn from_str(name: &str) -> Result<Self, UnknownFraming> {
        Self::ALL.into_iter().find(|framing| framing.name() == name).ok_or(UnknownFraming)
    }
}

/// A word that names no [`Framing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of length, slip, slip+crc, cobs, cobs+crc")]
pub struct UnknownFraming;

/// Frames out of the octets of one line.
///
/// After each [`Self::push`], take frames with [`Self::poll_frame`] until `None`: it holds one unfinished frame of at most
/// [`FRAME_LEN_MAX`] octets, and the finished ones that were not taken.
///
/// What holds after damage:
/// - with a CRC, no damaged frame is given out (but one of 65,536 that are random), and every frame that was not damaged
///   itself, nor one of its delimiters, is given out;
/// - without a CRC the same, but a damaged frame may come out, as it is or in pieces;
/// - with [`Framing::Length`], damage outside Length and MsgType spoils its own frame only. After damage to one of them what
///   comes out may be anything or nothing until the line was silent once and [`Self::idle`] was told; every frame that
///   begins after that is given out.
///
/// # Examples
/// ```
/// use bytes::BytesMut;
/// use mqtt_sn_gateway::framing::{Decoder, Framing};
///
/// let mut line = BytesMut::new();
/// Framing::SlipCrc.encode(&[0x02, 0x17], &mut line);
/// let mut decoder = Decoder::new(Framing::SlipCrc);
/// decoder.push(&line);
/// assert_eq!(decoder.poll_frame().as_deref(), Some(&[0x02, 0x17][..]));
/// assert_eq!(decoder.poll_frame(), None);
/// ```
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    stream: Stream,
    /// The frame that is coming in, without stuffing; with its CRC.
    partial: Vec<u8>,
    /// Octets of the line that `partial` was made from.
    held: u64,
    ready: VecDeque<Bytes>,
    counters: Counters,
}

impl Decoder {
    /// At the beginning of a frame.
    pub fn new(framing: Framing) -> Self {
        let stream = match framing {
            Framing::Length => Stream::Length(length::Stream::default()),
            Framing::Slip | Framing::SlipCrc => Stream::Slip(slip::Stream::default()),
            Framing::Cobs | Framing::CobsCrc => Stream::Cobs(cobs::Stream::default()),
        };
        Self {
            framing,
            stream,
            partial: Vec::new(),
            held: 0,
            ready: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes in what has come, in whatever pieces it comes.
    pub fn push(&mut self, octets: &[u8]) {
        let len_max = FRAME_LEN_MAX + self.framing.crc_len();
        for octet in octets {
            let step = match &mut self.stream {
                Stream::Length(stream) => stream.octet(*octet, &mut self.partial),
                Stream::Slip(stream) => stream.octet(*octet, &mut self.partial),
                Stream::Cobs(stream) => stream.octet(*octet, &mut self.partial),
            };
            self.held += u64::from(matches!(step, Step::More | Step::Whole | Step::Lost(_)));
            match step {
                Step::More if self.partial.len() > len_max => {
                    self.skip();
                    self.drop_partial(Loss::TooLong);
                }
                Step::More | Step::Empty => {}
                Step::Skipped => self.counters.octets_dropped += 1,
                Step::Whole | Step::End => self.finish(),
                Step::Lost(loss) => {
                    self.skip();
                    self.drop_partial(loss);
                }
                Step::Cut(loss) => self.drop_partial(loss),
            }
        }
    }

    /// The next frame that is complete; never an empty one.
    pub fn poll_frame(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// The line was silent for the idle gap, which is longer than any pause inside a frame. With [`Framing::Length`] an unfinished
    /// frame is dropped and what comes next is the beginning of one; the others have delimiters for that and wait on.
    pub fn idle(&mut self) {
        let Stream::Length(stream) = &mut self.stream else { return };
        stream.idle();
        if self.held > 0 {
            self.drop_partial(Loss::CutShort);
        }
    }

    /// What was given out, and what was lost and why.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn finish(&mut self) {
        let Some(len) = self.partial.len().checked_sub(self.framing.crc_len()).filter(|len| *len > 0) else {
            return self.drop_partial(Loss::CutShort);
        };
        let (frame, sum) = self.partial.split_at(len);
        if !sum.is_empty() && sum != crc(frame).to_be_bytes() {
            return self.drop_partial(Loss::BadCrc);
        }
        self.ready.push_back(Bytes::copy_from_slice(frame));
        self.counters.frames += 1;
        self.partial.clear();
        self.held = 0;
    }

    /// What comes of this frame is to be dropped.
    fn skip(&mut self) {
        match &mut self.stream {
            Stream::Length(stream) => stream.skip(),
            Stream::Slip(stream) => stream.skip(),
            Stream::Cobs(stream) => stream.skip(),
        }
    }

    fn drop_partial(&mut self, loss: Loss) {
        let counters = &mut self.counters;
        let counter = match loss {
            Loss::BadCrc => &mut counters.bad_crc,
            Loss::BadLength => &mut counters.bad_length,
            Loss::BadType => &mut counters.bad_type,
            Loss::BadStuffing => &mut counters.bad_stuffing,
            Loss::TooLong => &mut counters.too_long,
            Loss::CutShort => &mut counters.cut_short,
        };
        *counter += 1;
        counters.octets_dropped += self.held;
        self.partial.clear();
        self.held = 0;
    }
}

/// What a [`Decoder`] has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames given out.
    pub frames: u64,
    /// Octets of the line that are of no frame given out; delimiters are not counted.
    pub octets_dropped: u64,
    /// Frames dropped: the CRC is another.
    pub bad_crc: u64,
    /// Frames dropped: a Length that no message has (§5.2.1).
    pub bad_length: u64,
    /// Frames dropped: a message type that is reserved (§5.2.2), so that it is not believed that a message begins here.
    pub bad_type: u64,
    /// Frames dropped: octets that no encoder stuffs like that.
    pub bad_stuffing: u64,
    /// Frames dropped: longer than [`FRAME_LEN_MAX`].
    pub too_long: u64,
    /// Frames dropped: ended before they were whole.
    pub cut_short: u64,
}

impl Counters {
    /// Every counter by name, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("frames", self.frames),
            ("octets_dropped", self.octets_dropped),
            ("bad_crc", self.bad_crc),
            ("bad_length", self.bad_length),
            ("bad_type", self.bad_type),
            ("bad_stuffing", self.bad_stuffing),
            ("too_long", self.too_long),
            ("cut_short", self.cut_short),
        ]
        .into_iter()
    }

    /// Frames dropped, for whatever reason; one that falls into pieces counts for each of them.
    pub fn lost(&self) -> u64 {
        self.bad_crc + self.bad_length + self.bad_type + self.bad_stuffing + self.too_long + self.cut_short
    }
}

/// The checksum of `slip+crc` and `cobs+crc`: CRC-16 with polynomial 0x1021, initial value 0xFFFF, not reflected, no
/// final exclusive or (also known as CCITT-FALSE and IBM-3740). It follows the frame, high octet first, before stuffing.
pub fn crc(octets: &[u8]) -> u16 {
    octets.iter().fold(0xFFFF, |crc, octet| {
        (0..8).fold(crc ^ u16::from(*octet) << 8, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

const CRC_LEN: usize = 2;

fn with_crc(frame: &[u8]) -> Vec<u8> {
    [frame, &crc(frame).to_be_bytes()].concat()
}

#[derive(Debug)]
enum Stream {
    Length(length::Stream),
    Slip(slip::Stream),
    Cobs(cobs::Stream),
}

/// What one octet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is of the frame, which goes on.
    More,
    /// It is of a frame that is lost already.
    Skipped,
    /// A delimiter with nothing before it.
    Empty,
    /// It is the last one of the frame.
    Whole,
    /// A delimiter behind the frame.
    End,
    /// With it the frame is no good any more.
    Lost(Loss),
    /// A delimiter in the middle of the frame.
    Cut(Loss),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    BadCrc,
    BadLength,
    BadType,
    BadStuffing,
    TooLong,
    CutShort,
}
