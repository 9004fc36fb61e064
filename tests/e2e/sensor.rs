//! A sensor of the test's own: a node on a real UDP socket.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use mqtt_sn_gateway::node::{Event, Filter, Message, Node, Options, Outcome, Topic};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::{Qos, ReturnCode};

use crate::process::PATIENCE;

pub struct Sensor {
    pub node: Node,
    pub socket: UdpSocket,
    events: VecDeque<Event>,
}

pub fn options(id: &str) -> Options {
    let mut options = Options::new(ClientId::new(id).unwrap());
    options.retry_interval = Duration::from_secs(1);
    options.retry_limit = 10;
    options
}

pub fn name(text: &str) -> Topic {
    Topic::Name(TopicName::new(text).unwrap())
}

impl Sensor {
    /// A sensor beside the gateway at this port that has said nothing yet.
    pub fn new(port: u16, options: Options) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        Self { node: Node::new(options), socket, events: VecDeque::new() }
    }

    /// A sensor that is connected to the gateway at this port.
    pub fn connected(port: u16, options: Options) -> Self {
        let mut sensor = Self::new(port, options);
        sensor.node.connect(Instant::now());
        sensor.wait_for(|event| matches!(event, Event::Connected).then_some(()));
        sensor
    }

    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, qos: Qos) {
        assert_eq!(self.subscribe_for(filter, qos), Ok(qos));
    }

    /// Subscribes, and says what was granted.
    #[track_caller]
    pub fn subscribe_for(&mut self, filter: &str, qos: Qos) -> Result<Qos, ReturnCode> {
        let filter = Filter::Name(TopicFilter::new(filter).unwrap());
        self.node.subscribe(Instant::now(), filter, qos).unwrap();
        self.wait_for(|event| match event {
            Event::Subscribed { result, .. } => Some(*result),
            _ => None,
        })
    }

    /// Publishes and waits for what becomes of it.
    #[track_caller]
    pub fn publish(&mut self, topic: Topic, payload: &str, qos: Qos, retain: bool) -> Outcome {
        let payload = bytes::Bytes::copy_from_slice(payload.as_bytes());
        let id = self.node.publish(Instant::now(), topic, payload, qos, retain).unwrap();
        self.wait_for(|event| match event {
            Event::Published(done, outcome) if *done == id => Some(*outcome),
            _ => None,
        })
    }

    #[track_caller]
    pub fn message(&mut self) -> Message {
        self.wait_for(|event| match event {
            Event::Message(message) => Some(message.clone()),
            _ => None,
        })
    }

    /// No message comes for a moment.
    #[track_caller]
    pub fn quiet(&mut self) {
        self.live(Duration::from_millis(200));
        let message = self.events.iter().find(|event| matches!(event, Event::Message(_)));
        assert_eq!(message, None);
    }

    /// Messages that came and were not looked at.
    pub fn waiting_messages(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Message(_))).count()
    }

    /// Lives on until an event is `wanted`; the others before it are kept.
    #[track_caller]
    pub fn wait_for<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.events.iter().position(|event| wanted(event).is_some()) {
                return wanted(&self.events.remove(at).unwrap()).unwrap();
            }
            assert!(Instant::now() < end, "waited in vain; kept: {:?}", self.events);
            self.live(Duration::from_millis(20));
        }
    }

    /// Lives on for `time`.
    pub fn live(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut buffer = vec![0; 65_535];
        loop {
            while let Some(frame) = self.node.poll_transmit() {
                let _ = self.socket.send(&frame);
            }
            while let Some(event) = self.node.poll_event() {
                self.events.push_back(event);
            }
            let now = Instant::now();
            if now >= end {
                return;
            }
            let wake = self.node.poll_timeout().map_or(end, |at| at.min(end));
            let wait = wake.saturating_duration_since(now).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(wait)).unwrap();
            match self.socket.recv(&mut buffer) {
                Ok(len) => self.node.handle_frame(Instant::now(), &buffer[..len]),
                Err(_) => self.node.handle_timeout(Instant::now()),
            }
        }
    }
}
