-- The embedded queue, version 1 (PRAGMA user_version). States are numbered as in rows.rs.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    state INTEGER NOT NULL,
    class TEXT NOT NULL,
    -- (500 - priority) << 43 | seq: the order of claims, exact.
    score INTEGER NOT NULL,
    -- The order of submission.
    seq INTEGER NOT NULL UNIQUE,
    service TEXT NOT NULL,
    idempotency_key TEXT,
    submission TEXT NOT NULL,
    submitted INTEGER NOT NULL,
    due INTEGER,
    claimed INTEGER,
    -- When the running attempt's time is over.
    deadline INTEGER,
    finished INTEGER,
    worker TEXT,
    incarnation TEXT,
    claims INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    losses INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    avoid TEXT NOT NULL DEFAULT '[]',
    progress TEXT,
    result TEXT,
    failure TEXT,
    saved TEXT,
    history TEXT NOT NULL DEFAULT '[]'
) STRICT;
CREATE INDEX jobs_ready ON jobs (class, score) WHERE state = 1;
CREATE INDEX jobs_age ON jobs (submitted) WHERE state = 1;
CREATE INDEX jobs_due ON jobs (due) WHERE state = 0;
CREATE INDEX jobs_held ON jobs (incarnation) WHERE state = 2;
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE state = 2;
CREATE INDEX jobs_finished ON jobs (finished) WHERE state > 2;
CREATE INDEX jobs_state ON jobs (state, seq);
CREATE UNIQUE INDEX jobs_key ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE classes (id TEXT PRIMARY KEY, definition TEXT NOT NULL) STRICT;
CREATE TABLE workers (
    incarnation TEXT PRIMARY KEY,
    worker TEXT NOT NULL,
    lease INTEGER NOT NULL,
    capabilities TEXT NOT NULL
) STRICT;
CREATE TABLE events (
    job TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;

-- How many jobs are in each state, kept by the database itself so that it is never wrong and never counted.
CREATE TABLE counts (state INTEGER PRIMARY KEY, n INTEGER NOT NULL) STRICT;
INSERT INTO counts VALUES (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0);
CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
    UPDATE counts SET n = n + 1 WHERE state = new.state;
END;
CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN old.state <> new.state BEGIN
    UPDATE counts SET n = n - 1 WHERE state = old.state;
    UPDATE counts SET n = n + 1 WHERE state = new.state;
END;
CREATE TRIGGER jobs_dropped AFTER DELETE ON jobs BEGIN
    UPDATE counts SET n = n - 1 WHERE state = old.state;
    DELETE FROM events WHERE job = old.id;
END;
PRAGMA user_version = 1;
