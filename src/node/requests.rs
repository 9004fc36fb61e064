//! Subscriptions (§6.9): SUBSCRIBE and SUBACK, UNSUBSCRIBE and UNSUBACK, one at a time (§6.9).

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::air::{Cx, NoAnswer, Retry};
use super::topics::Topics;
use super::{Event, Filter, NAME_LEN_MAX, Options, REQUESTS_MAX, SubscribeError};
use crate::wire::{FilterRef, MsgIdOnly, Packet, Qos, ReturnCode, SubAck, Subscribe, Unsubscribe};

/// What is subscribed to, and what is asked for.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Granted, and asked for again whenever the gateway may have forgotten.
    held: BTreeMap<Filter, Qos>,
    queue: VecDeque<Request>,
    /// Of the first in the queue, once it is on its way.
    open: Option<(u16, Retry)>,
    /// No SUBSCRIBE before, since the gateway said `congestion`.
    paused: Option<Instant>,
}

#[derive(Debug)]
struct Request {
    filter: Filter,
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Subscribe(Qos),
    /// The application has been told already.
    Resubscribe(Qos),
    Unsubscribe,
}

impl Request {
    fn packet(&self, msg_id: u16, dup: bool) -> Packet<'_> {
        let topic = match &self.filter {
            Filter::Name(filter) => FilterRef::Name(filter.as_str().as_bytes()),
            Filter::Predefined(id) => FilterRef::Predefined(*id),
            Filter::Short(name) => FilterRef::Short(*name),
        };
        match self.action {
            Action::Subscribe(qos) | Action::Resubscribe(qos) => {
                Packet::Subscribe(Subscribe { dup, qos, msg_id, topic })
            }
            Action::Unsubscribe => Packet::Unsubscribe(Unsubscribe { msg_id, topic }),
        }
    }
}

impl Requests {
    pub(super) fn subscribe(&mut self, filter: Filter, qos: Qos) -> Result<(), SubscribeError> {
        self.push(filter, Action::Subscribe(if qos == Qos::MinusOne { Qos::AtMostOnce } else { qos }))
    }

    pub(super) fn unsubscribe(&mut self, filter: Filter) -> Result<(), SubscribeError> {
        self.push(filter, Action::Unsubscribe)
    }

    fn push(&mut self, filter: Filter, action: Action) -> Result<(), SubscribeError> {
        if let Filter::Name(name) = &filter
            && name.as_str().len() > NAME_LEN_MAX
        {
            return Err(SubscribeError::TooLong);
        }
        let held = if action == Action::Unsubscribe { 0 } else { self.held.len() };
        if self.queue.len() + held >= REQUESTS_MAX {
            return Err(SubscribeError::Full);
        }
        self.queue.push_back(Request { filter, action });
        Ok(())
    }

    /// Whether nothing waits or is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether messages may come on predefined topic `id`.
    pub(super) fn expects_predefined(&self, id: u16) -> bool {
        let filter = Filter::Predefined(id);
        self.held.contains_key(&filter) || self.queue.iter().any(|request| request.filter == filter)
    }

    /// Sends the next request, if none is on its way. Called only while there is a connection.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>) {
        let (None, None, Some(head)) = (&self.open, self.paused, self.queue.front()) else { return };
        let msg_id = cx.air.open_msg_id();
        cx.air.send(head.packet(msg_id, false));
        self.open = Some((msg_id, cx.retry()));
    }

    pub(super) fn handle_suback(&mut self, ack: SubAck, cx: &mut Cx<'_>) {
        let Some((Action::Subscribe(qos) | Action::Resubscribe(qos), retry)) = self.asked(ack.msg_id) else {
            return cx.air.stale();
        };
        cx.air.heard(retry.sent);
        self.suspend(cx);
        if let (ReturnCode::Congestion, Some(wait)) = (ack.code, cx.options.congestion_wait) {
            self.paused = Some(cx.now + wait);
            return;
        }
        let Some(Request { filter, action }) = self.queue.pop_front() else { return };
        let result = match ack.code {
            ReturnCode::Accepted => Ok(ack.qos),
            code => Err(code),
        };
        if result.is_err() {
            self.held.remove(&filter);
        } else {
            if let Filter::Name(name) = &filter
                && let Some(topic) = name.as_topic()
                && Topics::is_valid(ack.topic_id)
            {
                cx.topics.confirm(ack.topic_id, topic);
            }
            self.held.insert(filter.clone(), qos);
        }
        if result.is_err() || !matches!(action, Action::Resubscribe(_)) {
            cx.tell(Event::Subscribed { filter, result });
        }
        self.advance(cx);
    }

    pub(super) fn handle_unsuback(&mut self, MsgIdOnly { msg_id }: MsgIdOnly, cx: &mut Cx<'_>) {
        let Some((Action::Unsubscribe, retry)) = self.asked(msg_id) else { return cx.air.stale() };
        cx.air.heard(retry.sent);
        self.suspend(cx);
        let Some(Request { filter, .. }) = self.queue.pop_front() else { return };
        self.held.remove(&filter);
        cx.tell(Event::Unsubscribed { filter });
        self.advance(cx);
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut Cx<'_>) -> Result<(), NoAnswer> {
        if self.paused.is_some_and(|until| until <= cx.now) {
            self.paused = None;
            self.advance(cx);
        }
        if let (Some((msg_id, retry)), Some(head)) = (&mut self.open, self.queue.front())
            && retry.due(cx.now, cx.options.retry_interval)?
        {
            cx.air.send_again(head.packet(*msg_id, true));
        }
        Ok(())
    }

    pub(super) fn deadline(&self, options: &Options) -> Option<Instant> {
        let retry = self.open.map(|(_, retry)| retry.deadline(options.retry_interval));
        retry.into_iter().chain(self.paused).min()
    }

    /// No connection for a while. The request on its way begins anew, with a new MsgId: a late SUBACK would grant what the
    /// gateway has forgotten.
    pub(super) fn suspend(&mut self, cx: &mut Cx<'_>) {
        if let Some((msg_id, _)) = self.open.take() {
            cx.air.close_msg_id(msg_id);
        }
    }

    /// A connection begins, and nothing in CONNACK says whether the gateway still holds the subscriptions: all are made
    /// again, before what waits.
    pub(super) fn restart(&mut self, cx: &mut Cx<'_>) {
        self.suspend(cx);
        self.queue.retain(|request| !matches!(request.action, Action::Resubscribe(_)));
        for (filter, qos) in self.held.iter().rev() {
            self.queue.push_front(Request { filter: filter.clone(), action: Action::Resubscribe(*qos) });
        }
        self.advance(cx);
    }

    /// The request that `msg_id` answers, if it is on its way.
    fn asked(&self, msg_id: u16) -> Option<(Action, Retry)> {
        let (open, retry) = self.open?;
        let head = self.queue.front()?;
        (open == msg_id).then_some((head.action, retry))
    }
}
