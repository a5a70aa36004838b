//! Whether a node has every write on disk before it answers.

use std::collections::HashMap;
use std::fmt;

use quorlock::NodeError;
use quorlock::admin::Node;

use super::keys::read;

/// The settings that it takes.
const NEEDED: [(&str, &str); 3] =
    [("appendonly", "yes"), ("appendfsync", "always"), ("no-appendfsync-on-rewrite", "no")];

/// Whether the node keeps every write, or why it is not declared to.
#[derive(Debug, PartialEq, Eq)]
pub struct Keeps(Result<(), Why>);

/// Why not, and the setting that would do.
#[derive(Debug, PartialEq, Eq)]
struct Why {
    text: String,
    setting: Option<String>,
}

impl Keeps {
    pub fn is_kept(&self) -> bool {
        self.0.is_ok()
    }

    /// Why it does not; empty when it does.
    pub fn why(&self) -> &str {
        self.0.as_ref().err().map_or("", |why| &why.text)
    }

    /// The setting that it needs, as `CONFIG SET` takes it, where that is known.
    pub fn setting(&self) -> Option<&str> {
        self.0.as_ref().err()?.setting.as_deref()
    }

    /// Asks the node for its settings. A node that does not tell them is not declared to keep anything.
    pub async fn ask(node: &mut Node) -> Result<Self, NodeError> {
        let mut config = redis::cmd("CONFIG");
        config.arg("GET").arg("*append*"); // Redis 6 takes one pattern.
        match node.ask(&config).await {
            Ok(settings) => Ok(Self::of(&read("CONFIG", settings)?)),
            Err(NodeError::Redis { code, .. }) => {
                let why =
                    format!("its settings are not known, as CONFIG GET is refused ({code}): allow it to this user");
                Ok(Self(Err(Why { text: why, setting: None })))
            }
            Err(error) => Err(error),
        }
    }

    pub fn of(settings: &HashMap<String, String>) -> Self {
        for (name, needed) in NEEDED {
            match settings.get(name) {
                Some(value) if value == needed => {}
                Some(value) => {
                    let text = format!("{name} is {value}, not {needed}");
                    return Self(Err(Why { text, setting: Some(format!("{name} {needed}")) }));
                }
                None => return Self(Err(Why { text: format!("it does not report {name}"), setting: None })),
            }
        }
        Self(Ok(()))
    }
}

impl fmt::Display for Keeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(()) => f.write_str("yes"),
            Err(why) => write!(f, "no: {}", why.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_needed() {
        let settings = |change: Option<(&str, &str)>| {
            let pairs = NEEDED.into_iter().chain(change);
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        assert_eq!(Keeps::of(&settings(None)).to_string(), "yes");
        for change in [("appendonly", "no"), ("appendfsync", "everysec"), ("no-appendfsync-on-rewrite", "yes")] {
            let keeps = Keeps::of(&settings(Some(change)));
            assert!(!keeps.is_kept() && keeps.to_string().contains(change.0), "{keeps}");
        }
        assert!(!Keeps::of(&HashMap::new()).is_kept());
    }
}
