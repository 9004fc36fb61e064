//! The answering end: where the socket is, who may connect, and a task for each connection.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::ask::connect;
use super::{Ask, Asked, Order, Reply, Request};
use crate::topic::ClientId;

/// Connections at a time: several people with several commands each.
pub const CONNECTIONS_MAX: usize = 16;

/// Octets of a request: its longest part is a client id.
pub const LINE_MAX: usize = 4096;

/// Default of [`Options::patience`]: who types by hand is not cut off in the middle of a line.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may take. A store that hangs may take any time.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Requests that wait for the loop. Each connection has one at most.
const WAITING_MAX: usize = CONNECTIONS_MAX;

/// The pause after a connection could not be taken in: no file may be open at the moment.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Where a socket is and for whom it answers.
#[derive(Debug, Clone)]
pub struct Options {
    /// The socket.
    pub path: PathBuf,
    /// Its directory is the gateway's alone, and is closed to others. One that is made is so in any case.
    pub own_dir: bool,
    /// What this gateway's store is called in requests; `none` if it has none.
    pub store: String,
    /// How long a connection may be silent, and an answer may wait to be read.
    pub patience: Duration,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process answers there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is something else by that name, which is left alone.
    #[error("{} exists and is no socket", .0.display())]
    NotASocket(PathBuf),
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

/// A socket that is open. Dropped, it is closed and its file is gone.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    task: AbortHandle,
    refused: Arc<AtomicUsize>,
    _lock: File,
}

impl Socket {
    /// Listens, in place of a process that died without removing its socket. Requests come out of the channel. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`OpenError`]; what is there is left as it is.
    pub fn open(options: &Options) -> Result<(Self, mpsc::Receiver<Asked>), OpenError> {
        let path = &options.path;
        let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        make_dir(dir, options.own_dir)?;
        let lock = lock(path)?;
        check_free(path)?;
        let listener = bind(path).map_err(|source| io_error("listen on", path, source))?;
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        let listener = listener.map_err(|source| io_error("listen on", path, source))?;
        let (sender, asked) = mpsc::channel(WAITING_MAX);
        let refused = Arc::<AtomicUsize>::default();
        let desk = Desk { asked: sender, store: options.store.clone(), patience: options.patience };
        let task = tokio::spawn(accept(listener, Arc::new(desk), refused.clone())).abort_handle();
        Ok((Self { path: path.clone(), task, refused, _lock: lock }, asked))
    }

    /// Connections and requests that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed) as u64
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        // If it is gone already, so much the better.
        let _ = fs::remove_file(&self.path);
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { what, path: path.to_owned(), source }
}

fn make_dir(dir: &Path, own: bool) -> Result<(), OpenError> {
    match fs::metadata(dir) {
        Ok(found) if own && found.mode() & 0o077 != 0 => {
            let closed = fs::set_permissions(dir, Permissions::from_mode(0o700));
            closed.map_err(|source| io_error("close to others", dir, source))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|source| io_error("create the directory", dir, source))
        }
        Err(source) => Err(io_error("look into", dir, source)),
    }
}

/// The file beside the socket that tells whether a process has it: two that start at once do not both find it free.
fn lock(socket: &Path) -> Result<File, OpenError> {
    let path = beside(socket, ".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|source| io_error("create", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(socket.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
    }
}

/// `control.sock` and `.lock` is `control.sock.lock`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Whether the name is free, or that of a socket on which nobody listens any more.
fn check_free(path: &Path) -> Result<(), OpenError> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("look at", path, source)),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(OpenError::NotASocket(path.to_owned()));
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(OpenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OpenError::InUse(path.to_owned())),
        Err(source) => Err(io_error("look at", path, source)),
    }
}

/// Makes the socket where nobody else can reach it, and gives it its name when it is closed to others.
fn bind(path: &Path) -> io::Result<StdListener> {
    let hidden = beside(path, ".new");
    let socket = hidden.join("s");
    // What a process left that died just here.
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_dir(&hidden);
    DirBuilder::new().mode(0o700).create(&hidden)?;
    let bound = StdListener::bind(&socket).and_then(|listener| {
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        fs::rename(&socket, path)?;
        Ok(listener)
    });
    if bound.is_err() {
        let _ = fs::remove_file(&socket);
    }
    let _ = fs::remove_dir(&hidden);
    bound
}

/// What connections have in common.
#[derive(Debug)]
struct Desk {
    asked: mpsc::Sender<Asked>,
    store: String,
    patience: Duration,
}

async fn accept(listener: UnixListener, desk: Arc<Desk>, refused: Arc<AtomicUsize>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "control: no connection taken in");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            refused.fetch_add(1, Ordering::Relaxed);
            // If there is no room for that either, the end says enough.
            let _ = stream.try_write(&line(&Reply::error("too many connections, try again later")));
            continue;
        };
        let (desk, refused) = (desk.clone(), refused.clone());
        tokio::spawn(async move {
            let ended = desk.serve(stream, &refused).await;
            debug!(?ended, "control: connection ended");
            drop(place);
        });
    }
}

impl Desk {
    /// Answers requests until the other end has no more, is silent for too long or does not read its answers.
    async fn serve(&self, stream: UnixStream, refused: &AtomicUsize) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        loop {
            let mut request = Vec::new();
            let limit = LINE_MAX as u64 + 1;
            timeout(self.patience, (&mut read).take(limit).read_until(b'\n', &mut request)).await??;
            if request.is_empty() {
                return Ok(());
            }
            let is_whole = request.pop_if(|last| *last == b'\n').is_some();
            let reply = if request.len() > LINE_MAX {
                Reply::error(format!("a request has {LINE_MAX} octets at most"))
            } else {
                self.answer(&request).await
            };
            if matches!(reply, Reply::Error { .. }) {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            timeout(self.patience, write.write_all(&line(&reply))).await??;
            if !is_whole {
                return Ok(());
            }
        }
    }

    async fn answer(&self, request: &[u8]) -> Reply {
        let Request { store, ask } = match serde_json::from_slice(request) {
            Ok(request) => request,
            Err(error) => return Reply::error(format!("not a request: {error}")),
        };
        if store.is_some_and(|store| store != self.store) {
            return Reply::Other { store: self.store.clone() };
        }
        let order = match ask {
            Ask::Health => Order::Health,
            Ask::Forget { client } => match ClientId::new(&client) {
                Ok(client) => Order::Forget(client),
                Err(error) => return Reply::error(format!("not a client id: {error}")),
            },
        };
        let (reply, answer) = oneshot::channel();
        if self.asked.try_send(Asked { order, reply }).is_err() {
            return Reply::error("the gateway is busy or about to stop, try again later");
        }
        match timeout(ANSWER_MAX, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Reply::error("the gateway stops"),
            Err(_) => Reply::error("the store has not said yet that it is done"),
        }
    }
}

fn line(reply: &Reply) -> Vec<u8> {
    // Nothing in an answer is without a form in JSON.
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    line
}
