//! What a seed decides before its world begins: who there is, and how bad the days are.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use mqtt_sn_gateway::gateway::io::{
    Address, BrokerSettings, Endpoint, Mode, OutageQueue, PortSettings, Protocol, QueueFull, QueueSettings,
    Rebind, SessionSettings, Settings, Wills,
};
use mqtt_sn_gateway::node::{Filter, Topic};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};

use crate::air::client_id;
use crate::ledger::Who;

/// The client id of the gateway at the broker.
pub(crate) const GATEWAY: &str = "gateway";

/// Names that are published on, beside the predefined and the short ones.
const NAMES: [&str; 8] = ["a", "t/1", "t/2", "t/3", "s/x/y", "ab", "cd", "x"];

const SHORT: [[u8; 2]; 2] = [*b"ab", *b"zz"];

/// None of these is also a short or predefined topic: the gateway sees one subscription there, the node two.
const FILTERS: [&str; 10] = ["a", "t/1", "t/2", "s/x/y", "cd", "t/+", "+/1", "s/#", "pre/+", "#"];

/// Everything a world is made of.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) sensors: Vec<SensorPlan>,
    pub(crate) radio: Radio,
    pub(crate) tcp: Tcp,
    pub(crate) settings: Settings,
    pub(crate) store: StorePlan,
    /// Mean time between two clients that the operator has forgotten.
    pub(crate) forgets: Option<Duration>,
    /// How long things happen and go wrong.
    pub(crate) active: Duration,
    /// Mean time between two things that a sensor does.
    pub(crate) pace: Duration,
    /// Whether sensors lose power, go out of reach and change their addresses.
    pub(crate) vanishing: bool,
    /// Whether somebody sends nonsense.
    pub(crate) noise: bool,
    /// How long sleepers sleep, in seconds.
    pub(crate) naps: Range<u64>,
    /// Whether they sleep longer than they said.
    pub(crate) oversleeping: bool,
    /// Whether sensors change their addresses, asleep and awake.
    pub(crate) roaming: bool,
    /// Whether the broker knows MQTT 5.
    pub(crate) broker_knows_5: bool,
    /// Whether it sends one copy for each filter that matches (MQTT 3.1.1 §3.3.5).
    pub(crate) copy_per_filter: bool,
    /// Transports that go down and come back.
    pub(crate) carriers: Option<CarrierPlan>,
}

/// Seeds below this make worlds in which nobody sleeps: those that once broke a law keep their numbers.
pub(crate) const SLEEPLESS: u64 = 10_000;

/// From here on clients have links of their own: in three worlds of four all of them, in the others those on one of two
/// transports.
pub(crate) const TRANSPARENT: u64 = 20_000;

/// From here on what is stored outlives the process, which dies now and then. Clients have links of their own in every other
/// four worlds.
pub(crate) const LASTING: u64 = 30_000;

/// From here on there is also an operator who has clients forgotten, and what is kept is kept for seconds.
pub(crate) const FORGETFUL: u64 = 40_000;

/// From here on clients are on two or three transports, a radio, a serial line and radio modules, that go down and come back,
/// and move from one to another. Clients have links of their own in every other four worlds.
pub(crate) const CARRIERS: u64 = 50_000;

/// From here on, as that, there is a store as from [`LASTING`] on.
pub(crate) const LASTING_CARRIERS: u64 = 60_000;

/// Seeds from here on are for long runs: a million worlds of each kind, as from [`KINDS`] on.
const LONG: u64 = 1_000_000;

/// The kinds of worlds that there are a million of.
const KINDS: [u64; 6] = [SLEEPLESS, TRANSPARENT, LASTING, FORGETFUL, CARRIERS, LASTING_CARRIERS];

/// The transports that carry something else than datagrams, by their place in the settings, and what is sent to on them: who is
/// at the other end of the line, and modules, which a number tells apart.
const LINE: u8 = 1;
const MODULES: u8 = 2;
const CARRIER_NAMES: [&str; 2] = ["line", "modules"];
const MODULE: u64 = 0x0013_A200_0000_0000;

/// What transports say that they take.
pub(crate) const MTUS: [usize; 5] = [32, 40, 60, 100, 1024];

/// Where forwarders stand: two on one host, one on another.
pub(crate) const FORWARDERS: [([u8; 4], u16); 3] =
    [([10, 0, 0, 1], 9000), ([10, 0, 0, 1], 9001), ([10, 0, 0, 7], 9000)];

/// A sensor.
pub(crate) struct SensorPlan {
    /// Whose client id it has: its own, or that of another sensor, with which it contends for the session.
    pub(crate) client: Who,
    /// It does not change its address.
    pub(crate) settled: bool,
    pub(crate) clean: bool,
    pub(crate) will: bool,
    pub(crate) sleeps: bool,
    pub(crate) keep_alive: Duration,
    pub(crate) retry_interval: Duration,
    /// Behind a forwarder.
    pub(crate) node_id: Option<Vec<u8>>,
    pub(crate) addr: SocketAddr,
}

/// What becomes of frames. Probabilities are in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Radio {
    pub(crate) loss: u32,
    pub(crate) dup: u32,
    /// Frames that come so late that others overtake them.
    pub(crate) late: u32,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
}

/// Late frames come at most this much later: less than T_RETRY, beyond which a repetition is not recognised without DUP
/// (Interpretation: R-064).
pub(crate) const LATE: Duration = Duration::from_millis(1400);

/// The way to the broker and the broker's days.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tcp {
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    /// Mean time between two disturbances.
    pub(crate) disturbed: Option<Duration>,
    /// Whether the broker may lose its memory.
    pub(crate) amnesia: bool,
    /// Whether the gateway may be restarted. It keeps nothing.
    pub(crate) restarts: bool,
}

/// The store's days.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StorePlan {
    /// How long it takes for a batch at most, in milliseconds.
    pub(crate) delay: u64,
    /// Whether it hangs for seconds.
    pub(crate) hangs: bool,
    /// Whether it cannot write for a time.
    pub(crate) fails: bool,
    /// Mean time between two crashes of the gateway.
    pub(crate) crashes: Option<Duration>,
}

/// The days of transports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CarrierPlan {
    /// Mean time between two that go down.
    pub(crate) fails: Duration,
    /// Whether they say now and then that they take more or less than before.
    pub(crate) resized: bool,
    /// Whether clients change over from one to another.
    pub(crate) changed: bool,
    /// The only one that has the line for itself when it is there, but for those behind forwarders.
    pub(crate) on_line: Who,
}

impl Radio {
    /// Whether frames come in order and once.
    pub(crate) fn is_prompt(&self) -> bool {
        self.dup == 0 && self.late == 0 && self.jitter.is_zero()
    }
}

impl Plan {
    pub(crate) fn new(seed: u64, rng: &mut Rng) -> Self {
        let mut plan = Self::sleepless(rng);
        plan.seed = seed;
        if seed >= SLEEPLESS {
            plan.add_sleepers(rng);
            plan.add_roamers(rng);
            (plan.settings.broker.protocol, plan.broker_knows_5) = match rng.u8(0..6) {
                0 => (Protocol::V5, true),
                1 => (Protocol::Auto, true),
                2 => (Protocol::Auto, false),
                _ => (Protocol::V311, false),
            };
        }
        let kind = if seed < LONG { seed } else { KINDS[(seed / LONG - 1) as usize % KINDS.len()] };
        match kind {
            ..TRANSPARENT => {}
            TRANSPARENT..LASTING => plan.add_links(rng),
            LASTING.. => {
                if seed / 4 % 2 == 1 {
                    plan.add_links(rng);
                }
                if !(CARRIERS..LASTING_CARRIERS).contains(&kind) {
                    plan.add_store(rng);
                }
                if (FORGETFUL..CARRIERS).contains(&kind) {
                    plan.add_oblivion(rng);
                }
                if kind >= CARRIERS {
                    plan.add_carriers(rng);
                }
            }
        }
        plan.copy_per_filter = !plan.broker_knows_5 && seed % 2 == 1;
        plan
    }

    fn sleepless(rng: &mut Rng) -> Self {
        // One in eight worlds without faults, two with a bad radio, two with a bad broker, three with everything.
        let kind = rng.u8(0..8);
        let (bad_radio, bad_tcp) = (matches!(kind, 1 | 2 | 5..), matches!(kind, 3 | 4 | 5..));
        let millis = |rng: &mut Rng, range| Duration::from_millis(rng.u64(range));
        let mut radio = Radio { delay: millis(rng, 2..60), ..Radio::default() };
        if bad_radio {
            radio.loss = rng.u32(0..200);
            if rng.u8(0..4) > 0 {
                radio.jitter = millis(rng, 0..40);
                radio.dup = rng.u32(0..150);
                radio.late = rng.u32(0..120);
            }
        }
        let mut tcp = Tcp { delay: millis(rng, 1..40), jitter: millis(rng, 0..40), ..Tcp::default() };
        if bad_tcp {
            tcp.disturbed = Some(millis(rng, 1500..8000));
            tcp.amnesia = rng.bool();
            tcp.restarts = rng.u8(0..3) == 0;
        }
        let sensors: Vec<_> = (0..rng.usize(2..=5)).map(|who| SensorPlan::new(rng, who)).collect();
        let settings = settings(rng, bad_radio);
        Self {
            radio,
            tcp,
            settings,
            store: StorePlan::default(),
            forgets: None,
            active: millis(rng, 10_000..30_000),
            pace: millis(rng, 500..2000),
            vanishing: bad_radio && rng.u8(0..4) > 0,
            noise: bad_radio && rng.bool(),
            sensors,
            naps: 0..1,
            oversleeping: false,
            roaming: false,
            broker_knows_5: false,
            seed: 0,
            copy_per_filter: false,
            carriers: None,
        }
    }

    /// Three worlds in four have sleepers; in some of them everything takes its time.
    fn add_sleepers(&mut self, rng: &mut Rng) {
        self.naps = 2..20;
        self.oversleeping = rng.bool();
        for sensor in &mut self.sensors {
            sensor.sleeps = rng.u8(0..4) > 0;
        }
        match rng.u8(0..16) {
            0..4 => self.sensors.iter_mut().for_each(|sensor| sensor.sleeps = false),
            4 => {
                self.naps = 30..150;
                self.pace *= 8;
                self.active *= 8;
            }
            _ => self.active += Duration::from_secs(10),
        }
    }

    /// Clients with links of their own. On which of two transports a sensor is, its port says.
    fn add_links(&mut self, rng: &mut Rng) {
        self.settings.broker.grace = Duration::from_secs(rng.u64(2..12));
        let aggregating = self.settings.ports[0].clone();
        self.settings.ports[0].mode = Mode::Transparent;
        if self.seed % 4 == 3 {
            self.settings.ports.push(PortSettings { name: "other".into(), ..aggregating });
        }
    }

    /// A store, and crashes: in seven worlds of eight several.
    fn add_store(&mut self, rng: &mut Rng) {
        self.settings.lasting = true;
        self.tcp.restarts = false;
        let tight = rng.u8(0..8) == 0;
        self.settings.broker.outage_queue = (rng.u8(0..4) > 0).then(|| OutageQueue {
            messages: if tight { rng.usize(1..5) } else { 1000 },
            bytes: 1 << 20,
            age: Duration::from_secs(24 * 3600),
        });
        self.store = StorePlan {
            delay: [0, 5, 50][rng.usize(..3)],
            hangs: rng.bool(),
            fails: rng.u8(0..4) == 0,
            crashes: (rng.u8(0..8) > 0).then(|| Duration::from_millis(rng.u64(2000..12_000))),
        };
    }

    /// In seven worlds of eight somebody has clients forgotten; in half of them sessions end soon, in half of them messages do.
    fn add_oblivion(&mut self, rng: &mut Rng) {
        self.forgets = (rng.u8(0..8) > 0).then(|| Duration::from_millis(rng.u64(2000..15_000)));
        if rng.bool() {
            self.settings.sessions.expiry = Duration::from_secs(rng.u64(2..12));
        }
        if let Some(queue) = self.settings.broker.outage_queue.as_mut().filter(|_| rng.bool()) {
            queue.age = Duration::from_secs(rng.u64(2..12));
        }
    }

    /// A serial line and modules beside the radio, each as likely to have a client as the others.
    fn add_carriers(&mut self, rng: &mut Rng) {
        self.active += Duration::from_secs(15);
        let mixed = self.settings.ports.len() > 1;
        self.settings.ports.truncate(1);
        for name in &CARRIER_NAMES[..rng.usize(1..=CARRIER_NAMES.len())] {
            let like = self.settings.ports[0].clone();
            self.settings.ports.push(PortSettings {
                name: (*name).into(),
                mode: if mixed { Mode::Aggregating } else { like.mode },
                retry_interval: Duration::from_millis(rng.u64(1500..2500)),
                retry_limit: rng.u32(2..4),
                ..like
            });
        }
        let on_line = rng.usize(..self.sensors.len());
        let ports = self.settings.ports.len() as u8;
        for (who, sensor) in self.sensors.iter_mut().enumerate().filter(|(_, sensor)| !sensor.settled) {
            match rng.u8(..ports) {
                LINE if sensor.node_id.is_some() || who == on_line => sensor.addr = line(),
                MODULES => sensor.addr = module(who as u16),
                _ => {}
            }
        }
        self.carriers = Some(CarrierPlan {
            fails: Duration::from_millis(rng.u64(1500..9000)),
            resized: rng.u8(0..3) == 0,
            changed: rng.bool(),
            on_line,
        });
    }

    /// Whether some clients have links of their own, and whether all have.
    pub(crate) fn has_own_links(&self) -> bool {
        self.settings.ports.iter().any(|port| port.mode == Mode::Transparent)
    }

    pub(crate) fn all_dedicated(&self) -> bool {
        self.settings.ports.iter().all(|port| port.mode == Mode::Transparent)
    }

    /// The transport by which an address is reached.
    pub(crate) fn port_of(&self, addr: SocketAddr) -> u16 {
        match carrier(addr) {
            Some(port) => port.into(),
            None if self.carriers.is_some() => 0,
            None => addr.port() % self.settings.ports.len() as u16,
        }
    }

    /// Sensors that move, that stand behind other forwarders, that have the id of another.
    fn add_roamers(&mut self, rng: &mut Rng) {
        self.roaming = rng.bool();
        self.settings.sessions.rebind = [Rebind::None, Rebind::SameIp, Rebind::Any][rng.usize(..3)];
        for (who, sensor) in (0..).zip(&mut self.sensors) {
            if sensor.node_id.is_some() {
                sensor.addr = FORWARDERS[rng.usize(..FORWARDERS.len())].into();
            } else if rng.u8(0..4) == 0 {
                sensor.addr = SocketAddr::from(([0x2001, 0xDB8, 0, who, 0, 0, 0, 1], 5000 + who));
            }
        }
        if rng.u8(0..6) == 0 {
            // Equal node ids behind two forwarders are two nodes.
            for (sensor, forwarder) in self.sensors.iter_mut().zip(FORWARDERS) {
                (sensor.addr, sensor.node_id) = (forwarder.into(), Some(vec![0x77]));
                sensor.settled = true;
            }
        }
        if rng.u8(0..5) == 0 {
            let mut twin = SensorPlan::new(rng, self.sensors.len());
            (twin.client, twin.clean) = (0, self.sensors[0].clean);
            twin.sleeps = self.sensors[0].sleeps && rng.bool();
            self.sensors.push(twin);
        }
    }
}

impl SensorPlan {
    fn new(rng: &mut Rng, who: Who) -> Self {
        let forwarded = rng.u8(0..4) == 0;
        let client = who;
        let who = who as u16;
        Self {
            client,
            settled: false,
            clean: rng.bool(),
            will: rng.bool(),
            sleeps: false,
            keep_alive: if rng.u8(0..10) == 0 { Duration::ZERO } else { Duration::from_secs(rng.u64(3..12)) },
            retry_interval: Duration::from_millis(rng.u64(1200..2500)),
            node_id: forwarded.then(|| vec![0xA0 + who as u8; rng.usize(1..4)]),
            // All forwarded nodes stand behind one forwarder.
            addr: SocketAddr::from(([10, 0, 0, 1], if forwarded { 9000 } else { 5000 + who })),
        }
    }
}

fn settings(rng: &mut Rng, limits: bool) -> Settings {
    let tight = limits && rng.u8(0..4) == 0;
    let queue = QueueSettings {
        messages: if tight { rng.usize(1..6) } else { 1000 },
        bytes: if tight { rng.usize(60..2000) } else { 1 << 20 },
        full: if rng.bool() { QueueFull::DropOldest } else { QueueFull::DropNewest },
        qos0: true,
    };
    let port = PortSettings {
        name: "radio".into(),
        mode: Mode::Aggregating,
        mtu: if tight && rng.bool() { 40 } else { 1024 },
        retry_interval: Duration::from_millis(rng.u64(1500..2500)),
        retry_limit: rng.u32(2..4),
        forwarders: true,
        qos_minus_one: true,
        advertise: true,
    };
    Settings {
        gw_id: 1,
        advertise_interval: Duration::from_secs(30),
        ports: vec![port],
        broker: BrokerSettings {
            endpoints: vec![Endpoint { host: "broker".into(), port: 1883, tls: false }],
            protocol: Protocol::V311,
            client_id: GATEWAY.into(),
            client_id_is_random: false,
            credentials: None,
            client_credentials: BTreeMap::new(),
            client_id_template: "%c".into(),
            wills: Wills::Gateway,
            outage_queue: None,
            grace: Duration::from_secs(60),
            keep_alive: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(3),
        },
        predefined: BTreeMap::from([(1, name("pre/one")), (2, name("t/3"))]),
        client_predefined: (0..2)
            .map(|who| (client_id(who), BTreeMap::from([(3, name(&format!("own/{who}")))])))
            .collect(),
        sessions: SessionSettings {
            max: 100,
            expiry: Duration::from_secs(if rng.u8(0..8) == 0 { rng.u64(3..15) } else { 24 * 3600 }),
            max_topics: 1000,
            max_subscriptions: 100,
            queue,
            rebind: Rebind::SameIp,
            queue_total: if tight && rng.bool() { rng.usize(60..600) } else { 1 << 24 },
        },
        lasting: false,
        seed: rng.u64(..),
    }
}

/// The end of the serial line, in the terms of sensors.
pub(crate) fn line() -> SocketAddr {
    SocketAddr::from(([10, 8, LINE, 1], 1))
}

/// A module.
pub(crate) fn module(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 8, MODULES, 1], number))
}

/// The transport that an address is on which is none of datagrams.
fn carrier(addr: SocketAddr) -> Option<u8> {
    let IpAddr::V4(ip) = addr.ip() else { return None };
    let [10, 8, port, 1] = ip.octets() else { return None };
    Some(port)
}

/// What an address of a sensor is to the gateway.
pub(crate) fn address(addr: SocketAddr) -> Address {
    match carrier(addr) {
        Some(LINE) => Address::Serial,
        Some(_) => Address::Xbee(MODULE + u64::from(addr.port())),
        None => Address::Udp(addr),
    }
}

/// The other way round.
pub(crate) fn addr(address: Address) -> Option<SocketAddr> {
    match address {
        Address::Udp(addr) => Some(addr),
        Address::Serial => Some(line()),
        Address::Xbee(number) => Some(module(u16::try_from(number.checked_sub(MODULE)?).ok()?)),
    }
}

pub(crate) fn name(text: &str) -> TopicName {
    TopicName::new(text).expect("a sound name")
}

/// The predefined topics that a sensor was configured with.
pub(crate) fn predefined(settings: &Settings, who: Who) -> BTreeMap<u16, TopicName> {
    let mut topics = settings.predefined.clone();
    topics.extend(settings.client_predefined.get(&client_id(who)).cloned().unwrap_or_default());
    topics
}

/// Something a sensor may publish on.
pub(crate) fn topic(rng: &mut Rng, predefined: &BTreeMap<u16, TopicName>) -> Topic {
    match rng.u8(0..10) {
        0..6 => Topic::Name(name(NAMES[rng.usize(..NAMES.len())])),
        6..8 => {
            let ids: Vec<u16> = predefined.keys().copied().collect();
            Topic::Predefined(ids[rng.usize(..ids.len())])
        }
        _ => Topic::Short(SHORT[rng.usize(..SHORT.len())]),
    }
}

/// Something a sensor may publish on at QoS −1.
pub(crate) fn topic_without_session(rng: &mut Rng) -> Topic {
    if rng.bool() { Topic::Predefined(rng.u16(1..3)) } else { Topic::Short(SHORT[rng.usize(..SHORT.len())]) }
}

/// Something a sensor may subscribe to.
pub(crate) fn filter(rng: &mut Rng, predefined: &BTreeMap<u16, TopicName>) -> Filter {
    match rng.u8(0..10) {
        0..7 => Filter::Name(filter_named(FILTERS[rng.usize(..FILTERS.len())])),
        7..9 => {
            let ids: Vec<u16> = predefined.keys().copied().collect();
            Filter::Predefined(ids[rng.usize(..ids.len())])
        }
        _ => Filter::Short(SHORT[rng.usize(..SHORT.len())]),
    }
}

pub(crate) fn filter_named(text: &str) -> TopicFilter {
    TopicFilter::new(text).expect("a sound filter")
}

/// Every name that sensors may have subscribed to.
pub(crate) fn all_names(sensors: usize) -> Vec<TopicName> {
    let own = (0..sensors.min(2)).map(|who| format!("own/{who}"));
    let wills = (0..sensors).map(|who| format!("will/{who}"));
    let names = NAMES.iter().chain(&["zz", "pre/one"]).map(|name| (*name).to_owned());
    names.chain(own).chain(wills).map(|text| name(&text)).collect()
}
