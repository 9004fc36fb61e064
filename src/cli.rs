//! The command line of `mqtt-sn-gateway`.
