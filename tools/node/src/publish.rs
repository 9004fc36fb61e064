//! `mqtt-sn-node pub`.

use std::io::BufRead;
use std::time::Instant;

use bytes::Bytes;
use mqtt_sn_gateway::node::{Event, Outcome};
use mqtt_sn_gateway::wire::Qos;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::args::{Payload, Publish};
use crate::failure::Failure;
use crate::shell::Shell;
use crate::value;

/// Lines read ahead of the gateway's acknowledgements.
const LINES_AHEAD: usize = 10;

pub(crate) async fn run(publish: Publish) -> Result<(), Failure> {
    let limit = publish.timeout;
    let work = async {
        let shell =
            Shell::open(&publish.node.gateway, publish.node.options.clone(), publish.node.debug).await?;
        let payloads = payloads(&publish.payload);
        if publish.qos == Qos::MinusOne {
            throw(shell, payloads, &publish).await
        } else {
            deliver(shell, payloads, &publish).await
        }
    };
    match limit {
        Some(limit) => timeout(limit, work).await.unwrap_or(Err(Failure::TimedOut(limit))),
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
    mut shell: Shell,
    mut payloads: mpsc::Receiver<Result<Bytes, Failure>>,
    publish: &Publish,
) -> Result<(), Failure> {
    shell.connect().await?;
    let (mut more, mut total, mut refused) = (true, 0, 0);
    while more || shell.node.pending() > 0 || shell.node.has_events() {
        let room = shell.node.pending() < LINES_AHEAD;
        tokio::select! {
            payload = payloads.recv(), if more && room => match payload {
                Some(payload) => {
                    hand_over(&mut shell, payload?, publish)?;
                    total += 1;
                }
                None => more = false,
            },
            event = shell.event() => match event? {
                Event::Published(_, Outcome::Refused(code)) => {
                    let refusal = Failure::PublishRefused { to: shell.to(), code };
                    if total == 1 && !more {
                        return Err(refusal);
                    }
                    eprintln!("mqtt-sn-node: {refusal}");
                    refused += 1;
                }
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
    shell.disconnect().await?;
    if refused > 0 { Err(Failure::SomeRefused { refused, total }) } else { Ok(()) }
}

fn hand_over(shell: &mut Shell, payload: Bytes, publish: &Publish) -> Result<(), Failure> {
    let (topic, qos, retain) = (publish.topic.clone(), publish.qos, publish.retain);
    match shell.node.publish(Instant::now(), topic, payload, qos, retain) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Usage(error.to_string())),
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
