use std::collections::{BTreeMap, HashMap, VecDeque};

use rumqttc::QoS;

use super::{Message, Origin, Token};

/// Publishes of QoS 1 and 2 that wait for the window.
///
/// QoS 2 has a window of its own. Where that is full QoS 1 goes on, but not what was asked for after QoS 2 of the same origin.
/// Tokens grow, so their order is the order in which everything was asked for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// In order of the tokens, QoS 1 and 2 apart: what the windows alone hold back.
    lanes: [VecDeque<Publish>; 2],
    /// QoS 1, in order of the tokens, by the QoS 2 behind which it waits.
    behind: BTreeMap<Token, Vec<Publish>>,
    /// The last of QoS 2 that waits, by origin.
    twos: HashMap<Origin, Token>,
    len: usize,
}

/// A publish without a packet id.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) token: Token,
    pub(super) origin: Origin,
    pub(super) message: Message,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes a publish that is younger than all that wait.
    pub(super) fn push(&mut self, publish: Publish) {
        self.len += 1;
        match publish.message.qos {
            QoS::ExactlyOnce => {
                self.twos.insert(publish.origin, publish.token);
                self.lanes[1].push_back(publish);
            }
            _ => match self.twos.get(&publish.origin) {
                Some(two) => self.behind.entry(*two).or_default().push(publish),
                None => self.lanes[0].push_back(publish),
            },
        }
    }

    /// The oldest that may leave; `twos` says whether one of QoS 2 may.
    pub(super) fn pop(&mut self, twos: bool) -> Option<Publish> {
        let lane = match [self.lanes[0].front(), self.lanes[1].front().filter(|_| twos)] {
            [Some(one), Some(two)] => usize::from(two.token < one.token),
            [one, two] => one.map(|_| 0).or(two.map(|_| 1))?,
        };
        let publish = self.lanes[lane].pop_front()?;
        self.len -= 1;
        if self.twos.get(&publish.origin) == Some(&publish.token) {
            self.twos.remove(&publish.origin);
        }
        for follower in self.behind.remove(&publish.token).into_iter().flatten() {
            let ones = &mut self.lanes[0];
            let at = ones.partition_point(|one| one.token < follower.token);
            ones.insert(at, follower);
        }
        Some(publish)
    }

    /// Takes everything out, in no order.
    pub(super) fn take(&mut self) -> Vec<Publish> {
        let Self { lanes, behind, .. } = std::mem::take(self);
        lanes.into_iter().flatten().chain(behind.into_values().flatten()).collect()
    }
}
