//! Putting the program on interfaces and taking it off.

use aya::programs::{
    ProgramError, XdpError,
    links::{Link as _, LinkType},
    loaded_links, loaded_programs,
};

use super::{
    super::{link::XdpAttached, netlink},
    Datapath, Mode,
    error::{AttachError, DetachError, ForeignProgram},
    load::missing_capabilities,
};

impl Datapath {
    /// Attaches the program to the interface with this index; `name` is for messages. May take the link down
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then, and a foreign program is left as it was.
    pub fn attach(&mut self, index: u32, name: &str, mode: Mode) -> Result<(), AttachError> {
        let interface = || name.to_owned();
        // aya attaches by plain netlink where a link is refused with EINVAL, and that would replace what is there.
        let (mtu, foreign) = look_at(index, name)?;
        if let Some(xdp) = foreign {
            return Err(if self.links.contains_key(&index) {
                AttachError::AlreadyAttached { interface: interface() }
            } else {
                AttachError::Foreign { interface: interface(), mode, program: who_is(xdp) }
            });
        }
        let multi_buffer = self.multi_buffer();
        let failed = |source| AttachError::Kernel { interface: interface(), mode, source: Box::new(source) };
        let xdp = self.program().map_err(failed)?;
        let attached = xdp.attach_to_if_index(index, mode.into()).and_then(|id| xdp.take_link(id));
        let source = match attached {
            Ok(link) => {
                // Replaces the link of a program that somebody has taken off, if there is one.
                self.links.insert(index, link);
                return Ok(());
            }
            Err(source) => source,
        };
        match errno(&source) {
            // The same mode, or the other one, was taken meanwhile.
            Some(libc::EBUSY | libc::EEXIST) => match look_at(index, name)? {
                (_, Some(xdp)) => {
                    Err(AttachError::Foreign { interface: interface(), mode, program: who_is(xdp) })
                }
                (_, None) => Err(failed(source)),
            },
            Some(libc::ENODEV) => Err(AttachError::NoSuchInterface { interface: interface() }),
            Some(libc::EPERM) => Err(AttachError::NotPermitted {
                interface: interface(),
                missing: missing_capabilities(),
                source: Box::new(source),
            }),
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::E2BIG) => {
                let source = Box::new(source);
                Err(AttachError::Unsupported { interface: interface(), mode, mtu, multi_buffer, source })
            }
            Some(_) | None => Err(failed(source)),
        }
    }

    /// Takes the program off the interface with this index; done already if it isn't there.
    ///
    /// # Errors
    /// The kernel's. An interface that has gone is none.
    pub fn detach(&mut self, index: u32) -> Result<(), DetachError> {
        match self.links.remove(&index) {
            None => Ok(()),
            Some(link) => link.detach().map_err(|source| DetachError { index, source }),
        }
    }
}

/// What is known of the program with this identifier.
fn who_is(xdp: XdpAttached) -> ForeignProgram {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == xdp.id);
    let link = loaded_links().filter_map(Result::ok).find(|link| {
        link.program_id() == xdp.id && link.link_type().is_ok_and(|kind| matches!(kind, LinkType::Xdp))
    });
    ForeignProgram {
        id: xdp.id,
        name: info.as_ref().and_then(|info| info.name_as_str()).map(str::to_owned),
        mode: xdp.mode,
        created_by_uid: info.as_ref().and_then(|info| info.created_by_uid()),
        loaded_at: info.as_ref().and_then(|info| info.loaded_at()),
        link: link.map(|link| link.id()),
    }
}

/// MTU of an interface and the XDP program on it.
fn look_at(index: u32, name: &str) -> Result<(u32, Option<XdpAttached>), AttachError> {
    match netlink::link_now(index) {
        Ok(Some(link)) => Ok((link.mtu, link.xdp)),
        Ok(None) => Err(AttachError::NoSuchInterface { interface: name.to_owned() }),
        Err(source) => Err(AttachError::Unseen { interface: name.to_owned(), source }),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "an open list of another crate")]
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::XdpError(XdpError::NetlinkError(error)) | ProgramError::NetlinkError(error) => {
            error.raw_os_error()
        }
        ProgramError::IOError(error) => error.raw_os_error(),
        _ => None,
    }
}
