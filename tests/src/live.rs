//! Frames by the million: a program that writes them, run in the kernel as fast as it goes, whose verdicts are carried
//! out (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18). Needs root.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use crate::{background::Background, bpf, netns::Netns, storm::Generator};

/// `BPF_MAP_LOOKUP_ELEM` and `BPF_F_TEST_XDP_LIVE_FRAMES` of linux/bpf.h.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const LIVE_FRAMES: u32 = 1 << 1;
/// Frames that the kernel runs before it lets what they caused run: a quarter of the ring of a veth, so that nothing
/// is lost on the way.
const BATCH: u32 = 64;
/// Bytes: the least that Ethernet carries, without the check sequence.
pub const MIN_FRAME: u32 = 60;

/// A map without types, whose keys are four bytes.
#[derive(Debug)]
pub struct Table {
    map: OwnedFd,
    value_size: usize,
}

impl Table {
    /// A hash for so many entries, allocated beforehand.
    pub fn hash(value_size: u32, entries: u32) -> Self {
        Self::new(bpf::MAP_TYPE_HASH, value_size, entries)
    }

    /// An array.
    pub fn array(value_size: u32, entries: u32) -> Self {
        Self::new(bpf::MAP_TYPE_ARRAY, value_size, entries)
    }

    fn new(map_type: u32, value_size: u32, max_entries: u32) -> Self {
        let attributes = bpf::MapCreate { map_type, key_size: 4, value_size, max_entries };
        Self { map: bpf::open(bpf::MAP_CREATE, attributes), value_size: value_size as usize }
    }

    /// Writes an entry.
    pub fn put(&self, key: [u8; 4], value: &[u8]) {
        assert_eq!(value.len(), self.value_size);
        bpf::update(self.map.as_fd(), &key, value);
    }

    /// Reads an entry.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, key: [u8; 4]) -> Vec<u8> {
        #[repr(C)]
        struct LookUp {
            map_fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let mut value = vec![0; self.value_size];
        let mut look_up = LookUp {
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.as_ptr().addr() as u64,
            value: value.as_mut_ptr().expose_provenance() as u64,
            flags: 0,
        };
        bpf::call(MAP_LOOKUP_ELEM, &mut look_up).expect("the map has such an entry");
        value
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

/// Runs a program on so many frames of so many bytes, all zero, on this CPU, and carries out what it says of each. Its
/// frames are recycled: it must write everything that others change.
///
/// # Panics
/// If the kernel refuses, as it does more than a page.
pub fn run_live(program: BorrowedFd<'_>, length: u32, frames: u32) {
    let frame = vec![0_u8; length as usize];
    let mut run = bpf::TestRun {
        repeat: frames,
        flags: LIVE_FRAMES,
        batch_size: BATCH,
        ..bpf::TestRun::of(program, &frame)
    };
    bpf::call(bpf::PROG_TEST_RUN, &mut run)
        .unwrap_or_else(|error| panic!("live frames (Linux 5.18, root): {error}"));
}

/// CPUs that this process may use, in order.
pub fn cpus() -> Vec<usize> {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: pointer and length belong to `set`, alive during the call.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    assert_eq!(got, 0, "which CPUs are ours: {}", io::Error::last_os_error());
    let most = usize::try_from(libc::CPU_SETSIZE).expect("a number of CPUs");
    // SAFETY: below the size of the set.
    (0..most).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Keeps this thread on a CPU.
pub fn pin_to(cpu: usize) {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: a set of this thread's own, and a number of `cpus`.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: pointer and length belong to `set`, alive during the call.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(done, 0, "to CPU {cpu}: {}", io::Error::last_os_error());
}

/// Frames under way, from a thread of their own.
#[derive(Debug)]
pub struct Stream(Background<Streamed>);

/// What a stream has sent.
#[derive(Clone, Copy, Debug)]
pub struct Streamed {
    /// Frames.
    pub frames: u64,
    /// In so long.
    pub took: Duration,
}

impl Streamed {
    /// Frames in a second.
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.took.as_secs_f64()
    }
}

impl Stream {
    /// Runs the generator in the namespace, on this CPU: `burst` frames each `every`, or without a pause if that is over
    /// before they are; until told to stop, or for `at_most`.
    pub fn start(
        ns: &Netns,
        generator: &Generator,
        cpu: usize,
        (burst, every): (u32, Duration),
        at_most: Duration,
    ) -> Self {
        let (program, length) = generator.program();
        let (begun, ns) = (Instant::now(), ns.handle());
        Self(Background::start(move |ended| {
            ns.enter(|| {
                pin_to(cpu);
                let (mut frames, mut due) = (0, begun);
                while !ended.now() && begun.elapsed() < at_most {
                    run_live(program.as_fd(), length, burst);
                    frames += u64::from(burst);
                    due += every;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                Streamed { frames, took: begun.elapsed() }
            })
        }))
    }

    /// Ends it.
    pub fn stop(self) -> Streamed {
        self.0.stop()
    }
}
