//! From sensors to the broker.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::{Event as AtBroker, QoS};
use mqtt_sn_gateway::node::{Event, Node, Outcome, Topic};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use super::{Bench, QUIET, mqtt};
use crate::app::{App, Listener};
use crate::failure::Failure;
use crate::figures::{Bar, Histogram, Latency, Row};
use crate::process::Usage;
use crate::rig::{Broker, Kind, Mode, Subject};
use crate::sensor::{STEP, Sensors, TOPIC};
use crate::stamp;
use crate::swarm::Swarm;

/// Sensors that publish.
const SENSORS: u32 = 100;

/// What comes before is not counted: caches and queues are to be as they stay.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long a stream is measured.
const TIME: Duration = Duration::from_secs(2);

/// A QoS, and how much processor time a message of it may take, in those of the bare relay.
type Priced = (Qos, Option<f64>);

/// Messages a second of a steady stream, a fraction of what any part of the way could carry, and what is streamed so. QoS 1 and 2
/// send datagrams too; the steps of QoS 2 wait for the disk.
const STREAMS: [(f64, &[Priced]); 2] = [
    (10_000.0, &[(Qos::MinusOne, None), (Qos::AtMostOnce, Some(3.0)), (Qos::AtLeastOnce, Some(6.0))]),
    (1_000.0, &[(Qos::ExactlyOnce, Some(12.0))]),
];

/// Datagrams a second beside the bare relay, both with more than they can take.
const FLOOD_BAR: f64 = 0.6;

/// A stream that was measured.
struct Stream {
    sent: u64,
    delivered: u64,
    time: Duration,
    used: Usage,
    /// Octets of the process.
    memory: u64,
    latency: Histogram,
}

impl Stream {
    /// What comes of `send` in [`TIME`].
    fn measure(
        subject: &Subject,
        listener: &Listener,
        mut send: impl FnMut(Duration) -> Result<u64, Failure>,
    ) -> Result<Self, Failure> {
        let before = listener.count();
        let sent = send(WARM_UP)?;
        listener.wait_for(before + sent, QUIET);
        listener.take_latency();
        let (before, used) = (listener.count(), subject.process.usage()?);
        let start = Instant::now();
        let sent = send(TIME)?;
        let last = listener.wait_for(before + sent, QUIET);
        Ok(Self {
            sent,
            delivered: listener.count() - before,
            time: last.saturating_duration_since(start),
            used: subject.process.usage()?.since(used),
            memory: subject.process.memory()?,
            latency: listener.take_latency(),
        })
    }

    fn per_second(&self) -> f64 {
        self.delivered as f64 / self.time.as_secs_f64()
    }

    fn cpu_us(&self) -> f64 {
        self.used.cpu.as_secs_f64() * 1e6 / self.delivered as f64
    }

    fn row(&self, scenario: &'static str, case: String) -> Row {
        Row {
            messages_per_s: Some(self.per_second()),
            lost: Some(self.sent.saturating_sub(self.delivered)),
            latency_us: self.latency.latency(),
            cpu_us_per_message: Some(self.cpu_us()),
            memory_octets: Some(self.memory),
            ..Row::new(scenario, case)
        }
    }

    /// What of a core the process had: it was the narrowest place if that is near 1.
    fn tell_share(&self, row: &mut Row) {
        row.tell("of a core", self.used.cpu.as_secs_f64() / self.time.as_secs_f64());
    }
}

/// QoS 0 from 100 sensors as fast as they can.
pub(super) fn flood(bench: &mut Bench) -> Result<(), Failure> {
    let broker = Broker::start(Kind::Sink)?;
    let bare = Subject::bare(Some(broker.addr))?;
    let least = flooded(&bare, &broker, &mut Sensors::unconnected(bare.addr, SENSORS)?)?;
    drop(bare);
    let mut row = least.row("flood", "bare relay, sink".into());
    least.tell_share(&mut row);
    bench.add(row);
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
        let stream = flooded(&gateway, &broker, &mut Sensors::new(gateway.addr, SENSORS, Qos::AtMostOnce)?)?;
        let mut row = stream.row("flood", format!("QoS 0, {mode}, sink"));
        let (what, ratio) = ("of the bare relay's messages/s", stream.per_second() / least.per_second());
        match mode {
            Mode::Aggregating => row.hold(what, ratio, Bar::AtLeast(FLOOD_BAR)),
            Mode::Transparent => row.tell(what, ratio),
        }
        row.tell("times its processor time", stream.cpu_us() / least.cpu_us());
        stream.tell_share(&mut row);
        bench.add(row);
    }
    Ok(())
}

fn flooded(subject: &Subject, broker: &Broker, sensors: &mut Sensors) -> Result<Stream, Failure> {
    let listener = listener(broker)?;
    let stream = Stream::measure(subject, &listener, |time| sensors.flood(time))?;
    listener.end().map(|()| stream)
}

/// What a thread more brings in a flood, and what it costs a lone message.
pub(super) fn cores(bench: &mut Bench) -> Result<(), Failure> {
    let broker = Broker::start(Kind::Sink)?;
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let mut alone = None;
        for threads in [1, 2] {
            let gateway = Subject::gateway_on(bench.program(), broker.addr, mode, threads)?;
            let (latency, ..) = one_by_one(gateway.addr, 1, Qos::AtLeastOnce, WHOLE)?;
            let stream =
                flooded(&gateway, &broker, &mut Sensors::new(gateway.addr, SENSORS, Qos::AtMostOnce)?)?;
            let mut row = stream.row("cores", format!("QoS 0, {mode}, sink, threads: {threads}"));
            let lone = of(latency.latency()).p50;
            row.tell("µs for a lone QoS 1 at p50", lone);
            match alone {
                None => alone = Some((stream.per_second(), lone)),
                Some((rate, before)) => {
                    row.tell("of one thread's messages/s", stream.per_second() / rate);
                    row.tell("times one thread's for a lone one", lone / before);
                }
            }
            bench.add(row);
        }
    }
    Ok(())
}

/// A steady stream of each QoS from 100 sensors.
pub(super) fn steady(bench: &mut Bench) -> Result<(), Failure> {
    let kind = bench.real_broker();
    let broker = Broker::start(kind)?;
    for (rate, streams) in STREAMS {
        let least = steady_bare(&broker, rate)?;
        bench.add(least.row("steady", format!("bare relay, {rate} a second, {kind}")));
        bench.add(steady_echo(rate)?);
        for &(qos, _) in streams.iter().filter(|(qos, _)| *qos != Qos::MinusOne) {
            bench.add(
                steady_direct(&broker, qos, rate)?
                    .row(format!("QoS {qos}, {rate} a second, a direct client, {kind}")),
            );
        }
        for mode in [Mode::Aggregating, Mode::Transparent] {
            for &(qos, bar) in streams {
                let stream = steady_of(bench, &broker, mode, qos, rate)?;
                let mut row = stream.row("steady", format!("QoS {qos}, {rate} a second, {mode}, {kind}"));
                let (what, ratio) =
                    ("times the bare relay's processor time", stream.cpu_us() / least.cpu_us());
                match bar.filter(|_| (mode, kind) == (Mode::Aggregating, Kind::Mosquitto)) {
                    Some(bar) => row.hold(what, ratio, Bar::AtMost(bar)),
                    None => row.tell(what, ratio),
                }
                bench.add(row);
            }
        }
    }
    Ok(())
}

fn steady_bare(broker: &Broker, rate: f64) -> Result<Stream, Failure> {
    let bare = Subject::bare(Some(broker.addr))?;
    let mut sensors = Sensors::unconnected(bare.addr, SENSORS)?;
    let listening = listener(broker)?;
    let stream = Stream::measure(&bare, &listening, |time| sensors.stream(rate, time))?;
    listening.end().map(|()| stream)
}

/// Processor time of a datagram that is received and sent back.
fn steady_echo(rate: f64) -> Result<Row, Failure> {
    let echo = Subject::bare(None)?;
    let mut sensors = Sensors::unconnected(echo.addr, SENSORS)?;
    sensors.stream(rate, WARM_UP)?;
    let used = echo.process.usage()?;
    let sent = sensors.stream(rate, TIME)?;
    let used = echo.process.usage()?.since(used);
    let mut row = Row::new("steady", format!("bare echo, {rate} a second"));
    row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / sent as f64);
    Ok(row)
}

/// The same messages from one MQTT client.
fn steady_direct(broker: &Broker, qos: Qos, rate: f64) -> Result<Direct, Failure> {
    let listening = listener(broker)?;
    let mut app = App::connect(broker.addr, "direct")?;
    let topic = TopicName::new(TOPIC).map_err(|error| Failure::Broker(error.to_string()))?;
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            app.publish(&topic, stamp::bytes(), mqtt(qos))?;
            sent += 1;
        }
        sleep(STEP.min(Duration::from_secs_f64(1.0 / rate)));
        app.live(Duration::ZERO, |_| {})?;
    }
    app.settle()?;
    let last = listening.wait_for(sent, QUIET);
    let (delivered, latency) = (listening.count(), listening.take_latency());
    listening.end()?;
    Ok(Direct { sent, delivered, time: last.saturating_duration_since(start), latency })
}

/// What came of a direct client's stream.
struct Direct {
    sent: u64,
    delivered: u64,
    time: Duration,
    latency: Histogram,
}

impl Direct {
    fn row(&self, case: String) -> Row {
        Row {
            messages_per_s: Some(self.delivered as f64 / self.time.as_secs_f64()),
            lost: Some(self.sent.saturating_sub(self.delivered)),
            latency_us: self.latency.latency(),
            ..Row::new("steady", case)
        }
    }
}

fn steady_of(bench: &Bench, broker: &Broker, mode: Mode, qos: Qos, rate: f64) -> Result<Stream, Failure> {
    let gateway = Subject::gateway(bench.program(), broker.addr, mode)?;
    let listening = listener(broker)?;
    let stream = match qos {
        Qos::MinusOne | Qos::AtMostOnce => {
            let mut sensors = Sensors::new(gateway.addr, SENSORS, qos)?;
            Stream::measure(&gateway, &listening, |time| sensors.stream(rate, time))?
        }
        Qos::AtLeastOnce | Qos::ExactlyOnce => {
            let mut swarm = Swarm::new(gateway.addr, 0..SENSORS as usize, |_| {})?;
            swarm.connect()?;
            Stream::measure(&gateway, &listening, |time| talk(&mut swarm, qos, rate, time))?
        }
    };
    listening.end().map(|()| stream)
}

/// Each sensor in its turn publishes, at this rate all together, until all is acknowledged; how many messages that were.
fn talk(swarm: &mut Swarm, qos: Qos, rate: f64, time: Duration) -> Result<u64, Failure> {
    let topic = topic()?;
    let start = Instant::now();
    let (mut sent, mut settled) = (0_u64, 0_u64);
    let mut refused = None;
    while settled < sent || start.elapsed() < time {
        let due = (start.elapsed().min(time).as_secs_f64() * rate) as u64;
        while sent < due {
            let index = (sent % swarm.len() as u64) as usize;
            swarm.one(index, |node, now| publish(node, now, &topic, qos))?;
            sent += 1;
        }
        sleep(STEP.min(Duration::from_secs_f64(1.0 / rate)));
        swarm.live(Duration::ZERO, |_, _, event| match event {
            Event::Published(_, Outcome::Acknowledged) => settled += 1,
            Event::Published(_, outcome) => refused = Some(format!("a message was {outcome:?}")),
            Event::ConnectionLost(loss) => refused = Some(format!("a sensor was lost: {loss}")),
            _ => {}
        })?;
        if let Some(refused) = refused {
            return Err(Failure::Gateway(refused));
        }
    }
    Ok(sent)
}

/// Rounds of one message after the other, by all in their turn, each from a start of its own: where the system puts processes
/// that wake each other makes more of a difference than anything they do.
const ROUNDS: usize = 5;

/// How long one of them takes, its warm-up before.
const ROUND: Span = Span { warm_up: Duration::from_millis(200), time: Duration::from_millis(400) };

/// The whole of it in one go.
pub(super) const WHOLE: Span = Span { warm_up: WARM_UP, time: TIME };

/// How long something is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    warm_up: Duration,
    time: Duration,
}

/// One message after the other, from one sensor and from a hundred, and the same from direct MQTT clients.
pub(super) fn closed(bench: &mut Bench) -> Result<(), Failure> {
    for kind in bench.brokers() {
        let broker = Broker::start(kind)?;
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let (mut client, mut lone) = (Alone::default(), [Alone::default(), Alone::default()]);
            let modes = [Mode::Aggregating, Mode::Transparent];
            for _ in 0..ROUNDS {
                client.add(direct(broker.addr, qos, ROUND)?, 0, Duration::ZERO);
                for (mode, alone) in modes.iter().zip(&mut lone) {
                    let gateway = Subject::gateway(bench.program(), broker.addr, *mode)?;
                    let used = gateway.process.usage()?;
                    let (latency, _, all) = one_by_one(gateway.addr, 1, qos, ROUND)?;
                    alone.add(latency, all, gateway.process.usage()?.since(used).cpu);
                }
            }
            bench.add(client.row(format!("QoS {qos}, direct client, {kind}")));
            for (mode, alone) in modes.into_iter().zip(&lone) {
                let mut row = alone.row(format!("QoS {qos}, 1 sensor, {mode}, {kind}"));
                row.cpu_us_per_message = Some(alone.cpu.as_secs_f64() * 1e6 / alone.all as f64);
                let (added, times) = alone.beside(&client);
                let (what_added, what_times) = ("µs more at p50 than the direct client", "times its p99");
                // Beside the broker that people use: the sink is there to be fast with many.
                if (qos, mode, kind) == (Qos::AtLeastOnce, Mode::Aggregating, bench.real_broker()) {
                    row.hold(what_added, added, Bar::AtMost(60.0));
                    row.hold(what_times, times, Bar::AtMost(10.0));
                } else {
                    row.tell(what_added, added);
                    row.tell(what_times, times);
                }
                bench.add(row);
            }
            let gateway = Subject::gateway(bench.program(), broker.addr, Mode::Aggregating)?;
            let used = gateway.process.usage()?;
            let (latency, time, all) = one_by_one(gateway.addr, 100, qos, WHOLE)?;
            let used = gateway.process.usage()?.since(used);
            let mut row = Row::new("closed", format!("QoS {qos}, 100 sensors, aggregating, {kind}"));
            row.messages_per_s = Some(latency.len() as f64 / time.as_secs_f64());
            row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / all as f64);
            row.latency_us = latency.latency();
            row.memory_octets = Some(gateway.process.memory()?);
            bench.add(row);
        }
    }
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
    fn add(&mut self, latency: Histogram, all: u64, cpu: Duration) {
        self.rounds.push(of(latency.latency()));
        self.latency.merge(&latency);
        self.all += all;
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What could not be measured keeps no bar.
fn of(latency: Option<Latency>) -> Latency {
    latency.unwrap_or(Latency { p50: f64::NAN, p99: f64::NAN, p999: f64::NAN })
}

/// A direct client publishes again as soon as the broker has acknowledged.
fn direct(broker: SocketAddr, qos: Qos, span: Span) -> Result<Histogram, Failure> {
    let mut app = App::connect(broker, "direct")?;
    let topic = TopicName::new(TOPIC).map_err(|error| Failure::Broker(error.to_string()))?;
    let mut latency = Histogram::default();
    let start = Instant::now();
    while start.elapsed() < span.warm_up + span.time {
        let sent = Instant::now();
        app.publish(&topic, stamp::bytes(), mqtt(qos))?;
        let mut done = false;
        while !done {
            app.live(QUIET, |event| done |= matches!(event, AtBroker::Completed(..)))?;
        }
        if start.elapsed() > span.warm_up {
            latency.add(sent.elapsed());
        }
    }
    Ok(latency)
}

/// Sensors publish again as soon as the gateway has acknowledged. Latencies in how long a time, and how many messages with those
/// before it.
pub(super) fn one_by_one(
    gateway: SocketAddr,
    count: usize,
    qos: Qos,
    span: Span,
) -> Result<(Histogram, Duration, u64), Failure> {
    let mut swarm = Swarm::new(gateway, 0..count, |_| {})?;
    swarm.connect()?;
    let topic = topic()?;
    let mut sent = VecDeque::from(vec![Instant::now(); count]);
    let mut latency = Histogram::default();
    swarm.each(|_, node, now| {
        publish(node, now, &topic, qos);
        Ok(())
    })?;
    let start = Instant::now();
    let (mut all, mut refused) = (0, None);
    while start.elapsed() < span.warm_up + span.time {
        swarm.live(QUIET, |index, node, event| {
            match event {
                Event::Published(_, Outcome::Acknowledged) => all += 1,
                Event::Published(_, outcome) => return refused = Some(format!("a message was {outcome:?}")),
                Event::ConnectionLost(loss) => return refused = Some(format!("a sensor was lost: {loss}")),
                _ => return,
            }
            let now = Instant::now();
            if let Some(sent) = sent.get_mut(index) {
                if start.elapsed() > span.warm_up {
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
    Ok((latency, span.time, all))
}

fn publish(node: &mut Node, now: Instant, topic: &Topic, qos: Qos) {
    // Its queue has room for more than is ever due.
    let _ = node.publish(now, topic.clone(), stamp::bytes(), qos, false);
}

fn topic() -> Result<Topic, Failure> {
    TopicName::new(TOPIC).map(Topic::Name).map_err(|error| Failure::Gateway(error.to_string()))
}

fn listener(broker: &Broker) -> Result<Listener, Failure> {
    let mut app = App::connect(broker.addr, "listener")?;
    app.subscribe("bench/up/#", QoS::AtMostOnce)?;
    Ok(app.listen())
}
