//! Conversations with the broker on a virtual clock.

use std::collections::BTreeSet;

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::LastWill;

use super::*;

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// A broker, its clock, and what its clients have got and not yet looked at.
struct World {
    broker: Broker,
    now: Instant,
    opened: u64,
    got: BTreeMap<ConnectionId, BytesMut>,
    closed: BTreeSet<ConnectionId>,
    /// Connections whose writes are not drained.
    stuck: BTreeSet<ConnectionId>,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self {
            broker: Broker::new(limits),
            now: Instant::now(),
            opened: 0,
            got: BTreeMap::new(),
            closed: BTreeSet::new(),
            stuck: BTreeSet::new(),
        }
    }

    fn handle(&mut self, input: Input) {
        self.broker.handle(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        self.broker.check();
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Write(id, bytes) => {
                    assert!(!bytes.is_empty() && !self.closed.contains(&id));
                    self.got.entry(id).or_default().extend_from_slice(&bytes);
                    if !self.stuck.contains(&id) {
                        self.broker.handle(self.now, Input::Drained(id));
                    }
                }
                Output::Close(id) => assert!(self.closed.insert(id)),
            }
            self.broker.check();
        }
    }

    fn inject(&mut self, fault: Fault) {
        self.broker.inject(self.now, fault);
        self.drain();
    }

    fn open(&mut self) -> ConnectionId {
        self.opened += 1;
        let id = ConnectionId(self.opened);
        self.handle(Input::Opened(id));
        id
    }

    fn bytes(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.handle(Input::Bytes(id, Bytes::copy_from_slice(bytes)));
    }

    fn send(&mut self, id: ConnectionId, packet: Packet) {
        self.bytes(id, &encoded(&packet));
    }

    /// Lets the next deadline pass, and says how far away it was.
    fn wait(&mut self) -> Duration {
        let deadline = self.broker.poll_timeout().unwrap();
        let waited = deadline - self.now;
        self.now = deadline;
        self.broker.handle_timeout(self.now);
        self.drain();
        waited
    }

    /// The packets that came since the last look.
    #[track_caller]
    fn got(&mut self, id: ConnectionId) -> Vec<Packet> {
        let mut bytes = self.got.remove(&id).unwrap_or_default();
        let mut packets = Vec::new();
        while !bytes.is_empty() {
            packets.push(Packet::read(&mut bytes, usize::MAX).unwrap());
        }
        packets
    }

    #[track_caller]
    fn expect(&mut self, id: ConnectionId, expected: impl IntoIterator<Item = Packet>) {
        assert_eq!(self.got(id), expected.into_iter().collect::<Vec<_>>());
    }

    #[track_caller]
    fn connect_with(&mut self, connect: Connect, session_present: bool) -> ConnectionId {
        let id = self.open();
        self.send(id, Packet::Connect(connect));
        let got = self.got(id);
        assert_eq!(got.first(), Some(&connack(session_present)), "{got:?}");
        for packet in &got[1..] {
            let bytes = encoded(packet);
            self.got.entry(id).or_default().extend_from_slice(&bytes);
        }
        id
    }

    #[track_caller]
    fn clean(&mut self, client: &str) -> ConnectionId {
        self.connect_with(connect(client, true), false)
    }

    #[track_caller]
    fn subscriber(&mut self, client: &str, filter: &str, qos: QoS) -> ConnectionId {
        let id = self.clean(client);
        self.subscribed(id, filter, qos);
        id
    }

    #[track_caller]
    fn subscribed(&mut self, id: ConnectionId, filter: &str, qos: QoS) {
        self.send(id, subscribe(9, [(filter, qos)]));
        assert_eq!(self.got(id).first(), Some(&suback(9, [SubscribeReasonCode::Success(qos)])));
    }

    /// A persistent session with a QoS 2 subscription to `#` that is away.
    fn away(&mut self, client: &str) {
        let id = self.connect_with(connect(client, false), false);
        self.subscribed(id, "#", QoS::ExactlyOnce);
        self.send(id, Packet::Disconnect);
    }

    fn counters(&self) -> Counters {
        self.broker.counters().clone()
    }
}

impl Broker {
    /// What must hold between calls.
    #[track_caller]
    fn check(&self) {
        let mut subscribers = BTreeMap::<_, BTreeMap<_, _>>::new();
        let mut queued = 0;
        for (client, session) in &self.sessions {
            for (filter, qos) in &session.subscriptions {
                subscribers.entry(filter.clone()).or_default().insert(client.clone(), *qos);
            }
            if let Some(id) = session.connection {
                assert_eq!(self.connections[&id].client.as_ref(), Some(client));
            } else {
                assert!(!session.clean);
            }
            queued += session.waiting.bytes;
        }
        for (id, connection) in &self.connections {
            if let Some(client) = &connection.client {
                assert_eq!(self.sessions[client].connection, Some(*id));
            }
            let entry = connection.deadline.map(|deadline| (deadline, *id));
            assert!(entry.is_none_or(|entry| self.deadlines.contains(&entry)));
            assert_eq!(connection.is_ready(), self.ready.contains(id));
            queued += connection.waiting.bytes;
        }
        assert_eq!(self.deadlines.len(), self.connections.values().filter(|c| c.deadline.is_some()).count());
        assert!(self.ready.iter().all(|id| self.connections.contains_key(id)));
        assert_eq!(self.queued_bytes, queued);
        assert_eq!(self.retained_bytes, self.retained.values().map(|message| message.bytes()).sum::<usize>());
        let routed: BTreeMap<_, _> = self.subscribers.iter().map(|(f, s)| (f.clone(), s.clone())).collect();
        assert_eq!(routed, subscribers);
    }
}

fn encoded(packet: &Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, usize::MAX).unwrap();
    bytes
}

fn connect(client: &str, clean: bool) -> Connect {
    Connect { clean_session: clean, keep_alive: 0, ..Connect::new(client) }
}

fn with_will(client: &str, will: LastWill) -> Connect {
    Connect { last_will: Some(will), keep_alive: 10, ..connect(client, true) }
}

fn connack(session_present: bool) -> Packet {
    Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present))
}

fn refused(code: ConnectReturnCode) -> [Packet; 1] {
    [Packet::ConnAck(ConnAck::new(code, false))]
}

fn subscribe<'a>(pkid: u16, filters: impl IntoIterator<Item = (&'a str, QoS)>) -> Packet {
    let filters = filters.into_iter().map(|(path, qos)| SubscribeFilter::new(path.into(), qos)).collect();
    Packet::Subscribe(Subscribe { pkid, filters })
}

fn suback(pkid: u16, codes: impl IntoIterator<Item = SubscribeReasonCode>) -> Packet {
    Packet::SubAck(SubAck::new(pkid, codes.into_iter().collect()))
}

fn publish(pkid: u16, qos: QoS, topic: &str, payload: &str) -> Packet {
    Packet::Publish(Publish { pkid, ..Publish::new(topic, qos, payload) })
}

fn dup(packet: Packet) -> Packet {
    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
    Packet::Publish(Publish { dup: true, ..publish })
}

fn retain(packet: Packet) -> Packet {
    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
    Packet::Publish(Publish { retain: true, ..publish })
}

fn qos0(topic: &str, payload: &str) -> Packet {
    publish(0, QoS::AtMostOnce, topic, payload)
}

fn puback(pkid: u16) -> Packet {
    Packet::PubAck(PubAck::new(pkid))
}

fn pubrec(pkid: u16) -> Packet {
    Packet::PubRec(PubRec::new(pkid))
}

fn pubrel(pkid: u16) -> Packet {
    Packet::PubRel(PubRel::new(pkid))
}

fn pubcomp(pkid: u16) -> Packet {
    Packet::PubComp(PubComp::new(pkid))
}

fn id(client: &str) -> ClientId {
    ClientId::new(client).unwrap()
}

// Connecting

#[test]
fn where_filters_overlap_a_client_gets_one_copy_or_one_for_each() {
    let mut broker = World::new();
    let subscriber = broker.subscriber("s", "a/b", QoS::AtMostOnce);
    broker.subscribed(subscriber, "a/#", QoS::AtMostOnce);
    let publisher = broker.clean("p");
    broker.send(publisher, qos0("a/b", "1"));
    broker.expect(subscriber, [qos0("a/b", "1")]);
    broker.inject(Fault::CopyPerFilter { on: true });
    broker.send(publisher, qos0("a/b", "2"));
    broker.expect(subscriber, [qos0("a/b", "2"), qos0("a/b", "2")]);
}

#[test]
fn a_second_connect_closes_the_connection() {
    let mut w = World::new();
    let a = w.clean("a");
    w.send(a, Packet::Connect(connect("a", true)));
    assert!(w.closed.contains(&a));
    assert_eq!(w.counters().closed_malformed, 1);
    assert_eq!(w.broker.clients().count(), 0);
}

#[test]
fn the_first_packet_is_connect_and_comes_within_5_seconds() {
    let mut w = World::new();
    let a = w.open();
    w.bytes(a, b"\xc0\0");
    assert!(w.closed.contains(&a));
    let b = w.open();
    w.bytes(b, b"\x10\x0d");
    assert_eq!(w.wait(), Duration::from_secs(5));
    assert!(w.closed.contains(&b));
    assert_eq!((w.counters().closed_malformed, w.counters().closed_connect_timeout), (1, 1));
    assert_eq!(w.broker.poll_timeout(), None);
}

#[test]
fn an_empty_client_id_needs_a_clean_session_and_gets_a_name_of_its_own() {
    let mut w = World::new();
    let a = w.open();
    w.send(a, Packet::Connect(connect("", false)));
    w.expect(a, refused(ConnectReturnCode::BadClientId));
    assert!(w.closed.contains(&a));
    w.clean("auto-1");
    let (b, c) = (w.clean(""), w.clean(""));
    assert!(!w.closed.contains(&b) && !w.closed.contains(&c));
    assert_eq!(w.broker.clients().map(ClientId::as_str).collect::<Vec<_>>(), ["auto-1", "auto-2", "auto-3"]);
    let long = w.open();
    w.send(long, Packet::Connect(connect(&"x".repeat(129), true)));
    w.expect(long, refused(ConnectReturnCode::BadClientId));
    assert_eq!(w.counters().connects_refused, 2);
}

#[test]
fn other_versions_of_mqtt_are_refused_with_code_1() {
    let mut w = World::new();
    for bytes in [
        &b"\x10\x10\0\x04MQTT\x05\x02\0\x3c\x03\x21\0\x14\0\0"[..],
        b"\x10\x0f\0\x06MQIsdp\x03\x02\0\x3c\0\x01a",
    ] {
        let a = w.open();
        w.bytes(a, bytes);
        w.expect(a, refused(ConnectReturnCode::RefusedProtocolVersion));
        assert!(w.closed.contains(&a));
    }
}

#[test]
fn a_client_silent_for_one_and_a_half_keep_alives_is_closed() {
    let mut w = World::new();
    let a = w.connect_with(Connect { keep_alive: 10, ..connect("a", true) }, false);
    w.now += Duration::from_secs(14);
    w.bytes(a, b"\xc0");
    w.broker.handle_timeout(w.now);
    w.drain();
    w.expect(a, []);
    assert_eq!(w.broker.poll_timeout(), Some(w.now + Duration::from_secs(1)), "half a packet is none");
    w.bytes(a, b"\0");
    w.expect(a, [Packet::PingResp]);
    assert_eq!(w.wait(), Duration::from_secs(15));
    assert!(w.closed.contains(&a));
    assert_eq!(w.counters().closed_keep_alive, 1);
}

#[test]
fn a_newer_connection_takes_the_client_id_over_and_the_will_of_the_older_is_published() {
    let mut w = World::new();
    let s = w.subscriber("s", "will", QoS::AtLeastOnce);
    let a = w.connect_with(with_will("a", LastWill::new("will", "a died", QoS::AtLeastOnce, false)), false);
    let b = w.clean("a");
    assert!(w.closed.contains(&a) && !w.closed.contains(&b));
    w.expect(s, [publish(1, QoS::AtLeastOnce, "will", "a died")]);
    w.send(a, Packet::PingReq);
    w.send(b, Packet::PingReq);
    w.expect(b, [Packet::PingResp]);
    let Counters { taken_over, late_inputs, wills, .. } = w.counters();
    assert_eq!((taken_over, late_inputs, wills), (1, 1, 1));
}

#[test]
fn a_will_is_published_on_every_end_but_disconnect() {
    let mut w = World::new();
    let s = w.subscriber("s", "#", QoS::AtMostOnce);
    let will = || with_will("a", LastWill::new("will", "x", QoS::ExactlyOnce, true));
    let ends: [fn(&mut World, ConnectionId); 4] = [
        |w, a| w.handle(Input::Closed(a)),
        |w, a| w.bytes(a, b"\0\0"),
        |w, _| assert_eq!(w.wait(), Duration::from_secs(15)),
        |w, _| w.inject(Fault::ForgetSession { client: id("a") }),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let a = w.connect_with(will(), false);
        end(&mut w, a);
        w.expect(s, [qos0("will", "x")]);
        assert_eq!(w.counters().wills, number as u64 + 1);
    }
    let a = w.connect_with(will(), false);
    w.send(a, Packet::Disconnect);
    w.expect(s, []);
    let late = w.clean("late");
    w.send(late, subscribe(1, [("will", QoS::ExactlyOnce)]));
    let retained = retain(publish(1, QoS::ExactlyOnce, "will", "x"));
    w.expect(late, [suback(1, [SubscribeReasonCode::Success(QoS::ExactlyOnce)]), retained]);
}

#[test]
fn a_will_on_a_wildcard_is_malformed() {
    let mut w = World::new();
    let a = w.open();
    w.send(a, Packet::Connect(with_will("a", LastWill::new("a/#", "x", QoS::AtMostOnce, false))));
    w.expect(a, []);
    assert!(w.closed.contains(&a));
}

// Sessions

#[test]
fn a_session_is_present_if_it_was_not_clean() {
    let mut w = World::new();
    let a = w.connect_with(connect("a", false), false);
    w.subscribed(a, "t", QoS::AtLeastOnce);
    w.handle(Input::Closed(a));
    let a = w.connect_with(connect("a", false), true);
    w.send(a, Packet::Disconnect);
    let a = w.connect_with(connect("a", true), false);
    w.send(a, qos0("t", "x"));
    w.expect(a, []);
    w.handle(Input::Closed(a));
    w.connect_with(connect("a", false), false);
}

#[test]
fn messages_wait_for_a_session_that_is_away_and_come_in_order_through_the_window() {
    let mut w = World::new();
    w.away("a");
    let p = w.clean("p");
    for n in 0..150 {
        w.send(p, publish(n + 1, QOS[1 + usize::from(n) % 2], "t", &n.to_string()));
    }
    w.send(p, qos0("t", "never kept"));
    let a = w.connect_with(connect("a", false), true);
    let mut seen = Vec::new();
    loop {
        let got = w.got(a);
        if got.is_empty() {
            break;
        }
        assert!(got.len() <= 20);
        for packet in got {
            match packet {
                Packet::Publish(publish) if publish.qos == QoS::AtLeastOnce => {
                    seen.push(publish.payload);
                    w.send(a, puback(publish.pkid));
                }
                Packet::Publish(publish) => {
                    seen.push(publish.payload);
                    w.send(a, pubrec(publish.pkid));
                }
                Packet::PubRel(release) => w.send(a, pubcomp(release.pkid)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(seen, (0..150).map(|n| Bytes::from(n.to_string())).collect::<Vec<_>>());
    assert_eq!(w.counters().shed_offline_qos0, 1);
    assert_eq!(w.counters().stray_acks, 0);
}

#[test]
fn what_was_not_settled_is_sent_again_on_resumption_in_order() {
    let mut w = World::new();
    w.away("a");
    let p = w.clean("p");
    for (n, qos) in [(1, QOS[2]), (2, QOS[1]), (3, QOS[2]), (4, QOS[2]), (5, QOS[1])] {
        w.send(p, publish(n, qos, "t", &n.to_string()));
    }
    let a = w.connect_with(connect("a", false), true);
    assert_eq!(w.got(a).len(), 5);
    w.send(a, pubrec(3));
    w.send(a, pubrec(1));
    w.send(a, puback(2));
    w.expect(a, [pubrel(3), pubrel(1)]);
    w.handle(Input::Closed(a));

    let a = w.connect_with(connect("a", false), true);
    let again = [pubrel(3), pubrel(1), dup(publish(4, QOS[2], "t", "4")), dup(publish(5, QOS[1], "t", "5"))];
    w.expect(a, again);
    w.send(a, pubrec(1));
    w.expect(a, [pubrel(1)]);
    for packet in [pubcomp(1), pubcomp(3), pubrec(4), pubcomp(4), puback(5)] {
        w.send(a, packet);
    }
    w.expect(a, [pubrel(4)]);
    let session = w.broker.session("a").unwrap();
    assert!(session.unacknowledged.is_empty() && session.releasing.is_empty());
    assert_eq!(w.counters().redelivered, 4);
    assert_eq!(w.counters().stray_acks, 1, "the repeated PUBREC");
}

#[test]
fn a_qos_2_message_repeated_before_its_pubrel_is_delivered_once_even_across_connections() {
    let mut w = World::new();
    let s = w.subscriber("s", "t", QoS::ExactlyOnce);
    let p = w.connect_with(connect("p", false), false);
    w.send(p, publish(7, QoS::ExactlyOnce, "t", "x"));
    w.handle(Input::Closed(p));
    let p = w.connect_with(connect("p", false), true);
    w.send(p, dup(publish(7, QoS::ExactlyOnce, "t", "x")));
    w.expect(p, [pubrec(7)]);
    w.expect(s, [publish(1, QoS::ExactlyOnce, "t", "x")]);
    w.send(p, pubrel(7));
    w.send(p, pubrel(7));
    w.expect(p, [pubcomp(7), pubcomp(7)]);
    w.send(p, publish(7, QoS::ExactlyOnce, "t", "y"));
    w.expect(s, [publish(2, QoS::ExactlyOnce, "t", "y")]);
    assert_eq!((w.counters().duplicates, w.counters().stray_acks), (1, 1));
}

#[test]
fn acknowledgements_that_nothing_waits_for_do_no_harm() {
    let mut w = World::new();
    let a = w.subscriber("a", "t", QoS::AtLeastOnce);
    for packet in [puback(5), pubcomp(5), pubrec(5)] {
        w.send(a, packet);
    }
    w.expect(a, [pubrel(5)]);
    w.send(a, publish(1, QoS::AtLeastOnce, "t", "x"));
    w.expect(a, [publish(1, QoS::AtLeastOnce, "t", "x"), puback(1)]);
    w.send(a, pubrec(1));
    w.expect(a, []);
    assert_eq!(w.broker.session("a").unwrap().unacknowledged, [1]);
    assert_eq!(w.counters().stray_acks, 4);
}

#[test]
fn a_restart_closes_everything_and_keeps_what_it_is_told_to() {
    for memory in [Memory::Kept, Memory::Lost] {
        let kept = memory == Memory::Kept;
        let mut w = World::new();
        w.away("a");
        let will = LastWill::new("will", "x", QoS::AtLeastOnce, false);
        let p = w.connect_with(with_will("p", will), false);
        w.send(p, retain(publish(1, QoS::AtLeastOnce, "t", "x")));
        w.broker.restart(memory);
        w.drain();
        assert!(w.closed.contains(&p));
        assert_eq!(w.counters().wills, 0);
        assert_eq!(w.broker.retained().count(), usize::from(kept));
        assert!(w.broker.session("p").is_none());
        let a = w.connect_with(connect("a", false), kept);
        let waited = kept.then(|| publish(1, QoS::AtLeastOnce, "t", "x"));
        w.expect(a, waited);
    }
}

// Subscriptions and retained messages

#[test]
fn a_subscription_lowers_the_qos_and_replaces_its_like() {
    let mut w = World::new();
    let s = w.subscriber("s", "t", QoS::AtLeastOnce);
    let p = w.clean("p");
    w.send(p, publish(1, QoS::ExactlyOnce, "t", "x"));
    w.expect(s, [publish(1, QoS::AtLeastOnce, "t", "x")]);
    w.subscribed(s, "t", QoS::AtMostOnce);
    w.send(p, publish(2, QoS::ExactlyOnce, "t", "y"));
    w.expect(s, [qos0("t", "y")]);
    w.expect(p, [pubrec(1), pubrec(2)]);
    assert_eq!(w.broker.session("s").unwrap().subscriptions.len(), 1);
    w.send(s, Packet::Unsubscribe(Unsubscribe { pkid: 3, topics: vec!["t".into(), "#bad".into()] }));
    w.expect(s, [Packet::UnsubAck(UnsubAck::new(3))]);
    w.send(p, qos0("t", "z"));
    w.expect(s, []);
}

#[test]
fn overlapping_filters_give_one_copy_at_the_highest_qos() {
    let mut w = World::new();
    let s = w.clean("s");
    w.send(s, subscribe(1, [("a/+", QOS[0]), ("a/#", QOS[2]), ("a/b", QOS[1])]));
    w.got(s);
    w.send(s, publish(1, QoS::ExactlyOnce, "a/b", "x"));
    w.expect(s, [publish(1, QoS::ExactlyOnce, "a/b", "x"), pubrec(1)]);
}

#[test]
fn wildcards_do_not_reach_topics_that_begin_with_a_dollar() {
    let mut w = World::new();
    let s = w.clean("s");
    w.send(s, subscribe(1, [("#", QOS[0]), ("+/x", QOS[0])]));
    w.got(s);
    w.send(s, qos0("$data/x", "1"));
    w.expect(s, []);
    w.subscribed(s, "$data/#", QoS::AtMostOnce);
    w.send(s, qos0("$data/x", "2"));
    w.expect(s, [qos0("$data/x", "2")]);
}

#[test]
fn bad_and_shared_filters_are_refused_beside_good_ones() {
    let mut w = World::with(Limits { subscriptions: 2, ..Limits::default() });
    let s = w.clean("s");
    let filters = ["a", "a/#/b", "$share/g/t", "b", "c", "a", ""].map(|filter| (filter, QoS::AtLeastOnce));
    w.send(s, subscribe(1, filters));
    let (yes, no) = (SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure);
    w.expect(s, [suback(1, [yes, no, no, yes, no, yes, no])]);
    assert_eq!(w.counters().filters_refused, 4);
}

#[test]
fn retained_messages_are_set_replaced_cleared_and_come_with_every_subscribe() {
    let mut w = World::new();
    let p = w.clean("p");
    let s = w.subscriber("s", "a/#", QoS::AtLeastOnce);
    w.send(p, retain(qos0("a", "0")));
    w.send(p, retain(qos0("a/b", "1")));
    w.send(p, retain(publish(1, QoS::AtLeastOnce, "a/b", "2")));
    w.send(p, retain(qos0("ab", "3")));
    w.expect(s, [qos0("a", "0"), qos0("a/b", "1"), publish(1, QoS::AtLeastOnce, "a/b", "2")]);
    let granted = || suback(2, [SubscribeReasonCode::Success(QoS::AtLeastOnce)]);
    for pkid in [2, 3] {
        w.send(s, subscribe(2, [("a/#", QoS::AtLeastOnce)]));
        let kept = retain(publish(pkid, QoS::AtLeastOnce, "a/b", "2"));
        w.expect(s, [granted(), retain(qos0("a", "0")), kept]);
    }
    w.send(p, retain(qos0("a/b", "")));
    w.expect(s, [qos0("a/b", "")]);
    for (filter, found) in [("+/b", None), ("a/b", None), ("a", Some("0")), ("+", Some("0")), ("b", None)] {
        w.send(s, subscribe(2, [(filter, QoS::AtLeastOnce)]));
        let found = found.map(|payload| retain(qos0("a", payload)));
        let third = (filter == "+").then(|| retain(qos0("ab", "3")));
        w.expect(s, [granted()].into_iter().chain(found).chain(third));
    }
    assert_eq!(w.broker.retained().map(|message| message.topic.as_str()).collect::<Vec<_>>(), ["a", "ab"]);
}

#[test]
fn retained_messages_have_limits_and_an_old_value_does_not_outlive_a_refused_one() {
    let mut w = World::with(Limits { retained: 2, retained_bytes: 10, ..Limits::default() });
    let p = w.clean("p");
    for (topic, payload) in [("a", "1"), ("b", "1"), ("c", "1"), ("a", "12345678")] {
        w.send(p, retain(qos0(topic, payload)));
    }
    assert_eq!(w.counters().retained_refused, 2);
    assert_eq!(w.broker.retained().map(|message| message.topic.as_str()).collect::<Vec<_>>(), ["b"]);
}

// Limits

#[test]
fn connections_and_sessions_have_a_limit() {
    let mut w = World::with(Limits { connections: 2, sessions: 1, ..Limits::default() });
    w.clean("a");
    let b = w.open();
    let c = w.open();
    assert!(w.closed.contains(&c));
    w.send(b, Packet::Connect(connect("b", true)));
    w.expect(b, refused(ConnectReturnCode::ServiceUnavailable));
    w.clean("a");
    assert_eq!((w.counters().closed_over_limit, w.counters().connects_refused), (1, 1));
}

#[test]
fn a_packet_over_the_limit_closes_the_connection_before_it_is_there() {
    let mut w = World::with(Limits { packet: 100, ..Limits::default() });
    let a = w.clean("a");
    w.bytes(a, b"\x30\x65");
    assert!(w.closed.contains(&a));
    assert_eq!(w.counters().closed_too_large, 1);
}

#[test]
fn a_client_that_does_not_read_costs_no_more_than_its_queues() {
    let limits = Limits { write_ahead: 100, queue_messages: 5, queue_bytes: 200, ..Limits::default() };
    let mut w = World::with(limits);
    let s = w.subscriber("s", "#", QoS::AtLeastOnce);
    let p = w.clean("p");
    w.stuck.insert(s);
    w.send(p, qos0("t", "on its way"));
    assert!(w.broker.wants_input(s));
    for n in 0..50 {
        w.send(p, publish(1, QOS[n % 2], "t", "0123456789"));
    }
    assert!(!w.broker.wants_input(s));
    let shed = w.counters().shed_slow_qos0 + w.counters().shed_queue_messages;
    let session = w.broker.session("s").unwrap();
    assert_eq!(session.queued, 5);
    let written_ahead = w.counters().delivered - 1;
    assert_eq!(shed, 50 - 10 - written_ahead);
    assert!(written_ahead < 9, "{written_ahead}");

    w.stuck.clear();
    w.handle(Input::Drained(s));
    assert!(w.broker.wants_input(s));
    assert_eq!(w.got(s).len() as u64, 1 + written_ahead + 10);
}

#[test]
fn queues_are_limited_in_octets_each_and_together() {
    let mut w = World::with(Limits { queue_bytes: 100, queue_bytes_total: 150, ..Limits::default() });
    w.away("a");
    let p = w.clean("p");
    for _ in 0..11 {
        w.send(p, publish(1, QoS::AtLeastOnce, "t", "012345678"));
    }
    assert_eq!((w.broker.session("a").unwrap().queued, w.counters().shed_queue_bytes), (10, 1));
    w.away("b");
    for _ in 0..6 {
        w.send(p, publish(1, QoS::AtLeastOnce, "t", "012345678"));
    }
    assert_eq!((w.broker.session("b").unwrap().queued, w.counters().shed_queue_total), (5, 1));
    w.clean("a");
    w.send(p, publish(1, QoS::AtLeastOnce, "t", "012345678"));
    assert_eq!(w.broker.session("b").unwrap().queued, 6, "what a forgotten session held is free");
}

// Faults

#[test]
fn a_withheld_acknowledgement_comes_on_release() {
    let mut w = World::new();
    let p = w.clean("p");
    w.inject(Fault::Withhold { client: id("p"), kind: Kind::PubAck, skip: 1, count: 2 });
    for pkid in 1..=4 {
        w.send(p, publish(pkid, QoS::AtLeastOnce, "t", "x"));
    }
    w.expect(p, [puback(1), puback(4)]);
    w.inject(Fault::Release { client: id("p") });
    w.expect(p, [puback(2), puback(3)]);
    assert_eq!(w.counters().published, 4);
    w.inject(Fault::Withhold { client: id("p"), kind: Kind::PingResp, skip: 0, count: usize::MAX });
    w.send(p, Packet::PingReq);
    w.handle(Input::Closed(p));
    let p = w.clean("p");
    w.inject(Fault::Release { client: id("p") });
    w.expect(p, []);
}

#[test]
fn a_connack_can_be_withheld() {
    let mut w = World::new();
    w.inject(Fault::Withhold { client: id("p"), kind: Kind::ConnAck, skip: 0, count: 1 });
    let p = w.open();
    w.send(p, Packet::Connect(connect("p", true)));
    w.expect(p, []);
    w.inject(Fault::Release { client: id("p") });
    w.expect(p, [connack(false)]);
}

#[test]
fn a_connection_is_cut_after_octets_received() {
    let mut w = World::new();
    let p = w.connect_with(connect("p", false), false);
    let packet = encoded(&publish(1, QoS::AtLeastOnce, "t", "x"));
    w.inject(Fault::CutReceived { whom: Whom::Client(id("p")), after: packet.len() });
    w.bytes(p, &packet[..3]);
    assert!(!w.closed.contains(&p));
    w.bytes(p, &[&packet[3..], &packet[..]].concat());
    assert!(w.closed.contains(&p));
    w.expect(p, []);
    assert_eq!((w.counters().published, w.counters().closed_by_fault), (1, 1));

    // The client is away: the count begins behind its CONNECT.
    w.inject(Fault::CutReceived { whom: Whom::Client(id("p")), after: packet.len() + 1 });
    let p = w.open();
    w.bytes(p, &[&encoded(&Packet::Connect(connect("p", false)))[..], &packet, &packet].concat());
    assert!(w.closed.contains(&p));
    assert_eq!(w.counters().published, 2);

    w.inject(Fault::CutReceived { whom: Whom::NextConnection, after: 3 });
    let p = w.open();
    w.bytes(p, &encoded(&Packet::Connect(connect("p", false))));
    assert!(w.closed.contains(&p));
    assert_eq!(w.counters().connects_accepted, 2);
    let p = w.connect_with(connect("p", false), true);
    w.inject(Fault::CutReceived { whom: Whom::Client(id("p")), after: packet.len() - 1 });
    w.bytes(p, &packet);
    assert_eq!((w.counters().published, w.counters().closed_by_fault), (2, 4), "an octet is missing");
    w.connect_with(connect("p", false), true);
    w.inject(Fault::CutReceived { whom: Whom::Client(id("p")), after: 0 });
    assert_eq!(w.counters().closed_by_fault, 5);
}

#[test]
fn a_connection_is_cut_after_octets_sent() {
    let mut w = World::new();
    let p = w.connect_with(with_will("p", LastWill::new("t", "x", QoS::AtMostOnce, false)), false);
    let s = w.subscriber("s", "t", QoS::AtMostOnce);
    w.inject(Fault::CutSent { whom: Whom::Client(id("p")), after: 3 });
    w.send(p, Packet::PingReq);
    w.expect(p, [Packet::PingResp]);
    w.send(p, Packet::PingReq);
    assert_eq!(w.got.remove(&p).unwrap(), &b"\xd0"[..]);
    assert!(w.closed.contains(&p));
    w.expect(s, [qos0("t", "x")]);
    w.inject(Fault::CutSent { whom: Whom::NextConnection, after: 1 });
    w.inject(Fault::CutSent { whom: Whom::Client(id("q")), after: 0 });
    let q = w.open();
    w.send(q, Packet::Connect(connect("q", true)));
    w.expect(q, []);
    assert!(w.closed.contains(&q));
}

#[test]
fn a_session_is_forgotten_and_a_connect_refused_on_command() {
    let mut w = World::new();
    let a = w.connect_with(connect("a", false), false);
    w.inject(Fault::ForgetSession { client: id("a") });
    assert!(w.closed.contains(&a));
    w.connect_with(connect("a", false), false);
    let code = ConnectReturnCode::NotAuthorized;
    w.inject(Fault::Refuse { client: Some(id("a")), code, count: 1 });
    w.inject(Fault::Refuse { client: None, code: ConnectReturnCode::ServiceUnavailable, count: 2 });
    for code in [code, ConnectReturnCode::ServiceUnavailable, ConnectReturnCode::ServiceUnavailable] {
        let a = w.open();
        w.send(a, Packet::Connect(connect("a", false)));
        w.expect(a, refused(code));
    }
    w.connect_with(connect("a", false), true);
}

#[test]
fn output_is_delayed_and_keeps_its_order() {
    let mut w = World::new();
    let a = w.clean("a");
    let delay = |ms| Fault::Delay { client: id("a"), by: Duration::from_millis(ms) };
    w.inject(delay(300));
    w.send(a, publish(1, QoS::AtLeastOnce, "t", "x"));
    w.now += Duration::from_millis(100);
    w.send(a, publish(2, QoS::AtLeastOnce, "t", "x"));
    w.inject(delay(0));
    w.send(a, Packet::PingReq);
    w.expect(a, []);
    assert_eq!(w.wait(), Duration::from_millis(200));
    w.expect(a, [puback(1)]);
    assert_eq!(w.wait(), Duration::from_millis(100));
    w.expect(a, [puback(2), Packet::PingResp]);
    w.send(a, Packet::PingReq);
    w.expect(a, [Packet::PingResp]);
    assert_eq!(w.broker.poll_timeout(), None);
}

#[test]
fn any_packet_can_be_sent_and_any_qos_granted() {
    let mut w = World::new();
    let a = w.clean("a");
    w.inject(Fault::Send { client: id("a"), packet: pubrel(77) });
    w.inject(Fault::Send { client: id("a"), packet: publish(0, QoS::AtLeastOnce, "no id", "") });
    w.inject(Fault::SendBytes { client: id("a"), bytes: Bytes::from_static(b"\xd0\0") });
    w.inject(Fault::Send { client: id("nobody"), packet: Packet::PingResp });
    w.expect(a, [pubrel(77), Packet::PingResp]);
    let (yes, no) = (SubscribeReasonCode::Success, SubscribeReasonCode::Failure);
    w.inject(Fault::Grant { client: id("a"), code: yes(QOS[1]), count: 2 });
    w.send(a, subscribe(1, [("a", QOS[2]), ("b", QOS[0]), ("c", QOS[2])]));
    w.expect(a, [suback(1, [yes(QOS[1]), yes(QOS[0]), yes(QOS[2])])]);
    w.inject(Fault::Grant { client: id("a"), code: no, count: usize::MAX });
    w.send(a, subscribe(2, [("d", QOS[2])]));
    w.expect(a, [suback(2, [no])]);
}

// Anything

fn octets() -> impl Strategy<Value = Vec<u8>> {
    let text = || prop::sample::select(vec!["a", "b", "a/b", "#", "+/b", "$x", "$share/g/a", "", "a#"]);
    let qos = || prop::sample::select(QOS.to_vec());
    let packet = prop_oneof![
        (text(), any::<bool>(), 0..3u16, prop::option::of((text(), qos(), any::<bool>()))).prop_map(
            |(client, clean, keep_alive, will)| Packet::Connect(Connect {
                keep_alive,
                last_will: will.map(|(topic, qos, retain)| LastWill::new(topic, "will", qos, retain)),
                ..connect(client, clean)
            })
        ),
        (1..4u16, qos(), text(), "[x]{0,9}", any::<bool>()).prop_map(|(pkid, qos, topic, payload, keep)| {
            let packet = publish(if qos == QOS[0] { 0 } else { pkid }, qos, topic, &payload);
            if keep { retain(packet) } else { packet }
        }),
        (1..4u16, prop::sample::select(vec![puback, pubrec, pubrel, pubcomp]))
            .prop_map(|(pkid, ack)| ack(pkid)),
        prop::collection::vec((text(), qos()), 1..4).prop_map(|filters| subscribe(1, filters)),
        text().prop_map(|filter| Packet::Unsubscribe(Unsubscribe { pkid: 1, ..Unsubscribe::new(filter) })),
        Just(Packet::PingReq),
        Just(Packet::Disconnect),
    ];
    prop_oneof![
        20 => packet.prop_map(|packet| encoded(&packet).to_vec()),
        2 => prop::collection::vec(any::<u8>(), 1..20),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Open,
    Bytes(u64, Vec<u8>),
    Closed(u64),
    Stick(u64),
    Drained(u64),
    Wait,
    Inject(Fault),
    Restart(Memory),
}

fn step() -> impl Strategy<Value = Step> {
    let client = || prop::sample::select(vec![id("a"), id("b")]);
    let whom = || prop_oneof![client().prop_map(Whom::Client), Just(Whom::NextConnection)];
    let kinds = vec![Kind::ConnAck, Kind::Publish, Kind::PubAck, Kind::PubRec, Kind::PubRel, Kind::SubAck];
    let fault = prop_oneof![
        (client(), prop::sample::select(kinds), 0..2usize, 0..3usize)
            .prop_map(|(client, kind, skip, count)| Fault::Withhold { client, kind, skip, count }),
        client().prop_map(|client| Fault::Release { client }),
        (whom(), 0..40usize).prop_map(|(whom, after)| Fault::CutReceived { whom, after }),
        (whom(), 0..40usize).prop_map(|(whom, after)| Fault::CutSent { whom, after }),
        client().prop_map(|client| Fault::ForgetSession { client }),
        client().prop_map(|client| Fault::Refuse {
            client: Some(client),
            code: ConnectReturnCode::NotAuthorized,
            count: 1
        }),
        (client(), 0..2000u64)
            .prop_map(|(client, ms)| Fault::Delay { client, by: Duration::from_millis(ms) }),
        (client(), octets())
            .prop_map(|(client, octets)| Fault::SendBytes { client, bytes: Bytes::from(octets) }),
    ];
    prop_oneof![
        2 => Just(Step::Open),
        20 => (1..9u64, octets()).prop_map(|(id, octets)| Step::Bytes(id, octets)),
        2 => (1..9u64).prop_map(Step::Closed),
        1 => (1..9u64).prop_map(Step::Stick),
        1 => (1..9u64).prop_map(Step::Drained),
        1 => Just(Step::Wait),
        2 => fault.prop_map(Step::Inject),
        1 => prop::sample::select(vec![Memory::Kept, Memory::Lost]).prop_map(Step::Restart),
    ]
}

fn run(steps: &[Step]) -> Vec<Output> {
    let limits = Limits {
        connections: 4,
        sessions: 3,
        packet: 60,
        window: 2,
        queue_messages: 3,
        queue_bytes: 20,
        queue_bytes_total: 40,
        subscriptions: 3,
        retained: 2,
        retained_bytes: 20,
        write_ahead: 20,
        ..Limits::default()
    };
    let mut broker = Broker::new(limits);
    let (mut now, mut opened) = (Instant::now(), 0);
    let (mut stuck, mut outputs) = (BTreeSet::new(), Vec::new());
    for step in steps {
        match step.clone() {
            Step::Open => {
                opened += 1;
                broker.handle(now, Input::Opened(ConnectionId(opened)));
            }
            Step::Bytes(id, octets) => broker.handle(now, Input::Bytes(ConnectionId(id), octets.into())),
            Step::Closed(id) => broker.handle(now, Input::Closed(ConnectionId(id))),
            Step::Stick(id) => drop(stuck.insert(ConnectionId(id))),
            Step::Drained(id) => {
                stuck.remove(&ConnectionId(id));
                broker.handle(now, Input::Drained(ConnectionId(id)));
            }
            Step::Wait => {
                now = broker.poll_timeout().unwrap_or(now);
                broker.handle_timeout(now);
                assert!(broker.poll_timeout().is_none_or(|next| next > now));
            }
            Step::Inject(fault) => broker.inject(now, fault),
            Step::Restart(memory) => broker.restart(memory),
        }
        broker.check();
        while let Some(output) = broker.poll_output() {
            if let Output::Write(id, _) = output
                && !stuck.contains(&id)
            {
                broker.handle(now, Input::Drained(id));
            }
            outputs.push(output);
            broker.check();
        }
    }
    outputs
}

proptest! {
    #[test]
    fn nothing_breaks_the_invariants_and_the_same_inputs_give_the_same_outputs(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut all = Vec::new();
        for (number, client) in [(1, "a"), (2, "b")] {
            let connect = encoded(&Packet::Connect(connect(client, false)));
            let subscribe = encoded(&subscribe(1, [("#", QoS::ExactlyOnce)]));
            all.extend([Step::Open, Step::Bytes(number, [connect, subscribe].concat())]);
        }
        all.extend(steps);
        prop_assert_eq!(run(&all), run(&all));
    }
}
