//! The broker on a TCP socket.
//!
//! One task owns the [`Broker`] and awaits nothing but its inboxes and its deadline. Each connection has a task that
//! reads and writes: it reads on only after the owner has taken what it read last and the broker wants more, and it
//! has at most one write to do, so a client that does not read costs its queues in the broker and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, warn};

use super::{Broker, ConnectionId, Input, Limits, Memory, Output};
use crate::deadline::Deadline;

type Command = Box<dyn FnOnce(&mut Broker, Instant) + Send>;

/// Commands that wait for a [`Server`]: tests send them one by one.
const COMMANDS_MAX: usize = 16;

/// Inputs that wait for the owner. A connection has at most three there: what it read, that it wrote, that it ended.
const INBOX_MAX: usize = 1024;

/// Inputs handled before outputs are taken: a batch gives each client one write for all of it.
const BATCH_MAX: usize = 64;

/// Octets read at once: what a busy client fills, and little beside [`Limits::write_ahead`].
const READ_MAX: usize = 16 << 10;

/// How long a closed connection may take to get rid of its last write.
const LINGER: Duration = Duration::from_secs(1);

/// How long not to accept after a failure to (out of file descriptors, as a rule).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs a new broker on `listener` until `shutdown` completes, and gives it back as it was then.
pub async fn serve(listener: TcpListener, limits: Limits, shutdown: impl Future<Output = ()>) -> Broker {
    Server::new(listener, Broker::new(limits)).run(shutdown).await
}

/// A broker and the socket it listens on.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    broker: Broker,
    commands: mpsc::Receiver<Command>,
    handle: Handle,
    /// The last number given to a connection.
    opened: u64,
    links: BTreeMap<ConnectionId, Link>,
    /// Connections whose last read is handled and who were not yet told to read on.
    unread: BTreeSet<ConnectionId>,
    tasks: JoinSet<()>,
}

/// Reaches into a running [`Server`]: to inject faults, to look.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Command>);

/// The owner's end of a connection. Dropping it makes the connection write what it was given and close.
#[derive(Debug)]
struct Link {
    /// Holds one write.
    writes: mpsc::Sender<Bytes>,
    /// Lets the connection read once more.
    reads: mpsc::Sender<()>,
    _open: oneshot::Sender<()>,
}

impl Server {
    /// Nothing is accepted before [`run`](Self::run).
    pub fn new(listener: TcpListener, broker: Broker) -> Self {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        Self {
            listener,
            broker,
            commands,
            handle: Handle(sender),
            opened: 0,
            links: BTreeMap::new(),
            unread: BTreeSet::new(),
            tasks: JoinSet::new(),
        }
    }

    /// A handle on it, good while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown` completes; all connections are closed then, without their wills.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Broker {
        let address = self.listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string());
        warn!(
            "embedded broker on {address}: keeps nothing over a restart and lets everybody in; for real use take mosquitto"
        );
        let (inbox, mut inputs) = mpsc::channel(INBOX_MAX);
        tokio::pin!(shutdown);
        let (mut accept_from, mut deadline) = (Instant::now(), Deadline::default());
        loop {
            let wake = self.broker.poll_timeout();
            // Accepting is cheap and bounded; what clients send comes last, and a batch of it with every turn.
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(command) = self.commands.recv() => command(&mut self.broker, Instant::now()),
                () = deadline.reached(wake) => self.broker.handle_timeout(Instant::now()),
                accepted = accept(&self.listener, accept_from) => match accepted {
                    Ok(stream) => self.open(stream, inbox.clone()),
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        accept_from = Instant::now() + ACCEPT_PAUSE;
                    }
                },
                Some(input) = inputs.recv() => self.handle_input(input),
            }
            for _ in 0..BATCH_MAX {
                let Ok(input) = inputs.try_recv() else { break };
                self.handle_input(input);
            }
            self.dispatch();
            while self.tasks.try_join_next().is_some() {}
        }
        self.close(inputs).await
    }

    fn open(&mut self, stream: TcpStream, inbox: mpsc::Sender<Input>) {
        self.opened += 1;
        let id = ConnectionId(self.opened);
        let (writes, to_write) = mpsc::channel(1);
        let (reads, may_read) = mpsc::channel(1);
        let (open, closed) = oneshot::channel();
        self.links.insert(id, Link { writes, reads, _open: open });
        self.tasks.spawn(async move {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "cannot set TCP_NODELAY");
            }
            let (reader, writer) = stream.into_split();
            tokio::select! {
                () = read(id, reader, &inbox, may_read) => {}
                () = write(id, writer, &inbox, to_write) => {}
                () = linger(closed) => {}
            }
            // Nobody listens any more while the server stops.
            let _ = inbox.send(Input::Closed(id)).await;
        });
        self.broker.handle(Instant::now(), Input::Opened(id));
    }

    fn handle_input(&mut self, input: Input) {
        let (Input::Opened(id) | Input::Bytes(id, _) | Input::Drained(id) | Input::Closed(id)) = input;
        if !self.links.contains_key(&id) {
            return; // The broker has closed it; its task is saying good-bye.
        }
        match input {
            Input::Bytes(..) => drop(self.unread.insert(id)),
            Input::Closed(_) => drop(self.links.remove(&id)),
            Input::Opened(_) | Input::Drained(_) => {}
        }
        self.broker.handle(Instant::now(), input);
    }

    /// Hands out what the broker wants done, and lets those read on from whom it wants more.
    fn dispatch(&mut self) {
        while let Some(output) = self.broker.poll_output() {
            match output {
                Output::Write(id, bytes) => {
                    // There is room: the broker waits for `Drained` between two writes.
                    if let Some(link) = self.links.get(&id)
                        && link.writes.try_send(bytes).is_err()
                    {
                        debug!(connection = id.0, "write to a connection that has ended");
                    }
                }
                Output::Close(id) => drop(self.links.remove(&id)),
            }
        }
        let (broker, links) = (&self.broker, &self.links);
        self.unread.retain(|id| {
            let wanted = broker.wants_input(*id);
            if wanted && let Some(link) = links.get(id) {
                // Never full: the connection waits for this before it reads again.
                let _ = link.reads.try_send(());
            }
            !wanted
        });
    }

    async fn close(mut self, inputs: mpsc::Receiver<Input>) -> Broker {
        drop(inputs);
        self.broker.restart(Memory::Kept);
        self.dispatch();
        while self.tasks.join_next().await.is_some() {}
        self.broker
    }
}

impl Handle {
    /// Calls `f` with the broker between two inputs and returns what it says; `None` once the server has stopped.
    pub async fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Broker, Instant) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = oneshot::channel();
        let command: Command = Box::new(move |broker, now| drop(sender.send(f(broker, now))));
        self.0.send(command).await.ok()?;
        receiver.await.ok()
    }
}

async fn accept(listener: &TcpListener, from: Instant) -> std::io::Result<TcpStream> {
    if from > Instant::now() {
        sleep_until(from.into()).await;
    }
    listener.accept().await.map(|(stream, _)| stream)
}

/// Reads until the client has no more to say. Once the owner has let go, what comes is thrown away, so that the
/// client's kernel does not answer our closing with a reset before our last write has been read.
async fn read(
    id: ConnectionId,
    reader: OwnedReadHalf,
    inbox: &mpsc::Sender<Input>,
    mut may_read: mpsc::Receiver<()>,
) {
    loop {
        // Without a buffer while there is nothing to read: most connections are silent most of the time.
        if reader.readable().await.is_err() {
            return;
        }
        let mut bytes = BytesMut::with_capacity(READ_MAX);
        match reader.try_read_buf(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        if !may_read.is_closed() && inbox.send(Input::Bytes(id, bytes.freeze())).await.is_ok() {
            // `None` once the owner has let go.
            let _ = may_read.recv().await;
        }
    }
}

/// Writes until the owner has let go or the client is gone.
async fn write(
    id: ConnectionId,
    mut writer: OwnedWriteHalf,
    inbox: &mpsc::Sender<Input>,
    mut to_write: mpsc::Receiver<Bytes>,
) {
    while let Some(bytes) = to_write.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
        let _ = inbox.send(Input::Drained(id)).await;
    }
    // The other half waits for the client to close too.
    if writer.shutdown().await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Completes a while after the owner has let go.
async fn linger(closed: oneshot::Receiver<()>) {
    let _ = closed.await;
    sleep(LINGER).await;
}
