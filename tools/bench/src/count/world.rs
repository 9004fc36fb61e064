//! The core between sensors and a broker, all of them values: no sockets, no store, a clock that stands still unless it is moved.
//!
//! Only what the core does is counted, see [`counted`]: neither the sensors nor the broker.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::broker::{Broker, ConnectionId, Input as BrokerInput, Limits, Output as BrokerOutput};
use mqtt_sn_gateway::config::Config;
use mqtt_sn_gateway::gateway::io::{
    Address, Input, LinkCommand, LinkEvent, LinkId, Output, Peer, PortId, Route, Settings, Target,
};
use mqtt_sn_gateway::gateway::{Counters, Gateway, record::Outcome};
use mqtt_sn_gateway::mqtt::{Connection, Message, Options, QoS, Session};
use mqtt_sn_gateway::runtime::Setup;
use mqtt_sn_gateway::topic::TopicName;
use mqtt_sn_gateway::wire::{
    Connect, FilterRef, MsgIdOnly, Packet, Qos, Register, ReturnCode, Subscribe, TopicAck, TopicRef, decode,
};

use crate::failure::Failure;
use crate::rig::Mode;

/// The application's connection at the broker. Those of the gateway have small numbers.
const APP: ConnectionId = ConnectionId(u64::MAX);

/// Turns after which a gateway that has still something to do never comes to rest.
const TURNS_MAX: usize = 10_000;

/// Keep-alive of every sensor.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Octets of every message: a small reading.
const PAYLOAD: &[u8] = b"{\"t\":21.4,\"h\":47,\"b\":3.01}";

/// A gateway as it is configured if nothing is said, but for its broker, with which it speaks MQTT 3.1.1.
pub(super) struct World {
    pub(super) now: Instant,
    /// Whether turns of the core count.
    pub(super) counts: bool,
    gateway: Gateway,
    broker: Broker,
    app: Connection,
    /// What the core is told in its next turn.
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    /// Frames for sensors.
    frames: Vec<(SocketAddr, Bytes)>,
    /// Into which sensors write; each frame has memory of its own, as transports have it.
    scratch: BytesMut,
    pub(super) heard: Heard,
}

/// What sensors have heard.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) connacks: u64,
    /// Of the last topic that was registered or subscribed to.
    topic_id: Option<u16>,
    /// PUBLISH.
    pub(super) messages: u64,
    /// PUBACK and PUBCOMP.
    pub(super) settled: u64,
    pub(super) pongs: u64,
    /// DISCONNECT.
    pub(super) goodbyes: u64,
}

/// One turn of the shell's loop around the core: what has come goes in, what must leave comes out.
#[inline(never)]
fn turn(gateway: &mut Gateway, now: Instant, inputs: &mut Vec<Input>, outputs: &mut Vec<Output>) {
    for input in inputs.drain(..) {
        gateway.handle(now, input);
    }
    if gateway.poll_timeout().is_some_and(|at| at <= now) {
        gateway.handle_timeout(now);
    }
    while let Some(output) = gateway.poll_output() {
        outputs.push(output);
    }
    black_box(gateway.poll_timeout());
}

/// The same, under the name by which valgrind knows what to count ([`COUNTED`](super::COUNTED)).
#[inline(never)]
fn counted(gateway: &mut Gateway, now: Instant, inputs: &mut Vec<Input>, outputs: &mut Vec<Output>) {
    turn(gateway, now, inputs, outputs);
    // Not the last thing that is done, or the call would become a jump, and its end be missed.
    black_box(&outputs);
}

impl World {
    /// A gateway that the broker has accepted, and an application at that broker.
    pub(super) fn new(mode: Mode) -> Result<Self, Failure> {
        let now = Instant::now();
        let mut options = Options::new("app");
        (options.session, options.keep_alive) = (Session::Clean, Duration::ZERO);
        let many = 1 << 20;
        let limits = Limits {
            connections: many,
            sessions: many,
            subscriptions: many,
            window: 1000,
            connect_timeout: Duration::from_secs(3600),
            ..Limits::default()
        };
        let mut world = Self {
            now,
            counts: false,
            gateway: Gateway::restore(settings(mode)?, [], now),
            broker: Broker::new(limits),
            app: Connection::new(options),
            inputs: Vec::new(),
            outputs: Vec::new(),
            frames: Vec::new(),
            scratch: BytesMut::new(),
            heard: Heard::default(),
        };
        world.broker.handle(now, BrokerInput::Opened(APP));
        world.app.handle_connected(now).map_err(|error| Failure::Broker(error.to_string()))?;
        world.serve()?;
        world.turn()?;
        world.live()?;
        let is_ready = world.gateway.is_connected() && world.app.is_connected();
        if is_ready { Ok(world) } else { Err(Failure::Broker("accepts nobody".into())) }
    }

    pub(super) fn counters(&self) -> &Counters {
        self.gateway.counters()
    }

    /// Messages that have come to the broker.
    pub(super) fn published(&self) -> u64 {
        self.broker.counters().published
    }

    /// Lets time pass in which nobody says anything.
    pub(super) fn pass(&mut self, time: Duration) -> Result<(), Failure> {
        self.now += time;
        self.turn()?;
        self.live()
    }

    /// Hands the core a frame of this sensor with its next turn.
    pub(super) fn send(&mut self, sensor: u32, packet: &Packet<'_>) -> Result<(), Failure> {
        self.send_from(addr(sensor), packet)
    }

    /// Connects a sensor, whose session ends with its connection.
    pub(super) fn connect(&mut self, sensor: u32) -> Result<(), Failure> {
        let (client_id, before) = (format!("sensor-{sensor}"), self.heard.connacks);
        let connect = Connect {
            will: false,
            clean_session: true,
            protocol_id: Connect::PROTOCOL_ID,
            duration: u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX),
            client_id: client_id.as_bytes(),
        };
        self.send(sensor, &Packet::Connect(connect))?;
        self.live()?;
        expect("CONNACK", self.heard.connacks, before + 1)
    }

    /// Registers the topic on which this sensor publishes; its id.
    pub(super) fn register(&mut self, sensor: u32) -> Result<TopicRef, Failure> {
        let name = format!("bench/up/{sensor}");
        let register = Register { topic_id: 0, msg_id: 1, topic_name: name.as_bytes() };
        self.send(sensor, &Packet::Register(register))?;
        self.topic("REGACK")
    }

    /// Subscribes a sensor.
    pub(super) fn subscribe(&mut self, sensor: u32, filter: &str, qos: Qos) -> Result<(), Failure> {
        let topic = FilterRef::Name(filter.as_bytes());
        self.send(sensor, &Packet::Subscribe(Subscribe { dup: false, qos, msg_id: 2, topic }))?;
        self.topic("SUBACK").map(drop)
    }

    fn topic(&mut self, what: &str) -> Result<TopicRef, Failure> {
        self.heard.topic_id = None;
        self.live()?;
        self.heard.topic_id.map(TopicRef::Normal).ok_or_else(|| Failure::Gateway(format!("no {what} came")))
    }

    /// A message of a sensor.
    pub(super) fn publish(
        &mut self,
        sensor: u32,
        topic: TopicRef,
        qos: Qos,
        msg_id: u16,
    ) -> Result<(), Failure> {
        let publish =
            mqtt_sn_gateway::wire::Publish { dup: false, qos, retain: false, topic, msg_id, data: PAYLOAD };
        self.send(sensor, &Packet::Publish(publish))
    }

    /// A message of the application, which the broker brings the gateway with its next turn.
    pub(super) fn announce(&mut self, topic: &str, qos: QoS) -> Result<(), Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Broker(error.to_string());
        let topic = TopicName::new(topic).map_err(|error| wrong(&error))?;
        let message = Message { topic, payload: Bytes::from_static(PAYLOAD), qos, retain: false };
        self.app.publish(message).map_err(|error| wrong(&error))?;
        self.serve()
    }

    /// Lets everybody answer until nobody has anything to say.
    pub(super) fn live(&mut self) -> Result<(), Failure> {
        for _ in 0..TURNS_MAX {
            if self.inputs.is_empty() {
                return Ok(());
            }
            self.turn()?;
            for (to, frame) in std::mem::take(&mut self.frames) {
                self.hear(to, &frame)?;
            }
        }
        Err(Failure::Gateway("does not come to rest".into()))
    }

    fn turn(&mut self) -> Result<(), Failure> {
        let turn = if self.counts { counted } else { turn };
        turn(&mut self.gateway, self.now, &mut self.inputs, &mut self.outputs);
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send { to: Target::Unicast { addr: Address::Udp(addr), .. }, frame } => {
                    self.frames.push((addr, frame));
                }
                Output::Send { .. } | Output::Answer(..) | Output::Stopped => {}
                Output::Store { lsn, .. } => self.inputs.push(Input::Stored(lsn, Outcome::Durable)),
                Output::Link(id, command) => self.obey(id, command),
            }
        }
        self.outputs = outputs;
        self.serve()
    }

    /// What the shell does with a connection to the broker.
    fn obey(&mut self, id: LinkId, command: LinkCommand) {
        let LinkId(number) = id;
        match command {
            LinkCommand::Connect { .. } => {
                self.broker.handle(self.now, BrokerInput::Opened(ConnectionId(number)));
                self.inputs.push(Input::Link(id, LinkEvent::Connected));
            }
            LinkCommand::Write(octets) => {
                self.broker.handle(self.now, BrokerInput::Bytes(ConnectionId(number), octets));
                self.inputs.push(Input::Link(id, LinkEvent::Drained));
            }
            LinkCommand::Close => self.broker.handle(self.now, BrokerInput::Closed(ConnectionId(number))),
        }
    }

    /// What broker and application have to say.
    fn serve(&mut self) -> Result<(), Failure> {
        if let Some(octets) = self.app.take_output(self.now) {
            self.broker.handle(self.now, BrokerInput::Bytes(APP, octets));
        }
        while let Some(output) = self.broker.poll_output() {
            let BrokerOutput::Write(to, octets) = output else { continue };
            self.broker.handle(self.now, BrokerInput::Drained(to));
            if to == APP {
                let heard = self.app.handle_bytes(self.now, &octets);
                heard.map_err(|error| Failure::Broker(error.to_string()))?;
                while self.app.poll_event().is_some() {}
            } else {
                self.inputs.push(Input::Link(LinkId(to.0), LinkEvent::Bytes(octets)));
            }
        }
        Ok(())
    }

    /// A frame has come to a sensor, which answers what has to be answered.
    fn hear(&mut self, to: SocketAddr, frame: &Bytes) -> Result<(), Failure> {
        let frame = decode(frame).map_err(|error| Failure::Gateway(error.to_string()))?;
        let (heard, accepted) = (&mut self.heard, ReturnCode::Accepted);
        let answer = match frame.packet {
            Packet::ConnAck(ack) if ack.code == accepted => {
                heard.connacks += 1;
                None
            }
            Packet::RegAck(ack) if ack.code == accepted => {
                heard.topic_id = Some(ack.topic_id);
                None
            }
            Packet::SubAck(ack) if ack.code == accepted => {
                heard.topic_id = Some(ack.topic_id);
                None
            }
            Packet::PubAck(ack) if ack.code == accepted => {
                heard.settled += 1;
                None
            }
            Packet::PubComp(_) => {
                heard.settled += 1;
                None
            }
            Packet::PingResp => {
                heard.pongs += 1;
                None
            }
            Packet::Disconnect(_) => {
                heard.goodbyes += 1;
                None
            }
            Packet::PubRec(ack) => Some(Packet::PubRel(MsgIdOnly { msg_id: ack.msg_id })),
            Packet::Publish(publish) => {
                heard.messages += 1;
                let (topic_id, msg_id) = (publish.topic.raw(), publish.msg_id);
                let ack = Packet::PubAck(TopicAck { topic_id, msg_id, code: accepted });
                (publish.qos == Qos::AtLeastOnce).then_some(ack)
            }
            packet => return Err(Failure::Gateway(format!("says {packet}, which nobody expects"))),
        };
        answer.map_or(Ok(()), |answer| self.send_from(to, &answer))
    }

    fn send_from(&mut self, from: SocketAddr, packet: &Packet<'_>) -> Result<(), Failure> {
        self.scratch.clear();
        packet.encode(&mut self.scratch).map_err(|error| Failure::Gateway(error.to_string()))?;
        let frame = Bytes::copy_from_slice(&self.scratch);
        let from = Peer { port: PortId(0), addr: Address::Udp(from), node: None };
        self.inputs.push(Input::Frame { from, route: Route::default(), frame });
        Ok(())
    }
}

/// Where a sensor is: thousands share a host, as behind a router.
fn addr(sensor: u32) -> SocketAddr {
    let [_, block, high, low] = sensor.to_be_bytes();
    SocketAddr::from(([10, 0, 0, block], 1 + u16::from_be_bytes([high, low]) % u16::MAX))
}

/// Fails unless there are as many as there should be: what is not done costs nothing.
pub(super) fn expect(what: &str, found: u64, expected: u64) -> Result<(), Failure> {
    if found == expected {
        return Ok(());
    }
    Err(Failure::Gateway(format!("{what}: {found} and not {expected}")))
}

fn settings(mode: Mode) -> Result<Settings, Failure> {
    let text = format!(
        "version: 1\n\
         broker: {{ url: \"mqtt://broker:1883\", mode: {mode}, protocol: 3.1.1 }}\n\
         transports: [{{ name: lan, type: udp, listen: [\"0.0.0.0:1884\"] }}]\n\
         topics: {{ predefined: {{ 1: bench/up/predefined }} }}\n\
         store: {{ path: /nowhere }}\n\
         control: {{ socket: none }}\n",
    );
    let wrong = |error: &dyn std::fmt::Display| Failure::Gateway(error.to_string());
    let config = Config::parse("count", text.as_bytes(), &|_| None).map_err(|error| wrong(&error))?;
    let setup = Setup::new(config).map_err(|error| wrong(&error))?;
    // The same in every run.
    Ok(Settings { seed: 1, ..setup.settings })
}
