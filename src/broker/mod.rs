//! A small MQTT 3.1.1 broker in memory, as a value like the core, for first steps and for tests.
//!
//! [`Broker`] has no socket and no clock. Connections are numbers chosen by the caller, octets go in and come out:
//!
//! ```
//! # use std::time::Instant;
//! # use bytes::Bytes;
//! use mqtt_sn_gateway::broker::{Broker, ConnectionId, Input, Limits, Output};
//!
//! let mut broker = Broker::new(Limits::default());
//! let (now, link) = (Instant::now(), ConnectionId(1));
//! broker.handle(now, Input::Opened(link));
//! broker.handle(now, Input::Bytes(link, Bytes::from_static(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a")));
//! assert_eq!(broker.poll_output(), Some(Output::Write(link, Bytes::from_static(b"\x20\x02\0\0"))));
//! broker.handle(now, Input::Drained(link)); // until then it collects what comes next
//! ```
//!
//! It lets everybody in, has no `$SYS` topics, no shared subscriptions (`$share/…` is refused with 0x80) and keeps
//! nothing on disk. [`Fault`]s make it misbehave for tests; [`tcp`] puts it on a socket.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, PubRel, Publish, QoS, SubAck,
    Subscribe, SubscribeFilter, SubscribeReasonCode, UnsubAck, Unsubscribe,
};
use tracing::debug;

use crate::topic::tree::FilterTree;
use crate::topic::{ClientId, TopicFilter, TopicName};

mod connection;
mod fault;
mod io;
mod packet;
mod session;
pub mod tcp;
#[cfg(test)]
mod tests;

pub use fault::{Fault, Kind, Whom};
pub use io::{ConnectionId, Counters, Input, Limits, Memory, Message, Output, SessionInfo};

use connection::{Connection, Will};
use fault::Faults;
use packet::Bad;
use session::{Delivery, Full, Received, Session};

/// An MQTT 3.1.1 broker as a value.
///
/// Feed it with [`handle`](Self::handle) (a batch if there is one) and with [`handle_timeout`](Self::handle_timeout)
/// when [`poll_timeout`](Self::poll_timeout) is due, then take [`poll_output`](Self::poll_output) until `None`.
/// It does the same for the same inputs.
///
/// Invariants: a session names a connection exactly while that connection names its client; `subscribers` holds what
/// the sessions' subscriptions say; `ready` holds the connections that have something to write and may.
#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    counters: Counters,
    connections: BTreeMap<ConnectionId, Connection>,
    sessions: BTreeMap<ClientId, Session>,
    subscribers: FilterTree<BTreeMap<ClientId, QoS>>,
    retained: BTreeMap<TopicName, Arc<Message>>,
    retained_bytes: usize,
    /// Octets in all queues.
    queued_bytes: usize,
    /// The deadlines of the connections.
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    ready: BTreeSet<ConnectionId>,
    /// Closes and the writes just before them; they go before what is ready.
    closing: VecDeque<Output>,
    /// The last number given to a client without id.
    anonymous: u64,
    faults: Faults,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Disconnect,
    Lost,
    TakenOver,
    Refused,
    ConnectTimeout,
    KeepAlive,
    Malformed(&'static str),
    TooLarge,
    Fault,
    Restart,
}

impl Broker {
    /// A broker without sessions and retained messages.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            counters: Counters::default(),
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            subscribers: FilterTree::default(),
            retained: BTreeMap::new(),
            retained_bytes: 0,
            queued_bytes: 0,
            deadlines: BTreeSet::new(),
            ready: BTreeSet::new(),
            closing: VecDeque::new(),
            anonymous: 0,
            faults: Faults::default(),
        }
    }

    /// Takes what happened to a connection.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Opened(id) => self.opened(now, id),
            Input::Bytes(id, _) | Input::Drained(id) | Input::Closed(id)
                if !self.connections.contains_key(&id) =>
            {
                self.counters.late_inputs += 1;
            }
            Input::Bytes(id, bytes) => self.bytes(now, id, &bytes),
            Input::Drained(id) => self.drained(id),
            Input::Closed(id) => self.end(id, End::Lost),
        }
        self.delay_output(now);
    }

    /// Does what is due: closes silent connections, lets delayed output go. Early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let connected = self.connections.get(&id).is_some_and(|connection| connection.client.is_some());
            self.end(id, if connected { End::KeepAlive } else { End::ConnectTimeout });
        }
        self.delay_output(now);
        self.undelay_output(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        [deadline, self.faults.poll_timeout()].into_iter().flatten().min()
    }

    /// The next thing to do for the caller.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.closing.pop_front() {
            return Some(output);
        }
        let id = self.ready.pop_first()?;
        let connection = self.connections.get_mut(&id)?;
        connection.writing = true;
        let bytes = connection.take_ready();
        Some(Output::Write(id, self.cut_sent(id, bytes)))
    }

    /// Whether the connection should be read: not while its client leaves more than [`Limits::write_ahead`] unread.
    /// Bounds what the answers to a client that does not read can pile up to.
    pub fn wants_input(&self, connection: ConnectionId) -> bool {
        self.connections.get(&connection).is_none_or(|found| found.out.len() < self.limits.write_ahead)
    }

    /// As if the process had been killed and started again: all connections are closed, no will is published.
    /// Faults stay.
    pub fn restart(&mut self, memory: Memory) {
        let open: Vec<_> = self.connections.keys().copied().collect();
        for id in open {
            self.end(id, End::Restart);
        }
        if memory == Memory::Lost {
            self.sessions.clear();
            self.subscribers = FilterTree::default();
            self.retained.clear();
            (self.retained_bytes, self.queued_bytes) = (0, 0);
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The client ids of all sessions, in order.
    pub fn clients(&self) -> impl Iterator<Item = &ClientId> {
        self.sessions.keys()
    }

    /// The session of this client id.
    pub fn session(&self, client: &str) -> Option<SessionInfo> {
        self.sessions.get(&ClientId::new(client).ok()?).map(Session::info)
    }

    /// The retained messages, in order of their topics.
    pub fn retained(&self) -> impl Iterator<Item = &Message> {
        self.retained.values().map(|message| &**message)
    }
}

/// Connections.
impl Broker {
    fn opened(&mut self, now: Instant, id: ConnectionId) {
        if self.connections.contains_key(&id) {
            self.counters.late_inputs += 1;
            return;
        }
        if self.connections.len() >= self.limits.connections {
            self.counters.closed_over_limit += 1;
            self.closing.push_back(Output::Close(id));
            return;
        }
        self.connections.insert(id, Connection::new());
        self.set_deadline(id, Some(now + self.limits.connect_timeout));
        self.cut_opened(id);
    }

    fn bytes(&mut self, now: Instant, id: ConnectionId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.input.extend_from_slice(self.faults.received(id, bytes));
        self.packets(now, id);
        self.cut_received(id);
    }

    /// Handles the packets that are whole. Any of them may end the connection.
    fn packets(&mut self, now: Instant, id: ConnectionId) {
        while let Some(connection) = self.connections.get_mut(&id) {
            match packet::next(&mut connection.input, self.limits.packet) {
                Ok(Some(packet)) => {
                    let silence_max = connection.silence_max;
                    let client = connection.client.clone();
                    if client.is_some() {
                        self.set_deadline(id, silence_max.map(|silence| now + silence));
                    }
                    self.packet(now, id, client, packet);
                }
                Ok(None) => return,
                Err(Bad::Version) if connection.client.is_none() => {
                    self.refuse(id, ConnectReturnCode::RefusedProtocolVersion);
                }
                Err(Bad::Version) => self.end(id, End::Malformed("second CONNECT")),
                Err(Bad::TooLarge) => self.end(id, End::TooLarge),
                Err(Bad::Malformed(why)) => self.end(id, End::Malformed(why)),
            }
        }
    }

    fn packet(&mut self, now: Instant, id: ConnectionId, client: Option<ClientId>, packet: Packet) {
        let Some(client) = client else {
            return match packet {
                Packet::Connect(connect) => self.connect(now, id, connect),
                _ => self.end(id, End::Malformed("a packet before CONNECT")),
            };
        };
        match packet {
            Packet::Publish(publish) => self.published(id, &client, publish),
            Packet::PubAck(ack) => self.puback(&client, ack.pkid),
            Packet::PubRec(ack) => self.pubrec(id, &client, ack.pkid),
            Packet::PubRel(ack) => self.pubrel(id, &client, ack.pkid),
            Packet::PubComp(ack) => self.pubcomp(&client, ack.pkid),
            Packet::Subscribe(subscribe) => self.subscribe(id, &client, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(id, &client, &unsubscribe),
            Packet::PingReq => self.send(id, Packet::PingResp),
            Packet::Disconnect => self.end(id, End::Disconnect),
            Packet::Connect(_) => self.end(id, End::Malformed("second CONNECT")),
            _ => self.end(id, End::Malformed("a packet that only brokers send")),
        }
    }

    fn drained(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.writing = false;
        if connection.is_ready() {
            self.ready.insert(id);
        }
        if let Some(client) = connection.client.clone() {
            self.pump(&client);
        }
    }

    /// All that leaves for a client goes through here.
    fn send(&mut self, id: ConnectionId, packet: Packet) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let client = connection.client.as_ref();
        let Some(packet) = self.faults.withhold(id, client, packet) else { return };
        connection.encode(&packet);
        if connection.is_ready() {
            self.ready.insert(id);
        }
    }

    fn set_deadline(&mut self, id: ConnectionId, deadline: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
            self.deadlines.remove(&(old, id));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
    }

    /// Forgets the connection, its session if that is clean, and publishes its will if it must.
    fn end(&mut self, id: ConnectionId, why: End) {
        self.set_deadline(id, None);
        let Some(mut connection) = self.connections.remove(&id) else { return };
        debug!(connection = id.0, client = connection.client.as_ref().map(ClientId::as_str), ?why, "ended");
        self.count_end(why);
        self.ready.remove(&id);
        self.faults.ended(id);
        connection.waiting.clear(&mut self.queued_bytes);
        if connection.is_ready() && !matches!(why, End::Lost | End::Fault | End::Restart) {
            self.closing.push_back(Output::Write(id, connection.take_ready()));
        }
        if why != End::Lost {
            self.closing.push_back(Output::Close(id));
        }
        if let Some(client) = connection.client {
            self.detach(&client);
        }
        if let Some(will) = connection.will
            && !matches!(why, End::Disconnect | End::Restart)
        {
            self.counters.wills += 1;
            self.publish(will.message, will.retain);
        }
    }

    fn detach(&mut self, client: &ClientId) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        session.connection = None;
        if session.clean {
            self.forget(client);
        }
    }

    fn count_end(&mut self, why: End) {
        let counters = &mut self.counters;
        let counter = match why {
            End::Disconnect => &mut counters.disconnects,
            End::Lost => &mut counters.lost,
            End::TakenOver => &mut counters.taken_over,
            End::ConnectTimeout => &mut counters.closed_connect_timeout,
            End::KeepAlive => &mut counters.closed_keep_alive,
            End::Malformed(_) => &mut counters.closed_malformed,
            End::TooLarge => &mut counters.closed_too_large,
            End::Fault => &mut counters.closed_by_fault,
            End::Refused => &mut counters.connects_refused,
            End::Restart => &mut counters.closed_by_restart,
        };
        *counter += 1;
    }
}

/// Sessions.
impl Broker {
    /// MQTT 3.1.1 §3.1.4.
    fn connect(&mut self, now: Instant, id: ConnectionId, connect: Connect) {
        let Ok(will) = will(&connect) else { return self.end(id, End::Malformed("topic of the will")) };
        let client = match self.admit(&connect) {
            Ok(client) => client,
            Err(code) => return self.refuse(id, code),
        };
        if let Some(old) = self.sessions.get(&client).and_then(|session| session.connection) {
            self.end(old, End::TakenOver);
        }
        if connect.clean_session {
            self.forget(&client);
        }
        let session_present = self.sessions.contains_key(&client);
        let session = self.sessions.entry(client.clone()).or_default();
        (session.connection, session.clean) = (Some(id), connect.clean_session);
        let resend = session.resume();

        let silence_max = Duration::from_millis(u64::from(connect.keep_alive) * 1500);
        let silence_max = (!silence_max.is_zero()).then_some(silence_max);
        self.set_deadline(id, silence_max.map(|silence| now + silence));
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.client = Some(client.clone());
        connection.silence_max = silence_max;
        connection.will = will;
        self.counters.connects_accepted += 1;
        debug!(connection = id.0, client = client.as_str(), session_present, "connected");

        self.cut_connected(id, &client);
        self.send(id, Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present)));
        self.counters.redelivered += resend.len() as u64;
        for packet in resend {
            self.send(id, packet);
        }
        self.pump(&client);
    }

    /// Whether and under which id a client is let in.
    fn admit(&mut self, connect: &Connect) -> Result<ClientId, ConnectReturnCode> {
        let client = match connect.client_id.as_str() {
            "" if connect.clean_session => self.anonymous_id(),
            given => ClientId::new(given).ok(),
        };
        let client = client.ok_or(ConnectReturnCode::BadClientId)?;
        if let Some(code) = self.faults.refuse(&client) {
            return Err(code);
        }
        if !self.sessions.contains_key(&client) && self.sessions.len() >= self.limits.sessions {
            return Err(ConnectReturnCode::ServiceUnavailable);
        }
        Ok(client)
    }

    /// An id that no session has (MQTT 3.1.1 §3.1.3.1).
    fn anonymous_id(&mut self) -> Option<ClientId> {
        loop {
            self.anonymous += 1;
            let client = ClientId::new(format!("auto-{}", self.anonymous)).ok()?;
            if !self.sessions.contains_key(&client) {
                return Some(client);
            }
        }
    }

    fn refuse(&mut self, id: ConnectionId, code: ConnectReturnCode) {
        self.send(id, Packet::ConnAck(ConnAck::new(code, false)));
        self.end(id, End::Refused);
    }

    fn forget(&mut self, client: &ClientId) {
        let Some(mut session) = self.sessions.remove(client) else { return };
        session.waiting.clear(&mut self.queued_bytes);
        for filter in session.subscriptions.keys() {
            self.unroute(client, filter);
        }
    }

    /// MQTT 3.1.1 §3.8.4. Retained messages follow the SUBACK, filter by filter.
    fn subscribe(&mut self, id: ConnectionId, client: &ClientId, subscribe: Subscribe) {
        let mut granted = Vec::new();
        let codes = subscribe.filters.iter().map(|asked| {
            let subscription = self.grant(client, asked);
            granted.extend(subscription.clone());
            match subscription {
                Some((_, qos)) => SubscribeReasonCode::Success(qos),
                None => SubscribeReasonCode::Failure,
            }
        });
        let codes = codes.collect();
        self.send(id, Packet::SubAck(SubAck::new(subscribe.pkid, codes)));
        for (filter, qos) in granted {
            for message in self.retained_for(&filter) {
                let qos = lower(qos, message.qos);
                self.deliver(client, Delivery { message, qos, retain: true });
            }
        }
    }

    /// Enters a subscription, or replaces the one of the same filter. Interpretation: a bad filter is answered with 0x80
    /// and its neighbours are served, where MQTT 3.1.1 §4.7 leaves the choice.
    fn grant(&mut self, client: &ClientId, asked: &SubscribeFilter) -> Option<(TopicFilter, QoS)> {
        let session = self.sessions.get_mut(client)?;
        let filter =
            TopicFilter::new(&asked.path).ok().filter(|filter| filter.levels().next() != Some("$share"));
        let full = session.subscriptions.len() >= self.limits.subscriptions;
        let filter = filter.filter(|filter| !full || session.subscriptions.contains_key(filter));
        let qos = self.faults.grant(client, asked.qos);
        let (Some(filter), Some(qos)) = (filter, qos) else {
            self.counters.filters_refused += 1;
            return None;
        };
        session.subscriptions.insert(filter.clone(), qos);
        self.subscribers.get_or_default(&filter).insert(client.clone(), qos);
        Some((filter, qos))
    }

    fn unsubscribe(&mut self, id: ConnectionId, client: &ClientId, unsubscribe: &Unsubscribe) {
        for filter in unsubscribe.topics.iter().filter_map(|filter| TopicFilter::new(filter).ok()) {
            if let Some(session) = self.sessions.get_mut(client) {
                session.subscriptions.remove(&filter);
            }
            self.unroute(client, &filter);
        }
        self.send(id, Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)));
    }

    fn unroute(&mut self, client: &ClientId, filter: &TopicFilter) {
        let Some(subscribers) = self.subscribers.get_mut(filter) else { return };
        subscribers.remove(client);
        if subscribers.is_empty() {
            self.subscribers.remove(filter);
        }
    }
}

/// Messages.
impl Broker {
    /// A PUBLISH of a client (MQTT 3.1.1 §4.3). It is routed at once; a QoS 2 id is then kept until its PUBREL.
    fn published(&mut self, id: ConnectionId, client: &ClientId, publish: Publish) {
        let Ok(topic) = TopicName::new(&publish.topic) else {
            return self.end(id, End::Malformed("topic of a PUBLISH"));
        };
        let Some(session) = self.sessions.get_mut(client) else { return };
        let qos = publish.qos;
        if qos == QoS::ExactlyOnce && !session.received.insert(publish.pkid) {
            self.counters.duplicates += 1;
            return self.send(id, Packet::PubRec(PubRec::new(publish.pkid)));
        }
        self.counters.published += 1;
        // A copy, because the slice would keep the whole read buffer.
        let payload = Bytes::copy_from_slice(&publish.payload);
        self.publish(Arc::new(Message { topic, qos, payload }), publish.retain);
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.send(id, Packet::PubAck(PubAck::new(publish.pkid))),
            QoS::ExactlyOnce => self.send(id, Packet::PubRec(PubRec::new(publish.pkid))),
        }
    }

    fn puback(&mut self, client: &ClientId, pkid: u16) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        if session.puback(pkid) { self.pump(client) } else { self.counters.stray_acks += 1 }
    }

    /// A PUBREC that nothing waits for gets its PUBREL too: the client could not let go of the id otherwise.
    fn pubrec(&mut self, id: ConnectionId, client: &ClientId, pkid: u16) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        let received = session.pubrec(pkid);
        self.counters.stray_acks += u64::from(received != Received::Expected);
        if received != Received::Wrong {
            self.send(id, Packet::PubRel(PubRel::new(pkid)));
        }
    }

    fn pubrel(&mut self, id: ConnectionId, client: &ClientId, pkid: u16) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        self.counters.stray_acks += u64::from(!session.received.remove(&pkid));
        self.send(id, Packet::PubComp(PubComp::new(pkid)));
    }

    fn pubcomp(&mut self, client: &ClientId, pkid: u16) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        if session.pubcomp(pkid) { self.pump(client) } else { self.counters.stray_acks += 1 }
    }

    /// Interpretation: a client with several matching filters gets one copy, at the highest QoS it was granted for them
    /// (MQTT 3.1.1 §3.3.5 allows one or one per filter, see [`Fault::CopyPerFilter`]).
    fn publish(&mut self, message: Arc<Message>, retain: bool) {
        if retain {
            self.retain(&message);
        }
        let mut recipients = BTreeMap::new();
        let mut copies = 0;
        self.subscribers.matches(&message.topic, |_, subscribers| {
            copies += u32::from(self.faults.copy_per_filter);
            for (client, &granted) in subscribers {
                let qos = recipients.entry((client.clone(), copies)).or_insert(granted);
                *qos = if granted > *qos { granted } else { *qos };
            }
        });
        for ((client, _), granted) in recipients {
            let qos = lower(granted, message.qos);
            self.deliver(&client, Delivery { message: message.clone(), qos, retain: false });
        }
    }

    /// MQTT 3.1.1 §3.3.1.3: the last retained message of a topic counts, and an empty one clears it.
    fn retain(&mut self, message: &Arc<Message>) {
        if let Some(old) = self.retained.remove(&message.topic) {
            self.retained_bytes -= old.bytes();
        }
        if message.payload.is_empty() {
            return;
        }
        let bytes = self.retained_bytes + message.bytes();
        if self.retained.len() >= self.limits.retained || bytes > self.limits.retained_bytes {
            self.counters.retained_refused += 1;
            return;
        }
        self.retained_bytes = bytes;
        self.retained.insert(message.topic.clone(), message.clone());
    }

    /// Looks only at topics that begin like the filter.
    fn retained_for(&self, filter: &TopicFilter) -> Vec<Arc<Message>> {
        let literal: Vec<_> = filter.levels().take_while(|level| !matches!(*level, "+" | "#")).collect();
        let literal = literal.join("/");
        let begins = |topic: &TopicName| topic.as_str().starts_with(&literal);
        let matching =
            |(topic, message): (&TopicName, &Arc<Message>)| filter.matches(topic).then(|| message.clone());
        match TopicName::new(&literal) {
            Ok(from) => self
                .retained
                .range(from..)
                .take_while(|(topic, _)| begins(topic))
                .filter_map(matching)
                .collect(),
            Err(_) => self.retained.iter().filter_map(matching).collect(),
        }
    }

    /// Queues a message for a client and sends what it may. A message that finds no room is shed and counted.
    fn deliver(&mut self, client: &ClientId, delivery: Delivery) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        let qos0 = delivery.qos == QoS::AtMostOnce;
        let queue = if qos0 {
            let connection = session.connection.and_then(|id| self.connections.get_mut(&id));
            let Some(connection) = connection else {
                self.counters.shed_offline_qos0 += 1;
                return;
            };
            &mut connection.waiting
        } else {
            &mut session.waiting
        };
        match queue.push(delivery, &self.limits, &mut self.queued_bytes) {
            Ok(()) => self.pump(client),
            Err(Full::Total) => self.counters.shed_queue_total += 1,
            Err(_) if qos0 => self.counters.shed_slow_qos0 += 1,
            Err(Full::Messages) => self.counters.shed_queue_messages += 1,
            Err(Full::Bytes) => self.counters.shed_queue_bytes += 1,
        }
    }

    /// Sends what waits for a client, as far as its window and the mark of [`Limits::write_ahead`] allow.
    fn pump(&mut self, client: &ClientId) {
        while let Some(session) = self.sessions.get_mut(client)
            && let Some(id) = session.connection
            && let Some(connection) = self.connections.get_mut(&id)
            && connection.out.len() < self.limits.write_ahead
        {
            let publish = match connection.waiting.pop(&mut self.queued_bytes) {
                Some(delivery) => Some(delivery.publish(0, false)),
                None => session.next(&self.limits, &mut self.queued_bytes),
            };
            let Some(publish) = publish else { return };
            self.counters.delivered += 1;
            self.send(id, Packet::Publish(publish));
        }
    }
}

/// The will of a CONNECT, or that its topic is none.
fn will(connect: &Connect) -> Result<Option<Will>, crate::topic::NameError> {
    let Some(will) = &connect.last_will else { return Ok(None) };
    let topic = TopicName::new(&will.topic)?;
    let message = Message { topic, qos: will.qos, payload: Bytes::copy_from_slice(&will.message) };
    Ok(Some(Will { message: Arc::new(message), retain: will.retain }))
}

fn lower(a: QoS, b: QoS) -> QoS {
    if a < b { a } else { b }
}
