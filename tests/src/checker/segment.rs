//! Everything that goes over the cables of a test network, with the kernel's times.

use std::{collections::VecDeque, fmt, time::Duration};

use arpwarden_common::{
    net::{Ipv4, MacAddr},
    wire::arp::{Form, Frame, REPLY, REQUEST},
};

use crate::{
    netns::Net,
    wire::{Captured, Wire, boot_ns, bytes, request},
};

/// An ARP frame on a cable.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whose cable.
    pub host: usize,
    /// The host sent it; else it was sent to the host.
    pub from_host: bool,
    /// CLOCK_BOOTTIME in nanoseconds at the far end of the cable.
    pub at_ns: u64,
    /// Its fields.
    pub frame: Frame,
    /// The whole of it.
    pub bytes: Vec<u8>,
}

impl Seen {
    /// Whether it answers a request.
    pub fn is_answer(&self) -> bool {
        self.frame.operation == REPLY && self.frame.form() != Form::Announcement
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [seconds, micros] = [self.at_ns / 1_000_000_000, self.at_ns / 1_000 % 1_000_000];
        let Self { host, frame, .. } = self;
        let way = if self.from_host { "from" } else { "to  " };
        let operation = if frame.operation == REQUEST { "request" } else { "reply" };
        write!(
            f,
            "{seconds}.{micros:06} {way} host {host}: {} > {} {operation} ({}), sender {} at {}, target {}",
            frame.source,
            frame.destination,
            frame.form().name(),
            frame.sender_ip,
            frame.sender_mac,
            frame.target_ip,
        )
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Taps on all cables.
#[derive(Debug)]
pub struct Segment {
    taps: Vec<Wire>,
    /// Speaks from the last host.
    fence: Wire,
    fences: u16,
    /// Seen by a tap and not yet handed out; those of one tap in order.
    waiting: Vec<Seen>,
    /// Handed out lately, for reports.
    recent: VecDeque<Seen>,
}

/// The asker of fences.
const FENCE: Ipv4 = Ipv4::new([10, 7, 0, 249]);
/// How long a host may take to answer for its own address: its kernel does so in microseconds, and a bridge port
/// whose link has just come up forwards nothing for 75 ms.
const PATIENCE_NS: u64 = 3_000_000_000;
/// A frame is in a tap's queue so long after the time that the kernel gave it: the two steps are microseconds apart on
/// one processor, which the hypervisor may take away between them.
const QUEUED_NS: u64 = 20_000_000;
/// Frames that are taken from a tap before the next one has its turn.
const AT_ONCE: usize = 1_024;
/// Frames remembered for reports: some ten seconds of a story, floods apart.
const RECENT: usize = 8_192;

impl Segment {
    /// Taps on the cables of all hosts; the last one is used to speak from.
    pub fn tap(net: &Net) -> Self {
        let last = net.hosts.last().expect("a network has hosts");
        Self {
            taps: (0..net.hosts.len()).map(|host| net.tap(host)).collect(),
            fence: Wire::deaf(&last.ns, "eth0"),
            fences: 0,
            waiting: Vec::new(),
            recent: VecDeque::new(),
        }
    }

    /// Takes what the taps have seen; gives the time up to which that is all.
    fn drain(&mut self) -> u64 {
        let mut all_until_ns = u64::MAX;
        for (host, tap) in self.taps.iter().enumerate() {
            let (mut taken, mut last_ns) = (0, 0);
            // None is to wait for long because of another one.
            for Captured { bytes, boot_ns, outgoing } in tap.drain_at_most(AT_ONCE) {
                (taken, last_ns) = (taken + 1, boot_ns);
                let captured = Captured { bytes, boot_ns, outgoing };
                let Some(frame) = captured.arp() else { continue };
                let Captured { bytes, .. } = captured;
                self.waiting.push(Seen { host, from_host: !outgoing, at_ns: boot_ns, frame, bytes });
            }
            if taken == AT_ONCE {
                all_until_ns = all_until_ns.min(last_ns);
            }
            // Whoever has not seen all can't judge.
            let lost = tap.lost();
            assert_eq!(
                lost, 0,
                "the machine is too slow: frames on the cable of host {host} were not taken in time"
            );
        }
        all_until_ns
    }

    /// What has passed so far, in order of time over all cables, and up to when that is; the last few milliseconds come
    /// the next time.
    pub fn read(&mut self) -> (Vec<Seen>, u64) {
        let until_ns = boot_ns() - QUEUED_NS;
        let until_ns = until_ns.min(self.drain());
        (self.hand_out(until_ns), until_ns)
    }

    fn hand_out(&mut self, until_ns: u64) -> Vec<Seen> {
        let (mut ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|seen| seen.at_ns <= until_ns);
        self.waiting = waiting;
        let ready: &mut Vec<Seen> = &mut ready;
        ready.sort_by_key(|seen| seen.at_ns);
        self.recent.extend(ready.iter().cloned());
        let surplus = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..surplus);
        std::mem::take(ready)
    }

    /// [`Segment::read`] up to now: each of these hosts has acted on all that was sent to it before, and what it has
    /// sent for that is among it.
    ///
    /// # Errors
    /// The number of the first host that does not answer for its own address.
    pub fn settle(
        &mut self,
        hosts: impl IntoIterator<Item = (usize, Ipv4)>,
    ) -> Result<(Vec<Seen>, u64), usize> {
        for (host, address) in hosts {
            // What a program sends back leaves at the end of a round of polling, behind what the kernel answers in
            // the middle of it: the second question comes in a later round.
            self.fence_off(host, address)?;
            self.fence_off(host, address)?;
        }
        let mut now_ns = boot_ns();
        while self.drain() < now_ns {
            now_ns = boot_ns();
        }
        Ok((self.hand_out(now_ns), now_ns))
    }

    /// Asks a host for its own address until it answers, which its kernel does behind all that came before.
    fn fence_off(&mut self, host: usize, address: Ipv4) -> Result<(), usize> {
        let deadline = boot_ns() + PATIENCE_NS;
        let own = host + 1 == self.taps.len();
        while boot_ns() < deadline {
            self.fences = self.fences.wrapping_add(1);
            let [high, low] = self.fences.to_be_bytes();
            let asker = MacAddr::new([0x02, 0xbf, 0, 0, high, low]);
            self.fence.send(&bytes(&request(asker, FENCE, address)));
            // The last host does not hear itself: its cable has seen what it sent.
            let passed = |seen: &Seen| {
                seen.host == host
                    && seen.from_host
                    && if own { seen.frame.source == asker } else { seen.frame.destination == asker }
            };
            // Asked again every 20 ms, for the question itself may be lost at a port that does not forward yet.
            let again = boot_ns() + 20_000_000;
            while boot_ns() < again {
                self.drain();
                if self.waiting.iter().any(passed) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        Err(host)
    }

    /// The frames about an address around a moment, handed out already.
    pub fn around(&self, address: Ipv4, at_ns: u64, most: usize) -> Vec<Seen> {
        let about = |seen: &&Seen| seen.frame.sender_ip == address || seen.frame.target_ip == address;
        let mut frames: Vec<Seen> = self.recent.iter().filter(about).cloned().collect();
        frames.sort_by_key(|seen| seen.at_ns.abs_diff(at_ns));
        frames.truncate(most);
        frames.sort_by_key(|seen| seen.at_ns);
        frames
    }

    /// The first frame of those not yet handed out, or handed out lately, that `wanted` likes.
    pub fn find(&mut self, wanted: impl Fn(&Seen) -> bool) -> Option<Seen> {
        self.drain();
        self.recent.iter().chain(&self.waiting).find(|seen| wanted(seen)).cloned()
    }
}

/// Whether a frame asks who has an address: a request that is not gratuitous.
pub fn asks(frame: &Frame) -> bool {
    frame.operation == REQUEST && frame.form() != Form::Announcement
}
