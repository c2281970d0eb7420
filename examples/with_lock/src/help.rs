//! What `--help` and the manual page say.

pub(crate) const USAGE: &str = "with_lock [OPTIONS] [BACKEND] NAME -- COMMAND [ARG]...
       with_lock who [--watch] [--json] [BACKEND] NAME
       with_lock list [--watch] [--json] [BACKEND]
       with_lock break [--yes] [--owner OWNER] [--json] [BACKEND] NAME
       with_lock migrate [BACKEND]";

pub(crate) const TARGET: &str = "\
The lock's name, after its backend if it isn't the default one.

BACKEND is an address (fs:DIR, redis://HOST, rediss://HOST, redis+sentinel://HOST,HOST/MASTER, redis+cluster://HOST,HOST, \
unix:///SOCKET, etcd://HOST,HOST, postgres://HOST/DATABASE) or a key of the configuration file. Without it: $PORTALOCK_BACKEND, else fs:, which is a directory in your home.";

pub(crate) const ABOUT: &str = "\
Runs a command while it holds a lock: on files, Redis, etcd or Postgres.

The lock is held for as long as the command runs, and released when it ends, however it ends. The command gets its \
arguments as they are, through no shell. It never inherits the lock, so what it leaves running in the background doesn't \
hold it.";

pub(crate) const SHORT_EXAMPLES: &str = "\
Examples:
  with_lock nightly -- ./backup.sh
  with_lock --timeout 30s --permits 1/3 redis://cache.example workers -- make test
  with_lock who nightly

See --help for more examples, the exit codes and the environment.";

pub(crate) const LONG: &str = "\
Examples:
  Never two backups at once on this machine; a second one waits for the first:
      with_lock nightly -- ./backup.sh

  From cron: skip this run if the last one still goes on, and say nothing of it:
      with_lock --non-blocking --quiet --conflict-exit-code 0 sync -- rsync -a src/ dst/

  At most three builds at once on all machines that use this Redis:
      with_lock --permits 1/3 redis://cache.example builds -- make

  Readers beside each other, a writer alone:
      with_lock --shared data -- ./report
      with_lock data -- ./migrate

  Two names at once, without a deadlock:
      with_lock alice --also bob -- ./transfer

  One worker on all hosts that run this line; another host takes over when this one ends or is cut off:
      with_lock --keep redis://cache.example worker -- ./worker

  Who is in my way?
      with_lock who nightly

  Take the lock away from its holder, who is told that you did it:
      with_lock break nightly

  What is going on, live:
      with_lock list --watch redis://cache.example

Exit codes:
  0-255  the command's own; if a signal ended it, with_lock ends by the same signal
  123    the lock was lost while the command ran, and the command was stopped
  124    the lock was not granted: see --timeout, --non-blocking, --conflict-exit-code
  125    with_lock itself failed: bad arguments, a backend that does not answer
  126    the command could not be run
  127    the command was not found
  with_lock break ends with 0 if the lock was broken, and with 1 if its owner did not hold it

Signals:
  What is sent to with_lock is passed on to the command: SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGTSTP,
  SIGCONT (the last two without a terminal only). Before the command runs, any of them but the last two ends the wait.
  On Linux the command gets SIGTERM if with_lock is killed by SIGKILL (SIGKILL with --on-lost kill, nothing with
  --on-lost ignore).

  Without a controlling terminal the command has a process group of its own, and all of it is signalled. With one it stays
  in with_lock's, so that the keyboard's Ctrl-C and Ctrl-Z and the shell's job control work on both; only the command
  itself is signalled then.

Environment of the command:
  PORTALOCK_NAME   the lock's name; with --also all names, one a line
  PORTALOCK_TOKEN  the fencing token, for a resource that can refuse a smaller one; one a line in the same order

Environment:
  PORTALOCK_BACKEND  the backend if none is given
  PORTALOCK_CONFIG   the configuration file if none is given

Files:
  ~/.local/state/portalock/locks   what fs: means
  ~/.config/portalock/backends.toml, /etc/portalock/backends.toml
      [backends]
      ci = \"redis://:secret@cache.example/2\"
      local = { type = \"fs\", directory = \"/run/lock/ci\", file_mode = \"660\" }";
