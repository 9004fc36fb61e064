//! What holds for any octets from a radio.

use bytes::BytesMut;
use mqtt_sn_gateway::framing::xbee::{Counters, DATA_LEN_MAX, Decoder, Frame, Mode};

/// What arrives whatever came before it.
const GOOD: Frame = Frame::ModemStatus { status: 0x7E };

/// Decodes them in both modes, at once and octet by octet, then a good frame behind them.
#[track_caller]
pub(crate) fn any_octets(octets: &[u8]) {
    for mode in [Mode::Plain, Mode::Escaped] {
        let mut decoder = Decoder::new(mode);
        decoder.push(octets);
        let frames = frames(&mut decoder);
        assert_eq!((frames.clone(), *decoder.counters()), octet_by_octet(mode, octets), "{mode:?}");
        assert_eq!(decoder.counters().frames, frames.len() as u64, "{mode:?}");
        for frame in frames {
            let line = line(&frame, mode);
            assert!(line.len() <= 2 * (DATA_LEN_MAX + 3) + 1, "{mode:?}: {frame:?}");
            decoder.idle();
            decoder.push(&line);
            assert_eq!(last(&mut decoder), Some(frame), "{mode:?}");
        }
        decoder.idle();
        decoder.push(&line(&GOOD, mode));
        assert_eq!(last(&mut decoder), Some(GOOD), "{mode:?}");
    }
}

fn octet_by_octet(mode: Mode, octets: &[u8]) -> (Vec<Frame>, Counters) {
    let mut decoder = Decoder::new(mode);
    octets.iter().for_each(|octet| decoder.push(&[*octet]));
    (frames(&mut decoder), *decoder.counters())
}

#[track_caller]
fn line(frame: &Frame, mode: Mode) -> BytesMut {
    let mut line = BytesMut::new();
    assert_eq!(frame.encode(mode, &mut line), Ok(()), "{frame:?}");
    line
}

fn frames(decoder: &mut Decoder) -> Vec<Frame> {
    std::iter::from_fn(|| decoder.poll_frame()).collect()
}

fn last(decoder: &mut Decoder) -> Option<Frame> {
    frames(decoder).pop()
}
