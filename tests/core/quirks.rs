//! Clients as they are (Interpretation: A-45): octet for octet what emcute, Zephyr, the Paho library and mqtt-sn-tools send, and what
//! they do with what they get.

use mqtt_sn_gateway::wire::{Qos, ReturnCode, TopicRef};
use rumqttc::QoS;

use crate::world::*;

const A: At = 1;

fn octets(hex: &str) -> bytes::Bytes {
    let digits: String = hex.split_whitespace().collect();
    let octet = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(octet).collect()
}

/// Sends these octets.
fn say(w: &mut World, hex: &str) {
    w.send_octets(A, octets(hex));
}

/// The next frame, which must be these octets; `..` stands for any octet.
#[track_caller]
fn hear(w: &mut World, pattern: &str) -> bytes::Bytes {
    let frame = w.next(A);
    let words: Vec<_> = pattern.split_whitespace().collect();
    let same = |(word, octet): (&&str, &u8)| *word == ".." || u8::from_str_radix(word, 16).unwrap() == *octet;
    assert!(words.len() == frame.len() && words.iter().zip(&frame).all(same), "{frame:02x?}, not {pattern}");
    frame
}

/// The two octets at this place.
fn at(frame: &[u8], place: usize) -> String {
    format!("{:02X} {:02X}", frame[place], frame[place + 1])
}

// emcute, of RIOT.

/// It is connected with a keep-alive of 360 s and has subscribed to `s/1` at QoS 1; returns the topic id.
fn emcute() -> (World, String) {
    let mut w = world();
    say(&mut w, "0C 04 04 01 01 68 65 6D 63 75 74 65");
    hear(&mut w, "03 05 00");
    say(&mut w, "08 12 20 12 34 73 2F 31");
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    // It takes the id for a number greater than 0, at this place.
    let suback = hear(&mut w, "08 13 20 .. .. 12 34 00");
    (w, at(&suback, 3))
}

#[test]
fn emcute_registers_publishes_and_changes_its_will() {
    let mut w = world();
    // With a Will: QoS 1, retained.
    say(&mut w, "0C 04 0C 01 01 68 65 6D 63 75 74 65");
    hear(&mut w, "02 06");
    say(&mut w, "06 07 30 77 2F 31");
    hear(&mut w, "02 08");
    say(&mut w, "05 09 62 79 65");
    hear(&mut w, "03 05 00");
    say(&mut w, "09 0A 00 00 12 34 61 2F 62");
    let regack = hear(&mut w, "07 0B .. .. 12 34 00");
    let id = at(&regack, 2);
    say(&mut w, &format!("09 0C 00 {id} 00 00 68 69"));
    w.broker_gets("a/b", "hi", QoS::AtMostOnce);
    say(&mut w, &format!("09 0C 20 {id} 12 35 68 69"));
    let pkid = w.broker_gets("a/b", "hi", QoS::AtLeastOnce);
    w.broker_says(rumqttc::mqttbytes::v4::Packet::PubAck(rumqttc::mqttbytes::v4::PubAck { pkid }));
    hear(&mut w, &format!("07 0D {id} 12 35 00"));
    say(&mut w, "06 1A 00 77 2F 32");
    hear(&mut w, "03 1B 00");
    say(&mut w, "04 1C 6E 6F");
    hear(&mut w, "03 1D 00");
    // Without a topic: no Will.
    say(&mut w, "02 1A");
    hear(&mut w, "03 1B 00");
    say(&mut w, "02 16");
    hear(&mut w, "02 17");
    say(&mut w, "02 18");
    hear(&mut w, "02 18");
    w.broker_quiet();
}

/// It has the long form for data of 247 octets, which would do with the short one.
#[test]
fn emcute_sends_the_long_form_early() {
    let mut w = world();
    say(&mut w, "0C 04 04 01 01 68 65 6D 63 75 74 65");
    hear(&mut w, "03 05 00");
    for data in [247, 248, 249] {
        let total = data + 9_u16;
        let [high, low] = total.to_be_bytes();
        let mut frame = vec![1, high, low, 0x0C, 0x02, b'a', b'b', 0, 0];
        frame.resize(usize::from(total), b'x');
        w.send_octets(A, frame.into());
        w.broker_gets("ab", &"x".repeat(usize::from(data)), QoS::AtMostOnce);
    }
}

/// It knows no REGISTER and never answers one.
#[test]
fn emcute_is_not_lost_and_not_blocked_over_a_register_that_it_does_not_know() {
    let (mut w, id) = emcute();
    w.subscribed(A, "w/+", QoS::AtLeastOnce);
    w.broker_publishes(1, "w/1", "a", QoS::AtLeastOnce);
    w.broker_publishes(2, "s/1", "b", QoS::AtLeastOnce);
    for _ in 0..4 {
        w.expect_register(A, "w/1");
        w.pass(RETRY);
    }
    let publish = hear(&mut w, &format!("08 0C 20 {id} .. .. 62"));
    say(&mut w, &format!("07 0D {id} {} 00", at(&publish, 5)));
    w.quiet();
    w.broker_gets_puback(2);
    w.broker_gets_puback(1);
    // Heard, it is tried once more, and then the name rests, while everything is as it was.
    w.pass(RETRY);
    for _ in 0..4 {
        w.expect_register(A, "w/1");
        w.pass(RETRY);
    }
    w.broker_publishes(3, "s/1", "c", QoS::AtLeastOnce);
    let publish = hear(&mut w, &format!("08 0C 20 {id} .. .. 63"));
    say(&mut w, &format!("07 0D {id} {} 00", at(&publish, 5)));
    w.pass(RETRY * 3);
    for waiting in [1, 0] {
        assert_eq!((w.gw.counters().downlink_unanswered, w.gw.waiting_messages()), (0, 1));
        for _ in 0..4 {
            w.expect_register(A, "w/1");
            w.pass(RETRY);
        }
        assert_eq!(w.gw.waiting_messages(), waiting);
        w.pass(RETRY);
        say(&mut w, "02 16");
        hear(&mut w, "02 17");
        w.pass(RETRY * 3);
    }
    assert_eq!(w.gw.counters().downlink_unanswered, 1);
    assert_eq!(w.gw.counters().clients_lost, 0);
}

/// It refuses DUP with 03, so that a message whose first copy was lost would never reach it.
#[test]
fn emcute_gets_a_message_whose_first_copy_was_lost() {
    let (mut w, id) = emcute();
    w.broker_publishes(1, "s/1", "a", QoS::AtLeastOnce);
    let first = hear(&mut w, &format!("08 0C 20 {id} .. .. 61"));
    w.pass(RETRY);
    let again = hear(&mut w, &format!("08 0C A0 {id} {} 61", at(&first, 5)));
    say(&mut w, &format!("07 0D {id} {} 03", at(&again, 5)));
    let new = hear(&mut w, &format!("08 0C 20 {id} .. .. 61"));
    assert_ne!(at(&new, 5), at(&first, 5));
    say(&mut w, &format!("07 0D {id} {} 00", at(&new, 5)));
    w.broker_gets_puback(1);
    assert_eq!((w.gw.counters().downlink_delivered, w.gw.counters().downlink_refused), (1, 0));
    // Once only.
    w.broker_publishes(2, "s/1", "b", QoS::AtLeastOnce);
    w.next(A);
    w.pass(RETRY);
    for flags in ["A0", "20"] {
        let frame = hear(&mut w, &format!("08 0C {flags} {id} .. .. 62"));
        say(&mut w, &format!("07 0D {id} {} 03", at(&frame, 5)));
    }
    w.quiet();
    assert_eq!(w.gw.counters().downlink_refused, 1);
    // Also where the new one is lost like the first.
    w.broker_publishes(3, "s/1", "c", QoS::AtLeastOnce);
    w.next(A);
    w.pass(RETRY);
    for flags in ["A0", "20", "A0"] {
        let frame = hear(&mut w, &format!("08 0C {flags} {id} .. .. 63"));
        if flags == "20" {
            w.pass(RETRY);
        } else {
            say(&mut w, &format!("07 0D {id} {} 03", at(&frame, 5)));
        }
    }
    w.quiet();
    assert_eq!(w.gw.counters().downlink_refused, 2);
}

/// It refuses QoS 2 with 03; sent once more it could not become two.
#[test]
fn what_emcute_refuses_is_dropped_and_blocks_nothing() {
    let (mut w, id) = emcute();
    let exact = TopicRef::Normal(w.subscribed(A, "e/1", QoS::ExactlyOnce));
    w.broker_publishes(1, "e/1", "a", QoS::ExactlyOnce);
    let msg_id = w.expect_publish(A, exact, Qos::ExactlyOnce, false, "a");
    w.pass(RETRY);
    w.expect_publish(A, exact, Qos::ExactlyOnce, true, "a");
    w.send(A, puback(exact, msg_id, ReturnCode::NotSupported));
    w.quiet();
    // A number that it does not know, at QoS 0.
    w.broker_publishes(0, "s/1", "b", QoS::AtMostOnce);
    hear(&mut w, &format!("08 0C 00 {id} 00 00 62"));
    say(&mut w, &format!("07 0D {id} 00 00 02"));
    w.broker_publishes(0, "s/1", "c", QoS::AtMostOnce);
    w.expect_register(A, "s/1");
    assert_eq!(w.gw.counters().downlink_refused, 1);
}

/// It looks for the number alone: what it subscribed to by a predefined id or a short name must not share one.
#[test]
fn emcute_is_not_given_a_number_twice() {
    let (mut w, id) = emcute();
    let mut seen = vec![u16::from_str_radix(&id.replace(' ', ""), 16).unwrap(), 1, 2];
    for name in ["a/1", "a/2", "a/3"] {
        let id = w.registered(A, name);
        assert!(!seen.contains(&id));
        seen.push(id);
    }
}

// Zephyr.

/// It takes the acknowledgement of its sleep for the end of its connection, and wakes by CONNECT; it keeps its topic ids.
#[test]
fn zephyr_wakes_by_connect_and_gets_what_waits() {
    let mut w = world();
    say(&mut w, "0A 04 00 01 00 3C 7A 65 70 68");
    hear(&mut w, "03 05 00");
    say(&mut w, "08 12 20 00 01 73 2F 31");
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    let id = at(&hear(&mut w, "08 13 20 .. .. 00 01 00"), 3);
    // The Duration is of two octets, what comes back of none: else it drops it.
    say(&mut w, "04 18 02 58");
    hear(&mut w, "02 18");
    w.broker_publishes(1, "s/1", "a", QoS::AtLeastOnce);
    w.quiet();
    w.broker_gets_puback(1);
    say(&mut w, "0A 04 00 01 00 3C 7A 65 70 68");
    hear(&mut w, "03 05 00");
    let register = hear(&mut w, &format!("09 0A {id} .. .. 73 2F 31"));
    say(&mut w, &format!("07 0B {id} {} 00", at(&register, 4)));
    let publish = hear(&mut w, &format!("08 0C 20 {id} .. .. 61"));
    say(&mut w, &format!("07 0D {id} {} 00", at(&publish, 5)));
    // Out of room for topics it does not answer: it is not lost, and gets the message when it subscribes again.
    say(&mut w, "0A 04 00 01 00 3C 7A 65 70 68");
    hear(&mut w, "03 05 00");
    w.broker_publishes(2, "s/1", "b", QoS::AtLeastOnce);
    hear(&mut w, &format!("09 0A {id} .. .. 73 2F 31"));
    say(&mut w, "08 12 20 00 02 73 2F 31");
    w.broker_grants_subscribe("s/1", QoS::AtLeastOnce);
    hear(&mut w, &format!("08 13 20 {id} 00 02 00"));
    w.pass(RETRY * 4);
    let frames = w.taken();
    let last = frames.last().unwrap();
    assert_eq!((last[1], last[7]), (0x0C, b'b'), "{frames:02x?}");
    assert_eq!(w.gw.counters().clients_lost, 0);
}

/// What it subscribes to by a short name it looks for under the number of the SUBACK.
#[test]
fn zephyr_and_mqtt_sn_tools_find_short_and_predefined_topics_under_the_number_of_the_suback() {
    let mut w = world();
    say(&mut w, "0A 04 04 01 00 3C 7A 65 70 68");
    hear(&mut w, "03 05 00");
    for (subscribe, name, id, flags) in
        [("07 12 22 00 01 61 62", "ab", "61 62", "22"), ("07 12 21 00 02 00 01", "pre/one", "00 01", "21")]
    {
        say(&mut w, subscribe);
        w.broker_grants_subscribe(name, QoS::AtLeastOnce);
        hear(&mut w, &format!("08 13 20 {id} 00 {} 00", &subscribe[12..14]));
        w.broker_publishes(1, name, "x", QoS::AtLeastOnce);
        let publish = hear(&mut w, &format!("08 0C {flags} {id} .. .. 78"));
        say(&mut w, &format!("07 0D {id} {} 00", at(&publish, 5)));
        w.broker_gets_puback(1);
    }
}

// mqtt-sn-tools.

/// Any two characters are a short topic to it, wildcards too.
#[test]
fn mqtt_sn_tools_subscribe_to_wildcards_of_two_characters() {
    let mut w = world();
    say(&mut w, "0B 04 04 01 00 0A 74 6F 6F 6C 73");
    hear(&mut w, "03 05 00");
    say(&mut w, "07 12 22 00 01 2F 23");
    w.broker_grants_subscribe("/#", QoS::AtLeastOnce);
    hear(&mut w, "08 13 20 00 00 00 01 00");
    w.broker_publishes(1, "/x", "x", QoS::AtLeastOnce);
    let register = hear(&mut w, "08 0A .. .. .. .. 2F 78");
    say(&mut w, &format!("07 0B {} {} 00", at(&register, 2), at(&register, 4)));
    hear(&mut w, &format!("08 0C 20 {} .. .. 78", at(&register, 2)));
    say(&mut w, "07 12 22 00 02 61 23");
    hear(&mut w, "08 13 00 00 00 00 02 03");
}

/// It cannot read the long form: a transport with an `mtu` of 255 keeps that from it.
#[test]
fn mqtt_sn_tools_get_no_long_form_where_the_transport_says_so() {
    let mut w = world_with(|settings| settings.ports[0].mtu = 255);
    w.subscriber(A, connect("tools"), "s/1", QoS::AtMostOnce);
    for data in [247, 248, 249, 250, 1000] {
        w.broker_publishes(0, "s/1", &"x".repeat(data), QoS::AtMostOnce);
    }
    let lengths: Vec<_> = w.taken().iter().map(|frame| (frame[0], frame.len())).collect();
    assert_eq!(lengths, [(254, 254), (255, 255)]);
    assert_eq!(w.gw.counters().downlink_oversize, 3);
}

// Paho.

/// Its ids have up to 64 octets, and 255 octets are announced wrongly.
#[test]
fn paho_has_long_ids_and_counts_255_octets_wrongly() {
    let mut w = world();
    let id = "i".repeat(64);
    w.active(A, &id);
    let frame = [&[1, 0, 255, 0x0C, 0x02, b'a', b'b', 0, 0][..], &[b'x'; 248]].concat();
    w.send_octets(A, frame.into());
    w.broker_gets("ab", &"x".repeat(248), QoS::AtMostOnce);
    assert_eq!(w.gw.counters().frames_malformed, 0);
    // QoS -1 with a name before the data is not of this version.
    say(&mut w, "0D 0C 60 00 03 00 00 61 2F 62 68 69 21");
    w.quiet();
    w.broker_quiet();
    assert_eq!(w.gw.counters().qos_minus_one_dropped, 1);
}

// bisquitt.

/// AUTH right after CONNECT is a reserved type in this version.
#[test]
fn bisquitt_may_authenticate_in_vain() {
    let mut w = world();
    say(&mut w, "0A 04 04 01 00 3C 62 69 73 71");
    hear(&mut w, "03 05 00");
    say(&mut w, "0F 03 00 05 50 4C 41 49 4E 00 75 00 70 77 64");
    w.quiet();
    say(&mut w, "02 16");
    hear(&mut w, "02 17");
}
