//! What the service manager is told (`sd_notify(3)`): that the gateway is ready, how it is, that it works, that it stops.
//!
//! The messages and the watchdog's time are of the crate `sd-notify`. They are sent by a socket of our own, since that crate waits
//! for a manager that does not read, and does not know the names in the abstract namespace that containers use.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::{debug, warn};

/// How long a status stands before the next may replace it, and before a message that the manager did not take is tried again:
/// true within a second, and no more than one wake-up in a second for it.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct Manager(Option<Connected>);

#[derive(Debug)]
struct Connected {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Half the time after which the manager takes a silent gateway for hung, if it does.
    beat: Option<Duration>,
    beat_due: Option<Instant>,
    ready: bool,
    stopping: bool,
    /// The status that it was told last.
    told: String,
    /// The status may have changed since it was looked at.
    is_stale: bool,
    look_due: Instant,
}

impl Manager {
    /// The one that NOTIFY_SOCKET names.
    pub(super) fn of_environment(now: Instant) -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self(None);
        };
        let beat = sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|beat| !beat.is_zero());
        match Connected::new(&name, beat, now) {
            Ok(manager) => Self(Some(manager)),
            Err(error) => {
                warn!(%error, socket = %name.display(), "the service manager cannot be told anything");
                Self(None)
            }
        }
    }

    /// When it has to be told something if nothing happens. Never without a manager.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let manager = self.0.as_ref()?;
        [manager.beat_due, manager.is_stale.then_some(manager.look_due)].into_iter().flatten().min()
    }

    /// The loop has done a turn of its work: the first time the gateway is ready. `status` is asked for once a second at most.
    pub(super) fn turned(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if let Some(manager) = &mut self.0 {
            manager.feed(now);
            manager.is_stale = true;
            if manager.look_due <= now {
                manager.tell(now, status());
            }
        }
    }

    /// The gateway stops because it was told to.
    pub(super) fn stopping(&mut self, now: Instant) {
        if let Some(manager) = &mut self.0 {
            manager.stopping = true;
            manager.tell(now, "stopping".to_owned());
        }
    }
}

impl Connected {
    fn new(name: &OsString, beat: Option<Duration>, now: Instant) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a path nor an abstract name",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            address,
            beat,
            beat_due: beat.map(|_| now),
            ready: false,
            stopping: false,
            told: String::new(),
            is_stale: true,
            look_due: now,
        })
    }

    fn feed(&mut self, now: Instant) {
        if let (Some(beat), Some(due)) = (self.beat, self.beat_due)
            && due <= now
        {
            // A manager that does not take it is asked to again, long before its time is over.
            let wait = if self.send(&[NotifyState::Watchdog]) { beat } else { beat.min(STATUS_INTERVAL) };
            self.beat_due = Some(now + wait);
        }
    }

    fn tell(&mut self, now: Instant, status: String) {
        self.look_due = now + STATUS_INTERVAL;
        let status = if self.stopping { "stopping".to_owned() } else { status };
        let mut news = Vec::new();
        if !self.ready {
            news.push(NotifyState::Ready);
        }
        if status != self.told {
            news.push(NotifyState::Status(&status));
            if self.stopping {
                news.push(NotifyState::Stopping);
            }
        }
        self.is_stale = !news.is_empty() && !self.send(&news);
        if !self.is_stale {
            self.ready = true;
            self.told = status;
        }
    }

    /// Whether the manager has it.
    fn send(&self, news: &[NotifyState<'_>]) -> bool {
        let message: String = news.iter().map(|news| format!("{news}\n")).collect();
        match self.socket.send_to_addr(message.as_bytes(), &self.address) {
            Ok(_) => true,
            Err(error) => {
                debug!(%error, "the service manager was not told");
                false
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// The manager's end, and ours with a watchdog of `limit`.
    fn pair(limit: Option<Duration>, now: Instant) -> (UnixDatagram, Manager, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let manager = Connected::new(&path.into_os_string(), limit.map(|it| it / 2), now).unwrap();
        (listener, Manager(Some(manager)), dir)
    }

    fn heard(listener: &UnixDatagram) -> Vec<String> {
        let next = || {
            let mut buffer = [0; 256];
            let length = listener.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_first_turn_makes_it_ready_and_a_status_is_told_once() {
        let now = Instant::now();
        let (listener, mut manager, _dir) = pair(None, now);
        assert_eq!(manager.poll_timeout(), Some(now));
        manager.turned(now, || "a".to_owned());
        assert_eq!(heard(&listener), ["READY=1\nSTATUS=a\n"]);
        assert_eq!(manager.poll_timeout(), None, "nothing to be done until something happens");
        manager.turned(now + ms(5000), || "a".to_owned());
        assert_eq!(heard(&listener), [""; 0]);
        assert_eq!(manager.poll_timeout(), None);
    }

    #[test]
    fn a_status_that_changes_often_is_told_once_a_second() {
        let now = Instant::now();
        let (listener, mut manager, _dir) = pair(None, now);
        manager.turned(now, || "a".to_owned());
        manager.turned(now + ms(100), || panic!("it is not looked at yet"));
        manager.turned(now + ms(200), || panic!("it is not looked at yet"));
        assert_eq!(manager.poll_timeout(), Some(now + ms(1000)));
        manager.turned(now + ms(1000), || "d".to_owned());
        assert_eq!(heard(&listener), ["READY=1\nSTATUS=a\n", "STATUS=d\n"]);
        assert_eq!(manager.poll_timeout(), None);
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time_by_turns_alone() {
        let now = Instant::now();
        let (listener, mut manager, _dir) = pair(Some(ms(3000)), now);
        let mut at = now;
        for _ in 0..4 {
            manager.turned(at, || "a".to_owned());
            at = manager.poll_timeout().unwrap();
        }
        assert_eq!(at, now + ms(6000));
        let mut expected = vec!["WATCHDOG=1\n"; 4];
        expected.insert(1, "READY=1\nSTATUS=a\n");
        assert_eq!(heard(&listener), expected);
    }

    #[test]
    fn a_manager_that_does_not_read_makes_nobody_wait_and_gets_it_later() {
        let now = Instant::now();
        let (listener, mut manager, _dir) = pair(Some(ms(60_000)), now);
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        let path = listener.local_addr().unwrap();
        while filler.send_to_addr(b"x", &path).is_ok() {}
        manager.turned(now, || "a".to_owned());
        assert_eq!(manager.poll_timeout(), Some(now + ms(1000)));
        heard(&listener);
        manager.turned(now + ms(1000), || "b".to_owned());
        assert_eq!(heard(&listener), ["WATCHDOG=1\n", "READY=1\nSTATUS=b\n"]);
    }

    #[test]
    fn who_stops_says_so_and_nothing_else_any_more() {
        let now = Instant::now();
        let (listener, mut manager, _dir) = pair(None, now);
        manager.turned(now, || "a".to_owned());
        manager.stopping(now);
        manager.turned(now + ms(2000), || "b".to_owned());
        assert_eq!(heard(&listener), ["READY=1\nSTATUS=a\n", "STATUS=stopping\nSTOPPING=1\n"]);
    }

    #[test]
    fn without_a_manager_nothing_is_due() {
        let mut manager = Manager::default();
        manager.turned(Instant::now(), || panic!("nobody wants to know"));
        assert_eq!(manager.poll_timeout(), None);
    }
}
