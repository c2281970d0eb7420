//! `with_lock` runs any command while it holds a lock: on files, Redis, etcd or Postgres. See `docs/with_lock.md`.

mod args;
mod backends;
mod breaking;
mod child;
mod exit;
mod help;
mod hold;
mod keep;
mod list;
mod manual;
mod patience;
mod report;
mod run;
mod seen;
mod service;
mod sys;
mod table;
mod usage;
mod waiting;
mod watch;
mod who;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    args::{Cli, Other},
    exit::Ending,
    report::Failure,
};

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(code) = sys::become_command_if_asked().or_else(sys::serve_as_first_process) {
        return code;
    }
    let ending = match Cli::try_parse() {
        Ok(cli) => perform(cli).unwrap_or_else(|failure| {
            failure.say();
            exit::FAILED.into()
        }),
        Err(error) => usage::tell(&error),
    };
    ending.end()
}

fn perform(cli: Cli) -> Result<Ending, Failure> {
    // Everything runs on one thread: when it ends, the kernel tells the command that this program has ended.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = cli.config.as_deref();
    match (cli.command, cli.run) {
        (None, Some(args)) => runtime.block_on(run::run(&args, config)),
        (Some(Other::Who(args)), _) => print_line(&runtime.block_on(who::who(&args, config))?),
        (Some(Other::List(args)), _) => print_line(&runtime.block_on(list::list(&args, config))?),
        (Some(Other::Break(args)), _) => {
            let (text, ending) = runtime.block_on(breaking::break_lock(&args, config))?;
            print_line(&text)?;
            Ok(ending)
        }
        (Some(Other::Migrate { backend }), _) => {
            runtime.block_on(backends::migrate(backend.as_deref(), config))?;
            Ok(Ending::Code(0))
        }
        (Some(Other::Completions { shell }), _) => print(&manual::completions(shell)),
        (Some(Other::Man), _) => print(&manual::page()?),
        (None, None) => Err(Failure::new(
            "nothing to do: name a lock and, after --, a command",
        )),
    }
}

fn print_line(text: &str) -> Result<Ending, Failure> {
    if text.is_empty() {
        return print(b"");
    }
    print(format!("{text}\n").as_bytes())
}

/// A reader that closes the pipe is not a failure.
fn print(text: &[u8]) -> Result<Ending, Failure> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("can't write: {error}")))
        }
        _ => Ok(Ending::Code(0)),
    }
}
