-- Not that it was heard of: that is every few seconds, and no news.
CREATE FUNCTION note_sled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('sled', NEW.id, NULL);
  RETURN NULL;
END $$;
CREATE TRIGGER sled_made_noted AFTER INSERT ON sled FOR EACH ROW EXECUTE FUNCTION note_sled();
CREATE TRIGGER sled_change_noted AFTER UPDATE ON sled FOR EACH ROW
  WHEN ((NEW.name, NEW.address, NEW.threads, NEW.memory_bytes, NEW.policy, NEW.identified, NEW.reserved_threads,
      NEW.reserved_memory_bytes, NEW.lease_ms, NEW.fencing_since, NEW.time_declared_dead, NEW.silent_since, NEW.agent_id,
      NEW.agent_version, NEW.agent_trouble, NEW.another_answers, NEW.cpu_models, NEW.expunging_since)
    IS DISTINCT FROM (OLD.name, OLD.address, OLD.threads, OLD.memory_bytes, OLD.policy, OLD.identified, OLD.reserved_threads,
      OLD.reserved_memory_bytes, OLD.lease_ms, OLD.fencing_since, OLD.time_declared_dead, OLD.silent_since, OLD.agent_id,
      OLD.agent_version, OLD.agent_trouble, OLD.another_answers, OLD.cpu_models, OLD.expunging_since))
  EXECUTE FUNCTION note_sled();
