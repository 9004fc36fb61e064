//! What sensors and their applications do.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mqtt_sn_gateway::node::{Event as NodeEvent, Node, Topic, Will};
use mqtt_sn_gateway::wire::{Qos, ReturnCode};

use super::{Event, Phase, QUIET, World};
use crate::law::{Checked, Law};
use crate::ledger::{Got, Origin, Who};
use crate::plan::{self, FORWARDERS, LATE};
use crate::sensor::Sensor;

impl World<'_> {
    pub(super) fn switch_on(&mut self, who: Who) -> Checked {
        if self.sensors[who].node.is_some() || self.sensors[who].retired {
            return Ok(());
        }
        let seed = self.rng.u64(..);
        let will = self.sensors[who].has_will.then(|| self.make_will(who));
        self.trace.note(self.now, format!("s{who} is switched on"));
        self.sensors[who].switch_on(self.now, seed, will);
        self.drain_sensor(who)
    }

    pub(super) fn make_will(&mut self, who: Who) -> Will {
        let topic = plan::name(&format!("will/{who}"));
        let (qos, retain) = (self.any_qos(), self.rng.u8(0..5) == 0);
        let (_, message) = self.ledger.enter(Origin::Will(who), topic.clone(), qos, retain, 4);
        Will { topic, message, qos, retain }
    }

    pub(super) fn any_qos(&mut self) -> Qos {
        [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][self.rng.usize(..3)]
    }

    /// Something a sensor's application does.
    pub(super) fn act(&mut self, who: Who) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let pause = self.around(self.plan.pace);
        self.after(pause, Event::Act(who));
        if self.sensors[who].node.is_none() {
            return Ok(());
        }
        if self.sensors[who].sleeps && self.doze(who)? {
            return Ok(());
        }
        let vanishing = self.plan.vanishing;
        match self.rng.u8(0..100) {
            0..52 => self.publish(who, None),
            52..58 => self.publish_without_session(who),
            58..76 => self.subscribe(who),
            76..82 => self.unsubscribe(who),
            82..86 => self.take_leave(who),
            86..90 if vanishing => self.lose_power(who),
            90..94 if vanishing => self.lose_sight(who),
            92..97 if self.changes_over() => self.change_over(who),
            94..97 if self.plan.roaming => {
                self.roam(who);
                Ok(())
            }
            94..97 if vanishing && self.sensors[who].node_id.is_none() => {
                self.tally.moves += 1;
                let port = 10_000 + 100 * who as u16 + (self.tally.moves % 100) as u16;
                self.sensors[who].addr = SocketAddr::from(([10, 0, 0, 2], port));
                self.told.unsteady(self.sensors[who].client);
                self.trace.note(self.now, format!("s{who} is at {port} from now on"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What only sleepers do. Whether there was anything to do.
    pub(super) fn doze(&mut self, who: Who) -> Checked<bool> {
        let vanishing = self.plan.vanishing;
        if !self.sensors[who].is_asleep() {
            let connected = self.sensors[who].node.as_ref().is_some_and(|node| node.is_connected());
            let tired = connected && self.rng.u8(0..100) < 35;
            if tired {
                self.fall_asleep(who)?;
            }
            return Ok(tired);
        }
        match self.rng.u8(0..100) {
            0..12 => self.fall_asleep(who)?,
            12..20 => self.connect(who)?,
            20..25 => self.take_leave(who)?,
            25..40 => self.publish(who, None)?,
            40..45 if self.changes_over() => self.change_over(who)?,
            40..50 => self.publish_without_session(who)?,
            45..52 if self.plan.roaming => self.roam(who),
            50..53 if vanishing => self.lose_power(who)?,
            53..58 if vanishing => self.lose_sight(who)?,
            _ => {}
        }
        Ok(true)
    }

    /// Another address from now on, one that nobody had; or the two of a pair of sleepers change places.
    pub(super) fn roam(&mut self, who: Who) {
        let now = self.now;
        let settled =
            |sensor: &Sensor| sensor.resting.is_some_and(|at| now.saturating_duration_since(at) > QUIET);
        let may = |sensor: &Sensor| {
            let on_radio = self.plan.port_of(sensor.addr) == 0 || self.carriers.is_empty();
            !sensor.settled && sensor.node_id.is_none() && settled(sensor) && on_radio
        };
        let mut others = self.sensors.iter().filter(|sensor| sensor.who != who && may(sensor));
        let on_carrier = !self.carriers.is_empty() && self.plan.port_of(self.sensors[who].addr) > 0;
        if self.sensors[who].settled || on_carrier {
            return;
        }
        self.tally.moves += 1;
        self.told.unsteady(self.sensors[who].client);
        if may(&self.sensors[who])
            && let Some(other) = others.next().map(|sensor| sensor.who)
            && self.rng.bool()
        {
            self.trace.note(now, format!("s{who} and s{other} change places"));
            self.tally.swaps += 1;
            self.told.unsteady(self.sensors[other].client);
            let addr = self.sensors[who].addr;
            self.sensors[who].addr = std::mem::replace(&mut self.sensors[other].addr, addr);
            return;
        }
        let moves = self.tally.moves as u16;
        let (near, mut addr) = (self.rng.bool(), self.sensors[who].addr);
        if self.sensors[who].node_id.is_some() {
            addr = FORWARDERS[self.rng.usize(..FORWARDERS.len())].into();
        } else {
            addr.set_port(10_000 + moves);
            match addr.ip() {
                _ if near && self.rng.bool() => {}
                IpAddr::V6(ip) => {
                    let [a, b, c, d, ..] = ip.segments();
                    let net = if near { d } else { 0x100 + moves };
                    addr.set_ip([a, b, c, net, 0, 0, 0, moves].into());
                }
                IpAddr::V4(_) => addr.set_ip([10, 1, (moves >> 8) as u8, moves as u8].into()),
            }
        }
        self.trace.note(now, format!("s{who} is at {addr} from now on"));
        self.sensors[who].addr = addr;
    }

    /// Tells the gateway for how long it sleeps, also if it sleeps already.
    pub(super) fn fall_asleep(&mut self, who: Who) -> Checked {
        let nap = Duration::from_secs(self.rng.u64(self.plan.naps.clone()));
        self.trace.note(self.now, format!("s{who} wants to sleep for {nap:?}"));
        self.sensors[who].nap = nap;
        self.sensors[who].resting = None;
        self.with_node(who, |node, now| node.sleep(now, nap))
    }

    /// Asleep from now on, for about as long as was said.
    pub(super) fn set_alarm(&mut self, who: Who) {
        let oversleeps = self.plan.oversleeping && self.rng.u8(0..10) == 0;
        let factor = if oversleeps { 1.6 } else { 0.2 + 1.1 * self.rng.f64() };
        let sensor = &mut self.sensors[who];
        sensor.naps += 1;
        sensor.resting = Some(self.now);
        let alarm = Event::Wake(who, sensor.naps);
        self.tally.naps += 1;
        self.tally.overslept += u64::from(oversleeps);
        self.after(self.sensors[who].nap.mul_f64(factor), alarm);
    }

    pub(super) fn wake(&mut self, who: Who, nap: u32) -> Checked {
        if !self.is_active() || self.sensors[who].naps != nap {
            return Ok(());
        }
        if self.plan.vanishing && self.rng.u8(0..5) == 0 {
            // In the middle of what it gets.
            let (deaf, back) = (self.millis(0..600), self.millis(1000..15_000));
            self.after(deaf, Event::Mute(who));
            self.after(deaf + back, Event::Unmute(who));
            self.tally.deaf += 1;
        }
        self.sensors[who].resting = None;
        self.with_node(who, |node, now| node.wake(now))
    }

    pub(super) fn connect(&mut self, who: Who) -> Checked {
        self.sensors[who].resting = None;
        self.with_node(who, |node, now| node.connect(now))
    }

    pub(super) fn take_leave(&mut self, who: Who) -> Checked {
        self.sensors[who].resting = None;
        let back = self.millis(200..6000);
        self.after(back, Event::Connect(who));
        self.trace.note(self.now, format!("s{who} takes leave"));
        self.with_node(who, |node, now| node.disconnect(now))
    }

    pub(super) fn lose_power(&mut self, who: Who) -> Checked {
        self.trace.note(self.now, format!("s{who} is switched off"));
        self.tally.reboots += 1;
        self.sensors[who].switch_off();
        let sensor = &mut self.sensors[who];
        if let Some(id) = &mut sensor.node_id
            && self.plan.roaming
            && !sensor.settled
        {
            *id = vec![0xC0, self.tally.reboots as u8, who as u8].into();
        }
        let back = self.millis(100..25_000);
        self.after(back, Event::SwitchOn(who));
        Ok(())
    }

    pub(super) fn lose_sight(&mut self, who: Who) -> Checked {
        self.trace.note(self.now, format!("s{who} is out of reach"));
        self.sensors[who].muted = true;
        let back = self.millis(500..25_000);
        self.after(back, Event::Unmute(who));
        Ok(())
    }

    pub(super) fn publish(&mut self, who: Who, probe: Option<Qos>) -> Checked {
        let topic = match probe {
            Some(_) => Topic::Name(plan::name(&format!("probe/{who}"))),
            None => plan::topic(&mut self.rng, &self.sensors[who].predefined),
        };
        let qos = probe.unwrap_or_else(|| self.any_qos());
        let retain = probe.is_none() && self.rng.u8(0..8) == 0;
        let sensor = &self.sensors[who];
        let Some(name) = sensor.name_of(&topic) else { return Ok(()) };
        let (life, persistent) = (sensor.life, !sensor.clean && !sensor.shared);
        let prompt = self.plan.radio.is_prompt() && !sensor.shared;
        let origin = Origin::Sensor { who, life, persistent, prompt };
        let len = self.payload_len();
        let (no, payload) = self.ledger.enter(origin, name, qos, retain, len);
        self.trace.note(self.now, format!("s{who} publishes m{no} on {topic}, {qos:?}, retain {retain}"));
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && let Ok(id) = node.publish(now, topic, payload, qos, retain)
        {
            sensor.given.insert(id, no);
        }
        if matches!(self.phase, Phase::Probing(_)) {
            self.probes.push(no);
        }
        self.drain_sensor(who)
    }

    pub(super) fn publish_without_session(&mut self, who: Who) -> Checked {
        let topic = plan::topic_without_session(&mut self.rng);
        let sensor = &self.sensors[who];
        let Some(name) = sensor.name_of(&topic) else { return Ok(()) };
        let (life, persistent) = (sensor.life, !sensor.clean && !sensor.shared);
        let origin = Origin::Sensor { who, life, persistent, prompt: true };
        let (no, payload) = self.ledger.enter(origin, name, Qos::MinusOne, false, 4);
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && let Ok(id) = node.publish(now, topic, payload, Qos::MinusOne, false)
        {
            sensor.given.insert(id, no);
        }
        self.drain_sensor(who)
    }

    pub(super) fn subscribe(&mut self, who: Who) -> Checked {
        let sensor = &self.sensors[who];
        if sensor.held.len() + sensor.asked.len() >= 6 {
            return Ok(());
        }
        let filter = plan::filter(&mut self.rng, &sensor.predefined);
        let qos = self.any_qos();
        self.trace.note(self.now, format!("s{who} subscribes to {filter}, {qos:?}"));
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && node.subscribe(now, filter.clone(), qos).is_ok()
        {
            sensor.asked.push(filter);
            sensor.change(now);
        }
        self.drain_sensor(who)
    }

    pub(super) fn unsubscribe(&mut self, who: Who) -> Checked {
        let held: Vec<_> = self.sensors[who].held.iter().cloned().collect();
        if held.is_empty() {
            return Ok(());
        }
        let filter = held[self.rng.usize(..held.len())].clone();
        self.trace.note(self.now, format!("s{who} unsubscribes from {filter}"));
        let now = self.now;
        let sensor = &mut self.sensors[who];
        if let Some(node) = &mut sensor.node
            && node.unsubscribe(now, filter.clone()).is_ok()
        {
            sensor.change(now);
            sensor.asked.push(filter);
        }
        self.drain_sensor(who)
    }

    pub(super) fn with_node(&mut self, who: Who, call: impl FnOnce(&mut Node, Instant)) -> Checked {
        let now = self.now;
        if let Some(node) = &mut self.sensors[who].node {
            call(node, now);
        }
        self.drain_sensor(who)
    }

    pub(super) fn drain_sensor(&mut self, who: Who) -> Checked {
        while let Some(frame) = self.sensors[who].node.as_mut().and_then(|node| node.poll_transmit()) {
            if self.sensors[who].muted {
                continue;
            }
            let addr = self.sensors[who].addr;
            for delay in self.fates() {
                self.after(delay, Event::ToGateway(addr, frame.clone()));
            }
        }
        while let Some(event) = self.sensors[who].node.as_mut().and_then(|node| node.poll_event()) {
            self.sensor_event(who, event)?;
        }
        Ok(())
    }

    pub(super) fn sensor_event(&mut self, who: Who, event: NodeEvent) -> Checked {
        let note = match &event {
            NodeEvent::Message(message) => format!("s{who} gets {} {:?}", message.topic, message.qos),
            event => format!("s{who}: {event:?}"),
        };
        self.trace.note(self.now, note);
        let sensor = &mut self.sensors[who];
        match event {
            NodeEvent::Connected | NodeEvent::Restarted => {
                sensor.session += u32::from(sensor.clean);
                sensor.change(self.now);
                sensor.session_since = Some(self.now);
            }
            NodeEvent::Published(id, outcome) => {
                if let Some(no) = sensor.given.remove(&id) {
                    self.ledger.ended(no, outcome)?;
                }
            }
            NodeEvent::Subscribed { filter, result } => {
                sensor.answered(&filter);
                let change = sensor.change(self.now);
                if let Ok(qos) = result {
                    sensor.granted.insert(filter.clone(), (qos, change));
                    sensor.held.insert(filter);
                } else {
                    sensor.held.remove(&filter);
                    sensor.doubtful.insert(filter);
                }
            }
            NodeEvent::Unsubscribed { filter } => {
                sensor.answered(&filter);
                sensor.change(self.now);
                sensor.held.remove(&filter);
                if !self.plan.radio.is_prompt() {
                    // A late copy of the SUBSCRIBE may come behind.
                    sensor.doubtful.insert(filter);
                }
            }
            NodeEvent::Message(message) => {
                let Some(topic) = sensor.name_of(&message.topic) else {
                    return Err(Law::DownlinkFaithful.broken(format!("s{who} got {message:?}")));
                };
                let session = sensor.session;
                let age = sensor.session_since.map(|since| self.now.saturating_duration_since(since));
                let young = sensor.clean && age.is_some_and(|age| age < LATE + self.plan.radio.delay * 2);
                let no = self.ledger.find(&message.payload);
                let split = no.is_some_and(|no| self.is_split(who, no));
                let (qos, retain, has_lanes) = (message.qos, message.retain, self.air.has_lanes);
                let mixed = self.plan.has_own_links() && !self.plan.all_dedicated();
                let got = Got { who, session, young, split, mixed, has_lanes, topic: &topic, qos, retain };
                self.ledger.got(&message.payload, &got)?;
            }
            NodeEvent::Asleep => self.set_alarm(who),
            NodeEvent::Drained { .. } => {
                sensor.drained = true;
                self.set_alarm(who);
            }
            NodeEvent::ConnectRefused(code) => {
                if code != ReturnCode::Congestion {
                    // Somebody will come and see to it.
                    let back = self.millis(500..6000);
                    self.after(back, Event::Connect(who));
                }
            }
            NodeEvent::ConnectionLost(_)
            | NodeEvent::Disconnected
            | NodeEvent::Refused(_)
            | NodeEvent::GatewayFound { .. } => {}
        }
        Ok(())
    }
}
