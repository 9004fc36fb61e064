//! SLIP, RFC 1055: END ends a frame, and stands for itself as ESC ESC_END; ESC stands for itself as ESC ESC_ESC.

use bytes::{BufMut, BytesMut};

use super::{Loss, Step};

const END: u8 = 0xC0;
const ESC: u8 = 0xDB;
const ESC_END: u8 = 0xDC;
const ESC_ESC: u8 = 0xDD;

pub(super) fn encode(body: &[u8], into: &mut BytesMut) {
    into.reserve(body.len() + 2);
    into.put_u8(END);
    for octet in body {
        match *octet {
            END => into.extend_from_slice(&[ESC, ESC_END]),
            ESC => into.extend_from_slice(&[ESC, ESC_ESC]),
            octet => into.put_u8(octet),
        }
    }
    into.put_u8(END);
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stream {
    /// Behind an END.
    #[default]
    Start,
    Inside,
    Escaped,
    /// In a frame that is lost: until END.
    Skip,
}

impl Stream {
    pub(super) fn octet(&mut self, octet: u8, partial: &mut Vec<u8>) -> Step {
        let (next, step) = match (*self, octet) {
            (Self::Start | Self::Skip, END) => (Self::Start, Step::Empty),
            (Self::Inside, END) => (Self::Start, Step::End),
            (Self::Escaped, END) => (Self::Start, Step::Cut(Loss::BadStuffing)),
            (Self::Skip, _) => (Self::Skip, Step::Skipped),
            (Self::Start | Self::Inside, ESC) => (Self::Escaped, Step::More),
            (Self::Start | Self::Inside, octet) => {
                partial.push(octet);
                (Self::Inside, Step::More)
            }
            (Self::Escaped, ESC_END) => {
                partial.push(END);
                (Self::Inside, Step::More)
            }
            (Self::Escaped, ESC_ESC) => {
                partial.push(ESC);
                (Self::Inside, Step::More)
            }
            (Self::Escaped, _) => (Self::Skip, Step::Lost(Loss::BadStuffing)),
        };
        *self = next;
        step
    }

    pub(super) fn skip(&mut self) {
        *self = Self::Skip;
    }
}
