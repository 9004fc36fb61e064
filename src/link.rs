//! TCP and TLS to brokers: connects, reads, and writes what is ready in one go.
//!
//! One task per connection carries out the core's [`LinkCommand`]s. Octets from the broker wait in a bounded inbox and,
//! when that is full, in the broker: the socket is not read before there is room.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::lookup_host;
use tokio::sync::mpsc::{self, Permit};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use self::commands::{Receiver, Sender};
pub use self::password::Passwords;
use self::stream::{Heard, LINGER_MAX, Stream};
pub use self::tls::{Certificates, File, FileError, Files, Pair};
use crate::gateway::io::{Endpoint, LinkCommand, LinkEvent, LinkFailure, LinkId};
use crate::topic::ClientId;

mod commands;
mod password;
mod stream;
mod tls;
mod words;

/// Events of all connections that wait for the core, some 16 KiB each. Then brokers have to wait.
const EVENTS_MAX: usize = 128;

/// Addresses of one name that are tried; more than the usual IPv6 and IPv4 pair has.
const ADDRESSES_MAX: usize = 8;

/// How long a close waits for what was written to leave. systemd waits 90 s for the whole process.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// How long a connection that cannot be written any more is read for the broker's last words.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);

/// An event and the connection it belongs to.
pub type Report = (LinkId, LinkEvent);

/// The connections to brokers. Dropped, all of them are cut.
#[derive(Debug)]
pub struct Links {
    open: BTreeMap<LinkId, Sender>,
    events: mpsc::Sender<Report>,
    connect_timeout: Duration,
    certificates: Certificates,
    passwords: Passwords,
    tasks: JoinSet<()>,
    stale: u64,
}

impl Links {
    /// No connection yet, and where the events of those to come arrive. Each is to be shown to [`accept`](Self::accept).
    pub fn new(connect_timeout: Duration, certificates: Certificates) -> (Self, mpsc::Receiver<Report>) {
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (open, tasks) = (BTreeMap::new(), JoinSet::new());
        let passwords = Passwords::default();
        (Self { open, events, connect_timeout, certificates, passwords, tasks, stale: 0 }, inbox)
    }

    /// The same, with passwords that may change.
    #[must_use]
    pub fn with_passwords(self, passwords: Passwords) -> Self {
        Self { passwords, ..self }
    }

    /// Carries out a command; never waits. Needs a tokio runtime. A command for a connection that is gone is ignored and
    /// counted.
    pub fn command(&mut self, id: LinkId, command: LinkCommand) {
        let sent = match command {
            LinkCommand::Connect { endpoint, client } => return self.connect(id, endpoint, client),
            LinkCommand::Write(octets) => self.open.get(&id).map(|commands| commands.write(octets)),
            LinkCommand::Close => self.open.remove(&id).map(Sender::close),
        };
        // It has ended by itself and its last event is on the way, or has been there.
        if sent != Some(Ok(())) {
            self.stale += 1;
        }
    }

    /// Whether an event is still of interest to the core: nothing is, of a connection that it has closed.
    #[must_use]
    pub fn accept(&mut self, (id, event): &Report) -> bool {
        if !self.open.contains_key(id) {
            self.stale += 1;
            return false;
        }
        if let LinkEvent::Closed(failure) = event {
            debug!(link = id.0, %failure, "closed");
            self.open.remove(id);
        }
        true
    }

    /// Commands and events of connections that were gone.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// Closes what is open as [`LinkCommand::Close`] does and waits until all is closed, but no longer than a close may
    /// take.
    pub async fn close(mut self) {
        self.open.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(FLUSH_MAX + LINGER_MAX, all).await.is_err() {
            warn!("connections to brokers cut: they took too long to close");
        }
    }

    fn connect(&mut self, id: LinkId, endpoint: Endpoint, client: Option<ClientId>) {
        while self.tasks.try_join_next().is_some() {}
        let (sender, commands) = commands::commands();
        let before = self.open.insert(id, sender);
        debug_assert!(before.is_none(), "a handle is never used again");
        let outlet = Outlet { id, commands, events: self.events.clone() };
        let (certificates, passwords) = (self.certificates.clone(), self.passwords.clone());
        let dial = Dial { endpoint, client, certificates, passwords };
        self.tasks.spawn(run(outlet, dial, self.connect_timeout));
    }
}

/// The task of one connection. What it is at the beginning and at the end has a room of its own, or each of thousands of
/// connections would take it for as long as it lasts.
async fn run(outlet: Outlet, dial: Dial, within: Duration) {
    let connected = tokio::select! {
        biased;
        () = outlet.closed() => return,
        connected = Box::pin(dial.connect(within)) => connected,
    };
    let (stream, password) = match connected {
        Ok(connected) => connected,
        Err(failure) => return Box::pin(outlet.report_end(failure)).await,
    };
    drop(dial);
    let unsent = Bytes::new();
    let mut connection =
        Connection { stream, outlet, password, unsent, writing: false, drained: false, connected: false };
    match connection.serve().await {
        Ok(()) => Box::pin(connection.stream.leave(&connection.unsent, FLUSH_MAX)).await,
        Err(failure) => {
            let failure = connection.stream.explain(failure);
            Box::pin(connection.outlet.report_end(failure)).await;
        }
    }
}

/// What joins the task of a connection to the core.
struct Outlet {
    id: LinkId,
    commands: Receiver,
    events: mpsc::Sender<Report>,
}

impl Outlet {
    /// Completes when the core has closed the connection. Cancel-safe.
    async fn closed(&self) {
        while self.commands.recv().await.is_some() {}
    }

    /// The last event, unless the core closes the connection before there is room for it.
    async fn report_end(self, failure: LinkFailure) {
        let events = self.events.clone();
        tokio::select! {
            biased;
            () = self.closed() => {}
            permit = events.reserve() => {
                if let Ok(permit) = permit {
                    permit.send((self.id, LinkEvent::Closed(failure)));
                }
            }
        }
    }
}

/// An open connection.
struct Connection {
    stream: Stream,
    outlet: Outlet,
    /// To be reported before `Connected`.
    password: Option<Bytes>,
    /// What is left of the write under way.
    unsent: Bytes,
    /// Whether a write is under way.
    writing: bool,
    /// Whether the end of a write is to be reported.
    drained: bool,
    /// Whether `Connected` has been reported.
    connected: bool,
}

impl Connection {
    /// Carries out commands until one of them closes the connection, or the broker does, or it fails.
    async fn serve(&mut self) -> Result<(), LinkFailure> {
        let events = self.outlet.events.clone();
        loop {
            // Commands first: a close is the end of reading. Then writing, which ends by itself until the core says more;
            // then reading, which with a busy broker never ends.
            tokio::select! {
                biased;
                octets = self.outlet.commands.recv() => match octets {
                    Some(octets) => self.enqueue(octets),
                    None => return Ok(()),
                },
                writable = self.stream.writable(), if self.writing => {
                    if let Err(error) = writable.and_then(|()| self.write()) {
                        let reason = Box::pin(self.last_words()).await;
                        return Err(reason.unwrap_or(LinkFailure::Io(plain(&error))));
                    }
                }
                permit = events.reserve(), if !self.connected || self.drained => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(password) = self.password.take() {
                        permit.send((self.outlet.id, LinkEvent::Password(password)));
                        continue;
                    }
                    let event = if self.connected { LinkEvent::Drained } else { LinkEvent::Connected };
                    (self.connected, self.drained) = (true, false);
                    permit.send((self.outlet.id, event));
                }
                permit = readable(&self.stream, &events), if self.connected => {
                    let Some(permit) = permit else { return Ok(()) };
                    match self.stream.read().await? {
                        Heard::Octets(octets) => permit.send((self.outlet.id, LinkEvent::Bytes(octets))),
                        Heard::Nothing => {}
                        Heard::End => return Err(LinkFailure::Closed),
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, octets: Bytes) {
        debug_assert!(self.unsent.is_empty(), "one write at a time");
        (self.writing, self.drained) = (!octets.is_empty(), octets.is_empty());
        self.unsent = if self.unsent.is_empty() { octets } else { commands::joined(&self.unsent, &octets) };
    }

    /// Writes what the operating system takes.
    fn write(&mut self) -> io::Result<()> {
        if self.stream.write(&mut self.unsent)? {
            (self.writing, self.drained) = (false, true);
        }
        Ok(())
    }

    /// Passes on what the broker said before it cut the connection: the reason may be in it, or the end of TLS.
    async fn last_words(&mut self) -> Option<LinkFailure> {
        let Self { stream, outlet: Outlet { id, events, .. }, .. } = self;
        let all = async {
            while let Some(permit) = readable(stream, events).await {
                match stream.read().await {
                    Ok(Heard::Octets(octets)) => permit.send((*id, LinkEvent::Bytes(octets))),
                    Ok(Heard::Nothing) => {}
                    Err(reason @ LinkFailure::Tls(_)) => return Some(reason),
                    Ok(Heard::End) | Err(_) => return None,
                }
            }
            None
        };
        // Out of time: the broker has said enough.
        timeout(LAST_WORDS_MAX, all).await.ok().flatten()
    }
}

/// Waits until there is something to read and room to put it; `None` once nobody wants it any more. Cancel-safe: nothing
/// is read yet. In this order, or idle connections would fill the room.
async fn readable<'a>(stream: &Stream, events: &'a mpsc::Sender<Report>) -> Option<Permit<'a, Report>> {
    stream.readable().await;
    events.reserve().await.ok()
}

/// A broker to be connected to.
struct Dial {
    endpoint: Endpoint,
    client: Option<ClientId>,
    certificates: Certificates,
    passwords: Passwords,
}

impl Dial {
    /// Finds the broker and connects to the first of its addresses that answers. Each may take its share of the time. With it
    /// comes the password to be shown there, if it is in a file.
    async fn connect(&self, within: Duration) -> Result<(Stream, Option<Bytes>), LinkFailure> {
        let Self { endpoint, client, certificates, passwords } = self;
        let deadline = Instant::now() + within;
        let addrs = resolve(endpoint, deadline).await?;
        let mut failures: Vec<LinkFailure> = Vec::new();
        for (tried, &addr) in addrs.iter().enumerate() {
            let share = deadline.saturating_duration_since(Instant::now()) / (addrs.len() - tried) as u32;
            match Stream::open(addr, endpoint, client.as_ref(), certificates, share).await {
                Ok(stream) => return Ok((stream, passwords.current(client.as_ref()).await)),
                Err(failure) => {
                    debug!(%addr, %failure, "cannot connect");
                    if !failures.contains(&failure) {
                        failures.push(failure);
                    }
                }
            }
        }
        Err(one_of(failures))
    }
}

/// What several addresses come to: what TLS says of one that answered is worth more than that others do not.
fn one_of(failures: Vec<LinkFailure>) -> LinkFailure {
    let (tls, others): (Vec<_>, Vec<_>) =
        failures.into_iter().partition(|it| matches!(it, LinkFailure::Tls(_)));
    let reasons = |failures: Vec<LinkFailure>| {
        let reason = |failure| match failure {
            LinkFailure::Tls(reason) | LinkFailure::Connect(reason) => reason,
            failure => failure.to_string(),
        };
        failures.into_iter().map(reason).collect::<Vec<_>>().join(", ")
    };
    if tls.is_empty() { LinkFailure::Connect(reasons(others)) } else { LinkFailure::Tls(reasons(tls)) }
}

async fn resolve(endpoint: &Endpoint, deadline: Instant) -> Result<Vec<SocketAddr>, LinkFailure> {
    let failure =
        |reason: &str| LinkFailure::Resolve { host: endpoint.host.clone(), reason: reason.to_owned() };
    let found = match timeout_at(deadline, lookup_host((endpoint.host.as_str(), endpoint.port))).await {
        Ok(found) => found.map_err(|error| failure(&plain(&error)))?,
        Err(_) => return Err(failure("the name server does not answer")),
    };
    let addrs: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if addrs.is_empty() { Err(failure("it has no address")) } else { Ok(addrs) }
}

/// The error in words, without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
