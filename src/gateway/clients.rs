//! The client table and the peer table: who has a session, and where it is reached.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use super::ClientKey;
use super::io::{Peer, PortId};
use super::session::Session;
use crate::topic::ClientId;

/// All sessions. A session is bound to at most one peer, and a peer to at most one session.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Each has a place of its own: after a restart they lie in the order in which they are gone through.
    sessions: FxHashMap<ClientKey, Box<Session>>,
    by_id: HashMap<ClientId, ClientKey>,
    by_peer: HashMap<Arc<Peer>, ClientKey>,
    last_key: u64,
    /// Sessions that may have changed since [`Clients::for_touched`].
    touched: Vec<ClientKey>,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn get_mut(&mut self, key: ClientKey) -> Option<&mut Session> {
        let session = self.sessions.get_mut(&key)?;
        if !std::mem::replace(&mut session.touched, true) {
            self.touched.push(key);
        }
        Some(session)
    }

    /// Calls `put_down` with every session that may have changed since the last time.
    pub(super) fn for_touched(&mut self, mut put_down: impl FnMut(&mut Session)) {
        for key in self.touched.drain(..) {
            if let Some(session) = self.sessions.get_mut(&key) {
                session.touched = false;
                put_down(session);
            }
        }
    }

    pub(super) fn key(&self, id: &ClientId) -> Option<ClientKey> {
        self.by_id.get(id).copied()
    }

    pub(super) fn by_peer(&self, peer: &Peer) -> Option<ClientKey> {
        self.by_peer.get(peer).copied()
    }

    pub(super) fn by_peer_mut(&mut self, peer: &Peer) -> Option<&mut Session> {
        self.by_peer(peer).and_then(|key| self.get_mut(key))
    }

    /// The session of this client, an empty one if it has none.
    pub(super) fn key_or_insert(
        &mut self,
        id: &ClientId,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> ClientKey {
        if let Some(key) = self.key(id) {
            return key;
        }
        self.last_key += 1;
        let key = ClientKey(self.last_key);
        self.sessions.insert(key, Box::new(Session::new(key, id.clone(), now, rng)));
        self.by_id.insert(id.clone(), key);
        key
    }

    /// Reaches the session at this peer from now on. The peer must not be bound to another session.
    pub(super) fn bind(&mut self, key: ClientKey, peer: &Peer) {
        self.unbind(key);
        if let Some(session) = self.get_mut(key) {
            let peer = Arc::new(peer.clone());
            session.peer = Some(peer.clone());
            self.by_peer.insert(peer, key);
        }
        debug_assert!(self.by_peer.len() <= self.sessions.len());
    }

    pub(super) fn unbind(&mut self, key: ClientKey) {
        if let Some(peer) = self.get_mut(key).and_then(|session| session.peer.take()) {
            self.by_peer.remove(&peer);
        }
    }

    /// Takes the session out. Nothing finds it any more.
    pub(super) fn remove(&mut self, key: ClientKey) -> Option<Session> {
        self.unbind(key);
        let session = self.sessions.remove(&key)?;
        self.by_id.remove(&session.id);
        Some(*session)
    }

    /// The sum of something over all sessions.
    pub(super) fn sum(&self, of: impl Fn(&Session) -> usize) -> usize {
        #[expect(clippy::disallowed_methods, reason = "a sum has no order")]
        self.sessions.values().map(|session| of(session)).sum()
    }

    /// The keys of those that are bound to a peer there, in the order the sessions were made.
    pub(super) fn keys_at(&self, port: PortId) -> Vec<ClientKey> {
        #[expect(clippy::disallowed_methods, reason = "sorted before anybody sees the order")]
        let at = self.by_peer.iter().filter(|(peer, _)| peer.port == port);
        let mut keys: Vec<_> = at.map(|(_, key)| *key).collect();
        keys.sort_unstable();
        keys
    }

    /// Every key, in the order the sessions were made.
    pub(super) fn keys(&self) -> Vec<ClientKey> {
        #[expect(clippy::disallowed_methods, reason = "sorted before anybody sees the order")]
        let mut keys: Vec<_> = self.sessions.keys().copied().collect();
        keys.sort_unstable();
        keys
    }
}
