-- The embedded queue, version 2 (PRAGMA user_version): the elements of the data structures that queue.lua works on.
-- kind: 0 text, 1 hash, 2 set, 3 sorted set (value is the score), 4 list (field is the place).
CREATE TABLE items (
    key TEXT NOT NULL,
    field TEXT NOT NULL,
    kind INTEGER NOT NULL,
    value ANY,
    PRIMARY KEY (key, field)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
