//! Bad input has a clear answer, before anything is sent: wrong usage ends with 2, a file that is not there with 1.

use crate::run;

#[test]
fn help_is_there_for_every_command_and_names_the_exit_codes() {
    for args in ["--help", "pub --help", "sub --help", "search --help", "fleet --help"] {
        let ran = run(args).ends_with(0);
        assert!(ran.out.contains("69"), "{args}: {}", ran.out);
    }
    run("--version").ends_with(0);
}

#[test]
fn what_is_missing_or_contradictory_is_named() {
    for (args, words) in [
        ("", "Usage"),
        ("bake", "unrecognized subcommand"),
        ("pub -m x", "--topic"),
        ("pub -t a", "--message"),
        ("pub -t a -m x --short ab", "cannot be used with"),
        ("pub -t a -m x -n", "cannot be used with"),
        ("pub -t a -m x -c", "--id"),
        ("pub -t a -m x --will-payload bye", "--will-topic"),
        ("pub -t a -m x -q -1", "-q -1 takes --predefined or --short"),
        ("sub", "--topic"),
        ("fleet --spread 2s --duration 1s", "--spread"),
    ] {
        run(args).ends_with(2).says(words);
    }
}

#[test]
fn each_bad_value_is_named() {
    for (args, words) in [
        ("pub -t a/# -m x", "wildcard"),
        ("pub -t a -m x -q 3", "must be -1, 0, 1 or 2"),
        ("pub -t a -m x -p 0", "'0'"),
        ("pub -t a -m x -p 70000", "70000"),
        ("pub -t a -m x -k 65536", "65535"),
        ("pub -t a -m 0g --hex", "not a hex digit"),
        ("pub --short abc -m x", "exactly two octets"),
        ("pub --short a# -m x", "wildcard"),
        ("pub --predefined 0 -m x", "from 1 to 65534"),
        ("pub -t a -m x --retry 0s", "more than 0"),
        ("pub -t a -m x --forwarder 0x1", "odd number"),
        ("sub -t a#", "misplaced wildcard"),
        ("sub -t a -q -1", "-1"),
        ("sub -t a -C 0", "'0'"),
        ("sub --predefined 7=a/#", "wildcard"),
        ("sub -t a --sleep 0s", "more than 0"),
        ("sub -t a --sleep 20h", "--sleep with all repetitions"),
        ("search -W never", "duration"),
        ("search --interface eth0", "interface"),
        ("fleet --nodes 0", "'0'"),
        ("fleet --rate often", "rate such as"),
        ("fleet --loss 5", "percent such as"),
        ("fleet --dup 101%", "between 0% and 100%"),
        ("fleet --duration 0s", "more than 0"),
        ("fleet --payload-size 3", "--payload-size"),
        ("fleet --topic a/#", "--topic"),
        ("fleet --verify http://x", "expected mqtt://"),
        ("fleet --nodes 60000 --rate 10000/s --duration 1d", "too many"),
    ] {
        run(args).ends_with(2).says(words);
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_a_failure_and_named() {
    run("pub -t a -f /nonexistent").ends_with(1).says("cannot read /nonexistent");
    run("fleet --report /nonexistent/x").ends_with(1).says("cannot write /nonexistent/x");
}
