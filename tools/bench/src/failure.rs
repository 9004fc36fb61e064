//! Why a benchmark cannot be run to its end.

use std::io;
use std::path::PathBuf;

/// What was attempted, and on what. The cause is the `source`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
    #[error("cannot build the gateway: cargo ended with {0}")]
    Build(std::process::ExitStatus),
    #[error("there is no {}; leave --gateway out to have it built", .0.display())]
    NoGateway(PathBuf),
    #[error("{name} did not say {awaited:?} within {seconds} s; it said: {said}")]
    Silent { name: &'static str, awaited: &'static str, seconds: u64, said: String },
    #[error("{what} did not happen within {seconds} s")]
    Late { what: String, seconds: u64 },
    #[error("the broker: {0}")]
    Broker(String),
    #[error("the gateway: {0}")]
    Gateway(String),
    #[error("instead of an answer there came {0:02x?}")]
    Unexpected(Vec<u8>),
    #[error("{} has no place for figures: <!-- bench -->, and <!-- /bench --> behind it", .0.display())]
    NoMarks(PathBuf),
    #[error("there is no scenario {0:?}; `mqtt-sn-bench list` names them")]
    NoScenario(String),
    #[error("there is no case {0:?} to be counted")]
    NoCase(String),
    #[error(
        "valgrind is not installed, and nothing else counts instructions (Debian: apt-get install valgrind)"
    )]
    NoValgrind,
    #[error("only optimised code is worth counting: run it with --release")]
    Unoptimised,
    #[error("{case} was not counted; valgrind said: {said}")]
    NotCounted { case: &'static str, said: String },
    #[error("no budget, or no good one: {0:?}")]
    BadBudget(String),
}

/// Says what was attempted.
pub(crate) trait Attempt<T> {
    /// The same, as a failure to do `what`.
    fn attempt(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::Io { what: what.into(), source: error.into() })
    }
}
