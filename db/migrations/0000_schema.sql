-- The database of section 2 of docs/design.md: `db/schema.ts` says the same tables to the code, and `test/database/schema.test.ts`
-- holds the two against each other. What a check constraint cannot see stands below the tables, as triggers.

-- === Types: the enumerations of model/states.ts and model/access.ts ===

CREATE TYPE instance_state AS ENUM ('creating', 'no_vmm', 'vmm', 'failed', 'destroyed');
CREATE TYPE intended_state AS ENUM ('running', 'stopped', 'guest_shutdown', 'destroyed');
CREATE TYPE vmm_state AS ENUM ('creating', 'starting', 'running', 'stopping', 'stopped', 'rebooting', 'migrating', 'failed', 'destroyed', 'saga_unwound');
CREATE TYPE migration_state AS ENUM ('pending', 'in_progress', 'completed', 'failed');
CREATE TYPE reservation_kind AS ENUM ('active', 'target', 'tombstoned');
CREATE TYPE sled_policy AS ENUM ('in_service', 'no_provision', 'expunged');
CREATE TYPE auto_restart_policy AS ENUM ('never', 'best_effort');
CREATE TYPE start_reason AS ENUM ('user', 'auto_restart');
CREATE TYPE operation_kind AS ENUM ('start', 'migrate');
CREATE TYPE restart_priority AS ENUM ('critical', 'normal', 'low');
CREATE TYPE death_cause AS ENUM ('lease', 'operator');
CREATE TYPE keyed_call AS ENUM ('create', 'start', 'migrate');
CREATE TYPE access_role AS ENUM ('viewer', 'collaborator', 'admin');
CREATE TYPE audit_actor AS ENUM ('operator', 'local', 'sled', 'system', 'database');
CREATE TYPE audit_result AS ENUM ('success', 'error', 'unknown');
CREATE TYPE affinity_kind AS ENUM ('affinity', 'anti_affinity');
CREATE TYPE affinity_policy AS ENUM ('allow', 'fail');
CREATE TYPE failure_domain AS ENUM ('sled');

-- === Tables, each with its indexes ===

CREATE TABLE project (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  description text NOT NULL,
  quota_cpus integer,
  quota_memory_bytes bigint,
  charged_cpus integer NOT NULL DEFAULT 0,
  charged_memory_bytes bigint NOT NULL DEFAULT 0,
  time_created timestamptz NOT NULL DEFAULT now(),
  time_modified timestamptz NOT NULL DEFAULT now(),
  time_deleted timestamptz,
  CONSTRAINT project_charged_not_negative CHECK (charged_cpus >= 0 AND charged_memory_bytes >= 0)
);
CREATE UNIQUE INDEX project_name ON project (name) WHERE time_deleted IS NULL;

CREATE TABLE sled (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  address text NOT NULL,
  threads integer NOT NULL,
  memory_bytes bigint NOT NULL,
  policy sled_policy NOT NULL DEFAULT 'in_service',
  identified boolean NOT NULL DEFAULT false,
  reserved_threads integer NOT NULL DEFAULT 0,
  reserved_memory_bytes bigint NOT NULL DEFAULT 0,
  lease_ms integer,
  lease_renewed_at timestamptz,
  lease_confirmed_at timestamptz,
  fencing_since timestamptz,
  lease_epoch bigint NOT NULL DEFAULT 0,
  time_declared_dead timestamptz,
  declared_dead_by death_cause,
  last_answered_at timestamptz,
  silent_since timestamptz,
  agent_id uuid,
  kept_agent_id uuid,
  agent_version text,
  agent_trouble text[] NOT NULL DEFAULT '{}'::text[],
  another_answers boolean DEFAULT false NOT NULL,
  cpu_models text[],
  time_created timestamptz NOT NULL DEFAULT now(),
  time_modified timestamptz NOT NULL DEFAULT now(),
  time_expunged timestamptz,
  expunging_since timestamptz,
  CONSTRAINT sled_kept_agent CHECK (kept_agent_id IS NULL OR kept_agent_id IS NOT DISTINCT FROM agent_id),
  CONSTRAINT sled_capacity CHECK (reserved_threads <= threads AND reserved_memory_bytes <= memory_bytes),
  CONSTRAINT sled_reserved_not_negative CHECK (reserved_threads >= 0 AND reserved_memory_bytes >= 0),
  CONSTRAINT sled_lease_whole CHECK (num_nulls(lease_ms, lease_renewed_at, fencing_since) IN (0, 3)),
  CONSTRAINT sled_lease_length CHECK (lease_ms >= 1),
  CONSTRAINT sled_death_whole CHECK ((time_declared_dead IS NULL) = (declared_dead_by IS NULL)),
  CONSTRAINT sled_expunged_time CHECK ((policy = 'expunged') = (time_expunged IS NOT NULL)),
  CONSTRAINT sled_expunging CHECK (expunging_since IS NULL OR policy <> 'in_service')
);
CREATE UNIQUE INDEX sled_name ON sled (name) WHERE policy <> 'expunged';
CREATE UNIQUE INDEX sled_address ON sled (address) WHERE policy <> 'expunged';
-- One host is one sled, however its address is written.
CREATE UNIQUE INDEX sled_agent ON sled (agent_id) WHERE policy <> 'expunged';

CREATE TABLE sled_invite (
  id uuid PRIMARY KEY,
  sled_name text NOT NULL,
  secret_hash text NOT NULL,
  time_created timestamptz NOT NULL DEFAULT now(),
  time_expires timestamptz NOT NULL,
  time_used timestamptz,
  sled_id uuid CONSTRAINT sled_invite_sled_id_sled_id_fk REFERENCES sled (id),
  key_fingerprint text,
  CONSTRAINT sled_invite_used CHECK (num_nulls(time_used, sled_id, key_fingerprint) IN (0, 3))
);
CREATE UNIQUE INDEX sled_invite_secret ON sled_invite (secret_hash);

CREATE TABLE sled_certificate (
  serial text PRIMARY KEY,
  sled_id uuid NOT NULL CONSTRAINT sled_certificate_sled_id_sled_id_fk REFERENCES sled (id),
  time_issued timestamptz NOT NULL DEFAULT now(),
  time_expires timestamptz NOT NULL,
  time_revoked timestamptz
);
CREATE INDEX sled_certificate_sled ON sled_certificate (sled_id);

CREATE TABLE instance (
  id uuid PRIMARY KEY,
  project_id uuid NOT NULL CONSTRAINT instance_project_id_project_id_fk REFERENCES project (id),
  name text NOT NULL,
  description text NOT NULL,
  hostname text NOT NULL,
  ncpus integer NOT NULL,
  memory_bytes bigint NOT NULL,
  state instance_state NOT NULL,
  -- They refer to tables that refer to this one: their foreign keys stand below.
  active_vmm_id uuid,
  target_vmm_id uuid,
  migration_id uuid,
  state_generation bigint NOT NULL DEFAULT 1,
  intended_state intended_state NOT NULL,
  auto_restart_policy auto_restart_policy,
  auto_restart_cooldown_seconds integer NOT NULL DEFAULT 300,
  time_last_auto_restarted timestamptz,
  time_auto_restarted_before timestamptz,
  restart_priority restart_priority NOT NULL DEFAULT 'normal',
  last_start_reason start_reason,
  time_state_updated timestamptz NOT NULL DEFAULT now(),
  time_created timestamptz NOT NULL DEFAULT now(),
  time_modified timestamptz NOT NULL DEFAULT now(),
  time_deleted timestamptz,
  CONSTRAINT instance_vmm_iff_active CHECK ((state = 'vmm') = (active_vmm_id IS NOT NULL)),
  CONSTRAINT instance_target_iff_migration CHECK ((target_vmm_id IS NOT NULL) = (migration_id IS NOT NULL)),
  CONSTRAINT instance_target_needs_vmm CHECK (target_vmm_id IS NULL OR state = 'vmm'),
  CONSTRAINT instance_destroyed_is_deleted CHECK (state <> 'destroyed' OR time_deleted IS NOT NULL),
  CONSTRAINT instance_size CHECK (ncpus >= 1 AND memory_bytes >= 1),
  CONSTRAINT instance_generation CHECK (state_generation >= 1)
);
CREATE UNIQUE INDEX instance_name ON instance (project_id, name) WHERE time_deleted IS NULL;
CREATE INDEX instance_list ON instance (project_id, id) WHERE time_deleted IS NULL;
CREATE UNIQUE INDEX instance_active_vmm ON instance (active_vmm_id) WHERE active_vmm_id IS NOT NULL;
CREATE UNIQUE INDEX instance_target_vmm ON instance (target_vmm_id) WHERE target_vmm_id IS NOT NULL;
-- What the updater scan looks for, so that it costs the same whatever the number of instances.
CREATE INDEX instance_migrating ON instance (id) WHERE migration_id IS NOT NULL;
CREATE INDEX instance_ending ON instance (id) WHERE state = 'vmm' AND (intended_state <> 'running' OR time_deleted IS NOT NULL);
CREATE INDEX instance_failed_list ON instance (project_id, name) WHERE state = 'failed' AND time_deleted IS NULL;
CREATE INDEX instance_failed ON instance (id) WHERE state = 'failed' AND time_deleted IS NULL;
CREATE INDEX instance_auto_restart ON instance (id)
  WHERE intended_state = 'running' AND last_start_reason = 'auto_restart' AND time_deleted IS NULL;
-- What the reaper looks for, the oldest first; and what a project that was deleted still has.
CREATE INDEX instance_deleted ON instance (time_deleted) WHERE time_deleted IS NOT NULL;
CREATE INDEX instance_deleted_project ON instance (project_id) WHERE time_deleted IS NOT NULL;

CREATE TABLE vmm (
  id uuid PRIMARY KEY,
  instance_id uuid NOT NULL CONSTRAINT vmm_instance_id_instance_id_fk REFERENCES instance (id),
  sled_id uuid CONSTRAINT vmm_sled_id_sled_id_fk REFERENCES sled (id),
  ip text,
  port integer,
  state vmm_state NOT NULL,
  state_generation bigint NOT NULL DEFAULT 1,
  unwinding_since timestamptz,
  failure_reason text,
  cpu_model text,
  commanded_at timestamptz,
  vouched_gone_at timestamptz,
  time_state_updated timestamptz NOT NULL DEFAULT now(),
  time_created timestamptz NOT NULL DEFAULT now(),
  time_deleted timestamptz,
  CONSTRAINT vmm_failed_iff_reason CHECK ((state = 'failed') = (failure_reason IS NOT NULL)),
  CONSTRAINT vmm_placed CHECK (state = 'saga_unwound' OR (sled_id IS NOT NULL AND ip IS NOT NULL AND port IS NOT NULL)),
  CONSTRAINT vmm_unwound_was_unwinding CHECK (state <> 'saga_unwound' OR unwinding_since IS NOT NULL),
  CONSTRAINT vmm_generation CHECK (state_generation >= 1)
);
CREATE INDEX vmm_instance ON vmm (instance_id) WHERE time_deleted IS NULL;
CREATE INDEX vmm_sled ON vmm (sled_id) WHERE time_deleted IS NULL;
-- An instance's history, and whether anything is left of an instance that is reaped.
CREATE INDEX vmm_history ON vmm (instance_id, time_created);
CREATE INDEX vmm_deleted ON vmm (time_deleted) WHERE time_deleted IS NOT NULL;
CREATE INDEX vmm_gone ON vmm (instance_id) WHERE time_deleted IS NULL AND state IN ('destroyed', 'failed', 'saga_unwound');
CREATE UNIQUE INDEX vmm_address ON vmm (ip, port) WHERE time_deleted IS NULL AND state NOT IN ('destroyed', 'failed', 'saga_unwound');

CREATE TABLE migration (
  id uuid PRIMARY KEY,
  instance_id uuid NOT NULL CONSTRAINT migration_instance_id_instance_id_fk REFERENCES instance (id),
  source_vmm_id uuid NOT NULL CONSTRAINT migration_source_vmm_id_vmm_id_fk REFERENCES vmm (id),
  target_vmm_id uuid NOT NULL CONSTRAINT migration_target_vmm_id_vmm_id_fk REFERENCES vmm (id),
  source_state migration_state NOT NULL DEFAULT 'pending',
  source_generation bigint NOT NULL DEFAULT 1,
  time_source_updated timestamptz,
  target_state migration_state NOT NULL DEFAULT 'pending',
  target_generation bigint NOT NULL DEFAULT 1,
  time_target_updated timestamptz,
  time_created timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT migration_two_vmms CHECK (source_vmm_id <> target_vmm_id)
);
CREATE INDEX migration_instance ON migration (instance_id);
CREATE INDEX migration_source ON migration (source_vmm_id);
CREATE UNIQUE INDEX migration_target ON migration (target_vmm_id);
CREATE INDEX migration_created ON migration (time_created);

ALTER TABLE instance
  ADD CONSTRAINT instance_active_vmm_id_vmm_id_fk FOREIGN KEY (active_vmm_id) REFERENCES vmm (id),
  ADD CONSTRAINT instance_target_vmm_id_vmm_id_fk FOREIGN KEY (target_vmm_id) REFERENCES vmm (id),
  ADD CONSTRAINT instance_migration_id_migration_id_fk FOREIGN KEY (migration_id) REFERENCES migration (id);

CREATE TABLE sled_reservation (
  vmm_id uuid PRIMARY KEY CONSTRAINT sled_reservation_vmm_id_vmm_id_fk REFERENCES vmm (id),
  instance_id uuid NOT NULL CONSTRAINT sled_reservation_instance_id_instance_id_fk REFERENCES instance (id),
  sled_id uuid NOT NULL CONSTRAINT sled_reservation_sled_id_sled_id_fk REFERENCES sled (id),
  threads integer NOT NULL,
  memory_bytes bigint NOT NULL,
  kind reservation_kind NOT NULL,
  CONSTRAINT sled_reservation_size CHECK (threads >= 1 AND memory_bytes >= 1)
);
CREATE INDEX sled_reservation_sled ON sled_reservation (sled_id);
CREATE INDEX sled_reservation_instance ON sled_reservation (instance_id);
CREATE UNIQUE INDEX sled_reservation_one_active ON sled_reservation (instance_id) WHERE kind = 'active';
CREATE UNIQUE INDEX sled_reservation_one_target ON sled_reservation (instance_id) WHERE kind = 'target';
CREATE INDEX sled_reservation_tombstoned ON sled_reservation (instance_id) WHERE kind = 'tombstoned';

CREATE TABLE provisioning_charge (
  instance_id uuid PRIMARY KEY CONSTRAINT provisioning_charge_instance_id_instance_id_fk REFERENCES instance (id),
  project_id uuid NOT NULL CONSTRAINT provisioning_charge_project_id_project_id_fk REFERENCES project (id),
  cpus integer NOT NULL,
  memory_bytes bigint NOT NULL,
  CONSTRAINT provisioning_charge_size CHECK (cpus >= 1 AND memory_bytes >= 1)
);
CREATE INDEX provisioning_charge_project ON provisioning_charge (project_id);

CREATE TABLE affinity_group (
  id uuid PRIMARY KEY,
  project_id uuid NOT NULL CONSTRAINT affinity_group_project_id_project_id_fk REFERENCES project (id),
  kind affinity_kind NOT NULL,
  name text NOT NULL,
  description text NOT NULL,
  policy affinity_policy NOT NULL,
  failure_domain failure_domain NOT NULL,
  time_created timestamptz NOT NULL DEFAULT now(),
  time_modified timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX affinity_group_name ON affinity_group (project_id, kind, name);

CREATE TABLE affinity_group_member (
  group_id uuid NOT NULL CONSTRAINT affinity_group_member_group_id_affinity_group_id_fk REFERENCES affinity_group (id) ON DELETE CASCADE,
  instance_id uuid NOT NULL CONSTRAINT affinity_group_member_instance_id_instance_id_fk REFERENCES instance (id),
  CONSTRAINT affinity_group_member_pkey PRIMARY KEY (group_id, instance_id)
);
CREATE INDEX affinity_group_member_instance ON affinity_group_member (instance_id);

CREATE TABLE instance_network (
  instance_id uuid PRIMARY KEY CONSTRAINT instance_network_instance_id_instance_id_fk REFERENCES instance (id),
  sled_id uuid CONSTRAINT instance_network_sled_id_sled_id_fk REFERENCES sled (id),
  vmm_id uuid CONSTRAINT instance_network_vmm_id_vmm_id_fk REFERENCES vmm (id),
  ip text,
  port integer,
  generation bigint NOT NULL DEFAULT 1,
  changed_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
  time_modified timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT instance_network_whole CHECK (num_nulls(sled_id, vmm_id, ip, port) IN (0, 4)),
  CONSTRAINT instance_network_generation CHECK (generation >= 1)
);
CREATE INDEX instance_network_changed ON instance_network (changed_in, instance_id);
CREATE INDEX instance_network_vmm ON instance_network (vmm_id) WHERE vmm_id IS NOT NULL;

CREATE TABLE network_horizon (
  singleton boolean PRIMARY KEY DEFAULT true,
  forgotten_to xid8 NOT NULL DEFAULT '0',
  database_history text NOT NULL DEFAULT '',
  CONSTRAINT network_horizon_one_row CHECK (singleton)
);
INSERT INTO network_horizon DEFAULT VALUES;

CREATE TABLE operation (
  id uuid PRIMARY KEY,
  kind operation_kind NOT NULL,
  instance_id uuid NOT NULL CONSTRAINT operation_instance_id_instance_id_fk REFERENCES instance (id),
  vmm_id uuid,
  workflow_id text NOT NULL,
  succeeded boolean,
  error jsonb,
  time_started timestamptz NOT NULL DEFAULT now(),
  time_ended timestamptz,
  CONSTRAINT operation_outcome CHECK ((time_ended IS NULL) = (succeeded IS NULL)),
  CONSTRAINT operation_error CHECK ((error IS NOT NULL) = (succeeded IS NOT DISTINCT FROM false))
);
CREATE INDEX operation_instance ON operation (instance_id, time_started);
CREATE INDEX operation_started ON operation (time_started);
CREATE INDEX operation_open ON operation (time_started) WHERE time_ended IS NULL;
CREATE INDEX operation_vmm ON operation (vmm_id);
CREATE INDEX operation_ended ON operation (time_ended) WHERE time_ended IS NOT NULL;

CREATE TABLE installation (
  singleton boolean PRIMARY KEY DEFAULT true,
  id text NOT NULL DEFAULT substr(replace(gen_random_uuid()::text, '-', ''), 1, 12),
  time_created timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT installation_one_row CHECK (singleton),
  CONSTRAINT installation_id CHECK (id ~ '^[0-9a-z]{1,32}$')
);
INSERT INTO installation DEFAULT VALUES;

CREATE TABLE lease_service (
  singleton boolean PRIMARY KEY DEFAULT true,
  last_beat_at timestamptz NOT NULL,
  CONSTRAINT lease_service_one_row CHECK (singleton)
);
INSERT INTO lease_service (last_beat_at) VALUES (now());

CREATE TABLE lease_service_gap (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  began_at timestamptz NOT NULL,
  ended_at timestamptz NOT NULL
);
CREATE INDEX lease_service_gap_ended ON lease_service_gap (ended_at);

CREATE TABLE idempotency_key (
  key uuid PRIMARY KEY,
  call keyed_call NOT NULL,
  instance_id uuid CONSTRAINT idempotency_key_instance_id_instance_id_fk REFERENCES instance (id),
  request_digest bytea NOT NULL CONSTRAINT idempotency_key_digest CHECK (octet_length(request_digest) = 32),
  taken_by uuid NOT NULL,
  taken_until timestamptz,
  operation_id uuid,
  refusal jsonb,
  time_created timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT idempotency_key_about CHECK (instance_id IS NOT NULL OR refusal IS NOT NULL)
);
CREATE INDEX idempotency_key_age ON idempotency_key (time_created);
CREATE INDEX idempotency_key_instance ON idempotency_key (instance_id);
CREATE INDEX idempotency_key_operation ON idempotency_key (operation_id) WHERE operation_id IS NOT NULL;

CREATE TABLE access_token (
  id uuid PRIMARY KEY,
  name text NOT NULL,
  secret_hash bytea NOT NULL,
  role access_role NOT NULL,
  project_id uuid CONSTRAINT access_token_project_id_project_id_fk REFERENCES project (id),
  time_created timestamptz NOT NULL DEFAULT now(),
  time_expires timestamptz,
  time_revoked timestamptz,
  CONSTRAINT access_token_hash CHECK (octet_length(secret_hash) = 32)
);
CREATE UNIQUE INDEX access_token_secret ON access_token (secret_hash);
CREATE UNIQUE INDEX access_token_name ON access_token (name) WHERE time_revoked IS NULL;
CREATE INDEX access_token_project ON access_token (project_id);

CREATE TABLE audit_log (
  id uuid PRIMARY KEY,
  time_started timestamptz NOT NULL,
  time_completed timestamptz,
  actor audit_actor NOT NULL,
  actor_name text NOT NULL,
  actor_id uuid,
  source_ip text,
  user_agent text,
  request_id text NOT NULL,
  request_uri text NOT NULL,
  operation text NOT NULL,
  subject_kind text,
  subject text,
  project_id uuid,
  saga_operation_id uuid,
  result audit_result,
  http_status integer,
  error_code text,
  error_message text,
  CONSTRAINT audit_log_completed_has_result CHECK ((time_completed IS NULL) = (result IS NULL))
);
CREATE INDEX audit_log_completed ON audit_log (time_completed, id) WHERE time_completed IS NOT NULL;
CREATE INDEX audit_log_open ON audit_log (time_started) WHERE time_completed IS NULL;
CREATE INDEX audit_log_open_operation ON audit_log (saga_operation_id) WHERE time_completed IS NULL;

-- === Rules: what a check constraint cannot see, the second line of defence behind the transactions ===

-- A sled's reservations never exceed it: the sum is kept in its row, under its row lock, where a check watches it.
-- Only a sled in service takes a new reservation, and none that was declared dead: a claim that picked it before waits here
-- for the declaration.
CREATE FUNCTION keep_sled_sums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('UPDATE', 'DELETE') THEN
    UPDATE sled SET reserved_threads = reserved_threads - OLD.threads, reserved_memory_bytes = reserved_memory_bytes - OLD.memory_bytes
     WHERE id = OLD.sled_id;
  END IF;
  IF TG_OP IN ('INSERT', 'UPDATE') THEN
    UPDATE sled SET reserved_threads = reserved_threads + NEW.threads, reserved_memory_bytes = reserved_memory_bytes + NEW.memory_bytes
     WHERE id = NEW.sled_id AND (policy = 'in_service' AND time_declared_dead IS NULL OR TG_OP = 'UPDATE');
    IF NOT FOUND THEN
      RAISE EXCEPTION 'sled % takes no new reservation', NEW.sled_id USING ERRCODE = '23514', CONSTRAINT = 'sled_in_service';
    END IF;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER sled_reservation_changes AFTER INSERT OR DELETE OR UPDATE OF sled_id, threads, memory_bytes ON sled_reservation
  FOR EACH ROW EXECUTE FUNCTION keep_sled_sums();

-- A project's charges never exceed its quota: only a new charge is refused, since a quota may be set below what is in use.
CREATE FUNCTION keep_project_sums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    UPDATE project SET charged_cpus = charged_cpus - OLD.cpus, charged_memory_bytes = charged_memory_bytes - OLD.memory_bytes
     WHERE id = OLD.project_id;
  ELSE
    UPDATE project SET charged_cpus = charged_cpus + NEW.cpus, charged_memory_bytes = charged_memory_bytes + NEW.memory_bytes
     WHERE id = NEW.project_id
       AND (quota_cpus IS NULL OR charged_cpus + NEW.cpus <= quota_cpus)
       AND (quota_memory_bytes IS NULL OR charged_memory_bytes + NEW.memory_bytes <= quota_memory_bytes);
    IF NOT FOUND THEN
      RAISE EXCEPTION 'the quota of project % is used up', NEW.project_id USING ERRCODE = '23514', CONSTRAINT = 'project_quota';
    END IF;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER provisioning_charge_changes AFTER INSERT OR DELETE ON provisioning_charge
  FOR EACH ROW EXECUTE FUNCTION keep_project_sums();

CREATE FUNCTION refuse_charge_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a charge is taken and released, never changed' USING ERRCODE = '23514', CONSTRAINT = 'charge_is_fixed';
END $$;
CREATE TRIGGER provisioning_charge_is_fixed BEFORE UPDATE ON provisioning_charge
  FOR EACH ROW EXECUTE FUNCTION refuse_charge_change();

-- Every change of an instance's state or ids raises its generation by exactly one; without one it stays.
CREATE FUNCTION guard_instance_generation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.state, NEW.active_vmm_id, NEW.target_vmm_id, NEW.migration_id)
     IS DISTINCT FROM (OLD.state, OLD.active_vmm_id, OLD.target_vmm_id, OLD.migration_id) THEN
    IF NEW.state_generation <> OLD.state_generation + 1 THEN
      RAISE EXCEPTION 'instance %: a change of state or ids must raise the generation by one', OLD.id
        USING ERRCODE = '23514', CONSTRAINT = 'instance_generation_rises';
    END IF;
  ELSIF NEW.state_generation <> OLD.state_generation THEN
    RAISE EXCEPTION 'instance %: the generation changed without a change of state or ids', OLD.id
      USING ERRCODE = '23514', CONSTRAINT = 'instance_generation_rises';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER instance_generation_rises BEFORE UPDATE ON instance
  FOR EACH ROW EXECUTE FUNCTION guard_instance_generation();

-- No instance names a deleted VMM, another instance's VMM, or a migration that is not its own.
CREATE FUNCTION guard_instance_links() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM vmm WHERE id IN (NEW.active_vmm_id, NEW.target_vmm_id)
              AND (instance_id <> NEW.id OR time_deleted IS NOT NULL))
     OR EXISTS (SELECT 1 FROM migration WHERE id = NEW.migration_id
              AND (instance_id <> NEW.id OR target_vmm_id <> NEW.target_vmm_id)) THEN
    RAISE EXCEPTION 'instance % names what is not its own', NEW.id USING ERRCODE = '23514', CONSTRAINT = 'instance_links_own';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER instance_links_own AFTER INSERT OR UPDATE OF active_vmm_id, target_vmm_id, migration_id ON instance
  FOR EACH ROW EXECUTE FUNCTION guard_instance_links();

-- A gone VMM never comes back; the one way on is `saga_unwound` over a terminal state, by the saga that is unwinding it.
CREATE FUNCTION guard_vmm() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.state IS DISTINCT FROM OLD.state THEN
    IF NEW.state_generation <= OLD.state_generation THEN
      RAISE EXCEPTION 'VMM %: a change of state must raise the generation', OLD.id USING ERRCODE = '23514', CONSTRAINT = 'vmm_generation_rises';
    END IF;
    IF OLD.state IN ('destroyed', 'failed', 'saga_unwound')
       AND NOT (NEW.state = 'saga_unwound' AND OLD.unwinding_since IS NOT NULL AND OLD.state <> 'saga_unwound') THEN
      RAISE EXCEPTION 'VMM % is gone and stays gone', OLD.id USING ERRCODE = '23514', CONSTRAINT = 'vmm_stays_gone';
    END IF;
  ELSIF NEW.state_generation < OLD.state_generation THEN
    RAISE EXCEPTION 'VMM %: the generation must not fall', OLD.id USING ERRCODE = '23514', CONSTRAINT = 'vmm_generation_rises';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER vmm_guard BEFORE UPDATE ON vmm FOR EACH ROW EXECUTE FUNCTION guard_vmm();

CREATE FUNCTION guard_vmm_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM instance WHERE id = NEW.instance_id AND NEW.id IN (active_vmm_id, target_vmm_id)) THEN
    RAISE EXCEPTION 'VMM % is named by its instance and cannot be deleted', NEW.id USING ERRCODE = '23514', CONSTRAINT = 'vmm_deleted_unlinked';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER vmm_deleted_unlinked AFTER UPDATE OF time_deleted ON vmm
  FOR EACH ROW WHEN (NEW.time_deleted IS NOT NULL AND OLD.time_deleted IS NULL) EXECUTE FUNCTION guard_vmm_deletion();

-- A terminal side of a migration never changes.
CREATE FUNCTION guard_migration() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (OLD.source_state IN ('completed', 'failed') AND NEW.source_state <> OLD.source_state)
     OR (OLD.target_state IN ('completed', 'failed') AND NEW.target_state <> OLD.target_state) THEN
    RAISE EXCEPTION 'migration %: a side that is over stays as it ended', OLD.id USING ERRCODE = '23514', CONSTRAINT = 'migration_side_final';
  END IF;
  IF NEW.source_generation < OLD.source_generation OR NEW.target_generation < OLD.target_generation THEN
    RAISE EXCEPTION 'migration %: a generation must not fall', OLD.id USING ERRCODE = '23514', CONSTRAINT = 'migration_generation_rises';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER migration_guard BEFORE UPDATE ON migration FOR EACH ROW EXECUTE FUNCTION guard_migration();

-- The outcome of an operation is written once, and what has ended makes no VMM any more: a claim of an attempt that was
-- given up is refused here, however late it comes.
CREATE FUNCTION guard_operation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.vmm_id, NEW.succeeded, NEW.error) IS DISTINCT FROM (OLD.vmm_id, OLD.succeeded, OLD.error) THEN
    RAISE EXCEPTION 'operation % is over', OLD.id USING ERRCODE = '23514', CONSTRAINT = 'operation_is_over';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER operation_guard BEFORE UPDATE ON operation FOR EACH ROW WHEN (OLD.time_ended IS NOT NULL) EXECUTE FUNCTION guard_operation();

-- === Placement ===

-- The last line of defence of the groups that must not be broken: whatever a placement had read, the group's row is locked
-- here, and what is read after that is what was committed before. A tombstoned reservation has no guest, so it doesn't count.
CREATE FUNCTION guard_affinity() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  broken text;
BEGIN
  IF NEW.kind = 'tombstoned' THEN
    RETURN NEW;
  END IF;
  PERFORM 1 FROM affinity_group JOIN affinity_group_member mine ON mine.group_id = affinity_group.id
    WHERE mine.instance_id = NEW.instance_id AND affinity_group.policy = 'fail'
    ORDER BY affinity_group.id FOR NO KEY UPDATE OF affinity_group;
  IF NOT FOUND THEN
    RETURN NEW;
  END IF;
  SELECT affinity_group.name INTO broken
    FROM affinity_group_member mine
    JOIN affinity_group ON affinity_group.id = mine.group_id AND affinity_group.policy = 'fail'
    JOIN affinity_group_member other ON other.group_id = mine.group_id AND other.instance_id <> mine.instance_id
    JOIN sled_reservation held ON held.instance_id = other.instance_id AND held.kind <> 'tombstoned'
    WHERE mine.instance_id = NEW.instance_id AND (affinity_group.kind = 'affinity') <> (held.sled_id = NEW.sled_id)
    LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'group % forbids instance % on sled %', broken, NEW.instance_id, NEW.sled_id
      USING ERRCODE = '23514', CONSTRAINT = 'affinity_group_forbids';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER sled_reservation_affinity BEFORE INSERT OR UPDATE OF sled_id ON sled_reservation
  FOR EACH ROW EXECUTE FUNCTION guard_affinity();

-- Who may become a member: an instance of the group's project that has no place yet; 32 members a group, 16 groups of a kind
-- an instance, as in Omicron (nexus/db-queries/src/db/datastore/affinity.rs). The instance first, then the group, as a start
-- locks them.
CREATE FUNCTION guard_affinity_member() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  joining instance%ROWTYPE;
  joined affinity_group%ROWTYPE;
BEGIN
  SELECT * INTO joining FROM instance WHERE id = NEW.instance_id FOR NO KEY UPDATE;
  SELECT * INTO joined FROM affinity_group WHERE id = NEW.group_id FOR NO KEY UPDATE;
  IF joining.time_deleted IS NOT NULL OR joining.project_id <> joined.project_id THEN
    RAISE EXCEPTION 'instance % is not of the project of group %', NEW.instance_id, joined.name
      USING ERRCODE = '23514', CONSTRAINT = 'affinity_member_of_project';
  END IF;
  IF EXISTS (SELECT 1 FROM sled_reservation WHERE instance_id = NEW.instance_id AND kind <> 'tombstoned') THEN
    RAISE EXCEPTION 'instance % has a place already', NEW.instance_id USING ERRCODE = '23514', CONSTRAINT = 'affinity_member_unplaced';
  END IF;
  IF (SELECT count(*) FROM affinity_group_member WHERE group_id = NEW.group_id) >= 32 THEN
    RAISE EXCEPTION 'group % is full', joined.name USING ERRCODE = '23514', CONSTRAINT = 'affinity_group_size';
  END IF;
  IF (SELECT count(*) FROM affinity_group_member mine JOIN affinity_group ON affinity_group.id = mine.group_id
       WHERE mine.instance_id = NEW.instance_id AND affinity_group.kind = joined.kind) >= 16 THEN
    RAISE EXCEPTION 'instance % is in too many groups', NEW.instance_id USING ERRCODE = '23514', CONSTRAINT = 'affinity_groups_of_instance';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER affinity_group_member_guard BEFORE INSERT ON affinity_group_member
  FOR EACH ROW EXECUTE FUNCTION guard_affinity_member();

CREATE FUNCTION leave_affinity_groups() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM affinity_group_member WHERE instance_id = NEW.id;
  RETURN NULL;
END $$;
CREATE TRIGGER instance_leaves_affinity_groups AFTER UPDATE OF time_deleted ON instance
  FOR EACH ROW WHEN (NEW.time_deleted IS NOT NULL AND OLD.time_deleted IS NULL) EXECUTE FUNCTION leave_affinity_groups();

-- === Network ===

-- Where an instance lives changes with a generation that rises by one, in a transaction that pollers can go by.
CREATE FUNCTION guard_instance_network() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.generation <> OLD.generation + 1 OR NEW.changed_in <> pg_current_xact_id() THEN
    RAISE EXCEPTION 'instance %: a change of its network must raise the generation and name its transaction', OLD.instance_id
      USING ERRCODE = '23514', CONSTRAINT = 'instance_network_generation_rises';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER instance_network_guard BEFORE UPDATE ON instance_network FOR EACH ROW EXECUTE FUNCTION guard_instance_network();

-- Which run of transaction numbers this is: another after a dump was restored, here or in another cluster, and after another
-- server took over. Pollers hold numbers, which mean nothing in any other. Empty where the server doesn't say.
CREATE FUNCTION database_history() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN concat_ws('/', (SELECT system_identifier FROM pg_control_system()), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),
    (SELECT oid FROM pg_database WHERE datname = current_database()), to_regclass('instance_network')::oid);
EXCEPTION WHEN OTHERS THEN
  RETURN '';
END $$;

-- === Operations ===

-- Whoever waits for an operation hears of its outcome when the transaction that writes it has committed. It is a hint: a
-- connection that is not listening misses it, and nothing may depend on it.
CREATE FUNCTION announce_operation_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' OR OLD.time_ended IS NULL THEN
    PERFORM pg_notify('mooring_operation_ended', NEW.id || ' ' || NEW.succeeded);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER operation_ended AFTER INSERT OR UPDATE OF time_ended ON operation FOR EACH ROW
  WHEN (NEW.time_ended IS NOT NULL) EXECUTE FUNCTION announce_operation_outcome();

-- === Audit log ===

-- A record that waits for its operation is completed in the transaction that writes the operation's outcome, whoever is
-- left by then. A caller's own answer, which comes after it, is written over it.
CREATE FUNCTION complete_audit_of_operation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE audit_log SET time_completed = clock_timestamp(),
    result = CASE WHEN NEW.succeeded THEN 'success'::audit_result ELSE 'error'::audit_result END,
    http_status = CASE WHEN NEW.succeeded THEN 202 ELSE (NEW.error->>'status')::integer END,
    error_code = NEW.error->>'error_code', error_message = left(NEW.error->>'message', 1024)
  WHERE saga_operation_id = NEW.id AND time_completed IS NULL;
  RETURN NULL;
END $$;
CREATE TRIGGER operation_ends AFTER INSERT OR UPDATE OF time_ended ON operation FOR EACH ROW
  WHEN (NEW.time_ended IS NOT NULL) EXECUTE FUNCTION complete_audit_of_operation();
