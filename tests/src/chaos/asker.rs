//! A host that never stops asking: whoever has an address has to answer all the time, whatever happens to it.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arpwarden_common::net::MacAddr;

use crate::{
    ms,
    netns::{Host, ip},
    wire::{bytes, request},
};

/// Between two questions: with six addresses each is asked for some fifty times a second.
const PACE: Duration = ms(3);

/// Asks for one address after the other on a thread of its own until dropped.
#[derive(Debug)]
pub(super) struct Asker {
    /// Whether it is to be quiet; held while it asks.
    quiet: Arc<Mutex<bool>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    /// Begins, from the cable of `host`; each question comes from a MAC that no question has come from for minutes, and
    /// right behind one for `yardstick`, which a plain host answers.
    pub(super) fn start(host: &Host, addresses: Vec<Ipv4Addr>, yardstick: Ipv4Addr) -> Self {
        let wire = host.wire();
        let (quiet, ended) = (Arc::new(Mutex::new(false)), Arc::new(AtomicBool::new(false)));
        let (pause, end) = (Arc::clone(&quiet), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let numbers = (0..=u16::MAX).cycle();
            for (number, address) in numbers.zip(addresses.iter().cycle()) {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let [high, low] = number.to_be_bytes();
                let asker = MacAddr::new([0x02, 0xba, 0, 0, high, low]);
                {
                    let quiet = pause.lock().unwrap_or_else(PoisonError::into_inner);
                    if !*quiet {
                        wire.send(&bytes(&request(asker, ip(250), yardstick)));
                        wire.send(&bytes(&request(asker, ip(250), *address)));
                    }
                }
                // The socket hears everything too, and nobody reads it.
                wire.drain();
                std::thread::sleep(PACE);
            }
        });
        Self { quiet, ended, thread: Some(thread) }
    }

    /// Nothing is asked as long as the value lives.
    #[must_use]
    pub(super) fn pause(&self) -> Quiet {
        *self.quiet.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Quiet(Arc::clone(&self.quiet))
    }
}

/// See [`Asker::pause`].
#[derive(Debug)]
pub(super) struct Quiet(Arc<Mutex<bool>>);

impl Drop for Quiet {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Had it panicked, the checker would have missed its questions.
            drop(thread.join());
        }
    }
}
