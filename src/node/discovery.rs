//! What needs no connection: to search for gateways (§6.1), and to publish with QoS −1 (§6.8).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::air::encode;
use super::{PublishError, Topic, next_random};
use crate::wire::{Packet, Publish, Qos, SearchGw, TopicRef, decode};

/// The longest time between two SEARCHGWs: the intervals double up to here (§6.1).
const INTERVAL_MAX: Duration = Duration::from_secs(15 * 60);

/// A search for gateways: SEARCHGW again and again, ever more seldom (§6.1). The caller ends it by dropping it.
#[derive(Debug)]
pub struct Search {
    radius: u8,
    interval: Duration,
    next: Instant,
    frame: Option<Bytes>,
}

/// A gateway that made itself known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its GwId.
    pub gw_id: u8,
    /// GwAdd of a GWINFO, if a client answered in the gateway's place (§5.4.3).
    pub gw_add: Option<Bytes>,
    /// ADVERTISE: time to the next one. `None`: GWINFO.
    pub advertised_for: Option<Duration>,
}

impl Search {
    /// A search that begins at a time between `now` and `now + delay_max` that `seed` decides (T_SEARCHGW: a field of
    /// nodes switched on together shall not search in one moment; zero: at once), over `radius` hops (0: all), and is
    /// repeated after `interval`, then twice that, and so on.
    pub fn new(now: Instant, radius: u8, delay_max: Duration, interval: Duration, mut seed: u64) -> Self {
        let delay = delay_max / 256 * u32::from(next_random(&mut seed).to_le_bytes()[0]);
        Self { radius, interval, next: now + delay, frame: None }
    }

    /// Sends SEARCHGW if it is time; early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next <= now {
            self.frame = encode(Packet::SearchGw(SearchGw { radius: self.radius }), None);
            self.next = now + self.interval;
            self.interval = self.interval.saturating_mul(2).min(INTERVAL_MAX);
        }
    }

    /// When [`Search::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// The next frame to broadcast.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.frame.take()
    }

    /// Reads a frame: a gateway, or nothing of interest.
    pub fn handle_frame(&self, frame: &[u8]) -> Option<Found> {
        match decode(frame).ok()?.packet {
            Packet::GwInfo(info) => Some(Found {
                gw_id: info.gw_id,
                gw_add: (!info.gw_add.is_empty()).then(|| Bytes::copy_from_slice(info.gw_add)),
                advertised_for: None,
            }),
            Packet::Advertise(advertise) => Some(Found {
                gw_id: advertise.gw_id,
                gw_add: None,
                advertised_for: Some(Duration::from_secs(advertise.duration.into())),
            }),
            _ => None,
        }
    }
}

/// The one frame of a message with QoS −1, which nobody answers (§6.8).
///
/// # Errors
/// [`PublishError::NameAtMinusOne`] or [`PublishError::TooLong`].
pub fn datagram(
    topic: &Topic,
    payload: &[u8],
    retain: bool,
    node_id: Option<&[u8]>,
) -> Result<Bytes, PublishError> {
    let topic = match topic {
        Topic::Name(_) => return Err(PublishError::NameAtMinusOne),
        Topic::Predefined(id) => TopicRef::Predefined(*id),
        Topic::Short(name) => TopicRef::Short(*name),
    };
    let publish = Publish { dup: false, qos: Qos::MinusOne, retain, topic, msg_id: 0, data: payload };
    encode(Packet::Publish(publish), node_id).ok_or(PublishError::TooLong)
}
