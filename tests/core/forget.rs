//! The operator wants a client forgotten: nothing of it is left, here, in the store and at the broker, nor is it back after
//! a crash.

use std::time::Duration;

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{
    Answer, Control, Forgotten, Input, LinkCommand, Mode, OutageQueue, Protocol, RequestId, Settings, Wills,
};
use mqtt_sn_gateway::gateway::record::Key;
use mqtt_sn_gateway::topic::ClientId;
use mqtt_sn_gateway::wire::{Packet, Qos, ReturnCode, TopicRef, WillTopic};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

use crate::world::*;

const A: At = 1;
const B: At = 2;

/// With a store, and with a queue for the broker.
fn lasting(mode: Mode) -> World {
    lasting_with(mode, |_| {})
}

fn lasting_with(mode: Mode, change: impl FnOnce(&mut Settings)) -> World {
    let mut w = world_with(|settings| {
        settings.lasting = true;
        settings.ports[0].mode = mode;
        let age = Duration::from_secs(3600);
        settings.broker.outage_queue = Some(OutageQueue { messages: 10, bytes: 4096, age });
        change(settings);
    });
    w.answers_pings = true;
    // From its second start on the broker knows it.
    w.restart();
    w
}

fn client(id: &str) -> ClientId {
    ClientId::new(id.as_bytes()).unwrap()
}

impl World {
    fn forget(&mut self, id: &str) {
        self.input(Input::Control(Control::Forget(RequestId(7), client(id))));
    }

    #[track_caller]
    fn forgotten(&mut self) -> Forgotten {
        match self.answers.pop_front() {
            Some((RequestId(7), Answer::Forgotten(gone))) => gone,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn forgets(&mut self, id: &str) -> Forgotten {
        self.forget(id);
        self.forgotten()
    }

    /// The store has nothing of this client, nor does a gateway that goes on after a crash.
    #[track_caller]
    fn is_rid_of(&mut self, id: &str) {
        let theirs = |key: &&Key| matches!(key, Key::Client(it, _) if *it == client(id));
        let left: Vec<_> = self.store.rows.keys().filter(theirs).collect();
        assert_eq!(left, Vec::<&Key>::new());
        let sessions = self.gw.sessions();
        self.crash();
        assert_eq!(self.gw.sessions(), sessions);
        self.quiet();
        assert_eq!(self.forgets(id), Forgotten::default());
    }

    /// A client that the gateway knows, with CleanSession 0; in transparent mode the broker has accepted it.
    #[track_caller]
    fn known(&mut self, at: At, id: &str, mode: Mode) {
        self.send(at, connect_with(id, false, false, 60));
        self.accepted(id, mode);
        self.expect(at, connack(ReturnCode::Accepted));
    }

    /// In transparent mode, the broker accepts this client.
    #[track_caller]
    fn accepted(&mut self, id: &str, mode: Mode) {
        if mode == Mode::Transparent {
            self.on_link_of(Some(id));
            self.broker_up(false);
        }
    }

    /// On the link the gateway leaves for good, and has the broker end its session (MQTT 3.1.1 §3.1.2.4).
    #[track_caller]
    fn broker_is_rid_of(&mut self, id: &str) {
        self.leaves_its_link();
        self.ends_session_of(id);
    }

    #[track_caller]
    fn leaves_its_link(&mut self) {
        let mut packet = self.broker_next();
        while packet != v4::Packet::Disconnect {
            assert!(matches!(packet, v4::Packet::Unsubscribe(_)), "{packet:?}");
            packet = self.broker_next();
        }
    }

    /// What the broker hears on a connection that was there and on the next one, if both had to wait.
    #[track_caller]
    fn leaves_for_a_clean_connect(&mut self) {
        self.leaves_its_link();
        assert!(matches!(self.broker_next(), v4::Packet::Connect(v4::Connect { clean_session: true, .. })));
    }

    #[track_caller]
    fn ends_session_of(&mut self, id: &str) {
        self.pass(Duration::ZERO);
        self.on_link_of(Some(id));
        let connect = self.broker_hears_connect();
        assert_eq!((connect.clean_session, connect.client_id.as_str()), (true, id));
        assert!(connect.last_will.is_none());
        self.broker_accepts(false);
        self.broker_gets_disconnect();
        self.broker_quiet();
    }
}

const MODES: [Mode; 2] = [Mode::Aggregating, Mode::Transparent];

#[test]
fn nothing_is_left_of_a_client_that_is_there_and_it_is_told() {
    for mode in MODES {
        let mut w = lasting(mode);
        w.known(A, "n1", mode);
        w.registered(A, "s/1");
        w.subscribed(A, "t", QoS::AtLeastOnce);
        let gone = w.forgets("n1");
        let expected = Forgotten { session: true, topics: 2, subscriptions: 1, ..Forgotten::default() };
        assert_eq!(gone, expected, "{mode:?}");
        w.expect(A, disconnect());
        if mode == Mode::Aggregating {
            assert!(matches!(w.broker_next(), v4::Packet::Unsubscribe(_)));
        } else {
            w.broker_is_rid_of("n1");
        }
        assert_eq!(w.gw.sessions(), 0);
        // Its answer to the DISCONNECT is none that needs one, and what it says then is a stranger's.
        w.send(A, disconnect());
        w.quiet();
        w.is_rid_of("n1");
    }
}

#[test]
fn it_may_begin_anew_at_once_and_others_notice_nothing() {
    for mode in MODES {
        let mut w = lasting(mode);
        w.known(B, "n2", mode);
        w.known(A, "n1", mode);
        w.forgets("n1");
        w.expect(A, disconnect());
        if mode == Mode::Transparent {
            w.broker_is_rid_of("n1");
        }
        w.known(A, "n1", mode);
        for (at, msg_id) in [(A, 1), (B, 2)] {
            w.pings(at);
            w.send(at, publish(TopicRef::Predefined(1), Qos::AtMostOnce, msg_id, "x"));
        }
        w.quiet();
        assert_eq!(w.gw.sessions(), 2);
    }
}

#[test]
fn of_a_client_that_nobody_knows_nothing_is_removed() {
    for mode in MODES {
        let mut w = lasting(mode);
        w.known(A, "n1", mode);
        w.handed();
        assert_eq!(w.forgets("n2"), Forgotten::default());
        assert_eq!(w.handed(), "");
        w.quiet();
        assert_eq!((w.gw.sessions(), w.gw.counters().clients_forgotten), (1, 0));
    }
}

#[test]
fn a_sleeper_is_told_when_it_wakes() {
    for mode in MODES {
        let mut w = lasting(mode);
        w.known(A, "n1", mode);
        w.subscribed(A, "t", QoS::AtLeastOnce);
        w.falls_asleep(A, 60);
        w.broker_publishes(5, "t", "a", QoS::AtLeastOnce);
        w.broker_publishes(6, "t", "b", QoS::ExactlyOnce);
        let gone = w.forgets("n1");
        assert_eq!((gone.session, gone.waiting, gone.subscriptions), (true, 2, 1));
        w.quiet();
        w.pass(Duration::from_secs(5));
        assert_eq!((w.gw.waiting_messages(), w.gw.queued_octets()), (0, 0));
        w.send(A, pingreq_of("n1"));
        w.expect(A, disconnect());
        w.is_rid_of("n1");
        w.leaves_nothing();
    }
}

#[test]
fn a_message_that_waits_for_others_too_stays_for_them() {
    let mut w = lasting(Mode::Aggregating);
    for (at, id) in [(A, "n1"), (B, "n2")] {
        w.known(at, id, Mode::Aggregating);
        w.subscribed(at, "t", QoS::AtLeastOnce);
        w.falls_asleep(at, 60);
    }
    w.broker_publishes(5, "t", "a", QoS::AtLeastOnce);
    w.broker_gets_puback(5);
    assert_eq!(w.forgets("n1").waiting, 1);
    w.is_rid_of("n1");
    assert_eq!(w.gw.waiting_messages(), 1);
}

#[test]
fn a_will_is_not_published_by_the_gateway() {
    for mode in MODES {
        let mut w = lasting(mode);
        with_will(&mut w, mode);
        assert!(w.forgets("n1").will);
        w.expect(A, disconnect());
        w.on_link_of(None);
        w.broker_takes_nothing();
        w.pass(Duration::from_secs(1000));
        w.on_link_of(None);
        w.broker_takes_nothing();
    }
}

/// A client with a Will, on whose link the test plays the broker.
#[track_caller]
fn with_will(w: &mut World, mode: Mode) {
    let will = WillTopic { qos: Qos::AtLeastOnce, retain: false, topic: b"w/1" };
    w.gives_will(A, connect_with("n1", true, true, 60), will, "bye");
    w.accepted("n1", mode);
    w.expect(A, connack(ReturnCode::Accepted));
}

#[test]
fn a_will_that_the_broker_keeps_is_taken_leave_of() {
    let mut w = lasting_with(Mode::Transparent, |settings| settings.broker.wills = Wills::Broker);
    with_will(&mut w, Mode::Transparent);
    w.forgets("n1");
    w.broker_gets_disconnect();
}

#[test]
fn a_will_that_has_yet_to_be_published_is_not() {
    for queue in [true, false] {
        let mut w = lasting_with(Mode::Aggregating, |settings| {
            settings.broker.outage_queue = settings.broker.outage_queue.filter(|_| queue);
        });
        with_will(&mut w, Mode::Aggregating);
        w.on_link_of(None);
        w.broker_down();
        // Lost, and its session with it.
        w.pass(Duration::from_secs(100));
        assert_eq!((w.gw.sessions(), w.gw.counters().wills_published), (0, 1));
        let gone = w.forgets("n1");
        assert_eq!(gone, Forgotten { kept: 1, ..Forgotten::default() });
        w.pass(Duration::from_secs(40));
        w.broker_up(false);
        w.broker_takes_nothing();
        w.is_rid_of("n1");
    }
}

#[test]
fn a_handshake_is_ended_and_the_client_may_try_again() {
    for mode in MODES {
        let mut w = lasting(mode);
        w.send(A, connect_with("n1", true, true, 60));
        w.expect(A, Packet::WillTopicReq);
        assert_eq!(w.forgets("n1"), Forgotten { session: true, ..Forgotten::default() });
        w.expect(A, connack(ReturnCode::Congestion));
        w.send(A, Packet::WillTopic(WillTopic { qos: Qos::AtMostOnce, retain: false, topic: b"w/1" }));
        w.quiet();
        w.pass(Duration::from_secs(100));
        w.quiet();
        w.is_rid_of("n1");
        w.leaves_nothing();
    }
}

#[test]
fn a_connect_that_waits_for_the_broker_is_ended_there_too() {
    // The broker has got CONNECT, or only the connection was asked for.
    for asked in [true, false] {
        let mut w = lasting(Mode::Transparent);
        w.send(A, connect_with("n1", false, false, 60));
        w.on_link_of(Some("n1"));
        if asked {
            w.broker_answers_tcp();
            assert!(matches!(w.broker_next(), v4::Packet::Connect(_)));
        }
        assert!(w.forgets("n1").session);
        w.expect(A, connack(ReturnCode::Congestion));
        if asked {
            w.broker_gets_disconnect();
        }
        w.ends_session_of("n1");
        w.pass(Duration::from_secs(100));
        w.quiet();
        w.is_rid_of("n1");
        w.leaves_nothing();
    }
}

#[test]
fn a_connect_from_elsewhere_is_ended_with_the_session() {
    let mut w = lasting(Mode::Transparent);
    w.known(A, "n1", Mode::Transparent);
    w.broker_down();
    w.send(B, connect_with("n1", false, false, 60));
    w.quiet();
    assert!(w.forgets("n1").session);
    assert_eq!(w.next_to(A), encode(&disconnect()));
    assert_eq!(w.next_to(B), encode(&connack(ReturnCode::Congestion)));
    w.ends_session_of("n1");
    w.pass(Duration::from_secs(100));
    w.quiet();
    w.is_rid_of("n1");
}

#[test]
fn the_broker_forgets_a_client_that_is_away_too() {
    for restart in [false, true] {
        let mut w = lasting(Mode::Transparent);
        w.known(A, "n1", Mode::Transparent);
        w.takes_leave(A);
        w.broker_gets_disconnect();
        if restart {
            // It is known from the store only.
            w.restart();
        }
        assert!(w.forgets("n1").session);
        w.ends_session_of("n1");
        w.is_rid_of("n1");
    }
}

/// Nobody knows when it will be back, and the client may be back before.
#[test]
fn of_a_broker_that_is_away_the_operator_is_told_that_it_may_have_the_session() {
    for (clean, mode) in [(false, Mode::Transparent), (true, Mode::Transparent), (false, Mode::Aggregating)] {
        let mut w = lasting(mode);
        w.send(A, connect_with("n1", false, clean, 60));
        w.accepted("n1", mode);
        w.expect(A, connack(ReturnCode::Accepted));
        w.broker_down();
        if mode == Mode::Transparent {
            w.on_link_of(None);
            w.broker_down();
        }
        let gone = w.forgets("n1");
        let at_broker = mode == Mode::Transparent && !clean;
        assert_eq!(gone, Forgotten { session: true, at_broker, ..Forgotten::default() });
        w.expect(A, disconnect());
        w.is_rid_of("n1");
    }
}

#[test]
fn messages_that_wait_for_the_broker_are_not_published() {
    for (mode, leaves) in [(Mode::Aggregating, true), (Mode::Aggregating, false), (Mode::Transparent, false)]
    {
        let mut w = lasting(mode);
        w.known(B, "n2", mode);
        w.known(A, "n1", mode);
        w.broker_down();
        if mode == Mode::Transparent {
            w.on_link_of(Some("n2"));
            w.broker_down();
        }
        for (at, msg_id, data) in [(A, 1, "a"), (B, 1, "b"), (A, 2, "c")] {
            let qos = if data == "c" { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
            w.send(at, publish(TopicRef::Predefined(1), qos, msg_id, data));
        }
        w.taken();
        assert_eq!(w.gw.kept_messages(), 3);
        if leaves {
            w.send(A, connect_with("n1", false, true, 60));
            w.send(A, disconnect());
            w.taken();
        }
        let gone = w.forgets("n1");
        assert_eq!((gone.session, gone.kept), (!leaves, 2), "{mode:?}");
        assert_eq!(w.gw.kept_messages(), 1);
        w.taken();
        w.is_rid_of("n1");
        assert_eq!(w.gw.kept_messages(), 1);
        w.pass(Duration::from_secs(6));
        w.on_link_of((mode == Mode::Transparent).then_some("n2"));
        w.broker_up(true);
        w.broker_gets("pre/one", "b", QoS::AtLeastOnce);
        w.broker_quiet();
    }
}

#[test]
fn a_message_of_qos_2_that_is_under_way_ends_and_leaves_nothing() {
    // Where it is when the client is forgotten: with the broker, or acknowledged by it.
    for received in [false, true] {
        let mut w = lasting(Mode::Aggregating);
        w.known(A, "n1", Mode::Aggregating);
        w.send(A, publish(TopicRef::Predefined(1), Qos::ExactlyOnce, 3, "x"));
        let pkid = w.broker_gets("pre/one", "x", QoS::ExactlyOnce);
        if received {
            w.broker_pubrecs(pkid);
            w.broker_gets_pubrel(pkid);
            w.expect(A, pubrec(3));
        }
        let gone = w.forgets("n1");
        assert_eq!((gone.exchanges, gone.kept), (1, 0));
        w.expect(A, disconnect());
        if !received {
            w.broker_pubrecs(pkid);
            w.broker_gets_pubrel(pkid);
        }
        w.broker_pubcomps(pkid);
        w.quiet();
        assert_eq!(w.store.rows_of_clients(), 0, "{:?}", w.store.rows);
        w.is_rid_of("n1");
    }
}

#[test]
fn after_a_crash_the_broker_is_freed_of_a_message_of_qos_2_that_was_under_way() {
    let mut w = lasting(Mode::Aggregating);
    w.known(A, "n1", Mode::Aggregating);
    w.known(B, "n2", Mode::Aggregating);
    w.send(A, publish(TopicRef::Predefined(1), Qos::ExactlyOnce, 3, "x"));
    let pkid = w.broker_gets("pre/one", "x", QoS::ExactlyOnce);
    w.forgets("n1");
    w.expect(A, disconnect());
    w.is_rid_of("n1");
    w.broker_up(true);
    w.broker_quiet();
    // It would take what comes under this packet id for a repetition.
    w.send(B, publish(TopicRef::Predefined(1), Qos::ExactlyOnce, 3, "y"));
    w.broker_gets_pubrel(pkid);
    assert_eq!(w.broker_gets("pre/one", "y", QoS::ExactlyOnce), pkid);
}

#[test]
fn a_message_of_qos_2_on_its_way_to_the_client_leaves_nothing() {
    for mode in MODES {
        for taken in [false, true] {
            let mut w = lasting(mode);
            w.known(A, "n1", mode);
            let topic = TopicRef::Normal(w.subscribed(A, "t", QoS::ExactlyOnce));
            w.broker_publishes(5, "t", "a", QoS::ExactlyOnce);
            let msg_id = w.expect_publish(A, topic, Qos::ExactlyOnce, false, "a");
            if taken {
                w.send(A, pubrec(msg_id));
                w.expect(A, pubrel(msg_id));
            }
            let gone = w.forgets("n1");
            assert_eq!((gone.waiting, gone.exchanges), (usize::from(!taken), usize::from(taken)));
            w.expect(A, disconnect());
            w.pass(Duration::from_secs(100));
            w.quiet();
            w.is_rid_of("n1");
        }
    }
}

#[test]
fn the_answer_and_the_goodbye_leave_when_the_removal_is_durable() {
    let mut w = lasting(Mode::Aggregating);
    w.known(A, "n1", Mode::Aggregating);
    w.store_answers(Answers::Never);
    w.forget("n1");
    w.quiet();
    assert_eq!(w.answers.len(), 0);
    w.store_answers(Answers::AtOnce);
    assert!(w.forgotten().session);
    w.expect(A, disconnect());
}

/// A client with a message of QoS 2 on its own link; it is to be forgotten, and the store hangs. The broker has answered TCP for
/// the connection on which it is to end the session.
fn hanging() -> World {
    let mut w = lasting(Mode::Transparent);
    w.known(A, "n1", Mode::Transparent);
    w.subscribed(A, "t", QoS::ExactlyOnce);
    w.broker_publishes(5, "t", "a", QoS::ExactlyOnce);
    w.taken();
    w.broker_next();
    w.store_answers(Answers::Never);
    w.forget("n1");
    w.on_link_of(Some("n1"));
    assert!(w.is_asked_for());
    w.broker_answers_tcp();
    w.broker_takes_nothing();
    w
}

/// CONNACK of MQTT 5: accepted.
const ACCEPTED_5: [u8; 5] = [0x20, 3, 0, 0, 0];

/// DISCONNECT of MQTT 5: the session expires at once.
const DISCONNECT_FOR_GOOD_5: [u8; 9] = [0xE0, 7, 0, 5, 0x11, 0, 0, 0, 0];

/// The broker hears CONNECT of MQTT 5 and accepts it.
#[track_caller]
fn accepts_5(w: &mut World) {
    w.broker_answers_tcp();
    let octets = w.broker_takes_octets();
    assert_eq!((octets[0], octets[8]), (0x10, 5));
    w.broker_octets(Bytes::from_static(&ACCEPTED_5));
}

/// As [`hanging`], in MQTT 5: the broker is to be told on the connection that there is.
fn hanging_5() -> World {
    let mut w = offline_world(|settings| {
        settings.lasting = true;
        settings.ports[0].mode = Mode::Transparent;
        settings.broker.protocol = Protocol::V5;
    });
    accepts_5(&mut w);
    w.send(A, connect_with("n1", false, false, 60));
    w.on_link_of(Some("n1"));
    accepts_5(&mut w);
    w.expect(A, connack(ReturnCode::Accepted));
    w.send(A, subscribe(2, "t", Qos::ExactlyOnce));
    let octets = w.broker_takes_octets();
    assert_eq!(octets[0], 0x82);
    w.broker_octets(Bytes::copy_from_slice(&[0x90, 4, octets[2], octets[3], 0, 2]));
    w.broker_octets(Bytes::from_static(b"\x34\x07\0\x01t\0\x05\0a"));
    w.taken();
    assert_eq!(w.broker_takes_octets()[0], 0x50);
    w.store_answers(Answers::Never);
    w.commands.clear();
    w.forget("n1");
    w.broker_takes_nothing();
    assert!(w.commands.is_empty(), "{:?}", w.commands);
    w
}

/// The CONNECT with CleanSession 1 would end the session of a client that is back before it leaves.
#[test]
fn who_comes_back_waits_for_the_end_of_its_session_as_long_as_the_store_hangs() {
    let mut w = hanging();
    w.pass(Duration::from_secs(3));
    let connections = w.commands.len();
    w.send(A, connect_with("n1", false, false, 60));
    w.quiet();
    assert_eq!(w.commands.len(), connections, "{:?}", w.commands);
    w.store_answers(Answers::AtOnce);
    w.expect(A, disconnect());
    w.leaves_for_a_clean_connect();
    w.pass(Duration::from_millis(1500));
    w.broker_accepts(false);
    w.broker_gets_disconnect();
    w.admitted(A, "n1", false);
    assert_eq!(w.gw.sessions(), 1);
}

/// The first removal goes on, and whoever comes next waits for that one.
#[test]
fn who_is_forgotten_twice_waits_for_the_first_end_of_its_session() {
    let mut w = hanging();
    w.pass(Duration::from_secs(2));
    let connections = w.commands.len();
    w.send(A, connect_with("n1", false, false, 60));
    w.forget("n1");
    w.send(A, connect_with("n1", false, false, 60));
    assert_eq!(w.commands.len(), connections, "{:?}", w.commands);
    w.store_answers(Answers::AtOnce);
    w.taken();
    w.leaves_for_a_clean_connect();
    w.broker_accepts(false);
    w.broker_gets_disconnect();
    w.admitted(A, "n1", false);
    w.broker_quiet();
    assert_eq!((w.answers.len(), w.gw.sessions()), (2, 1));
}

/// It would take its old session over, and the end of that would go to a connection that is dead.
#[test]
fn who_comes_back_in_mqtt_5_waits_too() {
    let mut w = hanging_5();
    w.pass(Duration::from_secs(3));
    w.send(A, connect_with("n1", false, false, 60));
    w.quiet();
    assert!(w.commands.is_empty(), "{:?}", w.commands);
    w.store_answers(Answers::AtOnce);
    w.expect(A, disconnect());
    assert!(w.broker_takes_octets().ends_with(&DISCONNECT_FOR_GOOD_5));
    assert_eq!(w.commands.pop_front().map(|(_, command)| command), Some(LinkCommand::Close));
    w.on_link_of(Some("n1"));
    accepts_5(&mut w);
    w.expect(A, connack(ReturnCode::Accepted));
    assert_eq!(w.gw.sessions(), 1);
}

/// The store hangs for longer than the broker may take, and the broker may close meanwhile.
#[test]
fn in_mqtt_5_a_session_is_removed_on_the_connection_that_there_is_or_on_another() {
    for closes in [false, true] {
        let mut w = hanging_5();
        w.pass(Duration::from_secs(5));
        if closes {
            w.broker_down();
        }
        w.pass(Duration::from_secs(10));
        if closes {
            w.on_link_of(Some("n1"));
            w.broker_answers_tcp();
            w.broker_takes_nothing();
        }
        w.store_answers(Answers::AtOnce);
        assert!(w.forgotten().session);
        if closes {
            let connect = w.broker_takes_octets();
            // Clean Start, and no Session Expiry Interval (MQTT 5 §3.1.2.11.2).
            assert_eq!((connect[0], connect[9]), (0x10, 0x02));
            w.broker_octets(Bytes::from_static(&ACCEPTED_5));
            assert_eq!(w.broker_takes_octets()[0], 0xE0);
        } else {
            assert!(w.broker_takes_octets().ends_with(&DISCONNECT_FOR_GOOD_5));
        }
        assert_eq!(w.commands.pop_back().map(|(_, command)| command), Some(LinkCommand::Close));
        w.broker_quiet();
    }
}

/// The broker is asked again by a connection that it has not given up.
#[test]
fn a_session_is_removed_though_the_store_hangs_for_longer_than_the_broker_may_take() {
    let mut w = hanging();
    w.commands.clear();
    w.pass(Duration::from_secs(15));
    // What has not been said is not to be said later.
    let first = w.commands.pop_front().unwrap();
    assert_eq!(first.1, LinkCommand::Close);
    w.on_link_of(Some("n1"));
    w.broker_answers_tcp();
    w.broker_takes_nothing();
    w.store_answers(Answers::AtOnce);
    assert!(w.forgotten().session);
    w.leaves_for_a_clean_connect();
    w.broker_accepts(false);
    w.broker_gets_disconnect();
    w.broker_quiet();
}

/// A store that never answers keeps no client away, nor the gateway from its end.
#[test]
fn the_end_of_a_session_does_not_wait_for_ever() {
    let mut w = hanging();
    for _ in 0..5 {
        w.pass(Duration::from_secs(12));
        if w.is_asked_for() {
            w.broker_answers_tcp();
        }
    }
    w.commands.clear();
    w.pass(Duration::from_secs(100));
    w.on_link_of(Some("n1"));
    assert!(!w.is_asked_for());
    assert_eq!(w.gw.counters().removals_unstored, 1);
    w.store_answers(Answers::AtOnce);
    w.expect(A, disconnect());
    w.leaves_its_link();
    w.broker_quiet();
    assert!(w.forgotten().at_broker);
}

#[test]
fn in_mqtt_5_it_does_not_wait_for_ever_either() {
    let mut w = hanging_5();
    w.pass(Duration::from_secs(60));
    assert_eq!(w.gw.counters().removals_unstored, 1);
    w.store_answers(Answers::AtOnce);
    assert!(w.forgotten().at_broker);
}

#[test]
fn an_answer_waits_for_a_store_that_fails_meanwhile() {
    let mut w = lasting(Mode::Aggregating);
    w.known(A, "n1", Mode::Aggregating);
    w.store_answers(Answers::Never);
    w.forget("n1");
    w.store_answers(Answers::Unavailable);
    assert_eq!(w.answers.len(), 0);
    w.store_answers(Answers::AtOnce);
    assert!(w.forgotten().session);
    w.is_rid_of("n1");
}

#[test]
fn while_the_store_cannot_write_nothing_is_forgotten() {
    let mut w = lasting(Mode::Aggregating);
    w.known(A, "n1", Mode::Aggregating);
    w.store_answers(Answers::Unavailable);
    w.forget("n1");
    assert_eq!(w.answers.pop_front(), Some((RequestId(7), Answer::Unstored)));
    w.quiet();
    assert_eq!(w.gw.sessions(), 1);
    w.store_answers(Answers::AtOnce);
    assert!(w.forgets("n1").session);
}

#[test]
fn without_a_store_it_is_the_same_but_for_the_rows() {
    for mode in MODES {
        let mut w = lasting_with(mode, |settings| settings.lasting = false);
        w.known(A, "n1", mode);
        w.subscribed(A, "t", QoS::AtLeastOnce);
        assert_eq!(w.forgets("n1").subscriptions, 1);
        w.expect(A, disconnect());
        assert_eq!(w.gw.sessions(), 0);
        w.leaves_nothing();
    }
}
