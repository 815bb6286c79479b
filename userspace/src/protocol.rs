//! The control protocol: one JSON object a line over a unix stream socket.
//!
//! A client sends one [`Request`] and reads [`Response`]s until [`Response::End`]; then it may send the next.
//! Unknown commands and unknown fields are refused, so that a request of a newer client is never half
//! understood.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use arpwarden_engine::input::{Claim, Defend, OnRemoved, OnlineSpec, Profile, Register};
use serde::{Deserialize, Serialize};

use crate::{address::Cidr, events::Record, exit::Exit};

/// The longest request line in bytes: 190,000 addresses fit.
pub const MAX_REQUEST: usize = 1 << 22;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Claim addresses.
    Online {
        /// Which ones.
        addresses: Vec<Cidr>,
        /// On which interface.
        interface: String,
        /// How.
        how: How,
        /// Put the program on the interface first if it does not carry it.
        attach_now: bool,
    },
    /// Claim all addresses of groups of the configuration, of each all or none.
    OnlineGroups {
        /// Which ones.
        groups: Vec<GroupName>,
    },
    /// Apply the difference that was made to the configuration file.
    Reload {},
    /// Give addresses up.
    Offline {
        /// Which ones; empty, and no groups: all.
        addresses: Vec<Ipv4Addr>,
        /// And all addresses of these groups, each silenced at once.
        groups: Vec<GroupName>,
        /// On this interface only; of groups the addresses everywhere.
        interface: Option<String>,
        /// Go on watching them.
        watch: bool,
    },
    /// Watch addresses.
    Watch {
        /// Which ones.
        addresses: Vec<Ipv4Addr>,
        /// On which interface.
        interface: String,
    },
    /// Watch them no more.
    Unwatch {
        /// Which ones.
        addresses: Vec<Ipv4Addr>,
        /// On this interface only.
        interface: Option<String>,
    },
    /// Announce addresses again.
    Announce {
        /// Which ones.
        addresses: Vec<Ipv4Addr>,
        /// On this interface only.
        interface: Option<String>,
    },
    /// Prolong leases.
    Renew {
        /// Which ones; empty, and no groups: all that have one.
        addresses: Vec<Ipv4Addr>,
        /// And all addresses of these groups, each prolonged at once.
        groups: Vec<GroupName>,
        /// On this interface only; of groups the addresses everywhere.
        interface: Option<String>,
        /// Milliseconds from now on.
        lease_ms: u64,
    },
    /// Ask those who asked lately, and the gateway, in the address's name.
    Repair {
        /// Which ones.
        addresses: Vec<Ipv4Addr>,
        /// On this interface only.
        interface: Option<String>,
    },
    /// Why an address is answered, or is not.
    Explain {
        /// Which one.
        address: Ipv4Addr,
    },
    /// What is managed, and how it stands.
    Status {
        /// This address only.
        address: Option<Ipv4Addr>,
    },
    /// What happened.
    Events {
        /// And what happens from now on.
        follow: bool,
    },
    /// Release everything and end.
    Unload {},
}

/// The serializable side of [`OnlineSpec`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// `probe` or `immediate`.
    pub claim: ClaimWay,
    /// Milliseconds; of `immediate` only.
    pub check_ms: u64,
    /// `fast` or `rfc5227`.
    pub profile: ProfileName,
    /// `yield`, `once` or `hold`.
    pub defend: DefendPolicy,
    /// Milliseconds.
    pub wait_ms: u64,
    /// Take over what is on the interface already.
    pub adopt: bool,
    /// Milliseconds; without, the address is answered until it is given up.
    pub lease_ms: Option<u64>,
    /// `address` or `none`.
    pub register: RegisterWay,
    /// `restore`, `give-up` or `report`.
    pub on_removed: RemovedPolicy,
    /// With a lease: although another interface of this host may answer too.
    pub allow_flux: bool,
    /// With `register` `none`: although no local route leads to the address.
    pub blackhole_ok: bool,
    /// The group that it belongs to.
    pub group: Option<GroupName>,
}

/// The name of a group: 1 to 32 characters of a-z, 0-9 and '-'.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName([u8; Self::MAX]);

impl GroupName {
    const MAX: usize = 32;

    /// The name.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::MAX);
        // Only ASCII gets in.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl std::str::FromStr for GroupName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=Self::MAX).contains(&text.len()) || !text.bytes().all(good) {
            return Err(format!("'{text}' is no name of a group: 1 to 32 characters of a-z, 0-9 and '-'"));
        }
        let mut name = [0; Self::MAX];
        name[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(name))
    }
}

impl TryFrom<String> for GroupName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.as_str().to_owned()
    }
}

impl std::fmt::Display for GroupName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for GroupName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}

/// See [`Register`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum RegisterWay {
    /// Put on the interface, through rtnetlink
    #[default]
    Address,
    /// Answered but not configured; needs arp_ignore of 1 or more and a local route
    None,
}

/// See [`OnRemoved`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum RemovedPolicy {
    /// Put it back; given up after the third time within a minute
    #[default]
    Restore,
    /// Give the address up
    GiveUp,
    /// Say so, and go on answering
    Report,
}

/// See [`Claim`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ClaimWay {
    /// Probes, silence, and only then register and announce (RFC 5227 §2.1)
    #[default]
    Probe,
    /// One probe, a short wait, register, announce; rolled back if somebody objects
    Immediate,
}

/// See [`Profile`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ProfileName {
    /// Three probes within some 200 ms
    #[default]
    Fast,
    /// The constants of RFC 5227: 4 to 7 seconds
    Rfc5227,
}

/// See [`Defend`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DefendPolicy {
    /// Give the address up at the first conflict (RFC 5227 §2.4 a)
    Yield,
    /// Defend once; a second conflict within 10 s loses it (b)
    Once,
    /// Keep it; defend at most once in 10 s (c)
    #[default]
    Hold,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Fast => Self::Fast,
            ProfileName::Rfc5227 => Self::Rfc5227,
        }
    }
}

impl How {
    /// For the engine.
    pub fn spec(&self, prefix_length: u8) -> OnlineSpec {
        OnlineSpec {
            prefix_length,
            claim: match self.claim {
                ClaimWay::Probe => Claim::Probe,
                ClaimWay::Immediate => Claim::Immediate { check: Duration::from_millis(self.check_ms) },
            },
            profile: self.profile.into(),
            defend: match self.defend {
                DefendPolicy::Yield => Defend::Yield,
                DefendPolicy::Once => Defend::Once,
                DefendPolicy::Hold => Defend::Hold,
            },
            wait: Duration::from_millis(self.wait_ms),
            adopt: self.adopt,
            lease: self.lease_ms.map(Duration::from_millis),
            register: match self.register {
                RegisterWay::Address => Register::Address,
                RegisterWay::None => Register::None,
            },
            on_removed: match self.on_removed {
                RemovedPolicy::Restore => OnRemoved::Restore,
                RemovedPolicy::GiveUp => OnRemoved::GiveUp,
                RemovedPolicy::Report => OnRemoved::Report,
            },
            joint: false,
        }
    }

    /// Of a claim that is in force; what is no part of it is as by default.
    pub fn of(spec: &OnlineSpec) -> Self {
        let (claim, check) = match spec.claim {
            Claim::Probe => (ClaimWay::Probe, Duration::ZERO),
            Claim::Immediate { check } => (ClaimWay::Immediate, check),
        };
        Self {
            claim,
            check_ms: milliseconds(check),
            profile: match spec.profile {
                Profile::Fast => ProfileName::Fast,
                Profile::Rfc5227 => ProfileName::Rfc5227,
            },
            defend: match spec.defend {
                Defend::Yield => DefendPolicy::Yield,
                Defend::Once => DefendPolicy::Once,
                Defend::Hold => DefendPolicy::Hold,
            },
            wait_ms: milliseconds(spec.wait),
            adopt: spec.adopt,
            lease_ms: spec.lease.map(milliseconds),
            register: match spec.register {
                Register::Address => RegisterWay::Address,
                Register::None => RegisterWay::None,
            },
            on_removed: match spec.on_removed {
                OnRemoved::Restore => RemovedPolicy::Restore,
                OnRemoved::GiveUp => RemovedPolicy::GiveUp,
                OnRemoved::Report => RemovedPolicy::Report,
            },
            allow_flux: false,
            blackhole_ok: false,
            group: None,
        }
    }
}

/// `time` in milliseconds, at most 584 million years.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the daemon says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// How it went with one address.
    Result {
        /// Which one.
        address: Ipv4Addr,
        /// On which interface, where that is known.
        interface: Option<String>,
        /// How it ended.
        exit: Exit,
        /// In words, without the address.
        message: String,
    },
    /// How long a claim of several addresses will take, before the first of them is claimed.
    Plan {
        /// How many.
        addresses: usize,
        /// Until the last of them has been announced once, in milliseconds.
        announced_ms: u64,
        /// Until the last frame of the plans has left, in milliseconds.
        done_ms: u64,
    },
    /// How it went with something that is no address.
    Note {
        /// How it ended.
        exit: Exit,
        /// In words.
        message: String,
    },
    /// Answer to [`Request::Status`].
    Status {
        /// As printed by `status --json`.
        status: Status,
    },
    /// Answer to [`Request::Explain`].
    Explanation {
        /// What holds, one fact a line, the conclusion first.
        facts: Vec<String>,
    },
    /// An event.
    Event {
        /// As printed by `events --json`.
        event: Arc<Record>,
    },
    /// Nothing more follows for this request.
    End {
        /// How the request as a whole ended; the results count beside it.
        exit: Exit,
        /// What is to be said of it as a whole.
        message: Option<String>,
    },
}

/// `status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the instance.
    pub instance: String,
    /// Nothing is answered, announced or registered: the states say what would be.
    pub observe: bool,
    /// Interfaces that carry the program.
    pub interfaces: Vec<InterfaceStatus>,
    /// Managed addresses, by interface and address.
    pub addresses: Vec<AddressStatus>,
    /// Frames by outcome, and what happened beside it; the names are those of `abi::Counter`.
    pub counters: std::collections::BTreeMap<String, u64>,
    /// The kernel that runs.
    pub kernel: KernelStatus,
}

/// The kernel in `status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KernelStatus {
    /// As `uname -r` says it.
    pub release: String,
    /// What it lacks; empty where nothing is missed.
    pub missing: Vec<MissingFeature>,
}

/// Something that a kernel lacks, in `status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MissingFeature {
    /// What it is.
    pub feature: String,
    /// The first version of Linux that has it.
    pub since: String,
    /// What is done instead, or what is not done.
    pub instead: String,
}

/// An interface in `status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub interface: String,
    /// Name of the interface that carries the program: itself, or what a VLAN device stands on.
    pub carrier: String,
    /// VLAN ids of its frames there, outermost first; empty for untagged ones.
    pub vlan: Vec<u16>,
    /// `native`, `generic` or `tc`.
    pub attach_mode: String,
    /// `visible`, `hidden` or `unknown`.
    pub vlan_tags: String,
    /// Up, with a carrier.
    pub running: bool,
    /// The program is on it.
    pub program: bool,
    /// The guard is on it.
    pub guard: bool,
}

/// An address in `status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AddressStatus {
    /// Bare.
    pub address: Ipv4Addr,
    /// 1..=32; null for one that is only watched.
    pub prefix_length: Option<u8>,
    /// Name of its interface.
    pub interface: String,
    /// VLAN ids, outermost first, 0 left out.
    pub vlan: Vec<u16>,
    /// The group that it belongs to.
    pub group: Option<GroupName>,
    /// Name of the state.
    pub state: String,
    /// Whether this host may answer for it now.
    pub may_answer: bool,
    /// MAC of the latest foreign claim, or ours while we may answer; null if nobody is known.
    pub owner: Option<String>,
    /// Seconds, 0 when it is past; null without a lease.
    pub lease_left: Option<f64>,
    /// Seconds since its first announcement: since then everybody has been told; null if it is not announced.
    pub announced_ago: Option<f64>,
    /// Hosts that asked for it lately.
    pub askers: Vec<AskerStatus>,
    /// Counters of this address.
    pub counters: AddressStatusCounters,
}

/// A host that asked for an address lately, in `status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AskerStatus {
    /// Its MAC.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Seconds since it asked last.
    pub asked_ago: f64,
    /// Seconds since it was asked in the address's name (`repair`); null if it was not.
    pub told_ago: Option<f64>,
    /// Whether it follows: it has asked this host by unicast, or answered what it was asked in the address's name.
    pub followed: bool,
    /// Seconds from the first announcement, or from when it was told by `repair` if that came later, until it was
    /// found to follow; null if it was not, or if there was nothing to tell.
    pub followed_after: Option<f64>,
}

/// Counters in [`AddressStatus`]; exact.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AddressStatusCounters {
    /// Requests answered by the program.
    pub answered: u64,
    /// Requests dropped by the shield.
    pub shielded: u64,
    /// Claims.
    pub claims: u64,
    /// Broadcast probes by others.
    pub probes: u64,
    /// Own frames come back.
    pub echoes: u64,
    /// Conflicts that became events.
    pub conflicts: u64,
    /// Defences sent.
    pub defences: u64,
    /// Frames in its name that this host was about to send and that the guard kept in.
    pub guarded: u64,
}

/// Where the parameters of a managed address differ from those asked for, as on the command line.
pub fn difference(present: &OnlineSpec, asked: &OnlineSpec) -> String {
    let pairs = parameters(present).into_iter().zip(parameters(asked));
    let differing = pairs.filter(|(have, want)| have != want);
    differing
        .map(|(have, want)| format!("it has {have}, asked for was {want}"))
        .collect::<Vec<_>>()
        .join("; ")
}

fn parameters(spec: &OnlineSpec) -> [String; 6] {
    let claim = match spec.claim {
        Claim::Probe => "--claim probe".to_owned(),
        Claim::Immediate { check } => format!("--claim immediate --check {}", check.as_millis()),
    };
    let how = How::of(spec);
    // `--adopt` and `--wait` say how to begin, not how the address is to be, and a lease is renewed.
    [
        format!("prefix length {}", spec.prefix_length),
        claim,
        format!("--profile {}", name(&how.profile)),
        format!("--defend {}", name(&how.defend)),
        format!("--register {}", name(&how.register)),
        format!("--on-removed {}", name(&how.on_removed)),
    ]
}

/// The name on the command line.
fn name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
