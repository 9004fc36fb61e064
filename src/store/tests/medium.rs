//! A disk in memory that can fail, and that remembers what a power loss would leave of it.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use redb::StorageBackend;

/// One thing done to a disk.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
    /// Nothing: what the test wants to find again.
    Mark(usize),
}

/// What a disk does to the operation of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// That one fails.
    Once(usize),
    /// That one fails, and all after it, until this is taken back.
    From(usize),
}

/// A handle; clones are of the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Medium(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    /// What is read.
    image: Vec<u8>,
    /// What is there after a power loss.
    stable: Vec<u8>,
    /// Of what is read but not there; of a sync that failed it never will be, as on Linux.
    unsynced: Vec<Op>,
    /// Everything that was done, if it is of interest.
    journal: Option<Vec<Op>>,
    /// Writes, changes of length and syncs so far.
    ops: usize,
    fault: Option<Fault>,
    /// Syncs take as long as this is set.
    held: bool,
}

impl Medium {
    pub(super) fn of(image: Vec<u8>) -> Self {
        let state = State { stable: image.clone(), image, ..State::default() };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub(super) fn boxed(&self) -> Box<dyn StorageBackend> {
        Box::new(self.clone())
    }

    pub(super) fn image(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().image.clone()
    }

    /// What a power loss leaves, if it leaves nothing that was not synced.
    pub(super) fn stable(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().stable.clone()
    }

    pub(super) fn record(&self) {
        self.0.0.lock().unwrap().journal = Some(Vec::new());
    }

    pub(super) fn mark(&self, mark: usize) {
        self.0.0.lock().unwrap().journal.as_mut().unwrap().push(Op::Mark(mark));
    }

    pub(super) fn journal(&self) -> Vec<Op> {
        self.0.0.lock().unwrap().journal.take().unwrap()
    }

    pub(super) fn ops(&self) -> usize {
        self.0.0.lock().unwrap().ops
    }

    pub(super) fn fail(&self, fault: Option<Fault>) {
        self.0.0.lock().unwrap().fault = fault;
    }

    /// Lets syncs wait, or go on.
    pub(super) fn hold(&self, held: bool) {
        self.0.0.lock().unwrap().held = held;
        self.0.1.notify_all();
    }
}

impl State {
    fn perform(&mut self, op: Op) -> io::Result<()> {
        let number = self.ops;
        self.ops += 1;
        let fails = match self.fault {
            Some(Fault::Once(at)) => at == number,
            Some(Fault::From(at)) => at <= number,
            None => false,
        };
        if fails {
            if let Op::Sync = op {
                // Of the length the file system keeps a journal.
                self.unsynced.retain(|op| matches!(op, Op::SetLen(_)));
            }
            return Err(io::Error::other("the disk of the test fails"));
        }
        if let Some(journal) = &mut self.journal {
            journal.push(op.clone());
        }
        if let Op::Sync = op {
            for op in self.unsynced.drain(..) {
                apply(&mut self.stable, &op);
            }
        } else {
            apply(&mut self.image, &op);
            self.unsynced.push(op);
        }
        Ok(())
    }
}

/// What is beyond the end is nowhere.
pub(super) fn apply(image: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(offset, data) => {
            let end = (offset + data.len()).min(image.len());
            if let Some(place) = image.get_mut(*offset..end) {
                place.copy_from_slice(&data[..place.len()]);
            }
        }
        Op::SetLen(len) => image.resize(*len, 0),
        Op::Sync | Op::Mark(_) => {}
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().unwrap().image.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.0.lock().unwrap();
        let place = state.image.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(place.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.0.lock().unwrap().perform(Op::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = self.0.0.lock().unwrap();
        self.0.1.wait_while(state, |state| state.held).unwrap().perform(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.0.lock().unwrap().perform(Op::Write(offset as usize, data.to_vec()))
    }
}
