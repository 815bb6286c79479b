//! What the kernel's verifier makes of the programs: whether it takes them, and what that costs it.
//!
//! The kernel tells that in the log of a load that succeeds, which aya does not keep; so the programs are loaded by
//! bpf(2) here, as aya would.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr,
    time::{Duration, Instant},
};

use aya::{maps::MapData, util::KernelVersion};
use aya_obj::{Object, ProgramSection, generated::bpf_insn};

use crate::bpf::{self, ProgLoad};

/// `BPF_LOG_STATS` of linux/bpf_verifier.h, and `BPF_LOG_LEVEL1`: what the verifier did, step by step.
const LOG_STATS: u32 = 4;
const LOG_STEPS: u32 = 1;
/// Bytes; more than the figures take, and enough for the end of a refusal's story.
const LOG_SIZE: usize = 16 << 20;
/// Bytes of an instruction.
const INSTRUCTION: u32 = 8;

/// What the verifier said of a program that it takes.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Instructions of the program as the kernel keeps it.
    pub instructions: u32,
    /// Instructions that the verifier has walked over, the same one once for each way to it. The kernel's limit is a
    /// million.
    pub walked: u64,
    /// States that it has kept in all, and at once.
    pub states: u64,
    /// The most of them at once.
    pub peak_states: u64,
    /// Bytes of stack, of the program and of each function that it calls.
    pub stack: String,
    /// From the call to its return.
    pub took: Duration,
}

/// Why the kernel refused a program.
#[derive(Debug)]
pub struct Refused {
    /// Its error.
    pub error: io::Error,
    /// The last lines of the verifier's log.
    pub log: String,
}

/// Names of the programs in `object`.
pub fn programs(object: &[u8]) -> Vec<String> {
    let mut names: Vec<_> = parse(object).programs.into_keys().collect();
    names.sort();
    names
}

/// Loads each program of `object` with messages up to `log_level`, and gives it back to the kernel.
///
/// # Panics
/// If the maps can't be made (needs root), or the log has no figures.
pub fn load_all(object: &[u8], log_level: u8) -> BTreeMap<String, Result<Figures, Refused>> {
    lift_memlock();
    let mut object = parse(object);
    let level = [log_level];
    object
        .patch_map_data(HashMap::from([("AYA_LOG_LEVEL", (&level[..], true))]))
        .expect("the object has the log level");
    let maps: Vec<(String, MapData, aya_obj::Map)> = object
        .maps
        .iter()
        .map(|(name, map)| {
            let made =
                MapData::create(map.clone(), name, None).expect("the kernel makes the map (needs root)");
            if !map.data().is_empty() {
                freeze_with(made.fd().as_fd(), map.data());
            }
            (name.clone(), made, map.clone())
        })
        .collect();
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let of_maps = maps.iter().map(|(name, made, map)| (name.as_str(), made.fd().as_fd().as_raw_fd(), map));
    object.relocate_maps(of_maps, &sections).expect("the references to maps are understood");
    object.relocate_calls(&sections).expect("the calls are understood");
    let load = |program: &aya_obj::Program| {
        let code = &object.functions[&program.function_key()].instructions;
        let (prog_type, attach_type, flags) = if let ProgramSection::Xdp { frags, .. } = program.section {
            (bpf::PROG_TYPE_XDP, bpf::ATTACH_XDP, if frags { bpf::XDP_HAS_FRAGS } else { 0 })
        } else {
            assert!(matches!(program.section, ProgramSection::SchedClassifier), "{:?}", program.section);
            (bpf::PROG_TYPE_SCHED_CLS, 0, 0)
        };
        load(code, prog_type, attach_type, flags)
    };
    object.programs.iter().map(|(name, program)| (name.clone(), load(program))).collect()
}

fn parse(object: &[u8]) -> Object {
    Object::parse(object).expect("the object is understood")
}

/// Before Linux 5.11 maps count against what a process may lock.
fn lift_memlock() {
    if KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 11, 0)) {
        return;
    }
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a valid `rlimit` that outlives the call.
    let lifted = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    assert_eq!(lifted, 0, "lifting the limit on locked memory (needs root): {}", io::Error::last_os_error());
}

/// Fills a map of one value, which nobody changes from now on: so the verifier knows it.
fn freeze_with(map: BorrowedFd<'_>, data: &[u8]) {
    bpf::update(map, &0_u32.to_ne_bytes(), data);
    let mut map_fd = map.as_raw_fd();
    bpf::call(bpf::MAP_FREEZE, &mut map_fd).expect("the map is frozen");
}

fn load(
    code: &[bpf_insn],
    prog_type: u32,
    expected_attach_type: u32,
    prog_flags: u32,
) -> Result<Figures, Refused> {
    let mut log = vec![0_u8; LOG_SIZE];
    let mut load = ProgLoad::of(prog_type, code).logged(LOG_STATS, &mut log);
    load.prog_flags = prog_flags;
    load.expected_attach_type = expected_attach_type;
    let begun = Instant::now();
    let loaded = bpf::call(bpf::PROG_LOAD, &mut load);
    let took = begun.elapsed();
    match loaded {
        Ok(number) => {
            let program = bpf::descriptor(number);
            Ok(figures(&text(&log), instructions(program.as_fd()), took))
        }
        Err(error) => {
            // Again, step by step: why it was refused is in the last ones. A log that is full is an error too, but the
            // first one counts.
            load.log_level = LOG_STEPS;
            drop(bpf::call(bpf::PROG_LOAD, &mut load));
            let log = text(&log);
            let mut last: Vec<&str> = log.lines().rev().take(12).collect();
            last.reverse();
            Err(Refused { error, log: last.join("\n") })
        }
    }
}

fn text(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

/// Reads, for example: `stack depth 96+0` and `processed 2501 insns (limit 1000000) max_states_per_insn 4 total_states
/// 152 peak_states 152 mark_read 10`.
fn figures(log: &str, instructions: u32, took: Duration) -> Figures {
    let after = |name: &str| -> &str {
        let (_, rest) =
            log.split_once(name).unwrap_or_else(|| panic!("no {name:?} in what the verifier said: {log}"));
        rest.split_whitespace().next().unwrap_or_default()
    };
    let number =
        |name: &str| after(name).parse().unwrap_or_else(|error| panic!("{name:?} in {log}: {error}"));
    Figures {
        instructions,
        walked: number("processed "),
        states: number("total_states "),
        peak_states: number("peak_states "),
        stack: log
            .lines()
            .find_map(|line| line.strip_prefix("stack depth "))
            .unwrap_or_else(|| panic!("no stack depth in what the verifier said: {log}"))
            .to_owned(),
        took,
    }
}

/// Of the program as the kernel keeps it.
fn instructions(program: BorrowedFd<'_>) -> u32 {
    /// The beginning of `bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_prog_len: u32,
        xlated_prog_len: u32,
    }
    #[repr(C)]
    struct Ask {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut ask = Ask {
        bpf_fd: program.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<Info>()).expect("a small struct"),
        info: ptr::from_mut(&mut info).addr() as u64,
    };
    bpf::call(bpf::OBJ_GET_INFO_BY_FD, &mut ask).expect("information on the program");
    // Written by the kernel behind the compiler's back.
    // SAFETY: a valid and aligned reference, of plain integers.
    unsafe { ptr::from_ref(&info).read_volatile() }.xlated_prog_len / INSTRUCTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_read_from_the_log() {
        let log = "verification time 1234 usec\nstack depth 96+16\nprocessed 2501 insns (limit 1000000) \
                   max_states_per_insn 4 total_states 152 peak_states 151 mark_read 10\n";
        let figures = figures(log, 1_400, Duration::from_millis(2));
        assert_eq!((figures.walked, figures.states, figures.peak_states), (2_501, 152, 151));
        assert_eq!(figures.stack, "96+16");
    }
}
