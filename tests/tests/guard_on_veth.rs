//! The guard on a real interface: whatever way a frame is sent, and however it lies in the kernel's memory.

use arpwarden::io::bpf::OBJECT;
use arpwarden_common::{
    abi::Counter,
    golden::{SLOT, Tags, guard},
    names,
};
use arpwarden_tests::{
    kernel::attach_egress,
    ms,
    netns::{Netns, stranger},
    prog_run::Loaded,
    wire::{Wire, marker, offer_in_pieces},
};

/// Longer than a page: of such a frame the kernel puts no more than it is told to into the linear part.
const LONG: usize = 6_000;

/// A host, and the far end of its cable, with room for long frames: no program is at the far end, which would not
/// allow them.
fn cable() -> (Netns, Netns) {
    let (host, far) = (Netns::new(), Netns::new());
    host.ip(&format!(
        "link add eth0 mtu 9000 type veth peer name eth0 mtu 9000 netns {}",
        far.path().display()
    ));
    for end in [&host, &far] {
        end.ip("link set eth0 up");
    }
    (host, far)
}

/// Rows that are kept in, and one that is let out, for each way of tagging in the frame.
fn rows() -> Vec<guard::Row> {
    let of_interest = |row: &guard::Row| {
        let kind = matches!(row.kind, guard::Kind::Asking | guard::Kind::Replying | guard::Kind::Repairing);
        let tags = matches!(row.tags, Tags::None | Tags::Customer | Tags::Service | Tags::Stacked);
        kind && tags && row.beside.is_none() && row.column.name == "a silent group" && row.column.local
    };
    guard::rows().into_iter().filter(of_interest).collect()
}

/// Sends what `send` makes of each row's frame; it must come out at the far end, byte for byte, or be kept in, as the
/// table says.
fn each_fares_as_the_table_says(send: impl Fn(&Netns, &[u8]) -> Vec<u8>) {
    let rows = rows();
    let (host, far) = cable();
    let (wire, marking) = (Wire::open(&far, "eth0"), Wire::open(&host, "eth0"));
    let index = host.index_of("eth0").expect("there");
    let mut loaded = Loaded::load(OBJECT, names::XDP, 0);
    let _link = attach_egress(&host, "eth0", loaded.guard());
    let mut kept = 0;
    for row in &rows {
        loaded.enter(&row.world);
        loaded.put_port(index, row.world.port.expect("the row has a port"));
        let name = row.name();
        let sent = send(&host, &row.frame);
        let last = marker(stranger(0));
        marking.send(&last);
        let mut came = wire.collect_until("the marker", ms(2_000), |frame| frame.bytes == last);
        came.pop();
        let came: Vec<Vec<u8>> = came.into_iter().filter(|f| !f.outgoing).map(|f| f.bytes).collect();
        let expected = if row.kept { vec![] } else { vec![sent] };
        assert!(came == expected, "{name}: {} frames came", came.len());
        assert_eq!(loaded.counter(Counter::Guarded), u64::from(row.kept), "{name}");
        assert_eq!(loaded.claims(SLOT).guarded, u64::from(row.kept), "{name}");
        kept += u64::from(row.kept);
    }
    assert!(kept >= 8 && kept < rows.len() as u64, "{kept} of {}", rows.len());
}

#[test]
fn a_packet_socket_does_not_get_past_the_guard() {
    each_fares_as_the_table_says(|host, frame| {
        kept_in_or_sent(host, frame, 0);
        frame.to_vec()
    });
}

#[test]
fn a_frame_whose_arp_is_in_a_fragment_does_not_get_past_the_guard() {
    for linear in [14, 16, 20, 41] {
        each_fares_as_the_table_says(|host, frame| {
            let mut long = frame.to_vec();
            long.resize(LONG, 0);
            kept_in_or_sent(host, &long, linear);
            long
        });
    }
}

/// Sends a frame of which so much is linear. What the guard keeps in is an error to the sender.
fn kept_in_or_sent(host: &Netns, frame: &[u8], linear: u16) {
    if let Err(error) = offer_in_pieces(host, "eth0", frame, linear) {
        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
    }
}
