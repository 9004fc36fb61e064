//! What the gateway and its broker say to each other, followed from outside: packet ids, phases and acknowledgements of
//! both directions, as MQTT 3.1.1 §4.3 and §4.4 want them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::Qos;
use rumqttc::mqttbytes::{self, Error};
use rumqttc::{Connect, ConnectReturnCode, Packet, Publish, QoS, SubscribeReasonCode};

use crate::law::{Checked, Law};
use crate::ledger::{Entry, Ledger, No, Origin, Who};
use crate::plan::GATEWAY;

/// A session at the broker that the gateway has, over all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// The gateway's own: 0, and those that filters that overlap are on.
    Gateway(usize),
    /// That of the client with this sensor's id, in transparent mode.
    Client(Who),
}

impl Lane {
    /// Which of them is not the first of the gateway's own.
    pub(crate) fn is_further(self) -> bool {
        self != Self::Gateway(0)
    }
}

/// The account of one session at the broker, over all its connections.
#[derive(Default)]
pub(crate) struct Link {
    lane: Option<Lane>,
    /// No client is served by the gateway's own links.
    pub(crate) all_dedicated: bool,
    written: BytesMut,
    read: BytesMut,
    /// Exchanges the gateway has open.
    out: BTreeMap<u16, Out>,
    /// What may be sent once more on this connection.
    again: BTreeSet<u16>,
    /// When the exchanges began, and the last that was sent once more on this connection.
    began: BTreeMap<u16, u64>,
    count: u64,
    /// Of what was begun before a crash the order holds for each client alone.
    last: BTreeMap<Option<Who>, u64>,
    /// How many had begun before the last crash.
    crashed: u64,
    /// Messages of the broker.
    inward: BTreeMap<u16, In>,
    /// What the requests that are open are about.
    requests: BTreeMap<u16, Vec<String>>,
    /// Filters that the broker said it has, and at which QoS.
    held: BTreeMap<TopicFilter, Qos>,
    /// Those of UNSUBSCRIBEs among them.
    unsubscribes: BTreeSet<u16>,
    /// Filters in SUBSCRIBEs without an answer that were to end since: an answer to a late repetition says nothing of what the
    /// gateway makes of them.
    stale: BTreeSet<(u16, String)>,
    connections: u32,
    /// The connection it is on: what an earlier one has yet to say is of no account.
    pub(crate) on: u64,
    /// There was no session at the broker when the gateway under watch looked: what is there now is its own.
    ours: bool,
    /// CONNACK has come; what comes before it is no good.
    pub(crate) up: bool,
    /// Its CONNECT asked for a clean session.
    pub(crate) clean: bool,
    /// The gateway took leave: what comes next under this client id knows nothing of it.
    pub(crate) left: bool,
    /// This connection is to a session that the gateway did not begin: it takes nothing from there.
    foreign: bool,
    /// PUBRECs without a PUBREL on this connection: the gateway hears nothing any more once it takes leave.
    unreleased: BTreeSet<u16>,
    /// PUBRELs of the broker on this connection.
    released: BTreeSet<u16>,
    /// PUBRELs of the gateway on this connection.
    releases: BTreeSet<u16>,
    /// Packet ids of QoS 2 exchanges that the gateway knows nothing of any more, and the broker may: it takes another message
    /// under one of them for a repetition and drops it, unless PUBREL comes first.
    forgotten: BTreeMap<u16, No>,
    /// So is what may still leave on this connection, which has waited for the store.
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    Sent(No, QoS),
    Received(No),
    Request,
}

#[derive(Debug)]
struct In {
    no: No,
    qos: QoS,
    retain: bool,
    acked: bool,
    here: bool,
}

/// What an octet stream said, for the other accounts.
#[derive(Debug)]
pub(crate) enum Fact {
    /// The broker's message is about to reach the gateway.
    Message { no: No, qos: Qos, retain: bool, fresh: bool, dup: bool },
    /// The gateway told the broker that it is done with the message; `last`: with all copies of it.
    Acked { no: No, retain: bool, last: bool },
    /// The broker has accepted the connection; whether it had a session.
    Accepted { present: bool },
    /// It has refused it.
    Refused(ConnectReturnCode),
    /// The broker has lost the session.
    Lost,
    /// The gateway asked for this filter.
    Asked(TopicFilter),
    /// The broker has this filter from now on, or has it no more.
    Filter(TopicFilter, bool),
}

impl Link {
    /// A new connection.
    pub(crate) fn connected(&mut self, lane: Lane, on: u64) {
        match lane {
            // A connection that was clean left nothing behind.
            Lane::Gateway(_) if self.left => {
                *self = Self { ours: self.ours && self.clean, ..Self::default() };
            }
            // A client that takes leave comes back to its session, and what the broker had of it before is its own too.
            Lane::Client(_) => (self.left, self.ours) = (false, true),
            Lane::Gateway(_) => {}
        }
        if std::mem::take(&mut self.over) {
            self.forget();
        }
        (self.lane, self.on) = (Some(lane), on);
        self.connections += 1;
        (self.foreign, self.up) = (false, false);
        self.written.clear();
        self.read.clear();
        for id in std::mem::take(&mut self.unreleased) {
            if let Some(open @ &mut Out::Received(no)) = self.out.get_mut(&id) {
                *open = Out::Sent(no, QoS::ExactlyOnce);
            }
        }
        self.again.clear();
        self.last.clear();
        self.released.clear();
        self.releases.clear();
        self.inward.values_mut().for_each(|message| message.here = false);
    }

    /// The gateway has died. The next one knows the QoS 2 exchanges of both directions, and of the others nothing; `known`:
    /// and that the session is its own.
    /// While the store cannot write, links go on: then the next one knows nothing for certain.
    pub(crate) fn died(&mut self, known: bool, stored: bool, ledger: &Ledger) {
        if !stored {
            self.forget();
        }
        // Of those of a client that the operator has forgotten it knows nothing either.
        for (id, open) in std::mem::take(&mut self.out) {
            match open {
                Out::Received(no) | Out::Sent(no, QoS::ExactlyOnce) if ledger.entry(no).disowned => {
                    self.forgotten.insert(id, no);
                }
                open => _ = self.out.insert(id, open),
            }
        }
        self.out.retain(|_, open| matches!(open, Out::Received(_) | Out::Sent(_, QoS::ExactlyOnce)));
        for open in self.out.values_mut() {
            // Whether it knows of PUBREC is seen by what it sends.
            if let Out::Received(no) = *open {
                *open = Out::Sent(no, QoS::ExactlyOnce);
            }
        }
        self.requests.clear();
        self.unsubscribes.clear();
        self.stale.clear();
        self.ours = known || matches!(self.lane, Some(Lane::Client(_)));
        self.left &= !known;
        self.crashed = self.count;
        self.up = false;
    }

    /// The gateway takes leave. What has come while that waited for the store it has not read.
    fn unread(&mut self) {
        for (id, open) in &mut self.out {
            if let Out::Received(no) = *open
                && !self.releases.contains(id)
            {
                *open = Out::Sent(no, QoS::ExactlyOnce);
            }
        }
    }

    /// The session of the client is over.
    pub(crate) fn session_ended(&mut self) {
        self.forget();
        self.over = true;
    }

    /// The gateway knows nothing any more of what it has under way here.
    fn forget(&mut self) {
        for (id, open) in std::mem::take(&mut self.out) {
            match open {
                Out::Received(no) | Out::Sent(no, QoS::ExactlyOnce) => _ = self.forgotten.insert(id, no),
                Out::Sent(..) | Out::Request => {}
            }
        }
        self.requests.clear();
        self.unsubscribes.clear();
        self.stale.clear();
    }

    /// The gateway wrote these octets.
    pub(crate) fn wrote(&mut self, octets: &[u8], ledger: &Ledger) -> Checked<Vec<Fact>> {
        self.written.extend_from_slice(octets);
        let mut facts = Vec::new();
        while let Some(packet) = next(&mut self.written)? {
            match packet {
                // What there was is at an end.
                Packet::Connect(connect) if connect.clean_session => {
                    let written = std::mem::take(&mut self.written);
                    let &mut Self { connections, lane, on, all_dedicated, .. } = self;
                    let ours = matches!(lane, Some(Lane::Client(_)));
                    let clean = true;
                    *self = Self {
                        connections,
                        written,
                        clean,
                        lane,
                        on,
                        all_dedicated,
                        ours,
                        ..Self::default()
                    };
                    self.check_connect(&connect)?;
                }
                Packet::Connect(connect) => {
                    self.clean = false;
                    self.check_connect(&connect)?;
                }
                Packet::Publish(publish) => self.publish_out(&publish, ledger)?,
                Packet::Subscribe(packet) => {
                    let alone = self.all_dedicated && matches!(self.lane, Some(Lane::Gateway(_)));
                    Law::OwnLink.check(!alone, || format!("{packet:?} is for nobody on this link"))?;
                    self.request_out(packet.pkid)?;
                    let filters: Vec<String> = packet.filters.into_iter().map(|filter| filter.path).collect();
                    // What is asked anew may come under another identifier, and what comes under the one before is for nobody.
                    self.held.retain(|filter, _| !filters.iter().any(|other| other == filter.as_str()));
                    facts.extend(
                        filters.iter().filter_map(|filter| TopicFilter::new(filter).ok()).map(Fact::Asked),
                    );
                    self.requests.insert(packet.pkid, filters);
                }
                Packet::Unsubscribe(packet) => {
                    self.request_out(packet.pkid)?;
                    let open = self.requests.iter().filter(|(id, _)| !self.unsubscribes.contains(id));
                    let open = open.flat_map(|(id, filters)| filters.iter().map(|filter| (*id, filter)));
                    let stale = open.filter(|(_, filter)| packet.topics.contains(filter));
                    self.stale.extend(stale.map(|(id, filter)| (id, filter.clone())));
                    // From here on nobody can tell, until the broker has said that it has it again.
                    let ended = packet.topics.iter().filter_map(|filter| TopicFilter::new(filter).ok());
                    facts.extend(ended.map(|filter| Fact::Filter(filter, false)));
                    self.requests.insert(packet.pkid, packet.topics);
                    self.unsubscribes.insert(packet.pkid);
                }
                Packet::Disconnect => {
                    self.left = true;
                    self.unread();
                }
                Packet::PubRel(release) => {
                    self.unreleased.remove(&release.pkid);
                    self.forgotten.remove(&release.pkid);
                    self.releases.insert(release.pkid);
                    if let Some(Out::Sent(no, QoS::ExactlyOnce)) = self.out.get(&release.pkid).copied() {
                        self.out.insert(release.pkid, Out::Received(no));
                    }
                }
                Packet::PubAck(ack) => facts.extend(self.ack_out(ack.pkid, QoS::AtLeastOnce)?),
                Packet::PubRec(ack) => facts.extend(self.ack_out(ack.pkid, QoS::ExactlyOnce)?),
                Packet::PubComp(ack) => {
                    Law::LinkExchanges.check(self.released.contains(&ack.pkid), || {
                        format!("PUBCOMP {} without PUBREL", ack.pkid)
                    })?;
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    /// A client connects as itself, and its Will is the gateway's to keep.
    fn check_connect(&self, connect: &Connect) -> Checked {
        Law::OwnLink.check(connect.last_will.is_none(), || format!("{connect:?} has a Will"))
    }

    /// Messages of a client go by its own link and by no other one (§4.1); QoS −1 and Wills by the gateway's.
    fn check_owner(&self, no: No, ledger: &Ledger) -> Checked {
        let entry = ledger.entry(no);
        let client = match entry.origin {
            Origin::Sensor { who, .. } if entry.qos != Qos::MinusOne => Some(ledger.client(who)),
            Origin::Sensor { .. } | Origin::Observer | Origin::Will(_) => None,
        };
        let fair = match self.lane {
            Some(Lane::Client(who)) => client == Some(who),
            // What was promised to a client that has no link any more goes by the gateway's.
            Some(Lane::Gateway(_)) | None => {
                let is_kept = ledger.keeps && entry.qos == Qos::AtMostOnce;
                client.is_none() || !self.all_dedicated || entry.promised || is_kept
            }
        };
        Law::OwnLink.check(fair, || format!("m{no} of {client:?} leaves on {:?}", self.lane))
    }

    fn publish_out(&mut self, publish: &Publish, ledger: &Ledger) -> Checked {
        let no = ledger.find(&publish.payload);
        let no = no.ok_or_else(|| Law::UplinkFaithful.broken(format!("{publish:?} comes from nobody")))?;
        let entry = ledger.entry(no);
        let is_set_as = |entry: &Entry| {
            entry.retain == publish.retain && entry.qos.max(Qos::AtMostOnce) == qos(publish.qos)
        };
        // WILLTOPIC may be that of an earlier life, and come late.
        let by_will = |will: &Entry| will.origin == entry.origin && is_set_as(will);
        let late = matches!(entry.origin, Origin::Will(_)) && ledger.iter().any(|(_, will)| by_will(will));
        let faithful = entry.topic.as_str() == publish.topic && (is_set_as(entry) || late);
        Law::UplinkFaithful.check(faithful, || format!("m{no} is {entry:?} and leaves as {publish:?}"))?;
        self.check_owner(no, ledger)?;
        if publish.qos == QoS::AtMostOnce {
            return Ok(());
        }
        let open = self.out.insert(publish.pkid, Out::Sent(no, publish.qos));
        self.releases.remove(&publish.pkid);
        let fair = match open {
            // What waited in the buffer of a connection that broke may never have left it.
            None => !publish.dup || self.connections > 1,
            Some(open) => {
                publish.dup && open == Out::Sent(no, publish.qos) && self.again.remove(&publish.pkid)
            }
        };
        // A crash may bring back what knows of it.
        let known = self.forgotten.get(&publish.pkid);
        let hidden =
            publish.qos == QoS::ExactlyOnce && known.is_some_and(|known| !publish.dup || *known != no);
        Law::LinkExchanges.check(!hidden, || {
            format!("PUBLISH {} of m{no}, which the broker may know as another one", publish.pkid)
        })?;
        let sender = match entry.origin {
            Origin::Sensor { who, .. } | Origin::Will(who) => Some(ledger.client(who)),
            Origin::Observer => None,
        };
        if open.is_none() && publish.dup && publish.qos == QoS::AtLeastOnce {
            // Of QoS 1 a crash may have left no packet id, but its place: behind what was before it.
            let last = self.last.get(&sender).copied().unwrap_or(0);
            self.began.insert(publish.pkid, last);
        } else if open.is_none() {
            self.count += 1;
            self.began.insert(publish.pkid, self.count);
        }
        let began = self.began.get(&publish.pkid).copied().unwrap_or(0);
        let among = sender.filter(|_| began <= self.crashed);
        let ordered = self.last.insert(among, began).is_none_or(|last| last <= began);
        Law::LinkExchanges.check(ordered, || {
            format!("PUBLISH {} of m{no} is sent again behind a later one", publish.pkid)
        })?;
        Law::LinkExchanges.check(fair && publish.pkid != 0, || {
            format!("PUBLISH {} of m{no} (DUP {}) while {open:?} is open", publish.pkid, publish.dup)
        })
    }

    fn request_out(&mut self, id: u16) -> Checked {
        let open = self.out.insert(id, Out::Request);
        let fair = open.is_none() || (open == Some(Out::Request) && self.again.remove(&id));
        Law::LinkExchanges.check(fair && id != 0, || format!("request {id} while {open:?} is open"))
    }

    fn ack_out(&mut self, id: u16, qos: QoS) -> Checked<Option<Fact>> {
        let Some(message) = self.inward.get_mut(&id).filter(|message| message.here && message.qos == qos)
        else {
            return Err(Law::LinkExchanges.broken(format!("acknowledgement {id} of nothing")));
        };
        let (no, retain) = (message.no, message.retain);
        let first = !std::mem::replace(&mut message.acked, true);
        if qos == QoS::AtLeastOnce {
            self.inward.remove(&id);
        }
        let own = matches!(self.lane, Some(Lane::Client(_)));
        let same = |other: &In| other.no == no && (own || other.retain == retain);
        let last = !self.inward.values().any(|other| !other.acked && same(other));
        Ok(first.then_some(Fact::Acked { no, retain, last }))
    }

    /// Whether the broker waits for the acknowledgement of any copy of this message.
    pub(crate) fn awaits_ack(&self, no: No) -> bool {
        self.inward.values().any(|message| message.no == no && !message.acked)
    }

    /// The gateway is about to read these octets.
    pub(crate) fn read(&mut self, octets: &[u8], ledger: &mut Ledger) -> Checked<Vec<Fact>> {
        self.read.extend_from_slice(octets);
        let mut facts = Vec::new();
        while let Some(packet) = next(&mut self.read)? {
            match packet {
                Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {
                    self.up = true;
                    self.foreign = ack.session_present && !self.ours;
                    self.ours |= !self.foreign;
                    if !ack.session_present {
                        self.forgotten.clear();
                        self.held.clear();
                        self.out.retain(|_, open| *open == Out::Request);
                        self.inward.clear();
                        facts.push(Fact::Lost);
                    }
                    self.again = self.out.keys().copied().collect();
                    facts.push(Fact::Accepted { present: ack.session_present });
                }
                Packet::ConnAck(ack) => facts.push(Fact::Refused(ack.code)),
                _ if self.foreign || !self.up => {}
                Packet::Publish(publish) => facts.push(self.publish_in(&publish, ledger)?),
                Packet::PubRel(release) => {
                    self.released.insert(release.pkid);
                    self.inward.remove(&release.pkid);
                }
                Packet::PubAck(ack) => self.acked(ack.pkid, ledger),
                Packet::PubRec(ack) => {
                    if let Some(Out::Sent(no, QoS::ExactlyOnce)) = self.out.get(&ack.pkid).copied() {
                        ledger.entry_mut(no).received = true;
                        self.out.insert(ack.pkid, Out::Received(no));
                        self.unreleased.insert(ack.pkid);
                    }
                }
                Packet::PubComp(ack) => self.acked(ack.pkid, ledger),
                Packet::SubAck(ack) => {
                    self.out.remove(&ack.pkid);
                    let granted = self.granted(ack.pkid, &ack.return_codes);
                    self.held.extend(granted.iter().cloned());
                    facts.extend(granted.into_iter().map(|(filter, _)| Fact::Filter(filter, true)));
                }
                Packet::UnsubAck(ack) => {
                    self.out.remove(&ack.pkid);
                    self.unsubscribes.remove(&ack.pkid);
                    let filters = self.requests.remove(&ack.pkid).unwrap_or_default();
                    for filter in filters.iter().filter_map(|filter| TopicFilter::new(filter).ok()) {
                        self.held.remove(&filter);
                        facts.push(Fact::Filter(filter, false));
                    }
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    /// What is refused stays as it was.
    fn granted(&mut self, id: u16, codes: &[SubscribeReasonCode]) -> Vec<(TopicFilter, Qos)> {
        let answers = self.requests.remove(&id).unwrap_or_default().into_iter().zip(codes);
        // What is about to end was not granted for good.
        let ends = |filter: &String| self.unsubscribes.iter().any(|id| self.requests[id].contains(filter));
        let granted =
            answers.filter(|(filter, _)| !ends(filter) && !self.stale.contains(&(id, filter.clone())));
        let granted = granted.filter_map(|(filter, code)| match code {
            SubscribeReasonCode::Success(at) => Some((TopicFilter::new(filter).ok()?, qos(*at))),
            SubscribeReasonCode::Failure => None,
        });
        let granted = granted.collect();
        self.stale.retain(|(other, _)| *other != id);
        granted
    }

    /// Whether the broker is known to have a filter at this QoS: the gateway has read that.
    pub(crate) fn holds(&self, filter: &TopicFilter, qos: Qos) -> bool {
        self.held.get(filter).is_some_and(|held| *held >= qos)
    }

    /// The broker loses the session, and the gateway may never hear of it.
    pub(crate) fn lost(&mut self) {
        self.held.clear();
    }

    fn acked(&mut self, id: u16, ledger: &mut Ledger) {
        if let Some(Out::Sent(no, QoS::AtLeastOnce) | Out::Received(no)) = self.out.get(&id) {
            ledger.entry_mut(*no).acked = true;
            self.out.remove(&id);
        }
    }

    fn publish_in(&mut self, publish: &Publish, ledger: &mut Ledger) -> Checked<Fact> {
        let no = ledger.find(&publish.payload);
        let no = no.ok_or_else(|| Law::DownlinkFaithful.broken(format!("{publish:?} comes from nobody")))?;
        ledger.entry_mut(no).redelivered |= publish.dup;
        let mut fresh = true;
        if publish.qos != QoS::AtMostOnce {
            match self.inward.get_mut(&publish.pkid) {
                Some(message) if message.no == no && message.qos == publish.qos => {
                    message.here = true;
                    fresh = false;
                }
                _ => {
                    let (qos, retain) = (publish.qos, publish.retain);
                    let message = In { no, qos, retain, acked: false, here: true };
                    self.inward.insert(publish.pkid, message);
                }
            }
        }
        let &Publish { dup, retain, .. } = publish;
        Ok(Fact::Message { no, qos: qos(publish.qos), retain, fresh, dup })
    }
}

/// Whose session this client id is at the broker.
pub(crate) fn lane(client: &str) -> Lane {
    if let Some(who) = client.strip_prefix('s').and_then(|who| who.parse().ok()) {
        return Lane::Client(who);
    }
    let further = client.strip_prefix(GATEWAY).and_then(|rest| rest.strip_prefix('-'));
    Lane::Gateway(further.and_then(|number| number.parse::<usize>().ok()).map_or(0, |number| number - 1))
}

/// The other way round.
pub(crate) fn client_id(lane: Lane) -> String {
    match lane {
        Lane::Gateway(0) => GATEWAY.to_owned(),
        Lane::Gateway(further) => format!("{GATEWAY}-{}", further + 1),
        Lane::Client(who) => format!("s{who}"),
    }
}

/// The CONNECT with which these octets begin.
pub(crate) fn connect(octets: &[u8]) -> Checked<Connect> {
    match next(&mut BytesMut::from(octets))? {
        Some(Packet::Connect(connect)) => Ok(connect),
        other => Err(Law::LinkWellFormed.broken(format!("a connection begins with {other:?}"))),
    }
}

/// The next packet of a stream, if it is whole.
fn next(stream: &mut BytesMut) -> Checked<Option<Packet>> {
    match mqttbytes::check(stream.iter(), usize::MAX) {
        Ok(header) => {
            let mut frame = BytesMut::from(&stream.split_to(header.frame_length())[..]);
            let packet = Packet::read(&mut frame, usize::MAX);
            packet
                .map(Some)
                .map_err(|error| Law::LinkWellFormed.broken(format!("a packet that is {error:?}")))
        }
        Err(Error::InsufficientBytes(_)) => Ok(None),
        Err(error) => Err(Law::LinkWellFormed.broken(format!("octets that are no packet: {error:?}"))),
    }
}

/// The same in the terms of MQTT-SN.
pub(crate) fn qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// Encodes packets as one piece.
pub(crate) fn encode(packets: &[Packet]) -> Bytes {
    let mut octets = BytesMut::new();
    for packet in packets {
        packet.write(&mut octets, usize::MAX).expect("packets of ours are sound");
    }
    octets.freeze()
}

/// Takes the packets that are whole out of a stream.
pub(crate) fn packets(stream: &mut BytesMut) -> Checked<Vec<Packet>> {
    let mut packets = Vec::new();
    while let Some(packet) = next(stream)? {
        packets.push(packet);
    }
    Ok(packets)
}
