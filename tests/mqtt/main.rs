//! A connection to a broker against brokers: the embedded one with faults, and mosquitto; over networks that cut; in both
//! versions of MQTT.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

/// Makes tests of functions that take the version of MQTT to speak.
macro_rules! in_both_versions {
    ($($name:ident,)+) => {
        mod in_3_1_1 {
            $(#[test] fn $name() { super::$name(super::Protocol::V4); })+
        }
        mod in_5 {
            $(#[test] fn $name() { super::$name(super::Protocol::V5); })+
        }
    };
}

mod catalogue;
mod crashes;
mod cuts;
mod tcp;
mod translator;
mod world;
