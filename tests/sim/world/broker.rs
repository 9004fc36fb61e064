//! The connections between gateway and broker, and the observer there.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use mqtt_sn_gateway::broker::{ConnectionId, Fault, Input as BrokerInput, Output as BrokerOutput};
use mqtt_sn_gateway::gateway::io::{Input, LinkCommand, LinkEvent, LinkFailure, LinkId};
use mqtt_sn_gateway::topic::TopicName;
use rumqttc::QoS;

use super::{Event, Five, Stream, World, speaks_5};
use crate::air::{Arrival, Said, client_id};
use crate::law::{Checked, Law};
use crate::ledger::{No, Origin, Who};
use crate::link::{self, Fact, Lane};
use crate::plan;
use crate::trace::Step;
use crate::translator::{self, Meaning};

impl World<'_> {
    pub(super) fn link_command(&mut self, link: u64, command: LinkCommand) -> Checked {
        match command {
            LinkCommand::Connect { client, .. } => {
                let lane = client.as_ref().map_or(Lane::Gateway(0), |client| link::lane(client.as_str()));
                if let Lane::Client(who) = lane {
                    Law::OwnLink.check(self.air.may_connect(who), || {
                        format!("a link for s{who}, which did not ask")
                    })?;
                }
                self.trace.note(self.now, format!("connection {link} is asked for"));
                let further = self.streams.values().any(|stream| stream.open && stream.is_own());
                let (up_at, down_at) = (self.now, self.now);
                let (whose, five) = (None, None);
                let stream = Stream {
                    lane,
                    whose,
                    further,
                    five,
                    tried: self.now,
                    spoken: false,
                    up_at,
                    down_at,
                    cut: false,
                    open: true,
                };
                self.streams.insert(link, stream);
                let up_at = self.pass(link, true);
                self.at(up_at, Event::Arrive(link));
            }
            // What has waited for the store may come when the connection is gone.
            LinkCommand::Write(_) if self.streams.get(&link).is_none_or(|stream| !stream.open) => {}
            LinkCommand::Write(octets) => {
                self.account_for(link, &octets)?;
                self.trace.note(self.now, format!("writes {} octets", octets.len()));
                for piece in self.pieces(link, octets) {
                    let at = self.pass(link, true);
                    self.at(at, Event::Up(link, piece));
                }
                let drained = self.tcp_delay(link);
                self.after(drained, Event::Drained(link));
            }
            LinkCommand::Close => {
                self.trace.note(self.now, format!("connection {link} is closed"));
                let at = self.pass(link, true);
                if let Some(who) = self.client_now_on(link) {
                    let patience = self.plan.settings.broker.connect_timeout;
                    let over = |stream: &Stream| stream.spoken || stream.tried + patience <= self.now;
                    let in_vain = self.streams.get(&link).is_some_and(over);
                    let is_up = self.accounts.get(client_id(who).as_str()).is_some_and(|account| account.up);
                    self.air.link_closed(who, in_vain && !is_up);
                }
                if let Some(stream) = self.streams.get_mut(&link) {
                    stream.open = false;
                }
                self.at(at, Event::UpClosed(link));
            }
        }
        Ok(())
    }

    /// What the gateway writes, as the account of that session sees it.
    pub(super) fn account_for(&mut self, link: u64, octets: &Bytes) -> Checked {
        let Some(stream) = self.streams.get_mut(&link) else { return Ok(()) };
        if stream.whose.is_none() && speaks_5(octets) {
            stream.five = Some(Five::default());
        }
        let meanings = match &mut stream.five {
            Some(five) => five.account.up(octets),
            None => vec![Meaning::Octets(octets.clone())],
        };
        for meaning in meanings {
            let Meaning::Octets(octets) = meaning else { continue };
            let whose = match &stream.whose {
                Some(whose) => whose.clone(),
                None => {
                    let connect = link::connect(&octets)?;
                    let lane = link::lane(&connect.client_id);
                    if let Lane::Client(who) = stream.lane {
                        let clean = self.plan.sensors[who].clean;
                        let purges = connect.clean_session && self.air.has_expired(who);
                        let fair = lane == stream.lane && (connect.clean_session == clean || purges);
                        Law::OwnLink
                            .check(fair, || format!("{connect:?} for s{who}, CleanSession {clean}"))?;
                    }
                    let account = self.accounts.entry(connect.client_id.clone()).or_default();
                    account.connected(lane, link);
                    account.all_dedicated = self.plan.all_dedicated();
                    self.air.lane(lane);
                    stream.whose.insert(connect.client_id).clone()
                }
            };
            let lane = link::lane(&whose);
            let account = self.accounts.entry(whose).or_default();
            if account.on != link {
                // It has been left, and its client has another one.
                continue;
            }
            for fact in account.wrote(&octets, &self.ledger)? {
                match fact {
                    Fact::Acked { no, retain, last } => {
                        // Of several copies, on links of the gateway's or handed out by SUBSCRIBE, each says nothing of the others.
                        if last && !retain && !account.awaits_ack(no) && !self.air.has_lanes {
                            self.store.check_acked(no, lane, &self.ledger)?;
                        }
                        self.air.ack_out(lane, no, retain, last, self.gateway.counters(), &self.ledger)?;
                    }
                    Fact::Asked(filter) => self.air.subscribe_out(lane, &filter),
                    Fact::Filter(filter, has) => self.air.filter_at_broker(lane, &filter, has),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Whose link this connection is now, if it is that of a client.
    fn client_now_on(&self, link: u64) -> Option<Who> {
        let stream = self.streams.get(&link).filter(|stream| stream.open)?;
        let Lane::Client(who) = stream.lane else { return None };
        let mut later = self.streams.range(link + 1..);
        (!later.any(|(_, other)| other.lane == stream.lane)).then_some(who)
    }

    pub(super) fn tcp_delay(&mut self, link: u64) -> Duration {
        let tcp = self.plan.tcp;
        tcp.delay + tcp.jitter.mul_f64(self.rng_of(link).f64())
    }

    pub(super) fn rng_of(&mut self, link: u64) -> &mut Rng {
        let further = self.streams.get(&link).is_some_and(|stream| stream.further);
        if further { &mut self.lane_rng } else { &mut self.rng }
    }

    /// When what is sent now arrives.
    pub(super) fn pass(&mut self, link: u64, up: bool) -> Instant {
        let at = self.now + self.tcp_delay(link);
        let Some(stream) = self.streams.get_mut(&link) else { return at };
        let last = if up { &mut stream.up_at } else { &mut stream.down_at };
        *last = at.max(*last);
        *last
    }

    /// Cuts octets anywhere.
    pub(super) fn pieces(&mut self, link: u64, mut octets: Bytes) -> Vec<Bytes> {
        let rng = self.rng_of(link);
        let mut pieces = Vec::new();
        while octets.len() > 1 && rng.u8(0..3) == 0 {
            let at = rng.usize(1..octets.len());
            pieces.push(octets.split_to(at));
        }
        pieces.push(octets);
        pieces
    }

    pub(super) fn arrive(&mut self, link: u64) -> Checked {
        if !self.broker_up {
            let failure = LinkFailure::Connect("refused".into());
            let at = self.pass(link, false);
            self.at(at, Event::DownClosed(link, failure));
            return Ok(());
        }
        if self.streams.get(&link).is_some_and(|stream| stream.cut) {
            let failure = LinkFailure::Connect("timed out".into());
            self.after(self.plan.settings.broker.connect_timeout, Event::DownClosed(link, failure));
            return Ok(());
        }
        self.broker.handle(self.now, BrokerInput::Opened(ConnectionId(link)));
        let at = self.pass(link, false);
        self.at(at, Event::Established(link));
        self.pump_broker()
    }

    pub(super) fn link_event(&mut self, link: u64, event: LinkEvent) -> Checked {
        let Some(stream) = self.streams.get_mut(&link).filter(|stream| stream.open) else { return Ok(()) };
        match event {
            LinkEvent::Connected if !stream.cut => stream.tried = self.now,
            LinkEvent::Connected => {
                let failure = LinkFailure::Connect("timed out".into());
                self.after(self.plan.settings.broker.connect_timeout, Event::DownClosed(link, failure));
                return Ok(());
            }
            LinkEvent::Closed(_) => {
                let who = self.client_now_on(link);
                if let Some(stream) = self.streams.get_mut(&link) {
                    stream.open = false;
                }
                self.air.begin(self.now);
                if let Some(who) = who {
                    self.air.link_says(who, Said::Gone);
                }
                self.trace.note(self.now, format!("connection {link}: {event:?}"));
                return self.tell_gateway(Input::Link(LinkId(link - self.first_link), event));
            }
            _ => {}
        }
        if !matches!(event, LinkEvent::Drained) {
            self.trace.note(self.now, format!("connection {link}: {event:?}"));
        }
        self.air.begin(self.now);
        self.tell_gateway(Input::Link(LinkId(link - self.first_link), event))
    }

    pub(super) fn octets_to_gateway(&mut self, link: u64, octets: Bytes) -> Checked {
        if self.streams.get(&link).is_none_or(|stream| stream.cut || !stream.open) {
            return Ok(());
        }
        if let Some(stream) = self.streams.get_mut(&link) {
            stream.spoken = true;
        }
        self.trace.add(self.now, Step::Down(link, octets.clone()));
        self.air.begin(self.now);
        let whose = self.streams.get(&link).and_then(|stream| stream.whose.as_deref());
        let lane = whose.map_or(Lane::Gateway(0), link::lane);
        for fact in self.read(link, &octets)? {
            match fact {
                Fact::Message { no, qos, retain, fresh, dup } => {
                    let arrival = Arrival { no, qos, retain, fresh, dup };
                    self.air.message_in(lane, &arrival, &self.ledger);
                    self.talk.arrived(no, retain);
                    if let (Lane::Client(who), true) = (lane, fresh) {
                        self.ledger.came(who, no);
                    }
                }
                Fact::Accepted { present } => self.accepted(link, lane, present)?,
                Fact::Refused(code) => {
                    if let Some(who) = self.client_now_on(link) {
                        self.air.link_says(who, Said::Refused(code));
                    }
                }
                Fact::Lost => {
                    self.air.broker_forgot(lane);
                    if let Lane::Client(who) = lane
                        && self.plan.sensors[who].clean
                    {
                        self.ledger.forget(Some(who));
                    }
                }
                Fact::Filter(filter, has) => self.air.filter_at_broker(lane, &filter, has),
                Fact::Acked { .. } | Fact::Asked(_) => {}
            }
        }
        self.tell_gateway(Input::Link(LinkId(link - self.first_link), LinkEvent::Bytes(octets)))
    }

    /// CONNACK 0. What a client has at the broker with CleanSession 0 it keeps (MQTT 3.1.1 §3.1.2.4).
    fn accepted(&mut self, link: u64, lane: Lane, present: bool) -> Checked {
        let Lane::Client(who) = lane else { return Ok(()) };
        let client = client_id(who);
        let clean = self.accounts.get(client.as_str()).is_some_and(|account| account.clean);
        if clean != self.plan.sensors[who].clean {
            // The gateway removes the session.
            self.kept.remove(&who);
            return Ok(());
        }
        Law::SessionResumed.check(present || !self.kept.contains(&who), || {
            format!("the broker has no session of s{who}, and has not lost it")
        })?;
        if !clean && self.broker.session(client.as_str()).is_some() {
            self.kept.insert(who);
        }
        if self.client_now_on(link).is_some() {
            self.air.link_says(who, Said::Accepted { present });
        }
        Ok(())
    }

    /// What the broker says, as the account of that session sees it.
    pub(super) fn read(&mut self, link: u64, octets: &Bytes) -> Checked<Vec<Fact>> {
        let Some(stream) = self.streams.get_mut(&link) else { return Ok(Vec::new()) };
        let account = stream.whose.as_ref().and_then(|whose| self.accounts.get_mut(whose));
        let Some(account) = account.filter(|account| account.on == link) else { return Ok(Vec::new()) };
        let Some(five) = &mut stream.five else { return account.read(octets, &mut self.ledger) };
        five.arrived += octets.len();
        let mut facts = Vec::new();
        while let Some((end, packet)) = five.meant.front()
            && *end <= five.arrived
        {
            facts.extend(account.read(packet, &mut self.ledger)?);
            five.meant.pop_front();
        }
        Ok(facts)
    }

    pub(super) fn octets_to_broker(&mut self, link: u64, octets: Bytes) -> Checked {
        if !self.broker_up || self.streams.get(&link).is_none_or(|stream| stream.cut) {
            return Ok(());
        }
        self.trace.add(self.now, Step::Up(link, octets.clone()));
        let stream = self.streams.get_mut(&link).filter(|stream| stream.five.is_some());
        let Some(Stream { five: Some(five), whose: Some(whose), .. }) = stream else {
            self.broker.handle(self.now, BrokerInput::Bytes(ConnectionId(link), octets));
            return self.pump_broker();
        };
        if !self.plan.broker_knows_5 {
            self.broker.handle(self.now, BrokerInput::Closed(ConnectionId(link)));
            let at = self.pass(link, false);
            self.at(at, Event::DownClosed(link, LinkFailure::Closed));
            return self.pump_broker();
        }
        let identifiers = self.identifiers.entry(whose.clone()).or_default();
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        let meanings = five.broker.up(&octets);
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        for meaning in meanings {
            match meaning {
                Meaning::Octets(octets) => {
                    self.broker.handle(self.now, BrokerInput::Bytes(ConnectionId(link), octets));
                }
                Meaning::Forget(client) => {
                    if let Lane::Client(who) = link::lane(client.as_str()) {
                        self.kept.remove(&who);
                    }
                    self.broker.inject(self.now, Fault::ForgetSession { client });
                }
            }
        }
        self.pump_broker()
    }

    /// What the broker writes, in the words of the connection.
    pub(super) fn translated(&mut self, link: u64, octets: Bytes) -> Bytes {
        let Some(stream) = self.streams.get_mut(&link) else { return octets };
        let (Some(five), Some(whose)) = (&mut stream.five, &stream.whose) else { return octets };
        let identifiers = self.identifiers.entry(whose.clone()).or_default();
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        five.partial.extend_from_slice(&octets);
        let mut out = BytesMut::new();
        while let Some(packet) = translator::next(&mut five.partial) {
            let meaning = five.broker.down(&packet);
            five.sent += meaning.len();
            five.meant.push_back((five.sent, packet.freeze()));
            out.extend_from_slice(&meaning);
        }
        std::mem::swap(&mut five.broker.subscriptions, identifiers);
        out.freeze()
    }

    /// Takes what the broker has to say. The observer answers at once.
    pub(super) fn pump_broker(&mut self) -> Checked {
        while let Some(output) = self.broker.poll_output() {
            match output {
                BrokerOutput::Write(id, octets) if id == self.observer.id() => {
                    let (seen, answers) = self.observer.handle(&octets)?;
                    for seen in seen {
                        let note = format!("broker took {} {:?}", seen.topic, seen.payload);
                        self.trace.note(self.now, note);
                        self.told.look_at_all(self.now, &mut self.ledger);
                        let no = self.ledger.at_broker(&seen.payload, &seen.topic)?;
                        self.promise(no);
                    }
                    if !answers.is_empty() {
                        self.broker.handle(self.now, BrokerInput::Bytes(id, answers));
                    }
                    self.broker.handle(self.now, BrokerInput::Drained(id));
                }
                BrokerOutput::Close(id) if id == self.observer.id() => self.observer.closed(),
                BrokerOutput::Write(id, octets) => {
                    let octets = self.translated(id.0, octets);
                    for piece in self.pieces(id.0, octets) {
                        let at = self.pass(id.0, false);
                        self.at(at, Event::Down(id.0, piece));
                    }
                    let drained = self.tcp_delay(id.0);
                    self.after(drained, Event::BrokerDrained(id));
                }
                BrokerOutput::Close(id) => {
                    let cut = self.streams.get(&id.0).is_none_or(|stream| stream.cut);
                    if !cut {
                        let at = self.pass(id.0, false);
                        self.at(at, Event::DownClosed(id.0, LinkFailure::Closed));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn observer_connects(&mut self) -> Checked {
        let octets = self.observer.connect();
        let id = self.observer.id();
        self.broker.handle(self.now, BrokerInput::Opened(id));
        self.broker.handle(self.now, BrokerInput::Bytes(id, octets));
        self.pump_broker()
    }

    /// The observer publishes something for the sensors.
    pub(super) fn observe(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let names = plan::all_names(self.sensors.len());
        let topic = names[self.rng.usize(..names.len())].clone();
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][self.rng.usize(..3)];
        let retain = self.rng.u8(0..6) == 0;
        self.observer_publishes(topic, qos, retain)?;
        let pause = self.around(self.plan.pace / 2);
        self.after(pause, Event::Observe);
        Ok(())
    }

    pub(super) fn observer_publishes(
        &mut self,
        topic: TopicName,
        qos: QoS,
        retain: bool,
    ) -> Checked<Option<No>> {
        if !self.observer.connected {
            return Ok(None);
        }
        let len = self.payload_len();
        let (no, payload) =
            self.ledger.enter(Origin::Observer, topic.clone(), crate::link::qos(qos), retain, len);
        self.trace.note(self.now, format!("observer publishes m{no} on {topic}, {qos:?}, retain {retain}"));
        let octets = self.observer.publish(topic.as_str(), payload, qos, retain);
        self.broker.handle(self.now, BrokerInput::Bytes(self.observer.id(), octets));
        self.pump_broker()?;
        Ok(Some(no))
    }

    pub(super) fn payload_len(&mut self) -> usize {
        match self.rng.u8(0..20) {
            0 => self.rng.usize(240..300),
            _ => self.rng.usize(4..40),
        }
    }
}
