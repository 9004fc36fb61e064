//! A subscriber at the broker, which also publishes what the sensors are sent.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_sn_gateway::mqtt::{Connection, Event, Message, Options, QoS, Token};
use mqtt_sn_gateway::topic::TopicFilter;
use mqtt_sn_gateway::wire::Qos;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::down::Letter;
use crate::failure::Failure;
use crate::shell::Gateway;

/// How long the broker may take to let us subscribe, and at the end to forget us.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts to come back to the broker.
const PAUSE: Duration = Duration::from_millis(500);

/// Messages to sensors that the broker has not acknowledged: more wait outside, while it is away or slow.
const UNDER_WAY: usize = 256;

/// What the broker says, and when.
#[derive(Debug)]
pub(super) enum Heard {
    /// A message of a sensor.
    Message(Message, Instant),
    /// It has taken over a message to a sensor.
    Taken(Letter, Instant),
}

/// A message to a sensor.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) letter: Letter,
    pub(super) message: Message,
}

/// A subscriber with a session of its own, so that it misses nothing while it is away; the session is removed at the end.
/// It has a thread of its own: brokers drop messages for a subscriber that is slow to acknowledge, and a thousand sensors
/// may keep one thread busy for longer than that.
#[derive(Debug)]
pub(super) struct Verifier {
    ended: oneshot::Receiver<u64>,
    stop: watch::Sender<bool>,
}

impl Verifier {
    /// Connects and subscribes before it returns.
    pub(super) async fn start(
        broker: Gateway,
        filter: TopicFilter,
        qos: Qos,
        run: u32,
        heard: mpsc::Sender<Heard>,
        posts: mpsc::Receiver<Post>,
    ) -> Result<Self, Failure> {
        let name = format!("{}:{}", broker.host, broker.port);
        let failed = |reason: String| Failure::Broker { broker: name.clone(), reason };
        let (stop, stopped) = watch::channel(false);
        let (ready, subscribed) = oneshot::channel();
        let subscriber = Subscriber {
            connection: Connection::new(Options::new(format!("mqtt-sn-node-verify-{run:08x}"))),
            broker,
            filter,
            qos: if qos == Qos::ExactlyOnce { QoS::ExactlyOnce } else { QoS::AtLeastOnce },
            ready: Some(ready),
            heard,
            posts,
            letters: BTreeMap::new(),
            gaps: 0,
        };
        let (done, ended) = oneshot::channel();
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(|e| failed(e.to_string()))?;
        thread::spawn(move || {
            let _ = done.send(runtime.block_on(subscriber.run(stopped)));
        });
        match timeout(PATIENCE, subscribed).await {
            Ok(Ok(Ok(()))) => Ok(Self { ended, stop }),
            Ok(Ok(Err(reason))) => Err(failed(reason)),
            Ok(Err(_)) | Err(_) => Err(failed("it does not answer".into())),
        }
    }

    /// Leaves the broker, and says how often it forgot us in between.
    pub(super) async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        match timeout(PATIENCE, self.ended).await {
            Ok(Ok(gaps)) => gaps,
            Ok(Err(_)) | Err(_) => 0,
        }
    }
}

struct Subscriber {
    connection: Connection,
    broker: Gateway,
    filter: TopicFilter,
    /// What the broker must grant: less may lose or double by itself.
    qos: QoS,
    /// Until we have subscribed for the first time.
    ready: Option<oneshot::Sender<Result<(), String>>>,
    heard: mpsc::Sender<Heard>,
    posts: mpsc::Receiver<Post>,
    /// Those under way.
    letters: BTreeMap<Token, Letter>,
    gaps: u64,
}

/// How a connection ended.
enum End {
    /// Connect again at once: the connection asks for it.
    Again,
    /// Connect again after a pause.
    Failed(String),
    /// The broker has forgotten us, as we asked.
    Purged,
}

impl Subscriber {
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> u64 {
        loop {
            let end = self.serve(&mut stop).await;
            self.connection.handle_closed();
            let reason = match end {
                End::Again => continue,
                End::Purged => return self.gaps,
                End::Failed(reason) => reason,
            };
            if let Some(ready) = self.ready.take() {
                let _ = ready.send(Err(reason));
                return self.gaps;
            }
            sleep(PAUSE).await;
        }
    }

    async fn serve(&mut self, stop: &mut watch::Receiver<bool>) -> End {
        match self.converse(stop).await {
            Ok(end) => end,
            Err(reason) => End::Failed(reason),
        }
    }

    /// One TCP connection.
    async fn converse(&mut self, stop: &mut watch::Receiver<bool>) -> Result<End, String> {
        let mut addresses = self.broker.resolve().await.map_err(|e| crate::chain(&e))?;
        let mut socket =
            TcpStream::connect(&*addresses.make_contiguous()).await.map_err(|e| e.to_string())?;
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        self.connection.handle_connected(Instant::now()).map_err(|e| e.to_string())?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let end = self.events().await?;
            while let Some(output) = self.connection.take_output(Instant::now()) {
                socket.write_all(&output).await.map_err(|e| e.to_string())?;
            }
            if let Some(end) = end {
                return Ok(end);
            }
            tokio::select! {
                read = socket.read(&mut buffer) => match read.map_err(|e| e.to_string())? {
                    0 => return Err("it closed the connection".into()),
                    len => self.connection.handle_bytes(Instant::now(), &buffer[..len]),
                },
                () = super::sleep(self.connection.poll_timeout()) => self.connection.handle_timeout(Instant::now()),
                Some(post) = self.posts.recv(), if self.has_room() => {
                    self.post(post).await?;
                    Ok(())
                }
                Ok(()) = stop.changed() => {
                    self.connection.purge();
                    Ok(())
                }
            }
            .map_err(|e| e.to_string())?;
        }
    }

    fn has_room(&self) -> bool {
        self.connection.is_connected() && self.connection.unfinished() < UNDER_WAY
    }

    async fn post(&mut self, Post { letter, message }: Post) -> Result<(), String> {
        match self.connection.publish(message).map_err(|e| e.to_string())? {
            Some(token) => {
                self.letters.insert(token, letter);
            }
            None => self.tell(Heard::Taken(letter, Instant::now())).await,
        }
        Ok(())
    }

    /// An error: nobody listens any more, the run is over.
    async fn tell(&self, heard: Heard) {
        let _ = self.heard.send(heard).await;
    }

    async fn events(&mut self) -> Result<Option<End>, String> {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Connected { session_present: false } => {
                    self.gaps += u64::from(self.ready.is_none());
                    let filters = [(self.filter.clone(), self.qos)];
                    self.connection.subscribe(&filters).map_err(|e| e.to_string())?;
                }
                Event::Subscribed(_, granted) => match (granted.first(), self.ready.take()) {
                    (Some(Ok(qos)), Some(ready)) if *qos >= self.qos => {
                        let _ = ready.send(Ok(()));
                    }
                    (Some(Ok(qos)), None) if *qos >= self.qos => {}
                    (_, ready) => {
                        self.ready = ready;
                        let (filter, qos) = (&self.filter, self.qos as u8);
                        return Err(format!("it refuses the subscription to {filter} at QoS {qos}"));
                    }
                },
                Event::Message { message, delivery, .. } => {
                    if let Some(delivery) = delivery {
                        self.connection.settle(delivery);
                    }
                    self.tell(Heard::Message(message, Instant::now())).await;
                }
                Event::Completed(token, Ok(())) => {
                    if let Some(letter) = self.letters.remove(&token) {
                        self.tell(Heard::Taken(letter, Instant::now())).await;
                    }
                }
                Event::Refused(refusal) => return Err(refusal.to_string()),
                Event::Reconnect => return Ok(Some(End::Again)),
                Event::Purged => return Ok(Some(End::Purged)),
                _ => {}
            }
        }
        Ok(None)
    }
}
