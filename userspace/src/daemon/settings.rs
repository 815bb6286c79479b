//! What holds of the command line and the configuration file: the command line goes first.

use arpwarden_common::{
    abi::{DEFAULT_CAPACITY, Port},
    net::MacAddr,
};
use arpwarden_engine::input::{MoveBudget, Pace};

use crate::{
    cli::{self, Attach, OnExit, VlanOffload},
    config::Config,
};

/// Both, as they are in force.
pub(super) struct Settings {
    /// The command line of `run`.
    pub(super) flags: cli::Run,
    /// The file as it was applied last; empty without one.
    pub(super) file: Config,
}

impl Settings {
    pub(super) fn on_exit(&self) -> OnExit {
        self.flags.on_exit.or(self.file.daemon.on_exit).unwrap_or_default()
    }

    pub(super) fn observe(&self) -> bool {
        self.flags.observe || self.file.daemon.observe.unwrap_or_default()
    }

    pub(super) fn capacity(&self) -> u32 {
        self.flags.capacity.or(self.file.daemon.capacity).unwrap_or(DEFAULT_CAPACITY)
    }

    pub(super) fn socket_group(&self) -> Option<&str> {
        self.flags.socket_group.as_deref().or(self.file.daemon.socket_group.as_deref())
    }

    /// Names of all interfaces to run on, each once.
    pub(super) fn interfaces(&self) -> Vec<String> {
        let mut names = self.flags.interfaces.clone();
        names.extend(
            self.file.interfaces.keys().filter(|name| !self.flags.interfaces.contains(name)).cloned(),
        );
        names
    }

    /// How the program is attached to an interface, for addresses on one of these: itself, or what stands on it.
    pub(super) fn attach(&self, names: &[&str]) -> Attach {
        let here = || names.iter().find_map(|name| self.file.interfaces.get(*name)?.attach);
        self.flags.attach.or_else(here).or(self.file.daemon.attach).unwrap_or_default()
    }

    /// What is done there about hidden VLAN tags.
    pub(super) fn vlan_offload(&self, names: &[&str]) -> Option<VlanOffload> {
        let here = || names.iter().find_map(|name| self.file.interfaces.get(*name)?.vlan_offload);
        self.flags.vlan_offload.or_else(here).or(self.file.daemon.vlan_offload)
    }

    /// How fast frames may leave an interface, and how often its addresses may be defended.
    pub(super) fn pace(&self, name: &str) -> (Pace, Option<MoveBudget>) {
        self.file
            .interfaces
            .get(name)
            .map_or((Pace::Plain, None), |interface| (interface.pace, interface.moves))
    }

    /// Hosts whose claims are no conflict on an interface.
    pub(super) fn allowed(&self, name: &str) -> impl Iterator<Item = MacAddr> {
        self.file.interfaces.get(name).into_iter().flat_map(|interface| interface.allow.iter().copied())
    }
}

/// A port with a move budget.
pub(super) fn with_moves(port: Port, moves: Option<MoveBudget>) -> Port {
    let Some(MoveBudget { moves, window }) = moves else { return port };
    let seconds = u32::try_from(window.as_secs()).unwrap_or(u32::MAX);
    Port { moves, moves_window_s: seconds, ..port }
}

/// The budget that allows less, of several interfaces whose frames come in by one port.
pub(super) fn tighter(one: Option<MoveBudget>, other: Option<MoveBudget>) -> Option<MoveBudget> {
    let (Some(a), Some(b)) = (one, other) else { return one.or(other) };
    // Moves in a second of either, over the same denominator.
    let a_rate = u128::from(a.moves) * b.window.as_nanos();
    let b_rate = u128::from(b.moves) * a.window.as_nanos();
    Some(if a_rate <= b_rate { a } else { b })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(file: &str, flags: cli::Run) -> Settings {
        Settings { flags, file: Config::parse(file).expect("a right file") }
    }

    const FILE: &str = "[daemon]\non_exit = \"keep\"\nattach = \"generic\"\nobserve = true\n\
                        [[interface]]\nname = \"eth0\"\nattach = \"tc\"\n[[interface]]\nname = \"eth1\"\n";

    #[test]
    fn the_command_line_goes_before_the_file_and_an_interface_before_the_daemon() {
        let file = settings(FILE, cli::Run::default());
        assert_eq!(file.on_exit(), OnExit::Keep);
        assert!(file.observe());
        assert_eq!(file.attach(&["eth0"]), Attach::Tc);
        assert_eq!(file.attach(&["bond0", "eth0"]), Attach::Tc);
        assert_eq!(file.attach(&["eth1"]), Attach::Generic);
        let said = cli::Run {
            on_exit: Some(OnExit::Release),
            attach: Some(Attach::Native),
            interfaces: vec!["eth1".to_owned(), "eth2".to_owned()],
            ..cli::Run::default()
        };
        let both = settings(FILE, said);
        assert_eq!(both.on_exit(), OnExit::Release);
        assert_eq!(both.attach(&["eth0"]), Attach::Native);
        assert_eq!(both.interfaces(), ["eth1", "eth2", "eth0"]);
    }

    #[test]
    fn of_two_budgets_the_one_that_allows_less_holds() {
        let budget = |moves, s| Some(MoveBudget { moves, window: Duration::from_secs(s) });
        assert_eq!(tighter(None, None), None);
        assert_eq!(tighter(budget(4, 180), None), budget(4, 180));
        assert_eq!(tighter(budget(4, 180), budget(1, 60)), budget(1, 60));
        assert_eq!(tighter(budget(4, 180), budget(2, 60)), budget(4, 180));
    }
}
