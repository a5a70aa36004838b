use ::postgres::{Client, NoTls};

use super::{Entry, Error, OPENING_BALANCE, SEE, Store, Transfer, signed, unsigned, update};

/// Serializes the transactions, so that two that lock the same rows in another order do not deadlock, and the numbers of the
/// journal follow the order of its transactions.
const ONE_WRITER: &str = "LOCK TABLE account IN EXCLUSIVE MODE";

pub struct Postgres {
    client: Client,
    schema: String,
}

impl Postgres {
    pub fn open(url: &str, schema: &str) -> Result<Self, Error> {
        let mut client = Client::connect(url, NoTls)?;
        client.batch_execute(&format!("SET search_path TO {schema}"))?;
        Ok(Self { client, schema: schema.to_owned() })
    }
}

impl Store for Postgres {
    fn create(&mut self, accounts: usize) -> Result<(), Error> {
        let schema = &self.schema;
        let mut transaction = self.client.transaction()?;
        transaction.batch_execute(&format!(
            "CREATE SCHEMA {schema};
             CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, token bigint NOT NULL);
             CREATE TABLE journal (seq bigserial PRIMARY KEY, op bigint, debit bigint, credit bigint, amount bigint,
               debit_read bigint, credit_read bigint, debit_token bigint, credit_token bigint)"
        ))?;
        for account in 0..accounts {
            transaction.execute("INSERT INTO account VALUES ($1, $2, 0)", &[&signed(account), &OPENING_BALANCE])?;
        }
        Ok(transaction.commit()?)
    }

    fn read(&mut self, accounts: [usize; 2], tokens: Option<[i64; 2]>) -> Result<Option<[i64; 2]>, Error> {
        let mut transaction = self.client.transaction()?;
        if tokens.is_some() {
            transaction.batch_execute(ONE_WRITER)?;
        }
        for (account, token) in accounts.into_iter().zip(tokens.into_iter().flatten()) {
            if transaction.execute(SEE, &[&token, &signed(account)])? == 0 {
                return Ok(None);
            }
        }
        let mut balances = [0; 2];
        for (balance, account) in balances.iter_mut().zip(accounts) {
            let row = transaction.query_one("SELECT balance FROM account WHERE id = $1", &[&signed(account)])?;
            *balance = row.try_get(0)?;
        }
        transaction.commit()?;
        Ok(Some(balances))
    }

    fn write(&mut self, transfer: &Transfer, fenced: bool) -> Result<bool, Error> {
        let mut transaction = self.client.transaction()?;
        transaction.batch_execute(ONE_WRITER)?;
        for (account, balance, token) in transfer.results() {
            if transaction.execute(update(fenced), &[&balance, &token, &account])? == 0 {
                return Ok(false);
            }
        }
        let op = i64::try_from(transfer.op)?;
        let [debit_read, credit_read] = &transfer.balances;
        let [debit_token, credit_token] = &transfer.tokens;
        transaction.execute(
            "INSERT INTO journal (op, debit, credit, amount, debit_read, credit_read, debit_token, credit_token)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &[
                &op,
                &signed(transfer.from),
                &signed(transfer.to),
                &transfer.amount,
                debit_read,
                credit_read,
                debit_token,
                credit_token,
            ],
        )?;
        transaction.commit()?;
        Ok(true)
    }

    fn audit(&mut self) -> Result<(Vec<i64>, Vec<Entry>), Error> {
        let mut transaction = self.client.build_transaction().read_only(true).start()?;
        let balances = transaction
            .query("SELECT balance FROM account ORDER BY id", &[])?
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        let rows = transaction.query(
            "SELECT op, debit, credit, amount, debit_read, credit_read, debit_token, credit_token
             FROM journal ORDER BY seq",
            &[],
        )?;
        let mut journal = Vec::with_capacity(rows.len());
        for row in &rows {
            journal.push(Entry {
                op: u64::try_from(row.try_get::<_, i64>(0)?)?,
                accounts: [unsigned(row.try_get(1)?), unsigned(row.try_get(2)?)],
                amount: row.try_get(3)?,
                balances: [row.try_get(4)?, row.try_get(5)?],
                tokens: [row.try_get(6)?, row.try_get(7)?],
            });
        }
        Ok((balances, journal))
    }

    fn remove(&mut self) -> Result<(), Error> {
        Ok(self.client.batch_execute(&format!("DROP SCHEMA {} CASCADE", self.schema))?)
    }
}
