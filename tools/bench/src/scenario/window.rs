//! A broker that is far away.

use std::time::Duration;

use mqtt_sn_gateway::wire::Qos;

use super::closed::one_by_one;
use super::{Bench, WHOLE};
use crate::delay;
use crate::failure::Failure;
use crate::figures::{Bar, Row};
use crate::lone::Spoken;
use crate::rig::{self, Broker, Kind, Mode, Subject};

/// Sensors with one message each on its way.
const SENSORS: usize = 1_000;

/// To the broker and back.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// Of the messages that so many sensors could send over such a way if nothing but the way held them up.
const BAR: f64 = 0.8;

/// QoS 1 and 2 over a way of 100 ms.
pub(super) fn far(bench: &mut Bench) -> Result<(), Failure> {
    let mut ways = vec![];
    if rig::has_mosquitto() {
        ways.push((Broker::start(Kind::Mosquitto)?, "mosquitto", true));
        // In MQTT 5 it says that it takes 20 at a time (max_inflight_messages), and is obeyed.
        ways.push((Broker::start_with(Kind::Mosquitto, "")?, "mosquitto as it comes", false));
    }
    ways.push((Broker::start(Kind::Sink)?, "sink", true));
    for (broker, name, is_held) in ways {
        let addr = delay::relay(broker.addr, ROUND_TRIP / 2)?;
        for (qos, round_trips) in [(Qos::AtLeastOnce, 1.0), (Qos::ExactlyOnce, 2.0)] {
            let gateway = Subject::gateway(bench.program(), addr, Mode::Aggregating)?;
            let used = gateway.process.usage()?;
            let Spoken { latency, all } = one_by_one(gateway.addr, SENSORS, qos)?;
            let used = gateway.process.usage()?.since(used);
            let rate = latency.len() as f64 / WHOLE.time.as_secs_f64();
            let most = SENSORS as f64 / (ROUND_TRIP.as_secs_f64() * round_trips);
            let mut row = Row::new("far", format!("QoS {qos}, {SENSORS} sensors, {name} 100 ms away"));
            row.messages_per_s = Some(rate);
            row.latency_us = latency.latency();
            row.cpu_us_per_message = Some(used.cpu.as_secs_f64() * 1e6 / all as f64);
            row.memory_octets = Some(gateway.process.memory()?);
            let what = "of what the way allows";
            if qos == Qos::AtLeastOnce && is_held {
                row.hold(what, rate / most, Bar::AtLeast(BAR));
            } else {
                // A broker of MQTT 3.1.1, as the sink is, cannot say how many of QoS 2 it takes.
                row.tell(what, rate / most);
            }
            bench.add(row);
        }
    }
    Ok(())
}
