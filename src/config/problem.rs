//! What is wrong with a configuration and where, as it is shown to the person who wrote it.

use std::fmt;

use super::Config;

/// Problems that are shown; a file that is something else entirely is not listed line by line.
const SHOWN_MAX: usize = 100;

/// Characters of a line shown under a problem; longer lines are cut around the place.
const EXCERPT_MAX: usize = 100;

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    /// Characters from there, if need be beyond the end of the line.
    pub(super) width: usize,
}

impl At {
    /// The very beginning, for what is wrong with the whole.
    pub(super) const START: At = At { line: 1, column: 1, width: 0 };
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) at: At,
    /// The key, such as `transports[0].listen`; empty for the file itself.
    pub(super) path: String,
    /// What is wrong and what is expected.
    pub(super) text: String,
}

/// Everything that is wrong with one file, in the order of the file: never empty.
///
/// `Display` gives a line `file:line:column: key.path: what is wrong` for each, with the place underneath.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    file: String,
    lines: Vec<String>,
    problems: Vec<Problem>,
    config: Option<Box<Config>>,
}

impl std::error::Error for Problems {}

impl Problems {
    /// Puts `problems` of the file called `file`, which holds `text`, in order.
    pub(super) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.at);
        let shown = problems.iter().take(SHOWN_MAX);
        let lines = shown
            .map(|problem| text.lines().nth(problem.at.line.saturating_sub(1)).unwrap_or_default().into());
        Self { file: file.into(), lines: lines.collect(), problems, config: None }
    }

    /// With what could be read all the same.
    pub(super) fn beside(self, config: Config) -> Self {
        Self { config: Some(Box::new(config)), ..self }
    }

    /// What could be read in spite of them, with defaults for what could not.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_deref()
    }

    /// How many there are, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "there is no such value without a problem")]
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// The file as the user named it.
    pub fn file(&self) -> &str {
        &self.file
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (problem, line) in self.problems.iter().zip(&self.lines) {
            let Problem { at, path, text } = problem;
            write!(f, "{}:{}:{}: ", self.file, at.line, at.column)?;
            if !path.is_empty() {
                write!(f, "{path}: ")?;
            }
            writeln!(f, "{text}")?;
            excerpt(f, *at, line)?;
        }
        match self.problems.len().saturating_sub(self.lines.len()) {
            0 => Ok(()),
            more => writeln!(f, "{}: and {more} more", self.file),
        }
    }
}

/// The line and carets under the place, if there is something to see.
fn excerpt(f: &mut fmt::Formatter<'_>, at: At, line: &str) -> fmt::Result {
    let line: Vec<char> = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if at.width == 0 || line.iter().all(|c| c.is_whitespace()) {
        return Ok(());
    }
    let column = at.column.saturating_sub(1);
    let from = if line.len() > EXCERPT_MAX { column.saturating_sub(EXCERPT_MAX / 2) } else { 0 };
    let to = line.len().min(from + EXCERPT_MAX);
    let carets = at.width.min(to.saturating_sub(column)).max(1);
    writeln!(f, "    {}", line.get(from..to).unwrap_or_default().iter().collect::<String>().trim_end())?;
    writeln!(f, "    {:indent$}{:^<carets$}", "", "", indent = column - from)
}

/// What the user may have meant: the likeliest of `names`, if any is close to `typed`.
pub(super) fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this, two of three letters differ and a suggestion would confuse; `keepalvie` and `keep_alive` have 0.8.
    const LIKENESS_MIN: f64 = 0.6;
    let typed = typed.to_lowercase().replace('-', "_");
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&typed, &name.replace('-', "_"));
    let (name, best) =
        names.into_iter().map(|name| (name, likeness(name))).max_by(|a, b| a.1.total_cmp(&b.1))?;
    (best >= LIKENESS_MIN).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, at: At) -> String {
        Problems::new("f", text, vec![Problem { at, path: "a.b".into(), text: "wrong".into() }]).to_string()
    }

    #[test]
    fn a_problem_shows_its_place() {
        assert_eq!(
            shown("x\na: söme", At { line: 2, column: 4, width: 4 }),
            "f:2:4: a.b: wrong\n    a: söme\n       ^^^^\n"
        );
    }

    #[test]
    fn carets_stay_in_the_line_and_long_lines_are_cut() {
        assert_eq!(
            shown("a: |", At { line: 1, column: 4, width: 99 }),
            "f:1:4: a.b: wrong\n    a: |\n       ^\n"
        );
        assert_eq!(shown("a:", At { line: 1, column: 3, width: 1 }), "f:1:3: a.b: wrong\n    a:\n      ^\n");
        let long = format!("{}X{}", "-".repeat(200), "-".repeat(200));
        let lines = shown(&long, At { line: 1, column: 201, width: 1 });
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[1].len(), 4 + EXCERPT_MAX);
        assert_eq!(lines[1].find('X'), lines[2].find('^'));
    }

    #[test]
    fn problems_come_in_the_order_of_the_file_and_end_somewhere() {
        let problem =
            |line| Problem { at: At { line, ..At::START }, path: String::new(), text: "wrong".into() };
        let shown = Problems::new("f", "", (1..=150).rev().map(problem).collect()).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!((lines[0], lines[99], lines[100]), ("f:1:1: wrong", "f:100:1: wrong", "f: and 50 more"));
        assert_eq!(lines.len(), 101);
    }

    #[test]
    fn only_close_names_are_suggested() {
        let names = ["keep_alive", "url", "urls", "outage"];
        assert_eq!(nearest("keepalvie", names), Some("keep_alive"));
        assert_eq!(nearest("Keep-Alive", names), Some("keep_alive"));
        assert_eq!(nearest("ulrs", names), Some("urls"));
        assert_eq!(nearest("port", names), None);
        assert_eq!(nearest("x", []), None);
    }
}
