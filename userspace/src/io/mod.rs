//! Everything that touches the kernel: one module for each kind of thing.

pub mod arp_socket;
pub mod bpf;
pub mod clock;
pub mod control;
pub mod dice;
pub mod ethtool;
pub mod link;
pub mod memory;
pub mod netlink;
mod tc;

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime tell when `owner`'s descriptor is readable or in error.
///
/// # Errors
/// The kernel's: no descriptor or memory is left.
///
/// # Panics
/// Outside of a tokio runtime with its I/O driver.
fn watch<T: AsFd + AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: all callers are in this module's files; each passes a type that owns one open descriptor, gives
    // the same one every time and closes it on drop only, and none swaps it behind the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE | Interest::ERROR) }?)
}

#[cfg(test)]
mod own_network {
    //! A network namespace for a single test; it goes with the test's thread.

    use std::{
        io::{self, Write as _},
        process::{Command, Stdio},
        time::Duration,
    };

    use nix::mount::{MsFlags, mount};

    use super::{clock, netlink};

    /// Moves this thread, which the test has to itself, into a new network namespace with these links. `false`
    /// without the privilege, said on standard error.
    pub(super) fn with(links: &[&str]) -> bool {
        // SAFETY: takes no pointer; it changes the namespace of this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let why = io::Error::last_os_error();
            writeln!(io::stderr(), "skipped: a network namespace of its own needs root ({why})").unwrap();
            return false;
        }
        for arguments in links {
            ip(arguments);
        }
        if links == PAIR {
            // Until then the kernel drops what is sent, and says that it was sent.
            wait_for_carrier("a");
            wait_for_carrier("b");
        }
        true
    }

    /// [`with`], and a mount namespace of its own, in which no BPF file system is mounted yet.
    pub(super) fn with_mounts(links: &[&str]) -> bool {
        if !with(links) {
            return false;
        }
        // SAFETY: takes no pointer; it changes the namespace of this thread alone.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(unshared, 0, "{}", io::Error::last_os_error());
        let alone = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, alone, None::<&str>).unwrap();
        // Hides the host's, so that what a test pins goes with its thread however that ends.
        mount(Some("tmpfs"), "/sys/fs/bpf", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        true
    }

    fn wait_for_carrier(name: &str) {
        let index = nix::net::if_::if_nametoindex(name).unwrap();
        wait_until("a carrier", || netlink::now::link_now(index).unwrap().unwrap().running);
    }

    /// Waits for a fact, for as long as that can take on a busy machine.
    pub(super) fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
        let give_up = clock::now().after(Duration::from_secs(5));
        while !fact() {
            assert!(clock::now() < give_up, "still waiting for {what}");
            std::thread::yield_now();
        }
    }

    /// Runs ip(8) in the namespace of this thread.
    pub(super) fn ip(arguments: &str) {
        let done = Command::new("ip").args(arguments.split_whitespace()).status().expect("iproute2");
        assert!(done.success(), "ip {arguments}");
    }

    /// The same with a line of arguments each.
    pub(super) fn ip_batch(lines: &str) {
        let mut child =
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("ip reads");
        assert!(child.wait().expect("a child").success(), "{lines}");
    }

    /// A veth pair `a` and `b`, both up.
    pub(super) const PAIR: [&str; 3] =
        ["link add dev a type veth peer name b", "link set dev a up", "link set dev b up"];
}
