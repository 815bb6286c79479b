//! `unload`: everything of an instance goes, whether its daemon runs, hangs in its end, or has crashed.

use std::time::Duration;

use anyhow::anyhow;

use crate::{
    client::{self, complain},
    daemon::{DYING, Stop, remove_leftovers, wait_for_lock},
    exit::Exit,
    instance::{Instance, Lock},
    io::{bpf::Pins, clock, netlink::Netlink},
    protocol::Request,
};

/// How long a daemon may take to end: it gives itself 5 s to take addresses off.
const PATIENCE: Duration = Duration::from_secs(10);

/// Performs `unload`.
pub async fn run(instance: &Instance) -> Exit {
    match unload(instance).await {
        Ok(message) => {
            println!("{message}");
            Exit::Done
        }
        Err(stop) => {
            complain(format_args!("{:#}", stop.error));
            stop.exit
        }
    }
}

async fn unload(instance: &Instance) -> Result<String, Stop> {
    let pins = Pins::new(instance.name());
    if !instance.exists() && !pins.exists() {
        return Ok(format!("instance '{}' is not loaded; nothing to do", instance.name()));
    }
    let (lock, had_daemon) = end_daemon(instance).await?;
    // Before the state file, which is written anew for the namespace where it is opened.
    pins.are_here().map_err(Stop::failed)?;
    let (state, left) = lock.state_file()?;
    let (netlink, _changes) = Netlink::open().map_err(Stop::failed)?;
    // From here on the program keeps the kernel silent about all of them, so it goes last.
    if let Err(error) = pins.silence() {
        complain(format_args!("{:#}; going on without", anyhow::Error::from(error)));
    }
    let removed = remove_leftovers(&netlink, &state, left.registered()).await?;
    pins.unload().map_err(Stop::failed)?;
    lock.remove()?;
    let taken_off = match removed.len() {
        0 => "nothing was left on an interface".to_owned(),
        _ => format!("taken off what was left: {}", removed.join(", ")),
    };
    Ok(match (had_daemon, removed.is_empty()) {
        (true, true) => "released everything; the daemon has ended".to_owned(),
        (true, false) => format!("the daemon has ended; {taken_off}"),
        (false, _) => format!("no daemon ran; {taken_off}"),
    })
}

/// Has the daemon end, if there is one that answers, and takes its place. One that is starting answers soon; one that
/// was killed lets its lock go soon.
async fn end_daemon(instance: &Instance) -> Result<(Lock, bool), Stop> {
    let give_up = clock::now().after(PATIENCE);
    let mut asked = false;
    while clock::now() < give_up {
        match client::connect(instance) {
            Ok(_) if asked => {}
            Ok(stream) => {
                client::converse_quietly(&stream, &Request::Unload {}, PATIENCE).map_err(|error| {
                    Stop::failed(anyhow!(
                        "asking the daemon of instance '{}' to end: {error}",
                        instance.name()
                    ))
                })?;
                asked = true;
            }
            Err((Exit::NoDaemon, _)) => {}
            Err((exit, message)) => return Err(Stop::new(exit, anyhow!(message))),
        }
        if let Some(lock) = wait_for_lock(instance, DYING).await? {
            return Ok((lock, asked));
        }
    }
    Err(Stop::failed(anyhow!(
        "a process holds the lock of instance '{0}' and does not end; see 'fuser -v /run/arpwarden/{0}/lock'",
        instance.name(),
    )))
}
