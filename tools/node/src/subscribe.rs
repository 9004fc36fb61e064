//! `mqtt-sn-node sub`.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use mqtt_sn_gateway::node::{Event, Message, Topic};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::args::Subscribe;
use crate::failure::Failure;
use crate::shell::Shell;

pub(crate) async fn run(subscribe: Subscribe) -> Result<(), Failure> {
    let mut shell =
        Shell::open(&subscribe.node.way, subscribe.node.options.clone(), subscribe.node.debug).await?;
    let mut came = 0;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::Runtime)?;
    let limit = async {
        match subscribe.timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        result = receive(&mut shell, &subscribe, &mut came) => result,
        () = limit => match (subscribe.timeout, subscribe.count) {
            _ if !shell.has_heard() => Err(Failure::NoAnswer { to: shell.to(), attempts: shell.attempts() }),
            (Some(limit), Some(wanted)) => Err(Failure::Missing { came, wanted, limit }),
            _ => Ok(()),
        },
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    if shell.node.is_connected() || shell.node.is_asleep() {
        // An answer to this matters to nobody who waits at a terminal.
        let _ = timeout(Duration::from_secs(1), shell.disconnect(drop)).await;
    }
    ended
}

/// Connects, subscribes, and prints until there is enough.
async fn receive(shell: &mut Shell, subscribe: &Subscribe, came: &mut u64) -> Result<(), Failure> {
    shell.connect().await?;
    for filter in &subscribe.filters {
        shell.node.subscribe(Instant::now(), filter.clone(), subscribe.qos).map_err(Failure::Subscribe)?;
    }
    shell.sleep = subscribe.sleep;
    while subscribe.count.is_none_or(|count| *came < count) {
        match shell.event().await? {
            Event::Message(message) => {
                *came += 1;
                match print(&message, subscribe) {
                    // Whoever reads has had enough.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                    printed => printed.map_err(Failure::Stdout)?,
                }
            }
            Event::Subscribed { filter, result: Err(code) } => {
                return Err(Failure::SubscribeRefused { to: shell.to(), filter: filter.to_string(), code });
            }
            event => shell.report(event, true)?,
        }
    }
    Ok(())
}

fn print(message: &Message, subscribe: &Subscribe) -> io::Result<()> {
    let mut line = Vec::new();
    if subscribe.verbose {
        match &message.topic {
            Topic::Predefined(id) if subscribe.names.contains_key(id) => {
                write!(line, "{} ", subscribe.names[id])?
            }
            topic => write!(line, "{topic} ")?,
        }
    }
    if subscribe.hex {
        let hex = message.payload.iter().fold(String::new(), |mut hex, octet| {
            let _ = write!(hex, "{octet:02x}");
            hex
        });
        line.extend_from_slice(hex.as_bytes());
    } else {
        line.extend_from_slice(&message.payload);
    }
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
