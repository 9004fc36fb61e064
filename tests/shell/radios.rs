//! Several transports in one gateway: UDP, serial lines and an XBee.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::Framing;
use mqtt_sn_gateway::framing::xbee::{BROADCAST, Decoder, Frame, Mode};
use mqtt_sn_gateway::runtime::Setup;
use mqtt_sn_gateway::transport::serial::Spoken;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::process::{Process, free_tcp, gateway_program, wait_until};
use crate::pty::Pty;
use crate::runtime::{Node as UdpNode, Running, setup, start_broker};
use crate::serial::{Node, options};
use crate::soon;

const PINGREQ: &[u8] = &[2, 0x16];
const PINGRESP: &[u8] = &[2, 0x17];

/// Keeps its session.
fn connect(id: &str) -> Vec<u8> {
    [&[(6 + id.len()) as u8, 4, 0, 1, 0, 60], id.as_bytes()].concat()
}

/// Behind the UDP port these, by their names.
pub(crate) fn with_lines(mut setup: Setup, lines: &[(&str, &Path, Spoken)]) -> Setup {
    for (name, device, speech) in lines {
        let mut port = setup.settings.ports[0].clone();
        port.name = (*name).to_owned();
        port.advertise = true;
        port.mtu = if matches!(speech, Spoken::Xbee { .. }) { 72 } else { 250 };
        setup.settings.ports.push(port);
        setup.ports.push(options(device, 115_200, *speech));
    }
    setup
}

#[tokio::test]
async fn a_client_that_moves_between_udp_two_lines_and_a_radio_has_one_session() {
    let (broker, _broker) = start_broker().await;
    let (slip, cobs, module) = (Pty::new(), Pty::new(), Pty::new());
    let xbee = Spoken::Xbee { mode: Mode::Escaped, mtu: None };
    let lines = [
        ("slip", slip.device.as_path(), Spoken::Framed(Framing::SlipCrc)),
        ("cobs", cobs.device.as_path(), Spoken::Framed(Framing::Cobs)),
        ("zigbee", module.device.as_path(), xbee),
    ];
    let gateway = Running::start(with_lines(setup(broker), &lines)).await;
    let udp = gateway.node().await;
    let mut radio = Radio::start(module);
    let (mut one, mut two) = (Node::new(Framing::SlipCrc), Node::new(Framing::Cobs));

    // It subscribes by UDP.
    udp.say(&connect("n1")).await;
    assert_eq!(udp.hear().await, [3, 5, 0]);
    udp.say(&[7, 0x12, 0x22, 0, 1, b't', b'/']).await;
    let suback = udp.hear().await;
    assert_eq!((suback[1], suback[7]), (0x13, 0), "{suback:?}");
    let publisher = gateway.node().await;
    publisher.say(&connect("publisher")).await;
    assert_eq!(publisher.hear().await, [3, 5, 0]);

    // And moves on, again and again; what is published reaches it where it is, and only there.
    for round in 0..3_u8 {
        one.say(&slip, &connect("n1")).await;
        assert_eq!(until(&mut one, &slip, 5).await, [3, 5, 0][..]);
        publish(&publisher, round).await;
        assert_eq!(until(&mut one, &slip, 0x0C).await.last(), Some(&round));

        two.say(&cobs, &connect("n1")).await;
        assert_eq!(until(&mut two, &cobs, 5).await, [3, 5, 0][..]);
        assert_eq!(until(&mut one, &slip, 0x18).await, [2, 0x18][..], "it is told where it was");
        publish(&publisher, round + 10).await;
        assert_eq!(until(&mut two, &cobs, 0x0C).await.last(), Some(&(round + 10)));

        radio.say(7, &connect("n1"));
        assert_eq!(radio.until(7, 5).await, [3, 5, 0][..]);
        assert_eq!(until(&mut two, &cobs, 0x18).await, [2, 0x18][..]);
        publish(&publisher, round + 20).await;
        assert_eq!(radio.until(7, 0x0C).await.last(), Some(&(round + 20)));
    }
    // Behind the radio there may be many, and behind a line through a forwarder.
    for node in 20..40_u8 {
        radio.say(u64::from(node), &connect(&format!("z{node}")));
        one.say(&slip, &[&[4, 0xFE, 0, node][..], &connect(&format!("s{node}"))].concat()).await;
    }
    for node in 20..40_u8 {
        assert_eq!(radio.until(u64::from(node), 5).await, [3, 5, 0][..]);
        let answer = until(&mut one, &slip, 0xFE).await;
        assert_eq!(answer, [4, 0xFE, 0, node, 3, 5, 0][..]);
    }
    let counts = gateway.stop().await;
    assert_eq!(counts["frames_malformed"], 0);
    assert_eq!(counts["slip.port_damaged"] + counts["cobs.port_damaged"] + counts["zigbee.port_damaged"], 0);
    assert_eq!(counts["zigbee.port_undelivered"] + counts["zigbee.port_unanswered"], 0);
}

/// T/ and a payload of one octet, at QoS 0.
async fn publish(node: &UdpNode, payload: u8) {
    node.say(&[8, 0x0C, 0x02, b't', b'/', 0, 0, payload]).await;
}

/// The next frame of this kind; only ADVERTISE may come before it.
async fn until(node: &mut Node, pty: &Pty, kind: u8) -> Bytes {
    loop {
        let frame = node.hear(pty).await;
        if frame.get(1) == Some(&kind) {
            return frame;
        }
        assert_eq!(frame.get(1), Some(&0x00), "neither that nor ADVERTISE: {frame:?}");
    }
}

/// A stop does not wait for a slow line for long, and a hasty one not at all.
#[tokio::test]
async fn what_a_slow_line_has_not_sent_when_the_gateway_stops_is_counted() {
    let (broker, _broker) = start_broker().await;
    for hasty in [false, true] {
        let pty = Pty::new();
        let framed = Spoken::Framed(Framing::SlipCrc);
        let mut setup = with_lines(setup(broker), &[("radio", pty.device.as_path(), framed)]);
        // 30 octets a second.
        setup.ports[1] = options(&pty.device, 300, framed);
        let gateway = Running::start(setup).await;
        let (publisher, mut node) = (gateway.node().await, Node::new(Framing::SlipCrc));
        node.say(&pty, &connect("slow")).await;
        until(&mut node, &pty, 5).await;
        node.say(&pty, &[7, 0x12, 2, 0, 1, b't', b'/']).await;
        until(&mut node, &pty, 0x13).await;
        publisher.connect().await;
        publisher.say(&[7, 0x12, 2, 0, 1, b't', b'/']).await;
        assert_eq!(publisher.hear().await[1], 0x13);
        // One is sent for seven seconds, one waits, and there is no room for more.
        for nth in 0..4 {
            publisher.say(&[&[207, 0x0C, 2, b't', b'/', 0, 0][..], &[nth; 200]].concat()).await;
            assert_eq!(publisher.hear().await[7..], [nth; 200]);
            if nth == 0 {
                soon("its begin", pty.read()).await;
            }
        }
        let counts = if hasty { gateway.abort().await } else { gateway.stop().await };
        let of = |name: &str| counts[&format!("radio.port_{name}")];
        assert!(of("not_up") >= 1, "{counts:?}");
        let frames = of("sent") + of("queue_full") + of("not_up");
        assert_eq!(frames, counts["frames_sent"] - counts["lan.port_sent"], "{counts:?}");
    }
}

/// Radios fail: what was not delivered is sent again, what is too large is told.
#[tokio::test]
async fn a_radio_that_fails_now_and_then_loses_nothing() {
    let (broker, _broker) = start_broker().await;
    let module = Pty::new();
    let xbee = Spoken::Xbee { mode: Mode::Plain, mtu: None };
    let lines = [("zigbee", module.device.as_path(), xbee)];
    let gateway = Running::start(with_lines(setup(broker), &lines)).await;
    let mut radio = Radio::start_with(module, Mode::Plain, 5);
    for node in 1..6 {
        radio.say(node, &connect(&format!("n{node}")));
        assert_eq!(radio.until(node, 5).await, [3, 5, 0][..]);
    }
    for _ in 0..20 {
        for node in 1..6 {
            radio.say(node, PINGREQ);
        }
        for node in 1..6 {
            assert_eq!(radio.until(node, 0x17).await, PINGRESP);
        }
    }
    let counts = gateway.stop().await;
    assert!(counts["zigbee.port_retried"] > 5, "{}", counts["zigbee.port_retried"]);
    assert_eq!(counts["zigbee.port_undelivered"], 0);
}

/// With what the README says.
#[tokio::test]
async fn what_an_xbee_tells_of_its_nodes_can_be_added_to_the_log_alone() {
    let readme = include_str!("../../README.md");
    let (filter, _) = readme.split_once("RUST_LOG=").unwrap().1.split_once('`').unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (module, file) = (Pty::new(), dir.path().join("gateway.yaml"));
    let text = format!(
        "broker: {{ url: embedded, listen: 127.0.0.1:{} }}\n\
         transports: [{{ name: zigbee, type: xbee, device: {}, api: plain, baud: 115200 }}]\n\
         store: {{ path: none }}\ncontrol: {{ socket: none }}\n",
        free_tcp(),
        module.device.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(gateway_program());
    let gateway = Process::start(command.args(["run", "-c"]).arg(&file).env("RUST_LOG", filter));
    let mut radio = Radio::start_with(module, Mode::Plain, 3);
    radio.say(7, &connect("n7"));
    assert_eq!(radio.until(7, 5).await, [3, 5, 0][..]);
    let told = ["heard with -40 dBm", "transmissions: delivered", "transmissions: no acknowledgement"];
    let is_told = |text: &&str| {
        let is = |line: &str| line.contains(text) && line.contains("node=0000000000000007");
        gateway.printed().lines().any(is)
    };
    let all = async {
        while !told.iter().all(is_told) {
            radio.say(7, PINGREQ);
            radio.until(7, 0x17).await;
        }
    };
    soon("what is told of a node", all).await;
    let printed = gateway.printed();
    for line in printed.lines().filter(|line| line.contains("DEBUG")) {
        assert!(line.contains("node="), "{line}");
    }
    assert!(printed.contains("INFO") && !printed.contains("TRACE"), "{printed}");
}

/// A radio with nodes behind it, which the test plays.
struct Radio {
    says: mpsc::Sender<(u64, Vec<u8>)>,
    hears: mpsc::Receiver<(u64, Bytes)>,
    heard: BTreeMap<u64, VecDeque<Bytes>>,
    task: JoinHandle<()>,
}

impl Radio {
    fn start(pty: Pty) -> Self {
        Self::start_with(pty, Mode::Escaped, u32::MAX)
    }

    /// Each so-and-so-many-th transmission fails.
    fn start_with(pty: Pty, mode: Mode, fails: u32) -> Self {
        let (says, mut from_nodes) = mpsc::channel::<(u64, Vec<u8>)>(100);
        let (to_nodes, hears) = mpsc::channel(1000);
        let task = tokio::spawn(async move {
            let (mut decoder, mut sent) = (Decoder::new(mode), 0_u32);
            loop {
                let octets = tokio::select! {
                    octets = pty.read() => octets,
                    Some((from, frame)) = from_nodes.recv() => {
                        let payload = frame.into();
                        write(&pty, mode, &Frame::Receive { from, from_short: from as u16, options: 1, payload }).await;
                        continue;
                    }
                };
                decoder.push(&octets);
                while let Some(frame) = decoder.poll_frame() {
                    match frame {
                        Frame::AtCommand { frame_id, command, .. } => {
                            let known: Option<&'static [u8]> = match &command {
                                b"AP" => Some(if mode == Mode::Plain { &[1] } else { &[2] }),
                                b"NP" => Some(&[0, 84]),
                                b"VR" => Some(&[0x40, 0x60]),
                                b"DB" => Some(&[40]),
                                _ => None,
                            };
                            let (status, value) = known.map_or((1, &[][..]), |value| (0, value));
                            let value = Bytes::from_static(value);
                            write(&pty, mode, &Frame::AtResponse { frame_id, command, status, value }).await;
                        }
                        Frame::TransmitRequest { frame_id, to, payload, .. } => {
                            sent += 1;
                            let delivery =
                                if sent.is_multiple_of(fails) && to != BROADCAST { 0x21 } else { 0 };
                            let status = Frame::TransmitStatus {
                                frame_id,
                                short: 1,
                                retries: 0,
                                delivery,
                                discovery: 0,
                            };
                            write(&pty, mode, &status).await;
                            if delivery == 0 {
                                to_nodes.send((to, payload)).await.unwrap();
                            }
                        }
                        frame => panic!("{frame:?}"),
                    }
                }
            }
        });
        Self { says, hears, heard: BTreeMap::new(), task }
    }

    fn say(&self, node: u64, frame: &[u8]) {
        self.says.try_send((node, frame.to_vec())).unwrap();
    }

    /// The next frame of this kind for a node.
    async fn until(&mut self, node: u64, kind: u8) -> Bytes {
        loop {
            if let Some(frame) = self.heard.entry(node).or_default().pop_front() {
                if frame[1] == kind {
                    return frame;
                }
                continue;
            }
            let (to, frame) = soon("a transmission", self.hears.recv()).await.unwrap();
            self.heard.entry(to).or_default().push_back(frame);
        }
    }
}

impl Drop for Radio {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write(pty: &Pty, mode: Mode, frame: &Frame) {
    let mut octets = BytesMut::new();
    frame.encode(mode, &mut octets).unwrap();
    pty.write(&octets).await;
}

#[tokio::test]
async fn nothing_that_was_acknowledged_is_lost_when_a_radio_is_pulled_out_a_hundred_times() {
    const TIMES: usize = 100;
    let (broker, _broker) = start_broker().await;
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("usb-radio-if00");
    let lines = [("radio", name.as_path(), Spoken::Framed(Framing::SlipCrc))];
    let mut setup = with_lines(setup(broker), &lines);
    setup.settings.sessions.queue.messages = 10_000;
    setup.settings.sessions.queue.bytes = 1 << 20;
    let gateway = Running::start(setup).await;
    let arrived = Arc::new(Mutex::new(BTreeSet::new()));
    let subscriber = gateway.node().await;
    subscriber.connect().await;
    subscriber.say(&[7, 0x12, 0x22, 0, 1, b'u', b'/']).await;
    assert_eq!(subscriber.hear().await[1], 0x13);
    let collector = tokio::spawn(collect(subscriber, arrived.clone()));

    let mut rng = fastrand::Rng::with_seed(3);
    let (mut sensor, mut acknowledged, mut slowest) = (Sensor::default(), BTreeSet::new(), Duration::ZERO);
    for round in 0..TIMES {
        let pty = Pty::plugged(&name);
        let plugged = Instant::now();
        let mut node = Node::new(Framing::SlipCrc);
        if round == 0 {
            sensor.connects(&pty, &mut node).await;
        }
        // At least one message each time, and one that may be cut at any octet.
        for nth in 0..rng.usize(1..6) {
            acknowledged.insert(soon("PUBACK", sensor.publishes(&pty, &mut node)).await);
            if nth == 0 {
                slowest = slowest.max(plugged.elapsed());
            }
        }
        let moment = Duration::from_micros(rng.u64(0..8000));
        acknowledged.extend(timeout(moment, sensor.publishes(&pty, &mut node)).await);
        drop(pty);
        // Now and then it is away for long enough to be missed.
        if rng.u8(..5) == 0 {
            sleep(Duration::from_millis(rng.u64(20..200))).await;
        }
    }
    println!("{} acknowledged, the first after a return within {slowest:?} at most", acknowledged.len());
    let all = async {
        while !acknowledged.is_subset(&arrived.lock().unwrap()) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon("all that was acknowledged", all).await;
    collector.abort();
    let counts = gateway.stop().await;
    assert!(acknowledged.len() > TIMES);
    assert_eq!(counts["radio.port_vanished"], TIMES as u64);
    assert_eq!(counts["connects_accepted"], 2, "it connected once: its session was kept");
}

/// Publishes at QoS 1 without a pause, each message until it is acknowledged.
#[derive(Default)]
struct Sensor {
    number: u32,
    /// The message of that number is not acknowledged yet.
    is_open: bool,
}

impl Sensor {
    async fn connects(&self, pty: &Pty, node: &mut Node) {
        node.say(pty, &connect("sensor")).await;
        while node.hear(pty).await[1] != 5 {}
    }

    /// Which one was acknowledged. Cut short, the next call goes on with the same.
    async fn publishes(&mut self, pty: &Pty, node: &mut Node) -> u32 {
        let again = std::mem::replace(&mut self.is_open, true);
        self.number += u32::from(!again);
        let ([one, two, three, four], mut flags) = (self.number.to_be_bytes(), 0x22 | u8::from(again) << 7);
        loop {
            node.say(pty, &[11, 0x0C, flags, b'u', b'/', three, four, one, two, three, four]).await;
            let acknowledged = async {
                loop {
                    let frame = node.listen(pty).await;
                    if frame[1] == 0x0D && frame[4..] == [three, four, 0] {
                        return;
                    }
                }
            };
            if timeout(Duration::from_millis(500), acknowledged).await.is_ok() {
                self.is_open = false;
                return self.number;
            }
            flags |= 0x80;
        }
    }
}

/// A subscriber at QoS 1 that notes the numbers it gets.
async fn collect(node: UdpNode, numbers: Arc<Mutex<BTreeSet<u32>>>) {
    loop {
        let frame = node.hear_ever().await;
        if let [_, 0x0C, _, b'u', b'/', id @ .., one, two, three, four] = frame.as_slice() {
            node.say(&[7, 0x0D, b'u', b'/', id[0], id[1], 0]).await;
            numbers.lock().unwrap().insert(u32::from_be_bytes([*one, *two, *three, *four]));
        }
    }
}

/// The program as a user starts it: it never ends because of a radio, tells each thing once, and `health` tells it too.
#[tokio::test]
async fn a_radio_that_comes_and_goes_is_told_once_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().display();
    let name = dir.path().join("usb-radio-if00");
    let (broker, file) = (free_tcp(), dir.path().join("gateway.yaml"));
    let text = format!(
        "broker: {{ url: embedded, listen: 127.0.0.1:{broker} }}\n\
         transports: [{{ name: radio, type: serial, device: {}, framing: cobs+crc }}]\n\
         store: {{ path: {folder}/state }}\ncontrol: {{ socket: {folder}/control.sock }}\n",
        name.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut gateway = Process::start(Command::new(gateway_program()).args(["run", "-c"]).arg(&file));
    gateway.wait_for_line("connected to the broker");
    let health = || {
        let asked = Command::new(gateway_program()).args(["health", "-c"]).arg(&file).output().unwrap();
        (asked.status.code(), String::from_utf8(asked.stdout).unwrap())
    };
    let is = |expected: (i32, &str)| {
        wait_until("that health", || {
            let (code, text) = health();
            code == Some(expected.0) && text.contains(expected.1)
        });
    };
    gateway.wait_for_line("is not there");
    is((1, "\ntransport radio: down for "));
    for round in 1..4 {
        let mut pty = Pty::plugged(&name);
        let mut node = Node::new(Framing::CobsCrc);
        node.say(&pty, &connect("n1")).await;
        assert_eq!(until(&mut node, &pty, 5).await, [3, 5, 0][..]);
        // It is not the gateway's alone as long as this test has it open too.
        is((1, "is also open in"));
        if round == 3 {
            pty.let_go();
            is((0, "\ntransport radio: up"));
        }
        drop(pty);
        is((1, "is gone, pulled out or without power"));
        // It is looked for several times meanwhile.
        sleep(Duration::from_millis(1200)).await;
        let printed = gateway.printed();
        let lines = |part: &str| printed.lines().filter(|line| line.contains(part)).count();
        let told = ["is not there", "opened with 115200 baud 8N1", "is gone"].map(lines);
        assert_eq!(told, [1, round, round], "{printed}");
    }
    gateway.signal("TERM");
    assert!(gateway.wait_for_end().success());
}
