//! The golden frames on a real wire: what the host verdict says and what BPF_PROG_TEST_RUN gives is what comes
//! out of a veth, byte for byte.

use std::os::fd::AsFd as _;

use arpwarden::io::bpf::{Mode, OBJECT};
use arpwarden_common::{
    golden::{Action, PORT_INDEX, Row, rows},
    names,
};
use arpwarden_tests::{
    kernel::{attach_ingress, attach_xdp},
    ms,
    netns::{Net, stranger},
    prog_run::{Loaded, redirector},
    wait_for,
    wire::{Captured, Wire, marker},
};

fn every_row_over_a_cable(mode: Mode) {
    let net = Net::cable();
    let (host, far) = (net.host(0), net.host(1));
    // No address at all, so that the kernel behind the program has nothing to say.
    host.ns.ip("address flush dev eth0");
    far.ns.ip("address flush dev eth0");
    let index = host.ns.index_of("eth0").expect("there");
    assert_ne!(index, PORT_INDEX);
    let program = if mode == Mode::Tc { names::TC } else { names::XDP_FRAGS };
    let mut loaded = Loaded::load(OBJECT, program, 0);
    let wire = far.wire();
    let (behind, _links) = match mode {
        Mode::Native | Mode::Generic => {
            let link = attach_xdp(&host.ns, "eth0", loaded.fd(), mode == Mode::Native);
            (host.wire(), vec![link])
        }
        Mode::Tc => {
            // A packet socket sees what comes in before tc does, so what tc has passed goes on to another cable.
            host.ns.ip("link add w0 type veth peer name w1\nlink set w0 up\nlink set w1 up");
            let (passed, w0) = (Wire::open(&host.ns, "w1"), host.ns.index_of("w0").expect("there"));
            let (end, frame) = (Wire::open(&host.ns, "w0"), marker(stranger(0)));
            wait_for("the other cable", ms(5_000), || {
                end.send(&frame);
                passed.drain().into_iter().any(|seen| seen.bytes == frame).then_some(())
            });
            let first = attach_ingress(&host.ns, "eth0", loaded.fd());
            (passed, vec![first, attach_ingress(&host.ns, "eth0", redirector(w0).as_fd())])
        }
    };

    let rows = rows();
    let mut tried = [0; 3];
    for row in &rows {
        loaded.enter(&row.world);
        if let Some(port) = row.world.port {
            loaded.put_port(index, port);
        }
        let (passed, answers) = send(&behind, &wire, row);
        let name = row.name();
        match row.action {
            Action::Pass => {
                assert_eq!(passed, [row.frame.as_slice()], "passed as it was: {name}");
                assert!(answers.is_empty(), "no answer: {name}: {answers:02x?}");
            }
            Action::Drop => {
                assert!(passed.is_empty() && answers.is_empty(), "{name}: {passed:02x?} {answers:02x?}")
            }
            Action::Answer => {
                assert!(passed.is_empty(), "the kernel sees nothing of it: {name}: {passed:02x?}");
                assert_eq!(answers, [row.out.as_slice()], "{name}");
            }
        }
        tried[row.action as usize] += 1;
    }
    println!("{} passed, {} dropped, {} answered", tried[0], tried[1], tried[2]);
    assert!(tried.iter().all(|count| *count > 100), "{tried:?}");
}

/// Puts the row's frame on the wire; what came through to the kernel, and what came back.
fn send(behind: &Wire, wire: &Wire, row: &Row) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let received = |frames: Vec<Captured>| {
        let frames = frames.into_iter().filter(|frame| !frame.outgoing);
        frames.map(|frame| frame.bytes).collect::<Vec<_>>()
    };
    let stray = received(wire.drain());
    assert!(stray.is_empty(), "came back after the row before {}: {stray:02x?}", row.name());
    wire.send(&row.frame);
    let last = marker(stranger(0));
    wire.send(&last);
    let mut passed = received(behind.collect_until("the marker", ms(2_000), |frame| frame.bytes == last));
    passed.pop();
    let answers = match row.action {
        // The answers of a burst leave when the burst has been looked at, a moment after what is passed.
        Action::Answer => wire.collect_until(&row.name(), ms(2_000), |frame| !frame.outgoing),
        Action::Pass | Action::Drop => wire.drain(),
    };
    (passed, received(answers))
}

#[test]
fn every_golden_row_comes_out_of_a_native_veth_as_the_table_says() {
    every_row_over_a_cable(Mode::Native);
}

#[test]
fn every_golden_row_comes_out_of_a_generic_veth_as_the_table_says() {
    every_row_over_a_cable(Mode::Generic);
}

#[test]
fn every_golden_row_comes_out_of_a_veth_in_tc_mode_as_the_table_says() {
    every_row_over_a_cable(Mode::Tc);
}
