//! The state file of an instance: which addresses it has put on interfaces, and how each managed address was
//! claimed. With the pinned maps it is all that the next start needs to go on where this run has stopped.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use arpwarden_common::{abi::AddressKey, net::Vlan};
use serde::{Deserialize, Serialize};

use crate::{alike::Alike, io::memory, protocol::How};

/// An address that this instance has put on an interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registered {
    /// Index of the interface.
    pub index: u32,
    /// Its name then.
    pub interface: Arc<str>,
    /// The address.
    pub address: Ipv4Addr,
    /// 1..=32.
    pub prefix_length: u8,
}

/// Which managed address a line is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    index: u32,
    vlan: [u16; 2],
    address: Ipv4Addr,
}

impl From<AddressKey> for Place {
    fn from(key: AddressKey) -> Self {
        let AddressKey { interface, vlan: Vlan { outer, inner }, address } = key;
        Self { index: interface, vlan: [outer, inner], address: address.into() }
    }
}

impl From<Place> for AddressKey {
    fn from(place: Place) -> Self {
        let Place { index, vlan: [outer, inner], address } = place;
        Self { interface: index, vlan: Vlan { outer, inner }, address: address.into() }
    }
}

/// How a managed address was claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claimed {
    /// 1..=32.
    pub prefix_length: u8,
    /// The rest.
    pub how: How,
    /// Because the configuration file says so, and not by hand.
    #[serde(default)]
    pub from_file: bool,
}

/// What the first line says; what another boot or network namespace has left is not here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    boot_id: String,
    /// Inode of the network namespace.
    netns: u64,
}

const VERSION: u32 = 2;

impl Header {
    fn here() -> Result<Self> {
        let path = "/proc/sys/kernel/random/boot_id";
        let boot_id = fs::read_to_string(path).with_context(|| format!("reading {path}"))?.trim().to_owned();
        let path = "/proc/self/ns/net";
        let netns = fs::metadata(path).with_context(|| format!("reading {path}"))?.ino();
        Ok(Self { version: VERSION, boot_id, netns })
    }
}

/// A line after the header.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// About to be put on the interface.
    Add(Registered),
    /// Taken off again.
    Remove(Registered),
    /// About to be claimed so.
    Claim {
        #[serde(flatten)]
        place: Place,
        claimed: Claimed,
    },
    /// Managed no more, or watched only.
    Forget(Place),
}

/// What an earlier run has left.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// With the names of their interfaces.
    registered: BTreeMap<(u32, Ipv4Addr, u8), Arc<str>>,
    claims: BTreeMap<Place, Arc<Claimed>>,
    names: Alike<str>,
    ways: Alike<Claimed>,
}

impl Left {
    /// What it put, or was about to put, on interfaces, and has not taken off.
    pub fn registered(&self) -> impl Iterator<Item = Registered> {
        self.registered.iter().map(|((index, address, prefix_length), name)| Registered {
            index: *index,
            interface: Arc::clone(name),
            address: *address,
            prefix_length: *prefix_length,
        })
    }

    /// How it claimed an address.
    pub fn claimed(&self, key: &AddressKey) -> Option<Claimed> {
        self.claims.get(&(*key).into()).map(|claimed| **claimed)
    }

    /// The prefix length with which it put the address on its interface, if it did.
    pub fn prefix_length(&self, key: &AddressKey) -> Option<u8> {
        let address = key.address.into();
        let first = (key.interface, address, 0);
        let ((_, _, found), _) = self.registered.range(first..=(key.interface, address, u8::MAX)).next()?;
        Some(*found)
    }

    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.registered.is_empty() && self.claims.is_empty()
    }

    fn take(&mut self, line: Line) {
        // The name is for people: an interface may be renamed while the address is on it.
        let at = |entry: &Registered| (entry.index, entry.address, entry.prefix_length);
        match line {
            Line::Add(entry) => {
                let name = self.names.share(entry.interface.clone());
                self.registered.insert(at(&entry), name);
            }
            Line::Remove(entry) => _ = self.registered.remove(&at(&entry)),
            Line::Claim { place, claimed } => _ = self.claims.insert(place, self.ways.share(claimed)),
            Line::Forget(place) => _ = self.claims.remove(&place),
        }
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let claims =
            self.claims.iter().map(|(place, claimed)| Line::Claim { place: *place, claimed: **claimed });
        self.registered().map(Line::Add).chain(claims)
    }
}

/// The file. A line is written before an address is put on an interface and after it was taken off, and before it is
/// claimed in another way, so that the file names at least all that is there, whenever the daemon dies.
///
/// It is on a tmpfs and outlives the process, not the host: no sync is needed. Clones share it.
#[derive(Clone)]
pub struct StateFile(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    /// In bytes.
    length: u64,
    header: Header,
    /// What the lines come to.
    now: Left,
    lines: usize,
}

/// Lines beyond those needed, before the file is written anew: 200 KB at some 200 bytes a line.
const SPARE_LINES: usize = 1_024;

impl StateFile {
    pub(crate) fn open(path: PathBuf) -> Result<(Self, Left)> {
        let tried = || format!("opening the state file {}", path.display());
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(tried)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(tried)?;
        let header = Header::here()?;
        let left = leftovers(&text, &header, namespace_exists).with_context(|| {
            format!(
                "reading {}; if no address of this instance is left on an interface, remove it",
                path.display()
            )
        })?;
        let mut inner = Inner { path, file, length: 0, header, now: left.clone(), lines: 0 };
        inner.rewrite()?;
        Ok((Self(Arc::new(Mutex::new(inner))), left))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic between two fields leaves at worst lines that are written again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that addresses are about to be put on interfaces: all of them, or none.
    ///
    /// # Errors
    /// The file could not be written (full disk): then the addresses must not be registered.
    pub fn add<'a>(&self, entries: impl IntoIterator<Item = &'a Registered>) -> Result<()> {
        self.inner().append(entries.into_iter().cloned().map(Line::Add).collect())
    }

    /// Says that an address is off its interface.
    ///
    /// # Errors
    /// The file could not be written; the next start will look for the address and find it gone.
    pub fn remove(&self, entry: &Registered) -> Result<()> {
        self.inner().append(vec![Line::Remove(entry.clone())])
    }

    /// Says how an address is claimed from now on; `None`: not at all. What is so already is not written again.
    ///
    /// # Errors
    /// The file could not be written; the next start will take the address for claimed as before.
    pub fn claim(&self, key: AddressKey, claimed: Option<Claimed>) -> Result<()> {
        let mut inner = self.inner();
        if inner.now.claimed(&key) == claimed {
            return Ok(());
        }
        let place = key.into();
        inner.append(vec![match claimed {
            Some(claimed) => Line::Claim { place, claimed },
            None => Line::Forget(place),
        }])
    }

    /// Moves together what is remembered of it ([`memory::close_ranks`]).
    pub(crate) fn close_ranks(&self, meanwhile: impl FnOnce()) {
        let Left { registered, claims, .. } = &mut self.inner().now;
        memory::close_ranks(registered, || memory::close_ranks(claims, meanwhile));
    }

    /// How the addresses are claimed that the file names.
    pub fn claims(&self) -> Vec<AddressKey> {
        self.inner().now.claims.keys().map(|place| (*place).into()).collect()
    }
}

impl Inner {
    /// Starts the file anew with what its lines come to.
    fn rewrite(&mut self) -> Result<()> {
        let tried = || format!("writing {}", self.path.display());
        let mut text = serde_json::to_string(&self.header)? + "\n";
        let mut lines = 0;
        for line in self.now.lines() {
            text += &(serde_json::to_string(&line)? + "\n");
            lines += 1;
        }
        // Beside it, then renamed: a crash in between leaves the old file whole.
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .custom_flags(libc::O_APPEND)
            .mode(0o600)
            .open(&new)
            .with_context(tried)?;
        file.write_all(text.as_bytes()).with_context(tried)?;
        fs::rename(&new, &self.path).with_context(tried)?;
        self.file = file;
        self.length = text.len() as u64;
        self.lines = lines;
        Ok(())
    }

    fn append(&mut self, lines: Vec<Line>) -> Result<()> {
        let mut text = String::new();
        for line in &lines {
            text += &serde_json::to_string(line)?;
            text.push('\n');
        }
        let tried = || format!("writing {}", self.path.display());
        let written = self.file.write_all(text.as_bytes());
        if written.is_err() {
            // Half a line would swallow the next one.
            self.file.set_len(self.length).with_context(tried)?;
        }
        written.with_context(tried)?;
        self.length += text.len() as u64;
        self.lines += lines.len();
        for line in lines {
            self.now.take(line);
        }
        if self.lines > SPARE_LINES + 2 * (self.now.registered.len() + self.now.claims.len()) {
            // What was to be written is written: a full disk only means that it is tried again with the next line.
            let _ = self.rewrite();
        }
        Ok(())
    }
}

/// What a state file says is left in this boot and network namespace.
/// `exists` tells whether the network namespace with this inode does.
fn leftovers(text: &str, here: &Header, exists: impl Fn(u64) -> bool) -> Result<Left> {
    // Without its end a last line was not written whole: what it announces was not done.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines = whole.lines();
    let Some(first) = lines.next() else { return Ok(Left::default()) };
    let header: Header = serde_json::from_str(first).context("its first line is no header")?;
    if header.boot_id != here.boot_id {
        return Ok(Left::default());
    }
    if header.version != VERSION {
        bail!("it is of version {}, this arpwarden knows {VERSION}", header.version);
    }
    if header.netns != here.netns {
        if exists(header.netns) {
            bail!(
                "it names addresses in another network namespace (inode {}); run this there, with 'nsenter --net='",
                header.netns
            );
        }
        return Ok(Left::default());
    }
    let mut left = Left::default();
    for line in lines {
        left.take(serde_json::from_str(line).with_context(|| format!("in line '{line}'"))?);
    }
    Ok(left)
}

/// Whether a network namespace has a process or a name (`ip netns`); what is kept by a descriptor alone is not found.
fn namespace_exists(inode: u64) -> bool {
    let is_it = |path: PathBuf| fs::metadata(path).is_ok_and(|there| there.ino() == inode);
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten();
    entries("/run/netns").any(|entry| is_it(entry.path()))
        || entries("/proc").any(|entry| is_it(entry.path().join("ns/net")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Header {
        Header { version: VERSION, boot_id: "b".to_owned(), netns: 7 }
    }

    fn entry(last: u8) -> Registered {
        Registered {
            index: 2,
            interface: "eth0".into(),
            address: Ipv4Addr::new(192, 0, 2, last),
            prefix_length: 24,
        }
    }

    fn key(last: u8) -> AddressKey {
        AddressKey { interface: 2, vlan: Vlan::UNTAGGED, address: Ipv4Addr::new(192, 0, 2, last).into() }
    }

    fn claimed(wait_ms: u64) -> Claimed {
        Claimed { prefix_length: 24, how: How { wait_ms, ..How::default() }, from_file: false }
    }

    fn text(header: &Header, lines: &[Line]) -> String {
        let mut text = serde_json::to_string(header).unwrap() + "\n";
        for line in lines {
            text += &(serde_json::to_string(line).unwrap() + "\n");
        }
        text
    }

    fn registered(text: &str) -> Vec<Registered> {
        leftovers(text, &here(), |_| true).unwrap().registered().collect()
    }

    #[test]
    fn what_was_added_and_not_removed_is_left() {
        let text = text(&here(), &[Line::Add(entry(1)), Line::Add(entry(2)), Line::Remove(entry(1))]);
        assert_eq!(registered(&text), [entry(2)]);
        assert_eq!(leftovers(&text, &here(), |_| true).unwrap().prefix_length(&key(2)), Some(24));
        assert_eq!(leftovers(&text, &here(), |_| true).unwrap().prefix_length(&key(1)), None);
    }

    #[test]
    fn the_last_claim_of_an_address_counts_until_it_is_forgotten() {
        let claim = |last, wait| Line::Claim { place: key(last).into(), claimed: claimed(wait) };
        let lines = [claim(1, 1), claim(1, 2), claim(2, 3), Line::Forget(key(2).into())];
        let left = leftovers(&text(&here(), &lines), &here(), |_| true).unwrap();
        assert_eq!(left.claimed(&key(1)), Some(claimed(2)));
        assert_eq!(left.claimed(&key(2)), None);
    }

    #[test]
    fn a_renamed_interface_does_not_hide_that_an_address_is_gone() {
        let renamed = Registered { interface: "uplink".into(), ..entry(1) };
        assert_eq!(registered(&text(&here(), &[Line::Add(entry(1)), Line::Remove(renamed)])), []);
    }

    #[test]
    fn a_torn_last_line_does_not_hide_the_lines_before_it() {
        let mut text = text(&here(), &[Line::Add(entry(1)), Line::Remove(entry(1))]);
        text.truncate(text.len() - 5);
        assert_eq!(registered(&text), [entry(1)]);
    }

    #[test]
    fn nothing_of_another_boot_is_here() {
        let other = Header { boot_id: "c".to_owned(), version: 1, ..here() };
        assert_eq!(registered(&text(&other, &[Line::Add(entry(1))])), []);
    }

    #[test]
    fn addresses_in_another_network_namespace_are_not_forgotten_while_it_exists() {
        let text = text(&Header { netns: 8, ..here() }, &[Line::Add(entry(1))]);
        let error = leftovers(&text, &here(), |inode| inode == 8).unwrap_err();
        assert!(error.to_string().contains("another network namespace (inode 8)"), "{error}");
        assert!(leftovers(&text, &here(), |_| false).unwrap().is_empty());
    }

    #[test]
    fn another_version_and_nonsense_are_refused_not_misread() {
        let other = Header { version: VERSION + 1, ..here() };
        assert!(leftovers(&text(&other, &[]), &here(), |_| true).is_err());
        assert!(leftovers("nonsense\n", &here(), |_| true).is_err());
        assert!(leftovers(&(text(&here(), &[]) + "nonsense\n"), &here(), |_| true).is_err());
        assert!(leftovers("", &here(), |_| true).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_has_grown_is_written_anew_and_says_the_same() {
        let path = std::env::temp_dir().join(format!("arpwarden-state-{}", std::process::id()));
        let (file, left) = StateFile::open(path.clone()).unwrap();
        assert!(left.is_empty());
        file.add([&entry(1)]).unwrap();
        for round in 0..2 * SPARE_LINES as u64 {
            file.claim(key(1), Some(claimed(round))).unwrap();
        }
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= SPARE_LINES + 10, "{lines}");
        drop(file);
        let (_, left) = StateFile::open(path.clone()).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(left.claimed(&key(1)), Some(claimed(2 * SPARE_LINES as u64 - 1)));
        assert_eq!(left.registered().collect::<Vec<_>>(), [entry(1)]);
    }
}
