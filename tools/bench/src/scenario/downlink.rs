//! From the broker to sensors that are awake.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::{Event as AtBroker, QoS};
use mqtt_sn_gateway::node::Event;
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use super::{Bench, QUIET, mqtt};
use crate::app::App;
use crate::failure::Failure;
use crate::figures::{Histogram, Row};
use crate::rig::{Broker, Mode, Subject};
use crate::stamp;
use crate::swarm::Swarm;

/// How long messages are published.
const TIME: Duration = Duration::from_secs(2);

/// How long receivers wait for a message before they look around.
const WAIT: Duration = Duration::from_millis(10);

/// How messages go to sensors.
struct Case {
    name: &'static str,
    sensors: usize,
    /// Whether all of them want the same messages.
    shared: bool,
    /// Published in a second with QoS 0 and 1; a tenth of it with QoS 2, which waits for the disk thrice.
    rate: f64,
}

const CASES: [Case; 2] = [
    Case { name: "one for each of 100", sensors: 100, shared: false, rate: 5_000.0 },
    Case { name: "one for all of 1,000", sensors: 1_000, shared: true, rate: 10.0 },
];

/// Each message for one sensor, and each for all of them; the same to as many MQTT clients that are connected directly.
pub(super) fn awake(bench: &mut Bench) -> Result<(), Failure> {
    let kind = bench.real_broker();
    let broker = Broker::start(kind)?;
    for case in &CASES {
        for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let direct = to_clients(case, &broker, qos)?;
            let name = |to: &dyn Display| format!("QoS {qos}, {}, {to}, {kind}", case.name);
            bench.add(direct.row(name(&"direct clients")));
            for mode in [Mode::Aggregating, Mode::Transparent] {
                let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
                let mut swarm = Swarm::new(gateway.addr, 0..case.sensors, |_| {})?;
                swarm.connect()?;
                swarm.subscribe(qos, |sensor| topic(case, sensor))?;
                let used = gateway.process.usage()?;
                let found = to_sensors(&mut swarm, case, &broker, qos)?;
                let used = gateway.process.usage()?.since(used);
                let mut row = found.row(name(&mode));
                row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / found.delivered as f64);
                row.memory_octets = Some(gateway.process.memory()?);
                if let (Some(own), Some(direct)) = (found.latency.latency(), direct.latency.latency()) {
                    row.tell("µs more at p50 than direct clients", own.p50 - direct.p50);
                }
                bench.add(row);
            }
        }
    }
    Ok(())
}

fn topic(case: &Case, sensor: usize) -> String {
    if case.shared { "bench/down/all".into() } else { format!("bench/down/{sensor}") }
}

/// What has arrived of what was published.
struct Found {
    owed: u64,
    delivered: u64,
    start: Instant,
    last: Instant,
    latency: Histogram,
}

impl Found {
    fn hear(&mut self, payload: &[u8]) {
        self.delivered += 1;
        self.last = Instant::now();
        stamp::age(payload).into_iter().for_each(|age| self.latency.add(age));
    }

    fn row(&self, case: String) -> Row {
        let time = self.last.saturating_duration_since(self.start);
        Row {
            messages_per_s: Some(self.delivered as f64 / time.as_secs_f64()),
            lost: Some(self.owed.saturating_sub(self.delivered)),
            latency_us: self.latency.latency(),
            ..Row::new("downlink", case)
        }
    }
}

fn to_sensors(swarm: &mut Swarm, case: &Case, broker: &Broker, qos: Qos) -> Result<Found, Failure> {
    receive(case, broker, qos, |found| {
        swarm.live(WAIT, |_, _, event| {
            if let Event::Message(message) = event {
                found.hear(&message.payload);
            }
        })
    })
}

fn to_clients(case: &Case, broker: &Broker, qos: Qos) -> Result<Found, Failure> {
    let client = |sensor| {
        let mut app = App::connect(broker.addr, &format!("direct-{sensor}"))?;
        app.subscribe(&topic(case, sensor), mqtt(qos))?;
        Ok(app)
    };
    let mut clients = (0..case.sensors).map(client).collect::<Result<Vec<_>, Failure>>()?;
    receive(case, broker, qos, |found| {
        App::live_all(&mut clients, WAIT, |event| {
            if let AtBroker::Message { message, .. } = event {
                found.hear(&message.payload);
            }
        })
    })
}

/// Takes with `live` what an application publishes.
fn receive(
    case: &Case,
    broker: &Broker,
    qos: Qos,
    mut live: impl FnMut(&mut Found) -> Result<(), Failure>,
) -> Result<Found, Failure> {
    let names: Vec<_> = (0..if case.shared { 1 } else { case.sensors })
        .map(|sensor| TopicName::new(topic(case, sensor)).map_err(|error| Failure::Broker(error.to_string())))
        .collect::<Result<_, _>>()?;
    let addr = broker.addr;
    let rate = if qos == Qos::ExactlyOnce { case.rate / 10.0 } else { case.rate };
    let publisher = thread::spawn(move || publish(App::connect(addr, "publisher")?, &names, rate, mqtt(qos)));
    let (start, latency) = (Instant::now(), Histogram::default());
    let mut found = Found { owed: 0, delivered: 0, start, last: start, latency };
    while !publisher.is_finished() || found.last.elapsed() < QUIET {
        live(&mut found)?;
    }
    let each = if case.shared { case.sensors as u64 } else { 1 };
    let published = publisher.join().map_err(|_| Failure::Broker("the application panicked".into()))??;
    Ok(Found { owed: published * each, ..found })
}

/// Publishes to each topic in its turn; how many messages that were.
fn publish(mut app: App, topics: &[TopicName], rate: f64, qos: QoS) -> Result<u64, Failure> {
    let start = Instant::now();
    let mut sent = 0;
    for topic in topics.iter().cycle() {
        let due = start + Duration::from_secs_f64(sent as f64 / rate);
        if due > start + TIME {
            break;
        }
        while Instant::now() < due {
            app.live(due.saturating_duration_since(Instant::now()), |_| {})?;
        }
        app.publish(topic, stamp::bytes(), qos)?;
        sent += 1;
        app.flush()?;
    }
    app.settle()?;
    Ok(sent)
}
