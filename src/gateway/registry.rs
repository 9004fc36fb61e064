//! Topic ids of one client (§6.5, §6.7, §7.3): which number stands for which name, and whether the client knows.
//!
//! Ids are given out in one ascending run from a random start, never twice in a session, and never a number that is
//! predefined for the client: an id the client remembers from another session leads nowhere rather than to another
//! topic, and a client that matches by number alone is not misled (Interpretation: A-39).

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::few::FewMap;
use super::io::Settings;
use super::record::{TopicRow, TopicStanding};
use crate::topic::{ClientId, TopicName};
use crate::wire::{ReturnCode, TopicRef};

/// Lowest and highest number a registry starts from: above the small numbers people choose for predefined topics, and
/// with room enough ahead that ids need not wrap in a session's life.
const START: std::ops::Range<u16> = 0x0100..0x7000;

/// Octets of names on top of [`NAME_LEN`] for each topic allowed: a client may have a few of the longest.
const NAMES_LEN: usize = 65_536;

/// Octets that a name may have on average, when there are as many as allowed: more than sensors use.
const NAME_LEN: usize = 64;

/// Octets that so many names of one client may have together, so that a limit of topics is one of memory too.
pub(super) fn names_len_max(names: usize) -> usize {
    names.saturating_mul(NAME_LEN).saturating_add(NAMES_LEN)
}

/// Whose ids they are, and what limits them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) client: &'a ClientId,
    pub(super) predefined: &'a Predefined,
    pub(super) max_topics: usize,
}

/// The normal topic ids of one client.
#[derive(Debug)]
pub(super) struct Registry {
    topics: FewMap<u16, Topic>,
    ids: FewMap<TopicName, u16>,
    /// Names that the client did not answer our REGISTER for, and until when they are not offered (Interpretation: R-113).
    resting: BTreeMap<u16, Instant>,
    /// Of all names.
    octets: usize,
    next: u16,
    /// Ids given out; the run ends before it meets its start again.
    given: u16,
    /// How often the client has connected.
    connections: u32,
    /// Ids whose rows may differ from what is here.
    changed: Vec<u16>,
    /// Ids that have rows and are no more.
    gone: Vec<u16>,
}

#[derive(Debug)]
struct Topic {
    name: TopicName,
    /// The how-manieth id it is.
    nth: u16,
    standing: Standing,
    /// What its row says.
    stored: Option<TopicStanding>,
}

/// What the client makes of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was never told of the id.
    New,
    /// It may not know the id: REGISTER before the next PUBLISH.
    Unconfirmed,
    /// It learnt the id from a REGACK or SUBACK of ours, or confirmed our REGISTER.
    Known,
    /// It rejected our REGISTER: the name is not offered again in this session (§6.10).
    Rejected,
}

/// How a topic can be named in a PUBLISH to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// The client knows this.
    Known(TopicRef),
    /// This id must be registered first (§6.10).
    Register(u16),
    /// The client did not answer for the name, which is offered again later.
    Resting,
    /// The client will not have the name.
    Declined,
    /// No id is left.
    Exhausted,
}

/// As many ids as allowed are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Registry {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Self {
        Self {
            topics: FewMap::default(),
            ids: FewMap::default(),
            resting: BTreeMap::new(),
            octets: 0,
            next: rng.u16(START),
            given: 0,
            connections: 0,
            changed: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// The id of `name`, a new one if it has none.
    pub(super) fn id_of(&mut self, name: &TopicName, scope: Scope<'_>) -> Result<u16, Exhausted> {
        if let Some(id) = self.ids.get(name) {
            return Ok(*id);
        }
        let octets = self.octets + name.as_str().len();
        if self.topics.len() >= scope.max_topics || octets > names_len_max(scope.max_topics) {
            return Err(Exhausted);
        }
        let id = loop {
            if self.given == u16::MAX {
                return Err(Exhausted);
            }
            let id = self.next;
            self.next = self.next.wrapping_add(1);
            self.given += 1;
            if id != 0x0000 && id != 0xFFFF && !scope.predefined.has(id, scope.client) {
                break id;
            }
        };
        self.octets = octets;
        let topic = Topic { name: name.clone(), nth: self.given, standing: Standing::New, stored: None };
        self.topics.insert(id, topic);
        self.ids.insert(name.clone(), id);
        Ok(id)
    }

    /// Takes back an id that the client was never told of.
    pub(super) fn withdraw(&mut self, id: u16) {
        if self.topics.get(&id).is_some_and(|topic| topic.standing == Standing::New)
            && let Some(topic) = self.topics.remove(&id)
        {
            self.octets -= topic.name.as_str().len();
            self.ids.remove(&topic.name);
        }
    }

    /// The topic of a PUBLISH from the client, or the refusal the client is told (§6.6, §6.7).
    pub(super) fn resolve(&self, topic: TopicRef, scope: Scope<'_>) -> Result<TopicName, ReturnCode> {
        let named = match topic {
            TopicRef::Normal(id) => self.topics.get(&id).map(|topic| &topic.name),
            TopicRef::Predefined(id) => scope.predefined.topic(id, Some(scope.client)),
            TopicRef::Short(name) => return TopicName::portable(name).map_err(|_| ReturnCode::NotSupported),
            TopicRef::Reserved(_) => return Err(ReturnCode::NotSupported),
        };
        named.cloned().ok_or(ReturnCode::InvalidTopicId)
    }

    /// How to name `topic` to the client, which subscribed to exactly this topic by `subscribed` or to a filter that
    /// matches it by `None` (Interpretation: A-06).
    pub(super) fn name(
        &mut self,
        topic: &TopicName,
        subscribed: Option<TopicRef>,
        scope: Scope<'_>,
    ) -> Naming {
        if let Some(by @ (TopicRef::Predefined(_) | TopicRef::Short(_))) = subscribed {
            return Naming::Known(by);
        }
        if !self.ids.contains_key(topic)
            && let Some(id) = scope.predefined.id(topic, scope.client)
        {
            return Naming::Known(TopicRef::Predefined(id));
        }
        if self.is_resting(topic) {
            return Naming::Resting;
        }
        self.register(topic, scope)
    }

    /// How to name `topic` by a normal id, whatever other ways there are, and at once.
    pub(super) fn register(&mut self, topic: &TopicName, scope: Scope<'_>) -> Naming {
        let Ok(id) = self.id_of(topic, scope) else { return Naming::Exhausted };
        match self.topics.get(&id).map(|topic| topic.standing) {
            Some(Standing::Known) => Naming::Known(TopicRef::Normal(id)),
            Some(Standing::Rejected) => Naming::Declined,
            _ => {
                self.unconfirm(id);
                Naming::Register(id)
            }
        }
    }

    /// Whether the client knows the id.
    pub(super) fn is_known(&self, id: u16) -> bool {
        self.topics.get(&id).is_some_and(|topic| topic.standing == Standing::Known)
    }

    /// The client knows the id from now on.
    pub(super) fn confirm(&mut self, id: u16) {
        self.set_standing(id, Standing::Known);
    }

    /// The client says that it does not know the id (§6.10).
    pub(super) fn unconfirm(&mut self, id: u16) {
        self.set_standing(id, Standing::Unconfirmed);
    }

    /// The client rejected the REGISTER of this id.
    pub(super) fn reject(&mut self, id: u16) {
        self.set_standing(id, Standing::Rejected);
    }

    /// The client did not answer the REGISTER of this id, which is not offered before `until`.
    pub(super) fn rest(&mut self, id: u16, until: Instant) {
        self.resting.insert(id, until);
    }

    /// Whether the name is not to be offered yet.
    pub(super) fn is_resting(&self, name: &TopicName) -> bool {
        !self.resting.is_empty() && self.ids.get(name).is_some_and(|id| self.resting.contains_key(id))
    }

    /// Whether any name is not to be offered yet.
    pub(super) fn has_rests(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Offers again what has rested until `now`; returns when the next name will have.
    pub(super) fn end_rests(&mut self, now: Instant) -> Option<Instant> {
        self.resting.retain(|_, until| *until > now);
        self.resting.values().min().copied()
    }

    /// All names may be offered.
    pub(super) fn end_all_rests(&mut self) {
        self.resting.clear();
    }

    /// The client connected again and may have forgotten everything; its ids stay valid (Interpretation: A-04), and so
    /// does what it said of names.
    pub(super) fn unconfirm_all(&mut self) {
        for topic in self.topics.values_mut() {
            if !matches!(topic.standing, Standing::New | Standing::Rejected) {
                topic.standing = Standing::Unconfirmed;
            }
        }
        self.connections = self.connections.wrapping_add(1);
    }

    /// How often the client has connected.
    pub(super) fn connections(&self) -> u32 {
        self.connections
    }

    /// Whether the client was told an id of this name in this connection, and that was put down: it may be told again.
    pub(super) fn has_told(&self, name: &TopicName) -> bool {
        let topic = self.ids.get(name).and_then(|id| self.topics.get(id));
        topic.is_some_and(|topic| {
            topic.standing == Standing::Known && topic.stored == Some(TopicStanding::Known(self.connections))
        })
    }

    /// Rows to be written since the last time: the id, whether it has a row already, and what is to be there instead.
    pub(super) fn take_changes(&mut self) -> Vec<(u16, bool, Option<TopicRow>)> {
        let mut changes: Vec<_> = self.gone.drain(..).map(|id| (id, true, None)).collect();
        for id in std::mem::take(&mut self.changed) {
            let Some(topic) = self.topics.get_mut(&id) else { continue };
            let standing = match topic.standing {
                Standing::New => continue,
                Standing::Known => TopicStanding::Known(self.connections),
                Standing::Unconfirmed => TopicStanding::Unconfirmed,
                Standing::Rejected => TopicStanding::Rejected,
            };
            let before = topic.stored;
            // Known in an earlier connection says the same.
            let is_said = standing == TopicStanding::Unconfirmed
                && matches!(before, Some(TopicStanding::Known(connection)) if connection != self.connections);
            if before != Some(standing) && !is_said {
                topic.stored = Some(standing);
                let row = TopicRow { name: topic.name.clone(), nth: topic.nth, standing };
                changes.push((id, before.is_some(), Some(row)));
            }
        }
        changes
    }

    /// The client connected so often.
    pub(super) fn restore_connections(&mut self, connections: u32) {
        self.connections = connections;
    }

    /// The row of an id; those of one client in any order, after [`Registry::restore_connections`].
    pub(super) fn restore(&mut self, id: u16, row: TopicRow) {
        let standing = match row.standing {
            TopicStanding::Known(connection) if connection == self.connections => Standing::Known,
            TopicStanding::Known(_) | TopicStanding::Unconfirmed => Standing::Unconfirmed,
            TopicStanding::Rejected => Standing::Rejected,
        };
        if row.nth > self.given {
            (self.given, self.next) = (row.nth, id.wrapping_add(1));
        }
        self.octets += row.name.as_str().len();
        self.ids.insert(row.name.clone(), id);
        let topic = Topic { name: row.name, nth: row.nth, standing, stored: Some(row.standing) };
        self.topics.insert(id, topic);
    }

    /// Names that have ids.
    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// Forgets all names. The next ones get other ids, until the run has gone all the way round.
    pub(super) fn clear(&mut self) {
        let stored = self.topics.iter().filter(|(_, topic)| topic.stored.is_some());
        self.gone.extend(stored.map(|(id, _)| *id));
        self.changed.clear();
        self.topics.clear();
        self.ids.clear();
        self.resting.clear();
        self.octets = 0;
        self.given = 0;
    }

    fn set_standing(&mut self, id: u16, standing: Standing) {
        if let Some(topic) = self.topics.get_mut(&id) {
            topic.standing = standing;
            self.changed.push(id);
        }
        self.resting.remove(&id);
    }
}

/// Predefined topics, found both ways (§6.7).
#[derive(Debug)]
pub(super) struct Predefined {
    common: Names,
    clients: BTreeMap<ClientId, Names>,
}

#[derive(Debug, Default)]
struct Names {
    topics: BTreeMap<u16, TopicName>,
    ids: HashMap<TopicName, u16>,
}

impl Names {
    fn new(topics: &BTreeMap<u16, TopicName>) -> Self {
        let ids = topics.iter().map(|(id, name)| (name.clone(), *id)).collect();
        Self { topics: topics.clone(), ids }
    }
}

impl Predefined {
    pub(super) fn new(settings: &Settings) -> Self {
        let clients = settings.client_predefined.iter();
        Self {
            common: Names::new(&settings.predefined),
            clients: clients.map(|(id, topics)| (id.clone(), Names::new(topics))).collect(),
        }
    }

    /// The topic of an id: the client's own, else the common one.
    pub(super) fn topic(&self, id: u16, client: Option<&ClientId>) -> Option<&TopicName> {
        let own = client.and_then(|client| self.clients.get(client));
        own.and_then(|own| own.topics.get(&id)).or_else(|| self.common.topics.get(&id))
    }

    /// The id under which the client knows a topic. A common id that is the client's own for another topic does not count.
    fn id(&self, topic: &TopicName, client: &ClientId) -> Option<u16> {
        let own = self.clients.get(client);
        let common =
            || self.common.ids.get(topic).filter(|id| own.is_none_or(|own| !own.topics.contains_key(id)));
        own.and_then(|own| own.ids.get(topic)).or_else(common).copied()
    }

    fn has(&self, id: u16, client: &ClientId) -> bool {
        self.topic(id, Some(client)).is_some()
    }
}
