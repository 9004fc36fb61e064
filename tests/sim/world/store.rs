//! What becomes of batches, and of the gateway between them.

use std::collections::BTreeMap;
use std::time::Duration;

use mqtt_sn_gateway::gateway::Gateway;
use mqtt_sn_gateway::gateway::io::{Input, LinkCommand, LinkId, Mode, Output};
use mqtt_sn_gateway::gateway::record::{ClientKey, ExchangeState, Key, Lsn, Outcome, Record, Row};
use mqtt_sn_gateway::topic::TopicFilter;

use super::{Event, Restored, World};
use crate::air::client_id;
use crate::law::{Checked, Law};
use crate::link::{self, Lane};
use crate::plan::GATEWAY;
use crate::store;

impl Restored {
    fn count(&mut self, row: &Row) {
        self.rows += 1;
        let kind = match row {
            Row::Session(..) => &mut self.sessions,
            Row::Topic(..) => &mut self.topic_ids,
            Row::Subscription(..) => &mut self.subscriptions,
            Row::Will(..) => &mut self.wills,
            Row::Waiting(..) => &mut self.waiting,
            Row::Uplink(_, _, row) if row.promised => &mut self.promised,
            Row::Uplink(..) | Row::Received(..) | Row::ClientReceived(..) | Row::Releasing(..) => {
                &mut self.exactly_once
            }
            Row::Exchange(_, _, row) if row.state != ExchangeState::Finished => &mut self.exactly_once,
            Row::Exchange(..) | Row::Gateway(_) | Row::Message(..) | Row::Filter(..) => return,
        };
        *kind += 1;
    }
}

impl World<'_> {
    /// The gateway hands out a batch.
    pub(super) fn store_batch(&mut self, lsn: Lsn, records: Vec<Record>) -> Checked {
        if !self.plan.settings.lasting {
            self.gateway.handle(self.now, Input::Stored(lsn, Outcome::Durable));
            return Ok(());
        }
        self.trace.note(self.now, format!("batch {}: {records:?}", lsn.0));
        for record in &records {
            let gives_up = self.gateway.counters().uplink_expired > 0;
            if let Record::Delete(key) = record
                && gives_up
                && let Some(Row::Uplink(_, _, row)) = self.store.row(key)
                && row.promised
                && let Some(no) = self.ledger.find(&row.message.payload)
            {
                // It may have waited for the store for longer than it may wait for the broker.
                self.ledger.entry_mut(no).is_kept = true;
            }
            if let Record::Insert(Row::Uplink(id, number, row)) | Record::Update(Row::Uplink(id, number, row)) =
                record
                && row.promised
                && let Some(no) = self.ledger.find(&row.message.payload)
            {
                let before = self.store.row(&Row::Uplink(id.clone(), *number, row.clone()).key());
                let own = matches!(before, Some(Row::Uplink(_, _, before)) if before.dedicated);
                let entry = self.ledger.entry_mut(no);
                entry.promised = true;
                entry.by_own = Some(row.dedicated);
                entry.handed_over |= own && !row.dedicated;
            }
        }
        self.talk.batch(lsn, &records, &self.store, self.gateway.counters(), &self.ledger)?;
        for who in self.store.take(lsn, records)? {
            self.talk.session_ended(who);
            self.ledger.forget(Some(who));
            self.kept.remove(&who);
            self.told.session_ended(who);
            if let Some(account) = self.accounts.get_mut(client_id(who).as_str()) {
                account.session_ended();
            }
        }
        let mut delay = self.millis(0..self.plan.store.delay + 1);
        if self.is_active() && self.plan.store.hangs && self.rng.u8(0..100) == 0 {
            self.tally.store_hangs += 1;
            delay += self.millis(500..8000);
        }
        let at = self.store.at.map_or(self.now + delay, |at| at.max(self.now + delay));
        self.store.at = Some(at);
        self.at(at, Event::Stored(self.store.process, lsn));
        Ok(())
    }

    pub(super) fn stored(&mut self, process: u32, lsn: Lsn) -> Checked {
        if self.down || process != self.store.process || !self.store.is_open(lsn) {
            return Ok(());
        }
        if self.store.fails {
            self.trace.note(self.now, format!("batch {} cannot be written", lsn.0));
            self.told.untold(&mut self.ledger);
            return self.tell_gateway_only(Input::Stored(lsn, Outcome::Unavailable));
        }
        if self.store.last() > Some(lsn) && self.rng.u8(0..3) == 0 {
            // One answer is for both.
            return Ok(());
        }
        self.report(lsn)
    }

    fn report(&mut self, lsn: Lsn) -> Checked {
        self.trace.note(self.now, format!("batch {} is durable", lsn.0));
        self.store.durable(lsn, self.now);
        self.tell_gateway_only(Input::Stored(lsn, Outcome::Durable))
    }

    fn tell_gateway_only(&mut self, input: Input) -> Checked {
        self.air.begin(self.now);
        self.told.begin();
        self.tell_gateway(input)
    }

    pub(super) fn store_fails(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        self.trace.note(self.now, "the store cannot write");
        self.tally.store_failures += 1;
        self.store.fails = true;
        let (works, again) = (self.millis(100..6000), self.millis(7000..30_000));
        self.after(works, Event::StoreWorks);
        self.after(again, Event::StoreFails);
        Ok(())
    }

    pub(super) fn store_works(&mut self) -> Checked {
        self.store.fails = false;
        match self.store.last() {
            Some(lsn) if !self.down => self.report(lsn),
            _ => Ok(()),
        }
    }

    /// Soon the process is no more: before, between or after the next things that it does.
    pub(super) fn die_soon(&mut self) {
        if self.is_active() {
            self.dying = Some(self.rng.u32(0..6));
            let mean = self.plan.store.crashes.unwrap_or(Duration::from_secs(5));
            let pause = Duration::from_millis(500) + self.around(mean);
            self.after(pause, Event::Die);
        }
    }

    /// Whether the process dies before this output has left as a whole.
    pub(super) fn dies_now(&mut self) -> bool {
        match &mut self.dying {
            None => false,
            Some(0) => {
                self.dying = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    /// The process dies while it does this: a part of what it writes has left, a batch may be there or not.
    pub(super) fn die(&mut self, last: Output) -> Checked {
        match last {
            Output::Link(LinkId(link), LinkCommand::Write(mut octets)) => {
                let link = self.first_link + link;
                let begun = self.streams.get(&link).is_some_and(|stream| stream.whose.is_some());
                let len = if begun { self.rng.usize(0..=octets.len()) } else { octets.len() };
                self.tally.crashes_in_a_write += u64::from(len > 0 && len < octets.len());
                octets.truncate(len);
                if len > 0 && (begun || self.rng.bool()) {
                    self.link_command(link, LinkCommand::Write(octets))?;
                }
            }
            Output::Store { lsn, records } => self.store_batch(lsn, records)?,
            Output::Send { .. } | Output::Link(..) | Output::Answer(..) | Output::Stopped => {}
        }
        let more = self.rng.usize(0..=self.store.waiting());
        self.tally.crashes_in_a_commit += u64::from(self.store.waiting() > 0);
        self.tally.crashes_with_a_loss += u64::from(self.store.waiting() > more);
        let note = format!("the gateway dies; of {} batches {more} are there", self.store.waiting());
        self.trace.note(self.now, note);
        self.tally.gateway_crashes += 1;
        self.retired.push(self.gateway.counters().clone());
        if self.store.fails {
            // That QoS 2 comes once is then true only as long as the process lives.
            self.ledger.forget(None);
        }
        let filters = self.store.filters();
        self.store.crash(more, self.now);
        if self.store.fails {
            // The links have not waited: of these the broker may have heard, and nobody else knows them any more.
            self.unknown_filters.extend(&filters - &self.store.filters());
        }
        self.told.died(self.now, &mut self.ledger);
        self.talk.died(&self.store, &self.ledger);
        let (known, stored) = (self.store.has_gateway(), !self.store.fails);
        if !known {
            self.ledger.losses += 1;
            self.ledger.broken(None);
        }
        // The next process knows the session also if this one never had a broker.
        self.accounts.entry(GATEWAY.to_owned()).or_default();
        self.accounts.values_mut().for_each(|account| account.died(known, stored, &self.ledger));
        let open: Vec<u64> =
            self.streams.iter().filter(|(_, stream)| stream.open).map(|(link, _)| *link).collect();
        for link in open {
            let cut = self.rng.bool();
            let at = self.pass(link, true);
            let Some(stream) = self.streams.get_mut(&link) else { continue };
            stream.open = false;
            if !stream.cut {
                stream.cut = cut;
                self.at(at, Event::UpClosed(link));
            }
        }
        // Nobody is answered any more.
        self.forgetting.clear();
        self.down = true;
        self.close_carriers();
        let back = if self.rng.bool() { self.millis(0..100) } else { self.millis(100..8000) };
        self.after(back, Event::GatewayUp);
        Ok(())
    }

    /// The next process goes on with the rows that are there.
    pub(super) fn gateway_up(&mut self) -> Checked {
        self.plan.settings.seed = self.rng.u64(..);
        let mut rows: Vec<Row> = self.store.rows().cloned().collect();
        rows.iter().for_each(|row| self.tally.restored.count(row));
        self.rng.shuffle(&mut rows);
        self.trace.note(self.now, format!("the gateway is there again, with {} rows", rows.len()));
        self.gateway = Gateway::restore(self.plan.settings.clone(), rows, self.now);
        (self.down, self.at_once) = (false, 0);
        self.told.restarted(self.now);
        self.talk.restarted(self.now);
        self.first_link += 1000;
        self.restored = self.gateway.waiting_messages() as u64;
        self.open_carriers()?;
        let orphans = self.gateway.counters().rows_orphaned;
        Law::Rows.check(orphans == 0, || format!("{orphans} rows belong to nothing"))?;
        let sessions = self.store.rows().filter(|row| matches!(row, Row::Session(..))).count();
        Law::Rows.check(self.gateway.sessions() == sessions, || {
            format!("{sessions} sessions are stored, {} are there", self.gateway.sessions())
        })
    }

    /// At the end the rows are those of the sessions that there are, and nothing is on its way any more.
    pub(super) fn check_rows(&self) -> Checked {
        if !self.plan.settings.lasting {
            return Ok(());
        }
        let passing: Vec<&Row> = self.store.rows().filter(|row| store::is_passing(row)).collect();
        Law::Rows.check(passing.is_empty(), || format!("{passing:?} are left"))?;
        let mut released = BTreeMap::<_, usize>::new();
        for key in self.store.rows().map(Row::key) {
            match key {
                Key::Received(link, _) => *released.entry(Ok(link)).or_default() += 1,
                Key::Client(id, ClientKey::Received(_)) => *released.entry(Err(id)).or_default() += 1,
                _ => {}
            }
        }
        // They go with the next PINGRESP: until then the broker may come back to them.
        let few = released.values().all(|rows| *rows <= 64);
        Law::Rows.check(few, || format!("{released:?} are left"))?;
        let sessions: Vec<Key> =
            self.store.rows().filter(|row| matches!(row, Row::Session(..))).map(Row::key).collect();
        Law::Rows.check(sessions.len() == self.gateway.sessions(), || {
            format!("{sessions:?} are stored, {} are there", self.gateway.sessions())
        })?;
        for row in self.store.rows() {
            if let Key::Client(id, _) = row.key() {
                let owned = sessions.contains(&Key::Client(id, ClientKey::Session));
                Law::Rows.check(owned, || format!("{row:?} belongs to no session"))?;
            }
        }
        for sensor in self.sensors.iter().filter(|sensor| !sensor.retired) {
            let id = client_id(sensor.client);
            for filter in sensor.held.iter().filter_map(|filter| sensor.filter_of(filter)) {
                let key = Key::Client(id.clone(), ClientKey::Subscription(filter.clone()));
                Law::SubscriptionsAgree.check(self.store.has_had(&key, self.now), || {
                    format!("s{} holds {filter}, which is not stored", sensor.who)
                })?;
            }
            let key = Key::Client(id, ClientKey::Will);
            let has = self.store.has_had(&key, self.now);
            Law::Rows.check(has == sensor.has_will || sensor.shared, || {
                format!("s{} has a Will: {}, stored: {has}", sensor.who, sensor.has_will)
            })?;
        }
        self.check_stored_filters()
    }

    /// What the broker has on the gateway's own links is stored, and is what clients have.
    fn check_stored_filters(&self) -> Checked {
        let mut filters: Vec<TopicFilter> = Vec::new();
        let mut wanted: Vec<TopicFilter> = Vec::new();
        for row in self.store.rows() {
            match row {
                Row::Filter(_, filter, _) => filters.push(filter.clone()),
                Row::Subscription(id, filter, _) => {
                    let key = Key::Client(id.clone(), ClientKey::Session);
                    let session = self.store.rows().find(|row| row.key() == key);
                    let dedicated = matches!(session, Some(Row::Session(_, row))
                        if row.mode == Mode::Transparent);
                    if !dedicated {
                        wanted.push(filter.clone());
                    }
                }
                _ => {}
            }
        }
        filters.sort();
        wanted.sort();
        wanted.dedup();
        let refused = self.counted(|counters| counters.subscriptions_refused) > 0;
        Law::SubscriptionsAgree.check(filters == wanted || refused, || {
            format!("{filters:?} are stored as what the broker has, clients have {wanted:?}")
        })?;
        let own = self.accounts.keys().filter(|client| matches!(link::lane(client), Lane::Gateway(_)));
        let sessions = own.filter_map(|client| self.broker.session(client));
        let at_broker = sessions.flat_map(|session| session.subscriptions);
        let mut at_broker: Vec<TopicFilter> = at_broker.map(|(filter, _)| filter).collect();
        at_broker.retain(|filter| filters.contains(filter) || !self.unknown_filters.contains(filter));
        at_broker.sort();
        Law::SubscriptionsAgree.check(at_broker == filters || refused, || {
            format!("the broker has {at_broker:?}, stored are {filters:?}")
        })
    }
}
