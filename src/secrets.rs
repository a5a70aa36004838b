//! The one place that hides passwords: of a URL that cannot be taken apart, and of any URL in a message of the command, nothing is
//! shown that stands behind `://`.

/// A URL by its scheme alone, and a text without one not at all.
pub(crate) fn hidden(url: &str) -> String {
    match url.find("://") {
        Some(end) if end > 0 && scheme_at(url, end) == 0 => format!("{}://…", &url[..end]),
        _ => "…".to_owned(),
    }
}

/// Returns whether a text that a server sent quotes the password, as it is or escaped.
pub(crate) fn quotes(text: &str, password: Option<&str>) -> bool {
    let is_in = |password: &str| !password.is_empty() && text.contains(password);
    password.is_some_and(|password| is_in(password) || is_in(&password.escape_debug().to_string()))
}

/// What may stand behind `://`.
const EXAMPLES: &[&str] =
    &["host:port", "[user:password@]host[:port][/database]", "user:password@host", ":password@host", "127.0.0.1:6379"];

/// The message as it may be shown. `args` are the arguments of this process: what looks like a URL in them is left out as
/// a whole, also if it has spaces.
pub fn redacted(message: &str, args: impl Iterator<Item = String>) -> String {
    let mut message = message.to_owned();
    for arg in args {
        if let Some(behind) = arg.find("://") {
            let scheme = scheme_at(&arg, behind);
            message = message.replace(&arg[scheme..], &format!("{}://…", &arg[scheme..behind]));
        }
    }
    message.split_inclusive(char::is_whitespace).map(word).collect()
}

/// Where the scheme begins that ends at `end`.
fn scheme_at(text: &str, end: usize) -> usize {
    let belongs = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    text[..end].trim_end_matches(belongs).len()
}

fn word(word: &str) -> String {
    let Some(behind) = word.find("://") else { return word.to_owned() };
    let (before, rest) = word.split_at(behind + 3);
    let bare = rest.trim_end();
    let space = &rest[bare.len()..];
    let opened = before[..scheme_at(before, behind)].chars().next_back();
    let closing = match opened {
        Some('(') => bare.rfind(')'),
        Some(quote @ ('\'' | '"')) => bare.rfind(quote),
        _ => Some(bare.trim_end_matches([',', ';', ':', '.']).len()),
    };
    // Behind the closing sign stands a comma at most; more is part of the URL.
    let end = closing.filter(|at| bare[*at..].chars().count() <= 2).unwrap_or(bare.len());
    let shown = if EXAMPLES.contains(&&bare[..end]) { &bare[..end] } else { "…" };
    format!("{before}{shown}{}{space}", &bare[end..])
}

/// A name, which may be a URL. One of a node is hidden, of any other no user and no password is shown.
#[must_use]
pub fn name_without_credentials(name: &str) -> String {
    const NODES: [&str; 6] = ["redis://", "rediss://", "valkey://", "valkeys://", "redis+unix://", "unix://"];
    if let Some(scheme) = NODES.iter().find(|scheme| name.trim_start().starts_with(**scheme)) {
        return format!("{scheme}…");
    }
    match (name.find("://"), name.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &name[..scheme + 3], &name[at + 1..]),
        _ => name.to_owned(),
    }
}

/// The text without what stands before the `@` of words like `user:password@host`.
#[must_use]
pub fn without_bare_credentials(text: &str) -> String {
    let shown = |word: &str| match (word.find(':'), word.rfind('@')) {
        (Some(colon), Some(at)) if colon < at => format!("…{}", &word[at..]),
        _ => word.to_owned(),
    };
    text.split_inclusive(char::is_whitespace).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_hidden_behind_its_scheme() {
        for (url, shown) in [
            ("redis://app:hun#ter2@host", "redis://…"),
            ("me:hunter2@host:1", "…"),
            ("me:hunter2@host://x", "…"),
            ("://hunter2", "…"),
            ("", "…"),
        ] {
            assert_eq!(hidden(url), shown);
        }
    }

    fn shown(message: &str, args: &[&str]) -> String {
        redacted(message, args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn nothing_behind_the_scheme_is_shown() {
        let message = "unexpected argument 'redis://me:p@ss@host:1,redis://:x@b' found\n\nFor more, see a@b";
        assert_eq!(shown(message, &[]), "unexpected argument 'redis://…' found\n\nFor more, see a@b");
        assert_eq!(shown("node 1 (redis://app:hun) cannot be used", &[]), "node 1 (redis://…) cannot be used");
        assert_eq!(shown("redis://a:b, is held", &[]), "redis://…, is held");
        assert_eq!(shown("redis://a:b'c is held", &[]), "redis://… is held");
        assert_eq!(shown("'redis://a'b:c' is held", &[]), "'redis://…' is held");
        assert_eq!(shown("redis://…", &[]), "redis://…");
    }

    #[test]
    fn a_url_with_spaces_is_left_out_as_a_whole() {
        let url = "--wait=redis://me:two words@host";
        assert_eq!(shown("invalid value 'redis://me:two words@host' for", &[url]), "invalid value 'redis://…' for");
    }

    #[test]
    fn examples_stay() {
        for text in [
            "as redis://host:port",
            "write it as redis://[user:password@]host[:port][/database], the port",
            "using redis://127.0.0.1:6379 alone",
        ] {
            assert_eq!(shown(text, &[]), text);
        }
        assert_eq!(shown("redis://host:portal", &[]), "redis://…");
    }

    #[test]
    fn credentials_alone_can_be_left_out() {
        assert_eq!(name_without_credentials("redis://me:hun#ter2"), "redis://…");
        assert_eq!(name_without_credentials("https://me:p@ss@example.com/feed"), "https://example.com/feed");
        assert_eq!(name_without_credentials("https://example.com/feed"), "https://example.com/feed");
        assert_eq!(without_bare_credentials("value 'me:hunter2@host' for\n  x"), "value …@host' for\n  x");
    }
}
