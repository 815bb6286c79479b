//! Groups of addresses: silenced by one store, renewed by one, whatever each address's own word and lease say beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    rc::Rc,
    time::Duration,
};

use arpwarden_common::{
    abi::{AddressKey, Group, MAX_GROUPS},
    state::State,
};
use arpwarden_engine::{Answer, Input, MonoTime, OnlineSpec};
use tracing::warn;

use super::{
    Client, Daemon, Pending, Verb,
    commands::{Permitted, taken},
    find_link,
};
use crate::{cli, config, exit::Exit, io::clock, protocol::GroupName};

/// A group on its way online: none of its addresses is announced before all can be.
pub(super) struct JointClaim {
    client: Rc<Client>,
    /// Those that are claimed, and how each stands.
    members: BTreeMap<AddressKey, Standing>,
}

/// How a member of a [`JointClaim`] stands.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Standing {
    /// Its answer is open; it may be held, or be taken on already.
    Open {
        /// It was watched before, and is again if all is taken back.
        watched: bool,
    },
    /// It is ours.
    Done,
    /// It is not to be had: why.
    Refused(Exit, String),
}

impl Daemon {
    /// The number of a group whose addresses may answer as their own words say; a new one, if there is none of this name.
    pub(super) fn group_that_answers(&mut self, name: GroupName) -> Result<u32, String> {
        if self.joint.contains_key(&name) {
            return Err(format!("group '{name}' is being brought online; wait until that is done"));
        }
        let number = self.group_number(name)?;
        let before = self.datapath.group(number).unwrap_or_default();
        let past = before.lease_until_ns != 0 && before.lease_until_ns < clock::now().0;
        let answering =
            |key: &AddressKey| self.engine.get(key).is_some_and(|managed| managed.state().may_answer());
        if past && self.members(name).iter().any(answering) {
            return Err(format!(
                "the lease of group '{name}' is past, and somebody else may own its addresses; take it offline first"
            ));
        }
        let known = self.groups.insert(name, number).is_some();
        // One that was silenced or whose lease is past was given up by all, each by its own word: a new claim begins a new
        // life. The lease of one that answers goes on: it is the decider's word on all of them.
        if !known || past || before.word != Group::ANSWERS {
            self.datapath.set_group(number, Group { word: Group::ANSWERS, lease_until_ns: 0 });
        }
        Ok(number)
    }

    /// The number of a group, or one that is free.
    fn group_number(&self, name: GroupName) -> Result<u32, String> {
        if let Some(number) = self.groups.get(&name) {
            return Ok(*number);
        }
        let taken: BTreeSet<u32> = self.groups.values().copied().collect();
        let free = (1..MAX_GROUPS).find(|number| !taken.contains(number));
        free.ok_or_else(|| {
            format!("all {} groups are taken; give the addresses of one up first", MAX_GROUPS - 1)
        })
    }

    /// For how long the lease of a group stands; `None` if it has none.
    pub(super) fn group_lease_left(&self, name: GroupName) -> Option<Duration> {
        let until_ns = self.datapath.group(*self.groups.get(&name)?)?.lease_until_ns;
        (until_ns != 0).then(|| MonoTime(until_ns).since(clock::now()))
    }

    /// The group of an address, by its claim.
    pub(super) fn group_of(&self, key: &AddressKey) -> Option<GroupName> {
        self.notes.get(key).and_then(|notes| notes.how().group)
    }

    /// The addresses of a group, in the order of their keys.
    pub(super) fn members(&self, name: GroupName) -> Vec<AddressKey> {
        let members = self.notes.iter().filter(|(_, notes)| notes.how().group == Some(name));
        members.map(|(key, _)| *key).filter(|key| self.engine.get(key).is_some()).collect()
    }

    /// Puts an address that the program knows into its group.
    pub(super) fn join_group(&mut self, key: &AddressKey) {
        let number = self.group_of(key).and_then(|name| self.groups.get(&name).copied()).unwrap_or(0);
        if let Err(error) = self.datapath.set_slot_group(key, number) {
            warn!(address = %key.address, "putting the address into its group: {error}");
        }
    }

    /// Silences a group by one store. Its addresses are to be given up right behind it.
    pub(super) fn silence_group(&mut self, name: GroupName) {
        if let Some(number) = self.groups.get(&name) {
            self.datapath.set_group(*number, Group { word: Group::SILENT, lease_until_ns: 0 });
        }
    }

    /// Prolongs the lease of a group by one store; false if it is past, so that somebody else may own its addresses.
    pub(super) fn renew_group(&mut self, name: GroupName, now_ns: u64, until_ns: u64) -> bool {
        let Some(number) = self.groups.get(&name).copied() else { return true };
        let group = self.datapath.group(number).unwrap_or_default();
        let stands = group.lease_until_ns == 0 || group.lease_until_ns >= now_ns;
        if stands {
            self.datapath.set_group(number, Group { lease_until_ns: until_ns, ..group });
        }
        stands
    }

    /// Forgets a group that has lost its last address.
    pub(super) fn forget_empty_group(&mut self, name: GroupName) {
        let empty = self.notes.values().all(|notes| notes.how().group != Some(name));
        if empty && let Some(number) = self.groups.remove(&name) {
            self.datapath.set_group(number, Group::default());
        }
    }

    /// Whether a group is being given up, as an earlier run has left it.
    pub(super) fn is_silenced(&self, number: u32) -> bool {
        number != 0 && self.datapath.group(number).is_some_and(|group| group.word != Group::ANSWERS)
    }

    /// Claims the addresses of a group of the configuration that are not ours yet: all go online by one store, or none.
    /// `tells_all`: also of those that are ours already.
    pub(super) async fn bring_group_online(&mut self, client: &Rc<Client>, name: GroupName, tells_all: bool) {
        let members: Vec<(config::Place, config::Address)> = self
            .settings
            .file
            .members(name)
            .map(|(place, address)| (place.clone(), address.clone()))
            .collect();
        if members.is_empty() {
            let message = format!(
                "group '{name}' has no addresses in the configuration file; claim them with 'online ADDR/LEN --group {name}'"
            );
            return client.end_with(Exit::Failed, message);
        }
        if self.joint.contains_key(&name) {
            return client.end_with(Exit::Failed, format!("group '{name}' is being brought online already"));
        }
        let mut claims = Vec::new();
        let mut refused = false;
        let mut own = Vec::new();
        for ((interface, ip), address) in members {
            let refuse = |refusal| client.result(ip, Some(&interface), refusal);
            let found = find_link(&self.links, &interface);
            let index = match found.map(|link| link.index) {
                Ok(index) if self.carrier_of(index).is_some() => index,
                Ok(_) => {
                    refused = true;
                    refuse((
                        Exit::Failed,
                        format!("the daemon does not run on {interface}; see 'arpwarden status'"),
                    ));
                    continue;
                }
                Err(stop) => {
                    refused = true;
                    refuse((stop.exit, format!("{:#}", stop.error)));
                    continue;
                }
            };
            let key = Self::key(index, ip);
            let state = self.engine.get(&key).map(arpwarden_engine::Managed::state);
            if self.is_in_force(&key) {
                if self.group_of(&key) == Some(name) {
                    own.push((ip, interface, state));
                    continue;
                }
                refused = true;
                refuse((Exit::Failed, "managed outside of its group; take it offline first".to_owned()));
                continue;
            }
            if state == Some(State::Yielding) {
                refused = true;
                refuse((Exit::Failed, "being given up; try again when that is done".to_owned()));
                continue;
            }
            match self.permit(&key, address.how).await {
                Ok(permitted) => claims.push((key, address, permitted, state == Some(State::Watched))),
                Err(refusal) => {
                    refused = true;
                    refuse(refusal);
                }
            }
        }
        let number = match self.group_number(name) {
            Ok(number) if !refused => number,
            Ok(_) => {
                for (key, ..) in &claims {
                    let interface = self.interface_name(key.interface);
                    let why = "not claimed: its group goes online as a whole or not at all".to_owned();
                    client.result(key.address.into(), Some(&interface), (Exit::Failed, why));
                }
                return;
            }
            Err(why) => return client.end_with(Exit::Failed, why),
        };
        if tells_all {
            for (ip, interface, state) in &own {
                let words = format!("{} already; nothing to do", state.map_or("", State::name));
                client.result(*ip, Some(interface), (Exit::Done, words));
            }
        }
        if claims.is_empty() {
            return;
        }
        self.groups.insert(name, number);
        if own.is_empty() {
            // From here on nothing of it answers, whatever becomes of each word, until all of them may.
            self.datapath.set_group(number, Group { word: Group::SILENT, lease_until_ns: 0 });
        }
        let standings =
            claims.iter().map(|(key, _, _, watched)| (*key, Standing::Open { watched: *watched }));
        let members = standings.collect();
        self.joint.insert(name, JointClaim { client: Rc::clone(client), members });
        for (key, address, Permitted { adopt, warning }, _) in claims {
            self.note(key, address.how, true);
            if self.engine.get(&key).is_some() {
                self.join_group(&key);
            }
            let spec = address.how.spec(address.cidr.prefix_length());
            // Nobody waits at a terminal for a link that is down when the daemon starts.
            let wait = self.patience(&key, spec.wait);
            // One that joins others is past with them: else it would be taken for answered when none of them is.
            let lease = [spec.lease, self.group_lease_left(name)].into_iter().flatten().min();
            let spec = OnlineSpec { adopt, lease, wait, joint: !adopt, ..spec };
            let pending =
                Pending { joint: Some(name), warning, ..Pending::new(client, key, Verb::Online(spec)) };
            self.submit(pending, |request| Input::Online { request, key, spec });
        }
    }

    /// For how long a claim that the file asks for is retried: where the link is down, until it is up.
    pub(super) fn patience(&self, key: &AddressKey, wait: Duration) -> Duration {
        let up = self.links.get(&key.interface).is_some_and(crate::io::link::Link::carries);
        if up { wait } else { wait.max(Duration::from_millis(cli::MAX_WAIT_MS)) }
    }

    /// A member of a group on its way online waits for the others.
    pub(super) fn held(&mut self, key: &AddressKey) {
        if let Some(name) = self.group_of(key) {
            self.conclude(name);
        }
    }

    /// Lets a group answer: all that it answers for begins with this store.
    pub(super) fn flip_group(&mut self, number: u32) {
        let before = self.datapath.group(number).unwrap_or_default();
        self.datapath.set_group(number, Group { word: Group::ANSWERS, ..before });
    }

    /// How a member of a group on its way online has fared; whether that is told as it is.
    pub(super) fn joint_answer(&mut self, name: GroupName, key: AddressKey, answer: &Answer) -> bool {
        let Some(standing) = self.joint.get_mut(&name).and_then(|claim| claim.members.get_mut(&key)) else {
            return false; // taken back, and told so
        };
        *standing = match answer {
            Answer::Done | Answer::Already(_) => Standing::Done,
            Answer::Taken { claimant, reason } => Standing::Refused(Exit::Taken, taken(claimant, *reason)),
            Answer::Failed(what) => Standing::Refused(Exit::Failed, what.clone()),
            Answer::Unknown | Answer::Differs { .. } | Answer::WrongState(_) | Answer::Superseded => {
                Standing::Refused(Exit::Failed, "it was told something else meanwhile".to_owned())
            }
        };
        self.conclude(name);
        true
    }

    /// Takes all of a group on as soon as all are held, or takes all back as soon as each has come to an end and one of
    /// them is not to be had.
    fn conclude(&mut self, name: GroupName) {
        let Some(claim) = self.joint.get(&name) else { return };
        let held = |key: &AddressKey| self.engine.get(key).is_some_and(arpwarden_engine::Managed::is_held);
        let open: Vec<AddressKey> = claim
            .members
            .iter()
            .filter(|(_, standing)| matches!(standing, Standing::Open { .. }))
            .map(|(key, _)| *key)
            .collect();
        let mut exit = Exit::Done;
        let mut refused = Vec::new();
        for (key, standing) in &claim.members {
            if let Standing::Refused(one, why) = standing {
                exit = exit.worst(*one);
                refused.push(format!("{}: {why}", Ipv4Addr::from(key.address)));
            }
        }
        if open.is_empty() && refused.is_empty() {
            self.joint.remove(&name);
        } else if !open.iter().all(held) {
            // Each has its say first.
        } else if refused.is_empty() {
            let Some(group) = self.groups.get(&name).copied() else { return };
            self.tell(Input::TakeAll { group, keys: open });
        } else if let Some(JointClaim { client, members }) = self.joint.remove(&name) {
            let why = format!(
                "not online: its group '{name}' goes online as a whole or not at all, and {}; what was done is taken back",
                refused.join("; ")
            );
            for (key, standing) in members {
                let Standing::Open { watched } = standing else { continue };
                let interface = self.interface_name(key.interface);
                client.result(key.address.into(), Some(&interface), (exit, why.clone()));
                let request = self.new_request();
                self.tell(Input::Offline { request, key, watch: watched });
            }
        }
    }
}
