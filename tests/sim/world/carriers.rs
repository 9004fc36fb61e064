//! Transports that go down and come back, say how much they take, and between which sensors change over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::gateway::io::{Input, PortEvent, PortId, Target};
use mqtt_sn_gateway::gateway::record::{Row, Standing};
use mqtt_sn_gateway::wire::{Packet, decode};

use super::{Event, Phase, World};
use crate::figures::Figures;
use crate::law::{Checked, Law};
use crate::ledger::Who;
use crate::plan::{self, FORWARDERS, MTUS, Plan};

/// A transport.
pub(super) struct Carrier {
    /// Its device is there.
    works: bool,
    /// The gateway has it open: frames go both ways.
    open: bool,
    /// What the gateway was told last, or takes for granted when it starts.
    told: bool,
    /// Since when the gateway has it for what it was told.
    since: Instant,
    /// Octets of the longest frame, as the gateway was told.
    mtu: usize,
}

/// What happens to transports.
#[derive(Debug, Default)]
pub(super) struct CarrierTally {
    pub(super) frames_lost: u64,
    pub(super) changes_over: u64,
    /// Of those, away from one that was down.
    pub(super) fled: u64,
    downs: u64,
    /// Of those, while the gateway was dead, the broker away, a batch on its way to the store, and the store unable to write.
    without_gateway: u64,
    without_broker: u64,
    in_a_commit: u64,
    without_store: u64,
    ups: u64,
    /// Of those, with all transports down before, and after more than any client's patience.
    after_darkness: u64,
    after_long: u64,
    /// Clients that were cut off, messages that waited for clients when a transport came back.
    cut_off: u64,
    waiting: u64,
    resized: u64,
    /// Times that the broker was to wait for nobody, and did not.
    freed: u64,
}

/// Longer than any client may be silent, or be asked in vain.
const LONG: Duration = Duration::from_secs(18);

impl Carrier {
    pub(super) fn all(plan: &Plan, now: Instant) -> Vec<Self> {
        let ports = plan.settings.ports.iter().filter(|_| plan.carriers.is_some());
        ports.map(|port| Self { works: true, open: true, told: true, since: now, mtu: port.mtu }).collect()
    }
}

impl CarrierTally {
    pub(super) fn figures(&self, figures: &mut Figures) {
        let Self { frames_lost, changes_over, fled, downs, without_gateway, without_broker, .. } = *self;
        let Self { in_a_commit, without_store, ups, after_darkness, after_long, cut_off, .. } = *self;
        let Self { waiting, resized, freed, .. } = *self;
        for (name, value) in [
            ("downs", downs),
            ("downs_without_gateway", without_gateway),
            ("downs_without_broker", without_broker),
            ("downs_in_a_commit", in_a_commit),
            ("downs_without_store", without_store),
            ("ups", ups),
            ("ups_after_darkness", after_darkness),
            ("ups_after_a_long_time", after_long),
            ("clients_cut_off", cut_off),
            ("messages_that_waited", waiting),
            ("frames_lost", frames_lost),
            ("resized", resized),
            ("changes_over", changes_over),
            ("changes_over_from_one_that_was_down", fled),
            ("broker_freed", freed),
        ] {
            figures.add("carriers", name, value);
        }
    }
}

impl World<'_> {
    /// Devices are opened when the gateway starts, and now and then they fail.
    pub(super) fn begin_carriers(&mut self) -> Checked {
        let Some(plan) = self.plan.carriers else { return Ok(()) };
        self.close_carriers();
        if self.rng.u8(0..6) == 0 {
            // Plugged in later.
            let last = self.carriers.len() - 1;
            self.carriers[last].works = false;
            let back = self.millis(1000..20_000);
            self.after(back, Event::CarrierWorks(last));
        }
        self.open_carriers()?;
        let first = self.around(plan.fails * 2);
        self.after(first, Event::CarrierFails);
        if plan.resized {
            self.after(Duration::from_secs(1), Event::CarrierResized);
        }
        Ok(())
    }

    /// The process that had them open is no more.
    pub(super) fn close_carriers(&mut self) {
        for carrier in self.carriers.iter_mut().skip(1) {
            carrier.open = false;
        }
    }

    /// A process takes its transports for up until it hears of them: of the radio, that works if it does; of the others, that
    /// they are still to be opened.
    pub(super) fn open_carriers(&mut self) -> Checked {
        for at in 0..self.carriers.len() {
            let (now, mtu) = (self.now, self.plan.settings.ports[at].mtu);
            let carrier = &mut self.carriers[at];
            (carrier.told, carrier.since) = (true, now);
            if carrier.mtu != mtu {
                self.resize(at, mtu, false)?;
            }
            self.tell_of_carrier(at)?;
            if at > 0 {
                let opens = self.millis(0..1500);
                self.after(opens, Event::CarrierOpens(at));
            }
        }
        Ok(())
    }

    pub(super) fn carrier_fails(&mut self) {
        let Some(plan) = self.plan.carriers.filter(|_| self.is_active()) else { return };
        let again = self.around(plan.fails * 2);
        self.after(again, Event::CarrierFails);
        let mut at = self.rng.usize(..self.carriers.len());
        if at == 0 && self.rng.bool() {
            at = 1;
        }
        self.fail(at);
        if self.rng.u8(0..5) == 0 {
            // The hub that they are plugged in.
            (0..self.carriers.len()).for_each(|at| self.fail(at));
        }
    }

    /// What is on its way is lost with it.
    fn fail(&mut self, at: usize) {
        if !std::mem::replace(&mut self.carriers[at].works, false) {
            return;
        }
        self.carriers[at].open = false;
        let name = &self.plan.settings.ports[at].name;
        self.trace.note(self.now, format!("{name} is gone"));
        let plan = &self.plan;
        let mut lost = 0;
        self.queue.retain(|_, event| {
            let (Event::ToGateway(addr, _) | Event::ToSensor(addr, _)) = event else { return true };
            let is_lost = usize::from(plan.port_of(*addr)) == at;
            lost += u64::from(is_lost);
            !is_lost
        });
        self.tally.carriers.frames_lost += lost;
        self.tally.carriers.downs += 1;
        self.tally.carriers.without_gateway += u64::from(self.down);
        self.tally.carriers.without_broker += u64::from(!self.broker_up);
        self.tally.carriers.in_a_commit += u64::from(self.store.waiting() > 0);
        self.tally.carriers.without_store += u64::from(self.store.fails);
        let told = if self.rng.bool() { Duration::ZERO } else { self.millis(0..30) };
        self.after(told, Event::CarrierTold(at));
        let back = match self.rng.u8(0..10) {
            0..3 => self.millis(50..1500),
            3..7 => self.millis(1000..8000),
            _ => self.millis(8000..40_000),
        };
        self.after(back, Event::CarrierWorks(at));
        for who in 0..self.sensors.len() {
            let flees = usize::from(self.plan.port_of(self.sensors[who].addr)) == at && self.changes_over();
            if flees && self.rng.u8(0..4) == 0 {
                let flees = self.millis(0..10_000);
                self.after(flees, Event::ChangeOver(who));
            }
        }
    }

    pub(super) fn carrier_works(&mut self, at: usize) {
        self.carriers[at].works = true;
        let opens = if self.rng.bool() { Duration::ZERO } else { self.millis(0..1500) };
        self.after(opens, Event::CarrierOpens(at));
    }

    /// The gateway is told before it hears anybody.
    pub(super) fn carrier_opens(&mut self, at: usize) -> Checked {
        // Sockets need no process to be there.
        if self.carriers[at].works && (!self.down || at == 0) {
            self.carriers[at].open = true;
        }
        self.tell_of_carrier(at)
    }

    /// Tells the gateway whether a transport is up, unless it knows.
    pub(super) fn tell_of_carrier(&mut self, at: usize) -> Checked {
        let Carrier { open: up, told, since, .. } = self.carriers[at];
        if self.down || up == told || matches!(self.phase, Phase::Leaving(_) | Phase::Over) {
            return Ok(());
        }
        let (now, port) = (self.now, PortId(at as u16));
        let is_dark = self.carriers.iter().all(|carrier| !carrier.told);
        self.trace.note(now, format!("{port:?} is {}", if up { "up" } else { "down" }));
        (self.carriers[at].told, self.carriers[at].since) = (up, now);
        self.air.carrier(now, port, up, &self.ledger);
        self.told.carrier(now, port, up, &mut self.ledger);
        self.talk.carrier(now, port, up);
        let there = self.sensors.iter().filter(|sensor| self.plan.port_of(sensor.addr) == port.0);
        let tally = &mut self.tally.carriers;
        if up {
            tally.ups += 1;
            tally.after_darkness += u64::from(is_dark);
            tally.after_long += u64::from(now.saturating_duration_since(since) > LONG);
            tally.waiting += self.gateway.waiting_messages() as u64;
        } else {
            tally.cut_off += there.count() as u64;
        }
        let event = if up { PortEvent::Up } else { PortEvent::Down };
        self.tell_gateway(Input::Port(port, event))
    }

    pub(super) fn carrier_resized(&mut self) -> Checked {
        if !self.is_active() {
            return Ok(());
        }
        let again = self.millis(500..6000);
        self.after(again, Event::CarrierResized);
        let at = self.rng.usize(..self.carriers.len());
        let mtu = MTUS[self.rng.usize(..MTUS.len())];
        if self.down || !self.carriers[at].open {
            return Ok(());
        }
        self.tally.carriers.resized += 1;
        self.resize(at, mtu, true)
    }

    /// A transport says how much it takes from now on; or the gateway has begun anew, and knows what it was set to.
    fn resize(&mut self, at: usize, mtu: usize, says: bool) -> Checked {
        let port = PortId(at as u16);
        self.carriers[at].mtu = mtu;
        self.air.resized(self.now, port, mtu);
        self.talk.resized(self.now, port, mtu);
        self.told.begin();
        if !says {
            return Ok(());
        }
        self.trace.note(self.now, format!("{port:?} takes {mtu} octets"));
        self.tell_gateway(Input::Port(port, PortEvent::Mtu(mtu)))
    }

    /// Nothing goes wrong with them any more.
    pub(super) fn mend_carriers(&mut self) -> Checked {
        for at in 0..self.carriers.len() {
            self.carriers[at].works = true;
            self.carrier_opens(at)?;
            let mtu = self.plan.settings.ports[at].mtu;
            if !self.down && self.carriers[at].mtu != mtu {
                self.resize(at, mtu, true)?;
            }
        }
        Ok(())
    }

    /// Whether frames pass a transport.
    pub(super) fn carries(&self, port: PortId) -> bool {
        self.carriers.get(usize::from(port.0)).is_none_or(|carrier| carrier.open)
    }

    /// A frame leaves: the transport must be up, as far as the gateway was told, and take it.
    pub(super) fn check_carrier(&self, to: &Target, frame: &Bytes) -> Checked {
        let (Target::Unicast { port, .. } | Target::Broadcast { port, .. }) = to;
        let Some(carrier) = self.carriers.get(usize::from(port.0)) else { return Ok(()) };
        let packet = decode(frame);
        let name = || packet.as_ref().map_or("nonsense", |frame| frame.packet.name());
        Law::DownPort.check(carrier.told, || format!("{} leaves on {port:?}, which is down", name()))?;
        let is_limited =
            packet.as_ref().is_ok_and(|it| matches!(it.packet, Packet::Publish(_) | Packet::Register(_)));
        // What waited for the store may have been made before.
        let fits = frame.len() <= carrier.mtu || self.plan.settings.lasting;
        Law::Fits.check(!is_limited || fits, || {
            format!("{} of {} octets leaves on {port:?}, which takes {}", name(), frame.len(), carrier.mtu)
        })
    }

    /// While all clients that are there sleep or are cut off the broker waits for none.
    pub(super) fn check_broker_freed(&mut self) -> Checked {
        if self.carriers.is_empty() || self.plan.has_own_links() || matches!(self.phase, Phase::Leaving(_)) {
            return Ok(());
        }
        let freed = match self.plan.settings.lasting {
            true => self.store.waiting() == 0 && !self.store.fails && self.has_only_cut_off_rows(),
            false => self.air.frees_broker(),
        };
        let unsettled = self.gateway.unsettled_deliveries();
        self.tally.carriers.freed += u64::from(freed);
        Law::BrokerFreed.check(!freed || unsettled == 0, || format!("{unsettled} deliveries wait for nobody"))
    }

    fn has_only_cut_off_rows(&self) -> bool {
        let ports = || self.plan.settings.ports.iter().zip(&self.carriers);
        let is_cut_off = |name: &str| ports().any(|(port, carrier)| port.name == name && !carrier.told);
        self.store.rows().all(|row| match row {
            Row::Session(_, row) => match row.standing {
                Standing::Disconnected | Standing::Lost => true,
                Standing::Active | Standing::Asleep | Standing::Leaving => {
                    row.peer.as_ref().is_some_and(|peer| is_cut_off(&peer.port))
                }
            },
            _ => true,
        })
    }

    /// Whether sensors change over from one transport to another.
    pub(super) fn changes_over(&self) -> bool {
        self.plan.carriers.is_some_and(|plan| plan.changed)
    }

    /// A sensor is on another transport from now on, at an address that nobody had.
    pub(super) fn change_over(&mut self, who: Who) -> Checked {
        let Some(plan) = self.plan.carriers.filter(|_| self.is_active()) else { return Ok(()) };
        if self.sensors[who].settled {
            return Ok(());
        }
        let before = usize::from(self.plan.port_of(self.sensors[who].addr));
        let number = 10_001 + self.tally.moves as u16;
        let has_node = self.sensors[who].node_id.is_some();
        let addr = match self.rng.usize(..self.carriers.len()) {
            1 if has_node || who == plan.on_line => plan::line(),
            2 => plan::module(number),
            _ if has_node => FORWARDERS[self.rng.usize(..FORWARDERS.len())].into(),
            _ => SocketAddr::from(([10, 1, 0, 1], number)),
        };
        let after = usize::from(self.plan.port_of(addr));
        if before == after {
            return Ok(());
        }
        self.tally.moves += 1;
        self.tally.carriers.changes_over += 1;
        self.tally.carriers.fled += u64::from(!self.carriers[before].told);
        self.told.unsteady(self.sensors[who].client);
        self.trace
            .note(self.now, format!("s{who} is on {} from now on", self.plan.settings.ports[after].name));
        self.sensors[who].addr = addr;
        if self.rng.bool() {
            let connects = self.millis(0..3000);
            self.after(connects, Event::Connect(who));
        }
        Ok(())
    }
}
