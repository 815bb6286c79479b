//! Running other programs: as the user who builds, or as root.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Uid, User};

/// Root of the repository.
pub(crate) fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where Cargo puts what it builds, and where `setup` puts tools that it must not install.
pub(crate) fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), |directory| repository().join(directory))
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Whether the commands of [`as_user`] run as root.
pub(crate) fn user_is_root() -> bool {
    is_root() && user_behind_sudo().is_none()
}

/// The user behind sudo: builds are theirs. `None` when this process is not root, or is root by itself.
fn user_behind_sudo() -> Option<User> {
    if !is_root() {
        return None;
    }
    let uid: u32 = env::var("SUDO_UID").ok()?.parse().ok()?;
    if uid == 0 { None } else { User::from_uid(Uid::from_raw(uid)).ok().flatten() }
}

/// Under sudo Cargo has built this very program as root. Gives the target directory back to the user, who
/// could not build in it otherwise. Links are not followed, and a repository that is root's stays so.
pub(crate) fn hand_back_target() -> Result<()> {
    let Some(user) = user_behind_sudo() else { return Ok(()) };
    let target = target_directory();
    if !target.is_dir() || fs::metadata(repository())?.uid() != user.uid.as_raw() {
        return Ok(());
    }
    let mut chown = Command::new("chown");
    chown.args(["-R", "-h", "-P", "--from=0"]).arg(format!("{}:{}", user.uid, user.gid)).arg(&target);
    check(&mut chown)
}

fn home() -> Option<PathBuf> {
    user_behind_sudo().map_or_else(|| env::var_os("HOME").map(PathBuf::from), |user| Some(user.dir))
}

fn cargo_home_bin() -> Option<PathBuf> {
    if user_behind_sudo().is_none()
        && let Some(cargo_home) = env::var_os("CARGO_HOME")
    {
        return Some(PathBuf::from(cargo_home).join("bin"));
    }
    Some(home()?.join(".cargo/bin"))
}

/// The search path with Cargo's own directory in front (bpf-linker lands there) and the ones of root's
/// tools, which a user's path often leaves out, at the end.
fn search_path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let directories = cargo_home_bin()
        .into_iter()
        .chain(env::split_paths(&inherited))
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    env::join_paths(directories).unwrap_or(inherited)
}

/// The executable with this name, if there is one.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// A command that runs as the user who builds, in the repository.
pub(crate) fn as_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(repository()).env("PATH", search_path());
    if let Some(user) = user_behind_sudo() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", &user.dir).env("USER", &user.name);
    }
    command
}

/// Cargo, as the user. It is the one that built this program, so that a `+toolchain` reaches the builds too.
pub(crate) fn cargo() -> Command {
    as_user(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command that runs as root: by sudo where this process is not root. `environment` is handed over by name.
pub(crate) fn as_root(program: impl AsRef<OsStr>, environment: &[(&str, &OsStr)]) -> Result<Command> {
    let mut command = if is_root() {
        let mut command = Command::new("env");
        command.env("PATH", search_path());
        command
    } else {
        let sudo = find("sudo").with_context(|| {
            format!(
                "{} needs root, and there is no sudo: run the same command as root",
                program.as_ref().display()
            )
        })?;
        let mut command = Command::new(sudo);
        let mut path = OsString::from("PATH=");
        path.push(search_path());
        command.arg("env").arg(path);
        command
    };
    for (name, value) in environment {
        let mut assignment = OsString::from(name);
        assignment.push("=");
        assignment.push(value);
        command.arg(assignment);
    }
    command.arg(program).current_dir(repository());
    Ok(command)
}

/// Replaces this process, so that signals and the exit code are the program's own. Returns only on failure.
pub(crate) fn become_root<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> anyhow::Error {
    let log_level = env::var_os("RUST_LOG");
    let environment: Vec<(&str, &OsStr)> =
        log_level.iter().map(|level| ("RUST_LOG", level.as_os_str())).collect();
    match as_root(program, &environment) {
        Ok(mut command) => {
            // The user's directory, not the repository's: arguments may name files.
            if let Ok(here) = env::current_dir() {
                command.current_dir(here);
            }
            let error = command.args(arguments).exec();
            anyhow::Error::new(error).context(format!("starting {}", program.display()))
        }
        Err(error) => error,
    }
}

/// Runs a command, shown first, and insists on success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    check(command)
}

/// Runs a command and insists on success.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// What a command prints, if it succeeds.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("what `{}` printed", shown(command)))
}

/// Whether a command runs and succeeds. It says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A command as one would type it: without Cargo's folder, and without `env` and the settings that it passes on.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = if program.ends_with("bin/cargo") { OsStr::new("cargo") } else { program.as_os_str() };
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy());
    let words: Vec<_> = words.filter(|word| word != "env" && !is_setting(word)).collect();
    words.join(" ")
}

fn is_setting(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}
