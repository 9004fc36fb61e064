//! Which broker link serves which client: the gateway's own ([`aggregate`], §4.2), or one of the client's own ([`dedicated`],
//! §4.1). QoS −1 and the Wills that the gateway keeps always go by the gateway's own.
//!
//! A link is a value here; only its octets cross the boundary of the core. What is said to a client's session is the same
//! whichever link serves it.

mod aggregate;
mod dedicated;
mod link;
mod pool;
mod retained;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use self::aggregate::Aggregate;
pub(super) use self::aggregate::is_own_id;
use self::dedicated::Dedicated;
pub(super) use self::dedicated::{Opened, Opening, id_at_broker};
pub(super) use self::link::LinkCx;
use self::link::News;
use self::pool::{LinkKey, Pool};
use super::ClientKey;
use super::io::{BrokerSettings, LinkEvent, LinkId, Mode};
use crate::mqtt::{Credentials, DeliveryId, Full, Message, Options, QoS, Refused};
use crate::topic::TopicFilter;
use crate::wire::ReturnCode;

/// Wills that wait for the broker to come back. One per client of a small network; more are shed and counted.
const WILLS_MAX: usize = 1024;

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

/// Names one message of a client on its way to the broker; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct UplinkId(u64);

/// Names one SUBSCRIBE of a client on its way to the broker; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(u64);

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
    wills: VecDeque<Message>,
    updates: VecDeque<Update>,
    last_id: u64,
}

impl Links {
    pub(super) fn new(settings: &BrokerSettings, now: Instant) -> Self {
        let mut pool = Pool::default();
        let options = own_options(settings);
        let own = pool.add(options.clone(), None, now);
        Self {
            pool,
            own,
            aggregate: Aggregate::new(own, options),
            dedicated: Dedicated::default(),
            wills: VecDeque::new(),
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
        self.dedicated.open(client, opening, &mut self.pool, cx)
    }

    /// The client does not go on with what [`Links::open`] began. Whether the link that it had before is still there.
    pub(super) fn abandon(&mut self, client: ClientKey, cx: &mut LinkCx<'_>) -> bool {
        self.dedicated.abandon(client, &mut self.pool, cx)
    }

    /// The client has gone. Of a session that lives on, what the broker has not heard the end of is remembered.
    pub(super) fn part(&mut self, client: ClientKey, parting: Parting, cx: &mut LinkCx<'_>) {
        self.dedicated.part(client, parting, &mut self.pool, cx);
    }

    /// The client and its session are gone, at the broker too if `purge`.
    pub(super) fn forget(&mut self, client: ClientKey, purge: bool, cx: &mut LinkCx<'_>) {
        self.dedicated.forget(client, purge, &mut self.pool, cx);
    }

    /// Shows another Will of the client to the broker, if that keeps it.
    pub(super) fn change_will(&mut self, client: ClientKey, will: Option<Message>) {
        self.dedicated.change_will(client, will, &mut self.pool);
    }

    /// Sends a message of a client, or says why that cannot be. `None` for QoS 0: nothing more will be heard of it.
    pub(super) fn publish(&mut self, client: ClientKey, message: Message) -> Result<Option<UplinkId>, Full> {
        let id = UplinkId(self.next_id());
        let answered = match self.dedicated.get_mut(client) {
            Some(own) => own.publish(id, message, &mut self.pool)?,
            None => self.aggregate.publish(client, id, message, &mut self.pool)?,
        };
        Ok(answered.then_some(id))
    }

    /// Sends a message of QoS −1 (§6.8).
    pub(super) fn publish_minus_one(&mut self, message: Message) -> Result<(), Full> {
        self.aggregate.publish_for_nobody(message, &mut self.pool)
    }

    /// Publishes a Will, now or when the broker is back. Returns whether it was taken.
    pub(super) fn publish_will(&mut self, will: Message) -> bool {
        if self.wills.len() >= WILLS_MAX {
            return false;
        }
        self.wills.push_back(will);
        true
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

    /// A client had this subscription before a restart.
    pub(super) fn restore_claim(&mut self, client: ClientKey, filter: &TopicFilter, qos: QoS) {
        let since = self.next_id();
        self.aggregate.restore_claim(client, filter, qos, since);
    }

    /// The broker does not answer a SUBSCRIBE. Whether that is because it is away and the filter is issued again when it comes
    /// back: then the client is told that its subscription holds.
    pub(super) fn hold(&mut self, client: ClientKey, filter: &TopicFilter) -> bool {
        let holds = !self.is_dedicated(client) && !self.is_up();
        if holds {
            self.aggregate.hold(client, filter);
        }
        holds
    }

    /// The client no longer wants what the filter matches.
    pub(super) fn unsubscribe(&mut self, client: ClientKey, filter: &TopicFilter) {
        match self.dedicated.get_mut(client) {
            Some(own) => own.unsubscribe(filter, &mut self.pool),
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
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pool.poll_timeout().into_iter().chain(self.aggregate.poll_timeout()).min()
    }

    /// Lets everything that is ready for the broker leave in one write for each link.
    pub(super) fn flush(&mut self, cx: &mut LinkCx<'_>) {
        if self.is_up() {
            self.aggregate.settle_filters(&mut self.pool, cx);
            cx.counters.wills_shed += self.publish_wills();
        }
        self.pool.flush(cx);
    }

    /// Takes leave of the broker on every link.
    pub(super) fn shut_down(&mut self, cx: &mut LinkCx<'_>) {
        let (is_random, aggregate) = (cx.settings.client_id_is_random, &self.aggregate);
        // Who comes after us may need no further link, and the broker would go on keeping for it.
        let purge = |link| aggregate.lane(link).is_some_and(|lane| lane > 0 || is_random);
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
        while let Some(will) = self.wills.front() {
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

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// How the gateway itself connects.
fn own_options(settings: &BrokerSettings) -> Options {
    let mut options = Options::new(settings.client_id.clone());
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
