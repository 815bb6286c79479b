//! Puts addresses on interfaces and takes them off, in order, in a thread of its own: the kernel can take its time over
//! it, the more the more addresses an interface has (it looks at all of them for each one that is added), and whoever
//! waits for an answer to a conflict must not wait for that.

use std::{collections::BTreeSet, sync::Arc, thread};

use anyhow::Context as _;
use arpwarden_common::abi::AddressKey;
use tokio::{runtime, sync::mpsc};
use tracing::warn;

use super::Stop;
use crate::{
    io::netlink::{Netlink, PIPELINED, Place},
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

/// Works orders off, each with the name of its interface, in a thread of this network namespace, until nobody gives any.
///
/// # Errors
/// There is no room for another thread, or for its socket.
pub(super) fn start(
    state: StateFile,
    orders: mpsc::UnboundedReceiver<(Order, Arc<str>)>,
    done: mpsc::UnboundedSender<Done>,
) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting the thread that registers addresses")?;
    let netlink = {
        let _inside = runtime.enter();
        Netlink::for_requests().context("opening a netlink socket")?
    };
    let work = move || runtime.block_on(work(&netlink, &state, orders, &done));
    thread::Builder::new()
        .name("registrar".to_owned())
        .spawn(work)
        .map(drop)
        .context("starting the thread that registers addresses")
}

async fn work(
    netlink: &Netlink,
    state: &StateFile,
    mut orders: mpsc::UnboundedReceiver<(Order, Arc<str>)>,
    done: &mpsc::UnboundedSender<Done>,
) {
    let mut batch = Vec::new();
    while orders.recv_many(&mut batch, PIPELINED).await > 0 {
        let work: Vec<(Order, Registered)> = batch
            .drain(..)
            .map(|(order, interface)| {
                let (Order::Register(key, prefix_length) | Order::Deregister(key, prefix_length)) = order;
                let (index, address) = (key.interface, key.address.into());
                (order, Registered { index, interface, address, prefix_length })
            })
            .collect();
        let adds = |(order, _): &(Order, Registered)| matches!(order, Order::Register(..));
        for alike in work.chunk_by(|one, other| adds(one) == adds(other)) {
            let entries = alike.iter().map(|(_, entry)| entry);
            let results = if alike.first().is_some_and(adds) {
                register(netlink, state, &entries.collect::<Vec<_>>()).await
            } else {
                let mut results = Vec::with_capacity(alike.len());
                for entry in entries {
                    results.push(deregister(netlink, state, entry).await);
                }
                results
            };
            for ((order, _), result) in alike.iter().zip(results) {
                if done.send(Done { order: *order, result }).is_err() {
                    return;
                }
            }
        }
    }
}

/// Puts addresses on their interfaces. Each is written down before it is put there.
async fn register(netlink: &Netlink, state: &StateFile, entries: &[&Registered]) -> Vec<Result<(), String>> {
    // Where there is no room for all of them there may be for some.
    let written: Vec<Result<(), String>> = match state.add(entries.iter().copied()) {
        Ok(()) => entries.iter().map(|_| Ok(())).collect(),
        Err(_) => entries
            .iter()
            .map(|entry| {
                state.add([*entry]).map_err(|error| {
                    format!("{error:#}; an address that is not written down is not registered")
                })
            })
            .collect(),
    };
    let places: Vec<Place> = entries
        .iter()
        .zip(&written)
        .filter(|(_, written)| written.is_ok())
        .map(|(entry, _)| place(entry))
        .collect();
    let mut added = netlink.add_addresses(&places).await.into_iter();
    let mut results = Vec::with_capacity(entries.len());
    for (entry, written) in entries.iter().zip(written) {
        let result = written.and_then(|()| match added.next() {
            Some(added) => added.map_err(|error| format!("{:#}", anyhow::Error::from(error))),
            None => Err("the kernel was not asked for it".to_owned()),
        });
        if result.is_err() {
            strike_out(state, entry);
        }
        results.push(result);
    }
    results
}

async fn deregister(netlink: &Netlink, state: &StateFile, entry: &Registered) -> Result<(), String> {
    netlink
        .delete_address(entry.index, entry.address, entry.prefix_length)
        .await
        .map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
    strike_out(state, entry);
    Ok(())
}

/// Writes down that an address is off its interface.
fn strike_out(state: &StateFile, entry: &Registered) {
    if let Err(error) = state.remove(entry) {
        let Registered { address, prefix_length, .. } = entry;
        warn!("{error:#}; the next start will look for {address}/{prefix_length} and find it gone");
    }
}

fn place(entry: &Registered) -> Place {
    Place { index: entry.index, address: entry.address, prefix_length: entry.prefix_length }
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
    let present: BTreeSet<_> =
        present.iter().map(|local| (local.index, local.address, local.prefix_length)).collect();
    for entry in left {
        if present.contains(&(entry.index, entry.address, entry.prefix_length)) {
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
                interface = &*entry.interface,
                "taken off the interface: an earlier run had left it there"
            );
            removed.push(format!("{}/{} from {}", entry.address, entry.prefix_length, entry.interface));
        }
        state.remove(&entry)?;
    }
    Ok(removed)
}
