//! The gateway killed by `kill -9` again and again under load, and started again on the same store. Nothing that was
//! acknowledged is lost, in neither direction, and at QoS 2 nothing comes twice.
//!
//! `CRASHES=5000 cargo test --test crash -- --nocapture` goes on for longer; `CRASH_LOGS=/dir` keeps what the gateways logged.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unreachable_pub,
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "parts of the end-to-end tests are used"
)]

#[path = "../e2e/node.rs"]
mod node;
#[path = "../e2e/pki.rs"]
mod pki;
#[path = "../e2e/process.rs"]
mod process;
#[path = "../e2e/proxy.rs"]
mod proxy;

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::node::node;
use crate::process::{Gateway, Mosquitto, Process, wait_until};
use crate::proxy::Proxy;

/// In each mode, unless the environment says more.
const CRASHES: u32 = 100;

/// How long a gateway lives once it listens.
const LIFE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

/// How long the fleets go on when the crashes are over: what came out of the crashes has to serve, and sleepers fetch what waits.
const CALM: Duration = Duration::from_secs(8);

/// How long the fleets may take to finish then, on a machine that is busy: longer than they themselves wait for the last message.
const FINISH: Duration = Duration::from_secs(400);

/// In each fleet.
const SENSORS: usize = 30;

/// The sensors of a fleet: a third sleeps, all keep their sessions, and all are sent messages.
const FLEET: &str = "fleet --spread 1s --sleepers 30% --keepalive 1 --rate 1/3s --down 1/2s --retry 300ms --retry-limit 1000 \
                     --loss 1% --duration 10h --settle 300s -c";

#[test]
fn in_aggregating_mode_no_crash_loses_what_was_acknowledged_or_doubles_anything_at_qos_2() {
    crash("aggregating");
}

#[test]
fn in_transparent_mode_no_crash_loses_what_was_acknowledged_or_doubles_anything_at_qos_2() {
    crash("transparent");
}

/// Crashes as often as it is asked to, and judges.
fn crash(mode: &str) {
    let crashes = std::env::var("CRASHES").map_or(CRASHES, |text| text.parse().unwrap());
    let mosquitto = Mosquitto::that_names_subscriptions();
    let verify = format!("mqtt://127.0.0.1:{}", mosquitto.port);
    let way = Proxy::to(mosquitto.port);
    let more = format!("  ack_timeout: 1s\n  mode: {mode}\n");
    let url = format!("mqtt://127.0.0.1:{}", way.port);
    let mut gateway = Gateway::start(&url, way.port, &more, Some(mosquitto));
    let logs = Logs::new();
    let (folder, sensors) = (TempDir::new().unwrap(), SENSORS.to_string());
    let mut fleets = ["1", "2"].map(|qos| {
        let report = folder.path().join(qos);
        let topic = format!("q{qos}/{{node}}");
        let mut arguments: Vec<_> = FLEET.split_whitespace().collect();
        arguments.extend([
            "--nodes", &sensors, "--seed", qos, "--qos", qos, "--topic", &topic, "--verify", &verify,
        ]);
        arguments.extend(["--report", report.to_str().unwrap()]);
        (qos, node(gateway.port, &arguments), report)
    });

    // While the broker is away SUBSCRIBE is granted all the same, but the broker cannot keep what it has not been asked for.
    let subscriptions = || gateway.mosquitto.as_ref().unwrap().subscriptions("/down");
    wait_until("the subscription of each sensor", || subscriptions() >= 2 * SENSORS);

    let links = gateway.mosquitto.as_ref().unwrap().printed().matches(" as fleet-").count();
    assert_eq!(links >= 2 * SENSORS, mode == "transparent", "{links} connections in the name of sensors");

    let mut random = Random(1);
    let (began, mut ready) = (Instant::now(), Vec::new());
    for crash in 0..crashes {
        let life = random.between(LIFE.0, LIFE.1);
        // Every second crash happens while the broker is away, and most of them before it is back.
        let away = (crash % 2 == 1).then(|| life.mul_f64(random.share()));
        if let Some(cut) = away {
            sleep(cut);
            way.cut();
        }
        sleep(life - away.unwrap_or_default());
        let started = Instant::now();
        logs.keep(crash, &gateway.process);
        gateway.restart();
        ready.push(started.elapsed());
        if away.is_some() {
            sleep(random.between(Duration::ZERO, LIFE.1));
            way.mend();
        }
        for (qos, fleet, _) in &mut fleets {
            assert!(fleet.is_running(), "the fleet of QoS {qos} has ended after {crash} crashes");
        }
    }
    ready.sort();
    println!(
        "{crashes} crashes in {:.1?}; from kill to listening {:.0?} in the middle, {:.0?} at most",
        began.elapsed(),
        ready[ready.len() / 2],
        ready[ready.len() - 1],
    );

    sleep(CALM);
    for (_, fleet, _) in &fleets {
        fleet.signal("INT");
    }
    let end = Instant::now() + FINISH;
    let mut broken = Vec::new();
    for (qos, fleet, report) in &mut fleets {
        while fleet.is_running() && Instant::now() < end {
            sleep(Duration::from_millis(20));
        }
        logs.keep(crashes, &gateway.process);
        broken.extend(judge(qos, fleet, report).err());
    }
    if !broken.is_empty() {
        panic!("{}; see above; the logs are in {}", broken.join("; "), logs.leave());
    }
}

/// Prints what became of a fleet's messages.
///
/// # Errors
/// Which promise was broken, or that there was too little to promise.
fn judge(qos: &str, fleet: &mut Process, report: &PathBuf) -> Result<(), String> {
    if fleet.is_running() {
        println!("{}", fleet.printed());
        return Err(format!("the fleet of QoS {qos} does not end"));
    }
    let code = fleet.wait_for_end().code();
    println!("QoS {qos}:\n{}", fleet.printed());
    let report: Value =
        serde_json::from_slice(&std::fs::read(report).unwrap_or_default()).unwrap_or_default();
    if code != Some(0) {
        return Err(format!("the fleet of QoS {qos} ended with {code:?}: {report}"));
    }
    let number = |part: &Value| part.as_u64().unwrap_or(0);
    let sensors = &report["to_sensors"];
    let (up, down, fetched) =
        (number(&report["acked"]), number(&sensors["delivered"]), number(&sensors["fetched_by_sleepers"]));
    if up < 100 || down < 100 || fetched < 10 {
        return Err(format!(
            "QoS {qos}: only {up} messages up and {down} down, {fetched} fetched by sleepers"
        ));
    }
    Ok(())
}

/// What the gateways have logged, one file for each.
struct Logs(TempDir);

impl Logs {
    fn new() -> Self {
        let folder = std::env::var_os("CRASH_LOGS").map(PathBuf::from).unwrap_or_else(std::env::temp_dir);
        Self(TempDir::new_in(folder).unwrap())
    }

    fn keep(&self, number: u32, process: &Process) {
        std::fs::write(self.0.path().join(format!("{number:05}.log")), process.printed()).unwrap();
    }

    /// Leaves them behind, and says where.
    fn leave(self) -> String {
        self.0.keep().display().to_string()
    }
}

/// A generator of numbers: when a gateway dies is to be different each time, and no more.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.share())
    }
}
