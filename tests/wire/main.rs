//! The codec of MQTT-SN against the specification, against itself and against somebody else's dissector.
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking, and so do its helpers")]

mod conformance;
mod dump;
mod frames;
#[path = "../../tools/fuzz/src/wire.rs"]
mod fuzz;
mod oracle;
mod props;
mod vectors;
