//! The core: what arrives goes in, what must leave comes out. No clock, socket, task, lock or file.
//!
//! [`Gateway::handle`] with every [`Input`], [`Gateway::poll_output`] until `None`, then wait for the next input or for
//! [`Gateway::poll_timeout`]. Several inputs may go in before outputs are taken: what they have for the broker then
//! leaves in one write.

mod air;
mod clients;
mod counters;
mod discovery;
mod downlink;
mod exchange;
mod few;
mod forget;
mod handshake;
pub mod io;
mod journal;
mod links;
mod outbox;
pub mod record;
mod registry;
mod rows;
mod session;
mod timer;
mod uplink;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, info, trace, warn};

use self::air::{Addressee, Air};
use self::clients::Clients;
pub use self::counters::Counters;
use self::downlink::Reach;
use self::few::pop_spare;
use self::handshake::{Asking, Handshakes};
use self::io::{
    Control, Input, Output, Peer, PortEvent, PortId, Route, Settings, Target, Wills, WirelessNodeId,
};
use self::journal::{Journal, Leaving, Whose};
use self::links::{Delivery, LinkCx, Links, Parting, Update, UplinkId};
use self::outbox::Item;
use self::record::{Lsn, MessageId, Outcome};
use self::registry::Predefined;
use self::session::{Cx, Seconds, Session, State};
use self::timer::{ClientTimer, Timer, Timers};
use crate::mqtt::{Message, QoS, Refused};
use crate::topic::{ClientId, TopicName};
use crate::wire::{
    Disconnect, Packet, PingReq, Publish, Qos, ReturnCode, SubAck, TopicAck, TopicRef, decode,
};

/// Names a session; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientKey(u64);

/// After a DISCONNECT that nobody asked for, a DISCONNECT from that peer within this time may be the answer, and is not
/// answered: two sides with simpler rules would go on for ever (Interpretation: R-123).
const DISCONNECT_GUARD: Duration = Duration::from_secs(10);

/// Between two DISCONNECTs to a peer without a session (Interpretation: R-102).
const DISCONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// Outputs past which no more of what the broker said is taken in before they have left: a few batches of datagrams. One
/// message for every client there is still goes out in one piece.
const OUTPUTS_MARK: usize = 4096;

/// Peers remembered for the two rules above. Enough for every sensor of a large network to be told at once after a
/// restart; beyond, the oldest is forgotten and may be answered once more.
const DISCONNECTS_MAX: usize = 8192;

/// The gateway as a value: every client, every rule, and the link to the broker.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    predefined: Predefined,
    /// The time of the call under way.
    now: Instant,
    clients: Clients,
    handshakes: Handshakes,
    asking: Asking,
    links: Links,
    journal: Journal,
    timers: Timers,
    air: Air,
    counters: Counters,
    rng: fastrand::Rng,
    queued_octets: usize,
    disconnects: Disconnects,
    stopping: Option<Stopping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    Asked,
    Done,
    /// Somebody else owns the state: nothing more may be done, not even waited for.
    Fenced,
}

/// Which peers were told that they have no session, and when.
#[derive(Debug, Default)]
struct Disconnects {
    told: HashMap<Peer, Instant>,
    order: VecDeque<(Instant, Peer)>,
}

impl Disconnects {
    fn remember(&mut self, peer: &Peer, now: Instant) {
        while let Some((at, _)) = self.order.front()
            && (self.order.len() >= DISCONNECTS_MAX || *at + DISCONNECT_GUARD <= now)
        {
            if let Some((at, peer)) = self.order.pop_front()
                && self.told.get(&peer) == Some(&at)
            {
                self.told.remove(&peer);
            }
        }
        self.told.insert(peer.clone(), now);
        self.order.push_back((now, peer.clone()));
    }

    fn within(&self, span: Duration, peer: &Peer, now: Instant) -> bool {
        self.told.get(peer).is_some_and(|at| now.saturating_duration_since(*at) < span)
    }
}

impl Gateway {
    /// A gateway without clients; it begins to connect to the broker and to advertise at the first
    /// [`Gateway::handle_timeout`], which is due at once.
    pub fn new(settings: Settings, now: Instant) -> Self {
        let mut timers = Timers::new(now);
        timers.set(Timer::Advertise, now + settings.advertise_interval);
        Self {
            now,
            predefined: Predefined::new(&settings),
            clients: Clients::default(),
            handshakes: Handshakes::default(),
            asking: Asking::default(),
            links: Links::new(&settings.broker, settings.lasting, now),
            journal: Journal::default(),
            timers,
            air: Air::default(),
            counters: Counters::default(),
            rng: fastrand::Rng::with_seed(settings.seed),
            queued_octets: 0,
            disconnects: Disconnects::default(),
            stopping: None,
            settings,
        }
    }

    /// Takes in what happened. `now` never goes back.
    pub fn handle(&mut self, now: Instant, input: Input) {
        if self.stopping == Some(Stopping::Fenced) {
            return;
        }
        self.now = now;
        match input {
            Input::Frame { from, route, frame } => self.handle_frame(from, route, frame),
            Input::Port(port, event) => self.handle_port(port, event),
            Input::Link(id, event) => {
                let (links, mut cx) = self.links_cx();
                links.handle(id, event, &mut cx);
                self.take_updates();
            }
            Input::Stored(lsn, outcome) => self.handle_stored(lsn, outcome),
            Input::Control(Control::Shutdown) => self.shut_down(),
            Input::Control(Control::Forget(request, id)) => self.forget(request, &id),
        }
    }

    /// Does what is due at `now`; early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stopping == Some(Stopping::Fenced) {
            return;
        }
        self.now = now;
        self.journal.handle_timeout(now, &mut self.counters);
        let (links, mut cx) = self.links_cx();
        links.handle_timeout(&mut cx);
        self.take_updates();
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Advertise => self.advertise(),
                Timer::Handshake(peer) => self.handle_handshake_late(&peer),
                Timer::Client(key, timer) => self.handle_client_timer(key, timer),
            }
        }
    }

    /// When [`Gateway::handle_timeout`] is due, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stopping == Some(Stopping::Fenced) {
            return None;
        }
        [self.journal.poll_timeout(), self.links.poll_timeout(), self.timers.next()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next thing to be done. What is ready for the broker comes last, in one piece; what is to be stored comes before
    /// everything that depends on it.
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.next_output();
        self.counters.frames_sent += u64::from(matches!(output, Some(Output::Send { .. })));
        output
    }

    fn next_output(&mut self) -> Option<Output> {
        if self.stopping == Some(Stopping::Fenced) {
            return pop_spare(&mut self.air.outputs).map(|leaving| leaving.output);
        }
        loop {
            if let Some(output) = self.journal.pop_released() {
                return Some(output);
            }
            if self.air.outputs.is_empty() {
                self.take_updates();
            }
            if self.air.outputs.is_empty() {
                self.flush();
            }
            self.clients.for_touched(|session| session.put_down(&self.settings, &mut self.journal));
            if let Some(output) = self.journal.seal(self.now, &mut self.counters) {
                return Some(output);
            }
            let leaving = pop_spare(&mut self.air.outputs)?;
            if let Some(output) = self.journal.admit(leaving, &mut self.counters) {
                return Some(output);
            }
        }
    }

    /// Lets leave what is ready for the broker.
    fn flush(&mut self) {
        while let Some(delivery) = self.journal.pop_settled() {
            self.links.settle(delivery);
        }
        let (links, mut cx) = self.links_cx();
        links.flush(&mut cx);
        if self.stopping == Some(Stopping::Asked) && self.links.has_left() {
            self.stopping = Some(Stopping::Done);
            self.air.outputs.push_back(Leaving::of_nobody(Output::Stopped));
        }
    }

    /// What has become of a batch.
    fn handle_stored(&mut self, lsn: Lsn, outcome: Outcome) {
        if outcome == Outcome::Fenced {
            self.air.outputs.clear();
            if !matches!(self.stopping, Some(Stopping::Done | Stopping::Fenced)) {
                self.air.outputs.push_back(Leaving::of_nobody(Output::Stopped));
            }
            self.stopping = Some(Stopping::Fenced);
        } else {
            self.journal.handle(self.now, lsn, outcome, &mut self.counters);
        }
    }

    /// What was counted since the gateway was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sessions, connected or not.
    pub fn sessions(&self) -> usize {
        self.clients.len()
    }

    /// Octets of messages that wait for clients, all outboxes together.
    pub fn queued_octets(&self) -> usize {
        self.queued_octets
    }

    /// Messages that clients have yet to take, one for each client: those in outboxes and those under way.
    pub fn waiting_messages(&self) -> usize {
        self.clients.sum(|session| session.downlink.waiting())
    }

    /// Messages of clients that are kept for the broker, which is away or slow.
    pub fn kept_messages(&self) -> usize {
        self.links.backlog()
    }

    /// Whether what clients ask for can be stored. Not if the store cannot be written, is much too slow, or hangs.
    pub fn is_storing(&self) -> bool {
        self.journal.is_available()
    }

    /// Things to be done that are known already; [`Gateway::poll_output`] may find more.
    pub fn waiting_outputs(&self) -> usize {
        self.air.outputs.len()
    }

    /// Messages of the broker that clients have yet to settle.
    pub fn unsettled_deliveries(&self) -> usize {
        self.links.unsettled_deliveries()
    }

    /// Whether the broker accepted us and has not gone.
    pub fn is_connected(&self) -> bool {
        self.links.is_up()
    }

    /// What a datagram is and whom it concerns, in the order of digest section 3.22.
    fn handle_frame(&mut self, mut from: Peer, route: Route, frame: Bytes) {
        self.counters.frames_received += 1;
        let decoded = match decode(&frame) {
            Ok(decoded) => {
                trace!(?from, "received {decoded:.0}");
                decoded
            }
            Err(error) => {
                trace!(?from, %error, "malformed");
                self.counters.frames_malformed += 1;
                return;
            }
        };
        let Some(port) = self.settings.ports.get(usize::from(from.port.0)) else { return };
        if let Some(encapsulation) = decoded.encapsulation {
            if !port.forwarders {
                self.counters.forwarders_refused += 1;
                return;
            }
            from.node = Some(WirelessNodeId(encapsulation.node_id.into()));
        }
        match decoded.packet {
            // From other gateways, and clients that answer for them: nothing to do (§6.1).
            Packet::Advertise(_) | Packet::GwInfo(_) => {}
            Packet::ConnAck(_)
            | Packet::WillTopicReq
            | Packet::WillMsgReq
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::WillTopicResp(_)
            | Packet::WillMsgResp(_) => self.counters.frames_misdirected += 1,
            Packet::SearchGw(search) => self.handle_searchgw(&from, route, search),
            Packet::Publish(publish) if publish.qos == Qos::MinusOne => {
                self.handle_publish_minus_one(&from, route, &publish, &frame);
            }
            Packet::Connect(connect) => self.handle_connect(from, route, &connect, &frame),
            Packet::WillTopic(will) => self.handle_will_topic(from, route, &will),
            Packet::WillMsg(will) => self.handle_will_msg(from, route, &will),
            packet if self.is_asking(&from) && !matches!(packet, Packet::Disconnect(_)) => {
                // It waits for the broker, as for its Will (Interpretation: R-027).
                self.counters.frames_unexpected += 1;
            }
            packet => {
                // A client that goes on with its session did not mean the CONNECT: it was a late copy. What it was asked
                // before it still answers (§6.13).
                let mut known = self.clients.by_peer(&from);
                if self.is_connecting(&from)
                    && known.is_some_and(|key| !is_answer(&packet) && !self.is_of_another(key, &packet))
                {
                    self.abandon_handshake(&from);
                    known = self.clients.by_peer(&from);
                }
                let known = match (known, packet) {
                    (None, Packet::PingReq(ping)) => self.rebind(&from, &ping),
                    (known, _) => known,
                };
                match known {
                    Some(key) => self.handle_from_client(key, route, packet, &frame),
                    None => self.handle_from_stranger(&from, route, packet),
                }
            }
        }
    }

    /// A message from the peer of a session.
    fn handle_from_client(&mut self, key: ClientKey, route: Route, packet: Packet<'_>, frame: &Bytes) {
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        session.handle_heard(route, cx.now);
        session.end_silence(cx.now, cx.timers);
        (session.just_connected, session.prompted, session.took_leave) = (false, false, false);
        match packet {
            Packet::Register(register) => session.handle_register(&register, &mut cx),
            Packet::RegAck(ack) => session.handle_regack(ack, &mut cx),
            Packet::Publish(publish) => session.handle_publish(&publish, frame, &mut cx),
            Packet::PubAck(ack) => session.handle_puback(ack, &mut cx),
            Packet::PubRec(ack) => session.handle_pubrec(ack.msg_id, &mut cx),
            Packet::PubRel(release) => session.handle_pubrel(release.msg_id, &mut cx),
            Packet::PubComp(ack) => session.handle_pubcomp(ack.msg_id, &mut cx),
            Packet::Subscribe(subscribe) => session.handle_subscribe(&subscribe, &mut cx),
            Packet::Unsubscribe(unsubscribe) => session.handle_unsubscribe(&unsubscribe, &mut cx),
            Packet::PingReq(ping) => self.handle_pingreq(key, &ping),
            Packet::Disconnect(disconnect) => self.handle_disconnect(key, disconnect),
            Packet::WillTopicUpd(will) => session.handle_will_topic_update(&will, &mut cx),
            Packet::WillMsgUpd(will) => session.handle_will_msg_update(&will, &mut cx),
            // It answers our PINGREQ; being heard is all it is for (§6.11).
            Packet::PingResp => {}
            _ => cx.counters.frames_unexpected += 1,
        }
    }

    /// Whether this is PINGREQ with the id of another client: it changes nothing here (Interpretation: R-116).
    fn is_of_another(&mut self, key: ClientKey, packet: &Packet<'_>) -> bool {
        let Packet::PingReq(ping) = packet else { return false };
        let session = self.clients.get_mut(key);
        session.is_some_and(|session| {
            !ping.client_id.is_empty() && ping.client_id != session.id.as_str().as_bytes()
        })
    }

    /// PINGREQ (§5.4.19). With another client's id it is not for this session (Interpretation: R-116).
    fn handle_pingreq(&mut self, key: ClientKey, ping: &PingReq<'_>) {
        let is_of_another = self.is_of_another(key, &Packet::PingReq(*ping));
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        if is_of_another {
            let (peer, route, now) = (session.peer.clone(), session.route, self.now);
            if let Some(peer) = peer
                && self.disconnect_stranger(&peer, route, DISCONNECT_INTERVAL, None)
                && let Some(session) = self.clients.get_mut(key)
            {
                session.told = Some(Box::new(now));
            }
        } else if session.state == State::Active {
            session.send(Packet::PingResp, &mut cx);
        } else if session.overdue {
            self.dismiss(key);
        } else {
            // A sleeper wakes, also one that leaves its id out (Interpretation: A-18).
            session.wake(&mut cx);
        }
    }

    /// DISCONNECT (§5.4.21): with a Duration the client sleeps, without, or with 0 (Interpretation: R-121), it takes leave,
    /// and no Will is published. The answer never has a Duration.
    fn handle_disconnect(&mut self, key: ClientKey, disconnect: Disconnect) {
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        let told = session.told.as_deref();
        let told = told.is_some_and(|at| cx.now.saturating_duration_since(*at) < DISCONNECT_GUARD);
        if disconnect.duration.is_none() && told {
            // It may be the answer to ours, which was about another client id, or mean that this client goes: it has gone in
            // peace if it is not heard any more (Interpretation: R-123).
            session.took_leave = true;
            cx.counters.disconnects_withheld += 1;
            return;
        }
        session.send(Packet::Disconnect(Disconnect { duration: None }), &mut cx);
        match disconnect.duration {
            Some(seconds @ 1..) => {
                // That cannot be refused: what is not stored is not promised, and the client is served as it wanted.
                cx.air.put_to_sleep();
                session.fall_asleep(Seconds(seconds), &mut cx);
            }
            Some(0) | None => {
                info!(client = %session.id, "client disconnected");
                self.end_connection(key, State::Disconnected);
            }
        }
    }

    /// PINGREQ of a sleeper from another peer than it went to sleep at: it may be behind a NAT, or have another address now
    /// (Interpretation: R-104). Only a sleeper moves like that, else one forged datagram would divert what is meant for a
    /// client (Interpretation: R-105).
    fn rebind(&mut self, from: &Peer, ping: &PingReq<'_>) -> Option<ClientKey> {
        let key = self.clients.key(&ClientId::new(ping.client_id).ok()?)?;
        let session = self.clients.get_mut(key)?;
        let known = session.peer.as_ref()?;
        let asleep = matches!(session.state, State::Asleep | State::Awake);
        if !asleep || !self.settings.sessions.rebind.allows(known, from) {
            return None;
        }
        self.counters.sessions_rebound += 1;
        self.clients.bind(key, from);
        Some(key)
    }

    /// A message from a peer without a session (§6.12): most need one, and the client shall connect again.
    fn handle_from_stranger(&mut self, from: &Peer, route: Route, packet: Packet<'_>) {
        // While its Will is being asked for, everything else is dropped (Interpretation: R-027).
        let connecting = self.handshakes.contains_key(from);
        let mut whose = None;
        let guard = match packet {
            _ if is_answer(&packet) => {
                self.counters.frames_unexpected += 1;
                return;
            }
            Packet::Disconnect(_) => {
                self.abandon_handshake(from);
                // It may be a copy, and the end of the session not stored yet.
                whose = Some(Whose::Anybody);
                DISCONNECT_GUARD
            }
            _ if connecting => {
                self.counters.frames_unexpected += 1;
                return;
            }
            _ => DISCONNECT_INTERVAL,
        };
        self.disconnect_stranger(from, route, guard, whose);
    }

    /// Tells a peer that it has no session here, unless it was told within `guard`. Returns whether it is told.
    fn disconnect_stranger(
        &mut self,
        peer: &Peer,
        route: Route,
        guard: Duration,
        whose: Option<Whose>,
    ) -> bool {
        let is_told = !self.disconnects.within(guard, peer, self.now);
        if is_told {
            self.disconnect_peer(peer, route, whose);
        } else {
            self.counters.disconnects_withheld += 1;
        }
        is_told
    }

    /// QoS −1 (§6.8): for everybody, on predefined ids and short names, answered by nobody.
    fn handle_publish_minus_one(&mut self, from: &Peer, route: Route, publish: &Publish<'_>, frame: &Bytes) {
        let mut client = None;
        if let Some(session) = self.clients.by_peer_mut(from) {
            session.handle_heard(route, self.now);
            client = Some(session.id.clone());
        }
        let served = self.settings.ports.get(usize::from(from.port.0)).is_some_and(|port| port.qos_minus_one);
        let topic = match publish.topic {
            TopicRef::Predefined(id) => self.predefined.topic(id, client.as_ref()).cloned(),
            TopicRef::Short(name) => TopicName::portable(name).ok(),
            TopicRef::Normal(_) | TopicRef::Reserved(_) => None,
        };
        let sent = topic.filter(|_| served).is_some_and(|topic| {
            let payload = frame.slice_ref(publish.data);
            let message = Message { topic, payload, qos: QoS::AtMostOnce, retain: publish.retain };
            self.links.publish_minus_one(message).is_ok()
        });
        if sent {
            self.counters.uplink_messages += 1;
        } else {
            self.counters.qos_minus_one_dropped += 1;
        }
    }

    fn handle_client_timer(&mut self, key: ClientKey, timer: ClientTimer) {
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        match timer {
            // It is about to be connected again, from wherever: it is not lost, nor to be told to connect.
            ClientTimer::Supervision | ClientTimer::Grace | ClientTimer::Expiry
                if session.asking.is_some() =>
            {
                session.set_timer(timer, cx.now + cx.settings.broker.ack_timeout, &mut cx);
            }
            ClientTimer::Supervision => match session.supervision_deadline() {
                Some(at) if at > cx.now => session.set_timer(ClientTimer::Supervision, at, &mut cx),
                Some(_) => self.lose(key),
                None => {}
            },
            ClientTimer::Retry => {
                if session.handle_retry(&mut cx) == Reach::Lost {
                    self.lose(key);
                }
            }
            ClientTimer::BrokerAnswer => session.handle_broker_late(&mut cx),
            ClientTimer::Pause => session.handle_pause_over(&mut cx),
            ClientTimer::Rest => session.handle_rest_over(&mut cx),
            ClientTimer::Grace => self.dismiss_when_heard(key),
            ClientTimer::Expiry => {
                cx.counters.sessions_expired += 1;
                self.remove_session(key);
            }
        }
    }

    /// The client has gone without a word: its Will is published (§6.3). Not if the last that was heard may have been its
    /// goodbye.
    fn lose(&mut self, key: ClientKey) {
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        if session.took_leave {
            info!(client = %session.id, "client disconnected");
            return self.end_connection(key, State::Disconnected);
        }
        info!(client = %session.id, will = session.has_will(), "client lost");
        cx.counters.clients_lost += 1;
        if cx.settings.broker.wills == Wills::Broker && cx.links.is_dedicated(key) {
            let (links, mut cx) = self.links_cx();
            links.part(key, Parting::Vanish, &mut cx);
        } else {
            session.publish_will(&mut cx);
        }
        self.end_connection(key, State::Lost);
    }

    /// The client's own link is lost for good (§6.12). One that is asleep hears of it when it wakes, one that cannot be reached
    /// when it can.
    fn dismiss_when_heard(&mut self, key: ClientKey) {
        match self.clients.get_mut(key) {
            Some(session) if session.state == State::Asleep || session.is_cut_off(&self.air) => {
                session.overdue = true;
            }
            Some(session) if session.is_receiving() => self.dismiss(key),
            _ => {}
        }
    }

    /// Tells a client that it is not connected any more (§6.12).
    fn dismiss(&mut self, key: ClientKey) {
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        info!(client = %session.id, "client dismissed: its link to the broker is lost");
        cx.counters.clients_dismissed += 1;
        session.send(Packet::Disconnect(Disconnect { duration: None }), &mut cx);
        if let Some(peer) = session.peer.clone() {
            self.disconnects.remember(&peer, self.now);
        }
        self.end_connection(key, State::Disconnected);
    }

    /// Ends what binds the client to its peer; the session goes too if it was a clean one (§6.3). While the broker is asked
    /// for the client at another peer, the link is for that, and the session begins anew there.
    fn end_connection(&mut self, key: ClientKey, state: State) {
        self.clients.unbind(key);
        let expiry = self.now + self.settings.sessions.expiry;
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        session.leave(state, &mut cx);
        let is_asking = session.asking.is_some();
        if !session.clean {
            session.set_timer(ClientTimer::Expiry, expiry, &mut cx);
        } else if is_asking {
            session.clear(&mut cx);
            session.fresh = true;
        } else {
            return self.remove_session(key);
        }
        let (links, mut cx) = self.links_cx();
        links.part(key, Parting::Leave, &mut cx);
    }

    fn remove_session(&mut self, key: ClientKey) {
        if let Some((session, mut cx)) = self.session_cx(key) {
            session.clear(&mut cx);
            for timer in [ClientTimer::Supervision, ClientTimer::Expiry, ClientTimer::Grace] {
                cx.timers.cancel(&Timer::Client(key, timer));
            }
        }
        if let Some(session) = self.clients.get_mut(key) {
            session.put_down_end(&mut self.journal);
        }
        let session = self.clients.remove(key);
        if let Some(peer) = session.and_then(|session| session.asking) {
            self.asking.remove(&peer);
            self.timers.cancel(&Timer::Handshake(peer));
        }
        let (links, mut cx) = self.links_cx();
        links.forget(key, true, &mut cx);
    }

    /// Tells a peer that it has no session, and remembers that (Interpretation: R-123).
    fn disconnect_peer(&mut self, peer: &Peer, route: Route, whose: Option<Whose>) {
        self.counters.peers_without_session += 1;
        self.disconnects.remember(peer, self.now);
        let packet = Packet::Disconnect(Disconnect { duration: None });
        self.air.send(Addressee { whose, peer, route }, packet, &mut self.counters);
    }

    /// What the broker has said, to whom it concerns, while there is room for what comes of it.
    fn take_updates(&mut self) {
        while self.air.outputs.len() < OUTPUTS_MARK {
            let (links, mut cx) = self.links_cx();
            let Some(update) = links.poll_update(&mut cx) else { return };
            match update {
                Update::Up => self.advertise(),
                Update::Accepted(key, inherited) => self.handle_accepted(key, inherited),
                Update::Refused(key, code) => self.handle_refused(key, code),
                Update::Lost(key) => {
                    self.timers
                        .set(Timer::Client(key, ClientTimer::Grace), self.now + self.settings.broker.grace);
                }
                Update::Back(key) => {
                    self.timers.cancel(&Timer::Client(key, ClientTimer::Grace));
                    if let Some(session) = self.clients.get_mut(key) {
                        session.overdue = false;
                    }
                }
                Update::Ended(key) => {
                    let (links, mut cx) = self.links_cx();
                    links.part(key, Parting::Leave, &mut cx);
                    self.dismiss_when_heard(key);
                }
                Update::Received(key, id) => {
                    if let Some((session, mut cx)) = self.session_cx(key) {
                        session.handle_broker_received(id, &mut cx);
                    }
                }
                Update::Completed(key, id, result) => self.handle_completed(key, id, result),
                Update::Subscribed(key, id, result) => {
                    if let Some((session, mut cx)) = self.session_cx(key) {
                        session.handle_subscribed(id, result, &mut cx);
                    }
                }
                Update::Message(message, delivery, expires, recipients) => {
                    self.hand_out(&message, delivery, expires, recipients);
                }
            }
        }
    }

    /// The end of a message of a client is stored together with what it has of it.
    fn handle_completed(&mut self, key: ClientKey, id: UplinkId, result: Result<(), Refused>) {
        let promised = self.links.finish(id, &mut self.journal);
        if promised {
            if let Err(refused) = result {
                warn!(%refused, "a message that was kept for the broker is lost");
                self.counters.uplink_refused += 1;
            }
        } else if let Some((session, mut cx)) = self.session_cx(key) {
            session.handle_broker_completed(id, result, &mut cx);
        }
    }

    fn hand_out(
        &mut self,
        message: &Arc<Message>,
        delivery: Option<Delivery>,
        expires: Option<Instant>,
        recipients: Vec<(ClientKey, QoS)>,
    ) {
        let id = MessageId(self.journal.number());
        // What came as QoS 2 is taken over from the broker as a whole, or it would bring it again to some.
        let exactly = self.settings.lasting && recipients.iter().any(|(_, qos)| *qos == QoS::ExactlyOnce);
        if let Some(delivery) = delivery.filter(|_| exactly) {
            self.links.take_over(delivery, &mut self.journal);
        }
        for (key, qos) in recipients {
            self.counters.downlink_recipients += 1;
            let message = message.clone();
            let item = Item {
                message,
                id,
                kept: None,
                qos,
                delivery,
                sent_as: None,
                stored_as: (None, None),
                sent_on: None,
                offered: None,
                rounds: 0,
                expires: expires.map(Box::new),
            };
            match self.session_cx(key) {
                Some((session, mut cx)) => session.deliver(item, exactly, &mut cx),
                None => {
                    self.counters.downlink_ended += 1;
                    if let Some(delivery) = delivery {
                        self.links.settle(delivery);
                    }
                }
            }
        }
    }

    fn handle_port(&mut self, port: PortId, event: PortEvent) {
        let name = self.settings.ports.get(usize::from(port.0)).map(|port| port.name.as_str());
        debug!(port = name, ?event, "transport");
        match event {
            PortEvent::Up => {
                self.set_port(port, true);
                self.advertise_on(port);
            }
            PortEvent::Down => self.set_port(port, false),
            PortEvent::Mtu(mtu) => {
                if let Some(port) = self.settings.ports.get_mut(usize::from(port.0)) {
                    port.mtu = mtu;
                }
            }
        }
    }

    /// Lets the clients of a transport wait for it, or go on.
    fn set_port(&mut self, port: PortId, up: bool) {
        if !self.air.set_port(port, up) {
            return;
        }
        if !up {
            self.cut_off(port);
        }
        for key in self.clients.keys_at(port) {
            let Some((session, mut cx)) = self.session_cx(key) else { continue };
            if up && session.overdue && session.state == State::Active {
                self.dismiss(key);
            } else if up {
                session.handle_port_up(&mut cx);
            } else {
                session.handle_port_down(&mut cx);
            }
        }
    }

    /// Drops what has yet to leave on a transport that went down: sent after its return, it would come beside what is sent anew
    /// then. What it promises is stored all the same.
    fn cut_off(&mut self, port: PortId) {
        let mut frames = self.air.cut_off(port);
        frames.extend(self.journal.cut_off(port));
        for output in frames {
            self.counters.frames_cut_off += 1;
            self.take_back_told(&output);
        }
    }

    /// A topic id that the client was about to be told it does not know.
    fn take_back_told(&mut self, output: &Output) {
        let Output::Send { to: Target::Unicast { port, addr, .. }, frame } = output else { return };
        let Ok(decoded) = decode(frame) else { return };
        let (Packet::RegAck(TopicAck { topic_id, code: ReturnCode::Accepted, .. })
        | Packet::SubAck(SubAck { topic_id, code: ReturnCode::Accepted, .. })) = decoded.packet
        else {
            return;
        };
        let node = decoded.encapsulation.map(|it| WirelessNodeId(it.node_id.into()));
        if let Some(session) = self.clients.by_peer_mut(&Peer { port: *port, addr: *addr, node })
            && session.registry.is_known(topic_id)
        {
            session.registry.unconfirm(topic_id);
        }
    }

    /// Takes leave of the broker; of active clients too if nothing is kept for them (§6.12).
    fn shut_down(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping::Asked);
        let told = if self.settings.lasting { Vec::new() } else { self.clients.keys() };
        for key in told {
            if let Some((session, mut cx)) = self.session_cx(key)
                && session.state == State::Active
            {
                session.send(Packet::Disconnect(Disconnect { duration: None }), &mut cx);
            }
        }
        let (links, mut cx) = self.links_cx();
        links.shut_down(&mut cx);
    }

    /// The links together with what they need, so that both can be changed.
    fn links_cx(&mut self) -> (&mut Links, LinkCx<'_>) {
        let cx = LinkCx {
            now: self.now,
            settings: &self.settings.broker,
            outputs: &mut self.air.outputs,
            journal: &mut self.journal,
            counters: &mut self.counters,
            rng: &mut self.rng,
        };
        (&mut self.links, cx)
    }

    /// A session together with everything else, so that both can be changed.
    fn session_cx(&mut self, key: ClientKey) -> Option<(&mut Session, Cx<'_>)> {
        let session = self.clients.get_mut(key)?;
        let cx = Cx {
            now: self.now,
            settings: &self.settings,
            predefined: &self.predefined,
            air: &mut self.air,
            links: &mut self.links,
            journal: &mut self.journal,
            timers: &mut self.timers,
            counters: &mut self.counters,
            queued_octets: &mut self.queued_octets,
        };
        Some((session, cx))
    }
}

/// Whether a client says this to something the gateway said before.
fn is_answer(packet: &Packet<'_>) -> bool {
    matches!(
        packet,
        Packet::RegAck(_)
            | Packet::PubAck(_)
            | Packet::PubComp(_)
            | Packet::PubRec(_)
            | Packet::PubRel(_)
            | Packet::PingResp
    )
}
