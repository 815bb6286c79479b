//! Requests that can be told apart, and who answered which of them how often.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arpwarden_common::{
    net::MacAddr,
    wire::arp::{MIN_FRAME, REPLY},
};

use crate::{
    background::Background,
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
pub struct Flood<const TAPS: usize> {
    sent: Arc<AtomicUsize>,
    work: Background<Flooded<TAPS>>,
}

/// What became of a flood: the requests, and what the taps have seen so far.
#[derive(Debug)]
pub struct Flooded<const TAPS: usize> {
    /// The requests.
    pub asked: Vec<Asked>,
    /// The taps, in the order in which they were given.
    pub taps: [Tapped; TAPS],
}

/// A tap, and what it has seen so far.
#[derive(Debug)]
pub struct Tapped {
    wire: Wire,
    seen: Vec<Captured>,
}

impl<const TAPS: usize> Flood<TAPS> {
    /// Begins at a host, one request every `gap`. What the taps see is taken in all the time: a flood is more than
    /// fits into a socket.
    pub fn start(host: &Host, addresses: &[Ipv4Addr], gap: Duration, taps: [Wire; TAPS]) -> Self {
        let (wire, addresses) = (host.wire(), addresses.to_vec());
        let sent = Arc::new(AtomicUsize::new(0));
        let so_far = Arc::clone(&sent);
        let work = Background::start(move |ended| {
            let mut taps = taps.map(|wire| Tapped { wire, seen: Vec::new() });
            let mut asked = Vec::new();
            for address in addresses.iter().cycle() {
                if ended.now() {
                    break;
                }
                asked.push(ask(&wire, *address));
                so_far.store(asked.len(), Ordering::Relaxed);
                std::thread::sleep(gap);
                // This one sees everything too.
                wire.drain();
                for tap in &mut taps {
                    tap.seen.extend(tap.wire.drain());
                }
            }
            Flooded { asked, taps }
        });
        Self { sent, work }
    }

    /// How many requests were sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it. All that it sent is on its way then; [`Tapped::settled`] waits until it was acted on.
    pub fn stop(self) -> Flooded<TAPS> {
        self.work.stop()
    }
}

impl Tapped {
    /// All that the tap has seen, as [`settled`].
    pub fn settled(self, asker: &Wire, answered: Ipv4Addr) -> Vec<Captured> {
        let Self { wire, mut seen } = self;
        seen.extend(settled(asker, answered, &wire));
        seen
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

/// An answer to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boot_ns: u64,
    /// The host's kernel has made it, not the program. The program turns the request around, padding and all; the
    /// kernel writes a frame of its own, which nothing pads on a veth.
    pub by_kernel: bool,
}

/// Answers on a tap.
#[derive(Debug)]
pub struct Answers(HashMap<(Ipv4Addr, MacAddr), Vec<Answer>>);

impl Answers {
    /// Those that the tap's host has sent.
    pub fn among(seen: &[Captured]) -> Self {
        let mut answers: HashMap<_, Vec<Answer>> = HashMap::new();
        for frame in seen.iter().filter(|frame| !frame.outgoing) {
            if let Some(arp) = frame.arp().filter(|arp| arp.operation == REPLY) {
                let answer = Answer { boot_ns: frame.boot_ns, by_kernel: frame.bytes.len() < MIN_FRAME };
                answers.entry((arp.sender_ip.into(), arp.destination)).or_default().push(answer);
            }
        }
        Self(answers)
    }

    /// The answers to a request.
    pub fn to(&self, asked: &Asked) -> &[Answer] {
        self.0.get(&(asked.address, asked.asker)).map_or(&[], Vec::as_slice)
    }

    /// Asserts that each of these requests was answered exactly once, and by the program.
    ///
    /// # Panics
    /// Otherwise, with the first ones.
    #[track_caller]
    pub fn one_each<'a>(&self, asked: impl IntoIterator<Item = &'a Asked>) {
        self.each(
            asked,
            "answered once by the program",
            |answers| matches!(answers, [one] if !one.by_kernel),
        );
    }

    /// Asserts that none of these requests was answered.
    ///
    /// # Panics
    /// Otherwise, with the first ones.
    #[track_caller]
    pub fn none<'a>(&self, asked: impl IntoIterator<Item = &'a Asked>) {
        self.each(asked, "left without an answer", <[_]>::is_empty);
    }

    #[track_caller]
    fn each<'a>(
        &self,
        asked: impl IntoIterator<Item = &'a Asked>,
        what: &str,
        right: impl Fn(&[Answer]) -> bool,
    ) {
        let all: Vec<&Asked> = asked.into_iter().collect();
        assert!(!all.is_empty(), "nothing was asked");
        let wrong: Vec<_> =
            all.iter().map(|asked| (asked, self.to(asked))).filter(|(_, answers)| !right(answers)).collect();
        assert!(
            wrong.is_empty(),
            "{} of {} requests were not {what}, among them {:#?}",
            wrong.len(),
            all.len(),
            &wrong[..wrong.len().min(3)]
        );
    }
}
