//! The real program with real sockets: beside its embedded broker, and beside brokers in processes of their own.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "one binary, several files")]

mod app;
mod brokers;
mod commands;
mod cuts;
mod cutter;
mod faults;
mod log;
mod messages;
mod node;
mod outage;
mod pki;
mod process;
mod proxy;
mod restart;
mod sensor;
mod tls;
mod tool;
