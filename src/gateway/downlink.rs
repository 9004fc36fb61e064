//! Broker to client (§6.10): REGISTER where the client does not know the topic id, then PUBLISH, one exchange at a time.
//!
//! ```text
//! G> REGISTER   C> REGACK                             if the id is unknown
//! G> PUBLISH                                          QoS 0
//! G> PUBLISH    C> PUBACK                             QoS 1
//! G> PUBLISH    C> PUBREC    G> PUBREL    C> PUBCOMP  QoS 2
//! ```
//!
//! A message is settled, and the broker may be told, when the client has it (PUBACK, PUBREC), refuses it, or never
//! answers.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::air::{Addressee, Air};
use super::exchange::{Exchange, Repair, Request, publish};
use super::few::Rare;
use super::io::Settings;
use super::journal::Whose;
use super::links::Links;
use super::outbox::{Item, Joined, Outbox};
use super::record::{ClientKey, Lsn, Row, WaitingRow};
use super::registry::Naming;
use super::session::{Cx, Session, State};
use super::timer::{ClientTimer, Timer, Timers};
use crate::mqtt::{Message, QoS};
use crate::wire::{Encapsulation, Frame, MsgIdOnly, Packet, ReturnCode, TopicAck, TopicRef};

/// T_WAIT (§7.2): how long a client that said `congestion` is left alone, and a name that it has not learnt in all rounds.
const T_WAIT: Duration = Duration::from_secs(330);

/// How often a message of QoS 1 or 2 goes through all its repetitions, or those of the REGISTER before it, while the client is
/// heard but does not answer: a radio that loses a tenth of all frames takes one in a thousand from the first round, and one in
/// a thousand million from three. A client that does not want it must not block the others for ever (Interpretation: R-113).
pub(super) const ROUNDS: u8 = 3;

/// Messages that may join a drain under way, beyond what waited when the client woke: a source faster than the radio would
/// keep it awake for ever (Interpretation: R-143).
const DRAIN_SURPLUS: u32 = 16;

/// Topics of one client that were told to be too large, so that each is told once. A client of a narrow transport that
/// subscribes to more of them hears of the first again.
const TOLD_OVERSIZE_MAX: usize = 16;

/// Messages for one client and the exchange under way.
#[derive(Debug, Default)]
pub(super) struct Downlink {
    outbox: Outbox,
    /// Seldom there.
    exchange: Option<Box<Exchange>>,
    /// The client said `congestion`: nothing more until then.
    paused: Option<Pause>,
    last_msg_id: u16,
    /// Messages that the client still gets while it is awake.
    drain: u32,
    /// Digests of topics, the latest last.
    told_oversize: Rare<VecDeque<u64>>,
}

/// What a client said `congestion` to, for T_WAIT, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// A PUBLISH: it gets none.
    Everything,
    /// A REGISTER: it gets what it knows the topic of.
    Registrations,
    /// Nothing, to a REGISTER and all repetitions: as above, until it is heard.
    Unheard,
}

/// Whether a refusal may be a copy of the one before it, which had the same MsgId: if it is meant, the repetition has it again.
fn is_late_refusal(exchange: &Exchange, item: &Item, ack: TopicAck) -> bool {
    let repaired = matches!(exchange.request, Request::Publish { repair: Repair::Tried, .. });
    let same = repaired && item.sent_as == Some(ack.msg_id);
    same && ack.code == ReturnCode::InvalidTopicId && exchange.repeated == 0
}

/// What a client that cannot be reached is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It answers, or may.
    There,
    /// It was not heard since a PUBLISH or PUBREL left for the first time, for all repetitions (Interpretation: R-113). Not
    /// for a REGISTER: there are clients that know no such message from a gateway (Interpretation: A-45).
    Lost,
}

impl Downlink {
    fn next_msg_id(&mut self) -> u16 {
        self.last_msg_id = self.last_msg_id.checked_add(1).unwrap_or(1);
        self.last_msg_id
    }

    /// Messages that the client has yet to take.
    pub(super) fn waiting(&self) -> usize {
        let open = self.exchange.as_ref().map(|exchange| &exchange.request);
        let under_way = matches!(open, Some(Request::Register { .. } | Request::Publish { .. }));
        self.outbox.len() + usize::from(under_way)
    }

    /// Whether the client has yet to finish the last message of QoS 2 that it has.
    pub(super) fn is_releasing(&self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| matches!(exchange.request, Request::Release))
    }

    /// Takes the exchange if `matches`.
    fn take_exchange(&mut self, matches: impl Fn(&Exchange) -> bool) -> Option<Exchange> {
        self.exchange.take_if(|exchange| matches(exchange)).map(|exchange| *exchange)
    }
}

impl Session {
    /// A message for this client from the broker; `exactly` if the broker is told of all its recipients at once, as QoS 2 wants.
    pub(super) fn deliver(&mut self, mut item: Item, exactly: bool, cx: &mut Cx<'_>) {
        if !self.wants(&item, cx.links) {
            // On a link of its own it may cross the client's UNSUBSCRIBE (Interpretation: A-44).
            cx.counters.downlink_ended += 1;
            cx.settle(&self.id, &item);
            return;
        }
        let at_once = !self.waits(cx.air) && self.downlink.outbox.is_empty();
        if !at_once && !self.may_wait(&item, cx.settings) {
            cx.counters.downlink_offline += 1;
            cx.settle(&self.id, &item);
            return;
        }
        if exactly || !self.broker_waits(&item, cx) {
            self.keep(&mut item, cx);
        }
        let Joined { shed } = self.downlink.outbox.push(
            item,
            at_once,
            cx.now,
            &cx.settings.sessions,
            cx.queued_octets,
            cx.counters,
        );
        for item in shed {
            cx.settle(&self.id, &item);
        }
        self.advance(cx);
    }

    /// Whether the broker is kept waiting for what this client has yet to take. Not while it is asleep, away, cut off or congested,
    /// nor while the topic rests or once it has left a request unanswered: the broker's window is shared by all (design section 3). On a link of the
    /// client's own nobody else waits (Interpretation: R-145).
    fn broker_waits(&self, item: &Item, cx: &Cx<'_>) -> bool {
        if cx.links.is_dedicated(self.key) {
            return true;
        }
        let prompt = |exchange: &Exchange| exchange.repeated == 0;
        self.state == State::Active
            && !self.is_cut_off(cx.air)
            && self.downlink.paused.is_none()
            && !self.registry.is_resting(&item.message.topic)
            && self.downlink.exchange.as_deref().is_none_or(prompt)
    }

    /// Tells the broker that what waits behind the open exchange is taken care of.
    fn release_broker(&mut self, cx: &mut Cx<'_>) {
        if cx.links.is_dedicated(self.key) {
            return;
        }
        let mut outbox = std::mem::take(&mut self.downlink.outbox);
        outbox.iter_mut().for_each(|item| self.keep(item, cx));
        self.downlink.outbox = outbox;
    }

    /// Keeps a message for the client: the broker is done with it as soon as that is durable. QoS 0 is not worth it.
    fn keep(&self, item: &mut Item, cx: &mut Cx<'_>) {
        if item.qos != QoS::AtMostOnce && item.kept.is_none() {
            cx.journal.keep_message(item.id, &item.message);
            // Not when it is put down but when it came: what came later may have been put down before.
            let number = item.id.0;
            item.kept = NonZeroU64::new(number);
            if item.qos == QoS::ExactlyOnce {
                item.stored_as = (item.sent_as, item.sent_on);
            }
            cx.journal.insert(self.whose(), self.waiting_row(number, item, cx.now));
        }
        if let Some(delivery) = item.delivery.take() {
            cx.journal.settle_when_durable(delivery);
        }
    }

    fn waiting_row(&self, number: u64, item: &Item, now: Instant) -> Row {
        let (sent_as, sent_on) = item.stored_as;
        let row = WaitingRow {
            message: item.id,
            qos: item.qos,
            sent_as,
            sent_on,
            expiry: item.expires.as_deref().map(|expires| expires.saturating_duration_since(now)),
        };
        Row::Waiting(self.id.clone(), number, row)
    }

    /// A message that was kept; those of one client in the order of their numbers.
    pub(super) fn restore_waiting(
        &mut self,
        number: u64,
        row: WaitingRow,
        message: Arc<Message>,
        now: Instant,
        queued_octets: &mut usize,
    ) {
        let item = Item {
            message,
            id: row.message,
            kept: NonZeroU64::new(number),
            qos: row.qos,
            delivery: None,
            sent_as: row.sent_as,
            sent_on: row.sent_on,
            stored_as: (row.sent_as, row.sent_on),
            offered: None,
            rounds: 0,
            expires: row.expiry.and_then(|expiry| now.checked_add(expiry)).map(Box::new),
        };
        self.downlink.outbox.push_back(item, queued_octets);
    }

    /// The client has a message of QoS 2, and the end of that was still to come.
    pub(super) fn restore_releasing(&mut self, msg_id: u16, now: Instant) {
        let request = Request::Release;
        let after = Lsn::default();
        self.downlink.exchange =
            Some(Box::new(Exchange { msg_id, request, again: true, repeated: 0, since: now, after }));
    }

    /// Goes on with what a restart has interrupted; MsgIds go on somewhere else.
    pub(super) fn resume_restored(&mut self, msg_id: u16, at: Instant, cx: &mut Cx<'_>) {
        self.downlink.last_msg_id = msg_id;
        if self.state != State::Active {
            return;
        }
        if self.downlink.exchange.is_some() {
            self.set_timer(ClientTimer::Retry, at, cx);
        } else if self.downlink.waiting() > 0 {
            self.downlink.paused = Some(Pause::Everything);
            self.set_timer(ClientTimer::Pause, at, cx);
        }
    }

    /// Whether what waits has to wait on. SUBACK comes before what the subscription brings, also where the broker sends that
    /// first (§6.10): it stays behind while a SUBSCRIBE is with the broker.
    fn waits(&self, air: &Air) -> bool {
        !self.is_receiving()
            || self.is_cut_off(air)
            || self.downlink.exchange.is_some()
            || self.downlink.paused == Some(Pause::Everything)
            || !self.requests.is_empty()
    }

    /// Whether its transport cannot send and receive.
    pub(super) fn is_cut_off(&self, air: &Air) -> bool {
        self.peer.as_ref().is_some_and(|peer| air.is_down(peer))
    }

    /// Whether a message is kept until the client can take it. One that is Active has only its turn to wait for.
    fn may_wait(&self, item: &Item, settings: &Settings) -> bool {
        match self.state {
            State::Active => true,
            State::Asleep | State::Awake => item.qos != QoS::AtMostOnce || settings.sessions.queue.qos0,
            State::Disconnected | State::Lost => item.qos != QoS::AtMostOnce && !self.clean,
        }
    }

    /// Sends what can be sent: until an exchange is open, or nothing is left.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>) {
        while !self.waits(cx.air) {
            if self.state == State::Awake && self.downlink.drain == 0 {
                break;
            }
            let Some(item) = self.next_item(cx) else { break };
            if item.has_expired(cx.now) {
                cx.counters.downlink_expired += 1;
                cx.settle(&self.id, &item);
                continue;
            }
            if self.state == State::Awake {
                self.downlink.drain -= 1;
            }
            let naming = self.name(&item, cx);
            self.send_named(item, naming, Repair::Possible, cx);
        }
        // PINGRESP comes when every exchange of the drain is over, and not before (§6.14).
        let finished = self.downlink.exchange.is_none() && self.requests.is_empty();
        if self.state == State::Awake && finished {
            self.sleep_on(true, cx);
        }
    }

    /// The message that is next: while registrations pause, the first whose topic the client knows, and else the first whose
    /// topic does not rest. QoS 0 does not wait for that.
    fn next_item(&mut self, cx: &mut Cx<'_>) -> Option<Item> {
        let pausing = matches!(self.downlink.paused, Some(Pause::Registrations | Pause::Unheard));
        if !pausing && !self.registry.has_rests() {
            return self.downlink.outbox.pop(cx.queued_octets);
        }
        let mut outbox = std::mem::take(&mut self.downlink.outbox);
        let mut total = *cx.queued_octets;
        let item = outbox.take_first(&mut total, |item| {
            let topic = &item.message.topic;
            if !pausing && (item.qos == QoS::AtMostOnce || !self.registry.is_resting(topic)) {
                return true;
            }
            matches!(self.name(item, cx), Naming::Known(_))
        });
        *cx.queued_octets = total;
        self.downlink.outbox = outbox;
        item
    }

    /// How the topic of a message is named to the client: as it was, if it was sent before.
    fn name(&mut self, item: &Item, cx: &Cx<'_>) -> Naming {
        let topic = &item.message.topic;
        match item.sent_on {
            Some(TopicRef::Normal(_)) if self.registry.is_resting(topic) => return Naming::Resting,
            Some(TopicRef::Normal(_)) => return self.registry.register(topic, cx.scope(&self.id)),
            Some(sent_on) => return Naming::Known(sent_on),
            None => {}
        }
        let subscribed = self.subscriptions.get(topic.as_str()).map(|subscription| subscription.topic);
        self.registry.name(topic, subscribed, cx.scope(&self.id))
    }

    fn send_named(&mut self, item: Item, naming: Naming, repair: Repair, cx: &mut Cx<'_>) {
        match naming {
            Naming::Known(topic) => self.send_publish(item, topic, repair, cx),
            Naming::Register(topic_id) => self.open(Request::Register { topic_id, item, repair }, None, cx),
            Naming::Declined | Naming::Resting => {
                cx.counters.downlink_refused += 1;
                cx.settle(&self.id, &item);
            }
            Naming::Exhausted => {
                cx.counters.downlink_no_topic_id += 1;
                cx.settle(&self.id, &item);
            }
        }
    }

    fn send_publish(&mut self, item: Item, topic: TopicRef, repair: Repair, cx: &mut Cx<'_>) {
        if item.qos == QoS::AtMostOnce {
            if self.send_within_mtu(publish(&item, topic, 0, false), cx) {
                cx.counters.downlink_delivered += 1;
            } else {
                self.drop_oversize(&item, publish(&item, topic, 0, false), cx);
            }
            cx.settle(&self.id, &item);
            return;
        }
        let sent_as = item.sent_as;
        self.open(Request::Publish { topic, item, repair }, sent_as, cx);
    }

    /// Sends a request for the first time, or again under the MsgId it had, and waits for its answer.
    fn open(&mut self, mut request: Request, sent_as: Option<u16>, cx: &mut Cx<'_>) {
        if let Request::Register { item, .. } = &mut request {
            item.offered.get_or_insert_with(|| Box::new(cx.now));
        }
        let msg_id = sent_as.unwrap_or_else(|| self.downlink.next_msg_id());
        // What the client refused for its topic id is no repetition of what it may have, unless a round has passed since.
        let refused =
            matches!(&request, Request::Publish { repair: Repair::Tried, item, .. } if item.rounds == 0);
        if !self.send_within_mtu(request.packet(msg_id, sent_as.is_some() && !refused), cx) {
            if let Request::Register { item, .. } | Request::Publish { item, .. } = &request {
                self.drop_oversize(item, request.packet(msg_id, false), cx);
                cx.settle(&self.id, item);
            }
            return;
        }
        let again = sent_as.is_some();
        self.put_down_sending(msg_id, &mut request, cx);
        let (since, after) = (cx.now, cx.journal.next());
        let exchange = Exchange { msg_id, request, again, repeated: 0, since, after };
        self.downlink.exchange = Some(Box::new(exchange));
        // To a sleeper nothing is repeated: it was an answer (Interpretation: R-142).
        if self.is_receiving() {
            self.set_timer(ClientTimer::Retry, cx.now + self.retry_interval(cx.settings), cx);
        }
    }

    /// A message of QoS 2 leaves under this MsgId and on this topic, and is to be the same for the client after a restart.
    fn put_down_sending(&self, msg_id: u16, request: &mut Request, cx: &mut Cx<'_>) {
        if let Request::Publish { topic, item, .. } = request
            && item.qos == QoS::ExactlyOnce
            && let Some(number) = item.kept
        {
            let sending = (Some(msg_id), Some(*topic));
            if std::mem::replace(&mut item.stored_as, sending) != sending {
                cx.journal.update(self.whose(), self.waiting_row(number.get(), item, cx.now));
            }
        }
    }

    /// The client has the message (PUBREC), and is told that the gateway knows (PUBREL).
    fn release(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        cx.journal.insert(self.whose(), Row::Releasing(self.id.clone(), msg_id));
        self.open(Request::Release, Some(msg_id), cx);
    }

    /// The client knows it too, or cannot be asked.
    fn end_release(&self, msg_id: u16, cx: &mut Cx<'_>) {
        cx.journal.delete_in_time(self.key_of(ClientKey::Releasing(msg_id)));
    }

    fn send_within_mtu(&self, packet: Packet<'_>, cx: &mut Cx<'_>) -> bool {
        let Some(peer) = &self.peer else { return false };
        let mtu = self.port(cx.settings).mtu;
        let to = Addressee { whose: Some(self.whose()), peer, route: self.route };
        cx.air.send_within(mtu, 0, to, packet, cx.counters)
    }

    /// What left when its transport took more cannot be repeated, and is no reason to take the client for lost.
    fn drop_outgrown(&mut self, exchange: &Exchange, cx: &mut Cx<'_>) {
        match &exchange.request {
            Request::Register { item, .. } | Request::Publish { item, .. } => {
                self.drop_oversize(item, exchange.request.packet(exchange.msg_id, true), cx);
                cx.settle(&self.id, item);
            }
            Request::Release => self.end_release(exchange.msg_id, cx),
        }
        self.advance(cx);
    }

    /// Says once for each topic that messages on it do not fit (§6.10, Interpretation: A-42).
    fn drop_oversize(&mut self, item: &Item, packet: Packet<'_>, cx: &mut Cx<'_>) {
        cx.counters.downlink_oversize += 1;
        let mut hasher = DefaultHasher::new();
        item.message.topic.hash(&mut hasher);
        let topic = hasher.finish();
        if self.downlink.told_oversize.contains(&topic) {
            return;
        }
        if self.downlink.told_oversize.len() >= TOLD_OVERSIZE_MAX {
            self.downlink.told_oversize.pop_front();
        }
        self.downlink.told_oversize.push_back(topic);
        let port = self.port(cx.settings);
        let octets = Frame { encapsulation: self.encapsulation(), packet }.encoded_len();
        let (client, topic) = (&self.id, &item.message.topic);
        warn!(%client, %topic, octets, mtu = port.mtu, port = %port.name, "message dropped: longer than the transport can send");
    }

    fn encapsulation(&self) -> Option<Encapsulation<'_>> {
        let node = self.peer.as_ref().and_then(|peer| peer.node.as_ref());
        node.map(|node| Encapsulation { radius: 0, node_id: &node.0 })
    }

    /// REGACK (§5.4.11); matched by both ids, else it is not for what is open.
    pub(super) fn handle_regack(&mut self, ack: TopicAck, cx: &mut Cx<'_>) {
        let open = self.downlink.take_exchange(|exchange| {
            exchange.msg_id == ack.msg_id
                && matches!(exchange.request, Request::Register { topic_id, .. } if topic_id == ack.topic_id)
        });
        let Some(Exchange { request: Request::Register { topic_id, item, repair }, .. }) = open else {
            return;
        };
        match ack.code {
            ReturnCode::Accepted => {
                self.registry.confirm(topic_id);
                self.send_registered(item, topic_id, repair, cx);
            }
            ReturnCode::Congestion => self.pause(Pause::Registrations, item, cx),
            // The rejection counts as an unsubscription from this name (§6.10).
            ReturnCode::InvalidTopicId | ReturnCode::NotSupported | ReturnCode::Reserved(_) => {
                self.registry.reject(topic_id);
                cx.counters.downlink_refused += 1;
                cx.settle(&self.id, &item);
            }
        }
        self.advance(cx);
    }

    /// The client knows the id; it may have unsubscribed meanwhile.
    fn send_registered(&mut self, item: Item, topic_id: u16, repair: Repair, cx: &mut Cx<'_>) {
        if self.wants(&item, cx.links) {
            let item = Item { rounds: 0, ..item };
            self.send_publish(item, TopicRef::Normal(topic_id), repair, cx);
        } else {
            cx.counters.downlink_ended += 1;
            cx.settle(&self.id, &item);
        }
    }

    /// PUBACK (§5.4.13): of QoS 1, and the refusal of any QoS.
    pub(super) fn handle_puback(&mut self, ack: TopicAck, cx: &mut Cx<'_>) {
        let open = self.downlink.take_exchange(|exchange| {
            exchange.msg_id == ack.msg_id
                && matches!(&exchange.request, Request::Publish { topic, item, .. }
                    if topic.raw() == ack.topic_id
                        && (item.qos == QoS::AtLeastOnce || ack.code != ReturnCode::Accepted)
                        && !is_late_refusal(exchange, item, ack))
        });
        let Some(Exchange { request: Request::Publish { topic, item, repair }, again, repeated, .. }) = open
        else {
            return self.handle_late_puback(ack, cx);
        };
        let dup = again || repeated > 0;
        match ack.code {
            ReturnCode::Accepted => {
                cx.counters.downlink_delivered += 1;
                cx.settle(&self.id, &item);
            }
            ReturnCode::Congestion => self.pause(Pause::Everything, item, cx),
            ReturnCode::InvalidTopicId if repair == Repair::Possible => {
                self.repair(ack.msg_id, topic, item, cx);
            }
            // It may be DUP that it does not know; then it has not had the message (Interpretation: A-45).
            ReturnCode::NotSupported if dup && item.qos == QoS::AtLeastOnce && repair == Repair::Possible => {
                self.send_publish(Item { sent_as: None, sent_on: None, ..item }, topic, Repair::Tried, cx);
            }
            code => {
                if let (ReturnCode::InvalidTopicId, TopicRef::Normal(id)) = (code, topic) {
                    self.registry.unconfirm(id);
                }
                cx.counters.downlink_refused += 1;
                cx.settle(&self.id, &item);
            }
        }
        self.advance(cx);
    }

    /// PUBACK for what is not open: for QoS 0 (Interpretation: A-07), or for a message that is to be sent again, because the client
    /// fell asleep or connected again meanwhile.
    fn handle_late_puback(&mut self, ack: TopicAck, cx: &mut Cx<'_>) {
        let ends = !matches!(ack.code, ReturnCode::Congestion | ReturnCode::InvalidTopicId);
        let accepted = ack.code == ReturnCode::Accepted;
        let sent = |item: &Item| !accepted || item.qos == QoS::AtLeastOnce;
        let registering = |exchange: &Exchange| {
            matches!(&exchange.request, Request::Register { topic_id, item, .. }
                if *topic_id == ack.topic_id && item.sent_as == Some(ack.msg_id) && sent(item))
        };
        if ends
            && let Some(Exchange { request: Request::Register { item, .. }, .. }) =
                self.downlink.take_exchange(registering)
        {
            self.settle_late(&item, accepted, cx);
            self.advance(cx);
        } else if ends && let Some(item) = self.take_sent(ack.msg_id, Some(ack.topic_id), sent, cx) {
            self.settle_late(&item, accepted, cx);
        } else if ack.msg_id == 0 && ack.code == ReturnCode::InvalidTopicId {
            self.registry.unconfirm(ack.topic_id);
        }
    }

    fn settle_late(&self, item: &Item, accepted: bool, cx: &mut Cx<'_>) {
        let counter =
            if accepted { &mut cx.counters.downlink_delivered } else { &mut cx.counters.downlink_refused };
        *counter += 1;
        cx.settle(&self.id, item);
    }

    /// Takes out the message that was sent under this MsgId, and on this topic id, and waits to be sent again.
    fn take_sent(
        &mut self,
        msg_id: u16,
        topic_id: Option<u16>,
        wanted: impl Fn(&Item) -> bool,
        cx: &mut Cx<'_>,
    ) -> Option<Item> {
        let mut outbox = std::mem::take(&mut self.downlink.outbox);
        let mut total = *cx.queued_octets;
        let item = outbox.take_first(&mut total, |item| {
            item.sent_as == Some(msg_id)
                && wanted(item)
                && topic_id.is_none_or(|id| match item.sent_on {
                    Some(sent_on) => sent_on.raw() == id,
                    None => matches!(self.name(item, cx), Naming::Known(topic) if topic.raw() == id),
                })
        });
        *cx.queued_octets = total;
        self.downlink.outbox = outbox;
        item
    }

    /// The client does not know the topic id: it is registered again, once for each message (§6.10). What must come exactly
    /// once keeps its MsgId: a copy that was on its way may find the client wiser.
    fn repair(&mut self, msg_id: u16, topic: TopicRef, item: Item, cx: &mut Cx<'_>) {
        if let TopicRef::Normal(id) = topic {
            self.registry.unconfirm(id);
        }
        let sent_as = (item.qos == QoS::ExactlyOnce).then_some(msg_id);
        let item = Item { sent_as, sent_on: None, rounds: 0, ..item };
        let naming = self.registry.register(&item.message.topic, cx.scope(&self.id));
        self.send_named(item, naming, Repair::Tried, cx);
    }

    /// The client is congested or silent: the message goes back, and it is left alone until T_WAIT is over.
    fn pause(&mut self, pause: Pause, item: Item, cx: &mut Cx<'_>) {
        // `congestion` was an answer.
        let rounds = if pause == Pause::Unheard { item.rounds } else { 0 };
        self.downlink.outbox.push_front(Item { rounds, ..item }, cx.queued_octets);
        self.downlink.paused = Some(pause);
        self.release_broker(cx);
        self.set_timer(ClientTimer::Pause, cx.now + T_WAIT, cx);
    }

    /// The client was heard: what it did not answer it may answer now.
    pub(super) fn end_silence(&self, now: Instant, timers: &mut Timers) {
        if self.downlink.paused == Some(Pause::Unheard) {
            timers.set(Timer::Client(self.key, ClientTimer::Pause), now);
        }
    }

    pub(super) fn handle_pause_over(&mut self, cx: &mut Cx<'_>) {
        self.downlink.paused = None;
        self.advance(cx);
    }

    /// The client is there and did not answer for a name: that rests for as long as it was offered, and others have their turn.
    /// What may not be lost waits for it and is given up after the last round, and then the name rests for T_WAIT; QoS 0 does
    /// not wait (Interpretation: R-113).
    fn rest(&mut self, topic_id: u16, item: Item, cx: &mut Cx<'_>) {
        let port = self.port(cx.settings);
        let round = port.retry_interval.saturating_mul(port.retry_limit.saturating_add(1));
        let must_arrive = |item: &Item| item.qos != QoS::AtMostOnce;
        let waits = must_arrive(&item) && item.has_rounds_left();
        let follows = |other: &Item| must_arrive(other) && other.message.topic == item.message.topic;
        let is_awaited = waits || (!must_arrive(&item) && self.downlink.outbox.iter().any(follows));
        self.registry.rest(topic_id, cx.now + if is_awaited { round } else { T_WAIT });
        if !self.wants(&item, cx.links) {
            cx.counters.downlink_ended += 1;
            cx.settle(&self.id, &item);
        } else if waits {
            let item = Item { rounds: item.rounds + 1, offered: Some(Box::new(cx.now)), ..item };
            self.downlink.outbox.push_front(item, cx.queued_octets);
        } else {
            cx.counters.downlink_unanswered += 1;
            cx.settle(&self.id, &item);
        }
        self.release_broker(cx);
        self.handle_rest_over(cx);
    }

    /// Names that have rested are offered again.
    pub(super) fn handle_rest_over(&mut self, cx: &mut Cx<'_>) {
        if let Some(next) = self.registry.end_rests(cx.now) {
            self.set_timer(ClientTimer::Rest, next, cx);
        }
        self.advance(cx);
    }

    /// PUBREC (§5.4.14): the client has the message. A late one gets its PUBREL again.
    pub(super) fn handle_pubrec(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        let is_exact = |item: &Item| item.qos == QoS::ExactlyOnce;
        // Sent again, it would be another message to the client, which is done with this one.
        if self.downlink.exchange.is_none()
            && let Some(item) = self.take_sent(msg_id, None, is_exact, cx)
        {
            cx.counters.downlink_delivered += 1;
            cx.settle(&self.id, &item);
            return self.release(msg_id, cx);
        }
        let open = self.downlink.take_exchange(|exchange| match &exchange.request {
            Request::Publish { item, .. } => exchange.msg_id == msg_id && item.qos == QoS::ExactlyOnce,
            // It answers the PUBLISH of an earlier connection, which is about to be repeated.
            Request::Register { item, .. } => item.sent_as == Some(msg_id) && item.qos == QoS::ExactlyOnce,
            Request::Release => false,
        });
        match open {
            Some(Exchange {
                request: Request::Publish { item, .. } | Request::Register { item, .. },
                ..
            }) => {
                cx.counters.downlink_delivered += 1;
                cx.settle(&self.id, &item);
                self.release(msg_id, cx);
            }
            _ => self.send(Packet::PubRel(MsgIdOnly { msg_id }), cx),
        }
    }

    /// PUBCOMP (§5.4.14): the exchange is over.
    pub(super) fn handle_pubcomp(&mut self, msg_id: u16, cx: &mut Cx<'_>) {
        let released =
            |exchange: &Exchange| exchange.msg_id == msg_id && matches!(exchange.request, Request::Release);
        if self.downlink.take_exchange(released).is_some() {
            self.end_release(msg_id, cx);
            self.advance(cx);
        }
    }

    /// T_RETRY is over without an answer (§6.13; for gateways Interpretation: R-110, R-113).
    pub(super) fn handle_retry(&mut self, cx: &mut Cx<'_>) -> Reach {
        if self.is_held_back(cx) {
            return Reach::There;
        }
        let Some(mut exchange) = self.downlink.exchange.take() else { return Reach::There };
        if exchange.repeated < self.port(cx.settings).retry_limit {
            if !self.send_within_mtu(exchange.request.packet(exchange.msg_id, true), cx) {
                self.drop_outgrown(&exchange, cx);
                return Reach::There;
            }
            exchange.repeated += 1;
            cx.counters.downlink_retransmissions += 1;
            self.downlink.exchange = Some(exchange);
            self.release_broker(cx);
            self.set_timer(ClientTimer::Retry, cx.now + self.retry_interval(cx.settings), cx);
            return Reach::There;
        }
        if self.state == State::Awake {
            self.downlink.exchange = Some(exchange);
            self.sleep_on(false, cx);
            return Reach::There;
        }
        let since = match &exchange.request {
            Request::Register { item, .. } => item.offered.as_deref().copied().unwrap_or(exchange.since),
            Request::Publish { .. } | Request::Release => exchange.since,
        };
        let heard = self.last_heard > since;
        match exchange.request {
            // It learnt the id from a SUBACK or REGACK meanwhile.
            Request::Register { topic_id, item, repair } if self.registry.is_known(topic_id) => {
                self.send_registered(item, topic_id, repair, cx);
            }
            Request::Publish { topic, item, repair } if heard && item.has_rounds_left() => {
                cx.counters.downlink_retransmissions += 1;
                let item = Item { rounds: item.rounds + 1, ..item };
                self.open(Request::Publish { topic, item, repair }, Some(exchange.msg_id), cx);
            }
            Request::Register { topic_id, item, .. } if heard => self.rest(topic_id, item, cx),
            Request::Register { item, .. } => self.pause(Pause::Unheard, item, cx),
            Request::Publish { item, .. } if heard => {
                cx.counters.downlink_unanswered += 1;
                cx.settle(&self.id, &item);
            }
            Request::Release if heard => {
                cx.counters.releases_unanswered += 1;
                self.end_release(exchange.msg_id, cx);
            }
            Request::Publish { topic, item, .. } => {
                let item = Item { sent_as: Some(exchange.msg_id), sent_on: Some(topic), ..item };
                self.downlink.outbox.push_front(item, cx.queued_octets);
                return Reach::Lost;
            }
            Request::Release => {
                self.downlink.exchange = Some(exchange);
                return Reach::Lost;
            }
        }
        self.advance(cx);
        Reach::There
    }

    /// What was asked of the client may not have left, because of the store: it is not to blame, nor asked more often for that.
    fn is_held_back(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(exchange) = self.downlink.exchange.as_mut() else { return false };
        if self.state != State::Active || !cx.journal.is_waiting(Whose::Client(self.key), exchange.after) {
            return false;
        }
        exchange.since = cx.now;
        if cx.journal.has_failed() {
            self.repeat_exchange(cx);
        }
        self.release_broker(cx);
        self.set_timer(ClientTimer::Retry, cx.now + self.retry_interval(cx.settings), cx);
        true
    }

    /// The client connected again, and may have forgotten its topic ids (§6.10): what was open is asked again.
    pub(super) fn resume_downlink(&mut self, cx: &mut Cx<'_>) {
        self.registry.unconfirm_all();
        self.reopen(cx);
    }

    /// The client woke (§6.14); its topic ids it knows.
    pub(super) fn begin_drain(&mut self, cx: &mut Cx<'_>) {
        let waiting = u32::try_from(self.downlink.outbox.len()).unwrap_or(u32::MAX);
        self.downlink.drain = waiting.saturating_add(DRAIN_SURPLUS);
        self.reopen(cx);
    }

    /// What was under way is under way again, as if it had never left; or will be, when its transport can send again.
    pub(super) fn reopen(&mut self, cx: &mut Cx<'_>) {
        self.downlink.paused = None;
        self.registry.end_all_rests();
        self.put_back(cx);
        for item in self.downlink.outbox.iter_mut() {
            (item.offered, item.rounds) = (None, 0);
        }
        if !self.is_cut_off(cx.air)
            && let Some(exchange) = self.downlink.exchange.take()
        {
            self.open(exchange.request, Some(exchange.msg_id), cx);
        }
        self.advance(cx);
    }

    /// Makes an open exchange the first message that waits, under its MsgId. PUBREL has no message any more and stays.
    fn put_back(&mut self, cx: &mut Cx<'_>) {
        let has_message = |exchange: &Exchange| !matches!(exchange.request, Request::Release);
        let Some(Exchange { msg_id, request, .. }) = self.downlink.take_exchange(has_message) else { return };
        let item = match request {
            Request::Publish { topic, item, .. } => {
                Item { sent_as: Some(msg_id), sent_on: Some(topic), rounds: 0, ..item }
            }
            Request::Register { item, .. } => Item { offered: None, ..item },
            Request::Release => return,
        };
        self.downlink.outbox.push_front(item, cx.queued_octets);
    }

    /// Asked again for what it has not answered, the client gets it again (Interpretation: R-135).
    pub(super) fn repeat_exchange(&mut self, cx: &mut Cx<'_>) {
        if let Some(exchange) = &self.downlink.exchange
            && self.send_within_mtu(exchange.request.packet(exchange.msg_id, true), cx)
        {
            cx.counters.downlink_retransmissions += 1;
        }
    }

    /// Drops what waits and no subscription matches any more (Interpretation: A-44); a PUBLISH under way is finished.
    pub(super) fn drop_unsubscribed(&mut self, cx: &mut Cx<'_>) {
        let mut outbox = std::mem::take(&mut self.downlink.outbox);
        for item in outbox.remove_unless(cx.queued_octets, |item| self.wants(item, cx.links)) {
            cx.counters.downlink_ended += 1;
            cx.settle(&self.id, &item);
        }
        self.downlink.outbox = outbox;
    }

    /// Whether a subscription still brings this message, or the client may have it already. What is subscribed to in a session
    /// that is older than the gateway only the broker knows: until it has ended what the client unsubscribed from, that is
    /// taken for what brings this (Interpretation: R-094).
    fn wants(&self, item: &Item, links: &Links) -> bool {
        let topic = &item.message.topic;
        item.sent_as.is_some()
            || self.subscriptions.keys().any(|filter| filter.matches(topic))
            || (self.inherited && !links.is_ending(self.key, topic))
    }

    /// Drops everything that was meant for the client.
    pub(super) fn clear_downlink(&mut self, cx: &mut Cx<'_>) {
        let exchange = self.downlink.exchange.take();
        let under_way = exchange.and_then(|exchange| match exchange.request {
            Request::Register { item, .. } | Request::Publish { item, .. } => Some(item),
            Request::Release => {
                self.end_release(exchange.msg_id, cx);
                None
            }
        });
        let waiting = self.downlink.outbox.remove_unless(cx.queued_octets, |_| false);
        for item in under_way.into_iter().chain(waiting) {
            cx.counters.downlink_ended += 1;
            cx.settle(&self.id, &item);
        }
        self.downlink.paused = None;
    }

    /// The client is asleep or away, or cannot be reached: nothing is repeated, the broker does not wait, and not everything is kept.
    pub(super) fn interrupt_downlink(&mut self, cx: &mut Cx<'_>) {
        cx.timers.cancel(&Timer::Client(self.key, ClientTimer::Retry));
        self.put_back(cx);
        let mut outbox = std::mem::take(&mut self.downlink.outbox);
        for item in outbox.remove_unless(cx.queued_octets, |item| self.may_wait(item, cx.settings)) {
            cx.counters.downlink_offline += 1;
            cx.settle(&self.id, &item);
        }
        self.downlink.outbox = outbox;
        self.release_broker(cx);
    }
}
