//! Why the program ends with something else than 0.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mqtt_sn_gateway::node::{Loss, PublishError, SubscribeError};
use mqtt_sn_gateway::wire::ReturnCode;

use crate::shell::Place;

/// What was attempted, and on what. The cause is the `source`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("cannot find {host}")]
    Resolve { host: String, source: io::Error },
    #[error("cannot open a UDP socket to {to}")]
    Socket { to: SocketAddr, source: io::Error },
    #[error("cannot send to {to}")]
    Send { to: Place, source: io::Error },
    #[error("there is no {}; is the device plugged in?", path.display())]
    Absent { path: PathBuf, source: io::Error },
    #[error("may not open {}; being in the group that owns it helps, often dialout", path.display())]
    Forbidden { path: PathBuf, source: io::Error },
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is no serial device", .0.display())]
    NotSerial(PathBuf),
    #[error("{} is there and no link, and is not replaced: remove it, or name another by --link", .0.display())]
    Taken(PathBuf),
    #[error("{} has vanished", path.display())]
    Gone { path: PathBuf, source: io::Error },
    #[error("a frame of {octets} octets does not fit into a datagram to {to}")]
    TooLong { to: SocketAddr, octets: usize },
    #[error("cannot publish")]
    Publish(#[source] PublishError),
    #[error("cannot subscribe")]
    Subscribe(#[source] SubscribeError),
    #[error("no way to {to}; name a gateway by -h HOST, or the interface to search by --interface ADDRESS")]
    NoWay { to: SocketAddr, source: io::Error },
    #[error("nobody listens at UDP {0} (the host answered: port unreachable); is the gateway running there?")]
    Unreachable(SocketAddr),
    #[error("no answer from {to} ({attempts} attempts); is there a gateway?")]
    NoAnswer { to: Place, attempts: u32 },
    #[error("not done within {0:?}")]
    TimedOut(Duration),
    #[error("the gateway at {to} refused the connection: {code}")]
    ConnectRefused { to: Place, code: ReturnCode },
    #[error("the gateway at {to} refused the message: {code}")]
    PublishRefused { to: Place, code: ReturnCode },
    #[error(
        "the gateway at {to} did not acknowledge the message ({attempts} attempts): it may or may not have arrived"
    )]
    GaveUp { to: Place, attempts: u32 },
    #[error("the gateway at {to} refused the subscription to {filter}: {code}")]
    SubscribeRefused { to: Place, filter: String, code: ReturnCode },
    #[error("{refused} of {total} messages were refused")]
    SomeRefused { refused: u64, total: u64 },
    #[error("connection lost")]
    Lost(#[source] Loss),
    #[error("{came} of {wanted} messages came within {limit:?}")]
    Missing { came: u64, wanted: u64, limit: Duration },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read standard input")]
    Stdin(#[source] io::Error),
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    #[error("no gateway made itself known within {0:?}")]
    NoGateway(Duration),
    #[error("nobody opened {} within {limit:?}; is it the gateway's device?", path.display())]
    NobodyOpened { path: PathBuf, limit: Duration },
    #[error("no sensor could connect to {0}")]
    NoSensor(Place),
    #[error("cannot reach the broker at {broker}: {reason}")]
    Broker { broker: String, reason: String },
    #[error("verification failed: {0}")]
    Verification(String),
}

impl Failure {
    /// The codes of `--help`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Absent { .. } | Self::Gone { .. } => 66,
            Self::Forbidden { .. } => 77,
            Self::Resolve { .. }
            | Self::Socket { .. }
            | Self::Open { .. }
            | Self::NotSerial(_)
            | Self::Taken(_)
            | Self::Send { .. }
            | Self::NoWay { .. }
            | Self::Unreachable(_)
            | Self::NoAnswer { .. }
            | Self::TimedOut(_)
            | Self::NoGateway(_)
            | Self::NoSensor(_)
            | Self::NobodyOpened { .. }
            | Self::Broker { .. } => 69,
            Self::Runtime(_)
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::TooLong { .. }
            | Self::Publish(_)
            | Self::Subscribe(_)
            | Self::ConnectRefused { .. }
            | Self::PublishRefused { .. }
            | Self::GaveUp { .. }
            | Self::SubscribeRefused { .. }
            | Self::SomeRefused { .. }
            | Self::Lost(_)
            | Self::Missing { .. }
            | Self::Stdin(_)
            | Self::Stdout(_)
            | Self::Verification(_) => 1,
        }
    }
}
