//! Every message in every state (digest 3.19), legal or not: what the client is answered, what the broker sees, and in
//! which state the client is afterwards, as the digest decides it. The transitions with their timers are in
//! `transitions`.

mod bench;
mod transitions;

use std::collections::BTreeMap;
use std::time::Duration;

use mqtt_sn_gateway::gateway::io::Mode;
use mqtt_sn_gateway::wire::{
    Advertise, Connect, Disconnect, FilterRef, GwInfo, MsgIdOnly, Packet, PingReq, Publish, Qos, Register,
    Response, ReturnCode, SearchGw, SubAck, Subscribe, TopicAck, TopicRef, Unsubscribe, WillMsg, WillTopic,
};
use rumqttc::{ConnectReturnCode, QoS};

use self::bench::{Bench, Hold, How, Open};
use crate::world::{At, encode};

/// The modes in which everything here is tried.
const MODES: [Mode; 2] = [Mode::Aggregating, Mode::Transparent];

/// The peer of the client that a conversation is about, n1.
const A: At = 1;

/// The states by groups, each with how it looks from outside ([`Look`]). `waiting` is a group of sleepers for which
/// something waits; what stands after `=` was under way when they fell asleep.
///
/// `broker?`: the broker of a client's own link has not accepted it yet (transparent mode).
///
/// Probes, each on a conversation of its own: `ping` is answered so; T_RETRY later `retry` is heard; a `message` of the
/// broker on s/1 brings this; a message and a `ping`, this (`fetch`).
const STATES: &str = "
group      state        ping              retry             message      fetch
strangers  none         DISCONNECT        -                 -            DISCONNECT
strangers  gone         DISCONNECT        -                 -            DISCONNECT
strangers  lost         DISCONNECT        -                 -            DISCONNECT
handshake  topic?       -                 -                 -            -
handshake  msg?         -                 -                 -            -
handshake  broker?      -                 -                 -            -
active     active       PINGRESP          -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
active     reg          PINGRESP          REGISTER_m        -            PINGRESP
active     pub1         PINGRESP          PUBLISH_q1_m_dup  -            PINGRESP
active     pub2         PINGRESP          PUBLISH_q2_m_dup  -            PINGRESP
active     rel          PINGRESP          PUBREL_m          -            PINGRESP
active     paused       PINGRESP          -                 -            PINGRESP
active     declined     PINGRESP          -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
active     up1          PINGRESP          -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
active     up2          PINGRESP          -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
active     up3          PINGRESP          -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
over       active&topic? PINGRESP         -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
over       active&msg?  PINGRESP          -                 PUBLISH_q1_n PUBLISH_q1_n,PINGRESP
asleep     asleep       PINGRESP          -                 -            PUBLISH_q1_n
asleep     asleep=up1   PINGRESP          -                 -            PUBLISH_q1_n
asleep     asleep=up2   PINGRESP          -                 -            PUBLISH_q1_n
asleep     asleep=up3   PINGRESP          -                 -            PUBLISH_q1_n
asleep     asleep+pub   PUBLISH_q1_n      -                 -            PUBLISH_q1_n
asleep     asleep+reg   REGISTER_n        -                 -            REGISTER_n
asleep     asleep=pub1  PUBLISH_q1_m_dup  -                 -            PUBLISH_q1_m_dup
asleep     asleep=pub2  PUBLISH_q2_m_dup  -                 -            PUBLISH_q2_m_dup
asleep     asleep=rel   PUBREL_m          -                 -            PUBREL_m
over       asleep&topic? PINGRESP         -                 -            PUBLISH_q1_n
awake      awake-reg    REGISTER_m        REGISTER_m        -            REGISTER_m
awake      awake-pub1   PUBLISH_q1_m_dup  PUBLISH_q1_m_dup  -            PUBLISH_q1_m_dup
awake      awake-pub2   PUBLISH_q2_m_dup  PUBLISH_q2_m_dup  -            PUBLISH_q2_m_dup
awake      awake-rel    PUBREL_m          PUBREL_m          -            PUBREL_m
-          fresh        PINGRESP          -                 -            PINGRESP
-          back         PINGRESP          -                 REGISTER_n   REGISTER_n,PINGRESP
";

/// What each message brings in each state: states or groups of [`STATES`] and the cell for them; `session` is everybody
/// but strangers and handshakes, and later entries of a message go before earlier ones. A cell is one of
///
/// `-`      nothing is sent;
/// `ok`     the answer of the message, and what the broker sees of it ([`messages`]);
/// `held`   the broker sees it and has yet to answer;
/// `old`    the answer, and nothing for the broker;
/// `D`      DISCONNECT;
/// `again`  what is open is asked again, with DUP where the message has a place for it;
/// `reg`, `pub`, `rel`   REGISTER, PUBLISH, PUBREL; `ok+reg` both;
/// `?`      the digest does not say: only what must never happen (digest 3.21) may not.
///
/// `>state` is the state afterwards, if it is another one; `>base` the one that a handshake came over; `>?` what the
/// digest does not say. `a/b` is a with CleanSession 1 and b with CleanSession 0.
///
/// Strangers get DISCONNECT for what needs a session and nothing for an answer; in a handshake other messages
/// are dropped, but for those of a client that goes on with the session it has, which must be answered (N-12).
const TABLE: &str = "
ADVERTISE            strangers handshake session -                                           | R-014 N-08
GWINFO               strangers handshake session -                                           | R-014 N-08
SEARCHGW             strangers handshake session ok                                          | R-012
CONNECT              none topic? msg? ok>fresh; broker? -; gone lost ok>fresh/ok>back;                  | R-020 R-026 R-030
                     session ok>fresh/ok>back; up1 asleep=up1 ok>fresh/ok>back=up1;          | R-029 R-031 R-136
                     up2 asleep=up2 ok>fresh/ok>back=up2; up3 asleep=up3 ok>fresh/ok>back=up3; | R-064
                     reg pub1 pub2 paused declined ok>fresh/ok+reg>reg;                      | R-058
                     asleep+pub asleep+reg asleep=pub1 asleep=pub2 ok>fresh/ok+reg>reg;      | R-136
                     awake-reg awake-pub1 awake-pub2 ok>fresh/ok+reg>reg;                    | R-136
                     rel ok>fresh/ok+rel; asleep=rel awake-rel ok>fresh/ok+rel>rel           | R-064
CONNECT will         none gone lost handshake ok>topic?; session ok>*&topic?               | R-021 R-026
CONNECT n2           strangers handshake session ok>fresh; broker? ?                         | R-101
CONNECT refused      strangers session ok; handshake over ok>?                               | R-022 R-023 R-025
from gateways        strangers handshake session -                                           | R-003
WILLTOPIC            strangers handshake session -; topic? ok>msg?; msg? ok;                           | R-021 R-026
                     active&topic? ok>active&msg?; active&msg? ok; asleep&topic? ok>asleep&msg? | R-026
WILLTOPIC empty      strangers handshake session -; topic? msg? ok>fresh; over ok>fresh/ok>back        | R-032 R-136
WILLTOPIC bad        strangers handshake session -; topic? msg? ok>none; over ok>base                  | R-028
WILLMSG              strangers handshake session -; msg? ok>fresh; active&msg? ok>fresh/ok>back | R-021 R-027
REGISTER             strangers D; handshake -; session ok; over ok>base                      | R-050 R-142
REGISTER s/1         strangers D; handshake -; session ok; over ok>base                      | R-052
REGISTER bad         strangers D; handshake -; session ok; over ok>base                      | R-053
REGACK stray         strangers handshake session -                                           | R-057 R-102
REGACK 00            strangers handshake session -; reg pub>pub1; awake-reg pub>awake-pub1   | R-055 R-134
REGACK 01            strangers handshake session -; reg ->declined; awake-reg ping>asleep+reg | R-057
REGACK 02            strangers handshake session -; reg ->active; awake-reg ping>asleep      | R-057
REGACK 03            strangers handshake session -; reg ->active; awake-reg ping>asleep      | R-057
REGACK 80            strangers handshake session -; reg ->active; awake-reg ping>asleep      | R-057 2.1
PUBLISH q0           strangers D; handshake -; session ok; over ok>base                      | R-060 R-142
PUBLISH q1           strangers D; handshake -; session ok; over ok>base;                     | R-061
                     up1 held>up1+1; asleep=up1 held>asleep=up1+1                            | R-062 R-074
PUBLISH q2           strangers D; handshake -; session ok; over ok>base;                     | R-064
                     up1 held>up1+2; asleep=up1 held>asleep=up1+2                            | R-062 R-074
PUBLISH q1 dup       strangers D; handshake -; session ok; over ok>base; up1 asleep=up1 -;   | R-063
                     up2 up3 asleep=up2 asleep=up3 ?                                         |
PUBLISH q2 dup       strangers D; handshake -; session ok; over ok>base; up1 asleep=up1 ?;   | R-064
                     up2 up3 asleep=up2 asleep=up3 old                                       | R-064
PUBLISH predefined   strangers D; handshake -; session ok; over ok>base;                     | R-068
                     up1 held>up1+1; asleep=up1 held>asleep=up1+1                            | R-062 R-074
PUBLISH short        strangers D; handshake -; session ok; over ok>base;                     | R-070
                     up1 held>up1+1; asleep=up1 held>asleep=up1+1                            | R-062 R-074
PUBLISH refused      strangers D; handshake -; session ok; over ok>base                      | R-066 to R-072
PUBLISH q-1          strangers handshake session ok                                          | R-075 R-077
PUBLISH q-1 refused  strangers handshake session -                                           | R-076 N-08
PUBACK stray         strangers handshake session -                                           | R-102 R-114
PUBACK 00            strangers handshake session -; pub1 ->active; awake-pub1 ping>asleep;   | R-095 R-133
                     asleep=pub1 ->asleep                                                    | R-095
PUBACK 01            strangers handshake session -; pub1 pub2 ->paused;                      | R-099
                     awake-pub1 ping>asleep+pub; awake-pub2 ping>asleep+pub2;                | R-099
                     asleep=pub1 asleep=pub2 ?                                               |
PUBACK 02            strangers handshake session -; pub1 pub2 reg>reg;                       | R-098
                     awake-pub1 awake-pub2 reg>awake-reg; asleep=pub1 asleep=pub2 ?          | R-098
PUBACK 03            strangers handshake session -; pub1 pub2 ->active;                      | R-099
                     awake-pub1 awake-pub2 ping>asleep; asleep=pub1 asleep=pub2 ->asleep     | R-099
PUBREC stray         strangers handshake -; session ok                                       | R-095 R-114
PUBREC               strangers handshake -; session ok; pub2 ok>rel; awake-pub2 ok>awake-rel; | R-095 R-114
                     asleep=pub2 ok>asleep=rel                                               | R-095 N-11
PUBREL stray         strangers handshake -; session ok                                       | R-064
PUBREL               strangers handshake -; session ok; up2 ->up3; up3 -;                    | R-064 R-062
                     asleep=up2 ->asleep=up3; asleep=up3 -                                   | R-142
PUBCOMP stray        strangers handshake session -                                           | R-114
PUBCOMP              strangers handshake session -; rel ->active; asleep=rel ->asleep;       | R-095
                     awake-rel ping>asleep                                                   | R-133
SUBSCRIBE            strangers D; handshake -; session ok; over ok>base                      | R-085 to R-089
SUBSCRIBE refused    strangers D; handshake -; session ok; over ok>base                      | R-088 R-090
UNSUBSCRIBE          strangers D; handshake -; session ok; over ok>base                      | R-093
UNSUBSCRIBE unknown  strangers D; handshake -; session ok; over ok>base                      | R-094
PINGREQ              strangers D; handshake -; active ok; over ok>base; awake again;         | R-115 R-118 R-135
                     asleep asleep=up1 asleep=up2 asleep=up3 ok; asleep+pub pub>awake-pub1;  | R-132 R-140
                     asleep+reg reg>awake-reg; asleep=pub1 again>awake-pub1;                 | R-134 R-144
                     asleep=pub2 again>awake-pub2; asleep=rel again>awake-rel                | R-144
PINGREQ n9           strangers D; handshake -; session D; over D>?                           | R-116 R-118
PINGRESP             strangers handshake session -                                           | R-117 R-102
DISCONNECT           strangers D; handshake D>none; session D>gone                           | R-120 R-122 R-137
DISCONNECT 600       strangers D; handshake D>none; asleep D; active over D>asleep;          | R-130 R-138
                     reg D>asleep+reg; pub1 D>asleep=pub1; pub2 D>asleep=pub2;               | R-131 R-144
                     rel D>asleep=rel; paused D>asleep+pub; declined awake-reg D>asleep+reg; | R-131 R-138
                     up1 D>asleep=up1; up2 D>asleep=up2; up3 D>asleep=up3;                   | R-064
                     awake-pub1 D>asleep=pub1; awake-pub2 D>asleep=pub2; awake-rel D>asleep=rel | R-138
WILLTOPICUPD         strangers D; handshake -; session ok; over ok>base                      | R-040 R-041 R-043
WILLTOPICUPD bad     strangers D; handshake -; session ok; over ok>base                      | R-028
WILLMSGUPD           strangers D; handshake -; session ok; over ok>base                      | R-040 R-043
reserved             strangers handshake session -                                           | R-003
malformed            strangers handshake session -                                           | R-002 R-153
";

/// How a state looks from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    ping: String,
    retry: String,
    message: String,
    fetch: String,
    /// WILLTOPIC and WILLMSG: whether a handshake is open, and how far.
    handshake: [String; 2],
    /// What the broker has not answered, once it does.
    release: String,
    /// T_WAIT later.
    later: String,
}

/// One message, what it brings where it is served, and what the broker sees of it.
struct Message {
    octets: Vec<u8>,
    answer: String,
    broker: String,
}

#[test]
fn every_state_looks_as_it_should() {
    for how in hows() {
        for state in states(how.mode) {
            let stage = || stage(how, &state);
            assert_eq!(look(&stage), expected_look(&state), "{state} {how:?}");
        }
    }
}

#[test]
fn every_message_has_the_right_answer_in_every_state_of_a_clean_session() {
    check_all(|how| how.clean && !how.forwarded);
}

#[test]
fn every_message_has_the_right_answer_in_every_state_of_a_persistent_session() {
    check_all(|how| !how.clean && !how.forwarded);
}

#[test]
fn every_message_has_the_right_answer_in_every_state_through_a_forwarder() {
    check_all(|how| how.forwarded);
}

#[track_caller]
fn check_all(wanted: impl Fn(&How) -> bool) {
    let mut wrong = Vec::new();
    let mut cells = 0;
    for how in hows().into_iter().filter(wanted) {
        for (name, row) in rows() {
            for state in states(how.mode) {
                let cell = row.get(&state).unwrap_or_else(|| panic!("{name} in {state}"));
                let variants = messages(&name, &stage(how, &state)).len();
                for index in 0..if how.has_variants() { variants } else { 1 } {
                    cells += 1;
                    let place = format!("{name} ({index}) in {state}, {how:?}: ");
                    if let Err(difference) = check(how, &state, &name, index, cell) {
                        wrong.push(place + &difference);
                    }
                }
            }
        }
    }
    assert!(cells > 3_000, "{cells}");
    assert!(wrong.is_empty(), "{} of {cells} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Plays one message in one state and compares; the difference is in words.
fn check(how: How, state: &str, name: &str, index: usize, cell: &str) -> Result<(), String> {
    let cell = match cell.split_once('/') {
        Some((clean, persistent)) => {
            if how.clean {
                clean
            } else {
                persistent
            }
        }
        None => cell,
    };
    let (codes, after) = cell.split_once('>').unwrap_or((cell, state));
    let after = match (after, state.split_once('&')) {
        ("base", Some((base, _))) => base.to_owned(),
        ("*&topic?", Some((base, _))) => format!("{base}&topic?"),
        ("*&topic?", None) => format!("{state}&topic?"),
        _ => after.to_owned(),
    };
    let play = || {
        let mut bench = stage(how, state);
        let message = messages(name, &bench).swap_remove(index);
        bench.send_octets(A, &message.octets);
        (bench, message)
    };
    let (mut bench, message) = play();
    let (heard, seen) = (bench.heard(A), bench.seen());
    if codes == "?" {
        return Ok(());
    }
    let answer = answer(codes, state, &message.answer);
    if !matches(&answer, &heard) {
        return Err(format!("heard {heard:?}, not {answer:?}"));
    }
    let broker = broker(codes, state, &after, how, &message.broker);
    let has_moved = after != state && ["gone", "fresh", "none"].contains(&after.as_str());
    let connects =
        codes.starts_with("ok") && ["CONNECT", "CONNECT n2", "WILLTOPIC empty", "WILLMSG"].contains(&name);
    if how.mode == Mode::Transparent && (has_moved || connects) {
        check_link(&seen, &after, how)?;
    } else if sorted(&seen) != sorted(&broker) {
        return Err(format!("the broker saw {seen:?}, not {broker:?}"));
    }
    if after == "?" {
        return Ok(());
    }
    let expected = expected_look(&after);
    if index == 0 && !how.forwarded {
        let look = look(&|| play().0);
        if look != expected {
            return Err(format!("afterwards {look:?}, not {after}: {expected:?}"));
        }
    } else {
        // Not everything again for its variants.
        let look = look_of_messages(&|| play().0);
        if look != [expected.message, expected.fetch] {
            return Err(format!("afterwards {look:?}, not {after}"));
        }
    }
    if matches!(after.as_str(), "none" | "gone" | "lost") {
        let kept = after != "none" && !how.clean;
        let (mut bench, _) = play();
        bench.hold = bench.hold.min(Hold::Publish);
        bench.forget();
        bench.publish("s/1", "late", QoS::AtLeastOnce);
        bench.send(A, connect("n1", false, false));
        let heard = coarse(&bench.heard(A));
        let expected = match state {
            _ if !kept => "CONNACK",
            "rel" | "asleep=rel" | "awake-rel" => "CONNACK,PUBREL_m",
            _ => "CONNACK,REGISTER_n",
        };
        if heard != expected {
            return Err(format!("back again {heard:?}"));
        }
    }
    Ok(())
}

/// What the client hears, in words; `*` is anything.
fn answer(codes: &str, state: &str, ok: &str) -> String {
    let code = |code| match code {
        "-" | "held" => "-".to_owned(),
        "ok" | "old" => ok.to_owned(),
        "D" => "DISCONNECT".to_owned(),
        "ping" => "PINGRESP".to_owned(),
        "reg" => "REGISTER * n".to_owned(),
        "pub" => "PUBLISH * q1 n 'x'".to_owned(),
        "rel" => "PUBREL m".to_owned(),
        "again" if state.ends_with("reg") => "REGISTER * m".to_owned(),
        "again" if state.ends_with("pub1") => "PUBLISH * q1 m 'x' dup".to_owned(),
        "again" if state.ends_with("pub2") => "PUBLISH * q2 m 'x' dup".to_owned(),
        "again" if state.ends_with("rel") => "PUBREL m".to_owned(),
        other => panic!("{other} in {state}"),
    };
    codes.split('+').map(code).collect::<Vec<_>>().join(", ")
}

/// What the broker sees, in words, in any order.
fn broker(codes: &str, state: &str, after: &str, how: How, ok: &str) -> String {
    let mut seen = Vec::new();
    if codes.starts_with("ok") || codes == "held" {
        seen.push(ok.to_owned());
    }
    // A message that the client has settled, or that cannot reach it for now, is not left with the broker, whose window is
    // shared (design section 3).
    // On a link of the client's own it waits for the client to take it, asleep or not.
    let unsettled = |state: &str| {
        let state = state.split('&').next().unwrap_or("");
        let open = ["reg", "pub1", "pub2"];
        let waits = ["paused", "declined", "asleep+reg", "asleep+pub", "asleep+pub2"];
        open.contains(&state)
            || (how.mode == Mode::Transparent
                && (waits.contains(&state) || open.iter().any(|open| state.ends_with(open))))
    };
    if unsettled(state) && !unsettled(after) {
        seen.push(if state.ends_with("pub2") { "PUBREC" } else { "PUBACK" }.to_owned());
    }
    let has_session = !["none", "gone", "lost", "topic?", "msg?", "broker?"].contains(&state);
    if how.clean && has_session && ["gone", "fresh"].contains(&after) {
        seen.push("UNSUBSCRIBE s/1 v/1 w/+".to_owned());
    }
    seen.retain(|text| text != "-");
    if seen.is_empty() { "-".into() } else { seen.join(", ") }
}

/// What the broker of a client's own link sees when that comes or goes.
fn check_link(seen: &str, after: &str, how: How) -> Result<(), String> {
    let seen: Vec<_> = seen.split(", ").collect();
    let has = |packet: &str| seen.iter().any(|text| text.starts_with(packet));
    if has("PUBLISH") || has("SUBSCRIBE") {
        return Err(format!("the broker saw {seen:?}"));
    }
    // no CONNACK before the broker's.: the session there ends with a clean one here, and with no other.
    if (after == "fresh" && !has("CONNECT")) || (after == "gone" && how.clean && !has("DISCONNECT")) {
        return Err(format!("the broker saw {seen:?}, {after}"));
    }
    Ok(())
}

fn expected_look(state: &str) -> Look {
    let mut words = state.split('&');
    let base = words.next().unwrap_or(state);
    let step = words.next().unwrap_or(base);
    // What is open towards the broker shows only when it answers.
    let (shown, release) = match base.split_once("up1+") {
        Some((before, "1")) => (format!("{before}up1"), "PUBACK,PUBACK"),
        Some((before, "2")) => (format!("{before}up1"), "PUBACK,PUBREC"),
        _ if base.ends_with("up1") => (base.to_owned(), "PUBACK"),
        _ if base.ends_with("up3") => (base.to_owned(), "PUBCOMP"),
        _ if base == "broker?" => (base.to_owned(), "CONNACK"),
        _ => (base.to_owned(), "-"),
    };
    let shown = if shown.starts_with("back=") { "back".to_owned() } else { shown };
    let shown = if shown == "asleep+pub2" { "asleep+pub".to_owned() } else { shown };
    let lines = STATES.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = lines.into_iter().find(|words| words[1] == shown);
    let [_, _, ping, retry, message, fetch] = found.unwrap_or_else(|| panic!("{shown}"))[..] else {
        panic!()
    };
    let two = |text: &str| if base == "asleep+pub2" { text.replace("q1", "q2") } else { text.to_owned() };
    Look {
        ping: two(ping),
        retry: retry.into(),
        message: message.into(),
        fetch: two(fetch),
        handshake: match step {
            "topic?" => ["WILLMSGREQ".into(), "-".into()],
            "msg?" => ["-".into(), "CONNACK".into()],
            _ => ["-".into(), "-".into()],
        },
        release: release.into(),
        later: match base {
            "paused" => "PUBLISH".into(),
            "declined" => "REGISTER".into(),
            _ => "-".into(),
        },
    }
}

/// Probes a state in several conversations, each a little later.
fn look(stage: &dyn Fn() -> Bench) -> Look {
    let begin = || {
        let mut bench = stage();
        bench.pass(Duration::from_secs(2));
        bench.forget();
        bench
    };
    let mut bench = begin();
    bench.pass(Duration::from_secs(9));
    let retry = coarse(&bench.heard(A));
    // Without it WILLMSG might be a repetition.
    bench.send(A, Packet::PingResp);
    bench.send(A, Packet::WillMsg(WillMsg { message: b"gone" }));
    let will_msg = coarse(&bench.heard(A));
    bench.send(A, will_topic(b"will/t"));
    let handshake = [coarse(&bench.heard(A)), will_msg];

    let mut bench = begin();
    bench.send(A, PING);
    let ping = coarse(&bench.heard(A));
    bench.release();
    let release = coarse(&bench.heard(A));
    let mut later = "-".to_owned();
    // What is open is asked again until then.
    if ping == "PINGRESP" && retry == "-" {
        bench.pass(Duration::from_secs(340));
        later = coarse(&bench.heard(A)).chars().take_while(|c| *c != '_').collect();
    }

    let [message, fetch] = look_of_messages(stage);
    Look { ping, retry, message, fetch, handshake, release, later }
}

fn look_of_messages(stage: &dyn Fn() -> Bench) -> [String; 2] {
    let mut bench = stage();
    bench.pass(Duration::from_secs(2));
    bench.forget();
    bench.publish("s/1", "x", QoS::AtLeastOnce);
    let message = bench.heard(A);
    bench.send(A, PING);
    let ping = bench.heard(A);
    let both = [&message, &ping].map(String::as_str);
    let fetch = both.into_iter().filter(|text| *text != "-").collect::<Vec<_>>().join(", ");
    [coarse(&message), if fetch.is_empty() { "-".into() } else { coarse(&fetch) }]
}

/// A conversation that has come to a state.
fn stage(how: How, state: &str) -> Bench {
    let mut bench = Bench::with(how, |settings| {
        settings.broker.ack_timeout = Duration::from_secs(3600);
        settings.broker.connect_timeout = Duration::from_secs(3600);
    });
    let b = &mut bench;
    match state {
        "none" => {}
        "topic?" | "msg?" => begin_handshake(b, state),
        "broker?" => {
            b.hold = Hold::Connect;
            b.send(A, connect("n1", false, how.clean));
        }
        _ => {
            connected(b);
            match state.split_once('&') {
                Some((base, step)) => {
                    bring_to(b, base);
                    begin_handshake(b, step);
                }
                None => bring_to(b, state),
            }
        }
    }
    bench.forget();
    bench
}

fn begin_handshake(b: &mut Bench, step: &str) {
    b.send(A, connect("n1", true, b.how.clean));
    if step == "msg?" {
        b.send(A, will_topic(b"will/t"));
    }
}

/// From Active, with nothing open.
fn bring_to(b: &mut Bench, state: &str) {
    match state {
        "active" => {}
        "gone" => {
            b.send(A, sleep(None));
            b.pass(Duration::from_secs(11));
        }
        "lost" => {
            b.pass(Duration::from_secs(661));
            assert!(b.seen().contains("PUBLISH will/t"));
        }
        "reg" => b.publish("w/1", "x", QoS::AtLeastOnce),
        "pub1" => b.publish("s/1", "x", QoS::AtLeastOnce),
        "pub2" => b.publish("s/1", "x", QoS::ExactlyOnce),
        "rel" => {
            bring_to(b, "pub2");
            b.send(A, Packet::PubRec(MsgIdOnly { msg_id: b.open.msg_id }));
        }
        "paused" => {
            bring_to(b, "pub1");
            let Open { msg_id, topic_id } = b.open;
            b.send(A, Packet::PubAck(TopicAck { topic_id, msg_id, code: ReturnCode::Congestion }));
        }
        "declined" => {
            bring_to(b, "reg");
            let Open { msg_id, topic_id } = b.open;
            b.send(A, Packet::RegAck(TopicAck { topic_id, msg_id, code: ReturnCode::Congestion }));
        }
        "up1" => {
            b.hold = Hold::Publish;
            b.send(A, publish(TopicRef::Normal(b.id(A, "u/1")), Qos::AtLeastOnce, 7, "up", false));
        }
        "up2" => {
            b.hold = Hold::Release;
            b.send(A, publish(TopicRef::Normal(b.id(A, "u/1")), Qos::ExactlyOnce, 7, "up", false));
        }
        "up3" => {
            bring_to(b, "up2");
            b.send(A, Packet::PubRel(MsgIdOnly { msg_id: 7 }));
        }
        "asleep" => b.send(A, sleep(Some(600))),
        "asleep+pub" => {
            bring_to(b, "asleep");
            b.publish("s/1", "x", QoS::AtLeastOnce);
        }
        "asleep+reg" => {
            bring_to(b, "asleep");
            b.publish("w/1", "x", QoS::AtLeastOnce);
        }
        "awake-reg" => {
            bring_to(b, "asleep+reg");
            b.send(A, PING);
        }
        "awake-pub1" => {
            bring_to(b, "asleep+pub");
            b.send(A, PING);
        }
        "awake-pub2" => {
            bring_to(b, "asleep");
            b.publish("s/1", "x", QoS::ExactlyOnce);
            b.send(A, PING);
        }
        "awake-rel" => {
            bring_to(b, "awake-pub2");
            b.send(A, Packet::PubRec(MsgIdOnly { msg_id: b.open.msg_id }));
        }
        other => {
            let (asleep, under_way) = other.split_once('=').unwrap_or_else(|| panic!("{other}"));
            assert_eq!(asleep, "asleep");
            bring_to(b, under_way);
            bring_to(b, "asleep");
        }
    }
}

/// n1 is Active with a Will, subscribed to s/1, v/1 and w/+, and has an id for u/1 to publish on.
fn connected(b: &mut Bench) {
    b.send(A, connect("n1", true, b.how.clean));
    b.send(A, will_topic(b"will/t"));
    b.send(A, Packet::WillMsg(WillMsg { message: b"gone" }));
    for (msg_id, filter, qos) in
        [(1, "s/1", Qos::ExactlyOnce), (2, "v/1", Qos::AtMostOnce), (3, "w/+", Qos::ExactlyOnce)]
    {
        b.send(A, subscribe(msg_id, qos, FilterRef::Name(filter.as_bytes())));
    }
    b.send(A, register(4, b"u/1"));
    b.send(A, PING);
    b.expect(
        A,
        "WILLTOPICREQ, WILLMSGREQ, CONNACK 00, SUBACK q2 s/1 1 00, SUBACK q0 v/1 2 00, SUBACK q2 0000 3 00, \
         REGACK u/1 4 00, PINGRESP",
    );
    b.seen();
}

/// The messages of a row.
fn messages(name: &str, b: &Bench) -> Vec<Message> {
    let Open { msg_id, topic_id } = b.open;
    let u = if b.knows(A, "u/1") { b.id(A, "u/1") } else { 0x7776 };
    let normal = TopicRef::Normal(u);
    let one = |packet: Packet<'_>, answer: &str, broker: &str| {
        vec![Message { octets: encode(&packet).to_vec(), answer: answer.into(), broker: broker.into() }]
    };
    let quiet = |packet: Packet<'_>| one(packet, "-", "-");
    let ack = |topic_id, msg_id, code: u8| TopicAck { topic_id, msg_id, code: ReturnCode::from(code) };
    let own = if msg_id == 77 { "77" } else { "m" };
    let all = |lists: Vec<Vec<Message>>| -> Vec<Message> { lists.into_iter().flatten().collect() };
    let raw = |list: &[&[u8]]| {
        let message =
            |octets: &&[u8]| Message { octets: octets.to_vec(), answer: "-".into(), broker: "-".into() };
        list.iter().map(message).collect::<Vec<_>>()
    };
    let (q0, q1, q2) = (Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce);
    match name {
        "ADVERTISE" => quiet(Packet::Advertise(Advertise { gw_id: 9, duration: 900 })),
        "SEARCHGW" => one(Packet::SearchGw(SearchGw { radius: 1 }), "GWINFO 2A", "-"),
        "GWINFO" => all(vec![
            quiet(Packet::GwInfo(GwInfo { gw_id: 9, gw_add: &[] })),
            quiet(Packet::GwInfo(GwInfo { gw_id: 9, gw_add: &[10, 0, 0, 7] })),
        ]),
        "CONNECT" => one(connect("n1", false, b.how.clean), "CONNACK 00", "-"),
        "CONNECT will" => one(connect("n1", true, b.how.clean), "WILLTOPICREQ", "-"),
        "CONNECT n2" => all(vec![
            one(connect("n2", false, true), "CONNACK 00", "-"),
            one(connect("n2", false, false), "CONNACK 00", "-"),
        ]),
        "CONNECT refused" => {
            let connect = |protocol_id, will, client_id| {
                let clean_session = b.how.clean;
                let duration = 600;
                let connect = Connect { will, clean_session, protocol_id, duration, client_id };
                one(Packet::Connect(connect), "CONNACK 03", "-")
            };
            all(vec![
                connect(2, false, b"n1"),
                connect(0, true, b"n1"),
                connect(1, false, b""),
                connect(1, true, b"\xFF"),
            ])
        }
        "from gateways" => all(vec![
            quiet(Packet::ConnAck(Response { code: ReturnCode::Accepted })),
            quiet(Packet::WillTopicReq),
            quiet(Packet::WillMsgReq),
            quiet(Packet::SubAck(SubAck { qos: q0, topic_id, msg_id, code: ReturnCode::Accepted })),
            quiet(Packet::UnsubAck(MsgIdOnly { msg_id })),
            quiet(Packet::WillTopicResp(Response { code: ReturnCode::Accepted })),
            quiet(Packet::WillMsgResp(Response { code: ReturnCode::Accepted })),
        ]),
        "WILLTOPIC" => one(will_topic(b"will/t"), "WILLMSGREQ", "-"),
        "WILLTOPIC empty" => {
            let mut empty = raw(&[&[2, 7], &[3, 7, 0]]);
            empty.iter_mut().for_each(|message| message.answer = "CONNACK 00".into());
            empty
        }
        "WILLTOPIC bad" => {
            let bad = |qos, topic| {
                one(Packet::WillTopic(WillTopic { qos, retain: false, topic }), "CONNACK 03", "-")
            };
            all(vec![bad(q1, b"w/+"), bad(q1, b"\xC3\x28"), bad(Qos::MinusOne, b"will/t")])
        }
        "WILLMSG" => one(Packet::WillMsg(WillMsg { message: b"gone" }), "CONNACK 00", "-"),
        "REGISTER" => one(register(7, b"r/1"), "REGACK r/1 7 00", "-"),
        "REGISTER s/1" => one(register(0, b"s/1"), "REGACK s/1 0 00", "-"),
        "REGISTER bad" => {
            let bad = |name| one(register(7, name), "REGACK 0000 7 03", "-");
            all(vec![bad(b"r/+"), bad(b"#"), bad(b""), bad(b"\xC3\x28"), bad(b"r\0")])
        }
        "REGACK stray" => all(vec![
            quiet(Packet::RegAck(ack(0x7777, 78, 0))),
            quiet(Packet::RegAck(ack(topic_id, 78, 0))),
            quiet(Packet::RegAck(ack(0x7778, msg_id, 3))),
        ]),
        "REGACK 00" => quiet(Packet::RegAck(ack(topic_id, msg_id, 0))),
        "REGACK 01" => quiet(Packet::RegAck(ack(topic_id, msg_id, 1))),
        "REGACK 02" => quiet(Packet::RegAck(ack(topic_id, msg_id, 2))),
        "REGACK 03" => quiet(Packet::RegAck(ack(topic_id, msg_id, 3))),
        "REGACK 80" => quiet(Packet::RegAck(ack(topic_id, msg_id, 0x80))),
        "PUBLISH q0" => all(vec![
            one(publish(normal, q0, 0, "x", false), "-", "PUBLISH u/1 q0 'x'"),
            one(publish(normal, q0, 5, "", true), "-", "PUBLISH u/1 q0 ''"),
        ]),
        "PUBLISH q1" => one(publish(normal, q1, 8, "x", false), "PUBACK u/1 8 00", "PUBLISH u/1 q1 'x'"),
        "PUBLISH q2" => one(publish(normal, q2, 8, "x", false), "PUBREC 8", "PUBLISH u/1 q2 'x'"),
        "PUBLISH q1 dup" => one(publish(normal, q1, 7, "up", true), "PUBACK u/1 7 00", "PUBLISH u/1 q1 'up'"),
        "PUBLISH q2 dup" => one(publish(normal, q2, 7, "up", true), "PUBREC 7", "PUBLISH u/1 q2 'up'"),
        "PUBLISH predefined" => {
            let packet = publish(TopicRef::Predefined(1), q1, 8, "x", false);
            one(packet, "PUBACK 0001 8 00", "PUBLISH pre/one q1 'x'")
        }
        "PUBLISH short" => {
            let packet = publish(TopicRef::Short(*b"ab"), q1, 8, "x", false);
            one(packet, "PUBACK 6162 8 00", "PUBLISH ab q1 'x'")
        }
        "PUBLISH refused" => {
            let refused = |(topic, code): (TopicRef, &str)| {
                all([q0, q1, q2]
                    .map(|qos| {
                        let msg_id = if qos == q0 { 0 } else { 8 };
                        let answer = format!("PUBACK {:04X} {msg_id} {code}", topic.raw());
                        one(publish(topic, qos, 8, "x", false), &answer, "-")
                    })
                    .into())
            };
            let topics = [
                (TopicRef::Normal(0x7776), "02"),
                (TopicRef::Normal(0x0001), "02"),
                (TopicRef::Normal(0x0000), "02"),
                (TopicRef::Normal(0xFFFF), "02"),
                (TopicRef::Predefined(99), "02"),
                (TopicRef::Predefined(0), "02"),
                (TopicRef::Short(*b"a#"), "03"),
                (TopicRef::Short([0xC3, 0x28]), "03"),
                (TopicRef::Short([b'a', 0]), "03"),
                (TopicRef::Reserved(1), "03"),
            ];
            all(topics.map(refused).into())
        }
        "PUBLISH q-1" => all(vec![
            one(
                publish(TopicRef::Predefined(1), Qos::MinusOne, 0, "x", false),
                "-",
                "PUBLISH pre/one q0 'x'",
            ),
            one(publish(TopicRef::Short(*b"ab"), Qos::MinusOne, 9, "", false), "-", "PUBLISH ab q0 ''"),
        ]),
        "PUBLISH q-1 refused" => {
            let refused = |topic| quiet(publish(topic, Qos::MinusOne, 0, "x", false));
            all(vec![
                refused(normal),
                refused(TopicRef::Normal(3)),
                refused(TopicRef::Predefined(99)),
                refused(TopicRef::Short(*b"a#")),
                refused(TopicRef::Reserved(1)),
            ])
        }
        "PUBACK stray" => all(vec![
            quiet(Packet::PubAck(ack(0x7777, 78, 0))),
            quiet(Packet::PubAck(ack(topic_id, 78, 3))),
            quiet(Packet::PubAck(ack(0x7778, msg_id, 2))),
            quiet(Packet::PubAck(ack(0x7778, 0, 2))),
        ]),
        "PUBACK 00" => quiet(Packet::PubAck(ack(topic_id, msg_id, 0))),
        "PUBACK 01" => quiet(Packet::PubAck(ack(topic_id, msg_id, 1))),
        "PUBACK 02" => quiet(Packet::PubAck(ack(topic_id, msg_id, 2))),
        "PUBACK 03" => all(vec![
            quiet(Packet::PubAck(ack(topic_id, msg_id, 3))),
            quiet(Packet::PubAck(ack(topic_id, msg_id, 0x80))),
        ]),
        "PUBREC stray" => one(Packet::PubRec(MsgIdOnly { msg_id: 77 }), "PUBREL 77", "-"),
        "PUBREC" => one(Packet::PubRec(MsgIdOnly { msg_id }), &format!("PUBREL {own}"), "-"),
        "PUBREL stray" => one(Packet::PubRel(MsgIdOnly { msg_id: 55 }), "PUBCOMP 55", "-"),
        "PUBREL" => one(Packet::PubRel(MsgIdOnly { msg_id: 7 }), "PUBCOMP 7", "-"),
        "PUBCOMP stray" => quiet(Packet::PubComp(MsgIdOnly { msg_id: 78 })),
        "PUBCOMP" => quiet(Packet::PubComp(MsgIdOnly { msg_id })),
        "SUBSCRIBE" => {
            let ask = |qos, topic, answer: &str, broker: &str| {
                one(
                    subscribe(7, qos, topic),
                    &format!("SUBACK {answer} 7 00"),
                    &format!("SUBSCRIBE {broker}"),
                )
            };
            all(vec![
                ask(q1, FilterRef::Name(b"x/1"), "q1 x/1", "x/1 q1"),
                ask(q2, FilterRef::Name(b"s/1"), "q2 s/1", "s/1 q2"),
                ask(q2, FilterRef::Name(b"x/+"), "q2 0000", "x/+ q2"),
                ask(q0, FilterRef::Predefined(1), "q0 0001", "pre/one q0"),
                ask(q1, FilterRef::Short(*b"ab"), "q1 6162", "ab q1"),
                ask(q1, FilterRef::Short(*b"/#"), "q1 0000", "/# q1"),
            ])
        }
        "SUBSCRIBE refused" => {
            let ask = |qos, topic, code: &str| {
                one(subscribe(7, qos, topic), &format!("SUBACK q0 0000 7 {code}"), "-")
            };
            all(vec![
                ask(q1, FilterRef::Predefined(99), "02"),
                ask(q1, FilterRef::Reserved(b"\x00\x01"), "03"),
                ask(Qos::MinusOne, FilterRef::Name(b"x/1"), "03"),
                ask(q1, FilterRef::Name(b"a#"), "03"),
                ask(q1, FilterRef::Name(b"a/#/b"), "03"),
                ask(q1, FilterRef::Name(b"+a"), "03"),
                ask(q1, FilterRef::Name(b"\xC3\x28"), "03"),
                ask(q1, FilterRef::Short(*b"a#"), "03"),
                ask(q1, FilterRef::Short(*b"#/"), "03"),
            ])
        }
        "UNSUBSCRIBE" => {
            let topic = FilterRef::Name(b"v/1");
            one(Packet::Unsubscribe(Unsubscribe { msg_id: 7, topic }), "UNSUBACK 7", "UNSUBSCRIBE v/1")
        }
        "UNSUBSCRIBE unknown" => {
            let ask = |topic| one(Packet::Unsubscribe(Unsubscribe { msg_id: 7, topic }), "UNSUBACK 7", "-");
            all(vec![
                ask(FilterRef::Name(b"y/1")),
                ask(FilterRef::Name(b"a#")),
                ask(FilterRef::Predefined(99)),
                ask(FilterRef::Short(*b"zz")),
                ask(FilterRef::Reserved(b"\x00\x01")),
            ])
        }
        "PINGREQ" => all(vec![
            one(PING, "PINGRESP", "-"),
            one(Packet::PingReq(PingReq { client_id: b"n1" }), "PINGRESP", "-"),
        ]),
        "PINGREQ n9" => quiet(Packet::PingReq(PingReq { client_id: b"n9" })),
        "PINGRESP" => quiet(Packet::PingResp),
        "DISCONNECT" => all(vec![quiet(sleep(None)), quiet(sleep(Some(0)))]),
        "DISCONNECT 600" => quiet(sleep(Some(600))),
        "WILLTOPICUPD" => all(vec![
            one(
                Packet::WillTopicUpd(WillTopic { qos: q1, retain: true, topic: b"will/u" }),
                "WILLTOPICRESP 00",
                "-",
            ),
            one(Packet::WillTopicUpd(WillTopic::EMPTY), "WILLTOPICRESP 00", "-"),
        ]),
        "WILLTOPICUPD bad" => {
            let bad = |qos, topic| {
                one(Packet::WillTopicUpd(WillTopic { qos, retain: false, topic }), "WILLTOPICRESP 03", "-")
            };
            all(vec![bad(q1, b"will/#"), bad(q1, b"\xC3\x28"), bad(Qos::MinusOne, b"will/u")])
        }
        "WILLMSGUPD" => all(vec![
            one(Packet::WillMsgUpd(WillMsg { message: b"other" }), "WILLMSGRESP 00", "-"),
            one(Packet::WillMsgUpd(WillMsg { message: b"" }), "WILLMSGRESP 00", "-"),
        ]),
        "reserved" => raw(&[
            &[2, 0x03],
            &[6, 0x03, 1, 2, 3, 4],
            &[2, 0x11],
            &[2, 0x19],
            &[2, 0x1E],
            &[4, 0x80, 0, 1],
            &[2, 0xFD],
            &[2, 0xFF],
        ]),
        "malformed" => raw(&[
            &[],
            &[0],
            &[2],
            &[0, 0x16],
            &[1, 0x16],
            &[1, 0, 3],
            &[1, 0, 3, 0x16],
            &[3, 0x16],
            &[2, 0x16, 0],
            &[1, 0, 5, 0x16],
            &[2, 0x04],
            &[5, 0x04, 4, 1, 0],
            &[3, 0x18, 0],
            &[5, 0x18, 0, 1, 0],
            &[3, 0x17, 0],
            &[6, 0x0C, 0, 0, 1, 0],
            &[6, 0x0D, 0, 1, 0, 1],
            &[8, 0x0D, 0, 1, 0, 1, 0, 0],
            &[3, 0x0F, 1],
            &[5, 0x12, 0, 0, 1],
            &[6, 0x12, 1, 0, 1, 1],
            &[8, 0x12, 2, 0, 1, b'a', b'b', b'c'],
            &[2, 0xFE],
            &[3, 0xFE, 0],
            &[4, 0xFE, 0],
            &[2, 0xFE, 0, 2, 0x16],
            &[1, 0, 6, 0xFE, 2, 0x16],
            &[3, 0xFE, 0, 3, 0xFE, 0, 2, 0x16],
            &[3, 0xFE, 0, 3, 0x16],
        ]),
        other => panic!("{other}"),
    }
}

const PING: Packet<'_> = Packet::PingReq(PingReq { client_id: &[] });

fn connect(id: &str, will: bool, clean: bool) -> Packet<'_> {
    Packet::Connect(Connect {
        will,
        clean_session: clean,
        protocol_id: 1,
        duration: 600,
        client_id: id.as_bytes(),
    })
}

fn will_topic(topic: &[u8]) -> Packet<'_> {
    Packet::WillTopic(WillTopic { qos: Qos::AtLeastOnce, retain: false, topic })
}

fn register(msg_id: u16, topic_name: &[u8]) -> Packet<'_> {
    Packet::Register(Register { topic_id: 0x1234, msg_id, topic_name })
}

fn subscribe(msg_id: u16, qos: Qos, topic: FilterRef<'_>) -> Packet<'_> {
    Packet::Subscribe(Subscribe { dup: false, qos, msg_id, topic })
}

fn publish(topic: TopicRef, qos: Qos, msg_id: u16, data: &str, dup: bool) -> Packet<'_> {
    Packet::Publish(Publish { dup, qos, retain: false, topic, msg_id, data: data.as_bytes() })
}

fn sleep(duration: Option<u16>) -> Packet<'static> {
    Packet::Disconnect(Disconnect { duration })
}

/// Every mode with both CleanSessions, and one of them through a forwarder.
fn hows() -> Vec<How> {
    let mut hows = Vec::new();
    for mode in MODES {
        hows.extend([true, false].map(|clean| How { mode, clean, forwarded: false }));
        hows.push(How { mode, clean: mode == Mode::Aggregating, forwarded: true });
    }
    hows
}

/// The states in which messages are tried.
fn states(mode: Mode) -> Vec<String> {
    let tried = lines(STATES).filter(|words| words[0] != "-").map(|words| words[1].to_owned());
    tried.filter(|state| mode == Mode::Transparent || state != "broker?").collect()
}

fn lines(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().skip(2).map(|line| line.split_whitespace().collect())
}

/// The rows of [`TABLE`]: for each message the cell of each state.
fn rows() -> Vec<(String, BTreeMap<String, String>)> {
    const NAME_LEN: usize = 21;
    let mut rows: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty()) {
        let (name, rest) = line.split_at(NAME_LEN);
        if !name.trim().is_empty() {
            rows.push((name.trim().to_owned(), BTreeMap::new()));
        }
        let (entries, _) = rest.split_once('|').unwrap_or_else(|| panic!("{line}"));
        let Some((_, row)) = rows.last_mut() else { panic!("{line}") };
        for entry in entries.split(';').filter(|entry| !entry.trim().is_empty()) {
            let Some((names, cell)) = entry.trim().rsplit_once(' ') else { panic!("{line}: {entry}") };
            for name in names.split_whitespace() {
                let before = row.len();
                let mut hits = 0;
                for words in lines(STATES).filter(|words| words[0] != "-") {
                    let session = !["strangers", "handshake"].contains(&words[0]);
                    if words[0] == name || words[1] == name || (name == "session" && session) {
                        hits += 1;
                        row.insert(words[1].to_owned(), cell.to_owned());
                    }
                }
                assert!(hits > 0, "{line}: no state {name} ({before})");
            }
        }
    }
    rows
}

/// Frames by type, QoS, DUP and whether their MsgId was there before.
fn coarse(text: &str) -> String {
    let frame = |frame: &str| {
        let words: Vec<_> = frame.split(' ').collect();
        match words[0] {
            "PUBLISH" => {
                let dup = if words.contains(&"dup") { "_dup" } else { "" };
                format!("PUBLISH_{}_{}{dup}", words[2], words[3])
            }
            "REGISTER" => format!("REGISTER_{}", words[2]),
            "PUBREL" => format!("PUBREL_{}", words[1]),
            other => other.to_owned(),
        }
    };
    text.split(", ").map(frame).collect::<Vec<_>>().join(",")
}

/// Whether frames in words are as expected, where `*` stands for one word.
fn matches(expected: &str, heard: &str) -> bool {
    let (expected, heard): (Vec<_>, Vec<_>) = (expected.split(' ').collect(), heard.split(' ').collect());
    expected.len() == heard.len() && expected.iter().zip(heard).all(|(e, h)| *e == "*" || *e == h)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut texts: Vec<_> = text.split(", ").collect();
    texts.sort_unstable();
    texts
}
