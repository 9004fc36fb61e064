//! A connection to a broker against brokers: the embedded one with faults, and mosquitto; over networks that cut.

mod catalogue;
mod cuts;
mod tcp;
mod world;
