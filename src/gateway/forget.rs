//! The operator wants a client forgotten: what there is of it goes, here, in the store and at the broker.
//!
//! A client that is there is told that it is not connected any more (§6.12), and may begin anew at once. Its Will is not
//! published. What has left for the broker is not called back. A broker that is away is tried once; the operator is told that
//! it may still have the client's own session.

use tracing::info;

use super::io::{Answer, Forgotten, Output, RequestId};
use super::{ClientKey, Gateway};
use crate::mqtt::QoS;
use crate::topic::ClientId;
use crate::wire::{Disconnect, Packet};

impl Gateway {
    /// Answers when everything is gone for good, or at once if it cannot be.
    pub(super) fn forget(&mut self, request: RequestId, id: &ClientId) {
        if !self.journal.is_available() {
            return self.journal.answer_at_once(Output::Answer(request, Answer::Unstored));
        }
        let connecting = self.connecting(id);
        let key = self.clients.key(id);
        let mut gone = key.map(|key| self.clear_forgotten(key)).unwrap_or_default();
        gone.session |= !connecting.is_empty();
        gone.at_broker = key.is_some_and(|key| self.links.is_left_at_broker(key));
        let (links, mut cx) = self.links_cx();
        let (kept, under_way) = links.erase(key, id, &mut cx);
        (gone.kept, gone.exchanges) = (kept, gone.exchanges.max(under_way));
        if let Some(key) = key {
            self.remove_session(key);
        }
        for (peer, route) in connecting {
            self.end_connect(&peer, route);
        }
        self.counters.clients_forgotten += u64::from(gone.is_something());
        info!(client = %id, known = gone.is_something(), "client forgotten");
        self.journal.answer_when_durable(id, Output::Answer(request, Answer::Forgotten(gone)));
    }

    /// Tells a client that listens that its connection is over, and drops what there is of it. What that was.
    fn clear_forgotten(&mut self, key: ClientKey) -> Forgotten {
        let Some((session, mut cx)) = self.session_cx(key) else { return Forgotten::default() };
        let gone = Forgotten {
            session: true,
            will: session.has_will(),
            topics: session.registry.len(),
            subscriptions: session.subscriptions.values().filter(|it| it.granted).count(),
            waiting: session.downlink.waiting(),
            exchanges: session.uplink.open_at(QoS::ExactlyOnce)
                + usize::from(session.downlink.is_releasing()),
            kept: 0,
            at_broker: false,
        };
        let told = session.peer.clone().filter(|_| session.is_receiving());
        if told.is_some() {
            session.send(Packet::Disconnect(Disconnect { duration: None }), &mut cx);
        }
        session.clear(&mut cx);
        if let Some(peer) = told {
            self.disconnects.remember(&peer, self.now);
        }
        gone
    }
}
