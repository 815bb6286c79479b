//! What the BPF program and the daemon share.
//!
//! The crate allocates nothing, logs nothing and depends on nothing, so that the same code runs per frame
//! in the kernel and in ordinary tests on the host. [`verdict`] is the one place where a frame's fate is
//! decided, on its way in and out, and [`defence`] where a claim is met; [`abi`] is the layout of every map and event; [`wire`] is the only place with protocol offsets.
#![cfg_attr(not(any(test, feature = "user", feature = "golden")), no_std)]

pub mod abi;
pub mod askers;
pub mod defence;
#[cfg(any(test, feature = "golden"))]
pub mod golden;
pub mod index;
pub mod names;
pub mod net;
mod pod;
pub mod report;
pub mod state;
pub mod verdict;
pub mod wire;
