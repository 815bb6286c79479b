//! Kernels beside the running one: Debian's packages, unpacked below `target/kernels`. They are got as the user and
//! with package lists of their own; the machine's sources and packages stay as they are.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use crate::process;

/// What `--kernel` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Choice {
    /// The running kernel, with the whole suite
    Here,
    /// Linux 5.10: the oldest that is supported, and that Debian still serves
    #[value(name = "5.10")]
    V5_10,
    /// Linux 6.1
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12
    #[value(name = "6.12")]
    V6_12,
    /// Linux 6.18
    #[value(name = "6.18")]
    V6_18,
    /// The newest that Debian serves
    New,
    /// The network cards that QEMU plays, on a 6.1 with their drivers
    #[value(name = "nics-6.1")]
    NicsOld,
    /// The same on a 6.12
    #[value(name = "nics-6.12")]
    NicsNew,
    /// All of the above but `here`
    All,
}

impl Choice {
    /// What stands for what: each once, in order.
    pub(crate) fn expand(chosen: &[Self]) -> Vec<Self> {
        let all = chosen.contains(&Self::All);
        let is_meant =
            |choice: &Self| *choice != Self::All && (chosen.contains(choice) || all && *choice != Self::Here);
        Self::value_variants().iter().copied().filter(is_meant).collect()
    }

    /// Whether it is about the cards, not the kernel.
    pub(crate) const fn is_of_nics(self) -> bool {
        matches!(self, Self::NicsOld | Self::NicsNew)
    }

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::New => "new",
            Self::NicsOld => "nics-6.1",
            Self::NicsNew => "nics-6.12",
            Self::All => "all",
        }
    }

    /// How the names of its packages begin and end, the first of them being the one that is looked for. Debian's
    /// cloud flavour is a third of the size and has every device but the drivers of real cards. From Linux 6.19 on
    /// image and modules are two packages.
    fn packages(self) -> Option<(&'static [&'static str], &'static str)> {
        Some(match self {
            Self::V5_10 => (&["linux-image-5.10."], "-cloud-amd64"),
            Self::V6_1 => (&["linux-image-6.1."], "-cloud-amd64"),
            Self::V6_12 => (&["linux-image-6.12."], "-cloud-amd64"),
            Self::V6_18 => (&["linux-image-6.18."], "-cloud-amd64"),
            Self::New => (&["linux-modules-", "linux-binary-"], "-cloud-amd64"),
            Self::NicsOld => (&["linux-image-6.1."], "-amd64"),
            Self::NicsNew => (&["linux-image-6.12."], "-amd64"),
            Self::Here | Self::All => return None,
        })
    }
}

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As on the command line.
    pub(crate) name: &'static str,
    /// `vmlinuz`.
    pub(crate) image: PathBuf,
    /// The folder with its modules somewhere below.
    pub(crate) modules: PathBuf,
}

/// Below it are the kernels, and the package lists.
pub(crate) fn folder() -> PathBuf {
    process::target_directory().join("kernels")
}

/// How long package lists are good for. Point releases come every week or two.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Gets the newest point release of a kernel, or takes the one that is there if there is no newer or the archive can't
/// be asked.
pub(crate) fn get(choice: Choice) -> Result<Kernel> {
    let (prefixes, suffix) = choice.packages().context("not a kernel to be got")?;
    let name = choice.name();
    let folder = folder().join(name);
    let known = fs::read_to_string(folder.join("package")).ok();
    let newest = Lists::fresh().and_then(|lists| {
        let package = lists.newest(prefixes[0], suffix)?;
        Ok((lists, package))
    });
    match newest {
        Ok((_, package)) if known.as_deref() == Some(package.as_str()) => {}
        Ok((lists, package)) => fetch(&lists, &folder, prefixes, &package)?,
        Err(error) if known.is_some() => eprintln!("{name}: the kernel of an earlier run is used: {error:#}"),
        Err(error) => return Err(error),
    }
    let image = find(&folder, &|name| name.starts_with("vmlinuz"))?.context("no vmlinuz in the package")?;
    Ok(Kernel { name, image, modules: folder })
}

/// Downloads and unpacks the packages that belong to `package` in place of what is there.
fn fetch(lists: &Lists, folder: &Path, prefixes: &[&str], package: &str) -> Result<()> {
    let new = folder.with_extension("new");
    for gone in [&new, folder] {
        process::check(process::as_user("rm").arg("-rf").arg(gone))?;
    }
    process::check(process::as_user("mkdir").arg("-p").arg(new.join("debs")))?;
    let rest = package.strip_prefix(prefixes[0]).context("a package of this series")?;
    let packages = prefixes.iter().map(|prefix| format!("{prefix}{rest}"));
    process::run(
        lists.apt("apt-get").args(["--quiet", "download"]).args(packages).current_dir(new.join("debs")),
    )?;
    for file in fs::read_dir(new.join("debs"))? {
        process::check(process::as_user("dpkg-deb").arg("-x").arg(file?.path()).arg(&new))?;
    }
    process::check(process::as_user("rm").arg("-r").arg(new.join("debs")))?;
    fs::write(new.join("package"), package)?;
    fs::rename(&new, folder).with_context(|| format!("renaming {}", new.display()))
}

/// The first file below a folder whose name is liked.
pub(crate) fn find(folder: &Path, is_liked: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let mut found = None;
    visit(folder, &mut |path| {
        if found.is_none() && path.file_name().and_then(|name| name.to_str()).is_some_and(is_liked) {
            found = Some(path.to_owned());
        }
    })?;
    Ok(found)
}

/// Shows every file below a folder.
pub(crate) fn visit(folder: &Path, show: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), show)?;
        } else {
            show(&entry.path());
        }
    }
    Ok(())
}

/// Suites with kernels; bookworm's own 6.1 is older than the one in its security suite. A suite that is gone some day
/// costs its kernel, not the others.
const KERNEL_SUITES: [(Archive, &str); 3] = [
    (Archive::Security, "bookworm-security"),
    (Archive::Security, "bullseye-security"),
    (Archive::Main, "trixie-backports"),
];

/// Suites with a QEMU for Debian 12. Its own one, 7.2, has no igb and would remove a `qemu-utils` from backports.
const QEMU_SUITES: [(Archive, &str); 3] = [
    (Archive::Main, "bookworm"),
    (Archive::Main, "bookworm-backports"),
    (Archive::Security, "bookworm-security"),
];

#[derive(Clone, Copy)]
enum Archive {
    Main,
    Security,
}

/// Package lists of some suites of Debian, apart from the machine's own.
pub(crate) struct Lists {
    folder: PathBuf,
}

impl Lists {
    /// Those with kernels, not older than [`FRESH`].
    fn fresh() -> Result<Self> {
        ensure!(process::find("apt-get").is_some(), "Debian's kernels are got by apt-get, which is not here");
        let lists = Self { folder: folder().join("apt") };
        let stamp = lists.folder.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|file| file.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_none_or(|age| age > FRESH) {
            lists.set_up(&KERNEL_SUITES)?;
            lists.update(process::as_user("env"))?;
            fs::write(&stamp, "")?;
        }
        Ok(lists)
    }

    /// Those with a QEMU for Debian 12, read as root, who will install from them.
    pub(crate) fn of_qemu() -> Result<Self> {
        let lists = Self { folder: folder().join("apt-qemu") };
        lists.set_up(&QEMU_SUITES)?;
        lists.update(process::as_root("env", &[])?)?;
        Ok(lists)
    }

    fn set_up(&self, suites: &[(Archive, &str)]) -> Result<()> {
        for below in ["lists/partial", "cache/archives/partial"] {
            process::check(process::as_user("mkdir").arg("-p").arg(self.folder.join(below)))?;
        }
        let (main, security) = mirrors();
        let key = keyring()?;
        let lines = suites.iter().map(|(archive, suite)| {
            let mirror = match archive {
                Archive::Main => &main,
                Archive::Security => &security,
            };
            format!("deb [arch=amd64 signed-by={}] {mirror} {suite} main\n", key.display())
        });
        fs::write(self.folder.join("sources.list"), lines.collect::<String>())?;
        Ok(())
    }

    /// Reads the lists anew. A suite that can't be had is a warning of apt's.
    fn update(&self, env: Command) -> Result<()> {
        let mut update = self.with_options(env, "apt-get");
        if process::run(update.args(["--quiet", "--quiet", "update"])).is_err() {
            ensure!(
                find(&self.folder.join("lists"), &|name| name.contains("_Packages"))?.is_some(),
                "no package list could be had"
            );
            eprintln!("not every package list could be had; what they would offer is left out");
        }
        Ok(())
    }

    /// apt's program `name` on these lists, as the user.
    pub(crate) fn apt(&self, name: &str) -> Command {
        self.with_options(process::as_user("env"), name)
    }

    /// The same as root.
    pub(crate) fn apt_as_root(&self, name: &str) -> Result<Command> {
        Ok(self
            .with_options(process::as_root("env", &[("DEBIAN_FRONTEND", "noninteractive".as_ref())])?, name))
    }

    fn with_options(&self, mut env: Command, name: &str) -> Command {
        let folder = self.folder.display();
        env.arg(name).args([
            format!("--option=Dir::Etc::SourceList={folder}/sources.list"),
            "--option=Dir::Etc::SourceParts=-".into(),
            format!("--option=Dir::State::Lists={folder}/lists"),
            format!("--option=Dir::Cache={folder}/cache"),
            "--option=Acquire::Languages=none".into(),
            // apt's own user may not enter the folders of others.
            "--option=APT::Sandbox::User=root".into(),
        ]);
        env
    }

    /// The newest package that begins and ends so.
    fn newest(&self, prefix: &str, suffix: &str) -> Result<String> {
        let names = process::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        let newest = newest_of(names.lines(), prefix, suffix);
        newest.with_context(|| format!("no package {prefix}*{suffix} is served any more"))
    }
}

fn newest_of<'a>(names: impl Iterator<Item = &'a str>, prefix: &str, suffix: &str) -> Option<String> {
    // What is in between is a version, not another flavour.
    let is_version = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || b".+-deb".contains(&byte));
    names
        .filter(|name| {
            let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
            rest.is_some_and(|rest| !rest.is_empty() && is_version(rest))
        })
        .max_by(|one, other| by_numbers(one, other))
        .map(str::to_owned)
}

/// Compares by the numbers in two names.
fn by_numbers(one: &str, other: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other)).then_with(|| one.cmp(other))
}

/// Where this machine gets Debian's packages from: the archive, and the security archive. On another distribution, the
/// archives' own addresses.
fn mirrors() -> (String, String) {
    let format = "$(REPO_URI) $(LABEL)";
    let targets = process::output(process::as_user("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]));
    let targets = targets.unwrap_or_default();
    let of = |label: &str, otherwise: &str| {
        let found = targets.lines().find_map(|line| {
            let (address, its) = line.split_once(' ')?;
            (its == label).then(|| address.to_owned())
        });
        found.unwrap_or_else(|| otherwise.into())
    };
    (
        of("Debian", "http://deb.debian.org/debian"),
        of("Debian-Security", "http://deb.debian.org/debian-security"),
    )
}

/// The keys of Debian's archive.
fn keyring() -> Result<PathBuf> {
    let folder = Path::new("/usr/share/keyrings");
    let found = ["debian-archive-keyring.gpg", "debian-archive-keyring.pgp"]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists());
    match found {
        Some(path) => Ok(path),
        None => bail!("Debian's keys are not here: the package debian-archive-keyring has them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_point_release_is_found_by_name() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-58-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        let newest = |prefix, suffix| newest_of(names.into_iter(), prefix, suffix);
        assert_eq!(newest("linux-image-6.1.", "-cloud-amd64").as_deref(), Some(names[1]));
        assert_eq!(newest("linux-image-6.1.", "-amd64").as_deref(), Some(names[2]));
        assert_eq!(newest("linux-image-6.12.", "-cloud-amd64").as_deref(), Some(names[5]));
        assert_eq!(newest("linux-image-5.10.", "-cloud-amd64"), None);
    }

    #[test]
    fn all_stands_for_every_guest() {
        let expand = Choice::expand;
        assert_eq!(expand(&[Choice::New, Choice::Here, Choice::New]), [Choice::Here, Choice::New]);
        assert_eq!(expand(&[Choice::All]).len(), 7);
        assert!(!expand(&[Choice::All]).contains(&Choice::Here));
        assert!(expand(&[]).is_empty());
    }
}
