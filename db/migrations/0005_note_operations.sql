CREATE FUNCTION note_operation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_change('operation', NEW.id, (SELECT project_id FROM instance WHERE id = NEW.instance_id));
  RETURN NULL;
END $$;
CREATE TRIGGER operation_made_noted AFTER INSERT ON operation FOR EACH ROW EXECUTE FUNCTION note_operation();
CREATE TRIGGER operation_change_noted AFTER UPDATE ON operation FOR EACH ROW
  WHEN ((NEW.time_ended, NEW.succeeded, NEW.error) IS DISTINCT FROM (OLD.time_ended, OLD.succeeded, OLD.error))
  EXECUTE FUNCTION note_operation();
