//! The deterministic simulator.
//!
//! A seed makes a world: sensors on `node/`, some of which sleep, roam or have the id of another, a radio that loses,
//! copies, reorders and delays, in some worlds a serial line and radio modules beside it, and all of these go down and come
//! back, the gateway as a value, the embedded broker as a value behind a TCP connection that is cut
//! at any octet, in MQTT 3.1.1 or, translated, in MQTT 5. Two accounts that know nothing of the
//! gateway's insides ([`air`], [`link`]) follow every frame and every octet; where a store is and the process dies, [`talk`]
//! and [`told`] follow the frames, and know what was handed out and what is durable. A [`ledger`] follows every message from end
//! to end, and each [`law::Law`] is checked as soon as its facts are there. Then nothing goes wrong any more, and the world
//! must come to rest.
//!
//! ```text
//! cargo test --test sim                                       the usual seeds
//! SIM_SEEDS=20000 cargo test --test sim                       more of them (SIM_FIRST: from another one on; from 20000
//!                                                             on clients have links of their own, from 30000 on there
//!                                                             is a store, and the gateway dies now and then, from
//!                                                             40000 on clients are forgotten, too, from 50000 on
//!                                                             transports go down and come back, from 60000 on with a
//!                                                             store; from 1000000, 2000000 up to 6000000 on there are
//!                                                             a million more of each kind)
//! SIM_SEED=123 cargo test --test sim replay -- --nocapture    one world, with its trace (SIM_LINES: how much of it)
//! SIM_UPDATE=1 cargo test --test sim                          accept the figures of the usual seeds
//! ```
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what is wrong by panicking"
)]

mod air;
mod figures;
mod law;
mod ledger;
mod link;
mod observer;
mod plan;
mod sensor;
mod store;
mod talk;
mod told;
mod trace;
#[path = "../mqtt/translator.rs"]
mod translator;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use figures::Figures;
use law::{Checked, Law};
use plan::{CARRIERS, FORGETFUL, LASTING, LASTING_CARRIERS, SLEEPLESS, TRANSPARENT};
use trace::Trace;

/// Seeds of an ordinary run, by mode: the first, and how many.
const SEEDS: [(u64, u64); 2] = [(SLEEPLESS, 1100), (TRANSPARENT, 1100)];

/// Worlds with a store in an ordinary run, by kind: the first, and how many.
const STORED: [(u64, u64); 2] = [(LASTING, 3500), (FORGETFUL, 1500)];

/// Worlds whose transports go down and come back, without and with a store.
const CARRIED: [(u64, u64); 2] = [(CARRIERS, 400), (LASTING_CARRIERS, 400)];

/// Violations of one law that are told.
const TOLD: usize = 10;

#[test]
fn every_world_keeps_the_laws() {
    if is_chosen() {
        let (first, count) =
            (variable("SIM_FIRST").unwrap_or(SLEEPLESS), variable("SIM_SEEDS").unwrap_or(1000));
        keep_the_laws(&(first..first + count).collect::<Vec<_>>());
        return;
    }
    let seeds: Vec<u64> = SEEDS.iter().flat_map(|(first, count)| *first..first + count).collect();
    compare(&keep_the_laws(&seeds), "figures.txt", include_str!("figures.txt"));
}

#[test]
fn worlds_with_a_store_keep_the_laws() {
    if !is_chosen() {
        let seeds: Vec<u64> = STORED.iter().flat_map(|(first, count)| *first..first + count).collect();
        let figures = keep_the_laws(&seeds);
        compare(&figures, "stored.txt", include_str!("stored.txt"));
    }
}

#[test]
fn worlds_whose_transports_go_down_keep_the_laws() {
    if !is_chosen() {
        let seeds: Vec<u64> = CARRIED.iter().flat_map(|(first, count)| *first..first + count).collect();
        compare(&keep_the_laws(&seeds), "carried.txt", include_str!("carried.txt"));
    }
}

/// Whether other seeds are to be played than the usual ones.
fn is_chosen() -> bool {
    variable("SIM_FIRST").or(variable("SIM_SEEDS")).is_some()
}

/// Plays these worlds on all cores, and says what is wrong with them, or what they amount to.
fn keep_the_laws(seeds: &[u64]) -> Figures {
    let base = Instant::now();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let work = || {
        let (mut figures, mut failed) = (Figures::default(), Vec::new());
        while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            match play(seed, base).outcome {
                Ok(some) => figures.merge(some),
                Err(violation) => failed.push((seed, violation)),
            }
        }
        (figures, failed)
    };
    let (mut figures, mut failed) = (Figures::default(), Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (some, broken) = worker.join().expect("worlds do not panic outside of play");
            figures.merge(some);
            failed.extend(broken);
        }
    });
    failed.sort_by_key(|(seed, _)| *seed);
    println!("{} worlds in {:?}", seeds.len(), base.elapsed());
    if let Some((seed, _)) = failed.first() {
        let mut shown = BTreeMap::new();
        for (seed, violation) in &failed {
            let seeds: &mut Vec<u64> = shown.entry(violation.law).or_default();
            seeds.push(*seed);
            if seeds.len() <= TOLD {
                println!("seed {seed}: {violation}");
            }
        }
        println!("{shown:?}");
        report(*seed, 60);
        let (broken, all) = (failed.len(), seeds.len());
        panic!("{broken} of {all} worlds broke a law; replay the first with\n{}", command(*seed));
    }
    figures
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let kinds = SEEDS.iter().chain(&STORED).chain(&CARRIED);
    for seed in kinds.flat_map(|(first, _)| *first..first + 8) {
        let (first, second) = (play(seed, Instant::now()), play(seed, Instant::now()));
        assert_eq!(first.trace.hash(), second.trace.hash(), "seed {seed}");
    }
}

/// Plays the world of `SIM_SEED`, if that is set.
#[test]
fn replay() {
    if let Some(seed) = variable("SIM_SEED") {
        let lines = variable("SIM_LINES").unwrap_or(200) as usize;
        let played = report(seed, lines);
        assert!(played.outcome.is_ok(), "seed {seed} breaks a law");
    }
}

/// Worlds that broke a law once, named by what was wrong.
macro_rules! once_broken {
    ($($name:ident: $seed:literal;)*) => {
        mod once_broken { $(#[test] fn $name() { crate::holds($seed) })* }
    };
}

once_broken! {
    seed_17_a_pubrel_without_an_answer_was_forgotten: 17;
    seed_85_one_of_two_requests_for_a_filter_ended_both: 85;
    seed_153_a_retained_message_came_twice_for_one_subscribe: 153;
    seed_160_an_id_the_client_held_was_taken_back: 160;
    seed_162_a_disconnect_was_answered_that_answered_ours: 162;
    seed_321_a_refused_repetition_ended_the_subscription: 321;
    seed_354_a_client_was_deaf_to_register: 354;
    seed_441_a_late_suback_ended_the_subscription: 441;
    seed_917_an_old_suback_lowered_the_qos_of_a_newer_subscribe: 917;
    seed_1018_an_answer_ended_the_prompts: 1018;
    seed_1065_a_message_came_after_its_unsuback: 1065;
    seed_1813_a_refused_subscribe_brought_retained_messages: 1813;
    seed_1830_a_publish_under_way_was_dropped_by_unsubscribe: 1830;
    seed_2351_a_late_subscribe_stayed_at_the_broker: 2351;
    seed_2462_a_message_was_handed_out_beside_its_refusal: 2462;
    seed_3569_a_repetition_put_off_its_answer: 3569;
    seed_16893_a_subscribe_that_was_refused_when_repeated_stayed_at_the_broker: 16893;
    seed_20204_a_goodbye_at_the_old_place_left_the_connect_at_the_new_one_without_an_answer: 20204;
    seed_20968_an_id_that_a_pending_request_held_was_taken_back: 20968;
    seed_21679_a_repetition_named_its_topic_in_another_way_and_was_taken_for_new: 21679;
    seed_22071_a_connect_in_the_other_mode_left_one_that_waited: 22071;
    seed_13349_a_filter_that_ended_and_began_anew_hid_one_that_stayed: 13349;
    seed_16842_a_probe_was_expected_by_who_had_yet_to_subscribe_again: 16842;
    seed_17879_what_was_refused_for_its_topic_id_came_again_behind_qos_0: 17879;
    seed_1000708_a_message_sent_again_after_a_refusal_had_no_dup_in_its_second_round: 1000708;
    seed_1001774_what_was_raised_in_an_outage_was_expected_of_the_broker_before_it_knew: 1001774;
    seed_1001823_a_message_between_two_filters_that_changed_was_expected: 1001823;
    seed_1004752_one_of_two_copies_was_taken_for_the_other: 1004752;
    seed_1015796_what_was_handed_out_kept_a_live_message_in_the_account: 1015796;
    seed_1016354_a_filter_counted_as_granted_that_was_about_to_end: 1016354;
    seed_2000515_a_node_took_the_refusal_of_a_late_copy_for_its_own: 2000515;
    seed_2001152_qos_0_of_an_inherited_filter_that_had_ended_was_expected: 2001152;
    seed_2001337_a_message_of_an_inherited_filter_that_had_ended_was_expected: 2001337;
    seed_2002422_a_pubrec_behind_a_goodbye_was_held_to_be_heard: 2002422;
    seed_2002695_a_subscription_was_lowered_behind_a_promise: 2002695;
    seed_2002860_a_connection_that_timed_out_was_no_answer: 2002860;
    seed_2004488_a_retained_message_behind_connack_was_expected: 2004488;
    seed_2005541_a_message_before_connack_was_no_answer: 2005541;
    seed_2016644_a_late_willtopic_of_an_earlier_life_went_with_a_new_message: 2016644;
    seed_1207819_a_filter_without_an_answer_brought_a_second_copy: 1207819;
    seed_2202176_a_late_connect_began_a_clean_session_anew: 2202176;
    seed_1208250_an_answer_to_a_late_subscribe_was_taken_for_one_to_a_later: 1208250;
    seed_2401661_a_message_left_before_its_filter_in_the_same_write: 2401661;
    seed_2405953_a_client_connected_while_its_session_was_removed: 2405953;
    seed_2206569_a_client_was_lost_when_it_was_to_be_told_of_its_link: 2206569;
    seed_10023_three_subscription_identifiers_broke_the_connection: 10023;
    seed_4000249_a_repetition_that_waited_for_the_store_left_behind_its_answer: 4000249;
    seed_4001348_nobody_told_a_client_that_its_link_had_gone_for_another: 4001348;
    seed_4001544_a_filter_left_for_the_broker_beside_a_store_that_failed: 4001544;
    seed_4001894_a_session_was_removed_so_late_that_it_was_the_next_one: 4001894;
    seed_4300288_a_client_was_forgotten_twice_while_the_store_hung: 4300288;
    seed_4310216_a_repetition_was_the_first_of_its_round_after_a_connect: 4310216;
    seed_4311090_a_client_was_told_that_it_is_connected_when_it_had_been_forgotten: 4311090;
    seed_4000587_a_sleeper_asked_for_what_it_missed_before_it_was_told_that_it_sleeps: 4000587;
    seed_4301199_a_message_came_from_a_session_that_was_left_at_the_broker_too: 4301199;
    seed_40392_a_forgotten_client_left_a_packet_id_behind: 40392;
    seed_41376_a_message_waited_for_the_store_longer_than_it_might_for_the_broker: 41376;
    seed_30207_a_will_of_qos_2_had_no_row: 30207;
    seed_30366_a_packet_id_of_a_session_that_was_over_came_again: 30366;
    seed_30457_a_client_was_where_another_had_been: 30457;
    seed_30641_another_copy_was_the_best_after_a_crash: 30641;
    seed_30725_a_session_that_expired_left_packet_ids_behind: 30725;
    seed_30827_a_broker_lost_its_memory_while_the_gateway_was_down: 30827;
    seed_31116_what_came_behind_a_goodbye_was_not_read: 31116;
    seed_31177_a_filter_was_to_rise_from_qos_0: 31177;
    seed_31563_of_two_filters_as_good_the_younger_won_after_a_crash: 31563;
    seed_31592_the_gateway_remembered_a_filter_that_its_sensor_forgot: 31592;
    seed_31689_answers_to_two_pingreqs_waited_for_the_store: 31689;
    seed_31971_a_message_was_repeated_under_another_topic_id: 31971;
    seed_32019_of_qos_1_a_crash_left_its_place_and_no_packet_id: 32019;
    seed_32078_a_message_left_before_its_filter_was_asked_for_again: 32078;
    seed_32558_a_lost_session_had_no_filters_yet: 32558;
    seed_32563_a_crash_interrupted_a_purge: 32563;
    seed_33432_what_had_no_packet_id_was_repeated_twice: 33432;
    seed_33464_of_two_sensors_with_one_id_one_left_a_name_unanswered: 33464;
    seed_33508_a_register_that_was_held_back_outlived_its_session: 33508;
    seed_33513_a_message_of_qos_1_passed_one_of_qos_2: 33513;
    seed_3300211_a_puback_came_while_its_topic_was_registered_again: 3300211;
    seed_3311463_a_round_of_repetitions_began_anew_with_the_connection: 3311463;
    seed_33655_a_connack_that_waited_was_no_sign_of_life: 33655;
    seed_33749_a_pingreq_from_elsewhere_was_no_sign_of_life: 33749;
    seed_34001_a_broker_that_wanted_no_further_link_sent_two_copies: 34001;
    seed_34133_a_message_was_promised_before_the_suback: 34133;
    seed_34145_what_was_kept_for_one_client_changed_places: 34145;
    seed_34283_a_crash_found_a_filter_on_two_links: 34283;
    seed_34297_messages_were_repeated_in_the_order_in_which_they_were_given: 34297;
    seed_34303_a_request_had_the_packet_id_of_a_session_before: 34303;
    seed_34444_a_session_before_had_the_same_packet_id: 34444;
    seed_34453_the_broker_lost_a_session_with_its_filters: 34453;
    seed_50020_a_client_was_accepted_and_lost_while_its_transport_was_down: 50020;
    seed_50040_a_repetition_was_too_long_for_what_its_transport_took_by_then: 50040;
    seed_50145_a_name_was_registered_again_that_nobody_wanted_any_more: 50145;
    seed_50210_a_topic_id_was_told_on_a_transport_that_was_down: 50210;
    seed_60002_a_pubrel_from_before_a_crash_had_one_repetition_less: 60002;
    seed_60248_a_gateway_died_before_it_had_a_broker: 60248;
    seed_60346_a_message_of_qos_1_came_again_at_qos_2: 60346;
    seed_60742_retransmissions_were_counted_on_from_before_the_transport_went: 60742;
    seed_60832_a_message_waited_on_a_link_that_its_filter_had_left: 60832;
    seed_61200_a_client_kept_the_will_of_its_session_and_was_not_told: 61200;
    seed_61602_the_answer_to_a_goodbye_waited_for_the_store_behind_a_connack: 61602;
}

fn holds(seed: u64) {
    assert!(report(seed, 60).outcome.is_ok(), "seed {seed} breaks a law");
}

struct Played {
    trace: Trace,
    outcome: Checked<Figures>,
}

fn play(seed: u64, base: Instant) -> Played {
    let mut trace = Trace::new(base);
    let run = AssertUnwindSafe(|| world::run(seed, base, &mut trace));
    let outcome = catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Law::NoPanic.broken(text.unwrap_or_else(|| "a panic without words".into())))
    });
    Played { trace, outcome }
}

/// Plays a world and prints the end of its trace.
fn report(seed: u64, lines: usize) -> Played {
    let played = play(seed, Instant::now());
    println!("{}", played.trace.tail(lines));
    match &played.outcome {
        Ok(figures) => println!("{figures}"),
        Err(violation) => println!("seed {seed} breaks {violation}\n{}", command(seed)),
    }
    played
}

fn command(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test --test sim replay -- --nocapture")
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn compare(figures: &Figures, file: &str, snapshot: &str) {
    let figures = figures.to_string();
    if variable("SIM_UPDATE").is_some() {
        let path = format!("{}/tests/sim/{file}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, figures).expect("the figures can be written");
        return;
    }
    let differing = figures.lines().zip(snapshot.lines()).filter(|(new, old)| new != old);
    for (new, old) in differing {
        println!("- {old}\n+ {new}");
    }
    assert!(figures == snapshot, "the figures changed; if that is right: SIM_UPDATE=1 cargo test --test sim");
}
