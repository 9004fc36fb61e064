//! The real program with real sockets: beside its embedded broker, and beside brokers in processes of their own.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "one binary, several files")]

#[path = "../shell/apart.rs"]
#[allow(dead_code, reason = "made for another binary")]
mod apart;
mod app;
mod brokers;
mod commands;
mod cuts;
mod cutter;
mod disk;
mod faults;
mod log;
mod messages;
mod node;
mod outage;
mod pki;
mod process;
mod proxy;
mod radio;
mod restart;
mod sensor;
mod tls;
mod tool;
