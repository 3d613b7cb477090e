//! The command line of `weir-init`. Written by hand: it runs once for each pod, and starts in about a millisecond.

use std::{ffi::OsString, io::Write, path::PathBuf, process::ExitCode};

use weir_mesh::CaptureSettings;

use crate::{Applied, Backend, Error, RuleSet};

/// Exit code for a command line that is not understood.
const USAGE: u8 = 2;

const HELP: &str = "\
weir-init makes, proves, removes and prints the rules that redirect a pod's traffic to its proxy.

Usage: weir-init COMMAND [OPTIONS]

Commands:
  apply    put the rules in force, in place of those of an earlier call (all of them or none)
  check    prove the rules by real connections; with --capture, first compare them with what they should be
  clean    remove the rules; succeeds where there are none
  show     print the rules that are in force, as nft or iptables-save would
  rules    print the rules that apply would make, and change nothing

Options:
  --capture JSON   capture settings, as in the pod's annotation weir.dev/capture; default: all TCP, both ways
  --backend NAME   how apply puts rules in force: auto (nft; iptables where the kernel refuses it), nft (netlink, no program),
                   iptables (its programs, in the variant that the namespace or the machine has), iptables-nft,
                   iptables-legacy; default: auto. rules prints in its language; check, clean and show find what is there
  --netns PATH     network namespace to work in, such as /var/run/netns/NAME; default: the current one
  -h, --help       print this
  -V, --version    print the version

apply, clean and show need CAP_NET_ADMIN in the namespace; --netns and check need CAP_SYS_ADMIN too.
Exit code: 0 done, 1 failed, 2 the command line is not understood.
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Apply,
    Check,
    Clean,
    Show,
    Rules,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Run { command: Command, options: Box<Options> },
    Help,
    Version,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    capture: Option<CaptureSettings>,
    backend: Option<Backend>,
    netns: Option<PathBuf>,
}

/// Runs the command line (without the program's name) and prints what it has to say.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match parse(arguments) {
        Err(message) => {
            say(&mut std::io::stderr(), &format!("weir-init: {message}; see weir-init --help\n"));
            ExitCode::from(USAGE)
        }
        Ok(Parsed::Help) => finish(Ok(HELP.to_owned())),
        Ok(Parsed::Version) => finish(Ok(format!("weir-init {}\n", env!("CARGO_PKG_VERSION")))),
        Ok(Parsed::Run { command, options }) => {
            let work = || execute(command, &options);
            finish(match &options.netns {
                Some(path) => crate::in_netns(path, work),
                None => work(),
            })
        }
    }
}

fn execute(command: Command, options: &Options) -> Result<String, Error> {
    let rules = RuleSet::new(&options.capture.clone().unwrap_or_default());
    let backend = options.backend.unwrap_or_default();
    match command {
        Command::Apply => backend.apply(&rules).map(|applied| {
            let families = if applied.ipv6 { "IPv4 and IPv6" } else { "IPv4 (this kernel has no IPv6)" };
            let Applied { rules, by, reason, elapsed, .. } = applied;
            format!("redirect in force: {rules} rules, {families}, in {} µs, by {by}: {reason}\n", elapsed.as_micros())
        }),
        Command::Check => check(options.capture.is_some().then_some(&rules)),
        Command::Clean => crate::clean_in_current_netns().map(|()| "redirect removed\n".to_owned()),
        Command::Show => {
            let text: String = crate::in_force()?.iter().map(ToString::to_string).collect();
            Ok(if text.is_empty() { "no redirect is in force here\n".to_owned() } else { text })
        }
        Command::Rules => match backend {
            Backend::Auto | Backend::Nft => Ok(rules.to_string()),
            Backend::Iptables(_) => crate::iptables_input(&rules),
        },
    }
}

/// One line for each finding; fails with all that did not work.
fn check(rules: Option<&RuleSet>) -> Result<String, Error> {
    let mut text = match rules {
        Some(rules) => crate::verify_in_current_netns(rules).map(|()| "rules: as they should be\n".to_owned())?,
        None => "rules: not compared (no --capture)\n".to_owned(),
    };
    let (mut worked, mut failures) = (Vec::new(), Vec::new());
    for line in crate::check_in_current_netns()? {
        let list = if matches!(line.outcome, crate::Outcome::Failed(_)) { &mut failures } else { &mut worked };
        list.push(line.to_string());
    }
    if failures.is_empty() {
        worked.iter().for_each(|line| text.extend([line, "\n"]));
        Ok(text)
    } else {
        Err(Error::Check(failures))
    }
}

fn finish(result: Result<String, Error>) -> ExitCode {
    match result {
        Ok(text) => {
            say(&mut std::io::stdout(), &text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&mut std::io::stderr(), &format!("weir-init: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// A reader that went away (`weir-init show | head`) is no failure of ours.
fn say(to: &mut dyn Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed, String> {
    let (mut command, mut options) = (None, Box::<Options>::default());
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().ok_or("an argument is not UTF-8")?;
        let (name, mut value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (text, None),
        };
        let mut value = || value.take().or_else(|| arguments.next()).ok_or(format!("{name} needs a value"));
        match name {
            "-h" | "--help" | "help" => return Ok(Parsed::Help),
            "-V" | "--version" => return Ok(Parsed::Version),
            "--capture" if options.capture.is_none() => {
                let json = value()?.into_string().map_err(|_| "--capture is not UTF-8")?;
                options.capture =
                    Some(CaptureSettings::from_json(&json).map_err(|error| format!("--capture: {error}"))?);
            }
            "--backend" if options.backend.is_none() => {
                options.backend =
                    Some(value()?.to_string_lossy().parse().map_err(|error| format!("--backend: {error}"))?);
            }
            "--netns" if options.netns.is_none() => options.netns = Some(PathBuf::from(value()?)),
            "--capture" | "--backend" | "--netns" => return Err(format!("{name} is given twice")),
            _ if command.is_none() => {
                command = Some(match name {
                    "apply" => Command::Apply,
                    "check" => Command::Check,
                    "clean" => Command::Clean,
                    "show" => Command::Show,
                    "rules" => Command::Rules,
                    _ => return Err(format!("{text:?} is no command (apply, check, clean, show, rules)")),
                });
            }
            _ => return Err(format!("{text:?} is not expected here")),
        }
    }
    let command = command.ok_or("a command is missing (apply, check, clean, show, rules)")?;
    Ok(Parsed::Run { command, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Parsed, String> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn commands_and_options() {
        let run = |command, capture, netns| {
            Ok(Parsed::Run { command, options: Box::new(Options { capture, netns, ..Options::default() }) })
        };
        assert_eq!(parsed(&["apply"]), run(Command::Apply, None, None));
        assert_eq!(parsed(&["--netns", "/a=b", "show"]), run(Command::Show, None, Some("/a=b".into())));
        let both = parsed(&["check", "--capture={\"version\":1}", "--netns=/x"]);
        assert_eq!(both, run(Command::Check, Some(CaptureSettings::default()), Some("/x".into())));
        let backend = Some(Backend::Iptables(None));
        let options = Box::new(Options { backend, ..Options::default() });
        assert_eq!(parsed(&["apply", "--backend=iptables"]), Ok(Parsed::Run { command: Command::Apply, options }));
        assert_eq!(parsed(&["apply", "--help"]), Ok(Parsed::Help));
    }

    #[test]
    fn says_what_it_does_not_understand() {
        for (arguments, want) in [
            (&[][..], "a command is missing"),
            (&["aply"], "no command"),
            (&["apply", "apply"], "not expected"),
            (&["apply", "--netns"], "needs a value"),
            (&["apply", "--netns", "a", "--netns", "b"], "given twice"),
            (&["apply", "--capture", "{}"], "--capture:"),
            (&["apply", "--backend", "ipfw"], "--backend: \"ipfw\" is no back end"),
            (&["apply", "--backend=nft", "--backend=nft"], "given twice"),
            (&["apply", "--other"], "not expected"),
        ] {
            let message = parsed(arguments).unwrap_err();
            assert!(message.contains(want), "{arguments:?}: {message}");
        }
    }
}
