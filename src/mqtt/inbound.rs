use std::collections::{BTreeMap, VecDeque};

use rumqttc::QoS;

use super::DeliveryId;
use super::trace::{Received, Trace, Traces};

/// QoS 2 messages whose PUBCOMP the broker may not have: more than brokers let be open at a time (Mosquitto 20).
const RELEASED_MAX: usize = 64;

/// The QoS 1 and 2 messages of the broker that are open: at most one for each of the broker's packet ids.
///
/// ```text
///            PUBLISH          settle                    PUBREL              the broker has PUBCOMP
/// QoS 1  -   ------>  held    ------> PUBACK, forgotten
/// QoS 2  -   ------>  held    ------> PUBREC, settled   ------> PUBCOMP, released ------> forgotten
/// ```
///
/// What is released is known until PINGRESP shows that PUBCOMP arrived: a Mosquitto 2.0 whose connection breaks while it repeats
/// PUBREL repeats the PUBLISH on the next one.
///
/// On a new connection to the same session the broker repeats what it has no acknowledgement of. Until it does, a
/// settlement waits, so that an acknowledgement always follows its PUBLISH on the same connection.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    open: BTreeMap<u16, Delivery>,
    /// Those that are released, oldest first.
    released: VecDeque<u16>,
    /// How many of them have left before the PINGREQ that is to be answered.
    asked: usize,
    /// Some of them may be doubtful.
    in_doubt: bool,
    deliveries: u64,
}

#[derive(Debug)]
struct Delivery {
    id: DeliveryId,
    exactly_once: bool,
    settled: bool,
    /// PUBREL came for it.
    released: bool,
    /// The broker sent it on this connection.
    here: bool,
    /// The broker may have lost the session in which it was sent.
    doubtful: bool,
    /// Tells it from another message under its packet id.
    digest: u64,
}

/// What to do with a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Hand it on.
    New(DeliveryId),
    /// It was handed on before and is not settled yet.
    Duplicate,
    /// It was handed on and settled before: acknowledge it again.
    Settled(Ack),
}

/// What a settlement sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    PubAck(u16),
    PubRec(u16),
}

impl Inbound {
    /// Takes over what another process has settled. It may have died with the session in doubt.
    pub(super) fn restore(&mut self, received: Vec<Received>) {
        for Received { packet: id, digest } in received.into_iter().filter(|received| received.packet != 0) {
            let delivery = self.delivery(id);
            let known = Delivery {
                id: delivery,
                exactly_once: true,
                settled: true,
                released: false,
                here: false,
                doubtful: true,
                digest,
            };
            self.open.insert(id, known);
            self.in_doubt = true;
        }
    }

    /// A PUBLISH of QoS 1 or 2.
    ///
    /// A QoS 2 packet id stands for one message until PUBREL, whatever DUP says (MQTT 3.1.1 §4.3.3), unless the session
    /// is in doubt, or the broker sends something else under it: one that was killed may go on from an older state and use
    /// ids again that we hold. After PUBREL, and of QoS 1, a message is known again only if the broker says so: where the broker
    /// has dropped one that we hold and uses its id for another, the other must not be lost.
    pub(super) fn arrive(
        &mut self,
        id: u16,
        qos: QoS,
        dup: bool,
        digest: u64,
        traces: &mut Traces,
    ) -> Arrival {
        let exactly_once = qos == QoS::ExactlyOnce;
        if let Some(known) = self.open.get_mut(&id) {
            let trusted = exactly_once && !known.doubtful && !known.released;
            if known.exactly_once == exactly_once && known.digest == digest && (dup || trusted) {
                known.here = true;
                known.doubtful = false;
                return match (known.settled, exactly_once) {
                    (false, _) => Arrival::Duplicate,
                    (true, true) => {
                        if std::mem::take(&mut known.released) {
                            self.unlist(id);
                        }
                        Arrival::Settled(Ack::PubRec(id))
                    }
                    (true, false) => {
                        self.open.remove(&id);
                        Arrival::Settled(Ack::PubAck(id))
                    }
                };
            }
            self.forget(id, traces);
        }
        if !dup && std::mem::take(&mut self.in_doubt) {
            self.resolve(traces);
        }
        let delivery = self.delivery(id);
        let new = Delivery {
            id: delivery,
            exactly_once,
            settled: false,
            released: false,
            here: true,
            doubtful: false,
            digest,
        };
        self.open.insert(id, new);
        Arrival::New(delivery)
    }

    /// The owner is done with a message. `Err` if it is not open, `None` if the acknowledgement waits.
    pub(super) fn settle(&mut self, delivery: DeliveryId) -> Result<Option<Ack>, Stale> {
        let id = delivery.0 as u16; // its low half, see `delivery`
        let Some(open) = self.open.get_mut(&id).filter(|open| open.id == delivery && !open.settled) else {
            return Err(Stale);
        };
        if open.exactly_once {
            open.settled = true;
            return Ok(open.here.then_some(Ack::PubRec(id)));
        }
        if open.here {
            self.open.remove(&id);
            return Ok(Some(Ack::PubAck(id)));
        }
        open.settled = true;
        Ok(None)
    }

    /// What is to be known of a QoS 2 message that is open.
    pub(super) fn received(&self, delivery: DeliveryId) -> Option<Received> {
        let packet = delivery.0 as u16; // its low half, see `delivery`
        let open = self.open.get(&packet).filter(|open| open.id == delivery && open.exactly_once)?;
        (!open.released).then_some(Received { packet, digest: open.digest })
    }

    /// A PUBREL. Whether it belongs to a message that is open.
    pub(super) fn release(&mut self, id: u16, traces: &mut Traces) -> bool {
        let Some(open) = self.open.get_mut(&id).filter(|open| open.exactly_once) else { return false };
        if !open.settled {
            // Nobody asked for it: the broker does not have the message any more.
            self.forget(id, traces);
            return true;
        }
        open.doubtful = false;
        if !std::mem::replace(&mut open.released, true) {
            self.released.push_back(id);
        }
        if self.released.len() > RELEASED_MAX
            && let Some(oldest) = self.released.front().copied()
        {
            self.forget(oldest, traces);
        }
        true
    }

    /// PINGREQ leaves.
    pub(super) fn asked(&mut self) {
        self.asked = self.released.len();
    }

    /// PINGRESP has come: what left before PINGREQ has arrived.
    pub(super) fn answered(&mut self, traces: &mut Traces) {
        for _ in 0..std::mem::take(&mut self.asked) {
            let Some(id) = self.released.front().copied() else { return };
            self.forget(id, traces);
        }
    }

    fn forget(&mut self, id: u16, traces: &mut Traces) {
        let Some(open) = self.open.remove(&id) else { return };
        if open.released {
            self.unlist(id);
        }
        if open.exactly_once {
            traces.push(Trace::Forgot(id));
        }
    }

    fn unlist(&mut self, id: u16) {
        let at = self.released.iter().position(|released| *released == id);
        if let Some(at) = at {
            self.released.remove(at);
            self.asked -= usize::from(at < self.asked);
        }
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self) {
        self.open.values_mut().for_each(|open| open.here = false);
        self.asked = 0;
    }

    /// The broker has a session that may have begun after these messages.
    pub(super) fn doubt(&mut self) {
        self.open.values_mut().for_each(|open| open.doubtful = true);
        self.in_doubt = true;
    }

    /// The broker has lost the session.
    pub(super) fn lost(&mut self, traces: &mut Traces) {
        self.open.clear();
        self.released.clear();
        self.asked = 0;
        traces.push(Trace::ForgotAll);
    }

    /// A message has come that is no repetition. Those follow what the broker repeats on a connection (MQTT 3.1.1 §4.6): what
    /// it has not repeated, it does not have.
    fn resolve(&mut self, traces: &mut Traces) {
        let doubtful = self.open.iter().filter(|(_, open)| open.doubtful).map(|(id, _)| *id);
        doubtful.collect::<Vec<_>>().into_iter().for_each(|id| self.forget(id, traces));
    }

    /// A new one. The packet id is part of it, so that no second map is needed to find it again.
    fn delivery(&mut self, id: u16) -> DeliveryId {
        self.deliveries += 1;
        DeliveryId(self.deliveries << 16 | u64::from(id))
    }
}

/// A delivery that is not open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stale;
