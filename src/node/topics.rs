//! The topic ids of one connection (§6.5).

use std::collections::BTreeMap;

use crate::topic::TopicName;

/// Ids kept. Forgetting one is harmless: the name is registered again, by the side that wants to use it.
const TOPICS_MAX: usize = 4096;

/// Which id stands for which name, and which names may be published on by their id.
///
/// The second is narrower: an id from a gateway's REGISTER may be a late copy from an earlier session, while REGACK and
/// SUBACK answer a MsgId of ours. Publishing trusts only those.
#[derive(Debug, Default)]
pub(super) struct Topics {
    names: BTreeMap<u16, TopicName>,
    confirmed: BTreeMap<TopicName, u16>,
}

impl Topics {
    /// Ids that may be assigned (§5.3.11).
    pub(super) fn is_valid(id: u16) -> bool {
        id != 0 && id != 0xFFFF
    }

    pub(super) fn name(&self, id: u16) -> Option<&TopicName> {
        self.names.get(&id)
    }

    pub(super) fn confirmed_id(&self, name: &TopicName) -> Option<u16> {
        self.confirmed.get(name).copied()
    }

    /// The gateway announces that it will use `id` for `name`.
    pub(super) fn learn(&mut self, id: u16, name: TopicName) {
        if self.names.get(&id) == Some(&name) {
            return;
        }
        self.forget(id);
        if self.names.len() == TOPICS_MAX
            && let Some(first) = self.names.keys().next().copied()
        {
            self.forget(first);
        }
        self.names.insert(id, name);
    }

    /// The gateway answered a request of ours with the id of `name`.
    pub(super) fn confirm(&mut self, id: u16, name: TopicName) {
        self.learn(id, name.clone());
        self.confirmed.insert(name, id);
    }

    /// The gateway does not know `id`. Whether it was one that it had confirmed.
    pub(super) fn forget(&mut self, id: u16) -> bool {
        let Some(name) = self.names.remove(&id) else { return false };
        let confirmed = self.confirmed.get(&name) == Some(&id);
        if confirmed {
            self.confirmed.remove(&name);
        }
        confirmed
    }

    /// A connection begins. Ids of a session that goes on stay known but are confirmed again before they are used (§6.10);
    /// the gateway may have lost them.
    pub(super) fn restart(&mut self, clean: bool) {
        self.confirmed.clear();
        if clean {
            self.names.clear();
        }
    }
}
