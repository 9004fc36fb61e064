//! Which broker link serves which client: the gateway's own ([`aggregate`], §4.2), or one of the client's own ([`dedicated`],
//! §4.1). QoS −1 and the Wills that the gateway keeps always go by the gateway's own.
//!
//! A link is a value here; only its octets cross the boundary of the core. What is said to a client's session is the same
//! whichever link serves it.

mod aggregate;
mod backlog;
mod dedicated;
mod link;
mod pool;
mod restore;
mod retained;

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use self::aggregate::Aggregate;
pub(super) use self::aggregate::is_own_id;
pub(super) use self::aggregate::restore::{Claimed, Held};
use self::backlog::{Backlog, Keeping, Via};
pub(super) use self::backlog::{Sender, TakenBack};
use self::dedicated::Dedicated;
pub(super) use self::dedicated::{Opened, Opening, id_at_broker};
pub(super) use self::link::LinkCx;
use self::link::News;
use self::pool::{LinkKey, Pool};
use super::ClientKey;
use super::io::{BrokerSettings, LinkEvent, LinkId, Mode, OutageQueue};
use super::journal::{Journal, Whose};
use super::record::{self, Key, Row};
use crate::mqtt::{Credentials, DeliveryId, Full, Message, Options, QoS, Refused, Trace};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::ReturnCode;

/// Wills that wait for the broker to come back. One per client of a small network; more are shed and counted.
const WILLS_MAX: usize = 1024;

/// How much of that there may be in the store where nothing else is kept for the broker: [`WILLS_MAX`] of 1 KiB each, which is more
/// than sensors say, for however long the broker stays away.
const WILLS_STORED: OutageQueue =
    OutageQueue { messages: WILLS_MAX, bytes: WILLS_MAX * 1024, age: Duration::MAX };

/// Filters in one SUBSCRIBE or UNSUBSCRIBE that nobody waits for: at most 65,535 octets each, so that the packet stays well
/// below what brokers accept.
const FILTERS_PER_REQUEST: usize = 16;

/// How long a broker that can be told (MQTT 5) keeps a session whose client id will not come back if this process dies:
/// longer than any outage that it is meant to outlive.
const SESSION_OF_RANDOM_ID: Duration = Duration::from_secs(7 * 24 * 3600);

/// A message from the broker that clients have yet to settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Delivery {
    link: LinkKey,
    id: DeliveryId,
}

/// Names one message of a client on its way to the broker, by the order in which they came; never used again, not after a
/// restart either while there is a row of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct UplinkId(pub(super) u64);

/// Names one SUBSCRIBE of a client on its way to the broker; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(NonZeroU64);

/// What the links have to say to the core.
#[derive(Debug)]
pub(super) enum Update {
    /// The broker is there.
    Up,
    /// The broker has accepted the client, as [`Links::open`] asked; whether it has a session of the client that this gateway
    /// has not.
    Accepted(ClientKey, bool),
    /// It has not, and the client is told so. [`Links::abandon`] is what follows.
    Refused(ClientKey, ReturnCode),
    /// The client's own link is lost, and will be tried again and again.
    Lost(ClientKey),
    /// The client's own link is back.
    Back(ClientKey),
    /// The client's own link is lost for good: the broker does not want the client any more.
    Ended(ClientKey),
    /// The broker has taken a QoS 2 message over (PUBREC).
    Received(ClientKey, UplinkId),
    /// The broker is done with a message.
    Completed(ClientKey, UplinkId, Result<(), Refused>),
    /// The broker answered a SUBSCRIBE.
    Subscribed(ClientKey, RequestId, Result<QoS, Refused>),
    /// A message for these clients, each at its QoS, and until when it is worth to be delivered.
    Message(Arc<Message>, Option<Delivery>, Option<Instant>, Vec<(ClientKey, QoS)>),
}

/// What a client is told of the broker's refusal of a PUBLISH or SUBSCRIBE (Interpretation: R-170).
pub(super) fn code_of(refused: Refused) -> ReturnCode {
    if refused == Refused::QUOTA_EXCEEDED { ReturnCode::Congestion } else { ReturnCode::NotSupported }
}

/// What a client is told of a message or filter that the link did not take: `congestion` if it may try again.
pub(super) fn code_of_full(full: Full) -> ReturnCode {
    if full.is_final() { ReturnCode::NotSupported } else { ReturnCode::Congestion }
}

/// What came of a SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subscribing {
    /// The broker was asked; [`Update::Subscribed`] follows.
    Asked(RequestId),
    /// The broker is away and will be asked when it comes back; until then this holds.
    Granted(QoS),
}

/// What came of a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publishing {
    /// It left at QoS 0: nothing more will be heard of it.
    Forgotten,
    /// [`Update::Completed`] will tell.
    Awaited(UplinkId),
    /// It is kept for the broker, and the client may be told so when that is durable.
    Kept(UplinkId),
}

/// How a client leaves its own link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    /// In good order: the broker does not publish the Will that it may hold.
    Leave,
    /// Without a word, for the broker to publish it (MQTT 3.1.1 §3.1.2.5).
    Vanish,
}

/// All links.
#[derive(Debug)]
pub(super) struct Links {
    pool: Pool,
    own: LinkKey,
    aggregate: Aggregate,
    dedicated: Dedicated,
    /// Of whom, too.
    wills: VecDeque<(ClientId, Message)>,
    backlog: Backlog,
    /// How much of that there may be, if messages are kept for the broker at all.
    outage_queue: Option<OutageQueue>,
    /// What is stored outlives the process.
    lasting: bool,
    /// QoS 2 messages of the broker that are taken care of and not forgotten by it, by packet id.
    received: BTreeSet<(LinkKey, u16)>,
    updates: VecDeque<Update>,
    last_id: u64,
}

impl Links {
    pub(super) fn new(settings: &BrokerSettings, lasting: bool, now: Instant) -> Self {
        let mut pool = Pool::default();
        let options = own_options(settings, lasting);
        let own = pool.add(options.clone(), None, now);
        Self {
            pool,
            own,
            aggregate: Aggregate::new(own, options),
            dedicated: Dedicated::new(lasting),
            wills: VecDeque::new(),
            backlog: Backlog::default(),
            outage_queue: settings.outage_queue.filter(|_| lasting),
            lasting,
            received: BTreeSet::new(),
            updates: VecDeque::new(),
            last_id: 0,
        }
    }

    /// Whether the broker accepted the gateway itself and has not gone.
    pub(super) fn is_up(&self) -> bool {
        self.pool.is_up(self.own)
    }

    /// How the client is served.
    pub(super) fn mode(&self, client: ClientKey) -> Mode {
        if self.is_dedicated(client) { Mode::Transparent } else { Mode::Aggregating }
    }

    /// Whether the client is served by a link of its own.
    pub(super) fn is_dedicated(&self, client: ClientKey) -> bool {
        self.dedicated.contains(client)
    }

    /// Opens a link for this client, or keeps the one it has if that is what [`Opening`] asks for.
    pub(super) fn open(&mut self, client: ClientKey, opening: Opening, cx: &mut LinkCx<'_>) -> Opened {
        if !self.dedicated.goes_on(client, &opening) {
            self.leave_behind(client, cx.journal);
        }
        self.dedicated.open(client, opening, &mut self.pool, cx)
    }

    /// The client does not go on with what [`Links::open`] began. Whether the link that it had before is still there.
    pub(super) fn abandon(&mut self, client: ClientKey, cx: &mut LinkCx<'_>) -> bool {
        let has_link = self.dedicated.abandon(client, &mut self.pool, cx);
        if !has_link {
            self.leave_behind(client, cx.journal);
        }
        has_link
    }

    /// The client has gone. Of a session that lives on, what the broker has not heard the end of is remembered.
    pub(super) fn part(&mut self, client: ClientKey, parting: Parting, cx: &mut LinkCx<'_>) {
        self.dedicated.part(client, parting, &mut self.pool, cx);
    }

    /// The client and its session are gone, at the broker too if `purge`. What it was promised goes by the gateway's own link.
    pub(super) fn forget(&mut self, client: ClientKey, purge: bool, cx: &mut LinkCx<'_>) {
        self.leave_behind(client, cx.journal);
        self.dedicated.forget(client, purge, &mut self.pool, cx);
    }

    /// The link of a client goes: what the client was promised does not go with it.
    fn leave_behind(&mut self, client: ClientKey, journal: &mut Journal) {
        let link = self.dedicated.link(client);
        if let Some(link) = link {
            self.forget_received(link, None, journal);
        }
        let is_up = link.is_some_and(|link| self.pool.is_up(link));
        self.backlog.hand_over(client, is_up, journal);
        self.pool.touch(self.own);
    }

    /// Removes everything of a client that is or was, here and, as far as it can be reached, at the broker: nothing of it is
    /// published any more that has not left. How many messages of it were kept, its Will among them, and how many are under
    /// way at QoS 2.
    pub(super) fn erase(
        &mut self,
        client: Option<ClientKey>,
        id: &ClientId,
        cx: &mut LinkCx<'_>,
    ) -> (usize, usize) {
        let wills = self.wills.len();
        self.wills.retain(|(whose, _)| whose != id);
        let (kept, under_way) = self.backlog.erase(id, cx.journal);
        if let Some(client) = client {
            self.leave_behind(client, cx.journal);
            self.dedicated.erase(client, &mut self.pool, cx);
        }
        (kept + wills - self.wills.len(), under_way)
    }

    /// Whether the broker, which is away, may have a session of the client that [`Links::erase`] cannot end.
    pub(super) fn is_left_at_broker(&self, client: ClientKey) -> bool {
        let link = self.dedicated.kept_link(client);
        link.is_some_and(|link| !self.pool.is_up(link) && !self.is_up())
    }

    /// Shows another Will of the client to the broker, if that keeps it.
    pub(super) fn change_will(&mut self, client: ClientKey, will: Option<Message>) {
        self.dedicated.change_will(client, will, &mut self.pool);
    }

    /// Sends a message of a client, keeps it for the broker, or says why neither can be.
    pub(super) fn publish(
        &mut self,
        sender: Sender,
        message: Message,
        now: Instant,
        journal: &mut Journal,
    ) -> Result<Publishing, Full> {
        let id = UplinkId(journal.number());
        let via = self.via(sender.key);
        let matters = message.qos != QoS::AtMostOnce;
        let full = if matters && self.backlog.has_waiting(&sender.id) {
            Full::Queue
        } else {
            match self.publish_now(via, &sender, id, message.clone()) {
                Ok(false) => return Ok(Publishing::Forgotten),
                Ok(true) => {
                    if self.keeps() || (self.lasting && message.qos == QoS::ExactlyOnce) {
                        self.backlog.follow(id, sender, via, message, now);
                    }
                    return Ok(Publishing::Awaited(id));
                }
                Err(full) => full,
            }
        };
        let limits = self.outage_queue.filter(|_| !full.is_final() && journal.is_available());
        let limits = limits.ok_or(full)?;
        let whose = matters.then_some(Whose::Client(sender.key));
        let keeping = Keeping { id, sender, via, message };
        self.backlog.take(keeping, whose, &limits, now, journal)?;
        // What it waits behind may have gone.
        if let Some(link) = self.link_of(via) {
            self.pool.touch(link);
        }
        Ok(Publishing::Kept(id))
    }

    /// Keeps a message that the broker has not acknowledged in time, for the client to be told that it is taken care of.
    pub(super) fn promise(&mut self, id: UplinkId, journal: &mut Journal) -> bool {
        let limits = self.outage_queue.filter(|_| journal.is_available());
        limits.is_some_and(|limits| self.backlog.promise(id, &limits, journal))
    }

    /// The client was not told that its message is kept for the broker, and will not be.
    pub(super) fn take_back(&mut self, id: UplinkId, journal: &mut Journal) -> TakenBack {
        self.backlog.take_back(id, journal)
    }

    /// The broker is done with a message. Whether the client was told before that all is well.
    pub(super) fn finish(&mut self, id: UplinkId, journal: &mut Journal) -> bool {
        self.backlog.finish(id, journal)
    }

    /// A QoS 2 message of the broker is taken care of from the batch on that is being made.
    pub(super) fn take_over(&mut self, delivery: Delivery, journal: &mut Journal) {
        let Delivery { link, id } = delivery;
        let received = self.pool.connection(link).and_then(|connection| connection.received(id));
        let Some(received) = received else { return };
        let row = match (self.aggregate.number(link), self.dedicated.id(link)) {
            (Some(number), _) => Row::Received(number, received),
            (None, Some(client)) => Row::ClientReceived(client.clone(), received),
            (None, None) => return,
        };
        if self.received.insert((link, received.packet)) {
            journal.insert_in_time(row);
        }
    }

    /// The broker knows nothing more of a QoS 2 message of its own that was taken over, or of all on a link.
    fn forget_received(&mut self, link: LinkKey, packet: Option<u16>, journal: &mut Journal) {
        let (first, last) = packet.map_or((0, u16::MAX), |packet| (packet, packet));
        let packets: Vec<_> = self.received.range((link, first)..=(link, last)).copied().collect();
        for (link, packet) in packets {
            self.received.remove(&(link, packet));
            let key = match (self.aggregate.number(link), self.dedicated.id(link)) {
                (Some(number), _) => Key::Received(number, packet),
                (None, Some(client)) => Key::Client(client.clone(), record::ClientKey::Received(packet)),
                (None, None) => continue,
            };
            match self.pool.socket(link) {
                Some(socket) => journal.delete(Whose::Link(socket), key),
                None => journal.delete_in_time(key),
            }
        }
    }

    /// What has to be stored before a link may go on.
    fn handle_trace(&mut self, link: LinkKey, trace: Trace, journal: &mut Journal) {
        let Some(socket) = self.pool.socket_or_last(link) else { return };
        let id = |token| self.aggregate.uplink(link, token).or_else(|| self.dedicated.uplink(link, token));
        match trace {
            Trace::Sent(token, packet) => {
                if let Some(id) = id(token) {
                    self.backlog.sent(id, packet, socket, journal);
                }
            }
            Trace::Released(token, _) => {
                if let Some(id) = id(token) {
                    self.backlog.released(id, socket, journal);
                }
            }
            Trace::Ended { token, waits: true, .. } => {
                if let Some(id) = id(token) {
                    self.backlog.unsent(id, socket, journal);
                }
            }
            // Its end is stored together with what the client is told of it.
            Trace::Ended { waits: false, .. } => {}
            Trace::Forgot(packet) => self.forget_received(link, Some(packet), journal),
            Trace::ForgotAll => self.forget_received(link, None, journal),
        }
    }

    fn via(&self, client: ClientKey) -> Via {
        if self.is_dedicated(client) { Via::Client(client) } else { Via::Gateway }
    }

    /// Whether the broker will answer.
    fn publish_now(
        &mut self,
        via: Via,
        sender: &Sender,
        id: UplinkId,
        message: Message,
    ) -> Result<bool, Full> {
        match via {
            Via::Gateway => self.aggregate.publish(sender, id, message, &mut self.pool),
            Via::Client(owner) => match self.dedicated.get_mut(owner) {
                Some(own) => own.publish(id, message, &mut self.pool),
                None => Err(Full::Offline),
            },
        }
    }

    /// Lets what is kept for the broker leave, as far as links have room. Those have that were heard of.
    fn pass_backlog(&mut self, cx: &mut LinkCx<'_>) {
        if !self.backlog.is_waiting() {
            return;
        }
        for link in self.pool.touched() {
            let via = match self.dedicated.client(link) {
                Some(client) => Via::Client(client),
                None if link == self.own => Via::Gateway,
                None => continue,
            };
            while self.pool.is_up(link)
                && let Some((id, sender, message)) = self.backlog.front(via)
            {
                match self.publish_now(via, &sender, id, message) {
                    Ok(true) => self.backlog.pass(id),
                    Ok(false) => {
                        self.backlog.finish(id, cx.journal);
                    }
                    Err(full) if full.is_final() => {
                        warn!(reason = %full, "a message that was kept for the broker is lost");
                        cx.counters.uplink_refused += 1;
                        self.backlog.finish(id, cx.journal);
                    }
                    Err(_) => break,
                }
            }
        }
    }

    /// Sends a message of QoS −1 (§6.8).
    pub(super) fn publish_minus_one(&mut self, message: Message) -> Result<(), Full> {
        self.aggregate.publish_for_nobody(message, &mut self.pool)
    }

    /// Publishes a Will, now or when the broker is back; with a store it is kept until then. Returns whether it was taken.
    pub(super) fn publish_will(
        &mut self,
        sender: Sender,
        will: Message,
        now: Instant,
        journal: &mut Journal,
    ) -> bool {
        if self.lasting {
            let limits = self.outage_queue.as_ref().unwrap_or(&WILLS_STORED);
            let id = UplinkId(journal.number());
            // It does not leave before it is stored that the client is lost, or it would fire again after a crash.
            let whose = self.pool.socket_or_last(self.own).map(Whose::Link);
            let keeping = Keeping { id, sender, via: Via::Gateway, message: will };
            self.pool.touch(self.own);
            return self.backlog.take(keeping, whose, limits, now, journal).is_ok();
        }
        if self.wills.len() >= WILLS_MAX {
            return false;
        }
        self.wills.push_back((sender.id, will));
        true
    }

    /// The place of a subscription among those of its client on the gateway's own links: the older has the lower number.
    pub(super) fn since(&self, client: ClientKey, filter: &TopicFilter) -> u64 {
        self.aggregate.since(client, filter)
    }

    /// Asks the broker for a filter in the name of a client.
    pub(super) fn subscribe(
        &mut self,
        client: ClientKey,
        filter: &TopicFilter,
        qos: QoS,
        now: Instant,
    ) -> Result<Subscribing, Full> {
        let id = RequestId(self.next_id());
        match self.dedicated.get_mut(client) {
            Some(own) => own.subscribe(id, filter, qos, &mut self.pool),
            None => self.aggregate.subscribe(client, id, filter, qos, &mut self.pool, now),
        }
    }

    fn link_of(&self, via: Via) -> Option<LinkKey> {
        match via {
            Via::Gateway => Some(self.own),
            Via::Client(client) => self.dedicated.link(client),
        }
    }

    /// Whether messages are kept for a broker that is away or slow.
    pub(super) fn keeps(&self) -> bool {
        self.outage_queue.is_some()
    }

    /// The broker has not answered a SUBSCRIBE that it was asked then. Whether that is because it is away, or was since then and has
    /// not had its time: the filter is issued again when it is back, and the client is told that its subscription holds.
    pub(super) fn hold(&mut self, client: ClientKey, filter: &TopicFilter, asked: Instant) -> bool {
        let holds =
            !self.is_dedicated(client) && (!self.is_up() || self.aggregate.is_back_since(asked, filter));
        if holds {
            self.aggregate.hold(client, filter);
        }
        holds
    }

    /// Whether the client has unsubscribed from what brings this, and its own link may bring it still.
    pub(super) fn is_ending(&self, client: ClientKey, topic: &TopicName) -> bool {
        self.dedicated.get(client).is_some_and(|own| own.is_ending(topic))
    }

    /// What the filter matches is no longer to come: the client said so if `unwanted`, else it is told that it will not.
    pub(super) fn unsubscribe(&mut self, client: ClientKey, filter: &TopicFilter, unwanted: bool) {
        match self.dedicated.get_mut(client) {
            Some(own) => own.unsubscribe(filter, unwanted, &mut self.pool),
            None => self.aggregate.unsubscribe(client, filter),
        }
    }

    /// A client is done with a message; the broker gets its acknowledgement when all are.
    pub(super) fn settle(&mut self, delivery: Delivery) {
        self.aggregate.settle(delivery, &mut self.pool);
    }

    pub(super) fn handle(&mut self, id: LinkId, event: LinkEvent, cx: &mut LinkCx<'_>) {
        self.pool.handle(id, event, cx);
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut LinkCx<'_>) {
        self.pool.handle_timeout(cx);
        self.aggregate.handle_timeout(cx.now);
        if let Some(limits) = &self.outage_queue {
            cx.counters.uplink_expired += self.backlog.expire(limits, cx.now, cx.journal);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.outage_queue.and_then(|limits| self.backlog.poll_timeout(&limits));
        let own = [self.pool.poll_timeout(), self.aggregate.poll_timeout(), expiry];
        own.into_iter().flatten().min()
    }

    /// Lets everything that is ready for the broker leave in one write for each link.
    pub(super) fn flush(&mut self, cx: &mut LinkCx<'_>) {
        if self.is_up() {
            self.aggregate.settle_filters(&mut self.pool, cx);
            cx.counters.wills_shed += self.publish_wills();
        }
        self.pass_backlog(cx);
        cx.counters.uplink_shed += self.backlog.take_shed();
        if self.lasting {
            for (link, trace) in self.pool.prepare() {
                self.handle_trace(link, trace, cx.journal);
            }
            self.aggregate.put_down(&self.pool, cx.journal);
            for link in self.aggregate.take_closed() {
                self.forget_received(link, None, cx.journal);
            }
        }
        self.pool.flush(cx);
    }

    /// Messages that are kept for the broker.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Takes leave of the broker on every link.
    pub(super) fn shut_down(&mut self, cx: &mut LinkCx<'_>) {
        let (is_random, aggregate) = (cx.settings.client_id_is_random, &self.aggregate);
        let lasting = self.lasting;
        // Who comes after us goes on with all of them, or may need no further link, and the broker would go on keeping for it.
        let purge = |link| !lasting && aggregate.lane(link).is_some_and(|lane| lane > 0 || is_random);
        self.pool.remove_all(purge, cx);
    }

    /// Messages of the broker that clients have yet to settle, on the gateway's own link.
    pub(super) fn unsettled_deliveries(&self) -> usize {
        self.aggregate.unsettled_deliveries()
    }

    /// Whether [`Links::shut_down`] is done.
    pub(super) fn has_left(&self) -> bool {
        self.pool.is_empty()
    }

    /// The next thing the broker said that concerns a client. What it said is taken in no faster than this is called, so
    /// that one message for many clients does not become many outputs before the first has left.
    pub(super) fn poll_update(&mut self, cx: &mut LinkCx<'_>) -> Option<Update> {
        while self.updates.is_empty() {
            let (link, news) = self.pool.poll_news(cx)?;
            match (self.aggregate.lane(link), news) {
                (_, News::Trace(trace)) => self.handle_trace(link, trace, cx.journal),
                (Some(lane), News::Mqtt(event)) => {
                    self.aggregate.handle_event(lane, event, &mut self.pool, &mut self.updates, cx);
                }
                (Some(lane), News::Lost(lost)) => self.aggregate.handle_lost(lane, lost, &mut self.pool, cx),
                (None, news) => {
                    let own_is_up = self.is_up();
                    self.dedicated.handle(link, news, own_is_up, &mut self.pool, &mut self.updates, cx);
                }
            }
        }
        self.updates.pop_front()
    }

    /// Passes on the Wills that wait, as far as there is room. How many of them the broker does not take.
    fn publish_wills(&mut self) -> u64 {
        let mut shed = 0;
        while let Some((_, will)) = self.wills.front() {
            match self.aggregate.publish_for_nobody(will.clone(), &mut self.pool) {
                Ok(()) => {}
                Err(full) if full.is_final() => {
                    warn!(reason = %full, "a will is lost");
                    shed += 1;
                }
                Err(_) => break,
            }
            self.wills.pop_front();
        }
        shed
    }

    fn next_id(&mut self) -> NonZeroU64 {
        let id = NonZeroU64::MIN.saturating_add(self.last_id);
        self.last_id = id.get();
        id
    }
}

/// How the gateway itself connects.
fn own_options(settings: &BrokerSettings, lasting: bool) -> Options {
    let mut options = Options::new(settings.client_id.clone());
    options.traced = lasting;
    options.keep_alive = settings.keep_alive;
    if settings.client_id_is_random {
        options.session_expiry = SESSION_OF_RANDOM_ID;
    }
    options.connect_timeout = settings.connect_timeout;
    options.credentials = credentials(settings.credentials.as_ref());
    options
}

fn credentials(given: Option<&(String, bytes::Bytes)>) -> Option<Credentials> {
    given.map(|(username, password)| Credentials { username: username.clone(), password: password.clone() })
}
