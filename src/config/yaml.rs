//! YAML text to a tree in which every value knows where it stands.
//!
//! The structure comes from saphyr-parser, which says where things are; what a plain scalar means (a number, a boolean,
//! nothing, a text) is for `serde_yaml` to say. Environment variables are replaced in values, never in keys, after the
//! text has been parsed: what a variable holds cannot change the structure. Anchors, aliases and tags are not offered.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_yaml::Value;

use super::problem::{At, Problem};

/// Levels of nesting; the schema has six, and a bound keeps recursion over a tree shallow.
const DEPTH_MAX: usize = 16;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) content: Content,
}

/// What stands there.
#[derive(Debug)]
pub(super) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file; keys may repeat.
    Map(Vec<(Key, Node)>),
    /// Something that cannot be used, and why.
    Unusable(String),
}

/// The key of a map's entry.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) at: At,
    pub(super) scalar: Scalar,
}

/// A value without parts.
#[derive(Debug)]
pub(super) struct Scalar {
    /// As written, without quotes, with environment variables replaced.
    pub(super) text: String,
    /// What `text` means: `Null`, `Bool`, `Number` or `String`.
    pub(super) value: Value,
    /// What stands in the file where that differs: variables may hold secrets, which no message may show.
    pub(super) written: Option<String>,
}

impl Scalar {
    /// What `text` is without quotes.
    pub(super) fn plain(text: String) -> Self {
        // A text with blanks is no number and must not be read as YAML: after a blank, `#` would begin a comment.
        let value = match text.contains(char::is_whitespace) {
            false => serde_yaml::from_str(&text).ok(),
            true => None,
        };
        match value {
            Some(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => {
                Self { text, value, written: None }
            }
            _ => Self::quoted(text),
        }
    }

    fn quoted(text: String) -> Self {
        Self { value: Value::String(text.clone()), text, written: None }
    }
}

/// Parses the one document in `text`; `None` if there is nothing but comments. `env` looks up environment variables.
pub(super) fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Node>, Problem> {
    let mut builder = Builder { open: Vec::new(), root: None };
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let at = place(Span::empty(*error.marker()));
            let before = text.lines().nth(at.line.saturating_sub(1)).unwrap_or_default();
            let before: String = before.chars().take(at.column).collect();
            // What is typed like this in most other formats.
            let hint = match before.contains("${") || before.contains("[::") {
                true => "; a value with braces or brackets in it needs quotes here",
                false => "",
            };
            problem(at, format!("not YAML: {}{hint}", error.info()))
        })?;
        let at = place(span);
        match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(problem(at, "a second document, expected one in a file"));
                }
            }
            Event::Scalar(text, style, _, tag) => {
                let plain = style == ScalarStyle::Plain;
                builder.scalar(at, &text, plain, tag.is_some(), env)?;
            }
            Event::SequenceStart(_, tag) => builder.begin(at, Content::List(Vec::new()), tag.is_some())?,
            Event::MappingStart(_, tag) => builder.begin(at, Content::Map(Vec::new()), tag.is_some())?,
            Event::SequenceEnd | Event::MappingEnd => builder.end()?,
            Event::Alias(_) => builder.add(Node { at, content: unusable("an alias") })?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    Ok(builder.root)
}

/// Puts nodes where they belong as the parser meets them.
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
}

/// A list or map that has begun and not ended.
struct Open {
    at: At,
    content: Content,
    /// In a map: the key whose value comes next.
    key: Option<Key>,
    tagged: bool,
}

impl Builder {
    fn scalar(
        &mut self,
        at: At,
        text: &str,
        plain: bool,
        tagged: bool,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), Problem> {
        let scalar = if plain { Scalar::plain } else { Scalar::quoted };
        if let Some(Open { content: Content::Map(_), key: key @ None, .. }) = self.open.last_mut() {
            *key = Some(Key { at, scalar: scalar(text.into()) });
            return Ok(());
        }
        let content = match expand(text, env) {
            _ if tagged => unusable("a tag"),
            Ok(expanded) => {
                let written = (expanded != text).then(|| text.into());
                Content::Scalar(Scalar { written, ..scalar(expanded) })
            }
            Err(why) => Content::Unusable(why),
        };
        self.add(Node { at, content })
    }

    fn begin(&mut self, at: At, content: Content, tagged: bool) -> Result<(), Problem> {
        if self.open.len() == DEPTH_MAX {
            return Err(problem(at, format!("more than {DEPTH_MAX} levels of nesting")));
        }
        self.open.push(Open { at, content, key: None, tagged });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Problem> {
        let Some(Open { at, content, tagged, .. }) = self.open.pop() else { return Ok(()) };
        let content = if tagged { unusable("a tag") } else { content };
        self.add(Node { at, content })
    }

    fn add(&mut self, node: Node) -> Result<(), Problem> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open { content: Content::List(items), .. }) => items.push(node),
            Some(Open { content: Content::Map(entries), key, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => return Err(problem(node.at, "a key with parts, expected a word")),
            },
            Some(_) => {}
        }
        Ok(())
    }
}

fn unusable(what: &str) -> Content {
    Content::Unusable(format!("found {what}, which is not offered here, expected the value itself"))
}

fn problem(at: At, text: impl Into<String>) -> Problem {
    Problem { at, path: String::new(), text: text.into() }
}

fn place(span: Span) -> At {
    At { line: span.start.line(), column: span.start.col() + 1, width: span.len().max(1) }
}

/// Replaces each `${NAME}` by that environment variable, and `$${` by `${`.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            expanded.extend([before, "${"]);
            rest = after;
            continue;
        }
        let Some((name, after)) = after.split_once('}') else {
            return Err(
                "\"${\" has no \"}\", expected the name of an environment variable between them".into()
            );
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(format!(
                "{:?} is no environment variable, expected a name as in ${{NAME}}",
                shorten(name)
            ));
        }
        let Some(value) = env(name) else {
            return Err(format!("the environment variable {name} is not set"));
        };
        expanded.extend([before, &value]);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// `text` as it can be shown in a message: its beginning where it is long, without control characters.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 60;
    let shown =
        text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let more = text.chars().nth(SHOWN_MAX).map(|_| '…');
    shown.chain(more).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "N" => Some("7".into()),
            "EVIL" => Some("7 # {a: [".into()),
            _ => None,
        }
    }

    fn value(text: &str) -> Value {
        match parse(text, &env).unwrap().unwrap().content {
            Content::Scalar(scalar) => scalar.value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_scalar_means_what_serde_yaml_says_and_a_quoted_one_is_text() {
        assert_eq!(value("7"), Value::from(7));
        assert_eq!(value("true"), Value::from(true));
        assert_eq!(value("~"), Value::Null);
        assert_eq!(value("'7'"), Value::from("7"));
        assert_eq!(value("7 eggs"), Value::from("7 eggs"));
        assert_eq!(value("|\n 7"), Value::from("7\n"));
    }

    #[test]
    fn variables_are_replaced_in_values_and_cannot_change_the_structure() {
        assert_eq!(value("${N}"), Value::from(7));
        assert_eq!(value("'${N}'"), Value::from("7"));
        assert_eq!(value("a${N}b${N}"), Value::from("a7b7"));
        assert_eq!(value("$${N} $N {}"), Value::from("${N} $N {}"));
        assert_eq!(value("${EVIL}"), Value::from("7 # {a: ["));
        for (bad, why) in [
            ("${X}", "the environment variable X is not set"),
            ("${N", "\"${\" has no \"}\", expected the name of an environment variable between them"),
            ("'${}'", "\"\" is no environment variable, expected a name as in ${NAME}"),
            ("${1}", "\"1\" is no environment variable, expected a name as in ${NAME}"),
        ] {
            let Content::Unusable(text) = parse(bad, &env).unwrap().unwrap().content else { panic!("{bad}") };
            assert_eq!(text, why);
        }
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth| parse(&"[".repeat(depth), &env).unwrap_err().text;
        assert_eq!(nested(17), "more than 16 levels of nesting");
        assert!(nested(16).starts_with("not YAML"));
        assert!(nested(100_000).starts_with("not YAML"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_tree_or_a_problem(text in "[-a-z0-9 \t\n:,#'\"&*!|>%@`?{}\\[\\]$é]{0,60}") {
            let _ = parse(&text, &env);
        }
    }
}
