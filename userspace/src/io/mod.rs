//! Everything that touches the kernel: one module for each kind of thing.

pub mod arp_socket;
pub mod bpf;
pub mod clock;
pub mod control;
pub mod dice;
pub mod ethtool;
pub mod link;
pub mod netlink;

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime tell when `owner`'s descriptor is readable.
///
/// # Errors
/// The kernel's: no descriptor or memory is left.
///
/// # Panics
/// Outside of a tokio runtime with its I/O driver.
fn watch<T: AsFd + AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: all callers are in this module's files; each passes a type that owns one open descriptor, gives
    // the same one every time and closes it on drop only, and none swaps it behind the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }?)
}
