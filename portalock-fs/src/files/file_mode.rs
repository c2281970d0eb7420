//! How a data file is opened: portalocker's mode strings as a type.

use std::fs::OpenOptions;

use serde::{Deserialize, Serialize};

/// How a [`FileLock`](crate::FileLock) opens its file. The table gives the mode string of Python's `open` for each.
///
/// | mode | Python | reads | writes | creates | content |
/// |---|---|---|---|---|---|
/// | [`Read`](Self::Read) | `r` | yes | no | no | kept |
/// | [`ReadWrite`](Self::ReadWrite) | `r+` | yes | yes | no | kept |
/// | [`Write`](Self::Write) | `w` | no | yes | yes | truncated after locking |
/// | [`WriteRead`](Self::WriteRead) | `w+` | yes | yes | yes | truncated after locking |
/// | [`Append`](Self::Append) | `a` | no | at the end | yes | kept |
/// | [`AppendRead`](Self::AppendRead) | `a+` | yes | at the end | yes | kept |
/// | [`New`](Self::New) | `x` | no | yes | only if there is none | empty |
/// | [`NewRead`](Self::NewRead) | `x+` | yes | yes | only if there is none | empty |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileMode {
    /// Reads an existing file.
    Read,
    /// Reads and writes an existing file.
    ReadWrite,
    /// Writes a file from the start. The old content is discarded after locking, never before.
    Write,
    /// Like [`Write`](Self::Write), and also reads.
    WriteRead,
    /// Writes at the end. The default, as in portalocker.
    #[default]
    Append,
    /// Writes at the end and reads anywhere.
    AppendRead,
    /// Writes a file that must not exist yet.
    New,
    /// Like [`New`](Self::New), and also reads.
    NewRead,
}

impl FileMode {
    pub(crate) const fn truncates(self) -> bool {
        matches!(self, Self::Write | Self::WriteRead)
    }

    /// The options for opening the file: never `truncate`, because the file is not locked yet.
    pub(crate) fn options(self) -> OpenOptions {
        let mut options = OpenOptions::new();
        match self {
            Self::Read => options.read(true),
            Self::ReadWrite => options.read(true).write(true),
            Self::Write => options.write(true).create(true),
            Self::WriteRead => options.read(true).write(true).create(true),
            // Windows can't lock a handle that can only append.
            Self::Append => options.append(true).create(true).read(cfg!(windows)),
            Self::AppendRead => options.append(true).create(true).read(true),
            Self::New => options.write(true).create_new(true),
            Self::NewRead => options.read(true).write(true).create_new(true),
        };
        options
    }
}
