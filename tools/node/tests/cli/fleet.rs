//! `fleet` against a gateway that bridges to a broker, both made here and with faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use mqtt_sn_gateway::wire::{Frame, Packet, Publish, Qos};
use serde_json::Value;

use crate::gateway::{Gateway, good};
use crate::run;

#[test]
fn a_good_gateway_passes_on_a_bad_radio() {
    for qos in [0, 1, 2] {
        let (gateway, broker) = bridge(Fault::None);
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report.json");
        let ran = run(&format!(
            "fleet {} --nodes 20 --rate 10/s --qos {qos} --retry 100ms --loss 10% --dup 5% --reorder 5% \
             --duration 2s --seed 7 --verify mqtt://127.0.0.1:{broker} --report {}",
            gateway.args(),
            report.display()
        ))
        .ends_with(0);
        let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        let number = |name: &str| report[name].as_u64().unwrap();
        assert!(number("sent") > 200, "{report}");
        assert_eq!(report["verified"]["ok"], true, "{report}");
        assert_eq!(report["verified"]["lost"], 0);
        assert!(number("frames_lost_by_radio") > 10, "{report}");
        if qos > 0 {
            assert_eq!(number("acked") + number("uncertain") + number("gave_up"), number("sent"), "{report}");
            assert!(number("acked") > 200 && number("frames_retransmitted") > 0, "{report}");
            assert!(
                report["ack_latency"]["p99_ms"].as_f64().unwrap() > 50.0,
                "a retransmission takes 100 ms: {report}"
            );
            assert!(ran.out.contains("publish to ack"), "{}", ran.out);
        }
        assert!(ran.out.contains("every promise kept"), "{}", ran.out);
    }
}

#[test]
fn sleepers_connect_for_their_messages_and_sleep_again() {
    let (gateway, broker) = bridge(Fault::None);
    let ran = run(&format!(
        "fleet {} --nodes 4 --sleepers 50% --rate 2/s --keepalive 1 --retry 100ms --duration 2s --settle 5s -q 1 \
         --verify mqtt://127.0.0.1:{broker}",
        gateway.args()
    ))
    .ends_with(0);
    assert!(ran.out.contains("every promise kept") && ran.out.contains("times fallen asleep"), "{}", ran.out);
    let log = gateway.log();
    let asleep = log.iter().filter(|line| line.starts_with("DISCONNECT duration=2s")).count();
    assert!(asleep >= 4, "{log:?}");
    let connects = |n: u32| {
        let end = format!("-{n}\"");
        log.iter().filter(|l| l.starts_with("CONNECT") && l.contains(&end)).count()
    };
    assert!(connects(0) > 1 && connects(1) > 1, "{log:?}");
    assert_eq!([connects(2), connects(3)], [1, 1], "{log:?}");
}

#[test]
fn a_message_acknowledged_and_not_delivered_is_named() {
    let (gateway, broker) = bridge(Fault::Lose);
    let ran = fleet(&gateway, broker, 1).ends_with(1);
    assert!(ran.err.contains("1 acknowledged and not delivered (sensor:message 1:2)"), "{}", ran.err);
}

#[test]
fn a_second_delivery_is_named_at_qos_2_and_allowed_at_qos_1() {
    let (gateway, broker) = bridge(Fault::Repeat);
    fleet(&gateway, broker, 2)
        .ends_with(1)
        .says("1 delivered more than once (sensor:message 1:2 came 2 times)");
    let (gateway, broker) = bridge(Fault::Repeat);
    let ran = fleet(&gateway, broker, 1).ends_with(0);
    assert!(ran.out.contains("duplicates                             1\n"), "{}", ran.out);
}

#[test]
fn a_message_on_the_wrong_topic_or_altered_is_named() {
    let (gateway, broker) = bridge(Fault::Misplace);
    fleet(&gateway, broker, 1)
        .ends_with(1)
        .says("1 not as sent (sensor:message 1:2 came on topic fleet/wrong)");
    let (gateway, broker) = bridge(Fault::Alter);
    fleet(&gateway, broker, 1).ends_with(1).says("1 not as sent (sensor:message 1:2 was altered on its way)");
}

#[test]
fn it_works_without_a_broker() {
    let (gateway, _) = bridge(Fault::None);
    let ran = run(&format!("fleet {} --nodes 3 --rate 5/s --duration 1s --payload-size 100", gateway.args()));
    let ran = ran.ends_with(0);
    assert!(ran.out.contains("acked") && !ran.out.contains("verification"), "{}", ran.out);
    let connects: BTreeSet<_> =
        gateway.log().into_iter().filter(|line| line.starts_with("CONNECT")).collect();
    assert_eq!(connects.len(), 3, "each sensor has its client id");
}

#[test]
fn nobody_there_ends_with_69() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run(&format!("fleet -h 127.0.0.1 -p {nobody}")).ends_with(69).says("nobody listens at UDP");
    let silent = Gateway::silent();
    let args = "--nodes 2 --retry 50ms --retry-limit 1 --duration 1s --settle 0s";
    run(&format!("fleet {} {args}", silent.args())).ends_with(69).says("no sensor could connect");
    let gateway = Gateway::good();
    run(&format!("fleet {} --verify mqtt://127.0.0.1:{nobody}", gateway.args()))
        .ends_with(69)
        .says("cannot reach the broker");
}

#[test]
fn many_sensors_need_no_privileges() {
    let (gateway, broker) = bridge(Fault::None);
    let args = format!("--nodes 1500 --rate 1/s --duration 2s --verify mqtt://127.0.0.1:{broker}");
    run_with_limit("ulimit -Sn 256", &format!("fleet {} {args}", gateway.args())).ends_with(0);
}

#[test]
fn more_sensors_than_the_system_has_sockets_for_are_bad_input() {
    let gateway = Gateway::good();
    run_with_limit("ulimit -n 256", &format!("fleet {} --nodes 300", gateway.args()))
        .ends_with(2)
        .says("--nodes 300 needs 332 open files, and this system allows 256");
}

fn run_with_limit(limit: &str, args: &str) -> crate::Ran {
    let script = format!("{limit}; exec {} {args}", env!("CARGO_BIN_EXE_mqtt-sn-node"));
    crate::ran(std::process::Command::new("sh").args(["-c", &script]).output().unwrap())
}

fn fleet(gateway: &Gateway, broker: u16, qos: u8) -> crate::Ran {
    run(&format!(
        "fleet {} --nodes 3 --rate 10/s --qos {qos} --duration 1s --settle 2s --verify mqtt://127.0.0.1:{broker}",
        gateway.args()
    ))
}

/// What the bridge does to message 2 of sensor 1.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Lose,
    Repeat,
    Misplace,
    Alter,
}

/// A gateway, and the port of a broker to which it brings every message once.
fn bridge(fault: Fault) -> (Gateway, u16) {
    let (deliver, deliveries) = channel();
    let broker = broker(deliveries);
    let mut names = BTreeMap::new();
    let mut done = BTreeSet::new();
    let gateway = Gateway::start(move |from, frame| {
        match frame.packet {
            Packet::Register(register) => {
                names.insert(from, String::from_utf8(register.topic_name.to_vec()).unwrap());
            }
            Packet::Publish(publish) if done.insert((from, publish.data.to_vec())) => {
                bring(&deliver, &names[&from], publish, fault);
            }
            _ => {}
        }
        answer(from, frame)
    });
    (gateway, broker)
}

fn answer(_: SocketAddr, frame: &Frame<'_>) -> Vec<Vec<u8>> {
    match frame.packet {
        Packet::Publish(Publish { qos: Qos::AtMostOnce, .. }) => Vec::new(),
        _ => good(frame),
    }
}

fn bring(deliver: &Sender<(String, Vec<u8>)>, topic: &str, publish: Publish<'_>, fault: Fault) {
    let mut data = publish.data.to_vec();
    let mut topic = topic.to_owned();
    let mut times = 1;
    if data[8..].starts_with(b" 1 2 ") {
        match fault {
            Fault::None => {}
            Fault::Lose => times = 0,
            Fault::Repeat => times = 2,
            Fault::Misplace => topic = "fleet/wrong".into(),
            Fault::Alter => *data.last_mut().unwrap() = b'!',
        }
    }
    for _ in 0..times {
        let _ = deliver.send((topic.clone(), data.clone()));
    }
}

/// A broker that takes one subscriber after another and sends it what comes, at QoS 0.
fn broker(deliveries: Receiver<(String, Vec<u8>)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            serve(socket.unwrap(), &deliveries);
        }
    });
    port
}

fn serve(mut socket: TcpStream, deliveries: &Receiver<(String, Vec<u8>)>) {
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut input = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => input.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        // Everything a subscriber sends is shorter than 128 octets.
        while input.len() > 1 && input.len() >= 2 + usize::from(input[1]) {
            let packet: Vec<u8> = input.drain(..2 + usize::from(input[1])).collect();
            let answer = match packet[0] >> 4 {
                1 => vec![0x20, 2, 0, 0],
                8 => vec![0x90, 3, packet[2], packet[3], 2],
                12 => vec![0xD0, 0],
                _ => Vec::new(),
            };
            if socket.write_all(&answer).is_err() {
                return;
            }
        }
        while let Ok((topic, data)) = deliveries.try_recv() {
            let len = 2 + topic.len() + data.len();
            let mut packet = vec![0x30, (len % 128) as u8 | 0x80, (len / 128) as u8, 0, topic.len() as u8];
            packet.extend_from_slice(topic.as_bytes());
            packet.extend_from_slice(&data);
            if socket.write_all(&packet).is_err() {
                return;
            }
        }
    }
}
