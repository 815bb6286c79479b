//! Every section and key, once: what may stand there, in which unit and range, and what holds where nothing is said.
//! The parser, its error messages and the reference are made from this table.

use std::{collections::BTreeSet, ops::RangeInclusive};

use arpwarden_common::{
    abi::{MAX_CAPACITY, MOVES},
    net::MacAddr,
};
use arpwarden_engine::input::{MoveBudget, Pace};
use clap::ValueEnum;
use toml::de::{DeTable, DeValue};

use crate::{
    address::Cidr,
    cli::{Attach, LEASE, MAX_CHECK_MS, MAX_WAIT, OnExit, VlanOffload},
    protocol::{ClaimWay, DefendPolicy, GroupName, ProfileName, RegisterWay, RemovedPolicy},
};

/// A kind of table in the file.
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// It may come many times: `[[name]]`.
    pub many: bool,
    /// What it is about.
    pub about: &'static str,
    /// What may stand in it.
    pub keys: &'static [Key],
}

impl Section {
    /// As it is written.
    pub fn title(&self) -> String {
        if self.many { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }

    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// A key.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What holds where nothing is said, as it would be written; `None`: there is none.
    pub default: Option<&'static str>,
    /// What no default means, or what a default depends on.
    pub otherwise: &'static str,
    /// It must be said.
    pub required: bool,
    /// What it is for.
    pub about: &'static str,
    /// When a change counts.
    pub change: Change,
}

impl Key {
    /// Its default, understood.
    pub fn default_value(&self) -> Option<Value> {
        let text = format!("key = {}", self.default?);
        let table = DeTable::parse(&text).ok()?;
        let value = table.get_ref().iter().next().map(|(_, value)| self.kind.read(value.get_ref()))?;
        value.ok()
    }
}

/// When a change of a key counts that `reload` finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// At once.
    AtOnce,
    /// With the next claim.
    NextClaim,
    /// At once: the address is taken offline and claimed anew.
    Anew,
    /// Refused: with the next start of the daemon.
    Restart,
    /// It names the section: another name is another thing.
    Name,
}

/// What may stand at a key.
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Choice(fn() -> Vec<Word>),
    /// A time in seconds, whole or with a fraction.
    Seconds {
        /// The shortest.
        least: f64,
        /// The longest.
        most: f64,
    },
    /// A time in whole milliseconds.
    Milliseconds {
        /// The shortest.
        least: u64,
        /// The longest.
        most: u64,
    },
    /// An IPv4 address with its prefix length.
    Cidr,
    /// The name of an interface.
    Interface,
    /// The name of a group of addresses.
    Group,
    /// The name of a group of users.
    Users,
    /// A budget of moves.
    Moves,
    /// A list of hosts' MACs.
    Macs,
    /// A whole number.
    Count {
        /// The smallest.
        least: u32,
        /// The largest.
        most: u32,
        /// Of what.
        of: &'static str,
    },
}

/// A word of a choice.
pub struct Word {
    /// As it is written.
    pub name: String,
    /// What it means.
    pub about: String,
}

/// The words of a type of the command line.
pub fn words<T: ValueEnum>() -> Vec<Word> {
    let word = |value: &T| {
        let value = value.to_possible_value()?;
        let about = value.get_help().map(ToString::to_string).unwrap_or_default();
        Some(Word { name: value.get_name().to_owned(), about })
    };
    T::value_variants().iter().filter_map(word).collect()
}

/// The name of a word.
pub fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// A value that may stand at its key.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Of [`Kind::Flag`].
    Flag(bool),
    /// Of [`Kind::Choice`] and of names.
    Text(String),
    /// Of times, in milliseconds.
    Milliseconds(u64),
    /// Of [`Kind::Cidr`].
    Cidr(Cidr),
    /// Of [`Kind::Group`].
    Group(GroupName),
    /// Of [`Kind::Moves`].
    Moves(Moves),
    /// Of [`Kind::Macs`].
    Macs(BTreeSet<MacAddr>),
    /// Of [`Kind::Count`].
    Count(u32),
}

/// Why a value may not stand at its key, and what may.
#[derive(Debug)]
pub struct Failed(pub String);

/// A type that a value can be taken for.
pub trait FromValue: Sized {
    /// The value, if it is of this type.
    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($type:ty: $pattern:pat => $value:expr;)*) => {
        $(impl FromValue for $type {
            fn from_value(value: &Value) -> Option<Self> {
                if let $pattern = value { $value } else { None }
            }
        })*
    };
}

from_value! {
    bool: Value::Flag(flag) => Some(*flag);
    u64: Value::Milliseconds(time) => Some(*time);
    u32: Value::Count(count) => Some(*count);
    String: Value::Text(text) => Some(text.clone());
    Cidr: Value::Cidr(cidr) => Some(*cidr);
    GroupName: Value::Group(name) => Some(*name);
    Moves: Value::Moves(moves) => Some(*moves);
    BTreeSet<MacAddr>: Value::Macs(macs) => Some(macs.clone());
    Attach: Value::Text(text) => Self::from_str(text, false).ok();
    VlanOffload: Value::Text(text) => Self::from_str(text, false).ok();
    OnExit: Value::Text(text) => Self::from_str(text, false).ok();
    LogLevel: Value::Text(text) => Self::from_str(text, false).ok();
    PaceName: Value::Text(text) => Self::from_str(text, false).ok();
    Start: Value::Text(text) => Self::from_str(text, false).ok();
    ClaimWay: Value::Text(text) => Self::from_str(text, false).ok();
    ProfileName: Value::Text(text) => Self::from_str(text, false).ok();
    DefendPolicy: Value::Text(text) => Self::from_str(text, false).ok();
    RegisterWay: Value::Text(text) => Self::from_str(text, false).ok();
    RemovedPolicy: Value::Text(text) => Self::from_str(text, false).ok();
}

/// What stands there instead, as TOML calls it.
pub fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "whole number",
        DeValue::Float(_) => "number with a fraction",
        DeValue::Boolean(_) => "boolean",
        DeValue::Datetime(_) => "time of day",
        DeValue::Array(_) => "list",
        DeValue::Table(_) => "table",
    }
}

/// Of a number as TOML writes it.
fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|n| n.to_string().parse().ok()),
        DeValue::Float(float) => float.as_str().parse().ok(),
        DeValue::String(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}

impl Kind {
    /// What may stand there, in words.
    pub fn allowed(&self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Choice(words) => {
                let words: Vec<String> = words().iter().map(|word| format!("\"{}\"", word.name)).collect();
                words.join(", ")
            }
            Self::Seconds { least, most } => format!("{least} to {most} seconds, also with a fraction"),
            Self::Milliseconds { least, most } => format!("{least} to {most} milliseconds, whole"),
            Self::Cidr => "an IPv4 address with its prefix length: \"192.0.2.10/24\"".to_owned(),
            Self::Interface => "the name of an interface: \"eth0\" or \"eth0.100\", 1 to 15 bytes".to_owned(),
            Self::Group => "the name of a group: 1 to 32 characters of a-z, 0-9 and '-'".to_owned(),
            Self::Users => "the name of a group of users".to_owned(),
            Self::Moves => {
                format!("\"N/Ss\": N moves, 1 to {MOVES}, in S seconds, 1 to {MAX_WINDOW}; or \"none\"")
            }
            Self::Macs => {
                format!("a list of MACs of hosts, {MAX_MACS} at the most: [\"02:00:00:00:00:0a\"]")
            }
            Self::Count { least, most, of } => format!("{least} to {most} {of}"),
        }
    }

    /// Takes a value in.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn read(&self, value: &DeValue<'_>) -> Result<Value, Failed> {
        let allowed = || self.allowed();
        let type_of = || Failed(format!("it is a {}; allowed: {}", type_name(value), allowed()));
        let text = || value.as_str().ok_or_else(type_of);
        let not = |text: &str| Failed(format!("\"{text}\" may not stand here; allowed: {}", allowed()));
        let whole = |range: RangeInclusive<u64>| {
            let DeValue::Integer(integer) = value else { return Err(type_of()) };
            let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
            let out_of_range = || Failed(format!("{integer} is out of range; allowed: {}", allowed()));
            number.filter(|number| range.contains(number)).ok_or_else(out_of_range)
        };
        match self {
            Self::Flag => value.as_bool().map(Value::Flag).ok_or_else(type_of),
            Self::Choice(words) => {
                let text = text()?;
                let known = words().iter().any(|word| word.name == text);
                if known { Ok(Value::Text(text.to_owned())) } else { Err(not(text)) }
            }
            Self::Seconds { least, most } => {
                let seconds = number(value).ok_or_else(type_of)?;
                if !(*least..=*most).contains(&seconds) {
                    return Err(Failed(format!("{seconds} is out of range; allowed: {}", allowed())));
                }
                let time = std::time::Duration::from_secs_f64(seconds);
                Ok(Value::Milliseconds(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
            }
            Self::Milliseconds { least, most } => whole(*least..=*most).map(Value::Milliseconds),
            Self::Count { least, most, .. } => {
                let count = whole(u64::from(*least)..=u64::from(*most))?;
                // Within the range it is no wider than its ends.
                Ok(Value::Count(u32::try_from(count).unwrap_or(*most)))
            }
            Self::Cidr => {
                let text = text()?;
                text.parse().map(Value::Cidr).map_err(|error: crate::address::AddressError| {
                    Failed(format!("{error}; allowed: {}", allowed()))
                })
            }
            Self::Interface => {
                let text = text()?;
                // As the kernel takes names (dev_valid_name, net/core/dev.c).
                let good = (1..=15).contains(&text.len())
                    && text != "."
                    && text != ".."
                    && text.bytes().all(|b| b != b'/' && b != b':' && b.is_ascii_graphic());
                if good { Ok(Value::Text(text.to_owned())) } else { Err(not(text)) }
            }
            Self::Group => {
                let text = text()?;
                text.parse().map(Value::Group).map_err(|_: String| not(text))
            }
            Self::Users => {
                let text = text()?;
                if text.is_empty() { Err(not(text)) } else { Ok(Value::Text(text.to_owned())) }
            }
            Self::Moves => {
                let text = text()?;
                moves(text).map(Value::Moves).ok_or_else(|| not(text))
            }
            Self::Macs => {
                let DeValue::Array(list) = value else { return Err(type_of()) };
                let macs = list.iter().map(|element| {
                    let element = element.get_ref();
                    let text = element.as_str().ok_or_else(|| {
                        Failed(format!("a {} is in it; allowed: {}", type_name(element), allowed()))
                    })?;
                    mac(text).ok_or_else(|| not(text))
                });
                let macs: BTreeSet<_> = macs.collect::<Result<_, _>>()?;
                if macs.len() <= MAX_MACS {
                    Ok(Value::Macs(macs))
                } else {
                    Err(Failed(format!("{} are too many; allowed: {}", macs.len(), allowed())))
                }
            }
        }
    }
}

/// The longest window of a move budget in seconds: a day.
const MAX_WINDOW: u32 = 86_400;

fn moves(text: &str) -> Option<Moves> {
    if text == "none" {
        return Some(Moves(None));
    }
    let (moves, window) = text.split_once('/')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
    let moves = digits(moves)?;
    let window = digits(window.strip_suffix('s')?)?;
    let good = (1..=u32::try_from(MOVES).ok()?).contains(&moves) && (1..=MAX_WINDOW).contains(&window);
    good.then(|| Moves(Some(MoveBudget { moves, window: std::time::Duration::from_secs(window.into()) })))
}

/// The most MACs of a list: with all 64 interfaces that have one they fit into the program's map
/// ([`arpwarden_common::abi::MAX_ALLOWED`]).
const MAX_MACS: usize = 64;

/// The MAC of a host: neither zero nor a group's.
fn mac(text: &str) -> Option<MacAddr> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    let mac = MacAddr::new(octets);
    (parts.next().is_none() && !mac.is_zero() && !mac.is_group()).then_some(mac)
}

/// A budget of moves, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moves(pub Option<MoveBudget>);

/// How fast frames may leave an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum PaceName {
    /// 10,000 frames a second, bursts of 500
    #[default]
    Plain,
    /// 10 frames a second, below the 15 at which inspecting switches shut a port
    Inspected,
    /// As fast as the interface takes them: for tests, and for a segment that carries nothing else
    Unlimited,
}

impl PaceName {
    /// The move budget where none is said.
    pub const fn moves(self) -> Option<MoveBudget> {
        match self {
            Self::Plain | Self::Unlimited => None,
            Self::Inspected => Some(MoveBudget::EVPN),
        }
    }
}

impl From<PaceName> for Pace {
    fn from(name: PaceName) -> Self {
        match name {
            PaceName::Plain => Self::Plain,
            PaceName::Inspected => Self::Inspected,
            PaceName::Unlimited => Self::Unlimited,
        }
    }
}

/// What is done with an address at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Start {
    /// It is claimed
    #[default]
    Online,
    /// It is watched
    Watch,
    /// Nothing, until it is told to go online
    Off,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum LogLevel {
    /// What somebody should look at
    Warn,
    /// And what happens to addresses
    #[default]
    Info,
    /// And decisions, as with -v
    Debug,
    /// And frames, as with -vv
    Trace,
}

const fn key(name: &'static str, kind: Kind, change: Change, about: &'static str) -> Key {
    Key { name, kind, default: None, otherwise: "", required: false, about, change }
}

impl Key {
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn otherwise(self, otherwise: &'static str) -> Self {
        Self { otherwise, ..self }
    }

    const fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

/// All sections, in the order of the reference.
pub static SECTIONS: [&Section; 4] = [&DAEMON, &INTERFACE, &GROUP, &ADDRESS];

const AS_DAEMON: &str = "as [daemon] says";

/// `[daemon]`.
pub static DAEMON: Section = Section {
    name: "daemon",
    many: false,
    about: "The daemon as a whole. An option of `arpwarden run` goes before what stands here.",
    keys: &[
        key("on_exit", Kind::Choice(words::<OnExit>), Change::AtOnce, "What happens to the addresses when the daemon ends in order.")
            .or("\"release\""),
        key("attach", Kind::Choice(words::<Attach>), Change::Restart, "How the program is attached.").or("\"auto\""),
        key(
            "vlan_offload",
            Kind::Choice(words::<VlanOffload>),
            Change::Restart,
            "What to do where VLAN tags are taken off before XDP sees them, on an interface that carries VLANs.",
        )
        .otherwise("such an interface is refused, or `auto` takes tc"),
        key(
            "capacity",
            Kind::Count { least: 1, most: MAX_CAPACITY, of: "addresses" },
            Change::Restart,
            "How many addresses there is room for. Each takes some 200 bytes of the kernel's memory, whether it is used or not. Maps \
             that an earlier run has left keep the capacity that they have until `arpwarden unload`.",
        )
        .or("16384"),
        key("socket_group", Kind::Users, Change::AtOnce, "Whose members may use the control socket.")
            .otherwise("root alone"),
        key("observe", Kind::Flag, Change::Restart, "Answer, announce and register nothing; say what would have been done.")
            .or("false"),
        key("log", Kind::Choice(words::<LogLevel>), Change::Restart, "How much is logged; RUST_LOG and -v go before it.")
            .or("\"info\""),
    ],
};

/// `[[interface]]`.
pub static INTERFACE: Section = Section {
    name: "interface",
    many: true,
    about: "An interface to answer on. Where `reload` finds it new the program is attached then, which may bounce its link as at a \
            start.",
    keys: &[
        key("name", Kind::Interface, Change::Name, "Which one.").required(),
        key("attach", Kind::Choice(words::<Attach>), Change::Restart, "How the program is attached here.").otherwise(AS_DAEMON),
        key(
            "vlan_offload",
            Kind::Choice(words::<VlanOffload>),
            Change::Restart,
            "What to do here where VLAN tags are taken off before XDP sees them.",
        )
        .otherwise(AS_DAEMON),
        key("pace", Kind::Choice(words::<PaceName>), Change::AtOnce, "How fast announcements, probes and defences may leave.")
            .or("\"plain\""),
        key(
            "moves",
            Kind::Moves,
            Change::AtOnce,
            "Defences of an address allowed in any such time; beyond it the address is `contested`: answered, not \
             defended. EVPN fabrics freeze an address that moves 5 times in 180 s.",
        )
        .otherwise("`\"4/180s\"` with pace `inspected`, else `\"none\"`"),
        key(
            "allow",
            Kind::Macs,
            Change::AtOnce,
            "Hosts that may claim any address here and probe for it, such as a router with proxy ARP or a fabric that \
             answers for others: that is recorded as every claim is, but it is no conflict, and nothing is defended \
             against it.",
        )
        .or("[]"),
    ],
};

/// `[[group]]`.
pub static GROUP: Section = Section {
    name: "group",
    many: true,
    about: "Addresses that go online together or not at all (`arpwarden online @NAME`), and that are silenced and \
            renewed by one store (`offline @NAME`, `renew @NAME`).",
    keys: &[
        key("name", Kind::Group, Change::Name, "Its name.").required(),
        key(
            "lease",
            Kind::Seconds { least: *LEASE.start(), most: *LEASE.end() },
            Change::NextClaim,
            "With which its addresses are claimed: past it they may not answer, unless renewed.",
        )
        .otherwise("no lease"),
    ],
};

/// `[[address]]`.
pub static ADDRESS: Section = Section {
    name: "address",
    many: true,
    about: "An address on an interface, and how it is claimed.",
    keys: &[
        key("address", Kind::Cidr, Change::Anew, "Address and prefix length; another address is another thing.").required(),
        key("interface", Kind::Interface, Change::Name, "The `[[interface]]` that it is on.").required(),
        key("group", Kind::Group, Change::Anew, "The `[[group]]` that it belongs to; all of a group have the same `start`.")
            .otherwise("none"),
        key(
            "start",
            Kind::Choice(words::<Start>),
            Change::AtOnce,
            "What is done with it when the daemon starts, or when `reload` finds it new. A group goes online together.",
        )
        .or("\"online\""),
        key("claim", Kind::Choice(words::<ClaimWay>), Change::NextClaim, "How it is claimed.").or("\"probe\""),
        key("profile", Kind::Choice(words::<ProfileName>), Change::NextClaim, "How long is probed, and how it is announced.")
            .or("\"fast\""),
        key(
            "check",
            Kind::Milliseconds { least: 0, most: MAX_CHECK_MS },
            Change::NextClaim,
            "How long claim `immediate` waits for an objection.",
        )
        .or("20"),
        key("defend", Kind::Choice(words::<DefendPolicy>), Change::AtOnce, "What is done about a conflict.").or("\"hold\""),
        key(
            "lease",
            Kind::Seconds { least: *LEASE.start(), most: *LEASE.end() },
            Change::NextClaim,
            "Past it the address may not answer, unless renewed. Of an address in a group it is the group's.",
        )
        .otherwise("no lease"),
        key("register", Kind::Choice(words::<RegisterWay>), Change::Anew, "Whether the address is put on the interface.")
            .or("\"address\""),
        key(
            "wait",
            Kind::Seconds { least: 0.0, most: MAX_WAIT },
            Change::NextClaim,
            "How long a claim is retried while somebody else has the address.",
        )
        .or("0"),
        key("adopt", Kind::Flag, Change::NextClaim, "Take over an address that is on the interface already.").or("false"),
        key(
            "on_removed",
            Kind::Choice(words::<RemovedPolicy>),
            Change::AtOnce,
            "What is done when somebody takes the address off the interface.",
        )
        .or("\"restore\""),
        key(
            "allow_flux",
            Kind::Flag,
            Change::NextClaim,
            "With a lease: although another interface of this host may answer for the address too.",
        )
        .or("false"),
        key(
            "blackhole_ok",
            Kind::Flag,
            Change::NextClaim,
            "With register `none`: although no local route leads to the address.",
        )
        .or("false"),
    ],
};
