//! Where Postgres is installed, as whom it runs, and a cluster to copy.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;

use super::{PROGRAM, SUPERUSER, StartError};

/// The environment variable with the directory from which all servers are started.
const CHOICE: &str = "PORTALOCK_POSTGRES";

/// Where Postgres is installed, and as whom it runs.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    programs: PathBuf,
    /// User and group to step down to, if this process is root.
    user: Option<(u32, u32)>,
}

impl Installation {
    /// The installation in `chosen`, otherwise in [`CHOICE`], otherwise the first on the path, otherwise Debian's newest.
    pub(super) fn find(chosen: Option<&Path>) -> Result<Self, StartError> {
        // Where a link leads, all of its programs are.
        let programs_of = |dir: PathBuf| {
            let initdb = fs::canonicalize(dir.join("initdb")).ok()?;
            Some(initdb.parent()?.to_owned())
        };
        let chosen = chosen
            .map(Path::to_owned)
            .or_else(|| env::var_os(CHOICE).map(PathBuf::from));
        let programs = match chosen {
            Some(dir) => programs_of(dir),
            None => env::split_paths(&env::var_os("PATH").unwrap_or_default())
                .find_map(programs_of)
                // Debian keeps one directory for each version, none on the path.
                .or_else(|| newest_in("/usr/lib/postgresql").and_then(programs_of)),
        };
        let programs = programs.ok_or(StartError::NotInstalled {
            program: PROGRAM.name,
            install: PROGRAM.install,
        })?;
        let user = if geteuid().is_root() {
            let users =
                fs::read_to_string("/etc/passwd").map_err(StartError::io("look for a user"))?;
            let user = ["postgres", "nobody"]
                .iter()
                .find_map(|name| ids(&users, name));
            Some(user.ok_or_else(|| {
                let cause = io::Error::new(io::ErrorKind::NotFound, "no such user");
                StartError::io("step down to the user postgres or nobody")(cause)
            })?)
        } else {
            None
        };
        Ok(Self { programs, user })
    }

    pub(super) fn command(&self, program: &str) -> Command {
        self.step_down(Command::new(self.programs.join(program)))
    }

    pub(super) fn step_down(&self, mut command: Command) -> Command {
        // Where it may not be, it would only complain.
        command.current_dir("/");
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some((user, group)) => chown(path, Some(user), Some(group)),
            None => Ok(()),
        }
    }

    /// Puts a fresh cluster at `data`: a copy, since making one takes seconds.
    pub(super) fn copy_cluster(&self, data: &Path) -> Result<(), StartError> {
        self.copy_data(&self.original()?, data)
    }

    /// Copies the data of a server that doesn't run. In this process it takes half as much of the processor as by `cp`, which each test
    /// would start.
    pub(super) fn copy_data(&self, from: &Path, to: &Path) -> Result<(), StartError> {
        self.copy_directory(from, to)
            .map_err(StartError::io("copy a cluster"))
    }

    fn copy_directory(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir(to)?;
        fs::set_permissions(to, fs::metadata(from)?.permissions())?;
        self.give(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let copy = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.copy_directory(&entry.path(), &copy)?;
            } else {
                fs::copy(entry.path(), &copy)?;
                self.give(&copy)?;
            }
        }
        Ok(())
    }

    /// The cluster that others are copied from, made once for each version and user.
    fn original(&self) -> Result<PathBuf, StartError> {
        const MAKING: &str = "make a cluster";
        let owner = self
            .user
            .map_or_else(|| geteuid().as_raw(), |(user, _)| user);
        let version: String = self
            .programs
            .to_string_lossy()
            .chars()
            .map(|character| if character == '/' { '-' } else { character })
            .collect();
        let original = env::temp_dir().join(format!("portalock-initdb{version}-{owner}"));
        let is_ours = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|found| {
                found.is_dir() && found.uid() == owner && found.mode() & 0o777 == 0o700
            })
        };
        if is_ours(&original) {
            return Ok(original);
        }
        // One makes it for many that start together: each making its own, they would all be slow. Without a lock they do.
        let lock = File::create(format!("{}.lock", original.display())).ok();
        let _lock = lock.filter(|lock| lock.lock().is_ok());
        if is_ours(&original) {
            return Ok(original);
        }
        let dir = tempfile::Builder::new()
            .prefix("portalock-initdb-")
            .tempdir()
            .map_err(StartError::io(MAKING))?;
        self.give(dir.path()).map_err(StartError::io(MAKING))?;
        let made = dir.path().join("data");
        let output = self
            .command("initdb")
            .args(["--auth=trust", "--encoding=UTF8", "--no-locale"])
            .args(["--no-sync", "--wal-segsize=1"])
            .arg(format!("--username={SUPERUSER}"))
            .arg("-D")
            .arg(&made)
            .output()
            .map_err(StartError::io(MAKING))?;
        if !output.status.success() {
            return Err(StartError::Ended {
                program: "initdb",
                log: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        match fs::rename(&made, &original) {
            Ok(()) => Ok(original),
            // Another process was first.
            Err(_) if is_ours(&original) => Ok(original),
            Err(error) => Err(StartError::io(MAKING)(error)),
        }
    }
}

/// The directory of programs of the newest version below `versions`.
fn newest_in(versions: &str) -> Option<PathBuf> {
    let number = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let entries = fs::read_dir(versions).ok()?;
    let newest = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .max_by_key(number)?;
    Some(newest.join("bin"))
}

/// A user's ids, by its line in `/etc/passwd`.
fn ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let (_, user, group) = (fields.next()?, fields.next()?, fields.next()?);
        Some((user.parse().ok()?, group.parse().ok()?))
    })
}
