//! One subscriber for the daemon's log and the program's.

use std::io::{self, BufWriter};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::LogLevel;

/// Lines that may wait for standard error: two of each of 4,096 addresses that change at once. Room for them is taken at
/// the start, 32 bytes each (the default of 128,000 lines took 4 MB).
const LINES: usize = 8_192;

/// Starts logging to standard error and returns the level of the program's messages for aya-log: 0 off to 5 trace.
///
/// `verbose` is the number of `-v`; RUST_LOG goes before it, and it goes before what is `configured`. Lines are written by a thread of their own, and
/// dropped when it cannot keep up: nothing on the announce path waits for a log. The guard flushes at the end.
///
/// # Errors
/// RUST_LOG is not understood.
pub fn start(verbose: u8, configured: LogLevel) -> anyhow::Result<(WorkerGuard, u8)> {
    let own = match verbose {
        0 => match configured {
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        },
        1 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text)
            .map_err(|error| anyhow::anyhow!("RUST_LOG '{text}' is not understood: {error}"))?,
        // The program logs under the same name. Of the libraries below only warnings: their debug lines are a line per netlink message.
        Ok(_) | Err(_) => EnvFilter::new(format!("warn,arpwarden={own}")),
    };
    let level = program_level(&filter);
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES)
        .thread_name("log")
        // The thread flushes when no more lines wait: one call of the kernel for all that came together.
        .finish(BufWriter::new(io::stderr()));
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_writer(writer).with_ansi(ansi))
        .try_init()?;
    Ok((guard, level))
}

/// The highest level that any part of the filter lets through.
fn program_level(filter: &EnvFilter) -> u8 {
    use tracing_subscriber::filter::LevelFilter;
    match filter.max_level_hint() {
        Some(LevelFilter::OFF) => 0,
        Some(LevelFilter::ERROR) => 1,
        Some(LevelFilter::WARN) => 2,
        Some(LevelFilter::INFO) | None => 3,
        Some(LevelFilter::DEBUG) => 4,
        Some(LevelFilter::TRACE) => 5,
    }
}
