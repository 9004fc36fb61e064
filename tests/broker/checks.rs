//! What a broker must do (MQTT 3.1.1), each check on topics and client ids of its own.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rumqttc::{Connect, ConnectReturnCode, LastWill, Packet, PubAck, PubComp, PubRec, PubRel, Publish, QoS};
use rumqttc::{SubscribeFilter, SubscribeReasonCode};

use crate::client::{Client, connect, publish, retained};

const QOS0: QoS = QoS::AtMostOnce;
const QOS1: QoS = QoS::AtLeastOnce;
const QOS2: QoS = QoS::ExactlyOnce;

/// Where a check runs.
pub(crate) struct Place {
    pub(crate) port: u16,
    pub(crate) name: &'static str,
}

pub(crate) type Check = fn(&Place);

macro_rules! checks {
    ($($name:ident,)*) => {
        /// All checks with their names.
        pub(crate) const CHECKS: &[(&str, Check)] = &[$((stringify!($name), $name)),*];
    };
}

checks! {
    qos_0_is_delivered,
    qos_1_is_delivered_and_acknowledged,
    qos_2_is_delivered_once_with_four_packets,
    the_subscription_lowers_the_qos,
    a_retained_message_comes_to_later_subscribers_with_the_flag,
    a_retained_message_is_replaced,
    an_empty_retained_message_clears,
    every_subscribe_brings_the_retained_messages_again,
    a_will_is_published_when_the_connection_drops,
    a_will_may_be_retained,
    no_will_after_disconnect,
    offline_messages_of_qos_1_come_in_order,
    offline_messages_of_qos_2_come_in_order,
    offline_messages_of_qos_0_are_not_kept,
    no_more_than_20_messages_are_unsettled,
    an_unacknowledged_message_comes_again_with_dup,
    a_pubrel_comes_again,
    a_repeated_qos_2_message_is_delivered_once,
    a_newer_connection_takes_over,
    an_unsubscribed_filter_brings_nothing,
    a_payload_of_64_kb_arrives,
    overlapping_filters_bring_one_copy_or_one_each,
    wildcards_do_not_match_dollar_topics,
    wildcards_match_by_level,
    session_present_tells_the_truth,
    a_clean_session_forgets_the_kept_one,
    a_silent_client_is_closed,
    an_empty_client_id_needs_a_clean_session,
    an_unknown_protocol_level_is_refused_with_code_1,
    a_second_connect_closes,
    a_wildcard_in_a_topic_closes,
    what_is_no_packet_closes,
    many_packets_in_one_write_are_all_served,
}

impl Place {
    /// `below` in the topics of this check; also a client id.
    fn of(&self, below: &str) -> String {
        format!("{}/{below}", self.name)
    }

    #[track_caller]
    fn clean(&self, client: &str) -> Client {
        Client::clean(self.port, &self.of(client))
    }

    /// A clean session with one subscription.
    #[track_caller]
    fn subscriber(&self, client: &str, filter: &str, qos: QoS) -> Client {
        let mut subscriber = self.clean(client);
        assert_eq!(subscriber.subscribe(&self.of(filter), qos), SubscribeReasonCode::Success(qos));
        subscriber
    }

    #[track_caller]
    fn kept(&self, client: &str) -> (Client, bool) {
        Client::kept(self.port, &self.of(client))
    }

    /// A kept session with one subscription that is away.
    #[track_caller]
    fn away(&self, client: &str, filter: &str, qos: QoS) {
        let (mut subscriber, present) = self.kept(client);
        assert!(!present);
        subscriber.subscribe(&self.of(filter), qos);
        subscriber.disconnect();
    }

    /// With a will on the topic `will`.
    #[track_caller]
    fn mortal(&self, keep_alive: u16, retain: bool) -> Client {
        let will = LastWill::new(self.of("will"), "died", QOS1, retain);
        let connect = Connect { last_will: Some(will), keep_alive, ..connect(&self.of("mortal"), true) };
        let (client, code, _) = Client::connect_with(self.port, connect);
        assert_eq!(code, ConnectReturnCode::Success);
        client
    }

    fn publish(&self, topic: &str, qos: QoS, payload: &str) -> Publish {
        publish(&self.of(topic), qos, payload)
    }

    fn retained(&self, topic: &str, qos: QoS, payload: &str) -> Publish {
        retained(&self.of(topic), qos, payload)
    }
}

fn payloads(publishes: &[Publish]) -> Vec<&str> {
    publishes.iter().map(|publish| std::str::from_utf8(&publish.payload).unwrap()).collect()
}

fn qos_0_is_delivered(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS0);
    at.clean("p").publish(at.publish("t", QOS0, "x"));
    assert_eq!(s.take(), at.publish("t", QOS0, "x"));
}

fn qos_1_is_delivered_and_acknowledged(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS1);
    at.clean("p").publish(at.publish("t", QOS1, "x"));
    let got = s.take();
    assert!(got.pkid != 0 && !got.dup && !got.retain);
    assert_eq!((got.qos, &got.payload[..]), (QOS1, &b"x"[..]));
}

fn qos_2_is_delivered_once_with_four_packets(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS2);
    at.clean("p").publish(at.publish("t", QOS2, "x"));
    let got = s.take();
    assert_eq!((got.qos, &got.payload[..], got.dup), (QOS2, &b"x"[..], false));
    assert!(s.take_all().is_empty());
}

fn the_subscription_lowers_the_qos(at: &Place) {
    let mut p = at.clean("p");
    for granted in [QOS0, QOS1, QOS2] {
        let mut s = at.subscriber("s", "t", granted);
        for published in [QOS0, QOS1, QOS2] {
            p.publish(at.publish("t", published, "x"));
            let expected = if granted < published { granted } else { published };
            assert_eq!(s.take().qos, expected);
        }
    }
}

fn a_retained_message_comes_to_later_subscribers_with_the_flag(at: &Place) {
    let mut live = at.subscriber("live", "t", QOS1);
    let mut p = at.clean("p");
    p.publish(at.retained("t", QOS1, "x"));
    assert!(!live.take().retain);
    let mut late = at.subscriber("late", "#", QOS1);
    let got = late.take();
    assert_eq!((got.retain, got.qos, &got.payload[..]), (true, QOS1, &b"x"[..]));
    p.publish(at.publish("t", QOS1, "live"));
    assert_eq!(payloads(&late.take_all()), ["live"]);
    assert_eq!(payloads(&at.subscriber("later", "t", QOS1).take_all()), ["x"]);
}

fn a_retained_message_is_replaced(at: &Place) {
    let mut p = at.clean("p");
    p.publish(at.retained("t", QOS1, "old"));
    p.publish(at.retained("t", QOS1, "new"));
    assert_eq!(payloads(&at.subscriber("s", "+", QOS1).take_all()), ["new"]);
}

fn an_empty_retained_message_clears(at: &Place) {
    let mut p = at.clean("p");
    let mut live = at.subscriber("live", "t", QOS1);
    p.publish(at.retained("t", QOS1, "x"));
    p.publish(at.retained("t", QOS1, ""));
    assert_eq!(payloads(&live.take_all()), ["x", ""]);
    assert!(at.subscriber("s", "#", QOS1).take_all().is_empty());
}

fn every_subscribe_brings_the_retained_messages_again(at: &Place) {
    at.clean("p").publish(at.retained("t", QOS1, "x"));
    let mut s = at.clean("s");
    for _ in 0..3 {
        s.subscribe(&at.of("#"), QOS1);
        let got = s.take_all();
        assert_eq!(payloads(&got), ["x"]);
        assert!(got[0].retain);
    }
}

fn a_will_is_published_when_the_connection_drops(at: &Place) {
    let mut s = at.subscriber("s", "will", QOS2);
    drop(at.mortal(60, false));
    let will = s.take();
    assert_eq!((will.qos, &will.payload[..], will.retain), (QOS1, &b"died"[..], false));
    assert!(at.subscriber("late", "will", QOS1).take_all().is_empty());
}

fn a_will_may_be_retained(at: &Place) {
    let mut s = at.subscriber("s", "will", QOS1);
    drop(at.mortal(60, true));
    assert!(!s.take().retain);
    let late = at.subscriber("late", "will", QOS1).take_all();
    assert!(payloads(&late) == ["died"] && late[0].retain);
}

fn no_will_after_disconnect(at: &Place) {
    let mut s = at.subscriber("s", "will", QOS1);
    at.mortal(60, true).disconnect();
    assert!(s.take_all().is_empty());
    assert!(at.subscriber("late", "will", QOS1).take_all().is_empty());
}

fn offline_messages_of_qos_1_come_in_order(at: &Place) {
    offline_messages_come_in_order(at, QOS1);
}

fn offline_messages_of_qos_2_come_in_order(at: &Place) {
    offline_messages_come_in_order(at, QOS2);
}

fn offline_messages_come_in_order(at: &Place, qos: QoS) {
    at.away("s", "t", qos);
    let mut p = at.clean("p");
    for n in 0..150 {
        p.publish(at.publish("t", qos, &n.to_string()));
    }
    let (mut s, present) = at.kept("s");
    assert!(present);
    for n in 0..150 {
        let got = s.take();
        assert_eq!((&got.payload[..], got.qos, got.dup), (n.to_string().as_bytes(), qos, false));
    }
    assert!(s.take_all().is_empty());
}

fn offline_messages_of_qos_0_are_not_kept(at: &Place) {
    at.away("s", "t", QOS1);
    let mut p = at.clean("p");
    p.publish(at.publish("t", QOS0, "not kept"));
    p.publish(at.publish("t", QOS1, "kept"));
    assert_eq!(payloads(&at.kept("s").0.take_all()), ["kept"]);
}

fn no_more_than_20_messages_are_unsettled(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS1);
    let mut p = at.clean("p");
    for n in 0..30 {
        p.publish(at.publish("t", QOS1, &n.to_string()));
    }
    s.send(Packet::PingReq);
    let mut got = Vec::new();
    loop {
        match s.recv() {
            Packet::Publish(publish) => got.push(publish),
            Packet::PingResp => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got.len(), 20);
    s.send(Packet::PubAck(PubAck::new(got[0].pkid)));
    assert_eq!(&s.take().payload[..], b"20");
}

fn an_unacknowledged_message_comes_again_with_dup(at: &Place) {
    at.away("s", "#", QOS2);
    let mut p = at.clean("p");
    for (n, qos) in [(1, QOS1), (2, QOS2), (3, QOS1)] {
        p.publish(at.publish("t", qos, &n.to_string()));
    }
    let (mut s, _) = at.kept("s");
    let first: Vec<_> = (0..3).map(|_| s.recv_publish()).collect();
    assert!(first.iter().all(|publish| !publish.dup));
    drop(s);
    let (mut s, present) = at.kept("s");
    assert!(present);
    for expected in first {
        assert_eq!(s.take(), Publish { dup: true, ..expected });
    }
    assert!(s.take_all().is_empty());
}

fn a_pubrel_comes_again(at: &Place) {
    at.away("s", "t", QOS2);
    at.clean("p").publish(at.publish("t", QOS2, "x"));
    let (mut s, _) = at.kept("s");
    let pkid = s.recv_publish().pkid;
    s.send(Packet::PubRec(PubRec::new(pkid)));
    assert_eq!(s.recv(), Packet::PubRel(PubRel::new(pkid)));
    drop(s);
    let (mut s, _) = at.kept("s");
    assert_eq!(s.recv(), Packet::PubRel(PubRel::new(pkid)));
    s.send(Packet::PubComp(PubComp::new(pkid)));
    assert!(s.take_all().is_empty());
    drop(s);
    assert!(at.kept("s").0.take_all().is_empty());
}

fn a_repeated_qos_2_message_is_delivered_once(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS2);
    let message = Publish { pkid: 7, ..at.publish("t", QOS2, "x") };
    let (mut p, _) = at.kept("p");
    p.send(Packet::Publish(message.clone()));
    assert_eq!(p.recv(), Packet::PubRec(PubRec::new(7)));
    p.send(Packet::Publish(Publish { dup: true, ..message.clone() }));
    assert_eq!(p.recv(), Packet::PubRec(PubRec::new(7)));
    drop(p);
    let (mut p, present) = at.kept("p");
    assert!(present);
    p.send(Packet::Publish(Publish { dup: true, ..message }));
    // Mosquitto repeats the PUBREC of its own accord.
    while p.recv() != Packet::PubRec(PubRec::new(7)) {}
    p.send(Packet::PubRel(PubRel::new(7)));
    while p.recv() != Packet::PubComp(PubComp::new(7)) {}
    assert_eq!(&s.take().payload[..], b"x");
    assert!(s.take_all().is_empty());
}

fn a_newer_connection_takes_over(at: &Place) {
    let mut s = at.subscriber("s", "will", QOS1);
    let mut older = at.mortal(60, false);
    let mut newer = at.clean("mortal");
    assert!(older.is_closed());
    assert_eq!(&s.take().payload[..], b"died");
    assert!(newer.take_all().is_empty());
}

fn an_unsubscribed_filter_brings_nothing(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS1);
    s.subscribe(&at.of("u"), QOS1);
    s.unsubscribe(&at.of("t"));
    s.unsubscribe(&at.of("never subscribed"));
    let mut p = at.clean("p");
    p.publish(at.publish("t", QOS1, "x"));
    p.publish(at.publish("u", QOS1, "y"));
    assert_eq!(payloads(&s.take_all()), ["y"]);
}

fn a_payload_of_64_kb_arrives(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS2);
    let mut p = at.clean("p");
    let payload: String = (0..64_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    for qos in [QOS0, QOS1, QOS2] {
        p.publish(at.publish("t", qos, &payload));
        assert!(s.take().payload == payload.as_bytes());
    }
}

fn overlapping_filters_bring_one_copy_or_one_each(at: &Place) {
    let mut s = at.clean("s");
    let filters = [("a/+", QOS0), ("a/#", QOS2), ("a/b", QOS1)];
    let pkid = s.id();
    let filters = filters.map(|(filter, qos)| SubscribeFilter::new(at.of(filter), qos)).to_vec();
    s.send(Packet::Subscribe(rumqttc::Subscribe { pkid, filters }));
    let codes = [QOS0, QOS2, QOS1].map(SubscribeReasonCode::Success).to_vec();
    assert_eq!(s.recv(), Packet::SubAck(rumqttc::SubAck::new(pkid, codes)));
    at.clean("p").publish(at.publish("a/b", QOS2, "x"));
    let got = s.take_all();
    assert!((1..=3).contains(&got.len()), "{got:?}");
    // Mosquitto sends one copy at the QoS of whichever filter it finds first; ours is checked beside its code.
    assert!(got.iter().all(|publish| &publish.payload[..] == b"x"));
}

fn wildcards_do_not_match_dollar_topics(at: &Place) {
    let mut s = at.clean("s");
    // No wildcard in a later level, or the other checks' messages would come too.
    s.subscribe(&format!("+/{}", at.name), QOS1);
    let mut p = at.clean("p");
    p.publish(publish(&format!("$data/{}", at.name), QOS1, "hidden"));
    p.publish(publish(&format!("data/{}", at.name), QOS1, "seen"));
    assert_eq!(payloads(&s.take_all()), ["seen"]);
    s.subscribe(&format!("$data/{}", at.name), QOS1);
    p.publish(publish(&format!("$data/{}", at.name), QOS1, "asked for"));
    assert_eq!(payloads(&s.take_all()), ["asked for"]);
    let mut all = at.clean("all");
    all.subscribe("#", QOS1);
    p.publish(publish(&format!("$data/{}", at.name), QOS1, "hidden"));
    p.publish(at.publish("last", QOS1, "seen"));
    while all.take().topic != at.of("last") {}
    assert!(all.take_all().iter().all(|publish| !publish.topic.starts_with('$')));
}

fn wildcards_match_by_level(at: &Place) {
    let mut p = at.clean("p");
    for (filter, expected) in [
        ("+", vec!["a", "b"]),
        ("+/b", vec!["a/b"]),
        ("a/+", vec!["a/b", "a/"]),
        ("a/#", vec!["a", "a/b", "a/", "a/b/c"]),
        ("+/+/c", vec!["a/b/c"]),
        ("a", vec!["a"]),
    ] {
        let mut s = at.subscriber("s", filter, QOS1);
        for topic in ["a", "b", "a/b", "a/", "a/b/c"] {
            p.publish(at.publish(topic, QOS1, topic));
        }
        assert_eq!(payloads(&s.take_all()), expected, "{filter}");
    }
}

fn session_present_tells_the_truth(at: &Place) {
    let (first, present) = at.kept("s");
    assert!(!present);
    first.disconnect();
    let (second, present) = at.kept("s");
    assert!(present);
    drop(second);
    let (third, present) = at.kept("s");
    assert!(present);
    third.disconnect();
    at.clean("s").disconnect();
    assert!(!at.kept("s").1);
}

fn a_clean_session_forgets_the_kept_one(at: &Place) {
    at.away("s", "t", QOS1);
    let mut p = at.clean("p");
    p.publish(at.publish("t", QOS1, "x"));
    let mut s = at.clean("s");
    p.publish(at.publish("t", QOS1, "y"));
    assert!(s.take_all().is_empty());
    s.disconnect();
    assert!(at.kept("s").0.take_all().is_empty());
}

fn a_silent_client_is_closed(at: &Place) {
    let mut s = at.subscriber("s", "will", QOS1);
    let started = Instant::now();
    let mut silent = at.mortal(1, false);
    // Packets of any kind keep it alive.
    for _ in 0..4 {
        sleep(Duration::from_millis(500));
        silent.send(Packet::PingReq);
        assert_eq!(silent.recv(), Packet::PingResp);
    }
    assert!(silent.is_closed());
    assert!(started.elapsed() > Duration::from_secs(3));
    assert_eq!(&s.take().payload[..], b"died");
}

fn an_empty_client_id_needs_a_clean_session(at: &Place) {
    let (mut a, code, _) = Client::connect_with(at.port, connect("", true));
    assert_eq!(code, ConnectReturnCode::Success);
    let (mut b, code, _) = Client::connect_with(at.port, connect("", true));
    assert_eq!(code, ConnectReturnCode::Success);
    assert!(a.take_all().is_empty() && b.take_all().is_empty());
    let (mut c, code, present) = Client::connect_with(at.port, connect("", false));
    assert_eq!((code, present), (ConnectReturnCode::BadClientId, false));
    assert!(c.is_closed());
}

fn an_unknown_protocol_level_is_refused_with_code_1(at: &Place) {
    let mut c = Client::open(at.port);
    c.write(b"\x10\x0d\0\x04MQTT\x07\x02\0\x3c\0\x01a");
    let refused = rumqttc::ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false);
    assert_eq!(c.recv(), Packet::ConnAck(refused));
    assert!(c.is_closed());
}

fn a_second_connect_closes(at: &Place) {
    let mut c = at.clean("c");
    c.send(Packet::Connect(connect(&at.of("c"), true)));
    assert!(c.is_closed());
}

fn a_wildcard_in_a_topic_closes(at: &Place) {
    for topic in ["a/#", "+"] {
        let mut c = at.clean("c");
        c.send(Packet::Publish(at.publish(topic, QOS0, "x")));
        assert!(c.is_closed());
    }
}

fn what_is_no_packet_closes(at: &Place) {
    for octets in [&b"\x00\0"[..], b"\xf0\0", b"\x36\x05\0\x01a\0\x01", b"\x30\xff\xff\xff\xff\x01"] {
        let mut c = at.clean("c");
        c.write(octets);
        assert!(c.is_closed(), "{octets:?}");
    }
    let mut c = Client::open(at.port);
    c.send(Packet::PingReq);
    assert!(c.is_closed());
}

fn many_packets_in_one_write_are_all_served(at: &Place) {
    let mut s = at.subscriber("s", "t", QOS1);
    let mut p = at.clean("p");
    let mut octets = bytes::BytesMut::new();
    for n in 1..=500 {
        let message = Publish { pkid: n, ..at.publish("t", QOS1, &n.to_string()) };
        Packet::Publish(message).write(&mut octets, usize::MAX).unwrap();
    }
    p.write(&octets);
    for n in 1..=500 {
        assert_eq!(p.recv(), Packet::PubAck(PubAck::new(n)));
    }
    for n in 1..=500 {
        assert_eq!(&s.take().payload[..], n.to_string().as_bytes());
    }
}
