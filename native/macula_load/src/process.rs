//! What a process uses, as the kernel counts it (proc(5)).

use std::fs;
use std::time::{Duration, Instant};

use crate::Error;

/// What a process has used until now.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// When it was looked.
    pub at: Instant,
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub memory: u64,
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// There is no such process, or it is another user's.
    pub fn of(pid: u32) -> Result<Usage, Error> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name before it, in parentheses, may hold anything.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = (number(11).unwrap_or(0), number(12).unwrap_or(0));
        Ok(Usage {
            at: Instant::now(),
            cpu: Duration::from_secs_f64((user + system) as f64 / TICKS),
            memory: resident(pid)?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number(17).unwrap_or(0) as usize,
        })
    }

    /// The share of one core that was used since `before`, in percent.
    pub fn percent_since(&self, before: &Usage) -> f64 {
        let passed = self.at.duration_since(before.at).as_secs_f64();
        100.0 * self.cpu_since(before).as_secs_f64() / passed.max(1e-9)
    }

    /// The CPU time used since `before`.
    pub fn cpu_since(&self, before: &Usage) -> Duration {
        self.cpu.saturating_sub(before.cpu)
    }
}

/// Clock ticks a second in which the kernel tells CPU times: fixed for all that read /proc.
const TICKS: f64 = 100.0;

fn resident(pid: u32) -> Result<u64, Error> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(number.ok_or("the kernel tells no resident memory")? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let before = Usage::of(std::process::id()).unwrap();
        let mut sum = 0u64;
        while before.at.elapsed() < Duration::from_millis(60) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let after = Usage::of(std::process::id()).unwrap();
        assert!(before.memory > 100_000 && before.descriptors > 2);
        assert!(before.threads > 0);
        assert!(after.cpu_since(&before) > Duration::ZERO);
    }
}
