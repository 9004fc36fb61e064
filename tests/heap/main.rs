//! What the core takes of the heap, counted by the allocator: for each session, topic id, subscription and kept message, and
//! for each message that passes. The figures are the same on every machine, and so are the bounds.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod core;

use std::ops::Range;
use std::time::Duration;

use allocation_counter::measure;
use mqtt_sn_gateway::gateway::io::{Control, RequestId};
use mqtt_sn_gateway::topic::ClientId;
use mqtt_sn_gateway::wire::{Qos, TopicRef};
use rumqttc::QoS;

use crate::core::{Core, id};

/// What a malloc adds to a block, and loses by rounding, at most on average.
const BLOCK: i64 = 16;

/// Clients at which octets are looked at: tables that double are as full as they get, and have just doubled.
const COUNTS: [u32; 4] = [1700, 1900, 3500, 3700];

/// After this time retained messages have come, and nothing is on its way.
const SETTLED: Duration = Duration::from_secs(15);

/// Octets that stay for each of so many things: the most that any of [`COUNTS`] finds. `make` adds the thing of this number.
fn octets_each(core: &mut Core, mut make: impl FnMut(&mut Core, u32)) -> i64 {
    let mut done = 0;
    let mut octets = 0;
    let each = COUNTS.iter().map(|count| {
        let info = measure(|| {
            (done..*count).for_each(|number| make(core, number));
            core.pass(SETTLED);
        });
        done = *count;
        octets += info.bytes_current + BLOCK * info.count_current;
        octets / i64::from(*count)
    });
    each.max().unwrap()
}

#[track_caller]
fn at_most(what: &str, found: i64, bound: i64) {
    println!("{what}: {found} (at most {bound})");
    assert!(found <= bound, "{what}: {found}, at most {bound}");
    // A bound that is far away holds nothing. Where addresses are shorter it is.
    let is_near = found >= bound * 3 / 4 || size_of::<usize>() < 8;
    assert!(is_near, "{what} is {found}: the bound {bound} can be lowered");
}

/// The bar for the whole process is 1,024.
#[test]
fn an_idle_session_is_small() {
    let mut core = Core::new();
    let session = octets_each(&mut core, |core, client| core.connect(client, true));
    at_most("octets of an idle session", session, 720);
}

#[test]
fn a_session_keeps_little_of_its_messages() {
    let mut core = Core::new();
    let session = octets_each(&mut core, |core, client| {
        core.connect(client, true);
        let topic = TopicRef::Normal(core.register(client, "heap/up"));
        core.subscribe(client, &format!("heap/down/{client}"), Qos::AtLeastOnce);
        for msg_id in 10..30 {
            core.publish(client, topic, Qos::AtLeastOnce, msg_id);
            core.broker_publishes(&format!("heap/down/{client}"), QoS::AtLeastOnce, b"20.5");
            core.acknowledge(client);
        }
    });
    at_most("octets of a session that has had 40 messages", session, 2150);
}

/// 100,000 of them are to fit into 150 MiB, with everything else.
#[test]
fn a_sleeper_with_a_subscription_is_small() {
    let mut core = Core::new();
    let sleeper = octets_each(&mut core, |core, client| {
        core.connect(client, false);
        core.subscribe(client, &format!("heap/down/{client}"), Qos::AtLeastOnce);
        core.sleep(client);
    });
    at_most("octets of a sleeper with a subscription", sleeper, 1150);
}

#[test]
fn a_topic_id_is_small() {
    for topics in [1, 10, 100] {
        let mut core = Core::new();
        (0..100).for_each(|client| core.connect(client, true));
        let info = measure(|| {
            for topic in 0..topics {
                for client in 0..100 {
                    core.register(client, &format!("heap/up/{client}/{topic}"));
                }
            }
        });
        let each = (info.bytes_current + BLOCK * info.count_current) / (100 * topics);
        at_most(&format!("octets of each of {topics} topic ids, with a name of 13"), each, 100);
    }
}

#[test]
fn a_kept_message_is_small() {
    let mut core = Core::new();
    for client in 0..1000 {
        core.connect(client, false);
        core.subscribe(client, &format!("heap/down/{client}"), Qos::AtLeastOnce);
        core.sleep(client);
    }
    let before = core.gw.waiting_messages();
    let info = measure(|| {
        for number in 0..10 {
            for client in 0..1000 {
                core.broker_publishes(&format!("heap/down/{client}"), QoS::AtLeastOnce, &[number; 20]);
            }
        }
    });
    assert_eq!(core.gw.waiting_messages() - before, 10_000);
    let each = (info.bytes_current + BLOCK * info.count_current) / 10_000;
    at_most("octets of a kept message of 20", each, 310);
}

#[test]
fn what_leaves_leaves_nothing() {
    let mut core = Core::new();
    let mut held = 0;
    let mut rounds = Vec::new();
    for round in 0..=20 {
        // The first is so large that tables need not grow after it, whatever marks what was removed leaves in them.
        let clients = round * 1000..round * 1000 + if round == 0 { 250 } else { 100 };
        let info = measure(|| come_and_leave(&mut core, clients));
        held += info.bytes_current;
        rounds.push(held);
    }
    println!("octets after each round: {rounds:?}");
    assert!(rounds.iter().all(|held| *held <= rounds[0]), "{rounds:?}");
}

/// Clients that do a bit of everything, half of them with sessions that would stay, and are forgotten.
fn come_and_leave(core: &mut Core, clients: Range<u32>) {
    for client in clients.clone() {
        core.connect(client, client % 2 == 0);
        let topic = TopicRef::Normal(core.register(client, &format!("heap/up/{client}")));
        core.publish(client, topic, Qos::AtLeastOnce, 7);
        core.subscribe(client, &format!("heap/down/{client}/#"), Qos::ExactlyOnce);
        core.broker_publishes(&format!("heap/down/{client}/1"), QoS::AtLeastOnce, b"one");
        core.sleep(client);
        core.broker_publishes(&format!("heap/down/{client}/2"), QoS::AtLeastOnce, b"two");
    }
    core.pass(SETTLED);
    for client in clients {
        let id = ClientId::new(id(client)).unwrap();
        core.control(Control::Forget(RequestId(u64::from(client)), id));
    }
    core.pass(SETTLED);
    assert_eq!((core.gw.sessions(), core.gw.waiting_messages()), (0, 0));
}

/// The payload's octets are not copied on their way up: that is the count of who refers to them. What comes down is copied out of
/// what was read from the broker: the topic, the payload, the message for who shares it, and its recipients.
#[test]
fn messages_that_pass_allocate_little() {
    let mut core = Core::new();
    for client in 0..10 {
        core.connect(client, true);
        core.subscribe(client, &format!("heap/down/{client}"), Qos::AtMostOnce);
    }
    core.pass(SETTLED);
    let ids: Vec<_> = (0..10).map(|client| core.register(client, &format!("heap/up/{client}"))).collect();
    for (what, qos, bound) in [("up, QoS 0", Qos::AtMostOnce, 1), ("up, QoS 1", Qos::AtLeastOnce, 2)] {
        let each = allocations_each(|number| {
            let topic = TopicRef::Normal(ids[usize::from(number % 10)]);
            core.publish(u32::from(number % 10), topic, qos, number)
        });
        at_most(&format!("allocations for a message {what}"), each, bound);
    }
    let each = allocations_each(|number| {
        core.broker_publishes(&format!("heap/down/{}", number % 10), QoS::AtMostOnce, b"20.5")
    });
    at_most("allocations for a message down, QoS 0", each, 4);
}

/// Allocations for each message once everything has its place; `pass` lets the message of this number pass.
fn allocations_each(mut pass: impl FnMut(u16) -> u64) -> i64 {
    (1..=200).for_each(|number| {
        pass(number);
    });
    let allocations: u64 = (201..=400).map(pass).sum();
    i64::try_from(allocations.div_ceil(200)).unwrap()
}
