//! A network for the demonstration: hosts in network namespaces, joined by a bridge in one more.
//!
//! Everything goes away with [`Lab`]: also on failure, and on Ctrl-C, which only sets a flag that every wait
//! looks at.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use serde_json::Value;

use crate::process;

/// Prefix of all names made here: namespaces, and instances of the daemon.
pub(crate) const PREFIX: &str = "awd-";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on a request to stop ends the next wait with an error in place of ending the process.
pub(crate) fn catch_interrupts() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note_interrupt), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does one atomic store, which is async-signal-safe, and no other handler is replaced
        // that somebody relies on: this program sets none.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catching {signal}"))?;
    }
    Ok(())
}

fn stop_if_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; everything that was set up is taken down again");
    }
    Ok(())
}

/// A command that a Ctrl-C at the terminal does not reach: what is being taken down then has to be finished.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null());
    command
}

/// Waits, unless interrupted.
pub(crate) fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        stop_if_interrupted()?;
        thread::sleep(left.min(Duration::from_millis(20)));
    }
    stop_if_interrupted()
}

/// Looks every few milliseconds until there is something, for at most `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited {} s in vain for {what}", limit.as_secs_f32());
        }
        pause(Duration::from_millis(5))?;
    }
}

/// The bridge and what hangs on it. Dropping it removes all.
pub(crate) struct Lab {
    base: String,
    namespaces: Vec<String>,
}

impl Lab {
    /// A bridge without hosts.
    pub(crate) fn new() -> Result<Self> {
        let mut lab = Self { base: format!("{PREFIX}{}", std::process::id()), namespaces: Vec::new() };
        lab.add_namespace("bridge")?;
        // Forwards from the first moment, and does not filter by group membership.
        lab.ip("bridge", "link add name br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        lab.ip("bridge", "link set br0 up")?;
        Ok(lab)
    }

    /// The name that this lab gives to one of its own.
    pub(crate) fn name(&self, host: &str) -> String {
        // An instance of the daemon is named like this, too: no capitals.
        format!("{}-{}", self.base, host.to_ascii_lowercase())
    }

    fn add_namespace(&mut self, host: &str) -> Result<()> {
        let name = self.name(host);
        process::output(command("ip").args(["netns", "add", &name]))
            .context("making a network namespace (this needs root and a kernel with namespaces)")?;
        self.namespaces.push(name);
        // No IPv6: nobody speaks who was not asked to.
        for scope in ["all", "default"] {
            let setting = format!("net.ipv6.conf.{scope}.disable_ipv6=1");
            let _kernel_without_ipv6 = process::output(self.within(host, "sysctl").args(["-q", &setting]));
        }
        self.ip(host, "link set lo up")
    }

    /// A host with the interface `eth0` on the bridge, where the other end of its cable has the host's name.
    pub(crate) fn add_host(&mut self, host: &str, mac: &str, address: Ipv4Addr) -> Result<()> {
        self.add_namespace(host)?;
        let far = self.name(host);
        self.ip(
            "bridge",
            &format!("link add name {host} type veth peer name eth0 address {mac} netns {far}"),
        )?;
        self.ip("bridge", &format!("link set {host} master br0 up"))?;
        self.ip(host, "link set eth0 up")?;
        self.ip(host, &format!("address add {address}/24 dev eth0"))
    }

    /// `ip` with these words, in a host's namespace.
    pub(crate) fn ip(&self, host: &str, words: &str) -> Result<()> {
        process::output(command("ip").args(["-n", &self.name(host)]).args(words.split(' '))).map(drop)
    }

    /// A command in a host's namespace. Unlike with `ip netns exec` it keeps the machine's `/sys`.
    pub(crate) fn within(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = command("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name(host))).arg("--").arg(program);
        command
    }

    /// The MAC that a host's neighbour cache has for an address.
    pub(crate) fn neighbour(&self, host: &str, address: Ipv4Addr) -> Result<Option<String>> {
        let mut command = command("ip");
        command.args([
            "-n",
            &self.name(host),
            "-json",
            "neighbour",
            "show",
            "to",
            &address.to_string(),
            "dev",
            "eth0",
        ]);
        let text = process::output(&mut command)?;
        if text.trim().is_empty() {
            return Ok(None); // `ip -json` prints nothing at all where there is nothing
        }
        let entries: Value = serde_json::from_str(&text).context("the neighbour table")?;
        Ok(entries[0]["lladdr"].as_str().map(str::to_owned))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.namespaces {
            if let Err(error) = process::output(command("ip").args(["netns", "del", name])) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// A program that runs until dropped: asked to end first, then made to.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts a program and hands each line that it prints to `line`, with the moment it came.
    pub(crate) fn start(
        mut command: Command,
        mut line: impl FnMut(Instant, &str) + Send + 'static,
    ) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("starting {}", process::shown(&command)))?;
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                for text in BufReader::new(output).lines().map_while(|text| text.ok()) {
                    line(Instant::now(), &text);
                }
            });
        }
        Ok(Self { child })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Releasing everything takes a daemon some milliseconds; one that hangs is not waited for any longer.
    const PATIENCE: Duration = Duration::from_secs(3);
    let Ok(pid) = i32::try_from(child.id()) else { return };
    // It may have ended by itself, which is as good; so below.
    let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let limit = Instant::now() + PATIENCE;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > limit {
            let _gone = child.kill();
            let _status = child.wait();
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon on a host's `eth0`.
pub(crate) struct Node {
    host: &'static str,
    instance: String,
    daemon: Child,
    program: PathBuf,
    namespace: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Starts one and waits until it listens.
    pub(crate) fn start(lab: &Lab, host: &'static str, program: &Path) -> Result<Self> {
        let instance = lab.name(host);
        let log = std::env::temp_dir().join(format!("{instance}.log"));
        let file = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = lab.within(host, program);
        command.args(["--instance", &instance, "run", "--iface", "eth0"]);
        command.stdout(file.try_clone()?).stderr(file);
        let daemon = command.spawn().with_context(|| format!("starting {}", process::shown(&command)))?;
        let namespace = Path::new("/run/netns").join(&instance);
        let mut node = Self { host, instance, daemon, program: program.to_owned(), namespace, log };
        let socket = Path::new("/run/arpwarden").join(&node.instance).join("control.sock");
        wait_for("the daemon's control socket", Duration::from_secs(10), || {
            if let Some(status) = node.daemon.try_wait()? {
                bail!("the daemon on {} ended: {status}; it said:\n{}", node.host, node.said());
            }
            Ok(socket.exists().then_some(()))
        })?;
        Ok(node)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The program's command line on this node.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = command("nsenter");
        command.arg(format!("--net={}", self.namespace.display())).arg("--").arg(&self.program);
        command.args(["--instance", &self.instance]).args(words.split(' '));
        command
    }

    /// Runs a command of the program to its end, which has to be a good one.
    pub(crate) fn call(&self, words: &str) -> Result<String> {
        process::output(&mut self.command(words)).with_context(|| {
            format!("`arpwarden {words}` on {}; its daemon said:\n{}", self.host, self.said())
        })
    }

    /// What `status --json` says.
    pub(crate) fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.call("status --json")?).context("what `status --json` says")
    }

    /// Follows the events of the node from now on.
    pub(crate) fn events(&self) -> Result<Events> {
        let seen: Seen = Seen::default();
        let into = Arc::clone(&seen);
        let running = Running::start(self.command("events --follow --json"), move |_, line| {
            if let Ok(event) = serde_json::from_str(line) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        })?;
        Ok(Events { seen, _running: running })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&mut self.daemon);
        // The daemon has removed its own; these are for one that could not.
        let _gone = std::fs::remove_dir_all(Path::new("/run/arpwarden").join(&self.instance));
        let _gone = std::fs::remove_file(&self.log);
    }
}

type Seen = Arc<Mutex<Vec<Value>>>;

/// The events of a node, as they come.
pub(crate) struct Events {
    seen: Seen,
    _running: Running,
}

impl Events {
    /// Waits for one that is wanted, among all since the start.
    pub(crate) fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, Duration::from_secs(5), || {
            Ok(self
                .seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .find(|event| wanted(event))
                .cloned())
        })
    }
}
