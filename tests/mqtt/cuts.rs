//! Connections that are cut at any octet, in either direction, again and again: thousands of small worlds, each from a
//! seed. `MQTT_SEED=17 cargo test --test mqtt cuts` plays one of them.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use mqtt_sn_gateway::broker::{Fault, Limits, Memory};
use mqtt_sn_gateway::mqtt::{Counters, DeliveryId, Event, Protocol, QoS, Session, Token};

use crate::world::{World, counted, id, message, options};

const PUBLISHER: usize = 0;
const SUBSCRIBER: usize = 1;

/// What else goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgets {
    Nothing,
    /// The broker loses the publisher's session now and then, or the publisher does not want one.
    Publisher,
    /// The broker restarts without memory.
    Everything,
}

in_both_versions! {
    at_least_once_is_complete_and_in_order_over_cut_connections,
    exactly_once_is_complete_in_order_and_without_a_duplicate_over_cut_connections,
    at_least_once_is_complete_although_the_broker_forgets_the_session,
    a_broker_without_memory_gets_all_that_it_has_not_acknowledged_and_all_subscriptions,
}

/// Figures of many worlds, to see that they had something to survive.
#[derive(Debug, Default)]
struct Figures {
    messages: usize,
    cuts: usize,
    resent: u64,
    duplicates: u64,
    lost: u64,
}

fn at_least_once_is_complete_and_in_order_over_cut_connections(protocol: Protocol) {
    let figures = seeds(1_000, |seed| play(protocol, seed, QoS::AtLeastOnce, Forgets::Nothing));
    assert!(figures.messages >= 20_000 && figures.cuts > 2_000, "{figures:?}");
    assert!(figures.resent > 1_000 && figures.duplicates > 100 && figures.lost == 0, "{figures:?}");
}

fn exactly_once_is_complete_in_order_and_without_a_duplicate_over_cut_connections(protocol: Protocol) {
    let figures = seeds(1_000, |seed| play(protocol, seed, QoS::ExactlyOnce, Forgets::Nothing));
    assert!(figures.messages >= 20_000 && figures.cuts > 2_000, "{figures:?}");
    assert!(figures.resent > 1_000 && figures.duplicates > 100 && figures.lost == 0, "{figures:?}");
}

fn at_least_once_is_complete_although_the_broker_forgets_the_session(protocol: Protocol) {
    let figures = seeds(1_000, |seed| play(protocol, seed, QoS::AtLeastOnce, Forgets::Publisher));
    assert!(figures.messages >= 20_000 && figures.lost > 200, "{figures:?}");
    let figures = seeds(300, |seed| play(protocol, seed, QoS::ExactlyOnce, Forgets::Publisher));
    assert!(figures.messages >= 6_000 && figures.lost > 50, "{figures:?}");
}

fn a_broker_without_memory_gets_all_that_it_has_not_acknowledged_and_all_subscriptions(protocol: Protocol) {
    let figures = seeds(1_000, |seed| play(protocol, seed, QoS::AtLeastOnce, Forgets::Everything));
    assert!(figures.messages >= 20_000 && figures.lost > 500, "{figures:?}");
}

/// Plays the seeds, or the one that `MQTT_SEED` asks for; a failure names its seed.
fn seeds(count: u64, play: impl Fn(u64) -> Figures) -> Figures {
    if let Some(seed) = std::env::var("MQTT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        panic!("seed {seed}: {:?}", play(seed));
    }
    let mut sum = Figures::default();
    for seed in 0..count {
        let named = Named(seed);
        let figures = play(seed);
        std::mem::forget(named);
        sum.messages += figures.messages;
        sum.cuts += figures.cuts;
        sum.resent += figures.resent;
        sum.duplicates += figures.duplicates;
        sum.lost += figures.lost;
    }
    sum
}

/// Names the seed of a world that panics.
pub(crate) struct Named(pub(crate) u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("replay with MQTT_SEED={}", self.0);
    }
}

/// One world: a publisher sends some messages to a subscriber through the broker; everything moves in small steps in
/// random order, and connections are cut. Then the faults stop and everything must come to its end.
fn play(protocol: Protocol, seed: u64, qos: QoS, forgets: Forgets) -> Figures {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(Limits { window: rng.u16(1..10), ..Limits::default() });
    let mut publisher = options(protocol, "p");
    publisher.window = rng.u16(1..10);
    publisher.window_exactly_once = rng.u16(1..10);
    publisher.buffer = rng.usize(1..300);
    if forgets == Forgets::Publisher && rng.bool() {
        publisher.session = Session::Clean;
    }
    world.client(publisher);
    world.client(options(protocol, "s"));
    world.subscribe(SUBSCRIBER, qos);
    world.run();

    let mut player = Player {
        qos,
        tokens: Vec::new(),
        unsettled: Vec::new(),
        settled: BTreeSet::new(),
        cuts: 0,
        taken: [0, world.clients[SUBSCRIBER].events.len()],
    };
    let messages = rng.usize(15..30);
    let cut_every = rng.usize(20..200);
    let mut steps = 0;
    while player.tokens.len() < messages || rng.usize(0..200) > 0 {
        steps += 1;
        assert!(steps < 100_000, "the messages are never out");
        player.step(&mut world, &mut rng, messages, cut_every);
        if forgets == Forgets::Publisher && rng.usize(0..300) == 0 {
            world.inject(Fault::ForgetSession { client: id("p") });
        }
        if forgets == Forgets::Everything && rng.usize(0..300) == 0 {
            world.broker.restart(Memory::Lost);
        }
    }
    settle_down(&mut world, &mut player);
    check(&world, &player, forgets);
    let counters: Vec<&Counters> = world.clients.iter().map(|client| client.connection.counters()).collect();
    Figures {
        messages,
        cuts: player.cuts,
        resent: counters.iter().map(|counters| counters.resent).sum(),
        duplicates: counters.iter().map(|counters| counters.duplicates).sum(),
        lost: counters.iter().map(|counters| counters.sessions_lost).sum(),
    }
}

struct Player {
    qos: QoS,
    tokens: Vec<Token>,
    unsettled: Vec<DeliveryId>,
    settled: BTreeSet<DeliveryId>,
    cuts: usize,
    /// Events that were looked at, of each client.
    taken: [usize; 2],
}

impl Player {
    /// One small step of one of them.
    fn step(&mut self, world: &mut World, rng: &mut Rng, messages: usize, cut_every: usize) {
        let client = rng.usize(0..2);
        match rng.u8(0..9) {
            0 if self.tokens.len() < messages => {
                let publish = message(self.qos, self.tokens.len());
                self.tokens.extend(world.clients[PUBLISHER].connection.publish(publish).unwrap());
            }
            1 => drop(world.connect(client)),
            2 | 3 => drop(world.send(client)),
            4 => drop(world.deliver_up(client, rng.usize(1..40))),
            5 => drop(world.serve()),
            6 => drop(world.deliver_down(client, rng.usize(1..40))),
            7 => world.tell_broker(),
            _ if !self.unsettled.is_empty() => {
                let delivery = self.unsettled.swap_remove(rng.usize(0..self.unsettled.len()));
                self.settle(world, delivery);
            }
            _ => {}
        }
        if rng.usize(0..cut_every) == 0 {
            self.cuts += usize::from(world.clients[client].is_linked());
            world.cut(client, rng.bool());
        }
        self.events(world);
    }

    /// Takes the events; the subscriber subscribes again when the broker may have lost its session.
    fn events(&mut self, world: &mut World) {
        for client in [PUBLISHER, SUBSCRIBER] {
            world.collect(client);
            let new = world.clients[client].events[self.taken[client]..].to_vec();
            self.taken[client] += new.len();
            for event in new {
                match event {
                    Event::Message { delivery, .. } => self.unsettled.extend(delivery),
                    Event::Connected { session_present: false } if client == SUBSCRIBER => {
                        world.subscribe(SUBSCRIBER, self.qos);
                    }
                    _ => {}
                }
            }
        }
    }

    fn settle(&mut self, world: &mut World, delivery: DeliveryId) {
        assert!(self.settled.insert(delivery), "{delivery:?} came twice");
        world.clients[SUBSCRIBER].connection.settle(delivery);
    }
}

/// No more faults: everything comes to its end.
fn settle_down(world: &mut World, player: &mut Player) {
    for _ in 0..10_000 {
        world.tell_broker();
        world.run_for(Duration::from_secs(1));
        player.events(world);
        let quiet = player.unsettled.is_empty() && world.clients[PUBLISHER].connection.unfinished() == 0;
        for delivery in std::mem::take(&mut player.unsettled) {
            player.settle(world, delivery);
        }
        world.run();
        let session = world.broker.session("s");
        if quiet
            && session.is_some_and(|s| s.queued == 0 && s.unacknowledged.is_empty() && s.releasing.is_empty())
        {
            return;
        }
    }
    panic!("it never comes to its end: {:?}", world.clients[PUBLISHER].connection);
}

fn check(world: &World, player: &Player, forgets: Forgets) {
    for client in &world.clients {
        assert_eq!(client.failures, [], "an honest broker is never blamed");
    }
    let mut completed = world.clients[PUBLISHER].completed();
    completed.sort_unstable();
    assert_eq!(completed, player.tokens, "each publish completes once");

    let expected: Vec<String> = (0..player.tokens.len()).map(|n| n.to_string()).collect();
    let seen = world.clients[SUBSCRIBER].payloads();
    if player.qos == QoS::ExactlyOnce && forgets == Forgets::Nothing {
        assert_eq!(seen, expected, "exactly once, in order");
        return;
    }
    if forgets != Forgets::Everything {
        let mut first_seen = Vec::new();
        for payload in &seen {
            if !first_seen.contains(payload) {
                first_seen.push(payload.clone());
            }
        }
        assert_eq!(first_seen, expected, "at least once, in order of the first copies");
        assert_eq!(counted(seen).len(), expected.len());
        return;
    }
    // What a broker loses with its memory is gone; but the subscription is there again.
    let subscriptions = world.broker.session("s").map(|session| session.subscriptions.len());
    assert_eq!(subscriptions, Some(1));
}
