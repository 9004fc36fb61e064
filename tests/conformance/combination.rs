//! What the rows are run against: the mode of the gateway, the version of MQTT it is told to speak, and the broker.

use std::fmt;

use crate::dialect::Version;
use crate::script::{Ack, BrokerAct, BrokerAtStart, Mode, Row, Step};

/// One way to run the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Combination {
    pub(crate) mode: Mode,
    pub(crate) protocol: Protocol,
    pub(crate) broker: Kind,
}

/// `broker.protocol` of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    V311,
    V5,
    Auto,
}

/// Which broker there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ours, which does what a row says. Where the gateway may choose the version, it knows only MQTT 3.1.1.
    Stub,
    /// A Mosquitto of its own for each row.
    Mosquitto,
    /// The embedded broker, MQTT 3.1.1; a new one for each row.
    Embedded,
}

impl Combination {
    /// By the name of a module of tests.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let words: Vec<_> = name.split('_').collect();
        let (mode, protocol, broker) = match words[..] {
            ["aggregating"] => (Mode::Aggregating, Protocol::V311, Kind::Stub),
            ["transparent"] => (Mode::Transparent, Protocol::V311, Kind::Stub),
            // As the gateway comes.
            ["mosquitto"] => (Mode::Aggregating, Protocol::Auto, Kind::Mosquitto),
            [mode, protocol, broker] => {
                let mode = match mode {
                    "aggregating" => Mode::Aggregating,
                    "transparent" => Mode::Transparent,
                    _ => return None,
                };
                let protocol = match protocol {
                    "v311" => Protocol::V311,
                    "v5" => Protocol::V5,
                    "auto" => Protocol::Auto,
                    _ => return None,
                };
                let broker = match broker {
                    "stub" => Kind::Stub,
                    "mosquitto" => Kind::Mosquitto,
                    "embedded" => Kind::Embedded,
                    _ => return None,
                };
                (mode, protocol, broker)
            }
            _ => return None,
        };
        Some(Self { mode, protocol, broker })
    }

    /// The version of MQTT that comes of it.
    pub(crate) fn version(self) -> Version {
        match (self.protocol, self.broker) {
            (Protocol::V5, _) | (Protocol::Auto, Kind::Mosquitto) => Version::V5,
            (Protocol::V311, _) | (Protocol::Auto, Kind::Stub | Kind::Embedded) => Version::V4,
        }
    }
}

/// As the README names it.
impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Aggregating => "aggregating",
            Mode::Transparent => "transparent",
        };
        let broker = match self.broker {
            Kind::Stub => "stub",
            Kind::Mosquitto => "Mosquitto",
            Kind::Embedded => "embedded",
        };
        write!(f, "{mode} | {} | {broker}", self.protocol.name())
    }
}

impl Protocol {
    /// As it stands in gateway.yaml.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
            Self::Auto => "auto",
        }
    }
}

/// Why a row cannot be run against a broker that does as it pleases.
pub(crate) fn needs_the_stub(row: &Row) -> Option<&'static str> {
    if matches!(row.settings.broker, BrokerAtStart::Refuses(_)) {
        return Some("the broker refuses the connection");
    }
    let mut asked = 0;
    for line in row.given.iter().chain(&row.steps) {
        match &line.step {
            // SUBSCRIBE: its flags are the third octet (§5.4.15).
            Step::Send(send) => asked = send.octets.octet(2).map_or(0, |flags| flags >> 5 & 0b11),
            Step::Broker(BrokerAct::Withholds(..)) => return Some("the broker withholds an answer"),
            Step::Broker(BrokerAct::Answers(_, Ack::Connect, _)) => {
                return Some("the broker refuses the connection");
            }
            Step::Broker(BrokerAct::Answers(_, Ack::Subscribe, 0x80)) => {
                return Some("the broker refuses a subscription");
            }
            Step::Broker(BrokerAct::Answers(_, Ack::Subscribe, code)) if *code != asked => {
                return Some("the broker grants less than was asked for");
            }
            Step::Broker(BrokerAct::Publish(message, _)) if message.retain => {
                return Some("the broker sets the retain flag for an old subscriber");
            }
            _ => {}
        }
    }
    None
}
