//! Linux and Android: information from `/proc`.

use std::{fs::File, io::Read};

use portalock_core::Holder;

use super::super::{FileId, ProcessLife};

/// The holder of a file from `/proc/locks`. Not known for locks that belong to no process, and across containers.
///
/// Opening the table takes as long as all processors take to notice it, which is often more than 10 ms.
pub(crate) fn lock_holder((device, number): FileId) -> Option<Holder> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let id = format!("{major:02x}:{minor:02x}:{number}");
    // Each read continues in the table as it is then, and can miss a line if another lock has ended meanwhile. So the room
    // is for all that the kernel gives in one read.
    let mut table = String::with_capacity(8 * 1024);
    let locks = File::open("/proc/locks").and_then(|mut locks| locks.read_to_string(&mut table));
    locks.ok()?;
    let pid = table.lines().find_map(|line| holder_in(line, &id))?;
    let mut holder = Holder::this_process(Some("seen holding it".into()));
    holder.pid = pid;
    Some(holder)
}

/// When the process with this `pid` started, and in which boot; `None` if there is no such process, or `/proc` is hidden.
pub(crate) fn process_life(pid: u32) -> Option<ProcessLife> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(ProcessLife {
        boot: boot.trim().to_owned(),
        namespace: namespace.to_string_lossy().into_owned(),
        start: start_in(&stat)?,
    })
}

/// Field 22 of `/proc/<pid>/stat` (`proc(5)`). The second field is the program's name, which may contain any text.
fn start_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The pid in a line such as `1: FLOCK ADVISORY WRITE 1234 08:02:131 0 EOF`. In a waiter's line each word is one further on,
/// after an arrow.
fn holder_in(line: &str, id: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace();
    let pid = words.nth(4)?;
    (words.next()? == id)
        .then(|| pid.parse().ok())?
        .filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_start_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_in(&format!("42 (a ) b) {fields}")), Some(4711));
        assert_eq!(start_in("42 (short) S 1"), None);
        let here = std::process::id();
        assert_eq!(process_life(here), process_life(here));
        assert!(process_life(here).is_some_and(|life| life.start > 0));
    }

    #[test]
    fn the_kernels_table_is_read() {
        let id = "08:02:131";
        for (line, pid) in [
            ("1: FLOCK  ADVISORY  WRITE 1234 08:02:131 0 EOF", Some(1234)),
            ("1: -> FLOCK  ADVISORY  WRITE 1235 08:02:131 0 EOF", None),
            ("2: OFDLCK ADVISORY  WRITE -1 08:02:131 0 EOF", None),
            ("3: POSIX  ADVISORY  READ 0 08:02:131 0 EOF", None),
            ("4: FLOCK  ADVISORY  WRITE 1234 08:02:132 0 EOF", None),
            ("", None),
        ] {
            assert_eq!(holder_in(line, id), pid, "{line}");
        }
    }
}
