//! What is measured, one file for each subject.

mod closed;
mod connect;
mod downlink;
mod memory;
mod sleepers;
mod uplink;
mod window;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Node, Topic};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use crate::failure::Failure;
use crate::figures::Row;
use crate::lone::Span;
use crate::rig::{self, Kind};
use crate::sensor::TOPIC;
use crate::stamp;

/// What is lost does not come any more after so long a silence.
const QUIET: Duration = Duration::from_secs(1);

/// How long something is measured that does as much as it can.
const WHOLE: Span = Span { warm_up: Duration::from_millis(500), time: Duration::from_secs(2) };

/// The same for a client of a broker.
pub(crate) fn mqtt(qos: Qos) -> QoS {
    match qos {
        Qos::MinusOne | Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn publish(node: &mut Node, now: Instant, topic: &Topic, qos: Qos) {
    // Its queue has room for more than is ever due.
    let _ = node.publish(now, topic.clone(), stamp::bytes(), qos, false);
}

fn topic() -> Result<Topic, Failure> {
    TopicName::new(TOPIC).map(Topic::Name).map_err(|error| Failure::Gateway(error.to_string()))
}

/// What all scenarios share.
pub(crate) struct Bench {
    program: PathBuf,
    rows: Vec<Row>,
}

impl Bench {
    pub(crate) fn new(program: Option<PathBuf>) -> Result<Self, Failure> {
        Ok(Self { program: rig::program(program)?, rows: Vec::new() })
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn program(&self) -> &Path {
        &self.program
    }

    /// The brokers there are to measure beside.
    fn brokers(&self) -> Vec<Kind> {
        if rig::has_mosquitto() { vec![Kind::Mosquitto, Kind::Sink] } else { vec![Kind::Sink] }
    }

    /// The broker that people use, if there is one.
    fn real_broker(&self) -> Kind {
        if rig::has_mosquitto() { Kind::Mosquitto } else { Kind::Sink }
    }

    /// What it was measured on.
    pub(crate) fn machine(&self) -> String {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown processor");
        let cores = available_parallelism().map_or(1, usize::from);
        let says = |program: &str, arguments: &[&str]| {
            let said = Command::new(program).args(arguments).output().map(|it| it.stdout).unwrap_or_default();
            String::from_utf8_lossy(&said).trim().to_owned()
        };
        let room = fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
        let (kernel, rustc) = (says("uname", &["-sr"]), says("rustc", &["--version"]));
        let commit = says("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]);
        format!(
            "{model}, {cores} cores, {kernel}, net.core.rmem_max={}, {rustc}, commit {commit}",
            room.trim()
        )
    }

    /// Takes what was found, and prints it.
    fn add(&mut self, row: Row) {
        // Numbers and text become JSON without fail.
        println!("{}", serde_json::to_string(&row).unwrap_or_default());
        self.rows.push(row);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Connect,
    Flood,
    Steady,
    Closed,
    Cores,
    Downlink,
    Sleepers,
    Far,
    Memory,
    Soak,
    Idle,
}

impl Scenario {
    pub(crate) const ALL: [Self; 11] = [
        Self::Connect,
        Self::Flood,
        Self::Steady,
        Self::Closed,
        Self::Cores,
        Self::Downlink,
        Self::Sleepers,
        Self::Far,
        Self::Memory,
        Self::Soak,
        Self::Idle,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Flood => "flood",
            Self::Steady => "steady",
            Self::Closed => "closed",
            Self::Cores => "cores",
            Self::Downlink => "downlink",
            Self::Sleepers => "sleepers",
            Self::Far => "far",
            Self::Memory => "memory",
            Self::Soak => "soak",
            Self::Idle => "idle",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Connect => "10, 1,000 and 10,000 sensors that connect and register at once",
            Self::Flood => "QoS 0 from 100 sensors as fast as they can, beside a bare relay",
            Self::Steady => "a steady stream from 100 sensors of each QoS: processor time and latency",
            Self::Closed => "QoS 1 and 2 one after the other, beside direct MQTT clients",
            Self::Cores => "what a second thread brings in a flood, and what it costs a lone message",
            Self::Downlink => "messages for sensors that are awake, one for each and one for all",
            Self::Sleepers => "10,000 sensors asleep with 10 messages each, which all wake at once",
            Self::Far => "QoS 1 and 2 to a broker 100 ms away",
            Self::Memory => "octets for each client, topic id and sleeper, 100,000 of these",
            Self::Soak => "sensors that come and go, of whom nothing is to stay",
            Self::Idle => "a gateway that has nothing to do, as released and as built for a router",
        }
    }

    pub(crate) fn run(self, bench: &mut Bench) -> Result<(), Failure> {
        match self {
            Self::Connect => connect::storm(bench),
            Self::Flood => uplink::flood(bench),
            Self::Steady => uplink::steady(bench),
            Self::Closed => closed::closed(bench),
            Self::Cores => uplink::cores(bench),
            Self::Downlink => downlink::awake(bench),
            Self::Sleepers => sleepers::drain(bench),
            Self::Far => window::far(bench),
            Self::Memory => memory::held(bench),
            Self::Soak => memory::soak(bench),
            Self::Idle => memory::idle(bench),
        }
    }
}
