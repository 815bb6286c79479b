//! What an older kernel does not have, and what is done instead.

use arpwarden_common::names;
use aya::util::KernelVersion;

use super::{Datapath, attach::TcWay};

/// Something that this kernel lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lack {
    /// What it is.
    pub feature: &'static str,
    /// The first kernel that has it: `Linux` and this.
    pub since: &'static str,
    /// What is done instead, or what is not done.
    pub instead: &'static str,
}

const EXCHANGES: Lack = Lack {
    feature: "atomic operations with a result",
    since: "5.12",
    instead: "the daemon alone defends: while it is dead or stands still, an address is answered but not defended",
};
const BOND_NATIVE: Lack = Lack {
    feature: "native XDP on a bond",
    since: "5.15",
    instead: "tc (or generic) on it; --attach native is refused there",
};
const FRAGS: Lack = Lack {
    feature: "XDP for frames of several buffers",
    since: "5.18",
    instead: "native XDP is refused at an MTU above a page or so; --attach tc takes any",
};
const ADDRESS_PROTOCOL: Lack = Lack {
    feature: "a mark on addresses (IFA_PROTO)",
    since: "5.18",
    instead: "only the state file in the runtime directory knows which addresses are ours",
};
const TCX: Lack = Lack {
    feature: "tc programs by links (tcx)",
    since: "6.6",
    instead: "they are filters of a clsact qdisc",
};

impl Datapath {
    /// What is missed on this kernel: of programs and of ways to attach them what the loaded ones do without, of the rest
    /// what its version lacks.
    pub fn lacks(&self) -> Vec<Lack> {
        let version = KernelVersion::current();
        let before =
            |minor: u8| version.as_ref().is_ok_and(|version| *version < KernelVersion::new(5, minor, 0));
        let loaded =
            |name: &str| [self.xdp, self.tc].into_iter().flatten().any(|program| program.name == name);
        let basic = loaded(names::XDP_BASIC) || loaded(names::TC_BASIC);
        [
            (basic, EXCHANGES),
            (before(15), BOND_NATIVE),
            (!self.multi_buffer(), FRAGS),
            (before(18), ADDRESS_PROTOCOL),
            (self.tc_way == TcWay::Clsact, TCX),
        ]
        .into_iter()
        .filter_map(|(lacks, lack)| lacks.then_some(lack))
        .collect()
    }
}

/// The version of the running kernel, as `uname -r` says it.
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned())
}
