//! One client: its state, and what the parts of a session share.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::debug;

use super::ClientKey;
use super::air::Air;
use super::counters::Counters;
use super::downlink::Downlink;
use super::io::{Peer, PortSettings, Route, Settings};
use super::links::{Links, RequestId, Subscribing};
use super::outbox::Item;
use super::registry::{Registry, predefined};
use super::timer::{ClientTimer, Timer, Timers};
use super::uplink::Uplink;
use crate::mqtt::{Message, QoS, Refused};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::{
    FilterRef, MsgIdOnly, Packet, Qos, Register, Response, ReturnCode, SubAck, Subscribe, TopicAck, TopicRef,
    Unsubscribe,
};

/// SUBSCRIBEs of one client with the broker at a time. §6.9 allows one; a client that does not wait is served within
/// reason.
const REQUESTS_MAX: usize = 8;

/// Keep-alives up to this long have a tolerance of half, longer ones of a tenth (§7.2; exactly 60 s is not decided by
/// the text, Interpretation: R-080).
const GENEROUS_UP_TO: Duration = Duration::from_secs(60);

/// The state of a client that has a session (§6.14).
///
/// ```text
///              CONNECT
///   (none) ─────────────► Active ──── DISCONNECT ────► Disconnected
///                          ▲   │                          │
///                          │   └── not heard in time ─► Lost
///                          └────────── CONNECT ───────────┘
/// ```
///
/// With CleanSession 1 the session ends on the way to Disconnected or Lost, else when its life time is over (§6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Active,
    Disconnected,
    Lost,
}

/// What the client wants said of it when it is lost (§6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Will {
    pub(super) topic: TopicName,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) message: Bytes,
}

/// A subscription by how the client named it: that is how messages on it are named to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) topic: TopicRef,
}

/// A SUBSCRIBE that is with the broker.
#[derive(Debug)]
pub(super) struct Request {
    id: RequestId,
    msg_id: u16,
    filter: TopicFilter,
    topic: TopicRef,
    asked: QoS,
    pub(super) answer_by: Instant,
}

/// One client and all that is kept for it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) key: ClientKey,
    pub(super) id: ClientId,
    pub(super) state: State,
    /// CleanSession 1.
    pub(super) clean: bool,
    /// Zero: not supervised.
    pub(super) keep_alive: Duration,
    /// Where it is reached; `None` unless it is bound to a peer.
    pub(super) peer: Option<Peer>,
    pub(super) route: Route,
    pub(super) last_heard: Instant,
    /// The CONNECT it last sent and nothing since: the same octets again are a repetition (Interpretation: A-03).
    pub(super) connect: Option<Bytes>,
    /// The connection was set up with Will prompts and nothing came since.
    pub(super) prompted: bool,
    pub(super) will: Option<Will>,
    pub(super) subscriptions: BTreeMap<TopicFilter, Subscription>,
    pub(super) requests: VecDeque<Request>,
    pub(super) registry: Registry,
    pub(super) uplink: Uplink,
    pub(super) downlink: Downlink,
}

/// What a session needs of the core for one call.
pub(super) struct Cx<'a> {
    pub(super) now: Instant,
    pub(super) settings: &'a Settings,
    pub(super) air: &'a mut Air,
    pub(super) links: &'a mut Links,
    pub(super) timers: &'a mut Timers,
    pub(super) counters: &'a mut Counters,
    /// Octets in all outboxes together.
    pub(super) queued_octets: &'a mut usize,
}

impl Cx<'_> {
    /// The client is done with a message, one way or another.
    pub(super) fn settle(&mut self, item: &Item) {
        if let Some(delivery) = item.delivery {
            self.links.settle(delivery);
        }
    }
}

impl Session {
    pub(super) fn new(key: ClientKey, id: ClientId, now: Instant, rng: &mut fastrand::Rng) -> Self {
        Self {
            key,
            id,
            state: State::Disconnected,
            clean: true,
            keep_alive: Duration::ZERO,
            peer: None,
            route: Route::default(),
            last_heard: now,
            connect: None,
            prompted: false,
            will: None,
            subscriptions: BTreeMap::new(),
            requests: VecDeque::new(),
            registry: Registry::new(rng),
            uplink: Uplink::default(),
            downlink: Downlink::default(),
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.state == State::Active
    }

    /// The client was heard (§6.14: any message will do).
    pub(super) fn handle_heard(&mut self, route: Route, now: Instant) {
        self.route = route;
        self.last_heard = now;
    }

    /// When the client counts as lost, if nothing is heard of it (§7.2).
    pub(super) fn supervision_deadline(&self) -> Option<Instant> {
        let tolerance =
            if self.keep_alive <= GENEROUS_UP_TO { self.keep_alive / 2 } else { self.keep_alive / 10 };
        (!self.keep_alive.is_zero()).then(|| self.last_heard + self.keep_alive + tolerance)
    }

    /// REGISTER from the client (§5.4.10): its TopicId field is not relevant.
    pub(super) fn handle_register(&mut self, register: &Register<'_>, cx: &mut Cx<'_>) {
        let (topic_id, code) = match TopicName::new(register.topic_name) {
            Err(_) => (0, ReturnCode::NotSupported),
            Ok(name) => match self.registry.announce(&name, &self.id, cx.settings) {
                Ok(id) => (id, ReturnCode::Accepted),
                Err(_) => {
                    cx.counters.topics_full += 1;
                    (0, ReturnCode::Congestion)
                }
            },
        };
        self.send(Packet::RegAck(TopicAck { topic_id, msg_id: register.msg_id, code }), cx);
    }

    /// SUBSCRIBE (§5.4.15).
    pub(super) fn handle_subscribe(&mut self, subscribe: &Subscribe<'_>, cx: &mut Cx<'_>) {
        if let Err(code) = self.try_subscribe(subscribe, cx) {
            if code == ReturnCode::Congestion {
                cx.counters.subscriptions_full += 1;
            }
            self.refuse_subscribe(subscribe.msg_id, code, cx);
        }
    }

    fn try_subscribe(&mut self, subscribe: &Subscribe<'_>, cx: &mut Cx<'_>) -> Result<(), ReturnCode> {
        let asked = match subscribe.qos {
            Qos::MinusOne => return Err(ReturnCode::NotSupported),
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
            Qos::ExactlyOnce => QoS::ExactlyOnce,
        };
        let filter = self.filter(subscribe.topic, cx.settings)?;
        let msg_id = subscribe.msg_id;
        if self.requests.iter().any(|request| request.msg_id == msg_id && request.filter == filter) {
            return Ok(());
        }
        let new = !self.subscriptions.contains_key(&filter);
        if (new && self.subscriptions.len() >= cx.settings.sessions.max_subscriptions)
            || self.requests.len() >= REQUESTS_MAX
        {
            return Err(ReturnCode::Congestion);
        }
        let topic = self.topic_of(subscribe.topic, &filter, cx.settings)?;
        let outcome = cx.links.subscribe(cx.now, self.key, &filter, asked);
        let outcome = outcome.map_err(|_| ReturnCode::Congestion)?;
        self.subscriptions.insert(filter.clone(), Subscription { topic });
        match outcome {
            Subscribing::Granted(qos) => self.accept_subscribe(msg_id, topic, qos, cx),
            Subscribing::Asked(id) => {
                let answer_by = cx.now + cx.settings.broker.ack_timeout;
                self.requests.push_back(Request { id, msg_id, filter, topic, asked, answer_by });
                self.await_broker(cx);
            }
        }
        Ok(())
    }

    /// The filter a client means, or the refusal it is told.
    fn filter(&self, topic: FilterRef<'_>, settings: &Settings) -> Result<TopicFilter, ReturnCode> {
        let octets = match &topic {
            FilterRef::Name(name) => *name,
            FilterRef::Short(name) => name.as_slice(),
            FilterRef::Predefined(id) => {
                let name = predefined(*id, Some(&self.id), settings).ok_or(ReturnCode::InvalidTopicId)?;
                name.as_str().as_bytes()
            }
            FilterRef::Reserved(_) => return Err(ReturnCode::NotSupported),
        };
        // A shared subscription is the broker's to divide, and on a shared link there is nobody to divide among.
        if octets.starts_with(b"$share/") {
            return Err(ReturnCode::NotSupported);
        }
        TopicFilter::new(octets).map_err(|_| ReturnCode::NotSupported)
    }

    /// How messages on the filter will be named: as the client named it; id 0 for a filter with wildcards (§6.9).
    fn topic_of(
        &mut self,
        named: FilterRef<'_>,
        filter: &TopicFilter,
        settings: &Settings,
    ) -> Result<TopicRef, ReturnCode> {
        Ok(match (named, filter.as_topic()) {
            (_, None) => TopicRef::Normal(0),
            (FilterRef::Predefined(id), _) => TopicRef::Predefined(id),
            (FilterRef::Short(name), _) => TopicRef::Short(name),
            (_, Some(name)) => {
                let id = self.registry.id_of(&name, &self.id, settings);
                TopicRef::Normal(id.map_err(|_| ReturnCode::Congestion)?)
            }
        })
    }

    /// The broker answered a SUBSCRIBE.
    pub(super) fn handle_subscribed(&mut self, id: RequestId, result: Result<QoS, Refused>, cx: &mut Cx<'_>) {
        let Some(at) = self.requests.iter().position(|request| request.id == id) else { return };
        let Some(request) = self.requests.remove(at) else { return };
        match result {
            Ok(qos) => self.accept_subscribe(request.msg_id, request.topic, qos, cx),
            Err(refused) => {
                debug!(filter = %request.filter, %refused, "subscription refused");
                cx.counters.subscriptions_refused += 1;
                self.undo_subscribe(request, ReturnCode::NotSupported, cx);
            }
        }
        self.advance(cx);
    }

    /// The broker has had its time to answer: while it is away the subscription holds and is issued when it comes back;
    /// else the client may try again later.
    pub(super) fn expire_requests(&mut self, cx: &mut Cx<'_>) {
        while self.requests.front().is_some_and(|request| request.answer_by <= cx.now) {
            let Some(request) = self.requests.pop_front() else { return };
            if cx.links.is_up() {
                cx.counters.subscriptions_full += 1;
                self.undo_subscribe(request, ReturnCode::Congestion, cx);
            } else {
                self.accept_subscribe(request.msg_id, request.topic, request.asked, cx);
            }
        }
        self.advance(cx);
    }

    fn accept_subscribe(&mut self, msg_id: u16, topic: TopicRef, qos: QoS, cx: &mut Cx<'_>) {
        if let TopicRef::Normal(id) = topic {
            self.registry.confirm(id);
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
        self.subscriptions.remove(&request.filter);
        cx.links.unsubscribe(self.key, &request.filter);
        if let TopicRef::Normal(id) = request.topic {
            self.registry.withdraw(id);
        }
        self.drop_unsubscribed(cx);
        self.refuse_subscribe(request.msg_id, code, cx);
    }

    fn refuse_subscribe(&self, msg_id: u16, code: ReturnCode, cx: &mut Cx<'_>) {
        self.send(Packet::SubAck(SubAck { qos: Qos::AtMostOnce, topic_id: 0, msg_id, code }), cx);
    }

    /// UNSUBSCRIBE (§5.4.17). UNSUBACK has no place for a refusal: it is always the answer.
    pub(super) fn handle_unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>, cx: &mut Cx<'_>) {
        if let Ok(filter) = self.filter(unsubscribe.topic, cx.settings)
            && self.subscriptions.remove(&filter).is_some()
        {
            self.requests.retain(|request| request.filter != filter);
            cx.links.unsubscribe(self.key, &filter);
            self.drop_unsubscribed(cx);
        }
        self.send(Packet::UnsubAck(MsgIdOnly { msg_id: unsubscribe.msg_id }), cx);
        self.advance(cx);
    }

    /// WILLTOPICUPD and WILLMSGUPD (§6.4) are refused, with the answer that keeps the client from asking for ever.
    pub(super) fn refuse_will_update(&self, update: &Packet<'_>, cx: &mut Cx<'_>) {
        let response = Response { code: ReturnCode::NotSupported };
        match update {
            Packet::WillTopicUpd(_) => self.send(Packet::WillTopicResp(response), cx),
            _ => self.send(Packet::WillMsgResp(response), cx),
        }
    }

    /// Publishes the Will, which stays for a session that lives on (§6.3, Interpretation: A-14).
    pub(super) fn publish_will(&mut self, cx: &mut Cx<'_>) {
        let Some(Will { topic, qos, retain, message }) = self.will.clone() else { return };
        if cx.links.publish_will(Message { topic, payload: message, qos, retain }) {
            cx.counters.wills_published += 1;
        } else {
            cx.counters.wills_shed += 1;
        }
    }

    /// The connection ended; what the session is worth without it is decided by CleanSession.
    pub(super) fn leave(&mut self, state: State, cx: &mut Cx<'_>) {
        self.state = state;
        self.connect = None;
        self.prompted = false;
        self.requests.clear();
        for timer in [ClientTimer::Supervision, ClientTimer::Retry, ClientTimer::BrokerAnswer] {
            cx.timers.cancel(&Timer::Client(self.key, timer));
        }
        self.freeze_downlink(cx);
    }

    /// Forgets everything the session holds (§6.3).
    pub(super) fn clear(&mut self, cx: &mut Cx<'_>) {
        self.clear_downlink(cx);
        for filter in std::mem::take(&mut self.subscriptions).into_keys() {
            cx.links.unsubscribe(self.key, &filter);
        }
        self.requests.clear();
        self.will = None;
        self.uplink = Uplink::default();
        self.registry.clear();
        for timer in [ClientTimer::Retry, ClientTimer::BrokerAnswer, ClientTimer::Pause] {
            cx.timers.cancel(&Timer::Client(self.key, timer));
        }
    }

    /// Sends to where the client was last heard.
    pub(super) fn send(&self, packet: Packet<'_>, cx: &mut Cx<'_>) {
        if let Some(peer) = &self.peer {
            cx.air.send(peer, self.route, packet, cx.counters);
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
