//! The program as people call it, and one scenario that no busy machine makes fail, beside a real gateway.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[test]
fn scenarios_are_listed_with_what_they_measure() {
    let listed = bench(&["list"]);
    assert_eq!(listed.status.code(), Some(0));
    let text = String::from_utf8(listed.stdout).unwrap();
    for scenario in [
        "connect", "flood", "steady", "closed", "cores", "downlink", "sleepers", "far", "memory", "soak",
        "idle",
    ] {
        assert!(text.lines().any(|line| line.starts_with(&format!("{scenario} "))), "{scenario}: {text}");
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blank = folder.path().join("README.md");
    fs::write(&blank, "no marks\n").unwrap();
    let blank = blank.to_str().unwrap();
    for (arguments, named, code) in [
        (&["run", "fload"][..], "there is no scenario \"fload\"; `mqtt-sn-bench list` names them", 2),
        (&["run"], "<SCENARIO>", 2),
        (&["run", "idle", "--readme", blank], "--readme", 2),
        (&["all", "--readme", blank], "no place for figures", 2),
        (&["all", "--readme", "/nowhere/README.md"], "cannot read /nowhere/README.md", 1),
        (&["run", "idle", "--gateway", "/nowhere/gateway"], "there is no /nowhere/gateway", 1),
    ] {
        let ended = bench(arguments);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert_eq!((ended.status.code(), ended.stdout.len()), (Some(code), 0), "{arguments:?}");
    }
}

#[test]
fn of_sensors_that_come_and_go_nothing_stays_with_the_gateway() {
    let gateway = gateway();
    assert!(gateway.is_file(), "{} is built by `cargo build --workspace`", gateway.display());
    let ended = bench(&["run", "soak", "--gateway", gateway.to_str().unwrap()]);
    let (found, said) = (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
    assert_eq!((ended.status.code(), said.as_str()), (Some(0), ""), "{found}");
    let row: serde_json::Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
    assert_eq!(row["scenario"], "soak");
    assert!(row["ratios"][1]["value"].as_f64().unwrap() > 0.5, "{row}");
    assert!(found.lines().any(|line| line.starts_with("| soak | ")), "{found}");
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mqtt-sn-bench")).args(arguments).output().unwrap()
}

/// Beside the bench, as it was built with this test.
fn gateway() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_mqtt-sn-bench")).with_file_name("mqtt-sn-gateway")
}
