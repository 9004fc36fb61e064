//! What is counted.

use std::time::Duration;

use mqtt_sn_gateway::mqtt::QoS;
use mqtt_sn_gateway::wire::{Disconnect, Packet, PingReq, Qos, TopicRef};

use super::world::{KEEP_ALIVE, World, expect};
use crate::failure::Failure;
use crate::rig::Mode;
use crate::sensor::PREDEFINED;

/// Messages that are counted. Few, for valgrind is slow, and all cost the same.
const MESSAGES: u32 = 1000;

/// Sensors that take turns.
const SENSORS: u32 = 100;

/// Datagrams in a batch: those that are there when the shell looks, on a busy gateway.
const BATCH: u32 = 32;

/// Recipients of a message for all.
const RECIPIENTS: u32 = 1000;

/// Messages that wait for a sleeper.
const KEPT: u32 = 10;

/// Between two messages.
const STEP: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    UplinkMinusOne,
    Uplink0,
    Uplink0Batch,
    Uplink1,
    Uplink2,
    Downlink0,
    Downlink1,
    FanOut,
    Keep,
    Wake,
    Connect,
    Ping1000,
    Ping10000,
    Ping100000,
    TransparentUplink0,
    TransparentUplink1,
    TransparentDownlink1,
    TransparentConnect,
}

impl Case {
    pub(crate) const ALL: [Self; 18] = [
        Self::UplinkMinusOne,
        Self::Uplink0,
        Self::Uplink0Batch,
        Self::Uplink1,
        Self::Uplink2,
        Self::Downlink0,
        Self::Downlink1,
        Self::FanOut,
        Self::Keep,
        Self::Wake,
        Self::Connect,
        Self::Ping1000,
        Self::Ping10000,
        Self::Ping100000,
        Self::TransparentUplink0,
        Self::TransparentUplink1,
        Self::TransparentDownlink1,
        Self::TransparentConnect,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UplinkMinusOne => "uplink-minus-1",
            Self::Uplink0 => "uplink-0",
            Self::Uplink0Batch => "uplink-0-batch",
            Self::Uplink1 => "uplink-1",
            Self::Uplink2 => "uplink-2",
            Self::Downlink0 => "downlink-0",
            Self::Downlink1 => "downlink-1",
            Self::FanOut => "fan-out",
            Self::Keep => "keep",
            Self::Wake => "wake",
            Self::Connect => "connect",
            Self::Ping1000 => "ping-1000",
            Self::Ping10000 => "ping-10000",
            Self::Ping100000 => "ping-100000",
            Self::TransparentUplink0 => "transparent-uplink-0",
            Self::TransparentUplink1 => "transparent-uplink-1",
            Self::TransparentDownlink1 => "transparent-downlink-1",
            Self::TransparentConnect => "transparent-connect",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::UplinkMinusOne => "PUBLISH of QoS −1",
            Self::Uplink0 => "PUBLISH of QoS 0, alone",
            Self::Uplink0Batch => "PUBLISH of QoS 0, 32 at once",
            Self::Uplink1 => "PUBLISH of QoS 1 to PUBACK",
            Self::Uplink2 => "PUBLISH of QoS 2 to PUBCOMP",
            Self::Downlink0 => "message of QoS 0 to one client",
            Self::Downlink1 => "message of QoS 1 to one client",
            Self::FanOut => "one of 1,000 copies of a message",
            Self::Keep => "message of QoS 1 kept for a sleeper",
            Self::Wake => "one of 10 messages fetched by a sleeper",
            Self::Connect => "CONNECT and REGISTER of a new client",
            Self::Ping1000 => "PINGREQ and a keep-alive re-armed, 1,000 clients",
            Self::Ping10000 => "the same, 10,000 clients",
            Self::Ping100000 => "the same, 100,000 clients",
            Self::TransparentUplink0 => "PUBLISH of QoS 0 on a link of the client's own",
            Self::TransparentUplink1 => "PUBLISH of QoS 1 on a link of the client's own",
            Self::TransparentDownlink1 => "message of QoS 1 on a link of the client's own",
            Self::TransparentConnect => "CONNECT with a link of the client's own, and REGISTER",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self, Failure> {
        let found = Self::ALL.into_iter().find(|case| case.name() == name);
        found.ok_or_else(|| Failure::NoCase(name.into()))
    }

    /// Clients there are: what takes the most time begins first.
    pub(crate) fn clients(self) -> u32 {
        match self {
            Self::Ping1000 | Self::FanOut => 1000,
            Self::Ping10000 => 10_000,
            Self::Ping100000 => 100_000,
            _ => SENSORS,
        }
    }

    /// Does it; how many messages, deliveries or clients that were.
    pub(crate) fn drive(self) -> Result<u32, Failure> {
        let aggregating = || World::new(Mode::Aggregating);
        let transparent = || World::new(Mode::Transparent);
        match self {
            Self::UplinkMinusOne => uplink(&mut aggregating()?, Qos::MinusOne, 1),
            Self::Uplink0 => uplink(&mut aggregating()?, Qos::AtMostOnce, 1),
            Self::Uplink0Batch => uplink(&mut aggregating()?, Qos::AtMostOnce, BATCH),
            Self::Uplink1 => uplink(&mut aggregating()?, Qos::AtLeastOnce, 1),
            Self::Uplink2 => uplink(&mut aggregating()?, Qos::ExactlyOnce, 1),
            Self::Downlink0 => downlink(&mut aggregating()?, QoS::AtMostOnce),
            Self::Downlink1 => downlink(&mut aggregating()?, QoS::AtLeastOnce),
            Self::FanOut => fan_out(&mut aggregating()?),
            Self::Keep => sleepers(&mut aggregating()?, true),
            Self::Wake => sleepers(&mut aggregating()?, false),
            Self::Connect => connects(&mut aggregating()?),
            Self::Ping1000 | Self::Ping10000 | Self::Ping100000 => pings(&mut aggregating()?, self.clients()),
            Self::TransparentUplink0 => uplink(&mut transparent()?, Qos::AtMostOnce, 1),
            Self::TransparentUplink1 => uplink(&mut transparent()?, Qos::AtLeastOnce, 1),
            Self::TransparentDownlink1 => downlink(&mut transparent()?, QoS::AtLeastOnce),
            Self::TransparentConnect => connects(&mut transparent()?),
        }
    }
}

/// Messages of sensors that take turns, so many at once. A tenth of them goes before and is not counted.
fn uplink(world: &mut World, qos: Qos, batch: u32) -> Result<u32, Failure> {
    let topics = (0..SENSORS).map(|sensor| {
        world.connect(sensor)?;
        match qos {
            Qos::MinusOne => Ok(TopicRef::Predefined(PREDEFINED)),
            _ => world.register(sensor),
        }
    });
    let topics = topics.collect::<Result<Vec<_>, Failure>>()?;
    let (warm, batches) = (MESSAGES / batch / 10, MESSAGES / batch);
    let mut msg_id = 0;
    for number in 0..warm + batches {
        world.counts = number >= warm;
        world.now += STEP;
        for at in 0..batch {
            let sensor = (number * batch + at) % SENSORS;
            msg_id = if matches!(qos, Qos::MinusOne | Qos::AtMostOnce) { 0 } else { msg_id + 1 };
            let topic = topics.get(sensor as usize).copied().unwrap_or(TopicRef::Predefined(PREDEFINED));
            world.publish(sensor, topic, qos, msg_id)?;
        }
        world.live()?;
    }
    let sent = u64::from((warm + batches) * batch);
    expect("messages at the broker", world.published(), sent)?;
    let settled = if matches!(qos, Qos::AtLeastOnce | Qos::ExactlyOnce) { sent } else { 0 };
    expect("messages acknowledged", world.heard.settled, settled)?;
    Ok(batches * batch)
}

/// Messages to sensors that take turns.
fn downlink(world: &mut World, qos: QoS) -> Result<u32, Failure> {
    for sensor in 0..SENSORS {
        world.connect(sensor)?;
        world.subscribe(sensor, &own(sensor), Qos::AtLeastOnce)?;
    }
    let warm = MESSAGES / 10;
    for number in 0..warm + MESSAGES {
        world.counts = number >= warm;
        world.now += STEP;
        world.announce(&own(number % SENSORS), qos)?;
        world.live()?;
    }
    expect("messages delivered", world.heard.messages, u64::from(warm + MESSAGES))?;
    Ok(MESSAGES)
}

/// Messages for all.
fn fan_out(world: &mut World) -> Result<u32, Failure> {
    for sensor in 0..RECIPIENTS {
        world.connect(sensor)?;
        world.subscribe(sensor, "bench/all", Qos::AtMostOnce)?;
    }
    let messages = 5;
    for number in 0..=messages {
        world.counts = number > 0;
        world.now += STEP;
        world.announce("bench/all", QoS::AtMostOnce)?;
        world.live()?;
    }
    expect("messages delivered", world.heard.messages, u64::from((1 + messages) * RECIPIENTS))?;
    Ok(messages * RECIPIENTS)
}

/// Messages for sleepers, and their fetching. Either is counted.
fn sleepers(world: &mut World, keeping: bool) -> Result<u32, Failure> {
    for sensor in 0..SENSORS {
        world.connect(sensor)?;
        world.subscribe(sensor, &own(sensor), Qos::AtLeastOnce)?;
        world.send(sensor, &Packet::Disconnect(Disconnect { duration: Some(3600) }))?;
        world.live()?;
    }
    expect("sleepers", world.heard.goodbyes, u64::from(SENSORS))?;
    for number in 0..SENSORS * KEPT {
        world.counts = keeping;
        world.now += STEP;
        world.announce(&own(number % SENSORS), QoS::AtLeastOnce)?;
        world.live()?;
    }
    expect("messages delivered to sleepers", world.heard.messages, 0)?;
    for sensor in 0..SENSORS {
        world.counts = !keeping;
        world.now += STEP;
        let client_id = format!("sensor-{sensor}");
        world.send(sensor, &Packet::PingReq(PingReq { client_id: client_id.as_bytes() }))?;
        world.live()?;
    }
    expect("messages fetched", world.heard.messages, u64::from(SENSORS * KEPT))?;
    expect("PINGRESP", world.heard.pongs, u64::from(SENSORS))?;
    Ok(SENSORS * KEPT)
}

/// New clients with a topic each.
fn connects(world: &mut World) -> Result<u32, Failure> {
    let clients = MESSAGES / 2;
    for sensor in 0..SENSORS + clients {
        world.counts = sensor >= SENSORS;
        world.now += STEP;
        world.connect(sensor)?;
        world.register(sensor)?;
    }
    Ok(clients)
}

/// Of so many clients, each is heard once in a keep-alive, at a time of its own: with every PINGREQ that comes, the timer of somebody
/// else is due, who has been heard in time, and is set anew.
fn pings(world: &mut World, clients: u32) -> Result<u32, Failure> {
    let (pings, step) = (400, KEEP_ALIVE / clients);
    let ping = Packet::PingReq(PingReq { client_id: &[] });
    for sensor in 0..clients {
        world.connect(sensor)?;
        world.pass(step)?;
    }
    for sensor in 0..=pings {
        world.send(sensor, &ping)?;
        world.live()?;
        world.pass(step)?;
    }
    // With the next step the first of them would be lost, but for its PINGREQ.
    world.pass(KEEP_ALIVE / 2 - (pings + 1) * step)?;
    for number in 0..pings {
        world.counts = true;
        world.now += step;
        world.send(clients / 2 + number, &ping)?;
        world.live()?;
    }
    expect("PINGRESP", world.heard.pongs, u64::from(2 * pings + 1))?;
    expect("clients lost", world.counters().clients_lost, 0)?;
    Ok(pings)
}

fn own(sensor: u32) -> String {
    format!("bench/down/{sensor}")
}
