//! What is refused or shed, by name (design promises G6, G7).

use std::time::Duration;

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Input, Peer, PortId, Protocol, QueueFull, Route};
use mqtt_sn_gateway::wire::{Packet, Qos, Register, ReturnCode, SubAck, TopicRef};
use proptest::prelude::*;
use rumqttc::QoS;
use tracing::Level;

use crate::log::Log;
use crate::world::*;

const A: At = 1;
const B: At = 2;

#[test]
fn more_sessions_than_allowed_are_refused_with_congestion() {
    let mut w = world_with(|settings| settings.sessions.max = 2);
    w.active(1, "n1");
    w.send(2, connect_with("n2", true, true, 60));
    w.expect(2, Packet::WillTopicReq);
    w.send(3, connect("n3"));
    w.expect(3, connack(ReturnCode::Congestion));
    assert_eq!(w.gw.counters().sessions_full, 1);
    // Who has a session is not refused.
    w.send(4, connect("n1"));
    w.expect(1, disconnect());
    w.expect(4, connack(ReturnCode::Accepted));
}

#[test]
fn more_topic_ids_than_allowed_are_refused_with_congestion() {
    let mut w = world_with(|settings| settings.sessions.max_topics = 1);
    w.active(A, "n1");
    w.registered(A, "a/b");
    w.send(A, Packet::Register(Register { topic_id: 0, msg_id: 8, topic_name: b"a/c" }));
    w.expect(A, regack(0, 8, ReturnCode::Congestion));
    w.registered(A, "a/b");
}

#[test]
fn more_subscriptions_than_allowed_are_refused_with_congestion() {
    let mut w = world_with(|settings| settings.sessions.max_subscriptions = 1);
    w.subscriber(A, connect("n1"), "a/#", QoS::AtLeastOnce);
    w.send(A, subscribe(9, "b/#", Qos::AtMostOnce));
    let code = ReturnCode::Congestion;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 9, code }));
    w.subscribed(A, "a/#", QoS::ExactlyOnce);
}

#[test]
fn a_full_queue_sheds_the_oldest_or_the_newest_and_settles_it() {
    for (full, settled, next) in [(QueueFull::DropOldest, 2, "4"), (QueueFull::DropNewest, 4, "2")] {
        let mut w = world_with(|settings| {
            settings.sessions.queue.messages = 2;
            settings.sessions.queue.full = full;
        });
        let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
        for pkid in 1..=4 {
            w.broker_publishes(pkid, "s/1", &pkid.to_string(), QoS::AtLeastOnce);
        }
        w.broker_gets_puback(settled);
        let mut got = Vec::new();
        for _ in 0..3 {
            let frame = w.next(A);
            let Packet::Publish(sent) = mqtt_sn_gateway::wire::decode(&frame).unwrap().packet else {
                panic!()
            };
            got.push(String::from_utf8_lossy(sent.data).into_owned());
            w.send(A, puback(topic, sent.msg_id, ReturnCode::Accepted));
        }
        assert_eq!(got[0], "1");
        assert!(got.contains(&next.to_string()), "{got:?}");
        assert_eq!(w.gw.counters().downlink_queue_full, 1);
        assert_eq!((w.gw.queued_octets(), w.gw.unsettled_deliveries()), (0, 0));
    }
}

/// QoS 0 is what may be missed.
#[test]
fn a_full_queue_sheds_qos_0_before_what_is_acknowledged() {
    let mut w = world_with(|settings| settings.sessions.queue.messages = 3);
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.falls_asleep(A, 60);
    for (pkid, data, qos) in [
        (1, "a1", QoS::AtLeastOnce),
        (0, "b0", QoS::AtMostOnce),
        (0, "c0", QoS::AtMostOnce),
        // "b0" goes, then "c0".
        (0, "d0", QoS::AtMostOnce),
        (2, "e1", QoS::AtLeastOnce),
        // "d0" goes, then "a1".
        (3, "f1", QoS::AtLeastOnce),
        (4, "g1", QoS::AtLeastOnce),
        // Nothing goes for it.
        (0, "h0", QoS::AtMostOnce),
    ] {
        w.broker_publishes(pkid, "s/1", data, qos);
    }
    assert_eq!(w.gw.counters().downlink_queue_full, 5);
    w.send(A, pingreq_of("n1"));
    for data in ["e1", "f1", "g1"] {
        w.takes(A, topic, data);
    }
    w.expect(A, Packet::PingResp);
}

/// It would not fit beside what has to stay.
#[test]
fn a_message_of_qos_0_that_is_shed_takes_no_other_along() {
    let mut w = world_with(|settings| settings.sessions.queue.bytes = 30);
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.falls_asleep(A, 60);
    w.broker_publishes(1, "s/1", "ten octets", QoS::AtLeastOnce);
    w.broker_publishes(0, "s/1", "0", QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "fifteen  octets", QoS::AtMostOnce);
    assert_eq!(w.gw.counters().downlink_queue_full, 1);
    w.send(A, pingreq_of("n1"));
    w.takes(A, topic, "ten octets");
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "0");
    w.expect(A, Packet::PingResp);
}

#[test]
fn a_message_too_large_for_the_transport_is_dropped_and_settled() {
    let mut w = world_with(|settings| settings.ports[0].mtu = 60);
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", &"A".repeat(54), QoS::AtLeastOnce);
    w.quiet();
    w.broker_gets_puback(5);
    w.broker_publishes(6, "s/1", &"A".repeat(53), QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, &"A".repeat(53));
    assert_eq!(w.gw.counters().downlink_oversize, 1);
}

/// Of 7 octets that a PUBLISH has before its data in the short form, and 9 in the long one (digest 1.1, 1.3).
#[test]
fn messages_change_their_form_at_255_octets_both_ways() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtMostOnce);
    let [high, low] = topic.raw().to_be_bytes();
    for (data, header) in [
        (247, vec![254, 0x0C, 0, high, low, 0, 0]),
        (248, vec![255, 0x0C, 0, high, low, 0, 0]),
        (249, vec![1, 1, 2, 0x0C, 0, high, low, 0, 0]),
        (250, vec![1, 1, 3, 0x0C, 0, high, low, 0, 0]),
    ] {
        let payload = "A".repeat(data);
        let frame = [&header[..], payload.as_bytes()].concat();
        w.broker_publishes(0, "s/1", &payload, QoS::AtMostOnce);
        assert_eq!(w.next(A), frame, "{data} octets of data");
        w.send_octets(A, frame.into());
        w.broker_gets("s/1", &payload, QoS::AtMostOnce);
    }
    // REGISTER has 6.
    w.subscribed(A, "l/#", QoS::AtMostOnce);
    for (name, len) in [(249, 255), (250, 258)] {
        let topic = format!("l/{}", "n".repeat(name - 2));
        w.broker_publishes(0, &topic, "x", QoS::AtMostOnce);
        assert_eq!(w.gw.poll_output(), None);
        let frame = w.next(A);
        assert_eq!(frame.len(), len);
        let Packet::Register(register) = mqtt_sn_gateway::wire::decode(&frame).unwrap().packet else {
            panic!()
        };
        let ack = regack(register.topic_id, register.msg_id, ReturnCode::Accepted);
        w.send(A, ack);
        w.next(A);
    }
}

#[test]
fn what_fits_is_the_transports_to_say_to_the_octet() {
    // 248 octets of data are 255 on the air, 249 are 258: nothing has 256 or 257.
    for (mtu, fits, does_not) in
        [(254, 247, 248), (255, 248, 249), (256, 248, 249), (257, 248, 249), (258, 249, 250)]
    {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut w = world_with(|settings| settings.ports[0].mtu = mtu);
            let topic = w.subscriber(A, connect("n1"), "s/1", qos);
            w.broker_publishes(1, "s/1", &"A".repeat(does_not), qos);
            w.quiet();
            assert_eq!(w.gw.counters().downlink_oversize, 1, "{mtu}");
            if qos != QoS::AtMostOnce {
                w.broker_next();
            }
            w.broker_publishes(2, "s/1", &"A".repeat(fits), qos);
            w.expect_publish(A, topic, sn_qos(qos), false, &"A".repeat(fits));
        }
    }
}

/// The frame of a forwarder counts.
#[test]
fn what_fits_through_a_forwarder_is_less() {
    for (data, fits) in [(53 - 5, true), (53 - 4, false)] {
        let mut w = world_with(|settings| settings.ports[0].mtu = 60);
        let forwarded = |packet: &Packet<'_>| [&[5, 0xFE, 0, 7, 8][..], &encode(packet)].concat().into();
        w.send_octets(A, forwarded(&connect("n1")));
        w.next(A);
        w.send_octets(A, forwarded(&subscribe(2, "s/1", Qos::AtMostOnce)));
        w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
        w.next(A);
        w.broker_publishes(0, "s/1", &"A".repeat(data), QoS::AtMostOnce);
        if fits {
            assert_eq!(w.next(A).len(), 60);
        }
        w.quiet();
        assert_eq!(w.gw.counters().downlink_oversize, u64::from(!fits));
    }
}

/// Each of a radio and a LAN beside it; a client that moves is served as its new transport can.
#[test]
fn each_transport_has_its_own_mtu() {
    let mut w = world_with(|settings| {
        let radio = settings.ports[0].clone();
        settings.ports.push(mqtt_sn_gateway::gateway::io::PortSettings { mtu: 60, ..radio });
    });
    let from = |port| Peer { port: PortId(port), ..peer(A) };
    let long = "A".repeat(100);
    let persistent = connect_with("n1", false, false, 60);
    for (port, fits) in [(0, true), (1, false), (0, true)] {
        let input = |packet: &Packet<'_>| Input::Frame {
            from: from(port),
            route: Route::default(),
            frame: encode(packet),
        };
        w.input(input(&persistent));
        w.input(input(&subscribe(2, "s/1", Qos::AtMostOnce)));
        w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
        w.broker_publishes(0, "s/1", &long, QoS::AtMostOnce);
        let sent = w.taken().into_iter().filter(|frame| frame.len() > 100).count();
        assert_eq!(sent, usize::from(fits), "port {port}");
        w.pass(Duration::from_secs(11));
    }
    assert_eq!(w.gw.counters().downlink_oversize, 1);
}

/// Also a name for which no REGISTER fits: its messages are never sent, and others are (Interpretation: A-42).
#[test]
fn a_topic_whose_register_does_not_fit_blocks_nothing() {
    let mut w = world_with(|settings| settings.ports[0].mtu = 60);
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.subscribed(A, "l/#", QoS::AtLeastOnce);
    for (pkid, len) in [(1, 55), (2, 55)] {
        w.broker_publishes(pkid, &format!("l/{}", "n".repeat(len - 2)), "x", QoS::AtLeastOnce);
        w.broker_gets_puback(pkid);
    }
    w.broker_publishes(3, "s/1", "x", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "x");
    assert_eq!(w.gw.counters().downlink_oversize, 2);
}

/// One line for each topic and client, which says what is too long for what.
#[test]
fn what_does_not_fit_is_warned_of_once_for_each_topic() {
    let log = Log::of(Level::WARN);
    let mut w = world_with(|settings| settings.ports[0].mtu = 60);
    w.subscriber(A, connect("n1"), "s/#", QoS::AtLeastOnce);
    for name in ["s/1", "s/2"] {
        w.registered(A, name);
    }
    let long = "A".repeat(54);
    for _ in 0..3 {
        w.broker_publishes(0, "s/1", &long, QoS::AtMostOnce);
        w.broker_publishes(1, "s/2", &long, QoS::AtLeastOnce);
    }
    assert_eq!(w.gw.counters().downlink_oversize, 6);
    let lines = log.take();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, topic) in lines.iter().zip(["s/1", "s/2"]) {
        for part in ["WARN", "client=n1", &format!("topic={topic}"), "octets=61", "mtu=60", "port=lan"] {
            assert!(line.contains(part), "{line} without {part}");
        }
    }
    // Many are remembered, not all.
    for number in 0..17 {
        w.registered(A, &format!("s/a{number}"));
        w.broker_publishes(0, &format!("s/a{number}"), &long, QoS::AtMostOnce);
    }
    assert_eq!(log.take().len(), 17);
    w.broker_publishes(0, "s/a1", &long, QoS::AtMostOnce);
    assert_eq!(log.take().len(), 0);
    w.broker_publishes(0, "s/1", &long, QoS::AtMostOnce);
    assert_eq!(log.take().len(), 1);
}

/// A client that goes on asking fills no log.
#[test]
fn a_filter_that_the_broker_refuses_is_told_of_in_words_and_once_for_each_reason() {
    let log = Log::of(Level::INFO);
    let mut w = world();
    w.active(A, "n1");
    log.take();
    for (msg_id, lines) in [(1, 1), (2, 0)] {
        w.send(A, subscribe(msg_id, "secret/#", Qos::AtLeastOnce));
        let pkid = w.broker_gets_subscribe("secret/#", QoS::AtLeastOnce);
        w.broker_denies(pkid);
        let code = ReturnCode::NotSupported;
        w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id, code }));
        let told = log.take();
        assert_eq!(told.len(), lines, "{told:?}");
        for part in
            ["INFO", "client=n1", "filter=secret/#", "subscription refused by the broker: unspecified"]
        {
            assert!(told.iter().all(|line| line.contains(part)), "{told:?} without {part}");
        }
    }
}

/// The broker would refuse it: it is not even sent, and who looks into the log finds why.
#[test]
fn what_is_not_sent_because_the_broker_does_not_take_it_is_warned_of_once_for_each_reason() {
    let log = Log::of(Level::WARN);
    let mut w = offline_world(|settings| settings.broker.protocol = Protocol::V5);
    w.broker_answers_tcp();
    w.broker_takes_octets();
    // Maximum QoS 1, maximum packet size 40.
    w.broker_octets(Bytes::from_static(&[0x20, 10, 0, 0, 7, 0x24, 1, 0x27, 0, 0, 0, 40]));
    w.active(A, "n1");
    log.take();
    let topic = TopicRef::Short(*b"tt");
    for lines in [1, 0] {
        w.send(A, publish(topic, Qos::ExactlyOnce, 1, "x"));
        w.expect(A, puback(topic, 1, ReturnCode::NotSupported));
        let told = log.take();
        assert_eq!(told.len(), lines, "{told:?}");
        for part in ["WARN", "client=n1", "topic=tt", "message refused: not sent", "QoS"] {
            assert!(told.iter().all(|line| line.contains(part)), "{told:?} without {part}");
        }
    }
    let filter = "f/".repeat(20);
    for lines in [1, 0] {
        w.send(A, subscribe(2, &filter, Qos::AtLeastOnce));
        let code = ReturnCode::NotSupported;
        w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 2, code }));
        let told = log.take();
        assert_eq!(told.len(), lines, "{told:?}");
        for part in ["WARN", "client=n1", "filter=f/f/", "subscription refused: not sent"] {
            assert!(told.iter().all(|line| line.contains(part)), "{told:?} without {part}");
        }
    }
    assert_eq!((w.gw.counters().uplink_refused, w.gw.counters().subscriptions_refused), (2, 2));
}

/// Sessions are many, and each has a Will.
#[test]
fn a_will_that_is_too_long_is_not_supported() {
    use mqtt_sn_gateway::wire::{Response, WillMsg, WillTopic};
    let (topic_max, message_max) = (1024, 4096);
    let topic = vec![b't'; topic_max + 1];
    let message = vec![b'm'; message_max + 1];
    let will_topic = |len| WillTopic { qos: Qos::AtMostOnce, retain: false, topic: &topic[..len] };
    let will_msg = |len| WillMsg { message: &message[..len] };
    let mut w = world();
    let refused = connack(ReturnCode::NotSupported);
    w.send(A, connect_with("n1", true, true, 60));
    w.expect(A, Packet::WillTopicReq);
    w.send(A, Packet::WillTopic(will_topic(topic_max + 1)));
    w.expect(A, refused);
    w.send(A, connect_with("n1", true, true, 60));
    w.expect(A, Packet::WillTopicReq);
    w.send(A, Packet::WillTopic(will_topic(topic_max)));
    w.expect(A, Packet::WillMsgReq);
    w.send(A, Packet::WillMsg(will_msg(message_max + 1)));
    w.expect(A, refused);
    w.send(A, Packet::WillMsg(will_msg(message_max)));
    w.quiet();
    assert_eq!((w.gw.sessions(), w.gw.counters().connects_refused), (0, 2));
    w.send(A, connect_with("n1", true, true, 60));
    w.expect(A, Packet::WillTopicReq);
    w.send(A, Packet::WillTopic(will_topic(topic_max)));
    w.expect(A, Packet::WillMsgReq);
    w.send(A, Packet::WillMsg(will_msg(message_max)));
    w.expect(A, connack(ReturnCode::Accepted));
    // A change that is refused changes nothing.
    let code = ReturnCode::NotSupported;
    w.send(A, Packet::WillTopicUpd(will_topic(topic_max + 1)));
    w.expect(A, Packet::WillTopicResp(Response { code }));
    w.send(A, Packet::WillMsgUpd(will_msg(message_max + 1)));
    w.expect(A, Packet::WillMsgResp(Response { code }));
    assert_eq!(w.gw.counters().wills_refused, 2);
    w.pass(Duration::from_secs(91));
    let payload = "m".repeat(message_max);
    w.broker_gets(&"t".repeat(topic_max), &payload, QoS::AtMostOnce);
}

/// Names may be long, or many.
#[test]
fn topics_and_subscriptions_are_limited_in_octets_too() {
    let mut w = world_with(|settings| {
        settings.sessions.max_topics = 3;
        settings.sessions.max_subscriptions = 3;
    });
    // 65,536 and 64 for each that is allowed.
    let room = 65_536 + 3 * 64;
    w.active(A, "n1");
    w.registered(A, &"a".repeat(65_000));
    w.send(
        A,
        Packet::Register(Register { topic_id: 0, msg_id: 8, topic_name: &vec![b'b'; room - 65_000 + 1] }),
    );
    w.expect(A, regack(0, 8, ReturnCode::Congestion));
    assert_eq!(w.gw.counters().topics_full, 1);
    w.registered(A, &"b".repeat(room - 65_000));

    let long = format!("{}/#", "c".repeat(64_998));
    w.subscribed(A, &long, QoS::AtMostOnce);
    let next = format!("{}/#", "d".repeat(room - 65_000 - 1));
    w.send(A, subscribe(9, &next, Qos::AtMostOnce));
    let code = ReturnCode::Congestion;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 9, code }));
    assert_eq!(w.gw.counters().subscriptions_full, 1);
    w.subscribed(A, &next[1..], QoS::AtMostOnce);
    // So has a name that came to nothing, and a clean session.
    w.active(B, "n2");
    for _ in 0..3 {
        w.send(B, subscribe(9, &"f".repeat(30_000), Qos::AtMostOnce));
        let pkid = w.broker_gets_subscribe(&"f".repeat(30_000), QoS::AtMostOnce);
        let return_codes = vec![rumqttc::mqttbytes::v4::SubscribeReasonCode::Failure];
        let refusal = rumqttc::mqttbytes::v4::SubAck { pkid, return_codes };
        w.broker_says(rumqttc::mqttbytes::v4::Packet::SubAck(refusal));
        let code = ReturnCode::NotSupported;
        w.expect(B, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 9, code }));
    }
    w.registered(B, &"g".repeat(60_000));
    w.active(A, "n1");
    w.registered(A, &"e".repeat(65_000));
}

#[test]
fn one_burst_for_many_clients_does_not_become_outputs_before_the_first_have_left() {
    let mut w = world_with(|settings| settings.sessions.max = 300);
    for at in 1..=200 {
        w.subscriber(at, connect(&format!("n{at}")), "s/1", QoS::AtMostOnce);
    }
    let mut burst = bytes::BytesMut::new();
    for _ in 0..1000 {
        let publish = rumqttc::mqttbytes::v4::Publish::new("s/1", QoS::AtMostOnce, "x");
        rumqttc::mqttbytes::v4::Packet::Publish(publish).write(&mut burst, usize::MAX).unwrap();
    }
    let most = w.burst(burst.freeze());
    assert!(most < 5_000, "{most} outputs at a time");
    for _ in 0..1000 {
        for at in 1..=200 {
            w.next(at);
        }
    }
}

#[test]
fn forwarders_are_heard_only_where_they_may_speak() {
    let mut w = world_with(|settings| settings.ports[0].forwarders = false);
    w.send_octets(A, [&[3, 0xFE, 0][..], &encode(&connect("n1"))].concat().into());
    w.quiet();
    assert_eq!((w.gw.sessions(), w.gw.counters().forwarders_refused), (0, 1));
}

#[test]
fn all_queues_together_are_limited() {
    let mut w = world_with(|settings| settings.sessions.queue_total = 10);
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    for (pkid, payload) in [(1, "one"), (2, "two"), (3, "six")] {
        w.broker_publishes(pkid, "s/1", payload, QoS::AtLeastOnce);
    }
    // One is under way, one waits (3 octets of topic, 3 of payload), the third is shed.
    w.broker_gets_puback(3);
    assert_eq!(w.gw.counters().downlink_total_full, 1);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "one");
}

#[test]
fn eight_subscribes_of_a_client_may_be_with_the_broker() {
    let mut w = world_with(|settings| settings.sessions.max_subscriptions = 100);
    w.active(A, "n1");
    for msg_id in 1..=8 {
        w.send(A, subscribe(msg_id, &format!("{msg_id}/#"), Qos::AtMostOnce));
    }
    w.quiet();
    w.send(A, subscribe(9, "9/#", Qos::AtMostOnce));
    let code = ReturnCode::Congestion;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 9, code }));
}

#[test]
fn sixteen_messages_of_a_client_may_be_with_the_broker() {
    let mut w = world();
    w.active(A, "n1");
    let topic = TopicRef::Short(*b"ab");
    for msg_id in 1..=16 {
        w.send(A, publish(topic, Qos::AtLeastOnce, msg_id, "x"));
        w.broker_gets("ab", "x", QoS::AtLeastOnce);
    }
    w.quiet();
    w.send(A, publish(topic, Qos::AtLeastOnce, 17, "x"));
    w.expect(A, puback(topic, 17, ReturnCode::Congestion));
    w.broker_quiet();
}

#[test]
fn shared_subscriptions_are_refused() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(9, "$share/group/s/1", Qos::AtMostOnce));
    let code = ReturnCode::NotSupported;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 9, code }));
    w.broker_quiet();
}

#[test]
fn an_id_is_never_given_out_twice_in_a_session() {
    let mut w = world_with(|settings| settings.sessions.max_topics = 100_000);
    w.active(A, "n1");
    let mut ids = std::collections::BTreeSet::new();
    loop {
        let name = format!("t/{}", ids.len());
        w.send(A, Packet::Register(Register { topic_id: 0, msg_id: 1, topic_name: name.as_bytes() }));
        let frame = w.next(A);
        let Packet::RegAck(ack) = mqtt_sn_gateway::wire::decode(&frame).unwrap().packet else { panic!() };
        if ack.code == ReturnCode::Congestion {
            break;
        }
        assert!(ids.insert(ack.topic_id), "{:#06x} again", ack.topic_id);
    }
    // All but 0000, FFFF, the two that are predefined, and the one where the run began.
    assert_eq!(ids.len(), 65_536 - 5);
    for reserved in [0x0000, 0xFFFF, 1, 2] {
        assert!(!ids.contains(&reserved));
    }
}

#[test]
fn wills_that_wait_for_the_broker_are_limited_and_the_rest_is_counted() {
    let mut w = world_with(|settings| settings.sessions.max = 2000);
    for at in 1..=1100 {
        w.send(at, connect_with(&format!("n{at}"), true, true, 2));
        w.expect(at, Packet::WillTopicReq);
        let qos = Qos::AtMostOnce;
        w.send(at, Packet::WillTopic(mqtt_sn_gateway::wire::WillTopic { qos, retain: false, topic: b"w" }));
        w.expect(at, Packet::WillMsgReq);
        w.send(at, Packet::WillMsg(mqtt_sn_gateway::wire::WillMsg { message: b"bye" }));
        w.expect(at, connack(ReturnCode::Accepted));
    }
    w.broker_down();
    w.pass(Duration::from_secs(4));
    assert_eq!((w.gw.counters().wills_published, w.gw.counters().wills_shed), (1024, 76));
}

proptest! {
    /// Whatever comes from the air and from the broker, nothing panics and nothing grows past its bound.
    #[test]
    fn arbitrary_input_never_panics(
        inputs in prop::collection::vec((0u16..4, prop::collection::vec(any::<u8>(), 0..40), 0u64..20), 0..60),
    ) {
        let mut w = world_with(|settings| settings.sessions.max = 3);
        w.active(1, "n1");
        for (at, mut octets, seconds) in inputs {
            if at == 0 {
                let broker_octets = octets.into();
                w.broker_octets(broker_octets);
            } else {
                // Mostly well-formed in size, so that the bodies are reached.
                if let (Ok(len), Some(first)) = (u8::try_from(octets.len()), octets.first_mut()) {
                    *first = len;
                }
                w.send_octets(at, octets.into());
            }
            w.pass(Duration::from_secs(seconds));
            prop_assert!(w.gw.sessions() <= 3);
        }
    }
}

#[test]
fn filters_beyond_the_requests_that_a_broker_may_have_open_follow_as_it_answers() {
    const FILTERS: u32 = 16_388;
    let mut w = offline_world(|settings| {
        settings.broker.protocol = Protocol::V5;
        (settings.sessions.max_subscriptions, settings.sessions.max_topics) = (10_000, 10_000);
    });
    for number in 0..FILTERS {
        let at = A + (number / 1000) as At;
        if number % 1000 == 0 {
            w.active(at, &format!("n{at}"));
        }
        w.send(at, subscribe(2, &format!("{number:05}"), Qos::AtMostOnce));
        w.next(at);
    }
    w.broker_answers_tcp();
    w.broker_takes_octets();
    w.broker_octets(vec![0x20, 3, 0, 0, 0].into());
    let mut asked = std::collections::BTreeSet::new();
    let mut batches = Vec::new();
    while asked.len() < FILTERS as usize {
        let octets = w.broker_takes_octets();
        let (mut rest, mut answers) = (&octets[..], Vec::new());
        while let [0x82, len, packet @ ..] = rest {
            let (packet, after) = packet.split_at(usize::from(*len));
            assert!(asked.insert(packet[packet.len() - 6..packet.len() - 1].to_vec()));
            answers.push(vec![0x90, 4, packet[0], packet[1], 0, 0]);
            rest = after;
        }
        batches.push(answers.len());
        w.broker_octets(answers.concat().into());
    }
    assert_eq!(batches, [16_384, 4]);
}
