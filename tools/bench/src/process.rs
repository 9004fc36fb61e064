//! The processes that are measured and those beside them. Each ends with its value.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::iter::Sum;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::failure::{Attempt, Failure};

/// How long a process may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take its leave.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long it is watched for whether it rests.
const LOOK: Duration = Duration::from_millis(300);

/// Whether what processes print is to be seen.
pub(crate) static TELLS: AtomicBool = AtomicBool::new(false);

/// A running program and the lines it prints.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    said: String,
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Processor time, of all its threads.
    pub(crate) cpu: Duration,
    /// How often it went to sleep and was woken.
    pub(crate) wakes: u64,
}

impl Process {
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self, Failure> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().attempt(format!("start {name}"))?;
        let (sender, lines) = channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|it| Box::new(it) as Box<_>),
            child.stderr.take().map(|it| Box::new(it) as Box<_>),
        ];
        for output in outputs.into_iter().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if TELLS.load(Ordering::Relaxed) {
                        eprintln!("{name}: {line}");
                    }
                    // Read on when nobody listens any more, or the program would be stopped by a full pipe.
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Self { name, child, lines, said: String::new() })
    }

    /// The first line from now on with `awaited` in it.
    pub(crate) fn wait_for(&mut self, awaited: &'static str) -> Result<String, Failure> {
        let end = Instant::now() + READY_WITHIN;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said += &line;
                    self.said.push('\n');
                    if line.contains(awaited) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let (name, said) = (self.name, self.said.clone());
                    return Err(Failure::Silent { name, awaited, seconds: READY_WITHIN.as_secs(), said });
                }
            }
        }
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        let what = || format!("read what {} has used", self.name);
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).attempt(what())?;
        let cpu = clock_gettime(clock).attempt(what())?;
        let mut wakes = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).attempt(what())?.flatten() {
            wakes +=
                field(&fs::read_to_string(task.path().join("status")).unwrap_or_default(), "voluntary_ctxt");
        }
        Ok(Usage { cpu: Duration::from_nanos(cpu.num_nanoseconds().unsigned_abs()), wakes })
    }

    /// Waits until it has nothing more to do: until it hardly uses the processor.
    pub(crate) fn wait_until_idle(&self) -> Result<(), Failure> {
        let end = Instant::now() + READY_WITHIN;
        while Instant::now() < end {
            let before = self.usage()?;
            thread::sleep(LOOK);
            if self.usage()?.since(before).cpu < LOOK / 100 {
                return Ok(());
            }
        }
        Err(Failure::Late { what: format!("rest of {}", self.name), seconds: READY_WITHIN.as_secs() })
    }

    /// Octets of memory that are resident, its program and libraries among them, sockets' buffers in the kernel not.
    pub(crate) fn memory(&self) -> Result<u64, Failure> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).attempt(format!("read the memory of {}", self.name))?;
        Ok(field(&status, "VmRSS:") * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        // It may have ended by itself.
        let _ = kill(pid, Signal::SIGTERM);
        let end = Instant::now() + STOP_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number in the first line of a file of /proc that begins with `name`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Processor time that this program has had so far.
pub(crate) fn own_time() -> Result<Duration, Failure> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).attempt("read what this program has used")?;
    Ok(Duration::from_nanos(time.num_nanoseconds().unsigned_abs()))
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let none = Self { cpu: Duration::ZERO, wakes: 0 };
        all.fold(none, |sum, one| Self { cpu: sum.cpu + one.cpu, wakes: sum.wakes + one.wakes })
    }
}

impl Usage {
    /// What was used from `before` to this.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), wakes: self.wakes.saturating_sub(before.wakes) }
    }
}
