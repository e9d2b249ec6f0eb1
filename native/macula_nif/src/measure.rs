//! For tests (feature `measure`): the CPU time of every NIF call, and the bytes allocated here.
//!
//! With `MACULA_CALL_TIMES` naming a directory, a table is kept there in a file per VM, so that a
//! whole test run can be judged, nodes that were killed included; beside it each slow call, with
//! what the kernel did meanwhile.
//!
//! A virtual machine that is held up by its host charges that time to whichever thread it hits:
//! a loop of a few microseconds is then seen to take milliseconds. So every call is followed, in
//! the same thread, by such a loop under the name `control`: how often that one is slow says what
//! of the slowness is the machine's.

use rustler::{Env, Term};

#[cfg(not(feature = "measure"))]
mod inner {
    use rustler::{Encoder, Env, Term};
    use tokio::runtime::Handle;

    pub(crate) fn report(_: &Handle) {}

    pub(super) fn call_times(env: Env<'_>) -> Term<'_> {
        crate::atoms::not_recorded().encode(env)
    }

    pub(super) fn memory(env: Env<'_>) -> Term<'_> {
        crate::atoms::not_recorded().encode(env)
    }

    /// Records the rest of the block as one call of the named function.
    macro_rules! measured {
        ($name:literal, $scheduler:ident) => {};
    }
    pub(crate) use measured;
}

#[cfg(feature = "measure")]
mod inner {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::fmt::Write as _;
    use std::fs::File;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
    use std::time::{Duration, Instant};

    use nix::sys::resource::{UsageWho, getrusage};
    use nix::time::{ClockId, clock_gettime};
    use parking_lot::Mutex;
    use rustler::{Encoder, Env, Term};
    use tokio::runtime::Handle;

    /// How often the table is written; a killed VM loses no more than this.
    const WRITE_EVERY: Duration = Duration::from_millis(500);

    /// From here on a call holds up the other processes of its scheduler too long.
    const TOO_LONG: Duration = Duration::from_millis(1);

    /// Rounds of the control's loop: some 5 us, about what calls take.
    const ROUNDS: u32 = 10_000;

    static CONTROL: Meter = Meter::new("control", false);
    static METERS: Mutex<Vec<&'static Meter>> = Mutex::new(Vec::new());
    static SLOW: Mutex<Vec<Slow>> = Mutex::new(Vec::new());
    static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    struct Counting;

    // SAFETY: every call is passed on unchanged to the system allocator; counting touches nothing
    // of what it returns.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            ALLOCATED.fetch_add(layout.size(), Relaxed);
            // SAFETY: the caller's promise about `layout` is passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            ALLOCATED.fetch_sub(layout.size(), Relaxed);
            // SAFETY: the caller's promise about `block` and `layout` is passed on.
            unsafe { System.dealloc(block, layout) }
        }
    }

    /// The calls of one function.
    pub(crate) struct Meter {
        name: &'static str,
        dirty: bool,
        listed: AtomicBool,
        calls: AtomicU64,
        max_ns: AtomicU64,
        total_ns: AtomicU64,
        too_long: AtomicU64,
    }

    /// A call under way.
    pub(crate) struct Call {
        meter: &'static Meter,
        began: Spent,
    }

    /// What this thread has used up to now.
    struct Spent {
        cpu: Duration,
        at: Instant,
        page_faults: i64,
        preempted: i64,
    }

    /// A call that took too long. Where neither page faults nor work explain it, its whole machine stood
    /// still, which a thread that runs is charged with.
    struct Slow {
        name: &'static str,
        cpu: Duration,
        wall: Duration,
        page_faults: i64,
        preempted: i64,
    }

    impl Spent {
        fn now() -> Spent {
            let usage = getrusage(UsageWho::RUSAGE_THREAD);
            let [page_faults, preempted] = usage.map_or([0, 0], |usage| {
                [usage.minor_page_faults(), usage.involuntary_context_switches()]
            });
            Spent { at: Instant::now(), page_faults, preempted, cpu: thread_time() }
        }
    }

    impl Meter {
        pub(crate) const fn new(name: &'static str, dirty: bool) -> Meter {
            Meter {
                name,
                dirty,
                listed: AtomicBool::new(false),
                calls: AtomicU64::new(0),
                max_ns: AtomicU64::new(0),
                total_ns: AtomicU64::new(0),
                too_long: AtomicU64::new(0),
            }
        }

        pub(crate) fn call(&'static self) -> Call {
            if !self.listed.swap(true, Relaxed) {
                METERS.lock().push(self);
            }
            Call { meter: self, began: Spent::now() }
        }

        fn record(&self, began: &Spent) {
            let cpu = thread_time().saturating_sub(began.cpu);
            let ns = cpu.as_nanos() as u64;
            self.calls.fetch_add(1, Relaxed);
            self.max_ns.fetch_max(ns, Relaxed);
            self.total_ns.fetch_add(ns, Relaxed);
            if cpu <= TOO_LONG {
                return;
            }
            self.too_long.fetch_add(1, Relaxed);
            if !self.dirty {
                let ended = Spent::now();
                SLOW.lock().push(Slow {
                    name: self.name,
                    cpu,
                    wall: ended.at - began.at,
                    page_faults: ended.page_faults - began.page_faults,
                    preempted: ended.preempted - began.preempted,
                });
            }
        }
    }

    impl Drop for Call {
        fn drop(&mut self) {
            self.meter.record(&self.began);
            if !self.meter.dirty && self.meter.name != CONTROL.name {
                let _control = CONTROL.call();
                for round in 0..ROUNDS {
                    std::hint::black_box(round);
                }
            }
        }
    }

    /// CPU time of this thread: time in which the machine ran something else does not count.
    fn thread_time() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
    }

    pub(crate) fn report(handle: &Handle) {
        let Some(directory) = std::env::var_os("MACULA_CALL_TIMES") else {
            return;
        };
        let file = PathBuf::from(directory).join(std::process::id().to_string());
        handle.spawn(async move {
            loop {
                tokio::time::sleep(WRITE_EVERY).await;
                // A test's aid must not disturb what it measures: without the file, no table.
                let _ = write_table(&file.with_extension("tsv"));
                let _ = write_slow(&file.with_extension("slow_calls"));
            }
        });
    }

    fn write_slow(file: &Path) -> std::io::Result<()> {
        let mut lines = String::new();
        for Slow { name, cpu, wall, page_faults, preempted } in SLOW.lock().drain(..) {
            let (cpu, wall) = (cpu.as_micros(), wall.as_micros());
            let _ = writeln!(lines, "{name}\t{cpu}\t{wall}\t{page_faults}\t{preempted}");
        }
        if lines.is_empty() {
            return Ok(());
        }
        let mut file = File::options().create(true).append(true).open(file)?;
        file.write_all(lines.as_bytes())
    }

    fn write_table(file: &Path) -> std::io::Result<()> {
        let mut table = String::new();
        for meter in METERS.lock().iter() {
            let scheduler = if meter.dirty { "dirty" } else { "normal" };
            let [calls, max, total, too_long] =
                [&meter.calls, &meter.max_ns, &meter.total_ns, &meter.too_long]
                    .map(|count| count.load(Relaxed));
            let name = meter.name;
            let _ = writeln!(table, "{name}\t{scheduler}\t{calls}\t{max}\t{total}\t{too_long}");
        }
        let new = file.with_extension("new");
        std::fs::write(&new, table)?;
        std::fs::rename(new, file)
    }

    pub(super) fn call_times(env: Env<'_>) -> Term<'_> {
        let meters = METERS.lock();
        let rows = meters.iter().map(|meter| {
            let (calls, max) = (meter.calls.load(Relaxed), meter.max_ns.load(Relaxed));
            let name = rustler::Atom::from_str(env, meter.name);
            (name.ok(), calls, max, meter.dirty)
        });
        rows.collect::<Vec<_>>().encode(env)
    }

    pub(super) fn memory(env: Env<'_>) -> Term<'_> {
        ALLOCATED.load(Relaxed).encode(env)
    }

    macro_rules! measured {
        ($name:literal, normal) => {
            $crate::measure::measured!(@ $name, false)
        };
        ($name:literal, dirty) => {
            $crate::measure::measured!(@ $name, true)
        };
        (@ $name:literal, $dirty:literal) => {
            static METER: $crate::measure::Meter = $crate::measure::Meter::new($name, $dirty);
            let _call = METER.call();
        };
    }
    pub(crate) use measured;
}

pub(crate) use inner::*;

#[rustler::nif]
fn call_times(env: Env<'_>) -> Term<'_> {
    inner::call_times(env)
}

#[rustler::nif]
fn memory(env: Env<'_>) -> Term<'_> {
    inner::memory(env)
}
