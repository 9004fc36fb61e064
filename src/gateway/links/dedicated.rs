//! A link for each client (§4.1): the client's own id, session and acknowledgements at the broker.
//!
//! ```text
//!           open                  CONNACK 0                connection lost
//!   (none) ──────► Asking ─────────────────────► Serving ───────────────────► Waiting
//!                  ▲    │ refused, abandoned      │    ▲      accepted again      │
//!                  │    ▼                         │    └──────────────────────────┘
//!     open         │  (none), or as before        ▼ part (CleanSession 0)
//!   Resting ───────┘                           Resting
//! ```
//!
//! - The client's CONNECT is answered when the broker has answered (Interpretation: R-020); what the broker refuses, the client
//!   is refused (Interpretation: R-170).
//! - Subscriptions are passed on as they are. They are issued again only if the broker has lost the client's session while
//!   the client has not; the retained messages that this brings are none of the client's.
//! - A session with CleanSession 0 keeps its link between two connections of the client: what neither side has acknowledged
//!   is known again by its packet id.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::link::{LinkCx, Lost, News};
use super::pool::{LinkKey, Pool};
use super::{Delivery, FILTERS_PER_REQUEST, Parting, RequestId, Subscribing, Update, UplinkId, credentials};
use crate::gateway::ClientKey;
use crate::gateway::io::BrokerSettings;
use crate::mqtt::{ConnectRefusal, Connection, Event, Full, Message, Options, QoS, Refused, Session, Token};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::ReturnCode;

/// How long after filters were issued again retained messages are taken for what that has brought.
const REISSUED: Duration = Duration::from_secs(10);

/// Connections of a client that the broker closed so soon, one after another and while it served the gateway itself: then
/// another connection has the client's id and takes it back each time. Brokers of MQTT 3.1.1 cannot say so, and Mosquitto 2.0
/// does not. More than [`super::link`] needs to give a message up.
const TAKEN_BACK_MAX: u32 = 7;

/// How soon.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(10);

/// DISCONNECT because another connection has the client id now (MQTT 5 §3.14.2.1).
const TAKEN_OVER: u8 = 0x8E;

/// DISCONNECT because somebody wants it (MQTT 5 §3.14.2.1).
const ADMINISTRATIVE: u8 = 0x98;

/// The links of single clients.
#[derive(Debug)]
pub(super) struct Dedicated {
    clients: FxHashMap<ClientKey, Own>,
    by_link: FxHashMap<LinkKey, ClientKey>,
    /// What is stored outlives the process.
    lasting: bool,
}

/// What the link of a client is to be.
#[derive(Debug)]
pub(in crate::gateway) struct Opening {
    pub(in crate::gateway) id: ClientId,
    /// CleanSession 1.
    pub(in crate::gateway) clean: bool,
    pub(in crate::gateway) keep_alive: Duration,
    /// How long the broker keeps the session between two connections, if it can be told.
    pub(in crate::gateway) expiry: Duration,
    /// Messages that may wait here for the client.
    pub(in crate::gateway) window: usize,
    /// A Will for the broker to keep.
    pub(in crate::gateway) will: Option<Message>,
}

/// What came of [`Dedicated::open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Opened {
    /// The client goes on with the link that it has.
    Ready,
    /// The broker was asked; [`Update::Accepted`] or [`Update::Refused`] follows.
    Asked,
}

/// A client's own link.
#[derive(Debug)]
pub(super) struct Own {
    link: LinkKey,
    id: ClientId,
    clean: bool,
    /// The Will that the broker keeps.
    will: Option<Message>,
    phase: Phase,
    /// When the broker last accepted it, and how often it was lost soon after.
    accepted: Option<Instant>,
    taken_back: u32,
    purposes: BTreeMap<Token, Purpose>,
    /// What the client has subscribed to, at the QoS it asked for.
    filters: BTreeMap<TopicFilter, QoS>,
    /// The broker had a session of the client before this link: what is subscribed to there is not all known here.
    inherited: bool,
    /// When they were issued again.
    reissued: Option<Instant>,
    /// What was asked up to this was repeated on this connection, in a session that may know it from an earlier one.
    repeated: Option<Token>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A CONNECT of the client waits for the broker's answer; what the link was for before.
    Asking(Before),
    /// The client is connected, and so is the link.
    Serving,
    /// The client is connected; the link is tried again.
    Waiting,
    /// The client is away.
    Resting,
}

/// What a link was before it was asked to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Waiting,
    Resting,
}

/// What was asked of the broker.
#[derive(Debug)]
enum Purpose {
    Publish(UplinkId),
    /// With the QoS asked for, and the one that was in force before.
    Subscribe(RequestId, TopicFilter, QoS, Option<QoS>),
    Unsubscribe(TopicFilter),
}

impl Dedicated {
    pub(super) fn new(lasting: bool) -> Self {
        Self { clients: FxHashMap::default(), by_link: FxHashMap::default(), lasting }
    }

    /// The client whose link it is.
    pub(super) fn client(&self, link: LinkKey) -> Option<ClientKey> {
        self.by_link.get(&link).copied()
    }

    /// The link of a client.
    pub(super) fn link(&self, client: ClientKey) -> Option<LinkKey> {
        self.clients.get(&client).map(|own| own.link)
    }

    /// The link of a client if the broker keeps its session.
    pub(super) fn kept_link(&self, client: ClientKey) -> Option<LinkKey> {
        self.clients.get(&client).filter(|own| !own.clean).map(|own| own.link)
    }

    /// Links whose sessions the broker keeps.
    pub(super) fn kept_links(&self) -> Vec<LinkKey> {
        #[expect(clippy::disallowed_methods, reason = "sorted before anybody sees the order")]
        let mut links: Vec<_> = self.clients.values().filter(|own| !own.clean).map(|own| own.link).collect();
        links.sort_unstable();
        links
    }

    /// Whose own link it is.
    pub(super) fn id(&self, link: LinkKey) -> Option<&ClientId> {
        self.clients.get(self.by_link.get(&link)?).map(|own| &own.id)
    }

    /// The message of a client that has this token.
    pub(super) fn uplink(&self, link: LinkKey, token: Token) -> Option<UplinkId> {
        match self.clients.get(self.by_link.get(&link)?)?.purposes.get(&token)? {
            Purpose::Publish(id) => Some(*id),
            Purpose::Subscribe(..) | Purpose::Unsubscribe(_) => None,
        }
    }

    /// A client had this link before a restart, and these filters; it connects at `at`, or rests if the client is away.
    pub(super) fn restore(
        &mut self,
        client: ClientKey,
        opening: Opening,
        filters: BTreeMap<TopicFilter, QoS>,
        at: Option<Instant>,
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) {
        let (clean, will, id) = (opening.clean, opening.will.clone(), opening.id.clone());
        let options = options(opening, self.lasting, cx.settings);
        let link = pool.add(options, Some(id.clone()), at.unwrap_or(cx.now));
        if at.is_none() {
            pool.rest(link, cx);
        }
        self.by_link.insert(link, client);
        let phase = if at.is_some() { Phase::Waiting } else { Phase::Resting };
        let (accepted, taken_back, purposes, reissued) = (None, 0, BTreeMap::new(), None);
        // It may be so, and if it is not, that costs an UNSUBSCRIBE in vain.
        let inherited = true;
        let own = Own {
            link,
            id,
            clean,
            will,
            phase,
            accepted,
            taken_back,
            purposes,
            filters,
            inherited,
            reissued,
            repeated: None,
        };
        self.clients.insert(client, own);
    }

    pub(super) fn contains(&self, client: ClientKey) -> bool {
        self.clients.contains_key(&client)
    }

    pub(super) fn get(&self, client: ClientKey) -> Option<&Own> {
        self.clients.get(&client)
    }

    pub(super) fn get_mut(&mut self, client: ClientKey) -> Option<&mut Own> {
        self.clients.get_mut(&client)
    }

    /// Whether the client keeps its link, if it has one: a session at the broker goes on only where neither the old nor the new
    /// one is to be forgotten.
    pub(super) fn goes_on(&self, client: ClientKey, opening: &Opening) -> bool {
        self.clients.get(&client).is_some_and(|own| !own.clean && !opening.clean)
    }

    /// See [`super::Links::open`].
    pub(super) fn open(
        &mut self,
        client: ClientKey,
        opening: Opening,
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) -> Opened {
        let goes_on = self.goes_on(client, &opening);
        if let Some(own) = self.clients.get_mut(&client).filter(|_| goes_on) {
            return own.resume(opening.will, pool, cx);
        }
        self.forget(client, false, pool, cx);
        let (clean, will) = (opening.clean, opening.will.clone());
        let id = opening.id.clone();
        let link = pool.add(options(opening, self.lasting, cx.settings), Some(id.clone()), cx.now);
        pool.connect_now(link, cx);
        self.by_link.insert(link, client);
        let phase = Phase::Asking(Before::Nothing);
        let (purposes, filters) = (BTreeMap::new(), BTreeMap::new());
        let own = Own {
            link,
            id,
            clean,
            will,
            phase,
            accepted: None,
            taken_back: 0,
            purposes,
            filters,
            inherited: false,
            reissued: None,
            repeated: None,
        };
        self.clients.insert(client, own);
        Opened::Asked
    }

    /// See [`super::Links::abandon`].
    pub(super) fn abandon(&mut self, client: ClientKey, pool: &mut Pool, cx: &mut LinkCx<'_>) -> bool {
        let Some(own) = self.clients.get_mut(&client) else { return false };
        match own.phase {
            Phase::Asking(Before::Nothing) => self.forget(client, false, pool, cx),
            Phase::Asking(Before::Resting) => {
                own.phase = Phase::Resting;
                own.rest(Parting::Leave, pool, cx);
            }
            Phase::Asking(Before::Waiting) => own.phase = Phase::Waiting,
            Phase::Serving | Phase::Waiting | Phase::Resting => {}
        }
        self.contains(client)
    }

    /// See [`super::Links::part`].
    pub(super) fn part(&mut self, client: ClientKey, parting: Parting, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        if let Some(own) = self.clients.get_mut(&client) {
            own.rest(parting, pool, cx);
        }
    }

    /// See [`super::Links::forget`].
    pub(super) fn forget(&mut self, client: ClientKey, purge: bool, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        if let Some(own) = self.clients.remove(&client) {
            self.by_link.remove(&own.link);
            pool.remove(own.link, purge && !own.clean, cx);
        }
    }

    /// See [`super::Links::erase`].
    pub(super) fn erase(&mut self, client: ClientKey, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        if let Some(own) = self.clients.remove(&client) {
            self.by_link.remove(&own.link);
            pool.erase(own.link, cx);
        }
    }

    /// See [`super::Links::change_will`].
    pub(super) fn change_will(&mut self, client: ClientKey, will: Option<Message>, pool: &mut Pool) {
        if let Some(own) = self.clients.get_mut(&client).filter(|own| own.will != will) {
            own.will.clone_from(&will);
            pool.change_will(own.link, will);
        }
    }

    /// What a link said, to the client whose it is.
    pub(super) fn handle(
        &mut self,
        link: LinkKey,
        news: News,
        own_is_up: bool,
        pool: &mut Pool,
        updates: &mut VecDeque<Update>,
        cx: &mut LinkCx<'_>,
    ) {
        let Some(client) = self.by_link.get(&link).copied() else { return };
        let Some(own) = self.clients.get_mut(&client) else { return };
        match news {
            News::Trace(_) => {}
            News::Mqtt(event) => updates.extend(own.handle_event(client, event, pool, cx)),
            News::Lost(lost) => updates.extend(own.handle_lost(client, lost, own_is_up, pool, cx)),
        }
    }
}

impl Own {
    /// A message goes on under this token.
    pub(super) fn restore_publish(&mut self, id: UplinkId, token: Token) {
        self.purposes.insert(token, Purpose::Publish(id));
    }

    /// Goes on with the session at the broker.
    fn resume(&mut self, will: Option<Message>, pool: &mut Pool, cx: &mut LinkCx<'_>) -> Opened {
        let other_will = self.will != will;
        if other_will {
            self.will.clone_from(&will);
            pool.change_will(self.link, will);
        }
        self.phase = match self.phase {
            Phase::Serving if pool.is_up(self.link) && !other_will => return Opened::Ready,
            Phase::Serving | Phase::Waiting => Phase::Asking(Before::Waiting),
            Phase::Resting => Phase::Asking(Before::Resting),
            asking @ Phase::Asking(_) => asking,
        };
        if !other_will || self.phase == Phase::Asking(Before::Resting) {
            pool.connect_now(self.link, cx);
        }
        Opened::Asked
    }

    fn rest(&mut self, parting: Parting, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        if let Phase::Asking(before) = &mut self.phase {
            // The client connects again, from elsewhere.
            if *before == Before::Waiting {
                *before = Before::Resting;
            }
            return;
        }
        self.phase = Phase::Resting;
        match parting {
            Parting::Leave => pool.rest(self.link, cx),
            Parting::Vanish => pool.cut(self.link, cx),
        }
    }

    /// Sends a message. Whether the broker will answer.
    pub(super) fn publish(&mut self, id: UplinkId, message: Message, pool: &mut Pool) -> Result<bool, Full> {
        let connection = pool.connection_mut(self.link).filter(|connection| connection.is_connected());
        let Some(token) = connection.ok_or(Full::Offline)?.publish(message)? else { return Ok(false) };
        self.purposes.insert(token, Purpose::Publish(id));
        Ok(true)
    }

    pub(super) fn subscribe(
        &mut self,
        id: RequestId,
        filter: &TopicFilter,
        qos: QoS,
        pool: &mut Pool,
    ) -> Result<Subscribing, Full> {
        let connection = pool.connection_mut(self.link).filter(|connection| connection.is_connected());
        let token = connection.ok_or(Full::Offline)?.subscribe(&[(filter.clone(), qos)])?;
        let before = self.filters.insert(filter.clone(), qos);
        self.purposes.insert(token, Purpose::Subscribe(id, filter.clone(), qos, before));
        // From here on retained messages are what the client asked for.
        self.reissued = None;
        Ok(Subscribing::Asked(id))
    }

    /// `unwanted` if the client said so, and is to have no more of it from now on.
    pub(super) fn unsubscribe(&mut self, filter: &TopicFilter, unwanted: bool, pool: &mut Pool) {
        if (self.filters.remove(filter).is_some() || self.inherited)
            && let Some(connection) = pool.connection_mut(self.link)
        {
            // A client that asks for thousands at a time is not told of the rest (UNSUBACK knows no refusal).
            let asked = connection.unsubscribe(std::slice::from_ref(filter));
            if let Ok(token) = asked
                && unwanted
            {
                self.purposes.insert(token, Purpose::Unsubscribe(filter.clone()));
            }
        }
    }

    /// Whether the client has ended a subscription that brings this, and the broker has not said that it did too. Not if the client has
    /// subscribed to that again.
    pub(super) fn is_ending(&self, topic: &TopicName) -> bool {
        self.purposes.values().any(|purpose| match purpose {
            Purpose::Unsubscribe(filter) => filter.matches(topic) && !self.filters.contains_key(filter),
            Purpose::Publish(_) | Purpose::Subscribe(..) => false,
        })
    }

    fn handle_event(
        &mut self,
        client: ClientKey,
        event: Event,
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) -> Option<Update> {
        match event {
            Event::Connected { session_present } => {
                let resumed = pool.connection(self.link).is_some_and(Connection::has_resumed);
                self.repeated = self.purposes.keys().next_back().copied().filter(|_| resumed);
                if !session_present {
                    self.reissue(pool, cx);
                }
                self.handle_connected(client, session_present, cx.now)
            }
            Event::Received(token) => match self.purposes.get(&token) {
                Some(Purpose::Publish(id)) => Some(Update::Received(client, *id)),
                _ => None,
            },
            Event::Completed(token, result) => match self.purposes.remove(&token) {
                Some(Purpose::Publish(id)) => Some(Update::Completed(client, id, result)),
                _ => None,
            },
            Event::Subscribed(token, results) => self.handle_subscribed(client, token, &results, pool, cx),
            Event::Message { message, delivery, expiry, .. } => {
                cx.counters.downlink_messages += 1;
                let delivery = delivery.map(|id| Delivery { link: self.link, id });
                if message.retain && self.is_reissued(&message, cx.now) {
                    cx.counters.downlink_unrouted += 1;
                    if let Some(delivery) = delivery {
                        pool.settle(delivery);
                    }
                    return None;
                }
                let expires = expiry.and_then(|expiry| cx.now.checked_add(expiry));
                let recipients = vec![(client, message.qos)];
                Some(Update::Message(Arc::new(message), delivery, expires, recipients))
            }
            Event::Unsubscribed(token) => {
                self.purposes.remove(&token);
                None
            }
            Event::Reconnect | Event::Refused(_) | Event::Purged => None,
        }
    }

    fn handle_connected(&mut self, client: ClientKey, session_present: bool, now: Instant) -> Option<Update> {
        let update = match self.phase {
            Phase::Asking(before) => {
                let inherited = session_present && before == Before::Nothing;
                self.inherited |= inherited;
                Update::Accepted(client, inherited)
            }
            Phase::Waiting => Update::Back(client),
            Phase::Serving | Phase::Resting => return None,
        };
        (self.phase, self.accepted) = (Phase::Serving, Some(now));
        Some(update)
    }

    fn handle_subscribed(
        &mut self,
        client: ClientKey,
        token: Token,
        results: &[Result<QoS, Refused>],
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) -> Option<Update> {
        let repeated = self.repeated.is_some_and(|last| token <= last);
        let Some(Purpose::Subscribe(id, filter, asked, before)) = self.purposes.remove(&token) else {
            let refused = results.iter().filter(|result| result.is_err()).count();
            cx.counters.subscriptions_refused += u64::try_from(refused).unwrap_or(u64::MAX);
            return None;
        };
        let result = results.first().copied().unwrap_or(Err(Refused(0x80)));
        // What is refused on top of a subscription leaves it as it was.
        if result.is_err() && self.filters.get(&filter) == Some(&asked) {
            match before {
                Some(qos) => {
                    self.filters.insert(filter, qos);
                }
                // It may have taken the first, and not have told us.
                None if repeated => self.unsubscribe(&filter, true, pool),
                None => {
                    self.filters.remove(&filter);
                }
            }
        }
        Some(Update::Subscribed(client, id, result))
    }

    fn handle_lost(
        &mut self,
        client: ClientKey,
        lost: Lost,
        own_is_up: bool,
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) -> Option<Update> {
        let code = match lost {
            Lost::Refused(refusal) => code_of_refusal(refusal),
            Lost::Away | Lost::Closed | Lost::Dismissed(_) => ReturnCode::Congestion,
        };
        let for_good =
            code != ReturnCode::Congestion || matches!(lost, Lost::Dismissed(TAKEN_OVER | ADMINISTRATIVE));
        let for_good = for_good || self.is_taken_back(own_is_up, cx.now);
        match self.phase {
            Phase::Asking(_) => {
                // The client gets its answer when every broker has been asked once.
                let tried = usize::try_from(pool.failures(self.link)).unwrap_or(usize::MAX);
                if code == ReturnCode::Congestion && tried < cx.settings.endpoints.len() {
                    pool.connect_now(self.link, cx);
                    return None;
                }
                Some(Update::Refused(client, code))
            }
            Phase::Serving | Phase::Waiting if for_good => Some(Update::Ended(client)),
            Phase::Serving => {
                self.phase = Phase::Waiting;
                Some(Update::Lost(client))
            }
            Phase::Waiting | Phase::Resting => None,
        }
    }

    /// Whether another connection wants the client's id as much as the client does.
    fn is_taken_back(&mut self, own_is_up: bool, now: Instant) -> bool {
        let Some(accepted) = self.accepted.take() else { return false };
        let soon = own_is_up && now.saturating_duration_since(accepted) < TAKEN_BACK_WITHIN;
        self.taken_back = if soon { self.taken_back + 1 } else { 0 };
        let is_taken_back = self.taken_back >= TAKEN_BACK_MAX;
        if is_taken_back {
            // When the client comes again, so may its turn.
            self.taken_back = 0;
        }
        is_taken_back
    }

    /// The broker knows nothing of the client's subscriptions. What it has yet to answer is repeated anyway.
    fn reissue(&mut self, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        let is_asked = |filter: &TopicFilter| {
            self.purposes.values().any(|asked| matches!(asked, Purpose::Subscribe(_, it, ..) if it == filter))
        };
        let filters = self.filters.iter().filter(|(filter, _)| !is_asked(filter));
        let filters: Vec<_> = filters.map(|(filter, qos)| (filter.clone(), *qos)).collect();
        if filters.is_empty() {
            return;
        }
        let Some(connection) = pool.connection_mut(self.link) else { return };
        for filters in filters.chunks(FILTERS_PER_REQUEST) {
            if connection.subscribe(filters).is_ok() {
                continue;
            }
            // Together they may be too much for the broker. One by one it took them before.
            for filter in filters.chunks(1) {
                cx.counters.subscriptions_refused += u64::from(connection.subscribe(filter).is_err());
            }
        }
        self.reissued = Some(cx.now);
    }

    /// Whether a retained message comes of issuing filters again.
    fn is_reissued(&self, message: &Message, now: Instant) -> bool {
        self.reissued.is_some_and(|at| now.saturating_duration_since(at) < REISSUED)
            && self.filters.keys().any(|filter| filter.matches(&message.topic))
    }
}

/// The client id that a client has at the broker.
pub(in crate::gateway) fn id_at_broker(id: &ClientId, settings: &BrokerSettings) -> String {
    settings.client_id_template.replace("%c", id.as_str())
}

/// How a client connects on a link of its own.
fn options(opening: Opening, lasting: bool, settings: &BrokerSettings) -> Options {
    let Opening { id, clean, keep_alive, expiry, window, will } = opening;
    let mut options = Options::new(id_at_broker(&id, settings));
    options.traced = lasting;
    options.session = if clean { Session::Clean } else { Session::Adopt };
    options.session_expiry = expiry;
    // The client's, for the broker to know; ours where that is shorter, for the way to the broker.
    let both = [keep_alive, settings.keep_alive];
    options.keep_alive = both.into_iter().filter(|it| !it.is_zero()).min().unwrap_or_default();
    options.connect_timeout = settings.connect_timeout;
    options.receive_max = u16::try_from(window).unwrap_or(u16::MAX);
    options.credentials = credentials(settings.client_credentials.get(&id).or(settings.credentials.as_ref()));
    options.will = will;
    options
}

/// What a client is told of the broker's refusal of its connection (Interpretation: R-170).
pub(super) fn code_of_refusal(refusal: ConnectRefusal) -> ReturnCode {
    match refusal.0 {
        3 | 0x88 | 0x89 | 0x97 | 0x9F => ReturnCode::Congestion,
        _ => ReturnCode::NotSupported,
    }
}
