//! The gateway under test: the real program with a configuration, a directory and ports of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::combination::Combination;
use crate::script::{Mode, Settings, Whose};

/// Where gateways listen. Not where clients do: a port is free for a moment between being picked and being the gateway's, and a
/// client of another row that was given it then would hear what is meant for the gateway.
const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// GwId in the table.
const GW_ID: u8 = 0x2A;

/// How the program says that an address is in use: another test was given the port we had picked.
const IN_USE: i32 = 77;

/// How often another port is tried then.
const PORTS_TRIED: usize = 5;

/// How long an orderly stop may take.
const STOPPING: Duration = Duration::from_secs(5);

/// A running gateway. It ends with this value.
pub(crate) struct Process {
    child: Child,
    combination: Combination,
    directory: TempDir,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
}

impl Process {
    pub(crate) fn start(
        settings: &Settings,
        combination: Combination,
        broker: SocketAddr,
        group: Option<SocketAddr>,
    ) -> Result<Self, String> {
        let directory = directory().map_err(|error| error.to_string())?;
        let addr = free_port()?;
        write_config(&directory, settings, combination, broker, group, addr)?;
        let child = spawn(&directory)?;
        Ok(Self { child, combination, directory, addr })
    }

    /// Picks another port if somebody else has taken this one since it was picked.
    pub(crate) fn retry_if_in_use(
        &mut self,
        tried: usize,
        settings: &Settings,
        broker: SocketAddr,
        group: Option<SocketAddr>,
    ) -> Result<(), String> {
        let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? else { return Ok(()) };
        if status.code() != Some(IN_USE) || tried >= PORTS_TRIED {
            return Err(format!("the gateway has ended: {status}"));
        }
        *self = Self::start(settings, self.combination, broker, group)?;
        Ok(())
    }

    /// Ends it as a power failure would, and starts it again with the same configuration.
    pub(crate) fn restart(&mut self) -> Result<(), String> {
        self.kill();
        self.child = spawn(&self.directory)?;
        Ok(())
    }

    /// The error says how it has ended.
    pub(crate) fn is_running(&mut self) -> Result<(), String> {
        match self.child.try_wait().map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(status) => Err(format!("the gateway has ended: {status}")),
        }
    }

    /// SIGTERM; how it ended.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus, String> {
        let kill = format!("kill -TERM {}", self.child.id());
        let sent = Command::new("sh").arg("-c").arg(kill).status().map_err(|error| error.to_string())?;
        if !sent.success() {
            return Err("SIGTERM could not be sent".into());
        }
        let deadline = Instant::now() + STOPPING;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("the gateway has not ended {STOPPING:?} after SIGTERM"))
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// In memory, if the system has such a place: hundreds of logs at once would wait for the disk, and gateways for their logs.
fn directory() -> std::io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

fn free_port() -> Result<SocketAddr, String> {
    let socket = UdpSocket::bind((HOST, 0)).map_err(|error| error.to_string())?;
    socket.local_addr().map_err(|error| error.to_string())
}

/// Section by section what the table assumes: predefined ids 1 and 2, T_RETRY 2 s, N_RETRY 3, nothing kept.
fn write_config(
    directory: &TempDir,
    settings: &Settings,
    combination: Combination,
    broker: SocketAddr,
    group: Option<SocketAddr>,
    addr: SocketAddr,
) -> Result<(), String> {
    let multicast = match group {
        Some(group) => format!("multicast: \"{group}\"\n    multicast_interface: lo"),
        None => "multicast: none".to_owned(),
    };
    let text = format!(
        r#"version: 1
gateway:
  id: {GW_ID}
  advertise_interval: {advertise}s
broker:
  url: mqtt://{broker}
  mode: {mode}
  protocol: {protocol}
  client_id: {client_id}
  outage: reject
  keep_alive: {keep_alive}s
  grace: {grace}ms
transports:
  - name: lan
    type: udp
    listen: "{addr}"
    {multicast}
    mtu: {mtu}
    retry_interval: 2s
    retry_limit: 3
    forwarders: true
    qos_minus_one: {qos_minus_one}
topics:
  predefined: {{ 1: pre/one, 2: pre/two }}
sessions:
  max_topics: {max_topics}
store:
  path: none
control:
  socket: none
"#,
        mode = match combination.mode {
            Mode::Aggregating => "aggregating",
            Mode::Transparent => "transparent",
        },
        protocol = combination.protocol.name(),
        client_id = Whose::GATEWAY,
        keep_alive = settings.keep_alive.as_secs(),
        grace = settings.grace.as_millis(),
        advertise = settings.advertise.unwrap_or(Duration::from_secs(900)).as_secs(),
        mtu = settings.mtu,
        qos_minus_one = settings.qos_minus_one,
        max_topics = settings.max_topics,
    );
    fs::write(config_of(directory), text).map_err(|error| error.to_string())
}

fn config_of(directory: &TempDir) -> PathBuf {
    directory.path().join("gateway.yaml")
}

fn spawn(directory: &TempDir) -> Result<Child, String> {
    let mut log = File::options();
    let log = log
        .create(true)
        .append(true)
        .open(directory.path().join("log"))
        .map_err(|error| error.to_string())?;
    let also = log.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_mqtt-sn-gateway"));
    command
        .arg("run")
        .arg("-c")
        .arg(config_of(directory))
        .env("RUST_LOG", "trace")
        .current_dir(directory.path());
    command.stdin(Stdio::null()).stdout(log).stderr(also);
    command.spawn().map_err(|error| format!("cannot start the gateway: {error}"))
}
