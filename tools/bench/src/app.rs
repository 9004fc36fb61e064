//! An application at the broker: an MQTT client on a TCP socket of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt_sn_gateway::mqtt::{Connection, Event, Message, Options, QoS, Session};
use mqtt_sn_gateway::topic::{TopicFilter, TopicName};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::failure::{Attempt, Failure};
use crate::figures::Histogram;
use crate::stamp;

/// How long a broker may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Octets read at once.
const READ_MAX: usize = 64 << 10;

pub(crate) struct App {
    pub(crate) connection: Connection,
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl App {
    pub(crate) fn connect(broker: SocketAddr, name: &str) -> Result<Self, Failure> {
        let socket = TcpStream::connect(broker).attempt("connect to the broker")?;
        socket.set_nodelay(true).attempt("set TCP_NODELAY")?;
        let mut options = Options::new(name);
        options.session = Session::Clean;
        options.keep_alive = Duration::ZERO;
        // Nothing is to wait but for the broker.
        options.queue = 1 << 20;
        options.queue_octets = 256 << 20;
        let mut connection = Connection::new(options);
        connection.handle_connected(Instant::now()).map_err(|e| Failure::Broker(e.to_string()))?;
        let mut app = Self { connection, socket, buffer: vec![0; READ_MAX] };
        app.live_until("a CONNACK", |app, _| app.connection.is_connected())?;
        Ok(app)
    }

    pub(crate) fn subscribe(&mut self, filter: &str, qos: QoS) -> Result<(), Failure> {
        let wrong = |e: &dyn std::fmt::Display| Failure::Broker(e.to_string());
        let filter = TopicFilter::new(filter).map_err(|e| wrong(&e))?;
        self.connection.subscribe(&[(filter, qos)]).map_err(|e| wrong(&e))?;
        self.live_until("a SUBACK", |_, event| matches!(event, Some(Event::Subscribed(..))))
    }

    /// Hands a message to the connection; [`App::flush`] sends it.
    pub(crate) fn publish(&mut self, topic: &TopicName, payload: Bytes, qos: QoS) -> Result<(), Failure> {
        let message = Message { topic: topic.clone(), payload, qos, retain: false };
        self.connection.publish(message).map(drop).map_err(|e| Failure::Broker(e.to_string()))
    }

    /// Writes what is to be written.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        while let Some(octets) = self.connection.take_output(Instant::now()) {
            self.socket.write_all(&octets).attempt("write to the broker")?;
        }
        Ok(())
    }

    /// Reads once, for at most `within`, and hands on what has happened.
    pub(crate) fn live(&mut self, within: Duration, hear: impl FnMut(&Event)) -> Result<(), Failure> {
        self.flush()?;
        let mut socket = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        wait(&mut socket, within)?;
        if is_ready(&socket[0]) { self.read(hear) } else { Ok(()) }
    }

    /// The same of many: waits until one of them has something to read.
    pub(crate) fn live_all(
        apps: &mut [Self],
        within: Duration,
        mut hear: impl FnMut(&Event),
    ) -> Result<(), Failure> {
        let mut sockets: Vec<_> =
            apps.iter().map(|app| PollFd::new(app.socket.as_fd(), PollFlags::POLLIN)).collect();
        wait(&mut sockets, within)?;
        let ready: Vec<_> = sockets.iter().map(is_ready).collect();
        for (app, _) in apps.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            app.read(&mut hear)?;
        }
        Ok(())
    }

    /// Reads what is there, and hands on what has happened.
    fn read(&mut self, mut hear: impl FnMut(&Event)) -> Result<(), Failure> {
        let len = self.socket.read(&mut self.buffer).attempt("read from the broker")?;
        if len == 0 {
            return Err(Failure::Broker("closed the connection".into()));
        }
        let octets = self.buffer.get(..len).unwrap_or_default();
        let heard = self.connection.handle_bytes(Instant::now(), octets);
        heard.map_err(|error| Failure::Broker(error.to_string()))?;
        while let Some(event) = self.connection.poll_event() {
            hear(&event);
            if let Event::Message { delivery: Some(delivery), .. } = event {
                self.connection.settle(delivery);
            }
        }
        self.flush()
    }

    /// The socket, and the octets of a first PUBLISH.
    pub(crate) fn take_apart(mut self, topic: &TopicName, qos: QoS) -> Result<(TcpStream, Bytes), Failure> {
        self.publish(topic, stamp::bytes(), qos)?;
        let octets = self.connection.take_output(Instant::now());
        self.socket.set_read_timeout(Some(PATIENCE)).attempt("set a timeout")?;
        Ok((self.socket, octets.unwrap_or_default()))
    }

    /// Waits until the broker has acknowledged everything, and everything has left.
    pub(crate) fn settle(&mut self) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        while self.connection.unfinished() > 0 {
            if Instant::now() > end {
                let what = "acknowledging by the broker".into();
                return Err(Failure::Late { what, seconds: PATIENCE.as_secs() });
            }
            self.live(Duration::from_millis(10), |_| {})?;
        }
        self.flush()
    }

    fn live_until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&Self, Option<&Event>) -> bool,
    ) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        while Instant::now() < end {
            self.live(Duration::from_millis(10), |event| events.push(event.clone()))?;
            if done(self, None) || events.drain(..).any(|event| done(self, Some(&event))) {
                return Ok(());
            }
        }
        Err(Failure::Late { what: what.into(), seconds: PATIENCE.as_secs() })
    }

    /// Counts what arrives, in a thread of its own, until the value that is returned is dropped.
    pub(crate) fn listen(mut self) -> Listener {
        let heard = Arc::new(Heard::default());
        let shared = heard.clone();
        let thread = thread::spawn(move || {
            while !shared.over.load(Ordering::Relaxed) {
                let (mut count, mut latencies) = (0, Vec::new());
                self.live(Duration::from_millis(100), |event| {
                    if let Event::Message { message, .. } = event {
                        count += 1;
                        latencies.extend(stamp::age(&message.payload));
                    }
                })?;
                let mut histogram = shared.latency.lock().unwrap_or_else(PoisonError::into_inner);
                latencies.into_iter().for_each(|latency| histogram.add(latency));
                shared.count.fetch_add(count, Ordering::Release);
            }
            Ok(())
        });
        Listener { heard, thread: Some(thread) }
    }
}

/// Waits for sockets to the microsecond: their own time limits are as coarse as the system's clock ticks.
fn wait(sockets: &mut [PollFd], within: Duration) -> Result<(), Failure> {
    match ppoll(sockets, Some(TimeSpec::from_duration(within)), None) {
        Err(Errno::EINTR) | Ok(_) => Ok(()),
        Err(error) => Err(std::io::Error::from(error)).attempt("wait for the broker"),
    }
}

fn is_ready(socket: &PollFd) -> bool {
    socket.revents().is_some_and(|events| !events.is_empty())
}

/// An application that counts in the background.
pub(crate) struct Listener {
    heard: Arc<Heard>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

#[derive(Default)]
struct Heard {
    count: AtomicU64,
    latency: Mutex<Histogram>,
    over: AtomicBool,
}

impl Listener {
    /// Messages since it listens.
    pub(crate) fn count(&self) -> u64 {
        self.heard.count.load(Ordering::Acquire)
    }

    /// The latencies of messages since the last call.
    pub(crate) fn take_latency(&self) -> Histogram {
        std::mem::take(&mut *self.heard.latency.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until it has heard `count` messages since it listens, or none for a while. Returns when the last one came.
    pub(crate) fn wait_for(&self, count: u64, quiet: Duration) -> Instant {
        let (mut last, mut since) = (self.count(), Instant::now());
        while last < count && since.elapsed() < quiet {
            thread::sleep(Duration::from_millis(1));
            let now = self.count();
            if now > last {
                (last, since) = (now, Instant::now());
            }
        }
        since
    }

    /// Ends it; the error that ended it before, if one did.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        self.heard.over.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Failure::Broker("the application panicked".into())),
            None => Ok(()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.heard.over.store(true, Ordering::Relaxed);
    }
}
