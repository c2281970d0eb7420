//! Completions and the manual page, from the same definition as `--help`.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// A completion script.
pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "with_lock", &mut script);
    script
}

/// The manual page, in roff.
pub(crate) fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}
