-- Refuses older fencing tokens in MySQL and MariaDB. Run this file once, by the command line client, in the database of the data.
--
--     START TRANSACTION;
--     CALL fence('account:42', 1764177000000001);   -- the name of the lock, guard.token()
--     SELECT balance FROM account WHERE id = 42;
--     UPDATE account SET balance = 90 WHERE id = 42;
--     COMMIT;
--
-- fence() stores the token, or fails with SQLSTATE STALE when a larger one is stored: roll back. It keeps the row of the lock
-- locked until the end of the transaction, so fenced transactions of one lock run one after the other.
--
-- * Every transaction under the lock calls fence() first, also one that only reads before a later write. With autocommit and
--   no transaction the row is locked for the call alone, and an older holder can write after it.
-- * Any isolation level will do if fence() is the first statement. Under REPEATABLE READ, the default, the first plain SELECT
--   takes the snapshot that all later ones read. If it stood before fence(), the reads after fence() could be older than the
--   last write. For the same reason, do not start the transaction WITH CONSISTENT SNAPSHOT.
-- * The data must be in tables of InnoDB.
-- * Do not delete rows: without its row, any token of a lock passes.

-- VARBINARY compares bytes. In a text column, 'Job' and 'job ' could be one name.
CREATE TABLE IF NOT EXISTS fencing_token (
  resource VARBINARY(500) PRIMARY KEY,
  token BIGINT NOT NULL CHECK (token > 0)
) ENGINE = InnoDB;

DROP PROCEDURE IF EXISTS fence;
DELIMITER //
CREATE PROCEDURE fence(for_resource VARBINARY(500), new_token BIGINT)
BEGIN
  DECLARE largest BIGINT;
  INSERT INTO fencing_token VALUES (for_resource, new_token)
    ON DUPLICATE KEY UPDATE token = GREATEST(token, new_token);
  SELECT token INTO largest FROM fencing_token WHERE resource = for_resource FOR UPDATE;
  IF largest > new_token THEN
    SIGNAL SQLSTATE 'STALE' SET MESSAGE_TEXT = 'stale fencing token';
  END IF;
END //
DELIMITER ;
