//! What the operator asks, on its way to the core and back.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::admin::{self, Asked, Gone, Health, Order, Reply, Socket, StoreState};
use crate::gateway::Gateway;
use crate::gateway::io::{Answer, Control, Input, PortEvent, PortId, RequestId};
use crate::topic::ClientId;
use crate::transport::Status;

/// Requests that wait for the core's answer: with a store that hangs there may be many. Who has gone does not count.
const OPEN_MAX: usize = 64;

/// The control socket, if there is one, and the requests that came by it.
#[derive(Debug)]
pub(super) struct Operator {
    control: Option<(Socket, mpsc::Receiver<Asked>)>,
    open: BTreeMap<RequestId, (ClientId, oneshot::Sender<Reply>)>,
    last: u64,
    /// Whether the broker is there, and since when that is so.
    broker: (bool, Instant),
    store: (StoreState, Instant),
    /// The name of each port, whether it is up, and since when that is so.
    ports: Vec<(String, bool, Instant)>,
}

impl Operator {
    /// Without a socket a gateway does its work all the same.
    pub(super) fn new(options: Option<&admin::Options>, has_store: bool, now: Instant) -> Self {
        let control = options.and_then(|options| match Socket::open(options) {
            Ok(control) => {
                info!(path = %options.path.display(), "control socket");
                Some(control)
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "no control socket");
                None
            }
        });
        let store = if has_store { StoreState::Durable } else { StoreState::None };
        let ports = Vec::new();
        Self { control, open: BTreeMap::new(), last: 0, broker: (false, now), store: (store, now), ports }
    }

    /// A port was opened; it is the next of them.
    pub(super) fn add_port(&mut self, name: &str, up: bool, now: Instant) {
        self.ports.push((name.to_owned(), up, now));
    }

    /// The next request. Cancel-safe.
    pub(super) async fn next(&mut self) -> Asked {
        if let Some((_, asked)) = &mut self.control
            && let Some(asked) = asked.recv().await
        {
            return asked;
        }
        pending().await
    }

    /// Answers a request, or says what the core is to be told; it answers later.
    pub(super) fn take(
        &mut self,
        asked: Asked,
        gateway: &Gateway,
        ports: Vec<Status>,
        now: Instant,
    ) -> Option<Input> {
        let Asked { order, reply } = asked;
        match order {
            Order::Health => {
                // Who has asked may have gone.
                let _ = reply.send(Reply::Health(self.health(gateway, ports, now)));
                None
            }
            Order::Forget(client) => {
                self.open.retain(|_, (_, reply)| !reply.is_closed());
                if self.open.len() >= OPEN_MAX {
                    let _ = reply.send(Reply::error("too much waits for the store, try again later"));
                    return None;
                }
                self.last += 1;
                let request = RequestId(self.last);
                self.open.insert(request, (client.clone(), reply));
                Some(Input::Control(Control::Forget(request, client)))
            }
        }
    }

    /// The core has answered.
    pub(super) fn answer(&mut self, request: RequestId, answer: Answer) {
        let Some((client, reply)) = self.open.remove(&request) else { return };
        let _ = reply.send(match answer {
            Answer::Forgotten(gone) => Reply::Forgotten(Gone::new(&client, false, gone)),
            Answer::Unstored => {
                Reply::error("nothing was forgotten: the store cannot be written at the moment")
            }
        });
    }

    /// Sees whether the broker has come or gone.
    pub(super) fn note_broker(&mut self, connected: bool, now: Instant) {
        if self.broker.0 != connected {
            self.broker = (connected, now);
        }
    }

    /// Sees whether the store writes what it is given.
    pub(super) fn note_store(&mut self, storing: bool, now: Instant) {
        let state = if storing { StoreState::Durable } else { StoreState::Unavailable };
        if self.store.0 != StoreState::None && self.store.0 != state {
            self.store = (state, now);
        }
    }

    /// A port says that it can or cannot send and receive.
    pub(super) fn note_port(&mut self, port: PortId, event: PortEvent, now: Instant) {
        let up = event == PortEvent::Up;
        if let Some((_, was_up, since)) = self.ports.get_mut(usize::from(port.0))
            && *was_up != up
            && (up || event == PortEvent::Down)
        {
            (*was_up, *since) = (up, now);
        }
    }

    /// How the gateway is, in a line that stays true while nothing changes.
    pub(super) fn status(&self, gateway: &Gateway) -> String {
        let broker = if self.broker.0 { "broker connected" } else { "broker not connected" };
        let ports =
            self.ports.iter().map(|(name, up, _)| format!("{name} {}", if *up { "up" } else { "down" }));
        let ports = ports.collect::<Vec<_>>().join(", ");
        let (sessions, kept) = (gateway.sessions(), gateway.kept_messages());
        let mut line = format!("{broker}; {ports}; {}", counted(sessions, "session"));
        if kept > 0 {
            line += &format!("; {} kept for the broker", counted(kept, "message"));
        }
        if self.store.0 == StoreState::Unavailable {
            line += "; the store cannot be written";
        }
        line
    }

    /// Connections and requests that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.control.as_ref().map_or(0, |(socket, _)| socket.refused())
    }

    fn health(&self, gateway: &Gateway, ports: Vec<Status>, now: Instant) -> Health {
        let seconds = |since| now.saturating_duration_since(since).as_secs();
        let ((connected, broker), (state, store)) = (self.broker, self.store);
        Health {
            ok: connected && state != StoreState::Unavailable && ports.iter().all(|port| port.well),
            broker: admin::Broker { connected, seconds: seconds(broker) },
            store: admin::Store { state, seconds: seconds(store) },
            transports: self
                .ports
                .iter()
                .zip(ports)
                .map(|((name, up, since), port)| admin::Transport {
                    name: name.clone(),
                    up: *up,
                    seconds: seconds(*since),
                    why: port.why,
                })
                .collect(),
            sessions: gateway.sessions(),
            waiting: gateway.waiting_messages(),
            kept: gateway.kept_messages(),
        }
    }
}

/// `1 session`, `12 sessions`
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
