#![no_main]

#[path = "../src/framing.rs"]
mod framing;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| framing::any_octets(octets));
