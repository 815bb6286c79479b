//! The checker: believes no node, only what is on the wire and what the script of a test knows.
//!
//! It captures at the far end of every host's cable, so it sees what a host really sends, whatever a program there
//! does with what comes in. [`Rights`] says who may speak for an address, and who has to, at every moment; the
//! [`Judge`] compares the two.

mod judge;
mod machine;
mod rights;
mod segment;

use std::net::Ipv4Addr;

use arpwarden_common::net::Ipv4;

pub use self::{
    judge::{ANSWER_NS, Duty, IN_FLIGHT_NS, Judge, Kind, Ledger, Violation},
    machine::asker,
    rights::{LeaseEnd, Right, Rights},
    segment::{Seen, Segment, asks},
};
use crate::netns::Net;

/// A segment under watch.
#[derive(Debug)]
pub struct Checker {
    /// What is seen.
    pub segment: Segment,
    /// What is thought of it.
    pub judge: Judge,
    /// The hosts' own addresses.
    hosts: Vec<Ipv4>,
}

impl Checker {
    /// Watches all cables of `net` for frames about `addresses`.
    pub fn watch(net: &Net, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let macs = net.hosts.iter().map(|host| host.mac);
        Self {
            segment: Segment::tap(net),
            judge: Judge::new(addresses, macs),
            hosts: net.hosts.iter().map(|host| host.ip.into()).collect(),
        }
    }

    /// Judges what has passed so far, but for the last few milliseconds.
    pub fn look(&mut self) {
        let (frames, until_ns) = self.segment.read();
        self.judge.take(frames, until_ns);
    }

    /// Judges what has passed up to now. These hosts have acted on all that was sent to them before.
    ///
    /// # Errors
    /// The number of the first host that does not answer for its own address.
    pub fn settle(&mut self, hosts: impl IntoIterator<Item = usize>) -> Result<(), usize> {
        let hosts: Vec<_> = hosts.into_iter().map(|host| (host, self.hosts[host])).collect();
        let (frames, until_ns) = self.segment.settle(hosts)?;
        self.judge.take(frames, until_ns);
        Ok(())
    }
}
