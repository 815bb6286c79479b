//! Ten thousand addresses.

use super::*;

fn nth(n: u32) -> AddressKey {
    let [_, _, high, low] = n.to_be_bytes();
    AddressKey { address: Ipv4::new([10, 1, high, low]), ..KEY }
}

#[test]
fn ten_thousand_addresses_cost_no_more_than_their_own_work() {
    const COUNT: u32 = 10_000;
    let mut rig = Rig::new();
    for n in 0..COUNT {
        let request = rig.request();
        rig.input(Input::Online { request, key: nth(n), spec: SPEC });
    }
    rig.pass(secs(30));
    let online = rig.engine.addresses().filter(|(_, address)| address.state() == State::Online).count();
    assert_eq!(online, 10_000);
    assert_eq!(rig.engine.poll_timeout(), None);
    // 3 probes, 8 announcements each.
    let sent = rig.trace.iter().filter(|(_, action)| matches!(action, Action::Send { .. })).count();
    assert_eq!(sent, 110_000);
    let sighting = rig.sighting(SightingKind::Claim, RIVAL);
    for n in 0..COUNT {
        rig.input(Input::Seen { key: nth(n), sighting });
    }
    rig.pass(secs(2));
    assert_eq!(rig.frames(Purpose::Defence).len(), 10_000);
    for n in 0..COUNT {
        let request = rig.request();
        rig.input(Input::Offline { request, key: nth(n), watch: false });
    }
    assert_eq!(rig.engine.addresses().count(), 0);
}
