//! The conformance table: T-001 to T-206, and what can be seen of section 5.N, as black-box tests of the real program, over UDP on one side and TCP on the other.
//!
//! The rows stand in the `.sn` files beside this one, a section each; `script.rs` says how they are written, `fixtures.sn` what
//! "given" means. Every row has a gateway process, a broker and sockets of its own. The whole table is run three times, and a
//! sample of it in the other combinations of mode, version of MQTT and broker (`combination.rs`):
//! `cargo test --test conformance transparent::` is one of them, `t079` one row wherever it is run. What fails is told with
//! everything that was sent and received.
//!
//! What the table cannot show:
//!
//! | | shown by |
//! |---|---|
//! | R-009: which client a message is counted and logged for | rows of L for the answers; `tests/e2e/log.rs` |
//! | R-013: hop limit | `tests/shell/udp.rs` |
//! | R-015: a stand-by gateway | not built; optional |
//! | R-035, R-083, R-103, R-146, R-162 | N-01, N-04, N-05, N-06, N-07 |
//! | R-037: a crash with a Will stored | not built: state is in memory |
//! | R-082, R-145: the broker's view of a sleeper | N-02, N-03 |
//! | R-143: a source without end while a client is awake | `tests/core/sleep.rs` |
//! | R-147: no REGISTER on wake-up | T-163 to T-167, whose next datagram is the PUBLISH |
//! | R-160, R-161: number of connections to the broker | T-029, T-030, T-060, T-110, T-193; every row tells connections apart |
//! | limits: handshakes, ids, queues | T-076; `tests/core/limits.rs`, `tests/core/corners.rs` |
//! | random and damaged datagrams | `tests/conformance/noise.rs`; `tests/wire/fuzz.rs`, `tests/core/limits.rs` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by panicking")]

mod ahead;
mod broker;
mod combination;
mod dialect;
mod noise;
mod process;
mod real;
mod runner;
mod script;
mod self_test;
mod stub;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use mqtt_sn_gateway::wire::{self, Packet};

use crate::combination::Combination;
use crate::script::{File, Mode, Part, Row, Step};

macro_rules! files {
    ($($name:literal)*) => { [$(($name, include_str!($name))),*] };
}

const FIXTURES: File = ("fixtures.sn", include_str!("fixtures.sn"));

const FILES: [File; 14] = files! {
    "a_framing.sn" "b_discovery.sn" "c_connect.sn" "d_register.sn" "e_publish.sn" "f_qos_minus_one.sn" "g_subscribe.sn"
    "h_deliver.sn" "i_keep_alive.sn" "j_sleep.sn" "k_disconnect.sn" "l_forwarder.sn" "m_sessions.sn" "n_beyond.sn"
};

/// Rows of the table: 1 to this.
const ROWS: u16 = 206;

/// The whole table as it reads in each mode.
static TABLE: LazyLock<[BTreeMap<String, Row>; 2]> = LazyLock::new(|| {
    [Mode::Aggregating, Mode::Transparent].map(|mode| {
        let read = |file| script::rows(file, FIXTURES, mode).unwrap_or_else(|problem| panic!("{problem}"));
        FILES.into_iter().flat_map(read).map(|row| (row.name.clone(), row)).collect()
    })
});

fn table(mode: Mode) -> &'static BTreeMap<String, Row> {
    &TABLE[usize::from(mode == Mode::Transparent)]
}

/// The row that a test function is named after: `t079` is T-079.
fn row_of(function: &str) -> String {
    let (letter, number) = function.split_at(1);
    format!("{}-{number}", letter.to_uppercase())
}

/// What a test runs: `aggregating::a_framing::t001`, `transparent_v5_stub::t001`.
fn of_test(name: &str) -> (Combination, &'static Row) {
    let (combination, _) = name.split_once("::").expect("a combination and a row");
    let (_, row) = name.rsplit_once("::").expect("a combination and a row");
    let combination = Combination::named(combination).expect("modules are named after combinations");
    (combination, &table(combination.mode)[&row_of(row)])
}

/// Hands all rows to a macro, by section. With a reason: the row needs a broker that does what the row says.
macro_rules! all_rows {
    ($use:ident! $combination:ident) => {
        $use! { $combination
            a_framing [
                t001 t002 t003 t004 t005 t006 t007 t008 t009 t010 t011 t012 t013 t014 t015 t016 t017 t018
                (t019 "the broker withholds an answer") t020
            ]
            b_discovery [
                t021 t022 t023 t024 t025 t026 t027 t028
            ]
            c_connect [
                t029 t030 t031 t032 t033 t034 t035 t036 (t037 "the broker refuses the connection") t038 t039 t040
                t041 t042 t043 t044 t045 t046 t047 t048 t049 t050 t051 t052 t053 t054 t055 t056 t057 t058 t059
                t060 t061 t062 t063 t064
            ]
            d_register [
                t065 t066 t067 t068 t069 t070 t071 t072 t073 t074 t075 t076
            ]
            e_publish [
                t077 t078 (t079 "the broker withholds an answer") (t080 "the broker withholds an answer") t081
                t082 t083 t084 t085 t086 t087 t088 t089 t090 t091 t092 t093 t094 t095 t096 t097 t098 t099 t100
                (t101 "the broker withholds an answer")
            ]
            f_qos_minus_one [
                t102 t103 t104 t105 t106 t107 t108 t109
            ]
            g_subscribe [
                t110 t111 t112 t113 t114 t115 t116 t117 (t118 "the broker grants less than was asked for")
                (t119 "the broker refuses a subscription") t120 t121 t122 t123 t124 t125 t126 t127 t128 t129 t130
                t131
            ]
            h_deliver [
                t132 t133 t134 t135 t136 t137 (t138 "the broker sets the retain flag for an old subscriber") t139
                t140 t141 t142 t143 t144 t145 t146 t147 t148 t149 t150 t151 t152 t153 t154
            ]
            i_keep_alive [
                t155 t156 t157 t158 t159 t160 t161
            ]
            j_sleep [
                t162 t163 t164 t165 t166 t167 t168 t169 t170 t171 t172 t173 t174 t175 t176 t177 t178 t179 t180
                t181 t182 t183 t184 t185
            ]
            k_disconnect [
                t186 t187 t188 t189 t190 t191
            ]
            l_forwarder [
                t192 t193 t194 t195 t196 t197 t198 t199 t200 t201
            ]
            m_sessions [
                t202 t203 t204 t205 t206
            ]
            n_beyond [
                n01 n02 n03 n04 n05 n06 n07
            ]
        }
    };
}

/// Hands the sample to a macro: rows of every section, all that read differently in the two modes and can be run against any
/// broker, and those in which the broker does most.
macro_rules! sample {
    ($use:ident! $combination:ident) => {
        $use! { $combination
            t001 t014 t016 t023 t024 t025 t029 t030 t036 t039 t048 t050 t053 t059 t065 t074 t077 t078 t081 t085 t097
            t102 t108 t110 t112 t114 t122 t123 t126 t131 t132 t133 t135 t139 t151 t155 t163 t167 t168 t172 t184 t186
            t189 t191 t192 t199 t202 t203 t204 t206 n01 n06
        }
    };
}

/// A test function for each row that the broker can be part of.
macro_rules! table_of_tests {
    ($combination:ident $($section:ident [$($row:tt)*])*) => {
        mod $combination { $(mod $section { $(one_test! { $combination $row })* })* }
    };
}

macro_rules! sample_of_tests {
    ($combination:ident $($row:ident)*) => {
        mod $combination { $(one_test! { $combination $row })* }
    };
}

macro_rules! one_test {
    (mosquitto ($row:ident $why:literal)) => {};
    ($combination:ident ($row:ident $why:literal)) => {
        one_test! { $combination $row }
    };
    ($combination:ident $row:ident) => {
        #[test]
        fn $row() {
            crate::ahead::check(module_path!(), stringify!($row))
        }
    };
}

/// The names of tests, an empty one for each that is not there.
macro_rules! table_of_names {
    ($combination:ident $($section:ident [$($row:tt)*])*) => { &[$($(one_name! { $combination $section $row }),*),*] };
}

macro_rules! sample_of_names {
    ($combination:ident $($row:ident)*) => { &[$(concat!(stringify!($combination), "::", stringify!($row))),*] };
}

macro_rules! one_name {
    (mosquitto $section:ident ($row:ident $why:literal)) => {
        ""
    };
    ($combination:ident $section:ident ($row:ident $why:literal)) => {
        one_name! { $combination $section $row }
    };
    ($combination:ident $section:ident $row:ident) => {
        concat!(stringify!($combination), "::", stringify!($section), "::", stringify!($row))
    };
}

/// The rows by section, and why a row needs the stub.
macro_rules! sections {
    (rows $($section:ident [$($row:tt)*])*) => { &[$($((stringify!($section), one_row!($row)),)*)*] };
}

macro_rules! one_row {
    (($row:ident $why:literal)) => {
        (stringify!($row), Some($why))
    };
    ($row:ident) => {
        (stringify!($row), None)
    };
}

macro_rules! combinations {
    (tables: $($table:ident)*; samples: $($sample:ident)*;) => {
        $(all_rows! { table_of_tests! $table })*
        $(sample! { sample_of_tests! $sample })*
        /// The tests by combination.
        const RUN: &[(&str, &[&str])] = &[
            $((stringify!($table), all_rows! { table_of_names! $table }),)*
            $((stringify!($sample), sample! { sample_of_names! $sample }),)*
        ];
    };
}

combinations! {
    tables: aggregating transparent mosquitto;
    samples:
        aggregating_v5_stub aggregating_auto_stub aggregating_v311_mosquitto aggregating_v5_mosquitto
        aggregating_v311_embedded aggregating_auto_embedded
        transparent_v5_stub transparent_auto_stub transparent_v311_mosquitto transparent_v5_mosquitto
        transparent_auto_mosquitto transparent_v311_embedded transparent_auto_embedded;
}

/// All rows by section, and why if one needs the stub.
const ALL: &[(&str, (&str, Option<&str>))] = all_rows! { sections! rows };

/// The tests that are run.
fn tests() -> impl Iterator<Item = &'static str> {
    RUN.iter().flat_map(|(_, names)| names.iter().copied()).filter(|name| !name.is_empty())
}

#[test]
fn every_row_is_here() {
    let digest: BTreeSet<_> = (1..=ROWS).map(|number| format!("T-{number:03}")).collect();
    let listed: BTreeSet<_> = ALL.iter().map(|(_, (row, _))| row_of(row)).collect();
    assert_eq!(listed.len(), ALL.len(), "no row is listed twice");
    assert!(listed.is_superset(&digest), "every row of the digest is listed");
    let headlines = FILES.iter().flat_map(|(_, text)| text.lines()).filter(|line| script::is_headline(line));
    assert_eq!(headlines.count(), ALL.len(), "no row is written twice");
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let table = table(mode);
        assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), listed, "every row is written down");
        assert!(table.values().all(|row| !row.steps.is_empty()), "every row has steps");
    }
}

#[test]
fn every_row_stands_in_its_section() {
    for (section, (row, _)) in ALL {
        let headline = format!("\n{} ", row_of(row));
        let (file, _) = FILES.into_iter().find(|(_, text)| text.contains(&headline)).unwrap();
        assert_eq!(file, format!("{section}.sn"), "{row}");
    }
}

#[test]
fn only_rows_that_need_the_stub_are_not_run_against_mosquitto() {
    for (_, (row, why)) in ALL {
        let needed = combination::needs_the_stub(&table(Mode::Aggregating)[&row_of(row)]);
        assert_eq!(*why, needed, "{row}");
    }
}

/// Each section, and each row that reads differently in the two modes, as far as any broker will do.
#[test]
fn the_sample_has_something_of_everything() {
    let names: &[&str] = sample! { sample_of_names! sample };
    let sample: BTreeSet<_> = names.iter().map(|name| row_of(name.rsplit_once("::").unwrap().1)).collect();
    assert_eq!(sample.len(), names.len(), "no row is twice in the sample");
    for (section, _) in ALL {
        let found = ALL.iter().any(|(other, (row, _))| other == section && sample.contains(&row_of(row)));
        assert!(found, "{section}");
    }
    for row in TABLE.iter().flat_map(BTreeMap::values) {
        let is_for_any_broker = combination::needs_the_stub(row).is_none();
        assert!(is_for_any_broker || !sample.contains(&row.name), "{} needs the stub", row.name);
    }
}

#[test]
fn every_test_has_a_combination_and_no_combination_is_run_twice() {
    let combinations: Vec<_> = RUN.iter().map(|(name, _)| Combination::named(name).unwrap()).collect();
    for (at, combination) in combinations.iter().enumerate() {
        assert!(!combinations[..at].contains(combination), "{combination:?}");
    }
    for name in tests() {
        of_test(name);
    }
}

#[test]
fn the_readme_says_what_is_run() {
    let readme = include_str!("../../README.md");
    let count = RUN.iter().map(|(name, tests)| {
        let rows = tests.iter().filter(|test| !test.is_empty()).count();
        format!("| {} | {rows} |", Combination::named(name).unwrap())
    });
    let counts = count.collect::<Vec<_>>().join("\n");
    assert!(readme.contains(&format!("|---|---|---|---|\n{counts}\n\n")), "README.md has not:\n{counts}");
    let left_out = ALL.iter().filter(|(_, (_, why))| why.is_some()).map(|(_, (row, _))| row_of(row));
    let left_out = left_out.collect::<Vec<_>>().join(", ");
    assert!(readme.contains(&format!(" {left_out}.")), "README.md has not: {left_out}.");
}

/// What clients send in the table is well formed, and what must be ignored is not or is nothing that a client may say.
#[test]
fn only_what_must_be_ignored_is_ill_formed() {
    let rows = TABLE.iter().flat_map(BTreeMap::values);
    for (row, line) in rows.flat_map(|row| row.given.iter().chain(&row.steps).map(move |line| (row, line))) {
        let Step::Send(send) = &line.step else { continue };
        let octets: Vec<_> = send.octets.0.iter().flat_map(example).collect();
        let allowed = wire::decode(&octets).is_ok_and(|frame| !from_gateways(&frame.packet));
        assert_eq!(allowed, !send.ill_formed, "{}: {}", row.name, line.text);
    }
}

/// A value for a gap.
fn example(part: &Part) -> Vec<u8> {
    match part {
        Part::Octets(octets) => octets.clone(),
        Part::Name(_) | Part::Any => vec![0x12, 0x34],
    }
}

/// Messages that clients do not send, or that gateways tell each other (§5.4).
fn from_gateways(packet: &Packet<'_>) -> bool {
    matches!(
        packet,
        Packet::Advertise(_)
            | Packet::GwInfo(_)
            | Packet::ConnAck(_)
            | Packet::WillTopicReq
            | Packet::WillMsgReq
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::WillTopicResp(_)
            | Packet::WillMsgResp(_)
    )
}
