//! Where program, maps and links are pinned, and what is found there.
//!
//! ```text
//! /sys/fs/bpf/arpwarden/NAME/maps/SLOTS …      the maps, under their names in the object
//!                            links/xdp-5       the link of the program on interface #5
//!                            links/tc-5        the same in mode tc; before tcx (Linux 6.6) a symbolic link that only
//!                                              says that it is a filter, and whose the qdisc is
//!                            links/guard-5     the guard's link there, or such a symbolic link
//!                            programs/xdp …    the programs, for people who look
//!                            namespace         a symbolic link that only says the inode of the network namespace
//! ```

use std::{
    error::Error,
    fmt,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use arpwarden_common::{abi, names};
use aya::maps::MapInfo;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{
    OBJECT,
    error::LoadError,
    layout::{Shape, shape},
    shared::{Mapped, SharedControl},
    sys::Link,
    tables::possible_cpus,
};

/// Where the BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";

/// The symbolic link that says where the instance is.
const NAMESPACE: &str = "namespace";

/// The pins of an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    directory: PathBuf,
}

/// What is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pinned {
    /// Nothing.
    Nothing,
    /// A beginning: whoever made it ended before anything was attached.
    Part,
    /// All maps, of this layout.
    All,
}

/// What a file among the links is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum LinkName {
    /// Of the program that answers, in one of the XDP modes.
    Xdp(u32),
    /// Of the program that answers, in mode tc.
    Tc(u32),
    /// Of the guard.
    Guard(u32),
}

impl LinkName {
    fn parse(name: &str) -> Option<Self> {
        let (what, index) = name.split_once('-')?;
        let index = index.parse().ok()?;
        match what {
            "xdp" => Some(Self::Xdp(index)),
            "tc" => Some(Self::Tc(index)),
            "guard" => Some(Self::Guard(index)),
            _ => None,
        }
    }
}

impl LinkName {
    /// Index of its interface.
    pub(super) const fn index(self) -> u32 {
        let (Self::Xdp(index) | Self::Tc(index) | Self::Guard(index)) = self;
        index
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp(index) => write!(f, "xdp-{index}"),
            Self::Tc(index) => write!(f, "tc-{index}"),
            Self::Guard(index) => write!(f, "guard-{index}"),
        }
    }
}

impl Pins {
    /// Those of the instance with this name, which must be a file name of letters, digits and hyphens: the BPF file
    /// system keeps dots to itself.
    pub fn new(instance: &str) -> Self {
        Self::at(Path::new(BPFFS).join("arpwarden").join(instance))
    }

    /// Those below a directory, which need not exist.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory that holds them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether anything is there.
    pub fn exists(&self) -> bool {
        self.directory.exists()
    }

    /// A word of warning if process 1 does not see the file system of the pins: they go with the mount namespace of
    /// this process then, and nothing can be taken over from them later. `None` if it does, or can't be asked.
    pub fn vanish(&self) -> Option<String> {
        let there = fs::metadata(self.existing()).ok()?;
        let mounts = fs::read_to_string("/proc/1/mountinfo").ok()?;
        let device = format!("{}:{}", nix::sys::stat::major(there.dev()), nix::sys::stat::minor(there.dev()));
        // proc_pid_mountinfo(5): the third field is the device.
        let seen = mounts.lines().any(|line| line.split(' ').nth(2) == Some(device.as_str()));
        (!seen).then(|| {
            format!(
                "{} is in a mount namespace of this process, which process 1 does not see: when the last process in \
                 it ends, the programs end, whatever is pinned. Don't start it by 'ip netns exec' but by 'nsenter \
                 --net=…', and give a service the host's {BPFFS}",
                self.directory.display()
            )
        })
    }

    /// Makes the directories; mounts the BPF file system first, if it isn't.
    pub(super) fn prepare(&self) -> Result<(), PinsError> {
        let is_bpffs = |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpffs(&self.existing()) {
            if !self.directory.starts_with(BPFFS) {
                return Err(PinsError::NotBpffs { directory: self.directory.clone() });
            }
            let failed = |source| PinsError::Mount { source };
            // Two daemons that start at the same moment would mount it one over the other.
            let place = File::open(BPFFS).map_err(failed)?;
            place.lock().map_err(failed)?;
            if !is_bpffs(&self.existing()) {
                // As bpftool does it.
                mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                    .map_err(|errno| failed(errno.into()))?;
            }
        }
        for directory in [self.maps(), self.links(), self.programs()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|source| PinsError::File { doing: "making", path: directory, source })?;
        }
        Ok(())
    }

    /// The deepest directory on the way that exists.
    fn existing(&self) -> PathBuf {
        self.directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
    }

    /// What is pinned, compared with the object.
    ///
    /// # Errors
    /// The maps are of another layout, one is missing among others, or they are in use in another network namespace.
    pub(super) fn pinned(&self) -> Result<Pinned, LoadError> {
        self.are_here()?;
        let there: Vec<_> = names::PINNED.iter().filter(|map| self.map(map).exists()).collect();
        let attached = !self.link_names().map_err(LoadError::pins)?.is_empty();
        if there.is_empty() {
            return match attached {
                false => Ok(Pinned::Nothing),
                true => Err(LoadError::PinMissing { pins: self.clone(), map: names::CONTROL }),
            };
        }
        let ready = self.layout()?;
        if ready == 0 && !attached {
            return Ok(Pinned::Part);
        }
        if ready != u64::from(abi::ABI_VERSION) {
            return Err(LoadError::OtherLayout { pins: self.clone(), found: ready });
        }
        for map in names::PINNED {
            self.compare(map)?;
        }
        Ok(Pinned::All)
    }

    /// How many addresses the pinned maps hold.
    pub(super) fn capacity(&self) -> Result<u32, LoadError> {
        let map = names::SLOTS;
        if !self.map(map).exists() {
            return Err(LoadError::PinMissing { pins: self.clone(), map });
        }
        let shape = Shape::of_pin(&self.map(map)).map_err(|source| LoadError::Shape { map, source })?;
        Ok(shape.max_entries)
    }

    /// The layout version of the pinned maps; 0 if they are not ready.
    fn layout(&self) -> Result<u64, LoadError> {
        let map = names::CONTROL;
        if !self.map(map).exists() {
            return Ok(0);
        }
        self.compare(map)?;
        let data =
            aya::maps::MapData::from_pin(self.map(map)).map_err(|source| LoadError::Shape { map, source })?;
        let control =
            Mapped::<SharedControl>::of(&data, 1).map_err(|source| LoadError::Mapping { map, source })?;
        Ok(control.get(0).map_or(0, |control| control.layout.load(std::sync::atomic::Ordering::Acquire)))
    }

    /// Whether a pinned map has the shape that the object gives it, with room for as many addresses as the others have.
    fn compare(&self, map: &'static str) -> Result<(), LoadError> {
        let mut expected = shape(OBJECT, map).ok_or(LoadError::Incomplete { lacks: map })?;
        // Only these: what another map is worth does not hang on whether there are slots.
        if let Some(place) = names::sizes(1, 1).iter().position(|(sized, _)| *sized == map) {
            let capacity = self.capacity()?.clamp(1, abi::MAX_CAPACITY);
            expected.max_entries = names::sizes(capacity, possible_cpus()?)[place].1;
        }
        if !self.map(map).exists() {
            return Err(LoadError::PinMissing { pins: self.clone(), map });
        }
        let found = Shape::of_pin(&self.map(map)).map_err(|source| LoadError::Shape { map, source })?;
        if found == expected {
            return Ok(());
        }
        Err(LoadError::OtherShape { pins: self.clone(), map, found, expected })
    }

    /// The inode of the network namespace where the instance is, if that is another one than this thread's and a program
    /// of the instance is still attached there.
    pub(super) fn elsewhere(&self) -> Result<Option<u64>, PinsError> {
        let Some(there) = self.namespace() else { return Ok(None) };
        if there == namespace_here()? {
            return Ok(None);
        }
        let is_attached = |name: &LinkName| {
            Link::open(&self.link(*name)).and_then(|link| link.info()).is_ok_and(|info| info.index != 0)
        };
        Ok(self.link_names()?.iter().any(is_attached).then_some(there))
    }

    /// The name of the instance that is pinned beside this one and of which a program with these maps is.
    pub(super) fn neighbour(&self, maps: &[u32]) -> Option<String> {
        let others = self.directory.parent().map(entries).and_then(Result::ok)?;
        let whose =
            others.into_iter().filter(|directory| *directory != self.directory).find(|directory| {
                let slots = MapInfo::from_pin(Self::at(directory).map(names::SLOTS));
                slots.is_ok_and(|slots| maps.contains(&slots.id()))
            })?;
        Some(whose.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether what is pinned may be touched from this thread's network namespace.
    ///
    /// # Errors
    /// [`LoadError::Elsewhere`]: a program of the instance is attached in another one. Or the pins can't be read.
    pub fn are_here(&self) -> Result<(), LoadError> {
        match self.elsewhere().map_err(LoadError::pins)? {
            None => Ok(()),
            Some(inode) => Err(LoadError::Elsewhere { pins: self.clone(), inode }),
        }
    }

    /// Says that the instance is in this thread's network namespace.
    pub(super) fn settle(&self) -> Result<(), PinsError> {
        let here = namespace_here()?;
        if self.namespace() == Some(here) {
            return Ok(());
        }
        let path = self.directory.join(NAMESPACE);
        remove_file(&path)?;
        symlink(here.to_string(), &path).map_err(|source| PinsError::File { doing: "making", path, source })
    }

    fn namespace(&self) -> Option<u64> {
        fs::read_link(self.directory.join(NAMESPACE)).ok()?.to_str()?.parse().ok()
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    /// Where programs are pinned.
    pub(super) fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, name: LinkName) -> PathBuf {
        self.links().join(name.to_string())
    }

    /// Whether there is something for a link.
    pub(super) fn has(&self, name: LinkName) -> bool {
        // A symbolic link leads nowhere.
        fs::symlink_metadata(self.link(name)).is_ok()
    }

    /// The links that are pinned, in the order of their names.
    pub(super) fn link_names(&self) -> Result<Vec<LinkName>, PinsError> {
        let mut names: Vec<_> = entries(&self.links())?
            .iter()
            .filter_map(|path| LinkName::parse(path.file_name()?.to_str()?))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes all pins and the directories, up to the one that instances share if it is empty then. A link that is
    /// still pinned is let go, which detaches it some time later.
    pub(super) fn clear(&self) -> Result<(), PinsError> {
        if entries(&self.links())?.is_empty() {
            // Without it the rest counts as a beginning, should this be interrupted.
            remove_file(&self.map(names::CONTROL))?;
        }
        for directory in [self.links(), self.programs(), self.maps()] {
            for path in entries(&directory)? {
                remove_file(&path)?;
            }
            remove_directory(&directory)?;
        }
        remove_file(&self.directory.join(NAMESPACE))?;
        remove_directory(&self.directory)?;
        if let Some(parent) = self.directory.parent().filter(|parent| *parent != Path::new(BPFFS)) {
            // Another instance's may be in it.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

impl fmt::Display for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.directory.display().fmt(f)
    }
}

fn namespace_here() -> Result<u64, PinsError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let there = fs::metadata(path);
    there.map(|there| there.ino()).map_err(|source| PinsError::File {
        doing: "looking at",
        path: path.to_owned(),
        source,
    })
}

/// The files of a directory; none if it is not there.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let failed = |source| PinsError::File { doing: "reading", path: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)
        }
    }
}

/// Removes a file; done already if it is not there.
pub(super) fn remove_file(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinsError::File { doing: "removing", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<(), PinsError> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinsError::File { doing: "removing", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Why pins could not be made, read or removed.
#[derive(Debug)]
pub enum PinsError {
    /// The BPF file system is not mounted and could not be.
    Mount {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The directory is not on a BPF file system.
    NotBpffs {
        /// Which one.
        directory: PathBuf,
    },
    /// A file or directory.
    File {
        /// What was tried, as in "making".
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl PinsError {
    /// Whether a missing permission is the reason, so that the command ends with 5.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Mount { source } | Self::File { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::NotBpffs { .. } => false,
        }
    }
}

impl fmt::Display for PinsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { .. } => write!(
                f,
                "mounting the BPF file system, which keeps the program when the daemon ends, failed: run 'mount -t \
                 bpf bpf {BPFFS}' on the host"
            ),
            Self::NotBpffs { directory } => write!(
                f,
                "pinning below {}: that is not on a BPF file system; choose a place below {BPFFS}",
                directory.display()
            ),
            Self::File { doing, path, .. } => write!(f, "{doing} {} failed", path.display()),
        }
    }
}

impl Error for PinsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Mount { source } | Self::File { source, .. } => Some(source),
            Self::NotBpffs { .. } => None,
        }
    }
}
