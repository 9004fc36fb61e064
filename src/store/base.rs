//! The file as redb keeps it: tables, transactions, and what their errors mean. Nothing else knows redb.
//!
//! Every commit is of two phases: first everything is on the disk, then one octet makes it count. So the newest commit is
//! whole or the file is damaged, which is then said. Nothing older is taken in its place but in one case: which of two
//! commits counts is one bit, and after a crash nothing tells one that flipped from one that was not set yet. It can take
//! back one commit of a file that was not closed.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redb::{BackendError, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::pending::{Change, Pending};
use super::row::{Kind, RowError, decode_row, encode_key, encode_row};
use crate::gateway::record::Row;

/// The version of the file: which tables there are. A program takes files of its own version and of older ones.
pub(super) const FORMAT: u64 = 1;

/// Octets of pages in memory: the inner pages of a file with 100,000 sessions, and some of what one commit changes. The others
/// the operating system has, which takes them back when it needs the memory.
const CACHE: usize = 4 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const KINDS: TableDefinition<'_, u8, &str> = TableDefinition::new("kinds");
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");

/// An open file.
pub(super) struct Base {
    /// `None` only while it is dropped.
    database: Option<Database>,
    written: Arc<AtomicUsize>,
}

/// What a commit has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// Rows written or removed.
    pub(super) records: u64,
    /// Octets that the commit has put into the file, whole pages and all.
    pub(super) octets: u64,
    /// Rows that were said to be the first under their key and were not.
    pub(super) misplaced: u64,
}

impl Base {
    /// Makes an empty store of an empty file.
    pub(super) fn create(medium: Box<dyn StorageBackend>) -> Result<(), Failure> {
        let disk = Disk { medium, written: Arc::default() };
        guarded(|| {
            let database = Database::builder().set_cache_size(CACHE).create_with_backend(disk)?;
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            transaction.open_table(META)?.insert("format", FORMAT)?;
            let mut kinds = transaction.open_table(KINDS)?;
            for (kind, name) in Kind::NAMES {
                kinds.insert(kind as u8, name)?;
            }
            drop(kinds);
            transaction.open_table(ROWS)?;
            transaction.commit()?;
            Ok(database.close()?)
        })
    }

    /// Opens a file that [`create`](Self::create) has made, after a look at every octet of it that counts.
    pub(super) fn open(medium: Box<dyn StorageBackend>) -> Result<Self, Failure> {
        // redb would make a new one of it.
        if medium.len()? == 0 {
            return Err(Failure::Damaged("it is empty".to_owned()));
        }
        let written = Arc::new(AtomicUsize::new(0));
        let disk = Disk { medium, written: written.clone() };
        let database = guarded(|| {
            let mut builder = Database::builder();
            Ok(builder.set_cache_size(CACHE).set_check_integrity_on_open(true).create_with_backend(disk)?)
        })?;
        let base = Self { database: Some(database), written };
        match base
            .run(|database| Ok(database.begin_read()?.open_table(META)?.get("format")?.map(|v| v.value())))?
        {
            Some(1..=FORMAT) => Ok(base),
            Some(format) if format > FORMAT => {
                Err(Failure::Newer(format!("it has format {format}, known is {FORMAT}")))
            }
            _ => Err(Failure::Damaged("it does not say its format".to_owned())),
        }
    }

    /// Every row, in the order of the keys.
    pub(super) fn rows(&self) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        self.read(|row| rows.push(row))?;
        Ok(rows)
    }

    /// Hands out every row, in the order of the keys. After an error what was handed out is worth nothing.
    pub(super) fn read(&self, mut take: impl FnMut(Row)) -> Result<(), Failure> {
        let wrong = self.run(|database| {
            let mut client = None;
            for entry in database.begin_read()?.open_table(ROWS)?.iter()? {
                let (key, value) = entry?;
                match decode_row(key.value(), value.value(), &mut client) {
                    Ok(row) => take(row),
                    Err(error) => return Ok(Some(error)),
                }
            }
            Ok(None)
        })?;
        match wrong {
            None => Ok(()),
            Some(RowError::UnknownKind(code)) => Err(self.unknown_kind(code)?),
            Some(error @ RowError::UnknownVersion { .. }) => Err(Failure::Newer(error.to_string())),
            Some(error) => Err(Failure::Damaged(error.to_string())),
        }
    }

    /// Writes all of it or nothing; it is durable when this returns. After an error nobody knows which, and the file is to be
    /// opened again.
    pub(super) fn commit(&self, changes: &Pending) -> Result<Written, Failure> {
        let before = self.written.load(Ordering::Relaxed);
        let misplaced = self.run(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            let mut misplaced = 0;
            let mut rows = transaction.open_table(ROWS)?;
            for (key, change) in changes.iter() {
                let key = encode_key(key);
                match change {
                    Change::Delete => drop(rows.remove(key.as_slice())?),
                    Change::Put { row, fresh } => {
                        let value =
                            encode_row(&key, row).map_err(|e| redb::Error::Io(io::Error::other(e)))?;
                        let old = rows.insert(key.as_slice(), value.as_slice())?;
                        misplaced += u64::from(*fresh && old.is_some());
                    }
                }
            }
            drop(rows);
            transaction.commit()?;
            Ok(misplaced)
        })?;
        // Where usize has 32 bits it goes round after 4 GiB.
        let octets = self.written.load(Ordering::Relaxed).wrapping_sub(before);
        Ok(Written { records: changes.len() as u64, octets: octets as u64, misplaced })
    }

    /// What a newer program says of a kind of row that this one does not know.
    fn unknown_kind(&self, code: u8) -> Result<Failure, Failure> {
        let name = self.run(|database| {
            let kinds = database.begin_read()?.open_table(KINDS)?;
            Ok(kinds.get(code)?.map(|name| name.value().to_owned()))
        })?;
        Ok(match name {
            Some(name) => Failure::Newer(format!("it has rows of the unknown kind {name:?}")),
            None => Failure::Damaged(RowError::UnknownKind(code).to_string()),
        })
    }

    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, Failure> {
        let Some(database) = &self.database else {
            return Err(Failure::Io(io::ErrorKind::NotConnected.into()));
        };
        guarded(|| work(database))
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let Some(database) = self.database.take() else { return };
        // What counts is in the file: closing only tidies up.
        let _ = guarded(|| Ok(database.close()?));
    }
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not what was written; and what is wrong.
    Damaged(String),
    /// A newer program wrote it; and what is not known here.
    Newer(String),
    /// Another process has it open.
    InUse,
    /// The operating system says so. It may go by.
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        match error {
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | UnexpectedEof) => {
                Self::Damaged(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::InUse,
            error @ (redb::Error::PreviousIo
            | redb::Error::Backend(_)
            | redb::Error::DatabaseClosed
            | redb::Error::TransactionInProgress) => Self::Io(io::Error::other(error)),
            // Corruption by that name, and tables and versions that nothing of ours has written.
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(what) => write!(f, "the file is damaged: {what}"),
            Self::Newer(what) => write!(f, "the file is of a newer version: {what}"),
            Self::InUse => f.write_str("another process has the file open"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

/// Everything that redb does goes through here: it may panic on a file that somebody else has changed.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Failure> {
    // Nothing that was broken by the panic is used again: the database is dropped.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::from),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(Failure::Damaged(text.to_owned()))
        }
    }
}

/// Where redb reads and writes. Counts what is written.
#[derive(Debug)]
struct Disk {
    medium: Box<dyn StorageBackend>,
    written: Arc<AtomicUsize>,
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.medium.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.medium.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.written.fetch_add(data.len(), Ordering::Relaxed);
        self.medium.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.medium.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.medium.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.medium.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.medium.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.medium.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.medium.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.medium.query_lock_range(start, end)
    }
}
