//! Runs rows ahead of the test functions that ask for them: a row mostly waits, so many run at once however few test threads
//! there are, and the folder takes about as long as its longest row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::runner;

/// Rows that run at once: as many gateway processes, mostly idle.
const AT_ONCE: usize = 32;

/// How often a row is run that fails while the machine stands still: rows are about time, and one that is right may come out
/// wrong then. One that is wrong fails every time, and on a machine that keeps time at once.
const ATTEMPTS: usize = 3;

/// How much longer than it asked for somebody sleeps on a machine that stands still: a third of the time that rows have to spare.
const STANDSTILL: Duration = Duration::from_millis(200);

/// How often that is looked at.
const MOMENT: Duration = Duration::from_millis(10);

type Outcome = Result<(), String>;

/// What a test function does.
pub(crate) fn check(module: &str, row: &str) {
    let (_, module) = module.split_once("::").unwrap_or(("", module));
    if let Err(report) = outcome(&format!("{module}::{row}")) {
        panic!("{report}");
    }
}

/// How the row of this test went; runs it here if nobody has foreseen that it would be asked for.
pub(crate) fn outcome(name: &str) -> Outcome {
    static AHEAD: LazyLock<Arc<Ahead>> = LazyLock::new(Ahead::start);
    if !AHEAD.foreseen.contains(&name) {
        return carry_out(name);
    }
    let mut done = AHEAD.done.lock().unwrap();
    loop {
        if let Some(outcome) = done.get(name) {
            return outcome.clone();
        }
        done = AHEAD.changed.wait(done).unwrap();
    }
}

struct Ahead {
    foreseen: BTreeSet<&'static str>,
    waiting: Mutex<VecDeque<&'static str>>,
    done: Mutex<BTreeMap<&'static str, Outcome>>,
    changed: Condvar,
}

impl Ahead {
    fn start() -> Arc<Self> {
        let asked = Asked::from_arguments();
        let waiting: VecDeque<_> = crate::tests().filter(|name| asked.fits(name)).collect();
        let foreseen = waiting.iter().copied().collect();
        let ahead =
            Self { foreseen, waiting: Mutex::new(waiting), done: Mutex::default(), changed: Condvar::new() };
        let ahead = Arc::new(ahead);
        for _ in 0..AT_ONCE {
            let ahead = Arc::clone(&ahead);
            thread::spawn(move || ahead.work());
        }
        ahead
    }

    fn work(&self) {
        loop {
            let Some(name) = self.waiting.lock().unwrap().pop_front() else { return };
            let outcome = carry_out(name);
            self.done.lock().unwrap().insert(name, outcome);
            self.changed.notify_all();
        }
    }
}

fn carry_out(name: &str) -> Outcome {
    let (combination, row) = crate::of_test(name);
    LazyLock::force(&STOOD_STILL);
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        let began = Instant::now();
        outcome = catch_unwind(AssertUnwindSafe(|| runner::run(row, combination)))
            .unwrap_or_else(|_| Err("the runner panicked; see above".into()));
        let is_disturbed = STOOD_STILL.lock().unwrap().is_some_and(|last| last > began);
        if outcome.is_ok() || !is_disturbed {
            break;
        }
    }
    outcome.map_err(|report| format!("{name}: {report}"))
}

/// When this machine last let somebody wait who only wanted to sleep for a moment.
static STOOD_STILL: LazyLock<Arc<Mutex<Option<Instant>>>> = LazyLock::new(|| {
    let last = Arc::new(Mutex::new(None));
    let also = Arc::clone(&last);
    thread::spawn(move || {
        loop {
            let before = Instant::now();
            thread::sleep(MOMENT);
            if before.elapsed() > MOMENT + STANDSTILL {
                *also.lock().unwrap() = Some(Instant::now());
            }
        }
    });
    last
});

/// Which tests the command line names, as far as it matters for running ahead.
struct Asked {
    names: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
}

impl Asked {
    fn from_arguments() -> Self {
        let mut asked = Self { names: Vec::new(), skipped: Vec::new(), exact: false };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => asked.exact = true,
                "--skip" => asked.skipped.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(arguments.next()),
                _ if argument.starts_with('-') => {}
                _ => asked.names.push(argument),
            }
        }
        asked
    }

    fn fits(&self, name: &str) -> bool {
        let named =
            |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        (self.names.is_empty() || self.names.iter().any(named)) && !self.skipped.iter().any(named)
    }
}
