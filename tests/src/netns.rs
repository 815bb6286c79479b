//! Network namespaces, and hosts in them joined by a bridge or a straight cable.
//!
//! A namespace has no name: it lives as long as a descriptor or a process of it, so nothing is left behind when
//! a test crashes. [`Netns::path`] is what `nsenter --net=` takes while the test runs.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use arpwarden_common::net::MacAddr;

use crate::{
    kernel::XdpPass,
    ms,
    tools::run_with_input,
    wait_for,
    wire::{Wire, marker},
};

/// A network namespace; it goes away with the value and the processes in it.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one with the loopback interface up and IPv6 off, so that nobody speaks who was not asked to.
    ///
    /// # Panics
    /// Without CAP_SYS_ADMIN.
    pub fn new() -> Self {
        let file = on_a_thread(|| {
            // SAFETY: takes no pointer; it changes the namespace of this thread, which ends right after.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(done, 0, "a new network namespace (needs root): {}", io::Error::last_os_error());
            for scope in ["all", "default", "lo"] {
                let file = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
                if let Err(error) = std::fs::write(&file, "1")
                    && error.kind() != io::ErrorKind::NotFound
                {
                    panic!("{file}: {error}");
                }
            }
            File::open("/proc/thread-self/ns/net").expect("the namespace of this thread")
        });
        let namespace = Self { file };
        namespace.ip("link set lo up");
        namespace
    }

    /// The same one.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { file: self.file.try_clone().expect("a descriptor") }
    }

    /// Where other processes find it while this one lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` in the namespace, on a thread of its own. What it opens stays in the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            set_namespace(self.file.as_raw_fd()).expect("entering the test's network namespace");
            work()
        })
    }

    /// A command that will run in the namespace. Its file system is everybody's, `/sys` included. The process
    /// dies with the thread that starts it, so that a test which is killed leaves none behind.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let descriptor = self.file.as_raw_fd();
        // SAFETY: between fork and exec only prctl(2) and setns(2) are called, which are async-signal-safe and
        // allocate nothing; the descriptor is open, as `self` outlives the spawn or the spawn fails.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
                set_namespace(descriptor)
            });
        }
        command
    }

    /// Feeds `ip -batch` with these lines.
    ///
    /// # Panics
    /// If one fails.
    pub fn ip(&self, lines: &str) {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        run_with_input(command, lines);
    }

    /// Index of an interface; `None` if there is none of that name.
    pub fn index_of(&self, interface: &str) -> Option<u32> {
        self.enter(|| index_of(interface))
    }

    /// Sets a file below `/proc/sys/net`.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{key}"), value))
            .unwrap_or_else(|error| panic!("/proc/sys/net/{key}: {error}"));
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

fn set_namespace(descriptor: i32) -> io::Result<()> {
    // SAFETY: takes no pointer; a bad descriptor is an error.
    match unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn index_of(interface: &str) -> Option<u32> {
    let name = std::ffi::CString::new(interface).ok()?;
    // SAFETY: a string that ends in a zero byte, alive during the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// A host: a namespace with the interface `eth0`.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Netns,
    /// MAC of `eth0`.
    pub mac: MacAddr,
    /// Its own address, with /24.
    pub ip: Ipv4Addr,
    /// Name of the other end of the cable.
    pub port: String,
}

/// What is between the hosts.
#[derive(Debug)]
enum Middle {
    /// A namespace with the bridge `br0` and the ports `p0`, `p1`, …
    Bridge(Netns),
    /// Nothing: the two hosts' `eth0` are the two ends of one cable.
    Cable,
}

/// Hosts on one Ethernet segment.
#[derive(Debug)]
pub struct Net {
    /// The hosts.
    pub hosts: Vec<Host>,
    middle: Middle,
    /// Attached as long as they are here.
    _passes: Vec<XdpPass>,
}

/// The first three bytes of the hosts' addresses.
pub const PREFIX: [u8; 3] = [10, 7, 0];

/// The address 10.7.0.`last`; the hosts have 1, 2, …
pub const fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(PREFIX[0], PREFIX[1], PREFIX[2], last)
}

/// A MAC that no host has.
pub const fn stranger(number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr::new([0x02, 0xbb, 0, 0, high, low])
}

impl Net {
    /// `count` hosts on a bridge, all of which receive each other's frames. Each port carries a program that
    /// passes everything, because what a native program sends back on a veth is lost without one at the peer.
    pub fn new(count: u8) -> Self {
        Self::bridged(count, true)
    }

    /// [`Net::new`] without the programs on the ports.
    pub fn without_peer_programs(count: u8) -> Self {
        Self::bridged(count, false)
    }

    fn bridged(count: u8, peer_programs: bool) -> Self {
        let bridge = Netns::new();
        let hosts: Vec<Host> = (0..count).map(|n| Host::new(n, format!("p{n}"))).collect();
        let mut lines =
            String::from("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n");
        for Host { ns, mac, port, .. } in &hosts {
            let path = ns.path();
            lines += &format!(
                "link add {port} type veth peer name eth0 address {mac} netns {}\n\
                 link set {port} master br0 up\n",
                path.display()
            );
        }
        lines += "link set br0 up\n";
        bridge.ip(&lines);
        for host in &hosts {
            host.up();
        }
        let passes = if peer_programs {
            hosts.iter().map(|host| XdpPass::attach(&bridge, &host.port)).collect()
        } else {
            Vec::new()
        };
        let net = Self { hosts, middle: Middle::Bridge(bridge), _passes: passes };
        net.wait_until_all_hear_each_other();
        net
    }

    /// Two hosts at the ends of one cable. Host 1 leaves tags in the frames that it sends, so that a program
    /// at host 0 sees them, and carries a program that passes everything.
    pub fn cable() -> Self {
        let hosts = vec![Host::new(0, "eth0".into()), Host::new(1, "eth0".into())];
        hosts[0].ns.ip(&format!(
            "link add eth0 address {} type veth peer name eth0 address {} netns {}",
            hosts[0].mac,
            hosts[1].mac,
            hosts[1].ns.path().display()
        ));
        for host in &hosts {
            host.up();
            host.tags_beside_the_frame(false);
        }
        let passes = vec![XdpPass::attach(&hosts[1].ns, "eth0")];
        let net = Self { hosts, middle: Middle::Cable, _passes: passes };
        net.wait_until_all_hear_each_other();
        net
    }

    /// Gives a host a second cable, into its `eth1` with this MAC, out of port `q0` of the bridge, which carries a program
    /// that passes everything as long as the result is there.
    pub fn second_cable(&self, host: usize, mac: MacAddr) -> XdpPass {
        self.bridge().ip(&format!(
            "link add q0 type veth peer name eth1 address {mac} netns {}\n\
             link set q0 master br0 up\n",
            self.hosts[host].ns.path().display()
        ));
        XdpPass::attach(self.bridge(), "q0")
    }

    /// The namespace of the bridge.
    ///
    /// # Panics
    /// On [`Net::cable`].
    pub fn bridge(&self) -> &Netns {
        match &self.middle {
            Middle::Bridge(ns) => ns,
            Middle::Cable => panic!("a cable has no bridge"),
        }
    }

    /// A packet socket on the other end of a host's cable: all that the host sends (incoming there) and all
    /// that is sent to it (outgoing there), whatever a program at the host does with it.
    pub fn tap(&self, host: usize) -> Wire {
        match &self.middle {
            Middle::Bridge(ns) => Wire::open(ns, &self.hosts[host].port),
            Middle::Cable => Wire::open(&self.hosts[1 - host].ns, "eth0"),
        }
    }

    /// A host by its number, from 0.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number]
    }

    /// Pulls a host's cable out of the bridge, or plugs it in.
    pub fn plug(&self, host: usize, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        self.bridge().ip(&format!("link set {} {state}", self.hosts[host].port));
    }

    /// Lets the ports of the bridge put tags into the frames, so that a program at a host sees them.
    pub fn ports_put_tags_into_the_frames(&self) {
        for host in &self.hosts {
            tags_beside_the_frame(self.bridge(), &host.port, false);
        }
    }

    /// A bridge port forwards only some 30–75 ms after its link came up; frames sent before are lost.
    pub fn wait_until_all_hear_each_other(&self) {
        let wires: Vec<Wire> = self.hosts.iter().map(|host| Wire::open(&host.ns, "eth0")).collect();
        for (from, sender) in wires.iter().enumerate() {
            for (to, receiver) in wires.iter().enumerate() {
                if from == to {
                    continue;
                }
                let frame = marker(self.hosts[from].mac);
                wait_for("the ports to forward", ms(5_000), || {
                    sender.send(&frame);
                    receiver
                        .drain()
                        .into_iter()
                        .any(|seen| seen.bytes == frame && !seen.outgoing)
                        .then_some(())
                });
            }
        }
    }
}

impl Host {
    fn new(number: u8, port: String) -> Self {
        Self {
            ns: Netns::new(),
            mac: MacAddr::new([0x02, 0xaa, 0, 0, 0, number + 1]),
            ip: ip(number + 1),
            port,
        }
    }

    fn up(&self) {
        self.ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0", self.ip));
    }

    /// Whether tags leave `eth0` beside the frames, out of an XDP program's sight, or in them.
    pub fn tags_beside_the_frame(&self, beside: bool) {
        tags_beside_the_frame(&self.ns, "eth0", beside);
    }

    /// A packet socket on `eth0`.
    pub fn wire(&self) -> Wire {
        Wire::open(&self.ns, "eth0")
    }
}

fn tags_beside_the_frame(ns: &Netns, interface: &str, beside: bool) {
    let value = if beside { "on" } else { "off" };
    let mut command = ns.command("ethtool");
    // Customer tags and service tags are two offloads.
    command.args(["-K", interface, "txvlan", value, "tx-vlan-stag-hw-insert", value]);
    crate::tools::run(command);
}

/// A number that no other call in this process gives.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
