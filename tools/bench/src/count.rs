//! Instructions that the core and the codecs spend on a message, and how often they take memory, counted by valgrind: the same
//! whatever else the machine does.
//!
//! Each [`Case`] runs in a process of its own under callgrind, which counts in [`COUNTED`] and nowhere else. There is a budget
//! for each; what exceeds it has become slower, and what stays far below it has earned a lower one. A copy that was made for
//! nothing costs few instructions: it is seen by the memory it takes.

mod budget;
mod case;
mod world;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};

use tempfile::NamedTempFile;

use self::budget::{Budgets, Count, Verdict};
use self::case::Case;
use crate::failure::{Attempt, Failure};
use crate::figures::thousands;

/// The function in which instructions count, as valgrind names it.
const COUNTED: &str = "mqtt_sn_bench::count::world::counted*";

/// What takes memory.
const ALLOCATORS: [&str; 3] = ["malloc", "calloc", "realloc"];

/// The budgets; lines of a case's name, instructions and allocations.
const BUDGETS: &str = include_str!("../budgets.txt");

/// How much more a PINGREQ may cost among 100,000 clients than among 1,000: a tree of timers is less than twice as deep.
const GROWTH_MAX: f64 = 2.0;

/// Does what the case does. The process that counts it reads from the output how often.
pub(crate) fn drive(name: &str) -> Result<(), Failure> {
    println!("{DONE}{}", Case::named(name)?.drive()?);
    Ok(())
}

/// What comes before the number of messages.
const DONE: &str = "messages: ";

/// Counts the cases of these names, all if there are none, and prints a table. Whether they keep to their budgets.
pub(crate) fn run(names: &[String]) -> Result<bool, Failure> {
    if cfg!(debug_assertions) {
        return Err(Failure::Unoptimised);
    }
    let valgrind = version("valgrind").ok_or(Failure::NoValgrind)?;
    let budgets = Budgets::parse(BUDGETS)?;
    let named = names.iter().map(|name| Case::named(name)).collect::<Result<Vec<_>, _>>()?;
    let cases = if named.is_empty() { Case::ALL.to_vec() } else { named };
    let compiler = version("rustc").unwrap_or_else(|| "an unknown compiler".into());
    let counts = count_all(&cases)?;
    println!("instructions and allocations, compiled by {compiler}, counted by {valgrind}\n");
    println!(
        "{:23} {:>12} {:>8} {:>6} {:>9} {:>8}",
        "", "instructions", "at most", "", "allocations", "at most"
    );
    let mut keeps = true;
    for (case, count) in &counts {
        let budget = budgets.of(*case)?;
        let verdict = Verdict::of(*count, budget);
        keeps &= verdict != Verdict::Over;
        println!(
            "{:23} {:>12} {:>8} {:>6.2} {:>9.2} {:>8.1}    {}{verdict}",
            case.name(),
            thousands(count.instructions),
            thousands(budget.instructions),
            count.instructions / budget.instructions,
            count.allocations,
            budget.allocations,
            case.about()
        );
    }
    if let Some(growth) = growth(&counts) {
        let verdict = if growth > GROWTH_MAX { " MISSED" } else { "" };
        keeps &= growth <= GROWTH_MAX;
        println!("\n100,000 clients beside 1,000: {growth:.2} times (at most {GROWTH_MAX:.2}){verdict}");
    }
    Ok(keeps)
}

/// How much more a PINGREQ costs among the most clients, if that was counted.
fn growth(counts: &[(Case, Count)]) -> Option<f64> {
    let of = |wanted| counts.iter().find(|(case, _)| *case == wanted).map(|(_, count)| count.instructions);
    Some(of(Case::Ping100000)? / of(Case::Ping1000)?)
}

/// As many at a time as there are processors: that they run beside each other changes no count.
fn count_all(cases: &[Case]) -> Result<Vec<(Case, Count)>, Failure> {
    let mut order: Vec<_> = cases.iter().copied().enumerate().collect();
    order.sort_by_key(|(_, case)| Reverse(case.clients()));
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((place, case)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let count = count(*case);
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((*place, *case, count));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(place, ..)| *place);
    found.into_iter().map(|(_, case, count)| Ok((case, count?))).collect()
}

/// What each message costs.
fn count(case: Case) -> Result<Count, Failure> {
    let own = env::current_exe().attempt("find this program")?;
    let profile = NamedTempFile::new().attempt("make a file for valgrind")?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--dump-instr=yes", "--compress-pos=no", "--compress-strings=no"]);
    command.arg(format!("--callgrind-out-file={}", profile.path().display()));
    command.arg(format!("--toggle-collect={COUNTED}")).arg(own).args(["drive", case.name()]);
    let output = command.output().attempt("run valgrind")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let counted = collected(&err).zip(messages(&out)).filter(|_| output.status.success());
    let Some((instructions, messages)) = counted else {
        return Err(Failure::NotCounted { case: case.name(), said: format!("{out}{err}") });
    };
    let profile = fs::read_to_string(profile.path()).attempt("read what valgrind has written")?;
    let each = |count: u64| count as f64 / f64::from(messages);
    Ok(Count { instructions: each(instructions), allocations: each(allocations(&profile)) })
}

/// How often memory was taken: how often the first instruction of what takes it was carried out, by the lines of its address, line
/// and count. Calls are counted by callgrind also where instructions are not.
fn allocations(profile: &str) -> u64 {
    let (mut entries, mut inside, mut lines) = (BTreeMap::new(), None, profile.lines());
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            inside = ALLOCATORS.into_iter().find(|allocator| *allocator == name);
        } else if line.starts_with("calls=") {
            // What was spent in the function that is called is no line of this one.
            lines.next();
        } else if let (Some(function), Some((address, count))) = (inside, cost(line)) {
            let (first, entered) = entries.entry(function).or_insert((address, 0));
            if address < *first {
                (*first, *entered) = (address, count);
            } else if address == *first {
                *entered += count;
            }
        }
    }
    entries.into_values().map(|(_, entered)| entered).sum()
}

/// The address and count of a line of callgrind's profile, if it is one of these.
fn cost(line: &str) -> Option<(u64, u64)> {
    let mut words = line.strip_prefix("0x")?.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((address, words.nth(1)?.parse().ok()?))
}

/// What callgrind says at its end that it has counted: of one kind of event, and not nothing, as where it does not find the function.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.split_once("Collected : "));
    line.and_then(|(_, count)| count.trim().parse().ok()).filter(|count| *count > 0)
}

/// How many messages a case says it was.
fn messages(said: &str) -> Option<u32> {
    said.lines().find_map(|line| line.strip_prefix(DONE)?.parse().ok()).filter(|count| *count > 0)
}

/// What a program says it is, if it is there.
fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_budget() {
        let budgets = Budgets::parse(BUDGETS).unwrap();
        for case in Case::ALL {
            assert_eq!(Case::named(case.name()).unwrap(), case);
            assert!(budgets.of(case).unwrap().instructions > 0.0, "{case:?}");
        }
        assert!(matches!(Case::named("uplink"), Err(Failure::NoCase(name)) if name == "uplink"));
    }

    #[test]
    fn what_callgrind_has_counted_is_read_from_what_it_says() {
        let said = "==7== Callgrind, a call-graph generating cache profiler\n\
                    ==7== \n==7== Events    : Ir\n==7== Collected : 5062361\n==7== \n";
        assert_eq!(collected(said), Some(5_062_361));
        assert_eq!(collected("==7== Collected : 0\n"), None, "it did not find the function");
        assert_eq!(collected("==7== Collected : 12 3\n"), None, "of two kinds of events");
        assert_eq!(collected("valgrind: mqtt-sn-bench: command not found\n"), None);
    }

    #[test]
    fn memory_is_taken_as_often_as_what_takes_it_is_entered() {
        let profile = "positions: instr line\nevents: Ir\nob=libc.so.6\nfl=malloc.c\n\
                       fn=malloc\n0x98930 3281 3\n0x98932 3281 3\nfi=other.c\n0x98930 3281 4\n0x98959 40 7\n\n\
                       fn=mqtt_sn_bench::count::world::turn\n0x10 14 9\ncob=libc.so.6\ncfn=malloc\n\
                       calls=1188 0x98930 3281\n0x1073b3 14 40672\n0x14 14 9\n\n\
                       fn=realloc\ncfn=malloc\ncalls=6 0x98930 3281\n0x7 5 50\n0x9910 9 1\n0x9900 7 2\n\n\
                       fn=my_malloc\n0x1 5 60\n";
        assert_eq!(allocations(profile), 3 + 4 + 2);
        assert_eq!(allocations(""), 0);
    }

    #[test]
    fn how_many_messages_that_were_is_read_from_what_the_case_says() {
        assert_eq!(messages("messages: 1000\n"), Some(1000));
        assert_eq!(messages("messages: 0\n"), None);
        assert_eq!(messages(""), None);
    }

    #[test]
    fn the_growth_is_told_where_both_ends_were_counted() {
        let of = |instructions| Count { instructions, allocations: 0.0 };
        let counts = [(Case::Ping1000, of(2000.0)), (Case::Uplink0, of(1.0)), (Case::Ping100000, of(3000.0))];
        assert_eq!(growth(&counts), Some(1.5));
        assert_eq!(growth(&counts[..2]), None);
    }

    /// What the count of a case stands for is done, whether or not it is counted.
    #[test]
    fn every_case_does_what_it_counts() {
        for case in Case::ALL.into_iter().filter(|case| case.clients() <= 1000) {
            assert!(case.drive().unwrap() > 0, "{case:?}");
        }
    }
}
