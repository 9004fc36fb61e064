//! What systemd and udev are given: `systemd-analyze` reads the unit as the manager would, the rest is compared with the program.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Tenths of the exposure that `systemd-analyze security` may find, of 100.
const EXPOSURE_MAX: &str = "15";

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

fn unit() -> String {
    fs::read_to_string(shipped("mqtt-sn-gateway.service")).unwrap()
}

/// The settings of a unit, each with all its values.
fn settings(unit: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut settings: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (key, value) in
        unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='))
    {
        settings.entry(key).or_default().push(value);
    }
    settings
}

fn analyze(arguments: &[&str]) -> Output {
    let output = Command::new("systemd-analyze").args(arguments).output();
    output.unwrap_or_else(|error| panic!("systemd-analyze, of the package systemd: {error}"))
}

/// A system with the unit, the program and what the unit builds on. It has no other part of systemd.
fn system(unit: &str) -> TempDir {
    let root = TempDir::new().unwrap();
    let [bin, own, systemd] =
        ["usr/bin", "etc/systemd/system", "usr/lib/systemd/system"].map(|dir| root.path().join(dir));
    for dir in [&bin, &own, &systemd] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(bin.join("mqtt-sn-gateway"), "").unwrap();
    fs::set_permissions(bin.join("mqtt-sn-gateway"), Permissions::from_mode(0o755)).unwrap();
    for target in ["sysinit", "basic", "shutdown", "multi-user", "network", "nss-lookup"] {
        fs::write(systemd.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n").unwrap();
    }
    fs::write(own.join("mqtt-sn-gateway.service"), unit).unwrap();
    root
}

fn complaints(unit: &str) -> String {
    let root = system(unit);
    let root = format!("--root={}", root.path().display());
    let output = analyze(&["verify", &root, "mqtt-sn-gateway.service"]);
    let code = output.status.code();
    let stderr = String::from_utf8(output.stderr).unwrap();
    if code == Some(0) { stderr } else { format!("{stderr}\nended with {code:?}") }
}

#[test]
fn systemd_understands_every_line_of_the_unit() {
    assert_eq!(complaints(&unit()), "");
    // It would say so if it did not.
    let wrong = unit().replace("WatchdogSec=30s", "WatchdogSec=often");
    assert!(complaints(&wrong).contains("Failed to parse sec value"), "{}", complaints(&wrong));
}

#[test]
fn the_unit_is_exposed_to_little() {
    let path = shipped("mqtt-sn-gateway.service").display().to_string();
    let score = |limit: &str, path: &str| {
        let output = analyze(&["security", "--offline=true", &format!("--threshold={limit}"), path]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said.lines().last().unwrap_or_default().to_owned())
    };
    let (held, said) = score(EXPOSURE_MAX, &path);
    assert!(held, "{said}");
    let (held, said) = score("5", &path);
    assert!(!held, "nothing that uses a network is that safe: {said}");
}

#[test]
fn the_unit_is_of_the_program_that_there_is() {
    let unit = unit();
    let settings = settings(&unit);
    let one = |key: &str| match settings.get(key).map(Vec::as_slice) {
        Some([value]) => *value,
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(one("Type"), "notify");
    assert_eq!(one("ExecStart"), "/usr/bin/mqtt-sn-gateway run --config /etc/mqtt-sn-gateway/gateway.yaml");
    // Exit codes: what is wrong with the command line or the configuration does not mend itself.
    assert_eq!((one("Restart"), one("RestartPreventExitStatus")), ("always", "2 78"));
    assert_eq!(one("StartLimitIntervalSec"), "0", "it must not give up");
    for dir in ["StateDirectory", "RuntimeDirectory", "ConfigurationDirectory"] {
        assert_eq!(one(dir), "mqtt-sn-gateway");
    }
    assert!(settings.contains_key("WatchdogSec"));
    assert!(!settings.contains_key("ExecReload"), "reload is not in this version");
    let users = fs::read_to_string(shipped("mqtt-sn-gateway.sysusers.conf")).unwrap();
    assert!(users.contains(&format!("\nu {} - ", one("User"))), "{users}");
    assert!(users.contains(&format!("\nm {} {}\n", one("User"), one("SupplementaryGroups"))), "{users}");
}

/// systemd looks a name such as char-ttyUSB up in /proc/devices when the unit starts; a driver that is loaded later is not there.
/// A number needs no looking up. The numbers are those of Linux's devices.txt.
#[test]
fn a_stick_whose_driver_is_loaded_later_is_allowed() {
    let unit = unit();
    let settings = settings(&unit);
    assert_eq!(settings["DevicePolicy"], ["closed"]);
    assert_eq!(settings["PrivateDevices"], ["no"], "else /dev is a copy that knows nothing of later sticks");
    let allowed = &settings["DeviceAllow"];
    for major in ["188", "166", "204"] {
        assert!(allowed.contains(&format!("char-{major} rw").as_str()), "{allowed:?}");
    }
    for allowed in allowed {
        let node = allowed.strip_suffix(" rw").unwrap();
        let number = node.strip_prefix("char-").or(node.strip_prefix("/dev/char/4:"));
        assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()), "{allowed}");
    }
}

/// Every line of the rules is a list of matches and assignments, and every label is there.
#[test]
fn udev_can_read_the_rules() {
    const KEYS: [&str; 14] = [
        "ACTION",
        "ATTR",
        "ATTRS",
        "ENV",
        "GOTO",
        "GROUP",
        "KERNEL",
        "KERNELS",
        "LABEL",
        "MODE",
        "SUBSYSTEM",
        "SUBSYSTEMS",
        "SYMLINK",
        "TAG",
    ];
    let rules = fs::read_to_string(shipped("61-mqtt-sn-gateway.rules")).unwrap();
    let (mut labels, mut jumps) = (Vec::new(), Vec::new());
    for line in rules.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        for token in line.split(", ") {
            let at = token.find(['=', '!', '+']).unwrap_or_else(|| panic!("{token} in {line}"));
            let (key, rest) = token.split_at(at);
            let value = ["==", "!=", "+=", "="].iter().find_map(|op| rest.strip_prefix(op)).unwrap();
            let value = value
                .strip_prefix('"')
                .and_then(|it| it.strip_suffix('"'))
                .unwrap_or_else(|| panic!("{line}"));
            assert!(!value.contains('"'), "{line}");
            let name = key.split('{').next().unwrap();
            assert!(KEYS.contains(&name), "{key} in {line}");
            assert_eq!(key.contains('{'), ["ATTR", "ATTRS", "ENV"].contains(&name), "{line}");
            match name {
                "LABEL" => labels.push(value),
                "GOTO" => jumps.push(value),
                _ => {}
            }
        }
    }
    assert!(jumps.iter().all(|jump| labels.contains(jump)), "{jumps:?} {labels:?}");
    assert!(rules.contains("SYMLINK+=\"mqtt-sn/") && rules.contains("ENV{ID_MM_DEVICE_IGNORE}=\"1\""));
}
