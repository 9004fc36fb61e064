//! What leaves when: nothing that a crash could take back before it is stored, and nobody else waits (design promises G2 and
//! G5). A store that hangs, that cannot write, and that belongs to somebody else.

use std::time::Duration;

use bytes::BytesMut;
use mqtt_sn_gateway::gateway::io::{Control, Input, LinkCommand, LinkEvent, LinkFailure, Mode, Settings};
use mqtt_sn_gateway::gateway::record::{Lsn, Outcome};
use mqtt_sn_gateway::wire::{
    FilterRef, Packet, Qos, Register, Response, ReturnCode, SubAck, TopicRef, Unsubscribe, WillMsg,
    WillTopic, decode,
};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;
use tracing::Level;

use crate::log::Log;
use crate::world::*;

const A: At = 1;
const B: At = 2;
const C: At = 3;

fn lasting() -> World {
    world_with(|settings: &mut Settings| settings.lasting = true)
}

fn wake() -> Packet<'static> {
    pingreq_of("n1")
}

fn register(msg_id: u16, name: &str) -> Packet<'_> {
    Packet::Register(Register { topic_id: 0, msg_id, topic_name: name.as_bytes() })
}

fn unsubscribe(filter: &str) -> Packet<'_> {
    Packet::Unsubscribe(Unsubscribe { msg_id: 3, topic: FilterRef::Name(filter.as_bytes()) })
}

fn will_topic(topic: &str) -> WillTopic<'_> {
    WillTopic { qos: Qos::AtLeastOnce, retain: false, topic: topic.as_bytes() }
}

/// What the frames that left are, by name.
fn names(w: &mut World) -> String {
    let name = |frame: &bytes::Bytes| {
        let text = decode(frame).unwrap().packet.to_string();
        text.split(' ').next().unwrap_or_default().to_owned()
    };
    w.taken().iter().map(name).collect::<Vec<_>>().join(" ")
}

/// The client at A, which has subscribed to `s/1`, publishes there, gets a message of QoS 0 and one of QoS 1, and pings.
#[track_caller]
fn needs_no_store(w: &mut World, topic: TopicRef) {
    w.published(A, topic, 7, "s/1", "up");
    w.broker_publishes(0, "s/1", "zero", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "zero");
    w.broker_publishes(5, "s/1", "one", QoS::AtLeastOnce);
    w.takes(A, topic, "one");
    w.broker_gets_puback(5);
    w.pings(A);
}

#[test]
fn what_promises_something_leaves_when_that_is_durable_in_the_order_it_was_made() {
    let mut w = lasting();
    // The broker has the filter.
    w.subscriber(B, connect("n2"), "s/1", QoS::AtLeastOnce);
    let before = w.last_batch();
    w.store_answers(Answers::Never);
    w.send(A, connect_with("n1", true, true, 60));
    w.send(A, Packet::WillTopic(will_topic("w/1")));
    w.send(A, Packet::WillMsg(WillMsg { message: b"bye" }));
    assert_eq!(names(&mut w), "WILLTOPICREQ WILLMSGREQ");
    w.send(A, register(1, "t/1"));
    w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    w.send(A, Packet::WillTopicUpd(will_topic("w/2")));
    w.send(A, Packet::WillMsgUpd(WillMsg { message: b"late" }));
    w.send(A, pingreq());
    w.send(A, unsubscribe("s/1"));
    w.send(A, sleep(60));
    w.quiet();
    let last = w.last_batch();
    let mut left = Vec::new();
    for lsn in before.0 + 1..=last.0 {
        w.store_commits(Lsn(lsn));
        left.push(names(&mut w));
    }
    assert_eq!(
        left,
        ["CONNACK", "REGACK", "SUBACK", "WILLTOPICRESP", "WILLMSGRESP PINGRESP", "UNSUBACK", "DISCONNECT"]
    );
    w.leaves_nothing();
}

#[test]
fn a_crash_before_that_leaves_what_the_client_was_told() {
    for batches in 0..5 {
        let mut w = lasting();
        w.subscriber(B, connect("n2"), "s/1", QoS::AtLeastOnce);
        let (before, rows_before) = (w.last_batch().0, w.store.rows_of_clients());
        w.store_answers(Answers::Never);
        w.send(A, connect("n1"));
        w.send(A, register(1, "t/1"));
        w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
        w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
        w.send(A, sleep(60));
        w.store_commits(Lsn(before + batches));
        let told = names(&mut w);
        assert_eq!(told.split(' ').filter(|name| !name.is_empty()).count() as u64, batches);
        let rows = w.store.rows_of_clients() - rows_before;
        w.restart();
        // A session, the id of its topic, the id of its filter with that.
        assert_eq!(rows, [0, 1, 2, 4, 4][batches as usize]);
        w.send(A, wake());
        assert_eq!(names(&mut w), if batches == 0 { "DISCONNECT" } else { "PINGRESP" });
        w.leaves_nothing();
    }
}

#[test]
fn nobody_waits_for_what_is_stored_for_others() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.active(B, "n2");
    w.store_answers(Answers::Never);
    w.send(B, register(1, "t/1"));
    w.send(C, connect("n3"));
    w.quiet();
    needs_no_store(&mut w, topic);
    w.store_answers(Answers::AtOnce);
    assert_eq!(names(&mut w), "REGACK CONNACK");
    w.leaves_nothing();
}

#[test]
fn the_broker_is_told_of_a_message_when_it_is_durable_for_the_last_who_waits() {
    let mut w = lasting();
    let a = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.subscriber(B, connect("n2"), "s/1", QoS::AtLeastOnce);
    w.falls_asleep(B, 60);
    w.store_answers(Answers::Never);
    w.broker_publishes(5, "s/1", "x", QoS::AtLeastOnce);
    let msg_id = w.expect_publish(A, a, Qos::AtLeastOnce, false, "x");
    w.store_answers(Answers::AtOnce);
    w.broker_quiet();
    w.store_answers(Answers::Never);
    w.send(A, puback(a, msg_id, ReturnCode::Accepted));
    w.broker_gets_puback(5);
    w.broker_publishes(6, "s/1", "y", QoS::AtLeastOnce);
    w.takes(A, a, "y");
    w.broker_quiet();
    w.store_answers(Answers::AtOnce);
    w.broker_gets_puback(6);
    w.leaves_nothing();
}

/// Flash wears out (design section 4).
#[test]
fn each_message_writes_few_rows() {
    let mut w = lasting();
    let mut table = String::new();
    let mut line = |w: &mut World, what: &str| table += &format!("{what}: {}\n", w.handed());
    let persistent = connect_with("n1", false, false, 60);
    w.send(A, persistent);
    line(&mut w, "CONNECT");
    w.send(A, persistent);
    line(&mut w, "CONNECT, a copy");
    w.send(A, register(1, "s/1"));
    line(&mut w, "REGISTER");
    w.send(A, register(1, "s/1"));
    line(&mut w, "REGISTER again");
    for what in ["SUBSCRIBE", "SUBSCRIBE again"] {
        w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
        w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
        line(&mut w, what);
    }
    w.taken();
    let topic = TopicRef::Normal(w.registered(A, "s/1"));
    w.send(A, publish(topic, Qos::AtMostOnce, 0, "x"));
    w.broker_gets("s/1", "x", QoS::AtMostOnce);
    line(&mut w, "PUBLISH of QoS 0");
    w.published(A, topic, 7, "s/1", "x");
    line(&mut w, "PUBLISH of QoS 1");
    w.broker_publishes(0, "s/1", "x", QoS::AtMostOnce);
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "x");
    line(&mut w, "of QoS 0 for it");
    w.broker_publishes(5, "s/1", "x", QoS::AtLeastOnce);
    w.takes(A, topic, "x");
    w.broker_gets_puback(5);
    line(&mut w, "of QoS 1 for it");
    w.send(A, pingreq());
    line(&mut w, "PINGREQ");
    w.send(A, sleep(60));
    line(&mut w, "DISCONNECT to sleep");
    w.send(A, sleep(60));
    line(&mut w, "DISCONNECT to sleep again");
    for _ in 0..10 {
        w.send(A, wake());
    }
    line(&mut w, "PINGREQ of a sleeper");
    w.broker_publishes(0, "s/1", "x", QoS::AtMostOnce);
    line(&mut w, "of QoS 0 for a sleeper");
    w.broker_publishes(6, "s/1", "x", QoS::AtLeastOnce);
    line(&mut w, "of QoS 1 for a sleeper");
    w.taken();
    w.send(A, wake());
    w.expect_publish(A, topic, Qos::AtMostOnce, false, "x");
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "x");
    line(&mut w, "it wakes");
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    line(&mut w, "it has the message");
    w.expect(A, Packet::PingResp);
    w.send(A, persistent);
    line(&mut w, "CONNECT of a sleeper");
    w.taken();
    w.broker_publishes(0, "s/1", "x", QoS::AtMostOnce);
    let (id, msg_id) = w.expect_register(A, "s/1");
    line(&mut w, "REGISTER for it");
    w.send(A, regack(id, msg_id, ReturnCode::Accepted));
    line(&mut w, "REGACK of it");
    w.send(A, Packet::WillTopicUpd(will_topic("w/1")));
    line(&mut w, "WILLTOPICUPD");
    w.send(A, Packet::WillTopicUpd(will_topic("w/1")));
    line(&mut w, "WILLTOPICUPD again");
    w.send(A, Packet::WillMsgUpd(WillMsg { message: b"bye" }));
    line(&mut w, "WILLMSGUPD");
    w.send(A, unsubscribe("s/1"));
    line(&mut w, "UNSUBSCRIBE");
    w.send(A, disconnect());
    line(&mut w, "DISCONNECT");
    w.send(A, connect("n1"));
    line(&mut w, "CONNECT to begin anew");
    w.send(A, disconnect());
    line(&mut w, "DISCONNECT of a clean session");
    assert_eq!(
        table,
        "\
CONNECT: +session
CONNECT, a copy: 
REGISTER: +topic
REGISTER again: 
SUBSCRIBE: +filter +subscription =filter
SUBSCRIBE again: 
PUBLISH of QoS 0: 
PUBLISH of QoS 1: 
of QoS 0 for it: 
of QoS 1 for it: 
PINGREQ: 
DISCONNECT to sleep: =session
DISCONNECT to sleep again: 
PINGREQ of a sleeper: 
of QoS 0 for a sleeper: 
of QoS 1 for a sleeper: +message +waiting
it wakes: 
it has the message: -waiting -message
CONNECT of a sleeper: =session
REGISTER for it: 
REGACK of it: =topic
WILLTOPICUPD: +will
WILLTOPICUPD again: 
WILLMSGUPD: =will
UNSUBSCRIBE: -subscription =filter
DISCONNECT: =session
CONNECT to begin anew: =session -will -topic
DISCONNECT of a clean session: -session
"
    );
    w.leaves_nothing();
}

/// Without what is stored of the gateway's links.
fn of_clients(handed: &str) -> String {
    let ours = |record: &&str| !record.ends_with("received") && !record.ends_with("filter");
    handed.split(' ').filter(ours).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_message_of_qos_2_writes_few_rows() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.handed();
    w.broker_publishes(5, "s/1", "x", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "x");
    assert_eq!(of_clients(&w.handed()), "+message +waiting =waiting");
    w.send(A, pubrec(msg_id));
    w.expect(A, pubrel(msg_id));
    assert_eq!(of_clients(&w.handed()), "-waiting -message +releasing");
    w.send(A, pubcomp(msg_id));
    assert_eq!(of_clients(&w.handed()), "-releasing");
    w.leaves_nothing();
}

#[test]
fn a_message_for_many_is_written_once_and_goes_with_the_last() {
    let mut w = lasting();
    let mut topics = Vec::new();
    for (at, id) in [(1, "n1"), (2, "n2"), (3, "n3")] {
        w.active(at, id);
        topics.push(w.subscribed(at, "s/1", QoS::AtLeastOnce));
        w.falls_asleep(at, 60);
    }
    w.handed();
    w.broker_publishes(5, "s/1", "x", QoS::AtLeastOnce);
    assert_eq!(w.handed(), "+message +waiting +waiting +waiting");
    w.restart();
    w.handed();
    for (at, id) in [(3, "n3"), (1, "n1"), (2, "n2")] {
        w.send(at, pingreq_of(id));
        let topic = TopicRef::Normal(topics[usize::from(at) - 1]);
        w.takes(at, topic, "x");
        w.expect(at, Packet::PingResp);
        assert_eq!(of_clients(&w.handed()), if at == 2 { "-waiting -message" } else { "-waiting" });
    }
    w.leaves_nothing();
}

/// It need not be written at all.
#[test]
fn what_is_settled_before_it_is_durable_is_inserted_and_deleted() {
    let mut w = lasting();
    w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.falls_asleep(A, 60);
    w.handed();
    w.store_answers(Answers::Never);
    for pkid in 1..=12 {
        w.broker_publishes(pkid, "s/1", "x", QoS::AtLeastOnce);
    }
    w.send(A, unsubscribe("s/1"));
    let handed = w.handed();
    for what in ["message", "waiting"] {
        let count =
            |sign: &str| handed.split(' ').filter(|record| *record == format!("{sign}{what}")).count();
        assert_eq!((count("+"), count("-")), (12, 12), "{handed}");
    }
    w.leaves_nothing();
}

// A store that cannot write.

#[test]
fn what_cannot_be_stored_is_refused_with_congestion() {
    let mut w = lasting();
    w.active(A, "n1");
    let topic = TopicRef::Normal(w.registered(A, "t/1"));
    w.store_answers(Answers::Unavailable);
    let congestion = ReturnCode::Congestion;
    // Also to those of whom something waits for the store already.
    for _ in 0..2 {
        w.send(B, connect("n2"));
        w.expect(B, connack(congestion));
        w.send(A, register(4, "t/2"));
        w.expect(A, regack(0, 4, congestion));
        w.send(A, subscribe(5, "s/1", Qos::AtMostOnce));
        let refused = SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id: 5, code: congestion };
        w.expect(A, Packet::SubAck(refused));
        w.send(A, Packet::WillTopicUpd(will_topic("w/1")));
        w.expect(A, Packet::WillTopicResp(Response { code: congestion }));
        w.send(A, Packet::WillMsgUpd(WillMsg { message: b"bye" }));
        w.expect(A, Packet::WillMsgResp(Response { code: congestion }));
        w.send(A, publish(topic, Qos::ExactlyOnce, 6, "x"));
        w.expect(A, puback(topic, 6, congestion));
        assert_eq!(w.gw.sessions(), 1);
        w.send(A, sleep(60));
        w.quiet();
    }
    assert_eq!(w.gw.counters().refused_unstored, 12);
    assert_eq!(w.gw.counters().subscriptions_full, 0);
    assert_eq!((w.gw.counters().sleeps_unstored, w.gw.counters().frames_unstored), (2, 0));
    w.leaves_nothing();
}

#[test]
fn who_asks_again_for_what_could_not_be_stored_is_told_congestion() {
    let mut w = lasting();
    w.active(A, "n1");
    w.store_answers(Answers::Never);
    w.send(A, register(4, "t/2"));
    w.send(B, connect("n2"));
    w.quiet();
    w.store_answers(Answers::Unavailable);
    w.quiet();
    assert_eq!(w.gw.counters().frames_unstored, 2);
    w.send(A, register(4, "t/2"));
    w.expect(A, regack(0, 4, ReturnCode::Congestion));
    w.send(B, connect("n2"));
    w.expect(B, connack(ReturnCode::Congestion));
    w.store_answers(Answers::AtOnce);
    w.quiet();
    for at in [B, C] {
        w.connected(at, connect(if at == B { "n2" } else { "n3" }));
    }
    w.registered(A, "t/2");
    w.registered(A, "t/3");
    w.leaves_nothing();
}

/// DISCONNECT is the only answer, and says that the gateway will know: it cannot be given, nor is there another to refuse it by.
#[test]
fn who_falls_asleep_while_the_store_cannot_write_is_not_told_so_and_served_all_the_same() {
    for returns in [true, false] {
        let mut w = lasting();
        w.active(A, "n1");
        let topic = TopicRef::Normal(w.subscribed(A, "s/1", QoS::AtLeastOnce));
        w.store_answers(Answers::Unavailable);
        for sent in 1..=2 {
            w.send(A, sleep(600));
            w.quiet();
            assert_eq!(w.gw.counters().sleeps_unstored, sent);
        }
        assert_eq!(w.gw.counters().frames_unstored, 0);
        w.broker_publishes(5, "s/1", "x", QoS::AtLeastOnce);
        w.pass(Duration::from_secs(500));
        w.quiet();
        w.broker_quiet();
        if returns {
            w.store_answers(Answers::AtOnce);
            w.broker_gets_puback(5);
            // A radio that is off hears nothing; who asks again is told.
            w.quiet();
            w.send(A, sleep(600));
            w.expect(A, disconnect());
        }
        w.send(A, wake());
        let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "x");
        w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
        w.expect(A, Packet::PingResp);
        w.broker_quiet();
        w.leaves_nothing();
    }
}

#[test]
fn what_needs_no_store_goes_on_without_it() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.active(B, "n2");
    w.falls_asleep(B, 60);
    w.store_answers(Answers::Unavailable);
    w.send(A, publish(topic, Qos::AtMostOnce, 0, "zero"));
    w.broker_gets("s/1", "zero", QoS::AtMostOnce);
    needs_no_store(&mut w, topic);
    w.send(B, pingreq_of("n2"));
    w.expect(B, Packet::PingResp);
    // A name that it has it may ask for.
    w.send(A, register(9, "s/1"));
    w.expect(A, regack(topic.raw(), 9, ReturnCode::Accepted));
    w.leaves_nothing();
}

#[test]
fn the_broker_is_not_told_of_what_could_not_be_stored_until_it_is() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::ExactlyOnce);
    w.falls_asleep(A, 600);
    w.store_answers(Answers::Unavailable);
    w.broker_publishes(5, "s/1", "one", QoS::AtLeastOnce);
    w.broker_publishes(6, "s/1", "two", QoS::ExactlyOnce);
    w.pass(Duration::from_secs(300));
    w.broker_quiet();
    w.send(A, wake());
    let msg_id = w.expect_publish(A, topic, Qos::AtLeastOnce, false, "one");
    w.store_answers(Answers::AtOnce);
    w.broker_gets_puback(5);
    w.broker_gets_pubrec(6);
    w.send(A, puback(topic, msg_id, ReturnCode::Accepted));
    let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "two");
    w.completes(A, msg_id);
    w.expect(A, Packet::PingResp);
    w.leaves_nothing();
}

/// It answers nothing because it was asked nothing.
#[test]
fn a_client_is_not_lost_over_frames_that_wait_for_the_store() {
    for answers in [Answers::Never, Answers::Unavailable] {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut w = lasting();
            let topic = w.subscriber(A, connect_with("n1", false, true, 6000), "s/1", qos);
            w.store_answers(answers);
            w.send(A, unsubscribe("nothing"));
            w.taken();
            w.broker_publishes(5, "s/1", "x", QoS::ExactlyOnce);
            if qos == QoS::AtLeastOnce {
                w.expect_publish(A, topic, Qos::AtLeastOnce, false, "x");
                w.leaves_nothing();
                continue;
            }
            w.pass(Duration::from_secs(600));
            w.quiet();
            w.store_answers(Answers::AtOnce);
            w.pass(RETRY);
            let mut frames = w.taken();
            assert!((1..=2).contains(&frames.len()), "{}", frames.len());
            let frame = frames.remove(0);
            let Packet::Publish(publish) = decode(&frame).unwrap().packet else { panic!() };
            w.send(A, pubrec(publish.msg_id));
            w.expect(A, pubrel(publish.msg_id));
            w.store_answers(answers);
            w.send(A, pubcomp(publish.msg_id));
            w.broker_publishes(6, "s/2", "x", QoS::ExactlyOnce);
            w.pass(Duration::from_secs(600));
            assert_eq!(w.gw.counters().clients_lost, 0);
            w.leaves_nothing();
        }
    }
}

#[test]
fn a_pubrel_that_waits_for_the_store_is_sent_when_it_is_back() {
    for answers in [Answers::Never, Answers::Unavailable] {
        let mut w = lasting();
        let topic = w.subscriber(A, connect_with("n1", false, true, 6000), "s/1", QoS::ExactlyOnce);
        w.broker_publishes(5, "s/1", "x", QoS::ExactlyOnce);
        let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "x");
        w.store_answers(answers);
        w.send(A, pubrec(msg_id));
        w.pass(Duration::from_secs(600));
        w.quiet();
        w.store_answers(Answers::AtOnce);
        w.pass(RETRY);
        w.expect(A, pubrel(msg_id));
        w.taken();
        w.send(A, pubcomp(msg_id));
        w.pass(Duration::from_secs(600));
        w.quiet();
        assert_eq!(w.gw.counters().clients_lost, 0);
        w.leaves_nothing();
    }
}

#[test]
fn a_gateway_that_is_fenced_stops_at_once_and_does_nothing_more() {
    let mut w = lasting();
    let topic = w.subscriber(A, connect("n1"), "s/1", QoS::AtLeastOnce);
    w.subscriber(B, connect("n2"), "s/1", QoS::AtLeastOnce);
    w.falls_asleep(B, 60);
    w.store_answers(Answers::Never);
    w.send(A, register(4, "t/2"));
    w.send(A, pingreq());
    w.broker_publishes(5, "s/1", "x", QoS::AtLeastOnce);
    w.quiet();
    let last = w.last_batch();
    w.input(Input::Stored(last, Outcome::Fenced));
    assert!(w.stopped);
    w.quiet();
    w.broker_quiet();
    w.commands.clear();
    w.send(A, pingreq());
    w.send(A, publish(topic, Qos::AtMostOnce, 0, "x"));
    w.send(C, connect("n3"));
    w.pass(Duration::from_secs(3600));
    w.quiet();
    w.broker_quiet();
    assert!(w.commands.is_empty());
    assert_eq!(w.last_batch(), last);
    assert_eq!(w.gw.poll_timeout(), None);
}

/// As long as a store neither writes nor says that it cannot.
#[test]
fn what_waits_for_a_store_that_hangs_is_bounded() {
    let mut w = lasting();
    w.active(A, "n1");
    w.store_answers(Answers::Never);
    w.send(A, register(4, "t/2"));
    for _ in 0..65_536 {
        w.send(A, pingreq());
    }
    // Beyond, what promises nothing leaves, and what does is dropped and counted.
    let left = w.taken().len();
    assert_eq!(left, 1);
    w.send(A, register(4, "t/3"));
    w.quiet();
    assert_eq!(w.gw.counters().frames_unstored, 1);
    w.store_answers(Answers::AtOnce);
    assert_eq!(w.taken().len(), 65_536);
    w.leaves_nothing();
}

/// What an outage let go has its room again in the next.
#[test]
fn one_outage_after_another_leaves_room_for_what_waits() {
    // More than half of what may wait.
    const PINGS: usize = 40_000;
    let mut w = lasting();
    w.active(A, "n1");
    for (outage, name) in ["t/1", "t/2", "t/3"].into_iter().enumerate() {
        w.store_answers(Answers::Never);
        w.send(A, register(4, name));
        for _ in 0..PINGS {
            w.send(A, pingreq());
        }
        w.quiet();
        assert_eq!(w.gw.counters().frames_unstored, outage as u64);
        // It is dropped; what promises nothing leaves without it.
        w.store_answers(Answers::Unavailable);
        assert_eq!(w.taken().len(), PINGS);
        w.store_answers(Answers::AtOnce);
        w.quiet();
    }
    assert_eq!(w.gw.counters().frames_unstored, 3);
    w.leaves_nothing();
}

/// As long as a store neither writes nor says that it cannot.
#[test]
fn a_store_with_too_much_to_write_takes_nothing_new_until_it_has_caught_up() {
    let mut w = lasting();
    w.active(A, "n1");
    let topic = w.subscriber(B, connect("n2"), "s/1", QoS::AtLeastOnce);
    w.falls_asleep(B, 600);
    w.store_answers(Answers::Never);
    let before = w.last_batch().0;
    // One record for each.
    for n in 0..65_536u32 {
        assert!(w.gw.is_storing());
        w.send(A, sleep(if n % 2 == 0 { 60 } else { 61 }));
    }
    w.send(A, sleep(600));
    w.quiet();
    assert!(!w.gw.is_storing());
    for _ in 0..2 {
        w.send(C, connect("n3"));
        w.expect(C, connack(ReturnCode::Congestion));
    }
    assert_eq!((w.gw.counters().store_behind, w.gw.counters().refused_unstored), (1, 2));
    // Who sleeps is served; the broker is told when that is durable.
    w.broker_publishes(5, "s/1", "x", QoS::AtLeastOnce);
    w.broker_quiet();
    w.send(B, pingreq_of("n2"));
    w.takes(B, topic, "x");
    w.expect(B, Packet::PingResp);
    w.store_commits(Lsn(before + 1000));
    assert_eq!(w.taken().len(), 1000);
    assert!(!w.gw.is_storing());
    w.store_answers(Answers::AtOnce);
    w.taken();
    w.broker_gets_puback(5);
    w.active(C, "n3");
    // The last answer had no room among what waits.
    assert_eq!((w.gw.counters().sleeps_unstored, w.gw.counters().store_behind), (1, 1));
    w.leaves_nothing();
}

/// As long as a store neither writes nor says that it cannot: few records are enough.
#[test]
fn a_store_that_does_not_answer_for_long_takes_nothing_new_until_it_does() {
    const TICK: Duration = Duration::from_millis(1);
    let mut w = lasting();
    let topic = w.subscriber(A, connect_with("n1", false, true, 6000), "s/1", QoS::AtLeastOnce);
    w.store_answers(Answers::Never);
    let log = Log::of(Level::WARN);
    for hangs in 1..=2 {
        w.send(A, register(4, &format!("t/{hangs}")));
        w.pass(Duration::from_secs(3));
        // It is the oldest that counts.
        w.send(B, connect("n2"));
        w.pass(Duration::from_secs(2) - TICK);
        assert!(w.gw.is_storing());
        assert_eq!(w.gw.counters().store_behind, hangs - 1);
        w.pass(TICK);
        assert!(!w.gw.is_storing());
        w.quiet();
        for _ in 0..2 {
            w.send(C, connect("n3"));
            w.expect(C, connack(ReturnCode::Congestion));
        }
        w.pass(Duration::from_secs(10));
        assert_eq!((w.gw.counters().store_behind, w.gw.counters().refused_unstored), (hangs, 2 * hangs));
        let told = log.take();
        assert!(matches!(&told[..], [line] if line.contains("the store does not answer")), "{told:?}");
        // What waits already leaves when it is durable, and the next batch has waited for too long, too.
        let last = w.last_batch();
        w.store_commits(Lsn(last.0 - 1));
        assert_eq!(names(&mut w), "REGACK");
        assert!(!w.gw.is_storing());
        w.store_commits(last);
        assert_eq!(names(&mut w), "CONNACK");
        assert!(w.gw.is_storing());
        w.pass(Duration::from_secs(10));
        assert!(w.gw.is_storing());
        w.send(B, disconnect());
        w.store_commits(w.last_batch());
        assert_eq!(names(&mut w), "DISCONNECT");
        needs_no_store(&mut w, topic);
    }
    w.store_answers(Answers::AtOnce);
    w.active(C, "n3");
    assert_eq!((w.gw.counters().store_behind, w.gw.counters().frames_unstored), (2, 0));
    w.leaves_nothing();
}

/// It has said what is wrong: that is counted elsewhere.
#[test]
fn a_store_that_says_that_it_cannot_write_is_not_one_that_does_not_answer() {
    let mut w = lasting();
    w.active(A, "n1");
    w.store_answers(Answers::Never);
    w.send(A, sleep(600));
    w.pass(Duration::from_secs(4));
    w.store_answers(Answers::Unavailable);
    w.pass(Duration::from_secs(60));
    assert!(!w.gw.is_storing());
    w.store_answers(Answers::AtOnce);
    assert!(w.gw.is_storing());
    assert_eq!(w.gw.counters().store_behind, 0);
    w.leaves_nothing();
}

#[test]
fn of_frames_for_two_clients_each_waits_for_its_own_batch() {
    let mut w = lasting();
    w.active(A, "n1");
    w.active(B, "n2");
    w.store_answers(Answers::Never);
    let before = w.last_batch().0;
    w.send(A, register(1, "t/1"));
    w.send(B, register(1, "t/1"));
    w.send(A, pingreq());
    w.send(A, register(2, "t/2"));
    w.send(B, pingreq());
    w.store_commits(Lsn(before + 1));
    for name in ["REGACK", "PINGRESP"] {
        let frame = w.next(A);
        assert!(decode(&frame).unwrap().packet.to_string().starts_with(name));
    }
    w.quiet();
    w.send(A, pingreq());
    w.quiet();
    w.store_commits(Lsn(before + 2));
    w.next(B);
    w.expect(B, Packet::PingResp);
    w.pings(B);
    w.quiet();
    w.store_commits(Lsn(before + 3));
    w.next(A);
    w.expect(A, Packet::PingResp);
    w.quiet();
    w.leaves_nothing();
}

/// The next session of the client is another one, and stored after the end of this.
#[test]
fn a_client_that_leaves_and_comes_back_while_the_store_hangs_has_its_answers_in_order() {
    let mut w = lasting();
    w.active(A, "n1");
    w.registered(A, "t/1");
    w.store_answers(Answers::Never);
    w.send(A, disconnect());
    w.send(A, connect("n1"));
    w.send(A, register(1, "t/1"));
    w.quiet();
    w.store_answers(Answers::AtOnce);
    assert_eq!(names(&mut w), "DISCONNECT CONNACK REGACK");
    assert_eq!(w.store.rows_of_clients(), 2);
    w.leaves_nothing();
}

/// A goodbye to the broker is no reason for it to hear less.
#[test]
fn a_link_is_left_after_what_waits_for_the_store_has_left() {
    for answers in [Answers::Never, Answers::Unavailable] {
        let mut w = lasting();
        w.active(A, "n1");
        w.store_answers(Answers::Never);
        w.send(A, subscribe(2, "s/1", Qos::AtLeastOnce));
        w.input(Input::Control(Control::Shutdown));
        w.broker_quiet();
        assert!(!w.stopped);
        if answers == Answers::Unavailable {
            w.store_answers(Answers::Unavailable);
        } else {
            w.store_answers(Answers::AtOnce);
        }
        w.broker_gets_subscribe("s/1", QoS::AtLeastOnce);
        w.broker_gets_disconnect();
        let (_, last) = w.commands.pop_back().unwrap();
        assert_eq!(last, LinkCommand::Close);
        assert!(w.stopped);
    }
}

/// The broker says PUBREC and closes, and its client has the link made anew before that is written: PUBREL there would have the
/// broker forget what it is sent again after a crash.
#[test]
fn what_waits_on_a_connection_waits_on_the_next_that_is_made_in_the_same_turn() {
    for crashes in [false, true] {
        let mut w = world_with(|settings| {
            settings.lasting = true;
            settings.ports[0].mode = Mode::Transparent;
        });
        w.answers_pings = true;
        let client = connect_with("n1", false, false, 60);
        w.send(A, client);
        w.admitted(A, "n1", false);
        let topic = TopicRef::Normal(w.registered(A, "t/1"));
        w.send(A, publish(topic, Qos::ExactlyOnce, 7, "x"));
        let pkid = w.broker_gets("t/1", "x", QoS::ExactlyOnce);
        w.store_answers(Answers::Never);
        let (id, _) = w.commands.pop_back().unwrap();
        let mut octets = BytesMut::new();
        v4::PubRec { pkid }.write(&mut octets).unwrap();
        for event in [LinkEvent::Bytes(octets.freeze()), LinkEvent::Closed(LinkFailure::Closed)] {
            w.gw.handle(w.now, Input::Link(id, event));
        }
        w.send(A, client);
        w.on_link_of(Some("n1"));
        w.broker_answers_tcp();
        w.broker_quiet();
        if crashes {
            w.restart();
            w.pass(Duration::from_secs(5));
            w.on_link_of(Some("n1"));
            w.broker_up(true);
            let v4::Packet::Publish(again) = w.broker_next() else { panic!() };
            assert_eq!((again.pkid, again.dup), (pkid, true));
        } else {
            w.store_answers(Answers::AtOnce);
            assert!(matches!(w.broker_next(), v4::Packet::Connect(_)));
            w.broker_accepts(true);
            assert_eq!(w.broker_next(), v4::Packet::PubRel(v4::PubRel { pkid }));
            w.broker_quiet();
        }
        w.leaves_nothing();
    }
}

#[test]
fn a_store_that_hangs_for_thousands_of_batches_is_caught_up_with() {
    let mut w = lasting();
    w.active(A, "n1");
    w.active(B, "n2");
    w.store_answers(Answers::Never);
    w.send(B, register(1, "t/1"));
    for seconds in 0..5000 {
        w.send(A, sleep(60 + seconds % 2));
    }
    w.quiet();
    let last = w.last_batch();
    w.store_commits(Lsn(last.0 - 1));
    assert_eq!(w.taken().len(), 5000);
    w.send(A, wake());
    w.quiet();
    w.store_commits(last);
    assert_eq!(names(&mut w), "DISCONNECT PINGRESP");
    w.store_answers(Answers::AtOnce);
    for (at, id) in [(A, "n1"), (B, "n2")] {
        w.send(at, pingreq_of(id));
        w.expect(at, Packet::PingResp);
    }
    w.leaves_nothing();
}

/// There is room for so many, and the broker is done with them.
#[test]
fn an_exchange_that_makes_room_for_another_leaves_no_row_behind() {
    let mut w = lasting();
    w.active(A, "n1");
    let id = w.registered(A, "s/1");
    let rows = w.store.rows.len();
    for msg_id in 1..=20 {
        w.send(A, publish(TopicRef::Normal(id), Qos::ExactlyOnce, msg_id, "x"));
        let pkid = w.broker_gets("s/1", "x", QoS::ExactlyOnce);
        w.broker_pubrecs(pkid);
        w.expect(A, pubrec(msg_id));
        w.broker_gets_pubrel(pkid);
        w.broker_pubcomps(pkid);
        assert_eq!(w.store.rows.len() - rows, usize::from(msg_id.min(16)), "message {msg_id}");
    }
}
