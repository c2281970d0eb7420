//! Changes the Lua scripts in one place at a time and runs the tests: a change that no test notices is a gap in the tests.
//!
//! `scripts/mutants --lua` runs it, on a copy of the project. `lua_mutants FOLDER --list` lists the changes;
//! `lua_mutants FOLDER [--shard 1/8] -- COMMAND..` makes each of them in turn and runs the command, which must fail.
//! Each condition and comparison is negated, `and` and `or` are exchanged, each call and each `return` is dropped.
//!
//! It needs nothing but the standard library, so that the script can build it with `rustc` alone.

use std::{
    env, fs, io,
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long the tests of one mutant may take. One that hangs was noticed.
const LIMIT: Duration = Duration::from_secs(300);

/// One change of one file.
struct Mutant {
    file: PathBuf,
    line: usize,
    what: String,
    text: String,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        // As cargo-mutants does.
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("lua_mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every mutant was caught.
fn run() -> io::Result<bool> {
    let mut arguments = env::args().skip(1);
    let usage = || io::Error::other("say which folder, and --list or -- COMMAND");
    let folder = PathBuf::from(arguments.next().ok_or_else(usage)?);
    let (mut lists, mut shard) = (false, (0, 1));
    for argument in arguments.by_ref() {
        match argument.as_str() {
            "--list" => lists = true,
            "--shard" => {}
            "--" => break,
            text => shard = parse_shard(text).ok_or_else(usage)?,
        }
    }
    let command: Vec<String> = arguments.collect();
    let mut all = Vec::new();
    for file in scripts(&folder)? {
        all.extend(mutants(&file, &fs::read_to_string(&file)?));
    }
    let mine = all.iter().skip(shard.0).step_by(shard.1);
    if lists {
        for mutant in mine {
            println!("{}", mutant.name());
        }
        return Ok(true);
    }
    let (program, arguments) = command.split_first().ok_or_else(usage)?;
    // It builds everything, so it may take longer.
    if !Command::new(program).args(arguments).status()?.success() {
        return Err(io::Error::other("the tests fail without any change"));
    }
    let (mut caught, mut missed) = (0, 0);
    for mutant in mine {
        let original = fs::read_to_string(&mutant.file)?;
        fs::write(&mutant.file, &mutant.text)?;
        let passed = passes(program, arguments);
        fs::write(&mutant.file, original)?;
        if passed? {
            missed += 1;
            println!("MISSED   {}", mutant.name());
        } else {
            caught += 1;
            println!("caught   {}", mutant.name());
        }
    }
    println!(
        "{} mutants: {caught} caught, {missed} missed",
        caught + missed
    );
    Ok(missed == 0)
}

/// `2/8` is the second of eight parts.
fn parse_shard(text: &str) -> Option<(usize, usize)> {
    let (part, parts) = text.split_once('/')?;
    let (part, parts): (usize, usize) = (part.parse().ok()?, parts.parse().ok()?);
    (part < parts).then_some((part, parts))
}

fn scripts(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "lua") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the tests pass, within the limit.
fn passes(program: &str, arguments: &[String]) -> io::Result<bool> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn()?;
    let end = Instant::now() + LIMIT;
    let status: Option<ExitStatus> = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() >= end => break None,
            None => pause(),
        }
    };
    if status.is_none() {
        // The servers and tests that it started go with it.
        let group = format!("-{}", child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        child.kill()?;
        child.wait()?;
    }
    Ok(status.is_some_and(|status| status.success()))
}

#[allow(clippy::disallowed_methods, reason = "nothing else runs here")]
fn pause() {
    thread::sleep(Duration::from_millis(50));
}

impl Mutant {
    fn name(&self) -> String {
        format!("{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Every change of `source`.
fn mutants(file: &Path, source: &str) -> Vec<Mutant> {
    let code = blank_out(source);
    let words = words(&code);
    let mut changes: Vec<(Range<usize>, String, String)> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let text = &code[word.clone()];
        let change = |to: &str, what: &str| (word.clone(), to.to_owned(), what.to_owned());
        match text {
            "if" | "elseif" | "while" => {
                let ends = if text == "while" { "do" } else { "then" };
                let end = words[index..]
                    .iter()
                    .find(|word| &code[(*word).clone()] == ends);
                if let Some(end) = end {
                    let condition = word.end..end.start;
                    let was = source[condition.clone()].trim();
                    changes.push((
                        condition.clone(),
                        format!(" not ({was}) "),
                        format!("negate `{was}`"),
                    ));
                }
            }
            "and" => changes.push(change("or", "replace `and` with `or`")),
            "or" => changes.push(change("and", "replace `or` with `and`")),
            "return" => {
                let rest = code[word.end..].trim_start();
                let is_bare = rest.is_empty()
                    || words.get(index + 1).is_some_and(|next| {
                        rest.len() == code.len() - next.start
                            && matches!(&code[next.clone()], "end" | "else" | "elseif" | "until")
                    });
                let to = if is_bare { "" } else { "local _ =" };
                changes.push(change(to, "drop `return`"));
            }
            _ => {
                let is_declared = index > 0 && &code[words[index - 1].clone()] == "function";
                if !is_declared && let Some(end) = end_of_call(&code, word.end) {
                    let is_statement = starts_a_statement(&code, word.start);
                    let call = word.start..end;
                    let to = if is_statement { "" } else { "nil" };
                    let what = format!("drop `{}`", &source[call.clone()]);
                    changes.push((call, to.to_owned(), what));
                }
            }
        }
    }
    for (at, was, to) in comparisons(&code) {
        changes.push((
            at..at + was.len(),
            to.to_owned(),
            format!("replace `{was}` with `{to}`"),
        ));
    }
    changes.sort_by_key(|(range, ..)| range.start);
    changes
        .into_iter()
        .map(|(range, to, what)| Mutant {
            file: file.to_owned(),
            line: source[..range.start].matches('\n').count() + 1,
            what: what.split_whitespace().collect::<Vec<_>>().join(" "),
            text: format!("{}{to}{}", &source[..range.start], &source[range.end..]),
        })
        .collect()
}

/// The same text with blanks for comments, and for what is inside strings.
fn blank_out(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut quote = None;
    let mut in_comment = false;
    let mut escaped = false;
    let mut characters = source.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\n' {
            in_comment = false;
        }
        let blank = in_comment || quote.is_some();
        if let Some(open) = quote {
            if character == open && !escaped {
                quote = None;
            }
            escaped = character == '\\' && !escaped;
        } else if !in_comment {
            match character {
                '\'' | '"' => quote = Some(character),
                '-' if characters.peek() == Some(&'-') => in_comment = true,
                _ => {}
            }
        }
        if (blank || in_comment) && character != '\n' {
            code.extend(std::iter::repeat_n(' ', character.len_utf8()));
        } else {
            code.push(character);
        }
    }
    code
}

fn is_part_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | ':')
}

/// Names and keywords; `a.b` and `a:b` are one.
fn words(code: &str) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, character) in code.char_indices().chain([(code.len(), ' ')]) {
        match start {
            None if character.is_ascii_alphabetic() || character == '_' => start = Some(at),
            Some(from) if !is_part_of_a_name(character) => {
                words.push(from..at);
                start = None;
            }
            _ => {}
        }
    }
    words
}

/// Where the arguments end that begin at `at`, if a call is there.
fn end_of_call(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0;
    for (offset, character) in code[at..].char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 1 => return Some(at + offset + 1),
            ')' => depth -= 1,
            _ if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Whether what begins at `at` is a statement and not a part of an expression.
fn starts_a_statement(code: &str, at: usize) -> bool {
    let before = code[..at].trim_end_matches([' ', '\t']);
    let first_in_line = before.is_empty() || before.ends_with('\n');
    let before = before.trim_end();
    let after_a_keyword = ["then", "do", "else", "repeat"]
        .iter()
        .any(|keyword| before.ends_with(keyword));
    let goes_on = before.ends_with(['=', '(', ',', '{', '+', '-', '*', '/', '<', '>', '.', '['])
        || ["and", "or", "not", "return", "in"]
            .iter()
            .any(|keyword| before.ends_with(&format!(" {keyword}")));
    after_a_keyword || (first_in_line && !goes_on)
}

/// Where two values are compared, and the opposite of each comparison.
fn comparisons(code: &str) -> Vec<(usize, &'static str, &'static str)> {
    const OPPOSITES: [(&str, &str); 6] = [
        ("==", "~="),
        ("~=", "=="),
        ("<=", ">"),
        (">=", "<"),
        ("<", ">="),
        (">", "<="),
    ];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = code.get(at..).filter(|rest| !rest.is_empty()) {
        let hit = OPPOSITES.iter().find(|(was, _)| rest.starts_with(was));
        match hit {
            Some((was, to)) => {
                found.push((at, *was, *to));
                at += was.len();
            }
            None => at += rest.chars().next().map_or(1, char::len_utf8),
        }
    }
    found
}
