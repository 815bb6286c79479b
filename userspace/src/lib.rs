//! The daemon and the command line of arpwarden, as a library so that tests and benchmarks use the same parts.

pub mod address;
mod alike;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod events;
pub mod exit;
pub mod instance;
pub mod io;
pub mod log;
#[cfg(feature = "omit")]
mod omit;
pub mod probe;
pub mod protocol;
pub mod short;
pub mod state_file;
pub mod unload;
