//! The control socket: clients that are malformed, over-long, too many or too slow cost the daemon nothing
//! but an answer.

use std::{
    fs, future::poll_fn, io, os::unix::fs::PermissionsExt as _, path::Path, pin::pin, sync::Arc, task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, UCred},
    },
    sync::{
        Semaphore,
        broadcast::{
            self,
            error::{RecvError, TryRecvError},
        },
        mpsc,
    },
};
use tracing::{debug, warn};

use super::{
    clock::{self, Timer},
    memory,
};
use crate::{
    events::{self, Record},
    exit::Exit,
    protocol::{MAX_REQUEST, Request, Response},
};

/// Clients served at the same time; a person and a handful of monitors need a tenth of it.
const MAX_CLIENTS: usize = 64;
/// How long a client may take to send a request, or to take a line: far longer than a busy host, far shorter
/// than a stuck one would hold one of the places.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lines of answers that are written together: 200 bytes each, a tenth of what a socket takes without a reader
/// (`net.core.wmem_default`, 212,992 bytes).
const LINES_AT_ONCE: usize = 100;

/// Bytes of answers that leave so much free memory behind that it is worth giving it back.
const MUCH: usize = 1 << 18;

/// A request, and where its answers go.
#[derive(Debug)]
pub struct Command {
    /// What is asked for.
    pub request: Request,
    /// Who asks; `None` where the kernel does not tell.
    pub peer: Option<UCred>,
    /// Where the answers go. It has room for two lines for each address of the request and is never waited on.
    pub replies: mpsc::Sender<Reply>,
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// A line.
    Line(Response),
    /// The recent events, and those to come.
    Events {
        /// Oldest first.
        recent: Vec<Arc<Record>>,
        /// What follows without a gap, for a follower.
        follow: Option<broadcast::Receiver<Arc<Record>>>,
    },
}

/// Binds the socket at `unready`, for nobody but root or `group`; [`publish`] makes it appear.
///
/// # Errors
/// The socket could not be made, or the group does not exist.
pub fn bind(unready: &Path, group: Option<nix::unistd::Gid>) -> io::Result<UnixListener> {
    match fs::remove_file(unready) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The directory is ours alone to write to, and nobody knows this name: the mode is set before anybody can connect.
    let listener = UnixListener::bind(unready)?;
    if let Some(group) = group {
        nix::unistd::chown(unready, None, Some(group))?;
    }
    fs::set_permissions(unready, fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
    Ok(listener)
}

/// Makes the socket appear under its name, at once and ready.
///
/// # Errors
/// The rename failed.
pub fn publish(unready: &Path, socket: &Path) -> io::Result<()> {
    fs::rename(unready, socket)
}

/// Serves clients for ever.
pub async fn serve(listener: UnixListener, commands: mpsc::Sender<Command>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("accepting a control client failed: {error}; trying again in 0.1 s");
                wait(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let (_, mut writer) = stream.into_split();
            let refusal =
                end(Exit::Failed, format!("{MAX_CLIENTS} control clients are connected already; try again"));
            // A fresh socket has room for a line; a client that is gone does not matter.
            let _ = writer.try_write(&line(&refusal));
            let _ = writer.shutdown().await;
            continue;
        };
        let commands = commands.clone();
        tokio::spawn(async move {
            if let Err(error) = client(stream, commands).await {
                debug!("a control client was dropped: {error}");
            }
            drop(place);
        });
    }
}

fn end(exit: Exit, message: String) -> Response {
    Response::End { exit, message: Some(message) }
}

fn line(response: &Response) -> Vec<u8> {
    // Strings and numbers only: nothing in a response can fail to become JSON.
    let mut text = serde_json::to_vec(response).unwrap_or_default();
    text.push(b'\n');
    text
}

async fn wait(time: Duration) {
    // Without a descriptor to spare there is nothing to wait with.
    let Ok(mut timer) = Timer::new() else { return tokio::task::yield_now().await };
    if timer.set(Some(clock::now().after(time))).is_ok() {
        timer.expired().await;
    }
}

/// `work`, or an error if it takes longer than a client may.
async fn in_time<T>(what: &str, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut work = pin!(work);
    // Mostly it is done at once: a timer would take longer than that.
    if let Poll::Ready(done) = poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
        return done;
    }
    let mut timer = Timer::new()?;
    timer.set(Some(clock::now().after(PATIENCE)))?;
    tokio::select! {
        done = work => done,
        () = timer.expired() => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what} took longer than {} s", PATIENCE.as_secs())))
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    in_time("taking an answer", writer.write_all(bytes)).await
}

async fn client(stream: UnixStream, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let peer = stream.peer_cred().ok();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        // Anew each time: a line of thousands of addresses is not kept for the next one.
        let mut text = Vec::new();
        // One byte more than allowed tells an over-long line from one that just fits.
        let mut limited = (&mut reader).take(MAX_REQUEST as u64 + 1);
        let read = in_time("sending a request", limited.read_until(b'\n', &mut text)).await;
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                write(&mut writer, &line(&end(Exit::Failed, error.to_string()))).await?;
                return Err(error);
            }
        }
        let request = if text.len() > MAX_REQUEST {
            Err(format!("the request is longer than {MAX_REQUEST} bytes; send fewer addresses at once"))
        } else {
            serde_json::from_slice::<Request>(&text)
                .map_err(|error| format!("the request is not understood: {error}"))
        };
        drop(text);
        let request = match request {
            Ok(request) => request,
            Err(message) => {
                write(&mut writer, &line(&end(Exit::Usage, message.clone()))).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        };
        let (replies, mut answers) = mpsc::channel(room(&request));
        if commands.send(Command { request, peer, replies }).await.is_err() {
            write(&mut writer, &line(&end(Exit::NoDaemon, "the daemon is ending".to_owned()))).await?;
            return Ok(());
        }
        // A client that has closed its side of the connection may still wait for the answer.
        let mut some = Vec::new();
        let mut told = 0;
        while answers.recv_many(&mut some, LINES_AT_ONCE).await > 0 {
            let mut text = Vec::new();
            for reply in some.drain(..) {
                match reply {
                    Reply::Line(response) => text.extend(line(&response)),
                    Reply::Events { recent, follow } => {
                        for events in recent.chunks(LINES_AT_ONCE) {
                            for event in events {
                                text.extend(line(&Response::Event { event: Arc::clone(event) }));
                            }
                            write(&mut writer, &text).await?;
                            text.clear();
                        }
                        if let Some(follow) = follow {
                            write(&mut writer, &text).await?;
                            return stream_events(follow, &mut reader, &mut writer).await;
                        }
                    }
                }
            }
            told += text.len();
            write(&mut writer, &text).await?;
        }
        if told > MUCH {
            memory::give_back();
        }
    }
}

/// Lines that a request can be answered with, waiting for the client: two for each address, since the addresses
/// of `offline --all` are not known here as many as any maps hold.
fn room(request: &Request) -> usize {
    let addresses = match request {
        Request::Online { addresses, .. } => addresses.len(),
        Request::OnlineGroups { .. } | Request::Reload {} => arpwarden_common::abi::MAX_CAPACITY as usize,
        // Of all or of groups, as many as any maps hold.
        Request::Offline { addresses, groups, .. } | Request::Renew { addresses, groups, .. }
            if addresses.is_empty() || !groups.is_empty() =>
        {
            arpwarden_common::abi::MAX_CAPACITY as usize
        }
        Request::Offline { addresses, .. }
        | Request::Watch { addresses, .. }
        | Request::Unwatch { addresses, .. }
        | Request::Announce { addresses, .. }
        | Request::Renew { addresses, .. }
        | Request::Repair { addresses, .. } => addresses.len(),
        Request::Status { .. } | Request::Explain { .. } | Request::Events { .. } | Request::Unload {} => 0,
    };
    2 * addresses + 4
}

/// Ends when the client closes its side: a follower that is gone. What it sends meanwhile waits.
async fn closed(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<()> {
    if reader.fill_buf().await?.is_empty() {
        return Ok(());
    }
    std::future::pending().await
}

async fn stream_events(
    mut follow: broadcast::Receiver<Arc<Record>>,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let (mut missed, mut text) = (0, Vec::new());
    loop {
        let mut item = tokio::select! {
            item = follow.recv() => item,
            gone = closed(reader) => return gone,
        };
        text.clear();
        // Those that came together are read together.
        for more in (0..LINES_AT_ONCE).rev() {
            match item {
                Ok(event) => {
                    if missed > 0 {
                        let gap = Arc::new(events::gap(event.seq - 1, missed));
                        text.extend(line(&Response::Event { event: gap }));
                        missed = 0;
                    }
                    text.extend(line(&Response::Event { event }));
                }
                Err(RecvError::Lagged(count)) => missed += count,
                Err(RecvError::Closed) => {
                    text.extend(line(&Response::End { exit: Exit::Done, message: None }));
                    return write(writer, &text).await;
                }
            }
            if more == 0 {
                break;
            }
            item = match follow.try_recv() {
                Ok(event) => Ok(event),
                Err(TryRecvError::Lagged(count)) => Err(RecvError::Lagged(count)),
                Err(TryRecvError::Closed) => Err(RecvError::Closed),
                Err(TryRecvError::Empty) => break,
            };
        }
        write(writer, &text).await?;
    }
}
