//! Arguments, runtime, exit code.

use std::process::ExitCode;

use arpwarden::{
    cli::{Cli, Command},
    client::{self, complain},
    config::Config,
    daemon,
    exit::Exit,
    instance::Instance,
    io::memory,
    log, probe, unload,
};
use clap::{CommandFactory as _, Parser as _};

fn main() -> ExitCode {
    // clap ends with 2 by itself, the code for usage.
    let cli = Cli::parse();
    let instance = Instance::new(&cli.instance);
    let exit = match &cli.command {
        Command::Run(arguments) => match run(&instance, arguments, cli.verbose) {
            Ok(()) => Exit::Done,
            Err(stop) => {
                complain(format_args!("{:#}", stop.error));
                stop.exit
            }
        },
        Command::Check { file } => match Config::load(file) {
            Ok(_) => {
                println!("{}: right", file.display());
                Exit::Done
            }
            Err(error) => {
                eprintln!("{error}");
                Exit::Usage
            }
        },
        Command::Probe(arguments) => with_runtime(probe::run(arguments)),
        Command::Unload => with_runtime(unload::run(&instance)),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "arpwarden", &mut std::io::stdout());
            Exit::Done
        }
        Command::Online(_)
        | Command::Offline(_)
        | Command::Watch(_)
        | Command::Unwatch(_)
        | Command::Announce(_)
        | Command::Renew(_)
        | Command::Repair(_)
        | Command::Reload
        | Command::Explain(_)
        | Command::Status(_)
        | Command::Events(_) => client::perform(&instance, &cli.command),
    };
    exit.into()
}

fn runtime() -> Result<tokio::runtime::Runtime, daemon::Stop> {
    // One thread: one task owns the engine, and the others only move bytes to it.
    tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(daemon::Stop::failed)
}

fn with_runtime(work: impl Future<Output = Exit>) -> Exit {
    match runtime() {
        Ok(runtime) => runtime.block_on(work),
        Err(stop) => {
            complain(format_args!("{:#}", stop.error));
            stop.exit
        }
    }
}

fn run(instance: &Instance, arguments: &arpwarden::cli::Run, verbose: u8) -> Result<(), daemon::Stop> {
    let config = match &arguments.config {
        // Relative to where the daemon was started, which stays its directory.
        Some(path) => Config::load(path).map_err(|error| daemon::Stop::new(Exit::Usage, error.into()))?,
        None => Config::default(),
    };
    memory::keep_little();
    let (guard, level) = log::start(verbose, config.daemon.log.unwrap_or_default())?;
    let result = runtime()?.block_on(daemon::run(instance.clone(), arguments, config, level));
    drop(guard);
    result
}
