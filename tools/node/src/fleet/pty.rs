//! A pseudo-terminal with a [`Radio`] at its far end: a thin shell with a clock. The gateway opens the near end like any serial
//! device.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use nix::fcntl::OFlag;
use nix::libc::O_NOCTTY;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::radio::{Heard, Radio, Tally};
use super::sleep;

/// How often it is looked whether somebody has opened the near end: that is told by nothing else.
const LOOK: Duration = Duration::from_millis(20);

/// Octets read at one time.
const READ_MAX: usize = 4096;

/// The far end, and the name of the near one.
#[derive(Debug)]
pub(super) struct Pty {
    master: Arc<PtyMaster>,
    path: PathBuf,
    /// A name of the near end that stays the same from run to run; removed with it.
    link: Option<PathBuf>,
}

impl Pty {
    /// A new one that nobody has opened, named by `link` as well. A link that is there already is replaced.
    pub(super) fn new(link: Option<&Path>) -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = PathBuf::from(ptsname_r(&master)?);
        // Without this, what is written before the gateway is there comes back as an echo. Closed again, or the far end would
        // not see the gateway come and go.
        let near = OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY).open(&path)?;
        let mut settings = tcgetattr(&near)?;
        cfmakeraw(&mut settings);
        tcsetattr(&near, SetArg::TCSANOW, &settings)?;
        drop(near);
        if let Some(link) = link {
            if link.is_symlink() {
                fs::remove_file(link)?;
            }
            symlink(&path, link)?;
        }
        Ok(Self { master: Arc::new(master), path, link: link.map(Path::to_owned) })
    }

    /// What the gateway is to open.
    pub(super) fn name(&self) -> &Path {
        self.link.as_deref().unwrap_or(&self.path)
    }

    /// Until somebody has opened the near end.
    pub(super) async fn opened(&self) {
        let mut look = interval(LOOK);
        while !self.is_open() {
            look.tick().await;
        }
    }

    /// Whether somebody has opened the near end.
    fn is_open(&self) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::empty())];
        // What cannot be asked is not there.
        let asked = poll(&mut fds, PollTimeout::ZERO).is_ok();
        asked && fds[0].revents().is_some_and(|events| !events.contains(PollFlags::POLLHUP))
    }

    /// What the runtime is to watch while the near end is open, and never longer: once closed, it stays closed to whoever
    /// watches it, though somebody opens it again.
    fn connection(&self) -> Option<Connection> {
        if !self.is_open() {
            return None;
        }
        #[expect(deprecated, reason = "a master keeps its descriptor, and what replaces this is unsafe")]
        AsyncFd::new(Arc::clone(&self.master)).ok().map(Connection)
    }
}

/// From the opening of the near end to its closing.
#[derive(Debug)]
struct Connection(AsyncFd<Arc<PtyMaster>>);

impl Connection {
    /// What the gateway has written by now.
    fn read_now(&self, buffer: &mut [u8]) -> Option<usize> {
        (&**self.0.get_ref()).read(buffer).ok()
    }

    /// What the gateway has written; an error if it has closed. May be dropped and called again.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |master| (&**master).read(buffer)).await
    }

    /// Writes some of it. May be dropped and called again.
    async fn write(&self, octets: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |master| (&**master).write(octets)).await
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(link) = &self.link
            && fs::read_link(link).is_ok_and(|to| to == self.path)
        {
            let _ = fs::remove_file(link);
        }
    }
}

/// The radio at the far end, until there are no nodes any more: `frames` of nodes go to the gateway, what it says to the
/// node by its number in `nodes`.
pub(super) async fn run(
    mut radio: Radio,
    pty: Pty,
    mut frames: mpsc::Receiver<(u32, Bytes)>,
    nodes: Vec<mpsc::Sender<Bytes>>,
) -> Tally {
    let mut look = interval(LOOK);
    let mut connection = pty.connection();
    let (mut out, mut buffer) = (BytesMut::new(), [0; READ_MAX]);
    radio.start(Instant::now());
    loop {
        let now = Instant::now();
        let room = radio.room().min(READ_MAX);
        if let Some(connection) = &connection
            && room > 0
            && let Some(len) = connection.read_now(&mut buffer[..room])
        {
            radio.handle_octets(now, &buffer[..len]);
        }
        radio.handle_timeout(now);
        while let Some(heard) = radio.poll_heard() {
            deliver(heard, &nodes);
        }
        out.extend_from_slice(&radio.poll_octets(now));
        if connection.is_none() {
            radio.hang_up();
            out.clear();
        }
        let room = radio.room().min(READ_MAX);
        tokio::select! {
            frame = frames.recv() => match frame {
                Some((node, frame)) => radio.handle_frame(Instant::now(), node, &frame),
                None => return radio.tally(),
            },
            read = read(&connection, &mut buffer[..room]), if room > 0 => match read {
                Ok(len) => radio.handle_octets(Instant::now(), &buffer[..len]),
                Err(_) => connection = None,
            },
            written = write(&connection, &out), if !out.is_empty() => match written {
                Ok(len) => out.advance(len),
                Err(_) => connection = None,
            },
            _ = look.tick(), if connection.is_none() => connection = pty.connection(),
            () = sleep(radio.poll_timeout()) => {}
        }
    }
}

async fn read(connection: &Option<Connection>, buffer: &mut [u8]) -> io::Result<usize> {
    match connection {
        Some(connection) => connection.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn write(connection: &Option<Connection>, octets: &[u8]) -> io::Result<usize> {
    match connection {
        Some(connection) => connection.write(octets).await,
        None => std::future::pending().await,
    }
}

/// A node that does not listen misses it.
fn deliver(heard: Heard, nodes: &[mpsc::Sender<Bytes>]) {
    match heard {
        Heard::One(node, frame) => {
            if let Some(node) = nodes.get(node as usize) {
                let _ = node.try_send(frame);
            }
        }
        Heard::All(frame) => {
            for node in nodes {
                let _ = node.try_send(frame.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mqtt_sn_gateway::framing::Framing;
    use tokio::io::{AsyncReadExt as Reading, AsyncWriteExt as Writing};
    use tokio_serial::SerialPortBuilderExt;

    use super::super::line::Noise;
    use super::super::radio::{Kind, Options};
    use super::*;

    #[tokio::test]
    async fn a_gateway_may_come_and_go_under_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("radio");
        symlink("/nowhere", &link).unwrap();
        let pty = Pty::new(Some(&link)).unwrap();
        assert_eq!(pty.name(), link);
        assert!(!pty.is_open());

        // With a speed, so that time has to pass between what comes and what goes.
        let noise = Noise { baud: 9600, corrupt: 0.0, byte_loss: 0.0 };
        let radio = Radio::new(Options { kind: Kind::Modem(Framing::Slip), noise }, 1, 0);
        let (frames, from_nodes) = mpsc::channel(10);
        let (to_node, mut node) = mpsc::channel(10);
        let task = tokio::spawn(async move {
            pty.opened().await;
            run(radio, pty, from_nodes, vec![to_node]).await
        });
        for round in 0..3 {
            let name = link.to_str().unwrap();
            let mut gateway = tokio_serial::new(name, 115_200).open_native_async().unwrap();
            Writing::write_all(&mut gateway, &[0xC0, 2, round, 0xC0]).await.unwrap();
            assert_eq!(node.recv().await.unwrap()[..], [2, round]);
            frames.send((0, Bytes::copy_from_slice(&[3, round]))).await.unwrap();
            let mut came = [0; 4];
            Reading::read_exact(&mut gateway, &mut came).await.unwrap();
            assert_eq!(came, [0xC0, 3, round, 0xC0]);
        }
        drop(frames);
        task.await.unwrap();
        assert!(!link.is_symlink(), "its name goes with it");
    }
}
