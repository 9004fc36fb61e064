//! From sensors to the broker.

use std::thread::sleep;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::node::{Event, Outcome};
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::Qos;

use super::{Bench, QUIET, WHOLE, mqtt, publish, topic};
use crate::app::{App, Listener};
use crate::failure::Failure;
use crate::figures::{Bar, Histogram, Row, median};
use crate::lone::{self, Spoken};
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
    (5_000.0, &[(Qos::ExactlyOnce, Some(12.0))]),
];

/// Datagrams a second beside the bare relay, both with more than they can take.
const FLOOD_BAR: f64 = 0.6;

/// Rounds of what is measured beside the bare relay.
const ROUNDS: usize = 3;

/// How long each is measured in one.
const ROUND: Duration = Duration::from_millis(600);

/// A stream that was measured.
#[derive(Clone)]
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
    /// What comes of `send` in so long a time.
    fn measure(
        subject: &Subject,
        listener: &Listener,
        time: Duration,
        mut send: impl FnMut(Duration) -> Result<u64, Failure>,
    ) -> Result<Self, Failure> {
        let before = listener.count();
        let sent = send(WARM_UP)?;
        listener.wait_for(before + sent, QUIET);
        listener.take_latency();
        let (before, used) = (listener.count(), subject.process.usage()?);
        let start = Instant::now();
        let sent = send(time)?;
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

    /// What rounds come to together.
    fn all(rounds: &[Self]) -> Self {
        let mut latency = Histogram::default();
        rounds.iter().for_each(|round| latency.merge(&round.latency));
        Self {
            sent: rounds.iter().map(|round| round.sent).sum(),
            delivered: rounds.iter().map(|round| round.delivered).sum(),
            time: rounds.iter().map(|round| round.time).sum(),
            used: rounds.iter().map(|round| round.used).sum(),
            memory: rounds.iter().map(|round| round.memory).max().unwrap_or_default(),
            latency,
        }
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

/// QoS 0 from 100 sensors as fast as they can, in rounds like those of [`steady`].
pub(super) fn flood(bench: &mut Bench) -> Result<(), Failure> {
    let broker = Broker::start(Kind::Sink)?;
    let modes = [Mode::Aggregating, Mode::Transparent];
    let (mut least, mut found) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        let bare = Subject::bare(Some(broker.addr))?;
        least.push(flooded(&bare, &broker, &mut Sensors::unconnected(bare.addr, SENSORS)?, ROUND)?);
        drop(bare);
        for (mode, found) in modes.iter().zip(&mut found) {
            let gateway = Subject::gateway(bench.program(), broker.addr, *mode)?;
            let mut sensors = Sensors::new(gateway.addr, SENSORS, Qos::AtMostOnce)?;
            found.push(flooded(&gateway, &broker, &mut sensors, ROUND)?);
        }
    }
    let all = Stream::all(&least);
    let mut row = all.row("flood", "bare relay, sink".into());
    all.tell_share(&mut row);
    bench.add(row);
    for (mode, found) in modes.into_iter().zip(found) {
        let all = Stream::all(&found);
        let mut row = all.row("flood", format!("QoS 0, {mode}, sink"));
        let beside = |of: fn(&Stream) -> f64| {
            median(found.iter().zip(&least).map(|(own, least)| of(own) / of(least)).collect())
        };
        let (what, ratio) = ("of the bare relay's messages/s", beside(Stream::per_second));
        match mode {
            Mode::Aggregating => row.hold(what, ratio, Bar::AtLeast(FLOOD_BAR)),
            Mode::Transparent => row.tell(what, ratio),
        }
        row.tell("times its processor time", beside(Stream::cpu_us));
        all.tell_share(&mut row);
        bench.add(row);
    }
    Ok(())
}

fn flooded(
    subject: &Subject,
    broker: &Broker,
    sensors: &mut Sensors,
    time: Duration,
) -> Result<Stream, Failure> {
    let listener = listener(broker)?;
    let stream = Stream::measure(subject, &listener, time, |time| sensors.flood(time))?;
    listener.end().map(|()| stream)
}

/// What a thread more brings in a flood, and what it costs a lone message.
pub(super) fn cores(bench: &mut Bench) -> Result<(), Failure> {
    let broker = Broker::start(Kind::Sink)?;
    for mode in [Mode::Aggregating, Mode::Transparent] {
        let mut alone = None;
        for threads in [1, 2] {
            let gateway = Subject::gateway_on(bench.program(), broker.addr, mode, threads)?;
            let Spoken { latency, .. } = lone::sensor(gateway.addr, Qos::AtLeastOnce, WHOLE)?;
            let stream =
                flooded(&gateway, &broker, &mut Sensors::new(gateway.addr, SENSORS, Qos::AtMostOnce)?, TIME)?;
            let mut row = stream.row("cores", format!("QoS 0, {mode}, sink, threads: {threads}"));
            let lone = latency.latency().map_or(f64::NAN, |latency| latency.p50);
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

/// A steady stream of each QoS from 100 sensors; in rounds, for what else a machine does changes from second to second, and a ratio
/// is of what was measured close to each other.
pub(super) fn steady(bench: &mut Bench) -> Result<(), Failure> {
    let kind = bench.real_broker();
    let broker = Broker::start(kind)?;
    for (rate, streams) in STREAMS {
        let modes = [Mode::Aggregating, Mode::Transparent];
        let cases: Vec<_> =
            modes.iter().flat_map(|mode| streams.iter().map(|(qos, bar)| (*mode, *qos, *bar))).collect();
        let (mut least, mut found) = (Vec::new(), vec![Vec::new(); cases.len()]);
        for _ in 0..ROUNDS {
            least.push(steady_bare(&broker, rate)?);
            for ((mode, qos, _), found) in cases.iter().zip(&mut found) {
                found.push(steady_of(bench, &broker, *mode, *qos, rate)?);
            }
        }
        bench.add(Stream::all(&least).row("steady", format!("bare relay, {rate} a second, {kind}")));
        bench.add(steady_echo(rate)?);
        for &(qos, _) in streams.iter().filter(|(qos, _)| *qos != Qos::MinusOne) {
            bench.add(
                steady_direct(&broker, qos, rate)?
                    .row(format!("QoS {qos}, {rate} a second, a direct client, {kind}")),
            );
        }
        for ((mode, qos, bar), found) in cases.into_iter().zip(found) {
            let mut row =
                Stream::all(&found).row("steady", format!("QoS {qos}, {rate} a second, {mode}, {kind}"));
            let ratios = found.iter().zip(&least).map(|(own, least)| own.cpu_us() / least.cpu_us());
            let (what, ratio) = ("times the bare relay's processor time", median(ratios.collect()));
            match bar.filter(|_| (mode, kind) == (Mode::Aggregating, Kind::Mosquitto)) {
                Some(bar) => row.hold(what, ratio, Bar::AtMost(bar)),
                None => row.tell(what, ratio),
            }
            bench.add(row);
        }
    }
    Ok(())
}

fn steady_bare(broker: &Broker, rate: f64) -> Result<Stream, Failure> {
    let bare = Subject::bare(Some(broker.addr))?;
    let mut sensors = Sensors::unconnected(bare.addr, SENSORS)?;
    let listening = listener(broker)?;
    let stream = Stream::measure(&bare, &listening, ROUND, |time| sensors.stream(rate, time))?;
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
        app.flush()?;
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
            Stream::measure(&gateway, &listening, ROUND, |time| sensors.stream(rate, time))?
        }
        Qos::AtLeastOnce | Qos::ExactlyOnce => {
            let mut swarm = Swarm::new(gateway.addr, 0..talkers(qos), |_| {})?;
            swarm.connect()?;
            Stream::measure(&gateway, &listening, ROUND, |time| talk(&mut swarm, qos, rate, time))?
        }
    };
    listening.end().map(|()| stream)
}

/// Sensors for a stream: with QoS 2 each waits three times for the disk, 20 ms each time.
fn talkers(qos: Qos) -> usize {
    SENSORS as usize * if qos == Qos::ExactlyOnce { 10 } else { 1 }
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

fn listener(broker: &Broker) -> Result<Listener, Failure> {
    let mut app = App::connect(broker.addr, "listener")?;
    app.subscribe("bench/up/#", QoS::AtMostOnce)?;
    Ok(app.listen())
}
