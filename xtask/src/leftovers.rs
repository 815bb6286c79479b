//! What a test or demonstration that was killed leaves behind: namespaces, processes in them, files.
//!
//! All of it is named `PREFIX<process id>-…`; what belongs to a process that still runs is not touched.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;

/// Removes what processes that are gone have left under this prefix.
pub(crate) fn clean_up(prefix: &str) -> Result<()> {
    for name in orphans(Path::new("/run/netns"), prefix) {
        for pid in process::output(process::as_user("ip").args(["netns", "pids", &name]))?.split_whitespace()
        {
            let pid = pid.parse().with_context(|| format!("process id in namespace {name}"))?;
            // One that has just ended by itself is as good as stopped.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        process::check(process::as_user("ip").args(["netns", "del", &name]))?;
        eprintln!("removed the namespace {name}, left behind by a run that was killed");
    }
    for directory in ["/run/arpwarden", "/sys/fs/bpf/arpwarden"].map(Path::new) {
        for name in orphans(directory, prefix) {
            let path = directory.join(name);
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            eprintln!("removed {}, left behind by a run that was killed", path.display());
        }
    }
    let logs = std::env::temp_dir();
    for name in orphans(&logs, prefix).into_iter().filter(|name| name.ends_with(".log")) {
        let path = logs.join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn orphans(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            owner(name, prefix).is_some_and(|pid| !Path::new("/proc").join(OsStr::new(pid)).exists())
        })
        .collect()
}

/// The process id in a name.
fn owner<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let pid = name.strip_prefix(prefix)?.split('-').next()?;
    (!pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_names_with_the_prefix_and_a_process_id_have_an_owner() {
        assert_eq!(owner("awt-123-a", "awt-"), Some("123"));
        assert_eq!(owner("awt-123", "awt-"), Some("123"));
        assert_eq!(owner("awt-", "awt-"), None);
        assert_eq!(owner("awt-x1-a", "awt-"), None);
        assert_eq!(owner("awd-123-a", "awt-"), None);
    }
}
