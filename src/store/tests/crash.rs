//! What a power loss leaves of the file is what some number of batches made of it, and no fewer than were said to be durable.

use super::medium::{Medium, Op, apply};
use super::world::{World, empty, restore};
use crate::gateway::record::{Record, Row};
use crate::store::base::Base;
use crate::store::pending::Pending;

/// Batches of a run.
const BATCHES: usize = 12;

/// Ways in which a power loss treats what was not synced, tried at each point.
const WAYS: u64 = 4;

#[test]
fn a_power_loss_between_any_two_writes_leaves_whole_batches_and_all_durable_ones() {
    let mut tried = 0;
    for seed in 0..2 {
        let (start, journal, states) = run(seed);
        for point in 0..=journal.len() {
            for way in 0..WAYS {
                let (image, durable) = after_power_loss(&start, &journal[..point], way + seed * WAYS);
                let rows = restore(image).unwrap_or_else(|e| panic!("seed {seed}, {point}/{way}: {e:?}"));
                let found = states[durable..].iter().take(2).any(|state| *state == rows);
                assert!(found, "seed {seed}, {point}/{way}: not the state after batch {durable} or the next");
                tried += 1;
            }
        }
    }
    println!("{tried} power losses");
}

#[test]
fn a_crash_while_a_crash_is_mended_is_mended() {
    let (start, journal, states) = run(7);
    let middle = journal.len() * 2 / 3;
    let (image, durable) = after_power_loss(&start, &journal[..middle], 3);
    let medium = Medium::of(image.clone());
    medium.record();
    let base = Base::open(medium.boxed()).unwrap();
    let rows = base.rows().unwrap();
    drop(base);
    assert!(states[durable..].iter().take(2).any(|state| *state == rows));
    let mending = medium.journal();
    for point in 0..=mending.len() {
        for way in 0..WAYS {
            let (image, _) = after_power_loss(&image, &mending[..point], way);
            assert_eq!(restore(image).unwrap(), rows, "{point}/{way}");
        }
    }
}

/// An image, what was done to it, and the rows after each number of batches. The marks are of batches that are durable.
fn run(seed: u64) -> (Vec<u8>, Vec<Op>, Vec<Vec<Row>>) {
    let start = empty();
    let medium = Medium::of(start.clone());
    medium.record();
    let base = Base::open(medium.boxed()).unwrap();
    let mut world = World::new(seed);
    let mut states = vec![Vec::new()];
    for batch in 1..=BATCHES {
        base.commit(&pending(world.batch())).unwrap();
        medium.mark(batch);
        states.push(world.sorted());
    }
    // An orderly end is cut off as well.
    drop(base);
    (start, medium.journal(), states)
}

fn pending(records: Vec<Record>) -> Pending {
    let mut pending = Pending::default();
    pending.add(records);
    pending
}

/// What is left, and the last mark. Of what was not synced any part may be there, and of the last write the beginning; only
/// the length of a file changes in order.
fn after_power_loss(start: &[u8], journal: &[Op], way: u64) -> (Vec<u8>, usize) {
    let mut rng = fastrand::Rng::with_seed(way * 1_000_003 + journal.len() as u64);
    let mut image = start.to_vec();
    let synced = journal.iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |at| at + 1);
    let mut durable = 0;
    for op in journal {
        if let Op::Mark(mark) = op {
            durable = *mark;
        }
    }
    for op in &journal[..synced] {
        apply(&mut image, op);
    }
    let mut len_kept = true;
    for (left, op) in
        journal[synced..].iter().enumerate().map(|(at, op)| (journal.len() - synced - at - 1, op))
    {
        let kept = match way % 4 {
            0 => false,
            1 => true,
            _ => rng.bool(),
        };
        match op {
            Op::SetLen(_) => {
                len_kept &= kept;
                if len_kept {
                    apply(&mut image, op);
                }
            }
            Op::Write(offset, data) if left == 0 => {
                let torn = data[..rng.usize(..=data.len())].to_vec();
                apply(&mut image, &Op::Write(*offset, torn));
            }
            op if kept => apply(&mut image, op),
            _ => {}
        }
    }
    (image, durable)
}
