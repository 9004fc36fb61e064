//! `mqtt-sn-gateway demo`: the embedded broker, a gateway and simulated sensors on loopback, told in human words.
//!
//! Nothing is pretended: the sensors are [`node::Node`]s that speak MQTT-SN over UDP, the application is an MQTT client of
//! the broker, and a line is printed when a message has arrived where it says.

use std::fmt;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket as BlockingUdpSocket};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use crate::config::{Broker, BrokerUrl, Config, Place, Transport, TransportKind, Udp};
use crate::gateway::io::PortId;
use crate::mqtt::{self, Connection, Message, QoS};
use crate::node::{self, Filter, Node, Outcome, Topic};
use crate::runtime::{Runtime, RuntimeError, Setup};
use crate::setup::SetupErrors;
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::Qos;

/// Lines that wait to be printed: far more than the demo says in a second.
const LINES_MAX: usize = 256;

/// How long everybody has to take leave.
const FAREWELL: Duration = Duration::from_secs(3);

/// The topic of the button, which both sides know by this id (§6.7).
const BUTTON: (u16, &str) = (1, "home/button");

/// What the application tells the lamp.
const LAMP: &str = "home/lamp/set";

/// What the application leaves for the letterbox, which sleeps.
const LETTERBOX: &str = "home/letterbox/light";

/// How long the letterbox sleeps between two looks at what waits for it.
const NAP: Duration = Duration::from_secs(2);

/// What it tells the gateway: longer than a nap, so that a PINGREQ may be repeated.
const NAP_AT_MOST: Duration = Duration::from_secs(30);

/// A simulated sensor.
#[derive(Debug, Clone, Copy)]
struct Sensor {
    name: &'static str,
    qos: Qos,
    /// What it publishes on; nothing for one that only listens.
    topic: Option<&'static str>,
    /// Between two readings.
    every: Duration,
    readings: &'static [&'static str],
    /// What it listens to.
    subscribes: Option<&'static str>,
    /// Whether it sleeps once it listens (§6.14).
    sleeps: bool,
}

const SENSORS: [Sensor; 7] = [
    Sensor {
        name: "thermometer",
        qos: Qos::AtLeastOnce,
        topic: Some("home/kitchen/temperature"),
        every: Duration::from_millis(1100),
        readings: &["21.4 °C", "21.5 °C", "21.7 °C", "21.6 °C"],
        subscribes: None,
        sleeps: false,
    },
    Sensor {
        name: "door",
        qos: Qos::ExactlyOnce,
        topic: Some("home/door/state"),
        every: Duration::from_millis(1700),
        readings: &["open", "closed"],
        subscribes: None,
        sleeps: false,
    },
    Sensor {
        name: "meter",
        qos: Qos::AtMostOnce,
        topic: Some("home/meter/power"),
        every: Duration::from_millis(1300),
        readings: &["310 W", "295 W", "1240 W"],
        subscribes: None,
        sleeps: false,
    },
    Sensor {
        name: "button",
        qos: Qos::MinusOne,
        topic: Some(BUTTON.1),
        every: Duration::from_millis(2300),
        readings: &["pressed"],
        subscribes: None,
        sleeps: false,
    },
    Sensor {
        name: "display",
        qos: Qos::AtMostOnce,
        topic: None,
        every: Duration::from_secs(3600),
        readings: &[],
        subscribes: Some("home/+/temperature"),
        sleeps: false,
    },
    Sensor {
        name: "lamp",
        qos: Qos::AtMostOnce,
        topic: None,
        every: Duration::from_secs(3600),
        readings: &[],
        subscribes: Some("home/lamp/#"),
        sleeps: false,
    },
    Sensor {
        name: "letterbox",
        qos: Qos::AtMostOnce,
        topic: None,
        every: Duration::from_secs(3600),
        readings: &[],
        subscribes: Some("home/letterbox/#"),
        sleeps: true,
    },
];

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No port is free.
    #[error("no free port on loopback")]
    Port(#[source] io::Error),
    /// The gateway does not start.
    #[error("the gateway does not start")]
    Gateway(#[from] RuntimeError),
    /// The demo's own configuration is not one.
    #[error("the demo is not set up right")]
    Setup(#[from] SetupErrors),
    /// A sensor or the application has no socket.
    #[error("no socket for {0}")]
    Socket(&'static str, #[source] io::Error),
}

/// Runs until Ctrl-C, or for `exit_after`.
///
/// # Errors
/// [`DemoError`]; nothing keeps running then.
pub async fn run(exit_after: Option<Duration>) -> Result<(), DemoError> {
    let broker = free_tcp(1883).map_err(DemoError::Port)?;
    let gateway = free_udp(1884).map_err(DemoError::Port)?;
    let runtime = Runtime::open(Setup::new(config(broker, gateway))?)?;
    let handle = runtime.handle();
    let listening = runtime.local_addrs(PortId(0)).first().copied().unwrap_or(gateway);
    let started = Instant::now();
    say(format_args!(
        "A broker, a gateway and {} sensors, all on this machine; nothing is kept. Ctrl-C ends it.\n\n\
         {:12}{broker}  (embedded, MQTT)\n{:12}{listening}  (MQTT-SN over UDP)\n\n\
         Look on from another terminal:  mosquitto_sub -p {} -t '#' -v\n",
        SENSORS.len(),
        "broker",
        "gateway",
        broker.port(),
    ));
    let running = tokio::spawn(runtime.run());
    let (lines, mut said) = mpsc::channel(LINES_MAX);
    let mut cast = tokio::task::JoinSet::new();
    cast.spawn(application(broker, lines.clone()));
    for sensor in SENSORS {
        cast.spawn(simulate(sensor, listening, lines.clone()));
    }
    drop(lines);
    let mut tally = Tally::default();
    let outcome = tell(&mut said, &mut cast, &mut tally, started, exit_after).await;
    cast.shutdown().await;
    handle.stop();
    let _ = tokio::time::timeout(FAREWELL, running).await;
    outcome?;
    say(format_args!("\n{tally}\n\n{}", advice()));
    Ok(())
}

/// The configuration a user would write for this.
fn config(broker: SocketAddr, gateway: SocketAddr) -> Config {
    let mut config = Config::default();
    // It leaves nothing behind, and a gateway that is meant may be running beside it.
    config.store.path = Place::None;
    config.control.socket = Place::None;
    config.broker = Broker { urls: vec![BrokerUrl::Embedded], listen: broker, ..config.broker };
    if let Ok(name) = TopicName::new(BUTTON.1) {
        config.topics.predefined = [(BUTTON.0, name)].into();
    }
    config.transports =
        vec![Transport::new("demo", TransportKind::Udp(Udp { listen: vec![gateway], ..Udp::default() }))];
    config
}

/// Prints what arrives until Ctrl-C or the end of `exit_after`.
async fn tell(
    said: &mut mpsc::Receiver<Line>,
    cast: &mut tokio::task::JoinSet<Result<(), DemoError>>,
    tally: &mut Tally,
    started: Instant,
    exit_after: Option<Duration>,
) -> Result<(), DemoError> {
    let end = async {
        match exit_after {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let mut end = std::pin::pin!(end);
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| DemoError::Socket("signals", error))?;
    loop {
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = &mut end => return Ok(()),
            Some(Ok(Err(error))) = cast.join_next() => return Err(error),
            Some(line) = said.recv() => {
                tally.count(&line);
                if !say(format_args!("{:6.2} s  {line}", started.elapsed().as_secs_f64())) {
                    return Ok(());
                }
            }
        }
    }
}

/// One line of the story.
#[derive(Debug)]
enum Line {
    /// A message of a sensor is at the broker.
    Up { sensor: &'static str, topic: String, text: String, qos: Qos },
    /// A message is at a sensor.
    Down { sensor: &'static str, topic: String, text: String, qos: Qos },
    /// Anything else of a sensor.
    State { sensor: &'static str, what: String },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { sensor, topic, text, qos } => {
                write!(f, "{sensor:>11} → {topic:<24} {text:<8} → broker       ({})", name_of(*qos))
            }
            Self::Down { sensor, topic, text, qos } => {
                write!(f, "{:>11} → {topic:<24} {text:<8} → {sensor:<12} ({})", "broker", name_of(*qos))
            }
            Self::State { sensor, what } => write!(f, "{sensor:>11} {what}"),
        }
    }
}

fn name_of(qos: Qos) -> &'static str {
    match qos {
        Qos::MinusOne => "QoS -1: no connection, no answer",
        Qos::AtMostOnce => "QoS 0",
        Qos::AtLeastOnce => "QoS 1",
        Qos::ExactlyOnce => "QoS 2: exactly once",
    }
}

#[derive(Debug, Default)]
struct Tally {
    up: u64,
    down: u64,
}

impl Tally {
    fn count(&mut self, line: &Line) {
        match line {
            Line::Up { .. } => self.up += 1,
            Line::Down { .. } => self.down += 1,
            Line::State { .. } => {}
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages of sensors reached the broker, {} came back to sensors.", self.up, self.down)
    }
}

/// What to try next, in the words that work where this was started.
fn advice() -> String {
    let started_as = std::env::args().next().unwrap_or_default();
    let (gateway, node) = match (std::env::var_os("CARGO"), started_as.rsplit_once('/')) {
        (Some(_), _) => ("cargo run --release --".into(), "cargo run --release -p mqtt-sn-node --".into()),
        (None, Some((folder, _))) => (started_as.clone(), format!("{folder}/mqtt-sn-node")),
        (None, None) => ("mqtt-sn-gateway".into(), "mqtt-sn-node".to_owned()),
    };
    let commands = [
        (format!("{gateway} init --broker embedded"), "writes gateway.yaml, every option explained"),
        (format!("{gateway} run"), "the gateway, with the broker inside"),
        (format!("{node} pub -t home/hello -m world -q 1"), "in another terminal: a sensor's message"),
    ];
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    let lines = commands.iter().map(|(command, what)| format!("\n  {command:width$}   {what}"));
    format!("Try next:{}", lines.collect::<String>())
}

/// Lives as `sensor` until it is cancelled.
async fn simulate(sensor: Sensor, gateway: SocketAddr, lines: mpsc::Sender<Line>) -> Result<(), DemoError> {
    let failed = |error| DemoError::Socket(sensor.name, error);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    socket.connect(gateway).await.map_err(failed)?;
    let mut node = new_node(&sensor);
    let mut readings = sensor.readings.iter().cycle();
    let mut next_reading = Instant::now() + sensor.every / 4;
    let mut buffer = vec![0; 65_535];
    loop {
        while let Some(event) = node.poll_event() {
            if let Some(line) = line_of(&sensor, event) {
                let _ = lines.send(line).await;
            }
        }
        if sensor.sleeps && node.is_idle() {
            node.sleep(Instant::now(), NAP_AT_MOST);
        }
        while let Some(frame) = node.poll_transmit() {
            let _ = socket.send(&frame).await; // as on the air: what is lost is repeated
        }
        let wake = node.poll_timeout().map_or(next_reading, |at| at.min(next_reading));
        tokio::select! {
            Ok(len) = socket.recv(&mut buffer) => node.handle_frame(Instant::now(), &buffer[..len]),
            () = sleep_until(wake.into()) => {
                let now = Instant::now();
                node.handle_timeout(now);
                if now >= next_reading {
                    next_reading = now + sensor.every;
                    if let (Some(topic), Some(reading)) = (sensor.topic, readings.next()) {
                        publish(&mut node, &sensor, topic, reading, &socket).await;
                    }
                }
            }
        }
    }
}

fn new_node(sensor: &Sensor) -> Node {
    let now = Instant::now();
    // The names are in this file and short.
    #[expect(clippy::expect_used, reason = "a constant of this file, and a test starts every sensor")]
    let id = ClientId::new(sensor.name).expect("a client id");
    let mut options = node::Options::new(id);
    options.retry_interval = Duration::from_secs(2);
    options.reconnect = Some(node::Backoff::default());
    options.wake_every = Some(NAP);
    let mut node = Node::new(options);
    if sensor.qos != Qos::MinusOne {
        node.connect(now);
    }
    if let Some(filter) = sensor.subscribes.and_then(|filter| TopicFilter::new(filter).ok()) {
        let _ = node.subscribe(now, Filter::Name(filter), Qos::ExactlyOnce);
    }
    node
}

async fn publish(node: &mut Node, sensor: &Sensor, topic: &str, reading: &'static str, socket: &UdpSocket) {
    if sensor.qos == Qos::MinusOne {
        let frame = node::datagram(&Topic::Predefined(BUTTON.0), reading.as_bytes(), false, None);
        if let Ok(frame) = frame {
            let _ = socket.send(&frame).await;
        }
    } else if let Ok(name) = TopicName::new(topic) {
        // Full: the gateway has been away for a while, and old readings are of no use.
        let _ = node.publish(Instant::now(), Topic::Name(name), reading.into(), sensor.qos, false);
    }
}

fn line_of(sensor: &Sensor, event: node::Event) -> Option<Line> {
    let state = |what: String| Some(Line::State { sensor: sensor.name, what });
    match event {
        node::Event::Connected => state("connected".into()),
        node::Event::ConnectRefused(code) => state(format!("refused by the gateway: {code}")),
        node::Event::ConnectionLost(loss) => state(format!("lost its connection: {loss}")),
        node::Event::Subscribed { filter, result: Ok(_) } => state(format!("listens to {filter}")),
        node::Event::Subscribed { filter, result: Err(code) } => {
            state(format!("may not listen to {filter}: {code}"))
        }
        node::Event::Asleep => state(format!("sleeps for {} s", NAP.as_secs())),
        node::Event::Drained { messages: 0 } => None,
        node::Event::Drained { messages } => {
            let s = if messages == 1 { "" } else { "s" };
            state(format!("woke, {messages} message{s} waited; sleeps for {} s", NAP.as_secs()))
        }
        node::Event::Published(_, Outcome::Refused(code)) => state(format!("had a message refused: {code}")),
        node::Event::Message(node::Message { topic, payload, qos, .. }) => {
            Some(Line::Down { sensor: sensor.name, topic: topic.to_string(), text: text(&payload), qos })
        }
        _ => None,
    }
}

/// An MQTT client of the broker: it sees everything the sensors say, switches the lamp, and writes to the letterbox.
async fn application(broker: SocketAddr, lines: mpsc::Sender<Line>) -> Result<(), DemoError> {
    let failed = |error| DemoError::Socket("the application", error);
    let mut socket = TcpStream::connect(broker).await.map_err(failed)?;
    let mut options = mqtt::Options::new("application");
    options.session = mqtt::Session::Clean;
    let mut connection = Connection::new(options);
    let broken = |error: mqtt::Failure| failed(io::Error::other(error));
    connection.handle_connected(Instant::now()).map_err(broken)?;
    if let Ok(everything) = TopicFilter::new("#") {
        let _ = connection.subscribe(&[(everything, QoS::ExactlyOnce)]);
    }
    // Not before the lamp listens.
    let first = tokio::time::Instant::now() + Duration::from_millis(700);
    let mut switch = tokio::time::interval_at(first, Duration::from_millis(1900));
    let mut switched = ["on", "off"].into_iter().cycle();
    let mut write = tokio::time::interval_at(first + NAP / 2, Duration::from_secs(3));
    let mut blink = ["green", "red"].into_iter().cycle();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        while let Some(event) = connection.poll_event() {
            if let mqtt::Event::Message { message, delivery, .. } = event {
                if let Some(line) = seen(&message) {
                    let _ = lines.send(line).await;
                }
                if let Some(delivery) = delivery {
                    connection.settle(delivery);
                }
            }
        }
        while let Some(octets) = connection.take_output(Instant::now()) {
            socket.write_all(&octets).await.map_err(failed)?;
        }
        let wake = connection.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            read = socket.read(&mut buffer) => match read.map_err(failed)? {
                0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                len => connection.handle_bytes(Instant::now(), &buffer[..len]).map_err(broken)?,
            },
            _ = switch.tick() => tell_sensor(&mut connection, LAMP, switched.next().unwrap_or_default()),
            _ = write.tick() => tell_sensor(&mut connection, LETTERBOX, blink.next().unwrap_or_default()),
            () = sleep_until(wake.into()) => connection.handle_timeout(Instant::now()).map_err(broken)?,
        }
    }
}

fn tell_sensor(connection: &mut Connection, topic: &str, what: &'static str) {
    if let Ok(topic) = TopicName::new(topic) {
        let payload = Bytes::from_static(what.as_bytes());
        let _ = connection.publish(Message { topic, payload, qos: QoS::AtLeastOnce, retain: false });
    }
}

/// The line for a message at the broker; none for the application's own.
fn seen(message: &Message) -> Option<Line> {
    let topic = message.topic.as_str();
    let sensor = SENSORS.iter().find(|sensor| sensor.topic == Some(topic))?;
    let (topic, text) = (topic.to_owned(), text(&message.payload));
    Some(Line::Up { sensor: sensor.name, topic, text, qos: sensor.qos })
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

/// Prints to standard output. Whether anybody listens.
fn say(text: impl fmt::Display) -> bool {
    writeln!(io::stdout(), "{text}").is_ok()
}

/// The usual port, or any other that is free.
fn free_tcp(usual: u16) -> io::Result<SocketAddr> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    bind(usual).or_else(|_| bind(0))?.local_addr()
}

fn free_udp(usual: u16) -> io::Result<SocketAddr> {
    let bind = |port| BlockingUdpSocket::bind((Ipv4Addr::LOCALHOST, port));
    bind(usual).or_else(|_| bind(0))?.local_addr()
}
