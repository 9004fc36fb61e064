//! What the gateway's own links know again after a restart.

use std::collections::BTreeSet;
use std::time::Instant;

use super::lanes::{Lane, lane_id};
use super::subscribers::{Claim, Subscribers};
use super::{Aggregate, Purpose};
use crate::gateway::ClientKey;
use crate::gateway::links::UplinkId;
use crate::gateway::links::pool::{LinkKey, Pool};
use crate::gateway::record::{FilterRow, SubscriptionRow};
use crate::mqtt::{SubscriptionId, Token};
use crate::topic::TopicFilter;

/// A filter that the broker had on the link of this number.
pub(in crate::gateway) type Held = (u16, TopicFilter, FilterRow);

/// A subscription of a client.
pub(in crate::gateway) type Claimed = (ClientKey, TopicFilter, SubscriptionRow);

impl Aggregate {
    /// What the broker had before a restart, and what clients had. They are as many as everything else together, so they
    /// are brought together in the order of the filters, and nothing is looked up.
    pub(in crate::gateway::links) fn restore(
        &mut self,
        mut held: Vec<Held>,
        mut claimed: Vec<Claimed>,
        pool: &mut Pool,
        now: Instant,
    ) {
        let numbers: BTreeSet<_> = held.iter().map(|(number, ..)| *number).collect();
        numbers.into_iter().for_each(|number| self.restore_lane(number, pool, now));
        held.sort_unstable_by(|(one, a, _), (other, b, _)| (a, one).cmp(&(b, other)));
        claimed.sort_unstable_by(|(one, a, _), (other, b, _)| (a, one).cmp(&(b, other)));
        let rows =
            held.iter().map(|(number, filter, row)| ((usize::from(*number), filter.clone()), row.clone()));
        self.rows = rows.collect();
        let mut filters = Vec::<(TopicFilter, Subscribers)>::with_capacity(held.len());
        for (number, filter, row) in held {
            if filters.last().is_none_or(|(last, _)| *last != filter) {
                filters.push((filter.clone(), Subscribers::default()));
            }
            if let Some((_, subscribers)) = filters.last_mut() {
                self.restore_filter(number, filter, &row, subscribers);
            }
        }
        let claimed_alone = claim(&mut filters, claimed);
        let filters = filters.into_iter().chain(claimed_alone);
        self.filters = filters.map(|(filter, subscribers)| (filter, Box::new(subscribers))).collect();
        self.had_ids = self.shares_overlaps();
        let is_settled = |it: &Subscribers| it.at_broker && it.granted && !it.clients.is_empty();
        let unsettled = self.filters.iter().filter(|(_, subscribers)| !is_settled(subscribers));
        self.unsettled = unsettled.map(|(filter, _)| filter.clone()).collect();
    }

    /// A further link, unless it is there. They come in ascending order.
    fn restore_lane(&mut self, number: u16, pool: &mut Pool, now: Instant) {
        if self.link_of(number).is_none() {
            let mut options = self.options.clone();
            options.client_id = lane_id(&options.client_id, number.into());
            let link = pool.add(options, None, now);
            self.lanes.push(Lane::new(link, number.into()));
        }
    }

    fn restore_filter(
        &mut self,
        number: u16,
        filter: TopicFilter,
        row: &FilterRow,
        subscribers: &mut Subscribers,
    ) {
        let Some(lane) = self.lanes.iter().position(|lane| lane.number == usize::from(number)) else {
            return;
        };
        self.last_subscription = self.last_subscription.max(row.subscription.unwrap_or(0));
        if subscribers.at_broker {
            // It was asked for here while the broker had yet to forget it there, or the other way round.
            self.vacated = true;
            if subscribers.granted && !row.granted {
                return self.left_behind.push((lane, filter));
            }
            self.left_behind.push((subscribers.lane, filter));
        }
        (subscribers.at_broker, subscribers.lane) = (true, lane);
        (subscribers.told, subscribers.granted) = (Some(row.qos), row.granted);
        subscribers.id = row.subscription.and_then(SubscriptionId::new);
    }

    /// Whether filters share a link and overlap: then the broker told copies apart, and they are spread if it does not any
    /// more. Of two that overlap one has a wildcard.
    fn shares_overlaps(&self) -> bool {
        let wild = self.filters.iter().filter(|(filter, _)| filter.has_wildcard());
        let mut held = wild.filter(|(_, subscribers)| subscribers.at_broker);
        held.any(|(filter, subscribers)| self.lanes_of_overlapping(filter).contains(&subscribers.lane))
    }

    /// A link of a number that filters were restored on, or the gateway's own.
    pub(in crate::gateway::links) fn link_of(&self, number: u16) -> Option<LinkKey> {
        let number = usize::from(number);
        self.lanes.iter().find(|lane| lane.number == number).map(|lane| lane.link)
    }

    /// A message goes on under this token.
    pub(in crate::gateway::links) fn restore_publish(
        &mut self,
        client: ClientKey,
        id: UplinkId,
        token: Token,
    ) {
        self.lanes[0].purposes.insert(token, Purpose::Publish(client, id));
    }
}

/// Adds subscriptions to the filters that the broker has, both in the order of the filters. Returns those of other filters.
fn claim(
    filters: &mut [(TopicFilter, Subscribers)],
    claimed: Vec<Claimed>,
) -> Vec<(TopicFilter, Subscribers)> {
    let mut others = Vec::<(TopicFilter, Subscribers)>::new();
    let mut held = filters.iter_mut().peekable();
    for (client, filter, row) in claimed {
        let claim = Claim { qos: row.qos, since: row.since, asked: None, awaits_retained: false };
        while held.next_if(|(other, _)| *other < filter).is_some() {}
        let subscribers = match held.peek_mut() {
            Some((other, subscribers)) if *other == filter => subscribers,
            _ => {
                if others.last().is_none_or(|(last, _)| *last != filter) {
                    others.push((filter, Subscribers::default()));
                }
                let Some((_, subscribers)) = others.last_mut() else { continue };
                subscribers
            }
        };
        subscribers.clients.insert(client, claim);
    }
    others
}
