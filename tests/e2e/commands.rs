//! The commands as a user types them.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Instant;

use mqtt_sn_gateway::node::{Event, Loss};
use tempfile::TempDir;

use crate::process::{Gateway, Mosquitto, Process, configuration, free_udp, gateway_program, wait_until};
use crate::sensor::{Sensor, options};

#[test]
fn the_demo_tells_its_story_and_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let started = Instant::now();
    let mut command = Command::new(gateway_program());
    let command = command.args(["demo", "--exit-after", "5s"]).current_dir(folder.path());
    let command = command.env("STATE_DIRECTORY", folder.path().join("state"));
    let command = command.env("RUNTIME_DIRECTORY", folder.path().join("runtime"));
    let mut demo = Process::start(command);
    demo.wait_for_line("→ broker");
    let first = started.elapsed();
    let status = demo.wait_for_end();
    let printed = demo.printed();
    assert!(status.success(), "{status}");
    for part in [
        "QoS -1",
        "QoS 0",
        "QoS 1",
        "QoS 2",
        "→ display",
        "→ lamp",
        "listens to home/+/temperature",
        "letterbox sleeps for 2 s",
        "→ letterbox",
        "woke, 1 message waited",
    ] {
        assert!(printed.contains(part), "{part:?} is missing in\n{printed}");
    }
    let (_, advice) = printed.split_once("Try next:").unwrap();
    assert_eq!(advice.trim().lines().count(), 3);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    eprintln!("first message at the broker after {first:?}");
}

#[test]
fn two_demos_run_side_by_side() {
    let start = || {
        let mut command = Command::new(gateway_program());
        Process::start(command.args(["demo", "--exit-after", "3s"]))
    };
    let mut demos = [start(), start()];
    for demo in &mut demos {
        assert!(demo.wait_for_end().success(), "{}", demo.printed());
        assert!(demo.printed().contains("→ broker"));
    }
}

#[test]
fn an_address_in_use_ends_with_77_and_names_it() {
    let folder = TempDir::new().unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = configuration(folder.path(), "mqtt://127.0.0.1:1", port, "");
    let mut run = Process::start(Command::new(gateway_program()).arg("run").arg("-c").arg(config));
    assert_eq!(run.wait_for_end().code(), Some(77), "{}", run.printed());
    assert!(run.printed().contains(&format!("127.0.0.1:{port}")), "{}", run.printed());
}

#[test]
fn sigterm_without_a_store_tells_clients_and_ends_with_0_and_sighup_does_not_end_it() {
    for signal in ["TERM", "INT"] {
        let mosquitto = Mosquitto::start();
        let (url, port) = (format!("mqtt://127.0.0.1:{}", mosquitto.port), mosquitto.port);
        let mut gateway =
            Gateway::start(&url, port, "  grace: 60s\nstore: { path: none }\n", Some(mosquitto));
        gateway.process.wait_for_line("connected to the broker");
        let mut sensor = Sensor::connected(gateway.port, options("n1"));
        gateway.process.signal("HUP");
        wait_until("a word on SIGHUP", || gateway.process.printed().contains("reload"));
        assert!(gateway.process.is_running());
        gateway.process.signal(signal);
        let lost = sensor.wait_for(|event| match event {
            Event::ConnectionLost(loss) => Some(*loss),
            _ => None,
        });
        assert_eq!(lost, Loss::Disconnected);
        let status = gateway.process.wait_for_end();
        assert_eq!(status.code(), Some(0), "{}", gateway.process.printed());
        assert!(!gateway.folder().join("state").exists());
    }
}

#[test]
fn what_init_writes_is_what_check_accepts_and_run_runs() {
    let folder = TempDir::new().unwrap();
    let here = |arguments: &[&str]| {
        let mut command = Command::new(gateway_program());
        command
            .args(arguments)
            .current_dir(folder.path())
            .env("STATE_DIRECTORY", folder.path().join("state"))
            .env("RUNTIME_DIRECTORY", folder.path().join("runtime"));
        command
    };
    let mut init = Process::start(&mut here(&["init", "--broker", "mqtt://127.0.0.1:9"]));
    assert_eq!(init.wait_for_end().code(), Some(0), "{}", init.printed());
    let mut again = Process::start(&mut here(&["init"]));
    assert_eq!(again.wait_for_end().code(), Some(73), "{}", again.printed());
    let mut check = Process::start(&mut here(&["check"]));
    assert_eq!(check.wait_for_end().code(), Some(0), "{}", check.printed());
    // On a port of its own, since 1884 may be somebody's.
    let file = folder.path().join("gateway.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(":1884\"", &format!(":{}\"", free_udp()))).unwrap();
    let run = Process::start(&mut here(&["run"]));
    run.wait_for_line("listening on udp");
    run.wait_for_line("127.0.0.1:9");
}

#[test]
fn a_low_limit_of_open_files_is_warned_of_where_clients_have_links_of_their_own() {
    for (limit, mode, expected) in
        [(256, "transparent", Some("WARN")), (4096, "transparent", Some("INFO")), (256, "aggregating", None)]
    {
        let folder = TempDir::new().unwrap();
        let more = format!("  mode: {mode}\n");
        let config = configuration(folder.path(), "mqtt://127.0.0.1:1", free_udp(), &more);
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {limit} && exec \"$0\" run -c \"$1\"");
        let process = Process::start(shell.args(["-c", &script]).arg(gateway_program()).arg(config));
        process.wait_for_line("no connection to the broker");
        let printed = process.printed();
        let words = format!("open files for {} clients with links of their own", limit - 64);
        let line = printed.lines().find(|line| line.contains("open files"));
        assert_eq!(line.map(|line| line.contains(&words)), expected.map(|_| true), "{printed}");
        assert!(expected.is_none_or(|level| line.unwrap().contains(level)), "{printed}");
    }
}
