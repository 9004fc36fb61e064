//! What keeps a hundred thousand clients small: [`FewMap`] for what most have a few of, and some have many, [`Rare`] for what
//! most have nothing of.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Deref, DerefMut};

/// Entries of the longest vector: to move half of them costs no more than to find a place in a tree.
const FEW: usize = 32;

/// Entries at which a tree becomes a vector again: not one that the next few would make a tree once more.
const FEW_AGAIN: usize = 8;

/// A map in the order of its keys: a sorted vector as long as it is small, a tree beyond.
///
/// A node of a `BTreeMap` has room for eleven entries from the first on. A hundred thousand clients with two
/// subscriptions and three topic ids each fill a tenth of that.
#[derive(Debug, Clone)]
pub(super) enum FewMap<K, V> {
    /// In the order of their keys.
    Few(Vec<(K, V)>),
    #[expect(clippy::box_collection, reason = "a map is no larger than a vector then")]
    Many(Box<BTreeMap<K, V>>),
}

impl<K, V> Default for FewMap<K, V> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<K, V> FewMap<K, V> {
    /// An empty map.
    pub(super) const NONE: Self = Self::Few(Vec::new());
}

impl<K: Ord, V> FewMap<K, V> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Few(few) => Some(&few[find(few, key).ok()?].1),
            Self::Many(many) => many.get(key),
        }
    }

    pub(super) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Few(few) => {
                let at = find(few, key).ok()?;
                Some(&mut few[at].1)
            }
            Self::Many(many) => many.get_mut(key),
        }
    }

    pub(super) fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Puts `value` under `key`; returns what was there.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let few = match self {
            Self::Few(few) => few,
            Self::Many(many) => return many.insert(key, value),
        };
        match find(few, &key) {
            Ok(at) => return Some(std::mem::replace(&mut few[at].1, value)),
            Err(at) if few.len() < FEW => {
                make_place(few);
                few.insert(at, (key, value));
            }
            Err(_) => {
                let mut many: BTreeMap<_, _> = std::mem::take(few).into_iter().collect();
                many.insert(key, value);
                *self = Self::Many(Box::new(many));
            }
        }
        None
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Few(few) => {
                let at = find(few, key).ok()?;
                let (_, value) = few.remove(at);
                if few.is_empty() {
                    *few = Vec::new();
                }
                Some(value)
            }
            Self::Many(many) => {
                let value = many.remove(key)?;
                if many.len() <= FEW_AGAIN {
                    *self = Self::Few(std::mem::take(&mut **many).into_iter().collect());
                }
                Some(value)
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let (few, many) = match self {
            Self::Few(few) => (few.as_slice(), None),
            Self::Many(many) => (&[][..], Some(many)),
        };
        few.iter().map(|(key, value)| (key, value)).chain(many.into_iter().flat_map(|many| many.iter()))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        let (few, many) = match self {
            Self::Few(few) => (few.as_mut_slice(), None),
            Self::Many(many) => (&mut [][..], Some(many)),
        };
        few.iter_mut()
            .map(|(key, value)| (&*key, value))
            .chain(many.into_iter().flat_map(|many| many.iter_mut()))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    pub(super) fn into_entries(self) -> impl Iterator<Item = (K, V)> {
        let (few, many) = match self {
            Self::Few(few) => (few, BTreeMap::new()),
            Self::Many(many) => (Vec::new(), *many),
        };
        few.into_iter().chain(many)
    }
}

/// Room for one more, then for half as many again: most stay as few as they are.
pub(super) fn make_place<T>(few: &mut Vec<T>) {
    if few.len() == few.capacity() {
        few.reserve_exact((few.len() / 2).max(1));
    }
}

/// Places that an empty queue keeps for the next burst.
const SPARE_MAX: usize = 256;

/// The first of a queue through which everything goes. What a storm of ten thousand clients made of it is not kept for ever.
pub(super) fn pop_spare<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front();
    if queue.is_empty() && queue.capacity() > SPARE_MAX {
        *queue = VecDeque::new();
    }
    first
}

/// A word until there is something to hold: it is given a place when it is first changed, and gives it back with
/// [`Rare::tidy`].
#[derive(Debug)]
pub(super) struct Rare<T>(Option<Box<T>>);

/// What may hold nothing.
pub(super) trait Vacant: Sized + 'static {
    /// It holding nothing.
    const VACANT: &'static Self;

    /// Whether it says no more than [`Vacant::VACANT`].
    fn is_vacant(&self) -> bool;
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Vacant> Rare<T> {
    /// Gives the place back if there is nothing.
    pub(super) fn tidy(&mut self) {
        self.0.take_if(|it| it.is_vacant());
    }
}

impl<T: Vacant + Default> Rare<T> {
    /// What there is. Nothing is left.
    pub(super) fn take(&mut self) -> T {
        self.0.take().map_or_else(T::default, |it| *it)
    }
}

impl<T: Vacant> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::VACANT)
    }
}

impl<T: Vacant + Default> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: 'static> Vacant for Vec<T> {
    const VACANT: &'static Self = &Self::new();

    fn is_vacant(&self) -> bool {
        self.is_empty()
    }
}

impl<T: 'static> Vacant for BTreeSet<T> {
    const VACANT: &'static Self = &Self::new();

    fn is_vacant(&self) -> bool {
        self.is_empty()
    }
}

impl<T: 'static> Vacant for VecDeque<T> {
    const VACANT: &'static Self = &Self::new();

    fn is_vacant(&self) -> bool {
        self.is_empty()
    }
}

/// Where `key` is, or belongs.
fn find<K: Borrow<Q>, V, Q: Ord + ?Sized>(few: &[(K, V)], key: &Q) -> Result<usize, usize> {
    few.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_what_a_tree_does(
            steps in prop::collection::vec((0..60u8, prop::bool::weighted(0.6)), 0..300),
        ) {
            let (mut map, mut tree) = (FewMap::default(), BTreeMap::new());
            for (at, (key, inserts)) in steps.into_iter().enumerate() {
                match inserts {
                    true => prop_assert_eq!(map.insert(key, at), tree.insert(key, at)),
                    false => prop_assert_eq!(map.remove(&key), tree.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), tree.get(&key));
                prop_assert_eq!((map.len(), map.is_empty()), (tree.len(), tree.is_empty()));
                prop_assert!(map.iter().eq(tree.iter()));
            }
            if let Some(key) = tree.keys().next().copied() {
                *map.get_mut(&key).unwrap() += 1000;
                *tree.get_mut(&key).unwrap() += 1000;
            }
            map.values_mut().chain(tree.values_mut()).for_each(|value| *value += 1);
            prop_assert!(map.iter_mut().map(|(key, value)| (key, *value)).eq(tree.iter().map(|(k, v)| (k, *v))));
            prop_assert!(map.clone().into_entries().eq(tree));
        }

        #[test]
        fn it_is_a_vector_while_it_is_small(keys in prop::collection::btree_set(0..1000u16, FEW + 1)) {
            let mut map = FewMap::default();
            for (at, key) in keys.iter().enumerate() {
                prop_assert!(matches!(&map, FewMap::Few(few) if few.len() == at && few.capacity() < 2 * at.max(1)));
                map.insert(*key, ());
            }
            prop_assert!(matches!(map, FewMap::Many(_)));
            keys.iter().skip(FEW_AGAIN).for_each(|key| assert!(map.remove(key).is_some()));
            prop_assert!(matches!(&map, FewMap::Few(few) if few.len() == FEW_AGAIN));
            prop_assert!(map.keys().eq(keys.iter().take(FEW_AGAIN)) && map.values().count() == FEW_AGAIN);
        }
    }
}
