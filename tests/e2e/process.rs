//! Child processes that end with the test.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::ports::{free_tcp, free_udp};
use crate::pki::{self, Leaf};

#[path = "ports.rs"]
mod ports;

/// How many ports a gateway is started on, if somebody else takes the one that was picked.
const PORTS_TRIED: usize = 5;

/// Longer than anything takes on a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn gateway_program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mqtt-sn-gateway"))
}

/// What a socket with a time limit receives, also where the process was stopped and goes on: that interrupts the call though no
/// signal is handled (`signal(7)`).
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Polls until `done` or the end of [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen in {PATIENCE:?}");
        sleep(Duration::from_millis(10));
    }
}

/// A running program and what it has printed.
pub struct Process {
    child: Child,
    printed: Arc<Mutex<String>>,
    readers: [JoinHandle<()>; 2],
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let printed = Arc::new(Mutex::new(String::new()));
        let stdout = collect(child.stdout.take().unwrap(), &printed);
        let stderr = collect(child.stderr.take().unwrap(), &printed);
        Self { child, printed, readers: [stdout, stderr] }
    }

    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    #[track_caller]
    pub fn wait_for_line(&self, part: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.printed().contains(part) {
            assert!(Instant::now() < end, "{part:?} was not printed but:\n{}", self.printed());
            sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, at once.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // What it printed last is on its way, unless a child of its own goes on printing.
                let late = Instant::now() + Duration::from_secs(5);
                while !self.readers.iter().all(JoinHandle::is_finished) && Instant::now() < late {
                    sleep(Duration::from_millis(1));
                }
                return status;
            }
            assert!(Instant::now() < end, "still running:\n{}", self.printed());
            sleep(Duration::from_millis(5));
        }
    }

    /// Sockets that it has open; none once it has ended.
    #[allow(dead_code, reason = "tests/many looks at it")]
    pub fn open_sockets(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        let Ok(files) = std::fs::read_dir(folder) else { return 0 };
        let is_socket = |file: &std::fs::DirEntry| {
            std::fs::read_link(file.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        files.filter_map(Result::ok).filter(is_socket).count()
    }

    /// Resident memory in kB.
    #[allow(dead_code, reason = "tests/many looks at it")]
    pub fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// What it has had of a processor: on a busy machine the only measure.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        // A hundred a second, whatever the kernel counts in.
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- printed by {}:\n{}", self.child.id(), self.printed());
        }
    }
}

fn collect(from: impl std::io::Read + Send + 'static, into: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let into = into.clone();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut printed = into.lock().unwrap();
            printed.push_str(&line);
            printed.push('\n');
        }
    })
}

/// What Mosquitto logs by itself, and subscriptions.
const NAMES_SUBSCRIPTIONS: &str =
    "log_type error\nlog_type warning\nlog_type notice\nlog_type information\nlog_type subscribe\n";

/// A Mosquitto of the test's own.
pub struct Mosquitto {
    pub port: u16,
    /// Where it speaks TLS, if it does.
    pub tls_port: u16,
    folder: TempDir,
    /// More of its configuration.
    more: String,
    process: Option<Process>,
}

impl Mosquitto {
    pub fn start() -> Self {
        Self::start_with(|_, _| String::new())
    }

    /// One that speaks TLS too: with this certificate, this configuration of the listener for it, and in its presence
    /// those clients whose certificate `ca` has signed.
    pub fn with_tls(server: &Leaf, ca: &str, more: &str) -> Self {
        Self::start_with(|folder, tls_port| {
            let [cert, key, ca] =
                [("cert.pem", server.cert.as_str()), ("key.pem", &server.key), ("ca.pem", ca)]
                    .map(|(name, text)| pki::write(folder, name, text).display().to_string());
            format!(
                "listener {tls_port} 127.0.0.1\nallow_anonymous true\n\
                 certfile {cert}\nkeyfile {key}\ncafile {ca}\n{more}"
            )
        })
    }

    /// One that logs each subscription.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn that_names_subscriptions() -> Self {
        Self::start_with(|_, _| NAMES_SUBSCRIPTIONS.into())
    }

    /// The same, and one that keeps sessions and messages over [`Mosquitto::leave`].
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn persistent() -> Self {
        Self::start_with(|folder, _| {
            let place = format!("persistence true\npersistence_location {}/\n", folder.display());
            format!("user root\n{place}{NAMES_SUBSCRIPTIONS}")
        })
    }

    /// Ends it in an orderly manner, so that one that is persistent writes down what it knows.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn leave(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("TERM");
            process.wait_for_end();
        }
    }

    /// The filters with these words in them that somebody has subscribed to since its start, each once; it has to name them.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn subscriptions(&self, words: &str) -> usize {
        let printed = self.printed();
        let filters = printed.lines().filter_map(|line| line.rsplit(' ').next());
        filters.filter(|filter| filter.contains(words)).collect::<BTreeSet<_>>().len()
    }

    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    /// Writes down what it knows, without an end: `kill -9` takes a persistent one back to this.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn save(&self) {
        let saves = || self.printed().matches("Saving in-memory database").count();
        let before = saves();
        self.signal("USR1");
        wait_until("mosquitto saving", || saves() > before);
    }

    /// Goes on with more or other configuration, and without its sessions.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn reconfigure(&mut self, more: &str) {
        self.down();
        more.clone_into(&mut self.more);
        self.up();
    }

    /// Speaks no newer TLS than 1.2 from the next start on.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn limit_to_tls_1_2(&mut self) {
        self.down();
        let text =
            "openssl_conf = o\n[o]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\nMaxProtocol = TLSv1.2\n";
        pki::write(self.folder.path(), "openssl.cnf", text);
        self.up();
    }

    fn start_with(more: impl FnOnce(&Path, u16) -> String) -> Self {
        let (folder, tls_port) = (TempDir::new().unwrap(), free_tcp());
        let more = more(folder.path(), tls_port);
        let mut broker = Self { port: free_tcp(), tls_port, folder, more, process: None };
        broker.up();
        broker
    }

    /// Shows another certificate from the next start on.
    pub fn renew(&mut self, server: &Leaf) {
        self.down();
        pki::write(self.folder.path(), "cert.pem", &server.cert);
        pki::write(self.folder.path(), "key.pem", &server.key);
        self.up();
    }

    pub fn up(&mut self) {
        let config = self.folder.path().join("mosquitto.conf");
        let text = format!(
            "per_listener_settings true\nmax_queued_messages 0\nlistener {} 127.0.0.1\nallow_anonymous true\n{}",
            self.port, self.more
        );
        std::fs::write(&config, text).unwrap();
        let program =
            ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"].into_iter().find(|path| Path::new(path).exists());
        let program = program.expect("the package mosquitto is not installed; tools/test installs it");
        let openssl = self.folder.path().join("openssl.cnf");
        let mut command = Command::new(program);
        if openssl.exists() {
            command.env("OPENSSL_CONF", openssl);
        }
        command.arg("-c").arg(config);
        let mut process = Process::start(&mut command);
        wait_until("mosquitto listening", || {
            if !process.is_running() {
                // What kept it from starting, perhaps somebody who had its port for a moment, may be gone.
                println!("mosquitto ended at its start and is started again: {}", process.printed());
                process = Process::start(&mut command);
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        self.process = Some(process);
    }

    pub fn down(&mut self) {
        self.process = None;
    }

    #[track_caller]
    pub fn wait_for_line(&self, part: &str) {
        self.process.as_ref().unwrap().wait_for_line(part);
    }

    pub fn printed(&self) -> String {
        self.process.as_ref().unwrap().printed()
    }
}

/// Which broker a gateway is tested with.
#[derive(Debug, Clone, Copy)]
pub enum Beside {
    /// In MQTT 3.1.1, since it knows no other.
    Embedded,
    /// In MQTT 5.
    Mosquitto,
}

/// A gateway with its broker.
pub struct Gateway {
    /// Where sensors reach it.
    pub port: u16,
    /// Where its broker is.
    pub broker_port: u16,
    pub process: Process,
    folder: TempDir,
    /// Kept alive with the gateway.
    pub mosquitto: Option<Mosquitto>,
}

impl Gateway {
    /// A gateway that is connected to its broker.
    pub fn beside(broker: Beside) -> Self {
        let gateway = match broker {
            Beside::Embedded => {
                let port = free_tcp();
                Self::start("embedded", port, &format!("  listen: 127.0.0.1:{port}\n"), None)
            }
            Beside::Mosquitto => {
                let mosquitto = Mosquitto::start();
                let port = mosquitto.port;
                Self::start(&format!("mqtt://127.0.0.1:{port}"), port, "", Some(mosquitto))
            }
        };
        gateway.process.wait_for_line("connected to the broker");
        let (version, retried) = match broker {
            Beside::Embedded => ("protocol=MQTT 3.1.1", true),
            Beside::Mosquitto => ("protocol=MQTT 5", false),
        };
        let printed = gateway.process.printed();
        assert!(printed.contains(version), "{printed}");
        assert_eq!(printed.contains("trying MQTT 3.1.1"), retried, "{printed}");
        gateway
    }

    /// A gateway that is listening.
    pub fn start(url: &str, broker_port: u16, more: &str, mosquitto: Option<Mosquitto>) -> Self {
        Self::start_with(url, broker_port, more, mosquitto, |_| {})
    }

    /// The same, with a change to its command.
    pub fn start_with(
        url: &str,
        broker_port: u16,
        more: &str,
        mosquitto: Option<Mosquitto>,
        change: impl Fn(&mut Command),
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let start = |port: u16| {
            let config = configuration(folder.path(), url, port, more);
            let mut command = Command::new(gateway_program());
            command.arg("run").arg("-c").arg(config);
            change(&mut command);
            Process::start(&mut command)
        };
        // A port is free for a moment between being picked and being the gateway's.
        for _ in 1..PORTS_TRIED {
            let port = free_udp();
            let process = start(port);
            if listens(&process) {
                return Self { port, broker_port, process, folder, mosquitto };
            }
        }
        let port = free_udp();
        let process = start(port);
        process.wait_for_line("listening on udp");
        Self { port, broker_port, process, folder, mosquitto }
    }

    /// Its folder, with its configuration and its state.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it by `kill -9` if it is still there, and starts it again with the same configuration and state.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn restart(&mut self) {
        self.process.signal("KILL");
        self.process.wait_for_end();
        self.start_again();
    }

    /// Starts it again with the same configuration and state, after its end.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn start_again(&mut self) {
        self.start_again_with(|_| {});
    }

    /// The same, with a change to its command.
    #[allow(dead_code, reason = "not every binary needs it")]
    pub fn start_again_with(&mut self, change: impl Fn(&mut Command)) {
        for _ in 0..PORTS_TRIED {
            let mut command = Command::new(gateway_program());
            command.arg("run").arg("-c").arg(self.folder.path().join("gateway.yaml"));
            change(&mut command);
            self.process = Process::start(&mut command);
            if listens(&self.process) {
                return;
            }
        }
        panic!("its port is somebody else's now:\n{}", self.process.printed());
    }
}

/// Waits until a gateway listens, or cannot since its port is taken.
fn listens(process: &Process) -> bool {
    wait_until("listening, or not", || {
        let printed = process.printed();
        printed.contains("listening on udp") || printed.contains("cannot listen on udp")
    });
    process.printed().contains("listening on udp")
}

/// Writes a gateway.yaml; `more` goes below `broker:`. State and the control socket are in the same folder, unless
/// `more` says otherwise on a line of its own that begins with `store:`.
pub fn configuration(folder: &Path, url: &str, port: u16, more: &str) -> PathBuf {
    let file = folder.join("gateway.yaml");
    let store = match more.contains("\nstore:") {
        true => String::new(),
        false => format!("store: {{ path: {} }}\n", folder.join("state").display()),
    };
    let socket = folder.join("control.sock");
    let text = format!(
        "version: 1\n\
         gateway: {{ id: 42 }}\n\
         broker:\n  url: {url}\n{more}\
         transports:\n  - {{ name: lan, type: udp, listen: [\"127.0.0.1:{port}\"], mtu: 65000, retry_interval: 1s }}\n\
         topics:\n  predefined: {{ 1: pre/one }}\n\
         control: {{ socket: {} }}\n\
         {store}",
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}
