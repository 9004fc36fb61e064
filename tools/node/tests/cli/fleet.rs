//! `fleet` against a gateway that bridges to a broker, both made here and with faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mqtt_sn_gateway::wire::{
    FilterRef, Frame, MsgIdOnly, Packet, Publish, Qos, ReturnCode, SubAck, Subscribe, TopicAck, TopicRef,
};
use serde_json::Value;

use crate::gateway::{Gateway, Octets, encode, good, message};
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
fn messages_to_the_sensors_are_accounted_for_as_well() {
    for qos in [1, 2] {
        let (gateway, broker) = bridge(Fault::None);
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report.json");
        let ran = run(&format!(
            "fleet {} --nodes 4 --sleepers 50% --keepalive 1 --rate 2/s --down 5/s --qos {qos} --retry 100ms --loss 5% \
             --duration 1s --settle 10s -c --verify mqtt://127.0.0.1:{broker} --report {}",
            gateway.args(),
            report.display()
        ))
        .ends_with(0);
        let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        let number = |name: &str| report["to_sensors"][name].as_u64().unwrap();
        assert!(number("sent") > 5, "{report}");
        assert_eq!(number("acked"), number("sent"), "{report}");
        assert!(number("delivered") >= number("sent"), "{report}");
        assert_eq!(number("lost") + number("duplicates_at_qos_2") + number("strange"), 0, "{report}");
        assert!(
            ran.out.contains("broker to sensor") && ran.out.contains("every promise kept"),
            "{}",
            ran.out
        );
    }
}

#[test]
fn what_is_wrong_with_a_message_to_a_sensor_is_named() {
    for (fault, said) in [
        (Fault::Lose, "1 not delivered to sensors (sensor:message 1:2)"),
        (Fault::Repeat, "1 delivered to sensors more than once (sensor:message 1:2 came 2 times)"),
        (Fault::Alter, "1 not delivered to sensors as sent (sensor:message 1:2 was altered on its way)"),
    ] {
        let (gateway, broker) = faulty_bridge(Fault::None, fault);
        run(&format!(
            "fleet {} --nodes 2 --rate 10/s --down 5/s -q 2 -k 1 --duration 1s --settle 2s --verify mqtt://127.0.0.1:{broker}",
            gateway.args()
        ))
        .ends_with(1)
        .says(said);
    }
}

#[test]
fn messages_to_sensors_need_a_broker_and_a_topic_for_each() {
    run("fleet --down 1/s").ends_with(2).says("--verify");
    run("fleet --down 1/s --topic same --verify mqtt://127.0.0.1").ends_with(2).says("{node}");
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
    faulty_bridge(fault, Fault::None)
}

/// Messages that the broker has for sensors.
type Post = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// One that does wrong to messages of sensors, and to messages to them.
fn faulty_bridge(fault: Fault, down: Fault) -> (Gateway, u16) {
    let (deliver, deliveries) = channel();
    let post = Post::default();
    let broker = broker(deliveries, Arc::clone(&post));
    let mut names = BTreeMap::new();
    let mut done = BTreeSet::new();
    let mut bag = Bag { post, fault: down, open: BTreeMap::new(), topics: BTreeMap::new(), msg_id: 0 };
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
        let mut out = bag.hand_out(from, frame);
        // Behind what it hands out: a PINGRESP is the end of it.
        out.extend(answer(from, frame));
        out
    });
    (gateway, broker)
}

/// Messages for sensors, which get theirs when they say something, and again until they acknowledge.
struct Bag {
    post: Post,
    fault: Fault,
    topics: BTreeMap<String, (SocketAddr, Qos)>,
    /// By sensor and MsgId.
    open: BTreeMap<(SocketAddr, u16), Open>,
    msg_id: u16,
}

/// A message with its QoS, or nothing more than the PUBREL of one.
type Open = Option<(Qos, Vec<u8>)>;

impl Bag {
    const TOPIC: u16 = 8;

    fn hand_out(&mut self, from: SocketAddr, frame: &Frame<'_>) -> Vec<Octets> {
        match frame.packet {
            Packet::Subscribe(Subscribe { qos, topic: FilterRef::Name(name), .. }) => {
                self.topics.insert(String::from_utf8(name.to_vec()).unwrap(), (from, qos));
                return Vec::new();
            }
            // It sleeps from now on.
            Packet::Disconnect(_) => return Vec::new(),
            Packet::PubAck(TopicAck { msg_id, .. }) | Packet::PubComp(MsgIdOnly { msg_id }) => {
                self.open.remove(&(from, msg_id));
            }
            Packet::PubRec(MsgIdOnly { msg_id }) => {
                self.open.insert((from, msg_id), None);
            }
            _ => {}
        }
        for (topic, data) in std::mem::take(&mut *self.post.lock().unwrap()) {
            let (to, qos) = self.topics[&topic];
            let mut data = data;
            let faulty = data[8..].starts_with(b" 1 2 ");
            if faulty && self.fault == Fault::Alter {
                *data.last_mut().unwrap() = b'!';
            }
            let times = match self.fault {
                Fault::Lose if faulty => 0,
                Fault::Repeat if faulty => 2,
                _ => 1,
            };
            for _ in 0..times {
                self.msg_id += 1;
                self.open.insert((to, self.msg_id), Some((qos, data.clone())));
            }
        }
        let topic = TopicRef::Normal(Self::TOPIC);
        let packet = |(msg_id, open): (u16, &Open)| match open {
            Some((qos, data)) => message(frame, topic, *qos, msg_id, data),
            None => encode(frame, Packet::PubRel(MsgIdOnly { msg_id })),
        };
        let of_it = self.open.range((from, 0)..=(from, u16::MAX));
        let out = of_it.map(|((_, msg_id), open)| packet((*msg_id, open))).collect();
        self.open.retain(|(to, _), open| *to != from || !matches!(open, Some((Qos::AtMostOnce, _))));
        out
    }
}

fn answer(_: SocketAddr, frame: &Frame<'_>) -> Vec<Vec<u8>> {
    match frame.packet {
        Packet::Publish(Publish { qos: Qos::AtMostOnce, .. }) => Vec::new(),
        Packet::Subscribe(Subscribe { qos, msg_id, .. }) => {
            let code = ReturnCode::Accepted;
            vec![encode(frame, Packet::SubAck(SubAck { qos, topic_id: Bag::TOPIC, msg_id, code }))]
        }
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

/// A broker that takes one subscriber after another and sends it what comes, at QoS 0; what it publishes goes to the post.
fn broker(deliveries: Receiver<(String, Vec<u8>)>, post: Post) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            serve(socket.unwrap(), &deliveries, &post);
        }
    });
    port
}

fn serve(mut socket: TcpStream, deliveries: &Receiver<(String, Vec<u8>)>, post: &Post) {
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
            if socket.write_all(&serve_packet(&packet, post)).is_err() {
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

fn serve_packet(packet: &[u8], post: &Post) -> Vec<u8> {
    match packet[0] >> 4 {
        1 => vec![0x20, 2, 0, 0],
        3 => {
            let (qos, topic_end) = (packet[0] >> 1 & 3, 4 + usize::from(packet[3]));
            let id = if qos == 0 { &[][..] } else { &packet[topic_end..topic_end + 2] };
            let topic = String::from_utf8(packet[4..topic_end].to_vec()).unwrap();
            post.lock().unwrap().push((topic, packet[topic_end + id.len()..].to_vec()));
            match (qos, id) {
                (1, [high, low]) => vec![0x40, 2, *high, *low],
                (2, [high, low]) => vec![0x50, 2, *high, *low],
                _ => Vec::new(),
            }
        }
        6 => vec![0x70, 2, packet[2], packet[3]],
        8 => vec![0x90, 3, packet[2], packet[3], 2],
        12 => vec![0xD0, 0],
        _ => Vec::new(),
    }
}
