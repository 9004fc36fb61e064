//! The real program: what each command prints, and the code it ends with.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use std::{fs, str, thread};

use tempfile::TempDir;

mod broken;
mod control;
mod devices;
mod notify;
mod package;
#[allow(dead_code, unreachable_pub, reason = "shared with other tests, which use all of it")]
#[path = "../e2e/ports.rs"]
mod ports;
mod run;
mod store;
mod unit;

/// How a run of the program ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

/// A folder of its own in which the program runs.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// A folder in which gateway.yaml holds `octets`.
    fn with(octets: impl AsRef<[u8]>) -> Self {
        let folder = Self::new();
        fs::write(folder.path().join("gateway.yaml"), octets).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, b"")
    }

    /// Runs the program with `stdin` and with nothing of ours in its environment, as systemd would.
    fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Ended {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mqtt-sn-gateway"))
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("HOST", "broker.example")
            .env("STATE_DIRECTORY", self.path().join("state"))
            .env("RUNTIME_DIRECTORY", self.path().join("runtime"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input may be gone by then.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let _watched = watch(&child);
        let output = child.wait_with_output().unwrap();
        let text = |octets: &[u8]| str::from_utf8(octets).unwrap().to_string();
        Ended {
            code: output.status.code().unwrap_or_else(|| panic!("{}", output.status)),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// What a socket with a time limit receives. A process that was stopped and goes on, as under a debugger or when its container is
/// frozen, finds such a call interrupted, though it handles no signal (`signal(7)`).
fn receive(mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Kills `child` if it runs for longer than any test should, on a busy machine too, unless what is returned is dropped before.
fn watch(child: &Child) -> Sender<()> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let (sender, receiver) = channel();
    let id = child.id().to_string();
    thread::spawn(move || {
        if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
    });
    sender
}

fn run(arguments: &[&str]) -> Ended {
    Folder::new().run(arguments)
}

#[test]
fn check_sums_up_what_is_right() {
    let folder = Folder::with(
        "broker: { url: embedded, listen: 127.0.0.1:1999, outage: reject }\n\
         transports:\n  - { name: lan, type: udp, listen: 0.0.0.0:1884, multicast: 225.1.1.1:1884 }\n  \
         - { name: wan, type: udp, listen: ['10.0.0.1:1', '[::1]:2'], mode: transparent }\n\
         topics: { predefined: { 1: a, 2: b }, clients: { pump-7: { 1: c } } }\n\
         store: { path: none }\nhttp: { listen: 127.0.0.1:8090 }\n",
    );
    let ended = folder.run(&["check"]);
    assert_eq!(ended.stderr, "");
    assert_eq!(
        ended.stdout,
        "./gateway.yaml: no errors\n\
         broker: embedded, listens on 127.0.0.1:1999, aggregating\n\
         transport lan: udp 0.0.0.0:1884, group 225.1.1.1:1884, aggregating\n\
         transport wan: udp 10.0.0.1:1, [::1]:2, no multicast group, transparent\n\
         predefined topics: 2 for all clients, 1 for single ones\n\
         store: none\n\
         note: store.path: none: sessions, topic ids and messages that wait end with the gateway, clients are told \
         when it stops\n\
         note: http.listen: not in this version, nothing listens on 127.0.0.1:8090\n"
    );
    assert_eq!(ended.code, 0);
}

#[test]
fn check_says_when_nothing_is_changed() {
    let ended = Folder::with("").run(&["check", "gateway.yaml"]);
    assert!(ended.stdout.starts_with("gateway.yaml: no errors; every option has its default\n"));
    assert!(!ended.stdout.contains("note: "), "{}", ended.stdout);
    assert_eq!(ended.code, 0);
}

#[test]
fn check_names_files_that_cannot_be_read_beside_what_is_wrong_with_the_configuration() {
    let folder =
        Folder::with("broker: { username: u, password_file: /nowhere/p, keepalive: 1 }\nsession: 1\n");
    for command in [&["check"][..], &["run", "-c", "gateway.yaml"]] {
        let ended = folder.run(command);
        assert_eq!(ended.code, 78);
        for part in [
            "broker.keepalive",
            "gateway.yaml:2:1: session",
            "\nmqtt-sn-gateway: broker.password_file: cannot read /nowhere/p: No such file or directory",
            "\nmqtt-sn-gateway: 2 errors in ",
        ] {
            assert!(ended.stderr.contains(part), "{part}\n{}", ended.stderr);
        }
    }
}

#[test]
fn check_reads_standard_input() {
    let folder = Folder::new();
    let ended = folder.run_with(&["check", "-"], b"broker:\n  url: mqtt://${HOST}\n");
    assert!(
        ended.stdout.contains("<stdin>: no errors\nbroker: mqtt://broker.example:1883, aggregating\n"),
        "{}",
        ended.stdout
    );
    assert_eq!(ended.code, 0);
    let ended = folder.run_with(&["check", "-"], b"broker:\n  ur: mqtt://a\n");
    assert!(ended.stderr.starts_with("<stdin>:2:3: broker.ur: unknown key"), "{}", ended.stderr);
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 78));
}

#[test]
fn run_and_check_read_the_same_way() {
    let folder = Folder::with("broker: { keepalive: 60s }\n");
    let check = folder.run(&["check"]);
    for arguments in [&["run"][..], &["run", "-c", "./gateway.yaml"], &["run", "--config", "./gateway.yaml"]]
    {
        let run = folder.run(arguments);
        assert_eq!((run.stdout.as_str(), &run.stderr, run.code), ("", &check.stderr, 78));
    }
}

#[test]
fn without_a_configuration_both_places_and_init_are_named() {
    if Path::new("/etc/mqtt-sn-gateway/gateway.yaml").exists() {
        return;
    }
    for command in ["run", "check"] {
        let ended = run(&[command]);
        assert_eq!(
            ended.stderr,
            "mqtt-sn-gateway: no configuration: neither ./gateway.yaml nor /etc/mqtt-sn-gateway/gateway.yaml exists; \
             `mqtt-sn-gateway init` writes one\n"
        );
        assert_eq!(ended.code, 78);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_cause() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("folder.yaml")).unwrap();
    for command in [&["run", "-c"], &["check", "--"]] {
        let ended = folder.run(&[command[0], command[1], "missing.yaml"]);
        assert_eq!(
            ended.stderr,
            "mqtt-sn-gateway: cannot read missing.yaml: No such file or directory (os error 2)\n"
        );
        assert_eq!(ended.code, 78);
        let ended = folder.run(&[command[0], command[1], "folder.yaml"]);
        assert_eq!(ended.stderr, "mqtt-sn-gateway: cannot read folder.yaml: Is a directory (os error 21)\n");
        assert_eq!(ended.code, 78);
    }
}

#[test]
fn init_writes_the_shipped_file_and_never_overwrites() {
    let folder = Folder::new();
    let written = || fs::read_to_string(folder.path().join("gateway.yaml")).unwrap();
    let ended = folder.run(&["init"]);
    assert_eq!(ended.stdout, "./gateway.yaml written\nstart the gateway with: mqtt-sn-gateway run\n");
    assert_eq!(ended.code, 0);
    assert_eq!(written(), include_str!("../../gateway.yaml"));
    let ended = folder.run(&["init", "--broker", "mqtt://other"]);
    assert_eq!(ended.stderr, "mqtt-sn-gateway: ./gateway.yaml exists and is not overwritten\n");
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 73));
    assert_eq!(written(), include_str!("../../gateway.yaml"));
}

#[test]
fn init_puts_the_broker_in() {
    for (url, shown) in [
        ("mqtt://broker.example:1884", "mqtt://broker.example:1884"),
        ("mqtt://a", "mqtt://a:1883"),
        ("mqtt://[::1]", "mqtt://[::1]:1883"),
        ("mqtts://broker.example", "mqtts://broker.example:8883"),
        ("embedded", "embedded, listens on 127.0.0.1:1883"),
    ] {
        let folder = Folder::new();
        assert_eq!(folder.run(&["init", "--broker", url]).code, 0, "{url}");
        let ended = folder.run(&["check"]);
        assert!(ended.stdout.contains(&format!("broker: {shown}, aggregating\n")), "{url}: {}", ended.stdout);
        assert_eq!(ended.code, 0, "{url}");
    }
}

#[test]
fn init_puts_a_serial_port_into_use() {
    let folder = Folder::new();
    let ended = folder.run(&["init", "--serial", "/dev/serial/by-id/usb radio-if00", "--broker", "embedded"]);
    assert!(ended.stdout.contains("set baud and framing as your radio has them"), "{}", ended.stdout);
    assert_eq!(ended.code, 0);
    let written = fs::read_to_string(folder.path().join("gateway.yaml")).unwrap();
    assert!(written.contains("\n    device: \"/dev/serial/by-id/usb radio-if00\" # better"), "{written}");
    assert!(written.contains("\n  # - name: zigbee\n"), "the others stay as they were");
    let ended = folder.run(&["check"]);
    let radio =
        "transport radio: serial /dev/serial/by-id/usb radio-if00, 115200 baud, slip+crc, aggregating\n";
    assert!(ended.stdout.contains(radio), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("transport lan: udp"), "{}", ended.stdout);
    assert_eq!(ended.code, 0);
}

#[test]
fn init_refuses_what_cannot_stand_in_the_file() {
    for (arguments, why) in [
        (&["init", "--broker", "tcp://a"][..], "did you mean \"mqtt://a\"?"),
        (&["init", "--broker", "mqtt://"], "has no host"),
        (&["init", "--broker", "mqtt://a\nb"], "has no valid host name"),
        (&["init", "--serial", "ttyUSB0"], "expected a path such as /dev/ttyUSB0"),
        (&["init", "--serial", "/dev/x\"\n- y"], "expected a path such as /dev/ttyUSB0"),
    ] {
        let folder = Folder::new();
        let ended = folder.run(arguments);
        assert!(ended.stderr.contains(why), "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.code, 2, "{arguments:?}");
        assert!(!folder.path().join("gateway.yaml").exists());
    }
}

#[test]
fn decode_explains_a_frame_however_it_is_typed() {
    let pairs = run(&["decode", "0C", "0C", "60", "00", "01", "00", "00", "68", "65", "6c", "6c", "6f"]);
    assert!(pairs.stdout.starts_with("PUBLISH "), "{}", pairs.stdout);
    assert_eq!(pairs.stdout.lines().count(), 1);
    assert_eq!((pairs.stderr.as_str(), pairs.code), ("", 0));
    for typed in [
        "0c0c60000100006865 6C6C6F",
        "0c:0c:60:00:01:00:00:68:65:6c:6c:6f",
        "0x0c0c600001000068656c6c6f",
        " 0x0c 0X0c 0x60 0x00 0x01 0x00 0x00 0x68 0x65 0x6c 0x6c 0x6f ",
    ] {
        let ended = run(&["decode", typed]);
        assert_eq!((ended.stdout, ended.code), (pairs.stdout.clone(), 0), "{typed}");
    }
}

#[test]
fn decode_says_why_octets_are_no_frame() {
    let ended = run(&["decode", "05 16"]);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.starts_with("mqtt-sn-gateway: not a frame: "), "{}", ended.stderr);
    assert_eq!(ended.code, 1);
    for (typed, why) in
        [("03FE00", "an encapsulation holds no message"), ("03", "1 octet is too few for a message")]
    {
        let ended = run(&["decode", typed]);
        assert_eq!(ended.stderr, format!("mqtt-sn-gateway: not a frame: {why}\n"));
        assert_eq!(ended.code, 1);
    }
}

#[test]
fn decode_wants_pairs_of_digits() {
    for (typed, shown) in [
        ("0g", "0g"),
        ("05 1", "1"),
        ("0x", "0x"),
        ("05 0x 16", "0x"),
        ("", ""),
        (" : ", " : "),
        ("05é", "05é"),
        ("+5", "+5"),
    ] {
        let ended = run(&["decode", typed]);
        assert_eq!(
            ended.stderr,
            format!(
                "mqtt-sn-gateway: {shown:?} is no hexadecimal, expected pairs of digits such as 05 or 0x0516\n"
            )
        );
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 2));
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    for arguments in [
        &[][..],
        &["rum"],
        &["run", "--confg", "x"],
        &["run", "gateway.yaml"],
        &["run", "-c"],
        &["run", "--threads", "0"],
        &["run", "--threads", "65"],
        &["run", "--threads", "many"],
        &["check", "a", "b"],
        &["demo", "--exit-after", "5"],
        &["demo", "--exit-after", "soon"],
        &["init", "--broker"],
        &["decode"],
        &["forget"],
        &["forget", ""],
    ] {
        let ended = run(arguments);
        assert_eq!((ended.stdout.as_str(), ended.code), ("", 2), "{arguments:?}");
        assert!(!ended.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn commands_of_later_versions_are_named_as_such() {
    for arguments in [&["nodes"][..], &["topics", "--json"], &["kick", "a"], &["top"], &["tap"], &["reload"]]
    {
        let ended = run(arguments);
        let expected = format!("mqtt-sn-gateway: {} is not in this version\n", arguments[0]);
        assert_eq!((ended.stdout.as_str(), ended.stderr, ended.code), ("", expected, 2));
    }
    assert!(run(&["chek"]).stderr.contains("'check'"), "a typing error has its hint");
}

#[test]
fn help_has_an_example_for_each_command() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for command in ["run", "demo", "check", "init", "forget", "health", "decode"] {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command}: {}", help.stdout);
        let help = run(&[command, "--help"]);
        assert!(help.stdout.contains(&format!("Example:  mqtt-sn-gateway {command}")), "{}", help.stdout);
        assert_eq!((help.stderr.as_str(), help.code), ("", 0));
    }
    let version = run(&["--version"]);
    assert_eq!(
        (version.stdout, version.code),
        (format!("mqtt-sn-gateway {}\n", env!("CARGO_PKG_VERSION")), 0)
    );
}
