//! A pseudo-terminal behind a link, as a radio is behind its name in /dev/serial/by-id: it can be pulled out and put back.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;

use crate::soon;

/// The other end of a serial device.
#[derive(Debug)]
pub(crate) struct Pty {
    master: AsyncFd<PtyMaster>,
    /// The device itself, below `/dev/pts`.
    pub(crate) device: PathBuf,
    /// The name that goes with it: another test may be given the same device next.
    name: Option<PathBuf>,
    /// Without it the test's end would be gone whenever the gateway's is.
    slave: Option<OwnedFd>,
}

impl Pty {
    pub(crate) fn new() -> Self {
        let master = Self::locked();
        unlockpt(&master).unwrap();
        let device = PathBuf::from(ptsname_r(&master).unwrap());
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let slave = open(&device, flags, Mode::empty()).unwrap();
        let mut terminal = tcgetattr(&slave).unwrap();
        cfmakeraw(&mut terminal);
        tcsetattr(&slave, SetArg::TCSANOW, &terminal).unwrap();
        #[expect(deprecated, reason = "what replaces it is unsafe; the master stays where it is, open")]
        let master = AsyncFd::new(master).unwrap();
        Self { master, device, name: None, slave: Some(slave) }
    }

    /// One that nobody can open.
    pub(crate) fn locked() -> PtyMaster {
        let master =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        master
    }

    /// One that is plugged in under this name. Dropped, it is pulled out.
    pub(crate) fn plugged(name: &Path) -> Self {
        let mut pty = Self::new();
        pty.plug(name);
        pty
    }

    /// Plugs it in, as [`Self::plugged`].
    pub(crate) fn plug(&mut self, name: &Path) {
        self.name = Some(name.to_owned());
        let new = name.with_extension("new");
        std::os::unix::fs::symlink(&self.device, &new).unwrap();
        std::fs::rename(&new, name).unwrap();
    }

    /// Leaves the device to whoever else has it open; there must be somebody.
    pub(crate) fn let_go(&mut self) {
        self.slave = None;
    }

    /// Writes all of it, as fast as the other end reads.
    pub(crate) async fn write(&self, mut octets: &[u8]) {
        while !octets.is_empty() {
            let mut ready = soon("room on the line", self.master.writable()).await.unwrap();
            if let Ok(written) = ready.try_io(|master| Ok(nix::unistd::write(master.get_ref(), octets)?)) {
                octets = &octets[written.unwrap()..];
            }
        }
    }

    /// Waits until something of what was written can be read at the device, before anybody has opened it.
    pub(crate) async fn is_through(&self) {
        #[expect(deprecated, reason = "what replaces it is unsafe; the device stays open")]
        let near = AsyncFd::new(self.slave.as_ref().unwrap().try_clone().unwrap()).unwrap();
        drop(near.readable().await.unwrap());
    }

    /// Reads what comes next; never nothing. Cancel-safe.
    pub(crate) async fn read(&self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.master.readable().await.unwrap();
            if let Ok(read) = ready.try_io(|master| Ok(nix::unistd::read(master.get_ref(), &mut buffer)?)) {
                return buffer[..read.unwrap()].to_vec();
            }
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Before the device, as udev does.
        if let Some(name) =
            self.name.take_if(|name| std::fs::read_link(name).is_ok_and(|to| to == self.device))
        {
            let _ = std::fs::remove_file(name);
        }
    }
}
