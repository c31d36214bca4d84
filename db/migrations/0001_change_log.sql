-- What changed, so that whoever watches hears of it (docs/events.md). Triggers write it, which the next migrations add one by one:
-- each takes the lock of one table.

CREATE TYPE change_kind AS ENUM ('instance', 'operation', 'migration', 'project', 'sled', 'audit', 'token');

CREATE TABLE change_log (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  kind change_kind NOT NULL,
  object_id uuid NOT NULL,
  -- NULL: it is the fleet's.
  project_id uuid,
  changed_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
  time_noted timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX change_log_changed ON change_log (changed_in);

CREATE TABLE change_horizon (
  singleton boolean PRIMARY KEY DEFAULT true,
  forgotten_to xid8 NOT NULL DEFAULT '0',
  database_history text NOT NULL DEFAULT '',
  CONSTRAINT change_horizon_one_row CHECK (singleton)
);
INSERT INTO change_horizon (database_history) VALUES (database_history());

-- Keeps the log small, a thousand rows at a time. Who holds the horizon forgets; nobody waits for him.
CREATE FUNCTION forget_changes(up_to bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM change_horizon FOR UPDATE SKIP LOCKED;
  IF FOUND THEN
    WITH gone AS (DELETE FROM change_log WHERE id <= up_to RETURNING changed_in)
    UPDATE change_horizon SET forgotten_to = newest.changed_in
    FROM (SELECT changed_in FROM gone ORDER BY changed_in DESC LIMIT 1) newest
    WHERE newest.changed_in > forgotten_to;
  END IF;
END $$;

-- Notes a change, and wakes those who watch: at most about once a second, since a commit that notifies waits for every other one
-- that does. Whoever was woken looks by himself for longer than that. It only ever inserts: no two writers wait for each other.
CREATE FUNCTION note_change(of_kind change_kind, of_object uuid, of_project uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  noted bigint;
  last_noted timestamptz := (SELECT time_noted FROM change_log ORDER BY id DESC LIMIT 1);
BEGIN
  INSERT INTO change_log (kind, object_id, project_id) VALUES (of_kind, of_object, of_project) RETURNING id INTO noted;
  IF last_noted IS NULL OR abs(extract(epoch FROM clock_timestamp() - last_noted)) > 1 THEN
    PERFORM pg_notify('mooring_changed', '');
  END IF;
  IF noted % 1000 = 0 THEN
    PERFORM forget_changes(noted - 200000);
  END IF;
END $$;
