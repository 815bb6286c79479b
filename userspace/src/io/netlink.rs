//! Links and addresses by rtnetlink: what there is, what changes, registration.

pub mod now;
pub mod routes;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    error::Error,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::PathBuf,
    sync::Arc,
};

use arpwarden_common::abi::DEFAULT_CAPACITY;
use futures_util::{Stream, StreamExt as _};
use nix::{
    net::if_::if_indextoname,
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol},
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
        },
    },
    proto::Connection,
    sys::TokioSocket,
};
use tokio::sync::Mutex;
use tracing::warn;

use super::link::Link;

/// IFA_PROTO of the addresses that we put on interfaces (Linux 5.18): how `ip -details address` tells whose they
/// are. The kernel knows 1 to 3 (`linux/if_addr.h`) and leaves the rest to whoever comes; this is the number of
/// the RFC that ARP comes from, 826, without its 6 because there is room for eight bits, and no routing daemon
/// uses it for its routes (`linux/rtnetlink.h`).
pub const ADDRESS_PROTOCOL: u8 = 82;

/// Bytes of changes that may wait: all addresses of the maps may go at once, the kernel charges at most 1 KiB for
/// the message of each, and doubles what is asked for. If more go at once than maps hold by default, what is missed is
/// looked up.
const RECEIVE_BUFFER: usize = DEFAULT_CAPACITY as usize * 512;

/// Requests that may be under way at once: the kernel charges 768 bytes for an acknowledgement, and what waits for us to
/// read it must fit into a socket's default room of 212,992 bytes (`net.core.rmem_default`) many times over, since an
/// acknowledgement that is lost is waited for in vain.
pub const PIPELINED: usize = 64;

/// How often a list is asked for that the kernel says has changed meanwhile.
const ATTEMPTS: u32 = 8;

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Asks rtnetlink. Clones share one socket.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    /// Held while an address is taken off: see [`Promotion`].
    deleting: Arc<Mutex<()>>,
}

/// What changes in this network namespace.
pub struct Changes {
    messages: futures_util::stream::BoxStream<'static, Message>,
}

/// A change of links or addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link is new or different.
    Link(Link),
    /// The link with this index has gone from this network namespace, or altogether.
    LinkGone {
        /// Its index here.
        index: u32,
        /// It is in another network namespace now.
        moved: bool,
    },
    /// An IPv4 address was put on an interface, changed there or taken off.
    Address {
        /// The interface.
        index: u32,
        /// The address.
        address: Ipv4Addr,
        /// 0..=32.
        prefix_length: u8,
        /// It is there now.
        present: bool,
    },
    /// Changes were lost: ask for everything again.
    Overrun,
}

/// An IPv4 address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// 0..=32.
    pub prefix_length: u8,
    /// IFA_PROTO; `None` if nobody gave one, or before Linux 5.18.
    pub protocol: Option<u8>,
}

impl Netlink {
    /// Opens one socket for requests and one for changes, so that a flood of changes can't cost an answer. Changes
    /// are collected from now on: what [`Netlink::links`] and [`Netlink::addresses`] say later is never older.
    ///
    /// # Errors
    /// No descriptor or memory is left.
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O driver.
    pub fn open() -> io::Result<(Self, Changes)> {
        Self::with_buffer(RECEIVE_BUFFER)
    }

    fn with_buffer(receive_buffer: usize) -> io::Result<(Self, Changes)> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
        let (mut watch, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        // Without CAP_NET_ADMIN as much as there is: a loss is reported as such.
        if let Err(error) = set_receive_buffer(&mut watch, receive_buffer) {
            warn!(
                "giving the netlink watch room for {receive_buffer} bytes: {error}; a burst may mean a resync"
            );
        }
        tokio::spawn(watch);
        let messages = messages.map(|(message, _)| message).boxed();
        Ok((Self::for_requests()?, Changes { messages }))
    }

    /// Opens a socket for requests alone.
    ///
    /// # Errors
    /// As [`Netlink::open`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with its I/O driver.
    pub fn for_requests() -> io::Result<Self> {
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        // So that an answer that ends early differs from one that is complete.
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        tokio::spawn(connection);
        Ok(Self { handle, deleting: Arc::default() })
    }

    /// All links of this network namespace by their index.
    ///
    /// # Errors
    /// [`DumpError`].
    pub async fn links(&self) -> Result<BTreeMap<u32, Link>, DumpError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let found = self.dump(Listed::Links, RouteNetlinkMessage::GetLink(request)).await?;
        let links = found.iter().filter_map(|message| {
            let RouteNetlinkMessage::NewLink(message) = message else { return None };
            Link::decode(message)
        });
        Ok(links.map(|link| (link.index, link)).collect())
    }

    /// All IPv4 addresses of this network namespace.
    ///
    /// # Errors
    /// [`DumpError`].
    pub async fn addresses(&self) -> Result<Vec<LocalAddress>, DumpError> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let found = self.dump(Listed::Addresses, RouteNetlinkMessage::GetAddress(request)).await?;
        let addresses = found.iter().filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            local_address(message)
        });
        Ok(addresses.collect())
    }

    /// Puts addresses on interfaces in this order, marked with [`ADDRESS_PROTOCOL`], and says of each how that went. The
    /// kernel adds a route to a prefix unless the interface has one. All are asked for before the first answer is waited
    /// for, so there must be no more than [`PIPELINED`].
    ///
    /// # Errors
    /// [`AddressError::Exists`] if it is there with this prefix, whoever put it there; nothing is changed then.
    pub async fn add_addresses(&self, places: &[Place]) -> Vec<Result<(), AddressError>> {
        // Others' routes, by the prefix: what was put there a moment ago has not made one.
        let mut routes = BTreeMap::new();
        let mut asked = Vec::with_capacity(places.len());
        for &place in places {
            let Place { index, address, prefix_length } = place;
            let mut message = place.message();
            message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL)));
            if let Some(broadcast) = broadcast(address, prefix_length) {
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
            let prefix = (index, network(address, prefix_length), prefix_length);
            let others = match routes.entry(prefix) {
                // The kernel makes no route to a prefix of one address.
                _ if prefix_length == 32 => false,
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) => *unknown.insert(self.has_route_of_others(place).await),
            };
            if others {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
            }
            let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            asked.push(self.begin(RouteNetlinkMessage::NewAddress(message), flags));
        }
        let mut results = Vec::with_capacity(places.len());
        for (asked, &place) in asked.into_iter().zip(places) {
            let answer = match asked {
                Ok(answers) => answered(answers).await,
                Err(error) => Err(error),
            };
            results.push(answer.map(|_| ()).map_err(|source| match source.raw_os_error() {
                Some(libc::EEXIST) => AddressError::Exists { place },
                Some(libc::ENODEV) => AddressError::NoSuchInterface { place },
                Some(libc::EPERM) => AddressError::NotPermitted { place, adding: true },
                Some(_) | None => AddressError::Kernel { place, adding: true, source },
            }));
        }
        results
    }

    /// Takes exactly this address with this prefix off an interface; done already if it isn't there. Other addresses
    /// stay, though the kernel would take those along that were added after it in the same subnet.
    ///
    /// # Errors
    /// [`AddressError::WouldTakeOthers`] if that can't be prevented; nothing is changed then.
    pub async fn delete_address(
        &self,
        index: u32,
        address: Ipv4Addr,
        prefix_length: u8,
    ) -> Result<(), AddressError> {
        let place = Place { index, address, prefix_length };
        let _alone = self.deleting.lock().await;
        let _promotion = match Promotion::of(place) {
            Ok(promotion) => promotion,
            Err(source) => {
                let others = self.secondaries(place).await.map_err(|error| AddressError::Kernel {
                    place,
                    adding: false,
                    source: io::Error::other(error),
                })?;
                if !others.is_empty() {
                    return Err(AddressError::WouldTakeOthers { place, others, source });
                }
                None
            }
        };
        self.take_off(place).await
    }

    /// Takes an address off and puts others back that the kernel has taken along all the same: the setting may have
    /// been changed in between.
    async fn take_off(&self, place: Place) -> Result<(), AddressError> {
        let message = RouteNetlinkMessage::DelAddress(place.message());
        let deleted = match self.ask(message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO).await {
            Ok(deleted) => deleted,
            Err(source) => {
                return match source.raw_os_error() {
                    // Not there; nor is the interface.
                    Some(libc::EADDRNOTAVAIL | libc::ENODEV) => Ok(()),
                    Some(libc::EPERM) => Err(AddressError::NotPermitted { place, adding: false }),
                    Some(_) | None => Err(AddressError::Kernel { place, adding: false, source }),
                };
            }
        };
        let mut lost = Vec::new();
        for message in deleted {
            let RouteNetlinkMessage::DelAddress(message) = message else { continue };
            let Some(local) = local_address(&message) else { continue };
            if local.address == place.address && local.prefix_length == place.prefix_length {
                continue;
            }
            let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            match self.ask(RouteNetlinkMessage::NewAddress(as_it_was(message)), flags).await {
                Ok(_) => warn!(
                    "{}/{} was taken off along with {place}, and put back",
                    local.address, local.prefix_length
                ),
                // Somebody was faster.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(source) => lost.push((local.address, source)),
            }
        }
        match lost.pop() {
            None => Ok(()),
            Some((last, source)) => {
                let others = lost.into_iter().map(|(address, _)| address).chain([last]).collect();
                Err(AddressError::TookOthers { place, others, source })
            }
        }
    }

    /// Whether the interface has a route to the address's prefix that no address brought with it. The kernel adds
    /// none for a further address of a subnet either, but gives it one when the first address goes; an address
    /// marked as doing without would then leave the host without a route to its subnet.
    async fn has_route_of_others(&self, place: Place) -> bool {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        request.header.flags = RouteFlags::FibMatch;
        request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(place.address)));
        request.attributes.push(RouteAttribute::Oif(place.index));
        let request = request_of(RouteNetlinkMessage::GetRoute(request), NLM_F_REQUEST);
        let Ok(mut answers) = self.handle.clone().request(request) else { return false };
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = answer.payload {
                return route.header.destination_prefix_length == place.prefix_length
                    && route.header.scope == RouteScope::Link
                    && route.header.protocol != RouteProtocol::Kernel
                    && route.attributes.contains(&RouteAttribute::Oif(place.index));
            }
        }
        false
    }

    /// The addresses that the kernel would take off along with this one.
    async fn secondaries(&self, place: Place) -> Result<Vec<Ipv4Addr>, DumpError> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let found = self.dump(Listed::Addresses, RouteNetlinkMessage::GetAddress(request)).await?;
        let same_subnet: Vec<_> = found
            .iter()
            .filter_map(|message| {
                let RouteNetlinkMessage::NewAddress(message) = message else { return None };
                Some((local_address(message)?, is_secondary(message)))
            })
            .filter(|(local, _)| {
                local.index == place.index
                    && local.prefix_length == place.prefix_length
                    && network(local.address, local.prefix_length)
                        == network(place.address, place.prefix_length)
            })
            .collect();
        let ours_is_primary =
            same_subnet.iter().any(|(local, secondary)| local.address == place.address && !secondary);
        let others =
            same_subnet.iter().filter(|(local, secondary)| local.address != place.address && *secondary);
        Ok(if ours_is_primary { others.map(|(local, _)| local.address).collect() } else { Vec::new() })
    }

    /// The prefix length of the route that makes an address local to this host, so that its kernel takes packets to it
    /// (and answers ARP for it): 32 where it is configured or has such a route of its own; less where the route is of a
    /// whole prefix, all of which the kernel then answers for. `None` if no route says local.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn route_says_local(&self, address: Ipv4Addr) -> io::Result<Option<u8>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        request.header.flags = RouteFlags::FibMatch;
        request.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
        let request = request_of(RouteNetlinkMessage::GetRoute(request), NLM_F_REQUEST);
        let mut answers = self.handle.clone().request(request).map_err(|_| disconnected())?;
        while let Some(answer) = answers.next().await {
            #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    let header = route.header;
                    return Ok((header.kind == RouteType::Local).then_some(header.destination_prefix_length));
                }
                NetlinkPayload::Error(error) => {
                    return match error.raw_code() {
                        // No route, or one that says so (unreachable, prohibit, blackhole).
                        code if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL]
                            .contains(&-code) =>
                        {
                            Ok(None)
                        }
                        _ => Err(error.to_io()),
                    };
                }
                _ => {}
            }
        }
        Err(disconnected())
    }

    /// Sends a request that ends with an acknowledgement; gives what the kernel said before (NLM_F_ECHO).
    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        answered(self.begin(message, flags)?).await
    }

    /// Sends a request; [`answered`] waits for its end.
    fn begin(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<impl Stream<Item = Message> + Unpin + use<>> {
        self.handle.clone().request(request_of(message, flags)).map_err(|_| disconnected())
    }

    /// Asks for a list, again if it changed meanwhile.
    async fn dump(
        &self,
        listed: Listed,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, DumpError> {
        let failed = |source| DumpError { listed, source };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let request = request_of(message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            let mut answers = self.handle.clone().request(request).map_err(|_| failed(disconnected()))?;
            let mut found = Vec::new();
            let (mut torn, mut complete) = (false, false);
            while let Some(answer) = answers.next().await {
                torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => complete = true,
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(failed(error.to_io()));
                    }
                    _ => {}
                }
            }
            if !complete {
                return Err(failed(disconnected()));
            }
            if !torn {
                return Ok(found);
            }
            if attempts == ATTEMPTS {
                // Each attempt was torn by a change, and the watch tells of every change.
                warn!("the list of {} kept changing while it was read {ATTEMPTS} times", listed.name());
                return Ok(found);
            }
        }
    }
}

/// Waits for the acknowledgement of a request; gives what the kernel said before.
async fn answered(mut answers: impl Stream<Item = Message> + Unpin) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut said = Vec::new();
    while let Some(answer) = answers.next().await {
        #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => said.push(message),
            NetlinkPayload::Error(error) => {
                return if error.code.is_none() { Ok(said) } else { Err(error.to_io()) };
            }
            _ => {}
        }
    }
    Err(disconnected())
}

fn request_of(message: RouteNetlinkMessage, flags: u16) -> Message {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    request
}

fn disconnected() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the netlink socket was closed before the answer")
}

fn set_receive_buffer(
    connection: &mut Connection<RouteNetlinkMessage, TokioSocket>,
    bytes: usize,
) -> nix::Result<()> {
    let descriptor = connection.socket_mut().as_raw_fd();
    // SAFETY: the connection, which owns the descriptor, is borrowed for longer than this.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    setsockopt(&descriptor.as_fd(), sockopt::RcvBufForce, &bytes)
}

impl Changes {
    /// The next change; `None` when the socket was closed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = change(self.messages.next().await?) {
                return Some(change);
            }
        }
    }
}

fn change(message: Message) -> Option<Change> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
    match message.payload {
        NetlinkPayload::Overrun(_) => Some(Change::Overrun),
        NetlinkPayload::InnerMessage(message) => match message {
            // AF_BRIDGE messages come along: of a port that leaves its bridge they say "link deleted".
            RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                Link::decode(&link).map(Change::Link)
            }
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                let moved = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::NewNetnsId(_));
                Some(Change::LinkGone { index: link.header.index, moved: link.attributes.iter().any(moved) })
            }
            RouteNetlinkMessage::NewAddress(address) => address_change(&address, true),
            RouteNetlinkMessage::DelAddress(address) => address_change(&address, false),
            _ => None,
        },
        _ => None,
    }
}

fn address_change(message: &AddressMessage, present: bool) -> Option<Change> {
    let LocalAddress { index, address, prefix_length, .. } = local_address(message)?;
    Some(Change::Address { index, address, prefix_length, present })
}

fn local_address(message: &AddressMessage) -> Option<LocalAddress> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let (mut local, mut protocol) = (None, None);
    for attribute in &message.attributes {
        #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Protocol(number) => protocol = Some(u8::from(*number)),
            _ => {}
        }
    }
    Some(LocalAddress {
        index: message.header.index,
        address: local?,
        prefix_length: message.header.prefix_len,
        protocol,
    })
}

/// A request that makes an address as a message about its end describes it.
fn as_it_was(mut message: AddressMessage) -> AddressMessage {
    message.attributes.retain_mut(|attribute| {
        if let AddressAttribute::Flags(flags) = attribute {
            // Which of a subnet's addresses is the first is the kernel's to say; whether it lasts goes by its lifetime.
            flags.remove(AddressFlags::Secondary | AddressFlags::Permanent);
            return true;
        }
        matches!(
            attribute,
            AddressAttribute::Local(_)
                | AddressAttribute::Address(_)
                | AddressAttribute::Broadcast(_)
                | AddressAttribute::Label(_)
                | AddressAttribute::Protocol(_)
                | AddressAttribute::CacheInfo(_)
        )
    });
    message.header.flags = AddressHeaderFlags::empty();
    message
}

fn is_secondary(message: &AddressMessage) -> bool {
    message.attributes.iter().any(
        |attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Secondary)),
    )
}

/// Where an address is or is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// 1..=32.
    pub prefix_length: u8,
}

impl Place {
    /// A message about the address, of global scope, not a peer's.
    fn message(self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = self.prefix_length;
        message.header.index = self.index;
        let address = IpAddr::V4(self.address);
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        message
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} on ", self.address, self.prefix_length)?;
        match name_of(self.index) {
            Some(name) => f.write_str(&name),
            None => write!(f, "interface #{}", self.index),
        }
    }
}

fn name_of(index: u32) -> Option<String> {
    if_indextoname(index).ok()?.into_string().ok()
}

/// The first address of the prefix.
pub(crate) fn network(address: Ipv4Addr, prefix_length: u8) -> Ipv4Addr {
    let host_bits = 32 - u32::from(prefix_length.min(32));
    Ipv4Addr::from(u32::from(address) & u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// The broadcast address of the prefix; /31 and /32 have none (RFC 3021 §2.2).
fn broadcast(address: Ipv4Addr, prefix_length: u8) -> Option<Ipv4Addr> {
    let host_bits = u32::MAX.checked_shr(prefix_length.into()).unwrap_or(0);
    (prefix_length < 31).then(|| Ipv4Addr::from(u32::from(address) | host_bits))
}

/// Makes the kernel keep the other addresses of a subnet when its first one goes (`promote_secondaries`, off by
/// default), for as long as this lives.
struct Promotion {
    setting: PathBuf,
    before: String,
}

impl Promotion {
    /// `None` if nothing need be changed.
    ///
    /// # Errors
    /// It is off and can't be switched on: sysctls are read-only in many containers.
    fn of(place: Place) -> io::Result<Option<Self>> {
        // Nothing else fits into such a prefix.
        if place.prefix_length == 32 {
            return Ok(None);
        }
        let Some(name) = name_of(place.index) else { return Ok(None) };
        let setting =
            |name: &str| PathBuf::from(format!("/proc/sys/net/ipv4/conf/{name}/promote_secondaries"));
        // Either of the two switches it on (`IN_DEV_ORCONF`).
        let is_on = |value: &str| value.trim() != "0";
        if is_on(&fs::read_to_string(setting("all"))?) {
            return Ok(None);
        }
        let setting = setting(&name);
        let before = fs::read_to_string(&setting)?;
        if is_on(&before) {
            return Ok(None);
        }
        fs::write(&setting, "1")?;
        Ok(Some(Self { setting, before }))
    }
}

impl Drop for Promotion {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.setting, &self.before)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!("setting {} back to {}: {error}", self.setting.display(), self.before.trim());
        }
    }
}

/// What a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Links.
    Links,
    /// IPv4 addresses.
    Addresses,
}

impl Listed {
    const fn name(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Addresses => "IPv4 addresses",
        }
    }
}

/// Why a list could not be had.
#[derive(Debug)]
pub struct DumpError {
    /// Of what.
    pub listed: Listed,
    /// The kernel's answer.
    pub source: io::Error,
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "asking rtnetlink for the {} of this network namespace failed; try again",
            self.listed.name()
        )
    }
}

impl Error for DumpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Why an address could not be put on an interface or taken off.
#[derive(Debug)]
pub enum AddressError {
    /// It is there already, with this prefix.
    Exists {
        /// Which one.
        place: Place,
    },
    /// There is no such interface.
    NoSuchInterface {
        /// Which one.
        place: Place,
    },
    /// The kernel does not permit it.
    NotPermitted {
        /// Which one.
        place: Place,
        /// It was to be put there.
        adding: bool,
    },
    /// The kernel would take other addresses along, and could not be told not to.
    WouldTakeOthers {
        /// Which one.
        place: Place,
        /// The others.
        others: Vec<Ipv4Addr>,
        /// Why not.
        source: io::Error,
    },
    /// It is off, and the kernel took other addresses along that could not be put back.
    TookOthers {
        /// Which one.
        place: Place,
        /// The others.
        others: Vec<Ipv4Addr>,
        /// Why not the last of them.
        source: io::Error,
    },
    /// Something else.
    Kernel {
        /// Which one.
        place: Place,
        /// It was to be put there.
        adding: bool,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl AddressError {
    /// Whether a missing permission is the reason, so that the command ends with 5.
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = |adding: &bool| if *adding { "registering" } else { "deregistering" };
        match self {
            Self::Exists { place } => write!(
                f,
                "registering {place}: the address is there already; take it off first, or take it over with --adopt"
            ),
            Self::NoSuchInterface { place } => {
                write!(f, "registering {place}: there is no such interface (any more); see 'ip link'")
            }
            Self::NotPermitted { place, adding } => {
                write!(f, "{} {place}: not permitted; it needs CAP_NET_ADMIN", doing(adding))
            }
            Self::WouldTakeOthers { place, others, .. } => {
                let others: Vec<_> = others.iter().map(Ipv4Addr::to_string).collect();
                write!(
                    f,
                    "deregistering {place}: it is the first address of its subnet there, and the kernel would take \
                     {} off with it; preventing that failed, so it was left: set the sysctl \
                     net.ipv4.conf.all.promote_secondaries to 1",
                    others.join(", ")
                )
            }
            Self::TookOthers { place, others, .. } => {
                let others: Vec<_> = others.iter().map(Ipv4Addr::to_string).collect();
                write!(
                    f,
                    "deregistering {place}: the kernel took {} off with it, and putting that back failed; put it back \
                     by hand ('ip address add'), and set the sysctl net.ipv4.conf.all.promote_secondaries to 1",
                    others.join(", ")
                )
            }
            Self::Kernel { place, adding, .. } => {
                write!(f, "{} {place}: the kernel refuses", doing(adding))
            }
        }
    }
}

impl Error for AddressError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::WouldTakeOthers { source, .. }
            | Self::TookOthers { source, .. }
            | Self::Kernel { source, .. } => Some(source),
            Self::Exists { .. } | Self::NoSuchInterface { .. } | Self::NotPermitted { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arpwarden_common::net::MacAddr;
    use nix::net::if_::if_nametoindex;
    use rtnetlink::packet_route::address::AddressHeader;

    use super::{
        super::own_network::{self, PAIR, ip, ip_batch},
        now::link_now,
        *,
    };

    fn address(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, number)
    }

    impl Netlink {
        /// [`Netlink::add_addresses`] of one.
        async fn add_address(
            &self,
            index: u32,
            address: Ipv4Addr,
            prefix_length: u8,
        ) -> Result<(), AddressError> {
            self.add_addresses(&[Place { index, address, prefix_length }]).await.remove(0)
        }
    }

    async fn here(netlink: &Netlink) -> BTreeSet<(Ipv4Addr, u8)> {
        let addresses = netlink.addresses().await.unwrap();
        addresses.iter().map(|local| (local.address, local.prefix_length)).collect()
    }

    #[test]
    fn a_broadcast_address_is_the_last_of_its_prefix_if_that_has_one() {
        assert_eq!(broadcast(address(5), 24), Some(address(255)));
        assert_eq!(broadcast(address(5), 30), Some(address(7)));
        assert_eq!(broadcast(address(5), 31), None);
        assert_eq!(broadcast(address(5), 32), None);
        assert_eq!(broadcast(address(5), 8), Some(Ipv4Addr::new(192, 255, 255, 255)));
    }

    #[test]
    fn a_port_that_leaves_its_bridge_has_not_gone() {
        let mut link = LinkMessage::default();
        link.header.index = 4;
        let message = |link: &LinkMessage| NetlinkMessage::from(RouteNetlinkMessage::DelLink(link.clone()));
        link.header.interface_family = AddressFamily::Bridge;
        assert_eq!(change(message(&link)), None);
        link.header.interface_family = AddressFamily::Unspec;
        assert_eq!(change(message(&link)), Some(Change::LinkGone { index: 4, moved: false }));
    }

    #[test]
    fn an_address_is_its_local_part_and_knows_who_put_it_there() {
        let header = AddressHeader {
            family: AddressFamily::Inet,
            prefix_len: 32,
            index: 4,
            ..AddressHeader::default()
        };
        let mut message = AddressMessage::default();
        message.header = header;
        // A point-to-point interface: IFA_ADDRESS is the other end.
        message.attributes = vec![
            AddressAttribute::Address(IpAddr::V4(address(1))),
            AddressAttribute::Local(IpAddr::V4(address(2))),
            AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL)),
        ];
        let expected = LocalAddress {
            index: 4,
            address: address(2),
            prefix_length: 32,
            protocol: Some(ADDRESS_PROTOCOL),
        };
        assert_eq!(local_address(&message), Some(expected));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn links_are_listed_with_what_they_stand_on() {
        if !own_network::with(&PAIR) {
            return;
        }
        ip("link add dev br type bridge");
        ip("link set dev b master br");
        let (netlink, _changes) = Netlink::open().unwrap();
        let links = netlink.links().await.unwrap();
        let by_name = |name: &str| links.values().find(|link| link.name == name).unwrap();
        let (a, b, br, lo) = (by_name("a"), by_name("b"), by_name("br"), by_name("lo"));
        assert!(lo.loopback && lo.arphrd == libc::ARPHRD_LOOPBACK);
        assert_eq!((a.parent, a.link_netns, a.kind.as_deref()), (Some(b.index), None, Some("veth")));
        assert_eq!((b.master, br.vlan_filtering), (Some(br.index), false));
        assert!(a.mac.is_some() && a.up && a.running);
        assert_eq!(link_now(a.index).unwrap().as_ref(), Some(a));
        assert_eq!(link_now(999).unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_is_put_on_an_interface_marked_and_taken_off() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        let (netlink, _changes) = Netlink::open().unwrap();
        for prefix_length in [24, 31, 32] {
            netlink.add_address(index, address(4), prefix_length).await.unwrap();
            let expected =
                LocalAddress { index, address: address(4), prefix_length, protocol: Some(ADDRESS_PROTOCOL) };
            assert_eq!(netlink.addresses().await.unwrap(), [expected]);

            let again = netlink.add_address(index, address(4), prefix_length).await;
            assert!(matches!(again, Err(AddressError::Exists { .. })), "{again:?}");
            // Another prefix, another address.
            netlink.delete_address(index, address(4), 25).await.unwrap();
            assert_eq!(here(&netlink).await.len(), 1);

            netlink.delete_address(index, address(4), prefix_length).await.unwrap();
            assert_eq!(here(&netlink).await.len(), 0);
            netlink.delete_address(index, address(4), prefix_length).await.unwrap();
        }
        let gone = netlink.add_address(999, address(4), 24).await.unwrap_err();
        assert!(matches!(gone, AddressError::NoSuchInterface { .. }), "{gone:?}");
        netlink.delete_address(999, address(4), 24).await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_first_address_of_a_subnet_goes_without_the_others() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        let setting = "/proc/sys/net/ipv4/conf/a/promote_secondaries";
        fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "0").unwrap();
        fs::write(setting, "0").unwrap();
        let (netlink, _changes) = Netlink::open().unwrap();
        for number in [1, 2, 3] {
            netlink.add_address(index, address(number), 24).await.unwrap();
        }
        let place = |number| Place { index, address: address(number), prefix_length: 24 };
        assert_eq!(netlink.secondaries(place(1)).await.unwrap(), [address(2), address(3)]);
        assert_eq!(netlink.secondaries(place(2)).await.unwrap(), [Ipv4Addr::UNSPECIFIED; 0]);

        let (first, second) = tokio::join!(
            netlink.delete_address(index, address(1), 24),
            netlink.delete_address(index, address(2), 24)
        );
        first.unwrap();
        second.unwrap();
        assert_eq!(here(&netlink).await, BTreeSet::from([(address(3), 24)]));
        assert_eq!(fs::read_to_string(setting).unwrap().trim(), "0");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn addresses_that_go_along_are_put_back_as_they_were() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "0").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/a/promote_secondaries", "0").unwrap();
        let (netlink, _changes) = Netlink::open().unwrap();
        netlink.add_address(index, address(1), 24).await.unwrap();
        netlink.add_address(index, address(2), 24).await.unwrap();
        ip("address add 192.0.2.3/24 broadcast 192.0.2.255 label a:third dev a noprefixroute");
        let shown = || {
            let shown = std::process::Command::new("ip").args(["-o", "address", "show", "dev", "a"]).output();
            String::from_utf8(shown.unwrap().stdout).unwrap().replace(" secondary", "")
        };
        let before = shown();
        // Nobody asked for promotion.
        netlink.take_off(Place { index, address: address(1), prefix_length: 24 }).await.unwrap();
        let expected: Vec<_> = before.lines().filter(|line| !line.contains("192.0.2.1/24")).collect();
        let after = shown();
        assert_eq!(after.lines().collect::<Vec<_>>(), expected);
        let second = netlink.addresses().await.unwrap().into_iter().find(|local| local.address == address(2));
        assert_eq!(second.unwrap().protocol, Some(ADDRESS_PROTOCOL));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_route_that_makes_an_address_local_is_found() {
        if !own_network::with(&PAIR) {
            return;
        }
        ip("link set dev lo up");
        let (netlink, _changes) = Netlink::open().unwrap();
        assert_eq!(netlink.route_says_local(address(4)).await.unwrap(), None);
        ip("address add 192.0.2.1/24 dev a");
        assert_eq!(netlink.route_says_local(address(4)).await.unwrap(), None);
        assert_eq!(netlink.route_says_local(address(1)).await.unwrap(), Some(32));
        ip("route add local 192.0.2.4/32 dev lo");
        assert_eq!(netlink.route_says_local(address(4)).await.unwrap(), Some(32));
        ip("route add local 198.51.100.0/24 dev lo");
        let other = Ipv4Addr::new(198, 51, 100, 9);
        assert_eq!(netlink.route_says_local(other).await.unwrap(), Some(24));
        ip("route add blackhole 203.0.113.0/24");
        assert_eq!(netlink.route_says_local(Ipv4Addr::new(203, 0, 113, 1)).await.unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_link_that_moves_is_told_from_one_that_has_gone() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("b").unwrap();
        let (_netlink, mut changes) = Netlink::open().unwrap();
        let mut other = std::process::Command::new("unshare").args(["--net", "sleep", "30"]).spawn().unwrap();
        let theirs = format!("/proc/{}/ns/net", other.id());
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        own_network::wait_until("a namespace", || fs::read_link(&theirs).unwrap() != ours);
        ip(&format!("link set dev b netns {}", other.id()));
        let gone = loop {
            if let Change::LinkGone { index: at, moved } = changes.next().await.unwrap()
                && at == index
            {
                break moved;
            }
        };
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(gone);
    }

    #[test]
    fn the_gateway_of_an_interface_is_told_with_its_mac() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        ip("address add 192.0.2.1/24 dev a");
        assert_eq!(now::gateway(index).unwrap(), None);
        ip("route add 198.51.100.0/24 via 192.0.2.9 dev a");
        ip("route add default via 192.0.2.253 dev a metric 200");
        ip("route add default via 192.0.2.254 dev a metric 100");
        let expected = |mac| Some(now::Gateway { address: address(254), mac });
        assert_eq!(now::gateway(index).unwrap(), expected(None));
        ip("neigh add 192.0.2.254 lladdr 02:00:00:00:00:fe dev a");
        let mac = MacAddr::new([2, 0, 0, 0, 0, 0xfe]);
        assert_eq!(now::gateway(index).unwrap(), expected(Some(mac)));
        assert_eq!(now::gateway(if_nametoindex("b").unwrap()).unwrap(), None);
    }

    fn routes() -> String {
        let routes = std::process::Command::new("ip").args(["route", "show"]).output().unwrap();
        String::from_utf8(routes.stdout).unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_prefix_gets_one_connected_route_whoever_made_it() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        let (netlink, _changes) = Netlink::open().unwrap();

        // With the last address of an interface the kernel takes all routes over it away, whosever they are.
        ip("address add 198.51.100.1/32 dev a");
        ip("route add 192.0.2.0/24 dev a scope link");
        netlink.add_address(index, address(4), 24).await.unwrap();
        assert_eq!(routes().lines().count(), 1, "{}", routes());
        netlink.delete_address(index, address(4), 24).await.unwrap();
        assert_eq!(routes().lines().count(), 1, "{}", routes());
        ip("route del 192.0.2.0/24 dev a");

        netlink.add_address(index, address(4), 24).await.unwrap();
        assert_eq!(routes().lines().count(), 1, "{}", routes());
        netlink.delete_address(index, address(4), 24).await.unwrap();
        assert_eq!(routes(), "");

        // The host's own address goes: ours keeps the subnet reachable, if the host is set up to.
        fs::write("/proc/sys/net/ipv4/conf/all/promote_secondaries", "1").unwrap();
        ip("address add 192.0.2.1/24 dev a");
        netlink.add_address(index, address(4), 24).await.unwrap();
        assert_eq!(routes().lines().count(), 1, "{}", routes());
        ip("address del 192.0.2.1/24 dev a");
        assert!(routes().contains("src 192.0.2.4"), "{}", routes());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn changes_come_in_order_from_the_start_on() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        let (netlink, mut changes) = Netlink::open().unwrap();
        netlink.add_address(index, address(4), 24).await.unwrap();
        ip("link set dev a down");
        netlink.delete_address(index, address(4), 24).await.unwrap();
        ip("link del dev a");
        let mut seen = Vec::new();
        loop {
            match changes.next().await.unwrap() {
                Change::Address { index: at, present, .. } if at == index => {
                    seen.push(if present { "+address" } else { "-address" })
                }
                Change::Link(link) if link.index == index && !link.up && seen.last() != Some(&"down") => {
                    seen.push("down")
                }
                Change::LinkGone { index: at, moved } if at == index => {
                    assert!(!moved);
                    break;
                }
                Change::Address { .. } | Change::Link(_) | Change::LinkGone { .. } => {}
                Change::Overrun => panic!("lost changes"),
            }
        }
        assert_eq!(seen[..3], ["+address", "down", "-address"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lost_changes_are_told_and_the_watch_goes_on() {
        if !own_network::with(&PAIR) {
            return;
        }
        let index = if_nametoindex("a").unwrap();
        let (netlink, mut changes) = Netlink::with_buffer(4_096).unwrap();
        let batch: String = (1..=200).map(|n| format!("address add 192.0.2.{n}/32 dev a\n")).collect();
        // Blocks the runtime, so that nobody reads meanwhile.
        ip_batch(&batch);
        while changes.next().await.unwrap() != Change::Overrun {}
        assert_eq!(here(&netlink).await.len(), 200);
        netlink.delete_address(index, address(7), 32).await.unwrap();
        let gone = Change::Address { index, address: address(7), prefix_length: 32, present: false };
        while changes.next().await.unwrap() != gone {}
    }
}
