//! What a service manager hears of `run` (`sd_notify(3)`), and what becomes of what it says.

use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::ports::free_tcp;
use super::run::{LOCAL, Running};
use super::{Ended, Folder, receive};

/// For everything that a gateway says: it has to start, and its pauses before it tries its broker again have grown meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// The manager's socket.
struct Manager {
    socket: UnixDatagram,
    /// For NOTIFY_SOCKET.
    name: String,
    /// What it has heard so far, a message each.
    heard: Vec<String>,
}

impl Manager {
    /// In the folder of the gateway.
    fn at(folder: &Folder) -> Self {
        let path = folder.path().join("notify");
        Self::new(UnixDatagram::bind(&path).unwrap(), path.display().to_string())
    }

    fn new(socket: UnixDatagram, name: String) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, name, heard: Vec::new() }
    }

    #[track_caller]
    fn hears(&mut self) -> &str {
        let mut buffer = [0; 4096];
        let length = receive(|| self.socket.recv(&mut buffer));
        let length = length.unwrap_or_else(|error| panic!("{error} after {:?}", self.heard));
        self.heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        self.heard.last().unwrap()
    }

    /// Waits for a message with this line.
    #[track_caller]
    fn hears_line(&mut self, line: &str) -> String {
        loop {
            let message = self.hears();
            if message.lines().any(|it| it == line) {
                return message.to_owned();
            }
        }
    }

    /// Everything, after the gateway has ended.
    fn all(mut self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        self.heard
    }
}

fn start(folder: Folder, manager: &Manager, env: &[(&str, &str)]) -> Running {
    let env: Vec<_> = [("NOTIFY_SOCKET", manager.name.as_str())].iter().chain(env).copied().collect();
    Running::start(folder, &env)
}

fn stop(gateway: Running) -> Ended {
    gateway.signal("-TERM");
    gateway.end()
}

const CONNECT: &[u8] = &[8, 4, 4, 1, 0, 60, b'n', b'1'];

/// A client connects to the gateway, whose answer is awaited.
fn connect(gateway: &mut Running) -> UdpSocket {
    let sensor = UdpSocket::bind("127.0.0.1:0").unwrap();
    sensor.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = gateway.logs("listening on udp ").split_whitespace().next().unwrap().to_owned();
    sensor.send_to(CONNECT, &address).unwrap();
    assert_eq!(receive(|| sensor.recv(&mut [0; 16])).unwrap(), 3);
    sensor
}

#[test]
fn it_is_ready_without_a_broker_once_sensors_are_heard_and_says_when_it_stops() {
    let folder = Folder::with(LOCAL);
    let mut manager = Manager::at(&folder);
    let mut gateway = start(folder, &manager, &[]);
    assert_eq!(manager.hears(), "READY=1\nSTATUS=broker not connected; lan up; 0 sessions\n");
    let _sensor = connect(&mut gateway);
    assert_eq!(manager.hears(), "STATUS=broker not connected; lan up; 1 session\n");
    let ended = stop(gateway);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let all = manager.all();
    assert_eq!(all.last().unwrap(), "STATUS=stopping\nSTOPPING=1\n", "{all:?}");
    assert_eq!(all.iter().filter(|it| it.contains("READY")).count(), 1, "{all:?}");
    assert!(!all.iter().any(|it| it.contains("WATCHDOG")), "nobody asked for it: {all:?}");
}

/// 203.0.113.7 is an address of nobody (RFC 5737), as one that a network has yet to give.
#[test]
fn it_is_ready_without_a_transport_that_cannot_be_opened_yet_and_health_tells_which() {
    let folder = Folder::with(
        "broker: { url: mqtt://127.0.0.1:1 }\n\
         transports:\n  - { name: far, type: udp, listen: '203.0.113.7:1884' }\n  \
         - { name: lan, type: udp, listen: '127.0.0.1:0' }\n",
    );
    let mut manager = Manager::at(&folder);
    let gateway = start(folder, &manager, &[]);
    assert_eq!(manager.hears(), "READY=1\nSTATUS=broker not connected; far down, lan up; 0 sessions\n");
    let health = gateway.folder.run(&["health"]);
    assert_eq!(health.code, 1);
    for line in ["\ntransport far: down for ", "\ntransport lan: up for "] {
        assert!(health.stdout.contains(line), "{}", health.stdout);
    }
    assert_eq!(stop(gateway).code, 0);
}

#[test]
fn it_is_ready_without_a_radio_and_says_that_it_is_down() {
    let folder = Folder::new();
    let device = folder.path().join("ttyUSB0").display().to_string();
    let radio =
        format!("  - {{ name: radio, type: serial, device: {device}, baud: 115200, framing: slip+crc }}\n");
    let lan = "  - { name: lan, type: udp, listen: '127.0.0.1:0' }\n";
    let config = format!("broker: {{ url: mqtt://127.0.0.1:1 }}\ntransports:\n{radio}{lan}");
    std::fs::write(folder.path().join("gateway.yaml"), config).unwrap();
    let mut manager = Manager::at(&folder);
    let gateway = start(folder, &manager, &[]);
    assert_eq!(manager.hears(), "READY=1\nSTATUS=broker not connected; radio down, lan up; 0 sessions\n");
    assert_eq!(stop(gateway).code, 0);
}

#[test]
fn its_status_follows_the_broker() {
    // A gateway with a broker inside stands for the broker.
    let free = format!("127.0.0.1:{}", free_tcp());
    let broker = || {
        let config = format!(
            "broker: {{ url: embedded, listen: '{free}' }}\nstore: {{ path: none }}\n\
             transports: [{{ name: lan, type: udp, listen: '127.0.0.1:0' }}]\n"
        );
        Running::start(Folder::with(config), &[])
    };
    let config = format!(
        "broker: {{ url: 'mqtt://{free}' }}\ntransports: [{{ name: lan, type: udp, listen: '127.0.0.1:0' }}]\n"
    );
    let folder = Folder::with(config);
    let mut manager = Manager::at(&folder);
    let gateway = start(folder, &manager, &[]);
    manager.hears_line("READY=1");
    let first = broker();
    manager.hears_line("STATUS=broker connected; lan up; 0 sessions");
    drop(first);
    manager.hears_line("STATUS=broker not connected; lan up; 0 sessions");
    let _second = broker();
    manager.hears_line("STATUS=broker connected; lan up; 0 sessions");
    assert_eq!(stop(gateway).code, 0);
}

#[test]
fn the_watchdog_is_fed_as_often_as_the_manager_asks_for() {
    let folder = Folder::with(LOCAL);
    let mut manager = Manager::at(&folder);
    let gateway = start(folder, &manager, &[("WATCHDOG_USEC", "100000")]);
    // The gateway has nothing to do meanwhile.
    for _ in 0..20 {
        manager.hears_line("WATCHDOG=1");
    }
    assert_eq!(stop(gateway).code, 0);
}

#[test]
fn a_watchdog_that_is_meant_for_another_process_is_left_alone() {
    let folder = Folder::with(LOCAL);
    let mut manager = Manager::at(&folder);
    let gateway = start(folder, &manager, &[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]);
    manager.hears_line("READY=1");
    assert_eq!(stop(gateway).code, 0);
    let all = manager.all();
    assert!(!all.iter().any(|it| it.contains("WATCHDOG")), "{all:?}");
}

/// As in a container.
#[test]
fn a_manager_with_an_abstract_name_hears_the_same() {
    let name = format!("mqtt-sn-gateway-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut manager = Manager::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"));
    let gateway = start(Folder::with(LOCAL), &manager, &[("WATCHDOG_USEC", "60000000")]);
    manager.hears_line("READY=1");
    assert_eq!(manager.heard[0], "WATCHDOG=1\n");
    assert_eq!(stop(gateway).code, 0);
    assert_eq!(manager.all().last().unwrap(), "STATUS=stopping\nSTOPPING=1\n");
}

#[test]
fn a_wrong_configuration_and_an_address_in_use_are_never_ready() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken =
        format!("transports: [{{ name: lan, type: udp, listen: '{}' }}]\n", taken.local_addr().unwrap());
    for (config, code) in [("transports: []\n", 78), (taken.as_str(), 77)] {
        let folder = Folder::with(config);
        let manager = Manager::at(&folder);
        let gateway = start(folder, &manager, &[]);
        assert_eq!(gateway.end().code, code);
        assert_eq!(manager.all(), Vec::<String>::new());
    }
}

#[test]
fn a_manager_that_is_not_there_is_no_matter() {
    for name in ["/nonexistent/notify", "vsock:2:1234", "relative", "@"] {
        let env = [("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "1000000")];
        let mut gateway = Running::start(Folder::with(LOCAL), &env);
        let _sensor = connect(&mut gateway);
        let ended = stop(gateway);
        assert_eq!(ended.code, 0, "{name}: {}", ended.stderr);
    }
}
