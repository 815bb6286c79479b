//! The protocol engine of arpwarden.
//!
//! It never waits, reads a clock, draws a number or opens anything: [`Input`]s, the time and [`Dice`] come in,
//! [`Action`]s go out. The daemon performs the actions and reports their outcomes back as inputs.

pub mod action;
pub mod input;

pub use action::{Action, Answer, Event, EventKind, Purpose, Reason};
pub use input::{Dice, Input, Interface, MonoTime, OnlineSpec, RequestId};
