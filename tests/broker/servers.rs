//! What is checked: our broker on a thread, Mosquitto in a process.

use std::future::Future;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use mqtt_sn_gateway::broker::tcp::{Handle, Server};
use mqtt_sn_gateway::broker::{Broker, Limits};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Our broker, served from a thread of its own.
pub(crate) struct Ours {
    pub(crate) port: u16,
    handle: Handle,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Broker>,
}

impl Ours {
    pub(crate) fn start(limits: Limits) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), limits)
    }

    pub(crate) fn start_on(listener: TcpListener, limits: Limits) -> Self {
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let (started, handle) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = Server::new(listener, Broker::new(limits));
                started.send(server.handle()).unwrap();
                let stopped = async { stopped.await.unwrap_or_default() };
                server.run(stopped).await
            })
        });
        Self { port, handle: handle.recv().unwrap(), stop, thread }
    }

    /// Calls `f` with the running broker.
    pub(crate) fn with<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Broker, Instant) -> R + Send + 'static,
    ) -> R {
        block_on(self.handle.with(f)).unwrap()
    }

    pub(crate) fn stop(self) -> Broker {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A Mosquitto of its own, ended with the value.
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    process: Child,
    _directory: TempDir,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        // The port may be taken between our letting go and its taking hold.
        for _ in 0..3 {
            if let Some(started) = Self::try_start() {
                return started;
            }
        }
        panic!("mosquitto did not start on any of three free ports");
    }

    fn try_start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = TempDir::new().unwrap();
        let config = directory.path().join("mosquitto.conf");
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n");
        std::fs::write(&config, text).unwrap();
        let process =
            tool("mosquitto").arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.unwrap_or_else(|error| missing("mosquitto", &error));
        let mut mosquitto = Self { port, process, _directory: directory };
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(mosquitto);
            }
            if mosquitto.process.try_wait().unwrap().is_some() {
                return None;
            }
            sleep(Duration::from_millis(50));
        }
        None
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A program, also from where Debian puts what administrators run.
pub(crate) fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    if let Some(found) = path
        .split(':')
        .chain(["/usr/sbin"])
        .map(|dir| format!("{dir}/{name}"))
        .find(|file| std::path::Path::new(file).is_file())
    {
        command = Command::new(found);
    }
    command
}

#[track_caller]
pub(crate) fn missing(name: &str, error: &std::io::Error) -> ! {
    match error.kind() {
        ErrorKind::NotFound => panic!("{name} is not installed: apt-get install mosquitto mosquitto-clients"),
        _ => panic!("cannot start {name}: {error}"),
    }
}
