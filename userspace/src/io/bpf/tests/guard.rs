//! The guard's two ways.

use std::{fs, process::Command};

use arpwarden_common::wire::arp::REPLY;

use super::{
    super::{
        super::{
            arp_socket::ArpSocket,
            tc::{self, Way},
        },
        attach::{TcWay, drop_link},
        pins::LinkName,
    },
    wire::{PATIENCE, Wire},
    *,
};

fn output(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn tc(arguments: &str) {
    let done = Command::new("tc").args(arguments.split_whitespace()).status().expect("iproute2");
    assert!(done.success(), "tc {arguments}");
}

fn index() -> u32 {
    nix::net::if_::if_nametoindex("a").unwrap()
}

/// An instance whose guard goes this way.
fn begin(scratch: &Scratch, way: TcWay) -> Datapath {
    let mut datapath = scratch.begin();
    datapath.tc_way = way;
    datapath
}

#[test]
fn the_guard_is_attached_outlives_the_process_is_replaced_and_taken_off() {
    for way in [TcWay::Tcx, TcWay::Clsact] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let (scratch, wire, index) = (Scratch::new(), Wire::on("b"), index());
        let mac = link_now(index).unwrap().unwrap().mac.unwrap();
        let mut datapath = begin(&scratch, way);
        datapath.set_port(index, Port::accepting(mac, index)).unwrap();
        datapath.set_own_macs(&BTreeSet::from([mac])).unwrap();
        datapath.attach(index, "a", Mode::Generic).unwrap();
        let there = Presence { program: true, guard: true };
        assert_eq!(datapath.verify(index).unwrap(), there);
        assert_eq!(tc::has_clsact(index).unwrap(), way == TcWay::Clsact);

        let key = AddressKey { interface: index, ..key(5) };
        let silent = StateWord::new(mac, State::Yielding, StateWord::LOCAL, 1);
        datapath.install(key, silent).unwrap();
        let leaves = || {
            let sender = ArpSocket::open().unwrap();
            let frame = Outgoing {
                operation: REPLY,
                ..Outgoing::announcement(mac, mac, Vlan::UNTAGGED, key.address)
            };
            // What the guard keeps in is an error to its sender (ENOBUFS).
            let _ = sender.send(index, &frame);
            wire.hear(PATIENCE, |frame| frame.sender_ip == key.address).is_some()
        };
        assert!(!leaves());
        datapath.store(&key, StateWord::new(mac, State::Online, StateWord::LOCAL, 1)).unwrap();
        assert!(leaves());
        datapath.store(&key, silent).unwrap();
        drop(datapath);
        assert!(!leaves());

        let (mut datapath, left) = scratch.adopt();
        datapath.tc_way = way;
        assert!(left.links[0].guard);
        assert_eq!(datapath.verify(index).unwrap(), there);
        assert!(!leaves());
        assert_eq!(
            output("filter show dev a egress").matches("direct-action").count(),
            usize::from(way == TcWay::Clsact)
        );

        datapath.detach(index).unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: false, guard: false });
        assert!(!tc::has_clsact(index).unwrap());
        assert_eq!(scratch.0.link_names().unwrap(), []);
        assert!(leaves());
    }
}

#[test]
fn a_guard_that_was_taken_off_is_missed_and_put_back() {
    for way in [TcWay::Tcx, TcWay::Clsact] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let (scratch, index) = (Scratch::new(), index());
        let mut datapath = begin(&scratch, way);
        datapath.attach(index, "a", Mode::Generic).unwrap();
        match way {
            TcWay::Tcx => fs::remove_file(scratch.0.link(LinkName::Guard(index))).unwrap(),
            TcWay::Clsact => tc("qdisc del dev a clsact"),
        }
        // The kernel lets go of a link some time after its pin went.
        own_network::wait_until("the guard to go", || !datapath.verify(index).unwrap().guard);
        assert!(datapath.verify(index).unwrap().program);
        datapath.reattach_guard(index, "a").unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
        datapath.reattach_guard(index, "a").unwrap();

        // Missed while nobody was there.
        drop(datapath);
        match way {
            TcWay::Tcx => fs::remove_file(scratch.0.link(LinkName::Guard(index))).unwrap(),
            TcWay::Clsact => tc("filter del dev a egress"),
        }
        let (mut datapath, left) = scratch.adopt();
        datapath.tc_way = way;
        assert_eq!((left.links[0].mode, left.links[0].guard), (Some(Mode::Generic), false));
        assert!(!tc::has_clsact(index).unwrap());
        datapath.reattach_guard(index, "a").unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
        datapath.remove_all().unwrap();
        assert!(!tc::has_clsact(index).unwrap());
    }
}

#[test]
fn the_qdisc_that_was_made_for_both_goes_with_the_last_of_them() {
    for first in [LinkName::Guard, LinkName::Tc] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let (scratch, index) = (Scratch::new(), index());
        let mut datapath = begin(&scratch, TcWay::Clsact);
        datapath.attach(index, "a", Mode::Tc).unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
        datapath.detach_tc(first(index)).unwrap();
        assert!(tc::has_clsact(index).unwrap());
        let left = datapath.verify(index).unwrap();
        assert_eq!((left.program, left.guard), (first(0) == LinkName::Guard(0), first(0) == LinkName::Tc(0)));
        // It is ours still, and so it is for one that is put back.
        datapath.attach(index, "a", Mode::Tc).unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
        datapath.detach_tc(first(index)).unwrap();
        datapath.detach(index).unwrap();
        assert!(!tc::has_clsact(index).unwrap());

        // Somebody else's stays.
        tc("qdisc add dev a clsact");
        datapath.attach(index, "a", Mode::Tc).unwrap();
        datapath.detach_tc(first(index)).unwrap();
        datapath.attach(index, "a", Mode::Tc).unwrap();
        datapath.remove_all().unwrap();
        assert!(tc::has_clsact(index).unwrap());
        assert_eq!(all_on(index), (None, [vec![], vec![]]));
    }
}

#[test]
fn a_program_in_mode_tc_that_was_taken_off_is_missed_and_put_back() {
    for way in [TcWay::Tcx, TcWay::Clsact] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let (scratch, index) = (Scratch::new(), index());
        let take_off = || match way {
            TcWay::Tcx => fs::remove_file(scratch.0.link(LinkName::Tc(index))).unwrap(),
            TcWay::Clsact => tc("filter del dev a ingress"),
        };
        let mut datapath = begin(&scratch, way);
        datapath.attach(index, "a", Mode::Tc).unwrap();
        take_off();
        own_network::wait_until("the program to go", || !datapath.verify(index).unwrap().program);
        assert!(datapath.verify(index).unwrap().guard);
        datapath.attach(index, "a", Mode::Tc).unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });

        // Missed while nobody was there.
        drop(datapath);
        take_off();
        own_network::wait_until("the program to go", || all_on(index).1[0].is_empty());
        let (mut datapath, left) = scratch.adopt();
        datapath.tc_way = way;
        assert_eq!((left.links[0].mode, left.links[0].guard), (None, true));
        assert_eq!(left.links[0].state, LinkState::Dead(Missing::Detached));
        datapath.attach(index, "a", Mode::Tc).unwrap();
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
        datapath.remove_all().unwrap();
        assert_eq!(all_on(index), (None, [vec![], vec![]]));
        assert!(!tc::has_clsact(index).unwrap());
    }
}

#[test]
fn a_run_in_another_mode_leaves_no_second_program() {
    for (before, after) in [(Mode::Generic, Mode::Tc), (Mode::Tc, Mode::Generic)] {
        if !own_network::with_mounts(&PAIR) {
            return;
        }
        let (scratch, index) = (Scratch::new(), index());
        let mut datapath = begin(&scratch, TcWay::Clsact);
        datapath.attach(index, "a", before).unwrap();
        // It is there, so the mode stays what it was.
        let again = datapath.attach(index, "a", after);
        assert!(matches!(again, Err(AttachError::AlreadyAttached { .. })), "{again:?}");
        datapath.detach(index).unwrap();
        assert_eq!(all_on(index), (None, [vec![], vec![]]));
        datapath.attach(index, "a", after).unwrap();
        let (xdp, [ingress, egress]) = all_on(index);
        assert_eq!(usize::from(xdp.is_some()) + ingress.len(), 1);
        assert_eq!(egress.len(), 1);
        datapath.remove_all().unwrap();
    }
}

#[test]
fn a_qdisc_stays_that_is_not_ours_or_that_others_use() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let (scratch, other, index) = (Scratch::new(), Scratch::new(), index());
    drop(other.begin());
    let program = other.0.programs().join("guard");
    let theirs =
        format!("filter add dev a ingress prio 5 bpf direct-action object-pinned {}", program.display());
    let mut datapath = begin(&scratch, TcWay::Clsact);
    datapath.attach(index, "a", Mode::Generic).unwrap();
    tc(&theirs);
    datapath.detach(index).unwrap();
    assert!(output("filter show dev a ingress").contains("direct-action"));
    assert_eq!(tc::filters(index, Way::Out).unwrap(), []);

    // Now it is theirs, whoever made it.
    tc("filter del dev a ingress");
    datapath.attach(index, "a", Mode::Generic).unwrap();
    drop(datapath);
    scratch.0.unload().unwrap();
    assert!(tc::has_clsact(index).unwrap());
    assert_eq!(tc::filters(index, Way::Out).unwrap(), []);
}

#[test]
fn an_ingress_qdisc_in_the_way_is_named_and_nothing_is_left_attached() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let (scratch, index) = (Scratch::new(), index());
    tc("qdisc add dev a ingress");
    let mut datapath = begin(&scratch, TcWay::Clsact);
    let error = datapath.attach(index, "a", Mode::Generic).unwrap_err();
    assert!(matches!(error, AttachError::Kernel { what: Attaching::Guard, .. }), "{error:?}");
    assert!(error.to_string().contains("ingress"), "{error}");
    assert_eq!(datapath.verify(index).unwrap(), Presence { program: false, guard: false });
    assert_eq!(scratch.0.link_names().unwrap(), []);
    assert!(output("qdisc show dev a").contains("ingress"));
}

#[test]
fn a_program_that_can_t_be_attached_takes_the_guard_with_it() {
    for way in [TcWay::Tcx, TcWay::Clsact] {
        if !own_network::with_mounts(&["link add dev a type bridge"]) {
            return;
        }
        let (scratch, index) = (Scratch::new(), index());
        let mut datapath = begin(&scratch, way);
        let error = datapath.attach(index, "a", Mode::Native).unwrap_err();
        assert!(error.is_unsupported(), "{error:?}");
        assert_eq!(datapath.verify(index).unwrap(), Presence { program: false, guard: false });
        assert_eq!(scratch.0.link_names().unwrap(), []);
        assert!(!tc::has_clsact(index).unwrap());
    }
}

#[test]
fn a_run_that_ends_between_two_steps_leaves_nothing_that_stays() {
    if !own_network::with_mounts(&PAIR) {
        return;
    }
    let (scratch, index) = (Scratch::new(), index());
    // The guard is there, the program not yet.
    let mut datapath = begin(&scratch, TcWay::Clsact);
    datapath.attach(index, "a", Mode::Generic).unwrap();
    drop_link(&scratch.0.link(LinkName::Xdp(index))).unwrap();
    drop(datapath);
    let (mut datapath, left) = scratch.adopt();
    assert_eq!((left.links[0].mode, left.links[0].guard), (None, true));
    datapath.attach(index, "a", Mode::Generic).unwrap();
    assert_eq!(datapath.verify(index).unwrap(), Presence { program: true, guard: true });
    assert_eq!(output("filter show dev a egress").matches("direct-action").count(), 1);

    // Written down, and the qdisc is there, but no filter yet.
    datapath.detach(index).unwrap();
    std::os::unix::fs::symlink("clsact-made", scratch.0.link(LinkName::Guard(index))).unwrap();
    tc::add_clsact(index).unwrap();
    drop(datapath);
    scratch.0.unload().unwrap();
    assert!(!tc::has_clsact(index).unwrap());
}
