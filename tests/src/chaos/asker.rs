//! Hosts that never stop asking: whoever has an address has to answer all the time, whatever happens to it.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arpwarden_common::wire::arp::Outgoing;

use crate::{
    checker::asker,
    ms,
    netns::{Host, ip},
    wire::{Wire, bytes, request},
};

/// Between two questions of a processor for the yardstick, and between two of all processors for the other addresses:
/// with six of them each is asked for some fifty times a second, where a question costs a tenth of that at most. On a
/// slower machine ten times what it costs, which includes all that hosts and bridge do with it: the rest is for those who
/// look at the frames.
const PACE: Duration = ms(3);
const SLOWEST_PACE: Duration = ms(15);
/// A story is played on so many processors, or on all if there are fewer: each is asked all the time.
const MOST_PROCESSORS: usize = 2;

/// Processors, by the kernel's numbers.
#[derive(Debug)]
pub(super) struct Processors(Vec<usize>);

impl Processors {
    /// Some of those on which this thread may run. From now on it and the threads and processes that it starts run on
    /// these alone, and so does what the kernel does for them.
    pub(super) fn choose() -> Self {
        // SAFETY: all zeros is a value of this plain C struct, the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: length and pointer belong to `set`, alive during the call; 0 is this thread.
        let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
        assert_eq!(got, 0, "which processors this thread may run on: {}", io::Error::last_os_error());
        let most = usize::try_from(libc::CPU_SETSIZE).expect("a positive number");
        // SAFETY: `processor` is below the number of bits in the set.
        let chosen = (0..most).filter(|processor| unsafe { libc::CPU_ISSET(*processor, &set) });
        let chosen = Self(chosen.take(MOST_PROCESSORS).collect());
        run_on(&chosen.0);
        chosen
    }

    pub(super) fn count(&self) -> u8 {
        u8::try_from(self.0.len()).expect("a few")
    }
}

/// This thread runs on these processors alone.
fn run_on(processors: &[usize]) {
    // SAFETY: all zeros is a value of this plain C struct, the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for processor in processors {
        // SAFETY: the number comes out of such a set, so it is below the number of its bits.
        unsafe { libc::CPU_SET(*processor, &mut set) };
    }
    // SAFETY: length and pointer belong to `set`, alive during the call; 0 is this thread.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(done, 0, "running on processors {processors:?}: {}", io::Error::last_os_error());
}

/// Asks for one address after the other, on a thread for each processor, until dropped.
#[derive(Debug)]
pub(super) struct Asker {
    /// Whether it is to be quiet about the addresses; held while it asks.
    quiet: Arc<Mutex<bool>>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Asker {
    /// Begins, from the cable of `host`; each question comes from a MAC that no question has come from for minutes, and
    /// right behind one to a plain host for its own address, the yardstick. Each processor asks for that, in turn they
    /// ask for the others.
    pub(super) fn start(host: &Host, processors: &Processors, addresses: &[Ipv4Addr], plain: &Host) -> Self {
        let (quiet, ended) = (Arc::new(Mutex::new(false)), Arc::new(AtomicBool::new(false)));
        let count = processors.0.len();
        let threads = processors.0.iter().zip(0..).map(|(&processor, number)| {
            let wire = Wire::deaf(&host.ns, "eth0");
            let (pause, end) = (Arc::clone(&quiet), Arc::clone(&ended));
            let (addresses, plain) = (addresses.to_vec(), (plain.mac, plain.ip));
            std::thread::spawn(move || {
                run_on(&[processor]);
                // Every address is asked for on every processor.
                let first = usize::from(number) * addresses.len() / count;
                let mut addresses = addresses.iter().cycle().skip(first);
                for turn in (0..=u16::MAX).cycle() {
                    if end.load(Ordering::Relaxed) {
                        return;
                    }
                    let from = asker(number, turn);
                    let begun = Instant::now();
                    // To it alone: what all hosts hear costs a slow machine five times as much.
                    let (destination, own) = plain;
                    wire.send(&bytes(&Outgoing { destination, ..request(from, ip(250), own) }));
                    if usize::from(turn) % count == usize::from(number)
                        && let Some(address) = addresses.next()
                    {
                        let quiet = pause.lock().unwrap_or_else(PoisonError::into_inner);
                        if !*quiet {
                            wire.send(&bytes(&request(from, ip(250), *address)));
                        }
                    }
                    std::thread::sleep((begun.elapsed() * 10).clamp(PACE, SLOWEST_PACE));
                }
            })
        });
        let threads = threads.collect();
        Self { quiet, ended, threads }
    }

    /// Nobody is asked for the addresses as long as the value lives.
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
        for thread in self.threads.drain(..) {
            // Had it panicked, the checker would have missed its questions.
            drop(thread.join());
        }
    }
}
