//! One connection to a broker with its reconnects: a [`Connection`] and the socket that the shell holds for it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::gateway::counters::Counters;
use crate::gateway::io::{self, BrokerSettings, LinkCommand, LinkEvent, LinkId, Output};
use crate::mqtt::{ConnectRefusal, Connection, Credentials, Event, Options, Protocol};

/// Bounds of the pause before a reconnect. It doubles with every failure; the pause itself is anywhere between the
/// lower bound and what it has grown to, so that gateways that lost one broker do not come back all at once.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// How long the broker has to take leave at shutdown.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a broker that can be told (MQTT 5) keeps a session whose client id will not come back if this process dies:
/// longer than any outage that it is meant to outlive.
const SESSION_OF_RANDOM_ID: Duration = Duration::from_secs(7 * 24 * 3600);

/// A link: the connection as MQTT sees it, and whether there is a socket for it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    id: LinkId,
    socket: Socket,
    /// The last [`LinkCommand::Write`] is not yet with the operating system.
    writing: bool,
    /// Failures since the broker last accepted us.
    failures: u32,
    /// Which endpoint comes next.
    endpoint: usize,
    /// The failure that was told last: a broker that stays away is no news.
    told: String,
    /// In which version endpoints have accepted us, if we may choose.
    spoken: BTreeMap<usize, Protocol>,
    /// What follows once everything is written.
    parting: Option<Parting>,
    /// When the broker has had its time to take leave.
    farewell: Option<Instant>,
}

/// What follows the last octets of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// The next connection, at once.
    Reconnect,
    /// Nothing.
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Socket {
    /// None until then; `None`: never again.
    Waiting(Option<Instant>),
    /// Asked for.
    Connecting,
    /// There.
    Open,
}

impl Link {
    pub(super) fn new(settings: &BrokerSettings, now: Instant) -> Self {
        let mut options = Options::new(settings.client_id.clone());
        options.keep_alive = settings.keep_alive;
        if settings.client_id_is_random {
            options.session_expiry = SESSION_OF_RANDOM_ID;
        }
        options.connect_timeout = settings.connect_timeout;
        options.credentials = settings.credentials.as_ref().map(|(username, password)| Credentials {
            username: username.clone(),
            password: password.clone(),
        });
        Self {
            connection: Connection::new(options),
            id: LinkId(0),
            socket: Socket::Waiting(Some(now)),
            writing: false,
            failures: 0,
            endpoint: 0,
            told: String::new(),
            spoken: BTreeMap::new(),
            parting: None,
            farewell: None,
        }
    }

    /// Takes in what the shell reports. What MQTT makes of it is in the connection's events.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        id: LinkId,
        event: LinkEvent,
        settings: &BrokerSettings,
        cx: &mut LinkCx<'_>,
    ) {
        if id != self.id || matches!(self.socket, Socket::Waiting(_)) {
            cx.counters.link_stale += 1;
            return;
        }
        let result = match event {
            LinkEvent::Connected => {
                self.socket = Socket::Open;
                self.connection.handle_connected(now)
            }
            LinkEvent::Bytes(octets) => self.connection.handle_bytes(now, &octets),
            LinkEvent::Drained => {
                self.writing = false;
                Ok(())
            }
            // Some brokers close where they should refuse; one that spoke MQTT 5 before does it for another reason.
            LinkEvent::Closed(failure)
                if self.connection.is_connecting()
                    && !self.spoken.contains_key(&self.endpoint(settings))
                    && self.may_fall_back(settings) =>
            {
                self.fall_back(&failure, settings, cx);
                return;
            }
            LinkEvent::Closed(failure) => {
                self.tell("no connection to the broker", &failure, settings);
                self.handle_closed(now, settings, cx);
                return;
            }
        };
        if let Err(failure) = result {
            self.give_up(now, &failure, settings, cx);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        if self.farewell.is_some_and(|at| at <= now) {
            self.leave(cx);
        } else if let Socket::Waiting(Some(at)) = self.socket {
            if at <= now {
                let protocol = match settings.protocol {
                    io::Protocol::V311 => Protocol::V4,
                    io::Protocol::V5 => Protocol::V5,
                    io::Protocol::Auto => {
                        self.spoken.get(&self.endpoint(settings)).copied().unwrap_or(Protocol::V5)
                    }
                };
                self.connect(protocol, settings, cx);
            }
        } else if let Err(failure) = self.connection.handle_timeout(now) {
            self.give_up(now, &failure, settings, cx);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.socket {
            Socket::Waiting(at) => at,
            Socket::Connecting | Socket::Open => self.connection.poll_timeout(),
        };
        own.into_iter().chain(self.farewell).min()
    }

    /// The next event of MQTT that concerns more than this link.
    pub(super) fn poll_event(
        &mut self,
        now: Instant,
        settings: &BrokerSettings,
        cx: &mut LinkCx<'_>,
    ) -> Option<Event> {
        loop {
            match self.connection.poll_event()? {
                Event::Reconnect => self.parting = Some(Parting::Reconnect),
                Event::Refused(refusal) => self.handle_refused(now, refusal, settings, cx),
                Event::Purged => self.parting = Some(Parting::Leave),
                event => {
                    if let Event::Connected { session_present } = event {
                        let broker = self.broker(settings);
                        let protocol = self.connection.options().protocol;
                        info!(%broker, %protocol, session_present, "connected to the broker");
                        self.failures = 0;
                        self.told.clear();
                        self.spoken.insert(self.endpoint(settings), protocol);
                        cx.counters.link_connects += 1;
                    }
                    return Some(event);
                }
            }
        }
    }

    /// Lets everything that is ready leave in one write, unless one is still under way.
    pub(super) fn flush(&mut self, now: Instant, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        if self.socket != Socket::Open || self.writing {
            return;
        }
        if let Some(octets) = self.connection.take_output(now) {
            self.writing = true;
            cx.outputs.push_back(Output::Link(self.id, LinkCommand::Write(octets)));
        }
        match self.parting.take() {
            Some(Parting::Reconnect) => {
                self.close(cx);
                self.connect(self.connection.options().protocol, settings, cx);
            }
            Some(Parting::Leave) => self.leave(cx),
            None => {}
        }
    }

    /// Takes leave of the broker, and of the session there if it will be of no use to anybody.
    pub(super) fn shut_down(&mut self, now: Instant, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        if !self.connection.is_connected() {
            self.leave(cx);
            return;
        }
        self.farewell = Some(now + FAREWELL);
        if settings.client_id_is_random {
            self.connection.purge();
        } else {
            self.connection.disconnect();
            self.parting = Some(Parting::Leave);
        }
    }

    /// Whether [`Link::shut_down`] is done.
    pub(super) fn has_left(&self) -> bool {
        self.socket == Socket::Waiting(None)
    }

    fn connect(&mut self, protocol: Protocol, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        let endpoint = settings.endpoints[self.endpoint(settings)].clone();
        self.connection.set_protocol(protocol);
        self.id = LinkId(self.id.0 + 1);
        self.socket = Socket::Connecting;
        self.writing = false;
        cx.outputs.push_back(Output::Link(self.id, LinkCommand::Connect { endpoint, client: None }));
    }

    /// The socket is gone. A broker that closes at our DISCONNECT may be quicker than our own close.
    fn handle_closed(&mut self, now: Instant, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        match self.parting.take() {
            Some(Parting::Reconnect) => {
                self.connection.handle_closed();
                self.connect(self.connection.options().protocol, settings, cx);
            }
            Some(Parting::Leave) => {
                self.connection.handle_closed();
                (self.socket, self.farewell) = (Socket::Waiting(None), None);
            }
            None => self.retry_later(now, settings, cx),
        }
    }

    /// CONNACK with a refusal.
    fn handle_refused(
        &mut self,
        now: Instant,
        refusal: ConnectRefusal,
        settings: &BrokerSettings,
        cx: &mut LinkCx<'_>,
    ) {
        if matches!(self.socket, Socket::Waiting(_)) {
            // It was quicker to close.
            return self.tell("refused by the broker", &refusal, settings);
        }
        if refusal.is_of_version() {
            // It may be another broker than the one that accepted us.
            self.spoken.remove(&self.endpoint(settings));
            if self.may_fall_back(settings) {
                self.close(cx);
                return self.fall_back(&refusal, settings, cx);
            }
        }
        self.give_up(now, &refusal, settings, cx);
    }

    fn may_fall_back(&self, settings: &BrokerSettings) -> bool {
        settings.protocol == io::Protocol::Auto
            && self.connection.options().protocol == Protocol::V5
            && self.farewell.is_none()
    }

    /// The socket is gone because the broker seems not to know MQTT 5: the second try comes at once. What it accepts is
    /// remembered, not what it refuses: a broker that is only out of order is tried in MQTT 5 again.
    fn fall_back(&mut self, reason: &dyn std::fmt::Display, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        let broker = self.broker(settings);
        if self.told.is_empty() {
            info!(%broker, %reason, "no answer in MQTT 5, trying MQTT 3.1.1");
        } else {
            debug!(%broker, %reason, "no answer in MQTT 5, trying MQTT 3.1.1");
        }
        cx.counters.link_fallbacks += 1;
        self.connection.handle_closed();
        self.parting = None;
        self.connect(Protocol::V4, settings, cx);
    }

    /// The connection cannot go on for a reason of MQTT's.
    fn give_up(
        &mut self,
        now: Instant,
        reason: &dyn std::fmt::Display,
        settings: &BrokerSettings,
        cx: &mut LinkCx<'_>,
    ) {
        self.tell("leaving the connection to the broker", reason, settings);
        cx.outputs.push_back(Output::Link(self.id, LinkCommand::Close));
        self.retry_later(now, settings, cx);
    }

    fn retry_later(&mut self, now: Instant, settings: &BrokerSettings, cx: &mut LinkCx<'_>) {
        self.connection.handle_closed();
        self.parting = None;
        cx.counters.link_failures += 1;
        if self.farewell.take().is_some() {
            self.socket = Socket::Waiting(None);
            return;
        }
        self.failures += 1;
        self.endpoint += 1;
        let rounds = self.failures / u32::try_from(settings.endpoints.len()).unwrap_or(u32::MAX);
        let grown = BACKOFF.start().saturating_mul(1 << rounds.min(8)).min(*BACKOFF.end());
        let pause = BACKOFF.start().saturating_add((grown - *BACKOFF.start()).mul_f64(cx.rng.f64()));
        self.socket = Socket::Waiting(Some(now + pause));
    }

    fn leave(&mut self, cx: &mut LinkCx<'_>) {
        if !matches!(self.socket, Socket::Waiting(_)) {
            self.close(cx);
        }
        (self.socket, self.farewell) = (Socket::Waiting(None), None);
    }

    fn close(&mut self, cx: &mut LinkCx<'_>) {
        cx.outputs.push_back(Output::Link(self.id, LinkCommand::Close));
        self.connection.handle_closed();
    }

    /// Warns of a failure, once for as long as it stays the same.
    fn tell(&mut self, what: &str, reason: &dyn std::fmt::Display, settings: &BrokerSettings) {
        let broker = self.broker(settings);
        let told = format!("{what}: {broker}: {reason}");
        if told == self.told {
            debug!(%broker, %reason, "{what}");
        } else {
            warn!(%broker, %reason, "{what}");
            self.told = told;
        }
    }

    /// The index of the endpoint whose turn it is.
    fn endpoint(&self, settings: &BrokerSettings) -> usize {
        self.endpoint % settings.endpoints.len()
    }

    fn broker(&self, settings: &BrokerSettings) -> String {
        let endpoint = &settings.endpoints[self.endpoint(settings)];
        format!("{}:{}", endpoint.host, endpoint.port)
    }
}

/// What a link needs of the core for one call.
pub(in crate::gateway) struct LinkCx<'a> {
    pub(in crate::gateway) outputs: &'a mut VecDeque<Output>,
    pub(in crate::gateway) counters: &'a mut Counters,
    pub(in crate::gateway) rng: &'a mut fastrand::Rng,
}
