//! What the gateway takes of memory, of the processor when nothing happens, and of the disk.

use std::fs;
use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::node::{Event, Node};
use mqtt_sn_gateway::wire::Qos;

use super::Bench;
use crate::failure::{Attempt, Failure};
use crate::figures::{Bar, MIB, Row};
use crate::rig::{self, Broker, Kind, Mode, Subject};
use crate::swarm::Swarm;

/// Sensors that are awake.
const AWAKE: usize = 10_000;

/// Topic ids of each.
const TOPICS: usize = 10;

/// Sensors that sleep.
const ASLEEP: usize = 100_000;

/// Sockets open at a time: a sensor that sleeps needs none.
const AT_ONCE: usize = 5_000;

/// For how long they sleep: nobody is to count as lost.
const SLEEP: Duration = Duration::from_secs(36_000);

/// Octets of memory for an idle session.
const SESSION_BAR: f64 = 1024.0;

/// Octets of memory of a gateway with 100,000 sleepers.
const SLEEPERS_BAR: f64 = 150.0 * MIB;

/// Octets for each client, topic id and sleeper.
pub(super) fn held(bench: &mut Bench) -> Result<(), Failure> {
    let broker = Broker::start(Kind::Sink)?;
    awake(bench, &broker)?;
    let gateway = Subject::gateway(bench.program(), broker.addr, Mode::Aggregating)?;
    let before = gateway.process.memory()?;
    let start = Instant::now();
    for first in (0..ASLEEP).step_by(AT_ONCE) {
        let mut swarm =
            Swarm::new(gateway.addr, first..first + AT_ONCE, |options| options.clean_session = false)?;
        swarm.connect()?;
        swarm.subscribe(Qos::AtLeastOnce, |sensor| format!("bench/down/{sensor}"))?;
        swarm.sleep(SLEEP)?;
    }
    let time = start.elapsed();
    gateway.process.wait_until_idle()?;
    let after = gateway.process.memory()?;
    let sessions = gateway.sessions(bench.program())?;
    if sessions != ASLEEP {
        return Err(Failure::Gateway(format!("has {sessions} sessions of {ASLEEP}")));
    }
    let mut row = Row::new("memory", format!("{ASLEEP} sensors asleep, a subscription each, aggregating"));
    row.tell("seconds", time.as_secs_f64());
    row.tell("octets each", after.saturating_sub(before) as f64 / ASLEEP as f64);
    row.hold("MiB in all", after as f64 / MIB, Bar::AtMost(SLEEPERS_BAR / MIB));
    bench.add(row);
    Ok(())
}

fn awake(bench: &mut Bench, broker: &Broker) -> Result<(), Failure> {
    let gateway = Subject::gateway(bench.program(), broker.addr, Mode::Aggregating)?;
    let empty = gateway.process.memory()?;
    let mut swarm = Swarm::new(gateway.addr, 0..AWAKE, |_| {})?;
    swarm.connect()?;
    gateway.process.wait_until_idle()?;
    let connected = gateway.process.memory()?;
    let each = connected.saturating_sub(empty) as f64 / AWAKE as f64;
    let mut row = Row::new("memory", format!("{AWAKE} sensors connected, aggregating"));
    row.hold("octets an idle session", each, Bar::AtMost(SESSION_BAR));
    bench.add(row);
    for topic in 0..TOPICS {
        register(&mut swarm, topic)?;
    }
    gateway.process.wait_until_idle()?;
    let registered = gateway.process.memory()?;
    let mut row = Row::new("memory", format!("{TOPICS} topics more for each, aggregating"));
    row.tell("octets a topic id", registered.saturating_sub(connected) as f64 / (AWAKE * TOPICS) as f64);
    bench.add(row);
    Ok(())
}

/// Each publishes on one more topic of its own.
fn register(swarm: &mut Swarm, topic: usize) -> Result<(), Failure> {
    let count = swarm.len();
    swarm.publish(|sensor| format!("bench/up/{sensor}/{topic}"))?;
    let published = |_, _: &mut Node, event| usize::from(matches!(event, Event::Published(..)));
    swarm.until("registering", count, published).map(drop)
}

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// Octets of an idle gateway, and of its program built for a router.
const IDLE_BAR: f64 = 12.0;
const PROGRAM_BAR: f64 = 6.0;

/// Wake-ups of an idle gateway in a second: nothing is asked for by turns.
const WAKES_BAR: f64 = 0.2;

/// An idle gateway, as it is released and as it is built for a router.
pub(super) fn idle(bench: &mut Bench) -> Result<(), Failure> {
    let router = rig::build("router")?;
    for (program, profile) in [(bench.program().to_owned(), "release"), (router, "router")] {
        let broker = Broker::start(Kind::Sink)?;
        let gateway = Subject::gateway(&program, broker.addr, Mode::Aggregating)?;
        gateway.process.wait_until_idle()?;
        let before = gateway.process.usage()?;
        sleep(IDLE);
        let used = gateway.process.usage()?.since(before);
        let mut row = Row::new("idle", format!("profile {profile}"));
        let size = fs::metadata(&program).attempt("look at the program")?.len() as f64 / MIB;
        match profile {
            "router" => row.hold("MiB of program", size, Bar::AtMost(PROGRAM_BAR)),
            _ => row.tell("MiB of program", size),
        }
        row.hold("MiB of memory", gateway.process.memory()? as f64 / MIB, Bar::AtMost(IDLE_BAR));
        row.hold("wake-ups a second", used.wakes as f64 / IDLE.as_secs_f64(), Bar::AtMost(WAKES_BAR));
        row.tell("µs of processor time a second", used.cpu.as_secs_f64() * 1e6 / IDLE.as_secs_f64());
        bench.add(row);
    }
    Ok(())
}

/// Rounds of sensors that come, publish and leave, new ones each time.
const ROUNDS: usize = 20;

/// Sensors of a round.
const ROUND: usize = 2_000;

/// Memory after so many rounds at the end, beside that after as many in the middle, when all has found its size.
const COMPARED: usize = 5;
const GROWTH_BAR: f64 = 1.05;

/// Sensors that come and go: nothing of them is to stay.
pub(super) fn soak(bench: &mut Bench) -> Result<(), Failure> {
    soak_in(bench, Mode::Aggregating)?;
    soak_in(bench, Mode::Transparent)
}

fn soak_in(bench: &mut Bench, mode: Mode) -> Result<(), Failure> {
    let broker = Broker::start(Kind::Sink)?;
    let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        let mut swarm = Swarm::new(gateway.addr, round * ROUND..(round + 1) * ROUND, |_| {})?;
        swarm.connect()?;
        register(&mut swarm, round)?;
        swarm.each(|_, node, now| {
            node.disconnect(now);
            Ok(())
        })?;
        swarm.until("leaving", ROUND, |_, _, event| usize::from(event == Event::Disconnected))?;
        memory.push(gateway.process.memory()?);
    }
    let mean = |rounds: Range<usize>| {
        let rounds = memory.get(rounds).unwrap_or_default();
        rounds.iter().sum::<u64>() as f64 / rounds.len() as f64
    };
    let (middle, end) = (mean(ROUNDS / 2 - COMPARED..ROUNDS / 2), mean(ROUNDS - COMPARED..ROUNDS));
    let sessions = gateway.sessions(bench.program())?;
    let case = format!("{ROUNDS} times {ROUND} sensors that come, publish and leave, {mode}");
    let mut row = Row::new("soak", case);
    row.tell("MiB at the end", end / MIB);
    row.hold("of the memory half-way", end / middle, Bar::AtMost(GROWTH_BAR));
    row.hold("sessions left", sessions as f64, Bar::AtMost(0.0));
    bench.add(row);
    Ok(())
}
