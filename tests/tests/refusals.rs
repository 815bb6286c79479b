//! What cannot be done is refused with words of its own and the right exit code, and changes nothing.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::PermissionsExt},
    path::PathBuf,
};

use arpwarden_tests::{
    for_all::ForAll,
    kernel::{XdpPass, attach_egress, attach_ingress, egress_programs, ingress_programs},
    ms,
    netns::{Host, Net, ip},
    node::{Done, Node},
    prog_run::tc_pass,
    tools::{arping, has_address, snapshot, xdp_program},
    wait_for,
    wire::Captured,
};

/// The numeric user that owns nothing.
const NOBODY: &str = "65534";

/// Asserts that this `online` is refused with the code and these words, leaves no address managed or configured
/// and puts nothing on the wire.
#[track_caller]
fn refused(net: &Net, node: &Node, address: &str, interface: &str, code: i32, words: &[&str]) -> Done {
    let before = snapshot(&node.host.ns);
    let tap = net.tap(0);
    let mut done = node.cli(&["online", address, "--iface", interface]).expect(code);
    for word in words {
        done = done.naming(word);
    }
    assert_eq!(snapshot(&node.host.ns), before, "online {address} on {interface} changed the host");
    let bare = address.split('/').next().expect("a first part");
    assert!(node.address(bare).is_none(), "{address} is managed");
    let sent: Vec<Captured> = node.settled(&tap).into_iter().filter(|frame| !frame.outgoing).collect();
    assert!(sent.is_empty(), "online {address} sent {sent:?}");
    done
}

#[test]
fn every_argument_that_cannot_be_right_is_refused_with_2_and_its_own_words() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let cases: &[(&str, &[&str])] = &[
        ("10.7.0.100", &["prefix length"]),
        ("10.7.0.100/0", &["prefix length"]),
        ("10.7.0.100/33", &["prefix length"]),
        ("0.1.2.3/24", &["0.0.0.0/8"]),
        ("127.0.0.2/8", &["127.0.0.0/8"]),
        ("169.254.3.4/16", &["169.254.0.0/16"]),
        ("224.0.0.5/24", &["224.0.0.0/4"]),
        ("240.0.0.5/24", &["240.0.0.0/4"]),
        ("255.255.255.255/32", &["240.0.0.0/4"]),
        ("10.7.0.0/24", &["network address"]),
        ("10.7.0.255/24", &["broadcast address"]),
        ("2001:db8::1/64", &["IPv6"]),
        ("somewhere/24", &["somewhere"]),
    ];
    let mut said = Vec::new();
    for (address, words) in cases {
        let done = refused(&net, &node, address, "eth0", 2, words);
        said.push(
            done.err.replace(address, "ADDRESS").replace(address.split('/').next().expect("part"), "IP"),
        );
    }
    let classes = &said[3..8];
    for (number, text) in classes.iter().enumerate() {
        assert!(!classes[..number].contains(text), "two classes are refused in the same words: {text}");
    }
}

#[test]
fn a_slash_31_and_a_slash_32_have_no_network_or_broadcast_address() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    for address in ["10.7.9.0/31", "10.7.9.255/32"] {
        node.cli(&["online", address, "--iface", "eth0"]).expect(0);
    }
}

#[test]
fn an_interface_that_cannot_carry_an_address_is_refused_with_1_and_its_kind() {
    let net = Net::new(1);
    let host = net.host(0);
    host.ns.ip("tuntap add tun0 mode tun\n\
         link set tun0 up\n\
         link add br7 type bridge\n\
         link add a7 type veth peer name b7\n\
         link set a7 master br7 up\n\
         link set b7 up\n\
         link set br7 up\n\
         link add c7 type veth peer name d7\n\
         link set c7 arp off up\n\
         link set d7 up\n");
    // The kernel looks at a new link's carrier some time after it was set up.
    wait_for("the links to be up", ms(5_000), || {
        let now = snapshot(&host.ns);
        let is_up = |name: &str| {
            now.lines().any(|line| line.contains(&format!(" {name}")) && line.contains("state UP"))
        };
        ["br7:", "a7@", "b7@", "c7@", "d7@"].into_iter().all(is_up).then_some(())
    });
    let node = Node::start(host);
    refused(&net, &node, "10.7.0.100/24", "eth7", 1, &["eth7"]);
    refused(&net, &node, "10.7.0.100/24", "lo", 1, &["lo", "loopback"]);
    refused(&net, &node, "10.7.0.100/24", "tun0", 1, &["tun0"]);
    refused(&net, &node, "10.7.0.100/24", "c7", 1, &["c7", "ARP"]);
    refused(&net, &node, "10.7.0.100/24", "a7", 1, &["a7", "br7"]);
    // Fit for it, but the daemon does not run on it.
    refused(&net, &node, "10.7.0.100/24", "b7", 1, &["b7", "--attach-now"]);
}

#[test]
fn run_refuses_the_same_interfaces_and_ends() {
    let net = Net::new(1);
    let host = net.host(0);
    host.ns.ip("tuntap add tun0 mode tun\n\
         link add br7 type bridge\n\
         link add a7 type veth peer name b7\n\
         link set a7 master br7 up\n");
    let node = Node::new(host);
    let before = snapshot(&host.ns);
    for (interface, word) in [("eth7", "eth7"), ("lo", "lo"), ("tun0", "tun0"), ("a7", "br7")] {
        node.cli(&["run", "--iface", interface]).expect(1).naming(word);
        assert_eq!(snapshot(&host.ns), before);
        assert!(!node.folder().join("control.sock").exists());
    }
}

#[test]
fn an_address_that_is_on_the_interface_is_refused_with_3_unless_adopted() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    refused(&net, &node, "10.7.0.1/24", "eth0", 3, &["--adopt"]);
    node.host.ns.ip("address add 10.7.0.100/24 dev eth0");
    refused(&net, &node, "10.7.0.100/24", "eth0", 3, &["--adopt"]);
    node.online_with(100, &["--adopt"]);
    assert!(["online", "announcing"].contains(&node.state(ip(100)).expect("managed").as_str()));
    assert!(has_address(&node.host.ns, ip(100)));
}

#[test]
fn a_second_daemon_of_the_same_instance_is_refused_with_1() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    node.cli(&["run", "--iface", "eth0"]).expect(1).naming(&node.instance);
    assert!(node.address(address).is_some(), "the first one goes on");
}

#[test]
fn a_foreign_program_is_named_and_left_where_it_is() {
    for mode in ["native", "generic"] {
        let net = Net::new(1);
        let host = net.host(0);
        let node = Node::new(host);
        let foreign = match mode {
            "native" => XdpPass::attach(&host.ns, "eth0"),
            _ => XdpPass::attach_generic(&host.ns, "eth0"),
        };
        let before = snapshot(&host.ns);
        for asked in ["native", "generic"] {
            node.cli(&["run", "--iface", "eth0", "--attach", asked])
                .expect(1)
                .naming(foreign.name)
                .naming(foreign.id())
                .naming("eth0");
            assert_eq!(snapshot(&host.ns), before, "the foreign {mode} program was touched");
        }
    }
}

#[test]
fn in_tc_mode_foreign_programs_are_lived_beside_and_left_alone() {
    for mode in ["tc", "auto"] {
        let net = Net::new(2);
        let host = net.host(0);
        let (xdp, tc) = (XdpPass::attach_generic(&host.ns, "eth0"), tc_pass());
        let _links =
            (attach_ingress(&host.ns, "eth0", tc.as_fd()), attach_egress(&host.ns, "eth0", tc.as_fd()));
        let there = |host: &Host| {
            let mut in_tc = [ingress_programs(&host.ns, "eth0"), egress_programs(&host.ns, "eth0")];
            let ours = in_tc.each_mut().map(|programs| (programs.len() > 1).then(|| programs.remove(0)));
            (xdp_program(&host.ns, "eth0"), in_tc, ours.iter().all(Option::is_some))
        };
        let before = there(host);
        assert_eq!((before.0, before.1[0].len(), before.2), (Some(xdp.id()), 1, false));
        let node = Node::start_with(host, &["--iface", "eth0", "--attach", mode]);
        assert_eq!(node.status()["interfaces"][0]["attach_mode"], "tc");
        assert_eq!(node.status()["interfaces"][0]["vlan_tags"], "visible");
        // Ours come first, and theirs are where they were.
        assert_eq!(there(host), (before.0, before.1.clone(), true));
        let address = node.online(100);
        assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
        assert_eq!(node.counter(address, "answered"), 1);
        drop(node);
    }
}

#[test]
fn a_daemon_of_another_instance_on_the_same_interface_is_refused_in_every_mode_and_named() {
    const MODES: [&str; 3] = ["native", "generic", "tc"];
    for mode in MODES {
        let net = Net::new(2);
        let node = Node::start_with(net.host(0), &["--iface", "eth0", "--attach", mode]);
        let address = node.online(100);
        let there = || {
            let ns = &node.host.ns;
            (snapshot(ns), xdp_program(ns, "eth0"), ingress_programs(ns, "eth0"), egress_programs(ns, "eth0"))
        };
        let before = there();
        for asked in [&MODES[..], &["auto"]].concat() {
            let other = Node::new(net.host(0));
            other
                .cli(&["run", "--iface", "eth0", "--attach", asked])
                .expect(1)
                .naming(&node.instance)
                .naming("eth0");
            assert_eq!(there(), before, "{mode}, {asked}");
        }
        assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
    }
}

#[test]
fn attach_now_puts_the_program_on_an_interface_and_a_foreign_one_there_is_named() {
    let net = Net::new(1);
    let host = net.host(0);
    host.ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up\n\
         link add c7 type veth peer name d7\nlink set c7 up\nlink set d7 up");
    let node = Node::start(host);
    let foreign = XdpPass::attach_generic(&host.ns, "c7");
    let before = snapshot(&host.ns);
    node.cli(&["online", "10.7.8.100/32", "--iface", "c7", "--attach-now"])
        .expect(1)
        .naming(foreign.name)
        .naming(foreign.id())
        .naming("c7");
    assert_eq!(snapshot(&host.ns), before);
    assert!(node.address("10.7.8.100").is_none());

    node.cli(&["online", "10.7.9.100/32", "--iface", "a7", "--attach-now"]).expect(0);
    let status = node.status();
    let carries = |name: &str| {
        let interfaces = status["interfaces"].as_array().expect("interfaces");
        interfaces.iter().any(|interface| interface["interface"] == name)
    };
    assert!(carries("eth0") && carries("a7") && !carries("c7"), "{status}");
    assert_eq!(node.address("10.7.9.100").expect("managed")["may_answer"], true);
}

const AS_NOBODY: [&str; 5] = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];

#[test]
fn whoever_may_not_use_the_socket_is_told_so_with_5() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let copy = ForAll::new(&node);
    for arguments in
        [&["status"][..], &["online", "10.7.0.100/24", "--iface", "eth0"], &["events"], &["unload"]]
    {
        copy.run(&node, &AS_NOBODY, arguments).expect(5).naming("control.sock");
    }
    assert!(node.address(ip(100)).is_none());
    let mode = |path: PathBuf| fs::metadata(path).expect("present").permissions().mode() & 0o777;
    assert_eq!(mode(node.folder().join("control.sock")), 0o600);
    assert_eq!(mode(node.folder()), 0o755);
}

#[test]
fn the_socket_group_may_use_the_socket() {
    let net = Net::new(1);
    let node = Node::start_with(
        net.host(0),
        &["--iface", "eth0", "--attach", "native", "--socket-group", "nogroup"],
    );
    let copy = ForAll::new(&node);
    copy.run(&node, &AS_NOBODY, &["status"]).expect(0);
    let mode = fs::metadata(node.folder().join("control.sock")).expect("present").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let node = Node::new(net.host(0));
    node.cli(&["run", "--iface", "eth0", "--socket-group", "no-such-group"]).naming("no-such-group");
}

#[test]
fn a_missing_capability_is_named_and_the_exit_code_is_5() {
    let net = Net::new(1);
    let node = Node::new(net.host(0));
    let copy = ForAll::new(&node);
    let before = snapshot(&node.host.ns);
    for missing in ["net_admin", "net_raw", "bpf"] {
        // Without CAP_SYS_ADMIN as well, which stands for CAP_BPF.
        let set = match missing {
            "bpf" => "-bpf,-sys_admin".to_owned(),
            other => format!("-{other}"),
        };
        let less = ["--bounding-set", &set, "--inh-caps", &set];
        copy.run(&node, &less, &["run", "--iface", "eth0"])
            .expect(5)
            .naming(format!("CAP_{}", missing.to_uppercase()));
        assert_eq!(snapshot(&node.host.ns), before);
    }
    let less = ["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];
    copy.run(&node, &less, &["probe", "10.7.0.100", "--iface", "eth0"]).expect(5).naming("CAP_NET_RAW");
    copy.run(&node, &AS_NOBODY, &["run", "--iface", "eth0"]).expect(5);
}

#[test]
fn a_daemon_that_may_not_start_leaves_no_files() {
    let net = Net::new(1);
    let node = Node::new(net.host(0));
    node.cli(&["run", "--iface", "eth7"]).expect(1);
    assert!(!node.folder().exists(), "{:?}", fs::read_dir(node.folder()).map(Iterator::count));
    // And the next one can.
    let mut node = Node::new(net.host(0));
    node.run(&["--iface", "eth0", "--attach", "native"]);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);
}

#[test]
fn a_native_program_on_a_veth_whose_answers_may_be_lost_is_warned_of_and_never_chosen() {
    let net = Net::without_peer_programs(2);
    let node = Node::start(net.host(0));
    wait_for("the warning", ms(2_000), || {
        node.log().contains("its answers are lost unless the peer carries an XDP program").then_some(())
    });
    let address = node.online(100);
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "1"], address).code, 1, "nothing comes back");
    drop(node);

    let node = Node::start_with(net.host(0), &["--iface", "eth0"]);
    assert_ne!(node.status()["interfaces"][0]["attach_mode"], "native");
    let address = node.online(101);
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
}
