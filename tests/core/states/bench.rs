//! A gateway, clients that say whatever they like, and brokers that answer by themselves; frames and packets are told in
//! words, so that a table can hold them. Every frame that leaves is held against what must never happen (digest 3.21).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::gateway::Gateway;
use mqtt_sn_gateway::gateway::io::{
    Address, Input, LinkCommand, LinkEvent, LinkFailure, LinkId, Mode, Output, Peer, PortId, Route, Settings,
    Target,
};
use mqtt_sn_gateway::gateway::record::Outcome;
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{
    Disconnect, FilterRef, MsgIdOnly, Packet, Publish, Qos, Register, Response, ReturnCode, SubAck, TopicAck,
    TopicRef, decode,
};
use rumqttc::mqttbytes::v4;
use rumqttc::{ConnectReturnCode, QoS};

use crate::world::{At, encode, settings};

/// Node ids of clients behind a forwarder begin so.
const NODE: u8 = 0x0A;

/// The port of that forwarder.
const FORWARDER: u16 = 9;

/// How often the gateway asks in vain before it may ask for something else: once and N_RETRY times again.
const COPIES: u32 = 4;

/// How a conversation is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    pub mode: Mode,
    /// CleanSession of the client that it is about.
    pub clean: bool,
    /// Whether clients are nodes behind a forwarder.
    pub forwarded: bool,
}

impl How {
    /// Whether every variant of a message is tried so: each in either mode and with either CleanSession, but not in all
    /// four, for the time it takes.
    pub fn has_variants(self) -> bool {
        !self.forwarded && self.clean == (self.mode == Mode::Aggregating)
    }
}

/// What the brokers do not answer, for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    Nothing,
    /// PUBREL is left unanswered.
    Release,
    /// PUBLISH too.
    Publish,
    /// And CONNECT.
    Connect,
}

/// What the gateway asked of the client last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    pub msg_id: u16,
    pub topic_id: u16,
}

pub struct Bench {
    pub how: How,
    pub now: Instant,
    pub gw: Gateway,
    links: BTreeMap<LinkId, Link>,
    /// Sessions without a connection, by client id.
    sessions: BTreeMap<String, Session>,
    pub hold: Hold,
    held: VecDeque<(LinkId, v4::Packet)>,
    frames: VecDeque<(At, String)>,
    /// What the brokers saw since the last look, but for pings and acknowledgements of acknowledgements.
    broker: Vec<String>,
    pub open: Open,
    /// What brokers answer to CONNECT, if they refuse.
    pub refuse: Option<ConnectReturnCode>,
    /// A broker that cannot be reached.
    pub unreachable: bool,
    watch: BTreeMap<At, Watch>,
    answering: bool,
}

#[derive(Debug, Default)]
struct Link {
    octets: BytesMut,
    client_id: String,
    clean: bool,
    session: Session,
}

/// What a broker keeps for a client.
#[derive(Debug, Default)]
struct Session {
    filters: BTreeMap<String, QoS>,
    /// By packet id.
    unacknowledged: BTreeMap<u16, v4::Publish>,
    last_pkid: u16,
}

impl Session {
    /// The message as this client gets it, if it subscribed to the topic.
    fn publish(&mut self, topic: &str, payload: &str, qos: QoS) -> Option<v4::Publish> {
        let name = TopicName::new(topic).unwrap();
        let matching = self
            .filters
            .iter()
            .filter(|(filter, _)| TopicFilter::new(filter.as_str()).unwrap().matches(&name));
        let granted = matching.map(|(_, qos)| *qos).max_by_key(|qos| *qos as u8)?;
        let qos = if (qos as u8) < granted as u8 { qos } else { granted };
        let mut publish = v4::Publish::new(topic, qos, payload);
        if qos != QoS::AtMostOnce {
            self.last_pkid += 1;
            publish.pkid = self.last_pkid;
            self.unacknowledged.insert(publish.pkid, publish.clone());
        }
        Some(publish)
    }
}

/// What a client knows, and what the gateway may therefore send it.
#[derive(Debug, Default)]
struct Watch {
    session: bool,
    clean: bool,
    /// CleanSession of a CONNECT that has no answer yet.
    asked_clean: bool,
    leaving: bool,
    asleep: bool,
    /// The client asked for what waits, and has not been told that this is all.
    awake: bool,
    names: BTreeMap<u16, String>,
    announced: BTreeSet<u16>,
    /// By MsgId: the name a client asked an id for.
    asked: BTreeMap<u16, String>,
    unanswered: Option<u16>,
    /// How often that was asked; in vain after as many times as R-110 has it.
    copies: u32,
}

impl Bench {
    pub fn new(how: How) -> Self {
        Self::with(how, |_| {})
    }

    pub fn with(how: How, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        settings.ports[0].mode = how.mode;
        change(&mut settings);
        let now = Instant::now();
        let mut bench = Self {
            how,
            now,
            gw: Gateway::new(settings, now),
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            hold: Hold::Nothing,
            held: VecDeque::new(),
            frames: VecDeque::new(),
            broker: Vec::new(),
            open: Open { msg_id: 77, topic_id: 0x7777 },
            refuse: None,
            unreachable: false,
            watch: BTreeMap::new(),
            answering: false,
        };
        bench.gw.handle_timeout(now);
        bench.drain();
        bench.broker.clear();
        bench
    }

    // The air.

    pub fn send(&mut self, at: At, packet: Packet<'_>) {
        self.send_octets(at, &encode(&packet));
    }

    pub fn send_octets(&mut self, at: At, octets: &[u8]) {
        if let Ok(frame) = decode(octets) {
            self.watch.entry(at).or_default().hear(&frame.packet);
        }
        let (port, octets) = if self.how.forwarded {
            (FORWARDER, Bytes::from([&[5, 0xFE, 0, NODE, node(at)], octets].concat()))
        } else {
            (at, Bytes::copy_from_slice(octets))
        };
        let from = Peer { port: PortId(0), addr: address(port), node: None };
        self.answering = true;
        self.gw.handle(self.now, Input::Frame { from, route: Route::default(), frame: octets });
        self.drain();
        self.answering = false;
    }

    /// Everything that left for this peer since the last look, in words; nothing else may have left.
    #[track_caller]
    pub fn heard(&mut self, at: At) -> String {
        let frames: Vec<_> = self.frames.drain(..).collect();
        let others: Vec<_> = frames.iter().filter(|(to, _)| *to != at).collect();
        assert!(others.is_empty(), "for others than {at}: {others:?}");
        words(frames.into_iter().map(|(_, text)| text))
    }

    #[track_caller]
    pub fn expect(&mut self, at: At, text: &str) {
        let heard = self.heard(at);
        assert_eq!(heard, text, "{:?}", self.how);
    }

    /// What left for this peer since the last look, in words.
    pub fn frames_to(&mut self, at: At) -> String {
        let (its, others) = self.frames.drain(..).partition(|(to, _)| *to == at);
        self.frames = others;
        let its: VecDeque<(At, String)> = its;
        words(its.into_iter().map(|(_, text)| text))
    }

    /// Forgets what left for whomever.
    pub fn forget(&mut self) {
        self.frames.clear();
        self.broker.clear();
    }

    /// Lets time pass, with everything that is due on the way.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.gw.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.gw.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    // The brokers.

    /// What the brokers saw since the last look, in words.
    pub fn seen(&mut self) -> String {
        words(self.broker.drain(..))
    }

    #[track_caller]
    pub fn expect_at_broker(&mut self, text: &str) {
        let seen = self.seen();
        assert_eq!(seen, text, "{:?}", self.how);
    }

    /// A message for whoever subscribed.
    pub fn publish(&mut self, topic: &str, payload: &str, qos: QoS) {
        for session in self.sessions.values_mut() {
            session.publish(topic, payload, qos);
        }
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            let link = self.links.get_mut(&id);
            if let Some(publish) = link.and_then(|link| link.session.publish(topic, payload, qos)) {
                self.say(id, &v4::Packet::Publish(publish));
            }
        }
        self.drain();
    }

    /// Everything that was held is answered.
    pub fn release(&mut self) {
        self.hold = Hold::Nothing;
        while let Some((id, packet)) = self.held.pop_front() {
            self.answer(id, packet);
        }
        self.drain();
    }

    /// The brokers hang up.
    pub fn hang_up(&mut self) {
        self.held.clear();
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            self.part(id);
            self.gw.handle(self.now, Input::Link(id, LinkEvent::Closed(LinkFailure::Closed)));
        }
        self.drain();
    }

    fn part(&mut self, id: LinkId) {
        if let Some(link) = self.links.remove(&id).filter(|link| !link.clean) {
            self.sessions.insert(link.client_id, link.session);
        }
    }

    fn say(&mut self, id: LinkId, packet: &v4::Packet) {
        let mut octets = BytesMut::new();
        packet.write(&mut octets, usize::MAX).unwrap();
        self.gw.handle(self.now, Input::Link(id, LinkEvent::Bytes(octets.freeze())));
    }

    fn drain(&mut self) {
        while let Some(output) = self.gw.poll_output() {
            match output {
                Output::Send { to: Target::Broadcast { .. }, .. } => {}
                Output::Send { to, frame } => self.take_frame(to, &frame),
                Output::Link(id, LinkCommand::Connect { .. }) if self.unreachable => {
                    self.gw.handle(self.now, Input::Link(id, LinkEvent::Closed(LinkFailure::Closed)));
                }
                Output::Link(id, LinkCommand::Connect { .. }) => {
                    self.links.insert(id, Link::default());
                    self.gw.handle(self.now, Input::Link(id, LinkEvent::Connected));
                }
                Output::Link(id, LinkCommand::Write(octets)) => self.take_octets(id, &octets),
                Output::Link(id, LinkCommand::Close) => self.part(id),
                Output::Store { lsn, .. } => self.gw.handle(self.now, Input::Stored(lsn, Outcome::Durable)),
                Output::Answer(..) | Output::Stopped => {}
            }
        }
    }

    fn take_octets(&mut self, id: LinkId, octets: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.octets.extend_from_slice(octets);
        self.gw.handle(self.now, Input::Link(id, LinkEvent::Drained));
        while let Some(link) = self.links.get_mut(&id) {
            let Ok(packet) = v4::Packet::read(&mut link.octets, usize::MAX) else { return };
            self.see(&packet);
            let needs = match &packet {
                v4::Packet::Publish(_) => Hold::Publish,
                v4::Packet::PubRel(_) => Hold::Release,
                v4::Packet::Connect(_) => Hold::Connect,
                _ => {
                    self.answer(id, packet);
                    continue;
                }
            };
            if self.hold >= needs {
                self.held.push_back((id, packet));
            } else {
                self.answer(id, packet);
            }
        }
    }

    fn answer(&mut self, id: LinkId, packet: v4::Packet) {
        let answer = match packet {
            v4::Packet::Connect(connect) => return self.accept(id, connect),
            v4::Packet::PubAck(v4::PubAck { pkid }) => return self.acknowledged(id, pkid),
            v4::Packet::Publish(publish) => match publish.qos {
                QoS::AtMostOnce => return,
                QoS::AtLeastOnce => v4::Packet::PubAck(v4::PubAck { pkid: publish.pkid }),
                QoS::ExactlyOnce => v4::Packet::PubRec(v4::PubRec { pkid: publish.pkid }),
            },
            v4::Packet::PubRec(received) => {
                self.acknowledged(id, received.pkid);
                v4::Packet::PubRel(v4::PubRel { pkid: received.pkid })
            }
            v4::Packet::PubRel(released) => v4::Packet::PubComp(v4::PubComp { pkid: released.pkid }),
            v4::Packet::Subscribe(subscribe) => {
                let Some(link) = self.links.get_mut(&id) else { return };
                let return_codes = subscribe.filters.iter().map(|asked| {
                    link.session.filters.insert(asked.path.clone(), asked.qos);
                    v4::SubscribeReasonCode::Success(asked.qos)
                });
                let return_codes = return_codes.collect();
                v4::Packet::SubAck(v4::SubAck { pkid: subscribe.pkid, return_codes })
            }
            v4::Packet::Unsubscribe(unsubscribe) => {
                let Some(link) = self.links.get_mut(&id) else { return };
                for filter in &unsubscribe.topics {
                    link.session.filters.remove(filter);
                }
                v4::Packet::UnsubAck(v4::UnsubAck { pkid: unsubscribe.pkid })
            }
            v4::Packet::PingReq => v4::Packet::PingResp,
            _ => return,
        };
        self.say(id, &answer);
    }

    fn accept(&mut self, id: LinkId, connect: v4::Connect) {
        if let Some(code) = self.refuse {
            return self.say(id, &v4::Packet::ConnAck(v4::ConnAck { session_present: false, code }));
        }
        let before = self.sessions.remove(&connect.client_id).filter(|_| !connect.clean_session);
        let session_present = before.is_some();
        let session = before.unwrap_or_default();
        let unacknowledged: Vec<_> = session.unacknowledged.values().cloned().collect();
        if let Some(link) = self.links.get_mut(&id) {
            (link.client_id, link.clean, link.session) = (connect.client_id, connect.clean_session, session);
        }
        let code = ConnectReturnCode::Success;
        self.say(id, &v4::Packet::ConnAck(v4::ConnAck { session_present, code }));
        for mut publish in unacknowledged {
            publish.dup = true;
            self.say(id, &v4::Packet::Publish(publish));
        }
    }

    fn acknowledged(&mut self, id: LinkId, pkid: u16) {
        if let Some(link) = self.links.get_mut(&id) {
            link.session.unacknowledged.remove(&pkid);
        }
    }

    fn see(&mut self, packet: &v4::Packet) {
        let text = match packet {
            v4::Packet::Connect(connect) => {
                assert_eq!(connect.last_will, None, "R-037: the gateway holds the Wills");
                format!("CONNECT {}", connect.client_id)
            }
            v4::Packet::Publish(publish) => {
                // N-07.
                TopicName::new(publish.topic.as_str()).expect("a topic to publish on");
                let retain = if publish.retain { " retain" } else { "" };
                let payload = String::from_utf8_lossy(&publish.payload);
                format!("PUBLISH {} q{} '{payload}'{retain}", publish.topic, publish.qos as u8)
            }
            v4::Packet::Subscribe(subscribe) => {
                let filters =
                    subscribe.filters.iter().map(|asked| format!("{} q{}", asked.path, asked.qos as u8));
                format!("SUBSCRIBE {}", words(filters))
            }
            v4::Packet::Unsubscribe(unsubscribe) => format!("UNSUBSCRIBE {}", unsubscribe.topics.join(" ")),
            v4::Packet::PubAck(_) => "PUBACK".into(),
            v4::Packet::PubRec(_) => "PUBREC".into(),
            v4::Packet::Disconnect => "DISCONNECT".into(),
            _ => return,
        };
        self.broker.push(text);
    }

    fn take_frame(&mut self, to: Target, octets: &[u8]) {
        let frame = decode(octets).unwrap();
        let Target::Unicast { addr: Address::Udp(addr), .. } = to else { panic!("{to:?}") };
        let at = match frame.encapsulation {
            Some(encapsulation) => {
                assert_eq!((self.how.forwarded, addr.port()), (true, FORWARDER));
                let [NODE, node] = encapsulation.node_id else { panic!("{encapsulation:?}") };
                At::from(*node)
            }
            None => {
                assert!(!self.how.forwarded, "R-150: {frame}");
                addr.port()
            }
        };
        let watch = self.watch.entry(at).or_default();
        watch.check(&frame.packet, self.answering, octets);
        let text = watch.tell(&frame.packet, self.open);
        match frame.packet {
            Packet::Register(Register { topic_id, msg_id, .. }) => self.open = Open { msg_id, topic_id },
            Packet::Publish(Publish { topic, msg_id: msg_id @ 1.., .. }) => {
                self.open = Open { msg_id, topic_id: topic.raw() };
            }
            _ => {}
        }
        self.frames.push_back((at, text));
    }

    pub fn knows(&self, at: At, name: &str) -> bool {
        self.watch.get(&at).is_some_and(|watch| watch.names.values().any(|known| known == name))
    }

    /// The id that stands for this name at this peer.
    #[track_caller]
    pub fn id(&self, at: At, name: &str) -> u16 {
        let names = &self.watch.get(&at).expect("a client").names;
        let known = names.iter().find(|(_, known)| *known == name);
        *known.expect("a name with an id").0
    }
}

impl Watch {
    fn hear(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::Register(Register { msg_id, topic_name, .. }) => {
                self.asked.insert(*msg_id, String::from_utf8_lossy(topic_name).into_owned());
            }
            Packet::Subscribe(subscribe) => {
                if let FilterRef::Name(name) = subscribe.topic {
                    self.asked.insert(subscribe.msg_id, String::from_utf8_lossy(name).into_owned());
                } else {
                    self.asked.remove(&subscribe.msg_id);
                }
            }
            Packet::RegAck(TopicAck { topic_id, msg_id, code }) if self.unanswered == Some(*msg_id) => {
                self.unanswered = None;
                if *code == ReturnCode::Accepted && self.names.contains_key(topic_id) {
                    self.announced.insert(*topic_id);
                }
            }
            Packet::PubAck(TopicAck { msg_id, .. }) | Packet::PubComp(MsgIdOnly { msg_id }) => {
                self.unanswered.take_if(|unanswered| unanswered == msg_id);
            }
            Packet::PingReq(_) if self.asleep => (self.asleep, self.awake) = (false, true),
            Packet::Connect(connect) => {
                self.asked_clean = connect.clean_session;
                (self.asleep, self.awake, self.unanswered) = (false, false, None);
            }
            Packet::Disconnect(Disconnect { duration: Some(1..) }) => {
                (self.asleep, self.awake, self.unanswered) = (self.session, false, None);
            }
            Packet::Disconnect(_) => self.leaving = true,
            _ => {}
        }
    }

    /// What must never happen (digest 3.21), as far as one frame shows it.
    fn check(&mut self, packet: &Packet<'_>, answering: bool, octets: &[u8]) {
        match packet {
            Packet::Publish(publish) => {
                if let TopicRef::Normal(id) = publish.topic {
                    assert!(self.announced.contains(&id), "N-02: {packet}");
                }
                assert_ne!(publish.qos, Qos::MinusOne, "R-095");
                assert!(!self.asleep, "N-03: {packet}");
                if publish.qos == Qos::AtMostOnce {
                    assert_eq!(publish.msg_id, 0, "R-095");
                } else {
                    self.ask(publish.msg_id, packet);
                }
            }
            Packet::Register(register) => {
                assert!(!self.asleep, "N-03: {packet}");
                self.ask(register.msg_id, packet);
            }
            Packet::PubRel(_) => assert!(!self.asleep || answering, "N-03: {packet}"),
            Packet::PingResp => {
                assert!(self.session && !self.asleep, "N-04: {packet}");
                assert!(!self.awake || self.unanswered.is_none(), "N-04: {packet}");
                if self.awake {
                    (self.asleep, self.awake) = (true, false);
                }
            }
            Packet::Disconnect(Disconnect { duration }) => {
                assert_eq!((*duration, octets[octets.len() - 2..].to_vec()), (None, vec![2, 0x18]), "N-05");
                assert!(!self.asleep || answering, "N-03: {packet}");
                if std::mem::take(&mut self.leaving) {
                    (self.session, self.asleep, self.awake) = (false, false, false);
                }
            }
            Packet::ConnAck(Response { code: ReturnCode::Accepted }) => {
                // a client that connects again may have forgotten everything.
                self.announced.clear();
                if self.asked_clean || self.clean {
                    self.names.clear();
                }
                (self.session, self.clean) = (true, self.asked_clean);
            }
            Packet::ConnAck(_) => {}
            Packet::RegAck(_) | Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_) => {}
            Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::GwInfo(_) => {}
            Packet::WillTopicReq | Packet::WillMsgReq => assert!(answering, "3.3: {packet}"),
            Packet::WillTopicResp(_) | Packet::WillMsgResp(_) => assert!(answering, "{packet}"),
            other => panic!("no gateway says this: {other}"),
        }
        if let Packet::PubAck(ack) | Packet::RegAck(ack) = packet {
            assert!(ack.code.code() <= 3, "2.1: {packet}");
        }
    }

    fn ask(&mut self, msg_id: u16, packet: &Packet<'_>) {
        assert_ne!(msg_id, 0, "N-10: {packet}");
        if self.unanswered != Some(msg_id) {
            let other = self.unanswered.filter(|_| self.copies < COPIES);
            assert_eq!(other, None, "N-15: {packet}");
            (self.unanswered, self.copies) = (Some(msg_id), 0);
        }
        self.copies += 1;
    }

    fn learn(&mut self, id: u16, name: &str) {
        assert!(id != 0 && id != 0xFFFF, "N-10");
        let before = self.names.insert(id, name.to_owned());
        assert!(before.is_none_or(|before| before == name), "N-01: {id:04X} is {name}");
        let same = self.names.values().filter(|known| *known == name).count();
        assert_eq!(same, 1, "R-051: {name} has two ids");
    }

    /// A frame in words. Ids that stand for names are told by the name; MsgIds of the gateway are `m` as before, `n` anew.
    fn tell(&mut self, packet: &Packet<'_>, open: Open) -> String {
        let own = |msg_id: u16| match msg_id {
            0 => "0",
            77 => "77",
            _ if msg_id == open.msg_id => "m",
            _ => "n",
        };
        match packet {
            Packet::RegAck(TopicAck { topic_id, msg_id, code }) => {
                if *code == ReturnCode::Accepted {
                    let name = self.asked.get(msg_id).cloned().expect("a REGISTER");
                    self.learn(*topic_id, &name);
                    self.announced.insert(*topic_id);
                }
                format!("REGACK {} {msg_id} {:02X}", self.topic(*topic_id), code.code())
            }
            Packet::SubAck(SubAck { qos, topic_id, msg_id, code }) => {
                if let Some(name) = self.asked.get(msg_id).cloned()
                    && *code == ReturnCode::Accepted
                    && *topic_id != 0
                {
                    self.learn(*topic_id, &name);
                    self.announced.insert(*topic_id);
                }
                format!("SUBACK q{} {} {msg_id} {:02X}", number(*qos), self.topic(*topic_id), code.code())
            }
            Packet::Register(Register { topic_id, msg_id, topic_name }) => {
                let name = String::from_utf8_lossy(topic_name).into_owned();
                self.learn(*topic_id, &name);
                format!("REGISTER {name} {}", own(*msg_id))
            }
            Packet::Publish(publish) => {
                let topic = match publish.topic {
                    TopicRef::Normal(id) => self.topic(id),
                    TopicRef::Predefined(id) => format!("pre:{id}"),
                    TopicRef::Short(name) => format!("short:{}", String::from_utf8_lossy(&name)),
                    TopicRef::Reserved(_) => panic!("{packet}"),
                };
                let dup = if publish.dup { " dup" } else { "" };
                let retain = if publish.retain { " retain" } else { "" };
                let data = String::from_utf8_lossy(publish.data);
                let (qos, msg_id) = (number(publish.qos), own(publish.msg_id));
                format!("PUBLISH {topic} q{qos} {msg_id} '{data}'{dup}{retain}")
            }
            Packet::PubAck(TopicAck { topic_id, msg_id, code }) => {
                format!("PUBACK {} {msg_id} {:02X}", self.topic(*topic_id), code.code())
            }
            Packet::PubRel(MsgIdOnly { msg_id }) => format!("PUBREL {}", own(*msg_id)),
            Packet::PubRec(MsgIdOnly { msg_id }) => format!("PUBREC {msg_id}"),
            Packet::PubComp(MsgIdOnly { msg_id }) => format!("PUBCOMP {msg_id}"),
            Packet::UnsubAck(MsgIdOnly { msg_id }) => format!("UNSUBACK {msg_id}"),
            Packet::ConnAck(Response { code }) => format!("CONNACK {:02X}", code.code()),
            Packet::WillTopicResp(Response { code }) => format!("WILLTOPICRESP {:02X}", code.code()),
            Packet::WillMsgResp(Response { code }) => format!("WILLMSGRESP {:02X}", code.code()),
            Packet::GwInfo(info) => format!("GWINFO {:02X}", info.gw_id),
            Packet::WillTopicReq => "WILLTOPICREQ".into(),
            Packet::WillMsgReq => "WILLMSGREQ".into(),
            Packet::PingResp => "PINGRESP".into(),
            Packet::Disconnect(_) => "DISCONNECT".into(),
            other => panic!("no gateway says this: {other}"),
        }
    }

    fn topic(&self, id: u16) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("{id:04X}"))
    }
}

fn number(qos: Qos) -> i8 {
    match qos {
        Qos::MinusOne => -1,
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    }
}

/// Several things in one line; `-` for none.
fn words(texts: impl IntoIterator<Item = String>) -> String {
    let texts: Vec<_> = texts.into_iter().collect();
    if texts.is_empty() { "-".into() } else { texts.join(", ") }
}

fn address(port: u16) -> Address {
    Address::Udp(SocketAddr::from(([10, 0, 0, 1], port)))
}

fn node(at: At) -> u8 {
    u8::try_from(at).unwrap()
}
