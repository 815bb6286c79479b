//! What differs from kernel to kernel: whether the verifier takes the programs and at what cost, which modes of attaching
//! a kind of interface has, and what is missed on an old one. Run on every kernel that can be had, in guests, by
//! `cargo xtask test --kernel all`; on the running one it skips what that lacks, and says so.

use std::{collections::BTreeSet, net::Ipv4Addr};

use arpwarden::io::{bpf::OBJECT, netlink::ADDRESS_PROTOCOL};
use arpwarden_common::{
    names,
    net::MacAddr,
    wire::arp::{REPLY, REQUEST},
};
use arpwarden_tests::{
    cards::{Plugged, plugged},
    flood::settled,
    kernel::{XdpPass, egress_programs, ingress_programs, is_at_least},
    ms,
    netlink::marked_addresses,
    netns::{Host, Net, Netns, ip, stranger},
    node::Node,
    tell,
    tools::{addresses, kernel_makes, run, snapshot, traffic_control, xdp_program},
    verifier,
    wire::{Captured, announcement, bytes, request},
};

/// A mode, as `--attach` takes it and `status` shows it.
const MODES: [&str; 3] = ["native", "generic", "tc"];

/// The first kernel that has something.
#[derive(Clone, Copy, Debug)]
enum Since {
    /// All that are supported.
    Ever,
    Linux(u8, u8),
    Never,
}

impl Since {
    fn is_here(self) -> bool {
        match self {
            Self::Ever => true,
            Self::Linux(major, minor) => is_at_least(major, minor),
            Self::Never => false,
        }
    }
}

/// Which kernels take a program: frames of several buffers are Linux 5.18's, atomic operations with a result 5.12's,
/// everything else is for all.
fn taken_since(program: &str) -> Since {
    match program {
        names::XDP_FRAGS => Since::Linux(5, 18),
        names::XDP | names::TC => Since::Linux(5, 12),
        _ => Since::Ever,
    }
}

#[test]
fn every_program_loads_at_every_log_level() {
    let programs = verifier::programs(OBJECT);
    assert!(programs.len() >= 3, "the object has {programs:?}");
    for level in 0..=5 {
        for (name, loaded) in verifier::load_all(OBJECT, level) {
            match loaded {
                Ok(figures) => {
                    // For `cargo xtask verifier`.
                    let line = serde_json::json!({
                        "program": name,
                        "level": level,
                        "instructions": figures.instructions,
                        "walked": figures.walked,
                        "states": figures.states,
                        "peak_states": figures.peak_states,
                        "stack": figures.stack,
                        "milliseconds": figures.took.as_secs_f64() * 1e3,
                    });
                    tell(&format!("figures: {line}"));
                    assert!(
                        taken_since(&name).is_here(),
                        "{name} is taken by a kernel that should not know it"
                    );
                }
                Err(refused) => {
                    let verifier::Refused { error, log } = refused;
                    assert!(!taken_since(&name).is_here(), "{name} at log level {level}: {error}\n{log}");
                    assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name}: {error}");
                }
            }
        }
    }
}

/// A kind of interface, and how a pair of hosts gets it.
struct Kind {
    name: &'static str,
    /// The near end of the cable to the other host.
    cable: &'static str,
    /// Makes `eth0` of this kind over it, if it isn't that.
    lines: &'static str,
    /// Whose frames the program is given: `eth0`, or what it stands on.
    carrier: &'static str,
    /// Which kernels run XDP in its driver.
    native: Since,
    /// Whether a native answer needs a program at the far end, as that of a veth does.
    native_needs_peer: bool,
}

const VETH: Kind = Kind {
    name: "veth",
    cable: "eth0",
    lines: "",
    carrier: "eth0",
    native: Since::Ever,
    native_needs_peer: true,
};
/// The program is on what the device stands on, with the tag in the frame: the far end puts it there.
const VLAN: Kind = Kind {
    name: "VLAN device",
    cable: "cable",
    lines: "link add link cable name eth0 type vlan id 100\n",
    carrier: "cable",
    native: Since::Ever,
    native_needs_peer: true,
};
const BOND: Kind = Kind {
    name: "bond",
    cable: "cable",
    lines: "link add eth0 type bond mode active-backup miimon 100\n\
            link set cable master eth0\n",
    carrier: "eth0",
    native: Since::Linux(5, 15),
    native_needs_peer: true,
};
const BRIDGE: Kind = Kind {
    name: "bridge",
    cable: "cable",
    lines: "link add eth0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
            link set cable master eth0\n",
    carrier: "eth0",
    native: Since::Never,
    native_needs_peer: false,
};
const MACVLAN: Kind = Kind {
    name: "macvlan",
    cable: "cable",
    lines: "link add link cable name eth0 type macvlan mode bridge\n",
    carrier: "eth0",
    native: Since::Never,
    native_needs_peer: false,
};

/// What has no far end. The kernel makes it without ARP, which is refused in words of its own.
const DUMMY: &str = "link add eth0 type dummy\nlink set eth0 arp on\n";

#[test]
fn a_veth_is_attached_to_in_every_mode() {
    each_mode_is_as_expected(&VETH);
}

#[test]
fn a_vlan_device_is_attached_to_in_every_mode_of_what_it_stands_on() {
    each_mode_is_as_expected(&VLAN);
}

#[test]
fn a_bond_is_attached_to_natively_where_the_kernel_has_that() {
    each_mode_is_as_expected(&BOND);
}

#[test]
fn a_bridge_is_attached_to_but_not_natively() {
    each_mode_is_as_expected(&BRIDGE);
}

#[test]
fn a_macvlan_is_attached_to_but_not_natively() {
    each_mode_is_as_expected(&MACVLAN);
}

#[test]
fn a_virtio_card_is_attached_to_in_every_mode() {
    for mode in MODES {
        let cards = plugged("virtio_net", false, "virtio_net", 1_500);
        let Some(Plugged { near, far, .. }) = &cards else { return };
        attach(near, "eth0", mode, true, &[], |node| {
            let address = node.online_with(100, &["--claim", "immediate", "--check", "0"]);
            assert_answered_once(far, address, near.mac, &format!("virtio card in mode {mode}"));
        });
    }
}

#[test]
fn a_dummy_is_attached_to_but_not_natively() {
    if !kernel_makes("dummy", DUMMY) {
        return;
    }
    for mode in MODES {
        let host = Host { ns: Netns::new(), mac: MacAddr::ZERO, ip: ip(1), port: String::new() };
        host.ns.ip(&format!("{DUMMY}link set eth0 up\naddress add {}/24 dev eth0\n", host.ip));
        attach(&host, "eth0", mode, mode != "native", &[], |_| {});
    }
}

/// What an older kernel lacks is in `status`, in every mode, and nothing else is; and what is done instead is done.
#[test]
fn what_the_kernel_lacks_is_told_and_done_without() {
    let lacks = |major, minor| !is_at_least(major, minor);
    let rows = [("5.12", lacks(5, 12)), ("5.15", lacks(5, 15)), ("5.18", lacks(5, 18)), ("6.6", lacks(6, 6))];
    let expected: BTreeSet<&str> =
        rows.into_iter().filter_map(|(since, lacks)| lacks.then_some(since)).collect();
    for mode in MODES {
        let (host, _far) = pair(&VETH);
        attach(&host, "eth0", mode, true, &[], |node| {
            let status = node.status();
            let missing = status["kernel"]["missing"].as_array().expect("what is missing");
            let told: BTreeSet<&str> = missing.iter().filter_map(|lack| lack["since"].as_str()).collect();
            assert_eq!(told, expected, "in mode {mode}: {status}");
            for lack in missing {
                for word in ["feature", "since", "instead"] {
                    assert!(lack[word].as_str().is_some_and(|text| !text.is_empty()), "{word}: {lack}");
                }
            }
            // Without tcx the guard is a filter.
            let clsact = traffic_control(&host.ns, "eth0").contains("clsact");
            assert_eq!(clsact, lacks(6, 6), "in mode {mode}");
            assert_eq!(egress_programs(&host.ns, "eth0").len(), 1, "in mode {mode}");
        });
    }
    // Frames longer than a page: natively with multi-buffer programs only, by tc always.
    for (mode, works) in [("native", !lacks(5, 18)), ("tc", true)] {
        let (host, far) = pair(&VETH);
        for end in [&host, &far] {
            end.ns.ip("link set eth0 mtu 9000\n");
        }
        attach(&host, "eth0", mode, works, &[], |_| {});
    }
}

/// Where it can't, as before 5.12, the daemon alone defends; what gives an address up needs no result.
#[test]
fn a_dead_daemons_program_defends_where_the_kernel_lets_it_and_gives_up_everywhere() {
    let defends = is_at_least(5, 12);
    for mode in ["native", "tc"] {
        let net = Net::new(2);
        let (host, wire) = (net.host(0), net.host(1).wire());
        let mut node = Node::start_with(host, &["--iface", "eth0", "--attach", mode]);
        let [alive, dead] = [100, 101].map(|last| node.online_with(last, &["--defend", "hold"]));
        let given = node.online_with(102, &["--defend", "yield"]);
        for address in [alive, dead, given] {
            node.wait_for_state(address, "online", ms(20_000));
        }
        // What it says of itself from now on is a defence.
        node.settled(&wire);
        let is_defence = |seen: &Captured, address: Ipv4Addr| {
            !seen.outgoing && seen.says(address, host.mac) && seen.is_arp(|arp| arp.operation == REQUEST)
        };
        wire.send(&bytes(&announcement(stranger(1), alive)));
        wire.wait_for("the living daemon's defence", ms(5_000), |seen| is_defence(seen, alive));

        node.kill();
        wire.send(&bytes(&announcement(stranger(2), dead)));
        wire.send(&bytes(&announcement(stranger(3), given)));
        for address in [given, dead] {
            wire.send(&bytes(&request(net.host(1).mac, net.host(1).ip, address)));
        }
        let answers = |frame: &Captured, address: Ipv4Addr| {
            !frame.outgoing && frame.says(address, host.mac) && frame.is_arp(|arp| arp.operation == REPLY)
        };
        let seen = settled(&net.host(1).wire(), alive, &wire);
        let count = |wanted: &dyn Fn(&Captured) -> bool| seen.iter().filter(|frame| wanted(frame)).count();
        assert_eq!(
            count(&|frame| is_defence(frame, dead)),
            usize::from(defends),
            "in mode {mode}: {seen:#?}"
        );
        assert_eq!(count(&|frame| answers(frame, dead)), 1, "in mode {mode}: {seen:#?}");
        assert_eq!(
            count(&|frame| !frame.outgoing && frame.says(given, host.mac)),
            0,
            "in mode {mode}: {seen:#?}"
        );
    }
}

/// The kernel keeps a mark on addresses from 5.18 on; before, and beside it, the state file knows.
#[test]
fn what_is_ours_is_known_by_its_mark_or_by_the_state_file_and_nothing_else_is_taken_off() {
    let net = Net::new(2);
    let host = net.host(0);
    let mut node = Node::start(host);
    let ours = node.online(100);
    host.ns.ip("address add 10.7.0.77/32 dev eth0\naddress add 10.9.0.1/24 dev eth0 label eth0:x\n");
    let marked = marked_addresses(&host.ns, ADDRESS_PROTOCOL);
    assert_eq!(marked, if is_at_least(5, 18) { vec![ours] } else { vec![] }, "by IFA_PROTO");
    let foreign: Vec<_> = addresses(&host.ns).into_iter().filter(|(address, _)| *address != ours).collect();
    assert_eq!(foreign.len(), 3, "{foreign:?}");

    node.kill();
    node.run(&["--iface", "eth0", "--attach", "native"]);
    assert_eq!(node.address(ours).expect("adopted")["may_answer"], true);
    assert_answered_once(net.host(1), ours, host.mac, "host after a new start");
    node.kill();
    node.cli(&["unload"]).expect(0).naming(ours);
    assert_eq!(addresses(&host.ns), foreign);
    assert!(!node.pins().exists());
}

/// Attaches in each mode: what the kernel has is answered in, what it has not is refused.
fn each_mode_is_as_expected(kind: &Kind) {
    let Kind { name, cable, lines, .. } = kind;
    if !kernel_makes(name, &format!("link add {cable} type veth peer name far\n{lines}")) {
        return;
    }
    for mode in MODES {
        let (host, far) = pair(kind);
        let native = mode == "native";
        let _peer = (native && kind.native_needs_peer)
            .then(|| XdpPass::attach(&far.ns, if kind.carrier == "cable" { "cable" } else { "eth0" }));
        let works = !native || kind.native.is_here();
        // Whether the far end puts its tag into the frame can't be seen from here: it does.
        let also: &[&str] = if kind.carrier == "cable" { &["--vlan-offload", "ignore"] } else { &[] };
        attach(&host, kind.carrier, mode, works, also, |node| {
            let address = node.online_with(100, &["--claim", "immediate", "--check", "0"]);
            assert_answered_once(&far, address, host.mac, &format!("{} in mode {mode}", kind.name));
        });
    }
}

/// Two hosts on a cable, the first of which has an `eth0` of this kind.
fn pair(kind: &Kind) -> (Host, Host) {
    let (near, far) = (Netns::new(), Netns::new());
    // What stands below `eth0` would answer for its addresses too.
    near.sysctl("ipv4/conf/all/arp_ignore", "1");
    let tagged = kind.carrier == "cable";
    let far_end = if tagged { "cable" } else { "eth0" };
    near.ip(&format!(
        "link add {} type veth peer name {far_end} netns {}\n{}",
        kind.cable,
        far.path().display(),
        kind.lines
    ));
    near.ip(&format!("link set {} up\nlink set eth0 up\n", kind.cable));
    if tagged {
        far.ip("link add link cable name eth0 type vlan id 100\nlink set cable up\n");
        for (ns, offloads) in [(&near, "txvlan"), (&far, "txvlan")] {
            let mut ethtool = ns.command("ethtool");
            ethtool.args(["-K", "cable", offloads, "off"]);
            run(ethtool);
        }
    }
    far.ip("link set eth0 up\n");
    let host = |ns: Netns, number: u8| {
        ns.ip(&format!("address add {}/24 dev eth0\n", ip(number)));
        let mac = arpwarden_tests::tools::mac_of(&ns, "eth0");
        Host { ns, mac, ip: ip(number), port: "eth0".into() }
    };
    (host(near, 1), host(far, 2))
}

/// Runs the daemon on `eth0` in a mode that works, does `work` and ends it; or lets it be refused. Nothing is left in
/// either case.
fn attach(host: &Host, carrier: &str, mode: &str, works: bool, also: &[&str], work: impl FnOnce(&Node<'_>)) {
    let before = left_on(host, carrier);
    let mut node = Node::new(host);
    let arguments = [&["--iface", "eth0", "--attach", mode], also].concat();
    if works {
        node.run(&arguments);
        let status = node.status();
        let interface = &status["interfaces"][0];
        assert_eq!(interface["attach_mode"], mode, "{status}");
        assert_eq!(interface["carrier"], carrier, "{status}");
        assert!(interface["program"] == true && interface["guard"] == true, "{status}");
        assert_eq!(xdp_program(&host.ns, carrier).is_some(), mode != "tc", "{status}");
        work(&node);
        node.signal(libc::SIGTERM);
        assert_eq!(node.wait_for_end(ms(20_000)), 0, "the log: {}", node.log());
    } else {
        node.spawn(&arguments);
        assert_eq!(node.wait_for_end(ms(40_000)), 1, "{mode} should be refused; the log: {}", node.log());
        let log = node.log();
        // What was tried, on what, and what to do instead.
        for word in [carrier, mode, "--attach"] {
            assert!(log.contains(word), "{word:?} is missing in the refusal: {log}");
        }
    }
    assert_eq!(left_on(host, carrier), before, "what is left after mode {mode}");
    assert!(!node.pins().exists(), "pins are left after mode {mode}");
}

/// All that a daemon could have left on an interface, in words.
fn left_on(host: &Host, carrier: &str) -> String {
    let programs = [ingress_programs(&host.ns, carrier), egress_programs(&host.ns, carrier)];
    // The kernel finds out about some states a moment later, whatever the daemon does.
    let links = ["UNKNOWN", "UP", "DOWN", "LOWERLAYERDOWN"]
        .iter()
        .fold(snapshot(&host.ns), |text, state| text.replace(&format!(" state {state} "), " "));
    format!("{links}\n{}\n{programs:?}", traffic_control(&host.ns, carrier))
}

/// Asks once, and waits for more than one answer.
fn assert_answered_once(far: &Host, address: Ipv4Addr, mac: MacAddr, what: &str) {
    let wire = far.wire();
    wire.send(&bytes(&request(far.mac, far.ip, address)));
    let is_answer = |frame: &arpwarden_common::wire::arp::Frame| {
        frame.operation == REPLY && frame.sender_ip == address.into() && frame.destination == far.mac
    };
    let first = wire.wait_for(&format!("an answer of the {what}"), ms(5_000), |seen| seen.is_arp(is_answer));
    assert!(first.says(address, mac), "{what}, whose MAC is {mac}: {first:?}");
    std::thread::sleep(ms(100));
    let more: Vec<_> = wire.drain().into_iter().filter(|seen| seen.is_arp(is_answer)).collect();
    assert!(more.is_empty(), "{what}: answered more than once: {more:?}");
}
