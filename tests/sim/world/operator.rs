//! The operator, who has clients forgotten.

use mqtt_sn_gateway::gateway::io::{Answer, Control, Input, RequestId};
use mqtt_sn_gateway::gateway::record::Lsn;

use super::{Event, World};
use crate::air::client_id;
use crate::law::{Checked, Law};

impl World<'_> {
    /// Some client is to be forgotten, whatever it is doing, also one that the gateway may not know.
    pub(super) fn oblivion(&mut self) -> Checked {
        let Some(mean) = self.plan.forgets.filter(|_| self.is_active()) else { return Ok(()) };
        let pause = self.around(mean * 2);
        self.after(pause, Event::Oblivion);
        if self.down {
            return Ok(());
        }
        let who = self.sensors[self.rng.usize(..self.sensors.len())].client;
        self.trace.note(self.now, format!("s{who} is to be forgotten"));
        self.tally.forgotten += 1;
        let is_storing = self.gateway.is_storing();
        if is_storing {
            // What is kept of it for the broker is not any more, and its Will is not published.
            self.ledger.erase(who);
            self.told.forgotten(who, self.store.is_active(who));
            self.kept.remove(&who);
        }
        self.requests += 1;
        let request = RequestId(self.requests);
        self.air.begin(self.now);
        self.told.begin();
        self.forgetting.push((request, who, is_storing, Lsn(u64::MAX)));
        self.tell_gateway(Input::Control(Control::Forget(request, client_id(who))))?;
        if self.down || !is_storing {
            return Ok(());
        }
        let left = self.store.rows_of(who);
        Law::Forgotten.check(left.is_empty(), || format!("s{who} is forgotten, and there is {left:?}"))?;
        // Else it was answered already.
        if let Some((.., after)) = self.forgetting.iter_mut().find(|(other, ..)| *other == request) {
            *after = self.store.last_deleted(who);
        }
        Ok(())
    }

    /// The operator is told.
    pub(super) fn answer(&mut self, request: RequestId, answer: &Answer) -> Checked {
        self.trace.note(self.now, format!("{request:?}: {answer:?}"));
        let Some(at) = self.forgetting.iter().position(|(other, ..)| *other == request) else {
            return Err(Law::Forgotten.broken(format!("{request:?} is answered twice, or was not asked")));
        };
        let (_, who, is_storing, after) = self.forgetting.swap_remove(at);
        if !self.forgetting.iter().any(|(_, other, ..)| *other == who) {
            self.told.answered(who);
        }
        // What is answered in the same moment had nothing to wait for.
        let after = if after == Lsn(u64::MAX) { self.store.last_deleted(who) } else { after };
        let fair = matches!(answer, Answer::Forgotten(_)) == is_storing;
        Law::Forgotten.check(fair, || format!("s{who} is {answer:?}, storing {is_storing}"))?;
        Law::Forgotten.check(!is_storing || after <= self.store.reported(), || {
            format!("s{who} is forgotten, and that is not durable")
        })
    }
}
