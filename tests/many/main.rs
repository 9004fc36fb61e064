//! Transparent mode with as many clients as one process is to serve: ten thousand links of their own.
//!
//! All nodes stand behind one forwarder, so that the test needs one socket for them, and the broker is ours. The test has a
//! binary to itself: its connections take a third of the ports that other tests would pick from.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "parts of the end-to-end tests are used"
)]

#[path = "../e2e/pki.rs"]
mod pki;
#[path = "../e2e/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::broker::tcp::Server;
use mqtt_sn_gateway::broker::{Broker, Limits};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::process::{Gateway, wait_until};

/// Clients, each with a connection of its own to the broker.
const CLIENTS: u16 = 10_000;

/// Open files of the test beside its end of these connections.
const OTHER_FILES: u64 = 200;

/// Nodes that wait for an answer at a time: what fits into a socket's buffer.
const AT_A_TIME: usize = 100;

/// After which a node says it again.
const RETRY: Duration = Duration::from_secs(5);

/// For everything, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn ten_thousand_clients_have_links_of_their_own() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let clients = CLIENTS.min(u16::try_from(most.saturating_sub(OTHER_FILES)).unwrap_or(u16::MAX));
    if clients < CLIENTS {
        println!("this system allows {most} open files: only {clients} clients");
    }
    let gateway = {
        let broker = broker(usize::from(clients) + 10);
        Gateway::start(&format!("mqtt://127.0.0.1:{broker}"), broker, "  mode: transparent\n", None)
    };
    gateway.process.wait_for_line("connected to the broker");
    let forwarder = Forwarder::new(gateway.port);

    let began = Instant::now();
    forwarder.each_of(clients, |node| {
        let id = format!("node-{node:05}");
        let mut connect = vec![6 + id.len() as u8, 0x04, 0x04, 0x01, 0x0E, 0x10];
        connect.extend_from_slice(id.as_bytes());
        (connect, vec![3, 0x05, 0])
    });
    println!("{clients} clients connected in {:?}", began.elapsed());
    let links = gateway.process.open_sockets();
    assert!(links >= usize::from(clients), "{links} sockets");

    let began = Instant::now();
    forwarder.each_of(clients, |node| {
        let [high, low] = (node + 1).to_be_bytes();
        // QoS 1 on the short topic "ab"; the PUBACK is the broker's.
        let publish = vec![9, 0x0C, 0x22, b'a', b'b', high, low, b'o', b'n'];
        (publish, vec![7, 0x0D, b'a', b'b', high, low, 0])
    });
    println!("{clients} messages acknowledged by the broker in {:?}", began.elapsed());
    println!("{} kB resident for each client", gateway.process.resident_kb() / u64::from(clients));

    gateway.process.signal("TERM");
    wait_until("the end of every link", || gateway.process.open_sockets() == 0);
}

/// A broker of ours on a thread that lives as long as the test.
fn broker(connections: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let limits = Limits { connections, sessions: connections, ..Limits::default() };
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            Server::new(listener, Broker::new(limits)).run(std::future::pending()).await
        })
    });
    port
}

/// The nodes, by number, behind one address (§5.5).
struct Forwarder {
    socket: UdpSocket,
}

impl Forwarder {
    fn new(gateway: u16) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", gateway)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self { socket }
    }

    /// Every node says something and gets the one answer to it.
    #[track_caller]
    fn each_of(&self, nodes: u16, says: impl Fn(u16) -> (Vec<u8>, Vec<u8>)) {
        let end = Instant::now() + PATIENCE;
        let (mut next, mut waiting) = (0, BTreeMap::new());
        while next < nodes || !waiting.is_empty() {
            assert!(Instant::now() < end, "{next} of {nodes} asked, {} without an answer", waiting.len());
            while waiting.len() < AT_A_TIME && next < nodes {
                self.send(next, &says(next).0);
                waiting.insert(next, Instant::now());
                next += 1;
            }
            if let ControlFlow::Break((node, answer)) = self.receive() {
                assert_eq!(answer, says(node).1, "the answer to node {node}");
                waiting.remove(&node);
            }
            for (node, asked) in waiting.iter_mut().filter(|(_, asked)| asked.elapsed() > RETRY) {
                self.send(*node, &says(*node).0);
                *asked = Instant::now();
            }
        }
    }

    fn send(&self, node: u16, message: &[u8]) {
        let [high, low] = node.to_be_bytes();
        let mut frame = vec![5, 0xFE, 0, high, low];
        frame.extend_from_slice(message);
        self.socket.send(&frame).unwrap();
    }

    fn receive(&self) -> ControlFlow<(u16, Vec<u8>)> {
        let mut frame = [0; 64];
        match self.socket.recv(&mut frame) {
            Ok(len) => {
                assert_eq!(frame[..2], [5, 0xFE]);
                ControlFlow::Break((u16::from_be_bytes([frame[3], frame[4]]), frame[5..len].to_vec()))
            }
            Err(_) => ControlFlow::Continue(()),
        }
    }
}
