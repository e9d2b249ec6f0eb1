//! The hot functions of `macula_core`, measured by time and by instructions: `./dev bench core`.
//!
//! ```text
//! core_bench              times, by divan; its options are divan's
//! core_bench list         the names of the loads
//! core_bench count LOAD   runs a load once inside `counted`, for callgrind (bench/core/count.sh)
//! ```
#![allow(clippy::unwrap_used, clippy::panic)]

mod loads;

use divan::Bencher;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => loads::names().for_each(|name| println!("{name}")),
        ["count", name] => {
            let mut load = loads::prepared(name);
            // Once before: what is set up lazily is set up then.
            load();
            counted(&mut load);
        }
        _ => divan::main(),
    }
}

/// What callgrind counts, and nothing else: it is told to by this name.
#[inline(never)]
fn counted(load: &mut dyn FnMut()) {
    load();
}

#[divan::bench(args = loads::names())]
fn core(bencher: Bencher<'_, '_>, name: &str) {
    bencher.bench_local(loads::prepared(name));
}
