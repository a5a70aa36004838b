//! What a server's own errors mean.

use redis::{RedisError, Value};

use crate::error::NodeError;
use crate::text::excerpt;

/// Returns whether the server cannot answer now, and may later.
pub(super) fn is_passing(error: &RedisError) -> bool {
    error.code().is_some_and(|code| ["LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN"].contains(&code))
}

/// Returns whether the server takes no writes now, and may take them later. Older servers say so within the error of a script.
pub(super) fn is_unable(error: &RedisError) -> bool {
    const CODES: [&str; 3] = ["MISCONF", "OOM", "NOREPLICAS"];
    let is_within = |code: &&str| error.detail().is_some_and(|detail| detail.contains(&format!("-{code} ")));
    error.code().is_some_and(|code| CODES.contains(&code) || CODES.iter().any(is_within))
}

/// Returns whether the server is a replica, or has become one. Older servers say so within the error of a script.
pub(super) fn is_replica(error: &RedisError) -> bool {
    error.code() == Some("READONLY") || error.detail().is_some_and(|detail| detail.contains("-READONLY"))
}

/// Returns the answer, or the error that the server gave in its place.
pub(super) fn said(value: Value) -> Result<Value, RedisError> {
    match value {
        Value::ServerError(error) => Err(error.into()),
        value => Ok(value),
    }
}

pub(super) fn node_error(error: &RedisError) -> NodeError {
    if is_replica(error) {
        return NodeError::Replica;
    }
    let detail = error.detail().unwrap_or_default();
    match (error.code(), wrapped(detail)) {
        (Some("ERR"), Some((code, detail))) => NodeError::Redis { code: code.to_owned(), detail: excerpt(detail) },
        (Some(code), _) => NodeError::Redis { code: excerpt(code), detail: excerpt(detail) },
        (None, _) => NodeError::Connect(excerpt(&error.to_string())),
    }
}

/// The code of an error that a script has met, and the words behind it. Servers before 7 say it within an `ERR` of their own.
fn wrapped(detail: &str) -> Option<(&str, &str)> {
    let met = detail.starts_with("Error running script").then(|| detail.split_once(": -"))??.1;
    let (code, rest) = met.split_once(' ')?;
    code.bytes().all(|byte| byte.is_ascii_uppercase()).then_some((code, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::LONGEST_EXCERPT;

    #[test]
    fn older_servers_say_within_the_error_of_a_script_what_it_met() {
        let error = |line: &str| said(redis::parse_redis_value(line.as_bytes()).unwrap()).unwrap_err();
        for line in [
            "-READONLY You can't write against a read only replica. script: f00, on @user_script:7.\r\n",
            "-ERR Error running script (call to f_00): @user_script:7: @user_script: 7: -READONLY You can't write\r\n",
        ] {
            assert_eq!(node_error(&error(line)), NodeError::Replica, "{line}");
        }
        assert!(!is_replica(&error("-OOM command not allowed\r\n")));
        assert!(is_unable(&error("-OOM command not allowed\r\n")) && !is_unable(&error("-ERR no\r\n")));
        assert!(is_unable(&error(
            "-ERR Error running script (call to f_00): @user_script: 5: -OOM command not allowed\r\n"
        )));
        let full =
            "-ERR Error running script (call to f_00): @user_script:5: @user_script: 5: -OOM command not allowed\r\n";
        let expected = NodeError::Redis { code: "OOM".to_owned(), detail: "command not allowed".to_owned() };
        for line in [full, "-OOM command not allowed\r\n"] {
            assert_eq!(node_error(&error(line)), expected, "{line}");
        }
    }

    #[test]
    fn errors_are_kept_short() {
        let line = format!("-{} {}\r\n", "A".repeat(5000), "é".repeat(5000));
        let error = said(redis::parse_redis_value(line.as_bytes()).unwrap()).unwrap_err();
        let NodeError::Redis { code, detail } = node_error(&error) else { panic!("{error}") };
        assert_eq!((code.chars().count(), detail.chars().count()), (LONGEST_EXCERPT + 1, LONGEST_EXCERPT + 1));
    }
}
