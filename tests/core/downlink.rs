//! Broker to client (§6.9, §6.10, §6.13).

use std::time::Duration;

use mqtt_sn_gateway::wire::{FilterRef, MsgIdOnly, Packet, Qos, ReturnCode, TopicRef, Unsubscribe, decode};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const B: At = 2;

#[test]
fn the_broker_gets_its_ack_when_the_client_has_given_one() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.broker_quiet();
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    w.broker_gets_puback(5);
    assert_eq!(w.gw.unsettled_deliveries(), 0);
}

#[test]
fn the_broker_waits_for_the_last_of_several_recipients() {
    let mut w = world();
    w.active(A, "n1");
    w.active(B, "n2");
    let a = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
    let b = TopicRef::Normal(w.subscribed(B, "s/1", QoS::AtLeastOnce));
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    let for_a = w.expect_publish(A, a, Qos::AtLeastOnce, false, "on");
    let for_b = w.expect_publish(B, b, Qos::AtLeastOnce, false, "on");
    w.send(A, puback(a, for_a, ReturnCode::Accepted));
    w.broker_quiet();
    w.send(B, puback(b, for_b, ReturnCode::NotSupported));
    w.broker_gets_puback(5);
}

#[test]
fn a_topic_the_client_does_not_know_is_registered_first() {
    let mut w = world();
    w.active(A, "n1");
    assert_eq!(w.subscribed(A, "s/#", QoS::AtLeastOnce), 0);
    w.broker_publishes(0, "s/x", "on", QoS::AtMostOnce);
    w.broker_publishes(0, "s/y", "on", QoS::AtMostOnce);
    let (id, msg_id) = w.expect_register(A, "s/x");
    w.quiet();
    w.send(A, regack(id, msg_id.wrapping_add(1), ReturnCode::Accepted));
    w.quiet();
    w.send(A, regack(id, msg_id, ReturnCode::Accepted));
    w.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "on");
    w.expect_register(A, "s/y");
}

#[test]
fn a_rejected_registration_drops_the_message_and_is_not_offered_again() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/x", "on", QoS::AtLeastOnce);
    let (id, msg_id) = w.expect_register(A, "s/x");
    w.send(A, regack(id, msg_id, ReturnCode::InvalidTopicId));
    w.broker_gets_puback(5);
    w.broker_publishes(6, "s/x", "on", QoS::AtLeastOnce);
    w.broker_gets_puback(6);
    w.quiet();
}

/// Seen in a fleet on a radio that loses a tenth: one message in a thousand meets four losses in a row.
#[test]
fn a_message_that_a_client_which_is_there_has_not_answered_is_not_given_up() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    for _ in 0..3 {
        w.pass(RETRY);
        w.expect_publish(A, topic, Qos::AtLeastOnce, true, "a");
    }
    w.pings(A);
    w.pass(RETRY);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, true, "a");
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    assert_eq!(w.gw.counters().downlink_unanswered, 0);
    w.pass(4 * RETRY);
    w.quiet();
}

/// Four REGISTERs in a row are lost as easily as four PUBLISHes.
#[test]
fn an_unanswered_register_drops_nothing_of_qos_1() {
    let mut w = world();
    w.subscriber(A, connect_with("n1", false, false, 600), "s/#", QoS::AtLeastOnce);
    for (pkid, payload) in [(5, "a"), (6, "b"), (7, "c")] {
        w.broker_publishes(pkid, "s/x", payload, QoS::AtLeastOnce);
    }
    unanswered_but_heard(&mut w, "s/x");
    // The broker does not wait for any of them.
    w.broker_gets_puback(6);
    w.broker_gets_puback(7);
    w.broker_gets_puback(5);
    w.connected(A, connect_with("n1", false, false, 600));
    let id = w.learns(A, "s/x");
    for payload in ["a", "b", "c"] {
        w.takes(A, TopicRef::Normal(id), payload);
    }
    w.quiet();
    assert_eq!(w.gw.counters().downlink_unanswered + w.gw.counters().downlink_refused, 0);
}

#[test]
fn after_a_round_without_regack_the_name_rests_as_long_and_comes_again() {
    let mut w = world();
    let known = w.subscriber(A, connect_with("n1", false, true, 600), "t/1", QoS::AtMostOnce);
    w.subscribed(A, "s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    w.broker_publishes(0, "s/x", "zero", QoS::AtMostOnce);
    w.broker_publishes(6, "s/x", "b", QoS::AtLeastOnce);
    w.broker_publishes(7, "s/y", "other", QoS::AtLeastOnce);
    unanswered_but_heard(&mut w, "s/x");
    // QoS 0 does not wait for the name; another name is offered at once, and a topic that is known needs no offer.
    assert_eq!(w.gw.counters().downlink_refused, 1);
    let other = w.learns(A, "s/y");
    w.takes(A, TopicRef::Normal(other), "other");
    w.broker_publishes(0, "t/1", "go", QoS::AtMostOnce);
    w.expect_publish(A, known, Qos::AtMostOnce, false, "go");
    w.broker_publishes(0, "s/x", "zero", QoS::AtMostOnce);
    assert_eq!(w.gw.counters().downlink_refused, 2);
    for settled in [6, 7, 5] {
        w.broker_gets_puback(settled);
    }
    // The broker does not wait for what joins.
    w.broker_publishes(8, "s/x", "c", QoS::AtLeastOnce);
    w.broker_gets_puback(8);
    w.pass(RETRY * 4 - Duration::from_millis(1));
    w.quiet();
    w.pass(Duration::from_millis(1));
    let id = w.learns(A, "s/x");
    for payload in ["a", "b", "c"] {
        w.takes(A, TopicRef::Normal(id), payload);
    }
    w.quiet();
}

#[test]
fn a_name_that_a_client_which_is_heard_never_learns_costs_a_message_after_three_rounds() {
    let mut w = world();
    w.subscriber(A, connect_with("n1", false, true, 600), "s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/x", "b", QoS::AtLeastOnce);
    for dropped in [0, 0, 1] {
        unanswered_but_heard(&mut w, "s/x");
        assert_eq!(w.gw.counters().downlink_unanswered, dropped);
        w.quiet();
        if dropped == 0 {
            w.pass(RETRY * 4);
        }
    }
    // The name rests for T_WAIT, and what waits behind has rounds of its own.
    assert_eq!(w.gw.waiting_messages(), 1);
    w.pass(Duration::from_secs(329));
    w.quiet();
    w.pass(Duration::from_secs(1));
    let id = w.learns(A, "s/x");
    w.takes(A, TopicRef::Normal(id), "b");
}

#[test]
fn a_round_in_which_the_client_was_not_heard_costs_nothing() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, true, 0));
    w.pass(Duration::from_secs(1));
    w.subscribed(A, "s/#", QoS::AtLeastOnce);
    w.pass(Duration::from_secs(1));
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    unanswered_but_heard(&mut w, "s/x");
    // From here on the radio is dead for an hour.
    w.pass(Duration::from_secs(3600));
    assert!(w.taken().len() > 12);
    assert_eq!((w.gw.counters().downlink_unanswered, w.gw.waiting_messages()), (0, 1));
    w.send(A, pingreq());
    w.taken();
    w.pass(Duration::ZERO);
    let id = w.learns(A, "s/x");
    w.takes(A, TopicRef::Normal(id), "a");
}

#[test]
fn a_client_that_wakes_is_offered_a_name_that_rested() {
    let mut w = offered_in_vain();
    w.falls_asleep(A, 300);
    w.pass(RETRY * 8);
    w.quiet();
    w.send(A, pingreq_of("n1"));
    let id = w.learns(A, "s/x");
    w.takes(A, TopicRef::Normal(id), "a");
    w.expect(A, Packet::PingResp);
}

#[test]
fn rounds_are_counted_on_after_one_in_which_the_client_was_silent() {
    let mut w = offered_in_vain();
    w.pass(RETRY * 4);
    for _ in 0..4 {
        w.expect_register(A, "s/x");
        w.pass(RETRY);
    }
    w.quiet();
    w.pings(A);
    w.pass(Duration::ZERO);
    unanswered_but_heard(&mut w, "s/x");
    assert_eq!(w.gw.waiting_messages(), 1);
    w.pass(RETRY * 4);
    unanswered_but_heard(&mut w, "s/x");
    assert_eq!((w.gw.counters().downlink_unanswered, w.gw.waiting_messages()), (1, 0));
}

#[test]
fn what_must_arrive_does_not_wait_longer_for_a_name_because_qos_0_came_before_it() {
    let mut w = world();
    w.subscriber(A, connect_with("n1", false, true, 600), "s/#", QoS::AtLeastOnce);
    w.broker_publishes(0, "s/x", "zero", QoS::AtMostOnce);
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    unanswered_but_heard(&mut w, "s/x");
    assert_eq!((w.gw.counters().downlink_unanswered, w.gw.waiting_messages()), (1, 1));
    w.pass(RETRY * 4);
    let id = w.learns(A, "s/x");
    w.takes(A, TopicRef::Normal(id), "a");
}

#[test]
fn a_name_is_not_offered_again_to_who_unsubscribed_meanwhile() {
    let mut w = world();
    w.subscriber(A, connect_with("n1", false, true, 600), "s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    let topic = FilterRef::Name(b"s/#");
    w.send(A, Packet::Unsubscribe(Unsubscribe { msg_id: 3, topic }));
    w.expect_register(A, "s/x");
    w.expect(A, Packet::UnsubAck(MsgIdOnly { msg_id: 3 }));
    assert!(matches!(w.broker_next(), v4::Packet::Unsubscribe(_)));
    for _ in 0..3 {
        w.pass(RETRY);
        w.expect_register(A, "s/x");
    }
    w.pings(A);
    w.pass(RETRY);
    w.broker_gets_puback(5);
    assert_eq!((w.gw.counters().downlink_ended, w.gw.waiting_messages()), (1, 0));
    w.pass(RETRY * 5);
    w.quiet();
}

#[test]
fn a_name_that_rests_is_used_once_the_client_has_asked_for_its_id_itself() {
    let mut w = offered_in_vain();
    w.pass(RETRY);
    let id = w.registered(A, "s/x");
    w.takes(A, TopicRef::Normal(id), "a");
    w.broker_publishes(6, "s/x", "b", QoS::AtLeastOnce);
    w.takes(A, TopicRef::Normal(id), "b");
    w.pass(RETRY * 6);
    w.quiet();
}

#[test]
fn a_message_whose_name_was_learnt_late_has_all_rounds_for_itself() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    for _ in 0..2 {
        unanswered_but_heard(&mut w, "s/x");
        w.pings(A);
        w.pass(RETRY * 4);
    }
    let id = w.learns(A, "s/x");
    for dup in (0..12).map(|sent| sent > 0) {
        w.expect_publish(A, TopicRef::Normal(id), Qos::AtLeastOnce, dup, "a");
        w.pass(RETRY / 2);
        w.pings(A);
        w.pass(RETRY / 2);
    }
    assert_eq!((w.gw.counters().downlink_unanswered, w.gw.waiting_messages()), (1, 0));
}

/// All repetitions of a REGISTER under way, with nothing but a PINGREQ from the client.
#[track_caller]
fn unanswered_but_heard(w: &mut World, name: &str) {
    for _ in 0..4 {
        w.expect_register(A, name);
        w.pass(RETRY / 2);
        w.pings(A);
        w.pass(RETRY / 2);
    }
}

/// A client that has subscribed to `s/#`, and did not answer one round of REGISTERs for the message `a` on `s/x`.
#[track_caller]
fn offered_in_vain() -> World {
    let mut w = world();
    w.subscriber(A, connect_with("n1", false, true, 600), "s/#", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/x", "a", QoS::AtLeastOnce);
    unanswered_but_heard(&mut w, "s/x");
    w
}

/// Seen with Aedes, which closes at the PUBREC for a retained message: the client subscribed again while the broker was away.
#[test]
fn who_subscribes_again_while_the_broker_is_away_gets_the_retained_message_again() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtMostOnce);
    w.broker_publishes_retained("s/1", "kept");
    w.next(A);
    w.broker_down();
    w.taken();
    w.send(A, subscribe(9, "s/1", Qos::AtMostOnce));
    w.next(A);
    w.pass(Duration::from_secs(2));
    w.broker_up(true);
    w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
    w.broker_publishes_retained("s/1", "kept");
    let frame = w.next(A);
    assert!(frame.ends_with(b"kept"), "{topic:?} {frame:?}");
}

#[test]
fn an_unanswered_publish_is_repeated_and_a_client_that_is_deaf_to_all_of_it_is_lost() {
    let mut w = world();
    let topic = w.subscriber(A, connect_with("n1", false, true, 600), "s/1", QoS::AtLeastOnce);
    w.pass(Duration::from_secs(1));
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    for _ in 0..3 {
        w.pass(RETRY);
        assert_eq!(w.expect_publish(A, topic, Qos::AtLeastOnce, true, "on"), msg_id);
    }
    w.broker_quiet();
    w.pass(RETRY);
    w.broker_gets_puback(5);
    assert_eq!((w.gw.sessions(), w.gw.counters().clients_lost), (0, 1));
}

#[test]
fn a_client_that_is_heard_but_never_acknowledges_loses_the_message_alone() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "off", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.broker_quiet();
    // Three rounds of four.
    for _ in 1..12 {
        w.pass(RETRY);
        w.expect_publish(A, topic, Qos::AtLeastOnce, true, "on");
        w.pings(A);
    }
    // For what waits behind an answer that is late the broker does not wait.
    w.broker_gets_puback(6);
    w.pass(RETRY);
    w.broker_gets_puback(5);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "off");
    assert_eq!(w.gw.counters().downlink_unanswered, 1);
}

#[test]
fn a_pubrel_that_a_client_hears_and_never_answers_is_given_up_and_counted() {
    let mut w = world();
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::ExactlyOnce));
    w.broker_publishes(5, "s/1", "on", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "on");
    w.send(A, pubrec(msg_id));
    for _ in 0..4 {
        w.expect(A, pubrel(msg_id));
        w.pass(Duration::from_secs(1));
        w.send(A, pingreq());
        w.expect(A, Packet::PingResp);
        w.pass(RETRY - Duration::from_secs(1));
    }
    w.quiet();
    assert_eq!((w.gw.counters().releases_unanswered, w.gw.counters().clients_lost), (1, 0));
    w.broker_publishes(6, "s/1", "off", QoS::ExactlyOnce);
    w.expect_publish(A, topic, Qos::ExactlyOnce, false, "off");
}

#[test]
fn qos_2_to_the_client_takes_four_steps_and_repeats_only_the_open_one() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "on", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "on");
    w.send(A, pubrec(msg_id));
    w.expect(A, pubrel(msg_id));
    w.broker_gets_pubrec(5);
    w.pass(RETRY);
    w.expect(A, pubrel(msg_id));
    w.completes(A, msg_id);
    w.pass(RETRY);
    w.quiet();
}

/// A client that refused `on` for its topic id, and has been told the id again.
#[track_caller]
fn relearnt(w: &mut World) -> TopicRef {
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    let first = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.send(A, puback(topic, first, ReturnCode::InvalidTopicId));
    assert_eq!(TopicRef::Normal(w.learns(A, "s/1")), topic);
    topic
}

#[test]
fn an_id_the_client_forgot_is_registered_again_once_for_each_message() {
    let mut w = world();
    let topic = relearnt(&mut w);
    let second = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.send(A, puback(topic, second, ReturnCode::InvalidTopicId));
    w.broker_gets_puback(5);
    w.quiet();
}

#[test]
fn a_message_that_is_sent_again_after_its_topic_id_was_refused_has_dup_in_all_rounds() {
    let mut w = world();
    let topic = relearnt(&mut w);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    // A round and the beginning of the next one.
    for _ in 0..5 {
        w.pings(A);
        w.pass(RETRY);
        w.expect_publish(A, topic, Qos::AtLeastOnce, true, "on");
    }
}

#[test]
fn a_congested_client_is_left_alone_for_t_wait() {
    let mut w = world();
    let topic = w.subscriber(A, connect_with("n1", false, true, 0), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.send(A, puback(topic, msg_id, ReturnCode::Congestion));
    // The broker does not wait that long.
    w.broker_gets_puback(5);
    w.pass(Duration::from_secs(329));
    w.quiet();
    w.pass(Duration::from_secs(1));
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
}

#[test]
fn nothing_of_a_filter_comes_after_its_unsuback() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "one", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "two", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "one");
    let filter = FilterRef::Name(b"s/1");
    w.send(A, Packet::Unsubscribe(Unsubscribe { msg_id: 3, topic: filter }));
    w.expect(A, Packet::UnsubAck(MsgIdOnly { msg_id: 3 }));
    w.broker_gets_puback(6);
    assert!(matches!(w.broker_next(), v4::Packet::Unsubscribe(_)));
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    w.broker_gets_puback(5);
    w.quiet();
}

#[test]
fn a_retained_message_that_overtakes_its_suback_waits_for_it() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_publishes_retained("s/1", "on");
    w.quiet();
    w.broker_grants(pkid, QoS::AtMostOnce);
    let suback = w.next(A);
    assert_eq!(suback[1], 0x13);
    let publish = w.next(A);
    assert_eq!((publish[1], publish[2]), (0x0C, 0x10));
}

#[test]
fn retained_messages_are_for_the_new_subscriber_alone_and_once_for_each_topic() {
    let mut w = world();
    w.active(A, "n1");
    w.active(B, "n2");
    w.subscribed(A, "s/1", QoS::AtMostOnce);
    w.pass(Duration::from_secs(11));
    let b = TopicRef::Normal(w.subscribed(B, "s/1", QoS::AtMostOnce));
    w.broker_publishes_retained("s/1", "on");
    w.expect_publish(B, b, Qos::AtMostOnce, false, "on");
    w.broker_publishes_retained("s/1", "on");
    w.quiet();
    assert_eq!(w.gw.counters().downlink_unrouted, 1);
}

#[test]
fn a_persistent_session_gets_what_came_while_it_was_away() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, false, 60));
    let id = w.subscribed(A, "s/1", QoS::AtLeastOnce);
    w.takes_leave(A);
    w.broker_publishes(5, "s/1", "one", QoS::AtLeastOnce);
    w.broker_publishes(0, "s/1", "zero", QoS::AtMostOnce);
    // The broker does not wait for a client that is away.
    w.broker_gets_puback(5);
    w.connected(B, connect_with("n1", false, false, 60));
    let again = w.learns(B, "s/1");
    assert_eq!(again, id);
    w.expect_publish(B, TopicRef::Normal(id), Qos::AtLeastOnce, false, "one");
}

#[test]
fn predefined_and_short_topics_are_named_as_they_were_subscribed() {
    let mut w = world();
    w.active(A, "n1");
    for (msg_id, topic, name) in
        [(1, FilterRef::Predefined(1), "pre/one"), (2, FilterRef::Short(*b"ab"), "ab")]
    {
        let qos = Qos::AtMostOnce;
        w.send(A, Packet::Subscribe(mqtt_sn_gateway::wire::Subscribe { dup: false, qos, msg_id, topic }));
        w.broker_grants_subscribe(name, QoS::AtMostOnce);
        w.next(A);
        w.broker_publishes(0, name, "on", QoS::AtMostOnce);
        let by = if msg_id == 1 { TopicRef::Predefined(1) } else { TopicRef::Short(*b"ab") };
        w.expect_publish(A, by, qos, false, "on");
    }
}

#[test]
fn a_message_refused_for_its_topic_id_and_taken_by_a_late_copy_does_not_come_again() {
    let mut w = world();
    w.active(A, "n1");
    let id = w.subscribed(A, "s/1", QoS::ExactlyOnce);
    let topic = TopicRef::Normal(id);
    for packet_id in [5, 6] {
        w.broker_publishes(packet_id, "s/1", "on", QoS::ExactlyOnce);
        let first = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "on");
        w.send(A, puback(topic, first, ReturnCode::InvalidTopicId));
        let (again, register) = w.expect_register(A, "s/1");
        if packet_id == 5 {
            // Under the same MsgId, so that the client can tell.
            w.send(A, regack(again, register, ReturnCode::Accepted));
            assert_eq!(w.expect_publish(A, topic, Qos::ExactlyOnce, false, "on"), first);
        }
        w.completes(A, first);
        w.quiet();
    }
}

#[test]
fn a_message_that_was_sent_before_keeps_its_place_while_its_name_rests() {
    let mut w = world();
    let topic = w.subscriber(A, connect_with("c1", false, false, 600), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(1, "s/1", "one", QoS::AtLeastOnce);
    w.broker_publishes(2, "s/1", "two", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "one");
    // Not a word for all repetitions, then it connects again.
    w.pass(Duration::from_secs(41));
    assert_eq!(w.gw.counters().clients_lost, 1);
    w.taken();
    w.connected(A, connect_with("c1", false, false, 600));
    w.expect_register(A, "s/1");
    // Heard, but without an answer to REGISTER: the name rests as long as the round took.
    w.pass(Duration::from_secs(5));
    w.pings(A);
    w.pass(Duration::from_secs(36));
    w.taken();
    w.pass(Duration::from_secs(35));
    assert_eq!(w.taken().len(), 0, "the name rests");
    w.pass(Duration::from_secs(9));
    let mut payloads = Vec::new();
    for _ in 0..6 {
        for frame in w.taken() {
            match decode(&frame).unwrap().packet {
                Packet::Register(it) => {
                    w.send(A, regack(it.topic_id, it.msg_id, ReturnCode::Accepted));
                }
                Packet::Publish(it) => {
                    payloads.push(String::from_utf8(it.data.to_vec()).unwrap());
                    w.send(A, puback(it.topic, it.msg_id, ReturnCode::Accepted));
                }
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!(payloads, ["one", "two"]);
}
