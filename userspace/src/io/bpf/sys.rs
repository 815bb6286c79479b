//! The few calls of bpf(2) about links that the loader's crate lacks: it names interfaces by name only, does not tell a
//! link's interface, and detaches by letting go, which the kernel carries out some time later.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::super::tc::Way;

// Numbers of linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
/// `bpf_attach_type`.
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// `bpf_link_type`.
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
/// linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// First in the list of an interface's programs, with no other to be relative to.
const BPF_F_BEFORE: u32 = 1 << 3;
/// As many as tcx takes (`BPF_MPROG_MAX`, linux/bpf_mprog.h).
const PROGRAMS: u32 = 64;

/// What a link attaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    /// An XDP program, run by the driver.
    Native,
    /// An XDP program, run by the kernel.
    Generic,
    /// A tc program, ahead of those that are there (Linux 6.6).
    Tcx(Way),
}

/// A link: while it is open or pinned its program is attached.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    /// It attaches an XDP program.
    pub(super) is_xdp: bool,
    /// It attaches a tc program.
    pub(super) is_tcx: bool,
    /// The kernel's identifier of its program.
    pub(super) program: u32,
    /// Index of its interface, in whichever network namespace that is; 0 if it is attached no more.
    pub(super) index: u32,
}

impl Link {
    /// Attaches a program.
    pub(super) fn create(program: BorrowedFd<'_>, index: u32, hook: Hook) -> io::Result<Self> {
        #[repr(C)]
        struct Attributes {
            program: RawFd,
            index: u32,
            attach_type: u32,
            flags: u32,
            relative: u64,
            revision: u64,
        }
        let (attach_type, flags) = match hook {
            Hook::Native => (BPF_XDP, XDP_FLAGS_DRV_MODE),
            Hook::Generic => (BPF_XDP, XDP_FLAGS_SKB_MODE),
            Hook::Tcx(way) => (tcx(way), BPF_F_BEFORE),
        };
        let program = program.as_raw_fd();
        let mut attributes = Attributes { program, index, attach_type, flags, relative: 0, revision: 0 };
        // SAFETY: the union's first fields for this command, its bytes all written; it points to nothing.
        let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }?;
        // SAFETY: a descriptor that was made for us just now and that nobody else knows.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Opens a pinned link.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = text(path)?;
        let mut attributes = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        // SAFETY: the union's first fields for this command; the text is terminated and outlives the call.
        let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
        // SAFETY: a descriptor that was made for us just now and that nobody else knows.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Keeps the link beyond this process.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// What the kernel says of it.
    pub(super) fn info(&self) -> io::Result<LinkInfo> {
        // The kernel fills in as much as there is room for: the first fields of `bpf_link_info`.
        #[derive(Default)]
        #[repr(C)]
        struct Info {
            kind: u32,
            id: u32,
            program: u32,
            pad: u32,
            index: u32,
            attach_type: u32,
        }
        const INFO_BYTES: u32 = 24;
        const { assert!(size_of::<Info>() == INFO_BYTES as usize) };
        #[repr(C)]
        struct Attributes {
            fd: RawFd,
            length: u32,
            info: u64,
        }
        let mut info = Info::default();
        let mut attributes =
            Attributes { fd: self.fd.as_raw_fd(), length: INFO_BYTES, info: (&raw mut info) as u64 };
        // SAFETY: the union's first fields for this command; `info` is as long as said, any bytes are a value of it,
        // and it outlives the call.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        let Info { kind, program, index, .. } = info;
        let (is_xdp, is_tcx) = (kind == BPF_LINK_TYPE_XDP, kind == BPF_LINK_TYPE_TCX);
        Ok(LinkInfo { is_xdp, is_tcx, program, index })
    }

    /// Puts another program in place of the link's, between two frames.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            link: RawFd,
            program: RawFd,
            flags: u32,
            old: u32,
        }
        let (link, program) = (self.fd.as_raw_fd(), program.as_raw_fd());
        let mut attributes = Attributes { link, program, flags: 0, old: 0 };
        // SAFETY: the union's first fields for this command; it points to nothing.
        unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(|_| ())
    }

    /// Takes the program off its interface before this returns, whoever else has the link open.
    pub(super) fn detach(&self) -> io::Result<()> {
        let mut link = self.fd.as_raw_fd();
        // SAFETY: the union's first field for this command; it points to nothing.
        match unsafe { bpf(BPF_LINK_DETACH, &mut link) } {
            // Detached already.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

#[repr(C)]
struct Object {
    path: u64,
    fd: RawFd,
    flags: u32,
}

/// Pins an object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = text(path)?;
    let mut attributes = Object { path: path.as_ptr() as u64, fd: object.as_raw_fd(), flags: 0 };
    // SAFETY: the union's first fields for this command; the text is terminated and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(|_| ())
}

const fn tcx(way: Way) -> u32 {
    match way {
        Way::In => BPF_TCX_INGRESS,
        Way::Out => BPF_TCX_EGRESS,
    }
}

/// The identifiers of the tcx programs of an interface for what goes this way, in their order; none before Linux 6.6.
pub(super) fn tcx_programs(index: u32, way: Way) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attributes {
        index: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
        program_flags: u64,
        link_ids: u64,
        link_flags: u64,
        revision: u64,
    }
    let mut ids = [0_u32; PROGRAMS as usize];
    let mut attributes = Attributes {
        index,
        attach_type: tcx(way),
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS,
        pad: 0,
        program_flags: 0,
        link_ids: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: the union's first fields for this command; there is room for as many as said, and it outlives the call.
    match unsafe { bpf(BPF_PROG_QUERY, &mut attributes) } {
        Ok(_) => Ok(ids.into_iter().take(attributes.count as usize).collect()),
        // No tcx in this kernel; nothing on this interface; no such interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// # Safety
/// `attributes` begins with the fields of the command's part of `union bpf_attr`, without padding; what it points to
/// is valid for what the command does.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: a valid pointer to as many bytes as said; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        Ok(_) => Err(io::Error::last_os_error()),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}
