//! `mqtt-sn-node` as a process.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::process::{Process, gateway_program};

/// The program beside the gateway's; built if it is not there.
static NODE: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = gateway_program().with_file_name("mqtt-sn-node");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "-p", "mqtt-sn-node"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package would make it build again what it has built without being told.
    let told = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let ours = told.filter(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
    for name in ours {
        build.env_remove(name);
    }
    if !gateway_program().components().any(|part| part.as_os_str() == "debug") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "mqtt-sn-node cannot be built");
    program
});

/// Runs it against the gateway at this port of ours.
pub fn node(port: u16, arguments: &[&str]) -> Process {
    let (command, rest) = arguments.split_first().unwrap();
    let port = port.to_string();
    let arguments = [*command, "-h", "127.0.0.1", "-p", &port];
    Process::start(Command::new(&*NODE).args(arguments).args(rest))
}

/// Runs it with these words.
#[allow(dead_code, reason = "not every binary needs it")]
pub fn tool(arguments: &str) -> Process {
    Process::start(Command::new(&*NODE).args(arguments.split_whitespace()))
}

#[track_caller]
pub fn expect_end(mut process: Process, code: i32) -> String {
    let status = process.wait_for_end();
    assert_eq!(status.code(), Some(code), "{}", process.printed());
    process.printed()
}
