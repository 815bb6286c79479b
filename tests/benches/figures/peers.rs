//! Programs of others that do part of the same work, as Debian ships them: `cargo xtask setup` unpacks them, so that they are
//! not started as services.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use arpwarden_tests::{netns::Host, tools::signal};

/// A program of others.
#[derive(Clone, Copy)]
pub(crate) enum Tool {
    Keepalived,
    Arpalert,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Keepalived => "keepalived",
            Self::Arpalert => "arpalert",
        }
    }

    /// Where it is: unpacked, or installed; or that it is nowhere, which is said loudly.
    pub(crate) fn find(self) -> Result<PathBuf, String> {
        let name = self.name();
        let tools = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools"));
        let places = [tools.join(name).join("usr/sbin").join(name), Path::new("/usr/sbin").join(name)];
        let starts = |path: &PathBuf| {
            let mut command = Command::new(path);
            command.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // 127: a library is missing.
            path.is_file() && command.status().is_ok_and(|status| status.code() != Some(127))
        };
        places.into_iter().find(starts).ok_or_else(|| {
            eprintln!("skipped: {name} is not here; `cargo xtask bench` gets it where apt has it");
            format!("no {name} here")
        })
    }
}

/// keepalived as one of two virtual routers.
pub(crate) struct Keepalived {
    child: Child,
    folder: PathBuf,
}

impl Keepalived {
    /// Advertising this often in seconds (VRRP version 3 counts in hundredths), with the highest priority below the owner's, which
    /// makes the skew time the shortest.
    pub(crate) fn start(host: &Host, program: &Path, addresses: &[Ipv4Addr], every: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("awt-{}-keepalived-{}", std::process::id(), host.port));
        fs::create_dir_all(&folder).expect("a folder of our own");
        // What fits into an advertisement is limited; those excluded from it are held all the same.
        let (told, others) = addresses.split_at(addresses.len().min(1));
        let [told, others] = [told, others].map(|addresses| {
            addresses.iter().map(|address| format!("    {address}/32 dev eth0\n")).collect::<String>()
        });
        let settings = format!(
            "global_defs {{\n  vrrp_version 3\n}}\nvrrp_instance V {{\n  state BACKUP\n  nopreempt\n  interface eth0\n  \
             virtual_router_id 51\n  priority 254\n  advert_int {every}\n  virtual_ipaddress {{\n{told}  }}\n  \
             virtual_ipaddress_excluded {{\n{others}  }}\n}}\n"
        );
        let conf = folder.join("conf");
        fs::write(&conf, settings).expect("a configuration");
        let mut command = host.ns.command(program);
        command.args(["--dont-fork", "--vrrp", "--log-console", "--use-file"]).arg(&conf);
        for (option, file) in [("--pid", "pid"), ("--vrrp_pid", "vrrp")] {
            command.arg(option).arg(folder.join(file));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().expect("keepalived starts"), folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in order, which tells the other router.
    pub(crate) fn stop(&mut self) {
        signal(self.child.id(), libc::SIGTERM);
        drop(self.child.wait());
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Its child ends with it only if it is asked.
            self.stop();
        }
        drop(fs::remove_dir_all(&self.folder));
    }
}
