//! The guard: no ARP frame that pairs an address that may not answer with an own MAC leaves the host, whoever
//! makes it: its kernel, a packet socket, a tool.

use std::{net::Ipv4Addr, time::Duration};

use arpwarden_common::{
    abi::{AddressKey, DEFAULT_CAPACITY, Slot},
    index::{self, Hash},
    names,
    net::{MacAddr, Vlan},
    state::{State, StateWord},
    wire::arp::{Form, Outgoing},
};
use arpwarden_tests::{
    kernel::{Said, Slots, XdpPass, detach_pinned, egress_programs},
    ms,
    netns::{Host, Net, ip, stranger},
    node::Node,
    prog_run::Buckets,
    tools::{
        arping, has_address, learn, neighbour, pings_from, traffic_control, wait_for_neighbour, xdp_program,
    },
    wait_for,
    wire::{Captured, Wire, announcement, boot_ns, bytes, marker, reply, request},
};
use aya::maps::{Array, Map, MapData};

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];

/// Tags that name no VLAN: priority tags of both types.
const PRIORITY: [[u8; 4]; 2] = [[0x81, 0x00, 0xe0, 0x00], [0x88, 0xa8, 0x00, 0x00]];

fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, tags.concat());
    frame
}

/// One frame of each kind that says that `address` is at `mac`.
fn in_the_name_of(address: Ipv4Addr, mac: MacAddr, other: &Host) -> Vec<Vec<u8>> {
    let who_has = request(mac, address, other.ip);
    let plain = [
        who_has,
        // As a kernel asks whether a neighbour is still there.
        Outgoing { destination: other.mac, ..who_has },
        announcement(mac, address),
        Outgoing::announcement_reply(mac, Vlan::UNTAGGED, address.into()),
        reply(mac, address, other.mac, other.ip),
        Outgoing { source: stranger(99), ..announcement(mac, address) },
    ]
    .map(|frame| bytes(&frame));
    let mut all = plain.to_vec();
    all.push(tagged(&plain[0], &PRIORITY[..1]));
    all.push(tagged(&plain[2], &PRIORITY[1..]));
    all.push(tagged(&plain[4], &[PRIORITY[1], PRIORITY[0]]));
    all
}

/// All that the host has sent up to now, but for IPv4; its daemon may be frozen or dead.
fn sent(host: &Host, tap: &Wire) -> Vec<Captured> {
    let last = marker(host.mac);
    host.wire().send(&last);
    let mut seen = tap.collect_until("the marker", ms(5_000), |frame| frame.bytes == last);
    seen.pop();
    // Nor what was sent to it, nor a late echo request of a ping.
    seen.retain(|frame| !frame.outgoing && frame.bytes[12..14] != [0x08, 0x00]);
    seen
}

/// What is at hand in every test: a node, and the far end of its cable.
struct Bench<'net> {
    node: Node<'net>,
    net: &'net Net,
    tap: Wire,
}

impl<'net> Bench<'net> {
    fn new(net: &'net Net) -> Self {
        // A tool may use a source address that is not configured.
        net.host(0).ns.sysctl("ipv4/ip_nonlocal_bind", "1");
        Self { node: Node::start(net.host(0)), net, tap: net.tap(0) }
    }

    fn other(&self) -> &'net Host {
        self.net.host(1)
    }

    /// Frames of the address that the guard has kept in, as the maps have it.
    fn guarded(&self, address: Ipv4Addr) -> u64 {
        let slot = Slots::pinned(&self.node.instance).number_of(address);
        Said::pinned(&self.node.instance).of(slot).guarded
    }

    /// Sends a frame of each kind, and asserts that none leaves and that each is counted.
    #[track_caller]
    fn all_stay_in(&self, address: Ipv4Addr) {
        let host = self.node.host;
        let before = self.guarded(address);
        sent(host, &self.tap);
        let frames = in_the_name_of(address, host.mac, self.other());
        let wire = host.wire();
        for frame in &frames {
            let refused = wire.offer(frame).expect_err("the frame leaves");
            assert_eq!(refused.raw_os_error(), Some(libc::ENOBUFS), "{refused}");
        }
        let seen = sent(host, &self.tap);
        assert_eq!(seen, [], "{address} is spoken for");
        assert_eq!(self.guarded(address) - before, frames.len() as u64, "frames of {address} kept in");
    }

    /// Sends a frame of each kind, and asserts that all leave as they are.
    #[track_caller]
    fn all_leave(&self, frames: &[Vec<u8>]) {
        let host = self.node.host;
        sent(host, &self.tap);
        let wire = host.wire();
        for frame in frames {
            wire.send(frame);
        }
        let seen: Vec<Vec<u8>> = sent(host, &self.tap).into_iter().map(|frame| frame.bytes).collect();
        assert_eq!(seen, frames);
    }

    /// Lets the kernel and arping look for a neighbour with the address as source, and returns what left the host
    /// in its name. The address must be configured.
    fn asked_by_the_kernel(&self, address: Ipv4Addr) -> Vec<Captured> {
        let (host, other) = (self.node.host, self.other());
        sent(host, &self.tap);
        host.ns.ip("neighbour flush dev eth0");
        pings_from(&host.ns, address, other.ip);
        host.ns
            .ip(&format!("route replace {0}/32 dev eth0 src {address}\nneighbour flush dev eth0", other.ip));
        // The route says from where; nobody names the address.
        let mut ping = host.ns.command("ping");
        ping.args(["-n", "-q", "-c", "1", "-W", "0.3", &other.ip.to_string()]);
        ping.output().expect("ping runs");
        host.ns.ip(&format!("route delete {}/32 dev eth0", other.ip));
        arping(host, &["-c", "1", "-w", "1", "-s", &address.to_string()], other.ip);
        let mut seen = sent(host, &self.tap);
        seen.retain(|frame| frame.says(address, host.mac));
        seen
    }

    /// Asserts that nothing of that leaves.
    #[track_caller]
    fn the_kernel_stays_in(&self, address: Ipv4Addr) {
        let before = self.guarded(address);
        assert_eq!(self.asked_by_the_kernel(address), [], "{address} is spoken for by the kernel");
        assert!(self.guarded(address) >= before + 3, "not all of it was tried");
    }

    fn stranger_claims(&self, address: Ipv4Addr) {
        self.other().wire().send(&bytes(&announcement(stranger(1), address)));
    }

    /// An address that a stranger has taken from us.
    fn lost(&self, last: u8) -> Ipv4Addr {
        let address = self.node.online_with(last, &["--defend", "yield"]);
        self.stranger_claims(address);
        self.node.wait_for_state(address, "lost", ms(5_000));
        let gone = || (!has_address(&self.node.host.ns, address)).then_some(());
        wait_for("the address to be gone", ms(5_000), gone);
        address
    }

    /// An address that the other host has.
    fn refused(&self, last: u8) -> Ipv4Addr {
        self.other().ns.ip(&format!("address add {}/24 dev eth0", ip(last)));
        self.node.try_online(last, &[]).expect(3);
        assert_eq!(self.node.state(ip(last)).as_deref(), Some("refused"));
        ip(last)
    }
}

#[test]
fn everything_in_the_name_of_an_address_of_ours_leaves() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let address = bench.node.online(100);
    bench.node.wait_for_state(address, "online", ms(10_000));
    bench.all_leave(&in_the_name_of(address, bench.node.host.mac, bench.other()));
    // What the tests below are about is seen on the wire here.
    assert!(bench.asked_by_the_kernel(address).len() >= 3);
    assert_eq!(bench.guarded(address), 0);
    assert_eq!(bench.node.counter(address, "guarded"), 0);
}

#[test]
fn nothing_in_the_name_of_a_refused_lost_or_suspended_address_leaves() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let suspended = bench.node.online_with(102, &["--lease", "0.3"]);
    let addresses = [bench.lost(100), bench.refused(101), suspended];
    bench.node.wait_for_state(suspended, "suspended", ms(5_000));
    let all_in = bench.node.status()["counters"]["guarded"].as_u64().expect("a counter");
    for address in addresses {
        bench.all_stay_in(address);
        let kept = bench.guarded(address);
        assert_eq!(bench.node.counter(address, "guarded"), kept, "status says what the maps say");
    }
    let kept: u64 = addresses.into_iter().map(|address| bench.guarded(address)).sum();
    assert_eq!(bench.node.status()["counters"]["guarded"], all_in + kept);
    // Somebody configures one all the same: his kernel speaks for it as of a right.
    let before = sent(bench.node.host, &bench.tap);
    assert_eq!(before, []);
    for address in addresses {
        bench.node.host.ns.ip(&format!("address add {address}/32 dev eth0"));
        bench.the_kernel_stays_in(address);
    }
}

#[test]
fn nothing_leaves_while_a_frozen_daemon_yields() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let address = bench.node.online(100);
    bench.node.freeze();
    Slots::pinned(&bench.node.instance).put_into(address, State::Yielding);
    assert!(has_address(&bench.node.host.ns, address));
    bench.all_stay_in(address);
    bench.the_kernel_stays_in(address);
}

#[test]
fn nothing_leaves_past_the_lease_of_a_frozen_daemon() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let address = bench.node.online_with(100, &["--lease", "1"]);
    bench.node.freeze();
    let slots = Slots::pinned(&bench.node.instance);
    let until_ns = slots.lease_until_ns(address);
    wait_for("the end of the lease", ms(3_000), || (boot_ns() > until_ns + 10_000_000).then_some(()));
    assert!(slots.state(address).may_answer(), "the daemon could not say otherwise");
    assert!(has_address(&bench.node.host.ns, address));
    bench.all_stay_in(address);
    bench.the_kernel_stays_in(address);
}

#[test]
fn nothing_leaves_after_the_program_has_given_an_address_up_for_a_frozen_daemon() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let address = bench.node.online_with(100, &["--defend", "yield"]);
    bench.node.freeze();
    bench.stranger_claims(address);
    let slots = Slots::pinned(&bench.node.instance);
    wait_for("the program to give up", ms(2_000), || (slots.fallen(address) != 0).then_some(()));
    assert!(has_address(&bench.node.host.ns, address));
    bench.all_stay_in(address);
    bench.the_kernel_stays_in(address);
}

#[test]
fn the_guard_holds_when_the_daemon_is_killed() {
    let net = Net::new(2);
    let mut bench = Bench::new(&net);
    let (lost, online, yielding) = (bench.lost(100), bench.node.online(101), bench.node.online(102));
    bench.node.kill();
    Slots::pinned(&bench.node.instance).put_into(yielding, State::Yielding);
    for address in [lost, yielding] {
        bench.all_stay_in(address);
    }
    bench.the_kernel_stays_in(yielding);
    bench.all_leave(&in_the_name_of(online, bench.node.host.mac, bench.other()));
}

#[test]
fn the_guard_holds_when_the_daemon_has_ended_and_kept_everything() {
    let net = Net::new(2);
    net.host(0).ns.sysctl("ipv4/ip_nonlocal_bind", "1");
    let node = Node::start_with(net.host(0), &[NATIVE, &["--on-exit", "keep"]].concat());
    let mut bench = Bench { node, net: &net, tap: net.tap(0) };
    let (lost, online) = (bench.lost(100), bench.node.online(101));
    bench.node.signal(libc::SIGTERM);
    assert_eq!(bench.node.wait_for_end(ms(10_000)), 0);
    bench.all_stay_in(lost);
    bench.all_leave(&in_the_name_of(online, bench.node.host.mac, bench.other()));
}

#[test]
fn an_address_that_is_being_probed_for_is_probed_for_and_not_spoken_for() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let _claim = bench.node.begin(&["online", "10.7.0.100/24", "--iface", "eth0", "--profile", "rfc5227"]);
    let probe = || {
        bench.tap.wait_for("a probe", ms(5_000), |frame| {
            !frame.outgoing
                && frame.is_arp(|arp| arp.form() == Form::Probe && arp.target_ip == ip(100).into())
        })
    };
    // Between two probes are one to two seconds: enough to see that nothing else leaves.
    probe();
    bench.all_stay_in(ip(100));
    probe();
    assert_eq!(bench.node.state(ip(100)).as_deref(), Some("probing"));
}

#[test]
fn what_is_not_our_business_leaves() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let own = bench.node.host.mac;
    let lost = bench.lost(100);
    bench.node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    // A watched address may be anybody's, ours too.
    bench.all_leave(&in_the_name_of(ip(150), own, bench.other()));
    // So may one that nobody has told us about.
    bench.all_leave(&in_the_name_of(ip(151), own, bench.other()));
    // A host behind this one has the address now.
    bench.all_leave(&in_the_name_of(lost, stranger(7), bench.other()));
    // A repair: the owner's MAC, from our interface.
    let repair = Outgoing { source: own, ..announcement(stranger(1), lost) };
    bench.all_leave(&[bytes(&repair)]);
    // The same address in a VLAN is another one.
    let in_vlan = bytes(&Outgoing { vlan: Vlan { outer: 5, inner: 0 }, ..announcement(own, lost) });
    bench.all_leave(&[in_vlan]);
    // A frame that is no ARP for IPv4 says nothing.
    let mut other_protocol = bytes(&announcement(own, lost));
    other_protocol[16..18].copy_from_slice(&[0x86, 0xdd]);
    bench.all_leave(&[other_protocol, bytes(&announcement(own, lost))[..30].to_vec()]);
    assert_eq!(bench.guarded(lost), 0);
}

/// Puts an address in a VLAN into the maps, for which there is no command yet.
fn put_into_the_maps(node: &Node, key: AddressKey, word: StateWord) {
    let open = |name: &str| MapData::from_pin(node.pins().join("maps").join(name)).expect("a pinned map");
    let number = DEFAULT_CAPACITY - 1;
    let AddressKey { interface, vlan, address } = key;
    let mut slots: Array<_, Slot> = Map::Array(open(names::SLOTS)).try_into().expect("an array");
    slots
        .set(number, Slot { word: word.bits(), interface, vlan, address, ..Slot::VACANT }, 0)
        .expect("the slot is written");
    let mut buckets = Buckets(Map::Array(open(names::INDEX)).try_into().expect("an array"));
    assert!(index::insert(&mut buckets, Hash::of(&key), number));
}

#[test]
fn an_address_in_a_vlan_is_kept_in_inside_its_tags_only() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let own = bench.node.host.mac;
    let index = bench.node.host.ns.index_of("eth0").expect("eth0");
    bench.node.freeze();
    for vlan in [Vlan { outer: 5, inner: 0 }, Vlan { outer: 5, inner: 6 }] {
        let key = AddressKey { interface: index, vlan, address: ip(100).into() };
        put_into_the_maps(&bench.node, key, StateWord::new(own, State::Lost, 0, 1));
        let (slots, said) = (Slots::pinned(&bench.node.instance), Said::pinned(&bench.node.instance));
        let slot = slots.number_of(ip(100));
        let before = said.of(slot).guarded;
        sent(bench.node.host, &bench.tap);
        let wire = bench.node.host.wire();
        let in_tags = |vlan| bytes(&Outgoing { vlan, ..announcement(own, ip(100)) });
        wire.offer(&in_tags(vlan)).expect_err("the frame leaves");
        assert_eq!(sent(bench.node.host, &bench.tap), []);
        assert_eq!(said.of(slot).guarded, before + 1);
        bench.all_leave(&[
            in_tags(Vlan::UNTAGGED),
            in_tags(Vlan { outer: 6, inner: 0 }),
            in_tags(Vlan { outer: 5, inner: 7 }),
        ]);
    }
}

#[test]
fn an_old_owner_does_not_steal_the_address_back_by_asking() {
    let net = Net::new(3);
    let (a, b) = (Node::start(net.host(0)), Node::start(net.host(1)));
    let client = net.host(2);
    let address = a.online(100);
    learn(&client.ns, address, a.host.mac);
    a.freeze();
    Slots::pinned(&a.instance).put_into(address, State::Yielding);
    b.online_with(100, &["--claim", "immediate"]);
    wait_for_neighbour(&client.ns, address, b.host.mac, ms(2_000));
    for _ in 0..3 {
        a.host.ns.ip("neighbour flush dev eth0");
        assert!(!pings_from(&a.host.ns, address, client.ip), "the old owner's traffic in its name flows");
        // The answer to a question of the client's own comes after whatever the old owner has sent.
        assert_eq!(arping(client, &["-c", "1", "-w", "2"], a.host.ip).code, 0);
        assert_eq!(neighbour(&client.ns, address), Some(b.host.mac));
    }
}

/// Whether the program and the guard are on the interface.
fn attached(host: &Host) -> (bool, bool) {
    (xdp_program(&host.ns, "eth0").is_some(), !egress_programs(&host.ns, "eth0").is_empty())
}

#[test]
fn program_and_guard_come_and_go_together() {
    let net = Net::new(1);
    let host = net.host(0);
    let before = traffic_control(&host.ns, "eth0");
    assert_eq!(attached(host), (false, false));
    let mut node = Node::start(host);
    assert_eq!(attached(host), (true, true));
    let status = node.status();
    assert_eq!(status["interfaces"][0]["program"], true);
    assert_eq!(status["interfaces"][0]["guard"], true);
    node.signal(libc::SIGTERM);
    assert_eq!(node.wait_for_end(ms(10_000)), 0);
    assert_eq!(attached(host), (false, false));
    assert_eq!(traffic_control(&host.ns, "eth0"), before);

    // Where the program cannot be, the guard is not either.
    let foreign = XdpPass::attach(&host.ns, "eth0");
    node.cli(&[&["run"], NATIVE].concat()).expect(1).naming(foreign.name);
    assert_eq!(xdp_program(&host.ns, "eth0"), Some(foreign.id()));
    assert!(egress_programs(&host.ns, "eth0").is_empty());
    assert_eq!(traffic_control(&host.ns, "eth0"), before);
}

#[test]
fn a_guard_that_somebody_takes_off_is_missed_and_put_back() {
    let net = Net::new(2);
    let bench = Bench::new(&net);
    let lost = bench.lost(100);
    let events = bench.node.events();
    let index = bench.node.host.ns.index_of("eth0").expect("eth0");
    detach_pinned(&bench.node.pins().join("links").join(format!("guard-{index}")));
    assert_eq!(attached(bench.node.host), (true, false));
    // The daemon looks every ten seconds.
    let within = Duration::from_secs(25);
    let missing = events.wait_for("the guard missed", within, |event| event["event"] == "program_missing");
    assert_eq!(missing.json["interface"], "eth0", "{missing:?}");
    assert_eq!(missing.json["reason"], "guard", "{missing:?}");
    let restored =
        events.wait_for("the guard again", ms(5_000), |event| event["event"] == "program_restored");
    assert_eq!(restored.json["interface"], "eth0", "{restored:?}");
    assert_eq!(attached(bench.node.host), (true, true));
    bench.all_stay_in(lost);
}

/// Takes the program off behind the daemon's back, and waits until it has noticed.
fn without_its_program(bench: &Bench<'_>) {
    let events = bench.node.events();
    let index = bench.node.host.ns.index_of("eth0").expect("eth0");
    detach_pinned(&bench.node.pins().join("links").join(format!("xdp-{index}")));
    let within = Duration::from_secs(25);
    let missing = events.wait_for("the program missed", within, |event| event["event"] == "program_missing");
    assert_eq!(missing.json["interface"], "eth0", "{missing:?}");
    assert_eq!(missing.json["reason"], "program", "{missing:?}");
}

fn is_answered_by_the_program(bench: &Bench<'_>, address: Ipv4Addr) {
    let before = bench.node.counter(address, "answered");
    assert_eq!(arping(bench.other(), &["-c", "1", "-w", "2"], address).code, 0);
    assert!(bench.node.counter(address, "answered") > before);
}

#[test]
fn a_native_program_that_somebody_takes_off_is_missed_and_comes_back_at_the_next_start() {
    let net = Net::new(2);
    let mut bench = Bench::new(&net);
    let (address, lost) = (bench.node.online(100), bench.lost(101));
    without_its_program(&bench);
    // Attaching could take the link down, which nobody has asked for. The kernel answers for what is configured,
    // and the guard goes on.
    assert_eq!(attached(bench.node.host), (false, true));
    assert_eq!(bench.node.status()["interfaces"][0]["program"], false);
    assert_eq!(arping(bench.other(), &["-c", "1", "-w", "2"], address).code, 0);
    bench.all_stay_in(lost);
    bench.node.kill();
    bench.node.run(NATIVE);
    assert_eq!(attached(bench.node.host), (true, true));
    is_answered_by_the_program(&bench, address);
}

#[test]
fn a_generic_program_that_somebody_takes_off_is_missed_and_put_back() {
    let net = Net::new(2);
    let node = Node::start_with(net.host(0), &["--iface", "eth0", "--attach", "generic"]);
    let bench = Bench { node, net: &net, tap: net.tap(0) };
    let address = bench.node.online(100);
    without_its_program(&bench);
    let events = bench.node.events();
    events.wait_for("the program again", ms(5_000), |event| event["event"] == "program_restored");
    assert_eq!(attached(bench.node.host), (true, true));
    is_answered_by_the_program(&bench, address);
}
