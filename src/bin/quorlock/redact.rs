//! No message shows a password: nothing that stands behind `://`, except in examples of quorlock's own.

/// What may stand behind `://`.
const EXAMPLES: &[&str] = &["host:port", "[user:password@]host[:port][/database]", "127.0.0.1:6379"];

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

/// The text without the user and the password of a URL in it.
pub fn without_credentials(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &text[..scheme + 3], &text[at + 1..]),
        _ => text.to_owned(),
    }
}

/// The text without what stands before the `@` of words like `user:password@host`.
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
        assert_eq!(without_credentials("redis://me:p@ss@host:1"), "redis://host:1");
        assert_eq!(without_credentials("https://example.com/feed"), "https://example.com/feed");
        assert_eq!(without_bare_credentials("value 'me:hunter2@host' for\n  x"), "value …@host' for\n  x");
    }
}
