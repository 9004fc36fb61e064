use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::Message;
use super::codec::REMAINING_LEN_MAX;

/// How to connect, and the bounds.
#[derive(Debug, Clone)]
pub struct Options {
    /// The client id; up to 65,535 octets, brokers may take fewer. Empty is for [`Session::Clean`] only.
    pub client_id: String,
    /// The version of MQTT to speak. Default [`Protocol::V4`].
    pub protocol: Protocol,
    /// User name and password, if the broker wants them.
    pub credentials: Option<Credentials>,
    /// The longest silence in either direction before a PINGREQ; zero: none, and the broker is told so. Rounded up to
    /// seconds for the broker, at most 65,535 s. Default 60 s.
    pub keep_alive: Duration,
    /// What the broker keeps between connections. Default [`Session::Resume`].
    pub session: Session,
    /// How long the broker keeps the session after a connection, unless it is [`Session::Clean`]; rounded up to seconds, more than
    /// 4,294,967,294 of them are for ever. Only MQTT 5 can say so. Default for ever, as in MQTT 3.1.1.
    pub session_expiry: Duration,
    /// QoS 1 and 2 publishes in flight: sent and not completed; 1 to [`WINDOW_MAX`]. Default [`WINDOW`].
    pub window: u16,
    /// Of those, QoS 2 publishes to a broker of MQTT 3.1.1, which cannot say how many it takes; at least 1. Default
    /// [`WINDOW_EXACTLY_ONCE`].
    pub window_exactly_once: u16,
    /// QoS 1 and 2 publishes that wait for the window. Default [`QUEUE`].
    pub queue: usize,
    /// Octets of topic and payload of all unfinished QoS 1 and 2 publishes. Default [`QUEUE_OCTETS`].
    pub queue_octets: usize,
    /// Octets of output that have not been taken, past which QoS 0 is refused and QoS 1 and 2 wait. Default [`BUFFER`].
    pub buffer: usize,
    /// QoS 1 and 2 messages that the broker may send before the first of them is settled; at least 1. Only MQTT 5 can say
    /// so. Default 65,535, what MQTT 5 assumes.
    pub receive_max: u16,
    /// How long the CONNACK may take. Default 10 s.
    pub connect_timeout: Duration,
    /// Octets of the largest packet after its fixed header. A larger PUBLISH of the broker is acknowledged, counted
    /// and dropped; a larger one of ours is refused. Default [`PACKET_LEN_MAX`].
    pub packet_len_max: usize,
    /// What the broker publishes when the connection ends without DISCONNECT; the payload at most 65,535 octets.
    pub will: Option<Message>,
    /// Whether the owner takes [`Trace`](super::Trace)s, to make the value again after a crash. Default no.
    pub traced: bool,
}

/// Default of [`Options::window`]: 100 ms to the broker and back still allow 80,000 messages a second.
pub const WINDOW: u16 = 8192;

/// Default of [`Options::window_exactly_once`]: Mosquitto (`max_inflight_messages 20`) acknowledges what comes while
/// 20 publishes of QoS 2 are open and drops it; only in MQTT 5 can it say so, and does.
pub const WINDOW_EXACTLY_ONCE: u16 = 16;

/// Bound of [`Options::window`]: leaves packet ids for [`REQUESTS_MAX`] subscribes.
pub const WINDOW_MAX: u16 = u16::MAX - REQUESTS_MAX as u16;

/// Default of [`Options::queue`]: a burst of one message each from a few thousand sensors.
pub const QUEUE: usize = 4096;

/// Default of [`Options::queue_octets`]: small on a router, and still [`WINDOW`] + [`QUEUE`] messages of 1.3 kB.
pub const QUEUE_OCTETS: usize = 16 * 1024 * 1024;

/// Default of [`Options::buffer`]: some seconds of a 4G uplink.
pub const BUFFER: usize = 1024 * 1024;

/// Default of [`Options::packet_len_max`]: sixteen times what fits into an MQTT-SN message.
pub const PACKET_LEN_MAX: usize = 1024 * 1024;

/// SUBSCRIBE and UNSUBSCRIBE packets without an answer; each may carry many filters. 10,000 sensors may subscribe in the same
/// instant.
pub const REQUESTS_MAX: usize = 16_384;

/// The shortest time that a PINGRESP is given; else it is half the keep-alive.
pub const PING_TIMEOUT_MIN: Duration = Duration::from_secs(5);

impl Options {
    /// The defaults for this client id.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            protocol: Protocol::V4,
            credentials: None,
            keep_alive: Duration::from_secs(60),
            session: Session::Resume,
            session_expiry: Duration::MAX,
            window: WINDOW,
            window_exactly_once: WINDOW_EXACTLY_ONCE,
            queue: QUEUE,
            queue_octets: QUEUE_OCTETS,
            buffer: BUFFER,
            receive_max: u16::MAX,
            connect_timeout: Duration::from_secs(10),
            packet_len_max: PACKET_LEN_MAX,
            will: None,
            traced: false,
        }
    }

    /// The same with every bound inside its own bounds.
    pub(super) fn bounded(mut self) -> Self {
        self.window = self.window.clamp(1, WINDOW_MAX);
        self.window_exactly_once = self.window_exactly_once.max(1);
        self.queue = self.queue.max(1);
        self.buffer = self.buffer.max(1);
        self.receive_max = self.receive_max.max(1);
        self.packet_len_max = self.packet_len_max.min(REMAINING_LEN_MAX);
        self.keep_alive = self.keep_alive.min(Duration::from_secs(u16::MAX.into()));
        self
    }

    /// The keep-alive as a CONNECT says it (MQTT 3.1.1 §3.1.2.10), never shorter than what we keep ourselves.
    pub(super) fn keep_alive_seconds(&self) -> u16 {
        let seconds = self.keep_alive.as_secs() + u64::from(self.keep_alive.subsec_nanos() > 0);
        u16::try_from(seconds).unwrap_or(u16::MAX)
    }

    /// The longest silence, where the broker may want a shorter one than we do.
    pub(super) fn keep_alive_within(&self, broker: Option<Duration>) -> Option<Duration> {
        [Some(self.keep_alive), broker].into_iter().flatten().filter(|silence| !silence.is_zero()).min()
    }
}

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1, protocol level 4.
    V4,
    /// MQTT 5.
    V5,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "MQTT 3.1.1",
            Self::V5 => "MQTT 5",
        })
    }
}

/// What the broker may ask of who connects (MQTT 3.1.1 §3.1.3.4). An empty password is not sent.
#[derive(Clone)]
pub struct Credentials {
    /// Up to 65,535 octets, not empty.
    pub username: String,
    /// Up to 65,535 octets of any kind.
    pub password: Bytes,
}

/// Shows the user name only.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What the broker keeps of a client between two connections (MQTT 3.1.1 §3.1.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// CleanSession 1: nothing.
    Clean,
    /// CleanSession 0, or a session that does not expire: subscriptions, messages of QoS 1 and 2, and their state. A session that this value did not
    /// begin is removed before the first [`Event::Connected`](super::Event::Connected): what it holds is somebody else's.
    Resume,
    /// As [`Session::Resume`], but a session that this value did not begin is taken for its own: for a client id that belongs to
    /// one client for ever. What that session has of packet ids is unknown, and cannot do harm: see `Outbound::inherits`.
    Adopt,
}
