//! A connection to a broker against brokers: the embedded one with faults, and mosquitto; over networks that cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod catalogue;
mod cuts;
mod tcp;
mod world;
