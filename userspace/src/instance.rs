//! What an instance has on disk: its directory, its lock, and the journal of what it put on interfaces.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// Where the directories of all instances are.
const RUN: &str = "/run/arpwarden";

/// Paths of an instance.
#[derive(Clone, Debug)]
pub struct Instance {
    name: String,
    directory: PathBuf,
}

impl Instance {
    /// The instance of this name, which the command line has checked.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), directory: Path::new(RUN).join(name) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// The socket before it is ready.
    pub fn unready_socket(&self) -> PathBuf {
        self.directory.join("control.sock.new")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Takes the instance: makes its directory, locks it. `None` if another process has it.
    ///
    /// # Errors
    /// The directory or the lock file could not be made.
    pub fn lock(&self) -> Result<Option<Lock>> {
        loop {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&self.directory)
                .with_context(|| format!("making {}; run as root", self.directory.display()))?;
            let path = self.directory.join("lock");
            let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o644).open(&path);
            let file = match opened {
                Ok(file) => file,
                // The last owner removed the directory between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
            };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => bail!("locking {}: {errno}", path.display()),
            };
            // A lock on a file that its last owner has just removed excludes nobody.
            let same = fs::metadata(&path).is_ok_and(|there| {
                file.metadata().is_ok_and(|ours| there.ino() == ours.ino() && there.dev() == ours.dev())
            });
            if same {
                // One that a killed daemon has left would seem to say that this one is ready.
                let _ = fs::remove_file(self.socket());
                return Ok(Some(Lock { instance: self.clone(), _file: file }));
            }
        }
    }

    /// Whether anything of the instance is on disk.
    pub fn exists(&self) -> bool {
        self.directory.exists()
    }
}

/// The right to be this instance. Dropped without [`Lock::remove`] it leaves the files to the next one.
pub struct Lock {
    instance: Instance,
    _file: Flock<File>,
}

impl Lock {
    /// Removes all files of the instance, the lock last.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn remove(self) -> Result<()> {
        let instance = &self.instance;
        for path in
            [instance.socket(), instance.unready_socket(), instance.state(), instance.directory.join("lock")]
        {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("removing {}", path.display())),
            }
        }
        // Either may hold something of somebody else's: then it stays.
        let _ = fs::remove_dir(&instance.directory);
        let _ = fs::remove_dir(RUN);
        Ok(())
    }

    /// Opens the journal of addresses, with what a run that did not end in order has left in it.
    ///
    /// # Errors
    /// The file could not be opened, read or written; or it is of another version.
    pub fn journal(&self) -> Result<(Journal, Vec<Entry>)> {
        Journal::open(self.instance.state())
    }
}

/// An address that this instance has put on an interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Index of the interface.
    pub index: u32,
    /// Its name then.
    pub interface: String,
    /// The address.
    pub address: Ipv4Addr,
    /// 1..=32.
    pub prefix_length: u8,
}

/// What the first line of the journal says; addresses of another boot or network namespace are not here.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    boot_id: String,
    /// Inode of the network namespace.
    netns: u64,
}

const VERSION: u32 = 1;

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
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// About to be put on the interface.
    Add(Entry),
    /// Taken off again.
    Remove(Entry),
}

/// The journal of addresses: a line is written before an address is put on an interface and after it was
/// taken off, so that it names at least all that is there, whenever the daemon dies.
///
/// The file is on a tmpfs and outlives the process, not the host: no sync is needed.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    fn open(path: PathBuf) -> Result<(Self, Vec<Entry>)> {
        let tried = || format!("opening the journal of addresses {}", path.display());
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
        let here = Header::here()?;
        let left = leftovers(&text, &here, namespace_exists).with_context(|| {
            format!(
                "reading {}; if no address of this instance is left on an interface, remove it",
                path.display()
            )
        })?;
        let mut journal = Self { path, file };
        journal.rewrite(&here, &left)?;
        Ok((journal, left))
    }

    /// Starts the file anew with what is left.
    fn rewrite(&mut self, header: &Header, left: &[Entry]) -> Result<()> {
        let tried = || format!("writing {}", self.path.display());
        let mut text = serde_json::to_string(header)? + "\n";
        for entry in left {
            text += &(serde_json::to_string(&Line::Add(entry.clone()))? + "\n");
        }
        // In place, since the old lines are repeated whole: a crash in between loses nothing but the order.
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .with_context(tried)?;
        file.write_all(text.as_bytes()).with_context(tried)?;
        fs::rename(&new, &self.path).with_context(tried)?;
        self.file = file;
        Ok(())
    }

    /// Says that an address is about to be put on an interface.
    ///
    /// # Errors
    /// The file could not be written (full disk): then the address must not be registered.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        self.append(&Line::Add(entry.clone()))
    }

    /// Says that an address is off its interface.
    ///
    /// # Errors
    /// The file could not be written; the next start will look for the address and find it gone.
    pub fn remove(&mut self, entry: &Entry) -> Result<()> {
        self.append(&Line::Remove(entry.clone()))
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let tried = || format!("writing {}", self.path.display());
        let before = self.file.seek(SeekFrom::End(0)).with_context(tried)?;
        let written = self.file.write_all(text.as_bytes());
        if written.is_err() {
            // Half a line would swallow the next one.
            self.file.set_len(before).with_context(tried)?;
        }
        written.with_context(tried)
    }
}

/// What a journal says is still on interfaces of this boot and network namespace.
/// `exists` tells whether the network namespace with this inode does.
fn leftovers(text: &str, here: &Header, exists: impl Fn(u64) -> bool) -> Result<Vec<Entry>> {
    // Without its end a last line was not written whole: what it announces was not done.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut lines = whole.lines();
    let Some(first) = lines.next() else { return Ok(Vec::new()) };
    let header: Header = serde_json::from_str(first).context("its first line is no header")?;
    if header.version != VERSION {
        bail!("it is of version {}, this arpwarden knows {VERSION}", header.version);
    }
    if header.boot_id != here.boot_id {
        return Ok(Vec::new());
    }
    if header.netns != here.netns {
        if exists(header.netns) {
            bail!(
                "it names addresses in another network namespace (inode {}); run this there, with nsenter or 'ip netns exec'",
                header.netns
            );
        }
        return Ok(Vec::new());
    }
    // The name is for people: an interface may be renamed while the address is on it.
    let place = |entry: &Entry| (entry.index, entry.address, entry.prefix_length);
    let mut left = BTreeMap::new();
    for line in lines {
        match serde_json::from_str(line).with_context(|| format!("in line '{line}'"))? {
            Line::Add(entry) => left.insert(place(&entry), entry),
            Line::Remove(entry) => left.remove(&place(&entry)),
        };
    }
    Ok(left.into_values().collect())
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

    fn entry(last: u8) -> Entry {
        Entry {
            index: 2,
            interface: "eth0".to_owned(),
            address: Ipv4Addr::new(192, 0, 2, last),
            prefix_length: 24,
        }
    }

    fn text(header: &Header, lines: &[Line]) -> String {
        let mut text = serde_json::to_string(header).unwrap() + "\n";
        for line in lines {
            text += &(serde_json::to_string(line).unwrap() + "\n");
        }
        text
    }

    #[test]
    fn what_was_added_and_not_removed_is_left() {
        let text = text(&here(), &[Line::Add(entry(1)), Line::Add(entry(2)), Line::Remove(entry(1))]);
        assert_eq!(leftovers(&text, &here(), |_| true).unwrap(), [entry(2)]);
    }

    #[test]
    fn a_renamed_interface_does_not_hide_that_an_address_is_gone() {
        let renamed = Entry { interface: "uplink".to_owned(), ..entry(1) };
        let text = text(&here(), &[Line::Add(entry(1)), Line::Remove(renamed)]);
        assert_eq!(leftovers(&text, &here(), |_| true).unwrap(), []);
    }

    #[test]
    fn a_torn_last_line_does_not_hide_the_lines_before_it() {
        let mut text = text(&here(), &[Line::Add(entry(1)), Line::Remove(entry(1))]);
        text.truncate(text.len() - 5);
        assert_eq!(leftovers(&text, &here(), |_| true).unwrap(), [entry(1)]);
    }

    #[test]
    fn nothing_of_another_boot_is_here() {
        let other = Header { boot_id: "c".to_owned(), ..here() };
        assert_eq!(leftovers(&text(&other, &[Line::Add(entry(1))]), &here(), |_| true).unwrap(), []);
    }

    #[test]
    fn addresses_in_another_network_namespace_are_not_forgotten_while_it_exists() {
        let text = text(&Header { netns: 8, ..here() }, &[Line::Add(entry(1))]);
        let error = leftovers(&text, &here(), |inode| inode == 8).unwrap_err();
        assert!(error.to_string().contains("another network namespace (inode 8)"), "{error}");
        assert_eq!(leftovers(&text, &here(), |_| false).unwrap(), []);
    }

    #[test]
    fn another_version_and_nonsense_are_refused_not_misread() {
        let other = Header { version: 2, ..here() };
        assert!(leftovers(&text(&other, &[]), &here(), |_| true).is_err());
        assert!(leftovers("nonsense\n", &here(), |_| true).is_err());
        assert!(leftovers(&(text(&here(), &[]) + "nonsense\n"), &here(), |_| true).is_err());
        assert_eq!(leftovers("", &here(), |_| true).unwrap(), []);
    }
}
