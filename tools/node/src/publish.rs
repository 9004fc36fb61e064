//! `mqtt-sn-node pub`.

use std::io::BufRead;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::node::{Event, Outcome};
use mqtt_sn_gateway::wire::{Qos, ReturnCode};
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use crate::args::{Payload, Publish};
use crate::failure::Failure;
use crate::shell::{Place, Shell};
use crate::value;

/// Lines read ahead of the gateway's acknowledgements.
const LINES_AHEAD: usize = 10;

/// How long the answer to DISCONNECT is awaited after a failure.
const FAREWELL: Duration = Duration::from_secs(1);

pub(crate) async fn run(publish: Publish) -> Result<(), Failure> {
    let deadline = publish.timeout.map(|limit| (tokio::time::Instant::now() + limit, limit));
    let opened = Shell::open(&publish.node.way, publish.node.options.clone(), publish.node.debug);
    let mut shell = by(deadline, opened).await?;
    let payloads = payloads(&publish.payload);
    if publish.qos == Qos::MinusOne {
        return by(deadline, throw(shell, payloads, &publish)).await;
    }
    let mut tally = Tally::new(&shell, &publish);
    let delivered = by(deadline, deliver(&mut shell, payloads, &publish, &mut tally)).await;
    let left = if shell.node.is_connected() {
        leave(&mut shell, &mut tally, delivered.is_ok()).await
    } else {
        Ok(())
    };
    delivered.and(left).and(tally.result())
}

/// What `work` gives, or that it took too long.
async fn by<T>(
    deadline: Option<(tokio::time::Instant, Duration)>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match deadline {
        Some((at, limit)) => timeout_at(at, work).await.unwrap_or(Err(Failure::TimedOut(limit))),
        None => work.await,
    }
}

/// QoS −1: no connection, no answer (§6.8).
async fn throw(
    mut shell: Shell,
    mut payloads: mpsc::Receiver<Result<Bytes, Failure>>,
    publish: &Publish,
) -> Result<(), Failure> {
    while let Some(payload) = payloads.recv().await {
        hand_over(&mut shell, payload?, publish)?;
        shell.flush().await?;
        while shell.node.poll_event().is_some() {}
        shell.check().await?;
    }
    Ok(())
}

async fn deliver(
    shell: &mut Shell,
    mut payloads: mpsc::Receiver<Result<Bytes, Failure>>,
    publish: &Publish,
    tally: &mut Tally,
) -> Result<(), Failure> {
    shell.connect().await?;
    tally.to = shell.to(); // the first address of the host that answered
    let mut more = true;
    while more || shell.node.pending() > 0 || shell.node.has_events() {
        let room = shell.node.pending() < LINES_AHEAD;
        tokio::select! {
            payload = payloads.recv(), if more && room => match payload {
                Some(payload) => {
                    hand_over(shell, payload?, publish)?;
                    tally.total += 1;
                }
                None => more = false,
            },
            event = shell.event() => match event? {
                Event::Published(_, Outcome::Refused(code)) | Event::Refused(code) => tally.refused(code),
                Event::Published(_, Outcome::GaveUp) => {
                    return Err(Failure::GaveUp { to: shell.to(), attempts: shell.attempts() });
                }
                Event::Published(_, Outcome::Uncertain) => {
                    eprintln!("mqtt-sn-node: the gateway restarted in between: a message may have come twice");
                }
                event => shell.report(event, publish.node.options.reconnect.is_some())?,
            },
        }
    }
    Ok(())
}

/// Takes leave. The answer to that comes after a refusal of what was sent before, for which nobody waits otherwise at
/// QoS 0; after a failure it matters less.
async fn leave(shell: &mut Shell, tally: &mut Tally, delivered: bool) -> Result<(), Failure> {
    let left = shell.disconnect(|event| {
        if let Event::Refused(code) = event {
            tally.refused(code);
        }
    });
    if delivered { left.await } else { timeout(FAREWELL, left).await.unwrap_or(Ok(())) }
}

/// How many messages there were, and how many the gateway did not want.
#[derive(Debug)]
struct Tally {
    to: Place,
    /// There is only one: its refusal is the result, and no line of its own.
    single: bool,
    total: u64,
    refused: u64,
    last: Option<ReturnCode>,
}

impl Tally {
    fn new(shell: &Shell, publish: &Publish) -> Self {
        let single = matches!(publish.payload, Payload::One(_));
        Self { to: shell.to(), single, total: 0, refused: 0, last: None }
    }

    fn refused(&mut self, code: ReturnCode) {
        self.refused += 1;
        self.last = Some(code);
        if !self.single {
            eprintln!("mqtt-sn-node: {}", Failure::PublishRefused { to: self.to.clone(), code });
        }
    }

    fn result(&self) -> Result<(), Failure> {
        match self.last {
            None => Ok(()),
            Some(code) if self.single => Err(Failure::PublishRefused { to: self.to.clone(), code }),
            Some(_) => Err(Failure::SomeRefused { refused: self.refused, total: self.total }),
        }
    }
}

fn hand_over(shell: &mut Shell, payload: Bytes, publish: &Publish) -> Result<(), Failure> {
    let (topic, qos, retain) = (publish.topic.clone(), publish.qos, publish.retain);
    match shell.node.publish(Instant::now(), topic, payload, qos, retain) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Publish(error)),
    }
}

/// The payloads one by one. Lines are read by a thread of their own, which nobody waits for: standard input may be silent
/// for ever.
fn payloads(payload: &Payload) -> mpsc::Receiver<Result<Bytes, Failure>> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    match payload {
        Payload::One(payload) => {
            let _ = sender.try_send(Ok(payload.clone()));
        }
        Payload::Lines { hex } => {
            let hex = *hex;
            std::thread::spawn(move || {
                for line in std::io::stdin().lock().split(b'\n') {
                    let payload = line.map_err(Failure::Stdin).and_then(|line| read_line(line, hex));
                    if sender.blocking_send(payload).is_err() {
                        return;
                    }
                }
            });
        }
    }
    receiver
}

fn read_line(mut line: Vec<u8>, hex: bool) -> Result<Bytes, Failure> {
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    if !hex {
        return Ok(line.into());
    }
    value::hex(&String::from_utf8_lossy(&line))
        .map_err(|e| Failure::Usage(format!("a line of standard input {e}")))
}
