//! The directory of a store: who may look into it, who has it, and how the file in it comes about.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;
use redb::backends::FileBackend;
use tracing::warn;

use super::StoreError;
use super::base::{Base, Failure};

/// What is stored.
pub(super) const FILE: &str = "store.redb";

/// An empty one until it is complete.
const UNFINISHED: &str = "store.redb.new";

/// One that is put back, until it is complete. If the process ends before, it is all there is.
const COPY: &str = "store.redb.copy";

/// Who has the directory. Its content is a process id, for people to read.
const LOCK: &str = "store.lock";

/// The directory of a store that belongs to this value as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    held: Mutex<Held>,
}

/// What is open as long as the directory is ours, whatever becomes of the names.
#[derive(Debug)]
struct Held {
    lock: File,
    /// What was opened last.
    file: Option<File>,
}

/// A program that is being started has a share in the lock until it is its own, so that closing the file is not enough.
impl Drop for Held {
    fn drop(&mut self) {
        // What cannot be unlocked is so when all who have it open are gone.
        let _ = self.lock.unlock();
    }
}

impl Place {
    /// Takes possession of the directory, which is made if there is none.
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        make_private(dir)?;
        let lock = lock(dir)?;
        Ok(Self { dir: dir.to_owned(), held: Mutex::new(Held { lock, file: None }) })
    }

    /// The file, which is made if there is none. Its making can be cut off at any point: only a complete one has the name.
    pub(super) fn open_or_create(&self) -> Result<Base, StoreError> {
        let (file, copy) = (self.file(), self.dir.join(COPY));
        let there = |path: &Path| path.try_exists().map_err(|e| io_error("look for", path, e));
        if !there(&file)? {
            if there(&copy)? { self.take_copy(&copy)? } else { self.create()? }
        }
        keep_private(&file, 0o600)?;
        let base = self.open().map_err(|failure| self.explain(failure))?;
        // Once there is a file it is older, and is not to come back when somebody moves the file away.
        match fs::remove_file(&copy) {
            Ok(()) => warn!(path = %copy.display(), "removed what was left of putting the store back once"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove", &copy, error)),
        }
        Ok(base)
    }

    /// Makes the copy the file, if it is complete. It may be cut off anywhere, and what it is of is gone.
    fn take_copy(&self, copy: &Path) -> Result<(), StoreError> {
        keep_private(copy, 0o600)?;
        let failed = |error| io_error("use", copy, error);
        let file = OpenOptions::new().read(true).write(true).open(copy).map_err(failed)?;
        let whole = medium(file).and_then(Base::open).map_err(|failure| explain(failure, copy))?;
        drop(whole);
        File::open(copy).and_then(|copy| copy.sync_all()).map_err(failed)?;
        fs::rename(copy, self.file()).map_err(failed)?;
        sync_dir(&self.dir)?;
        warn!(path = %self.file().display(), "somebody had deleted the store, and its copy takes its place");
        Ok(())
    }

    /// The file, which has to be there.
    pub(super) fn open(&self) -> Result<Base, Failure> {
        let file = OpenOptions::new().read(true).write(true).open(self.file())?;
        // Opened once more: a copy of the handle would have its share in what redb locks.
        self.held().file = Some(File::open(self.file())?);
        Base::open(medium(file)?)
    }

    /// Whether the file that is open is the one that the next start will find.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let Some(own) = self.held().file.as_ref().map(File::metadata).transpose()? else { return Ok(()) };
        match fs::metadata(self.file()) {
            Ok(there) if is_same(&there, &own) => Ok(()),
            Ok(_) => Err(io::Error::other("somebody has put another file in its place").into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(io::Error::new(error.kind(), "somebody has deleted it").into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The file, which is put back if somebody has deleted it: it is there as long as it is open.
    pub(super) fn reopen(&self) -> Result<Base, Failure> {
        match self.check() {
            Err(Failure::Io(error)) if error.kind() == io::ErrorKind::NotFound => self.put_back()?,
            other => other?,
        }
        self.open()
    }

    fn put_back(&self) -> Result<(), Failure> {
        let simple = |error: StoreError| match error {
            StoreError::Io { source, .. } => source,
            error => io::Error::other(error.to_string()),
        };
        make_private(&self.dir).map_err(simple)?;
        let mut held = self.held();
        let lock_there = fs::metadata(self.dir.join(LOCK));
        if !lock_there.is_ok_and(|there| held.lock.metadata().is_ok_and(|own| is_same(&there, &own))) {
            held.lock = lock(&self.dir).map_err(simple)?;
        }
        let Some(mut file) = held.file.as_ref() else { return Ok(()) };
        let path = self.dir.join(COPY);
        let mut copy = open_private(&path)?;
        copy.set_len(0)?;
        file.rewind()?;
        io::copy(&mut file, &mut copy)?;
        copy.sync_all()?;
        fs::rename(&path, self.file())?;
        sync_dir(&self.dir).map_err(simple)?;
        warn!(path = %self.file().display(), "somebody had deleted the store, it is put back");
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Of its parts each is whole at any time.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// What a failure of the file means to somebody who wants to start.
    pub(super) fn explain(&self, failure: Failure) -> StoreError {
        explain(failure, &self.file())
    }

    fn create(&self) -> Result<(), StoreError> {
        let path = self.dir.join(UNFINISHED);
        let failed = |error| io_error("create", &path, error);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = open_private(&path).map_err(failed)?;
        let whole = file.try_clone().map_err(failed)?;
        medium(file).and_then(Base::create).map_err(|failure| match failure {
            Failure::Io(error) => failed(error),
            failure => failed(io::Error::other(failure.to_string())),
        })?;
        whole.sync_all().map_err(failed)?;
        fs::rename(&path, self.file()).map_err(failed)?;
        sync_dir(&self.dir)
    }
}

/// Whether the directory has a store, whole or not.
pub(super) fn has_store(dir: &Path) -> bool {
    [FILE, COPY].iter().any(|name| dir.join(name).try_exists().unwrap_or(true))
}

fn explain(failure: Failure, path: &Path) -> StoreError {
    let path = path.to_owned();
    match failure {
        Failure::Damaged(what) => StoreError::Damaged { path, what },
        Failure::Newer(what) => StoreError::Newer { path, what },
        Failure::InUse => StoreError::InUse { path, pid: None },
        Failure::Io(source) => StoreError::Io { what: "use", path, source },
    }
}

fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn medium(file: File) -> Result<Box<dyn StorageBackend>, Failure> {
    Ok(Box::new(FileBackend::new(file).map_err(redb::Error::from)?))
}

/// Nobody else may look into the directory. One that others use too is not changed for it.
fn make_private(dir: &Path) -> Result<(), StoreError> {
    match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|e| io_error("create the directory", dir, e))?;
            sync_dir(dir.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")))?;
        }
        Err(error) => return Err(io_error("look into", dir, error)),
        Ok(_) => {}
    }
    let ours = [FILE, UNFINISHED, COPY, LOCK];
    let mode = fs::metadata(dir).map_err(|e| io_error("look into", dir, e))?.mode() & 0o7777;
    let mut entries = fs::read_dir(dir).map_err(|e| io_error("look into", dir, e))?;
    let shared = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| ours.iter().all(|name| entry.file_name() != *name))
    };
    if mode & 0o077 != 0 && entries.any(shared) {
        return Err(StoreError::Exposed { path: dir.to_owned(), mode });
    }
    keep_private(dir, 0o700)
}

/// Takes away what others may do with what is there.
fn keep_private(path: &Path, wanted: u32) -> Result<(), StoreError> {
    let mode = fs::metadata(path).map_err(|e| io_error("look at", path, e))?.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    warn!(path = %path.display(), was = format!("{mode:o}"), "others had access to the store, taken away");
    match fs::set_permissions(path, Permissions::from_mode(wanted)) {
        Ok(()) => Ok(()),
        Err(_) => Err(StoreError::Exposed { path: path.to_owned(), mode }),
    }
}

/// A file of ours alone, whatever the umask, and of the one whose directory it is: root may lend a hand.
fn open_private(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    if let Some(dir) = path.parent() {
        let (own, dir) = (file.metadata()?, fs::metadata(dir)?);
        if own.uid() != dir.uid() {
            chown(path, Some(dir.uid()), Some(dir.gid()))?;
        }
    }
    Ok(file)
}

/// Locks out every other process until the file is closed.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let failed = |error| io_error("lock", &path, error);
    let mut file = open_private(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Who it is, is a courtesy.
            let _ = file.read_to_string(&mut text);
            return Err(StoreError::InUse { path: dir.join(FILE), pid: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let said = file.set_len(0).and_then(|()| file.rewind());
    // On a full disk it is locked all the same.
    let _ = said.and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// What was created or renamed in it is there after a power loss.
fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| io_error("sync the directory", dir, e))
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_free_though_a_program_being_started_still_has_it_open() {
        let dir = tempfile::TempDir::new().unwrap();
        let place = Place::take(dir.path()).unwrap();
        // What a fork has until its exec: one more handle of the same open file.
        let share = place.held().lock.try_clone().unwrap();
        assert!(matches!(Place::take(dir.path()), Err(StoreError::InUse { .. })));
        drop(place);
        Place::take(dir.path()).unwrap();
        drop(share);
    }
}
