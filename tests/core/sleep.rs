//! Sleeping clients (§6.14) and Will updates (§6.4).

use std::time::Duration;

use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::wire::{Packet, Qos, Response, ReturnCode, TopicRef, WillMsg, WillTopic};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const B: At = 2;
const SLEEP: u16 = 60;

fn wake() -> Packet<'static> {
    pingreq_of("n1")
}

/// A client that subscribed to `s/#` and sleeps; returns the id of `s/1`.
fn asleep(w: &mut World, qos: QoS) -> TopicRef {
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.registered(A, "s/1"));
    w.subscribed(A, "s/#", qos);
    w.falls_asleep(A, SLEEP);
    topic
}

#[test]
fn what_waits_comes_in_order_each_acknowledged_and_pingresp_last() {
    let mut w = world();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(0, "s/1", "b", QoS::AtMostOnce);
    w.broker_publishes(6, "s/2", "c", QoS::AtLeastOnce);
    w.quiet();
    // The broker never waits for a sleeper.
    w.broker_gets_puback(5);
    w.broker_gets_puback(6);
    w.send(A, wake());
    let a = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    w.quiet();
    w.send(A, puback(topic, a, ReturnCode::Accepted));
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "b");
    let id = w.learns(A, "s/2");
    let c = w.expect_publish(A, TopicRef::Normal(id), Qos::AtLeastOnce, false, "c");
    w.quiet();
    w.send(A, puback(TopicRef::Normal(id), c, ReturnCode::Accepted));
    w.expect(A, Packet::PingResp);
    w.broker_publishes(7, "s/1", "d", QoS::AtLeastOnce);
    w.quiet();
    assert_eq!(w.gw.unsettled_deliveries(), 0);
}

#[test]
fn a_drain_that_silence_interrupts_resumes_at_the_next_pingreq() {
    let mut w = world();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "b", QoS::AtLeastOnce);
    w.send(A, wake());
    let a = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    for _ in 0..3 {
        w.pass(RETRY);
        assert_eq!(w.expect_publish(A, topic, Qos::AtLeastOnce, true, "a"), a);
    }
    w.pass(RETRY);
    w.quiet();
    w.send(A, wake());
    assert_eq!(w.expect_publish(A, topic, Qos::AtLeastOnce, true, "a"), a);
    w.send(A, puback(topic, a, ReturnCode::Accepted));
    w.takes(A, topic, "b");
    w.expect(A, Packet::PingResp);
}

#[test]
fn asked_again_while_awake_the_gateway_repeats_what_is_open_and_ends_once() {
    let mut w = world();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.send(A, wake());
    let a = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    w.send(A, wake());
    assert_eq!(w.expect_publish(A, topic, Qos::AtLeastOnce, true, "a"), a);
    w.send(A, puback(topic, a, ReturnCode::Accepted));
    w.expect(A, Packet::PingResp);
    w.quiet();
}

#[test]
fn what_was_under_way_when_the_client_fell_asleep_is_kept_with_its_msgid() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "a", QoS::ExactlyOnce);
    let a = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
    w.falls_asleep(A, SLEEP);
    w.pass(RETRY * 4);
    w.quiet();
    w.send(A, wake());
    assert_eq!(w.expect_publish(A, topic, Qos::ExactlyOnce, true, "a"), a);
    w.send(A, pubrec(a));
    w.expect(A, pubrel(a));
    // Asleep again in the middle: the second half waits too.
    w.falls_asleep(A, SLEEP);
    w.pass(RETRY * 2);
    w.quiet();
    w.send(A, wake());
    w.expect(A, pubrel(a));
    w.send(A, pubcomp(a));
    w.expect(A, Packet::PingResp);
}

/// The drain ends with an answer of the broker, a while after the client was heard.
#[test]
fn the_time_of_a_sleeper_begins_again_after_pingresp() {
    let mut w = world();
    asleep(&mut w, QoS::AtLeastOnce);
    w.send(A, subscribe(9, "t/#", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("t/#", QoS::AtMostOnce);
    w.send(A, wake());
    w.pass(Duration::from_secs(5));
    w.quiet();
    w.broker_grants(pkid, QoS::AtMostOnce);
    assert_eq!(w.taken().len(), 2);
    w.pass(Duration::from_millis(89_999));
    assert_eq!(w.gw.counters().clients_lost, 0);
    w.pass(Duration::from_millis(1));
    assert_eq!(w.gw.counters().clients_lost, 1);
}

/// Sent again, it would be a second message to a client that is done with the first one.
#[test]
fn what_a_client_acknowledges_after_it_fell_asleep_is_not_sent_again() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "a", QoS::ExactlyOnce);
    let a = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
    w.falls_asleep(A, SLEEP);
    // It left before the DISCONNECT did, or was heard late.
    w.send(A, pubrec(a));
    w.expect(A, pubrel(a));
    w.pass(RETRY * 4);
    w.quiet();
    w.send(A, wake());
    w.expect(A, pubrel(a));
    w.send(A, pubcomp(a));
    w.expect(A, Packet::PingResp);
    w.broker_gets_pubrec(5);

    w.connected(A, connect("n1"));
    assert!(matches!(w.broker_next(), v4::Packet::Unsubscribe(_)));
    let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
    w.broker_publishes(6, "s/1", "b", QoS::AtLeastOnce);
    let b = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "b");
    w.falls_asleep(A, SLEEP);
    w.send(A, puback(TopicRef::Normal(topic.raw() + 1), b, ReturnCode::Accepted));
    w.send(A, puback(topic, b + 1, ReturnCode::Accepted));
    assert_eq!(w.gw.waiting_messages(), 1);
    w.send(A, puback(topic, b, ReturnCode::Accepted));
    assert_eq!((w.gw.waiting_messages(), w.gw.counters().downlink_delivered), (0, 2));
    w.send(A, wake());
    w.expect(A, Packet::PingResp);
}

#[test]
fn a_sleeper_is_lost_after_its_duration_with_tolerance_and_each_wake_counts_anew() {
    let mut w = world();
    asleep(&mut w, QoS::AtMostOnce);
    for _ in 0..5 {
        w.pass(Duration::from_secs(89));
        w.send(A, wake());
        w.expect(A, Packet::PingResp);
    }
    w.pass(Duration::from_secs(91));
    assert_eq!(w.gw.counters().clients_lost, 1);
    w.send(A, wake());
    w.expect(A, disconnect());
}

#[test]
fn a_source_faster_than_the_radio_does_not_keep_a_sleeper_awake_for_ever() {
    let mut w = world();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(1, "s/1", "x", QoS::AtLeastOnce);
    w.send(A, wake());
    let mut delivered = 0;
    loop {
        let frame = w.next(A);
        match mqtt_sn_gateway::wire::decode(&frame).unwrap().packet {
            Packet::Publish(publish) => {
                delivered += 1;
                assert!(delivered < 100);
                w.broker_publishes(delivered + 1, "s/1", "x", QoS::AtLeastOnce);
                w.send(A, puback(topic, publish.msg_id, ReturnCode::Accepted));
            }
            Packet::PingResp => break,
            other => panic!("{other}"),
        }
    }
    w.quiet();
}

#[test]
fn a_sleeper_may_wake_at_another_port_of_its_address_but_not_elsewhere_and_an_active_client_nowhere() {
    let mut w = world();
    asleep(&mut w, QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "a", QoS::AtMostOnce);
    w.send(B, wake());
    assert_eq!(w.next(B)[1], 0x0C);
    w.expect(B, Packet::PingResp);
    assert_eq!(w.gw.counters().sessions_rebound, 1);
    // Where it was before it is a stranger.
    w.send(A, pingreq());
    w.expect(A, disconnect());
    w.active(3, "n3");
    w.send(4, pingreq_of("n3"));
    w.expect(4, disconnect());
    w.pings(3);
}

#[test]
fn a_sleeper_that_connects_is_active_and_gets_what_waits_without_pingresp() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, false, 60));
    let id = w.subscribed(A, "s/1", QoS::AtLeastOnce);
    w.falls_asleep(A, SLEEP);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.connected(A, connect_with("n1", false, false, 60));
    let again = w.learns(A, "s/1");
    assert_eq!(again, id);
    w.takes(A, TopicRef::Normal(id), "a");
    w.quiet();
}

#[test]
fn a_congested_sleeper_sleeps_on_and_is_asked_again_when_it_wakes() {
    let mut w = world();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.send(A, wake());
    let a = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    w.send(A, puback(topic, a, ReturnCode::Congestion));
    w.expect(A, Packet::PingResp);
    w.send(A, wake());
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
}

#[test]
fn without_qos0_in_the_queue_a_sleeper_misses_qos_0() {
    let mut w = world_with(|settings| settings.sessions.queue.qos0 = false);
    asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(0, "s/1", "a", QoS::AtMostOnce);
    w.send(A, wake());
    w.expect(A, Packet::PingResp);
    assert_eq!(w.gw.counters().downlink_offline, 1);
}

#[test]
fn a_day_on_which_all_goes_well_counts_no_loss() {
    let mut w = world();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.send(B, wake());
    w.takes(B, topic, "a");
    w.expect(B, Packet::PingResp);
    assert_eq!((w.gw.counters().sessions_rebound, w.gw.counters().downlink_recipients), (1, 1));
    let losses = w.gw.counters().iter().filter(|(name, count)| *count > 0 && Counters::is_loss(name));
    assert_eq!(losses.collect::<Vec<_>>(), []);
}

#[test]
fn a_shutdown_leaves_sleepers_alone() {
    let mut w = world();
    asleep(&mut w, QoS::AtMostOnce);
    w.input(mqtt_sn_gateway::gateway::io::Input::Control(mqtt_sn_gateway::gateway::io::Control::Shutdown));
    w.quiet();
    w.broker_gets_disconnect();
}

#[test]
fn a_will_is_changed_in_either_part_and_deleted_by_an_empty_topic() {
    let accepted = Response { code: ReturnCode::Accepted };
    let topic = |text: &'static str, qos| {
        Packet::WillTopicUpd(WillTopic { qos, retain: false, topic: text.as_bytes() })
    };
    for (deleted, fired) in [(false, true), (true, false)] {
        let mut w = world();
        w.connected(A, connect_with("n1", false, true, 2));
        w.send(A, Packet::WillMsgUpd(WillMsg { message: b"bye" }));
        w.expect(A, Packet::WillMsgResp(accepted));
        w.send(A, topic("w/1", Qos::AtLeastOnce));
        w.expect(A, Packet::WillTopicResp(accepted));
        w.send(A, topic("w/#", Qos::AtLeastOnce));
        w.expect(A, Packet::WillTopicResp(Response { code: ReturnCode::NotSupported }));
        w.send(A, topic("w/1", Qos::MinusOne));
        w.expect(A, Packet::WillTopicResp(Response { code: ReturnCode::NotSupported }));
        if deleted {
            w.send(A, Packet::WillTopicUpd(WillTopic::EMPTY));
            w.expect(A, Packet::WillTopicResp(accepted));
        }
        w.pass(Duration::from_secs(4));
        if fired {
            w.broker_gets("w/1", "bye", QoS::AtLeastOnce);
        } else {
            w.broker_quiet();
        }
    }
}
