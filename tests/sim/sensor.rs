//! A sensor: a [`Node`] and the application on it, with what that application has asked for and was told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::node::{Backoff, Filter, Node, Options, PublishId, Topic, Will};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use crate::air::client_id;
use crate::ledger::{No, Who};
use crate::plan::SensorPlan;

pub(crate) struct Sensor {
    pub(crate) who: Who,
    /// Whose client id it has.
    pub(crate) client: Who,
    /// Another sensor has the same.
    pub(crate) shared: bool,
    /// It has left the world for good.
    pub(crate) retired: bool,
    pub(crate) settled: bool,
    /// Since when it has been asleep and nothing else.
    pub(crate) resting: Option<Instant>,
    /// `None`: switched off.
    pub(crate) node: Option<Node>,
    pub(crate) addr: SocketAddr,
    pub(crate) node_id: Option<Bytes>,
    pub(crate) clean: bool,
    pub(crate) has_will: bool,
    /// Out of reach: nothing gets through either way.
    pub(crate) muted: bool,
    pub(crate) sleeps: bool,
    /// How long it told the gateway that it sleeps.
    pub(crate) nap: Duration,
    /// Counts what changes when it will wake.
    pub(crate) naps: u32,
    /// It has had its PINGRESP since it last woke.
    pub(crate) drained: bool,
    /// How often it was switched on before.
    pub(crate) life: u32,
    /// Changes when the memory by which it tells repetitions is gone.
    pub(crate) session: u32,
    pub(crate) session_since: Option<Instant>,
    pub(crate) given: BTreeMap<PublishId, No>,
    pub(crate) held: BTreeSet<Filter>,
    /// What it was refused, or gave up: the gateway may have it all the same.
    pub(crate) doubtful: BTreeSet<Filter>,
    /// What it was granted last, and at which of its changes.
    pub(crate) granted: BTreeMap<Filter, (Qos, u64)>,
    pub(crate) changes: u64,
    /// When there was last anything about its subscriptions.
    pub(crate) changed: Option<Instant>,
    /// Subscribes and unsubscribes without an answer.
    pub(crate) asked: Vec<Filter>,
    pub(crate) predefined: BTreeMap<u16, TopicName>,
    keep_alive: Duration,
    retry_interval: Duration,
}

impl Sensor {
    pub(crate) fn new(who: Who, plan: &SensorPlan, predefined: BTreeMap<u16, TopicName>) -> Self {
        Self {
            who,
            client: plan.client,
            shared: false,
            retired: false,
            settled: plan.settled,
            resting: None,
            node: None,
            addr: plan.addr,
            node_id: plan.node_id.clone().map(Bytes::from),
            clean: plan.clean,
            has_will: plan.will,
            muted: false,
            sleeps: plan.sleeps,
            nap: Duration::ZERO,
            naps: 0,
            drained: false,
            life: 0,
            session: 0,
            session_since: None,
            given: BTreeMap::new(),
            held: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            granted: BTreeMap::new(),
            changes: 0,
            changed: None,
            asked: Vec::new(),
            predefined,
            keep_alive: plan.keep_alive,
            retry_interval: plan.retry_interval,
        }
    }

    /// Begins a new life, without any memory of the one before.
    pub(crate) fn switch_on(&mut self, now: Instant, seed: u64, will: Option<Will>) {
        let mut options = Options::new(client_id(self.client));
        options.keep_alive = self.keep_alive;
        options.clean_session = self.clean;
        options.will = will;
        options.retry_interval = self.retry_interval;
        options.congestion_wait = Some(Duration::from_secs(2));
        options.reconnect = Some(Backoff { min: Duration::from_millis(500), max: Duration::from_secs(4) });
        options.predefined = self.predefined.clone();
        options.node_id = self.node_id.clone();
        options.seed = seed;
        let mut node = Node::new(options);
        node.connect(now);
        self.node = Some(node);
    }

    pub(crate) fn switch_off(&mut self) {
        self.node = None;
        self.resting = None;
        self.life += 1;
        self.session += 1;
        self.given.clear();
        self.held.clear();
        self.doubtful.clear();
        self.asked.clear();
    }

    /// It is asleep, or on the way there, or awake for no more than what waits.
    pub(crate) fn is_asleep(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_asleep)
    }

    /// The name of a topic as this sensor was configured.
    pub(crate) fn name_of(&self, topic: &Topic) -> Option<TopicName> {
        match topic {
            Topic::Name(name) => Some(name.clone()),
            Topic::Predefined(id) => self.predefined.get(id).cloned(),
            Topic::Short(name) => TopicName::new(name).ok(),
        }
    }

    pub(crate) fn filter_of(&self, filter: &Filter) -> Option<TopicFilter> {
        match filter {
            Filter::Name(filter) => Some(filter.clone()),
            Filter::Predefined(id) => TopicFilter::new(self.predefined.get(id)?.as_str()).ok(),
            Filter::Short(name) => TopicFilter::new(name).ok(),
        }
    }

    /// The gateway's answer came. It may also come to what the node asked again by itself.
    pub(crate) fn answered(&mut self, filter: &Filter) {
        if let Some(at) = self.asked.iter().position(|asked| asked == filter) {
            self.asked.remove(at);
        }
    }

    /// Whether the application holds a subscription for this topic.
    pub(crate) fn wants(&self, topic: &TopicName) -> bool {
        self.held.iter().filter_map(|filter| self.filter_of(filter)).any(|filter| filter.matches(topic))
    }

    /// The QoS at which it was granted what matches, and when, counted in its own changes.
    pub(crate) fn granted(&self, topic: &TopicName) -> Option<(Qos, u64)> {
        let granted = self.granted.iter().filter(|(filter, _)| self.held.contains(filter));
        let granted: Vec<(Qos, u64)> = granted
            .filter(|(filter, _)| self.filter_of(filter).is_some_and(|filter| filter.matches(topic)))
            .map(|(_, granted)| *granted)
            .collect();
        let since = granted.iter().map(|(_, since)| since).sum();
        granted.iter().map(|(qos, _)| (*qos, since)).max()
    }

    /// Its subscriptions that match, and what it was granted.
    pub(crate) fn matching(&self, topic: &TopicName) -> impl Iterator<Item = (TopicFilter, Qos)> {
        let granted = |filter| self.granted.get(filter).map_or(Qos::AtMostOnce, |(qos, _)| *qos);
        let held =
            self.held.iter().filter_map(move |filter| Some((self.filter_of(filter)?, granted(filter))));
        held.filter(|(filter, _)| filter.matches(topic))
    }

    /// Something about its subscriptions changes.
    pub(crate) fn change(&mut self, now: Instant) -> u64 {
        self.changes += 1;
        self.changed = Some(now);
        self.changes
    }

    /// Whether it may get messages on this topic all the same.
    pub(crate) fn bears(&self, topic: &TopicName) -> bool {
        self.doubtful.iter().filter_map(|filter| self.filter_of(filter)).any(|filter| filter.matches(topic))
    }

    /// Whether it asked for, or gave up, something that matches, and has no answer.
    pub(crate) fn is_asking_about(&self, topic: &TopicName) -> bool {
        self.asked.iter().filter_map(|filter| self.filter_of(filter)).any(|filter| filter.matches(topic))
    }

    /// Why it is not at rest, if it is not.
    pub(crate) fn unrest(&self) -> Option<String> {
        let who = self.who;
        match &self.node {
            None => Some(format!("s{who} is off")),
            Some(node) if !node.is_connected() => Some(format!("s{who} is not connected")),
            Some(node) if node.pending() > 0 => {
                Some(format!("s{who} has {} messages pending", node.pending()))
            }
            Some(_) if !self.asked.is_empty() => {
                Some(format!("s{who} waits for {} answers", self.asked.len()))
            }
            // What it asks for again by itself may have been refused for the moment.
            Some(node) if !node.is_subscribed() => Some(format!("s{who} has yet to subscribe again")),
            Some(_) => None,
        }
    }
}
