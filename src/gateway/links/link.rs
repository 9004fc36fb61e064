//! One connection to a broker with its reconnects: a [`Connection`] and the socket that the shell holds for it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::gateway::counters::Counters;
use crate::gateway::io::{self, BrokerSettings, LinkCommand, LinkEvent, LinkFailure, LinkId};
use crate::gateway::journal::{Journal, Leaving, Whose};
use crate::gateway::record::Lsn;
use crate::mqtt::{
    ConnectRefusal, Connection, Event, Failure, Message, Options, Protocol, Session, Token, Trace,
};
use crate::topic::ClientId;

/// Bounds of the pause before a reconnect. It doubles with every failure; the pause itself is anywhere between the
/// lower bound and what it has grown to, so that gateways that lost one broker do not come back all at once.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// When the broker is back, links that waited connect within this time: so many a second that it keeps up.
const HURRY: Duration = Duration::from_secs(2);

/// After so many failures in a row, the version in which a broker accepted us before is as good as unknown: another broker may
/// have taken its place, one that closes where the other spoke.
const FORGET_AFTER: u32 = 6;

/// Connections that the broker closed one after another without an acknowledgement, and the first message on each was the
/// same: then that message is what it closes for. Fewer might be a broker that has other troubles.
const HANG_UPS_MAX: u32 = 5;

/// How long the broker has to take leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long the end of a session at the broker may wait for the store. A client that comes back meanwhile waits behind it, and
/// is told to try again as soon as the store is known to hang. Who stops the gateway does not wait for it: the session stays.
const REMOVAL_WAITS_MAX: Duration = Duration::from_secs(30);

/// A link: the connection as MQTT sees it, and whether there is a socket for it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    /// Whose link it is, if not the gateway's own.
    client: Option<ClientId>,
    id: LinkId,
    socket: Socket,
    /// The last [`LinkCommand::Write`] is not yet with the operating system.
    writing: bool,
    /// Failures since the broker last accepted us.
    failures: u32,
    /// Connections that the broker has closed with the same message first, and which one that is.
    hang_ups: (u32, Option<Token>),
    /// Which endpoint comes next.
    endpoint: usize,
    /// The failure that was told last of each endpoint: a broker that stays away is no news.
    told: BTreeMap<usize, String>,
    /// What follows once everything is written.
    parting: Option<Parting>,
    /// When the broker has had its time to take leave.
    farewell: Option<Instant>,
    /// The session at the broker is to end, and until when that may wait for the store.
    removing: Option<Instant>,
    /// The batch that the CONNECT of this connection waits for, or has waited for, once it was written.
    greeted: Option<Lsn>,
    /// How the last connection ended, if nobody has asked yet.
    lost: Option<Lost>,
}

/// What all links know of the brokers together.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The last handle given to a connection.
    last: u64,
    /// In which version endpoints have accepted us, if we may choose.
    spoken: BTreeMap<usize, Protocol>,
    /// The endpoint that accepted us last: where a new link begins.
    endpoint: usize,
}

/// What a link has to say.
#[derive(Debug)]
pub(super) enum News {
    /// What is to be stored before the link may go on.
    Trace(Trace),
    /// What MQTT says.
    Mqtt(Event),
    /// The connection has ended, or did not come about; the next try is on its way.
    Lost(Lost),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Nobody there.
    Away,
    /// Somebody was there, and left without a word, or was left for what it said or did not say.
    Closed,
    /// CONNACK with a refusal.
    Refused(ConnectRefusal),
    /// DISCONNECT with a reason (MQTT 5 §3.14.2.1).
    Dismissed(u8),
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
    /// None until then; `None`: not before somebody asks for it.
    Waiting(Option<Instant>),
    /// Asked for.
    Connecting,
    /// There.
    Open,
}

impl Link {
    /// A link that connects at the next [`Link::handle_timeout`], due at once.
    pub(super) fn new(options: Options, client: Option<ClientId>, shared: &Shared, now: Instant) -> Self {
        Self {
            connection: Connection::new(options),
            client,
            id: LinkId(0),
            socket: Socket::Waiting(Some(now)),
            writing: false,
            failures: 0,
            hang_ups: (0, None),
            endpoint: shared.endpoint,
            told: BTreeMap::new(),
            parting: None,
            farewell: None,
            removing: None,
            greeted: None,
            lost: None,
        }
    }

    /// Whose link it is, if not the gateway's own.
    pub(super) fn client(&self) -> Option<&ClientId> {
        self.client.as_ref()
    }

    /// The connection that there is, was asked for, or was last.
    pub(super) fn id(&self) -> LinkId {
        self.id
    }

    /// The socket that there is or that was asked for; events of others are not for this link.
    pub(super) fn socket(&self) -> Option<LinkId> {
        (!matches!(self.socket, Socket::Waiting(_))).then_some(self.id)
    }

    /// Takes in what the shell reports. What MQTT makes of it is in the connection's events.
    pub(super) fn handle(&mut self, event: LinkEvent, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        let result = match event {
            LinkEvent::Connected => {
                self.socket = Socket::Open;
                self.connection.handle_connected(cx.now)
            }
            LinkEvent::Password(password) => {
                self.connection.set_password(password);
                Ok(())
            }
            LinkEvent::Bytes(octets) => self.connection.handle_bytes(cx.now, &octets),
            LinkEvent::Drained => {
                self.writing = false;
                if self.removing.is_some() {
                    // It may have waited for the store until now.
                    self.farewell = self.farewell.max(Some(cx.now + FAREWELL));
                }
                Ok(())
            }
            // Some brokers close where they should refuse; one that spoke MQTT 5 before does it for another reason, and in
            // TLS 1.3 so does one that does not like our certificate.
            LinkEvent::Closed(failure)
                if self.connection.is_connecting()
                    && !matches!(failure, LinkFailure::Tls(_))
                    && !shared.spoken.contains_key(&self.endpoint(cx.settings))
                    && self.may_fall_back(cx.settings) =>
            {
                return self.fall_back(&failure, shared, cx);
            }
            LinkEvent::Closed(failure) => {
                if failure == LinkFailure::Closed && self.connection.is_connected() {
                    self.note_hang_up(cx);
                }
                self.tell("no connection to the broker", &failure, cx.settings);
                let is_away = matches!(failure, LinkFailure::Resolve { .. } | LinkFailure::Connect(_));
                return self.handle_closed(if is_away { Lost::Away } else { Lost::Closed }, shared, cx);
            }
        };
        if let Err(failure) = result {
            self.fail(failure, shared, cx);
        }
    }

    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        if self.poll_timeout().is_none_or(|at| at > cx.now) {
            return;
        }
        if self.farewell.is_some_and(|at| at <= cx.now) {
            if self.waits_to_remove(cx) {
                self.farewell = Some(cx.now + FAREWELL);
            } else {
                self.end_removal(cx);
                self.leave(cx);
            }
        } else if matches!(self.socket, Socket::Waiting(_)) {
            self.connect(self.protocol(shared, cx.settings), shared, cx);
        } else {
            self.handle_mqtt_timeout(shared, cx);
        }
    }

    /// Some brokers say nothing to a version that they do not know.
    fn handle_mqtt_timeout(&mut self, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        let Err(failure) = self.connection.handle_timeout(cx.now) else { return };
        let is_unknown = !shared.spoken.contains_key(&self.endpoint(cx.settings));
        if failure == Failure::NoConnAck && is_unknown && self.may_fall_back(cx.settings) {
            self.close(cx);
            return self.fall_back(&failure, shared, cx);
        }
        self.fail(failure, shared, cx);
    }

    /// The broker closed a connection that it had accepted. If it does so each time the same message comes first, an ACL of
    /// its may want that (MQTT 3.1.1 §3.3.5), and everything behind the message would wait for ever.
    fn note_hang_up(&mut self, cx: &mut LinkCx<'_>) {
        let first = self.connection.first_sent();
        let (count, before) = self.hang_ups;
        self.hang_ups = (if first.is_some() && first == before { count + 1 } else { 1 }, first);
        if self.hang_ups.0 >= HANG_UPS_MAX && first.is_some() {
            let client = self.client.as_ref().map(tracing::field::display);
            warn!(
                client,
                broker = self.broker(cx.settings),
                "closes for one message again and again: it is given up"
            );
            cx.counters.uplink_given_up += 1;
            self.connection.give_up_first();
            self.hang_ups = (0, None);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.socket {
            Socket::Waiting(at) => at,
            Socket::Connecting | Socket::Open => self.connection.poll_timeout(),
        };
        own.into_iter().chain(self.farewell).min()
    }

    /// The next thing that concerns more than this link.
    pub(super) fn poll_news(&mut self, shared: &mut Shared, cx: &mut LinkCx<'_>) -> Option<News> {
        loop {
            if let Some(trace) = self.connection.poll_trace() {
                return Some(News::Trace(trace));
            }
            let Some(event) = self.connection.poll_event() else { return self.lost.take().map(News::Lost) };
            match event {
                Event::Reconnect => self.parting = Some(Parting::Reconnect),
                Event::Refused(refusal) => self.handle_refused(refusal, shared, cx),
                Event::Purged => self.parting = Some(Parting::Leave),
                event => {
                    if let Event::Connected { .. } = event {
                        self.handle_accepted(shared, cx);
                    }
                    return Some(News::Mqtt(event));
                }
            }
        }
    }

    /// Lets everything that is ready leave in one write, unless one is still under way.
    pub(super) fn flush(&mut self, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        if self.socket != Socket::Open || self.writing {
            return;
        }
        if let Some(octets) = self.connection.take_output(cx.now) {
            self.writing = true;
            self.greeted.get_or_insert_with(|| cx.journal.batch_of(Whose::Link(self.id)));
            cx.outputs.push_back(Leaving::on_link(self.id, LinkCommand::Write(octets)));
        }
        match self.parting.take() {
            Some(Parting::Reconnect) => {
                self.close(cx);
                self.connect(self.connection.options().protocol, shared, cx);
            }
            // The store may hold it back, and who comes next waits until it has left.
            Some(Parting::Leave) if self.writing && self.removing.is_some() => {
                self.parting = Some(Parting::Leave);
            }
            Some(Parting::Leave) => self.leave(cx),
            None => {}
        }
    }

    /// Takes leave of the broker, also of the session there if `purge` says that it will be of no use to anybody: once, as
    /// far as the broker can be reached. One of MQTT 5 was told how long to keep it.
    pub(super) fn shut_down(&mut self, purge: bool, cx: &mut LinkCx<'_>) {
        if self.farewell.is_some() && self.parting == Some(Parting::Leave) {
            return;
        }
        self.removing = purge.then(|| cx.now + REMOVAL_WAITS_MAX);
        if self.connection.is_connected() {
            self.farewell = Some(cx.now + FAREWELL);
            if purge {
                self.connection.purge();
            } else {
                self.connection.disconnect();
                self.parting = Some(Parting::Leave);
            }
        } else if purge && self.has_left() && self.connection.options().protocol == Protocol::V4 {
            self.connection.purge();
            self.socket = Socket::Waiting(Some(cx.now));
            self.farewell = Some(cx.now + cx.settings.connect_timeout + FAREWELL);
        } else {
            self.leave(cx);
        }
    }

    /// Takes leave of the broker for good and has it forget the session, also one that it would forget by itself in time; a
    /// broker that is out of reach is tried once.
    pub(super) fn erase(&mut self, cx: &mut LinkCx<'_>) {
        if self.connection.is_connected() {
            return self.shut_down(true, cx);
        }
        if self.socket != Socket::Open {
            self.leave(cx);
            if self.connection.options().session == Session::Clean {
                return;
            }
            self.socket = Socket::Waiting(Some(cx.now));
        }
        // To a CONNECT that has left DISCONNECT is added, or the broker would publish the Will in it.
        self.connection.purge();
        self.removing = Some(cx.now + REMOVAL_WAITS_MAX);
        self.farewell = Some(cx.now + cx.settings.connect_timeout + FAREWELL);
    }

    /// Closes once everything is written, without a word of leave: the broker publishes the Will (MQTT 3.1.1 §3.1.2.5).
    pub(super) fn cut(&mut self, cx: &mut LinkCx<'_>) {
        if !self.connection.is_connected() {
            return self.leave(cx);
        }
        (self.parting, self.farewell) = (Some(Parting::Leave), Some(cx.now + FAREWELL));
    }

    /// Connects now, whatever pause there was to be; takes a leave back that is under way.
    pub(super) fn connect_now(&mut self, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        if self.farewell.take().is_some() {
            // The last words, if there is room: without them the broker would publish the Will.
            self.flush(shared, cx);
            self.leave(cx);
        }
        if matches!(self.socket, Socket::Waiting(_)) {
            self.connect(self.protocol(shared, cx.settings), shared, cx);
        }
    }

    /// Does not connect before [`Link::connect_now`].
    pub(super) fn hold(&mut self) {
        if matches!(self.socket, Socket::Waiting(_)) {
            self.socket = Socket::Waiting(None);
        }
    }

    /// Shows another Will to the broker, which takes a new connection.
    pub(super) fn change_will(&mut self, will: Option<Message>) {
        self.connection.set_will(will);
        if self.connection.is_connected() || self.connection.is_connecting() {
            self.connection.disconnect();
            self.parting = Some(Parting::Reconnect);
        }
    }

    /// Whether there is no socket and none is wanted.
    pub(super) fn has_left(&self) -> bool {
        self.socket == Socket::Waiting(None)
    }

    /// How many endpoints have been tried in vain since the broker last accepted us.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// The version to begin with.
    fn protocol(&self, shared: &Shared, settings: &BrokerSettings) -> Protocol {
        match settings.protocol {
            io::Protocol::V311 => Protocol::V4,
            io::Protocol::V5 => Protocol::V5,
            io::Protocol::Auto => {
                shared.spoken.get(&self.endpoint(settings)).copied().unwrap_or(Protocol::V5)
            }
        }
    }

    fn connect(&mut self, protocol: Protocol, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        let endpoint = cx.settings.endpoints[self.endpoint(cx.settings)].clone();
        self.connection.set_protocol(protocol);
        shared.last += 1;
        cx.journal.carry(self.id, LinkId(shared.last));
        self.id = LinkId(shared.last);
        self.socket = Socket::Connecting;
        self.writing = false;
        self.parting = None;
        self.greeted = None;
        let client = self.client.clone();
        cx.outputs.push_back(Leaving::on_link(self.id, LinkCommand::Connect { endpoint, client }));
    }

    /// CONNACK 0.
    fn handle_accepted(&mut self, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        let (broker, protocol) = (self.broker(cx.settings), self.connection.options().protocol);
        // After a restart of ours the broker may have our session, though nobody can tell what of it still holds.
        let resumed = self.connection.has_resumed();
        let window = self.connection.window();
        match &self.client {
            None => info!(%broker, %protocol, session_present = resumed, window, "connected to the broker"),
            Some(client) => {
                debug!(%client, %broker, %protocol, session_present = resumed, "connected to the broker");
            }
        }
        self.failures = 0;
        self.told.clear();
        shared.endpoint = self.endpoint(cx.settings);
        shared.spoken.insert(shared.endpoint, protocol);
        cx.counters.link_connects += 1;
    }

    /// The socket is gone. A broker that closes at our DISCONNECT may be quicker than our own close.
    fn handle_closed(&mut self, lost: Lost, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        match self.parting.take() {
            Some(Parting::Reconnect) => {
                self.connection.handle_closed();
                self.connect(self.connection.options().protocol, shared, cx);
            }
            Some(Parting::Leave) if self.writing && self.waits_to_remove(cx) => {
                self.connection.handle_closed();
                self.connection.purge();
                self.retry_later(lost, shared, cx);
            }
            Some(Parting::Leave) => {
                self.connection.handle_closed();
                (self.socket, self.farewell) = (Socket::Waiting(None), None);
            }
            None => self.retry_later(lost, shared, cx),
        }
    }

    /// CONNACK with a refusal.
    fn handle_refused(&mut self, refusal: ConnectRefusal, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        if matches!(self.socket, Socket::Waiting(_)) {
            // It was quicker to close.
            self.lost = Some(Lost::Refused(refusal));
            return self.tell("refused by the broker", &refusal, cx.settings);
        }
        if refusal.is_of_version() {
            // It may be another broker than the one that accepted us.
            shared.spoken.remove(&self.endpoint(cx.settings));
            if self.may_fall_back(cx.settings) {
                self.close(cx);
                return self.fall_back(&refusal, shared, cx);
            }
        }
        self.tell("refused by the broker", &refusal, cx.settings);
        self.give_up(Lost::Refused(refusal), shared, cx);
    }

    fn may_fall_back(&self, settings: &BrokerSettings) -> bool {
        settings.protocol == io::Protocol::Auto
            && self.connection.options().protocol == Protocol::V5
            && self.farewell.is_none()
    }

    /// The socket is gone because the broker seems not to know MQTT 5: the second try comes at once. What it accepts is
    /// remembered, not what it refuses: a broker that is only out of order is tried in MQTT 5 again.
    fn fall_back(&mut self, reason: &dyn Display, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        let broker = self.broker(cx.settings);
        if self.told.is_empty() && self.client.is_none() {
            info!(%broker, %reason, "no answer in MQTT 5, trying MQTT 3.1.1");
        } else {
            debug!(%broker, %reason, "no answer in MQTT 5, trying MQTT 3.1.1");
        }
        cx.counters.link_fallbacks += 1;
        self.connection.handle_closed();
        self.parting = None;
        self.connect(Protocol::V4, shared, cx);
    }

    /// The connection cannot go on for a reason of MQTT's.
    fn fail(&mut self, failure: Failure, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        let lost = match failure {
            Failure::Disconnected(code) => Lost::Dismissed(code),
            _ => Lost::Closed,
        };
        self.tell("leaving the connection to the broker", &failure, cx.settings);
        self.give_up(lost, shared, cx);
    }

    fn give_up(&mut self, lost: Lost, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        self.close_socket(cx);
        self.retry_later(lost, shared, cx);
    }

    fn retry_later(&mut self, lost: Lost, shared: &mut Shared, cx: &mut LinkCx<'_>) {
        self.connection.handle_closed();
        self.parting = None;
        cx.counters.link_failures += 1;
        if self.farewell.is_some() && self.waits_to_remove(cx) {
            self.socket = Socket::Waiting(Some(cx.now + *BACKOFF.start()));
            self.farewell = Some(cx.now + *BACKOFF.start() + cx.settings.connect_timeout + FAREWELL);
            return;
        }
        if self.farewell.take().is_some() {
            self.end_removal(cx);
            self.socket = Socket::Waiting(None);
            return;
        }
        self.lost = Some(lost);
        self.failures += 1;
        if self.failures.is_multiple_of(FORGET_AFTER) {
            shared.spoken.clear();
        }
        self.endpoint += 1;
        let rounds = self.failures / u32::try_from(cx.settings.endpoints.len()).unwrap_or(u32::MAX);
        // A client's own link is tried several times before the client is told that it is lost.
        let longest = self
            .client
            .as_ref()
            .map_or(*BACKOFF.end(), |_| (cx.settings.grace / 4).clamp(*BACKOFF.start(), *BACKOFF.end()));
        let grown = BACKOFF.start().saturating_mul(1 << rounds.min(8)).min(longest);
        let pause = BACKOFF.start().saturating_add((grown - *BACKOFF.start()).mul_f64(cx.rng.f64()));
        self.socket = Socket::Waiting(Some(cx.now + pause));
    }

    /// Waits no longer than [`HURRY`], if it waits for its next try.
    pub(super) fn hurry(&mut self, cx: &mut LinkCx<'_>) {
        if let Socket::Waiting(Some(at)) = &mut self.socket {
            *at = (*at).min(cx.now + HURRY.mul_f64(cx.rng.f64()));
        }
    }

    fn leave(&mut self, cx: &mut LinkCx<'_>) {
        if !matches!(self.socket, Socket::Waiting(_)) {
            self.close(cx);
        }
        (self.socket, self.farewell, self.parting) = (Socket::Waiting(None), None, None);
    }

    fn close(&mut self, cx: &mut LinkCx<'_>) {
        self.close_socket(cx);
        self.connection.handle_closed();
    }

    /// Behind what was written. A CONNECT that waits for the store is not to leave any more, though: it would end the connection
    /// that the client has by then, and with CleanSession 1 its session.
    fn close_socket(&self, cx: &mut LinkCx<'_>) {
        let close = Leaving::on_link(self.id, LinkCommand::Close);
        let is_held = self.greeted.is_some_and(|batch| cx.journal.is_holding(batch));
        let whose = close.whose.filter(|_| !is_held);
        cx.outputs.push_back(Leaving { whose, ..close });
    }

    /// Whether the broker has not been told to end the session because the store does not answer.
    fn waits_to_remove(&self, cx: &LinkCx<'_>) -> bool {
        self.removing.is_some_and(|until| cx.now < until) && self.is_held(cx)
    }

    /// Whether the store holds back what was written last.
    fn is_held(&self, cx: &LinkCx<'_>) -> bool {
        cx.journal.is_holding(cx.journal.batch_of(Whose::Link(self.id)))
    }

    /// The session at the broker has to stay if the store still holds back what would end it.
    fn end_removal(&mut self, cx: &mut LinkCx<'_>) {
        if self.removing.take().is_some()
            && self.is_held(cx)
            && let Some(client) = &self.client
        {
            let broker = self.broker(cx.settings);
            warn!(%client, %broker, "the store does not answer: the broker may keep a session that was to end");
            cx.counters.removals_unstored += 1;
            cx.journal.leave_at_broker(client);
        }
    }

    /// Warns of a failure, once for as long as it stays the same. Of a client's own link only who looks closely is told, for
    /// the gateway's has the same to say, unless the client shows credentials of its own.
    fn tell(&mut self, what: &str, reason: &dyn Display, settings: &BrokerSettings) {
        let broker = self.broker(settings);
        let told = format!("{what}: {reason}");
        let is_news = self.told.insert(self.endpoint(settings), told.clone()) != Some(told);
        match &self.client {
            None if is_news => warn!(%broker, %reason, "{what}"),
            None => debug!(%broker, %reason, "{what}"),
            Some(client) if is_news && settings.client_credentials.contains_key(client) => {
                warn!(%client, %broker, %reason, "{what}");
            }
            Some(client) => debug!(%client, %broker, %reason, "{what}"),
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

/// What links need of the core for one call.
pub(in crate::gateway) struct LinkCx<'a> {
    pub(in crate::gateway) now: Instant,
    pub(in crate::gateway) settings: &'a BrokerSettings,
    pub(in crate::gateway) outputs: &'a mut VecDeque<Leaving>,
    pub(in crate::gateway) journal: &'a mut Journal,
    pub(in crate::gateway) counters: &'a mut Counters,
    pub(in crate::gateway) rng: &'a mut fastrand::Rng,
}
