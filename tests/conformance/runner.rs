//! Carries out the steps of one row against a gateway, and says what happened if they do not come true.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::wire;
use rumqttc::mqttbytes::v4::Packet;
use socket2::{Domain, Socket, Type};

use crate::broker::{Broker, PROBE_TOPIC, Seen};
use crate::combination::Combination;
use crate::process::Process;
use crate::script::{
    Alternative, AtBroker, BrokerAct, BrokerAtStart, Kind, Line, Name, Part, Pattern, Receive, Row, Send,
    Settings, Source, Step, Whose,
};

/// How long something that must come may take: two retransmission intervals of the table.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long something that may come is waited for.
const OPTIONAL: Duration = Duration::from_millis(200);

/// How long the broker is watched for what must not come.
const ABSENCE: Duration = Duration::from_millis(500);

/// How long a message from the broker may take to be with the gateway.
const SETTLING: Duration = Duration::from_millis(100);

/// How long a gateway may take to start.
const STARTING: Duration = Duration::from_secs(20);

/// The group of the Paho samples; each row has a port of its own there.
const GROUP: Ipv4Addr = Ipv4Addr::new(225, 1, 1, 1);

/// Runs a row against the real gateway. The error is a report to be read.
pub(crate) fn run(row: &Row, combination: Combination) -> Result<(), String> {
    let world = World::start(&row.settings, combination);
    let mut world = world.map_err(|problem| format!("{}\n{problem}", headline(row)))?;
    world.run(row)
}

/// Everything around the gateway under test.
pub(crate) struct World {
    gateway: SocketAddr,
    process: Option<Process>,
    broker: Broker,
    sockets: BTreeMap<Source, Port>,
    chosen: BTreeMap<Name, [u8; 2]>,
    /// The last optional datagram was seen.
    seen: bool,
    /// When a client last sent something.
    sent: Instant,
    /// How long the next optional datagram is waited for.
    optional: Duration,
    started: Instant,
    diary: Vec<(Instant, String)>,
}

/// A socket of the test's and what was received too early.
struct Port {
    socket: UdpSocket,
    grouped: bool,
    put_back: VecDeque<Vec<u8>>,
}

/// Why a step did not come true.
enum Problem {
    Failed(String),
    /// The gateway does what the digest tolerates: the rest of the row does not apply.
    Tolerated(String),
}

/// What went wrong, and at which line if at any.
type Failure<'r> = (Option<&'r Line>, Problem);

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Self::Failed(what)
    }
}

impl World {
    pub(crate) fn start(settings: &Settings, combination: Combination) -> Result<Self, String> {
        let broker = Broker::new(combination)?;
        match settings.broker {
            BrokerAtStart::Up => broker.up(),
            BrokerAtStart::Down => {}
            BrokerAtStart::Refuses(code) => {
                broker.refuse(code);
                broker.up();
            }
        }
        let group = settings.advertise.map(|_| Port::in_group());
        let group_addr = group.as_ref().map(Port::addr);
        let process = Process::start(settings, combination, broker.addr(), group_addr)?;
        let mut world = Self::around(process.addr, broker);
        world.process = Some(process);
        world.sockets.extend(group.map(|port| (Source::Group, port)));
        world.wait_until_ready(settings, group_addr)?;
        let version = world.broker.version();
        if settings.broker == BrokerAtStart::Up && version != Some(combination.version()) {
            return Err(format!("the gateway speaks {version:?} to this broker"));
        }
        world.broker.name_all();
        Ok(world)
    }

    /// A world around any gateway at this address.
    pub(crate) fn around(gateway: SocketAddr, broker: Broker) -> Self {
        let sockets = BTreeMap::from([(Source::S1, Port::new()), (Source::S2, Port::new())]);
        let (chosen, started, diary) = (BTreeMap::new(), Instant::now(), Vec::new());
        Self {
            gateway,
            process: None,
            broker,
            sockets,
            chosen,
            seen: false,
            sent: started,
            optional: OPTIONAL,
            started,
            diary,
        }
    }

    /// Where the gateway listens.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// Whether the process is still there.
    pub(crate) fn is_running(&mut self) -> Result<(), String> {
        self.process.as_mut().map_or(Ok(()), Process::is_running)
    }

    /// Returns once the gateway answers, and reaches the broker if there is one.
    fn wait_until_ready(&mut self, settings: &Settings, group: Option<SocketAddr>) -> Result<(), String> {
        let deadline = Instant::now() + STARTING;
        let mut probe = Port::new();
        let (mut answered, mut reached, mut tried) = (false, false, 0);
        while !(answered && reached) {
            if Instant::now() > deadline {
                let what =
                    format!("not ready in {STARTING:?}: answers {answered}, reaches the broker {reached}");
                return Err(format!("{what}\n{}", self.log()));
            }
            if let Some(process) = &mut self.process {
                let checked = process.retry_if_in_use(tried, settings, self.broker.addr(), group);
                if let Err(problem) = checked {
                    return Err(format!("{problem}\n{}", self.log()));
                }
                if process.addr != self.gateway {
                    tried += 1;
                    self.gateway = process.addr;
                    // Whoever answered was not this one.
                    (answered, reached) = (false, false);
                }
            }
            if !answered {
                // PINGREQ of a stranger: it is answered whether there is a broker or not.
                let _ = probe.socket.send_to(&[0x02, 0x16], self.gateway);
                answered = probe.receive(self.gateway, Duration::from_millis(20)).is_some();
            } else if settings.broker != BrokerAtStart::Up {
                reached = true;
            } else if !settings.qos_minus_one {
                thread::sleep(Duration::from_millis(100));
                reached = self.broker.connected();
            } else {
                reached = self.reaches_the_broker(&probe);
            }
        }
        Ok(())
    }

    /// Whether a publication of QoS −1 comes out at the broker.
    fn reaches_the_broker(&self, probe: &Port) -> bool {
        let topic = PROBE_TOPIC.as_bytes();
        let before = self.broker.probes();
        let _ = probe.socket.send_to(&[0x07, 0x0C, 0x62, topic[0], topic[1], 0, 0], self.gateway);
        self.broker.probed(before, Duration::from_millis(20))
    }

    pub(crate) fn run(&mut self, row: &Row) -> Result<(), String> {
        self.started = Instant::now();
        let outcome = self.given(row).and_then(|()| self.steps(row));
        match outcome {
            Ok(()) => Ok(()),
            Err((_, Problem::Tolerated(_))) if tolerant() => Ok(()),
            Err((line, problem)) => Err(self.report(row, line, problem)),
        }
    }

    fn given<'r>(&mut self, row: &'r Row) -> Result<(), Failure<'r>> {
        for (at, line) in row.given.iter().enumerate() {
            self.optional = patience_with_optional(&row.given[at..]);
            self.step(&line.step).map_err(|problem| (Some(line), problem))?;
            if matches!(line.step, Step::Broker(BrokerAct::Publish(..))) {
                self.settle().map_err(|problem| (Some(line), problem))?;
            }
        }
        if !row.given.is_empty() {
            self.broker.name_all();
        }
        if let Some(group) = self.sockets.get_mut(&Source::Group) {
            while group.receive(self.gateway, Duration::ZERO).is_some() {}
        }
        Ok(())
    }

    fn steps<'r>(&mut self, row: &'r Row) -> Result<(), Failure<'r>> {
        for line in &row.steps {
            if let Step::Broker(BrokerAct::Answers(whose, ack, _)) = &line.step {
                self.broker.withhold(whose, *ack);
            }
        }
        for (at, line) in row.steps.iter().enumerate() {
            self.optional = patience_with_optional(&row.steps[at..]);
            self.step(&line.step).map_err(|problem| (Some(line), problem))?;
            let next = row.steps.get(at + 1).map(|line| &line.step);
            if let (Step::Broker(BrokerAct::Publish(..)), Some(Step::Send(_))) = (&line.step, next) {
                self.settle().map_err(|problem| (Some(line), problem))?;
            }
        }
        self.nothing_left().map_err(|problem| (None, problem))
    }

    /// What the broker has sent is with the gateway: a while later it has dealt with two more strangers.
    fn settle(&self) -> Result<(), Problem> {
        thread::sleep(SETTLING);
        for _ in 0..2 {
            let mut stranger = Port::new();
            let sent = stranger.socket.send_to(&[0x02, 0x16], self.gateway);
            sent.map_err(|error| error.to_string())?;
            if self.process.is_some() && stranger.receive(self.gateway, PATIENCE).is_none() {
                return Err("the gateway does not answer strangers".to_owned().into());
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Problem> {
        match step {
            Step::Send(send) => self.send(send),
            Step::Receive(group) => self.receive(group),
            Step::Broker(act) => Ok(self.broker_act(act)?),
            Step::AtBroker(whose, expected) => Ok(self.at_broker(whose, expected)?),
            Step::Quiet { window, silent, source, or } => {
                let gone = if *silent { self.sent.elapsed() } else { Duration::ZERO };
                self.quiet(window.saturating_sub(gone), *source, or)
            }
            Step::Wait(time) => {
                thread::sleep(*time);
                Ok(())
            }
            Step::Differ(one, other) if self.chosen.get(one) == self.chosen.get(other) => {
                Err(format!("{one} and {other} are the same").into())
            }
            Step::Differ(..) => Ok(()),
            Step::Stop => Ok(self.stop()?),
            Step::Restart => Ok(self.restart()?),
        }
    }

    fn send(&mut self, send: &Send) -> Result<(), Problem> {
        if send.conditional && !self.seen {
            return Ok(());
        }
        let octets = send.octets.fill(&self.chosen)?;
        self.note(format!("C@{}> {}", send.from, dump(&octets)));
        let gateway = self.gateway;
        self.port(send.from).socket.send_to(&octets, gateway).map_err(|error| error.to_string())?;
        self.sent = Instant::now();
        Ok(())
    }

    fn receive(&mut self, group: &[Receive]) -> Result<(), Problem> {
        let mut open: Vec<_> = group.iter().collect();
        while let Some(first) = open.iter().find(|expected| !expected.optional).or(open.first()) {
            let patience = if first.optional { self.optional } else { PATIENCE };
            let at = first.at;
            let received = self.hear(at, patience);
            let Some(octets) = received else {
                if first.optional {
                    self.seen = false;
                    return Ok(());
                }
                return Err(self.instead(first, None));
            };
            let fitting = open.iter().position(|expected| {
                expected.at == at && expected.octets.matches(&octets, &mut self.chosen.clone()).is_ok()
            });
            match fitting {
                Some(index) => {
                    let expected = open.remove(index);
                    // Just seen to match; this time the names are bound.
                    expected.octets.matches(&octets, &mut self.chosen)?;
                    self.note(format!("G@{at}> {}", dump(&octets)));
                    self.seen |= expected.optional;
                }
                None if first.optional => {
                    self.port(at).put_back.push_front(octets);
                    self.seen = false;
                    return Ok(());
                }
                None => return Err(self.instead(first, Some(&octets))),
            }
        }
        Ok(())
    }

    /// Says what came instead of what was expected.
    fn instead(&mut self, expected: &Receive, received: Option<&[u8]>) -> Problem {
        let wanted = expected.octets.show(&self.chosen);
        let (came, why) = match received {
            None => ("nothing".to_owned(), format!("waited for {PATIENCE:?}")),
            Some(octets) => {
                self.note(format!("G@{}> {}", expected.at, dump(octets)));
                let matched = expected.octets.matches(octets, &mut self.chosen.clone());
                (dump(octets), matched.err().unwrap_or_default())
            }
        };
        let what = format!("expected at {}: {wanted}\nreceived:       {came}\n{why}", expected.at);
        self.judge(&expected.or, received, what)
    }

    /// Whether what came, or did not come, is at least tolerated.
    fn judge(&self, or: &[Alternative], received: Option<&[u8]>, what: String) -> Problem {
        let tolerated = or.iter().any(|alternative| match (alternative, received) {
            (Alternative::Silence, None) => true,
            (Alternative::Octets(pattern), Some(octets)) => {
                pattern.matches(octets, &mut self.chosen.clone()).is_ok()
            }
            _ => false,
        });
        if tolerated { Problem::Tolerated(what) } else { Problem::Failed(what) }
    }

    fn broker_act(&mut self, act: &BrokerAct) -> Result<(), String> {
        match act {
            BrokerAct::Publish(message, delivery) => {
                let reached = self.broker.publish(message, *delivery)?;
                let size = message.payload.len();
                let remark = if reached == Some(0) { " (nobody has subscribed to it)" } else { "" };
                self.note(format!("B> PUBLISH {} QoS {}, {size} octets{remark}", message.topic, message.qos));
            }
            BrokerAct::Holds { message, before_suback } => {
                self.broker.hold(message.clone(), *before_suback)?;
            }
            BrokerAct::Withholds(whose, ack) => self.broker.withhold(whose, *ack),
            BrokerAct::Answers(whose, ack, code) => {
                self.broker.answer(whose, *ack, *code, PATIENCE)?;
                self.note(format!("B> answers {ack:?} by {code}"));
            }
            BrokerAct::Down => {
                self.broker.down();
                self.note("B> down".into());
            }
            BrokerAct::Up => {
                self.broker.up();
                self.note("B> up".into());
                let probe = Port::new();
                let deadline = Instant::now() + STARTING;
                while !self.reaches_the_broker(&probe) {
                    if Instant::now() > deadline {
                        return Err("the gateway has not come back to the broker".into());
                    }
                }
            }
            BrokerAct::Closes(whose) => {
                self.broker.close(whose);
                self.note(format!("B@{}> closes", whose.0));
            }
        }
        Ok(())
    }

    fn at_broker(&mut self, whose: &Whose, expected: &AtBroker) -> Result<(), String> {
        let (kind, once) = match expected {
            AtBroker::No(kinds) => {
                thread::sleep(ABSENCE);
                return self.absent(kinds);
            }
            AtBroker::Publish { once, .. } => (Kind::Publish, *once),
            AtBroker::Subscribe { .. } => (Kind::Subscribe, false),
            AtBroker::Unsubscribe { .. } => (Kind::Unsubscribe, false),
            AtBroker::PubAck => (Kind::PubAck, false),
            AtBroker::Connect { .. } => (Kind::Connect, false),
            AtBroker::Disconnect => (Kind::Disconnect, false),
        };
        let seen = self.broker.wait_for(PATIENCE, |seen| {
            let is_next = |seen: &&mut Seen| !seen.named && seen.kind() == Some(kind) && seen.whose == *whose;
            let next = seen.iter_mut().find(is_next)?;
            next.named = true;
            Some(next.clone())
        });
        let Some(seen) = seen else {
            return Err(format!("no {kind:?} of {} has come to the broker within {PATIENCE:?}", whose.0));
        };
        if !expected.fits(&seen) {
            return Err(format!("at the broker: {seen}"));
        }
        self.broker.deals_with(&seen, PATIENCE)?;
        if let Packet::Publish(publish) = &seen.packet {
            self.broker.hands_out(&publish.topic, &publish.payload, PATIENCE)?;
        }
        if once {
            thread::sleep(ABSENCE);
            self.absent(&[kind])?;
        }
        Ok(())
    }

    fn absent(&self, kinds: &[Kind]) -> Result<(), String> {
        let surplus = self.broker.seen().into_iter().find(|seen| seen.is_surplus(kinds));
        surplus.map_or(Ok(()), |seen| Err(format!("at the broker, though nothing asks for it: {seen}")))
    }

    fn quiet(&mut self, window: Duration, source: Option<Source>, or: &[Alternative]) -> Result<(), Problem> {
        thread::sleep(window);
        let sources = match source {
            Some(source) => vec![source],
            None => vec![Source::S1, Source::S2],
        };
        for at in sources {
            if let Some(octets) = self.hear(at, Duration::ZERO) {
                self.note(format!("G@{at}> {}", dump(&octets)));
                return Err(self.judge(
                    or,
                    Some(&octets),
                    format!("not quiet: {at} received {}", dump(&octets)),
                ));
            }
        }
        Ok(self.absent(&[Kind::Publish, Kind::Disconnect])?)
    }

    fn stop(&mut self) -> Result<(), String> {
        let Some(process) = &mut self.process else { return Err("no process to stop".into()) };
        let status = process.stop()?;
        self.note(format!("the gateway ends: {status}"));
        // It takes leave of the broker.
        self.broker.name_all();
        if status.success() { Ok(()) } else { Err(format!("the gateway ended with {status}")) }
    }

    fn restart(&mut self) -> Result<(), String> {
        let Some(process) = &mut self.process else { return Err("no process to restart".into()) };
        process.restart()?;
        self.note("the gateway is started anew".into());
        self.wait_until_ready(&Settings::default(), None)
    }

    /// What no step has asked for must not be there when the row ends.
    fn nothing_left(&mut self) -> Result<(), Problem> {
        for at in [Source::S1, Source::S2] {
            if let Some(octets) = self.hear(at, Duration::ZERO) {
                return Err(format!("left over: {at} received {}", dump(&octets)).into());
            }
        }
        self.absent(&[Kind::Publish])?;
        match self.broker.handed_out() {
            Some(message) => Err(format!("left over: the broker has handed out {message}").into()),
            None => Ok(()),
        }
    }

    fn hear(&mut self, at: Source, patience: Duration) -> Option<Vec<u8>> {
        let gateway = self.gateway;
        self.port(at).receive(gateway, patience)
    }

    fn port(&mut self, source: Source) -> &mut Port {
        self.sockets.get_mut(&source).expect("rows that name the group say how often is advertised")
    }

    fn note(&mut self, text: String) {
        self.diary.push((Instant::now(), text));
    }

    fn log(&self) -> String {
        self.process
            .as_ref()
            .map_or_else(String::new, |process| format!("log of the gateway:\n{}", process.log()))
    }

    fn report(&self, row: &Row, line: Option<&Line>, problem: Problem) -> String {
        let (what, remark) = match problem {
            Problem::Failed(what) => (what, ""),
            Problem::Tolerated(what) => (what, "\n(the digest tolerates this; we mean to do better)"),
        };
        let mut report = headline(row);
        let mut entries = self.diary.clone();
        let seen = self.broker.seen();
        entries.extend(seen.into_iter().map(|seen| (seen.at, format!("=>B {seen}"))));
        entries.sort_by_key(|(at, _)| *at);
        for (at, entry) in entries {
            let seconds = at.saturating_duration_since(self.started).as_secs_f64();
            let _ = write!(report, "\n  {seconds:7.3} {entry}");
        }
        if let Some(Line { file, number, text, .. }) = line {
            let _ = write!(report, "\nfails at {file}:{number}: {text}");
        }
        let _ = write!(report, "\n{what}{remark}\n{}", self.log());
        report
    }
}

/// How long to wait for the first of these steps if it is a datagram that may come or not: if another one must come in its
/// place, until something does.
fn patience_with_optional(lines: &[Line]) -> Duration {
    let mut after = lines.iter().skip(1).map(|line| &line.step);
    match after.find(|step| !matches!(step, Step::Send(send) if send.conditional)) {
        Some(Step::Receive(group)) if group.iter().any(|expected| !expected.optional) => PATIENCE,
        _ => OPTIONAL,
    }
}

/// `CONFORMANCE=tolerant` also accepts what the digest tolerates: for other gateways than ours.
fn tolerant() -> bool {
    std::env::var_os("CONFORMANCE").is_some_and(|value| value == "tolerant")
}

fn headline(row: &Row) -> String {
    format!("{} {} [{} {}]", row.name, row.title, row.level, row.requirement)
}

impl Port {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Self { socket, grouped: false, put_back: VecDeque::new() }
    }

    /// A member of the multicast group on the loopback interface.
    fn in_group() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from((GROUP, 0)).into()).unwrap();
        socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST).unwrap();
        Self { socket: socket.into(), grouped: true, put_back: VecDeque::new() }
    }

    fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// The table does not say which address of the gateway's host an ADVERTISE leaves from.
    fn is_from(&self, gateway: SocketAddr, from: SocketAddr) -> bool {
        from == gateway || (self.grouped && from.port() == gateway.port())
    }

    /// The next datagram from the gateway; what strays here from elsewhere is no part of the row.
    fn receive(&mut self, gateway: SocketAddr, patience: Duration) -> Option<Vec<u8>> {
        if let Some(octets) = self.put_back.pop_front() {
            return Some(octets);
        }
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.socket.set_nonblocking(left.is_zero()).unwrap();
            if !left.is_zero() {
                self.socket.set_read_timeout(Some(left)).unwrap();
            }
            match self.socket.recv_from(&mut buffer) {
                Ok((count, from)) if self.is_from(gateway, from) => {
                    buffer.truncate(count);
                    return Some(buffer);
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return None;
                }
                Err(error) => panic!("cannot receive: {error}"),
            }
        }
    }
}

impl Pattern {
    /// The octets, if everything the gateway chooses is known.
    pub(crate) fn fill(&self, chosen: &BTreeMap<Name, [u8; 2]>) -> Result<Vec<u8>, String> {
        let mut filled = Vec::new();
        for part in &self.0 {
            match part {
                Part::Octets(octets) => filled.extend(octets),
                Part::Name(name) => {
                    filled.extend(chosen.get(name).ok_or_else(|| format!("{name} is not known yet"))?)
                }
                Part::Any => return Err("<any> cannot be sent".into()),
            }
        }
        Ok(filled)
    }

    /// Binds the names that are not bound yet. The error says where it does not match.
    pub(crate) fn matches(&self, octets: &[u8], chosen: &mut BTreeMap<Name, [u8; 2]>) -> Result<(), String> {
        let mut rest = octets;
        let mut at = 0;
        for part in &self.0 {
            let size = match part {
                Part::Octets(expected) => expected.len(),
                Part::Name(_) | Part::Any => 2,
            };
            let here = &rest[..size.min(rest.len())];
            match part {
                Part::Octets(expected) if expected == here => {}
                Part::Octets(expected) => {
                    let same =
                        expected.iter().zip(here).take_while(|(expected, here)| expected == here).count();
                    return Err(format!("they part at octet {}", at + same));
                }
                Part::Name(name) => name.bind(here, chosen)?,
                Part::Any if size == here.len() => {}
                Part::Any => return Err(format!("cut off at octet {at}")),
            }
            rest = &rest[size..];
            at += size;
        }
        if rest.is_empty() { Ok(()) } else { Err(format!("{} octets too many", rest.len())) }
    }

    /// The octet at this place, if it is the same whatever the gateway chooses.
    pub(crate) fn octet(&self, at: usize) -> Option<u8> {
        match self.0.first() {
            Some(Part::Octets(octets)) => octets.get(at).copied(),
            _ => None,
        }
    }

    fn show(&self, chosen: &BTreeMap<Name, [u8; 2]>) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Octets(octets) => hex(octets),
            Part::Any => "<any>".to_owned(),
            Part::Name(name) => match chosen.get(name) {
                Some(value) => format!("{name}={}", hex(value)),
                None => name.to_string(),
            },
        });
        parts.collect::<Vec<_>>().join(" ")
    }
}

impl Name {
    fn bind(self, octets: &[u8], chosen: &mut BTreeMap<Self, [u8; 2]>) -> Result<(), String> {
        let Ok(value) = <[u8; 2]>::try_from(octets) else { return Err(format!("cut off in {self}")) };
        if value == [0, 0] || (self.kind == 'T' && value == [0xFF, 0xFF]) {
            return Err(format!("{} is reserved and no value for {self}", hex(&value)));
        }
        let bound = *chosen.entry(self).or_insert(value);
        if bound == value {
            Ok(())
        } else {
            Err(format!("{self} is {} here and was {}", hex(&value), hex(&bound)))
        }
    }
}

impl AtBroker {
    fn fits(&self, seen: &Seen) -> bool {
        match (self, &seen.packet) {
            (Self::Publish { topic, payload, qos, retain, .. }, Packet::Publish(publish)) => {
                *topic == publish.topic
                    && payload.as_ref().is_none_or(|payload| *payload == publish.payload)
                    && qos.is_none_or(|qos| qos == publish.qos as u8)
                    && retain.is_none_or(|retain| retain == publish.retain)
            }
            (Self::Subscribe { filter, qos }, Packet::Subscribe(subscribe)) => {
                let mut filters = subscribe.filters.iter();
                filters.any(|asked| asked.path == *filter && qos.is_none_or(|qos| qos == asked.qos as u8))
            }
            (Self::Unsubscribe { filter }, Packet::Unsubscribe(unsubscribe)) => {
                unsubscribe.topics.contains(filter)
            }
            (Self::Connect { client, clean, no_will }, Packet::Connect(connect)) => {
                client.as_ref().is_none_or(|client| *client == connect.client_id)
                    && clean.is_none_or(|clean| clean == connect.clean_session && clean != seen.kept)
                    && !(*no_will && connect.last_will.is_some())
            }
            (Self::PubAck, Packet::PubAck(_)) | (Self::Disconnect, Packet::Disconnect) => true,
            _ => false,
        }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {:?}", self.whose.0, self.packet)
    }
}

impl Seen {
    fn is_surplus(&self, kinds: &[Kind]) -> bool {
        !self.named && self.kind().is_some_and(|kind| kinds.contains(&kind))
    }
}

/// Octets, and what they mean.
fn dump(octets: &[u8]) -> String {
    let meaning = match wire::decode(octets) {
        Ok(frame) => frame.to_string(),
        Err(error) => error.to_string(),
    };
    format!("{} · {meaning}", hex(octets))
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(" ")
}
