//! bpf(2), as far as the fixture calls it itself: where aya keeps what a test wants to see, or has no such command.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

/// `bpf_cmd` of linux/bpf.h.
pub(crate) const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
pub(crate) const PROG_LOAD: libc::c_long = 5;
pub(crate) const OBJ_PIN: libc::c_long = 6;
pub(crate) const OBJ_GET: libc::c_long = 7;
pub(crate) const PROG_TEST_RUN: libc::c_long = 10;
pub(crate) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
pub(crate) const PROG_QUERY: libc::c_long = 16;
pub(crate) const MAP_FREEZE: libc::c_long = 22;
pub(crate) const LINK_CREATE: libc::c_long = 28;
pub(crate) const LINK_DETACH: libc::c_long = 34;

/// `BPF_MAP_TYPE_HASH`, `BPF_MAP_TYPE_ARRAY` and `BPF_MAP_TYPE_PROG_ARRAY`.
pub(crate) const MAP_TYPE_HASH: u32 = 1;
pub(crate) const MAP_TYPE_ARRAY: u32 = 2;
pub(crate) const MAP_TYPE_PROG_ARRAY: u32 = 3;
/// `BPF_PROG_TYPE_SCHED_CLS`, `BPF_PROG_TYPE_XDP`.
pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;
pub(crate) const PROG_TYPE_XDP: u32 = 6;
/// `BPF_XDP`, `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
pub(crate) const ATTACH_XDP: u32 = 37;
pub(crate) const ATTACH_TCX_INGRESS: u32 = 46;
pub(crate) const ATTACH_TCX_EGRESS: u32 = 47;
/// `BPF_F_XDP_HAS_FRAGS`.
pub(crate) const XDP_HAS_FRAGS: u32 = 1 << 5;

/// Attributes of [`PROG_LOAD`].
#[repr(C)]
#[derive(Default)]
pub(crate) struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    pub(crate) log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    pub(crate) prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    pub(crate) expected_attach_type: u32,
}

impl ProgLoad {
    /// A program of these instructions, of eight bytes each.
    pub(crate) fn of<T>(prog_type: u32, instructions: &[T]) -> Self {
        assert_eq!(size_of::<T>(), 8, "an instruction");
        Self {
            prog_type,
            insn_cnt: u32::try_from(instructions.len()).expect("fewer than the kernel's limit"),
            insns: instructions.as_ptr().addr() as u64,
            license: c"Dual MIT/GPL".as_ptr().addr() as u64,
            ..Self::default()
        }
    }

    /// An XDP program, as aya says it: programs that tail-call each other need the same.
    pub(crate) fn xdp<T>(name: &str, instructions: &[T]) -> Self {
        let mut load = Self::of(PROG_TYPE_XDP, instructions).named(name);
        load.expected_attach_type = ATTACH_XDP;
        load
    }

    /// Under this name, of at most 15 bytes.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.prog_name[..name.len()].copy_from_slice(name.as_bytes());
        self
    }

    /// What the verifier says goes there.
    pub(crate) fn logged(mut self, level: u32, log: &mut [u8]) -> Self {
        self.log_level = level;
        self.log_size = u32::try_from(log.len()).expect("a few megabytes");
        self.log_buf = log.as_mut_ptr().addr() as u64;
        self
    }
}

/// Attributes of [`PROG_TEST_RUN`], and what comes of it. What an older kernel does not know has to be zero.
#[repr(C)]
#[derive(Default)]
pub(crate) struct TestRun {
    pub(crate) prog_fd: u32,
    /// What the program returned.
    pub(crate) retval: u32,
    pub(crate) data_size_in: u32,
    /// Room for the frame afterwards, then its length.
    pub(crate) data_size_out: u32,
    pub(crate) data_in: u64,
    pub(crate) data_out: u64,
    pub(crate) repeat: u32,
    /// Nanoseconds of a run on average.
    pub(crate) duration: u32,
    pub(crate) ctx_size_in: u32,
    pub(crate) ctx_size_out: u32,
    pub(crate) ctx_in: u64,
    pub(crate) ctx_out: u64,
    pub(crate) flags: u32,
    pub(crate) cpu: u32,
    /// Linux 5.18.
    pub(crate) batch_size: u32,
    pub(crate) pad: u32,
}

impl TestRun {
    /// Of a program on a frame, which has to live as long.
    pub(crate) fn of(program: BorrowedFd<'_>, frame: &[u8]) -> Self {
        Self {
            prog_fd: program.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(frame.len()).expect("a short frame"),
            data_in: frame.as_ptr().addr() as u64,
            ..Self::default()
        }
    }
}

/// Attributes of [`MAP_CREATE`].
#[repr(C)]
pub(crate) struct MapCreate {
    pub(crate) map_type: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
}

/// Writes an entry of a map.
///
/// # Panics
/// If the kernel does not take it.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) {
    #[repr(C)]
    struct Update {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut update = Update {
        map_fd: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: key.as_ptr().addr() as u64,
        value: value.as_ptr().addr() as u64,
        flags: 0,
    };
    call(MAP_UPDATE_ELEM, &mut update).expect("the map takes its entry");
}

/// A command that gives a new descriptor.
///
/// # Panics
/// If it fails.
pub(crate) fn open<T>(command: libc::c_long, mut attributes: T) -> OwnedFd {
    let number =
        call(command, &mut attributes).unwrap_or_else(|error| panic!("bpf({command}) (needs root): {error}"));
    descriptor(number)
}

/// The new descriptor that a command has given.
pub(crate) fn descriptor(number: libc::c_long) -> OwnedFd {
    // SAFETY: the commands of all callers give a new descriptor.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(number).expect("a descriptor")) }
}

/// A command with its attributes.
pub(crate) fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    let length = libc::c_uint::try_from(size_of::<T>()).expect("a small struct");
    // SAFETY: pointer and length belong to `attributes`, whose own pointers lead to buffers that the caller keeps alive
    // during the call; the kernel takes absent attributes for zero.
    let number = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attributes), length) };
    if number >= 0 { Ok(number) } else { Err(io::Error::last_os_error()) }
}
