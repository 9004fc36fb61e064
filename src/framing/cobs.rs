//! Consistent Overhead Byte Stuffing, Cheshire and Baker, IEEE/ACM Transactions on Networking 7 (2), 1999: a frame is cut at its
//! zeros into blocks, each led by a code, its length with the code; the zero that follows a block is not sent, and a
//! block of 254 octets, code FF, has none. So 00 is free to stand between frames.

use bytes::{BufMut, BytesMut};

use super::{Loss, Step};

const DELIMITER: u8 = 0x00;

/// The code of a block that no zero follows.
const FULL: u8 = 0xFF;

/// Octets in a block, without its code.
const BLOCK_LEN_MAX: usize = 254;

pub(super) fn encode(body: &[u8], into: &mut BytesMut) {
    into.reserve(body.len() + body.len() / BLOCK_LEN_MAX + 3);
    into.put_u8(DELIMITER);
    let mut runs = body.split(|octet| *octet == 0).peekable();
    while let Some(mut run) = runs.next() {
        let mut filled = false;
        while let Some((block, rest)) = run.split_at_checked(BLOCK_LEN_MAX) {
            into.put_u8(FULL);
            into.extend_from_slice(block);
            (run, filled) = (rest, true);
        }
        if filled && run.is_empty() && runs.peek().is_none() {
            break; // The frame ends with a full block.
        }
        into.put_u8(run.len() as u8 + 1); // At most 254: full blocks are out.
        into.extend_from_slice(run);
    }
    into.put_u8(DELIMITER);
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stream {
    /// Behind a delimiter.
    #[default]
    Start,
    Block {
        /// Of this block.
        code: u8,
        /// Octets of this block that are still to come.
        left: u8,
    },
    /// In a frame that is lost: until the delimiter.
    Skip,
}

impl Stream {
    pub(super) fn octet(&mut self, octet: u8, partial: &mut Vec<u8>) -> Step {
        let (next, step) = match (*self, octet) {
            (Self::Start | Self::Skip, DELIMITER) => (Self::Start, Step::Empty),
            (Self::Block { left: 0, .. }, DELIMITER) => (Self::Start, Step::End),
            (Self::Block { .. }, DELIMITER) => (Self::Start, Step::Cut(Loss::BadStuffing)),
            (Self::Skip, _) => (Self::Skip, Step::Skipped),
            (Self::Start, code) => (Self::Block { code, left: code - 1 }, Step::More),
            (Self::Block { code: before, left: 0 }, code) => {
                if before != FULL {
                    partial.push(0);
                }
                (Self::Block { code, left: code - 1 }, Step::More)
            }
            (Self::Block { code, left }, octet) => {
                partial.push(octet);
                (Self::Block { code, left: left - 1 }, Step::More)
            }
        };
        *self = next;
        step
    }

    pub(super) fn skip(&mut self) {
        *self = Self::Skip;
    }
}
