//! One client: its state, and what the parts of a session share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, info, warn};

use super::ClientKey;
use super::air::{Addressee, Air};
use super::counters::Counters;
use super::downlink::Downlink;
use super::few::{FewMap, Rare, Vacant};
use super::io::{Mode, Peer, PortSettings, Route, Settings, Wills};
use super::journal::Journal;
use super::links::{Links, RequestId, Subscribing, code_of, code_of_full};
use super::outbox::Item;
use super::record::{self, Key, SubscriptionRow};
use super::registry::{Predefined, Registry, Scope, names_len_max};
use super::rows::Stored;
use super::timer::{ClientTimer, Timer, Timers};
use super::uplink::Uplink;
use crate::mqtt::{Full, Message, QoS, Refused};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::{
    self, FilterRef, MsgIdOnly, Packet, Qos, Register, Response, ReturnCode, SubAck, Subscribe, TopicAck,
    TopicRef, Unsubscribe,
};

/// SUBSCRIBEs of one client with the broker at a time. §6.9 allows one; a client that does not wait is served within
/// reason.
const REQUESTS_MAX: usize = 8;

/// Octets of a Will's topic. Every session has one, and sensors have short ones.
const WILL_TOPIC_LEN_MAX: usize = 1024;

/// Octets of a Will's message, for the same reason. It is a last word, not a report.
const WILL_MESSAGE_LEN_MAX: usize = 4096;

/// Keep-alives up to this long have a tolerance of half, longer ones of a tenth (§7.2; exactly 60 s is not decided by
/// the text, Interpretation: R-080).
const GENEROUS_UP_TO: Duration = Duration::from_secs(60);

/// The state of a client that has a session (§6.14).
///
/// ```text
///             CONNECT               DISCONNECT(Duration)               PINGREQ
///   (none) ────────────► Active ─────────────────────────► Asleep ────────────────► Awake
///                         │ ▲ ▲                             │ │ ▲                    │
///                         │ │ └────────── CONNECT ──────────┼─┼─┼──── CONNECT ───────┤
///              DISCONNECT │ │                               │ │ └──── PINGRESP ──────┘
///                         │ │ CONNECT           DISCONNECT  │ │        or no answer
///                         ▼ │                               │ │
///                    Disconnected ◄─────────────────────────┘ │
///                        Lost     ◄── not heard in time ──────┘   (Active too)
/// ```
///
/// With CleanSession 1 the session ends on the way to Disconnected or Lost, else when its life time is over (§6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Active,
    /// Nothing is sent but answers; what comes for the client waits.
    Asleep,
    /// It asked for what waits, and gets it; PINGRESP ends that.
    Awake,
    Disconnected,
    Lost,
}

/// What the client wants said of it when it is lost (§6.3). There is a Will only where there is a topic; a message may
/// come first (Interpretation: R-042).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Will {
    pub(super) topic: Option<WillTopic>,
    pub(super) message: Bytes,
}

impl Will {
    /// What is published, if there is a topic.
    pub(super) fn message(&self) -> Option<Message> {
        let WillTopic { name, qos, retain } = self.topic.clone()?;
        Some(Message { topic: name, payload: self.message.clone(), qos, retain })
    }
}

/// Where a Will is published, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WillTopic {
    pub(super) name: TopicName,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

impl WillTopic {
    /// `None` for what cannot be published: a wildcard, ill-formed UTF-8, QoS −1 (Interpretation: R-028), or is too long.
    pub(super) fn new(will: &wire::WillTopic<'_>) -> Option<Self> {
        if will.topic.len() > WILL_TOPIC_LEN_MAX {
            return None;
        }
        let qos = match will.qos {
            Qos::MinusOne => return None,
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        };
        let name = TopicName::portable(will.topic).ok()?;
        Some(Self { name, qos, retain: will.retain })
    }
}

/// The message of a Will; `None` if it is too long.
pub(super) fn will_message(will: &wire::WillMsg<'_>) -> Option<Bytes> {
    (will.message.len() <= WILL_MESSAGE_LEN_MAX).then(|| Bytes::copy_from_slice(will.message))
}

/// A subscription by how the client named it: that is how messages on it are named to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) topic: TopicRef,
    /// What was granted.
    pub(super) qos: QoS,
    /// A SUBACK said so: what is asked on top of it and refused leaves it as it is.
    pub(super) granted: bool,
    /// See [`SubscriptionRow`].
    pub(super) since: u64,
    /// What its row says, if it has one.
    pub(super) stored: Option<SubscriptionRow>,
}

/// Subscriptions whose rows may not say what is here.
#[derive(Debug, Default)]
pub(super) struct FilterChanges {
    pub(super) granted: Vec<TopicFilter>,
    /// They had rows.
    pub(super) ended: Vec<(TopicFilter, SubscriptionRow)>,
}

impl Vacant for FilterChanges {
    const VACANT: &'static Self = &Self { granted: Vec::new(), ended: Vec::new() };

    fn is_vacant(&self) -> bool {
        self.granted.is_empty() && self.ended.is_empty()
    }
}

/// A time as clients say it: in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seconds(pub(super) u16);

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs(seconds.0.into())
    }
}

impl From<Duration> for Seconds {
    /// No client says more than it can hold.
    fn from(time: Duration) -> Self {
        Self(u16::try_from(time.as_secs()).unwrap_or(u16::MAX))
    }
}

/// A SUBSCRIBE that is with the broker.
#[derive(Debug)]
pub(super) struct Request {
    id: RequestId,
    msg_id: u16,
    filter: TopicFilter,
    topic: TopicRef,
    asked: QoS,
    asked_at: Instant,
    pub(super) answer_by: Instant,
}

/// One client and all that is kept for it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) key: ClientKey,
    pub(super) id: ClientId,
    pub(super) state: State,
    /// No CONNECT has been accepted yet.
    pub(super) fresh: bool,
    /// How it is served at the broker, from its beginning to its end.
    pub(super) mode: Mode,
    /// The broker had a session of the client when this one began: it may bring what nobody subscribed to here.
    pub(super) inherited: bool,
    /// From where the client wants to connect, while the broker is asked.
    pub(super) asking: Option<Box<Peer>>,
    /// Its own link has been lost for too long; it is told when it wakes, or can be reached.
    pub(super) overdue: bool,
    /// CleanSession 1.
    pub(super) clean: bool,
    /// Zero: not supervised.
    pub(super) keep_alive: Seconds,
    /// How long it means to sleep between two signs of life (§6.14).
    pub(super) sleep: Seconds,
    /// Where it is reached; `None` unless it is bound to a peer.
    pub(super) peer: Option<Arc<Peer>>,
    pub(super) route: Route,
    pub(super) last_heard: Instant,
    /// It has sent nothing since a CONNECT without a Will: the same again is a repetition (Interpretation: A-03).
    pub(super) just_connected: bool,
    /// The connection was set up with Will prompts and nothing came since.
    pub(super) prompted: bool,
    /// When its peer was last told, since it connected there, that another client has no session.
    pub(super) told: Option<Box<Instant>>,
    /// The last that was heard of it may have been its goodbye.
    pub(super) took_leave: bool,
    /// Not the one that says nothing.
    pub(super) will: Option<Arc<Will>>,
    pub(super) subscriptions: FewMap<TopicFilter, Subscription>,
    pub(super) requests: Rare<VecDeque<Request>>,
    /// How the broker refused the last SUBSCRIBE that it refused: a client that goes on like that fills no log.
    refused_as: Option<Refused>,
    /// Why the last SUBSCRIBE that was not even sent to the broker was not.
    untaken_as: Option<Full>,
    pub(super) registry: Registry,
    pub(super) uplink: Rare<Uplink>,
    pub(super) downlink: Downlink,
    /// What its rows say.
    pub(super) stored: Stored,
    pub(super) filter_changes: Rare<FilterChanges>,
    /// It is listed as one whose rows may not say what is here.
    pub(super) touched: bool,
}

/// What a session needs of the core for one call.
pub(super) struct Cx<'a> {
    pub(super) now: Instant,
    pub(super) settings: &'a Settings,
    pub(super) predefined: &'a Predefined,
    pub(super) air: &'a mut Air,
    pub(super) links: &'a mut Links,
    pub(super) journal: &'a mut Journal,
    pub(super) timers: &'a mut Timers,
    pub(super) counters: &'a mut Counters,
    /// Octets in all outboxes together.
    pub(super) queued_octets: &'a mut usize,
}

impl<'a> Cx<'a> {
    /// Whose topic ids are meant, and what limits them.
    pub(super) fn scope<'s>(&self, client: &'s ClientId) -> Scope<'s>
    where
        'a: 's,
    {
        Scope { client, predefined: self.predefined, max_topics: self.settings.sessions.max_topics }
    }

    /// Whether what a client asks for cannot be kept at the moment. Then it is refused.
    pub(super) fn is_unstored(&mut self) -> bool {
        let is_unstored = !self.journal.is_available();
        self.counters.refused_unstored += u64::from(is_unstored);
        is_unstored
    }

    /// The client is done with a message, one way or another.
    pub(super) fn settle(&mut self, client: &ClientId, item: &Item) {
        if let Some(delivery) = item.delivery {
            self.links.settle(delivery);
        }
        if let Some(number) = item.kept {
            // If it is there again after a crash, the client has it twice at QoS 1; at QoS 2 it waits for PUBREL.
            self.journal
                .delete_in_time(Key::Client(client.clone(), record::ClientKey::Waiting(number.get())));
            self.journal.drop_message(item.id);
        }
    }
}

impl Session {
    pub(super) fn new(key: ClientKey, id: ClientId, now: Instant, rng: &mut fastrand::Rng) -> Self {
        Self {
            key,
            id,
            state: State::Disconnected,
            fresh: true,
            mode: Mode::Aggregating,
            inherited: false,
            asking: None,
            overdue: false,
            clean: true,
            keep_alive: Seconds::default(),
            sleep: Seconds::default(),
            peer: None,
            route: Route::default(),
            last_heard: now,
            just_connected: false,
            prompted: false,
            told: None,
            took_leave: false,
            will: None,
            subscriptions: FewMap::default(),
            requests: Rare::default(),
            refused_as: None,
            untaken_as: None,
            registry: Registry::new(rng),
            uplink: Rare::default(),
            downlink: Downlink::default(),
            stored: Stored::default(),
            filter_changes: Rare::default(),
            touched: false,
        }
    }

    /// Whether what comes for the client may be sent to it.
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.state, State::Active | State::Awake)
    }

    /// The client was heard (§6.14: any message will do).
    pub(super) fn handle_heard(&mut self, route: Route, now: Instant) {
        self.route = route;
        self.last_heard = now;
    }

    /// When the client counts as lost, if nothing is heard of it (§7.2). While it is Awake its answers are awaited
    /// instead (§6.14).
    pub(super) fn supervision_deadline(&self) -> Option<Instant> {
        let silence = Duration::from(match self.state {
            State::Active => self.keep_alive,
            State::Asleep => self.sleep,
            State::Awake | State::Disconnected | State::Lost => return None,
        });
        let tolerance = if silence <= GENEROUS_UP_TO { silence / 2 } else { silence / 10 };
        (!silence.is_zero()).then(|| self.last_heard + silence + tolerance)
    }

    /// Sets the timer by which the client must be heard, if it can be.
    pub(super) fn supervise(&self, cx: &mut Cx<'_>) {
        match self.supervision_deadline().filter(|_| !self.is_cut_off(cx.air)) {
            Some(at) => self.set_timer(ClientTimer::Supervision, at, cx),
            None => cx.timers.cancel(&Timer::Client(self.key, ClientTimer::Supervision)),
        }
    }

    /// Its transport cannot send and receive: what is under way waits, and nobody takes the client's silence for its own. A
    /// client that was awake asks again.
    pub(super) fn handle_port_down(&mut self, cx: &mut Cx<'_>) {
        match self.state {
            State::Awake => self.sleep_on(false, cx),
            State::Active => self.interrupt_downlink(cx),
            State::Asleep | State::Disconnected | State::Lost => {}
        }
        self.supervise(cx);
    }

    /// Its transport can send and receive again: all times begin anew.
    pub(super) fn handle_port_up(&mut self, cx: &mut Cx<'_>) {
        self.last_heard = cx.now;
        self.supervise(cx);
        if self.state == State::Active {
            self.reopen(cx);
        }
    }

    /// REGISTER from the client (§5.4.10): its TopicId field is not relevant.
    pub(super) fn handle_register(&mut self, register: &Register<'_>, cx: &mut Cx<'_>) {
        let (topic_id, code) = match TopicName::portable(register.topic_name) {
            Err(_) => (0, ReturnCode::NotSupported),
            Ok(name) if !self.may_tell_again(&name, cx) && cx.is_unstored() => (0, ReturnCode::Congestion),
            Ok(name) => match self.registry.id_of(&name, cx.scope(&self.id)) {
                Ok(id) => {
                    self.announce(id, cx);
                    (id, ReturnCode::Accepted)
                }
                Err(_) => {
                    cx.counters.topics_full += 1;
                    (0, ReturnCode::Congestion)
                }
            },
        };
        self.send(Packet::RegAck(TopicAck { topic_id, msg_id: register.msg_id, code }), cx);
        // It may have asked for a name that rests.
        self.advance(cx);
    }

    /// The client learns the id from the answer that is about to leave, if anything does.
    fn announce(&mut self, id: u16, cx: &Cx<'_>) {
        if !self.is_cut_off(cx.air) {
            self.registry.confirm(id);
        }
    }

    /// Whether to tell the client the id of this name changes nothing, and nothing has to be stored before.
    fn may_tell_again(&self, name: &TopicName, cx: &Cx<'_>) -> bool {
        self.registry.has_told(name) && !cx.journal.is_waiting(self.whose(), cx.journal.next())
    }

    /// SUBSCRIBE (§5.4.15).
    pub(super) fn handle_subscribe(&mut self, subscribe: &Subscribe<'_>, cx: &mut Cx<'_>) {
        let unstored = cx.counters.refused_unstored;
        if let Err(code) = self.try_subscribe(subscribe, cx) {
            if code == ReturnCode::Congestion && cx.counters.refused_unstored == unstored {
                cx.counters.subscriptions_full += 1;
            }
            self.refuse_subscribe(subscribe.msg_id, code, cx);
        }
        // It may have learnt a name that rests.
        self.advance(cx);
    }

    fn try_subscribe(&mut self, subscribe: &Subscribe<'_>, cx: &mut Cx<'_>) -> Result<(), ReturnCode> {
        let asked = match subscribe.qos {
            Qos::MinusOne => return Err(ReturnCode::NotSupported),
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        };
        let filter = self.filter(subscribe.topic, cx.predefined)?;
        if cx.is_unstored() {
            return Err(ReturnCode::Congestion);
        }
        let msg_id = subscribe.msg_id;
        if self.requests.iter().any(|request| request.msg_id == msg_id && request.filter == filter) {
            return Ok(());
        }
        let new = !self.subscriptions.contains_key(&filter);
        if (new && !self.has_room_for(&filter, cx.settings.sessions.max_subscriptions))
            || self.requests.len() >= REQUESTS_MAX
        {
            return Err(ReturnCode::Congestion);
        }
        let topic = self.topic_of(subscribe.topic, &filter, cx)?;
        let outcome = match cx.links.subscribe(self.key, &filter, asked, cx.now) {
            Ok(outcome) => outcome,
            Err(full) => {
                // Another request for the same name may be with the broker, and be granted with the same id.
                if !self.requests.iter().any(|request| request.filter == filter) {
                    self.withdraw(topic);
                }
                if full.is_final() {
                    cx.counters.subscriptions_refused += 1;
                    self.warn_untaken_filter(&filter, full);
                }
                return Err(code_of_full(full));
            }
        };
        let since = cx.links.since(self.key, &filter);
        match self.subscriptions.get_mut(&filter) {
            Some(before) => (before.topic, before.since) = (topic, since),
            None => {
                let new = Subscription { topic, qos: asked, granted: false, since, stored: None };
                self.subscriptions.insert(filter.clone(), new);
            }
        }
        match outcome {
            Subscribing::Granted(qos) => self.accept_subscribe(msg_id, &filter, topic, qos, cx),
            Subscribing::Asked(id) => {
                let (asked_at, answer_by) = (cx.now, cx.now + cx.settings.broker.ack_timeout);
                self.requests.push_back(Request { id, msg_id, filter, topic, asked, asked_at, answer_by });
                self.await_broker(cx);
            }
        }
        Ok(())
    }

    /// Says which filter the broker would not take, once for each reason.
    fn warn_untaken_filter(&mut self, filter: &TopicFilter, full: Full) {
        if self.untaken_as.replace(full) == Some(full) {
            debug!(client = %self.id, %filter, "subscription refused: {full}");
        } else {
            warn!(client = %self.id, %filter, "subscription refused: {full}");
        }
    }

    /// Whether one more subscription is within the limit, which is one of octets too.
    fn has_room_for(&self, filter: &TopicFilter, max: usize) -> bool {
        let octets: usize = self.subscriptions.keys().map(|filter| filter.as_str().len()).sum();
        self.subscriptions.len() < max && octets + filter.as_str().len() <= names_len_max(max)
    }

    /// The filter a client means, or the refusal it is told.
    fn filter(&self, topic: FilterRef<'_>, topics: &Predefined) -> Result<TopicFilter, ReturnCode> {
        let octets = match &topic {
            FilterRef::Name(name) => *name,
            FilterRef::Short(name) => name.as_slice(),
            FilterRef::Predefined(id) => {
                let name = topics.topic(*id, Some(&self.id)).ok_or(ReturnCode::InvalidTopicId)?;
                name.as_str().as_bytes()
            }
            FilterRef::Reserved(_) => return Err(ReturnCode::NotSupported),
        };
        TopicFilter::portable(octets).map_err(|_| ReturnCode::NotSupported)
    }

    /// How messages on the filter will be named: as the client named it; id 0 for a filter with wildcards (§6.9).
    fn topic_of(
        &mut self,
        named: FilterRef<'_>,
        filter: &TopicFilter,
        cx: &Cx<'_>,
    ) -> Result<TopicRef, ReturnCode> {
        Ok(match (named, filter.as_topic()) {
            (_, None) => TopicRef::Normal(0),
            (FilterRef::Predefined(id), _) => TopicRef::Predefined(id),
            (FilterRef::Short(name), _) => TopicRef::Short(name),
            (_, Some(name)) => {
                let id = self.registry.id_of(&name, cx.scope(&self.id));
                TopicRef::Normal(id.map_err(|_| ReturnCode::Congestion)?)
            }
        })
    }

    /// The broker answered a SUBSCRIBE.
    pub(super) fn handle_subscribed(&mut self, id: RequestId, result: Result<QoS, Refused>, cx: &mut Cx<'_>) {
        let at = self.requests.iter().position(|request| request.id == id);
        let Some(request) = at.and_then(|at| self.requests.remove(at)) else {
            // The client was told before that it holds, or has gone.
            cx.counters.subscriptions_refused += u64::from(result.is_err());
            return;
        };
        self.stop_awaiting_broker(cx);
        match result {
            Ok(qos) => self.accept_subscribe(request.msg_id, &request.filter, request.topic, qos, cx),
            Err(refused) => {
                let (client, filter) = (&self.id, &request.filter);
                if self.refused_as.replace(refused) == Some(refused) {
                    debug!(%client, %filter, "subscription {refused}");
                } else {
                    info!(%client, %filter, "subscription {refused}");
                }
                cx.counters.subscriptions_refused += 1;
                self.undo_subscribe(request, code_of(refused), cx);
            }
        }
        self.advance(cx);
    }

    /// The broker's time to answer is over: if it was away in that time the subscription holds and is issued when it is back;
    /// else the client may try again later.
    pub(super) fn expire_requests(&mut self, cx: &mut Cx<'_>) {
        while self.requests.front().is_some_and(|request| request.answer_by <= cx.now) {
            let Some(request) = self.requests.pop_front() else { return };
            if cx.links.hold(self.key, &request.filter, request.asked_at) {
                self.accept_subscribe(request.msg_id, &request.filter, request.topic, request.asked, cx);
            } else {
                cx.counters.subscriptions_full += 1;
                self.undo_subscribe(request, ReturnCode::Congestion, cx);
            }
        }
        self.advance(cx);
    }

    fn accept_subscribe(
        &mut self,
        msg_id: u16,
        filter: &TopicFilter,
        topic: TopicRef,
        qos: QoS,
        cx: &mut Cx<'_>,
    ) {
        if let Some(subscription) = self.subscriptions.get_mut(filter) {
            (subscription.granted, subscription.qos) = (true, qos);
            self.filter_changes.granted.push(filter.clone());
        }
        if let TopicRef::Normal(id) = topic {
            self.announce(id, cx);
        }
        let qos = match qos {
            QoS::AtMostOnce => Qos::AtMostOnce,
            QoS::AtLeastOnce => Qos::AtLeastOnce,
            QoS::ExactlyOnce => Qos::ExactlyOnce,
        };
        let code = ReturnCode::Accepted;
        self.send(Packet::SubAck(SubAck { qos, topic_id: topic.raw(), msg_id, code }), cx);
    }

    fn undo_subscribe(&mut self, request: Request, code: ReturnCode, cx: &mut Cx<'_>) {
        self.take_back(&request, cx);
        self.refuse_subscribe(request.msg_id, code, cx);
    }

    /// A subscription that was granted before, or is still being asked for, stays: the request may have been a late
    /// copy, and its answer may reach nobody.
    fn take_back(&mut self, request: &Request, cx: &mut Cx<'_>) {
        let granted =
            self.subscriptions.get(&request.filter).is_some_and(|subscription| subscription.granted);
        if granted || self.requests.iter().any(|other| other.filter == request.filter) {
            return;
        }
        self.end_subscription(&request.filter);
        cx.links.unsubscribe(self.key, &request.filter, false);
        self.withdraw(request.topic);
        self.drop_unsubscribed(cx);
    }

    /// Takes a subscription out; whether there was one.
    fn end_subscription(&mut self, filter: &TopicFilter) -> bool {
        let Some(subscription) = self.subscriptions.remove(filter) else { return false };
        if let Some(row) = subscription.stored {
            self.filter_changes.ended.push((filter.clone(), row));
        }
        true
    }

    /// Takes an id back that the client has not been told.
    fn withdraw(&mut self, topic: TopicRef) {
        if let TopicRef::Normal(id) = topic {
            self.registry.withdraw(id);
        }
    }

    /// The connection in which the answers were awaited is over: what was not granted in it will be asked for again.
    pub(super) fn drop_requests(&mut self, cx: &mut Cx<'_>) {
        while !self.requests.is_empty() {
            let Some(request) = self.requests.pop_front() else { return };
            self.take_back(&request, cx);
        }
    }

    fn refuse_subscribe(&self, msg_id: u16, code: ReturnCode, cx: &mut Cx<'_>) {
        self.send(Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id, code }), cx);
    }

    /// UNSUBSCRIBE (§5.4.17). UNSUBACK has no place for a refusal: it is always the answer.
    pub(super) fn handle_unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>, cx: &mut Cx<'_>) {
        if let Ok(filter) = self.filter(unsubscribe.topic, cx.predefined)
            && (self.end_subscription(&filter) || self.inherited)
        {
            self.requests.retain(|request| request.filter != filter);
            cx.links.unsubscribe(self.key, &filter, true);
            self.drop_unsubscribed(cx);
        }
        self.send(Packet::UnsubAck(MsgIdOnly { msg_id: unsubscribe.msg_id }), cx);
        self.advance(cx);
    }

    /// WILLTOPICUPD (§5.4.22): another topic for the Will; the empty one deletes the Will.
    pub(super) fn handle_will_topic_update(&mut self, update: &wire::WillTopic<'_>, cx: &mut Cx<'_>) {
        let topic = WillTopic::new(update);
        let mut code = ReturnCode::Accepted;
        if cx.is_unstored() {
            code = ReturnCode::Congestion;
        } else if update.topic.is_empty() {
            self.will = None;
        } else if topic.is_some() {
            self.set_will(Will { topic, ..self.will() });
        } else {
            code = ReturnCode::NotSupported;
            cx.counters.wills_refused += 1;
        }
        self.show_will(cx);
        self.send(Packet::WillTopicResp(Response { code }), cx);
    }

    /// WILLMSGUPD (§5.4.23): another message for the Will.
    pub(super) fn handle_will_msg_update(&mut self, update: &wire::WillMsg<'_>, cx: &mut Cx<'_>) {
        let mut code = ReturnCode::NotSupported;
        if cx.is_unstored() {
            code = ReturnCode::Congestion;
        } else if let Some(message) = will_message(update) {
            code = ReturnCode::Accepted;
            self.set_will(Will { message, ..self.will() });
            self.show_will(cx);
        } else {
            cx.counters.wills_refused += 1;
        }
        self.send(Packet::WillMsgResp(Response { code }), cx);
    }

    fn will(&self) -> Will {
        self.will.as_deref().cloned().unwrap_or_default()
    }

    /// From now on the client wants this said of it.
    pub(super) fn set_will(&mut self, will: Will) {
        self.will = Some(will).filter(|will| *will != Will::default()).map(Arc::new);
    }

    /// What is published when the client is lost, if there is a topic.
    pub(super) fn will_message(&self) -> Option<Message> {
        self.will.as_ref()?.message()
    }

    /// Whether something is published when the client is lost.
    pub(super) fn has_will(&self) -> bool {
        self.will.as_ref().is_some_and(|will| will.topic.is_some())
    }

    /// Tells the broker of a Will that it keeps (Interpretation: A-15).
    fn show_will(&self, cx: &mut Cx<'_>) {
        if cx.settings.broker.wills == Wills::Broker {
            cx.links.change_will(self.key, self.will_message());
        }
    }

    /// Publishes the Will, which stays for a session that lives on (§6.3, Interpretation: A-14).
    pub(super) fn publish_will(&mut self, cx: &mut Cx<'_>) {
        let Some(message) = self.will_message() else { return };
        if cx.links.publish_will(self.sender(), message, cx.now, cx.journal) {
            cx.counters.wills_published += 1;
        } else {
            cx.counters.wills_shed += 1;
        }
    }

    /// Going to sleep (§6.14): what is under way waits, and the broker does not wait for it.
    pub(super) fn fall_asleep(&mut self, sleep: Seconds, cx: &mut Cx<'_>) {
        (self.state, self.sleep) = (State::Asleep, sleep);
        self.interrupt_downlink(cx);
        self.supervise(cx);
    }

    /// PINGREQ of a sleeper (§6.14): it gets everything that waits, and PINGRESP when that is done. Asked again meanwhile, it
    /// gets again what it has not answered (Interpretation: R-135).
    pub(super) fn wake(&mut self, cx: &mut Cx<'_>) {
        if self.state == State::Awake {
            return self.repeat_exchange(cx);
        }
        self.state = State::Awake;
        self.supervise(cx);
        self.begin_drain(cx);
    }

    /// The end of being awake; PINGRESP says so, unless the client has stopped answering (Interpretation: R-141).
    pub(super) fn sleep_on(&mut self, answered: bool, cx: &mut Cx<'_>) {
        if answered {
            self.send(Packet::PingResp, cx);
            self.last_heard = cx.now;
        }
        self.fall_asleep(self.sleep, cx);
    }

    /// The connection ended; what the session is worth without it is decided by CleanSession.
    pub(super) fn leave(&mut self, state: State, cx: &mut Cx<'_>) {
        self.state = state;
        self.overdue = false;
        (self.just_connected, self.prompted) = (false, false);
        (self.told, self.took_leave) = (None, false);
        self.drop_requests(cx);
        for timer in
            [ClientTimer::Supervision, ClientTimer::Retry, ClientTimer::BrokerAnswer, ClientTimer::Grace]
        {
            cx.timers.cancel(&Timer::Client(self.key, timer));
        }
        self.interrupt_downlink(cx);
    }

    /// Forgets everything the session holds (§6.3).
    pub(super) fn clear(&mut self, cx: &mut Cx<'_>) {
        self.clear_downlink(cx);
        for (filter, subscription) in std::mem::take(&mut self.subscriptions).into_entries() {
            cx.links.unsubscribe(self.key, &filter, false);
            if let Some(row) = subscription.stored {
                self.filter_changes.ended.push((filter, row));
            }
        }
        self.requests = Rare::default();
        self.will = None;
        self.clear_uplink(cx);
        self.registry.clear();
        for timer in [ClientTimer::Retry, ClientTimer::BrokerAnswer, ClientTimer::Pause, ClientTimer::Rest] {
            cx.timers.cancel(&Timer::Client(self.key, timer));
        }
    }

    /// Sends to where the client was last heard.
    pub(super) fn send(&self, packet: Packet<'_>, cx: &mut Cx<'_>) {
        if let Some(peer) = &self.peer {
            let to = Addressee { whose: Some(self.whose()), peer, route: self.route };
            cx.air.send(to, packet, cx.counters);
        }
    }

    pub(super) fn set_timer(&self, timer: ClientTimer, at: Instant, cx: &mut Cx<'_>) {
        cx.timers.set(Timer::Client(self.key, timer), at);
    }

    /// The transport the client was last heard through; the first one for a client that is bound to none.
    pub(super) fn port<'a>(&self, settings: &'a Settings) -> &'a PortSettings {
        let index = self.peer.as_ref().map_or(0, |peer| usize::from(peer.port.0));
        &settings.ports[index]
    }

    pub(super) fn retry_interval(&self, settings: &Settings) -> Duration {
        self.port(settings).retry_interval
    }
}
