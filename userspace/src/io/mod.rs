//! Everything that touches the kernel: one module for each kind of thing.

pub mod arp_socket;
pub mod bpf;
pub mod clock;
pub mod link;
pub mod netlink;
