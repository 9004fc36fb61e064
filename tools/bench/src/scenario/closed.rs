//! One message after the other: what a message waits for, when nothing else holds it up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::node::{Event, Outcome};
use mqtt_sn_gateway::wire::Qos;

use super::{Bench, QUIET, WHOLE, publish, topic};
use crate::failure::Failure;
use crate::figures::{Bar, Histogram, Latency, Row, median};
use crate::lone::{self, Span, Spoken};
use crate::rig::{Broker, Kind, Mode, Subject};
use crate::swarm::Swarm;

/// Microseconds that the gateway may add to a lone QoS 1 at p50.
const ADDED_BAR: f64 = 60.0;

/// The p99 of a lone QoS 1, in those of the direct client.
const TIMES_BAR: f64 = 10.0;

/// How long a round takes.
const ROUND: Span = Span { warm_up: Duration::from_millis(200), time: Duration::from_millis(300) };

/// Sensors that do it all together.
const SENSORS: usize = 100;

/// From one sensor and from a hundred, and the same from direct MQTT clients.
pub(super) fn closed(bench: &mut Bench) -> Result<(), Failure> {
    for kind in bench.brokers() {
        let broker = Broker::start(kind)?;
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            alone(bench, &broker, kind, qos)?;
            together(bench, &broker, kind, qos)?;
        }
    }
    Ok(())
}

/// In rounds, each from a start of its own: where the system puts processes that wake each other makes more of a difference than
/// anything they do.
fn alone(bench: &mut Bench, broker: &Broker, kind: Kind, qos: Qos) -> Result<(), Failure> {
    // Beside the broker that people use: the sink is there to be fast with many.
    let is_held = (qos, kind) == (Qos::AtLeastOnce, bench.real_broker());
    let modes = [Mode::Aggregating, Mode::Transparent];
    let (mut client, mut sensors) = (Alone::default(), [Alone::default(), Alone::default()]);
    for _ in 0..if is_held { 9 } else { 3 } {
        client.add(lone::direct(broker.addr, qos, ROUND)?, Duration::ZERO);
        for (mode, sensor) in modes.iter().zip(&mut sensors) {
            let gateway = Subject::gateway(bench.program(), broker.addr, *mode)?;
            let used = gateway.process.usage()?;
            let spoken = lone::sensor(gateway.addr, qos, ROUND)?;
            sensor.add(spoken, gateway.process.usage()?.since(used).cpu);
        }
    }
    bench.add(client.row(format!("QoS {qos}, direct client, {kind}")));
    for (mode, sensor) in modes.into_iter().zip(&sensors) {
        let mut row = sensor.row(format!("QoS {qos}, 1 sensor, {mode}, {kind}"));
        row.cpu_us_per_message = Some(sensor.cpu.as_secs_f64() * 1e6 / sensor.all as f64);
        let (added, times) = sensor.beside(&client);
        let (what_added, what_times) = ("µs more at p50 than the direct client", "times its p99");
        if is_held && mode == Mode::Aggregating {
            row.hold(what_added, added, Bar::AtMost(ADDED_BAR));
            row.hold(what_times, times, Bar::AtMost(TIMES_BAR));
        } else {
            row.tell(what_added, added);
            row.tell(what_times, times);
        }
        bench.add(row);
    }
    Ok(())
}

fn together(bench: &mut Bench, broker: &Broker, kind: Kind, qos: Qos) -> Result<(), Failure> {
    let gateway = Subject::gateway(bench.program(), broker.addr, Mode::Aggregating)?;
    let used = gateway.process.usage()?;
    let Spoken { latency, all } = one_by_one(gateway.addr, SENSORS, qos)?;
    let used = gateway.process.usage()?.since(used);
    let mut row = Row::new("closed", format!("QoS {qos}, {SENSORS} sensors, aggregating, {kind}"));
    row.messages_per_s = Some(latency.len() as f64 / WHOLE.time.as_secs_f64());
    row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / all as f64);
    row.latency_us = latency.latency();
    row.memory_octets = Some(gateway.process.memory()?);
    bench.add(row);
    Ok(())
}

/// All rounds of one who sends one message after the other.
#[derive(Default)]
struct Alone {
    rounds: Vec<Latency>,
    latency: Histogram,
    /// Messages, those of the warm-up too, and the processor time of all.
    all: u64,
    cpu: Duration,
}

impl Alone {
    fn add(&mut self, spoken: Spoken, cpu: Duration) {
        self.rounds.push(or_nothing(spoken.latency.latency()));
        self.latency.merge(&spoken.latency);
        self.all += spoken.all;
        self.cpu += cpu;
    }

    fn row(&self, case: String) -> Row {
        let time = ROUND.time * u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
        Row {
            messages_per_s: Some(self.latency.len() as f64 / time.as_secs_f64()),
            latency_us: self.latency.latency(),
            ..Row::new("closed", case)
        }
    }

    /// Microseconds more at p50 than `direct`, and how many times its p99: the median of the rounds.
    fn beside(&self, direct: &Self) -> (f64, f64) {
        let rounds = || self.rounds.iter().zip(&direct.rounds);
        (
            median(rounds().map(|(own, direct)| own.p50 - direct.p50).collect()),
            median(rounds().map(|(own, direct)| own.p99 / direct.p99).collect()),
        )
    }
}

/// What could not be measured keeps no bar.
fn or_nothing(latency: Option<Latency>) -> Latency {
    latency.unwrap_or(Latency { p50: f64::NAN, p99: f64::NAN, p999: f64::NAN })
}

/// Many sensors, each of which publishes again as soon as the gateway has acknowledged.
pub(super) fn one_by_one(gateway: SocketAddr, count: usize, qos: Qos) -> Result<Spoken, Failure> {
    let mut swarm = Swarm::new(gateway, 0..count, |_| {})?;
    swarm.connect()?;
    let topic = topic()?;
    let mut sent = vec![Instant::now(); count];
    let mut latency = Histogram::default();
    swarm.each(|_, node, now| {
        publish(node, now, &topic, qos);
        Ok(())
    })?;
    let start = Instant::now();
    let (mut all, mut refused) = (0, None);
    while start.elapsed() < WHOLE.warm_up + WHOLE.time {
        swarm.live(QUIET, |index, node, event| {
            match event {
                Event::Published(_, Outcome::Acknowledged) => all += 1,
                Event::Published(_, outcome) => return refused = Some(format!("a message was {outcome:?}")),
                Event::ConnectionLost(loss) => return refused = Some(format!("a sensor was lost: {loss}")),
                _ => return,
            }
            let now = Instant::now();
            if let Some(sent) = sent.get_mut(index) {
                if start.elapsed() > WHOLE.warm_up {
                    latency.add(now - *sent);
                }
                *sent = now;
            }
            publish(node, now, &topic, qos);
        })?;
        if let Some(refused) = refused {
            return Err(Failure::Gateway(refused));
        }
    }
    Ok(Spoken { latency, all })
}
