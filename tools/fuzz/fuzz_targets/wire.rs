#![no_main]

#[path = "../src/wire.rs"]
mod wire;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| {
    let _ = wire::any_octets(octets);
});
