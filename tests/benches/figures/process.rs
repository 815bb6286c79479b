//! What a process costs, as procfs tells it.

use std::{fs, time::Duration};

/// A process and those that it has started.
pub(crate) struct Processes(Vec<u32>);

impl Processes {
    pub(crate) fn of(pid: u32) -> Self {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        Self(std::iter::once(pid).chain(children).collect())
    }

    /// Processor time so far, in user space and in the kernel, to the nanosecond.
    pub(crate) fn cpu(&self) -> Duration {
        // schedstat: time on the CPU, time in the queue, time slices.
        let time = |text: String| text.split(' ').next()?.trim().parse::<u64>().ok();
        Duration::from_nanos(self.threads("schedstat").into_iter().filter_map(time).sum())
    }

    /// How often their threads were put on a CPU because they woke up, or after they had been pushed off it.
    pub(crate) fn switches(&self) -> u64 {
        let of = |text: String| -> u64 {
            text.lines()
                .filter(|line| line.contains("ctxt_switches"))
                .filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok())
                .sum()
        };
        self.threads("status").into_iter().map(of).sum()
    }

    /// Bytes in memory, shared ones included.
    pub(crate) fn resident(&self) -> f64 {
        let of = |pid: &u32| -> Option<f64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
        };
        self.0.iter().filter_map(of).sum()
    }

    fn threads(&self, file: &str) -> Vec<String> {
        let tasks = self.0.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
        // A thread may end between listing and reading.
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join(file)).ok()).collect()
    }
}
