//! Topic ids of one client (§6.5, §6.7, §7.3): which number stands for which name, and whether the client knows.
//!
//! Ids are given out in one ascending run from a random start, never twice in a session, and never a number that is
//! predefined for the client: an id the client remembers from another session leads nowhere rather than to another
//! topic, and a client that matches by number alone is not misled (Interpretation: A-39).

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::few::{Rare, Vacant, make_place};
use super::io::Settings;
use super::record::{TopicRow, TopicStanding};
use crate::topic::{ClientId, TopicName};
use crate::wire::{ReturnCode, TopicRef};

/// Lowest and highest number a registry starts from: above the small numbers people choose for predefined topics, and
/// with room enough ahead that ids need not wrap in a session's life.
const START: std::ops::Range<u16> = 0x0100..0x7000;

/// Names among which one is found as fast by looking at all: most clients have no more.
const FEW_NAMES: usize = 8;

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
    /// In the order in which the ids were given out. A new one is always the last.
    topics: Vec<Topic>,
    /// The ids in the order of the names, if there are more than [`FEW_NAMES`].
    by_name: Rare<Vec<u16>>,
    /// Of all names.
    octets: u32,
    next: u16,
    /// Ids given out; the run ends before it meets its start again.
    given: u16,
    /// How often the client has connected.
    connections: u32,
    rare: Rare<Exceptions>,
}

/// What there is of a registry now and then.
#[derive(Debug, Default)]
struct Exceptions {
    /// Names that the client did not answer our REGISTER for, and until when they are not offered (Interpretation: R-113).
    resting: BTreeMap<u16, Instant>,
    /// Ids whose rows may differ from what is here.
    changed: Vec<u16>,
    /// Ids that have rows and are no more.
    gone: Vec<u16>,
}

impl Vacant for Exceptions {
    const VACANT: &'static Self = &Self { resting: BTreeMap::new(), changed: Vec::new(), gone: Vec::new() };

    fn is_vacant(&self) -> bool {
        self.resting.is_empty() && self.changed.is_empty() && self.gone.is_empty()
    }
}

#[derive(Debug)]
struct Topic {
    name: TopicName,
    id: u16,
    standing: Standing,
    /// What its row says, if it has one.
    stored: Option<Stored>,
}

/// What the row of an id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Unconfirmed,
    /// The client has learnt it in this connection.
    Known,
    /// The client had learnt it in an earlier one.
    Forgotten,
    Rejected,
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
            topics: Vec::new(),
            by_name: Rare::default(),
            octets: 0,
            next: rng.u16(START),
            given: 0,
            connections: 0,
            rare: Rare::default(),
        }
    }

    /// The id of `name`, a new one if it has none.
    pub(super) fn id_of(&mut self, name: &TopicName, scope: Scope<'_>) -> Result<u16, Exhausted> {
        if let Some(topic) = self.by_name(name) {
            return Ok(topic.id);
        }
        let octets = self.octets as usize + name.as_str().len();
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
        make_place(&mut self.topics);
        self.topics.push(Topic { name: name.clone(), id, standing: Standing::New, stored: None });
        self.list_name(name, id);
        Ok(id)
    }

    /// Takes account of the name of a new id.
    fn list_name(&mut self, name: &TopicName, id: u16) {
        self.octets += octets(name);
        if !self.by_name.is_empty() {
            if let Err(at) = self.find_name(name) {
                make_place(&mut self.by_name);
                self.by_name.insert(at, id);
            }
        } else if self.topics.len() > FEW_NAMES {
            let mut topics: Vec<_> = self.topics.iter().collect();
            topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let ids = topics.into_iter().map(|topic| topic.id).collect();
            *self.by_name = ids;
        }
    }

    /// Takes back an id that the client was never told of.
    pub(super) fn withdraw(&mut self, id: u16) {
        if let Ok(at) = self.find(id)
            && self.topics[at].standing == Standing::New
        {
            if let Ok(at) = self.find_name(&self.topics[at].name) {
                self.by_name.remove(at);
            }
            self.octets -= octets(&self.topics.remove(at).name);
        }
    }

    /// The topic of a PUBLISH from the client, or the refusal the client is told (§6.6, §6.7).
    pub(super) fn resolve(&self, topic: TopicRef, scope: Scope<'_>) -> Result<TopicName, ReturnCode> {
        let named = match topic {
            TopicRef::Normal(id) => self.topic(id).map(|topic| &topic.name),
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
        if self.by_name(topic).is_none()
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
        match self.topic(id).map(|topic| topic.standing) {
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
        self.topic(id).is_some_and(|topic| topic.standing == Standing::Known)
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
        self.rare.resting.insert(id, until);
    }

    /// Whether the name is not to be offered yet.
    pub(super) fn is_resting(&self, name: &TopicName) -> bool {
        let resting = &self.rare.resting;
        !resting.is_empty() && self.by_name(name).is_some_and(|topic| resting.contains_key(&topic.id))
    }

    /// Whether any name is not to be offered yet.
    pub(super) fn has_rests(&self) -> bool {
        !self.rare.resting.is_empty()
    }

    /// Offers again what has rested until `now`; returns when the next name will have.
    pub(super) fn end_rests(&mut self, now: Instant) -> Option<Instant> {
        if self.has_rests() {
            self.rare.resting.retain(|_, until| *until > now);
        }
        self.rare.resting.values().min().copied()
    }

    /// All names may be offered.
    pub(super) fn end_all_rests(&mut self) {
        if self.has_rests() {
            self.rare.resting.clear();
        }
    }

    /// The client connected again and may have forgotten everything; its ids stay valid (Interpretation: A-04), and so
    /// does what it said of names.
    pub(super) fn unconfirm_all(&mut self) {
        for topic in &mut self.topics {
            if !matches!(topic.standing, Standing::New | Standing::Rejected) {
                topic.standing = Standing::Unconfirmed;
            }
            if topic.stored == Some(Stored::Known) {
                topic.stored = Some(Stored::Forgotten);
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
        let topic = self.by_name(name);
        topic.is_some_and(|topic| topic.standing == Standing::Known && topic.stored == Some(Stored::Known))
    }

    /// Rows to be written since the last time: the id, whether it has a row already, and what is to be there instead.
    pub(super) fn take_changes(&mut self) -> Vec<(u16, bool, Option<TopicRow>)> {
        if self.rare.changed.is_empty() && self.rare.gone.is_empty() {
            self.rare.tidy();
            return Vec::new();
        }
        let Exceptions { resting, changed, gone } = self.rare.take();
        if !resting.is_empty() {
            self.rare.resting = resting;
        }
        let mut changes: Vec<_> = gone.into_iter().map(|id| (id, true, None)).collect();
        for id in changed {
            let (origin, connections) = (self.origin(), self.connections);
            let Ok(at) = self.find(id) else { continue };
            let topic = &mut self.topics[at];
            let (standing, says) = match topic.standing {
                Standing::New => continue,
                Standing::Known => (TopicStanding::Known(connections), Stored::Known),
                Standing::Unconfirmed => (TopicStanding::Unconfirmed, Stored::Unconfirmed),
                Standing::Rejected => (TopicStanding::Rejected, Stored::Rejected),
            };
            let before = topic.stored;
            // Known in an earlier connection says the same.
            let is_said = says == Stored::Unconfirmed && before == Some(Stored::Forgotten);
            if before != Some(says) && !is_said {
                topic.stored = Some(says);
                let nth = id.wrapping_sub(origin).wrapping_add(1);
                changes.push((
                    id,
                    before.is_some(),
                    Some(TopicRow { name: topic.name.clone(), nth, standing }),
                ));
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
        let (standing, stored) = match row.standing {
            TopicStanding::Known(connection) if connection == self.connections => {
                (Standing::Known, Stored::Known)
            }
            TopicStanding::Known(_) => (Standing::Unconfirmed, Stored::Forgotten),
            TopicStanding::Unconfirmed => (Standing::Unconfirmed, Stored::Unconfirmed),
            TopicStanding::Rejected => (Standing::Rejected, Stored::Rejected),
        };
        if row.nth > self.given {
            (self.given, self.next) = (row.nth, id.wrapping_add(1));
        }
        let Err(at) = self.find(id) else { return };
        make_place(&mut self.topics);
        self.topics.insert(at, Topic { name: row.name.clone(), id, standing, stored: Some(stored) });
        self.list_name(&row.name, id);
    }

    /// Names that have ids.
    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// Forgets all names. The next ones get other ids, until the run has gone all the way round.
    pub(super) fn clear(&mut self) {
        let mut gone = self.rare.take().gone;
        gone.extend(self.topics.iter().filter(|topic| topic.stored.is_some()).map(|topic| topic.id));
        if !gone.is_empty() {
            self.rare.gone = gone;
        }
        (self.topics, self.by_name) = (Vec::new(), Rare::default());
        (self.octets, self.given) = (0, 0);
    }

    fn set_standing(&mut self, id: u16, standing: Standing) {
        if let Ok(at) = self.find(id) {
            self.topics[at].standing = standing;
            self.rare.changed.push(id);
        }
        if self.has_rests() {
            self.rare.resting.remove(&id);
        }
    }

    /// The first id of the run, whether or not it was given out.
    fn origin(&self) -> u16 {
        self.next.wrapping_sub(self.given)
    }

    /// Where an id is, or belongs.
    fn find(&self, id: u16) -> Result<usize, usize> {
        let origin = self.origin();
        self.topics.binary_search_by_key(&id.wrapping_sub(origin), |topic| topic.id.wrapping_sub(origin))
    }

    fn topic(&self, id: u16) -> Option<&Topic> {
        self.find(id).ok().map(|at| &self.topics[at])
    }

    /// Which of the names in [`Registry::by_name`] it is, or would be.
    fn find_name(&self, name: &TopicName) -> Result<usize, usize> {
        self.by_name.binary_search_by(|id| match self.topic(*id) {
            Some(topic) => topic.name.cmp(name),
            None => Ordering::Less,
        })
    }

    fn by_name(&self, name: &TopicName) -> Option<&Topic> {
        if self.by_name.is_empty() {
            return self.topics.iter().find(|topic| topic.name == *name);
        }
        self.topic(self.by_name[self.find_name(name).ok()?])
    }
}

/// A name has at most 65,535.
fn octets(name: &TopicName) -> u32 {
    u32::try_from(name.as_str().len()).unwrap_or(u32::MAX)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(number: u8) -> TopicName {
        TopicName::new(format!("t/{number}")).unwrap()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask(u8),
        Tell(u8),
        Withdraw(u8),
        Connect,
        Forget,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => (0..40u8).prop_map(Step::Ask),
            6 => (0..40u8).prop_map(Step::Tell),
            4 => (0..40u8).prop_map(Step::Withdraw),
            2 => Just(Step::Connect),
            1 => Just(Step::Forget),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Also where the run of ids goes from the highest number to the lowest.
        #[test]
        fn names_and_ids_find_each_other_whatever_happens(steps in prop::collection::vec(step(), 0..120)) {
            let topics = BTreeMap::from([(3, name(100))]);
            let names = Names::new(&topics);
            let predefined = Predefined { common: names, clients: BTreeMap::new() };
            let client = ClientId::new("n1").unwrap();
            let scope = Scope { client: &client, predefined: &predefined, max_topics: 30 };
            let mut registry = Registry { next: 0xFFF8, ..Registry::new(&mut fastrand::Rng::with_seed(7)) };
            let (mut ids, mut rows) = (BTreeMap::new(), BTreeMap::new());
            let mut given = std::collections::BTreeSet::new();
            for step in steps {
                match step {
                    Step::Ask(number) => match registry.id_of(&name(number), scope) {
                        Ok(id) if ids.contains_key(&number) => prop_assert_eq!(id, ids[&number]),
                        Ok(id) => {
                            prop_assert!(given.insert(id) && ![0, 3, 0xFFFF].contains(&id));
                            ids.insert(number, id);
                        }
                        Err(Exhausted) => prop_assert_eq!(ids.len(), 30),
                    },
                    Step::Tell(number) => ids.get(&number).into_iter().for_each(|id| registry.confirm(*id)),
                    Step::Withdraw(number) => {
                        if let Some(id) = ids.get(&number).copied() {
                            registry.withdraw(id);
                            if registry.topic(id).is_none() {
                                prop_assert!(!rows.contains_key(&id));
                                ids.remove(&number);
                            }
                        }
                    }
                    Step::Connect => registry.unconfirm_all(),
                    Step::Forget => {
                        registry.clear();
                        ids.clear();
                    }
                    Step::Restart => {
                        let connections = registry.connections();
                        registry = Registry::new(&mut fastrand::Rng::with_seed(7));
                        registry.restore_connections(connections);
                        for (id, row) in rows.clone() {
                            registry.restore(id, row);
                        }
                        ids.retain(|_, id| rows.contains_key(id));
                        // Ids of which there is no row nobody knows.
                        given.retain(|id| rows.contains_key(id));
                    }
                }
                for (id, had, row) in registry.take_changes() {
                    let before = match row {
                        Some(row) => rows.insert(id, row),
                        None => rows.remove(&id),
                    };
                    prop_assert_eq!(before.is_some(), had);
                }
                prop_assert_eq!(registry.len(), ids.len());
                for (number, id) in &ids {
                    prop_assert_eq!(registry.id_of(&name(*number), scope), Ok(*id));
                    prop_assert_eq!(registry.resolve(TopicRef::Normal(*id), scope), Ok(name(*number)));
                }
                let octets: usize = ids.keys().map(|number| name(*number).as_str().len()).sum();
                prop_assert_eq!(registry.octets as usize, octets);
            }
        }
    }
}
