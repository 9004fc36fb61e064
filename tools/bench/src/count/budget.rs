//! What a case may cost.

use std::collections::BTreeMap;
use std::fmt;

use super::case::Case;
use crate::failure::Failure;

/// Below this part of its budget a case has become so much cheaper that the next one to make it dearer should not get away with it.
const FAR_BELOW: f64 = 0.8;

/// Instructions by the name of a case.
#[derive(Debug)]
pub(super) struct Budgets(BTreeMap<String, f64>);

impl Budgets {
    /// Reads lines of a name and a number; `#` begins a comment.
    ///
    /// # Errors
    /// [`Failure::BadBudget`] for what is no such line, or of no case, or there twice.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let mut budgets = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<_> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let (name, number) = match words[..] {
                [] => continue,
                [name, number] => (Case::named(name)?.name(), number.replace(',', "").parse::<u32>().ok()),
                _ => ("", None),
            };
            let number = number.filter(|number| *number > 0 && !budgets.contains_key(name));
            let number = number.ok_or_else(|| Failure::BadBudget(line.into()))?;
            budgets.insert(name.to_owned(), f64::from(number));
        }
        Ok(Self(budgets))
    }

    /// Instructions that a message of this case may cost.
    ///
    /// # Errors
    /// [`Failure::BadBudget`] if there is no such line.
    pub(super) fn of(&self, case: Case) -> Result<f64, Failure> {
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
    pub(super) fn of(count: f64, budget: f64) -> Self {
        match count / budget {
            // What could not be counted is no success.
            ratio if ratio < FAR_BELOW => Self::FarBelow,
            ratio if ratio <= 1.0 => Self::Within,
            _ => Self::Over,
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
        let budgets = Budgets::parse("# what\n\nuplink-0  1,234 # so much\nwake 7\n").unwrap();
        assert_eq!(budgets.of(Case::Uplink0).unwrap(), 1234.0);
        assert_eq!(budgets.of(Case::Wake).unwrap(), 7.0);
        assert!(matches!(budgets.of(Case::Connect), Err(Failure::BadBudget(name)) if name == "connect"));
    }

    #[test]
    fn a_line_that_is_no_budget_is_named() {
        for line in ["uplink-0", "uplink-0 many", "uplink-0 0", "uplink-0 -1", "uplink-0 1 2"] {
            assert!(matches!(Budgets::parse(line), Err(Failure::BadBudget(bad)) if bad == line), "{line}");
        }
        assert!(matches!(Budgets::parse("wake 1\nwake 2"), Err(Failure::BadBudget(bad)) if bad == "wake 2"));
        assert!(matches!(Budgets::parse("sleep 1"), Err(Failure::NoCase(name)) if name == "sleep"));
    }

    #[test]
    fn a_budget_is_exceeded_kept_or_too_generous() {
        assert_eq!(Verdict::of(1001.0, 1000.0), Verdict::Over);
        assert_eq!(Verdict::of(f64::NAN, 1000.0), Verdict::Over);
        assert_eq!(Verdict::of(1000.0, 1000.0), Verdict::Within);
        assert_eq!(Verdict::of(800.0, 1000.0), Verdict::Within);
        assert_eq!(Verdict::of(799.0, 1000.0), Verdict::FarBelow);
    }
}
