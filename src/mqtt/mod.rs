//! One MQTT connection to a broker as a value: octets in, octets out, packet ids, windows, QoS 1 and 2 both ways; in
//! MQTT 3.1.1 or MQTT 5, as [`Options::protocol`] says.
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
//! - QoS 1 and 2 publishes of one [`Origin`] leave in the order they were given, also when they are repeated
//!   (MQTT 3.1.1 §4.6). Of different origins QoS 1 goes on where the window of QoS 2 is full.
//! - A QoS 1 or 2 message from the broker is acknowledged by [`Connection::settle`] and not before; what the broker
//!   repeats meanwhile is not handed on again.
//! - With [`Options::traced`] no output is given before the owner has heard what it must store for it ([`Trace`]): packet ids of
//!   QoS 2 before they leave, PUBREC before PUBREL, PUBREL before PUBCOMP. A connection that is made again of what was stored
//!   ([`Connection::restore`]) goes on where the one before stopped, between whichever two octets that was: QoS 2 stays
//!   exactly once both ways, as long as the broker keeps its session. The owner's loop is then [`Connection::prepare`],
//!   [`Connection::poll_trace`] until `None`, an event, and again; then the output, which is written once all of that is durable.
//! - If the broker loses the session, QoS 1 and 2 publishes are sent again, also those that it had taken over (PUBREC): they
//!   arrive at least once. Interpretation: that PUBLISH may not be repeated after PUBREC (MQTT 3.1.1 §4.3.3) holds in one
//!   session. Of a session that is lost nobody can tell what became of its messages; brokers that publish at PUBREL only, as
//!   Mosquitto does, have lost them, and twice is better than not at all. What has completed is over.
//! - What the broker of MQTT 5 has said that it does not take is not sent to it but refused by name.
//! - Nothing that the broker sends makes it panic or grow without bound.
//!
//! What is deliberately absent: a socket, a clock, backoff, topic matching, topic aliases, authentication beyond user name
//! and password, the owner's subscriptions, which it
//! issues again when [`Event::Connected`] says that the broker has none of them; and a store. What is stored of a connection has
//! no token in it and no QoS 1: packet ids of QoS 1, of subscribes and of unsubscribes do not outlive the process, their
//! repetition is as good under another.
//!
//! Interpretation: where the broker lost its session and the owner could not learn of it (its CONNECT was not answered, or
//! the process ended before the answer was stored), the same packet id may stand for an old message of the broker or for a new
//! one. DUP decides: repeated is the old one; and once a message comes that is no repetition, nothing is old that was not repeated
//! before it. That is exactly once for a broker that has its session; of one that has begun another, a new message is
//! taken for an old one if the connection ended when it had been sent and none had arrived.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
pub use rumqttc::QoS;

use crate::topic::TopicFilter;

use self::codec::Codec;
use self::inbound::{Ack, Arrival, Inbound, Stale};
use self::outbound::{Abandoned, Outbound, Sending, SubAck};
use self::packet::{Extras, Packet, Terms};
use self::trace::Traces;

mod codec;
mod digest;
mod event;
mod failure;
mod inbound;
mod options;
mod outbound;
mod packet;
#[cfg(test)]
mod tests;
mod trace;
mod v4;
mod v5;
mod waiting;

pub(crate) use self::digest::digest;
pub use self::event::{Counters, DeliveryId, Event, Message, Origin, SubscriptionId, Token};
pub use self::failure::{ConnectRefusal, Failure, Full, Malformed, PacketType, Refused};
pub use self::options::{
    BUFFER, Credentials, Options, PACKET_LEN_MAX, PING_TIMEOUT_MIN, Protocol, QUEUE, QUEUE_OCTETS,
    REQUESTS_MAX, Session, WINDOW, WINDOW_EXACTLY_ONCE, WINDOW_MAX,
};
pub use self::trace::{Received, Restored, RestoredPublish, Trace};

/// One MQTT connection to a broker.
///
/// The canonical loop: call one `handle_*` or any number of commands, then [`poll_event`](Self::poll_event) until
/// `None`, then write [`take_output`](Self::take_output) unless a write is still under way, then wait for octets, for
/// [`poll_timeout`](Self::poll_timeout) or for work.
#[derive(Debug)]
pub struct Connection {
    options: Options,
    codec: Codec,
    state: State,
    /// What the broker takes on this connection.
    terms: Terms,
    session: AtBroker,
    /// What the last CONNACK said of it.
    resumed: bool,
    purge: Option<Purge>,
    outbound: Outbound,
    inbound: Inbound,
    /// The beginning of a packet whose end has not come yet.
    input: Vec<u8>,
    /// Octets still to come of a message that is not kept.
    skip: usize,
    output: BytesMut,
    events: VecDeque<Event>,
    traces: Traces,
    counters: Counters,
}

/// The state of the connection.
///
/// ```text
///              handle_connected             CONNACK 0
/// Down  ------------------------>  Asked  ------------>  Up
///   ^                                |                   |
///   |         handle_closed          v                   v   DISCONNECT of ours, refusal, failure
///   +----------------------------  Over  <---------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no socket.
    Down,
    /// CONNECT is out; with `clean` the broker was told to forget the session.
    Asked { deadline: Option<Instant>, clean: bool },
    /// The broker has accepted us.
    Up { sent: Instant, received: Instant, ping_deadline: Option<Instant> },
    /// Nothing more is read; the owner is about to close.
    Over,
}

/// What is known of the session under our client id at the broker. [`Session::Clean`] does not look at it.
///
/// A foreign one is removed on a connection of its own; ours too, but in MQTT 5 by DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtBroker {
    /// There may be one that is not ours.
    Unknown,
    /// There was none when we looked.
    None,
    /// Ours.
    Ours,
    /// Ours, or a younger and empty one: a CONNECT was not answered, and the broker may have lost ours before it.
    Doubtful,
}

/// A session is being removed from the broker: DISCONNECT, CONNECT with CleanSession 1, DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purge {
    /// Somebody else left it; then our own begins.
    Foreign,
    /// [`Connection::purge`].
    Ours,
}

/// Octets of acknowledgements that may wait, beside [`Options::buffer`], for a broker that goes on sending: one of
/// each kind for each of its packet ids.
const ANSWERS_MAX: usize = 3 * 4 * u16::MAX as usize;

/// Octets of an empty buffer that are kept for the next use.
const SPARE_MAX: usize = 64 * 1024;

/// The wire.
impl Connection {
    /// A connection that has never been up. Options beyond their bounds are brought inside.
    pub fn new(options: Options) -> Self {
        let options = options.bounded();
        Self {
            codec: Codec::new(options.protocol),
            traces: Traces::new(options.traced),
            options,
            state: State::Down,
            terms: Terms::default(),
            session: AtBroker::Unknown,
            resumed: false,
            purge: None,
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            input: Vec::new(),
            skip: 0,
            output: BytesMut::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// A connection that goes on where one before it has ended without a word, e.g. in another process; and a token for each
    /// publish, in order. The broker's session under the client id is taken for that of the connection before, since the id
    /// is used with nothing else; see also [`doubt`](Self::doubt).
    ///
    /// What may have left is repeated under its packet id, what was released by PUBREL, in the original order. QoS 1 and 2
    /// messages of the broker that were not stored are not known: the broker repeats them, and they are new. A publish whose packet
    /// id is none or another's waits for one; neither [`Options::queue`] nor the windows bound what is restored.
    pub fn restore(options: Options, restored: Restored) -> (Self, Vec<Token>) {
        let mut connection = Self::new(options);
        connection.session = AtBroker::Ours;
        connection.inbound.restore(restored.received);
        // Of a publish that was given up, or stored by nobody, the broker may still have the packet id.
        connection.outbound.inherit();
        let mut tokens = Vec::with_capacity(restored.publishes.len());
        for publish in restored.publishes {
            tokens.push(connection.outbound.restore(publish));
        }
        (connection, tokens)
    }

    /// Before the first connection of a [`restore`](Self::restore)d value: the one before may have sent a CONNECT and not lived to
    /// store what was the answer. The broker may then have lost the session and begun another, in which there are no
    /// subscriptions: [`Event::Connected`] says so, once.
    pub fn doubt(&mut self) {
        if self.session == AtBroker::Ours {
            self.session = AtBroker::Doubtful;
        }
    }

    /// The socket is connected: CONNECT goes out.
    ///
    /// # Errors
    /// [`Failure::Options`] if the options do not fit into a CONNECT.
    pub fn handle_connected(&mut self, now: Instant) -> Result<(), Failure> {
        self.handle_closed();
        // Never to begin a session that is to be kept, though in MQTT 5 that would spare the look at what is there: Mosquitto
        // 2.0 does not save a session whose last CONNECT began it, and has lost it after its next restart.
        let clean = self.purge.is_some() || self.options.session == Session::Clean;
        self.state = State::Over;
        self.codec.connect(&self.options, self.purge.is_some(), clean, &mut self.output)?;
        self.state = State::Asked { deadline: now.checked_add(self.options.connect_timeout), clean };
        Ok(())
    }

    /// Octets from the broker, cut anywhere.
    ///
    /// # Errors
    /// What the broker did wrong. The owner closes the socket and calls [`handle_closed`](Self::handle_closed);
    /// nothing more is read or sent until then.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Failure> {
        if let State::Up { received, .. } = &mut self.state {
            *received = now;
        }
        let result = if self.input.is_empty() {
            let used = self.handle_input(now, bytes);
            used.map(|used| self.input.extend_from_slice(&bytes[used..]))
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(bytes);
            let used = self.handle_input(now, &input);
            used.map(|used| {
                input.drain(..used);
                if !input.is_empty() || input.capacity() <= SPARE_MAX {
                    self.input = input;
                }
            })
        };
        if result.is_err() {
            self.leave(State::Over);
            self.output.clear();
        }
        self.pump();
        result
    }

    /// The socket is gone, whoever closed it. What is unfinished waits for the next connection.
    pub fn handle_closed(&mut self) {
        self.leave(State::Down);
        self.inbound.closed();
        self.terms = Terms::default();
        self.input = Vec::new();
        self.skip = 0;
        self.output = BytesMut::new();
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come; early is harmless.
    ///
    /// # Errors
    /// [`Failure::NoConnAck`] or [`Failure::NoPingResp`]; to be treated as those of
    /// [`handle_bytes`](Self::handle_bytes).
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Failure> {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        let keep_alive = self.keep_alive();
        let failure = match &mut self.state {
            State::Up { ping_deadline: ping_deadline @ None, .. } => {
                let patience =
                    keep_alive.map_or(PING_TIMEOUT_MIN, |silence| PING_TIMEOUT_MIN.max(silence / 2));
                *ping_deadline = now.checked_add(patience);
                self.counters.pings += 1;
                Codec::pingreq(&mut self.output);
                self.inbound.asked();
                return Ok(());
            }
            State::Up { .. } => Failure::NoPingResp,
            _ => Failure::NoConnAck,
        };
        self.leave(State::Over);
        self.output.clear();
        Err(failure)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if nothing else happens.
    ///
    /// A PINGREQ is due when nothing was sent for the keep-alive (MQTT 3.1.1 §3.1.2.10), and also when nothing was
    /// received for as long: who only sends would not notice otherwise that nobody is there.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Asked { deadline, .. } => deadline,
            State::Up { ping_deadline: Some(deadline), .. } => Some(deadline),
            State::Up { sent, received, .. } => sent.min(received).checked_add(self.keep_alive()?),
            State::Down | State::Over => None,
        }
    }

    /// Everything that is ready to leave, as one buffer. To be called when the previous one has been written:
    /// `now` is taken for the time when these octets leave (it feeds the keep-alive).
    ///
    /// With [`Options::traced`] it is what was ready at the last [`prepare`](Self::prepare), or since, and nothing while
    /// [`poll_trace`](Self::poll_trace) has something to say.
    pub fn take_output(&mut self, now: Instant) -> Option<Bytes> {
        if !self.options.traced {
            self.pump();
        }
        if self.output.is_empty() || !self.traces.is_empty() {
            return None;
        }
        if let State::Up { sent, .. } = &mut self.state {
            *sent = now;
        }
        let output = self.output.split().freeze();
        if output.len() > SPARE_MAX {
            self.output = BytesMut::new();
        }
        Some(output)
    }

    /// Chooses packet ids and readies what may leave now, so that [`poll_trace`](Self::poll_trace) says all that
    /// [`take_output`](Self::take_output) needs.
    pub fn prepare(&mut self) {
        self.pump();
    }

    /// What the owner has to store before the next output leaves, in order. To be taken before events too: a packet id
    /// that the broker lets go of may be that of a message that follows.
    pub fn poll_trace(&mut self) -> Option<Trace> {
        self.traces.poll()
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the broker has accepted the connection and it has not ended.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether CONNECT has not been answered.
    pub fn is_connecting(&self) -> bool {
        matches!(self.state, State::Asked { .. })
    }

    /// Shows this Will from the next [`handle_connected`](Self::handle_connected) on (MQTT 3.1.1 §3.1.2.5): the broker knows no
    /// other way to change one.
    pub fn set_will(&mut self, will: Option<Message>) {
        self.options.will = will;
    }

    /// Shows this password from the next [`handle_connected`](Self::handle_connected) on, if there is a user name to go with it.
    pub fn set_password(&mut self, password: Bytes) {
        if let Some(credentials) = &mut self.options.credentials {
            credentials.password = password;
        }
    }

    /// Speaks this version from the next [`handle_connected`](Self::handle_connected) on: for a broker that does not know
    /// the other. What is unfinished goes over.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        if self.options.protocol != protocol {
            self.disconnect();
            self.options.protocol = protocol;
            self.codec = Codec::new(protocol);
        }
    }
}

/// Commands; legal at any time, connected or not.
impl Connection {
    /// Sends a message. `None` for QoS 0, which leaves with the next output and is then forgotten; for QoS 1 and 2
    /// the token of an [`Event::Completed`].
    ///
    /// # Errors
    /// [`Full`]: nothing was taken, nothing is kept. While not connected QoS 0 is refused; QoS 1 and 2 are queued, and
    /// complete as refused if the broker turns out not to take them.
    pub fn publish(&mut self, message: Message) -> Result<Option<Token>, Full> {
        self.publish_from(Origin::default(), message)
    }

    /// Sends a message as [`publish`](Self::publish) does, for an owner who speaks for many: those of QoS 1 and 2 of the same origin
    /// leave in order.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_from(&mut self, origin: Origin, message: Message) -> Result<Option<Token>, Full> {
        let len = self.codec.publish_len(&message);
        if len > self.options.packet_len_max {
            return Err(self.full(Full::TooLarge));
        }
        if let Err(refused) = self.terms.check_publish(&message, len) {
            return Err(self.full(Full::Unsupported(refused)));
        }
        if message.qos != QoS::AtMostOnce {
            if !self.outbound.has_room(&message, &self.options) {
                return Err(self.full(Full::Queue));
            }
            let token = self.outbound.publish(origin, message);
            self.pump();
            return Ok(Some(token));
        }
        if !self.is_connected() {
            return Err(self.full(Full::Offline));
        }
        if self.output.len() >= self.options.buffer {
            return Err(self.full(Full::Buffer));
        }
        self.codec.publish(&message, 0, false, &mut self.output);
        Ok(None)
    }

    /// Subscribes; ends with [`Event::Subscribed`]. Repeated on the next connection if this one ends before that.
    /// An empty list ends at once.
    ///
    /// # Errors
    /// [`Full::Requests`], [`Full::TooLarge`], [`Full::Unsupported`].
    pub fn subscribe(&mut self, filters: &[(TopicFilter, QoS)]) -> Result<Token, Full> {
        self.subscribe_as(filters, None)
    }

    /// Subscribes as [`subscribe`](Self::subscribe) does, under an identifier that comes with every message that one of the
    /// filters matches (MQTT 5 §3.8.2.1.2). Where [`has_subscription_ids`](Self::has_subscription_ids) says no when the
    /// SUBSCRIBE leaves, it leaves without.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub fn subscribe_as(
        &mut self,
        filters: &[(TopicFilter, QoS)],
        subscription: Option<SubscriptionId>,
    ) -> Result<Token, Full> {
        self.check_request(self.codec.subscribe_len(filters, subscription))?;
        if filters.is_empty() {
            let token = self.outbound.token();
            self.events.push_back(Event::Subscribed(token, Vec::new()));
            return Ok(token);
        }
        let token = self.outbound.subscribe(filters, subscription);
        self.pump();
        Ok(token)
    }

    /// Unsubscribes; ends with [`Event::Unsubscribed`]. Otherwise as [`subscribe`](Self::subscribe).
    ///
    /// # Errors
    /// [`Full::Requests`], [`Full::TooLarge`], [`Full::Unsupported`].
    pub fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<Token, Full> {
        self.check_request(self.codec.unsubscribe_len(filters))?;
        if filters.is_empty() {
            let token = self.outbound.token();
            self.events.push_back(Event::Unsubscribed(token));
            return Ok(token);
        }
        let token = self.outbound.unsubscribe(filters);
        self.pump();
        Ok(token)
    }

    /// Acknowledges a message of the broker: PUBACK (QoS 1) or PUBREC (QoS 2) goes out now. If the connection on which
    /// it came has ended, it goes out when the broker repeats the message. A delivery that is settled already, or that
    /// ended with the broker's session, is ignored and counted.
    ///
    /// Interpretation: acknowledgements leave in the order of the settlements, although MQTT 3.1.1 §4.6 wants that of
    /// the messages: a recipient that takes its time must not hold back all others.
    pub fn settle(&mut self, delivery: DeliveryId) {
        match self.inbound.settle(delivery) {
            Ok(Some(ack)) => self.acknowledge(ack),
            Ok(None) => {}
            Err(Stale) => self.counters.stale_settles += 1,
        }
    }

    /// Says DISCONNECT; the owner writes what [`take_output`](Self::take_output) gives and closes.
    pub fn disconnect(&mut self) {
        if matches!(self.state, State::Asked { .. } | State::Up { .. }) {
            Codec::disconnect(&mut self.output);
            self.leave(State::Over);
        }
    }

    /// Ends [`first_sent`](Self::first_sent) as refused, for an owner who has seen that the broker will not take it.
    pub fn give_up_first(&mut self) {
        if let Some((id, _)) = self.outbound.first_sent() {
            self.abandon(id, Refused::UNSPECIFIED);
        }
    }

    /// Removes the session from the broker: DISCONNECT, [`Event::Reconnect`], CONNECT with CleanSession 1,
    /// DISCONNECT, [`Event::Purged`]; on a connection of MQTT 5 only DISCONNECT and [`Event::Purged`]. For an orderly stop of
    /// an owner whose client id will not come back.
    pub fn purge(&mut self) {
        let resumes = self.options.session != Session::Clean;
        if self.is_connected() && resumes && self.codec.disconnect_for_good(&mut self.output) {
            self.leave(State::Over);
            self.session = AtBroker::None;
            self.counters.purges += 1;
            self.events.push_back(Event::Purged);
            return;
        }
        self.disconnect();
        if self.options.session == Session::Clean {
            self.events.push_back(Event::Purged);
            return;
        }
        self.purge = Some(Purge::Ours);
        self.events.push_back(Event::Reconnect);
    }
}

/// Queries.
impl Connection {
    /// The first publish that was sent on this connection and has no answer yet.
    pub fn first_sent(&self) -> Option<Token> {
        self.outbound.first_sent().map(|(_, token)| token)
    }

    /// QoS 1 and 2 publishes that have not completed, waiting or in flight.
    pub fn unfinished(&self) -> usize {
        self.outbound.unfinished()
    }

    /// QoS 1 and 2 publishes that are taken before [`Full::Queue`], if [`Options::queue_octets`] has room for them.
    pub fn publishes_left(&self) -> usize {
        self.outbound.room(&self.options)
    }

    /// What the owner stores of a QoS 2 message of the broker, before it settles it, to know it again.
    /// `None` for QoS 1 and for what is not open any more: there is nothing to store.
    pub fn received(&self, delivery: DeliveryId) -> Option<Received> {
        self.inbound.received(delivery)
    }

    /// SUBSCRIBEs and UNSUBSCRIBEs that are taken before [`Full::Requests`].
    pub fn requests_left(&self) -> usize {
        REQUESTS_MAX.saturating_sub(self.outbound.requests())
    }

    /// What was counted since the value was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The options as they are in force.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the broker said that it has a session of ours when it last accepted us. [`Event::Connected`] says less if it may
    /// be a younger one, of a CONNECT that was not answered.
    pub fn has_resumed(&self) -> bool {
        self.resumed
    }

    /// How many publishes of QoS 1 and 2 may be under way to the broker that accepted us last: no more than it takes, which only
    /// MQTT 5 can say (MQTT 5 §3.2.2.3.3).
    pub fn window(&self) -> u16 {
        self.options.window.min(self.terms.receive_max)
    }

    /// Whether messages of the broker will come with the identifiers of their subscriptions: MQTT 5, where the broker has
    /// them. False while not connected.
    pub fn has_subscription_ids(&self) -> bool {
        self.is_connected() && self.terms.subscription_ids
    }
}

impl Connection {
    /// Handles the whole packets in `input` and says how many octets they were.
    fn handle_input(&mut self, now: Instant, input: &[u8]) -> Result<usize, Failure> {
        let mut used = 0;
        loop {
            if !matches!(self.state, State::Asked { .. } | State::Up { .. }) {
                return Ok(input.len());
            }
            let skipped = self.skip.min(input.len() - used);
            self.skip -= skipped;
            used += skipped;
            let Some(frame) = self.codec.decode(&input[used..], self.options.packet_len_max)? else {
                return Ok(used);
            };
            let whole = frame.len.min(input.len() - used);
            used += whole;
            self.skip = frame.len - whole;
            self.handle_packet(now, frame.packet)?;
            if self.output.len() > self.options.buffer + self.options.packet_len_max + ANSWERS_MAX {
                return Err(Failure::NotReading);
            }
        }
    }

    fn handle_packet(&mut self, now: Instant, packet: Packet) -> Result<(), Failure> {
        let answers = matches!(packet, Packet::ConnAck { .. } | Packet::Disconnect(_));
        let in_turn = if self.is_connecting() { answers } else { !matches!(packet, Packet::ConnAck { .. }) };
        if !in_turn {
            return Err(Failure::Unexpected(packet.kind()));
        }
        match packet {
            Packet::ConnAck { session_present, result } => self.handle_connack(now, session_present, result),
            Packet::Publish { id, dup, message, extras } => self.handle_publish(id, dup, message, extras),
            Packet::Oversized { id, dup, qos } => {
                self.counters.oversized += u64::from(self.discard(id, dup, qos));
            }
            Packet::Misnamed { id, dup, qos } => {
                self.counters.misnamed += u64::from(self.discard(id, dup, qos));
            }
            Packet::PubAck(id, result) => {
                let ended = self.outbound.acknowledged(id, &mut self.traces);
                self.counters.lowered += u64::from(matches!(ended, Some((_, QoS::ExactlyOnce))));
                self.end(ended.map(|(token, _)| token), |token| Event::Completed(token, result));
            }
            Packet::PubRec(id, Ok(())) => {
                // Also when nothing waits for it: PUBREL lets the broker forget the id (MQTT 3.1.1 §4.3.3).
                Codec::pubrel(id, &mut self.output);
                let token = self.outbound.received(id, &mut self.traces);
                self.end(token, Event::Received);
            }
            Packet::PubRec(id, Err(refused)) => {
                let token = self.outbound.refused(id, &mut self.traces);
                self.end(token, |token| Event::Completed(token, Err(refused)));
            }
            Packet::PubRel(id) => {
                // Also when the id is unknown, or the broker would ask for ever.
                Codec::pubcomp(id, &mut self.output);
                self.counters.strays += u64::from(!self.inbound.release(id, &mut self.traces));
            }
            Packet::PubComp(id, result) => {
                let token = self.outbound.completed(id, &mut self.traces);
                self.end(token, |token| Event::Completed(token, result));
            }
            Packet::SubAck(id, granted) => match self.outbound.subscribed(id, granted.len()) {
                SubAck::Subscribed(token) => self.events.push_back(Event::Subscribed(token, granted)),
                SubAck::Stray => self.counters.strays += 1,
                SubAck::WrongCount => {
                    let packet = Packet::SubAck(id, granted).kind();
                    return Err(Failure::Malformed { packet, what: Malformed::ReturnCodes });
                }
            },
            Packet::UnsubAck(id) => {
                let token = self.outbound.unsubscribed(id);
                self.end(token, Event::Unsubscribed);
            }
            Packet::PingResp => {
                let State::Up { ping_deadline, .. } = &mut self.state else { return Ok(()) };
                match ping_deadline.take() {
                    Some(_) => self.inbound.answered(&mut self.traces),
                    None => self.counters.strays += 1,
                }
            }
            Packet::Disconnect(code) => return Err(Failure::Disconnected(code)),
        }
        Ok(())
    }

    fn handle_connack(&mut self, now: Instant, session_present: bool, result: Result<Terms, ConnectRefusal>) {
        let terms = match result {
            Ok(terms) => terms,
            Err(refusal) => {
                self.state = State::Over;
                self.events.push_back(Event::Refused(refusal));
                return;
            }
        };
        if let Some(purge) = self.purge.take() {
            self.counters.purges += 1;
            self.session = AtBroker::None;
            self.state = State::Over;
            Codec::disconnect(&mut self.output);
            self.events.push_back(if purge == Purge::Ours { Event::Purged } else { Event::Reconnect });
            return;
        }
        let present = session_present && !matches!(self.state, State::Asked { clean: true, .. });
        if present && self.session == AtBroker::Unknown && self.options.session == Session::Resume {
            self.purge = Some(Purge::Foreign);
            self.state = State::Over;
            Codec::disconnect(&mut self.output);
            self.events.push_back(Event::Reconnect);
            return;
        }
        self.state = State::Up { sent: now, received: now, ping_deadline: None };
        self.terms = terms;
        self.begin(present);
    }

    /// The broker has accepted us, with or without a session.
    fn begin(&mut self, present: bool) {
        self.resumed = present;
        let before = std::mem::replace(&mut self.session, AtBroker::Ours);
        let had = matches!(before, AtBroker::Ours | AtBroker::Doubtful);
        let adopted = present && before == AtBroker::Unknown;
        if present && had {
            self.outbound.resumed();
        } else {
            self.counters.sessions_lost += u64::from(had && self.options.session != Session::Clean);
            self.lose_session();
        }
        if adopted {
            self.outbound.inherit();
        }
        if before == AtBroker::Doubtful {
            self.inbound.doubt();
        }
        let session_present = adopted || (present && before == AtBroker::Ours);
        self.events.push_back(Event::Connected { session_present });
        self.pump();
    }

    /// The broker knows nothing of us, or nothing that we know of.
    fn lose_session(&mut self) {
        self.outbound.lost(&mut self.traces);
        self.inbound.lost(&mut self.traces);
    }

    fn handle_publish(&mut self, id: u16, dup: bool, message: Message, extras: Extras) {
        let Extras { expiry, subscriptions } = extras;
        let delivery = match message.qos {
            QoS::AtMostOnce => None,
            qos => match self.arrive(id, qos, dup, digest_of(&message)) {
                None => return,
                delivery => delivery,
            },
        };
        self.events.push_back(Event::Message { message, dup, delivery, expiry, subscriptions });
    }

    /// A message that we cannot keep is acknowledged all the same: the broker would repeat it on every connection. Whether it
    /// is new.
    fn discard(&mut self, id: u16, dup: bool, qos: QoS) -> bool {
        if qos == QoS::AtMostOnce {
            return true;
        }
        let delivery = self.arrive(id, qos, dup, 0);
        if let Some(delivery) = delivery {
            self.settle(delivery);
        }
        delivery.is_some()
    }

    /// The delivery that a PUBLISH of QoS 1 or 2 begins, unless it repeats one.
    fn arrive(&mut self, id: u16, qos: QoS, dup: bool, digest: u64) -> Option<DeliveryId> {
        let arrival = self.inbound.arrive(id, qos, dup, digest, &mut self.traces);
        if let Arrival::New(delivery) = arrival {
            return Some(delivery);
        }
        self.counters.duplicates += 1;
        if let Arrival::Settled(ack) = arrival {
            self.acknowledge(ack);
        }
        None
    }

    fn acknowledge(&mut self, ack: Ack) {
        if !self.is_connected() {
            return;
        }
        match ack {
            Ack::PubAck(id) => Codec::puback(id, &mut self.output),
            Ack::PubRec(id) => Codec::pubrec(id, &mut self.output),
        }
    }

    /// An answer of the broker: an event if something waited for it, else a stray.
    fn end(&mut self, token: Option<Token>, event: impl FnOnce(Token) -> Event) {
        match token {
            Some(token) => self.events.push_back(event(token)),
            None => self.counters.strays += 1,
        }
    }

    /// Writes what may leave: as much as window and buffer have room for.
    fn pump(&mut self) {
        if !self.is_connected() {
            return;
        }
        while self.output.len() < self.options.buffer {
            let next = self.outbound.next(&self.options, self.terms.receive_max, &mut self.traces);
            let Some(sending) = next else { return };
            if let Err((id, refused)) = check(&self.terms, &self.codec, &sending) {
                self.abandon(id, refused);
                continue;
            }
            match sending {
                Sending::Publish { id, dup, message, release } => {
                    self.counters.resent += u64::from(dup);
                    if release {
                        Codec::pubrel(id, &mut self.output);
                    }
                    self.codec.publish(message, id, dup, &mut self.output);
                }
                Sending::PubRel(id) => {
                    self.counters.resent += 1;
                    Codec::pubrel(id, &mut self.output);
                }
                Sending::Subscribe(id, filters, subscription) => {
                    let subscription = subscription.filter(|_| self.terms.subscription_ids);
                    self.codec.subscribe(id, filters, subscription, &mut self.output);
                }
                Sending::Unsubscribe(id, filters) => {
                    self.codec.unsubscribe(id, filters, &mut self.output);
                }
            }
        }
    }

    /// Ends what was asked for before the broker said that it does not take it.
    fn abandon(&mut self, id: u16, refused: Refused) {
        let event = match self.outbound.abandon(id, &mut self.traces) {
            Some(Abandoned::Publish(token)) => Event::Completed(token, Err(refused)),
            Some(Abandoned::Subscribe(token, filters)) => {
                Event::Subscribed(token, vec![Err(refused); filters])
            }
            Some(Abandoned::Unsubscribe(token)) => Event::Unsubscribed(token),
            None => return,
        };
        self.events.push_back(event);
    }

    /// The longest silence before a PINGREQ, if there is to be one.
    fn keep_alive(&self) -> Option<Duration> {
        self.options.keep_alive_within(self.terms.keep_alive)
    }

    fn check_request(&mut self, len: usize) -> Result<(), Full> {
        if len > self.options.packet_len_max {
            return Err(self.full(Full::TooLarge));
        }
        if let Err(refused) = self.terms.check_len(len) {
            return Err(self.full(Full::Unsupported(refused)));
        }
        if self.outbound.requests() >= REQUESTS_MAX {
            return Err(self.full(Full::Requests));
        }
        Ok(())
    }

    fn full(&mut self, full: Full) -> Full {
        self.counters.refused += 1;
        full
    }

    /// The connection ends. If the broker has not answered CONNECT, it may have begun a new session all the same.
    fn leave(&mut self, state: State) {
        if matches!(self.state, State::Asked { .. }) && self.session == AtBroker::Ours {
            self.session = AtBroker::Doubtful;
        }
        self.state = state;
    }
}

/// What tells a message of the broker from another under the same packet id.
fn digest_of(message: &Message) -> u64 {
    // No topic has the octet between them (MQTT 3.1.1 §1.5.3).
    digest(message.topic.as_str().bytes().chain([0]).chain(message.payload.iter().copied()))
}

/// Whether the broker takes a packet; else its id, and why not.
fn check(terms: &Terms, codec: &Codec, sending: &Sending<'_>) -> Result<(), (u16, Refused)> {
    let (id, result) = match sending {
        Sending::Publish { id, message, .. } => {
            (*id, terms.check_publish(message, codec.publish_len(message)))
        }
        Sending::Subscribe(id, filters, subscription) => {
            (*id, terms.check_len(codec.subscribe_len(filters, *subscription)))
        }
        Sending::Unsubscribe(id, filters) => (*id, terms.check_len(codec.unsubscribe_len(filters))),
        Sending::PubRel(id) => (*id, Ok(())),
    };
    result.map_err(|refused| (id, refused))
}
