//! A serial device: the task that opens it, loses it, finds it again, and carries octets between it and what is spoken on it.
//!
//! A device that is absent is looked for four times a second, which costs a system call each: less than to keep watches on
//! directories that udev makes and removes, and quicker than a person sees. One that is there and cannot be opened is tried again after 1 s, 2 s
//! and so on up to 30 s, and at once when it changes: when it is another one, or its permissions are others. While it is open
//! nothing is looked for; that it is gone shows in reading. Who opened it before and took no lock is looked for once it is open,
//! who did so later when frames are damaged or something is wrong: of what comes, each octet goes to one of the two.

use std::future::{pending, poll_fn};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking, yield_now};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::fault::Fault;
use super::framed::Framed;
use super::line::{Device, Line};
use super::speech::{Event, Speech, To};
use super::xbee::Radio;
use super::{Count, Counters, Inbox, Status};
use crate::deadline::Deadline;
use crate::devices::{Holders, Roots, holders};
use crate::framing::{Framing, xbee};
use crate::gateway::io::{Address, Input, Peer, PortEvent, PortId, Route};

/// Frames on their way from the loop to the task, which has them in a queue of its own, bounded by the line, as soon as it runs:
/// as many as the loop carries out before it looks after others.
const HANDED_MAX: usize = 1024;

/// Octets read in one go.
const READ_MAX: usize = 4096;

/// How often a device that cannot be opened is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// The first wait before a device is tried again that is there and cannot be opened. Doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);

/// The longest wait before a device is tried again that is there and cannot be opened.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long the name of a device that was pulled out may stay, refusing to be opened: what refuses later is another one.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// How often it is looked who has a device open too, at most: all of /proc is read for it.
const SHARED_LOOK: Duration = Duration::from_secs(10);

/// How long a device may take nothing before it is told and what waits is dropped.
const HELD_MAX: Duration = Duration::from_secs(10);

/// What a serial transport is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name in logs.
    pub name: String,
    /// The device.
    pub line: Line,
    /// What is spoken on it.
    pub speech: Spoken,
}

/// What is spoken on a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// Frames of MQTT-SN, told apart like this.
    Framed(Framing),
    /// Digi's API.
    Xbee {
        /// How its frames are written.
        mode: xbee::Mode,
        /// Octets that a frame may have at most, however much the radio takes; `None`: as many as it takes. The core is told the
        /// lesser one.
        mtu: Option<usize>,
    },
}

/// The port of one device. Dropped, it closes it.
#[derive(Debug)]
pub struct Serial {
    /// `None`: nothing more will be sent.
    handed: Option<mpsc::Sender<(To, Bytes)>>,
    status: watch::Receiver<Status>,
    counters: Arc<Counters>,
    task: JoinSet<()>,
}

impl Serial {
    /// Begins to look for the device. Needs a tokio runtime.
    pub fn open(port: PortId, options: &Options, inbox: &Inbox) -> Self {
        let Options { name, line, speech } = options.clone();
        let counters = Arc::new(Counters::default());
        let (handed, frames) = mpsc::channel(HANDED_MAX);
        let (state, status) = watch::channel(Status::down("it was not opened yet"));
        let speech = match speech {
            Spoken::Framed(framing) => Speech::Framed(Framed::new(line.clone(), framing)),
            Spoken::Xbee { mode, mtu } => Speech::Xbee(Radio::new(line.clone(), mode, mtu)),
        };
        let keeper = Keeper {
            port,
            name,
            line,
            speech,
            inbox: inbox.clone(),
            counters: counters.clone(),
            frames,
            state,
            up: None,
            told: None,
            shared: None,
            suspects: false,
        };
        let mut task = JoinSet::new();
        task.spawn(keeper.run());
        Self { handed: Some(handed), status, counters, task }
    }

    /// Sends one frame to one address, or drops and counts it.
    pub fn send(&self, addr: Address, frame: &Bytes) {
        self.hand(To::One(addr), frame);
    }

    /// Sends one frame to everybody in reach, or drops and counts it.
    pub fn broadcast(&self, radius: u8, frame: &Bytes) {
        self.hand(To::All(radius), frame);
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes no more frames, and closes the device when those that wait are written: [`Self::closed`].
    pub fn close(&mut self) {
        self.handed = None;
    }

    /// Waits until the device is closed, which it is only after [`Self::close`]. Cancel-safe.
    pub async fn closed(&mut self) {
        let _ = self.task.join_next().await;
    }

    /// Closes the device, whatever waits: that is dropped and counted.
    pub async fn abandon(&mut self) {
        self.task.shutdown().await;
    }

    fn hand(&self, to: To, frame: &Bytes) {
        let Some(handed) = self.handed.as_ref().filter(|_| self.status.borrow().up) else {
            return self.counters.add(Count::NotUp, 1);
        };
        if handed.try_send((to, frame.clone())).is_err() {
            self.counters.add(Count::QueueFull, 1);
        }
    }
}

/// What happened to an open device.
enum Happened {
    /// A frame is to be sent; `None`: no more will be.
    Handed(Option<(To, Bytes)>),
    /// So many octets came.
    Read(usize),
    /// So many were taken.
    Written(usize),
    /// It is gone.
    Gone(Option<io::Error>),
    /// These have it open too.
    Seen(Holders),
    /// It is late enough.
    Due,
}

/// The task of one device.
struct Keeper {
    port: PortId,
    name: String,
    line: Line,
    speech: Speech,
    inbox: Inbox,
    counters: Arc<Counters>,
    frames: mpsc::Receiver<(To, Bytes)>,
    state: watch::Sender<Status>,
    /// What the core was told last.
    up: Option<bool>,
    /// The last fault that was told: each once, until the device was opened.
    told: Option<Fault>,
    /// That others have the device open too: so it is for as long as they do, whatever else was told and is well again.
    shared: Option<Fault>,
    /// Somebody may have opened it since that was looked at.
    suspects: bool,
}

impl Keeper {
    async fn run(mut self) {
        // Clients that were there before a restart are not missed before the device is.
        self.report(false).await;
        loop {
            let Some(device) = self.find().await else { return };
            self.told = None;
            self.state.send_modify(|status| status.why = Some("it is open and was not heard yet".to_owned()));
            info!(port = self.name, "{} opened with {}", self.line.device.display(), self.line.spoken());
            self.speech.handle_open(clock());
            let Err(gone) = self.serve(device).await else { return };
            debug!(port = self.name, error = gone.map(tracing::field::display), "the device is gone");
            self.lose().await;
        }
    }

    /// Waits until the device is there; `None`: nobody waits for it.
    async fn find(&mut self) -> Option<Device> {
        let mut opened = pin!(open(&self.line, &self.name, &mut self.told, &self.state));
        loop {
            tokio::select! {
                biased;
                device = &mut opened => return Some(device),
                // Whoever has a frame to send has looked before the port went down, or is gone.
                handed = self.frames.recv() => match handed {
                    Some(_) => self.counters.add(Count::NotUp, 1),
                    None => return None,
                },
            }
        }
    }

    /// Carries octets and frames until the device is gone, or there is nobody to serve.
    async fn serve(&mut self, device: Device) -> Result<(), Option<io::Error>> {
        // Closing may wait for the device, which nobody here can.
        let mut device = Closing(Some(device));
        let mut buffer = vec![0; READ_MAX];
        let (mut out, mut written, mut closing) = (Bytes::new(), clock(), false);
        let (mut others, mut look, mut deadline) = (JoinSet::new(), clock(), Deadline::default());
        self.suspects = true;
        loop {
            let now = clock();
            if out.is_empty()
                && let Some(octets) = self.speech.poll_octets(now)
            {
                (out, written) = (octets, now);
            }
            self.tell().await;
            if others.is_empty() && std::mem::take(&mut self.suspects) {
                others.spawn(seen(self.line.device.clone(), look.saturating_duration_since(now)));
                look = look.max(now) + SHARED_LOOK;
            }
            if closing && out.is_empty() && self.speech.out_at(now).is_none() {
                return Ok(());
            }
            let held = (!out.is_empty()).then_some(written + HELD_MAX);
            let over = self.speech.out_at(now).filter(|_| closing);
            let wake = [self.speech.poll_timeout(now), held, over].into_iter().flatten().min();
            let happened = tokio::select! {
                biased;
                handed = self.frames.recv(), if !closing => Happened::Handed(handed),
                happened = device.ready(&mut buffer, &out) => happened,
                Some(Ok(holders)) = others.join_next() => Happened::Seen(holders),
                () = deadline.reached(wake) => Happened::Due,
            };
            let now = clock();
            // Octets that came meanwhile are read before there was silence.
            let may_be_late = matches!(happened, Happened::Read(_) | Happened::Due);
            match happened {
                Happened::Handed(Some((to, frame))) => {
                    self.speech.handle_send(now, to, &frame);
                    // All of what the loop has handed over, before any of it is weighed against the line.
                    while let Ok((to, frame)) = self.frames.try_recv() {
                        self.speech.handle_send(now, to, &frame);
                    }
                }
                Happened::Handed(None) => closing = true,
                Happened::Read(octets) => {
                    self.speech.handle_octets(now, &buffer[..octets]);
                    yield_now().await;
                }
                Happened::Written(octets) => {
                    out.advance(octets);
                    written = now;
                    if matches!(self.told, Some(Fault::Held { .. })) {
                        self.is_well("takes what is sent again");
                    }
                }
                Happened::Gone(error) => return Err(error),
                Happened::Seen(holders) => self.suspects |= self.share(holders),
                Happened::Due => {}
            }
            if may_be_late {
                self.speech.handle_timeout(now);
            }
            if !out.is_empty() && written + HELD_MAX <= now {
                written = now;
                self.speech.handle_held();
                self.complain(Fault::Held { device: self.line.device.clone(), flow: self.line.flow });
            }
        }
    }

    /// The device is gone: what was on its way with it.
    async fn lose(&mut self) {
        self.counters.add(Count::Vanished, 1);
        self.complain(Fault::Vanished { device: self.line.device.clone() });
        self.shared = None;
        self.speech.handle_gone();
        while self.frames.try_recv().is_ok() {
            self.counters.add(Count::NotUp, 1);
        }
        self.tell().await;
        self.report(false).await;
    }

    /// Tells whom it concerns what has come of it.
    async fn tell(&mut self) {
        while let Some(event) = self.speech.poll_event() {
            match event {
                Event::Up => {
                    self.told = None;
                    self.report(true).await;
                }
                Event::Down => self.report(false).await,
                Event::Mtu(mtu) => self.inbox.tell(Input::Port(self.port, PortEvent::Mtu(mtu))).await,
                Event::Frame(addr, frame) => {
                    let from = Peer { port: self.port, addr, node: None };
                    let taken = self.inbox.offer(Input::Frame { from, route: Route::default(), frame });
                    self.counters.add(if taken { Count::Received } else { Count::InboxFull }, 1);
                }
                Event::Fault(fault) => {
                    self.suspects = true;
                    self.complain(fault);
                }
                Event::Well => self.is_well("is understood"),
                Event::Told(text) => info!(port = self.name, "{text}"),
                Event::Count(count, n) => {
                    self.suspects |= count == Count::Damaged;
                    self.counters.add(count, n);
                }
            }
        }
    }

    /// Tells the core whether it can send; whoever asks sees it first.
    async fn report(&mut self, up: bool) {
        self.state.send_modify(|status| {
            status.up = up;
            status.well = up && self.shared.is_none();
            if up {
                status.why = self.shared.as_ref().map(Fault::to_string);
            }
        });
        if self.up.replace(up) != Some(up) {
            let event = if up { PortEvent::Up } else { PortEvent::Down };
            self.inbox.tell(Input::Port(self.port, event)).await;
        }
    }

    /// What was wrong is so no more.
    fn is_well(&mut self, how: &str) {
        self.told = None;
        info!(port = self.name, "{} {how}", self.line.device.display());
        self.state.send_modify(|status| {
            status.why = self.shared.as_ref().map(Fault::to_string);
            status.well = status.up && self.shared.is_none();
        });
    }

    /// Tells that others have the device open too, once; whether they do.
    fn share(&mut self, holders: Holders) -> bool {
        let is_shared = !holders.seen.is_empty();
        if is_shared && self.shared.is_none() {
            let fault = Fault::Shared { device: self.line.device.clone(), holders };
            warn!(port = self.name, "{fault}");
            self.state.send_modify(|status| (status.why, status.well) = (Some(fault.to_string()), false));
            self.shared = Some(fault);
        } else if !is_shared && let Some(fault) = self.shared.take() {
            info!(port = self.name, "{} is open here alone again", self.line.device.display());
            // What else is wrong stays so.
            self.state.send_modify(|status| {
                if status.why.take_if(|why| *why == fault.to_string()).is_some() {
                    status.well = status.up;
                }
            });
        }
        is_shared
    }

    fn complain(&mut self, fault: Fault) {
        complain(&self.name, &self.state, &mut self.told, fault);
    }
}

impl Drop for Keeper {
    /// What was not written by now never is.
    fn drop(&mut self) {
        self.speech.handle_closed();
        while let Some(event) = self.speech.poll_event() {
            if let Event::Count(count, n) = event {
                self.counters.add(count, n);
            }
        }
        while self.frames.try_recv().is_ok() {
            self.counters.add(Count::NotUp, 1);
        }
    }
}

/// Says what is wrong, unless that was the last thing that was said.
fn complain(name: &str, state: &watch::Sender<Status>, told: &mut Option<Fault>, fault: Fault) {
    state.send_modify(|status| {
        (status.why, status.well) = (Some(fault.to_string()), status.well && !fault.is_trouble());
    });
    let same =
        told.as_ref().is_some_and(|told| std::mem::discriminant(told) == std::mem::discriminant(&fault));
    match same {
        true => debug!(port = name, "{fault}"),
        false => warn!(port = name, "{fault}"),
    }
    *told = Some(fault);
}

/// Waits until the device is there and ours. Cancelled, it begins anew.
async fn open(line: &Line, name: &str, told: &mut Option<Fault>, state: &watch::Sender<Status>) -> Device {
    let mut wait = RETRY_MIN;
    let lingers_until = clock() + LINGER_MAX;
    loop {
        let seen = Seen::of(&line.device);
        let opener = line.clone();
        match spawn_blocking(move || opener.open()).await {
            Ok(Ok(device)) => return device,
            // One that was pulled out is waited for: that was said.
            Ok(Err(Fault::NotFound { .. })) if matches!(told, Some(Fault::Vanished { .. })) => {}
            Ok(Err(Fault::Refused { .. }))
                if matches!(told, Some(Fault::Vanished { .. })) && clock() < lingers_until => {}
            Ok(Err(fault)) => complain(name, state, told, fault),
            // The process is about to end.
            Err(_) => pending().await,
        }
        let until = clock() + wait;
        wait = RETRY_MAX.min(wait * 2);
        loop {
            sleep(LOOK).await;
            let sees = Seen::of(&line.device);
            if sees != seen {
                wait = RETRY_MIN;
                break;
            }
            // One that is not there cannot be opened.
            if sees.is_some() && until <= clock() {
                break;
            }
        }
    }
}

/// Who else has a device open, after so long. That is read from /proc, which may take a while.
async fn seen(device: PathBuf, wait: Duration) -> Holders {
    sleep(wait).await;
    let look = move || {
        let real = device.canonicalize().unwrap_or(device);
        holders(&Roots::default().proc, &real)
    };
    match spawn_blocking(look).await {
        Ok(holders) => holders,
        // The process is about to end.
        Err(_) => pending().await,
    }
}

/// What can be seen of a device from outside, if it is there: which one it is, and who may open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    file: (u64, u64),
    device: u64,
    changed: (i64, i64),
}

impl Seen {
    fn of(device: &Path) -> Option<Self> {
        let meta = std::fs::metadata(device).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Self { file: (meta.dev(), meta.ino()), device: meta.rdev(), changed })
    }
}

/// A device that is closed where waiting for it keeps nobody waiting.
struct Closing(Option<Device>);

impl Closing {
    /// Waits until something has come, or something of `out` was taken. Cancel-safe.
    async fn ready(&mut self, buffer: &mut [u8], out: &[u8]) -> Happened {
        let Some(device) = &mut self.0 else { return pending().await };
        poll_fn(|cx| {
            let mut stream = Pin::new(&mut device.0);
            let mut read = ReadBuf::new(buffer);
            match stream.as_mut().poll_read(cx, &mut read) {
                // The other side hung up: whatever is read from now on is nothing.
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(Happened::Gone(None)),
                Poll::Ready(Ok(())) => return Poll::Ready(Happened::Read(read.filled().len())),
                Poll::Ready(Err(error)) => return Poll::Ready(Happened::Gone(Some(error))),
                Poll::Pending => {}
            }
            if out.is_empty() {
                return Poll::Pending;
            }
            match stream.poll_write(cx, out) {
                Poll::Ready(Ok(octets)) => Poll::Ready(Happened::Written(octets)),
                Poll::Ready(Err(error)) => Poll::Ready(Happened::Gone(Some(error))),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(device) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(device))),
            Err(_) => drop(device),
        }
    }
}

/// The time as the timers here take it.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use nix::fcntl::OFlag;
    use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
    use tempfile::TempDir;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::transport::line::{Flow, Parity};

    /// Whoever waits for a device, on a clock that stands still while anybody works and leaps when all wait.
    struct Search {
        dir: TempDir,
        /// Told at every try that fails.
        status: watch::Receiver<Status>,
        begun: Instant,
        opens: JoinHandle<Device>,
    }

    impl Search {
        fn begin(dir: TempDir) -> Self {
            let (state, mut status) = watch::channel(Status::down("it was not opened yet"));
            status.mark_unchanged();
            let device = dir.path().join("usb-radio-if00");
            let opens = tokio::spawn(async move {
                let line = Line {
                    device,
                    baud: 9600,
                    data_bits: 8,
                    parity: Parity::None,
                    stop_bits: 1,
                    flow: Flow::None,
                };
                open(&line, "radio", &mut None, &state).await
            });
            Self { dir, status, begun: clock(), opens }
        }

        /// What is plugged in from now on, under the same name, in the place of what was there.
        fn plug(&self, device: &Path) {
            let new = self.dir.path().join("new");
            std::os::unix::fs::symlink(device, &new).unwrap();
            std::fs::rename(&new, self.dir.path().join("usb-radio-if00")).unwrap();
        }

        /// When the next try has failed, in seconds from the beginning; `None`: not within an hour.
        async fn tries(&mut self) -> Option<f64> {
            let tried = timeout(Duration::from_secs(3600), self.status.changed()).await;
            tried.ok().map(|changed| {
                changed.unwrap();
                (clock() - self.begun).as_secs_f64()
            })
        }

        /// How long it takes from now until the device is open.
        async fn opened(self) -> Duration {
            let plugged = clock();
            drop(self.opens.await.unwrap());
            clock() - plugged
        }
    }

    /// A device that can be opened, and its name.
    fn device() -> (PtyMaster, PathBuf) {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname_r(&master).unwrap().into();
        (master, name)
    }

    /// A timer may be late by this.
    const TICK: Duration = Duration::from_millis(2);

    #[tokio::test(start_paused = true)]
    async fn a_device_that_is_absent_is_told_once_and_opened_at_the_next_look_when_it_appears() {
        let mut search = Search::begin(tempfile::tempdir().unwrap());
        assert_eq!(search.tries().await, Some(0.0));
        // Nothing is opened that is not there, be it for hours.
        for _ in 0..2 {
            assert_eq!(search.tries().await, None);
        }
        let (_master, device) = device();
        search.plug(&device);
        let took = search.opened().await;
        assert!(took <= LOOK + TICK, "{took:?}");
        assert!(LOOK <= Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_cannot_be_opened_is_tried_after_1_s_doubling_to_30_s_and_at_once_when_it_changes()
    {
        let dir = tempfile::tempdir().unwrap();
        let no_device = [1, 2].map(|nth| dir.path().join(format!("file{nth}")));
        no_device.iter().for_each(|file| std::fs::write(file, "").unwrap());
        let mut search = Search::begin(dir);
        assert_eq!(search.tries().await, Some(0.0));
        for file in &no_device {
            search.plug(file);
            let plugged = clock() - search.begun;
            let mut last = search.tries().await.unwrap();
            assert!(last - plugged.as_secs_f64() <= (LOOK + TICK).as_secs_f64(), "at once");
            for wait in [1, 2, 4, 8, 16, 30, 30, 30] {
                let next = search.tries().await.unwrap();
                let (least, most) = (f64::from(wait), f64::from(wait) + (LOOK + TICK).as_secs_f64());
                assert!((least..=most).contains(&(next - last)), "{} s, not {wait} s", next - last);
                last = next;
            }
        }
        let (_master, device) = device();
        search.plug(&device);
        let took = search.opened().await;
        assert!(took <= LOOK + TICK, "{took:?}");
    }
}
