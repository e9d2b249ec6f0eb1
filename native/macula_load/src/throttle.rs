//! A share of CPU of its own for a process: a CPU control group where one can be made, else it is
//! only nice.

use std::fs;
use std::path::PathBuf;

/// Where version 1 of control groups has those of CPU.
const GROUPS: &str = "/sys/fs/cgroup/cpu";

/// The period over which a share is measured, in microseconds.
const PERIOD: u64 = 10_000;

/// A control group, which ends when it is dropped.
#[derive(Debug)]
pub struct Group(Option<PathBuf>);

impl Group {
    /// Lets the process `pid` have `percent` of one core at most.
    pub fn of(pid: u32, percent: u64) -> Group {
        let path = PathBuf::from(GROUPS).join(format!("macula_load_{pid}"));
        let made = || {
            fs::create_dir(&path)?;
            fs::write(path.join("cpu.cfs_period_us"), PERIOD.to_string())?;
            fs::write(path.join("cpu.cfs_quota_us"), (PERIOD * percent / 100).to_string())?;
            fs::write(path.join("cgroup.procs"), pid.to_string())
        };
        match made() {
            Ok(()) => Group(Some(path)),
            Err(_) => {
                let _ = fs::remove_dir(&path);
                Group(None)
            }
        }
    }

    /// Whether there is one.
    pub fn is_made(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Its process has ended, and goes from it a moment later.
            for _ in 0..50 {
                if fs::remove_dir(path).is_ok() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}
