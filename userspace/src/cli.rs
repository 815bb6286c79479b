//! The command line.
#![expect(
    missing_docs,
    reason = "a doc comment on a group of arguments would become help text of its command"
)]

use std::{net::Ipv4Addr, path::PathBuf};

use arpwarden_common::abi::MAX_CAPACITY;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::protocol::{ClaimWay, DefendPolicy, GroupName, ProfileName, RegisterWay, RemovedPolicy};

/// Holds IPv4 addresses on a network: answers ARP from XDP, announces, watches, defends.
#[derive(Parser, Debug)]
#[command(name = "arpwarden", version, max_term_width = 110)]
pub struct Cli {
    /// Name of the instance: [a-z0-9-], 1 to 32 characters; its directory is /run/arpwarden/NAME
    #[arg(long, global = true, default_value = "default", value_parser = instance_name, value_name = "NAME")]
    pub instance: String,
    /// Say more: -v decisions, -vv frames (RUST_LOG overrides it)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

fn instance_name(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=32).contains(&text.len()) && text.bytes().all(good) {
        Ok(text.to_owned())
    } else {
        Err("an instance name is 1 to 32 characters of a-z, 0-9 and '-'".to_owned())
    }
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the daemon until SIGTERM, SIGINT or `unload`
    Run(Run),
    /// Bring addresses online: claim, register, answer, announce
    Online(Online),
    /// Give addresses up: silent at once, then off the interface
    Offline(Offline),
    /// Prolong the lease of addresses; past it they may not answer, whatever the daemon does
    Renew(Renew),
    /// Watch addresses of other hosts: record the owner, report changes
    Watch(Watch),
    /// Watch addresses no more
    Unwatch(Addresses),
    /// Announce addresses of ours again
    Announce(Addresses),
    /// Ask the hosts that asked for an address lately, and the gateway, in its name: their caches follow at once
    Repair(Addresses),
    /// Is an address free? Needs no daemon. 0 free, 3 taken, 1 could not tell
    Probe(Probe),
    /// States, owners, counters, attach modes
    Status(Status),
    /// Why is an address (not) answered?
    Explain(Explain),
    /// What happened; the recent past first
    Events(Events),
    /// Is a configuration file right? Names all that is wrong with it; needs neither a daemon nor root
    Check {
        /// Which file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Apply the difference between the configuration file as it is and as it was applied last, and nothing else
    Reload,
    /// Release everything and end the daemon; without one, take off all that an earlier run has left
    Unload,
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Clone, Debug, Default)]
pub struct Run {
    /// Configuration file; what is said here goes before what it says
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Interface to answer on; may be repeated
    #[arg(long = "iface", value_name = "IF")]
    pub interfaces: Vec<String>,
    /// How the program is attached [default: auto]
    #[arg(long, value_enum)]
    pub attach: Option<Attach>,
    /// What to do where VLAN tags are taken off before XDP sees them, on an interface that carries VLANs
    #[arg(long, value_enum, value_name = "WHAT")]
    pub vlan_offload: Option<VlanOffload>,
    /// What happens to the addresses when the daemon ends in order [default: release]
    #[arg(long, value_enum)]
    pub on_exit: Option<OnExit>,
    /// How many addresses there is room for [default: 16384]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CAPACITY)))]
    pub capacity: Option<u32>,
    /// Let members of this group use the control socket
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Allow a link that bounces for seconds when the program is attached (`run` always does)
    #[arg(long)]
    pub attach_now: bool,
    /// Answer, announce and register nothing; say what would have been done
    #[arg(long)]
    pub observe: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Attach {
    /// Native where answers are known to leave, else tc
    #[default]
    Auto,
    /// XDP in the driver
    Native,
    /// XDP in the stack; works everywhere, costs bulk throughput
    Generic,
    /// In the traffic control; works everywhere, beside foreign programs, and sees VLAN tags
    Tc,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum VlanOffload {
    /// Turn the offload off; on again at the end
    Disable,
    /// Attach all the same
    Ignore,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnExit {
    /// Yield, deregister, unload
    #[default]
    Release,
    /// Leave everything as it is: addresses stay answered, the next start goes on with them
    Keep,
}

#[derive(Args, Debug)]
pub struct Online {
    /// ADDR/LEN, several at once, or `-`: one a line on standard input; or @GROUP: all addresses of a group of the
    /// configuration file, as that says, together or not at all
    #[arg(required = true, value_name = "ADDR/LEN")]
    pub addresses: Vec<String>,
    /// On which interface; of groups the file says it
    #[arg(long = "iface", value_name = "IF")]
    pub interface: Option<String>,
    /// How to claim
    #[arg(long, value_enum, default_value_t)]
    pub claim: ClaimWay,
    /// How long to probe
    #[arg(long, value_enum, default_value_t)]
    pub profile: ProfileName,
    /// How long `immediate` waits for an objection, 0 to 10000
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=MAX_CHECK_MS))]
    pub check: u64,
    /// What to do about a conflict
    #[arg(long, value_enum, default_value_t)]
    pub defend: DefendPolicy,
    /// Retry for so long while somebody else has it, 0 to 86400; with `immediate` also wait for the roll-back's window
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = seconds)]
    pub wait: f64,
    /// Take over an address that is on the interface already
    #[arg(long)]
    pub adopt: bool,
    /// Put the program on the interface if it does not carry it; that can bounce the link for seconds
    #[arg(long)]
    pub attach_now: bool,
    /// May not answer after so long unless renewed, 0.1 to 86400
    #[arg(long, value_name = "SECONDS", value_parser = lease_seconds)]
    pub lease: Option<f64>,
    /// Into this group, which `renew @NAME` and `offline @NAME` prolong and silence at once
    #[arg(long, value_name = "NAME")]
    pub group: Option<GroupName>,
    /// Whether the address is put on the interface
    #[arg(long, value_enum, default_value_t)]
    pub register: RegisterWay,
    /// What to do when somebody takes the address off the interface
    #[arg(long, value_enum, default_value_t)]
    pub on_removed: RemovedPolicy,
    /// With --lease: although another interface of this host may answer for the address too
    #[arg(long)]
    pub allow_flux: bool,
    /// With --register none: although no local route leads to the address
    #[arg(long)]
    pub blackhole_ok: bool,
}

/// The longest `--check` in milliseconds.
pub const MAX_CHECK_MS: u64 = 10_000;
/// The longest `--wait`: a day.
pub const MAX_WAIT: f64 = 86_400.0;
/// The same in milliseconds.
pub const MAX_WAIT_MS: u64 = 86_400_000;

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_WAIT).contains(&seconds) => Ok(seconds),
        Ok(_) | Err(_) => Err(format!("give seconds between 0 and {MAX_WAIT}")),
    }
}

/// The longest lease: a day. The shortest is a few of the program's ticks of 10 ms.
pub const LEASE: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;

fn lease_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if LEASE.contains(&seconds) => Ok(seconds),
        Ok(_) | Err(_) => Err(format!("give seconds between {} and {}", LEASE.start(), LEASE.end())),
    }
}

#[derive(Args, Debug)]
pub struct Renew {
    /// Which addresses, or @GROUP
    #[arg(required_unless_present = "all", value_name = "ADDR")]
    pub addresses: Vec<String>,
    /// All that have a lease
    #[arg(long, conflicts_with = "addresses")]
    pub all: bool,
    /// From now on, 0.1 to 86400
    #[arg(long, value_name = "SECONDS", value_parser = lease_seconds)]
    pub lease: f64,
    /// On this interface only
    #[arg(long = "iface", value_name = "IF")]
    pub interface: Option<String>,
}

#[derive(Args, Debug)]
pub struct Explain {
    /// Which address
    #[arg(value_name = "ADDR")]
    pub address: Ipv4Addr,
}

#[derive(Args, Debug)]
pub struct Offline {
    /// Which addresses, or @GROUP
    #[arg(required_unless_present = "all", value_name = "ADDR")]
    pub addresses: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "addresses")]
    pub all: bool,
    /// On this interface only
    #[arg(long = "iface", value_name = "IF")]
    pub interface: Option<String>,
    /// Go on watching them
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct Watch {
    /// Which addresses
    #[arg(required = true, value_name = "ADDR")]
    pub addresses: Vec<String>,
    /// On which interface
    #[arg(long = "iface", value_name = "IF")]
    pub interface: String,
}

#[derive(Args, Debug)]
pub struct Addresses {
    /// Which addresses
    #[arg(required = true, value_name = "ADDR")]
    pub addresses: Vec<String>,
    /// On this interface only
    #[arg(long = "iface", value_name = "IF")]
    pub interface: Option<String>,
}

#[derive(Args, Debug)]
pub struct Probe {
    /// Which address
    #[arg(value_name = "ADDR")]
    pub address: String,
    /// On which interface
    #[arg(long = "iface", value_name = "IF")]
    pub interface: String,
    /// How long to probe
    #[arg(long, value_enum, default_value_t)]
    pub profile: ProfileName,
}

#[derive(Args, Debug)]
pub struct Status {
    /// This address only
    #[arg(value_name = "ADDR")]
    pub address: Option<Ipv4Addr>,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Events {
    /// And what happens from now on
    #[arg(long)]
    pub follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
