//! What the links know again after a restart, from the rows that were stored (design
//! promise G5: a sensor that slept through a restart notices nothing).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use super::aggregate::restore::{Claimed, Held};
use super::backlog::{Sender, Via};
use super::dedicated::Opening;
use super::link::LinkCx;
use super::pool::LinkKey;
use super::{Links, UplinkId};
use crate::gateway::ClientKey;
use crate::gateway::journal::Journal;
use crate::gateway::record::{Key, UplinkRow};
use crate::mqtt::{QoS, Received, Restored, RestoredPublish};
use crate::topic::{ClientId, TopicFilter};

impl Links {
    /// What the broker had on the gateway's own links before a restart, and what clients had there.
    pub(in crate::gateway) fn restore_shared(
        &mut self,
        held: Vec<Held>,
        claimed: Vec<Claimed>,
        now: Instant,
    ) {
        let last = claimed.iter().map(|(_, _, row)| row.since).max();
        self.last_id = self.last_id.max(last.unwrap_or(0));
        self.aggregate.restore(held, claimed, &mut self.pool, now);
    }

    /// A client had a link of its own before a restart, see [`Dedicated::restore`].
    pub(in crate::gateway) fn restore_own(
        &mut self,
        client: ClientKey,
        opening: Opening,
        filters: BTreeMap<TopicFilter, QoS>,
        at: Option<Instant>,
        cx: &mut LinkCx<'_>,
    ) {
        self.dedicated.restore(client, opening, filters, at, &mut self.pool, cx);
    }

    /// Messages that were on their way before a restart, in their order, and QoS 2 messages of the broker that were taken over,
    /// each with whose link it came on: the number of one of the gateway's, or a client. `same` says that the broker knows
    /// the gateway by the same client id as then.
    pub(in crate::gateway) fn restore_exchanges(
        &mut self,
        uplinks: Vec<(UplinkId, Sender, UplinkRow)>,
        received: Vec<(Result<u16, ClientKey>, Received)>,
        same: bool,
        now: Instant,
        journal: &mut Journal,
    ) {
        let mut exchanges: BTreeMap<_, _> =
            self.links_to_restore(same).into_iter().map(|link| (link, Exchanges::default())).collect();
        let mut packets = Packets::new(&uplinks);
        for (id, sender, row) in uplinks {
            journal.restore_number(id.0);
            self.restore_uplink((id, sender, row), &mut packets, &mut exchanges, now, journal);
        }
        for (whose, received) in received {
            self.restore_received(whose, received, same, &mut exchanges, journal);
        }
        for (link, Exchanges { restored, uplinks }) in exchanges {
            let tokens = self.pool.restore(link, restored);
            for ((id, client), token) in uplinks.into_iter().zip(tokens) {
                match self.dedicated.client(link).and_then(|owner| self.dedicated.get_mut(owner)) {
                    Some(own) => own.restore_publish(id, token),
                    None => self.aggregate.restore_publish(client, id, token),
                }
            }
        }
    }

    /// A message of a client: under way again if the broker may know its packet id, else it waits.
    fn restore_uplink(
        &mut self,
        (id, sender, mut row): (UplinkId, Sender, UplinkRow),
        packets: &mut Packets,
        exchanges: &mut BTreeMap<LinkKey, Exchanges>,
        now: Instant,
        journal: &mut Journal,
    ) {
        let via = if row.dedicated { self.via(sender.key) } else { Via::Gateway };
        let stays = row.dedicated == (via != Via::Gateway);
        let link = self.link_of(via).filter(|link| stays && exchanges.contains_key(link));
        let changed = !stays || (link.is_none() && row.packet.is_some());
        if link.is_none() {
            // Who was to hear PUBREL is not there any more.
            (row.packet, row.released) = (None, false);
        }
        let message = || row.message.clone();
        let publish = match row.packet {
            Some(packet) if row.released => Some(RestoredPublish::Released(packet, message())),
            Some(packet) => Some(RestoredPublish::Sent(packet, message())),
            None if link.is_some() && packets.has_later(&sender.id, id) => {
                Some(RestoredPublish::Sent(packets.free(), message()))
            }
            None => None,
        };
        let client = sender.key;
        let waits = publish.is_none();
        self.backlog.restore(id, (sender, via), row, (waits, changed), now, journal);
        let exchanges = link.and_then(|link| exchanges.get_mut(&link));
        if let Some((publish, exchanges)) = publish.zip(exchanges) {
            exchanges.restored.publishes.push(publish);
            exchanges.uplinks.push((id, client));
        }
    }

    /// A QoS 2 message of the broker that was taken over.
    fn restore_received(
        &mut self,
        whose: Result<u16, ClientKey>,
        received: Received,
        same: bool,
        exchanges: &mut BTreeMap<LinkKey, Exchanges>,
        journal: &mut Journal,
    ) {
        let link = match whose {
            Ok(number) => self.aggregate.link_of(number).filter(|_| same),
            Err(client) => self.link_of(Via::Client(client)),
        };
        if let Some(link) = link {
            self.received.insert((link, received.packet));
            if let Some(exchanges) = exchanges.get_mut(&link) {
                exchanges.restored.received.push(received);
            }
        } else if let Ok(number) = whose {
            journal.delete_in_time(Key::Received(number, received.packet));
        }
    }

    /// Whether a message is on its way or waits, and whether the broker has taken it over.
    pub(in crate::gateway) fn is_released(&self, id: UplinkId, client: &ClientId) -> Option<bool> {
        self.backlog.is_released(id, client)
    }

    /// Links that the broker knew before a restart.
    fn links_to_restore(&self, same: bool) -> Vec<LinkKey> {
        let shared = self.aggregate.links().filter(|_| same);
        shared.chain(self.dedicated.kept_links()).collect()
    }
}

/// What is under way on one link.
#[derive(Default)]
struct Exchanges {
    restored: Restored,
    /// Whose the publishes are, in their order.
    uplinks: Vec<(UplinkId, ClientKey)>,
}

/// Packet ids for messages of QoS 1 that were on their way when the process ended: they have none in their rows, and would
/// leave behind those of QoS 2 of the same client that came later.
struct Packets {
    used: BTreeSet<u16>,
    /// The last message of a client that has one.
    last: HashMap<ClientId, UplinkId>,
}

impl Packets {
    fn new(uplinks: &[(UplinkId, Sender, UplinkRow)]) -> Self {
        let with_packet = || uplinks.iter().filter_map(|(id, sender, row)| Some((row.packet?, id, sender)));
        let used = with_packet().map(|(packet, ..)| packet).collect();
        let last = with_packet().map(|(_, id, sender)| (sender.id.clone(), *id)).collect();
        Self { used, last }
    }

    fn has_later(&self, client: &ClientId, id: UplinkId) -> bool {
        self.last.get(client).is_some_and(|last| *last > id)
    }

    /// One that no other has, or 0 if there is none left.
    fn free(&mut self) -> u16 {
        let free = (1..=u16::MAX).rev().find(|packet| !self.used.contains(packet)).unwrap_or(0);
        self.used.insert(free);
        free
    }
}
