//! A map from topic filters to values that finds all filters a topic matches without looking at the others.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{TopicFilter, TopicName};

/// A map with [`TopicFilter`] keys; [`FilterTree::matches`] costs a search among the filters without wildcards, and a step per
/// level of the topic and matching filter among the others.
#[derive(Debug, Clone)]
pub struct FilterTree<V> {
    /// Filters without wildcards, which are most: each matches the topic of its name.
    plain: BTreeMap<TopicFilter, V>,
    wild: Node<V>,
    wild_len: usize,
}

/// A level of filters with wildcards.
#[derive(Debug, Clone)]
struct Node<V> {
    entry: Option<(TopicFilter, V)>,
    /// Each in a place of its own: a map has room for eleven, and most have one or two.
    children: BTreeMap<Box<str>, Box<Node<V>>>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { entry: None, children: BTreeMap::new() }
    }
}

impl<V> Node<V> {
    /// The place of a filter, made if it is not there.
    fn below(&mut self, filter: &TopicFilter) -> &mut Self {
        filter.levels().fold(self, |node, level| node.children.entry(level.into()).or_default())
    }
}

impl<V> Default for FilterTree<V> {
    fn default() -> Self {
        Self { plain: BTreeMap::new(), wild: Node::default(), wild_len: 0 }
    }
}

impl<V> FromIterator<(TopicFilter, V)> for FilterTree<V> {
    /// Of two values of one filter the last stays. Costs less than to put in one by one, the less the more is in order.
    fn from_iter<I: IntoIterator<Item = (TopicFilter, V)>>(values: I) -> Self {
        let mut tree = Self::default();
        let mut plain = Vec::new();
        for (filter, value) in values {
            if filter.has_wildcard() {
                let entry = &mut tree.wild.below(&filter).entry;
                tree.wild_len += usize::from(entry.is_none());
                *entry = Some((filter, value));
            } else {
                plain.push((filter, value));
            }
        }
        tree.plain = plain.into_iter().collect();
        tree
    }
}

impl<V> FilterTree<V> {
    /// Filters in the tree.
    pub fn len(&self) -> usize {
        self.plain.len() + self.wild_len
    }

    /// Whether there is no filter in the tree.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of exactly this filter.
    pub fn get(&self, filter: &TopicFilter) -> Option<&V> {
        if !filter.has_wildcard() {
            return self.plain.get(filter);
        }
        let mut node = &self.wild;
        for level in filter.levels() {
            node = node.children.get(level)?;
        }
        node.entry.as_ref().map(|(_, value)| value)
    }

    /// The value of exactly this filter, to change it.
    pub fn get_mut(&mut self, filter: &TopicFilter) -> Option<&mut V> {
        if !filter.has_wildcard() {
            return self.plain.get_mut(filter);
        }
        let mut node = &mut self.wild;
        for level in filter.levels() {
            node = node.children.get_mut(level)?;
        }
        node.entry.as_mut().map(|(_, value)| value)
    }

    /// The value of this filter, made by `V::default` if it has none yet.
    pub fn get_or_default(&mut self, filter: &TopicFilter) -> &mut V
    where
        V: Default,
    {
        if !filter.has_wildcard() {
            return self.plain.entry(filter.clone()).or_default();
        }
        let entry = &mut self.wild.below(filter).entry;
        self.wild_len += usize::from(entry.is_none());
        &mut entry.get_or_insert_with(|| (filter.clone(), V::default())).1
    }

    /// Takes the filter and its value out, and with them the levels that only it had.
    pub fn remove(&mut self, filter: &TopicFilter) -> Option<V> {
        if !filter.has_wildcard() {
            return self.plain.remove(filter);
        }
        let mut levels = filter.levels();
        let removed = remove_below(&mut self.wild, &mut levels)?;
        self.wild_len -= 1;
        Some(removed)
    }

    /// Calls `visit` for every filter that matches `topic`, in a fixed order.
    pub fn matches<'a>(&'a self, topic: &TopicName, mut visit: impl FnMut(&'a TopicFilter, &'a V)) {
        if let Some((filter, value)) = self.plain.get_key_value(topic.as_str()) {
            visit(filter, value);
        }
        let wild = !topic.as_str().starts_with('$');
        visit_matches(&self.wild, topic.as_str(), wild, &mut visit);
    }

    /// Calls `visit` for every filter that overlaps `filter`, itself included if it is in the tree, and looks at no others than
    /// wildcards make it.
    pub fn overlapping<'a>(&'a self, filter: &TopicFilter, mut visit: impl FnMut(&'a TopicFilter, &'a V)) {
        for (other, value) in self.plain_below(filter).filter(|(other, _)| other.overlaps(filter)) {
            visit(other, value);
        }
        // Wildcards that come first do not match what begins with `$` (MQTT 3.1.1 §4.7.2).
        visit_overlapping(&self.wild, filter.as_str(), &mut |other: &'a TopicFilter, value| {
            if other.overlaps(filter) {
                visit(other, value);
            }
        });
    }

    /// The filters without wildcards that begin as `filter` does before its first wildcard: what it matches is among them.
    fn plain_below<'a>(&'a self, filter: &TopicFilter) -> impl Iterator<Item = (&'a TopicFilter, &'a V)> {
        let text = filter.as_str();
        let (prefix, itself) = match text.find(['+', '#']) {
            Some(at) => (Some(text[..at].to_owned()), text.strip_suffix("/#").unwrap_or(text)),
            None => (None, text),
        };
        // `a/#` matches `a` itself (MQTT 3.1.1 §4.7.1.2).
        let itself = self.plain.get_key_value(itself);
        let below = prefix.into_iter().flat_map(|prefix| {
            let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
            let range = self.plain.range::<str, _>(from);
            range.take_while(move |(other, _)| other.as_str().starts_with(&prefix))
        });
        itself.into_iter().chain(below)
    }

    /// Changes every value, in a fixed order.
    pub fn for_each_mut(&mut self, mut change: impl FnMut(&mut V)) {
        self.plain.values_mut().for_each(&mut change);
        let mut stack = vec![&mut self.wild];
        while let Some(node) = stack.pop() {
            stack.extend(node.children.values_mut().rev().map(Box::as_mut));
            if let Some((_, value)) = &mut node.entry {
                change(value);
            }
        }
    }

    /// All filters and their values, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicFilter, &V)> {
        let mut stack = vec![&self.wild];
        let wild = std::iter::from_fn(move || {
            loop {
                let node = stack.pop()?;
                stack.extend(node.children.values().rev().map(Box::as_ref));
                if let Some((filter, value)) = &node.entry {
                    return Some((filter, value));
                }
            }
        });
        self.plain.iter().chain(wild)
    }
}

fn remove_below<'a, V>(node: &mut Node<V>, levels: &mut impl Iterator<Item = &'a str>) -> Option<V> {
    let Some(level) = levels.next() else {
        return node.entry.take().map(|(_, value)| value);
    };
    let child = node.children.get_mut(level)?;
    let removed = remove_below(child, levels);
    if child.entry.is_none() && child.children.is_empty() {
        node.children.remove(level);
    }
    removed
}

/// `rest` is what of the topic lies below `node`; `wild` whether wildcards may match its first level.
fn visit_matches<'a, V>(
    node: &'a Node<V>,
    rest: &str,
    wild: bool,
    visit: &mut impl FnMut(&'a TopicFilter, &'a V),
) {
    let mut report = |node: &'a Node<V>| {
        if let Some((filter, value)) = &node.entry {
            visit(filter, value);
        }
    };
    let hash = |node: &'a Node<V>| node.children.get("#").map(Box::as_ref);
    if wild && let Some(all_below) = hash(node) {
        report(all_below);
    }
    let (level, below) = match rest.split_once('/') {
        Some((level, below)) => (level, Some(below)),
        None => (rest, None),
    };
    let plus = if wild { node.children.get("+") } else { None };
    for child in [node.children.get(level), plus].into_iter().flatten() {
        match below {
            Some(below) => visit_matches(child, below, true, visit),
            None => {
                if let Some((filter, value)) = &child.entry {
                    visit(filter, value);
                }
                // `a/#` matches `a` itself (MQTT 3.1.1 §4.7.1.2).
                if let Some((filter, value)) = hash(child).and_then(|all_below| all_below.entry.as_ref()) {
                    visit(filter, value);
                }
            }
        }
    }
}

/// `rest` is what of the filter lies below `node`.
fn visit_overlapping<'a, V>(node: &'a Node<V>, rest: &str, visit: &mut impl FnMut(&'a TopicFilter, &'a V)) {
    let (level, below) = match rest.split_once('/') {
        Some((level, below)) => (level, Some(below)),
        None => (rest, None),
    };
    let mut child_below = |child: &'a Node<V>| match below {
        Some(below) => visit_overlapping(child, below, visit),
        None => {
            // `a/#` matches `a` itself (MQTT 3.1.1 §4.7.1.2).
            let ends = [Some(child), child.children.get("#").map(Box::as_ref)];
            for (filter, value) in ends.into_iter().flatten().filter_map(|node| node.entry.as_ref()) {
                visit(filter, value);
            }
        }
    };
    match level {
        "#" => {
            let mut stack = vec![node];
            while let Some(node) = stack.pop() {
                stack.extend(node.children.values().rev().map(Box::as_ref));
                if let Some((filter, value)) = &node.entry {
                    visit(filter, value);
                }
            }
            return;
        }
        "+" => {
            let others = node.children.iter().filter(|(level, _)| &***level != "#");
            others.for_each(|(_, child)| child_below(child));
        }
        level => {
            let children = [node.children.get(level), node.children.get("+")];
            children.into_iter().flatten().for_each(|child| child_below(child));
        }
    }
    if let Some((filter, value)) = node.children.get("#").and_then(|all_below| all_below.entry.as_ref()) {
        visit(filter, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    #[test]
    fn removing_a_filter_leaves_nothing_of_it_behind() {
        let mut tree = FilterTree::default();
        *tree.get_or_default(&filter("a/b/+")) = 1;
        *tree.get_or_default(&filter("a")) = 2;
        *tree.get_or_default(&filter("a/#")) = 3;
        assert_eq!((tree.remove(&filter("a/b")), tree.remove(&filter("a/+"))), (None, None));
        assert_eq!(tree.remove(&filter("a/b/+")), Some(1));
        assert_eq!(tree.remove(&filter("a")), Some(2));
        assert_eq!((tree.len(), tree.get(&filter("a/#"))), (1, Some(&3)));
        assert!(tree.plain.is_empty());
        assert!(tree.wild.children["a"].children.keys().eq(["#".into()].iter()));
    }

    fn levels(wild: bool) -> impl Strategy<Value = String> {
        let level = if wild { "[ab+]|\\$S" } else { "[abc]|\\$S" };
        (prop::collection::vec(level, 1..4), prop::bool::ANY).prop_map(move |(mut levels, hash)| {
            if wild && hash {
                levels.push("#".into());
            }
            levels.join("/")
        })
    }

    proptest! {
        #[test]
        fn the_tree_finds_exactly_the_filters_that_overlap(
            filters in prop::collection::btree_set(levels(true), 0..12),
            one in levels(true),
        ) {
            let mut tree = FilterTree::default();
            for text in &filters {
                *tree.get_or_default(&filter(text)) = ();
            }
            let mut found = Vec::new();
            tree.overlapping(&filter(&one), |filter, ()| found.push(filter.clone()));
            found.sort();
            let mut expected: Vec<_> = filters.iter().map(|text| filter(text)).collect();
            expected.retain(|it| it.overlaps(&filter(&one)));
            expected.sort();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_tree_finds_exactly_the_filters_that_match(
            filters in prop::collection::btree_set(levels(true), 0..12),
            topic in levels(false),
        ) {
            let mut tree = FilterTree::default();
            for text in &filters {
                *tree.get_or_default(&filter(text)) = ();
            }
            let topic = TopicName::new(&topic).unwrap();
            let mut found = Vec::new();
            tree.matches(&topic, |filter, ()| found.push(filter.clone()));
            found.sort();
            let mut expected: Vec<_> = filters.iter().map(|text| filter(text)).collect();
            expected.retain(|filter| filter.matches(&topic));
            expected.sort();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(tree.iter().count(), filters.len());
            let again: FilterTree<()> = filters.iter().rev().map(|text| (filter(text), ())).collect();
            prop_assert!(again.len() == tree.len() && again.iter().eq(tree.iter()));
        }
    }
}
