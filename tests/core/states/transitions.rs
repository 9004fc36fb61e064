//! The rows of the transition table (digest 3.19) as conversations, with their timers. Each is held in every mode, with both
//! CleanSessions, and through a forwarder.

use std::time::Duration;

use super::*;

const B: At = 2;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Plays a conversation in every way.
fn each(play: impl Fn(&mut Bench)) {
    each_with(|_| {}, play);
}

fn each_with(change: impl Fn(&mut mqtt_sn_gateway::gateway::io::Settings), play: impl Fn(&mut Bench)) {
    for how in hows() {
        play(&mut Bench::with(how, &change));
    }
}

/// n1 with a Will, as [`connected`], but with this keep-alive.
fn connected_for(b: &mut Bench, duration: u16) {
    let connect =
        Connect { will: true, clean_session: b.how.clean, protocol_id: 1, duration, client_id: b"n1" };
    b.send(A, Packet::Connect(connect));
    b.send(A, will_topic(b"will/t"));
    b.send(A, Packet::WillMsg(WillMsg { message: b"gone" }));
    b.expect(A, "WILLTOPICREQ, WILLMSGREQ, CONNACK 00");
    b.forget();
}

#[track_caller]
fn says(b: &mut Bench, packet: Packet<'_>, answer: &str) {
    b.send(A, packet);
    b.expect(A, answer);
}

fn wills(b: &mut Bench) -> usize {
    b.seen().matches("PUBLISH will/t q1 'gone'").count()
}

fn acks(b: &mut Bench, code: ReturnCode) {
    let Open { msg_id, topic_id } = b.open;
    b.send(A, Packet::PubAck(TopicAck { topic_id, msg_id, code }));
}

// None, Disconnected, Lost.

#[test]
fn unconnected_a_connect_makes_it_active() {
    each(|b| {
        says(b, connect("n1", false, b.how.clean), "CONNACK 00");
        says(b, PING, "PINGRESP");
    });
}

#[test]
fn unconnected_a_refused_connect_changes_nothing() {
    each_with(
        |settings| settings.sessions.max = 1,
        |b| {
            connected(b);
            b.send(B, connect("n2", false, true));
            b.expect(B, "CONNACK 01");
            b.send(B, connect("n2", true, true));
            b.expect(B, "CONNACK 01");
            b.send(B, PING);
            b.expect(B, "DISCONNECT");
            says(b, PING, "PINGRESP");
            assert_eq!((b.gw.sessions(), b.gw.counters().sessions_full), (1, 2));
        },
    );
}

#[test]
fn unconnected_a_disconnect_is_answered_once_in_ten_seconds() {
    each(|b| {
        for packet in [sleep(None), sleep(Some(600)), sleep(Some(0))] {
            says(b, packet, "DISCONNECT");
            says(b, packet, "-");
            b.pass(millis(9_999));
            says(b, packet, "-");
            b.pass(millis(1));
        }
        assert_eq!(b.gw.counters().disconnects_withheld, 6);
    });
}

/// N-09.
#[test]
fn unconnected_the_answer_to_a_disconnect_is_not_answered() {
    each(|b| {
        says(b, PING, "DISCONNECT");
        says(b, sleep(None), "-");
    });
}

#[test]
fn unconnected_what_needs_a_session_is_answered_once_a_second() {
    each(|b| {
        says(b, register(7, b"r/1"), "DISCONNECT");
        b.pass(millis(999));
        says(b, PING, "-");
        b.pass(millis(1));
        says(b, PING, "DISCONNECT");
    });
}

// Connecting.

#[test]
fn connecting_every_step_can_be_repeated() {
    each(|b| {
        let connect = connect("n1", true, b.how.clean);
        says(b, connect, "WILLTOPICREQ");
        says(b, connect, "WILLTOPICREQ");
        says(b, will_topic(b"will/x"), "WILLMSGREQ");
        says(b, will_topic(b"will/t"), "WILLMSGREQ");
        says(b, connect, "WILLTOPICREQ");
        says(b, Packet::WillMsg(WillMsg { message: b"early" }), "-");
        says(b, will_topic(b"will/t"), "WILLMSGREQ");
        says(b, Packet::WillMsg(WillMsg { message: b"gone" }), "CONNACK 00");
        says(b, Packet::WillMsg(WillMsg { message: b"gone" }), "CONNACK 00");
        says(b, PING, "PINGRESP");
        says(b, Packet::WillMsg(WillMsg { message: b"gone" }), "-");
        b.seen();
        b.pass(secs(661));
        assert_eq!(wills(b), 1);
    });
}

/// (N_RETRY + 1) T_RETRY after the last CONNECT.
#[test]
fn connecting_that_does_not_go_on_is_as_before() {
    each(|b| {
        says(b, connect("n1", true, b.how.clean), "WILLTOPICREQ");
        b.pass(millis(39_999));
        says(b, will_topic(b"will/t"), "WILLMSGREQ");
        b.pass(millis(1));
        b.expect(A, "-");
        says(b, Packet::WillMsg(WillMsg { message: b"gone" }), "-");
        says(b, PING, "DISCONNECT");
        assert_eq!((b.gw.sessions(), b.gw.counters().handshakes_expired), (0, 1));
    });
}

#[test]
fn connecting_over_a_session_that_does_not_go_on_leaves_the_session() {
    each(|b| {
        connected(b);
        says(b, connect("n1", true, true), "WILLTOPICREQ");
        b.pass(secs(41));
        b.expect(A, "-");
        b.publish("s/1", "x", QoS::AtMostOnce);
        b.expect(A, "PUBLISH s/1 q0 0 'x'");
    });
}

#[test]
fn connecting_a_disconnect_ends_it() {
    each(|b| {
        says(b, connect("n1", true, b.how.clean), "WILLTOPICREQ");
        says(b, sleep(None), "DISCONNECT");
        says(b, will_topic(b"will/t"), "-");
        assert_eq!(b.gw.sessions(), 0);
    });
}

#[test]
fn connecting_refused_by_the_broker_is_as_before() {
    for (code, told) in [
        (ConnectReturnCode::ServiceUnavailable, "CONNACK 01"),
        (ConnectReturnCode::NotAuthorized, "CONNACK 03"),
        (ConnectReturnCode::BadUserNamePassword, "CONNACK 03"),
        (ConnectReturnCode::BadClientId, "CONNACK 03"),
    ] {
        let mut bench = Bench::new(How { mode: Mode::Transparent, clean: false, forwarded: false });
        let b = &mut bench;
        b.refuse = Some(code);
        says(b, connect("n1", false, false), told);
        assert_eq!(b.gw.sessions(), 0);
        says(b, PING, "DISCONNECT");
        b.pass(secs(11));
        b.refuse = None;
        connected(b);
        b.refuse = Some(code);
        says(b, sleep(None), "DISCONNECT");
        says(b, connect("n1", false, false), told);
        b.refuse = None;
        // Still the session there was.
        says(b, connect("n1", false, false), "CONNACK 00");
        b.publish("s/1", "x", QoS::AtMostOnce);
        b.expect(A, "REGISTER s/1 n");
    }
}

// Active.

/// the same octets and nothing in between. Its CONNACK was lost.
#[test]
fn active_a_repeated_connect_is_answered_and_nothing_else() {
    each(|b| {
        let connect = connect("n1", false, b.how.clean);
        says(b, connect, "CONNACK 00");
        b.seen();
        says(b, connect, "CONNACK 00");
        b.expect_at_broker("-");
        says(b, register(4, b"u/1"), "REGACK u/1 4 00");
        let id = b.id(A, "u/1");
        // In full: something was in between.
        says(b, connect, "CONNACK 00");
        b.send(A, publish(TopicRef::Normal(id), Qos::AtLeastOnce, 8, "x", false));
        let heard = b.heard(A);
        assert!(heard.ends_with(if b.how.clean { " 8 02" } else { " 8 00" }), "{heard}");
    });
}

/// up to 60 s half as long again, longer ones a tenth; 0 is none.
#[test]
fn active_and_not_heard_for_its_keep_alive_it_is_lost_and_its_will_published_once() {
    for (duration, tolerated) in [(1, 1_500), (59, 88_500), (60, 90_000), (61, 67_100), (600, 660_000)] {
        each(|b| {
            connected_for(b, duration);
            b.pass(millis(tolerated - 1));
            assert_eq!(wills(b), 0);
            b.pass(millis(1));
            assert_eq!((wills(b), b.gw.counters().clients_lost), (1, 1));
            b.pass(secs(10_000));
            assert_eq!(wills(b), 0, "N-06");
            says(b, PING, "DISCONNECT");
            assert_eq!(b.gw.sessions(), usize::from(!b.how.clean));
        });
    }
    each(|b| {
        connected_for(b, 0);
        b.pass(secs(1_000_000));
        says(b, PING, "PINGRESP");
        assert_eq!(wills(b), 0);
    });
}

/// what is no valid message of the client's is no sign of life.
#[test]
fn active_any_message_of_the_client_is_a_sign_of_life_and_nothing_else_is() {
    let deaf = ["ADVERTISE", "GWINFO", "SEARCHGW", "from gateways", "reserved", "malformed", "CONNECT n2"];
    let leaves = ["DISCONNECT", "DISCONNECT 600", "CONNECT refused"];
    for how in hows() {
        for (name, _) in rows().iter().filter(|(name, _)| !leaves.contains(&name.as_str())) {
            let count = messages(name, &stage(how, "active")).len();
            for index in 0..count {
                let mut bench = stage(how, "active");
                bench.pass(secs(400));
                let message = messages(name, &bench).swap_remove(index);
                // n2 comes from elsewhere.
                bench.send_octets(if name == "CONNECT n2" { B } else { A }, &message.octets);
                bench.forget();
                bench.pass(secs(300));
                // Outside a handshake these two mean nothing.
                let stray = name.starts_with("WILLTOPIC") && !name.contains("UPD") || name == "WILLMSG";
                if !stray {
                    let lost = bench.gw.counters().clients_lost == 1;
                    assert_eq!(lost, deaf.contains(&name.as_str()), "{name} ({index}) {how:?}");
                }
            }
        }
    }
}

#[test]
fn active_a_disconnect_ends_the_connection_without_a_will() {
    each(|b| {
        connected(b);
        says(b, sleep(None), "DISCONNECT");
        b.pass(secs(10_000));
        assert_eq!(wills(b), 0, "N-06");
        assert_eq!(b.gw.sessions(), usize::from(!b.how.clean));
    });
}

/// for a message. Nothing was heard of it since it left for the first time.
#[test]
fn active_and_deaf_to_all_repetitions_it_is_lost() {
    each(|b| {
        connected(b);
        b.publish("s/1", "x", QoS::AtLeastOnce);
        b.expect(A, "PUBLISH s/1 q1 n 'x'");
        for _ in 0..3 {
            b.pass(millis(9_999));
            b.expect(A, "-");
            b.pass(millis(1));
            b.expect(A, "PUBLISH s/1 q1 m 'x' dup");
        }
        b.seen();
        b.pass(secs(10));
        b.expect(A, "-");
        assert_eq!((wills(b), b.gw.counters().clients_lost), (1, 1));
    });
}

#[test]
fn active_and_heard_it_is_not_lost_over_a_message_and_the_next_one_follows() {
    each(|b| {
        connected(b);
        b.publish("s/1", "x", QoS::AtLeastOnce);
        b.publish("s/1", "y", QoS::AtLeastOnce);
        // Three rounds of four, the client heard in each.
        for _ in 0..2 {
            b.pass(secs(39));
            b.forget();
            says(b, PING, "PINGRESP");
            b.pass(secs(1));
            b.expect(A, "PUBLISH s/1 q1 m 'x' dup");
        }
        b.pass(secs(30));
        b.forget();
        says(b, PING, "PINGRESP");
        b.pass(secs(10));
        b.expect(A, "PUBLISH s/1 q1 n 'y'");
        assert_eq!((wills(b), b.gw.counters().downlink_unanswered), (0, 1));
    });
}

/// In aggregating mode no client's connection hangs on the broker.
#[test]
fn active_when_its_link_is_lost_for_good_it_is_told() {
    each(|b| {
        connected(b);
        b.unreachable = true;
        b.hang_up();
        b.pass(secs(50));
        says(b, PING, "PINGRESP");
        b.pass(secs(50));
        let told = b.heard(A);
        match b.how.mode {
            Mode::Aggregating => assert_eq!(told, "-"),
            Mode::Transparent => assert_eq!(told, "DISCONNECT"),
        }
        b.unreachable = false;
        b.pass(secs(60));
        assert_eq!(wills(b), 0, "N-06");
    });
}

// Asleep.

/// N-03, N-05; R-139: the keep-alive is not supervised.
#[test]
fn asleep_nothing_is_sent_and_the_keep_alive_does_not_count() {
    each(|b| {
        connected_for(b, 10);
        says(b, subscribe(1, Qos::ExactlyOnce, FilterRef::Name(b"s/1")), "SUBACK q2 s/1 1 00");
        says(b, sleep(Some(600)), "DISCONNECT");
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            b.publish("s/1", "x", qos);
        }
        b.pass(millis(659_999));
        b.expect(A, "-");
        assert_eq!((wills(b), b.gw.waiting_messages()), (0, 3));
    });
}

///
#[test]
fn asleep_and_not_heard_for_its_duration_it_is_lost_and_its_will_published_once() {
    for (duration, tolerated) in [(60, 90_000), (61, 67_100), (65_535, 72_088_500)] {
        each(|b| {
            connected_for(b, 60);
            says(b, sleep(Some(duration)), "DISCONNECT");
            b.pass(millis(tolerated - 1));
            assert_eq!(wills(b), 0);
            b.pass(millis(1));
            assert_eq!((wills(b), b.gw.counters().clients_lost), (1, 1));
            b.expect(A, "-");
            b.pass(secs(10_000));
            assert_eq!(wills(b), 0, "N-06");
            says(b, PING, "DISCONNECT");
        });
    }
}

#[test]
fn asleep_a_pingreq_is_answered_and_the_time_begins_again() {
    each(|b| {
        connected(b);
        says(b, sleep(Some(60)), "DISCONNECT");
        for _ in 0..3 {
            b.pass(millis(89_999));
            says(b, Packet::PingReq(PingReq { client_id: b"n1" }), "PINGRESP");
        }
        b.pass(millis(89_999));
        assert_eq!(wills(b), 0);
        b.pass(millis(1));
        assert_eq!(wills(b), 1);
    });
}

///
#[test]
fn asleep_other_messages_are_served_and_the_time_begins_again() {
    each(|b| {
        connected(b);
        let u = TopicRef::Normal(b.id(A, "u/1"));
        says(b, sleep(Some(60)), "DISCONNECT");
        b.pass(millis(89_999));
        says(b, publish(u, Qos::AtLeastOnce, 8, "x", false), "PUBACK u/1 8 00");
        b.pass(millis(89_999));
        says(b, publish(TopicRef::Short(*b"ab"), Qos::MinusOne, 0, "x", false), "-");
        b.pass(millis(89_999));
        assert_eq!(b.gw.counters().clients_lost, 0);
        b.publish("s/1", "x", QoS::AtLeastOnce);
        b.expect(A, "-");
        says(b, PING, "PUBLISH s/1 q1 n 'x'");
    });
}

///
#[test]
fn asleep_another_duration_takes_the_place_of_the_first() {
    each(|b| {
        connected(b);
        says(b, sleep(Some(600)), "DISCONNECT");
        says(b, sleep(Some(10)), "DISCONNECT");
        says(b, sleep(Some(10)), "DISCONNECT");
        b.pass(millis(14_999));
        assert_eq!(wills(b), 0);
        b.pass(millis(1));
        assert_eq!(wills(b), 1);
    });
}

/// by the procedure of Active clients, without PINGRESP.
#[test]
fn asleep_a_connect_makes_it_active_and_brings_what_waits() {
    each(|b| {
        connected(b);
        says(b, sleep(Some(600)), "DISCONNECT");
        b.publish("s/1", "x", QoS::AtMostOnce);
        b.send(A, connect("n1", false, b.how.clean));
        if b.how.clean {
            b.expect(A, "CONNACK 00");
            return;
        }
        b.expect(A, "CONNACK 00, REGISTER s/1 n");
        let Open { msg_id, topic_id } = b.open;
        says(
            b,
            Packet::RegAck(TopicAck { topic_id, msg_id, code: ReturnCode::Accepted }),
            "PUBLISH s/1 q0 0 'x'",
        );
    });
}

#[test]
fn asleep_a_disconnect_ends_the_connection_without_a_will() {
    each(|b| {
        connected(b);
        says(b, sleep(Some(600)), "DISCONNECT");
        says(b, sleep(None), "DISCONNECT");
        b.pass(secs(10_000));
        assert_eq!(wills(b), 0, "N-06");
        assert_eq!(b.gw.sessions(), usize::from(!b.how.clean));
    });
}

// Awake.

fn awake(b: &mut Bench) {
    connected(b);
    says(b, sleep(Some(600)), "DISCONNECT");
    b.publish("s/1", "x", QoS::AtLeastOnce);
    b.publish("s/1", "y", QoS::AtLeastOnce);
    says(b, PING, "PUBLISH s/1 q1 n 'x'");
}

/// the time begins after PINGRESP.
#[test]
fn awake_when_it_has_everything_it_sleeps_on() {
    each(|b| {
        awake(b);
        acks(b, ReturnCode::Accepted);
        b.expect(A, "PUBLISH s/1 q1 n 'y'");
        b.pass(secs(5));
        acks(b, ReturnCode::Accepted);
        b.expect(A, "PINGRESP");
        b.publish("s/1", "z", QoS::AtLeastOnce);
        b.pass(millis(659_999));
        b.expect(A, "-");
        assert_eq!(wills(b), 0);
        b.pass(millis(1));
        assert_eq!(wills(b), 1);
    });
}

/// without PINGRESP; the time begins with the last that was heard of it.
#[test]
fn awake_and_silent_it_sleeps_on_and_the_message_stays_first() {
    each(|b| {
        awake(b);
        b.pass(secs(30));
        b.expect(A, "PUBLISH s/1 q1 m 'x' dup, PUBLISH s/1 q1 m 'x' dup, PUBLISH s/1 q1 m 'x' dup");
        b.pass(millis(629_999));
        b.expect(A, "-");
        says(b, PING, "PUBLISH s/1 q1 m 'x' dup");
        b.pass(secs(40));
        b.forget();
        b.pass(millis(619_999));
        assert_eq!(wills(b), 0);
        b.pass(millis(1));
        assert_eq!(wills(b), 1);
    });
}

#[test]
fn awake_asked_again_it_gets_what_is_open_again() {
    each(|b| {
        awake(b);
        says(b, PING, "PUBLISH s/1 q1 m 'x' dup");
        acks(b, ReturnCode::Accepted);
        b.expect(A, "PUBLISH s/1 q1 n 'y'");
        says(b, PING, "PUBLISH s/1 q1 m 'y' dup");
        acks(b, ReturnCode::Accepted);
        b.expect(A, "PINGRESP");
    });
}

/// the rest stays, and no PINGRESP follows.
#[test]
fn awake_a_disconnect_with_a_duration_ends_the_drain() {
    each(|b| {
        awake(b);
        says(b, sleep(Some(10)), "DISCONNECT");
        b.pass(millis(14_999));
        b.expect(A, "-");
        says(b, PING, "PUBLISH s/1 q1 m 'x' dup");
        acks(b, ReturnCode::Accepted);
        b.expect(A, "PUBLISH s/1 q1 n 'y'");
    });
}

#[test]
fn awake_a_disconnect_ends_the_connection() {
    each(|b| {
        awake(b);
        says(b, sleep(None), "DISCONNECT");
        b.pass(secs(10_000));
        b.expect(A, "-");
        assert_eq!((wills(b), b.gw.sessions()), (0, usize::from(!b.how.clean)));
    });
}

// From anywhere.

/// at most one DISCONNECT to where it was, no Will, and the session goes along.
#[test]
fn connected_from_elsewhere_its_session_goes_along() {
    for state in ["active", "asleep", "gone", "reg", "pub1", "rel", "awake-pub1"] {
        for how in hows() {
            let mut bench = stage(how, state);
            bench.send(B, connect("n1", false, how.clean));
            let told = bench.frames_to(A);
            let listens = !["asleep", "gone"].contains(&state);
            assert_eq!(told, if listens { "DISCONNECT" } else { "-" }, "{state} {how:?}");
            assert!(bench.heard(B).starts_with("CONNACK 00"));
            bench.pass(secs(11));
            bench.forget();
            bench.send(A, PING);
            assert_eq!(bench.frames_to(A), "DISCONNECT");
            bench.forget();
            bench.send(B, PING);
            bench.expect(B, "PINGRESP");
            assert_eq!(bench.gw.sessions(), 1);
            bench.pass(secs(900));
            assert!(bench.seen().matches("will/t").count() <= usize::from(!how.clean), "N-06");
        }
    }
}

///
#[test]
fn gone_or_lost_a_persistent_session_ends_with_its_life_time() {
    for state in ["gone", "lost"] {
        for how in hows() {
            let mut bench = stage(how, state);
            assert_eq!(bench.gw.sessions(), usize::from(!how.clean));
            bench.pass(secs(86_400 - 12));
            assert_eq!(bench.gw.sessions(), usize::from(!how.clean), "{state}");
            bench.pass(secs(12));
            assert_eq!(bench.gw.sessions(), 0, "{state}");
            bench.send(A, connect("n1", false, false));
            bench.expect(A, "CONNACK 00");
            bench.publish("s/1", "x", QoS::AtLeastOnce);
            bench.expect(A, "-");
        }
    }
}

// What CleanSession and Will do to a session.

#[test]
fn the_flags_of_a_connect_say_what_is_left_of_the_session() {
    for (clean, will, subscribed, willing) in [
        (true, true, false, "PUBLISH new q1 'gone'"),
        (true, false, false, "-"),
        (false, true, true, "PUBLISH new q1 'gone'"),
        (false, false, true, "PUBLISH will/t q1 'gone'"),
    ] {
        for how in hows().into_iter().filter(|how| !how.clean) {
            for state in ["active", "gone", "lost", "asleep"] {
                let mut bench = stage(how, state);
                let b = &mut bench;
                b.send(A, connect("n1", will, clean));
                if will {
                    b.send(A, will_topic(b"new"));
                    b.send(A, Packet::WillMsg(WillMsg { message: b"gone" }));
                }
                assert!(b.heard(A).ends_with("CONNACK 00"));
                b.publish("s/1", "x", QoS::AtMostOnce);
                assert_eq!(b.heard(A), if subscribed { "REGISTER s/1 n" } else { "-" }, "{state} {how:?}");
                // It will not have the name.
                let Open { msg_id, topic_id } = b.open;
                b.send(A, Packet::RegAck(TopicAck { topic_id, msg_id, code: ReturnCode::NotSupported }));
                b.seen();
                b.pass(secs(661));
                let seen = b.seen();
                let found = seen.split(", ").find(|text| text.starts_with("PUBLISH")).unwrap_or("-");
                assert_eq!(found, willing, "{state} {how:?}");
            }
        }
    }
}

/// also a Will of an earlier connection.
#[test]
fn an_empty_will_topic_deletes_the_will_there_was() {
    for how in hows() {
        for state in ["active", "gone", "lost", "asleep"] {
            let mut bench = stage(how, state);
            let b = &mut bench;
            says(b, connect("n1", true, how.clean), "WILLTOPICREQ");
            says(b, Packet::WillTopic(WillTopic::EMPTY), "CONNACK 00");
            b.seen();
            b.pass(secs(661));
            assert_eq!(
                (wills(b), b.gw.counters().clients_lost),
                (0, 1 + u64::from(state == "lost")),
                "{state}"
            );
        }
    }
}
