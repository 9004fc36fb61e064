//! What no compiler checks, read from the source tree: layers, banned names, references, the shape of the repository.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every module of `src/` and what it may use of the others: design rule "dependencies point down".
const LAYERS: [(&str, &[&str]); 19] = [
    ("topic", &[]),
    ("wire", &["topic"]),
    ("mqtt", &["topic"]),
    ("gateway", &["topic", "wire", "mqtt"]),
    ("node", &["topic", "wire"]),
    ("deadline", &[]),
    ("broker", &["deadline", "topic"]),
    ("framing", &[]),
    ("devices", &[]),
    ("transport", &["deadline", "devices", "framing", "topic", "wire", "gateway::io"]),
    ("link", &["gateway::io", "topic"]),
    ("store", &["gateway::io", "gateway::record", "mqtt", "topic", "wire"]),
    ("admin", &["gateway::io", "topic"]),
    ("runtime", &["admin", "broker", "deadline", "gateway", "link", "store", "topic", "transport"]),
    ("config", &["topic"]),
    (
        "setup",
        &["admin", "config", "framing", "gateway::io", "link", "runtime", "store", "topic", "transport"],
    ),
    ("demo", &["config", "gateway::io", "mqtt", "node", "runtime", "setup", "topic", "wire"]),
    (
        "cli",
        &[
            "admin",
            "config",
            "demo",
            "devices",
            "gateway::io",
            "runtime",
            "setup",
            "store",
            "topic",
            "transport",
            "wire",
        ],
    ),
    ("main", &["cli"]),
];

/// Modules that are values: no clock, no task, no lock, no file, no environment, no randomness of their own.
const VALUES: [&str; 7] = ["topic", "wire", "mqtt", "gateway", "node", "broker", "framing"];

/// Their shells, which are not.
const SHELLS: [&str; 1] = ["src/broker/tcp.rs"];

const BANNED_IN_VALUES: [&str; 17] = [
    "Instant::now",
    "SystemTime",
    "tokio",
    "Mutex",
    "RwLock",
    "Atomic",
    "std::fs",
    "std::env",
    "std::thread",
    "std::net::TcpStream",
    "UdpSocket",
    "RandomState::new",
    "Rng::new()",
    "fastrand::u",
    "async ",
    "println!",
    "static mut",
];

/// Crates that only one place may know.
const CONFINED: [(&str, &[&str]); 9] = [
    ("serde_yaml", &["src/config"]),
    ("use nom::", &["src/wire"]),
    ("use nix::", &["src/devices", "src/transport", "src/runtime.rs", "src/setup.rs"]),
    ("use clap::", &["src/cli"]),
    ("tokio_rustls", &["src/link"]),
    ("rustls_native_certs", &["src/link"]),
    ("redb::", &["src/store"]),
    ("sd_notify::", &["src/runtime"]),
    ("postcard::", &["src/store"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with this ending, by its path in the repository.
fn files(folder: &str, ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && path.file_name() != Some("target".as_ref()) {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// The lines of a source file that are code outside its tests, numbered from 1.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..tests].lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// `src/wire/v1.rs` is of module `wire`.
fn module(name: &str) -> &str {
    let name = name.strip_prefix("src/").unwrap();
    name.split(['/', '.']).next().unwrap()
}

#[test]
fn dependencies_point_down() {
    let layers: BTreeMap<_, _> = LAYERS.into();
    let mut wrong = Vec::new();
    for (name, text) in files("src", ".rs") {
        let own = module(&name);
        if own == "lib" || is_test(&name) {
            continue;
        }
        let Some(allowed) = layers.get(own) else { panic!("{name}: module {own} has no layer") };
        for (number, line) in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let path = &line[at + "crate::".len()..];
                let used: String =
                    path.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
                let is = |allowed: &str| used == allowed || used.starts_with(&format!("{allowed}::"));
                if !is(own) && !allowed.iter().any(|allowed| is(allowed)) {
                    wrong.push(format!("{name}:{number}: {own} may not use {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A clock that is wrong at boot and jumps later must not matter: the log alone has the time of day.
#[test]
fn nothing_knows_the_time_of_day() {
    let sources = files("src", ".rs").into_iter().chain(files("tools/node/src", ".rs"));
    let mut wrong = Vec::new();
    for (name, text) in sources {
        for (number, line) in code(&text) {
            let clock = ["SystemTime", "UNIX_EPOCH", "chrono", "OffsetDateTime"];
            wrong.extend(
                clock.iter().filter(|it| line.contains(**it)).map(|it| format!("{name}:{number}: {it}")),
            );
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn values_have_no_clock_no_task_and_no_file() {
    let mut wrong = Vec::new();
    for (name, text) in files("src", ".rs") {
        if !VALUES.contains(&module(&name)) || SHELLS.contains(&name.as_str()) || is_test(&name) {
            continue;
        }
        for (number, line) in code(&text) {
            for banned in BANNED_IN_VALUES.iter().filter(|banned| line.contains(**banned)) {
                wrong.push(format!("{name}:{number}: {banned}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn crates_stay_where_they_are_wrapped() {
    let mut wrong = Vec::new();
    for (name, text) in files("src", ".rs") {
        for (krate, places) in CONFINED {
            if !places.iter().any(|place| name.starts_with(place))
                && code(&text).any(|(_, l)| l.contains(krate))
            {
                wrong.push(format!("{name}: {krate}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    let mut wrong = Vec::new();
    let sources = ["src", "tests", "tools"].map(|folder| files(folder, ".rs"));
    for (name, text) in sources.iter().flatten().filter(|(name, _)| *name != "tests/tidy.rs") {
        for (index, line) in text.lines().enumerate() {
            for mark in ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "XXX", "TODO"] {
                if line.contains(mark) {
                    wrong.push(format!("{name}:{}: {mark}", index + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Sections of MQTT-SN 1.2: chapter and how many sections, or how many subsections a section has.
fn is_section_of_mqtt_sn(section: &str) -> bool {
    let last = |parent: &str| match parent {
        "" => 8,
        "2" => 2,
        "4" => 3,
        "5" => 5,
        "5.2" => 3,
        "5.3" => 14,
        "5.4" => 25,
        "6" => 14,
        "7" => 4,
        _ => 0,
    };
    is_counted(section, last)
}

/// Sections of MQTT 3.1.1, as far as this repository cites them by more than the chapter.
fn is_section_of_mqtt(section: &str) -> bool {
    let last = |parent: &str| match parent {
        "" => 7,
        "1" => 5,
        "1.5" => 3,
        "2" => 3,
        "2.2" => 3,
        "2.3" => 1,
        "3" => 14,
        "3.1" => 4,
        "3.1.2" => 10,
        "3.1.3" => 5,
        "3.2" => 2,
        "3.2.2" => 3,
        "3.3" => 5,
        "3.3.1" => 3,
        "3.3.2" => 2,
        "3.4" | "3.5" | "3.6" | "3.7" => 4,
        "3.8" => 4,
        "3.9" => 3,
        "3.10" => 4,
        "3.11" => 3,
        "3.12" => 4,
        "3.13" => 3,
        "3.14" => 4,
        "4" => 8,
        "4.3" => 3,
        "4.7" => 3,
        "4.7.1" => 3,
        "5" => 4,
        _ => 0,
    };
    is_counted(section, last)
}

/// The sections of MQTT 5 (OASIS, 7 March 2019), as far as they are cited.
fn is_section_of_mqtt_5(section: &str) -> bool {
    let last = |parent: &str| match parent {
        "" => 7,
        "1" => 8,
        "1.5" => 7,
        "2" => 4,
        "3" => 15,
        "3.1" | "3.3" | "3.8" | "3.10" | "3.14" => 4,
        "3.1.2" => 11,
        "3.1.2.11" => 10,
        "3.2" | "3.2.2" | "3.3.2" | "3.4" | "3.5" | "3.6" | "3.7" | "3.9" | "3.11" => 3,
        "3.2.2.3" => 18,
        "3.3.2.3" => 9,
        "3.4.2" | "3.8.2" | "3.14.2" => 2,
        "3.8.2.1" => 3,
        "3.14.2.2" => 5,
        "4" => 13,
        _ => 0,
    };
    is_counted(section, last)
}

fn is_counted(section: &str, last: impl Fn(&str) -> u32) -> bool {
    let mut parent = String::new();
    for part in section.split('.') {
        let Ok(number) = part.parse::<u32>() else { return false };
        if number == 0 || number > last(&parent) {
            return false;
        }
        if !parent.is_empty() {
            parent.push('.');
        }
        parent.push_str(part);
    }
    true
}

#[test]
fn every_section_that_is_cited_exists() {
    let mut wrong = Vec::new();
    let sources = ["src", "tests", "tools"].map(|folder| files(folder, ".rs"));
    for (name, text) in sources.iter().flatten() {
        for (at, mark) in text.match_indices('§') {
            let section: String =
                text[at + mark.len()..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            let section = section.trim_end_matches('.');
            let before = text[..at].trim_end_matches([' ', '\n', '/', '!']);
            // A list such as "MQTT 3.1.1 §4.7, §4.8" names its document once.
            let line = &before[before.rfind('\n').map_or(0, |at| at + 1)..];
            let real = if before.ends_with("MQTT 5") {
                is_section_of_mqtt_5(section)
            } else if before.ends_with("MQTT 3.1.1") || line.contains("MQTT 3.1.1") {
                is_section_of_mqtt(section) || is_section_of_mqtt_sn(section)
            } else {
                is_section_of_mqtt_sn(section)
            };
            if !section.is_empty() && !real {
                let line = text[..at].lines().count();
                wrong.push(format!("{name}:{line}: §{section}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `Interpretation: A-03` or `(Interpretation: )`.
fn interpretations(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let text = text.replace("\n    ///", "").replace("\n///", "").replace("\n//!", "");
    for (at, mark) in text.match_indices("Interpretation") {
        let rest: String = text[at + mark.len()..].chars().take(60).collect();
        let end = rest.find([')', '.', '\n']).unwrap_or(rest.len());
        let words = rest[..end].split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        let is_number = |word: &&str| {
            let digits = word.strip_prefix("A-").or(word.strip_prefix("R-"));
            digits.is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()))
        };
        found.extend(words.filter(is_number).map(str::to_owned));
    }
    found
}

#[test]
fn every_interpretation_is_listed_on_the_crate_page() {
    let page = fs::read_to_string(root().join("src/doc/interpretations.md")).unwrap();
    let listed: BTreeSet<_> = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
    let mut missing = BTreeSet::new();
    for (name, text) in files("src", ".rs") {
        for number in interpretations(&text) {
            if !listed.contains(number.as_str()) {
                missing.insert(format!("{number} ({name})"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// The README's table of promises: each names what proves it, a law of the simulator or a part of the tests.
#[test]
fn what_proves_a_promise_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let laws = fs::read_to_string(root().join("tests/sim/law.rs")).unwrap();
    let rows: Vec<_> = readme.lines().filter(|line| line.starts_with("| G")).collect();
    assert_eq!(rows.len(), 6, "G1 to G6: {rows:?}");
    for row in rows {
        let proofs = row.rsplit('|').nth(1).unwrap();
        let named: Vec<_> = proofs.split('`').skip(1).step_by(2).collect();
        assert!(named.len() > 1, "{row}");
        let exists = |name: &str| root().join(name).exists() || laws.contains(&format!("\n    {name},\n"));
        let strangers: Vec<_> = named.into_iter().filter(|name| !exists(name)).collect();
        assert!(strangers.is_empty(), "{strangers:?} in {row}");
    }
}

#[test]
fn the_top_level_is_as_designed() {
    let allowed: BTreeSet<_> = [
        ".ci",
        ".git",
        ".gitignore",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "clippy.toml",
        "deny.toml",
        "gateway.yaml",
        "rustfmt.toml",
        "src",
        "systemd",
        "target",
        "tests",
        "tools",
    ]
    .into();
    let strangers: Vec<PathBuf> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !allowed.contains(path.file_name().unwrap().to_str().unwrap()))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}
