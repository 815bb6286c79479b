//! What ethtool(8) shows of an interface: its driver and its offloads, by the ioctl that all kernels have.

use std::{collections::BTreeMap, io, ops::Range, os::fd::AsRawFd as _};

use socket2::{Domain, Socket, Type};

// Commands and string set (`linux/ethtool.h`); the ioctl's number (`linux/sockios.h`).
const GET_DRIVER_INFO: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_STRING_SET_INFO: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
const STRINGS_OF_FEATURES: u32 = 4;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// Bytes of a name (ETH_GSTRING_LEN).
const NAME: usize = 32;
/// Features are told in groups of 32.
const GROUP: u32 = 32;

/// The name of the driver of an interface, as `ethtool -i` shows it.
///
/// # Errors
/// ENODEV if there is no such interface, EOPNOTSUPP if it has nothing to say.
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: 196 bytes, the driver's name behind the command.
    let mut request = Request::new(196);
    request.put(0, GET_DRIVER_INFO);
    request.send(interface)?;
    Ok(request.text(4..4 + NAME))
}

/// The offloads of an interface by the names that `ethtool -k` shows for each of them (`rx-vlan-hw-parse`), and
/// whether they are in force.
///
/// # Errors
/// ENODEV if there is no such interface.
pub fn features(interface: &str) -> io::Result<BTreeMap<String, bool>> {
    let names = feature_names(interface)?;
    // struct ethtool_gfeatures: for each group the available, requested, active and never changed ones.
    let groups = groups_of(names.len());
    let mut request = Request::new(8 + 16 * groups as usize);
    request.put(0, GET_FEATURES);
    request.put(4, groups);
    request.send(interface)?;
    let is_active = |number: u32| {
        let group = request.get(8 + 16 * (number / GROUP) as usize + 8);
        group & 1 << (number % GROUP) != 0
    };
    Ok(names.into_iter().zip(0..).map(|(name, number)| (name, is_active(number))).collect())
}

/// Switches offloads of an interface on or off and looks whether they are. Names that the kernel doesn't know are
/// left out. Some drivers take the link down meanwhile.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] without CAP_NET_ADMIN; [`io::ErrorKind::Unsupported`] if the driver does
/// not let one of them be changed.
pub fn set_features(interface: &str, wanted: &[&str], on: bool) -> io::Result<()> {
    let names = feature_names(interface)?;
    // struct ethtool_sfeatures: for each group the mask of those to change and what they are to be.
    let groups = groups_of(names.len());
    let mut request = Request::new(8 + 8 * groups as usize);
    request.put(0, SET_FEATURES);
    request.put(4, groups);
    for (_, number) in names.iter().zip(0_u32..).filter(|(name, _)| wanted.contains(&name.as_str())) {
        let at = 8 + 8 * (number / GROUP) as usize;
        let bit = 1 << (number % GROUP);
        request.put(at, request.get(at) | bit);
        if on {
            request.put(at + 4, request.get(at + 4) | bit);
        }
    }
    request.send(interface)?;
    let now = features(interface)?;
    if wanted.iter().all(|name| now.get(*name).is_none_or(|active| *active == on)) {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The kernel's names of all offloads, in the order of their numbers.
fn feature_names(interface: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: a mask of sets, then the number of strings in each.
    let mut request = Request::new(24);
    request.put(0, GET_STRING_SET_INFO);
    request.put(8, 1 << STRINGS_OF_FEATURES);
    request.send(interface)?;
    let count = request.get(16);
    // struct ethtool_gstrings.
    let mut request = Request::new(12 + NAME * count as usize);
    request.put(0, GET_STRINGS);
    request.put(4, STRINGS_OF_FEATURES);
    request.put(8, count);
    request.send(interface)?;
    // The kernel fills in as many as it has; not more than there was room for.
    let count = count.min(request.get(8)) as usize;
    Ok((0..count).map(|number| request.text(12 + NAME * number..12 + NAME * (number + 1))).collect())
}

fn groups_of(features: usize) -> u32 {
    u32::try_from(features).unwrap_or(u32::MAX).div_ceil(GROUP)
}

/// A command of ethtool with room for its answer, aligned for the 64-bit fields in some.
struct Request {
    words: Vec<u64>,
}

impl Request {
    /// One of at least `length` bytes, all zero.
    fn new(length: usize) -> Self {
        Self { words: vec![0; length.div_ceil(8)] }
    }

    fn get(&self, at: usize) -> u32 {
        let word = self.words.get(at / 8).copied().unwrap_or(0).to_ne_bytes();
        let half = if at.is_multiple_of(8) {
            [word[0], word[1], word[2], word[3]]
        } else {
            [word[4], word[5], word[6], word[7]]
        };
        u32::from_ne_bytes(half)
    }

    fn put(&mut self, at: usize, value: u32) {
        if let Some(word) = self.words.get_mut(at / 8) {
            let mut bytes = word.to_ne_bytes();
            let half = if at.is_multiple_of(8) { &mut bytes[..4] } else { &mut bytes[4..] };
            half.copy_from_slice(&value.to_ne_bytes());
            *word = u64::from_ne_bytes(bytes);
        }
    }

    /// The text in these bytes, up to the first zero.
    fn text(&self, range: Range<usize>) -> String {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let bytes = bytes.get(range).unwrap_or_default();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    fn send(&mut self, interface: &str) -> io::Result<()> {
        // SAFETY: `ifreq` is bytes, integers and pointers, for which zero is a value.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = interface.as_bytes();
        // A zero must remain at the end.
        if name.len() >= ifreq.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (place, byte) in ifreq.ifr_name.iter_mut().zip(name) {
            *place = byte.cast_signed();
        }
        ifreq.ifr_ifru.ifru_data = self.words.as_mut_ptr().cast();
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
        // SAFETY: the descriptor is open; the kernel reads and writes the structure of the command in
        // `words`, and no more than the counts in it say, which the callers have made room for.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::own_network::{self, PAIR},
        *,
    };

    #[test]
    fn the_driver_and_the_offloads_of_an_interface_are_told() {
        if !own_network::with(&PAIR) {
            return;
        }
        assert_eq!(driver("a").unwrap(), "veth");
        let before = features("a").unwrap();
        assert_eq!(before.get("tx-vlan-hw-insert"), Some(&true));
        assert_eq!(before.get("rx-vlan-hw-parse"), Some(&true));

        let wanted = ["tx-vlan-hw-insert", "tx-vlan-stag-hw-insert", "no-such-feature"];
        set_features("a", &wanted, false).unwrap();
        let changed: Vec<_> =
            features("a").unwrap().into_iter().filter(|(name, active)| before[name] != *active).collect();
        assert_eq!(changed, wanted[..2].iter().map(|name| ((*name).to_owned(), false)).collect::<Vec<_>>());
        set_features("a", &wanted, true).unwrap();
        assert_eq!(features("a").unwrap(), before);
    }

    #[test]
    fn an_interface_that_is_not_there_and_an_offload_that_is_fixed_are_errors() {
        if !own_network::with(&PAIR) {
            return;
        }
        for missing in ["c", "a-name-of-more-than-fifteen-bytes"] {
            assert_eq!(driver(missing).unwrap_err().raw_os_error(), Some(libc::ENODEV));
            assert_eq!(features(missing).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        }
        // The loopback interface passes frames by reference and can't do otherwise.
        let fixed = set_features("lo", &["loopback"], false).unwrap_err();
        assert_eq!(fixed.kind(), io::ErrorKind::Unsupported);
    }
}
