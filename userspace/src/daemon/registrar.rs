//! Puts addresses on interfaces and takes them off, one after the other, in a task of its own: the kernel can take
//! its time over it.

use arpwarden_common::abi::AddressKey;
use tokio::sync::mpsc;
use tracing::warn;

use super::Stop;
use crate::{
    io::netlink::{LocalAddress, Netlink},
    state_file::{Registered, StateFile},
};

/// A registration to be done, in order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Put the address with this prefix length on its interface.
    Register(AddressKey, u8),
    /// Take it off.
    Deregister(AddressKey, u8),
}

/// How it went.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) order: Order,
    pub(super) result: Result<(), String>,
}

/// Works orders off, each with the name of its interface. An address is written down before it is put there.
pub(super) async fn work(
    netlink: Netlink,
    state: StateFile,
    mut orders: mpsc::UnboundedReceiver<(Order, String)>,
    done: mpsc::UnboundedSender<Done>,
) {
    while let Some((order, interface)) = orders.recv().await {
        let (Order::Register(key, prefix_length) | Order::Deregister(key, prefix_length)) = order;
        let entry =
            Registered { index: key.interface, interface, address: key.address.into(), prefix_length };
        let result = match order {
            Order::Register(..) => match state.add(&entry) {
                Ok(()) => netlink
                    .add_address(entry.index, entry.address, prefix_length)
                    .await
                    .map_err(|error| format!("{:#}", anyhow::Error::from(error))),
                Err(error) => {
                    Err(format!("{error:#}; an address that is not written down is not registered"))
                }
            },
            Order::Deregister(..) => netlink
                .delete_address(entry.index, entry.address, prefix_length)
                .await
                .map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        };
        let off = match order {
            Order::Register(..) => result.is_err(),
            Order::Deregister(..) => result.is_ok(),
        };
        if off && let Err(error) = state.remove(&entry) {
            warn!(
                "{error:#}; the next start will look for {}/{prefix_length} and find it gone",
                entry.address
            );
        }
        if done.send(Done { order, result }).is_err() {
            return;
        }
    }
}

/// Takes off the interfaces what an earlier run has left there, in this order, and names it.
///
/// # Errors
/// What could not be taken off.
pub async fn remove_leftovers(
    netlink: &Netlink,
    state: &StateFile,
    left: impl IntoIterator<Item = Registered>,
) -> Result<Vec<String>, Stop> {
    let mut removed = Vec::new();
    let present = netlink.addresses().await.map_err(|error| Stop::leaving(error.into()))?;
    let is_at = |local: &LocalAddress, entry: &Registered| {
        local.index == entry.index
            && local.address == entry.address
            && local.prefix_length == entry.prefix_length
    };
    for entry in left {
        if present.iter().any(|local| is_at(local, &entry)) {
            netlink.delete_address(entry.index, entry.address, entry.prefix_length).await.map_err(
                |error| {
                    Stop::leaving(anyhow::Error::from(error).context(format!(
                        "taking {}/{} off {}, where an earlier run has left it",
                        entry.address, entry.prefix_length, entry.interface
                    )))
                },
            )?;
            warn!(
                address = %entry.address,
                interface = entry.interface,
                "taken off the interface: an earlier run had left it there"
            );
            removed.push(format!("{}/{} from {}", entry.address, entry.prefix_length, entry.interface));
        }
        state.remove(&entry)?;
    }
    Ok(removed)
}
