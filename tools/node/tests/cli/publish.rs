//! `pub` against a gateway.

use std::net::UdpSocket;

use mqtt_sn_gateway::wire::{Packet, Publish, Response, ReturnCode, TopicAck};

use crate::gateway::{Gateway, encode, good};
use crate::{run, run_with};

/// Arguments for a node that does not wait long.
const QUICK: &str = "--retry 50ms --retry-limit 2";

#[test]
fn each_qos_is_seen_through() {
    for (qos, expected) in [
        (0, vec!["CONNECT", "REGISTER", "PUBLISH", "DISCONNECT"]),
        (1, vec!["CONNECT", "REGISTER", "PUBLISH", "DISCONNECT"]),
        (2, vec!["CONNECT", "REGISTER", "PUBLISH", "PUBREL", "DISCONNECT"]),
    ] {
        let gateway = Gateway::good();
        run(&format!("pub {} -t a/b -m hello -q {qos}", gateway.args())).ends_with(0);
        assert_eq!(gateway.names(), expected);
        assert!(gateway.log()[2].contains("hello"), "{:?}", gateway.log());
    }
}

#[test]
fn predefined_and_short_topics_are_not_registered() {
    for topic in ["--predefined 7", "--short ab"] {
        let gateway = Gateway::good();
        run(&format!("pub {} {topic} -m x -q 1 -r", gateway.args())).ends_with(0);
        assert_eq!(gateway.names(), ["CONNECT", "PUBLISH", "DISCONNECT"]);
        assert!(gateway.log()[1].contains("retain"), "{:?}", gateway.log());
    }
}

#[test]
fn qos_minus_one_is_one_datagram() {
    let gateway = Gateway::silent();
    run(&format!("pub {} --predefined 7 -m x -q -1", gateway.args())).ends_with(0);
    gateway.wait_for("PUBLISH");
    assert_eq!(gateway.names(), ["PUBLISH"]);
    assert!(gateway.log()[0].contains("qos=-1"), "{:?}", gateway.log());
}

#[test]
fn the_payload_comes_as_text_hex_file_lines_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payload");
    std::fs::write(&file, "from a file").unwrap();
    for (args, stdin, expected) in [
        ("-m text".to_owned(), "", vec!["\"text\""]),
        ("-m 00ff --hex".to_owned(), "", vec!["00FF"]),
        (format!("-f {}", file.display()), "", vec!["\"from a file\""]),
        ("-l".to_owned(), "one\r\n\nthree", vec!["\"one\"", "0", "\"three\""]),
        ("-l --hex".to_owned(), "01 02\n03\n", vec!["0102", "03"]),
        ("-n".to_owned(), "", vec!["0"]),
    ] {
        let gateway = Gateway::good();
        run_with(&format!("pub {} --short ab -q 1 {args}", gateway.args()), stdin).ends_with(0);
        let published: Vec<_> =
            gateway.log().into_iter().filter(|line| line.starts_with("PUBLISH")).collect();
        assert_eq!(published.len(), expected.len(), "{published:?}");
        for (line, payload) in published.iter().zip(expected) {
            assert!(line.ends_with(payload), "{line} should end with {payload}");
        }
    }
}

#[test]
fn a_line_that_is_not_hex_is_bad_input() {
    let gateway = Gateway::good();
    run_with(&format!("pub {} --short ab -l --hex", gateway.args()), "zz\n")
        .ends_with(2)
        .says("not a hex digit");
}

#[test]
fn the_will_the_session_and_the_forwarder_reach_the_gateway() {
    let gateway = Gateway::good();
    let will = "--will-topic w --will-payload bye --will-qos 1 --will-retain";
    run(&format!("pub {} -i c1 -c -k 33 {will} --forwarder 0a0b --short ab -m x", gateway.args()))
        .ends_with(0);
    let log = gateway.log();
    assert!(log.iter().all(|line| line.starts_with("[via node 0A0B")), "{log:?}");
    for (line, words) in
        [(0, "CONNECT"), (0, "c1"), (0, "33"), (1, "WILLTOPIC"), (1, "qos=1"), (1, "retain"), (2, "bye")]
    {
        assert!(log[line].contains(words), "{words} in {log:?}");
    }
    assert!(!log[0].contains("clean"), "{log:?}");
}

#[test]
fn a_gateway_that_refuses_ends_with_1() {
    let gateway = Gateway::start(|_, frame| match frame.packet {
        Packet::Connect(_) => {
            vec![encode(frame, Packet::ConnAck(Response { code: ReturnCode::NotSupported }))]
        }
        _ => good(frame),
    });
    run(&format!("pub {} -t a -m x -q 1", gateway.args()))
        .ends_with(1)
        .says("refused the connection: rejected: not supported");

    let gateway = Gateway::start(|_, frame| match frame.packet {
        Packet::Publish(Publish { topic, msg_id, .. }) => {
            let ack = TopicAck { topic_id: topic.raw(), msg_id, code: ReturnCode::Congestion };
            vec![encode(frame, Packet::PubAck(ack))]
        }
        _ => good(frame),
    });
    run(&format!("pub {} -t a -m x -q 1", gateway.args()))
        .ends_with(1)
        .says("refused the message: rejected: congestion");
    assert_eq!(gateway.names(), ["CONNECT", "REGISTER", "PUBLISH", "DISCONNECT"]);
    run_with(&format!("pub {} -t a -l -q 1", gateway.args()), "a\nb\n")
        .ends_with(1)
        .says("2 of 2 messages were refused");
    assert_eq!(gateway.names().last().unwrap(), "DISCONNECT");
}

#[test]
fn a_refusal_at_qos_0_ends_with_1_however_late_it_comes() {
    // Which message it was for, the gateway does not say; the answer to DISCONNECT comes after it.
    for early in [true, false] {
        let gateway = Gateway::start(move |_, frame| {
            let ack = TopicAck { topic_id: 7, msg_id: 0, code: ReturnCode::Congestion };
            let mut answers = match frame.packet {
                Packet::Publish(_) if early => vec![encode(frame, Packet::PubAck(ack))],
                Packet::Disconnect(_) if !early => vec![encode(frame, Packet::PubAck(ack))],
                _ => Vec::new(),
            };
            answers.extend(good(frame));
            answers
        });
        run(&format!("pub {} -t a -m x", gateway.args()))
            .ends_with(1)
            .says("refused the message: rejected: congestion");
        assert_eq!(gateway.names(), ["CONNECT", "REGISTER", "PUBLISH", "DISCONNECT"]);
    }
}

#[test]
fn a_time_limit_reached_in_a_connection_takes_leave() {
    let gateway = Gateway::start(|_, frame| match frame.packet {
        Packet::Publish(_) => Vec::new(),
        _ => good(frame),
    });
    run(&format!("pub {} --short ab -m x -q 1 -W 0.3", gateway.args())).ends_with(69).says("not done within");
    assert_eq!(gateway.names(), ["CONNECT", "PUBLISH", "DISCONNECT"]);
}

#[test]
fn an_unacknowledged_message_is_repeated_and_then_ends_with_1() {
    let gateway = Gateway::start(|_, frame| match frame.packet {
        Packet::Publish(_) => Vec::new(),
        _ => good(frame),
    });
    run(&format!("pub {} {QUICK} -t a -m x -q 1", gateway.args()))
        .ends_with(1)
        .says("did not acknowledge the message (3 attempts)");
    let dups: Vec<_> =
        gateway.log().iter().filter(|l| l.starts_with("PUBLISH")).map(|l| l.contains("dup")).collect();
    assert_eq!(dups, [false, true, true]);
}

#[test]
fn a_lost_acknowledgement_is_made_good() {
    let mut first = true;
    let gateway = Gateway::start(move |_, frame| match frame.packet {
        Packet::Publish(_) if std::mem::take(&mut first) => Vec::new(),
        _ => good(frame),
    });
    run(&format!("pub {} {QUICK} -t a -m x -q 1", gateway.args())).ends_with(0);
}

#[test]
fn no_answer_and_nobody_there_end_with_69() {
    let gateway = Gateway::silent();
    run(&format!("pub {} {QUICK} -t a -m x", gateway.args())).ends_with(69).says("no answer");
    assert_eq!(gateway.names(), ["CONNECT", "CONNECT", "CONNECT"]);
    run(&format!("pub {} -t a -m x -W 0.1", gateway.args())).ends_with(69).says("not done within");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for qos in ["0", "1", "-1"] {
        run(&format!("pub -h 127.0.0.1 -p {nobody} --short ab -m x -q {qos}"))
            .ends_with(69)
            .says("nobody listens at UDP");
    }
    run("pub -h no.such.host.invalid -t a -m x").ends_with(69).says("cannot find no.such.host.invalid");
}

#[test]
fn ipv6_is_spoken() {
    let Ok(_) = UdpSocket::bind("[::1]:0") else { return };
    let gateway = Gateway::on("[::1]:0", |_, frame| good(frame));
    run(&format!("pub -h ::1 -p {} -t a -m x -q 1", gateway.addr.port())).ends_with(0);
    run(&format!("pub -h [::1] -p {} -t a -m x -q 1", gateway.addr.port())).ends_with(0);
    assert_eq!(gateway.names().iter().filter(|name| *name == "PUBLISH").count(), 2);
}

#[test]
fn debug_prints_every_frame() {
    let gateway = Gateway::good();
    let args = format!("pub {} --short ab -m x -d", gateway.args());
    run(&args).ends_with(0).says("-> CONNECT").says("<- CONNACK").says("-> PUBLISH");
}

#[test]
fn a_payload_no_datagram_holds_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    for (octets, words) in [(65_527, "too long"), (65_520, "does not fit into a datagram")] {
        let file = dir.path().join("payload");
        std::fs::write(&file, vec![b'x'; octets]).unwrap();
        let gateway = Gateway::good();
        run(&format!("pub {} --short ab -f {}", gateway.args(), file.display())).ends_with(1).says(words);
        assert_eq!(gateway.names(), ["CONNECT", "DISCONNECT"]);
    }
}
