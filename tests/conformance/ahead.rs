//! Runs rows ahead of the test functions that ask for them: a row mostly waits, so many run at once however few test threads
//! there are, and the folder takes about as long as its longest row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;

use crate::runner;

/// Rows that run at once: as many gateway processes, mostly idle.
const AT_ONCE: usize = 32;

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
    catch_unwind(AssertUnwindSafe(|| runner::run(row, combination)))
        .unwrap_or_else(|_| Err("the runner panicked; see above".into()))
        .map_err(|report| format!("{name}: {report}"))
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
