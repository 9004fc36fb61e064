//! Messages one behind the other, told apart by nothing but their own Length (§5.2.1).

use super::{FRAME_LEN_MAX, Loss, Step};

/// First octet of the long form of Length (§5.2.1).
const LONG_FORM: u8 = 0x01;

/// Message type of an encapsulation, behind whose Length the message follows (§5.5).
const ENCAPSULATED: u8 = 0xFE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// In a frame.
    Inside {
        /// Where in it the message begins: behind the encapsulation, if there is one.
        start: usize,
    },
    /// Who knows where: until the line is silent. To look for a beginning at every octet instead would find some inside
    /// payloads, and a payload that holds 02 18 would disconnect its sender.
    Skip,
}

impl Default for Stream {
    fn default() -> Self {
        Self::Inside { start: 0 }
    }
}

impl Stream {
    pub(super) fn octet(&mut self, octet: u8, partial: &mut Vec<u8>) -> Step {
        let Self::Inside { start } = self else { return Step::Skipped };
        partial.push(octet);
        let message = &partial[*start..];
        match header(message) {
            Err(loss) => Step::Lost(loss),
            Ok(Some((len, _))) if *start + len > FRAME_LEN_MAX => Step::Lost(Loss::TooLong),
            Ok(Some((_, ENCAPSULATED))) if *start > 0 => Step::Lost(Loss::BadType),
            Ok(Some((len, kind))) if message.len() == len => {
                if kind == ENCAPSULATED {
                    *start = partial.len();
                    return Step::More;
                }
                *start = 0;
                Step::Whole
            }
            Ok(_) => Step::More,
        }
    }

    pub(super) fn skip(&mut self) {
        *self = Self::Skip;
    }

    pub(super) fn idle(&mut self) {
        *self = Self::default();
    }
}

/// Length and MsgType of what begins here, as soon as both are there.
fn header(message: &[u8]) -> Result<Option<(usize, u8)>, Loss> {
    let (len, kind) = match *message {
        [0, ..] => return Err(Loss::BadLength),
        [LONG_FORM, high, low, kind, ..] => (usize::from(u16::from_be_bytes([high, low])), kind),
        [LONG_FORM, ..] => return Ok(None),
        [len, kind, ..] => (usize::from(len), kind),
        _ => return Ok(None),
    };
    let long = message[0] == LONG_FORM;
    match kind {
        // Ctrl is there, and Length is one octet (§5.5).
        ENCAPSULATED if long || len < 3 => Err(Loss::BadLength),
        // Without 03: there are clients that send it, and mean AUTH.
        0x11 | 0x19 | 0x1E..0xFE | 0xFF => Err(Loss::BadType),
        _ if long && len < 4 => Err(Loss::BadLength),
        kind => Ok(Some((len, kind))),
    }
}
