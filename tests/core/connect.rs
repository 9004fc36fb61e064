//! Connection set-up, Wills, addresses, take-over and leave (§6.2, §6.3, §6.12).

use std::time::Duration;

use mqtt_sn_gateway::wire::{
    Advertise, GwInfo, Packet, Qos, ReturnCode, SearchGw, TopicRef, WillMsg, WillTopic,
};
use rumqttc::QoS;

use crate::world::*;

const A: At = 1;
const B: At = 2;

fn will_topic(topic: &str) -> Packet<'_> {
    Packet::WillTopic(WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: topic.as_bytes() })
}

fn will_msg(message: &str) -> Packet<'_> {
    Packet::WillMsg(WillMsg { message: message.as_bytes() })
}

fn active_with_will(world: &mut World, at: At, id: &str, clean: bool) {
    let will = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w/1" };
    world.gives_will(at, connect_with(id, true, clean, 2), will, "bye");
    world.expect(at, connack(ReturnCode::Accepted));
}

#[test]
fn every_step_of_the_will_handshake_can_be_repeated() {
    let mut w = world();
    for _ in 0..2 {
        w.send(A, connect_with("n1", true, true, 60));
        w.expect(A, Packet::WillTopicReq);
    }
    for _ in 0..2 {
        w.send(A, will_topic("w/1"));
        w.expect(A, Packet::WillMsgReq);
    }
    for _ in 0..2 {
        w.send(A, will_msg("bye"));
        w.expect(A, connack(ReturnCode::Accepted));
    }
}

#[test]
fn the_will_of_a_lost_client_is_published_once() {
    let mut w = world();
    active_with_will(&mut w, A, "n1", true);
    w.pass(Duration::from_millis(2_999));
    w.broker_quiet();
    w.pass(Duration::from_millis(2));
    w.broker_gets("w/1", "bye", QoS::AtLeastOnce);
    w.pass(Duration::from_secs(100));
    w.broker_quiet();
    assert_eq!(w.gw.sessions(), 0);
}

#[test]
fn the_will_of_a_client_that_takes_leave_is_not_published() {
    let mut w = world();
    active_with_will(&mut w, A, "n1", true);
    w.takes_leave(A);
    w.pass(Duration::from_secs(100));
    w.broker_quiet();
}

#[test]
fn a_will_that_fires_while_the_broker_is_away_is_published_when_it_returns() {
    let mut w = world();
    active_with_will(&mut w, A, "n1", true);
    w.broker_down();
    w.pass(Duration::from_secs(4));
    w.broker_up(true);
    w.broker_gets("w/1", "bye", QoS::AtLeastOnce);
}

#[test]
fn a_client_that_goes_on_with_its_session_drops_the_handshake_a_late_connect_opened() {
    let mut w = world();
    active_with_will(&mut w, A, "n1", false);
    let id = w.registered(A, "a/b");
    w.send(A, connect_with("n1", true, false, 2));
    w.expect(A, Packet::WillTopicReq);
    w.send(A, publish(TopicRef::Normal(id), Qos::AtMostOnce, 0, "21"));
    w.broker_gets("a/b", "21", QoS::AtMostOnce);
    w.send(A, will_topic("w/2"));
    w.quiet();
}

#[test]
fn an_abandoned_handshake_leaves_the_session_as_it_was() {
    let mut w = world();
    w.active(A, "n1");
    w.send(B, connect_with("n1", true, true, 60));
    w.expect(B, Packet::WillTopicReq);
    w.pings(A);
    for _ in 0..3 {
        w.pass(RETRY + Duration::from_secs(5));
        w.pings(A);
    }
    w.send(B, will_topic("w/1"));
    w.quiet();
    assert_eq!(w.gw.counters().handshakes_expired, 1);
}

#[test]
fn a_repeated_connect_is_answered_again_and_changes_nothing() {
    let mut w = world();
    w.connected(A, connect("n1"));
    w.connected(A, connect("n1"));
    assert_eq!(w.gw.counters().connects_accepted, 1);
    let id = w.registered(A, "a/b");
    w.connected(A, connect("n1"));
    w.send(A, publish(TopicRef::Normal(id), Qos::AtLeastOnce, 9, "x"));
    w.expect(A, puback(TopicRef::Normal(id), 9, ReturnCode::InvalidTopicId));
}

#[test]
fn topic_ids_outlive_the_connection_of_a_persistent_session() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, false, 60));
    let id = w.registered(A, "a/b");
    w.takes_leave(A);
    w.connected(B, connect_with("n1", false, false, 60));
    w.send(B, publish(TopicRef::Normal(id), Qos::AtMostOnce, 0, "x"));
    w.broker_gets("a/b", "x", QoS::AtMostOnce);
}

#[test]
fn a_persistent_session_ends_with_its_life_time() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, false, 60));
    w.takes_leave(A);
    w.pass(Duration::from_secs(86_399));
    assert_eq!(w.gw.sessions(), 1);
    w.pass(Duration::from_secs(2));
    assert_eq!(w.gw.sessions(), 0);
}

#[test]
fn a_client_id_that_connects_from_elsewhere_takes_its_session_along() {
    let mut w = world();
    active_with_will(&mut w, A, "n1", true);
    w.send(B, connect("n1"));
    w.expect(A, disconnect());
    w.expect(B, connack(ReturnCode::Accepted));
    // What may be the answer to our DISCONNECT is not answered.
    w.send(A, disconnect());
    w.quiet();
    w.pass(Duration::from_secs(4));
    w.broker_quiet();
    assert_eq!(w.gw.sessions(), 1);
}

#[test]
fn another_client_id_from_the_same_peer_ends_the_first_client_without_its_will() {
    let mut w = world();
    active_with_will(&mut w, A, "n1", true);
    w.connected(A, connect("n2"));
    w.pass(Duration::from_secs(10));
    w.broker_quiet();
    assert_eq!(w.gw.sessions(), 1);
    w.send(A, pingreq_of("n1"));
    w.expect(A, disconnect());
}

#[test]
fn a_peer_without_a_session_is_told_so_at_most_once_a_second() {
    let mut w = world();
    w.send(A, pingreq());
    w.expect(A, disconnect());
    w.send(A, pingreq());
    w.quiet();
    w.pass(Duration::from_secs(1));
    w.send(A, pingreq());
    w.expect(A, disconnect());
    w.send(A, disconnect());
    w.quiet();
    w.pass(Duration::from_secs(10));
    w.takes_leave(A);
}

#[test]
fn any_message_counts_as_a_sign_of_life() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, true, 100));
    w.pass(Duration::from_secs(109));
    w.send(A, Packet::PingResp);
    w.pass(Duration::from_secs(109));
    assert_eq!(w.gw.sessions(), 1);
    w.pass(Duration::from_secs(2));
    assert_eq!(w.gw.sessions(), 0);
}

#[test]
fn the_gateway_advertises_itself_while_it_has_a_broker() {
    let advertise = Packet::Advertise(Advertise { gw_id: 0x2A, duration: 1200 });
    let mut w = offline_world(|_| {});
    w.pass(Duration::from_secs(1));
    w.no_broadcast();
    w.broker_up(false);
    w.expect_broadcast(advertise);
    w.pass(Duration::from_secs(1200));
    w.expect_broadcast(advertise);
    w.broker_down();
    w.pass(Duration::from_secs(1200));
    w.no_broadcast();
    w.send(A, Packet::SearchGw(SearchGw { radius: 1 }));
    w.expect(A, Packet::GwInfo(GwInfo { gw_id: 0x2A, gw_add: &[] }));
}

#[test]
fn nodes_behind_a_forwarder_are_clients_of_their_own() {
    let mut w = world();
    for node in ["01", "02"] {
        let forwarded =
            |message: &[u8]| bytes::Bytes::from([&hex(&format!("04 FE 00 {node}"))[..], message].concat());
        w.send_octets(A, forwarded(&encode(&connect(node))));
        assert_eq!(w.next(A), forwarded(&hex("03 05 00")));
    }
    assert_eq!(w.gw.sessions(), 2);
    w.send_octets(A, hex("04 FE 00 02 02 16"));
    assert_eq!(w.next(A), hex("04 FE 00 02 02 17"));
}

#[test]
fn an_answer_to_the_gateway_does_not_end_the_handshake_of_an_active_client() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.send(A, connect_with("n1", true, true, 60));
    w.expect(A, Packet::WillTopicReq);
    w.send(A, puback(topic, msg_id, ReturnCode::InvalidTopicId));
    w.next(A);
    w.send(A, will_topic("w/1"));
    w.expect(A, Packet::WillMsgReq);
}

#[test]
fn peers_that_were_told_are_forgotten_beyond_a_bound() {
    let mut w = world();
    for at in 0..=8192 {
        w.send(at, pingreq());
        w.expect(at, disconnect());
    }
    // The first is told again, the last is not.
    w.send(0, pingreq());
    w.expect(0, disconnect());
    w.send(8192, pingreq());
    w.quiet();
}

fn hex(text: &str) -> bytes::Bytes {
    let digits: String = text.split_whitespace().collect();
    let octets = (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap());
    octets.collect::<Vec<_>>().into()
}
