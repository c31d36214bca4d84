-- A VMM shows in its instance's state, and in how many its sled has.
CREATE FUNCTION note_vmm() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('instance', NEW.instance_id, (SELECT project_id FROM instance WHERE id = NEW.instance_id));
  IF NEW.sled_id IS NOT NULL THEN
    PERFORM note_change('sled', NEW.sled_id, NULL);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER vmm_made_noted AFTER INSERT ON vmm FOR EACH ROW EXECUTE FUNCTION note_vmm();
CREATE TRIGGER vmm_change_noted AFTER UPDATE ON vmm FOR EACH ROW
  WHEN ((NEW.state, NEW.sled_id, NEW.unwinding_since, NEW.time_deleted)
    IS DISTINCT FROM (OLD.state, OLD.sled_id, OLD.unwinding_since, OLD.time_deleted)) EXECUTE FUNCTION note_vmm();
