//! Wine is not Windows. It keeps locks apart between handles and processes, and open files from being removed, as Windows
//! does; but it lets everybody read and write what is locked. A test that only that makes pass is no proof: it is skipped
//! there, with the reason, and runs on Windows.
#![allow(dead_code, reason = "each test file uses its own part")]

/// Why what is read or written under a lock shows nothing there.
pub(crate) const LENIENT: &str =
    "wine lets everybody read and write a locked file: only Windows can show this";

/// The suite's cases that say who holds a lock, or write while it is shared.
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

/// Says why a test is skipped, if it is.
pub(crate) fn skips(reason: &str) -> bool {
    if is_here() {
        println!("skipped: {reason}");
    }
    is_here()
}
