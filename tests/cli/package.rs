//! `tools/package` where it is called wrongly, or where something is missing that it needs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::{Ended, Folder};

#[test]
fn a_wrong_call_of_package_is_told_what_there_is_and_makes_nothing() {
    let folder = checkout();
    for (arguments, says) in [
        (&["mipsel"][..], "there is no target mipsel; there are x86_64-unknown-linux-musl aarch64-"),
        (&["mipsel-unknown-linux-musl", "deb"], "there is no target deb; there are x86_64-"),
        (&["--all"], "there is no option --all"),
        (&["deb", "target/release"], "deb needs a directory and the name of a package"),
        (&["try"], "try needs a package"),
        (&["boot"], "boot needs a package"),
    ] {
        let ended = package(&folder, arguments, &BTreeMap::new());
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.starts_with(&format!("tools/package: {says}")), "{}", ended.stderr);
        assert!(ended.stderr.contains("\n  tools/package deb DIR OUT  "), "{}", ended.stderr);
    }
    let help = package(&folder, &["--help"], &BTreeMap::new());
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("  tools/package TARGET...  "), "{}", help.stdout);
    assert!(!folder.path().join("target").exists());
}

#[test]
fn package_names_what_is_missing_and_says_what_to_do() {
    let folder = checkout();
    let [offline, online] = ["false", "true"]
        .map(|pip| format!("[[ $1 == -c ]] || {{ mkdir -p $3/bin; ln -s /bin/{pip} $3/bin/pip; }}"));
    let mut machine = BTreeMap::new();
    // The machine gets one program after the other, and what is missed then.
    for (program, does, says) in [
        ("", "", "cargo is missing: install Rust"),
        ("cargo", ":", "binutils is missing: sudo apt-get install binutils"),
        ("strip", ":", "the compiler comes from Debian 12 on amd64"),
        ("apt-get", "return 100", "the compiler comes from Debian 12 on amd64"),
        ("dpkg", "echo arm64", "the compiler comes from Debian 12 on amd64"),
        ("dpkg", "echo amd64", "python3-venv is missing: sudo apt-get install python3-venv"),
        ("python3", &offline, "apt does not know rustc-web, which is in Debian 12 with bookworm-security"),
        ("apt-cache", "printf ' Depends: %s\\n' libstd-rust-web-1.96 libllvm22", "apt-get cannot download"),
        ("apt-get", ": >a.deb", "pip cannot download ziglang and cargo-zigbuild"),
        ("python3", &online, "cannot build for mipsel-unknown-linux-musl"),
    ] {
        machine.insert(program, does);
        let ended = package(&folder, &["mipsel-unknown-linux-musl"], &machine);
        assert_eq!(ended.code, 1, "{program} {does}: {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("tools/package: {says}")), "{program} {does}: {}", ended.stderr);
        let made = fs::read_dir(folder.path().join("target/package"));
        for entry in made.into_iter().flatten() {
            assert_eq!(entry.unwrap().file_name(), "toolchain", "{program} {does}");
        }
    }
}

/// A checkout with the script, on a machine that has only what every Linux has.
fn checkout() -> Folder {
    let folder = Folder::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["bin", "tools"] {
        fs::create_dir(folder.path().join(dir)).unwrap();
    }
    for file in ["Cargo.toml", "tools/package"] {
        fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    for program in ["dirname", "env", "grep", "ln", "mkdir", "mktemp", "nice", "rm", "sed", "touch"] {
        symlink(Path::new("/usr/bin").join(program), folder.path().join("bin").join(program)).unwrap();
    }
    folder
}

/// Runs the script. What else there is on the machine are functions of the shell, each with what it does: programs that are
/// written here could not be started while another test starts one.
fn package(folder: &Folder, arguments: &[&str], machine: &BTreeMap<&str, &str>) -> Ended {
    let functions = machine.iter().filter(|(name, _)| !name.is_empty());
    let output = Command::new("/usr/bin/bash")
        .arg(folder.path().join("tools/package"))
        .args(arguments)
        .env_clear()
        .env("PATH", folder.path().join("bin"))
        .envs(functions.map(|(name, does)| (format!("BASH_FUNC_{name}%%"), format!("() {{ {does}; }}"))))
        .output()
        .unwrap();
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    Ended { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
