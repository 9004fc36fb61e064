//! Radios on pseudo-terminals: `mqtt-sn-node` stands at their far end, the real gateway opens the near one like any serial device.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use mqtt_sn_gateway::framing::Framing;
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use serde_json::Value;
use tempfile::TempDir;

use crate::node::{expect_end, tool};
use crate::process::{Process, free_tcp, gateway_program};

#[test]
fn a_fleet_behind_a_serial_line_loses_nothing_at_line_speed_in_either_direction_whatever_the_framing() {
    in_parallel(Framing::ALL, |framing| {
        let report = fleet(
            &format!("type: serial, baud: 57600, framing: {framing}"),
            &format!(
                "--via pty --baud 57600 --framing {framing} --nodes 20 --rate 3/s --down 2/s -q 1 --duration 4s"
            ),
        );
        assert!(number(&report, "sent") > 150 && number(&report["to_sensors"], "sent") > 80, "{report}");
        assert_eq!(number(&report, "acked"), number(&report, "sent"), "{report}");
        assert_eq!(number(&report["radio"], "frames_lost_on_line"), 0, "{report}");
    });
}

#[test]
fn one_sensor_at_a_line_of_its_own_needs_no_forwarder() {
    in_parallel([Framing::Length, Framing::Slip, Framing::CobsCrc], |framing| {
        let report = fleet(
            &format!("type: serial, baud: 9600, framing: {framing}, forwarders: false"),
            &format!(
                "--via pty --baud 9600 --framing {framing} --nodes 1 --rate 4/s --down 2/s -q 2 --duration 3s"
            ),
        );
        assert_eq!(number(&report, "acked"), number(&report, "sent"), "{report}");
    });
}

#[test]
fn with_one_percent_of_the_octets_corrupted_and_others_lost_both_ways_what_was_acknowledged_arrives() {
    let kinds = [(Framing::SlipCrc, 1), (Framing::CobsCrc, 1), (Framing::SlipCrc, 2), (Framing::CobsCrc, 2)];
    in_parallel(kinds, |(framing, qos)| {
        let report = fleet(
            &format!("type: serial, framing: {framing}, retry_interval: 500ms, retry_limit: 10"),
            &format!(
                "--via pty --framing {framing} --nodes 5 --rate 3/s --down 2/s --corrupt 1% --byte-loss 0.1% -q {qos} \
                 --retry 500ms --retry-limit 10 --duration 4s"
            ),
        );
        assert!(number(&report["radio"], "octets_corrupted") > 20, "{report}");
        assert!(number(&report["radio"], "octets_lost") > 0, "{report}");
        // Of the gateway's alone.
        assert!(number(&report["radio"], "frames_lost_on_line") > 5, "{report}");
        assert!(number(&report, "frames_retransmitted") > 5, "{report}");
        assert!(number(&report, "acked") > 20 && number(&report["to_sensors"], "sent") > 10, "{report}");
    });
}

#[test]
fn a_fleet_behind_an_xbee_loses_nothing_whatever_frames_it_speaks() {
    in_parallel(["plain 0", "plain 2", "escaped 0", "escaped 1"], |kind| {
        let (api, ao) = kind.split_once(' ').expect("two words");
        let report = fleet(
            &format!("type: xbee, baud: 115200, api: {api}"),
            &format!(
                "--via xbee-pty --api {api} --ao {ao} --nodes 8 --rate 2/s --down 1/s -q 1 --duration 4s"
            ),
        );
        assert_eq!(number(&report, "acked"), number(&report, "sent"), "{report}");
        assert!(number(&report["radio"], "at_commands") >= 8, "{report}");
        assert!(number(&report["radio"], "transmissions") > 60, "{report}");
        assert_eq!(number(&report["radio"], "oversized"), 0, "the gateway has asked for NP: {report}");
    });
}

#[test]
fn transmissions_that_fail_are_made_again_and_cost_no_message() {
    let report = fleet(
        "type: xbee, baud: 115200, api: escaped, retry_interval: 1s, retry_limit: 10",
        "--via xbee-pty --tx-fail 20% --nodes 8 --rate 2/s --down 1/s -q 2 --retry 1s --retry-limit 10 --duration 4s",
    );
    assert!(number(&report["radio"], "transmissions_failed") > 10, "{report}");
    assert!(number(&report, "acked") > 30, "{report}");
}

/// The tool at one end of a cable, the gateway at the other.
#[test]
fn what_is_published_at_a_serial_line_is_heard_at_it() {
    let cable = Cable::new();
    let (_gateway, broker) = gateway(cable.folder.path(), "type: serial, framing: cobs+crc", &cable.name(0));
    let serial = format!("--serial {} --framing cobs+crc", cable.name(1).display());
    let found = expect_end(tool(&format!("search {serial} -C 1 -W 20")), 0);
    assert!(found.starts_with(&format!("gateway 1 at {}", cable.name(1).display())), "{found}");
    expect_end(tool(&format!("pub {serial} -t a/b -m 21.5 -q 1 -r --retry 1s")), 0);
    let heard = expect_end(tool(&format!("sub {serial} -t a/# -v -C 1 -W 20 --retry 1s")), 0);
    assert!(heard.contains("a/b 21.5"), "{heard}");
    assert!(broker > 0);
}

/// A gateway with an embedded broker and this radio; the port of the broker.
fn gateway(folder: &Path, radio: &str, device: &Path) -> (Process, u16) {
    let broker = free_tcp();
    let config = folder.join("gateway.yaml");
    let text = format!(
        "version: 1\n\
         broker: {{ url: embedded, listen: \"127.0.0.1:{broker}\" }}\n\
         store: {{ path: none }}\n\
         control: {{ socket: none }}\n\
         transports:\n  - {{ name: radio, device: \"{}\", {radio} }}\n",
        device.display()
    );
    fs::write(&config, text).expect("writable");
    let gateway = Process::start(Command::new(gateway_program()).args(["run", "-c"]).arg(config));
    gateway.wait_for_line("connected to the broker");
    (gateway, broker)
}

/// The report of a fleet behind this radio of the gateway, which has kept every promise.
#[track_caller]
fn fleet(radio: &str, arguments: &str) -> Value {
    let folder = TempDir::new().expect("a folder");
    let (device, report) = (folder.path().join("radio"), folder.path().join("report.json"));
    // The gateway is there first, and waits for the device.
    let (gateway, broker) = gateway(folder.path(), radio, &device);
    let fleet = tool(&format!(
        "fleet {arguments} --link {} --report {} --verify mqtt://127.0.0.1:{broker} --seed 7",
        device.display(),
        report.display()
    ));
    let table = expect_end(fleet, 0);
    assert!(table.contains("every promise kept"), "{table}\n{}", gateway.printed());
    serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON")
}

#[track_caller]
fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

/// Runs all of them at the same time: they mostly wait.
#[track_caller]
fn in_parallel<T: Copy + Send>(all: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    let run = &run;
    thread::scope(|scope| all.into_iter().for_each(|one| drop(scope.spawn(move || run(one)))));
}

/// Two pseudo-terminals, each of which hears what the other says.
struct Cable {
    folder: TempDir,
    names: [PathBuf; 2],
    stop: Arc<AtomicBool>,
    copies: Vec<JoinHandle<()>>,
}

impl Cable {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let [one, other] = [(); 2].map(|()| {
            let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
                .expect("a pty");
            grantpt(&master).expect("granted");
            unlockpt(&master).expect("unlocked");
            Arc::new(master)
        });
        let names = [&one, &other].map(|master| PathBuf::from(ptsname_r(master).expect("named")));
        // Whoever opened them first would hear an echo otherwise.
        for name in &names {
            let near = OpenOptions::new().read(true).write(true).open(name).expect("just made");
            let mut settings = nix::sys::termios::tcgetattr(&near).expect("a terminal");
            nix::sys::termios::cfmakeraw(&mut settings);
            nix::sys::termios::tcsetattr(&near, nix::sys::termios::SetArg::TCSANOW, &settings).expect("raw");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let copy = |from: &Arc<PtyMaster>, to: &Arc<PtyMaster>| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            thread::spawn(move || copy(&from, &to, &stop))
        };
        let copies = vec![copy(&one, &other), copy(&other, &one)];
        Self { folder, names, stop, copies }
    }

    fn name(&self, end: usize) -> PathBuf {
        self.names[end].clone()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.copies.drain(..).for_each(|copy| drop(copy.join()));
    }
}

fn copy(mut from: &PtyMaster, mut to: &PtyMaster, stop: &AtomicBool) {
    let mut buffer = [0; 1024];
    while !stop.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            // What nobody is there to hear is lost.
            Ok(len) => drop(to.write_all(&buffer[..len])),
            Err(_) => sleep(Duration::from_millis(2)),
        }
    }
}
