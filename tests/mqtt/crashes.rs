//! An owner that crashes: between any two octets to or from the broker, before and after what it had to store was durable,
//! again and again; thousands of small worlds, each from a seed. `MQTT_SEED=17 cargo test --test mqtt crashes` plays one.
//!
//! The owner "o" sends to "s" and hears from "p", both at QoS 2 and both through the broker. Its store is written in
//! snapshots of all it knows, which become durable later, in order; what it gives to the socket waits for that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use mqtt_sn_gateway::broker::{Fault, Limits};
use mqtt_sn_gateway::mqtt::{
    Connection, DeliveryId, Event, Message, Options, Protocol, QoS, Received, Restored, RestoredPublish,
    Token, Trace,
};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use rumqttc::Packet;

use crate::cuts::Named;
use crate::translator::{Meaning, Translator};
use crate::world::{World, counted, id, message, options};

const OWNER: usize = 0;
const SUBSCRIBER: usize = 1;
const PUBLISHER: usize = 2;

/// Worlds of one test, in each version of MQTT.
const SEEDS: u64 = 1_500;

in_both_versions! {
    exactly_once_both_ways_over_crashes_between_any_two_octets,
    at_least_once_both_ways_over_crashes_although_the_broker_forgets_the_session,
}

/// Figures of many worlds, to see that they had something to survive.
#[derive(Debug, Default)]
struct Figures {
    up: usize,
    down: usize,
    crashes: usize,
    /// Crashes that found publishes sent, released; messages of the broker received.
    restored: [usize; 3],
    /// Crashes before the last snapshots were durable, and with output that had not been written.
    volatile: usize,
    held: usize,
    /// Crashes of an owner whose CONNECT was perhaps not answered.
    doubted: usize,
    cuts: usize,
    forgotten: usize,
    /// Publishes that waited again.
    again: usize,
    doubled: usize,
    calm: usize,
}

fn exactly_once_both_ways_over_crashes_between_any_two_octets(protocol: Protocol) {
    let figures = play_all(|seed| play(protocol, seed, false));
    assert!(figures.up >= 20_000 && figures.down >= 20_000 && figures.crashes >= 10_000, "{figures:?}");
    assert!(figures.restored.iter().all(|restored| *restored >= 2_000), "{figures:?}");
    assert!(figures.volatile >= 1_000 && figures.held >= 1_000 && figures.doubted >= 500, "{figures:?}");
    assert!(figures.cuts >= 3_000 && figures.doubled == 0, "{figures:?}");
}

fn at_least_once_both_ways_over_crashes_although_the_broker_forgets_the_session(protocol: Protocol) {
    let figures = play_all(|seed| play(protocol, seed, true));
    assert!(figures.up >= 20_000 && figures.down >= 10_000 && figures.crashes >= 10_000, "{figures:?}");
    assert!(figures.forgotten >= 1_500 && figures.again >= 1_000 && figures.doubted >= 500, "{figures:?}");
    assert!(figures.calm < SEEDS as usize / 4, "{figures:?}");
}

fn play_all(play: impl Fn(u64) -> Figures) -> Figures {
    if let Some(seed) = std::env::var("MQTT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        panic!("seed {seed}: {:?}", play(seed));
    }
    let mut sum = Figures::default();
    for seed in 0..SEEDS {
        let named = Named(seed);
        let figures = play(seed);
        std::mem::forget(named);
        sum.up += figures.up;
        sum.down += figures.down;
        sum.crashes += figures.crashes;
        for (sum, restored) in sum.restored.iter_mut().zip(figures.restored) {
            *sum += restored;
        }
        sum.volatile += figures.volatile;
        sum.held += figures.held;
        sum.doubted += figures.doubted;
        sum.cuts += figures.cuts;
        sum.forgotten += figures.forgotten;
        sum.again += figures.again;
        sum.doubled += figures.doubled;
        sum.calm += figures.calm;
    }
    eprintln!("{sum:?}");
    sum
}

fn play(protocol: Protocol, seed: u64, forgets: bool) -> Figures {
    let mut play = Play::new(protocol, seed);
    let messages = play.rng.usize(12..25);
    let (crash_every, cut_every) = (play.rng.usize(15..100), play.rng.usize(30..200));
    let mut steps = 0;
    while play.figures.up < messages || play.figures.down < messages || play.rng.usize(0..200) > 0 {
        steps += 1;
        assert!(steps < 100_000, "the messages are never out");
        play.step(messages);
        if !play.calm && play.rng.usize(0..crash_every) == 0 {
            play.crash();
        }
        if !play.calm && play.rng.usize(0..cut_every) == 0 {
            play.figures.cuts += usize::from(play.world.clients[OWNER].is_linked());
            play.cut();
        }
        if forgets && play.rng.usize(0..150) == 0 {
            play.forget_session();
        }
    }
    play.settle_down();
    play.check(forgets);
    play.figures
}

struct Play {
    protocol: Protocol,
    rng: Rng,
    world: World,
    options: Options,
    owner: Owner,
    /// What is there after a crash, and what will be: snapshots by number.
    durable: (u64, State),
    committing: VecDeque<(u64, State)>,
    /// Messages of the owner that were durable once.
    promised: BTreeSet<u64>,
    /// Messages that the broker routed into the owner's session, in order; and to be found in its inbox at last.
    routed: Vec<String>,
    due: BTreeSet<String>,
    next: [u64; 2],
    /// How often the owner had connected when the broker last forgot its session.
    forgotten_at: Option<usize>,
    /// No more crashes and cuts: two faults have met that are too many, see the page of the module.
    calm: bool,
    figures: Figures,
}

/// What the process of the owner knows, beside the connection.
#[derive(Default)]
struct Owner {
    state: State,
    tokens: BTreeMap<Token, u64>,
    unsettled: Vec<DeliveryId>,
    /// Output, and the snapshot it waits for.
    held: Option<(u64, State, Bytes)>,
}

/// What the owner stores.
#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    publishes: BTreeMap<u64, Publish>,
    received: BTreeMap<u16, Received>,
    inbox: Vec<String>,
    subscribed: bool,
    /// A CONNECT may have left; its answer is not known.
    asking: bool,
    /// How often it had connected when it last heard that there was no session.
    lost_at: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
struct Publish {
    message: Message,
    packet: Option<u16>,
    released: bool,
}

impl Play {
    fn new(protocol: Protocol, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut world = World::new(Limits { window: rng.u16(1..10), ..Limits::default() });
        let mut options = options(protocol, "o");
        options.traced = true;
        options.window = rng.u16(1..10);
        options.window_exactly_once = rng.u16(1..10);
        options.buffer = rng.usize(1..300);
        world.client(options.clone());
        // A session that is found is one's own, also by the first process.
        (world.clients[OWNER].connection, _) = Connection::restore(options.clone(), Restored::default());
        for client in ["s", "p"] {
            world.client(crate::world::options(protocol, client));
        }
        world.subscribe(SUBSCRIBER, QoS::ExactlyOnce);
        let mut play = Self {
            protocol,
            rng,
            world,
            options,
            owner: Owner::default(),
            durable: (0, State::default()),
            committing: VecDeque::new(),
            promised: BTreeSet::new(),
            routed: Vec::new(),
            due: BTreeSet::new(),
            next: [0; 2],
            forgotten_at: None,
            calm: false,
            figures: Figures::default(),
        };
        for client in [SUBSCRIBER, PUBLISHER] {
            play.flow(client);
        }
        play
    }

    /// One small step of one of them.
    fn step(&mut self, messages: usize) {
        match self.rng.u8(0..12) {
            0 if self.figures.up < messages => self.publish_up(),
            1 if self.figures.down < messages => self.publish_down(),
            2 => self.connect(),
            3 => self.take(),
            4 | 5 => self.commit(),
            6 => self.write(),
            7 | 8 => {
                let octets = self.rng.usize(1..40);
                self.world.deliver_up(OWNER, octets);
                self.world.serve();
            }
            9 | 10 => {
                let octets = self.rng.usize(1..40);
                self.world.deliver_down(OWNER, octets);
                self.after_network();
            }
            _ => {
                self.settle();
                self.flow(SUBSCRIBER);
                if self.rng.bool() {
                    self.world.tell_broker();
                }
            }
        }
        self.work();
    }

    /// A new message of the owner; one in four at QoS 1.
    fn publish_up(&mut self) {
        self.figures.up += 1;
        self.next[0] += 1;
        let number = self.next[0];
        let qos = if self.rng.u8(0..4) == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let message = message(qos, number);
        let token = self.connection().publish(message.clone()).unwrap().unwrap();
        self.owner.tokens.insert(token, number);
        self.owner.state.publishes.insert(number, Publish { message, packet: None, released: false });
    }

    /// A message to the owner, which the broker routes at once.
    fn publish_down(&mut self) {
        self.figures.down += 1;
        self.next[1] += 1;
        let payload = self.next[1].to_string();
        let routed = self.is_routed();
        let topic = TopicName::new("down").unwrap();
        let message = Message { topic, ..message(QoS::ExactlyOnce, &payload) };
        self.world.clients[PUBLISHER].connection.publish(message).unwrap();
        self.flow(PUBLISHER);
        if routed {
            self.routed.push(payload.clone());
            self.due.insert(payload);
        }
    }

    fn is_routed(&self) -> bool {
        self.world.broker.session("o").is_some_and(|session| !session.subscriptions.is_empty())
    }

    /// The owner stores that it connects before it does.
    fn connect(&mut self) {
        if self.world.clients[OWNER].is_linked() {
            return;
        }
        self.owner.state.asking = true;
        if self.snapshot() <= self.durable.0 {
            self.world.connect(OWNER);
        }
    }

    /// Takes in all that the connection has to say: its traces before each event.
    fn work(&mut self) {
        loop {
            self.connection().prepare();
            self.trace();
            let Some(event) = self.connection().poll_event() else { break };
            self.event(event);
        }
        self.snapshot();
    }

    fn trace(&mut self) {
        let connects = self.world.clients[OWNER].connects;
        while let Some(trace) = self.connection().poll_trace() {
            match trace {
                Trace::Sent(token, packet) => self.row(token).packet = Some(packet),
                Trace::Released(token, packet) => {
                    let row = self.row(token);
                    assert_eq!(row.packet, Some(packet));
                    row.released = true;
                }
                Trace::Ended { token, packet, waits } => {
                    let row = self.row(token);
                    assert_eq!(row.packet.take(), Some(packet));
                    row.released = false;
                    if waits {
                        self.figures.again += 1;
                    } else {
                        let number = self.owner.tokens[&token];
                        self.owner.state.publishes.remove(&number);
                    }
                }
                Trace::Forgot(packet) => drop(self.owner.state.received.remove(&packet)),
                Trace::ForgotAll => {
                    self.owner.state.received.clear();
                    self.owner.state.lost_at = Some(connects);
                }
            }
        }
    }

    #[track_caller]
    fn row(&mut self, token: Token) -> &mut Publish {
        let number = self.owner.tokens[&token];
        self.owner.state.publishes.get_mut(&number).expect("a row")
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Connected { session_present } => {
                self.owner.state.asking = false;
                self.owner.state.subscribed &= session_present;
                if !self.owner.state.subscribed {
                    // The broker lost the session, and the owner could not learn of it.
                    self.calm |= self.forgotten_at > self.owner.state.lost_at;
                    let filter = TopicFilter::new("down").unwrap();
                    self.connection().subscribe(&[(filter, QoS::ExactlyOnce)]).unwrap();
                }
            }
            Event::Subscribed(_, granted) => {
                assert_eq!(granted, [Ok(QoS::ExactlyOnce)]);
                self.owner.state.subscribed = true;
            }
            Event::Completed(token, result) => {
                assert_eq!(result, Ok(()));
                let number = self.owner.tokens.remove(&token).expect("it completes once");
                self.owner.state.publishes.remove(&number);
            }
            Event::Received(_) => {}
            Event::Message { message, delivery, .. } => {
                let delivery = delivery.expect("QoS 2");
                self.owner.state.inbox.push(String::from_utf8_lossy(&message.payload).into_owned());
                let received = self.world.clients[OWNER].connection.received(delivery);
                self.owner.state.received.extend(received.map(|received| (received.packet, received)));
                self.owner.unsettled.push(delivery);
            }
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self) {
        if !self.owner.unsettled.is_empty() {
            let at = self.rng.usize(0..self.owner.unsettled.len());
            let delivery = self.owner.unsettled.swap_remove(at);
            self.connection().settle(delivery);
        }
    }

    /// Begins to store what is known, and says the number of it.
    fn snapshot(&mut self) -> u64 {
        let (number, state) = self.committing.back().unwrap_or(&self.durable);
        if *state == self.owner.state {
            return *number;
        }
        let number = number + 1;
        self.committing.push_back((number, self.owner.state.clone()));
        number
    }

    /// The oldest snapshot is durable.
    fn commit(&mut self) {
        let Some(snapshot) = self.committing.pop_front() else { return };
        self.durable = snapshot;
        self.promised.extend(self.durable.1.publishes.keys());
    }

    /// Takes output, unless there is some that waits to be written.
    fn take(&mut self) {
        if self.owner.held.is_some() || !self.world.clients[OWNER].is_linked() {
            return;
        }
        self.work();
        let now = self.world.now;
        if let Some(output) = self.connection().take_output(now) {
            assert_eq!(self.connection().poll_trace(), None);
            let number = self.snapshot();
            self.owner.held = Some((number, self.owner.state.clone(), output));
        }
    }

    /// Writes what was taken, if what it needs is durable.
    fn write(&mut self) {
        if let Some((_, state, output)) = self.owner.held.take_if(|held| held.0 <= self.durable.0) {
            self.check_order(&state, &output);
            self.world.write(OWNER, &output);
        }
    }

    /// Nothing leaves that is not stored.
    fn check_order(&self, state: &State, output: &[u8]) {
        let sent = |id| state.publishes.values().any(|row| row.packet == Some(id) && !row.released);
        let packets = packets(self.protocol, output);
        for (at, packet) in packets.iter().enumerate() {
            match packet {
                Packet::Publish(publish) if publish.qos == QoS::ExactlyOnce => {
                    assert!(sent(publish.pkid), "{publish:?} before {state:?}");
                }
                Packet::PubRec(ack) => {
                    assert!(state.received.contains_key(&ack.pkid), "{ack:?} before {state:?}");
                }
                Packet::PubRel(ack) => {
                    // For an id that is used for the first time the broker is told to forget what it may have under it.
                    let first =
                        matches!(packets.get(at + 1), Some(Packet::Publish(next)) if next.pkid == ack.pkid);
                    assert!(first || !sent(ack.pkid), "{ack:?} before {state:?}");
                }
                _ => {}
            }
        }
    }

    /// The process is gone; another begins with what was durable.
    fn crash(&mut self) {
        self.figures.crashes += 1;
        self.figures.volatile += usize::from(!self.committing.is_empty());
        self.figures.held += usize::from(self.owner.held.is_some());
        if self.rng.bool() {
            // What the process wrote is with the operating system.
            self.world.deliver_up(OWNER, usize::MAX);
            self.world.serve();
        }
        let tell_broker = self.rng.bool();
        self.world.cut(OWNER, tell_broker);
        self.committing.clear();

        let state = self.durable.1.clone();
        let publishes: Vec<RestoredPublish> = state.publishes.values().map(Publish::restored).collect();
        let released = publishes.iter().filter(|row| matches!(row, RestoredPublish::Released(..))).count();
        let sent = publishes.iter().filter(|row| matches!(row, RestoredPublish::Sent(..))).count();
        for (sum, restored) in self.figures.restored.iter_mut().zip([sent, released, state.received.len()]) {
            *sum += restored;
        }
        let restored = Restored { publishes, received: state.received.values().copied().collect() };
        let (mut connection, tokens) = Connection::restore(self.options.clone(), restored);
        if state.asking {
            self.figures.doubted += 1;
            connection.doubt();
        }
        self.world.clients[OWNER].connection = connection;
        let tokens = tokens.into_iter().zip(state.publishes.keys().copied()).collect();
        self.owner = Owner { state, tokens, ..Owner::default() };
    }

    fn cut(&mut self) {
        let tell_broker = self.rng.bool();
        self.world.cut(OWNER, tell_broker);
        self.after_network();
    }

    /// What was to be written to a socket that is gone is gone with it.
    fn after_network(&mut self) {
        if !self.world.clients[OWNER].is_linked() {
            self.owner.held = None;
        }
    }

    /// The broker loses the owner's session, and with it what it had not heard the owner take.
    fn forget_session(&mut self) {
        let Some(session) = self.world.broker.session("o") else { return };
        self.figures.forgotten += 1;
        for payload in &self.routed[self.routed.len() - session.queued..] {
            self.due.remove(payload);
        }
        for id in session.unacknowledged {
            self.due.remove(&self.routed[usize::from(id) - 1]); // ids begin at 1 and do not come round
        }
        self.routed.clear();
        self.forgotten_at = Some(self.world.clients[OWNER].connects);
        self.world.inject(Fault::ForgetSession { client: id("o") });
        self.world.serve();
    }

    /// Lets everything flow between the broker and a client that has no troubles.
    fn flow(&mut self, client: usize) {
        let world = &mut self.world;
        for _ in 0..1_000 {
            let mut moved = world.connect(client) | world.send(client);
            moved |= world.deliver_up(client, usize::MAX);
            moved |= world.serve();
            moved |= world.deliver_down(client, usize::MAX);
            let seen = world.clients[client].events.len();
            moved |= world.collect(client);
            let client = &mut world.clients[client];
            for event in &client.events[seen..] {
                if let Event::Message { delivery: Some(delivery), .. } = event {
                    client.connection.settle(*delivery);
                }
            }
            if !moved {
                return;
            }
        }
        panic!("it flows for ever");
    }

    /// No more faults: everything comes to its end.
    fn settle_down(&mut self) {
        let mut last_word = false;
        for _ in 0..10_000 {
            self.world.tell_broker();
            self.connect();
            self.work();
            self.settle();
            self.take();
            self.commit();
            self.write();
            self.world.deliver_up(OWNER, usize::MAX);
            self.world.serve();
            self.world.deliver_down(OWNER, usize::MAX);
            self.after_network();
            self.flow(SUBSCRIBER);
            if !last_word && self.world.clients[OWNER].connection.is_connected() && self.is_routed() {
                last_word = true;
                self.publish_down();
            }
            if last_word && self.is_quiet() {
                return;
            }
        }
        panic!(
            "it never comes to its end: {:?} {:?}",
            self.owner.state, self.world.clients[OWNER].connection
        );
    }

    fn is_quiet(&self) -> bool {
        let State { publishes, subscribed, asking, .. } = &self.durable.1;
        let session = self.world.broker.session("o");
        self.committing.is_empty()
            && self.owner.held.is_none()
            && publishes.is_empty()
            && (*subscribed, *asking) == (true, false)
            && self.world.clients[OWNER].connection.is_connected()
            && session.is_some_and(|s| {
                s.queued == 0
                    && s.unacknowledged.is_empty()
                    && s.releasing.is_empty()
                    && s.received.is_empty()
                    && s.subscriptions.len() == 1
            })
    }

    fn check(&mut self, forgets: bool) {
        for client in &self.world.clients {
            assert_eq!(client.failures, [], "an honest broker is never blamed");
        }
        assert_eq!(self.world.clients[OWNER].connection.unfinished(), 0);
        self.figures.calm += usize::from(self.calm);

        let messages = self.world.clients[SUBSCRIBER].events.iter().filter_map(|event| match event {
            Event::Message { message, .. } => Some(message.clone()),
            _ => None,
        });
        let text = |message: &Message| String::from_utf8_lossy(&message.payload).into_owned();
        let messages: Vec<Message> = messages.collect();
        let promised: BTreeSet<String> = self.promised.iter().map(u64::to_string).collect();
        let up = counted(messages.iter().map(text));
        assert_eq!(
            up.keys().cloned().collect::<BTreeSet<_>>(),
            promised,
            "what was stored, and nothing else"
        );
        let down = counted(self.durable.1.inbox.iter().cloned());
        let missing: Vec<_> = self.due.iter().filter(|payload| !down.contains_key(*payload)).collect();
        assert_eq!(missing, Vec::<&String>::new(), "never handed to the inbox");

        let twos: Vec<u64> = messages
            .iter()
            .filter(|message| message.qos == QoS::ExactlyOnce)
            .map(|message| text(message).parse().unwrap())
            .collect();
        self.figures.doubled += down.values().filter(|count| **count > 1).count();
        self.figures.doubled += counted(twos.iter().map(u64::to_string)).values().filter(|n| **n > 1).count();
        if !forgets {
            assert_eq!(self.figures.doubled, 0, "exactly once: {twos:?} {down:?}");
            assert!(twos.is_sorted(), "in order: {twos:?}");
        }
    }

    fn connection(&mut self) -> &mut Connection {
        &mut self.world.clients[OWNER].connection
    }
}

impl Publish {
    fn restored(&self) -> RestoredPublish {
        let message = self.message.clone();
        match self.packet {
            Some(packet) if self.released => RestoredPublish::Released(packet, message),
            Some(packet) => RestoredPublish::Sent(packet, message),
            None => RestoredPublish::Waiting(message),
        }
    }
}

/// All packets of an output; but for CONNECT, which the versions write differently, and which stands alone.
fn packets(protocol: Protocol, output: &[u8]) -> Vec<Packet> {
    let mut stream = BytesMut::new();
    match protocol {
        Protocol::V4 => stream.extend_from_slice(output),
        Protocol::V5 => {
            for meaning in Translator::default().up(output) {
                let Meaning::Octets(octets) = meaning else { continue };
                stream.extend_from_slice(&octets);
            }
        }
    }
    std::iter::from_fn(|| (!stream.is_empty()).then(|| Packet::read(&mut stream, usize::MAX).unwrap()))
        .collect()
}
