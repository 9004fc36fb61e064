//! Client to broker (§6.6, §6.8).

use std::time::Duration;

use mqtt_sn_gateway::wire::{Qos, ReturnCode, TopicRef};
use rumqttc::QoS;

use crate::world::*;

const A: At = 1;
const AB: TopicRef = TopicRef::Short(*b"ab");

#[test]
fn a_qos_1_message_is_acknowledged_when_the_broker_has_acknowledged_it() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
    let pkid = w.broker_gets("ab", "hi", QoS::AtLeastOnce);
    w.quiet();
    w.broker_pubacks(pkid);
    w.expect(A, puback(AB, 7, ReturnCode::Accepted));
}

#[test]
fn a_repetition_on_its_way_is_not_sent_on_and_one_after_the_end_is_acknowledged_again() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
    let pkid = w.broker_gets("ab", "hi", QoS::AtLeastOnce);
    w.send(A, publish_again(AB, Qos::AtLeastOnce, 7, "hi"));
    w.broker_quiet();
    w.broker_pubacks(pkid);
    w.expect(A, puback(AB, 7, ReturnCode::Accepted));
    w.send(A, publish_again(AB, Qos::AtLeastOnce, 7, "hi"));
    w.expect(A, puback(AB, 7, ReturnCode::Accepted));
    w.broker_quiet();
    // The same id with other content, or without DUP, is a new message.
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "ho"));
    w.broker_gets("ab", "ho", QoS::AtLeastOnce);
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
    w.broker_gets("ab", "hi", QoS::AtLeastOnce);
}

#[test]
fn a_qos_2_message_follows_the_broker_step_by_step() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, publish(AB, Qos::ExactlyOnce, 7, "hi"));
    let pkid = w.broker_gets("ab", "hi", QoS::ExactlyOnce);
    w.quiet();
    w.broker_pubrecs(pkid);
    w.expect(A, pubrec(7));
    w.broker_gets_pubrel(pkid);
    w.send(A, publish_again(AB, Qos::ExactlyOnce, 7, "hi"));
    w.expect(A, pubrec(7));
    w.send(A, pubrel(7));
    w.quiet();
    w.broker_pubcomps(pkid);
    w.expect(A, pubcomp(7));
    w.send(A, pubrel(7));
    w.expect(A, pubcomp(7));
    w.broker_quiet();
}

#[test]
fn a_copy_of_a_finished_qos_2_message_that_the_radio_delayed_is_not_a_new_message() {
    let mut w = world();
    w.active(A, "n1");
    for late in [false, true] {
        w.send(A, publish(AB, Qos::ExactlyOnce, 7, "hi"));
        let pkid = w.broker_gets("ab", "hi", QoS::ExactlyOnce);
        w.broker_pubrecs(pkid);
        w.expect(A, pubrec(7));
        w.broker_next();
        w.broker_pubcomps(pkid);
        w.send(A, pubrel(7));
        w.expect(A, pubcomp(7));
        if !late {
            w.send(A, publish(AB, Qos::ExactlyOnce, 7, "hi"));
            w.expect(A, pubrec(7));
            w.broker_quiet();
            w.pass(RETRY);
        }
    }
}

#[test]
fn a_slow_broker_means_congestion_and_its_late_answer_is_for_the_repetition() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
    let pkid = w.broker_gets("ab", "hi", QoS::AtLeastOnce);
    w.pass(Duration::from_secs(8));
    w.expect(A, puback(AB, 7, ReturnCode::Congestion));
    w.broker_pubacks(pkid);
    w.quiet();
    w.send(A, publish_again(AB, Qos::AtLeastOnce, 7, "hi"));
    w.expect(A, puback(AB, 7, ReturnCode::Accepted));
    w.broker_quiet();
}

#[test]
fn a_message_the_broker_has_not_acknowledged_goes_to_it_again_after_a_reconnect() {
    for session_present in [true, false] {
        let mut w = world();
        w.active(A, "n1");
        w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
        w.broker_gets("ab", "hi", QoS::AtLeastOnce);
        w.broker_down();
        w.pass(Duration::from_secs(3));
        w.broker_up(session_present);
        let pkid = w.broker_gets("ab", "hi", QoS::AtLeastOnce);
        w.broker_pubacks(pkid);
        w.expect(A, puback(AB, 7, ReturnCode::Accepted));
    }
}

#[test]
fn without_a_broker_messages_are_refused_and_qos_0_is_told_so_once_a_second() {
    let mut w = world();
    w.active(A, "n1");
    w.broker_down();
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
    w.expect(A, puback(AB, 7, ReturnCode::Congestion));
    w.send(A, publish(AB, Qos::AtMostOnce, 0, "hi"));
    w.expect(A, puback(AB, 0, ReturnCode::Congestion));
    w.send(A, publish(AB, Qos::AtMostOnce, 0, "hi"));
    w.quiet();
    assert_eq!(w.gw.counters().uplink_congestion, 3);
}

#[test]
fn what_several_clients_say_at_once_leaves_in_one_write() {
    let mut w = world();
    for at in 1..=5 {
        w.active(at, &format!("n{at}"));
    }
    w.writes = 0;
    let frames: Vec<_> = (1..=5).map(|at| (at, publish(AB, Qos::AtLeastOnce, 7, "hi"))).collect();
    w.batch(&frames);
    assert_eq!(w.writes, 1);
    for _ in 1..=5 {
        w.broker_gets("ab", "hi", QoS::AtLeastOnce);
    }
}

#[test]
fn while_a_write_is_under_way_the_next_one_gathers() {
    let mut w = world();
    w.active(A, "n1");
    w.hold_drained();
    for msg_id in 1..=5 {
        w.send(A, publish(AB, Qos::AtLeastOnce, msg_id, "hi"));
    }
    assert_eq!(w.broker_gets("ab", "hi", QoS::AtLeastOnce), 1);
    w.broker_quiet();
    w.writes = 0;
    w.drained();
    assert_eq!(w.writes, 1);
    for pkid in 2..=5 {
        assert_eq!(w.broker_gets("ab", "hi", QoS::AtLeastOnce), pkid);
    }
}

#[test]
fn qos_minus_one_needs_no_session_and_gets_no_answer() {
    let mut w = world();
    w.send(A, publish(TopicRef::Predefined(1), Qos::MinusOne, 0, "hi"));
    w.broker_gets("pre/one", "hi", QoS::AtMostOnce);
    w.send(A, publish(TopicRef::Normal(1), Qos::MinusOne, 0, "hi"));
    w.send(A, publish(TopicRef::Predefined(99), Qos::MinusOne, 0, "hi"));
    w.broker_quiet();
    w.quiet();
    assert_eq!(w.gw.counters().qos_minus_one_dropped, 2);
}

#[test]
fn a_client_has_its_own_predefined_topics_before_the_common_ones() {
    use mqtt_sn_gateway::topic::{ClientId, TopicName};
    let mut w = world_with(|settings| {
        let own = [(1, TopicName::new("own/one").unwrap())].into();
        settings.client_predefined.insert(ClientId::new("n1").unwrap(), own);
    });
    w.active(A, "n1");
    w.active(2, "n2");
    w.send(A, publish(TopicRef::Predefined(1), Qos::AtMostOnce, 0, "x"));
    w.broker_gets("own/one", "x", QoS::AtMostOnce);
    w.send(2, publish(TopicRef::Predefined(1), Qos::AtMostOnce, 0, "x"));
    w.broker_gets("pre/one", "x", QoS::AtMostOnce);
}
