//! The command line's side of the control socket.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    net::{Ipv4Addr, Shutdown},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use crate::{
    address::{Cidr, parse_bare},
    cli,
    exit::Exit,
    instance::Instance,
    protocol::{GroupName, How, KernelStatus, MissingFeature, Request, Response, Status},
};

/// Says an error of the command as a whole.
pub fn complain(message: impl std::fmt::Display) {
    eprintln!("arpwarden: {message}");
}

/// The good ones of `texts`, each once; the others are named and counted.
fn parse_all<T: Ord + Copy>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, crate::address::AddressError>,
) -> (Vec<T>, Exit) {
    let mut seen = BTreeSet::new();
    let mut good = Vec::new();
    let mut exit = Exit::Done;
    for text in texts {
        match parse(text) {
            Ok(address) if seen.insert(address) => good.push(address),
            Ok(_) => {}
            Err(error) => {
                complain(error);
                exit = exit.worst(Exit::Usage);
            }
        }
    }
    (good, exit)
}

/// Replaces an argument `-` by the lines of standard input, without blank ones and comments.
fn with_standard_input(arguments: &[String]) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for argument in arguments {
        if argument != "-" {
            all.push(argument.clone());
            continue;
        }
        for line in io::stdin().lock().lines() {
            let line = line?;
            let text = line.split('#').next().unwrap_or_default().trim();
            if !text.is_empty() {
                all.push(text.to_owned());
            }
        }
    }
    Ok(all)
}

/// Performs a command that needs the daemon.
pub fn perform(instance: &Instance, command: &cli::Command) -> Exit {
    match command {
        cli::Command::Online(online) => {
            let texts = match with_standard_input(&online.addresses) {
                Ok(texts) => texts,
                Err(error) => {
                    complain(format_args!("reading addresses from standard input: {error}"));
                    return Exit::Failed;
                }
            };
            let (groups, texts, bad_group) = split_groups(&texts);
            let (addresses, bad) = parse_all(&texts, |text| text.parse::<Cidr>());
            let mut worst = bad.worst(bad_group);
            if !groups.is_empty() {
                worst = ask(instance, &Request::OnlineGroups { groups }, Show::Results).worst(worst);
            }
            if addresses.is_empty() {
                return worst;
            }
            let Some(interface) = online.interface.clone() else {
                complain("say on which interface the addresses are to be: --iface IF");
                return worst.worst(Exit::Usage);
            };
            let request = Request::Online {
                addresses,
                interface,
                how: How {
                    claim: online.claim,
                    check_ms: online.check,
                    profile: online.profile,
                    defend: online.defend,
                    wait_ms: milliseconds(online.wait),
                    adopt: online.adopt,
                    lease_ms: online.lease.map(milliseconds),
                    register: online.register,
                    on_removed: online.on_removed,
                    allow_flux: online.allow_flux,
                    blackhole_ok: online.blackhole_ok,
                    group: online.group,
                },
                attach_now: online.attach_now,
            };
            ask(instance, &request, Show::Results).worst(worst)
        }
        cli::Command::Reload => ask(instance, &Request::Reload {}, Show::Results),
        cli::Command::Offline(offline) => on_groups(instance, &offline.addresses, |addresses, groups| {
            Request::Offline { addresses, groups, interface: offline.interface.clone(), watch: offline.watch }
        }),
        cli::Command::Watch(watch) => on_addresses(instance, &watch.addresses, |addresses| Request::Watch {
            addresses,
            interface: watch.interface.clone(),
        }),
        cli::Command::Unwatch(some) => on_addresses(instance, &some.addresses, |addresses| {
            Request::Unwatch { addresses, interface: some.interface.clone() }
        }),
        cli::Command::Announce(some) => on_addresses(instance, &some.addresses, |addresses| {
            Request::Announce { addresses, interface: some.interface.clone() }
        }),
        cli::Command::Renew(renew) => {
            on_groups(instance, &renew.addresses, |addresses, groups| Request::Renew {
                addresses,
                groups,
                interface: renew.interface.clone(),
                lease_ms: milliseconds(renew.lease),
            })
        }
        cli::Command::Repair(some) => on_addresses(instance, &some.addresses, |addresses| Request::Repair {
            addresses,
            interface: some.interface.clone(),
        }),
        cli::Command::Explain(explain) => {
            ask(instance, &Request::Explain { address: explain.address }, Show::Results)
        }
        cli::Command::Status(status) => {
            ask(instance, &Request::Status { address: status.address }, Show::Status { json: status.json })
        }
        cli::Command::Events(events) => {
            ask(instance, &Request::Events { follow: events.follow }, Show::Events { json: events.json })
        }
        cli::Command::Run(_)
        | cli::Command::Probe(_)
        | cli::Command::Check { .. }
        | cli::Command::Unload
        | cli::Command::Completions { .. } => Exit::Usage,
    }
}

/// `seconds`, at most 86,400 and not negative as the command line has checked, in milliseconds.
fn milliseconds(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_millis()).unwrap_or(u64::MAX)
}

/// The groups among `texts`, each written `@NAME`, and the rest; names that are none are told and counted.
fn split_groups(texts: &[String]) -> (Vec<GroupName>, Vec<String>, Exit) {
    let (names, texts): (Vec<&String>, Vec<&String>) = texts.iter().partition(|text| text.starts_with('@'));
    let mut bad = Exit::Done;
    let mut groups = Vec::new();
    for name in &names {
        match name[1..].parse() {
            Ok(name) if !groups.contains(&name) => groups.push(name),
            Ok(_) => {}
            Err(error) => {
                complain(error);
                bad = Exit::Usage;
            }
        }
    }
    (groups, texts.into_iter().cloned().collect(), bad)
}

/// [`on_addresses`] where `@NAME` stands for the addresses of a group.
fn on_groups(
    instance: &Instance,
    texts: &[String],
    request: impl FnOnce(Vec<Ipv4Addr>, Vec<GroupName>) -> Request,
) -> Exit {
    let (groups, texts, bad) = split_groups(texts);
    let (addresses, bad_address) = parse_all(&texts, parse_bare);
    let bad = bad.worst(bad_address);
    // Empty lists would mean all.
    if addresses.is_empty() && groups.is_empty() && bad != Exit::Done {
        return bad;
    }
    ask(instance, &request(addresses, groups), Show::Results).worst(bad)
}

fn on_addresses(
    instance: &Instance,
    texts: &[String],
    request: impl FnOnce(Vec<Ipv4Addr>) -> Request,
) -> Exit {
    let (addresses, bad) = parse_all(texts, parse_bare);
    // An empty list would mean all.
    if addresses.is_empty() && !texts.is_empty() {
        return bad;
    }
    ask(instance, &request(addresses), Show::Results).worst(bad)
}

/// What is printed of the answers.
enum Show {
    Results,
    Status { json: bool },
    Events { json: bool },
}

/// Connects to the daemon.
///
/// # Errors
/// Which exit code that is, and the words.
#[expect(clippy::wildcard_enum_match_arm, reason = "kinds of errors are an open set")]
pub fn connect(instance: &Instance) -> Result<UnixStream, (Exit, String)> {
    let socket = instance.socket();
    UnixStream::connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => (
            Exit::NoDaemon,
            format!(
                "no daemon answers at {}: {error}; start one with 'arpwarden run --iface IF'{}",
                socket.display(),
                if instance.name() == "default" {
                    String::new()
                } else {
                    format!(" and '--instance {}'", instance.name())
                }
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            Exit::NotPermitted,
            format!(
                "connecting to {}: {error}; run as root, or let your group in with 'run --socket-group'",
                socket.display()
            ),
        ),
        _ => (Exit::Failed, format!("connecting to {}: {error}", socket.display())),
    })
}

fn ask(instance: &Instance, request: &Request, show: Show) -> Exit {
    let stream = match connect(instance) {
        Ok(stream) => stream,
        Err((exit, message)) => {
            complain(message);
            return exit;
        }
    };
    match converse(&stream, request, &show) {
        Ok(exit) => exit,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // Whoever read our output has seen enough.
            let _ = stream.shutdown(Shutdown::Both);
            Exit::Done
        }
        Err(error) => {
            complain(format_args!("talking to the daemon at {}: {error}", instance.socket().display()));
            Exit::Failed
        }
    }
}

/// Sends a request of which only the end matters.
///
/// # Errors
/// The request could not be sent, or nothing came back for `patience`; a connection that ends is an end.
pub fn converse_quietly(mut stream: &UnixStream, request: &Request, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    for line in BufReader::new(stream).lines() {
        if let Response::End { exit, message } = serde_json::from_str(&line?)? {
            if exit != Exit::Done {
                complain(message.unwrap_or_default());
            }
            break;
        }
    }
    Ok(())
}

fn converse(mut stream: &UnixStream, request: &Request, show: &Show) -> io::Result<Exit> {
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    // A daemon that refuses (too many clients) may have closed its side already: its words still wait for us.
    let sent = stream.write_all(&text);
    let mut exit = Exit::Done;
    let mut progress: Option<Progress> = None;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut reader, mut line) = (BufReader::new(stream), String::new());
    loop {
        if reader.buffer().is_empty() {
            // Nothing more is there at the moment: what was said is not to wait for it.
            out.flush()?;
        }
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            break;
        }
        match serde_json::from_str(&line)? {
            Response::Result { address, interface, exit: one, message } => {
                exit = exit.worst(one);
                if let Some(progress) = &mut progress {
                    progress.one_more();
                }
                let place = interface.map_or_else(String::new, |name| format!(" on {name}"));
                if one == Exit::Done {
                    writeln!(out, "{address}{place}: {message}")?;
                } else {
                    complain(format_args!("{address}{place}: {message}"));
                }
            }
            Response::Plan { addresses, announced_ms, done_ms } => {
                progress = Progress::of(addresses);
                if progress.is_some() || announced_ms > 1_000 {
                    let seconds = |ms| Duration::from_millis(ms).as_secs_f64();
                    eprintln!(
                        "arpwarden: {addresses} addresses: all announced once in about {:.1} s, the last frame in about {:.0} s",
                        seconds(announced_ms),
                        seconds(done_ms)
                    );
                }
            }
            Response::Note { exit: one, message } => {
                exit = exit.worst(one);
                if one == Exit::Done { writeln!(out, "{message}")? } else { complain(message) }
            }
            Response::Status { status } => {
                if matches!(show, Show::Status { json: true }) {
                    writeln!(out, "{}", serde_json::to_string(&status)?)?;
                } else {
                    write_status(&mut out, &status)?;
                }
            }
            Response::Explanation { facts } => {
                for fact in facts {
                    writeln!(out, "{fact}")?;
                }
            }
            Response::Event { event } => {
                if matches!(show, Show::Events { json: true }) {
                    writeln!(out, "{}", serde_json::to_string(&event)?)?;
                } else {
                    writeln!(out, "{} {} {}", event.time, event.seq, event.words())?;
                }
            }
            Response::End { exit: whole, message } => {
                exit = exit.worst(whole);
                match message {
                    Some(message) if whole == Exit::Done => writeln!(out, "{message}")?,
                    Some(message) => complain(message),
                    None => {}
                }
                out.flush()?;
                return Ok(exit);
            }
        }
    }
    sent?;
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it had answered"))
}

/// How many of many are done, on a terminal that does not show the results themselves.
struct Progress {
    done: usize,
    of: usize,
    told: Instant,
}

impl Progress {
    /// How often the line is written anew: as often as an eye can follow.
    const AGAIN: Duration = Duration::from_millis(100);

    fn of(of: usize) -> Option<Self> {
        let watched = io::stderr().is_terminal() && !io::stdout().is_terminal();
        watched.then(|| Self { done: 0, of, told: Instant::now() })
    }

    fn one_more(&mut self) {
        self.done += 1;
        let all = self.done == self.of;
        if all || self.told.elapsed() >= Self::AGAIN {
            self.told = Instant::now();
            eprint!("\r{} of {} {}", self.done, self.of, if all { "\n" } else { "" });
        }
    }
}

fn write_status(out: &mut impl io::Write, status: &Status) -> io::Result<()> {
    writeln!(out, "instance {}", status.instance)?;
    if status.observe {
        writeln!(out, "observing: nothing is answered, announced or registered; states say what would be")?;
    }
    for interface in &status.interfaces {
        let missing =
            |there: bool, what: &str| if there { String::new() } else { format!(", {what} MISSING") };
        let on = if interface.carrier == interface.interface {
            String::new()
        } else {
            let tags: Vec<String> = interface.vlan.iter().map(u16::to_string).collect();
            format!(" to {} under VLAN {}", interface.carrier, tags.join("."))
        };
        writeln!(
            out,
            "interface {}: {}, attached{on} {}, vlan_tags {}{}{}",
            interface.interface,
            if interface.running { "up" } else { "down" },
            interface.attach_mode,
            interface.vlan_tags,
            missing(interface.program, "program"),
            missing(interface.guard, "guard"),
        )?;
    }
    let KernelStatus { release, missing } = &status.kernel;
    for MissingFeature { feature, since, instead } in missing {
        writeln!(out, "kernel {release} lacks {feature} (Linux {since}): {instead}")?;
    }
    let bold = |text: &str| {
        if io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    };
    let row = |cells: [&str; 9]| {
        let [address, interface, state, may, owner, lease, answered, claims, defences] = cells;
        format!(
            "{address:<18} {interface:<15} {state:<11} {may:<7} {owner:<17} {lease:>7} {answered:>9} {claims:>7} {defences:>8}"
        )
    };
    let head =
        row(["ADDRESS", "INTERFACE", "STATE", "ANSWERS", "OWNER", "LEASE", "ANSWERED", "CLAIMS", "DEFENCES"]);
    if !status.addresses.is_empty() {
        writeln!(out, "{}", bold(&head))?;
    }
    for address in &status.addresses {
        let text = match address.prefix_length {
            Some(length) => format!("{}/{length}", address.address),
            None => address.address.to_string(),
        };
        let ids = address.vlan.iter().map(|id| format!(".{id}")).collect::<String>();
        writeln!(
            out,
            "{}",
            row([
                &text,
                &(address.interface.clone() + &ids),
                &address.state,
                if address.may_answer { "yes" } else { "no" },
                address.owner.as_deref().unwrap_or("unknown"),
                &address.lease_left.map_or_else(|| "-".to_owned(), |left| format!("{left:.1} s")),
                &address.counters.answered.to_string(),
                &address.counters.claims.to_string(),
                &address.counters.defences.to_string(),
            ])
        )?;
        for asker in &address.askers {
            let told = asker.told_ago.map_or_else(String::new, |ago| format!(", told {ago:.1} s ago"));
            let followed = match (asker.followed, asker.followed_after) {
                (true, Some(after)) => format!(", followed after {after:.3} s"),
                (true, None) => ", follows".to_owned(),
                (false, _) => String::new(),
            };
            writeln!(
                out,
                "  asked by {} at {} {:.1} s ago{told}{followed}",
                asker.address, asker.mac, asker.asked_ago
            )?;
        }
    }
    let counters = status
        .counters
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(name, n)| format!("{name} {n}"))
        .collect::<Vec<_>>();
    writeln!(out, "frames: {}", if counters.is_empty() { "none".to_owned() } else { counters.join(", ") })
}
