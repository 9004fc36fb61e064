//! A client that publishes and is published to, one message after the other, while the gateway crashes, connections break and
//! the broker goes away, in any order: what is acknowledged arrives, in order, and of QoS 2 once (design promises G1 to G3).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{LinkFailure, Mode, OutageQueue};
use mqtt_sn_gateway::gateway::record::{ClientKey, Key, Lsn};
use mqtt_sn_gateway::wire::{Packet, Publish, Qos, ReturnCode, TopicRef, WillMsg, WillTopic, decode};
use rumqttc::mqttbytes::v4;
use rumqttc::{ConnectReturnCode, QoS};

use crate::world::*;

const A: At = 1;
const T: TopicRef = TopicRef::Short(*b"tt");

/// What the broker is like.
#[derive(Debug, Clone, Copy)]
struct Kind {
    transparent: bool,
    /// It publishes a message of QoS 2 at PUBREL, as Mosquitto does, else at PUBLISH.
    at_release: bool,
    /// Its session outlives a connection.
    keeps: bool,
}

/// What the client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Publishing,
    Releasing,
}

struct Play {
    w: World,
    rng: fastrand::Rng,
    kind: Kind,
    committed: u64,
    away: bool,
    /// The connection by which the client is served has had its CONNACK.
    accepted: bool,
    // The client.
    doing: Doing,
    number: u16,
    done: Vec<u16>,
    holds: BTreeSet<u16>,
    got: Vec<String>,
    // The broker: what came, what it has published, and what it sends, by packet id, and whether it has PUBREC.
    held: BTreeMap<u16, u16>,
    arrived: Vec<u16>,
    published: Vec<u16>,
    sends: VecDeque<(u16, u16, bool)>,
    sent: u16,
    /// Packets that it has heard.
    heard: u32,
}

impl Play {
    fn new(seed: u64, kind: Kind) -> Self {
        let w = world_with(|settings| {
            settings.lasting = true;
            let age = Duration::from_secs(3600);
            settings.broker.outage_queue = Some(OutageQueue { messages: 50, bytes: 2000, age });
            settings.broker.grace = Duration::from_secs(86_400);
            settings.sessions.queue.messages = 1000;
            settings.sessions.queue.bytes = 1 << 20;
            if kind.transparent {
                settings.ports[0].mode = Mode::Transparent;
            }
        });
        let mut play = Self {
            w,
            rng: fastrand::Rng::with_seed(seed),
            kind,
            committed: 0,
            away: false,
            accepted: true,
            doing: Doing::Nothing,
            number: 0,
            done: Vec::new(),
            holds: BTreeSet::new(),
            got: Vec::new(),
            held: BTreeMap::new(),
            arrived: Vec::new(),
            published: Vec::new(),
            sends: VecDeque::new(),
            sent: 0,
            heard: 0,
        };
        play.begin();
        play
    }

    fn begin(&mut self) {
        let w = &mut self.w;
        w.send(A, connect_with("n1", false, false, 0));
        if self.kind.transparent {
            w.on_link_of(Some("n1"));
            w.broker_up(false);
        }
        w.expect(A, connack(ReturnCode::Accepted));
        w.subscribed(A, "dn", QoS::ExactlyOnce);
        w.store_answers(Answers::Never);
        self.committed = w.last_batch().0;
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..35 => self.client(),
            35..65 => self.broker(),
            65..88 => self.commit(),
            88..91 => self.sends_one(),
            91..93 => {
                self.w.pass(Duration::from_millis(8500));
                self.repeat();
            }
            93..95 => self.w.pass(Duration::from_secs(2)),
            95..97 => self.crash(),
            97..99 => {
                if self.is_up() {
                    self.w.broker_down_with(LinkFailure::Io("reset".into()));
                    self.lose();
                }
            }
            _ => self.away = !self.away && self.rng.bool(),
        }
    }

    fn on_link(&mut self) -> bool {
        self.w.try_link_of(self.kind.transparent.then_some("n1"))
    }

    fn is_up(&mut self) -> bool {
        self.on_link() && !self.w.is_asked_for() && self.accepted
    }

    fn crash(&mut self) {
        self.crash_when_written(0);
    }

    fn crash_when_written(&mut self, batches: usize) {
        self.w.crash_when_written(batches);
        self.committed = self.w.last_batch().0;
        self.w.store_answers(Answers::Never);
        self.lose();
    }

    /// A connection has ended.
    fn lose(&mut self) {
        self.accepted = false;
        if !self.kind.keeps {
            self.held.clear();
            self.sends.clear();
        }
    }

    fn commit(&mut self) {
        if self.committed < self.w.last_batch().0 {
            self.committed += 1;
            self.w.store_commits(Lsn(self.committed));
        }
    }

    fn client(&mut self) {
        let frames = self.w.taken();
        if frames.is_empty() && (self.doing == Doing::Nothing || self.rng.u8(..8) == 0) {
            if self.doing == Doing::Nothing {
                self.number += 1;
                self.doing = Doing::Publishing;
                return self.publish(false);
            }
            return self.repeat();
        }
        for frame in frames {
            self.takes(decode(&frame).unwrap().packet);
        }
    }

    fn takes(&mut self, packet: Packet<'_>) {
        match packet {
            Packet::PubAck(ack) if ack.msg_id == self.number && self.doing == Doing::Publishing => {
                if ack.code == ReturnCode::Accepted && self.qos() == Qos::AtLeastOnce {
                    self.ends();
                }
            }
            Packet::PubRec(ack) if ack.msg_id == self.number && self.doing != Doing::Nothing => {
                self.doing = Doing::Releasing;
                self.w.send(A, pubrel(self.number));
            }
            Packet::PubComp(ack) if ack.msg_id == self.number && self.doing == Doing::Releasing => {
                self.ends();
            }
            Packet::Publish(Publish { msg_id, data, .. }) => {
                if self.holds.insert(msg_id) {
                    self.got.push(String::from_utf8(data.to_vec()).unwrap());
                }
                self.w.send(A, pubrec(msg_id));
            }
            Packet::PubRel(release) => {
                self.holds.remove(&release.msg_id);
                self.w.send(A, pubcomp(release.msg_id));
            }
            Packet::Register(register) => {
                self.w.send(A, regack(register.topic_id, register.msg_id, ReturnCode::Accepted));
            }
            Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_) => {}
            other => panic!("{other}"),
        }
    }

    fn ends(&mut self) {
        self.done.push(self.number);
        self.doing = Doing::Nothing;
    }

    fn qos(&self) -> Qos {
        if self.number.is_multiple_of(3) { Qos::AtLeastOnce } else { Qos::ExactlyOnce }
    }

    fn publish(&mut self, again: bool) {
        let data = self.number.to_string();
        let make = if again { publish_again } else { publish };
        self.w.send(A, make(T, self.qos(), self.number, &data));
    }

    fn repeat(&mut self) {
        match self.doing {
            Doing::Nothing => {}
            Doing::Publishing => self.publish(true),
            Doing::Releasing => self.w.send(A, pubrel(self.number)),
        }
    }

    /// The broker does the next thing on a connection, or accepts one.
    fn broker(&mut self) {
        if self.away {
            return;
        }
        if self.kind.transparent && self.w.try_link_of(None) {
            if self.w.is_asked_for() {
                self.w.broker_answers_tcp();
            }
            match self.w.broker_try_next() {
                Some(v4::Packet::Connect(_)) => self.w.broker_says(accepted(true)),
                None => {}
                other => panic!("{other:?}"),
            }
        }
        if !self.on_link() {
            return;
        }
        if self.w.is_asked_for() {
            self.lose();
            // Of the connection before, if the gateway closed that.
            while self.w.broker_try_next().is_some() {}
            self.w.broker_answers_tcp();
        }
        if let Some(packet) = self.w.broker_try_next() {
            self.hears(packet);
        }
    }

    fn hears(&mut self, packet: v4::Packet) {
        self.heard += 1;
        match packet {
            v4::Packet::Publish(publish) => {
                let pkid = publish.pkid;
                let number = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
                if publish.qos == QoS::AtLeastOnce {
                    self.arrived.push(number);
                    self.published.push(number);
                    return self.w.broker_pubacks(pkid);
                }
                if self.held.insert(pkid, number).is_none() {
                    self.arrived.push(number);
                    self.published.extend((!self.kind.at_release).then_some(number));
                }
                self.w.broker_pubrecs(pkid);
            }
            v4::Packet::Connect(connect) => {
                assert!(!connect.clean_session);
                self.w.broker_says(accepted(self.kind.keeps));
                for (id, number, released) in self.sends.clone() {
                    self.says(id, number, released, true);
                }
                self.accepted = true;
            }
            v4::Packet::PubRel(v4::PubRel { pkid }) => {
                let number = self.held.remove(&pkid);
                self.published.extend(number.filter(|_| self.kind.at_release));
                self.w.broker_pubcomps(pkid);
            }
            v4::Packet::PubRec(v4::PubRec { pkid }) => {
                if let Some(send) = self.sends.iter_mut().find(|(id, ..)| *id == pkid) {
                    send.2 = true;
                }
                self.w.broker_pubrels(pkid);
            }
            v4::Packet::PubComp(v4::PubComp { pkid }) => self.sends.retain(|(id, ..)| *id != pkid),
            v4::Packet::Subscribe(subscribe) => self.w.broker_grants(subscribe.pkid, QoS::ExactlyOnce),
            other => panic!("{other:?}"),
        }
    }

    /// The broker has another message for the client; it uses packet ids again as soon as it can.
    fn sends_one(&mut self) {
        let up = self.is_up();
        if !self.kind.keeps && !up {
            return;
        }
        self.sent += 1;
        let id = (1..).find(|id| self.sends.iter().all(|(used, ..)| used != id)).unwrap();
        self.sends.push_back((id, self.sent, false));
        if up {
            self.says(id, self.sent, false, false);
        }
    }

    fn says(&mut self, pkid: u16, number: u16, released: bool, dup: bool) {
        if released {
            return self.w.broker_pubrels(pkid);
        }
        let mut publish = v4::Publish::new("dn", QoS::ExactlyOnce, number.to_string());
        (publish.pkid, publish.dup) = (pkid, dup);
        self.w.broker_says(v4::Packet::Publish(publish));
    }

    /// All goes well from here on.
    fn settle(&mut self) {
        self.settle_within(50);
    }

    fn settle_within(&mut self, rounds: u32) {
        self.away = false;
        self.w.store_answers(Answers::AtOnce);
        for _ in 0..rounds {
            self.w.pass(Duration::from_secs(2));
            for _ in 0..20 {
                let frames = self.w.taken();
                for frame in frames {
                    self.takes(decode(&frame).unwrap().packet);
                }
                self.broker();
            }
            self.repeat();
        }
    }

    fn check_order(&self, told: &str) {
        let mut seen = BTreeSet::new();
        let order = self.arrived.iter().filter(|number| seen.insert(**number));
        assert!(order.is_sorted(), "{:?}, {told}", self.arrived);
    }

    fn check(&mut self, told: &str) {
        assert_eq!(self.doing, Doing::Nothing, "{told}");
        assert_eq!(self.done, (1..=self.number).collect::<Vec<_>>(), "{told}");
        let times = |number: u16| self.published.iter().filter(|it| **it == number).count();
        for number in 1..=self.number {
            let once = number % 3 != 0 && self.kind.keeps;
            assert!(times(number) == 1 || !once, "{number} came {} times, {told}", times(number));
            assert!(times(number) > 0, "{number} is lost, {told}");
        }
        if self.kind.keeps {
            self.check_order(told);
            let expected: Vec<_> = (1..=self.sent).map(|number| number.to_string()).collect();
            assert_eq!(self.got, expected, "{told}");
        }
        assert!(self.w.gw.counters().clients_lost == 0 && self.holds.is_empty(), "{told}");
        assert_eq!((self.w.gw.kept_messages(), self.w.gw.waiting_messages()), (0, 0), "{told}");
        for key in self.w.store.rows.keys() {
            let stays = match key {
                // What was received from the broker goes with the next PINGRESP.
                Key::Gateway | Key::Filter(..) | Key::Received(..) => true,
                Key::Message(_) => false,
                Key::Client(_, key) => {
                    !matches!(key, ClientKey::Waiting(_) | ClientKey::Releasing(_) | ClientKey::Uplink(_))
                }
            };
            assert!(stays, "{key:?} is left behind, {told}");
        }
        let exchanges =
            self.w.store.rows.keys().filter(|key| matches!(key, Key::Client(_, ClientKey::Exchange(_))));
        assert!(exchanges.count() <= 16, "{told}");
    }
}

/// A conversation without chance.
#[derive(Debug, Clone, Copy)]
struct Script {
    /// Messages of the client, and of the broker.
    up: u16,
    down: u16,
    /// The broker is away when the first is sent, for longer than it may take to answer.
    outage: bool,
    /// Nothing else happens before everything is stored, else everything else does.
    stores_first: bool,
}

impl Play {
    /// The next thing happens. Whether there was one.
    fn advance(&mut self, script: Script) -> bool {
        if script.stores_first && self.commits() {
            return true;
        }
        let frames = self.w.taken();
        let has_heard = !frames.is_empty();
        frames.into_iter().for_each(|frame| self.takes(decode(&frame).unwrap().packet));
        if has_heard {
            return true;
        }
        if self.doing == Doing::Nothing && self.number < script.up {
            self.number += 1;
            self.doing = Doing::Publishing;
            self.publish(false);
            return true;
        }
        if !self.away && self.sent < script.down {
            self.sends_one();
            return true;
        }
        let heard = self.heard;
        self.broker();
        heard < self.heard || self.commits() || self.returns()
    }

    fn commits(&mut self) -> bool {
        let before = self.committed;
        self.commit();
        self.committed > before
    }

    /// The broker, if it is away, is back once everything has come to rest.
    fn returns(&mut self) -> bool {
        if std::mem::take(&mut self.away) {
            self.w.pass(Duration::from_secs(9));
            return true;
        }
        false
    }

    fn follows(&mut self, script: Script) {
        if script.outage {
            self.on_link();
            self.w.broker_down_with(LinkFailure::Io("reset".into()));
            self.lose();
            self.away = true;
        }
    }
}

/// How long a client with a Will may be silent, in seconds.
const KEEP_ALIVE: u16 = 10;

impl Play {
    /// A client with a Will of QoS 2, which is message 1, that is not heard any more.
    fn with_will(at_release: bool) -> Self {
        let mut play = Self::new(1, Kind { transparent: false, at_release, keeps: true });
        play.w.store_answers(Answers::AtOnce);
        play.w.send(A, connect_with("n1", true, false, KEEP_ALIVE));
        let will = WillTopic { qos: Qos::ExactlyOnce, retain: false, topic: b"w" };
        play.w.send(A, Packet::WillTopic(will));
        play.w.send(A, Packet::WillMsg(WillMsg { message: b"1" }));
        play.w.taken();
        play.w.store_answers(Answers::Never);
        play.committed = play.w.last_batch().0;
        play
    }

    /// The next thing happens to it. Whether there was one.
    fn fades(&mut self, stores_first: bool) -> bool {
        if stores_first && self.commits() {
            return true;
        }
        let heard = self.heard;
        self.broker();
        if heard < self.heard || self.commits() {
            return true;
        }
        let is_there = self.w.gw.counters().clients_lost == 0;
        if is_there {
            self.w.pass(Duration::from_secs(4));
        }
        is_there
    }
}

/// Lets the process die behind each event of a conversation, with each number of the batches that wait for the store written.
fn die_everywhere(kind: Kind, script: Script) {
    let mut behind = 0;
    loop {
        let mut written = 0;
        loop {
            let mut play = Play::new(1, kind);
            play.follows(script);
            let happened = (0..behind).all(|_| play.advance(script));
            if !happened {
                assert!(behind > 8, "there is a conversation: {behind}");
                return;
            }
            let waiting = play.w.waiting_batches();
            play.crash_when_written(written);
            play.settle_within(15);
            play.check(&format!(
                "{kind:?}, {script:?}, dead behind event {behind}, {written} of {waiting} written"
            ));
            if written == waiting {
                break;
            }
            written += 1;
        }
        behind += 1;
    }
}

fn accepted(session_present: bool) -> v4::Packet {
    v4::Packet::ConnAck(v4::ConnAck { session_present, code: ConnectReturnCode::Success })
}

fn play(seeds: std::ops::Range<u64>, kind: Kind) {
    for seed in seeds {
        let mut play = Play::new(seed, kind);
        for _ in 0..400 {
            play.step();
        }
        play.settle();
        play.check(&format!("seed {seed}, {kind:?}"));
        let mut w = play.w;
        w.send(A, disconnect());
        w.taken();
        w.leaves_nothing();
    }
}

#[test]
fn whatever_is_interrupted_on_the_shared_link_of_qos_2_comes_once() {
    for at_release in [true, false] {
        play(0..300, Kind { transparent: false, at_release, keeps: true });
    }
}

#[test]
fn whatever_is_interrupted_on_a_link_of_the_clients_own_of_qos_2_comes_once() {
    for at_release in [true, false] {
        play(0..300, Kind { transparent: true, at_release, keeps: true });
    }
}

#[test]
fn whatever_is_interrupted_nothing_is_lost_with_the_session_of_a_broker() {
    for transparent in [true, false] {
        play(0..150, Kind { transparent, at_release: true, keeps: false });
    }
}

fn die_everywhere_in(up: u16, down: u16, outage: bool) {
    for transparent in [false, true] {
        for at_release in [false, true] {
            let kind = Kind { transparent, at_release, keeps: true };
            for stores_first in [false, true] {
                die_everywhere(kind, Script { up, down, outage, stores_first });
            }
        }
    }
}

#[test]
fn a_crash_at_any_point_of_a_conversation_leaves_a_message_of_a_client_exactly_once() {
    die_everywhere_in(1, 0, false);
}

#[test]
fn a_crash_at_any_point_of_an_outage_leaves_what_was_kept_exactly_once_and_in_order() {
    die_everywhere_in(3, 0, true);
}

#[test]
fn a_crash_at_any_point_of_a_conversation_leaves_a_message_of_the_broker_exactly_once() {
    die_everywhere_in(0, 1, false);
}

#[test]
fn a_crash_at_any_point_leaves_messages_of_both_directions_exactly_once() {
    die_everywhere_in(2, 2, false);
}

#[test]
fn a_crash_at_any_point_before_and_after_a_client_is_lost_leaves_its_will_exactly_once() {
    for (at_release, stores_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut behind, mut over) = (0, false);
        while !over {
            for written in 0.. {
                let mut play = Play::with_will(at_release);
                over = !(0..behind).all(|_| play.fades(stores_first));
                let waiting = play.w.waiting_batches();
                play.crash_when_written(written);
                play.settle_within(20);
                let told = format!("dead behind event {behind}, {written} of {waiting} written");
                assert_eq!(play.published, [1], "{told}, at PUBREL {at_release}, store first {stores_first}");
                assert_eq!(play.w.gw.kept_messages(), 0, "{told}");
                if written == waiting {
                    break;
                }
            }
            behind += 1;
        }
        assert!(behind > 8, "there is a conversation");
    }
}
