//! Further links beside the gateway's own, for filters that overlap at a broker which cannot tell its copies apart: where a filter
//! rides, and when a link is begun, moved from and left.

use std::collections::BTreeSet;
use std::time::Instant;

use rustc_hash::FxHashMap;
use tracing::warn;

use super::subscribers::Subscribers;
use super::{Aggregate, Asking, Purpose};
use crate::gateway::io::BrokerSettings;
use crate::gateway::links::dedicated::code_of_refusal;
use crate::gateway::links::link::{LinkCx, Lost};
use crate::gateway::links::pool::{LinkKey, Pool};
use crate::mqtt::{Connection, Token};
use crate::topic::TopicFilter;
use crate::wire::ReturnCode;

/// The gateway's own link and further ones. So many filters that all overlap each other nobody has seen; what goes beyond is
/// counted, and may come more than once from a broker that sends several copies.
const LANES_MAX: usize = 8;

/// Client ids for them: where a link is needed again while the last one of that id is being left, another id is free.
const LANE_IDS_MAX: usize = 2 * LANES_MAX;

/// So often in a row the broker was there and has not accepted a further link while the gateway's own stayed up: then it does not
/// want it, whatever it says. With a broker that answers that takes half a minute at the most; who subscribes meanwhile
/// is told to try again.
const LANE_FAILURES_MAX: u32 = 5;

/// One link of those that all clients share.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) link: LinkKey,
    /// By which its client id is told from the others: 1 is the gateway's own.
    pub(super) number: usize,
    pub(super) purposes: FxHashMap<Token, Purpose>,
    /// How often the broker was there in vain since it last accepted this link, or failed the gateway's own.
    pub(super) failures: u32,
    /// When the broker last accepted it.
    pub(super) accepted: Option<Instant>,
    /// What was asked up to this was repeated on this connection, in a session that may know it from an earlier one.
    pub(super) repeated: Option<Token>,
}

impl Lane {
    pub(super) fn new(link: LinkKey, number: usize) -> Self {
        Self { link, number, purposes: FxHashMap::default(), failures: 0, accepted: None, repeated: None }
    }

    /// Whether the broker has answered for everything.
    pub(super) fn is_idle(&self) -> bool {
        self.purposes.is_empty()
    }
}

impl Aggregate {
    /// The lane of a filter: the one that it has, else the first without a filter that overlaps it.
    pub(super) fn place(&mut self, filter: &TopicFilter, pool: &mut Pool, now: Instant) -> usize {
        if let Some(subscribers) = self.filters.get(filter).filter(|subscribers| subscribers.at_broker) {
            return subscribers.lane;
        }
        if pool.connection(self.lanes[0].link).is_some_and(Connection::has_subscription_ids) {
            return 0;
        }
        let taken = self.lanes_of_overlapping(filter);
        let free = (0..LANES_MAX).find(|lane| !taken.contains(lane));
        let Some(free) = free.filter(|lane| *lane < self.lanes.len() || self.add_lane(pool, now)) else {
            self.crowded += 1;
            return 0;
        };
        free
    }

    /// Begins another lane, unless the broker does not want it or is slower to let go of those before.
    fn add_lane(&mut self, pool: &mut Pool, now: Instant) -> bool {
        if self.alone {
            return false;
        }
        self.leaving.retain(|(link, _)| pool.connection(*link).is_some());
        let taken = |number: &usize| {
            let leaving = self.leaving.iter().map(|(_, number)| number);
            self.lanes.iter().map(|lane| &lane.number).chain(leaving).any(|taken| taken == number)
        };
        let Some(number) = (2..=LANE_IDS_MAX).find(|number| !taken(number)) else { return false };
        let mut options = self.options.clone();
        options.client_id = lane_id(&options.client_id, number);
        let link = pool.add(options, None, now);
        self.lanes.push(Lane::new(link, number));
        true
    }

    pub(super) fn lanes_of_overlapping(&self, filter: &TopicFilter) -> BTreeSet<usize> {
        let mut lanes = BTreeSet::new();
        self.filters.overlapping(filter, |other, subscribers| {
            if subscribers.at_broker && other != filter {
                lanes.insert(subscribers.lane);
            }
        });
        lanes
    }

    /// The connection of a lane is lost, or did not come about.
    pub(in crate::gateway::links) fn handle_lost(
        &mut self,
        lane: usize,
        lost: Lost,
        pool: &mut Pool,
        cx: &mut LinkCx<'_>,
    ) {
        if lane == 0 || !self.is_up(pool) {
            // Whatever is wrong is not wrong with the further links alone.
            self.lanes.iter_mut().for_each(|lane| lane.failures = 0);
            return;
        }
        // Where nobody is there, the gateway's own link may only have yet to notice that.
        self.lanes[lane].failures += u32::from(lost != Lost::Away);
        let refused =
            matches!(lost, Lost::Refused(refusal) if code_of_refusal(refusal) != ReturnCode::Congestion);
        if refused || self.lanes[lane].failures >= LANE_FAILURES_MAX {
            warn!(
                "the broker does not want a further connection: where filters overlap, copies may come twice"
            );
            self.alone = true;
            self.remove_lane(lane, pool, cx);
        }
    }

    /// What is on a lane that is not to be had, and what the broker was asked for there, goes to the first one.
    fn remove_lane(&mut self, lane: usize, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        let Lane { link, number, purposes, .. } = self.lanes.remove(lane);
        pool.remove(link, false, cx);
        self.closed.push(link);
        self.leaving.push((link, number));
        let rows = self.rows.keys().filter(|(stored, _)| *stored == number).cloned();
        self.changed.extend(rows);
        self.left_behind.retain(|(left, _)| *left != lane);
        for (left, _) in &mut self.left_behind {
            *left -= usize::from(*left > lane);
        }
        let moved = self.filters.iter().filter(|(_, subscribers)| subscribers.lane == lane);
        let moved: Vec<_> = moved.map(|(filter, _)| filter.clone()).collect();
        self.filters.for_each_mut(|subscribers| {
            if subscribers.lane == lane {
                let clients = std::mem::take(&mut subscribers.clients);
                **subscribers = Subscribers { clients, id: subscribers.id, ..Subscribers::default() };
            }
            subscribers.lane -= usize::from(subscribers.lane > lane);
        });
        for filter in moved {
            if self.filters.get(&filter).is_some_and(|subscribers| subscribers.clients.is_empty()) {
                self.filters.remove(&filter);
            }
            self.unsettled.insert(filter);
        }
        let mut purposes: Vec<_> = purposes.into_iter().collect();
        purposes.sort_unstable_by_key(|(token, _)| *token);
        for (_, purpose) in purposes {
            if let Purpose::Subscribe(asking) = purpose {
                self.ask_again(asking, pool, cx.now);
            }
        }
    }

    /// Asks for what a client still waits for on the lane where there is room. If it cannot be asked, the client hears nothing
    /// and tries again.
    pub(super) fn ask_again(&mut self, mut asking: Asking, pool: &mut Pool, now: Instant) {
        let filter = asking.filter.clone();
        let Some(qos) = self.filters.get(&filter).and_then(|subscribers| subscribers.qos()) else { return };
        let subscription = self.subscription(&filter);
        let lane = self.place(&filter, pool, now);
        let Ok((token, rises)) = self.ask(lane, &[(filter.clone(), qos)], subscription, pool) else { return };
        asking.rises |= rises;
        self.lanes[lane].purposes.insert(token, Purpose::Subscribe(asking));
        self.unsettled.remove(&filter);
        let subscribers = self.filters.get_or_default(&filter);
        (subscribers.at_broker, subscribers.lane, subscribers.told) = (true, lane, Some(qos));
        subscribers.asks(self.lanes[lane].link, token);
        self.note(lane, &filter);
    }

    /// The broker does not tell copies apart any more: what is on the first lane is placed anew. Of what has waited there
    /// nobody can tell for which filter it came; so nothing is asked for on another lane before the broker has forgotten it here,
    /// and until then what comes here is for all who were here.
    pub(super) fn spread(&mut self) {
        let here =
            self.filters.iter().filter(|(_, subscribers)| subscribers.at_broker && subscribers.lane == 0);
        let here: Vec<_> = here.map(|(filter, _)| filter.clone()).collect();
        for filter in here {
            if let Some(subscribers) = self.filters.get_mut(&filter) {
                (subscribers.at_broker, subscribers.moving) = (false, true);
                self.left_behind.push((0, filter.clone()));
                self.unsettled.insert(filter);
            }
        }
    }

    /// Unsubscribes where filters were before, unless they are there again.
    pub(super) fn leave_behind(&mut self, pool: &mut Pool) {
        for (lane, filter) in std::mem::take(&mut self.left_behind) {
            let stays = self.filters.get_mut(&filter).filter(|it| it.at_broker && it.lane == lane);
            if let Some(subscribers) = stays {
                subscribers.moving = false;
                continue;
            }
            let Some(left) = self.lanes.get_mut(lane) else { continue };
            let Some(connection) = pool.connection_mut(left.link) else { continue };
            let filters = vec![filter.clone()];
            match connection.unsubscribe(&filters) {
                Ok(token) => {
                    self.given_up.insert((left.number, filter));
                    left.purposes.insert(token, Purpose::Unsubscribe(filters));
                }
                Err(full) if full.is_final() => self.has_left(lane, &filter),
                Err(_) => self.left_behind.push((lane, filter)),
            }
        }
    }

    /// The broker has a filter no more on a lane where it may have been before: it may be asked for where it is to be.
    pub(super) fn has_left(&mut self, lane: usize, filter: &TopicFilter) {
        let Some(subscribers) = self.filters.get_mut(filter) else { return };
        if lane == 0 && std::mem::take(&mut subscribers.moving) {
            subscribers.granted = false;
            self.unsettled.insert(filter.clone());
        }
    }

    /// Leaves the last lanes, with their sessions, when nothing rides on them and the broker has answered for everything: if it
    /// cannot be told that the session is of no use, there is nothing in it.
    pub(super) fn close_empty_lanes(&mut self, pool: &mut Pool, cx: &mut LinkCx<'_>) {
        while self.lanes.len() > 1
            && let Some(lane) = self.lanes.pop_if(|lane| lane.is_idle() && pool.is_up(lane.link))
        {
            let last = self.lanes.len();
            if self.filters.iter().any(|(_, subscribers)| subscribers.lane >= last) {
                return self.lanes.push(lane);
            }
            self.closed.push(lane.link);
            pool.remove(lane.link, true, cx);
            self.leaving.push((lane.link, lane.number));
        }
    }
}

/// The client id of the link of this number.
pub(super) fn lane_id(own: &str, number: usize) -> String {
    format!("{own}-{number}")
}

/// Whether the gateway connects under this client id, or may.
pub(in crate::gateway) fn is_own_id(id: &str, settings: &BrokerSettings) -> bool {
    id == settings.client_id || (2..=LANE_IDS_MAX).any(|number| id == lane_id(&settings.client_id, number))
}
