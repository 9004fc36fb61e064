//! A gateway, peers around it, and a broker that says what the test tells it to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::gateway::Gateway;
use mqtt_sn_gateway::gateway::io::{
    Address, Answer, BrokerSettings, Endpoint, Input, LinkCommand, LinkEvent, LinkFailure, LinkId, Mode,
    Output, Peer, PortId, PortSettings, Protocol, QueueFull, QueueSettings, Rebind, RequestId, Route,
    SessionSettings, Settings, Target, Wills,
};
use mqtt_sn_gateway::gateway::record::{ClientKey, Key, Lsn, Outcome, Record, Row};
use mqtt_sn_gateway::topic::{ClientId, TopicName};
use mqtt_sn_gateway::wire::{
    Connect, Disconnect, FilterRef, Frame, MsgIdOnly, Packet, PingReq, Publish, Qos, Register, Response,
    ReturnCode, Subscribe, TopicAck, TopicRef, Unsubscribe, decode,
};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

pub const RETRY: Duration = Duration::from_secs(10);

/// Which peer: a port number on one host.
pub type At = u16;

/// Whose link: a client's, or the gateway's, which may have several.
type Owner = (Option<ClientId>, usize);

pub struct World {
    pub now: Instant,
    pub gw: Gateway,
    /// The link that the test plays the broker of.
    link: Option<LinkId>,
    /// The last connection of each link.
    connections: BTreeMap<Owner, LinkId>,
    to_broker: BTreeMap<Owner, BytesMut>,
    owners: BTreeMap<LinkId, Owner>,
    open: BTreeSet<LinkId>,
    /// Of those, the ones that are connected.
    answered: BTreeSet<LinkId>,
    frames: VecDeque<(Target, Bytes)>,
    broadcasts: VecDeque<Bytes>,
    /// Writes of the gateway since the last look.
    pub writes: usize,
    /// Commands for links other than writes, in order.
    pub commands: VecDeque<(LinkId, LinkCommand)>,
    pub stopped: bool,
    /// What the operator was told and nobody has looked at.
    pub answers: VecDeque<(RequestId, Answer)>,
    hold_drained: bool,
    settings: Settings,
    pub store: Store,
    /// The broker answers PINGREQ by itself, and the test sees nothing of it.
    pub answers_pings: bool,
}

/// What a store keeps, and when it says so.
pub struct Store {
    /// What is there after a crash.
    pub rows: BTreeMap<Key, Row>,
    pub answers: Answers,
    /// Batches that are not durable.
    waiting: VecDeque<(Lsn, Vec<Record>)>,
    last: Lsn,
    /// Records handed out since the last look, by what is done (`+` insert, `=` update, `-` delete) to what.
    handed: Vec<String>,
}

/// When the store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Each batch at once.
    AtOnce,
    /// It hangs.
    Never,
    /// It cannot write.
    Unavailable,
}

impl Store {
    fn new(rows: BTreeMap<Key, Row>) -> Self {
        let (waiting, handed) = (VecDeque::new(), Vec::new());
        Self { rows, answers: Answers::AtOnce, waiting, last: Lsn(0), handed }
    }

    fn take(&mut self, lsn: Lsn, records: Vec<Record>) {
        assert_eq!(lsn.0, self.last.0 + 1, "batches are numbered without a gap");
        assert!(!records.is_empty());
        self.last = lsn;
        self.handed.extend(records.iter().map(describe));
        self.waiting.push_back((lsn, records));
    }

    /// Makes everything up to this batch durable.
    fn commit(&mut self, lsn: Lsn) {
        while self.waiting.front().is_some_and(|(waiting, _)| *waiting <= lsn) {
            for record in self.waiting.pop_front().unwrap().1 {
                match record {
                    Record::Insert(row) => {
                        let before = self.rows.insert(row.key(), row.clone());
                        assert_eq!(before, None, "inserted twice: {row:?}");
                    }
                    Record::Update(row) => {
                        let before = self.rows.insert(row.key(), row.clone());
                        assert!(before.is_some(), "updated and never inserted: {row:?}");
                        assert_ne!(before, Some(row), "written for nothing");
                    }
                    Record::Delete(key) => {
                        assert!(self.rows.remove(&key).is_some(), "deleted and never inserted: {key:?}");
                    }
                }
            }
        }
    }

    /// Rows that sessions and what waits for them have.
    pub fn rows_of_clients(&self) -> usize {
        let of_clients = |key: &&Key| matches!(key, Key::Client(..) | Key::Message(_));
        self.rows.keys().filter(of_clients).count()
    }
}

fn describe(record: &Record) -> String {
    let (sign, key) = match record {
        Record::Insert(row) => ('+', row.key()),
        Record::Update(row) => ('=', row.key()),
        Record::Delete(key) => ('-', key.clone()),
    };
    let what = match key {
        Key::Gateway => "gateway",
        Key::Message(_) => "message",
        Key::Received(..) | Key::Client(_, ClientKey::Received(_)) => "received",
        Key::Filter(..) => "filter",
        Key::Client(_, ClientKey::Session) => "session",
        Key::Client(_, ClientKey::Will) => "will",
        Key::Client(_, ClientKey::Topic(_)) => "topic",
        Key::Client(_, ClientKey::Subscription(_)) => "subscription",
        Key::Client(_, ClientKey::Waiting(_)) => "waiting",
        Key::Client(_, ClientKey::Releasing(_)) => "releasing",
        Key::Client(_, ClientKey::Exchange(_)) => "exchange",
        Key::Client(_, ClientKey::Uplink(_)) => "uplink",
    };
    format!("{sign}{what}")
}

pub fn settings() -> Settings {
    let name = |text: &str| TopicName::new(text).unwrap();
    Settings {
        gw_id: 0x2A,
        advertise_interval: Duration::from_secs(1200),
        ports: vec![PortSettings {
            name: "lan".into(),
            mode: Mode::Aggregating,
            mtu: 1024,
            retry_interval: RETRY,
            retry_limit: 3,
            forwarders: true,
            qos_minus_one: true,
            advertise: true,
        }],
        broker: BrokerSettings {
            endpoints: vec![Endpoint { host: "broker".into(), port: 1883, tls: false }],
            protocol: Protocol::V311,
            client_id: "gw".into(),
            client_id_is_random: false,
            credentials: None,
            client_credentials: BTreeMap::new(),
            client_id_template: "%c".into(),
            wills: Wills::Gateway,
            outage_queue: None,
            grace: Duration::from_secs(60),
            keep_alive: Duration::ZERO,
            ack_timeout: Duration::from_secs(8),
            connect_timeout: Duration::from_secs(10),
        },
        predefined: BTreeMap::from([(1, name("pre/one")), (2, name("pre/two"))]),
        client_predefined: BTreeMap::new(),
        sessions: SessionSettings {
            max: 100,
            expiry: Duration::from_secs(86_400),
            max_topics: 100,
            max_subscriptions: 10,
            queue: QueueSettings { messages: 10, bytes: 4096, full: QueueFull::DropOldest, qos0: true },
            queue_total: 1 << 20,
            rebind: Rebind::SameIp,
        },
        lasting: false,
        seed: 7,
    }
}

/// A gateway whose broker is there.
pub fn world() -> World {
    world_with(|_| {})
}

pub fn world_with(change: impl FnOnce(&mut Settings)) -> World {
    let mut world = offline_world(change);
    world.broker_up(false);
    world
}

/// A gateway that has not reached its broker yet.
pub fn offline_world(change: impl FnOnce(&mut Settings)) -> World {
    crate::log::listen();
    let mut settings = settings();
    change(&mut settings);
    let now = Instant::now();
    let mut world = World {
        now,
        gw: if settings.lasting {
            Gateway::restore(settings.clone(), [], now)
        } else {
            Gateway::new(settings.clone(), now)
        },
        link: None,
        connections: BTreeMap::new(),
        to_broker: BTreeMap::new(),
        owners: BTreeMap::new(),
        open: BTreeSet::new(),
        answered: BTreeSet::new(),
        frames: VecDeque::new(),
        broadcasts: VecDeque::new(),
        writes: 0,
        commands: VecDeque::new(),
        stopped: false,
        answers: VecDeque::new(),
        hold_drained: false,
        settings,
        store: Store::new(BTreeMap::new()),
        answers_pings: false,
    };
    world.gw.handle_timeout(now);
    world.drain();
    world.store.handed.clear();
    world
}

pub fn peer(at: At) -> Peer {
    Peer { port: PortId(0), addr: address(at), node: None }
}

fn address(at: At) -> Address {
    Address::Udp(SocketAddr::from(([10, 0, 0, 1], at)))
}

impl World {
    pub fn input(&mut self, input: Input) {
        self.gw.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.gw.poll_output() {
            match output {
                Output::Send { to: Target::Broadcast { .. }, frame } => self.broadcasts.push_back(frame),
                Output::Send { to, frame } => self.frames.push_back((to, frame)),
                // The driver has no such connection any more.
                Output::Link(id, LinkCommand::Write(_)) if !self.open.contains(&id) => {}
                Output::Link(id, LinkCommand::Write(octets))
                    if self.answers_pings && octets[..] == [0xC0, 0] =>
                {
                    self.gw.handle(self.now, Input::Link(id, LinkEvent::Drained));
                    let pong = Bytes::from_static(&[0xD0, 0]);
                    self.gw.handle(self.now, Input::Link(id, LinkEvent::Bytes(pong)));
                }
                Output::Link(id, LinkCommand::Write(octets)) => {
                    self.to_broker.entry(self.owners[&id].clone()).or_default().extend_from_slice(&octets);
                    self.writes += 1;
                    if !self.hold_drained {
                        self.gw.handle(self.now, Input::Link(id, LinkEvent::Drained));
                    }
                }
                Output::Link(id, command) => {
                    if let LinkCommand::Connect { client, .. } = &command {
                        let is_taken = |owner: &Owner| {
                            self.connections.get(owner).is_some_and(|link| self.open.contains(link))
                        };
                        let mut owners = (0..).map(|number| (client.clone(), number));
                        let owner = owners.find(|owner| client.is_some() || !is_taken(owner)).unwrap();
                        self.connections.insert(owner.clone(), id);
                        self.owners.insert(id, owner);
                        self.open.insert(id);
                        self.link = Some(id);
                    }
                    if command == LinkCommand::Close {
                        self.open.remove(&id);
                    }
                    self.commands.push_back((id, command));
                }
                Output::Store { lsn, records } => {
                    self.store.take(lsn, records);
                    match self.store.answers {
                        Answers::AtOnce => {
                            self.store.commit(lsn);
                            self.gw.handle(self.now, Input::Stored(lsn, Outcome::Durable));
                        }
                        Answers::Never => {}
                        Answers::Unavailable => {
                            self.gw.handle(self.now, Input::Stored(lsn, Outcome::Unavailable));
                        }
                    }
                }
                Output::Answer(request, answer) => self.answers.push_back((request, answer)),
                Output::Stopped => self.stopped = true,
            }
        }
        if let Some(at) = self.gw.poll_timeout() {
            assert!(at > self.now || self.frames.len() < 10_000, "a deadline that does not move");
        }
    }

    // The store.

    /// From now on the store answers like this. When it answers, what waits for it becomes durable.
    pub fn store_answers(&mut self, answers: Answers) {
        self.store.answers = answers;
        let last = self.store.last;
        match answers {
            Answers::AtOnce => self.store_commits(last),
            Answers::Never => {}
            Answers::Unavailable => self.input(Input::Stored(last, Outcome::Unavailable)),
        }
    }

    /// Batches that were handed out and are not durable.
    pub fn waiting_batches(&self) -> usize {
        self.store.waiting.len()
    }

    /// So many of them are written, and nobody hears of it before the process dies.
    pub fn crash_when_written(&mut self, batches: usize) {
        if let Some((lsn, _)) = batches.checked_sub(1).and_then(|at| self.store.waiting.get(at)) {
            self.store.commit(*lsn);
        }
        self.crash();
    }

    /// Everything up to this batch is durable.
    pub fn store_commits(&mut self, lsn: Lsn) {
        self.store.commit(lsn);
        self.input(Input::Stored(lsn, Outcome::Durable));
    }

    /// The batch that was handed out last.
    pub fn last_batch(&self) -> Lsn {
        self.store.last
    }

    /// What was handed out to be stored since the last look.
    pub fn handed(&mut self) -> String {
        std::mem::take(&mut self.store.handed).join(" ")
    }

    /// The process dies; the next one finds what was durable, and has asked for a connection to the broker.
    pub fn crash(&mut self) {
        self.crash_with(|_| {});
    }

    /// As [`World::crash`], with other settings for the next process.
    pub fn crash_with(&mut self, change: impl FnOnce(&mut Settings)) {
        self.settings.seed += 1;
        change(&mut self.settings);
        let mut rows: Vec<_> = self.store.rows.values().cloned().collect();
        // As a store gives them, and the other way round.
        if self.settings.seed.is_multiple_of(2) {
            rows.reverse();
        }
        self.gw = Gateway::restore(self.settings.clone(), rows, self.now);
        self.store = Store::new(std::mem::take(&mut self.store.rows));
        self.link = None;
        self.connections.clear();
        self.to_broker.clear();
        self.owners.clear();
        self.open.clear();
        self.answered.clear();
        self.frames.clear();
        self.broadcasts.clear();
        self.commands.clear();
        self.answers.clear();
        (self.writes, self.stopped, self.hold_drained) = (0, false, false);
        self.gw.handle_timeout(self.now);
        self.drain();
    }

    /// The process dies, and the next one finds the broker, which was restarted too. What it says there first is passed over.
    pub fn restart(&mut self) {
        self.restart_with(|_| {});
    }

    /// As [`World::restart`], with other settings for the next process.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Settings)) {
        self.crash_with(change);
        self.broker_up(false);
        self.stream().clear();
    }

    /// When everybody has been silent for long enough, nothing is left of them.
    #[track_caller]
    pub fn leaves_nothing(mut self) {
        self.store_answers(Answers::AtOnce);
        self.pass(2 * self.settings.sessions.expiry + Duration::from_secs(200_000));
        // Also Wills, which are kept until the broker has them.
        while self.try_link_of(None)
            && let Some(packet) = self.broker_try_next()
        {
            if let v4::Packet::Publish(v4::Publish { qos: QoS::AtLeastOnce, pkid, .. }) = packet {
                self.broker_says(v4::Packet::PubAck(v4::PubAck { pkid }));
            }
        }
        assert_eq!(self.gw.sessions(), 0, "sessions");
        assert_eq!((self.gw.waiting_messages(), self.gw.queued_octets()), (0, 0), "messages");
        assert_eq!(self.store.rows_of_clients(), 0, "{:#?}", self.store.rows);
    }

    /// Several frames before outputs are taken.
    pub fn batch(&mut self, frames: &[(At, Packet<'_>)]) {
        for (at, packet) in frames {
            let frame = encode(packet);
            self.gw.handle(self.now, Input::Frame { from: peer(*at), route: Route::default(), frame });
        }
        self.drain();
    }

    /// From now on a write stays under way until [`World::drained`].
    pub fn hold_drained(&mut self) {
        self.hold_drained = true;
    }

    pub fn drained(&mut self) {
        let id = self.link.unwrap();
        self.input(Input::Link(id, LinkEvent::Drained));
    }

    /// Lets time pass, with everything that is due on the way.
    pub fn pass(&mut self, time: Duration) {
        self.wakes(time);
    }

    /// As [`World::pass`]; when the gateway was woken for it.
    pub fn wakes(&mut self, time: Duration) -> Vec<Instant> {
        let (end, mut wakes) = (self.now + time, Vec::new());
        while let Some(at) = self.gw.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            wakes.push(self.now);
            self.gw.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
        wakes
    }

    pub fn send(&mut self, at: At, packet: Packet<'_>) {
        let frame = encode(&packet);
        self.send_octets(at, frame);
    }

    pub fn send_octets(&mut self, at: At, frame: Bytes) {
        self.input(Input::Frame { from: peer(at), route: Route::default(), frame });
    }

    /// The next frame, which must be for this peer.
    #[track_caller]
    pub fn next(&mut self, at: At) -> Bytes {
        let (to, frame) = self.frames.pop_front().expect("a frame");
        let expected = Target::Unicast { port: PortId(0), addr: address(at), route: Route::default() };
        assert_eq!(to, expected, "{}", decode(&frame).unwrap());
        frame
    }

    /// The next frame, whomever it is for.
    #[track_caller]
    pub fn next_frame(&mut self) -> Bytes {
        self.frames.pop_front().expect("a frame").1
    }

    /// The next frame, and where it goes.
    pub fn try_next(&mut self) -> Option<(Target, Bytes)> {
        self.frames.pop_front()
    }

    /// The next frame for this peer, whatever comes for others before it.
    #[track_caller]
    pub fn next_to(&mut self, at: At) -> Bytes {
        let expected = Target::Unicast { port: PortId(0), addr: address(at), route: Route::default() };
        let index = self.frames.iter().position(|(to, _)| *to == expected).expect("a frame");
        self.frames.remove(index).unwrap().1
    }

    /// All frames, for whomever.
    pub fn taken(&mut self) -> Vec<Bytes> {
        self.frames.drain(..).map(|(_, frame)| frame).collect()
    }

    #[track_caller]
    pub fn expect(&mut self, at: At, packet: Packet<'_>) {
        let frame = self.next(at);
        let got = decode(&frame).unwrap();
        assert_eq!(got, Frame { encapsulation: None, packet }, "got {got}, expected {packet}");
    }

    #[track_caller]
    pub fn expect_broadcast(&mut self, packet: Packet<'_>) {
        let frame = self.broadcasts.pop_front().expect("a broadcast");
        assert_eq!(decode(&frame).unwrap().packet, packet);
    }

    pub fn try_broadcast(&mut self) -> bool {
        self.broadcasts.pop_front().is_some()
    }

    #[track_caller]
    pub fn no_broadcast(&self) {
        assert!(self.broadcasts.is_empty());
    }

    #[track_caller]
    pub fn quiet(&mut self) {
        if let Some((_, frame)) = self.frames.front() {
            panic!("unexpected {}", decode(frame).unwrap());
        }
    }

    // The broker.

    /// From here on the test plays the broker of this client's own link, or with `None` of the gateway's.
    #[track_caller]
    pub fn on_link_of(&mut self, client: Option<&str>) {
        let client = client.map(|id| ClientId::new(id.as_bytes()).unwrap());
        self.link = Some(*self.connections.get(&(client, 0)).expect("a link of the client"));
    }

    /// From here on the test plays the broker of this one of the gateway's links: 0 is its own, the others are further ones.
    #[track_caller]
    pub fn on_lane(&mut self, number: usize) {
        self.link = Some(*self.connections.get(&(None, number)).expect("a link of the gateway"));
    }

    /// Links of the gateway that have not been closed.
    pub fn lanes(&self) -> usize {
        self.open.iter().filter(|link| self.owners[link].0.is_none()).count()
    }

    /// Whether the gateway waits for this connection.
    pub fn is_asked_for(&self) -> bool {
        self.link.is_some_and(|link| self.open.contains(&link) && !self.answered.contains(&link))
    }

    /// The TCP connection that the gateway asked for is there.
    pub fn broker_answers_tcp(&mut self) {
        let id = self.link.expect("the gateway asked for a connection");
        self.answered.insert(id);
        self.input(Input::Link(id, LinkEvent::Connected));
    }

    /// What the gateway has written on this link and nobody has looked at.
    fn stream(&mut self) -> &mut BytesMut {
        self.to_broker.entry(self.owners[&self.link.expect("a link")].clone()).or_default()
    }

    /// Accepts the connection that the gateway asked for.
    pub fn broker_up(&mut self, session_present: bool) {
        self.broker_hears_connect();
        self.broker_accepts(session_present);
    }

    pub fn broker_down(&mut self) {
        self.broker_down_with(LinkFailure::Closed);
    }

    pub fn broker_down_with(&mut self, failure: LinkFailure) {
        let id = self.link.unwrap();
        self.to_broker.remove(&self.owners[&id]);
        self.open.remove(&id);
        self.input(Input::Link(id, LinkEvent::Closed(failure)));
    }

    pub fn broker_says(&mut self, packet: v4::Packet) {
        let mut octets = BytesMut::new();
        packet.write(&mut octets, usize::MAX).unwrap();
        let id = self.link.unwrap();
        self.input(Input::Link(id, LinkEvent::Bytes(octets.freeze())));
    }

    /// Octets of the broker, with a look at how many outputs wait at a time; returns the most.
    pub fn burst(&mut self, octets: Bytes) -> usize {
        let id = self.link.unwrap();
        self.gw.handle(self.now, Input::Link(id, LinkEvent::Bytes(octets)));
        let mut most = self.gw.waiting_outputs();
        while let Some(output) = self.gw.poll_output() {
            most = most.max(self.gw.waiting_outputs());
            if let Output::Send { to, frame } = output {
                self.frames.push_back((to, frame));
            }
        }
        most
    }

    /// Whatever octets, if there is a connection.
    pub fn broker_octets(&mut self, octets: Bytes) {
        let id = self.link.unwrap();
        self.input(Input::Link(id, LinkEvent::Bytes(octets)));
    }

    /// All octets at the broker, of which there are some.
    #[track_caller]
    pub fn broker_takes_octets(&mut self) -> BytesMut {
        assert!(!self.stream().is_empty(), "nothing at the broker");
        self.stream().split()
    }

    #[track_caller]
    pub fn broker_takes_nothing(&mut self) {
        assert!(self.stream().is_empty(), "{:02x?}", &self.stream()[..]);
    }

    #[track_caller]
    pub fn broker_next(&mut self) -> v4::Packet {
        v4::Packet::read(self.stream(), usize::MAX).expect("a packet at the broker")
    }

    /// The next packet at the broker, if there is one.
    pub fn broker_try_next(&mut self) -> Option<v4::Packet> {
        self.link.filter(|link| self.open.contains(link))?;
        v4::Packet::read(self.stream(), usize::MAX).ok()
    }

    /// As [`World::on_link_of`], if there is such a connection: the youngest, for the store may hold back that another is closed.
    pub fn try_link_of(&mut self, client: Option<&str>) -> bool {
        let client = client.map(|id| ClientId::new(id.as_bytes()).unwrap());
        self.link = self.open.iter().rfind(|link| self.owners[link].0 == client).copied();
        self.link.is_some()
    }

    #[track_caller]
    pub fn broker_quiet(&mut self) {
        assert!(self.stream().is_empty(), "{:?}", v4::Packet::read(self.stream(), usize::MAX));
    }

    /// The next packet at the broker is this message; returns its packet id.
    #[track_caller]
    pub fn broker_gets(&mut self, topic: &str, payload: &str, qos: QoS) -> u16 {
        match self.broker_next() {
            v4::Packet::Publish(publish) => {
                assert_eq!((publish.topic.as_str(), publish.qos), (topic, qos));
                assert_eq!(publish.payload, payload);
                publish.pkid
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn broker_gets_subscribe(&mut self, filter: &str, qos: QoS) -> u16 {
        match self.broker_next() {
            v4::Packet::Subscribe(subscribe) => {
                let filters: Vec<_> = subscribe.filters.iter().map(|f| (f.path.as_str(), f.qos)).collect();
                assert_eq!(filters, [(filter, qos)]);
                subscribe.pkid
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn broker_grants(&mut self, pkid: u16, qos: QoS) {
        let return_codes = vec![v4::SubscribeReasonCode::Success(qos)];
        self.broker_says(v4::Packet::SubAck(v4::SubAck { pkid, return_codes }));
    }

    pub fn broker_publishes(&mut self, pkid: u16, topic: &str, payload: &str, qos: QoS) {
        let mut publish = v4::Publish::new(topic, qos, payload);
        publish.pkid = pkid;
        self.broker_says(v4::Packet::Publish(publish));
    }

    pub fn broker_publishes_retained(&mut self, topic: &str, payload: &str) {
        let mut publish = v4::Publish::new(topic, QoS::AtMostOnce, payload);
        publish.retain = true;
        self.broker_says(v4::Packet::Publish(publish));
    }

    // Clients.

    /// The next frame is a REGISTER of this name; returns its ids.
    #[track_caller]
    pub fn expect_register(&mut self, at: At, name: &str) -> (u16, u16) {
        let frame = self.next(at);
        match decode(&frame).unwrap().packet {
            Packet::Register(Register { topic_id, msg_id, topic_name }) => {
                assert_eq!(topic_name, name.as_bytes());
                (topic_id, msg_id)
            }
            other => panic!("{other}"),
        }
    }

    /// The next frame is a PUBLISH like this; returns its MsgId.
    #[track_caller]
    pub fn expect_publish(&mut self, at: At, topic: TopicRef, qos: Qos, dup: bool, data: &str) -> u16 {
        let frame = self.next(at);
        match decode(&frame).unwrap().packet {
            Packet::Publish(publish) => {
                let got = (publish.topic, publish.qos, publish.dup, publish.data);
                assert_eq!(got, (topic, qos, dup, data.as_bytes()));
                publish.msg_id
            }
            other => panic!("{other}"),
        }
    }
}

pub fn encode(packet: &Packet<'_>) -> Bytes {
    let mut out = BytesMut::new();
    packet.encode(&mut out).unwrap();
    out.freeze()
}

pub fn sn_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

pub fn connect_with(id: &str, will: bool, clean_session: bool, duration: u16) -> Packet<'_> {
    Packet::Connect(Connect { will, clean_session, protocol_id: 1, duration, client_id: id.as_bytes() })
}

pub fn connect(id: &str) -> Packet<'_> {
    connect_with(id, false, true, 60)
}

pub fn connack(code: ReturnCode) -> Packet<'static> {
    Packet::ConnAck(Response { code })
}

pub fn publish(topic: TopicRef, qos: Qos, msg_id: u16, data: &str) -> Packet<'_> {
    Packet::Publish(Publish { dup: false, qos, retain: false, topic, msg_id, data: data.as_bytes() })
}

pub fn publish_again(topic: TopicRef, qos: Qos, msg_id: u16, data: &str) -> Packet<'_> {
    Packet::Publish(Publish { dup: true, qos, retain: false, topic, msg_id, data: data.as_bytes() })
}

pub fn puback(topic: TopicRef, msg_id: u16, code: ReturnCode) -> Packet<'static> {
    Packet::PubAck(TopicAck { topic_id: topic.raw(), msg_id, code })
}

pub fn regack(topic_id: u16, msg_id: u16, code: ReturnCode) -> Packet<'static> {
    Packet::RegAck(TopicAck { topic_id, msg_id, code })
}

pub fn pubrec(msg_id: u16) -> Packet<'static> {
    Packet::PubRec(MsgIdOnly { msg_id })
}

pub fn pubrel(msg_id: u16) -> Packet<'static> {
    Packet::PubRel(MsgIdOnly { msg_id })
}

pub fn pubcomp(msg_id: u16) -> Packet<'static> {
    Packet::PubComp(MsgIdOnly { msg_id })
}

pub fn subscribe(msg_id: u16, filter: &str, qos: Qos) -> Packet<'_> {
    Packet::Subscribe(Subscribe { dup: false, qos, msg_id, topic: FilterRef::Name(filter.as_bytes()) })
}

pub fn unsubscribe(msg_id: u16, filter: &str) -> Packet<'_> {
    Packet::Unsubscribe(Unsubscribe { msg_id, topic: FilterRef::Name(filter.as_bytes()) })
}

pub fn disconnect() -> Packet<'static> {
    Packet::Disconnect(Disconnect { duration: None })
}

/// DISCONNECT of a client that falls asleep.
pub fn sleep(seconds: u16) -> Packet<'static> {
    Packet::Disconnect(Disconnect { duration: Some(seconds) })
}

pub fn pingreq() -> Packet<'static> {
    Packet::PingReq(PingReq { client_id: &[] })
}

/// PINGREQ of a client that sleeps, and says which it is.
pub fn pingreq_of(id: &str) -> Packet<'_> {
    Packet::PingReq(PingReq { client_id: id.as_bytes() })
}
