//! What happened, as one JSON object a line and as one line of words.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::Ipv4Addr,
    sync::Arc,
};

use arpwarden_common::{
    net::{MacAddr, Vlan},
    wire::arp,
};
use arpwarden_engine::{
    action::{Event, EventKind},
    input::{Claimant, Sighting, SightingKind},
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tracing::{debug, info, warn};

use crate::{alike::Alike, io::clock, short::Short};

/// Events that the daemon remembers, and that a reader may be behind before it loses some. An event is some
/// 300 bytes, so this is a third of a megabyte; at 64 claimants a minute it is the last quarter of an hour of
/// one flooded address.
const RECENT: usize = 1024;

/// Events that may wait to be logged: those that one look at the ring can lead to.
const UNLOGGED: usize = 64;
/// Lines that each kind of event that others cause may take of the log in a second. What an event says is remembered and
/// passed on all the same; under a flood of a thousand addresses the lines would cost more than all else.
const LINES_PER_SECOND: u32 = 100;

/// A word of an event: one of ours, or what was read.
pub type Word = Cow<'static, str>;

/// An event as `events --json` prints it. Fields that do not apply are left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// RFC 3339, UTC, nanoseconds.
    pub time: Short,
    /// From 1 in each run of the daemon.
    pub seq: u64,
    /// Name of the event.
    pub event: Word,
    /// Bare address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Name of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<Arc<str>>,
    /// VLAN ids, outermost first, 0 left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vec<u16>>,
    /// State before; left out for an address that was not managed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Word>,
    /// State after; left out for an address that is managed no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Word>,
    /// MAC of the claimant, prober or owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimant: Option<Short>,
    /// Ethernet source of its frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ethernet_source: Option<Short>,
    /// The MAC that this host answers with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_mac: Option<Short>,
    /// `request` or `reply`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Word>,
    /// `probe`, `announcement`, `request` or `reply`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<Word>,
    /// Frames that the event stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// CLOCK_BOOTTIME of the frame in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_time_ns: Option<u64>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Word>,
}

fn mac(mac: MacAddr) -> Short {
    Short::new(&mac.to_string())
}

/// VLAN ids, outermost first, 0 left out.
pub fn vlan_ids(vlan: Vlan) -> Vec<u16> {
    vlan.ids().into_iter().filter(|id| *id != 0).collect()
}

impl Record {
    fn claimant(mut self, claimant: &Claimant) -> Self {
        self.claimant = Some(mac(claimant.mac));
        self.ethernet_source = Some(mac(claimant.ethernet_source));
        self
    }

    fn sighting(self, sighting: &Sighting) -> Self {
        let operation = if sighting.operation == arp::REPLY { "reply" } else { "request" };
        let mut record = self.claimant(&sighting.claimant);
        record.operation = Some(operation.into());
        record.form = Some(sighting.form.name().into());
        record.count = Some(sighting.count);
        record.kernel_time_ns = Some(sighting.at.0);
        record
    }

    fn named(mut self, event: impl Into<Word>) -> Self {
        self.event = event.into();
        self
    }

    fn reason(mut self, reason: impl Into<Word>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    fn own_mac(mut self, own: MacAddr) -> Self {
        self.own_mac = Some(mac(own));
        self
    }

    fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// The record of an engine event; `None` for what only the log tells.
    fn of(event: &Event, interface: Arc<str>, vlan: Vec<u16>) -> Option<Self> {
        let base = Self {
            address: Some(event.key.address.into()),
            interface: Some(interface),
            vlan: Some(vlan),
            ..Self::default()
        };
        Some(match &event.kind {
            EventKind::State { from, to, reason } => Self {
                from: from.map(|state| state.name().into()),
                to: to.map(|state| state.name().into()),
                ..base.named("state").reason(reason.name())
            },
            EventKind::Conflict { sighting, loud } => {
                let record = base.named("conflict").sighting(sighting);
                if *loud { record.reason("more_than_4_claims_in_180_s") } else { record }
            }
            EventKind::Defended { claimant, own_mac } => {
                base.named("defended").claimant(claimant).own_mac(*own_mac)
            }
            EventKind::ProbeSeen { sighting } => base.named("probe_seen").sighting(sighting),
            EventKind::Announced { count, own_mac } => {
                base.named("announced").count(*count).own_mac(*own_mac)
            }
            EventKind::OwnerChanged { sighting } => base.named("owner_changed").sighting(sighting),
            EventKind::RolledBack { claimant } => base.named("rolled_back").claimant(claimant),
            EventKind::Repaired { claimant, count } => {
                let record = base.named("repaired").count(*count);
                match claimant {
                    Some(owner) => record.claimant(owner),
                    None => record.reason("commanded"),
                }
            }
            EventKind::Echo { sighting } => {
                let sibling = matches!(sighting.kind, SightingKind::Echo { sibling: true });
                base.named("echo").sighting(sighting).reason(if sibling { "sibling" } else { "own_mac" })
            }
            EventKind::ClaimantFlood { sighting } => base.named("claimant_flood").sighting(sighting),
            EventKind::AddressRemoved => base.named("address_removed"),
            EventKind::AddressRestored => base.named("address_restored"),
            EventKind::AddressAdded => base.named("address_added"),
            EventKind::LeaseExpired => base.named("lease_expired"),
            EventKind::Adopted { untold } => base.named("adopted").count(*untold),
            EventKind::Failed { .. } => return None,
        })
    }

    /// The same in words, without time and number.
    pub fn words(&self) -> String {
        let mut text = String::from(&*self.event);
        let mut put = |name: &str, value: Option<&dyn std::fmt::Display>| {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = write!(text, " {name}={value}");
            }
        };
        put("address", self.address.as_ref().map(|v| v as _));
        put("interface", self.interface.as_ref().map(|v| v as _));
        let vlan = self.vlan.as_deref().unwrap_or_default();
        if !vlan.is_empty() {
            let ids = vlan.iter().map(u16::to_string).collect::<Vec<_>>().join(".");
            put("vlan", Some(&ids));
        }
        if self.event == "state" {
            let state = |state: &Option<Word>| state.clone().unwrap_or("unmanaged".into());
            put("from", Some(&state(&self.from)));
            put("to", Some(&state(&self.to)));
        }
        put("claimant", self.claimant.as_ref().map(|v| v as _));
        // The Ethernet source is worth its room only where it is another one.
        let source = self.ethernet_source.as_ref().filter(|source| self.claimant.as_ref() != Some(*source));
        put("ethernet_source", source.map(|v| v as _));
        put("own_mac", self.own_mac.as_ref().map(|v| v as _));
        put("operation", self.operation.as_ref().map(|v| v as _));
        put("form", self.form.as_ref().map(|v| v as _));
        put("count", self.count.as_ref().map(|v| v as _));
        put("reason", self.reason.as_ref().map(|v| v as _));
        text
    }
}

/// The events of this run: numbered, remembered, passed on, logged. What is not logged yet is with the end of the value.
pub struct Journal {
    seq: u64,
    recent: VecDeque<Arc<Record>>,
    followers: broadcast::Sender<Arc<Record>>,
    unlogged: Vec<Arc<Record>>,
    lines: Lines,
    /// Of interfaces.
    names: Alike<str>,
}

impl Default for Journal {
    fn default() -> Self {
        let (followers, _) = broadcast::channel(RECENT);
        let (recent, unlogged) = (VecDeque::new(), Vec::new());
        Self { seq: 0, recent, followers, unlogged, lines: Lines::default(), names: Alike::default() }
    }
}

impl Journal {
    /// Takes an event of the engine, about an address on this interface, whose frames have these VLAN ids.
    pub fn engine(&mut self, event: &Event, interface: &str, vlan: Vec<u16>) {
        if let EventKind::Failed { what } = &event.kind {
            self.log();
            warn!(address = %event.key.address, interface, "{what}");
        }
        let interface = self.names.share(interface);
        if let Some(record) = Record::of(event, interface, vlan) {
            self.take(record);
        }
    }

    /// Takes an event of a link, with its new MAC or with a reason where there is one.
    pub fn link(
        &mut self,
        event: &'static str,
        interface: &str,
        own_mac: Option<MacAddr>,
        reason: Option<&str>,
    ) {
        let record = Record {
            interface: Some(self.names.share(interface)),
            own_mac: own_mac.map(mac),
            reason: reason.map(|reason| Word::Owned(reason.to_owned())),
            ..Record::default()
        };
        self.take(record.named(event));
    }

    /// Takes an event of the netlink watch.
    pub fn resynchronized(&mut self, reason: &'static str) {
        self.take(Record::default().named("resync").reason(reason));
    }

    fn take(&mut self, mut record: Record) {
        self.seq += 1;
        record.seq = self.seq;
        record.time = Short::new(&clock::wall_time_rfc3339_ns());
        let record = Arc::new(record);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Arc::clone(&record));
        if self.unlogged.len() == UNLOGGED {
            self.log();
        }
        self.unlogged.push(Arc::clone(&record));
        // No follower is no error.
        let _ = self.followers.send(record);
    }

    /// Whether [`Journal::log`] has something to do.
    pub fn has_unlogged(&self) -> bool {
        !self.unlogged.is_empty()
    }

    /// Logs what is not logged yet. A line takes longer than all else that is done about a claim, so whoever follows the
    /// events is to be served before.
    pub fn log(&mut self) {
        if self.unlogged.is_empty() {
            return;
        }
        for (event, count) in self.lines.begin(clock::now().0 / 1_000_000_000) {
            warn!(
                "{event}: {count} more within a second that are not logged one by one; 'arpwarden events' tells them"
            );
        }
        for record in self.unlogged.drain(..) {
            if !self.lines.has_room(&record.event) {
                continue;
            }
            match &*record.event {
                "conflict" | "claimant_flood" | "rolled_back" | "echo" | "address_removed"
                | "address_added" | "lease_expired" | "link_down" | "program_missing" | "resync" => {
                    warn!("{}", record.words());
                }
                "probe_seen" => debug!("{}", record.words()),
                _ => info!("{}", record.words()),
            }
        }
    }

    /// Moves what is remembered together in memory ([`crate::io::memory::close_ranks`]).
    pub(crate) fn close_ranks(&mut self, meanwhile: impl FnOnce()) {
        self.log();
        let all: Vec<Record> = self.recent.drain(..).map(Arc::unwrap_or_clone).collect();
        meanwhile();
        self.recent.extend(all.into_iter().map(Arc::new));
    }

    /// The recent past, and what follows without a gap.
    pub fn subscribe(&self) -> (Vec<Arc<Record>>, broadcast::Receiver<Arc<Record>>) {
        (self.recent.iter().cloned().collect(), self.followers.subscribe())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.log();
    }
}

/// How many lines the events that others cause have taken of the log.
#[derive(Default)]
struct Lines {
    /// In this second of CLOCK_BOOTTIME.
    second: u64,
    /// Of these kinds.
    taken: BTreeMap<Word, u32>,
}

impl Lines {
    /// Begins a second, if it is another one; gives what had no room in the one before.
    fn begin(&mut self, second: u64) -> Vec<(Word, u32)> {
        if self.second == second {
            return Vec::new();
        }
        self.second = second;
        let beyond = |(event, count): (Word, u32)| Some((event, count.checked_sub(LINES_PER_SECOND)?));
        let all = std::mem::take(&mut self.taken).into_iter();
        all.filter_map(beyond).filter(|(_, count)| *count > 0).collect()
    }

    /// Whether an event of this kind is to have a line.
    fn has_room(&mut self, event: &Word) -> bool {
        if !matches!(&**event, "conflict" | "claimant_flood" | "owner_changed" | "probe_seen" | "echo") {
            return true;
        }
        let taken = self.taken.entry(event.clone()).or_default();
        *taken += 1;
        *taken <= LINES_PER_SECOND
    }
}

/// What a reader is told that fell behind: `count` events are gone, the last of them is `last_missed`.
pub fn gap(last_missed: u64, count: u64) -> Record {
    let time = Short::new(&clock::wall_time_rfc3339_ns());
    let record = Record { time, seq: last_missed, ..Record::default() };
    record.named("event_gap").count(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_events_wait_to_be_logged_however_many_come_at_once() {
        let mut journal = Journal::default();
        for _ in 0..10 * UNLOGGED {
            journal.link("link_up", "eth0", None, None);
            assert!(journal.has_unlogged() && journal.unlogged.len() <= UNLOGGED);
        }
        journal.log();
        assert!(!journal.has_unlogged());
    }

    #[test]
    fn what_others_cause_takes_a_hundred_lines_a_second_and_what_had_no_room_is_counted() {
        let (claims, ours) = (Word::Borrowed("conflict"), Word::Borrowed("state"));
        let mut lines = Lines::default();
        assert!(lines.begin(7).is_empty());
        let logged = |lines: &mut Lines, event: &Word| (0..1_000).filter(|_| lines.has_room(event)).count();
        assert_eq!((logged(&mut lines, &claims), logged(&mut lines, &ours)), (100, 1_000));
        assert!(lines.begin(7).is_empty(), "the second goes on");
        assert_eq!(logged(&mut lines, &claims), 0);
        assert_eq!(lines.begin(8), [(claims.clone(), 1_900)]);
        assert_eq!(logged(&mut lines, &claims), 100);
        assert_eq!(lines.begin(9), [(claims, 900)]);
        assert!(lines.begin(10).is_empty());
    }
}
