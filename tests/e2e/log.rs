//! What the log tells at its loudest: whom a datagram is from and which client a decision concerns, and nothing of what
//! clients say to each other.

use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Options, Will};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;
use tempfile::TempDir;

use crate::app::App;
use crate::pki;
use crate::process::{Gateway, Mosquitto, Process, free_tcp};
use crate::sensor::{Sensor, name, options};

/// In every payload, Will message and password of these tests.
const SECRET: &str = "s3cr3t";

#[test]
fn nothing_is_logged_of_payloads_wills_and_passwords() {
    let folder = TempDir::new().unwrap();
    let password = pki::write(folder.path(), "password", format!("pass {SECRET}\n"));
    let own = format!("  username: gw\n  password_file: {}\n", password.display());
    let theirs = "  mode: transparent\n  wills: broker\n";
    let clients = format!("  clients: {{ n1: {{ username: n1, password_file: {} }} }}\n", password.display());
    for more in [own.clone(), format!("{own}  protocol: 3.1.1\n"), format!("{theirs}{clients}")] {
        let mosquitto = Mosquitto::start();
        let (url, port) = (format!("mqtt://127.0.0.1:{}", mosquitto.port), mosquitto.port);
        let gateway = loud(&url, port, &more, Some(mosquitto));
        converse(&gateway);
        holds_its_tongue(&gateway.process);
    }
    let port = free_tcp();
    let gateway = loud("embedded", port, &format!("  listen: 127.0.0.1:{port}\n"), None);
    converse(&gateway);
    holds_its_tongue(&gateway.process);
}

#[test]
fn datagrams_are_logged_with_their_peer_and_decisions_with_their_client() {
    let mosquitto = Mosquitto::start();
    let (url, port) = (format!("mqtt://127.0.0.1:{}", mosquitto.port), mosquitto.port);
    let gateway = loud(&url, port, "", Some(mosquitto));
    let sensors = ["n1", "n2"].map(|id| {
        let keep_alive = Duration::from_secs(if id == "n1" { 60 } else { 1 });
        Sensor::connected(gateway.port, Options { keep_alive, ..options(id) })
    });
    // One of a third behind a forwarder: CONNECT of f1 from its node 0xF00D.
    sensors[0].socket.send(&[5, 0xFE, 0, 0xF0, 0x0D, 8, 4, 4, 1, 0, 60, b'f', b'1']).unwrap();
    gateway.process.wait_for_line("client=f1");
    gateway.process.wait_for_line("client lost");
    let printed = gateway.process.printed();
    let lines =
        |parts: &[&str]| printed.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    for id in ["n1", "n2", "f1"] {
        assert_eq!(lines(&["client connected", &format!("client={id} ")]), 1, "{printed}");
    }
    assert_eq!((lines(&["client lost"]), lines(&["client lost", "client=n2 "])), (1, 1), "{printed}");
    for sensor in &sensors {
        let from = sensor.socket.local_addr().unwrap().to_string();
        assert!(lines(&["received", "CONNECT", &from]) > 0, "{printed}");
    }
    let [behind, _] = sensors.map(|sensor| sensor.socket.local_addr().unwrap().to_string());
    assert_eq!(lines(&["received", "CONNECT", &behind, "F00D"]), 1, "{printed}");
}

/// A gateway that says all it can.
fn loud(url: &str, port: u16, more: &str, mosquitto: Option<Mosquitto>) -> Gateway {
    let gateway = Gateway::start_with(url, port, more, mosquitto, |command| {
        command.env("RUST_LOG", "trace");
    });
    gateway.process.wait_for_line("connected to the broker");
    gateway
}

/// A Will that is changed and published, messages of all QoS both ways, awake and asleep, and datagrams that are none.
fn converse(gateway: &Gateway) {
    let mut app = App::subscribed(gateway.broker_port, "w/#");
    let will = |text: &str| Will {
        topic: TopicName::new("w/n1").unwrap(),
        message: format!("{text} {SECRET}").into_bytes().into(),
        qos: Qos::AtLeastOnce,
        retain: true,
    };
    let keep_alive = Duration::from_secs(1);
    let mut sensor =
        Sensor::connected(gateway.port, Options { will: Some(will("gone")), keep_alive, ..options("n1") });
    sensor.subscribe("s/#", Qos::ExactlyOnce);
    for (sn, qos) in [
        (Qos::AtMostOnce, QoS::AtMostOnce),
        (Qos::AtLeastOnce, QoS::AtLeastOnce),
        (Qos::ExactlyOnce, QoS::ExactlyOnce),
    ] {
        sensor.publish(name("up"), &format!("up {SECRET}"), sn, true);
        app.publish("s/1", &format!("down {SECRET}"), qos, true);
        sensor.message();
    }
    sensor.node.sleep(Instant::now(), Duration::from_secs(60));
    sensor.wait_for(|event| matches!(event, Event::Asleep).then_some(()));
    app.publish("s/1", &format!("asleep {SECRET}"), QoS::AtLeastOnce, false);
    sensor.node.wake(Instant::now());
    sensor.message();
    // PUBLISH with a length that is not its own, an unknown type, and a payload for an unknown topic id.
    for head in [&[200, 0x0C][..], &[9, 0x77], &[13, 0x0C, 0x20, 0x99, 0x99, 0, 9]] {
        sensor.socket.send(&[head, SECRET.as_bytes()].concat()).unwrap();
    }
    sensor.node.connect(Instant::now());
    sensor.wait_for(|event| matches!(event, Event::Connected).then_some(()));
    drop(sensor);
    assert_eq!(app.message().payload, will("gone").message);
}

#[track_caller]
fn holds_its_tongue(process: &Process) {
    let printed = process.printed();
    assert!(printed.contains("TRACE") && printed.contains("PUBLISH"), "{printed}");
    let hex = |upper: bool| -> String {
        SECRET
            .bytes()
            .map(|octet| if upper { format!("{octet:02X}") } else { format!("{octet:02x}") })
            .collect()
    };
    let list = SECRET.bytes().map(|octet| octet.to_string()).collect::<Vec<_>>().join(", ");
    for form in [SECRET.to_owned(), hex(true), hex(false), list] {
        let line = printed.lines().find(|line| line.contains(&form));
        assert_eq!(line, None, "{form}");
    }
}
