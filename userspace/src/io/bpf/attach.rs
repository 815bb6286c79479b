//! Putting the programs on interfaces and taking them off.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::symlink,
    },
    path::Path,
};

use arpwarden_common::names;
use aya::{
    programs::{Program, ProgramError, ProgramInfo, links::LinkType, loaded_links, loaded_programs},
    util::KernelVersion,
};

use super::{
    super::{
        link::{self, XdpAttached},
        netlink::now::link_now,
        tc::{self, Way},
    },
    Datapath, Mode,
    error::{AttachError, Attaching, DetachError, ForeignProgram, Place},
    load::missing_capabilities,
    pins::{LinkName, Pins},
    sys::{Hook, Link, tcx_programs},
};

/// How tc programs are attached: the guard, and in mode tc the program that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TcWay {
    /// By a link (Linux 6.6).
    Tcx,
    /// By a filter of a clsact qdisc.
    Clsact,
}

impl TcWay {
    /// The way of this kernel.
    pub(super) fn of_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            Ok(_) | Err(_) => Self::Clsact,
        }
    }
}

/// What the symbolic link says that stands for a filter.
const QDISC_OURS: &str = "clsact-made";
const QDISC_THEIRS: &str = "clsact-found";

/// Which of our programs are on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Presence {
    /// The one that answers, in whichever mode.
    pub program: bool,
    /// The guard.
    pub guard: bool,
}

impl Datapath {
    /// Attaches the program and the guard to the interface with this index, both or neither; `name` is for messages.
    /// May take the link down for a while: some drivers set their rings up anew. What an earlier link of the same
    /// index has left is removed.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then, and a foreign program is left as it was.
    pub fn attach(&mut self, index: u32, name: &str, mode: Mode) -> Result<(), AttachError> {
        let interface = || name.to_owned();
        let there = look_at(index, name)?;
        let unseen = |source| AttachError::Unseen { interface: interface(), source };
        let before = self.presence(&there).map_err(unseen)?;
        if before.program && before.guard {
            return Err(AttachError::AlreadyAttached { interface: interface() });
        }
        if let Some((program, instance)) = self.other_instance(&there).map_err(unseen)? {
            return Err(AttachError::OtherInstance { interface: interface(), program, instance });
        }
        if let (Some(xdp), false, Mode::Native | Mode::Generic) = (there.xdp, before.program, mode) {
            return Err(AttachError::Foreign { interface: interface(), mode, program: who_is(xdp) });
        }
        self.want(mode)
            .map_err(|source| AttachError::Load { interface: interface(), source: Box::new(source) })?;
        // The guard first: it bounces no link, and silence comes before answers.
        if !before.guard {
            self.attach_guard(index).map_err(|source| self.failed(&there, Attaching::Guard, source))?;
        }
        if before.program {
            return Ok(());
        }
        if let Err(source) = self.attach_program(index, mode) {
            let error = self.failed(&there, Attaching::Program(mode), source);
            if !before.guard
                && let Err(error) = self.detach_guard(index)
            {
                tracing::warn!(interface = name, "taking the guard off again: {error}");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Attaches the program that answers; what an earlier one of the same index has left is removed, in whichever mode.
    fn attach_program(&self, index: u32, mode: Mode) -> io::Result<()> {
        self.detach_program(index)?;
        let hook = match mode {
            Mode::Native => Hook::Native,
            Mode::Generic => Hook::Generic,
            Mode::Tc => return self.attach_tc(LinkName::Tc(index)),
        };
        let link = Link::create(self.responder_fd(mode)?, index, hook)?;
        // Not pinned, it goes with `link`.
        link.pin(&self.pins.link(LinkName::Xdp(index)))
    }

    /// Attaches the guard; what an earlier one of the same index has left is removed.
    fn attach_guard(&self, index: u32) -> io::Result<()> {
        self.detach_guard(index)?;
        self.attach_tc(LinkName::Guard(index))
    }

    /// Attaches the tc program that stands for a link.
    fn attach_tc(&self, link: LinkName) -> io::Result<()> {
        let (index, path) = (link.index(), self.pins.link(link));
        let (program, way, name) = self.tc_program(link)?;
        match self.tc_way {
            TcWay::Tcx => Link::create(program, index, Hook::Tcx(way))?.pin(&path),
            TcWay::Clsact => {
                // Written down first: an interrupted run leaves nothing that nobody knows of. A qdisc that we have made
                // for one of our filters is the other's as well, and goes with the last one.
                let other = match link {
                    LinkName::Guard(_) => LinkName::Tc(index),
                    LinkName::Tc(_) | LinkName::Xdp(_) => LinkName::Guard(index),
                };
                let made = !tc::has_clsact(index)? || is_qdisc_ours(&self.pins.link(other));
                symlink(if made { QDISC_OURS } else { QDISC_THEIRS }, &path)?;
                let added = tc::add_clsact(index).and_then(|()| tc::add_filter(index, way, program, name));
                if added.is_err() {
                    drop_tc(&self.pins, link, &programs_of(self.tables.identity))?;
                }
                added
            }
        }
    }

    /// The tc program that stands for a link, which way the frames go that it is for, and its name.
    pub(super) fn tc_program(&self, link: LinkName) -> io::Result<(BorrowedFd<'_>, Way, &'static str)> {
        match link {
            LinkName::Guard(_) => Ok((self.guard_fd()?, Way::Out, names::GUARD)),
            LinkName::Tc(_) | LinkName::Xdp(_) => Ok((self.responder_fd(Mode::Tc)?, Way::In, names::TC)),
        }
    }

    /// Puts the guard back on an interface that it was taken off; done already if it is there.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn reattach_guard(&mut self, index: u32, name: &str) -> Result<(), AttachError> {
        let there = look_at(index, name)?;
        let before = self
            .presence(&there)
            .map_err(|source| AttachError::Unseen { interface: name.to_owned(), source })?;
        if before.guard {
            return Ok(());
        }
        self.attach_guard(index).map_err(|source| self.failed(&there, Attaching::Guard, source))
    }

    /// Takes the program and the guard off the interface with this index; done already if they aren't there.
    ///
    /// # Errors
    /// The kernel's. An interface that has gone, or has gone to another network namespace, is none.
    pub fn detach(&mut self, index: u32) -> Result<(), DetachError> {
        let program = self.detach_program(index);
        // The guard last, and in any case.
        let guard = self.detach_guard(index);
        program.and(guard).map_err(|source| DetachError { index, source })
    }

    /// Takes the program that answers off an interface.
    fn detach_program(&self, index: u32) -> io::Result<()> {
        drop_link(&self.pins.link(LinkName::Xdp(index)))?;
        self.detach_tc(LinkName::Tc(index))
    }

    /// Takes the guard off an interface.
    pub(super) fn detach_guard(&self, index: u32) -> io::Result<()> {
        self.detach_tc(LinkName::Guard(index))
    }

    /// Takes a tc program off its interface, removes its pin and a qdisc that is ours and that nobody else uses.
    pub(super) fn detach_tc(&self, link: LinkName) -> io::Result<()> {
        if !self.pins.has(link) {
            // To look for our programs is to look at all that are loaded.
            return Ok(());
        }
        drop_tc(&self.pins, link, &programs_of(self.tables.identity))
    }

    /// Which of the loaded programs are on the interface with this index, in this network namespace. Neither is where
    /// there is no such interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn verify(&self, index: u32) -> io::Result<Presence> {
        match link_now(index)? {
            Some(there) => self.presence(&there),
            None => Ok(Presence { program: false, guard: false }),
        }
    }

    fn presence(&self, there: &link::Link) -> io::Result<Presence> {
        let is = |mode, id| self.responder(mode).is_some_and(|responder| responder.id == id);
        let xdp = there.xdp.is_some_and(|xdp| is(Mode::Native, xdp.id));
        Ok(Presence {
            program: xdp || tc_programs(there.index, Way::In)?.into_iter().any(|id| is(Mode::Tc, id)),
            guard: tc_programs(there.index, Way::Out)?.contains(&self.guard),
        })
    }

    /// A program of another instance that is on an interface, and that instance's name, if it can be found.
    fn other_instance(&self, there: &link::Link) -> io::Result<Option<(ForeignProgram, Option<String>)>> {
        let mut found: Vec<(u32, Place)> =
            there.xdp.map(|xdp| (xdp.id, Place::Xdp(xdp.mode))).into_iter().collect();
        for (way, place) in [(Way::In, Place::Ingress), (Way::Out, Place::Egress)] {
            found.extend(tc_programs(there.index, way)?.into_iter().map(|id| (id, place)));
        }
        for (id, place) in found {
            let Some(info) = info_of(id) else { continue };
            let maps = info.map_ids().ok().flatten().unwrap_or_default();
            if info.name_as_str().is_some_and(is_arpwarden) && !maps.contains(&self.tables.identity) {
                return Ok(Some((describe(id, Some(&info), place), self.pins.neighbour(&maps))));
            }
        }
        Ok(None)
    }

    /// The loaded guard.
    pub(super) fn guard_fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.fd(names::GUARD)
    }

    /// The loaded program for this mode, which must be [wanted](Self::want).
    pub(super) fn responder_fd(&self, mode: Mode) -> io::Result<BorrowedFd<'_>> {
        let responder = self.responder(mode).ok_or(io::ErrorKind::NotFound)?;
        self.fd(responder.name)
    }

    fn fd(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        let program = match self.ebpf.program(name) {
            Some(Program::Xdp(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            Some(_) | None => return Err(io::ErrorKind::NotFound.into()),
        };
        program.map(|fd| fd.as_fd()).map_err(|error: ProgramError| io::Error::other(error))
    }

    /// An error of attaching, with what is known of the interface.
    fn failed(&self, there: &link::Link, what: Attaching, source: io::Error) -> AttachError {
        let interface = there.name.clone();
        match (source.raw_os_error(), what) {
            // The same mode, or the other one, was taken meanwhile.
            (Some(libc::EBUSY | libc::EEXIST), Attaching::Program(mode @ (Mode::Native | Mode::Generic))) => {
                match look_at(there.index, &there.name).map(|now| now.xdp) {
                    Ok(Some(xdp)) => AttachError::Foreign { interface, mode, program: who_is(xdp) },
                    Ok(None) => AttachError::Kernel { interface, what, source },
                    Err(error) => error,
                }
            }
            (Some(libc::ENODEV), _) => AttachError::NoSuchInterface { interface },
            (Some(libc::EPERM), _) => {
                AttachError::NotPermitted { interface, missing: missing_capabilities(), source }
            }
            (
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::E2BIG),
                Attaching::Program(mode @ (Mode::Native | Mode::Generic)),
            ) => AttachError::Unsupported {
                interface,
                mode,
                mtu: there.mtu,
                multi_buffer: self.multi_buffer(),
                source,
            },
            _ => AttachError::Kernel { interface, what, source },
        }
    }
}

/// Detaches a pinned link and removes its pin; done already if it is not there.
pub(super) fn drop_link(path: &Path) -> io::Result<()> {
    match Link::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?.detach()?,
    }
    remove_pin(path)
}

fn remove_pin(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Takes a tc program off its interface; `ours` are the programs of this instance.
pub(super) fn drop_tc(pins: &Pins, link: LinkName, ours: &BTreeSet<u32>) -> io::Result<()> {
    let path = pins.link(link);
    if fs::read_link(&path).is_err() {
        return drop_link(&path);
    }
    let way = match link {
        LinkName::Guard(_) => Way::Out,
        LinkName::Tc(_) | LinkName::Xdp(_) => Way::In,
    };
    for filter in tc::filters(link.index(), way)? {
        if filter.program.is_some_and(|id| ours.contains(&id)) {
            filter.remove()?;
        }
    }
    if is_qdisc_ours(&path) {
        tc::remove_unused_clsact(link.index())?;
    }
    remove_pin(&path)
}

/// Whether the symbolic link at `path` says that we have made the qdisc.
fn is_qdisc_ours(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|whose| whose == Path::new(QDISC_OURS))
}

/// The tc programs of an interface for what goes this way, however they are attached.
pub(super) fn tc_programs(index: u32, way: Way) -> io::Result<Vec<u32>> {
    let mut programs = tcx_programs(index, way)?;
    programs.extend(tc::filters(index, way)?.into_iter().filter_map(|filter| filter.program));
    Ok(programs)
}

/// Whether a program has the name of one of ours, of which the kernel keeps 15 bytes.
fn is_arpwarden(name: &str) -> bool {
    names::PROGRAMS.iter().any(|ours| ours.get(..15).unwrap_or(ours) == name)
}

/// The loaded programs that use the map with this identifier.
pub(super) fn programs_of(map: u32) -> BTreeSet<u32> {
    loaded_programs()
        .filter_map(Result::ok)
        // One that ends between two looks has no maps any more.
        .filter(|info| info.map_ids().is_ok_and(|maps| maps.is_some_and(|maps| maps.contains(&map))))
        .map(|info| info.id())
        .collect()
}

fn info_of(id: u32) -> Option<ProgramInfo> {
    loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)
}

/// What is known of an XDP program on an interface.
fn who_is(xdp: XdpAttached) -> ForeignProgram {
    describe(xdp.id, info_of(xdp.id).as_ref(), Place::Xdp(xdp.mode))
}

fn describe(id: u32, info: Option<&ProgramInfo>, place: Place) -> ForeignProgram {
    let link = loaded_links().filter_map(Result::ok).find(|link| {
        let kind = link.link_type();
        link.program_id() == id
            && kind.is_ok_and(|kind| match place {
                Place::Xdp(_) => matches!(kind, LinkType::Xdp),
                Place::Ingress | Place::Egress => matches!(kind, LinkType::Tcx),
            })
    });
    ForeignProgram {
        id,
        name: info.and_then(|info| info.name_as_str()).map(str::to_owned),
        place,
        created_by_uid: info.and_then(|info| info.created_by_uid()),
        loaded_at: info.and_then(|info| info.loaded_at()),
        link: link.map(|link| link.id()),
    }
}

/// The interface with this index.
fn look_at(index: u32, name: &str) -> Result<link::Link, AttachError> {
    match link_now(index) {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(AttachError::NoSuchInterface { interface: name.to_owned() }),
        Err(source) => Err(AttachError::Unseen { interface: name.to_owned(), source }),
    }
}
