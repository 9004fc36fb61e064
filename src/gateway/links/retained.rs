//! Who gets which retained message: hand-outs, one for each SUBSCRIBE whose retained messages are still to come.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::gateway::ClientKey;
use crate::gateway::few::{FewMap, Rare};
use crate::mqtt::QoS;
use crate::topic::tree::FilterTree;
use crate::topic::{TopicFilter, TopicName};

/// How long after the broker's answer to a SUBSCRIBE messages with the retain flag are for the subscriber. Before it they
/// are too.
const HAND_OUT: Duration = Duration::from_secs(10);

/// Topics that a hand-out remembers. A filter that brings more within the time has had what it can expect.
const SEEN_MAX: usize = 1000;

/// The hand-outs that are open. There is at most one for each subscription of a client, so they need no bound of their own.
#[derive(Debug, Default)]
pub(super) struct HandOuts {
    open: FilterTree<FewMap<ClientKey, HandOut>>,
    /// When those close that the broker has answered, in order.
    closing: BTreeSet<(Instant, ClientKey, TopicFilter)>,
}

#[derive(Debug)]
struct HandOut {
    qos: QoS,
    /// Topics that came already, retained or live.
    seen: Rare<BTreeSet<TopicName>>,
    /// None before the broker has answered.
    until: Option<Instant>,
}

impl HandOuts {
    /// A SUBSCRIBE of the client left: what it brings is for this client, at most at this QoS, whatever an earlier one
    /// brought.
    pub(super) fn open(&mut self, client: ClientKey, filter: &TopicFilter, qos: QoS) {
        self.close(client, filter);
        self.keep_open(client, filter, qos);
    }

    /// A SUBSCRIBE left in the name of a client: what it brings is for the client, but for what it had already.
    pub(super) fn keep_open(&mut self, client: ClientKey, filter: &TopicFilter, qos: QoS) {
        let hand_outs = self.open.get_or_default(filter);
        match hand_outs.get_mut(&client).map(|hand_out| hand_out.until.take()) {
            Some(None) => {}
            Some(Some(until)) => {
                self.closing.remove(&(until, client, filter.clone()));
            }
            None => {
                hand_outs.insert(client, HandOut { qos, seen: Rare::default(), until: None });
            }
        }
    }

    /// The broker answered: from now on what the SUBSCRIBE brings may still take its time.
    pub(super) fn answered(&mut self, now: Instant, client: ClientKey, filter: &TopicFilter, qos: QoS) {
        let found = self.open.get_mut(filter).and_then(|hand_outs| hand_outs.get_mut(&client));
        let Some(hand_out) = found else { return };
        hand_out.qos = qos;
        if let Some(before) = hand_out.until.replace(now + HAND_OUT) {
            self.closing.remove(&(before, client, filter.clone()));
        }
        self.closing.insert((now + HAND_OUT, client, filter.clone()));
    }

    pub(super) fn close(&mut self, client: ClientKey, filter: &TopicFilter) {
        let Some(hand_outs) = self.open.get_mut(filter) else { return };
        if let Some(HandOut { until: Some(until), .. }) = hand_outs.remove(&client) {
            self.closing.remove(&(until, client, filter.clone()));
        }
        if hand_outs.is_empty() {
            self.open.remove(filter);
        }
    }

    /// Closes what has had its time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|until| until <= now) {
            let Some((_, client, filter)) = self.closing.pop_first() else { return };
            self.close(client, &filter);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.closing.first().map(|(until, ..)| *until)
    }

    /// A message came on this topic: whom it is for if it is a retained one. To each it goes once, and not after a live
    /// one.
    pub(super) fn take(&mut self, topic: &TopicName) -> Vec<(ClientKey, QoS)> {
        if self.open.is_empty() {
            return Vec::new();
        }
        let mut filters = Vec::new();
        self.open.matches(topic, |filter, _| filters.push(filter.clone()));
        let mut clients = Vec::new();
        for filter in filters {
            let Some(hand_outs) = self.open.get_mut(&filter) else { continue };
            for (client, hand_out) in hand_outs.iter_mut() {
                if hand_out.seen.insert(topic.clone()) {
                    clients.push((*client, hand_out.qos));
                }
            }
            let full: Vec<_> =
                hand_outs.iter().filter(|(_, open)| open.seen.len() > SEEN_MAX).map(|(c, _)| *c).collect();
            for client in full {
                self.close(client, &filter);
            }
        }
        clients
    }
}
