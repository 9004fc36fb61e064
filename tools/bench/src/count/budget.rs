//! What a case may cost.

use std::collections::BTreeMap;
use std::fmt;

use super::case::Case;
use crate::failure::Failure;

/// Below this part of its budget a case has become so much cheaper that the next one to make it dearer should not get away with it.
const FAR_BELOW: f64 = 0.8;

/// What a message costs, or may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Count {
    pub(super) instructions: f64,
    /// How often memory is taken.
    pub(super) allocations: f64,
}

/// By the name of a case.
#[derive(Debug)]
pub(super) struct Budgets(BTreeMap<String, Count>);

impl Budgets {
    /// Reads lines of a name, instructions and allocations; `#` begins a comment.
    ///
    /// # Errors
    /// [`Failure::BadBudget`] for what is no such line, or of no case, or there twice.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let mut budgets = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<_> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let [name, instructions, allocations] = words[..] else {
                if words.is_empty() { continue } else { return Err(Failure::BadBudget(line.into())) }
            };
            let number = |text: &str| text.replace(',', "").parse().ok().filter(|number: &f64| *number > 0.0);
            let budget = number(instructions).zip(number(allocations));
            let budget = budget.ok_or_else(|| Failure::BadBudget(line.into()))?;
            let budget = Count { instructions: budget.0, allocations: budget.1 };
            if budgets.insert(Case::named(name)?.name().to_owned(), budget).is_some() {
                return Err(Failure::BadBudget(line.into()));
            }
        }
        Ok(Self(budgets))
    }

    /// What a message of this case may cost.
    ///
    /// # Errors
    /// [`Failure::BadBudget`] if there is no such line.
    pub(super) fn of(&self, case: Case) -> Result<Count, Failure> {
        self.0.get(case.name()).copied().ok_or_else(|| Failure::BadBudget(case.name().into()))
    }
}

/// A count beside its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is exceeded.
    Over,
    /// It is kept.
    Within,
    /// It could be lower.
    FarBelow,
}

impl Verdict {
    pub(super) fn of(count: Count, budget: Count) -> Self {
        let (part, spare) =
            (count.instructions / budget.instructions, budget.allocations - count.allocations);
        // What could not be counted is no success.
        if !(part <= 1.0 && spare >= 0.0) {
            Self::Over
        } else if part < FAR_BELOW || spare >= 1.0 {
            Self::FarBelow
        } else {
            Self::Within
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Over => " OVER ITS BUDGET",
            Self::Within => "",
            Self::FarBelow => " (far below: lower the budget)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_line_of_its_own() {
        let budgets = Budgets::parse("# what\n\nuplink-0  1,234 5.5 # so much\nwake 7 1\n").unwrap();
        let of = |instructions, allocations| Count { instructions, allocations };
        assert_eq!(budgets.of(Case::Uplink0).unwrap(), of(1234.0, 5.5));
        assert_eq!(budgets.of(Case::Wake).unwrap(), of(7.0, 1.0));
        assert!(matches!(budgets.of(Case::Connect), Err(Failure::BadBudget(name)) if name == "connect"));
    }

    #[test]
    fn a_line_that_is_no_budget_is_named() {
        for line in ["wake", "wake 1", "wake 1 many", "wake 0 1", "wake 1 -1", "wake 1 NaN", "wake 1 2 3"] {
            assert!(matches!(Budgets::parse(line), Err(Failure::BadBudget(bad)) if bad == line), "{line}");
        }
        let twice = Budgets::parse("wake 1 1\nwake 2 1");
        assert!(matches!(twice, Err(Failure::BadBudget(bad)) if bad == "wake 2 1"));
        assert!(matches!(Budgets::parse("sleep 1 1"), Err(Failure::NoCase(name)) if name == "sleep"));
    }

    #[test]
    fn a_budget_is_exceeded_kept_or_too_generous() {
        let verdict = |instructions, allocations| {
            let budget = Count { instructions: 1000.0, allocations: 3.5 };
            Verdict::of(Count { instructions, allocations }, budget)
        };
        assert_eq!(verdict(1001.0, 3.0), Verdict::Over);
        assert_eq!(verdict(900.0, 3.6), Verdict::Over);
        assert_eq!(verdict(f64::NAN, 3.0), Verdict::Over);
        assert_eq!(verdict(900.0, f64::NAN), Verdict::Over);
        assert_eq!(verdict(1000.0, 3.5), Verdict::Within);
        assert_eq!(verdict(800.0, 2.6), Verdict::Within);
        assert_eq!(verdict(799.0, 3.0), Verdict::FarBelow);
        assert_eq!(verdict(900.0, 2.5), Verdict::FarBelow);
    }
}
