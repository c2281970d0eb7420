//! Errors in the command line, in one line.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{
    exit::{self, Ending},
    report::say,
};

/// Prints help or the version if requested, otherwise the error.
pub(crate) fn tell(error: &clap::Error) -> Ending {
    if !error.use_stderr() {
        // A reader that closes the pipe is not a failure.
        let _ = error.print();
        return Ending::Code(0);
    }
    say(&one_line(error));
    exit::FAILED.into()
}

fn one_line(error: &clap::Error) -> String {
    if lacks_command(error) {
        return "no command: put it after --, as in `with_lock NAME -- COMMAND`; see --help"
            .to_owned();
    }
    // The name takes a word too many: most likely the command, as `flock` has it.
    if let (ErrorKind::TooManyValues, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidValue))
    {
        return format!(
            "'{word}' is one word too many after the backend and the name: put a command after --; see --help"
        );
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "nothing to do: name a lock and, after --, a command; see --help".to_owned();
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    // The usage and the hint at --help follow.
    let text = text.split("\n\nUsage:").next().unwrap_or(text);
    let text = text
        .split("\n\nFor more information")
        .next()
        .unwrap_or(text);
    let words: Vec<_> = text.split_whitespace().collect();
    format!("{}; see --help", words.join(" "))
}

fn lacks_command(error: &clap::Error) -> bool {
    let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else {
        return false;
    };
    error.kind() == ErrorKind::MissingRequiredArgument
        && missing.len() == 1
        && missing[0].contains("COMMAND")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    #[test]
    fn an_error_is_one_line_that_says_what_to_do() {
        for (expected, line) in [
            ("put it after --", vec!["x"]),
            ("put it after --", vec!["x", "make"]),
            ("'now' is one word too many", vec!["x", "make", "now"]),
            (
                "'y' is one word too many",
                vec!["fs:d", "x", "y", "--", "make"],
            ),
            ("--nonblock", vec!["--nonblock", "x", "--", "make"]),
            ("write K/N", vec!["-p", "3", "x", "--", "make"]),
            ("a unit", vec!["-t", "3", "x", "--", "make"]),
            ("NAME", vec!["--", "make"]),
            ("", vec![]),
            ("NAME", vec!["who"]),
            ("[possible values: bash,", vec!["completions", "tcsh"]),
        ] {
            let line = std::iter::once("with_lock").chain(line);
            let error = Cli::try_parse_from(line.clone()).unwrap_err();
            let text = one_line(&error);
            assert!(
                text.contains(expected),
                "{:?}: {text}",
                line.collect::<Vec<_>>()
            );
            assert!(
                !text.contains('\n') && text.ends_with("see --help"),
                "{text}"
            );
        }
    }
}
