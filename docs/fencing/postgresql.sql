-- Refuses older fencing tokens in PostgreSQL. Run this file once in the database of the data.
--
--     BEGIN;
--     SELECT fence('account:42', 1764177000000001);   -- the name of the lock, guard.token()
--     SELECT balance FROM account WHERE id = 42;
--     UPDATE account SET balance = 90 WHERE id = 42;
--     COMMIT;
--
-- fence() stores the token, or fails the transaction with SQLSTATE STALE when a larger one is stored. It keeps the row of the
-- lock locked until the end of the transaction, so fenced transactions of one lock run one after the other.
--
-- * Every transaction under the lock calls fence() first, in a statement of its own, also one that only reads before a later
--   write. Outside of a transaction the row is locked for the call alone, and an older holder can write after it.
-- * Any isolation level will do. Under READ COMMITTED, the default, each statement after fence() sees what the transactions
--   before it have committed. Under REPEATABLE READ and SERIALIZABLE one snapshot serves the whole transaction. If another
--   transaction has passed fence() since that snapshot, fence() fails with SQLSTATE 40001: roll back, and run it again.
-- * Do not delete rows: without its row, any token of a lock passes.

CREATE TABLE IF NOT EXISTS fencing_token (
  resource text PRIMARY KEY,
  token bigint NOT NULL CHECK (token > 0)
);

CREATE OR REPLACE FUNCTION fence(for_resource text, new_token bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO fencing_token AS stored VALUES (for_resource, new_token)
    ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE stored.token <= excluded.token;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'stale fencing token % for %', new_token, for_resource USING ERRCODE = 'STALE';
  END IF;
END $$;
