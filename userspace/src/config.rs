//! The configuration file: TOML, parsed into types that cannot be wrong, with all mistakes named at once.

mod reference;
pub mod schema;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use arpwarden_common::net::MacAddr;
use arpwarden_engine::input::{MoveBudget, Pace};
use toml::de::{DeTable, DeValue};

use crate::{
    address::Cidr,
    cli::{Attach, OnExit, VlanOffload},
    protocol::{ClaimWay, GroupName, How, RegisterWay},
};

pub use reference::reference;
use schema::{ADDRESS, DAEMON, Failed, GROUP, INTERFACE, Key, SECTIONS, Section, Value};
pub use schema::{LogLevel, Moves, PaceName, Start};

/// What a file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// `[daemon]`.
    pub daemon: Daemon,
    /// `[[interface]]`, by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// `[[group]]`, by name.
    pub groups: BTreeMap<GroupName, Group>,
    /// `[[address]]`.
    pub addresses: BTreeMap<Place, Address>,
}

/// Where an address is: the name of its interface, and the address.
pub type Place = (String, Ipv4Addr);

/// `[daemon]`: what is said; the command line goes before it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Daemon {
    /// What happens to the addresses at an orderly end.
    pub on_exit: Option<OnExit>,
    /// How the program is attached.
    pub attach: Option<Attach>,
    /// What to do where VLAN tags are hidden.
    pub vlan_offload: Option<VlanOffload>,
    /// How many addresses there is room for.
    pub capacity: Option<u32>,
    /// Who may use the control socket.
    pub socket_group: Option<String>,
    /// Answer, announce and register nothing.
    pub observe: Option<bool>,
    /// How much is logged.
    pub log: Option<LogLevel>,
}

/// An `[[interface]]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    /// How the program is attached here.
    pub attach: Option<Attach>,
    /// What to do where VLAN tags are hidden here.
    pub vlan_offload: Option<VlanOffload>,
    /// How fast frames may leave.
    pub pace: Pace,
    /// Defences of an address allowed.
    pub moves: Option<MoveBudget>,
    /// Hosts whose claims are no conflict.
    pub allow: BTreeSet<MacAddr>,
}

/// A `[[group]]`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// The lease with which its addresses are claimed, in milliseconds.
    pub lease_ms: Option<u64>,
}

/// An `[[address]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Address and prefix length.
    pub cidr: Cidr,
    /// What is done with it at the start.
    pub start: Start,
    /// How it is claimed.
    pub how: How,
}

/// Something wrong in a file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// `section.key`; empty where it is about no key.
    pub key: String,
    /// What is wrong, and what is allowed.
    pub what: String,
}

/// Why a file is no configuration.
#[derive(Debug)]
pub enum Unusable {
    /// It could not be read.
    Unread(PathBuf, std::io::Error),
    /// It is wrong: every mistake, in the order of lines.
    Wrong(PathBuf, Vec<Mistake>),
}

impl fmt::Display for Unusable {
    /// One line for each mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread(path, error) => write!(f, "reading {}: {error}", path.display()),
            Self::Wrong(path, mistakes) => {
                for (number, Mistake { line, key, what }) in mistakes.iter().enumerate() {
                    let end = if number == 0 { "" } else { "\n" };
                    let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
                    write!(f, "{end}{}:{line}: {key}{what}", path.display())?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Unusable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unread(_, error) => Some(error),
            Self::Wrong(..) => None,
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// It could not be read, or all that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Unusable> {
        let text = fs::read_to_string(path).map_err(|error| Unusable::Unread(path.to_owned(), error))?;
        Self::parse(&text).map_err(|mistakes| Unusable::Wrong(path.to_owned(), mistakes))
    }

    /// Understands a file.
    ///
    /// # Errors
    /// All that is wrong with it, in the order of lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let mut reader = Reader { text, mistakes: Vec::new() };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            // The parser's words end without a full stop, and may have several lines.
            reader.mistake(at, "", error.message().replace('\n', "; "));
        }
        if !reader.mistakes.is_empty() {
            // What else is found may only be what the parser has made of it.
            return Err(reader.end());
        }
        let tables = reader.tables(document.get_ref());
        let config = reader.config(&tables);
        if reader.mistakes.is_empty() { Ok(config) } else { Err(reader.end()) }
    }

    /// The places of the addresses of a group.
    pub fn members(&self, name: GroupName) -> impl Iterator<Item = (&Place, &Address)> {
        self.addresses.iter().filter(move |(_, address)| address.how.group == Some(name))
    }
}

/// One table of the file: its values and where they are.
struct Table {
    section: &'static Section,
    at: usize,
    values: BTreeMap<&'static str, (Value, usize)>,
    /// Keys that are there and wrong: nothing more is to be said of them.
    wrong: Vec<&'static str>,
}

impl Table {
    /// What is said of a key.
    fn said<T: schema::FromValue>(&self, name: &str) -> Option<T> {
        self.values.get(name).and_then(|(value, _)| T::from_value(value))
    }

    /// What is said of a key, or its default.
    fn get<T: schema::FromValue>(&self, name: &str) -> Option<T> {
        self.said(name).or_else(|| {
            let key = self.section.key(name)?;
            T::from_value(&key.default_value()?)
        })
    }

    fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Where a key is, or the table.
    fn at(&self, name: &str) -> usize {
        self.values.get(name).map_or(self.at, |(_, at)| *at)
    }
}

struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn mistake(&mut self, at: usize, key: impl Into<String>, what: impl Into<String>) {
        let line = self.line(at);
        self.mistakes.push(Mistake { line, key: key.into(), what: what.into() });
    }

    /// A mistake about a key of a table.
    fn wrong(&mut self, table: &Table, name: &str, what: impl Into<String>) {
        self.mistake(table.at(name), format!("{}.{name}", table.section.name), what);
    }

    fn end(mut self) -> Vec<Mistake> {
        self.mistakes.sort();
        self.mistakes.dedup();
        self.mistakes
    }

    /// All tables, with keys and values that the schema knows.
    fn tables(&mut self, document: &DeTable<'_>) -> Vec<Table> {
        let mut tables = Vec::new();
        for (name, value) in document.iter() {
            let Some(section) = SECTIONS.iter().find(|section| section.name == name.get_ref().as_ref())
            else {
                let known = SECTIONS.map(|section| section.title()).join(", ");
                self.mistake(
                    name.span().start,
                    name.get_ref().as_ref(),
                    format!("there is no such section; there are {known}"),
                );
                continue;
            };
            match (value.get_ref(), section.many) {
                (DeValue::Table(table), false) => tables.push(self.table(section, value.span().start, table)),
                (DeValue::Array(list), true) => {
                    for element in list.iter() {
                        let (at, value) = (element.span().start, element.get_ref());
                        if let DeValue::Table(table) = value {
                            tables.push(self.table(section, at, table));
                        } else {
                            let what = format!("a table is wanted, not a {}", schema::type_name(value));
                            self.mistake(at, section.name, what);
                        }
                    }
                }
                _ => self.mistake(
                    name.span().start,
                    section.name,
                    format!("this section is written {}", section.title()),
                ),
            }
        }
        tables.sort_by_key(|table| table.at);
        tables
    }

    fn table(&mut self, section: &'static Section, at: usize, table: &DeTable<'_>) -> Table {
        let mut read = Table { section, at, values: BTreeMap::new(), wrong: Vec::new() };
        for (name, value) in table.iter() {
            let at = name.span().start;
            let path = format!("{}.{}", section.name, name.get_ref());
            match section.key(name.get_ref()) {
                Some(key) => match key.kind.read(value.get_ref()) {
                    Ok(value) => _ = read.values.insert(key.name, (value, at)),
                    Err(Failed(what)) => {
                        read.wrong.push(key.name);
                        self.mistake(at, path, what);
                    }
                },
                None => {
                    let known: Vec<&str> = section.keys.iter().map(|key| key.name).collect();
                    let what =
                        format!("there is no such key; {} knows {}", section.title(), known.join(", "));
                    self.mistake(at, path, what);
                }
            }
        }
        for Key { name, required, .. } in section.keys {
            if *required && !read.has(name) && !read.wrong.contains(name) {
                let what = "it is missing; every such section needs one";
                self.mistake(at, format!("{}.{name}", section.name), what);
            }
        }
        read
    }

    fn config(&mut self, tables: &[Table]) -> Config {
        let of = |section: &'static Section| tables.iter().filter(move |t| t.section.name == section.name);
        let mut config = Config::default();
        for table in of(&DAEMON) {
            config.daemon = Daemon {
                on_exit: table.said("on_exit"),
                attach: table.said("attach"),
                vlan_offload: table.said("vlan_offload"),
                capacity: table.said("capacity"),
                socket_group: table.said("socket_group"),
                observe: table.said("observe"),
                log: table.said("log"),
            };
            self.tags_beside_the_program(table);
        }
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        for table in of(&INTERFACE) {
            let Some(name) = table.said::<String>("name") else { continue };
            self.tags_beside_the_program(table);
            if let Some(before) = lines.insert(name.clone(), self.line(table.at)) {
                self.wrong(table, "name", format!("interface '{name}' is in line {before} already"));
            }
            let pace = table.get::<PaceName>("pace").unwrap_or_default();
            let moves = table.said::<Moves>("moves").map_or_else(|| pace.moves(), |Moves(moves)| moves);
            let interface = Interface {
                attach: table.said("attach"),
                vlan_offload: table.said("vlan_offload"),
                pace: pace.into(),
                moves,
                allow: table.get("allow").unwrap_or_default(),
            };
            config.interfaces.insert(name, interface);
        }
        let mut lines: BTreeMap<GroupName, usize> = BTreeMap::new();
        for table in of(&GROUP) {
            let Some(name) = table.said::<GroupName>("name") else { continue };
            if let Some(before) = lines.insert(name, self.line(table.at)) {
                self.wrong(table, "name", format!("group '{name}' is in line {before} already"));
            }
            config.groups.insert(name, Group { lease_ms: table.said("lease") });
        }
        let mut lines: BTreeMap<Place, usize> = BTreeMap::new();
        let mut starts: BTreeMap<GroupName, (Start, usize)> = BTreeMap::new();
        for table in of(&ADDRESS) {
            self.address(table, &mut config, &mut lines, &mut starts);
        }
        config
    }

    fn tags_beside_the_program(&mut self, table: &Table) {
        if table.said::<Attach>("attach") == Some(Attach::Tc) && table.has("vlan_offload") {
            let what = "the program sees the tags where it is attached by 'tc'; leave this or 'attach' out";
            self.wrong(table, "vlan_offload", what);
        }
    }

    fn address(
        &mut self,
        table: &Table,
        config: &mut Config,
        lines: &mut BTreeMap<Place, usize>,
        starts: &mut BTreeMap<GroupName, (Start, usize)>,
    ) {
        let group = table.said::<GroupName>("group");
        let start = table.get::<Start>("start").unwrap_or_default();
        let members = group.and_then(|name| config.groups.get(&name).map(|group| (name, group.lease_ms)));
        if let Some(name) = group.filter(|_| members.is_none()) {
            self.wrong(table, "group", format!("there is no group '{name}'; add a [[group]] of this name"));
        }
        let mut lease_ms = table.said("lease");
        if let Some((name, of_the_group)) = members {
            if table.has("lease") {
                self.wrong(
                    table,
                    "lease",
                    format!("an address has the lease of its group '{name}'; set it there"),
                );
            }
            lease_ms = of_the_group;
            if table.said("adopt") == Some(true) {
                let what = format!(
                    "what is on the interface already is answered already and cannot wait for the rest of its group \
                     '{name}'"
                );
                self.wrong(table, "adopt", what);
            }
            let (first, line) = *starts.entry(name).or_insert((start, self.line(table.at("start"))));
            if first != start {
                let what = format!(
                    "group '{name}' starts {} by line {line}, and its addresses change together or not at all",
                    schema::name(&first)
                );
                self.wrong(table, "start", what);
            }
        }
        let claim = table.get::<ClaimWay>("claim").unwrap_or_default();
        let register = table.get::<RegisterWay>("register").unwrap_or_default();
        if table.has("check") && claim != ClaimWay::Immediate {
            self.wrong(table, "check", "it is how long claim = \"immediate\" waits; this claim probes");
        }
        if table.said("allow_flux") == Some(true) && lease_ms.is_none() {
            self.wrong(table, "allow_flux", "it is about an address with a lease; this one has none");
        }
        if table.said("blackhole_ok") == Some(true) && register != RegisterWay::None {
            self.wrong(table, "blackhole_ok", "it is about register = \"none\"; this address is registered");
        }
        if table.has("on_removed") && register == RegisterWay::None {
            self.wrong(table, "on_removed", "with register = \"none\" the address is not on the interface");
        }
        let interface = table.said::<String>("interface");
        if let Some(name) = &interface
            && !config.interfaces.contains_key(name)
        {
            let what = format!("there is no interface '{name}'; add an [[interface]] of this name");
            self.wrong(table, "interface", what);
        }
        let Some((cidr, interface)) = table.said::<Cidr>("address").zip(interface) else { return };
        let place = (interface, cidr.address());
        if let Some(before) = lines.insert(place.clone(), self.line(table.at)) {
            let what = format!("{} on {} is in line {before} already", place.1, place.0);
            self.wrong(table, "address", what);
        }
        let how = How {
            claim,
            check_ms: table.get("check").unwrap_or_default(),
            profile: table.get("profile").unwrap_or_default(),
            defend: table.get("defend").unwrap_or_default(),
            wait_ms: table.get("wait").unwrap_or_default(),
            adopt: table.get("adopt").unwrap_or_default(),
            lease_ms,
            register,
            on_removed: table.get("on_removed").unwrap_or_default(),
            allow_flux: table.get("allow_flux").unwrap_or_default(),
            blackhole_ok: table.get("blackhole_ok").unwrap_or_default(),
            group,
        };
        config.addresses.insert(place, Address { cidr, start, how });
    }
}
