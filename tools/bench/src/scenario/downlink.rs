//! From the broker to sensors that are awake.

use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::Event;
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use super::{Bench, QUIET};
use crate::app::App;
use crate::failure::Failure;
use crate::figures::{Histogram, Row};
use crate::rig::{Broker, Mode, Subject};
use crate::stamp;
use crate::swarm::Swarm;

/// How long messages are published.
const TIME: Duration = Duration::from_secs(3);

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

/// Each message for one sensor, and each for all of them.
pub(super) fn awake(bench: &mut Bench) -> Result<(), Failure> {
    let kind = bench.real_broker();
    let broker = Broker::start(kind)?;
    for mode in [Mode::Aggregating, Mode::Transparent] {
        for case in &CASES {
            for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
                let mut swarm = Swarm::new(gateway.addr, 0..case.sensors, |_| {})?;
                swarm.connect()?;
                swarm.subscribe(qos, |sensor| topic(case, sensor))?;
                let used = gateway.process.usage()?;
                let start = Instant::now();
                let found = listen(&mut swarm, case, &broker, qos)?;
                let used = gateway.process.usage()?.since(used);
                let mut row = Row::new("downlink", format!("QoS {qos}, {}, {mode}, {kind}", case.name));
                row.messages_per_s =
                    Some(found.delivered as f64 / found.last.saturating_duration_since(start).as_secs_f64());
                row.lost = Some(found.owed.saturating_sub(found.delivered));
                row.latency_us = found.latency.latency();
                row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / found.delivered as f64);
                bench.add(row);
            }
        }
    }
    Ok(())
}

fn topic(case: &Case, sensor: usize) -> String {
    if case.shared { "bench/down/all".into() } else { format!("bench/down/{sensor}") }
}

struct Found {
    owed: u64,
    delivered: u64,
    last: Instant,
    latency: Histogram,
}

/// Takes what an application publishes.
fn listen(swarm: &mut Swarm, case: &Case, broker: &Broker, qos: Qos) -> Result<Found, Failure> {
    let names: Vec<_> = (0..if case.shared { 1 } else { case.sensors })
        .map(|sensor| TopicName::new(topic(case, sensor)).map_err(|error| Failure::Broker(error.to_string())))
        .collect::<Result<_, _>>()?;
    let addr = broker.addr;
    let rate = if qos == Qos::ExactlyOnce { case.rate / 10.0 } else { case.rate };
    let qos = match qos {
        Qos::MinusOne | Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    };
    let publisher = thread::spawn(move || publish(App::connect(addr, "publisher")?, &names, rate, qos));
    let mut found = Found { owed: 0, delivered: 0, last: Instant::now(), latency: Histogram::default() };
    while !publisher.is_finished() || found.last.elapsed() < QUIET {
        swarm.live(Duration::from_millis(10), |_, _, event| {
            if let Event::Message(message) = event {
                found.delivered += 1;
                found.last = Instant::now();
                stamp::age(&message.payload).into_iter().for_each(|age| found.latency.add(age));
            }
        })?;
    }
    let each = if case.shared { swarm.len() as u64 } else { 1 };
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
