#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| brain_adapter_fuzz::dcp(data));
