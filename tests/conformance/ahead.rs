//! Runs rows ahead of the test functions that ask for them: a row mostly waits, so many run at once however few test threads
//! there are, and the folder takes about as long as its longest row.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;

use crate::{RUN, TABLE, number, runner};

/// Rows that run at once: as many gateway processes, mostly idle.
const AT_ONCE: usize = 32;

type Outcome = Result<(), String>;

/// What a test function does.
pub(crate) fn check(module: &str, row: &str) {
    let (_, section) = module.rsplit_once("::").unwrap_or(("", module));
    if let Err(report) = outcome(section, row) {
        panic!("{report}");
    }
}

/// How a row went; runs it here if nobody has foreseen that it would be asked for.
pub(crate) fn outcome(section: &str, row: &str) -> Outcome {
    static AHEAD: LazyLock<Arc<Ahead>> = LazyLock::new(Ahead::start);
    let name = format!("{section}::{row}");
    if !AHEAD.foreseen.contains(&name) {
        return carry_out(row);
    }
    let mut done = AHEAD.done.lock().unwrap();
    loop {
        if let Some(outcome) = done.get(&name) {
            return outcome.clone();
        }
        done = AHEAD.changed.wait(done).unwrap();
    }
}

struct Ahead {
    foreseen: Vec<String>,
    waiting: Mutex<VecDeque<(String, &'static str)>>,
    done: Mutex<BTreeMap<String, Outcome>>,
    changed: Condvar,
}

impl Ahead {
    fn start() -> Arc<Self> {
        let asked = Asked::from_arguments();
        let run = RUN.iter().map(|(section, row)| (format!("{section}::{row}"), *row));
        let waiting: VecDeque<_> = run.filter(|(name, _)| asked.fits(name)).collect();
        let foreseen = waiting.iter().map(|(name, _)| name.clone()).collect();
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
            let Some((name, row)) = self.waiting.lock().unwrap().pop_front() else { return };
            let outcome = carry_out(row);
            self.done.lock().unwrap().insert(name, outcome);
            self.changed.notify_all();
        }
    }
}

fn carry_out(row: &str) -> Outcome {
    let row = &TABLE[&number(row)];
    catch_unwind(AssertUnwindSafe(|| runner::run(row)))
        .unwrap_or_else(|_| Err(format!("T-{:03}: the runner panicked; see above", row.number)))
}

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
