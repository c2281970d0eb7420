//! Commands to Redis servers and sentinels: their answers, and the wait for the one that a test needs.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How long servers may take to find each other, or for a switch to another primary. It is long because a test must not
/// fail only because the machine is busy.
const FOUND_WITHIN: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(20);

/// Sends `command`, its words separated by spaces. Answers the texts that came back, nested ones in a row.
///
/// # Errors
///
/// The system's, or the server's as [`io::ErrorKind::Other`].
pub(super) fn ask(port: u16, command: &str) -> io::Result<Vec<String>> {
    ask_words(port, command.split(' '))
}

/// The same for words that can contain spaces.
pub(super) fn ask_words<'w>(
    port: u16,
    words: impl IntoIterator<Item = &'w str>,
) -> io::Result<Vec<String>> {
    let words: Vec<_> = words
        .into_iter()
        .map(|word| format!("${}\r\n{word}\r\n", word.len()))
        .collect();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("*{}\r\n{}", words.len(), words.concat()).as_bytes())?;
    let mut texts = Vec::new();
    read(&mut BufReader::new(stream), &mut texts)?;
    Ok(texts)
}

fn read(answer: &mut impl BufRead, texts: &mut Vec<String>) -> io::Result<()> {
    let mut left = 1;
    while left > 0 {
        left -= 1;
        let mut line = String::new();
        answer.read_line(&mut line)?;
        let line = line.trim_end();
        let Some((kind, rest)) = line.split_at_checked(1) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match kind {
            "-" => return Err(io::Error::other(rest.to_owned())),
            // Missing ones are counted as -1.
            "*" => left += rest.parse::<usize>().unwrap_or(0),
            "$" => {
                if let Ok(length) = rest.parse::<usize>() {
                    let mut text = vec![0; length + 2];
                    answer.read_exact(&mut text)?;
                    text.truncate(length);
                    texts.push(String::from_utf8_lossy(&text).into_owned());
                }
            }
            _ => texts.push(rest.to_owned()),
        }
    }
    Ok(())
}

/// Asks until there is a result.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`].
pub(super) fn until<T>(mut found: impl FnMut() -> Option<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        if begun.elapsed() > FOUND_WITHIN {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::park_timeout(POLL);
    }
}
