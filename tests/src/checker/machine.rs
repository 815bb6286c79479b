//! How the machine itself does. On a busy one, and in a guest most of all, a processor may do nothing for a third of a
//! second, and what is late by that is nobody's fault. So each processor asks a plain host for its own address all the
//! time, and the plain host's kernel, before which nothing of ours stands, answers on the processor that asks.

use std::{collections::VecDeque, net::Ipv4Addr};

use arpwarden_common::net::{Ipv4, MacAddr};

use super::segment::{Seen, asks};

/// A plain host's kernel answers within microseconds; within so long the machine has let it.
const PROMPT_NS: u64 = 1_000_000;
/// A processor that works asks every few milliseconds. What is beyond this between two questions that were answered at
/// once is time in which it stood still.
const REGULAR_NS: u64 = 10_000_000;
/// Looked back no further than this: ten times what anything is judged by.
const KEPT_NS: u64 = 10_000_000_000;

/// The MAC that a processor's question comes from.
pub const fn asker(processor: u8, number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr::new([0x02, 0xba, 0, processor, high, low])
}

/// A question of a processor for the plain host's address.
#[derive(Debug)]
struct Measure {
    asked_ns: u64,
    asker: MacAddr,
    answered_ns: Option<u64>,
}

impl Measure {
    /// When it was answered, if that was at once.
    fn promptly_ns(&self) -> Option<u64> {
        self.answered_ns.filter(|answered_ns| *answered_ns < self.asked_ns + PROMPT_NS)
    }
}

#[derive(Debug, Default)]
struct Processor {
    /// In order of time.
    measures: VecDeque<Measure>,
    /// When it asked the latest question that was answered at once.
    worked_ns: Option<u64>,
}

/// What the processors' questions tell. A machine of which nothing is asked counts as one that always works.
#[derive(Debug, Default)]
pub(super) struct Machine {
    plain: Option<(usize, Ipv4)>,
    processors: Vec<Processor>,
    /// From when to when one processor or another stood still, in order of time, none touching another.
    stood: VecDeque<(u64, u64)>,
    /// In all, in nanoseconds.
    pub(super) stood_ns: u64,
}

impl Machine {
    /// So many processors ask this host for its own address.
    pub(super) fn measure_by(&mut self, host: usize, own: Ipv4Addr, processors: u8) {
        self.plain = Some((host, own.into()));
        self.processors = (0..processors).map(|_| Processor::default()).collect();
    }

    /// Notes a frame that a host has sent, if it is a question of a processor or its answer.
    pub(super) fn take(&mut self, seen: &Seen) {
        let Some((host, own)) = self.plain else { return };
        let frame = seen.frame;
        let number = |mac: MacAddr| {
            let [_, _, _, processor, high, low] = mac.octets();
            (mac == asker(processor, u16::from_be_bytes([high, low]))).then_some(usize::from(processor))
        };
        if frame.target_ip == own && asks(&frame) {
            let asks = number(frame.source).and_then(|number| self.processors.get_mut(number));
            let Some(Processor { measures, .. }) = asks else { return };
            while measures.front().is_some_and(|measure| measure.asked_ns + KEPT_NS < seen.at_ns) {
                measures.pop_front();
            }
            measures.push_back(Measure { asked_ns: seen.at_ns, asker: frame.source, answered_ns: None });
        } else if seen.host == host && seen.is_answer() && frame.sender_ip == own {
            let asked = number(frame.destination).and_then(|number| self.processors.get_mut(number));
            let Some(Processor { measures, worked_ns }) = asked else { return };
            let Some(measure) = measures.iter_mut().rev().find(|measure| measure.asker == frame.destination)
            else {
                return;
            };
            measure.answered_ns.get_or_insert(seen.at_ns);
            if measure.promptly_ns().is_some() {
                let asked_ns = measure.asked_ns;
                if let Some(before_ns) = worked_ns.replace(asked_ns)
                    && before_ns + REGULAR_NS < asked_ns
                {
                    self.has_stood(before_ns + REGULAR_NS, asked_ns);
                }
            }
        }
    }

    /// Notes that a processor stood still; none that is noted later ends earlier.
    fn has_stood(&mut self, from_ns: u64, to_ns: u64) {
        let mut from_ns = from_ns;
        while let Some((begun, ended)) = self.stood.pop_back_if(|(_, ended)| *ended >= from_ns) {
            self.stood_ns -= ended - begun;
            from_ns = from_ns.min(begun);
        }
        self.stood_ns += to_ns - from_ns;
        self.stood.push_back((from_ns, to_ns));
        while self.stood.pop_front_if(|(_, ended)| *ended + KEPT_NS < to_ns).is_some() {}
    }

    /// By when every processor was asked after this moment and has answered at once: whatever else was to be answered
    /// then could have been.
    pub(super) fn could_answer_by(&self, from_ns: u64) -> Option<u64> {
        let by = |Processor { measures, .. }: &Processor| {
            let at = measures.partition_point(|measure| measure.asked_ns <= from_ns);
            measures.range(at..).find_map(Measure::promptly_ns).map(|answered_ns| answered_ns + PROMPT_NS)
        };
        self.processors.iter().map(by).try_fold(from_ns, |latest, by| Some(latest.max(by?)))
    }

    /// Up to when all that was on a cable has been acted upon: every processor has answered two questions that were
    /// asked later. One is not enough, as what a program sends back leaves at the end of a round of polling, behind what
    /// the kernel answers in the middle of it.
    pub(super) fn caught_up_ns(&self) -> u64 {
        let second_last = |Processor { measures, .. }: &Processor| {
            let answered = measures.iter().rev().filter(|measure| measure.answered_ns.is_some());
            answered.map(|measure| measure.asked_ns).nth(1).unwrap_or(0)
        };
        self.processors.iter().map(second_last).min().unwrap_or(u64::MAX)
    }

    /// Since when one processor or another may stand still now.
    fn stands_since(&self) -> u64 {
        let since = self.processors.iter().filter_map(|processor| processor.worked_ns);
        since.min().map_or(u64::MAX, |worked_ns| worked_ns + REGULAR_NS)
    }

    /// When the machine has worked for so long since a moment; `u64::MAX` if that is not known yet.
    pub(super) fn after(&self, from_ns: u64, ns: u64) -> u64 {
        let (mut at, mut left) = (from_ns, ns);
        for (begun, ended) in self.stood.iter().copied().chain([(self.stands_since(), u64::MAX)]) {
            let works = begun.saturating_sub(at);
            if works >= left {
                break;
            }
            left -= works;
            at = at.max(ended);
        }
        at.saturating_add(left)
    }

    /// Since when the machine has worked for so long up to a moment.
    pub(super) fn before(&self, to_ns: u64, ns: u64) -> u64 {
        let (mut at, mut left) = (to_ns, ns);
        for (begun, ended) in
            [(self.stands_since(), u64::MAX)].into_iter().chain(self.stood.iter().rev().copied())
        {
            let works = at.saturating_sub(ended);
            if works >= left {
                break;
            }
            left -= works;
            at = at.min(begun);
        }
        at.saturating_sub(left)
    }
}

#[cfg(test)]
mod tests {
    use arpwarden_common::wire::arp::{Outgoing, Parsed, parse};

    use super::*;
    use crate::{
        netns::ip,
        wire::{bytes, reply, request},
    };

    const MS: u64 = 1_000_000;
    const OWN: Ipv4Addr = ip(2);

    fn seen(host: usize, at_ns: u64, frame: &Outgoing) -> Seen {
        let bytes = bytes(frame);
        let Parsed::Arp(frame) = parse(bytes.as_slice()) else { panic!("{bytes:?} is no ARP") };
        Seen { host, from_host: true, at_ns, frame, bytes }
    }

    /// Each of two processors is asked at these milliseconds, and answers after so many nanoseconds.
    fn machine(asked: [&[u64]; 2], took_ns: u64) -> Machine {
        let mut machine = Machine::default();
        machine.measure_by(1, OWN, 2);
        let mut frames = Vec::new();
        for (processor, asked) in (0..).zip(asked) {
            for (number, at) in (0..).zip(asked) {
                let asker = asker(processor, number);
                frames.push(seen(4, at * MS, &request(asker, ip(250), OWN)));
                frames.push(seen(1, at * MS + took_ns, &reply(MacAddr::new([2; 6]), OWN, asker, ip(250))));
            }
        }
        frames.sort_by_key(|seen| seen.at_ns);
        frames.iter().for_each(|seen| machine.take(seen));
        machine
    }

    #[test]
    fn a_machine_that_nobody_asks_always_works() {
        let machine = Machine::default();
        assert_eq!(machine.after(5, 10), 15);
        assert_eq!(machine.before(15, 10), 5);
        assert_eq!(machine.caught_up_ns(), u64::MAX);
    }

    #[test]
    fn time_in_which_one_processor_or_another_stood_still_does_not_count() {
        let regular: Vec<u64> = (0..100).map(|number| 3 * number).collect();
        let works = machine([&regular, &regular], 10_000);
        assert_eq!((works.after(50 * MS, 100 * MS), works.stood_ns), (150 * MS, 0));
        // The first stands from 30 ms to 80 ms, the second from 60 ms to 90 ms: ten of each are as they may be.
        let at = |gone: std::ops::Range<u64>| -> Vec<u64> {
            (0..300).filter(|at| !(gone.start + 1..gone.end).contains(at)).collect()
        };
        let stood = machine([&at(30..80), &at(60..90)], 10_000);
        assert_eq!(stood.stood_ns, 50 * MS, "{:?}", stood.stood);
        assert_eq!(stood.after(20 * MS, 10 * MS), 30 * MS, "before it");
        assert_eq!(stood.after(35 * MS, 10 * MS), 95 * MS, "in the middle");
        assert_eq!(stood.after(45 * MS, 10 * MS), 100 * MS);
        assert_eq!(stood.before(95 * MS, 10 * MS), 35 * MS);
        assert_eq!(stood.before(35 * MS, 10 * MS), 25 * MS);
        assert_eq!(stood.before(200 * MS, 10 * MS), 190 * MS);
        // What is beyond the last question is not known.
        assert_eq!(stood.after(295 * MS, 10 * MS), 305 * MS);
        assert_eq!(stood.after(305 * MS, 10 * MS), u64::MAX);
        assert_eq!(stood.before(400 * MS, 10 * MS), 299 * MS);
    }

    #[test]
    fn slow_answers_are_no_work_but_show_what_has_been_acted_upon() {
        let regular: Vec<u64> = (0..100).map(|number| 3 * number).collect();
        let slow = machine([&regular, &regular], PROMPT_NS);
        assert_eq!(slow.could_answer_by(100 * MS), None);
        assert_eq!(slow.caught_up_ns(), 294 * MS, "the second last question");
        let prompt = machine([&regular, &[100, 140]], 10_000);
        assert_eq!(prompt.could_answer_by(100 * MS), Some(141 * MS + 10_000), "the slower of the two");
        assert_eq!(prompt.could_answer_by(99 * MS), Some(103 * MS + 10_000).max(Some(101 * MS + 10_000)));
        assert_eq!(prompt.could_answer_by(140 * MS), None, "one was not asked again");
        assert_eq!(prompt.caught_up_ns(), 100 * MS);
    }
}
