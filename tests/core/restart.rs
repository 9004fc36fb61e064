//! What outlives the process (design promises G2, G3 and G5): crashes between any two things that happen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::gateway::Gateway;
use mqtt_sn_gateway::gateway::io::{Input, Mode, Protocol, Route, Settings};
use mqtt_sn_gateway::gateway::record::{
    ClientKey, Key, PeerRow, Row, SessionRow, Standing, SubscriptionRow, TopicRow, TopicStanding,
};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{
    Encapsulation, FilterRef, Frame, Packet, Publish, Qos, ReturnCode, Subscribe, TopicRef, WillMsg,
    WillTopic, decode,
};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const B: At = 2;
const C: At = 3;

fn lasting() -> World {
    lasting_with(|_| {})
}

fn lasting_with(change: impl FnOnce(&mut Settings)) -> World {
    world_with(|settings| {
        settings.lasting = true;
        change(settings);
    })
}

fn wake() -> Packet<'static> {
    pingreq_of("n1")
}

/// A client that subscribed to `s/#`, knows `s/1` and sleeps; returns the id of `s/1`.
fn asleep(w: &mut World, qos: QoS) -> TopicRef {
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.registered(A, "s/1"));
    w.subscribed(A, "s/#", qos);
    w.falls_asleep(A, 60);
    topic
}

/// The next frame is this message of QoS 1, and the client has it.
#[track_caller]
fn takes(w: &mut World, topic: TopicRef, data: &str) {
    w.takes(A, topic, data);
}

/// A client with a Will on `w/1`, supervised for 90 s.
#[track_caller]
fn active_with_will(w: &mut World, at: At, id: &str) {
    let will = WillTopic { qos: Qos::AtLeastOnce, retain: true, topic: b"w/1" };
    w.gives_will(at, connect_with(id, true, true, 60), will, "bye");
    w.expect(at, connack(ReturnCode::Accepted));
}

/// The broker gets and acknowledges that Will.
#[track_caller]
fn will_comes(w: &mut World, data: &str) {
    let pkid = w.broker_gets("w/1", data, QoS::AtLeastOnce);
    w.broker_says(v4::Packet::PubAck(v4::PubAck { pkid }));
}

fn client(id: &str) -> ClientId {
    ClientId::new(id.as_bytes()).unwrap()
}

// Sleepers.

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
    let id = w.learns(A, "s/2");
    takes(&mut w, TopicRef::Normal(id), "b");
    takes(&mut w, topic, "c");
    w.expect(A, Packet::PingResp);
    w.quiet();
    w.leaves_nothing();
}

#[test]
fn a_sleeper_wakes_after_a_restart_from_another_port_of_its_address() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    for at in [B, C] {
        w.restart();
        w.send(at, wake());
        w.expect_publish(at, topic, Qos::AtLeastOnce, false, "a");
    }
    w.leaves_nothing();
}

#[test]
fn a_drain_that_a_restart_interrupts_goes_on_at_the_next_pingreq() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    for (pkid, data) in [(5, "a"), (6, "b"), (7, "c")] {
        w.broker_publishes(pkid, "s/1", data, QoS::AtLeastOnce);
    }
    w.send(A, wake());
    takes(&mut w, topic, "a");
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "b");
    w.restart();
    w.pass(RETRY * 3);
    w.quiet();
    w.send(A, wake());
    takes(&mut w, topic, "b");
    takes(&mut w, topic, "c");
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

/// What the broker waited for was put down after what it did not wait for.
#[test]
fn what_was_kept_late_is_still_before_what_came_after_it() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    w.broker_publishes(6, "s/1", "b", QoS::AtLeastOnce);
    w.broker_publishes(7, "s/1", "c", QoS::ExactlyOnce);
    w.broker_publishes(8, "s/1", "d", QoS::AtLeastOnce);
    w.falls_asleep(A, 60);
    w.restart();
    w.send(A, wake());
    takes(&mut w, topic, "a");
    takes(&mut w, topic, "b");
    let c = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "c");
    w.completes(A, c);
    takes(&mut w, topic, "d");
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

#[test]
fn a_message_that_was_repeated_once_is_still_before_what_came_after_it() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "b", QoS::AtLeastOnce);
    w.pass(RETRY);
    w.send(A, sleep(60));
    w.restart();
    w.send(A, wake());
    takes(&mut w, topic, "a");
    takes(&mut w, topic, "b");
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

// QoS 2 towards clients.

/// What a client does with QoS 2 (MQTT 3.1.1 §4.3.3): it passes on what it does not hold under that MsgId.
#[derive(Default)]
struct Receiver {
    held: Vec<u16>,
    got: Vec<String>,
}

impl Receiver {
    /// Takes one frame and answers. Whether there was one.
    fn takes_one(&mut self, w: &mut World) -> bool {
        // The last of them is what the gateway waits with.
        let Some(frame) = w.taken().pop() else { return false };
        match decode(&frame).unwrap().packet {
            Packet::Publish(Publish { msg_id, data, .. }) => {
                if !self.held.contains(&msg_id) {
                    self.held.push(msg_id);
                    self.got.push(String::from_utf8(data.to_vec()).unwrap());
                }
                w.send(A, pubrec(msg_id));
            }
            Packet::PubRel(release) => {
                self.held.retain(|held| *held != release.msg_id);
                w.send(A, pubcomp(release.msg_id));
            }
            Packet::Register(register) => {
                w.send(A, regack(register.topic_id, register.msg_id, ReturnCode::Accepted));
            }
            Packet::PingResp => return false,
            other => panic!("{other}"),
        }
        true
    }
}

/// Two messages of QoS 2 for a client that sleeps or is awake, and knows their topic or not. After so many frames the gateway
/// crashes; of what came of the last one the store knows or not.
fn exactly_once(asleep: bool, knows: bool, frames: usize, stored: bool) {
    let mut w = lasting();
    w.active(A, "n1");
    if knows {
        w.registered(A, "s/1");
    }
    w.subscribed(A, "s/#", QoS::ExactlyOnce);
    if asleep {
        w.falls_asleep(A, 60);
    }
    for pkid in [5, 6] {
        w.broker_publishes(pkid, "s/1", if pkid == 5 { "a" } else { "b" }, QoS::ExactlyOnce);
        w.broker_gets_pubrec(pkid);
        w.broker_pubrels(pkid);
        w.broker_gets_pubcomp(pkid);
    }
    if asleep {
        w.send(A, wake());
    }
    let mut receiver = Receiver::default();
    for frame in 0..frames {
        if !stored && frame + 1 == frames {
            w.store_answers(Answers::Never);
        }
        receiver.takes_one(&mut w);
    }
    w.restart();
    for _ in 0..4 {
        if asleep {
            w.send(A, wake());
        } else {
            w.pass(Duration::from_secs(12));
        }
        while receiver.takes_one(&mut w) {}
    }
    let told = format!("asleep {asleep}, knows {knows}, frames {frames}, stored {stored}");
    assert_eq!(receiver.got, ["a", "b"], "{told}");
    assert!(receiver.held.is_empty(), "{told}");
    assert_eq!(w.gw.waiting_messages(), 0, "{told}");
    assert_eq!(w.gw.counters().clients_lost, 0, "{told}");
    w.leaves_nothing();
}

#[test]
fn whatever_step_a_crash_interrupts_a_client_has_a_message_of_qos_2_exactly_once() {
    for asleep in [true, false] {
        for knows in [true, false] {
            for frames in 0..6 {
                for stored in [true, false] {
                    exactly_once(asleep, knows, frames, stored);
                }
            }
        }
    }
}

#[test]
fn a_message_of_qos_2_keeps_its_msgid_over_a_restart_and_says_dup() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "a", QoS::ExactlyOnce);
    w.send(A, wake());
    let a = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
    w.restart();
    w.send(A, wake());
    assert_eq!(w.expect_publish(A, topic, Qos::ExactlyOnce, true, "a"), a);
    w.send(A, pubrec(a));
    w.expect(A, pubrel(a));
    w.restart();
    w.send(A, wake());
    w.expect(A, pubrel(a));
    w.send(A, pubcomp(a));
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

/// A client that sleeps was sent a message of QoS 2 on `pre/one` under the predefined id of that, and has not answered.
fn sent_predefined(w: &mut World) -> u16 {
    w.active(A, "n1");
    w.subscribed(A, "pre/+", QoS::ExactlyOnce);
    w.broker_publishes(5, "pre/one", "a", QoS::ExactlyOnce);
    w.expect_publish(A, TopicRef::Predefined(1), Qos::ExactlyOnce, false, "a")
}

/// Under another topic id it would be another message to the client, whatever it has learnt of the name meanwhile.
#[test]
fn a_message_of_qos_2_keeps_its_topic_id_over_a_restart() {
    let mut w = lasting();
    let a = sent_predefined(&mut w);
    let id = w.registered(A, "pre/one");
    w.send(A, sleep(60));
    w.expect(A, disconnect());
    for _ in 0..2 {
        w.restart();
        w.send(A, wake());
        assert_eq!(w.expect_publish(A, TopicRef::Predefined(1), Qos::ExactlyOnce, true, "a"), a);
    }
    // The client does not know that name: it has not had the message, and has it by the other from now on.
    w.send(A, puback(TopicRef::Predefined(1), a, ReturnCode::InvalidTopicId));
    assert_eq!(w.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, false, "a"), a);
    w.restart();
    w.send(A, wake());
    assert_eq!(w.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, true, "a"), a);
    w.leaves_nothing();
}

#[test]
fn a_message_of_qos_2_is_not_repeated_under_a_predefined_id_that_means_something_else_now() {
    let mut w = lasting();
    let a = sent_predefined(&mut w);
    w.send(A, sleep(60));
    w.expect(A, disconnect());
    w.restart_with(|settings| {
        settings.predefined = [(1, TopicName::new("other").unwrap())].into();
    });
    w.send(A, wake());
    let (id, msg_id) = w.expect_register(A, "pre/one");
    w.send(A, regack(id, msg_id, ReturnCode::Accepted));
    assert_eq!(w.expect_publish(A, TopicRef::Normal(id), Qos::ExactlyOnce, true, "a"), a);
    w.leaves_nothing();
}

/// No new message may have the MsgId of one that the client may hold.
#[test]
fn a_msgid_that_a_client_may_hold_is_not_given_to_another_message() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::ExactlyOnce);
    w.broker_publishes(5, "s/1", "a", QoS::ExactlyOnce);
    w.send(A, wake());
    let a = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
    for _ in 0..20 {
        w.restart();
        w.send(A, wake());
        assert_eq!(w.expect_publish(A, topic, Qos::ExactlyOnce, true, "a"), a);
    }
    w.leaves_nothing();
}

// Clients that are awake.

#[test]
fn a_client_that_is_awake_goes_on_publishing_with_its_topic_ids() {
    let mut w = lasting();
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.registered(A, "t/1"));
    w.restart();
    w.published(A, topic, 7, "t/1", "on");
    w.pings(A);
    // The id of a name stays, and another name gets another.
    assert_eq!(TopicRef::Normal(w.registered(A, "t/1")), topic);
    assert_ne!(TopicRef::Normal(w.registered(A, "t/2")), topic);
    w.leaves_nothing();
}

#[test]
fn ids_that_were_given_out_are_not_given_out_again_after_a_restart() {
    let mut w = lasting();
    w.active(A, "n1");
    let mut ids = Vec::new();
    for round in 0..5 {
        for topic in 0..3 {
            ids.push(w.registered(A, &format!("t/{round}/{topic}")));
        }
        w.restart();
    }
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(w.registered(A, &format!("t/{}/{}", n / 3, n % 3)), *id);
    }
    w.leaves_nothing();
}

#[test]
fn what_a_client_made_of_a_name_outlives_the_process() {
    let mut w = lasting();
    w.subscriber(A, connect("n1"), "s/#", QoS::AtMostOnce);
    w.broker_publishes(0, "s/no", "x", QoS::AtMostOnce);
    let (id, msg_id) = w.expect_register(A, "s/no");
    w.send(A, regack(id, msg_id, ReturnCode::NotSupported));
    w.broker_publishes(0, "s/open", "x", QoS::AtMostOnce);
    w.expect_register(A, "s/open");
    w.restart();
    // It said no, which it is not asked again (§6.10); of the other it has yet to say anything.
    w.broker_publishes(0, "s/no", "x", QoS::AtMostOnce);
    w.quiet();
    w.broker_publishes(0, "s/open", "x", QoS::AtMostOnce);
    w.expect_register(A, "s/open");
    w.leaves_nothing();
}

#[test]
fn what_a_client_learnt_before_its_last_connect_is_registered_again_after_a_restart() {
    let mut w = lasting();
    let connect = connect_with("n1", false, false, 60);
    w.connected(A, connect);
    let topic = w.registered(A, "s/1");
    w.subscribed(A, "s/#", QoS::AtMostOnce);
    w.pings(A);
    w.connected(A, connect);
    w.restart();
    w.broker_publishes(0, "s/1", "x", QoS::AtMostOnce);
    let id = w.learns(A, "s/1");
    assert_eq!(id, topic);
    w.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "x");
    w.restart();
    w.broker_publishes(0, "s/1", "y", QoS::AtMostOnce);
    w.expect_publish(A, TopicRef::Normal(id), Qos::AtMostOnce, false, "y");
    w.leaves_nothing();
}

#[test]
fn what_waits_for_a_client_that_is_awake_comes_soon_after_a_restart() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "b", QoS::AtLeastOnce);
    w.broker_publishes(7, "s/1", "c", QoS::AtLeastOnce);
    // It is silent, so that the broker does not wait for the others.
    w.pass(RETRY);
    w.broker_gets_puback(6);
    w.broker_gets_puback(7);
    w.restart();
    w.pass(Duration::from_secs(5));
    takes(&mut w, topic, "b");
    takes(&mut w, topic, "c");
    w.quiet();
    w.leaves_nothing();
}

#[test]
fn a_will_fires_a_full_time_after_the_restart_and_once() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    w.pass(Duration::from_secs(80));
    w.restart();
    w.pass(Duration::from_millis(89_999));
    w.broker_quiet();
    w.pass(Duration::from_millis(1));
    // It is kept until the broker has it.
    assert_eq!((w.gw.sessions(), w.store.rows_of_clients()), (0, 1));
    will_comes(&mut w, "bye");
    assert_eq!(w.store.rows_of_clients(), 0);
    w.restart();
    w.pass(Duration::from_secs(600));
    w.broker_quiet();
    w.leaves_nothing();
}

#[test]
fn the_will_of_a_client_that_goes_on_after_a_restart_does_not_fire() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    w.restart();
    for _ in 0..5 {
        w.pass(Duration::from_secs(60));
        w.pings(A);
    }
    w.broker_quiet();
    w.leaves_nothing();
}

#[test]
fn the_will_of_a_sleeper_fires_a_full_sleep_after_the_restart() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    w.falls_asleep(A, 600);
    w.pass(Duration::from_secs(600));
    w.restart();
    w.pass(Duration::from_millis(659_999));
    w.broker_quiet();
    w.pass(Duration::from_millis(1));
    will_comes(&mut w, "bye");
    w.leaves_nothing();
}

/// Between the DISCONNECT and its answer: either it is not answered, or the session is gone.
#[test]
fn no_will_fires_for_a_client_that_was_told_goodbye_before_a_crash() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    w.store_answers(Answers::Never);
    w.send(A, disconnect());
    w.quiet();
    w.store_answers(Answers::AtOnce);
    w.expect(A, disconnect());
    w.restart();
    assert_eq!(w.gw.sessions(), 0);
    w.pass(Duration::from_secs(600));
    w.broker_quiet();
    w.leaves_nothing();
}

/// It is not answered, for it may be an answer itself; the client may be heard again all the same.
#[test]
fn no_will_fires_for_a_client_whose_goodbye_was_not_answered_before_a_restart() {
    for heard in [false, true] {
        let mut w = lasting();
        active_with_will(&mut w, A, "n1");
        w.send(A, pingreq_of("n2"));
        w.expect(A, disconnect());
        w.send(A, disconnect());
        if heard {
            w.send(A, pingreq());
            w.expect(A, Packet::PingResp);
        }
        w.quiet();
        w.restart();
        w.pass(Duration::from_secs(200));
        assert_eq!(w.gw.counters().wills_published, u64::from(heard));
        assert_eq!((w.gw.counters().clients_lost, w.gw.sessions()), (u64::from(heard), 0));
    }
}

#[test]
fn a_goodbye_that_is_repeated_is_not_answered_before_it_is_stored() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    w.store_answers(Answers::Never);
    w.send(A, disconnect());
    w.pass(RETRY);
    w.send(A, disconnect());
    w.quiet();
    w.restart();
    w.takes_leave(A);
    w.pass(Duration::from_secs(600));
    w.broker_quiet();
    w.leaves_nothing();
}

#[test]
fn a_session_with_a_will_that_was_changed_has_the_new_one_after_a_restart() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    w.send(A, Packet::WillMsgUpd(WillMsg { message: b"late" }));
    w.taken();
    w.restart();
    w.pass(Duration::from_secs(90));
    will_comes(&mut w, "late");
    active_with_will(&mut w, A, "n1");
    w.send(A, Packet::WillTopicUpd(WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"" }));
    w.taken();
    w.restart();
    w.pass(Duration::from_secs(90));
    w.broker_quiet();
    w.leaves_nothing();
}

/// With a store they will not notice (design section 4).
#[test]
fn clients_are_not_told_that_a_gateway_with_a_store_stops() {
    use mqtt_sn_gateway::gateway::io::Control;
    let mut w = lasting();
    w.active(A, "n1");
    w.input(Input::Control(Control::Shutdown));
    w.quiet();
    w.restart();
    w.pings(A);
    w.leaves_nothing();
}

// Sessions.

#[test]
fn a_persistent_session_that_is_away_gets_what_came_and_lives_a_full_time_after_a_restart() {
    let mut w = lasting();
    w.connected(A, connect_with("n1", false, false, 60));
    let topic = w.subscribed(A, "s/1", QoS::AtLeastOnce);
    w.takes_leave(A);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_gets_puback(5);
    w.pass(Duration::from_secs(80_000));
    w.restart();
    w.pass(Duration::from_secs(86_399));
    assert_eq!(w.gw.sessions(), 1);
    w.restart();
    w.connected(B, connect_with("n1", false, false, 60));
    let id = w.learns(B, "s/1");
    assert_eq!(id, topic);
    w.takes(B, TopicRef::Normal(id), "a");
    w.takes_leave(B);
    w.restart();
    w.pass(Duration::from_secs(86_401));
    assert_eq!((w.gw.sessions(), w.store.rows_of_clients()), (0, 0));
    w.leaves_nothing();
}

#[test]
fn a_client_that_was_lost_stays_lost_over_a_restart_and_its_will_does_not_fire_again() {
    let mut w = lasting();
    w.send(A, connect_with("n1", true, false, 60));
    w.send(A, Packet::WillTopic(WillTopic { qos: Qos::AtLeastOnce, retain: false, topic: b"w/1" }));
    w.send(A, Packet::WillMsg(WillMsg { message: b"bye" }));
    w.taken();
    w.pass(Duration::from_secs(90));
    will_comes(&mut w, "bye");
    w.restart();
    w.pass(Duration::from_secs(600));
    w.broker_quiet();
    w.send(A, pingreq());
    w.expect(A, disconnect());
    w.leaves_nothing();
}

#[test]
fn a_client_that_begins_anew_leaves_no_row_of_its_old_session() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.send(A, wake());
    w.expect_publish(A, topic, Qos::AtLeastOnce, false, "a");
    w.active(A, "n1");
    assert_eq!(w.store.rows_of_clients(), 1, "{:#?}", w.store.rows);
    w.restart();
    w.send(A, publish(topic, Qos::AtLeastOnce, 9, "x"));
    w.expect(A, puback(topic, 9, ReturnCode::InvalidTopicId));
    w.leaves_nothing();
}

#[test]
fn qos_0_is_not_kept_over_a_restart() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(0, "s/1", "zero", QoS::AtMostOnce);
    w.broker_publishes(5, "s/1", "one", QoS::AtLeastOnce);
    w.restart();
    w.send(A, wake());
    takes(&mut w, topic, "one");
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

#[test]
fn a_message_expires_as_long_after_a_restart_as_it_was_worth_before() {
    for (passes, comes) in [(59, true), (61, false)] {
        let mut w = offline_world(|settings| {
            settings.broker.protocol = Protocol::V5;
            settings.lasting = true;
        });
        w.broker_answers_tcp();
        w.broker_takes_octets();
        w.broker_octets(Bytes::from_static(&[0x20, 3, 0, 0, 0]));
        w.active(A, "n1");
        let topic = TopicRef::Normal(w.registered(A, "s"));
        w.send(A, subscribe(2, "s", Qos::AtLeastOnce));
        let octets = w.broker_takes_octets();
        w.broker_octets(Bytes::copy_from_slice(&[0x90, 4, octets[2], octets[3], 0, 1]));
        w.taken();
        w.falls_asleep(A, 600);
        // Message Expiry Interval 60 s.
        w.broker_octets(Bytes::from_static(b"\x32\x0c\0\x01s\0\x05\x05\x02\0\0\0\x3cx"));
        w.crash();
        w.pass(Duration::from_secs(passes));
        w.send(A, wake());
        if comes {
            takes(&mut w, topic, "x");
        }
        w.expect(A, Packet::PingResp);
        w.leaves_nothing();
    }
}

/// Its clean session ends at the old peer while the broker is asked for it at the new one.
#[test]
fn a_clean_session_that_ended_during_a_connect_elsewhere_is_not_back_after_a_crash() {
    let mut w = lasting_with(|settings| settings.ports[0].mode = Mode::Transparent);
    w.send(A, connect("n1"));
    w.admitted(A, "n1", false);
    w.registered(A, "t/1");
    w.send(B, connect("n1"));
    w.takes_leave(A);
    w.crash();
    assert_eq!((w.gw.sessions(), w.store.rows_of_clients()), (0, 0), "{:#?}", w.store.rows);
    w.leaves_nothing();
}

// What changed meanwhile.

#[test]
fn the_will_of_a_client_whose_transport_is_gone_fires_in_its_time() {
    let mut w = lasting();
    active_with_will(&mut w, A, "n1");
    active_with_will(&mut w, B, "n2");
    w.falls_asleep(B, 600);
    w.restart_with(|settings| settings.ports[0].name = "other".into());
    w.pass(Duration::from_millis(89_999));
    w.broker_quiet();
    w.pass(Duration::from_millis(1));
    will_comes(&mut w, "bye");
    w.pass(Duration::from_secs(600));
    will_comes(&mut w, "bye");
    w.quiet();
    w.leaves_nothing();
}

#[test]
fn a_client_whose_transport_is_gone_comes_back_by_another_and_has_its_session() {
    let mut w = lasting();
    w.subscriber(A, connect_with("n1", false, false, 60), "s/1", QoS::AtLeastOnce);
    w.restart_with(|settings| settings.ports[0].name = "other".into());
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.quiet();
    w.send(A, pingreq());
    w.expect(A, disconnect());
    w.connected(A, connect_with("n1", false, false, 60));
    let id = w.learns(A, "s/1");
    takes(&mut w, TopicRef::Normal(id), "a");
    w.leaves_nothing();
}

#[test]
fn a_peer_is_one_client_after_a_restart_whatever_the_rows_say() {
    let mut w = lasting();
    w.active(A, "n1");
    let session = Key::Client(client("n1"), ClientKey::Session);
    let mut row = w.store.rows[&session].clone();
    if let Row::Session(id, _) = &mut row {
        *id = client("n0");
    }
    w.store.rows.insert(row.key(), row);
    w.restart();
    assert_eq!(w.gw.sessions(), 2);
    w.pings(A);
    w.quiet();
    w.leaves_nothing();
}

#[test]
fn a_node_behind_a_forwarder_is_reached_there_after_a_restart() {
    fn forwarded(w: &mut World, node: &[u8], packet: Packet<'_>) {
        let mut out = BytesMut::new();
        let encapsulation = Some(Encapsulation { radius: 0, node_id: node });
        Frame { encapsulation, packet }.encode(&mut out).unwrap();
        w.input(Input::Frame { from: peer(A), route: Route::default(), frame: out.freeze() });
    }
    let mut w = lasting();
    for node in [&b"x"[..], b"y"] {
        forwarded(&mut w, node, connect(if node == b"x" { "nx" } else { "ny" }));
    }
    forwarded(&mut w, b"y", subscribe(2, "s/1", Qos::AtMostOnce));
    w.broker_grants_subscribe("s/1", QoS::AtMostOnce);
    w.taken();
    w.restart();
    w.broker_publishes(0, "s/1", "a", QoS::AtMostOnce);
    let frame = w.next(A);
    let frame = decode(&frame).unwrap();
    assert_eq!(frame.encapsulation.unwrap().node_id, b"y");
    assert!(matches!(frame.packet, Packet::Publish(_)));
    w.quiet();
    w.leaves_nothing();
}

#[test]
fn rows_that_belong_to_nothing_are_counted_and_removed() {
    let mut w = lasting();
    let _ = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    let rows = w.store.rows_of_clients();
    w.store.rows.remove(&Key::Client(client("n1"), ClientKey::Session));
    assert_eq!(rows, 5);
    w.restart();
    // A topic id, a subscription, what waits, and then the message too.
    assert_eq!(w.gw.counters().rows_orphaned, 4);
    assert_eq!(w.store.rows_of_clients(), 0, "{:#?}", w.store.rows);
    w.active(A, "n1");
    w.leaves_nothing();
}

#[test]
fn a_message_whose_row_is_missing_does_not_wait() {
    let mut w = lasting();
    let topic = asleep(&mut w, QoS::AtLeastOnce);
    w.broker_publishes(5, "s/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "b", QoS::AtLeastOnce);
    let first = w.store.rows.keys().find(|key| matches!(key, Key::Message(_))).unwrap().clone();
    w.store.rows.remove(&first);
    w.restart();
    assert_eq!(w.gw.counters().rows_orphaned, 1);
    w.send(A, wake());
    takes(&mut w, topic, "b");
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

#[test]
fn a_predefined_id_that_means_something_else_now_does_not_name_the_old_topic() {
    let mut w = lasting();
    w.active(A, "n1");
    let topic = FilterRef::Predefined(1);
    w.send(A, Packet::Subscribe(Subscribe { dup: false, qos: Qos::AtMostOnce, msg_id: 2, topic }));
    w.broker_grants_subscribe("pre/one", QoS::AtMostOnce);
    w.taken();
    let name = |text: &str| TopicName::new(text).unwrap();
    w.restart_with(|settings| settings.predefined = BTreeMap::from([(1, name("new"))]));
    w.broker_publishes(0, "pre/one", "x", QoS::AtMostOnce);
    w.expect_register(A, "pre/one");
    w.restart_with(|settings| settings.predefined = BTreeMap::from([(7, name("pre/one"))]));
    w.broker_publishes(0, "pre/one", "x", QoS::AtMostOnce);
    // It was asked to learn an id of its own, under which it may know the name.
    w.expect_register(A, "pre/one");
    w.leaves_nothing();
}

#[test]
fn a_topic_id_that_is_predefined_now_still_serves_as_a_normal_one() {
    let mut w = lasting();
    w.active(A, "n1");
    let id = w.registered(A, "t/1");
    let name = TopicName::new("other").unwrap();
    w.restart_with(|settings| {
        settings.predefined.insert(id, name.clone());
        settings.predefined.insert(id + 1, name);
    });
    w.send(A, publish(TopicRef::Normal(id), Qos::AtMostOnce, 0, "x"));
    w.broker_gets("t/1", "x", QoS::AtMostOnce);
    w.send(A, publish(TopicRef::Predefined(id), Qos::AtMostOnce, 0, "y"));
    w.broker_gets("other", "y", QoS::AtMostOnce);
    assert_eq!(w.registered(A, "t/2"), id + 2);
    w.leaves_nothing();
}

#[test]
fn a_hundred_thousand_sessions_are_restored() {
    let peer = |n: u32| PeerRow {
        port: "lan".into(),
        addr: mqtt_sn_gateway::gateway::io::Address::Udp(
            ([10, 1, (n >> 8) as u8, n as u8], 1 + (n >> 16) as u16).into(),
        ),
        node: None,
    };
    let mut rows = Vec::new();
    for n in 0..100_000 {
        let id = client(&format!("n{n}"));
        let session = SessionRow {
            standing: if n % 2 == 0 { Standing::Active } else { Standing::Asleep },
            clean: true,
            mode: Mode::Aggregating,
            inherited: false,
            keep_alive: Duration::from_secs(60),
            sleep: Duration::from_secs(600),
            connections: 1,
            peer: Some(peer(n)),
        };
        rows.push(Row::Session(id.clone(), session));
        for topic in 0..5 {
            let name = TopicName::new(format!("site/{n}/sensor/{topic}")).unwrap();
            let row = TopicRow { name, nth: topic + 1, standing: TopicStanding::Known(1) };
            rows.push(Row::Topic(id.clone(), 0x100 + topic, row));
        }
        for filter in [format!("site/{n}/set/#"), "all/+".into()] {
            let qos = mqtt_sn_gateway::mqtt::QoS::AtLeastOnce;
            let row = SubscriptionRow { topic: TopicRef::Normal(0), qos, since: rows.len() as u64 };
            rows.push(Row::Subscription(id.clone(), TopicFilter::new(&filter).unwrap(), row));
        }
    }
    let mut settings = settings();
    (settings.lasting, settings.sessions.max) = (true, 200_000);
    let now = Instant::now();
    let mut gw = Gateway::restore(settings, rows, now);
    gw.handle_timeout(now);
    while gw.poll_output().is_some() {}
    println!("100,000 sessions with 5 topics and 2 subscriptions: {:?}", now.elapsed());
    assert_eq!((gw.sessions(), gw.counters().rows_orphaned), (100_000, 0));
}
