//! The loop around the core: inboxes by priority, one deadline, dispatch.
//!
//! One task owns the [`Gateway`] and awaits only its inboxes and its deadline, never an output: what a port cannot take at
//! once is dropped and counted there, and what a broker does not take comes back to the core as a `Drained` that is not
//! yet there.

mod manager;
mod operator;

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use self::manager::Manager;
use self::operator::Operator;
use crate::admin::{self, Asked};
use crate::broker;
use crate::deadline::Deadline;
use crate::gateway::io::{Control, Input, Mode, Output, PortId, Settings, Target};
use crate::gateway::record::{Lsn, Outcome, Row};
use crate::gateway::{Counters, Gateway};
use crate::link::{Certificates, Links, Passwords, Report};
use crate::store::{self, Store, StoreError};
use crate::transport::{self, Inbox, Intake, OpenError, Transport};

/// Frames handed to the core before its outputs are taken: what they have for the broker leaves in one write. No more, or
/// sockets would be left alone for as long as the core needs for sensors that all come at once.
const FRAMES_PER_TURN: usize = 64;

/// Events of brokers handed to the core before its outputs are taken; each is a few hundred messages at most.
const EVENTS_PER_TURN: usize = 32;

/// Outputs carried out in a row, before the others are looked after again. While there are more, brokers are not read: what
/// they send waits in TCP.
const OUTPUTS_PER_TURN: usize = 1024;

/// Outputs past which no frames are taken from ports: a message for very many clients is under way.
const OUTPUTS_MARK: usize = 16 * OUTPUTS_PER_TURN;

/// Orders that wait for the loop: more than a hasty operator can give.
const ORDERS_MAX: usize = 8;

/// Open files beside the links of clients: ports, the gateway's own link, the log, the reactor.
const FILES_BESIDE_LINKS: u64 = 64;

/// Clients for whom there should be open files, whatever `sessions.max` allows: as many as a shell on Linux gives by default. A
/// system that gives fewer was meant for smaller programs.
const LINKS_LEAST: u64 = 1024 - FILES_BESIDE_LINKS;

/// How long the core may take its leave when asked to stop.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How long frames that wait for slow lines may keep it from stopping.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// How often what has been lost meanwhile is told.
const TALLY_INTERVAL: Duration = Duration::from_secs(60);

/// The wait for the address of the embedded broker to be there: doubles from the first to the second.
const BROKER_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What a gateway is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// For the core.
    pub settings: Settings,
    /// How to open the ports, in the order of [`Settings::ports`].
    pub ports: Vec<transport::Options>,
    /// Where the embedded broker listens, if it is to run in this process.
    pub embedded_broker: Option<SocketAddr>,
    /// For brokers that speak TLS.
    pub certificates: Certificates,
    /// For brokers that ask who we are.
    pub passwords: Passwords,
    /// Where state outlives this process; `None`: nowhere.
    pub store: Option<store::Options>,
    /// The control socket, if there is to be one.
    pub control: Option<admin::Options>,
}

/// Runs a gateway until SIGTERM or SIGINT; a second one cuts the leave-taking short. SIGHUP is told and ignored.
///
/// # Errors
/// What keeps it from starting. Once it runs, whatever is absent is waited for.
pub async fn run(setup: Setup) -> Result<(), RuntimeError> {
    // First of all: who sees a port listen may send a signal at once.
    let signals = Signals::new()?;
    raise_open_files(&setup.settings);
    let mut runtime = Runtime::open(setup)?;
    runtime.manager = Manager::of_environment(Instant::now());
    let signals = tokio::spawn(obey_signals(signals, runtime.handle()));
    runtime.run().await;
    signals.abort();
    Ok(())
}

/// Lets this process open as many files as the system allows: each client with a link of its own takes one.
fn raise_open_files(settings: &Settings) {
    let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        debug!(%error, "the limit of open files stays");
    }
    let dedicated = settings.ports.iter().any(|port| port.mode == Mode::Transparent);
    let (clients, max) = (most.saturating_sub(FILES_BESIDE_LINKS), settings.sessions.max);
    let wanted = u64::try_from(max).unwrap_or(u64::MAX);
    if dedicated && clients < wanted.min(LINKS_LEAST) {
        warn!(
            limit = most,
            "open files for {clients} clients with links of their own, the others are refused (LimitNOFILE)"
        );
    } else if dedicated && clients < wanted {
        info!(
            limit = most,
            "open files for {clients} clients with links of their own; sessions.max is {max}"
        );
    }
}

/// Runs a future, such as [`run`], on so many threads. On one, all takes its turn there, and a lone message never waits for
/// another thread to wake up. On more, sockets are read and written on the others, which takes more messages at once.
///
/// # Errors
/// The operating system gives no reactor.
pub fn block_on<F>(threads: usize, future: F) -> Result<F::Output, RuntimeError>
where
    F: Future<Output: Send> + Send + 'static,
{
    let mut builder = if threads > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    let others = threads.saturating_sub(1).max(1);
    let runtime = builder.worker_threads(others).enable_all().build().map_err(RuntimeError::Reactor)?;
    let output = if threads > 1 {
        runtime.block_on(future)
    } else {
        // As a task among the others: what a runtime blocks on has its turn only after the system was asked for news.
        match runtime.block_on(runtime.spawn(future)) {
            Ok(output) => output,
            // Nobody cancels it.
            Err(ended) => resume_unwind(ended.into_panic()),
        }
    };
    // A name server that does not answer must not delay the end.
    runtime.shutdown_background();
    Ok(output)
}

/// Why a gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A transport cannot be opened.
    #[error("transport {name}")]
    Port {
        /// Its name.
        name: String,
        /// Why.
        source: OpenError,
    },
    /// The embedded broker's address is in use or not permitted.
    #[error("the embedded broker cannot listen on {addr}")]
    Broker {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no going on with the store.
    #[error(transparent)]
    Store(StoreError),
    /// The operating system gives no reactor.
    #[error("cannot wait for sockets")]
    Reactor(#[source] io::Error),
    /// The operating system gives no signals.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// A gateway with its sockets open. [`Runtime::run`] brings it to life.
#[derive(Debug)]
pub struct Runtime {
    gateway: Gateway,
    store: Store,
    ports: Vec<Transport>,
    links: Links,
    events: mpsc::Receiver<Report>,
    intake: Intake,
    batch: Batch,
    orders: mpsc::Receiver<Order>,
    operator: Operator,
    manager: Manager,
    tally: Tally,
    deadline: Deadline,
    stopped: bool,
    /// Keeps the loop from mistaking "no port" for "something arrived".
    _inbox: Inbox,
    handle: Handle,
    _broker: Option<Task>,
}

impl Runtime {
    /// Opens the ports and starts the embedded broker, if there is to be one. Needs a tokio runtime.
    ///
    /// # Errors
    /// What waiting does not mend: an address in use, a lack of permission.
    pub fn open(setup: Setup) -> Result<Self, RuntimeError> {
        let names: Vec<_> = setup.settings.ports.iter().map(|port| port.name.clone()).collect();
        let connect_timeout = setup.settings.broker.connect_timeout;
        let (store, gateway) = restore(setup.store.as_ref(), setup.settings)?;
        let broker = setup.embedded_broker.map(start_broker).transpose()?;
        // Who sees a port listen may ask at once.
        let mut operator = Operator::new(setup.control.as_ref(), setup.store.is_some(), Instant::now());
        let (inbox, intake) = transport::inbox();
        let mut ports = Vec::new();
        for ((id, options), name) in (0..).map(PortId).zip(&setup.ports).zip(&names) {
            let port = Transport::open(id, options, &inbox);
            let port = port.map_err(|source| RuntimeError::Port { name: name.clone(), source })?;
            operator.add_port(name, port.status().up, Instant::now());
            ports.push(port);
        }
        let (links, events) = Links::new(connect_timeout, setup.certificates);
        let links = links.with_passwords(setup.passwords);
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        Ok(Self {
            tally: Tally::new(names),
            gateway,
            store,
            ports,
            links,
            events,
            intake,
            batch: Batch::default(),
            orders,
            operator,
            manager: Manager::default(),
            deadline: Deadline::default(),
            stopped: false,
            _inbox: inbox,
            handle: Handle(sender),
            _broker: broker,
        })
    }

    /// The addresses on which a port listens at the moment.
    pub fn local_addrs(&self, port: PortId) -> Vec<SocketAddr> {
        self.ports.get(usize::from(port.0)).map(Transport::local_addrs).unwrap_or_default()
    }

    /// To stop it while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until told to stop, then takes leave of clients and brokers, in bounded time. Returns what was counted.
    pub async fn run(mut self) -> Vec<(String, u64)> {
        let mut stop_by = None;
        while !self.stopped {
            let arrived = self.turn(stop_by).await;
            let now = Instant::now();
            match arrived {
                Some(Order::Stop) if stop_by.is_none() => {
                    info!("stopping");
                    self.manager.stopping(now);
                    stop_by = Some(now + STOP_MAX);
                    self.gateway.handle(now, Input::Control(Control::Shutdown));
                }
                Some(Order::Stop) | None => {}
                Some(Order::Abort) => return self.end().await,
            }
            if stop_by.is_some_and(|by| by <= now) {
                warn!("the broker takes too long to be left");
                break;
            }
            self.manager.turned(now, || self.operator.status(&self.gateway));
            let refused = self.operator.refused();
            self.tally.tell_if_due(now, &self.gateway, &self.ports, &self.links, refused);
        }
        self.close().await
    }

    /// Carries out what the core wants, waits for something to happen, and tells the core.
    async fn turn(&mut self, stop_by: Option<Instant>) -> Option<Order> {
        let settled = self.dispatch();
        if self.stopped {
            return None;
        }
        let listens = settled || self.gateway.waiting_outputs() < OUTPUTS_MARK;
        let wake = [self.gateway.poll_timeout(), stop_by, Some(self.tally.due), self.manager.poll_timeout()];
        let wake = wake.into_iter().flatten().min();
        let (mut order, mut stored, mut asked) = (None, None, None);
        let Batch { mut events, mut frames } = std::mem::take(&mut self.batch);
        // Orders first: they are rare. Then the store, brokers, and ports. A branch that is always ready starves none of the others:
        // after the wait, everybody's inbox is looked into.
        tokio::select! {
            biased;
            received = self.orders.recv() => order = received,
            it = self.operator.next() => asked = Some(it),
            report = self.store.stored() => stored = Some(report),
            _ = self.events.recv_many(&mut events, EVENTS_PER_TURN), if settled => {}
            _ = self.intake.recv_many(&mut frames, FRAMES_PER_TURN), if listens => {}
            () = self.deadline.reached(wake), if settled => {}
            () = yield_now(), if !settled => {}
        }
        if settled {
            let room = EVENTS_PER_TURN - events.len();
            events.extend(std::iter::from_fn(|| self.events.try_recv().ok()).take(room));
        }
        if listens {
            let room = FRAMES_PER_TURN - frames.len();
            self.intake.take(&mut frames, room);
        }
        let (full, now) = (frames.len() >= FRAMES_PER_TURN, Instant::now());
        self.handle_stored(stored, now);
        self.handle_asked(asked, now);
        for report in events.drain(..) {
            if self.links.accept(&report) {
                self.gateway.handle(now, Input::Link(report.0, report.1));
            }
        }
        for input in frames.drain(..) {
            if let Input::Port(port, event) = input {
                self.operator.note_port(port, event, now);
            }
            self.gateway.handle(now, input);
        }
        if self.gateway.poll_timeout().is_some_and(|at| at <= now) {
            self.gateway.handle_timeout(now);
        }
        self.batch = Batch { events, frames };
        self.operator.note_broker(self.gateway.is_connected(), now);
        self.operator.note_store(self.gateway.is_storing(), now);
        if full {
            // There may be more, and then waiting for it would let nobody else run.
            yield_now().await;
        }
        order
    }

    fn handle_stored(&mut self, report: Option<(Lsn, Outcome)>, now: Instant) {
        if let Some((lsn, outcome)) = report {
            self.gateway.handle(now, Input::Stored(lsn, outcome));
        }
    }

    fn handle_asked(&mut self, asked: Option<Asked>, now: Instant) {
        let input = asked.and_then(|asked| {
            let ports = self.ports.iter().map(Transport::status).collect();
            self.operator.take(asked, &self.gateway, ports, now)
        });
        if let Some(input) = input {
            self.gateway.handle(now, input);
        }
    }

    /// Carries out what the core wants done, but not for long. Whether that was all.
    fn dispatch(&mut self) -> bool {
        for _ in 0..OUTPUTS_PER_TURN {
            let Some(output) = self.gateway.poll_output() else { return true };
            match output {
                Output::Send { to: Target::Unicast { port, addr, route }, frame } => {
                    if let Some(port) = self.ports.get(usize::from(port.0)) {
                        port.send(addr, route, &frame);
                    }
                }
                Output::Send { to: Target::Broadcast { port, radius }, frame } => {
                    if let Some(port) = self.ports.get(usize::from(port.0)) {
                        port.broadcast(radius, &frame);
                    }
                }
                Output::Link(id, command) => self.links.command(id, command),
                Output::Store { lsn, records } => self.store.submit(lsn, records),
                Output::Answer(request, answer) => self.operator.answer(request, answer),
                Output::Stopped => self.stopped = true,
            }
        }
        false
    }

    /// Closes the connections to brokers, and the store, unless told to hurry.
    async fn close(mut self) -> Vec<(String, u64)> {
        let (none, _) = Links::new(Duration::ZERO, Certificates::default());
        let links = std::mem::replace(&mut self.links, none);
        let hurry = async { while !matches!(self.orders.recv().await, Some(Order::Abort) | None) {} };
        self.ports.iter_mut().for_each(Transport::close);
        let ports = async {
            for port in &mut self.ports {
                port.closed().await;
            }
        };
        tokio::select! {
            biased;
            () = hurry => {}
            _ = async { tokio::join!(links.close(), timeout(CLOSE_MAX, ports)) } => {}
        }
        let store = std::mem::replace(&mut self.store, Store::memory());
        if let Err(error) = store.close().await {
            warn!(%error, "stopping all the same");
        }
        self.end().await
    }

    async fn end(mut self) -> Vec<(String, u64)> {
        for port in &mut self.ports {
            port.abandon().await;
        }
        let refused = self.operator.refused();
        let counts = self.tally.end(&self.gateway, &self.ports, &self.links, refused);
        info!("stopped");
        counts
    }
}

/// What arrived in a turn: empty between turns, with room for the next.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<Report>,
    frames: Vec<Input>,
}

/// The store and what is in it. The gateway goes by the client id that it made up at its first start.
fn restore(
    options: Option<&store::Options>,
    mut settings: Settings,
) -> Result<(Store, Gateway), RuntimeError> {
    let Some(options) = options else {
        return Ok((Store::memory(), Gateway::restore(settings, [], Instant::now())));
    };
    let restored = Store::open_with(options, |rows| {
        let mut rows = rows.peekable();
        if std::mem::take(&mut settings.broker.client_id_is_random)
            // No key is before this.
            && let Some(Row::Gateway(row)) = rows.peek()
        {
            settings.broker.client_id.clone_from(&row.client_id);
        }
        Gateway::restore(settings, rows, Instant::now())
    });
    restored.map_err(RuntimeError::Store)
}

/// Stops a running gateway.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Order>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop,
    Abort,
}

impl Handle {
    /// Asks it to take leave of clients and brokers and to stop.
    pub fn stop(&self) {
        // Full: it was asked before. Closed: it has stopped.
        let _ = self.0.try_send(Order::Stop);
    }

    /// Asks it to stop at once.
    pub fn abort(&self) {
        let _ = self.0.try_send(Order::Abort);
    }
}

/// The signals that are obeyed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, RuntimeError> {
        let catch = |kind| signal(kind).map_err(RuntimeError::Signals);
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hang_up: catch(SignalKind::hangup())?,
        })
    }
}

async fn obey_signals(mut signals: Signals, handle: Handle) {
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
            _ = signals.hang_up.recv() => {
                info!("SIGHUP: reloading comes with a later version; restart to apply a changed configuration");
                continue;
            }
        }
        if asked {
            handle.abort();
        } else {
            handle.stop();
        }
        asked = true;
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts the embedded broker; if its address is not there yet, as soon as it is.
fn start_broker(addr: SocketAddr) -> Result<Task, RuntimeError> {
    let listener = match listen(addr) {
        Ok(listener) => Some(listener),
        Err(source) if transport::is_for_good(&source) => return Err(RuntimeError::Broker { addr, source }),
        Err(error) => {
            warn!("the embedded broker cannot listen on {addr} yet: {error}; trying again");
            None
        }
    };
    let serve = async move {
        let mut wait = BROKER_RETRY.0;
        let mut listener = listener;
        let listener = loop {
            if let Some(listener) = listener.take() {
                break listener;
            }
            sleep(wait).await;
            wait = BROKER_RETRY.1.min(wait * 2);
            listener = listen(addr).ok();
        };
        broker::tcp::serve(listener, broker::Limits::default(), pending()).await
    };
    Ok(Task(tokio::spawn(serve).abort_handle()))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What was counted when the log was last told, and when it will be again.
#[derive(Debug)]
struct Tally {
    due: Instant,
    port_names: Vec<String>,
    told: Vec<u64>,
}

#[derive(Debug)]
struct Counted {
    name: String,
    loss: bool,
    total: u64,
}

impl Tally {
    fn new(port_names: Vec<String>) -> Self {
        Self { due: Instant::now() + TALLY_INTERVAL, port_names, told: Vec::new() }
    }

    fn tell_if_due(
        &mut self,
        now: Instant,
        gateway: &Gateway,
        ports: &[Transport],
        links: &Links,
        refused: u64,
    ) {
        if now < self.due {
            return;
        }
        self.due = now + TALLY_INTERVAL;
        let counted = self.count(gateway, ports, links, refused);
        let mut losses = String::new();
        for (index, counted) in counted.iter().enumerate() {
            let told = self.told.get(index).copied().unwrap_or_default();
            let more = counted.total.saturating_sub(told);
            if counted.loss && more > 0 {
                append(&mut losses, &counted.name, more);
            }
        }
        if !losses.is_empty() {
            warn!("dropped or refused in the last minute: {losses}");
        }
        self.told = counted.into_iter().map(|counted| counted.total).collect();
    }

    fn end(&self, gateway: &Gateway, ports: &[Transport], links: &Links, refused: u64) -> Vec<(String, u64)> {
        let counted = self.count(gateway, ports, links, refused);
        let mut all = String::new();
        for counted in counted.iter().filter(|counted| counted.total > 0) {
            append(&mut all, &counted.name, counted.total);
        }
        if !all.is_empty() {
            info!("counted: {all}");
        }
        counted.into_iter().map(|counted| (counted.name, counted.total)).collect()
    }

    /// Everything in a fixed order.
    fn count(&self, gateway: &Gateway, ports: &[Transport], links: &Links, refused: u64) -> Vec<Counted> {
        let core = gateway.counters().iter().map(|(name, total)| Counted {
            name: name.to_owned(),
            loss: Counters::is_loss(name),
            total,
        });
        let ports = self.port_names.iter().zip(ports).flat_map(|(port, transport)| {
            transport.counters().iter().map(move |(count, total)| Counted {
                name: format!("{port}.{}", count.name()),
                loss: count.is_loss(),
                total,
            })
        });
        let stale = Counted { name: "link_commands_stale".to_owned(), loss: false, total: links.stale() };
        let refused = Counted { name: "control_refused".to_owned(), loss: true, total: refused };
        core.chain(ports).chain([stale, refused]).collect()
    }
}

fn append(list: &mut String, name: &str, count: u64) {
    let separator = if list.is_empty() { "" } else { ", " };
    *list += &format!("{separator}{name} {count}");
}
