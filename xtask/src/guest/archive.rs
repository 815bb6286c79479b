//! The file system that a guest starts with: a cpio archive in the form that the kernel unpacks (`newc`, see
//! `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux). Everything in it is root's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::process;

/// Types of files (`inode(7)`).
const FOLDER: u32 = 0o040_000;
const DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

enum Node {
    Folder,
    /// A character device.
    Device {
        major: u32,
        minor: u32,
    },
    /// A file of this machine.
    File(PathBuf),
    Text(Vec<u8>),
    Link(PathBuf),
}

/// What is to be in it, by its path without the first slash; folders come before what is in them.
#[derive(Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<PathBuf, Node>,
    /// Programs whose libraries are in it.
    looked_at: BTreeSet<PathBuf>,
}

impl Archive {
    /// With the links of this machine's root, such as `/bin` to `/usr/bin`, and the console that the kernel opens
    /// before anything runs.
    pub(crate) fn new() -> Result<Self> {
        let mut archive = Self::default();
        for name in ["bin", "sbin", "lib", "lib64"] {
            match fs::read_link(Path::new("/").join(name)) {
                Ok(to) => archive.put(Path::new(name), Node::Link(to))?,
                Err(_) => archive.put(Path::new(name), Node::Folder)?,
            }
        }
        archive.put(Path::new("dev/console"), Node::Device { major: 5, minor: 1 })?;
        Ok(archive)
    }

    /// An empty folder.
    pub(crate) fn folder(&mut self, path: &str) -> Result<()> {
        self.put(Path::new(path), Node::Folder)
    }

    /// A file with this text.
    pub(crate) fn text(&mut self, path: &str, text: impl Into<Vec<u8>>) -> Result<()> {
        self.put(Path::new(path), Node::Text(text.into()))
    }

    /// A file of this machine under another path.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, source: &Path) -> Result<()> {
        self.put(path.as_ref(), Node::File(source.to_owned()))
    }

    /// A program under another path, with the libraries that it needs at theirs.
    pub(crate) fn program(&mut self, path: impl AsRef<Path>, source: &Path) -> Result<()> {
        self.file(path, source)?;
        self.libraries_of(source)
    }

    /// A program of this machine at its own path, with its libraries.
    pub(crate) fn tool(&mut self, source: &Path) -> Result<()> {
        let path = at_home(source)?;
        self.program(path, source)
    }

    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        if !self.looked_at.insert(program.to_owned()) {
            return Ok(());
        }
        // A static program is none for ldd, and has nothing to bring along.
        let Ok(libraries) = process::output(process::as_user("ldd").arg(program)) else { return Ok(()) };
        for line in libraries.lines() {
            ensure!(!line.contains("not found"), "{}: {}", program.display(), line.trim());
            if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.file(at_home(Path::new(path))?, Path::new(path))?;
            }
        }
        Ok(())
    }

    /// Puts a node at a path, and the folders above it.
    fn put(&mut self, path: &Path, node: Node) -> Result<()> {
        let path: PathBuf =
            path.components().filter(|component| matches!(component, Component::Normal(_))).collect();
        ensure!(path.parent().is_some(), "a path in the archive");
        for above in path.ancestors().skip(1).filter(|above| above.parent().is_some()) {
            match self.nodes.get(above) {
                None => {
                    self.nodes.insert(above.to_owned(), Node::Folder);
                }
                Some(Node::Folder) => {}
                Some(_) => anyhow::bail!("{} is no folder in the archive", above.display()),
            }
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Writes it all. Files are copied as they are read, one after the other.
    pub(crate) fn write(&self, to: &mut impl Write) -> Result<()> {
        for (number, (path, node)) in self.nodes.iter().enumerate() {
            let header = |mode: u32, size: usize| Header { number: number + 1, mode, size, device: (0, 0) };
            let write = |to: &mut _, header: &Header, content: &[u8]| header.write(to, path, content);
            match node {
                Node::Folder => write(to, &header(FOLDER | 0o755, 0), &[])?,
                &Node::Device { major, minor } => {
                    write(to, &Header { device: (major, minor), ..header(DEVICE | 0o600, 0) }, &[])?;
                }
                Node::File(source) => {
                    let content =
                        fs::read(source).with_context(|| format!("reading {}", source.display()))?;
                    write(to, &header(FILE | 0o755, content.len()), &content)?;
                }
                Node::Text(content) => write(to, &header(FILE | 0o644, content.len()), content)?,
                Node::Link(target) => {
                    let target = target.as_os_str().as_encoded_bytes();
                    write(to, &header(LINK | 0o777, target.len()), target)?;
                }
            }
        }
        Header { number: 0, mode: 0, size: 0, device: (0, 0) }.write(to, Path::new("TRAILER!!!"), &[])?;
        Ok(())
    }
}

/// A path whose folder has no links in it, so that it can stand beside them.
fn at_home(path: &Path) -> Result<PathBuf> {
    let (folder, name) = path.parent().zip(path.file_name()).context("a path of a file")?;
    let folder = folder.canonicalize().with_context(|| format!("looking for {}", path.display()))?;
    Ok(folder.join(name))
}

struct Header {
    number: usize,
    mode: u32,
    size: usize,
    /// Of a device node.
    device: (u32, u32),
}

impl Header {
    fn write(&self, to: &mut impl Write, path: &Path, content: &[u8]) -> Result<()> {
        let path = path.as_os_str().as_encoded_bytes();
        let size = u32::try_from(self.size).context("a file of more than 4 GiB")?;
        let (major, minor) = self.device;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        let fields = [
            u32::try_from(self.number)?,
            self.mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            u32::try_from(path.len() + 1)?,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        to.write_all(header.as_bytes())?;
        to.write_all(path)?;
        // The name ends in a zero byte; what follows begins at a multiple of four.
        pad(to, header.len() + path.len() + 1, 1)?;
        to.write_all(content)?;
        Ok(pad(to, content.len(), 0)?)
    }
}

/// Writes so many zero bytes, and those that are missing to a multiple of four.
fn pad(to: &mut impl Write, length: usize, zeros: usize) -> io::Result<()> {
    to.write_all(&[0; 4][..zeros + (4 - length % 4) % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against an independent reader, where there is one.
    #[test]
    fn the_archive_is_one_for_cpio() {
        let mut archive = Archive::default();
        archive.text("etc/long-name", "four").expect("a text");
        archive.text("etc/odd", "content").expect("a text");
        archive.put(Path::new("here"), Node::Link("etc/odd".into())).expect("a link");
        archive.folder("empty").expect("a folder");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).expect("in memory");
        assert_eq!(bytes.len() % 4, 0);

        let Ok(mut cpio) = std::process::Command::new("cpio")
            .args(["--list", "--verbose", "--quiet", "--numeric-uid-gid"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            let _unheard = writeln!(io::stderr(), "skipped: no cpio to read the archive with");
            return;
        };
        cpio.stdin.take().expect("a pipe").write_all(&bytes).expect("cpio reads it all");
        let output = cpio.wait_with_output().expect("cpio ends");
        assert!(output.status.success());
        let list = String::from_utf8(output.stdout).expect("text");
        let names: Vec<&str> = list.lines().filter_map(|line| line.get(56..).or(Some(line))).collect();
        assert_eq!(list.lines().count(), 5, "{names:?}");
        for part in ["etc/long-name", "etc/odd", "here -> etc/odd", "empty", "drwxr-xr-x", "lrwxrwxrwx"] {
            assert!(list.contains(part), "{part} is missing in {list}");
        }
    }

    #[test]
    fn nothing_is_put_below_a_link() {
        let mut archive = Archive::default();
        archive.put(Path::new("bin"), Node::Link("usr/bin".into())).expect("a link");
        assert!(archive.text("/bin/sh", "").is_err());
    }
}
