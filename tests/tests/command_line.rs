//! The command line and the control socket: exit codes, idempotence, JSON, and clients that behave badly.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixDatagram, UnixStream},
    process::Command,
    time::{Duration, Instant},
};

use arpwarden_tests::{
    ms,
    netns::{Net, ip, stranger},
    node::{Node, finish, program},
    tools::{addresses, arping, has_address},
    wire::{announcement, bytes},
};
use serde_json::Value;

const NATIVE: &[&str] = &["--iface", "eth0", "--attach", "native"];

#[test]
fn without_a_daemon_every_command_that_needs_one_ends_with_4() {
    let net = Net::new(1);
    let mut node = Node::new(net.host(0));
    let commands: [&[&str]; 8] = [
        &["online", "10.7.0.100/24", "--iface", "eth0"],
        &["offline", "10.7.0.100"],
        &["offline", "--all"],
        &["watch", "10.7.0.100", "--iface", "eth0"],
        &["unwatch", "10.7.0.100"],
        &["announce", "10.7.0.100"],
        &["status"],
        &["events"],
    ];
    for command in commands {
        node.cli(command).expect(4).naming(&node.instance);
    }
    // A socket that nobody listens on any more counts as none.
    node.run(NATIVE);
    node.kill();
    assert!(node.folder().join("control.sock").exists());
    for command in commands {
        node.cli(command).expect(4);
    }
}

#[test]
fn bad_usage_ends_with_2_and_help_with_0() {
    let run = |arguments: &[&str]| finish(Command::new(program()).args(arguments), "");
    for arguments in [
        &[][..],
        &["nonsense"],
        &["online"],
        &["online", "10.7.0.100/24"],
        &["online", "10.7.0.100/24", "--iface", "eth0", "--claim", "somehow"],
        &["online", "10.7.0.100/24", "--iface", "eth0", "--check", "-1"],
        &["online", "10.7.0.100/24", "--iface", "eth0", "--wait", "NaN"],
        &["offline"],
        &["offline", "--all", "10.7.0.100"],
        &["offline", "10.7.0.100/24"],
        &["probe", "10.7.0.100"],
        &["status", "nowhere"],
        &["--instance", "Upper", "status"],
        &["--instance", "", "status"],
        &["--instance", "../etc", "status"],
        &["--instance", "abcdefghijabcdefghijabcdefghijabc", "status"],
        &["completions", "no-shell"],
    ] {
        let done = run(arguments);
        assert_eq!(done.code, 2, "{arguments:?}: {done:?}");
        assert!(!done.err.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["online", "--help"], &["--version"]] {
        let done = run(arguments).expect(0);
        assert!(!done.out.is_empty());
    }
}

#[test]
fn the_same_again_is_0_and_says_so() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    let again = node.try_online(100, &[]).expect(0);
    assert_ne!(again.out + &again.err, "", "it says so");
    assert_eq!(addresses(&node.host.ns).len(), 2);

    let watch = ["watch", "10.7.0.150", "--iface", "eth0"];
    node.cli(&watch).expect(0);
    node.cli(&watch).expect(0);
    node.cli(&["unwatch", "10.7.0.150"]).expect(0);
    node.cli(&["unwatch", "10.7.0.150"]).expect(0);
    let offline = ["offline", "10.7.0.100"];
    node.cli(&offline).expect(0);
    node.cli(&offline).expect(0);
    assert!(!has_address(&node.host.ns, address));
    assert!(node.address(address).is_none());
    node.cli(&["offline", "--all"]).expect(0);
    node.cli(&["offline", "10.99.99.99"]).expect(0);
}

#[test]
fn other_parameters_for_a_managed_address_are_refused_with_the_difference() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    node.try_online(100, &["--defend", "yield"]).expect(1).naming("hold").naming("yield");
    node.cli(&["online", "10.7.0.100/25", "--iface", "eth0"]).expect(1).naming("24").naming("25");
    let entry = node.address(address).expect("managed");
    assert_eq!(entry["prefix_length"], 24);
    assert_eq!(entry["may_answer"], true);
}

#[test]
fn many_addresses_are_reported_one_by_one_and_the_worst_counts() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    // Taken on the wire: 3; free: 0.
    let done = node.cli(&["online", "10.7.0.2/24", "10.7.0.100/24", "--iface", "eth0"]).expect(3);
    let done = done.naming("10.7.0.2").naming("10.7.0.100").naming(net.host(1).mac);
    assert_eq!([done.out, done.err].concat().lines().filter(|line| line.contains("10.7.0.")).count(), 2);
    assert!(has_address(&node.host.ns, ip(100)));
    // Other parameters: 1, worse than taken.
    let other = ["online", "10.7.0.2/24", "10.7.0.100/25", "10.7.0.101/24", "--iface", "eth0"];
    node.cli(&other).expect(1).naming("10.7.0.2").naming("10.7.0.100").naming("10.7.0.101");
    assert!(has_address(&node.host.ns, ip(101)));
    // What the argument says: 2, worse than everything.
    node.cli(&["online", "10.7.0.2/24", "10.7.0.255/24", "--iface", "eth0"]).expect(2).naming("10.7.0.255");
}

#[test]
fn addresses_come_from_standard_input_one_a_line() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    let lines: String = (100..120).map(|last| format!("{}/24\n", ip(last))).collect();
    node.cli_with_input(&["online", "-", "--iface", "eth0"], &lines).expect(0);
    assert_eq!(addresses(&node.host.ns).len(), 21);
    node.cli_with_input(&["online", "-", "--iface", "eth0"], "10.7.0.130/24\nnonsense\n")
        .expect(2)
        .naming("nonsense");
    node.cli(&["offline", "--all"]).expect(0);
    assert_eq!(addresses(&node.host.ns).len(), 1);
}

#[test]
fn offline_all_on_one_interface_leaves_the_others() {
    let net = Net::new(1);
    net.host(0).ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up");
    let node = Node::start_with(net.host(0), &["--iface", "eth0", "--iface", "a7", "--attach", "generic"]);
    node.online(100);
    node.cli(&["online", "10.7.9.100/32", "--iface", "a7"]).expect(0);
    node.cli(&["offline", "--all", "--iface", "eth0"]).expect(0);
    assert!(node.address("10.7.0.100").is_none());
    assert!(node.address("10.7.9.100").is_some());
}

#[test]
fn an_address_on_two_interfaces_wants_the_interface_named() {
    let net = Net::new(1);
    net.host(0).ns.ip("link add a7 type veth peer name b7\nlink set a7 up\nlink set b7 up");
    let node = Node::start_with(net.host(0), &["--iface", "eth0", "--iface", "a7", "--attach", "generic"]);
    for interface in ["eth0", "a7"] {
        node.cli(&["watch", "10.7.0.150", "--iface", interface]).expect(0);
    }
    let done = node.cli(&["unwatch", "10.7.0.150"]);
    assert_ne!(done.code, 0, "{done:?}");
    done.naming("--iface").naming("eth0").naming("a7");
    node.cli(&["unwatch", "10.7.0.150", "--iface", "a7"]).expect(0);
    node.cli(&["unwatch", "10.7.0.150"]).expect(0);
}

#[test]
fn a_watched_address_that_goes_online_keeps_what_was_learnt() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let events = node.events();
    node.cli(&["watch", "10.7.0.100", "--iface", "eth0"]).expect(0);
    net.host(1).wire().send(&bytes(&announcement(stranger(1), ip(100))));
    events.wait_for("the owner", ms(2_000), |event| event["event"] == "owner_changed");
    node.online(100);
    assert_eq!(node.counter(ip(100), "claims"), 1);
}

#[test]
fn status_is_one_json_object_of_the_agreed_shape() {
    let net = Net::new(1);
    let node = Node::start(net.host(0));
    node.online(100);
    node.cli(&["watch", "10.7.0.150", "--iface", "eth0"]).expect(0);
    let status = node.status();
    assert_eq!(status["instance"], node.instance.as_str());
    let interface = &status["interfaces"][0];
    assert_eq!(interface["interface"], "eth0");
    assert_eq!(interface["attach_mode"], "native");
    assert!(["visible", "hidden", "unknown"].contains(&interface["vlan_tags"].as_str().expect("a word")));
    let entries = status["addresses"].as_array().expect("addresses");
    assert_eq!(entries.len(), 2);
    let [online, watched] = [&entries[0], &entries[1]];
    assert_eq!(online["address"], "10.7.0.100");
    assert_eq!(online["prefix_length"], 24);
    assert_eq!(online["interface"], "eth0");
    assert_eq!(online["vlan"], Value::Array(Vec::new()));
    assert_eq!(online["may_answer"], true);
    assert_eq!(online["owner"], node.host.mac.to_string());
    assert_eq!(online["lease_left"], Value::Null);
    assert!(online["counters"].is_object());
    assert_eq!(watched["state"], "watched");
    assert_eq!(watched["may_answer"], false);
    assert_eq!(watched["owner"], Value::Null);

    let one: Value =
        serde_json::from_str(&node.cli(&["status", "10.7.0.150", "--json"]).expect(0).out).expect("JSON");
    assert_eq!(one["addresses"].as_array().map(Vec::len), Some(1));
    let words = node.cli(&["status"]).expect(0).naming("10.7.0.100").naming("eth0").naming("native");
    assert!(!words.out.contains('\x1b'), "colours where there is no terminal");
    assert!(!words.err.contains('\x1b'));
}

#[test]
fn events_are_one_json_object_a_line_numbered_from_1() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    let address = node.online(100);
    net.host(1).wire().send(&bytes(&announcement(stranger(1), address)));
    let follower = node.events();
    let seen = follower.collect_until("the conflict", ms(3_000), |event| event["event"] == "conflict");
    for (number, event) in seen.iter().enumerate() {
        let event = &event.json;
        assert_eq!(event["seq"], number as u64 + 1, "{event}");
        let time = event["time"].as_str().expect("a time");
        // RFC 3339 with nanoseconds, in UTC.
        assert_eq!(time.len(), "2026-11-22T22:29:54.123456789Z".len(), "{time}");
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T' && time.as_bytes()[19] == b'.', "{time}");
        assert!(event["event"].is_string());
    }
    let steps: Vec<(&str, &str)> = seen
        .iter()
        .filter(|event| event.json["event"] == "state")
        .map(|event| (event.json["from"].as_str().unwrap_or(""), event.json["to"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(steps, [("", "probing"), ("probing", "announcing")]);

    // Without --follow: the recent past, and the end.
    let past = node.cli(&["events", "--json"]).expect(0).out;
    for (line, event) in past.lines().zip(&seen) {
        assert_eq!(serde_json::from_str::<Value>(line).expect("JSON"), event.json);
    }
    let words = node.cli(&["events"]).expect(0).out;
    assert_eq!(words.lines().count(), past.lines().count());
    assert!(words.contains(&stranger(1).to_string()));
}

#[test]
fn completions_are_there_for_each_shell_and_bash_takes_them() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = finish(Command::new(program()).args(["completions", shell]), "").expect(0);
        assert!(done.out.contains("arpwarden"), "{shell}");
        if shell == "bash" {
            finish(Command::new("bash").args(["-n", "/dev/stdin"]), &done.out).expect(0);
        }
    }
}

#[test]
fn service_managers_hear_when_it_is_ready_and_when_it_stops() {
    let net = Net::new(1);
    let mut node = Node::new(net.host(0));
    let path = std::env::temp_dir().join(format!("{}-notify", node.instance));
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut daemon = node.command(&["run"]);
    daemon.args(NATIVE).env("NOTIFY_SOCKET", &path);
    let mut child = daemon.spawn().expect("the daemon starts");
    let hear = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    hear("READY=1");
    // By then it listens.
    node.cli(&["status"]).expect(0);
    arpwarden_tests::tools::signal(child.id(), libc::SIGTERM);
    hear("STOPPING=1");
    assert!(child.wait().expect("a child").success());
    std::fs::remove_file(path).expect("the socket's file");
    node.run(NATIVE);
}

#[test]
fn the_log_has_one_line_for_each_thing_the_programs_own_messages_among_them() {
    let net = Net::new(2);
    for (last, arguments) in [(100, &["-vv"][..]), (101, &[])] {
        let node = Node::start_with(net.host(0), &[NATIVE, arguments].concat());
        let address = node.online(last);
        net.host(1).wire().send(&bytes(&announcement(stranger(1), address)));
        arpwarden_tests::wait_for("the conflict in the log", ms(3_000), || {
            // Once by the program's message, once by the daemon's event.
            (node.log().lines().filter(|line| line.contains(&stranger(1).to_string())).count() >= 2)
                .then_some(())
        });
        for line in node.log().lines() {
            let mut words = line.split_whitespace();
            let (time, level) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            assert!(time.starts_with("20") && time.ends_with('Z'), "no time: {line}");
            assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level), "no level: {line}");
            assert!(!line.contains('\x1b'), "colours where there is no terminal: {line}");
        }
    }
}

#[test]
fn rust_log_sets_the_level() {
    let net = Net::new(1);
    let mut node = Node::new(net.host(0));
    let mut command = node.command(&["run"]);
    let log = std::env::temp_dir().join(format!("{}-quiet", node.instance));
    let file = std::fs::File::create(&log).expect("a file");
    command
        .args(NATIVE)
        .env("RUST_LOG", "error")
        .stdout(file.try_clone().expect("a descriptor"))
        .stderr(file);
    let mut child = command.spawn().expect("the daemon starts");
    arpwarden_tests::wait_for("the daemon", ms(20_000), || (node.cli(&["status"]).code == 0).then_some(()));
    node.online(100);
    arpwarden_tests::tools::signal(child.id(), libc::SIGTERM);
    assert!(child.wait().expect("a child").success());
    let text = std::fs::read_to_string(&log).expect("the log");
    std::fs::remove_file(&log).expect("the log");
    assert_eq!(text, "");
    node.run(NATIVE);
}

// ---- Clients that behave badly ----

fn connect(node: &Node) -> UnixStream {
    let client = UnixStream::connect(node.folder().join("control.sock")).expect("a connection");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    client
}

/// A good client gets its answer at once, and so does whoever asks for the address.
fn still_works(node: &Node, net: &Net) {
    let begun = Instant::now();
    node.cli(&["status"]).expect(0);
    assert!(begun.elapsed() < Duration::from_secs(2), "a good client waited {:?}", begun.elapsed());
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], ip(100)).code, 0);
}

#[test]
fn what_is_no_request_is_refused_in_words_and_the_daemon_goes_on() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    let requests: [&[u8]; 9] = [
        b"\n",
        b"nonsense\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"{\"command\":\"become_root\"}\n",
        b"{\"command\":\"status\",\"address\":null,\"more\":1}\n",
        b"{\"command\":\"unwatch\",\"addresses\":[\"10.7.0.999\"],\"interface\":null}\n",
        b"\xff\xfe\x00\n",
    ];
    for request in requests {
        let mut client = connect(&node);
        client.write_all(request).expect("sent");
        client.shutdown(Shutdown::Write).expect("no more");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer in time");
        let last: Value =
            serde_json::from_str(answer.lines().last().unwrap_or_default()).unwrap_or_else(|error| {
                panic!("{}: {answer:?}: {error}", String::from_utf8_lossy(request));
            });
        assert_eq!(last["response"], "end", "{answer}");
        assert_eq!(last["exit"], "usage", "{answer}");
    }
    still_works(&node, &net);
}

#[test]
fn an_over_long_request_is_cut_off() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    let mut client = connect(&node);
    client.set_write_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let chunk = vec![b'x'; 1 << 16];
    let mut sent = 0;
    // 64 MiB without an end of line: the daemon stops reading long before.
    while sent < 64 << 20 {
        match client.write(&chunk) {
            Ok(length) => sent += length,
            Err(_) => break,
        }
    }
    assert!(sent < 32 << 20, "the daemon took {sent} bytes of one request");
    still_works(&node, &net);
}

#[test]
fn clients_that_say_nothing_and_never_read_hold_nobody_up() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    let mut idle: Vec<UnixStream> = Vec::new();
    for number in 0..20 {
        let mut client = connect(&node);
        match number % 3 {
            0 => {}
            1 => client.write_all(b"{\"command\":\"sta").expect("sent"),
            // Asks for more than the socket's buffer takes, and never reads.
            _ => {
                client.set_nonblocking(true).expect("a flag");
                for _ in 0..10_000 {
                    if client.write_all(b"{\"command\":\"status\",\"address\":null}\n").is_err() {
                        break;
                    }
                }
            }
        }
        idle.push(client);
    }
    still_works(&node, &net);
}

#[test]
fn too_many_clients_are_turned_away_and_served_again_when_others_leave() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    let idle: Vec<UnixStream> =
        (0..300).map_while(|_| UnixStream::connect(node.folder().join("control.sock")).ok()).collect();
    assert_eq!(arping(net.host(1), &["-c", "1", "-w", "2"], ip(100)).code, 0, "answers go on");
    drop(idle);
    arpwarden_tests::wait_for("the daemon to serve again", ms(5_000), || {
        (node.cli(&["status"]).code == 0).then_some(())
    });
    still_works(&node, &net);
}

#[test]
fn a_follower_that_never_reads_is_dropped_or_told_what_it_missed() {
    let net = Net::new(2);
    let node = Node::start(net.host(0));
    node.online(100);
    let mut slow = connect(&node);
    slow.write_all(b"{\"command\":\"events\",\"follow\":true}\n").expect("sent");
    // Some thousand events: state steps of watched addresses.
    let many: Vec<String> = (0..1_500_u32).map(|n| format!("10.8.{}.{}", n / 250, n % 250 + 1)).collect();
    let mut arguments = vec!["watch", "--iface", "eth0"];
    arguments.extend(many.iter().map(String::as_str));
    node.cli(&arguments).expect(0);
    arguments[0] = "unwatch";
    node.cli(&arguments).expect(0);
    still_works(&node, &net);

    let mut last = 0;
    let mut gap = None;
    for line in BufReader::new(slow).lines() {
        // The daemon may have hung up, which ends the reading too.
        let Ok(line) = line else { break };
        let response: Value = serde_json::from_str(&line).expect("JSON");
        let event = &response["event"];
        if event["event"] == "event_gap" {
            gap = Some(event.clone());
            last = event["seq"].as_u64().expect("the last missed one");
            continue;
        }
        let Some(seq) = event["seq"].as_u64() else { continue };
        assert_eq!(seq, last + 1, "a hole that nobody spoke of");
        last = seq;
        if last >= 3_000 {
            break;
        }
    }
    if let Some(gap) = gap {
        assert!(gap["count"].as_u64().expect("a count") > 0, "{gap}");
    }
}
