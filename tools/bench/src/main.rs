//! `mqtt-sn-bench`: what the gateway costs, beside bare sockets and direct MQTT clients on the same machine at the same time.
//!
//! It drives the real program over loopback: [`rig`] starts it beside a broker, [`sensor`] and [`swarm`] are the load,
//! [`app`] is at the broker's other side, [`bare`] is the least that any gateway could do, and each [`scenario`] brings
//! rows of [`figures`]. What the core alone costs is [`count`]ed instead of timed.

mod app;
mod bare;
mod count;
mod delay;
mod failure;
mod figures;
mod lone;
mod process;
mod readme;
mod rig;
mod scenario;
mod sensor;
mod sink;
mod stamp;
mod swarm;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::failure::{Attempt, Failure};
use crate::figures::Row;
use crate::readme::Readme;
use crate::scenario::{Bench, Scenario};

#[derive(Debug, Parser)]
#[command(
    name = "mqtt-sn-bench",
    about = "What the gateway costs, in ratios to bare sockets and direct MQTT clients"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every scenario
    All {
        /// Put the machine and what is beside a bar into this file, between its marks <!-- bench --> and <!-- /bench -->
        #[arg(long, value_name = "FILE")]
        readme: Option<PathBuf>,
        #[command(flatten)]
        args: RunArgs,
    },
    /// Run some of them
    Run {
        /// Their names
        #[arg(required = true, value_name = "SCENARIO")]
        scenarios: Vec<String>,
        #[command(flatten)]
        args: RunArgs,
    },
    /// Count the instructions that the core spends on a message (needs valgrind)
    Count {
        /// Of which cases [default: all]
        #[arg(value_name = "CASE")]
        cases: Vec<String>,
    },
    /// Name the scenarios
    List,
    /// The embedded broker in a process of its own
    #[command(hide = true)]
    Sink { addr: SocketAddr },
    /// What is counted, in a process of its own
    #[command(hide = true)]
    Drive { case: String },
    /// The bare relay in a process of its own, or without a broker the bare echo
    #[command(hide = true)]
    Bare { broker: Option<SocketAddr> },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The gateway's program [default: that of this repository, built as a release]
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
    /// Show what gateway and broker print
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::All { readme, args } => all(readme, args),
        Command::Run { scenarios, args } => {
            named(&scenarios).and_then(|scenarios| measure(&scenarios, args)).map(|(_, holds)| holds)
        }
        Command::Count { cases } => count::run(&cases),
        Command::List => {
            Scenario::ALL.iter().for_each(|scenario| println!("{:10} {}", scenario.name(), scenario.about()));
            println!(
                "\nBeside them, `count` counts instructions, which do not depend on what else the machine does."
            );
            Ok(true)
        }
        Command::Sink { addr } => sink::run(addr).map(|()| true),
        Command::Drive { case } => count::drive(&case).map(|()| true),
        Command::Bare { broker } => broker.map_or_else(bare::echo, bare::relay).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            let causes = std::iter::successors(failure.source(), |&cause| cause.source());
            eprintln!(
                "mqtt-sn-bench: {}",
                causes.fold(failure.to_string(), |text, cause| format!("{text}: {cause}"))
            );
            let usage = matches!(failure, Failure::NoScenario(_) | Failure::NoCase(_) | Failure::NoMarks(_));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn named(names: &[String]) -> Result<Vec<Scenario>, Failure> {
    let named = |name: &String| {
        let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
        found.ok_or_else(|| Failure::NoScenario(name.clone()))
    };
    names.iter().map(named).collect()
}

/// Every scenario. Whether all bars hold and could be measured.
fn all(readme: Option<PathBuf>, args: RunArgs) -> Result<bool, Failure> {
    let readme = readme.map(Readme::open).transpose()?;
    let (bench, holds) = measure(&Scenario::ALL, args)?;
    if let Some(readme) = readme {
        readme.write(&format!("{}:\n\n{}", bench.machine(), figures::summary(bench.rows())))?;
    }
    if !rig::has_mosquitto() {
        eprintln!("not measured: what is measured beside Mosquitto, which is not installed");
    }
    Ok(holds && rig::has_mosquitto())
}

/// Prints a line of JSON for each case, and the table at the end. Whether all bars hold.
fn measure(scenarios: &[Scenario], args: RunArgs) -> Result<(Bench, bool), Failure> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).attempt("ask for the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).attempt("raise the limit of open files")?;
    process::TELLS.store(args.verbose, Ordering::Relaxed);
    let mut bench = Bench::new(args.gateway)?;
    for scenario in scenarios {
        scenario.run(&mut bench)?;
    }
    println!("\n{}\n\n{}", bench.machine(), figures::table(bench.rows()));
    let missed: Vec<_> = bench.rows().iter().flat_map(Row::missed).collect();
    for ratio in &missed {
        eprintln!("missed: {:.2} {}", ratio.value, ratio.what);
    }
    let holds = missed.is_empty();
    Ok((bench, holds))
}
