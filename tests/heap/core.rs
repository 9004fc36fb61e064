//! A core whose broker and store do at once what they are asked, and that counts what it allocates.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::config::Config;
use mqtt_sn_gateway::gateway::Gateway;
use mqtt_sn_gateway::gateway::io::{
    Address, Control, Input, LinkCommand, LinkEvent, LinkId, Output, Peer, PortId, Route, Settings,
};
use mqtt_sn_gateway::gateway::record::Outcome;
use mqtt_sn_gateway::runtime::Setup;
use mqtt_sn_gateway::wire::{
    Connect, Disconnect, FilterRef, Packet, Publish, Qos, Register, ReturnCode, Subscribe, TopicAck,
    TopicRef, decode,
};
use rumqttc::QoS;
use rumqttc::mqttbytes::v4;

pub(crate) struct Core {
    pub(crate) gw: Gateway,
    now: Instant,
    link: LinkId,
    /// What the gateway has written and the broker has not read.
    written: BytesMut,
    /// The last frame to a client.
    last: Bytes,
    last_packet: u16,
}

pub(crate) fn id(client: u32) -> String {
    format!("client-{client:05}")
}

fn peer(client: u32) -> Peer {
    let [a, b, c, d] = (client / 60_000).to_be_bytes();
    let port = u16::try_from(client % 60_000).unwrap() + 1024;
    Peer { port: PortId(0), addr: Address::Udp(SocketAddr::from(([10 + a, b, c, d], port))), node: None }
}

impl Core {
    /// One that is connected to its broker.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let gw = Gateway::restore(settings(), [], now);
        let (written, last) = (BytesMut::with_capacity(1 << 16), Bytes::new());
        let mut core = Self { gw, now, link: LinkId(0), written, last, last_packet: 0 };
        core.gw.handle_timeout(now);
        core.drain();
        core
    }

    /// Hands in what happened and does what comes of it; returns how often the core allocated for it.
    fn input(&mut self, input: Input) -> u64 {
        let info = measure(|| self.gw.handle(self.now, input));
        info.count_total + self.drain()
    }

    fn drain(&mut self) -> u64 {
        let mut allocations = 0;
        loop {
            let mut output = None;
            allocations += measure(|| output = self.gw.poll_output()).count_total;
            let Some(output) = output else { return allocations };
            for input in self.answer(output) {
                allocations += measure(|| self.gw.handle(self.now, input)).count_total;
            }
        }
    }

    fn answer(&mut self, output: Output) -> Vec<Input> {
        match output {
            Output::Send { frame, .. } => {
                self.last = frame;
                Vec::new()
            }
            Output::Link(id, LinkCommand::Connect { .. }) => {
                self.link = id;
                vec![Input::Link(id, LinkEvent::Connected)]
            }
            Output::Link(id, LinkCommand::Write(octets)) => {
                self.written.extend_from_slice(&octets);
                let mut inputs = vec![Input::Link(id, LinkEvent::Drained)];
                let mut answers = BytesMut::new();
                while let Ok(packet) = v4::Packet::read(&mut self.written, usize::MAX) {
                    if let Some(answer) = answer(packet) {
                        answer.write(&mut answers, usize::MAX).unwrap();
                    }
                }
                if !answers.is_empty() {
                    inputs.push(Input::Link(id, LinkEvent::Bytes(answers.freeze())));
                }
                inputs
            }
            Output::Store { lsn, .. } => vec![Input::Stored(lsn, Outcome::Durable)],
            Output::Link(_, LinkCommand::Close) | Output::Answer(..) | Output::Stopped => Vec::new(),
        }
    }

    pub(crate) fn control(&mut self, control: Control) {
        self.input(Input::Control(control));
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.gw.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.gw.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// What this client says; what the gateway answered is in `self.last`.
    fn say(&mut self, client: u32, packet: Packet<'_>) -> u64 {
        let mut octets = BytesMut::new();
        packet.encode(&mut octets).unwrap();
        let frame = Bytes::copy_from_slice(&octets);
        self.input(Input::Frame { from: peer(client), route: Route::default(), frame })
    }

    fn answered(&self) -> Packet<'_> {
        decode(&self.last).unwrap().packet
    }

    pub(crate) fn connect(&mut self, client: u32, clean_session: bool) {
        let id = id(client);
        let client_id = id.as_bytes();
        self.say(
            client,
            Packet::Connect(Connect { will: false, clean_session, protocol_id: 1, duration: 600, client_id }),
        );
        assert!(matches!(self.answered(), Packet::ConnAck(ack) if ack.code == ReturnCode::Accepted));
    }

    pub(crate) fn register(&mut self, client: u32, name: &str) -> u16 {
        let topic_name = name.as_bytes();
        self.say(client, Packet::Register(Register { topic_id: 0, msg_id: 1, topic_name }));
        let Packet::RegAck(TopicAck { topic_id, code: ReturnCode::Accepted, .. }) = self.answered() else {
            panic!("{}", self.answered());
        };
        topic_id
    }

    pub(crate) fn subscribe(&mut self, client: u32, filter: &str, qos: Qos) {
        let topic = FilterRef::Name(filter.as_bytes());
        self.say(client, Packet::Subscribe(Subscribe { dup: false, qos, msg_id: 2, topic }));
        assert!(matches!(self.answered(), Packet::SubAck(ack) if ack.code == ReturnCode::Accepted));
    }

    pub(crate) fn sleep(&mut self, client: u32) {
        self.say(client, Packet::Disconnect(Disconnect { duration: Some(3600) }));
        assert!(matches!(self.answered(), Packet::Disconnect(_)));
    }

    pub(crate) fn publish(&mut self, client: u32, topic: TopicRef, qos: Qos, msg_id: u16) -> u64 {
        let data = &msg_id.to_be_bytes();
        let publish = Publish { dup: false, qos, retain: false, topic, msg_id, data };
        let allocations = self.say(client, Packet::Publish(publish));
        if qos == Qos::AtLeastOnce {
            assert!(matches!(self.answered(), Packet::PubAck(ack) if ack.msg_id == msg_id));
        }
        allocations
    }

    /// The client answers the PUBLISH that it just got.
    pub(crate) fn acknowledge(&mut self, client: u32) {
        let Packet::Publish(Publish { topic, msg_id, qos: Qos::AtLeastOnce, .. }) = self.answered() else {
            panic!("{}", self.answered());
        };
        let (topic_id, code) = (topic.raw(), ReturnCode::Accepted);
        self.say(client, Packet::PubAck(TopicAck { topic_id, msg_id, code }));
    }

    pub(crate) fn broker_publishes(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> u64 {
        self.last_packet =
            if qos == QoS::AtMostOnce { 0 } else { self.last_packet.checked_add(1).unwrap_or(1) };
        let mut publish = v4::Publish::new(topic, qos, payload);
        publish.pkid = self.last_packet;
        let mut out = BytesMut::new();
        v4::Packet::Publish(publish).write(&mut out, usize::MAX).unwrap();
        self.input(Input::Link(self.link, LinkEvent::Bytes(Bytes::copy_from_slice(&out))))
    }
}

/// What the broker says to this.
fn answer(packet: v4::Packet) -> Option<v4::Packet> {
    Some(match packet {
        v4::Packet::Connect(_) => {
            v4::Packet::ConnAck(v4::ConnAck { session_present: false, code: v4::ConnectReturnCode::Success })
        }
        v4::Packet::Subscribe(v4::Subscribe { pkid, filters }) => {
            let granted = filters.iter().map(|filter| v4::SubscribeReasonCode::Success(filter.qos));
            v4::Packet::SubAck(v4::SubAck { pkid, return_codes: granted.collect() })
        }
        v4::Packet::Unsubscribe(v4::Unsubscribe { pkid, .. }) => v4::Packet::UnsubAck(v4::UnsubAck { pkid }),
        v4::Packet::Publish(v4::Publish { pkid, qos: QoS::AtLeastOnce, .. }) => {
            v4::Packet::PubAck(v4::PubAck { pkid })
        }
        v4::Packet::PingReq => v4::Packet::PingResp,
        _ => return None,
    })
}

/// A gateway as it is configured if nothing is said, but for its broker, which speaks MQTT 3.1.1.
fn settings() -> Settings {
    let text = "version: 1\n\
                broker: { url: \"mqtt://broker:1883\", protocol: 3.1.1 }\n\
                transports: [{ name: lan, type: udp, listen: [\"0.0.0.0:1884\"] }]\n\
                store: { path: /nowhere }\n\
                control: { socket: none }\n";
    let config = Config::parse("heap", text.as_bytes(), &|_| None).unwrap();
    Settings { seed: 7, ..Setup::new(config).unwrap().settings }
}
