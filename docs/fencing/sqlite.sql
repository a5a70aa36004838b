-- Refuses older fencing tokens in SQLite (3.37 or newer). Run this file once in the database of the data.
--
--     BEGIN IMMEDIATE;
--     REPLACE INTO fence VALUES ('account:42', 1764177000000001);   -- the name of the lock, guard.token()
--     SELECT balance FROM account WHERE id = 42;
--     UPDATE account SET balance = 90 WHERE id = 42;
--     COMMIT;
--
-- REPLACE stores the token. When a larger one is stored, it fails with "stale fencing token" and rolls the transaction back.
--
-- * Every transaction under the lock starts like this, also one that only reads before a later write. Outside of a transaction
--   another connection can write between REPLACE and the statement after it.
-- * SQLite has one isolation level, serializable, and one writer at a time. BEGIN IMMEDIATE waits for the writer before it
--   (set a busy timeout), so every read is newer than the last write.
-- * Do not delete rows: without its row, any token of a lock passes.

CREATE TABLE IF NOT EXISTS fence (
  resource TEXT PRIMARY KEY NOT NULL,
  token INTEGER NOT NULL CHECK (token > 0)
) STRICT;

CREATE TRIGGER IF NOT EXISTS fence_refuses_older_tokens BEFORE INSERT ON fence
WHEN NEW.token < (SELECT token FROM fence WHERE resource = NEW.resource)
BEGIN
  SELECT RAISE(ROLLBACK, 'stale fencing token');
END;
