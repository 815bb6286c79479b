mod guard;
mod kept;
mod wire;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
};

use arpwarden_common::{
    abi::{self, AddressKey, AllowedKey, Counter, DEFAULT_CAPACITY, EventKind, Port},
    net::{Ipv4, Vlan},
    state::{State, StateWord},
    wire::arp::Outgoing,
};
use aya::{TestRun as _, programs::TestRunOptions};

use super::{
    super::{
        link::XdpAttached,
        netlink::now::link_now,
        own_network::{self, PAIR},
        tc::Way,
    },
    layout::abi_version,
    load::{CAP_SYS_ADMIN, missing_from},
    *,
};

#[test]
fn each_missing_capability_is_named() {
    let bit = |number: u32| 1_u64 << number;
    let all = bit(39) | bit(12) | bit(13) | bit(38);
    assert_eq!(missing_from(all), [""; 0]);
    assert_eq!(missing_from(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
    assert_eq!(missing_from(all & !bit(39)), ["CAP_BPF"]);
    assert_eq!(missing_from(all & !bit(12)), ["CAP_NET_ADMIN"]);
    assert_eq!(missing_from(all & !bit(13)), ["CAP_NET_RAW"]);
    assert_eq!(missing_from(all & !bit(38)), ["CAP_PERFMON"]);
    // Before Linux 5.8 there was nothing finer, and it still counts.
    assert_eq!(missing_from(bit(CAP_SYS_ADMIN)), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
}

#[test]
fn the_object_says_which_layout_it_was_built_for() {
    assert_eq!(abi_version(OBJECT), Some(abi::ABI_VERSION));
    assert_eq!(abi_version(b"not an object"), None);
}

const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
const STRANGER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 9]);
/// A test run's frames come in on the loopback interface, which is the first of every namespace.
const INDEX: u32 = 1;

fn key(number: u32) -> AddressKey {
    let address = Ipv4::new((0x0a00_0000 + number).to_be_bytes());
    AddressKey { interface: INDEX, vlan: Vlan::UNTAGGED, address }
}

fn online(generation: u8) -> StateWord {
    StateWord::new(OWN, State::Online, StateWord::LOCAL, generation)
}

/// Pins of a test, removed at its end.
struct Scratch(Pins);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(Pins::at(format!("/sys/fs/bpf/arpwarden-test-{}-{number}", std::process::id())))
    }

    /// Opens a datapath for which nothing is there.
    fn begin(&self) -> Datapath {
        let (datapath, found) = Datapath::open(&self.0, 0, DEFAULT_CAPACITY).unwrap();
        assert_eq!(found, Found::Nothing);
        datapath
    }

    /// Opens one that takes over what another has left.
    fn adopt(&self) -> (Datapath, Leftover) {
        match Datapath::open(&self.0, 0, DEFAULT_CAPACITY).unwrap() {
            (datapath, Found::Adopted(leftover)) => (datapath, leftover),
            (_, Found::Nothing) => panic!("nothing was left"),
        }
    }

    /// One that acts on test runs.
    fn acting(&self) -> Datapath {
        let mut datapath = self.begin();
        datapath.set_port(INDEX, Port::accepting(OWN, INDEX)).unwrap();
        datapath.set_own_macs(&BTreeSet::from([OWN])).unwrap();
        datapath
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = self.0.unload();
        if !std::thread::panicking() {
            removed.unwrap();
            assert!(!self.0.exists());
        }
    }
}

/// Shows the program a frame; gives its XDP action.
fn show(datapath: &mut Datapath, frame: &Outgoing) -> u32 {
    let mut bytes = [0; Outgoing::MAX_LEN];
    let length = frame.emit(&mut bytes);
    let options = TestRunOptions { data_in: Some(&bytes[..length]), ..TestRunOptions::default() };
    datapath.program().unwrap().test_run(options).unwrap().return_value
}

fn who_has(number: u32) -> Outgoing {
    Outgoing::probe(STRANGER, Vlan::UNTAGGED, key(number).address)
}

fn claim(number: u32) -> Outgoing {
    Outgoing::announcement(STRANGER, STRANGER, Vlan::UNTAGGED, key(number).address)
}

const PASS: u32 = 2;
const TX: u32 = 3;

#[test]
fn the_program_is_attached_in_each_mode_and_taken_off_again() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let index = nix::net::if_::if_nametoindex("a").unwrap();
    let there = || link_now(index).unwrap().unwrap().xdp;
    let scratch = Scratch::new();
    let mut datapath = scratch.begin();
    for mode in [Mode::Generic, Mode::Native, Mode::Tc] {
        datapath.attach(index, "a", mode).unwrap();
        let in_xdp = (mode != Mode::Tc).then_some(Some(mode));
        assert_eq!(there().map(|xdp| xdp.mode), in_xdp);
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
        let again = datapath.attach(index, "a", mode);
        assert!(matches!(again, Err(AttachError::AlreadyAttached { .. })), "{again:?}");
        datapath.detach(index).unwrap();
        assert_eq!(there(), None);
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: false, guard: false });
        datapath.detach(index).unwrap();
    }
    datapath.attach(index, "a", Mode::Generic).unwrap();
    datapath.remove_all().unwrap();
    assert_eq!(there(), None);
}

/// What is on an interface.
fn all_on(index: u32) -> (Option<XdpAttached>, [Vec<u32>; 2]) {
    let in_tc = [Way::In, Way::Out].map(|way| attach::tc_programs(index, way).unwrap());
    (link_now(index).unwrap().unwrap().xdp, in_tc)
}

#[test]
fn another_instance_is_named_and_left_alone_in_every_mode() {
    const MODES: [Mode; 3] = [Mode::Native, Mode::Generic, Mode::Tc];
    for way in [TcWay::Tcx, TcWay::Clsact] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let index = nix::net::if_::if_nametoindex("a").unwrap();
        let (there_scratch, our_scratch) = (Scratch::new(), Scratch::new());
        let (mut theirs, mut ours) = (there_scratch.begin(), our_scratch.begin());
        theirs.tc_way = way;
        for their_mode in MODES {
            theirs.attach(index, "a", their_mode).unwrap();
            let before = all_on(index);
            for our_mode in MODES {
                let error = ours.attach(index, "a", our_mode).unwrap_err();
                let AttachError::OtherInstance { program, instance, .. } = &error else {
                    panic!("{error:?}")
                };
                let (id, place) = match their_mode {
                    Mode::Native | Mode::Generic => (theirs.xdp.unwrap().id, Place::Xdp(Some(their_mode))),
                    Mode::Tc => (theirs.tc.unwrap().id, Place::Ingress),
                };
                assert_eq!((program.id, program.place), (id, place));
                assert_eq!(program.created_by_uid, Some(0));
                assert_eq!(program.link.is_some(), their_mode != Mode::Tc || way == TcWay::Tcx);
                assert!(program.loaded_at.is_some());
                let name = there_scratch.0.directory().file_name().unwrap().to_str().unwrap();
                assert_eq!(instance.as_deref(), Some(name));
                let text = error.to_string();
                assert!(text.contains(name) && text.contains(&id.to_string()), "{text}");
                assert_eq!(all_on(index), before);
                assert_eq!(our_scratch.0.link_names().unwrap(), []);
            }
            theirs.detach(index).unwrap();
        }
        // Its guard alone: that one ended between two steps.
        theirs.attach(index, "a", Mode::Generic).unwrap();
        attach::drop_link(&there_scratch.0.link(pins::LinkName::Xdp(index))).unwrap();
        let error = ours.attach(index, "a", Mode::Tc).unwrap_err();
        let AttachError::OtherInstance { program, .. } = &error else { panic!("{error:?}") };
        assert_eq!((program.id, program.place), (theirs.guard, Place::Egress));
        theirs.detach(index).unwrap();
        ours.attach(index, "a", Mode::Tc).unwrap();
    }
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let error = scratch.begin().attach(77, "gone0", Mode::Generic).unwrap_err();
    assert!(matches!(error, AttachError::NoSuchInterface { .. }), "{error:?}");
    assert!(error.to_string().contains("gone0"));
}

#[test]
fn a_driver_without_native_mode_is_told_from_other_failures() {
    if !own_network::with_mounts(&["link add dev br type bridge"]) {
        return;
    }
    let index = nix::net::if_::if_nametoindex("br").unwrap();
    let scratch = Scratch::new();
    let error = scratch.begin().attach(index, "br", Mode::Native).unwrap_err();
    assert!(error.is_unsupported(), "{error:?}");
    assert!(error.to_string().contains("--attach tc"));
}

#[test]
fn the_word_alone_decides_whether_an_address_is_answered() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    assert_eq!(show(&mut datapath, &who_has(5)), PASS);
    assert!(datapath.store(&key(5), online(1)).is_err());

    datapath.install(key(5), online(1)).unwrap();
    assert_eq!(show(&mut datapath, &who_has(5)), TX);
    assert_eq!(show(&mut datapath, &who_has(6)), PASS);

    let silent = StateWord::new(OWN, State::Yielding, 0, 1);
    datapath.store(&key(5), silent).unwrap();
    assert_eq!(show(&mut datapath, &who_has(5)), PASS);
    datapath.store(&key(5), online(2)).unwrap();
    assert_eq!(show(&mut datapath, &who_has(5)), TX);

    let (_, counters) = datapath.address_counters(&key(5)).unwrap();
    assert_eq!(counters.answered, 2);
    assert_eq!(datapath.counters().unwrap()[Counter::Answered as usize], 2);

    datapath.remove(&key(5)).unwrap();
    assert_eq!(show(&mut datapath, &who_has(5)), PASS);
    assert!(datapath.address_counters(&key(5)).is_none());
    datapath.remove(&key(5)).unwrap();
}

#[test]
fn the_own_macs_are_those_told_last() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    datapath.install(key(5), online(1)).unwrap();
    let claims = |datapath: &Datapath| datapath.counters().unwrap()[Counter::Claims as usize];
    show(&mut datapath, &claim(5));
    assert_eq!(claims(&datapath), 1);
    datapath.set_own_macs(&BTreeSet::from([OWN, STRANGER])).unwrap();
    show(&mut datapath, &claim(5));
    assert_eq!(claims(&datapath), 1);
    datapath.set_own_macs(&BTreeSet::from([OWN])).unwrap();
    show(&mut datapath, &claim(5));
    assert_eq!(claims(&datapath), 2);
}

#[test]
fn who_may_claim_are_those_told_last() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    datapath.install(key(5), online(1)).unwrap();
    let counted = |datapath: &Datapath| {
        [Counter::Claims, Counter::Allowed].map(|counter| datapath.counters().unwrap()[counter as usize])
    };
    let AddressKey { interface, vlan, .. } = key(5);
    let here = AllowedKey { mac: STRANGER, interface, vlan };
    datapath.set_allowed(&BTreeSet::from([here, AllowedKey { mac: OWN, ..here }])).unwrap();
    show(&mut datapath, &claim(5));
    assert_eq!(counted(&datapath), [0, 1]);
    assert_eq!(datapath.owner(&key(5)).unwrap(), STRANGER, "the record of the owner is kept");
    datapath.set_allowed(&BTreeSet::from([AllowedKey { interface: interface + 1, ..here }])).unwrap();
    show(&mut datapath, &claim(5));
    assert_eq!(counted(&datapath), [1, 1]);
}

#[test]
fn a_slot_that_is_used_again_counts_from_zero() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    datapath.fresh = datapath.capacity() - 1;
    let slot = datapath.install(key(5), online(1)).unwrap();
    show(&mut datapath, &who_has(5));
    show(&mut datapath, &claim(5));
    let (record, counters) = datapath.address_counters(&key(5)).unwrap();
    assert_eq!((record.claims, record.owner, counters.answered), (1, STRANGER, 1));

    datapath.remove(&key(5)).unwrap();
    assert_eq!(datapath.install(key(6), online(1)).unwrap(), slot);
    let (record, counters) = datapath.address_counters(&key(6)).unwrap();
    assert_eq!((record.claims, record.owner, counters.answered), (0, MacAddr::ZERO, 0));
    // What leads to the slot no more does not speak for its new address.
    assert_eq!(show(&mut datapath, &who_has(5)), PASS);
    assert_eq!(show(&mut datapath, &who_has(6)), TX);
    assert_eq!(datapath.address_counters(&key(6)).unwrap().1.answered, 1);
}

#[test]
fn the_limit_on_addresses_is_said_and_leaves_the_others_as_they_are() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    for number in 0..DEFAULT_CAPACITY {
        datapath.install(key(number), online(1)).unwrap();
    }
    // Known already: needs no room.
    datapath.install(key(7), online(2)).unwrap();
    let error = datapath.install(key(DEFAULT_CAPACITY), online(1)).unwrap_err();
    assert!(matches!(error, InstallError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("16384"));
    assert_eq!(show(&mut datapath, &who_has(DEFAULT_CAPACITY - 1)), TX);
    datapath.remove(&key(0)).unwrap();
    datapath.install(key(DEFAULT_CAPACITY), online(1)).unwrap();
    assert_eq!(show(&mut datapath, &who_has(DEFAULT_CAPACITY)), TX);
}

#[tokio::test(flavor = "current_thread")]
async fn events_are_waited_for_and_read_to_the_end() {
    if !own_network::with_mounts(&[]) {
        return;
    }
    let scratch = Scratch::new();
    let mut datapath = scratch.acting();
    let mut events = datapath.take_events();
    assert!(datapath.take_events().readable().await.is_err());
    datapath.install(key(5), online(3)).unwrap();
    for _ in 0..3 {
        show(&mut datapath, &claim(5));
        events.readable().await.unwrap();
        let event = events.next().unwrap().unwrap();
        assert_eq!(EventKind::from_number(event.kind), Some(EventKind::Claim));
        assert_eq!((event.address, event.generation), (key(5).address, 3));
        assert_eq!(event.claimant, STRANGER.octets());
        assert!(events.next().is_none());
        // Read to the end: there is nothing to wake up for.
        tokio::select! {
            biased;
            _ = events.readable() => panic!("woken for nothing"),
            () = tokio::task::yield_now() => {}
        }
    }
    // Several at once, looked at before anybody has waited.
    show(&mut datapath, &claim(5));
    show(&mut datapath, &claim(5));
    events.readable().await.unwrap();
    assert!(events.next().is_some());
    events.readable().await.unwrap();
    assert!(events.next().is_some());
    assert!(events.next().is_none());
}
