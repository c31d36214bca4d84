-- What a check constraint cannot see, enforced by triggers: the second line of defence behind the transactions.

-- A sled's reservations never exceed it: the sum is kept in its row, under its row lock, where a check watches it.
-- Only a sled in service takes a new reservation.
CREATE FUNCTION keep_sled_sums() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP IN ('UPDATE', 'DELETE') THEN
    UPDATE sled SET reserved_threads = reserved_threads - OLD.threads, reserved_memory_bytes = reserved_memory_bytes - OLD.memory_bytes
     WHERE id = OLD.sled_id;
  END IF;
  IF TG_OP IN ('INSERT', 'UPDATE') THEN
    UPDATE sled SET reserved_threads = reserved_threads + NEW.threads, reserved_memory_bytes = reserved_memory_bytes + NEW.memory_bytes
     WHERE id = NEW.sled_id AND (policy = 'in_service' OR TG_OP = 'UPDATE');
    IF NOT FOUND THEN
      RAISE EXCEPTION 'sled % takes no new reservation', NEW.sled_id USING ERRCODE = '23514', CONSTRAINT = 'sled_in_service';
    END IF;
  END IF;
  RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER sled_reservation_changes AFTER INSERT OR DELETE OR UPDATE OF sled_id, threads, memory_bytes ON sled_reservation
  FOR EACH ROW EXECUTE FUNCTION keep_sled_sums();
--> statement-breakpoint
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
--> statement-breakpoint
CREATE TRIGGER provisioning_charge_changes AFTER INSERT OR DELETE ON provisioning_charge
  FOR EACH ROW EXECUTE FUNCTION keep_project_sums();
--> statement-breakpoint
CREATE FUNCTION refuse_charge_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a charge is taken and released, never changed' USING ERRCODE = '23514', CONSTRAINT = 'charge_is_fixed';
END $$;
--> statement-breakpoint
CREATE TRIGGER provisioning_charge_is_fixed BEFORE UPDATE ON provisioning_charge
  FOR EACH ROW EXECUTE FUNCTION refuse_charge_change();
--> statement-breakpoint
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
--> statement-breakpoint
CREATE TRIGGER instance_generation_rises BEFORE UPDATE ON instance
  FOR EACH ROW EXECUTE FUNCTION guard_instance_generation();
--> statement-breakpoint
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
--> statement-breakpoint
CREATE TRIGGER instance_links_own AFTER INSERT OR UPDATE OF active_vmm_id, target_vmm_id, migration_id ON instance
  FOR EACH ROW EXECUTE FUNCTION guard_instance_links();
--> statement-breakpoint
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
--> statement-breakpoint
CREATE TRIGGER vmm_guard BEFORE UPDATE ON vmm FOR EACH ROW EXECUTE FUNCTION guard_vmm();
--> statement-breakpoint
CREATE FUNCTION guard_vmm_deletion() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT 1 FROM instance WHERE id = NEW.instance_id AND NEW.id IN (active_vmm_id, target_vmm_id)) THEN
    RAISE EXCEPTION 'VMM % is named by its instance and cannot be deleted', NEW.id USING ERRCODE = '23514', CONSTRAINT = 'vmm_deleted_unlinked';
  END IF;
  RETURN NULL;
END $$;
--> statement-breakpoint
CREATE TRIGGER vmm_deleted_unlinked AFTER UPDATE OF time_deleted ON vmm
  FOR EACH ROW WHEN (NEW.time_deleted IS NOT NULL AND OLD.time_deleted IS NULL) EXECUTE FUNCTION guard_vmm_deletion();
--> statement-breakpoint
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
--> statement-breakpoint
CREATE TRIGGER migration_guard BEFORE UPDATE ON migration FOR EACH ROW EXECUTE FUNCTION guard_migration();
