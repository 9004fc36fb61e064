//! Faults that tests inject into a [`Broker`](super::Broker): what brokers and networks do on bad days, on command.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::{ConnectReturnCode, Packet, QoS, SubscribeReasonCode};

use super::io::ConnectionId;
use super::{Broker, End, lower};
use crate::topic::ClientId;

/// Something to go wrong. Client ids need not be connected or known: the fault waits for them.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Hold back packets of one kind to a client: let `skip` pass, then hold `count` of them. What they acknowledge
    /// has happened all the same. Held packets leave on [`Fault::Release`] if the connection still stands then.
    Withhold {
        /// To whom.
        client: ClientId,
        /// Which packets.
        kind: Kind,
        /// How many of them pass first.
        skip: usize,
        /// How many are held; `usize::MAX` holds all.
        count: usize,
    },
    /// Send to this client what was held back, in order, and hold nothing more.
    Release {
        /// To whom.
        client: ClientId,
    },
    /// Drop the connection once `after` octets have come in from now on. They are handled, but nothing that they cause
    /// reaches the client any more. 0: at once.
    CutReceived {
        /// Whose connection.
        whom: Whom,
        /// Octets.
        after: usize,
    },
    /// Drop the connection once `after` octets have gone out from now on. 0: at once.
    CutSent {
        /// Whose connection.
        whom: Whom,
        /// Octets.
        after: usize,
    },
    /// Lose the session of this client with its subscriptions, queue and packet ids; its connection is dropped.
    ForgetSession {
        /// Whose.
        client: ClientId,
    },
    /// Answer the next `count` CONNECTs with `code`. `Success` is not a refusal and does nothing.
    Refuse {
        /// Of one client, or of all.
        client: Option<ClientId>,
        /// The return code.
        code: ConnectReturnCode,
        /// How many; `usize::MAX` refuses all until the fault is replaced.
        count: usize,
    },
    /// Let everything to this client leave that much later, until the fault is replaced. Zero ends it.
    Delay {
        /// To whom.
        client: ClientId,
        /// How much later.
        by: Duration,
    },
    /// Send this packet, whatever the state: a stray acknowledgement, a PUBREL with an unknown id, a PUBLISH.
    Send {
        /// To whom; nothing happens if it is not connected.
        client: ClientId,
        /// What.
        packet: Packet,
    },
    /// Send these octets as they are.
    SendBytes {
        /// To whom; nothing happens if it is not connected.
        client: ClientId,
        /// What.
        bytes: Bytes,
    },
    /// Answer the next `count` filters that this client subscribes to with `code`: a lower QoS or a failure.
    Grant {
        /// To whom.
        client: ClientId,
        /// What it is granted at most.
        code: SubscribeReasonCode,
        /// How many filters; `usize::MAX`: all.
        count: usize,
    },
    /// Send a client one copy of a message for each of its filters that matches, from now on, and not one for all of them:
    /// no fault but the other thing that MQTT 3.1.1 §3.3.5 allows. `on: false` is how a broker begins.
    CopyPerFilter {
        /// Whether.
        on: bool,
    },
}

/// Whose connection is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// That of this client: the present one from now on, else its next one from after its CONNECT packet.
    Client(ClientId),
    /// The next one that is opened, from its first octet.
    NextConnection,
}

/// A kind of packet that a broker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "named as in MQTT 3.1.1 §2.2.1")]
pub enum Kind {
    ConnAck,
    Publish,
    PubAck,
    PubRec,
    PubRel,
    PubComp,
    SubAck,
    UnsubAck,
    PingResp,
}

/// What is to go wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    withholding: BTreeMap<ClientId, Vec<Withholding>>,
    held: BTreeMap<ConnectionId, Vec<Packet>>,
    cuts: BTreeMap<ConnectionId, Cuts>,
    cuts_of_clients: BTreeMap<ClientId, Cuts>,
    cuts_of_next: Cuts,
    refusals: BTreeMap<Option<ClientId>, (ConnectReturnCode, usize)>,
    grants: BTreeMap<ClientId, (SubscribeReasonCode, usize)>,
    delays: BTreeMap<ClientId, Duration>,
    pub(super) copy_per_filter: bool,
    /// Output on its way and when it arrives, in order.
    delayed: BTreeMap<ConnectionId, VecDeque<(Instant, Bytes)>>,
}

#[derive(Debug)]
struct Withholding {
    kind: Kind,
    skip: usize,
    count: usize,
}

/// Octets to go before a connection is cut, in either direction.
#[derive(Debug, Default, Clone, Copy)]
struct Cuts {
    received: Option<usize>,
    sent: Option<usize>,
}

impl Broker {
    /// Makes something go wrong, for tests.
    pub fn inject(&mut self, now: Instant, fault: Fault) {
        match fault {
            Fault::Withhold { client, kind, skip, count } => {
                self.faults.withholding.entry(client).or_default().push(Withholding { kind, skip, count });
            }
            Fault::Release { client } => self.release(&client),
            Fault::CutReceived { whom, after } => self.cut(whom, Cuts { received: Some(after), sent: None }),
            Fault::CutSent { whom, after } => self.cut(whom, Cuts { received: None, sent: Some(after) }),
            Fault::ForgetSession { client } => {
                if let Some(id) = self.connection(&client) {
                    self.end(id, End::Fault);
                }
                self.forget(&client);
            }
            Fault::Refuse { code: ConnectReturnCode::Success, .. } => {}
            Fault::Refuse { client, code, count } => {
                self.faults.refusals.insert(client, (code, count));
            }
            Fault::Delay { client, by } => {
                self.faults.delays.insert(client, by);
            }
            Fault::Send { client, packet } => self.send_raw(&client, |out| {
                let mut bytes = bytes::BytesMut::new();
                if packet.write(&mut bytes, usize::MAX).is_ok() {
                    out.extend_from_slice(&bytes);
                }
            }),
            Fault::SendBytes { client, bytes } => {
                self.send_raw(&client, |out| out.extend_from_slice(&bytes));
            }
            Fault::Grant { client, code, count } => {
                self.faults.grants.insert(client, (code, count));
            }
            Fault::CopyPerFilter { on } => self.faults.copy_per_filter = on,
        }
        self.delay_output(now);
    }

    fn connection(&self, client: &ClientId) -> Option<ConnectionId> {
        self.sessions.get(client)?.connection
    }

    fn release(&mut self, client: &ClientId) {
        self.faults.withholding.remove(client);
        let Some(id) = self.connection(client) else { return };
        for packet in self.faults.held.remove(&id).unwrap_or_default() {
            self.send(id, packet);
        }
    }

    fn send_raw(&mut self, client: &ClientId, encode: impl FnOnce(&mut bytes::BytesMut)) {
        let Some(id) = self.connection(client) else { return };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        encode(&mut connection.out);
        if connection.is_ready() {
            self.ready.insert(id);
        }
    }

    fn cut(&mut self, whom: Whom, cuts: Cuts) {
        match whom {
            Whom::NextConnection => self.faults.cuts_of_next.merge(cuts),
            Whom::Client(client) => match self.connection(&client) {
                Some(id) => {
                    self.faults.cuts.entry(id).or_default().merge(cuts);
                    self.cut_now(id);
                }
                None => self.faults.cuts_of_clients.entry(client).or_default().merge(cuts),
            },
        }
    }

    /// Ends the connection if one of its counts has reached 0; what is not written yet is lost.
    fn cut_now(&mut self, id: ConnectionId) {
        if self.faults.cuts.get(&id).is_some_and(|cuts| cuts.received == Some(0) || cuts.sent == Some(0)) {
            self.end(id, End::Fault);
        }
    }

    pub(super) fn cut_opened(&mut self, id: ConnectionId) {
        let cuts = std::mem::take(&mut self.faults.cuts_of_next);
        if cuts.received.is_some() || cuts.sent.is_some() {
            self.faults.cuts.insert(id, cuts);
            self.cut_now(id);
        }
    }

    /// A client has come by CONNECT: cuts that waited for it count what came behind that.
    pub(super) fn cut_connected(&mut self, id: ConnectionId, client: &ClientId) {
        let Some(mut cuts) = self.faults.cuts_of_clients.remove(client) else { return };
        if let Some(after) = &mut cuts.received
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.input.truncate(*after);
            *after -= connection.input.len();
        }
        self.faults.cuts.entry(id).or_default().merge(cuts);
        // A count of received octets takes effect once they are handled.
        if cuts.sent == Some(0) {
            self.end(id, End::Fault);
        }
    }

    /// The octets that came in last are handled.
    pub(super) fn cut_received(&mut self, id: ConnectionId) {
        if self.faults.cuts.contains_key(&id) {
            self.cut_now(id);
        }
    }

    /// What of `bytes` still goes out.
    pub(super) fn cut_sent(&mut self, id: ConnectionId, mut bytes: Bytes) -> Bytes {
        if let Some(Cuts { sent: Some(left), .. }) = self.faults.cuts.get_mut(&id) {
            bytes.truncate(*left);
            *left -= bytes.len();
            self.cut_now(id);
        }
        bytes
    }

    /// Moves what is ready for slow clients aside until its time has come.
    pub(super) fn delay_output(&mut self, now: Instant) {
        if self.faults.delays.is_empty() {
            return;
        }
        let (faults, connections) = (&mut self.faults, &mut self.connections);
        self.ready.retain(|id| {
            let Some(connection) = connections.get_mut(id) else { return false };
            let by = connection.client.as_ref().and_then(|client| faults.delays.get(client));
            // Behind what is still on its way, even if the delay has ended.
            let on_its_way = faults.delayed.get(id).and_then(|delayed| delayed.back());
            let arrives = [by.map(|by| now + *by), on_its_way.map(|(arrives, _)| *arrives)];
            let Some(arrives) = arrives.into_iter().flatten().max().filter(|arrives| *arrives > now) else {
                return true;
            };
            let bytes = connection.out.split().freeze();
            if !bytes.is_empty() {
                faults.delayed.entry(*id).or_default().push_back((arrives, bytes));
            }
            connection.is_ready()
        });
    }

    pub(super) fn undelay_output(&mut self, now: Instant) {
        for (id, delayed) in &mut self.faults.delayed {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let arrived = delayed.iter().take_while(|(arrives, _)| *arrives <= now).count();
            for (_, bytes) in delayed.drain(..arrived) {
                connection.due.extend_from_slice(&bytes);
            }
            if connection.is_ready() {
                self.ready.insert(*id);
            }
        }
        self.faults.delayed.retain(|_, delayed| !delayed.is_empty());
    }
}

impl Faults {
    /// When the next delayed output arrives.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.delayed.values().filter_map(|delayed| delayed.front()).map(|(arrives, _)| *arrives).min()
    }

    /// The octets that get through before the cut.
    pub(super) fn received<'a>(&mut self, id: ConnectionId, bytes: &'a [u8]) -> &'a [u8] {
        let Some(Cuts { received: Some(left), .. }) = self.cuts.get_mut(&id) else { return bytes };
        let bytes = &bytes[..bytes.len().min(*left)];
        *left -= bytes.len();
        bytes
    }

    /// Gives the packet back unless it is held.
    pub(super) fn withhold(
        &mut self,
        id: ConnectionId,
        client: Option<&ClientId>,
        packet: Packet,
    ) -> Option<Packet> {
        let Some(rules) = client.and_then(|client| self.withholding.get_mut(client)) else {
            return Some(packet);
        };
        let Some(rule) = rules.iter_mut().find(|rule| rule.count > 0 && Some(rule.kind) == Kind::of(&packet))
        else {
            return Some(packet);
        };
        if rule.skip > 0 {
            rule.skip -= 1;
            return Some(packet);
        }
        spend(&mut rule.count);
        self.held.entry(id).or_default().push(packet);
        None
    }

    /// The code that a CONNECT of this client is refused with.
    pub(super) fn refuse(&mut self, client: &ClientId) -> Option<ConnectReturnCode> {
        for whom in [Some(client.clone()), None] {
            if let Some((code, count)) = self.refusals.get_mut(&whom)
                && *count > 0
            {
                spend(count);
                return Some(*code);
            }
        }
        None
    }

    /// What a client is granted that asks for `asked`; `None` refuses the filter.
    pub(super) fn grant(&mut self, client: &ClientId, asked: QoS) -> Option<QoS> {
        let Some((code, count)) = self.grants.get_mut(client).filter(|(_, count)| *count > 0) else {
            return Some(asked);
        };
        spend(count);
        match *code {
            SubscribeReasonCode::Success(qos) => Some(lower(qos, asked)),
            SubscribeReasonCode::Failure => None,
        }
    }

    pub(super) fn ended(&mut self, id: ConnectionId) {
        self.held.remove(&id);
        self.cuts.remove(&id);
        self.delayed.remove(&id);
    }
}

impl Cuts {
    /// A later order replaces an earlier one for the same direction.
    fn merge(&mut self, later: Cuts) {
        self.received = later.received.or(self.received);
        self.sent = later.sent.or(self.sent);
    }
}

impl Kind {
    fn of(packet: &Packet) -> Option<Self> {
        Some(match packet {
            Packet::ConnAck(_) => Self::ConnAck,
            Packet::Publish(_) => Self::Publish,
            Packet::PubAck(_) => Self::PubAck,
            Packet::PubRec(_) => Self::PubRec,
            Packet::PubRel(_) => Self::PubRel,
            Packet::PubComp(_) => Self::PubComp,
            Packet::SubAck(_) => Self::SubAck,
            Packet::UnsubAck(_) => Self::UnsubAck,
            Packet::PingResp => Self::PingResp,
            _ => return None,
        })
    }
}

/// One time less, unless it is for ever.
fn spend(count: &mut usize) {
    if *count != usize::MAX {
        *count -= 1;
    }
}
