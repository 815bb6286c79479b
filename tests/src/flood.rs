//! Requests that can be told apart, and who answered which of them how often.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arpwarden_common::{net::MacAddr, wire::arp::REPLY};

use crate::{
    ms,
    netns::{Host, ip},
    wire::{Captured, Wire, bytes, request},
};

/// The address from which they ask; no host has it.
const FROM: Ipv4Addr = ip(200);

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// CLOCK_BOOTTIME in nanoseconds just before.
    pub sent_ns: u64,
    /// For which address.
    pub address: Ipv4Addr,
    /// Of no other request.
    pub asker: MacAddr,
}

/// Broadcasts one request, unlike every other of this process.
pub fn ask(wire: &Wire, address: Ipv4Addr) -> Asked {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [a, b, c, d] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let asker = MacAddr::new([0x02, 0xbd, a, b, c, d]);
    Asked { sent_ns: wire.send(&bytes(&request(asker, FROM, address))), address, asker }
}

/// Requests under way, for each of some addresses in turn.
#[derive(Debug)]
pub struct Flood {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Asked>>>,
}

impl Flood {
    /// Begins at a host, one request every `gap`.
    pub fn start(host: &Host, addresses: &[Ipv4Addr], gap: Duration) -> Self {
        let (wire, addresses) = (host.wire(), addresses.to_vec());
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for address in addresses.iter().cycle() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                asked.push(ask(&wire, *address));
                std::thread::sleep(gap);
            }
            asked
        });
        Self { end, thread: Some(thread) }
    }

    /// Ends it. All that it sent is on its way then; [`settled`] waits until it was acted on.
    pub fn stop(mut self) -> Vec<Asked> {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("not stopped yet");
        thread.join().expect("sending does not fail")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A test that fails has said why.
            drop(thread.join());
        }
    }
}

/// All that the tap has seen, once its host has acted on everything that was sent to it before. The host must
/// answer for `answered`; its daemon may be frozen or dead.
///
/// # Panics
/// If it does not answer.
pub fn settled(asker: &Wire, answered: Ipv4Addr, tap: &Wire) -> Vec<Captured> {
    let mut seen = Vec::new();
    // Twice: what the program sends back leaves when a batch is through, later than what the kernel says to
    // another frame of the batch.
    for _ in 0..2 {
        let asked = ask(asker, answered);
        seen.extend(tap.collect_until("an answer, after which all others are there", ms(5_000), |frame| {
            !frame.outgoing && asked.is_answered_by(frame)
        }));
    }
    seen
}

impl Asked {
    fn is_answered_by(&self, frame: &Captured) -> bool {
        let Self { address, asker, .. } = *self;
        frame.is_arp(|arp| {
            arp.operation == REPLY && arp.sender_ip == address.into() && arp.destination == asker
        })
    }
}

/// Answers by one MAC on a tap.
#[derive(Debug)]
pub struct Answers(HashMap<(Ipv4Addr, MacAddr), Vec<u64>>);

impl Answers {
    /// Those that the tap's host has sent.
    pub fn among(seen: &[Captured]) -> Self {
        let mut answers: HashMap<_, Vec<u64>> = HashMap::new();
        for frame in seen.iter().filter(|frame| !frame.outgoing) {
            if let Some(arp) = frame.arp().filter(|arp| arp.operation == REPLY) {
                answers.entry((arp.sender_ip.into(), arp.destination)).or_default().push(frame.boot_ns);
            }
        }
        Self(answers)
    }

    /// When a request was answered, CLOCK_BOOTTIME in nanoseconds.
    pub fn to(&self, asked: &Asked) -> &[u64] {
        self.0.get(&(asked.address, asked.asker)).map_or(&[], Vec::as_slice)
    }

    /// Asserts that each of these requests was answered exactly once.
    ///
    /// # Panics
    /// Otherwise, with the first ones.
    #[track_caller]
    pub fn one_each<'a>(&self, asked: impl IntoIterator<Item = &'a Asked>) {
        self.each(asked, 1);
    }

    /// Asserts that none of these requests was answered.
    ///
    /// # Panics
    /// Otherwise, with the first ones.
    #[track_caller]
    pub fn none<'a>(&self, asked: impl IntoIterator<Item = &'a Asked>) {
        self.each(asked, 0);
    }

    #[track_caller]
    fn each<'a>(&self, asked: impl IntoIterator<Item = &'a Asked>, times: usize) {
        let all: Vec<&Asked> = asked.into_iter().collect();
        assert!(!all.is_empty(), "nothing was asked");
        let wrong: Vec<_> =
            all.iter().map(|asked| (asked, self.to(asked))).filter(|(_, at)| at.len() != times).collect();
        assert!(
            wrong.is_empty(),
            "{} of {} requests were not answered {times} times, among them {:#?}",
            wrong.len(),
            all.len(),
            &wrong[..wrong.len().min(3)]
        );
    }
}
