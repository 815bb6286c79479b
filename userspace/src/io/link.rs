//! Decoded links, and which of them can carry addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt, fs, io,
    net::Ipv4Addr,
};

use arpwarden_common::net::{MacAddr, SERVICE_TAG, Vlan};
use rtnetlink::packet_route::link::{
    BondPortState, InfoBond, InfoBondPort, InfoBridge, InfoData, InfoPortData, InfoVlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop, VlanProtocol, XdpAttached as Attached,
};

use super::{
    bpf::Mode,
    ethtool,
    netlink::{self, LocalAddress},
};

/// A network interface, as rtnetlink describes it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Link {
    /// Its index in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Other names of it (IFLA_ALT_IFNAME).
    pub alternative_names: Vec<String>,
    /// Its current MAC; `None` if its addresses are not six bytes long.
    pub mac: Option<MacAddr>,
    /// The MAC that was burnt in, if the driver tells (IFLA_PERM_ADDRESS), or that a member had before it joined its
    /// bond (IFLA_BOND_SLAVE_PERM_HWADDR).
    pub permanent_mac: Option<MacAddr>,
    /// What made it (IFLA_INFO_KIND): `veth`, `bridge`, `vlan`…; `None` for hardware.
    pub kind: Option<String>,
    /// Hardware type (ARPHRD_*, `linux/if_arp.h`).
    pub arphrd: u16,
    /// Switched on by the administrator (IFF_UP).
    pub up: bool,
    /// Up, with a carrier, and told so by the kernel's link watch (IFF_RUNNING), which may take a second.
    pub running: bool,
    /// Has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// How often it has lost its carrier (IFLA_CARRIER_DOWN_COUNT): one that is back before the kernel's link watch gets
    /// round to saying so shows nowhere else.
    pub carrier_losses: u32,
    /// Does without ARP (IFF_NOARP).
    pub noarp: bool,
    /// The loopback interface (IFF_LOOPBACK).
    pub loopback: bool,
    /// Index of the bond, bridge, team… that it belongs to (IFLA_MASTER).
    pub master: Option<u32>,
    /// Index of what it stands on, or of a veth's peer (IFLA_LINK).
    pub parent: Option<u32>,
    /// Number of the namespace that `parent` is in, if that is another one (IFLA_LINK_NETNSID).
    pub link_netns: Option<i32>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The XDP program that it carries.
    pub xdp: Option<XdpAttached>,
    /// A bridge that keeps VLANs apart (IFLA_BR_VLAN_FILTERING).
    pub vlan_filtering: bool,
    /// The tag of a VLAN device, as a half of a [`Vlan`] (IFLA_VLAN_ID, IFLA_VLAN_PROTOCOL).
    pub tag: Option<u16>,
    /// Index of the member that a bond uses, where it uses one at a time (IFLA_BOND_ACTIVE_SLAVE).
    pub active_member: Option<u32>,
    /// A member that its bond does not use now (IFLA_BOND_SLAVE_STATE): what comes in on it is dropped.
    pub backup: bool,
}

/// Where frames of an interface are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the interface that sees them with all their tags, which is where the program goes: itself, or what a
    /// VLAN device stands on.
    pub carrier: u32,
    /// Their tags there.
    pub vlan: Vlan,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAttached {
    /// The kernel's identifier of it; 0 where there are several.
    pub id: u32,
    /// How it is attached; `None`: in hardware, or in several modes at once.
    pub mode: Option<Mode>,
}

impl Link {
    /// Decodes a link message of any family but AF_BRIDGE. `None` if it names no interface, as wireless events do.
    pub fn decode(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            arphrd: message.header.link_layer_type.into(),
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            carrier: flags.contains(LinkFlags::LowerUp),
            noarp: flags.contains(LinkFlags::Noarp),
            loopback: flags.contains(LinkFlags::Loopback),
            ..Self::default()
        };
        for attribute in &message.attributes {
            // The kernel adds attributes with every release; these are the ones that matter here.
            #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::PropList(properties) => link.alternative_names = names(properties),
                LinkAttribute::Address(bytes) => link.mac = mac(bytes),
                LinkAttribute::PermAddress(bytes) => link.permanent_mac = mac(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::CarrierDownCount(count) => link.carrier_losses = *count,
                LinkAttribute::Controller(index) => link.master = Some(*index).filter(|index| *index != 0),
                LinkAttribute::Link(index) => link.parent = Some(*index).filter(|index| *index != 0),
                LinkAttribute::LinkNetNsId(id) => link.link_netns = Some(*id),
                LinkAttribute::LinkInfo(infos) => link.take_infos(infos),
                LinkAttribute::Xdp(xdp) => link.xdp = attached(xdp),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn take_infos(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkInfo::Data(InfoData::Bridge(settings)) => {
                    self.vlan_filtering = settings.contains(&InfoBridge::VlanFiltering(true));
                }
                LinkInfo::Data(InfoData::Vlan(settings)) => self.tag = tag(settings),
                LinkInfo::Data(InfoData::Bond(settings)) => {
                    self.active_member = settings.iter().find_map(|setting| {
                        let InfoBond::ActivePort(index) = setting else { return None };
                        Some(*index).filter(|index| *index != 0)
                    });
                }
                LinkInfo::PortData(InfoPortData::BondPort(settings)) => self.take_membership(settings),
                _ => {}
            }
        }
    }

    fn take_membership(&mut self, settings: &[InfoBondPort]) {
        for setting in settings {
            #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
            match setting {
                InfoBondPort::BondPortState(state) => self.backup = *state == BondPortState::Backup,
                InfoBondPort::PermHwaddr(bytes) => self.permanent_mac = self.permanent_mac.or(mac(bytes)),
                _ => {}
            }
        }
    }

    fn is_kind(&self, kinds: &[&str]) -> bool {
        self.kind.as_deref().is_some_and(|kind| kinds.contains(&kind))
    }
}

fn tag(settings: &[InfoVlan]) -> Option<u16> {
    let id = settings.iter().find_map(|setting| {
        let InfoVlan::Id(id) = setting else { return None };
        Some(*id)
    })?;
    let service = settings.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad));
    Some(if service { id | SERVICE_TAG } else { id })
}

fn names(properties: &[Prop]) -> Vec<String> {
    let name = |property: &Prop| {
        let Prop::AltIfName(name) = property else { return None };
        Some(name.clone())
    };
    properties.iter().filter_map(name).collect()
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr::new)
}

fn attached(attributes: &[LinkXdp]) -> Option<XdpAttached> {
    let mode = attributes.iter().find_map(|attribute| {
        let LinkXdp::Attached(mode) = attribute else { return None };
        Some(mode)
    })?;
    let mode = match mode {
        Attached::None => return None,
        Attached::Driver => Some(Mode::Native),
        Attached::SocketBuffer => Some(Mode::Generic),
        Attached::Hardware | Attached::Multiple | Attached::Other(_) | _ => None,
    };
    let id = attributes.iter().find_map(|attribute| {
        let (LinkXdp::ProgId(id) | LinkXdp::HwProgId(id)) = attribute else { return None };
        Some(*id)
    });
    Some(XdpAttached { id: id.unwrap_or(0), mode })
}

/// Why an interface can't carry addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not there.
    Missing {
        /// The name asked for.
        name: String,
    },
    /// The loopback interface.
    Loopback {
        /// Its name.
        name: String,
    },
    /// Not Ethernet.
    NotEthernet {
        /// Its name.
        name: String,
        /// Its hardware type.
        arphrd: u16,
    },
    /// IP over InfiniBand, whose ARP has addresses of 20 bytes (RFC 4391).
    InfiniBand {
        /// Its name.
        name: String,
    },
    /// A tun: packets without Ethernet.
    Tun {
        /// Its name.
        name: String,
    },
    /// An ipvlan, which shares its parent's MAC.
    IpVlan {
        /// Its name.
        name: String,
    },
    /// Does without ARP.
    NoArp {
        /// Its name.
        name: String,
    },
    /// Belongs to a bond, bridge, team…, which takes its frames.
    Enslaved {
        /// Its name.
        port: String,
        /// The master's name.
        master: String,
        /// The master's kind.
        master_kind: String,
    },
    /// A VLAN device on an interface of another network namespace.
    ParentElsewhere {
        /// Its name.
        name: String,
    },
    /// A VLAN device whose frames have more than two tags, or one of VLAN 0.
    Tags {
        /// Its name.
        name: String,
        /// VLAN 0; else too many.
        zero: bool,
    },
    /// VLANs run over it, and their tags are taken off before XDP sees the frames.
    HiddenTags {
        /// Its name.
        name: String,
        /// The command that would change it, if there is one.
        cure: Option<String>,
        /// Whether it is so depends on the peer, which can't be asked from here.
        certain: bool,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => {
                write!(
                    f,
                    "there is no interface '{name}' in this network namespace; 'ip link' shows those there are"
                )
            }
            Self::Loopback { name } => {
                write!(
                    f,
                    "{name} is the loopback interface: no other host sees its ARP; choose the interface towards them"
                )
            }
            Self::NotEthernet { name, arphrd } => write!(
                f,
                "{name} is not Ethernet (hardware type {arphrd}), and arpwarden speaks IPv4 on Ethernet only; \
                 choose another interface"
            ),
            Self::InfiniBand { name } => write!(
                f,
                "{name} is IP over InfiniBand, whose ARP differs from Ethernet's; choose an Ethernet interface"
            ),
            Self::Tun { name } => write!(
                f,
                "{name} is a tun: it carries IP packets without Ethernet and so no ARP; choose an Ethernet \
                 interface (a tap is one)"
            ),
            Self::IpVlan { name } => write!(
                f,
                "{name} is an ipvlan: it shares its parent's MAC, and the parent answers for it; use the parent \
                 from its own network namespace, or a macvlan"
            ),
            Self::NoArp { name } => write!(
                f,
                "{name} does without ARP (NOARP); choose another interface, or 'ip link set dev {name} arp on'"
            ),
            Self::Enslaved { port, master, master_kind } => write!(
                f,
                "{port} belongs to the {master_kind} {master}, which takes its frames and carries its addresses; \
                 use {master}"
            ),
            Self::ParentElsewhere { name } => write!(
                f,
                "{name} is a VLAN device on an interface of another network namespace, where its frames can't be seen \
                 from here; run in that namespace, or make the VLAN device in this one"
            ),
            Self::Tags { name, zero: true } => write!(
                f,
                "{name} is a VLAN device of VLAN 0, which is no VLAN (IEEE 802.1Q): its frames count as untagged; use \
                 the interface that it stands on"
            ),
            Self::Tags { name, zero: false } => write!(
                f,
                "{name} is a VLAN device whose frames have more than two tags, and arpwarden looks behind two; use one \
                 with two tags at most"
            ),
            Self::HiddenTags { name, cure, certain } => {
                let is = if *certain { "are" } else { "may be" };
                write!(
                    f,
                    "{name} carries VLANs, and their tags {is} taken off before XDP sees the frames: an answer \
                     could go to the wrong VLAN; "
                )?;
                match cure {
                    Some(cure) => write!(f, "run '{cure}'")?,
                    None => f.write_str("no setting changes that here")?,
                }
                match (cure, certain) {
                    (Some(_), true) => f.write_str(
                        ", let arpwarden do it with --vlan-offload disable, or accept it with --vlan-offload ignore",
                    ),
                    (Some(_), false) => f.write_str(
                        " in the network namespace of its peer, which can't be seen from here, and then start with \
                         --vlan-offload ignore",
                    ),
                    (None, _) => f.write_str(", so use a member or parent of it, or accept it with --vlan-offload ignore"),
                }
            }
        }
    }
}

impl Error for Refusal {}

/// The link of this name, or with this alternative name.
///
/// # Errors
/// [`Refusal::Missing`].
pub fn find<'a>(name: &str, links: &'a BTreeMap<u32, Link>) -> Result<&'a Link, Refusal> {
    let by_name = links.values().find(|link| link.name == name);
    let by_other_name =
        || links.values().find(|link| link.alternative_names.iter().any(|other| other == name));
    by_name.or_else(by_other_name).ok_or_else(|| Refusal::Missing { name: name.to_owned() })
}

/// Whether a link can carry addresses; `links` are all of its network namespace.
///
/// # Errors
/// The first reason why not.
pub fn suitable(link: &Link, links: &BTreeMap<u32, Link>) -> Result<(), Refusal> {
    let Segment { carrier, .. } = segment(link, links)?;
    if let Some(carrier) = links.get(&carrier).filter(|carrier| carrier.index != link.index) {
        suitable_for(carrier, links, Part::Carrier)?;
    }
    suitable_for(link, links, Part::Interface)
}

/// What a link is to be for addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// They are on it.
    Interface,
    /// They are on a VLAN device that stands on it.
    Carrier,
}

fn suitable_for(link: &Link, links: &BTreeMap<u32, Link>, part: Part) -> Result<(), Refusal> {
    let name = link.name.clone();
    if link.loopback || link.arphrd == libc::ARPHRD_LOOPBACK {
        return Err(Refusal::Loopback { name });
    }
    if link.arphrd == libc::ARPHRD_INFINIBAND {
        return Err(Refusal::InfiniBand { name });
    }
    // A tap is of this kind as well, and Ethernet.
    if link.is_kind(&["tun"]) && link.arphrd != libc::ARPHRD_ETHER {
        return Err(Refusal::Tun { name });
    }
    if link.arphrd != libc::ARPHRD_ETHER || link.mac.is_none() {
        return Err(Refusal::NotEthernet { name, arphrd: link.arphrd });
    }
    if link.is_kind(&["ipvlan", "ipvtap"]) {
        return Err(Refusal::IpVlan { name });
    }
    // Before NOARP: for a port the way out is the master, whatever the port is.
    if let Some(index) = link.master {
        let master = links.get(&index);
        // Addresses stand on the ports of a VRF; all other masters take the frames of theirs. A bridge does not take
        // those that belong to a VLAN device of its port (`vlan_do_receive` comes first).
        let leaves: &[&str] = if part == Part::Carrier { &["vrf", "bridge"] } else { &["vrf"] };
        if !master.is_some_and(|master| master.is_kind(leaves)) {
            return Err(Refusal::Enslaved {
                port: name,
                master: master.map_or_else(|| format!("#{index}"), |master| master.name.clone()),
                master_kind: master
                    .and_then(|master| master.kind.clone())
                    .unwrap_or_else(|| "interface".to_owned()),
            });
        }
    }
    if link.noarp {
        return Err(Refusal::NoArp { name });
    }
    Ok(())
}

/// Where frames of a link are on the wire.
///
/// # Errors
/// A VLAN device whose frames the program would not see, or not understand.
pub fn segment(link: &Link, links: &BTreeMap<u32, Link>) -> Result<Segment, Refusal> {
    let name = || link.name.clone();
    let mut at = link;
    // Outermost last.
    let mut tags = Vec::new();
    while let Some(tag) = at.tag {
        let below = at.parent.filter(|_| at.link_netns.is_none()).and_then(|index| links.get(&index));
        at = below.ok_or_else(|| Refusal::ParentElsewhere { name: name() })?;
        if tag & !SERVICE_TAG == 0 {
            return Err(Refusal::Tags { name: name(), zero: true });
        }
        tags.push(tag);
    }
    let vlan = match *tags {
        [] => Vlan::UNTAGGED,
        [outer] => Vlan { outer, inner: 0 },
        [inner, outer] => Vlan { outer, inner },
        [_, _, _, ..] => return Err(Refusal::Tags { name: name(), zero: false }),
    };
    Ok(Segment { carrier: at.index, vlan })
}

/// Whether frames of two interfaces have other tags, so that the same address on both is two addresses.
pub fn vlans_apart(one: u32, other: u32, links: &BTreeMap<u32, Link>) -> bool {
    let vlan =
        |index| links.get(&index).and_then(|link| segment(link, links).ok()).map(|segment| segment.vlan);
    vlan(one) != vlan(other)
}

/// The members of a bond.
pub fn members<'a>(bond: &Link, links: &'a BTreeMap<u32, Link>) -> impl Iterator<Item = &'a Link> {
    let (index, is_bond) = (bond.index, bond.is_kind(&["bond"]));
    links.values().filter(move |link| is_bond && link.master == Some(index))
}

impl Link {
    /// Whether frames can go over it: switched on, and with a carrier. IFF_RUNNING would come up to a second later
    /// (`linkwatch_schedule_work`), when caches have long gone elsewhere.
    pub const fn carries(&self) -> bool {
        self.up && self.carrier
    }
}

/// The MACs of these links, current and permanent ones: what a frame with one as its sender says is no claim of another
/// host. A virtual router's is not among them, for its peers on other hosts have the same: it is ours for an address that
/// is answered with it, and another host's for all others.
pub fn own_macs<'a>(links: impl IntoIterator<Item = &'a Link>) -> BTreeSet<MacAddr> {
    let macs = links.into_iter().flat_map(|link| [link.mac, link.permanent_mac]).flatten();
    macs.filter(|mac| !mac.is_zero() && !mac.is_virtual_router()).collect()
}

/// How an interface answers ARP for addresses of other interfaces: the sysctl `arp_ignore` that counts there, the
/// larger one of the interface's own and that of `all`. At 0 it answers for every address of its network namespace.
///
/// # Errors
/// It can't be read; NotFound where there is no such interface, or IPv4 is off on it.
pub fn arp_ignore(interface: &str) -> io::Result<u32> {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"))?;
        text.trim().parse::<u32>().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    Ok(read("all")?.max(read(interface)?))
}

/// Other interfaces whose kernel would answer for `address` of the interface `index` as well, with another MAC and past
/// shield, lease and silence. Those are up, Ethernet with ARP, not the port of a bond or bridge (which answers in its
/// place), have an effective `arp_ignore` of 0, and could be on the same segment.
///
/// What is plugged in where can't be seen from a host; these count: an interface with an address whose subnet holds
/// `address`, and one that shares the wire with `index` by what it is: they stand on each other or on the same third
/// interface, as macvlans do. An interface without such an address on the same switch is not found out.
///
/// `links` and `addresses` are all of this network namespace. An interface whose `arp_ignore` can't be read counts as 0.
pub fn siblings_that_answer<'a>(
    links: &'a BTreeMap<u32, Link>,
    addresses: &[LocalAddress],
    index: u32,
    address: Ipv4Addr,
) -> Vec<&'a Link> {
    siblings(links, addresses, index, address, |name| arp_ignore(name).unwrap_or(0))
}

/// [`siblings_that_answer`], given the effective `arp_ignore` of an interface by its name.
fn siblings<'a>(
    links: &'a BTreeMap<u32, Link>,
    addresses: &[LocalAddress],
    index: u32,
    address: Ipv4Addr,
    arp_ignore: impl Fn(&str) -> u32,
) -> Vec<&'a Link> {
    let Some(ours) = links.get(&index) else { return Vec::new() };
    let below = |link: &Link| match link.kind.as_deref() {
        // The other end is another host's, or a port of something; tags keep a VLAN apart.
        Some("veth" | "netkit" | "vlan") => None,
        _ => link.parent.filter(|_| link.link_netns.is_none()),
    };
    let same_wire = |other: &Link| {
        below(other) == Some(index)
            || below(ours) == Some(other.index)
            || below(other).is_some() && below(other) == below(ours)
    };
    let in_subnet = |other: &Link| {
        addresses.iter().any(|local| {
            local.index == other.index
                && (1..32).contains(&local.prefix_length)
                && netlink::network(local.address, local.prefix_length)
                    == netlink::network(address, local.prefix_length)
        })
    };
    // Not on one segment, whatever their addresses say.
    let other_vlan = |other: &Link| match (segment(ours, links), segment(other, links)) {
        (Ok(ours), Ok(other)) => {
            ours.carrier == other.carrier
                && ours.vlan != other.vlan
                && ours.vlan != Vlan::UNTAGGED
                && other.vlan != Vlan::UNTAGGED
        }
        _ => false,
    };
    let answers = |other: &Link| {
        let free = other
            .master
            .is_none_or(|master| links.get(&master).is_some_and(|master| master.is_kind(&["vrf"])));
        other.index != index
            && other.up
            && !other.loopback
            && !other.noarp
            && other.arphrd == libc::ARPHRD_ETHER
            && free
            && !other_vlan(other)
    };
    links
        .values()
        .filter(|other| {
            answers(other) && (in_subnet(other) || same_wire(other)) && arp_ignore(&other.name) == 0
        })
        .collect()
}

/// Drivers whose native programs answer with `XDP_TX`, by the names that `ethtool -i` shows: those of Linux that
/// fill in `ndo_bpf` and handle it (they tell NETDEV_XDP_ACT_BASIC from 6.3 on). `veth` is not one of them,
/// because its answers are lost unless the peer carries a program too; nor is `vmxnet3`: once its link has been down and
/// is up again it runs the program no more, although it says that it has it (seen with Linux 6.12 on QEMU's card).
const NATIVE_DRIVERS: [&str; 24] = [
    "bnxt_en",
    "ena",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "st_gmac",
    "thunder-nicvf",
    "tsnep",
    "virtio_net",
];

/// The mode for `--attach auto`, and a word where another one may be the better choice.
pub fn auto_mode(link: &Link, driver: Option<&str>) -> (Mode, Option<&'static str>) {
    match (link.kind.as_deref(), driver) {
        // One that is ours is taken over before anybody asks for a mode.
        (None, Some(driver)) if NATIVE_DRIVERS.contains(&driver) && link.xdp.is_some() => (
            Mode::Tc,
            Some("tc, because an XDP program of somebody else is on it; without that it would be native"),
        ),
        (None, Some(driver)) if NATIVE_DRIVERS.contains(&driver) => (Mode::Native, None),
        (None, _) => (
            Mode::Tc,
            Some(
                "tc, because the driver is not known to send native answers: if it does, --attach native is faster",
            ),
        ),
        // Native answers of a veth are lost unless its peer carries a program too; native runs on every member of a
        // bond, and an inactive one would answer a second time where the daemon is late to say so; others have none.
        (Some(_), _) => (Mode::Tc, None),
    }
}

/// The name of a link's driver, if it tells.
pub fn driver(link: &Link) -> Option<String> {
    ethtool::driver(&link.name).ok()
}

/// Whether the program sees VLAN tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanTags {
    /// They are in the frame.
    Visible,
    /// They are taken off before the program runs.
    Hidden {
        /// The command that would change it, if there is one.
        cure: Option<String>,
    },
    /// It depends on something that can't be seen from here, such as a peer in another network namespace.
    Unknown {
        /// The command that would make sure, to be run where that can be seen, if there is one.
        cure: Option<String>,
    },
}

impl VlanTags {
    /// The name used in `status`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Hidden { .. } => "hidden",
            Self::Unknown { .. } => "unknown",
        }
    }

    /// Of two members of a bond: what holds of both, and what has to be done to both.
    fn worse(self, other: Self) -> Self {
        let both = |one: Option<String>, other: Option<String>| match (one, other) {
            (Some(one), Some(other)) => Some(format!("{one} && {other}")),
            (None, _) | (_, None) => None,
        };
        match (self, other) {
            (Self::Visible, other) | (other, Self::Visible) => other,
            (Self::Hidden { cure: one }, Self::Hidden { cure: other }) => {
                Self::Hidden { cure: both(one, other) }
            }
            (
                Self::Hidden { cure: one } | Self::Unknown { cure: one },
                Self::Hidden { cure: other } | Self::Unknown { cure: other },
            ) => Self::Unknown { cure: both(one, other) },
        }
    }
}

/// The offload that takes tags off when they come in: names of the kernel, and ethtool's words for them.
const TAKES_OFF: [(&str, &str); 2] =
    [("rx-vlan-hw-parse", "rxvlan off"), ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse off")];
/// The offload that leaves it to the peer of a veth to put tags in, which it never does: they stay beside the frame.
const LEAVES_OUT: [(&str, &str); 2] =
    [("tx-vlan-hw-insert", "txvlan off"), ("tx-vlan-stag-hw-insert", "tx-vlan-stag-hw-insert off")];

/// Whether the program would see VLAN tags on a link in this mode, as things stand now.
pub fn vlan_tags(mode: Mode, link: &Link, links: &BTreeMap<u32, Link>) -> VlanTags {
    decide_vlan_tags(link, links, mode, |name| {
        let features = ethtool::features(name).ok()?;
        Some(features.into_iter().filter(|(_, active)| *active).map(|(name, _)| name).collect())
    })
}

/// [`vlan_tags`], given the active offloads of an interface by its name; `None` if it can't be asked.
fn decide_vlan_tags(
    link: &Link,
    links: &BTreeMap<u32, Link>,
    mode: Mode,
    active: impl Fn(&str) -> Option<BTreeSet<String>> + Copy,
) -> VlanTags {
    match mode {
        // A tag that is not in the frame stands beside it, where this program looks.
        Mode::Tc => return VlanTags::Visible,
        // It runs on each member in place of the bond.
        Mode::Native if link.is_kind(&["bond"]) => {
            let of_members = members(link, links).map(|member| decide_vlan_tags(member, links, mode, active));
            return of_members.reduce(VlanTags::worse).unwrap_or(VlanTags::Unknown { cure: None });
        }
        Mode::Native | Mode::Generic => {}
    }
    if link.is_kind(&["bridge", "bond", "team", "macvlan", "macvtap"]) {
        // The kernel takes tags off where a frame comes in, before it passes the frame on to one of these.
        return VlanTags::Hidden { cure: None };
    }
    match offloading(link, links) {
        Offloading::There { interface, features } => match active(&interface) {
            None => VlanTags::Unknown { cure: None },
            Some(active) => {
                let hiding: Vec<_> = features.iter().filter(|(name, _)| active.contains(*name)).collect();
                if hiding.is_empty() {
                    VlanTags::Visible
                } else {
                    let words: Vec<_> = hiding.iter().map(|(_, words)| *words).collect();
                    VlanTags::Hidden { cure: Some(format!("ethtool -K {interface} {}", words.join(" "))) }
                }
            }
        },
        Offloading::Elsewhere => VlanTags::Unknown {
            cure: Some("ethtool -K PEER txvlan off tx-vlan-stag-hw-insert off".to_owned()),
        },
    }
}

/// Where the offloads are that decide about a link's tags.
enum Offloading {
    There {
        interface: String,
        features: [(&'static str, &'static str); 2],
    },
    /// On the peer, in another network namespace.
    Elsewhere,
}

fn offloading(link: &Link, links: &BTreeMap<u32, Link>) -> Offloading {
    if link.is_kind(&["veth", "netkit"])
        && let Some(index) = link.parent
    {
        return match links.get(&index) {
            Some(peer) if link.link_netns.is_none() => {
                Offloading::There { interface: peer.name.clone(), features: LEAVES_OUT }
            }
            _ => Offloading::Elsewhere,
        };
    }
    Offloading::There { interface: link.name.clone(), features: TAKES_OFF }
}

/// Whether VLANs run over a link: a VLAN device of this network namespace stands on it, or it is a bridge that
/// keeps VLANs apart.
pub fn carries_vlans(link: &Link, links: &BTreeMap<u32, Link>) -> bool {
    link.vlan_filtering
        || links.values().any(|upper| {
            upper.is_kind(&["vlan"]) && upper.parent == Some(link.index) && upper.link_netns.is_none()
        })
}

/// Whether the program must not answer on a link because of tags that it doesn't see. A veth whose peer can't be
/// asked counts as hiding them: that is how a veth comes into being.
///
/// # Errors
/// [`Refusal::HiddenTags`].
pub fn tags_permit(link: &Link, links: &BTreeMap<u32, Link>, tags: &VlanTags) -> Result<(), Refusal> {
    let (cure, certain) = match tags {
        VlanTags::Visible => return Ok(()),
        VlanTags::Hidden { cure } => (cure, true),
        VlanTags::Unknown { cure } => (cure, false),
    };
    if carries_vlans(link, links) {
        return Err(Refusal::HiddenTags { name: link.name.clone(), cure: cure.clone(), certain });
    }
    Ok(())
}

/// Offloads of receiving that join packets into larger ones. Linux switches them off for a generic program
/// (`generic_xdp_install`), some drivers for a native one, and nobody on again.
const JOINS_PACKETS: [&str; 2] = ["rx-lro", "rx-gro-hw"];

/// Those offloads of an interface that are on before a program is attached to it.
pub fn joins_packets(interface: &str) -> JoinsPackets {
    // One that can't be asked has nothing to lose.
    let now = ethtool::features(interface).unwrap_or_default();
    let features = JOINS_PACKETS.into_iter().filter(|name| now.get(*name).is_some_and(|active| *active));
    JoinsPackets(DisabledOffload { interface: interface.to_owned(), features: features.collect() })
}

/// See [`joins_packets`].
#[derive(Debug)]
pub struct JoinsPackets(DisabledOffload);

impl JoinsPackets {
    /// Of them, those that are off now that the program is attached, if there are any.
    pub fn lost(self) -> Option<DisabledOffload> {
        let Self(mut offload) = self;
        let now = ethtool::features(&offload.interface).unwrap_or_default();
        offload.features.retain(|name| now.get(*name).is_some_and(|active| !active));
        (!offload.features.is_empty()).then_some(offload)
    }
}

/// Offloads that were switched off: so that the program sees VLAN tags, or because it was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "what was switched off is to be restored at the end"]
pub struct DisabledOffload {
    interface: String,
    features: Vec<&'static str>,
}

impl DisabledOffload {
    /// Switches them on again. An interface that has gone needs nothing.
    ///
    /// # Errors
    /// [`OffloadError`]; they are still off then.
    pub fn restore(&self) -> Result<(), OffloadError> {
        match ethtool::set_features(&self.interface, &self.features, true) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(source) => Err(OffloadError::Refused { interface: self.interface.clone(), on: true, source }),
            Ok(()) => Ok(()),
        }
    }
}

/// Switches off what hides VLAN tags from the program; some drivers take the link down meanwhile.
///
/// # Errors
/// [`OffloadError`]; nothing is changed then, or all that can be.
pub fn disable_vlan_offload(
    link: &Link,
    links: &BTreeMap<u32, Link>,
) -> Result<DisabledOffload, OffloadError> {
    if link.is_kind(&["bridge", "bond", "team", "macvlan", "macvtap"]) {
        return Err(OffloadError::NoSetting { interface: link.name.clone() });
    }
    match offloading(link, links) {
        Offloading::Elsewhere => Err(OffloadError::OutOfReach { interface: link.name.clone() }),
        Offloading::There { interface, features } => {
            let failed = |source| OffloadError::Refused { interface: interface.clone(), on: false, source };
            let now = ethtool::features(&interface).map_err(failed)?;
            let features: Vec<_> = features
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| now.get(*name).is_some_and(|active| *active))
                .collect();
            ethtool::set_features(&interface, &features, false).map_err(failed)?;
            Ok(DisabledOffload { interface, features })
        }
    }
}

/// Why a VLAN offload could not be changed.
#[derive(Debug)]
pub enum OffloadError {
    /// No setting makes tags visible on an interface of this kind.
    NoSetting {
        /// Its name.
        interface: String,
    },
    /// The offload is the peer's, in another network namespace.
    OutOfReach {
        /// The name of this end.
        interface: String,
    },
    /// The kernel or the driver refuses.
    Refused {
        /// The name of the interface with the offload.
        interface: String,
        /// It was to be switched on.
        on: bool,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for OffloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSetting { interface } => write!(
                f,
                "making VLAN tags visible on {interface}: no setting does that on an interface of its kind; use a \
                 member or parent of it, or --vlan-offload ignore"
            ),
            Self::OutOfReach { interface } => write!(
                f,
                "making VLAN tags visible on {interface}: the setting is that of its peer in another network \
                 namespace; switch txvlan and tx-vlan-stag-hw-insert off there, then use --vlan-offload ignore"
            ),
            Self::Refused { interface, on, .. } => write!(
                f,
                "switching the VLAN offload of {interface} {}: the driver or the kernel refuses; see \
                 'ethtool -k {interface}'",
                if *on { "on" } else { "off" }
            ),
        }
    }
}

impl Error for OffloadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NoSetting { .. } | Self::OutOfReach { .. } => None,
            Self::Refused { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::{InfoKind, LinkLayerType};

    use super::{
        super::{netlink::Netlink, own_network},
        *,
    };

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// A message as the kernel sends it for an interface.
    fn message(index: u32, name: &str, layer: LinkLayerType, flags: LinkFlags) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = layer;
        message.header.flags = flags | LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Address(MAC.to_vec()),
        ];
        message
    }

    fn with(mut message: LinkMessage, attributes: impl IntoIterator<Item = LinkAttribute>) -> LinkMessage {
        message.attributes.extend(attributes);
        message
    }

    fn made_by(kind: InfoKind) -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])
    }

    fn ethernet(index: u32, name: &str) -> LinkMessage {
        message(index, name, LinkLayerType::Ether, LinkFlags::Broadcast)
    }

    fn links(messages: impl IntoIterator<Item = LinkMessage>) -> BTreeMap<u32, Link> {
        messages
            .into_iter()
            .filter_map(|message| Link::decode(&message))
            .map(|link| (link.index, link))
            .collect()
    }

    /// What becomes of the link with index 1.
    fn judged(messages: impl IntoIterator<Item = LinkMessage>) -> Result<(), Refusal> {
        let links = links(messages);
        suitable(&links[&1], &links)
    }

    #[test]
    fn a_link_message_is_decoded_field_by_field() {
        let xdp = vec![LinkXdp::Attached(Attached::SocketBuffer), LinkXdp::ProgId(7), LinkXdp::SkbProgId(7)];
        let message = with(
            ethernet(9, "veth0"),
            [
                LinkAttribute::PermAddress(vec![2, 0, 0, 0, 0, 2]),
                LinkAttribute::PropList(vec![Prop::AltIfName("uplink".to_owned())]),
                LinkAttribute::Controller(3),
                LinkAttribute::Link(12),
                LinkAttribute::LinkNetNsId(0),
                LinkAttribute::CarrierDownCount(5),
                made_by(InfoKind::Veth),
                LinkAttribute::Xdp(xdp),
            ],
        );
        let expected = Link {
            index: 9,
            name: "veth0".to_owned(),
            alternative_names: vec!["uplink".to_owned()],
            mac: Some(MacAddr::new(MAC)),
            permanent_mac: Some(MacAddr::new([2, 0, 0, 0, 0, 2])),
            kind: Some("veth".to_owned()),
            arphrd: 1,
            up: true,
            running: true,
            carrier: true,
            carrier_losses: 5,
            noarp: false,
            loopback: false,
            master: Some(3),
            parent: Some(12),
            link_netns: Some(0),
            mtu: 1500,
            xdp: Some(XdpAttached { id: 7, mode: Some(Mode::Generic) }),
            vlan_filtering: false,
            tag: None,
            active_member: None,
            backup: false,
        };
        assert_eq!(Link::decode(&message), Some(expected));
    }

    #[test]
    fn a_message_without_a_name_is_no_link() {
        let mut wireless = LinkMessage::default();
        wireless.header.index = 4;
        assert_eq!(Link::decode(&wireless), None);
    }

    #[test]
    fn each_way_to_attach_a_program_is_told_apart() {
        for (attached_as, expected) in [
            (Attached::None, None),
            (Attached::Driver, Some(Some(Mode::Native))),
            (Attached::SocketBuffer, Some(Some(Mode::Generic))),
            (Attached::Hardware, Some(None)),
            (Attached::Multiple, Some(None)),
            (Attached::Other(9), Some(None)),
        ] {
            let xdp = attached(&[LinkXdp::Attached(attached_as), LinkXdp::ProgId(5)]);
            assert_eq!(xdp.map(|xdp| xdp.mode), expected);
        }
        assert_eq!(attached(&[]), None);
    }

    #[test]
    fn interfaces_with_ethernet_and_arp_can_carry_addresses() {
        assert_eq!(judged([ethernet(1, "eth0")]), Ok(()));
        for kind in [
            InfoKind::Veth,
            InfoKind::Bridge,
            InfoKind::Bond,
            InfoKind::Team,
            InfoKind::Dummy,
            InfoKind::MacVlan,
            InfoKind::MacVtap,
            InfoKind::Vxlan,
            InfoKind::GreTap,
            InfoKind::Geneve,
            InfoKind::MacSec,
            InfoKind::Dsa,
            InfoKind::Netkit,
            // A tap: the kernel calls it a tun.
            InfoKind::Tun,
        ] {
            assert_eq!(judged([with(ethernet(1, "if0"), [made_by(kind.clone())])]), Ok(()), "{kind}");
        }
    }

    #[test]
    fn the_loopback_interface_is_refused() {
        let lo = message(1, "lo", LinkLayerType::Loopback, LinkFlags::Loopback);
        assert_eq!(judged([lo]), Err(Refusal::Loopback { name: "lo".to_owned() }));
    }

    #[test]
    fn interfaces_that_are_not_ethernet_are_refused() {
        for (layer, arphrd) in [
            (LinkLayerType::None, 65_534),
            (LinkLayerType::Ppp, 512),
            (LinkLayerType::Ipgre, 778),
            (LinkLayerType::Sit, 776),
            (LinkLayerType::Tunnel, 768),
            (LinkLayerType::Can, 280),
            (LinkLayerType::Netlink, 824),
            (LinkLayerType::Ieee80211Radiotap, 803),
        ] {
            let expected = Refusal::NotEthernet { name: "if0".to_owned(), arphrd };
            assert_eq!(judged([message(1, "if0", layer, LinkFlags::Noarp)]), Err(expected));
        }
    }

    #[test]
    fn ip_over_infiniband_is_refused_as_such() {
        let mut ib = message(1, "ib0", LinkLayerType::Infiniband, LinkFlags::Broadcast);
        ib.attributes.push(LinkAttribute::Address(vec![0; 20]));
        assert_eq!(judged([ib]), Err(Refusal::InfiniBand { name: "ib0".to_owned() }));
    }

    #[test]
    fn a_tun_is_refused_as_such() {
        let tun = message(1, "tun0", LinkLayerType::None, LinkFlags::Noarp | LinkFlags::Pointopoint);
        assert_eq!(
            judged([with(tun, [made_by(InfoKind::Tun)])]),
            Err(Refusal::Tun { name: "tun0".to_owned() })
        );
    }

    #[test]
    fn an_ipvlan_is_refused_in_all_its_modes() {
        for kind in [InfoKind::IpVlan, InfoKind::IpVtap] {
            // Layer 3 modes do without ARP, layer 2 does not; neither has a MAC of its own.
            for flags in [LinkFlags::Broadcast, LinkFlags::Noarp] {
                let ipvlan = message(1, "ipvl0", LinkLayerType::Ether, flags);
                assert_eq!(
                    judged([with(ipvlan, [made_by(kind.clone())])]),
                    Err(Refusal::IpVlan { name: "ipvl0".to_owned() })
                );
            }
        }
    }

    #[test]
    fn an_interface_without_arp_is_refused() {
        let dummy = message(1, "dummy0", LinkLayerType::Ether, LinkFlags::Noarp);
        assert_eq!(
            judged([with(dummy, [made_by(InfoKind::Dummy)])]),
            Err(Refusal::NoArp { name: "dummy0".to_owned() })
        );
    }

    #[test]
    fn a_port_is_refused_and_its_master_is_named() {
        for kind in
            [InfoKind::Bond, InfoKind::Bridge, InfoKind::Team, InfoKind::Other("openvswitch".to_owned())]
        {
            let port = with(ethernet(1, "eth0"), [LinkAttribute::Controller(2)]);
            let master = with(ethernet(2, "master0"), [made_by(kind.clone())]);
            let expected = Refusal::Enslaved {
                port: "eth0".to_owned(),
                master: "master0".to_owned(),
                master_kind: kind.to_string(),
            };
            assert_eq!(judged([port, master]), Err(expected));
        }
        let orphan = with(ethernet(1, "eth0"), [LinkAttribute::Controller(7)]);
        let expected = Refusal::Enslaved {
            port: "eth0".to_owned(),
            master: "#7".to_owned(),
            master_kind: "interface".to_owned(),
        };
        assert_eq!(judged([orphan]), Err(expected));
    }

    #[test]
    fn a_port_of_a_vrf_carries_its_addresses_itself() {
        let port = with(ethernet(1, "eth0"), [LinkAttribute::Controller(2)]);
        let vrf = with(ethernet(2, "vrf0"), [made_by(InfoKind::Vrf)]);
        assert_eq!(judged([port, vrf]), Ok(()));
    }

    /// What a message says of a VLAN device.
    fn vlan(below: u32, id: u16, protocol: VlanProtocol) -> [LinkAttribute; 2] {
        let data = InfoData::Vlan(vec![InfoVlan::Id(id), InfoVlan::Protocol(protocol)]);
        let infos = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)];
        [LinkAttribute::LinkInfo(infos), LinkAttribute::Link(below)]
    }

    fn customer(below: u32, id: u16) -> [LinkAttribute; 2] {
        vlan(below, id, VlanProtocol::Ieee8021Q)
    }

    #[test]
    fn frames_of_a_vlan_device_are_behind_the_tags_of_all_that_it_stands_on() {
        let links = links([
            ethernet(1, "eth0"),
            with(ethernet(2, "eth0.5"), customer(1, 5)),
            with(ethernet(3, "eth0.7"), vlan(1, 7, VlanProtocol::Ieee8021Ad)),
            with(ethernet(4, "eth0.7.9"), customer(3, 9)),
            with(ethernet(5, "eth0.5.6"), customer(2, 6)),
            with(ethernet(6, "eth0.5.6.7"), customer(5, 7)),
            with(ethernet(7, "eth0.0"), customer(1, 0)),
            with(with(ethernet(8, "eth1.5"), customer(1, 5)), [LinkAttribute::LinkNetNsId(0)]),
        ]);
        let on = |outer, inner| Ok(Segment { carrier: 1, vlan: Vlan { outer, inner } });
        let name = |name: &str| name.to_owned();
        for (index, expected) in [
            (1, on(0, 0)),
            (2, on(5, 0)),
            (3, on(7 | SERVICE_TAG, 0)),
            (4, on(7 | SERVICE_TAG, 9)),
            (5, on(5, 6)),
            (6, Err(Refusal::Tags { name: name("eth0.5.6.7"), zero: false })),
            (7, Err(Refusal::Tags { name: name("eth0.0"), zero: true })),
            (8, Err(Refusal::ParentElsewhere { name: name("eth1.5") })),
        ] {
            assert_eq!(segment(&links[&index], &links), expected);
            assert_eq!(suitable(&links[&index], &links), expected.map(|_| ()));
        }
        assert!(vlans_apart(1, 2, &links) && vlans_apart(2, 3, &links) && !vlans_apart(3, 3, &links));
    }

    #[test]
    fn what_carries_a_vlan_device_may_be_a_port_of_a_bridge_but_not_of_a_bond() {
        let judged = |kind: InfoKind| {
            judged([
                with(ethernet(1, "eth0.5"), customer(2, 5)),
                with(ethernet(2, "eth0"), [LinkAttribute::Controller(3)]),
                with(ethernet(3, "master0"), [made_by(kind)]),
            ])
        };
        assert_eq!(judged(InfoKind::Bridge), Ok(()));
        let refused = judged(InfoKind::Bond);
        assert!(matches!(&refused, Err(Refusal::Enslaved { port, .. }) if port == "eth0"), "{refused:?}");
    }

    #[test]
    fn a_bond_and_its_members_are_decoded() {
        let bond = InfoData::Bond(vec![InfoBond::ActivePort(2)]);
        let member = |index, name, state| {
            let settings =
                vec![InfoBondPort::BondPortState(state), InfoBondPort::PermHwaddr(vec![2, 0, 0, 0, 0, 9])];
            let infos = vec![LinkInfo::PortData(InfoPortData::BondPort(settings))];
            with(ethernet(index, name), [LinkAttribute::LinkInfo(infos), LinkAttribute::Controller(1)])
        };
        let bond = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bond), LinkInfo::Data(bond)]);
        let links = links([
            with(ethernet(1, "bond0"), [bond]),
            member(2, "eth0", BondPortState::Active),
            member(3, "eth1", BondPortState::Backup),
            ethernet(4, "eth2"),
        ]);
        assert_eq!(links[&1].active_member, Some(2));
        assert_eq!([links[&2].backup, links[&3].backup], [false, true]);
        assert_eq!(links[&3].permanent_mac, Some(MacAddr::new([2, 0, 0, 0, 0, 9])));
        let names: Vec<_> = members(&links[&1], &links).map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        assert_eq!(members(&links[&2], &links).count(), 0);
    }

    #[test]
    fn interfaces_are_found_by_either_name() {
        let links = links([
            with(ethernet(1, "eth0"), [LinkAttribute::PropList(vec![Prop::AltIfName("uplink".to_owned())])]),
            ethernet(2, "eth1"),
        ]);
        assert_eq!(find("eth1", &links).map(|link| link.index), Ok(2));
        assert_eq!(find("uplink", &links).map(|link| link.index), Ok(1));
        assert_eq!(find("eth2", &links), Err(Refusal::Missing { name: "eth2".to_owned() }));
    }

    #[test]
    fn every_refusal_names_the_interface_and_a_way_out() {
        let name = || "if0".to_owned();
        for (refusal, way_out) in [
            (Refusal::Missing { name: name() }, "'ip link'"),
            (Refusal::Loopback { name: name() }, "choose"),
            (Refusal::NotEthernet { name: name(), arphrd: 512 }, "choose"),
            (Refusal::InfiniBand { name: name() }, "choose"),
            (Refusal::Tun { name: name() }, "choose"),
            (Refusal::IpVlan { name: name() }, "use the parent"),
            (Refusal::NoArp { name: name() }, "ip link set dev if0 arp on"),
            (
                Refusal::Enslaved {
                    port: name(),
                    master: "br0".to_owned(),
                    master_kind: "bridge".to_owned(),
                },
                "use br0",
            ),
            (Refusal::ParentElsewhere { name: name() }, "run in that namespace"),
            (Refusal::Tags { name: name(), zero: true }, "use the interface that it stands on"),
            (Refusal::Tags { name: name(), zero: false }, "two tags at most"),
            (
                Refusal::HiddenTags {
                    name: name(),
                    cure: Some("ethtool -K if0 rxvlan off".to_owned()),
                    certain: true,
                },
                "run 'ethtool -K if0 rxvlan off'",
            ),
            (Refusal::HiddenTags { name: name(), cure: None, certain: true }, "--vlan-offload ignore"),
        ] {
            let text = refusal.to_string();
            assert!(text.contains("if0") && text.contains(way_out), "{text}");
        }
    }

    #[test]
    fn only_hardware_that_answers_natively_gets_native_mode_by_itself() {
        let kind = |kind: &str| Link { kind: Some(kind.to_owned()), ..Link::default() };
        assert_eq!(auto_mode(&Link::default(), Some("mlx5_core")), (Mode::Native, None));
        assert_eq!(auto_mode(&Link::default(), Some("virtio_net")), (Mode::Native, None));
        for (link, driver) in [
            (kind("veth"), "veth"),
            (kind("bond"), "bonding"),
            (kind("macvlan"), "macvlan"),
            (kind("bridge"), "bridge"),
        ] {
            assert_eq!(auto_mode(&link, Some(driver)), (Mode::Tc, None), "{driver}");
        }
        for driver in [Some("e1000e"), None] {
            let (mode, word) = auto_mode(&Link::default(), driver);
            assert_eq!(mode, Mode::Tc);
            assert!(word.is_some_and(|word| word.contains("--attach native")));
        }
        let taken = Link { xdp: Some(XdpAttached { id: 7, mode: Some(Mode::Native) }), ..Link::default() };
        let (mode, word) = auto_mode(&taken, Some("mlx5_core"));
        assert_eq!(mode, Mode::Tc);
        assert!(word.is_some_and(|word| word.contains("somebody else")));
    }

    fn offloads(
        of: &'static str,
        active: &'static [&'static str],
    ) -> impl Fn(&str) -> Option<BTreeSet<String>> + Copy {
        move |name| (name == of).then(|| active.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn tags_are_hidden_where_the_interface_takes_them_off() {
        let links = links([ethernet(1, "eth0")]);
        let tags = |active| decide_vlan_tags(&links[&1], &links, Mode::Generic, offloads("eth0", active));
        assert_eq!(tags(&["tx-vlan-hw-insert", "rx-checksum"]), VlanTags::Visible);
        assert_eq!(
            tags(&["rx-vlan-hw-parse"]),
            VlanTags::Hidden { cure: Some("ethtool -K eth0 rxvlan off".to_owned()) }
        );
        assert_eq!(
            tags(&["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"]),
            VlanTags::Hidden {
                cure: Some("ethtool -K eth0 rxvlan off rx-vlan-stag-hw-parse off".to_owned())
            }
        );
        let unasked = decide_vlan_tags(&links[&1], &links, Mode::Native, |_| None);
        assert_eq!(unasked, VlanTags::Unknown { cure: None });
    }

    #[test]
    fn tags_of_a_veth_are_hidden_by_its_peer() {
        let veth = || with(ethernet(1, "veth0"), [made_by(InfoKind::Veth), LinkAttribute::Link(2)]);
        let here = links([veth(), ethernet(2, "veth1")]);
        assert_eq!(
            decide_vlan_tags(
                &here[&1],
                &here,
                Mode::Native,
                offloads("veth1", &["tx-vlan-hw-insert", "rx-vlan-hw-parse"])
            ),
            VlanTags::Hidden { cure: Some("ethtool -K veth1 txvlan off".to_owned()) }
        );
        assert_eq!(
            decide_vlan_tags(&here[&1], &here, Mode::Native, offloads("veth1", &["rx-vlan-hw-parse"])),
            VlanTags::Visible
        );
        // The same index here is another interface.
        let elsewhere = links([with(veth(), [LinkAttribute::LinkNetNsId(0)]), ethernet(2, "eth9")]);
        let tags = decide_vlan_tags(&elsewhere[&1], &elsewhere, Mode::Native, offloads("eth9", &[]));
        assert!(matches!(tags, VlanTags::Unknown { cure: Some(_) }), "{tags:?}");
    }

    #[test]
    fn tags_are_always_hidden_where_frames_come_from_other_interfaces() {
        for kind in [InfoKind::Bond, InfoKind::Bridge, InfoKind::Team, InfoKind::MacVlan, InfoKind::MacVtap] {
            let links = links([with(ethernet(1, "upper0"), [made_by(kind)])]);
            let tags = decide_vlan_tags(&links[&1], &links, Mode::Generic, offloads("upper0", &[]));
            assert_eq!(tags, VlanTags::Hidden { cure: None });
        }
    }

    #[test]
    fn tags_beside_a_frame_are_seen_in_tc() {
        let links = links([with(ethernet(1, "bond0"), [made_by(InfoKind::Bond)])]);
        let tags = decide_vlan_tags(&links[&1], &links, Mode::Tc, offloads("bond0", &["rx-vlan-hw-parse"]));
        assert_eq!(tags, VlanTags::Visible);
    }

    #[test]
    fn a_native_program_sees_what_the_members_of_its_bond_see() {
        let member = |index, name| with(ethernet(index, name), [LinkAttribute::Controller(1)]);
        let links = links([
            with(ethernet(1, "bond0"), [made_by(InfoKind::Bond)]),
            member(2, "eth0"),
            member(3, "eth1"),
        ]);
        let tags = |hiding: &'static [&'static str]| {
            decide_vlan_tags(&links[&1], &links, Mode::Native, |name| {
                let hides = hiding.contains(&name).then(|| "rx-vlan-hw-parse".to_owned());
                Some(hides.into_iter().collect())
            })
        };
        let hidden = |cure: &str| VlanTags::Hidden { cure: Some(cure.to_owned()) };
        assert_eq!(tags(&[]), VlanTags::Visible);
        assert_eq!(tags(&["eth1"]), hidden("ethtool -K eth1 rxvlan off"));
        let both = "ethtool -K eth0 rxvlan off && ethtool -K eth1 rxvlan off";
        assert_eq!(tags(&["eth0", "eth1"]), hidden(both));
    }

    #[test]
    fn a_link_carries_frames_while_it_is_switched_on_and_has_a_carrier() {
        let link = Link { index: 4, name: "a".to_owned(), up: true, carrier: true, ..Link::default() };
        assert!(link.carries());
        assert!(!Link { carrier: false, ..link.clone() }.carries());
        assert!(!Link { up: false, ..link.clone() }.carries());
        assert!(Link { running: false, ..link }.carries());
    }

    #[test]
    fn macs_of_all_links_are_own_ones_permanent_ones_too_but_not_those_that_routers_share() {
        let with_macs = |index, mac: [u8; 6], permanent: Option<[u8; 6]>| Link {
            index,
            mac: Some(MacAddr::new(mac)),
            permanent_mac: permanent.map(MacAddr::new),
            ..Link::default()
        };
        let links = [
            with_macs(1, [0; 6], None),
            with_macs(2, [2, 0, 0, 0, 0, 2], Some([2, 0, 0, 0, 0, 9])),
            with_macs(3, [0, 0, 0x5e, 0, 1, 0x33], Some([2, 0, 0, 0, 0, 3])),
            // The one for IPv6 (RFC 9568 §7.3) is nobody's MAC in ARP.
            with_macs(4, [0, 0, 0x5e, 0, 2, 0x33], None),
        ];
        let expected = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 9], [0, 0, 0x5e, 0, 2, 0x33]];
        assert_eq!(own_macs(&links), expected.map(MacAddr::new).into());
    }

    #[test]
    fn interfaces_that_would_answer_too_are_found_by_subnet_and_by_wire() {
        let address = Ipv4Addr::new(192, 0, 2, 4);
        let on = |index, last, prefix_length| LocalAddress {
            index,
            address: Ipv4Addr::new(192, 0, 2, last),
            prefix_length,
            protocol: None,
        };
        let found = |links: &BTreeMap<u32, Link>, addresses: &[LocalAddress], ignore: u32| {
            let names = siblings(links, addresses, 1, address, |_| ignore);
            names.into_iter().map(|link| link.name.clone()).collect::<Vec<_>>()
        };
        let two = || links([ethernet(1, "a"), ethernet(2, "b")]);
        assert_eq!(found(&two(), &[on(1, 1, 24)], 0), [""; 0]);
        assert_eq!(found(&two(), &[on(1, 1, 24), on(2, 2, 24)], 0), ["b"]);
        assert_eq!(found(&two(), &[on(2, 2, 24)], 1), [""; 0]);
        assert_eq!(found(&two(), &[on(2, 200, 25)], 0), [""; 0]);
        assert_eq!(found(&two(), &[on(2, 4, 32)], 0), [""; 0]);
        for change in [
            |link: &mut Link| link.up = false,
            |link: &mut Link| link.noarp = true,
            |link: &mut Link| link.loopback = true,
            |link: &mut Link| link.arphrd = libc::ARPHRD_INFINIBAND,
            |link: &mut Link| link.master = Some(1),
        ] {
            let mut links = two();
            change(links.get_mut(&2).unwrap());
            assert_eq!(found(&links, &[on(2, 2, 24)], 0), [""; 0]);
        }
        let macvlan = |index, name, below| {
            with(ethernet(index, name), [made_by(InfoKind::MacVlan), LinkAttribute::Link(below)])
        };
        assert_eq!(found(&links([ethernet(1, "a"), macvlan(2, "m", 1)]), &[], 0), ["m"]);
        assert_eq!(found(&links([macvlan(1, "m", 2), ethernet(2, "a")]), &[], 0), ["a"]);
        let both = links([
            macvlan(1, "m", 3),
            macvlan(2, "n", 3),
            message(3, "e", LinkLayerType::Ether, LinkFlags::Noarp),
        ]);
        assert_eq!(found(&both, &[], 0), ["n"]);
        let vlan = || with(ethernet(2, "c.7"), [made_by(InfoKind::Vlan), LinkAttribute::Link(1)]);
        assert_eq!(found(&links([ethernet(1, "a"), vlan()]), &[], 0), [""; 0]);
        // Its switch may put it where the other one is untagged.
        assert_eq!(found(&links([ethernet(1, "a"), vlan()]), &[on(2, 2, 24)], 0), ["c.7"]);
        let veth = |index, name, peer| {
            with(ethernet(index, name), [made_by(InfoKind::Veth), LinkAttribute::Link(peer)])
        };
        assert_eq!(found(&links([veth(1, "a", 2), veth(2, "b", 1)]), &[], 0), [""; 0]);
    }

    #[test]
    fn the_larger_of_both_settings_decides_who_is_answered() {
        if !own_network::with(&own_network::PAIR) {
            return;
        }
        let set = |name: &str, value: &str| {
            fs::write(format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"), value).unwrap();
        };
        for (all, own, effective) in [("0", "0", 0), ("1", "0", 1), ("1", "2", 2), ("0", "8", 8)] {
            set("all", all);
            set("a", own);
            assert_eq!(arp_ignore("a").unwrap(), effective);
        }
        assert_eq!(arp_ignore("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn hidden_tags_matter_only_where_vlans_are() {
        let hidden = VlanTags::Hidden { cure: Some("ethtool -K eth0 rxvlan off".to_owned()) };
        let unknown = VlanTags::Unknown { cure: None };
        let plain = links([ethernet(1, "eth0")]);
        let vlan = with(ethernet(2, "eth0.5"), [made_by(InfoKind::Vlan), LinkAttribute::Link(1)]);
        let tagged = links([ethernet(1, "eth0"), vlan.clone()]);
        let others = links([ethernet(1, "eth0"), with(vlan, [LinkAttribute::LinkNetNsId(0)])]);
        let bridge = LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]);
        let bridge = links([with(ethernet(1, "br0"), [bridge])]);

        for (links, carries) in [(&plain, false), (&tagged, true), (&others, false), (&bridge, true)] {
            assert_eq!(carries_vlans(&links[&1], links), carries);
            assert_eq!(tags_permit(&links[&1], links, &VlanTags::Visible), Ok(()));
            assert_eq!(tags_permit(&links[&1], links, &hidden).is_err(), carries);
            assert_eq!(tags_permit(&links[&1], links, &unknown).is_err(), carries);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_offload_of_a_veth_s_peer_is_taken_away_and_given_back() {
        if !own_network::with(&own_network::PAIR) {
            return;
        }
        let (netlink, _changes) = Netlink::open().unwrap();
        let links = netlink.links().await.unwrap();
        let a = find("a", &links).unwrap();
        assert_eq!(driver(a).as_deref(), Some("veth"));
        let hidden =
            VlanTags::Hidden { cure: Some("ethtool -K b txvlan off tx-vlan-stag-hw-insert off".to_owned()) };
        assert_eq!(vlan_tags(Mode::Generic, a, &links), hidden);
        let disabled = disable_vlan_offload(a, &links).unwrap();
        assert_eq!(vlan_tags(Mode::Generic, a, &links), VlanTags::Visible);
        disabled.restore().unwrap();
        assert_eq!(vlan_tags(Mode::Generic, a, &links), hidden);
        own_network::ip("link del dev a");
        disabled.restore().unwrap();
    }
}
