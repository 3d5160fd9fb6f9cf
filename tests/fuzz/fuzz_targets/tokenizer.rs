#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| conpet_fuzz::run("tokenizer", data));
