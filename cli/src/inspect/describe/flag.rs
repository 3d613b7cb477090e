//! The flags of the proxies' answers.

use std::process::ExitCode;

use serde_json::{Value, json};
use weir_mesh::flags::{FLAGS, Flag};

use super::super::{Place, print_json};
use crate::failure::Failure;

pub(super) fn all(place: &Place) -> Result<ExitCode, Failure> {
    if place.is_json() {
        print_json(&FLAGS.iter().map(as_json).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    for flag in FLAGS {
        explain(flag).iter().for_each(|line| say!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Several as a log has them, with commas between.
pub(super) fn one(place: &Place, names: &str) -> Result<ExitCode, Failure> {
    let find = |name: &str| {
        let unknown = || Failure::usage(format!("there is no flag {name:?}: `weir describe flags` lists them all"));
        Flag::find(name).ok_or_else(unknown)
    };
    let flags = names.split(',').map(find).collect::<Result<Vec<_>, _>>()?;
    if place.is_json() {
        print_json(&flags.into_iter().map(as_json).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    flags.into_iter().flat_map(explain).for_each(|line| say!("{line}"));
    Ok(ExitCode::SUCCESS)
}

/// What a flag means and what to do, a line each.
pub(super) fn explain(flag: &Flag) -> [String; 2] {
    [format!("{:<5}  {}", flag.name, flag.means), format!("       {}", flag.remedy)]
}

fn as_json(flag: &Flag) -> Value {
    json!({"flag": flag.name, "means": flag.means, "remedy": flag.remedy})
}
