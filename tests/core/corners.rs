//! Corners: what happens when things meet that seldom meet.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{Control, Input, LinkCommand, LinkEvent, LinkFailure};
use mqtt_sn_gateway::wire::{
    Connect, Packet, Qos, Register, ReturnCode, SubAck, TopicRef, WillMsg, WillTopic, decode,
};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const B: At = 2;
const AB: TopicRef = TopicRef::Short(*b"ab");

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn persistent(id: &str) -> Packet<'_> {
    connect_with(id, false, false, 600)
}

fn register(msg_id: u16, name: &str) -> Packet<'_> {
    Packet::Register(Register { topic_id: 0, msg_id, topic_name: name.as_bytes() })
}

fn refused(msg_id: u16, code: ReturnCode) -> Packet<'static> {
    Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id, code })
}

/// The next frame is a SUBACK 00; returns its topic id.
#[track_caller]
fn expect_suback(w: &mut World, at: At) -> u16 {
    let frame = w.next(at);
    match decode(&frame).unwrap().packet {
        Packet::SubAck(SubAck { topic_id, code: ReturnCode::Accepted, .. }) => topic_id,
        other => panic!("{other}"),
    }
}

/// The retained message of `s/1` comes to the client at A.
#[track_caller]
fn retained_comes(w: &mut World, topic: TopicRef) {
    w.broker_publishes_retained("s/1", "on");
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "on");
}

/// The client at A is back in its session, after a message for it came on `s/1`.
#[track_caller]
fn back_to(w: &mut World, data: &str) {
    w.subscriber(A, persistent("n1"), "s/1", QoS::AtLeastOnce);
    w.takes_leave(A);
    w.broker_publishes(5, "s/1", data, QoS::AtLeastOnce);
    w.broker_gets_puback(5);
    w.connected(A, persistent("n1"));
}

// One client must not stop the others (N-13).

/// Mosquitto 2.0.11 resets the connection on each of these (MQTT 3.1.1 §1.5.3 lets it; more than 200 levels, too). The
/// link serves all clients, and a message of QoS 1 goes out again on every reconnect.
#[test]
fn a_topic_on_which_brokers_hang_up_is_refused() {
    let mut w = world();
    w.active(A, "n1");
    let deep = "/".repeat(201);
    let mut passed = Vec::new();
    for name in ["a/\u{1}", "a/\u{7f}", "a/\u{85}", "a/\u{ffff}", "a/\u{fdd0}", &deep] {
        w.send(A, register(9, name));
        let frame = w.next(A);
        let Packet::RegAck(ack) = decode(&frame).unwrap().packet else { panic!() };
        if ack.code != ReturnCode::NotSupported {
            passed.push(name.escape_debug().take(12).collect::<String>());
        }
    }
    assert!(passed.is_empty(), "{passed:?}");
}

#[test]
fn a_short_topic_on_which_brokers_hang_up_does_not_reach_the_broker() {
    let mut w = world();
    // From anybody, without a session.
    w.send(A, publish(TopicRef::Short([1, 2]), Qos::MinusOne, 0, "x"));
    w.broker_quiet();
}

/// The SUBSCRIBE stays with the connection until it is answered, also when the client has long gone.
#[test]
fn a_filter_on_which_brokers_hang_up_is_refused() {
    let mut w = world();
    w.active(A, "n1");
    for filter in ["a/\u{1}/#", "$share", "\u{ffff}"] {
        w.send(A, subscribe(9, filter, Qos::AtMostOnce));
        w.broker_quiet();
        w.expect(A, refused(9, ReturnCode::NotSupported));
    }
}

/// Mosquitto sends no more than 20 messages that are not acknowledged.
#[test]
fn a_congested_client_does_not_hold_the_window_of_the_broker() {
    let mut w = world_with(|settings| settings.sessions.queue.messages = 100);
    let topic = w.subscriber(A, connect_with("n1", false, true, 0), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(1, "s/1", "on", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
    w.send(A, puback(topic, msg_id, ReturnCode::Congestion));
    for pkid in 2..=20 {
        w.broker_publishes(pkid, "s/1", "on", QoS::AtLeastOnce);
    }
    w.pass(secs(120));
    // None: for five minutes and a half nobody gets anything of QoS 1 or 2.
    w.broker_next();
}

#[test]
fn a_client_that_never_acknowledges_does_not_hold_the_window_of_the_broker() {
    let mut w = world_with(|settings| settings.sessions.queue.messages = 100);
    w.subscriber(A, connect_with("n1", false, true, 0), "s/1", QoS::AtLeastOnce);
    for pkid in 1..=20 {
        w.broker_publishes(pkid, "s/1", "on", QoS::AtLeastOnce);
    }
    for _ in 0..12 {
        w.send(A, pingreq());
        w.pass(RETRY);
    }
    // In two minutes three messages have been given up, and the broker could send three others.
    for _ in 1..=20 {
        w.broker_next();
    }
}

#[test]
fn what_waits_for_one_client_does_not_keep_messages_from_another_that_is_idle() {
    let mut w = world_with(|settings| settings.sessions.queue_total = 60);
    w.subscriber(A, persistent("away"), "s/1", QoS::AtLeastOnce);
    w.takes_leave(A);
    w.broker_publishes(1, "s/1", &"x".repeat(55), QoS::AtLeastOnce);
    w.broker_gets_puback(1);
    let topic = w.subscriber(B, connect("here"), "t/1", QoS::AtMostOnce);
    w.broker_publishes(0, "t/1", "0123456789", QoS::AtMostOnce);
    w.expect_publish(B, topic, Qos::AtMostOnce, false, "0123456789");
}

// Limits (G7).

#[test]
fn a_handshake_is_no_way_around_the_limit_of_sessions() {
    let mut w = world_with(|settings| settings.sessions.max = 1);
    w.active(A, "n1");
    for at in 2..=20 {
        // For an id that has a session a handshake is always opened, and for a peer in a handshake any id is accepted.
        w.send(at, connect_with("n1", true, true, 60));
        w.next(at);
        w.send(at, connect(&format!("n{at}")));
        w.next(at);
    }
    assert_eq!(w.gw.sessions(), 1);
}

#[test]
fn half_open_handshakes_are_limited_also_for_an_id_that_has_a_session() {
    let mut w = world_with(|settings| settings.sessions.max = 2);
    w.active(A, "n1");
    let mut open = 0;
    for at in 2..=1000 {
        w.send(at, connect_with("n1", true, true, 60));
        open += usize::from(w.next(at)[1] == 0x06);
    }
    assert!(open <= 2, "{open} handshakes");
}

#[test]
fn filters_given_up_while_the_broker_is_away_leave_nothing_behind() {
    let mut w = world();
    w.active(A, "n1");
    w.broker_down();
    for i in 0..1000 {
        let filter = format!("left/{i}/#");
        w.send(A, subscribe(2, &filter, Qos::AtMostOnce));
        expect_suback(&mut w, A);
        w.unsubscribed(A, &filter);
    }
    let left = format!("{:?}", w.gw).matches("left/").count();
    assert_eq!(left, 0, "mentions of filters that nobody has");
}

#[test]
fn what_a_hand_out_remembers_is_limited() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "#", QoS::AtMostOnce);
    // Nothing but the rate of the broker limits it, for every client that subscribed within 10 s.
    for i in 0..20_000 {
        w.broker_publishes(0, &format!("flood/{i}"), "x", QoS::AtMostOnce);
    }
    let remembered = format!("{:?}", w.gw).matches("flood/").count();
    assert!(remembered < 10_000, "{remembered}");
}

#[test]
fn a_client_that_begins_clean_sessions_for_years_does_not_run_out_of_topic_ids() {
    let mut w = world();
    // Wakes up, connects, registers, publishes, powers off without DISCONNECT, and is back before it counts as lost.
    for _ in 0..670 {
        w.connected(A, connect("n1"));
        for i in 0..100 {
            w.registered(A, &format!("t/{i}"));
        }
    }
}

#[test]
fn a_subscribe_refused_for_congestion_takes_no_topic_id() {
    let mut w = world_with(|settings| {
        settings.sessions.max = 3000;
        settings.sessions.max_topics = 1;
    });
    // As many SUBSCRIBEs with the broker as may be.
    for at in 1..=2048 {
        w.active(at, &format!("n{at}"));
        for msg_id in 1..=8 {
            w.send(at, subscribe(msg_id, &format!("{at}/{msg_id}/#"), Qos::AtMostOnce));
            w.quiet();
        }
    }
    w.active(3000, "late");
    w.send(3000, subscribe(1, "s/1", Qos::AtMostOnce));
    w.expect(3000, refused(1, ReturnCode::Congestion));
    w.registered(3000, "a/b");
}

#[test]
fn a_broker_that_keeps_forgetting_is_told_each_filter_once() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "s/#", QoS::AtMostOnce);
    for _ in 0..5 {
        w.broker_down();
        w.pass(secs(31));
        w.send(A, pingreq());
        w.next(A);
        w.broker_up(false);
    }
    w.broker_gets_subscribe("s/#", QoS::AtMostOnce);
    w.broker_quiet();
}

// Nothing is lost in silence (G1, G6).

#[test]
fn a_repetition_is_not_taken_for_a_message_that_ended_an_hour_ago() {
    let mut w = world();
    w.connected(A, connect_with("n1", false, true, 0));
    w.published(A, AB, 1, "ab", "21");
    w.pass(secs(3600));
    // A client with one MsgId for all; its first transmission was lost.
    w.send(A, publish_again(AB, Qos::AtLeastOnce, 1, "21"));
    w.broker_gets("ab", "21", QoS::AtLeastOnce);
}

#[test]
fn a_client_that_rebooted_and_counts_its_ids_from_1_again_loses_no_message() {
    let mut w = world();
    w.connected(A, persistent("n1"));
    w.published(A, AB, 1, "ab", "21");
    w.pass(secs(300));
    w.connected(A, persistent("n1"));
    w.send(A, publish_again(AB, Qos::AtLeastOnce, 1, "21"));
    w.broker_gets("ab", "21", QoS::AtLeastOnce);
}

#[test]
fn a_subscription_made_while_the_broker_is_away_brings_its_retained_messages() {
    let mut w = world();
    w.active(A, "n1");
    w.broker_down();
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let topic = TopicRef::Normal(expect_suback(&mut w, A));
    w.pass(secs(3));
    w.broker_up(true);
    w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
    retained_comes(&mut w, topic);
}

#[test]
fn a_subscription_that_the_broker_answers_after_an_outage_brings_its_retained_messages() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_down();
    w.pass(secs(15));
    let topic = TopicRef::Normal(expect_suback(&mut w, A));
    w.broker_up(true);
    w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
    retained_comes(&mut w, topic);
}

#[test]
fn a_slow_suback_within_ack_timeout_brings_its_retained_messages() {
    let mut w = world_with(|settings| settings.broker.ack_timeout = secs(30));
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.pass(secs(12));
    w.broker_grants(pkid, QoS::AtMostOnce);
    let topic = TopicRef::Normal(expect_suback(&mut w, A));
    retained_comes(&mut w, topic);
}

#[test]
fn a_fleet_that_subscribes_at_once_gets_all_its_retained_messages() {
    let mut w = world_with(|settings| settings.sessions.max_subscriptions = 5000);
    w.active(A, "n1");
    for i in 0..=4096 {
        w.subscribed(A, &format!("r/{i}/+"), QoS::AtMostOnce);
    }
    w.broker_publishes_retained("r/0/x", "on");
    w.expect_register(A, "r/0/x");
}

#[test]
fn a_will_that_found_no_room_leaves_when_there_is_room() {
    let mut w = world();
    let will = WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"w/1" };
    w.gives_will(A, connect_with("n1", true, true, 2), will, "bye");
    w.expect(A, connack(ReturnCode::Accepted));
    w.active(B, "n2");
    w.hold_drained();
    let long = "x".repeat(60_000);
    for _ in 0..20 {
        w.send(B, publish(AB, Qos::AtMostOnce, 0, &long));
    }
    w.pass(secs(4));
    assert_eq!(w.gw.counters().wills_published, 1);
    w.drained();
    w.drained();
    w.drained();
    for _ in 0..40 {
        if matches!(w.broker_next(), v4::Packet::Publish(publish) if publish.topic == "w/1") {
            return;
        }
    }
}

#[test]
fn a_persistent_client_out_of_reach_loses_nothing_while_a_topic_is_registered() {
    let mut w = world();
    back_to(&mut w, "on");
    for _ in 0..=3 {
        w.expect_register(A, "s/1");
        w.pass(RETRY);
    }
    // Nothing was heard of it: a PUBLISH without an answer would have made it Lost and stayed with the session.
    w.quiet();
    assert_eq!((w.gw.counters().downlink_unanswered, w.gw.counters().clients_lost), (0, 0));
    // It was away for a moment.
    w.pings(A);
    w.pass(secs(0));
    w.expect_register(A, "s/1");
    w.pass(RETRY * 3);
    w.send(A, connect_with("n1", false, false, 500));
    for _ in 0..3 {
        w.expect_register(A, "s/1");
    }
    w.expect(A, connack(ReturnCode::Accepted));
    for _ in 0..=3 {
        w.expect_register(A, "s/1");
        w.pass(RETRY);
    }
    assert_eq!(w.gw.counters().downlink_unanswered, 0);
    // It reboots, and says the same as before.
    w.connected(A, connect_with("n1", false, false, 500));
    w.pass(secs(0));
    w.expect_register(A, "s/1");
    // It is there, and does not answer: the name rests and is offered again, and then nothing was heard of it.
    w.pass(RETRY * 12);
    assert_eq!((w.gw.counters().downlink_unanswered, w.gw.waiting_messages()), (0, 1));
    assert_eq!(w.gw.counters().clients_lost, 0);
    w.pass(secs(471));
    assert_eq!(w.gw.counters().clients_lost, 1);
    assert_eq!(w.gw.waiting_messages(), 1);
}

#[test]
fn a_topic_id_told_by_suback_serves_although_a_register_of_it_is_not_answered() {
    let mut w = world();
    back_to(&mut w, "old");
    w.expect_register(A, "s/1");
    // emcute has no answer to REGISTER, but it subscribes again and knows the id from SUBACK.
    w.send(A, subscribe(3, "s/1", Qos::AtLeastOnce));
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    let topic = TopicRef::Normal(expect_suback(&mut w, A));
    for _ in 0..3 {
        w.pass(RETRY);
        w.expect_register(A, "s/1");
        w.pings(A);
    }
    w.pass(RETRY);
    w.takes(A, topic, "old");
    w.broker_publishes(0, "s/1", "new", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "new");
}

#[test]
fn a_subscription_refused_after_its_suback_is_counted() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_down();
    w.pass(secs(9));
    expect_suback(&mut w, A);
    w.broker_up(true);
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_denies(pkid);
    assert_eq!(w.gw.counters().subscriptions_refused, 1);
}

/// The broker was away, as above, and has not had its time since.
#[test]
fn a_subscription_holds_if_the_broker_is_back_just_before_it_would_be_refused() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.pass(secs(1));
    w.broker_down();
    w.pass(Duration::from_millis(6900));
    w.broker_up(true);
    let repeated = w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.quiet();
    w.pass(Duration::from_millis(100));
    let topic = TopicRef::Normal(expect_suback(&mut w, A));
    // It is asked once more, for the answer that is not awaited any more.
    let again = w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.broker_grants(repeated, QoS::AtLeastOnce);
    w.broker_grants(again, QoS::AtLeastOnce);
    w.quiet();
    w.broker_quiet();
    w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
}

#[test]
fn a_broker_that_is_back_and_silent_has_its_time_for_what_it_was_asked_since() {
    let mut w = world();
    w.active(A, "n1");
    w.broker_down();
    w.pass(secs(2));
    w.broker_up(true);
    w.pass(secs(1));
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
    w.pass(Duration::from_millis(7900));
    w.quiet();
    w.pass(Duration::from_millis(100));
    w.expect(A, refused(2, ReturnCode::Congestion));
}

// SUBSCRIBE that comes to nothing.

#[test]
fn what_is_granted_by_suback_is_delivered() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let first = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.pass(secs(4));
    // A client that counts its repetition.
    w.send(A, subscribe(3, "s/1", Qos::AtMostOnce));
    let second = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.pass(secs(4));
    w.expect(A, refused(2, ReturnCode::Congestion));
    w.broker_grants(first, QoS::AtMostOnce);
    w.broker_grants(second, QoS::AtMostOnce);
    let topic = TopicRef::Normal(expect_suback(&mut w, A));
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "on");
}

#[test]
fn a_repeated_subscribe_that_comes_to_nothing_leaves_the_subscription_there_was() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtMostOnce);
    w.send(A, subscribe(9, "s/1", Qos::AtMostOnce));
    w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.pass(secs(8));
    w.expect(A, refused(9, ReturnCode::Congestion));
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "on");
    w.broker_quiet();
}

#[test]
fn a_refused_subscribe_takes_no_id_back_that_the_client_has() {
    let mut w = world();
    w.connected(A, persistent("n1"));
    let id = w.registered(A, "s/1");
    w.takes_leave(A);
    w.connected(A, persistent("n1"));
    w.send(A, subscribe(9, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.broker_denies(pkid);
    w.expect(A, refused(9, ReturnCode::NotSupported));
    w.send(A, publish(TopicRef::Normal(id), Qos::AtMostOnce, 0, "x"));
    w.broker_gets("s/1", "x", QoS::AtMostOnce);
}

#[test]
fn a_subscription_refused_while_the_client_was_away_is_none() {
    let mut w = world();
    w.connected(A, persistent("n1"));
    w.send(A, subscribe(2, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.takes_leave(A);
    // It will be asked for again.
    assert!(matches!(w.broker_next(), v4::Packet::Unsubscribe(_)));
    w.broker_denies(pkid);
    w.connected(A, persistent("n1"));
    w.subscriber(B, connect("n2"), "s/+", QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "secret", QoS::AtMostOnce);
    w.expect_register(B, "s/1");
    w.quiet();
}

#[test]
fn nothing_of_a_filter_is_published_after_its_unsuback_that_was_only_being_registered() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "s/#", QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    let (id, msg_id) = w.expect_register(A, "s/1");
    w.unsubscribed(A, "s/#");
    w.send(A, regack(id, msg_id, ReturnCode::Accepted));
    w.quiet();
}

#[test]
fn a_filter_that_the_broker_has_is_given_up_although_it_refused_it_to_another_client() {
    let mut w = world();
    w.active(A, "n1");
    w.active(B, "n2");
    w.subscribed(A, "s/1", QoS::AtMostOnce);
    w.send(B, subscribe(3, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::AtMostOnce);
    w.unsubscribed(A, "s/1");
    w.broker_denies(pkid);
    w.expect(B, refused(3, ReturnCode::NotSupported));
    assert!(matches!(w.broker_next(), v4::Packet::Unsubscribe(_)));
}

/// A client that leaves so many filters, or as many clients that leave at once.
fn leaves_behind(filters: usize) -> World {
    let mut w = offline_world(|settings| settings.sessions.max_subscriptions = 1_000_000);
    w.connected(A, connect_with("n1", false, true, 0));
    for i in 0..filters {
        w.send(A, subscribe(2, &format!("{i}/#"), Qos::AtMostOnce));
        w.next(A);
    }
    w.broker_up(false);
    let mut asked = 0;
    while asked < filters {
        let v4::Packet::Subscribe(subscribe) = w.broker_next() else { panic!() };
        asked += subscribe.filters.len();
        let return_codes = vec![v4::SubscribeReasonCode::Success(QoS::AtMostOnce); subscribe.filters.len()];
        w.broker_says(v4::Packet::SubAck(v4::SubAck { pkid: subscribe.pkid, return_codes }));
    }
    w
}

#[test]
fn filters_that_could_not_be_given_up_at_once_are_given_up_when_the_broker_has_answered() {
    let mut w = leaves_behind(4200);
    w.send(A, disconnect());
    let mut given_up = 0;
    while given_up < 4200 {
        let v4::Packet::Unsubscribe(unsubscribe) = w.broker_next() else { panic!() };
        given_up += unsubscribe.topics.len();
        w.broker_unsubacks(unsubscribe.pkid);
    }
}

// QoS 2 and what is under way across connections.

#[test]
fn a_pubrec_that_comes_while_the_topic_is_registered_again_settles_the_message() {
    let mut w = world();
    w.connected(A, persistent("n1"));
    let id = w.subscribed(A, "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "on", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, false, "on");
    // Its PUBREC was lost with the address; it repeats that on the new connection.
    connected_elsewhere(&mut w);
    let (_, register) = w.expect_register(B, "s/1");
    w.completes(B, msg_id);
    w.send(B, regack(id, register, ReturnCode::Accepted));
    // The client is done with the MsgId: the same PUBLISH would be a second message.
    w.quiet();
}

/// Or a sensor that pays for every frame is sent again what it has acknowledged.
#[test]
fn a_puback_that_comes_while_the_topic_is_registered_again_settles_the_message() {
    for others in [0, 2] {
        let mut w = world();
        w.connected(A, persistent("n1"));
        let id = w.subscribed(A, "s/1", QoS::AtLeastOnce);
        w.broker_publishes(5, "s/1", "on", QoS::AtLeastOnce);
        let topic = TopicRef::Normal(id);
        let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "on");
        for pkid in 0..others {
            w.broker_publishes(6 + pkid, "s/1", "more", QoS::AtLeastOnce);
        }
        w.send(A, persistent("n1"));
        w.expect(A, connack(ReturnCode::Accepted));
        let (_, mut register) = w.expect_register(A, "s/1");
        // What it says to the PUBLISH of the earlier connection was on its way.
        w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
        w.broker_gets_puback(5);
        if others > 0 {
            (_, register) = w.expect_register(A, "s/1");
        }
        w.quiet();
        w.send(A, regack(id, register, ReturnCode::Accepted));
        for pkid in 0..others {
            let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "more");
            w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
            w.broker_gets_puback(6 + pkid);
        }
        w.quiet();
        w.broker_quiet();
    }
}

#[track_caller]
fn connected_elsewhere(w: &mut World) {
    w.send(B, persistent("n1"));
    w.expect(A, disconnect());
    w.expect(B, connack(ReturnCode::Accepted));
}

#[test]
fn a_pubrel_without_an_answer_is_sent_again_on_the_next_connection() {
    let mut w = world();
    w.connected(A, persistent("n1"));
    let id = w.subscribed(A, "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "on", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, false, "on");
    w.pass(secs(1));
    w.send(A, pubrec(msg_id));
    for _ in 0..=3 {
        w.expect(A, pubrel(msg_id));
        w.pass(RETRY);
    }
    assert_eq!(w.gw.counters().clients_lost, 1);
    w.connected(A, persistent("n1"));
    // As after DISCONNECT; a client may hand the message on at PUBREL (MQTT 3.1.1 §4.3.3, §4.4).
    w.expect(A, pubrel(msg_id));
}

#[test]
fn qos_0_under_registration_does_not_outlive_the_connection() {
    let mut w = world();
    w.subscriber(A, persistent("n1"), "s/#", QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "stale", QoS::AtMostOnce);
    w.expect_register(A, "s/1");
    w.takes_leave(A);
    w.pass(secs(3600));
    w.connected(A, persistent("n1"));
    w.quiet();
}

#[test]
fn a_repetition_after_a_reconnect_gives_the_broker_its_time_again() {
    let mut w = world();
    w.connected(A, persistent("n1"));
    w.send(A, publish(AB, Qos::AtLeastOnce, 7, "hi"));
    w.broker_gets("ab", "hi", QoS::AtLeastOnce);
    w.takes_leave(A);
    w.pass(secs(20));
    w.connected(A, persistent("n1"));
    w.send(A, publish_again(AB, Qos::AtLeastOnce, 7, "hi"));
    w.pass(secs(1));
    w.quiet();
}

#[test]
fn a_persistent_session_does_not_inherit_what_a_clean_one_held() {
    let mut w = world();
    w.subscriber(A, connect("n1"), "s/1", QoS::AtMostOnce);
    // MQTT 3.1.1 §3.1.2.4: state of a clean session must not be reused in any subsequent session.
    w.connected(A, persistent("n1"));
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.quiet();
}

#[test]
fn a_name_the_client_rejected_is_not_offered_again_in_the_session() {
    let mut w = world();
    w.subscriber(A, persistent("n1"), "s/#", QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    let (id, msg_id) = w.expect_register(A, "s/1");
    w.send(A, regack(id, msg_id, ReturnCode::NotSupported));
    w.connected(A, persistent("n1"));
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    w.quiet();
}

#[test]
fn a_client_congested_with_topics_gets_messages_on_those_it_has() {
    let mut w = world();
    let known = w.subscriber(A, connect_with("n1", false, true, 0), "t/1", QoS::AtMostOnce);
    w.subscribed(A, "s/#", QoS::AtMostOnce);
    w.broker_publishes(0, "s/1", "on", QoS::AtMostOnce);
    let (id, msg_id) = w.expect_register(A, "s/1");
    w.send(A, regack(id, msg_id, ReturnCode::Congestion));
    // registrations pause.
    w.broker_publishes(0, "t/1", "go", QoS::AtMostOnce);
    w.expect_publish(A, known, Qos::AtMostOnce, false, "go");
}

// Settings.

#[test]
fn qos_0_that_is_not_kept_still_has_its_turn_while_the_client_is_active() {
    let mut w = world_with(|settings| settings.sessions.queue.qos0 = false);
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(1, "s/1", "one", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "one");
    w.broker_publishes(0, "s/1", "zero", QoS::AtMostOnce);
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "zero");
    // What waits when it falls asleep is not kept.
    w.broker_publishes(2, "s/1", "two", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "two");
    w.broker_publishes(0, "s/1", "zero", QoS::AtMostOnce);
    w.falls_asleep(A, 60);
    assert_eq!(w.gw.counters().downlink_offline, 1);
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    w.send(A, pingreq_of("n1"));
    w.expect(A, Packet::PingResp);
}

// Signs of life, DISCONNECT.

#[test]
fn a_client_in_the_middle_of_its_handshake_is_not_lost() {
    let mut w = world();
    let connect = || connect_with("n1", true, true, 2);
    let topic = || Packet::WillTopic(WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w/1" });
    let message = || Packet::WillMsg(WillMsg { message: b"dead" });
    w.send(A, connect());
    w.expect(A, Packet::WillTopicReq);
    w.send(A, topic());
    w.expect(A, Packet::WillMsgReq);
    w.send(A, message());
    w.expect(A, connack(ReturnCode::Accepted));
    w.pass(Duration::from_millis(2500));
    w.send(A, connect());
    w.expect(A, Packet::WillTopicReq);
    w.pass(Duration::from_millis(400));
    w.send(A, topic());
    w.expect(A, Packet::WillMsgReq);
    w.pass(Duration::from_millis(400));
    w.broker_quiet();
}

#[test]
fn a_late_willmsg_is_no_answer_to_a_new_connect() {
    let mut w = world();
    let will = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w/1" };
    w.gives_will(A, connect_with("n1", true, true, 60), will, "old");
    w.expect(A, connack(ReturnCode::Accepted));
    w.send(A, connect_with("n1", true, true, 60));
    w.expect(A, Packet::WillTopicReq);
    // A copy that the radio delayed.
    w.send(A, Packet::WillMsg(WillMsg { message: b"old" }));
    w.quiet();
}

#[test]
fn a_wrong_id_in_pingreq_is_answered_at_most_once_a_second() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, pingreq_of("other"));
    w.expect(A, disconnect());
    w.send(A, pingreq_of("other"));
    w.quiet();
}

#[test]
fn a_disconnect_that_may_answer_ours_is_swallowed_for_a_client_too() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, pingreq_of("other"));
    w.expect(A, disconnect());
    // no state change.
    w.send(A, disconnect());
    w.quiet();
    assert_eq!(w.gw.sessions(), 1);
}

/// Nobody can tell whether it answers ours; silence after it says that it did not.
#[test]
fn a_goodbye_that_may_answer_ours_is_one_if_nothing_follows() {
    for (goes_on, lost) in [(false, 0), (true, 1)] {
        let mut w = world();
        w.connected(B, connect_with("n2", false, true, 0));
        let will = WillTopic { qos: Qos::AtLeastOnce, retain: false, topic: b"w/1" };
        w.gives_will(A, connect_with("n1", true, true, 60), will, "dead");
        w.expect(A, connack(ReturnCode::Accepted));
        w.send(A, pingreq_of("other"));
        w.expect(A, disconnect());
        w.pass(secs(5));
        w.send(A, disconnect());
        w.quiet();
        if goes_on {
            w.pass(secs(1));
            w.pings(A);
        }
        w.pass(secs(200));
        assert_eq!((w.gw.sessions(), w.gw.counters().clients_lost), (1, lost));
        assert_eq!(w.gw.counters().wills_published, lost);
    }
}

/// What it was told before, it was told as somebody else.
#[test]
fn a_goodbye_of_a_client_that_was_told_before_it_connected_is_answered() {
    let mut w = world();
    w.send(A, pingreq());
    w.expect(A, disconnect());
    w.active(A, "n1");
    w.pass(secs(5));
    w.takes_leave(A);
    assert_eq!(w.gw.sessions(), 0);
}

/// it is not of this client, whose handshake goes on.
#[test]
fn a_pingreq_with_the_id_of_another_client_does_not_end_a_handshake() {
    let mut w = world();
    w.active(A, "n1");
    w.send(A, connect_with("n1", true, false, 60));
    w.expect(A, Packet::WillTopicReq);
    w.send(A, pingreq_of("other"));
    w.expect(A, disconnect());
    w.send(A, Packet::WillTopic(WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"w/1" }));
    w.expect(A, Packet::WillMsgReq);
    // Its own says that it goes on as it was: the CONNECT was a late copy.
    w.send(A, pingreq_of("n1"));
    w.expect(A, Packet::PingResp);
    w.send(A, Packet::WillMsg(WillMsg { message: b"bye" }));
    w.quiet();
}

/// 3.19: refused, the client is where it was before it connected.
#[test]
fn a_connect_that_is_refused_ends_the_handshake_before_it() {
    let mut w = world();
    w.send(A, connect_with("n1", true, true, 60));
    w.expect(A, Packet::WillTopicReq);
    let refused = Connect { will: true, clean_session: true, protocol_id: 2, duration: 60, client_id: b"n1" };
    w.send(A, Packet::Connect(refused));
    w.expect(A, connack(ReturnCode::NotSupported));
    w.send(A, Packet::WillTopic(WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"w/1" }));
    w.quiet();
    w.pass(secs(100));
    assert_eq!((w.gw.sessions(), w.gw.counters().handshakes_expired), (0, 0));
}

// Shutdown.

#[test]
fn nothing_is_due_once_the_gateway_has_stopped() {
    let mut w = world();
    w.input(Input::Control(Control::Shutdown));
    assert!(w.stopped);
    w.now += secs(3);
    w.gw.handle_timeout(w.now);
    assert!(w.gw.poll_timeout().is_none_or(|at| at > w.now), "a deadline that does not move");
}

#[test]
fn a_made_up_session_is_removed_also_from_a_broker_that_is_quick_to_hang_up() {
    let mut w = world_with(|settings| settings.broker.client_id_is_random = true);
    let (id, _) = w.commands.pop_front().expect("a connect");
    w.hold_drained();
    w.input(Input::Control(Control::Shutdown));
    // Both in one turn of the loop: a broker closes when it reads DISCONNECT.
    w.gw.handle(w.now, Input::Link(id, LinkEvent::Drained));
    w.input(Input::Link(id, LinkEvent::Closed(LinkFailure::Closed)));
    let last = w.commands.pop_back();
    assert!(matches!(last, Some((_, LinkCommand::Connect { .. }))), "{last:?}");
}

#[test]
fn who_connects_while_the_gateway_leaves_is_not_accepted() {
    let mut w = world();
    w.active(A, "n1");
    w.hold_drained();
    w.send(A, publish(AB, Qos::AtMostOnce, 0, "x"));
    w.input(Input::Control(Control::Shutdown));
    w.expect(A, disconnect());
    assert!(!w.stopped);
    w.send(B, connect("n2"));
    w.expect(B, connack(ReturnCode::Congestion));
}

// SUBSCRIBE on top of a subscription, and what waits behind what is not answered.

#[test]
fn a_renewal_that_the_broker_refuses_leaves_the_qos_as_it_was() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.send(A, subscribe(9, "s/1", Qos::AtMostOnce));
    let pkid = w.broker_gets_subscribe("s/1", QoS::ExactlyOnce);
    w.broker_denies(pkid);
    w.expect(A, refused(9, ReturnCode::NotSupported));
    w.broker_publishes(5, "s/1", "on", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "on");
    w.completes(A, msg_id);
}

#[test]
fn each_subscribe_brings_the_retained_message_whatever_an_earlier_one_has_brought() {
    let mut w = world();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtMostOnce);
    retained_comes(&mut w, topic);
    w.subscribed(A, "s/1", QoS::AtMostOnce);
    retained_comes(&mut w, topic);
    w.broker_publishes_retained("s/1", "on");
    w.quiet();
}

/// The client has a message with this MsgId, and another waits behind it: both for the broker too.
fn one_behind_another(w: &mut World) -> (TopicRef, u16) {
    let topic = w.subscriber(A, connect_with("n1", false, true, 600), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "first", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "first");
    w.broker_publishes(6, "s/1", "second", QoS::AtLeastOnce);
    w.broker_quiet();
    (topic, msg_id)
}

/// It waits for what the client has not answered, and for nothing behind that (Interpretation: R-145).
#[test]
fn the_broker_does_not_wait_for_what_is_behind_a_publish_that_is_repeated() {
    let mut w = world();
    let (topic, msg_id) = one_behind_another(&mut w);
    w.pass(RETRY);
    w.expect_publish(A, topic, Qos::AtLeastOnce, true, "first");
    w.broker_gets_puback(6);
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    w.broker_gets_puback(5);
    w.takes(A, topic, "second");
}

#[test]
fn the_broker_does_not_wait_for_a_client_that_is_congested() {
    let mut w = world();
    let (topic, msg_id) = one_behind_another(&mut w);
    w.send(A, puback(topic, msg_id, ReturnCode::Congestion));
    w.broker_gets_puback(5);
    w.broker_gets_puback(6);
}

#[test]
fn the_broker_does_not_wait_for_what_is_behind_a_name_that_rests() {
    let mut w = world();
    w.subscriber(A, connect_with("n1", false, true, 600), "s/+", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "first", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "second", QoS::AtLeastOnce);
    w.broker_quiet();
    w.expect_register(A, "s/1");
    w.pass(RETRY);
    w.broker_gets_puback(6);
    for _ in 0..3 {
        w.send(A, pingreq());
        w.pass(RETRY);
    }
    w.broker_gets_puback(5);
}
