use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;

use rumqttc::QoS;

use super::trace::{RestoredPublish, Trace, Traces};
use super::waiting::{self, Waiting};
use super::{Message, Options, Origin, Protocol, SubscriptionId, Token};
use crate::topic::TopicFilter;

/// What we have asked the broker for and it has not finished: publishes of QoS 1 and 2, subscribes, unsubscribes.
///
/// A publish waits without a packet id until the window has room; then it is open under its id until its end:
///
/// ```text
///                    next             PUBACK
/// QoS 1   waiting   ----->  sent  --------------------------------> completed
/// QoS 2   waiting   ----->  sent  ------>  released  -------------> completed
///                                 PUBREC             PUBCOMP
/// ```
///
/// PUBACK ends a QoS 2 publish too, from a broker that knows no QoS 2.
///
/// Tokens grow, so their order is the order in which everything was asked for. What is repeated is in the order in which it was sent
/// first (MQTT 3.1.1 §4.6), which is another where QoS 1 went on while the window of QoS 2 was full.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    open: BTreeMap<u16, Open>,
    waiting: Waiting,
    /// Whose packet is to be sent on this connection before anything that waits; some may be over.
    due: VecDeque<(Token, u16)>,
    /// Publishes in `open`, QoS 1 and 2; the rest of them are requests.
    in_flight: [usize; 2],
    /// Of those, the ones that were sent on this connection.
    here: [usize; 2],
    /// Topics and payloads of all publishes, open and waiting.
    octets: usize,
    id: u16,
    token: u64,
    /// The session had a life before this value, in which the broker may have taken a QoS 2 message over under any packet id
    /// (PUBREC) and heard no more of it. It would take another under that id for a repetition and drop it: each id is
    /// released before it is used for the first time.
    inherits: bool,
}

#[derive(Debug)]
enum Open {
    /// `here`: it was sent on this connection; `since`: its place among what was sent.
    Publish {
        token: Token,
        origin: Origin,
        phase: Phase,
        here: bool,
        since: Token,
    },
    Subscribe {
        token: Token,
        filters: Box<[(TopicFilter, QoS)]>,
        subscription: Option<SubscriptionId>,
    },
    Unsubscribe {
        token: Token,
        filters: Box<[TopicFilter]>,
    },
}

#[derive(Debug)]
enum Phase {
    Sent(Message),
    /// Always of QoS 2. The message is for a broker that loses the session: one that publishes at PUBREL only, as Mosquitto
    /// does, has lost the message too.
    Released(Message),
}

/// A packet to be sent.
#[derive(Debug)]
pub(super) enum Sending<'a> {
    /// `release`: PUBREL goes before it.
    Publish {
        id: u16,
        dup: bool,
        message: &'a Message,
        release: bool,
    },
    PubRel(u16),
    Subscribe(u16, &'a [(TopicFilter, QoS)], Option<SubscriptionId>),
    Unsubscribe(u16, &'a [TopicFilter]),
}

/// What ends without having been sent.
#[derive(Debug)]
pub(super) enum Abandoned {
    Publish(Token),
    /// So many filters.
    Subscribe(Token, usize),
    Unsubscribe(Token),
}

/// What a SUBACK ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SubAck {
    Subscribed(Token),
    WrongCount,
    Stray,
}

impl Outbound {
    /// Publishes that have not completed.
    pub(super) fn unfinished(&self) -> usize {
        self.publishes() + self.waiting.len()
    }

    /// Subscribes and unsubscribes without an answer.
    pub(super) fn requests(&self) -> usize {
        self.open.len() - self.publishes()
    }

    /// Whether the queue takes another publish.
    pub(super) fn has_room(&self, message: &Message, options: &Options) -> bool {
        self.waiting.len() < options.queue && self.octets + octets(message) <= options.queue_octets
    }

    /// Publishes that the queue takes for sure, if they fit into its octets.
    pub(super) fn room(&self, options: &Options) -> usize {
        if self.octets >= options.queue_octets {
            return 0;
        }
        options.queue.saturating_sub(self.waiting.len())
    }

    pub(super) fn token(&mut self) -> Token {
        self.token += 1;
        Token(NonZeroU64::MIN.saturating_add(self.token - 1))
    }

    pub(super) fn publish(&mut self, origin: Origin, message: Message) -> Token {
        let token = self.token();
        self.octets += octets(&message);
        self.waiting.push(waiting::Publish { token, origin, message });
        token
    }

    /// Takes a publish of another process over. What has a packet id that is none, or another's, cannot have left under it.
    pub(super) fn restore(&mut self, publish: RestoredPublish) -> Token {
        let origin = Origin::default();
        let (id, phase) = match publish {
            RestoredPublish::Waiting(message) => return self.publish(origin, raised(message)),
            RestoredPublish::Sent(id, message) => (id, Phase::Sent(raised(message))),
            RestoredPublish::Released(id, message) => {
                (id, Phase::Released(Message { qos: QoS::ExactlyOnce, ..message }))
            }
        };
        if id == 0 || self.open.contains_key(&id) {
            let (Phase::Sent(message) | Phase::Released(message)) = phase;
            return self.publish(origin, message);
        }
        let token = self.token();
        self.octets += octets(phase.message());
        self.in_flight[lane(phase.message().qos)] += 1;
        self.open.insert(id, Open::Publish { token, origin, phase, here: false, since: token });
        token
    }

    pub(super) fn subscribe(
        &mut self,
        filters: &[(TopicFilter, QoS)],
        subscription: Option<SubscriptionId>,
    ) -> Token {
        let token = self.token();
        self.request(Open::Subscribe { token, filters: filters.into(), subscription });
        token
    }

    pub(super) fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Token {
        let token = self.token();
        self.request(Open::Unsubscribe { token, filters: filters.into() });
        token
    }

    /// The next packet to send: first what is due, in its order, then what waits, while the windows have room, and the
    /// broker, which takes so many publishes at a time (MQTT 5 §4.9).
    pub(super) fn next(
        &mut self,
        options: &Options,
        receive_max: u16,
        traces: &mut Traces,
    ) -> Option<Sending<'_>> {
        // In MQTT 5 the broker says how many it takes.
        let twos = match options.protocol {
            Protocol::V4 => options.window_exactly_once,
            Protocol::V5 => receive_max,
        };
        while let Some((token, id)) = self.due.front().copied() {
            match self.open.get(&id).filter(|open| open.token() == token) {
                Some(Open::Publish { phase: Phase::Sent(_), .. })
                    if self.here[0] + self.here[1] >= usize::from(receive_max) =>
                {
                    return None;
                }
                // More may be open than this connection takes: MQTT 5 allowed it. What is due after this waits too, for the order.
                Some(Open::Publish { phase: Phase::Sent(message), .. })
                    if message.qos == QoS::ExactlyOnce && self.here[1] >= usize::from(twos) =>
                {
                    return None;
                }
                Some(_) => {
                    self.due.pop_front();
                    return self.sending(id, true);
                }
                None => self.due.pop_front(),
            };
        }
        if self.publishes() >= usize::from(options.window.min(receive_max)) {
            return None;
        }
        let twos = self.in_flight[1] < usize::from(twos);
        let waiting::Publish { token, origin, message } = self.waiting.pop(twos)?;
        self.in_flight[lane(message.qos)] += 1;
        let exactly_once = message.qos == QoS::ExactlyOnce;
        let since = self.token();
        let phase = Phase::Sent(message);
        let id = self.open(Open::Publish { token, origin, phase, here: false, since });
        if exactly_once {
            traces.push(Trace::Sent(token, id));
        }
        self.sending(id, false)
    }

    /// The publish that has waited longest of those that were sent on this connection and not answered.
    pub(super) fn first_sent(&self) -> Option<(u16, Token)> {
        let sent = self.open.iter().filter_map(|(id, open)| match open {
            Open::Publish { token, phase: Phase::Sent(_), here: true, .. } => Some((*id, *token)),
            _ => None,
        });
        sent.min_by_key(|(_, token)| *token)
    }

    /// Ends what [`Outbound::next`] gave and cannot be sent.
    pub(super) fn abandon(&mut self, id: u16, traces: &mut Traces) -> Option<Abandoned> {
        Some(match self.open.get(&id)? {
            Open::Publish { .. } => Abandoned::Publish(self.end(id, traces)?),
            Open::Subscribe { token, filters, .. } => {
                let abandoned = Abandoned::Subscribe(*token, filters.len());
                self.open.remove(&id);
                abandoned
            }
            Open::Unsubscribe { token, .. } => {
                let abandoned = Abandoned::Unsubscribe(*token);
                self.open.remove(&id);
                abandoned
            }
        })
    }

    /// A PUBACK, and the QoS of the publish that it ends. RabbitMQ 3 knows no QoS 2: it answers such a publish with PUBACK,
    /// and would answer its repetition so for ever.
    pub(super) fn acknowledged(&mut self, id: u16, traces: &mut Traces) -> Option<(Token, QoS)> {
        let qos = self.sent(id)?.qos;
        Some((self.end(id, traces)?, qos))
    }

    /// A PUBREC that takes the message over. `None` if nothing waits for it.
    pub(super) fn received(&mut self, id: u16, traces: &mut Traces) -> Option<Token> {
        self.sent(id).filter(|message| message.qos == QoS::ExactlyOnce)?;
        let Some(Open::Publish { token, phase, .. }) = self.open.get_mut(&id) else { return None };
        *phase = Phase::Released(phase.message().clone());
        traces.push(Trace::Released(*token, id));
        Some(*token)
    }

    /// A PUBREC that refuses the message.
    pub(super) fn refused(&mut self, id: u16, traces: &mut Traces) -> Option<Token> {
        self.sent(id).filter(|message| message.qos == QoS::ExactlyOnce)?;
        self.end(id, traces)
    }

    /// A PUBCOMP.
    pub(super) fn completed(&mut self, id: u16, traces: &mut Traces) -> Option<Token> {
        match self.open.get(&id) {
            Some(Open::Publish { phase: Phase::Released(_), .. }) => self.end(id, traces),
            _ => None,
        }
    }

    /// A SUBACK with so many return codes.
    pub(super) fn subscribed(&mut self, id: u16, codes: usize) -> SubAck {
        match self.open.get(&id) {
            Some(Open::Subscribe { filters, .. }) if filters.len() != codes => SubAck::WrongCount,
            Some(Open::Subscribe { token, .. }) => {
                let token = *token;
                self.open.remove(&id);
                SubAck::Subscribed(token)
            }
            _ => SubAck::Stray,
        }
    }

    /// An UNSUBACK.
    pub(super) fn unsubscribed(&mut self, id: u16) -> Option<Token> {
        let Some(Open::Unsubscribe { token, .. }) = self.open.get(&id) else { return None };
        let token = *token;
        self.open.remove(&id);
        Some(token)
    }

    /// The session had a life before this value.
    pub(super) fn inherit(&mut self) {
        self.inherits = true;
    }

    /// A connection to the same session: everything open is due again, in the original order (MQTT 3.1.1 §4.4, §4.6).
    pub(super) fn resumed(&mut self) {
        for open in self.open.values_mut() {
            if let Open::Publish { here, .. } = open {
                *here = false;
            }
        }
        self.here = [0; 2];
        let mut due: Vec<_> =
            self.open.iter().map(|(id, open)| (open.since(), (open.token(), *id))).collect();
        due.sort_unstable();
        self.due = due.into_iter().map(|(_, due)| due).collect();
    }

    /// A connection to a session without memory: publishes wait again, as if they had never been sent, before those
    /// that have not been; requests are due.
    pub(super) fn lost(&mut self, traces: &mut Traces) {
        let (mut publishes, mut ended) = (self.waiting.take(), Vec::new());
        for (id, open) in std::mem::take(&mut self.open) {
            let Open::Publish {
                token, origin, phase: Phase::Sent(message) | Phase::Released(message), ..
            } = open
            else {
                self.open.insert(id, open);
                continue;
            };
            ended.extend((message.qos == QoS::ExactlyOnce).then_some((token, id)));
            publishes.push(waiting::Publish { token, origin, message });
        }
        ended.sort_unstable();
        for (token, packet) in ended {
            traces.push(Trace::Ended { token, packet, waits: true });
        }
        publishes.sort_unstable_by_key(|publish| publish.token);
        publishes.into_iter().for_each(|publish| self.waiting.push(publish));
        self.in_flight = [0; 2];
        self.inherits = false;
        self.resumed();
    }

    fn publishes(&self) -> usize {
        self.in_flight[0] + self.in_flight[1]
    }

    fn request(&mut self, request: Open) {
        let token = request.token();
        let id = self.open(request);
        self.due.push_back((token, id));
    }

    /// Opens an exchange under a packet id that is not in use. There is one: `WINDOW_MAX` and `REQUESTS_MAX` together
    /// are fewer than there are ids. Ids go round, so that one comes back as late as possible.
    fn open(&mut self, open: Open) -> u16 {
        loop {
            self.id = self.id.checked_add(1).unwrap_or_else(|| {
                self.inherits = false;
                1
            });
            if !self.open.contains_key(&self.id) {
                self.open.insert(self.id, open);
                return self.id;
            }
        }
    }

    fn sending(&mut self, id: u16, dup: bool) -> Option<Sending<'_>> {
        Some(match self.open.get_mut(&id)? {
            Open::Publish { phase, here, .. } => {
                self.here[lane(phase.message().qos)] += usize::from(!std::mem::replace(here, true));
                match phase {
                    Phase::Released(_) => Sending::PubRel(id),
                    Phase::Sent(message) => {
                        let release = self.inherits && !dup && message.qos == QoS::ExactlyOnce;
                        Sending::Publish { id, dup, message, release }
                    }
                }
            }
            Open::Subscribe { filters, subscription, .. } => Sending::Subscribe(id, filters, *subscription),
            Open::Unsubscribe { filters, .. } => Sending::Unsubscribe(id, filters),
        })
    }

    /// The message under this id that waits for its first acknowledgement.
    fn sent(&self, id: u16) -> Option<&Message> {
        match self.open.get(&id)? {
            Open::Publish { phase: Phase::Sent(message), .. } => Some(message),
            _ => None,
        }
    }

    /// A publish is over.
    fn end(&mut self, id: u16, traces: &mut Traces) -> Option<Token> {
        let Some(Open::Publish { token, phase, here, .. }) = self.open.get(&id) else { return None };
        let (token, qos) = (*token, phase.message().qos);
        self.octets -= octets(phase.message());
        self.in_flight[lane(qos)] -= 1;
        self.here[lane(qos)] -= usize::from(*here);
        self.open.remove(&id);
        if qos == QoS::ExactlyOnce {
            traces.push(Trace::Ended { token, packet: id, waits: false });
        }
        Some(token)
    }
}

impl Phase {
    fn message(&self) -> &Message {
        let (Self::Sent(message) | Self::Released(message)) = self;
        message
    }
}

impl Open {
    /// Its place among what was sent.
    fn since(&self) -> Token {
        match self {
            Self::Publish { since, .. } => *since,
            Self::Subscribe { token, .. } | Self::Unsubscribe { token, .. } => *token,
        }
    }

    fn token(&self) -> Token {
        match self {
            Self::Publish { token, .. } | Self::Subscribe { token, .. } | Self::Unsubscribe { token, .. } => {
                *token
            }
        }
    }
}

/// Where a publish counts: QoS 1 or 2.
fn lane(qos: QoS) -> usize {
    usize::from(qos == QoS::ExactlyOnce)
}

/// Never of QoS 0: it would wait for ever.
fn raised(mut message: Message) -> Message {
    if message.qos == QoS::AtMostOnce {
        message.qos = QoS::AtLeastOnce;
    }
    message
}

/// What a publish counts for in the queue: topic, payload, and what MQTT 3.1.1 puts around them.
fn octets(message: &Message) -> usize {
    2 + message.topic.as_str().len() + 2 + message.payload.len()
}
