//! Connection set-up (§6.2, §6.3).
//!
//! ```text
//! without Will:   C> CONNECT               G> CONNACK
//! with Will:      C> CONNECT               G> WILLTOPICREQ
//!                 C> WILLTOPIC             G> WILLMSGREQ
//!                 C> WILLMSG               G> CONNACK
//! Will deleted:   C> CONNECT               G> WILLTOPICREQ
//!                 C> WILLTOPIC (empty)     G> CONNACK
//! ```
//!
//! A client with a link of its own to the broker gets its CONNACK when the broker has accepted it (§4.1).
//!
//! A session is touched when its handshake is complete, not before: one that the client abandons, or the broker refuses, leaves
//! everything as it was. Repetitions by the client are what recovers a lost message, so each gets its answer again (§6.13).

use std::collections::HashMap;

use bytes::Bytes;

use super::air::Addressee;
use super::io::{Mode, Peer, Route, Wills};
use super::journal::Whose;
use super::links::{Opened, Opening, id_at_broker, is_own_id};
use super::session::{self, Seconds, State, Will};
use super::timer::{ClientTimer, Timer};
use super::{ClientKey, Gateway};
use crate::topic::ClientId;
use crate::wire::{Connect, Packet, Response, ReturnCode, WillMsg, WillTopic};

/// Half-open handshakes, by the peer that began them.
pub(super) type Handshakes = HashMap<Peer, Handshake>;

/// CONNECTs that wait for the broker, by the peer they came from.
pub(super) type Asking = HashMap<Peer, Asked>;

/// A CONNECT with everything that belongs to it; the broker is asked.
#[derive(Debug)]
pub(super) struct Asked {
    key: ClientKey,
    route: Route,
    params: Params,
    will: WillChange,
    /// The client was asked for its Will.
    prompted: bool,
}

/// A CONNECT whose Will is being asked for.
#[derive(Debug)]
pub(super) struct Handshake {
    route: Route,
    params: Params,
    /// What WILLTOPIC said, once it came.
    topic: Option<session::WillTopic>,
}

/// What a CONNECT asks for.
#[derive(Debug, Clone)]
struct Params {
    id: ClientId,
    clean: bool,
    keep_alive: Seconds,
    /// The octets, by which a repetition is known.
    frame: Bytes,
}

/// What a CONNECT does to the Will of the session (§6.3).
#[derive(Debug)]
enum WillChange {
    Keep,
    Delete,
    Set(Will),
}

impl Gateway {
    /// CONNECT (§5.4.4).
    pub(super) fn handle_connect(&mut self, peer: Peer, route: Route, connect: &Connect<'_>, frame: &Bytes) {
        self.hear_connecting(&peer, connect.client_id);
        if self.is_repeated_connect(&peer, connect) && !self.is_unstored(&peer) {
            return self.answer_connect(&peer, route, ReturnCode::Accepted);
        }
        if let Some(session) = self.clients.by_peer_mut(&peer) {
            session.prompted = false;
        }
        if self.asking.get(&peer).is_some_and(|asked| asked.params.frame == *frame && !asked.prompted) {
            return;
        }
        let params = match self.check_connect(&peer, connect, frame) {
            Ok(params) => params,
            Err(code) => {
                // It is where it was before it connected, and what it says of a Will belongs to nothing.
                self.abandon_handshake(&peer);
                return self.answer_connect(&peer, route, code);
            }
        };
        if !connect.will {
            // The client is not being prompted any more: what it was asked for before is of no account.
            self.end_prompts(&peer);
            let will = if params.clean { WillChange::Delete } else { WillChange::Keep };
            return self.admit(peer, route, params, will, false);
        }
        // A repeated CONNECT restarts the prompts (§6.13).
        self.abandon_asking(&peer);
        let port = &self.settings.ports[usize::from(peer.port.0)];
        let patience = port.retry_interval.saturating_mul(port.retry_limit.saturating_add(1));
        self.timers.set(Timer::Handshake(Box::new(peer.clone())), self.now + patience);
        self.air.send(Addressee::stranger(&peer, route), Packet::WillTopicReq, &mut self.counters);
        self.handshakes.insert(peer, Handshake { route, params, topic: None });
    }

    /// What a client sends to connect again is heard too (R-081): it is not lost over the prompts.
    fn hear_connecting(&mut self, peer: &Peer, id: &[u8]) {
        if let Some(session) = self.clients.by_peer_mut(peer)
            && session.id.as_str().as_bytes() == id
        {
            session.last_heard = self.now;
            session.end_silence(self.now, &mut self.timers);
        }
    }

    /// The same from a client that sent nothing in between: its CONNACK was lost (Interpretation: A-03).
    fn is_repeated_connect(&mut self, peer: &Peer, connect: &Connect<'_>) -> bool {
        self.clients.by_peer_mut(peer).is_some_and(|session| {
            session.just_connected
                && *connect
                    == Connect {
                        will: false,
                        clean_session: session.clean,
                        protocol_id: Connect::PROTOCOL_ID,
                        duration: session.keep_alive.0,
                        client_id: session.id.as_str().as_bytes(),
                    }
        })
    }

    /// Whether what the client at this peer has is not stored, and cannot be at the moment.
    fn is_unstored(&self, peer: &Peer) -> bool {
        let key = self.clients.by_peer(peer);
        self.journal.has_failed()
            && key.is_some_and(|key| self.journal.is_waiting(Whose::Client(key), self.journal.next()))
    }

    fn check_connect(
        &mut self,
        peer: &Peer,
        connect: &Connect<'_>,
        frame: &Bytes,
    ) -> Result<Params, ReturnCode> {
        let id = ClientId::new(connect.client_id);
        let (Ok(id), Connect::PROTOCOL_ID) = (id, connect.protocol_id) else {
            self.counters.connects_refused += 1;
            return Err(ReturnCode::NotSupported);
        };
        let others = self.handshakes.len() - usize::from(self.handshakes.contains_key(peer));
        let taken = match self.clients.key(&id) {
            Some(_) if connect.will => others,
            Some(_) => 0,
            None => self.clients.len() + others,
        };
        if taken >= self.settings.sessions.max || self.stopping.is_some() {
            self.counters.sessions_full += 1;
            return Err(ReturnCode::Congestion);
        }
        if !self.journal.is_available() {
            self.counters.refused_unstored += 1;
            return Err(ReturnCode::Congestion);
        }
        let keep_alive = Seconds(connect.duration);
        Ok(Params { id, clean: connect.clean_session, keep_alive, frame: frame.clone() })
    }

    /// WILLTOPIC (§5.4.7).
    pub(super) fn handle_will_topic(&mut self, peer: Peer, route: Route, will: &WillTopic<'_>) {
        let Some(id) = self.handshakes.get(&peer).map(|handshake| handshake.params.id.clone()) else {
            self.counters.frames_unexpected += 1;
            return;
        };
        self.hear_connecting(&peer, id.as_str().as_bytes());
        if will.topic.is_empty() {
            return self.complete(peer, route, WillChange::Delete);
        }
        match session::WillTopic::new(will) {
            Some(topic) => {
                if let Some(handshake) = self.handshakes.get_mut(&peer) {
                    handshake.topic = Some(topic);
                }
                self.air.send(Addressee::stranger(&peer, route), Packet::WillMsgReq, &mut self.counters);
            }
            None => {
                self.abandon_handshake(&peer);
                self.counters.connects_refused += 1;
                self.answer_connect(&peer, route, ReturnCode::NotSupported);
            }
        }
    }

    /// WILLMSG (§5.4.9).
    pub(super) fn handle_will_msg(&mut self, peer: Peer, route: Route, will: &WillMsg<'_>) {
        let handshake = self.handshakes.get_mut(&peer);
        if let Some(topic) = handshake.and_then(|handshake| handshake.topic.take()) {
            let Some(message) = session::will_message(will) else {
                self.abandon_handshake(&peer);
                self.counters.connects_refused += 1;
                return self.answer_connect(&peer, route, ReturnCode::NotSupported);
            };
            return self.complete(peer, route, WillChange::Set(Will { topic: Some(topic), message }));
        }
        // The CONNACK was lost (§6.13).
        match self.clients.by_peer_mut(&peer) {
            Some(session) if session.prompted => {
                session.last_heard = self.now;
                self.answer_connect(&peer, route, ReturnCode::Accepted);
            }
            _ => self.counters.frames_unexpected += 1,
        }
    }

    fn complete(&mut self, peer: Peer, route: Route, will: WillChange) {
        self.timers.cancel(&Timer::Handshake(Box::new(peer.clone())));
        if let Some(handshake) = self.handshakes.remove(&peer) {
            self.admit(peer, route, handshake.params, will, true);
        }
    }

    /// The client did not go on (§6.13), or went on with something else.
    pub(super) fn abandon_handshake(&mut self, peer: &Peer) {
        self.abandon_asking(peer);
        self.end_prompts(peer);
    }

    fn end_prompts(&mut self, peer: &Peer) {
        if self.handshakes.remove(peer).is_some() {
            self.timers.cancel(&Timer::Handshake(Box::new(peer.clone())));
        }
    }

    /// From where a client connects: peers whose CONNECT is not answered yet.
    pub(super) fn connecting(&self, id: &ClientId) -> Vec<(Peer, Route)> {
        #[expect(clippy::disallowed_methods, reason = "sorted before anybody sees the order")]
        let (prompted, asking) = (self.handshakes.iter(), self.asking.iter());
        let prompted = prompted.map(|(peer, it)| (peer, &it.params.id, it.route));
        let asking = asking.map(|(peer, it)| (peer, &it.params.id, it.route));
        let connecting = prompted.chain(asking).filter(|(_, connecting, _)| *connecting == id);
        let mut connecting: Vec<_> = connecting.map(|(peer, _, route)| (peer.clone(), route)).collect();
        connecting.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        connecting.dedup_by(|(a, _), (b, _)| a == b);
        connecting
    }

    /// Ends a CONNECT that is under way; the client may try again.
    pub(super) fn end_connect(&mut self, peer: &Peer, route: Route) {
        self.abandon_handshake(peer);
        self.answer_connect(peer, route, ReturnCode::Congestion);
    }

    /// The time of a handshake is over. The broker's silence is the client's to know, before it takes the gateway for dead.
    pub(super) fn handle_handshake_late(&mut self, peer: &Peer) {
        self.counters.handshakes_expired += u64::from(self.handshakes.remove(peer).is_some());
        if let Some(key) = self.asking.get(peer).map(|asked| asked.key) {
            self.handle_refused(key, ReturnCode::Congestion);
        }
    }

    /// Whether a CONNECT from this peer waits for the broker.
    pub(super) fn is_asking(&self, peer: &Peer) -> bool {
        self.asking.contains_key(peer)
    }

    /// Whether a CONNECT from this peer is not answered yet. Seldom is there any at all, and then nothing is looked up.
    pub(super) fn is_connecting(&self, peer: &Peer) -> bool {
        self.asking.contains_key(peer) || self.handshakes.contains_key(peer)
    }

    /// All is said: what serves the client at the broker is asked, if it is one of its own.
    fn admit(&mut self, peer: Peer, route: Route, params: Params, will: WillChange, prompted: bool) {
        if self.stopping.is_some() {
            self.counters.sessions_full += 1;
            return self.answer_connect(&peer, route, ReturnCode::Congestion);
        }
        let mode = self.mode(&peer, &params);
        if mode == Mode::Aggregating {
            // As below; the one before came by a transport that serves clients by links of their own.
            let before =
                self.clients.key(&params.id).and_then(|key| self.clients.get_mut(key)?.asking.clone());
            if let Some(before) = before {
                self.abandon_asking(&before);
            }
            return self.establish(peer, route, params, will, prompted);
        }
        // Two connections with one client id would end each other for ever (MQTT 3.1.1 §3.1.4).
        if is_own_id(&id_at_broker(&params.id, &self.settings.broker), &self.settings.broker) {
            self.counters.connects_refused += 1;
            return self.answer_connect(&peer, route, ReturnCode::NotSupported);
        }
        let key = self.clients.key_or_insert(&params.id, self.now, &mut self.rng);
        if self.asking.get(&peer).is_some_and(|asked| asked.key != key) {
            self.abandon_asking(&peer);
        }
        let Some(session) = self.clients.get_mut(key) else { return };
        let before = session.asking.replace(Box::new(peer.clone()));
        let kept = match &will {
            WillChange::Keep => session.will_message(),
            WillChange::Delete => None,
            WillChange::Set(will) => will.message(),
        };
        // A client id connects from one peer at a time: the later CONNECT is the one that counts (Interpretation: R-100).
        if let Some(before) = before.filter(|before| **before != peer) {
            self.asking.remove(&before);
            self.timers.cancel(&Timer::Handshake(before));
        }
        let opening = Opening {
            id: params.id.clone(),
            clean: params.clean,
            keep_alive: params.keep_alive.into(),
            expiry: self.settings.sessions.expiry,
            window: self.settings.sessions.queue.messages,
            will: kept.filter(|_| self.settings.broker.wills == Wills::Broker),
        };
        let (links, mut cx) = self.links_cx();
        match links.open(key, opening, &mut cx) {
            Opened::Ready => return self.establish(peer, route, params, will, prompted),
            Opened::Asked => {}
        }
        self.timers
            .set(Timer::Handshake(Box::new(peer.clone())), self.now + self.settings.broker.ack_timeout);
        self.asking.insert(peer, Asked { key, route, params, will, prompted });
    }

    /// How the client is to be served: as its session is, if that lives on, else as its transport says.
    fn mode(&mut self, peer: &Peer, params: &Params) -> Mode {
        let port = self.settings.ports[usize::from(peer.port.0)].mode;
        let Some(key) = self.clients.key(&params.id) else { return port };
        match self.clients.get_mut(key) {
            Some(session) if session.fresh || session.mode == port => port,
            Some(session) if !session.clean && !params.clean => session.mode,
            _ => {
                // Nothing of it goes over.
                self.remove_session(key);
                port
            }
        }
    }

    /// The broker has accepted the client.
    pub(super) fn handle_accepted(&mut self, key: ClientKey, inherited: bool) {
        let Some(session) = self.clients.get_mut(key) else { return };
        session.inherited = inherited || (session.inherited && !session.clean);
        let Some(peer) = session.asking.take() else { return };
        let Some(asked) = self.asking.remove(&peer) else { return };
        self.timers.cancel(&Timer::Handshake(peer.clone()));
        self.establish(*peer, asked.route, asked.params, asked.will, asked.prompted);
    }

    /// The broker has not accepted the client, for this reason (Interpretation: R-025).
    pub(super) fn handle_refused(&mut self, key: ClientKey, code: ReturnCode) {
        let Some(peer) = self.clients.get_mut(key).and_then(|session| session.asking.clone()) else { return };
        let Some(route) = self.asking.get(&peer).map(|asked| asked.route) else { return };
        self.counters.connects_refused_by_broker += 1;
        self.answer_connect(&peer, route, code);
        self.abandon_asking(&peer);
    }

    /// The broker's answer is of no interest any more: everything is as it was before the CONNECT, but for a link that had to
    /// go for it.
    fn abandon_asking(&mut self, peer: &Peer) {
        let Some(Asked { key, .. }) = self.asking.remove(peer) else { return };
        self.timers.cancel(&Timer::Handshake(Box::new(peer.clone())));
        let (links, mut cx) = self.links_cx();
        let has_link = links.abandon(key, &mut cx);
        let Some(session) = self.clients.get_mut(key) else { return };
        session.asking = None;
        if session.fresh {
            return self.remove_session(key);
        }
        let (will, is_bound) = (session.will_message(), session.peer.is_some());
        // Who asked knows it from the answer; who sleeps hears of it when it wakes.
        let elsewhere = session.peer.clone().filter(|it| **it != *peer && session.is_receiving());
        let route = session.route;
        if has_link && self.settings.broker.wills == Wills::Broker {
            let (links, _) = self.links_cx();
            links.change_will(key, will);
        }
        match (has_link, is_bound) {
            (false, true) => {
                if let Some(elsewhere) = elsewhere {
                    self.disconnect_peer(&elsewhere, route, Some(Whose::Client(key)));
                }
                self.end_connection(key, State::Disconnected);
            }
            // The link may have been left for the CONNECT, and be lost with it.
            (true, true) => {
                let grace = self.now + self.settings.broker.grace;
                self.timers.set_unless_set(Timer::Client(key, ClientTimer::Grace), grace);
            }
            (_, false) => {}
        }
    }

    /// Makes the client Active at this peer, with what CleanSession and Will say of its session (§6.3).
    fn establish(&mut self, peer: Peer, route: Route, params: Params, will: WillChange, prompted: bool) {
        if let Some(session) = self.clients.key(&params.id).and_then(|key| self.clients.get_mut(key)) {
            session.asking = None;
        }
        self.abandon_handshake(&peer);
        self.unbind_others(&peer, &params.id);
        self.take_over(&peer, &params.id);
        let key = self.clients.key_or_insert(&params.id, self.now, &mut self.rng);
        self.clients.bind(key, &peer);
        let mode = self.links.mode(key);
        let Some((session, mut cx)) = self.session_cx(key) else { return };
        // What a clean session held ends with it too (MQTT 3.1.1 §3.1.2.4).
        if params.clean || session.clean {
            session.clear(&mut cx);
        }
        session.drop_requests(&mut cx);
        match will {
            WillChange::Keep => {}
            WillChange::Delete => session.will = None,
            WillChange::Set(will) => session.set_will(will),
        }
        let was = session.state;
        (session.state, session.clean, session.keep_alive) = (State::Active, params.clean, params.keep_alive);
        (session.route, session.last_heard) = (route, cx.now);
        (session.just_connected, session.prompted) = (!prompted, prompted);
        (session.fresh, session.mode, session.overdue) = (false, mode, false);
        (session.told, session.took_leave) = (None, false);
        cx.timers.cancel(&Timer::Client(key, ClientTimer::Grace));
        cx.timers.cancel(&Timer::Client(key, ClientTimer::Expiry));
        session.supervise(&mut cx);
        cx.counters.connects_accepted += 1;
        session.send(Packet::ConnAck(Response { code: ReturnCode::Accepted }), &mut cx);
        session.resume_uplink(&mut cx);
        session.resume_downlink(&mut cx);
        match was {
            State::Disconnected | State::Lost => {
                tracing::info!(client = %params.id, clean_session = params.clean, "client connected");
            }
            // Of a client that was not away this is no news, and some do it each time they wake.
            State::Active | State::Asleep | State::Awake => {
                tracing::debug!(client = %params.id, clean_session = params.clean, "client connected again");
            }
        }
    }

    /// A peer is one client at a time: the one it was before is gone without notice (Interpretation: R-101).
    fn unbind_others(&mut self, peer: &Peer, id: &ClientId) {
        let other = self.clients.by_peer_mut(peer).filter(|session| session.id != *id);
        if let Some(key) = other.map(|session| session.key) {
            self.end_connection(key, State::Lost);
        }
    }

    /// A client id is at one peer at a time: the new one owns the session, the old one is told (Interpretation: R-100).
    fn take_over(&mut self, peer: &Peer, id: &ClientId) {
        let Some(session) = self.clients.key(id).and_then(|key| self.clients.get_mut(key)) else { return };
        let route = session.route;
        let Some(old) = session.peer.clone().filter(|old| **old != *peer) else { return };
        let listens = session.is_receiving();
        self.counters.sessions_taken_over += 1;
        if listens {
            self.disconnect_peer(&old, route, None);
        }
    }

    /// CONNACK. One that accepts waits until the session is durable, also when it is repeated.
    fn answer_connect(&mut self, peer: &Peer, route: Route, code: ReturnCode) {
        let whose = self.clients.by_peer(peer).filter(|_| code == ReturnCode::Accepted).map(Whose::Client);
        let to = Addressee { whose, peer, route };
        self.air.send(to, Packet::ConnAck(Response { code }), &mut self.counters);
    }
}
