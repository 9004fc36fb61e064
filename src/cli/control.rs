//! Commands that ask the running gateway.

use std::path::PathBuf;

use serde::Serialize;

use super::{Exit, Failure, denied, find, load, say};
use crate::admin::{self, Ask, AskError, Gone, Health, Reply, Request, StoreState, Transport, ask};
use crate::gateway::io::Forgotten;
use crate::setup::{self, state_dir};
use crate::store::{self, StoreError};
use crate::topic::ClientId;

/// Why the gateway did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error(
        "no control socket: control.socket is none, or auto and neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set"
    )]
    NoSocket,
    #[error(transparent)]
    Ask(AskError),
    #[error("the gateway that listens on {} is another one: its store is {store}", socket.display())]
    Other { socket: PathBuf, store: String },
    #[error("{0}")]
    Refused(String),
    #[error("{unasked}, yet one is running")]
    Unasked { unasked: Box<ControlError>, source: StoreError },
    #[error("cannot forget {client}")]
    Store { client: ClientId, source: StoreError },
    #[error("cannot print the answer")]
    Print(#[source] serde_json::Error),
}

impl ControlError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Ask(AskError::Denied(_)) => Exit::NoPermission,
            Self::NoSocket | Self::Ask(_) | Self::Other { .. } | Self::Unasked { .. } => Exit::Unreachable,
            // Nobody tries this again by himself: a full disk is no lack of permission.
            Self::Store { source: StoreError::Io { source, .. }, .. } if !denied(source) => Exit::Failure,
            Self::Store { source, .. } => super::exit_of_store(source),
            Self::Refused(_) | Self::Print(_) => Exit::Failure,
        }
    }
}

/// The gateway of a configuration: where it may be asked, and the directory of its state.
struct Target {
    control: Option<admin::Options>,
    state: Option<PathBuf>,
}

impl Target {
    fn of(file: Option<PathBuf>) -> Result<Self, Failure> {
        let config = load(&find(file)?)?;
        let state = state_dir(&config.store.path)?;
        let control = setup::control(&config.control, state.as_deref());
        Ok(Self { control, state })
    }

    fn ask(&self, what: Ask) -> Result<Reply, ControlError> {
        let control = self.control.as_ref().ok_or(ControlError::NoSocket)?;
        let request = Request { store: Some(control.store.clone()), ask: what };
        match ask(&control.path, &request).map_err(ControlError::Ask)? {
            Reply::Error { text } => Err(ControlError::Refused(text)),
            Reply::Other { store } => Err(ControlError::Other { socket: control.path.clone(), store }),
            reply => Ok(reply),
        }
    }
}

/// `forget`: by the running gateway, else in the store at rest.
pub(super) fn forget(client: &ClientId, file: Option<PathBuf>, json: bool) -> Result<Exit, Failure> {
    let target = Target::of(file)?;
    let reply = match target.ask(Ask::Forget { client: client.to_string() }) {
        Err(
            unasked @ (ControlError::NoSocket
            | ControlError::Ask(AskError::NotRunning(_))
            | ControlError::Other { .. }),
        ) => forget_at_rest(&target, client, unasked)?,
        reply => reply?,
    };
    let Reply::Forgotten(gone) = reply else {
        return Err(ControlError::Refused("the gateway answered something else".to_owned()).into());
    };
    print(json, &Reply::Forgotten(gone.clone()), &describe(&gone))?;
    Ok(Exit::Ok)
}

/// Nobody could be asked, for this reason.
fn forget_at_rest(target: &Target, client: &ClientId, unasked: ControlError) -> Result<Reply, ControlError> {
    let gone = match (&target.state, unasked) {
        (Some(dir), unasked) => match store::forget(dir, client) {
            Ok(gone) => gone,
            Err(source @ StoreError::InUse { .. }) => {
                return Err(ControlError::Unasked { unasked: Box::new(unasked), source });
            }
            Err(source) => return Err(ControlError::Store { client: client.clone(), source }),
        },
        // What ended with the process was all there was.
        (None, ControlError::Ask(AskError::NotRunning(_))) => Forgotten::default(),
        (None, unasked) => return Err(unasked),
    };
    Ok(Reply::Forgotten(Gone::new(client, true, gone)))
}

/// `health`.
pub(super) fn health(file: Option<PathBuf>, json: bool) -> Result<Exit, Failure> {
    let Reply::Health(health) = Target::of(file)?.ask(Ask::Health)? else {
        return Err(ControlError::Refused("the gateway answered something else".to_owned()).into());
    };
    print(json, &Reply::Health(health.clone()), &summarize(&health))?;
    Ok(if health.ok { Exit::Ok } else { Exit::Failure })
}

fn print(json: bool, reply: &impl Serialize, text: &str) -> Result<(), ControlError> {
    if json {
        say(serde_json::to_string(reply).map_err(ControlError::Print)?);
    } else {
        say(text);
    }
    Ok(())
}

/// What there was, in a line.
fn describe(gone: &Gone) -> String {
    let Gone { client, at_rest, session, will, topics, subscriptions, waiting, exchanges, kept, at_broker } =
        gone;
    let counts = [
        (usize::from(*session), "session"),
        (usize::from(*will), "will"),
        (*topics, "topic id"),
        (*subscriptions, "subscription"),
        (*waiting, "waiting message"),
        (*exchanges, "unfinished exchange"),
        (*kept, "message for the broker"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let there: Vec<_> = counts.map(|(count, what)| counted(*count, what)).collect();
    let left = if *at_broker { "; the broker was not told and may still have its session" } else { "" };
    let place = if *at_rest { " in the store, no gateway is running" } else { "" };
    match there.is_empty() {
        true => format!("{client}: nothing was known of it{place}"),
        false => format!("{client}: forgotten{place}: {}{left}", there.join(", ")),
    }
}

/// `2 topic ids`, `2 messages for the broker`
fn counted(count: usize, what: &str) -> String {
    match (count, what.split_once(' ')) {
        (1, _) => format!("1 {what}"),
        (_, Some(("message", rest))) => format!("{count} messages {rest}"),
        _ => format!("{count} {what}s"),
    }
}

fn summarize(health: &Health) -> String {
    let Health { broker, store, sessions, waiting, kept, transports, .. } = health;
    let connected = if broker.connected { "connected" } else { "not connected" };
    let durable = match store.state {
        StoreState::Durable => format!("durable for {}", time(store.seconds)),
        StoreState::Unavailable => format!("cannot be written for {}", time(store.seconds)),
        StoreState::None => "none, everything ends with the gateway".to_owned(),
    };
    let transports: String = transports.iter().map(describe_transport).collect();
    format!(
        "broker: {connected} for {}\nstore: {durable}\n{transports}sessions: {sessions}\n\
         messages waiting for clients: {waiting}\nmessages kept for the broker: {kept}",
        time(broker.seconds)
    )
}

/// In a line.
fn describe_transport(transport: &Transport) -> String {
    let Transport { name, up, seconds, why } = transport;
    let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("transport {name}: {} for {}{why}\n", if *up { "up" } else { "down" }, time(*seconds))
}

/// `42s`, `3m 5s`, `2h 7m`, `4d 1h`
fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_one_line() {
        let id = ClientId::new("n1").unwrap();
        let gone = Forgotten { session: true, topics: 2, kept: 2, waiting: 1, ..Forgotten::default() };
        assert_eq!(
            describe(&Gone::new(&id, false, gone)),
            "n1: forgotten: 1 session, 2 topic ids, 1 waiting message, 2 messages for the broker"
        );
        let gone = Forgotten { session: true, at_broker: true, ..Forgotten::default() };
        assert_eq!(
            describe(&Gone::new(&id, false, gone)),
            "n1: forgotten: 1 session; the broker was not told and may still have its session"
        );
        assert_eq!(
            describe(&Gone::new(&id, true, Forgotten::default())),
            "n1: nothing was known of it in the store, no gateway is running"
        );
    }

    #[test]
    fn a_transport_that_is_down_says_why() {
        let health = Health {
            ok: false,
            broker: admin::Broker { connected: true, seconds: 61 },
            store: admin::Store { state: StoreState::None, seconds: 1 },
            sessions: 2,
            waiting: 3,
            kept: 4,
            transports: vec![
                Transport { name: "lan".into(), up: true, seconds: 5, why: None },
                Transport {
                    name: "radio".into(),
                    up: false,
                    seconds: 61,
                    why: Some("/dev/x is gone".into()),
                },
            ],
        };
        assert_eq!(
            summarize(&health),
            "broker: connected for 1m 1s\nstore: none, everything ends with the gateway\ntransport lan: up for 5s\n\
             transport radio: down for 1m 1s: /dev/x is gone\nsessions: 2\nmessages waiting for clients: 3\n\
             messages kept for the broker: 4"
        );
    }

    #[test]
    fn times_have_two_units_at_most() {
        let times = [0, 59, 60, 185, 3600, 7620, 86_400, 350_000].map(time);
        assert_eq!(times, ["0s", "59s", "1m 0s", "3m 5s", "1h 0m", "2h 7m", "1d 0h", "4d 1h"]);
    }
}
