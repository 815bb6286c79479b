//! Network cards as a guest has them: pairs on a wire of their own, each card with a MAC of [`PREFIX`]. The first one of a
//! pair, which is to be tried, has an even last byte; its peer, a virtio card, the next number.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use arpwarden_common::net::MacAddr;

use crate::{
    ms,
    netns::{Host, Netns, ip},
    tell,
    tools::{mac, run},
    wait_for,
};

/// The beginning of the cards' MACs: QEMU's own (`52:54:00`), and two bytes that no card gets by itself.
const PREFIX: &str = "52:54:00:00:00:";

/// Cards are moved about: one test at a time.
static CARDS: Mutex<()> = Mutex::new(());

/// Two hosts, each with one of the cards of a pair as its `eth0`, up. They give the cards back when they end.
#[derive(Debug)]
pub struct Plugged {
    /// With the card that is to be tried.
    pub near: Host,
    /// With its peer.
    pub far: Host,
    _only: MutexGuard<'static, ()>,
}

/// Takes the pair whose first card has this driver. Those of virtio have one queue or several. Says loudly if there is
/// none, in these words.
pub fn plugged(driver: &str, several_queues: bool, described: &str, mtu: u16) -> Option<Plugged> {
    let only = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    // A card comes back from a namespace that has ended a moment later.
    let deadline = Instant::now() + ms(3_000);
    let (name, peer) = loop {
        match pair(driver, several_queues) {
            Some(found) => break found,
            None if Instant::now() > deadline => {
                tell(&format!("skipped: no card with the driver {described} here"));
                return None;
            }
            None => std::thread::sleep(ms(20)),
        }
    };
    let [near_mac, far_mac] = [&name, &peer].map(|device| mac_of(device));
    let (near, far) = (Netns::new(), Netns::new());
    for (device, ns) in [(&name, &near), (&peer, &far)] {
        let mut command = Command::new("ip");
        command.args(["link", "set", "dev", device, "netns"]).arg(ns.path()).args(["name", "eth0"]);
        run(command);
    }
    near.ip(&format!("link set eth0 mtu {mtu}\n"));
    let host = |ns: Netns, mac: MacAddr, number: u8| {
        ns.ip(&format!("link set eth0 up\naddress add {}/24 dev eth0\n", ip(number)));
        Host { ns, mac, ip: ip(number), port: "eth0".into() }
    };
    let (near, far) = (host(near, near_mac, 1), host(far, far_mac, 2));
    for end in [&near, &far] {
        wait_for_link(end);
    }
    Some(Plugged { near, far, _only: only })
}

/// Waits until `eth0` has its link: a driver that sets its rings up anew has none for a while.
pub fn wait_for_link(host: &Host) {
    let has_link = || {
        // Of this thread's network namespace, unlike what is mounted at /sys.
        let mut command = host.ns.command("ip");
        command.args(["link", "show", "dev", "eth0"]);
        run(command).contains("LOWER_UP").then_some(())
    };
    wait_for("the link", ms(30_000), has_link);
}

/// The names of a card and its peer.
fn pair(driver: &str, several_queues: bool) -> Option<(String, String)> {
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
        let its = fs::read_link(folder.join("device/driver")).ok()?;
        let queues = fs::read_dir(folder.join("queues"))
            .ok()?
            .filter_map(|queue| queue.ok()?.file_name().to_str().map(|name| name.starts_with("rx-")));
        let several = queues.filter(|is_rx| *is_rx).count() > 1;
        let is_meant = its.file_name()? == driver && (driver != "virtio_net" || several == several_queues);
        let peer = format!("{:02x}", number + 1);
        let (peer, _) = devices.iter().find(|(_, number)| *number == peer)?;
        is_meant.then(|| (name.clone(), peer.clone()))
    })
}

fn mac_of(device: &str) -> MacAddr {
    let file = format!("/sys/class/net/{device}/address");
    mac(fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim())
}
