//! Sessions as rows and back (design promise G5).
//!
//! A session is compared with what is stored of it whenever it was touched, so that no change can be forgotten. What is
//! many, or large, or has an order of its own is not compared but tells of its changes: topic ids and subscriptions are listed
//! where they change, messages are put down where they begin and end to be kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Gateway;
use super::few::Vacant;
use super::io::{Mode, Peer, PortId, Settings, Wills};
use super::journal::{Journal, Whose};
use super::links::{Claimed, Held, Opening, Sender, UplinkId};
use super::record::{
    ClientKey, ExchangeRow, ExchangeState, GatewayRow, Key, MessageId, PeerRow, Row, SessionRow, Standing,
    SubscriptionRow, UplinkRow, WaitingRow, WillRow,
};
use super::session::{FilterChanges, Seconds, Session, State, Subscription, Will, WillTopic};
use super::timer::{ClientTimer, Timer};
use crate::mqtt::{Message, Received};
use crate::topic::{ClientId, TopicFilter, TopicName};
use crate::wire::TopicRef;

/// The key of no session: of a client that has left messages for the broker behind.
const NOBODY: super::ClientKey = super::ClientKey(0);

/// Within this time after a restart clients that are not asleep get what waits for them: not all at once.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);

/// What is stored of a session.
#[derive(Debug, Default)]
pub(super) struct Stored {
    facts: Option<Facts>,
    will: Option<Arc<Will>>,
}

/// What makes the row of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    standing: Standing,
    clean: bool,
    mode: Mode,
    inherited: bool,
    keep_alive: Seconds,
    sleep: Seconds,
    connections: u32,
    peer: Option<Arc<Peer>>,
}

impl Facts {
    fn row(&self, settings: &Settings) -> SessionRow {
        let peer = self.peer.as_ref().and_then(|peer| {
            let port = settings.ports.get(usize::from(peer.port.0))?;
            Some(PeerRow { port: port.name.clone(), addr: peer.addr, node: peer.node.clone() })
        });
        SessionRow {
            standing: self.standing,
            clean: self.clean,
            mode: self.mode,
            inherited: self.inherited,
            keep_alive: self.keep_alive.into(),
            sleep: self.sleep.into(),
            connections: self.connections,
            peer,
        }
    }
}

impl Session {
    /// Puts down what has changed since the last time.
    pub(super) fn put_down(&mut self, settings: &Settings, journal: &mut Journal) {
        if self.fresh {
            // It was another session, which has ended.
            return self.put_down_end(journal);
        }
        let facts = Facts {
            standing: match self.state {
                State::Active if self.took_leave => Standing::Leaving,
                State::Active => Standing::Active,
                State::Asleep | State::Awake => Standing::Asleep,
                State::Disconnected => Standing::Disconnected,
                State::Lost => Standing::Lost,
            },
            clean: self.clean,
            mode: self.mode,
            inherited: self.inherited,
            keep_alive: self.keep_alive,
            sleep: self.sleep,
            connections: self.registry.connections(),
            peer: self.peer.clone(),
        };
        if self.stored.facts.as_ref() != Some(&facts) {
            let row = Row::Session(self.id.clone(), facts.row(settings));
            put(journal, self.whose(), self.stored.facts.is_some(), row);
        }
        // Also if it says the same: the peer is then not there twice.
        self.stored.facts = Some(facts);
        self.put_down_parts(journal);
    }

    /// Puts down that the session is no more.
    pub(super) fn put_down_end(&mut self, journal: &mut Journal) {
        self.will = None;
        self.put_down_parts(journal);
        if self.stored.facts.take().is_some() {
            journal.delete(self.whose(), self.key_of(ClientKey::Session));
        }
    }

    fn put_down_parts(&mut self, journal: &mut Journal) {
        if self.stored.will != self.will {
            match &self.will {
                Some(will) => {
                    let had = self.stored.will.is_some();
                    put(journal, self.whose(), had, Row::Will(self.id.clone(), will.row()));
                }
                None => journal.delete(self.whose(), self.key_of(ClientKey::Will)),
            }
            self.stored.will = self.will.clone();
        }
        for (id, had, row) in self.registry.take_changes() {
            match row {
                Some(row) => put(journal, self.whose(), had, Row::Topic(self.id.clone(), id, row)),
                None => journal.delete(self.whose(), self.key_of(ClientKey::Topic(id))),
            }
        }
        if !self.filter_changes.is_vacant() {
            let FilterChanges { granted, ended } = self.filter_changes.take();
            self.put_down_filters(granted, ended, journal);
        }
        self.requests.tidy();
        self.uplink.tidy();
    }

    fn put_down_filters(
        &mut self,
        granted: Vec<TopicFilter>,
        ended: Vec<(TopicFilter, SubscriptionRow)>,
        journal: &mut Journal,
    ) {
        for (filter, row) in ended {
            // It may have been granted again.
            match self.subscriptions.get_mut(&filter).filter(|subscription| subscription.granted) {
                Some(subscription) => subscription.stored = Some(row),
                None => journal.delete(self.whose(), self.key_of(ClientKey::Subscription(filter))),
            }
        }
        let whose = self.whose();
        for filter in granted {
            let subscription = self.subscriptions.get_mut(&filter);
            let Some(subscription) = subscription.filter(|subscription| subscription.granted) else {
                continue;
            };
            let Subscription { topic, qos, since, .. } = *subscription;
            let row = SubscriptionRow { topic, qos, since };
            let before = subscription.stored.replace(row.clone());
            // Some clients subscribe again each time they wake.
            if before.as_ref() != Some(&row) {
                let row = Row::Subscription(self.id.clone(), filter, row);
                put(journal, whose, before.is_some(), row);
            }
        }
    }

    /// The row of the session, which is bound to its peer already; then its other rows may follow, in any order.
    pub(super) fn restore(&mut self, row: SessionRow, now: Instant) {
        let peer = self.peer.clone();
        // Where its transport is no more it sends nothing before it connects, as if it slept, and is lost in its time.
        let is_active = matches!(row.standing, Standing::Active | Standing::Leaving);
        let (keep_alive, sleep) = (row.keep_alive.into(), row.sleep.into());
        let silence: Seconds = if is_active { keep_alive } else { sleep };
        self.took_leave = row.standing == Standing::Leaving;
        self.state = match (row.standing, &peer) {
            (Standing::Active | Standing::Leaving, Some(_)) => State::Active,
            (Standing::Asleep, Some(_)) => State::Asleep,
            (Standing::Active | Standing::Leaving | Standing::Asleep, None) if silence.0 > 0 => State::Asleep,
            (Standing::Leaving, None) => State::Disconnected,
            (Standing::Active | Standing::Asleep | Standing::Lost, _) => State::Lost,
            (Standing::Disconnected, _) => State::Disconnected,
        };
        (self.fresh, self.clean, self.mode, self.inherited) = (false, row.clean, row.mode, row.inherited);
        self.keep_alive = keep_alive;
        self.sleep = if peer.is_none() { silence } else { sleep };
        self.last_heard = now;
        self.registry.restore_connections(row.connections);
        self.stored.facts = Some(Facts {
            standing: row.standing,
            clean: row.clean,
            mode: row.mode,
            inherited: row.inherited,
            keep_alive,
            sleep,
            connections: row.connections,
            peer,
        });
    }

    pub(super) fn restore_will(&mut self, row: WillRow) {
        let topic = row.topic.map(|(name, qos, retain)| WillTopic { name, qos, retain });
        self.will = Some(Arc::new(Will { topic, message: row.message }));
        self.stored.will = self.will.clone();
    }

    /// A subscription that was granted; its topic is named like this from now on.
    pub(super) fn restore_subscription(
        &mut self,
        filter: TopicFilter,
        topic: TopicRef,
        row: SubscriptionRow,
    ) {
        let SubscriptionRow { qos, since, .. } = row;
        let stored = Some(row);
        self.subscriptions.insert(filter, Subscription { topic, qos, granted: true, since, stored });
    }

    /// For whom the rows of this session are.
    pub(super) fn whose(&self) -> Whose {
        Whose::Client(self.key)
    }

    /// The key of something of this client.
    pub(super) fn key_of(&self, what: ClientKey) -> Key {
        Key::Client(self.id.clone(), what)
    }
}

impl Will {
    fn row(&self) -> WillRow {
        let topic = self.topic.as_ref().map(|topic| (topic.name.clone(), topic.qos, topic.retain));
        WillRow { topic, message: self.message.clone() }
    }
}

fn put(journal: &mut Journal, whose: Whose, had: bool, row: Row) {
    if had {
        journal.update(whose, row);
    } else {
        journal.insert(whose, row);
    }
}

/// Where a client was reached, if there is still such a transport.
pub(super) fn peer(row: PeerRow, settings: &Settings) -> Option<Peer> {
    let port = settings.ports.iter().position(|port| port.name == row.port)?;
    Some(Peer { port: PortId(u16::try_from(port).ok()?), addr: row.addr, node: row.node })
}

impl Gateway {
    /// A gateway that goes on where one with these rows has stopped, or was stopped. Their order does not matter. All times
    /// begin anew: who was awaited is awaited in full.
    pub fn restore(settings: Settings, rows: impl IntoIterator<Item = Row>, now: Instant) -> Self {
        let mut gateway = Self::new(settings, now);
        let mut rest = Rest::default();
        for row in rows {
            match row {
                Row::Session(id, row) => gateway.restore_session(id, row, &mut rest),
                row => gateway.restore_row(row, &mut rest),
            }
        }
        gateway.restore_rest(rest);
        gateway.resume_sessions();
        gateway
    }

    fn restore_rest(&mut self, mut rest: Rest) {
        let same = self.restore_own_id(rest.client_id.take());
        if !same {
            for (number, filter, _) in rest.held.drain(..) {
                self.journal.delete_in_time(Key::Filter(number, filter));
            }
        }
        for (id, part) in std::mem::take(&mut rest.parts) {
            match self.clients.key(&id) {
                Some(key) => self.restore_part(key, part, &mut rest.claimed),
                None => self.leave_out(part.key()),
            }
        }
        self.links.restore_shared(rest.held, rest.claimed, self.now);
        self.restore_own_links(rest.dedicated);
        let mut received: Vec<_> =
            rest.received.into_iter().map(|(link, received)| (Ok(link), received)).collect();
        for (id, one) in rest.client_received {
            match self.clients.key(&id) {
                Some(key) => received.push((Err(key), one)),
                None => self.leave_out(Key::Client(id, ClientKey::Received(one.packet))),
            }
        }
        rest.uplinks.sort_unstable_by_key(|(number, ..)| *number);
        let uplinks = rest.uplinks.into_iter().map(|(number, id, row)| {
            let key = self.clients.key(&id).unwrap_or(NOBODY);
            (UplinkId(number), Sender { key, id }, row)
        });
        let uplinks = uplinks.collect();
        self.links.restore_exchanges(uplinks, received, same, self.now, &mut self.journal);
        rest.exchanges.into_iter().for_each(|(id, msg_id, row)| self.restore_exchange(&id, msg_id, row));
        rest.waiting.sort_unstable_by_key(|(number, ..)| *number);
        for (number, id, row) in rest.waiting {
            self.restore_waiting(number, &id, row, &mut rest.messages);
        }
        for (id, (_, clients)) in rest.messages {
            match clients {
                0 => self.leave_out(Key::Message(id)),
                _ => self.journal.restore_message(id, clients),
            }
        }
    }

    /// Whether the broker knows the gateway by the client id that it had then.
    fn restore_own_id(&mut self, stored: Option<String>) -> bool {
        let client_id = self.settings.broker.client_id.clone();
        let same = stored.as_ref() == Some(&client_id);
        let row = Row::Gateway(GatewayRow { client_id });
        match stored {
            _ if !self.settings.lasting || same => {}
            Some(_) => self.journal.update_in_time(row),
            None => self.journal.insert_in_time(row),
        }
        same
    }

    /// Clients with links of their own go on with them; not all at once.
    fn restore_own_links(&mut self, clients: Vec<super::ClientKey>) {
        for key in clients {
            let Some(session) = self.clients.get_mut(key) else { continue };
            let is_there = matches!(session.state, State::Active | State::Asleep);
            let filters = session.subscriptions.iter();
            let filters = filters.map(|(filter, subscription)| (filter.clone(), subscription.qos)).collect();
            let opening = Opening {
                id: session.id.clone(),
                clean: session.clean,
                keep_alive: session.keep_alive.into(),
                expiry: self.settings.sessions.expiry,
                window: self.settings.sessions.queue.messages,
                will: session.will_message().filter(|_| self.settings.broker.wills == Wills::Broker),
            };
            let at = is_there.then(|| self.now + RESUMED_WITHIN.mul_f64(self.rng.f64()));
            if is_there {
                let grace = self.now + self.settings.broker.grace.max(RESUMED_WITHIN);
                self.timers.set(Timer::Client(key, ClientTimer::Grace), grace);
            }
            let (links, mut cx) = self.links_cx();
            links.restore_own(key, opening, filters, at, &mut cx);
        }
    }

    fn restore_exchange(&mut self, id: &ClientId, msg_id: u16, row: ExchangeRow) {
        let released = match row.state {
            ExchangeState::Open(number) => {
                self.journal.restore_number(number);
                let released = self.links.is_released(UplinkId(number), id);
                if released.is_none() {
                    // It has not left: the client sends it again.
                    return self.journal.delete_in_time(Key::Client(id.clone(), ClientKey::Exchange(msg_id)));
                }
                released
            }
            ExchangeState::Received | ExchangeState::Finished => None,
        };
        let answer_by = self.now + self.settings.broker.ack_timeout;
        match self.clients.key(id).and_then(|key| self.clients.get_mut(key)) {
            Some(session) => session.restore_exchange(msg_id, row, released, answer_by, self.now),
            None => self.leave_out(Key::Client(id.clone(), ClientKey::Exchange(msg_id))),
        }
    }

    /// A row belongs to nothing: it is of no use, and would be found at every start.
    fn leave_out(&mut self, key: Key) {
        self.counters.rows_orphaned += 1;
        self.journal.delete_in_time(key);
    }

    fn restore_session(&mut self, id: ClientId, mut row: SessionRow, rest: &mut Rest) {
        let peer = row.peer.take().and_then(|row| peer(row, &self.settings));
        let peer = peer.filter(|peer| self.clients.by_peer(peer).is_none());
        let key = self.clients.key_or_insert(&id, self.now, &mut self.rng);
        if row.mode == Mode::Transparent {
            rest.dedicated.push(key);
        }
        rest.client = Some((id, key));
        if let Some(peer) = peer {
            self.clients.bind(key, &peer);
        }
        if let Some(session) = self.clients.get_mut(key) {
            session.restore(row, self.now);
        }
    }

    /// What belongs to a session that is there already is seen to, the rest in its time. Rows of one client stand together in a
    /// store, and its session before the others.
    fn restore_row(&mut self, row: Row, rest: &mut Rest) {
        let id = match &row {
            Row::Will(id, _) | Row::Topic(id, ..) | Row::Subscription(id, ..) | Row::Releasing(id, _) => id,
            _ => return rest.take(row),
        };
        match &rest.client {
            Some((client, key)) if client == id => self.restore_part(*key, row, &mut rest.claimed),
            _ => rest.parts.push((id.clone(), row)),
        }
    }

    fn restore_part(&mut self, key: super::ClientKey, row: Row, claimed: &mut Vec<Claimed>) {
        let Some(session) = self.clients.get_mut(key) else { return };
        match row {
            Row::Will(_, row) => session.restore_will(row),
            Row::Topic(_, topic, row) => session.registry.restore(topic, row),
            Row::Subscription(id, filter, row) => {
                if session.mode == Mode::Aggregating {
                    claimed.push((key, filter.clone(), row.clone()));
                }
                let means = |topic: &TopicName| topic.as_str() == filter.as_str();
                let topic = match row.topic {
                    // The id means another topic now, or none.
                    TopicRef::Predefined(number)
                        if !self.predefined.topic(number, Some(&id)).is_some_and(means) =>
                    {
                        TopicRef::Normal(0)
                    }
                    topic => topic,
                };
                session.restore_subscription(filter, topic, row);
            }
            Row::Releasing(_, msg_id) => session.restore_releasing(msg_id, self.now),
            // They are sorted out before.
            Row::Gateway(_)
            | Row::Message(..)
            | Row::Received(..)
            | Row::Filter(..)
            | Row::Session(..)
            | Row::Waiting(..)
            | Row::Exchange(..)
            | Row::Uplink(..)
            | Row::ClientReceived(..) => {}
        }
    }

    fn restore_waiting(
        &mut self,
        number: u64,
        id: &ClientId,
        mut row: WaitingRow,
        messages: &mut BTreeMap<MessageId, (Arc<Message>, usize)>,
    ) {
        self.journal.restore_number(number);
        let session = self.clients.key(id).and_then(|key| self.clients.get_mut(key));
        let (Some(session), Some((message, clients))) = (session, messages.get_mut(&row.message)) else {
            return self.leave_out(Key::Client(id.clone(), ClientKey::Waiting(number)));
        };
        *clients += 1;
        if let Some(TopicRef::Predefined(topic)) = row.sent_on
            && self.predefined.topic(topic, Some(id)) != Some(&message.topic)
        {
            // The id means another topic now, or none.
            row.sent_on = None;
        }
        session.restore_waiting(number, row, message.clone(), self.now, &mut self.queued_octets);
    }

    /// Sets what was running when the rows were written.
    fn resume_sessions(&mut self) {
        for key in self.clients.keys() {
            let msg_id = self.rng.u16(..);
            let at = self.now + RESUMED_WITHIN.mul_f64(self.rng.f64());
            let expiry = self.now + self.settings.sessions.expiry;
            let Some((session, mut cx)) = self.session_cx(key) else { continue };
            match session.state {
                State::Disconnected | State::Lost => session.set_timer(ClientTimer::Expiry, expiry, &mut cx),
                State::Active | State::Asleep | State::Awake => session.supervise(&mut cx),
            }
            session.resume_restored(msg_id, at, &mut cx);
            session.await_broker(&mut cx);
        }
    }
}

/// Rows that are looked at when all sessions are there.
#[derive(Debug, Default)]
struct Rest {
    /// Whose session came last.
    client: Option<(ClientId, super::ClientKey)>,
    /// Sessions with links of their own.
    dedicated: Vec<super::ClientKey>,
    client_id: Option<String>,
    messages: BTreeMap<MessageId, (Arc<Message>, usize)>,
    /// What the broker has on the gateway's own links.
    held: Vec<Held>,
    received: Vec<(u16, Received)>,
    client_received: Vec<(ClientId, Received)>,
    uplinks: Vec<(u64, ClientId, UplinkRow)>,
    exchanges: Vec<(ClientId, u16, ExchangeRow)>,
    waiting: Vec<(u64, ClientId, WaitingRow)>,
    /// Those that came before their sessions.
    parts: Vec<(ClientId, Row)>,
    /// What clients have there.
    claimed: Vec<Claimed>,
}

impl Rest {
    fn take(&mut self, row: Row) {
        match row {
            Row::Gateway(row) => self.client_id = Some(row.client_id),
            Row::Message(id, message) => {
                self.messages.insert(id, (message, 0));
            }
            Row::Filter(number, filter, row) => self.held.push((number, filter, row)),
            Row::Received(number, received) => self.received.push((number, received)),
            Row::ClientReceived(id, received) => self.client_received.push((id, received)),
            Row::Uplink(id, number, row) => self.uplinks.push((number, id, row)),
            Row::Exchange(id, msg_id, row) => self.exchanges.push((id, msg_id, row)),
            Row::Waiting(id, number, row) => self.waiting.push((number, id, row)),
            // They have a place of their own.
            Row::Session(..)
            | Row::Will(..)
            | Row::Topic(..)
            | Row::Subscription(..)
            | Row::Releasing(..) => {}
        }
    }
}
