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
    programs::{Program, ProgramError, links::LinkType, loaded_links, loaded_programs},
    util::KernelVersion,
};

use super::{
    super::{
        link::{self, XdpAttached},
        netlink::now::link_now,
        tc,
    },
    Datapath, Mode,
    error::{AttachError, Attaching, DetachError, ForeignProgram},
    load::missing_capabilities,
    pins::{LinkName, Pins},
    sys::{Hook, Link, tcx_egress},
};

/// How the guard is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GuardWay {
    /// By a link (Linux 6.6).
    Tcx,
    /// By a filter of a clsact qdisc.
    Clsact,
}

impl GuardWay {
    /// The way of this kernel.
    pub(super) fn of_kernel() -> Self {
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            Ok(_) | Err(_) => Self::Clsact,
        }
    }
}

/// What the symbolic link says that stands for a guard's filter.
const QDISC_OURS: &str = "clsact-made";
const QDISC_THEIRS: &str = "clsact-found";

/// Which of our programs are on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Presence {
    /// The one that answers.
    pub xdp: bool,
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
        let before =
            self.presence(&there).map_err(|source| AttachError::Unseen { interface: interface(), source })?;
        match there.xdp {
            Some(_) if before.xdp && before.guard => {
                return Err(AttachError::AlreadyAttached { interface: interface() });
            }
            Some(xdp) if !before.xdp => {
                return Err(AttachError::Foreign { interface: interface(), mode, program: who_is(xdp) });
            }
            Some(_) | None => {}
        }
        // The guard first: it bounces no link, and silence comes before answers.
        if !before.guard {
            self.attach_guard(index).map_err(|source| self.failed(&there, Attaching::Guard, source))?;
        }
        if before.xdp {
            return Ok(());
        }
        if let Err(source) = self.attach_xdp(index, mode) {
            let error = self.failed(&there, Attaching::Xdp(mode), source);
            if !before.guard
                && let Err(error) = self.detach_guard(index)
            {
                tracing::warn!(interface = name, "taking the guard off again: {error}");
            }
            return Err(error);
        }
        Ok(())
    }

    fn attach_xdp(&self, index: u32, mode: Mode) -> io::Result<()> {
        let path = self.pins.link(LinkName::Xdp(index));
        drop_link(&path)?;
        let link = Link::create(self.xdp_fd()?, index, Hook::Xdp(mode))?;
        // Not pinned, it goes with `link`.
        link.pin(&path)
    }

    /// Attaches the guard; what an earlier one of the same index has left is removed.
    fn attach_guard(&self, index: u32) -> io::Result<()> {
        let Some(guard) = self.guard_fd()? else { return Ok(()) };
        self.detach_guard(index)?;
        let path = self.pins.link(LinkName::Guard(index));
        match self.guard_way {
            GuardWay::Tcx => Link::create(guard, index, Hook::TcxEgress)?.pin(&path),
            GuardWay::Clsact => {
                // Written down first: an interrupted run leaves nothing that nobody knows of.
                let whose = if tc::has_clsact(index)? { QDISC_THEIRS } else { QDISC_OURS };
                symlink(whose, &path)?;
                let added =
                    tc::add_clsact(index).and_then(|()| tc::add_egress_filter(index, guard, names::GUARD));
                if added.is_err() {
                    self.detach_guard(index)?;
                }
                added
            }
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
        let xdp = drop_link(&self.pins.link(LinkName::Xdp(index)));
        // The guard last, and in any case.
        let guard = self.detach_guard(index);
        xdp.and(guard).map_err(|source| DetachError { index, source })
    }

    /// Takes the guard off an interface, removes its pin and a qdisc that is ours and that nobody else uses.
    pub(super) fn detach_guard(&self, index: u32) -> io::Result<()> {
        let ours = programs_of(self.tables.identity);
        drop_guard(&self.pins, index, &ours)
    }

    /// Which of the loaded programs are on the interface with this index, in this network namespace. Neither is where
    /// there is no such interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn verify(&self, index: u32) -> io::Result<Presence> {
        match link_now(index)? {
            Some(there) => self.presence(&there),
            None => Ok(Presence { xdp: false, guard: false }),
        }
    }

    fn presence(&self, there: &link::Link) -> io::Result<Presence> {
        let (xdp, guard) = (Some(self.ids.xdp), self.ids.guard);
        Ok(Presence {
            xdp: there.xdp.map(|xdp| xdp.id) == xdp,
            guard: match guard {
                // An object without one has nothing that could be missing.
                None => true,
                Some(id) => {
                    tcx_egress(there.index)?.contains(&id)
                        || tc::egress_filters(there.index)?.iter().any(|filter| filter.program == guard)
                }
            },
        })
    }

    /// The loaded program.
    pub(super) fn xdp_fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.fd(self.program)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The loaded guard; `None` if the object has none.
    pub(super) fn guard_fd(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        self.fd(names::GUARD)
    }

    fn fd(&self, name: &str) -> io::Result<Option<BorrowedFd<'_>>> {
        let program = match self.ebpf.program(name) {
            Some(Program::Xdp(program)) => program.fd(),
            Some(Program::SchedClassifier(program)) => program.fd(),
            Some(_) | None => return Ok(None),
        };
        program.map(|fd| Some(fd.as_fd())).map_err(|error: ProgramError| io::Error::other(error))
    }

    /// An error of attaching, with what is known of the interface.
    fn failed(&self, there: &link::Link, what: Attaching, source: io::Error) -> AttachError {
        let interface = there.name.clone();
        match (source.raw_os_error(), what) {
            // The same mode, or the other one, was taken meanwhile.
            (Some(libc::EBUSY | libc::EEXIST), Attaching::Xdp(mode)) => {
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
            (Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::E2BIG), Attaching::Xdp(mode)) => {
                AttachError::Unsupported {
                    interface,
                    mode,
                    mtu: there.mtu,
                    multi_buffer: self.multi_buffer(),
                    source,
                }
            }
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

/// Takes a guard off an interface; `ours` are the programs of this instance.
pub(super) fn drop_guard(pins: &Pins, index: u32, ours: &BTreeSet<u32>) -> io::Result<()> {
    let path = pins.link(LinkName::Guard(index));
    let Ok(whose) = fs::read_link(&path) else { return drop_link(&path) };
    for filter in tc::egress_filters(index)? {
        if filter.program.is_some_and(|id| ours.contains(&id)) {
            filter.remove()?;
        }
    }
    if whose == Path::new(QDISC_OURS) {
        tc::remove_unused_clsact(index)?;
    }
    remove_pin(&path)
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

/// What is known of the program with this identifier.
fn who_is(xdp: XdpAttached) -> ForeignProgram {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == xdp.id);
    let link = loaded_links().filter_map(Result::ok).find(|link| {
        link.program_id() == xdp.id && link.link_type().is_ok_and(|kind| matches!(kind, LinkType::Xdp))
    });
    ForeignProgram {
        id: xdp.id,
        name: info.as_ref().and_then(|info| info.name_as_str()).map(str::to_owned),
        mode: xdp.mode,
        created_by_uid: info.as_ref().and_then(|info| info.created_by_uid()),
        loaded_at: info.as_ref().and_then(|info| info.loaded_at()),
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
