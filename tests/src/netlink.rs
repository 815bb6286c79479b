//! The little of netlink that iproute2 does not do for the tests: the mark on an address, and the options of a team.

use std::{
    ffi::CString,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::netns::Netns;

/// Bytes of `struct nlmsghdr`, and of the error number at the beginning of NLMSG_ERROR.
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// NLM_F_REQUEST, NLM_F_ACK and NLM_F_DUMP.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// NLA_F_NESTED, and what of an attribute's type is its number.
const NESTED: u16 = 1 << 15;
const NUMBER: u16 = 0x3fff;

/// An attribute: length, type, data, padded to four bytes.
fn attribute(number: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + data.len()).expect("a short attribute");
    let mut bytes = [&length.to_ne_bytes()[..], &number.to_ne_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that consists of attributes.
fn nest(number: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(number | NESTED, &inner.concat())
}

/// The data of the first attribute of this number.
fn find(mut attributes: &[u8], number: u16) -> Option<&[u8]> {
    while let Some(([l0, l1, t0, t1], _)) = attributes.split_first_chunk() {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        if u16::from_ne_bytes([*t0, *t1]) & NUMBER == number {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..)?;
    }
    None
}

/// Asks the kernel in a namespace, and gives what it answers: the messages without their headers.
fn ask(ns: &Netns, family: i32, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    ns.enter(|| {
        // SAFETY: takes no pointer.
        let number = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, family) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let length = u32::try_from(HEADER + body.len()).expect("a short message");
        let header = [
            &length.to_ne_bytes()[..],
            &kind.to_ne_bytes(),
            &(REQUEST | flags).to_ne_bytes(),
            &[0; 8], // its number, and whose it is
        ];
        let message = [&header.concat(), body].concat();
        // SAFETY: pointer and length belong to `message`, alive during the call.
        let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        answers(&socket)
    })
}

fn answers(socket: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0_u8; 64 << 10];
    let mut answers = Vec::new();
    loop {
        // SAFETY: pointer and length belong to `buffer`, alive during the call.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
        let mut rest = &buffer[..length];
        while let Some(([l0, l1, l2, l3, t0, t1], _)) = rest.split_first_chunk() {
            let length = u32::from_ne_bytes([*l0, *l1, *l2, *l3]);
            let length = usize::try_from(length).expect("64 bits").max(HEADER);
            let body = rest.get(HEADER..length).unwrap_or_default();
            match u16::from_ne_bytes([*t0, *t1]) {
                DONE => return Ok(answers),
                ERROR => {
                    let error = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if error == 0 { Ok(answers) } else { Err(io::Error::from_raw_os_error(-error)) };
                }
                _ => answers.push(body.to_vec()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// IPv4 addresses on all interfaces that carry this mark of who has put them there (IFA_PROTO, Linux 5.18).
///
/// # Panics
/// If the kernel does not tell.
pub fn marked_addresses(ns: &Netns, protocol: u8) -> Vec<Ipv4Addr> {
    /// IFA_LOCAL and IFA_PROTO of linux/if_addr.h, behind `struct ifaddrmsg` of eight bytes.
    const LOCAL: u16 = 2;
    const PROTOCOL: u16 = 11;
    const BEFORE: usize = 8;
    let family = u8::try_from(libc::AF_INET).expect("a small number");
    let body = [family, 0, 0, 0, 0, 0, 0, 0];
    let found =
        ask(ns, libc::NETLINK_ROUTE, libc::RTM_GETADDR, DUMP, &body).expect("the addresses of a namespace");
    let marked = found.iter().filter_map(|message| {
        let attributes = message.get(BEFORE..)?;
        let is_marked = find(attributes, PROTOCOL)? == [protocol];
        let address: [u8; 4] = find(attributes, LOCAL)?.try_into().ok()?;
        is_marked.then_some(Ipv4Addr::from(address))
    });
    marked.collect()
}

/// Version 1 of every family that is asked here: `struct genlmsghdr` in front of the attributes.
fn ask_generic(ns: &Netns, family: u16, command: u8, attributes: &[Vec<u8>]) -> io::Result<Vec<Vec<u8>>> {
    let body = [&[command, 1, 0, 0][..], &attributes.concat()].concat();
    ask(ns, libc::NETLINK_GENERIC, family, ACK, &body)
}

/// The value of a team's option.
#[derive(Clone, Copy, Debug)]
pub enum TeamOption<'a> {
    /// A word.
    Text(&'a str),
    /// A number.
    Number(u32),
}

/// Sets an option of a team, as `teamnl` does (linux/if_team.h).
///
/// # Panics
/// If there is no such team or option.
pub fn set_team_option(ns: &Netns, team: &str, name: &str, value: TeamOption<'_>) {
    /// CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID and CTRL_ATTR_FAMILY_NAME of the family that knows the others
    /// (linux/genetlink.h).
    const CONTROL: u16 = 0x10;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    /// TEAM_CMD_OPTIONS_SET, TEAM_ATTR_TEAM_IFINDEX, TEAM_ATTR_LIST_OPTION, TEAM_ATTR_ITEM_OPTION.
    const OPTIONS_SET: u8 = 1;
    const TEAM: u16 = 1;
    const OPTIONS: u16 = 2;
    const OPTION: u16 = 1;
    /// TEAM_ATTR_OPTION_NAME, _TYPE and _DATA; the types are the kernel's own numbers NLA_U32 and NLA_STRING.
    const NAME: u16 = 1;
    const TYPE: u16 = 3;
    const DATA: u16 = 4;
    const U32: u8 = 3;
    const STRING: u8 = 5;
    let text = |text: &str| CString::new(text).expect("no zero bytes").into_bytes_with_nul();
    let family = ask_generic(ns, CONTROL, GET_FAMILY, &[attribute(FAMILY_NAME, &text("team"))])
        .expect("the kernel's teams");
    let family = family.iter().find_map(|message| {
        let number: [u8; 2] = find(message.get(4..)?, FAMILY_ID)?.try_into().ok()?;
        Some(u16::from_ne_bytes(number))
    });
    let (kind, data) = match value {
        TeamOption::Text(word) => (STRING, text(word)),
        TeamOption::Number(number) => (U32, number.to_ne_bytes().to_vec()),
    };
    let option = [attribute(NAME, &text(name)), attribute(TYPE, &[kind]), attribute(DATA, &data)];
    let index = ns.index_of(team).expect("a team");
    let attributes = [attribute(TEAM, &index.to_ne_bytes()), nest(OPTIONS, &[nest(OPTION, &option)])];
    match ask_generic(ns, family.expect("the number of the family"), OPTIONS_SET, &attributes) {
        Ok(_) => {}
        // It is set; that nobody listens to the kernel's word of it is an error to the kernel.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(error) => panic!("option {name} of {team}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let both = [attribute(1, b"abc"), nest(2, &[attribute(7, &[9])])].concat();
        assert_eq!(both.len(), 8 + 4 + 8);
        assert_eq!(find(&both, 1), Some(&b"abc"[..]));
        assert_eq!(find(&both, 2).and_then(|inner| find(inner, 7)), Some(&[9][..]));
        assert_eq!(find(&both, 3), None);
        assert_eq!(find(&[0, 0, 1], 1), None);
    }
}
