//! `release.lua`, `inspect.lua` and `record.lua`, reimplemented in Rust.

use super::resource_state::ResourceState;
use super::resp::Reply;
use super::rules::Rules;
use super::script_args::{Record, Release, millis, number, replaced};
use super::{Data, Store};

/// ms
const LONGEST_LEASE: f64 = 604_800_000.0;

/// `publish` returns how many connections received a message on a channel.
pub fn release(
    store: &mut Store,
    rules: &Rules,
    keys: &[&[u8]],
    argv: &[&[u8]],
    now: u64,
    publish: &mut dyn FnMut(&[u8], &[u8]) -> usize,
) -> Reply {
    let Some(asked) = Release::parse(argv) else { return Reply::Error("ERR too few arguments".to_owned()) };
    let memory = if rules.forgets_ballots { 1 } else { millis(asked.memory) };
    let stored: Vec<Option<Vec<u8>>> = keys.iter().map(|key| store.text(key, now).map(<[u8]>::to_vec)).collect();
    // The usual case has little work, and a short answer.
    let is_plain = keys.len() == 2
        && stored[0].as_deref() == Some(asked.value)
        && stored[1].as_deref() == Some(asked.ballot_value);
    if is_plain && !rules.releases_without_ballot {
        store.remove(keys[0]);
        store.set(keys[1], asked.sent.to_vec(), memory, now);
        return Reply::Int(1);
    }
    let mut answer = vec![Reply::Int(now.cast_signed())];
    let mut is_free = vec![false; keys.len() / 2];
    let mut states = Vec::new();
    for (i, (pair, one)) in keys.chunks_exact(2).zip(&asked.resources).enumerate() {
        let lock = pair[0];
        let (value, text) = (stored[2 * i].as_deref(), stored[2 * i + 1].as_deref());
        let mut state = ResourceState::at(pair[1], text);
        let head = [b"ql1 ", one.token, b" ", asked.owner, b" "].concat();
        let is_last =
            state.as_ref().and_then(|state| state.last.as_ref()).is_some_and(|(_, last)| last.starts_with(&head));
        let has_shares = |value: &[u8]| value.get(head.len()..).is_some_and(|shares| shares.contains(&b' '));
        let mut honoured = 0;
        match value {
            _ if one.token == b"0" => {
                honoured = 1;
                is_free[i] = store.data(lock, now).is_none();
            }
            None => {
                is_free[i] = store.data(lock, now).is_none();
                let floor = match &state {
                    Some(state) if state.highest > 0.0 => state.highest,
                    _ => now as f64 - number(asked.memory) * 500.0,
                };
                honoured = i64::from(is_free[i] && (is_last || number(one.known) >= floor));
            }
            Some(value) if value.starts_with(&head) => {
                honoured = 1;
                let rest = replaced(value, one.share, b"");
                if !has_shares(rest.as_deref().unwrap_or(value)) {
                    store.remove(lock);
                    is_free[i] = true;
                } else if let Some(rest) = rest {
                    store.keep(lock, rest);
                }
            }
            Some(_) if rules.releases_blindly => store.remove(lock),
            Some(_) => {}
        }
        answer.push(Reply::Int(honoured));
        if let Some(state) = &mut state {
            let last = state.last.clone().filter(|_| is_last);
            if let Some((end, last)) = last {
                let rest = replaced(&last, one.share, b"");
                if !has_shares(rest.as_deref().unwrap_or(&last)) || rules.forgets_other_shares {
                    state.set_last(None);
                } else if let Some(rest) = rest {
                    state.set_last(Some((end, rest)));
                }
            } else if rules.any_release_forgets && one.token != b"0" && state.last.is_some() && value.is_none() {
                state.set_last(None);
            }
        }
        states.push(state);
    }
    for (i, (state, one)) in states.into_iter().zip(&asked.resources).enumerate() {
        let Some(mut state) = state else { continue };
        if one.token != b"0" && !rules.releases_without_ballot {
            let window = number(asked.memory) * 500.0;
            let is_open = state.highest == 0.0 && !rules.remembers_small_ballots;
            let floor = if is_open { now as f64 - window } else { 0.0 };
            let most = now as f64 + window;
            if number(asked.sent) > floor {
                state.raise_ballot(number(asked.sent).min(most));
            }
        }
        if one.keeps_place {
            state.enqueue(store, one.ticket, now);
        } else {
            state.dequeue(one.ticket);
        }
        if is_free[i] && state.reserved_from(b"-", now) == 0 {
            state.call_next(store, now, publish);
        }
        state.write(store, memory, None, now);
    }
    Reply::Array(answer)
}

pub fn inspect(store: &mut Store, keys: &[&[u8]], now: u64) -> Reply {
    let &[lock, ballot] = keys else { return Reply::Error("ERR wrong number of keys".to_owned()) };
    let kind = match store.data(lock, now) {
        None => "none",
        Some(Data::Text(_)) => "string",
        Some(Data::Queue(_)) => "zset",
        Some(Data::Other(kind)) => kind,
    };
    let text = |store: &mut Store, key, most: usize| {
        let value = store.text(key, now).unwrap_or_default();
        Reply::bulk(&value[..value.len().min(most)])
    };
    Reply::Array(vec![
        Reply::Int(now.cast_signed()),
        Reply::bulk(kind),
        text(store, lock, 4096),
        Reply::Int(store.pttl(lock, now)),
        text(store, ballot, 4127),
    ])
}

/// record.lua.
pub fn record(store: &mut Store, rules: &Rules, keys: &[&[u8]], argv: &[&[u8]], now: u64) -> Reply {
    let (&[key, list], &[seen, head, wait, ends, wall, rest, nodes]) = (keys, argv) else {
        return Reply::Error("ERR too few arguments".to_owned());
    };
    let stored = store.text(key, now).unwrap_or_default().to_vec();
    let mut text = stored.clone();
    let is_record = Record::parse(&stored).is_some_and(|record| record.longest <= LONGEST_LEASE);
    if stored == seen || (seen.is_empty() && !is_record) {
        let begins = !wait.is_empty() && !rules.no_quarantine;
        let ends = if begins {
            let till = now.div_ceil(1000) as f64 + number(wait);
            let wall = if rules.quarantine_by_node_clock { 0.0 } else { till.max(number(wall)) };
            format!("{till:.0} {wall:.0}").into_bytes()
        } else {
            ends.to_vec()
        };
        text = [head, b" ", &ends, b" ", rest].concat();
        store.put(key, Data::Text(text.clone()), None, now);
    }
    let mut listed = store.text(list, now).map(<[u8]>::to_vec);
    if !nodes.is_empty() && listed.is_none() {
        store.put(list, Data::Text(nodes.to_vec()), None, now);
        listed = Some(nodes.to_vec());
    }
    Reply::Array(vec![Reply::Bulk(text), Reply::Bulk(listed.unwrap_or_default())])
}
