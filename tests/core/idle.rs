//! What wakes a gateway that has nothing to do: what is due, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use mqtt_sn_gateway::gateway::io::OutageQueue;
use mqtt_sn_gateway::wire::{Packet, Qos, ReturnCode, TopicRef, decode};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const CLIENTS: At = 10_000;
const HOUR: u64 = 3600;

/// 500 different ones, from a quarter of an hour on.
fn keep_alive(at: At) -> u16 {
    1000 + 10 * (at % 500)
}

/// When a client is lost that was last heard then (§7.2), in seconds.
fn lost(at: At, heard: u64) -> u64 {
    let keep_alive = u64::from(keep_alive(at));
    heard + keep_alive + keep_alive / 10
}

#[test]
fn only_deadlines_wake_a_gateway_of_ten_thousand_idle_clients_each_at_its_own_time() {
    let mut w = world_with(|settings| {
        (settings.sessions.max, settings.lasting) = (CLIENTS.into(), true);
        let age = Duration::from_secs(86_400);
        settings.broker.outage_queue = Some(OutageQueue { messages: 1000, bytes: 1 << 20, age });
        settings.broker.keep_alive = Duration::from_secs(60);
    });
    w.answers_pings = true;
    let start = w.now;
    for at in 1..=CLIENTS {
        w.send(at, connect_with(&format!("n{at}"), false, true, keep_alive(at)));
        w.expect(at, connack(ReturnCode::Accepted));
    }
    let mut wakes = Vec::new();
    // Every second one is heard three times, and then no more.
    for _ in 0..3 {
        wakes.extend(w.wakes(Duration::from_secs(100)));
        for at in (2..=CLIENTS).step_by(2) {
            w.send(at, pingreq());
            w.expect(at, Packet::PingResp);
        }
    }
    wakes.extend(w.wakes(Duration::from_secs(HOUR - 300)));

    // Our PINGREQ to the broker, ADVERTISE, and clients: who was heard is looked at once more than the others.
    let mut due: BTreeSet<_> = (60..=HOUR).step_by(60).chain((1200..=HOUR).step_by(1200)).collect();
    due.extend((1..=CLIENTS).map(|at| lost(at, 0)));
    due.extend((2..=CLIENTS).step_by(2).map(|at| lost(at, 300)));
    let due: Vec<_> = due.into_iter().filter(|at| *at <= HOUR).collect();
    let wakes: Vec<_> = wakes.into_iter().map(|at| (at - start).as_secs_f64()).collect();
    assert_eq!(wakes, due.iter().map(|at| *at as f64).collect::<Vec<_>>());
    let gone = (1..=CLIENTS).filter(|at| lost(*at, if at % 2 == 0 { 300 } else { 0 }) <= HOUR);
    assert_eq!(w.gw.counters().clients_lost, gone.count() as u64);
}

#[test]
fn nothing_wakes_a_gateway_whose_clients_are_not_supervised_but_its_own_advertise() {
    let mut w = world_with(|settings| settings.sessions.max = CLIENTS.into());
    let start = w.now;
    for at in 1..=1000 {
        w.send(at, connect_with(&format!("n{at}"), false, true, 0));
        w.expect(at, connack(ReturnCode::Accepted));
        w.send(at, pingreq());
        w.expect(at, Packet::PingResp);
    }
    let wakes = w.wakes(Duration::from_secs(HOUR));
    assert_eq!(wakes, [1200, 2400, 3600].map(|at| start + Duration::from_secs(at)));
}

#[test]
fn nothing_wakes_the_gateway_for_what_was_answered_in_time() {
    let mut w = world();
    let start = w.now;
    w.send(A, connect_with("n1", false, true, 0));
    w.expect(A, connack(ReturnCode::Accepted));
    let topic = TopicRef::Normal(w.registered(A, "t"));
    w.subscribed(A, "s", QoS::AtLeastOnce);
    w.send(A, publish(topic, Qos::AtLeastOnce, 7, "a"));
    let packet = w.broker_gets("t", "a", QoS::AtLeastOnce);
    w.broker_says(v4::Packet::PubAck(v4::PubAck { pkid: packet }));
    w.expect(A, puback(topic, 7, ReturnCode::Accepted));
    w.send(A, publish(topic, Qos::ExactlyOnce, 8, "b"));
    let packet = w.broker_gets("t", "b", QoS::ExactlyOnce);
    w.broker_says(v4::Packet::PubRec(v4::PubRec { pkid: packet }));
    w.expect(A, pubrec(8));
    w.send(A, pubrel(8));
    w.broker_says(v4::Packet::PubComp(v4::PubComp { pkid: packet }));
    w.expect(A, pubcomp(8));
    w.broker_publishes(5, "s", "c", QoS::AtLeastOnce);
    let frame = w.next(A);
    let Packet::Publish(message) = decode(&frame).unwrap().packet else { panic!("a PUBLISH") };
    w.send(A, puback(message.topic, message.msg_id, ReturnCode::Accepted));
    let wakes = w.wakes(Duration::from_secs(HOUR));
    // The first: what the broker has kept of `s` has had its time.
    assert_eq!(wakes, [10, 1200, 2400, 3600].map(|at| start + Duration::from_secs(at)));
}
