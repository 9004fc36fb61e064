//! The link to the broker: reconnects, subscriptions issued again, shutdown.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{
    Control, Endpoint, Input, LinkCommand, LinkEvent, LinkFailure, PortEvent, PortId,
};
use mqtt_sn_gateway::wire::{Advertise, Packet, Qos, ReturnCode, SubAck, TopicRef};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;

#[test]
fn reconnects_pause_between_1_and_30_seconds_longer_each_time_and_never_stop() {
    let mut w = offline_world(|_| {});
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let (id, command) = w.commands.pop_front().expect("a connect");
        assert!(matches!(command, LinkCommand::Connect { .. }));
        let failure = LinkFailure::Connect("connection refused".into());
        w.input(Input::Link(id, LinkEvent::Closed(failure)));
        let due = w.gw.poll_timeout().unwrap();
        pauses.push((due - w.now).as_secs_f64());
        w.pass(due - w.now);
    }
    assert!(pauses.iter().all(|pause| (1.0..=30.0).contains(pause)), "{pauses:?}");
    assert!(pauses[..3].iter().all(|pause| *pause <= 8.0), "{pauses:?}");
    assert!(pauses[6..].iter().any(|pause| *pause > 10.0), "{pauses:?}");
    assert_ne!(pauses[10], pauses[11]);
}

#[test]
fn a_broker_that_forgot_the_session_is_told_all_filters_again() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.pass(Duration::from_secs(11));
    w.broker_down();
    w.pass(Duration::from_secs(2));
    w.broker_up(false);
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    // What the broker kept is no news to anybody.
    w.broker_publishes_retained("s/1", "old");
    w.quiet();
}

#[test]
fn subscriptions_made_while_the_broker_is_away_hold_and_are_issued_when_it_returns() {
    let mut w = world();
    w.active(A, "n1");
    w.broker_down();
    w.send(A, subscribe(2, "s/#", Qos::ExactlyOnce));
    let code = ReturnCode::Accepted;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::ExactlyOnce, topic_id: 0, msg_id: 2, code }));
    w.pass(Duration::from_secs(2));
    w.broker_up(true);
    w.broker_gets_subscribe("s/#", QoS::ExactlyOnce);
}

#[test]
fn a_filter_stays_at_the_broker_until_the_last_client_leaves_it() {
    let mut w = world();
    for at in [1, 2] {
        w.subscriber(at, connect(&format!("n{at}")), "s/1", QoS::AtMostOnce);
    }
    w.takes_leave(1);
    w.broker_quiet();
    w.takes_leave(2);
    match w.broker_next() {
        v4::Packet::Unsubscribe(unsubscribe) => assert_eq!(unsubscribe.topics, ["s/1"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refused_subscription_is_the_clients_refusal_and_leaves_nothing() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_denies(pkid);
    let code = ReturnCode::NotSupported;
    w.expect(A, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 2, code }));
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.quiet();
}

#[test]
fn a_shutdown_tells_active_clients_and_then_the_broker() {
    let mut w = world();
    w.active(A, "n1");
    w.input(Input::Control(Control::Shutdown));
    w.expect(A, disconnect());
    w.broker_gets_disconnect();
    assert!(w.stopped);
}

#[test]
fn a_shutdown_without_a_broker_is_done_at_once() {
    let mut w = offline_world(|_| {});
    w.input(Input::Control(Control::Shutdown));
    assert!(w.stopped);
}

#[test]
fn a_made_up_client_id_leaves_no_session_behind_at_the_broker() {
    let mut w = world_with(|settings| settings.broker.client_id_is_random = true);
    w.input(Input::Control(Control::Shutdown));
    w.broker_gets_disconnect();
    assert!(!w.stopped);
    let (id, _) = w.commands.pop_back().expect("a connect");
    w.input(Input::Link(id, LinkEvent::Connected));
    match w.broker_next() {
        v4::Packet::Connect(connect) => assert!(connect.clean_session),
        other => panic!("{other:?}"),
    }
    w.broker_accepts(false);
    w.broker_gets_disconnect();
    assert!(w.stopped);
}

#[test]
fn several_brokers_are_tried_in_turn() {
    let endpoint = |host: &str| Endpoint { host: host.into(), port: 1883, tls: false };
    let mut w = offline_world(|settings| settings.broker.endpoints = vec![endpoint("a"), endpoint("b")]);
    for host in ["a", "b", "a"] {
        let (id, command) = w.commands.pop_front().expect("a connect");
        assert_eq!(command, LinkCommand::Connect { endpoint: endpoint(host), client: None });
        w.input(Input::Link(id, LinkEvent::Closed(LinkFailure::Connect("refused".into()))));
        w.pass(Duration::from_secs(30));
    }
}

#[test]
fn only_transports_that_can_broadcast_advertise() {
    let mut w = world_with(|settings| settings.ports[0].advertise = false);
    w.pass(Duration::from_secs(3600));
    w.no_broadcast();
}

#[test]
fn a_message_for_which_the_broker_closes_each_time_is_given_up_and_the_others_get_through() {
    let mut w = world_with(|settings| settings.broker.ack_timeout = Duration::from_secs(600));
    w.connected(A, connect_with("n1", false, true, 0));
    for (msg_id, payload) in [(1, "bad"), (2, "good")] {
        w.send(A, publish(TopicRef::Predefined(1), Qos::AtLeastOnce, msg_id, payload));
    }
    for connection in 1..=5 {
        w.broker_gets("pre/one", "bad", QoS::AtLeastOnce);
        w.broker_down();
        if connection < 5 {
            w.quiet();
        }
        w.pass(Duration::from_millis(30_001).min(Duration::from_secs(1 << connection)));
        w.broker_up(true);
    }
    w.expect(A, puback(TopicRef::Predefined(1), 1, ReturnCode::NotSupported));
    let pkid = w.broker_gets("pre/one", "good", QoS::AtLeastOnce);
    w.broker_pubacks(pkid);
    w.expect(A, puback(TopicRef::Predefined(1), 2, ReturnCode::Accepted));
    assert_eq!(w.gw.counters().uplink_given_up, 1);
}

#[test]
fn connections_that_end_with_an_acknowledgement_between_them_cost_no_message() {
    let mut w = world();
    w.active(A, "n1");
    for msg_id in 1..20 {
        w.send(A, publish(TopicRef::Predefined(1), Qos::AtLeastOnce, msg_id, "m"));
        let pkid = w.broker_gets("pre/one", "m", QoS::AtLeastOnce);
        w.broker_down();
        w.pass(Duration::from_secs(2));
        w.broker_up(true);
        w.broker_gets("pre/one", "m", QoS::AtLeastOnce);
        w.broker_pubacks(pkid);
        w.expect(A, puback(TopicRef::Predefined(1), msg_id, ReturnCode::Accepted));
    }
    assert_eq!(w.gw.counters().uplink_given_up, 0);
}

#[test]
fn a_transport_that_comes_up_late_advertises_at_once() {
    let mut w = world();
    while w.try_broadcast() {}
    w.input(Input::Port(PortId(0), PortEvent::Up));
    w.expect_broadcast(Packet::Advertise(Advertise { gw_id: 0x2A, duration: 1200 }));
    w.broker_down();
    w.input(Input::Port(PortId(0), PortEvent::Up));
    w.no_broadcast();
}
