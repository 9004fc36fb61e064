//! Connections and the embedded broker as values, joined by a network that is in the hand of the test.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::broker::{Broker, ConnectionId, Fault, Input, Limits, Output};
use mqtt_sn_gateway::mqtt::{Connection, DeliveryId, Event, Failure, Message, Options, Protocol, QoS, Token};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};

use crate::translator::{Meaning, Translator};

/// Rounds of [`World::run`] in which something still moves: more is a livelock.
const ROUNDS_MAX: usize = 2_000;

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) broker: Broker,
    pub(crate) clients: Vec<Client>,
    opened: u64,
    /// Connections whose end the broker has not heard of.
    half_open: Vec<ConnectionId>,
}

/// A connection, its owner and its socket.
pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) events: Vec<Event>,
    pub(crate) failures: Vec<Failure>,
    /// How often it connected.
    pub(crate) connects: usize,
    /// Whether it connects whenever it is not connected.
    pub(crate) online: bool,
    link: Option<Link>,
}

struct Link {
    id: ConnectionId,
    up: Vec<u8>,
    down: Vec<u8>,
    /// For MQTT 5.
    translator: Option<Translator>,
    /// The broker waits to hear that `down` has been read.
    drain: bool,
    /// The broker has closed it; what is in `down` still arrives.
    closed: bool,
}

impl World {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            now: Instant::now(),
            broker: Broker::new(limits),
            clients: Vec::new(),
            opened: 0,
            half_open: Vec::new(),
        }
    }

    /// Adds a client that is online and says its number.
    pub(crate) fn client(&mut self, options: Options) -> usize {
        self.clients.push(Client {
            connection: Connection::new(options),
            events: Vec::new(),
            failures: Vec::new(),
            connects: 0,
            online: true,
            link: None,
        });
        self.clients.len() - 1
    }

    /// Lets everything flow until nothing moves.
    #[track_caller]
    pub(crate) fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            for client in 0..self.clients.len() {
                moved |= self.connect(client);
                moved |= self.send(client);
                moved |= self.deliver_up(client, usize::MAX);
                moved |= self.serve();
                moved |= self.deliver_down(client, usize::MAX);
                moved |= self.collect(client);
            }
            if !moved {
                return;
            }
        }
        panic!("still moving after {ROUNDS_MAX} rounds");
    }

    /// Runs for `duration` of virtual time.
    #[track_caller]
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..ROUNDS_MAX {
            self.run();
            let Some(next) = self.next_deadline().filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.timeouts();
        }
        panic!("still moving after {ROUNDS_MAX} deadlines");
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let clients = self.clients.iter().filter_map(|client| client.connection.poll_timeout());
        clients.chain(self.broker.poll_timeout()).min()
    }

    pub(crate) fn timeouts(&mut self) {
        self.broker.handle_timeout(self.now);
        for client in 0..self.clients.len() {
            if let Err(failure) = self.clients[client].connection.handle_timeout(self.now) {
                self.clients[client].failures.push(failure);
                self.cut(client, true);
            }
        }
    }

    /// Connects if the client should be online and is not.
    pub(crate) fn connect(&mut self, client: usize) -> bool {
        let client = &mut self.clients[client];
        if client.link.is_some() || !client.online {
            return false;
        }
        self.opened += 1;
        client.connects += 1;
        let id = ConnectionId(self.opened);
        let translator = match client.connection.options().protocol {
            Protocol::V4 => None,
            Protocol::V5 => Some(Translator::default()),
        };
        client.link =
            Some(Link { id, up: Vec::new(), down: Vec::new(), translator, drain: false, closed: false });
        client.connection.handle_connected(self.now).unwrap();
        self.broker.handle(self.now, Input::Opened(id));
        true
    }

    /// Takes output if the last one has left.
    pub(crate) fn send(&mut self, client: usize) -> bool {
        let client = &mut self.clients[client];
        let Some(link) = client.link.as_mut().filter(|link| link.up.is_empty()) else { return false };
        let Some(output) = client.connection.take_output(self.now) else { return false };
        link.up.extend_from_slice(&output);
        true
    }

    /// Lets octets leave that were taken before. Whether there is a socket for them.
    pub(crate) fn write(&mut self, client: usize, octets: &[u8]) -> bool {
        let Some(link) = &mut self.clients[client].link else { return false };
        link.up.extend_from_slice(octets);
        true
    }

    /// Lets so many octets arrive at the broker.
    pub(crate) fn deliver_up(&mut self, client: usize, octets: usize) -> bool {
        let Some(link) = &mut self.clients[client].link else { return false };
        let octets = octets.min(link.up.len());
        if octets == 0 || link.closed {
            return false;
        }
        let bytes: Bytes = link.up.drain(..octets).collect();
        let id = link.id;
        let meanings = match &mut link.translator {
            None => vec![Meaning::Octets(bytes)],
            Some(translator) => translator.up(&bytes),
        };
        for meaning in meanings {
            match meaning {
                Meaning::Octets(octets) => self.broker.handle(self.now, Input::Bytes(id, octets)),
                Meaning::Forget(client) => self.broker.inject(self.now, Fault::ForgetSession { client }),
            }
        }
        true
    }

    /// Takes what the broker wants done.
    pub(crate) fn serve(&mut self) -> bool {
        let mut moved = false;
        while let Some(output) = self.broker.poll_output() {
            moved = true;
            let (Output::Write(id, _) | Output::Close(id)) = &output;
            let link =
                self.clients.iter_mut().filter_map(|client| client.link.as_mut()).find(|link| link.id == *id);
            match (link, output) {
                (Some(link), Output::Write(_, bytes)) => {
                    match &mut link.translator {
                        None => link.down.extend_from_slice(&bytes),
                        Some(translator) => link.down.extend_from_slice(&translator.down(&bytes)),
                    }
                    link.drain = true;
                }
                (Some(link), Output::Close(_)) => link.closed = true,
                (None, _) => {}
            }
        }
        moved
    }

    /// Lets so many octets arrive at the client.
    pub(crate) fn deliver_down(&mut self, number: usize, octets: usize) -> bool {
        let client = &mut self.clients[number];
        let Some(link) = &mut client.link else { return false };
        let octets = octets.min(link.down.len());
        let bytes: Vec<u8> = link.down.drain(..octets).collect();
        if link.down.is_empty() && std::mem::take(&mut link.drain) {
            self.broker.handle(self.now, Input::Drained(link.id));
        }
        let closed = link.closed && link.down.is_empty();
        if let Err(failure) = client.connection.handle_bytes(self.now, &bytes) {
            client.failures.push(failure);
            self.cut(number, true);
        } else if closed {
            self.cut(number, true);
        }
        octets > 0 || closed
    }

    /// Cuts the connection; what is on its way is lost. The broker hears of it now or at [`World::tell_broker`].
    pub(crate) fn cut(&mut self, client: usize, tell_broker: bool) {
        let Some(link) = self.clients[client].link.take() else { return };
        self.clients[client].connection.handle_closed();
        if tell_broker {
            self.broker.handle(self.now, Input::Closed(link.id));
        } else {
            self.half_open.push(link.id);
        }
    }

    pub(crate) fn tell_broker(&mut self) {
        for id in std::mem::take(&mut self.half_open) {
            self.broker.handle(self.now, Input::Closed(id));
        }
    }

    /// Takes the events; does what [`Event::Reconnect`] and [`Event::Purged`] ask for.
    pub(crate) fn collect(&mut self, number: usize) -> bool {
        let mut moved = false;
        while let Some(event) = self.clients[number].connection.poll_event() {
            moved = true;
            if matches!(event, Event::Reconnect | Event::Purged) {
                self.send(number);
                self.deliver_up(number, usize::MAX);
                self.cut(number, true);
            }
            if event == Event::Purged {
                self.clients[number].online = false;
            }
            self.clients[number].events.push(event);
        }
        moved
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        self.broker.inject(self.now, fault);
    }

    /// Publishes `payload` on topic `t`.
    #[track_caller]
    pub(crate) fn publish(&mut self, client: usize, qos: QoS, payload: impl ToString) -> Option<Token> {
        self.clients[client].connection.publish(message(qos, payload)).unwrap()
    }

    /// Subscribes to topic `t`.
    pub(crate) fn subscribe(&mut self, client: usize, qos: QoS) -> Token {
        let filter = TopicFilter::new("t").unwrap();
        self.clients[client].connection.subscribe(&[(filter, qos)]).unwrap()
    }
}

impl Client {
    pub(crate) fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// Tokens that are over, in order.
    pub(crate) fn completed(&self) -> Vec<Token> {
        let token =
            |event: &Event| if let Event::Completed(token, Ok(())) = event { Some(*token) } else { None };
        self.events.iter().filter_map(token).collect()
    }

    /// Payloads of messages from the broker, in order, and the deliveries to settle.
    pub(crate) fn messages(&self) -> Vec<(String, Option<DeliveryId>)> {
        let message = |event: &Event| match event {
            Event::Message { message, delivery, .. } => {
                Some((String::from_utf8_lossy(&message.payload).into_owned(), *delivery))
            }
            _ => None,
        };
        self.events.iter().filter_map(message).collect()
    }

    pub(crate) fn payloads(&self) -> Vec<String> {
        self.messages().into_iter().map(|(payload, _)| payload).collect()
    }

    pub(crate) fn settle_all(&mut self) {
        for (_, delivery) in self.messages() {
            delivery.into_iter().for_each(|delivery| self.connection.settle(delivery));
        }
    }
}

pub(crate) fn options(protocol: Protocol, client: &str) -> Options {
    Options { protocol, ..Options::new(client) }
}

pub(crate) fn message(qos: QoS, payload: impl ToString) -> Message {
    let topic = TopicName::new("t").unwrap();
    Message { topic, payload: Bytes::from(payload.to_string()), qos, retain: false }
}

pub(crate) fn id(client: &str) -> ClientId {
    ClientId::new(client).unwrap()
}

/// How often each payload is there.
pub(crate) fn counted(payloads: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for payload in payloads {
        *counts.entry(payload).or_default() += 1;
    }
    counts
}
