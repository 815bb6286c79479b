//! `explain`: why an address is answered, or is not. The verdict itself is asked, on the maps as the program sees them.

use std::net::Ipv4Addr;

use arpwarden_common::{
    abi::{AddressKey, Control, Group, Port},
    defence::Reaction,
    net::{Ipv4, MacAddr},
    state::State,
    verdict::{Asking, Outcome, Sighting, Witness, verdict},
    wire::arp::{Frame, Gist, REQUEST},
};
use arpwarden_engine::{Managed, MonoTime};

use super::Daemon;
use crate::io::{clock, link::Link};

/// Whom nothing else than the outcome is told.
struct Nobody;

impl Witness<u32> for Nobody {
    fn saw(&self, _: Sighting) -> Reaction {
        Reaction::Nothing
    }

    fn asks(&self, _: Asking) {}
}

impl Daemon {
    /// What holds of an address, the conclusion first.
    pub(super) async fn explain(&self, address: Ipv4Addr) -> Vec<String> {
        let keys = self.keys_of(address, None);
        let mut facts = Vec::new();
        for key in &keys {
            self.explain_managed(key, &mut facts).await;
        }
        if keys.is_empty() {
            facts.push(format!(
                "{address} is not managed, so the program passes every request for it to the kernel; see \
                 'arpwarden online' and 'arpwarden watch'"
            ));
            self.explain_local(address, &mut facts);
            if self.carriers.is_empty() {
                facts.push("the daemon runs on no interface: give one with 'run --iface IF'".to_owned());
            }
        }
        facts
    }

    async fn explain_managed(&self, key: &AddressKey, facts: &mut Vec<String>) {
        let (Some(managed), Some((index, carrier))) = (self.engine.get(key), self.carrier_of(key.interface))
        else {
            return;
        };
        let name = &self.interface_name(key.interface);
        let address: Ipv4Addr = key.address.into();
        let now = clock::now();
        let link = self.links.get(&key.interface);
        let mac = link.and_then(|link| link.mac).unwrap_or(MacAddr::ZERO);
        let outcome = self.ask(key, self.port(index, mac));
        let asked = format!("{address} on {name}: a broadcast request for it");
        facts.push(match outcome {
            Outcome::Answered { .. } if self.observe => {
                format!("{asked} would be answered by the program as {mac}; it only observes, so it passes")
            }
            Outcome::Answered { mac, .. } if carrier.presence.program => {
                format!("{asked} is answered by the program as {mac}")
            }
            Outcome::Shielded { .. } if carrier.presence.program => {
                format!("{asked} is dropped: {}", self.why_silent(key, managed, now))
            }
            _ if !carrier.presence.program => format!(
                "{asked} is passed to the kernel: the program is missing from {name}; 'online … --attach-now' or a \
                 restart puts it back"
            ),
            Outcome::Shielded { .. }
            | Outcome::Answered { .. }
            | Outcome::Truncated
            | Outcome::BadHeader
            | Outcome::BadSender
            | Outcome::Gratuitous
            | Outcome::Reply
            | Outcome::OtherDestination
            | Outcome::NotAnswering
            | Outcome::Unmanaged
            | Outcome::InactivePort
            | Outcome::Withheld
            | Outcome::Defended { .. } => format!(
                "{asked} is passed to the kernel, which has no such address: {}",
                self.why_silent(key, managed, now)
            ),
        });
        facts.push(format!(
            "state {} for {:.1} s, reason {}",
            managed.state().name(),
            now.since(managed.since()).as_secs_f64(),
            managed.reason().name()
        ));
        if let Some(error) = managed.last_error() {
            facts.push(format!("what failed last: {error}"));
        }
        if let Some(until) = managed.lease_until() {
            facts.push(if until > now {
                format!("its lease stands for another {:.1} s", until.since(now).as_secs_f64())
            } else {
                format!("its lease is past since {:.1} s", now.since(until).as_secs_f64())
            });
        }
        if let Some(owner) = managed.owner() {
            let ago = now.since(owner.seen).as_secs_f64();
            facts.push(format!("claimed last by {} {ago:.1} s ago", owner.claimant.mac));
        }
        facts.push(self.armed(managed, now));
        self.explain_interface(key, facts);
        self.explain_local(address, facts);
        if let Some(flux) = self.flux(key) {
            facts.push(flux);
        }
        let (claims, seen) = self.datapath.address_counters(key).unwrap_or_default();
        facts.push(format!(
            "answered {}, dropped for silence {}, kept in by the guard {}, claims by others {}",
            seen.answered, seen.shielded, claims.guarded, claims.claims
        ));
        let askers = self.datapath.askers(key, now.0);
        let last = askers.first();
        facts.push(last.map_or_else(
            || "nobody has asked for it".to_owned(),
            |asker| {
                let ago = now.since(MonoTime(asker.seen_ns)).as_secs_f64();
                format!("asked last by {} at {} {ago:.1} s ago", asker.address, asker.mac)
            },
        ));
    }

    /// What becomes of a broadcast request by a host that nobody knows.
    fn ask(&self, key: &AddressKey, port: Port) -> Outcome {
        // A unicast MAC that is administered locally and all but sure to be nobody's.
        const NOBODY: MacAddr = MacAddr::new([0x02, 0x61, 0x72, 0x70, 0x00, 0x00]);
        let frame = Frame {
            destination: MacAddr::BROADCAST,
            source: NOBODY,
            vlan: self.datapath.segment(key.interface).vlan,
            arp_at: 14,
            operation: REQUEST,
            sender_mac: NOBODY,
            // An address of nobody (RFC 5737), unless it is the one that is asked for.
            sender_ip: Ipv4::new([192, 0, 2, if key.address == Ipv4::new([192, 0, 2, 1]) { 2 } else { 1 }]),
            target_ip: key.address,
            gist: Gist::default(),
        }
        .judged();
        verdict(&frame, &port, &self.datapath, &Nobody)
    }

    /// Why this host may not answer.
    fn why_silent(&self, key: &AddressKey, managed: &Managed, now: MonoTime) -> String {
        let state = managed.state();
        if !state.may_answer() {
            return match state {
                State::Watched => "it is only watched".to_owned(),
                State::Probing => "it is being probed for before it is claimed".to_owned(),
                State::Yielding => "it is being given up".to_owned(),
                State::Suspended => match managed.lease_until() {
                    Some(until) if until <= now => {
                        "its lease is past; 'online' claims it anew, if it is to be here".to_owned()
                    }
                    _ => format!("the link of {} is down", self.interface_name(key.interface)),
                },
                State::Refused | State::Lost => {
                    let owner = managed.owner().map(|owner| owner.claimant.mac.to_string());
                    format!("{} has it; 'online' claims it anew", owner.as_deref().unwrap_or("another host"))
                }
                State::Announcing | State::Online | State::Contested => "it may be answered".to_owned(),
            };
        }
        let Some(standing) = self.datapath.standing(key) else {
            return "the program does not know it; please report this".to_owned();
        };
        if standing.fallen == standing.word.mark() {
            return "the program has given it up because of a conflict".to_owned();
        }
        if standing.lease_until_ns != 0 && standing.lease_until_ns < now.0 {
            return "its lease is past".to_owned();
        }
        if standing.group.word != Group::ANSWERS {
            return "its group is silent".to_owned();
        }
        if standing.group.lease_until_ns != 0 && standing.group.lease_until_ns < now.0 {
            return "the lease of its group is past".to_owned();
        }
        "its port is not acted on".to_owned()
    }

    /// Whether the program would defend it.
    fn armed(&self, managed: &Managed, now: MonoTime) -> String {
        let leased = managed.lease_until().is_some_and(|until| until > now);
        let slept = self.slept.abs_diff(clock::slept_ns()) > Control::SLEEP_NS;
        if slept {
            "the program defends nothing until the daemon has looked around: the machine has slept".to_owned()
        } else if leased {
            "the program defends it by itself as long as its lease stands".to_owned()
        } else {
            format!(
                "the program defends it by itself as long as the daemon has lived in the last 30 s (now {:.1} s ago)",
                now.since(self.beat).as_secs_f64()
            )
        }
    }

    fn explain_interface(&self, key: &AddressKey, facts: &mut Vec<String>) {
        let Some((_, carrier)) = self.carrier_of(key.interface) else { return };
        let name = self.interface_name(key.interface);
        let on = if name == carrier.name { String::new() } else { format!(" to {}", carrier.name) };
        let running = self.links.get(&key.interface).is_some_and(Link::carries);
        facts.push(format!(
            "{name} is {}, attached{on} {}, VLAN tags {}, guard {}",
            if running { "up" } else { "down or without carrier" },
            carrier.mode.name(),
            carrier.vlan_tags,
            if carrier.presence.guard {
                "there"
            } else {
                "MISSING: this host's kernel can speak in the address's name"
            },
        ));
    }

    /// Where it is configured on this host.
    fn explain_local(&self, address: Ipv4Addr, facts: &mut Vec<String>) {
        let places = self.places_of(address);
        let names: Vec<String> =
            places.map(|(index, length)| format!("{} (/{length})", self.interface_name(index))).collect();
        facts.push(if names.is_empty() {
            "not configured on this host".to_owned()
        } else {
            format!("configured on {}", names.join(", "))
        });
    }
}
