//! Who subscribed to a filter, and what the broker knows of it.

use super::higher;
use crate::gateway::ClientKey;
use crate::gateway::few::FewMap;
use crate::gateway::links::RequestId;
use crate::gateway::links::pool::LinkKey;
use crate::mqtt::{QoS, SubscriptionId, Token};

/// Who subscribed to a filter.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    pub(super) clients: FewMap<ClientKey, Claim>,
    /// The broker has the filter, or is about to.
    pub(super) at_broker: bool,
    /// On which lane.
    pub(super) lane: usize,
    /// The highest QoS at which the broker was asked for the filter since somebody holds it.
    pub(super) told: Option<QoS>,
    /// Under which the broker sends what the filter matches, where it knows such a thing (MQTT 5 §3.8.2.1.2): how copies
    /// for overlapping filters are told apart.
    pub(super) id: Option<SubscriptionId>,
    /// The broker said that it has the filter, and has not said since that it has it no more.
    pub(super) granted: bool,
    /// The first SUBSCRIBE for it on its link, since it was last begun there: what is answered to an earlier one says nothing.
    pub(super) began: Option<(LinkKey, Token)>,
    /// The SUBSCRIBE to which the broker last said so.
    pub(super) granted_to: Option<Token>,
    /// SUBSCRIBEs for it that the broker has not answered. The connection repeats them by itself.
    pub(super) asked: u32,
    /// The broker refused one that was a repetition. It may have taken the first, and not have told us.
    pub(super) left: bool,
    /// It leaves the first lane, and the broker has yet to say that it has it there no more: it is not asked for elsewhere before,
    /// and what has waited there is for it, too.
    pub(super) moving: bool,
}

/// What one client has of a filter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) qos: QoS,
    /// Grows from the first SUBSCRIBE of a claim to that of the next.
    pub(super) since: u64,
    /// The last SUBSCRIBE for it that was passed on: the answer to an earlier one says nothing about it.
    pub(super) asked: Option<RequestId>,
    /// Granted while the broker was away: its retained messages are still to come.
    pub(super) awaits_retained: bool,
}

impl Subscribers {
    /// The QoS at which the broker is to have the filter, if anybody holds it: the highest that somebody has, and no less than
    /// it was told before.
    pub(super) fn qos(&self) -> Option<QoS> {
        let highest = self.clients.values().map(|claim| claim.qos).reduce(higher)?;
        Some(self.told.map_or(highest, |told| higher(highest, told)))
    }

    /// A SUBSCRIBE for the filter has left on this link.
    pub(super) fn asks(&mut self, link: LinkKey, token: Token) {
        self.asked += 1;
        if self.began.is_none_or(|(on, _)| on != link) {
            (self.began, self.granted_to) = (Some((link, token)), None);
        }
    }

    /// The broker answered a SUBSCRIBE for the filter on this link.
    pub(super) fn answered(&mut self, link: LinkKey, token: Token, granted: bool) {
        self.asked = self.asked.saturating_sub(1);
        if granted && self.began.is_some_and(|(on, first)| on == link && token >= first) {
            (self.granted, self.moving) = (true, false);
            self.granted_to = self.granted_to.max(Some(token));
        }
    }

    /// The lane on which comes what it matches.
    pub(super) fn comes_on(&self) -> usize {
        if self.moving { 0 } else { self.lane }
    }

    /// Whether the broker has the filter at QoS 0, and this is more.
    pub(super) fn rises_to(&self, qos: QoS) -> bool {
        (self.granted || self.asked > 0) && self.told == Some(QoS::AtMostOnce) && qos > QoS::AtMostOnce
    }
}
