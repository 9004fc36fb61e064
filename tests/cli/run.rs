//! `run`: the gateway at work, and what keeps it from it.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::{Ended, Folder, receive, watch};

/// A gateway that runs; killed when it is dropped.
pub(super) struct Running {
    pub(super) child: Child,
    log: BufReader<ChildStderr>,
    /// What has been read of the log.
    seen: String,
    pub(super) folder: Folder,
    _watched: Sender<()>,
}

impl Running {
    pub(super) fn start(folder: Folder, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mqtt-sn-gateway"))
            .arg("run")
            .current_dir(folder.path())
            .env_clear()
            .env("STATE_DIRECTORY", folder.path().join("state"))
            .env("RUNTIME_DIRECTORY", folder.path().join("runtime"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let watched = watch(&child);
        Self { child, log, seen: String::new(), folder, _watched: watched }
    }

    /// The rest of the next line of the log that has `words` in it.
    #[track_caller]
    pub(super) fn logs(&mut self, words: &str) -> String {
        loop {
            let from = self.seen.len();
            let read = self.log.read_line(&mut self.seen).unwrap();
            assert_ne!(read, 0, "{words:?} is not in the log:\n{}", self.seen);
            if let Some((_, rest)) = self.seen[from..].split_once(words) {
                return rest.trim().into();
            }
        }
    }

    pub(super) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub(super) fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (String::new(), std::mem::take(&mut self.seen));
        self.log.read_to_string(&mut stderr).unwrap();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        Ended { code: self.child.wait().unwrap().code().unwrap(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One UDP transport on a free port, and a broker that nobody answers for.
pub(super) const LOCAL: &str = "gateway: { id: 42 }\nbroker: { url: mqtt://127.0.0.1:1 }\n\
                     transports: [{ name: lan, type: udp, listen: '127.0.0.1:0' }]\n";

#[test]
fn a_gateway_answers_with_its_id_and_ends_with_sigterm() {
    for signal in ["-TERM", "-INT"] {
        let mut gateway = Running::start(Folder::with(LOCAL), &[]);
        let address: SocketAddr =
            gateway.logs("listening on udp ").split(' ').next().unwrap().parse().unwrap();
        let sensor = UdpSocket::bind("127.0.0.1:0").unwrap();
        sensor.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        sensor.send_to(&[0x03, 0x01, 0x00], address).unwrap(); // SEARCHGW
        let mut answer = [0; 16];
        let length = receive(|| sensor.recv(&mut answer)).unwrap();
        assert_eq!(answer[..length], [0x03, 0x02, 42]); // GWINFO
        gateway.signal(signal);
        let ended = gateway.end();
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 0), "{}", ended.stderr);
        let store = ended.stderr.lines().find(|line| line.contains("store opened"));
        assert!(store.is_some_and(|line| line.contains("/state/store.redb")), "{}", ended.stderr);
    }
}

#[test]
fn an_address_in_use_is_77_and_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = Folder::with(format!("transports: [{{ name: lan, type: udp, listen: '{address}' }}]\n"));
    let ended = folder.run(&["run"]);
    let last = ended.stderr.lines().last().unwrap();
    assert!(
        last.starts_with(&format!("mqtt-sn-gateway: transport lan: cannot listen on udp {address}: ")),
        "{last}"
    );
    assert_eq!(ended.code, 77);
}

#[test]
fn a_password_that_cannot_be_read_is_78_and_named() {
    let folder = Folder::with(format!("{LOCAL}store: {{ path: none }}\n").replace(
        "{ url: mqtt://127.0.0.1:1 }",
        "{ url: mqtt://127.0.0.1:1, username: u, password_file: /nowhere/password }",
    ));
    let last = "mqtt-sn-gateway: broker.password_file: cannot read /nowhere/password: \
                No such file or directory (os error 2)";
    for command in ["check", "run"] {
        let ended = folder.run(&[command]);
        assert_eq!((ended.stdout.as_str(), ended.stderr.lines().last()), ("", Some(last)));
        assert_eq!(ended.code, 78);
    }
}

#[test]
fn the_log_has_the_level_and_looks_that_were_asked_for() {
    let first_line = |yaml: &str, env: &[(&str, &str)]| {
        let mut gateway = Running::start(Folder::with(format!("{LOCAL}{yaml}")), env);
        gateway.logs("listening on udp ");
        gateway.signal("-TERM");
        gateway.end().stderr.lines().next().unwrap_or_default().to_string()
    };
    let version = concat!("mqtt-sn-gateway ", env!("CARGO_PKG_VERSION"));
    let journal = format!(" INFO {version} configuration=./gateway.yaml");
    assert_eq!(first_line("log: { format: journal }\n", &[]), journal);
    let plain = first_line("", &[]);
    assert!(plain.starts_with("20") && plain.contains(&format!("Z  INFO {version}")), "{plain}");
    assert!(first_line("log: { format: human }\n", &[]).contains("\u{1b}["));
    assert!(first_line("log: { level: error }\n", &[("RUST_LOG", "info")]).contains("INFO"));

    // A level above everything that is said on the way to an address in use.
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let yaml = LOCAL.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let ended = Folder::with(format!("{yaml}log: {{ level: error }}\n")).run(&["run"]);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}
