//! The result of one check.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub grade: Grade,
    /// `None` for what concerns all nodes.
    pub node: Option<String>,
    pub what: String,
    /// What mends it: a command, or what to do.
    pub mend: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Ok => "[OK]  ",
            Grade::Warn => "[WARN]",
            Grade::Fail => "[FAIL]",
        };
        write!(f, "{grade} ")?;
        if let Some(node) = &self.node {
            write!(f, "{node}: ")?;
        }
        f.write_str(&self.what)?;
        match &self.mend {
            Some(mend) => write!(f, ". Mend: {mend}"),
            None => Ok(()),
        }
    }
}

/// The exit code of a monitoring plug-in that could not check.
pub const NAGIOS_UNKNOWN: u8 = 3;

/// One line and the exit code, as a monitoring plug-in has them.
pub fn nagios(summary: &str, findings: &[Finding]) -> (String, u8) {
    let worst = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
    let (word, code) = match worst {
        Grade::Ok => ("OK", 0),
        Grade::Warn => ("WARNING", 1),
        Grade::Fail => ("CRITICAL", 2),
    };
    let of_worst = findings.iter().filter(|finding| worst > Grade::Ok && finding.grade == worst);
    let whats = of_worst.map(|Finding { node, what, .. }| match node {
        Some(node) => format!("; {node}: {what}"),
        None => format!("; {what}"),
    });
    (format!("QUORLOCK {word} - {summary}{}\n", whats.collect::<String>()), code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(grade: Grade, what: &str) -> Finding {
        Finding { grade, node: Some("a:1".to_owned()), what: what.to_owned(), mend: Some("do it".to_owned()) }
    }

    #[test]
    fn a_finding_is_one_line_with_what_mends_it() {
        assert_eq!(finding(Grade::Warn, "it is slow").to_string(), "[WARN] a:1: it is slow. Mend: do it");
        let good = Finding { node: None, mend: None, ..finding(Grade::Ok, "all is well") };
        assert_eq!(good.to_string(), "[OK]   all is well");
    }

    #[test]
    fn a_plug_in_says_the_worst() {
        let all = [finding(Grade::Ok, "fine"), finding(Grade::Fail, "bad"), finding(Grade::Warn, "odd")];
        assert_eq!(nagios("OK: 3", &all[..1]), ("QUORLOCK OK - OK: 3\n".to_owned(), 0));
        assert_eq!(nagios("OK: 3", &all), ("QUORLOCK CRITICAL - OK: 3; a:1: bad\n".to_owned(), 2));
        assert_eq!(nagios("OK: 3", &[finding(Grade::Warn, "odd")]).1, 1);
    }
}
