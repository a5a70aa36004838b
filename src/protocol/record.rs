//! The record that a node keeps of itself, for all clients: which process it is, and until when leases may be in force that it
//! has forgotten.

use std::fmt;
use std::time::Duration;

/// No client uses longer leases, and a record that names longer ones makes no sense.
pub(crate) const LONGEST_LEASE: Duration = Duration::from_secs(7 * 24 * 3600);

/// So much of a server's run id tells its processes apart.
const RUN_ID_LENGTH: usize = 16;

/// The content of the key `quorlock:node`: `WORD LONGEST END WALL WINDOW CLUSTER KEEPS RUN-ID`, times in ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Random. Another word means that this node has lost its data, or is another one.
    pub(crate) word: u64,
    /// The longest lease that any client has used here.
    pub(crate) longest: Duration,
    /// When the quarantine ends, by this node's clock and by the wall clock of the client that began it; zeros for none.
    pub(crate) ends: (u64, u64),
    /// How far ballots may lie from this node's clock. They are kept twice as long.
    pub(crate) window: Duration,
    /// Of the cluster that the node was declared to be part of.
    pub(crate) cluster: Option<u64>,
    /// It was declared to log every write before it answers.
    pub(crate) keeps: bool,
    /// Of the server process that the record holds for, and of the database if it is not the first.
    pub(crate) run_id: String,
}

impl Record {
    /// Reads a record; `None` for what is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
        let number = |text: Option<&str>| text?.parse::<u64>().ok();
        let mut words = text.split(' ');
        let word = hexadecimal(words.next()?)?;
        let longest = Some(Duration::from_millis(number(words.next())?)).filter(|longest| *longest <= LONGEST_LEASE)?;
        let ends = (number(words.next())?, number(words.next())?);
        let window = Duration::from_millis(number(words.next())?);
        let cluster = match words.next()? {
            "-" => None,
            cluster => Some(hexadecimal(cluster)?),
        };
        let keeps = match words.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let run_id = words.next()?.to_owned();
        words.next().is_none().then_some(Self { word, longest, ends, window, cluster, keeps, run_id })
    }

    /// Returns whether it holds for this server process.
    pub(crate) fn is_of(&self, process: &Process) -> bool {
        self.run_id == process.run_id
    }

    /// Returns whether it has no quarantine, not even one that is over.
    pub(crate) fn is_settled(&self) -> bool {
        self.ends.0 == 0
    }

    /// Returns the words behind the two times.
    fn rest(&self) -> String {
        let cluster = self.cluster.map_or_else(|| "-".to_owned(), |cluster| format!("{cluster:016x}"));
        format!("{} {cluster} {} {}", self.window.as_millis(), u8::from(self.keeps), self.run_id)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { word, longest, ends: (node, wall), .. } = self;
        write!(f, "{word:016x} {} {node} {wall} {}", longest.as_millis(), self.rest())
    }
}

/// What a server says of its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Process {
    run_id: String,
    /// It logs writes at all. How soon is a matter of the declaration.
    pub(crate) logs: bool,
    /// It has been a replica of another server.
    pub(crate) was_replica: bool,
}

impl Process {
    /// `database` is the one that the client uses: another one has a record of its own, and `SWAPDB` exchanges them.
    pub(crate) fn new(run_id: &str, database: i64, logs: bool, was_replica: bool) -> Self {
        let mut run_id: String = run_id.chars().take(RUN_ID_LENGTH).collect();
        if database != 0 {
            run_id = format!("{run_id}/{database}");
        }
        Self { run_id, logs, was_replica }
    }

    /// Returns its run id, in the form that a record has.
    #[cfg(feature = "cli")]
    pub(crate) fn run_id(&self) -> &str {
        &self.run_id
    }
}

impl Process {
    /// Returns whether it can have all that its predecessor wrote, if that kept every write.
    fn may_keep(&self, record: &Record) -> bool {
        let database = |run_id: &str| run_id.split_once('/').map(|(_, database)| database.to_owned());
        self.logs && !self.was_replica && database(&self.run_id) == database(&record.run_id)
    }
}

/// What a client brings along.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer {
    /// A random word, for a record that begins.
    pub(crate) word: u64,
    /// The longest lease that may be in use, as far as this client knows.
    pub(crate) longest: Duration,
    /// The longest lease that is known to be in use, or to have been.
    pub(crate) proven: Duration,
    pub(crate) window: Duration,
    /// Its wall clock, in ms.
    pub(crate) wall: u64,
    /// The cluster that most of its other nodes are part of.
    pub(crate) cluster: Option<u64>,
}

/// What is due in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// `WORD LONGEST`.
    pub(crate) head: String,
    /// The quarantine begins now, and lasts so many ms by the node's clock.
    pub(crate) wait: Option<u64>,
    /// `END WALL`, when it does not begin now.
    pub(crate) ends: String,
    /// Its end by the client's wall clock in ms, when it begins now.
    pub(crate) wall: u64,
    /// `WINDOW CLUSTER KEEPS RUN-ID`.
    pub(crate) rest: String,
}

impl Record {
    /// Returns what a client that finds this record on a server has to write there. `None` for nothing.
    ///
    /// | record | run id | declared to keep every write, logs, was never a replica | due |
    /// |---|---|---|---|
    /// | missing | | | a new one, with a quarantine |
    /// | there | the same | | nothing, or a longer lease, or the cluster of the others |
    /// | there | another | yes | the same, and the run id |
    /// | there | another | no | a new one, with a quarantine |
    pub(crate) fn due(seen: Option<&Self>, process: &Process, newcomer: &Newcomer) -> Option<Change> {
        let kept = seen.filter(|record| record.is_of(process) || (record.keeps && process.may_keep(record)));
        let Some(kept) = kept else {
            let longest = seen.map_or(newcomer.longest, |record| record.longest.max(newcomer.longest));
            let wait = millis(longest);
            let begun = Self {
                word: newcomer.word,
                longest,
                ends: (0, 0),
                window: seen.map_or(newcomer.window, |record| record.window),
                cluster: newcomer.cluster,
                keeps: false,
                run_id: process.run_id.clone(),
            };
            let head = format!("{:016x} {wait}", begun.word);
            let wall = newcomer.wall.saturating_add(wait + 1);
            return Some(Change { head, wait: Some(wait), ends: "0 0".to_owned(), wall, rest: begun.rest() });
        };
        // A quarantine that was begun for shorter leases lasts longer now.
        let longest = kept.longest.max(newcomer.proven);
        let longer = millis(longest) - millis(kept.longest);
        let ends = match kept.ends {
            (0, _) => (0, 0),
            (node, wall) => (node.saturating_add(longer), wall.saturating_add(longer)),
        };
        let cluster = kept.cluster.or(newcomer.cluster);
        let renewed = Self { longest, ends, cluster, run_id: process.run_id.clone(), ..kept.clone() };
        (renewed != *kept).then(|| Change {
            head: format!("{:016x} {}", renewed.word, millis(longest)),
            wait: None,
            ends: format!("{} {}", ends.0, ends.1),
            wall: 0,
            rest: renewed.rest(),
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00000000000000af 10000 0 0 300000 - 1 run";

    fn record() -> Record {
        Record::parse(TEXT).expect("a record")
    }

    fn newcomer(longest: u64) -> Newcomer {
        Newcomer {
            word: 0xbee,
            longest: Duration::from_secs(longest),
            proven: Duration::from_secs(longest),
            window: Duration::from_secs(60),
            wall: 5_000_000,
            cluster: None,
        }
    }

    fn process(run_id: &str) -> Process {
        Process::new(run_id, 0, true, false)
    }

    #[test]
    fn a_record_reads_back_what_it_prints() {
        for text in [TEXT, "00000000000000af 10000 17 18 300000 00000000000000c1 0 run"] {
            assert_eq!(Record::parse(text).map(|record| record.to_string()).as_deref(), Some(text));
        }
        assert!(record().is_settled());
        assert_eq!(record().longest, Duration::from_secs(10));
    }

    #[test]
    fn what_is_no_record() {
        for text in [
            "",
            "x 10000 0 0 300000 - 1 run",
            "af 10000 0 0 300000 - 1",
            "af 10000 0 0 300000 - 2 run",
            "af 10000 0 0 300000 zz 1 run",
            "af -1 0 0 300000 - 1 run",
            "af 604800001 0 0 300000 - 1 run",
            "af 10000 0 0 300000 - 1 run more",
        ] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_run_id_is_cut() {
        assert_eq!(Process::new(&"a".repeat(40), 0, false, false).run_id, "a".repeat(RUN_ID_LENGTH));
        assert_eq!(Process::new(&"a".repeat(40), 3, false, false).run_id, "a".repeat(RUN_ID_LENGTH) + "/3");
    }

    #[test]
    fn nothing_is_due_at_the_process_that_the_record_holds_for() {
        assert_eq!(Record::due(Some(&record()), &process("run"), &newcomer(10)), None);
        let replica_once = Process::new("run", 0, false, true);
        assert_eq!(Record::due(Some(&record()), &replica_once, &newcomer(1)), None);
    }

    #[test]
    fn a_node_without_a_record_is_quarantined_for_the_longest_lease() {
        let change = Record::due(None, &process("run"), &newcomer(60)).expect("a record");
        assert_eq!(
            (change.head.as_str(), change.wait, change.wall),
            ("0000000000000bee 60000", Some(60_000), 5_060_001)
        );
        assert_eq!(change.rest, "60000 - 0 run");
        let known = Newcomer { cluster: Some(0xc1), ..newcomer(60) };
        assert_eq!(Record::due(None, &process("run"), &known).expect("a record").rest, "60000 00000000000000c1 0 run");
    }

    #[test]
    fn another_process_is_quarantined_for_the_longest_lease_of_any_client() {
        for (record, process) in [
            (Record { keeps: false, ..record() }, process("new")),
            (record(), Process::new("new", 0, false, false)),
            (record(), Process::new("new", 0, true, true)),
            (record(), Process::new("run", 1, true, false)),
        ] {
            let change = Record::due(Some(&record), &process, &newcomer(1)).expect("a record");
            assert_eq!((change.head.as_str(), change.wait), ("0000000000000bee 10000", Some(10_000)));
            assert!(change.rest.starts_with("300000 - 0 "), "the window stays, and is what ballots were kept by");
        }
    }

    #[test]
    fn a_process_that_kept_every_write_only_changes_its_run_id() {
        let waiting = Record { ends: (70, 80), ..record() };
        for (record, ends) in [(record(), "0 0"), (waiting, "70 80")] {
            let change = Record::due(Some(&record), &process("new"), &newcomer(1)).expect("a record");
            assert_eq!((change.head.as_str(), change.wait), ("00000000000000af 10000", None));
            assert_eq!((change.ends.as_str(), change.rest.as_str()), (ends, "300000 - 1 new"));
        }
    }

    #[test]
    fn a_longer_lease_makes_a_quarantine_longer() {
        let waiting = Record { ends: (70_000, 80_000), ..record() };
        let change = Record::due(Some(&waiting), &process("run"), &newcomer(60)).expect("a record");
        assert_eq!((change.head.as_str(), change.ends.as_str()), ("00000000000000af 60000", "120000 130000"));
        let change = Record::due(Some(&record()), &process("run"), &newcomer(60)).expect("a record");
        assert_eq!((change.head.as_str(), change.ends.as_str()), ("00000000000000af 60000", "0 0"));
    }

    #[test]
    fn a_node_gets_the_cluster_of_the_others() {
        let known = Newcomer { cluster: Some(0xc1), ..newcomer(1) };
        let change = Record::due(Some(&record()), &process("run"), &known).expect("a record");
        assert_eq!(change.rest, "300000 00000000000000c1 1 run");
        let declared = Record { cluster: Some(0xd2), ..record() };
        assert_eq!(Record::due(Some(&declared), &process("run"), &known), None, "a conflict is reported, not repaired");
    }
}
