//! The conformance table: T-001 to T-206 as black-box tests of the real program, over UDP on one side and TCP on the other.
//!
//! The rows stand in the `.sn` files beside this one, a section each; `script.rs` says how they are written, `fixtures.sn` what
//! "given" means. Every row has a gateway process, a broker (`stub.rs`) and sockets of its own. `cargo test --test conformance t079`
//! runs one row; what fails is told with everything that was sent and received.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by panicking")]

mod ahead;
mod process;
mod runner;
mod script;
mod self_test;
mod stub;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use mqtt_sn_gateway::wire::{self, Packet};

use crate::script::{File, Mode, Part, Row, Step};

macro_rules! files {
    ($($name:literal)*) => { [$(($name, include_str!($name))),*] };
}

const FIXTURES: File = ("fixtures.sn", include_str!("fixtures.sn"));

const FILES: [File; 13] = files! {
    "a_framing.sn" "b_discovery.sn" "c_connect.sn" "d_register.sn" "e_publish.sn" "f_qos_minus_one.sn" "g_subscribe.sn"
    "h_deliver.sn" "i_keep_alive.sn" "j_sleep.sn" "k_disconnect.sn" "l_forwarder.sn" "m_sessions.sn"
};

/// Rows of the table: 1 to this.
const ROWS: u16 = 206;

/// The whole table for the mode that is built.
static TABLE: LazyLock<BTreeMap<u16, Row>> = LazyLock::new(|| {
    let read =
        |file| script::rows(file, FIXTURES, Mode::Aggregating).unwrap_or_else(|problem| panic!("{problem}"));
    FILES.into_iter().flat_map(read).map(|row| (row.number, row)).collect()
});

/// The row that a test function is named after.
fn number(function: &str) -> u16 {
    function.trim_start_matches('t').parse().expect("a test is named t and the number of its row")
}

/// A test function for each row that must hold.
macro_rules! rows {
    ($($section:ident: $($row:ident)*;)*) => {
        $(mod $section { $(#[test] fn $row() { crate::ahead::check(module_path!(), stringify!($row)) })* })*
        /// The rows that must hold: section and name.
        const RUN: &[(&str, &str)] = &[$($((stringify!($section), stringify!($row)),)*)*];
    };
}

rows! {
    a_framing:
        t001 t002 t003 t004 t005 t006 t007 t008 t009 t010 t011 t012 t013 t014 t015 t016 t017 t018 t019 t020;
    b_discovery:
        t021 t022 t023 t024 t025 t026 t027 t028;
    c_connect:
        t029 t030 t031 t032 t033 t034 t035 t036 t037 t038 t039 t040 t041 t042 t043 t044 t045 t046 t047 t048 t049
        t050 t051 t052 t053 t054 t055 t056 t057 t058 t059 t060 t061 t062 t063 t064;
    d_register:
        t065 t066 t067 t068 t069 t070 t071 t072 t073 t074 t075 t076;
    e_publish:
        t077 t078 t079 t080 t081 t082 t083 t084 t085 t086 t087 t088 t089 t090 t091 t092 t093 t094 t095 t096 t097
        t098 t099 t100 t101;
    f_qos_minus_one:
        t102 t103 t104 t105 t106 t107 t108 t109;
    g_subscribe:
        t110 t111 t112 t113 t114 t115 t116 t117 t118 t119 t120 t121 t122 t123 t124 t125 t126 t127 t128 t129 t130
        t131;
    h_deliver:
        t132 t133 t134 t135 t136 t137 t138 t139 t140 t141 t142 t143 t144 t145 t146 t147 t148 t149 t150 t151 t152
        t153 t154;
    i_keep_alive:
        t155 t156 t157 t158 t159 t160 t161;
    j_sleep:
        t162 t163 t164 t165 t166 t167 t168 t169 t170 t171 t172 t173 t174 t175 t176 t177 t178 t179 t180 t181 t182
        t183 t184 t185;
    k_disconnect:
        t186 t187 t188 t189 t190 t191;
    l_forwarder:
        t192 t193 t194 t195 t196 t197 t198 t199 t200 t201;
    m_sessions:
        t202 t203 t204 t205 t206;
}

#[test]
fn every_row_is_here() {
    let all: BTreeSet<_> = (1..=ROWS).collect();
    let rows: usize =
        FILES.iter().map(|(_, text)| text.lines().filter(|line| line.starts_with("T-")).count()).sum();
    assert_eq!(rows, all.len(), "no row is written twice");
    assert_eq!(TABLE.keys().copied().collect::<BTreeSet<_>>(), all, "every row is written down");
    let tests: Vec<_> = RUN.iter().map(|(_, row)| number(row)).collect();
    assert_eq!(tests.len(), all.len(), "no row has two tests");
    assert_eq!(tests.into_iter().collect::<BTreeSet<_>>(), all, "every row has a test");
    assert!(TABLE.values().all(|row| !row.steps.is_empty()), "every row has steps");
}

#[test]
fn every_row_stands_in_its_section() {
    for (section, row) in RUN {
        let headline = format!("\nT-{:03} ", number(row));
        let (file, _) = FILES.into_iter().find(|(_, text)| text.contains(&headline)).unwrap();
        assert_eq!(file, format!("{section}.sn"), "{row}");
    }
}

#[test]
fn the_table_can_be_read_for_transparent_mode_too() {
    for file in FILES {
        let rows = script::rows(file, FIXTURES, Mode::Transparent).unwrap();
        assert!(rows.iter().all(|row| !row.steps.is_empty()), "{}", file.0);
    }
}

/// What clients send in the table is well formed, and what must be ignored is not or is nothing that a client may say.
#[test]
fn only_what_must_be_ignored_is_ill_formed() {
    for (row, line) in
        TABLE.values().flat_map(|row| row.given.iter().chain(&row.steps).map(move |line| (row, line)))
    {
        let Step::Send(send) = &line.step else { continue };
        let octets: Vec<_> = send.octets.0.iter().flat_map(example).collect();
        let allowed = wire::decode(&octets).is_ok_and(|frame| !from_gateways(&frame.packet));
        assert_eq!(allowed, !send.ill_formed, "T-{:03}: {}", row.number, line.text);
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
