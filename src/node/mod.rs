//! An MQTT-SN client as a value: the other end of the wire, for the demo, the tools and the tests.
//!
//! A [`Node`] is what a well-made sensor does, without its socket and its clock: the caller hands in frames and the time,
//! and takes frames, events and the next deadline. It keeps its connection with PINGREQ, registers names before it
//! publishes on them, repeats what is not answered, and delivers what the gateway sends once, however often the radio
//! brings it. It sleeps if told so, and wakes for what has come meanwhile. [`Search`] and [`datagram`] are for those who need no connection.
//!
//! ```
//! use std::time::Instant;
//!
//! use mqtt_sn_gateway::node::{Node, Options, Topic};
//! use mqtt_sn_gateway::topic::{ClientId, TopicName};
//! use mqtt_sn_gateway::wire::Qos;
//!
//! let mut node = Node::new(Options::new(ClientId::new("pump-7")?));
//! let now = Instant::now();
//! node.connect(now);
//! node.publish(now, Topic::Name(TopicName::new("pumps/7")?), "on".into(), Qos::AtLeastOnce, false)?;
//! while let Some(frame) = node.poll_transmit() { /* send it to the gateway */ }
//! while let Some(event) = node.poll_event() { /* Connected, Published … */ }
//! // then: handle_frame when one comes, handle_timeout at poll_timeout, and drain again
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod air;
mod discovery;
mod downlink;
mod event;
mod options;
mod requests;
mod sleep;
mod topics;
mod uplink;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::air::{Air, Cx, NoAnswer, Retry};
use self::downlink::Downlink;
use self::requests::Requests;
use self::sleep::Sleep;
use self::topics::Topics;
use self::uplink::{Pending, Uplink};
use crate::wire::{
    Connect, Disconnect, MESSAGE_LEN_MAX, Packet, PingReq, Qos, ReturnCode, WillMsg, WillTopic, decode,
};

pub use self::discovery::{Found, Search, datagram};
pub use self::event::{
    Counters, Event, Filter, Loss, Message, Outcome, PublishError, PublishId, REQUESTS_MAX, SubscribeError,
    Topic,
};
pub use self::options::{Backoff, Options, Will};

/// An MQTT-SN client.
#[derive(Debug)]
pub struct Node {
    options: Options,
    connection: Connection,
    uplink: Uplink,
    requests: Requests,
    downlink: Downlink,
    topics: Topics,
    air: Air,
    events: VecDeque<Event>,
    next_id: u64,
    /// Connections lost or refused since the last one that came about.
    failures: u32,
    random: u64,
}

/// How a node stands with its gateway.
#[derive(Debug)]
enum Connection {
    /// The application has not asked for one.
    None,
    /// The next attempt comes at this time.
    Waiting(Instant),
    /// The handshake of §6.2.
    Connecting { step: Step, retry: Retry },
    /// CONNACK has come. `ping` is the PINGREQ that waits for its answer.
    Connected { since: Instant, ping: Option<Retry> },
    /// Asleep, on the way there, or awake for what waits (§6.14).
    Sleeping(Sleep),
    /// DISCONNECT waits for its answer.
    Disconnecting(Retry),
}

/// What was sent last in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Connect,
    WillTopic,
    WillMsg,
}

impl Node {
    /// A node that does nothing before [`Node::connect`].
    pub fn new(options: Options) -> Self {
        let mut random = options.seed;
        let [low, high, ..] = next_random(&mut random).to_le_bytes();
        Self {
            air: Air::new(&options, u16::from_le_bytes([low, high])),
            connection: Connection::None,
            uplink: Uplink::default(),
            requests: Requests::default(),
            downlink: Downlink::default(),
            topics: Topics::default(),
            events: VecDeque::new(),
            next_id: 0,
            failures: 0,
            random,
            options,
        }
    }

    /// Begins a connection (§6.2): later [`Event::Connected`], [`Event::ConnectRefused`] or [`Event::ConnectionLost`].
    /// No effect while there is one, or while DISCONNECT waits for its answer. It ends a sleep; with CleanSession the gateway
    /// then forgets what it keeps for the node.
    pub fn connect(&mut self, now: Instant) {
        match &self.connection {
            Connection::None | Connection::Waiting(_) => self.begin_connection(now),
            Connection::Sleeping(sleep) if !sleep.is_falling() => self.begin_connection(now),
            _ => {}
        }
    }

    /// Ends the connection, or the attempts at one (§6.12): later [`Event::Disconnected`]. What is queued stays queued.
    pub fn disconnect(&mut self, now: Instant) {
        match self.connection {
            Connection::Disconnecting(_) => {}
            Connection::None | Connection::Waiting(_) => self.end(),
            Connection::Connecting { .. } | Connection::Connected { .. } | Connection::Sleeping(_) => {
                self.suspend(now);
                self.air.send(DISCONNECT);
                self.connection = Connection::Disconnecting(self.retry(now));
            }
        }
    }

    /// Queues a message; it goes out while there is a connection, in order, registered first where its topic needs that.
    /// [`Event::Published`] tells the end. QoS −1 goes out at once, connection or not (§6.8).
    ///
    /// # Errors
    /// [`PublishError`]; the message is then not queued.
    pub fn publish(
        &mut self,
        now: Instant,
        topic: Topic,
        payload: Bytes,
        qos: Qos,
        retain: bool,
    ) -> Result<PublishId, PublishError> {
        let name_len = if let Topic::Name(name) = &topic { name.as_str().len() } else { 0 };
        if payload.len() > PAYLOAD_LEN_MAX || name_len > NAME_LEN_MAX {
            return Err(PublishError::TooLong);
        }
        let id = PublishId(self.next_id);
        if qos == Qos::MinusOne {
            self.air.send_bytes(datagram(&topic, &payload, retain, self.options.node_id.as_deref())?);
            self.events.push_back(Event::Published(id, Outcome::Sent));
        } else {
            if self.uplink.len() >= self.options.queue_max {
                return Err(PublishError::Full);
            }
            self.uplink.push(Pending::new(id, topic, payload, qos, retain));
            self.advance(now);
        }
        self.next_id += 1;
        Ok(id)
    }

    /// Asks for the messages of `filter` (§6.9), `qos` 0 to 2 (−1 is taken as 0): later [`Event::Subscribed`]. Held
    /// over reconnections until [`Node::unsubscribe`].
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing is then asked for.
    pub fn subscribe(&mut self, now: Instant, filter: Filter, qos: Qos) -> Result<(), SubscribeError> {
        self.requests.subscribe(filter, qos)?;
        self.advance(now);
        Ok(())
    }

    /// Takes a subscription back (§6.9): later [`Event::Unsubscribed`].
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing is then asked for.
    pub fn unsubscribe(&mut self, now: Instant, filter: Filter) -> Result<(), SubscribeError> {
        self.requests.unsubscribe(filter)?;
        self.advance(now);
        Ok(())
    }

    /// Takes a frame from the gateway. What cannot be read, is for another node or answers nothing is counted and
    /// dropped.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let packet = match decode(frame) {
            Ok(frame) if self.air.is_ours(&frame) => frame.packet,
            _ => return self.air.counters.noise += 1,
        };
        self.air.counters.frames_received += 1;
        match packet {
            packet if self.is_asleep() => self.handle_asleep(now, packet),
            Packet::Advertise(advertise) => self.found(now, advertise.gw_id),
            Packet::GwInfo(info) => self.found(now, info.gw_id),
            Packet::WillTopicReq => self.handle_will_request(now, Step::WillTopic),
            Packet::WillMsgReq => self.handle_will_request(now, Step::WillMsg),
            Packet::ConnAck(ack) => self.handle_connack(now, ack.code),
            Packet::Disconnect(_) => self.handle_disconnect(now),
            // The last message with QoS 0 before leaving may be answered too.
            Packet::PubAck(ack)
                if ack.msg_id == 0 && matches!(self.connection, Connection::Disconnecting(_)) =>
            {
                self.with_parts(now, |uplink, _, _, cx| uplink.handle_puback(ack, cx));
            }
            packet if self.is_connected() => self.handle_session(now, packet),
            _ => self.air.stale(),
        }
    }

    /// Does what is due at `now`; early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        let interval = self.options.retry_interval;
        match &mut self.connection {
            Connection::None => {}
            Connection::Waiting(until) => {
                if *until <= now {
                    self.begin_connection(now);
                }
            }
            Connection::Connecting { step, retry } => match retry.due(now, interval) {
                Ok(false) => {}
                Ok(true) => {
                    let step = *step;
                    self.air.counters.retransmissions += 1;
                    self.send_step(step);
                }
                Err(NoAnswer) => self.lose(now, Loss::NoAnswer),
            },
            Connection::Connected { .. } => self.handle_session_timeout(now),
            Connection::Sleeping(_) => self.handle_sleep_timeout(now),
            Connection::Disconnecting(retry) => match retry.due(now, interval) {
                Ok(false) => {}
                Ok(true) => self.air.send_again(DISCONNECT),
                Err(NoAnswer) => self.end(),
            },
        }
    }

    /// When [`Node::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let interval = self.options.retry_interval;
        match &self.connection {
            Connection::None => None,
            Connection::Waiting(until) => Some(*until),
            Connection::Connecting { retry, .. } | Connection::Disconnecting(retry) => {
                Some(retry.deadline(interval))
            }
            Connection::Sleeping(sleep) => sleep.deadline(interval),
            Connection::Connected { since, ping } => {
                let ping = match ping {
                    Some(retry) => Some(retry.deadline(interval)),
                    None => self.ping_at(*since),
                };
                let deadlines =
                    [ping, self.uplink.deadline(&self.options), self.requests.deadline(&self.options)];
                deadlines.into_iter().flatten().min()
            }
        }
    }

    /// The next frame for the gateway. To be drained after every call that takes `now`.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.air.poll()
    }

    /// The next thing to tell the application. To be drained after every call that takes `now`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Node::poll_event`] would give something.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether there is a connection, and the node is not asleep.
    pub fn is_connected(&self) -> bool {
        matches!(self.connection, Connection::Connected { .. })
    }

    /// Whether there is a connection, and everything that was subscribed to is granted or refused, again where the gateway may
    /// have forgotten it.
    pub fn is_subscribed(&self) -> bool {
        self.is_connected() && self.requests.is_empty()
    }

    /// Whether there is a connection, and nothing that was asked of the node waits or is under way, subscriptions made again
    /// included: the time to fall asleep.
    pub fn is_idle(&self) -> bool {
        self.is_connected() && self.uplink.len() == 0 && self.requests.is_empty()
    }

    /// Messages given to [`Node::publish`] that are not settled.
    pub fn pending(&self) -> usize {
        self.uplink.len()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.air.counters
    }

    fn begin_connection(&mut self, now: Instant) {
        self.connection = Connection::Connecting { step: Step::Connect, retry: self.retry(now) };
        self.send_step(Step::Connect);
    }

    fn send_step(&mut self, step: Step) {
        let Options { will, clean_session, .. } = &self.options;
        match (step, will) {
            (Step::Connect, will) => self.air.send(Packet::Connect(Connect {
                will: will.is_some(),
                clean_session: *clean_session,
                protocol_id: Connect::PROTOCOL_ID,
                duration: u16::try_from(self.options.keep_alive.as_secs()).unwrap_or(u16::MAX),
                client_id: self.options.client_id.as_str().as_bytes(),
            })),
            (Step::WillTopic, Some(will)) => self.air.send(Packet::WillTopic(WillTopic {
                qos: will.qos,
                retain: will.retain,
                topic: will.topic.as_str().as_bytes(),
            })),
            (Step::WillMsg, Some(will)) => self.air.send(Packet::WillMsg(WillMsg { message: &will.message })),
            (Step::WillTopic | Step::WillMsg, None) => {}
        }
    }

    /// A prompt for the Will is answered in a connection too: a late copy of our CONNECT may have opened a handshake at the
    /// gateway, which would hear nothing else until it is through (§6.2).
    fn handle_will_request(&mut self, now: Instant, asked: Step) {
        match (&self.connection, &self.options.will) {
            (Connection::Connecting { .. }, Some(_)) => {
                self.connection = Connection::Connecting { step: asked, retry: self.retry(now) };
                self.send_step(asked);
            }
            (Connection::Connected { .. }, Some(_)) => self.send_step(asked),
            _ => self.air.stale(),
        }
    }

    fn handle_connack(&mut self, now: Instant, code: ReturnCode) {
        let expected = match self.connection {
            Connection::Connecting { .. } => true,
            Connection::Connected { .. } => false,
            _ => return self.air.stale(),
        };
        match code {
            ReturnCode::Accepted if expected => {
                self.air.counters.connections += 1;
                self.failures = 0;
                self.air.heard = None;
                self.connection = Connection::Connected { since: now, ping: None };
                self.events.push_back(Event::Connected);
                let clean = self.options.clean_session;
                self.topics.restart(clean);
                if clean {
                    self.downlink.restart();
                }
                self.begin_session(now);
            }
            // A late copy of our CONNECT has reached the gateway. A session that is not clean goes on; of a clean one
            // nothing is left there. It may as well be a copy of CONNACK: nothing may be forgotten that tells a message from
            // its duplicate.
            ReturnCode::Accepted if self.options.clean_session && self.cx(now).has_room() => {
                self.air.counters.connections += 1;
                self.events.push_back(Event::Restarted);
                self.topics.restart(false);
                self.begin_session(now);
            }
            ReturnCode::Accepted => self.air.stale(),
            _ if !expected => self.air.stale(),
            code => {
                self.events.push_back(Event::ConnectRefused(code));
                let again = if code == ReturnCode::Congestion { self.options.reconnect } else { None };
                self.wait_or_rest(now, again);
            }
        }
    }

    fn begin_session(&mut self, now: Instant) {
        let clean = self.options.clean_session;
        self.with_parts(now, |uplink, requests, _, cx| {
            requests.restart(cx);
            uplink.restart(clean, cx);
        });
    }

    fn handle_disconnect(&mut self, now: Instant) {
        match self.connection {
            Connection::Connected { .. } => self.lose(now, Loss::Disconnected),
            Connection::Disconnecting(_) => self.end(),
            // It answers something that was sent before this attempt.
            _ => self.air.stale(),
        }
    }

    fn handle_session(&mut self, now: Instant, packet: Packet<'_>) {
        if let (Packet::PingResp, Connection::Connected { ping, .. }) = (packet, &mut self.connection) {
            match ping.take() {
                Some(retry) => self.air.heard(retry.sent),
                None => self.air.stale(),
            }
            return;
        }
        self.with_parts(now, |uplink, requests, downlink, cx| match packet {
            Packet::Register(register) => Downlink::handle_register(register, cx),
            Packet::Publish(publish) => downlink.handle_publish(publish, requests, cx),
            Packet::PubRel(release) => downlink.handle_pubrel(release, cx),
            Packet::RegAck(ack) => uplink.handle_regack(ack, cx),
            // The gateway began the session anew, and the CONNACK that would have told us was lost.
            Packet::PubAck(ack) => {
                if uplink.handle_puback(ack, cx) && cx.options.clean_session && cx.has_room() {
                    cx.tell(Event::Restarted);
                    cx.topics.restart(false);
                    requests.restart(cx);
                }
            }
            Packet::PubRec(ack) => uplink.handle_pubrec(ack, cx),
            Packet::PubComp(ack) => uplink.handle_pubcomp(ack, cx),
            Packet::SubAck(ack) => requests.handle_suback(ack, cx),
            Packet::UnsubAck(ack) => requests.handle_unsuback(ack, cx),
            Packet::PingReq(_) => cx.air.send(Packet::PingResp),
            _ => cx.air.counters.noise += 1,
        });
    }

    fn handle_session_timeout(&mut self, now: Instant) {
        let uplink = self.with_parts(now, |uplink, _, _, cx| uplink.handle_timeout(cx));
        if uplink.is_err() {
            if self.options.reconnect.is_none() {
                self.with_parts(now, |uplink, _, _, cx| uplink.give_up(cx));
            }
            return self.lose(now, Loss::NoAnswer);
        }
        let requests = self.with_parts(now, |_, requests, _, cx| requests.handle_timeout(cx));
        if requests.is_err() || self.handle_ping_timeout(now).is_err() {
            self.lose(now, Loss::NoAnswer);
        }
    }

    /// PINGREQ shows each side that the other is there (§6.11). What the gateway has answered serves as well.
    fn handle_ping_timeout(&mut self, now: Instant) -> Result<(), NoAnswer> {
        let Connection::Connected { since, ping } = &mut self.connection else { return Ok(()) };
        let since = *since;
        if ping.is_some_and(|retry| self.air.heard >= Some(retry.sent)) {
            *ping = None;
        }
        if let Some(retry) = ping {
            if retry.due(now, self.options.retry_interval)? {
                self.air.send_again(PINGREQ);
            }
        } else if self.ping_at(since).is_some_and(|at| at <= now) {
            self.air.send(PINGREQ);
            self.connection = Connection::Connected { since, ping: Some(self.retry(now)) };
        }
        Ok(())
    }

    /// So early that one repetition fits into the keep-alive, if T_RETRY leaves room for it.
    fn ping_at(&self, since: Instant) -> Option<Instant> {
        let keep_alive = self.options.keep_alive.min(Duration::from_secs(u16::MAX.into()));
        if keep_alive.is_zero() {
            return None;
        }
        let interval = keep_alive.saturating_sub(self.options.retry_interval).max(keep_alive / 2);
        Some(self.air.heard.map_or(since, |heard| heard.max(since)) + interval)
    }

    fn found(&mut self, now: Instant, gw_id: u8) {
        if self.cx(now).has_room() {
            self.events.push_back(Event::GatewayFound { gw_id });
        }
    }

    fn lose(&mut self, now: Instant, loss: Loss) {
        self.suspend(now);
        self.events.push_back(Event::ConnectionLost(loss));
        self.wait_or_rest(now, self.options.reconnect);
    }

    fn end(&mut self) {
        self.connection = Connection::None;
        self.failures = 0;
        self.events.push_back(Event::Disconnected);
    }

    fn wait_or_rest(&mut self, now: Instant, again: Option<Backoff>) {
        let Some(Backoff { min, max }) = again else {
            self.connection = Connection::None;
            return;
        };
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let wait = min.saturating_mul(factor).min(max);
        let less = wait / 4 / 256 * u32::from(next_random(&mut self.random).to_le_bytes()[0]);
        self.connection = Connection::Waiting(now + (wait - less));
    }

    fn suspend(&mut self, now: Instant) {
        self.with_parts(now, |uplink, requests, _, cx| {
            uplink.suspend(cx);
            requests.suspend(cx);
        });
    }

    fn advance(&mut self, now: Instant) {
        if self.is_connected() {
            self.with_parts(now, |uplink, requests, _, cx| {
                requests.advance(cx);
                uplink.advance(cx);
            });
        }
    }

    fn retry(&mut self, now: Instant) -> Retry {
        self.cx(now).retry()
    }

    fn cx(&mut self, now: Instant) -> Cx<'_> {
        let Self { options, air, topics, events, .. } = self;
        Cx { now, options, air, topics, events }
    }

    fn with_parts<T>(
        &mut self,
        now: Instant,
        call: impl FnOnce(&mut Uplink, &mut Requests, &mut Downlink, &mut Cx<'_>) -> T,
    ) -> T {
        let Self { options, air, topics, events, uplink, requests, downlink, .. } = self;
        call(uplink, requests, downlink, &mut Cx { now, options, air, topics, events })
    }
}

/// Octets of the longest payload a PUBLISH holds: what Length in its long form, MsgType, Flags, TopicId and MsgId leave
/// (§5.4.12).
const PAYLOAD_LEN_MAX: usize = MESSAGE_LEN_MAX - 9;

/// Octets of the longest topic or filter a REGISTER and a SUBSCRIBE hold: what Length in its long form, MsgType and the
/// fields before the name leave, four in the one and three in the other (§5.4.10, §5.4.15).
const NAME_LEN_MAX: usize = MESSAGE_LEN_MAX - 8;

const DISCONNECT: Packet<'static> = Packet::Disconnect(Disconnect { duration: None });

const PINGREQ: Packet<'static> = Packet::PingReq(PingReq { client_id: &[] });

/// SplitMix64: enough to keep nodes apart.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
