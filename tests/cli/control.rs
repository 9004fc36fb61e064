//! `forget` and `health`, asked of a gateway that runs and of one that does not.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde_json::{Value, json};

use super::ports::free_tcp;
use super::{Ended, Folder, receive, watch};

const CONNECT: &[u8] = &[8, 4, 0, 1, 0, 60, b'n', b'1'];
const CONNACK: &[u8] = &[3, 5, 0];
const DISCONNECT: &[u8] = &[2, 0x18];

/// A gateway that runs in `folder`; killed when it is dropped.
struct Gateway {
    child: Child,
    address: SocketAddr,
    _watched: Sender<()>,
}

impl Gateway {
    fn start(folder: &Folder) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mqtt-sn-gateway"))
            .arg("run")
            .current_dir(folder.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let watched = watch(&child);
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let from = seen.len();
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "{seen}");
            if let Some((_, rest)) = seen[from..].split_once("listening on udp ") {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        // The rest must not fill the pipe.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        Self { child, address, _watched: watched }
    }

    /// A client `n1` with CleanSession 0.
    fn connects(&self) -> UdpSocket {
        let sensor = UdpSocket::bind("127.0.0.1:0").unwrap();
        sensor.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        sensor.send_to(CONNECT, self.address).unwrap();
        assert_eq!(hears(&sensor), CONNACK);
        sensor
    }

    fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hears(sensor: &UdpSocket) -> Vec<u8> {
    let mut frame = [0; 64];
    let length = receive(|| sensor.recv(&mut frame)).unwrap();
    frame[..length].to_vec()
}

const NO_BROKER: &str = "{ url: mqtt://127.0.0.1:1 }";

/// A folder with a configuration, in which `./` is the folder.
fn with(broker: &str, store: &str, socket: &str) -> Folder {
    let folder = Folder::new();
    let here = format!("{}/", folder.path().display());
    let config = format!(
        "broker: {broker}\ntransports: [{{ name: lan, type: udp, listen: '127.0.0.1:0' }}]\n\
         store: {{ path: {store} }}\ncontrol: {{ socket: {socket} }}\n"
    );
    fs::write(folder.path().join("gateway.yaml"), config.replace("./", &here)).unwrap();
    folder
}

fn folder() -> Folder {
    with(NO_BROKER, "./state", "./control.sock")
}

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.lines().count(), 1, "{}{}", ended.stdout, ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[track_caller]
fn assert_ended(ended: &Ended, stdout: &str, stderr: &str, code: i32) {
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code), (stdout, stderr, code));
}

#[test]
fn forget_removes_a_client_from_a_gateway_that_runs_and_from_its_store() {
    let folder = folder();
    let gateway = Gateway::start(&folder);
    let sensor = gateway.connects();
    assert_ended(&folder.run(&["forget", "n1"]), "n1: forgotten: 1 session\n", "", 0);
    assert_eq!(hears(&sensor), DISCONNECT);
    let again = folder.run(&["forget", "n1", "-c", "gateway.yaml"]);
    assert_ended(&again, "n1: nothing was known of it\n", "", 0);
    gateway.connects();
    let gone = json(&folder.run(&["forget", "n1", "--json"]));
    assert_eq!(
        (&gone["answer"], &gone["session"], &gone["at_rest"]),
        (&json!("forgotten"), &json!(true), &json!(false))
    );
    drop(gateway);
    let ended = folder.run(&["forget", "n1"]);
    assert_ended(&ended, "n1: nothing was known of it in the store, no gateway is running\n", "", 0);
}

#[test]
fn forget_removes_a_client_from_a_store_at_rest() {
    // Stopped in good order, or killed: then its socket is still there.
    for killed in [false, true] {
        let folder = folder();
        let gateway = Gateway::start(&folder);
        gateway.connects();
        if killed {
            drop(gateway)
        } else {
            gateway.stop()
        }
        assert_eq!(folder.path().join("control.sock").exists(), killed);
        let ended = folder.run(&["forget", "n1"]);
        assert_ended(&ended, "n1: forgotten in the store, no gateway is running: 1 session\n", "", 0);
        let gone = json(&folder.run(&["forget", "n1", "--json"]));
        assert_eq!((&gone["session"], &gone["at_rest"]), (&json!(false), &json!(true)));
    }
    let nothing = with(NO_BROKER, "none", "./control.sock");
    let ended = nothing.run(&["forget", "n1"]);
    assert_ended(&ended, "n1: nothing was known of it in the store, no gateway is running\n", "", 0);
}

#[test]
fn a_gateway_that_runs_and_cannot_be_asked_is_69() {
    let folder = with(NO_BROKER, "./state", "none");
    let gateway = Gateway::start(&folder);
    for command in [&["health"][..], &["forget", "n1"]] {
        let ended = folder.run(command);
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 69), "{}", ended.stderr);
        assert!(ended.stderr.starts_with("mqtt-sn-gateway: no control socket: "), "{}", ended.stderr);
        if command[0] == "forget" {
            let end = format!("store.redb is in use by process {}\n", gateway.child.id());
            assert!(ended.stderr.ends_with(&end), "{}", ended.stderr);
        }
    }
}

#[test]
fn another_gateway_on_the_socket_is_not_asked() {
    let first = folder();
    let gateway = Gateway::start(&first);
    gateway.connects();
    let socket = first.path().join("control.sock");
    let second = with(NO_BROKER, "./state", socket.to_str().unwrap());
    let ended = second.run(&["forget", "n1"]);
    assert_ended(&ended, "n1: nothing was known of it in the store, no gateway is running\n", "", 0);
    let ended = second.run(&["health"]);
    assert_eq!(ended.code, 69);
    let state = fs::canonicalize(first.path().join("state")).unwrap();
    assert!(ended.stderr.contains(&format!("its store is {}", state.display())), "{}", ended.stderr);
    // It is asked from wherever it is meant.
    let whole = with(NO_BROKER, state.to_str().unwrap(), socket.to_str().unwrap());
    assert_ended(&whole.run(&["forget", "n1"]), "n1: forgotten: 1 session\n", "", 0);
}

#[test]
fn health_is_1_while_the_broker_is_away() {
    let folder = folder();
    let gateway = Gateway::start(&folder);
    gateway.connects();
    let ended = folder.run(&["health"]);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert!(
        lines[0].starts_with("broker: not connected for ") && lines[1].starts_with("store: durable for ")
    );
    assert!(lines[2].starts_with("transport lan: up for "), "{lines:?}");
    assert_eq!(
        lines[3..],
        ["sessions: 1", "messages waiting for clients: 0", "messages kept for the broker: 0"]
    );
    assert_eq!((ended.stderr.as_str(), ended.code), ("", 1));
    let ended = folder.run(&["health", "--json"]);
    let health = json(&ended);
    assert_eq!((&health["ok"], &health["broker"]["connected"]), (&json!(false), &json!(false)));
    let lan = &health["transports"][0];
    assert_eq!((&lan["name"], &lan["up"]), (&json!("lan"), &json!(true)));
    assert_eq!(
        (&health["store"]["state"], &health["sessions"], ended.code),
        (&json!("durable"), &json!(1), 1)
    );
}

#[test]
fn health_is_0_when_all_is_well_and_69_when_nobody_runs() {
    let broker = "{ url: embedded, listen: '127.0.0.1:0' }";
    let broker = broker.replace(":0", &format!(":{}", free_tcp()));
    let folder = with(&broker, "none", "./control.sock");
    let gateway = Gateway::start(&folder);
    let mut health = folder.run(&["health"]);
    while health.code == 1 {
        health = folder.run(&["health"]);
    }
    assert_eq!(health.code, 0, "{}", health.stderr);
    assert!(health.stdout.starts_with("broker: connected for "), "{}", health.stdout);
    assert!(health.stdout.contains("\nstore: none, everything ends with the gateway\n"));
    gateway.stop();
    let nobody = format!("mqtt-sn-gateway: no gateway listens on {}/control.sock\n", folder.path().display());
    assert_ended(&folder.run(&["health"]), "", &nobody, 69);
}
