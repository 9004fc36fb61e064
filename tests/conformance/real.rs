//! Real brokers, a new one for each row, and the test's own client there: it publishes what a row says the broker has, and it
//! subscribes to everything, so that what the gateway publishes is seen to have come out.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mqtt_sn_gateway::broker;
use mqtt_sn_gateway::broker::tcp::serve;
use rumqttc::mqttbytes::Error;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, PubRel, Publish, Subscribe};
use socket2::Socket;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::broker::{PROBE_TOPIC, reserved};
use crate::dialect::quality;
use crate::script::Message;

/// Where brokers listen: not where gateways and clients do.
const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// How long a broker may take to start, and to answer the test's own client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker and the test's client there.
pub(crate) struct Real {
    addr: SocketAddr,
    peer: Peer,
    _running: Running,
}

/// Ends with the value.
enum Running {
    Process { child: Child, _directory: TempDir, _port: Socket },
    Thread { stop: Option<oneshot::Sender<()>>, thread: Option<JoinHandle<()>> },
}

impl Real {
    /// Debian's Mosquitto as it comes, but for who may connect.
    pub(crate) fn mosquitto() -> Result<Self, String> {
        let (running, addr) = start_mosquitto()?;
        Self::around(running, addr)
    }

    /// The gateway's own broker.
    pub(crate) fn embedded() -> Result<Self, String> {
        let listener = TcpListener::bind((HOST, 0)).map_err(|error| error.to_string())?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let addr = listener.local_addr().map_err(|error| error.to_string())?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve(listener, broker::Limits::default(), async { stopped.await.unwrap_or_default() }).await;
            });
        });
        Self::around(Running::Thread { stop: Some(stop), thread: Some(thread) }, addr)
    }

    fn around(running: Running, addr: SocketAddr) -> Result<Self, String> {
        let peer = Peer::connect(addr)?;
        Ok(Self { addr, peer, _running: running })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Publishes, and returns when the broker has handed it out.
    pub(crate) fn publish(&self, message: &Message) -> Result<(), String> {
        self.peer.publish(message)?;
        self.hands_out(&message.topic, &message.payload, PATIENCE)
    }

    /// Waits for the next message on this topic.
    pub(crate) fn hands_out(&self, topic: &str, payload: &[u8], patience: Duration) -> Result<(), String> {
        self.peer.take(topic, payload, patience)
    }

    /// A message that nobody has waited for.
    pub(crate) fn handed_out(&self) -> Option<String> {
        let state = self.peer.shared.state();
        state.messages.first().map(|publish| format!("{publish:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match self {
            Self::Process { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Self::Thread { stop, thread } => {
                drop(stop.take());
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}

fn start_mosquitto() -> Result<(Running, SocketAddr), String> {
    let (port, addr) = reserved(HOST).map_err(|error| error.to_string())?;
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let config = directory.path().join("mosquitto.conf");
    let text = format!("listener {} {HOST}\nallow_anonymous true\npersistence false\n", addr.port());
    std::fs::write(&config, text).map_err(|error| error.to_string())?;
    // Debian puts it where administrators look.
    let places = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
    let place = places.into_iter().find(|place| std::path::Path::new(place).is_file()).unwrap_or("mosquitto");
    let mut command = Command::new(place);
    command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().map_err(|error| format!("mosquitto (apt-get install mosquitto): {error}"))?;
    let running = Running::Process { child, _directory: directory, _port: port };
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if TcpStream::connect(addr).is_ok() {
            return Ok((running, addr));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err("mosquitto does not listen".into())
}

/// The test's own client.
struct Peer {
    stream: Mutex<TcpStream>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    messages: Vec<Publish>,
    /// Publications of ours that the broker is done with.
    done: u16,
    last_id: u16,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Peer {
    fn connect(broker: SocketAddr) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("the test's own client: {error}");
        let mut stream = TcpStream::connect(broker).map_err(problem)?;
        stream.set_nodelay(true).map_err(problem)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(problem)?;
        let mut buffer = BytesMut::new();
        let mut connect = Connect::new("test");
        connect.keep_alive = 0;
        write(&mut stream, &Packet::Connect(connect)).map_err(problem)?;
        let Some(Packet::ConnAck(_)) = read(&mut stream, &mut buffer) else {
            return Err("the broker does not accept the test's own client".into());
        };
        // Its answers at QoS 0 need no acknowledgement of ours.
        let mut subscribe = Subscribe::new("#", QoS::AtMostOnce);
        subscribe.pkid = 1;
        write(&mut stream, &Packet::Subscribe(subscribe)).map_err(problem)?;
        let Some(Packet::SubAck(_)) = read(&mut stream, &mut buffer) else {
            return Err("the broker does not let the test's own client subscribe".into());
        };
        stream.set_read_timeout(None).map_err(problem)?;
        let shared = Arc::new(Shared::default());
        let (reader, also) = (stream.try_clone().map_err(problem)?, Arc::clone(&shared));
        thread::spawn(move || listen(reader, buffer, &also));
        Ok(Self { stream: Mutex::new(stream), shared })
    }

    /// Publishes; returns when the broker has acknowledged it.
    fn publish(&self, message: &Message) -> Result<(), String> {
        let mut publish = Publish::new(&message.topic, quality(message.qos), message.payload.clone());
        publish.retain = message.retain;
        let id = {
            let mut state = self.shared.state();
            state.last_id += u16::from(message.qos > 0);
            state.last_id
        };
        publish.pkid = if message.qos > 0 { id } else { 0 };
        write(&mut self.stream.lock().unwrap(), &Packet::Publish(publish))
            .map_err(|error| error.to_string())?;
        let (state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), PATIENCE, |state| state.done < id)
            .unwrap();
        drop(state);
        if timeout.timed_out() {
            Err("the broker does not acknowledge what the test publishes".into())
        } else {
            Ok(())
        }
    }

    fn take(&self, topic: &str, payload: &[u8], patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            let at = state.messages.iter().position(|message| message.topic == topic);
            if let Some(message) = at.map(|at| state.messages.remove(at)) {
                let is_same = message.payload == payload;
                return if is_same { Ok(()) } else { Err(format!("handed out by the broker: {message:?}")) };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the broker has not handed out anything on {topic}"));
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.lock().unwrap().shutdown(Shutdown::Both);
    }
}

fn listen(mut stream: TcpStream, mut buffer: BytesMut, shared: &Shared) {
    while let Some(packet) = read(&mut stream, &mut buffer) {
        match packet {
            Packet::Publish(publish) if publish.topic != PROBE_TOPIC => {
                shared.state().messages.push(publish);
            }
            Packet::PubAck(ack) => shared.state().done = ack.pkid,
            Packet::PubComp(comp) => shared.state().done = comp.pkid,
            Packet::PubRec(rec) => {
                let _ = write(&mut stream, &Packet::PubRel(PubRel::new(rec.pkid)));
            }
            _ => {}
        }
        shared.changed.notify_all();
    }
}

fn write(stream: &mut TcpStream, packet: &Packet) -> std::io::Result<()> {
    let mut octets = BytesMut::new();
    packet.write(&mut octets, usize::MAX).unwrap();
    stream.write_all(&octets)
}

/// None: the connection is closed, or nothing comes.
fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> Option<Packet> {
    loop {
        match Packet::read(buffer, usize::MAX) {
            Ok(packet) => return Some(packet),
            Err(Error::InsufficientBytes(_)) => {}
            Err(_) => return None,
        }
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        buffer.extend_from_slice(&chunk[..count]);
    }
}
