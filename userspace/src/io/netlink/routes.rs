//! Whether routes have changed.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Routes, and the rules by which their tables are chosen.
const GROUPS: u32 = 1 << (libc::RTNLGRP_IPV4_ROUTE - 1) | 1 << (libc::RTNLGRP_IPV4_RULE - 1);

/// The kernel's word on every change of an IPv4 route or rule in this network namespace. It wakes nobody.
#[derive(Debug)]
pub struct RouteChanges(Socket);

impl RouteChanges {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Whether any has changed since it was asked last. What could not be heard may have been a change.
    pub fn any(&mut self) -> bool {
        let mut any = false;
        loop {
            // That there was a message is enough: the rest of it is cut off.
            let mut nothing: [u8; 0] = [];
            match self.0.recv(&mut &mut nothing[..], libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => any = true,
                // There were more than wait for us, which is told once; those that do are still there.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                // To ask once more might go on for ever.
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::own_network::{self, PAIR, ip, ip_batch},
        *,
    };

    #[test]
    fn a_change_of_a_route_or_a_rule_is_told_once() {
        if !own_network::with(&PAIR) {
            return;
        }
        let mut changes = RouteChanges::open().unwrap();
        assert!(!changes.any());
        for change in [
            "route add local 192.0.2.1 dev lo",
            "route del local 192.0.2.1 dev lo",
            "rule add to 192.0.2.1 blackhole",
            "address add 192.0.2.2/24 dev a",
        ] {
            ip(change);
            assert!(changes.any(), "{change}");
            assert!(!changes.any(), "{change}");
        }
        ip("link set dev b mtu 1400");
        assert!(!changes.any(), "no route has changed");
    }

    #[test]
    fn more_changes_than_can_wait_are_a_change() {
        if !own_network::with(&PAIR) {
            return;
        }
        let mut changes = RouteChanges::open().unwrap();
        // All that an interface has goes at once: the kernel charges 768 bytes or more for each, and has room for 212,992.
        let many: Vec<String> =
            (0..400).map(|n| format!("local 10.0.{}.{} dev a", n / 256, n % 256)).collect();
        ip_batch(&many.iter().map(|route| format!("route add {route}\n")).collect::<String>());
        assert!(changes.any());
        assert!(!changes.any());
    }
}
