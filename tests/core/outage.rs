//! The broker is away or slow: what clients publish is kept for it (design promises G1 and G3), over a crash too.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{Control, Input, LinkCommand, LinkEvent, Mode, OutageQueue, Settings};
use mqtt_sn_gateway::gateway::record::{ClientKey, Key};
use mqtt_sn_gateway::wire::{Packet, Qos, ReturnCode, SearchGw, TopicRef, WillTopic, decode};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const B: At = 2;

/// On a short name, so that nothing has to be registered.
const T: TopicRef = TopicRef::Short(*b"tt");

/// After this the gateway has asked for another connection.
const PAUSE: Duration = Duration::from_secs(31);

fn lasting() -> World {
    lasting_with(|_| {})
}

fn lasting_with(change: impl FnOnce(&mut Settings)) -> World {
    world_with(|settings| keeping(settings, change))
}

fn keeping(settings: &mut Settings, change: impl FnOnce(&mut Settings)) {
    settings.lasting = true;
    let age = Duration::from_secs(3600);
    settings.broker.outage_queue = Some(OutageQueue { messages: 50, bytes: 2000, age });
    change(settings);
}

/// Its gateway serves each client by a link of its own.
fn transparent() -> World {
    transparent_with(|_| {})
}

fn transparent_with(change: impl FnOnce(&mut Settings)) -> World {
    lasting_with(|settings| {
        settings.ports[0].mode = Mode::Transparent;
        change(settings);
    })
}

/// A client that the broker has accepted on a link of its own, on which the test plays the broker.
#[track_caller]
fn served(w: &mut World, at: At, id: &str, clean: bool) {
    w.send(at, connect_with(id, false, clean, 0));
    w.admitted(at, id, false);
}

/// A client that may be silent for as long as it likes.
#[track_caller]
fn active(w: &mut World, at: At, id: &str) {
    w.connected(at, connect_with(id, false, true, 0));
}

/// What is stored that belongs to messages on their way to the broker.
fn under_way(w: &World) -> usize {
    let is_uplink = |key: &&Key| matches!(key, Key::Client(_, ClientKey::Uplink(_)));
    w.store.rows.keys().filter(is_uplink).count()
}

#[track_caller]
fn acknowledged(w: &mut World, at: At, msg_id: u16) {
    w.expect(at, puback(T, msg_id, ReturnCode::Accepted));
}

/// The broker gets what the client at A publishes and says nothing of it, so that the client is told when it is kept.
#[track_caller]
fn kept_for_slow_broker(w: &mut World, msg_id: u16, qos: Qos, data: &str) {
    w.send(A, publish(T, qos, msg_id, data));
    let (at_broker, answer) = match qos {
        Qos::ExactlyOnce => (QoS::ExactlyOnce, pubrec(msg_id)),
        _ => (QoS::AtLeastOnce, puback(T, msg_id, ReturnCode::Accepted)),
    };
    w.broker_gets("tt", data, at_broker);
    w.pass(Duration::from_secs(8));
    w.expect(A, answer);
}

/// The broker has said PUBREC for `a` of the client at A and is slow to answer PUBREL, so that the client is told that all is
/// well. Returns the packet id.
#[track_caller]
fn taken_over_by_slow_broker(w: &mut World) -> u16 {
    w.send(A, publish(T, Qos::ExactlyOnce, 1, "a"));
    let pkid = w.broker_gets("tt", "a", QoS::ExactlyOnce);
    w.broker_pubrecs(pkid);
    w.expect(A, pubrec(1));
    w.send(A, pubrel(1));
    w.pass(Duration::from_secs(8));
    w.expect(A, pubcomp(1));
    w.broker_gets_pubrel(pkid);
    pkid
}

/// The client publishes and is told that all is well.
#[track_caller]
fn publishes(w: &mut World, at: At, msg_id: u16, qos: Qos, data: &str) {
    w.send(at, publish(T, qos, msg_id, data));
    match qos {
        Qos::AtLeastOnce => acknowledged(w, at, msg_id),
        Qos::ExactlyOnce => {
            w.expect(at, pubrec(msg_id));
            w.finishes(at, msg_id);
        }
        Qos::AtMostOnce | Qos::MinusOne => w.quiet(),
    }
}

#[track_caller]
fn back(w: &mut World, session_present: bool) {
    w.pass(PAUSE);
    w.broker_up(session_present);
}

/// The broker gets this and says that it has it.
#[track_caller]
fn arrives(w: &mut World, data: &str, qos: QoS) {
    let pkid = gets(w, data, qos);
    match qos {
        QoS::AtMostOnce => {}
        QoS::AtLeastOnce => w.broker_pubacks(pkid),
        QoS::ExactlyOnce => {
            w.broker_pubrecs(pkid);
            releases(w, pkid);
        }
    }
}

/// The broker gets this; before it PUBREL, where the gateway does not know what the broker has under the packet id.
#[track_caller]
fn gets(w: &mut World, data: &str, qos: QoS) -> u16 {
    let packet = match w.broker_next() {
        v4::Packet::PubRel(v4::PubRel { pkid }) if qos == QoS::ExactlyOnce => {
            w.broker_pubcomps(pkid);
            w.broker_next()
        }
        packet => packet,
    };
    match packet {
        v4::Packet::Publish(publish) => {
            assert_eq!((&publish.payload[..], publish.qos), (data.as_bytes(), qos));
            publish.pkid
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn releases(w: &mut World, pkid: u16) {
    w.broker_gets_pubrel(pkid);
    w.broker_pubcomps(pkid);
}

/// The broker gets `a` of QoS 1, `b` of QoS 2 and `c` of this in their order, and is done with `b` last.
#[track_caller]
fn three_arrive(w: &mut World, qos_of_c: QoS) {
    arrives(w, "a", QoS::AtLeastOnce);
    let pkid = w.broker_gets("tt", "b", QoS::ExactlyOnce);
    arrives(w, "c", qos_of_c);
    w.broker_pubrecs(pkid);
    releases(w, pkid);
}

/// The broker acknowledges the next packet, a message or PUBREL; messages are put to what it `got`. Whether there was one.
#[track_caller]
fn acknowledges_one(w: &mut World, got: &mut Vec<(QoS, String)>) -> bool {
    match w.broker_try_next() {
        None => return false,
        Some(v4::Packet::Publish(publish)) => {
            got.push((publish.qos, String::from_utf8(publish.payload.to_vec()).unwrap()));
            match publish.qos {
                QoS::AtMostOnce => {}
                QoS::AtLeastOnce => w.broker_pubacks(publish.pkid),
                QoS::ExactlyOnce => w.broker_pubrecs(publish.pkid),
            }
        }
        Some(v4::Packet::PubRel(v4::PubRel { pkid })) => w.broker_pubcomps(pkid),
        Some(other) => panic!("{other:?}"),
    }
    true
}

/// When the client is gone too, nothing is left.
#[track_caller]
fn leaves(mut w: World) {
    w.send(A, disconnect());
    w.leaves_nothing();
}

#[track_caller]
fn over(w: &mut World) {
    w.quiet();
    w.broker_quiet();
    assert_eq!((w.gw.kept_messages(), under_way(w)), (0, 0), "{:#?}", w.store.rows);
}

// The broker is away.

#[test]
fn a_message_of_qos_1_is_acknowledged_when_it_is_durable_and_goes_when_the_broker_is_back() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    w.store_answers(Answers::Never);
    w.send(A, publish(T, Qos::AtLeastOnce, 7, "a"));
    w.quiet();
    w.store_answers(Answers::AtOnce);
    acknowledged(&mut w, A, 7);
    assert_eq!((w.gw.kept_messages(), under_way(&w)), (1, 1));
    back(&mut w, true);
    arrives(&mut w, "a", QoS::AtLeastOnce);
    over(&mut w);
    leaves(w);
}

#[test]
fn a_message_of_qos_2_is_taken_when_it_is_durable_and_goes_when_the_broker_is_back() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    w.store_answers(Answers::Never);
    w.send(A, publish(T, Qos::ExactlyOnce, 7, "a"));
    w.send(A, publish_again(T, Qos::ExactlyOnce, 7, "a"));
    w.quiet();
    w.store_answers(Answers::AtOnce);
    w.expect(A, pubrec(7));
    w.expect(A, pubrec(7));
    w.send(A, publish_again(T, Qos::ExactlyOnce, 7, "a"));
    w.expect(A, pubrec(7));
    w.send(A, pubrel(7));
    w.expect(A, pubcomp(7));
    w.send(A, pubrel(7));
    w.expect(A, pubcomp(7));
    w.send(A, publish_again(T, Qos::ExactlyOnce, 7, "a"));
    w.expect(A, pubrec(7));
    back(&mut w, true);
    arrives(&mut w, "a", QoS::ExactlyOnce);
    over(&mut w);
    leaves(w);
}

#[test]
fn clients_without_a_session_are_served_while_the_broker_is_away() {
    let mut w = lasting();
    w.broker_down();
    w.send(A, Packet::SearchGw(SearchGw { radius: 1 }));
    assert!(matches!(decode(&w.next(A)).unwrap().packet, Packet::GwInfo(_)));
    active(&mut w, A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    assert!(
        matches!(decode(&w.next(A)).unwrap().packet, Packet::SubAck(ack) if ack.code == ReturnCode::Accepted)
    );
    publishes(&mut w, A, 3, Qos::AtLeastOnce, "a");
    back(&mut w, true);
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    arrives(&mut w, "a", QoS::AtLeastOnce);
}

#[test]
fn what_waits_leaves_in_order_and_what_comes_later_leaves_behind_it() {
    let mut w = lasting_with(|settings| {
        settings.broker.outage_queue =
            Some(OutageQueue { messages: 100_000, bytes: 100_000_000, age: Duration::from_secs(3600) });
    });
    active(&mut w, A, "n1");
    active(&mut w, B, "n2");
    w.broker_down();
    // More than the connection takes at a time: 1024 under way and 4096 that wait for them.
    for number in 0..5200_u16 {
        let qos = if number % 7 == 0 { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        publishes(&mut w, A, number + 1, qos, &format!("{number}"));
    }
    back(&mut w, true);
    // Another client's does not wait for them, nor its answer.
    w.send(B, publish(T, Qos::AtMostOnce, 0, "other"));
    w.send(A, publish(T, Qos::AtLeastOnce, 9000, "late"));
    acknowledged(&mut w, A, 9000);
    let mut got = Vec::new();
    for _ in 0..40_000 {
        if !acknowledges_one(&mut w, &mut got) {
            break;
        }
    }
    let of = |qos: QoS| got.iter().filter(move |(it, _)| *it == qos).map(|(_, data)| data.as_str());
    assert_eq!(of(QoS::AtMostOnce).collect::<Vec<_>>(), ["other"]);
    assert_eq!(of(QoS::AtLeastOnce).next_back(), Some("late"));
    let numbers = |qos| of(qos).filter_map(|data| data.parse().ok()).collect::<Vec<u16>>();
    let expected = |twos| (0..5200).filter(|number| (number % 7 == 0) == twos).collect::<Vec<u16>>();
    assert_eq!(numbers(QoS::AtLeastOnce), expected(false));
    assert_eq!(numbers(QoS::ExactlyOnce), expected(true));
    over(&mut w);
}

/// The shell takes CONNACK and a frame in before it lets anything leave.
/// No more than 16 of QoS 2 are under way at a time, for brokers that take no more; what has QoS 1 needs not wait for that, unless its
/// client has sent some of the others before.
#[test]
fn what_waits_for_the_window_of_qos_2_is_not_passed_by_what_its_client_sent_later() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    active(&mut w, B, "n2");
    w.broker_down();
    for msg_id in 1..=17 {
        publishes(&mut w, A, msg_id, Qos::ExactlyOnce, &format!("two {msg_id}"));
    }
    publishes(&mut w, A, 18, Qos::AtLeastOnce, "late");
    publishes(&mut w, A, 19, Qos::ExactlyOnce, "last");
    publishes(&mut w, B, 7, Qos::AtLeastOnce, "other");
    back(&mut w, true);
    let first = gets(&mut w, "two 1", QoS::ExactlyOnce);
    for msg_id in 2..=16 {
        gets(&mut w, &format!("two {msg_id}"), QoS::ExactlyOnce);
    }
    arrives(&mut w, "other", QoS::AtLeastOnce);
    w.broker_quiet();
    w.broker_says(v4::Packet::PubRec(v4::PubRec { pkid: first }));
    releases(&mut w, first);
    let second = gets(&mut w, "two 17", QoS::ExactlyOnce);
    w.broker_says(v4::Packet::PubRec(v4::PubRec { pkid: second }));
    arrives(&mut w, "late", QoS::AtLeastOnce);
    releases(&mut w, second);
    gets(&mut w, "last", QoS::ExactlyOnce);
    w.broker_quiet();
}

#[test]
fn what_is_published_in_the_moment_when_the_broker_is_back_leaves_behind_what_waits() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        w.broker_down();
        publishes(&mut w, A, 1, qos, "a");
        w.pass(PAUSE);
        let (link, _) = w.commands.pop_back().unwrap();
        w.broker_answers_tcp();
        w.broker_takes_octets();
        let connack = bytes::Bytes::from_static(&[0x20, 2, 1, 0]);
        w.gw.handle(w.now, Input::Link(link, LinkEvent::Bytes(connack)));
        w.send(A, publish(T, qos, 2, "b"));
        let qos = if qos == Qos::AtLeastOnce { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        w.broker_gets("tt", "a", qos);
        w.broker_gets("tt", "b", qos);
    }
}

#[test]
fn messages_of_qos_0_are_kept_in_memory() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    publishes(&mut w, A, 0, Qos::AtMostOnce, "a");
    publishes(&mut w, A, 0, Qos::AtMostOnce, "b");
    assert_eq!((w.gw.kept_messages(), under_way(&w)), (2, 0));
    back(&mut w, true);
    arrives(&mut w, "a", QoS::AtMostOnce);
    arrives(&mut w, "b", QoS::AtMostOnce);
    over(&mut w);
}

#[test]
fn a_full_queue_says_congestion() {
    for (messages, bytes) in [(2, 1000), (10, 6)] {
        let age = Duration::from_secs(3600);
        let queue = OutageQueue { messages, bytes, age };
        let mut w = lasting_with(|settings| settings.broker.outage_queue = Some(queue));
        active(&mut w, A, "n1");
        w.broker_down();
        publishes(&mut w, A, 1, Qos::AtLeastOnce, "a");
        publishes(&mut w, A, 2, Qos::AtLeastOnce, "b");
        for (msg_id, qos) in [(3, Qos::AtLeastOnce), (4, Qos::ExactlyOnce), (0, Qos::AtMostOnce)] {
            w.send(A, publish(T, qos, msg_id, "c"));
            w.expect(A, puback(T, msg_id, ReturnCode::Congestion));
        }
        assert_eq!(w.gw.counters().uplink_congestion, 3);
        back(&mut w, true);
        arrives(&mut w, "a", QoS::AtLeastOnce);
        arrives(&mut w, "b", QoS::AtLeastOnce);
        over(&mut w);
        w.broker_down();
        publishes(&mut w, A, 5, Qos::AtLeastOnce, "d");
    }
}

/// What was acknowledged and what was not are not worth the same.
#[test]
fn messages_of_qos_0_make_room_for_those_that_are_acknowledged() {
    for (messages, bytes) in [(3, 1000), (10, 9)] {
        let age = Duration::from_secs(3600);
        let queue = OutageQueue { messages, bytes, age };
        let mut w = lasting_with(|settings| settings.broker.outage_queue = Some(queue));
        active(&mut w, A, "n1");
        w.broker_down();
        for payload in ["a", "b", "c"] {
            publishes(&mut w, A, 0, Qos::AtMostOnce, payload);
        }
        publishes(&mut w, A, 1, Qos::AtLeastOnce, "d");
        publishes(&mut w, A, 2, Qos::ExactlyOnce, "e");
        w.send(A, publish(T, Qos::AtMostOnce, 0, "f"));
        w.expect(A, puback(T, 0, ReturnCode::Congestion));
        assert_eq!((w.gw.counters().uplink_shed, w.gw.kept_messages()), (2, 3));
        back(&mut w, true);
        arrives(&mut w, "c", QoS::AtMostOnce);
        arrives(&mut w, "d", QoS::AtLeastOnce);
        arrives(&mut w, "e", QoS::ExactlyOnce);
    }
}

#[test]
fn while_the_store_is_unavailable_nothing_is_promised() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.send(A, publish(T, Qos::AtLeastOnce, 9, "slow"));
    w.broker_gets("tt", "slow", QoS::AtLeastOnce);
    w.broker_down();
    w.store_answers(Answers::Never);
    w.send(A, publish(T, Qos::AtLeastOnce, 1, "a"));
    w.store_answers(Answers::Unavailable);
    // Its PUBACK is lost, for nothing was stored; nothing else is promised.
    w.quiet();
    for (msg_id, qos) in [(3, Qos::AtLeastOnce), (4, Qos::ExactlyOnce)] {
        w.send(A, publish(T, qos, msg_id, "c"));
        w.expect(A, puback(T, msg_id, ReturnCode::Congestion));
    }
    w.pass(Duration::from_secs(8));
    w.expect(A, puback(T, 9, ReturnCode::Congestion));
    w.quiet();
    w.store_answers(Answers::AtOnce);
    publishes(&mut w, A, 5, Qos::AtLeastOnce, "d");
}

/// The client at A has published while the broker is away, and the store has failed before it had that: nothing was said.
#[track_caller]
fn unstored(w: &mut World, qos: Qos) {
    w.store_answers(Answers::Never);
    w.send(A, publish(T, qos, 1, "a"));
    w.store_answers(Answers::Unavailable);
    w.quiet();
}

#[test]
fn a_message_that_the_store_failed_to_take_is_refused_when_it_is_repeated_and_withdrawn() {
    for (qos, at_broker) in [(Qos::AtLeastOnce, QoS::AtLeastOnce), (Qos::ExactlyOnce, QoS::ExactlyOnce)] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        w.broker_down();
        unstored(&mut w, qos);
        for _ in 0..2 {
            w.send(A, publish_again(T, qos, 1, "a"));
            w.expect(A, puback(T, 1, ReturnCode::Congestion));
        }
        assert_eq!((w.gw.kept_messages(), w.gw.counters().uplink_congestion), (0, 2));
        // The next try is the only one that comes to the broker.
        w.store_answers(Answers::AtOnce);
        let is_left =
            |key: &Key| matches!(key, Key::Client(_, ClientKey::Uplink(_) | ClientKey::Exchange(_)));
        assert!(!w.store.rows.keys().any(is_left), "{:#?}", w.store.rows);
        publishes(&mut w, A, 1, qos, "a");
        w.crash();
        back(&mut w, true);
        arrives(&mut w, "a", at_broker);
        w.broker_quiet();
        over(&mut w);
    }
}

#[test]
fn a_message_that_was_stored_before_the_store_failed_is_accepted_when_it_is_repeated() {
    for (qos, answer) in
        [(Qos::AtLeastOnce, puback(T, 1, ReturnCode::Accepted)), (Qos::ExactlyOnce, pubrec(1))]
    {
        let mut w = lasting();
        active(&mut w, A, "n1");
        w.broker_down();
        w.send(A, publish(T, qos, 1, "a"));
        w.expect(A, answer);
        // What comes after it is not stored.
        w.store_answers(Answers::Never);
        w.send(A, publish(T, Qos::AtLeastOnce, 2, "b"));
        w.store_answers(Answers::Unavailable);
        w.send(A, publish_again(T, qos, 1, "a"));
        w.expect(A, answer);
        w.quiet();
        assert_eq!(w.gw.kept_messages(), 2);
    }
}

#[test]
fn a_message_that_the_store_failed_to_take_is_accepted_when_the_store_has_it_after_all() {
    for (qos, answer) in
        [(Qos::AtLeastOnce, puback(T, 1, ReturnCode::Accepted)), (Qos::ExactlyOnce, pubrec(1))]
    {
        let mut w = lasting();
        active(&mut w, A, "n1");
        w.broker_down();
        unstored(&mut w, qos);
        w.store_answers(Answers::AtOnce);
        w.send(A, publish_again(T, qos, 1, "a"));
        w.expect(A, answer);
        assert_eq!(w.gw.kept_messages(), 1);
    }
}

#[test]
fn a_message_that_was_not_stored_is_accepted_when_the_broker_has_it() {
    for (qos, at_broker) in [(Qos::AtLeastOnce, QoS::AtLeastOnce), (Qos::ExactlyOnce, QoS::ExactlyOnce)] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        w.broker_down();
        unstored(&mut w, qos);
        back(&mut w, true);
        arrives(&mut w, "a", at_broker);
        w.send(A, publish_again(T, qos, 1, "a"));
        match qos {
            Qos::ExactlyOnce => w.expect(A, pubrec(1)),
            _ => acknowledged(&mut w, A, 1),
        }
        w.broker_quiet();
    }
}

#[test]
fn a_message_that_was_not_stored_and_is_under_way_is_not_sent_twice_at_qos_2() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    unstored(&mut w, Qos::ExactlyOnce);
    back(&mut w, true);
    let pkid = gets(&mut w, "a", QoS::ExactlyOnce);
    w.send(A, publish_again(T, Qos::ExactlyOnce, 1, "a"));
    w.quiet();
    // The broker is slow, and nothing can be promised in its place.
    w.pass(Duration::from_secs(8));
    w.expect(A, puback(T, 1, ReturnCode::Congestion));
    w.store_answers(Answers::AtOnce);
    w.broker_pubrecs(pkid);
    releases(&mut w, pkid);
    w.send(A, publish_again(T, Qos::ExactlyOnce, 1, "a"));
    w.expect(A, pubrec(1));
    w.finishes(A, 1);
    w.broker_quiet();
    over(&mut w);
}

#[test]
fn a_message_that_was_not_stored_and_is_under_way_is_told_to_come_again_at_qos_1() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    unstored(&mut w, Qos::AtLeastOnce);
    back(&mut w, true);
    let pkid = gets(&mut w, "a", QoS::AtLeastOnce);
    w.send(A, publish_again(T, Qos::AtLeastOnce, 1, "a"));
    w.expect(A, puback(T, 1, ReturnCode::Congestion));
    w.broker_pubacks(pkid);
    w.send(A, publish_again(T, Qos::AtLeastOnce, 1, "a"));
    acknowledged(&mut w, A, 1);
    w.store_answers(Answers::AtOnce);
    w.broker_quiet();
    over(&mut w);
}

#[test]
fn a_message_that_was_told_to_come_again_is_stored_when_it_is_accepted() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    unstored(&mut w, Qos::AtLeastOnce);
    back(&mut w, true);
    gets(&mut w, "a", QoS::AtLeastOnce);
    w.send(A, publish_again(T, Qos::AtLeastOnce, 1, "a"));
    w.expect(A, puback(T, 1, ReturnCode::Congestion));
    w.store_answers(Answers::AtOnce);
    w.send(A, publish_again(T, Qos::AtLeastOnce, 1, "a"));
    acknowledged(&mut w, A, 1);
    w.crash();
    w.broker_up(true);
    arrives(&mut w, "a", QoS::AtLeastOnce);
    over(&mut w);
}

#[test]
fn reject_says_congestion_at_once() {
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let mut w = lasting_with(|settings| {
            settings.broker.outage_queue = None;
            settings.ports[0].mode = mode;
        });
        if mode == Mode::Transparent {
            served(&mut w, A, "n1", true);
        } else {
            active(&mut w, A, "n1");
        }
        w.broker_down();
        for (msg_id, qos) in [(3, Qos::AtLeastOnce), (4, Qos::ExactlyOnce), (0, Qos::AtMostOnce)] {
            w.send(A, publish(T, qos, msg_id, "c"));
            w.expect(A, puback(T, msg_id, ReturnCode::Congestion));
        }
        assert_eq!(w.gw.kept_messages(), 0);
    }
}

#[test]
fn what_has_waited_for_too_long_is_given_up_and_counted() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.broker_down();
    publishes(&mut w, A, 1, Qos::AtLeastOnce, "a");
    w.pass(Duration::from_secs(1800));
    publishes(&mut w, A, 2, Qos::ExactlyOnce, "b");
    w.pass(Duration::from_secs(1799));
    assert_eq!((w.gw.counters().uplink_expired, w.gw.kept_messages()), (0, 2));
    w.pass(Duration::from_secs(1));
    assert_eq!((w.gw.counters().uplink_expired, w.gw.kept_messages(), under_way(&w)), (1, 1, 1));
    // A restart begins it anew: no clock runs while there is no process.
    w.crash();
    w.pass(Duration::from_secs(3599));
    assert_eq!((w.gw.counters().uplink_expired, w.gw.kept_messages()), (0, 1));
    w.pass(Duration::from_secs(1));
    assert_eq!((w.gw.counters().uplink_expired, w.gw.kept_messages(), under_way(&w)), (1, 0, 0));
    back(&mut w, true);
    over(&mut w);
}

/// Nobody notices how many there are.
#[test]
fn very_many_messages_expire_at_once() {
    let age = Duration::from_secs(60);
    let queue = OutageQueue { messages: 100_000, bytes: 100_000_000, age };
    let mut w = lasting_with(|settings| settings.broker.outage_queue = Some(queue));
    active(&mut w, A, "n1");
    w.broker_down();
    for number in 0..20_000_u32 {
        w.send(A, publish(T, Qos::AtLeastOnce, number as u16 + 1, &number.to_string()));
    }
    assert_eq!((w.taken().len(), w.gw.kept_messages()), (20_000, 20_000));
    w.pass(Duration::from_secs(60));
    assert_eq!((w.gw.counters().uplink_expired, w.gw.kept_messages(), under_way(&w)), (20_000, 0, 0));
}

// The broker is slow.

#[test]
fn a_message_that_the_broker_is_slow_to_acknowledge_is_kept_and_not_sent_twice() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.send(A, publish(T, Qos::AtLeastOnce, 1, "a"));
    let pkid = w.broker_gets("tt", "a", QoS::AtLeastOnce);
    assert_eq!(under_way(&w), 0);
    w.pass(Duration::from_millis(7999));
    w.quiet();
    w.store_answers(Answers::Never);
    w.pass(Duration::from_millis(1));
    w.quiet();
    w.store_answers(Answers::AtOnce);
    acknowledged(&mut w, A, 1);
    assert_eq!((w.gw.kept_messages(), under_way(&w), w.gw.counters().uplink_kept), (1, 1, 1));
    w.broker_pubacks(pkid);
    over(&mut w);
    // It is a message as any other from here on.
    w.send(A, publish_again(T, Qos::AtLeastOnce, 1, "a"));
    acknowledged(&mut w, A, 1);
    over(&mut w);
    leaves(w);
}

#[test]
fn a_message_of_qos_2_that_the_broker_is_slow_to_take_is_kept_and_not_sent_twice() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.send(A, publish(T, Qos::ExactlyOnce, 1, "a"));
    let pkid = w.broker_gets("tt", "a", QoS::ExactlyOnce);
    w.pass(Duration::from_secs(8));
    w.expect(A, pubrec(1));
    w.finishes(A, 1);
    w.broker_pubrecs(pkid);
    w.quiet();
    releases(&mut w, pkid);
    over(&mut w);
    leaves(w);
}

/// The broker is slow, and takes no more than so many of QoS 2 at a time.
#[test]
fn messages_of_a_client_leave_in_order_where_too_many_of_qos_2_are_under_way() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    active(&mut w, B, "n2");
    let mut taken = Vec::new();
    for msg_id in 1..=16 {
        w.send(A, publish(T, Qos::ExactlyOnce, msg_id, "first"));
        taken.push(w.broker_gets("tt", "first", QoS::ExactlyOnce));
    }
    w.pass(Duration::from_secs(8));
    assert_eq!(w.taken().len(), 16);
    for msg_id in 1..=16 {
        w.send(A, pubrel(msg_id));
        w.expect(A, pubcomp(msg_id));
    }
    w.send(A, publish(T, Qos::ExactlyOnce, 21, "second"));
    w.send(A, publish(T, Qos::AtLeastOnce, 22, "third"));
    w.broker_quiet();
    w.send(B, publish(T, Qos::AtLeastOnce, 1, "of another"));
    arrives(&mut w, "of another", QoS::AtLeastOnce);
    acknowledged(&mut w, B, 1);
    let pkid = taken.remove(0);
    w.broker_pubrecs(pkid);
    releases(&mut w, pkid);
    w.broker_gets("tt", "second", QoS::ExactlyOnce);
    w.broker_gets("tt", "third", QoS::AtLeastOnce);
    w.broker_quiet();
}

#[test]
fn pubrel_is_answered_in_time_also_if_the_broker_is_slow_to_end_the_exchange() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.send(A, publish(T, Qos::ExactlyOnce, 1, "a"));
    let pkid = w.broker_gets("tt", "a", QoS::ExactlyOnce);
    w.broker_pubrecs(pkid);
    w.expect(A, pubrec(1));
    w.pass(Duration::from_secs(20));
    w.send(A, pubrel(1));
    w.pass(Duration::from_secs(8));
    w.expect(A, pubcomp(1));
    w.send(A, pubrel(1));
    w.expect(A, pubcomp(1));
    releases(&mut w, pkid);
    over(&mut w);
    leaves(w);
}

#[test]
fn a_broker_that_goes_away_with_messages_under_way_gets_them_again_after_what_was_before_them() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.send(A, publish(T, Qos::AtLeastOnce, 1, "a"));
    w.send(A, publish(T, Qos::ExactlyOnce, 2, "b"));
    w.broker_gets("tt", "a", QoS::AtLeastOnce);
    w.broker_gets("tt", "b", QoS::ExactlyOnce);
    w.broker_down();
    publishes(&mut w, A, 3, Qos::AtLeastOnce, "c");
    w.pass(Duration::from_secs(8));
    acknowledged(&mut w, A, 1);
    w.expect(A, pubrec(2));
    w.finishes(A, 2);
    back(&mut w, true);
    three_arrive(&mut w, QoS::AtLeastOnce);
    over(&mut w);
    leaves(w);
}

/// Its row has no packet id that the broker does not know.
#[test]
fn a_broker_that_has_lost_its_session_gets_what_was_under_way_as_new() {
    for crashes in [false, true] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        kept_for_slow_broker(&mut w, 1, Qos::ExactlyOnce, "a");
        w.broker_down();
        w.pass(PAUSE);
        if crashes {
            w.crash();
        }
        w.broker_up(false);
        arrives(&mut w, "a", QoS::ExactlyOnce);
        over(&mut w);
        w.finishes(A, 1);
        leaves(w);
    }
}

/// A broker that publishes at PUBREL only has lost the message with its session, and the client was told that all is well.
#[test]
fn a_message_that_the_broker_had_taken_over_comes_again_when_its_session_is_lost() {
    for crashes in [false, true] {
        let mut w = lasting();
        active(&mut w, A, "n1");
        let pkid = taken_over_by_slow_broker(&mut w);
        w.broker_down();
        if crashes {
            w.crash();
        }
        back(&mut w, true);
        w.broker_gets_pubrel(pkid);
        w.broker_down();
        if crashes {
            w.crash();
        }
        back(&mut w, false);
        arrives(&mut w, "a", QoS::ExactlyOnce);
        over(&mut w);
        leaves(w);
    }
}

// Links of clients' own.

/// With its link down nobody knows whether the broker has heard PUBREL, and it will not hear it any more.
#[test]
fn a_message_that_the_broker_had_taken_over_goes_by_the_gateways_own_link_if_the_clients_is_down() {
    for is_up in [true, false] {
        let mut w = transparent();
        served(&mut w, A, "n1", true);
        taken_over_by_slow_broker(&mut w);
        if !is_up {
            w.broker_down();
        }
        w.takes_leave(A);
        w.on_link_of(None);
        if !is_up {
            arrives(&mut w, "a", QoS::ExactlyOnce);
        }
        w.broker_quiet();
        over(&mut w);
        leaves(w);
    }
}

#[test]
fn a_client_with_a_link_of_its_own_is_served_while_that_is_away_and_what_it_published_goes_by_it() {
    let mut w = transparent();
    served(&mut w, A, "n1", false);
    w.broker_down();
    w.store_answers(Answers::Never);
    w.send(A, publish(T, Qos::AtLeastOnce, 7, "a"));
    w.quiet();
    w.store_answers(Answers::AtOnce);
    acknowledged(&mut w, A, 7);
    publishes(&mut w, A, 8, Qos::ExactlyOnce, "b");
    publishes(&mut w, A, 0, Qos::AtMostOnce, "c");
    w.pass(PAUSE);
    w.on_link_of(Some("n1"));
    w.broker_up(true);
    three_arrive(&mut w, QoS::AtMostOnce);
    over(&mut w);
    w.on_link_of(None);
    w.broker_quiet();
}

#[test]
fn what_was_promised_to_a_client_goes_by_the_gateways_own_link_when_its_session_ends() {
    for crashes in [false, true] {
        let mut w = transparent();
        served(&mut w, A, "n1", true);
        kept_for_slow_broker(&mut w, 1, Qos::AtLeastOnce, "a");
        w.broker_down();
        publishes(&mut w, A, 2, Qos::ExactlyOnce, "b");
        publishes(&mut w, A, 3, Qos::AtLeastOnce, "c");
        w.takes_leave(A);
        if crashes {
            w.crash();
            w.on_link_of(None);
            w.broker_up(true);
        }
        w.on_link_of(None);
        three_arrive(&mut w, QoS::AtLeastOnce);
        over(&mut w);
        leaves(w);
    }
}

/// The broker serves the gateway but has no connection for the client.
#[test]
fn what_a_dismissed_client_published_waits_for_its_return_its_age_or_the_end_of_the_session() {
    for (expiry, returns) in [(86_400, true), (86_400, false), (600, false)] {
        let mut w = transparent_with(|settings| settings.sessions.expiry = Duration::from_secs(expiry));
        served(&mut w, A, "n1", false);
        w.broker_down();
        publishes(&mut w, A, 1, Qos::AtLeastOnce, "a");
        publishes(&mut w, A, 2, Qos::ExactlyOnce, "b");
        for _ in 0..4 {
            w.pass(PAUSE);
            w.on_link_of(Some("n1"));
            if w.is_asked_for() {
                w.broker_down();
            }
        }
        w.expect(A, disconnect());
        assert_eq!((w.gw.counters().clients_dismissed, w.gw.kept_messages(), under_way(&w)), (1, 2, 2));
        w.restart();
        assert_eq!((w.gw.kept_messages(), w.gw.counters().uplink_expired), (2, 0));
        if returns {
            served(&mut w, A, "n1", false);
            arrives(&mut w, "a", QoS::AtLeastOnce);
            arrives(&mut w, "b", QoS::ExactlyOnce);
        } else {
            w.pass(Duration::from_secs(expiry.min(3600)));
            w.on_link_of(None);
            if expiry == 600 {
                arrives(&mut w, "a", QoS::AtLeastOnce);
                arrives(&mut w, "b", QoS::ExactlyOnce);
            }
            assert_eq!(w.gw.counters().uplink_expired, if expiry == 600 { 0 } else { 2 });
        }
        over(&mut w);
        leaves(w);
    }
}

/// Its CONNECT replaces the link that they were on.
#[test]
fn what_was_promised_to_a_client_outlives_its_next_clean_session() {
    for accepted in [true, false] {
        let mut w = transparent();
        served(&mut w, A, "n1", true);
        kept_for_slow_broker(&mut w, 1, Qos::AtLeastOnce, "a");
        w.broker_down();
        publishes(&mut w, A, 2, Qos::ExactlyOnce, "b");
        w.send(B, connect_with("n1", false, true, 0));
        publishes(&mut w, A, 3, Qos::AtLeastOnce, "c");
        w.on_link_of(Some("n1"));
        if accepted {
            w.broker_up(false);
        } else {
            w.broker_down();
        }
        w.taken();
        let mut got = Vec::new();
        for client in [None, Some("n1"), None] {
            while w.try_link_of(client) && acknowledges_one(&mut w, &mut got) {}
        }
        let mut data: Vec<_> = got.iter().map(|(_, data)| data.as_str()).collect();
        data.sort_unstable();
        assert_eq!(data, ["a", "b", "c"], "accepted {accepted}");
        assert_eq!((w.gw.kept_messages(), under_way(&w)), (0, 0));
    }
}

#[test]
fn a_restart_brings_the_messages_of_a_clean_session_to_the_broker() {
    let mut w = transparent();
    served(&mut w, A, "n1", true);
    kept_for_slow_broker(&mut w, 1, Qos::ExactlyOnce, "a");
    w.crash();
    w.on_link_of(None);
    w.broker_up(true);
    w.pass(Duration::from_secs(5));
    w.on_link_of(Some("n1"));
    w.broker_up(false);
    arrives(&mut w, "a", QoS::ExactlyOnce);
    over(&mut w);
    w.finishes(A, 1);
}

// Refusals.

#[test]
fn a_message_that_the_broker_refuses_after_it_was_promised_is_counted() {
    let mut w = offline_world(|settings| {
        keeping(settings, |settings| {
            settings.broker.protocol = mqtt_sn_gateway::gateway::io::Protocol::V5;
        });
    });
    active(&mut w, A, "n1");
    publishes(&mut w, A, 1, Qos::AtLeastOnce, "a");
    publishes(&mut w, A, 2, Qos::ExactlyOnce, "b");
    publishes(&mut w, A, 3, Qos::AtLeastOnce, "c");
    w.broker_answers_tcp();
    w.broker_takes_octets();
    // CONNACK: at most QoS 1.
    w.broker_octets(bytes::Bytes::from_static(&[0x20, 5, 0, 0, 2, 0x24, 1]));
    let octets = w.broker_takes_octets();
    let publishes: Vec<_> = [b'a', b'b', b'c'].iter().filter(|data| octets.contains(data)).collect();
    assert_eq!(publishes, [&b'a', &b'c']);
    assert_eq!((w.gw.counters().uplink_refused, w.gw.kept_messages(), under_way(&w)), (1, 2, 2));
    // PUBACK: not authorized.
    w.broker_octets(bytes::Bytes::from_static(&[0x40, 3, 0, 1, 0x87]));
    assert_eq!((w.gw.counters().uplink_refused, w.gw.kept_messages(), under_way(&w)), (2, 1, 1));
    w.quiet();
    w.broker_octets(bytes::Bytes::from_static(&[0x40, 2, 0, 2]));
    assert_eq!((w.gw.counters().uplink_refused, w.gw.kept_messages(), under_way(&w)), (2, 0, 0));
}

// Wills.

#[track_caller]
fn active_with_will(w: &mut World, at: At, id: &str, qos: Qos) {
    let will = WillTopic { qos, retain: false, topic: b"tt" };
    w.gives_will(at, connect_with(id, true, true, 60), will, "bye");
    w.expect(at, connack(ReturnCode::Accepted));
}

#[test]
fn a_will_that_fires_while_the_broker_is_away_survives_a_crash_and_is_published_once() {
    for (asked, qos) in [
        (Qos::AtMostOnce, QoS::AtMostOnce),
        (Qos::AtLeastOnce, QoS::AtLeastOnce),
        (Qos::ExactlyOnce, QoS::ExactlyOnce),
    ] {
        for (durable, keeps) in [(true, true), (false, true), (true, false), (false, false)] {
            let mut w = lasting_with(|settings| {
                settings.broker.outage_queue = settings.broker.outage_queue.filter(|_| keeps);
            });
            active_with_will(&mut w, A, "n1", asked);
            w.broker_down();
            if !durable {
                w.store_answers(Answers::Never);
            }
            w.pass(Duration::from_secs(200));
            assert_eq!(w.gw.sessions(), 0);
            w.crash();
            w.store_answers(Answers::AtOnce);
            w.broker_up(true);
            if !durable {
                w.broker_quiet();
                w.pass(Duration::from_secs(200));
            }
            arrives(&mut w, "bye", qos);
            over(&mut w);
            w.pass(Duration::from_secs(400));
            over(&mut w);
            leaves(w);
        }
    }
}

/// It does not reach the broker before it is stored that the client is lost.
#[test]
fn a_will_that_a_crash_interrupts_is_published_once() {
    for (asked, qos, keeps) in [
        (Qos::AtLeastOnce, QoS::AtLeastOnce, true),
        (Qos::ExactlyOnce, QoS::ExactlyOnce, true),
        (Qos::ExactlyOnce, QoS::ExactlyOnce, false),
    ] {
        let mut w = lasting_with(|settings| {
            settings.broker.outage_queue = settings.broker.outage_queue.filter(|_| keeps);
        });
        active_with_will(&mut w, A, "n1", asked);
        w.store_answers(Answers::Never);
        w.pass(Duration::from_secs(200));
        w.broker_quiet();
        w.crash();
        w.store_answers(Answers::AtOnce);
        w.broker_up(true);
        w.broker_quiet();
        w.pass(Duration::from_secs(200));
        arrives(&mut w, "bye", qos);
        over(&mut w);
        leaves(w);
    }
}

// The end.

#[test]
fn an_orderly_stop_says_nothing_to_clients_and_leaves_sessions_at_the_broker() {
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let mut w = lasting_with(|settings| {
            settings.ports[0].mode = mode;
            settings.broker.client_id_is_random = true;
        });
        let own = if mode == Mode::Transparent {
            served(&mut w, A, "n1", false);
            Some("n1")
        } else {
            active(&mut w, A, "n1");
            None
        };
        w.input(Input::Control(Control::Shutdown));
        w.quiet();
        w.on_link_of(own);
        w.broker_gets_disconnect();
        w.commands.clear();
        w.pass(PAUSE);
        w.quiet();
        assert!(w.stopped);
        let connects = |(_, command): &(_, LinkCommand)| matches!(command, LinkCommand::Connect { .. });
        assert!(!w.commands.iter().any(connects), "{:?}", w.commands);
    }
}

/// What the broker knew by the other name is nothing to rely on.
#[test]
fn a_gateway_with_another_client_id_than_before_loses_nothing_that_was_promised() {
    let mut w = lasting();
    active(&mut w, A, "n1");
    w.subscribed(A, "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "x", QoS::ExactlyOnce);
    w.broker_gets_pubrec(5);
    w.taken();
    w.send(A, publish(T, Qos::ExactlyOnce, 1, "a"));
    w.broker_gets("tt", "a", QoS::ExactlyOnce);
    w.pass(Duration::from_secs(8));
    w.taken();
    w.broker_down();
    publishes(&mut w, A, 2, Qos::AtLeastOnce, "b");
    w.crash_with(|settings| settings.broker.client_id = "other".into());
    for again in [true, false] {
        w.broker_up(false);
        let (mut got, mut filters) = (Vec::new(), 0);
        while let Some(packet) = w.broker_try_next() {
            match packet {
                v4::Packet::Publish(publish) => got.push((publish.dup, publish.payload)),
                v4::Packet::Subscribe(_) => filters += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, [(false, "a".into()), (false, "b".into())]);
        assert_eq!(filters, 1);
        assert!(!w.store.rows.contains_key(&Key::Received(1, 5)));
        if again {
            w.crash();
        }
    }
    // An old packet id is nothing to rely on either.
    w.broker_publishes(5, "s/1", "y", QoS::ExactlyOnce);
    w.broker_gets_pubrec(5);
}
