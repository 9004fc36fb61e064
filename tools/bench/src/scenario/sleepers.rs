//! Sensors that sleep, and what waits for them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::Event;
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use super::Bench;
use crate::app::App;
use crate::failure::Failure;
use crate::figures::{Bar, Row};
use crate::process;
use crate::rig::{Broker, Mode, Subject};
use crate::stamp;
use crate::swarm::Swarm;

/// Sensors that fetch.
const SLEEPERS: usize = 10_000;

/// Messages that wait for each.
const MESSAGES: usize = 10;

/// Messages on their way to the broker.
const WINDOW: usize = 1_000;

/// How long an application waits for the broker before it looks again.
const PAUSE: Duration = Duration::from_millis(10);

/// Of a core that the gateway or the sensors are to have while these fetch: what they wait for is each other's work.
const BUSY_BAR: f64 = 0.8;

/// For how long they sleep: nobody is to count as lost.
const ASLEEP: Duration = Duration::from_secs(3600);

/// 10,000 asleep with ten messages each, then all wake at once.
pub(super) fn drain(bench: &mut Bench) -> Result<(), Failure> {
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let kind = bench.real_broker();
        let broker = Broker::start(kind)?;
        let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
        let mut swarm = Swarm::new(gateway.addr, 0..SLEEPERS, |_| {})?;
        swarm.connect()?;
        swarm.subscribe(Qos::AtLeastOnce, topic)?;
        swarm.sleep(ASLEEP)?;
        gateway.process.wait_until_idle()?;
        let memory = gateway.process.memory()?;
        let filled = Instant::now();
        fill(&broker)?;
        let filled = filled.elapsed();
        gateway.process.wait_until_idle()?;
        let kept = gateway.process.memory()?.saturating_sub(memory) as f64 / (SLEEPERS * MESSAGES) as f64;
        let (used, own) = (gateway.process.usage()?, process::own_time()?);
        let (time, got) = wake(&mut swarm)?;
        let (used, own) = (gateway.process.usage()?.since(used), process::own_time()?.saturating_sub(own));
        let mut row =
            Row::new("sleepers", format!("{SLEEPERS} with {MESSAGES} QoS 1 messages each, {mode}, {kind}"));
        row.messages_per_s = Some(got as f64 / time.as_secs_f64());
        row.memory_octets = Some(gateway.process.memory()?);
        row.tell("seconds to fetch them", time.as_secs_f64());
        row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / got as f64);
        let share = |used: Duration| used.as_secs_f64() / time.as_secs_f64();
        row.tell("of a core for the gateway", share(used.cpu));
        row.tell("for the sensors", share(own));
        // One of them has always something to do: nothing else holds up who fetches.
        row.hold("of a core, the busier of both", share(used.cpu).max(share(own)), Bar::AtLeast(BUSY_BAR));
        row.lost = Some((SLEEPERS * MESSAGES).saturating_sub(got) as u64);
        row.tell("seconds to publish them", filled.as_secs_f64());
        row.tell("octets a kept message", kept);
        row.hold("lost", (SLEEPERS * MESSAGES).saturating_sub(got) as f64, Bar::AtMost(0.0));
        row.tell("repeated", swarm.retransmissions() as f64);
        bench.add(row);
    }
    Ok(())
}

fn topic(sensor: usize) -> String {
    format!("bench/down/{sensor}")
}

/// Publishes to all of them, each message once the broker has room for it, until the broker has them all.
fn fill(broker: &Broker) -> Result<(), Failure> {
    let mut app = App::connect(broker.addr, "publisher")?;
    for message in 0..SLEEPERS * MESSAGES {
        let topic = TopicName::new(topic(message % SLEEPERS));
        let topic = topic.map_err(|error| Failure::Broker(error.to_string()))?;
        app.publish(&topic, stamp::bytes(), QoS::AtLeastOnce)?;
        while app.connection.unfinished() >= WINDOW {
            app.live(PAUSE, |_| {})?;
        }
    }
    app.settle()
}

/// All wake and fetch; how long that took until the last one slept again, and how many different messages came.
fn wake(swarm: &mut Swarm) -> Result<(Duration, usize), Failure> {
    let count = swarm.len();
    swarm.each(|_, node, now| {
        node.wake(now);
        Ok(())
    })?;
    // Each has a time of its own in it: what comes twice makes up for nothing.
    let mut got = HashSet::new();
    let time = swarm.until("waking and fetching", count, |sensor, _, event| match event {
        Event::Message(message) => {
            got.insert((sensor, message.payload));
            0
        }
        event => usize::from(matches!(event, Event::Drained { .. })),
    })?;
    Ok((time, got.len()))
}
