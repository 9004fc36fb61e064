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
