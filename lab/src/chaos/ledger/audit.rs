//! Compares the balances with the journal. Pure.

use serde::Serialize;

use super::OPENING_BALANCE;

/// An accepted transfer, as the database recorded it in the transaction that changed the balances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub op: u64,
    /// The two accounts, from and to.
    pub accounts: [usize; 2],
    pub amount: i64,
    /// The balances that the writer had read.
    pub balances: [i64; 2],
    pub tokens: [i64; 2],
}

/// The result of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    pub accounts: usize,
    pub transfers: usize,
    /// The expected and the actual sum of all balances.
    pub opened_with: i64,
    pub closed_with: i64,
    /// Accounts whose balance differs from the result of the journal's transfers.
    pub wrong_balances: usize,
    /// Balances that were replaced by a writer that had read an older one.
    pub lost_updates: usize,
    /// Writes that were accepted although their account had seen a larger token.
    pub stale_accepted: usize,
}

impl Audit {
    /// Follows the journal, account by account.
    pub fn of(balances: &[i64], journal: &[Entry]) -> Self {
        let opened_with = OPENING_BALANCE * i64::try_from(balances.len()).unwrap_or(0);
        let mut due = vec![OPENING_BALANCE; balances.len()];
        let mut shown = due.clone();
        let mut largest = vec![0; balances.len()];
        let mut audit = Self {
            accounts: balances.len(),
            transfers: journal.len(),
            opened_with,
            closed_with: balances.iter().sum(),
            ..Self::default()
        };
        for entry in journal {
            for (side, sign) in [(0, -1), (1, 1)] {
                let account = entry.accounts[side];
                if entry.balances[side] != shown[account] {
                    audit.lost_updates += 1;
                }
                if entry.tokens[side] < largest[account] {
                    audit.stale_accepted += 1;
                }
                shown[account] = entry.balances[side] + sign * entry.amount;
                due[account] += sign * entry.amount;
                largest[account] = largest[account].max(entry.tokens[side]);
            }
        }
        audit.wrong_balances = due.iter().zip(balances).filter(|(due, is)| due != is).count();
        audit
    }

    /// Returns whether no update was lost and the sum is unchanged.
    pub fn is_sound(&self) -> bool {
        self.opened_with == self.closed_with && self.wrong_balances == 0 && self.lost_updates == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(amount: i64, balances: [i64; 2], token: i64) -> Entry {
        Entry { op: 0, accounts: [0, 1], amount, balances, tokens: [token; 2] }
    }

    #[test]
    fn an_audit_accepts_correct_books() {
        let audit = Audit::of(&[970, 1030, 1000], &[entry(10, [1000, 1000], 1), entry(20, [990, 1010], 2)]);
        assert!(audit.is_sound());
        assert_eq!((audit.transfers, audit.stale_accepted), (2, 0));
    }

    #[test]
    fn an_audit_finds_a_lost_update() {
        let audit = Audit::of(&[980, 1020], &[entry(10, [1000, 1000], 1), entry(20, [1000, 1000], 2)]);
        assert_eq!((audit.lost_updates, audit.wrong_balances), (2, 2));
        assert!(!audit.is_sound(), "though the sum is right");
    }

    #[test]
    fn an_audit_finds_an_accepted_stale_write() {
        let audit = Audit::of(&[970, 1030], &[entry(10, [1000, 1000], 2), entry(20, [990, 1010], 1)]);
        assert_eq!(audit.stale_accepted, 2);
    }

    #[test]
    fn an_audit_finds_money_from_no_transfer() {
        assert!(!Audit::of(&[1000, 1010], &[]).is_sound());
    }
}
