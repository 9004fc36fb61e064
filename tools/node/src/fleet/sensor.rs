//! One simulated sensor as a value: a [`Node`], the radio around it, and the rhythm of its messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::node::{
    Backoff, Counters, Event, Filter, Message, Node, Options, Outcome, PublishId, Topic,
};
use mqtt_sn_gateway::topic::{ClientId, NameError, TopicFilter, TopicName};

use super::Plan;
use super::air::Air;
use super::ledger::payload;

/// Messages of a sensor that wait for a gateway that does not answer; further ones are counted as not sent.
const QUEUE_MAX: usize = 1000;

/// What a sensor tells the ledger.
#[derive(Debug)]
pub(super) enum Note {
    /// A message was handed to the node.
    Sent { node: u32, sequence: u32, at: Instant },
    /// A message found [`QUEUE_MAX`] others waiting.
    Shed,
    /// A message is settled.
    Settled { node: u32, sequence: u32, outcome: Outcome, at: Instant },
    /// The gateway refused a message at QoS 0, and nobody knows which.
    Refused,
    /// The sensor fell asleep.
    Asleep,
    /// CONNACK accepted the sensor.
    Connected,
    /// SUBACK refused its subscription.
    SubscribeRefused,
    /// CONNACK refused it.
    ConnectRefused,
    /// The connection is lost.
    ConnectionLost,
    /// The session began anew without the sensor's doing.
    Restarted,
    /// The gateway holds its subscription.
    Hears { node: u32 },
    /// It begins a clean session anew, and with it its subscription.
    Forgets { node: u32 },
    /// A message came; `fetched`: by a sleeper that woke for it.
    Got { node: u32, message: Message, fetched: bool, at: Instant },
    /// The sensor is done.
    Done { counters: Counters, lost: u64, unreachable: u64 },
}

#[derive(Debug)]
pub(super) struct Sensor {
    plan: Arc<Plan>,
    number: u32,
    run: u32,
    topic: TopicName,
    node: Node,
    /// What it tells the gateway when it falls asleep, if it is one that sleeps.
    sleep: Option<Duration>,
    up: Air,
    down: Air,
    stage: Stage,
    /// Whether the gateway holds its subscription, and shall.
    hears: bool,
    /// Its subscription was refused; it asks again with its next message.
    resubscribe: bool,
    /// Nothing more is owed to it.
    may_leave: bool,
    next_publish: Instant,
    end: Instant,
    sequence: u32,
    open: BTreeMap<PublishId, u32>,
    notes: VecDeque<Note>,
    unreachable: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It connects at this time.
    Off(Instant),
    /// It publishes until the end, and then waits for what is open.
    On,
    /// It has said DISCONNECT.
    Leaving,
    Done,
}

impl Sensor {
    pub(super) fn new(number: u32, run: u32, start: Instant, plan: Arc<Plan>) -> Result<Self, NameError> {
        let seed = plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(number));
        let mut random = fastrand::Rng::with_seed(seed);
        let on = start + plan.spread.mul_f64(f64::from(number) / f64::from(plan.nodes));
        let sleeps = (f64::from(number) + 0.5) / f64::from(plan.nodes) < plan.sleepers;
        let options = Options {
            keep_alive: plan.keep_alive,
            wake_every: (!plan.keep_alive.is_zero()).then_some(plan.keep_alive),
            clean_session: plan.clean_session,
            retry_interval: plan.retry,
            retry_limit: plan.retry_limit,
            reconnect: Some(Backoff { min: Duration::from_secs(1), max: Duration::from_secs(30) }),
            queue_max: QUEUE_MAX,
            seed: random.u64(..),
            ..Options::new(ClientId::new(format!("fleet-{run:08x}-{number}"))?)
        };
        Ok(Self {
            topic: plan.template.topic(number)?,
            node: Node::new(options),
            // A PINGREQ may have to be repeated.
            sleep: sleeps.then(|| {
                plan.keep_alive.saturating_add(plan.retry.saturating_mul(plan.retry_limit.saturating_add(1)))
            }),
            up: Air::new(plan.weather, random.u64(..)),
            down: Air::new(plan.weather, random.u64(..)),
            stage: Stage::Off(on),
            hears: false,
            resubscribe: false,
            may_leave: plan.down.is_none(),
            next_publish: on + plan.period.mul_f64(random.f64()),
            end: start + plan.duration,
            number,
            run,
            plan,
            sequence: 0,
            open: BTreeMap::new(),
            notes: VecDeque::new(),
            unreachable: 0,
        })
    }

    /// A datagram has reached the sensor's antenna.
    pub(super) fn handle_datagram(&mut self, now: Instant, frame: Bytes) {
        self.down.offer(now, frame);
    }

    /// Does what is due at `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Stage::Off(at) = self.stage
            && at <= now
        {
            self.stage = Stage::On;
            self.node.connect(now);
            self.subscribe(now);
        }
        // Open loop: a message is due when it is due, whatever became of the one before.
        while self.stage == Stage::On && self.next_publish <= now && self.next_publish < self.end {
            self.publish(now);
            self.next_publish += self.plan.period;
        }
        while let Some(frame) = self.down.poll(now) {
            self.node.handle_frame(now, &frame);
        }
        self.node.handle_timeout(now);
        self.listen(now);
        self.attend();
        self.leave(now);
        self.nap(now);
        while let Some(frame) = self.node.poll_transmit() {
            self.up.offer(now, frame);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = match self.stage {
            Stage::Off(at) => Some(at),
            Stage::On if self.next_publish < self.end => Some(self.next_publish),
            Stage::On if self.node.pending() == 0 && self.may_leave => Some(self.end),
            Stage::On => Some(self.end + self.plan.settle),
            Stage::Leaving | Stage::Done => None,
        };
        let others = [self.node.poll_timeout(), self.up.poll_timeout(), self.down.poll_timeout()];
        others.into_iter().chain([next]).flatten().min()
    }

    /// The next datagram for the socket.
    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.up.poll(Instant::now())
    }

    pub(super) fn poll_note(&mut self) -> Option<Note> {
        self.notes.pop_front()
    }

    /// The host says that nobody listens there.
    pub(super) fn unreachable(&mut self) {
        self.unreachable += 1;
    }

    /// Publishes no more.
    pub(super) fn stop(&mut self, now: Instant) {
        self.end = self.end.min(now);
    }

    /// Leaves as soon as its own messages are settled.
    pub(super) fn release(&mut self) {
        self.may_leave = true;
    }

    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The last note.
    pub(super) fn done(&self) -> Note {
        let lost = self.up.lost + self.down.lost;
        Note::Done { counters: self.node.counters(), lost, unreachable: self.unreachable }
    }

    fn publish(&mut self, now: Instant) {
        if std::mem::take(&mut self.resubscribe) {
            self.subscribe(now);
        }
        let payload = payload(self.run, self.number, self.sequence, self.plan.payload_size);
        let topic = Topic::Name(self.topic.clone());
        match self.node.publish(now, topic, payload, self.plan.qos, false) {
            Ok(id) => {
                let (node, sequence) = (self.number, self.sequence);
                self.notes.push_back(Note::Sent { node, sequence, at: now });
                self.open.insert(id, sequence);
                self.sequence += 1;
            }
            Err(_) => self.notes.push_back(Note::Shed),
        }
    }

    fn subscribe(&mut self, now: Instant) {
        // A topic that is too long for SUBSCRIBE is too long for REGISTER too, and nothing was published either.
        if self.plan.down.is_some()
            && let Ok(filter) =
                self.plan.template.down(self.number).and_then(|t| TopicFilter::new(t.to_string()))
        {
            let _ = self.node.subscribe(now, Filter::Name(filter), self.plan.qos);
        }
    }

    /// Notes when the subscription is in force.
    fn attend(&mut self) {
        if self.plan.down.is_some() && !self.hears && !self.resubscribe && self.node.is_subscribed() {
            self.hears = true;
            self.notes.push_back(Note::Hears { node: self.number });
        }
    }

    /// A clean session begins anew, now or with the next connection.
    fn forget(&mut self) {
        if self.plan.clean_session && std::mem::take(&mut self.hears) {
            self.notes.push_back(Note::Forgets { node: self.number });
        }
    }

    fn listen(&mut self, now: Instant) {
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Published(id, outcome) => {
                    if let Some(sequence) = self.open.remove(&id) {
                        self.notes.push_back(Note::Settled { node: self.number, sequence, outcome, at: now });
                    }
                }
                Event::Refused(_) => self.notes.push_back(Note::Refused),
                Event::Asleep => self.notes.push_back(Note::Asleep),
                Event::Connected => self.notes.push_back(Note::Connected),
                Event::ConnectRefused(_) => self.notes.push_back(Note::ConnectRefused),
                Event::ConnectionLost(_) => {
                    self.notes.push_back(Note::ConnectionLost);
                    self.forget();
                }
                Event::Restarted => {
                    self.notes.push_back(Note::Restarted);
                    self.forget();
                }
                Event::Subscribed { result: Err(_), .. } => {
                    self.notes.push_back(Note::SubscribeRefused);
                    self.resubscribe = true;
                    self.forget();
                }
                Event::Message(message) => {
                    let (node, fetched) = (self.number, self.node.is_asleep());
                    self.notes.push_back(Note::Got { node, message, fetched, at: now });
                }
                Event::Disconnected => self.stage = Stage::Done,
                _ => {}
            }
        }
    }

    /// Sleeps while there is nothing to do, and connects when there is.
    fn nap(&mut self, now: Instant) {
        let Some(sleep) = self.sleep else { return };
        if self.stage == Stage::On && self.node.is_idle() {
            self.node.sleep(now, sleep);
        } else if self.node.is_asleep() && self.node.pending() > 0 {
            self.forget();
            self.node.connect(now);
        }
    }

    fn leave(&mut self, now: Instant) {
        let settled = self.node.pending() == 0 && self.may_leave;
        let over = now >= self.end && (settled || now >= self.end + self.plan.settle);
        if over && matches!(self.stage, Stage::On | Stage::Off(_)) {
            self.stage = Stage::Leaving;
            self.node.disconnect(now);
            self.listen(now);
        }
    }
}
