//! A map from topic filters to values that finds all filters a topic matches without looking at the others.

use std::collections::BTreeMap;

use super::{TopicFilter, TopicName};

/// A map with [`TopicFilter`] keys; [`FilterTree::matches`] costs a step per level of the topic and matching filter.
#[derive(Debug, Clone)]
pub struct FilterTree<V> {
    root: Node<V>,
    len: usize,
}

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

impl<V> Default for FilterTree<V> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<V> FilterTree<V> {
    /// Filters in the tree.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no filter in the tree.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of exactly this filter.
    pub fn get(&self, filter: &TopicFilter) -> Option<&V> {
        let mut node = &self.root;
        for level in filter.levels() {
            node = node.children.get(level)?;
        }
        node.entry.as_ref().map(|(_, value)| value)
    }

    /// The value of exactly this filter, to change it.
    pub fn get_mut(&mut self, filter: &TopicFilter) -> Option<&mut V> {
        let mut node = &mut self.root;
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
        let mut node = &mut self.root;
        for level in filter.levels() {
            node = node.children.entry(level.into()).or_default();
        }
        let len = &mut self.len;
        let entry = node.entry.get_or_insert_with(|| {
            *len += 1;
            (filter.clone(), V::default())
        });
        &mut entry.1
    }

    /// Takes the filter and its value out, and with them the levels that only it had.
    pub fn remove(&mut self, filter: &TopicFilter) -> Option<V> {
        let mut levels = filter.levels();
        let removed = remove_below(&mut self.root, &mut levels)?;
        self.len -= 1;
        Some(removed)
    }

    /// Calls `visit` for every filter that matches `topic`, in the order of the tree.
    pub fn matches<'a>(&'a self, topic: &TopicName, mut visit: impl FnMut(&'a TopicFilter, &'a V)) {
        let wild = !topic.as_str().starts_with('$');
        visit_matches(&self.root, topic.as_str(), wild, &mut visit);
    }

    /// Calls `visit` for every filter that overlaps `filter`, itself included if it is in the tree, and looks at no others than
    /// wildcards make it.
    pub fn overlapping<'a>(&'a self, filter: &TopicFilter, mut visit: impl FnMut(&'a TopicFilter, &'a V)) {
        // Wildcards that come first do not match what begins with `$` (MQTT 3.1.1 §4.7.2).
        visit_overlapping(&self.root, filter.as_str(), &mut |other: &'a TopicFilter, value| {
            if other.overlaps(filter) {
                visit(other, value);
            }
        });
    }

    /// Changes every value, in a fixed order.
    pub fn for_each_mut(&mut self, mut change: impl FnMut(&mut V)) {
        let mut stack = vec![&mut self.root];
        while let Some(node) = stack.pop() {
            stack.extend(node.children.values_mut().rev().map(Box::as_mut));
            if let Some((_, value)) = &mut node.entry {
                change(value);
            }
        }
    }

    /// All filters and their values, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicFilter, &V)> {
        let mut stack = vec![&self.root];
        std::iter::from_fn(move || {
            loop {
                let node = stack.pop()?;
                stack.extend(node.children.values().rev().map(Box::as_ref));
                if let Some((filter, value)) = &node.entry {
                    return Some((filter, value));
                }
            }
        })
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
        assert_eq!(tree.remove(&filter("a/b")), None);
        assert_eq!(tree.remove(&filter("a/b/+")), Some(1));
        assert_eq!((tree.len(), tree.get(&filter("a"))), (1, Some(&2)));
        assert!(tree.root.children["a"].children.is_empty());
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
        }
    }
}
