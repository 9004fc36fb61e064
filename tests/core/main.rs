//! Conversations with the core on a virtual clock: what arrives, what must leave, and the next deadline.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "one binary, several files")]

mod connect;
mod corners;
mod downlink;
mod durable;
mod forget;
mod idle;
mod interrupted;
mod limits;
mod link;
mod log;
mod mqtt5;
mod outage;
mod overlap;
mod quirks;
mod radio;
mod relink;
mod restart;
mod sleep;
mod states;
mod talk;
mod transparent;
mod uplink;
mod world;
