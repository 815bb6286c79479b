//! What the nodes say that they counted, against what the checker saw.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::plan::{ADDRESSES, NODES, address as ip_of};
use crate::{checker::Ledger, node::Event};

/// What passed on a node's cable about an address before its counters were read and until after they had been:
/// the plans of other nodes go on in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) before: Ledger,
    pub(super) after: Ledger,
    /// The node manages the address.
    pub(super) managed: bool,
}

/// Counters of an address and what the checker saw.
#[derive(Clone, Copy, Debug)]
struct Page {
    answered: u64,
    claims: u64,
    seen: Bounds,
}

/// By how much a number has grown between two readings, of each of which the bounds are known.
fn growth(of: impl Fn(&Ledger) -> u64, then: &Bounds, now: &Bounds) -> RangeInclusive<u64> {
    of(&now.before).saturating_sub(of(&then.after))..=of(&now.after) - of(&then.before)
}

/// Where the counters of the nodes stood when they were last compared.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// While an address is managed by one daemon.
    pages: [[Option<Page>; ADDRESSES]; NODES],
    /// Requests answered in all, as the node says and as the checker saw before and after: from loading to `unload`.
    answered: [Option<(u64, u64, u64)>; NODES],
    /// Defences told in events, in all.
    defended: [[u64; ADDRESSES]; NODES],
}

/// An address, if it is about one, and what is wrong.
type Wrong = (Option<usize>, String);

impl Books {
    /// The node begins or ends to manage an address: its counters begin anew.
    pub(super) fn forget(&mut self, node: usize, address: usize) {
        self.pages[node][address] = None;
    }

    /// A daemon starts.
    pub(super) fn started(&mut self, node: usize) {
        self.pages[node] = [None; ADDRESSES];
    }

    /// Everything of the node's is gone, the counters too.
    pub(super) fn unloaded(&mut self, node: usize) {
        self.started(node);
        self.answered[node] = None;
    }

    /// Notes events.
    pub(super) fn heard(&mut self, node: usize, events: &[Event]) {
        for Event { json, .. } in events.iter().filter(|event| event.json["event"] == "defended") {
            let of = (0..ADDRESSES).find(|&address| json["address"] == ip_of(address).to_string().as_str());
            if let Some(address) = of {
                self.defended[node][address] += 1;
            }
        }
    }

    /// Compares `status --json` with what passed on the node's cable about each address.
    ///
    /// # Errors
    /// What does not agree.
    pub(super) fn audit(
        &mut self,
        node: usize,
        status: &Value,
        seen: &[Bounds; ADDRESSES],
    ) -> Result<(), Wrong> {
        let compare = |what: &str, then: u64, now: u64, seen: RangeInclusive<u64>| {
            if seen.contains(&now.wrapping_sub(then)) {
                return Ok(());
            }
            let (least, most) = seen.into_inner();
            Err(format!("node {node}: {what} went from {then} to {now}, the capture has {least} to {most}"))
        };
        for (address, seen) in seen.iter().enumerate() {
            let text = ip_of(address).to_string();
            let entries = status["addresses"].as_array();
            let entry = entries.and_then(|all| all.iter().find(|entry| entry["address"] == text.as_str()));
            let Some(counters) = entry.filter(|_| seen.managed).map(|entry| &entry["counters"]) else {
                self.forget(node, address);
                continue;
            };
            let counter = |name: &str| counters[name].as_u64().unwrap_or(u64::MAX);
            let page = Page { answered: counter("answered"), claims: counter("claims"), seen: *seen };
            if let Some(then) = self.pages[node][address].replace(page) {
                let answers = growth(|ledger| ledger.answers, &then.seen, seen);
                let claims = growth(|ledger| ledger.claims, &then.seen, seen);
                let own = growth(|ledger| ledger.own, &then.seen, seen);
                let claims = *claims.start()..=claims.end() + own.end();
                compare(&format!("counter `answered` of {text}"), then.answered, page.answered, answers)
                    .and_then(|()| {
                        compare(&format!("counter `claims` of {text}"), then.claims, page.claims, claims)
                    })
                    .map_err(|what| (Some(address), what))?;
            }
        }
        let total = status["counters"]["answered"].as_u64().unwrap_or(u64::MAX);
        let sum = |of: fn(&Bounds) -> u64| seen.iter().map(of).sum::<u64>();
        let page = (total, sum(|seen| seen.before.answers), sum(|seen| seen.after.answers));
        if let Some((then, least, most)) = self.answered[node].replace(page) {
            let answers = page.1.saturating_sub(most)..=page.2 - least;
            compare("counter `answered` of all addresses", then, total, answers)
                .map_err(|what| (None, what))?;
        }
        Ok(())
    }

    /// Compares the `defended` events with the least and greatest number of defences on the wire.
    ///
    /// # Errors
    /// What does not agree, in words.
    pub(super) fn audit_defences(
        &self,
        node: usize,
        defences: &[(u64, u64); ADDRESSES],
    ) -> Result<(), String> {
        for (address, (least, most)) in defences.iter().enumerate() {
            let told = self.defended[node][address];
            if !(*least..=*most).contains(&told) {
                let text = ip_of(address);
                return Err(format!(
                    "node {node} told of {told} defences of {text}, the capture has {least} to {most}"
                ));
            }
        }
        Ok(())
    }
}
