//! Real sockets: publisher and subscriber reach the broker through a proxy that cuts their connections at random octets.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use fastrand::Rng;
use mqtt_sn_gateway::broker::tcp::Server;
use mqtt_sn_gateway::broker::{Broker, Limits};
use mqtt_sn_gateway::mqtt::{Connection, Event, Options, Protocol, QoS, Refused, SubscriptionId};
use mqtt_sn_gateway::topic::TopicFilter;
use tokio::sync::oneshot;

use crate::world::{message, options};

const MESSAGES: usize = 20_000;

/// Messages between the two, and room for them and their repetitions in the queue of the broker.
const LAG_MAX: usize = 900;
const BROKER_QUEUE: usize = MESSAGES;

/// How long an owner that has nothing to read lets others run.
const IDLE: Duration = Duration::from_micros(50);

/// A connection gets through at most so many octets in one direction.
const CUT_WITHIN: usize = 20_000;

/// No run takes a tenth of it, on a machine that is busy with other tests.
const GIVE_UP: Duration = Duration::from_secs(120);

in_both_versions! {
    twenty_thousand_messages_reach_mosquitto_at_least_once_through_cuts,
    twenty_thousand_messages_reach_mosquitto_exactly_once_through_cuts,
    the_default_windows_are_not_too_large_for_mosquitto_as_it_comes,
    mosquitto_may_be_killed_and_started_again_without_memory,
    a_session_that_an_earlier_process_left_at_mosquitto_is_removed,
    mosquitto_keeps_the_session_of_the_first_connection_over_a_restart,
}

fn twenty_thousand_messages_reach_mosquitto_at_least_once_through_cuts(protocol: Protocol) {
    let mosquitto = Mosquitto::start(&format!("max_queued_messages {BROKER_QUEUE}\n"));
    through_cuts(protocol, mosquitto.address, QoS::AtLeastOnce);
}

fn twenty_thousand_messages_reach_mosquitto_exactly_once_through_cuts(protocol: Protocol) {
    let mosquitto = Mosquitto::start(&format!("max_queued_messages {BROKER_QUEUE}\n"));
    through_cuts(protocol, mosquitto.address, QoS::ExactlyOnce);
}

#[test]
fn twenty_thousand_messages_reach_the_embedded_broker_at_least_once_through_cuts() {
    let embedded = Embedded::start();
    through_cuts(Protocol::V4, embedded.address, QoS::AtLeastOnce);
}

#[test]
fn twenty_thousand_messages_reach_the_embedded_broker_exactly_once_through_cuts() {
    let embedded = Embedded::start();
    through_cuts(Protocol::V4, embedded.address, QoS::ExactlyOnce);
}

/// Mosquitto acknowledges what comes while 20 publishes of QoS 2 are open, and drops it.
fn the_default_windows_are_not_too_large_for_mosquitto_as_it_comes(protocol: Protocol) {
    let mosquitto = Mosquitto::start("");
    let mut subscriber = subscriber(protocol, mosquitto.address, QoS::AtMostOnce);
    let mut publisher = Owner::new(options(protocol, "p"), mosquitto.address);
    let mut sent = 0;
    until_all_came(&mut publisher, &mut subscriber, |publisher, _| {
        while sent < MESSAGES {
            let qos = if sent % 3 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
            if publisher.connection.publish(message(qos, sent)).is_err() {
                break;
            }
            sent += 1;
        }
    });
    assert_eq!((publisher.connects, subscriber.connects), (1, 1));
    assert!(subscriber.seen.values().all(|count| *count == 1));
}

fn mosquitto_may_be_killed_and_started_again_without_memory(protocol: Protocol) {
    let mut mosquitto = Mosquitto::start("");
    let mut publisher = Owner::new(options(protocol, "p"), mosquitto.address);
    let (mut sent, mut kills) = (0, 0);
    let deadline = Instant::now() + GIVE_UP;
    while publisher.completed < MESSAGES {
        assert!(Instant::now() < deadline, "{} completed", publisher.completed);
        let qos = if sent % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        while sent < MESSAGES && publisher.connection.publish(message(qos, sent)).is_ok() {
            sent += 1;
        }
        publisher.turn();
        // Not before it has seen what the last kill cost: there may have been more to read of what was said before that.
        let seen = publisher.connection.counters().sessions_lost == kills;
        if seen && publisher.completed > MESSAGES / 4 * (kills as usize + 1) && kills < 3 {
            kills += 1;
            mosquitto.restart();
        }
    }
    assert_eq!(publisher.connection.counters().sessions_lost, 3);
}

fn a_session_that_an_earlier_process_left_at_mosquitto_is_removed(protocol: Protocol) {
    let mosquitto = Mosquitto::start("");
    let mut earlier = subscriber(protocol, mosquitto.address, QoS::ExactlyOnce);
    earlier.settles = false;
    let mut publisher = Owner::new(options(protocol, "p"), mosquitto.address);
    for n in 0..100 {
        publisher.connection.publish(message(QoS::ExactlyOnce, n)).unwrap();
    }
    until(|| {
        publisher.turn();
        earlier.turn();
        publisher.completed == 100 && earlier.seen.len() == 20
    });
    drop(earlier);

    let mut later = subscriber(protocol, mosquitto.address, QoS::ExactlyOnce);
    assert_eq!((later.connects, later.connection.counters().purges), (3, 1));
    publisher.connection.publish(message(QoS::ExactlyOnce, "new")).unwrap();
    until(|| {
        publisher.turn();
        later.turn();
        !later.seen.is_empty()
    });
    assert_eq!(later.seen.keys().collect::<Vec<_>>(), ["new"]);
}

/// What comes for a subscriber before it is back must not be lost, also at the first restart: Mosquitto 2.0 does not save a
/// session whose last CONNECT had Clean Start.
fn mosquitto_keeps_the_session_of_the_first_connection_over_a_restart(protocol: Protocol) {
    let mut mosquitto = Mosquitto::start("user root\npersistence true\n"); // who is not root stays who he is
    let mut subscriber = subscriber(protocol, mosquitto.address, QoS::AtLeastOnce);
    mosquitto.restart_orderly();
    let mut publisher = Owner::new(options(protocol, "p"), mosquitto.address);
    publisher.connection.publish(message(QoS::AtLeastOnce, "early")).unwrap();
    until(|| {
        publisher.turn();
        publisher.completed == 1
    });
    until(|| {
        subscriber.turn();
        !subscriber.seen.is_empty()
    });
    assert_eq!(subscriber.connection.counters().sessions_lost, 0);
}

/// A broker of MQTT 5 that forbids a topic says so and goes on; 3.1.1 has no word for it.
#[test]
fn mosquitto_refuses_by_reason_code_and_the_window_stays_open() {
    let mut mosquitto = Mosquitto::start("");
    std::fs::write(mosquitto.directory.path().join("acl"), "topic write ok\n").unwrap();
    let config = mosquitto.directory.path().join("mosquitto.conf");
    let acl = format!("acl_file {}\n", mosquitto.directory.path().join("acl").display());
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &acl).unwrap();
    mosquitto.restart();

    let mut publisher = Owner::new(options(Protocol::V5, "p"), mosquitto.address);
    for n in 0..200 {
        let qos = if n % 2 == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let mut message = message(qos, n);
        if n % 4 > 1 {
            message.topic = mqtt_sn_gateway::topic::TopicName::new("ok").unwrap();
        }
        publisher.connection.publish(message).unwrap();
    }
    until(|| {
        publisher.turn();
        publisher.connection.unfinished() == 0
    });
    assert_eq!((publisher.completed, publisher.connects), (100, 1));
    assert_eq!(publisher.refused, [Refused(0x87); 100]);
}

/// What only MQTT 5 says comes through: how long a message is worth anything, which subscriptions it is for, and why the
/// broker takes leave.
#[test]
fn mosquitto_says_expiry_subscription_and_reason() {
    let mosquitto = Mosquitto::start("");
    let mut subscriber = Owner::new(options(Protocol::V5, "s"), mosquitto.address);
    until(|| {
        subscriber.turn();
        subscriber.connection.is_connected()
    });
    let id = SubscriptionId::new(7).unwrap();
    let filters = [(TopicFilter::new("t/#").unwrap(), QoS::AtMostOnce)];
    subscriber.connection.subscribe_as(&filters, Some(id)).unwrap();
    until(|| {
        subscriber.turn();
        subscriber.subscribed
    });

    let mut app = TcpStream::connect(mosquitto.address).unwrap();
    app.write_all(&[0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 1, b'a']).unwrap();
    app.write_all(&[0x30, 12, 0, 3, b't', b'/', b'1', 5, 2, 0, 0, 0, 100, b'm']).unwrap();
    until(|| {
        subscriber.turn();
        subscriber.expiries.len() == 1
    });
    let (expiry, subscriptions) = subscriber.expiries.remove(0);
    assert!(expiry.is_some_and(|left| (90..=100).contains(&left.as_secs())), "{expiry:?}");
    assert_eq!(subscriptions, [id]);

    // A topic alias that there is not.
    let socket = subscriber.socket.as_mut().unwrap();
    socket.write_all(&[0x30, 7, 0, 1, b't', 3, 0x23, 0, 0]).unwrap();
    socket.set_nonblocking(false).unwrap();
    let mut buffer = [0; 100];
    let len = socket.read(&mut buffer).unwrap();
    let failure = subscriber.connection.handle_bytes(Instant::now(), &buffer[..len]).unwrap_err();
    assert_eq!(failure.to_string(), "disconnected by the broker: malformed packet (0x81)");
}

/// All messages from a publisher to a subscriber, both behind a proxy that cuts.
fn through_cuts(protocol: Protocol, broker: SocketAddr, qos: QoS) {
    let up = Proxy::start(broker, 1);
    let down = Proxy::start(broker, 2);
    let mut subscriber = subscriber(protocol, down.address, qos);
    let mut publisher = Owner::new(options(protocol, "p"), up.address);
    let mut sent = 0;
    until_all_came(&mut publisher, &mut subscriber, |publisher, subscriber| {
        while sent < MESSAGES.min(subscriber.seen.len() + LAG_MAX)
            && publisher.connection.publish(message(qos, sent)).is_ok()
        {
            sent += 1;
        }
    });
    let seen = |count| subscriber.seen.values().filter(|seen| **seen > count).count();
    let figures = format!(
        "{qos:?}: {} and {} cuts, {} repeated by us, {} by the broker and not handed on, {} handed on more than once",
        up.cuts.load(Ordering::Relaxed),
        down.cuts.load(Ordering::Relaxed),
        publisher.connection.counters().resent,
        subscriber.connection.counters().duplicates,
        seen(1),
    );
    println!("{figures}");
    assert_eq!(seen(0), MESSAGES, "{figures}");
    if qos == QoS::ExactlyOnce {
        assert_eq!(seen(1), 0, "{figures}");
    }
    assert!(up.cuts.load(Ordering::Relaxed) > 10 && down.cuts.load(Ordering::Relaxed) > 10, "{figures}");
    assert!(publisher.connection.counters().resent > 100, "{figures}");
}

/// An owner of the connection "s" that has subscribed to `t`.
fn subscriber(protocol: Protocol, address: SocketAddr, qos: QoS) -> Owner {
    let mut subscriber = Owner::new(options(protocol, "s"), address);
    subscriber.subscribes = Some(qos);
    until(|| {
        subscriber.turn();
        subscriber.subscribed
    });
    subscriber
}

/// Lets both live until all messages are acknowledged and have come; before each turn there may be some to `publish`.
#[track_caller]
fn until_all_came(
    publisher: &mut Owner,
    subscriber: &mut Owner,
    mut publish: impl FnMut(&mut Owner, &Owner),
) {
    let deadline = Instant::now() + GIVE_UP;
    while publisher.completed < MESSAGES || subscriber.seen.len() < MESSAGES {
        let came = subscriber.seen.len();
        assert!(Instant::now() < deadline, "{} completed, {came} seen", publisher.completed);
        publish(publisher, subscriber);
        publisher.turn();
        subscriber.turn();
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + GIVE_UP;
    while !done() {
        assert!(Instant::now() < deadline, "it never comes to this");
    }
}

/// A connection and its blocking socket, turned by the test.
struct Owner {
    connection: Connection,
    address: SocketAddr,
    socket: Option<TcpStream>,
    unwritten: Bytes,
    connects: usize,
    /// Publishes that completed.
    completed: usize,
    /// Publishes that were refused.
    refused: Vec<Refused>,
    /// How often each payload came.
    seen: BTreeMap<String, usize>,
    /// Of the messages that expire: when, and what they are for.
    expiries: Vec<(Option<Duration>, Vec<SubscriptionId>)>,
    subscribes: Option<QoS>,
    subscribed: bool,
    settles: bool,
}

impl Owner {
    fn new(options: Options, address: SocketAddr) -> Self {
        Self {
            connection: Connection::new(options),
            address,
            socket: None,
            unwritten: Bytes::new(),
            connects: 0,
            completed: 0,
            refused: Vec::new(),
            seen: BTreeMap::new(),
            expiries: Vec::new(),
            subscribes: None,
            subscribed: false,
            settles: true,
        }
    }

    fn turn(&mut self) {
        if self.socket.is_none() {
            self.connect();
        }
        self.write();
        self.read();
        self.events();
        if let Err(failure) = self.connection.handle_timeout(Instant::now()) {
            panic!("{failure}");
        }
    }

    fn connect(&mut self) {
        let Ok(socket) = TcpStream::connect(self.address) else {
            thread::sleep(Duration::from_millis(1)); // the broker is being started again
            return;
        };
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.socket = Some(socket);
        self.connects += 1;
        self.connection.handle_connected(Instant::now()).unwrap();
    }

    /// Writes what is ready, and asks for more only when that has left.
    fn write(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        while !self.unwritten.is_empty() || {
            self.unwritten = self.connection.take_output(Instant::now()).unwrap_or_default();
            !self.unwritten.is_empty()
        } {
            match socket.write(&self.unwritten) {
                Ok(len) => self.unwritten.advance(len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.close(),
            }
        }
    }

    fn read(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        let mut buffer = [0; 16 * 1024];
        match socket.read(&mut buffer) {
            Ok(0) => self.close(),
            Ok(len) => self.connection.handle_bytes(Instant::now(), &buffer[..len]).unwrap(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(IDLE),
            Err(_) => self.close(),
        }
    }

    fn close(&mut self) {
        self.socket = None;
        self.unwritten = Bytes::new();
        self.connection.handle_closed();
    }

    fn events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Completed(_, Ok(())) => self.completed += 1,
                Event::Completed(_, Err(refused)) => self.refused.push(refused),
                Event::Connected { session_present: false } => {
                    if let Some(qos) = self.subscribes {
                        self.connection.subscribe(&[(TopicFilter::new("t").unwrap(), qos)]).unwrap();
                    }
                }
                Event::Subscribed(_, granted) => self.subscribed = granted.iter().all(Result::is_ok),
                Event::Reconnect => {
                    self.write();
                    self.close();
                }
                Event::Message { message, delivery, expiry, subscriptions, .. } => {
                    if expiry.is_some() {
                        self.expiries.push((expiry, subscriptions));
                    }
                    *self.seen.entry(String::from_utf8_lossy(&message.payload).into_owned()).or_default() +=
                        1;
                    delivery.filter(|_| self.settles).into_iter().for_each(|id| self.connection.settle(id));
                }
                Event::Refused(refusal) => panic!("{refusal}"),
                _ => {}
            }
        }
    }
}

/// Forwards connections, and cuts each after a random number of octets in either direction.
struct Proxy {
    address: SocketAddr,
    cuts: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    fn start(to: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let proxy = Self { address, cuts: cuts.clone(), stop: stop.clone() };
        thread::spawn(move || {
            let mut rng = Rng::with_seed(seed);
            for client in listener.incoming() {
                let (Ok(client), false) = (client, stop.load(Ordering::Relaxed)) else { return };
                let Ok(server) = TcpStream::connect(to) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (octets, cuts) = (rng.usize(1..CUT_WITHIN), cuts.clone());
                    thread::spawn(move || forward(from, to, octets, &cuts));
                }
            }
        });
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address)); // wakes the listener
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, mut octets: usize, cuts: &AtomicUsize) {
    to.set_nodelay(true).unwrap();
    let mut buffer = [0; 4096];
    while octets > 0 {
        let most = octets.min(buffer.len());
        let Ok(len @ 1..) = from.read(&mut buffer[..most]) else { break };
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
        octets -= len;
    }
    cuts.fetch_add(usize::from(octets == 0), Ordering::Relaxed);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A mosquitto of our own on a free port, without persistence.
struct Mosquitto {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Mosquitto {
    fn start(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let config = format!("listener {} 127.0.0.1\nallow_anonymous true\n{options}", address.port());
        std::fs::write(directory.path().join("mosquitto.conf"), config).unwrap();
        let child = Self::spawn(&directory);
        let mut mosquitto = Self { child, address, directory };
        mosquitto.wait();
        mosquitto
    }

    /// It has time to save what it keeps.
    fn restart_orderly(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.child.wait().unwrap();
        self.restart();
    }

    fn restart(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.directory);
        self.wait();
    }

    fn spawn(directory: &tempfile::TempDir) -> Child {
        let spawn = |program: &str| {
            let mut command = Command::new(program);
            command.arg("-c").arg(directory.path().join("mosquitto.conf")).current_dir(directory.path());
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        match spawn("mosquitto").or_else(|_| spawn("/usr/sbin/mosquitto")) {
            Ok(child) => child,
            Err(error) => panic!("this test needs mosquitto (Debian: apt install mosquitto): {error}"),
        }
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("mosquitto ended: {status}");
            }
            assert!(Instant::now() < deadline, "mosquitto does not listen on {}", self.address);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// The embedded broker on a free port.
struct Embedded {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Embedded {
    fn start() -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let limits = Limits { queue_messages: BROKER_QUEUE, ..Limits::default() };
                Server::new(listener, Broker::new(limits)).run(async { drop(stopped.await) }).await;
            });
        });
        Self { address, _stop: stop }
    }
}
