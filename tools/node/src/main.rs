//! The `mqtt-sn-node` program.

fn main() {}
