//! What is due to clients: answers, and messages in their order.

use std::collections::BTreeMap;
use std::time::Instant;

use mqtt_sn_gateway::gateway::Counters;
use mqtt_sn_gateway::gateway::record::Lsn;

use crate::air::sheds;
use crate::law::{Checked, Law};
use crate::ledger::{Ledger, No, Who};

/// An answer that is due.
pub(super) struct Due {
    by: Instant,
    /// The last batch that it may wait for, once its time is over.
    after: Option<Lsn>,
}

impl Due {
    pub(super) fn new(by: Instant) -> Self {
        Self { by, after: None }
    }

    /// Whether its time is over, and everything is durable that was handed out until then.
    pub(super) fn is_overdue(&mut self, now: Instant, last: Lsn, reported: Lsn) -> bool {
        // What is due at this moment may be done in it, and what is done wait for what is handed out in it.
        if now <= self.by {
            return false;
        }
        let known = self.after.is_some();
        let after = *self.after.get_or_insert(last);
        known && after <= reported
    }
}

/// Messages for clients.
#[derive(Default)]
pub(super) struct Owed {
    /// How often something came from the broker, and when each message, live or retained, did so first and last.
    count: u64,
    arrivals: BTreeMap<(No, bool), (u64, u64)>,
    /// The last that left for a client, by when it came first.
    cursors: BTreeMap<Who, u64>,
    /// Messages that are kept no more and that the client does not have, in this process.
    dropped: Vec<(Who, No)>,
}

impl Owed {
    pub(super) fn died(&mut self) {
        self.dropped.clear();
    }

    pub(super) fn arrived(&mut self, no: No, retain: bool) {
        self.count += 1;
        let count = self.count;
        self.arrivals.entry((no, retain)).or_insert((count, count)).1 = count;
    }

    /// G4: a message leaves for the first time in a session, behind everything that came before it.
    pub(super) fn check_order(
        &mut self,
        who: Who,
        no: No,
        retain: bool,
        lanes: bool,
        ledger: &Ledger,
    ) -> Checked {
        let Some((first, last)) = self.arrivals.get(&(no, retain)).copied() else { return Ok(()) };
        let cursor = self.cursors.entry(who).or_default();
        let before = *cursor;
        *cursor = before.max(first);
        // Links have orders of their own, and what waits for a name that the client does not learn is overtaken.
        let free = lanes || ledger.is_overtaken(who);
        Law::InOrder.check(before <= last || free, || {
            format!("s{who} is sent m{no}, which came as {last}, behind the one that came as {before}")
        })
    }

    /// A message that was kept for a client is kept no more.
    pub(super) fn dropped(&mut self, who: Who, no: No, has: bool) {
        if !has {
            self.dropped.push((who, no));
        }
    }

    /// G6: what is kept no more the client has, or it is in a counter.
    pub(super) fn check_dropped(&self, explained: u64) -> Checked {
        Law::NothingLost.check(self.dropped.len() as u64 <= explained, || {
            format!("{:?} are kept no more, {explained} are in counters", self.dropped)
        })
    }
}

/// Messages for clients that the counters know as gone and not delivered.
pub(super) fn explained(counters: &Counters) -> u64 {
    sheds(counters)
        + counters.downlink_unanswered
        + counters.downlink_offline
        + counters.downlink_expired
        + counters.downlink_ended
}
