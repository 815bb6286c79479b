//! tc programs before tcx (Linux 6.6): filters of a clsact qdisc, by rtnetlink.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
    },
};

use super::netlink::now::ask;

/// A filter of a clsact qdisc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    /// Index of the interface.
    pub(super) index: u32,
    way: Way,
    handle: TcHandle,
    /// Priority and protocol.
    info: u32,
    /// The kernel's identifier of its program, if it has one.
    pub(super) program: Option<u32>,
}

/// Which way the frames go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// They come in.
    In,
    /// They leave.
    Out,
}

/// Both ends of a clsact have the handle ffff: (linux/pkt_sched.h).
const CLSACT: u16 = 0xffff;
const KIND: &str = "clsact";
/// The first filter that frames come to: one before ours that accepts a frame would hide it from ours.
const PRIORITY: u32 = 1;
/// ETH_P_ALL (linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 3;

impl Way {
    const fn parent(self) -> TcHandle {
        TcHandle {
            major: CLSACT,
            minor: match self {
                Self::In => TcHandle::MIN_INGRESS,
                Self::Out => TcHandle::MIN_EGRESS,
            },
        }
    }
}

fn message(index: u32, parent: TcHandle, attributes: Vec<TcAttribute>) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.attributes = attributes;
    message
}

fn qdisc(index: u32, attributes: Vec<TcAttribute>) -> TcMessage {
    let mut message = message(index, TcHandle::CLSACT, attributes);
    message.header.handle = TcHandle { major: CLSACT, minor: 0 };
    message
}

/// Gives an interface a clsact qdisc; done already if it has one.
///
/// # Errors
/// The kernel's. EEXIST: there is an `ingress` qdisc, which takes the same place and knows no way out.
pub(super) fn add_clsact(index: u32) -> io::Result<()> {
    if has_clsact(index)? {
        return Ok(());
    }
    let message = qdisc(index, vec![TcAttribute::Kind(KIND.to_owned())]);
    ask(&RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL).map(|_| ())
}

/// Whether an interface has a clsact qdisc. The kernel tells whoever listens, and the one who asks only with NLM_F_ECHO.
///
/// # Errors
/// The kernel's.
pub(super) fn has_clsact(index: u32) -> io::Result<bool> {
    match ask(
        &RouteNetlinkMessage::GetQueueDiscipline(message(index, TcHandle::CLSACT, Vec::new())),
        NLM_F_ECHO,
    ) {
        Ok(answers) => Ok(answers.iter().any(|answer| {
            let Some(RouteNetlinkMessage::NewQueueDiscipline(there)) = answer else { return false };
            there.attributes.contains(&TcAttribute::Kind(KIND.to_owned()))
        })),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the clsact qdisc off an interface if it has no filter; says whether it did.
///
/// # Errors
/// The kernel's.
pub(super) fn remove_unused_clsact(index: u32) -> io::Result<bool> {
    if !has_clsact(index)? || !filters(index, Way::In)?.is_empty() || !filters(index, Way::Out)?.is_empty() {
        return Ok(false);
    }
    let message = qdisc(index, vec![TcAttribute::Kind(KIND.to_owned())]);
    match ask(&RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
        Err(error) if is_absent(&error) => Ok(false),
        other => other.map(|_| true),
    }
}

/// The filters of an interface for what goes this way; none if it is not there.
///
/// # Errors
/// The kernel's.
pub(super) fn filters(index: u32, way: Way) -> io::Result<Vec<Filter>> {
    let request = RouteNetlinkMessage::GetTrafficFilter(message(index, way.parent(), Vec::new()));
    let answers = match ask(&request, NLM_F_DUMP) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let filter = |answer: Option<RouteNetlinkMessage>| match answer {
        Some(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
            // Each priority that has filters is listed once more, as a filter without a handle.
            (filter.header.handle != TcHandle::UNSPEC).then(|| Filter {
                index,
                way,
                handle: filter.header.handle,
                info: filter.header.info,
                program: program(&filter.attributes),
            })
        }
        // Somebody else's, of a kind that is not understood.
        None => Some(Filter { index, way, handle: TcHandle::UNSPEC, info: 0, program: None }),
        Some(_) => None,
    };
    Ok(answers.into_iter().filter_map(filter).collect())
}

fn program(attributes: &[TcAttribute]) -> Option<u32> {
    let options = attributes.iter().find_map(|attribute| {
        let TcAttribute::Options(options) = attribute else { return None };
        Some(options)
    })?;
    options.iter().find_map(|option| {
        let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option else { return None };
        Some(*id)
    })
}

/// Adds a filter that runs `program` on what goes this way, ahead of those that are there, to an interface that has a
/// clsact qdisc. `name` is what tc(8) shows. It stays when this process ends.
///
/// # Errors
/// The kernel's.
pub(super) fn add_filter(index: u32, way: Way, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut message = message(index, way.parent(), attributes(program, name));
    message.header.info = PRIORITY << 16 | u32::from(ALL_PROTOCOLS.to_be());
    ask(&RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL).map(|_| ())
}

impl Filter {
    /// Puts another program in place of the filter's, between two frames.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn replace(&self, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let message = self.message(attributes(program, name));
        ask(&RouteNetlinkMessage::NewTrafficFilter(message), 0).map(|_| ())
    }

    /// Removes the filter; done already if it is not there.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn remove(&self) -> io::Result<()> {
        let message = self.message(vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())]);
        match ask(&RouteNetlinkMessage::DelTrafficFilter(message), 0) {
            Err(error) if is_absent(&error) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn message(&self, attributes: Vec<TcAttribute>) -> TcMessage {
        let mut message = message(self.index, self.way.parent(), attributes);
        message.header.handle = self.handle;
        message.header.info = self.info;
        message
    }
}

fn attributes(program: BorrowedFd<'_>, name: &str) -> Vec<TcAttribute> {
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
    ]
}

/// The interface, its qdisc or the filter is not there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}
