//! Batches, frames and offset slots from arbitrary bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| queue::decode_anything(bytes));
