//! What outlives the process (design promises G2, G3 and G5): crashes between any two things that happen.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::Settings;
use mqtt_sn_gateway::wire::{Disconnect, Packet, PingReq, Qos, ReturnCode, TopicRef};
use rumqttc::QoS;

use crate::world::*;

const A: At = 1;
const B: At = 2;

fn lasting() -> World {
    lasting_with(|_| {})
}

fn lasting_with(change: impl FnOnce(&mut Settings)) -> World {
    world_with(|settings| {
        settings.lasting = true;
        change(settings);
    })
}

fn sleep(seconds: u16) -> Packet<'static> {
    Packet::Disconnect(Disconnect { duration: Some(seconds) })
}

fn wake() -> Packet<'static> {
    Packet::PingReq(PingReq { client_id: b"n1" })
}

/// A client that subscribed to `s/#`, knows `s/1` and sleeps; returns the id of `s/1`.
fn asleep(w: &mut World, qos: QoS) -> TopicRef {
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.registered(A, "s/1"));
    w.subscribed(A, "s/#", qos);
    w.send(A, sleep(60));
    w.expect(A, disconnect());
    topic
}

#[test]
fn a_sleeper_that_slept_through_a_restart_wakes_and_gets_everything_in_order() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/2", "b", QoS::AtLeastOnce);
    w.broker_publishes(7, "s/1", "c", QoS::AtLeastOnce);
    w.broker_gets_puback(5);
    w.restart();
    w.pass(Duration::from_secs(80));
    w.quiet();
    w.send(A, wake());
    takes(&mut w, topic, "a");
    let (id, msg_id) = w.expect_register(A, "s/2");
    w.send(A, regack(id, msg_id, ReturnCode::Accepted));
    takes(&mut w, TopicRef::Normal(id), "b");
    takes(&mut w, topic, "c");
    w.expect(A, Packet::PingResp);
    w.quiet();
    w.leaves_nothing();
}

/// The next frame is this message of QoS 1, and the client has it.
#[track_caller]
fn takes(w: &mut World, topic: TopicRef, data: &str) {
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, data);
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
}
