//! A sensor at the end of a serial line that damages one frame of a hundred, both ways.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::framing::{Decoder, Framing};
use mqtt_sn_gateway::node::{Event, Filter, Node, Options, Outcome, Topic};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::transport::serial::Spoken;
use mqtt_sn_gateway::wire::Qos;
use tokio::time::{sleep_until, timeout};

use crate::pty::Pty;
use crate::radios::with_lines;
use crate::runtime::{Node as UdpNode, Running, setup, start_broker};
use crate::soon;

/// Messages each way for each QoS: with their handshakes some seven hundred frames each way.
const MESSAGES: u32 = 120;

#[tokio::test]
async fn behind_one_percent_of_damaged_frames_every_other_one_arrives_and_nothing_acknowledged_is_lost() {
    let [length, slip, slip_crc, cobs, cobs_crc] = Framing::ALL.map(survives);
    tokio::join!(length, slip, slip_crc, cobs, cobs_crc);
}

/// A sensor at a line and an application beside it tell each other everything, at QoS 1 and 2.
async fn survives(framing: Framing) {
    let (broker, _broker) = start_broker().await;
    let pty = Pty::new();
    let mut setup = with_lines(setup(broker), &[("radio", &pty.device, Spoken::Framed(framing))]);
    for port in &mut setup.settings.ports {
        (port.retry_interval, port.retry_limit) = (RETRY, 20);
    }
    setup.settings.sessions.queue.messages = 10_000;
    setup.settings.sessions.queue.bytes = 1 << 20;
    let gateway = Running::start(setup).await;
    let mut sensor = Client::new("sensor", Wire::Line(Box::new(Line::new(pty, framing))));
    let mut app = Client::new("app", Wire::Udp(gateway.node().await));
    for (client, other) in [(&mut sensor, "app"), (&mut app, "sensor")] {
        client.node.connect(Instant::now());
        let filter = TopicFilter::new(format!("of/{other}")).unwrap();
        client.node.subscribe(Instant::now(), Filter::Name(filter), Qos::ExactlyOnce).unwrap();
        soon("SUBACK", client.live_until(|client| client.subscribed)).await;
    }
    for number in 0..MESSAGES {
        sensor.publish(number);
        app.publish(number);
    }
    // Who is done still has to answer the other.
    let done = Cell::new(0);
    let live = async |client: &mut Client| {
        client.live_until(Client::is_done).await;
        done.set(done.get() + 1);
        client.live_until(|_| done.get() == 2).await;
    };
    let both = async { tokio::join!(live(&mut sensor), live(&mut app)) };
    assert!(timeout(10 * crate::LIMIT, both).await.is_ok(), "{framing}: {sensor:?}\n{app:?}");
    sensor.node.disconnect(Instant::now());
    soon("the answer to DISCONNECT", sensor.live_until(|client| client.disconnected)).await;

    let counts = gateway.stop().await;
    for client in [&sensor, &app] {
        let twice =
            client.heard.iter().filter(|(number, times)| qos(**number) == Qos::ExactlyOnce && **times > 1);
        assert_eq!(twice.count(), 0, "{framing}: {client:?}");
    }
    let Wire::Line(line) = &sensor.wire else { unreachable!() };
    println!("{framing}: {} up, {} down", line.up, line.down);
    assert!(line.up.damaged >= 3 && line.down.damaged >= 3, "{framing}: {} {}", line.up, line.down);
    assert!(
        sensor.node.counters().retransmissions > 0 && counts["downlink_retransmissions"] > 0,
        "{framing}"
    );
    let (received, malformed) = (counts["radio.port_received"], counts["frames_malformed"]);
    match framing {
        // Until the line is silent it is deaf.
        Framing::Length => assert!(counts["radio.port_damaged"] > 0),
        // What is damaged comes out as a frame and is none of MQTT-SN.
        Framing::Slip | Framing::Cobs => {
            assert_eq!((received - malformed, malformed), (line.up.whole, line.up.damaged), "{framing}");
        }
        Framing::SlipCrc | Framing::CobsCrc => {
            assert_eq!(received, line.up.whole, "{framing}");
            // A delimiter that damage has made leaves two that look damaged.
            assert!(counts["radio.port_damaged"] >= line.up.damaged, "{framing}");
        }
    }
}

const RETRY: Duration = Duration::from_millis(300);

const SILENCE: Duration = Duration::from_millis(50);

/// Every second message goes at QoS 2.
fn qos(number: u32) -> Qos {
    if number.is_multiple_of(2) { Qos::AtLeastOnce } else { Qos::ExactlyOnce }
}

/// A client and what it has been told.
#[derive(Debug)]
struct Client {
    name: &'static str,
    node: Node,
    wire: Wire,
    subscribed: bool,
    disconnected: bool,
    acknowledged: u32,
    /// How often it was told each number.
    heard: BTreeMap<u32, u32>,
}

impl Client {
    fn new(name: &'static str, wire: Wire) -> Self {
        let mut options = Options::new(ClientId::new(name).unwrap());
        (options.retry_interval, options.retry_limit) = (RETRY, 20);
        options.queue_max = MESSAGES as usize;
        let (subscribed, disconnected, acknowledged, heard) = (false, false, 0, BTreeMap::new());
        Self { name, node: Node::new(options), wire, subscribed, disconnected, acknowledged, heard }
    }

    fn publish(&mut self, number: u32) {
        let topic = Topic::Name(TopicName::new(format!("of/{}", self.name)).unwrap());
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        self.node.publish(Instant::now(), topic, payload, qos(number), false).unwrap();
    }

    fn is_done(&self) -> bool {
        self.acknowledged == MESSAGES && self.heard.len() == MESSAGES as usize
    }

    async fn live_until(&mut self, is: impl Fn(&Self) -> bool) {
        loop {
            while let Some(frame) = self.node.poll_transmit() {
                self.wire.send(&frame).await;
            }
            while let Some(event) = self.node.poll_event() {
                self.note(event);
            }
            if is(self) {
                return;
            }
            // Now and then: `is` may be of another.
            let look = Instant::now() + Duration::from_millis(20);
            let wake = self.node.poll_timeout().map_or(look, |at| at.min(look));
            tokio::select! {
                frame = self.wire.recv() => self.node.handle_frame(Instant::now(), &frame),
                () = sleep_until(wake.into()) => self.node.handle_timeout(Instant::now()),
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Connected | Event::GatewayFound { .. } => {}
            // CONNACK was damaged, or late on a busy machine: CONNECT was said twice.
            Event::Restarted if !self.subscribed => {}
            Event::Subscribed { result, .. } => self.subscribed = result == Ok(Qos::ExactlyOnce),
            Event::Published(_, Outcome::Acknowledged) => self.acknowledged += 1,
            Event::Message(message) => {
                let number = u32::from_be_bytes(message.payload[..].try_into().expect("no other message"));
                *self.heard.entry(number).or_default() += 1;
            }
            Event::Disconnected => self.disconnected = true,
            event => panic!("{}: {event:?}", self.name),
        }
    }
}

#[derive(Debug)]
enum Wire {
    Udp(UdpNode),
    Line(Box<Line>),
}

impl Wire {
    async fn send(&mut self, frame: &[u8]) {
        match self {
            Self::Udp(node) => node.say(frame).await,
            Self::Line(line) => line.send(frame).await,
        }
    }

    /// The next frame. Cancel-safe.
    async fn recv(&mut self) -> Bytes {
        match self {
            Self::Udp(node) => node.hear_ever().await.into(),
            Self::Line(line) => line.recv().await,
        }
    }
}

/// A sensor's end of a line that damages what goes over it.
#[derive(Debug)]
struct Line {
    pty: Pty,
    framing: Framing,
    /// What the gateway writes.
    written: Decoder,
    /// What the sensor makes of what is left of it.
    heard: Decoder,
    ready: VecDeque<Bytes>,
    /// The sensor makes sense of nothing until the line is silent, which it will have been by then.
    deaf_until: Option<Instant>,
    up: Fate,
    down: Fate,
}

/// What became of frames of one direction.
#[derive(Debug)]
struct Fate {
    /// Drawn from once for each frame: which of them are damaged depends on nothing else.
    hits: fastrand::Rng,
    places: fastrand::Rng,
    whole: u64,
    damaged: u64,
}

impl Fate {
    fn new(seed: u64) -> Self {
        let [hits, places] = [seed, seed + 100].map(fastrand::Rng::with_seed);
        Self { hits, places, whole: 0, damaged: 0 }
    }

    /// What is left of a frame on its way, and whether it was damaged. Where nothing but the message itself can show that, its
    /// MsgType is hit.
    fn pass(&mut self, framing: Framing, frame: &[u8]) -> (BytesMut, bool) {
        let (mut octets, is_damaged) = (BytesMut::new(), self.hits.u8(..100) == 0);
        *(if is_damaged { &mut self.damaged } else { &mut self.whole }) += 1;
        let is_checked = matches!(framing, Framing::SlipCrc | Framing::CobsCrc);
        if is_damaged && !is_checked {
            let mut frame = frame.to_vec();
            frame[1] = 0x1E;
            framing.encode(&frame, &mut octets);
            return (octets, true);
        }
        framing.encode(frame, &mut octets);
        if is_damaged {
            // Neither of the delimiters, which the frames beside it have too.
            let at = self.places.usize(1..octets.len() - 1);
            octets[at] ^= 1 << self.places.u8(..8);
        }
        (octets, is_damaged)
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} frames and {} damaged ones", self.whole, self.damaged)
    }
}

impl Line {
    fn new(pty: Pty, framing: Framing) -> Self {
        let [written, heard] = [(); 2].map(|()| Decoder::new(framing));
        let (up, down) = (Fate::new(1), Fate::new(3));
        Self { pty, framing, written, heard, ready: VecDeque::new(), deaf_until: None, up, down }
    }

    async fn send(&mut self, frame: &[u8]) {
        let (octets, _) = self.up.pass(self.framing, frame);
        self.pty.write(&octets).await;
    }

    /// Cancel-safe.
    async fn recv(&mut self) -> Bytes {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return frame;
            }
            tokio::select! {
                biased;
                octets = self.pty.read() => self.written.push(&octets),
                () = wait_until(self.deaf_until) => {
                    self.deaf_until = None;
                    self.heard.idle();
                }
            }
            while let Some(frame) = self.written.poll_frame() {
                self.hear(&frame);
            }
            assert_eq!(self.written.counters().lost(), 0, "the gateway writes nothing but frames");
        }
    }

    fn hear(&mut self, frame: &Bytes) {
        let (octets, is_damaged) = self.down.pass(self.framing, frame);
        self.heard.push(&octets);
        let heard: Vec<_> = std::iter::from_fn(|| self.heard.poll_frame()).collect();
        if self.deaf_until.is_some() || is_damaged && self.framing == Framing::Length {
            self.deaf_until = Some(Instant::now() + SILENCE);
        }
        assert!(
            is_damaged || self.deaf_until.is_some() || heard == [frame],
            "{}: {heard:?} of {frame:?}",
            self.framing
        );
        self.ready.extend(heard);
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}
