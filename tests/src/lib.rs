//! Fixture of the tests that need privilege: network namespaces joined by a bridge, raw frames, nodes that run
//! the real daemon, and the tools of others that prove what it does.
//!
//! Everything panics instead of returning errors: it runs in tests only.

pub mod asks;
pub mod assembler;
pub mod background;
mod bpf;
pub mod cards;
pub mod chaos;
pub mod checker;
pub mod config_file;
pub mod figures;
pub mod flood;
pub mod for_all;
pub mod kernel;
pub mod lane;
pub mod live;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod pinger;
pub mod pins;
pub mod prog_run;
pub mod storm;
pub mod tools;
pub mod verifier;
pub mod wire;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

/// Calls `look` until it gives something, and returns that.
///
/// # Panics
/// After `within`, naming `what` was waited for.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {within:?} in vain for {what}");
        // Polled every 2 ms: far below every bound that a test asserts, far above what a look costs.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes a line to the standard error, past the capture of the test harness, so that whoever runs all tests sees it.
pub fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}

/// Shorthand for [`Duration::from_millis`].
pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
