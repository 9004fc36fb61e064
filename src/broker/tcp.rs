//! The broker on a TCP socket.

use std::future::Future;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::{Broker, Limits};

type Command = Box<dyn FnOnce(&mut Broker, Instant) + Send>;

/// Commands that wait for a [`Server`]: tests send them one by one.
const COMMANDS_MAX: usize = 16;

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
}

/// Reaches into a running [`Server`]: to inject faults, to look.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Command>);

impl Server {
    /// Nothing is accepted before [`run`](Self::run).
    pub fn new(listener: TcpListener, broker: Broker) -> Self {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        Self { listener, broker, commands, handle: Handle(sender) }
    }

    /// A handle on it, good while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown` completes; all connections are closed then.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Broker {
        let (_, _) = (self.listener, self.commands);
        shutdown.await;
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
