//! A gateway between MQTT-SN 1.2 sensors and any MQTT broker.

pub mod broker;
pub mod cli;
pub mod config;
pub mod demo;
pub mod gateway;
pub mod link;
pub mod mqtt;
pub mod node;
pub mod runtime;
pub mod setup;
pub mod topic;
pub mod transport;
pub mod wire;
