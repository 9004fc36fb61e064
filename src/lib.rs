//! A gateway between MQTT-SN 1.2 sensors and any MQTT broker. This page is its architecture.
//!
//! MQTT-SN is *MQTT For Sensor Networks, Protocol Specification, Version 1.2* of 14 November 2013; `§6.14` in these pages
//! is a section of it, other documents are named in full (`MQTT 3.1.1 §4.7`).
//!
//! # Octets, then values, then states, then sockets
//!
//! A deterministic core is fed with values; thin tokio shells stand around it. Every module uses only modules above it in
//! this list, which a test enforces:
//!
//! | module | what it is |
//! |---|---|
//! | [`topic`] | topics, filters and client ids that were checked once |
//! | [`wire`] | octets to MQTT-SN packets and back; no state |
//! | [`mqtt`] | one connection to a broker as a value |
//! | [`gateway`] | the core: every client, every rule; its whole boundary is [`gateway::io`] |
//! | [`node`] | an MQTT-SN client as a value: the other end of the wire |
//! | [`deadline`] | when a loop goes on though nothing has happened |
//! | [`broker`] | a small MQTT 3.1.1 broker as a value, and its TCP shell |
//! | [`framing`] | frames in the octets of a serial line, and those of an XBee |
//! | [`devices`] | serial devices as the system shows them: which there are, who may use them, who does |
//! | [`transport`] | ports: datagrams and frames between sockets or serial devices and the core |
//! | [`link`] | TCP and TLS to brokers |
//! | [`store`] | what outlives the process, in a file |
//! | [`admin`] | how an operator asks the running gateway: the control socket |
//! | [`runtime`] | the loop around the core |
//! | [`config`], [`setup`] | gateway.yaml, and what it means to the parts |
//! | [`demo`], [`cli`] | what a user starts |
//!
//! # The contract of the values
//!
//! [`gateway::Gateway`], [`mqtt::Connection`], [`node::Node`] and [`broker::Broker`] have the same shape: `handle…` takes in what
//! happened and the time, `poll_…` gives out what is to be done until `None`, `poll_timeout` says when to come back if
//! nothing happens. They read no clock, open no socket, spawn nothing, lock nothing, and do the same for the same inputs;
//! so a test is a conversation on a virtual clock, and a whole world fits into the simulator.
//!
//! # A message's way
//!
//! Up: a datagram is received by [`transport`], waits in a bounded inbox, and is handed to the core by [`runtime`], together
//! with whatever else has come. The core decodes it, finds the client by its peer, looks the topic up and hands the message to
//! the [`mqtt::Connection`] of the link, which chooses a packet id. When the inbox is empty, everything that is ready for
//! the broker leaves in one write. The broker's PUBACK takes the same way back and becomes the client's PUBACK:
//! responsibility moves with the acknowledgement.
//!
//! Down: octets from the broker become a message, the link finds its recipients, and each of them gets it through its own bounded
//! queue, one exchange at a time, after a REGISTER if it does not know the topic id. The broker gets its acknowledgement when the
//! last recipient has settled the message.
//!
//! # What is deliberately absent
//!
//! Locks, async code and traits in the core; queues without a bound; waits without a deadline; a panic that input could
//! reach; unsafe code. What is shed is counted by name ([`gateway::Counters`]).
//!
#![doc = include_str!("doc/interpretations.md")]
#![doc = ""]
#![doc = include_str!("doc/tried.md")]

pub mod admin;
pub mod broker;
pub mod cli;
pub mod config;
pub mod deadline;
pub mod demo;
pub mod devices;
pub mod framing;
pub mod gateway;
pub mod link;
pub mod mqtt;
pub mod node;
pub mod runtime;
pub mod setup;
pub mod store;
pub mod topic;
pub mod transport;
pub mod wire;
