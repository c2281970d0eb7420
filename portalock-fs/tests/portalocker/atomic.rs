//! `open_atomic`: complete or not at all, and never over an existing file.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::Barrier,
    thread,
};

use portalock_fs::{AtomicError, AtomicFile, open_atomic};

use crate::{child::Other, place};

fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn appears_only_when_it_is_complete() {
    let (dir, path) = place("report");
    open_atomic(&path, |file| {
        file.write_all(b"first half, ")?;
        assert!(!path.exists());
        file.write_all(b"second half")
    })
    .unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "first half, second half"
    );
    assert_eq!(names_in(dir.path()), ["report"]);
}

/// As in portalocker.
#[test]
fn a_slash_at_the_end_of_the_path_has_no_effect() {
    let (dir, path) = place("report");
    let with_slash = dir.path().join("report/");
    open_atomic(&with_slash, |file| file.write_all(b"ours")).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
    assert!(
        open_atomic(&with_slash, |_| Ok(()))
            .unwrap_err()
            .is_exists()
    );
}

#[test]
fn never_replaces_a_file_that_was_there_before() {
    let (_dir, path) = place("report");
    fs::write(&path, "theirs").unwrap();
    let error = open_atomic(&path, |_| -> io::Result<()> { panic!("it was written") }).unwrap_err();
    assert!(matches!(error, AtomicError::Exists { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
}

#[test]
fn keeps_the_payload_if_another_was_first() {
    let (_dir, path) = place("report");
    let error = open_atomic(&path, |file| {
        fs::write(&path, "theirs")?;
        file.write_all(b"ours")
    })
    .unwrap_err();
    assert!(error.is_exists(), "{error}");
    let AtomicError::Publish {
        payload, source, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(source.io_error().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(payload).unwrap(), "ours");
    assert!(error.to_string().contains(&*payload.to_string_lossy()));
}

#[test]
fn keeps_the_payload_if_it_cannot_be_published() {
    let (dir, path) = place("sub/report");
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"ours").unwrap();
    let moved = dir.path().join("moved");
    fs::rename(dir.path().join("sub"), &moved).unwrap();
    let Err(AtomicError::Publish { payload, .. }) = file.publish() else {
        panic!("published into a directory that is not there");
    };
    let kept = moved.join(payload.file_name().unwrap());
    assert_eq!(fs::read_to_string(kept).unwrap(), "ours");
}

#[test]
fn leaves_nothing_if_the_body_fails() {
    let (dir, path) = place("report");
    let error = open_atomic(&path, |file| -> io::Result<()> {
        file.write_all(b"half")?;
        Err(io::Error::other("no more data"))
    })
    .unwrap_err();
    assert!(matches!(error, AtomicError::Write { .. }), "{error}");
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn leaves_nothing_if_the_body_panics_or_gives_up() {
    let (dir, path) = place("report");
    let panics = || {
        open_atomic(&path, |file| -> io::Result<()> {
            file.write_all(b"half")?;
            panic!("told to")
        })
    };
    assert!(std::panic::catch_unwind(panics).is_err());
    drop(AtomicFile::create(&path).unwrap());
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn a_killed_writer_leaves_no_half_file_at_the_path() {
    let (_dir, path) = place("report");
    Other::that_has("half", &path).kill();
    assert!(!path.exists());
    open_atomic(&path, |file| file.write_all(b"whole")).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
}

#[test]
fn of_many_at_once_exactly_one_is_published() {
    let (_dir, path) = place("report");
    let start = Barrier::new(8);
    let won: u32 = thread::scope(|scope| {
        let writers: Vec<_> = (0..8u32)
            .map(|number| {
                let (path, start) = (&path, &start);
                scope.spawn(move || {
                    let mut file = AtomicFile::create(path).unwrap();
                    write!(file, "{number}").unwrap();
                    start.wait();
                    match file.publish() {
                        Ok(()) => Some(number),
                        Err(error) => {
                            assert!(error.is_exists(), "{error}");
                            None
                        }
                    }
                })
            })
            .collect();
        let mut winners = writers
            .into_iter()
            .filter_map(|writer| writer.join().unwrap());
        let winner = winners.next().unwrap();
        assert_eq!(winners.next(), None, "two were published");
        winner
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), won.to_string());
}

#[cfg(unix)]
#[test]
fn honours_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, path) = place("report");
    Other::start("umask", &path).expect("ready");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn the_longest_name_works() {
    let (_dir, path) = place(&"n".repeat(255));
    open_atomic(&path, |file| file.write_all(b"content")).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "content");
}

#[test]
fn creates_missing_directories() {
    let (_dir, path) = place("a/b/c/report");
    open_atomic(&path, |file| file.write_all(b"content")).unwrap();
    assert!(path.exists());
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_a_file_that_exists() {
    let (_dir, path) = place("report");
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let error = AtomicFile::create(&path).unwrap_err();
    assert!(matches!(error, AtomicError::Exists { .. }), "{error}");
}

#[test]
fn a_path_without_a_file_name_is_refused() {
    for path in ["", "/"] {
        assert!(AtomicFile::create(path).is_err(), "{path:?}");
    }
}
