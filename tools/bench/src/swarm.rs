//! Sensors that do the whole protocol: a [`Node`] and a socket each, on one thread.

use std::error::Error;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use mqtt_sn_gateway::node::{Event, Filter, Node, Options, Topic};
use mqtt_sn_gateway::topic::{ClientId, TopicFilter, TopicName};
use mqtt_sn_gateway::wire::Qos;

use crate::failure::{Attempt, Failure};
use crate::stamp;

/// Sockets that are ready, taken at once.
const EVENTS_MAX: usize = 1024;

/// How often the nodes' deadlines are looked at. They are far away, if everything goes well.
const SWEEP: Duration = Duration::from_millis(500);

/// How long anything may take that all of them do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Octets of the longest datagram.
const DATAGRAM_MAX: usize = 1500;

/// Sensors that share an address: fewer than the ports it has.
const SENSORS_PER_ADDRESS: usize = 10_000;

pub(crate) struct Swarm {
    poll: Poll,
    events: Events,
    sensors: Vec<Sensor>,
    /// The number of the first.
    first: usize,
    swept: Instant,
}

pub(crate) struct Sensor {
    pub(crate) node: Node,
    socket: UdpSocket,
}

impl Swarm {
    /// Sensors with these numbers, each on a socket of its own; none is connected yet.
    pub(crate) fn new(
        gateway: SocketAddr,
        numbers: Range<usize>,
        change: impl Fn(&mut Options),
    ) -> Result<Self, Failure> {
        let poll = Poll::new().attempt("wait for sockets")?;
        let (mut sensors, first) = (Vec::new(), numbers.start);
        for (index, number) in numbers.enumerate() {
            let id = ClientId::new(format!("node-{number}"));
            let id = id.map_err(|error| Failure::Gateway(error.to_string()))?;
            let mut options = Options::new(id);
            options.keep_alive = Duration::from_secs(3600);
            options.queue_max = 1 << 16;
            change(&mut options);
            let mut socket = open(gateway, number)?;
            poll.registry()
                .register(&mut socket, Token(index), Interest::READABLE)
                .attempt("wait for a socket")?;
            sensors.push(Sensor { node: Node::new(options), socket });
        }
        Ok(Self { poll, events: Events::with_capacity(EVENTS_MAX), sensors, first, swept: Instant::now() })
    }

    pub(crate) fn len(&self) -> usize {
        self.sensors.len()
    }

    /// Lets every sensor do something, and sends what comes of it.
    pub(crate) fn each(
        &mut self,
        mut act: impl FnMut(usize, &mut Node, Instant) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for (index, sensor) in self.sensors.iter_mut().enumerate() {
            act(index, &mut sensor.node, Instant::now())?;
            sensor.flush()?;
        }
        Ok(())
    }

    /// Lets one sensor do something, and sends what comes of it.
    pub(crate) fn one(&mut self, index: usize, act: impl FnOnce(&mut Node, Instant)) -> Result<(), Failure> {
        let Some(sensor) = self.sensors.get_mut(index) else { return Ok(()) };
        act(&mut sensor.node, Instant::now());
        sensor.flush()
    }

    /// Waits at most `within` for datagrams, takes all that have come, and hands on what has happened; what `hear` has a node
    /// do is sent at once.
    pub(crate) fn live(
        &mut self,
        within: Duration,
        mut hear: impl FnMut(usize, &mut Node, Event),
    ) -> Result<(), Failure> {
        match self.poll.poll(&mut self.events, Some(within)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => {
                return Err(error).attempt("wait for sockets");
            }
            _ => {}
        }
        for event in &self.events {
            let Token(index) = event.token();
            let Some(sensor) = self.sensors.get_mut(index) else { continue };
            sensor.receive()?;
            sensor.tell(index, &mut hear)?;
        }
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            for (index, sensor) in self.sensors.iter_mut().enumerate() {
                if sensor.node.poll_timeout().is_some_and(|at| at <= self.swept) {
                    sensor.node.handle_timeout(self.swept);
                    sensor.tell(index, &mut hear)?;
                }
            }
        }
        Ok(())
    }

    /// Lives until what `progress` makes of all that happens adds up to `goal`; how long that took.
    pub(crate) fn until(
        &mut self,
        what: &str,
        goal: usize,
        mut progress: impl FnMut(usize, &mut Node, Event) -> usize,
    ) -> Result<Duration, Failure> {
        let start = Instant::now();
        let mut done = 0;
        while done < goal {
            if start.elapsed() > PATIENCE {
                let what = format!("{what} ({done} of {goal} did)");
                return Err(Failure::Late { what, seconds: PATIENCE.as_secs() });
            }
            self.live(Duration::from_millis(10), |index, node, event| done += progress(index, node, event))?;
        }
        Ok(start.elapsed())
    }

    /// Connects all of them.
    pub(crate) fn connect(&mut self) -> Result<(), Failure> {
        self.each(|_, node, now| {
            node.connect(now);
            Ok(())
        })?;
        self.until("connecting", self.len(), |_, _, event| usize::from(event == Event::Connected)).map(drop)
    }

    /// Subscribes each to the topic that `name` makes of its number.
    pub(crate) fn subscribe(&mut self, qos: Qos, name: impl Fn(usize) -> String) -> Result<(), Failure> {
        let first = self.first;
        let wrong = |error: &dyn Error| Failure::Gateway(error.to_string());
        self.each(|index, node, now| {
            let filter = TopicFilter::new(name(first + index)).map_err(|error| wrong(&error))?;
            node.subscribe(now, Filter::Name(filter), qos).map_err(|error| wrong(&error))
        })?;
        let granted =
            |_, _: &mut Node, event| usize::from(matches!(event, Event::Subscribed { result: Ok(_), .. }));
        self.until("subscribing", self.len(), granted).map(drop)
    }

    /// Has each publish with QoS 0 on the topic that `name` makes of its number, which it registers; later a
    /// [`Event::Published`] of each.
    pub(crate) fn publish(&mut self, name: impl Fn(usize) -> String) -> Result<(), Failure> {
        let first = self.first;
        let wrong = |error: &dyn Error| Failure::Gateway(error.to_string());
        self.each(|index, node, now| {
            let topic = Topic::Name(TopicName::new(name(first + index)).map_err(|error| wrong(&error))?);
            let published = node.publish(now, topic, stamp::bytes(), Qos::AtMostOnce, false);
            published.map(drop).map_err(|error| wrong(&error))
        })
    }

    /// Lets all fall asleep for so long.
    pub(crate) fn sleep(&mut self, time: Duration) -> Result<(), Failure> {
        self.each(|_, node, now| {
            node.sleep(now, time);
            Ok(())
        })?;
        self.until("falling asleep", self.len(), |_, _, event| usize::from(event == Event::Asleep)).map(drop)
    }

    /// What all nodes have repeated for want of an answer.
    pub(crate) fn retransmissions(&self) -> u64 {
        self.sensors.iter().map(|sensor| sensor.node.counters().retransmissions).sum()
    }
}

impl Sensor {
    fn receive(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; DATAGRAM_MAX];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) => {
                    self.node.handle_frame(Instant::now(), buffer.get(..len).unwrap_or_default());
                    self.flush()?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).attempt("receive a datagram"),
            }
        }
    }

    fn tell(&mut self, index: usize, hear: &mut impl FnMut(usize, &mut Node, Event)) -> Result<(), Failure> {
        while let Some(event) = self.node.poll_event() {
            hear(index, &mut self.node, event);
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Failure> {
        while let Some(frame) = self.node.poll_transmit() {
            match self.socket.send(&frame) {
                Ok(_) => {}
                // Lost like on a radio, and repeated.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).attempt("send a datagram"),
            }
        }
        Ok(())
    }
}

/// A socket on one of the addresses of this machine: a single one has not ports enough for 100,000 sensors.
fn open(gateway: SocketAddr, number: usize) -> Result<UdpSocket, Failure> {
    let block = u8::try_from(number / SENSORS_PER_ADDRESS).unwrap_or(u8::MAX);
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, block, 1)), 0);
    let socket = UdpSocket::bind(own).attempt(format!("open a UDP socket on {own}"))?;
    socket.connect(gateway).attempt("connect a UDP socket")?;
    Ok(socket)
}
