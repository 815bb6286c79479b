//! What stays when a daemon goes, and what the next one makes of it.

use std::{fs, path::PathBuf, process::Command};

use arpwarden_common::{
    abi::{DEFAULT_CAPACITY, Group},
    index::{self, Hash},
    names,
    state::Policy,
};
use aya::maps::Array;

use super::{
    super::{super::tc, pins::LinkName, sys},
    wire::{NEIGHBOUR, Wire},
    *,
};

/// The MAC of the interface of this name.
fn mac_of(name: &str) -> MacAddr {
    link_now(index_of(name)).unwrap().unwrap().mac.unwrap()
}

fn index_of(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// An address on `a`.
fn on_a(number: u32) -> AddressKey {
    AddressKey { interface: index_of("a"), ..key(number) }
}

fn word(state: State, flags: u8, generation: u8) -> StateWord {
    StateWord::new(mac_of("a"), state, flags, generation)
}

/// Makes a datapath answer on `a`.
fn carry(datapath: &mut Datapath) {
    carry_in(datapath, Mode::Generic);
}

fn carry_in(datapath: &mut Datapath, mode: Mode) {
    let (index, mac) = (index_of("a"), mac_of("a"));
    datapath.set_port(index, Port::accepting(mac, index)).unwrap();
    datapath.set_own_macs(&BTreeSet::from([mac])).unwrap();
    datapath.attach(index, "a", mode).unwrap();
}

#[test]
fn what_is_dropped_goes_on_answering_and_is_taken_over() {
    for (mode, way) in [
        (Mode::Generic, TcWay::Tcx),
        (Mode::Tc, TcWay::Tcx),
        (Mode::Generic, TcWay::Clsact),
        (Mode::Tc, TcWay::Clsact),
    ] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        goes_on_and_is_taken_over(mode, way);
    }
}

fn goes_on_and_is_taken_over(mode: Mode, way: TcWay) {
    let (scratch, wire) = (Scratch::new(), Wire::on("b"));
    let mut first = scratch.begin();
    first.tc_way = way;
    carry_in(&mut first, mode);
    let online = word(State::Online, StateWord::LOCAL | Policy::Hold.flags(), 7);
    let watched = word(State::Watched, 0, 0);
    let slots = [(5, online), (6, watched), (0x1_0005, online)]
        .map(|(number, word)| (number, word, first.install(on_a(number), word).unwrap()));
    first.store_lease(&on_a(5), u64::MAX).unwrap();
    first.set_slot_group(&on_a(6), 3).unwrap();
    assert!(first.set_group(3, Group { word: Group::ANSWERS, lease_until_ns: 99 }));
    first.beat(1_234, 56);
    assert!(wire.asks(on_a(5).address));
    wire.send(&Outgoing::announcement(NEIGHBOUR, NEIGHBOUR, Vlan::UNTAGGED, on_a(6).address));
    first.keep();

    assert!(wire.asks(on_a(5).address));
    assert!(!wire.asks(on_a(6).address));

    let (mut second, left) = scratch.adopt();
    second.tc_way = way;
    let expected: Vec<_> = slots
        .map(|(number, word, slot)| {
            let lease_until_ns = if number == 5 { u64::MAX } else { 0 };
            (on_a(number), slot, word, lease_until_ns, if number == 6 { 3 } else { 0 })
        })
        .into_iter()
        .collect();
    let found: Vec<_> = left
        .addresses
        .iter()
        .map(|kept| (kept.key, kept.slot, kept.word, kept.lease_until_ns, kept.group))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(left.addresses[1].claims.owner, NEIGHBOUR);
    assert_eq!(left.heartbeat_ns, 1_234);
    let live = KeptLink { index: index_of("a"), mode: Some(mode), guard: true, state: LinkState::Live };
    assert_eq!(left.links, [live]);
    assert_eq!(second.group(3), Some(Group { word: Group::ANSWERS, lease_until_ns: 99 }));
    assert_eq!(second.verify(index_of("a")).unwrap(), Presence { program: true, guard: true });
    let again = second.attach(index_of("a"), "a", mode);
    assert!(matches!(again, Err(AttachError::AlreadyAttached { .. })), "{again:?}");

    // It is in charge of all of it: the words, what was counted, the slots, the index, the MACs.
    assert!(wire.asks(on_a(5).address));
    assert_eq!(second.address_counters(&on_a(5)).unwrap().1.answered, 3);
    second.store(&on_a(5), word(State::Yielding, 0, 7)).unwrap();
    assert!(!wire.asks(on_a(5).address));
    second.remove(&on_a(5)).unwrap();
    assert!(wire.asks(on_a(0x1_0005).address));
    let slot = second.install(on_a(8), online).unwrap();
    assert!(slots.iter().all(|(_, _, taken)| *taken != slot));
    assert!(wire.asks(on_a(8).address));
    assert_eq!(second.own, BTreeSet::from([mac_of("a")]));
    second.remove_all().unwrap();
    assert_eq!(all_on(index_of("a")), (None, [vec![], vec![]]));
    assert!(!tc::has_clsact(index_of("a")).unwrap());
    assert!(!scratch.0.exists());
    assert!(!wire.asks(on_a(8).address));
}

#[test]
fn programs_are_swapped_under_a_flood_without_a_lost_answer() {
    /// The verifier takes a second or two for each on a busy machine.
    const SWAPS: usize = 3;
    for (mode, way) in [
        (Mode::Generic, TcWay::Tcx),
        (Mode::Native, TcWay::Tcx),
        (Mode::Tc, TcWay::Tcx),
        (Mode::Tc, TcWay::Clsact),
    ] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let (scratch, peer) = (Scratch::new(), Scratch::new());
        let mut datapath = scratch.begin();
        datapath.tc_way = way;
        carry_in(&mut datapath, mode);
        let mut peer = peer.begin();
        if mode == Mode::Native {
            // Native answers of a veth reach a peer that has a program as well.
            peer.attach(index_of("b"), "b", Mode::Native).unwrap();
        }
        datapath.install(on_a(5), word(State::Online, StateWord::LOCAL, 1)).unwrap();
        drop(datapath);
        let flood = Wire::on("b").flood(on_a(5).address);
        let mut programs = BTreeSet::new();
        for _ in 0..SWAPS {
            let (datapath, left) = scratch.adopt();
            assert_eq!(left.links[0].mode, Some(mode));
            let (xdp, [ingress, _]) = all_on(index_of("a"));
            programs.insert((xdp.map(|xdp| xdp.id), ingress));
            datapath.keep();
        }
        let (requests, answers) = flood.end();
        assert_eq!(programs.len(), SWAPS);
        assert!(requests > 1_000, "{requests}");
        assert_eq!(answers, requests);
        peer.remove_all().unwrap();
    }
}

/// Puts a map of another size in the place of a pinned one.
fn replace_pin(pins: &Pins, map: &str) {
    let other = Array::<_, u64>::create(3, 0).unwrap();
    fs::remove_file(pins.map(map)).unwrap();
    other.pin(pins.map(map)).unwrap();
}

#[test]
fn a_changed_layout_is_refused_in_words_and_goes_on_answering() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let (scratch, wire) = (Scratch::new(), Wire::on("b"));
    let mut datapath = scratch.begin();
    carry(&mut datapath);
    datapath.install(on_a(5), word(State::Online, StateWord::LOCAL, 1)).unwrap();
    let refused = |reason: &str| {
        let error = Datapath::open(&scratch.0, 0, DEFAULT_CAPACITY).err().expect("refused").to_string();
        assert!(error.contains(reason) && error.contains("unload"), "{error}");
        assert!(scratch.0.left().is_err());
        assert!(wire.asks(on_a(5).address));
        assert_eq!(scratch.0.link_names().unwrap()[0], LinkName::Xdp(index_of("a")));
    };

    let layout = |version: u64| {
        datapath.tables.control().unwrap().layout.store(version, Ordering::Relaxed);
    };
    layout(u64::from(abi::ABI_VERSION) + 1);
    refused("has layout version");
    layout(0);
    refused("never finished");
    layout(abi::ABI_VERSION.into());
    replace_pin(&scratch.0, names::CLAIMS);
    refused(names::CLAIMS);
    fs::remove_file(scratch.0.map(names::CLAIMS)).unwrap();
    refused(names::CLAIMS);
    replace_pin(&scratch.0, names::CONTROL);
    refused("CONTROL");
    drop(datapath);

    scratch.0.unload().unwrap();
    assert!(!wire.asks(on_a(5).address));
    assert_eq!(link_now(index_of("a")).unwrap().unwrap().xdp, None);
}

#[test]
fn a_beginning_without_anything_attached_is_begun_anew() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let scratch = Scratch::new();
    let datapath = scratch.begin();
    datapath.tables.control().unwrap().layout.store(0, Ordering::Relaxed);
    drop(datapath);
    drop(scratch.begin());
    // A clean-up that was interrupted: the maps' pins go in any order, but this one goes first.
    fs::remove_file(scratch.0.map(names::CONTROL)).unwrap();
    drop(scratch.begin());
    for map in names::PINNED.iter().skip(3) {
        fs::remove_file(scratch.0.map(map)).unwrap();
    }
    drop(scratch.begin());
    // Pinned, and nothing attached: taken over.
    let (_datapath, left) = scratch.adopt();
    assert_eq!(left, Leftover::default());
}

#[test]
fn a_link_whose_interface_has_gone_is_dead_and_unpinned() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.begin();
    carry(&mut datapath);
    let index = index_of("a");
    drop(datapath);
    own_network::ip("link del dev a");
    let (mut datapath, left) = scratch.adopt();
    let state = LinkState::Dead(Missing::InterfaceGone);
    assert_eq!(left.links, [KeptLink { index, mode: None, guard: false, state }]);
    assert_eq!(scratch.0.link_names().unwrap(), []);
    assert_eq!(datapath.verify(index).unwrap(), Presence { program: false, guard: false });
    let error = datapath.attach(index, "a", Mode::Generic).unwrap_err();
    assert!(matches!(error, AttachError::NoSuchInterface { .. }), "{error:?}");
    datapath.detach(index).unwrap();
}

#[test]
fn an_interface_in_another_namespace_is_let_go() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.begin();
    carry(&mut datapath);
    let index = index_of("a");
    drop(datapath);
    let mut other = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
    let there = |path: PathBuf| fs::read_link(path).unwrap();
    let ours = there("/proc/thread-self/ns/net".into());
    own_network::wait_until("a namespace", || there(format!("/proc/{}/ns/net", other.id()).into()) != ours);
    own_network::ip(&format!("link set dev a netns {}", other.id()));
    let (_datapath, left) = scratch.adopt();
    let [link] = &left.links[..] else { panic!("{:?}", left.links) };
    assert_eq!(link.state, LinkState::Dead(Missing::InterfaceMoved));
    assert_eq!((link.index, link.mode, link.guard), (index, None, false));
    assert_eq!(scratch.0.link_names().unwrap(), []);
    let output = Command::new("nsenter")
        .args(["--net", "-t", &other.id().to_string(), "ip", "link"])
        .output()
        .unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("a@") && !shown.contains("xdp"), "{shown}");
}

#[test]
fn another_s_program_in_the_place_of_ours_is_told_and_left() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let (scratch, theirs) = (Scratch::new(), Scratch::new());
    let index = index_of("a");
    let mut datapath = scratch.begin();
    carry(&mut datapath);
    sys::Link::open(&scratch.0.link(LinkName::Xdp(index))).unwrap().detach().unwrap();
    assert!(!datapath.verify(index).unwrap().program);
    let mut theirs = theirs.begin();
    theirs.want(Mode::Generic).unwrap();
    let program = theirs.responder_fd(Mode::Generic).unwrap();
    let theirs = sys::Link::create(program, index, sys::Hook::Generic).unwrap();
    let there = link_now(index).unwrap().unwrap().xdp;
    drop(datapath);

    let (mut datapath, left) = scratch.adopt();
    let [link] = &left.links[..] else { panic!("{:?}", left.links) };
    assert_eq!(link.state, LinkState::Dead(Missing::Detached));
    assert_eq!(link.mode, None);
    let error = datapath.attach(index, "a", Mode::Generic).unwrap_err();
    assert!(matches!(error, AttachError::OtherInstance { .. }), "{error:?}");
    assert_eq!(link_now(index).unwrap().unwrap().xdp, there);
    theirs.detach().unwrap();
    datapath.attach(index, "a", Mode::Generic).unwrap();
    assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
}

#[test]
fn what_an_interrupted_change_has_left_is_put_right() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    let slots = [5, 6, 7, 8].map(|number| datapath.install(key(number), online(1)).unwrap());
    let tables = &mut datapath.tables;
    // An address whose slot is vacant, one whose slot is another's, one that is out of range.
    tables.slots.get(slots[0]).unwrap().store(StateWord::VACANT);
    let hashes = [5, 6, 7, 8, 9, 10].map(|number| Hash::of(&key(number)));
    assert!(index::insert(&mut tables.index, hashes[4], slots[1]));
    assert!(index::insert(&mut tables.index, hashes[5], DEFAULT_CAPACITY));
    // Slots that nothing leads to, one that two entries lead to.
    index::remove(&mut tables.index, hashes[2], slots[2], |_| None);
    tables.slots.get(900).unwrap().fill(&key(11), online(1));
    assert!(index::insert(&mut tables.index, hashes[3], slots[3]));
    assert_eq!(tables.entries().len(), 6);
    assert_eq!(show(&mut datapath, &who_has(8)), TX);
    drop(datapath);

    let (mut datapath, left) = scratch.adopt();
    let keys: Vec<_> = left.addresses.iter().map(|kept| (kept.key, kept.slot)).collect();
    assert_eq!(keys, [(key(6), slots[1]), (key(8), slots[3])]);
    for (number, action) in [(5, PASS), (6, TX), (7, PASS), (8, TX), (9, PASS), (10, PASS), (11, PASS)] {
        assert_eq!(show(&mut datapath, &who_has(number)), action, "{number}");
    }
    assert_eq!(datapath.tables.entries().len(), 2);
    let words = datapath.tables.slots.all().iter().filter(|slot| slot.word() != StateWord::VACANT);
    assert_eq!(words.count(), 2);
    assert_eq!((datapath.free.len(), datapath.fresh), (2, 4));
    for number in [5, 7, 9, 11] {
        datapath.install(key(number), online(2)).unwrap();
        assert_eq!(show(&mut datapath, &who_has(number)), TX, "{number}");
    }
}

#[test]
fn frames_that_no_event_has_told_are_known_to_the_next_one() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    // One that the program defends: of one that it leaves to user space every claim is told.
    let held = StateWord::new(OWN, State::Online, StateWord::LOCAL | Policy::Hold.flags(), 1);
    datapath.install(key(5), held).unwrap();
    datapath.install(key(6), online(1)).unwrap();
    // Repeats of one claimant are folded: of a thousand in a second a few are told.
    for _ in 0..1_000 {
        show(&mut datapath, &claim(5));
    }
    let mut events = datapath.take_events();
    let told: u64 = std::iter::from_fn(|| events.next()).map(|event| event.unwrap().count).sum();
    assert!((1..1_000).contains(&told), "{told}");
    drop((events, datapath));
    let (_datapath, left) = scratch.adopt();
    let untold: Vec<_> = left.addresses.iter().map(|kept| kept.untold).collect();
    assert_eq!(untold, [1_000 - told, 0]);
}

#[test]
fn the_permit_to_defend_is_given_once_an_interval_and_written_down() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    const INTERVAL: u64 = 10_000;
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    assert!(!datapath.take_defence(&key(5), 1, INTERVAL));
    let budget = Port { moves: 4, moves_window_s: 180, ..Port::accepting(OWN, INDEX) };
    datapath.set_port(INDEX, budget).unwrap();
    let slot = datapath.install(key(5), online(1)).unwrap();
    let mut given = Vec::new();
    for now in (1_000..120_000).step_by(1_000) {
        if datapath.take_defence(&key(5), now, INTERVAL) {
            given.push(now);
        }
    }
    assert_eq!(given, (1_000..120_000).step_by(10_000).collect::<Vec<_>>());
    let defended_ns = |datapath: &Datapath, slot| datapath.tables.slots.get(slot).unwrap().read().defended_ns;
    assert_eq!(defended_ns(&datapath, slot), 111_000);
    given.reverse();
    assert_eq!(datapath.tables.moves(slot).unwrap(), given[..abi::MOVES]);
    // The program's clock may be a jiffy behind: then its defence is younger than now.
    assert!(!datapath.take_defence(&key(5), 110_999, INTERVAL));
    // The next address in the slot begins anew.
    datapath.remove(&key(5)).unwrap();
    datapath.fresh = datapath.capacity();
    assert_eq!(datapath.install(key(6), online(1)).unwrap(), slot);
    assert_eq!(defended_ns(&datapath, slot), 0);
    assert_eq!(datapath.tables.moves(slot), Some([0; abi::MOVES]));
    assert!(datapath.take_defence(&key(6), 112_000, INTERVAL));
}

#[test]
fn what_fell_under_a_generation_stays_silent_until_that_generation_comes_round() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    let slot = datapath.install(key(5), online(1)).unwrap();
    datapath.tables.slots.get(slot).unwrap().fall(online(1).mark());
    assert!(datapath.has_fallen(&key(5)));
    // Another word of the same claim, such as a new MAC or state, changes nothing.
    datapath.store(&key(5), online(1)).unwrap();
    assert!(datapath.has_fallen(&key(5)));
    for generation in (2..=255).chain([0, 1]) {
        datapath.store(&key(5), online(generation)).unwrap();
        assert!(!datapath.has_fallen(&key(5)), "generation {generation}");
    }
}

#[test]
fn silence_is_for_all_but_watched_addresses_and_needs_no_daemon() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let (scratch, wire) = (Scratch::new(), Wire::on("b"));
    let mut datapath = scratch.begin();
    carry(&mut datapath);
    datapath.install(on_a(5), word(State::Online, StateWord::LOCAL | Policy::Hold.flags(), 9)).unwrap();
    datapath.install(on_a(6), word(State::Watched, 0, 0)).unwrap();
    drop(datapath);
    scratch.0.silence().unwrap();
    assert!(!wire.asks(on_a(5).address));
    let left = scratch.0.left().unwrap().unwrap();
    let words: Vec<_> = left.addresses.iter().map(|kept| kept.word).collect();
    assert_eq!(words, [word(State::Yielding, StateWord::LOCAL, 9), word(State::Watched, 0, 0)]);
    scratch.0.unload().unwrap();
    assert_eq!(scratch.0.left().unwrap(), None);
    scratch.0.silence().unwrap();
    scratch.0.unload().unwrap();
}

#[test]
fn pins_that_process_1_does_not_see_are_warned_of() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    assert_eq!(Pins::at("/proc/arpwarden").vanish(), None);
    let private = std::env::temp_dir().join(format!("awi-bpffs-{}", std::process::id()));
    fs::create_dir(&private).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("bpf"), &private, Some("bpf"), flags, None::<&str>).unwrap();
    let pins = Pins::at(private.join("arpwarden/test"));
    let warning = pins.vanish();
    drop(Datapath::open(&pins, 0, 16).unwrap());
    pins.unload().unwrap();
    nix::mount::umount(&private).unwrap();
    fs::remove_dir(&private).unwrap();
    assert!(warning.unwrap().contains("process 1"));
    let error = Datapath::open(&Pins::at("/tmp/arpwarden-none"), 0, 16).err().unwrap();
    assert!(matches!(error, LoadError::Pins { source: PinsError::NotBpffs { .. } }), "{error:?}");
}
