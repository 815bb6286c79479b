//! The program's events and messages.

use std::{error::Error, fmt, io, os::fd::AsFd};

use arpwarden_common::abi::{self, Event};
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use log::Log;
use tokio::io::unix::AsyncFd;

use super::super::watch;

/// The program's events.
pub struct EventReader {
    pub(super) source: Source<RingBuf<MapData>>,
}

/// A descriptor that the runtime watches from the first time on that somebody waits for it.
pub(super) enum Source<T: AsFd + std::os::fd::AsRawFd> {
    Idle(T),
    Watched(AsyncFd<T>),
    Gone,
}

impl<T: AsFd + std::os::fd::AsRawFd> Source<T> {
    fn watched(&mut self) -> io::Result<&mut AsyncFd<T>> {
        if let Self::Idle(_) = self
            && let Self::Idle(owner) = std::mem::replace(self, Self::Gone)
        {
            *self = Self::Watched(watch(owner)?);
        }
        match self {
            Self::Watched(fd) => Ok(fd),
            Self::Idle(_) | Self::Gone => Err(io::Error::other("there is only one reader, and it is taken")),
        }
    }
}

impl EventReader {
    /// Waits until there may be an event. Dropping the future loses nothing. After this, [`EventReader::next`]
    /// until it gives none, or come back at once.
    ///
    /// # Errors
    /// There is a reader already, or the runtime is ending.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O driver.
    pub async fn readable(&mut self) -> io::Result<()> {
        let mut ready = self.source.watched()?.readable_mut().await?;
        ready.retain_ready();
        Ok(())
    }

    /// The next event, if there is one now.
    #[expect(clippy::should_implement_trait, reason = "after the last one now, more will come")]
    pub fn next(&mut self) -> Option<Result<Event, Undecodable>> {
        match &mut self.source {
            Source::Idle(ring) => next(ring),
            Source::Watched(fd) => {
                // Would block: forgets the readiness, unless the kernel has told of more since the look.
                let look = |ring: &mut RingBuf<MapData>| next(ring).ok_or(io::ErrorKind::WouldBlock.into());
                fd.try_io_mut(tokio::io::Interest::READABLE, look).ok()
            }
            Source::Gone => None,
        }
    }
}

fn next(ring: &mut RingBuf<MapData>) -> Option<Result<Event, Undecodable>> {
    let item = ring.next()?;
    Some(Event::decode(&item).ok_or(Undecodable { length: item.len() }))
}

/// An item of the ring that is no event of this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undecodable {
    /// Its bytes.
    pub length: usize,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "reading an event of the program: an item of {} bytes is none of layout version {}; it is skipped. \
             Program and daemon come from one build, so please report this",
            self.length,
            abi::ABI_VERSION
        )
    }
}

impl Error for Undecodable {}

/// The program's messages.
pub struct Logger {
    pub(super) source: Source<EbpfLogger<&'static dyn Log>>,
}

impl Logger {
    /// Waits for messages and hands them to the log. Dropping the future loses nothing. Call it again and again;
    /// where there is no runtime left it never comes back.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O driver.
    pub async fn flush_when_readable(&mut self) {
        let Ok(fd) = self.source.watched() else { return std::future::pending().await };
        let Ok(mut ready) = fd.readable_mut().await else { return std::future::pending().await };
        // A message comes with an event, and nobody waits for the message.
        tokio::task::yield_now().await;
        // Before the look: what comes during it makes it readable again.
        ready.clear_ready();
        ready.get_inner_mut().flush();
    }
}
