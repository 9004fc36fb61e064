//! `mqtt-sn-node fleet`: many sensors on a bad radio, and a look at the broker whether their messages arrive.
//!
//! Each sensor is a value ([`Sensor`]) with a task and a socket of its own, or all of them are in the air of one [`Radio`], to which
//! the gateway has a serial line. What happens to their messages comes together
//! in one [`Ledger`], which also hears what arrives at the broker and gives the verdict; [`Down`] is the same for messages
//! to the sensors.

mod air;
mod down;
mod ledger;
mod line;
mod modem;
mod pty;
mod radio;
mod report;
mod sensor;
mod verify;
mod xbee;

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use mqtt_sn_gateway::node::Search;
use mqtt_sn_gateway::topic::{NameError, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::UdpSocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep_until, timeout};

use self::down::Down;
use self::ledger::Ledger;
use self::pty::Pty;
use self::radio::Radio;
use self::sensor::{Note, Sensor};
use self::verify::{Heard, Post, Verifier};
use crate::failure::Failure;
use crate::shell::{Gateway, Place, open};

pub(crate) use self::air::Weather;
pub(crate) use self::ledger::{PAYLOAD_MAX, PAYLOAD_MIN};
pub(crate) use self::line::Noise;
pub(crate) use self::radio::{Kind as RadioKind, Options as RadioOptions};
pub(crate) use self::xbee::Options as XbeeOptions;

/// Messages of a run: the ledger keeps some 100 octets of each.
const MESSAGES_MAX: f64 = 20_000_000.0;

/// Open files beside the sensors' sockets.
const FILES_BESIDE: u64 = 32;

/// How long an address of the gateway's host is given to show that nobody listens there.
const PROBE: Duration = Duration::from_millis(200);

/// What the sensors tell at one time, and what the broker delivers; the ledger is quicker than both.
const NOTES_MAX: usize = 1024;

/// How long a pseudo-terminal waits for a gateway: whoever starts that by hand needs a moment.
const OPENED_WITHIN: Duration = Duration::from_secs(300);

/// Frames between a sensor and a radio; the radio takes them at once.
const AIR_MAX: usize = 64;

/// How long nothing may come any more from the broker before the count is taken: copies come late.
const QUIET: Duration = Duration::from_secs(1);

/// What to simulate.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) via: Via,
    pub(crate) nodes: u32,
    pub(crate) period: Duration,
    /// Between two messages to a sensor; `None`: there are none.
    pub(crate) down: Option<Duration>,
    pub(crate) qos: Qos,
    pub(crate) retry: Duration,
    pub(crate) retry_limit: u32,
    pub(crate) weather: Weather,
    pub(crate) duration: Duration,
    pub(crate) spread: Duration,
    pub(crate) settle: Duration,
    /// The share of the sensors that sleep between two messages.
    pub(crate) sleepers: f64,
    pub(crate) seed: u64,
    pub(crate) payload_size: usize,
    pub(crate) template: Template,
    pub(crate) keep_alive: Duration,
    pub(crate) clean_session: bool,
    pub(crate) verify: Option<Gateway>,
    pub(crate) report: Option<PathBuf>,
}

/// How the gateway is reached.
#[derive(Debug)]
pub(crate) enum Via {
    /// By its socket, and one for each sensor.
    Udp(Gateway),
    /// By a pseudo-terminal that it opens.
    Pty {
        radio: radio::Options,
        /// Another name for the end that the gateway opens.
        link: Option<PathBuf>,
    },
}

/// A topic with the number of a sensor in it.
#[derive(Debug, Clone)]
pub(crate) struct Template(String);

impl Template {
    pub(crate) fn new(text: &str) -> Result<Self, NameError> {
        let template = Self(text.to_owned());
        template.topic(u32::MAX)?;
        template.filter()?;
        Ok(template)
    }

    pub(crate) fn topic(&self, node: u32) -> Result<TopicName, NameError> {
        TopicName::new(self.0.replace("{node}", &node.to_string()))
    }

    /// The topic of messages to a sensor; never one that [`Template::filter`] matches.
    pub(crate) fn down(&self, node: u32) -> Result<TopicName, NameError> {
        TopicName::new(self.0.replace("{node}", &node.to_string()) + "/down")
    }

    /// Whether each sensor has a topic of its own.
    pub(crate) fn is_of_one(&self) -> bool {
        self.0.contains("{node}")
    }

    /// The topics of all sensors.
    pub(crate) fn filter(&self) -> Result<TopicFilter, NameError> {
        let levels = self.0.split('/').map(|level| if level.contains("{node}") { "+" } else { level });
        TopicFilter::new(levels.collect::<Vec<_>>().join("/"))
    }
}

/// What the sensors are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Publish,
    /// No more.
    Stop,
    /// Nothing more is owed to you.
    Leave,
}

pub(crate) async fn run(plan: Plan) -> Result<(), Failure> {
    let each = plan.down.map_or(1.0, |down| 1.0 + plan.period.as_secs_f64() / down.as_secs_f64());
    let messages = plan.duration.as_secs_f64() / plan.period.as_secs_f64() * f64::from(plan.nodes) * each;
    if messages > MESSAGES_MAX {
        return Err(Failure::Usage(format!(
            "{messages:.0} messages are too many for one run (at most {MESSAGES_MAX})"
        )));
    }
    let plan = Arc::new(plan);
    let ground = Ground::new(&plan).await?;
    let run = fastrand::u32(..);
    let (heard_sender, heard) = mpsc::channel(NOTES_MAX);
    let (post, posts) = mpsc::channel(NOTES_MAX);
    let verifier = match &plan.verify {
        Some(broker) => {
            let filter = plan.template.filter().map_err(|e| Failure::Usage(e.to_string()))?;
            Some(Verifier::start(broker.clone(), filter, plan.qos, run, heard_sender, posts).await?)
        }
        None => None,
    };

    let mut antennas = ground.antennas(&plan);
    let start = Instant::now();
    let (order, orders) = watch::channel(Order::Publish);
    let (note_sender, notes) = mpsc::channel(NOTES_MAX);
    for number in 0..plan.nodes {
        let sensor =
            Sensor::new(number, run, start, Arc::clone(&plan)).map_err(|e| Failure::Usage(e.to_string()))?;
        let antenna = antennas.next(number).await?;
        tokio::spawn(drive(sensor, antenna, note_sender.clone(), orders.clone()));
    }
    drop(note_sender);
    let (to, radio) = antennas.done();

    let topics = (0..plan.nodes).map(|node| plan.template.down(node)).collect::<Result<Vec<_>, _>>();
    let topics = topics.map_err(|e| Failure::Usage(e.to_string()))?;
    let down = plan.down.map(|period| Down::new(&plan, period, run, start, topics));
    let books = Books { ledger: Ledger::new(&plan, run), down };
    let ends = Ends { heard, notes, post, order };
    let books = watch_run(&plan, books, ends, start, verifier.is_some()).await;
    let gaps = match verifier {
        Some(verifier) => Some(verifier.stop().await),
        None => None,
    };
    let radio = match radio {
        Some(radio) => radio.await.ok(),
        None => None,
    };
    finish(&plan, books, gaps, radio, to)
}

/// What became of the messages of both directions.
struct Books {
    ledger: Ledger,
    down: Option<Down>,
}

/// Our ends of the channels to sensors and verifier.
struct Ends {
    heard: mpsc::Receiver<Heard>,
    notes: mpsc::Receiver<Note>,
    post: mpsc::Sender<Post>,
    order: watch::Sender<Order>,
}

/// Keeps the books until every sensor is done, and then until the broker has delivered what it must, and a little longer.
async fn watch_run(plan: &Plan, mut books: Books, ends: Ends, start: Instant, verified: bool) -> Books {
    let Ends { mut heard, mut notes, post, order } = ends;
    // One for the whole run: what comes while nobody waits is not to be missed.
    let mut interrupts = signal(SignalKind::interrupt()).ok();
    let mut progress = Progress::new(plan, start);
    let mut tick = interval(Duration::from_millis(500));
    let mut last = None;
    loop {
        let ripe = last.map(|last: Instant| books.ledger.ripe_at(QUIET).map_or(last, |ripe| ripe.min(last)));
        let release = books.release_at().filter(|_| *order.borrow() != Order::Leave);
        tokio::select! {
            biased;
            // First what the broker delivers, lest it wait for us.
            Some(heard) = heard.recv() => books.hear(heard, plan),
            note = notes.recv(), if last.is_none() => match note {
                Some(note) => books.note(note),
                None if !verified => break,
                None => last = Some(Instant::now() + plan.settle),
            },
            () = sleep(ripe) => break,
            () = sleep(release) => {
                order.send_replace(Order::Leave);
            }
            () = sleep(books.letter_at()) => books.post(&post),
            _ = tick.tick() => progress.show(&books.ledger),
            () = interrupted(&mut interrupts) => {
                if order.send_replace(Order::Stop) != Order::Publish {
                    break;
                }
                books.stop(Instant::now());
            }
        }
    }
    progress.done();
    books
}

impl Books {
    fn hear(&mut self, heard: Heard, plan: &Plan) {
        match (heard, &mut self.down) {
            (Heard::Message(message, at), _) => self.ledger.seen(&message, at, &plan.template),
            (Heard::Taken(letter, at), Some(down)) => down.taken(letter, at),
            (Heard::Taken(..), None) => {}
        }
    }

    fn note(&mut self, note: Note) {
        match (&note, &mut self.down) {
            (Note::Hears { node }, Some(down)) => down.hears(*node, Instant::now()),
            (Note::Forgets { node }, Some(down)) => down.forgets(*node),
            (Note::Got { node, message, fetched, at }, Some(down)) => {
                down.got(*node, message, *at);
                down.tally.fetched += u64::from(*fetched);
            }
            _ => self.ledger.note(note),
        }
    }

    fn letter_at(&self) -> Option<Instant> {
        self.down.as_ref()?.poll_timeout(Instant::now())
    }

    fn release_at(&self) -> Option<Instant> {
        self.down.as_ref()?.ripe_at(QUIET)
    }

    fn stop(&mut self, now: Instant) {
        if let Some(down) = &mut self.down {
            down.stop(now);
        }
    }

    /// Hands over what is due. What finds no room, because the broker is away, is not sent.
    fn post(&mut self, post: &mpsc::Sender<Post>) {
        let Some(down) = &mut self.down else { return };
        while let Ok(permit) = post.try_reserve() {
            let Some(letter) = down.poll(Instant::now()) else { return };
            if let Some(message) = down.message(letter) {
                permit.send(Post { letter, message });
            }
        }
        down.postpone(Instant::now());
    }
}

fn finish(
    plan: &Plan,
    books: Books,
    gaps: Option<u64>,
    radio: Option<radio::Tally>,
    to: Place,
) -> Result<(), Failure> {
    let report = report::Report::new(plan, books.ledger, books.down, gaps, radio);
    print!("{report}");
    if let Some(path) = &plan.report {
        let failed = |source| Failure::Write { path: path.clone(), source };
        let json = serde_json::to_string_pretty(&report).map_err(|e| failed(e.into()))?;
        std::fs::write(path, json + "\n").map_err(failed)?;
    }
    if report.connections == 0 {
        return Err(Failure::NoSensor(to));
    }
    match report.verdict() {
        Some(reason) => Err(Failure::Verification(reason)),
        None => Ok(()),
    }
}

/// What the sensors stand on: the address of a gateway, or a pseudo-terminal that it has opened.
enum Ground {
    Udp(SocketAddr),
    Pty(Pty, radio::Options),
}

impl Ground {
    async fn new(plan: &Plan) -> Result<Self, Failure> {
        match &plan.via {
            Via::Udp(gateway) => {
                allow_sockets(plan.nodes)?;
                Ok(Self::Udp(reachable(gateway).await?))
            }
            Via::Pty { radio, link } => {
                let pty = Pty::new(link.as_deref()).map_err(|source| {
                    let path = link.clone().unwrap_or_else(|| "/dev/ptmx".into());
                    match source.kind() {
                        ErrorKind::AlreadyExists => Failure::Taken(path),
                        _ => Failure::Open { path, source },
                    }
                })?;
                let mut out = std::io::stdout().lock();
                writeln!(out, "let the gateway open {}", pty.name().display()).map_err(Failure::Stdout)?;
                out.flush().map_err(Failure::Stdout)?;
                drop(out);
                timeout(OPENED_WITHIN, pty.opened()).await.map_err(|_| Failure::NobodyOpened {
                    path: pty.name().to_owned(),
                    limit: OPENED_WITHIN,
                })?;
                Ok(Self::Pty(pty, *radio))
            }
        }
    }

    fn antennas(self, plan: &Plan) -> Antennas {
        match self {
            Self::Udp(to) => Antennas::Udp(to),
            Self::Pty(pty, options) => {
                let radio = Radio::new(options, plan.nodes, plan.seed);
                let (up, frames) = mpsc::channel(AIR_MAX);
                Antennas::Radio(Box::new(Air { radio, pty, up, frames, nodes: Vec::new() }))
            }
        }
    }
}

/// Where sensors get their [`Antenna`] from.
enum Antennas {
    Udp(SocketAddr),
    Radio(Box<Air>),
}

/// A radio before it is switched on.
struct Air {
    radio: Radio,
    pty: Pty,
    up: mpsc::Sender<(u32, Bytes)>,
    frames: mpsc::Receiver<(u32, Bytes)>,
    nodes: Vec<mpsc::Sender<Bytes>>,
}

impl Antennas {
    /// Of the sensor of this number, which are asked for in their order.
    async fn next(&mut self, node: u32) -> Result<Antenna, Failure> {
        match self {
            Self::Udp(to) => Ok(Antenna::Udp(open(*to).await?)),
            Self::Radio(air) => {
                let (sender, down) = mpsc::channel(AIR_MAX);
                air.nodes.push(sender);
                Ok(Antenna::Radio { node, up: air.up.clone(), down })
            }
        }
    }

    /// Every sensor has its own: the radio is switched on.
    fn done(self) -> (Place, Option<JoinHandle<radio::Tally>>) {
        match self {
            Self::Udp(to) => (Place::Udp(to), None),
            Self::Radio(air) => {
                let to = Place::Serial(air.pty.name().to_owned());
                drop(air.up);
                (to, Some(tokio::spawn(pty::run(air.radio, air.pty, air.frames, air.nodes))))
            }
        }
    }
}

/// By what a sensor sends and hears.
enum Antenna {
    Udp(UdpSocket),
    Radio { node: u32, up: mpsc::Sender<(u32, Bytes)>, down: mpsc::Receiver<Bytes> },
}

impl Antenna {
    async fn send(&self, frame: Bytes) -> std::io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(&frame).await.map(drop),
            Self::Radio { node, up, .. } => {
                up.send((*node, frame)).await.map_err(|_| ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// The next frame, which is in the buffer if it came by a socket. May be dropped and called again.
    async fn recv(&mut self, buffer: &mut [u8]) -> std::io::Result<Bytes> {
        match self {
            Self::Udp(socket) => {
                let len = socket.recv(buffer).await?;
                Ok(Bytes::copy_from_slice(&buffer[..len]))
            }
            Self::Radio { down, .. } => match down.recv().await {
                Some(frame) => Ok(frame),
                None => std::future::pending().await,
            },
        }
    }
}

/// One sensor, its antenna and its clock. What goes wrong with a socket is the radio's noise.
async fn drive(
    mut sensor: Sensor,
    mut antenna: Antenna,
    notes: mpsc::Sender<Note>,
    mut orders: watch::Receiver<Order>,
) {
    let mut buffer = vec![0; PAYLOAD_MAX + 1024];
    loop {
        sensor.handle_timeout(Instant::now());
        while let Some(note) = sensor.poll_note() {
            if notes.send(note).await.is_err() {
                return;
            }
        }
        while let Some(frame) = sensor.poll_transmit() {
            if let Err(error) = antenna.send(frame).await
                && error.kind() == ErrorKind::ConnectionRefused
            {
                sensor.unreachable();
            }
        }
        if sensor.is_done() {
            break;
        }
        tokio::select! {
            received = antenna.recv(&mut buffer) => match received {
                Ok(frame) => sensor.handle_datagram(Instant::now(), frame),
                Err(_) => sensor.unreachable(),
            },
            () = sleep(sensor.poll_timeout()) => {}
            Ok(()) = orders.changed() => match *orders.borrow_and_update() {
                Order::Publish => {}
                Order::Stop => sensor.stop(Instant::now()),
                Order::Leave => sensor.release(),
            },
        }
    }
    let _ = notes.send(sensor.done()).await;
}

async fn interrupted(interrupts: &mut Option<Signal>) {
    if let Some(interrupts) = interrupts
        && interrupts.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// The first address of the gateway's host where somebody may listen.
async fn reachable(gateway: &Gateway) -> Result<SocketAddr, Failure> {
    let mut unreachable = None;
    for to in gateway.resolve().await? {
        let socket = open(to).await?;
        let mut search = Search::new(Instant::now(), 1, Duration::ZERO, PROBE, 0);
        search.handle_timeout(Instant::now());
        let probe = async {
            if let Some(frame) = search.poll_transmit() {
                socket.send(&frame).await?;
            }
            socket.recv(&mut [0; 1024]).await
        };
        match timeout(PROBE, probe).await {
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                unreachable = Some(Failure::Unreachable(to));
            }
            Ok(Err(source)) => unreachable = Some(Failure::Send { to: Place::Udp(to), source }),
            Ok(Ok(_)) | Err(_) => return Ok(to),
        }
    }
    Err(unreachable.unwrap_or(Failure::NoGateway(PROBE)))
}

/// Raises the limit of open files as far as is needed and allowed without privileges.
fn allow_sockets(nodes: u32) -> Result<(), Failure> {
    let needed = u64::from(nodes) + FILES_BESIDE;
    let failed = |e: nix::Error| Failure::Runtime(e.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if needed > hard {
        return Err(Failure::Usage(format!(
            "--nodes {nodes} needs {needed} open files, and this system allows {hard} (ulimit -Hn)"
        )));
    }
    if needed > soft {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(failed)?;
    }
    Ok(())
}

/// A bar where somebody watches, else a line now and then.
struct Progress {
    bar: ProgressBar,
    start: Instant,
    total: Duration,
    next_line: Instant,
}

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    fn new(plan: &Plan, start: Instant) -> Self {
        let bar = ProgressBar::new(plan.duration.as_millis().try_into().unwrap_or(u64::MAX));
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
            bar.set_style(style);
        }
        Self { bar, start, total: plan.duration, next_line: start + LINE_EVERY }
    }

    fn show(&mut self, ledger: &Ledger) {
        let (now, elapsed) = (Instant::now(), self.start.elapsed());
        let (at, total) = (elapsed.as_secs_f64(), self.total.as_secs_f64());
        let line = if elapsed <= self.total {
            format!("{at:.0} s of {total:.0} s: {}", ledger.line())
        } else {
            format!("finishing for {:.0} s: {}", at - total, ledger.line())
        };
        if !self.bar.is_hidden() {
            self.bar.set_position(elapsed.as_millis().try_into().unwrap_or(u64::MAX));
            self.bar.set_message(line);
        } else if self.next_line <= now {
            self.next_line = now + LINE_EVERY;
            eprintln!("{line}");
        }
    }

    fn done(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gives_each_sensor_a_topic_and_all_of_them_a_filter() {
        let template = Template::new("a/{node}/x").unwrap();
        assert_eq!(template.topic(7).unwrap().as_str(), "a/7/x");
        assert_eq!(template.filter().unwrap().as_str(), "a/+/x");
        assert_eq!(template.down(7).unwrap().as_str(), "a/7/x/down");
        assert!(template.is_of_one() && !Template::new("same").unwrap().is_of_one());
        assert_eq!(Template::new("n{node}").unwrap().filter().unwrap().as_str(), "+");
        assert_eq!(Template::new("same").unwrap().filter().unwrap().as_str(), "same");
        for bad in ["", "a/#", "+/{node}"] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
    }
}
