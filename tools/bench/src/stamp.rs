//! The payload of every message: when it was sent, and as many octets more as a sensor's reading has.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Octets of a payload.
pub(crate) const LEN: usize = 24;

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// A payload of this moment.
pub(crate) fn now() -> [u8; LEN] {
    let mut payload = [b'.'; LEN];
    let since = u64::try_from(epoch().elapsed().as_nanos()).unwrap_or(u64::MAX);
    payload[..8].copy_from_slice(&since.to_be_bytes());
    payload
}

/// The same, to keep.
pub(crate) fn bytes() -> Bytes {
    Bytes::copy_from_slice(&now())
}

/// How long ago a payload was made; `None` if it is none of ours.
pub(crate) fn age(payload: &[u8]) -> Option<Duration> {
    let stamp: [u8; 8] = payload.get(..8).filter(|_| payload.len() == LEN)?.try_into().ok()?;
    epoch().elapsed().checked_sub(Duration::from_nanos(u64::from_be_bytes(stamp)))
}
