//! A world: sensors, a radio, the gateway, a connection that breaks, the broker and its observer, on one virtual clock.
//!
//! One queue of events, ordered by time and then by their entry; one random generator. The gateway, the broker and the
//! sensors are woken when they ask for it. Whatever passes between them passes the accounts of [`Air`] and [`Link`].

mod broker;
mod carriers;
mod end;
mod faults;
mod operator;
mod promises;
mod sensors;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use mqtt_sn_gateway::broker::{Broker, ConnectionId, Fault, Input as BrokerInput, Limits};
use mqtt_sn_gateway::gateway::io::{
    Input, LinkEvent, LinkFailure, LinkId, Output, Peer, PortId, RequestId, Route, Target,
};
use mqtt_sn_gateway::gateway::record::{Lsn, Outcome};
use mqtt_sn_gateway::gateway::{Counters, Gateway};
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::{Packet, decode};

use self::carriers::{Carrier, CarrierTally};
use self::promises::{Due, Kept};
use crate::air::{Air, client_id, sheds};
use crate::figures::Figures;
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};
use crate::link::{self, Lane, Link};
use crate::observer::Observer;
use crate::plan::{self, LATE, Plan};
use crate::sensor::Sensor;
use crate::store::Store;
use crate::talk::Talk;
use crate::told::Told;
use crate::trace::{Step, Trace};
use crate::translator::Translator;

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

/// Timeouts in a row after which another one may be due at once: a session that ends in one leaves a link to be opened.
const AT_ONCE_MAX: u32 = 1;

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
    /// Timeouts after which another one was due at once.
    at_once: u32,
    /// Timeouts in this second.
    timeouts: (u64, u32),
    gateway: Gateway,
    /// It has died, and the next one has yet to start.
    down: bool,
    /// It dies before so many more things have left it.
    dying: Option<u32>,
    /// Messages that waited for clients when it started.
    restored: u64,
    store: Store,
    /// Transports that go down and come back, if there are such.
    carriers: Vec<Carrier>,
    broker: Broker,
    broker_up: bool,
    sensors: Vec<Sensor>,
    observer: Observer,
    air: Air,
    told: Told,
    talk: Talk,
    /// By the client id at the broker.
    accounts: BTreeMap<String, Link>,
    /// Subscription identifiers of the sessions there.
    identifiers: BTreeMap<String, BTreeMap<String, usize>>,
    ledger: Ledger,
    streams: BTreeMap<u64, Stream>,
    /// Connections of the gateway are numbered from here: it begins anew when it is restarted.
    first_link: u64,
    /// Clients whose session the broker has, as long as nobody ends it.
    kept: BTreeSet<Who>,
    /// What gateways before this one counted.
    retired: Vec<Counters>,
    /// What the operator asked for, and who is to be forgotten in which batch, if that can be stored.
    requests: u64,
    forgetting: Vec<(RequestId, Who, bool, Lsn)>,
    /// What was promised to sensors, and what became of that.
    promised: Vec<Due>,
    kept_promises: Kept,
    /// Filters that the broker may have, and the store never had.
    unknown_filters: BTreeSet<TopicFilter>,
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
    gateway_crashes: u64,
    /// Of those, with a commit in flight, and of those with one that was lost.
    crashes_in_a_commit: u64,
    crashes_with_a_loss: u64,
    /// In the middle of a write to the broker.
    crashes_in_a_write: u64,
    /// What the processes after them found: rows, and of those what only the store knew.
    restored: Restored,
    store_hangs: u64,
    store_failures: u64,
    forgotten: u64,
    carriers: CarrierTally,
}

/// What a process finds when it starts.
#[derive(Debug, Default)]
struct Restored {
    rows: u64,
    sessions: u64,
    topic_ids: u64,
    subscriptions: u64,
    wills: u64,
    /// Messages for sensors.
    waiting: u64,
    /// Messages for the broker whose senders were told that all is well.
    promised: u64,
    /// QoS 2 exchanges that somebody has yet to finish, with sensors and with the broker.
    exactly_once: u64,
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
    /// For whom it was asked.
    lane: Lane,
    /// The client id in its CONNECT, once that was written.
    whose: Option<String>,
    /// It was asked for while the gateway's own stood.
    further: bool,
    /// Where MQTT 5 is spoken.
    five: Option<Five>,
    /// When the gateway began to wait for this step of it: TCP, then CONNACK.
    tried: Instant,
    /// It heard something.
    spoken: bool,
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
        self.whose.as_deref().is_some_and(|whose| !link::lane(whose).is_further())
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
    /// What has become of a batch of the process of this number.
    Stored(u32, Lsn),
    StoreFails,
    StoreWorks,
    /// The gateway dies, and is there again.
    Die,
    GatewayUp,
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
    /// The operator has a client forgotten.
    Oblivion,
    /// Some transport fails; this one's device is there again, and is open; the gateway is told how it is.
    CarrierFails,
    CarrierWorks(usize),
    CarrierOpens(usize),
    CarrierTold(usize),
    /// Some transport says that it takes more, or less.
    CarrierResized,
    /// A sensor is on another transport from now on.
    ChangeOver(Who),
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
        let shared = sensors.iter().filter(|sensor| sensor.shared).map(|sensor| sensor.client);
        let shared: BTreeSet<Who> = shared.collect();
        let mut ledger = Ledger::new(clients);
        ledger.keeps = plan.settings.broker.outage_queue.is_some();
        if plan.settings.lasting {
            // Nobody can tell which names those that have one id in turn have answered for.
            sensors.iter().filter(|sensor| sensor.shared).for_each(|sensor| ledger.overtaken(sensor.client));
        }
        Self {
            sensors,
            gateway: Gateway::restore(plan.settings.clone(), [], base),
            down: false,
            dying: None,
            restored: 0,
            store: Store::default(),
            carriers: Carrier::all(&plan, base),
            told: Told::new(plan.settings.clone(), shared.clone(), base),
            talk: Talk::new(plan.settings.clone(), shared, base),
            air: Air::new(plan.settings.clone(), base),
            broker: Broker::new(Limits::default()),
            broker_up: true,
            observer: Observer::new(),
            accounts: BTreeMap::new(),
            identifiers: BTreeMap::new(),
            ledger,
            streams: BTreeMap::new(),
            first_link: 0,
            kept: BTreeSet::new(),
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
            at_once: 0,
            timeouts: (0, 0),
            requests: 0,
            forgetting: Vec::new(),
            promised: Vec::new(),
            kept_promises: Kept::default(),
            unknown_filters: BTreeSet::new(),
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
        if let Some(mean) = self.plan.store.crashes {
            let first = self.around(mean * 2);
            self.after(first, Event::Die);
        }
        if self.plan.store.fails {
            let first = self.millis(1000..20_000);
            self.after(first, Event::StoreFails);
        }
        if let Some(mean) = self.plan.forgets {
            let first = self.around(mean * 2);
            self.after(first, Event::Oblivion);
        }
        self.after(self.plan.active, Event::Calm);
        self.begin_carriers()
    }

    /// Goes on to the next thing that happens, or is due.
    fn step(&mut self) -> Checked {
        let event = self.queue.keys().next().map(|(at, _)| *at);
        let gateway = self.gateway.poll_timeout().filter(|_| !self.down);
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

    /// What is new and due at once comes at once; what comes again and again has not moved.
    fn due(&mut self, whose: &str, next: Option<Instant>) -> Checked {
        let at_once = next.is_some_and(|at| at <= self.now);
        self.at_once = if at_once { self.at_once + 1 } else { 0 };
        Law::Deadlines.check(self.at_once <= AT_ONCE_MAX, || {
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
            Event::Stored(process, lsn) => self.stored(process, lsn),
            Event::StoreFails => self.store_fails(),
            Event::StoreWorks => self.store_works(),
            Event::Die => {
                self.die_soon();
                Ok(())
            }
            Event::GatewayUp => self.gateway_up(),
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
            Event::Oblivion => self.oblivion(),
            Event::CarrierFails => {
                self.carrier_fails();
                Ok(())
            }
            Event::CarrierWorks(at) => {
                self.carrier_works(at);
                Ok(())
            }
            Event::CarrierOpens(at) => self.carrier_opens(at),
            Event::CarrierTold(at) => self.tell_of_carrier(at),
            Event::CarrierResized => self.carrier_resized(),
            Event::ChangeOver(who) => self.change_over(who),
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
        if matches!(self.phase, Phase::Leaving(_)) || self.down {
            return Ok(());
        }
        let from = self.peer(addr);
        if !self.carries(from.port) {
            self.tally.carriers.frames_lost += 1;
            return Ok(());
        }
        self.trace.add(self.now, Step::FrameIn(place(addr), frame.clone()));
        self.told.frame_in(self.now, &from, &frame, &mut self.ledger);
        self.talk.frame_in(self.now, &from, &frame, &self.store);
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
        self.check_carrier(&to, &frame)?;
        let unicast = match to {
            Target::Unicast { port, addr, .. } => plan::addr(addr).map(|addr| (port, addr)),
            Target::Broadcast { .. } => None,
        };
        let Some((port, addr)) = unicast else {
            let advertise = decode(&frame).is_ok_and(|frame| matches!(frame.packet, Packet::Advertise(_)));
            Law::Manners.check(advertise, || "a broadcast that is no ADVERTISE".into())?;
            let Target::Broadcast { port, .. } = to else { return Ok(()) };
            if !self.carries(port) {
                return Ok(());
            }
            let addrs = self.sensors.iter().map(|sensor| sensor.addr);
            let addrs: Vec<_> = addrs.filter(|addr| self.plan.port_of(*addr) == port.0).collect();
            for addr in addrs {
                self.send_to_sensor(addr, frame.clone());
            }
            return Ok(());
        };
        self.trace.add(self.now, Step::FrameOut(place(addr), frame.clone()));
        let to = self.peer(addr);
        Law::Manners.check(to.port == port, || format!("a frame for {addr} leaves on {port:?}"))?;
        self.air.frame_out(&to, &frame, self.gateway.counters(), &self.ledger)?;
        self.told.frame_out(self.now, &to, &frame, &mut self.ledger, &self.store)?;
        self.talk.frame_out(&to, &frame, &self.ledger, &self.store, self.air.has_lanes)?;
        if self.carries(port) {
            self.send_to_sensor(addr, frame);
        } else {
            self.tally.carriers.frames_lost += 1;
        }
        Ok(())
    }

    fn peer(&self, addr: SocketAddr) -> Peer {
        Peer { port: PortId(self.plan.port_of(addr)), addr: plan::address(addr), node: None }
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

/// The gateway.
impl World<'_> {
    fn tell_gateway(&mut self, input: Input) -> Checked {
        if self.down {
            return Ok(());
        }
        let before = self.gateway.counters().clone();
        self.talk.begin(self.now);
        match input {
            Input::Stored(lsn, Outcome::Durable) => self.talk.durable(lsn),
            Input::Stored(_, Outcome::Unavailable) => self.talk.failed(self.now),
            _ => {}
        }
        self.gateway.handle(self.now, input);
        self.drain_gateway(&before)
    }

    fn gateway_timeout(&mut self) -> Checked {
        for who in self.air.timeout(self.now, &mut self.ledger) {
            self.kept.remove(&who);
            self.accounts.remove(client_id(who).as_str());
        }
        let before = self.gateway.counters().clone();
        self.talk.begin(self.now);
        self.gateway.handle_timeout(self.now);
        self.drain_gateway(&before)?;
        if self.down {
            return Ok(());
        }
        self.due("gateway", self.gateway.poll_timeout())
    }

    fn drain_gateway(&mut self, before: &Counters) -> Checked {
        self.air.counted(before, self.gateway.counters(), &self.ledger)?;
        while let Some(output) = self.gateway.poll_output() {
            if self.dies_now() {
                return self.die(output);
            }
            match output {
                Output::Send { to, frame } => self.frame_from_gateway(to, frame)?,
                Output::Link(LinkId(link), command) => self.link_command(self.first_link + link, command)?,
                Output::Store { lsn, records } => self.store_batch(lsn, records)?,
                Output::Answer(request, answer) => self.answer(request, &answer)?,
                Output::Stopped => {
                    let asked = matches!(self.phase, Phase::Leaving(_));
                    Law::Manners.check(asked, || "the gateway stops unasked".into())?;
                    self.phase = Phase::Over;
                }
            }
        }
        self.air.end(&self.ledger)?;
        self.talk.end(&self.store)?;
        self.check_broker_freed()?;
        self.check_conservation()?;
        self.check_bounds()
    }

    /// What this gateway and, where they are one over crashes, those before it have counted.
    fn counted(&self, count: impl Fn(&Counters) -> u64) -> u64 {
        let before = self.retired.iter().filter(|_| self.plan.settings.lasting).map(&count).sum::<u64>();
        before + count(self.gateway.counters())
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
        let all = counters.downlink_recipients + self.restored;
        Law::Conservation.check(all == gone + waiting, || {
            format!("{all} messages for clients, {gone} gone, {waiting} waiting")
        })
    }

    fn check_bounds(&self) -> Checked {
        let (sessions, limits) = (self.gateway.sessions(), &self.plan.settings.sessions);
        Law::Bounds.check(sessions == self.air.sessions() || self.plan.settings.lasting, || {
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
