//! What becomes of measurements: statistics, a table that is text and JSON alike, a plot.

pub mod plot;
pub mod stats;
pub mod table;
