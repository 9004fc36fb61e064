//! The `mqtt-sn-gateway` program.

fn main() {}
