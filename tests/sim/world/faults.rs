//! What goes wrong between gateway and broker.

use std::time::Duration;

use mqtt_sn_gateway::broker::{Fault, Kind, Memory, Whom};
use mqtt_sn_gateway::gateway::Gateway;
use mqtt_sn_gateway::gateway::io::LinkFailure;
use mqtt_sn_gateway::topic::ClientId;
use rumqttc::{
    ConnectReturnCode, Packet as Packet4, PubAck, PubComp, PubRec, PubRel, SubscribeReasonCode, UnsubAck,
};

use super::{Event, LANES_MAX, World};
use crate::air::{Air, client_id};
use crate::law::Checked;
use crate::link::{self, Lane, Link};
use crate::plan::GATEWAY;

impl World<'_> {
    pub(super) fn disturb(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let client = self.some_link();
        let mut fault = None;
        match self.rng.u8(0..15) {
            0..3 => self.cut(),
            12 | 14 if self.plan.tcp.restarts => {
                self.restart_gateway()?;
                return self.disturb_again();
            }
            13 => {
                let id = self.rng.u16(61_000..62_000);
                let packets = [
                    Packet4::PubAck(PubAck::new(id)),
                    Packet4::PubRec(PubRec::new(id)),
                    Packet4::PubRel(PubRel::new(id)),
                    Packet4::PubComp(PubComp::new(id)),
                    Packet4::UnsubAck(UnsubAck::new(id)),
                    Packet4::PingResp,
                ];
                let packet = packets[self.rng.usize(..packets.len())].clone();
                fault = Some(Fault::Send { client, packet });
            }
            3 | 4 => return self.crash().and_then(|()| self.disturb_again()),
            5 | 6 => {
                let kinds = [
                    Kind::PubAck,
                    Kind::PubRec,
                    Kind::PubComp,
                    Kind::SubAck,
                    Kind::ConnAck,
                    Kind::PubRel,
                    Kind::PingResp,
                ];
                let kind = kinds[self.rng.usize(..kinds.len())];
                let (skip, count) = (self.rng.usize(0..3), self.rng.usize(1..5));
                if self.plan.tcp.amnesia && kind == Kind::SubAck {
                    // What was asked in the session that is about to go is asked again in the next.
                    let forget = self.millis(500..6000);
                    self.after(forget, Event::Forget);
                }
                fault = Some(Fault::Withhold { client, kind, skip, count });
            }
            7 => {
                let by = self.millis(50..4500);
                fault = Some(Fault::Delay { client, by });
            }
            8 => {
                self.cut();
                let count = self.rng.usize(1..3);
                let mut code = ConnectReturnCode::ServiceUnavailable;
                if matches!(link::lane(client.as_str()), Lane::Client(_)) && self.lane_rng.bool() {
                    code = ConnectReturnCode::NotAuthorized;
                }
                fault = Some(Fault::Refuse { client: Some(client), code, count });
            }
            9 if self.plan.tcp.amnesia => return self.forget().and_then(|()| self.disturb_again()),
            10 => {
                let (whom, after) = (Whom::Client(client), self.rng.usize(0..200));
                let up = self.rng.bool();
                fault = Some(if up {
                    Fault::CutReceived { whom, after }
                } else {
                    Fault::CutSent { whom, after }
                });
            }
            _ => {
                let code = SubscribeReasonCode::Failure;
                fault = Some(Fault::Grant { client, code, count: 1 });
            }
        }
        if let Some(fault) = fault {
            self.trace.note(self.now, format!("{fault:?}"));
            self.tally.faults += 1;
            self.broker.inject(self.now, fault);
            self.pump_broker()?;
            let release = self.millis(300..6000);
            self.after(release, Event::Release);
        }
        self.disturb_again()
    }

    /// The broker loses the gateway's session, and nothing else.
    pub(super) fn forget(&mut self) -> Checked {
        if !self.is_active() || !self.broker_up {
            return Ok(());
        }
        let client = self.some_link();
        self.trace.note(self.now, format!("the broker forgets {client}"));
        if let Some(account) = self.accounts.get_mut(client.as_str()) {
            account.lost();
        }
        match link::lane(client.as_str()) {
            Lane::Client(who) => {
                self.kept.remove(&who);
                self.ledger.forget(Some(who));
            }
            lane => {
                self.ledger.losses += u32::from(!lane.is_further());
                self.ledger.broken(None);
            }
        }
        self.tally.faults += 1;
        self.broker.inject(self.now, Fault::ForgetSession { client });
        self.pump_broker()
    }

    pub(super) fn disturb_again(&mut self) -> Checked {
        let mean = self.plan.tcp.disturbed.unwrap_or(Duration::from_secs(5));
        let pause = self.around(mean);
        self.after(pause, Event::Disturb);
        Ok(())
    }

    /// What is on its way is lost; who notices, and when, differs.
    pub(super) fn cut(&mut self) {
        let Some(link) = self.some_stream() else { return };
        let Some(stream) = self.streams.get_mut(&link).filter(|stream| !stream.cut && stream.open) else {
            return;
        };
        stream.cut = true;
        self.tally.cuts += 1;
        let (gateway, broker) = (self.rng.u8(0..4) > 0, self.rng.u8(0..4) > 0);
        self.trace.note(
            self.now,
            format!("connection {link} is cut (gateway notices: {gateway}, broker notices: {broker})"),
        );
        if gateway {
            let at = self.millis(0..500);
            self.after(at, Event::DownClosed(link, LinkFailure::Io("reset".into())));
        }
        if broker {
            let at = self.millis(0..500);
            self.after(at, Event::UpClosed(link));
        }
    }

    /// The last connection of the gateway's own link, or, where there are further ones, as often one of them.
    pub(super) fn some_stream(&mut self) -> Option<u64> {
        if self.plan.has_own_links() {
            let open = self.streams.iter().filter(|(_, stream)| stream.open && !stream.cut);
            let open: Vec<u64> = open.map(|(link, _)| *link).collect();
            return (!open.is_empty()).then(|| open[self.lane_rng.usize(..open.len())]);
        }
        let open = self.streams.iter().filter(|(_, stream)| stream.open && !stream.cut && !stream.is_own());
        let further: Vec<u64> = open.filter(|(_, stream)| stream.further).map(|(link, _)| *link).collect();
        if !further.is_empty() && self.lane_rng.bool() {
            return Some(further[self.lane_rng.usize(..further.len())]);
        }
        self.streams.iter().rfind(|(_, stream)| !stream.further).map(|(link, _)| *link)
    }

    /// The gateway's own client id, or, where there are further links, as often that of one of them.
    pub(super) fn some_link(&mut self) -> ClientId {
        let further = self.accounts.keys().filter(|client| link::lane(client).is_further());
        let further: Vec<&String> = further.collect();
        if further.is_empty() || self.lane_rng.u8(0..if self.plan.has_own_links() { 4 } else { 2 }) == 0 {
            return gateway_id();
        }
        ClientId::new(further[self.lane_rng.usize(..further.len())]).expect("a sound id")
    }

    pub(super) fn crash(&mut self) -> Checked {
        if !self.broker_up {
            return Ok(());
        }
        let lost = self.plan.tcp.amnesia && self.rng.bool();
        let memory = if lost { Memory::Lost } else { Memory::Kept };
        self.ledger.losses += u32::from(lost);
        if lost {
            self.accounts.values_mut().for_each(Link::lost);
            self.kept.clear();
            self.ledger.broken(None);
        }
        self.tally.crashes += 1;
        self.trace.note(self.now, format!("the broker crashes, memory {memory:?}"));
        self.cut();
        for stream in self.streams.values_mut() {
            stream.cut = true;
        }
        self.broker_up = false;
        self.broker.restart(memory);
        self.pump_broker()?;
        let up = self.millis(50..6000);
        self.after(up, Event::BrokerUp);
        Ok(())
    }

    /// A new gateway in the place of this one, with nothing of what that knew.
    pub(super) fn restart_gateway(&mut self) -> Checked {
        self.trace.note(self.now, "the gateway is restarted");
        self.tally.restarts += 1;
        self.plan.settings.seed = self.rng.u64(..);
        let settings = self.plan.settings.clone();
        let gateway = std::mem::replace(&mut self.gateway, Gateway::new(settings.clone(), self.now));
        self.retired.push(gateway.counters().clone());
        self.air = Air::new(settings, self.now);
        self.accounts.clear();
        self.ledger.forget(None);
        for (link, stream) in &mut self.streams {
            if std::mem::replace(&mut stream.open, false) && !stream.cut {
                stream.cut = true;
                self.serial += 1;
                self.queue.insert((self.now + self.plan.tcp.delay, self.serial), Event::UpClosed(*link));
            }
        }
        self.first_link += 1000;
        self.close_carriers();
        self.open_carriers()
    }

    pub(super) fn broker_is_up(&mut self) -> Checked {
        self.trace.note(self.now, "the broker is there");
        self.broker_up = true;
        if self.observer.connected { Ok(()) } else { self.observer_connects() }
    }

    /// Ends what the faults began.
    pub(super) fn release(&mut self) -> Checked {
        self.release_one(gateway_id());
        // Also those that only the gateway before this one had.
        for lane in 2..=LANES_MAX {
            self.release_one(ClientId::new(format!("{GATEWAY}-{lane}")).expect("a sound id"));
        }
        for who in 0..self.sensors.len() {
            self.release_one(client_id(who));
        }
        self.pump_broker()
    }

    /// Ends what the faults of one link began.
    pub(super) fn release_one(&mut self, client: ClientId) {
        let code = ConnectReturnCode::ServiceUnavailable;
        for fault in [
            Fault::Release { client: client.clone() },
            Fault::Delay { client: client.clone(), by: Duration::ZERO },
            Fault::Refuse { client: Some(client.clone()), code, count: 0 },
            Fault::Grant { client: client.clone(), code: SubscribeReasonCode::Failure, count: 0 },
        ] {
            self.broker.inject(self.now, fault);
        }
        if !self.is_active() {
            let whom = Whom::Client(client);
            self.broker.inject(self.now, Fault::CutReceived { whom: whom.clone(), after: usize::MAX });
            self.broker.inject(self.now, Fault::CutSent { whom, after: usize::MAX });
        }
    }
}

fn gateway_id() -> ClientId {
    ClientId::new(GATEWAY).expect("a sound id")
}
