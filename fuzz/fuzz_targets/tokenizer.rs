//! Any bytes as a tokenizer: what loads tokenizes a report or refuses, BOS first and within the limit.
//!
//! `cargo +nightly fuzz run tokenizer fuzz/corpus/tokenizer tests/data/tokenizer`
#![no_main]

use brain_adapter::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes(data, 1) else { return };
    if let Ok(tokens) = tokenizer.encode("Memory complaints: <s> 2 years, MMSE 24/30.\n\u{2581}é日", 9) {
        assert!(tokens.ids.first() == Some(&1) && tokens.ids.len() <= 9);
    }
    let _ = tokenizer.to_json();
});
