//! An application at the broker: an MQTT client on a real TCP socket.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::{Connection, Event, Message, Options, QoS, Session};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};

use crate::process::PATIENCE;

pub struct App {
    connection: Connection,
    socket: TcpStream,
    messages: VecDeque<Message>,
    subscribed: bool,
    finished: usize,
}

impl App {
    /// An application that has subscribed to `filter`.
    pub fn subscribed(port: u16, filter: &str) -> Self {
        let mut app = Self::connected(port);
        let filter = TopicFilter::new(filter).unwrap();
        app.connection.subscribe(&[(filter, QoS::ExactlyOnce)]).unwrap();
        app.live_until("a SUBACK", |app| app.subscribed);
        app
    }

    pub fn connected(port: u16) -> Self {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut options = Options::new(format!("app-{}", socket.local_addr().unwrap().port()));
        options.session = Session::Clean;
        let mut connection = Connection::new(options);
        connection.handle_connected(Instant::now()).unwrap();
        let mut app = Self { connection, socket, messages: VecDeque::new(), subscribed: false, finished: 0 };
        app.live_until("a CONNACK", |app| app.connection.is_connected());
        app
    }

    /// Publishes and waits until the broker has the message.
    pub fn publish(&mut self, topic: &str, payload: &str, qos: QoS, retain: bool) {
        let payload = bytes::Bytes::copy_from_slice(payload.as_bytes());
        let message = Message { topic: TopicName::new(topic).unwrap(), payload, qos, retain };
        let goal = self.finished + usize::from(self.connection.publish(message).unwrap().is_some());
        self.write();
        self.live_until("an acknowledgement", |app| app.finished >= goal);
    }

    #[track_caller]
    pub fn message(&mut self) -> Message {
        self.live_until("a message", |app| !app.messages.is_empty());
        self.messages.pop_front().unwrap()
    }

    /// The next message is this one.
    #[track_caller]
    pub fn expect(&mut self, topic: &str, payload: &str, qos: QoS, retain: bool) {
        let message = self.message();
        assert_eq!((message.topic.as_str(), message.qos, message.retain), (topic, qos, retain));
        assert_eq!(message.payload, payload.as_bytes());
    }

    /// What has come and was not looked at, and what comes in a moment.
    pub fn waiting(&mut self) -> Vec<Message> {
        self.live(Duration::from_millis(100));
        self.messages.drain(..).collect()
    }

    /// No further message comes for a moment.
    #[track_caller]
    pub fn quiet(&mut self) {
        self.live(Duration::from_millis(200));
        assert_eq!(self.messages.pop_front(), None);
    }

    #[track_caller]
    fn live_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "waited in vain for {what}");
            self.live(Duration::from_millis(10));
        }
    }

    fn live(&mut self, time: Duration) {
        let mut buffer = [0; 70_000];
        self.write();
        self.socket.set_read_timeout(Some(time)).unwrap();
        match self.socket.read(&mut buffer) {
            Ok(0) => panic!("the broker closed the connection"),
            Ok(len) => self.connection.handle_bytes(Instant::now(), &buffer[..len]).unwrap(),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => panic!("{error}"),
        }
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Message { message, delivery, .. } => {
                    self.messages.push_back(message);
                    if let Some(delivery) = delivery {
                        self.connection.settle(delivery);
                    }
                }
                Event::Subscribed(_, results) => self.subscribed = results.iter().all(Result::is_ok),
                Event::Completed(..) => self.finished += 1,
                _ => {}
            }
        }
        self.write();
    }

    fn write(&mut self) {
        while let Some(octets) = self.connection.take_output(Instant::now()) {
            self.socket.write_all(&octets).unwrap();
        }
    }
}
