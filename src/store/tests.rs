#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod arbitrary;
mod crash;
mod damage;
mod fault;
mod flow;
mod medium;
mod rows;
mod world;
