//! What holds for any octets as a message.

use bytes::BytesMut;
use mqtt_sn_gateway::wire::{DecodeError, decode};

/// More than any dump of ours has: two texts of 64 octets, all of them escaped, and the rest of a line.
const DUMP_LEN_MAX: usize = 600;

/// Decodes, dumps and encodes again.
///
/// # Errors
/// Why they are not a message.
#[track_caller]
pub(crate) fn any_octets(octets: &[u8]) -> Result<(), DecodeError> {
    let frame = match decode(octets) {
        Ok(frame) => frame,
        Err(error) => {
            one_line(&error.to_string());
            return Err(error);
        }
    };
    one_line(&frame.to_string());

    let mut again = BytesMut::new();
    assert_eq!(frame.encode(&mut again), Ok(()), "{frame}");
    assert_eq!(decode(&again), Ok(frame), "what was encoded is what was decoded");
    assert_eq!(again.len(), frame.encoded_len(), "{frame}");
    assert!(again.len() <= octets.len(), "what we send is never longer than what we would accept: {frame}");
    Ok(())
}

#[track_caller]
fn one_line(dump: &str) {
    assert!(!dump.contains(char::is_control), "{dump:?}");
    assert!(dump.len() <= DUMP_LEN_MAX, "{} octets: {dump}", dump.len());
}
