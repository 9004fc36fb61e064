//! Sensors that all come at once.

use std::time::{Duration, Instant};

use mqtt_sn_gateway::node::Event;

use super::Bench;
use crate::failure::Failure;
use crate::figures::{Bar, Row};
use crate::rig::{Broker, Mode, Subject};
use crate::swarm::Swarm;

/// How many, with which bars: the largest storm has them.
const STORMS: [usize; 3] = [10, 1_000, LARGEST];

const LARGEST: usize = 10_000;

/// Seconds for CONNECT and REGISTER of the largest.
const SECONDS_BAR: f64 = 3.0;

/// Octets of the gateway's memory for each client with a link of its own.
const LINKED_CLIENT_BAR: f64 = 8_000.0;

/// Every sensor connects and registers a topic at the same moment.
pub(super) fn storm(bench: &mut Bench) -> Result<(), Failure> {
    for mode in [Mode::Aggregating, Mode::Transparent] {
        for count in STORMS {
            let kind = bench.real_broker();
            let broker = Broker::start(kind)?;
            let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
            let (memory, used) = (gateway.process.memory()?, gateway.process.usage()?);
            let mut swarm = Swarm::new(gateway.addr, 0..count, |_| {})?;
            let (time, refused) = arrive(&mut swarm)?;
            let used = gateway.process.usage()?.since(used);
            gateway.process.wait_until_idle()?;
            let each = gateway.process.memory()?.saturating_sub(memory) as f64 / count as f64;
            let mut row = Row::new("connect", format!("{count} sensors, {mode}, {kind}"));
            row.memory_octets = Some(gateway.process.memory()?);
            row.tell("µs of processor time a sensor", used.cpu.as_secs_f64() * 1e6 / count as f64);
            if count == LARGEST {
                row.hold("seconds", time.as_secs_f64(), Bar::AtMost(SECONDS_BAR));
                row.hold("refused", refused as f64, Bar::AtMost(0.0));
                row.hold("repeated", swarm.retransmissions() as f64, Bar::AtMost(0.0));
                match mode {
                    Mode::Aggregating => row.tell("octets a client", each),
                    Mode::Transparent => row.hold("octets a client", each, Bar::AtMost(LINKED_CLIENT_BAR)),
                }
            } else {
                row.tell("seconds", time.as_secs_f64());
            }
            bench.add(row);
        }
    }
    Ok(())
}

/// Connects and registers; how long that took until all were through, and how many were refused.
fn arrive(swarm: &mut Swarm) -> Result<(Duration, usize), Failure> {
    let count = swarm.len();
    let start = Instant::now();
    swarm.each(|_, node, now| {
        node.connect(now);
        Ok(())
    })?;
    // It leaves once its topic has an id.
    swarm.publish(|sensor| format!("bench/up/{sensor}"))?;
    let mut refused = 0;
    swarm.until("connecting and registering", count, |_, _, event| match event {
        Event::Published(..) => 1,
        Event::ConnectRefused(_) | Event::Refused(_) | Event::ConnectionLost(_) => {
            refused += 1;
            1
        }
        _ => 0,
    })?;
    Ok((start.elapsed(), refused))
}
