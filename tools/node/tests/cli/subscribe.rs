//! `sub` against a gateway.

use std::io::Read;

use mqtt_sn_gateway::wire::{Disconnect, Packet, Qos, Register, ReturnCode, SubAck, TopicRef};

use crate::gateway::{Gateway, Octets, encode, good, message};
use crate::{command, run};

/// A gateway that sends these messages once something is subscribed to.
fn gateway_with(
    messages: impl Fn(&mqtt_sn_gateway::wire::Frame<'_>) -> Vec<Octets> + Send + 'static,
) -> Gateway {
    Gateway::start(move |_, frame| {
        let mut answers = good(frame);
        if let Packet::Subscribe(_) = frame.packet {
            answers.extend(messages(frame));
        }
        answers
    })
}

#[test]
fn messages_are_printed_and_counted() {
    let gateway = gateway_with(|frame| {
        vec![
            message(frame, TopicRef::Normal(7), Qos::AtMostOnce, 0, b"zero"),
            message(frame, TopicRef::Normal(7), Qos::AtLeastOnce, 1, b"one"),
            message(frame, TopicRef::Normal(7), Qos::ExactlyOnce, 2, b"two"),
        ]
    });
    run(&format!("sub {} -t a/b -q 2 -C 3", gateway.args())).ends_with(0).prints("zero\none\ntwo\n");
    let names = gateway.names();
    for name in ["PUBACK", "PUBREC", "DISCONNECT"] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    run(&format!("sub {} -t a/b -C 1 -v", gateway.args())).ends_with(0).prints("a/b zero\n");
    run(&format!("sub {} -t a/b -C 1 -v --hex", gateway.args())).ends_with(0).prints("a/b 7a65726f\n");
}

#[test]
fn a_wildcard_is_followed_by_register() {
    let gateway = Gateway::start(|_, frame| {
        let mut answers = good(frame);
        match frame.packet {
            Packet::Subscribe(_) => {
                let register = Register { topic_id: 9, msg_id: 5, topic_name: b"s/1" };
                answers.push(encode(frame, Packet::Register(register)));
            }
            Packet::RegAck(ack) => {
                assert_eq!(ack.code, ReturnCode::Accepted);
                answers.push(message(frame, TopicRef::Normal(9), Qos::AtLeastOnce, 6, b"x"));
            }
            _ => {}
        }
        answers
    });
    run(&format!("sub {} -t s/# -C 1 -v", gateway.args())).ends_with(0).prints("s/1 x\n");
}

#[test]
fn predefined_and_short_topics_are_printed_by_their_names() {
    let gateway = gateway_with(|frame| {
        vec![
            message(frame, TopicRef::Predefined(3), Qos::AtMostOnce, 0, b"x"),
            message(frame, TopicRef::Predefined(4), Qos::AtMostOnce, 0, b"y"),
            message(frame, TopicRef::Short(*b"ab"), Qos::AtMostOnce, 0, b"z"),
        ]
    });
    let ran = run(&format!("sub {} --predefined 3=state --predefined 4 --short ab -C 3 -v", gateway.args()));
    ran.ends_with(0).prints("state x\npredefined:4 y\nab z\n");
}

#[test]
fn a_repeated_message_is_printed_once() {
    let gateway = gateway_with(|frame| {
        let twice = message(frame, TopicRef::Normal(7), Qos::ExactlyOnce, 2, b"two");
        let last = message(frame, TopicRef::Normal(7), Qos::AtMostOnce, 0, b"end");
        vec![twice.clone(), twice, last]
    });
    run(&format!("sub {} -t a -q 2 -C 2", gateway.args())).ends_with(0).prints("two\nend\n");
}

#[test]
fn the_time_limit_is_a_failure_only_if_messages_are_missing() {
    let gateway = Gateway::good();
    run(&format!("sub {} -t a -W 0.2", gateway.args())).ends_with(0).prints("");
    run(&format!("sub {} -t a -W 0.2 -C 2", gateway.args())).ends_with(1).says("0 of 2 messages");
    let gateway = Gateway::silent();
    run(&format!("sub {} -t a -W 0.2", gateway.args())).ends_with(69).says("no answer");
}

#[test]
fn a_refused_subscription_ends_with_1() {
    let gateway = Gateway::start(|_, frame| match frame.packet {
        Packet::Subscribe(subscribe) => {
            let (msg_id, code) = (subscribe.msg_id, ReturnCode::NotSupported);
            vec![encode(frame, Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id, code }))]
        }
        _ => good(frame),
    });
    run(&format!("sub {} -t secret/#", gateway.args()))
        .ends_with(1)
        .says("refused the subscription to secret/#");
}

#[test]
fn a_lost_connection_is_made_again_with_its_subscriptions() {
    let mut lives = 0;
    let gateway = Gateway::start(move |_, frame| {
        let mut answers = good(frame);
        if let Packet::Subscribe(_) = frame.packet {
            lives += 1;
            answers.push(match lives {
                1 => encode(frame, Packet::Disconnect(Disconnect { duration: None })),
                _ => message(frame, TopicRef::Normal(7), Qos::AtMostOnce, 0, b"again"),
            });
        }
        answers
    });
    let ran = run(&format!("sub {} -t a -C 1 -W 10", gateway.args()));
    ran.ends_with(0).says("the gateway ended the connection; trying again").prints("again\n");
}

#[test]
fn a_sleeper_fetches_its_messages_and_sleeps_again_after_a_reconnection() {
    let mut naps = 0;
    let gateway = Gateway::start(move |_, frame| match frame.packet {
        Packet::PingReq(_) => {
            naps += 1;
            match naps {
                2 => vec![encode(frame, Packet::Disconnect(Disconnect { duration: None }))],
                _ => vec![
                    message(frame, TopicRef::Normal(7), Qos::AtLeastOnce, naps, b"kept"),
                    encode(frame, Packet::PingResp),
                ],
            }
        }
        _ => good(frame),
    });
    let ran = run(&format!("sub {} -i c1 -t a -q 1 --sleep 200ms -C 2 -W 20", gateway.args()));
    ran.ends_with(0).says("trying again").prints("kept\nkept\n");
    let day = ["CONNECT", "SUBSCRIBE", "DISCONNECT", "PINGREQ", "PUBACK"];
    assert_eq!(gateway.names(), [&day[..], &["PINGREQ"], &day, &["DISCONNECT"]].concat());
    let log = gateway.log();
    assert!(log[2].contains("16"), "three repetitions fit into what the gateway is told: {log:?}");
    assert!(log[3].contains("c1"), "{log:?}");
}

#[test]
fn a_signal_ends_it_in_order() {
    let gateway = Gateway::good();
    let mut child = command(&format!("sub {} -t a", gateway.args())).spawn().unwrap();
    gateway.wait_for("SUBSCRIBE");
    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(gateway.names().last().unwrap(), "DISCONNECT");
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    let gateway = gateway_with(|frame| {
        let one = |i: u8| message(frame, TopicRef::Normal(7), Qos::AtMostOnce, 0, &[i]);
        (b'a'..=b'z').map(one).collect()
    });
    let mut child = command(&format!("sub {} -t a -C 1000 -W 5", gateway.args())).spawn().unwrap();
    let mut first = [0; 2];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
}
