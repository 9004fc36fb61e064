//! A blocking MQTT client with no mind of its own: it sends what it is told and shows what comes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::Error;
use rumqttc::{
    Connect, ConnectReturnCode, Packet, PubAck, PubComp, PubRec, PubRel, Publish, QoS, Subscribe,
    SubscribeFilter, SubscribeReasonCode, Unsubscribe,
};

/// Longer than anything takes that is going to happen.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct Client {
    stream: TcpStream,
    input: BytesMut,
    /// PUBLISH and PUBREL packets that came while something else was awaited.
    aside: VecDeque<Packet>,
    last_id: u16,
}

impl Client {
    /// A connection without CONNECT.
    #[track_caller]
    pub(crate) fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, input: BytesMut::new(), aside: VecDeque::new(), last_id: 0 }
    }

    /// Connects, and tells the return code and whether a session was present.
    #[track_caller]
    pub(crate) fn connect_with(port: u16, connect: Connect) -> (Self, ConnectReturnCode, bool) {
        let mut client = Self::open(port);
        client.send(Packet::Connect(connect));
        let Packet::ConnAck(ack) = client.next() else { panic!("no CONNACK") };
        (client, ack.code, ack.session_present)
    }

    /// Connects with a clean session.
    #[track_caller]
    pub(crate) fn clean(port: u16, client_id: &str) -> Self {
        let (client, code, present) = Self::connect_with(port, connect(client_id, true));
        assert_eq!((code, present), (ConnectReturnCode::Success, false));
        client
    }

    /// Connects to a session that is kept, and tells whether it was there.
    #[track_caller]
    pub(crate) fn kept(port: u16, client_id: &str) -> (Self, bool) {
        let (client, code, present) = Self::connect_with(port, connect(client_id, false));
        assert_eq!(code, ConnectReturnCode::Success);
        (client, present)
    }

    #[track_caller]
    pub(crate) fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.write(&bytes);
    }

    #[track_caller]
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The next packet, in order of arrival.
    #[track_caller]
    pub(crate) fn recv(&mut self) -> Packet {
        self.aside.pop_front().unwrap_or_else(|| self.next())
    }

    #[track_caller]
    pub(crate) fn recv_publish(&mut self) -> Publish {
        match self.recv() {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} instead of a PUBLISH"),
        }
    }

    /// Whether the other side closes the connection; what comes before is not looked at.
    #[track_caller]
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut scratch = [0; 1024];
        loop {
            match self.stream.read(&mut scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    /// Subscribes and returns the answer.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, filter: &str, qos: QoS) -> SubscribeReasonCode {
        let pkid = self.id();
        let filters = vec![SubscribeFilter::new(filter.into(), qos)];
        self.send(Packet::Subscribe(Subscribe { pkid, filters }));
        match self.answer() {
            Packet::SubAck(ack) if ack.pkid == pkid && ack.return_codes.len() == 1 => ack.return_codes[0],
            other => panic!("{other:?} instead of a SUBACK"),
        }
    }

    #[track_caller]
    pub(crate) fn unsubscribe(&mut self, filter: &str) {
        let pkid = self.id();
        self.send(Packet::Unsubscribe(Unsubscribe { pkid, topics: vec![filter.into()] }));
        assert!(matches!(self.answer(), Packet::UnsubAck(ack) if ack.pkid == pkid));
    }

    /// Publishes and sees it through to the last acknowledgement.
    #[track_caller]
    pub(crate) fn publish(&mut self, mut publish: Publish) {
        let qos = publish.qos;
        if qos != QoS::AtMostOnce {
            publish.pkid = self.id();
        }
        let pkid = publish.pkid;
        self.send(Packet::Publish(publish));
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => assert_eq!(self.answer(), Packet::PubAck(PubAck::new(pkid))),
            QoS::ExactlyOnce => {
                assert_eq!(self.answer(), Packet::PubRec(PubRec::new(pkid)));
                self.send(Packet::PubRel(PubRel::new(pkid)));
                assert_eq!(self.answer(), Packet::PubComp(PubComp::new(pkid)));
            }
        }
    }

    /// Takes the next message and settles it.
    #[track_caller]
    pub(crate) fn take(&mut self) -> Publish {
        let publish = self.recv_publish();
        match publish.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.send(Packet::PubAck(PubAck::new(publish.pkid))),
            QoS::ExactlyOnce => {
                self.send(Packet::PubRec(PubRec::new(publish.pkid)));
                let release = Packet::PubRel(PubRel::new(publish.pkid));
                // Other messages may come first.
                let mut earlier = VecDeque::new();
                loop {
                    let packet = self.recv();
                    if packet == release {
                        break;
                    }
                    earlier.push_back(packet);
                }
                earlier.append(&mut self.aside);
                self.aside = earlier;
                self.send(Packet::PubComp(PubComp::new(publish.pkid)));
            }
        }
        publish
    }

    /// Settles and returns all that has come when the answer to a PINGREQ is there.
    #[track_caller]
    pub(crate) fn take_all(&mut self) -> Vec<Publish> {
        self.send(Packet::PingReq);
        assert_eq!(self.answer(), Packet::PingResp);
        let mut taken = Vec::new();
        while !self.aside.is_empty() {
            taken.push(self.take());
        }
        taken
    }

    #[track_caller]
    pub(crate) fn disconnect(mut self) {
        self.send(Packet::Disconnect);
        assert!(self.is_closed());
    }

    pub(crate) fn id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    /// The next packet that answers something.
    #[track_caller]
    fn answer(&mut self) -> Packet {
        loop {
            match self.next() {
                packet @ (Packet::Publish(_) | Packet::PubRel(_)) => self.aside.push_back(packet),
                packet => return packet,
            }
        }
    }

    #[track_caller]
    fn next(&mut self) -> Packet {
        loop {
            match Packet::read(&mut self.input, usize::MAX) {
                Ok(packet) => return packet,
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            let mut chunk = [0; 4096];
            let len = self.stream.read(&mut chunk).expect("nothing came");
            assert!(len > 0, "the connection was closed");
            self.input.extend_from_slice(&chunk[..len]);
        }
    }
}

pub(crate) fn connect(client_id: &str, clean: bool) -> Connect {
    Connect { clean_session: clean, keep_alive: 60, ..Connect::new(client_id) }
}

pub(crate) fn publish(topic: &str, qos: QoS, payload: &str) -> Publish {
    Publish::new(topic, qos, payload)
}

pub(crate) fn retained(topic: &str, qos: QoS, payload: &str) -> Publish {
    Publish { retain: true, ..publish(topic, qos, payload) }
}
