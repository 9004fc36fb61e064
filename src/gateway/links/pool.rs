//! All links there are: which socket is whose, which link is due, which has something to say or to send.
//!
//! Thousands of links cost nothing while nothing happens to them: only those that were touched are looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Instant;

use rustc_hash::FxHashMap;

use super::Delivery;
use super::link::{Link, LinkCx, News, Shared};
use crate::gateway::io::{LinkEvent, LinkId};
use crate::mqtt::{Connection, Message, Options, Restored, Token, Trace};
use crate::topic::ClientId;

/// Names a link, whatever sockets it has; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkKey(NonZeroU64);

#[derive(Debug, Default)]
pub(super) struct Pool {
    links: FxHashMap<LinkKey, Entry>,
    sockets: FxHashMap<LinkId, LinkKey>,
    /// When links are due, at the latest; some earlier than need be.
    due: BTreeSet<(Instant, LinkKey)>,
    /// Links that may have news.
    heard: BTreeSet<LinkKey>,
    /// Links that may have something to write.
    touched: BTreeSet<LinkKey>,
    /// Links of clients that remove sessions from the broker, and who connects as the same client when they have left: two
    /// connections under one id would end each other, and the session that begins would be the one that is removed.
    purging: BTreeMap<ClientId, (LinkKey, Option<LinkKey>)>,
    /// Links whose turn it is.
    next: Vec<LinkKey>,
    shared: Shared,
    /// Links that the broker has accepted and that have not ended.
    up: usize,
    /// The first of them has come up: the broker is back, and the others need not wait for their turn.
    returned: bool,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    /// A table has room for as many again.
    link: Box<Link>,
    /// Under which it is in `sockets`.
    socket: Option<LinkId>,
    /// At which it is in `due`.
    due: Option<Instant>,
    /// It is counted in `up`.
    up: bool,
    /// It goes when it has left.
    leaving: bool,
}

impl Pool {
    /// A link of this client, or of the gateway's own. It connects at the next [`Pool::handle_timeout`], due at once.
    pub(super) fn add(&mut self, options: Options, client: Option<ClientId>, now: Instant) -> LinkKey {
        let key = LinkKey(NonZeroU64::MIN.saturating_add(self.last));
        self.last = key.0.get();
        let link = Box::new(Link::new(options, client, &self.shared, now));
        self.links.insert(key, Entry { link, socket: None, due: None, up: false, leaving: false });
        self.follow(key, None);
        key
    }

    pub(super) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The connection of a link, to be asked.
    pub(super) fn connection(&self, key: LinkKey) -> Option<&Connection> {
        self.links.get(&key).map(|entry| &entry.link.connection)
    }

    /// The connection of a link, to be given something to do.
    pub(super) fn connection_mut(&mut self, key: LinkKey) -> Option<&mut Connection> {
        let entry = self.links.get_mut(&key)?;
        self.heard.insert(key);
        self.touched.insert(key);
        Some(&mut entry.link.connection)
    }

    /// There may be something for the link to write.
    pub(super) fn touch(&mut self, key: LinkKey) {
        self.touched.insert(key);
    }

    /// Links that may have something to write.
    pub(super) fn touched(&self) -> Vec<LinkKey> {
        self.touched.iter().copied().collect()
    }

    /// Tells the broker that a message is settled, if the link on which it came is still there.
    pub(super) fn settle(&mut self, delivery: Delivery) {
        if let Some(connection) = self.connection_mut(delivery.link) {
            connection.settle(delivery.id);
        }
    }

    /// Whether the broker has accepted the link and has not gone.
    pub(super) fn is_up(&self, key: LinkKey) -> bool {
        self.connection(key).is_some_and(Connection::is_connected)
    }

    /// Endpoints that the link has tried in vain since the broker last accepted it.
    pub(super) fn failures(&self, key: LinkKey) -> u32 {
        self.links.get(&key).map_or(0, |entry| entry.link.failures())
    }

    /// Connects now, whatever pause there was to be; behind one that removes the session of the same client.
    pub(super) fn connect_now(&mut self, key: LinkKey, cx: &mut LinkCx<'_>) {
        let client = self.links.get(&key).and_then(|entry| entry.link.client());
        match client.and_then(|client| self.purging.get_mut(client)) {
            Some((_, next)) => {
                *next = Some(key);
                self.with(key, cx, |link, _, _| link.hold());
            }
            None => self.with(key, cx, Link::connect_now),
        }
    }

    /// See [`Link::change_will`].
    pub(super) fn change_will(&mut self, key: LinkKey, will: Option<Message>) {
        if let Some(entry) = self.links.get_mut(&key) {
            entry.link.change_will(will);
            self.heard.insert(key);
            self.touched.insert(key);
        }
    }

    /// Takes leave of the broker. The link stays for [`Pool::connect_now`].
    pub(super) fn rest(&mut self, key: LinkKey, cx: &mut LinkCx<'_>) {
        self.with(key, cx, |link, _, cx| link.shut_down(false, cx));
    }

    /// As [`Pool::rest`], but without a word, see [`Link::cut`].
    pub(super) fn cut(&mut self, key: LinkKey, cx: &mut LinkCx<'_>) {
        self.with(key, cx, |link, _, cx| link.cut(cx));
    }

    /// Takes leave of the broker, unless that is under way, and of the session there if `purge`. Nothing more will be heard
    /// of the link.
    pub(super) fn remove(&mut self, key: LinkKey, purge: bool, cx: &mut LinkCx<'_>) {
        let purge = self.part(key, purge);
        self.with(key, cx, |link, _, cx| link.shut_down(purge, cx));
    }

    /// As [`Pool::remove`], see [`Link::erase`].
    pub(super) fn erase(&mut self, key: LinkKey, cx: &mut LinkCx<'_>) {
        if self.part(key, true) {
            self.with(key, cx, |link, _, cx| link.erase(cx));
        } else {
            self.with(key, cx, |link, _, cx| link.shut_down(false, cx));
        }
    }

    /// Nothing more will be heard of a link. Whether it removes a session: one that has waited behind the removal of the same
    /// session has never connected, and leaves that to the other.
    fn part(&mut self, key: LinkKey, purge: bool) -> bool {
        let Some(entry) = self.links.get_mut(&key) else { return false };
        entry.leaving = true;
        if let Some(client) = entry.link.client().filter(|_| purge) {
            return self.purging.entry(client.clone()).or_insert((key, None)).0 == key;
        }
        purge
    }

    /// Removes every link.
    pub(super) fn remove_all(&mut self, purge: impl Fn(LinkKey) -> bool, cx: &mut LinkCx<'_>) {
        #[expect(clippy::disallowed_methods, reason = "sorted before anybody sees the order")]
        let mut keys: Vec<_> = self.links.keys().copied().collect();
        keys.sort_unstable();
        for key in keys {
            self.remove(key, purge(key), cx);
        }
    }

    /// Takes in what the shell reports of a connection.
    pub(super) fn handle(&mut self, id: LinkId, event: LinkEvent, cx: &mut LinkCx<'_>) {
        match self.sockets.get(&id).copied() {
            Some(key) => self.with(key, cx, |link, shared, cx| link.handle(event, shared, cx)),
            None => cx.counters.link_stale += 1,
        }
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut LinkCx<'_>) {
        while let Some((at, key)) = self.due.first().copied()
            && at <= cx.now
        {
            self.due.pop_first();
            if let Some(entry) = self.links.get_mut(&key) {
                entry.due = None;
            }
            self.with(key, cx, Link::handle_timeout);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next thing a link has to say.
    pub(super) fn poll_news(&mut self, cx: &mut LinkCx<'_>) -> Option<(LinkKey, News)> {
        while let Some(key) = self.heard.first().copied() {
            let entry = self.links.get_mut(&key);
            let news = entry.and_then(|entry| entry.link.poll_news(&mut self.shared, cx));
            self.touched.insert(key);
            match news {
                Some(news) if self.links.get(&key).is_some_and(|entry| !entry.leaving) => {
                    return Some((key, news));
                }
                Some(_) => {}
                None => {
                    self.heard.remove(&key);
                    self.follow(key, None);
                }
            }
        }
        None
    }

    /// Readies what may leave on the links that were touched, and says what has to be stored before.
    pub(super) fn prepare(&mut self) -> Vec<(LinkKey, Trace)> {
        let mut traces = Vec::new();
        for key in &self.touched {
            let Some(entry) = self.links.get_mut(key) else { continue };
            entry.link.connection.prepare();
            traces.extend(std::iter::from_fn(|| Some((*key, entry.link.connection.poll_trace()?))));
        }
        traces
    }

    /// Goes on where a connection before a restart has stopped; a token for each publish. The broker may have lost its session
    /// meanwhile without our having lived to store that.
    pub(super) fn restore(&mut self, key: LinkKey, restored: Restored) -> Vec<Token> {
        let Some(entry) = self.links.get_mut(&key) else { return Vec::new() };
        let options = entry.link.connection.options().clone();
        let (mut connection, tokens) = Connection::restore(options, restored);
        connection.doubt();
        entry.link.connection = connection;
        self.heard.insert(key);
        tokens
    }

    /// The connection that a link has, asks for, or had last.
    pub(super) fn socket_or_last(&self, key: LinkKey) -> Option<LinkId> {
        self.links.get(&key).map(|entry| entry.link.id())
    }

    /// The connection that a link has or asks for.
    pub(super) fn socket(&self, key: LinkKey) -> Option<LinkId> {
        self.links.get(&key).and_then(|entry| entry.link.socket())
    }

    /// Lets everything that is ready leave, in one write for each link.
    pub(super) fn flush(&mut self, cx: &mut LinkCx<'_>) {
        while let Some(key) = self.touched.pop_first() {
            if let Some(entry) = self.links.get_mut(&key) {
                entry.link.flush(&mut self.shared, cx);
                self.follow(key, Some(cx.now));
            }
        }
        self.connect_next(cx);
    }

    fn with(
        &mut self,
        key: LinkKey,
        cx: &mut LinkCx<'_>,
        change: impl FnOnce(&mut Link, &mut Shared, &mut LinkCx<'_>),
    ) {
        let Some(entry) = self.links.get_mut(&key) else { return };
        change(&mut entry.link, &mut self.shared, cx);
        self.heard.insert(key);
        self.touched.insert(key);
        self.follow(key, None);
        if std::mem::take(&mut self.returned) {
            self.hurry(cx);
        }
        self.connect_next(cx);
    }

    /// Links connect that have waited for others to leave.
    fn connect_next(&mut self, cx: &mut LinkCx<'_>) {
        while let Some(key) = self.next.pop() {
            if self.links.get(&key).is_some_and(|entry| !entry.leaving) {
                self.connect_now(key, cx);
            }
        }
    }

    /// The broker is back: the pauses that the other links have grown while it was away are cut short, or clients would be
    /// told that it is not (§6.12). Not all at once.
    fn hurry(&mut self, cx: &mut LinkCx<'_>) {
        let waiting: Vec<_> = self.due.iter().map(|(_, key)| *key).collect();
        for key in waiting {
            if let Some(entry) = self.links.get_mut(&key) {
                entry.link.hurry(cx);
                self.follow(key, None);
            }
        }
    }

    /// Brings what is kept of a link in line with what has become of it; at the end of a turn with the time of it.
    fn follow(&mut self, key: LinkKey, turned: Option<Instant>) {
        let Some(entry) = self.links.get_mut(&key) else { return };
        let (socket, due) = (entry.link.socket(), entry.link.poll_timeout());
        let up = entry.link.connection.is_connected();
        if std::mem::replace(&mut entry.up, up) != up {
            self.returned |= up && self.up == 0;
            self.up = if up { self.up + 1 } else { self.up - 1 };
        }
        if entry.socket != socket {
            if let Some(before) = std::mem::replace(&mut entry.socket, socket) {
                self.sockets.remove(&before);
            }
            self.sockets.extend(socket.map(|socket| (socket, key)));
        }
        if is_to_move(entry.due, due, turned) {
            if let Some(before) = std::mem::replace(&mut entry.due, due) {
                self.due.remove(&(before, key));
            }
            self.due.extend(due.map(|due| (due, key)));
        }
        if entry.leaving && entry.link.has_left() {
            if let Some(client) = entry.link.client()
                && self.purging.get(client).is_some_and(|(purging, _)| *purging == key)
                && let Some((_, next)) = self.purging.remove(client)
            {
                self.next.extend(next);
            }
            if let Some(before) = entry.due {
                self.due.remove(&(before, key));
            }
            self.links.remove(&key);
            self.heard.remove(&key);
        }
    }
}

/// Whether the deadline that is kept of a link is not to stay, now that it is due then. One that is early is harmless, and cheaper
/// than to follow every octet; but not, at the end of a turn, one in the first half of what is left: it would wake a gateway that
/// is idle.
fn is_to_move(kept: Option<Instant>, due: Option<Instant>, turned: Option<Instant>) -> bool {
    let (Some(kept), Some(due)) = (kept, due) else { return kept != due };
    let is_half =
        |now: Instant| 2 * kept.saturating_duration_since(now) <= due.saturating_duration_since(now);
    due < kept || (due > kept && turned.is_some_and(is_half))
}
