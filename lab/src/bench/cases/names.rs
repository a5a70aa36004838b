//! Names that are locked only once: what each leaves on a node, and for how long.

use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;

use super::{Case, TARGET_NODES, find_none};
use crate::bench::Bench;
use crate::bench::lockers::{Locker as _, Ours, lock_prefix};
use crate::bench::measure::number;
use crate::bench::report::{Entry, Report, Target};
use crate::exit::Failure;

const NAMES: usize = 20_000;
/// The number of names that are locked at the same time.
const AT_ONCE: usize = 64;
/// Twice the default window within which a node accepts ballots.
const KEPT_AT_MOST: Duration = Duration::from_secs(600);

pub fn measure(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), Failure> {
    let nodes = bench.nodes();
    let urls = bench.fleet().urls(nodes);
    let ours = Arc::new(bench.runtime.block_on(Ours::connect(&urls))?);
    let used_before = bench.fleet().used_memory(nodes)?;
    let began = Instant::now();
    let failed = bench.runtime.block_on(async {
        let cycles = stream::iter(0..NAMES).map(|i| {
            let mut ours = (*ours).clone();
            async move {
                let hold = ours.acquire(&format!("names:{i}")).await?;
                ours.release(hold).await.then_some(())
            }
        });
        let done = cycles.buffer_unordered(AT_ONCE).filter_map(ready).count().await;
        (*ours).clone().settle().await;
        NAMES - done
    });
    let took = began.elapsed();
    let left = bench.fleet().used_memory(nodes)?.saturating_sub(used_before);
    let ballot = format!("quorlock:ballot:{}names:0", lock_prefix(nodes));
    let lives = bench.fleet().time_to_live(nodes, &ballot)?;

    let mut entry = Entry::new(Case::Names, nodes, "quorlock");
    let bytes = number(usize::try_from(left).unwrap_or(usize::MAX)) / number(nodes) / number(NAMES);
    let minutes = lives / 60.0;
    entry.add("names", NAMES);
    entry.add("names_per_s", number(NAMES) / took.as_secs_f64());
    entry.add("failed", failed);
    entry.add("bytes_per_name_and_node", bytes);
    entry.add("kept_min", minutes);
    let targeted = |target| (nodes == TARGET_NODES).then_some(target);
    find_none(&mut entry, format!("{NAMES} names, each locked once: not granted"), failed);
    entry.find(format!("{NAMES} names, each locked once: left on a node"), bytes, " bytes each", None);
    let limit = Target::AtMost(KEPT_AT_MOST.as_secs_f64() / 60.0);
    entry.find(format!("{NAMES} names, each locked once: gone after"), minutes, " min", targeted(limit));
    report.add(entry);
    Ok(())
}
