-- A migration shows in its instance's state too.
CREATE FUNCTION note_migration() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  of_project uuid := (SELECT project_id FROM instance WHERE id = NEW.instance_id);
BEGIN
  PERFORM note_change('migration', NEW.id, of_project);
  PERFORM note_change('instance', NEW.instance_id, of_project);
  RETURN NULL;
END $$;
CREATE TRIGGER migration_made_noted AFTER INSERT ON migration FOR EACH ROW EXECUTE FUNCTION note_migration();
CREATE TRIGGER migration_change_noted AFTER UPDATE ON migration FOR EACH ROW
  WHEN ((NEW.source_state, NEW.target_state) IS DISTINCT FROM (OLD.source_state, OLD.target_state))
  EXECUTE FUNCTION note_migration();
