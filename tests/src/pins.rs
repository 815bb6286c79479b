//! What a daemon has pinned, read and changed from outside: also while it stands still, and after its end.

use std::{
    ffi::CString,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use arpwarden_common::{
    abi::{Claims, Control, Slot},
    names,
    state::StateWord,
};
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};

use crate::node::Node;

/// `bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The pins of one instance.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    /// Index of `eth0`, as it was when this was made.
    interface: u32,
}

impl Pins {
    /// Those of a node's daemon, which has run on `eth0`.
    ///
    /// # Panics
    /// If the node has no `eth0`.
    pub fn of(node: &Node<'_>) -> Self {
        Self::on(node, "eth0")
    }

    /// Those of a node's daemon, which has run on this interface: what is said of `eth0` below is said of that.
    ///
    /// # Panics
    /// If the node has no such interface.
    pub fn on(node: &Node<'_>, interface: &str) -> Self {
        let folder = Path::new("/sys/fs/bpf/arpwarden").join(&node.instance);
        Self { folder, interface: node.host.ns.index_of(interface).expect("the interface") }
    }

    /// What frames have said of an address on `eth0`.
    ///
    /// # Panics
    /// If it is in no map.
    pub fn claims(&self, address: Ipv4Addr) -> Claims {
        let (number, _) = self.slot(address);
        self.array::<Claims>(names::CLAIMS).get(&number, 0).expect("what was said of the slot")
    }

    /// What the daemon has told the program of an address on `eth0`.
    ///
    /// # Panics
    /// If it is in no map.
    pub fn word(&self, address: Ipv4Addr) -> StateWord {
        StateWord::from_bits(self.slot(address).1.word)
    }

    /// Whether the program itself has given an address up.
    pub fn has_fallen(&self, address: Ipv4Addr) -> bool {
        let (_, slot) = self.slot(address);
        slot.fallen == StateWord::from_bits(slot.word).mark()
    }

    /// Changes what the daemon says of itself and of the clock. A daemon that runs soon says it again.
    ///
    /// # Panics
    /// If the map is not there.
    pub fn change_control(&self, change: impl FnOnce(&mut Control)) {
        let mut map = self.array::<Control>(names::CONTROL);
        let mut control = map.get(&0, 0).expect("the control of the program");
        change(&mut control);
        map.set(0, control, 0).expect("a map that can be written");
    }

    /// Takes the XDP program off `eth0` as `bpftool link detach` does: the link stays, and leads nowhere.
    ///
    /// # Panics
    /// If there is no such link.
    pub fn detach_program(&self) {
        self.detach("xdp");
    }

    /// Takes the guard off `eth0` in the same way.
    ///
    /// # Panics
    /// If there is no such link.
    pub fn detach_guard(&self) {
        self.detach("guard");
    }

    fn detach(&self, what: &str) {
        #[repr(C)]
        struct Get {
            path: u64,
            descriptor: u32,
            flags: u32,
        }
        let path = self.folder.join("links").join(format!("{what}-{}", self.interface));
        let text = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path without zero bytes");
        let link = bpf(BPF_OBJ_GET, &Get { path: text.as_ptr().addr() as u64, descriptor: 0, flags: 0 });
        let link = link.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // SAFETY: BPF_OBJ_GET returns a new descriptor.
        let link = unsafe { OwnedFd::from_raw_fd(link) };
        bpf(BPF_LINK_DETACH, &link.as_raw_fd()).unwrap_or_else(|error| panic!("detaching {what}: {error}"));
    }

    fn slot(&self, address: Ipv4Addr) -> (u32, Slot) {
        let map = self.array::<Slot>(names::SLOTS);
        let slot = |number| (number, map.get(&number, 0).expect("a slot"));
        (0..map.len())
            .map(slot)
            .find(|(_, slot)| {
                slot.word != 0 && slot.interface == self.interface && slot.address == address.into()
            })
            .unwrap_or_else(|| panic!("{address} is in no slot"))
    }

    fn array<V: Pod>(&self, name: &str) -> Array<MapData, V> {
        Map::Array(self.map(name)).try_into().expect("an array of that type")
    }

    fn map(&self, name: &str) -> MapData {
        let path = self.folder.join("maps").join(name);
        MapData::from_pin(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    let length = libc::c_uint::try_from(size_of::<T>()).expect("a small struct");
    // SAFETY: pointer and length belong to `attributes`, whose own pointer leads to a string that the caller keeps
    // alive during the call; the kernel reads absent attributes as zero.
    let number = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), length) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(number).expect("a descriptor"))
}
