#![no_main]

#[path = "../src/xbee.rs"]
mod xbee;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| xbee::any_octets(octets));
