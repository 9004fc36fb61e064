//! All clients on the gateway's own link (§4.2): who subscribed to what, the union of it at the broker, and the recipients of
//! what comes.
//!
//! - Where filters overlap, a broker may send one copy of a message or one for each filter. A client gets the copy for its
//!   best filter and no other: they are told apart by subscription identifiers (MQTT 5 §3.8.2.1.2), and with a broker that has
//!   none by the link they come on: no two filters of one link overlap there, and further links carry the others.
//! - A filter is at the broker from the first client that subscribes to it to the last that unsubscribes. Every
//!   SUBSCRIBE of a client goes to the broker, so that retained messages come each time (MQTT 3.1.1 §3.8.4).
//! - The QoS of a filter at the broker only rises as long as anybody holds the filter, and where it leaves QoS 0 the filter is
//!   taken back first: RabbitMQ 3 keeps the filter in its queue of QoS 0 as well, and would send a copy from each.
//! - Retained messages are for the new subscriber alone: its SUBSCRIBE opens a hand-out, and a message with the retain
//!   flag goes once per topic to every open hand-out that matches and to nobody else.
//! - The broker gets its acknowledgement when the last recipient has settled the message (design promise G2).

mod lanes;
pub(super) mod restore;
mod subscribers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, warn};

use self::lanes::Lane;
pub(in crate::gateway) use self::lanes::is_own_id;
use self::subscribers::{Claim, Subscribers};
use super::link::LinkCx;
use super::pool::{LinkKey, Pool};
use super::retained::HandOuts;
use super::{Delivery, FILTERS_PER_REQUEST, RequestId, Sender, Subscribing, Update, UplinkId};
use crate::gateway::ClientKey;
use crate::gateway::journal::{Journal, Whose};
use crate::gateway::record::{FilterRow, Key, Row};
use crate::mqtt::{
    Connection, Event, Full, Message, Options, Origin, Protocol, QoS, Refused, SubscriptionId, Token,
};
use crate::topic::tree::FilterTree;
use crate::topic::{ClientId, TopicFilter, TopicName};

/// The gateway's own link and everything that rides on it.
#[derive(Debug)]
pub(super) struct Aggregate {
    /// The gateway's own, and those that there are for filters which overlap.
    lanes: Vec<Lane>,
    /// Of those that were left, the numbers, until the broker has heard it.
    leaving: Vec<(LinkKey, usize)>,
    /// How the first of them connects.
    options: Options,
    /// The broker told copies apart when it was last there.
    had_ids: bool,
    /// Filters that were moved to another lane, and the lane where the broker may still have them.
    left_behind: Vec<(usize, TopicFilter)>,
    /// Each in a place of its own, for a tree has room for more.
    filters: FilterTree<Box<Subscribers>>,
    /// Filters whose state at the broker may differ from ours.
    unsettled: BTreeSet<TopicFilter>,
    hand_outs: HandOuts,
    /// Clients that have yet to settle a message.
    owed: HashMap<Delivery, usize>,
    last_subscription: u32,
    /// Filters that were given up on the first lane, with their identifiers, and how often until the broker has heard it: what it
    /// sends under such a one is for who has asked for the filter anew.
    former: BTreeMap<TopicFilter, (SubscriptionId, usize)>,
    /// A filter has left its lane, which may be empty now.
    vacated: bool,
    /// Filters for which there was no lane.
    crowded: u64,
    /// The broker did not want a further link: not before the next connection of our own is it asked again.
    alone: bool,
    /// What the rows say that the broker has, by the number of the link.
    rows: BTreeMap<(usize, TopicFilter), FilterRow>,
    /// Filters whose rows may say something else than is so.
    changed: BTreeSet<(usize, TopicFilter)>,
    /// Filters that the broker was asked to forget: their rows say no longer that it has them for certain.
    given_up: BTreeSet<(usize, TopicFilter)>,
    /// Links that are left for good.
    closed: Vec<LinkKey>,
}

/// What was asked of the broker.
#[derive(Debug)]
enum Purpose {
    Publish(ClientKey, UplinkId),
    Subscribe(Asking),
    Reissue(Vec<TopicFilter>),
    Unsubscribe(Vec<TopicFilter>),
}

/// A SUBSCRIBE of a client.
#[derive(Debug)]
struct Asking {
    client: ClientKey,
    id: RequestId,
    filter: TopicFilter,
    /// What the client asked for.
    qos: QoS,
    /// What it had of the filter before.
    before: Option<QoS>,
    /// The filter was taken back from the broker for it.
    rises: bool,
}

impl Aggregate {
    /// Everything on this link, which connects like this.
    pub(super) fn new(link: LinkKey, options: Options) -> Self {
        Self {
            lanes: vec![Lane::new(link, 1)],
            leaving: Vec::new(),
            options,
            had_ids: false,
            left_behind: Vec::new(),
            filters: FilterTree::default(),
            unsettled: BTreeSet::new(),
            hand_outs: HandOuts::default(),
            owed: HashMap::new(),
            last_subscription: 0,
            former: BTreeMap::new(),
            vacated: false,
            crowded: 0,
            alone: false,
            rows: BTreeMap::new(),
            changed: BTreeSet::new(),
            given_up: BTreeSet::new(),
            closed: Vec::new(),
        }
    }

    /// Which of the lanes a link is.
    pub(super) fn lane(&self, link: LinkKey) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.link == link)
    }

    /// Sends a message of a client; those of a client leave in order, also of sessions of the same id one after the other.
    /// Whether the broker will answer.
    pub(super) fn publish(
        &mut self,
        sender: &Sender,
        id: UplinkId,
        message: Message,
        pool: &mut Pool,
    ) -> Result<bool, Full> {
        let own = &mut self.lanes[0];
        let connection = pool.connection_mut(own.link).filter(|connection| connection.is_connected());
        let connection = connection.ok_or(Full::Offline)?;
        if message.qos == QoS::AtMostOnce {
            return connection.publish(message).map(|_| false);
        }
        let Some(token) = connection.publish_from(origin(&sender.id), message)? else { return Ok(false) };
        own.purposes.insert(token, Purpose::Publish(sender.key, id));
        Ok(true)
    }

    /// Publishes a message whose end nobody waits for.
    pub(super) fn publish_for_nobody(&mut self, message: Message, pool: &mut Pool) -> Result<(), Full> {
        let link = self.lanes[0].link;
        let connection = pool.connection_mut(link).filter(|connection| connection.is_connected());
        connection.ok_or(Full::Offline)?.publish(message).map(|_| ())
    }

    /// Asks the broker for a filter in the name of a client.
    pub(super) fn subscribe(
        &mut self,
        client: ClientKey,
        id: RequestId,
        filter: &TopicFilter,
        qos: QoS,
        pool: &mut Pool,
        now: Instant,
    ) -> Result<Subscribing, Full> {
        let others = self.filters.get(filter).and_then(|subscribers| subscribers.qos());
        let at_broker = others.map_or(qos, |others| higher(others, qos));
        let before = self.filters.get(filter).and_then(|subscribers| subscribers.clients.get(&client));
        let since = before.map_or(id.0.get(), |claim| claim.since);
        let before = before.map(|claim| claim.qos);
        let subscription = self.subscription(filter);
        let mut lane = 0;
        let outcome = if self.is_up(pool) {
            lane = self.place(filter, pool, now);
            let (token, rises) = self.ask(lane, &[(filter.clone(), at_broker)], subscription, pool)?;
            let asking = Asking { client, id, filter: filter.clone(), qos, before, rises };
            self.lanes[lane].purposes.insert(token, Purpose::Subscribe(asking));
            self.hand_outs.open(client, filter, qos);
            // The broker has it at the highest QoS after this, whatever was still to be told.
            self.unsettled.remove(filter);
            self.filters.get_or_default(filter).asks(self.lanes[lane].link, token);
            Subscribing::Asked(id)
        } else {
            // What an earlier SUBSCRIBE has brought is to come again.
            self.hand_outs.close(client, filter);
            self.unsettled.insert(filter.clone());
            Subscribing::Granted(qos)
        };
        let subscribers = self.filters.get_or_default(filter);
        subscribers.id = subscription;
        let asked = match outcome {
            Subscribing::Asked(id) => Some(id),
            Subscribing::Granted(_) => None,
        };
        subscribers.clients.insert(client, Claim { qos, since, asked, awaits_retained: asked.is_none() });
        if asked.is_some() {
            (subscribers.at_broker, subscribers.lane) = (true, lane);
            subscribers.told = Some(at_broker);
            self.note(lane, filter);
        }
        Ok(outcome)
    }

    /// Sends a SUBSCRIBE; before it, in the same write, an UNSUBSCRIBE from those of the filters that rise from QoS 0: whoever
    /// misses a message in between has QoS 0 so far. MQTT 5 has no broker that needs it. Whether there was one.
    fn ask(
        &mut self,
        lane: usize,
        wanted: &[(TopicFilter, QoS)],
        subscription: Option<SubscriptionId>,
        pool: &mut Pool,
    ) -> Result<(Token, bool), Full> {
        let lane = &mut self.lanes[lane];
        let connection = pool.connection_mut(lane.link).ok_or(Full::Offline)?;
        let mut rising = Vec::new();
        if connection.options().protocol == Protocol::V4 {
            let rises = |filter, qos| self.filters.get(filter).is_some_and(|found| found.rises_to(qos));
            let rise = wanted.iter().filter(|(filter, qos)| rises(filter, *qos));
            rising.extend(rise.map(|(filter, _)| filter.clone()));
        }
        if !rising.is_empty() {
            if connection.requests_left() < 2 {
                return Err(Full::Requests);
            }
            let token = connection.unsubscribe(&rising)?;
            lane.purposes.insert(token, Purpose::Unsubscribe(rising.clone()));
        }
        Ok((connection.subscribe_as(wanted, subscription)?, !rising.is_empty()))
    }

    /// The number of a link, by which it is stored.
    pub(super) fn number(&self, link: LinkKey) -> Option<u16> {
        let here = self.lanes.iter().find(|lane| lane.link == link).map(|lane| lane.number);
        let left = || self.leaving.iter().find(|(leaving, _)| *leaving == link).map(|(_, number)| *number);
        here.or_else(left).and_then(|number| u16::try_from(number).ok())
    }

    /// The message of a client that has this token.
    pub(super) fn uplink(&self, link: LinkKey, token: Token) -> Option<UplinkId> {
        match self.lanes.get(self.lane(link)?)?.purposes.get(&token)? {
            Purpose::Publish(_, id) => Some(*id),
            Purpose::Subscribe(_) | Purpose::Reissue(_) | Purpose::Unsubscribe(_) => None,
        }
    }

    /// Links that are left for good, since the last time.
    pub(super) fn take_closed(&mut self) -> Vec<LinkKey> {
        std::mem::take(&mut self.closed)
    }

    fn note(&mut self, lane: usize, filter: &TopicFilter) {
        self.changed.insert((self.lanes[lane].number, filter.clone()));
    }

    /// Puts down which filters the broker has, before it is asked for them and after it has forgotten them.
    pub(super) fn put_down(&mut self, pool: &Pool, journal: &mut Journal) {
        while let Some(key) = self.given_up.pop_first() {
            let Some(row) = self.rows.get_mut(&key).filter(|row| row.granted) else { continue };
            row.granted = false;
            if let Ok(number) = u16::try_from(key.0) {
                journal.update_in_time(Row::Filter(number, key.1, row.clone()));
            }
        }
        while let Some((number, filter)) = self.changed.pop_first() {
            let lane = self.lanes.iter().position(|lane| lane.number == number);
            let found = self.filters.get(&filter);
            let here = found.filter(|found| found.at_broker && Some(found.lane) == lane);
            let Ok(stored) = u16::try_from(number) else { continue };
            let key = (number, filter.clone());
            let Some((lane, subscribers)) = lane.zip(here) else {
                if self.rows.remove(&key).is_some() {
                    journal.delete_in_time(Key::Filter(stored, filter));
                }
                continue;
            };
            let row = FilterRow {
                qos: subscribers.told.unwrap_or(QoS::AtMostOnce),
                subscription: subscribers.id.map(SubscriptionId::get),
                granted: subscribers.granted,
            };
            let before = self.rows.insert(key, row.clone());
            let Some(socket) = pool.socket_or_last(self.lanes[lane].link) else { continue };
            match before {
                None => journal.insert(Whose::Link(socket), Row::Filter(stored, filter, row)),
                Some(before) if before != row => {
                    journal.update(Whose::Link(socket), Row::Filter(stored, filter, row));
                }
                Some(_) => {}
            }
        }
    }

    /// The gateway's own link and the further ones.
    pub(super) fn links(&self) -> impl Iterator<Item = LinkKey> {
        self.lanes.iter().map(|lane| lane.link)
    }

    fn is_up(&self, pool: &Pool) -> bool {
        pool.is_up(self.lanes[0].link)
    }

    /// See [`super::Links::since`].
    pub(super) fn since(&self, client: ClientKey, filter: &TopicFilter) -> u64 {
        let claim = self.filters.get(filter).and_then(|subscribers| subscribers.clients.get(&client));
        claim.map_or(0, |claim| claim.since)
    }

    /// Whether the link of a filter has come about after then.
    pub(super) fn is_back_since(&self, then: Instant, filter: &TopicFilter) -> bool {
        let lane = self.filters.get(filter).and_then(|subscribers| self.lanes.get(subscribers.lane));
        lane.is_some_and(|lane| lane.accepted > Some(then))
    }

    /// The client was told that its subscription holds, though the broker has not answered: the filter is issued again when
    /// the broker comes back, and what it says to the request then is of no account.
    pub(super) fn hold(&mut self, client: ClientKey, filter: &TopicFilter) {
        if let Some(claim) = self.filters.get_mut(filter).and_then(|found| found.clients.get_mut(&client)) {
            (claim.asked, claim.awaits_retained) = (None, true);
            self.unsettled.insert(filter.clone());
        }
    }

    /// The client no longer wants what the filter matches; the broker is told when it was the last.
    pub(super) fn unsubscribe(&mut self, client: ClientKey, filter: &TopicFilter) {
        self.hand_outs.close(client, filter);
        let Some(subscribers) = self.filters.get_mut(filter) else { return };
        subscribers.clients.remove(&client);
        if !subscribers.clients.is_empty() {
            return;
        }
        if subscribers.at_broker {
            self.unsettled.insert(filter.clone());
        } else {
            self.unsettled.remove(filter);
            self.filters.remove(filter);
            self.vacated = true;
        }
    }

    /// A client is done with a message; the broker gets its acknowledgement when all are.
    pub(super) fn settle(&mut self, delivery: Delivery, pool: &mut Pool) {
        let Some(owed) = self.owed.get_mut(&delivery) else { return pool.settle(delivery) };
        *owed -= 1;
        if *owed == 0 {
            self.owed.remove(&delivery);
            pool.settle(delivery);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.hand_outs.handle_timeout(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.hand_outs.poll_timeout()
    }

    pub(super) fn unsettled_deliveries(&self) -> usize {
        self.owed.len()
    }

    /// What the broker said on a lane, to whom it concerns.
    pub(super) fn handle_event(
        &mut self,
        lane: usize,
        event: Event,
        pool: &mut Pool,
        updates: &mut VecDeque<Update>,
        cx: &mut LinkCx<'_>,
    ) {
        match event {
            Event::Connected { session_present } => {
                self.handle_connected(lane, session_present, pool, cx.now);
                updates.extend((lane == 0).then_some(Update::Up));
            }
            Event::Received(token) => {
                if let Some(Purpose::Publish(client, id)) = self.lanes[lane].purposes.get(&token) {
                    updates.push_back(Update::Received(*client, *id));
                }
            }
            Event::Completed(token, result) => {
                if let Some(Purpose::Publish(client, id)) = self.lanes[lane].purposes.remove(&token) {
                    updates.push_back(Update::Completed(client, id, result));
                }
            }
            Event::Subscribed(token, results) => {
                updates.extend(self.handle_subscribed(lane, token, results, cx));
            }
            Event::Message { message, delivery, expiry, subscriptions, .. } => {
                let link = self.lanes[lane].link;
                let delivery = delivery.map(|id| Delivery { link, id });
                let expires = expiry.and_then(|expiry| cx.now.checked_add(expiry));
                let copy = Copy { lane, subscriptions: &subscriptions, delivery, expires };
                updates.extend(self.handle_message(message, copy, pool, cx));
            }
            Event::Unsubscribed(token) => self.handle_unsubscribed(lane, token),
            Event::Reconnect | Event::Refused(_) | Event::Purged => {}
        }
    }

    fn handle_connected(&mut self, lane: usize, session_present: bool, pool: &Pool, now: Instant) {
        self.alone &= lane > 0;
        let resumed = pool.connection(self.lanes[lane].link).is_some_and(Connection::has_resumed);
        let it = &mut self.lanes[lane];
        (it.failures, it.accepted) = (0, Some(now));
        #[expect(clippy::disallowed_methods, reason = "the greatest is the same in any order")]
        let last = it.purposes.keys().max().copied();
        it.repeated = last.filter(|_| resumed);
        if !session_present {
            // One that may be a younger one is likelier ours, and then brings what has waited.
            self.filters.for_each_mut(|subscribers| {
                let stays = resumed || subscribers.comes_on() != lane;
                subscribers.granted &= stays;
                subscribers.left &= stays;
            });
            let lost = self.filters.iter();
            let lost = lost.filter(|(_, subscribers)| subscribers.lane == lane && subscribers.asked == 0);
            self.unsettled.extend(lost.map(|(filter, _)| filter.clone()));
        }
        if lane > 0 {
            return;
        }
        let has_ids = pool.connection(self.lanes[0].link).is_some_and(Connection::has_subscription_ids);
        if std::mem::replace(&mut self.had_ids, has_ids) && !has_ids {
            self.spread();
        }
    }

    /// Brings the broker's filters in line with ours, as far as it can be asked; the rest waits for its answers.
    pub(super) fn settle_filters(&mut self, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        let nothing_to_ask = self.unsettled.is_empty() && self.left_behind.is_empty();
        let nothing = nothing_to_ask && !self.vacated && self.crowded == 0;
        if nothing || !self.is_up(pool) {
            return;
        }
        let (mut wanted, mut unwanted) = (BTreeMap::new(), BTreeMap::new());
        let mut placed = Vec::new();
        // No more than the connection takes at the moment, or all that wait would be looked at with every answer. What is
        // to be moved is looked at as a whole.
        let room = pool.connection(self.lanes[0].link).map_or(0, Connection::requests_left);
        let room = if self.left_behind.is_empty() { room } else { usize::MAX };
        let due: Vec<_> = std::iter::from_fn(|| self.unsettled.pop_first()).take(room).collect();
        for filter in due {
            let Some(subscribers) = self.filters.get(&filter) else { continue };
            match subscribers.qos() {
                Some(qos) => placed.push((filter, qos)),
                None => {
                    unwanted.entry(subscribers.lane).or_insert_with(Vec::new).push(filter);
                    self.vacated = true;
                }
            }
        }
        for (lane, filters) in unwanted {
            for filters in filters.chunks(FILTERS_PER_REQUEST) {
                self.give_up(lane, filters, pool);
            }
        }
        // What was given up has made room.
        for (filter, qos) in placed {
            let lane = self.place(&filter, pool, cx.now);
            let subscribers = self.filters.get_or_default(&filter);
            (subscribers.at_broker, subscribers.lane) = (true, lane);
            wanted.entry(lane).or_insert_with(Vec::new).push((filter, qos));
        }
        self.leave_behind(pool);
        for (lane, mut filters) in wanted {
            filters.retain(|(filter, _)| self.filters.get(filter).is_none_or(|it| !it.moving));
            // One identifier for each filter is one filter in each SUBSCRIBE.
            let has_ids =
                pool.connection(self.lanes[lane].link).is_some_and(Connection::has_subscription_ids);
            for filters in filters.chunks(if has_ids { 1 } else { FILTERS_PER_REQUEST }) {
                self.issue(lane, filters, pool, cx);
            }
        }
        if std::mem::take(&mut self.vacated) {
            self.close_empty_lanes(pool, cx);
        }
        if self.crowded > 0 {
            warn!(
                filters = self.crowded,
                "more filters overlap than links can tell apart: copies may come twice"
            );
            cx.counters.filters_crowded += std::mem::take(&mut self.crowded);
        }
    }

    /// Subscribes to filters in the name of all who want them. What the connection does not take now is tried again.
    fn issue(&mut self, lane: usize, wanted: &[(TopicFilter, QoS)], pool: &mut Pool, cx: &mut LinkCx<'_>) {
        let subscription = match wanted {
            [(filter, _)] => self.subscription(filter),
            _ => None,
        };
        let names = wanted.iter().map(|(filter, _)| filter.clone());
        let token = match (self.ask(lane, wanted, subscription, pool), wanted) {
            (Ok((token, _)), _) => token,
            (Err(full), [_]) if full.is_final() => {
                cx.counters.subscriptions_refused += 1;
                warn!(reason = %full, "a subscription is lost");
                return;
            }
            (Err(full), _) if full.is_final() => {
                return wanted.iter().for_each(|one| self.issue(lane, std::slice::from_ref(one), pool, cx));
            }
            (Err(_), _) => return self.unsettled.extend(names),
        };
        for (filter, qos) in wanted {
            let subscribers = self.filters.get_or_default(filter);
            (subscribers.id, subscribers.told) = (subscription, Some(*qos));
            subscribers.asks(self.lanes[lane].link, token);
            for (client, claim) in subscribers.clients.iter().filter(|(_, claim)| claim.awaits_retained) {
                self.hand_outs.keep_open(*client, filter, claim.qos);
            }
            self.note(lane, filter);
        }
        self.lanes[lane].purposes.insert(token, Purpose::Reissue(names.collect()));
    }

    /// Unsubscribes from filters that nobody wants. What the connection does not take now is tried again.
    fn give_up(&mut self, lane: usize, unwanted: &[TopicFilter], pool: &mut Pool) {
        let Some(connection) = pool.connection_mut(self.lanes[lane].link) else { return };
        match (connection.unsubscribe(unwanted), unwanted) {
            (Ok(token), _) => {
                self.lanes[lane].purposes.insert(token, Purpose::Unsubscribe(unwanted.to_vec()));
            }
            // It was never taken either.
            (Err(full), [_]) if full.is_final() => {}
            (Err(full), _) if full.is_final() => {
                return unwanted.iter().for_each(|one| self.give_up(lane, std::slice::from_ref(one), pool));
            }
            (Err(_), _) => return self.unsettled.extend(unwanted.iter().cloned()),
        }
        for filter in unwanted {
            let id = self.filters.remove(filter).and_then(|subscribers| subscribers.id);
            // Further lanes are for brokers without identifiers.
            if let Some(id) = id.filter(|_| lane == 0) {
                self.former.entry(filter.clone()).or_insert((id, 0)).1 += 1;
            }
            self.given_up.insert((self.lanes[lane].number, filter.clone()));
        }
    }

    fn handle_subscribed(
        &mut self,
        lane: usize,
        token: Token,
        results: Vec<Result<QoS, Refused>>,
        cx: &mut LinkCx<'_>,
    ) -> Option<Update> {
        let link = self.lanes[lane].link;
        let repeated = self.lanes[lane].repeated.is_some_and(|last| token <= last);
        match self.lanes[lane].purposes.remove(&token) {
            Some(Purpose::Subscribe(Asking { client, id, filter, qos, before, rises })) => {
                let result = results.into_iter().next().unwrap_or(Err(Refused(0x80)));
                let result = result.map(|granted| lower(granted, qos));
                let mut current = true;
                if let Some(subscribers) = self.filters.get_mut(&filter) {
                    subscribers.answered(link, token, result.is_ok() && subscribers.lane == lane);
                    if result.is_err() {
                        subscribers.told = None;
                        subscribers.left |= repeated && subscribers.lane == lane;
                    }
                    if result.is_err() && rises {
                        // The others have it as before, if the broker still wants that.
                        subscribers.granted = false;
                        self.unsettled.insert(filter.clone());
                    }
                    let claim = subscribers.clients.get_mut(&client).filter(|claim| claim.asked == Some(id));
                    current = claim.is_some();
                    match (claim, result) {
                        (Some(claim), Ok(granted)) => {
                            claim.qos = granted;
                            self.hand_outs.answered(cx.now, client, &filter, granted);
                        }
                        // What is refused on top of a subscription leaves it as it was.
                        (Some(claim), Err(_)) if before.is_some() => claim.qos = before.unwrap_or(claim.qos),
                        (Some(_), Err(_)) => {
                            subscribers.clients.remove(&client);
                            subscribers.at_broker =
                                subscribers.granted || subscribers.left || subscribers.asked > 0;
                            if subscribers.clients.is_empty() && subscribers.at_broker {
                                self.unsettled.insert(filter.clone());
                            }
                        }
                        (None, _) => {}
                    }
                }
                self.note(lane, &filter);
                if result.is_ok() {
                    self.take_back_unwanted(lane, &filter);
                } else if current {
                    self.hand_outs.close(client, &filter);
                }
                return Some(Update::Subscribed(client, id, result));
            }
            Some(Purpose::Reissue(filters)) => {
                for (filter, result) in filters.iter().zip(results) {
                    if let Some(subscribers) = self.filters.get_mut(filter) {
                        subscribers.answered(link, token, result.is_ok() && subscribers.lane == lane);
                    }
                    self.handle_reissued(cx.now, filter);
                    self.note(lane, filter);
                    if result.is_ok() {
                        self.take_back_unwanted(lane, filter);
                    }
                    if let Err(refused) = result {
                        cx.counters.subscriptions_refused += 1;
                        warn!(%refused, "the broker refuses a subscription that was granted while it was away");
                        debug!(%filter, "refused");
                    }
                }
            }
            Some(Purpose::Publish(..) | Purpose::Unsubscribe(_)) | None => {}
        }
        None
    }

    /// What was granted before is at an end. What was asked for since may have its answer yet to come.
    fn handle_unsubscribed(&mut self, lane: usize, token: Token) {
        if let Some(Purpose::Unsubscribe(filters)) = self.lanes[lane].purposes.remove(&token) {
            for filter in filters {
                if lane == 0 {
                    self.forget_former(&filter);
                }
                let found = self.filters.get_mut(&filter).filter(|found| found.lane == lane);
                if let Some(subscribers) = found {
                    subscribers.granted &= subscribers.granted_to > Some(token);
                }
                self.has_left(lane, &filter);
                self.note(lane, &filter);
            }
        }
        self.vacated = true;
    }

    /// The broker has heard one more time that a filter was given up.
    fn forget_former(&mut self, filter: &TopicFilter) {
        if let Some((_, times)) = self.former.get_mut(filter) {
            *times -= 1;
            if *times == 0 {
                self.former.remove(filter);
            }
        }
    }

    /// Who subscribed while the broker was away gets what it has kept from now on.
    fn handle_reissued(&mut self, now: Instant, filter: &TopicFilter) {
        let Some(subscribers) = self.filters.get_mut(filter) else { return };
        for (client, claim) in subscribers.clients.iter_mut().filter(|(_, claim)| claim.awaits_retained) {
            claim.awaits_retained = false;
            self.hand_outs.answered(now, *client, filter, claim.qos);
        }
    }

    /// A SUBSCRIBE that was repeated on a new connection may come behind the UNSUBSCRIBE that was meant to end it.
    fn take_back_unwanted(&mut self, lane: usize, filter: &TopicFilter) {
        if self.filters.get(filter).is_none() {
            let subscribers = self.filters.get_or_default(filter);
            (subscribers.at_broker, subscribers.lane) = (true, lane);
            self.unsettled.insert(filter.clone());
        }
    }

    fn handle_message(
        &mut self,
        mut message: Message,
        copy: Copy<'_>,
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) -> Option<Update> {
        cx.counters.downlink_messages += 1;
        let handed_out = self.hand_outs.take(&message.topic);
        let recipients = if message.retain {
            let mut recipients = BTreeMap::new();
            for (client, qos) in handed_out {
                add_recipient(&mut recipients, client, lower(message.qos, qos));
            }
            recipients.into_iter().collect()
        } else {
            let (recipients, topic) = self.recipients(&message, &copy);
            message.topic = topic.unwrap_or(message.topic);
            recipients
        };
        if recipients.is_empty() {
            cx.counters.downlink_unrouted += 1;
            if let Some(delivery) = copy.delivery {
                pool.settle(delivery);
            }
            return None;
        }
        if let Some(delivery) = copy.delivery {
            self.owed.insert(delivery, recipients.len());
        }
        Some(Update::Message(Arc::new(message), copy.delivery, copy.expires, recipients))
    }

    /// Everybody who subscribed to a filter that matches, once, at the highest QoS granted to it. Of several copies, which
    /// the broker may send where filters overlap, a client gets the one for its best filter. Also the topic, if it is a filter
    /// too: while the message waits for somebody, it need not be there twice.
    fn recipients(&self, message: &Message, copy: &Copy<'_>) -> (Vec<(ClientKey, QoS)>, Option<TopicName>) {
        let (mut found, mut filters, mut topic) = (Vec::new(), 0, None);
        self.filters.matches(&message.topic, |filter, subscribers| {
            if filter.as_str() == message.topic.as_str() {
                topic = filter.as_topic();
            }
            // A filter that the broker has not confirmed yet may bring no copy, nor one that is younger than the message.
            let granted = subscribers.granted || (subscribers.moving && copy.lane == 0);
            let (lane, id) = (subscribers.comes_on(), subscribers.id);
            let ranked = |(client, claim): (&ClientKey, &Claim)| {
                (*client, (granted, claim.qos as u8, Reverse(claim.since)), claim.qos, lane, id)
            };
            found.extend(subscribers.clients.iter().map(ranked));
            filters += 1;
        });
        if filters > 1 {
            found.sort_by(|(one, a, ..), (other, b, ..)| one.cmp(other).then(b.cmp(a)));
            found.dedup_by_key(|(client, ..)| *client);
        }
        let has_ids = !copy.subscriptions.is_empty();
        let for_it = |id: Option<SubscriptionId>| id.is_none_or(|id| copy.subscriptions.contains(&id));
        let comes =
            found.into_iter().filter(|(.., lane, id)| *lane == copy.lane && (!has_ids || for_it(*id)));
        (comes.map(|(client, _, qos, ..)| (client, lower(message.qos, qos))).collect(), topic)
    }

    /// The identifier of a filter, a new one if it has none. There are enough for one a second for eight years.
    fn subscription(&mut self, filter: &TopicFilter) -> Option<SubscriptionId> {
        let known = self.filters.get(filter).and_then(|subscribers| subscribers.id);
        known.or_else(|| self.former.get(filter).map(|(id, _)| *id)).or_else(|| {
            let id = SubscriptionId::new(self.last_subscription + 1)?;
            self.last_subscription = id.get();
            Some(id)
        })
    }
}

/// Two clients may have the same, which costs them a little time.
fn origin(id: &ClientId) -> Origin {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    Origin(hasher.finish())
}

/// How a message came, and for what.
struct Copy<'a> {
    lane: usize,
    subscriptions: &'a [SubscriptionId],
    delivery: Option<Delivery>,
    expires: Option<Instant>,
}

fn add_recipient(recipients: &mut BTreeMap<ClientKey, QoS>, client: ClientKey, qos: QoS) {
    let best = recipients.entry(client).or_insert(qos);
    *best = higher(*best, qos);
}

fn higher(a: QoS, b: QoS) -> QoS {
    if a >= b { a } else { b }
}

fn lower(a: QoS, b: QoS) -> QoS {
    if a <= b { a } else { b }
}
