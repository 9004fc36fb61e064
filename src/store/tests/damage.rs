//! A file that somebody or something has changed: its rows are right, or the start says what is wrong. Never anything between.

use super::medium::Medium;
use super::world::{World, empty, message, restore};
use crate::gateway::record::{MessageId, Record, Row};
use crate::store::base::{Base, Failure};
use crate::store::pending::Pending;

/// Where redb says which of two commits is the newest.
const GOD_BYTE: usize = 9;

/// Octets at the beginning of the file that say where everything is.
const HEADER: usize = 320;

/// Octets of it before the two commits.
const LAYOUT: usize = 64;

/// Octets in a page.
const PAGE: usize = 4096;

#[test]
fn a_file_that_was_cut_anywhere_is_damaged() {
    for (name, image, rows) in images() {
        let mut whole = 0;
        for end in 0..image.len() {
            match restore(image[..end].to_vec()) {
                Ok(found) => {
                    assert_eq!(found, rows, "{name}, {end}");
                    whole += 1;
                }
                Err(Failure::Damaged(what)) => assert!(!what.is_empty()),
                Err(other) => panic!("{name}, {end}: {other:?}"),
            }
        }
        println!("{name}: {} octets, {whole} cuts left everything that counts", image.len());
    }
}

#[test]
fn a_file_with_nothing_in_it_is_not_taken_for_a_new_one() {
    for image in [Vec::new(), vec![0; 10], vec![0; 1 << 20]] {
        assert!(matches!(restore(image), Err(Failure::Damaged(_))));
    }
}

#[test]
fn a_bit_that_flips_anywhere_is_found_or_does_not_matter() {
    let mut rng = fastrand::Rng::with_seed(3);
    for (name, image, rows) in images() {
        let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
        let mut places: Vec<_> = (0..LAYOUT).flat_map(|at| (0..8).map(move |bit| (at, bit))).collect();
        places.retain(|place| name == "closed" || *place != (GOD_BYTE, 0));
        places.extend((LAYOUT..HEADER).map(|at| (at, rng.u8(..8))));
        // What kind of page it is, and how many entries it has.
        places.extend((PAGE..image.len()).step_by(PAGE).flat_map(|at| (0..8).map(move |bit| (at + 2, bit))));
        places.extend(
            (PAGE..image.len()).step_by(PAGE).flat_map(|at| [(at, 0), (at, 1), (at + 1, 4), (at + 3, 0)]),
        );
        places.extend(std::iter::repeat_with(|| (used[rng.usize(..used.len())], rng.u8(..8))).take(300));
        let (mut found, mut harmless) = (0, 0);
        for (at, bit) in places {
            let mut image = image.clone();
            image[at] ^= 1 << bit;
            match restore(image.clone()) {
                Ok(restored) => {
                    harmless += 1;
                    assert_eq!(restored, rows, "{name}: octet {at}, bit {bit}");
                    go_on(image, rows.clone());
                }
                Err(Failure::Damaged(what)) => {
                    found += 1;
                    assert!(!what.is_empty());
                }
                Err(other) => panic!("{name}: octet {at}: {other:?}"),
            }
        }
        println!("{name}: {found} found, {harmless} of no matter");
        assert!(found > 100);
    }
}

/// Which of two commits counts is one bit, which nothing else in the file confirms until it was closed in order: after a crash
/// it may also not have been set yet. It is the one bit of which it is not known whether it flipped.
#[test]
fn one_bit_of_a_file_that_was_not_closed_can_take_back_one_commit() {
    let [(_, closed, rows), (_, open, _)] = images();
    let mut flipped = closed;
    flipped[GOD_BYTE] ^= 1;
    match restore(flipped) {
        Ok(found) => assert_eq!(found, rows, "the last two commits are of the same rows"),
        Err(failure) => assert!(matches!(failure, Failure::Damaged(_)), "{failure:?}"),
    }
    let mut flipped = open;
    flipped[GOD_BYTE] ^= 1;
    let before = run(11).1;
    match restore(flipped) {
        Ok(found) => assert_eq!(found, before, "whole, and one commit older"),
        Err(failure) => assert!(matches!(failure, Failure::Damaged(_)), "{failure:?}"),
    }
}

/// What was taken for whole can be written to.
fn go_on(image: Vec<u8>, mut rows: Vec<Row>) {
    let medium = Medium::of(image);
    let base = Base::open(medium.boxed()).unwrap();
    let mut pending = Pending::default();
    let row = Row::Message(MessageId(u64::MAX), message(vec![7; 20_000]).into());
    pending.add(vec![Record::Insert(row.clone())]);
    base.commit(&pending).unwrap();
    let at = rows.partition_point(|other| other.key() < row.key());
    rows.insert(at, row);
    assert_eq!(restore(medium.stable()).unwrap(), rows);
}

/// Of a store that was closed, and of one that was not, whose last bit (see above) is left alone.
fn images() -> [(&'static str, Vec<u8>, Vec<Row>); 2] {
    let (medium, rows, base) = run(12);
    let open = medium.image();
    drop(base);
    [("closed", medium.image(), rows.clone()), ("not closed", open, rows)]
}

fn run(batches: usize) -> (Medium, Vec<Row>, Base) {
    let medium = Medium::of(empty());
    let base = Base::open(medium.boxed()).unwrap();
    let mut world = World::new(21);
    for _ in 0..batches {
        let mut pending = Pending::default();
        pending.add(world.batch());
        base.commit(&pending).unwrap();
    }
    (medium, world.sorted(), base)
}
