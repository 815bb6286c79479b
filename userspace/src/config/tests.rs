//! Every mistake is named with its line and key, and what is right is understood.

use std::path::Path;

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::{
    cli::{Cli, Command},
    protocol::{DefendPolicy, RemovedPolicy},
};

const HEAD: &str = "[[interface]]\nname = \"eth0\"\n[[group]]\nname = \"web\"\nlease = 3\n"; // lines 1 to 5

/// The only address of a file whose `[[address]]` is line 6, and whose further keys begin in line 9.
fn with(more: &str) -> String {
    format!("{HEAD}[[address]]\naddress = \"192.0.2.10/24\"\ninterface = \"eth0\"\n{more}\n")
}

/// Line and key of every mistake.
fn mistakes(text: &str) -> Vec<(usize, String)> {
    let found = Config::parse(text).expect_err(text);
    found.into_iter().map(|Mistake { line, key, .. }| (line, key)).collect()
}

#[track_caller]
fn one(text: &str, line: usize, key: &str, naming: &str) {
    let found = Config::parse(text).expect_err(text);
    let [Mistake { line: at, key: of, what }] = &found[..] else { panic!("{text}\n{found:#?}") };
    assert_eq!((*at, of.as_str()), (line, key), "{what}");
    assert!(what.contains(naming), "{what}");
}

#[test]
fn a_file_is_understood_and_what_it_does_not_say_is_as_on_the_command_line() {
    let config = Config::parse(&with("")).expect("right");
    let address = &config.addresses[&("eth0".to_owned(), [192, 0, 2, 10].into())];
    let command = ["arpwarden", "online", "192.0.2.10/24", "--iface", "eth0"];
    let Command::Online(online) = Cli::parse_from(command).command else { panic!("it is online") };
    assert_eq!(address.start, Start::Online);
    let How { check_ms, ref claim, ref profile, ref defend, wait_ms, .. } = address.how;
    assert_eq!(
        (check_ms, *claim, *profile, *defend),
        (online.check, online.claim, online.profile, online.defend)
    );
    assert_eq!(
        address.how,
        How {
            check_ms: online.check,
            register: online.register,
            on_removed: online.on_removed,
            ..How::default()
        }
    );
    assert_eq!((wait_ms, online.wait), (0, 0.0));
    assert_eq!(config.interfaces["eth0"], Interface::default());
    Cli::command().debug_assert();
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let text = "[daemon]\non_exit = \"keep\"\nattach = \"native\"\nvlan_offload = \"ignore\"\ncapacity = 100_000\nsocket_group = \"ops\"\n\
                observe = true\nlog = \"debug\"\n[[interface]]\nname = \"eth0\"\npace = \"inspected\"\n[[interface]]\n\
                name = \"eth1\"\nmoves = \"2/60s\"\nallow = [\"02:00:5E:00:00:0a\"]\n[[interface]]\nname = \"eth2\"\npace = \"inspected\"\nmoves = \"none\"\n[[interface]]\nname = \"eth3\"\npace = \"unlimited\"\n\
                [[group]]\nname = \"web\"\nlease = 2.5\n[[address]]\naddress = \"192.0.2.10/24\"\ninterface = \"eth0\"\n\
                group = \"web\"\nstart = \"off\"\nclaim = \"immediate\"\ncheck = 50\ndefend = \"once\"\nwait = 1.5\n\
                on_removed = \"give-up\"\nallow_flux = true\n";
    let config = Config::parse(text).expect("right");
    assert_eq!(
        config.daemon,
        Daemon {
            on_exit: Some(OnExit::Keep),
            attach: Some(Attach::Native),
            vlan_offload: Some(VlanOffload::Ignore),
            capacity: Some(100_000),
            socket_group: Some("ops".to_owned()),
            observe: Some(true),
            log: Some(LogLevel::Debug),
        }
    );
    assert_eq!(config.interfaces["eth0"].pace, Pace::Inspected);
    assert_eq!(config.interfaces["eth0"].moves, Some(MoveBudget::EVPN));
    let two = MoveBudget { moves: 2, window: std::time::Duration::from_secs(60) };
    assert_eq!(config.interfaces["eth1"].moves, Some(two));
    assert_eq!(config.interfaces["eth2"].moves, None);
    assert_eq!((config.interfaces["eth3"].pace, config.interfaces["eth3"].moves), (Pace::Unlimited, None));
    assert_eq!(config.interfaces["eth1"].allow, [MacAddr::new([2, 0, 0x5e, 0, 0, 10])].into());
    assert_eq!(config.interfaces["eth0"].allow, [].into());
    let address = config.addresses.values().next().expect("one");
    assert_eq!(address.start, Start::Off);
    assert_eq!(
        address.how,
        How {
            claim: ClaimWay::Immediate,
            check_ms: 50,
            defend: DefendPolicy::Once,
            wait_ms: 1_500,
            // That of its group.
            lease_ms: Some(2_500),
            on_removed: RemovedPolicy::GiveUp,
            allow_flux: true,
            group: "web".parse().ok(),
            ..How::default()
        }
    );
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    assert_eq!(mistakes("[daemon]\non_exit = \n").first().map(|(line, _)| *line), Some(2));
    assert_eq!(mistakes("[daemon]\nlog = \"info\"\nlog = \"warn\"\n"), [(3, String::new())]);
}

#[test]
fn unknown_sections_and_keys_are_named_with_what_there_is() {
    one(&format!("{HEAD}[[adress]]\n"), 6, "adress", "[[address]]");
    one(&with("defence = \"hold\""), 9, "address.defence", "defend");
    one("[[daemon]]\n", 1, "daemon", "[daemon]");
    one("[interface]\nname = \"eth0\"\n", 1, "interface", "[[interface]]");
}

#[test]
fn wrong_types_words_and_numbers_are_named_with_what_is_allowed() {
    one(&with("defend = 3"), 9, "address.defend", "whole number; allowed: \"yield\", \"once\", \"hold\"");
    one(&with("defend = \"never\""), 9, "address.defend", "\"never\" may not stand here");
    one(&with("claim = \"immediate\"\ncheck = 10001"), 10, "address.check", "0 to 10000 milliseconds");
    one(&with("claim = \"immediate\"\ncheck = 1.5"), 10, "address.check", "number with a fraction");
    one(&with("claim = \"immediate\"\ncheck = -1"), 10, "address.check", "out of range");
    one(&with("lease = 0"), 9, "address.lease", "0.1 to 86400 seconds");
    one(&with("wait = 86401"), 9, "address.wait", "0 to 86400 seconds");
    one(&with("wait = nan"), 9, "address.wait", "out of range");
    one(&with("adopt = \"yes\""), 9, "address.adopt", "true or false");
    one(&with("group = \"Web\""), 9, "address.group", "a-z");
    one("[daemon]\nsocket_group = \"\"\n", 2, "daemon.socket_group", "group of users");
    one("[daemon]\ncapacity = 0\n", 2, "daemon.capacity", "1 to 1048575 addresses");
    one("[daemon]\ncapacity = 1048576\n", 2, "daemon.capacity", "1 to 1048575 addresses");
    one("[daemon]\ncapacity = 1.5\n", 2, "daemon.capacity", "number with a fraction");
    one("[daemon]\nlog = \"loud\"\n", 2, "daemon.log", "\"trace\"");
    one("[[interface]]\nname = \"a/b\"\n", 2, "interface.name", "1 to 15 bytes");
    for moves in ["4", "4/180", "0/180s", "9/180s", "4/0s", "+4/180s", "4/86401s", "4/+1s", ""] {
        let text = format!("[[interface]]\nname = \"eth0\"\nmoves = \"{moves}\"\n");
        one(&text, 3, "interface.moves", "\"N/Ss\"");
    }
    let wrong =
        ["2:0:0:0:0:1", "02:00:00:00:00", "02:00:00:00:00:01:02", "02-00-00-00-00-01", "+2:00:00:00:00:01"];
    for mac in [&wrong[..], &["00:00:00:00:00:00", "01:00:5e:00:00:01", "02:00:00:00:00:0g", ""]].concat() {
        let text = format!("[[interface]]\nname = \"eth0\"\nallow = [\"{mac}\"]\n");
        one(&text, 3, "interface.allow", "a list of MACs");
    }
    one(
        "[[interface]]\nname = \"eth0\"\nallow = \"02:00:00:00:00:01\"\n",
        3,
        "interface.allow",
        "it is a string",
    );
    one("[[interface]]\nname = \"eth0\"\nallow = [1]\n", 3, "interface.allow", "a whole number is in it");
    let macs: Vec<String> = (0..65).map(|n| format!("\"02:00:00:00:00:{n:02x}\"")).collect();
    let list = |macs: &[String]| format!("[[interface]]\nname = \"eth0\"\nallow = [{}]\n", macs.join(","));
    one(&list(&macs), 3, "interface.allow", "65 are too many");
    Config::parse(&list(&macs[1..])).expect("as many as there may be");
}

#[test]
fn an_address_that_cannot_be_managed_is_named_with_the_reason() {
    let text = |address: &str| {
        format!(
            "[[interface]]\nname = \"eth0\"\n[[address]]\naddress = \"{address}\"\ninterface = \"eth0\"\n"
        )
    };
    one(&text("192.0.2.10"), 4, "address.address", "no prefix length");
    one(&text("192.0.2.255/24"), 4, "address.address", "broadcast");
    one(&text("127.0.0.1/8"), 4, "address.address", "loopback");
    one(&text("2001:db8::1/64"), 4, "address.address", "IPv6");
}

#[test]
fn what_must_be_said_and_is_not_is_named_at_its_section() {
    assert_eq!(
        mistakes("[[interface]]\n[[group]]\n[[address]]\n"),
        [
            (1, "interface.name".to_owned()),
            (2, "group.name".to_owned()),
            (3, "address.address".to_owned()),
            (3, "address.interface".to_owned())
        ]
    );
}

#[test]
fn what_is_there_twice_is_named_with_the_first_one() {
    one(
        &with("[[address]]\naddress = \"192.0.2.10/32\"\ninterface = \"eth0\""),
        10,
        "address.address",
        "line 6",
    );
    one(&format!("{HEAD}[[interface]]\nname = \"eth0\"\n"), 7, "interface.name", "line 1");
    one(&format!("{HEAD}[[group]]\nname = \"web\"\n"), 7, "group.name", "line 3");
    // On another interface it is another address.
    let other =
        "[[interface]]\nname = \"eth1\"\n[[address]]\naddress = \"192.0.2.10/24\"\ninterface = \"eth1\"";
    assert!(Config::parse(&with(other)).is_ok());
}

#[test]
fn groups_and_interfaces_that_are_not_there_are_named() {
    one(&with("group = \"mail\""), 9, "address.group", "[[group]]");
    let text = format!("{HEAD}[[address]]\naddress = \"192.0.2.10/24\"\ninterface = \"eth7\"\n");
    one(&text, 8, "address.interface", "[[interface]]");
}

#[test]
fn what_contradicts_itself_is_named() {
    one(&with("check = 20"), 9, "address.check", "immediate");
    one(&with("group = \"web\"\nlease = 3"), 10, "address.lease", "group 'web'");
    one(&with("group = \"web\"\nadopt = true"), 10, "address.adopt", "cannot wait");
    one(&with("allow_flux = true"), 9, "address.allow_flux", "lease");
    one(&with("blackhole_ok = true"), 9, "address.blackhole_ok", "register");
    one(
        &with("register = \"none\"\non_removed = \"report\""),
        10,
        "address.on_removed",
        "not on the interface",
    );
    one("[daemon]\nattach = \"tc\"\nvlan_offload = \"ignore\"\n", 3, "daemon.vlan_offload", "tags");
    let second =
        "[[address]]\naddress = \"192.0.2.11/24\"\ninterface = \"eth0\"\ngroup = \"web\"\nstart = \"off\"";
    one(&with(&format!("group = \"web\"\n{second}")), 14, "address.start", "starts online by line 6");
}

#[test]
fn all_mistakes_are_named_at_once_in_the_order_of_lines() {
    let text = with("defend = 1\nwait = -1\nfoo = 1\ngroup = \"mail\"");
    let keys: Vec<(usize, String)> = mistakes(&text);
    let expected = [(9, "defend"), (10, "wait"), (11, "foo"), (12, "group")];
    assert_eq!(keys, expected.map(|(line, key)| (line, format!("address.{key}"))));
    let error = Unusable::Wrong("web.toml".into(), Config::parse(&text).expect_err("wrong"));
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[1].starts_with("web.toml:10: address.wait: -1 is out of range"), "{}", lines[1]);
}

#[test]
fn every_default_may_stand_at_its_key() {
    for section in SECTIONS {
        for key in section.keys {
            assert_eq!(key.default.is_some(), key.default_value().is_some(), "{}.{}", section.name, key.name);
            assert!(!key.about.is_empty());
            let said = key.default.is_some() || key.required || !key.otherwise.is_empty();
            assert!(said, "{}.{}: what holds where nothing is said?", section.name, key.name);
        }
    }
}

fn of_the_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn the_example_is_right() {
    let config =
        Config::load(&of_the_repository("dist/arpwarden.toml")).unwrap_or_else(|error| panic!("{error}"));
    assert!(!config.addresses.is_empty() && !config.groups.is_empty());
}

#[test]
fn the_reference_is_up_to_date() {
    let path = of_the_repository("docs/configuration.md");
    if std::env::var_os("ARPWARDEN_WRITE_REFERENCE").is_some() {
        fs::create_dir_all(path.parent().expect("docs")).expect("a folder");
        fs::write(&path, reference()).expect("written");
    }
    let there = fs::read_to_string(&path).expect("docs/configuration.md");
    assert!(
        there == reference(),
        "docs/configuration.md is not what the table says: run 'cargo xtask reference'"
    );
}
