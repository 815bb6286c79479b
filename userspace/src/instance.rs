//! What an instance has on disk: its directory and its lock. What is in its state file is [`crate::state_file`]'s.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::state_file::{Left, StateFile};

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

    /// Ends being the instance and leaves its files to the next one, but for the socket, which would seem to say that
    /// somebody answers.
    pub fn close(self) {
        let _ = fs::remove_file(self.instance.socket());
    }

    /// Opens the state file, with what an earlier run has left in it.
    ///
    /// # Errors
    /// The file could not be opened, read or written; or it is of another version.
    pub fn state_file(&self) -> Result<(StateFile, Left)> {
        StateFile::open(self.instance.state())
    }
}
