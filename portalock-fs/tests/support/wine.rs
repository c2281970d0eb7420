//! Wine is not Windows. Like Windows, it excludes other handles and processes, and keeps open files from being removed.
//! But it lets every program read and write locked bytes. A test that would pass only for this reason is skipped under
//! wine, with the reason, and runs on Windows.
#![allow(dead_code, reason = "each test file uses its own part")]

/// Why reading or writing under a lock proves nothing there.
pub(crate) const LENIENT: &str =
    "wine lets everybody read and write a locked file: only Windows can show this";

/// The suite's cases that read the holder of a lock, or write while it is shared.
pub(crate) const SKIPPED_CASES: [&str; 5] = [
    "inspect::contention_names_the_holder",
    "inspect::the_holders_are_told",
    "inspect::every_reader_is_told",
    "names::listed_names_are_those_that_are_held",
    "tokens::grow_in_shared_mode",
];

/// Whether this runs under wine, which gives every process this variable.
pub(crate) fn is_here() -> bool {
    cfg!(windows) && std::env::var_os("WINECONFIGDIR").is_some()
}

/// Prints why a test is skipped, if it is.
pub(crate) fn skips(reason: &str) -> bool {
    if is_here() {
        println!("skipped: {reason}");
    }
    is_here()
}
