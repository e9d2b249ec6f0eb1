//! The fuzzer of one target, which `MACULA_FUZZ_TARGET` names: libFuzzer owns the command line.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("MACULA_FUZZ_TARGET").unwrap_or_default();
    macula_fuzz::target(&name).unwrap_or_else(|| panic!("there is no target '{name}'")).1
});

fuzz_target!(|input: &[u8]| TARGET(input));
