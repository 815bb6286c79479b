//! The program under test run by somebody else than root.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use crate::node::{Done, Node, finish, program};

/// A copy of the program that everybody may run, wherever the original is.
#[derive(Debug)]
pub struct ForAll(PathBuf);

impl ForAll {
    /// One that goes with the value.
    pub fn new(node: &Node) -> Self {
        let copy = std::env::temp_dir().join(format!("{}-program", node.instance));
        // A debug build has a hundred megabytes: another name for it is enough where that can be.
        if fs::hard_link(program(), &copy).is_err() {
            fs::copy(program(), &copy).expect("a copy of the program");
        }
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("permissions");
        Self(copy)
    }

    /// Runs it with these arguments of setpriv in front.
    pub fn run(&self, node: &Node, less: &[&str], arguments: &[&str]) -> Done {
        let mut command: Command = node.host.ns.command("setpriv");
        command.args(less).arg(&self.0).args(["--instance", &node.instance]).args(arguments);
        finish(&mut command, "")
    }
}

impl Drop for ForAll {
    fn drop(&mut self) {
        // In the folder for temporary files; a leftover harms nobody.
        drop(fs::remove_file(&self.0));
    }
}
