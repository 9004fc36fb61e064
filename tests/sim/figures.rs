//! What a run amounts to, as lines that can be compared with those of an earlier one.

use std::collections::BTreeMap;
use std::fmt;

use mqtt_sn_gateway::node::Outcome;

use crate::ledger::{Ledger, Origin};

/// Sums by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Figures(BTreeMap<String, u64>);

impl Figures {
    pub(crate) fn add(&mut self, part: &str, name: &str, value: u64) {
        *self.0.entry(format!("{part}.{name}")).or_default() += value;
    }

    /// What became of the messages.
    pub(crate) fn ledger(&mut self, ledger: &Ledger) {
        for (_, entry) in ledger.iter() {
            match entry.origin {
                Origin::Observer => self.add("messages", "from_observer", 1),
                Origin::Will(_) => {
                    self.add("messages", "wills_due", entry.wills_due.into());
                    self.add("messages", "wills_published", entry.at_broker.into());
                }
                Origin::Sensor { .. } => {
                    let outcome = match entry.outcome {
                        None => "unreported",
                        Some(Outcome::Sent) => "sent",
                        Some(Outcome::Acknowledged) => "acknowledged",
                        Some(Outcome::Uncertain) => "uncertain",
                        Some(Outcome::Refused(_)) => "refused",
                        Some(Outcome::GaveUp) => "gave_up",
                    };
                    self.add("messages", &format!("from_sensors_{:?}_{outcome}", entry.qos), 1);
                    let extra = entry.at_broker.saturating_sub(1);
                    self.add("messages", &format!("from_sensors_{:?}_repeated", entry.qos), extra.into());
                }
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (name, value) in other.0 {
            *self.0.entry(name).or_default() += value;
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name:<55} {value:>10}"))
    }
}
