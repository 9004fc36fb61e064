//! What is refused or shed, by name (design promises G6, G7).

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::QueueFull;
use mqtt_sn_gateway::wire::{Packet, Qos, Register, ReturnCode, SubAck, TopicRef};
use proptest::prelude::*;
use rumqttc::QoS;

use crate::world::*;

const A: At = 1;

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
    w.active(A, "n1");
    w.subscribed(A, "a/#", QoS::AtMostOnce);
    w.send(A, subscribe(9, "b/#", Qos::AtMostOnce));
    let code = ReturnCode::Congestion;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 9, code }));
    w.subscribed(A, "a/#", QoS::AtLeastOnce);
}

#[test]
fn a_full_queue_sheds_the_oldest_or_the_newest_and_settles_it() {
    for (full, settled, next) in [(QueueFull::DropOldest, 2, "4"), (QueueFull::DropNewest, 4, "2")] {
        let mut w = world_with(|settings| {
            settings.sessions.queue.messages = 2;
            settings.sessions.queue.full = full;
        });
        w.active(A, "n1");
        let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
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

#[test]
fn a_message_too_large_for_the_transport_is_dropped_and_settled() {
    let mut w = world_with(|settings| settings.ports[0].mtu = 60);
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
    w.broker_publishes(5, "s/1", &"A".repeat(54), QoS::AtLeastOnce);
    w.quiet();
    w.broker_gets_puback(5);
    w.broker_publishes(6, "s/1", &"A".repeat(53), QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, &"A".repeat(53));
    assert_eq!(w.gw.counters().downlink_oversize, 1);
}

#[test]
fn one_burst_for_many_clients_does_not_become_outputs_before_the_first_have_left() {
    let mut w = world_with(|settings| settings.sessions.max = 300);
    for at in 1..=200 {
        w.active(at, &format!("n{at}"));
        w.subscribed(at, "s/1", QoS::AtMostOnce);
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
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
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
