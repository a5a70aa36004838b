//! The environment of the command: what it finds there, and whether there is room for it.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use quorlock::{Guard, Owner, Quorlock};

use crate::child::Variables;
use crate::exit::{Exit, Failure};
use crate::options::RunOptions;
use crate::place::Place;

pub const LEASE_VARIABLE: &str = "QUORLOCK_LEASE";
const NAME_VARIABLE: &str = "QUORLOCK_NAME";
const TOKEN_VARIABLE: &str = "QUORLOCK_TOKEN";

/// A token and a ballot are written with so many digits, at most.
const DIGITS: usize = 16;

/// A share is written with so many characters, at most: this process makes fewer than 2³² leases.
const SHARE: usize = 16 + 1 + 8;

/// For the command that runs under this guard.
pub fn variables(options: &RunOptions, locks: &Quorlock, guard: &Guard, tokens: &str) -> Variables {
    build(options, locks, tokens.into(), || guard.export().into())
}

/// The owner of the enclosing `quorlock run`, when its lock is on the same nodes.
pub fn enclosing_owner(options: &RunOptions, locks: &Quorlock) -> Result<Option<Owner>, Failure> {
    let Some(lease) = env::var_os(LEASE_VARIABLE).filter(|_| options.place.is_of_the_enclosing(locks)) else {
        return Ok(None);
    };
    let owner = lease.into_string().ok().and_then(|lease| Owner::import(&lease).ok());
    let message = || {
        format!("{LEASE_VARIABLE} is not what an enclosing `quorlock run` has set: pass it on unchanged, or unset it")
    };
    owner.map(Some).ok_or_else(|| Failure::new(Exit::Usage, message()))
}

fn build(options: &RunOptions, locks: &Quorlock, tokens: OsString, lease: impl Fn() -> OsString) -> Variables {
    let mut variables = vec![(NAME_VARIABLE, Some(options.names.join(" ".as_ref()))), (TOKEN_VARIABLE, Some(tokens))];
    if options.exports {
        variables.push((LEASE_VARIABLE, Some(lease())));
        variables.extend(options.place.variables(locks));
    } else {
        variables.push((LEASE_VARIABLE, None));
        variables.extend(Place::no_variables());
    }
    variables
}

/// Checks that there is room for the command's arguments and variables, before the lock is acquired.
pub fn check_room(options: &RunOptions, locks: &Quorlock, owner: Option<&Owner>) -> Result<(), Failure> {
    let token = "0".repeat(DIGITS);
    let tokens = vec![token.as_str(); options.names.len()].join(" ");
    let variables = build(options, locks, tokens.into(), || "0".repeat(longest_export(options, owner)).into());
    let Some(limits) = Limits::of_this_system() else { return Ok(()) };
    for (name, value) in &variables {
        let size = value.as_ref().map_or(0, |value| name.len() + value.len() + 2);
        if size > limits.string {
            let hint = if *name == LEASE_VARIABLE { ", or use --no-export" } else { "" };
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "the command cannot be run: the variable {name} would have {size} bytes, and this system takes {} \
                     for one. Lock fewer or shorter NAMEs{hint}",
                    limits.string
                ),
            ));
        }
    }
    let size = total(options, &variables);
    if size > limits.total {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "the command cannot be run: its arguments and its environment would have {size} bytes, and this system \
                 takes {}. Lock fewer or shorter NAMEs, or give the command fewer arguments",
                limits.total
            ),
        ));
    }
    Ok(())
}

/// Returns the length of what [`Guard::export`] will give, or a little more.
fn longest_export(options: &RunOptions, owner: Option<&Owner>) -> usize {
    let encoded = |byte: &u8| if byte.is_ascii_alphanumeric() || b"-_.:/".contains(byte) { 1 } else { 3 };
    let length = |bytes: &[u8]| bytes.iter().map(encoded).sum::<usize>();
    let prefix = length(options.place.prefix.as_bytes());
    let lease = |name: &OsString| prefix + length(name.as_bytes()) + 2 * DIGITS + SHARE + ";;;;".len();
    let names = options.names.iter().map(lease).sum::<usize>();
    let labelled = Owner::labelled(&options.label);
    let label = length(owner.unwrap_or(&labelled).label().as_bytes());
    let inherited = if owner.is_some() { env::var_os(LEASE_VARIABLE).unwrap_or_default().len() } else { 0 };
    "quorlock1;;;+".len() + 32 + label + names + inherited
}

/// What the system counts when it executes a program: each string with its end, and a pointer to it.
fn total(options: &RunOptions, variables: &Variables) -> usize {
    const POINTER: usize = size_of::<usize>();
    let kept = |name: &OsString| variables.iter().all(|(replaced, _)| name != replaced);
    let environment = env::vars_os().filter(|(name, _)| kept(name));
    let environment: usize = environment.map(|(name, value)| name.len() + value.len() + 2 + POINTER).sum();
    let added = variables.iter().filter_map(|(name, value)| Some(name.len() + value.as_ref()?.len() + 2 + POINTER));
    let args = options.command.iter().map(|arg| arg.len() + 1 + POINTER);
    environment + added.sum::<usize>() + args.sum::<usize>()
}

/// How much a program can be given.
struct Limits {
    string: usize,
    total: usize,
}

impl Limits {
    /// As Linux has them: `MAX_ARG_STRLEN`, and a quarter of the stack's limit, but 6 MiB at most and 128 KiB at least.
    #[cfg(target_os = "linux")]
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere they are not known")]
    fn of_this_system() -> Option<Self> {
        use rustix::process::{Resource, getrlimit};
        let stack = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX) / 4;
        let total = usize::try_from(stack).unwrap_or(usize::MAX).clamp(128 << 10, 6 << 20);
        Some(Self { string: 32 * rustix::param::page_size(), total })
    }

    #[cfg(not(target_os = "linux"))]
    fn of_this_system() -> Option<Self> {
        None
    }
}
