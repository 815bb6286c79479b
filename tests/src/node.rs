//! A node: a host with the daemon under test, and its command line.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::Ipv4Addr,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    kernel, ms,
    netns::{Host, ip, unique},
    tools::{output_with_input, signal},
    wait_for,
    wire::{Captured, Wire, boot_ns, marker},
};

/// How long a daemon may take to load, attach and listen. Loading takes some 50 ms on an idle machine, and 10 to 26 s a
/// program in a guest without KVM beside other work (Linux 7.3); the bound is for two of them there.
const START: Duration = Duration::from_secs(120);

/// The program under test: beside the test executable's folder.
///
/// # Panics
/// If it has not been built.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let program = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("arpwarden");
    assert!(program.exists(), "{} is missing: cargo build -p arpwarden", program.display());
    program
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// Itself, if the exit code is `code`.
    ///
    /// # Panics
    /// Otherwise, with both outputs.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code; the command said: {}{}", self.out, self.err);
        self
    }

    /// Itself, if one of the outputs has `text`.
    ///
    /// # Panics
    /// Otherwise, with both outputs.
    #[track_caller]
    pub fn naming(self, text: impl std::fmt::Display) -> Self {
        let text = text.to_string();
        assert!(
            self.out.contains(&text) || self.err.contains(&text),
            "{text:?} is missing in what the command said: {}{}",
            self.out,
            self.err
        );
        self
    }
}

/// A host with the daemon.
#[derive(Debug)]
pub struct Node<'net> {
    /// Where it runs.
    pub host: &'net Host,
    /// Its instance name.
    pub instance: String,
    /// What is run as the daemon: [`program`] unless a test has another build of it.
    pub program: PathBuf,
    /// Set in the daemon's environment.
    pub environment: Vec<(&'static str, String)>,
    daemon: Option<Child>,
}

impl<'net> Node<'net> {
    /// Starts a daemon in native mode on `eth0` and waits until it listens.
    pub fn start(host: &'net Host) -> Self {
        Self::start_with(host, &["--iface", "eth0", "--attach", "native"])
    }

    /// Starts one with these arguments of `run` and waits until it listens.
    pub fn start_with(host: &'net Host, arguments: &[&str]) -> Self {
        let mut node = Self::new(host);
        node.run(arguments);
        node
    }

    /// A node whose daemon does not run yet.
    pub fn new(host: &'net Host) -> Self {
        sweep();
        let instance = format!("awt-{}-{}", std::process::id(), unique());
        Self { host, instance, program: program(), environment: Vec::new(), daemon: None }
    }

    /// Starts the daemon and waits until it listens.
    ///
    /// # Panics
    /// If it ends or does not listen in time, with its log.
    pub fn run(&mut self, arguments: &[&str]) {
        self.spawn(arguments);
        self.wait_until_it_listens();
    }

    /// Waits until the daemon listens that [`Node::spawn`] started.
    ///
    /// # Panics
    /// If it ends or does not listen in time, with its log.
    pub fn wait_until_it_listens(&mut self) {
        let socket = self.folder().join("control.sock");
        wait_for("the control socket", START, || {
            let daemon = self.daemon.as_mut().expect("just started");
            if let Some(status) = daemon.try_wait().expect("a child") {
                panic!("the daemon ended with {status} before it listened; its log:\n{}", self.log());
            }
            // A socket that a killed daemon has left is there as well, until the next one takes it away.
            listens(daemon.id(), &socket).then_some(())
        });
    }

    /// Starts the daemon and waits for nothing.
    pub fn spawn(&mut self, arguments: &[&str]) {
        let mut command = self.command(&["run"]);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = fs::File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.daemon = Some(command.spawn().expect("the daemon starts"));
    }

    /// A command of the program under test, in the host's namespace and with the node's instance name.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.ns.command(&self.program);
        command.args(["--instance", &self.instance]).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub fn cli(&self, arguments: &[&str]) -> Done {
        self.cli_with_input(arguments, "")
    }

    /// [`Node::cli`] with text on standard input.
    pub fn cli_with_input(&self, arguments: &[&str], input: &str) -> Done {
        finish(&mut self.command(arguments), input)
    }

    /// Starts a command and waits for nothing; it is killed with the value.
    pub fn begin(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().expect("the command starts"))
    }

    /// Brings 10.7.0.`last`/24 online on `eth0` with the default claim, and returns the address.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn online(&self, last: u8) -> Ipv4Addr {
        self.online_with(last, &[])
    }

    /// [`Node::online`] with further arguments.
    #[track_caller]
    pub fn online_with(&self, last: u8, arguments: &[&str]) -> Ipv4Addr {
        self.try_online(last, arguments).expect(0);
        ip(last)
    }

    /// `online` of 10.7.0.`last`/24 on `eth0`.
    pub fn try_online(&self, last: u8, arguments: &[&str]) -> Done {
        let address = format!("{}/24", ip(last));
        self.cli(&[&["online", &address, "--iface", "eth0"], arguments].concat())
    }

    /// All that the tap on this host's cable has seen up to now: what the daemon was told before has been
    /// acted on, and what it has sent for that is here.
    pub fn settled(&self, tap: &Wire) -> Vec<Captured> {
        self.status();
        let last = marker(self.host.mac);
        self.host.wire().send(&last);
        let mut seen = tap.collect_until("the marker", ms(5_000), |frame| frame.bytes == last);
        seen.pop();
        seen
    }

    /// `status --json`, parsed.
    pub fn status(&self) -> Value {
        let done = self.cli(&["status", "--json"]).expect(0);
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{}: {error}", done.out))
    }

    /// What `status --json` says of an address.
    pub fn address(&self, address: impl std::fmt::Display) -> Option<Value> {
        let wanted = address.to_string();
        let status = self.status();
        let addresses = status["addresses"].as_array().expect("addresses in the status");
        addresses.iter().find(|entry| entry["address"] == wanted.as_str()).cloned()
    }

    /// The state of an address; `None` if it is not managed.
    pub fn state(&self, address: impl std::fmt::Display) -> Option<String> {
        Some(self.address(address)?["state"].as_str().expect("a state").to_owned())
    }

    /// Waits until an address has a state.
    ///
    /// # Panics
    /// After `within`, with the daemon's log.
    pub fn wait_for_state(&self, address: impl std::fmt::Display, state: &str, within: Duration) {
        let deadline = Instant::now() + within;
        loop {
            let now = self.state(&address);
            if now.as_deref() == Some(state) {
                return;
            }
            let log = self.log();
            assert!(Instant::now() < deadline, "{address} is {now:?}, not {state}; the log:\n{log}");
            std::thread::sleep(ms(10));
        }
    }

    /// A counter of an address in `status --json`.
    pub fn counter(&self, address: impl std::fmt::Display, name: &str) -> u64 {
        let entry = self.address(&address).unwrap_or_else(|| panic!("{address} is not managed"));
        entry["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {entry}"))
    }

    /// Follows the events from now on; the recent past comes first.
    pub fn events(&self) -> Events {
        let mut command = self.command(&["events", "--follow", "--json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Events::of(command.spawn().expect("events start"))
    }

    /// Process number of the daemon.
    ///
    /// # Panics
    /// If none runs.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a running daemon").id()
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, number: i32) {
        signal(self.pid(), number);
    }

    /// Stops the daemon at once and waits until it stands still.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        wait_for("the daemon to stand still", ms(2_000), || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a process");
            status.lines().any(|line| line.starts_with("State:\tT")).then_some(())
        });
    }

    /// Waits until the daemon ends, and returns its exit code; -1 if a signal ended it.
    ///
    /// # Panics
    /// After `within`, with its log.
    pub fn wait_for_end(&mut self, within: Duration) -> i32 {
        let deadline = Instant::now() + within;
        loop {
            let daemon = self.daemon.as_mut().expect("a running daemon");
            if let Some(status) = daemon.try_wait().expect("a child") {
                self.daemon = None;
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the daemon does not end; its log:\n{}", self.log());
            std::thread::sleep(ms(2));
        }
    }

    /// Kills the daemon, which can do nothing about it.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait_for_end(ms(5_000));
    }

    /// The daemon's log so far, those of its earlier runs included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The runtime folder of the instance.
    pub fn folder(&self) -> PathBuf {
        PathBuf::from("/run/arpwarden").join(&self.instance)
    }

    /// Where the maps, links and programs of the instance are pinned.
    pub fn pins(&self) -> PathBuf {
        kernel::pins(&self.instance)
    }

    /// Removes the pins of the instance, and with them what they hold.
    pub fn unpin(&self) {
        // Whatever is not there needs no removal.
        drop(fs::remove_dir_all(self.pins()));
    }

    fn log_file(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}.log", self.instance))
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself; nothing is to be done about it either way.
            drop(daemon.kill());
            drop(daemon.wait());
        }
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.instance, self.log());
        }
        // Whatever is not there needs no removal.
        drop(fs::remove_file(self.log_file()));
        drop(fs::remove_dir_all(self.folder()));
        self.unpin();
    }
}

/// A command under way.
#[derive(Debug)]
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is to be done about it either way.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command, input: &str) -> Done {
    let output = output_with_input(command, input.as_bytes());
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    child: Child,
    lines: Receiver<(u64, Value)>,
}

/// An event and when this process read it.
#[derive(Clone, Debug)]
pub struct Event {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub read_ns: u64,
    /// The event.
    pub json: Value,
}

impl Events {
    fn of(mut child: Child) -> Self {
        let (sender, lines) = channel();
        let output: ChildStdout = child.stdout.take().expect("a pipe");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                let read_ns = boot_ns();
                let json = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("an event that is no JSON: {line}: {error}"));
                if sender.send((read_ns, json)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// All events that are waiting.
    pub fn drain(&self) -> Vec<Event> {
        self.lines.try_iter().map(|(read_ns, json)| Event { read_ns, json }).collect()
    }

    /// The next one, waited for until `deadline`.
    pub fn next(&self, deadline: Instant) -> Option<Event> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).ok().map(|(read_ns, json)| Event { read_ns, json })
    }

    /// All that come until the daemon ends.
    pub fn rest(self) -> Vec<Event> {
        self.lines.iter().map(|(read_ns, json)| Event { read_ns, json }).collect()
    }

    /// The first event that `wanted` likes; those before it are gone.
    ///
    /// # Panics
    /// After `within`, with what came instead.
    pub fn wait_for(&self, what: &str, within: Duration, wanted: impl FnMut(&Value) -> bool) -> Event {
        self.collect_until(what, within, wanted).pop().expect("the event waited for is the last one")
    }

    /// All events up to and with the first one that `wanted` likes.
    ///
    /// # Panics
    /// After `within`, with what came instead.
    pub fn collect_until(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Vec<Event> {
        let deadline = Instant::now() + within;
        let mut seen: Vec<Event> = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((read_ns, json)) => {
                    let found = wanted(&json);
                    seen.push(Event { read_ns, json });
                    if found {
                        return seen;
                    }
                }
                Err(reason @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => {
                    let seen: Vec<String> = seen.iter().map(|event| event.json.to_string()).collect();
                    panic!("waited {within:?} in vain for {what} ({reason}); seen: {}", seen.join("\n"));
                }
            }
        }
    }

    /// Waits until the address has entered a state.
    pub fn wait_for_state(&self, address: impl std::fmt::Display, state: &str, within: Duration) -> Event {
        let address = address.to_string();
        self.wait_for(&format!("{address} {state}"), within, |event| {
            event["event"] == "state" && event["address"] == address.as_str() && event["to"] == state
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It ends by itself when the daemon does.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether it is the process with this id that listens at `socket`.
fn listens(process: u32, socket: &Path) -> bool {
    let Ok(stream) = UnixStream::connect(socket) else { return false };
    let mut listener = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&listener)).expect("a small struct");
    // SAFETY: pointer and length belong to `listener`, alive during the call; the descriptor is open.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut listener).cast(),
            &raw mut length,
        )
    };
    assert_eq!(done, 0, "asking who listens: {}", io::Error::last_os_error());
    u32::try_from(listener.pid) == Ok(process)
}

/// Removes what tests that were killed have left: runtime folders, pins, logs, copies of the program.
fn sweep() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let folders = ["/run/arpwarden", "/sys/fs/bpf/arpwarden"].map(PathBuf::from);
        for folder in folders.into_iter().chain([std::env::temp_dir()]) {
            // There is nothing to sweep in a folder that is not there.
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let owner: Option<u32> =
                    name.strip_prefix("awt-").and_then(|rest| rest.split('-').next()?.parse().ok());
                if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
                    // Another test may have swept it at the same moment.
                    drop(fs::remove_dir_all(entry.path()));
                    drop(fs::remove_file(entry.path()));
                }
            }
        }
    });
}
