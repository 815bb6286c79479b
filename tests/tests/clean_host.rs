//! After a daemon that ends in order the host is as it was. How it is after a crash: `adoption`.

use arpwarden_tests::{
    kernel::{egress_programs, ingress_programs},
    ms,
    netns::{Host, Net, ip},
    node::Node,
    tools::{addresses, arping, run, snapshot},
    wait_for,
};

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];
const TC: &[&str] = &["--iface", "eth0", "--attach", "tc"];
const GENERIC: &[&str] = &["--iface", "eth0", "--attach", "generic"];

/// Names of the programs and maps of this kernel that look like ours and belong to the process.
fn bpf_objects(pid: u32) -> usize {
    let folder = format!("/proc/{pid}/fdinfo");
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter(|text| text.contains("map_id:") || text.contains("prog_id:")).count()
}

/// Whether a program is on the interface of the host.
fn programs(host: &Host) -> bool {
    let mut command = host.ns.command("ip");
    command.args(["link", "show", "dev", "eth0"]);
    run(command).contains("xdp")
        || !ingress_programs(&host.ns, "eth0").is_empty()
        || !egress_programs(&host.ns, "eth0").is_empty()
}

fn as_it_was(arguments: &[&str], end: impl Fn(&mut Node)) {
    let net = Net::new(2);
    let host = net.host(0);
    // Something of somebody else's, which must stay: an address of the same subnet, one of another.
    host.ns.ip("address add 10.7.0.50/24 dev eth0\naddress add 10.9.0.1/16 dev eth0");
    let before = snapshot(&host.ns);
    let mut node = Node::start_with(host, arguments);
    node.online(100);
    node.cli(&["online", "10.8.0.1/24", "10.9.0.9/32", "--iface", "eth0"]).expect(0);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    assert_eq!(addresses(&host.ns).len(), 6);
    assert!(programs(host));
    let pid = node.pid();
    assert!(bpf_objects(pid) > 0);

    end(&mut node);
    assert_eq!(node.wait_for_end(ms(15_000)), 0, "{}", node.log());
    assert_eq!(snapshot(&host.ns), before);
    assert!(!programs(host));
    assert!(!node.folder().exists(), "files are left in {}", node.folder().display());
    assert_eq!(bpf_objects(pid), 0);
    assert!(!node.pins().exists(), "pins are left in {}", node.pins().display());
    // Nobody answers any more.
    assert_eq!(arping(net.host(1), &["-D", "-c", "1", "-w", "1"], ip(100)).code, 0);
    // And it can be done again.
    node.run(arguments);
    node.online(100);
}

#[test]
fn after_unload_the_host_is_as_it_was() {
    as_it_was(NATIVE, |node| {
        node.cli(&["unload"]).expect(0);
    });
}

#[test]
fn after_sigterm_the_host_is_as_it_was() {
    as_it_was(NATIVE, |node| node.signal(libc::SIGTERM));
}

#[test]
fn after_sigint_the_host_is_as_it_was() {
    as_it_was(GENERIC, |node| node.signal(libc::SIGINT));
}

#[test]
fn after_unload_and_sigterm_in_tc_mode_the_host_is_as_it_was() {
    as_it_was(TC, |node| {
        node.cli(&["unload"]).expect(0);
    });
    as_it_was(TC, |node| node.signal(libc::SIGTERM));
}

#[test]
fn an_address_is_silent_before_it_leaves_the_interface() {
    let net = Net::new(2);
    let mut node = Node::start(net.host(0));
    let address = node.online(100);
    node.wait_for_state(address, "online", ms(10_000));
    let tap = net.tap(0);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);
    assert_eq!(arping(net.host(1), &["-D", "-c", "1", "-w", "1"], address).code, 0);
    let seen = tap.drain();
    assert!(!seen.iter().any(|frame| !frame.outgoing && frame.says(address, node.host.mac)), "{seen:#?}");
}

#[test]
fn releasing_a_primary_address_leaves_its_secondaries() {
    let net = Net::new(1);
    let host = net.host(0);
    let node = Node::start(host);
    // promote_secondaries is off by default: deleting a primary takes its secondaries along.
    host.ns.sysctl("ipv4/conf/eth0/promote_secondaries", "0");
    node.cli(&["online", "10.8.0.1/24", "--iface", "eth0"]).expect(0);
    host.ns.ip("address add 10.8.0.2/24 dev eth0\naddress add 10.8.0.3/24 dev eth0");
    let done = node.cli(&["offline", "10.8.0.1"]);
    let after = addresses(&host.ns);
    let kept = [(std::net::Ipv4Addr::new(10, 8, 0, 2), 24), (std::net::Ipv4Addr::new(10, 8, 0, 3), 24)];
    for address in kept {
        assert!(after.contains(&address), "{after:?}; the command said {done:?}");
    }
}

#[test]
fn an_interface_that_disappears_takes_nothing_else_along() {
    let net = Net::new(2);
    let host = net.host(0);
    host.ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up");
    let mut node = Node::start_with(host, &["--iface", "eth0", "--iface", "a7", "--attach", "generic"]);
    let address = node.online(100);
    node.cli(&["online", "10.7.9.100/32", "--iface", "a7"]).expect(0);
    host.ns.ip("link delete a7");
    wait_for("the daemon to notice", ms(3_000), || {
        let gone = |entry: &serde_json::Value| entry["may_answer"] != true;
        node.address("10.7.9.100").is_none_or(|entry| gone(&entry)).then_some(())
    });
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], address).code, 0);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0, "{}", node.log());
}
