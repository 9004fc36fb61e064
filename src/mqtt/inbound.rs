use std::collections::BTreeMap;

use rumqttc::QoS;

use super::DeliveryId;
use super::trace::{Trace, Traces};

/// The QoS 1 and 2 messages of the broker that are open: at most one for each of the broker's packet ids.
///
/// ```text
///            PUBLISH          settle                    PUBREL
/// QoS 1  -   ------>  held    ------> PUBACK, forgotten
/// QoS 2  -   ------>  held    ------> PUBREC, settled   ------> PUBCOMP, forgotten
/// ```
///
/// On a new connection to the same session the broker repeats what it has no acknowledgement of. Until it does, a
/// settlement waits, so that an acknowledgement always follows its PUBLISH on the same connection.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    open: BTreeMap<u16, Delivery>,
    /// Some of them may be doubtful.
    in_doubt: bool,
    deliveries: u64,
}

#[derive(Debug)]
struct Delivery {
    id: DeliveryId,
    exactly_once: bool,
    settled: bool,
    /// The broker sent it on this connection.
    here: bool,
    /// The broker may have lost the session in which it was sent.
    doubtful: bool,
    /// Of topic and payload; `None` if another process had it.
    digest: Option<u64>,
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
    pub(super) fn restore(&mut self, received: Vec<u16>) {
        for id in received.into_iter().filter(|id| *id != 0) {
            let delivery = self.delivery(id);
            let known = Delivery {
                id: delivery,
                exactly_once: true,
                settled: true,
                here: false,
                doubtful: true,
                digest: None,
            };
            self.open.insert(id, known);
            self.in_doubt = true;
        }
    }

    /// A PUBLISH of QoS 1 or 2.
    ///
    /// A QoS 2 packet id stands for one message until PUBREL, whatever DUP says (MQTT 3.1.1 §4.3.3), unless the session
    /// is in doubt, or the broker sends something else under it and does not call it a repetition: a broker that was killed may
    /// go on from an older state and use ids again that we hold. A QoS 1 message is known again only if the broker says so:
    /// where the broker has dropped one that we hold and uses its id for another, the other must not be lost.
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
            let same = known.digest.is_none_or(|known| known == digest);
            let trusted = exactly_once && !known.doubtful && same;
            if known.exactly_once == exactly_once && (dup || trusted) {
                known.here = true;
                known.doubtful = false;
                return match (known.settled, exactly_once) {
                    (false, _) => Arrival::Duplicate,
                    (true, true) => Arrival::Settled(Ack::PubRec(id)),
                    (true, false) => {
                        self.open.remove(&id);
                        Arrival::Settled(Ack::PubAck(id))
                    }
                };
            }
            if known.exactly_once {
                traces.push(Trace::Forgot(id));
            }
            self.open.remove(&id);
        }
        if !dup && std::mem::take(&mut self.in_doubt) {
            self.resolve(traces);
        }
        let delivery = self.delivery(id);
        let digest = Some(digest);
        let new =
            Delivery { id: delivery, exactly_once, settled: false, here: true, doubtful: false, digest };
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

    /// The packet id of a QoS 2 message that is open.
    pub(super) fn packet_of(&self, delivery: DeliveryId) -> Option<u16> {
        let id = delivery.0 as u16; // its low half, see `delivery`
        self.open.get(&id).filter(|open| open.id == delivery && open.exactly_once).map(|_| id)
    }

    /// A PUBREL. Whether it belongs to a message that is open.
    pub(super) fn release(&mut self, id: u16, traces: &mut Traces) -> bool {
        let known = self.open.get(&id).is_some_and(|open| open.exactly_once);
        if known {
            self.open.remove(&id);
            traces.push(Trace::Forgot(id));
        }
        known
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self) {
        self.open.values_mut().for_each(|open| open.here = false);
    }

    /// The broker has a session that may have begun after these messages.
    pub(super) fn doubt(&mut self) {
        self.open.values_mut().for_each(|open| open.doubtful = true);
        self.in_doubt = true;
    }

    /// The broker has lost the session.
    pub(super) fn lost(&mut self, traces: &mut Traces) {
        self.open.clear();
        traces.push(Trace::ForgotAll);
    }

    /// A message has come that is no repetition. Those follow what the broker repeats on a connection (MQTT 3.1.1 §4.6): what
    /// it has not repeated, it does not have.
    fn resolve(&mut self, traces: &mut Traces) {
        self.open.retain(|id, open| {
            if open.doubtful && open.exactly_once {
                traces.push(Trace::Forgot(*id));
            }
            !open.doubtful
        });
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
