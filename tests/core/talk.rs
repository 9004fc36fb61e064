//! What clients, gateway and broker say to each other over and over, in words of the specification: exchanges of more than one
//! packet, each of which goes well.

use mqtt_sn_gateway::wire::{
    MsgIdOnly, Packet, Qos, Register, ReturnCode, SubAck, TopicAck, TopicRef, WillMsg, WillTopic, decode,
};
use rumqttc::mqttbytes::v4;
use rumqttc::{ConnectReturnCode, QoS};

use crate::world::*;

/// Clients with the gateway.
impl World {
    #[track_caller]
    pub fn active(&mut self, at: At, id: &str) {
        self.connected(at, connect(id));
    }

    /// The client says this CONNECT and is accepted (§6.2).
    #[track_caller]
    pub fn connected(&mut self, at: At, connect: Packet<'_>) {
        self.send(at, connect);
        self.expect(at, connack(ReturnCode::Accepted));
    }

    /// After this CONNECT the client is asked for both parts of its Will, and gives them (§6.3). What follows is CONNACK.
    #[track_caller]
    pub fn gives_will(&mut self, at: At, connect: Packet<'_>, topic: WillTopic<'_>, message: &str) {
        self.send(at, connect);
        self.expect(at, Packet::WillTopicReq);
        self.send(at, Packet::WillTopic(topic));
        self.expect(at, Packet::WillMsgReq);
        self.send(at, Packet::WillMsg(WillMsg { message: message.as_bytes() }));
    }

    /// The client connects and subscribes at the QoS the broker grants; returns the id of its topic.
    #[track_caller]
    pub fn subscriber(&mut self, at: At, connect: Packet<'_>, filter: &str, qos: QoS) -> TopicRef {
        self.connected(at, connect);
        TopicRef::Normal(self.subscribed(at, filter, qos))
    }

    #[track_caller]
    pub fn registered(&mut self, at: At, name: &str) -> u16 {
        let register = Register { topic_id: 0, msg_id: 1, topic_name: name.as_bytes() };
        self.send(at, Packet::Register(register));
        let frame = self.next(at);
        match decode(&frame).unwrap().packet {
            Packet::RegAck(TopicAck { topic_id, msg_id: 1, code: ReturnCode::Accepted }) => topic_id,
            other => panic!("{other}"),
        }
    }

    /// Subscribes by name at the QoS the broker grants; returns the topic id.
    #[track_caller]
    pub fn subscribed(&mut self, at: At, filter: &str, qos: QoS) -> u16 {
        self.send(at, subscribe(2, filter, sn_qos(qos)));
        self.granted(at, filter, qos)
    }

    /// The SUBSCRIBE of [`World::subscribed`] is what the broker gets next.
    #[track_caller]
    pub fn granted(&mut self, at: At, filter: &str, qos: QoS) -> u16 {
        self.broker_grants_subscribe(filter, qos);
        let frame = self.next(at);
        match decode(&frame).unwrap().packet {
            Packet::SubAck(SubAck { topic_id, msg_id: 2, code: ReturnCode::Accepted, .. }) => topic_id,
            other => panic!("{other}"),
        }
    }

    /// The client unsubscribes from this name and has UNSUBACK.
    #[track_caller]
    pub fn unsubscribed(&mut self, at: At, filter: &str) {
        self.send(at, unsubscribe(7, filter));
        self.expect(at, Packet::UnsubAck(MsgIdOnly { msg_id: 7 }));
    }

    /// The client publishes at QoS 1, and is told so when the broker has acknowledged it under this name.
    #[track_caller]
    pub fn published(&mut self, at: At, topic: TopicRef, msg_id: u16, name: &str, data: &str) {
        self.send(at, publish(topic, Qos::AtLeastOnce, msg_id, data));
        let pkid = self.broker_gets(name, data, QoS::AtLeastOnce);
        self.broker_pubacks(pkid);
        self.expect(at, puback(topic, msg_id, ReturnCode::Accepted));
    }

    /// The client has PUBREC for its message of QoS 2, releases it, and has PUBCOMP.
    #[track_caller]
    pub fn finishes(&mut self, at: At, msg_id: u16) {
        self.send(at, pubrel(msg_id));
        self.expect(at, pubcomp(msg_id));
    }

    /// The next frame is a REGISTER of this name, which the client accepts (§6.10); returns the id.
    #[track_caller]
    pub fn learns(&mut self, at: At, name: &str) -> u16 {
        let (id, msg_id) = self.expect_register(at, name);
        self.send(at, regack(id, msg_id, ReturnCode::Accepted));
        id
    }

    /// The next frame is this message at QoS 1, and the client acknowledges it.
    #[track_caller]
    pub fn takes(&mut self, at: At, topic: TopicRef, data: &str) {
        let msg_id = self.expect_publish(at, topic, Qos::AtLeastOnce, false, data);
        self.send(at, puback(topic, msg_id, ReturnCode::Accepted));
    }

    /// The client has got a PUBLISH of QoS 2 with this MsgId; the other three steps follow.
    #[track_caller]
    pub fn completes(&mut self, at: At, msg_id: u16) {
        self.send(at, pubrec(msg_id));
        self.expect(at, pubrel(msg_id));
        self.send(at, pubcomp(msg_id));
    }

    /// A client that is awake says PINGREQ and is answered.
    #[track_caller]
    pub fn pings(&mut self, at: At) {
        self.send(at, pingreq());
        self.expect(at, Packet::PingResp);
    }

    /// The client says for how long it sleeps, and that is confirmed (§6.14).
    #[track_caller]
    pub fn falls_asleep(&mut self, at: At, seconds: u16) {
        self.send(at, sleep(seconds));
        self.expect(at, disconnect());
    }

    /// The client says DISCONNECT, and that is confirmed (§6.12).
    #[track_caller]
    pub fn takes_leave(&mut self, at: At) {
        self.send(at, disconnect());
        self.expect(at, disconnect());
    }
}

/// The broker with the gateway.
impl World {
    /// On a new connection the broker hears CONNECT.
    #[track_caller]
    pub fn broker_hears_connect(&mut self) -> v4::Connect {
        self.broker_answers_tcp();
        match self.broker_next() {
            v4::Packet::Connect(connect) => connect,
            other => panic!("{other:?}"),
        }
    }

    pub fn broker_accepts(&mut self, session_present: bool) {
        let code = ConnectReturnCode::Success;
        self.broker_says(v4::Packet::ConnAck(v4::ConnAck { session_present, code }));
    }

    pub fn broker_refuses(&mut self, code: ConnectReturnCode) {
        self.broker_says(v4::Packet::ConnAck(v4::ConnAck { session_present: false, code }));
    }

    /// The broker accepts a client on a link of its own, and the client hears of it. The test plays the broker there from here on.
    #[track_caller]
    pub fn admitted(&mut self, at: At, id: &str, session_present: bool) {
        self.on_link_of(Some(id));
        self.broker_up(session_present);
        self.expect(at, connack(ReturnCode::Accepted));
    }

    /// The next packet at the broker is this SUBSCRIBE, and it is granted as it was asked.
    #[track_caller]
    pub fn broker_grants_subscribe(&mut self, filter: &str, qos: QoS) {
        let pkid = self.broker_gets_subscribe(filter, qos);
        self.broker_grants(pkid, qos);
    }

    /// The broker refuses the filter that it was asked for with this packet id.
    pub fn broker_denies(&mut self, pkid: u16) {
        let return_codes = vec![v4::SubscribeReasonCode::Failure];
        self.broker_says(v4::Packet::SubAck(v4::SubAck { pkid, return_codes }));
    }

    /// The next packet at the broker is an UNSUBSCRIBE from this; returns its packet id.
    #[track_caller]
    pub fn broker_gets_unsubscribe(&mut self, filter: &str) -> u16 {
        match self.broker_next() {
            v4::Packet::Unsubscribe(unsubscribe) => {
                assert_eq!(unsubscribe.topics, [filter]);
                unsubscribe.pkid
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next packet at the broker is an UNSUBSCRIBE from this, and it is answered.
    #[track_caller]
    pub fn broker_answers_unsubscribe(&mut self, filter: &str) {
        let pkid = self.broker_gets_unsubscribe(filter);
        self.broker_unsubacks(pkid);
    }

    pub fn broker_unsubacks(&mut self, pkid: u16) {
        self.broker_says(v4::Packet::UnsubAck(v4::UnsubAck { pkid }));
    }

    pub fn broker_pubacks(&mut self, pkid: u16) {
        self.broker_says(v4::Packet::PubAck(v4::PubAck { pkid }));
    }

    pub fn broker_pubrecs(&mut self, pkid: u16) {
        self.broker_says(v4::Packet::PubRec(v4::PubRec { pkid }));
    }

    pub fn broker_pubrels(&mut self, pkid: u16) {
        self.broker_says(v4::Packet::PubRel(v4::PubRel { pkid }));
    }

    pub fn broker_pubcomps(&mut self, pkid: u16) {
        self.broker_says(v4::Packet::PubComp(v4::PubComp { pkid }));
    }

    #[track_caller]
    pub fn broker_gets_puback(&mut self, pkid: u16) {
        assert_eq!(self.broker_next(), v4::Packet::PubAck(v4::PubAck { pkid }));
    }

    #[track_caller]
    pub fn broker_gets_pubrec(&mut self, pkid: u16) {
        assert_eq!(self.broker_next(), v4::Packet::PubRec(v4::PubRec { pkid }));
    }

    #[track_caller]
    pub fn broker_gets_pubrel(&mut self, pkid: u16) {
        assert_eq!(self.broker_next(), v4::Packet::PubRel(v4::PubRel { pkid }));
    }

    #[track_caller]
    pub fn broker_gets_pubcomp(&mut self, pkid: u16) {
        assert_eq!(self.broker_next(), v4::Packet::PubComp(v4::PubComp { pkid }));
    }

    #[track_caller]
    pub fn broker_gets_disconnect(&mut self) {
        assert_eq!(self.broker_next(), v4::Packet::Disconnect);
    }
}
