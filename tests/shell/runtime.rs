//! The loop: a whole gateway in this process, or in a process of its own where signals are sent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::broker;
use mqtt_sn_gateway::gateway::io::{
    BrokerSettings, Endpoint, Mode, PortId, PortSettings, Protocol, QueueFull, QueueSettings, Rebind,
    SessionSettings, Settings, Wills,
};
use mqtt_sn_gateway::runtime::{Handle, Runtime, RuntimeError, Setup, block_on, run};
use mqtt_sn_gateway::transport::{self, udp};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::soon;

const CONNECT: &[u8] = &[8, 4, 4, 1, 0, 60, b'n', b'1'];
const CONNACK: &[u8] = &[3, 5, 0];
const PINGREQ: &[u8] = &[2, 0x16];
const PINGRESP: &[u8] = &[2, 0x17];
const DISCONNECT: &[u8] = &[2, 0x18];

#[tokio::test]
async fn a_message_goes_to_the_broker_and_back_to_a_subscriber() {
    let (broker, _broker) = start_broker().await;
    let gateway = Running::start(setup(broker)).await;
    let node = gateway.node().await;
    node.connect().await;
    node.say(&[7, 0x12, 0x20, 0, 1, b't', b'/']).await;
    let suback = node.hear().await;
    assert_eq!((suback[1], suback[7]), (0x13, 0), "{suback:?}");
    let topic = [suback[3], suback[4]];
    node.say(&[9, 0x0C, 0x20, topic[0], topic[1], 0, 2, b'4', b'2']).await;
    let mut heard = [node.hear().await, node.hear().await];
    heard.sort();
    assert_eq!(heard[0], [7, 0x0D, topic[0], topic[1], 0, 2, 0]);
    assert_eq!((heard[1][1], &heard[1][7..]), (0x0C, &b"42"[..]));
    gateway.stop().await;
}

#[tokio::test]
async fn clients_are_told_and_everything_is_counted_when_it_stops() {
    let (broker, _broker) = start_broker().await;
    let gateway = Running::start(setup(broker)).await;
    let node = gateway.node().await;
    node.connect().await;
    node.say(b"no MQTT-SN").await;
    node.say(PINGREQ).await;
    assert_eq!(node.hear().await, PINGRESP);
    let counts = gateway.stop().await;
    assert_eq!(node.hear().await, DISCONNECT);
    assert_eq!(counts["frames_malformed"], 1);
    assert_eq!(counts["lan.port_received"], counts["frames_received"]);
    assert_eq!(counts["lan.port_sent"], counts["frames_sent"]);
    assert_eq!(counts["link_connects"], 1);
}

#[tokio::test]
async fn without_a_broker_it_serves_what_it_can_and_stops_at_once() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Running::start(setup(nobody)).await;
    let node = gateway.node().await;
    node.connect().await;
    node.say(PINGREQ).await;
    assert_eq!(node.hear().await, PINGRESP);
    let begun = Instant::now();
    let counts = gateway.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(counts["link_failures"] > 0);
}

#[tokio::test]
async fn a_broker_that_goes_is_looked_for_until_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Running::start(setup(listener.local_addr().unwrap())).await;
    // Nothing else happens meanwhile: it is the core's deadline that wakes the loop.
    for _ in 0..2 {
        let (mut link, _) = soon("the gateway", listener.accept()).await.unwrap();
        let mut first = [0];
        soon("CONNECT", link.read_exact(&mut first)).await.unwrap();
        assert_eq!(first, [0x10]);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_broker_that_says_nothing_does_not_keep_it_from_stopping() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Running::start(setup(listener.local_addr().unwrap())).await;
    let silent = soon("the gateway", listener.accept()).await.unwrap();
    let begun = Instant::now();
    gateway.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(silent);
}

#[tokio::test]
async fn a_flood_of_noise_does_not_keep_a_client_from_being_served() {
    let (broker, _broker) = start_broker().await;
    let gateway = Running::start(setup(broker)).await;
    let noise = gateway.node().await;
    let node = gateway.node().await;
    node.connect().await;
    for _ in 0..20 {
        for _ in 0..1000 {
            let _ = noise.socket.try_send(&[9; 40]);
        }
        // Repeated, as a client does: the socket may be full.
        let served = async {
            loop {
                node.say(PINGREQ).await;
                if tokio::time::timeout(Duration::from_millis(100), node.hear()).await.is_ok() {
                    return;
                }
            }
        };
        soon("PINGRESP", served).await;
    }
    let counts = gateway.stop().await;
    assert!(counts["frames_malformed"] > 0);
}

#[tokio::test]
async fn a_message_with_more_recipients_than_outputs_in_a_turn_reaches_all_of_them() {
    const NODES: u16 = 3000;
    let (broker, _broker) = start_broker().await;
    let gateway = Running::start(setup(broker)).await;
    // One socket speaks for all of them, as a forwarder does.
    let forwarder = gateway.node().await;
    socket2::SockRef::from(&forwarder.socket).set_recv_buffer_size(4 << 20).unwrap();
    let mut topic = [0; 2];
    for node in 0..NODES {
        let [high, low] = node.to_be_bytes();
        let behind = |frame: &[u8]| [&[5, 0xFE, 0, high, low], frame].concat();
        let mut connect = behind(&[10, 4, 4, 1, 0, 60]);
        connect.extend(format!("{node:04}").as_bytes());
        forwarder.say(&connect).await;
        assert_eq!(forwarder.hear().await[5..], *CONNACK);
        forwarder.say(&behind(&[7, 0x12, 0, 0, 1, b't', b'/'])).await;
        let suback = forwarder.hear().await;
        assert_eq!(suback[6], 0x13, "{suback:?}");
        if node == 0 {
            topic = [suback[8], suback[9]];
        }
    }
    forwarder.say(&[&[5, 0xFE, 0, 0, 0][..], &[8, 0x0C, 0, topic[0], topic[1], 0, 0, b'!']].concat()).await;
    for heard in 0..NODES {
        let publish = tokio::time::timeout(Duration::from_secs(5), forwarder.hear()).await;
        let publish = publish.unwrap_or_else(|_| panic!("{heard} of {NODES}"));
        assert_eq!((publish[6], publish.last()), (0x0C, Some(&b'!')), "{publish:?}");
    }
    gateway.stop().await;
}

/// Each wake-up more takes time from who sends, and from a battery.
#[tokio::test]
async fn a_lone_message_wakes_it_for_itself_and_for_its_acknowledgement_alone() {
    const MESSAGES: u8 = 100;
    let (broker, _broker) = start_broker().await;
    let (tell, told) = oneshot::channel();
    let gateway = thread::spawn(move || {
        let alone = Builder::new_current_thread().enable_all().build().unwrap();
        alone.block_on(async {
            let gateway = Running::start(setup(broker)).await;
            let node = gateway.node().await.socket.into_std().unwrap();
            tell.send((node, gateway.handle.clone(), tokio::runtime::Handle::current().metrics())).unwrap();
            gateway.task.await.unwrap();
        });
    });
    let (socket, handle, metrics) = soon("the gateway", told).await.unwrap();
    let node = Node { socket: UdpSocket::from_std(socket).unwrap() };
    node.connect().await;
    // That waits for the broker.
    node.say(&[7, 0x12, 0x02, 0, 1, b's', b'/']).await;
    assert_eq!(node.hear().await[1], 0x13);
    let before = metrics.worker_park_count(0);
    for id in 1..=MESSAGES {
        node.say(&[9, 0x0C, 0x22, b't', b'/', 0, id, b'4', b'2']).await;
        assert_eq!(node.hear().await, [7, 0x0D, b't', b'/', 0, id, 0]);
    }
    let wakes = metrics.worker_park_count(0) - before;
    let most = 2 * u64::from(MESSAGES);
    assert!(wakes <= most + most / 10, "{wakes}");
    handle.stop();
    gateway.join().unwrap();
}

#[tokio::test]
async fn it_brings_the_embedded_broker_along() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Running::start(Setup { embedded_broker: Some(free), ..setup(free) }).await;
    let node = gateway.node().await;
    node.connect().await;
    // Answered only by a broker.
    node.say(&[7, 0x12, 0x20, 0, 1, b't', b'/']).await;
    assert_eq!(node.hear().await[1], 0x13);
    gateway.stop().await;
    // It goes with the gateway.
    while TcpListener::bind(free).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_the_transport() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let mut setup = setup(addr);
    let transport::Options::Udp(options) = &mut setup.ports[0] else { panic!("{:?}", setup.ports) };
    options.listen = vec![addr];
    let error = Runtime::open(setup.clone()).unwrap_err();
    assert!(matches!(error, RuntimeError::Port { .. } | RuntimeError::Broker { .. }));
    assert_eq!(
        chain(&error),
        format!("transport lan: cannot listen on udp {addr}: Address already in use (os error 98)")
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = Setup { embedded_broker: taken.local_addr().ok(), ..self::setup(addr) };
    let error = Runtime::open(broker).unwrap_err();
    assert!(matches!(error, RuntimeError::Port { .. } | RuntimeError::Broker { .. }));
    assert!(matches!(error, RuntimeError::Broker { .. }));
}

#[test]
fn sigterm_and_sigint_end_it_with_success() {
    for signal in ["TERM", "INT"] {
        let Some(mut gateway) =
            Process::start("runtime::sigterm_and_sigint_end_it_with_success", Broker::None)
        else {
            return;
        };
        gateway.signal(signal);
        assert!(gateway.end().success(), "{signal}");
    }
}

#[test]
fn sighup_is_told_and_ignored() {
    let Some(mut gateway) = Process::start("runtime::sighup_is_told_and_ignored", Broker::None) else {
        return;
    };
    for _ in 0..2 {
        gateway.signal("HUP");
        gateway.says("SIGHUP: reloading comes with a later version");
    }
    gateway.signal("TERM");
    gateway.says("stopping");
    assert!(gateway.end().success());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    // A broker that takes the connection and says nothing: leaving it takes time.
    let Some(mut gateway) = Process::start("runtime::a_second_signal_ends_it_at_once", Broker::Silent) else {
        return;
    };
    let begun = Instant::now();
    gateway.signal("TERM");
    gateway.says("stopping");
    gateway.signal("INT");
    assert!(gateway.end().success());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// A gateway on a free port, until it is stopped.
pub(crate) struct Running {
    addr: SocketAddr,
    handle: Handle,
    task: JoinHandle<Vec<(String, u64)>>,
}

impl Running {
    pub(crate) async fn start(setup: Setup) -> Self {
        let runtime = Runtime::open(setup).unwrap();
        let addr = runtime.local_addrs(PortId(0))[0];
        Self { addr, handle: runtime.handle(), task: tokio::spawn(runtime.run()) }
    }

    pub(crate) async fn node(&self) -> Node {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.addr).await.unwrap();
        Node { socket }
    }

    pub(crate) async fn stop(self) -> BTreeMap<String, u64> {
        self.handle.stop();
        soon("the end", self.task).await.unwrap().into_iter().collect()
    }

    /// Tells it to stop, and then that this takes too long.
    pub(crate) async fn abort(self) -> BTreeMap<String, u64> {
        self.handle.stop();
        self.handle.abort();
        soon("the end", self.task).await.unwrap().into_iter().collect()
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    socket: UdpSocket,
}

impl Node {
    pub(crate) async fn say(&self, frame: &[u8]) {
        self.socket.send(frame).await.unwrap();
    }

    pub(crate) async fn hear(&self) -> Vec<u8> {
        soon("a frame", self.hear_ever()).await
    }

    /// However long it takes.
    pub(crate) async fn hear_ever(&self) -> Vec<u8> {
        let mut frame = vec![0; 2000];
        let len = self.socket.recv(&mut frame).await.unwrap();
        frame.truncate(len);
        frame
    }

    pub(crate) async fn connect(&self) {
        self.say(CONNECT).await;
        assert_eq!(self.hear().await, CONNACK);
    }
}

pub(crate) async fn start_broker() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = broker::tcp::serve(listener, broker::Limits::default(), std::future::pending());
    (addr, tokio::spawn(async move { drop(serve.await) }))
}

/// One UDP port on loopback.
pub(crate) fn setup(broker: SocketAddr) -> Setup {
    let second = Duration::from_secs(1);
    let port = PortSettings {
        name: "lan".into(),
        mode: Mode::Aggregating,
        mtu: 1024,
        retry_interval: 10 * second,
        retry_limit: 3,
        forwarders: true,
        qos_minus_one: true,
        advertise: false,
    };
    let broker = BrokerSettings {
        endpoints: vec![Endpoint { host: broker.ip().to_string(), port: broker.port(), tls: false }],
        protocol: Protocol::V311,
        client_id: "gateway".into(),
        client_id_is_random: false,
        credentials: None,
        client_credentials: BTreeMap::new(),
        client_id_template: "%c".into(),
        wills: Wills::Gateway,
        outage_queue: None,
        grace: Duration::from_secs(60),
        keep_alive: 60 * second,
        ack_timeout: 8 * second,
        connect_timeout: 10 * second,
    };
    let sessions = SessionSettings {
        max: 10_000,
        expiry: 3600 * second,
        max_topics: 100,
        max_subscriptions: 10,
        queue: QueueSettings { messages: 10, bytes: 10_000, full: QueueFull::DropOldest, qos0: true },
        queue_total: 1 << 20,
        rebind: Rebind::SameIp,
    };
    let settings = Settings {
        gw_id: 1,
        advertise_interval: 900 * second,
        ports: vec![port],
        broker,
        predefined: BTreeMap::new(),
        client_predefined: BTreeMap::new(),
        sessions,
        lasting: false,
        seed: 1,
    };
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let options = udp::Options { name: "lan".into(), listen, group: None };
    Setup {
        store: None,
        control: None,
        settings,
        ports: vec![transport::Options::Udp(options)],
        embedded_broker: None,
        certificates: Default::default(),
        passwords: Default::default(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let next = error.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{error}{next}")
}

#[derive(Clone, Copy)]
enum Broker {
    None,
    Silent,
}

/// A gateway in a process of its own: this test, started again.
struct Process {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    _silent: Option<std::net::TcpListener>,
}

impl Process {
    const INSIDE: &str = "MQTT_SN_TEST_BROKER";

    /// `None` inside, after the gateway has ended.
    fn start(test: &str, broker: Broker) -> Option<Self> {
        if let Ok(broker) = std::env::var(Self::INSIDE) {
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
            block_on(1, run(setup(broker.parse().unwrap()))).unwrap().unwrap();
            return None;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let silent = match broker {
            Broker::None => None,
            Broker::Silent => Some(listener),
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(Self::INSIDE, addr.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let mut process = Self { child, said, _silent: silent };
        process.says("listening on udp 127.0.0.1:");
        if let Some(listener) = &process._silent {
            // Its connection is there: from here on, leaving takes time.
            let (mut link, _) = listener.accept().unwrap();
            link.read_exact(&mut [0]).unwrap();
            std::mem::forget(link);
        }
        Some(process)
    }

    fn signal(&mut self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// Waits until it has said so.
    #[track_caller]
    fn says(&mut self, text: &str) {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let len = self.said.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended without saying {text:?}:\n{all}");
            if line.contains(text) {
                return;
            }
            all += &line;
        }
    }

    fn end(mut self) -> std::process::ExitStatus {
        // Its pipe must not be full.
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap()
    }
}
