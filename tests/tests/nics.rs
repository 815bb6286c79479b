//! Real drivers of network cards, as far as QEMU plays the cards: which mode `auto` picks, that each mode answers or is
//! refused in words, and that a link which goes down and up again changes nothing. Run by `cargo xtask test --kernel
//! nics-6.12`, whose guest has a pair of cards on one wire for each kind: the card to be tried has an even last byte in its MAC,
//! the virtio card at the other end the next number. Skipped, and said so, where there is no such pair.

use std::{fs, io::Write as _, path::PathBuf};

use arpwarden_common::net::MacAddr;
use arpwarden_tests::{
    ms,
    netns::{Host, Netns, ip},
    node::Node,
    tools::{arping, different, mac, offloads, xdp_program},
    wait_for,
};
use aya::util::KernelVersion;
use std::sync::Mutex;

/// The beginning of the cards' MACs: QEMU's own (`52:54:00`), and three bytes that no card gets by itself.
const PREFIX: &str = "52:54:00:00:00:";

/// Cards are moved about: one test at a time.
static CARDS: Mutex<()> = Mutex::new(());

/// A card, and what is expected of it.
struct Card {
    driver: &'static str,
    /// Of several queues, as only a card on taps has.
    several_queues: bool,
    /// Whether its driver runs XDP on this kernel.
    native: bool,
    /// What `auto` picks.
    auto: &'static str,
    /// The MTU in bytes.
    mtu: u16,
}

/// One that has no XDP.
const fn without(driver: &'static str) -> Card {
    Card { driver, several_queues: false, native: false, auto: "tc", mtu: 1_500 }
}

/// One that has, and does it right.
const fn with(driver: &'static str, several_queues: bool) -> Card {
    Card { driver, several_queues, native: true, auto: "native", mtu: 1_500 }
}

fn is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().expect("the version of the kernel") >= KernelVersion::new(major, minor, 0)
}

#[test]
fn e1000_has_no_xdp_and_is_answered_on_by_tc() {
    each_mode_is_as_expected(&without("e1000"));
}

#[test]
fn e1000e_has_no_xdp_and_is_answered_on_by_tc() {
    each_mode_is_as_expected(&without("e1000e"));
}

#[test]
fn igb_is_answered_on_natively() {
    each_mode_is_as_expected(&with("igb", true));
}

/// Its driver takes no native program then, which `auto` learns when it tries.
#[test]
fn igb_with_long_frames_is_answered_on_by_tc() {
    each_mode_is_as_expected(&Card { native: false, auto: "tc", mtu: 9_000, ..with("igb", true) });
}

/// It has XDP since Linux 6.6 ("vmxnet3: Add XDP support"), but loses the program with its link, so `auto` leaves it
/// alone.
#[test]
fn vmxnet3_is_answered_on_by_tc() {
    each_mode_is_as_expected(&Card { native: is_at_least(6, 6), auto: "tc", ..with("vmxnet3", true) });
}

#[test]
fn virtio_with_one_queue_is_answered_on_natively() {
    each_mode_is_as_expected(&with("virtio_net", false));
}

#[test]
fn virtio_with_several_queues_is_answered_on_natively() {
    each_mode_is_as_expected(&with("virtio_net", true));
}

fn each_mode_is_as_expected(card: &Card) {
    let _only = CARDS.lock().unwrap_or_else(|broken| broken.into_inner());
    for mode in ["auto", "native", "generic", "tc"] {
        // Each time anew: a daemon finds the card as the kernel has made it.
        let Some((host, far)) = plugged(card) else { return };
        let what = format!("{} in mode {mode}", card.driver);
        let picked = if mode == "auto" { card.auto } else { mode };
        let mut node = Node::new(&host);
        if picked == "native" && !card.native {
            node.spawn(&["--iface", "eth0", "--attach", mode]);
            assert_eq!(node.wait_for_end(ms(60_000)), 1, "{what}; the log: {}", node.log());
            assert!(node.log().contains("--attach"), "{what}: {}", node.log());
            assert_eq!(xdp_program(&host.ns, "eth0"), None, "{what}");
            continue;
        }
        let before = offloads(&host);
        node.run(&["--iface", "eth0", "--attach", mode]);
        let status = node.status();
        assert_eq!(status["interfaces"][0]["attach_mode"], picked, "{what}: {status}");
        let changed = different(&before, &offloads(&host));
        tell(&format!("offloads: {} in mode {picked} changes {changed:?}", described(card)));
        // A driver that sets its rings up anew has no link for a while.
        wait_for("the link after attaching", ms(30_000), || carries(&host).then_some(()));
        let address = node.online(100);
        assert_answered(&far, &node, &what);
        if mode == "auto" {
            host.ns.ip("link set eth0 down\n");
            node.wait_for_state(address, "suspended", ms(10_000));
            host.ns.ip("link set eth0 up\n");
            wait_for("the link", ms(30_000), || carries(&host).then_some(()));
            wait_for("the address to be answered again", ms(30_000), || {
                let state = node.state(address);
                matches!(state.as_deref(), Some("announcing" | "online")).then_some(())
            });
            assert_answered(&far, &node, &format!("{what}, after its link came back"));
            let status = node.status();
            assert!(status["interfaces"][0]["program"] == true, "{what}: {status}");
        }
        let answered = node.counter(address, "answered");
        tell(&format!("card: {} {mode} {picked} answered {answered}", described(card)));
        node.signal(libc::SIGTERM);
        assert_eq!(node.wait_for_end(ms(30_000)), 0, "{what}; the log: {}", node.log());
        assert_eq!(xdp_program(&host.ns, "eth0"), None, "{what}");
        assert_eq!(different(&before, &offloads(&host)), [""; 0], "{what}: offloads that did not come back");
    }
}

/// Three requests from the other end, all answered by the program with the card's MAC, and by nobody else.
fn assert_answered(far: &Host, node: &Node<'_>, what: &str) {
    let before = node.counter(ip(100), "answered");
    let ended = arping(far, &["-c", "3", "-w", "10"], ip(100));
    assert_eq!(ended.code, 0, "{what}: {}; the log: {}", ended.said, node.log());
    let mac = node.host.mac.to_string().to_uppercase();
    assert_eq!(ended.said.matches(&mac).count(), 3, "{what}: {}", ended.said);
    assert!(ended.said.contains("Received 3 response(s)"), "{what}: {}", ended.said);
    let by_us = node.counter(ip(100), "answered") - before;
    assert_eq!(by_us, 3, "{what}: answers of the program; {}", node.status());
}

fn carries(host: &Host) -> bool {
    host.ns.enter(|| {
        // Of this thread's network namespace, unlike what is mounted at /sys.
        let mut ip = std::process::Command::new("ip");
        let output = ip.args(["link", "show", "dev", "eth0"]).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).contains("LOWER_UP")
    })
}

/// Two hosts, each with one of the cards of a pair as its `eth0`, up. They give the cards back when they end.
fn plugged(card: &Card) -> Option<(Host, Host)> {
    // A card comes back from a namespace that has ended a moment later.
    let deadline = std::time::Instant::now() + ms(3_000);
    let (name, peer, near_mac) = loop {
        match pair(card) {
            Some(found) => break found,
            None if std::time::Instant::now() > deadline => {
                tell(&format!("skipped: no card with the driver {} here", described(card)));
                return None;
            }
            None => std::thread::sleep(ms(20)),
        }
    };
    let far_mac = mac_of(&peer);
    let (near, far) = (Netns::new(), Netns::new());
    for (device, ns) in [(&name, &near), (&peer, &far)] {
        let mut command = std::process::Command::new("ip");
        command.args(["link", "set", "dev", device, "netns"]).arg(ns.path()).args(["name", "eth0"]);
        arpwarden_tests::tools::run(command);
    }
    near.ip(&format!("link set eth0 mtu {}\n", card.mtu));
    let host = |ns: Netns, mac: MacAddr, number: u8| {
        ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0\n", ip(number)));
        Host { ns, mac, ip: ip(number), port: "eth0".into() }
    };
    let (host, far) = (host(near, near_mac, 1), host(far, far_mac, 2));
    for end in [&host, &far] {
        wait_for("the link", ms(30_000), || carries(end).then_some(()));
    }
    Some((host, far))
}

/// The names of a card and its peer, and the card's MAC.
fn pair(card: &Card) -> Option<(String, String, MacAddr)> {
    let devices: Vec<(String, String)> = fs::read_dir("/sys/class/net")
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let address = fs::read_to_string(path.join("address")).ok()?;
            Some((path.file_name()?.to_str()?.to_owned(), address.trim().strip_prefix(PREFIX)?.to_owned()))
        })
        .collect();
    devices.iter().find_map(|(name, number)| {
        let number = u8::from_str_radix(number, 16).ok().filter(|number| number % 2 == 0)?;
        let folder = PathBuf::from("/sys/class/net").join(name);
        let driver = fs::read_link(folder.join("device/driver")).ok()?;
        let queues = fs::read_dir(folder.join("queues"))
            .ok()?
            .filter_map(|queue| queue.ok()?.file_name().to_str().map(|name| name.starts_with("rx-")));
        let several = queues.filter(|is_rx| *is_rx).count() > 1;
        let is_meant = driver.file_name()? == card.driver
            && (card.driver != "virtio_net" || several == card.several_queues);
        let peer = format!("{:02x}", number + 1);
        let (peer, _) = devices.iter().find(|(_, number)| *number == peer)?;
        is_meant.then(|| (name.clone(), peer.clone(), mac_of(name)))
    })
}

fn mac_of(device: &str) -> MacAddr {
    let file = format!("/sys/class/net/{device}/address");
    mac(fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim())
}

fn described(card: &Card) -> String {
    match (card.driver, card.several_queues, card.mtu) {
        ("virtio_net", true, _) => "virtio_net with several queues".into(),
        (driver, _, 1_500) => driver.into(),
        (driver, _, mtu) => format!("{driver} at an MTU of {mtu}"),
    }
}

/// Past the capture of the test harness.
fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}
