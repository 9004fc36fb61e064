//! A world: sensors, a radio, the gateway, a connection that breaks, the broker and its observer, on one virtual clock.
//!
//! One queue of events, ordered by time and then by their entry; one random generator. The gateway, the broker and the
//! sensors are woken when they ask for it. Whatever passes between them passes the accounts of [`Air`] and [`Link`].

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use mqtt_sn_gateway::broker::{
    Broker, ConnectionId, Fault, Input as BrokerInput, Kind, Limits, Memory, Output as BrokerOutput, Whom,
};
use mqtt_sn_gateway::gateway::io::{
    Address, Control, Input, LinkCommand, LinkEvent, LinkFailure, LinkId, Output, Peer, PortId, Route, Target,
};
use mqtt_sn_gateway::gateway::record::Outcome;
use mqtt_sn_gateway::gateway::{Counters, Gateway};
use mqtt_sn_gateway::node::{Event as NodeEvent, Topic, Will};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter};
use mqtt_sn_gateway::wire::{Packet, Qos, decode};
use rumqttc::{
    ConnectReturnCode, Packet as Packet4, PubAck, PubComp, PubRec, PubRel, QoS, SubscribeReasonCode, UnsubAck,
};

use crate::air::{Air, Arrival, sheds};
use crate::figures::Figures;
use crate::law::{Checked, Law};
use crate::ledger::{Got, Ledger, No, Origin, Who};
use crate::link::{self, Fact, Link};
use crate::observer::Observer;
use crate::plan::{self, FORWARDERS, GATEWAY, LATE, Plan};
use crate::sensor::Sensor;
use crate::trace::{Step, Trace};
use crate::translator::{self, Meaning, Translator};

/// How long a world may take to come to rest once nothing goes wrong any more: the longest backoff of the link, a dead
/// connection that has yet to be noticed, and what sensors wait for.
const REST_WITHIN: Duration = Duration::from_secs(120);

/// Names that a sensor did not answer for are not offered for T_WAIT (Interpretation: R-113).
const T_WAIT: Duration = Duration::from_secs(335);

/// How long the gateway may take to take leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// At rest for so many looks in a row, one each [`LOOK`], a world is taken to be at rest.
const LOOKS: u32 = 4;

const LOOK: Duration = Duration::from_millis(500);

/// How long a sleeper may take to fetch what it slept through when nothing goes wrong: all names, registered and
/// published one after the other.
const DRAINED_WITHIN: Duration = Duration::from_secs(15);

/// Where nonsense comes from.
const NOISY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));

/// Sleepers change places once nothing of them is on its way any more.
const QUIET: Duration = Duration::from_secs(3);

/// Longer than the probes take.
const LONG_NAP: Duration = Duration::from_secs(3600);

/// Client ids of the gateway's links, at most.
const LANES_MAX: u32 = 16;

/// How long a link that comes back takes for it: its longest backoff, and a dead connection before that.
const COME_BACK: Duration = Duration::from_secs(60);

/// Sets the second source of chances apart from the first.
const FURTHER: u64 = 0x6C61_6E65;

/// Timeouts of all together in one second of the world; a dozen are usual.
const TIMEOUTS_MAX: u32 = 400;

/// Plays the world of `seed` to its end.
pub(crate) fn run(seed: u64, base: Instant, trace: &mut Trace) -> Checked<Figures> {
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::new(seed, &mut rng);
    let mut world = World::new(plan, rng, base, trace);
    world.begin()?;
    while world.phase != Phase::Over {
        world.step()?;
    }
    Ok(world.figures())
}

struct World<'t> {
    plan: Plan,
    rng: Rng,
    /// For what only worlds with further links know: the others stay what they were.
    lane_rng: Rng,
    trace: &'t mut Trace,
    base: Instant,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    serial: u64,
    phase: Phase,
    /// Looks at which everything was at rest.
    rested: u32,
    /// Timeouts in this second.
    timeouts: (u64, u32),
    gateway: Gateway,
    broker: Broker,
    broker_up: bool,
    sensors: Vec<Sensor>,
    observer: Observer,
    air: Air,
    /// By the client id at the broker.
    accounts: BTreeMap<String, Link>,
    /// Subscription identifiers of the sessions there.
    identifiers: BTreeMap<String, BTreeMap<String, usize>>,
    ledger: Ledger,
    streams: BTreeMap<u64, Stream>,
    /// Connections of the gateway are numbered from here: it begins anew when it is restarted.
    first_link: u64,
    /// What gateways before this one counted.
    retired: Vec<Counters>,
    /// Messages by which it is seen at the end that everything works, and what had been shed before.
    probes: Vec<No>,
    shed_before_probes: u64,
    tally: Tally,
}

/// What happens to the world itself.
#[derive(Debug, Default)]
struct Tally {
    frames_lost: u64,
    frames_copied: u64,
    frames_late: u64,
    cuts: u64,
    crashes: u64,
    faults: u64,
    reboots: u64,
    moves: u64,
    swaps: u64,
    restarts: u64,
    naps: u64,
    overslept: u64,
    deaf: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Things happen and go wrong.
    Active,
    /// Nothing goes wrong any more.
    Calm(Instant),
    /// The probes are out.
    Probing(Instant),
    /// The gateway takes leave.
    Leaving(Instant),
    Over,
}

/// One TCP connection between gateway and broker.
struct Stream {
    /// The client id in its CONNECT, once that was written.
    whose: Option<String>,
    /// It was asked for while the gateway's own stood.
    further: bool,
    /// Where MQTT 5 is spoken.
    five: Option<Five>,
    /// When the last octets of each direction arrive: nothing overtakes them.
    up_at: Instant,
    down_at: Instant,
    /// Nothing gets through any more.
    cut: bool,
    /// The gateway has not closed it and was not told that it is gone.
    open: bool,
}

impl Stream {
    fn is_own(&self) -> bool {
        self.whose.as_deref().is_some_and(|whose| link::lane(whose) == 0)
    }
}

/// MQTT 5 on one connection, as the accounts read it and as the broker does: both know only MQTT 3.1.1.
#[derive(Default)]
struct Five {
    account: Translator,
    broker: Translator,
    /// Octets of the broker that are no whole packet yet.
    partial: BytesMut,
    /// Octets towards the gateway, sent and arrived so far; and what packets ending there mean in MQTT 3.1.1.
    sent: usize,
    arrived: usize,
    meant: VecDeque<(usize, Bytes)>,
}

#[derive(Debug)]
enum Event {
    ToGateway(SocketAddr, Bytes),
    ToSensor(SocketAddr, Bytes),
    /// A sensor's application does something.
    Act(Who),
    SwitchOn(Who),
    Connect(Who),
    /// A sleeper wakes, unless something else came between.
    Wake(Who, u32),
    Mute(Who),
    Unmute(Who),
    /// The observer publishes.
    Observe,
    Noise,
    /// A connection of the gateway arrives where the broker should be.
    Arrive(u64),
    Established(u64),
    Up(u64, Bytes),
    UpClosed(u64),
    Down(u64, Bytes),
    DownClosed(u64, LinkFailure),
    Drained(u64),
    BrokerDrained(ConnectionId),
    Disturb,
    Forget,
    Release,
    BrokerUp,
    Calm,
    Look,
    Probe(usize),
    /// Those that slept through the probes have had their time to fetch them.
    Rise,
    ProbeSensors,
}

impl<'t> World<'t> {
    fn new(plan: Plan, rng: Rng, base: Instant, trace: &'t mut Trace) -> Self {
        let sensors = plan.sensors.iter().enumerate();
        let sensors = sensors
            .map(|(who, sensor)| Sensor::new(who, sensor, plan::predefined(&plan.settings, sensor.client)));
        let mut sensors: Vec<Sensor> = sensors.collect();
        let clients: Vec<Who> = sensors.iter().map(|sensor| sensor.client).collect();
        for sensor in &mut sensors {
            sensor.shared = clients.iter().filter(|client| **client == sensor.client).count() > 1;
        }
        Self {
            sensors,
            gateway: Gateway::new(plan.settings.clone(), base),
            air: Air::new(plan.settings.clone(), base),
            broker: Broker::new(Limits::default()),
            broker_up: true,
            observer: Observer::new(),
            accounts: BTreeMap::new(),
            identifiers: BTreeMap::new(),
            ledger: Ledger::new(clients),
            streams: BTreeMap::new(),
            first_link: 0,
            retired: Vec::new(),
            lane_rng: Rng::with_seed(plan.seed ^ FURTHER),
            plan,
            rng,
            trace,
            base,
            now: base,
            queue: BTreeMap::new(),
            serial: 0,
            phase: Phase::Active,
            rested: 0,
            timeouts: (0, 0),
            probes: Vec::new(),
            shed_before_probes: 0,
            tally: Tally::default(),
        }
    }

    fn begin(&mut self) -> Checked {
        self.broker.inject(self.now, Fault::CopyPerFilter { on: self.plan.copy_per_filter });
        self.trace.note(self.now, format!("{:?} {:?}", self.plan.radio, self.plan.tcp));
        if self.rng.u8(0..6) == 0 {
            // The broker is not there yet.
            self.broker_up = false;
            let up = self.millis(500..9000);
            self.after(up, Event::BrokerUp);
        } else {
            self.observer_connects()?;
        }
        for who in 0..self.sensors.len() {
            let on = self.millis(0..3000);
            self.after(on, Event::SwitchOn(who));
            self.after(on + Duration::from_millis(10), Event::Act(who));
        }
        self.after(Duration::from_secs(1), Event::Observe);
        if self.plan.noise {
            self.after(Duration::from_secs(2), Event::Noise);
        }
        if let Some(mean) = self.plan.tcp.disturbed {
            self.after(mean, Event::Disturb);
        }
        self.after(self.plan.active, Event::Calm);
        Ok(())
    }

    /// Goes on to the next thing that happens, or is due.
    fn step(&mut self) -> Checked {
        let event = self.queue.keys().next().map(|(at, _)| *at);
        let gateway = self.gateway.poll_timeout();
        let broker = self.broker.poll_timeout();
        let sensor =
            self.sensors.iter().filter_map(|s| Some((s.node.as_ref()?.poll_timeout()?, s.who))).min();
        let times = [event, gateway, broker, sensor.map(|(at, _)| at)];
        let Some(at) = times.into_iter().flatten().min() else {
            return Err(Law::Liveness.broken("nothing will ever happen again"));
        };
        self.now = self.now.max(at);
        if let Phase::Leaving(since) = self.phase {
            Law::Liveness
                .check(self.now < since + LEAVE_WITHIN, || "the gateway does not come to its end".into())?;
        }
        if event == Some(at) {
            if let Some((_, event)) = self.queue.pop_first() {
                self.happen(event)?;
            }
            return Ok(());
        }
        self.count_timeout()?;
        if gateway == Some(at) {
            self.gateway_timeout()
        } else if broker == Some(at) {
            self.broker.handle_timeout(self.now);
            self.due("broker", self.broker.poll_timeout())?;
            self.pump_broker()
        } else if let Some((_, who)) = sensor {
            let now = self.now;
            let Some(node) = &mut self.sensors[who].node else { return Ok(()) };
            node.handle_timeout(now);
            let next = node.poll_timeout();
            self.due("sensor", next)?;
            self.drain_sensor(who)
        } else {
            Ok(())
        }
    }

    fn count_timeout(&mut self) -> Checked {
        let second = self.now.saturating_duration_since(self.base).as_secs();
        self.timeouts = if self.timeouts.0 == second { (second, self.timeouts.1 + 1) } else { (second, 1) };
        Law::Deadlines.check(self.timeouts.1 <= TIMEOUTS_MAX, || "too many timeouts in a second".into())
    }

    fn due(&self, whose: &str, next: Option<Instant>) -> Checked {
        Law::Deadlines.check(next.is_none_or(|at| at > self.now), || {
            format!("a deadline of the {whose} fired and has not moved")
        })
    }

    fn happen(&mut self, event: Event) -> Checked {
        match event {
            Event::ToGateway(from, frame) => self.frame_to_gateway(from, frame),
            Event::ToSensor(to, frame) => self.frame_to_sensors(to, &frame),
            Event::Act(who) => self.act(who),
            Event::SwitchOn(who) => self.switch_on(who),
            // Who naps at the end is not to be woken.
            Event::Connect(_) if matches!(self.phase, Phase::Probing(_)) => Ok(()),
            Event::Connect(who) => self.connect(who),
            Event::Wake(who, nap) => self.wake(who, nap),
            Event::Mute(who) => {
                self.sensors[who].muted = self.is_active();
                Ok(())
            }
            Event::Unmute(who) => {
                self.sensors[who].muted = false;
                Ok(())
            }
            Event::Observe => self.observe(),
            Event::Noise => self.make_noise(),
            Event::Arrive(link) => self.arrive(link),
            Event::Established(link) => self.link_event(link, LinkEvent::Connected),
            Event::Up(link, octets) => self.octets_to_broker(link, octets),
            Event::UpClosed(link) => {
                self.broker.handle(self.now, BrokerInput::Closed(ConnectionId(link)));
                self.pump_broker()
            }
            Event::Down(link, octets) => self.octets_to_gateway(link, octets),
            Event::DownClosed(link, failure) => self.link_event(link, LinkEvent::Closed(failure)),
            Event::Drained(link) => self.link_event(link, LinkEvent::Drained),
            Event::BrokerDrained(connection) => {
                self.broker.handle(self.now, BrokerInput::Drained(connection));
                self.pump_broker()
            }
            Event::Disturb => self.disturb(),
            Event::Forget => self.forget(),
            Event::Release => self.release(),
            Event::BrokerUp => self.broker_is_up(),
            Event::Calm => self.calm(),
            Event::Look => self.look(),
            Event::Probe(at) => self.probe(at),
            Event::Rise => self.rise(),
            Event::ProbeSensors => self.probe_sensors(),
        }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.serial += 1;
        self.queue.insert((at, self.serial), event);
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    /// Anything from none to twice the mean.
    fn around(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(self.rng.f64() * 2.0)
    }

    fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }
}

/// The radio.
impl World<'_> {
    /// When the copies of a frame arrive, if any do.
    fn fates(&mut self) -> Vec<Duration> {
        let radio = self.plan.radio;
        if !self.is_active() {
            return vec![radio.delay];
        }
        if self.rng.u32(0..1000) < radio.loss {
            self.tally.frames_lost += 1;
            return Vec::new();
        }
        let copies = if self.rng.u32(0..1000) < radio.dup { 2 } else { 1 };
        self.tally.frames_copied += copies - 1;
        let fate = |_| {
            let jitter = radio.jitter.mul_f64(self.rng.f64());
            let late = self.rng.u32(0..1000) < radio.late;
            self.tally.frames_late += u64::from(late);
            radio.delay + jitter + if late { LATE.mul_f64(self.rng.f64()) } else { Duration::ZERO }
        };
        (0..copies).map(fate).collect()
    }

    fn frame_to_gateway(&mut self, addr: SocketAddr, frame: Bytes) -> Checked {
        if matches!(self.phase, Phase::Leaving(_)) {
            return Ok(());
        }
        let from = peer(addr);
        self.trace.add(self.now, Step::FrameIn(place(addr), frame.clone()));
        self.air.frame_in(self.now, &from, &frame, &self.ledger)?;
        self.tell_gateway(Input::Frame { from, route: Route::default(), frame })
    }

    fn frame_to_sensors(&mut self, to: SocketAddr, frame: &Bytes) -> Checked {
        for who in 0..self.sensors.len() {
            let sensor = &self.sensors[who];
            if sensor.addr != to || sensor.muted || sensor.node.is_none() {
                continue;
            }
            let node_id = sensor.node_id.clone();
            let ours = decode(frame).is_ok_and(|f| f.encapsulation.map(|e| e.node_id) == node_id.as_deref());
            if ours {
                self.trace.add(self.now, Step::Heard(who, frame.clone()));
            }
            let frame = frame.clone();
            self.with_node(who, |node, now| node.handle_frame(now, &frame))?;
        }
        Ok(())
    }

    fn frame_from_gateway(&mut self, to: Target, frame: Bytes) -> Checked {
        let Target::Unicast { addr: Address::Udp(addr), .. } = to else {
            let advertise = decode(&frame).is_ok_and(|frame| matches!(frame.packet, Packet::Advertise(_)));
            Law::Manners.check(advertise, || "a broadcast that is no ADVERTISE".into())?;
            let addrs: Vec<_> = self.sensors.iter().map(|sensor| sensor.addr).collect();
            for addr in addrs {
                self.send_to_sensor(addr, frame.clone());
            }
            return Ok(());
        };
        self.trace.add(self.now, Step::FrameOut(place(addr), frame.clone()));
        self.air.frame_out(&peer(addr), &frame, self.gateway.counters(), &self.ledger)?;
        self.send_to_sensor(addr, frame);
        Ok(())
    }

    fn send_to_sensor(&mut self, addr: SocketAddr, frame: Bytes) {
        for delay in self.fates() {
            self.after(delay, Event::ToSensor(addr, frame.clone()));
        }
        let is_disconnect = decode(&frame).is_ok_and(|frame| matches!(frame.packet, Packet::Disconnect(_)));
        if addr.ip() == NOISY && is_disconnect {
            // It answers every DISCONNECT.
            self.after(self.plan.radio.delay * 2, Event::ToGateway(addr, frame));
        }
    }

    /// Frames from somebody who is no client.
    fn make_noise(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        const NOISE: [&[u8]; 12] = [
            b"",
            b"\x00",
            b"\x05\x00\x01\x00\x3c",           // ADVERTISE
            b"\x03\x02\x09",                   // GWINFO
            b"\x03\x01\x00",                   // SEARCHGW
            b"\x02\x16",                       // PINGREQ
            b"\x03\x05\x00",                   // CONNACK
            b"\x09\x0c\x60\x00\x07\x00\x00hi", // PUBLISH, QoS −1, normal id
            b"\x07\x0c\x62#/\x00\x00",         // PUBLISH, QoS −1, wildcard
            b"\x07\x0d\x00\x01\x00\x01\x00",   // PUBACK
            b"\x08\xfe\x00",                   // an encapsulation that is cut
            b"\x05\xfe\x00\xaa\xbb\x09\x0c",   // and one around half a message
        ];
        let mut frame = NOISE[self.rng.usize(..NOISE.len())].to_vec();
        if self.rng.bool() {
            frame = (0..self.rng.usize(0..12)).map(|_| self.rng.u8(..)).collect();
            // What looks like a CONNECT would be one.
            frame.iter_mut().filter(|octet| **octet == 4).for_each(|octet| *octet = 0xFF);
        }
        let addr = SocketAddr::from((NOISY, self.rng.u16(1..4)));
        self.frame_to_gateway(addr, frame.into())?;
        let pause = self.around(Duration::from_millis(800));
        self.after(pause, Event::Noise);
        Ok(())
    }
}

/// Whether this begins with a CONNECT of MQTT 5.
fn speaks_5(octets: &[u8]) -> bool {
    let name = octets.windows(4).take(8).position(|window| window == b"MQTT");
    name.and_then(|at| octets.get(at + 4)) == Some(&5)
}

/// An address in few letters: most are on one host.
fn place(addr: SocketAddr) -> String {
    match addr.ip() {
        IpAddr::V4(ip) if ip == Ipv4Addr::new(10, 0, 0, 1) => addr.port().to_string(),
        _ => addr.to_string(),
    }
}

fn peer(addr: SocketAddr) -> Peer {
    Peer { port: PortId(0), addr: Address::Udp(addr), node: None }
}

/// The gateway.
impl World<'_> {
    fn tell_gateway(&mut self, input: Input) -> Checked {
        let before = self.gateway.counters().clone();
        self.gateway.handle(self.now, input);
        self.drain_gateway(&before)
    }

    fn gateway_timeout(&mut self) -> Checked {
        self.air.timeout(self.now, &mut self.ledger);
        let before = self.gateway.counters().clone();
        self.gateway.handle_timeout(self.now);
        self.drain_gateway(&before)?;
        self.due("gateway", self.gateway.poll_timeout())
    }

    fn drain_gateway(&mut self, before: &Counters) -> Checked {
        self.air.counted(before, self.gateway.counters(), &self.ledger)?;
        while let Some(output) = self.gateway.poll_output() {
            match output {
                Output::Send { to, frame } => self.frame_from_gateway(to, frame)?,
                Output::Link(LinkId(link), command) => self.link_command(self.first_link + link, command)?,
                Output::Store { lsn, .. } => {
                    self.gateway.handle(self.now, Input::Stored(lsn, Outcome::Durable));
                }
                Output::Stopped => {
                    let asked = matches!(self.phase, Phase::Leaving(_));
                    Law::Manners.check(asked, || "the gateway stops unasked".into())?;
                    self.phase = Phase::Over;
                }
            }
        }
        self.air.end()?;
        self.check_conservation()?;
        self.check_bounds()
    }

    fn check_conservation(&self) -> Checked {
        let counters = self.gateway.counters();
        let gone = counters.downlink_delivered
            + counters.downlink_unanswered
            + counters.downlink_offline
            + counters.downlink_expired
            + counters.downlink_ended
            + sheds(counters);
        let waiting = self.gateway.waiting_messages() as u64;
        Law::Conservation.check(counters.downlink_recipients == gone + waiting, || {
            format!("{} messages for clients, {gone} gone, {waiting} waiting", counters.downlink_recipients)
        })
    }

    fn check_bounds(&self) -> Checked {
        let (sessions, limits) = (self.gateway.sessions(), &self.plan.settings.sessions);
        Law::Bounds.check(sessions == self.air.sessions(), || {
            format!("the gateway has {sessions} sessions, it should have {}", self.air.sessions())
        })?;
        // One message of each client may be put back over the limit.
        let octets = limits.queue_total.min(sessions * limits.queue.bytes) + sessions * 400;
        let messages = sessions * (limits.queue.messages + 2);
        let (queued, waiting) = (self.gateway.queued_octets(), self.gateway.waiting_messages());
        let fair = queued <= octets && waiting <= messages && (waiting > 0 || queued == 0);
        Law::Bounds.check(fair, || format!("{queued} octets of {waiting} messages wait"))
    }
}

/// The connection to the broker.
impl World<'_> {
    fn link_command(&mut self, link: u64, command: LinkCommand) -> Checked {
        match command {
            LinkCommand::Connect { .. } => {
                self.trace.note(self.now, format!("connection {link} is asked for"));
                let further = self.streams.values().any(|stream| stream.open && stream.is_own());
                let (up_at, down_at) = (self.now, self.now);
                let stream =
                    Stream { whose: None, further, five: None, up_at, down_at, cut: false, open: true };
                self.streams.insert(link, stream);
                let up_at = self.pass(link, true);
                self.at(up_at, Event::Arrive(link));
            }
            LinkCommand::Write(octets) => {
                self.account_for(link, &octets)?;
                self.trace.note(self.now, format!("writes {} octets", octets.len()));
                for piece in self.pieces(link, octets) {
                    let at = self.pass(link, true);
                    self.at(at, Event::Up(link, piece));
                }
                let drained = self.tcp_delay(link);
                self.after(drained, Event::Drained(link));
            }
            LinkCommand::Close => {
                self.trace.note(self.now, format!("connection {link} is closed"));
                let at = self.pass(link, true);
                if let Some(stream) = self.streams.get_mut(&link) {
                    stream.open = false;
                }
                self.at(at, Event::UpClosed(link));
            }
        }
        Ok(())
    }

    /// What the gateway writes, as the account of that session sees it.
    fn account_for(&mut self, link: u64, octets: &Bytes) -> Checked {
        let Some(stream) = self.streams.get_mut(&link) else { return Ok(()) };
        if stream.whose.is_none() && speaks_5(octets) {
            stream.five = Some(Five::default());
        }
        let meanings = match &mut stream.five {
            Some(five) => five.account.up(octets),
            None => vec![Meaning::Octets(octets.clone())],
        };
        for meaning in meanings {
            let Meaning::Octets(octets) = meaning else { continue };
            let whose = match &stream.whose {
                Some(whose) => whose.clone(),
                None => {
                    let whose = link::client_id(&octets)?;
                    self.accounts.entry(whose.clone()).or_default().connected();
                    self.air.lane(link::lane(&whose));
                    stream.whose.insert(whose).clone()
                }
            };
            let lane = link::lane(&whose);
            for fact in self.accounts.entry(whose).or_default().wrote(&octets, &self.ledger)? {
                if let Fact::Acked { no, retain, last } = fact {
                    self.air.ack_out(lane, no, retain, last, self.gateway.counters(), &self.ledger)?;
                }
            }
        }
        Ok(())
    }

    fn tcp_delay(&mut self, link: u64) -> Duration {
        let tcp = self.plan.tcp;
        tcp.delay + tcp.jitter.mul_f64(self.rng_of(link).f64())
    }

    fn rng_of(&mut self, link: u64) -> &mut Rng {
        let further = self.streams.get(&link).is_some_and(|stream| stream.further);
        if further { &mut self.lane_rng } else { &mut self.rng }
    }

    /// When what is sent now arrives.
    fn pass(&mut self, link: u64, up: bool) -> Instant {
        let at = self.now + self.tcp_delay(link);
        let Some(stream) = self.streams.get_mut(&link) else { return at };
        let last = if up { &mut stream.up_at } else { &mut stream.down_at };
        *last = at.max(*last);
        *last
    }

    /// Cuts octets anywhere.
    fn pieces(&mut self, link: u64, mut octets: Bytes) -> Vec<Bytes> {
        let rng = self.rng_of(link);
        let mut pieces = Vec::new();
        while octets.len() > 1 && rng.u8(0..3) == 0 {
            let at = rng.usize(1..octets.len());
            pieces.push(octets.split_to(at));
        }
        pieces.push(octets);
        pieces
    }

    fn arrive(&mut self, link: u64) -> Checked {
        if !self.broker_up {
            let failure = LinkFailure::Connect("refused".into());
            let at = self.pass(link, false);
            self.at(at, Event::DownClosed(link, failure));
            return Ok(());
        }
        if self.streams.get(&link).is_some_and(|stream| stream.cut) {
            let failure = LinkFailure::Connect("timed out".into());
            self.after(self.plan.settings.broker.connect_timeout, Event::DownClosed(link, failure));
            return Ok(());
        }
        self.broker.handle(self.now, BrokerInput::Opened(ConnectionId(link)));
        let at = self.pass(link, false);
        self.at(at, Event::Established(link));
        self.pump_broker()
    }

    fn link_event(&mut self, link: u64, event: LinkEvent) -> Checked {
        let Some(stream) = self.streams.get_mut(&link).filter(|stream| stream.open) else { return Ok(()) };
        match event {
            LinkEvent::Connected if stream.cut => {
                let failure = LinkFailure::Connect("timed out".into());
                self.after(self.plan.settings.broker.connect_timeout, Event::DownClosed(link, failure));
                return Ok(());
            }
            LinkEvent::Closed(_) => stream.open = false,
            _ => {}
        }
        if !matches!(event, LinkEvent::Drained) {
            self.trace.note(self.now, format!("connection {link}: {event:?}"));
        }
        self.air.begin(self.now);
        self.tell_gateway(Input::Link(LinkId(link - self.first_link), event))
    }

    fn octets_to_gateway(&mut self, link: u64, octets: Bytes) -> Checked {
        if self.streams.get(&link).is_none_or(|stream| stream.cut || !stream.open) {
            return Ok(());
        }
        self.trace.add(self.now, Step::Down(link, octets.clone()));
        self.air.begin(self.now);
        let lane = self.streams.get(&link).and_then(|stream| stream.whose.as_deref()).map_or(0, link::lane);
        for fact in self.read(link, &octets)? {
            match fact {
                Fact::Message { no, qos, retain, fresh, dup } => {
                    let arrival = Arrival { no, qos, retain, fresh, dup };
                    self.air.message_in(lane, &arrival, &self.ledger);
                }
                Fact::Lost => self.air.broker_forgot(lane),
                Fact::Filter(filter, has) => self.air.filter_at_broker(lane, &filter, has),
                Fact::Acked { .. } => {}
            }
        }
        self.tell_gateway(Input::Link(LinkId(link - self.first_link), LinkEvent::Bytes(octets)))
    }

    /// What the broker says, as the account of that session sees it.
    fn read(&mut self, link: u64, octets: &Bytes) -> Checked<Vec<Fact>> {
        let Some(stream) = self.streams.get_mut(&link) else { return Ok(Vec::new()) };
        let Some(account) = stream.whose.as_ref().and_then(|whose| self.accounts.get_mut(whose)) else {
            return Ok(Vec::new());
        };
        let Some(five) = &mut stream.five else { return account.read(octets, &mut self.ledger) };
        five.arrived += octets.len();
        let mut facts = Vec::new();
        while let Some((end, packet)) = five.meant.front()
            && *end <= five.arrived
        {
            facts.extend(account.read(packet, &mut self.ledger)?);
            five.meant.pop_front();
        }
        Ok(facts)
    }

    fn octets_to_broker(&mut self, link: u64, octets: Bytes) -> Checked {
        if !self.broker_up || self.streams.get(&link).is_none_or(|stream| stream.cut) {
            return Ok(());
        }
        self.trace.add(self.now, Step::Up(link, octets.clone()));
        let stream = self.streams.get_mut(&link).filter(|stream| stream.five.is_some());
        let Some(Stream { five: Some(five), whose: Some(whose), .. }) = stream else {
            self.broker.handle(self.now, BrokerInput::Bytes(ConnectionId(link), octets));
            return self.pump_broker();
        };
        if !self.plan.broker_knows_5 {
            self.broker.handle(self.now, BrokerInput::Closed(ConnectionId(link)));
            let at = self.pass(link, false);
            self.at(at, Event::DownClosed(link, LinkFailure::Closed));
            return self.pump_broker();
        }
        let identifiers = self.identifiers.entry(whose.clone()).or_default();
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        let meanings = five.broker.up(&octets);
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        for meaning in meanings {
            match meaning {
                Meaning::Octets(octets) => {
                    self.broker.handle(self.now, BrokerInput::Bytes(ConnectionId(link), octets));
                }
                Meaning::Forget(client) => self.broker.inject(self.now, Fault::ForgetSession { client }),
            }
        }
        self.pump_broker()
    }

    /// What the broker writes, in the words of the connection.
    fn translated(&mut self, link: u64, octets: Bytes) -> Bytes {
        let Some(stream) = self.streams.get_mut(&link) else { return octets };
        let (Some(five), Some(whose)) = (&mut stream.five, &stream.whose) else { return octets };
        let identifiers = self.identifiers.entry(whose.clone()).or_default();
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        five.partial.extend_from_slice(&octets);
        let mut out = BytesMut::new();
        while let Some(packet) = translator::next(&mut five.partial) {
            let meaning = five.broker.down(&packet);
            five.sent += meaning.len();
            five.meant.push_back((five.sent, packet.freeze()));
            out.extend_from_slice(&meaning);
        }
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        out.freeze()
    }

    /// Takes what the broker has to say. The observer answers at once.
    fn pump_broker(&mut self) -> Checked {
        while let Some(output) = self.broker.poll_output() {
            match output {
                BrokerOutput::Write(id, octets) if id == self.observer.id() => {
                    let (seen, answers) = self.observer.handle(&octets)?;
                    for seen in seen {
                        let note = format!("broker took {} {:?}", seen.topic, seen.payload);
                        self.trace.note(self.now, note);
                        self.ledger.at_broker(&seen.payload, &seen.topic)?;
                    }
                    if !answers.is_empty() {
                        self.broker.handle(self.now, BrokerInput::Bytes(id, answers));
                    }
                    self.broker.handle(self.now, BrokerInput::Drained(id));
                }
                BrokerOutput::Close(id) if id == self.observer.id() => self.observer.closed(),
                BrokerOutput::Write(id, octets) => {
                    let octets = self.translated(id.0, octets);
                    for piece in self.pieces(id.0, octets) {
                        let at = self.pass(id.0, false);
                        self.at(at, Event::Down(id.0, piece));
                    }
                    let drained = self.tcp_delay(id.0);
                    self.after(drained, Event::BrokerDrained(id));
                }
                BrokerOutput::Close(id) => {
                    let cut = self.streams.get(&id.0).is_none_or(|stream| stream.cut);
                    if !cut {
                        let at = self.pass(id.0, false);
                        self.at(at, Event::DownClosed(id.0, LinkFailure::Closed));
                    }
                }
            }
        }
        Ok(())
    }

    fn observer_connects(&mut self) -> Checked {
        let octets = self.observer.connect();
        let id = self.observer.id();
        self.broker.handle(self.now, BrokerInput::Opened(id));
        self.broker.handle(self.now, BrokerInput::Bytes(id, octets));
        self.pump_broker()
    }

    /// The observer publishes something for the sensors.
    fn observe(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let names = plan::all_names(self.sensors.len());
        let topic = names[self.rng.usize(..names.len())].clone();
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][self.rng.usize(..3)];
        let retain = self.rng.u8(0..6) == 0;
        self.observer_publishes(topic, qos, retain)?;
        let pause = self.around(self.plan.pace / 2);
        self.after(pause, Event::Observe);
        Ok(())
    }

    fn observer_publishes(
        &mut self,
        topic: mqtt_sn_gateway::topic::TopicName,
        qos: QoS,
        retain: bool,
    ) -> Checked<Option<No>> {
        if !self.observer.connected {
            return Ok(None);
        }
        let len = self.payload_len();
        let (no, payload) =
            self.ledger.enter(Origin::Observer, topic.clone(), crate::link::qos(qos), retain, len);
        self.trace.note(self.now, format!("observer publishes m{no} on {topic}, {qos:?}, retain {retain}"));
        let octets = self.observer.publish(topic.as_str(), payload, qos, retain);
        self.broker.handle(self.now, BrokerInput::Bytes(self.observer.id(), octets));
        self.pump_broker()?;
        Ok(Some(no))
    }

    fn payload_len(&mut self) -> usize {
        match self.rng.u8(0..20) {
            0 => self.rng.usize(240..300),
            _ => self.rng.usize(4..40),
        }
    }
}

/// What goes wrong between gateway and broker.
impl World<'_> {
    fn disturb(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let client = self.some_link();
        let mut fault = None;
        match self.rng.u8(0..15) {
            0..3 => self.cut(),
            12 | 14 if self.plan.tcp.restarts => {
                self.restart_gateway();
                return self.disturb_again();
            }
            13 => {
                let id = self.rng.u16(61_000..62_000);
                let packets = [
                    Packet4::PubAck(PubAck::new(id)),
                    Packet4::PubRec(PubRec::new(id)),
                    Packet4::PubRel(PubRel::new(id)),
                    Packet4::PubComp(PubComp::new(id)),
                    Packet4::UnsubAck(UnsubAck::new(id)),
                    Packet4::PingResp,
                ];
                let packet = packets[self.rng.usize(..packets.len())].clone();
                fault = Some(Fault::Send { client, packet });
            }
            3 | 4 => return self.crash().and_then(|()| self.disturb_again()),
            5 | 6 => {
                let kinds = [
                    Kind::PubAck,
                    Kind::PubRec,
                    Kind::PubComp,
                    Kind::SubAck,
                    Kind::ConnAck,
                    Kind::PubRel,
                    Kind::PingResp,
                ];
                let kind = kinds[self.rng.usize(..kinds.len())];
                let (skip, count) = (self.rng.usize(0..3), self.rng.usize(1..5));
                if self.plan.tcp.amnesia && kind == Kind::SubAck {
                    // What was asked in the session that is about to go is asked again in the next.
                    let forget = self.millis(500..6000);
                    self.after(forget, Event::Forget);
                }
                fault = Some(Fault::Withhold { client, kind, skip, count });
            }
            7 => {
                let by = self.millis(50..4500);
                fault = Some(Fault::Delay { client, by });
            }
            8 => {
                self.cut();
                let count = self.rng.usize(1..3);
                let code = ConnectReturnCode::ServiceUnavailable;
                fault = Some(Fault::Refuse { client: Some(client), code, count });
            }
            9 if self.plan.tcp.amnesia => return self.forget().and_then(|()| self.disturb_again()),
            10 => {
                let (whom, after) = (Whom::Client(client), self.rng.usize(0..200));
                let up = self.rng.bool();
                fault = Some(if up {
                    Fault::CutReceived { whom, after }
                } else {
                    Fault::CutSent { whom, after }
                });
            }
            _ => {
                let code = SubscribeReasonCode::Failure;
                fault = Some(Fault::Grant { client, code, count: 1 });
            }
        }
        if let Some(fault) = fault {
            self.trace.note(self.now, format!("{fault:?}"));
            self.tally.faults += 1;
            self.broker.inject(self.now, fault);
            self.pump_broker()?;
            let release = self.millis(300..6000);
            self.after(release, Event::Release);
        }
        self.disturb_again()
    }

    /// The broker loses the gateway's session, and nothing else.
    fn forget(&mut self) -> Checked {
        if !self.is_active() || !self.broker_up {
            return Ok(());
        }
        let client = self.some_link();
        self.trace.note(self.now, format!("the broker forgets {client}"));
        self.ledger.losses += u32::from(link::lane(client.as_str()) == 0);
        self.tally.faults += 1;
        self.broker.inject(self.now, Fault::ForgetSession { client });
        self.pump_broker()
    }

    fn disturb_again(&mut self) -> Checked {
        let mean = self.plan.tcp.disturbed.unwrap_or(Duration::from_secs(5));
        let pause = self.around(mean);
        self.after(pause, Event::Disturb);
        Ok(())
    }

    /// What is on its way is lost; who notices, and when, differs.
    fn cut(&mut self) {
        let Some(link) = self.some_stream() else { return };
        let Some(stream) = self.streams.get_mut(&link).filter(|stream| !stream.cut && stream.open) else {
            return;
        };
        stream.cut = true;
        self.tally.cuts += 1;
        let (gateway, broker) = (self.rng.u8(0..4) > 0, self.rng.u8(0..4) > 0);
        self.trace.note(
            self.now,
            format!("connection {link} is cut (gateway notices: {gateway}, broker notices: {broker})"),
        );
        if gateway {
            let at = self.millis(0..500);
            self.after(at, Event::DownClosed(link, LinkFailure::Io("reset".into())));
        }
        if broker {
            let at = self.millis(0..500);
            self.after(at, Event::UpClosed(link));
        }
    }

    /// The last connection of the gateway's own link, or, where there are further ones, as often one of them.
    fn some_stream(&mut self) -> Option<u64> {
        let open = self.streams.iter().filter(|(_, stream)| stream.open && !stream.cut && !stream.is_own());
        let further: Vec<u64> = open.filter(|(_, stream)| stream.further).map(|(link, _)| *link).collect();
        if !further.is_empty() && self.lane_rng.bool() {
            return Some(further[self.lane_rng.usize(..further.len())]);
        }
        self.streams.iter().rfind(|(_, stream)| !stream.further).map(|(link, _)| *link)
    }

    /// The gateway's own client id, or, where there are further links, as often that of one of them.
    fn some_link(&mut self) -> ClientId {
        let further: Vec<&String> = self.accounts.keys().filter(|client| link::lane(client) > 0).collect();
        if further.is_empty() || self.lane_rng.bool() {
            return gateway_id();
        }
        ClientId::new(further[self.lane_rng.usize(..further.len())]).expect("a sound id")
    }

    fn crash(&mut self) -> Checked {
        if !self.broker_up {
            return Ok(());
        }
        let lost = self.plan.tcp.amnesia && self.rng.bool();
        let memory = if lost { Memory::Lost } else { Memory::Kept };
        self.ledger.losses += u32::from(lost);
        self.tally.crashes += 1;
        self.trace.note(self.now, format!("the broker crashes, memory {memory:?}"));
        self.cut();
        for stream in self.streams.values_mut() {
            stream.cut = true;
        }
        self.broker_up = false;
        self.broker.restart(memory);
        self.pump_broker()?;
        let up = self.millis(50..6000);
        self.after(up, Event::BrokerUp);
        Ok(())
    }

    /// A new gateway in the place of this one, with nothing of what that knew.
    fn restart_gateway(&mut self) {
        self.trace.note(self.now, "the gateway is restarted");
        self.tally.restarts += 1;
        self.plan.settings.seed = self.rng.u64(..);
        let settings = self.plan.settings.clone();
        let gateway = std::mem::replace(&mut self.gateway, Gateway::new(settings.clone(), self.now));
        self.retired.push(gateway.counters().clone());
        self.air = Air::new(settings, self.now);
        self.accounts.clear();
        self.ledger.forget(None);
        for (link, stream) in &mut self.streams {
            if std::mem::replace(&mut stream.open, false) && !stream.cut {
                stream.cut = true;
                self.serial += 1;
                self.queue.insert((self.now + self.plan.tcp.delay, self.serial), Event::UpClosed(*link));
            }
        }
        self.first_link += 1000;
    }

    fn broker_is_up(&mut self) -> Checked {
        self.trace.note(self.now, "the broker is there");
        self.broker_up = true;
        if self.observer.connected { Ok(()) } else { self.observer_connects() }
    }

    /// Ends what the faults began.
    fn release(&mut self) -> Checked {
        self.release_one(gateway_id());
        // Also those that only the gateway before this one had.
        for lane in 2..=LANES_MAX {
            self.release_one(ClientId::new(format!("{GATEWAY}-{lane}")).expect("a sound id"));
        }
        self.pump_broker()
    }

    /// Ends what the faults of one link began.
    fn release_one(&mut self, client: ClientId) {
        let code = ConnectReturnCode::ServiceUnavailable;
        for fault in [
            Fault::Release { client: client.clone() },
            Fault::Delay { client: client.clone(), by: Duration::ZERO },
            Fault::Refuse { client: Some(client.clone()), code, count: 0 },
            Fault::Grant { client: client.clone(), code: SubscribeReasonCode::Failure, count: 0 },
        ] {
            self.broker.inject(self.now, fault);
        }
        if !self.is_active() {
            let whom = Whom::Client(client);
            self.broker.inject(self.now, Fault::CutReceived { whom: whom.clone(), after: usize::MAX });
            self.broker.inject(self.now, Fault::CutSent { whom, after: usize::MAX });
        }
    }
}

fn gateway_id() -> ClientId {
    ClientId::new(GATEWAY).expect("a sound id")
}

/// The sensors.
impl World<'_> {
    fn switch_on(&mut self, who: Who) -> Checked {
        if self.sensors[who].node.is_some() || self.sensors[who].retired {
            return Ok(());
        }
        let seed = self.rng.u64(..);
        let will = self.sensors[who].has_will.then(|| self.make_will(who));
        self.trace.note(self.now, format!("s{who} is switched on"));
        self.sensors[who].switch_on(self.now, seed, will);
        self.drain_sensor(who)
    }

    fn make_will(&mut self, who: Who) -> Will {
        let topic = plan::name(&format!("will/{who}"));
        let (qos, retain) = (self.any_qos(), self.rng.u8(0..5) == 0);
        let (_, message) = self.ledger.enter(Origin::Will(who), topic.clone(), qos, retain, 4);
        Will { topic, message, qos, retain }
    }

    fn any_qos(&mut self) -> Qos {
        [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][self.rng.usize(..3)]
    }

    /// Something a sensor's application does.
    fn act(&mut self, who: Who) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let pause = self.around(self.plan.pace);
        self.after(pause, Event::Act(who));
        if self.sensors[who].node.is_none() {
            return Ok(());
        }
        if self.sensors[who].sleeps && self.doze(who)? {
            return Ok(());
        }
        let vanishing = self.plan.vanishing;
        match self.rng.u8(0..100) {
            0..52 => self.publish(who, None),
            52..58 => self.publish_without_session(who),
            58..76 => self.subscribe(who),
            76..82 => self.unsubscribe(who),
            82..86 => self.take_leave(who),
            86..90 if vanishing => self.lose_power(who),
            90..94 if vanishing => self.lose_sight(who),
            94..97 if self.plan.roaming => {
                self.roam(who);
                Ok(())
            }
            94..97 if vanishing && self.sensors[who].node_id.is_none() => {
                self.tally.moves += 1;
                let port = 10_000 + 100 * who as u16 + (self.tally.moves % 100) as u16;
                self.sensors[who].addr = SocketAddr::from(([10, 0, 0, 2], port));
                self.trace.note(self.now, format!("s{who} is at {port} from now on"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What only sleepers do. Whether there was anything to do.
    fn doze(&mut self, who: Who) -> Checked<bool> {
        let vanishing = self.plan.vanishing;
        if !self.sensors[who].is_asleep() {
            let connected = self.sensors[who].node.as_ref().is_some_and(|node| node.is_connected());
            let tired = connected && self.rng.u8(0..100) < 35;
            if tired {
                self.fall_asleep(who)?;
            }
            return Ok(tired);
        }
        match self.rng.u8(0..100) {
            0..12 => self.fall_asleep(who)?,
            12..20 => self.connect(who)?,
            20..25 => self.take_leave(who)?,
            25..40 => self.publish(who, None)?,
            40..50 => self.publish_without_session(who)?,
            45..52 if self.plan.roaming => self.roam(who),
            50..53 if vanishing => self.lose_power(who)?,
            53..58 if vanishing => self.lose_sight(who)?,
            _ => {}
        }
        Ok(true)
    }

    /// Another address from now on, one that nobody had; or the two of a pair of sleepers change places.
    fn roam(&mut self, who: Who) {
        let now = self.now;
        let settled =
            |sensor: &Sensor| sensor.resting.is_some_and(|at| now.saturating_duration_since(at) > QUIET);
        let may = |sensor: &Sensor| !sensor.settled && sensor.node_id.is_none() && settled(sensor);
        let mut others = self.sensors.iter().filter(|sensor| sensor.who != who && may(sensor));
        if self.sensors[who].settled {
            return;
        }
        self.tally.moves += 1;
        if may(&self.sensors[who])
            && let Some(other) = others.next().map(|sensor| sensor.who)
            && self.rng.bool()
        {
            self.trace.note(now, format!("s{who} and s{other} change places"));
            self.tally.swaps += 1;
            let addr = self.sensors[who].addr;
            self.sensors[who].addr = std::mem::replace(&mut self.sensors[other].addr, addr);
            return;
        }
        let moves = self.tally.moves as u16;
        let (near, mut addr) = (self.rng.bool(), self.sensors[who].addr);
        if self.sensors[who].node_id.is_some() {
            addr = FORWARDERS[self.rng.usize(..FORWARDERS.len())].into();
        } else {
            addr.set_port(10_000 + moves);
            match addr.ip() {
                _ if near && self.rng.bool() => {}
                IpAddr::V6(ip) => {
                    let [a, b, c, d, ..] = ip.segments();
                    let net = if near { d } else { 0x100 + moves };
                    addr.set_ip([a, b, c, net, 0, 0, 0, moves].into());
                }
                IpAddr::V4(_) => addr.set_ip([10, 1, (moves >> 8) as u8, moves as u8].into()),
            }
        }
        self.trace.note(now, format!("s{who} is at {addr} from now on"));
        self.sensors[who].addr = addr;
    }

    /// Tells the gateway for how long it sleeps, also if it sleeps already.
    fn fall_asleep(&mut self, who: Who) -> Checked {
        let nap = Duration::from_secs(self.rng.u64(self.plan.naps.clone()));
        self.trace.note(self.now, format!("s{who} wants to sleep for {nap:?}"));
        self.sensors[who].nap = nap;
        self.sensors[who].resting = None;
        self.with_node(who, |node, now| node.sleep(now, nap))
    }

    /// Asleep from now on, for about as long as was said.
    fn set_alarm(&mut self, who: Who) {
        let oversleeps = self.plan.oversleeping && self.rng.u8(0..10) == 0;
        let factor = if oversleeps { 1.6 } else { 0.2 + 1.1 * self.rng.f64() };
        let sensor = &mut self.sensors[who];
        sensor.naps += 1;
        sensor.resting = Some(self.now);
        let alarm = Event::Wake(who, sensor.naps);
        self.tally.naps += 1;
        self.tally.overslept += u64::from(oversleeps);
        self.after(self.sensors[who].nap.mul_f64(factor), alarm);
    }

    fn wake(&mut self, who: Who, nap: u32) -> Checked {
        if !self.is_active() || self.sensors[who].naps != nap {
            return Ok(());
        }
        if self.plan.vanishing && self.rng.u8(0..5) == 0 {
            // In the middle of what it gets.
            let (deaf, back) = (self.millis(0..600), self.millis(1000..15_000));
            self.after(deaf, Event::Mute(who));
            self.after(deaf + back, Event::Unmute(who));
            self.tally.deaf += 1;
        }
        self.sensors[who].resting = None;
        self.with_node(who, |node, now| node.wake(now))
    }

    fn connect(&mut self, who: Who) -> Checked {
        self.sensors[who].resting = None;
        self.with_node(who, |node, now| node.connect(now))
    }

    fn take_leave(&mut self, who: Who) -> Checked {
        self.sensors[who].resting = None;
        let back = self.millis(200..6000);
        self.after(back, Event::Connect(who));
        self.trace.note(self.now, format!("s{who} takes leave"));
        self.with_node(who, |node, now| node.disconnect(now))
    }

    fn lose_power(&mut self, who: Who) -> Checked {
        self.trace.note(self.now, format!("s{who} is switched off"));
        self.tally.reboots += 1;
        self.sensors[who].switch_off();
        let sensor = &mut self.sensors[who];
        if let Some(id) = &mut sensor.node_id
            && self.plan.roaming
            && !sensor.settled
        {
            *id = vec![0xC0, self.tally.reboots as u8, who as u8].into();
        }
        let back = self.millis(100..25_000);
        self.after(back, Event::SwitchOn(who));
        Ok(())
    }

    fn lose_sight(&mut self, who: Who) -> Checked {
        self.trace.note(self.now, format!("s{who} is out of reach"));
        self.sensors[who].muted = true;
        let back = self.millis(500..25_000);
        self.after(back, Event::Unmute(who));
        Ok(())
    }

    fn publish(&mut self, who: Who, probe: Option<Qos>) -> Checked {
        let topic = match probe {
            Some(_) => Topic::Name(plan::name(&format!("probe/{who}"))),
            None => plan::topic(&mut self.rng, &self.sensors[who].predefined),
        };
        let qos = probe.unwrap_or_else(|| self.any_qos());
        let retain = probe.is_none() && self.rng.u8(0..8) == 0;
        let sensor = &self.sensors[who];
        let Some(name) = sensor.name_of(&topic) else { return Ok(()) };
        let (life, persistent) = (sensor.life, !sensor.clean && !sensor.shared);
        let prompt = self.plan.radio.is_prompt() && !sensor.shared;
        let origin = Origin::Sensor { who, life, persistent, prompt };
        let len = self.payload_len();
        let (no, payload) = self.ledger.enter(origin, name, qos, retain, len);
        self.trace.note(self.now, format!("s{who} publishes m{no} on {topic}, {qos:?}, retain {retain}"));
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && let Ok(id) = node.publish(now, topic, payload, qos, retain)
        {
            sensor.given.insert(id, no);
        }
        if matches!(self.phase, Phase::Probing(_)) {
            self.probes.push(no);
        }
        self.drain_sensor(who)
    }

    fn publish_without_session(&mut self, who: Who) -> Checked {
        let topic = plan::topic_without_session(&mut self.rng);
        let sensor = &self.sensors[who];
        let Some(name) = sensor.name_of(&topic) else { return Ok(()) };
        let (life, persistent) = (sensor.life, !sensor.clean && !sensor.shared);
        let origin = Origin::Sensor { who, life, persistent, prompt: true };
        let (no, payload) = self.ledger.enter(origin, name, Qos::MinusOne, false, 4);
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && let Ok(id) = node.publish(now, topic, payload, Qos::MinusOne, false)
        {
            sensor.given.insert(id, no);
        }
        self.drain_sensor(who)
    }

    fn subscribe(&mut self, who: Who) -> Checked {
        let sensor = &self.sensors[who];
        if sensor.held.len() + sensor.asked.len() >= 6 {
            return Ok(());
        }
        let filter = plan::filter(&mut self.rng, &sensor.predefined);
        let qos = self.any_qos();
        self.trace.note(self.now, format!("s{who} subscribes to {filter}, {qos:?}"));
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && node.subscribe(now, filter.clone(), qos).is_ok()
        {
            sensor.asked.push(filter);
        }
        self.drain_sensor(who)
    }

    fn unsubscribe(&mut self, who: Who) -> Checked {
        let held: Vec<_> = self.sensors[who].held.iter().cloned().collect();
        if held.is_empty() {
            return Ok(());
        }
        let filter = held[self.rng.usize(..held.len())].clone();
        self.trace.note(self.now, format!("s{who} unsubscribes from {filter}"));
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && node.unsubscribe(now, filter.clone()).is_ok()
        {
            sensor.asked.push(filter);
        }
        self.drain_sensor(who)
    }

    fn with_node(
        &mut self,
        who: Who,
        call: impl FnOnce(&mut mqtt_sn_gateway::node::Node, Instant),
    ) -> Checked {
        let now = self.now;
        if let Some(node) = &mut self.sensors[who].node {
            call(node, now);
        }
        self.drain_sensor(who)
    }

    fn drain_sensor(&mut self, who: Who) -> Checked {
        while let Some(frame) = self.sensors[who].node.as_mut().and_then(|node| node.poll_transmit()) {
            if self.sensors[who].muted {
                continue;
            }
            let addr = self.sensors[who].addr;
            for delay in self.fates() {
                self.after(delay, Event::ToGateway(addr, frame.clone()));
            }
        }
        while let Some(event) = self.sensors[who].node.as_mut().and_then(|node| node.poll_event()) {
            self.sensor_event(who, event)?;
        }
        Ok(())
    }

    fn sensor_event(&mut self, who: Who, event: NodeEvent) -> Checked {
        let note = match &event {
            NodeEvent::Message(message) => format!("s{who} gets {} {:?}", message.topic, message.qos),
            event => format!("s{who}: {event:?}"),
        };
        self.trace.note(self.now, note);
        let sensor = &mut self.sensors[who];
        match event {
            NodeEvent::Connected | NodeEvent::Restarted => {
                sensor.session += u32::from(sensor.clean);
                sensor.session_since = Some(self.now);
            }
            NodeEvent::Published(id, outcome) => {
                if let Some(no) = sensor.given.remove(&id) {
                    self.ledger.ended(no, outcome)?;
                }
            }
            NodeEvent::Subscribed { filter, result } => {
                sensor.answered(&filter);
                if result.is_ok() {
                    sensor.held.insert(filter);
                } else {
                    sensor.held.remove(&filter);
                    sensor.doubtful.insert(filter);
                }
            }
            NodeEvent::Unsubscribed { filter } => {
                sensor.answered(&filter);
                sensor.held.remove(&filter);
                if !self.plan.radio.is_prompt() {
                    // A late copy of the SUBSCRIBE may come behind.
                    sensor.doubtful.insert(filter);
                }
            }
            NodeEvent::Message(message) => {
                let Some(topic) = sensor.name_of(&message.topic) else {
                    return Err(Law::DownlinkFaithful.broken(format!("s{who} got {message:?}")));
                };
                let session = sensor.session;
                let age = sensor.session_since.map(|since| self.now.saturating_duration_since(since));
                let young = sensor.clean && age.is_some_and(|age| age < LATE + self.plan.radio.delay * 2);
                let no = self.ledger.find(&message.payload);
                let split = no.is_some_and(|no| self.air.is_split(sensor.client, no, &self.ledger));
                let (qos, retain, has_lanes) = (message.qos, message.retain, self.air.has_lanes);
                let got = Got { who, session, young, split, has_lanes, topic: &topic, qos, retain };
                self.ledger.got(&message.payload, &got)?;
            }
            NodeEvent::Asleep => self.set_alarm(who),
            NodeEvent::Drained { .. } => {
                sensor.drained = true;
                self.set_alarm(who);
            }
            NodeEvent::ConnectRefused(_)
            | NodeEvent::ConnectionLost(_)
            | NodeEvent::Disconnected
            | NodeEvent::Refused(_)
            | NodeEvent::GatewayFound { .. } => {}
        }
        Ok(())
    }
}

/// The end.
impl World<'_> {
    /// Nothing goes wrong any more, and everybody wants to be connected.
    fn calm(&mut self) -> Checked {
        self.trace.note(self.now, "calm");
        self.phase = Phase::Calm(self.now);
        self.release()?;
        for who in 0..self.sensors.len() {
            let sensor = &mut self.sensors[who];
            sensor.muted = false;
            if sensor.client != who {
                // One of two that contend must give in.
                sensor.switch_off();
                sensor.retired = true;
                continue;
            }
            self.switch_on(who)?;
            // Without a keep-alive a sensor learns that it was lost, or has moved, when it says something.
            self.publish(who, Some(Qos::AtLeastOnce))?;
            // What took leave a moment ago has yet to hear the answer.
            for delay in [0, 5, 15] {
                self.after(Duration::from_secs(delay), Event::Connect(who));
            }
        }
        self.after(LOOK, Event::Look);
        Ok(())
    }

    /// Why the world is not at rest, if it is not.
    fn unrest(&self) -> Option<String> {
        if !self.gateway.is_connected() {
            return Some("the gateway has no broker".into());
        }
        let stands = |client: &str| {
            let mut streams = self.streams.values().filter(|stream| stream.open && !stream.cut);
            streams.any(|stream| stream.whose.as_deref() == Some(client))
        };
        // One that was left while it could not say so carries nothing, and does not come back.
        let lasting = !matches!(self.phase, Phase::Calm(since) if self.now <= since + COME_BACK);
        let carries = |client: &str| {
            let session = self.broker.session(client);
            self.air.uses(link::lane(client))
                || session.is_some_and(|session| !session.subscriptions.is_empty())
        };
        let mut links = self.accounts.iter().filter(|(_, link)| !link.left);
        let lost = links.find(|(client, link)| !(stands(client) && link.up) && (!lasting || carries(client)));
        if let Some((client, _)) = lost {
            return Some(format!("{client} has no broker"));
        }
        let mut sensors = self.sensors.iter().filter(|sensor| !sensor.retired);
        if let Some(unrest) = sensors.find_map(Sensor::unrest).or_else(|| self.air.unrest()) {
            return Some(unrest);
        }
        let (unsettled, octets) = (self.gateway.unsettled_deliveries(), self.gateway.queued_octets());
        (unsettled + octets > 0)
            .then(|| format!("{unsettled} deliveries are unsettled, {octets} octets wait"))
    }

    fn look(&mut self) -> Checked {
        let unrest = self.unrest();
        self.rested = if unrest.is_some() { 0 } else { self.rested + 1 };
        let (since, patience) = match self.phase {
            Phase::Calm(since) if self.gateway.counters().downlink_unanswered > 0 => (since, T_WAIT),
            Phase::Calm(since) | Phase::Probing(since) => (since, Duration::ZERO),
            Phase::Active | Phase::Leaving(_) | Phase::Over => return Ok(()),
        };
        let waited = self.now.saturating_duration_since(since);
        if self.rested >= LOOKS && waited >= patience {
            self.rested = 0;
            if matches!(self.phase, Phase::Probing(_)) {
                self.finish()?;
                return self.shut_down();
            }
            self.phase = Phase::Probing(self.now + Duration::from_secs(30));
            self.shed_before_probes = sheds(self.gateway.counters());
            let sleepers: Vec<Who> = self.sleepers().collect();
            let nap = if sleepers.is_empty() { Duration::ZERO } else { Duration::from_secs(2) };
            for who in sleepers {
                self.with_node(who, |node, now| node.sleep(now, LONG_NAP))?;
            }
            self.after(nap, Event::Probe(0));
            return Ok(());
        }
        Law::Liveness.check(waited < REST_WITHIN + patience, || {
            format!("after {waited:?} of calm {}", unrest.unwrap_or_default())
        })?;
        self.after(LOOK, Event::Look);
        Ok(())
    }

    /// The observer publishes on every topic, one after the other; then the sensors.
    fn probe(&mut self, at: usize) -> Checked {
        let names = plan::all_names(self.sensors.len());
        if let Some(topic) = names.get(at) {
            let no = self.observer_publishes(topic.clone(), QoS::AtLeastOnce, false)?;
            let no = no.ok_or_else(|| Law::Liveness.broken("the observer has no broker"))?;
            self.probes.push(no);
            self.after(LOOK, Event::Probe(at + 1));
            return Ok(());
        }
        let sleepers: Vec<Who> = self.sleepers().collect();
        if sleepers.is_empty() {
            return self.probe_sensors();
        }
        for who in sleepers {
            self.sensors[who].drained = false;
            self.with_node(who, |node, now| node.wake(now))?;
        }
        self.after(DRAINED_WITHIN, Event::Rise);
        Ok(())
    }

    fn sleepers(&self) -> impl Iterator<Item = Who> {
        self.sensors.iter().filter(|sensor| sensor.sleeps && !sensor.retired).map(|sensor| sensor.who)
    }

    /// Who slept through the probes has fetched them.
    fn rise(&mut self) -> Checked {
        let sleepers: Vec<Who> = self.sleepers().collect();
        for who in sleepers {
            Law::DrainComplete
                .check(self.sensors[who].drained, || format!("s{who} woke and has no PINGRESP"))?;
            self.with_node(who, |node, now| node.connect(now))?;
        }
        self.after(DRAINED_WITHIN, Event::ProbeSensors);
        Ok(())
    }

    fn probe_sensors(&mut self) -> Checked {
        for who in 0..self.sensors.len() {
            if self.sensors[who].retired {
                continue;
            }
            self.publish(who, Some(Qos::AtLeastOnce))?;
            self.publish(who, Some(Qos::ExactlyOnce))?;
        }
        self.after(LOOK, Event::Look);
        Ok(())
    }

    fn finish(&mut self) -> Checked {
        let shed = sheds(self.gateway.counters()) - self.shed_before_probes;
        // What the broker refused after it had been granted in its absence.
        let refused = self.gateway.counters().subscriptions_refused > 0;
        for &no in &self.probes {
            let entry = self.ledger.entry(no);
            Law::Liveness.check(entry.at_broker == 1, || {
                format!("probe m{no} was published {} times", entry.at_broker)
            })?;
            for sensor in self.sensors.iter().filter(|sensor| !sensor.retired) {
                let (who, wanted) = (sensor.who, sensor.wants(&entry.topic));
                let got = self.ledger.has(sensor.client, no);
                let times = self.ledger.times(who, sensor.session, no);
                Law::Liveness.check((got || !wanted || shed > 0 || refused) && times <= 1, || {
                    format!("s{who} wants probe m{no} on {} and got it {times} times", entry.topic)
                })?;
                // A persistent session may remember what its sensor forgot; and a late copy may ask again.
                let forgotten = sensor.life > 0 && (!sensor.clean || !self.plan.radio.is_prompt());
                let forgotten = forgotten || sensor.shared;
                let borne = sensor.bears(&entry.topic) || forgotten;
                let strange = got && !wanted && !borne;
                Law::DownlinkWanted
                    .check(!strange, || format!("s{who} got probe m{no} on {}", entry.topic))?;
            }
        }
        self.check_subscriptions()?;
        self.check_wills()?;
        let broker = self.broker.counters();
        Law::LinkWellFormed.check(broker.closed_malformed + broker.closed_too_large == 0, || {
            format!("the broker refuses what the gateway says: {broker:?}")
        })?;
        self.air.finish(self.gateway.counters())
    }

    /// The gateway takes leave: of its clients and of the broker, without a Will.
    fn shut_down(&mut self) -> Checked {
        self.trace.note(self.now, "the gateway is asked to take leave");
        self.phase = Phase::Leaving(self.now);
        self.air.shut_down(self.now);
        self.tell_gateway(Input::Control(Control::Shutdown))?;
        self.air.all_told()
    }

    fn check_subscriptions(&self) -> Checked {
        for sensor in self.sensors.iter().filter(|sensor| !sensor.retired) {
            for filter in sensor.held.iter().filter_map(|filter| sensor.filter_of(filter)) {
                let session = self.air.session(sensor.client);
                let known = session.is_some_and(|session| session.filters().any(|known| *known == filter));
                Law::SubscriptionsAgree
                    .check(known, || format!("s{} holds {filter}, the gateway does not", sensor.who))?;
            }
        }
        let sessions = self.accounts.keys().filter_map(|client| self.broker.session(client));
        let at_broker = sessions.flat_map(|session| session.subscriptions);
        let mut at_broker: Vec<TopicFilter> = at_broker.map(|(filter, _)| filter).collect();
        at_broker.sort();
        let wanted: Vec<TopicFilter> = self.air.filters().into_iter().collect();
        let refused = self.gateway.counters().subscriptions_refused > 0;
        Law::SubscriptionsAgree.check(at_broker == wanted || refused, || {
            format!("the broker has {at_broker:?}, clients have {wanted:?}")
        })
    }

    fn check_wills(&self) -> Checked {
        for (no, entry) in self.ledger.iter() {
            let Origin::Will(who) = entry.origin else { continue };
            let fair =
                entry.qos == Qos::AtMostOnce || entry.at_broker >= entry.wills_due || entry.forgotten > 0;
            Law::WillOnLoss.check(fair, || {
                format!(
                    "the Will m{no} of s{who} was due {} times, published {}",
                    entry.wills_due, entry.at_broker
                )
            })?;
        }
        Ok(())
    }

    fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for counters in self.retired.iter().chain([self.gateway.counters()]) {
            for (name, value) in counters.iter() {
                figures.add("gateway", name, value);
            }
        }
        for sensor in self.sensors.iter().filter_map(|sensor| sensor.node.as_ref()) {
            let counters = sensor.counters();
            figures.add("sensors", "frames_sent", counters.frames_sent);
            figures.add("sensors", "retransmissions", counters.retransmissions);
            figures.add("sensors", "duplicates", counters.duplicates);
            figures.add("sensors", "stale", counters.stale);
            figures.add("sensors", "shed", counters.shed);
            figures.add("sensors", "connections", counters.connections);
        }
        let broker = self.broker.counters();
        figures.add("broker", "published", broker.published);
        figures.add("broker", "duplicates", broker.duplicates);
        figures.add("broker", "delivered", broker.delivered);
        figures.add("broker", "redelivered", broker.redelivered);
        figures.add("broker", "stray_acks", broker.stray_acks);
        figures.ledger(&self.ledger);
        let Tally {
            frames_lost,
            frames_copied,
            frames_late,
            cuts,
            crashes,
            faults,
            reboots,
            moves,
            swaps,
            restarts,
            naps,
            overslept,
            deaf,
        } = self.tally;
        for (name, value) in [
            ("frames_lost", frames_lost),
            ("frames_copied", frames_copied),
            ("frames_late", frames_late),
            ("cuts", cuts),
            ("broker_crashes", crashes),
            ("broker_faults", faults),
            ("reboots", reboots),
            ("moves", moves),
            ("swaps", swaps),
            ("gateway_restarts", restarts),
            ("naps", naps),
            ("naps_too_long", overslept),
            ("deaf_in_a_drain", deaf),
            ("memory_losses", self.ledger.losses.into()),
            ("seconds", self.now.saturating_duration_since(self.base).as_secs()),
            ("steps", self.trace.steps()),
        ] {
            figures.add("world", name, value);
        }
        figures
    }
}
