//! What outlives the process: rows in a file, written in groups, found again after a crash.
//!
//! [`Store::submit`] takes the core's batches and never blocks; a thread of its own commits what has come, one commit at a
//! time and at most one per interval; [`Store::stored`] says what is durable. What is settled before its commit is never
//! written. When the disk fails, everything is kept and tried again. A file that somebody deletes meanwhile is put back with
//! the next commit, or when the store is closed.
//!
//! The directory holds `store.redb`, and `store.lock` with the id of the process that has it; while the file is put back also
//! `store.redb.copy`. They are for this user alone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tracing::{error, info, warn};

use self::base::{Base, Failure};
use self::pending::Pending;
use self::place::Place;
use crate::gateway::io::{Forgotten, Mode};
use crate::gateway::record::{ExchangeRow, ExchangeState, Key, Lsn, MessageId, Outcome, Record, Row};
use crate::topic::ClientId;

mod base;
mod pending;
mod place;
mod row;

/// Default of [`Options::commit`]: what a sensor does not notice, and no more than 50 commits a second on flash.
pub const COMMIT: Duration = Duration::from_millis(20);

/// How long [`Store::close`] waits for the disk. systemd waits 90 s for the whole process.
pub const CLOSE_MAX: Duration = Duration::from_secs(10);

/// How long after a failure the first further attempt is made. It doubles with each.
const RETRY: Duration = Duration::from_secs(1);

/// The longest time between two attempts: a disk that was cleared is used again within half a minute.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Rows that go from one thread to the other at a time: many enough that this costs nothing.
const CHUNK_LEN: usize = 512;

/// Chunks that may wait: a few, so that memory is used again and again.
const CHUNKS_MAX: usize = 4;

/// Where a store is and how it writes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its directory, which is made if there is none.
    pub dir: PathBuf,
    /// The shortest time between the beginnings of two commits. Default [`COMMIT`].
    pub commit: Duration,
}

impl Options {
    /// The defaults for this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), commit: COMMIT }
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("the store {} is in use{}", path.display(), by(*pid))]
    InUse {
        /// The file.
        path: PathBuf,
        /// That process, if it can be known.
        pid: Option<u32>,
    },
    /// Nothing can be said about state that this program does not know.
    #[error("the store {} was written by a newer version of this program: {what}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What is not known.
        what: String,
    },
    /// It is not what was written. To go on as if there were nothing would lose what clients rely on.
    #[error("the store {} is damaged: {what}; to start without what is in it, move the file away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Others could read it, and that cannot be mended here.
    #[error("{} is open to other users (mode {mode:o}): give the store a directory of its own, mode 700", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The operating system does not let us.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

/// A store that is open. Dropped, it writes no more, and the directory is free for others.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// None in memory.
    writer: Option<Writer>,
}

impl Store {
    /// Opens the store, or makes an empty one where there is none; and gives the rows in it, in the order of their keys, of which
    /// every octet was looked at. Blocks as long as that takes, which grows with the file: of a second's order for 100,000
    /// sessions on a server, several after a crash or on a small computer.
    ///
    /// # Errors
    /// Whatever speaks against going on with this file; it then stands as it was, for all that counts.
    pub fn open(options: &Options) -> Result<(Self, Vec<Row>), StoreError> {
        Self::open_with(options, |rows| rows.collect())
    }

    /// As [`Store::open`], but the rows go to `restore` while the next ones are read by another thread. What that makes of them is
    /// dropped if one that comes later is wrong.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with<T>(
        options: &Options,
        restore: impl FnOnce(&mut dyn Iterator<Item = Row>) -> T,
    ) -> Result<(Self, T), StoreError> {
        let begun = Instant::now();
        let place = Place::take(&options.dir)?;
        let base = place.open_or_create()?;
        let mut count = 0;
        let (read, restored) = read_with(&base, |rows| restore(&mut rows.inspect(|_| count += 1)));
        read.map_err(|failure| place.explain(failure))?;
        let (path, took) = (place.file(), begun.elapsed());
        info!(path = %path.display(), rows = count, ?took, "store opened");
        let failed = |source| StoreError::Io { what: "start a thread for", path, source };
        let pace = Pace::new(options.commit);
        let place = Arc::new(place);
        let there = place.clone();
        let store = Self::start(base, pace, move || there.check(), move || place.reopen()).map_err(failed)?;
        Ok((store, restored))
    }

    /// A store that forgets everything with the process, and says of everything at once that it is durable.
    pub fn memory() -> Self {
        Self { shared: Arc::default(), writer: None }
    }

    /// Takes a batch; batches come in the order of their numbers. Never blocks for the disk.
    pub fn submit(&self, lsn: Lsn, records: Vec<Record>) {
        let mut state = self.shared.state();
        debug_assert!(lsn > state.submitted, "batches are numbered in their order");
        state.submitted = lsn;
        if self.writer.is_some() {
            let settled = state.pending.add(records);
            state.counters.records_settled += settled;
        }
        // A commit under way is of earlier batches, which come first.
        if state.pending.is_empty() && state.writing == 0 {
            state.durable = lsn;
            drop(state);
            self.shared.news.notify_one();
        } else {
            drop(state);
            self.shared.work.notify_one();
        }
    }

    /// Waits for something to report: `Durable` with the number of the newest durable batch, or `Unavailable`, once, with the
    /// number of the oldest one that cannot be written. Cancel-safe.
    pub async fn stored(&self) -> (Lsn, Outcome) {
        loop {
            if let Some(report) = self.shared.state().report() {
                return report;
            }
            self.shared.news.notified().await;
        }
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        let state = self.shared.state();
        Counters {
            records_pending: (state.pending.len() + state.writing) as u64,
            unavailable: state.failing,
            ..state.counters.clone()
        }
    }

    /// Writes what is still to be written, tries once more if that fails, and closes the file, which is put back if somebody has
    /// deleted it; within [`CLOSE_MAX`].
    ///
    /// # Errors
    /// Not everything could be written, or the next start will not find it.
    pub async fn close(mut self) -> Result<(), CloseError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        self.shared.end(End::Written);
        // Gone without a word, it has ended too.
        let ended = tokio::time::timeout(CLOSE_MAX, writer.ended).await.is_ok();
        if ended {
            let _ = writer.thread.join();
        }
        let mut state = self.shared.state();
        match (state.submitted.0 - state.durable.0, state.gone.take()) {
            (0, None) => Ok(()),
            (0, Some(why)) => Err(CloseError::Gone { why }),
            (batches, _) => Err(CloseError::Unwritten { batches }),
        }
    }

    /// `check` says whether the file is still where it will be looked for; `reopen` opens it once more.
    fn start(
        base: Base,
        pace: Pace,
        check: impl Fn() -> Result<(), Failure> + Send + 'static,
        reopen: impl Fn() -> Result<Base, Failure> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (end, ended) = oneshot::channel();
        let committer = Committer { shared: shared.clone(), pace, check, reopen, begun: None };
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
            committer.run(base);
            let _ = end.send(());
        })?;
        Ok(Self { shared, writer: Some(Writer { thread, ended }) })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        self.shared.end(End::Now);
        let _ = writer.thread.join();
    }
}

/// Reads in one thread and lets `restore` have the rows in this one.
fn read_with<T>(
    base: &Base,
    restore: impl FnOnce(&mut dyn Iterator<Item = Row>) -> T,
) -> (Result<(), Failure>, T) {
    let (sender, chunks) = mpsc::sync_channel(CHUNKS_MAX);
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("store-read".to_owned());
        let reading = thread.spawn_scoped(scope, move || {
            let mut chunk = Vec::with_capacity(CHUNK_LEN);
            // Whoever wants no more rows wants to know whether they are sound.
            let read = base.read(|row| {
                chunk.push(row);
                if chunk.len() == CHUNK_LEN {
                    let _ = sender.send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_LEN)));
                }
            });
            let _ = sender.send(chunk);
            read
        });
        let restored = restore(&mut chunks.into_iter().flatten());
        let gone = |_| Err(Failure::Damaged("it cannot be read to its end".to_owned()));
        let read = reading.map_err(Failure::Io).and_then(|reading| reading.join().unwrap_or_else(gone));
        (read, restored)
    })
}

/// Removes everything of a client from a store that nobody has open, and the messages that waited for no other. Returns what
/// there was. Blocks.
///
/// # Errors
/// As [`Store::open`], but a directory without a store is left as it is: there is nothing of the client.
pub fn forget(dir: &Path, id: &ClientId) -> Result<Forgotten, StoreError> {
    if !place::has_store(dir) {
        return Ok(Forgotten::default());
    }
    let place = Place::take(dir)?;
    let base = place.open_or_create()?;
    let rows = base.rows().map_err(|failure| place.explain(failure))?;
    let mut changes = Pending::default();
    let gone = count(rows.iter().filter(|row| matches!(row.key(), Key::Client(it, _) if it == *id)));
    changes.add(of_client(&rows, id).into_iter().map(Record::Delete).collect());
    if !changes.is_empty() {
        base.commit(&changes).map_err(|failure| place.explain(failure))?;
    }
    Ok(gone)
}

/// What rows of a client there are, in the terms of the core.
fn count<'a>(rows: impl Iterator<Item = &'a Row>) -> Forgotten {
    let mut gone = Forgotten::default();
    for row in rows {
        match row {
            Row::Session(_, row) => {
                gone.session = true;
                gone.at_broker = row.mode == Mode::Transparent && !row.clean;
            }
            Row::Will(..) => gone.will = true,
            Row::Topic(..) => gone.topics += 1,
            Row::Subscription(..) => gone.subscriptions += 1,
            Row::Waiting(..) => gone.waiting += 1,
            // The end of one is remembered for a while; a message that is under way has a row of its own.
            Row::Exchange(_, _, ExchangeRow { state: ExchangeState::Received, .. }) | Row::Releasing(..) => {
                gone.exchanges += 1;
            }
            Row::Uplink(_, _, row) if row.packet.is_some() => gone.exchanges += 1,
            Row::Uplink(..) => gone.kept += 1,
            Row::Exchange(..)
            | Row::ClientReceived(..)
            | Row::Gateway(_)
            | Row::Message(..)
            | Row::Received(..)
            | Row::Filter(..) => {}
        }
    }
    gone
}

/// The keys of what goes when a client does.
fn of_client(rows: &[Row], id: &ClientId) -> Vec<Key> {
    // Whether the message waits for this client, and for nobody else.
    let mut only = BTreeMap::<MessageId, bool>::new();
    for row in rows {
        if let Row::Waiting(other, _, waiting) = row {
            *only.entry(waiting.message).or_insert(true) &= other == id;
        }
    }
    let goes = |key: &Key| match key {
        Key::Client(other, _) => other == id,
        Key::Message(message) => only.get(message).copied().unwrap_or(false),
        _ => false,
    };
    rows.iter().map(Row::key).filter(goes).collect()
}

/// What a store has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Commits that succeeded.
    pub commits: u64,
    /// Rows written or removed.
    pub records_written: u64,
    /// Octets written for them, whole pages and all.
    pub octets_written: u64,
    /// Records that were never written because others settled them before.
    pub records_settled: u64,
    /// Records that are not durable, at the moment: those of the commit under way, and those that wait for one.
    pub records_pending: u64,
    /// Rows that were inserted and had been there: a fault of the core's.
    pub misplaced: u64,
    /// Commits, and attempts to open the file again, that failed.
    pub failures: u64,
    /// Nothing can be written at the moment.
    pub unavailable: bool,
    /// Time spent in commits that succeeded.
    pub commit_time: Duration,
    /// The longest of them.
    pub commit_time_max: Duration,
}

/// What the next start will not find.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// The disk did not take everything before the end.
    #[error("the last {batches} changes of state could not be written to the store")]
    Unwritten {
        /// Batches that are not durable, and were never said to be.
        batches: u64,
    },
    /// The file itself is not where it was, and could not be put back.
    #[error("the next start will not find the store: {why}")]
    Gone {
        /// What became of it.
        why: String,
    },
}

#[derive(Debug)]
struct Writer {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

/// What the loop and the thread that writes have in common.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something is to be written, or the end has come.
    work: Condvar,
    /// There is something to report.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Of batches that are in no commit.
    pending: Pending,
    /// The newest batch.
    submitted: Lsn,
    /// The newest batch that is durable, as are all before it.
    durable: Lsn,
    /// The newest batch that was reported as durable.
    reported: Lsn,
    /// Records in the commit that is under way. 0: there is none.
    writing: usize,
    /// The last commit has failed; then something is pending, or in the commit under way, until one succeeds.
    failing: bool,
    /// That is still to be reported.
    failure_is_news: bool,
    end: Option<End>,
    /// Why the next start will not find the file; set at the end.
    gone: Option<String>,
    counters: Counters,
}

/// How to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With everything written.
    Written,
    /// As it is.
    Now,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        self.state().end = Some(end);
        self.work.notify_one();
    }
}

impl State {
    fn report(&mut self) -> Option<(Lsn, Outcome)> {
        if self.durable > self.reported {
            self.reported = self.durable;
            return Some((self.durable, Outcome::Durable));
        }
        if self.failure_is_news {
            self.failure_is_news = false;
            return Some((Lsn(self.durable.0 + 1), Outcome::Unavailable));
        }
        None
    }
}

/// How fast it goes.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between the beginnings of two commits, at least.
    interval: Duration,
    /// After the first failure.
    retry: Duration,
    /// After many.
    retry_max: Duration,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self { interval, retry: RETRY, retry_max: RETRY_MAX }
    }

    /// The time until the next attempt after so many failures, one at least, that followed each other.
    fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1);
        self.retry.saturating_mul(2u32.saturating_pow(doublings)).min(self.retry_max)
    }
}

/// The thread that writes.
struct Committer<C, F> {
    shared: Arc<Shared>,
    pace: Pace,
    check: C,
    reopen: F,
    /// When the last commit began.
    begun: Option<Instant>,
}

impl<C: Fn() -> Result<(), Failure>, F: Fn() -> Result<Base, Failure>> Committer<C, F> {
    fn run(mut self, base: Base) {
        let mut base = Some(base);
        let (mut failures, mut last) = (0u32, false);
        while let Some((changes, upto)) = self.take_changes() {
            match self.attempt(&mut base, &changes) {
                Ok(()) => {
                    failures = 0;
                    self.succeed(upto);
                }
                Err(failure) => {
                    // Dropped at once: it is of no use any more, and the file is to be opened again.
                    base = None;
                    self.fail(changes, &failure);
                    if last {
                        return;
                    }
                    failures = failures.saturating_add(1);
                    last = self.wait_to_retry(self.pace.pause(failures));
                }
            }
        }
        self.finish(base);
    }

    /// Closes the file, which the next start is to find.
    fn finish(self, base: Option<Base>) {
        // Closed first: closing writes, and a copy is to be of a file in order.
        drop(base);
        if self.shared.state().end != Some(End::Written) {
            return;
        }
        let Err(failure) = (self.check)() else { return };
        // Until it is put back, which may take longer than anybody waits.
        self.shared.state().gone = Some(failure.to_string());
        let gone = (self.reopen)().err().map(|failure| failure.to_string());
        self.shared.state().gone = gone;
    }

    /// Waits until there is something to write and the interval is over. `None`: nothing any more, the end has come.
    fn take_changes(&self) -> Option<(Pending, Lsn)> {
        let mut state = self.shared.state();
        loop {
            let wait = match (state.end, &self.begun) {
                (Some(End::Now), _) => return None,
                (Some(End::Written), _) if state.pending.is_empty() => return None,
                (Some(End::Written), _) | (None, None) => Duration::ZERO,
                (None, Some(begun)) => self.pace.interval.saturating_sub(begun.elapsed()),
            };
            if state.pending.is_empty() {
                state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if !wait.is_zero() {
                let waited = self.shared.work.wait_timeout(state, wait);
                (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            } else {
                state.writing = state.pending.len();
                return Some((std::mem::take(&mut state.pending), state.submitted));
            }
        }
    }

    fn attempt(&mut self, base: &mut Option<Base>, changes: &Pending) -> Result<(), Failure> {
        let begun = Instant::now();
        self.begun = Some(begun);
        let open = match base.take() {
            Some(open) => open,
            None => (self.reopen)()?,
        };
        let written = open.commit(changes)?;
        // A file without its name is written as well as ever, and never found again.
        (self.check)()?;
        *base = Some(open);
        let took = begun.elapsed();
        let counters = &mut self.shared.state().counters;
        counters.commits += 1;
        counters.records_written += written.records;
        counters.octets_written += written.octets;
        counters.misplaced += written.misplaced;
        counters.commit_time += took;
        counters.commit_time_max = counters.commit_time_max.max(took);
        Ok(())
    }

    fn succeed(&self, upto: Lsn) {
        let mut state = self.shared.state();
        state.writing = 0;
        // What came since and came to nothing needs no commit.
        state.durable = if state.pending.is_empty() { state.submitted } else { upto };
        if std::mem::take(&mut state.failing) {
            info!(failures = state.counters.failures, "the store can be written again");
        }
        state.failure_is_news = false;
        drop(state);
        self.shared.news.notify_one();
    }

    fn fail(&self, changes: Pending, failure: &Failure) {
        let mut state = self.shared.state();
        state.writing = 0;
        state.pending.put_back(changes);
        state.counters.failures += 1;
        let first = !std::mem::replace(&mut state.failing, true);
        state.failure_is_news |= first;
        let pending = state.pending.len();
        drop(state);
        if first {
            error!(%failure, pending, "the store cannot be written, trying again");
            self.shared.news.notify_one();
        } else {
            warn!(%failure, pending, "the store still cannot be written");
        }
    }

    /// Waits for the time of the next attempt. Whether it is the last: the end leaves time for one, at once.
    fn wait_to_retry(&self, retry: Duration) -> bool {
        let mut state = self.shared.state();
        let until = Instant::now() + retry;
        while state.end.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.work.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

#[cfg(test)]
mod tests;
