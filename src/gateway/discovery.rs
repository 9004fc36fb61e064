//! ADVERTISE, SEARCHGW and GWINFO (§6.1).

use super::Gateway;
use super::air::Addressee;
use super::io::{Mode, Peer, PortId, Route};
use super::timer::Timer;
use crate::wire::{Advertise, GwInfo, Packet, SearchGw};

/// The farthest a forwarder can be asked to carry a broadcast: two bits (§5.5).
const FORWARDER_RADIUS_MAX: u8 = 3;

impl Gateway {
    /// Answers at once and to the one who asked, so that clients which answer for gateways after a delay stay silent,
    /// and one that is in no group hears it (Interpretation: A-19). Where CONNECT is served while the broker is away, so is
    /// this (Interpretation: R-011).
    pub(super) fn handle_searchgw(&mut self, peer: &Peer, route: Route, search: SearchGw) {
        let mode = self.settings.ports.get(usize::from(peer.port.0)).map(|port| port.mode);
        if mode == Some(Mode::Transparent) && !self.links.is_up() {
            return;
        }
        let info = Packet::GwInfo(GwInfo { gw_id: self.settings.gw_id, gw_add: &[] });
        let radius = search.radius.min(FORWARDER_RADIUS_MAX);
        let to = Addressee::stranger(peer, route);
        self.air.send_within(usize::MAX, radius, to, info, &mut self.counters);
    }

    /// Broadcasts ADVERTISE and sets the time of the next one. Silent while the broker is away (§6.1).
    pub(super) fn advertise(&mut self) {
        self.timers.set(Timer::Advertise, self.now + self.settings.advertise_interval);
        let ports = u16::try_from(self.settings.ports.len()).unwrap_or(u16::MAX);
        (0..ports).for_each(|port| self.advertise_on(PortId(port)));
    }

    /// Broadcasts ADVERTISE on one transport: also when that has come up, for those who hear of no other gateway.
    pub(super) fn advertise_on(&mut self, port: PortId) {
        let broadcasts = self.settings.ports.get(usize::from(port.0)).is_some_and(|port| port.advertise);
        if broadcasts && self.links.is_up() && !self.air.is_port_down(port) {
            let duration = u16::try_from(self.settings.advertise_interval.as_secs()).unwrap_or(u16::MAX);
            let packet = Packet::Advertise(Advertise { gw_id: self.settings.gw_id, duration });
            self.air.broadcast(port, 0, packet, &mut self.counters);
        }
    }
}
