//! The end of a world: nothing goes wrong any more, and everything must come to rest.

use std::time::Duration;

use mqtt_sn_gateway::gateway::io::{Control, Input};
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::Qos;
use rumqttc::QoS;

use super::{
    COME_BACK, DRAINED_WITHIN, Event, LONG_NAP, LOOK, LOOKS, Phase, REST_WITHIN, T_WAIT, Tally, World,
};
use crate::air::{Session, client_id, sheds};
use crate::figures::Figures;
use crate::law::{Checked, Law};
use crate::ledger::{Origin, Who};
use crate::link::{self, Lane};
use crate::plan;
use crate::sensor::Sensor;

impl World<'_> {
    /// Nothing goes wrong any more, and everybody wants to be connected.
    pub(super) fn calm(&mut self) -> Checked {
        self.trace.note(self.now, "calm");
        self.phase = Phase::Calm(self.now);
        self.release()?;
        self.dying = None;
        self.mend_carriers()?;
        if self.store.fails {
            self.store_works()?;
        }
        for who in 0..self.sensors.len() {
            let sensor = &mut self.sensors[who];
            sensor.muted = false;
            if sensor.client != who {
                // One of two that contend must give in.
                sensor.switch_off();
                sensor.retired = true;
                continue;
            }
            self.switch_on(who)?;
            // Without a keep-alive a sensor learns that it was lost, or has moved, when it says something.
            self.publish(who, Some(Qos::AtLeastOnce))?;
            // What took leave a moment ago has yet to hear the answer.
            for delay in [0, 5, 15] {
                self.after(Duration::from_secs(delay), Event::Connect(who));
            }
        }
        self.after(LOOK, Event::Look);
        Ok(())
    }

    /// Why the world is not at rest, if it is not.
    pub(super) fn unrest(&self) -> Option<String> {
        if self.down {
            return Some("the gateway is not there".into());
        }
        if self.store.waiting() + self.gateway.kept_messages() > 0 {
            let (batches, kept) = (self.store.waiting(), self.gateway.kept_messages());
            return Some(format!(
                "{batches} batches have yet to be stored, {kept} messages wait for the broker"
            ));
        }
        if !self.gateway.is_connected() {
            return Some("the gateway has no broker".into());
        }
        let stands = |client: &str| {
            let mut streams = self.streams.values().filter(|stream| stream.open && !stream.cut);
            streams.any(|stream| stream.whose.as_deref() == Some(client))
        };
        // One that was left while it could not say so carries nothing, and does not come back.
        let lasting = !matches!(self.phase, Phase::Calm(since) if self.now <= since + COME_BACK);
        let carries = |client: &str| {
            let session = self.broker.session(client);
            if let Lane::Client(who) = link::lane(client) {
                if self.plan.settings.lasting {
                    return self.store.is_dedicated(who) && !self.sensors[who].retired;
                }
                return self.air.session(who).is_some_and(|session| session.needs_link());
            }
            self.air.uses(link::lane(client))
                || session.is_some_and(|session| !session.subscriptions.is_empty())
        };
        let mut links = self.accounts.iter().filter(|(_, link)| !link.left);
        let lost = links.find(|(client, link)| !(stands(client) && link.up) && (!lasting || carries(client)));
        if let Some((client, _)) = lost {
            return Some(format!("{client} has no broker"));
        }
        let mut sensors = self.sensors.iter().filter(|sensor| !sensor.retired);
        if let Some(unrest) = sensors.find_map(Sensor::unrest).or_else(|| self.air.unrest()) {
            return Some(unrest);
        }
        let (unsettled, octets) = (self.gateway.unsettled_deliveries(), self.gateway.queued_octets());
        (unsettled + octets > 0)
            .then(|| format!("{unsettled} deliveries are unsettled, {octets} octets wait"))
    }

    pub(super) fn look(&mut self) -> Checked {
        let unrest = self.unrest();
        self.rested = if unrest.is_some() { 0 } else { self.rested + 1 };
        let (since, patience) = match self.phase {
            Phase::Calm(since) if self.counted(|counters| counters.downlink_unanswered) > 0 => {
                (since, T_WAIT)
            }
            Phase::Calm(since) | Phase::Probing(since) => (since, Duration::ZERO),
            Phase::Active | Phase::Leaving(_) | Phase::Over => return Ok(()),
        };
        let waited = self.now.saturating_duration_since(since);
        if self.rested >= LOOKS && waited >= patience {
            self.rested = 0;
            if matches!(self.phase, Phase::Probing(_)) {
                self.finish()?;
                return self.shut_down();
            }
            self.phase = Phase::Probing(self.now + Duration::from_secs(30));
            self.shed_before_probes = self.counted(sheds);
            let sleepers: Vec<Who> = self.sleepers().collect();
            let nap = if sleepers.is_empty() { Duration::ZERO } else { Duration::from_secs(2) };
            for who in sleepers {
                self.with_node(who, |node, now| node.sleep(now, LONG_NAP))?;
            }
            self.after(nap, Event::Probe(0));
            return Ok(());
        }
        Law::Liveness.check(waited < REST_WITHIN + patience, || {
            format!("after {waited:?} of calm {}", unrest.unwrap_or_default())
        })?;
        self.after(LOOK, Event::Look);
        Ok(())
    }

    /// The observer publishes on every topic, one after the other; then the sensors.
    pub(super) fn probe(&mut self, at: usize) -> Checked {
        let names = plan::all_names(self.sensors.len());
        if let Some(topic) = names.get(at) {
            let no = self.observer_publishes(topic.clone(), QoS::AtLeastOnce, false)?;
            let no = no.ok_or_else(|| Law::Liveness.broken("the observer has no broker"))?;
            self.probes.push(no);
            self.after(LOOK, Event::Probe(at + 1));
            return Ok(());
        }
        let sleepers: Vec<Who> = self.sleepers().collect();
        if sleepers.is_empty() {
            return self.probe_sensors();
        }
        for who in sleepers {
            self.sensors[who].drained = false;
            self.with_node(who, |node, now| node.wake(now))?;
        }
        self.after(DRAINED_WITHIN, Event::Rise);
        Ok(())
    }

    pub(super) fn sleepers(&self) -> impl Iterator<Item = Who> {
        self.sensors.iter().filter(|sensor| sensor.sleeps && !sensor.retired).map(|sensor| sensor.who)
    }

    /// Who slept through the probes has fetched them.
    pub(super) fn rise(&mut self) -> Checked {
        let sleepers: Vec<Who> = self.sleepers().collect();
        for who in sleepers {
            Law::DrainComplete
                .check(self.sensors[who].drained, || format!("s{who} woke and has no PINGRESP"))?;
            self.with_node(who, |node, now| node.connect(now))?;
        }
        self.after(DRAINED_WITHIN, Event::ProbeSensors);
        Ok(())
    }

    pub(super) fn probe_sensors(&mut self) -> Checked {
        for who in 0..self.sensors.len() {
            if self.sensors[who].retired {
                continue;
            }
            self.publish(who, Some(Qos::AtLeastOnce))?;
            self.publish(who, Some(Qos::ExactlyOnce))?;
        }
        self.after(LOOK, Event::Look);
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Checked {
        let shed = self.counted(sheds) - self.shed_before_probes;
        // What the broker refused after it had been granted in its absence.
        let refused = self.counted(|counters| counters.subscriptions_refused) > 0;
        for &no in &self.probes {
            let entry = self.ledger.entry(no);
            Law::Liveness.check(entry.at_broker == 1, || {
                format!("probe m{no} was published {} times", entry.at_broker)
            })?;
            for sensor in self.sensors.iter().filter(|sensor| !sensor.retired) {
                let (who, wanted) = (sensor.who, sensor.wants(&entry.topic));
                let mut held = sensor.matching(&entry.topic);
                let is_due = held.any(|(filter, _)| !self.ended_late(sensor, &filter));
                let got = self.ledger.has(sensor.client, no);
                let times = self.ledger.times(who, sensor.session, no);
                // On a link of its own a client has a copy for each filter, if the broker sends that.
                let copies = self.ledger.copies(sensor.client, no).max(1);
                Law::Liveness.check((got || !is_due || shed > 0 || refused) && times <= copies, || {
                    format!("s{who} wants probe m{no} on {} and got it {times} times", entry.topic)
                })?;
                // A persistent session may remember what its sensor forgot; and a late copy may ask again.
                let forgotten = sensor.life > 0 && (!sensor.clean || !self.plan.radio.is_prompt());
                let forgotten = forgotten || sensor.shared;
                let borne = sensor.bears(&entry.topic) || forgotten;
                let inherited = self.plan.settings.lasting && self.plan.has_own_links();
                let inherited =
                    inherited || self.air.session(sensor.client).is_some_and(Session::is_inherited);
                let strange = got && !wanted && !borne && !inherited;
                Law::DownlinkWanted
                    .check(!strange, || format!("s{who} got probe m{no} on {}", entry.topic))?;
            }
        }
        self.check_subscriptions()?;
        self.told.look_at_all(self.now, &mut self.ledger);
        self.check_wills()?;
        self.check_rows()?;
        self.check_promises()?;
        let broker = self.broker.counters();
        Law::LinkWellFormed.check(broker.closed_malformed + broker.closed_too_large == 0, || {
            format!("the broker refuses what the gateway says: {broker:?}")
        })?;
        self.air.finish(self.gateway.counters())
    }

    /// The gateway takes leave: of its clients and of the broker, without a Will.
    pub(super) fn shut_down(&mut self) -> Checked {
        self.trace.note(self.now, "the gateway is asked to take leave");
        self.phase = Phase::Leaving(self.now);
        self.air.shut_down(self.now);
        self.tell_gateway(Input::Control(Control::Shutdown))?;
        self.air.all_told()
    }

    pub(super) fn check_subscriptions(&self) -> Checked {
        if self.plan.settings.lasting {
            // See `check_rows`.
            return Ok(());
        }
        for sensor in self.sensors.iter().filter(|sensor| !sensor.retired) {
            for filter in sensor.held.iter().filter_map(|filter| sensor.filter_of(filter)) {
                let session = self.air.session(sensor.client);
                let known = session.is_some_and(|session| session.filters().any(|known| *known == filter));
                Law::SubscriptionsAgree.check(known || self.ended_late(sensor, &filter), || {
                    format!("s{} holds {filter}, the gateway does not", sensor.who)
                })?;
            }
        }
        self.check_own_subscriptions()?;
        let own = self.accounts.keys().filter(|client| matches!(link::lane(client), Lane::Gateway(_)));
        let sessions = own.filter_map(|client| self.broker.session(client));
        let at_broker = sessions.flat_map(|session| session.subscriptions);
        let mut at_broker: Vec<TopicFilter> = at_broker.map(|(filter, _)| filter).collect();
        at_broker.sort();
        let mut wanted: Vec<TopicFilter> = self.air.filters().into_iter().collect();
        let missed = self.air.missed_filters();
        at_broker.retain(|filter| !missed.contains(filter));
        wanted.retain(|filter| !missed.contains(filter));
        let refused = self.counted(|counters| counters.subscriptions_refused) > 0;
        Law::SubscriptionsAgree.check(at_broker == wanted || refused, || {
            format!("the broker has {at_broker:?}, clients have {wanted:?}")
        })
    }

    /// A copy of an UNSUBSCRIBE, or of a CONNECT with CleanSession, came behind the SUBSCRIBE that its sensor sent later:
    /// nothing in it says so.
    fn ended_late(&self, sensor: &Sensor, filter: &TopicFilter) -> bool {
        let ended = self.air.session(sensor.client).is_some_and(|session| {
            let known = session.filters().any(|known| known == filter);
            session.has_ended(filter) || (sensor.clean && !known)
        });
        ended && !self.plan.radio.is_prompt()
    }

    /// On a client's own link the broker has what the client has, as it is.
    fn check_own_subscriptions(&self) -> Checked {
        let refused = self.counted(|counters| counters.subscriptions_refused) > 0;
        for (who, session) in self.air.dedicated() {
            let known = self.broker.session(client_id(who).as_str());
            let known: Vec<TopicFilter> = known
                .map_or_else(Vec::new, |known| known.subscriptions)
                .into_iter()
                .map(|(filter, _)| filter)
                .collect();
            let missing = session.certain_filters().find(|filter| !known.contains(filter));
            Law::SubscriptionsAgree.check(missing.is_none() || refused, || {
                format!("s{who} has {missing:?} and the broker has not")
            })?;
            let surplus = known.iter().find(|filter| !session.may_have(filter));
            Law::SubscriptionsAgree.check(surplus.is_none() || refused, || {
                format!("the broker has {surplus:?} of s{who}, which has it not")
            })?;
        }
        Ok(())
    }

    pub(super) fn check_wills(&self) -> Checked {
        for (no, entry) in self.ledger.iter() {
            let Origin::Will(who) = entry.origin else { continue };
            let due = match self.plan.settings.lasting {
                false => entry.wills_due,
                true => entry.wills_certain,
            };
            let fair = entry.qos == Qos::AtMostOnce || entry.at_broker >= due || entry.forgotten > 0;
            Law::WillOnLoss.check(fair, || {
                format!("the Will m{no} of s{who} was due {due} times, published {}", entry.at_broker)
            })?;
        }
        Ok(())
    }

    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        for counters in self.retired.iter().chain([self.gateway.counters()]) {
            for (name, value) in counters.iter() {
                figures.add("gateway", name, value);
            }
        }
        for sensor in self.sensors.iter().filter_map(|sensor| sensor.node.as_ref()) {
            let counters = sensor.counters();
            figures.add("sensors", "frames_sent", counters.frames_sent);
            figures.add("sensors", "retransmissions", counters.retransmissions);
            figures.add("sensors", "duplicates", counters.duplicates);
            figures.add("sensors", "stale", counters.stale);
            figures.add("sensors", "shed", counters.shed);
            figures.add("sensors", "connections", counters.connections);
        }
        let broker = self.broker.counters();
        figures.add("broker", "published", broker.published);
        figures.add("broker", "duplicates", broker.duplicates);
        figures.add("broker", "delivered", broker.delivered);
        figures.add("broker", "redelivered", broker.redelivered);
        figures.add("broker", "stray_acks", broker.stray_acks);
        figures.ledger(&self.ledger);
        let Tally {
            frames_lost,
            frames_copied,
            frames_late,
            cuts,
            crashes,
            faults,
            reboots,
            moves,
            swaps,
            restarts,
            naps,
            overslept,
            deaf,
            gateway_crashes,
            crashes_in_a_commit,
            crashes_with_a_loss,
            crashes_in_a_write,
            ref restored,
            store_hangs,
            store_failures,
            forgotten,
            ref carriers,
        } = self.tally;
        let lasting = self.plan.settings.lasting;
        for (name, value) in [
            ("frames_lost", frames_lost),
            ("frames_copied", frames_copied),
            ("frames_late", frames_late),
            ("cuts", cuts),
            ("broker_crashes", crashes),
            ("broker_faults", faults),
            ("reboots", reboots),
            ("moves", moves),
            ("swaps", swaps),
            ("gateway_restarts", restarts),
            ("naps", naps),
            ("naps_too_long", overslept),
            ("deaf_in_a_drain", deaf),
            ("promises_followed", self.kept_promises.followed),
            ("promises_kept_early", self.kept_promises.early),
            ("promises_void", self.kept_promises.void),
            ("memory_losses", self.ledger.losses.into()),
            ("seconds", self.now.saturating_duration_since(self.base).as_secs()),
            ("steps", self.trace.steps()),
        ] {
            figures.add("world", name, value);
        }
        for (name, value) in [
            ("worlds", 1),
            ("batches", self.store.batches),
            ("records", self.store.records),
            ("hangs", store_hangs),
            ("failures", store_failures),
            ("clients_to_be_forgotten", forgotten),
            ("crashes", gateway_crashes),
            ("crashes_in_a_commit", crashes_in_a_commit),
            ("crashes_in_a_commit_that_was_lost", crashes_with_a_loss),
            ("crashes_in_a_write_to_the_broker", crashes_in_a_write),
            ("restored_rows", restored.rows),
            ("restored_sessions", restored.sessions),
            ("restored_topic_ids", restored.topic_ids),
            ("restored_subscriptions", restored.subscriptions),
            ("restored_wills", restored.wills),
            ("restored_messages_for_sensors", restored.waiting),
            ("restored_messages_that_were_promised", restored.promised),
            ("restored_exchanges_of_qos_2", restored.exactly_once),
        ] {
            if lasting {
                figures.add("store", name, value);
            }
        }
        if !self.carriers.is_empty() {
            carriers.figures(&mut figures);
        }
        figures
    }
}
