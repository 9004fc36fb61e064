//! The place in a text that figures are for.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use crate::failure::{Attempt, Failure};

/// What is between them is replaced.
const MARKS: [&str; 2] = ["<!-- bench -->\n", "<!-- /bench -->"];

pub(crate) struct Readme {
    path: PathBuf,
}

impl Readme {
    /// A file with both marks: better now than after all was measured.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        let readme = Self { path };
        readme.read()?;
        Ok(readme)
    }

    /// Puts `figures` where they belong; the rest stays as it is by now.
    pub(crate) fn write(&self, figures: &str) -> Result<(), Failure> {
        let (mut text, place) = self.read()?;
        text.replace_range(place, figures);
        fs::write(&self.path, text).attempt(format!("write {}", self.path.display()))
    }

    fn read(&self) -> Result<(String, Range<usize>), Failure> {
        let text = fs::read_to_string(&self.path).attempt(format!("read {}", self.path.display()))?;
        let place = place(&text).ok_or_else(|| Failure::NoMarks(self.path.clone()))?;
        Ok((text, place))
    }
}

fn place(text: &str) -> Option<Range<usize>> {
    let start = text.find(MARKS[0])? + MARKS[0].len();
    let len = text.get(start..)?.find(MARKS[1])?;
    Some(start..start + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_the_marks_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        fs::write(&path, "a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n").unwrap();
        for figures in ["new\nlines\n", ""] {
            Readme::open(path.clone()).unwrap().write(figures).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("a\n<!-- bench -->\n{figures}<!-- /bench -->\nb\n"));
        }
    }

    #[test]
    fn a_file_without_its_marks_in_their_order_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        assert!(Readme::open(path.clone()).is_err());
        for text in ["", "<!-- bench -->\n", "<!-- /bench -->\n<!-- bench -->\n"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Readme::open(path.clone()), Err(Failure::NoMarks(_))), "{text}");
        }
    }
}
