//! Conversations with a broker played by the test, on a virtual clock. Packets are written as lines, see [`line`].

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rumqttc::{
    ConnAck, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, PubRel, Publish, SubAck,
    SubscribeReasonCode, UnsubAck,
};

use super::*;
use crate::topic::{TopicFilter, TopicName};

mod trace;
mod v5;

#[test]
fn connect_goes_out_when_the_socket_is_connected_and_nothing_before_connack() {
    let mut talk = Talk::new(Options::new("c"));
    let token = talk.publish(QoS::AtLeastOnce, "m");
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c resume keep-alive 60"]);
    assert!(!talk.connection.is_connected());
    talk.broker(connack(false));
    talk.says([Event::Connected { session_present: false }]);
    talk.sends(["publish 1 q1 m"]);
    talk.broker(puback(1));
    talk.says([Event::Completed(token, Ok(()))]);
    assert_eq!(talk.connection.unfinished(), 0);
}

#[test]
fn a_connect_carries_will_credentials_and_clean_session() {
    let mut options = Options::new("c");
    options.session = Session::Clean;
    options.keep_alive = Duration::from_millis(1500);
    options.will = Some(Message { retain: true, ..message(QoS::ExactlyOnce, "gone") });
    options.credentials = Some(Credentials { username: "u".into(), password: "p".into() });
    let mut talk = Talk::new(options);
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c clean keep-alive 2 will q2 retain gone login u p"]);
    assert_eq!(format!("{:?}", talk.connection).matches("\"p\"").count(), 0, "passwords are not printed");
}

#[test]
fn a_refusal_keeps_its_code_and_ends_the_connection() {
    let mut talk = Talk::new(Options::new("c"));
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take();
    talk.broker(Packet::ConnAck(ConnAck::new(ConnectReturnCode::NotAuthorized, false)));
    talk.says([Event::Refused(ConnectRefusal(5))]);
    assert_eq!(ConnectRefusal(5).to_string(), "not authorized (CONNACK 5)");
    assert_eq!(talk.connection.poll_timeout(), None);
    assert!(!talk.connection.is_connected());
}

#[test]
fn all_that_is_ready_leaves_as_one_buffer() {
    let mut talk = Talk::up(Options::new("c"));
    for _ in 0..100 {
        talk.publish(QoS::AtLeastOnce, "a");
        talk.connection.publish(message(QoS::AtMostOnce, "b")).unwrap();
    }
    talk.subscribe(&["f"]);
    let output = talk.connection.take_output(talk.now).unwrap();
    assert_eq!(lines(&output).len(), 201);
    assert_eq!(talk.connection.take_output(talk.now), None);
}

#[test]
fn qos_0_is_refused_while_not_connected_and_when_output_piles_up() {
    let mut options = Options::new("c");
    options.buffer = 50;
    let mut talk = Talk::new(options);
    assert_eq!(talk.connection.publish(message(QoS::AtMostOnce, "m")), Err(Full::Offline));
    talk.connect(false);
    let mut taken = 0;
    let refused = loop {
        match talk.connection.publish(message(QoS::AtMostOnce, "m")) {
            Ok(None) => taken += 1,
            other => break other,
        }
    };
    assert_eq!((taken, refused), (9, Err(Full::Buffer))); // 6 octets each
    assert_eq!(talk.connection.counters().refused, 2);
    assert_eq!(talk.take().len(), 9);
    assert_eq!(talk.connection.publish(message(QoS::AtMostOnce, "m")), Ok(None));
}

#[test]
fn the_window_bounds_what_is_in_flight_and_the_queue_what_waits() {
    let mut options = Options::new("c");
    (options.window, options.queue) = (2, 3);
    let mut talk = Talk::up(options);
    for _ in 0..5 {
        talk.publish(QoS::AtLeastOnce, "m");
    }
    assert_eq!(talk.connection.publish(message(QoS::AtLeastOnce, "m")), Err(Full::Queue));
    assert_eq!(talk.connection.unfinished(), 5);
    talk.sends(["publish 1 q1 m", "publish 2 q1 m"]);
    talk.broker(puback(2));
    talk.sends(["publish 3 q1 m"]);
    talk.publish(QoS::AtLeastOnce, "m");
    talk.sends([]);
}

#[test]
fn qos_2_has_a_smaller_window_that_qos_1_of_others_passes_by() {
    let mut options = Options::new("c");
    (options.window, options.window_exactly_once) = (4, 2);
    let mut talk = Talk::up(options);
    for payload in ["a", "b", "c", "d"] {
        talk.publish(QoS::ExactlyOnce, payload);
    }
    for payload in ["e", "f", "g"] {
        talk.connection.publish_from(Origin(1), message(QoS::AtLeastOnce, payload)).unwrap();
    }
    talk.sends(["publish 1 q2 a", "publish 2 q2 b", "publish 3 q1 e", "publish 4 q1 f"]);
    talk.broker(Packet::PubRec(PubRec::new(1)));
    talk.sends(["pubrel 1"]);
    talk.broker(Packet::PubComp(PubComp::new(1)));
    talk.sends(["publish 5 q2 c"]);
    talk.broker(puback(3));
    talk.sends(["publish 6 q1 g"]);
    talk.connection.handle_closed();
    talk.connect(false);
    talk.sends(["publish 7 q2 b", "publish 8 q2 c", "publish 9 q1 f", "publish 10 q1 g"]);
}

#[test]
fn where_the_window_of_qos_2_is_full_publishes_of_one_origin_leave_in_order() {
    let mut options = Options::new("c");
    options.window_exactly_once = 1;
    let mut talk = Talk::up(options);
    let (one, two) = (QoS::AtLeastOnce, QoS::ExactlyOnce);
    let of = [(1, two, "a"), (1, one, "b"), (2, two, "c"), (1, two, "d"), (3, one, "e"), (2, one, "f")];
    for (origin, qos, payload) in of.into_iter().chain([(1, one, "g"), (1, two, "h"), (2, one, "i")]) {
        talk.connection.publish_from(Origin(origin), message(qos, payload)).unwrap();
    }
    let ends = |talk: &mut Talk, id| {
        talk.broker(Packet::PubRec(PubRec::new(id)));
        talk.broker(Packet::PubComp(PubComp::new(id)));
        let mut sends = talk.take();
        assert_eq!(sends.remove(0), format!("pubrel {id}"));
        sends
    };
    talk.sends(["publish 1 q2 a", "publish 2 q1 b", "publish 3 q1 e"]);
    assert_eq!(ends(&mut talk, 1), ["publish 4 q2 c", "publish 5 q1 f", "publish 6 q1 i"]);
    // What was under way waits again, as if it had never been sent.
    talk.connection.handle_closed();
    talk.connect(false);
    let sends = ["publish 7 q1 b", "publish 8 q2 c", "publish 9 q1 e", "publish 10 q1 f", "publish 11 q1 i"];
    talk.sends(sends);
    assert_eq!(ends(&mut talk, 8), ["publish 12 q2 d", "publish 13 q1 g"]);
    assert_eq!(ends(&mut talk, 12), ["publish 14 q2 h"]);
    for id in [7, 9, 10, 11, 13] {
        talk.broker(puback(id));
    }
    ends(&mut talk, 14);
    assert_eq!(talk.connection.unfinished(), 0);
}

/// MQTT 3.1.1 §4.6.
#[test]
fn what_is_repeated_is_in_the_order_in_which_it_was_sent_and_not_in_that_in_which_it_was_given() {
    let mut options = Options::new("c");
    (options.window, options.window_exactly_once) = (4, 1);
    let mut talk = Talk::up(options);
    for (origin, qos, payload) in
        [(1, QoS::ExactlyOnce, "a"), (1, QoS::ExactlyOnce, "b"), (2, QoS::AtLeastOnce, "c")]
    {
        talk.connection.publish_from(Origin(origin), message(qos, payload)).unwrap();
    }
    talk.sends(["publish 1 q2 a", "publish 2 q1 c"]);
    talk.broker(Packet::PubRec(PubRec::new(1)));
    talk.broker(Packet::PubComp(PubComp::new(1)));
    talk.sends(["pubrel 1", "publish 3 q2 b"]);
    talk.connection.handle_closed();
    talk.connect(true);
    talk.sends(["publish 2 dup q1 c", "publish 3 dup q2 b"]);
}

/// What MQTT 5 will say with a reason code in PUBREC or PUBACK.
#[test]
fn a_refused_publish_gives_its_place_in_the_window_back() {
    let mut options = Options::new("c");
    options.window = 2;
    let mut talk = Talk::up(options);
    let tokens: Vec<_> =
        [QoS::ExactlyOnce, QoS::AtLeastOnce].into_iter().map(|qos| talk.publish(qos, "m")).collect();
    talk.publish(QoS::ExactlyOnce, "next");
    talk.publish(QoS::ExactlyOnce, "last");
    talk.take();
    let refusal = Refused(0x87);
    let refused = Err(refusal);
    talk.connection.handle_packet(talk.now, packet::Packet::PubRec(1, refused)).unwrap();
    talk.connection.handle_packet(talk.now, packet::Packet::PubAck(2, refused)).unwrap();
    talk.says([Event::Completed(tokens[0], refused), Event::Completed(tokens[1], refused)]);
    talk.sends(["publish 3 q2 next", "publish 4 q2 last"]);
    assert_eq!(refusal.to_string(), "refused by the broker: not authorized (0x87)");
}

#[test]
fn the_queue_is_bounded_in_octets_too() {
    let mut options = Options::new("c");
    options.queue_octets = 20;
    let mut talk = Talk::up(options);
    talk.publish(QoS::AtLeastOnce, "12345"); // 10 octets with topic and packet id
    talk.publish(QoS::AtLeastOnce, "12345");
    assert_eq!(talk.connection.publish(message(QoS::AtLeastOnce, "")), Err(Full::Queue));
    talk.broker(puback(1));
    talk.publish(QoS::AtLeastOnce, "12345");
    talk.connection.handle_closed();
    talk.connect(false);
    assert_eq!(talk.connection.publish(message(QoS::AtLeastOnce, "")), Err(Full::Queue));
}

#[test]
fn output_that_is_not_taken_holds_qos_1_back_in_the_queue() {
    let mut options = Options::new("c");
    options.buffer = 20;
    let mut talk = Talk::up(options);
    for _ in 0..5 {
        talk.publish(QoS::AtLeastOnce, "m"); // 8 octets
    }
    let output = talk.connection.take_output(talk.now).unwrap();
    assert_eq!(lines(&output), ["publish 1 q1 m", "publish 2 q1 m", "publish 3 q1 m"]);
    talk.sends(["publish 4 q1 m", "publish 5 q1 m"]);
}

#[test]
fn what_does_not_fit_into_a_packet_is_refused() {
    let mut options = Options::new("c");
    options.packet_len_max = 10;
    let mut talk = Talk::up(options);
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        assert_eq!(talk.connection.publish(message(qos, "123456")), Err(Full::TooLarge));
    }
    let filter = TopicFilter::new("12345678").unwrap();
    assert_eq!(talk.connection.subscribe(&[(filter.clone(), QoS::AtMostOnce)]), Err(Full::TooLarge));
    assert_eq!(talk.connection.unsubscribe(&[filter]), Err(Full::TooLarge));
}

#[test]
fn exactly_once_takes_two_round_trips_and_its_id_is_not_used_between_them() {
    let mut talk = Talk::up(Options::new("c"));
    let first = talk.publish(QoS::ExactlyOnce, "m");
    talk.sends(["publish 1 q2 m"]);
    talk.broker(Packet::PubRec(PubRec::new(1)));
    talk.says([Event::Received(first)]);
    talk.sends(["pubrel 1"]);
    // All other ids come round once while id 1 is between PUBREC and PUBCOMP.
    for round in 0..=u16::MAX {
        let token = talk.publish(QoS::AtLeastOnce, "x");
        let sent = talk.take();
        let id: u16 = sent[0].split(' ').nth(1).unwrap().parse().unwrap();
        assert_ne!(id, 1, "round {round}");
        talk.broker(puback(id));
        talk.says([Event::Completed(token, Ok(()))]);
    }
    talk.broker(Packet::PubComp(PubComp::new(1)));
    talk.says([Event::Completed(first, Ok(()))]);
    assert_eq!(talk.connection.counters().strays, 0);
}

#[test]
fn a_puback_ends_a_qos_2_publish_that_no_pubrec_has_taken_over() {
    let mut talk = Talk::up(Options::new("c"));
    let lowered = talk.publish(QoS::ExactlyOnce, "m");
    let released = talk.publish(QoS::ExactlyOnce, "n");
    talk.take();
    talk.broker(Packet::PubRec(PubRec::new(2)));
    talk.says([Event::Received(released)]);
    talk.broker(puback(1));
    talk.broker(puback(1));
    talk.broker(puback(2));
    talk.says([Event::Completed(lowered, Ok(()))]);
    assert_eq!((talk.connection.counters().lowered, talk.connection.counters().strays), (1, 2));
    talk.broker(Packet::PubComp(PubComp::new(2)));
    talk.says([Event::Completed(released, Ok(()))]);
}

#[test]
fn publish_subscribe_and_unsubscribe_share_the_packet_ids() {
    let mut talk = Talk::up(Options::new("c"));
    let publish = talk.publish(QoS::AtLeastOnce, "m");
    let subscribe = talk.subscribe(&["a", "b/#"]);
    let unsubscribe = talk.connection.unsubscribe(&[TopicFilter::new("a").unwrap()]).unwrap();
    talk.sends(["publish 1 q1 m", "subscribe 2 a:q1 b/#:q1", "unsubscribe 3 a"]);
    talk.broker(Packet::UnsubAck(UnsubAck::new(3)));
    talk.broker(suback(2, &[SubscribeReasonCode::Success(QoS::AtMostOnce), SubscribeReasonCode::Failure]));
    talk.broker(puback(1));
    talk.says([
        Event::Unsubscribed(unsubscribe),
        Event::Subscribed(subscribe, vec![Ok(QoS::AtMostOnce), Err(Refused(0x80))]),
        Event::Completed(publish, Ok(())),
    ]);
}

#[test]
fn an_empty_list_of_filters_ends_at_once() {
    let mut talk = Talk::new(Options::new("c"));
    let (a, b) = (talk.subscribe(&[]), talk.connection.unsubscribe(&[]).unwrap());
    talk.says([Event::Subscribed(a, vec![]), Event::Unsubscribed(b)]);
}

#[test]
fn requests_without_an_answer_are_bounded() {
    let mut talk = Talk::new(Options::new("c"));
    let filters = [TopicFilter::new("a").unwrap()];
    for _ in 0..REQUESTS_MAX {
        talk.connection.unsubscribe(&filters).unwrap();
    }
    assert_eq!(talk.connection.unsubscribe(&filters), Err(Full::Requests));
    assert_eq!(talk.connection.subscribe(&[(filters[0].clone(), QoS::AtMostOnce)]), Err(Full::Requests));
    talk.publish(QoS::AtLeastOnce, "m");
    talk.connect(false);
    assert_eq!(talk.take().len(), REQUESTS_MAX + 1);
}

#[test]
fn a_suback_with_too_few_return_codes_is_malformed() {
    let mut talk = Talk::up(Options::new("c"));
    talk.subscribe(&["a", "b"]);
    let failure = talk.try_broker(suback(1, &[SubscribeReasonCode::Failure])).unwrap_err();
    assert_eq!(failure, Failure::Malformed { packet: PacketType(9), what: Malformed::ReturnCodes });
}

#[test]
fn a_kept_session_gets_what_is_unfinished_again_in_order_and_before_anything_new() {
    let mut options = Options::new("c");
    options.window = 5;
    let mut talk = Talk::up(options);
    for (qos, payload) in
        [(QoS::AtLeastOnce, "a"), (QoS::ExactlyOnce, "b"), (QoS::AtLeastOnce, "c"), (QoS::ExactlyOnce, "d")]
    {
        talk.publish(qos, payload);
    }
    talk.take();
    talk.subscribe(&["f"]);
    talk.broker(Packet::PubRec(PubRec::new(2)));
    talk.broker(puback(1));
    talk.connection.handle_closed();
    for payload in ["e", "f", "g"] {
        talk.publish(QoS::AtLeastOnce, payload);
    }
    talk.connect(true);
    talk.sends([
        "pubrel 2",
        "publish 3 dup q1 c",
        "publish 4 dup q2 d",
        "subscribe 5 f:q1",
        "publish 6 q1 e",
        "publish 7 q1 f",
    ]);
    assert_eq!(talk.connection.counters().resent, 3);
    talk.broker(Packet::PubComp(PubComp::new(2)));
    talk.sends(["publish 8 q1 g"]);
    // Cut once more, after part of it was acknowledged.
    talk.broker(puback(6));
    talk.connection.handle_closed();
    talk.connect(true);
    talk.sends([
        "publish 3 dup q1 c",
        "publish 4 dup q2 d",
        "subscribe 5 f:q1",
        "publish 7 dup q1 f",
        "publish 8 dup q1 g",
    ]);
}

#[test]
fn the_original_order_holds_when_the_ids_have_come_round() {
    let mut talk = Talk::up(Options::new("c"));
    for id in 1..=u16::MAX - 1 {
        talk.publish(QoS::AtLeastOnce, "x");
        talk.take();
        talk.broker(puback(id));
    }
    for payload in ["a", "b", "c"] {
        talk.publish(QoS::AtLeastOnce, payload);
    }
    talk.sends(["publish 65535 q1 a", "publish 1 q1 b", "publish 2 q1 c"]);
    talk.connection.handle_closed();
    talk.connect(true);
    talk.sends(["publish 65535 dup q1 a", "publish 1 dup q1 b", "publish 2 dup q1 c"]);
    talk.connection.handle_closed();
    talk.connect(false);
    assert_eq!(
        talk.take().iter().map(|line| &line[line.len() - 4..]).collect::<Vec<_>>(),
        ["q1 a", "q1 b", "q1 c"]
    );
}

#[test]
fn a_lost_session_gets_all_that_is_unfinished_as_new() {
    let mut options = Options::new("c");
    options.window = 3;
    let mut talk = Talk::up(options);
    let tokens: Vec<_> =
        ["a", "b", "c", "d"].into_iter().map(|payload| talk.publish(QoS::ExactlyOnce, payload)).collect();
    let subscribe = talk.subscribe(&["f"]);
    talk.take();
    talk.broker(Packet::PubRec(PubRec::new(1)));
    talk.connection.handle_closed();
    talk.events();
    talk.connect(false);
    assert_eq!(talk.connection.counters().sessions_lost, 1);
    talk.sends(["subscribe 4 f:q1", "publish 5 q2 a", "publish 6 q2 b", "publish 7 q2 c"]);
    talk.broker(Packet::PubRec(PubRec::new(5)));
    talk.broker(Packet::PubComp(PubComp::new(5)));
    talk.broker(suback(4, &[SubscribeReasonCode::Success(QoS::AtLeastOnce)]));
    talk.says([
        Event::Received(tokens[0]),
        Event::Completed(tokens[0], Ok(())),
        Event::Subscribed(subscribe, vec![Ok(QoS::AtLeastOnce)]),
    ]);
    talk.sends(["pubrel 5", "publish 8 q2 d"]);
}

#[test]
fn a_clean_session_is_lost_with_every_connection() {
    let mut options = Options::new("c");
    options.session = Session::Clean;
    let mut talk = Talk::up(options);
    talk.publish(QoS::AtLeastOnce, "a");
    talk.sends(["publish 1 q1 a"]);
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.take();
    talk.broker(connack(true)); // a lie
    talk.says([Event::Connected { session_present: false }]);
    talk.sends(["publish 2 q1 a"]);
    assert_eq!(talk.connection.counters().sessions_lost, 0);
}

#[test]
fn octets_that_were_not_taken_die_with_their_connection() {
    let mut talk = Talk::up(Options::new("c"));
    talk.publish(QoS::AtLeastOnce, "a");
    talk.connection.publish(message(QoS::AtMostOnce, "b")).unwrap();
    talk.connection.handle_closed();
    assert_eq!(talk.connection.take_output(talk.now), None);
    talk.connect(true);
    talk.sends(["publish 1 dup q1 a"]);
}

#[test]
fn a_message_is_acknowledged_when_it_is_settled_and_not_before() {
    let mut talk = Talk::up(Options::new("c"));
    talk.broker(publish(7, QoS::AtLeastOnce, false));
    talk.broker(publish(8, QoS::ExactlyOnce, false));
    talk.broker(publish(0, QoS::AtMostOnce, false));
    let [one, two] = talk.deliveries()[..] else { panic!() };
    talk.sends([]);
    talk.connection.settle(two);
    talk.sends(["pubrec 8"]);
    talk.connection.settle(one);
    talk.sends(["puback 7"]);
    talk.broker(Packet::PubRel(PubRel::new(8)));
    talk.sends(["pubcomp 8"]);
    talk.connection.settle(one);
    talk.connection.settle(two);
    talk.sends([]);
    assert_eq!(talk.connection.counters().stale_settles, 2);
}

#[test]
fn a_message_that_the_broker_repeats_is_handed_on_once() {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut talk = Talk::up(Options::new("c"));
        talk.broker(publish(7, qos, false));
        let [delivery] = talk.deliveries()[..] else { panic!() };
        talk.broker(publish(7, qos, true)); // on the same connection
        talk.connection.handle_closed();
        talk.connect(true);
        talk.broker(publish(7, qos, true)); // and on the next
        talk.says([]);
        talk.sends([]);
        talk.connection.settle(delivery);
        talk.sends([if qos == QoS::AtLeastOnce { "puback 7" } else { "pubrec 7" }]);
        assert_eq!(talk.connection.counters().duplicates, 2);
    }
}

#[test]
fn after_pubrec_a_repeated_message_gets_pubrec_again_until_pubrel() {
    let mut talk = Talk::up(Options::new("c"));
    talk.broker(publish(7, QoS::ExactlyOnce, false));
    talk.settle_all();
    talk.sends(["pubrec 7"]);
    talk.connection.handle_closed();
    talk.connect(true);
    talk.broker(publish(7, QoS::ExactlyOnce, true));
    talk.broker(publish(7, QoS::ExactlyOnce, false)); // DUP says nothing for QoS 2
    talk.says([]);
    talk.sends(["pubrec 7", "pubrec 7"]);
    talk.broker(Packet::PubRel(PubRel::new(7)));
    talk.sends(["pubcomp 7"]);
    talk.broker(publish(7, QoS::ExactlyOnce, false));
    assert_eq!(talk.deliveries().len(), 1, "the id stands for another message after PUBREL");
}

#[test]
fn a_message_settled_while_away_is_acknowledged_when_the_broker_repeats_it() {
    for (qos, ack) in [(QoS::AtLeastOnce, "puback 7"), (QoS::ExactlyOnce, "pubrec 7")] {
        for settled_on_the_new_connection in [false, true] {
            let mut talk = Talk::up(Options::new("c"));
            talk.broker(publish(7, qos, false));
            let [delivery] = talk.deliveries()[..] else { panic!() };
            talk.connection.handle_closed();
            if !settled_on_the_new_connection {
                talk.connection.settle(delivery);
            }
            talk.connect(true);
            if settled_on_the_new_connection {
                talk.connection.settle(delivery);
            }
            talk.sends([]);
            talk.broker(publish(7, qos, true));
            talk.says([]);
            talk.sends([ack]);
        }
    }
}

#[test]
fn a_broker_that_uses_an_id_again_for_another_message_of_qos_2_is_heard() {
    for settled in [false, true] {
        let mut talk = Talk::up(Options::new("c"));
        talk.broker(publish(7, QoS::ExactlyOnce, false));
        let [first] = talk.deliveries()[..] else { panic!() };
        if settled {
            talk.connection.settle(first);
            talk.sends(["pubrec 7"]);
        }
        // It was killed, and goes on from before the first.
        talk.connection.handle_closed();
        talk.connect(true);
        let mut other = Publish::new("t", QoS::ExactlyOnce, "other");
        other.pkid = 7;
        talk.broker(Packet::Publish(other.clone()));
        let [second] = talk.deliveries()[..] else { panic!("it is lost") };
        talk.connection.settle(second);
        talk.sends(["pubrec 7"]);
        other.dup = true;
        talk.broker(Packet::Publish(other));
        talk.says([]);
        talk.sends(["pubrec 7"]);
        talk.broker(Packet::PubRel(PubRel::new(7)));
        talk.sends(["pubcomp 7"]);
    }
}

#[test]
fn a_qos_1_message_without_dup_is_another_one() {
    let mut talk = Talk::up(Options::new("c"));
    talk.broker(publish(7, QoS::AtLeastOnce, false));
    let [first] = talk.deliveries()[..] else { panic!() };
    talk.broker(publish(7, QoS::AtLeastOnce, false));
    let [second] = talk.deliveries()[..] else { panic!() };
    talk.connection.settle(first);
    talk.sends([]);
    talk.connection.settle(second);
    talk.sends(["puback 7"]);
}

#[test]
fn a_lost_session_takes_its_deliveries_along() {
    let mut talk = Talk::up(Options::new("c"));
    talk.broker(publish(7, QoS::AtLeastOnce, false));
    talk.broker(publish(8, QoS::ExactlyOnce, false));
    let old = talk.deliveries();
    talk.connection.handle_closed();
    talk.connect(false);
    talk.broker(publish(7, QoS::AtLeastOnce, false));
    talk.broker(publish(8, QoS::ExactlyOnce, false));
    assert_eq!(talk.deliveries().len(), 2);
    for delivery in old {
        talk.connection.settle(delivery);
    }
    talk.sends([]);
    assert_eq!(talk.connection.counters().stale_settles, 2);
}

#[test]
fn answers_that_belong_to_nothing_are_counted() {
    let mut talk = Talk::up(Options::new("c"));
    talk.publish(QoS::AtLeastOnce, "a");
    talk.publish(QoS::ExactlyOnce, "b");
    talk.subscribe(&["f"]);
    talk.take();
    for stray in [
        puback(9),
        puback(3),                        // a subscribe
        Packet::PubComp(PubComp::new(2)), // before PUBREC
        Packet::PubComp(PubComp::new(1)),
        suback(1, &[SubscribeReasonCode::Failure]),
        Packet::UnsubAck(UnsubAck::new(3)),
        Packet::PingResp,
        puback(0),
    ] {
        talk.broker(stray);
    }
    talk.sends([]);
    talk.broker(Packet::PubRec(PubRec::new(9)));
    talk.broker(Packet::PubRel(PubRel::new(9)));
    talk.sends(["pubrel 9", "pubcomp 9"]);
    talk.says([]);
    assert_eq!(talk.connection.counters().strays, 10);
    assert_eq!(talk.connection.unfinished(), 2);
    assert!(talk.connection.is_connected());
}

#[test]
fn a_packet_out_of_turn_is_a_failure() {
    let mut talk = Talk::new(Options::new("c"));
    talk.connection.handle_connected(talk.now).unwrap();
    assert_eq!(talk.try_broker(Packet::PingResp), Err(Failure::Unexpected(PacketType(13))));
    talk.connection.handle_closed();
    talk.connect(false);
    assert_eq!(talk.try_broker(connack(false)), Err(Failure::Unexpected(PacketType(2))));
    assert_eq!(talk.try_broker(puback(1)), Ok(()), "what comes after a failure is not read");
    assert_eq!(talk.connection.take_output(talk.now), None);
    assert_eq!(talk.connection.poll_timeout(), None);
    let said = Failure::Unexpected(PacketType(2)).to_string();
    assert_eq!(said, "the broker sent an unexpected CONNACK");
}

#[test]
fn what_came_before_a_malformed_packet_counts() {
    let mut talk = Talk::up(Options::new("c"));
    let token = talk.publish(QoS::AtLeastOnce, "a");
    talk.take();
    let result = talk.connection.handle_bytes(talk.now, &[0x40, 2, 0, 1, 0x41, 2, 0, 1]);
    assert_eq!(result, Err(Failure::Malformed { packet: PacketType(4), what: Malformed::Flags }));
    talk.says([Event::Completed(token, Ok(()))]);
}

#[test]
fn octets_may_be_cut_anywhere() {
    let mut stream = BytesMut::new();
    for packet in [
        connack(false),
        publish(7, QoS::AtLeastOnce, false),
        publish(0, QoS::AtMostOnce, false),
        Packet::PubRel(PubRel::new(3)),
        publish(8, QoS::ExactlyOnce, true),
    ] {
        packet.write(&mut stream, usize::MAX).unwrap();
    }
    let played = |size: usize| {
        let mut talk = Talk::new(Options::new("c"));
        talk.connection.handle_connected(talk.now).unwrap();
        talk.take();
        for part in stream.chunks(size) {
            talk.connection.handle_bytes(talk.now, part).unwrap();
        }
        (talk.events(), talk.take())
    };
    let whole = played(stream.len());
    assert_eq!(whole.0.len(), 4);
    for size in 1..stream.len() {
        assert_eq!(played(size), whole, "parts of {size} octets");
    }
}

#[test]
fn a_message_too_large_is_acknowledged_counted_and_dropped() {
    let mut options = Options::new("c");
    options.packet_len_max = 100;
    let mut large = BytesMut::new();
    for (id, qos) in [(0, QoS::AtMostOnce), (7, QoS::AtLeastOnce), (8, QoS::ExactlyOnce)] {
        let mut publish = Publish::new("t", qos, vec![0x20; 200]); // a CONNACK if it were read
        publish.pkid = id;
        publish.write(&mut large).unwrap();
    }
    for size in [1, 7, 150, 1000] {
        let mut talk = Talk::up(options.clone());
        for part in large.chunks(size) {
            talk.connection.handle_bytes(talk.now, part).unwrap();
        }
        talk.broker(publish(9, QoS::AtLeastOnce, false));
        talk.settle_all();
        talk.sends(["puback 7", "pubrec 8", "puback 9"]);
        talk.broker(Packet::PubRel(PubRel::new(8)));
        talk.sends(["pubcomp 8"]);
        assert_eq!(talk.connection.counters().oversized, 3);
        assert_eq!(talk.connection.counters().strays, 0);
        // The rest of a message that was cut is not skipped on the next connection.
        talk.connection.handle_bytes(talk.now, &large[..20]).unwrap();
        talk.connection.handle_closed();
        talk.connect(true);
    }
}

#[test]
fn a_broker_that_sends_and_does_not_read_is_given_up() {
    let mut options = Options::new("c");
    options.buffer = 1;
    let mut talk = Talk::up(options);
    let pubrels = [0x62, 2, 0, 1].repeat(1000);
    let failure = (0..2000).find_map(|_| talk.connection.handle_bytes(talk.now, &pubrels).err());
    assert_eq!(failure, Some(Failure::NotReading));
    assert_eq!(talk.connection.take_output(talk.now), None);
}

#[test]
fn a_session_that_somebody_else_left_is_removed_first() {
    let mut options = Options::new("c");
    options.will = Some(message(QoS::AtMostOnce, "gone"));
    let mut talk = Talk::new(options);
    let token = talk.subscribe(&["f"]);
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c resume keep-alive 60 will q0 gone"]);
    talk.try_broker_all([connack(true), publish(1, QoS::ExactlyOnce, true), Packet::PubRel(PubRel::new(2))])
        .unwrap();
    talk.says([Event::Reconnect]);
    talk.sends(["disconnect"]);
    // The clean connection may fail; the next one tries again.
    for _ in 0..2 {
        talk.connection.handle_closed();
        talk.connection.handle_connected(talk.now).unwrap();
        talk.sends(["connect c clean keep-alive 60"]);
    }
    talk.broker(connack(false));
    talk.says([Event::Reconnect]);
    talk.sends(["disconnect"]);
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c resume keep-alive 60 will q0 gone"]);
    talk.broker(connack(false));
    talk.says([Event::Connected { session_present: false }]);
    talk.sends(["subscribe 1 f:q1"]);
    talk.broker(suback(1, &[SubscribeReasonCode::Failure]));
    talk.says([Event::Subscribed(token, vec![Err(Refused(0x80))])]);
    assert_eq!(talk.connection.counters().purges, 1);
    // From then on it is ours.
    talk.connection.handle_closed();
    talk.connect(true);
}

#[test]
fn a_session_that_is_adopted_is_not_removed_and_its_owner_is_told() {
    let mut options = Options::new("c");
    options.session = Session::Adopt;
    let mut talk = Talk::new(options);
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c resume keep-alive 60"]);
    talk.broker(connack(true));
    talk.says([Event::Connected { session_present: true }]);
    assert_eq!(talk.connection.counters().purges, 0);
    talk.connect(false);
    assert_eq!(talk.connection.counters().sessions_lost, 1);
}

#[test]
fn in_an_adopted_session_an_id_is_released_before_its_first_message_of_qos_2() {
    let mut options = Options::new("c");
    options.session = Session::Adopt;
    let mut talk = Talk::new(options);
    let token = talk.publish(QoS::ExactlyOnce, "a");
    talk.connect(true);
    talk.publish(QoS::AtLeastOnce, "b");
    talk.events();
    talk.sends(["pubrel 1", "publish 1 q2 a", "publish 2 q1 b"]);
    talk.broker(Packet::PubComp(PubComp::new(1)));
    talk.says([]);
    talk.broker(Packet::PubRec(PubRec::new(1)));
    talk.says([Event::Received(token)]);
    talk.sends(["pubrel 1"]);
    talk.broker(Packet::PubComp(PubComp::new(1)));
    talk.says([Event::Completed(token, Ok(()))]);
    // The ids come round: whatever was under them is released by now.
    for _ in 2..u16::MAX {
        talk.publish(QoS::AtLeastOnce, "m");
        let id = talk.take()[0].split(' ').nth(1).unwrap().parse().unwrap();
        talk.broker(puback(id));
    }
    talk.publish(QoS::ExactlyOnce, "c");
    talk.sends(["publish 1 q2 c"]);
}

#[test]
fn a_will_is_changed_with_the_next_connection() {
    let mut talk = Talk::up(Options::new("c"));
    talk.connection.set_will(Some(message(QoS::AtMostOnce, "gone")));
    talk.sends([]);
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c resume keep-alive 60 will q0 gone"]);
}

#[test]
fn a_broker_that_always_claims_a_session_is_asked_to_remove_it_once() {
    let mut talk = Talk::new(Options::new("c"));
    for expected in [Event::Reconnect, Event::Reconnect, Event::Connected { session_present: false }] {
        talk.connection.handle_connected(talk.now).unwrap();
        talk.broker(connack(true));
        talk.says([expected]);
        talk.connection.handle_closed();
    }
}

#[test]
fn purge_leaves_no_session_behind() {
    let mut talk = Talk::up(Options::new("c"));
    talk.connection.purge();
    talk.says([Event::Reconnect]);
    talk.sends(["disconnect"]);
    talk.connection.handle_closed();
    talk.connection.handle_connected(talk.now).unwrap();
    talk.sends(["connect c clean keep-alive 60"]);
    talk.broker(connack(false));
    talk.says([Event::Purged]);
    talk.sends(["disconnect"]);
    talk.connection.handle_closed();

    let mut options = Options::new("c");
    options.session = Session::Clean;
    let mut talk = Talk::up(options);
    talk.connection.purge();
    talk.says([Event::Purged]);
    talk.sends(["disconnect"]);
}

#[test]
fn after_an_unanswered_connect_subscriptions_are_issued_again_and_new_messages_are_not_taken_for_old() {
    for ended_by_failure in [false, true] {
        let mut talk = Talk::up(Options::new("c"));
        talk.publish(QoS::AtLeastOnce, "a");
        talk.broker(publish(7, QoS::ExactlyOnce, false));
        talk.broker(publish(8, QoS::ExactlyOnce, false));
        talk.settle_all();
        talk.take();
        talk.connection.handle_closed();
        // The broker has lost the session and begins one, but its CONNACK does not arrive.
        talk.connection.handle_connected(talk.now).unwrap();
        if ended_by_failure {
            talk.now += talk.connection.options().connect_timeout;
            talk.connection.handle_timeout(talk.now).unwrap_err();
        }
        talk.connection.handle_closed();
        talk.connection.handle_connected(talk.now).unwrap();
        talk.take();
        talk.broker(connack(true));
        talk.says([Event::Connected { session_present: false }]);
        talk.sends(["publish 1 dup q1 a"]);
        talk.broker(publish(8, QoS::ExactlyOnce, true)); // the old session?
        assert_eq!(talk.deliveries().len(), 0);
        talk.sends(["pubrec 8"]);
        talk.broker(publish(7, QoS::ExactlyOnce, false)); // the broker uses the id again
        assert_eq!(talk.deliveries().len(), 1);
        talk.connection.handle_closed();
        talk.connect(true);
    }
}

#[test]
fn a_pingreq_is_sent_when_nothing_was_sent_for_the_keep_alive() {
    let mut talk = Talk::up(Options::new("c"));
    let start = talk.now;
    assert_eq!(talk.connection.poll_timeout(), Some(start + secs(60)));
    talk.now = start + secs(30);
    let token = talk.publish(QoS::AtLeastOnce, "m");
    talk.take();
    talk.now = start + secs(31);
    talk.broker(puback(1));
    talk.says([Event::Completed(token, Ok(()))]);
    assert_eq!(talk.connection.poll_timeout(), Some(start + secs(90)));
    talk.now = start + secs(89);
    talk.connection.handle_timeout(talk.now).unwrap();
    talk.sends([]);
    talk.now = start + secs(90);
    talk.connection.handle_timeout(talk.now).unwrap();
    talk.sends(["pingreq"]);
    assert_eq!(talk.connection.poll_timeout(), Some(start + secs(120)));
    talk.broker(Packet::PingResp);
    assert_eq!(talk.connection.poll_timeout(), Some(start + secs(150)));
    assert_eq!(talk.connection.counters().pings, 1);
}

#[test]
fn who_only_sends_notices_that_nobody_is_there() {
    let mut talk = Talk::up(Options::new("c"));
    let start = talk.now;
    for _ in 0..6 {
        talk.now += secs(10);
        talk.connection.publish(message(QoS::AtMostOnce, "m")).unwrap();
        talk.connection.handle_timeout(talk.now).unwrap();
        talk.take();
    }
    assert_eq!(talk.connection.counters().pings, 1);
    assert_eq!(talk.connection.poll_timeout(), Some(start + secs(90)));
}

#[test]
fn a_missing_pingresp_ends_the_connection() {
    for (keep_alive, given) in [(secs(60), secs(30)), (secs(4), PING_TIMEOUT_MIN)] {
        let mut options = Options::new("c");
        options.keep_alive = keep_alive;
        let mut talk = Talk::up(options);
        talk.now += keep_alive;
        talk.connection.handle_timeout(talk.now).unwrap();
        talk.sends(["pingreq"]);
        talk.now += given;
        assert_eq!(talk.connection.poll_timeout(), Some(talk.now));
        assert_eq!(talk.connection.handle_timeout(talk.now), Err(Failure::NoPingResp));
        assert!(!talk.connection.is_connected());
        assert_eq!(talk.connection.poll_timeout(), None);
        talk.connection.handle_closed();
        talk.connect(true);
        assert_eq!(talk.connection.poll_timeout(), Some(talk.now + keep_alive));
    }
}

#[test]
fn a_missing_connack_ends_the_connection() {
    let mut talk = Talk::new(Options::new("c"));
    assert_eq!(talk.connection.poll_timeout(), None);
    talk.connection.handle_connected(talk.now).unwrap();
    talk.now += secs(10);
    assert_eq!(talk.connection.poll_timeout(), Some(talk.now));
    assert_eq!(talk.connection.handle_timeout(talk.now), Err(Failure::NoConnAck));
}

#[test]
fn without_keep_alive_there_is_no_deadline() {
    let mut options = Options::new("c");
    options.keep_alive = Duration::ZERO;
    let mut talk = Talk::up(options);
    assert_eq!(talk.connection.poll_timeout(), None);
    talk.now += secs(1_000_000);
    talk.connection.handle_timeout(talk.now).unwrap();
    talk.sends([]);

    let mut options = Options::new("c");
    (options.keep_alive, options.connect_timeout) = (Duration::MAX, Duration::MAX);
    Talk::up(options).connection.poll_timeout().unwrap();
}

#[test]
fn disconnect_is_the_last_packet() {
    let mut talk = Talk::up(Options::new("c"));
    talk.publish(QoS::AtLeastOnce, "a");
    talk.connection.disconnect();
    talk.publish(QoS::AtLeastOnce, "b");
    assert_eq!(talk.connection.publish(message(QoS::AtMostOnce, "c")), Err(Full::Offline));
    talk.broker(publish(7, QoS::AtLeastOnce, false));
    talk.sends(["publish 1 q1 a", "disconnect"]);
    talk.says([]);
    talk.connection.handle_closed();
    talk.connect(true);
    talk.sends(["publish 1 dup q1 a", "publish 2 q1 b"]);
}

#[derive(Debug, Clone)]
enum Step {
    Connected,
    Closed,
    Accepted { session_present: bool },
    Octets(Vec<u8>),
    Answer { first: u8, id: u8 },
    Publish { id: u8, qos: u8, dup: bool },
    Ours { qos: u8, len: u8 },
    Subscribe,
    Unsubscribe,
    Settle(u8),
    Take,
    Wait(u8),
    Purge,
    Disconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let first = prop::sample::select(vec![0x40, 0x50, 0x62, 0x70, 0xB0]);
    prop_oneof![
        4 => Just(Step::Connected),
        2 => Just(Step::Closed),
        6 => any::<bool>().prop_map(|session_present| Step::Accepted { session_present }),
        1 => prop::collection::vec(any::<u8>(), 0..12).prop_map(Step::Octets),
        12 => (first, 0..8u8).prop_map(|(first, id)| Step::Answer { first, id }),
        4 => (1..8u8, 0..3u8, any::<bool>()).prop_map(|(id, qos, dup)| Step::Publish { id, qos, dup }),
        8 => (0..3u8, any::<u8>()).prop_map(|(qos, len)| Step::Ours { qos, len }),
        1 => Just(Step::Subscribe),
        1 => Just(Step::Unsubscribe),
        4 => any::<u8>().prop_map(Step::Settle),
        8 => Just(Step::Take),
        2 => any::<u8>().prop_map(Step::Wait),
        1 => Just(Step::Purge),
        1 => Just(Step::Disconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the broker and the owner do, nothing panics, what is sent can be read, the bounds hold, and every
    /// publish is over at most once.
    #[test]
    fn no_broker_and_no_owner_upsets_it(steps in prop::collection::vec(step(), 0..120)) {
        let mut options = Options::new("c");
        (options.window, options.queue, options.buffer, options.packet_len_max) = (3, 4, 64, 200);
        let mut talk = Talk::new(options);
        let mut deliveries = Vec::new();
        let mut over = std::collections::BTreeSet::new();
        for step in steps {
            let result = match step {
                Step::Connected => talk.connection.handle_connected(talk.now),
                Step::Closed => { talk.connection.handle_closed(); Ok(()) }
                Step::Accepted { session_present } if !talk.connection.is_connected() => talk.try_broker(connack(session_present)),
                Step::Accepted { .. } => Ok(()),
                Step::Octets(octets) => talk.connection.handle_bytes(talk.now, &octets),
                Step::Answer { first, id } => talk.connection.handle_bytes(talk.now, &[first, 2, 0, id]),
                Step::Publish { id, qos, dup } => {
                    let qos = rumqttc::mqttbytes::qos(qos).unwrap();
                    talk.try_broker(publish(if qos == QoS::AtMostOnce { 0 } else { id.into() }, qos, dup))
                }
                Step::Ours { qos, len } => {
                    let qos = rumqttc::mqttbytes::qos(qos).unwrap();
                    let _ = talk.connection.publish(message(qos, &"x".repeat(len.into())));
                    Ok(())
                }
                Step::Subscribe => { talk.subscribe(&["a"]); Ok(()) }
                Step::Unsubscribe => { talk.connection.unsubscribe(&[TopicFilter::new("a").unwrap()]).unwrap(); Ok(()) }
                Step::Settle(n) => {
                    if let Some(delivery) = deliveries.get(usize::from(n) % deliveries.len().max(1)) {
                        talk.connection.settle(*delivery);
                    }
                    Ok(())
                }
                Step::Take => { talk.take(); Ok(()) }
                Step::Wait(seconds) => { talk.now += secs(seconds.into()); talk.connection.handle_timeout(talk.now) }
                Step::Purge => { talk.connection.purge(); Ok(()) }
                Step::Disconnect => { talk.connection.disconnect(); Ok(()) }
            };
            if result.is_err() {
                prop_assert!(!talk.connection.is_connected());
                prop_assert_eq!(talk.connection.take_output(talk.now), None);
            }
            prop_assert!(talk.connection.unfinished() <= 3 + 4);
            prop_assert!(talk.connection.poll_timeout().is_none_or(|deadline| deadline <= talk.now + secs(60)));
            for event in talk.events() {
                match event {
                    Event::Message { delivery: Some(delivery), .. } => deliveries.push(delivery),
                    Event::Completed(token, _) | Event::Subscribed(token, _) | Event::Unsubscribed(token) => {
                        prop_assert!(over.insert(token), "{:?} is over twice", token);
                    }
                    _ => {}
                }
            }
        }
        deliveries.sort_unstable();
        let count = deliveries.len();
        deliveries.dedup();
        prop_assert_eq!(deliveries.len(), count, "a delivery id was used again");
    }
}

/// A connection, the clock, and the test as its broker and owner.
struct Talk {
    connection: Connection,
    now: Instant,
}

impl Talk {
    fn new(options: Options) -> Self {
        Self { connection: Connection::new(options), now: Instant::now() }
    }

    #[track_caller]
    fn up(options: Options) -> Self {
        let mut talk = Self::new(options);
        talk.connect(false);
        talk
    }

    #[track_caller]
    fn connect(&mut self, session_present: bool) {
        self.connection.handle_connected(self.now).unwrap();
        assert!(self.connection.take_output(self.now).is_some());
        self.broker(connack(session_present));
        assert_eq!(self.events().pop(), Some(Event::Connected { session_present }));
    }

    #[track_caller]
    fn broker(&mut self, packet: Packet) {
        self.try_broker(packet).unwrap();
    }

    fn try_broker(&mut self, packet: Packet) -> Result<(), Failure> {
        self.try_broker_all([packet])
    }

    fn try_broker_all<const N: usize>(&mut self, packets: [Packet; N]) -> Result<(), Failure> {
        let mut octets = BytesMut::new();
        for packet in packets {
            packet.write(&mut octets, usize::MAX).unwrap();
        }
        self.connection.handle_bytes(self.now, &octets)
    }

    #[track_caller]
    fn publish(&mut self, qos: QoS, payload: &str) -> Token {
        self.connection.publish(message(qos, payload)).unwrap().unwrap()
    }

    #[track_caller]
    fn subscribe(&mut self, filters: &[&str]) -> Token {
        let filters: Vec<_> =
            filters.iter().map(|filter| (TopicFilter::new(filter).unwrap(), QoS::AtLeastOnce)).collect();
        self.connection.subscribe(&filters).unwrap()
    }

    fn take(&mut self) -> Vec<String> {
        let output = self.connection.take_output(self.now);
        lines(&output.unwrap_or_default())
    }

    #[track_caller]
    fn sends<const N: usize>(&mut self, expected: [&str; N]) {
        assert_eq!(self.take(), expected);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.connection.poll_event()).collect()
    }

    #[track_caller]
    fn says<const N: usize>(&mut self, expected: [Event; N]) {
        assert_eq!(self.events(), expected);
    }

    fn deliveries(&mut self) -> Vec<DeliveryId> {
        let delivery = |event| if let Event::Message { delivery, .. } = event { delivery } else { None };
        self.events().into_iter().filter_map(delivery).collect()
    }

    fn settle_all(&mut self) {
        for delivery in self.deliveries() {
            self.connection.settle(delivery);
        }
    }
}

fn message(qos: QoS, payload: &str) -> Message {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Message { topic: TopicName::new("t").unwrap(), payload, qos, retain: false }
}

fn connack(session_present: bool) -> Packet {
    Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present))
}

fn puback(id: u16) -> Packet {
    Packet::PubAck(PubAck::new(id))
}

fn suback(id: u16, codes: &[SubscribeReasonCode]) -> Packet {
    Packet::SubAck(SubAck::new(id, codes.to_vec()))
}

fn publish(id: u16, qos: QoS, dup: bool) -> Packet {
    let mut publish = Publish::new("t", qos, "m");
    (publish.pkid, publish.dup) = (id, dup);
    Packet::Publish(publish)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Each packet of a client as a line: what it is, its id, its flags, what it carries.
#[track_caller]
fn lines(output: &[u8]) -> Vec<String> {
    let mut stream = BytesMut::from(output);
    let mut lines = Vec::new();
    while !stream.is_empty() {
        lines.push(line(Packet::read(&mut stream, usize::MAX).expect("a whole packet")));
    }
    lines
}

fn line(packet: Packet) -> String {
    let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
    match packet {
        Packet::Connect(connect) => {
            let session = if connect.clean_session { "clean" } else { "resume" };
            let will = connect.last_will.map_or_else(String::new, |will| {
                let retain = if will.retain { "retain " } else { "" };
                format!(" will q{} {retain}{}", will.qos as u8, text(&will.message))
            });
            let login = connect
                .login
                .map_or_else(String::new, |login| format!(" login {} {}", login.username, login.password));
            format!("connect {} {session} keep-alive {}{will}{login}", connect.client_id, connect.keep_alive)
        }
        Packet::Publish(publish) => {
            let dup = if publish.dup { "dup " } else { "" };
            format!("publish {} {dup}q{} {}", publish.pkid, publish.qos as u8, text(&publish.payload))
        }
        Packet::PubAck(ack) => format!("puback {}", ack.pkid),
        Packet::PubRec(ack) => format!("pubrec {}", ack.pkid),
        Packet::PubRel(ack) => format!("pubrel {}", ack.pkid),
        Packet::PubComp(ack) => format!("pubcomp {}", ack.pkid),
        Packet::Subscribe(subscribe) => {
            let filters: Vec<_> = subscribe
                .filters
                .iter()
                .map(|filter| format!("{}:q{}", filter.path, filter.qos as u8))
                .collect();
            format!("subscribe {} {}", subscribe.pkid, filters.join(" "))
        }
        Packet::Unsubscribe(unsubscribe) => {
            format!("unsubscribe {} {}", unsubscribe.pkid, unsubscribe.topics.join(" "))
        }
        Packet::PingReq => "pingreq".into(),
        Packet::Disconnect => "disconnect".into(),
        other => format!("{other:?}"),
    }
}
