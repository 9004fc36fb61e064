//! What is measured, ready for it: a broker, and the real gateway connected to it.

use std::env;
use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;

use crate::failure::{Attempt, Failure};
use crate::process::Process;

/// How long a broker may take to listen.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);

/// Which broker a gateway is measured beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The embedded broker in a process of its own: faster than the gateway, so that it does not hide it.
    Sink,
    Mosquitto,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sink => "sink",
            Self::Mosquitto => "mosquitto",
        })
    }
}

/// A broker in a process of its own.
pub(crate) struct Broker {
    pub(crate) addr: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Broker {
    /// Mosquitto with room for what is measured; as it comes it takes 20 messages of a client at a time.
    pub(crate) fn start(kind: Kind) -> Result<Self, Failure> {
        Self::start_with(kind, "max_queued_messages 0\nmax_inflight_messages 1000\nset_tcp_nodelay true\n")
    }

    /// With these lines in the configuration, if it is a Mosquitto.
    pub(crate) fn start_with(kind: Kind, lines: &str) -> Result<Self, Failure> {
        let folder = TempDir::new().attempt("make a folder for the broker")?;
        let addr = free_tcp()?;
        let process = match kind {
            Kind::Sink => {
                let own = env::current_exe().attempt("find this program")?;
                Process::start("the sink", Command::new(own).arg("sink").arg(addr.to_string()))?
            }
            Kind::Mosquitto => {
                let config = folder.path().join("mosquitto.conf");
                let text = format!("listener {} {}\nallow_anonymous true\n{lines}", addr.port(), addr.ip());
                fs::write(&config, text).attempt("write mosquitto.conf")?;
                Process::start("mosquitto", Command::new(mosquitto()).arg("-c").arg(config))?
            }
        };
        let end = Instant::now() + LISTEN_WITHIN;
        while TcpStream::connect(addr).is_err() {
            if Instant::now() > end {
                return Err(Failure::Broker(format!("{kind} does not listen on {addr}; is it installed?")));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(Self { addr, _process: process, _folder: folder })
    }
}

/// Whether a Mosquitto is installed.
pub(crate) fn has_mosquitto() -> bool {
    Command::new(mosquitto()).arg("-h").output().is_ok()
}

/// Debian has it where only root's shell looks.
fn mosquitto() -> &'static Path {
    let usual = Path::new("/usr/sbin/mosquitto");
    if usual.exists() { usual } else { Path::new("mosquitto") }
}

/// How clients are served at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Aggregating,
    Transparent,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aggregating => "aggregating",
            Self::Transparent => "transparent",
        })
    }
}

/// What stands between sensors and broker and is measured, connected to its broker.
pub(crate) struct Subject {
    /// Where sensors reach it.
    pub(crate) addr: SocketAddr,
    pub(crate) process: Process,
    folder: Option<TempDir>,
}

impl Subject {
    /// The bare relay; without a broker the bare echo.
    pub(crate) fn bare(broker: Option<SocketAddr>) -> Result<Self, Failure> {
        let own = env::current_exe().attempt("find this program")?;
        let broker = broker.map(|broker| broker.to_string());
        let mut process =
            Process::start("the bare relay", Command::new(own).arg("bare").args(broker.iter()))?;
        let addr = address(&process.wait_for("listening on udp ")?)?;
        Ok(Self { addr, process, folder: None })
    }

    /// The real gateway, as people run it.
    pub(crate) fn gateway(program: &Path, broker: SocketAddr, mode: Mode) -> Result<Self, Failure> {
        Self::gateway_on(program, broker, mode, 1)
    }

    /// The real gateway on so many threads.
    pub(crate) fn gateway_on(
        program: &Path,
        broker: SocketAddr,
        mode: Mode,
        threads: u8,
    ) -> Result<Self, Failure> {
        let folder = TempDir::new().attempt("make a folder for the gateway")?;
        let path = folder.path().display();
        let config = folder.path().join("gateway.yaml");
        let text = format!(
            "version: 1\n\
             broker: {{ url: \"mqtt://{broker}\", mode: {mode} }}\n\
             transports: [{{ name: lan, type: udp, listen: [\"0.0.0.0:0\"] }}]\n\
             topics: {{ predefined: {{ 1: bench/up/predefined }} }}\n\
             store: {{ path: {path}/state }}\n\
             control: {{ socket: {path}/control }}\n",
        );
        fs::write(&config, text).attempt("write gateway.yaml")?;
        let mut command = Command::new(program);
        command.env_remove("RUST_LOG").arg("run").arg("-c").arg(&config);
        command.args(["--threads", &threads.to_string()]);
        let mut process = Process::start("the gateway", &mut command)?;
        let mut addr = address(&process.wait_for("listening on udp ")?)?;
        addr.set_ip(Ipv4Addr::LOCALHOST.into());
        process.wait_for("connected to the broker")?;
        Ok(Self { addr, process, folder: Some(folder) })
    }

    /// How many sessions a gateway says it has.
    pub(crate) fn sessions(&self, program: &Path) -> Result<usize, Failure> {
        let folder = self.folder.as_ref().map(TempDir::path).unwrap_or(Path::new("."));
        let mut command = Command::new(program);
        command.args(["health", "--json", "-c"]).arg(folder.join("gateway.yaml"));
        let said = command.output().attempt("ask the gateway how it is")?.stdout;
        let health: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
        let sessions = health["sessions"].as_u64().and_then(|sessions| usize::try_from(sessions).ok());
        sessions.ok_or_else(|| Failure::Gateway(format!("said {}", String::from_utf8_lossy(&said))))
    }
}

/// The address in a line that tells where somebody listens.
fn address(line: &str) -> Result<SocketAddr, Failure> {
    let addr = line.rsplit("udp ").next().and_then(|addr| addr.split_whitespace().next()?.parse().ok());
    addr.ok_or_else(|| Failure::Gateway(format!("no address in {line:?}")))
}

/// The gateway's program: the one named, or that of this repository, built as a release.
pub(crate) fn program(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return if named.is_file() { Ok(named) } else { Err(Failure::NoGateway(named)) };
    }
    build("release")
}

/// Builds the gateway in this profile and says where it is.
pub(crate) fn build(profile: &'static str) -> Result<PathBuf, Failure> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(cargo);
    // What cargo tells this program would have crates that ask for it built again.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    command.args(["build", "--quiet", "-p", "mqtt-sn-gateway", "--bins"]);
    if profile == "release" {
        // With this program, or what both stand on would be built a second time.
        command.args(["-p", "mqtt-sn-bench"]);
    }
    let status = command.args(["--profile", profile]).current_dir(&root).status().attempt("run cargo")?;
    if !status.success() {
        return Err(Failure::Build(status));
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(profile).join("mqtt-sn-gateway"))
}

/// A port that was free a moment ago.
fn free_tcp() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).attempt("find a free TCP port")?;
    listener.local_addr().attempt("find a free TCP port")
}
