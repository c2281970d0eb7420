//! The command line.

use std::{ffi::OsString, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use portalock::{OwnerId, Permits};

use crate::help;

/// Runs a command while it holds a lock: on files, Redis, etcd or Postgres
#[derive(Debug, Parser)]
#[command(
    name = "with_lock",
    version,
    long_about = help::ABOUT,
    after_help = help::SHORT_EXAMPLES,
    after_long_help = help::LONG,
    override_usage = help::USAGE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Other>,
    #[command(flatten)]
    pub(crate) run: Option<RunArgs>,
    /// The TOML file with backends by key. Default: portalock/backends.toml in ~/.config, then in /etc
    #[arg(
        long,
        value_name = "FILE",
        env = "PORTALOCK_CONFIG",
        hide_env_values = true,
        global = true
    )]
    pub(crate) config: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Other {
    /// Show the holders and waiters of a lock or a semaphore
    #[command(override_usage = "with_lock who [OPTIONS] [BACKEND] NAME")]
    Who(WhoArgs),
    /// List the locks that have holders or waiters
    List(ListArgs),
    /// Take a lock away from its holder, who is told
    #[command(override_usage = "with_lock break [OPTIONS] [BACKEND] NAME")]
    Break(BreakArgs),
    /// Prepare a backend's store: create or upgrade the schema in a Postgres database
    Migrate {
        /// The backend, if it isn't the default one
        backend: Option<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    Man,
}

#[derive(Debug, Args)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct RunArgs {
    /// The lock's name, after its backend if it isn't the default one
    #[arg(long_help = help::TARGET, value_names = ["BACKEND", "NAME"], num_args = 1..=2, required = true)]
    pub(crate) target: Vec<String>,

    /// The command to run, and its arguments, which no shell interprets
    #[arg(value_name = "COMMAND", required = true, last = true)]
    pub(crate) command: Vec<OsString>,

    /// Lock this name too: all names or none. Can be given several times
    #[arg(short, long, value_name = "NAME", conflicts_with = "permits")]
    pub(crate) also: Vec<String>,

    /// Take a shared lock: any number of holders can share it
    #[arg(short, long, conflicts_with = "permits")]
    pub(crate) shared: bool,

    /// Take K permits of a semaphore with N, instead of a lock. All users must give the same N
    #[arg(short, long, value_name = "K/N")]
    pub(crate) permits: Option<PermitsOf>,

    /// How long to wait at most, such as 30s or 1h. Default: no limit
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,

    /// Don't wait at all
    #[arg(short, long, conflicts_with = "timeout")]
    pub(crate) non_blocking: bool,

    /// Print nothing if the lock is not granted
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// The label that others see while you hold or wait. Default: the command's name
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) label: Option<String>,

    /// The exit code if the lock was not granted
    #[arg(short = 'E', long, value_name = "CODE", default_value_t = crate::exit::CONFLICT)]
    pub(crate) conflict_exit_code: u8,

    /// Keep the command running on one host at a time: acquire again when it ends or the lock is lost, until a signal
    /// ends it
    #[arg(short, long, conflicts_with_all = ["timeout", "non_blocking"])]
    pub(crate) keep: bool,

    /// With --keep: the pause before the command runs again. It doubles after each short run, up to a minute
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s", requires = "keep")]
    pub(crate) pause: Duration,

    /// What happens to the command if the lock is lost while it runs
    #[arg(long, value_name = "ACTION", value_enum, default_value_t = OnLost::Term)]
    pub(crate) on_lost: OnLost,

    /// How long the command may run after SIGTERM, before SIGKILL
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub(crate) grace: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct WhoArgs {
    /// The lock's name, after its backend if it isn't the default one
    #[arg(value_names = ["BACKEND", "NAME"], num_args = 1..=2, required = true)]
    pub(crate) target: Vec<String>,

    /// Print JSON
    #[arg(short, long)]
    pub(crate) json: bool,

    /// Keep watching: a live table on a terminal, elsewhere a line for each change
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The backend, if it isn't the default one
    pub(crate) backend: Option<String>,

    /// Print JSON
    #[arg(short, long)]
    pub(crate) json: bool,

    /// Keep watching: a live table of holders and waiters on a terminal, elsewhere a line for each change
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BreakArgs {
    /// The lock's name, after its backend if it isn't the default one
    #[arg(value_names = ["BACKEND", "NAME"], num_args = 1..=2, required = true)]
    pub(crate) target: Vec<String>,

    /// Break the hold of this owner, as `who --json` shows it. Default: the only current holder
    #[arg(short, long, value_name = "OWNER")]
    pub(crate) owner: Option<OwnerId>,

    /// Don't ask
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// The label that the holder is told, beside your host and process id. Default: $USER
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) label: Option<String>,

    /// Print JSON
    #[arg(short, long)]
    pub(crate) json: bool,
}

/// What happens to the command when the lock is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// SIGTERM, and SIGKILL after the grace time
    Term,
    /// SIGKILL
    Kill,
    /// Nothing: the command continues without the lock
    Ignore,
}

/// `K/N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PermitsOf(pub(crate) Permits);

impl FromStr for PermitsOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, capacity) = text
            .split_once('/')
            .and_then(|(count, capacity)| Some((count.parse().ok()?, capacity.parse().ok()?)))
            .ok_or("write K/N, such as 1/3 for one permit of three")?;
        Permits::new(count, capacity)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

/// A time with its unit. A number is refused, because it could mean seconds or milliseconds.
fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = portalock::settings::LONGEST;
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("at most a year is allowed".to_owned()),
        Err(_) => Err("write a number and a unit, such as 250ms, 30s or 1h30m".to_owned()),
    }
}

/// Splits `[BACKEND] NAME`.
pub(crate) fn backend_and_name(target: &[String]) -> (Option<&str>, &str) {
    match target {
        [backend, name] => (Some(backend), name),
        [name, ..] => (None, name),
        [] => (None, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &[&str]) -> RunArgs {
        let line = std::iter::once("with_lock").chain(line.iter().copied());
        Cli::try_parse_from(line).unwrap().run.unwrap()
    }

    fn refused(line: &[&str]) -> String {
        let line = std::iter::once("with_lock").chain(line.iter().copied());
        Cli::try_parse_from(line).unwrap_err().to_string()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_word_is_a_name_and_two_are_a_backend_and_a_name() {
        let one = run(&["deploy", "--", "make"]);
        assert_eq!(backend_and_name(&one.target), (None, "deploy"));
        let two = run(&["redis://h/3", "deploy", "--", "make", "-j", "--", "x"]);
        assert_eq!(
            backend_and_name(&two.target),
            (Some("redis://h/3"), "deploy")
        );
        assert_eq!(two.command, ["make", "-j", "--", "x"]);
    }

    #[test]
    fn a_subcommands_name_is_a_lock_if_its_backend_is_given() {
        let run = run(&["fs:", "who", "--", "make"]);
        assert_eq!(backend_and_name(&run.target), (Some("fs:"), "who"));
        let who = ["with_lock", "who", "deploy", "--config", "x"];
        let who = Cli::try_parse_from(who).unwrap();
        assert!(matches!(who.command, Some(Other::Who(_))));
        assert_eq!(who.config, Some("x".into()));
    }

    #[test]
    fn options_may_stand_anywhere_before_the_command() {
        let args = run(&[
            "-t", "1m", "deploy", "--also", "web", "-a", "db", "--", "-t",
        ]);
        assert_eq!(args.timeout, Some(Duration::from_secs(60)));
        assert_eq!(args.also, ["web", "db"]);
        assert_eq!(args.command, ["-t"]);
    }

    #[test]
    fn nonsense_is_refused_with_what_to_write() {
        for (expected, line) in [
            ("a unit", vec!["-t", "5", "x", "--", "y"]),
            ("a year", vec!["-t", "3years", "x", "--", "y"]),
            ("such as 1/3", vec!["-p", "3", "x", "--", "y"]),
            ("never be granted", vec!["-p", "4/3", "x", "--", "y"]),
            (
                "cannot be used with",
                vec!["-p", "1/3", "-s", "x", "--", "y"],
            ),
            (
                "cannot be used with",
                vec!["-p", "1/3", "-a", "z", "x", "--", "y"],
            ),
            (
                "cannot be used with",
                vec!["-n", "-t", "1s", "x", "--", "y"],
            ),
            ("0..=255", vec!["-E", "256", "x", "--", "y"]),
            (
                "possible values: term, kill, ignore",
                vec!["--on-lost", "hup", "x", "--", "y"],
            ),
            ("cannot be used with", vec!["-k", "-n", "x", "--", "y"]),
            ("--keep", vec!["--pause", "1s", "x", "--", "y"]),
            ("COMMAND", vec!["x", "make"]),
            ("not an owner id", vec!["break", "-o", "me", "x"]),
        ] {
            let error = refused(&line);
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
