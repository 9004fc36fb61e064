//! One MQTT connection to a broker as a value: octets in, octets out, packet ids, windows, QoS 1 and 2 both ways.
//!
//! [`Connection`] does no IO and reads no clock. Its owner connects a socket, hands in what it reads and what time it
//! is, writes what [`Connection::take_output`] gives, takes every [`Event`] and calls back at
//! [`Connection::poll_timeout`]. The value outlives the socket: what is unfinished when a connection ends is repeated
//! on the next one.
//!
//! ```no_run
//! # use std::{io::{Read, Write}, net::TcpStream, time::Instant};
//! # use mqtt_sn_gateway::mqtt::{Connection, Event, Message, Options, QoS};
//! # use mqtt_sn_gateway::topic::TopicName;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut connection = Connection::new(Options::new("sensor-7"));
//! let message = Message { topic: TopicName::new("a/b")?, payload: "21.5".into(), qos: QoS::AtLeastOnce, retain: false };
//! let token = connection.publish(message)?;
//!
//! let mut socket = TcpStream::connect("127.0.0.1:1883")?;
//! connection.handle_connected(Instant::now())?;
//! loop {
//!     while let Some(output) = connection.take_output(Instant::now()) {
//!         socket.write_all(&output)?;
//!     }
//!     while let Some(event) = connection.poll_event() {
//!         match event {
//!             Event::Completed(done, _) if Some(done) == token => return Ok(()),
//!             Event::Message { delivery: Some(delivery), .. } => connection.settle(delivery),
//!             _ => {}
//!         }
//!     }
//!     let mut buffer = [0; 4096];
//!     let len = socket.read(&mut buffer)?; // a real owner also wakes at `poll_timeout`
//!     connection.handle_bytes(Instant::now(), &buffer[..len])?;
//! }
//! # }
//! ```
//!
//! What is promised:
//! - A packet id is chosen before the packet leaves, and not used again while its exchange is open, PUBREC to PUBCOMP
//!   included. PUBLISH, SUBSCRIBE and UNSUBSCRIBE share the ids (MQTT 3.1.1 §2.3.1).
//! - QoS 1 and 2 publishes leave in the order they were given, also when they are repeated (MQTT 3.1.1 §4.6).
//! - A QoS 1 or 2 message from the broker is acknowledged by [`Connection::settle`] and not before; what the broker
//!   repeats meanwhile is not handed on again.
//! - Nothing that the broker sends makes it panic or grow without bound.
//!
//! What is deliberately absent: a socket, a clock, backoff, topic matching, and the owner's subscriptions, which it
//! issues again when [`Event::Connected`] says that the broker has none of them.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
pub use rumqttc::QoS;

use crate::topic::{NameError, TopicFilter, TopicName};

/// One MQTT connection to a broker.
///
/// The canonical loop: call one `handle_*` or any number of commands, then [`poll_event`](Self::poll_event) until
/// `None`, then write [`take_output`](Self::take_output) unless a write is still under way, then wait for octets, for
/// [`poll_timeout`](Self::poll_timeout) or for work.
#[derive(Debug)]
pub struct Connection {
    options: Options,
}

/// The wire.
impl Connection {
    /// A connection that has never been up.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// The socket is connected: CONNECT goes out.
    ///
    /// # Errors
    /// [`Failure::Options`] if the options do not fit into a CONNECT.
    pub fn handle_connected(&mut self, _now: Instant) -> Result<(), Failure> {
        unimplemented!()
    }

    /// Octets from the broker, cut anywhere.
    ///
    /// # Errors
    /// What the broker did wrong. The owner closes the socket and calls [`handle_closed`](Self::handle_closed);
    /// nothing more is read or sent until then.
    pub fn handle_bytes(&mut self, _now: Instant, _bytes: &[u8]) -> Result<(), Failure> {
        unimplemented!()
    }

    /// The socket is gone, whoever closed it. What is unfinished waits for the next connection.
    pub fn handle_closed(&mut self) {
        unimplemented!()
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come; early is harmless.
    ///
    /// # Errors
    /// [`Failure::NoConnAck`] or [`Failure::NoPingResp`]; to be treated as those of [`handle_bytes`](Self::handle_bytes).
    pub fn handle_timeout(&mut self, _now: Instant) -> Result<(), Failure> {
        unimplemented!()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }

    /// Everything that is ready to leave, as one buffer. To be called when the previous one has been written:
    /// `now` is taken for the time when these octets leave (it feeds the keep-alive).
    pub fn take_output(&mut self, _now: Instant) -> Option<Bytes> {
        unimplemented!()
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        unimplemented!()
    }

    /// Whether the broker has accepted the connection and it has not ended.
    pub fn is_connected(&self) -> bool {
        unimplemented!()
    }
}

/// Commands; legal at any time, connected or not.
impl Connection {
    /// Sends a message. `None` for QoS 0, which leaves with the next output and is then forgotten; for QoS 1 and 2
    /// the token of an [`Event::Completed`].
    ///
    /// # Errors
    /// [`Full`]: nothing was taken, nothing is kept. While not connected QoS 0 is refused; QoS 1 and 2 are queued.
    pub fn publish(&mut self, _message: Message) -> Result<Option<Token>, Full> {
        unimplemented!()
    }

    /// Subscribes; ends with [`Event::Subscribed`]. Repeated on the next connection if this one ends before that.
    /// An empty list ends at once.
    ///
    /// # Errors
    /// [`Full::Requests`], [`Full::TooLarge`].
    pub fn subscribe(&mut self, _filters: &[(TopicFilter, QoS)]) -> Result<Token, Full> {
        unimplemented!()
    }

    /// Unsubscribes; ends with [`Event::Unsubscribed`]. Otherwise as [`subscribe`](Self::subscribe).
    ///
    /// # Errors
    /// [`Full::Requests`], [`Full::TooLarge`].
    pub fn unsubscribe(&mut self, _filters: &[TopicFilter]) -> Result<Token, Full> {
        unimplemented!()
    }

    /// Acknowledges a message of the broker: PUBACK (QoS 1) or PUBREC (QoS 2) goes out now, or, while not connected,
    /// when the broker repeats the message. A delivery that is settled already, or that ended with the broker's
    /// session, is ignored and counted.
    pub fn settle(&mut self, _delivery: DeliveryId) {
        unimplemented!()
    }

    /// Says DISCONNECT; the owner writes what [`take_output`](Self::take_output) gives and closes.
    pub fn disconnect(&mut self) {
        unimplemented!()
    }

    /// Removes the session from the broker: DISCONNECT, [`Event::Reconnect`], CONNECT with CleanSession 1,
    /// DISCONNECT, [`Event::Purged`]. For an orderly stop of an owner whose client id will not come back.
    pub fn purge(&mut self) {
        unimplemented!()
    }
}

/// Queries.
impl Connection {
    /// QoS 1 and 2 publishes that have not completed, waiting or in flight.
    pub fn unfinished(&self) -> usize {
        unimplemented!()
    }

    /// What was counted since the value was made.
    pub fn counters(&self) -> &Counters {
        unimplemented!()
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

/// How to connect, and the bounds.
#[derive(Debug, Clone)]
pub struct Options {
    /// The client id; up to 65,535 octets, brokers may take fewer. Empty is for [`Session::Clean`] only.
    pub client_id: String,
    /// User name and password, if the broker wants them.
    pub credentials: Option<Credentials>,
    /// The longest silence in either direction before a PINGREQ; zero: none, and the broker is told so. Rounded up to
    /// seconds for the broker, at most 65,535 s. Default 60 s.
    pub keep_alive: Duration,
    /// What the broker keeps between connections. Default [`Session::Resume`].
    pub session: Session,
    /// QoS 1 and 2 publishes in flight: sent and not completed; 1 to [`WINDOW_MAX`]. Default [`WINDOW`].
    pub window: u16,
    /// QoS 1 and 2 publishes that wait for the window. Default [`QUEUE`].
    pub queue: usize,
    /// Octets of topic and payload of all unfinished QoS 1 and 2 publishes. Default [`QUEUE_OCTETS`].
    pub queue_octets: usize,
    /// Octets of output that have not been taken, past which QoS 0 is refused and QoS 1 and 2 wait. Default [`BUFFER`].
    pub buffer: usize,
    /// How long the CONNACK may take. Default 10 s.
    pub connect_timeout: Duration,
    /// Octets of the largest packet after its fixed header. A larger PUBLISH of the broker is acknowledged, counted
    /// and dropped; a larger one of ours is refused. Default [`PACKET_LEN_MAX`].
    pub packet_len_max: usize,
    /// What the broker publishes when the connection ends without DISCONNECT; the payload at most 65,535 octets.
    pub will: Option<Message>,
}

/// Default of [`Options::window`]: 50 ms to the broker and back still allow 20,000 messages a second.
pub const WINDOW: u16 = 1024;

/// Bound of [`Options::window`]: leaves packet ids for [`REQUESTS_MAX`] subscribes.
pub const WINDOW_MAX: u16 = u16::MAX - REQUESTS_MAX as u16;

/// Default of [`Options::queue`]: a burst of one message each from a few thousand sensors.
pub const QUEUE: usize = 4096;

/// Default of [`Options::queue_octets`]: small on a router, and still [`WINDOW`] + [`QUEUE`] messages of 3 kB.
pub const QUEUE_OCTETS: usize = 16 * 1024 * 1024;

/// Default of [`Options::buffer`]: some seconds of a 4G uplink.
pub const BUFFER: usize = 1024 * 1024;

/// Default of [`Options::packet_len_max`]: sixteen times what fits into an MQTT-SN message.
pub const PACKET_LEN_MAX: usize = 1024 * 1024;

/// SUBSCRIBE and UNSUBSCRIBE packets without an answer; each may carry many filters.
pub const REQUESTS_MAX: usize = 4096;

/// The shortest time that a PINGRESP is given; else it is half the keep-alive.
pub const PING_TIMEOUT_MIN: Duration = Duration::from_secs(5);

impl Options {
    /// The defaults for this client id.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            credentials: None,
            keep_alive: Duration::from_secs(60),
            session: Session::Resume,
            window: WINDOW,
            queue: QUEUE,
            queue_octets: QUEUE_OCTETS,
            buffer: BUFFER,
            connect_timeout: Duration::from_secs(10),
            packet_len_max: PACKET_LEN_MAX,
            will: None,
        }
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
    /// CleanSession 0: subscriptions, messages of QoS 1 and 2, and their state. A session that this value did not
    /// begin is removed before the first [`Event::Connected`]: what it holds is somebody else's.
    Resume,
}

/// An application message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: TopicName,
    /// What.
    pub payload: Bytes,
    /// How surely.
    pub qos: QoS,
    /// To the broker: keep it for subscribers to come. From the broker: it was kept.
    pub retain: bool,
}

/// Names one publish, subscribe or unsubscribe of ours until its end; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

/// Names one QoS 1 or 2 message of the broker until it is settled; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(u64);

/// What a [`Connection`] has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The broker accepted the connection.
    Connected {
        /// The broker surely still has the subscriptions of this value. If not, its owner issues them again.
        session_present: bool,
    },
    /// The broker accepted the TCP connection but not us: close, and try again later.
    Refused(ConnectRefusal),
    /// Write what [`Connection::take_output`] gives, close, and connect again at once, without backoff.
    Reconnect,
    /// The session was removed as [`Connection::purge`] asked: write what [`Connection::take_output`] gives and close.
    Purged,
    /// The broker has taken over a QoS 2 publish (PUBREC). Comes again if the broker lost its session after that.
    Received(Token),
    /// The broker is done with a publish (PUBACK, PUBCOMP). MQTT 3.1.1 knows no refusal.
    Completed(Token, Result<(), Refused>),
    /// The broker's answer to each filter, in their order (SUBACK).
    Subscribed(Token, Vec<Result<QoS, Refused>>),
    /// The broker has forgotten the filters (UNSUBACK).
    Unsubscribed(Token),
    /// A message of the broker.
    Message {
        /// The message; its payload shares no memory with the octets handed in.
        message: Message,
        /// The broker says that it may have sent it before.
        dup: bool,
        /// To be settled; `None` for QoS 0.
        delivery: Option<DeliveryId>,
    },
}

/// The broker's refusal of one publish or filter: its reason code (in MQTT 3.1.1 only 0x80, of a SUBACK).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("refused by the broker with reason {0:#04x}")]
pub struct Refused(pub u8);

/// The broker's refusal of a connection: the return code of its CONNACK (MQTT 3.1.1 §3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectRefusal(pub u8);

impl fmt::Display for ConnectRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.0 {
            1 => "unacceptable protocol version",
            2 => "client id rejected",
            3 => "server unavailable",
            4 => "bad user name or password",
            5 => "not authorized",
            _ => "unknown reason",
        };
        write!(f, "{reason} (CONNACK {})", self.0)
    }
}

/// Why a command was not taken. All but [`Full::TooLarge`] pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// QoS 0 while the broker is not connected.
    #[error("the broker is not connected")]
    Offline,
    /// [`Options::buffer`] octets of output have not been taken yet.
    #[error("too many octets wait to be written")]
    Buffer,
    /// [`Options::queue`] messages or [`Options::queue_octets`] octets are unfinished.
    #[error("too many messages wait for the broker")]
    Queue,
    /// [`REQUESTS_MAX`] subscribes and unsubscribes are unanswered.
    #[error("too many subscriptions wait for the broker")]
    Requests,
    /// It would not fit into [`Options::packet_len_max`].
    #[error("the packet is too large")]
    TooLarge,
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Ours: an option that has no room in a CONNECT.
    #[error("{0} has no room in a CONNECT")]
    Options(&'static str),
    /// No CONNACK within [`Options::connect_timeout`].
    #[error("the broker did not answer CONNECT")]
    NoConnAck,
    /// No PINGRESP in time: the broker, or the way to it, is gone.
    #[error("the broker did not answer PINGREQ")]
    NoPingResp,
    /// The broker goes on sending but does not read.
    #[error("the broker does not read its answers")]
    NotReading,
    /// A packet that a broker does not send, or not at this time.
    #[error("the broker sent an unexpected {0}")]
    Unexpected(PacketType),
    /// A packet, other than PUBLISH, of more than [`Options::packet_len_max`] octets.
    #[error("the broker sent a {packet} of {len} octets")]
    TooLarge {
        /// Which packet.
        packet: PacketType,
        /// Its remaining length.
        len: usize,
    },
    /// A packet that is not what MQTT says.
    #[error("the broker sent a {packet} that {what}")]
    Malformed {
        /// Which packet.
        packet: PacketType,
        /// What is wrong with it.
        what: Malformed,
    },
    /// A PUBLISH on something that is not a topic.
    #[error("the broker sent a PUBLISH whose topic {0}")]
    Topic(NameError),
}

/// What is wrong with a packet; reads on after "a PUBLISH that".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A remaining length of more than four octets.
    #[error("has no end to its length")]
    Length,
    /// The lower half of the first octet.
    #[error("has wrong flags")]
    Flags,
    /// Fewer or more octets than its fields need.
    #[error("is too short or too long")]
    Size,
    /// QoS 3.
    #[error("has QoS 3")]
    QoS,
    /// Packet id 0.
    #[error("has packet id 0")]
    PacketId,
    /// A text that is not UTF-8.
    #[error("is not UTF-8")]
    Utf8,
    /// A SUBACK with an unknown return code, or with fewer or more of them than filters were sent.
    #[error("has wrong return codes")]
    ReturnCodes,
}

/// The type of a control packet: the upper half of its first octet (MQTT 3.1.1 §2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketType(pub u8);

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 16] = [
            "packet of type 0",
            "CONNECT",
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "PINGREQ",
            "PINGRESP",
            "DISCONNECT",
            "packet of type 15",
        ];
        f.write_str(NAMES[usize::from(self.0 & 0x0F)])
    }
}

/// What a [`Connection`] counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands refused with [`Full`].
    pub refused: u64,
    /// Packets of the broker that belong to nothing.
    pub strays: u64,
    /// Messages that the broker repeated and that were not handed on again.
    pub duplicates: u64,
    /// Messages of the broker larger than [`Options::packet_len_max`].
    pub oversized: u64,
    /// PUBLISH and PUBREL packets that were repeated, PUBLISH packets after a lost session among them.
    pub resent: u64,
    /// Settlements of deliveries that are not open.
    pub stale_settles: u64,
    /// PINGREQ packets.
    pub pings: u64,
    /// Accepted connections to a broker that had lost our session.
    pub sessions_lost: u64,
    /// Sessions that were removed from the broker.
    pub purges: u64,
}
