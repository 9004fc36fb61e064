//! Conversations of a node with its gateway on a virtual clock.

use proptest::prelude::*;

use super::*;
use crate::topic::{ClientId, TopicFilter, TopicName};

const CONNECT: &str = "08 04 04 01 00 3C 63 31";
const CONNACK: &str = "03 05 00";
const PUBLISH_A: &str = "08 0C 20 00 07 00 02 61"; // QoS 1, id 7, MsgId 2, "a"
const NOTHING: [&str; 0] = [];
const QUIET: [Event; 0] = [];

// Connection

#[test]
fn connect_is_answered_by_connack() {
    let mut t = Talk::new(options());
    t.node.connect(t.now);
    t.sends([CONNECT]);
    t.hears(CONNACK).tells([Event::Connected]);
    assert!(t.node.is_connected());
}

#[test]
fn the_will_is_given_when_asked_for() {
    let mut t = Talk::new(Options { will: Some(will()), clean_session: false, ..options() });
    t.node.connect(t.now);
    t.sends(["08 04 08 01 00 3C 63 31"]);
    t.hears("02 06").sends(["06 07 30 77 2F 31"]);
    t.hears("02 08").sends(["05 09 62 79 65"]);
    t.hears(CONNACK).tells([Event::Connected]);
}

#[test]
fn each_step_of_the_handshake_is_repeated_and_a_repeated_prompt_answered() {
    let mut t = Talk::new(Options { will: Some(will()), clean_session: false, ..options() });
    t.node.connect(t.now);
    t.sends(["08 04 08 01 00 3C 63 31"]);
    t.wait(10).sends(["08 04 08 01 00 3C 63 31"]);
    t.hears("02 06").sends(["06 07 30 77 2F 31"]);
    t.wait(10).sends(["06 07 30 77 2F 31"]);
    t.hears("02 06").sends(["06 07 30 77 2F 31"]);
    t.hears("02 08").sends(["05 09 62 79 65"]);
    t.wait(10).sends(["05 09 62 79 65"]);
    t.hears(CONNACK).tells([Event::Connected]);
    t.hears("02 06").sends(["06 07 30 77 2F 31"]); // a late copy of CONNECT opened a handshake
    t.hears("02 08").sends(["05 09 62 79 65"]);
}

#[test]
fn after_n_retry_repetitions_the_gateway_counts_as_lost() {
    let mut t = Talk::new(options());
    t.node.connect(t.now);
    t.sends([CONNECT]);
    for _ in 0..3 {
        t.deadline(10).sends([CONNECT]);
    }
    t.deadline(10).sends(NOTHING).tells([Event::ConnectionLost(Loss::NoAnswer)]);
    assert_eq!(t.node.poll_timeout(), None);
    t.hears(CONNACK).tells(QUIET);
    assert_eq!(t.node.counters().stale, 1);
}

#[test]
fn a_refusal_ends_the_attempt() {
    let mut t = Talk::new(Options { reconnect: Some(Backoff::default()), ..options() });
    t.node.connect(t.now);
    t.sends([CONNECT]);
    t.hears("03 05 03").tells([Event::ConnectRefused(ReturnCode::NotSupported)]);
    assert_eq!(t.node.poll_timeout(), None, "what is not supported is not asked for again");
    t.node.connect(t.now);
    t.sends([CONNECT]);
    t.hears("03 05 01").tells([Event::ConnectRefused(ReturnCode::Congestion)]);
    t.wait(1).sends([CONNECT]);
}

#[test]
fn disconnect_is_repeated_until_answered() {
    let mut t = Talk::connected(options());
    t.node.disconnect(t.now);
    t.sends(["02 18"]);
    t.deadline(10).sends(["02 18"]);
    t.hears("02 18").sends(NOTHING).tells([Event::Disconnected]);
    t.hears("02 18").sends(NOTHING).tells(QUIET); // N-09
}

#[test]
fn disconnect_ends_even_if_nobody_answers() {
    let mut t = Talk::connected(options());
    t.node.disconnect(t.now);
    for _ in 0..4 {
        t.sends(["02 18"]);
        t.deadline(10);
    }
    t.sends(NOTHING).tells([Event::Disconnected]);
    t.node.disconnect(t.now);
    t.sends(NOTHING).tells([Event::Disconnected]);
}

#[test]
fn disconnect_from_the_gateway_is_a_loss_and_not_answered() {
    let mut t = Talk::connected(options());
    t.hears("02 18").sends(NOTHING).tells([Event::ConnectionLost(Loss::Disconnected)]);
}

#[test]
fn reconnections_wait_longer_each_time_and_not_all_nodes_the_same() {
    let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(8) };
    let waits = |seed| {
        let mut t = Talk::new(Options { reconnect: Some(backoff), retry_limit: 0, seed, ..options() });
        t.node.connect(t.now);
        t.sends([CONNECT]);
        (0..6)
            .map(|_| {
                t.deadline(10).tells([Event::ConnectionLost(Loss::NoAnswer)]);
                let wait = t.node.poll_timeout().unwrap() - t.now;
                t.now += wait;
                t.tick().sends([CONNECT]);
                wait.as_millis()
            })
            .collect::<Vec<_>>()
    };
    for (wait, longest) in waits(1).into_iter().zip([1000, 2000, 4000, 8000, 8000, 8000]) {
        assert!(wait <= longest && wait >= longest * 3 / 4, "{wait} of {longest}");
    }
    assert_ne!(waits(1), waits(2));
    assert_eq!(waits(1), waits(1));
}

// Keep-alive

#[test]
fn pingreq_leaves_early_enough_to_be_repeated_within_the_keep_alive() {
    let mut t = Talk::connected(options());
    t.deadline(50).sends(["02 16"]);
    t.deadline(10).sends(["02 16"]);
    t.hears("02 17").tells(QUIET);
    t.deadline(50).sends(["02 16"]);
    for _ in 0..3 {
        t.deadline(10).sends(["02 16"]);
    }
    t.deadline(10).sends(NOTHING).tells([Event::ConnectionLost(Loss::NoAnswer)]);
}

#[test]
fn an_answered_request_spares_a_pingreq_and_an_unanswered_frame_does_not() {
    let mut t = Talk::connected(options());
    t.wait(20);
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    t.sends(["08 0C 21 00 07 00 01 61"]);
    t.hears("07 0D 00 07 00 01 00").tells([published(0, Outcome::Acknowledged)]);
    t.wait(20);
    t.publish(Topic::Predefined(7), Qos::AtMostOnce);
    t.sends(["08 0C 01 00 07 00 00 61"]).tells([published(1, Outcome::Sent)]);
    t.deadline(30).sends(["02 16"]);
}

#[test]
fn no_keep_alive_no_pingreq() {
    let t =
        Talk::connected_by("08 04 04 01 00 00 63 31", Options { keep_alive: Duration::ZERO, ..options() });
    assert_eq!(t.node.poll_timeout(), None);
}

#[test]
fn pingreq_of_the_gateway_is_answered() {
    Talk::connected(options()).hears("02 16").sends(["02 17"]);
}

// Sleep

const SLEEP_60: &str = "04 18 00 3C";
const PING_C1: &str = "04 16 63 31";

#[test]
fn a_sleeper_fetches_what_waits_and_sleeps_on() {
    let mut t = asleep(options());
    assert_eq!((t.node.is_asleep(), t.node.is_connected(), t.node.poll_timeout()), (true, false, None));
    t.node.wake(t.now);
    t.sends([PING_C1]);
    t.hears("07 0A 00 07 00 01 61").sends(["07 0B 00 07 00 01 00"]);
    t.hears("08 0C 20 00 07 00 02 78").sends(["07 0D 00 07 00 02 00"]);
    t.hears("08 0C A0 00 07 00 02 78").sends(["07 0D 00 07 00 02 00"]);
    t.hears("08 0C 40 00 07 00 03 79").sends(["04 0F 00 03"]);
    t.hears("04 10 00 03").sends(["04 0E 00 03"]);
    t.hears("08 0C 00 00 07 00 00 7A").sends(NOTHING);
    assert_eq!(t.node.counters().messages, 3);
    assert_eq!(t.messages().len(), 3);
    t.hears("02 17").sends(NOTHING).tells([Event::Drained { messages: 3 }]);
    t.node.wake(t.now);
    t.sends([PING_C1]);
    t.hears("02 17").tells([Event::Drained { messages: 0 }]);
}

#[test]
fn asleep_nothing_is_sent_and_nothing_taken() {
    let mut t = asleep(options());
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    t.subscribe("s", Qos::AtMostOnce);
    t.wait(1000).sends(NOTHING).tells(QUIET);
    for frame in
        ["08 0C 22 61 62 00 09 78", "07 0A 00 07 00 01 61", "02 16", "02 17", "02 18", "02 06", CONNACK]
    {
        t.hears(frame).sends(NOTHING).tells(QUIET);
    }
    assert_eq!(t.node.counters().slept_through, 7);
    t.publish(Topic::Short(*b"ab"), Qos::MinusOne);
    t.sends(["08 0C 62 61 62 00 00 61"]).tells([published(1, Outcome::Sent)]);
}

#[test]
fn what_is_published_asleep_waits_for_a_connection() {
    let connect = "08 04 00 01 00 3C 63 31";
    let mut t = Talk::connected_by(connect, Options { clean_session: false, ..options() });
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    t.sends(["08 0C 21 00 07 00 01 61"]);
    t.node.sleep(t.now, Duration::from_secs(60));
    t.sends([SLEEP_60]);
    t.hears("02 18").tells([Event::Asleep]);
    t.publish(Topic::Predefined(8), Qos::AtMostOnce);
    t.node.wake(t.now);
    t.sends([PING_C1]);
    t.hears("07 0D 00 07 00 01 00").tells(QUIET); // late, and the message stays
    t.node.connect(t.now);
    t.sends([connect]);
    t.hears(CONNACK).sends(["08 0C A1 00 07 00 01 61"]);
    t.hears("07 0D 00 07 00 01 00").sends(["08 0C 01 00 08 00 00 61"]);
    t.tells([Event::Connected, published(0, Outcome::Acknowledged), published(1, Outcome::Sent)]);
}

#[test]
fn falling_asleep_is_repeated_until_answered_and_messages_are_taken_meanwhile() {
    let mut t = Talk::connected(options());
    t.node.sleep(t.now, Duration::from_secs(60));
    t.sends([SLEEP_60]);
    t.hears("08 0C 22 61 62 00 09 78").sends(["07 0D 61 62 00 09 00"]);
    assert_eq!(t.messages().len(), 1);
    t.node.connect(t.now); // not before the answer
    t.node.wake(t.now);
    t.deadline(10).sends([SLEEP_60]);
    t.hears("02 18").tells([Event::Asleep]);
    t.node.wake(t.now);
    t.sends([PING_C1]);
    t.hears("02 18").sends(NOTHING).tells(QUIET); // the answer to the repetition
    t.hears("02 18").tells([Event::ConnectionLost(Loss::Disconnected)]);
}

#[test]
fn a_sleeper_wakes_by_itself_at_least_as_often_as_the_gateway_was_told() {
    for (every, seconds) in [(7, 7), (600, 60)] {
        let mut t = asleep(Options { wake_every: Some(Duration::from_secs(every)), ..options() });
        for _ in 0..3 {
            t.deadline(seconds).sends([PING_C1]);
            t.hears("02 17").tells([Event::Drained { messages: 0 }]);
        }
    }
    let t = asleep(Options { wake_every: Some(Duration::ZERO), ..options() });
    assert!(t.node.poll_timeout() > Some(t.now));
}

#[test]
fn a_pingreq_is_repeated_and_what_comes_gives_it_time() {
    let mut t = asleep(Options { retry_limit: 1, ..options() });
    t.node.wake(t.now);
    t.sends([PING_C1]);
    t.deadline(10).sends([PING_C1]);
    for id in 1..5 {
        t.now += Duration::from_secs(9);
        t.tick()
            .hears(&format!("08 0C 22 61 62 00 {id:02X} 78"))
            .sends([format!("07 0D 61 62 00 {id:02X} 00")]);
    }
    t.messages();
    t.deadline(10).sends([PING_C1]);
    t.deadline(10).sends(NOTHING).tells([Event::ConnectionLost(Loss::NoAnswer)]);
}

#[test]
fn a_sleeper_whom_nobody_answers_or_knows_connects_anew() {
    let reconnect = Some(Backoff::default());
    let mut t = Talk::connected(Options { reconnect, retry_limit: 0, ..options() });
    t.node.sleep(t.now, Duration::from_secs(60));
    t.sends([SLEEP_60]);
    t.deadline(10).tells([Event::ConnectionLost(Loss::NoAnswer)]);
    t.wait(1).sends([CONNECT]);
    t.hears(CONNACK).tells([Event::Connected]);
    t.node.sleep(t.now, Duration::from_secs(60));
    t.sends([SLEEP_60]);
    t.hears("02 18").tells([Event::Asleep]);
    t.node.wake(t.now);
    t.sends([PING_C1]);
    t.hears("02 18").tells([Event::ConnectionLost(Loss::Disconnected)]);
    t.wait(1).sends([CONNECT]);
    t.hears(CONNACK).tells([Event::Connected]);
}

#[test]
fn the_duration_is_whole_seconds_and_may_change_in_sleep() {
    let mut t = asleep(options());
    for (duration, frame) in [
        (Duration::ZERO, "04 18 00 01"),
        (Duration::from_millis(1001), "04 18 00 02"),
        (Duration::from_secs(100_000), "04 18 FF FF"),
        (Duration::MAX, "04 18 FF FF"),
    ] {
        t.node.sleep(t.now, duration);
        t.sends([frame]);
        t.hears("02 18").tells([Event::Asleep]);
    }
    t.node.disconnect(t.now);
    t.sends(["02 18"]);
    t.hears("02 18").tells([Event::Disconnected]);
    t.node.sleep(t.now, Duration::from_secs(60));
    t.node.wake(t.now);
    t.sends(NOTHING);
}

// Messages to the gateway

#[test]
fn a_name_is_registered_once_and_then_published_on() {
    let mut t = Talk::connected(options());
    t.publish(name("a/b"), Qos::AtLeastOnce);
    t.publish(name("a/b"), Qos::AtMostOnce);
    t.sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.hears("07 0B 00 07 00 01 00").sends([PUBLISH_A]);
    t.hears("07 0D 00 07 00 02 00")
        .sends(["08 0C 00 00 07 00 00 61"])
        .tells([published(0, Outcome::Acknowledged), published(1, Outcome::Sent)]);
    assert_eq!(t.node.pending(), 0);
}

#[test]
fn register_and_publish_are_repeated_with_the_same_msg_id() {
    let mut t = Talk::connected(options());
    t.publish(name("a/b"), Qos::AtLeastOnce);
    t.sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.deadline(10).sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.hears("07 0B 00 07 00 01 00").sends([PUBLISH_A]);
    t.deadline(10).sends(["08 0C A0 00 07 00 02 61"]);
    t.hears("07 0B 00 08 00 01 00").sends(NOTHING); // the answer to the repeated REGISTER
    t.hears("07 0D 00 07 00 02 00").tells([published(0, Outcome::Acknowledged)]);
    t.hears("07 0D 00 07 00 02 00").tells(QUIET);
    assert_eq!(t.node.counters().retransmissions, 2);
    assert_eq!(t.node.counters().stale, 2);
}

#[test]
fn only_one_message_is_open_at_a_time_and_order_is_kept() {
    let mut t = Talk::connected(options());
    for topic in [1, 2, 3] {
        t.publish(Topic::Predefined(topic), Qos::AtLeastOnce);
    }
    t.publish(Topic::Predefined(4), Qos::AtMostOnce);
    t.sends(["08 0C 21 00 01 00 01 61"]);
    t.hears("07 0D 00 01 00 01 00").sends(["08 0C 21 00 02 00 02 61"]);
    t.hears("07 0D 00 01 00 01 00").sends(NOTHING);
    t.hears("07 0D 00 02 00 02 03").sends(["08 0C 21 00 03 00 03 61"]);
    t.hears("07 0D 00 03 00 03 00").sends(["08 0C 01 00 04 00 00 61"]);
    t.tells([
        published(0, Outcome::Acknowledged),
        published(1, Outcome::Refused(ReturnCode::NotSupported)),
        published(2, Outcome::Acknowledged),
        published(3, Outcome::Sent),
    ]);
}

#[test]
fn qos_2_takes_four_messages_each_repeated_where_its_answer_is_missing() {
    let mut t = Talk::connected(options());
    t.publish(Topic::Short(*b"ab"), Qos::ExactlyOnce);
    t.sends(["08 0C 42 61 62 00 01 61"]);
    t.deadline(10).sends(["08 0C C2 61 62 00 01 61"]);
    t.hears("07 0D 61 62 00 01 00").tells(QUIET); // PUBACK does not settle QoS 2
    t.hears("04 0F 00 01").sends(["04 10 00 01"]);
    t.deadline(10).sends(["04 10 00 01"]);
    t.hears("04 0F 00 01").sends(["04 10 00 01"]);
    t.hears("04 0E 00 01").tells([published(0, Outcome::Acknowledged)]);
    t.hears("04 0F 00 01").sends(NOTHING);
}

#[test]
fn an_unknown_topic_id_is_registered_again_a_few_times() {
    let mut t = Talk::connected(options());
    t.publish(name("a/b"), Qos::AtLeastOnce);
    let mut msg_id = 1;
    for round in 0..4 {
        t.sends([format!("09 0A 00 00 00 {msg_id:02X} 61 2F 62")]);
        t.hears(&format!("07 0B 00 07 00 {msg_id:02X} 00"));
        t.sends([format!("08 0C 20 00 07 00 {:02X} 61", msg_id + 1)]);
        t.hears(&format!("07 0D 00 07 00 {:02X} 02", msg_id + 1));
        msg_id += 2;
        if round < 3 {
            t.tells([Event::Restarted]);
        }
    }
    t.tells([published(0, Outcome::Refused(ReturnCode::InvalidTopicId))]);
    t.publish(Topic::Predefined(9), Qos::AtLeastOnce);
    t.sends(["08 0C 21 00 09 00 09 61"]);
    t.hears("07 0D 00 09 00 09 02").tells([published(1, Outcome::Refused(ReturnCode::InvalidTopicId))]);
}

#[test]
fn a_refusal_with_another_topic_id_is_of_a_late_copy_and_changes_nothing() {
    let mut t = Talk::connected(options());
    t.publish(name("a/b"), Qos::ExactlyOnce);
    t.sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.hears("07 0B 00 07 00 01 00").sends(["08 0C 40 00 07 00 02 61"]);
    t.hears("07 0D 00 05 00 02 02").sends(NOTHING);
    t.hears("04 0F 00 02").sends(["04 10 00 02"]);
    t.hears("04 0E 00 02").tells([published(0, Outcome::Acknowledged)]);
}

#[test]
fn a_refused_qos_0_message_makes_the_name_be_registered_again() {
    let mut t = Talk::connected(options());
    t.publish(name("a/b"), Qos::AtMostOnce);
    t.sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.hears("07 0B 00 07 00 01 00").sends(["08 0C 00 00 07 00 00 61"]);
    t.hears("07 0D 00 07 00 00 02");
    t.tells([published(0, Outcome::Sent), Event::Refused(ReturnCode::InvalidTopicId), Event::Restarted]);
    t.publish(name("a/b"), Qos::AtMostOnce);
    t.sends(["09 0A 00 00 00 02 61 2F 62"]);
}

#[test]
fn the_refusal_of_a_qos_0_message_is_told_also_to_who_takes_leave() {
    let mut t = Talk::connected(options());
    t.publish(Topic::Predefined(7), Qos::AtMostOnce);
    t.sends(["08 0C 01 00 07 00 00 61"]);
    t.hears("07 0D 00 07 00 00 01");
    t.tells([published(0, Outcome::Sent), Event::Refused(ReturnCode::Congestion)]);
    t.hears("07 0D 00 07 00 00 00").tells(QUIET);
    t.node.disconnect(t.now);
    t.sends(["02 18"]);
    t.hears("07 0D 00 07 00 00 03").tells([Event::Refused(ReturnCode::NotSupported)]);
    t.hears("07 0D 00 07 00 05 01").tells(QUIET);
    t.hears("02 18").tells([Event::Disconnected]);
    t.hears("07 0D 00 07 00 00 03").tells(QUIET);
}

#[test]
fn congestion_refuses_a_message_or_delays_it() {
    let mut t = Talk::connected(options());
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    t.sends(["08 0C 21 00 07 00 01 61"]);
    t.hears("07 0D 00 07 00 01 01").tells([published(0, Outcome::Refused(ReturnCode::Congestion))]);

    let wait = Some(Duration::from_secs(30));
    let mut t = Talk::connected(Options { congestion_wait: wait, ..options() });
    t.publish(Topic::Predefined(7), Qos::ExactlyOnce);
    t.sends(["08 0C 41 00 07 00 01 61"]);
    t.hears("07 0D 00 07 00 01 01").tells(QUIET);
    t.publish(Topic::Predefined(7), Qos::AtMostOnce);
    t.wait(29).sends(NOTHING);
    t.wait(1).sends(["08 0C C1 00 07 00 01 61"]); // same MsgId: the gateway may have taken the first one
    t.hears("04 0F 00 01").sends(["04 10 00 01"]);
}

#[test]
fn a_refused_name_refuses_its_message() {
    let mut t = Talk::connected(options());
    t.publish(name("a/b"), Qos::AtLeastOnce);
    t.sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.hears("07 0B 00 00 00 01 03").tells([published(0, Outcome::Refused(ReturnCode::NotSupported))]);
    t.publish(name("a/b"), Qos::AtLeastOnce);
    t.sends(["09 0A 00 00 00 02 61 2F 62"]);
    t.hears("07 0B 00 00 00 02 00").tells([published(1, Outcome::Refused(ReturnCode::InvalidTopicId))]);
}

#[test]
fn without_reconnection_an_unanswered_message_is_given_up_and_the_rest_waits() {
    let mut t = Talk::connected(options());
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    t.publish(Topic::Predefined(8), Qos::AtLeastOnce);
    t.sends(["08 0C 21 00 07 00 01 61"]);
    for _ in 0..3 {
        t.deadline(10).sends(["08 0C A1 00 07 00 01 61"]);
    }
    t.deadline(10).tells([published(0, Outcome::GaveUp), Event::ConnectionLost(Loss::NoAnswer)]);
    assert_eq!(t.node.pending(), 1);
    t.node.connect(t.now);
    t.sends([CONNECT]);
    t.hears(CONNACK).sends(["08 0C 21 00 08 00 02 61"]);
}

#[test]
fn qos_minus_one_needs_no_connection_and_no_name() {
    let mut t = Talk::new(options());
    t.publish(Topic::Predefined(7), Qos::MinusOne);
    t.publish(Topic::Short(*b"ab"), Qos::MinusOne);
    t.sends(["08 0C 61 00 07 00 00 61", "08 0C 62 61 62 00 00 61"]);
    t.tells([published(0, Outcome::Sent), published(1, Outcome::Sent)]);
    let refused = t.node.publish(t.now, name("a"), Bytes::new(), Qos::MinusOne, false);
    assert_eq!(refused, Err(PublishError::NameAtMinusOne));
}

#[test]
fn a_full_queue_and_what_no_message_holds_are_refused() {
    let mut t = Talk::new(Options { queue_max: 2, ..options() });
    let mut publish = |topic, len| {
        t.node.publish(t.now, topic, vec![0; len].into(), Qos::AtLeastOnce, false).map(|id| id.0)
    };
    assert_eq!(publish(name("a"), 65_526), Ok(0));
    assert_eq!(publish(name("a"), 65_527), Err(PublishError::TooLong));
    assert_eq!(publish(name(&"a".repeat(65_528)), 0), Err(PublishError::TooLong));
    assert_eq!(publish(name(&"a".repeat(65_527)), 0), Ok(1));
    assert_eq!(publish(name("a"), 0), Err(PublishError::Full));
    let long = Filter::Name(TopicFilter::new("a".repeat(65_528)).unwrap());
    assert_eq!(t.node.subscribe(t.now, long, Qos::AtMostOnce), Err(SubscribeError::TooLong));
}

#[test]
fn the_longest_payload_and_name_fit_a_frame() {
    let mut t = Talk::connected(options());
    t.node.publish(t.now, Topic::Predefined(1), vec![0; 65_526].into(), Qos::AtMostOnce, false).unwrap();
    t.node.publish(t.now, name(&"a".repeat(65_527)), Bytes::new(), Qos::AtMostOnce, false).unwrap();
    assert_eq!(t.node.poll_transmit().unwrap().len(), 65_535);
    assert_eq!(t.node.poll_transmit().unwrap().len(), 65_535);
    assert_eq!(t.node.counters().shed, 0);
}

// Reconnection

#[test]
fn a_persistent_session_continues_an_open_message_after_a_reconnection() {
    let backoff = Some(Backoff::default());
    let mut t = Talk::connected_by(
        "08 04 00 01 00 3C 63 31",
        Options { clean_session: false, reconnect: backoff, ..options() },
    );
    t.publish(name("a/b"), Qos::ExactlyOnce);
    t.sends(["09 0A 00 00 00 01 61 2F 62"]);
    t.hears("07 0B 00 07 00 01 00").sends(["08 0C 40 00 07 00 02 61"]);
    t.hears("02 18").tells([Event::ConnectionLost(Loss::Disconnected)]);
    t.wait(1).sends(["08 04 00 01 00 3C 63 31"]);
    t.hears(CONNACK).sends(["09 0A 00 00 00 03 61 2F 62"]).tells([Event::Connected]);
    t.hears("07 0B 00 07 00 03 00").sends(["08 0C C0 00 07 00 02 61"]);
    t.hears("04 0F 00 02").sends(["04 10 00 02"]);
    t.hears("02 18").tells([Event::ConnectionLost(Loss::Disconnected)]);
    t.wait(1).sends(["08 04 00 01 00 3C 63 31"]);
    t.hears(CONNACK).sends(["04 10 00 02"]).tells([Event::Connected]);
    t.hears("04 0E 00 02").tells([published(0, Outcome::Acknowledged)]);
}

#[test]
fn a_clean_session_makes_an_open_qos_2_message_uncertain_and_no_other() {
    for (qos, outcome, flags) in
        [(Qos::ExactlyOnce, Outcome::Uncertain, "C1"), (Qos::AtLeastOnce, Outcome::Acknowledged, "A1")]
    {
        let mut t = Talk::connected(Options { reconnect: Some(Backoff::default()), ..options() });
        t.publish(Topic::Predefined(7), qos);
        t.publish(Topic::Predefined(7), Qos::ExactlyOnce);
        t.node.poll_transmit().unwrap();
        t.hears("02 18").tells([Event::ConnectionLost(Loss::Disconnected)]);
        t.wait(1).sends([CONNECT]);
        t.hears(CONNACK).sends([format!("08 0C {flags} 00 07 00 01 61")]).tells([Event::Connected]);
        if qos == Qos::ExactlyOnce {
            t.hears("04 0F 00 01").sends(["04 10 00 01"]);
            t.hears("04 0E 00 01");
        } else {
            t.hears("07 0D 00 07 00 01 00");
        }
        t.sends(["08 0C 41 00 07 00 02 61"]).tells([published(0, outcome)]);
        t.hears("04 0F 00 02").sends(["04 10 00 02"]);
        t.hears("04 0E 00 02").tells([published(1, Outcome::Acknowledged)]);
    }
}

#[test]
fn a_reconnecting_node_gives_no_message_up() {
    let reconnect = Some(Backoff::default());
    let mut t = Talk::connected(Options { reconnect, retry_limit: 0, ..options() });
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    t.sends(["08 0C 21 00 07 00 01 61"]);
    t.deadline(10).tells([Event::ConnectionLost(Loss::NoAnswer)]);
    t.wait(1).sends([CONNECT]);
    t.hears(CONNACK).sends(["08 0C A1 00 07 00 01 61"]).tells([Event::Connected]);
}

#[test]
fn subscriptions_are_made_again_before_what_waits() {
    let mut t = Talk::connected(Options { reconnect: Some(Backoff::default()), ..options() });
    t.subscribe("s/#", Qos::AtLeastOnce);
    t.sends(["08 12 20 00 01 73 2F 23"]);
    t.hears("08 13 20 00 00 00 01 00").tells([subscribed("s/#", Ok(Qos::AtLeastOnce))]);
    t.subscribe("t", Qos::AtLeastOnce);
    t.sends(["06 12 20 00 02 74"]);
    t.hears("02 18").tells([Event::ConnectionLost(Loss::Disconnected)]);
    t.wait(1).sends([CONNECT]);
    t.hears(CONNACK).sends(["08 12 20 00 03 73 2F 23"]).tells([Event::Connected]);
    assert!(!t.node.is_idle());
    t.hears("08 13 20 00 07 00 02 00").sends(NOTHING).tells(QUIET); // of the session before
    t.hears("08 13 20 00 00 00 03 00").sends(["06 12 20 00 04 74"]).tells(QUIET);
    t.hears("08 13 20 00 08 00 04 00").tells([subscribed("t", Ok(Qos::AtLeastOnce))]);
    assert!(t.node.is_idle());
    t.publish(Topic::Predefined(7), Qos::AtLeastOnce);
    assert!(!t.node.is_idle());
}

#[test]
fn an_unsolicited_connack_of_a_clean_session_begins_the_session_anew() {
    let mut t = Talk::connected(options());
    t.subscribe("s", Qos::AtLeastOnce);
    t.sends(["06 12 20 00 01 73"]);
    t.hears("08 13 20 00 07 00 01 00").tells([subscribed("s", Ok(Qos::AtLeastOnce))]);
    t.publish(name("s"), Qos::ExactlyOnce);
    t.sends(["08 0C 40 00 07 00 02 61"]);
    t.hears(CONNACK).sends(["06 12 20 00 03 73", "07 0A 00 00 00 04 73"]).tells([Event::Restarted]);
    t.hears("08 13 20 00 09 00 03 00").sends(NOTHING).tells(QUIET);
    t.hears("07 0B 00 09 00 04 00").sends(["08 0C C0 00 09 00 02 61"]);
    t.hears("04 0F 00 02").sends(["04 10 00 02"]);
    t.hears("04 0E 00 02").tells([published(0, Outcome::Uncertain)]);
}

#[test]
fn a_suback_of_the_session_before_grants_nothing_in_the_new_one() {
    let mut t = Talk::connected(options());
    t.subscribe("s/#", Qos::AtMostOnce);
    t.sends(["08 12 00 00 01 73 2F 23"]);
    t.hears(CONNACK).sends(["08 12 00 00 02 73 2F 23"]).tells([Event::Restarted]);
    t.hears("08 13 00 00 00 00 01 00").sends(NOTHING).tells(QUIET);
    t.hears("08 13 00 00 00 00 02 00").tells([subscribed("s/#", Ok(Qos::AtMostOnce))]);
}

#[test]
fn a_forgotten_topic_id_tells_of_a_session_begun_anew() {
    let mut t = Talk::connected(options());
    t.subscribe("s/#", Qos::AtMostOnce);
    t.sends(["08 12 00 00 01 73 2F 23"]);
    t.hears("08 13 00 00 00 00 01 00").tells([subscribed("s/#", Ok(Qos::AtMostOnce))]);
    t.publish(name("a"), Qos::ExactlyOnce);
    t.sends(["07 0A 00 00 00 02 61"]);
    t.hears("07 0B 00 07 00 02 00").sends(["08 0C 40 00 07 00 03 61"]);
    t.hears("07 0D 00 07 00 03 02").sends(["07 0A 00 00 00 04 61", "08 12 00 00 05 73 2F 23"]);
    t.tells([Event::Restarted]);
    t.hears("07 0B 00 09 00 04 00").sends(["08 0C 40 00 09 00 06 61"]);
    t.hears("04 0F 00 06").sends(["04 10 00 06"]);
    t.hears("04 0E 00 06").tells([published(0, Outcome::Uncertain)]);

    let connect = "08 04 00 01 00 3C 63 31";
    let mut t = Talk::connected_by(connect, Options { clean_session: false, ..options() });
    t.publish(name("a"), Qos::ExactlyOnce);
    t.sends(["07 0A 00 00 00 01 61"]);
    t.hears("07 0B 00 07 00 01 00").sends(["08 0C 40 00 07 00 02 61"]);
    t.hears("07 0D 00 07 00 02 02").sends(["07 0A 00 00 00 03 61"]).tells(QUIET);
    t.hears("07 0B 00 07 00 03 00").sends(["08 0C 40 00 07 00 04 61"]);
    t.hears("04 0F 00 04").sends(["04 10 00 04"]);
    t.hears("04 0E 00 04").tells([published(0, Outcome::Acknowledged)]);
}

#[test]
fn a_copy_of_connack_does_not_make_a_qos_2_message_come_twice() {
    let mut t = Talk::connected(options());
    t.hears("07 0A 00 07 00 01 61").sends(["07 0B 00 07 00 01 00"]);
    t.hears("08 0C 40 00 07 00 03 78").sends(["04 0F 00 03"]);
    t.hears(CONNACK);
    t.hears("08 0C C0 00 07 00 03 78").sends(["04 0F 00 03"]);
    assert_eq!(t.messages().len(), 1);
}

#[test]
fn an_unsolicited_connack_of_a_persistent_session_changes_nothing() {
    let connect = "08 04 00 01 00 3C 63 31";
    let mut t = Talk::connected_by(connect, Options { clean_session: false, ..options() });
    t.publish(Topic::Predefined(7), Qos::ExactlyOnce);
    t.sends(["08 0C 41 00 07 00 01 61"]);
    t.hears(CONNACK).sends(NOTHING).tells(QUIET);
    t.hears("04 0F 00 01").sends(["04 10 00 01"]);
    t.hears("04 0E 00 01").tells([published(0, Outcome::Acknowledged)]);
}

// Subscriptions

#[test]
fn subscriptions_of_every_kind_are_made_and_ended_one_at_a_time() {
    let mut t = Talk::connected(options());
    t.subscribe("s/1", Qos::ExactlyOnce);
    t.node.subscribe(t.now, Filter::Predefined(7), Qos::AtLeastOnce).unwrap();
    t.node.subscribe(t.now, Filter::Short(*b"ab"), Qos::AtMostOnce).unwrap();
    t.node.unsubscribe(t.now, Filter::Short(*b"ab")).unwrap();
    t.sends(["08 12 40 00 01 73 2F 31"]);
    t.deadline(10).sends(["08 12 C0 00 01 73 2F 31"]);
    t.hears("08 13 20 00 05 00 01 00").sends(["07 12 21 00 02 00 07"]);
    t.hears("08 13 00 00 07 00 02 02").sends(["07 12 02 00 03 61 62"]);
    t.hears("08 13 00 61 62 00 03 00").sends(["07 14 02 00 04 61 62"]);
    t.deadline(10).sends(["07 14 02 00 04 61 62"]);
    t.hears("04 15 00 04");
    t.tells([
        subscribed("s/1", Ok(Qos::AtLeastOnce)),
        Event::Subscribed { filter: Filter::Predefined(7), result: Err(ReturnCode::InvalidTopicId) },
        Event::Subscribed { filter: Filter::Short(*b"ab"), result: Ok(Qos::AtMostOnce) },
        Event::Unsubscribed { filter: Filter::Short(*b"ab") },
    ]);
    t.publish(name("s/1"), Qos::AtMostOnce);
    t.sends(["08 0C 00 00 05 00 00 61"]); // SUBACK has told its id
}

#[test]
fn a_subscription_meeting_congestion_is_asked_for_again_if_so_configured() {
    let wait = Some(Duration::from_secs(5));
    let mut t = Talk::connected(Options { congestion_wait: wait, ..options() });
    t.subscribe("s", Qos::AtMostOnce);
    t.sends(["06 12 00 00 01 73"]);
    t.hears("08 13 00 00 00 00 01 01").tells(QUIET);
    t.deadline(5).sends(["06 12 00 00 02 73"]);
}

#[test]
fn more_subscriptions_than_the_bound_are_refused() {
    let mut t = Talk::new(options());
    for i in 0..REQUESTS_MAX {
        t.node.subscribe(t.now, Filter::Predefined(i as u16), Qos::AtMostOnce).unwrap();
    }
    assert_eq!(t.node.subscribe(t.now, Filter::Short(*b"ab"), Qos::AtMostOnce), Err(SubscribeError::Full));
}

// Messages to the node

#[test]
fn a_registered_topic_is_delivered_at_every_qos() {
    let mut t = Talk::connected(options());
    t.hears("07 0A 00 07 00 01 61").sends(["07 0B 00 07 00 01 00"]);
    t.hears("08 0C 10 00 07 00 00 78").sends(NOTHING);
    t.hears("08 0C 20 00 07 00 02 78").sends(["07 0D 00 07 00 02 00"]);
    t.hears("08 0C 40 00 07 00 03 78").sends(["04 0F 00 03"]);
    t.hears("04 10 00 03").sends(["04 0E 00 03"]);
    let message = |qos, retain| {
        Event::Message(Message { topic: name("a"), payload: "x".into(), qos, retain, dup: false })
    };
    t.tells([
        message(Qos::AtMostOnce, true),
        message(Qos::AtLeastOnce, false),
        message(Qos::ExactlyOnce, false),
    ]);
}

#[test]
fn an_unknown_topic_id_is_refused_with_02() {
    let mut t =
        Talk::connected(Options { predefined: [(5, TopicName::new("p").unwrap())].into(), ..options() });
    t.hears("08 0C 20 00 07 00 02 78").sends(["07 0D 00 07 00 02 02"]);
    t.hears("08 0C 00 00 07 00 00 78").sends(["07 0D 00 07 00 00 02"]);
    t.hears("08 0C 21 00 07 00 03 78").sends(["07 0D 00 07 00 03 02"]);
    t.hears("08 0C 23 00 07 00 04 78").sends(["07 0D 00 07 00 04 03"]);
    t.tells(QUIET);
    t.hears("08 0C 21 00 05 00 05 78").sends(["07 0D 00 05 00 05 00"]);
    assert_eq!(t.messages(), [(Topic::Predefined(5), "x".into())]);
}

#[test]
fn what_cannot_be_registered_is_refused() {
    let mut t = Talk::connected(options());
    t.hears("07 0A 00 00 00 01 61").sends(["07 0B 00 00 00 01 02"]);
    t.hears("07 0A 00 07 00 02 23").sends(["07 0B 00 07 00 02 03"]);
}

#[test]
fn a_qos_2_message_is_delivered_once_however_late_its_copies_come() {
    let mut t = Talk::connected(options());
    t.hears("08 0C 42 61 62 00 09 78").sends(["04 0F 00 09"]);
    t.hears("08 0C C2 61 62 00 09 78").sends(["04 0F 00 09"]);
    t.hears("04 10 00 09").sends(["04 0E 00 09"]);
    t.hears("08 0C 42 61 62 00 09 78").sends(["04 0F 00 09"]);
    t.hears("04 10 00 09").sends(["04 0E 00 09"]);
    assert_eq!(t.messages().len(), 1);
    assert_eq!(t.node.counters().duplicates, 2);
    t.hears("08 0C 42 61 62 00 09 79").sends(["04 0F 00 09"]); // another message under the same MsgId
    assert_eq!(t.messages(), [(Topic::Short(*b"ab"), "y".into())]);
    t.hears("04 10 00 09").sends(["04 0E 00 09"]);
    t.wait(60).sends(["02 16", "02 16"]);
    t.hears("08 0C 42 61 62 00 09 79").sends(["04 0F 00 09"]);
    assert_eq!(t.messages().len(), 1, "after a minute the MsgId is free again");
}

#[test]
fn an_open_qos_2_message_is_remembered_over_a_reconnection() {
    let connect = "08 04 00 01 00 3C 63 31";
    let mut t = Talk::connected_by(connect, Options { clean_session: false, ..options() });
    t.hears("08 0C 42 61 62 00 09 78").sends(["04 0F 00 09"]);
    t.hears("02 18");
    t.wait(600);
    t.node.connect(t.now);
    t.sends([connect]);
    t.hears(CONNACK);
    assert_eq!(t.messages().len(), 1);
    t.hears("08 0C C2 61 62 00 09 78").sends(["04 0F 00 09"]);
    assert_eq!(t.messages().len(), 0);
}

#[test]
fn a_message_that_finds_no_room_is_not_acknowledged() {
    let mut t = Talk::connected(options());
    for i in 0..4097u16 {
        let [high, low] = i.to_be_bytes();
        t.node.handle_frame(t.now, &[8, 0x0C, 0x22, b'a', b'b', high, low, b'x']);
    }
    assert_eq!(std::iter::from_fn(|| t.node.poll_transmit()).count(), 4096);
    assert_eq!(t.node.counters().shed, 1);
    assert_eq!(t.messages().len(), 4096);
}

#[test]
fn nothing_is_taken_without_a_connection() {
    let mut t = Talk::new(options());
    for frame in ["08 0C 22 61 62 00 09 78", "07 0A 00 07 00 01 61", "04 10 00 03", "02 16", "02 18", "02 06"]
    {
        t.hears(frame).sends(NOTHING).tells(QUIET);
    }
}

// The carrier

#[test]
fn behind_a_forwarder_every_frame_names_the_node_and_others_are_not_ours() {
    let node_id = Some(Bytes::from_static(&[0x0A, 0x0B]));
    let mut t =
        Talk::connected_by("05 FE 00 0A 0B 08 04 04 01 00 3C 63 31", Options { node_id, ..options() });
    t.hears("02 16").sends(NOTHING);
    t.hears("05 FE 00 0A 0C 02 16").sends(NOTHING);
    assert_eq!(t.node.counters().noise, 2);
    t.hears("05 FE 00 0A 0B 02 16").sends(["05 FE 00 0A 0B 02 17"]);
}

#[test]
fn noise_is_counted_and_changes_nothing() {
    let mut t = Talk::connected(options());
    for frame in ["", "00", "02 03", "03 16", "08 04 04 01 00 3C 63 31", "08 0C 62 61 62 00 00 61"] {
        t.hears(frame).sends(NOTHING).tells(QUIET);
    }
    assert_eq!(t.node.counters().noise, 6);
    assert!(t.node.is_connected());
}

proptest! {
    #[test]
    fn whatever_comes_the_node_neither_panics_nor_grows(frames in prop::collection::vec(frame(), 1..200), seed: u64) {
        let reconnect = Some(Backoff::default());
        let wake_every = Some(Duration::ZERO);
        let mut t = Talk::new(Options { reconnect, wake_every, seed, will: Some(will()), ..options() });
        t.node.connect(t.now);
        for (i, frame) in frames.iter().enumerate() {
            t.now += Duration::from_secs(1);
            let topic = [name("a"), Topic::Predefined(1), Topic::Short(*b"ab")][i % 3].clone();
            let qos = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][i / 3 % 3];
            let _ = t.node.publish(t.now, topic, Bytes::new(), qos, false);
            t.node.subscribe(t.now, Filter::Predefined(i as u16), qos).unwrap();
            match seed.rotate_right(i as u32) % 16 {
                0 => t.node.sleep(t.now, Duration::ZERO),
                1 => t.node.wake(t.now),
                2 => t.node.connect(t.now),
                _ => {}
            }
            t.node.handle_frame(t.now, frame);
            t.tick();
            prop_assert!(t.node.poll_timeout().is_none_or(|at| at > t.now), "a deadline that fired has moved");
        }
        let sent = std::iter::from_fn(|| t.node.poll_transmit()).count();
        prop_assert!(sent <= 20 * frames.len() + 20, "{sent} frames for {}", frames.len());
    }
}

#[test]
fn gateways_that_make_themselves_known_are_reported() {
    let mut t = Talk::new(options());
    t.hears("03 02 2A").hears("05 00 2B 03 84");
    t.tells([Event::GatewayFound { gw_id: 0x2A }, Event::GatewayFound { gw_id: 0x2B }]);
}

#[test]
fn a_search_repeats_itself_ever_more_seldom() {
    let start = Instant::now();
    let secs = Duration::from_secs;
    let mut search = Search::new(start, 2, Duration::ZERO, secs(5), 0);
    let mut now = start;
    let mut times = Vec::new();
    for _ in 0..4 {
        now = now.max(search.poll_timeout());
        search.handle_timeout(now);
        assert_eq!(hex(&search.poll_transmit().unwrap()), "03 01 02");
        search.handle_timeout(now);
        assert_eq!(search.poll_transmit(), None);
        times.push((now - start).as_secs());
    }
    assert_eq!(times, [0, 5, 15, 35]);
    assert!(Search::new(start, 0, secs(5), secs(5), 1).poll_timeout() <= start + secs(5));
    let gwinfo = Found { gw_id: 1, gw_add: None, advertised_for: None };
    assert_eq!(search.handle_frame(&bytes("03 02 01")), Some(gwinfo));
    let client = Found { gw_id: 1, gw_add: Some(Bytes::from_static(&[9])), advertised_for: None };
    assert_eq!(search.handle_frame(&bytes("04 02 01 09")), Some(client));
    let advertise = Found { gw_id: 1, gw_add: None, advertised_for: Some(secs(900)) };
    assert_eq!(search.handle_frame(&bytes("05 00 01 03 84")), Some(advertise));
    assert_eq!(search.handle_frame(&bytes("02 17")), None);
}

#[test]
fn msg_ids_are_never_zero_and_never_reused_while_open() {
    let mut air = Air::new(&options(), 0xFFFE);
    assert_eq!([air.open_msg_id(), air.open_msg_id()], [0xFFFF, 1]);
    let all: Vec<_> = (0..0xFFFD).map(|_| air.open_msg_id()).collect();
    assert_eq!(all.last(), Some(&0xFFFE));
    air.close_msg_id(77);
    assert_eq!(air.open_msg_id(), 77);
}

// What the tests stand on

/// Frames that mean something to a node more often than not.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![0..8u8, any::<u8>()];
    let kind = prop_oneof![0x04..0x19u8, any::<u8>()];
    (kind, prop::collection::vec(small, 0..9)).prop_map(|(kind, body)| {
        let mut frame = vec![2 + body.len() as u8, kind];
        frame.extend(body);
        frame
    })
}

struct Talk {
    node: Node,
    now: Instant,
}

impl Talk {
    fn new(options: Options) -> Self {
        let mut node = Node::new(options);
        node.air = Air::new(&node.options, 0);
        Self { node, now: Instant::now() }
    }

    #[track_caller]
    fn connected(options: Options) -> Self {
        Self::connected_by(CONNECT, options)
    }

    #[track_caller]
    fn connected_by(connect: &str, options: Options) -> Self {
        let prefix = options.node_id.as_ref().map_or("", |_| "05 FE 00 0A 0B ");
        let mut t = Self::new(options);
        t.node.connect(t.now);
        t.sends([connect]);
        t.hears(&format!("{prefix}{CONNACK}")).tells([Event::Connected]);
        t
    }

    fn publish(&mut self, topic: Topic, qos: Qos) {
        self.node.publish(self.now, topic, "a".into(), qos, false).unwrap();
    }

    fn subscribe(&mut self, filter: &str, qos: Qos) {
        self.node.subscribe(self.now, filter_of(filter), qos).unwrap();
    }

    fn hears(&mut self, frame: &str) -> &mut Self {
        self.node.handle_frame(self.now, &bytes(frame));
        self
    }

    fn tick(&mut self) -> &mut Self {
        self.node.handle_timeout(self.now);
        self
    }

    /// Lets time pass, second by second.
    fn wait(&mut self, secs: u64) -> &mut Self {
        for _ in 0..secs {
            self.now += Duration::from_secs(1);
            self.tick();
        }
        self
    }

    /// The next deadline is in `secs`: not a moment earlier does anything happen.
    #[track_caller]
    fn deadline(&mut self, secs: u64) -> &mut Self {
        let deadline = self.node.poll_timeout().expect("a deadline");
        assert_eq!(deadline - self.now, Duration::from_secs(secs));
        self.now = deadline - Duration::from_nanos(1);
        self.tick().sends(NOTHING);
        self.now = deadline;
        self.tick()
    }

    #[track_caller]
    fn sends<T: AsRef<str>>(&mut self, frames: impl IntoIterator<Item = T>) -> &mut Self {
        let sent: Vec<String> = std::iter::from_fn(|| self.node.poll_transmit()).map(|f| hex(&f)).collect();
        let expected: Vec<String> = frames.into_iter().map(|f| f.as_ref().to_owned()).collect();
        assert_eq!(sent, expected);
        self
    }

    #[track_caller]
    fn tells<const N: usize>(&mut self, events: [Event; N]) -> &mut Self {
        let told: Vec<Event> = std::iter::from_fn(|| self.node.poll_event()).collect();
        assert_eq!(told, events);
        self
    }

    fn messages(&mut self) -> Vec<(Topic, Bytes)> {
        std::iter::from_fn(|| self.node.poll_event())
            .filter_map(|event| match event {
                Event::Message(message) => Some((message.topic, message.payload)),
                _ => None,
            })
            .collect()
    }
}

/// A node that fell asleep for a minute.
#[track_caller]
fn asleep(options: Options) -> Talk {
    let mut t = Talk::connected(options);
    t.node.sleep(t.now, Duration::from_secs(60));
    t.sends([SLEEP_60]);
    t.hears("02 18").sends(NOTHING).tells([Event::Asleep]);
    t
}

fn options() -> Options {
    Options::new(ClientId::new("c1").unwrap())
}

fn will() -> Will {
    let topic = TopicName::new("w/1").unwrap();
    Will { topic, message: "bye".into(), qos: Qos::AtLeastOnce, retain: true }
}

fn name(text: &str) -> Topic {
    Topic::Name(TopicName::new(text).unwrap())
}

fn filter_of(text: &str) -> Filter {
    Filter::Name(TopicFilter::new(text).unwrap())
}

fn published(id: u64, outcome: Outcome) -> Event {
    Event::Published(PublishId(id), outcome)
}

fn subscribed(filter: &str, result: Result<Qos, ReturnCode>) -> Event {
    Event::Subscribed { filter: filter_of(filter), result }
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split_whitespace().map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(" ")
}
