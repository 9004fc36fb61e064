//! All clients on the gateway's own link (§4.2): who subscribed to what, the union of it at the broker, and the recipients of
//! what comes.
//!
//! - A filter is at the broker from the first client that subscribes to it to the last that unsubscribes. Every
//!   SUBSCRIBE of a client goes to the broker, so that retained messages come each time (MQTT 3.1.1 §3.8.4).
//! - Retained messages are for the new subscriber alone: its SUBSCRIBE opens a hand-out, and a message with the retain
//!   flag goes once per topic to every open hand-out that matches and to nobody else.
//! - The broker gets its acknowledgement when the last recipient has settled the message (design promise G2).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, warn};

use super::link::LinkCx;
use super::pool::{LinkKey, Pool};
use super::retained::HandOuts;
use super::{Delivery, RequestId, Subscribing, Update, UplinkId};
use crate::gateway::ClientKey;
use crate::mqtt::{Event, Full, Message, QoS, Refused, SubscriptionId, Token};
use crate::topic::TopicFilter;
use crate::topic::tree::FilterTree;

/// Filters in one SUBSCRIBE or UNSUBSCRIBE of the gateway's own: at most 65,535 octets each, so that the packet stays well below
/// what brokers accept.
const FILTERS_PER_REQUEST: usize = 16;

/// The gateway's own link and everything that rides on it.
#[derive(Debug)]
pub(super) struct Aggregate {
    link: LinkKey,
    filters: FilterTree<Subscribers>,
    /// Filters whose state at the broker may differ from ours.
    unsettled: BTreeSet<TopicFilter>,
    hand_outs: HandOuts,
    purposes: HashMap<Token, Purpose>,
    /// Clients that have yet to settle a message.
    owed: HashMap<Delivery, usize>,
    last_subscription: u32,
}

/// Who subscribed to a filter.
#[derive(Debug, Default)]
struct Subscribers {
    clients: BTreeMap<ClientKey, Claim>,
    /// The broker has the filter, or is about to.
    at_broker: bool,
    /// Under which the broker sends what the filter matches, where it knows such a thing (MQTT 5 §3.8.2.1.2): how copies
    /// for overlapping filters are told apart.
    id: Option<SubscriptionId>,
    /// The broker said that it has the filter.
    granted: bool,
    /// SUBSCRIBEs for it that the broker has not answered. The connection repeats them by itself.
    asked: usize,
}

/// What one client has of a filter.
#[derive(Debug, Clone, Copy)]
struct Claim {
    qos: QoS,
    /// The last SUBSCRIBE for it that was passed on: the answer to an earlier one says nothing about it.
    asked: Option<RequestId>,
    /// Granted while the broker was away: its retained messages are still to come.
    awaits_retained: bool,
}

impl Subscribers {
    /// The highest QoS that somebody has of the filter.
    fn highest(&self) -> Option<QoS> {
        self.clients.values().map(|claim| claim.qos).reduce(higher)
    }
}

/// What was asked of the broker.
#[derive(Debug)]
enum Purpose {
    Publish(ClientKey, UplinkId),
    /// With the QoS asked for, and the one that was in force before.
    Subscribe(ClientKey, RequestId, TopicFilter, QoS, Option<QoS>),
    Reissue(Vec<TopicFilter>),
}

impl Aggregate {
    /// Everything on this link.
    pub(super) fn new(link: LinkKey) -> Self {
        Self {
            link,
            filters: FilterTree::default(),
            unsettled: BTreeSet::new(),
            hand_outs: HandOuts::default(),
            purposes: HashMap::new(),
            owed: HashMap::new(),
            last_subscription: 0,
        }
    }

    /// Sends a message of a client. Whether the broker will answer.
    pub(super) fn publish(
        &mut self,
        client: ClientKey,
        id: UplinkId,
        message: Message,
        pool: &mut Pool,
    ) -> Result<bool, Full> {
        let connection = pool.connection_mut(self.link).filter(|connection| connection.is_connected());
        let Some(token) = connection.ok_or(Full::Offline)?.publish(message)? else { return Ok(false) };
        self.purposes.insert(token, Purpose::Publish(client, id));
        Ok(true)
    }

    /// Publishes a message whose end nobody waits for.
    pub(super) fn publish_for_nobody(&mut self, message: Message, pool: &mut Pool) -> Result<(), Full> {
        let connection = pool.connection_mut(self.link).filter(|connection| connection.is_connected());
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
    ) -> Result<Subscribing, Full> {
        let others = self.filters.get(filter).and_then(Subscribers::highest);
        let at_broker = others.map_or(qos, |others| higher(others, qos));
        let before = self.filters.get(filter).and_then(|subscribers| subscribers.clients.get(&client));
        let before = before.map(|claim| claim.qos);
        let subscription = self.subscription(filter);
        let connection = pool.connection_mut(self.link).filter(|connection| connection.is_connected());
        let outcome = if let Some(connection) = connection {
            let token = connection.subscribe_as(&[(filter.clone(), at_broker)], subscription)?;
            self.purposes.insert(token, Purpose::Subscribe(client, id, filter.clone(), qos, before));
            self.hand_outs.open(client, filter, qos);
            // The broker has it at the highest QoS after this, whatever was still to be told.
            self.unsettled.remove(filter);
            Subscribing::Asked(id)
        } else {
            self.unsettled.insert(filter.clone());
            Subscribing::Granted(qos)
        };
        let subscribers = self.filters.get_or_default(filter);
        subscribers.id = subscription;
        let asked = match outcome {
            Subscribing::Asked(id) => Some(id),
            Subscribing::Granted(_) => None,
        };
        subscribers.clients.insert(client, Claim { qos, asked, awaits_retained: asked.is_none() });
        subscribers.at_broker |= asked.is_some();
        subscribers.asked += usize::from(asked.is_some());
        Ok(outcome)
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
        }
    }

    /// A client is done with a message; the broker gets its acknowledgement when all are.
    pub(super) fn settle(&mut self, delivery: Delivery, pool: &mut Pool) {
        let Some(owed) = self.owed.get_mut(&delivery) else { return };
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

    /// What the broker said on the link, to whom it concerns.
    pub(super) fn handle_event(
        &mut self,
        event: Event,
        pool: &mut Pool,
        updates: &mut VecDeque<Update>,
        cx: &mut LinkCx<'_>,
    ) {
        match event {
            Event::Connected { session_present } => {
                self.handle_connected(session_present);
                updates.push_back(Update::Up);
            }
            Event::Received(token) => {
                if let Some(Purpose::Publish(client, id)) = self.purposes.get(&token) {
                    updates.push_back(Update::Received(*client, *id));
                }
            }
            Event::Completed(token, result) => {
                if let Some(Purpose::Publish(client, id)) = self.purposes.remove(&token) {
                    updates.push_back(Update::Completed(client, id, result));
                }
            }
            Event::Subscribed(token, results) => updates.extend(self.handle_subscribed(token, results, cx)),
            Event::Message { message, delivery, expiry, subscriptions, .. } => {
                let delivery = delivery.map(|id| Delivery { link: self.link, id });
                let expires = expiry.and_then(|expiry| cx.now.checked_add(expiry));
                let message = self.handle_message(message, &subscriptions, delivery, expires, pool, cx);
                updates.extend(message);
            }
            // What unsubscribes has no purpose that outlives it; the rest is the link's own.
            Event::Unsubscribed(_) | Event::Reconnect | Event::Refused(_) | Event::Purged => {}
        }
    }

    fn handle_connected(&mut self, session_present: bool) {
        if !session_present {
            self.filters.for_each_mut(|subscribers| subscribers.granted = false);
            let lost = self.filters.iter().filter(|(_, subscribers)| subscribers.asked == 0);
            self.unsettled.extend(lost.map(|(filter, _)| filter.clone()));
        }
    }

    /// Brings the broker's filters in line with ours, as far as it can be asked; the rest waits for its answers.
    pub(super) fn settle_filters(&mut self, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        let Some(connection) = pool.connection(self.link).filter(|connection| connection.is_connected())
        else {
            return;
        };
        // One identifier for each filter is one filter in each SUBSCRIBE.
        let at_most = if connection.has_subscription_ids() { 1 } else { FILTERS_PER_REQUEST };
        loop {
            let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
            while wanted.len() < at_most && unwanted.len() < FILTERS_PER_REQUEST {
                let Some(filter) = self.unsettled.pop_first() else { break };
                match self.filters.get(&filter).map(Subscribers::highest) {
                    Some(Some(qos)) => wanted.push((filter, qos)),
                    Some(None) => unwanted.push(filter),
                    None => {}
                }
            }
            if wanted.is_empty() && unwanted.is_empty() {
                return;
            }
            let (issued, given_up) = (self.issue(&wanted, pool, cx), self.give_up(&unwanted, pool));
            if !issued || !given_up {
                return;
            }
        }
    }

    /// Subscribes to filters in the name of all who want them. Whether the connection took that.
    fn issue(&mut self, wanted: &[(TopicFilter, QoS)], pool: &mut Pool, cx: &mut LinkCx<'_>) -> bool {
        let subscription = match wanted {
            [(filter, _)] => self.subscription(filter),
            _ => None,
        };
        let Some(connection) = pool.connection_mut(self.link).filter(|_| !wanted.is_empty()) else {
            return true;
        };
        let names = wanted.iter().map(|(filter, _)| filter.clone());
        let token = match (connection.subscribe_as(wanted, subscription), wanted) {
            (Ok(token), _) => token,
            (Err(full), [_]) if full.is_final() => {
                cx.counters.subscriptions_refused += 1;
                warn!(reason = %full, "a subscription is lost");
                return true;
            }
            (Err(full), _) if full.is_final() => {
                let issue = |taken, one| self.issue(std::slice::from_ref(one), pool, cx) && taken;
                return wanted.iter().fold(true, issue);
            }
            (Err(_), _) => {
                self.unsettled.extend(names);
                return false;
            }
        };
        for (filter, _) in wanted {
            let subscribers = self.filters.get_or_default(filter);
            subscribers.at_broker = true;
            subscribers.id = subscription;
            subscribers.asked += 1;
            for (client, claim) in subscribers.clients.iter().filter(|(_, claim)| claim.awaits_retained) {
                self.hand_outs.keep_open(*client, filter, claim.qos);
            }
        }
        self.purposes.insert(token, Purpose::Reissue(names.collect()));
        true
    }

    /// Unsubscribes from filters that nobody wants. Whether the connection took that.
    fn give_up(&mut self, unwanted: &[TopicFilter], pool: &mut Pool) -> bool {
        let Some(connection) = pool.connection_mut(self.link).filter(|_| !unwanted.is_empty()) else {
            return true;
        };
        match (connection.unsubscribe(unwanted), unwanted) {
            (Ok(_), _) => {}
            // It was never taken either.
            (Err(full), [_]) if full.is_final() => {}
            (Err(full), _) if full.is_final() => {
                let give_up = |taken, one| self.give_up(std::slice::from_ref(one), pool) && taken;
                return unwanted.iter().fold(true, give_up);
            }
            (Err(_), _) => {
                self.unsettled.extend(unwanted.iter().cloned());
                return false;
            }
        }
        for filter in unwanted {
            self.filters.remove(filter);
        }
        true
    }

    fn handle_subscribed(
        &mut self,
        token: Token,
        results: Vec<Result<QoS, Refused>>,
        cx: &mut LinkCx<'_>,
    ) -> Option<Update> {
        match self.purposes.remove(&token) {
            Some(Purpose::Subscribe(client, id, filter, asked, before)) => {
                let result = results.into_iter().next().unwrap_or(Err(Refused(0x80)));
                let result = result.map(|granted| lower(granted, asked));
                let mut current = true;
                if let Some(subscribers) = self.filters.get_mut(&filter) {
                    subscribers.asked = subscribers.asked.saturating_sub(1);
                    subscribers.granted |= result.is_ok();
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
                            subscribers.at_broker = subscribers.granted || subscribers.asked > 0;
                        }
                        (None, _) => {}
                    }
                }
                if result.is_ok() {
                    self.take_back_unwanted(&filter);
                } else if current {
                    self.hand_outs.close(client, &filter);
                }
                return Some(Update::Subscribed(client, id, result));
            }
            Some(Purpose::Reissue(filters)) => {
                for (filter, result) in filters.iter().zip(results) {
                    self.handle_reissued(cx.now, filter, result.is_ok());
                    if result.is_ok() {
                        self.take_back_unwanted(filter);
                    }
                    if let Err(refused) = result {
                        cx.counters.subscriptions_refused += 1;
                        warn!(%refused, "the broker refuses a subscription that was granted while it was away");
                        debug!(%filter, "refused");
                    }
                }
            }
            Some(Purpose::Publish(..)) | None => {}
        }
        None
    }

    /// Who subscribed while the broker was away gets what it has kept from now on.
    fn handle_reissued(&mut self, now: Instant, filter: &TopicFilter, granted: bool) {
        let Some(subscribers) = self.filters.get_mut(filter) else { return };
        subscribers.asked = subscribers.asked.saturating_sub(1);
        subscribers.granted |= granted;
        for (client, claim) in subscribers.clients.iter_mut().filter(|(_, claim)| claim.awaits_retained) {
            claim.awaits_retained = false;
            self.hand_outs.answered(now, *client, filter, claim.qos);
        }
    }

    /// A SUBSCRIBE that was repeated on a new connection may come behind the UNSUBSCRIBE that was meant to end it.
    fn take_back_unwanted(&mut self, filter: &TopicFilter) {
        if self.filters.get(filter).is_none() {
            self.filters.get_or_default(filter).at_broker = true;
            self.unsettled.insert(filter.clone());
        }
    }

    fn handle_message(
        &mut self,
        message: Message,
        copy_for: &[SubscriptionId],
        delivery: Option<Delivery>,
        expires: Option<Instant>,
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
            recipients
        } else {
            self.recipients(&message, copy_for)
        };
        if recipients.is_empty() {
            cx.counters.downlink_unrouted += 1;
            if let Some(delivery) = delivery {
                pool.settle(delivery);
            }
            return None;
        }
        if let Some(delivery) = delivery {
            self.owed.insert(delivery, recipients.len());
        }
        let recipients = recipients.into_iter().collect();
        Some(Update::Message(Arc::new(message), delivery, expires, recipients))
    }

    /// Everybody who subscribed to a filter that matches, once, at the highest QoS granted to it. Of several copies, which
    /// the broker may send where filters overlap, a client gets the one for its best filter.
    fn recipients(&self, message: &Message, copy_for: &[SubscriptionId]) -> BTreeMap<ClientKey, QoS> {
        let mut best: BTreeMap<ClientKey, (bool, QoS, Option<SubscriptionId>)> = BTreeMap::new();
        self.filters.matches(&message.topic, |_, subscribers| {
            for (client, claim) in &subscribers.clients {
                // A filter that the broker has not confirmed yet may bring no copy.
                let this = (subscribers.granted, claim.qos, subscribers.id);
                let best = best.entry(*client).or_insert(this);
                if (this.0, this.1) > (best.0, best.1) {
                    *best = this;
                }
            }
        });
        let for_it = |id: Option<SubscriptionId>| id.is_none_or(|id| copy_for.contains(&id));
        best.retain(|_, (_, _, id)| copy_for.is_empty() || for_it(*id));
        best.into_iter().map(|(client, (_, qos, _))| (client, lower(message.qos, qos))).collect()
    }

    /// The identifier of a filter, a new one if it has none. There are enough for one a second for eight years.
    fn subscription(&mut self, filter: &TopicFilter) -> Option<SubscriptionId> {
        let known = self.filters.get(filter).and_then(|subscribers| subscribers.id);
        known.or_else(|| {
            let id = SubscriptionId::new(self.last_subscription + 1)?;
            self.last_subscription = id.get();
            Some(id)
        })
    }
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
