//! MQTT 5 with the broker: which version is spoken, what its reason codes become, and messages that expire.

use std::time::Duration;

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Endpoint, Input, LinkCommand, LinkEvent, LinkFailure, Protocol};
use mqtt_sn_gateway::wire::{MsgIdOnly, Packet, Qos, ReturnCode, SubAck, TopicAck, TopicRef, decode};
use tracing::Level;

use crate::log::Log;
use crate::world::*;

const A: At = 1;

/// CONNACK of a broker that knows only MQTT 3.1.1 and does not know what it was asked.
const UNKNOWN_VERSION: [u8; 4] = [0x20, 2, 0, 1];

/// CONNACK of MQTT 5: accepted.
const ACCEPTED_5: [u8; 5] = [0x20, 3, 0, 0, 0];

fn auto_world() -> World {
    offline_world(|settings| settings.broker.protocol = Protocol::Auto)
}

/// The broker hears CONNECT in this protocol level.
#[track_caller]
fn hears_connect(w: &mut World, level: u8) {
    let (id, command) = w.commands.pop_back().expect("a command");
    assert!(matches!(command, LinkCommand::Connect { .. }), "{command:?}");
    w.input(Input::Link(id, LinkEvent::Connected));
    let octets = w.broker_takes_octets();
    assert_eq!((octets[0], octets[8]), (0x10, level));
}

#[test]
fn a_broker_that_refuses_mqtt_5_is_asked_in_3_1_1_at_once_and_from_then_on() {
    for closes in [false, true] {
        let mut w = auto_world();
        hears_connect(&mut w, 5);
        w.commands.clear();
        if closes {
            w.broker_down();
        } else {
            w.broker_octets(Bytes::from_static(&UNKNOWN_VERSION));
        }
        hears_connect(&mut w, 4);
        w.broker_octets(Bytes::from_static(&[0x20, 2, 0, 0]));
        assert!(w.gw.is_connected());
        assert_eq!((w.gw.counters().link_fallbacks, w.gw.counters().link_failures), (1, 0));
        // Remembered.
        for _ in 0..2 {
            w.broker_down();
            w.pass(Duration::from_secs(2));
            hears_connect(&mut w, 4);
            w.broker_octets(Bytes::from_static(&[0x20, 2, 1, 0]));
        }
        // A broker that does not know 3.1.1 any more is asked in MQTT 5 again.
        w.broker_down();
        w.pass(Duration::from_secs(2));
        hears_connect(&mut w, 4);
        w.broker_octets(Bytes::from_static(&UNKNOWN_VERSION));
        w.pass(Duration::from_secs(4));
        hears_connect(&mut w, 5);
        assert_eq!(w.gw.counters().link_fallbacks, 1);
    }
}

#[test]
fn a_broker_that_is_only_out_of_order_is_asked_in_mqtt_5_again_after_a_pause() {
    let mut w = auto_world();
    for _ in 0..3 {
        hears_connect(&mut w, 5);
        w.broker_down();
        hears_connect(&mut w, 4);
        w.broker_down();
        assert!(w.gw.poll_timeout().unwrap() >= w.now + Duration::from_secs(1));
        w.pass(Duration::from_secs(40));
    }
    hears_connect(&mut w, 5);
    w.broker_octets(Bytes::from_static(&ACCEPTED_5));
    assert!(w.gw.is_connected());
    // It speaks MQTT 5: when it closes at CONNECT it means something else.
    w.broker_down();
    w.pass(Duration::from_secs(2));
    hears_connect(&mut w, 5);
    w.commands.clear();
    w.broker_down();
    assert!(w.commands.is_empty(), "{:?}", w.commands);
    w.pass(Duration::from_secs(5));
    hears_connect(&mut w, 5);
}

#[test]
fn a_refusal_for_another_reason_is_no_reason_to_fall_back() {
    let mut w = auto_world();
    hears_connect(&mut w, 5);
    w.commands.clear();
    w.broker_octets(Bytes::from_static(&[0x20, 3, 0, 0x87, 0]));
    assert!(w.commands.iter().all(|(_, command)| *command == LinkCommand::Close));
    w.pass(Duration::from_secs(2));
    hears_connect(&mut w, 5);
}

#[test]
fn a_broker_that_refuses_our_certificate_after_the_handshake_is_not_asked_in_another_version() {
    let mut w = auto_world();
    hears_connect(&mut w, 5);
    w.commands.clear();
    let failure = LinkFailure::Tls("certificate required".into());
    w.broker_down_with(failure);
    assert!(w.commands.is_empty(), "{:?}", w.commands);
    assert_eq!((w.gw.counters().link_fallbacks, w.gw.counters().link_failures), (0, 1));
    w.pass(Duration::from_secs(2));
    hears_connect(&mut w, 5);
}

#[test]
fn a_version_that_was_asked_for_is_the_only_one() {
    for (protocol, level) in [(Protocol::V5, 5), (Protocol::V311, 4)] {
        let mut w = offline_world(|settings| settings.broker.protocol = protocol);
        hears_connect(&mut w, level);
        w.broker_octets(Bytes::from_static(&UNKNOWN_VERSION));
        w.pass(Duration::from_secs(2));
        hears_connect(&mut w, level);
        w.broker_down();
        w.pass(Duration::from_secs(4));
        hears_connect(&mut w, level);
        assert_eq!(w.gw.counters().link_fallbacks, 0);
    }
}

#[test]
fn each_broker_is_spoken_to_in_the_version_that_it_accepted() {
    let mut w = offline_world(|settings| {
        settings.broker.protocol = Protocol::Auto;
        settings.broker.endpoints.push(Endpoint { host: "other".into(), port: 1883, tls: false });
    });
    hears_connect(&mut w, 5);
    w.broker_octets(Bytes::from_static(&UNKNOWN_VERSION));
    hears_connect(&mut w, 4);
    w.broker_octets(Bytes::from_static(&[0x20, 2, 0, 0]));
    w.broker_down();
    w.pass(Duration::from_secs(2));
    hears_connect(&mut w, 5);
    w.broker_octets(Bytes::from_static(&ACCEPTED_5));
    w.broker_down();
    w.pass(Duration::from_secs(2));
    hears_connect(&mut w, 4);
}

#[test]
fn a_broker_that_says_nothing_to_mqtt_5_is_asked_in_3_1_1() {
    let mut w = auto_world();
    hears_connect(&mut w, 5);
    w.pass(Duration::from_secs(10));
    hears_connect(&mut w, 4);
    assert_eq!(w.gw.counters().link_fallbacks, 1);
}

#[test]
fn a_broker_that_takes_the_place_of_one_that_spoke_mqtt_5_is_asked_in_3_1_1_after_some_failures() {
    let mut w = auto_world();
    hears_connect(&mut w, 5);
    w.broker_octets(Bytes::from_static(&ACCEPTED_5));
    w.broker_down();
    for _ in 1..6 {
        w.pass(Duration::from_secs(30));
        hears_connect(&mut w, 5);
        w.broker_down();
    }
    w.pass(Duration::from_secs(30));
    hears_connect(&mut w, 5);
    w.broker_down();
    hears_connect(&mut w, 4);
}

/// A world whose broker speaks MQTT 5, on these terms (the properties of its CONNACK).
fn world_5(terms: &[u8]) -> World {
    let mut w = offline_world(|settings| settings.broker.protocol = Protocol::V5);
    hears_connect(&mut w, 5);
    let len = u8::try_from(terms.len()).unwrap();
    w.broker_octets([&[0x20, 3 + len, 0, 0, len][..], terms].concat().into());
    assert!(w.gw.is_connected());
    w
}

#[test]
fn a_refused_message_is_congestion_where_a_quota_is_exceeded_and_else_not_supported() {
    for (reason, code) in [
        (0x97, ReturnCode::Congestion),
        (0x80, ReturnCode::NotSupported),
        (0x83, ReturnCode::NotSupported),
        (0x87, ReturnCode::NotSupported),
        (0x90, ReturnCode::NotSupported),
        (0x99, ReturnCode::NotSupported),
        (0x10, ReturnCode::Accepted),
    ] {
        let mut w = world_5(&[]);
        w.active(A, "n1");
        for (qos, ack) in [(Qos::AtLeastOnce, 0x40), (Qos::ExactlyOnce, 0x50)] {
            w.send(A, publish(TopicRef::Predefined(1), qos, 7, "on"));
            let octets = w.broker_takes_octets();
            let id = [octets[2 + 2 + 7], octets[2 + 2 + 7 + 1]];
            w.broker_octets(vec![ack, 3, id[0], id[1], reason].into());
            if code == ReturnCode::Accepted && qos == Qos::ExactlyOnce {
                w.expect(A, Packet::PubRec(MsgIdOnly { msg_id: 7 }));
            } else {
                w.expect(A, Packet::PubAck(TopicAck { topic_id: 1, msg_id: 7, code }));
            }
            w.quiet();
        }
    }
}

#[test]
fn a_refused_message_is_told_of_in_words_and_once_until_the_reason_is_another() {
    let log = Log::of(Level::INFO);
    let mut w = world_5(&[]);
    w.active(A, "n1");
    log.take();
    let mut told = Vec::new();
    for (msg_id, reason) in [(7, 0x87), (8, 0x87), (9, 0x97)] {
        w.send(A, publish(TopicRef::Predefined(1), Qos::AtLeastOnce, msg_id, "on"));
        let octets = w.broker_takes_octets();
        w.broker_octets(vec![0x40, 3, octets[2 + 2 + 7], octets[2 + 2 + 7 + 1], reason].into());
        w.next(A);
        told.extend(log.take());
    }
    assert_eq!(told.len(), 2, "{told:?}");
    for (line, words) in told.iter().zip(["not authorized (0x87)", "quota exceeded (0x97)"]) {
        for part in ["INFO", "client=n1", "topic=pre/one", "message refused by the broker", words] {
            assert!(line.contains(part), "{line} without {part}");
        }
    }
}

#[test]
fn what_the_broker_has_said_that_it_does_not_take_is_not_supported() {
    let code = ReturnCode::NotSupported;
    let mut w = world_5(&[0x24, 1, 0x25, 0]); // maximum QoS 1, no retain
    w.active(A, "n1");
    w.send(A, publish(TopicRef::Predefined(1), Qos::ExactlyOnce, 7, "on"));
    w.expect(A, Packet::PubAck(TopicAck { topic_id: 1, msg_id: 7, code }));
    w.broker_takes_nothing();
    assert_eq!(w.gw.counters().uplink_refused, 1);
}

#[test]
fn a_refused_subscription_is_congestion_where_a_quota_is_exceeded() {
    for (reason, code) in
        [(0x97, ReturnCode::Congestion), (0x87, ReturnCode::NotSupported), (0xA2, ReturnCode::NotSupported)]
    {
        let mut w = world_5(&[]);
        w.active(A, "n1");
        w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
        let octets = w.broker_takes_octets();
        w.broker_octets(vec![0x90, 4, octets[2], octets[3], 0, reason].into());
        w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 2, code }));
        w.quiet();
    }
}

/// A message on `s/1` that is worth something for so many seconds.
fn message_5(payload: &str, seconds: u8) -> Bytes {
    let len = u8::try_from(payload.len()).unwrap();
    let head = [0x30, 2 + 3 + 1 + 5 + len, 0, 3, b's', b'/', b'1', 5, 2, 0, 0, 0, seconds];
    [&head[..], payload.as_bytes()].concat().into()
}

#[test]
fn a_sleeper_gets_no_message_that_is_worth_nothing_any_more() {
    let mut w = world_5(&[]);
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let octets = w.broker_takes_octets();
    w.broker_octets(vec![0x90, 4, octets[2], octets[3], 0, 0].into());
    let Packet::SubAck(SubAck { topic_id, .. }) = decode(&w.next(A)).unwrap().packet else { panic!() };
    w.falls_asleep(A, 600);
    for (payload, seconds) in [("short", 5), ("long", 100), ("brief", 5)] {
        w.broker_octets(message_5(payload, seconds));
    }
    w.pass(Duration::from_secs(6));
    w.send(A, pingreq_of("n1"));
    let topic = TopicRef::Normal(topic_id);
    w.expect(A, publish(topic, Qos::AtMostOnce, 0, "long"));
    w.expect(A, Packet::PingResp);
    assert_eq!((w.gw.counters().downlink_expired, w.gw.waiting_messages()), (2, 0));
}

#[test]
fn what_has_expired_makes_room_before_anything_is_shed() {
    let mut w = world_5(&[]);
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let octets = w.broker_takes_octets();
    w.broker_octets(vec![0x90, 4, octets[2], octets[3], 0, 0].into());
    w.next(A);
    w.falls_asleep(A, 600);
    w.broker_octets(message_5("first", 100));
    for _ in 0..9 {
        w.broker_octets(message_5("short", 5));
    }
    w.pass(Duration::from_secs(6));
    w.broker_octets(message_5("last", 100));
    let counters = w.gw.counters();
    assert_eq!((counters.downlink_expired, counters.downlink_queue_full), (9, 0));
    assert_eq!(w.gw.waiting_messages(), 2);
}

/// The SUBSCRIBE packets in these octets, each by its length.
fn lengths(mut octets: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [first, len, rest @ ..] = octets {
        assert_eq!(*first, 0x82);
        lengths.push(2 + usize::from(*len));
        octets = &rest[usize::from(*len)..];
    }
    lengths
}

#[test]
fn filters_are_issued_again_in_packets_that_the_broker_takes() {
    let mut w = offline_world(|settings| settings.broker.protocol = Protocol::V5);
    w.active(A, "n1");
    let long = "x".repeat(100);
    for filter in ["first/filter/of/20/oc", "other/filter/of/20/oc", &long, "third/filter/of/20/oc"] {
        w.send(A, subscribe(2, filter, Qos::AtMostOnce));
        w.next(A);
    }
    hears_connect(&mut w, 5);
    w.broker_octets(Bytes::from_static(&[0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, 40])); // maximum packet size 40
    // Each under an identifier of its own.
    assert_eq!(lengths(&w.broker_takes_octets()), [2 + 2 + 1 + 2 + 24; 3]);
    assert_eq!(w.gw.counters().subscriptions_refused, 1);
    // And there is an end to it.
    w.pass(Duration::from_secs(1));
    w.broker_takes_nothing();
}

#[test]
fn a_will_that_the_broker_does_not_take_is_counted_and_holds_up_nothing() {
    let mut w = world_5(&[0x25, 0]); // no retain
    for (at, retain) in [(1, true), (2, false)] {
        let flags = if retain { 0x10 } else { 0 };
        w.send_octets(at, Bytes::from(vec![8, 4, 0x0C, 1, 0, 10, b'n', b'0' + at as u8]));
        w.next(at);
        w.send_octets(at, Bytes::from(vec![4, 7, flags, b'w']));
        w.next(at);
        w.send_octets(at, Bytes::from_static(&[6, 9, b'g', b'o', b'n', b'e']));
        w.next(at);
    }
    w.pass(Duration::from_secs(16));
    assert_eq!(w.broker_takes_octets()[..], [0x30, 8, 0, 1, b'w', 0, b'g', b'o', b'n', b'e']);
    assert_eq!((w.gw.counters().wills_shed, w.gw.counters().clients_lost), (1, 2));
}

#[test]
fn a_filter_that_ends_and_begins_anew_takes_nothing_from_one_that_stays() {
    let mut w = world_5(&[]);
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_takes_octets();
    w.broker_octets(Bytes::from_static(&[0x90, 4, 0, 1, 0, 1]));
    let Packet::SubAck(SubAck { topic_id, .. }) = decode(&w.next(A)).unwrap().packet else {
        panic!("SUBACK")
    };
    w.send(A, subscribe(3, "s/#", Qos::ExactlyOnce));
    w.unsubscribed(A, "s/#");
    w.send(A, subscribe(5, "s/#", Qos::ExactlyOnce));
    // The broker sends what it took after the first of the three, and after the second.
    w.broker_octets(Bytes::from_static(&[0x90, 4, 0, 2, 0, 2]));
    let publish = [0x32, 14, 0, 3, b's', b'/', b'1', 0, 8, 4, 0x0B, 1, 0x0B, 2, b'o', b'n'];
    w.broker_octets(Bytes::copy_from_slice(&publish));
    w.broker_octets(Bytes::from_static(&[0xB0, 4, 0, 3, 0, 0]));
    let publish = [0x32, 13, 0, 3, b's', b'/', b'1', 0, 9, 2, 0x0B, 1, b'o', b'f', b'f'];
    w.broker_octets(Bytes::copy_from_slice(&publish));
    w.broker_octets(Bytes::from_static(&[0x90, 4, 0, 4, 0, 2]));
    w.next(A);
    let topic = TopicRef::Normal(topic_id);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "off");
}

/// The broker has not heard yet that the filter was given up and is asked for anew, and what it sends under the former identifier is
/// the only copy.
#[test]
fn what_comes_under_the_former_identifier_of_a_filter_is_for_who_holds_it_now() {
    let mut w = world_5(&[]);
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_takes_octets();
    w.broker_octets(Bytes::from_static(&[0x90, 4, 0, 1, 0, 1]));
    w.next(A);
    w.unsubscribed(A, "s/1");
    w.broker_takes_octets();
    w.broker_down();
    w.send(A, subscribe(5, "s/1", Qos::AtLeastOnce));
    let Packet::SubAck(SubAck { topic_id, code: ReturnCode::Accepted, .. }) =
        decode(&w.next(A)).unwrap().packet
    else {
        panic!("SUBACK")
    };
    w.pass(Duration::from_secs(2));
    hears_connect(&mut w, 5);
    w.broker_octets(Bytes::from_static(&[0x20, 3, 1, 0, 0])); // session present
    let message = [0x32, 14, 0, 3, b's', b'/', b'1', 0, 8, 2, 0x0B, 1, b'e', b'a', b'r', b'l'];
    w.broker_octets(Bytes::copy_from_slice(&message));
    w.expect_publish(A, TopicRef::Normal(topic_id), Qos::AtLeastOnce, false, "earl");
    assert_eq!(w.gw.counters().downlink_unrouted, 0);
}

#[test]
fn what_comes_for_a_filter_that_nobody_holds_any_more_is_not_for_who_holds_another() {
    let mut w = world_5(&[]);
    w.active(A, "n1");
    for (msg_id, filter) in [(2, "s/1"), (3, "s/#")] {
        w.send(A, subscribe(msg_id, filter, Qos::AtLeastOnce));
        w.broker_takes_octets();
        w.broker_octets(Bytes::copy_from_slice(&[0x90, 4, 0, (msg_id - 1) as u8, 0, 1]));
        w.next(A);
    }
    w.unsubscribed(A, "s/1");
    let mut publish = [0x32, 12, 0, 3, b's', b'/', b'1', 0, 8, 2, 0x0B, 1, b'o', b'n'];
    // Under the former identifier of the one, and under that of the other.
    for (id, comes) in [(1, false), (2, true)] {
        (publish[8], publish[11]) = (7 + id, id);
        w.broker_octets(Bytes::copy_from_slice(&publish));
        assert_eq!(w.gw.counters().downlink_recipients, u64::from(comes));
    }
}
