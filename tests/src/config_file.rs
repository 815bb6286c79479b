//! A configuration file, and a daemon that was started from one.

use std::{fs, path::PathBuf};

use crate::{
    ms,
    netns::{Net, ip},
    node::Node,
    tools::has_address,
    wait_for,
};

/// What files begin with: the interface `eth0`, the group `web`.
pub const HEAD: &str =
    "[daemon]\nattach = \"native\"\n[[interface]]\nname = \"eth0\"\n[[group]]\nname = \"web\"\n";

/// 10.7.0.`last`/24 on `eth0`, and lines with more about it.
pub fn address(last: u8, more: &str) -> String {
    format!("[[address]]\naddress = \"{}/24\"\ninterface = \"eth0\"\n{more}\n", ip(last))
}

/// A configuration file that goes with the value.
#[derive(Debug)]
pub struct ConfigFile(PathBuf);

impl ConfigFile {
    /// For a node; nothing is written yet.
    pub fn new(node: &Node) -> Self {
        Self(std::env::temp_dir().join(format!("{}.toml", node.instance)))
    }

    /// Writes [`HEAD`] and these addresses.
    pub fn write(&self, addresses: &[String]) {
        self.write_text(&(HEAD.to_owned() + &addresses.concat()));
    }

    /// Writes a whole file.
    pub fn write_text(&self, text: &str) {
        fs::write(&self.0, text).expect("a file in the folder for such");
    }

    /// What was written last.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.0).expect("written before")
    }

    /// As an argument.
    pub fn path(&self) -> &str {
        self.0.to_str().expect("an ordinary path")
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        // It may never have been written.
        drop(fs::remove_file(&self.0));
    }
}

/// A daemon at host 0 that was started from a file with [`HEAD`] and these addresses.
pub fn started<'net>(net: &'net Net, addresses: &[String]) -> (Node<'net>, ConfigFile) {
    started_from(net, &(HEAD.to_owned() + &addresses.concat()))
}

/// A daemon at host 0 that was started from a file with this text.
pub fn started_from<'net>(net: &'net Net, text: &str) -> (Node<'net>, ConfigFile) {
    let mut node = Node::new(net.host(0));
    let file = ConfigFile::new(&node);
    file.write_text(text);
    node.run(&["--config", file.path()]);
    (node, file)
}

/// Waits until 10.7.0.`last` is answered, and asserts that it is on `eth0`.
///
/// # Panics
/// If it is not.
#[track_caller]
pub fn is_ours(node: &Node, last: u8) {
    wait_for("the address to be ours", ms(5_000), || {
        node.address(ip(last)).filter(|there| there["may_answer"] == true)
    });
    assert!(has_address(&node.host.ns, ip(last)), "{last}");
}
