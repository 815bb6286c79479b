//! The daemon and the command line of arpwarden, as a library so that tests and benchmarks use the same parts.

pub mod io;
