//! Who may speak for an address, and who has to, at every moment: what the script knows, nothing that a node says.

use std::{collections::BTreeMap, net::Ipv4Addr};

/// What a host may do with an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Right {
    /// Send nothing in its name.
    Silent,
    /// Speak for it or not: something is under way, and the script does not see its moment.
    May,
    /// Answer for it.
    Must,
}

/// When a lease ends, in nanoseconds of CLOCK_BOOTTIME: not before `sure_ns`, at the latest at `latest_ns`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseEnd {
    /// Until then the right stands.
    pub sure_ns: u64,
    /// Beyond it there is none.
    pub latest_ns: u64,
}

#[derive(Clone, Debug)]
struct Mark {
    from_ns: u64,
    right: Right,
    lease: Option<LeaseEnd>,
    why: &'static str,
}

impl Mark {
    fn at(&self, ns: u64) -> Right {
        match self.lease {
            Some(LeaseEnd { latest_ns, .. }) if ns > latest_ns => Right::Silent,
            Some(LeaseEnd { sure_ns, .. }) if ns > sure_ns => self.right.min(Right::May),
            Some(_) | None => self.right,
        }
    }
}

/// The rights of all hosts to all addresses over time. Who is not in it may say nothing.
#[derive(Debug, Default)]
pub struct Rights {
    /// In order of time.
    marks: BTreeMap<(usize, Ipv4Addr), Vec<Mark>>,
}

/// Marks kept for each host and address; a story looks back one step at most, which makes a handful.
const KEPT: usize = 64;

impl Rights {
    /// From `from_ns` on `host` has this right to `address`. What was said of later moments holds no more. A lease
    /// that it has goes on, unless it becomes silent.
    pub fn set(&mut self, host: usize, address: Ipv4Addr, from_ns: u64, right: Right, why: &'static str) {
        let lease = if right == Right::Silent { None } else { self.lease(host, address, from_ns) };
        self.push(host, address, Mark { from_ns, right, lease, why });
    }

    /// From `from_ns` on its right ends with this lease, or with none.
    pub fn set_lease(&mut self, host: usize, address: Ipv4Addr, from_ns: u64, lease: Option<LeaseEnd>) {
        let right = self.at(host, address, from_ns);
        self.push(host, address, Mark { from_ns, right, lease, why: "leased" });
    }

    fn push(&mut self, host: usize, address: Ipv4Addr, mark: Mark) {
        let marks = self.marks.entry((host, address)).or_default();
        marks.retain(|earlier| earlier.from_ns < mark.from_ns);
        if marks.len() == KEPT {
            marks.drain(..KEPT / 2);
        }
        marks.push(mark);
    }

    fn mark(&self, host: usize, address: Ipv4Addr, ns: u64) -> Option<&Mark> {
        let marks = self.marks.get(&(host, address))?;
        marks.iter().rev().find(|mark| mark.from_ns <= ns)
    }

    fn lease(&self, host: usize, address: Ipv4Addr, ns: u64) -> Option<LeaseEnd> {
        self.mark(host, address, ns)?.lease
    }

    /// The right at one moment.
    pub fn at(&self, host: usize, address: Ipv4Addr, ns: u64) -> Right {
        self.mark(host, address, ns).map_or(Right::Silent, |mark| mark.at(ns))
    }

    /// The least and the greatest right in a period, both ends included.
    pub fn during(&self, host: usize, address: Ipv4Addr, from_ns: u64, to_ns: u64) -> (Right, Right) {
        let marks = self.marks.get(&(host, address)).map_or(&[][..], Vec::as_slice);
        let begins = marks.iter().map(|mark| mark.from_ns).filter(|&ns| from_ns < ns && ns <= to_ns);
        // A right only shrinks between two marks, so its extremes are where a mark begins and just before the next.
        let moments: Vec<u64> =
            begins.flat_map(|ns| [ns.saturating_sub(1), ns]).chain([from_ns, to_ns]).collect();
        let rights = moments.into_iter().map(|ns| self.at(host, address, ns));
        rights.fold((Right::Must, Right::Silent), |(least, most), right| (least.min(right), most.max(right)))
    }

    /// Who may speak for an address at some moment of a period.
    pub fn entitled(&self, address: Ipv4Addr, from_ns: u64, to_ns: u64) -> Vec<usize> {
        let hosts = self.marks.keys().filter(|(_, of)| *of == address).map(|(host, _)| *host);
        hosts.filter(|&host| self.during(host, address, from_ns, to_ns).1 >= Right::May).collect()
    }

    /// The right at a moment, since when, and why, in words.
    pub fn explain(&self, host: usize, address: Ipv4Addr, ns: u64) -> String {
        let Some(mark) = self.mark(host, address, ns) else { return "never had it".to_owned() };
        let since = (ns - mark.from_ns) / 1_000_000;
        let lease = match mark.lease {
            Some(LeaseEnd { latest_ns, .. }) if ns > latest_ns => {
                format!(", its lease ended {} ms ago at the latest", (ns - latest_ns) / 1_000_000)
            }
            Some(_) => ", its lease stands".to_owned(),
            None => String::new(),
        };
        format!("{:?} since {since} ms ({}){lease}", mark.right, mark.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 100);

    #[test]
    fn a_right_holds_from_its_mark_to_the_next_one() {
        let mut rights = Rights::default();
        assert_eq!(rights.at(0, A, 5), Right::Silent);
        rights.set(0, A, 10, Right::May, "begun");
        rights.set(0, A, 20, Right::Must, "done");
        rights.set(0, A, 30, Right::Silent, "given up");
        let expected =
            [(9, Right::Silent), (10, Right::May), (19, Right::May), (20, Right::Must), (30, Right::Silent)];
        for (ns, right) in expected {
            assert_eq!(rights.at(0, A, ns), right, "at {ns}");
        }
        assert_eq!(rights.during(0, A, 21, 29), (Right::Must, Right::Must));
        assert_eq!(rights.during(0, A, 15, 35), (Right::Silent, Right::Must));
        assert_eq!(rights.during(0, A, 5, 10), (Right::Silent, Right::May));
        assert_eq!(rights.at(1, A, 25), Right::Silent, "another host");
    }

    #[test]
    fn a_lease_ends_by_itself_and_lives_through_a_change_but_not_through_silence() {
        let mut rights = Rights::default();
        rights.set(0, A, 10, Right::Must, "online");
        rights.set_lease(0, A, 20, Some(LeaseEnd { sure_ns: 100, latest_ns: 120 }));
        rights.set(0, A, 50, Right::May, "link down");
        rights.set(0, A, 60, Right::Must, "link up");
        assert_eq!(rights.at(0, A, 100), Right::Must);
        assert_eq!(rights.at(0, A, 101), Right::May);
        assert_eq!(rights.at(0, A, 121), Right::Silent);
        assert_eq!(rights.during(0, A, 60, 121), (Right::Silent, Right::Must));
        rights.set(0, A, 130, Right::Silent, "offline");
        rights.set(0, A, 140, Right::Must, "online again, without");
        assert_eq!(rights.at(0, A, 1_000), Right::Must);
    }

    #[test]
    fn what_is_learnt_of_an_earlier_moment_replaces_what_was_said_of_later_ones() {
        let mut rights = Rights::default();
        rights.set(0, A, 10, Right::Must, "online");
        rights.set(0, A, 50, Right::May, "something");
        rights.set(0, A, 40, Right::Silent, "lost on the wire");
        assert_eq!(rights.at(0, A, 60), Right::Silent);
        assert_eq!(rights.at(0, A, 39), Right::Must);
        assert_eq!(rights.entitled(A, 41, 60), [0; 0]);
        assert_eq!(rights.entitled(A, 39, 60), [0]);
    }
}
