//! `mqtt-sn-node`: a sensor from the command line, for trying a gateway out and for putting it under load.
//!
//! Everything the protocol asks is done by [`mqtt_sn_gateway::node`]; here are sockets, arguments and words.

mod args;
mod failure;
mod fleet;
mod publish;
mod search;
mod serial;
mod shell;
mod subscribe;
mod value;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("mqtt-sn-node: {}", chain(&failure));
            failure.exit_code().into()
        }
    }
}

fn run() -> Result<(), Failure> {
    let cli = Cli::parse();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(async {
        match cli.command {
            Command::Pub(args) => publish::run(args.meant()?).await,
            Command::Sub(args) => subscribe::run(args.meant()?).await,
            Command::Search(args) => search::run(args).await,
            Command::Fleet(args) => fleet::run(args.meant()?).await,
        }
    })
}

/// A failure and its causes: `a: b: c`.
fn chain(failure: &Failure) -> String {
    let causes = std::iter::successors(failure.source(), |&cause| cause.source());
    causes.fold(failure.to_string(), |text, cause| format!("{text}: {cause}"))
}
